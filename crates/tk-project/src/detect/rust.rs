//! Rust: Cargo.toml, Cargo.lock, rust-toolchain.toml.

use super::{
    cargo_lock,
    scan::{DetectError, ProjectScan},
    toml_file::TomlFile,
};
use crate::flake_facts::{FlakeFactKind, FlakeReason, PackageBuilder, VersionSource};

/// Notes what a Cargo project needs.
pub fn detect(scan: &mut ProjectScan) -> Result<(), DetectError> {
    let Some(manifest) = scan.toml("Cargo.toml")? else {
        return Ok(());
    };
    if manifest.get("package").is_none() && manifest.get("workspace").is_none() {
        return Err(scan.malformed(
            "Cargo.toml",
            1,
            "neither [package] nor [workspace] is in it",
        ));
    }
    let key = if manifest.get("package").is_some() {
        "package.name"
    } else {
        "workspace"
    };
    let because = manifest.reason(key);
    if manifest.get("package").is_some() && manifest.string(key).is_none() {
        let line = manifest.reason("package").line.unwrap_or(1);
        return Err(scan.malformed("Cargo.toml", line, "[package] has no name"));
    }
    match scan.toml("Cargo.lock")? {
        Some(lock) => {
            cargo_lock::needs(scan, &lock);
            package(scan, &manifest, &lock, because.clone())?;
        }
        None => scan.note(
            because.clone(),
            "there is no Cargo.lock, so the flake has a shell and no package: cargo generate-lockfile makes it",
        ),
    }
    toolchain(scan, because)
}

fn package(
    scan: &mut ProjectScan,
    manifest: &TomlFile,
    lock: &TomlFile,
    because: FlakeReason,
) -> Result<(), DetectError> {
    let name = match manifest.string("package.name") {
        Some(name) => name.to_owned(),
        None => scan.folder_name(),
    };
    let version = version(scan, manifest)?;
    let has_program = scan.has("src/main.rs") && manifest.get("package").is_some();
    let by = PackageBuilder::Rust {
        git: cargo_lock::has_git_sources(lock),
        program: has_program.then(|| name.clone()),
    };
    scan.package(&name, version, by, because);
    Ok(())
}

/// Where the version is: in the package, in its workspace, or in the first member that has one.
fn version(scan: &ProjectScan, manifest: &TomlFile) -> Result<VersionSource, DetectError> {
    let at = |file: &str, keys: &str| {
        let keys = keys.split('.').map(str::to_owned).collect();
        VersionSource::Toml(file.to_owned(), keys)
    };
    for keys in ["package.version", "workspace.package.version"] {
        if manifest.string(keys).is_some() {
            return Ok(at(manifest.name(), keys));
        }
    }
    if manifest.get("package").is_none() {
        for member in members(scan, manifest) {
            let file = format!("{member}/Cargo.toml");
            let member = scan.toml(&file)?;
            if member.is_some_and(|member| member.string("package.version").is_some()) {
                return Ok(at(&file, "package.version"));
            }
        }
    }
    Ok(VersionSource::Literal("0.0.0".to_owned()))
}

/// The folders of a workspace's members; of patterns, those that end in `/*`.
fn members(scan: &ProjectScan, manifest: &TomlFile) -> Vec<String> {
    let patterns = manifest.get("workspace.members");
    let patterns = patterns.into_iter().flat_map(|members| members.strings());
    let inside = |path: &str| !path.starts_with('/') && !path.split('/').any(|name| name == "..");
    let folders = patterns.flat_map(|(pattern, _)| match pattern.strip_suffix("/*") {
        Some(above) if inside(above) => {
            let below = scan.folders_in(above);
            below.iter().map(|name| format!("{above}/{name}")).collect()
        }
        None if inside(pattern) => vec![pattern.to_owned()],
        _ => Vec::new(),
    });
    folders.collect()
}

/// The compiler: that of nixpkgs, unless a toolchain file asks for what nixpkgs has not.
fn toolchain(scan: &mut ProjectScan, because: FlakeReason) -> Result<(), DetectError> {
    let name = scan.first_of(&["rust-toolchain.toml", "rust-toolchain"]);
    if let Some(name) = name
        && let Some(reason) = asks_for_overlay(scan, name)?
    {
        scan.fact(
            FlakeFactKind::RustToolchain(name.to_owned()),
            reason.clone(),
        );
        scan.tool("rust-analyzer", reason);
        return Ok(());
    }
    let pinned = scan.take_pin("rust");
    if let Some(pin) = pinned {
        scan.note(
            pin.because,
            "the compiler is that of nixpkgs, whatever its version: a rust-toolchain.toml would name another",
        );
    }
    for tool in ["cargo", "clippy", "rust-analyzer", "rustc", "rustfmt"] {
        scan.tool(tool, because.clone());
    }
    Ok(())
}

/// Why the toolchain file asks for more than `stable` of this machine; `None` if it does not.
fn asks_for_overlay(scan: &ProjectScan, name: &str) -> Result<Option<FlakeReason>, DetectError> {
    let text = scan.read(name)?.unwrap_or_default();
    let is_one_word = text.split_whitespace().count() == 1 && !text.contains('=');
    if is_one_word && name == "rust-toolchain" {
        let channel = text.trim();
        let reason = FlakeReason::new(name, channel, 1);
        return Ok((channel != "stable").then_some(reason));
    }
    let Some(file) = scan.toml(name)? else {
        return Ok(None);
    };
    if file.get("toolchain").is_none() {
        return Err(scan.malformed(name, 1, "no [toolchain] is in it"));
    }
    let targets = file.get("toolchain.targets");
    let has_targets = targets.is_some_and(|targets| targets.elements().next().is_some());
    Ok(match file.string("toolchain.channel") {
        Some("stable") | None if has_targets => Some(file.reason("toolchain.targets")),
        Some("stable") | None => None,
        Some(_) => Some(file.reason("toolchain.channel")),
    })
}
