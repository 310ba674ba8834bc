use crate::{
    CommandContext, ExitStatus,
    build_log::LogPrinter,
    failure::tell_failure,
    open::{BuildArgs, NixOptions, store_dir},
    output::{stdout, tell},
    ui,
    units::duration,
};
use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use std::{
    env,
    ffi::OsString,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process,
    time::Duration,
};
use tk_nix::{
    Cause, Installable, InstallableSource, Nix, NixBuilder, NixFailure, NixVersion,
    shell::{
        EnvironmentKind, ExecResult, FoundEnvironment, Hook, LeaseOwner, ShellConfig, ShellSession,
        Shells, StartupCode, Stream, WantedEnvironment,
    },
};
use tokio::signal::unix::{SignalKind, signal};

/// Run a command, or an interactive bash, in the environment of a shell
///
/// As `nix develop`, but evaluated only once: as long as the flake's Nix files, flake.lock, local
/// inputs and the version of Nix are the same, no nix is run at all. The environment is kept
/// alive by a lease, which every use begins anew.
///
/// With --file or --expr the shell is a derivation of plain Nix code, as for nix-shell: the folder of
/// the file is watched, all that nix says it read, and the search path. What else such code looks at,
/// name with --watch.
///
/// Code that would run without being named (a shellHook, functions that it calls, PROMPT_COMMAND and
/// BASH_ENV) is held back before it was allowed, and again when any of it has changed.
/// The exit status is that of the command; 127 or 126 if it is not there or cannot be run; 2 if there
/// is no environment.
#[derive(Args)]
#[command(after_help = SHELL_EXAMPLES)]
pub struct Shell {
    #[command(flatten)]
    what: WhatArgs,
    /// Allow the shellHook and all that it calls as they are, and run it
    #[arg(long)]
    allow: bool,
    #[command(flatten)]
    options: EnvOptions,
    /// Print what became of the command, with its output, as JSON
    #[arg(long)]
    json: bool,
    /// The command and its arguments [default: an interactive bash]
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Run a command with the programs of packages
///
/// As `nix shell`, but evaluated and built only once: as long as nothing changed no nix is run. What
/// nothing pins, as a name like jq, is looked up again after an hour, or with --refresh.
#[derive(Args)]
#[command(after_help = RUN_EXAMPLES)]
pub struct RunCommand {
    /// Packages: attributes of nixpkgs by their name, or of any flake as FLAKE#ATTR; derivations
    /// (DRV^OUT,…) and paths of the store; with --file or --expr attributes of that
    #[arg(long, short, required = true, num_args = 1.., value_name = "PKG")]
    package: Vec<String>,
    /// Take packages from this file of Nix code, or a folder with a default.nix
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Take packages from this Nix code
    #[arg(long, short = 'E', value_name = "CODE", conflicts_with = "file")]
    expr: Option<String>,
    #[command(flatten)]
    options: EnvOptions,
    /// Print what became of the command, with its output, as JSON
    #[arg(long)]
    json: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// What an environment is that of.
#[derive(Args)]
pub struct WhatArgs {
    /// A flake, with an attribute if not the default one, FLAKE#ATTR; or a derivation of the store
    /// [default: .]
    #[arg(value_name = "REF", conflicts_with_all = ["file", "expr", "attr"])]
    what: Option<String>,
    /// Take the shell from this file of Nix code, or a folder with a default.nix
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Take the shell from this Nix code
    #[arg(long, short = 'E', value_name = "CODE", conflicts_with = "file")]
    expr: Option<String>,
    /// The attribute of the file, the code or else ./default.nix
    #[arg(long, short = 'A', value_name = "ATTR")]
    attr: Option<String>,
}

impl WhatArgs {
    /// What was named.
    pub fn installable(&self, cx: &CommandContext) -> Result<Installable> {
        let attr = self.attr.as_deref();
        let source = match source(&self.file, &self.expr) {
            None if attr.is_none() => {
                let what = self.what.as_deref().unwrap_or(".");
                return Ok(Installable::parse(&store_dir(cx)?, what)?);
            }
            source => source.unwrap_or_else(|| InstallableSource::File("default.nix".into())),
        };
        Ok(Installable::attribute(source, attr.unwrap_or_default())?)
    }

    /// How it was named: to be written again.
    pub fn spelled(&self) -> String {
        let file = self.file.as_ref().map(|file| file.to_string_lossy());
        let parts = [
            ("", self.what.as_deref()),
            ("-f ", file.as_deref()),
            ("-E ", self.expr.as_deref()),
            ("-A ", self.attr.as_deref()),
        ];
        let parts = parts.into_iter().filter_map(|(flag, text)| {
            let text = shell_word(text?);
            Some(format!("{flag}{text}"))
        });
        let all: Vec<_> = parts.collect();
        if all.is_empty() {
            ".".to_owned()
        } else {
            all.join(" ")
        }
    }
}

fn source(file: &Option<PathBuf>, expr: &Option<String>) -> Option<InstallableSource> {
    match (file, expr) {
        (Some(file), _) => Some(InstallableSource::File(file.clone())),
        (_, Some(code)) => Some(InstallableSource::Expr(code.clone())),
        (None, None) => None,
    }
}

/// `text` as one word of a shell, in quotes if it needs them.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:#@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        shell_words::quote(text).into_owned()
    }
}

/// How an environment is found, kept and entered.
#[derive(Args)]
pub struct EnvOptions {
    /// Begin with an empty environment, but for what a terminal needs
    #[arg(long)]
    pure: bool,
    /// Leave this variable in a pure environment (may be repeated)
    #[arg(long, value_name = "NAME", requires = "pure")]
    keep: Vec<String>,
    #[command(flatten)]
    pub find: FindOptions,
}

/// How an environment is found and kept.
#[derive(Args)]
pub struct FindOptions {
    /// A file or folder that it depends on, beside Nix files, data files and local inputs (may be
    /// repeated)
    #[arg(long, value_name = "PATH")]
    watch: Vec<PathBuf>,
    /// For whom it is kept: a name, or pid:N for a process, whose lease ends with it
    #[arg(long, value_name = "NAME", default_value = "shared")]
    owner: String,
    /// How long it is kept after its last use: seconds, or with s, m, h, d
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = duration)]
    ttl: Duration,
    #[command(flatten)]
    nix: NixOptions,
    #[command(flatten)]
    build: BuildArgs,
}

impl Shell {
    /// Runs the command; returns only if that cannot be.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        if self.command.is_empty() && (self.json || !io::stdin().is_terminal()) {
            bail!("there is no command, and no terminal to ask for one; write it after --");
        }
        let shells = shells(cx)?;
        let what = EnvironmentKind::Shell(self.what.installable(cx)?);
        let found = match self.options.find.found(cx, &shells, what).await? {
            Ok(found) => found,
            Err(failure) => return Ok(none(cx, &self.what.spelled(), &failure)),
        };
        if self.allow {
            shells.allow(&found.entry)?;
        }
        let session = self.options.session(&shells, &found)?;
        if session.hook() == Hook::Held {
            let code = shells.startup_code(&found.entry);
            cx.ui.warn(held(&self.what.spelled(), &code));
        }
        if self.command.is_empty() {
            gone("bash", &session.exec_interactive())
        } else {
            run(&session, &self.command, self.json).await
        }
    }
}

impl RunCommand {
    /// Runs the command; returns only if that cannot be.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let shells = shells(cx)?;
        let what = EnvironmentKind::Packages(self.packages(cx)?);
        let found = match self.options.find.found(cx, &shells, what).await? {
            Ok(found) => found,
            Err(failure) => return Ok(none(cx, &self.package.join(" "), &failure)),
        };
        let session = self.options.session(&shells, &found)?;
        run(&session, &self.command, self.json).await
    }

    fn packages(&self, cx: &CommandContext) -> Result<Vec<Installable>> {
        let source = source(&self.file, &self.expr);
        let dir = store_dir(cx)?;
        let all = self.package.iter().map(|name| match &source {
            None => Ok(tk_nix::shell::package(&dir, name)?),
            Some(source) => Ok(Installable::attribute(source.clone(), name)?),
        });
        all.collect()
    }
}

impl EnvOptions {
    fn session(&self, shells: &Shells, found: &FoundEnvironment) -> Result<ShellSession> {
        let keep = self.pure.then_some(self.keep.as_slice());
        Ok(shells.session(&found.entry, keep)?)
    }
}

impl FindOptions {
    fn wanted(&self, cx: &CommandContext, what: EnvironmentKind) -> Result<WantedEnvironment> {
        let mut wanted = WantedEnvironment::new(what);
        wanted.eval = self.nix.eval();
        wanted.watch = self.watch.clone();
        wanted.refresh = cx.refresh;
        wanted.lease.owner = owner(&self.owner)?;
        wanted.lease.ttl = self.ttl;
        Ok(wanted)
    }

    /// The files of an environment that could not be had.
    pub async fn files(
        &self,
        cx: &CommandContext,
        shells: &Shells,
        what: EnvironmentKind,
    ) -> Result<Vec<PathBuf>> {
        let wanted = self.wanted(cx, what)?;
        let config = self.nix.config(cx, &self.build)?;
        Ok(shells.files_of(&config, &wanted).await?)
    }

    /// The environment, by way of nix only if it is not known.
    pub async fn found(
        &self,
        cx: &CommandContext,
        shells: &Shells,
        what: EnvironmentKind,
    ) -> Result<Result<FoundEnvironment, NixFailure>> {
        let wanted = self.wanted(cx, what)?;
        let config = self.nix.config(cx, &self.build)?;
        match shells.warm(&config, &wanted).await {
            Ok(Some(found)) => return Ok(Ok(found)),
            Err(failure) => return Ok(Err(failure)),
            Ok(None) => {}
        }
        let nix = match shells.nix(&config).await {
            Ok(nix) => nix,
            // Paths that are there need no nix.
            Err(failure) if failure.cause == Cause::NoNix && wanted.store_paths().is_some() => {
                Nix::known(config, NixVersion::OLDEST)?
            }
            Err(failure) => return Ok(Err(failure)),
        };
        let paths = wanted.store_paths().unwrap_or_default();
        let (builder, opened) = self
            .nix
            .builder_of_paths(cx, &self.build, nix, &paths)
            .await?;
        let dir = opened.store().dir().clone();
        let shells = shells.clone();
        let shells = shells.with_store(dir, opened.real_dir().map(Into::into));
        Ok(evaluated(cx, &shells, &builder, &wanted).await)
    }
}

async fn evaluated(
    cx: &CommandContext,
    shells: &Shells,
    builder: &NixBuilder,
    wanted: &WantedEnvironment,
) -> Result<FoundEnvironment, NixFailure> {
    let log = LogPrinter::new(&cx.ui, true).without_errors();
    let found = until_signal(shells.find(builder, wanted, &log)).await;
    log.clear();
    found
}

/// What comes of `work`, which is given up when somebody ends this program: nix and commands are in groups of
/// their own, and would go on.
async fn until_signal<T>(
    work: impl Future<Output = Result<T, NixFailure>>,
) -> Result<T, NixFailure> {
    let ended = async {
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ];
        let signals = kinds.map(signal);
        let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = signals else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    };
    let done = tokio::select! {
        done = work => return done,
        () = ended => Err(NixFailure::new(Cause::Cancelled, "it was interrupted")),
    };
    // So that nix can end what it started.
    while tk_nix::ending() > 0 {
        tokio::time::sleep(LOOK).await;
    }
    done
}

/// The environments of this user.
pub fn shells(cx: &CommandContext) -> Result<Shells> {
    let system = cx.settings.nix_conf.get("system").map(str::to_owned);
    let own = || match env::consts::OS {
        "macos" => format!("{}-darwin", env::consts::ARCH),
        os => format!("{}-{os}", env::consts::ARCH),
    };
    let environment = &cx.settings.environment;
    let system = system.unwrap_or_else(own);
    let cache = environment.cache_folder()?.join("tk-store/env");
    let folder = env::current_dir().context("finding the current directory")?;
    let mut config = ShellConfig::new(cache, environment.state_folder()?, system, folder);
    config.variables = env::vars_os().collect();
    config.nix_path = cx.settings.nix_conf.get("nix-path").map(str::to_owned);
    config.dir = store_dir(cx)?;
    Ok(Shells::new(config))
}

/// What is said of code that was not allowed.
pub fn held(what: &str, code: &StartupCode) -> String {
    let names: Vec<_> = code.names().take(MOST_NAMED).collect();
    let names = plain_text(&names.join(", "));
    format!(
        "code of {what} was held back that would run without being named ({names}): it is new, or \
         has changed; allow it with 'tk-store env allow {what}', see it first with 'tk-store env \
         allow --show {what}'"
    )
}

/// `text` with what would control a terminal written out.
pub fn plain_text(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' && c != '\t' {
            plain.extend(c.escape_default())
        } else {
            plain.push(c)
        }
    }
    plain
}

/// Says why there is no environment: always 2, since 1 may be the status of a command.
fn none(cx: &CommandContext, what: &str, failure: &NixFailure) -> ExitStatus {
    tell_failure(cx, what, failure);
    ExitStatus::Failed
}

/// Becomes the command or, for JSON, runs it.
async fn run(session: &ShellSession, command: &[OsString], json: bool) -> Result<ExitStatus> {
    if json {
        let mut told = |_: Stream, _: &[u8]| {};
        let done = until_signal(session.run_with(command, &mut told)).await;
        let done: ExecResult = match done {
            Err(failure) if failure.cause != Cause::Cancelled => return tell_not_run(&failure),
            done => done?,
        };
        ui::out(serde_json::to_string(&done)?)?;
        stdout().flush()?;
        process::exit(done.exit_code);
    }
    let name = command[0].to_string_lossy();
    gone(&name, &session.exec(command))
}

/// The same where it was to be run within bounds.
fn tell_not_run(failure: &NixFailure) -> Result<ExitStatus> {
    tell(format_args!("tk-store: {failure}"));
    process::exit(match failure.cause {
        Cause::Misused => 127,
        _ => 2,
    })
}

/// Says why a command could not be run, and exits as shells do.
fn gone(name: &str, error: &io::Error) -> Result<ExitStatus> {
    let (words, status) = match error.kind() {
        io::ErrorKind::NotFound => ("there is no such command".to_owned(), 127),
        _ => (error.to_string(), 126),
    };
    tell(format_args!("tk-store: cannot run {name}: {words}"));
    process::exit(status)
}

/// Reads an owner: a name, or `pid:N`.
pub fn owner(text: &str) -> Result<LeaseOwner> {
    let Some(pid) = text.strip_prefix("pid:") else {
        return Ok(LeaseOwner::Name(text.to_owned()));
    };
    let pid = pid
        .parse()
        .with_context(|| format!("'{text}' is not a process id"))?;
    LeaseOwner::process(pid).with_context(|| format!("there is no process {pid}"))
}

/// What an environment is printed as.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Format {
    Bash,
    Zsh,
    Fish,
    Json,
    Direnv,
}

/// Names of code that are told.
const MOST_NAMED: usize = 5;
/// How often it is looked whether nix has ended.
const LOOK: Duration = Duration::from_millis(20);

const SHELL_EXAMPLES: &str = "\
Examples:
  tk-store shell -- make test
  tk-store shell .#ci --pure --keep CI -- ./run-tests
  tk-store shell -f shell.nix -A ci -- make test
  tk-store shell /nix/store/…-hello.drv -- make
  tk-store shell --allow  # an interactive bash, whose shellHook may run
  tk-store shell --owner pid:$$ -- true  # kept until the calling shell ends";
const RUN_EXAMPLES: &str = "\
Examples:
  tk-store run -p jq -- jq .name package.json
  tk-store run -p hello jq -- sh -c 'hello | jq -R .'
  tk-store run -f default.nix -p tool other -- tool --check
  tk-store run -p '/nix/store/…-hello.drv^out' -- hello
  tk-store run -p .#tool github:NixOS/nixpkgs#ripgrep --json -- tool --check";
