//! One command, measured: wall time, processor time and peak memory.
//!
//! The driver starts itself as `tk-bench measure`, and that process starts the command: the kernel counts the peak
//! memory of *all* children together, and a child begins with the peak of the process that started it. So the process
//! in between starts one child only, and is small.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde_json::{Value, json};

/// What one run of a command took.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Wall time, seconds.
    pub seconds: f64,
    /// Processor time of all its threads, user and system, seconds.
    pub cpu: f64,
    /// The most memory it had resident at once, bytes. Page cache does not count; files mapped into memory do.
    pub peak: u64,
}

impl Sample {
    /// Of one thread of this process: all of the time is its own, memory is not counted.
    pub fn of_time(seconds: f64) -> Self {
        Self {
            seconds,
            cpu: seconds,
            peak: 0,
        }
    }
}

/// A command to measure. Standard output goes to /dev/null unless [`run`] is told otherwise.
#[derive(Debug)]
pub struct Cmd {
    pub program: PathBuf,
    pub args: Vec<OsString>,
    pub stdin: Option<PathBuf>,
}

impl Cmd {
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            stdin: None,
        }
    }

    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub fn args<I: Into<OsString>>(mut self, args: impl IntoIterator<Item = I>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub fn stdin(mut self, file: &Path) -> Self {
        self.stdin = Some(file.to_owned());
        self
    }
}

/// The surroundings of every command: nothing of the caller's Nix, no substituters, a home of its own.
///
/// Without the empty `substituters`, commands of real Nix ask the network about paths, and wait for it.
#[derive(Debug)]
pub struct Surroundings {
    home: PathBuf,
}

impl Surroundings {
    /// Makes them in `home`.
    pub fn new(home: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&home)?;
        std::fs::write(home.join("nix.conf"), NIX_CONF)?;
        Ok(Self { home })
    }

    pub fn apply(&self, command: &mut Command) {
        let foreign = |name: &OsString| name.as_encoded_bytes().starts_with(b"NIX_");
        for name in std::env::vars_os().map(|(name, _)| name).filter(foreign) {
            command.env_remove(name);
        }
        command
            .env("NIX_CONF_DIR", &self.home)
            .env("HOME", &self.home);
        for name in [
            "XDG_CONFIG_HOME",
            "XDG_CACHE_HOME",
            "XDG_DATA_HOME",
            "XDG_STATE_HOME",
        ] {
            command.env(name, self.home.join(name));
        }
    }
}

/// Runs `cmd` once, its standard output going to `stdout`; an error if it fails.
pub fn run(cmd: &Cmd, around: &Surroundings, stdout: &Path) -> Result<Sample> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("measure")
        .arg(stdout)
        .arg("--")
        .arg(&cmd.program)
        .args(&cmd.args);
    command.stdin(match &cmd.stdin {
        Some(file) => {
            Stdio::from(File::open(file).with_context(|| format!("opening {}", file.display()))?)
        }
        None => Stdio::null(),
    });
    around.apply(&mut command);
    let done = command.output().context("starting tk-bench measure")?;
    sample(&cmd.program, &done)
}

/// What a finished `tk-bench measure` of `program` says.
pub fn sample(program: &Path, done: &Output) -> Result<Sample> {
    let words = String::from_utf8_lossy(&done.stderr);
    if !done.status.success() {
        bail!(
            "{}: {}",
            program.display(),
            words.trim().lines().next_back().unwrap_or("no word why")
        );
    }
    let report: Value =
        serde_json::from_slice(&done.stdout).context("reading what tk-bench measure says")?;
    let number = |key: &str| {
        report[key]
            .as_f64()
            .with_context(|| format!("no {key} in {report}"))
    };
    Ok(Sample {
        seconds: number("seconds")?,
        cpu: number("cpu")?,
        peak: report["peak"].as_u64().context("no peak memory")?,
    })
}

/// Run a command, and print what it took as JSON.
#[derive(clap::Args)]
pub struct Measure {
    /// Where the command's standard output goes
    stdout: PathBuf,
    /// Exit status 1 is an answer, too
    #[arg(long)]
    or_no: bool,
    /// How often it is run: the median time counts. For what is so short that the first one in a new place, with all
    /// caches cold, takes half as long again
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    times: u16,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl Measure {
    pub fn run(self) -> Result<()> {
        let (program, args) = self.command.split_first().context("no command")?;
        let mut times = Vec::new();
        for _ in 0..self.times {
            let out = File::create(&self.stdout)
                .with_context(|| format!("making {}", self.stdout.display()))?;
            let start = Instant::now();
            let status = Command::new(program).args(args).stdout(out).status();
            times.push(start.elapsed().as_secs_f64());
            let status = status.with_context(|| format!("starting {}", program.display()))?;
            ensure!(
                status.success() || self.or_no && status.code() == Some(1),
                "{status}"
            );
        }
        times.sort_by(f64::total_cmp);
        let seconds = times[times.len() / 2];
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        let cpu = (usage.user_time() + usage.system_time()).num_microseconds();
        let cpu = cpu as f64 / 1e6 / f64::from(self.times);
        let kib = u64::try_from(usage.max_rss())?;
        println!(
            "{}",
            json!({ "seconds": seconds, "cpu": cpu, "peak": kib * 1024 })
        );
        Ok(())
    }
}

const NIX_CONF: &str = "\
substituters =
experimental-features = nix-command
build-users-group =
sandbox = false
";
