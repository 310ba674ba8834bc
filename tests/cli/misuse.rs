//! Misuse: one clear line that says what to do, exit status 2, and nothing half-written.

use super::Machine;
use std::fs;

#[track_caller]
fn refused(machine: &Machine, line: &str, words: &[&str]) {
    let err = machine.fails(2, line);
    for word in words {
        assert!(
            err.contains(word),
            "tk-store {line}: '{word}' is not in: {err}"
        );
    }
    let lines = err.lines().filter(|line| !line.starts_with("added "));
    assert_eq!(lines.count(), 1, "tk-store {line}: one line, not: {err}");
}

#[test]
fn paths_that_are_none() {
    let machine = Machine::new();
    machine.write("file", "x");
    machine.ok("add file");
    let cache = machine.cache("cache");
    refused(
        &machine,
        &format!("push nothing --to {cache}"),
        &["nothing", "nor an existing file"],
    );
    let short = "/nix/store/abc-x";
    refused(
        &machine,
        &format!("path-info {short}"),
        &[short, "not a store path"],
    );
    refused(&machine, "path-info /nix/store", &["/nix/store"]);
    refused(&machine, "nar pack nothing", &["nothing"]);
    refused(&machine, "add nothing", &["nothing"]);
    machine.write("file", "x");
    refused(&machine, "path-info file", &["file", "add it first"]);
    machine.write("bad name", "x");
    let done = machine.done(machine.command(["add", "bad name"]).output());
    assert_eq!(done.status, 2, "{done:?}");
    assert!(done.err.contains("--name"), "{done:?}");
    assert!(!machine.home().join("cache").exists());
}

#[test]
fn stores_that_are_none() {
    let machine = Machine::new();
    machine.write("file", "x");
    for (uri, word) in [
        ("gopher://x", "gopher"),
        ("nonsense", "nonsense"),
        ("https://", "host"),
        ("s3://", "bucket"),
        ("az://only-a-container", "account"),
        ("s3://b?multipart-chunk-size=1", "multipart-chunk-size"),
        ("daemon", "daemon"),
        ("file://", "folder"),
        ("local?root=relative", "absolute"),
        ("local?store=nix", "absolute"),
        ("file:///x?compression=fast", "compression"),
    ] {
        refused(&machine, &format!("push file --to {uri}"), &[word]);
    }
    let nowhere = machine.cache("nowhere");
    refused(
        &machine,
        &format!("path-info --all --store {nowhere}"),
        &["nowhere"],
    );
    refused(&machine, "path-info --all --store ./typo", &["typo"]);
    assert!(
        !machine.home().join("typo").exists(),
        "asking makes no store"
    );
    let warned = machine.run(&format!("push file --to {nowhere}?colour=red"));
    assert_eq!(warned.status, 0, "{warned:?}");
    assert!(
        warned.err.contains("warning") && warned.err.contains("colour"),
        "{warned:?}"
    );
}

#[test]
fn a_cache_of_another_store_directory() {
    let machine = Machine::new();
    machine.write("file", "x");
    machine.write("cache/nix-cache-info", "StoreDir: /gnu/store\n");
    let cache = machine.cache("cache");
    refused(
        &machine,
        &format!("push file --to {cache}"),
        &["/gnu/store", "/nix/store"],
    );
    assert_eq!(
        fs::read_dir(machine.home().join("cache")).unwrap().count(),
        1
    );
}

#[test]
fn keys_that_are_none() {
    let machine = Machine::new();
    machine.write("file", "x");
    machine.write("nokey", "this is not a key");
    let cache = machine.cache("cache");
    let push = format!("push file --to {cache} --sign-key");
    refused(&machine, &format!("{push} absent"), &["absent"]);
    refused(&machine, &format!("{push} nokey"), &["nokey", "secret key"]);
    let secret = machine.ok("key generate k-1 --secret s --public p");
    refused(&machine, &format!("{push} p"), &["secret key"]);
    let path = "/nix/store/00000000000000000000000000000000-x";
    let pull = format!("pull {path} --from {cache} --trusted-key");
    refused(&machine, &format!("{pull} nokey"), &["nokey", "public key"]);
    refused(
        &machine,
        &format!("{pull} {}", &secret[..20]),
        &["public key"],
    );
    assert!(
        !machine.home().join("cache").exists(),
        "nothing was written"
    );
}

#[test]
fn what_is_in_no_store() {
    let machine = Machine::new();
    machine.write("file", "x");
    let cache = machine.cache("cache");
    machine.ok(&format!("push file --to {cache}"));
    let absent = "/nix/store/00000000000000000000000000000000-absent";
    for line in [
        format!("pull {absent} --from {cache} --to ./store"),
        format!("push {absent} --to {cache}"),
        format!("copy {absent} --from {cache} --to ./store"),
    ] {
        let err = machine.fails(1, &line);
        assert!(err.contains("absent is not in"), "{line}: {err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
}

#[test]
fn places_that_cannot_be_written() {
    let machine = Machine::new();
    machine.write("file", "x");
    machine.write("cache", "a file in the way");
    let cache = machine.cache("cache");
    refused(&machine, &format!("push file --to {cache}"), &["cache"]);
    refused(
        &machine,
        &format!("push file --to {cache}/below"),
        &["cache"],
    );
    refused(&machine, "add file --store ./cache", &["cache"]);
    machine.write("out", "precious");
    let good = machine.cache("good");
    let path = machine.ok(&format!("push file --to {good}"));
    let pull = format!("pull {path} --from {good} --no-check-sigs --to ./s --out-link out");
    refused(&machine, &pull, &["out", "in the way"]);
    assert_eq!(fs::read(machine.home().join("out")).unwrap(), b"precious");
}

#[test]
fn a_full_disk() {
    // A file that takes no byte stands for a disk that is full.
    if !std::path::Path::new("/dev/full").exists() {
        return crate::support::skip("a full disk", "there is no /dev/full here");
    }
    let machine = Machine::new();
    machine.write("file", "x".repeat(100_000));
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let done = machine
        .command(["nar", "pack", "file"])
        .stdout(full)
        .output();
    let done = machine.done(done);
    assert_eq!(done.status, 2, "{done:?}");
    assert!(done.err.contains("No space left"), "{done:?}");
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let machine = Machine::new();
    machine.write("file", vec![0; 10_000_000]);
    let mut child = machine
        .command(["nar", "pack", "file"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let done = machine.done(child.wait_with_output());
    assert_eq!(
        (done.status, done.err.as_str()),
        (141, ""),
        "silent, as of SIGPIPE"
    );
}

#[test]
fn flags_that_are_none() {
    let machine = Machine::new();
    for line in [
        "",
        "frobnicate",
        "push",
        "push x",
        "pull",
        "copy x",
        "path-info --json-format 9 x",
    ] {
        let err = machine.fails(2, line);
        assert!(
            err.contains("Usage") || err.contains("--help"),
            "{line}: {err}"
        );
    }
}

#[test]
fn every_command_has_help_with_an_example() {
    let machine = Machine::new();
    let help = machine.ok("--help");
    assert!(help.contains("Examples:") && help.contains("Exit status"));
    for command in [
        "push",
        "pull",
        "copy",
        "add",
        "path-info",
        "closure",
        "ls",
        "cat",
        "verify",
        "sign",
        "key generate",
        "cache init",
        "nar pack",
        "nar unpack",
        "nar ls",
        "nar cat",
        "nar hash",
        "hash file",
        "hash path",
        "hash convert",
        "completions",
        "man",
    ] {
        let help = machine.ok(&format!("{command} --help"));
        assert!(help.contains("Example"), "{command}: {help}");
        assert!(
            help.contains(&format!("tk-store {command}")),
            "{command}: {help}"
        );
    }
    machine.ok("completions bash");
    machine.ok("man .");
    assert!(machine.home().join("tk-store-push.1").exists());
}
