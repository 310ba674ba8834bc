//! make: a Makefile on its own, or beside something else.

use super::{
    c_libraries,
    scan::{DetectError, ProjectScan},
};
use crate::flake_facts::{
    FlakeFactKind, FlakeReason, PackageBuilder, ProjectLanguage, VersionSource,
};

/// Notes what a Makefile needs. Beside another project it is what people type, not what builds it.
pub fn detect(scan: &mut ProjectScan) -> Result<(), DetectError> {
    let Some(file) = scan.first_of(&["GNUmakefile", "makefile", "Makefile"]) else {
        return Ok(());
    };
    let text = scan.read(file)?.unwrap_or_default();
    let because = FlakeReason::new(file, "", None);
    let is_alone = !scan.facts.iter().any(|fact| {
        matches!(
            fact.what,
            FlakeFactKind::Package { .. }
                | FlakeFactKind::BuildTool { .. }
                | FlakeFactKind::Tool(_)
        )
    });
    scan.tool("gnumake", because.clone());
    if !is_alone {
        return Ok(());
    }
    for (at, line) in text.lines().enumerate() {
        for module in pkg_config_modules(line) {
            let because = FlakeReason::new(file, format!("pkg-config {module}"), at + 1);
            scan.build_tool(ProjectLanguage::C, "pkg-config", because.clone());
            c_libraries::need(scan, module, because);
        }
    }
    let install = text.lines().position(|line| line.starts_with("install:"));
    match install {
        Some(at) => {
            let because = FlakeReason::new(file, "install", at + 1);
            let by = PackageBuilder::Stdenv { prefix: true };
            let version = VersionSource::Literal("0".to_owned());
            scan.package(&scan.folder_name(), version, by, because);
        }
        None => scan.note(
            because,
            "it has no target install, so the flake has a shell and no package",
        ),
    }
    Ok(())
}

/// The modules that a line asks pkg-config for.
fn pkg_config_modules(line: &str) -> impl Iterator<Item = &str> {
    let asked = line
        .split_once("pkg-config")
        .or_else(|| line.split_once("PKG_CONFIG)"));
    let words = asked.map_or("", |(_, rest)| {
        rest.split([')', '`', '|', ';', '#']).next().unwrap_or("")
    });
    let words = words.split_whitespace();
    words.filter(|word| {
        word.starts_with(|c: char| c.is_ascii_alphanumeric()) && !word.contains(['$', '='])
    })
}
