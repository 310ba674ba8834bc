//! JavaScript: package.json and the lock file of its manager.

use super::{
    pins::{self, ToolPin},
    scan::{DetectError, ProjectScan},
};
use crate::flake_facts::{FlakeReason, PackageBuilder, VersionSource};
use serde_json::Value;

/// Who installs the packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NodeManager {
    Npm,
    Pnpm,
    Yarn,
    YarnBerry,
    Bun,
}

/// Notes what a package of npm needs.
pub fn detect(scan: &mut ProjectScan) -> Result<(), DetectError> {
    let Some(text) = scan.read(MANIFEST)? else {
        return Ok(());
    };
    let manifest: Value = serde_json::from_str(&text)
        .map_err(|error| scan.malformed(MANIFEST, error.line().max(1), json_message(&error)))?;
    if !manifest.is_object() {
        return Err(scan.malformed(MANIFEST, 1, "no object"));
    }
    let because = |key: &str| FlakeReason::new(MANIFEST, key, json_line(&text, key));
    let node = node(scan, &manifest, because("engines"));
    let (manager, lock) = manager(scan, &manifest)?;
    let lock_because = match lock {
        Some(lock) => FlakeReason::new(lock, "", None),
        None => because("packageManager"),
    };
    match manager {
        NodeManager::Npm if lock == Some(NPM_LOCK) => match lock_version(scan)? {
            0 | 1 => scan.note(
                FlakeReason::new(NPM_LOCK, "lockfileVersion", None),
                "importNpmLock of nixpkgs reads versions from 2 on, so the flake has a shell and no package: \
                 npm install --lockfile-version 3 makes one",
            ),
            _ => package(scan, &manifest, &node.0, because("name"))?,
        },
        NodeManager::Npm if lock.is_some() => scan.note(
            lock_because.clone(),
            "npm reads this and importNpmLock of nixpkgs only package-lock.json, so the flake has a shell and no \
             package: rename it",
        ),
        NodeManager::Npm => scan.note(
            because("name"),
            "there is no package-lock.json, so the flake has a shell and no package: npm install makes it",
        ),
        _ => scan.note(
            lock_because.clone(),
            "only with package-lock.json a package can be built without a hash of all that is fetched: \
             the flake has a shell and no package",
        ),
    }
    scan.tool(node.0, node.1);
    let attribute = match manager {
        // It comes with node.
        NodeManager::Npm => return Ok(()),
        NodeManager::Pnpm => "pnpm",
        NodeManager::Yarn => "yarn",
        NodeManager::YarnBerry => "yarn-berry",
        NodeManager::Bun => "bun",
    };
    let _ = scan.take_pin(attribute);
    scan.tool(attribute, lock_because);
    Ok(())
}

fn package(
    scan: &mut ProjectScan,
    manifest: &Value,
    node: &str,
    because: FlakeReason,
) -> Result<(), DetectError> {
    let name = match manifest["name"].as_str() {
        Some(name) => name.to_owned(),
        None => scan.folder_name(),
    };
    let version = if manifest["version"].is_string() {
        VersionSource::Json(MANIFEST.to_owned(), vec!["version".to_owned()])
    } else {
        VersionSource::Literal("0".to_owned())
    };
    let by = PackageBuilder::Npm {
        node: node.to_owned(),
        build: manifest["scripts"]["build"].is_string(),
    };
    scan.package(&name, version, by, because);
    Ok(())
}

/// The attribute of node, and why that.
fn node(scan: &mut ProjectScan, manifest: &Value, engines: FlakeReason) -> (String, FlakeReason) {
    if let Some(pin) = scan.take_pin("node") {
        return (pins::node_attribute(scan, &pin), pin.because);
    }
    let wanted = manifest["engines"]["node"].as_str().unwrap_or_default();
    let is_exact = wanted.starts_with(|c: char| c.is_ascii_digit() || "^~v".contains(c))
        && !wanted.contains(['|', ' ']);
    if is_exact {
        let because = FlakeReason {
            key: "engines.node".to_owned(),
            ..engines
        };
        let pin = ToolPin {
            tool: "node".to_owned(),
            version: wanted.to_owned(),
            because: because.clone(),
        };
        return (pins::node_attribute(scan, &pin), because);
    }
    ("nodejs".to_owned(), FlakeReason::new(MANIFEST, "", None))
}

/// Who installs, and the lock file that says so.
fn manager(
    scan: &ProjectScan,
    manifest: &Value,
) -> Result<(NodeManager, Option<&'static str>), DetectError> {
    for (file, manager) in [
        // As npm, which takes it first.
        ("npm-shrinkwrap.json", NodeManager::Npm),
        (NPM_LOCK, NodeManager::Npm),
        ("pnpm-lock.yaml", NodeManager::Pnpm),
        ("bun.lock", NodeManager::Bun),
        ("bun.lockb", NodeManager::Bun),
    ] {
        if scan.has(file) {
            return Ok((manager, Some(file)));
        }
    }
    if let Some(lock) = scan.read("yarn.lock")? {
        let manager = if lock.contains("__metadata:") {
            NodeManager::YarnBerry
        } else {
            NodeManager::Yarn
        };
        return Ok((manager, Some("yarn.lock")));
    }
    let named = manifest["packageManager"].as_str().unwrap_or("npm");
    let (name, version) = named.split_once('@').unwrap_or((named, ""));
    let manager = match name {
        "pnpm" => NodeManager::Pnpm,
        "yarn" if version.starts_with("1.") || version.is_empty() => NodeManager::Yarn,
        "yarn" => NodeManager::YarnBerry,
        "bun" => NodeManager::Bun,
        _ => NodeManager::Npm,
    };
    Ok((manager, None))
}

/// The version of the form of package-lock.json; 0 if it says none.
fn lock_version(scan: &ProjectScan) -> Result<u64, DetectError> {
    #[derive(serde::Deserialize)]
    struct NpmLockVersion {
        #[serde(rename = "lockfileVersion", default)]
        version: u64,
    }
    let text = scan.read(NPM_LOCK)?.unwrap_or_default();
    let lock: NpmLockVersion = serde_json::from_str(&text)
        .map_err(|error| scan.malformed(NPM_LOCK, error.line().max(1), json_message(&error)))?;
    Ok(lock.version)
}

/// The message without its place, which is said elsewhere.
fn json_message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = text.rfind(" at line ").unwrap_or(text.len());
    text[..place].to_owned()
}

/// The line of the first mention of a key.
fn json_line(text: &str, key: &str) -> Option<usize> {
    let key = format!("\"{key}\"");
    let at = text
        .lines()
        .position(|line| line.trim_start().starts_with(&key))?;
    Some(at + 1)
}

const MANIFEST: &str = "package.json";
const NPM_LOCK: &str = "package-lock.json";
