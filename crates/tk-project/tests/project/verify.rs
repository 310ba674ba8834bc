//! What Nix locked is verified, and nothing else is.

use super::{
    flakes::{Dice, FlakeBench},
    support::VERSIONS,
};
use futures::executor::block_on;
use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};
use tk_nar::Encoder;
use tk_narinfo::PathInfo;
use tk_path::{NarHash, StoreDir};
use tk_project::{
    FlakeLock,
    lock::{InputVerdict, VerifyOptions},
};
use tk_store::{AddOptions, MemoryStore, SigCheck, StoreExt as _};

/// The verdicts by name, as words.
fn verdicts(folder: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(folder.join("flake.lock")).unwrap();
    let lock = FlakeLock::parse("flake.lock", &text).unwrap();
    let options = VerifyOptions::new(folder);
    let found = lock.verify(&options).map(|input| {
        let word = match input.verdict {
            InputVerdict::Verified { .. } => "verified".to_owned(),
            InputVerdict::Tampered { .. } => "tampered".to_owned(),
            InputVerdict::Unverifiable { why } => format!("unverifiable: {why}"),
            other => format!("{other:?}"),
        };
        (input.path.to_string(), word)
    });
    found.collect()
}

fn verdict(folder: &Path, name: &str) -> String {
    let all = verdicts(folder);
    let found = all.iter().find(|(path, _)| path == name);
    found
        .unwrap_or_else(|| panic!("{name} in {all:?}"))
        .1
        .clone()
}

fn all_verified(folder: &Path) {
    let all = verdicts(folder);
    assert!(!all.is_empty());
    for (path, word) in all {
        assert_eq!(word, "verified", "{path}");
    }
}

fn tar(bench: &FlakeBench, name: &str, args: &[&str]) {
    let path = bench.path(name);
    let done = Command::new("tar")
        .arg("-caf")
        .arg(&path)
        .args(args)
        .status();
    assert!(done.expect("tar is there").success());
}

const ATTRIBUTES: &str = "\
s export-subst
hidden export-ignore
gone/ export-ignore
*.crlf text eol=crlf
*.id ident
*.bin filter=lfs diff=lfs merge=lfs -text
";

/// A flake with inputs of all kinds that lie on this machine.
fn every_kind(bench: &FlakeBench) -> String {
    let mut dice = Dice::new(7);
    dice.tree(&bench.path("p"), 3);
    fs::create_dir(bench.path("p/empty")).unwrap();
    dice.tree(&bench.path("g"), 3);
    bench.commit("g");
    for (file, content) in [
        ("s", "$Format:%H$\n"),
        ("hidden", "x"),
        ("gone/x", "x"),
        ("a.crlf", "1\n2\n"),
        ("a.id", "$Id$\n"),
        (
            "a.bin",
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        ),
        (".gitattributes", ATTRIBUTES),
    ] {
        bench.write(&format!("attributes/{file}"), content);
    }
    let rev = bench.commit("attributes");
    // With the line ends that git gives it.
    fs::remove_file(bench.path("attributes/a.crlf")).unwrap();
    bench.git("attributes", &["checkout", "-q", "a.crlf"]);
    bench.write("sub/file", "1");
    bench.commit("sub");
    bench.write("mounts/file", "2");
    bench.commit("mounts");
    let sub = bench.path("sub").display().to_string();
    bench.git("mounts", &["submodule", "--quiet", "add", &sub, "in/sub"]);
    let mounts = bench.commit("mounts");
    dice.tree(&bench.path("t/top"), 2);
    for packed in ["tar", "tar.gz", "tar.xz", "tar.bz2", "tar.zst"] {
        let folder = bench.path("t").display().to_string();
        tar(bench, &format!("t.{packed}"), &["-C", &folder, "top"]);
    }
    let top = bench.path("t/top").display().to_string();
    bench.write("t/one", "one");
    let folder = bench.path("t").display().to_string();
    tar(bench, "one.tar", &["-C", &folder, "one"]);
    if bench.rig.version != "2.8" {
        tar(bench, "several.tar", &["-C", &top, "."]);
    }
    bench.write("f", "a file");
    fs::set_permissions(bench.path("f"), fs::Permissions::from_mode(0o755)).unwrap();
    let at = |name: &str| bench.path(name).display().to_string();
    let mut inputs = vec![
        ("p", format!("path:{}", at("p"))),
        ("g", format!("git+file://{}", at("g"))),
        (
            "attributes",
            format!("git+file://{}?rev={rev}", at("attributes")),
        ),
        ("worktree", format!("git+file://{}", at("attributes"))),
        (
            "mounts",
            format!("git+file://{}?ref=main&rev={mounts}", at("mounts")),
        ),
        (
            "mounted",
            format!("git+file://{}?ref=main&submodules=1", at("mounts")),
        ),
        ("clean", format!("git+file://{}", at("mounts"))),
        ("one", format!("file://{}", at("one.tar"))),
    ];
    for packed in ["tar", "tar.gz", "tar.xz", "tar.bz2", "tar.zst"] {
        let name = packed.strip_prefix("tar").unwrap().trim_start_matches('.');
        let name = ["t", name].concat();
        let name: &str = name.leak();
        inputs.push((name, format!("file://{}", at(&format!("t.{packed}")))));
    }
    if bench.rig.version != "2.8" {
        inputs.push(("several", format!("tarball+file://{}", at("several.tar"))));
        inputs.push(("f", format!("file+file://{}", at("f"))));
        let url = format!("git+file://{}?ref=main&exportIgnore=1", at("attributes"));
        inputs.push(("ignored", url));
    }
    let lines = inputs
        .iter()
        .map(|(name, url)| format!("  inputs.{name} = {{ url = \"{url}\"; flake = false; }};"));
    lines.collect::<Vec<_>>().join("\n")
}

fn what_nix_locks_is_verified(version: &'static str) {
    let Some(bench) = FlakeBench::new(version) else {
        return;
    };
    let inputs = every_kind(&bench);
    let folder = bench.flake("project", &inputs);
    let text = bench.locked("project").unwrap();
    if version != "2.8" {
        assert_eq!(FlakeLock::parse("l", &text).unwrap().to_text(), text);
    }
    all_verified(&folder);
    // The same locks in the older forms.
    for older in [5, 6] {
        let text = text.replace("\"version\": 7", &format!("\"version\": {older}"));
        fs::write(folder.join("flake.lock"), text).unwrap();
        all_verified(&folder);
    }
    fs::write(folder.join("flake.lock"), &text).unwrap();

    // Each input changed by one bit, and only that one is told.
    let flip = |name: &str, at: usize| {
        let path = bench.path(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
    };
    bench.write("p/bit", "x");
    assert_eq!(verdict(&folder, "p"), "tampered");
    fs::remove_file(bench.path("p/bit")).unwrap();
    assert_eq!(verdict(&folder, "p"), "verified");
    // The content of the first file behind its header.
    flip("one.tar", 512);
    assert_eq!(verdict(&folder, "one"), "tampered");
    flip("one.tar", 512);
    assert_eq!(verdict(&folder, "one"), "verified");
    if version != "2.8" {
        flip("f", 3);
        assert_eq!(verdict(&folder, "f"), "tampered");
        flip("f", 3);
    }
    for name in ["g", "attributes", "mounts"] {
        bench.write(&format!("{name}/more"), "x");
        let old = bench.git(name, &["rev-parse", "HEAD"]);
        let new = bench.commit(name);
        let text = fs::read_to_string(folder.join("flake.lock")).unwrap();
        fs::write(folder.join("flake.lock"), text.replace(&old, &new)).unwrap();
        assert_eq!(verdict(&folder, name), "tampered");
        fs::write(folder.join("flake.lock"), &text).unwrap();
        assert_eq!(
            verdict(&folder, name),
            "verified",
            "{name}: its commit is still there"
        );
    }
}
#[test]
fn what_nix_locks() {
    VERSIONS.into_iter().for_each(what_nix_locks_is_verified);
}

/// Dirty trees, as `fetchTree` hashes them.
fn dirty_trees(version: &'static str) {
    let Some(bench) = FlakeBench::new(version) else {
        return;
    };
    bench.write("sub/file", "1");
    bench.commit("sub");
    for file in ["kept", "changed", "deleted", "removed", "run", "d/below"] {
        bench.write(&format!("g/{file}"), file);
    }
    bench.commit("g");
    let sub = bench.path("sub").display().to_string();
    bench.git("g", &["submodule", "--quiet", "add", &sub, "sub"]);
    bench.commit("g");
    bench.write("g/changed", "differently");
    bench.write("g/staged", "new");
    bench.git("g", &["add", "staged"]);
    bench.write("g/intended", "new");
    bench.git("g", &["add", "-N", "intended"]);
    bench.write("g/untracked", "new");
    bench.git("g", &["rm", "-q", "--cached", "removed"]);
    fs::remove_file(bench.path("g/deleted")).unwrap();
    fs::set_permissions(bench.path("g/run"), fs::Permissions::from_mode(0o755)).unwrap();
    let url = format!("file://{}", bench.path("g").display());
    let code = format!(
        "removeAttrs (builtins.fetchTree {{ type = \"git\"; url = \"{url}\"; }}) [ \"outPath\" ]"
    );
    let mut attrs: serde_json::Value = serde_json::from_str(
        &bench
            .nix(&["eval", "--impure", "--json", "--expr", &code])
            .unwrap(),
    )
    .unwrap();
    let hash = attrs["narHash"].take();
    let lock = serde_json::json!({"version": 7, "root": "root", "nodes": {
        "root": {"inputs": {"g": "g"}},
        "g": {
            "locked": {"type": "git", "url": url, "narHash": hash},
            "original": {"type": "git", "url": url},
        },
    }});
    bench.write("project/flake.lock", lock.to_string());
    let folder = bench.path("project");
    all_verified(&folder);
    bench.write("g/intended", "newer");
    assert_eq!(verdict(&folder, "g"), "tampered");
}
#[test]
fn dirty() {
    VERSIONS.into_iter().for_each(dirty_trees);
}

#[test]
fn stores_are_asked_by_the_hash() {
    let nar = |content: &[u8]| {
        let mut nar = Encoder::new(Vec::new());
        nar.file(false, content).unwrap();
        nar.finish().unwrap()
    };
    let (good, other) = (nar(b"1"), nar(b"2"));
    let hash = NarHash::digest(&good);
    let text = format!(
        r#"{{"version":7,"root":"root","nodes":{{"root":{{"inputs":{{"a":"a"}}}},
        "a":{{"locked":{{"type":"github","owner":"o","repo":"r","narHash":"{}"}},"original":{{"type":"github"}}}}}}}}"#,
        hash.sri()
    );
    let lock = FlakeLock::parse("flake.lock", &text).unwrap();
    let pin = lock.node("a").unwrap().pin.as_ref().unwrap();
    let path = pin.store_path(&StoreDir::default()).unwrap();
    assert!(path.to_string().ends_with("-source"));
    let ask = |held: Option<&Vec<u8>>| {
        let store = MemoryStore::default();
        if let Some(nar) = held {
            let info = PathInfo::new(path.clone(), NarHash::digest(nar), nar.len() as u64);
            let stream = tk_store::nar::from_bytes(nar.clone());
            block_on(store.add_one(info, stream, &AddOptions::new(SigCheck::Skip))).unwrap();
        }
        block_on(pin.verify_in(&store)).unwrap()
    };
    assert!(ask(None).is_none());
    assert!(matches!(
        ask(Some(&good)),
        Some(InputVerdict::Verified { .. })
    ));
    let Some(InputVerdict::Tampered { found, .. }) = ask(Some(&other)) else {
        panic!("it has other content");
    };
    assert_eq!(found, NarHash::digest(&other));
}

#[test]
fn what_is_not_at_hand_is_said_to_be_so() {
    let dir = tempfile::tempdir().unwrap();
    let hash = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
    fs::write(dir.path().join("broken.tar.gz"), b"\x1f\x8b\x08broken").unwrap();
    fs::write(dir.path().join("a.zip"), b"PK\x03\x04....").unwrap();
    fs::create_dir(dir.path().join("plain")).unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let rev = "0123456789012345678901234567890123456789";
    for (locked, why) in [
        (
            r#""type":"github","owner":"o","repo":"r""#.to_owned(),
            "is not on this machine",
        ),
        (
            r#""type":"path","path":"/nowhere""#.to_owned(),
            "there is no /nowhere",
        ),
        (r#""type":"path","path":"./x""#.to_owned(), "there is no"),
        (
            format!(
                r#""type":"git","url":"file://{}","rev":"{rev}""#,
                at("plain")
            ),
            "is no repository",
        ),
        (
            format!(r#""type":"git","url":"https://h/r","rev":"{rev}""#),
            "is not on this machine",
        ),
        (
            format!(r#""type":"tarball","url":"file://{}""#, at("broken.tar.gz")),
            "cannot be read as an archive",
        ),
        (
            format!(r#""type":"tarball","url":"file://{}""#, at("a.zip")),
            "a zip archive",
        ),
        (
            format!(r#""type":"tarball","url":"file://{}""#, at("plain")),
            "is not a file",
        ),
        (r#""type":"new","url":"x""#.to_owned(), "kind 'new'"),
    ] {
        let text = format!(
            r#"{{"version":7,"root":"root","nodes":{{"root":{{"inputs":{{"a":"a"}}}},
            "a":{{"locked":{{{locked},"narHash":"{hash}"}},"original":{{"type":"path"}}}}}}}}"#
        );
        fs::write(dir.path().join("flake.lock"), text).unwrap();
        let found = verdict(dir.path(), "a");
        assert!(
            found.starts_with("unverifiable: ") && found.contains(why),
            "{locked}: {found}"
        );
    }
}
