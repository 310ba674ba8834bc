//! One module a command; its name is the command's.

mod add;
mod build;
mod builders;
mod cache;
mod cat;
mod check;
mod closure;
mod completions;
mod copy;
mod daemon;
mod derivation;
mod env;
mod eval;
mod hash;
mod key;
mod log;
mod ls;
mod nar;
mod path_info;
mod pull;
mod push;
mod realisation;
mod repro;
mod serve_ssh;
mod shell;
mod sign;
mod store;
mod verify;

use crate::{Answer, Context};
use anyhow::Result;
use clap::Subcommand;
use tk_store::{Closure, Store};

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    Push(push::Push),
    Pull(pull::Pull),
    Copy(copy::Copy),
    Add(add::Add),
    Check(check::Check),
    PathInfo(path_info::PathInfo),
    Closure(closure::Closure),
    Ls(ls::Ls),
    Cat(cat::Cat),
    Verify(verify::Verify),
    Sign(sign::Sign),
    Build(Box<build::Build>),
    #[command(subcommand)]
    Builders(builders::Builders),
    Eval(Box<eval::Eval>),
    #[command(visible_alias = "develop")]
    Shell(Box<shell::Shell>),
    Run(Box<shell::Run>),
    #[command(subcommand)]
    Env(Box<env::Env>),
    Log(log::Log),
    #[command(subcommand)]
    Repro(repro::Repro),
    #[command(subcommand)]
    Store(store::Store),
    #[command(subcommand)]
    Realisation(realisation::Realisation),
    ServeSsh(serve_ssh::ServeSsh),
    #[command(subcommand)]
    Derivation(derivation::Derivation),
    #[command(subcommand)]
    Key(key::Key),
    #[command(subcommand)]
    Cache(cache::Cache),
    #[command(subcommand)]
    Nar(nar::Nar),
    #[command(subcommand)]
    Hash(hash::Hash),
    Daemon(Box<daemon::Daemon>),
    Completions(completions::Completions),
    #[command(hide = true)]
    Complete(completions::Complete),
    Man(completions::Man),
}

impl Command {
    /// Whether it works for many clients at once, and wants several threads.
    pub fn serves(&self) -> bool {
        matches!(self, Command::Daemon(_))
    }

    /// Whether it may have much in memory. To arrange for that takes a moment, which those that enter an
    /// environment do not need to wait for.
    pub fn moves_data(&self) -> bool {
        !matches!(self, Command::Shell(_) | Command::Run(_))
    }

    /// What to say when it is interrupted, if it shows how far it is.
    pub fn when_interrupted(&self) -> Option<&'static str> {
        match self {
            Command::Push(_) | Command::Pull(_) | Command::Copy(_) => Some(
                "interrupted; the same command goes on from there: what has arrived is not sent again",
            ),
            Command::Add(_) | Command::Check(_) | Command::Verify(_) => Some("interrupted"),
            _ => None,
        }
    }

    /// Whether it runs nix, which is to end with it.
    pub fn runs_nix(&self) -> bool {
        matches!(
            self,
            Command::Build(_) | Command::Builders(_) | Command::Eval(_) | Command::Repro(_)
        )
    }

    /// Whether it only reads, and from several stores as well as from one.
    pub fn reads_several_stores(&self) -> bool {
        matches!(
            self,
            Command::PathInfo(_)
                | Command::Closure(_)
                | Command::Ls(_)
                | Command::Cat(_)
                | Command::Verify(_)
        )
    }

    /// Does it.
    pub async fn run(self, cx: &Context) -> Result<Answer> {
        match self {
            Command::Push(args) => args.run(cx).await,
            Command::Pull(args) => args.run(cx).await,
            Command::Copy(args) => args.run(cx).await,
            Command::Add(args) => args.run(cx).await,
            Command::Check(args) => args.run(cx).await,
            Command::PathInfo(args) => args.run(cx).await,
            Command::Closure(args) => args.run(cx).await,
            Command::Ls(args) => args.run(cx).await,
            Command::Cat(args) => args.run(cx).await,
            Command::Verify(args) => args.run(cx).await,
            Command::Sign(args) => args.run(cx).await,
            Command::Build(args) => args.run(cx).await,
            Command::Builders(args) => args.run(cx).await,
            Command::Eval(args) => args.run(cx).await,
            Command::Shell(args) => args.run(cx).await,
            Command::Run(args) => args.run(cx).await,
            Command::Env(args) => args.run(cx).await,
            Command::Log(args) => args.run(cx).await,
            Command::Repro(args) => args.run(cx).await,
            Command::Store(args) => args.run(cx).await,
            Command::Realisation(args) => args.run(cx).await,
            Command::ServeSsh(args) => args.run(cx).await,
            Command::Derivation(args) => args.run(cx).await,
            Command::Key(args) => args.run(cx),
            Command::Cache(args) => args.run(cx).await,
            Command::Nar(args) => args.run(cx),
            Command::Hash(args) => args.run(cx),
            Command::Daemon(args) => args.run(cx).await,
            Command::Completions(args) => args.run(),
            Command::Complete(args) => args.run(cx).await,
            Command::Man(args) => args.run(),
        }
    }
}

/// Says which paths the store does not have, and who refers to them; the answer that follows.
fn tell_absent(cx: &Context, found: &Closure, store: &dyn Store) -> Answer {
    for (path, referrer) in &found.absent {
        let why = match referrer {
            None => String::new(),
            Some(referrer) => format!(" ({referrer} refers to it)"),
        };
        cx.ui.error(format_args!("{path} is not in {store}{why}"));
    }
    if found.absent.is_empty() {
        Answer::Yes
    } else {
        Answer::No
    }
}
