//! Counts of what ran, row by row: a table that passes only if nothing failed.

use super::{report, skip};
use std::fmt::Write as _;

/// A table in the making. Every row is named in advance, so that one which finds nothing to test
/// is seen.
pub struct Tally {
    title: String,
    rows: Vec<(String, usize, usize)>,
    failures: Vec<String>,
}

impl Tally {
    /// A table with empty `rows`.
    pub fn new(title: &str, rows: &[&str]) -> Self {
        Tally {
            title: title.to_owned(),
            rows: rows.iter().map(|row| ((*row).to_owned(), 0, 0)).collect(),
            failures: Vec::new(),
        }
    }

    /// Runs one case of `row`; an error is kept for the end, so that one bad file hides no other.
    pub fn case(&mut self, row: &str, what: &str, case: impl FnOnce() -> Result<(), String>) {
        let result = case();
        let found = self.rows.iter_mut().find(|(name, ..)| name == row);
        let (_, ran, failed) = found.unwrap_or_else(|| panic!("no row {row}"));
        *ran += 1;
        if let Err(error) = result {
            *failed += 1;
            self.failures.push(format!("{row}: {what}: {error}"));
        }
    }

    /// Compares, for [`case`](Self::case).
    pub fn equal<T: PartialEq + std::fmt::Debug>(
        &mut self,
        row: &str,
        what: &str,
        got: T,
        want: T,
    ) {
        self.case(row, what, || equal(got, want));
    }

    /// Reports the table; empty rows are skips.
    ///
    /// # Panics
    /// When a case failed.
    pub fn finish(self) {
        let mut table = String::new();
        for (name, ran, failed) in &self.rows {
            let bad = match failed {
                0 => String::new(),
                n => format!(", {n} FAILED"),
            };
            writeln!(table, "  {name:<58} {ran:>5}{bad}").expect("strings take all");
            if *ran == 0 {
                skip(
                    &format!("{}: {name}", self.title),
                    "nothing of this kind is there",
                );
            }
        }
        report(&self.title, &table);
        let (count, list) = (self.failures.len(), self.failures.join("\n"));
        assert!(count == 0, "{}: {count} failed:\n{list}", self.title);
    }
}

/// Whether `got` is `want`, as the result of a case.
pub fn equal<T: PartialEq + std::fmt::Debug>(got: T, want: T) -> Result<(), String> {
    if got == want {
        return Ok(());
    }
    let (mut got, mut want) = (format!("{got:?}"), format!("{want:?}"));
    for text in [&mut got, &mut want] {
        if text.len() > LONG {
            *text = text.chars().take(LONG).chain("...".chars()).collect();
        }
    }
    Err(format!("got {got}, expected {want}"))
}

/// Values are cut here in messages, in bytes.
const LONG: usize = 2000;
