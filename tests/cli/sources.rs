//! What paths are called, and the stores that they come from.

use super::Machine;
use crate::support::shelf::Shelf;
use serde_json::Value;
use std::{
    ffi::{OsStr, OsString},
    fs,
    io::Write,
    os::unix::{ffi::OsStringExt, fs::PermissionsExt, fs::symlink},
    process::Stdio,
};

/// A machine with a derivation and its output, both in the signed cache `one`.
struct Derived {
    machine: Machine,
    drv: String,
    out: String,
    one: String,
}

fn derived() -> Derived {
    let machine = Machine::new();
    machine.write("hello/bin/hello", "hi");
    let out = machine.ok("add hello");
    let hash = machine.ok("nar hash hello");
    let hash = machine.ok(&format!("hash convert --to base16 {hash}"));
    let hash = hash.trim_start_matches("sha256:");
    let drv = format!(
        r#"Derive([("out","{out}","r:sha256","{hash}")],[],[],"x","/bin/sh",[],[("out","{out}")])"#
    );
    machine.write("hello.drv", drv);
    let drv = machine.ok("add --mode text hello.drv");
    machine.ok("key generate test-1 --secret s --public p");
    let one = machine.cache("one");
    machine.ok(&format!("push {drv} {out} --to {one} --sign-key s"));
    Derived {
        machine,
        drv,
        out,
        one,
    }
}

/// A path that is nowhere.
const ABSENT: &str = "/nix/store/00000000000000000000000000000000-absent";

#[test]
fn outputs_of_derivations_are_named_wherever_paths_are() {
    let Derived {
        machine,
        drv,
        out,
        one,
    } = derived();
    for output in ["^out", "^*", "!out", "!*"].map(|output| format!("{drv}{output}")) {
        for line in [
            format!("path-info {output}"),
            format!("path-info {output} --store {one}"),
            format!("closure {output}"),
            format!("sign {output} -k s"),
            format!("push {output} --to {one}"),
            format!("copy {output} --to {one}"),
            format!("pull {output} --from {one} --to ./other --trusted-key p"),
            format!("check {output} --in {one} --present"),
        ] {
            assert_eq!(machine.ok(&line), out, "{line}");
        }
        machine.ok(&format!("verify {output} --store {one} --trusted-key p"));
        assert_eq!(machine.ok(&format!("ls -R {output}")), "bin\nbin/hello");
        assert_eq!(machine.ok(&format!("ls {output}/bin")), "hello");
        assert_eq!(machine.ok(&format!("cat {output}/bin/hello")), "hi");
    }
    for (line, word) in [
        (format!("path-info {drv}^nope"), "no output 'nope'"),
        (format!("path-info {drv}^out/bin"), "not an output"),
        (
            format!("check {ABSENT}.drv^out --in {one}"),
            "absent.drv is not in",
        ),
        (format!("check {out}^out --in {one}"), "not a derivation"),
    ] {
        let done = machine.run(&line);
        assert_ne!(done.status, 0, "{line}: {done:?}");
        assert!(done.err.contains(word), "{line}: {done:?}");
        assert!(!done.err.contains("of its hash part"), "{done:?}");
    }
}

#[test]
fn many_paths_come_from_stdin() {
    let Derived {
        machine,
        drv,
        out,
        one,
    } = derived();
    machine.write("a file", "with a blank in its name");
    let with = |line: &str, input: &str| {
        let mut command = machine.command(line.split_whitespace());
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = piped.stderr(Stdio::piped()).spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        let done = machine.done(child.wait_with_output());
        assert_eq!(done.status, 0, "{line}: {done:?}");
        done.out
    };
    let both = format!("{drv}\n{out}\n");
    // One a line, with blank lines and blanks around them, or several on a line.
    for input in [format!("\n {drv} \n\n{drv}^out"), format!("{drv} {out}\n")] {
        for line in [
            "path-info",
            &format!("push --to {one}"),
            &format!("copy --to {one}"),
            &format!("pull --from {one} --to ./other --trusted-key p"),
        ] {
            assert_eq!(with(&format!("{line} --stdin"), &input), both, "{line}");
            assert_eq!(with(&format!("{line} -"), &input), both, "{line}");
            assert_eq!(with(&format!("{line} --stdin"), ""), "", "{line}");
        }
        assert_eq!(with("closure --stdin", &input).lines().count(), 2);
        let checked = with(&format!("check --stdin --in {one} --present"), &input);
        assert_eq!(checked.lines().count(), 2, "{checked}");
        assert_eq!(with("sign -k s --stdin", &input).lines().count(), 2);
        with("verify --stdin --no-trust", &input);
    }
    let pushed = with(&format!("push --stdin --to {one} --name file"), "a file\n");
    assert!(pushed.ends_with("-file\n"), "{pushed}");
}

/// What `push --upstream` makes is pulled from both.
#[test]
fn each_path_is_pulled_from_the_first_cache_that_has_it() {
    let Derived {
        machine,
        drv,
        out,
        one,
    } = derived();
    let two = machine.cache("two");
    machine.write("more", "more");
    let more = machine.ok(&format!("push more --to {two} --sign-key s"));
    let lone = format!("pull {drv} {more} --from {one} --to ./lone --trusted-key p");
    assert!(machine.fails(1, &lone).contains("-more is not in"));
    let both = format!("{drv} {out} {more} --trusted-key p");
    machine.ok(&format!(
        "pull {both} --to ./both --from {two} --from {one}"
    ));
    machine.ok(&format!(
        "pull {both} --from ./one --from ./two --to ./third"
    ));
    for store in ["./both", "./third"] {
        let all = machine.ok(&format!("path-info --all --store {store}"));
        assert_eq!(all.lines().count(), 3, "{all}");
    }
    for (flag, other) in [("--store", "--store"), ("--from", "--from")] {
        let stores = format!("{flag} ./two {other} ./one");
        let infos = machine.ok(&format!("path-info {out} {more} {stores}"));
        assert_eq!(infos, format!("{out}\n{more}"));
        assert_eq!(machine.ok(&format!("cat {more} {stores}")), "more");
        assert_eq!(machine.ok(&format!("ls {out} {stores}")), "bin");
    }
    let copied = machine.ok(&format!(
        "copy {out} {more} --from {one} --from {two} --to ./copied --trusted-key p"
    ));
    assert_eq!(copied, format!("{out}\n{more}"));
    machine.fails(2, &format!("sign {out} -k s --store ./one --store ./two"));
    // Those of nix.conf, if none is named.
    machine.write("etc/nix.conf", format!("substituters = {one} {two}\n"));
    machine.ok(&format!(
        "pull {out} {more} --to ./configured --trusted-key p"
    ));
}

#[test]
fn caches_are_asked_by_their_priority() {
    let Derived {
        machine, out, one, ..
    } = derived();
    machine.ok("cache init ./two --priority 10");
    machine.ok(&format!("push {out} --to ./two --compression none"));
    let url = |from: &str| {
        let line = format!("path-info --json {out} {from}");
        let json: Value = serde_json::from_str(&machine.ok(&line)).unwrap();
        json[&out]["compression"].as_str().unwrap().to_owned()
    };
    assert_eq!(url(&format!("--from {one} --from ./two")), "none");
    assert_eq!(
        url(&format!("--from {one}?priority=5 --from ./two")),
        "zstd"
    );
    assert_eq!(url("--from ./one --from ./two?priority=50"), "zstd");
    assert_eq!(url("--from ./two?priority=50 --from ./one"), "none");
}

#[test]
fn a_cache_that_does_not_answer_is_passed_over_and_never_means_absent() {
    let Derived {
        machine, out, one, ..
    } = derived();
    let dead = Shelf::new(|asked| match asked.path {
        "/nix-cache-info" => Some(("200 OK", "StoreDir: /nix/store\n")),
        _ => Some(("500 Internal Server Error", "")),
    });
    let dead = format!("{}?retry-attempts=1", dead.url(""));
    for dead in [
        "http://127.0.0.1:1?retry-attempts=1",
        "file:///nowhere",
        &dead,
    ] {
        for from in [
            format!("--from {dead} --from {one}"),
            format!("--from {one} --from {dead}"),
        ] {
            let to = format!("--to ./into --trusted-key p {from}");
            let done = machine.run(&format!("pull {out} {to} --repair"));
            assert_eq!((done.status, done.out.trim_end()), (0, &*out), "{done:?}");
            if from.ends_with(&one) || !dead.contains("127.0.0.1") {
                assert_eq!(done.err.matches("warning").count(), 1, "{done:?}");
            }
            let unknown = machine.fails(2, &format!("pull {ABSENT} {to}"));
            assert!(unknown.contains("could not be asked about"), "{unknown}");
            let unknown = machine.fails(2, &format!("path-info {ABSENT} {from}"));
            assert!(unknown.contains("could not be asked about"), "{unknown}");
        }
    }
    // All answered: it is absent.
    machine.fails(
        1,
        &format!("path-info {ABSENT} --from {one} --from ./one?x=y"),
    );
    let none = "--from http://127.0.0.1:1?retry-attempts=1 --from file:///nowhere";
    machine.fails(2, &format!("path-info {out} {none}"));
}

#[test]
fn what_one_cache_has_in_a_bad_state_comes_from_the_next() {
    let Derived {
        machine, out, one, ..
    } = derived();
    machine.ok("cache init ./three");
    machine.ok(&format!(
        "push {out} --to ./three --sign-key s --compression none"
    ));
    let nars = machine.home().join("three/nar");
    let nar = fs::read_dir(&nars).unwrap().next().unwrap().unwrap().path();
    fs::set_permissions(&nar, fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = fs::read(&nar).unwrap();
    let end = bytes.len() - 60;
    bytes[end] ^= 1;
    fs::write(&nar, bytes).unwrap();
    let pull = format!("pull {out} --trusted-key p --to");
    machine.fails(1, &format!("{pull} ./a --from ./three"));
    machine.ok(&format!("{pull} ./b --from ./three --from {one}"));
    machine.ok("verify --store ./b --all --no-trust");
    let left = machine.run(&format!("{pull} ./c --from ./three --from file:///nowhere"));
    assert_eq!(left.status, 1, "{left:?}");
}

#[test]
fn a_folder_that_is_a_cache_is_that_cache() {
    let Derived { machine, out, .. } = derived();
    machine.ok("cache init ./made");
    let whole = machine.home().join("made").display().to_string();
    for folder in ["./made", &whole, "./one/../made"] {
        machine.ok(&format!("push {out} --to {folder} --sign-key s --repair"));
        machine.ok(&format!("check {out} --in {folder}"));
        assert_eq!(
            machine.ok(&format!("path-info --store {folder} {out}")),
            out
        );
        machine.ok(&format!(
            "pull {out} --from {folder} --to ./pulled --trusted-key p"
        ));
    }
    machine.ok(&format!("copy {out} --to ./made?compression=none --repair"));
    assert!(!machine.home().join("made/nix").exists());
    // In which both are it must be said.
    machine.ok(&format!("copy {out} --to local://{whole}"));
    assert!(
        machine
            .fails(2, "path-info --all --store ./made")
            .contains("file://")
    );
    assert_eq!(
        machine.ok(&format!("path-info --all --store file://{whole}")),
        out
    );
}

#[test]
fn a_path_of_another_store_is_known_by_its_place() {
    let Derived { machine, out, .. } = derived();
    machine.ok(&format!("copy {out} --to ./root"));
    let place = machine.home().join("root").join(&out[1..]);
    symlink(&place, machine.home().join("link")).unwrap();
    for name in [
        place.display().to_string(),
        format!(".//root{out}/bin"),
        "link".into(),
    ] {
        for line in [
            format!("push {name} --to ./one"),
            format!("path-info {name}"),
            format!("copy {name} --to ./one"),
        ] {
            let mut command = machine.command(line.split_whitespace());
            let done = machine.done(command.env_remove("NIX_REMOTE").output());
            assert_eq!(
                (done.status, done.out.trim_end()),
                (0, &*out),
                "{line}: {done:?}"
            );
        }
        let named = machine.fails(2, &format!("path-info {name} --store ./one"));
        assert!(
            named.contains("--store") && named.contains("root"),
            "{named}"
        );
    }
}

#[test]
fn names_are_bytes() {
    let machine = Machine::new();
    let name = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    machine.write("tree/plain", "");
    let tree = machine.home().join("tree");
    fs::write(tree.join(name(b"caf\xe9")), "one").unwrap();
    fs::write(tree.join(name(b"caf\xe8")), "two").unwrap();
    let cache = machine.cache("cache");
    let path = machine.ok(&format!("push tree --to {cache}"));
    let run = |words: &[&OsStr]| {
        let done = machine.done(machine.command(words).output());
        assert_eq!(done.status, 0, "{words:?}: {done:?}");
        done.out
    };
    machine.ok(&format!("copy {path} --from ./cache --to ./store"));
    for from in ["./cache", "./store"] {
        let member = [path.as_bytes(), b"/caf\xe9"].concat();
        let words = ["cat", "--from", from].map(OsStr::new);
        assert_eq!(run(&[&words[..], &[&name(&member)]].concat()), "one");
        let json = machine.ok(&format!("ls --json {path} --from {from}"));
        let listed: Value = serde_json::from_str(&json).unwrap();
        let names: Vec<_> = listed["entries"].as_object().unwrap().keys().collect();
        assert_eq!(names, [r"caf\xe8", r"caf\xe9", "plain"]);
    }
    let folder = name(b"bad\xe9");
    fs::rename(&tree, machine.home().join(&folder)).unwrap();
    let words = ["push", "--to", "./cache", "--name", "tree"].map(OsStr::new);
    assert_eq!(run(&[&words[..], &[&folder]].concat()).trim_end(), path);
}

/// As `nix path-info --json` of 2.34 prints it.
#[test]
fn path_info_says_what_an_http_cache_says_of_the_nar() {
    let Derived { machine, out, .. } = derived();
    let server = Shelf::new(|_| None);
    machine.ok(&format!(
        "push {out} --to {} --compression none",
        server.url("")
    ));
    let line = format!("path-info --json -S {out} --store {}", server.url(""));
    let json: Value = serde_json::from_str(&machine.ok(&line)).unwrap();
    let info = &json[&out];
    assert_eq!(info["compression"], "none");
    assert_eq!(info["downloadHash"], info["narHash"]);
    for size in ["downloadSize", "closureSize", "closureDownloadSize"] {
        assert_eq!(info[size], info["narSize"], "{size}");
    }
    let nar = info["url"].as_str().unwrap();
    assert!(server.names().iter().any(|name| name == nar), "{nar}");
}

/// `push` is no way around what a store demands.
#[test]
fn a_store_demands_signatures_of_what_is_pushed_into_it() {
    let machine = Machine::new();
    machine.ok("cache init ./cache");
    machine.write("file", "x");
    let file = machine.ok("push file --to ./cache");
    let narinfo = machine
        .home()
        .join(format!("cache/{}.narinfo", &file[11..43]));
    let text = fs::read_to_string(&narinfo).unwrap();
    // Without its content address it proves nothing.
    let text: String = text
        .lines()
        .filter(|line| !line.starts_with("CA:"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(&narinfo, text).unwrap();
    for verb in ["push", "copy", "pull"] {
        let line = format!("{verb} {file} --from ./cache --to ./store");
        let error = machine.fails(1, &line);
        assert!(
            error.contains("not signed") || error.contains("trusted"),
            "{error}"
        );
        machine.ok(&format!(
            "{verb} {file} --from ./cache --to ./{verb} --no-check-sigs"
        ));
    }
}
