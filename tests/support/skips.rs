//! What a test says beside passing: what it skipped and why, and tables for the report.
#![allow(dead_code, reason = "each test uses its part")]

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
