//! What came out: a table for people, JSON for programs.

use std::fmt;
use std::fs;

use serde_json::{Value, json};

use crate::contender::Contender;
use crate::corpus::Corpus;
use crate::measure::Sample;

/// All of a run.
#[derive(Debug)]
pub struct Report {
    pub scale: f64,
    /// Of the last minute when the run began, by the kernel's count.
    pub load: Option<f64>,
    pub cores: usize,
    pub corpora: Vec<Corpus>,
    pub contests: Vec<Contest>,
    pub skips: Vec<Skip>,
    pub ours_failed: bool,
}

/// One job on one corpus.
#[derive(Debug)]
pub struct Contest {
    pub job: &'static str,
    pub corpus: &'static str,
    pub rounds: u16,
    pub rows: Vec<Row>,
}

/// One contender's figures.
#[derive(Debug)]
pub struct Row {
    pub name: String,
    pub ours: bool,
    pub program: bool,
    pub samples: Vec<Sample>,
}

/// What was not measured.
#[derive(Debug)]
pub struct Skip {
    pub who: String,
    pub what: String,
    pub why: String,
}

impl Skip {
    pub fn new(who: impl Into<String>, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            who: who.into(),
            what: what.into(),
            why: why.into(),
        }
    }
}

impl Row {
    pub fn new(who: &Contender) -> Self {
        Self {
            name: who.name(),
            ours: who.is_ours(),
            program: who.is_program(),
            samples: Vec::new(),
        }
    }

    /// A program that is no [`Contender`].
    pub fn named(name: String, ours: bool) -> Self {
        Self {
            name,
            ours,
            program: true,
            samples: Vec::new(),
        }
    }

    fn seconds(&self) -> f64 {
        median(self.samples.iter().map(|s| s.seconds))
    }

    fn cpu(&self) -> f64 {
        median(self.samples.iter().map(|s| s.cpu))
    }

    fn peak(&self) -> u64 {
        self.samples.iter().map(|s| s.peak).max().unwrap_or(0)
    }
}

impl Contest {
    /// Ours to which `row` is compared: the program for programs, the crate for crates, or what there is.
    fn reference(&self, row: &Row) -> Option<&Row> {
        let ours = || self.rows.iter().filter(|row| row.ours);
        ours()
            .find(|ours| ours.program == row.program)
            .or_else(|| ours().next())
    }
}

impl Report {
    pub fn new(scale: f64) -> Self {
        let load = fs::read_to_string("/proc/loadavg").ok();
        Self {
            scale,
            load: load.and_then(|text| text.split(' ').next()?.parse().ok()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            corpora: Vec::new(),
            contests: Vec::new(),
            skips: Vec::new(),
            ours_failed: false,
        }
    }

    /// Times in seconds, memory in bytes. More keys may be added.
    pub fn to_json(&self) -> Value {
        let corpora = self.corpora.iter().map(|corpus| {
            json!({
                "name": corpus.kind.name(),
                "entries": corpus.entries,
                "bytes": corpus.bytes,
                "narHash": corpus.hash.to_string(),
            })
        });
        let skips = self.skips.iter();
        let skips = skips.map(|s| json!({ "contender": s.who, "what": s.what, "why": s.why }));
        let results = self
            .contests
            .iter()
            .flat_map(|contest| contest.rows.iter().map(|row| result(contest, row)));
        json!({
            "scale": self.scale,
            "cores": self.cores,
            "loadAtStart": self.load,
            "corpora": corpora.collect::<Vec<_>>(),
            "results": results.collect::<Vec<_>>(),
            "skipped": skips.collect::<Vec<_>>(),
        })
    }
}

fn result(contest: &Contest, row: &Row) -> Value {
    let reference = contest.reference(row);
    let each = |figure: fn(&Sample) -> f64| row.samples.iter().map(figure).collect::<Vec<_>>();
    json!({
        "job": contest.job,
        "corpus": contest.corpus,
        "contender": row.name,
        "ours": row.ours,
        "rounds": contest.rounds,
        "median": row.seconds(),
        "comparedWith": reference.map(|ours| &ours.name),
        "oursByIt": reference.map(|ours| ours.seconds() / row.seconds()),
        "cpu": row.cpu(),
        "peak": row.peak(),
        "eachSeconds": each(|s| s.seconds),
        "eachCpu": each(|s| s.cpu),
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for corpus in &self.corpora {
            let (name, megabytes) = (corpus.kind.name(), corpus.bytes as f64 / 1e6);
            let entries = corpus.entries;
            writeln!(f, "{name}: {entries} files and folders, {megabytes:.1} MB")?;
        }
        writeln!(f, "{} cores, scale {}", self.cores, self.scale)?;
        if let Some(load) = self.load.filter(|load| *load > self.cores as f64 / 4.0) {
            writeln!(
                f,
                "The machine was busy when this began (load {load}): believe only clear ratios."
            )?;
        }
        for contest in &self.contests {
            write!(f, "\n{contest}")?;
        }
        if !self.skips.is_empty() {
            writeln!(f, "\nskipped")?;
        }
        for skip in &self.skips {
            writeln!(f, "  {}, {}: {}", skip.who, skip.what, skip.why)?;
        }
        Ok(())
    }
}

impl fmt::Display for Contest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {}, {} rounds", self.job, self.corpus, self.rounds)?;
        let heads = [
            "median s", "lowest", "highest", "it/ours", "ours/it", "CPU s", "peak MiB",
        ];
        write!(f, "  {:14}", "")?;
        for head in heads {
            write!(f, "{head:>10}")?;
        }
        writeln!(f)?;
        for row in &self.rows {
            let seconds = || row.samples.iter().map(|s| s.seconds);
            let (lowest, highest) = (
                seconds().fold(f64::MAX, f64::min),
                seconds().fold(0.0, f64::max),
            );
            let ours = self.reference(row).map_or(f64::NAN, Row::seconds);
            let (it, cpu, peak) = (
                row.seconds(),
                row.cpu(),
                row.peak() as f64 / (1 << 20) as f64,
            );
            writeln!(
                f,
                "{} {:14}{it:10.3}{lowest:10.3}{highest:10.3}{:10.2}{:10.2}{cpu:10.3}{peak:10.1}",
                if row.ours { '*' } else { ' ' },
                row.name,
                it / ours,
                ours / it,
            )?;
        }
        Ok(())
    }
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

    fn row(name: &str, ours: bool, program: bool, seconds: &[f64]) -> Row {
        let sample = |seconds: &f64| Sample {
            seconds: *seconds,
            cpu: 0.5,
            peak: 3 << 20,
        };
        Row {
            name: name.into(),
            ours,
            program,
            samples: seconds.iter().map(sample).collect(),
        }
    }

    #[test]
    fn medians() {
        assert!(median([].into_iter()).is_nan());
        assert_eq!(median([3.0].into_iter()), 3.0);
        assert_eq!(median([9.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 9.0].into_iter()), 3.0);
    }

    #[test]
    fn programs_are_compared_with_our_program_and_crates_with_our_crate() {
        let contest = Contest {
            job: "hash",
            corpus: "many",
            rounds: 1,
            rows: vec![
                row("tk-nar", true, false, &[1.0]),
                row("tk-store", true, true, &[2.0]),
                row("nix", false, true, &[8.0]),
                row("nix-archive", false, false, &[3.0]),
            ],
        };
        let ratio = |i: usize| result(&contest, &contest.rows[i])["oursByIt"].as_f64();
        assert_eq!(
            [ratio(0), ratio(1), ratio(2), ratio(3)],
            [1.0, 1.0, 0.25, 1.0 / 3.0].map(Some)
        );
        let text = contest.to_string();
        assert!(text.contains("4.00"), "{text}");
    }
}
