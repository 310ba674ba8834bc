//! What the tests of both packages of benches share.

use std::fs::File;
use std::io::Write;

/// As the tests of the whole do: seen by the user, and counted by tests/run.
pub fn skip(name: &str, reason: &str) {
    let _ = std::io::stderr().write_all(format!("skipped: {name}: {reason}\n").as_bytes());
    if let Some(file) = std::env::var_os("TK_SKIPS") {
        let file = File::options().create(true).append(true).open(file);
        let test = std::thread::current();
        let line = format!("{name}\t{reason}\t{}\n", test.name().unwrap_or(name));
        file.unwrap().write_all(line.as_bytes()).unwrap();
    }
}
