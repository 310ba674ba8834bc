//! `tk-bench compare`: the jobs, all contenders taking turns.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tk_instructions::codecs::Pass;
use tk_nar::fs::remove_tree;

use crate::contender::{self, Contender, Role};
use crate::contest::{Contest, Row, title};
use crate::corpus::{Corpus, Kind};
use crate::daemon::Daemon;
use crate::fresh::Fresh;
use crate::job::{Job, Task};
use crate::measure::{self, Sample, Surroundings};
use crate::network::Network;
use crate::place::Place;
use crate::report::{NO_SPACE, Outputs, Report, Skip};
use crate::small;
use crate::upkeep::Upkeep;

/// Run each job with ours and every rival in turn, and print medians and ratios, and how far each is from the limit.
///
/// Without --all only what needs no server and no daemon: small things in memory, trees and single paths.
#[derive(clap::Args)]
pub struct Compare {
    /// Everything: also copies of 500 paths to and from folders, nginx, S3 and a daemon. Takes hours at full size
    #[arg(long)]
    all: bool,
    /// What is worked on [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME", value_parser = corpora)]
    corpus: Vec<Corpora>,
    /// What is done with trees [default: all; unpack-tmpfs only with --all or --tmpfs]
    #[arg(long, value_delimiter = ',', value_name = "JOB")]
    jobs: Vec<Job>,
    /// Unpack in /dev/shm as well
    #[arg(long)]
    tmpfs: bool,
    /// Who takes part, by the beginning of the name, such as tk,nix-archive,"nix 2.34" [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    contenders: Vec<String>,
    /// How often each is measured, after one time to warm up
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// The share of the full corpora, for a quick try; figures of small ones mean little
    #[arg(long, default_value_t = 1.0, value_parser = share)]
    scale: f64,
    #[command(flatten)]
    outputs: Outputs,
    #[command(flatten)]
    place: Place,
}

impl Compare {
    /// False if something of ours failed; rivals that fail are named and left out.
    pub fn run(self) -> Result<bool> {
        if cfg!(debug_assertions) {
            eprintln!(
                "tk-bench: this is a debug build; its figures mean nothing (cargo run --release)"
            );
        }
        let (dir, tk_store) = self.place.find("bench-corpora")?;
        let (found, absent) = contender::find(&tk_store);
        let mut ring = Ring {
            around: Surroundings::new(dir.join("home"))?,
            fresh: Fresh::new(dir.join("fresh")),
            tmpfs: Fresh::new(PathBuf::from(format!(
                "/dev/shm/tk-bench-{}",
                std::process::id()
            ))),
            contenders: found
                .into_iter()
                .filter(|who| self.wants(&who.name()))
                .collect(),
            rounds: self.rounds,
            report: Report::new(self.scale),
            wants: &|name| self.wants(name),
            dir,
        };
        let absent = absent.into_iter().filter(|(name, _)| self.wants(name));
        ring.report
            .skips
            .extend(absent.map(|(who, why)| Skip::new(who, "all", why)));

        let kinds = Kind::ALL.into_iter().filter(|kind| self.takes(*kind));
        for kind in kinds {
            eprintln!("corpus {}", kind.name());
            match Corpus::make(kind, self.scale, &ring.dir.join("corpora")) {
                Ok(corpus) => {
                    self.contests(&mut ring, &corpus)?;
                    ring.report.corpora.push(corpus);
                }
                Err(error) if kind == Kind::Real => {
                    let why = format!("{error:#}");
                    ring.report.skips.push(Skip::new("everybody", "real", why));
                }
                Err(error) => return Err(error),
            }
        }
        if self.jobs.is_empty() {
            self.small(&mut ring.report);
        }
        if self.all {
            let dir = ring.dir.clone();
            self.copies(&mut ring.report, &dir, &tk_store);
        }
        ring.report.publish(&self.outputs)?;
        eprintln!("deleting what was filled");
        Ok(!ring.report.ours_failed)
    }

    /// What takes less than a process does, within this one.
    fn small(&self, report: &mut Report) {
        for mut small in small::contests() {
            small.entrants.retain(|who| self.wants(who.name));
            if small.entrants.is_empty() {
                continue;
            }
            let role = |name| match name {
                small::LINES | small::HEX => Role::Yardstick,
                name if name.starts_with("tk-") => Role::Ours,
                _ => Role::Rival,
            };
            let names = small.entrants.iter().map(|who| who.name);
            let rows = names.map(|name| Row::of_crate(name, role(name)));
            let contest = Contest {
                job: small.job,
                corpus: small.on,
                bytes: small.bytes,
                rounds: self.rounds,
                rows: rows.collect(),
            };
            report.hold(contest, |i, _| {
                Ok(Sample::of_time(seconds(
                    &mut small.entrants[i].pass,
                    small.times,
                )))
            });
        }
    }

    /// Copies of many paths. Where there is no daemon or no server, what needs it is skipped.
    fn copies(&self, report: &mut Report, dir: &Path, tk_store: &Path) {
        let (rounds, scale) = (self.rounds, self.scale);
        let network =
            Network::whole(rounds, scale).contests(&dir.join("network"), tk_store, report);
        let daemon = Daemon::whole(rounds, scale).contests(&dir.join("daemon"), tk_store, report);
        let upkeep = Upkeep::whole(rounds, scale).contests(&dir.join("upkeep"), tk_store, report);
        for (what, done) in [
            ("a large store", upkeep),
            ("folders, nginx and S3", network),
            ("daemon and ssh", daemon),
        ] {
            if let Err(error) = done {
                let skip = Skip::new("everybody", what, format!("{error:#}"));
                report.skips.push(skip);
            }
        }
    }

    fn contests(&self, ring: &mut Ring<'_>, corpus: &Corpus) -> Result<()> {
        let jobs = Job::ALL
            .into_iter()
            .filter(|job| self.does(*job) && job.is_for(corpus.kind));
        for job in jobs {
            ring.contest(job, corpus)?;
        }
        Ok(())
    }

    fn wants(&self, name: &str) -> bool {
        self.contenders.is_empty() || self.contenders.iter().any(|want| name.starts_with(want))
    }

    fn takes(&self, kind: Kind) -> bool {
        self.corpus.is_empty() || self.corpus.iter().any(|want| want.0.contains(&kind))
    }

    fn does(&self, job: Job) -> bool {
        match job {
            Job::UnpackTmpfs if self.tmpfs || self.all => true,
            _ if self.jobs.is_empty() => job != Job::UnpackTmpfs,
            _ => self.jobs.contains(&job),
        }
    }
}

/// Where contests happen.
struct Ring<'a> {
    dir: PathBuf,
    contenders: Vec<Contender>,
    rounds: u16,
    around: Surroundings,
    fresh: Fresh,
    tmpfs: Fresh,
    report: Report,
    /// Which limits take part, by their names.
    wants: &'a dyn Fn(&str) -> bool,
}

impl Ring<'_> {
    fn contest(&mut self, job: Job, corpus: &Corpus) -> Result<()> {
        let title = title(job.name(), corpus.kind.name());
        let tk_store = self.contenders.iter().find_map(|who| match who {
            Contender::TkStore(path) => Some(path.clone()),
            _ => None,
        });
        if job.needs_store() && tk_store.is_none() {
            let skip = Skip::new("everybody", title, "there is no tk-store to compare with");
            self.report.skips.push(skip);
            return Ok(());
        }
        let task = Task::prepare(job, corpus, &self.dir, tk_store.as_deref(), &self.around);
        let task = task.with_context(|| format!("preparing {title}"))?;
        let entrants = self.entrants(&task)?;
        let Some(rounds) = self.rounds_that_fit(&task, entrants.len())? else {
            let skip = Skip::new("everybody", title, NO_SPACE);
            self.report.skips.push(skip);
            return Ok(());
        };
        let contest = Contest {
            job: job.name(),
            corpus: corpus.kind.name().to_owned(),
            bytes: Some(corpus.nar_bytes).filter(|_| job != Job::PathInfo),
            rounds,
            rows: entrants.iter().map(Row::new).collect(),
        };
        let mut report = std::mem::take(&mut self.report);
        report.hold(contest, |i, warm_up| {
            self.turn(&task, &entrants[i], warm_up)
        });
        self.report = report;
        Ok(())
    }

    /// Those who can do the task. Of real Nix only the newest copies: the others would take minutes.
    fn entrants(&self, task: &Task) -> Result<Vec<Contender>> {
        let mut entrants = Vec::new();
        let limits = task.limits().into_iter().map(Contender::Limit);
        let limits: Vec<_> = limits.filter(|who| (self.wants)(&who.name())).collect();
        for who in self.contenders.iter().chain(&limits) {
            if task.run(who, Path::new(""))?.is_some() {
                entrants.push(who.clone());
            }
        }
        if task.job.copies() {
            let is_nix = |who: &Contender| matches!(who, Contender::Nix { .. });
            let newest = entrants.iter().rposition(is_nix);
            let mut i = 0..;
            entrants.retain(|who| i.next() == newest || !is_nix(who));
        }
        Ok(entrants)
    }

    /// One contender's work, once; its result is looked at when `check` says so.
    fn turn(&mut self, task: &Task, who: &Contender, check: bool) -> Result<measure::Sample> {
        let dest = match task.job {
            Job::UnpackTmpfs => self.tmpfs.next()?,
            job if job.writes() => self.fresh.next()?,
            _ => PathBuf::new(),
        };
        if task.job.writes() {
            self.fresh.settle(task.corpus.disk)?;
        }
        let run = task.run(who, &dest)?.context("cannot do this")?;
        let printed = match task.job {
            Job::Hash => self.dir.join("printed"),
            _ => PathBuf::from("/dev/null"),
        };
        let sample = measure::run(&run.cmd, &self.around, &printed)?;
        if check {
            task.check(&run.check, &printed)?;
        }
        if !self.stays(task) && dest.exists() {
            remove_tree(&dest)?;
        }
        Ok(sample)
    }

    /// Whether what is filled stays until later, see [`Fresh`].
    fn stays(&self, task: &Task) -> bool {
        let few = task.job.is_push() || task.corpus.entries < 1000;
        task.job.writes() && task.job != Job::UnpackTmpfs && !few
    }

    /// As many rounds as the disk has space for.
    fn rounds_that_fit(&mut self, task: &Task, entrants: usize) -> Result<Option<u16>> {
        let (stays, disk) = (self.stays(task), task.corpus.disk);
        let bytes = if stays { entrants as u64 * disk } else { disk };
        match task.job {
            Job::UnpackTmpfs => self.tmpfs.rounds_that_fit(self.rounds, bytes, stays),
            job if job.writes() => self.fresh.rounds_that_fit(self.rounds, bytes, stays),
            _ => Ok(Some(self.rounds)),
        }
    }
}

/// Seconds of one time, of which a pass has several, with enough passes for the clock.
fn seconds(pass: &mut Pass, times: u32) -> f64 {
    let (start, mut passes) = (Instant::now(), 0_u32);
    while passes == 0 || start.elapsed() < ENOUGH {
        black_box(pass());
        passes += 1;
    }
    start.elapsed().as_secs_f64() / f64::from(passes) / f64::from(times)
}

/// The names of everything that a whole run measures, and what it is done on.
#[cfg(test)]
pub fn all_contests() -> Vec<(String, String)> {
    let on = |job: Job| {
        let kinds = Kind::ALL.into_iter().filter(move |kind| job.is_for(*kind));
        kinds.map(move |kind| (job.name().to_owned(), kind.name().to_owned()))
    };
    let trees = Job::ALL.into_iter().flat_map(on);
    let small = small::contests()
        .into_iter()
        .map(|small| (small.job.to_owned(), small.on));
    let copies = crate::network::names()
        .chain(crate::daemon::names())
        .chain(crate::upkeep::names());
    let copies = copies.map(|name| (name.to_owned(), String::new()));
    trees.chain(small).chain(copies).collect()
}

/// A value of `--corpus`.
#[derive(Debug, Clone)]
struct Corpora(Vec<Kind>);

fn corpora(text: &str) -> Result<Corpora, String> {
    if text == "all" {
        return Ok(Corpora(Kind::ALL.to_vec()));
    }
    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == text);
    kind.map(|kind| Corpora(vec![kind]))
        .ok_or_else(|| "big, many, real or all".into())
}

fn share(text: &str) -> Result<f64, String> {
    let share = text
        .parse::<f64>()
        .ok()
        .filter(|share| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| "a number above 0 and up to 1".into())
}

/// How long one measurement of a small thing lasts.
const ENOUGH: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody is fast by doing something else.
    #[test]
    fn all_who_do_a_small_job_do_the_same() {
        for contest in small::contests() {
            let rivals = contest.entrants.into_iter();
            let rivals = rivals.filter(|who| ![small::LINES, small::HEX].contains(&who.name));
            let results: Vec<_> = rivals.map(|mut who| (who.pass)()).collect();
            let same = results.iter().all(|result| *result == results[0]);
            assert!(same, "{} {}: {results:?}", contest.job, contest.on);
        }
    }
}
