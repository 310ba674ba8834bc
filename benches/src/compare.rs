//! `tk-bench compare`: the jobs, all contenders taking turns.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tk_nar::fs::remove_tree;

use crate::contender::{self, Contender};
use crate::corpus::{Corpus, Kind};
use crate::job::{Job, Task};
use crate::measure::{self, Surroundings};
use crate::report::{Contest, Report, Row, Skip};

/// Run each job with ours and every rival in turn, and print medians and ratios.
#[derive(clap::Args)]
pub struct Compare {
    /// What is worked on [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME", value_parser = corpora)]
    corpus: Vec<Corpora>,
    /// What is done [default: all but unpack-tmpfs]
    #[arg(
        long,
        visible_alias = "jobs-list",
        value_delimiter = ',',
        value_name = "JOB"
    )]
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
    /// Write all figures to FILE too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where corpora are kept and folders are filled [default: target/bench-corpora]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Our program, a release build [default: beside this one]
    #[arg(long, value_name = "PATH")]
    tk_store: Option<PathBuf>,
}

impl Compare {
    /// False if something of ours failed; rivals that fail are named and left out.
    pub fn run(self) -> Result<bool> {
        if cfg!(debug_assertions) {
            eprintln!(
                "tk-bench: this is a debug build; its figures mean nothing (cargo run --release)"
            );
        }
        let exe = std::env::current_exe()?;
        let target = exe
            .parent()
            .and_then(Path::parent)
            .context("where is this program?")?;
        let dir = self
            .work
            .clone()
            .unwrap_or_else(|| target.join("bench-corpora"));
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let dir = dir.canonicalize()?;

        let tk_store = self
            .tk_store
            .clone()
            .unwrap_or_else(|| exe.with_file_name("tk-store"));
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
        print!("{}", ring.report);
        if let Some(file) = &self.json {
            let out = File::create(file).with_context(|| format!("making {}", file.display()))?;
            serde_json::to_writer_pretty(out, &ring.report.to_json())?;
        }
        eprintln!("deleting what was filled");
        Ok(!ring.report.ours_failed)
    }

    fn contests(&self, ring: &mut Ring, corpus: &Corpus) -> Result<()> {
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
            Job::UnpackTmpfs if self.tmpfs => true,
            _ if self.jobs.is_empty() => job != Job::UnpackTmpfs,
            _ => self.jobs.contains(&job),
        }
    }
}

/// Where contests happen.
#[derive(Debug)]
struct Ring {
    dir: PathBuf,
    contenders: Vec<Contender>,
    rounds: u16,
    around: Surroundings,
    fresh: Fresh,
    tmpfs: Fresh,
    report: Report,
}

impl Ring {
    fn contest(&mut self, job: Job, corpus: &Corpus) -> Result<()> {
        let title = format!("{} {}", job.name(), corpus.kind.name());
        let tk_store = self.contenders.iter().find_map(|who| match who {
            Contender::TkStore(path) => Some(path.clone()),
            _ => None,
        });
        if job.copies() && tk_store.is_none() {
            let skip = Skip::new("everybody", title, "there is no tk-store to compare with");
            self.report.skips.push(skip);
            return Ok(());
        }
        let task = Task::prepare(job, corpus, &self.dir, tk_store.as_deref(), &self.around);
        let task = task.with_context(|| format!("preparing {title}"))?;
        let mut entrants = self.entrants(&task)?;
        let Some(rounds) = self.rounds_that_fit(&task, entrants.len(), &title)? else {
            return Ok(());
        };
        let mut rows: Vec<_> = entrants.iter().map(Row::new).collect();
        eprint!("{title}: warm-up");
        for round in 0..=usize::from(rounds) {
            if round > 0 {
                eprint!(", {round}");
            }
            // Each round begins with another one, so that nobody always comes after the same one.
            let mut failed = Vec::new();
            for i in (0..entrants.len()).map(|i| (i + round) % entrants.len()) {
                match self.turn(&task, &entrants[i], round == 0) {
                    Ok(sample) if round > 0 => rows[i].samples.push(sample),
                    Ok(_) => (),
                    Err(error) => {
                        eprint!(" [{} failed]", entrants[i].name());
                        self.report.ours_failed |= entrants[i].is_ours();
                        let why = format!("{error:#}");
                        self.report
                            .skips
                            .push(Skip::new(entrants[i].name(), &title, why));
                        failed.push(i);
                    }
                }
            }
            failed.sort_unstable();
            for i in failed.into_iter().rev() {
                entrants.remove(i);
                rows.remove(i);
            }
        }
        eprintln!();
        self.report.contests.push(Contest {
            job: job.name(),
            corpus: corpus.kind.name(),
            rounds,
            rows,
        });
        Ok(())
    }

    /// Those who can do the task. Of real Nix only the newest copies: the others would take minutes.
    fn entrants(&self, task: &Task) -> Result<Vec<Contender>> {
        let mut entrants = Vec::new();
        for who in &self.contenders {
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
        if task.job.writes() && task.corpus.disk > MUCH {
            // So that nobody has to wait until what the one before left is written.
            rustix::fs::syncfs(File::open(&self.dir)?)?;
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

    /// Whether what is filled stays until later: deleting many files makes ext4 slow at creating new ones for a minute
    /// or more.
    fn stays(&self, task: &Task) -> bool {
        let few = task.job.is_push() || task.corpus.entries < 1000;
        task.job.writes() && task.job != Job::UnpackTmpfs && !few
    }

    /// As many rounds as the disk has space for. If that is not all, what stayed is deleted, and forgotten by ext4.
    fn rounds_that_fit(
        &mut self,
        task: &Task,
        entrants: usize,
        title: &str,
    ) -> Result<Option<u16>> {
        if !task.job.writes() {
            return Ok(Some(self.rounds));
        }
        let place = match task.job {
            Job::UnpackTmpfs => PathBuf::from("/dev/shm"),
            _ => self.dir.clone(),
        };
        let turns = if self.stays(task) { entrants as u64 } else { 1 };
        let fit = || -> Result<u64> {
            let fs = rustix::fs::statvfs(&place)?;
            let free = (fs.f_bavail * fs.f_frsize).saturating_sub(SPARE);
            Ok(free / (turns * task.corpus.disk).max(1))
        };
        let wanted = match self.stays(task) {
            true => u64::from(self.rounds) + 1,
            false => 1,
        };
        if fit()? < wanted && self.fresh.clear()? {
            eprintln!("deleted what was filled, and waiting");
            rustix::fs::syncfs(File::open(&self.dir)?)?;
            std::thread::sleep(FORGET);
        }
        match fit()? {
            fit if fit >= wanted => Ok(Some(self.rounds)),
            fit @ 2.. => Ok(u16::try_from(fit - 1).ok()),
            _ => {
                let why = format!("{} has not enough space", place.display());
                self.report.skips.push(Skip::new("everybody", title, why));
                Ok(None)
            }
        }
    }
}

/// Places where nothing is yet.
#[derive(Debug)]
struct Fresh {
    dir: PathBuf,
    used: u64,
}

impl Fresh {
    fn new(dir: PathBuf) -> Self {
        Self { dir, used: 0 }
    }

    fn next(&mut self) -> Result<PathBuf> {
        let (pid, n) = (std::process::id(), self.used);
        fs::create_dir_all(&self.dir).with_context(|| format!("making {}", self.dir.display()))?;
        self.used += 1;
        Ok(self.dir.join(format!("{pid}-{n}")))
    }

    /// Deletes all; false if there was nothing.
    fn clear(&mut self) -> std::io::Result<bool> {
        let there = self.dir.exists();
        if there {
            remove_tree(&self.dir)?;
        }
        Ok(there)
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            eprintln!("tk-bench: {} is left: {error}", self.dir.display());
        }
    }
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

/// Longer than ext4 keeps clear of an inode that was freed.
const FORGET: Duration = Duration::from_secs(90);
/// Bytes of disk: less keeps nobody waiting.
const MUCH: u64 = 64 << 20;
/// Bytes of disk that are left alone.
const SPARE: u64 = 4 << 30;
