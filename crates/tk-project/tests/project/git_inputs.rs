//! Repositories that are odd or hostile: nothing of theirs runs, and nothing is locked or verified that Nix refuses.

use super::{
    flakes::{FlakeBench, commit, git},
    support::skip,
};
use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;
use tk_project::{
    FlakeLock,
    fetch::FetchOptions,
    lock::{InputVerdict, LockUpdates, VerifyOptions, solve_lock},
};

const WRONG: &str = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// The lock of a flake in `dir` whose only input `url` is no flake.
fn locked(dir: &Path, url: &str) -> Result<serde_json::Value, String> {
    let folder = dir.join("project");
    let text =
        format!("{{ inputs.i = {{ url = \"{url}\"; flake = false; }}; outputs = _: {{ }}; }}");
    write(&folder.join("flake.nix"), &text);
    let solved = solve_lock(&folder, None, LockUpdates::Needed, &FetchOptions::default());
    let solved = solved.map_err(|e| e.to_string())?;
    write(&folder.join("flake.lock"), &solved.lock.to_text());
    Ok(solved.lock.to_json()["nodes"]["i"]["locked"].take())
}

/// What becomes of the input that is locked so.
fn verdict(dir: &Path, locked: &serde_json::Value) -> String {
    let lock = serde_json::json!({"version": 7, "root": "root", "nodes": {
        "root": {"inputs": {"i": "i"}},
        "i": {"locked": locked, "original": {"type": "git", "url": locked["url"]}},
    }});
    let lock = FlakeLock::parse("flake.lock", &lock.to_string()).unwrap();
    let options = VerifyOptions::new(dir);
    let found = lock.verify(&options).next().unwrap();
    match found.verdict {
        InputVerdict::Verified { place } => format!("verified: {place}"),
        InputVerdict::Tampered { place, .. } => format!("tampered: {place}"),
        InputVerdict::Unverifiable { why } => format!("unverifiable: {why}"),
        other => format!("{other:?}"),
    }
}

/// A repository whose configuration has commands of each kind, and the file that they make.
fn hostile(dir: &Path) -> (PathBuf, PathBuf) {
    let (folder, mark) = (dir.join("hostile"), dir.join("mark"));
    write(&folder.join("f"), "content");
    write(&folder.join(".gitattributes"), "f filter=up\n");
    commit(&folder);
    let script = dir.join("script");
    write(
        &script,
        &format!("#!/bin/sh\ntouch {}\ncat\n", mark.display()),
    );
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let hooks = dir.join("hooks");
    fs::create_dir(&hooks).unwrap();
    fs::copy(&script, hooks.join("post-index-change")).unwrap();
    let script = script.display().to_string();
    for name in [
        "filter.up.smudge",
        "filter.up.clean",
        "core.fsmonitor",
        "core.pager",
        "gpg.program",
    ] {
        git(&folder, &["config", name, &script]);
    }
    git(
        &folder,
        &["config", "core.hooksPath", &hooks.display().to_string()],
    );
    // Git is to look at the content again.
    write(&folder.join("f"), "content");
    let _ = fs::remove_file(&mark);
    (folder, mark)
}

#[test]
fn commands_of_repositories_do_not_run() {
    let dir = TempDir::new().unwrap();
    let (folder, mark) = hostile(dir.path());
    let rev = git(&folder, &["rev-parse", "HEAD"]);
    let bare = dir.path().join("bare.git");
    fs::rename(folder.join(".git"), &bare).unwrap();
    Command::new("cp")
        .arg("-a")
        .arg(&bare)
        .arg(folder.join(".git"))
        .status()
        .unwrap();
    let _ = fs::remove_file(&mark);
    for folder in [&folder, &bare] {
        let url = format!("git+file://{}", folder.display());
        for url in [
            url.clone(),
            format!("{url}?exportIgnore=1"),
            format!("{url}?rev={rev}"),
        ] {
            locked(dir.path(), &url).unwrap();
            assert!(!mark.exists(), "locking {url}");
        }
        let url = format!("file://{}", folder.display());
        let pin = serde_json::json!({"type": "git", "url": url, "rev": rev, "narHash": WRONG});
        let found = verdict(dir.path(), &pin);
        assert!(found.starts_with("tampered"), "{found}");
        assert!(!mark.exists(), "verifying {url}");
    }
}

#[test]
fn repositories_of_others_are_not_read() {
    let dir = TempDir::new().unwrap();
    let (folder, mark) = hostile(dir.path());
    let rev = git(&folder, &["rev-parse", "HEAD"]);
    let bare = dir.path().join("bare.git");
    fs::rename(folder.join(".git"), &bare).unwrap();
    let _ = fs::remove_file(&mark);
    if chown(&bare, Some(12345), Some(12345)).is_err() {
        return skip("owners", "only root gives files to others");
    }
    let url = format!("file://{}", bare.display());
    let pin = serde_json::json!({"type": "git", "url": url, "rev": rev, "narHash": WRONG});
    let found = verdict(dir.path(), &pin);
    assert!(
        found.starts_with("unverifiable") && found.contains("ownership"),
        "{found}"
    );
    assert!(!mark.exists());
}

#[test]
fn what_is_no_file_is_not_opened() {
    let dir = TempDir::new().unwrap();
    let fifo = dir.path().join("fifo");
    Command::new("mkfifo").arg(&fifo).status().unwrap();
    for kind in ["file", "tarball"] {
        let url = format!("file://{}", fifo.display());
        let pin = serde_json::json!({"type": kind, "url": url, "narHash": WRONG});
        let found = verdict(dir.path(), &pin);
        assert!(found.contains("is not a file"), "{found}");
    }
}

#[test]
fn an_outer_repository_is_another_one() {
    let dir = TempDir::new().unwrap();
    let outer = dir.path().join("outer");
    write(&outer.join("inner/f"), "1");
    let rev = commit(&outer);
    fs::create_dir(outer.join("inner/.git")).unwrap();
    let url = format!("file://{}", outer.join("inner").display());
    let pin = serde_json::json!({"type": "git", "url": url, "rev": rev, "narHash": WRONG});
    let found = verdict(dir.path(), &pin);
    assert!(found.starts_with("unverifiable"), "{found}");
}

#[test]
fn a_working_tree_is_no_other_revision() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("g");
    write(&folder.join("f"), "1");
    let first = commit(&folder);
    write(&folder.join("f"), "2");
    commit(&folder);
    let url = format!("git+file://{}", folder.display());
    let sound = locked(dir.path(), &url).unwrap();
    assert!(verdict(dir.path(), &sound).starts_with("verified"));
    let mut forged = sound.clone();
    forged["rev"] = first.into();
    let found = verdict(dir.path(), &forged);
    assert!(found.starts_with("tampered"), "{found}");
    for name in ["lastModified", "revCount"] {
        let mut forged = sound.clone();
        forged[name] = 77.into();
        let found = verdict(dir.path(), &forged);
        assert!(
            found.starts_with("tampered") && found.contains(name),
            "{found}"
        );
    }
    // Dirty, and locked as if it were not.
    write(&folder.join("f"), "3");
    let mut forged = sound.clone();
    let tree = serde_json::json!({"type": "git", "url": sound["url"], "narHash": WRONG});
    assert!(verdict(dir.path(), &tree).starts_with("tampered"));
    forged["narHash"] = WRONG.into();
    assert!(verdict(dir.path(), &forged).starts_with("tampered"));
}

#[test]
fn a_part_of_a_tree_is_not_locked() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("g");
    write(&folder.join("f"), "1");
    write(&folder.join("d/f"), "1");
    commit(&folder);
    git(&folder, &["update-index", "--skip-worktree", "d/f"]);
    fs::remove_dir_all(folder.join("d")).unwrap();
    let error = locked(dir.path(), &format!("git+file://{}", folder.display())).unwrap_err();
    assert!(error.contains("not committed"), "{error}");

    write(&dir.path().join("sub/f"), "1");
    commit(&dir.path().join("sub"));
    let outer = dir.path().join("outer");
    write(&outer.join("f"), "1");
    commit(&outer);
    let sub = dir.path().join("sub").display().to_string();
    git(&outer, &["submodule", "--quiet", "add", &sub, "sub"]);
    commit(&outer);
    let url = format!("git+file://{}?submodules=1", outer.display());
    locked(dir.path(), &url).unwrap();
    write(&outer.join("sub/f"), "2");
    let error = locked(dir.path(), &url).unwrap_err();
    assert!(error.contains("not committed"), "{error}");
}

/// Working trees with line ends that are not those of the objects, and a shallow one: as Nix locks them.
#[test]
fn working_trees_are_locked_as_by_nix() {
    let Some(bench) = FlakeBench::new("2.34") else {
        return;
    };
    bench.write("sub/f.t", "1\n2\n");
    bench.write("sub/.gitattributes", "*.t text eol=crlf\n");
    bench.commit("sub");
    bench.write("g/f.t", "1\n2\n");
    bench.write("g/gone", "1");
    bench.write(
        "g/.gitattributes",
        "*.t text eol=crlf\ngone export-ignore\n",
    );
    bench.commit("g");
    let sub = bench.path("sub").display().to_string();
    bench.git("g", &["submodule", "--quiet", "add", &sub, "in/sub"]);
    bench.commit("g");
    fs::remove_file(bench.path("g/f.t")).unwrap();
    bench.git("g", &["checkout", "-q", "f.t"]);
    // Of a repository of its own: Nix remembers how many commits lie before a revision.
    bench.write("deep/f", "1");
    bench.commit("deep");
    bench.write("deep/f", "2");
    bench.commit("deep");
    let deep = bench.path("deep").display().to_string();
    bench.git(
        "",
        &[
            "clone",
            "-q",
            "--depth",
            "1",
            &format!("file://{deep}"),
            "shallow",
        ],
    );
    for (name, query) in [
        ("g", ""),
        ("g", "?submodules=1"),
        ("g", "?exportIgnore=1"),
        ("shallow", ""),
    ] {
        let url = format!("git+file://{}{query}", bench.path(name).display());
        let ours = locked(&bench.path(""), &url).unwrap();
        fs::remove_file(bench.path("project/flake.lock")).unwrap();
        let theirs: serde_json::Value =
            serde_json::from_str(&bench.locked("project").unwrap()).unwrap();
        let theirs = &theirs["nodes"]["i"]["locked"];
        assert_eq!(&ours, theirs, "{url}");
        let found = verdict(&bench.path(""), theirs);
        assert!(found.starts_with("verified"), "{url}: {found}");
    }
}

/// A flake below the top of a repository has the whole of it as its source.
#[test]
fn a_flake_in_a_subfolder() {
    let dir = TempDir::new().unwrap();
    let mono = dir.path().join("mono");
    let text = "{ inputs.lib.url = \"path:../lib\"; inputs.same = { url = ../lib; flake = false; }; \
        inputs.below = { url = ./x/../y; flake = false; }; outputs = _: { }; }";
    write(&mono.join("app/flake.nix"), text);
    write(&mono.join("lib/flake.nix"), "{ outputs = _: { }; }");
    commit(&mono);
    let folder = mono.join("app");
    let solved = solve_lock(&folder, None, LockUpdates::Needed, &FetchOptions::default()).unwrap();
    let ours = solved.lock.to_text();
    let lib = &solved.lock.to_json()["nodes"]["lib"];
    assert_eq!(
        lib["locked"],
        serde_json::json!({"type": "path", "path": "../lib"})
    );
    let Some(bench) = FlakeBench::new("2.34") else {
        return;
    };
    bench
        .nix(&["flake", "lock", &folder.display().to_string()])
        .unwrap();
    assert_eq!(ours, fs::read_to_string(folder.join("flake.lock")).unwrap());
}
