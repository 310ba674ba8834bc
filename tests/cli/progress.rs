//! What is said while something goes on: of what has arrived, and of what goes wrong on the way.

use super::Machine;
use crate::support::{made::fill, shelf::Shelf};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    thread,
    time::Duration,
};

/// A machine whose folder `s` is a store with a chain of paths, and the last of them.
fn machine(count: usize) -> (Machine, String) {
    let machine = Machine::new();
    let paths = fill(&machine.home().join("s"), &vec![500; count]);
    let top = format!("/nix/store/{}", paths.last().expect("some"));
    (machine, top)
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn a_path_counts_as_pushed_when_readers_have_it() {
    let server = Shelf::new(|asked| {
        if asked.method == "PUT" && asked.path.ends_with(".narinfo") {
            thread::sleep(Duration::from_millis(30));
        }
        None
    });
    let (machine, top) = machine(6);
    let url = server.url("");
    let mut command = machine.command(["push", &top, "--store", "./s", "--to", &url]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut push = command.spawn().expect("it starts");
    let mut counted = 0;
    for line in BufReader::new(push.stderr.take().expect("piped")).lines() {
        let line = line.expect("text");
        if let Some(rest) = line.strip_prefix("push [") {
            counted += 1;
            assert!(rest.starts_with(&format!("{counted}/6] ")), "{line}");
            assert!(server.narinfos() >= counted, "{line}: {:?}", server.names());
        }
    }
    assert!(push.wait().expect("it ends").success());
    assert_eq!(counted, 6);
}

#[test]
fn progress_as_json_is_an_object_a_line() {
    let server = Shelf::new(|asked| match asked.nth {
        0 => Some(("503 Slow Down", "not so fast")),
        _ => None,
    });
    let (machine, top) = machine(3);
    let to = format!("{}?retry-delay-rate-limited=1", server.url(""));
    let done = machine.run(&format!(
        "push {top} --store ./s --to {to} --progress json -v"
    ));
    assert_eq!(done.status, 0, "{done:?}");
    let events: Vec<Value> = lines(&done.err)
        .into_iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect();
    let named =
        |name: &str| -> Vec<&Value> { events.iter().filter(|e| e["event"] == name).collect() };
    let begin = named("begin");
    assert_eq!(
        (&begin[0]["verb"], &begin[0]["paths"]),
        (&"push".into(), &3.into())
    );
    let visible = named("visible");
    let counts: Vec<_> = visible.iter().map(|event| event["done"].as_u64()).collect();
    assert_eq!(counts, [Some(1), Some(2), Some(3)]);
    assert_eq!(visible[2]["path"], top);
    let retry = named("retry");
    assert_eq!(
        retry[0]["reason"],
        "HTTP status 503 Service Unavailable: not so fast"
    );
    assert!(named("request").len() > 3);
    assert_eq!(named("end")[0]["paths"], 3);
    assert_eq!(named("message").last().expect("the sum")["level"], "info");
}

#[test]
fn what_is_tried_again_is_told_and_why() {
    let server = Shelf::new(|asked| match asked.nth {
        0 => Some(("503 Slow Down", "<Error>\u{1b}[31mquota at 100 %</Error>")),
        _ => None,
    });
    let (machine, top) = machine(1);
    let to = format!("{}?retry-delay-rate-limited=1", server.url("me:secret@"));
    let done = machine.run(&format!("push {top} --store ./s --to {to} -q"));
    assert_eq!(done.status, 0, "{done:?}");
    let (url, _) = to.split_once('?').expect("it has one");
    let start = format!(
        "warning: {}/nix-cache-info failed: HTTP status 503 Service Unavailable: \
        [31mquota at 100 %; trying again in ",
        url.replace("me:secret@", "")
    );
    assert!(done.err.starts_with(&start), "{done:?}");
    let told = done.err.lines().next().expect("a line");
    assert!(told.ends_with(" ms, attempt 2 of 9"), "{done:?}");
}

#[test]
fn what_a_server_says_to_a_refused_upload_is_in_the_error() {
    let server = Shelf::new(|asked| match (asked.method, asked.path) {
        ("PUT", path) if path.starts_with("/nar/") => {
            Some(("403 Forbidden", "<Error>quota exceeded</Error>"))
        }
        _ => None,
    });
    let (machine, top) = machine(1);
    let to = server.url("");
    let error = machine.fails(2, &format!("push {top} --store ./s --to {to}"));
    assert!(error.contains("quota exceeded"), "{error}");
}

#[test]
fn each_request_and_decision_on_demand() {
    let server = Shelf::new(|_| None);
    let (machine, top) = machine(2);
    let to = server.url("me:secret@");
    let push = format!("push {top} --store ./s --to {to}");
    let done = machine.run(&format!("{push} -v"));
    assert_eq!(done.status, 0, "{done:?}");
    assert!(!done.err.contains("secret"), "{done:?}");
    let url = server.url("");
    let name = top.trim_start_matches("/nix/store/");
    let narinfo = format!("{}.narinfo", &name[..32]);
    for expected in [
        format!("GET {url}/nix-cache-info: 404, "),
        format!("PUT {url}/{narinfo}: 201, "),
        format!("{name}: missing, "),
    ] {
        let found = lines(&done.err)
            .iter()
            .any(|line| line.starts_with(&expected));
        assert!(found, "{expected}: {done:?}");
    }
    let done = machine.run(&format!("{push} --verbose"));
    let there = format!("{name}: there already");
    assert!(lines(&done.err).contains(&&*there), "{done:?}");
    let done = machine.run(&push);
    assert!(!done.err.contains("GET"), "{done:?}");
    // What was learnt is remembered, and that is said.
    let check = format!("check {top} --in {to} -v");
    machine.ok(&check);
    let remembered = format!("{url}/{narinfo}: remembered as there, not asked");
    // It may end before all is remembered.
    let is_remembered = |_| lines(&machine.run(&check).err).contains(&&*remembered);
    assert!((0..30).any(is_remembered));
    machine.fails(2, &format!("{check} -q"));
}

#[test]
fn progress_can_be_turned_off() {
    let (machine, top) = machine(2);
    machine.ok("key generate k-1 --secret k --public p");
    let push = |to: &str, more: &str| {
        let to = machine.cache(to);
        let push = format!("push {top} --store ./s --to {to} --sign-key k {more}");
        let done = machine.run(&push);
        assert_eq!(done.status, 0, "{done:?}");
        done.err
    };
    assert!(push("a", "").starts_with("push [1/2] "));
    let none = push("b", "--progress none");
    assert!(none.starts_with("pushed 2 paths "), "{none}");
    assert!(push("c", "--progress lines").starts_with("push [1/2] "));
}
