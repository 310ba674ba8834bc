//! What the tests share: visible skips, tables for the report, golden data, real Nix.

pub mod daemon;
pub mod machine;
pub mod made;
mod rig;
pub mod servers;
pub mod shelf;
mod skips;
mod tally;
pub mod trees;
mod vectors;

pub use daemon::RigDaemon;
pub use rig::{Rig, VERSIONS, rig};
pub use skips::{quick, report, skip, test_name};
pub use tally::{Tally, equal};
pub use vectors::{Golden, Vectors};

/// Makes a test for each of [`VERSIONS`] of a function that takes one, so that they run beside each other and are
/// reported one by one: `NAME::nix_2_8`, and so on.
#[allow(unused_macros, reason = "each test uses its part")]
macro_rules! each_version {
    ($test:ident) => {
        mod $test {
            #[test]
            fn nix_2_8() {
                super::$test("2.8");
            }
            #[test]
            fn nix_2_26() {
                super::$test("2.26");
            }
            #[test]
            fn nix_2_34() {
                super::$test("2.34");
            }
        }
    };
    (async $test:ident) => {
        mod $test {
            #[tokio::test(flavor = "multi_thread")]
            async fn nix_2_8() {
                super::$test("2.8").await;
            }
            #[tokio::test(flavor = "multi_thread")]
            async fn nix_2_26() {
                super::$test("2.26").await;
            }
            #[tokio::test(flavor = "multi_thread")]
            async fn nix_2_34() {
                super::$test("2.34").await;
            }
        }
    };
}
#[allow(unused_imports, reason = "each test uses its part")]
pub(crate) use each_version;
