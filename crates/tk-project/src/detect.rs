//! What a project is, from its files.

mod c_libraries;
mod cargo_lock;
mod cmake;
mod go;
mod make;
mod meson;
mod node;
mod pins;
mod python;
mod rust;
mod rust_libraries;
mod scan;
mod toml_file;

pub use scan::{DetectError, ProjectNote};

use crate::flake_facts::{FlakeFact, FlakeFactKind, FlakeReason};
use scan::ProjectScan;
use std::path::Path;

/// What was found out about a project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectFindings {
    /// What the flake is made from, in the order of the flake.
    pub facts: Vec<FlakeFact>,
    /// What somebody should know or do, since no file says it.
    pub notes: Vec<ProjectNote>,
}

/// Looks at the files of the project in `folder`. Nothing outside of it is read, and nothing runs.
///
/// # Errors
/// Where there is no project, a file cannot be read, or one is not what its name says.
pub fn detect(folder: &Path) -> Result<ProjectFindings, DetectError> {
    let mut scan = ProjectScan::open(folder)?;
    pins::read(&mut scan)?;
    rust::detect(&mut scan)?;
    go::detect(&mut scan)?;
    node::detect(&mut scan)?;
    python::detect(&mut scan)?;
    cmake::detect(&mut scan)?;
    meson::detect(&mut scan)?;
    make::detect(&mut scan)?;
    pins::detect_rest(&mut scan);
    if scan.facts.is_empty() {
        return Err(DetectError::NoProject(folder.to_owned()));
    }
    describe(&mut scan);
    // Sorted, so that one more is one more line; of two reasons the first stands.
    let ProjectScan {
        mut facts, notes, ..
    } = scan;
    facts.sort_by(|a, b| a.what.cmp(&b.what));
    facts.dedup_by(|later, first| later.what == first.what);
    Ok(ProjectFindings { facts, notes })
}

/// The description: the name of the first package, or of the folder.
fn describe(scan: &mut ProjectScan) {
    let named = scan.facts.iter().find_map(|fact| match &fact.what {
        FlakeFactKind::Package { name, .. } => Some((name.clone(), fact.because.clone())),
        _ => None,
    });
    let (name, because) = named.unwrap_or_else(|| {
        let name = scan.folder_name();
        (name, FlakeReason::new("", "the folder's name", None))
    });
    scan.fact(FlakeFactKind::Description(name), because);
}
