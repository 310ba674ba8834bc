//! Files and folders that go straight into a cache, from where they lie.

use super::Machine;
use crate::support::shelf::Shelf;
use serde_json::Value;
use std::fs;

/// A machine with a folder `tree`, in which a store path is mentioned.
fn machine() -> Machine {
    let machine = Machine::new();
    machine.write("tree/a", vec![b'a'; 300_000]);
    machine.write("tree/b/c", format!("/nix/store/{}-x", "0".repeat(32)));
    machine
}

fn info(machine: &Machine, store: &str, path: &str) -> Value {
    let all = machine.ok(&format!("path-info --store {store} --json {path}"));
    let all: Value = serde_json::from_str(&all).expect("JSON");
    all[path].clone()
}

#[test]
fn nothing_is_left_in_the_own_store() {
    let machine = machine();
    let expected = machine.ok(&format!("push tree --to {} --dry-run", machine.cache("x")));
    let server = Shelf::new(|_| None);
    for cache in [machine.cache("cache"), server.url("")] {
        let push = format!("push tree --to {cache}");
        assert_eq!(machine.ok(&format!("{push} --dry-run")), expected);
        assert_eq!(machine.ok(&push), expected);
        let again = machine.run(&push);
        assert!(again.err.contains("pushed 0 paths"), "{again:?}");
        assert_eq!(again.out.trim_end(), expected);
        machine.ok(&format!("verify --store {cache} --no-trust {expected}"));
    }
    assert!(!machine.store().exists());
    assert!(!machine.home().join("x").exists());
    let cache = machine.cache("cache");
    machine.ok(&format!("pull {expected} --from {cache} --no-check-sigs"));
    let place = machine.store().join(&expected[1..]);
    assert_eq!(
        fs::read(place.join("a")).expect("it is there").len(),
        300_000
    );

    assert_eq!(machine.ok("add tree"), expected);
    machine.write("tree/a", "other");
    let changed = machine.ok(&format!("push tree --to {cache} --sign-key k --create-key"));
    assert_ne!(changed, expected);
    machine.ok(&format!(
        "verify --store {cache} {changed} --trusted-key k.pub"
    ));
}

#[test]
fn a_store_that_is_named_keeps_it() {
    let machine = machine();
    let cache = machine.cache("cache");
    let path = machine.ok(&format!("push tree --to {cache} --store ./named"));
    machine.ok(&format!("verify --store ./named --no-trust {path}"));
    assert_eq!(
        machine.ok(&format!("push tree --to {cache} --from ./from")),
        path
    );
    machine.ok(&format!("verify --store ./from --no-trust {path}"));
    assert!(!machine.store().exists());
    assert_eq!(machine.ok(&format!("push tree --to {cache} --add")), path);
    machine.ok(&format!("verify --no-trust {path}"));
    // What is known of it is the same, whichever way it went.
    let mut known: Vec<_> = [&*cache, "./named"]
        .into_iter()
        .map(|store| info(&machine, store, &path))
        .collect();
    for info in &mut known {
        assert_eq!(info["references"], Value::Array(Vec::new()));
        let fields = ["ca", "narHash", "narSize", "references"];
        *info = fields.iter().map(|field| info[*field].clone()).collect();
    }
    assert_eq!(known[0], known[1]);
}

#[test]
fn files_and_store_paths_go_together() {
    let machine = machine();
    machine.write("file", "a file");
    let cache = machine.cache("cache");
    let held = machine.ok("add file --name held");
    let pushed = machine.ok(&format!("push tree {held} file --to {cache}"));
    let tree = machine.ok("add tree --dry-run");
    let file = machine.ok("add file --dry-run");
    assert_eq!(pushed.lines().collect::<Vec<_>>(), [&*tree, &*held, &*file]);
    machine.ok(&format!("verify --store {cache} --no-trust {pushed}").replace('\n', " "));
    machine.fails(1, &format!("path-info {tree}"));
    // Into a store, too: content proves itself.
    machine.ok("push tree --to ./other");
    machine.ok(&format!("verify --store ./other --no-trust {tree}"));
}

#[test]
fn a_folder_that_changes_in_between_is_refused() {
    let machine = machine();
    let file = machine.home().join("tree/b/c");
    let server = Shelf::new(move |asked| {
        // All of it was read once, and the other time is to come.
        if (asked.method, asked.path) == ("PUT", "/nix-cache-info") {
            fs::write(&file, "changed").expect("writable");
        }
        None
    });
    let error = machine.fails(1, &format!("push tree --to {}", server.url("")));
    assert!(
        error.contains("tree changed while it was pushed"),
        "{error}"
    );
    assert_eq!(server.narinfos(), 0);
}
