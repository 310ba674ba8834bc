//! `tk-bench`: how fast this project is beside real Nix and other crates, in one run. See README.md.

mod ask;
mod closures;
mod compare;
mod contender;
mod contest;
mod corpus;
mod daemon;
mod fresh;
mod job;
mod limits;
mod marks;
mod measure;
mod network;
mod place;
mod plot;
mod report;
mod small;
mod upkeep;
mod work;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// Measures this project beside real Nix and other crates.
#[derive(Parser)]
#[command(name = "tk-bench", max_term_width = 100)]
enum Cli {
    Compare(compare::Compare),
    Daemon(daemon::Daemon),
    Network(network::Network),
    Plot(plot::Plot),
    Upkeep(upkeep::Upkeep),
    #[command(flatten)]
    Process(Process),
}

/// What this program starts itself for, so that each thing measured is a process of its own.
#[derive(clap::Subcommand)]
enum Process {
    #[command(hide = true)]
    Ask(ask::Ask),
    #[command(hide = true)]
    Measure(measure::Measure),
    #[command(hide = true, subcommand)]
    Work(work::Work),
    #[command(hide = true, subcommand)]
    Limit(limits::Limit),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("tk-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// False if something of ours failed.
fn run(cli: Cli) -> Result<bool> {
    match cli {
        Cli::Compare(compare) => compare.run(),
        Cli::Daemon(daemon) => daemon.run(),
        Cli::Network(network) => network.run(),
        Cli::Upkeep(upkeep) => upkeep.run(),
        Cli::Plot(plot) => plot.run().map(|()| true),
        Cli::Process(Process::Ask(ask)) => ask.run().map(|()| true),
        Cli::Process(Process::Measure(measure)) => measure.run().map(|()| true),
        Cli::Process(Process::Work(work)) => work.run().map(|()| true),
        Cli::Process(Process::Limit(limit)) => limit.run().map(|()| true),
    }
}
