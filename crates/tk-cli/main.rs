//! `tk-store`: the Nix store without Nix, on the command line.
//!
//! Flags, output and exit codes are here; what an embedder would miss is in the crates below.

mod build_log;
mod cmd;
mod failure;
mod keys;
mod listing;
mod open;
mod out_link;
mod paths;
mod settings;
mod ui;

use anyhow::Result;
use clap::{Args, Parser};
use std::{ffi::OsString, io, pin::Pin, process::ExitCode, time::Duration};
use tk_store::Error;
use ui::Ui;

/// The Nix store without Nix: read, hash, sign, check, copy and push store paths.
#[derive(Parser)]
#[command(name = "tk-store", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: cmd::Command,
    #[command(flatten)]
    global: Global,
}

#[derive(Args)]
struct Global {
    /// The store to work on: auto, daemon, unix:///a/socket, ssh-ng://host, ssh://host,
    /// local?root=DIR, a folder, or file:///a/cache
    #[arg(
        long,
        global = true,
        value_name = "URI",
        help_heading = "Global options"
    )]
    store: Option<String>,
    /// Say nothing but warnings and errors
    #[arg(long, short, global = true, help_heading = "Global options")]
    quiet: bool,
}

/// The arguments of one command, without those of the others.
#[derive(Parser)]
#[command(name = "tk-store")]
struct One<C: Args> {
    #[command(flatten)]
    args: C,
    #[command(flatten)]
    global: Global,
}

impl Cli {
    /// The command line of this process, if it makes sense: else it ends with the reason, or with the
    /// help that was asked for.
    fn of_process() -> Self {
        let mut words: Vec<_> = std::env::args_os().collect();
        if words.len() > 1 {
            let name = words.remove(1);
            if let Some(cli) = name.to_str().and_then(|name| Cli::of_one(name, &words)) {
                return cli;
            }
        }
        Cli::parse()
    }

    /// The command `name` with these arguments, for those that others run all the time: to describe all
    /// commands takes longer than to enter an environment. `None` leaves it to [`Cli::parse`], which
    /// has the words for what is wrong.
    fn of_one(name: &str, words: &[OsString]) -> Option<Self> {
        fn parse<C: Args>(words: &[OsString], command: impl Fn(C) -> cmd::Command) -> Option<Cli> {
            let one = One::<C>::try_parse_from(words).ok()?;
            let (command, global) = (command(one.args), one.global);
            Some(Cli { command, global })
        }
        match name {
            "shell" | "develop" => parse(words, |args| cmd::Command::Shell(Box::new(args))),
            "run" => parse(words, |args| cmd::Command::Run(Box::new(args))),
            "path-info" => parse(words, cmd::Command::PathInfo),
            "check" => parse(words, cmd::Command::Check),
            _ => None,
        }
    }
}

/// What every command gets.
#[derive(Clone)]
pub struct Context {
    store: Option<String>,
    settings: settings::Settings,
    ui: Ui,
    /// Cancelled when this process is told to end, for commands that say then what became of it.
    cancel: tk_nix::CancellationToken,
}

impl Context {
    /// The URI of the store to work on: `--store`, `NIX_REMOTE`, nix.conf's `store`, or `auto`.
    fn store_uri(&self) -> String {
        let remote = || {
            std::env::var("NIX_REMOTE")
                .ok()
                .filter(|uri| !uri.is_empty())
        };
        let configured = || self.settings.get("store").map(str::to_owned);
        let given = self.store.clone().or_else(remote).or_else(configured);
        given.unwrap_or_else(|| "auto".into())
    }
}

/// The answer of a command, as its exit status has it; what failed is an error and 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// 0: yes, or done.
    Yes,
    /// 1: no: something is missing or not what it should be.
    No,
    /// 2: something could not be done, and was told already.
    Failed,
}

impl Answer {
    /// The answer of a command that went on after these errors.
    fn after<'a>(errors: impl IntoIterator<Item = &'a Error>) -> Self {
        let answer = |error: &Error| match error {
            Error::Malformed { .. } => Answer::No,
            // A narinfo without its NAR.
            Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => Answer::No,
            error if is_no(error) => Answer::No,
            _ => Answer::Failed,
        };
        errors.into_iter().map(answer).max().unwrap_or(Answer::Yes)
    }
}

fn main() -> ExitCode {
    let cli = Cli::of_process();
    if cli.command.moves_data() {
        tk_heap::few();
    }
    match run(cli) {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Ok(Answer::Failed) => ExitCode::from(2),
        Err(error) if is_broken_pipe(&error) => ExitCode::from(141),
        Err(error) => {
            eprintln!("tk-store: {error:#}");
            let no = error.chain().any(|e| e.downcast_ref().is_some_and(is_no));
            ExitCode::from(if no { 1 } else { 2 })
        }
    }
}

fn run(cli: Cli) -> Result<Answer> {
    let context = Context {
        store: cli.global.store,
        settings: settings::Settings::load()?,
        ui: Ui::new(cli.global.quiet),
        cancel: tk_nix::CancellationToken::new(),
    };
    let serves = cli.command.serves();
    let mut runtime = match serves {
        true => tokio::runtime::Builder::new_multi_thread(),
        false => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = runtime.enable_all().build()?;
    let answer = match cli.command.runs_nix() {
        true => {
            let command = Box::pin(cli.command.run(&context));
            runtime.block_on(until_told_to_end(command, &context.cancel))
        }
        false => runtime.block_on(cli.command.run(&context)),
    };
    if serves {
        // Whatever still reads from a client that is silent would read for ever.
        runtime.shutdown_timeout(Duration::from_secs(1));
    }
    answer
}

/// What `command` gives, unless this process is told to end before: then it has a moment to say what
/// became of what it was doing, and is given up; and nix has a moment to end its builders, which are
/// in groups of processes of their own.
async fn until_told_to_end(
    mut command: Pin<Box<impl Future<Output = Result<Answer>>>>,
    cancel: &tk_nix::CancellationToken,
) -> Result<Answer> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut told_to_end = async || {
        tokio::select! {
            _ = interrupt.recv() => SignalKind::interrupt(),
            _ = terminate.recv() => SignalKind::terminate(),
        }
    };
    let ended = tokio::select! {
        answer = &mut command => Ok(answer),
        signal = told_to_end() => Err(signal),
    };
    if ended.is_err() {
        cancel.cancel();
        tokio::select! {
            answer = &mut command => {
                if let Err(error) = answer {
                    eprintln!("tk-store: {error:#}");
                }
            }
            () = tokio::time::sleep(TELLING) => {}
            _ = told_to_end() => {}
        }
    }
    drop(command);
    while tk_nix::ending() > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    match ended {
        Ok(answer) => answer,
        Err(signal) => std::process::exit(128 + signal.as_raw_value()),
    }
}

/// How long a command that was told to end may take to say what became of it.
const TELLING: Duration = Duration::from_secs(2);

/// Whether the error is an answer: asked and understood, but something is missing or is not what it
/// should be.
fn is_no(error: &Error) -> bool {
    matches!(
        error,
        Error::NotFound { .. }
            | Error::MissingReference { .. }
            | Error::Mismatch { .. }
            | Error::Untrusted { .. }
    )
}

/// Whether somebody like `head` closed our stdout: no failure of ours, and nothing to say.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let cause = cause.downcast_ref::<io::Error>();
        cause.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    })
}

const EXAMPLES: &str = "\
Examples:
  tk-store key generate my-cache-1 --secret my.key --public my.pub
  tk-store push ./result ./some-folder --to file:///srv/cache --sign-key my.key
  tk-store pull /nix/store/…-hello --from file:///srv/cache --trusted-key my.pub

Exit status: 0 yes or done, 1 no (something is missing or not what it should be), 2 failed or misused.";
