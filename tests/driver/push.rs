//! What is built goes into caches as it is built, and real Nix fetches it from there.

use super::Project;
use crate::support::{each_version, servers::Nginx};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

each_version!(built_pushed_and_substituted);

fn built_pushed_and_substituted(version: &'static str) {
    let Some(project) = Project::start(version) else {
        return;
    };
    let served = TempDir::new().unwrap();
    let Some(nginx) = Nginx::start(served.path(), false, 0) else {
        return;
    };
    let work = project.daemon.folder();
    let folder = format!("file://{}/cache", work.display());
    let server = format!("{}/cache", nginx.url);
    let made = project.run("key generate driver-1 --secret s --public p");
    assert_eq!(made.status, 0, "{made:?}");
    let key = fs::read_to_string(project.folder.join("p")).unwrap();
    let line = format!(
        "build path:.#refers path:.#multi^* --push {folder} --push {server} --sign-key s --json"
    );
    let (status, first) = project.json(&line);
    assert_eq!(status, 0, "{version}: {first}");
    for (i, copied) in [(0, 2), (1, 2)] {
        for pushed in first[i]["pushed"].as_array().unwrap() {
            assert_eq!(pushed["copied"], copied, "{version}: {first}");
            assert_eq!(pushed["errors"], json!([]), "{version}: {first}");
        }
    }
    let again = project.run(&line);
    assert_eq!(again.status, 0, "{version}: {again:?}");
    for words in ["built nothing", "pushed nothing to", "paths were there"] {
        assert!(
            again.stderr.contains(words),
            "{version}: {words}: {again:?}"
        );
    }
    let second: Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(second[0]["pushed"][0]["copied"], 0, "{version}: {second}");

    let paths: Vec<_> = first
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|result| {
            let outputs = result["outputs"].as_object().unwrap();
            outputs
                .values()
                .map(|path| path.as_str().unwrap().to_owned())
        })
        .collect();
    for cache in [&folder, &server] {
        substituted(version, cache, &key, &paths);
    }
    prefers_the_cache(version, &folder, &key);
}

each_version!(pushed_while_others_are_built);

/// What is built for a target is in the cache while the target is being built, and stays if that
/// fails.
fn pushed_while_others_are_built(version: &'static str) {
    let Some(project) = Project::start(version) else {
        return;
    };
    let work = project.daemon.folder();
    let narinfo = |cache: &str, name: &str| {
        let all = fs::read_dir(work.join(cache)).into_iter().flatten();
        let texts = all.filter_map(|file| fs::read_to_string(file.ok()?.path()).ok());
        texts
            .filter(|text| text.lines().next().is_some_and(|l| l.ends_with(name)))
            .count()
    };
    let build = |attr: &str, cache: &str, more: &str| {
        let work = work.display();
        project.json(&format!(
            "build path:.#{attr} --push file://{work}/{cache} --json --no-log {more}"
        ))
    };

    let (status, value) = build("lateFails", "failed", "");
    assert_eq!(status, 1, "{version}: {value}");
    assert_eq!(value[0]["failure"]["exitCode"], 3, "{version}: {value}");
    assert_eq!(value[0]["pushed"][0]["copied"], 1, "{version}: {value}");
    assert_eq!(narinfo("failed", "-early"), 1, "{version}: {value}");

    // This builder ends only when it finds what was built before in the cache.
    let looks = format!(
        "i=0; until grep -qs -- -early$ {}/both/*.narinfo; do \
               i=$((i + 1)); [ $i -lt 600 ] || exit 1; sleep 0.1; \
             done; ",
        work.display()
    );
    let flake = super::FLAKE.replace("echo early", "echo once more");
    let flake = flake.replace("echo $a > $out", &format!("{looks} echo $a > $out"));
    project.write("flake.nix", &flake);
    let (status, value) = build("late", "both", "");
    assert_eq!(status, 0, "{version}: {value}");
    assert_eq!(value[0]["pushed"][0]["copied"], 2, "{version}: {value}");
    assert_eq!(value[0]["pushed"][0]["present"], 0, "{version}: {value}");
    let (_, again) = build("late", "both", "");
    assert_eq!(again[0]["pushed"][0]["copied"], 0, "{version}: {again}");

    project.write(
        "flake.nix",
        &super::FLAKE.replace("echo early", "echo a third time"),
    );
    let (status, value) = build("late", "results", "--push-results-only");
    assert_eq!(status, 0, "{version}: {value}");
    assert_eq!(value[0]["pushed"][0]["copied"], 1, "{version}: {value}");
    assert_eq!(narinfo("results", "-early"), 0, "{version}: {value}");
    assert_eq!(narinfo("results", "-late"), 1, "{version}: {value}");
}

/// A new machine fetches all of it with the key, and nothing without.
fn substituted(version: &'static str, cache: &str, key: &str, paths: &[String]) {
    for (key, works) in [(key, true), ("", false)] {
        let conf = [
            format!("substituters = {cache}"),
            format!("trusted-public-keys = {key}"),
        ];
        let conf: Vec<_> = conf.iter().map(String::as_str).collect();
        let Some(other) = Project::start_with(version, &conf) else {
            return;
        };
        let args = [
            &["-r"],
            &paths.iter().map(String::as_str).collect::<Vec<_>>()[..],
        ]
        .concat();
        let done = other.daemon.run("nix-store", &args);
        assert_eq!(done.status == 0, works, "{version}: {cache}: {done:?}");
    }
}

/// Where a cache has the outputs, nothing is built; without a trusted key they are built.
fn prefers_the_cache(version: &'static str, cache: &str, key: &str) {
    for (key, fetched) in [
        (key, true),
        (
            "other-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            false,
        ),
    ] {
        let Some(other) = Project::start(version) else {
            return;
        };
        fs::write(other.folder.join("p"), key).unwrap();
        let done = other.run(&format!(
            "build path:.#refers --prefer-cache --from {cache} --trusted-key p"
        ));
        assert_eq!(done.status, 0, "{version}: {done:?}");
        let words = if fetched {
            ["built nothing", "fetched 2 paths"]
        } else {
            ["built 2 derivations", "is built, not fetched"]
        };
        for words in words {
            assert!(done.stderr.contains(words), "{version}: {words}: {done:?}");
        }
    }
}
