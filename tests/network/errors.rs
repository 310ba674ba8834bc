//! What goes wrong on the way to a cache has its own words each, and is never "absent".

use super::{Served, Source};
use crate::{
    cli::{Done, Machine},
    support::servers::Ceph,
};
use std::net::TcpListener;

/// `check`, `pull`, and `push` of one path, each with its exit status and words.
fn all(source: &Source, cache: &str, env: &[(&str, &str)]) -> [(&'static str, Done); 3] {
    let top = source.top();
    let run = |args: &[&str]| {
        let mut command = source.machine.command(args);
        for name in [
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
        ] {
            command.env_remove(name);
        }
        // Nobody has a machine service here, and it is not to be waited for.
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        command.envs(env.iter().copied());
        source.machine.done(command.output())
    };
    [
        ("check", run(&["check", "--in", cache, &top])),
        (
            "pull",
            run(&[
                "pull",
                "--no-check-sigs",
                "--from",
                cache,
                "--to",
                "./to",
                &top,
            ]),
        ),
        (
            "push",
            run(&["push", "--store", "./store", "--to", cache, &top]),
        ),
    ]
}

#[track_caller]
fn expect(what: &str, done: [(&str, Done); 3], words: &[&str]) {
    for (command, done) in done {
        assert_eq!(done.status, 2, "{what}, {command}: {done:?}");
        assert!(
            !done.err.contains("panicked"),
            "{what}, {command}: {done:?}"
        );
        assert!(!done.out.contains("absent"), "{what}, {command}: {done:?}");
        let said = done.err.to_lowercase();
        let clear = words.iter().any(|word| said.contains(word));
        assert!(
            clear,
            "{what}, {command} says none of {words:?}: {}",
            done.err
        );
        for secret in ["not-the-secret", "hunter2"] {
            assert!(!said.contains(secret), "{what}, {command}: {}", done.err);
        }
    }
}

#[test]
fn buckets() {
    let Some(ceph) = Ceph::start() else { return };
    ceph.make_bucket("there");
    let source = Source::new(2, &[]);
    let (cache, missing) = (ceph.uri("there"), ceph.uri("missing"));
    let (id, secret) = (ceph.access_key.as_str(), ceph.secret_key.as_str());
    let login = |id, secret| [("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret)];
    let good = login(id, secret);
    let init = ["cache", "init", &cache];
    let mut init = source.machine.command(init);
    let done = source.machine.done(init.envs(good).output());
    assert_eq!(done.status, 0, "{done:?}");

    let wrong = all(&source, &cache, &login(id, "not-the-secret"));
    expect("wrong secret", wrong, &["secret"]);
    let unknown = all(&source, &cache, &login("nobody", "not-the-secret"));
    expect("unknown key", unknown, &["access key"]);
    expect(
        "no login",
        all(&source, &cache, &[]),
        &["credentials", "permission", "denied"],
    );
    expect("no bucket", all(&source, &missing, &good), &["no bucket"]);
}

#[test]
fn servers() {
    let Some(served) = Served::start(true) else {
        return;
    };
    let source = Source::new(2, &[]);
    let url = &served.nginx.url;
    let ca = served.nginx.env();
    let ca: Vec<_> = ca
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let mut init = source
        .machine
        .command(["cache", "init", &format!("{url}/c")]);
    let done = source.machine.done(init.envs(ca.iter().copied()).output());
    assert_eq!(done.status, 0, "{done:?}");

    let untrusted = all(&source, &format!("{url}/c"), &[]);
    expect("an unknown authority", untrusted, &["certificate"]);
    // A port that nobody listens at.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let nobody = all(
        &source,
        &format!("http://user:hunter2@127.0.0.1:{port}/c"),
        &[],
    );
    expect("nobody there", nobody, &["refused"]);
    let nowhere = all(&source, "http://does-not-exist.invalid/c", &[]);
    expect(
        "no such host",
        nowhere,
        &["resolve", "lookup", "dns", "name"],
    );

    // What is not there is an answer, if the place is a cache at all.
    let machine = Machine::new();
    let check = |cache: String| {
        let mut check = machine.command(["check", "--in", &cache, &source.top()]);
        machine.done(check.envs(ca.iter().copied()).output())
    };
    assert_eq!(check(format!("{url}/c")).status, 1);
    assert_eq!(check(format!("{url}/no-cache")).status, 2);
}
