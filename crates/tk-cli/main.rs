//! `tk-store`: the Nix store without Nix, on the command line.
//!
//! Flags, output and exit codes are here; what an embedder would miss is in the crates below.

mod build_log;
mod cmd;
mod copying;
mod failure;
mod failures;
mod help;
mod interrupt;
mod keys;
mod listing;
mod open;
mod out_link;
mod output;
mod paths;
mod threads;
mod ui;
mod units;

use anyhow::Result;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, error::ErrorKind};
use rustix::{
    fs::Mode,
    process::{Resource, getrlimit, setrlimit, umask},
};
use std::{ffi::OsString, io, pin::Pin, process::ExitCode, sync::Arc, time::Duration};
use threads::Threads;
use tk_open::{OpenMessage, OpenSettings};
use tk_store::Error;
use ui::{ProgressMode, Ui};

/// The Nix store without Nix: read, hash, sign, check, copy and push store paths.
#[derive(Parser)]
#[command(name = "tk-store", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: cmd::CliCommand,
    #[command(flatten)]
    global: Global,
}

#[derive(Args)]
struct Global {
    /// The store to work on: auto, daemon, unix:///a/socket, ssh-ng://host, ssh://host,
    /// local?root=DIR, a folder, or a cache: file:///a/folder, https://host, s3://bucket, gs://bucket,
    /// az://container (to read from: may be repeated)
    #[arg(
        long,
        global = true,
        env = "TK_STORE",
        hide_env_values = true,
        value_name = "URI",
        help_heading = "Global options"
    )]
    store: Vec<String>,
    /// Say nothing but warnings and errors
    #[arg(long, short, global = true, help_heading = "Global options")]
    quiet: bool,
    /// Tell each request, each retry and what was decided, on stderr
    #[arg(long, short, global = true, conflicts_with = "quiet", action = clap::ArgAction::Count,
        help_heading = "Global options")]
    verbose: u8,
    /// How progress is shown on stderr [default: a bar on a terminal, else lines]
    ///
    /// json writes an object a line. Its "event" is one of begin, asking, started (a path is
    /// read), visible (a path is there for all), progress (every second), retry, request (with
    /// --verbose), message (with "level" and "text") and end. More events and fields may come.
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "HOW",
        help_heading = "Global options"
    )]
    progress: Option<ProgressMode>,
    /// Believe nothing that is remembered: ask caches again, evaluate again
    #[arg(long, global = true, help_heading = "Global options")]
    refresh: bool,
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
    /// The command line of this process.
    ///
    /// # Errors
    /// Where it makes no sense, and where only help was asked for.
    fn of_process() -> Result<(Self, EndOptions), clap::Error> {
        let mut words: Vec<_> = std::env::args_os().collect();
        if words.len() > 1 {
            let name = words.remove(1);
            if let Some(cli) = name.to_str().and_then(|name| Cli::of_one(name, &words)) {
                return Ok(cli);
            }
        }
        let matches = Cli::command()
            .try_get_matches()
            .or_else(|error| match error.kind() {
                // To write the help takes a moment that others need not wait for.
                ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                    help::with_examples(Cli::command()).try_get_matches()
                }
                _ => Err(error),
            })?;
        Ok((Cli::from_arg_matches(&matches)?, EndOptions::of(&matches)))
    }

    /// The command `name` with these arguments, for those that others run all the time: to describe all
    /// commands takes longer than to enter an environment. `None` leaves it to [`Cli::try_parse`], which
    /// has the words for what is wrong.
    fn of_one(name: &str, words: &[OsString]) -> Option<(Self, EndOptions)> {
        fn parse<C: Args>(
            words: &[OsString],
            command: impl Fn(C) -> cmd::CliCommand,
        ) -> Option<(Cli, EndOptions)> {
            let matches = One::<C>::command().try_get_matches_from(words).ok()?;
            let one = One::<C>::from_arg_matches(&matches).ok()?;
            let (command, global) = (command(one.args), one.global);
            Some((Cli { command, global }, EndOptions::of(&matches)))
        }
        match name {
            "shell" | "develop" => parse(words, |args| cmd::CliCommand::Shell(Box::new(args))),
            "run" => parse(words, |args| cmd::CliCommand::Run(Box::new(args))),
            "path-info" => parse(words, cmd::CliCommand::PathInfo),
            "check" => parse(words, cmd::CliCommand::Check),
            "direnv" if words.get(1).is_some_and(|word| word == "export") => {
                let words = [&words[..1], &words[2..]].concat();
                parse(&words, cmd::CliCommand::of_direnv)
            }
            _ => None,
        }
    }
}

/// What a command was asked for that concerns how it ends.
#[derive(Debug, Clone, Copy)]
struct EndOptions {
    /// A report as JSON.
    json: bool,
}

impl EndOptions {
    fn of(mut matches: &ArgMatches) -> Self {
        loop {
            if let Ok(Some(true)) = matches.try_get_one::<bool>("json") {
                return EndOptions { json: true };
            }
            match matches.subcommand() {
                Some((_, below)) => matches = below,
                None => return EndOptions { json: false },
            }
        }
    }
}

/// What every command gets.
#[derive(Clone)]
pub struct CommandContext {
    store: Vec<String>,
    /// What is remembered is not believed.
    refresh: bool,
    settings: Arc<OpenSettings>,
    threads: Threads,
    ui: Ui,
    /// Cancelled when this process is told to end, for commands that say then what became of it.
    cancel: tk_nix::CancellationToken,
}

impl CommandContext {
    /// The URI of the store to work on: `--store`, `TK_STORE`, nix.conf's `store`, `NIX_REMOTE`, or `auto`.
    fn store_uri(&self) -> String {
        let given = self.store.first().cloned();
        given.unwrap_or_else(|| self.settings.store_uri())
    }
}

/// What the environment and nix.conf say, for stores that tell what they have to tell through `ui`.
fn settings(ui: Ui, refresh: bool) -> Result<OpenSettings> {
    let mut settings = OpenSettings::from_environment()?;
    settings.refresh = refresh;
    settings.observer = ui.observer();
    settings.tell = Arc::new(move |message| match message {
        OpenMessage::Said(line) => ui.say(line),
        OpenMessage::Warning(line) => ui.warn(line),
        _ => {}
    });
    Ok(settings)
}

/// The answer of a command, as its exit status has it; what failed is an error and 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExitStatus {
    /// 0: yes, or done.
    Yes,
    /// 1: no: something is missing or not what it should be.
    No,
    /// 2: something could not be done, and was told already.
    Failed,
}

impl ExitStatus {
    /// The answer of a command that went on after these errors.
    fn after<'a>(errors: impl IntoIterator<Item = &'a Error>) -> Self {
        let answer = |error: &Error| match error {
            Error::Malformed { .. } => ExitStatus::No,
            // A narinfo without its NAR.
            Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => ExitStatus::No,
            error if is_no(error) => ExitStatus::No,
            _ => ExitStatus::Failed,
        };
        errors
            .into_iter()
            .map(answer)
            .max()
            .unwrap_or(ExitStatus::Yes)
    }
}

fn main() -> ExitCode {
    let (cli, asked) = match Cli::of_process() {
        Ok(parsed) => parsed,
        Err(error) => return output::tell_usage(&error),
    };
    if cli.command.moves_data() {
        // As Nix: a store or a cache is for others too, and nobody else writes it, whatever the user's
        // own files are to be. Those whom the user runs get the user's.
        umask(Mode::WGRP | Mode::WOTH);
        tk_heap::few();
        if !cli.command.runs_nix() {
            raise_descriptors();
        }
    }
    let global = &cli.global;
    let ui = Ui::new(global.quiet, global.verbose > 0, global.progress);
    match run(cli, ui) {
        Ok(ExitStatus::Yes) => ExitCode::SUCCESS,
        Ok(ExitStatus::No) => ExitCode::from(1),
        Ok(ExitStatus::Failed) => ExitCode::from(2),
        Err(error) if output::is_reader_gone(&error) => ExitCode::from(output::READER_GONE),
        Err(error) => {
            ui.error(output::line_of(&error));
            if asked.json && !output::has_written() {
                // There is nobody to tell where that fails.
                let _ = ui::out(failures::whole_to_json(&error));
            }
            let absent = |e: &(dyn std::error::Error + 'static)| {
                matches!(e.downcast_ref(), Some(tk_nar::MemberError::Missing(_)))
            };
            let no = |e| absent(e) || e.downcast_ref().is_some_and(is_no);
            let no = error.chain().any(no);
            ExitCode::from(if no { 1 } else { 2 })
        }
    }
}

/// Lets this process have as many files and connections open as the system allows it. Not where others
/// are run, who would inherit it: some go over all that they could have.
fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where it cannot be raised less is done at once.
    let _ = setrlimit(Resource::Nofile, limit);
}

fn run(cli: Cli, ui: Ui) -> Result<ExitStatus> {
    // An empty variable counts as unset.
    let stores: Vec<_> = cli
        .global
        .store
        .into_iter()
        .filter(|uri| !uri.is_empty())
        .collect();
    anyhow::ensure!(
        stores.len() <= 1 || cli.command.reads_several_stores(),
        "this command works on one store: --store is given {} times",
        stores.len()
    );
    let context = CommandContext {
        store: stores,
        refresh: cli.global.refresh,
        settings: Arc::new(settings(ui, cli.global.refresh)?),
        threads: if cli.command.moves_data() {
            Threads::find()?
        } else {
            Threads::default()
        },
        ui,
        cancel: tk_nix::CancellationToken::new(),
    };
    let serves = cli.command.serves();
    let mut runtime = if serves {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    runtime.enable_all();
    let runtime = context.threads.runtime(runtime)?;
    let answer = if cli.command.runs_nix() {
        let command = Box::pin(cli.command.run(&context));
        runtime.block_on(until_told_to_end(command, &context.cancel))
    } else {
        if let Some(advice) = cli.command.when_interrupted() {
            interrupt::watch(advice);
        }
        runtime.block_on(cli.command.run(&context))
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
    mut command: Pin<Box<impl Future<Output = Result<ExitStatus>>>>,
    cancel: &tk_nix::CancellationToken,
) -> Result<ExitStatus> {
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
                    output::tell_error(&error);
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

const EXAMPLES: &str = "\
Examples:
  tk-store key generate my-cache-1 --secret my.key --public my.pub
  tk-store push ./result ./some-folder --to file:///srv/cache --sign-key my.key
  tk-store pull /nix/store/…-hello --from file:///srv/cache --trusted-key my.pub

Environment: TK_STORE is --store, TK_SIGN_KEY the secret key to sign with, or the name of its file;
TK_TO is --to of push, TK_NIX the nix program. NIX_REMOTE, NIX_CONFIG, NIX_SSL_CERT_FILE, NETRC,
https_proxy and those of AWS are read as Nix reads them.

Exit status: 0 yes or done, 1 no (something is missing or not what it should be), 2 failed or misused.";
