//! Whether the inputs of a flake are pinned.

use super::findings::*;
use crate::{Cause, NixFailure, Result, flake::FlakeMetadata};
use futures::StreamExt;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use tk_nar::{Decoder, Event};
use tk_path::StorePath;
use tk_store::{Error, Store};

/// What in the inputs of a flake is not pinned. `lock` is its flake.lock as it is; `metadata` has the one
/// that nix would write.
pub fn audit_flake(metadata: &FlakeMetadata, lock: Option<&Value>) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(tree(metadata));
    let held = lock.map(inputs).unwrap_or_default();
    for (name, node) in inputs(&metadata.locks) {
        let same = held
            .get(&name)
            .is_some_and(|h| h.get("original") == node.get("original"));
        if !same {
            let message = match lock {
                Some(_) => "flake.lock does not have it as flake.nix asks for it",
                None => "there is no flake.lock, so that it is looked up anew each time",
            };
            findings.push(UNLOCKED_INPUT.at(&name, message));
        }
        findings.extend(pinned(&name, node));
        findings.extend(floating(&name, node));
    }
    findings
}

/// Where the flake itself comes from.
fn tree(metadata: &FlakeMetadata) -> Option<Finding> {
    let url = &metadata.resolved_url;
    let revision = metadata.revision.as_deref();
    let clean = revision.is_some_and(|revision| !revision.ends_with("-dirty"));
    if url.starts_with("git") && !clean {
        let message = "it has changes that are not committed, so that nobody else can get it";
        return Some(DIRTY_TREE.at(url, message));
    }
    url.starts_with("path:").then(|| {
        let message = "it is a folder of this machine, not a revision of anything";
        NO_REVISION.at(url, message)
    })
}

/// Whether an input is always the same.
fn pinned(name: &str, node: &Value) -> Option<Finding> {
    let locked = &node["locked"];
    let text = |key: &str| locked[key].as_str();
    let kind = text("type").unwrap_or_default();
    // A folder of the flake itself has no hash of its own.
    if kind == "path" && node.get("parent").is_some() {
        return None;
    }
    if text("narHash").is_none() {
        return Some(match text("rev") {
            Some(_) => ONLY_REVISION.at(
                name,
                "flake.lock has its revision, but no hash of its content",
            ),
            None => NO_NAR_HASH.at(name, "flake.lock has neither a hash nor a revision of it"),
        });
    }
    let local = match kind {
        "path" => text("path"),
        "git" | "hg" | "tarball" | "file" => text("url").filter(|url| url.starts_with("file:")),
        _ => None,
    };
    local.map(|place| {
        let message = format!("it is {place} of this machine, where nobody else can get it");
        LOCAL_INPUT.at(name, message)
    })
}

/// Whether an input changes when the lock is written anew.
fn floating(name: &str, node: &Value) -> Option<Finding> {
    let original = &node["original"];
    let text = |key: &str| original[key].as_str();
    let is_pinned = text("rev").is_some() || text("narHash").is_some();
    let (rule, message) = match text("type")? {
        _ if is_pinned => return None,
        "indirect" => {
            let id = text("id").unwrap_or(name);
            let message = format!("what '{id}' means is up to the registry of whoever updates it");
            (REGISTRY_INPUT, message)
        }
        "path" => return None,
        "tarball" | "file" => {
            let url = text("url").unwrap_or_default();
            let message = format!("what {url} gives may change, and nothing states its hash");
            (FLOATING_INPUT, message)
        }
        _ => {
            let branch = match text("ref") {
                Some(branch) => format!("the branch {branch}"),
                None => "the default branch".into(),
            };
            let message = format!("it follows {branch}: only flake.lock holds it");
            (FLOATING_INPUT, message)
        }
    };
    Some(rule.at(name, message))
}

/// The inputs in a lock, by their names from the root (`nixpkgs`, `a/nixpkgs`), each with its node. Those
/// that follow others are left out.
fn inputs(lock: &Value) -> BTreeMap<String, &Value> {
    let mut found = BTreeMap::new();
    let root = lock["root"].as_str().unwrap_or("root");
    let mut todo = vec![(String::new(), root)];
    let mut seen = BTreeSet::new();
    while let Some((prefix, key)) = todo.pop() {
        // Each node once: a lock may have cycles.
        if !seen.insert(key) || found.len() > MAX_INPUTS {
            continue;
        }
        let node = &lock["nodes"][key];
        for (name, target) in node["inputs"].as_object().into_iter().flatten() {
            let (Some(target), name) = (target.as_str(), format!("{prefix}{name}")) else {
                continue;
            };
            found.insert(name.clone(), &lock["nodes"][target]);
            todo.push((format!("{name}/"), target));
        }
    }
    found
}

/// The flake.lock in the sources of a flake; `None` if there is none.
pub(super) async fn lock_file(
    store: &dyn Store,
    metadata: &FlakeMetadata,
) -> Result<Option<Value>> {
    let Ok((path, _)) = store.dir().split(&metadata.path) else {
        let words = "nix does not tell where the sources of the flake are";
        return Err(NixFailure::new(Cause::Other, words));
    };
    let folder = metadata
        .resolved_url
        .split(['?', '&'])
        .find_map(|p| p.strip_prefix("dir="));
    let mut wanted: Vec<&str> = folder.unwrap_or_default().split('/').collect();
    wanted.retain(|part| !part.is_empty());
    wanted.push("flake.lock");
    let Some(text) = read_file(store, &path, &wanted.join("/")).await? else {
        return Ok(None);
    };
    let lock = serde_json::from_slice(&text);
    let lock =
        lock.map_err(|e| NixFailure::new(Cause::Misused, format!("flake.lock is not JSON: {e}")))?;
    Ok(Some(lock))
}

/// A file in a path of the store.
async fn read_file(store: &dyn Store, path: &StorePath, file: &str) -> Result<Option<Vec<u8>>> {
    let mut nar = store.nar(path).await?;
    let mut decoder = Decoder::new();
    let (mut place, mut levels) = (Vec::new(), Vec::new());
    let mut contents: Option<Vec<u8>> = None;
    let bad = |e: String| NixFailure::from(Error::malformed(path.to_string(), e));
    while let Some(chunk) = nar.next().await {
        let chunk = chunk?;
        let mut rest = &chunk[..];
        loop {
            let fed = decoder.feed(rest).map_err(|e| bad(e.to_string()))?;
            rest = &rest[fed.consumed..];
            match fed.event {
                None => break,
                Some(Event::Directory) => levels.push(place.len()),
                Some(Event::Entry { name }) => {
                    place.truncate(levels.last().copied().unwrap_or(0));
                    if !place.is_empty() {
                        place.push(b'/');
                    }
                    place.extend_from_slice(name);
                }
                Some(Event::LeaveDirectory) => {
                    levels.pop();
                }
                Some(Event::Regular { size, .. }) if place == file.as_bytes() => {
                    if size > MAX_LOCK {
                        return Err(bad(format!("{file} has {size} bytes, more than any lock")));
                    }
                    contents = Some(Vec::new());
                }
                Some(Event::Contents(piece)) => {
                    if let Some(contents) = &mut contents {
                        contents.extend_from_slice(piece);
                    }
                }
                Some(Event::EndRegular) if contents.is_some() => return Ok(contents),
                Some(_) => (),
            }
        }
    }
    decoder.finish().map_err(|e| bad(e.to_string()))?;
    Ok(None)
}

/// Inputs of a flake that are looked at.
const MAX_INPUTS: usize = 10_000;
/// Bytes of a flake.lock. Large ones have some hundred KiB.
const MAX_LOCK: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn kinds(findings: &[Finding]) -> Vec<String> {
        let told = findings.iter();
        told.map(|f| format!("{} {} {}", f.severity, f.kind, f.place))
            .collect()
    }

    fn metadata(url: &str, revision: Option<&str>, locks: Value) -> FlakeMetadata {
        FlakeMetadata {
            original_url: url.into(),
            resolved_url: url.into(),
            url: url.into(),
            description: None,
            path: String::new(),
            revision: revision.map(str::to_owned),
            last_modified: None,
            locks,
        }
    }

    #[test]
    fn flakes() {
        let github = json!({"type": "github", "owner": "a", "repo": "b"});
        let pinned = json!({"type": "github", "owner": "a", "repo": "b", "rev": "c"});
        let locked = json!({"type": "github", "narHash": "sha256-x", "rev": "c"});
        let lock = |nodes: Value, inputs: Value| {
            let mut nodes = nodes;
            nodes["root"] = json!({ "inputs": inputs });
            json!({"root": "root", "nodes": nodes, "version": 7})
        };
        let good = lock(
            json!({"n": {"locked": locked, "original": pinned}}),
            json!({"x": "n"}),
        );
        let clean = |locks| metadata("git+file:///a", Some("abc"), locks);
        assert_eq!(
            kinds(&audit_flake(&clean(good.clone()), Some(&good))),
            [""; 0]
        );
        let none = ["error unlockedInput x"];
        assert_eq!(kinds(&audit_flake(&clean(good.clone()), None)), none);
        let other = lock(
            json!({"n": {"locked": locked, "original": github}}),
            json!({"x": "n"}),
        );
        assert_eq!(
            kinds(&audit_flake(&clean(good.clone()), Some(&other))),
            none
        );
        for (original, locked, expected) in [
            (github.clone(), locked.clone(), "warning floatingInput x"),
            (
                json!({"type": "indirect", "id": "nixpkgs"}),
                locked.clone(),
                "warning registryInput x",
            ),
            (
                json!({"type": "tarball", "url": "https://a/b.tar.gz"}),
                locked.clone(),
                "warning floatingInput x",
            ),
            (
                pinned.clone(),
                json!({"type": "github", "rev": "c"}),
                "note noNarHash x",
            ),
            (
                pinned.clone(),
                json!({"type": "tarball", "url": "https://a/"}),
                "error noNarHash x",
            ),
            (
                json!({"type": "path"}),
                json!({"type": "path", "path": "/a", "narHash": "h"}),
                "warning localInput x",
            ),
        ] {
            let lock = lock(
                json!({"n": {"locked": locked, "original": original}}),
                json!({"x": "n"}),
            );
            assert_eq!(
                kinds(&audit_flake(&clean(lock.clone()), Some(&lock))),
                [expected]
            );
        }
        let none = lock(json!({}), json!({}));
        for (url, revision, expected) in [
            ("git+file:///a", None, "warning dirtyTree git+file:///a"),
            (
                "git+file:///a",
                Some("abc-dirty"),
                "warning dirtyTree git+file:///a",
            ),
            ("path:/a", None, "note noRevision path:/a"),
        ] {
            let found = audit_flake(&metadata(url, revision, none.clone()), None);
            assert_eq!(kinds(&found), [expected]);
        }
    }

    #[test]
    fn locks_with_cycles_and_follows() {
        let lock = json!({"root": "root", "nodes": {
            "root": {"inputs": {"a": "a", "b": "b"}},
            "a": {"inputs": {"b": ["b"], "c": "c"}},
            "b": {},
            "c": {"inputs": {"a": "a"}},
        }});
        let found = inputs(&lock);
        let names: Vec<_> = found.keys().map(String::as_str).collect();
        assert_eq!(names, ["a", "a/c", "a/c/a", "b"]);
        for odd in [
            json!(null),
            json!([]),
            json!({"nodes": 3}),
            json!({"root": 1}),
        ] {
            assert!(inputs(&odd).is_empty());
        }
    }
}
