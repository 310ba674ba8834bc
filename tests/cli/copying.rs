//! What push, pull and copy leave to others, send again and take along.

use super::Machine;
use serde_json::Value;
use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt};

/// A machine with two files in its store, the first of them in the cache `up` with a signature.
struct Two {
    machine: Machine,
    held: String,
    other: String,
    up: String,
    key: String,
}

fn two() -> Two {
    let machine = Machine::new();
    machine.write("one", "the first");
    machine.write("two", "the second");
    let key = machine.ok("key generate up-1 --secret s --public p");
    let up = machine.cache("up");
    let held = machine.ok(&format!("push one --to {up} --sign-key s --add"));
    let other = machine.ok("add two");
    Two {
        machine,
        held,
        other,
        up,
        key,
    }
}

fn report(machine: &Machine, line: &str) -> Value {
    serde_json::from_str(&machine.ok(line)).expect("JSON")
}

fn paths(report: &Value, field: &str) -> BTreeSet<String> {
    let entries = report[field].as_array().expect("a list");
    let path = |entry: &Value| entry["path"].as_str().or(entry.as_str()).map(str::to_owned);
    entries.iter().filter_map(path).collect()
}

fn set(paths: &[&String]) -> BTreeSet<String> {
    paths.iter().map(|path| (*path).clone()).collect()
}

#[test]
fn an_upstream_cache_keeps_what_it_has() {
    let Two {
        machine,
        held,
        other,
        up,
        ..
    } = two();
    let cache = machine.cache("cache");
    machine.write("three", "the third");
    machine.ok(&format!("push three --to {cache}"));
    let push = format!("push {held} {other} --to {cache} --upstream {up}");
    let planned = report(&machine, &format!("{push} --dry-run --json"));
    assert_eq!(paths(&planned, "upstream"), set(&[&held]));
    assert_eq!(paths(&planned, "wouldCopy"), set(&[&other]));
    let done = report(&machine, &format!("{push} --json"));
    assert_eq!(paths(&done, "upstream"), set(&[&held]));
    assert_eq!(paths(&done, "copied"), set(&[&other]));
    let again = machine.run(&push);
    assert!(
        again.err.contains("1 left to an upstream cache"),
        "{again:?}"
    );
    assert_eq!(again.out, format!("{held}\n{other}\n"));
    let copied = report(&machine, &format!("copy {held} --to {cache} --json"));
    assert_eq!(paths(&copied, "copied"), set(&[&held]), "now it goes");
}

#[test]
fn a_signature_of_an_upstream_is_enough() {
    let Two {
        machine,
        held,
        up,
        key,
        ..
    } = two();
    let cache = machine.cache("cache");
    // From the cache that has the signature; the upstream itself is not named.
    let copy = format!("copy {held} --from {up} --to {cache} --json --upstream-key");
    machine.ok("key generate other-1 --secret s2 --public p2");
    let left = report(&machine, &format!("{copy} {key}"));
    assert_eq!(paths(&left, "upstream"), set(&[&held]));
    let stranger = report(&machine, &format!("{copy} p2"));
    assert_eq!(paths(&stranger, "copied"), set(&[&held]));
}

#[test]
fn an_upstream_that_cannot_be_asked_stops_or_warns() {
    let Two { machine, held, .. } = two();
    let cache = machine.cache("cache");
    // Nobody listens there.
    let push = format!("push {held} --to {cache} --upstream http://127.0.0.1:1");
    machine.fails(2, &push);
    let narinfo = format!("cache/{}.narinfo", &held[11..43]);
    assert!(!machine.home().join(&narinfo).exists());
    let done = machine.run(&format!("{push} --upstream-optional"));
    assert_eq!(done.status, 0, "{done:?}");
    assert!(done.err.contains("127.0.0.1:1"), "{done:?}");
    assert!(machine.home().join(&narinfo).exists());
}

#[test]
fn only_caches_lean_on_an_upstream() {
    let Two {
        machine, held, up, ..
    } = two();
    let error = machine.fails(2, &format!("copy {held} --to ./other --upstream {up}"));
    assert!(error.contains("not a binary cache"), "{error}");
}

#[test]
fn repair_sends_again_what_is_damaged() {
    let Two {
        machine, held, up, ..
    } = two();
    let trust = "--trusted-key p --json";
    let pull = format!("pull {held} --from {up} --to ./store {trust}");
    machine.ok(&pull);
    let file = machine.home().join(format!("store{held}"));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&file, "damaged").unwrap();
    let kept = report(&machine, &pull);
    assert_eq!(paths(&kept, "present"), set(&[&held]));
    assert_eq!(fs::read(&file).unwrap(), b"damaged");
    for word in ["--repair", "--force"] {
        let done = report(&machine, &format!("{pull} {word}"));
        assert_eq!(paths(&done, "replaced"), set(&[&held]));
        assert_eq!(paths(&done, "copied"), set(&[&held]));
        assert_eq!(fs::read(&file).unwrap(), b"the first");
    }

    // In a cache too.
    let nars = machine.home().join("up/nar");
    let nar = fs::read_dir(&nars).unwrap().next().unwrap().unwrap().path();
    fs::set_permissions(&nar, fs::Permissions::from_mode(0o644)).unwrap();
    let good = fs::read(&nar).unwrap();
    fs::write(&nar, "damaged").unwrap();
    machine.fails(1, &format!("verify {held} --store {up} --trusted-key p"));
    let push = format!("push {held} --to {up} --sign-key s");
    machine.ok(&push);
    assert_eq!(fs::read(&nar).unwrap(), b"damaged");
    machine.ok(&format!("{push} --repair"));
    assert_eq!(fs::read(&nar).unwrap(), good);
}
