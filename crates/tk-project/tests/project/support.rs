//! What the tests share with those of the whole house: visible skips, real Nix.

#[path = "../../../../tests/support/rig.rs"]
mod rig;
#[path = "../../../../tests/support/skips.rs"]
mod skips;

pub use rig::{Rig, VERSIONS, rig};
pub use skips::{skip, test_name};

/// How many generated cases: `TK_CASES`, or `usual`.
pub fn cases(usual: usize) -> usize {
    let given = std::env::var("TK_CASES").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(usual)
}
