//! check: which caches have which paths.

use super::{Done, Machine};
use serde_json::{Value, json};
use std::{fs, io::Write, process::Stdio};
use tk_narinfo::{Compression, NarInfo, PathInfo, SecretKey};
use tk_path::{NarHash, StoreDir, StorePath};

/// A made-up path: 32 times the letter, and the letter again.
fn path(letter: char) -> String {
    let part = letter.to_string().repeat(32);
    format!("/nix/store/{part}-{letter}")
}

fn info(letter: char, references: &str) -> PathInfo {
    let parse = |letter| StoreDir::default().parse(&path(letter)).unwrap();
    let hash = NarHash::digest(letter.to_string().as_bytes());
    let mut info = PathInfo::new(parse(letter), hash, 1000);
    info.references = references.chars().map(parse).collect();
    info
}

fn write(machine: &Machine, cache: &str, info: PathInfo) {
    let name = format!("{cache}/{}.narinfo", info.path.hash_part());
    let mut narinfo = NarInfo::new(info, "nar/x.nar.xz".to_owned(), Compression::Xz);
    narinfo.file_size = Some(300);
    machine.write(&name, narinfo.print(&StoreDir::default()));
}

/// A machine with two caches: `one` has a, which refers to b and c; `two` has b, which refers to
/// d; nobody has c or d.
fn machine() -> (Machine, String) {
    let machine = Machine::new();
    write(&machine, "one", info('a', "bc"));
    write(&machine, "two", info('b', "bd"));
    let both = format!(
        "--in {} --in {}",
        machine.cache("one"),
        machine.cache("two")
    );
    (machine, both)
}

/// The lines, sorted, without `/nix/store/aaa…-`.
fn lines(text: &str) -> Vec<String> {
    let short = |line: &str| line.get(44..).unwrap_or(line).to_owned();
    let mut lines: Vec<_> = text.lines().map(short).collect();
    lines.sort();
    lines
}

fn answered(machine: &Machine, status: i32, line: &str) -> Done {
    let done = machine.run(line);
    assert_eq!(done.status, status, "tk-store {line}: {done:?}");
    done
}

#[test]
fn a_line_for_each_path_and_a_status_for_scripts() {
    let (machine, both) = machine();
    let (a, b, c) = (path('a'), path('b'), path('c'));
    let done = answered(&machine, 1, &format!("check {a} {b} {c} {both}"));
    let expected = [
        "a\tpresent\tabsent\t1000\t300",
        "b\tabsent\tpresent\t1000\t300",
        "c\tabsent\tabsent\t-\t-",
    ];
    assert_eq!(lines(&done.out), expected);
    assert!(done.err.contains("3 paths checked: 2 there"), "{done:?}");
    assert!(done.err.contains("600 B to fetch), 1 missing"), "{done:?}");
    let done = answered(&machine, 0, &format!("check -q {a} {b} {a} {both} {both}"));
    assert_eq!(lines(&done.out), expected[..2]);
    assert_eq!(done.err, "");
    let missing = answered(&machine, 1, &format!("check --missing {a} {b} {c} {both}"));
    assert_eq!(missing.out, format!("{c}\n"));
    let present = answered(&machine, 1, &format!("check --present {a} {b} {c} {both}"));
    assert_eq!(lines(&present.out), ["a", "b"]);
    let nothing = answered(&machine, 0, &format!("check --missing {a} {b} {both}"));
    assert_eq!(nothing.out, "");
}

#[test]
fn a_closure_is_followed_through_the_caches_or_a_store() {
    let (machine, both) = machine();
    let a = path('a');
    let done = answered(
        &machine,
        1,
        &format!("check --closure --missing {a} {both}"),
    );
    assert_eq!(lines(&done.out), ["c", "d"]);
    assert!(
        done.err.contains("2 paths refer to is not known"),
        "{done:?}"
    );
    assert!(done.err.contains("--store"), "{done:?}");
    // A store that knows more, here of what the missing ones refer to.
    for (letter, references) in [('a', "bc"), ('b', "bd"), ('c', "f"), ('d', ""), ('f', "")] {
        write(&machine, "three", info(letter, references));
    }
    let store = machine.cache("three");
    let line = format!("check -r --missing {a} {both} --store {store}");
    let done = answered(&machine, 1, &line);
    assert_eq!(lines(&done.out), ["c", "d", "f"]);
    assert!(!done.err.contains("not known"), "{done:?}");
    let all = format!("check -r --present {a} --in {store}");
    assert_eq!(
        lines(&answered(&machine, 0, &all).out),
        ["a", "b", "c", "d", "f"]
    );
}

#[test]
fn the_json_of_a_check() {
    let (machine, both) = machine();
    write(&machine, "two", info('a', ""));
    fs::write(
        machine
            .home()
            .join("two")
            .join(format!("{}.narinfo", "c".repeat(32))),
        "x",
    )
    .unwrap();
    let (a, c) = (path('a'), path('c'));
    let done = answered(&machine, 2, &format!("check --json {a} {c} {both}"));
    let mut found: Value = serde_json::from_str(&done.out).unwrap();
    let (one, two) = (machine.cache("one"), machine.cache("two"));
    let paths = found["paths"].as_array_mut().unwrap();
    paths.sort_by_key(|path| path["path"].to_string());
    let error = paths[1]["caches"][&two]["error"].take();
    assert!(error.as_str().unwrap().contains("narinfo"), "{error}");
    let there = json!({
        "status": "present", "narSize": 1000, "downloadSize": 300, "url": "nar/x.nar.xz",
        "signatures": [], "trusted": null, "error": null,
    });
    let not = |status| {
        json!({
            "status": status, "narSize": null, "downloadSize": null, "url": null,
            "signatures": [], "trusted": null, "error": null,
        })
    };
    let counts = |present, absent, not_asked| {
        json!({
            "present": present, "absent": absent, "notAsked": not_asked, "untrusted": 0,
            "narSize": 1000, "downloadSize": 300, "unknownSize": 0,
        })
    };
    let expected = json!({
        "paths": [
            {"path": a, "status": "present", "followed": true,
                "caches": {&one: there, &two: there}},
            {"path": c, "status": "notAsked", "followed": true,
                "caches": {&one: not("absent"), &two: not("notAsked")}},
        ],
        "summary": {
            "paths": 2, "present": 1, "absent": 0, "notAsked": 1, "untrusted": 0,
            "notFollowed": 0, "narSize": 1000, "downloadSize": 300, "unknownSize": 0,
            "caches": {&one: counts(1, 1, 0), &two: counts(1, 0, 1)},
        },
    });
    assert_eq!(found, expected);
}

#[test]
fn paths_come_from_stdin_too() {
    let (machine, both) = machine();
    let fed = |line: &str, input: &str| {
        let mut command = machine.command(line.split_whitespace());
        command.stdin(Stdio::piped());
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        machine.done(child.wait_with_output())
    };
    let input = format!("{}\n\n  {}  \n", path('a'), path('b'));
    for (line, expected) in [
        ("check --present", vec!["a", "b"]),
        ("check --present -", vec!["a", "b"]),
        (&*format!("check --present - {}", path('c')), vec!["a", "b"]),
    ] {
        let done = fed(&format!("{line} {both}"), &input);
        assert_eq!(lines(&done.out), expected, "{line}: {done:?}");
    }
    let done = fed(&format!("check {both}"), "/nix/store/nonsense\n");
    assert_eq!(done.status, 2, "{done:?}");
    assert!(done.err.contains("nonsense"), "{done:?}");
    assert_eq!(
        fed(&format!("check {both}"), "").status,
        2,
        "nothing was named"
    );
    let done = fed(&format!("check --json --stdin {both}"), "");
    assert_eq!(done.status, 0);
    let found: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(found["paths"], json!([]));
}

#[test]
fn what_could_not_be_asked_is_never_absent() {
    let (machine, both) = machine();
    for letter in ['a', 'c'] {
        let part = letter.to_string().repeat(32);
        machine.write(&format!("two/{part}.narinfo"), "<html>Service unavailable");
    }
    let (a, c) = (path('a'), path('c'));
    let done = answered(&machine, 2, &format!("check --missing {c} {both}"));
    assert_eq!(done.out, "");
    let two = machine.cache("two");
    let told = format!("{two} could not be asked about 1 path: ");
    assert!(done.err.contains(&told), "{done:?}");
    let done = answered(&machine, 2, &format!("check {c} {} {both}", path('d')));
    assert!(done.out.contains("\tabsent\terror\t"), "{done:?}");
    // Another cache has it: then the fault decides nothing, and is told all the same.
    let done = answered(&machine, 0, &format!("check {a} {both}"));
    assert!(done.err.contains("warning: file://"), "{done:?}");

    let gone = machine.cache("gone");
    assert!(
        machine
            .fails(2, &format!("check {a} --in {gone}"))
            .contains("gone")
    );
    // A folder that became a file.
    machine.write("file", "");
    let file = machine.cache("file");
    machine.fails(2, &format!("check {a} --in {file}"));
}

#[test]
fn signatures_are_demanded_when_one_says_so() {
    let (machine, _) = machine();
    let public = machine.ok("key generate test-1 --secret s --public p");
    let key = SecretKey::parse(fs::read_to_string(machine.home().join("s")).unwrap().trim());
    let mut signed = info('b', "");
    signed.sign(&StoreDir::default(), &key.unwrap()).unwrap();
    write(&machine, "one", signed);
    let (a, b) = (path('a'), path('b'));
    let one = format!("--in {}", machine.cache("one"));
    answered(&machine, 0, &format!("check {a} {b} {one}"));
    machine.write("etc/nix.conf", format!("trusted-public-keys = {public}"));
    for trust in [
        "--trusted-key p",
        &*format!("--trusted-key {public}"),
        "--check-sigs",
    ] {
        answered(&machine, 0, &format!("check {b} {one} {trust}"));
        let done = answered(&machine, 1, &format!("check {a} {b} {one} {trust}"));
        assert_eq!(
            lines(&done.out),
            ["a\tuntrusted\t1000\t300", "b\tpresent\t1000\t300"]
        );
        assert!(done.err.contains("1 not trusted"), "{done:?}");
        let done = answered(
            &machine,
            1,
            &format!("check --present {a} {b} {one} {trust}"),
        );
        assert_eq!(lines(&done.out), ["b"]);
        let done = answered(&machine, 1, &format!("check --json {a} {b} {one} {trust}"));
        let found: Value = serde_json::from_str(&done.out).unwrap();
        for entry in found["paths"].as_array().unwrap() {
            let said = &entry["caches"][machine.cache("one")];
            let trusted = entry["path"] == b.as_str();
            assert_eq!(said["trusted"], trusted);
            assert_eq!(said["error"].is_null(), trusted);
            assert_eq!(
                said["signatures"].as_array().unwrap().len(),
                usize::from(trusted)
            );
        }
    }
    answered(
        &machine,
        1,
        &format!("check {b} {one} --trusted-key p --sigs-needed 2"),
    );
}

#[test]
fn the_caches_are_those_of_nix_conf_unless_named() {
    let (machine, _) = machine();
    let a = path('a');
    let error = machine.fails(2, &format!("check {a}"));
    assert!(error.contains("--in https://"), "{error}");
    let substituters = format!(
        "substituters = {} {}\n",
        machine.cache("one"),
        machine.cache("two")
    );
    machine.write("etc/nix.conf", substituters);
    let done = answered(&machine, 0, &format!("check {a} {}", path('b')));
    let expected = [
        "a\tpresent\tabsent\t1000\t300",
        "b\tabsent\tpresent\t1000\t300",
    ];
    assert_eq!(lines(&done.out), expected);
    // Another store directory in one of them.
    machine.write("gnu/nix-cache-info", "StoreDir: /gnu/store\n");
    let gnu = format!("{}?store=/gnu/store", machine.cache("gnu"));
    let one = machine.cache("one");
    let done = answered(&machine, 0, &format!("check {a} --in {one} --in {gnu}"));
    assert!(done.err.contains("/gnu/store"), "{done:?}");
    assert!(done.out.contains("\tpresent\terror\t"), "{done:?}");
}

#[test]
fn any_store_can_be_asked() {
    let machine = Machine::new();
    machine.write("data/x", "x");
    let path = machine.ok("add data");
    let store = machine.store().display().to_string();
    let done = answered(
        &machine,
        1,
        &format!("check {path} {} --in {store}", self::path('a')),
    );
    assert_eq!(lines(&done.out)[0], "a\tabsent\t-\t-");
    assert!(
        lines(&done.out)[1].starts_with("data\tpresent\t"),
        "{done:?}"
    );
    let done = answered(&machine, 0, &format!("check {path} --in {store} --json"));
    let found: Value = serde_json::from_str(&done.out).unwrap();
    let said = found["paths"][0]["caches"].as_object().unwrap();
    let said = said.values().next().unwrap();
    assert_eq!(
        (&said["url"], &said["downloadSize"]),
        (&Value::Null, &Value::Null)
    );
}

#[test]
fn derivations_stand_for_their_outputs() {
    let machine = Machine::new();
    machine.write("base.drv", BASE);
    let drv = machine.ok("add --mode text base.drv");
    let mut built = info('a', "");
    built.path = StorePath::parse(BASE_OUT).unwrap();
    write(&machine, "cache", built);
    let cache = format!("--in {}", machine.cache("cache"));
    answered(&machine, 1, &format!("check {drv} {cache}"));
    let outputs = answered(
        &machine,
        0,
        &format!("check --outputs --present {drv} {cache}"),
    );
    assert_eq!(outputs.out, format!("/nix/store/{BASE_OUT}\n"));
    let done = answered(&machine, 1, &format!("check --closure {drv} {cache}"));
    let expected = ["base\tpresent\t1000\t300", "base.drv\tabsent\t-\t-"];
    assert_eq!(lines(&done.out), expected);
    let line = format!("check --closure --outputs {drv} {cache}");
    assert_eq!(lines(&answered(&machine, 0, &line).out), expected[..1]);
    // What is made has no path yet.
    machine.write("floating.drv", FLOATING);
    let floating = machine.ok("add --mode text floating.drv");
    let done = answered(&machine, 2, &format!("check --outputs {floating} {cache}"));
    assert!(done.err.contains("could not be checked: 1"), "{done:?}");
    let elsewhere = machine.cache("cache");
    let line = format!("check --outputs {drv} {cache} --store {elsewhere}");
    assert!(machine.fails(1, &line).contains("base.drv"));
}

const BASE: &str = r#"Derive([("out","/nix/store/0c6988igqizlns512xmknr0qhm5v4i3q-base","","")],[],[],"x86_64-linux","/bin/sh",["-c","echo hello > $out"],[("builder","/bin/sh"),("name","base"),("out","/nix/store/0c6988igqizlns512xmknr0qhm5v4i3q-base"),("system","x86_64-linux")])"#;
const BASE_OUT: &str = "0c6988igqizlns512xmknr0qhm5v4i3q-base";
const FLOATING: &str = r#"Derive([("out","","r:sha256","")],[],[],"x86_64-linux","/bin/sh",[],[])"#;
