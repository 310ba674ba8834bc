//! `tk-instructions`: fails when a codec takes more instructions than it did. See benches/README.md.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lexopt::{Arg, ValueExt};
use tk_instructions::codecs::{self, CODECS};
use tk_instructions::counts::{self, Counts, Verdict};
use tk_instructions::valgrind;

const USAGE: &str = "\
Counts the instructions of each codec with valgrind, and compares them with committed figures.

tk-instructions [--bless] [--file FILE] [--only CODEC]...

  --bless        commit what is counted: write it to FILE
  --file FILE    the committed figures [default: benches/instructions.json]
  --only CODEC   this one only, may be given again

Exit status: 0 as before, or skipped since other tools would count differently; 1 a codec takes over 3 % more;
2 it could not be found out.";

fn main() -> ExitCode {
    match Options::parse().and_then(Options::run) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("tk-instructions: {error:#}");
            ExitCode::from(2)
        }
    }
}

#[derive(Debug, Default)]
struct Options {
    help: bool,
    bless: bool,
    file: PathBuf,
    only: Vec<String>,
    /// What this program starts itself for, under valgrind.
    work: Option<String>,
    rounds: u64,
}

impl Options {
    fn parse() -> Result<Self> {
        let mut options = Options {
            file: concat!(env!("CARGO_MANIFEST_DIR"), "/../instructions.json").into(),
            ..Options::default()
        };
        let mut args = lexopt::Parser::from_env();
        while let Some(arg) = args.next()? {
            match arg {
                Arg::Long("help") | Arg::Short('h') => options.help = true,
                Arg::Long("bless") => options.bless = true,
                Arg::Long("file") => options.file = args.value()?.into(),
                Arg::Long("only") => options.only.push(args.value()?.string()?),
                Arg::Long("work") => options.work = Some(args.value()?.string()?),
                Arg::Long("rounds") => options.rounds = args.value()?.parse()?,
                other => return Err(other.unexpected().into()),
            }
        }
        for name in options.only.iter().chain(&options.work) {
            codecs::find(name).with_context(|| format!("there is no codec {name}"))?;
        }
        Ok(options)
    }

    /// False when a codec takes more than it did.
    fn run(self) -> Result<bool> {
        if self.help {
            println!("{USAGE}");
            return Ok(true);
        }
        if let Some(codec) = self.work.as_deref().and_then(codecs::find) {
            valgrind::work(codec, self.rounds);
            return Ok(true);
        }
        let Some(here) = counts::here() else {
            ensure!(!self.bless, "valgrind is not in PATH");
            return Ok(skipped("valgrind is not in PATH"));
        };
        if self.bless {
            self.bless(here)
        } else {
            self.check(here)
        }
    }

    fn check(&self, here: Counts) -> Result<bool> {
        let before = Counts::read(&self.file)?;
        if let Some(why) = before.other_tools(&here) {
            return Ok(skipped(&why));
        }
        let mut passes = true;
        println!("{:18}{:>12}{:>12}", "", "committed", "now");
        for (name, now) in self.count()? {
            let committed = before.instructions.get(&name).copied();
            let verdict = Verdict::of(committed, now);
            println!(
                "{name:18}{:>12}{now:>12}  {verdict}",
                committed.unwrap_or(0)
            );
            passes &= verdict.passes();
        }
        if !passes {
            println!("If it has to be so: cargo run --release -p tk-instructions -- --bless");
        }
        Ok(passes)
    }

    /// Writes what is counted. With `--only`, other figures stay, unless other tools counted them.
    fn bless(&self, mut here: Counts) -> Result<bool> {
        let before = Counts::read(&self.file).ok();
        if let Some(before) = before.filter(|before| before.other_tools(&here).is_none()) {
            here.instructions = before.instructions;
        }
        here.instructions
            .retain(|name, _| codecs::find(name).is_some());
        for (name, now) in self.count()? {
            println!("{name:18}{now:>12}");
            here.instructions.insert(name, now);
        }
        here.write(&self.file)?;
        Ok(true)
    }

    fn count(&self) -> Result<Vec<(String, u64)>> {
        let program = std::env::current_exe()?;
        let names = CODECS.iter().map(|(name, _)| (*name).to_owned());
        let wanted = names.filter(|name| self.only.is_empty() || self.only.contains(name));
        wanted
            .map(|name| Ok((name.clone(), valgrind::count(&program, &name)?)))
            .collect()
    }
}

/// Says it where it is seen; nothing is wrong.
fn skipped(why: &str) -> bool {
    println!("skipped: instructions: {why}");
    true
}
