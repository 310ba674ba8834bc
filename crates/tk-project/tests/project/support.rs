//! What the tests share with those of the whole house: visible skips, real Nix.

#[path = "../../../../tests/support/rig.rs"]
mod rig;
#[path = "../../../../tests/support/skips.rs"]
mod skips;

pub use rig::{Rig, VERSIONS, rig};
pub use skips::{skip, test_name};

use std::path::Path;

/// The parser of each version of real Nix takes the files `names` in `folder`.
pub fn every_nix_parses(folder: &Path, names: &[String]) {
    for version in VERSIONS {
        let Some(rig) = rig(version) else { continue };
        let mut command = rig.command("nix-instantiate");
        command.args(["--parse", "--store", "dummy://"]).args(names);
        let parsed = rig.try_run(command.current_dir(folder));
        parsed.unwrap_or_else(|e| panic!("{e}"));
    }
}

/// How many generated cases: `TK_CASES`, or `usual`.
pub fn cases(usual: usize) -> usize {
    let given = std::env::var("TK_CASES").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(usual)
}
