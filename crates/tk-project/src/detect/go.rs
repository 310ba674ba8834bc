//! Go: go.mod, go.work, vendor.

use super::scan::{DetectError, ProjectScan};
use crate::flake_facts::{FlakeReason, GoModules, PackageBuilder, VersionSource};

/// Notes what a Go module or workspace needs.
pub fn detect(scan: &mut ProjectScan) -> Result<(), DetectError> {
    if let Some(text) = scan.read("go.mod")? {
        module(scan, &text)?;
    } else if scan.has("go.work") {
        let because = FlakeReason::new("go.work", "use", None);
        scan.note(
            because.clone(),
            "a workspace without a module of its own has no package; the shell has what its modules need",
        );
        tools(scan, because);
    }
    Ok(())
}

fn module(scan: &mut ProjectScan, text: &str) -> Result<(), DetectError> {
    let lines = || {
        let lines = text.lines().enumerate();
        lines.map(|(at, line)| (at + 1, line.split("//").next().unwrap_or_default().trim()))
    };
    let value = |key: &str| {
        lines().find_map(|(at, line)| {
            let value = line.strip_prefix(key)?.strip_prefix([' ', '\t'])?;
            Some((at, value.trim().trim_matches(['"', '`']).to_owned()))
        })
    };
    let Some((line, path)) = value("module") else {
        return Err(scan.malformed("go.mod", 1, "no line says which module it is"));
    };
    let because = FlakeReason::new("go.mod", "module", line);
    let vendored = scan.has("vendor/modules.txt");
    let needs_others = lines().any(|(_, line)| line.starts_with("require"));
    let modules = if needs_others && !vendored {
        GoModules::Fetched
    } else {
        GoModules::AtHand
    };
    let version = VersionSource::Literal("0".to_owned());
    let by = PackageBuilder::Go { modules };
    scan.package(&module_name(&path), version, by, because.clone());
    if let Some(pin) = scan.take_pin("go") {
        let text = "the go of nixpkgs is taken, which may be newer";
        scan.note(pin.because, text);
    }
    tools(scan, because);
    Ok(())
}

/// The last part of a module's path that is no version.
fn module_name(path: &str) -> String {
    let is_version = |part: &str| {
        part.strip_prefix('v')
            .is_some_and(|digits| !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit()))
    };
    let mut parts = path.rsplit('/').filter(|part| !is_version(part));
    parts.next().unwrap_or(path).to_owned()
}

fn tools(scan: &mut ProjectScan, because: FlakeReason) {
    scan.tool("go", because.clone());
    scan.tool("gopls", because);
}
