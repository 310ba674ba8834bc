//! What the tests share: visible skips, tables for the report, golden data, real Nix.

pub mod daemon;
pub mod machine;
pub mod made;
mod rig;
pub mod servers;
pub mod shelf;
mod tally;
pub mod trees;
mod vectors;

pub use daemon::RigDaemon;
pub use rig::{Rig, VERSIONS, rig};
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

use std::{
    env,
    fs::OpenOptions,
    io::{self, Write},
    thread,
};

/// Says that `name` was not tested, and why: on the real stderr, which the test harness does not
/// capture, and for the sum that `tests/run` prints, where the running test does not count as passed.
pub fn skip(name: &str, reason: &str) {
    let line = |text: &str| text.replace(['\t', '\n'], " ");
    let (name, reason) = (line(name), line(reason));
    let _ = io::stderr().write_all(format!("skipped: {name}: {reason}\n").as_bytes());
    if let Some(file) = env::var_os("TK_SKIPS") {
        let text = format!("{name}\t{reason}\t{}\n", test_name());
        append(file.as_ref(), &text);
    }
}

/// Shows `table` at the end of `tests/run`, under `name`; on its own to stderr.
pub fn report(name: &str, table: &str) {
    match env::var_os("TK_REPORTS") {
        Some(folder) => append(&std::path::Path::new(&folder).join(name), table),
        None => {
            let _ = io::stderr().write_all(format!("\n{name}\n{table}").as_bytes());
        }
    }
}

/// Whether the user asked for the short run.
pub fn quick() -> bool {
    env::var_os("TK_QUICK").is_some_and(|value| !value.is_empty())
}

/// The name of the running test.
pub fn test_name() -> String {
    thread::current().name().unwrap_or("a test").to_owned()
}

fn append(file: &std::path::Path, text: &str) {
    // One write a line: tests of several processes append to the same file.
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .unwrap_or_else(|e| panic!("cannot write {}: {e}", file.display()));
}
