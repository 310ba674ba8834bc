//! What came out: a table for people, JSON for programs.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::contest::{Contest, Row, title};
use crate::corpus::Corpus;
use crate::marks;
use crate::measure::Sample;
use crate::plot;

/// All of a run.
#[derive(Debug, Default)]
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

    /// Notes who is not there, of those whom it concerns.
    pub fn skip_absent(&mut self, absent: Vec<(&str, String)>, whom: &[&str]) {
        let concerned = absent.into_iter().filter(|(who, _)| whom.contains(who));
        self.skips
            .extend(concerned.map(|(who, why)| Skip::new(who, "all", why)));
    }

    /// Has the rows of `contest` take turns, once to warm up and then as often as there are rounds, and keeps their samples.
    ///
    /// `turn` gets the place of a row and whether it is the warm-up. Who fails is out, and named under what was skipped.
    pub fn hold(
        &mut self,
        mut contest: Contest,
        mut turn: impl FnMut(usize, bool) -> Result<Sample>,
    ) {
        let title = title(contest.job, &contest.corpus);
        let mut active: Vec<_> = (0..contest.rows.len()).collect();
        eprint!("{title}: warm-up");
        for round in 0..=usize::from(contest.rounds) {
            if round > 0 {
                eprint!(", {round}");
            }
            // Each round begins with another one, so that nobody always comes after the same one.
            let count = active.len();
            let order: Vec<_> = (0..count).map(|i| active[(i + round) % count]).collect();
            for i in order {
                let row = &mut contest.rows[i];
                match turn(i, round == 0) {
                    Ok(sample) if round > 0 => row.samples.push(sample),
                    Ok(_) => (),
                    Err(error) => {
                        eprint!(" [{} failed]", row.name);
                        self.ours_failed |= row.is_ours();
                        self.skips
                            .push(Skip::new(&row.name, &title, format!("{error:#}")));
                        active.retain(|other| *other != i);
                    }
                }
            }
        }
        eprintln!();
        let mut i = 0..;
        contest
            .rows
            .retain(|_| i.next().is_some_and(|i| active.contains(&i)));
        self.contests.push(contest);
    }

    /// Prints the tables, and writes JSON and the picture where that is asked for.
    pub fn publish(&self, outputs: &Outputs) -> Result<()> {
        print!("{self}");
        let value = self.to_json();
        if let Some(file) = &outputs.json {
            let text = format!("{value:#}\n");
            fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
        }
        match &outputs.svg {
            Some(file) => plot::write(&value, file),
            None => Ok(()),
        }
    }

    /// Described in README.md: times in seconds, memory in bytes. More keys may be added.
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
        let marks = marks::judge(&self.contests)
            .into_iter()
            .map(|judged| judged.to_json());
        json!({
            "schema": SCHEMA,
            "scale": self.scale,
            "cores": self.cores,
            "loadAtStart": self.load,
            "corpora": corpora.collect::<Vec<_>>(),
            "results": results.collect::<Vec<_>>(),
            "marks": marks.collect::<Vec<_>>(),
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
        "bytes": contest.bytes,
        "contender": row.name,
        "role": row.role.name(),
        "ours": row.is_ours(),
        "rounds": contest.rounds,
        "median": row.seconds(),
        "comparedWith": reference.map(|ours| &ours.name),
        "oursByIt": reference.map(|ours| ours.seconds() / row.seconds()),
        "itByLimit": contest.limit().map(|limit| row.seconds() / limit),
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
        marks::table(&marks::judge(&self.contests), f)?;
        if !self.skips.is_empty() {
            writeln!(f, "\nskipped")?;
        }
        for skip in &self.skips {
            writeln!(f, "  {}, {}: {}", skip.who, skip.what, skip.why)?;
        }
        Ok(())
    }
}

/// Where the figures go beside the terminal.
#[derive(Debug, Clone, clap::Args)]
pub struct Outputs {
    /// Write all figures to FILE too
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw them to FILE too
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// Why a contest does not begin.
pub const NO_SPACE: &str = "the disk has not enough space";
/// Of the JSON; counts up when a key changes its meaning or goes.
const SCHEMA: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contender::Role;

    fn row(name: &str, role: Role, program: bool, seconds: &[f64]) -> Row {
        let sample = |seconds: &f64| Sample {
            seconds: *seconds,
            cpu: 0.5,
            peak: 3 << 20,
        };
        Row {
            program,
            samples: seconds.iter().map(sample).collect(),
            ..Row::named(name, role)
        }
    }

    #[test]
    fn programs_are_compared_with_our_program_and_crates_with_our_crate() {
        let contest = Contest {
            job: "hash",
            corpus: "many".into(),
            bytes: None,
            rounds: 1,
            rows: vec![
                row("tk-nar", Role::Ours, false, &[1.0]),
                row("tk-store", Role::Ours, true, &[2.0]),
                row("nix", Role::Rival, true, &[8.0]),
                row("nix-archive", Role::Rival, false, &[3.0]),
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

    #[test]
    fn the_slowest_limit_counts() {
        let contest = Contest {
            job: "push",
            corpus: String::new(),
            bytes: None,
            rounds: 1,
            rows: vec![
                row("tk-store", Role::Ours, true, &[2.0]),
                row("limit: SHA-256", Role::Limit, true, &[0.5]),
                row("limit: zstd", Role::Limit, true, &[1.6]),
            ],
        };
        assert_eq!(result(&contest, &contest.rows[0])["itByLimit"], 1.25);
    }

    #[test]
    fn short_times_are_shown_in_short_units() {
        let contest = |seconds| Contest {
            job: "parse",
            corpus: String::new(),
            bytes: None,
            rounds: 1,
            rows: vec![row("tk-path", Role::Ours, false, &[seconds])],
        };
        let shown = |seconds| contest(seconds).unit().0;
        assert_eq!([shown(4e-8), shown(2e-5), shown(0.02)], ["ns", "µs", "s"]);
    }

    #[test]
    fn turns_are_taken_and_who_fails_is_out() {
        let names = ["tk-store", "nix", "tar"];
        let contest = Contest {
            job: "dump",
            corpus: "many".into(),
            bytes: None,
            rounds: 2,
            rows: names.map(|name| Row::named(name, Role::Rival)).into(),
        };
        let (mut report, mut order) = (Report::new(1.0), Vec::new());
        report.hold(contest, |i, warm_up| {
            order.push((i, warm_up));
            anyhow::ensure!(order.len() != 5, "out of luck");
            Ok(Sample::of_time(order.len() as f64))
        });
        let whom = order.iter().map(|(i, _)| *i);
        assert_eq!(whom.collect::<Vec<_>>(), [0, 1, 2, 1, 2, 0, 0, 1]);
        assert!(order.iter().take(3).all(|(_, warm_up)| *warm_up));
        let rows = &report.contests[0].rows;
        let left: Vec<_> = rows
            .iter()
            .map(|row| (&row.name[..], row.samples.len()))
            .collect();
        assert_eq!(left, [("tk-store", 2), ("nix", 2)]);
        let skip = &report.skips[0];
        assert_eq!((&skip.who[..], &skip.why[..]), ("tar", "out of luck"));
        assert!(!report.ours_failed);
    }
}
