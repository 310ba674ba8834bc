//! meson: meson.build.

use super::{
    c_libraries,
    scan::{DetectError, ProjectScan, line_of},
};
use crate::flake_facts::{FlakeReason, PackageBuilder, ProjectLanguage, VersionSource};

/// Notes what a meson project needs.
pub fn detect(scan: &mut ProjectScan) -> Result<(), DetectError> {
    let Some(text) = scan.read(FILE)? else {
        return Ok(());
    };
    for tool in ["meson", "ninja"] {
        scan.build_tool(ProjectLanguage::C, tool, FlakeReason::new(FILE, "", None));
    }
    for (line, name) in calls(&text, "dependency") {
        let because = FlakeReason::new(FILE, format!("dependency({name:?})"), line);
        scan.build_tool(ProjectLanguage::C, "pkg-config", because.clone());
        c_libraries::need(scan, &name, because);
    }
    let Some((line, name)) = calls(&text, "project").into_iter().next() else {
        return Err(scan.malformed(FILE, 1, "it does not begin with project('…')"));
    };
    if scan.has_package(ProjectLanguage::C) {
        return Ok(());
    }
    let version = version(&text).unwrap_or_else(|| "0".to_owned());
    let because = FlakeReason::new(FILE, "project", line);
    let by = PackageBuilder::Stdenv { prefix: false };
    scan.package(&name, VersionSource::Literal(version), by, because);
    Ok(())
}

/// The first argument of each call of `function` whose first argument is a plain string, and its line.
fn calls(text: &str, function: &str) -> Vec<(usize, String)> {
    let found = text.match_indices(function).filter_map(|(at, _)| {
        let line_start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let before = &text[line_start..at];
        let is_part = before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.');
        if is_part || before.contains('#') {
            return None;
        }
        let rest = text[at + function.len()..].trim_start().strip_prefix('(')?;
        let rest = rest.trim_start().strip_prefix('\'')?;
        let (argument, _) = rest.split_once('\'')?;
        Some((line_of(text, at), argument.to_owned()))
    });
    found.collect()
}

/// `version : '…'` of the project.
fn version(text: &str) -> Option<String> {
    let start = text.find("project")?;
    let end = start + text[start..].find(')')?;
    let (_, rest) = text[start..end].split_once("version")?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start();
    let (version, _) = rest.strip_prefix('\'')?.split_once('\'')?;
    Some(version.to_owned())
}

const FILE: &str = "meson.build";
