//! Builds give the same results whatever the version.

use super::{Project, Table, read, steady, with_each};
use crate::support::{VERSIONS, each_version};
use serde_json::json;
use std::sync::Mutex;

#[test]
fn the_same_json_from_every_version() {
    let table = Table::new("builds by real Nix");
    let seen = Mutex::new(Vec::new());
    let ran = with_each(|version, project| {
        for line in [
            "build --json",
            "build path:.#plain --json",
            "build path:.#refers --json",
            "build path:.#multi --json",
            "build path:.#multi^* --json",
            "build path:.#multi^dev --json",
            "build -f default.nix --json",
            "build -f default.nix -A two --argstr suffix -x --json",
            "build -A one -A two --json",
            "build -E '(import ./default.nix { }).two' --impure --json",
        ] {
            let (status, value) = project.json(line);
            assert_eq!(status, 0, "{version}: {line}: {value}");
            for result in value.as_array().unwrap() {
                assert_eq!(result["success"], true, "{version}: {line}: {value}");
            }
            let mut seen = seen.lock().unwrap();
            // What is built in the first line is there in the second.
            match seen.iter().find(|(known, _)| *known == line) {
                Some((_, known)) => assert_eq!(&steady(value), known, "{version}: {line}"),
                None => seen.push((line, steady(value))),
            }
            table.ok(line, version);
        }
        facts(version, project);
    });
    table.finish(&ran);
}

/// What is told of outputs is what nix says of them.
fn facts(version: &str, project: &Project) {
    let (_, value) = project.json("build path:.#refers --json");
    let result = &value[0];
    let path = result["storePath"].as_str().unwrap();
    let ask = |what: &str| project.daemon.ask("nix-store", &["-q", what, path]);
    assert_eq!(result["size"].to_string(), ask("--size"), "{version}");
    let references = result["references"].as_array().unwrap();
    let references: Vec<_> = references.iter().map(|r| r.as_str().unwrap()).collect();
    assert_eq!(references.join("\n"), ask("--references"), "{version}");
    assert_eq!(result["drvPath"], ask("--deriver"), "{version}");
    assert_eq!(result["outputs"], json!({ "out": path }), "{version}");
}

each_version!(floating_outputs_and_rebuilds);

/// Outputs whose paths are known only afterwards, links to outputs as roots, and building again.
fn floating_outputs_and_rebuilds(version: &'static str) {
    let Some(project) = Project::start(version) else {
        return;
    };
    let (status, value) = project.json("build path:.#floating --json");
    assert_eq!(
        (status, &value[0]["status"]),
        (0, &json!("Built")),
        "{value}"
    );
    let path = value[0]["storePath"].as_str().unwrap();
    assert_eq!(project.daemon.ask("cat", &[path]), "floating");
    let (status, value) = project.json("build path:.#floating --json");
    assert_eq!((status, value[0]["storePath"].as_str()), (0, Some(path)));

    let done = project.run("build path:.#plain --out-link result");
    assert_eq!(done.status, 0, "{done:?}");
    for words in [
        "building /nix/store/",
        "plain> building",
        "built 1 derivation",
    ] {
        assert!(done.stderr.contains(words), "{version}: {words}: {done:?}");
    }
    assert_eq!(project.daemon.ask("cat", &[done.stdout.trim()]), "content");
    let link = project.folder.join("result").read_link().unwrap();
    assert_eq!(link.display().to_string(), done.stdout.trim(), "{version}");
    let roots = project.daemon.ask("nix-store", &["--gc", "--print-roots"]);
    assert!(roots.contains("project/result"), "{version}: {roots}");

    let again = project.run("build path:.#plain");
    assert!(
        again.stderr.contains("built nothing"),
        "{version}: {again:?}"
    );
    let rebuilt = project.run("build path:.#plain --rebuild");
    assert_eq!(rebuilt.status, 0, "{version}: {rebuilt:?}");
    assert!(
        rebuilt.stderr.contains("plain> building"),
        "{version}: {rebuilt:?}"
    );
}

each_version!(without_a_daemon);

/// A store on disk without a daemon builds by a nix-daemon that lives as long as the build.
fn without_a_daemon(version: &'static str) {
    let Some(project) = Project::start(version) else {
        return;
    };
    // The daemon's own store, opened without it.
    let done = project.run("build path:.#refers --store local --json");
    assert_eq!(done.status, 0, "{version}: {done:?}");
    assert!(!done.stdout.contains("AlreadyValid"), "{version}: {done:?}");
    project.ends("nix-daemon --stdio");
    let plain = project.run("build path:.#plain --store local");
    let path = plain.stdout.trim();
    assert_eq!(
        read(
            project
                .daemon
                .store()
                .join(path.rsplit('/').next().unwrap())
        ),
        "content\n"
    );
}

#[test]
fn what_is_no_reference() {
    let Some(project) = VERSIONS.into_iter().find_map(Project::start) else {
        return;
    };
    for (line, status, words) in [
        ("build -- --impure", 2, "names nothing to build"),
        ("build .#a^", 2, "names nothing to build"),
        ("build /nix/store/x", 2, "names nothing to build"),
        ("build path:/nowhere#x", 2, "there is no /nowhere"),
        ("build ./nothing", 2, "there is no ./nothing"),
        ("build path:.#value", 1, "neither a derivation nor a path"),
        ("build path:. --nix /nowhere/nix", 2, "/nowhere/nix"),
        ("build path:. --nix false", 2, "no usable nix found"),
        ("build -f nothing.nix", 2, "nothing.nix"),
        (
            "build -f default.nix --prefer-cache",
            2,
            "name one with --push",
        ),
    ] {
        let done = project.run(line);
        assert_eq!(done.status, status, "{line}: {done:?}");
        assert!(done.stderr.contains(words), "{line}: {done:?}");
    }
}
