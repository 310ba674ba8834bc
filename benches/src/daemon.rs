//! `tk-bench daemon`: a real daemon and a far store asked and filled by us and by real Nix in turn.
//!
//! Each daemon runs in a namespace of its own (`tests/rig/with-daemon`), and only the command is measured in there.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use tk_nar::fs::remove_tree;

use crate::closures::{Closures, Sizes};
use crate::contender::{self, Contender};
use crate::measure::{Cmd, Sample, sample};
use crate::report::{Contest, Report, Row, Skip};

/// Ask and fill a daemon of real Nix, and a store behind a slow ssh, with ours and with real Nix in turn.
///
/// What is filled stays until the end: with all jobs and 5 rounds some 40 GB.
#[derive(clap::Args)]
pub struct Daemon {
    /// Which jobs [default: all]
    #[arg(long, value_delimiter = ',', value_name = "JOB")]
    jobs: Vec<Job>,
    /// How often each is measured, after one time to warm up
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// The version of real Nix whose daemon it is, and which is the rival
    #[arg(long, default_value = "2.34", value_name = "VERSION")]
    nix: String,
    /// The round trip over ssh, milliseconds
    #[arg(long, default_value_t = 40, value_name = "MS")]
    delay: u32,
    /// The share of the full size, for a quick try
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Write all figures to FILE too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where closures are kept and stores are filled [default: target/bench-daemon]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Our program, a release build [default: beside this one]
    #[arg(long, value_name = "PATH")]
    tk_store: Option<PathBuf>,
}

/// What is done. The daemon's store has 2,000 small paths, and 500 of 2 MB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Job {
    /// Metadata of 2,000 paths as JSON
    PathInfo,
    /// 500 paths, 1 GB, into a new folder cache, uncompressed
    CopyOutNone,
    /// The same with zstd, level 3
    CopyOutZstd,
    /// 500 paths, 1 GB, from a folder cache, uncompressed, into a new store behind a daemon
    CopyInNone,
    /// The same from a cache with zstd
    CopyInZstd,
    /// Whether a closure of 1,000 paths is in a store behind ssh that has it: copying it there
    SshCheck,
    /// The closure of 1,000 paths of a store behind ssh, listed
    SshClosure,
}

impl Daemon {
    /// False if something of ours failed.
    pub fn run(self) -> Result<bool> {
        let exe = std::env::current_exe()?;
        let target = exe.parent().and_then(Path::parent);
        let target = target.context("where is this program?")?;
        let dir = self.work.clone();
        let dir = dir.unwrap_or_else(|| target.join("bench-daemon"));
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let tk_store = self.tk_store.clone();
        let tk_store = tk_store.unwrap_or_else(|| exe.with_file_name("tk-store"));

        let (found, absent) = contender::find(&tk_store);
        let prefix = format!("{}.", self.nix);
        let takes_part = |who: &Contender| match who {
            Contender::TkStore(_) => true,
            Contender::Nix { version, .. } => version.starts_with(&prefix),
            _ => false,
        };
        let entrants: Vec<_> = found.into_iter().filter(takes_part).collect();
        let mut report = Report::new(self.scale);
        let absent = absent.into_iter().filter(|(name, _)| *name != "openssl");
        report
            .skips
            .extend(absent.map(|(who, why)| Skip::new(who, "all", why)));
        ensure!(
            entrants
                .iter()
                .any(|who| matches!(who, Contender::Nix { .. })),
            "real Nix {} is not installed: tests/rig/install",
            self.nix
        );
        let mut place = Place::prepare(&self, dir, tk_store)?;
        for job in Job::ALL {
            if self.jobs.is_empty() || self.jobs.contains(&job) {
                place.contest(job, &entrants, self.rounds, &mut report)?;
            }
        }
        place.clear()?;
        print!("{report}");
        if let Some(file) = &self.json {
            let out = File::create(file).with_context(|| format!("making {}", file.display()))?;
            serde_json::to_writer_pretty(out, &report.to_json())?;
        }
        Ok(!report.ours_failed)
    }
}

impl Job {
    const ALL: [Job; 7] = [
        Job::PathInfo,
        Job::CopyOutNone,
        Job::CopyOutZstd,
        Job::CopyInNone,
        Job::CopyInZstd,
        Job::SshCheck,
        Job::SshClosure,
    ];

    fn name(self) -> &'static str {
        match self {
            Job::PathInfo => "path-info",
            Job::CopyOutNone => "daemon to folder, none",
            Job::CopyOutZstd => "daemon to folder, zstd",
            Job::CopyInNone => "folder to daemon, none",
            Job::CopyInZstd => "folder to daemon, zstd",
            Job::SshCheck => "check over ssh",
            Job::SshClosure => "closure over ssh",
        }
    }

    fn compression(self) -> &'static str {
        match self {
            Job::CopyOutNone | Job::CopyInNone => "none",
            _ => "zstd",
        }
    }

    fn fills_a_daemon(self) -> bool {
        matches!(self, Job::CopyInNone | Job::CopyInZstd)
    }
}

/// Where it happens: closures in a store on disk, the same in the state of a daemon, and in caches.
struct Place {
    dir: PathBuf,
    rig: PathBuf,
    nix: String,
    delay: u32,
    tk_store: PathBuf,
    closures: Closures,
    used: u32,
}

impl Place {
    fn prepare(options: &Daemon, dir: PathBuf, tk_store: PathBuf) -> Result<Self> {
        let rig = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/rig");
        let sizes = Sizes {
            small: scaled(2000, options.scale),
            chain: scaled(1000, options.scale),
            large: scaled(500, options.scale),
        };
        eprintln!("preparing {}", dir.display());
        let place = Place {
            closures: Closures::make(&dir.join(format!("closures-{}", options.scale)), sizes)?,
            rig,
            nix: options.nix.clone(),
            delay: options.delay,
            tk_store,
            used: 0,
            dir,
        };
        place.fill()?;
        Ok(place)
    }

    /// The daemon that has everything, and the caches.
    fn fill(&self) -> Result<()> {
        let done = self.state().join("filled");
        if !done.exists() {
            if self.state().exists() {
                remove_tree(&self.state())?;
            }
            let copy = Cmd::new(&self.tk_store).args(["copy", "--quiet", "--no-check-sigs"]);
            let copy = copy.args(["--from", &self.closures.store, "--to", "daemon", "--all"]);
            self.beside(&self.state(), &copy)
                .context("filling the daemon's store")?;
            File::create(done)?;
        }
        for compression in ["none", "zstd"] {
            let cache = self.cache(compression);
            let done = cache.join("filled");
            if !done.exists() {
                let uri = format!("file://{}?compression={compression}", cache.display());
                let copy = Command::new(&self.tk_store)
                    .args(["copy", "--quiet", "--from", &self.closures.store])
                    .args(["--to", &uri])
                    .args(&self.closures.large)
                    .stdout(Stdio::null())
                    .status()?;
                ensure!(copy.success(), "filling {uri}: {copy}");
                File::create(done)?;
            }
        }
        Ok(())
    }

    fn contest(
        &mut self,
        job: Job,
        entrants: &[Contender],
        rounds: u16,
        report: &mut Report,
    ) -> Result<()> {
        let mut rows: Vec<_> = entrants.iter().map(Row::new).collect();
        eprint!("{}: warm-up", job.name());
        for round in 0..=usize::from(rounds) {
            if round > 0 {
                eprint!(", {round}");
            }
            for i in (0..entrants.len()).map(|i| (i + round) % entrants.len()) {
                match self.turn(job, &entrants[i]) {
                    Ok(sample) if round > 0 => rows[i].samples.push(sample),
                    Ok(_) => (),
                    Err(error) => {
                        report.ours_failed |= entrants[i].is_ours();
                        let why = format!("{error:#}");
                        let skip = Skip::new(entrants[i].name(), job.name(), why);
                        report.skips.push(skip);
                    }
                }
            }
        }
        eprintln!();
        report.contests.push(Contest {
            job: job.name(),
            corpus: "",
            rounds,
            rows,
        });
        Ok(())
    }

    fn turn(&mut self, job: Job, who: &Contender) -> Result<Sample> {
        self.used += 1;
        let fresh = self.fresh(self.used);
        // Nobody has to wait until what the one before left is written.
        rustix::fs::syncfs(File::open(&self.dir)?)?;
        let state = match job.fills_a_daemon() {
            true => fresh.join("state"),
            false => self.state(),
        };
        let cmd = self.command(job, who, &fresh)?;
        let sample = self.beside(&state, &cmd);
        if sample.is_ok() {
            self.check(job, &fresh)?;
        }
        sample
    }

    /// Deletes what was filled: at the very end, since deleting many files makes ext4 slow at
    /// creating new ones for a minute or more.
    fn clear(&self) -> Result<()> {
        for n in 1..=self.used {
            let fresh = self.fresh(n);
            if fresh.exists() {
                remove_tree(&fresh)?;
            }
        }
        Ok(())
    }

    fn fresh(&self, n: u32) -> PathBuf {
        self.dir.join(format!("fresh-{}-{n}", std::process::id()))
    }

    fn command(&self, job: Job, who: &Contender, fresh: &Path) -> Result<Cmd> {
        let (program, copy): (PathBuf, &[&str]) = match who {
            Contender::TkStore(path) => (path.clone(), &["copy", "--quiet", "--no-check-sigs"]),
            Contender::Nix { bin, .. } => (bin.join("nix"), &["copy", "--no-check-sigs"]),
            _ => bail!("cannot do this"),
        };
        let cmd = Cmd::new(program);
        let compression = job.compression();
        let far = "ssh-ng://far";
        Ok(match job {
            Job::PathInfo => cmd
                .args(["path-info", "--json", "--store", "daemon"])
                .args(&self.closures.small),
            Job::CopyOutNone | Job::CopyOutZstd => {
                let to = format!(
                    "file://{}?compression={compression}&compression-level=3",
                    fresh.display()
                );
                cmd.args(copy)
                    .args(["--from", "daemon", "--to", &to])
                    .args(&self.closures.large)
            }
            Job::CopyInNone | Job::CopyInZstd => {
                let from = format!("file://{}", self.cache(compression).display());
                cmd.args(copy)
                    .args(["--from", &from, "--to", "daemon"])
                    .args(&self.closures.large)
            }
            Job::SshCheck => cmd
                .args(copy)
                .args(["--from", &self.closures.store, "--to", far])
                .arg(&self.closures.chain),
            Job::SshClosure => cmd
                .args(["path-info", "-r", "--store", far])
                .arg(&self.closures.chain),
        })
    }

    /// That the copy is there, all of it.
    fn check(&self, job: Job, fresh: &Path) -> Result<()> {
        let (folder, suffix) = match job {
            Job::CopyOutNone | Job::CopyOutZstd => (fresh.to_owned(), ".narinfo"),
            Job::CopyInNone | Job::CopyInZstd => (fresh.join("state/nix/store"), ""),
            _ => return Ok(()),
        };
        let names = fs::read_dir(&folder)?.flatten().map(|e| e.file_name());
        let names = names.map(|name| name.to_string_lossy().into_owned());
        let made = names.filter(|name| name.ends_with(suffix) && !name.starts_with('.'));
        let (made, wanted) = (made.count(), self.closures.large.len());
        ensure!(made == wanted, "{made} of {wanted} paths were copied");
        Ok(())
    }

    /// Runs `cmd` beside a daemon with its state in `state`, measured in there.
    fn beside(&self, state: &Path, cmd: &Cmd) -> Result<Sample> {
        fs::create_dir_all(state)?;
        let mut command = Command::new(self.rig.join("with-daemon"));
        command.arg("--state").arg(state).args([&self.nix, "--"]);
        command.arg(std::env::current_exe()?);
        command
            .args(["measure", "/dev/null", "--"])
            .arg(&cmd.program);
        command.args(&cmd.args).stdin(Stdio::null());
        let mut path = OsString::from(self.rig.join("fake-ssh"));
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        command.env("PATH", path);
        command.env("FAKE_SSH_DELAY_MS", self.delay.to_string());
        let done = command.output().context("starting tests/rig/with-daemon")?;
        sample(&cmd.program, &done)
    }

    fn state(&self) -> PathBuf {
        self.closures.dir.join(format!("state-{}", self.nix))
    }

    fn cache(&self, compression: &str) -> PathBuf {
        self.closures.dir.join(format!("cache-{compression}"))
    }
}

fn scaled(number: usize, scale: f64) -> usize {
    ((number as f64 * scale) as usize).max(2)
}
