//! What goes wrong on the way to a cache has its own words each, and is never "absent".

use super::{Served, Source};
use crate::{
    cli::{Done, Machine},
    support::servers::S3,
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
    if let Some(ceph) = S3::ceph() {
        logins(&ceph);
        let (source, good) = (
            Source::new(2, &[]),
            login(&ceph.access_key, &ceph.secret_key),
        );
        let missing = all(&source, &ceph.uri("missing"), &good);
        expect("no bucket", missing, &["no bucket"]);
    }
    // To it every name is a bucket.
    if let Some(s3) = S3::s3s_fs() {
        logins(&s3);
    }
}

fn login<'a>(id: &'a str, secret: &'a str) -> [(&'static str, &'a str); 2] {
    [("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret)]
}

fn logins(s3: &S3) {
    s3.make_bucket("there");
    let source = Source::new(2, &[]);
    let cache = s3.uri("there");
    let (id, secret) = (s3.access_key.as_str(), s3.secret_key.as_str());
    let good = login(id, secret);
    let init = ["cache", "init", &cache];
    let mut init = source.machine.command(init);
    let done = source.machine.done(init.envs(good).output());
    assert_eq!(done.status, 0, "{done:?}");

    let wrong = all(&source, &cache, &login(id, "not-the-secret"));
    expect("wrong secret", wrong, &["secret"]);
    let unknown = all(&source, &cache, &login("nobody", "not-the-secret"));
    expect("unknown key", unknown, &["access key", "not signed up"]);
    expect(
        "no login",
        all(&source, &cache, &[]),
        &["credentials", "permission", "denied"],
    );
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
