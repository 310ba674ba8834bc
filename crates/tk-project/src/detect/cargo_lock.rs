//! Cargo.lock: what the crates of a project need.

use super::{
    rust_libraries::{crate_needs, needs_nothing},
    scan::ProjectScan,
    toml_file::TomlFile,
};
use crate::flake_facts::ProjectLanguage;

/// Notes the libraries and tools that the crates in `lock` need.
pub fn needs(scan: &mut ProjectScan, lock: &TomlFile) {
    let packages = lock.get("package");
    for package in packages
        .into_iter()
        .flat_map(|packages| packages.elements())
    {
        let Some(name) = package.get("name").and_then(|name| name.string()) else {
            continue;
        };
        let because = package.reason(name);
        if let Some(needs) = crate_needs(name) {
            for library in needs.libraries {
                scan.library(ProjectLanguage::Rust, library, because.clone());
            }
            for tool in needs.tools {
                scan.build_tool(ProjectLanguage::Rust, tool, because.clone());
            }
        } else if name.ends_with("-sys") && !needs_nothing(name) {
            scan.note(
                because,
                "this crate may need a C library that is not known here: if so, add it to buildInputs",
            );
        }
    }
}

/// Whether any source is a git repository.
pub fn has_git_sources(lock: &TomlFile) -> bool {
    let packages = lock.get("package");
    let mut packages = packages
        .into_iter()
        .flat_map(|packages| packages.elements());
    packages.any(|package| {
        let source = package.get("source").and_then(|source| source.string());
        source.is_some_and(|source| source.starts_with("git+"))
    })
}
