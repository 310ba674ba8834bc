//! One module a command; its name is the command's.

mod add;
mod cache;
mod cat;
mod closure;
mod completions;
mod copy;
mod hash;
mod key;
mod ls;
mod nar;
mod path_info;
mod pull;
mod push;
mod sign;
mod verify;

use crate::{Answer, Context};
use anyhow::Result;
use clap::Subcommand;

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    Push(push::Push),
    Pull(pull::Pull),
    Copy(copy::Copy),
    Add(add::Add),
    PathInfo(path_info::PathInfo),
    Closure(closure::Closure),
    Ls(ls::Ls),
    Cat(cat::Cat),
    Verify(verify::Verify),
    Sign(sign::Sign),
    #[command(subcommand)]
    Key(key::Key),
    #[command(subcommand)]
    Cache(cache::Cache),
    #[command(subcommand)]
    Nar(nar::Nar),
    #[command(subcommand)]
    Hash(hash::Hash),
    Completions(completions::Completions),
    Man(completions::Man),
}

impl Command {
    /// Does it.
    pub async fn run(self, cx: &Context) -> Result<Answer> {
        match self {
            Command::Push(args) => args.run(cx).await,
            Command::Pull(args) => args.run(cx).await,
            Command::Copy(args) => args.run(cx).await,
            Command::Add(args) => args.run(cx).await,
            Command::PathInfo(args) => args.run(cx).await,
            Command::Closure(args) => args.run(cx).await,
            Command::Ls(args) => args.run(cx).await,
            Command::Cat(args) => args.run(cx).await,
            Command::Verify(args) => args.run(cx).await,
            Command::Sign(args) => args.run(cx).await,
            Command::Key(args) => args.run(cx),
            Command::Cache(args) => args.run(cx).await,
            Command::Nar(args) => args.run(cx),
            Command::Hash(args) => args.run(cx),
            Command::Completions(args) => args.run(),
            Command::Man(args) => args.run(),
        }
    }
}
