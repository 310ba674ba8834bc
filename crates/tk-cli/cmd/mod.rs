//! One module a command; its name is the command's.

mod add;
mod build;
mod builders;
mod cache;
mod cat;
mod check;
mod ci;
mod closure;
mod completions;
mod copy;
mod daemon;
mod delete;
mod derivation;
mod diff;
mod direnv;
mod doctor;
mod du;
mod env;
mod eval;
mod flake;
mod gc;
mod hash;
mod key;
mod log;
mod ls;
mod nar;
mod optimise;
mod path_info;
mod pull;
mod push;
mod realisation;
mod repro;
mod roots;
mod serve_ssh;
mod shell;
mod sign;
mod store;
mod verify;
mod why_depends;

use crate::{CommandContext, ExitStatus};
use anyhow::Result;
use clap::Subcommand;
use tk_store::{Closure, Store};

/// What to do.
#[derive(Subcommand)]
pub enum CliCommand {
    Push(push::Push),
    Pull(pull::Pull),
    Copy(copy::Copy),
    Add(add::Add),
    Check(check::CheckCommand),
    #[command(subcommand)]
    Ci(ci::Ci),
    PathInfo(path_info::PathInfoCommand),
    Closure(closure::ClosureCommand),
    WhyDepends(why_depends::WhyDepends),
    Du(du::Du),
    Diff(diff::DiffCommand),
    Ls(ls::Ls),
    Cat(cat::Cat),
    Verify(verify::VerifyCommand),
    Optimise(optimise::OptimiseCommand),
    Sign(sign::SignCommand),
    Build(Box<build::BuildCommand>),
    #[command(subcommand)]
    Builders(builders::Builders),
    Eval(Box<eval::Eval>),
    #[command(subcommand)]
    Flake(flake::Flake),
    #[command(visible_alias = "develop")]
    Shell(Box<shell::Shell>),
    Run(Box<shell::RunCommand>),
    #[command(subcommand)]
    Env(Box<env::Env>),
    #[command(subcommand)]
    Direnv(Box<direnv::Direnv>),
    Log(log::LogCommand),
    Gc(gc::GcCommand),
    Delete(delete::Delete),
    #[command(subcommand)]
    Repro(repro::Repro),
    #[command(subcommand)]
    Roots(roots::RootsCommand),
    #[command(subcommand)]
    Store(store::StoreCommand),
    #[command(subcommand)]
    Realisation(realisation::RealisationCommand),
    ServeSsh(serve_ssh::ServeSsh),
    #[command(subcommand)]
    Derivation(derivation::DerivationCommand),
    #[command(subcommand)]
    Key(key::KeyCommand),
    #[command(subcommand)]
    Cache(cache::Cache),
    #[command(subcommand)]
    Nar(nar::Nar),
    #[command(subcommand)]
    Hash(hash::HashCommand),
    Daemon(Box<daemon::Daemon>),
    Doctor(doctor::Doctor),
    Completions(completions::Completions),
    #[command(hide = true)]
    Complete(completions::Complete),
    Man(completions::Man),
}

impl CliCommand {
    /// What the library for direnv runs each time that a project is entered.
    pub fn of_direnv(export: direnv::DirenvExport) -> Self {
        CliCommand::Direnv(Box::new(direnv::Direnv::Export(Box::new(export))))
    }

    /// Whether it works for many clients at once, and wants several threads.
    pub fn serves(&self) -> bool {
        matches!(self, CliCommand::Daemon(_))
    }

    /// Whether it may have much in memory. To arrange for that takes a moment, which those that enter an
    /// environment do not need to wait for.
    pub fn moves_data(&self) -> bool {
        !matches!(
            self,
            CliCommand::Shell(_) | CliCommand::Run(_) | CliCommand::Direnv(_)
        )
    }

    /// What to say when it is interrupted, if it shows how far it is.
    pub fn when_interrupted(&self) -> Option<&'static str> {
        match self {
            CliCommand::Push(_) | CliCommand::Pull(_) | CliCommand::Copy(_) => Some(
                "interrupted; the same command goes on from there: what has arrived is not sent again",
            ),
            CliCommand::Add(_)
            | CliCommand::Check(_)
            | CliCommand::Verify(_)
            | CliCommand::Optimise(_) => Some("interrupted"),
            _ => None,
        }
    }

    /// Whether it runs nix, which is to end with it.
    pub fn runs_nix(&self) -> bool {
        matches!(
            self,
            CliCommand::Build(_)
                | CliCommand::Builders(_)
                | CliCommand::Ci(ci::Ci::Generate(_))
                | CliCommand::Eval(_)
                | CliCommand::Repro(_)
        )
    }

    /// Whether it only reads, and from several stores as well as from one.
    pub fn reads_several_stores(&self) -> bool {
        matches!(
            self,
            CliCommand::PathInfo(_)
                | CliCommand::Closure(_)
                | CliCommand::WhyDepends(_)
                | CliCommand::Du(_)
                | CliCommand::Diff(_)
                | CliCommand::Ls(_)
                | CliCommand::Cat(_)
                | CliCommand::Verify(_)
        )
    }

    /// Does it.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        match self {
            CliCommand::Push(args) => args.run(cx).await,
            CliCommand::Pull(args) => args.run(cx).await,
            CliCommand::Copy(args) => args.run(cx).await,
            CliCommand::Add(args) => args.run(cx).await,
            CliCommand::Check(args) => args.run(cx).await,
            CliCommand::Ci(args) => args.run(cx).await,
            CliCommand::PathInfo(args) => args.run(cx).await,
            CliCommand::Closure(args) => args.run(cx).await,
            CliCommand::WhyDepends(args) => args.run(cx).await,
            CliCommand::Du(args) => args.run(cx).await,
            CliCommand::Diff(args) => args.run(cx).await,
            CliCommand::Ls(args) => args.run(cx).await,
            CliCommand::Cat(args) => args.run(cx).await,
            CliCommand::Verify(args) => args.run(cx).await,
            CliCommand::Optimise(args) => args.run(cx).await,
            CliCommand::Sign(args) => args.run(cx).await,
            CliCommand::Build(args) => args.run(cx).await,
            CliCommand::Builders(args) => args.run(cx).await,
            CliCommand::Eval(args) => args.run(cx).await,
            CliCommand::Flake(args) => args.run(cx).await,
            CliCommand::Shell(args) => args.run(cx).await,
            CliCommand::Run(args) => args.run(cx).await,
            CliCommand::Env(args) => args.run(cx).await,
            CliCommand::Direnv(args) => args.run(cx).await,
            CliCommand::Log(args) => args.run(cx).await,
            CliCommand::Gc(args) => args.run(cx).await,
            CliCommand::Delete(args) => args.run(cx).await,
            CliCommand::Repro(args) => args.run(cx).await,
            CliCommand::Roots(args) => args.run(cx).await,
            CliCommand::Store(args) => args.run(cx).await,
            CliCommand::Realisation(args) => args.run(cx).await,
            CliCommand::ServeSsh(args) => args.run(cx).await,
            CliCommand::Derivation(args) => args.run(cx).await,
            CliCommand::Key(args) => args.run(cx),
            CliCommand::Cache(args) => args.run(cx).await,
            CliCommand::Nar(args) => args.run(cx),
            CliCommand::Hash(args) => args.run(cx),
            CliCommand::Daemon(args) => args.run(cx).await,
            CliCommand::Doctor(args) => args.run(cx).await,
            CliCommand::Completions(args) => args.run(),
            CliCommand::Complete(args) => args.run(cx).await,
            CliCommand::Man(args) => args.run(),
        }
    }
}

/// Says which paths the store does not have, and who refers to them; the answer that follows.
fn tell_absent(cx: &CommandContext, found: &Closure, store: &dyn Store) -> ExitStatus {
    for (path, referrer) in &found.absent {
        let why = match referrer {
            None => String::new(),
            Some(referrer) => format!(" ({referrer} refers to it)"),
        };
        cx.ui.error(format_args!("{path} is not in {store}{why}"));
    }
    if found.absent.is_empty() {
        ExitStatus::Yes
    } else {
        ExitStatus::No
    }
}
