//! What is built goes into caches as it is built, and real Nix fetches it from there.

use super::Project;
use crate::support::{VERSIONS, servers::Nginx};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

#[test]
fn built_pushed_and_substituted() {
    for version in VERSIONS {
        let Some(project) = Project::start(version) else {
            continue;
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
        let words = match fetched {
            true => ["built nothing", "fetched 2 paths"],
            false => ["built 2 derivations", "is built, not fetched"],
        };
        for words in words {
            assert!(done.stderr.contains(words), "{version}: {words}: {done:?}");
        }
    }
}
