//! `tk-bench daemon`: a real daemon and a far store asked and filled by us and by real Nix in turn.
//!
//! Each daemon runs in a namespace of its own (`tests/rig/with-daemon`), and only the command is measured in there.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use tk_nar::fs::remove_tree;

use crate::closures::{Closures, Sizes};
use crate::contender::{self, Contender};
use crate::contest::{Contest, Row};
use crate::fresh::Fresh;
use crate::limits::Limit;
use crate::measure::{self, Cmd, Sample, Surroundings, sample};
use crate::report::{NO_SPACE, Outputs, Report, Skip};

/// Ask and fill a daemon of real Nix, and a store behind a slow ssh, with ours and with real Nix in turn.
///
/// What has many files stays until the end, or until the disk gets short of space.
#[derive(clap::Parser)]
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
    #[command(flatten)]
    outputs: Outputs,
    #[command(flatten)]
    place: crate::place::Place,
}

/// What is done. The daemon's store has 2,000 small paths, and 500 of 2 MB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Job {
    /// Metadata of 2,000 paths as JSON
    PathInfo,
    /// 40,000 questions, whether a path is there and what is known of it, asked one after the other: of
    /// `tk-store daemon` and of nix-daemon
    Ask1,
    /// The same on 16 connections
    Ask16,
    /// The same on 200 connections
    Ask200,
    /// 500 paths, 1 GB, into a new folder cache, uncompressed
    CopyOutNone,
    /// The same with zstd, level 3
    CopyOutZstd,
    /// 500 paths, 1 GB, from a folder cache, uncompressed, into a new store behind a daemon
    CopyInNone,
    /// The same from a cache with zstd
    CopyInZstd,
    /// 50 paths, 100 MB, from a cache with xz: it takes minutes to fill
    CopyInXz,
    /// Whether a closure of 1,000 paths is in a store behind ssh that has it: copying it there
    SshCheck,
    /// The closure of 1,000 paths of a store behind ssh, listed
    SshClosure,
    /// A command in the environment of a flake's shell, which was entered before
    Shell,
}

impl Daemon {
    /// All jobs, as [`compare`](crate::compare) runs them.
    pub fn whole(rounds: u16, scale: f64) -> Self {
        let defaults = Daemon::parse_from([""]);
        Daemon {
            rounds,
            scale,
            ..defaults
        }
    }

    /// False if something of ours failed.
    pub fn run(self) -> Result<bool> {
        let (dir, tk_store) = self.place.find("bench-daemon")?;
        let mut report = Report::new(self.scale);
        let (_, absent) = contender::find(&tk_store);
        report.skip_absent(absent, &["tk-store", "nix"]);
        self.contests(&dir, &tk_store, &mut report)?;
        report.publish(&self.outputs)?;
        Ok(!report.ours_failed)
    }

    /// The jobs, in a folder; their results go to `report`.
    pub fn contests(&self, dir: &Path, tk_store: &Path, report: &mut Report) -> Result<()> {
        let entrants = contender::ours_and_nix(tk_store, &self.nix)?;
        let mut place = Place::prepare(self, dir.to_owned(), tk_store.to_owned())?;
        for job in Job::ALL {
            if self.jobs.is_empty() || self.jobs.contains(&job) {
                place.contest(job, &entrants, self.rounds, report)?;
            }
        }
        Ok(())
    }
}

/// The names of the jobs.
#[cfg(test)]
pub fn names() -> impl Iterator<Item = &'static str> {
    Job::ALL.into_iter().map(Job::name)
}

impl Job {
    const ALL: [Job; 12] = [
        Job::PathInfo,
        Job::Ask1,
        Job::Ask16,
        Job::Ask200,
        Job::CopyOutNone,
        Job::CopyOutZstd,
        Job::CopyInNone,
        Job::CopyInZstd,
        Job::CopyInXz,
        Job::SshCheck,
        Job::SshClosure,
        Job::Shell,
    ];

    fn name(self) -> &'static str {
        match self {
            Job::PathInfo => "path-info",
            Job::Ask1 => "ask the daemon",
            Job::Ask16 => "ask the daemon, 16 at once",
            Job::Ask200 => "ask the daemon, 200 at once",
            Job::CopyOutNone => "daemon to folder, none",
            Job::CopyOutZstd => "daemon to folder, zstd",
            Job::CopyInNone => "folder to daemon, none",
            Job::CopyInZstd => "folder to daemon, zstd",
            Job::CopyInXz => "folder to daemon, xz",
            Job::SshCheck => "check over ssh",
            Job::SshClosure => "closure over ssh",
            Job::Shell => "shell",
        }
    }

    fn compression(self) -> &'static str {
        match self {
            Job::CopyOutNone | Job::CopyInNone => "none",
            Job::CopyInXz => "xz",
            _ => "zstd",
        }
    }

    fn copies(self) -> bool {
        self.packs() || self.fills_a_daemon()
    }

    /// Whether a cache is filled.
    fn packs(self) -> bool {
        matches!(self, Job::CopyOutNone | Job::CopyOutZstd)
    }

    fn fills_a_daemon(self) -> bool {
        matches!(self, Job::CopyInNone | Job::CopyInZstd | Job::CopyInXz)
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
    fresh: Fresh,
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
            fresh: Fresh::new(dir.join("fresh")),
            dir,
        };
        place.fill()?;
        let input = place.flake().join("input");
        fs::create_dir_all(&input)?;
        fs::write(input.join("greeting"), "good day")?;
        let flake = FLAKE.replace("INPUT", &input.to_string_lossy());
        fs::write(place.flake().join("flake.nix"), flake)?;
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
            self.beside(&self.state(), &copy, 1)
                .context("filling the daemon's store")?;
            File::create(done)?;
        }
        for compression in ["none", "zstd", "xz"] {
            self.closures
                .fill_cache(&self.tk_store, &self.cache(compression), compression)?;
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
        let mut entrants = entrants.to_vec();
        if job.copies() {
            let (plain, compression) = (self.cache("none"), job.compression());
            let limits = self
                .closures
                .limits(&plain, compression, job.packs(), true)?;
            entrants.extend(limits.into_iter().map(Contender::Limit));
        }
        let stays = job.fills_a_daemon();
        let turns = if stays { entrants.len() } else { 1 };
        let bytes = turns as u64 * self.closures.disk(job.compression());
        let Some(rounds) = self.fresh.rounds_that_fit(rounds, bytes, stays)? else {
            report
                .skips
                .push(Skip::new("everybody", job.name(), NO_SPACE));
            return Ok(());
        };
        let contest = Contest {
            job: job.name(),
            corpus: String::new(),
            bytes: None,
            rounds,
            rows: entrants.iter().map(Row::new).collect(),
        };
        report.hold(contest, |i, _| self.turn(job, &entrants[i]));
        Ok(())
    }

    fn turn(&mut self, job: Job, who: &Contender) -> Result<Sample> {
        if let Contender::Limit(limit) = who {
            return self.limit(limit);
        }
        let fresh = self.fresh.next()?;
        self.fresh.settle(self.closures.disk(job.compression()))?;
        let state = if job.fills_a_daemon() {
            fresh.join("state")
        } else if job == Job::Shell {
            // What an environment is made of is not part of what the others look at.
            self.dir.join(format!("state-shell-{}", self.nix))
        } else {
            self.state()
        };
        let cmd = self.command(job, who, &fresh)?;
        let times = if job == Job::Shell { SHELLS } else { 1 };
        let sample = self.beside(&state, &cmd, times);
        if sample.is_ok() {
            self.check(job, &fresh)?;
        }
        if !job.fills_a_daemon() && fresh.exists() {
            // Caches have few files.
            remove_tree(&fresh)?;
        }
        sample
    }

    /// Needs no daemon.
    fn limit(&self, limit: &Limit) -> Result<Sample> {
        let around = Surroundings::new(self.dir.join("home"))?;
        measure::run(&limit.cmd()?, &around, Path::new("/dev/null"))
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
            Job::Ask1 => self.asking(1, who, fresh)?,
            Job::Ask16 => self.asking(16, who, fresh)?,
            Job::Ask200 => self.asking(200, who, fresh)?,
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
            Job::CopyInNone | Job::CopyInZstd | Job::CopyInXz => {
                let from = format!("file://{}", self.cache(compression).display());
                cmd.args(copy)
                    .args(["--from", &from, "--to", "daemon"])
                    .args(self.closures.copied(compression))
            }
            Job::SshCheck => cmd
                .args(copy)
                .args(["--from", &self.closures.store, "--to", far])
                .arg(&self.closures.chain),
            Job::SshClosure => cmd
                .args(["path-info", "-r", "--store", far])
                .arg(&self.closures.chain),
            Job::Shell => {
                let flake = format!("path:{}", self.flake().display());
                match who {
                    Contender::TkStore(_) => cmd.args(["shell", &flake, "--", "true"]),
                    _ => cmd.args(NIX_DEVELOP).args([&flake, "-c", "true"]),
                }
            }
        })
    }

    /// Questions of a client of its own to the daemon of real Nix, or to ours, which serves the same store.
    fn asking(&self, connections: usize, who: &Contender, fresh: &Path) -> Result<Cmd> {
        let cmd = Cmd::new(std::env::current_exe()?);
        let cmd = cmd.args(["ask", "--connections", &connections.to_string(), "--socket"]);
        let cmd = match who {
            Contender::TkStore(program) => {
                fs::create_dir_all(fresh)?;
                let socket = fresh.join("s");
                let program = program.to_string_lossy();
                let socket = socket.to_string_lossy();
                cmd.args([&*socket, "--serve", &*program, "daemon", "--store", "local"])
                    .args(["--socket", &*socket, ";"])
            }
            // Where with-daemon puts it.
            _ => cmd.args(["/nix/var/nix/daemon-socket/socket"]),
        };
        Ok(cmd.args(&self.closures.small))
    }

    /// That the copy is there, all of it.
    fn check(&self, job: Job, fresh: &Path) -> Result<()> {
        let (folder, suffix) = match job {
            Job::CopyOutNone | Job::CopyOutZstd => (fresh.to_owned(), ".narinfo"),
            _ if job.fills_a_daemon() => (fresh.join("state/nix/store"), ""),
            _ => return Ok(()),
        };
        let names = fs::read_dir(&folder)?.flatten().map(|e| e.file_name());
        let names = names.map(|name| name.to_string_lossy().into_owned());
        let made = names.filter(|name| name.ends_with(suffix) && !name.starts_with('.'));
        let wanted = self.closures.copied(job.compression()).len();
        let made = made.count();
        ensure!(made == wanted, "{made} of {wanted} paths were copied");
        Ok(())
    }

    /// Runs `cmd` so many times beside a daemon with its state in `state`, measured in there.
    fn beside(&self, state: &Path, cmd: &Cmd, times: u16) -> Result<Sample> {
        fs::create_dir_all(state)?;
        let mut command = Command::new(self.rig.join("with-daemon"));
        command.arg("--state").arg(state).args([&self.nix, "--"]);
        command.arg(std::env::current_exe()?);
        command
            .args(["measure", "/dev/null", "--times", &times.to_string(), "--"])
            .arg(&cmd.program);
        command.args(&cmd.args).stdin(Stdio::null());
        let mut path = OsString::from(self.rig.join("fake-ssh"));
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        command.env("PATH", path);
        command.env("FAKE_SSH_DELAY_MS", self.delay.to_string());
        // What they remember of a user is not that of whoever measures.
        let home = self.dir.join("home");
        for name in [
            "XDG_CONFIG_HOME",
            "XDG_CACHE_HOME",
            "XDG_DATA_HOME",
            "XDG_STATE_HOME",
        ] {
            command.env(name, home.join(name));
        }
        command.env("HOME", home);
        let done = command.output().context("starting tests/rig/with-daemon")?;
        sample(&cmd.program, &done)
    }

    fn state(&self) -> PathBuf {
        self.closures.dir.join(format!("state-{}", self.nix))
    }

    fn flake(&self) -> PathBuf {
        self.dir.join("flake")
    }

    fn cache(&self, compression: &str) -> PathBuf {
        self.closures.dir.join(format!("cache-{compression}"))
    }
}

fn scaled(number: usize, scale: f64) -> usize {
    ((number as f64 * scale) as usize).max(2)
}

/// How often an environment is entered for one sample.
const SHELLS: u16 = 21;

const NIX_DEVELOP: [&str; 3] = [
    "--extra-experimental-features",
    "nix-command flakes",
    "develop",
];

/// Something small to develop, with an input as nearly all have one: what is measured is what comes
/// before.
const FLAKE: &str = r#"{
  inputs.input = { url = "path:INPUT"; flake = false; };
  outputs = { self, input }: {
    devShells.x86_64-linux.default = derivation {
      name = "shell"; system = "x86_64-linux"; builder = "/bin/bash";
      outputs = [ "out" ]; PATH = "/usr/bin:/bin"; GREETING = builtins.readFile "${input}/greeting";
    };
  };
}
"#;
