//! The main job: push, pull, copy, and what asks a store.

use super::Machine;
use serde_json::Value;
use std::{fs, os::unix::fs::symlink};

/// A machine with a folder, a key, and the folder pushed to a signed cache.
struct Pushed {
    machine: Machine,
    /// The store path of the folder.
    path: String,
    cache: String,
    key: String,
}

fn pushed() -> Pushed {
    let machine = Machine::new();
    machine.write("data/a", "the letter a\n".repeat(1000));
    machine.write("data/deep/b", "b");
    symlink("deep/b", machine.home().join("data/link")).unwrap();
    let key = machine.ok("key generate test-1 --secret s --public p");
    let cache = machine.cache("cache");
    let path = machine.ok(&format!("push data --to {cache} --sign-key s --add"));
    Pushed {
        machine,
        path,
        cache,
        key,
    }
}

#[test]
fn push_and_pull() {
    let Pushed {
        machine,
        path,
        cache,
        key,
    } = pushed();
    assert!(
        path.starts_with("/nix/store/") && path.ends_with("-data"),
        "{path}"
    );
    // Elsewhere, with the key in both forms.
    for (i, trusted) in [key.as_str(), "p"].into_iter().enumerate() {
        let pull = format!(
            "pull {path} --from {cache} --to ./store{i} --trusted-key {trusted} --out-link r{i}"
        );
        assert_eq!(machine.ok(&pull), path);
        let link = machine.home().join(format!("r{i}"));
        assert_eq!(fs::read(link.join("link")).unwrap(), b"b");
        assert_eq!(
            machine.ok(&format!("nar hash r{i}/deep")),
            machine.ok("nar hash data/deep")
        );
        assert_eq!(machine.ok(&pull), path, "pulling again is no change");
    }
}

#[test]
fn pull_takes_nothing_that_no_trusted_key_signed() {
    let Pushed {
        machine,
        path,
        cache,
        ..
    } = pushed();
    // Without its content address the path has nothing but the signature to stand by.
    let narinfo = machine
        .home()
        .join(format!("cache/{}.narinfo", &path[11..43]));
    let text = fs::read_to_string(&narinfo).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("CA: "));
    fs::write(
        &narinfo,
        lines.map(|line| format!("{line}\n")).collect::<String>(),
    )
    .unwrap();

    machine.ok("key generate other-1 --secret s2 --public p2");
    for trust in ["", "--trusted-key p2", "--trusted-key p --sigs-needed 2"] {
        let refused = machine.fails(
            1,
            &format!("pull {path} --from {cache} --to ./other {trust}"),
        );
        assert!(
            refused.contains("test-1"),
            "names the key that signed: {refused}"
        );
        assert!(!machine.home().join("other").join(&path[1..]).exists());
        assert_eq!(machine.ok("path-info --store ./other --all"), "");
    }
    machine.fails(1, &format!("verify --store {cache} {path}"));
    machine.ok(&format!("verify --store {cache} {path} --trusted-key p"));
    let forged = text.replace("NarSize: ", "NarSize: 1");
    fs::write(&narinfo, forged).unwrap();
    machine.fails(
        1,
        &format!("pull {path} --from {cache} --to ./other --trusted-key p"),
    );
    machine.write(
        "etc/nix.conf",
        format!("trusted-public-keys = {}", machine.ok("key public s")),
    );
    let fine = text.lines().filter(|line| !line.starts_with("CA: "));
    fs::write(
        &narinfo,
        fine.map(|line| format!("{line}\n")).collect::<String>(),
    )
    .unwrap();
    assert_eq!(
        machine.ok(&format!("pull {path} --from {cache} --to ./other")),
        path
    );
}

#[test]
fn pushing_again_sends_nothing() {
    let Pushed {
        machine,
        path,
        cache,
        ..
    } = pushed();
    let report = machine.ok(&format!("push {path} --to {cache} --json"));
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["copied"], Value::Array(vec![]));
    assert_eq!(report["present"], Value::from(vec![path.clone()]));
    assert_eq!(report["roots"], Value::from(vec![path.clone()]));
    // The folder itself gives the same path, and nothing more to send.
    assert_eq!(machine.ok(&format!("push data --to {cache}")), path);
}

#[test]
fn json_of_a_push() {
    let Pushed { machine, cache, .. } = pushed();
    machine.write("two/x", "x");
    let report = machine.ok(&format!("push data two --to {cache} --json"));
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["copied"].as_array().unwrap().len(), 1);
    assert_eq!(report["present"].as_array().unwrap().len(), 1);
    assert_eq!(report["failed"], Value::Array(vec![]));
    let copied = &report["copied"][0];
    assert!(copied["path"].as_str().unwrap().ends_with("-two"));
    assert!(copied["narHash"].as_str().unwrap().starts_with("sha256:"));
    assert_eq!(report["narSize"], copied["narSize"]);
    assert_eq!(report["store"], cache.as_str());
}

#[test]
fn dry_runs_change_nothing() {
    let Pushed {
        machine,
        path,
        cache,
        ..
    } = pushed();
    machine.write("new/x", "x");
    let other = machine.cache("other");
    let would = machine.ok(&format!("push new --to {cache} --dry-run"));
    assert!(would.ends_with("-new"), "{would}");
    assert_eq!(machine.ok(&format!("push data --to {cache} --dry-run")), "");
    machine.fails(1, &format!("path-info {would}"));
    machine.fails(1, &format!("path-info {would} --store {cache}"));
    // Where the real run makes the destination, a dry run tells the same and makes nothing.
    for to in [&other, "./other", "local?root=/proc/self/cwd/other"] {
        let would = machine.ok(&format!("push {path} --to {to} --dry-run"));
        assert_eq!(would, path, "{to}");
        let would = machine.ok(&format!("copy {path} --to {to} --dry-run"));
        assert_eq!(would, path, "{to}");
        let pull = format!("pull {path} --from {cache} --to {to} --no-check-sigs --dry-run");
        assert_eq!(machine.ok(&pull), path, "{to}");
        assert!(!machine.home().join("other").exists(), "{to}");
    }
    machine.write("file", "x");
    machine.fails(2, &format!("push {path} --to ./file/below --dry-run"));
    assert_eq!(machine.ok("add new --dry-run"), would);
    machine.fails(1, &format!("path-info {would}"));
    assert_eq!(
        machine.ok(&format!(
            "pull {path} --from {cache} --no-check-sigs --dry-run"
        )),
        ""
    );
}

#[test]
fn what_changed_on_disk_is_not_published() {
    let Pushed {
        machine,
        path,
        cache,
        ..
    } = pushed();
    let good = machine.write("good/x", "x");
    let good = machine.ok(&format!("add {}", good.parent().unwrap().display()));
    let place = machine.store().join(&path[1..]).join("deep/b");
    fs::set_permissions(&place, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    fs::write(&place, "B").unwrap();
    let other = machine.cache("other");
    let done = machine.run(&format!("push {path} {good} --to {other}"));
    assert_eq!(done.status, 1, "{done:?}");
    assert!(done.err.contains(&path["/nix/store/".len()..]), "{done:?}");
    assert_eq!(
        done.err.matches("sha256:").count(),
        2,
        "both hashes: {done:?}"
    );
    assert_eq!(done.out.trim_end(), good, "the others go through");
    machine.ok(&format!("path-info {good} --store {other}"));
    machine.fails(1, &format!("path-info {path} --store {other}"));
    let bad = machine.fails(1, &format!("verify {path} {good} --no-trust"));
    assert!(
        bad.contains("-data") && !bad.contains("-good from"),
        "{bad}"
    );
    machine.ok(&format!("verify --store {cache} --all --trusted-key p"));
}

#[test]
fn path_info_and_closure() {
    let Pushed {
        machine,
        path,
        cache,
        ..
    } = pushed();
    let name = &path["/nix/store/".len()..];
    for store in ["", &format!("--store {cache}")] {
        assert_eq!(machine.ok(&format!("path-info {path} {store}")), path);
        assert_eq!(machine.ok(&format!("path-info {name} -r {store}")), path);
        assert_eq!(machine.ok(&format!("closure {path} {store}")), path);
        let sizes = machine.ok(&format!("path-info -s -S {path} {store}"));
        let sizes: Vec<_> = sizes.split_whitespace().collect();
        assert_eq!(sizes[0], path);
        assert_eq!(sizes[1], sizes[2], "no references: the closure is the path");
        let json: Value =
            serde_json::from_str(&machine.ok(&format!("path-info --json -S {path} {store}")))
                .unwrap();
        let info = &json[&path];
        assert_eq!(info["narSize"].to_string(), sizes[1]);
        assert_eq!(info["closureSize"], info["narSize"]);
        assert!(info["narHash"].as_str().unwrap().starts_with("sha256-"));
        assert_eq!(info["references"], Value::Array(vec![]));
        assert!(info["ca"].as_str().unwrap().starts_with("fixed:r:sha256:"));
        for version in [2, 3] {
            let line = format!("path-info --json --json-format {version} {path} {store}");
            let json: Value = serde_json::from_str(&machine.ok(&line)).unwrap();
            assert_eq!(json["info"][name]["narSize"].to_string(), sizes[1]);
        }
    }
    let sigs = machine.ok(&format!("path-info --sigs {path} --store {cache}"));
    assert!(
        sigs.contains("test-1:") && sigs.contains("ca:fixed:r:sha256:"),
        "{sigs}"
    );
    let absent = "/nix/store/00000000000000000000000000000000-absent";
    assert!(
        machine
            .fails(1, &format!("path-info {absent}"))
            .contains("is not in")
    );
    let json = machine.run(&format!("path-info --json {absent} {path}"));
    assert_eq!(json.status, 1);
    let json: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json[absent], Value::Null);
    assert!(json[&path].is_object());
}

#[test]
fn ls_and_cat() {
    let Pushed {
        machine,
        path,
        cache,
        ..
    } = pushed();
    for store in ["", &format!("--store {cache}")] {
        assert_eq!(machine.ok(&format!("ls {path} {store}")), "a\ndeep\nlink");
        assert_eq!(
            machine.ok(&format!("ls -R {path} {store}")),
            "a\ndeep\ndeep/b\nlink"
        );
        let long = machine.ok(&format!("ls -l {path}/link {store}"));
        assert!(
            long.starts_with("lrwxrwxrwx") && long.ends_with("link -> deep/b"),
            "{long}"
        );
        assert_eq!(machine.ok(&format!("cat {path}/deep/b {store}")), "b");
        assert!(
            machine
                .fails(2, &format!("cat {path}/deep {store}"))
                .contains("folder")
        );
        assert!(
            machine
                .fails(2, &format!("cat {path}/link {store}"))
                .contains("deep/b")
        );
        machine.fails(1, &format!("cat {path}/nothing {store}"));
        // As `nix store ls` of 2.26 and 2.34 prints it, byte for byte.
        let json = |line: &str| machine.ok(&format!("ls --json {line} {store}"));
        let shallow = r#"{"entries":{"a":{},"deep":{},"link":{}},"type":"directory"}"#;
        assert_eq!(json(&path), shallow);
        let offset = |bytes: u64| match store {
            "" => String::new(),
            _ => format!(r#""narOffset":{bytes},"#),
        };
        let (a, b) = (offset(232), offset(13552));
        let b = format!(r#"{{{b}"size":1,"type":"regular"}}"#);
        let deep = format!(r#"{{"entries":{{"b":{b}}},"type":"directory"}}"#);
        let a = format!(r#"{{{a}"size":13000,"type":"regular"}}"#);
        let link = r#"{"target":"deep/b","type":"symlink"}"#;
        let all = format!(r#"{{"a":{a},"deep":{deep},"link":{link}}}"#);
        let whole = format!(r#"{{"entries":{all},"type":"directory"}}"#);
        assert_eq!(json(&format!("-R {path}")), whole);
        assert_eq!(json(&format!("{path}/deep/b")), b);
        assert_eq!(json(&format!("{path}/link")), link);
    }
}

#[test]
fn links_and_places_on_disk_name_their_paths() {
    let Pushed {
        machine,
        path,
        cache,
        ..
    } = pushed();
    machine.ok(&format!(
        "pull {path} --from {cache} --to ./store --trusted-key p --out-link result"
    ));
    let real = format!("./store{path}");
    for name in ["result", "result/deep/b", &real] {
        assert_eq!(
            machine.ok(&format!("path-info --store ./store {name}")),
            path,
            "{name}"
        );
    }
}

#[test]
fn sign_and_verify() {
    let Pushed {
        machine,
        path,
        cache,
        ..
    } = pushed();
    machine.ok("key generate second-1 --secret s2 --public p2");
    // What stands by its content needs no signature: look at one that has none.
    let unsigned = machine.ok(&format!("verify --store {cache} {path} --trusted-key p2"));
    assert_eq!(unsigned, "");
    assert_eq!(
        machine.ok(&format!("sign --store {cache} {path} --key-file s2")),
        path
    );
    let sigs = machine.ok(&format!("path-info --sigs {path} --store {cache}"));
    assert!(
        sigs.contains("test-1:") && sigs.contains("second-1:"),
        "{sigs}"
    );
    machine.ok("sign --all -k s2");
    assert!(
        machine
            .ok(&format!("path-info --sigs {path}"))
            .contains("second-1:")
    );
}

#[test]
fn a_damaged_cache_is_seen() {
    let Pushed {
        machine,
        path,
        cache,
        ..
    } = pushed();
    let nars = machine.home().join("cache/nar");
    let nar = fs::read_dir(nars).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&nar).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&nar, bytes).unwrap();
    let err = machine.fails(
        1,
        &format!("pull {path} --from {cache} --to ./store --trusted-key p"),
    );
    assert!(err.contains("-data"), "{err}");
    assert!(!machine.home().join("store").join(&path[1..]).exists());
    machine.fails(1, &format!("verify --store {cache} {path} --trusted-key p"));
    fs::remove_file(&nar).unwrap();
    machine.fails(1, &format!("verify --store {cache} {path} --trusted-key p"));
}

#[test]
fn copy_all_between_stores() {
    let Pushed {
        machine,
        path,
        cache,
        ..
    } = pushed();
    machine.write("two/x", "x");
    machine.ok(&format!("push two --to {cache}"));
    let out = machine.ok(&format!(
        "copy --all --from {cache} --to ./store --no-check-sigs"
    ));
    assert_eq!(out.lines().count(), 2);
    let back = machine.cache("back");
    machine.ok(&format!(
        "copy {path} --store ./store --to {back}?compression=none --sign-key s"
    ));
    machine.ok(&format!("verify --store {back} --all --trusted-key p"));
    let cache = fs::read_to_string(machine.home().join("back/nix-cache-info")).unwrap();
    assert!(cache.contains("StoreDir: /nix/store"));
}

#[test]
fn cache_init_says_whether_it_made_one() {
    let machine = Machine::new();
    let cache = machine.cache("cache");
    assert_eq!(
        machine.ok(&format!("cache init {cache} --priority 30")),
        cache
    );
    let info = fs::read_to_string(machine.home().join("cache/nix-cache-info")).unwrap();
    assert!(
        info.contains("Priority: 30") && info.contains("WantMassQuery: 1"),
        "{info}"
    );
    let again = machine.run("cache init cache --priority 10");
    assert!(again.err.contains("already"), "{again:?}");
    assert_eq!(
        fs::read_to_string(machine.home().join("cache/nix-cache-info")).unwrap(),
        info
    );
}

#[test]
fn create_key_makes_the_pair_once() {
    let machine = Machine::new();
    machine.write("data", "x");
    let cache = machine.cache("cache");
    let push = format!("push data --to {cache} --sign-key demo.key --create-key");
    let path = machine.ok(&push);
    let key = fs::read(machine.home().join("demo.key")).unwrap();
    machine.ok(&push);
    assert_eq!(fs::read(machine.home().join("demo.key")).unwrap(), key);
    machine.ok(&format!(
        "pull {path} --from {cache} --to ./s --trusted-key demo.key.pub"
    ));
}
