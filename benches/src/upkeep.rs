//! `tk-bench upkeep`: a large store on disk questioned and cleaned by us and by real Nix in turn.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use clap::Parser;
use tk_local::{LocalConfig, LocalStore};
use tk_nar::fs::DumpOptions;
use tk_narinfo::PathInfo;
use tk_path::{Algorithm, Hash, NarHash, StorePath};

use crate::contender::{self, Contender};
use crate::contest::{Contest, Row};
use crate::fresh::Fresh;
use crate::measure::{self, Cmd, Sample, Surroundings};
use crate::report::{Outputs, Report, Skip};

/// Question and clean a store on disk of 100,000 paths, with ours and with real Nix in turn.
#[derive(clap::Parser)]
pub struct Upkeep {
    /// Which jobs [default: all]
    #[arg(long, value_delimiter = ',', value_name = "JOB")]
    jobs: Vec<UpkeepJob>,
    /// How often each is measured, after one time to warm up
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// The version of real Nix that is the rival
    #[arg(long, default_value = "2.34", value_name = "VERSION")]
    nix: String,
    /// The share of the full size, for a quick try
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    #[command(flatten)]
    outputs: Outputs,
    #[command(flatten)]
    place: crate::place::Place,
}

/// What is done. The store has ten groups of 10,000 paths; in each the last refers to all others, directly or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum UpkeepJob {
    /// The closure of 10,000 paths
    Closure,
    /// Why the last of a group needs its first
    WhyDepends,
    /// What is dead of 100,000 paths, half of them
    GcDryRun,
    /// 20,000 paths of a store of 40,000 deleted
    Gc,
    /// 1,000 folders added in one call
    Add,
    /// What each path of the closure of 10,000 takes; by ours only: no Nix ends within 100 s
    Du,
    /// All files of 40,000 paths checked against what is registered
    Verify,
}

impl UpkeepJob {
    const ALL: [UpkeepJob; 7] = [
        UpkeepJob::Closure,
        UpkeepJob::WhyDepends,
        UpkeepJob::GcDryRun,
        UpkeepJob::Gc,
        UpkeepJob::Add,
        UpkeepJob::Du,
        UpkeepJob::Verify,
    ];

    fn name(self) -> &'static str {
        match self {
            UpkeepJob::Closure => "closure of 10,000",
            UpkeepJob::WhyDepends => "why-depends",
            UpkeepJob::GcDryRun => "gc --dry-run",
            UpkeepJob::Gc => "gc",
            UpkeepJob::Add => "add of 1,000 folders",
            UpkeepJob::Du => "du of 10,000",
            UpkeepJob::Verify => "verify --check-contents",
        }
    }
}

impl Upkeep {
    /// False if something of ours failed.
    pub fn run(self) -> Result<bool> {
        let (dir, tk_store) = self.place.find("bench-upkeep")?;
        let mut report = Report::new(self.scale);
        let (_, absent) = contender::find(&tk_store);
        report.skip_absent(absent, &["tk-store", "nix"]);
        self.contests(&dir, &tk_store, &mut report)?;
        report.publish(&self.outputs)?;
        Ok(!report.ours_failed)
    }

    /// All jobs, as [`compare`](crate::compare) runs them.
    pub fn whole(rounds: u16, scale: f64) -> Self {
        let defaults = Upkeep::parse_from([""]);
        Upkeep {
            rounds,
            scale,
            ..defaults
        }
    }

    /// The jobs, in a folder; their results go to `report`.
    pub fn contests(&self, dir: &Path, tk_store: &Path, report: &mut Report) -> Result<()> {
        let entrants = contender::ours_and_nix(tk_store, &self.nix)?;
        eprintln!("preparing {}", dir.display());
        let mut ring = UpkeepRing::prepare(dir, self.scale)?;
        for job in UpkeepJob::ALL {
            if !self.jobs.is_empty() && !self.jobs.contains(&job) {
                continue;
            }
            let mut entrants = entrants.clone();
            if job == UpkeepJob::Du {
                entrants.retain(|who| matches!(who, Contender::TkStore(_)));
                report
                    .skips
                    .push(Skip::new("nix", job.name(), "does not end within 100 s"));
            }
            let contest = Contest {
                job: job.name(),
                corpus: String::new(),
                bytes: None,
                rounds: self.rounds,
                rows: entrants.iter().map(Row::new).collect(),
            };
            report.hold(contest, |i, _| ring.turn(job, &entrants[i]));
        }
        Ok(())
    }
}

/// The names of the jobs.
#[cfg(test)]
pub fn names() -> impl Iterator<Item = &'static str> {
    UpkeepJob::ALL.into_iter().map(UpkeepJob::name)
}

struct UpkeepRing {
    large: PathBuf,
    around: Surroundings,
    fresh: Fresh,
    group: usize,
    folders: PathBuf,
}

impl UpkeepRing {
    fn prepare(dir: &Path, scale: f64) -> Result<Self> {
        let group = ((10_000.0 * scale) as usize).max(30);
        let large = dir.join(format!("large-{scale}"));
        if !large.join("filled").exists() {
            if large.exists() {
                tk_nar::fs::remove_tree(&large)?;
            }
            fill(&large, 10, group)?;
            fs::write(large.join("filled"), "")?;
        }
        let folders = dir.join(format!("folders-{scale}"));
        for n in 0..((1_000.0 * scale) as usize).max(2) {
            let folder = folders.join(format!("folder-{n}"));
            fs::create_dir_all(&folder)?;
            fs::write(folder.join("file"), format!("{n}\n").repeat(100))?;
        }
        Ok(UpkeepRing {
            large,
            around: Surroundings::new(dir.join("home"))?,
            fresh: Fresh::new(dir.join("fresh")),
            group,
            folders,
        })
    }

    fn turn(&mut self, job: UpkeepJob, who: &Contender) -> Result<Sample> {
        let root = match job {
            UpkeepJob::Gc | UpkeepJob::Verify => {
                let root = self.fresh.next()?;
                fill(&root, 4, self.group)?;
                self.fresh.settle(u64::MAX)?;
                root
            }
            UpkeepJob::Add => self.fresh.next()?,
            _ => self.large.clone(),
        };
        let sample = measure::run(
            &self.command(job, who, &root)?,
            &self.around,
            Path::new("/dev/null"),
        )?;
        let entries = || -> Result<usize> { Ok(root.join("nix/store").read_dir()?.count() - 1) };
        match job {
            UpkeepJob::Gc => ensure!(entries()? == 2 * self.group, "not all was deleted"),
            UpkeepJob::Add => {
                ensure!(
                    entries()? == self.folders.read_dir()?.count(),
                    "not all was added"
                );
            }
            _ => {}
        }
        Ok(sample)
    }

    fn command(&self, job: UpkeepJob, who: &Contender, root: &Path) -> Result<Cmd> {
        let uri = format!("local?root={}", root.display());
        let full = |n: usize| format!("/nix/store/{}", of_number(n));
        let (first, last) = (full(0), full(self.group - 1));
        let folders = || -> Result<Vec<PathBuf>> {
            let all = self.folders.read_dir()?;
            Ok(all
                .map(|entry| Ok(entry?.path()))
                .collect::<std::io::Result<_>>()?)
        };
        let cmd = match who {
            Contender::TkStore(program) => {
                let cmd = Cmd::new(program).args(["--store", &uri]);
                match job {
                    UpkeepJob::Closure => cmd.args(["closure", &last]),
                    UpkeepJob::WhyDepends => cmd.args(["why-depends", &last, &first]),
                    UpkeepJob::GcDryRun => cmd.args(["gc", "--dry-run"]),
                    UpkeepJob::Gc => cmd.args(["gc"]),
                    UpkeepJob::Add => cmd.arg("add").args(folders()?),
                    UpkeepJob::Du => cmd.args(["du", &last]),
                    UpkeepJob::Verify => cmd.args(["verify", "--check-contents"]),
                }
            }
            Contender::Nix { bin, .. } => {
                let old = Cmd::new(bin.join("nix-store")).args(["--store", &uri]);
                match job {
                    UpkeepJob::Closure => old.args(["-qR", &last]),
                    UpkeepJob::WhyDepends => {
                        let new = Cmd::new(bin.join("nix")).args(["why-depends", "--store", &uri]);
                        new.args([&last, &first])
                    }
                    UpkeepJob::GcDryRun => old.args(["--gc", "--print-dead"]),
                    UpkeepJob::Gc => old.arg("--gc"),
                    UpkeepJob::Add => old.arg("--add").args(folders()?),
                    UpkeepJob::Verify => old.args(["--verify", "--check-contents"]),
                    UpkeepJob::Du => bail!("cannot do this"),
                }
            }
            _ => bail!("cannot do this"),
        };
        Ok(cmd)
    }
}

/// Makes a store at `root` with so many groups of paths; the first half of them has roots.
fn fill(root: &Path, groups: usize, group: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let store = LocalStore::open(LocalConfig::chroot(root)).await?;
        let mut infos = Vec::new();
        for n in 0..groups * group {
            infos.push(make(store.real_dir(), n, group)?);
        }
        store.register(infos).await?;
        for n in 0..groups / 2 {
            let last = of_number((n + 1) * group - 1);
            let link = store.config().state.join(format!("gcroots/group-{n}"));
            symlink(format!("/nix/store/{last}"), link)?;
        }
        Ok(())
    })
}

/// A folder with a text, and a script that names what it refers to: the one before it, and some of its group.
fn make(real: &Path, n: usize, group: usize) -> Result<PathInfo> {
    let (path, at) = (of_number(n), n % group);
    let before = [1, 7, 25, 300].into_iter().filter(|back| *back <= at);
    let references: Vec<_> = before.map(|back| of_number(n - back)).collect();
    let folder = real.join(path.as_str());
    fs::create_dir(&folder)?;
    fs::write(
        folder.join("text"),
        format!("text {}\n", n % 1000).repeat(40),
    )?;
    let lines = references.iter().map(|path| format!("/nix/store/{path}\n"));
    fs::write(folder.join("script"), lines.collect::<String>())?;
    let mut nar = Vec::new();
    tk_nar::fs::dump(&folder, &DumpOptions::default(), &mut nar)?;
    let mut info = PathInfo::new(path, NarHash::digest(&nar), nar.len() as u64);
    info.references = references.into_iter().collect();
    Ok(info)
}

fn of_number(n: usize) -> StorePath {
    let digest = Hash::digest(Algorithm::Sha256, format!("upkeep {n}").as_bytes());
    let digest: [u8; 20] = digest
        .compress(20)
        .try_into()
        .expect("20 bytes were asked for");
    StorePath::from_digest(&digest, &format!("path-{n}")).expect("a name")
}
