//! One job done by several in turn, and their figures.

use std::fmt;

use crate::contender::{Contender, Role};
use crate::measure::Sample;

/// One job on one corpus.
#[derive(Debug)]
pub struct Contest {
    pub job: &'static str,
    /// What it is done on; empty where the name of the job says it.
    pub corpus: String,
    /// What is worked on, where throughput means something.
    pub bytes: Option<u64>,
    pub rounds: u16,
    pub rows: Vec<Row>,
}

/// One contender's figures.
#[derive(Debug)]
pub struct Row {
    pub name: String,
    pub role: Role,
    pub program: bool,
    pub samples: Vec<Sample>,
}

impl Row {
    pub fn new(who: &Contender) -> Self {
        Self {
            program: who.is_program(),
            ..Self::named(who.name(), who.role())
        }
    }

    /// A program that is no [`Contender`].
    pub fn named(name: impl Into<String>, role: Role) -> Self {
        Self {
            name: name.into(),
            role,
            program: true,
            samples: Vec::new(),
        }
    }

    /// A crate that is measured in this process.
    pub fn of_crate(name: impl Into<String>, role: Role) -> Self {
        Self {
            program: false,
            ..Self::named(name, role)
        }
    }

    pub fn is_ours(&self) -> bool {
        self.role == Role::Ours
    }

    /// The median; NaN if nothing was measured.
    pub fn seconds(&self) -> f64 {
        median(self.samples.iter().map(|s| s.seconds))
    }

    pub fn cpu(&self) -> f64 {
        median(self.samples.iter().map(|s| s.cpu))
    }

    /// Bytes, of the worst round.
    pub fn peak(&self) -> u64 {
        self.samples.iter().map(|s| s.peak).max().unwrap_or(0)
    }
}

impl Contest {
    /// Ours to which `row` is compared: the program for programs, the crate for crates, or what there is.
    pub fn reference(&self, row: &Row) -> Option<&Row> {
        let ours = || self.rows.iter().filter(|row| row.is_ours());
        ours()
            .find(|ours| ours.program == row.program)
            .or_else(|| ours().next())
    }

    /// The slowest of the limits: each of them has to be done.
    pub fn limit(&self) -> Option<f64> {
        let limits = self.rows.iter().filter(|row| row.role == Role::Limit);
        limits
            .map(Row::seconds)
            .filter(|seconds| seconds.is_finite())
            .max_by(f64::total_cmp)
    }

    /// The unit in which its times are easily read, and how many of it make a second.
    pub fn unit(&self) -> (&'static str, f64) {
        let times = self
            .rows
            .iter()
            .map(Row::seconds)
            .filter(|time| time.is_finite());
        match times.fold(0.0, f64::max) {
            time if time < 2e-6 => ("ns", 1e9),
            time if time < 2e-3 => ("µs", 1e6),
            _ => ("s", 1.0),
        }
    }
}

impl fmt::Display for Contest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}, {} rounds",
            title(self.job, &self.corpus),
            self.rounds
        )?;
        let (unit, scale) = self.unit();
        let (median, cpu) = (format!("median {unit}"), format!("CPU {unit}"));
        let heads = [
            &median, "lowest", "highest", "it/ours", "ours/it", "it/limit", &cpu, "peak MiB",
        ];
        write!(f, "  {:22}", "")?;
        for head in heads {
            write!(f, "{head:>10}")?;
        }
        writeln!(f)?;
        for row in &self.rows {
            let seconds = || row.samples.iter().map(|s| s.seconds * scale);
            let lowest = seconds().fold(f64::INFINITY, f64::min);
            let highest = seconds().fold(0.0, f64::max);
            let ours = self.reference(row).map_or(f64::NAN, Row::seconds);
            let (it, cpu) = (row.seconds(), row.cpu() * scale);
            write!(
                f,
                "{} {:22}{:10.3}{lowest:10.3}{highest:10.3}{:10.2}{:10.2}",
                row.role.mark(),
                row.name,
                it * scale,
                it / ours,
                ours / it,
            )?;
            match self.limit() {
                Some(limit) => write!(f, "{:10.2}", it / limit)?,
                None => write!(f, "{:>10}", "")?,
            }
            let peak = row.peak() as f64 / (1 << 20) as f64;
            writeln!(f, "{cpu:10.3}{peak:10.1}")?;
        }
        Ok(())
    }
}

/// The name of a contest for people.
pub fn title(job: &str, corpus: &str) -> String {
    format!("{job} {corpus}").trim_end().to_owned()
}

/// The one of `contests` that is of that job.
pub fn find<'a>(contests: &'a [Contest], job: &str, corpus: &str) -> Option<&'a Contest> {
    let named = |contest: &&Contest| contest.job == job && contest.corpus == corpus;
    contests.iter().find(named)
}

/// The middle value, or the mean of the two in the middle; NaN of nothing.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => f64::NAN,
        (n, half) if n % 2 == 1 => values[half],
        (_, half) => (values[half - 1] + values[half]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!(median([].into_iter()).is_nan());
        assert_eq!(median([3.0].into_iter()), 3.0);
        assert_eq!(median([9.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 9.0].into_iter()), 3.0);
    }
}
