//! How many instructions one pass of a codec takes, by valgrind.
//!
//! This program is run twice under valgrind's cachegrind, with some passes and with more: the difference is what the
//! passes take. So start-up, input and what is made only once (buffers, the choice of the best code for the processor)
//! do not count.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::codecs::Codec;

/// What valgrind calls itself, such as `valgrind-3.24.0`; none if it is not there.
pub fn version() -> Option<String> {
    let out = Command::new(VALGRIND).arg("--version").output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    out.status.success().then(|| text.trim().to_owned())
}

/// Instructions of one pass of `codec`, done by `program`, which must be this package's.
///
/// # Errors
/// When valgrind or the codec fails.
pub fn count(program: &Path, codec: &str) -> Result<u64> {
    let (few, many) = (
        instructions(program, codec, 1)?,
        instructions(program, codec, 2)?,
    );
    let passes = many.checked_sub(few).filter(|passes| *passes > 0);
    let passes =
        passes.with_context(|| format!("{codec}: {many} instructions, but {few} for half"))?;
    Ok(passes / PASSES)
}

/// Does `rounds` of 20 passes each: what runs under valgrind.
///
/// `TK_PLANTED_SLOWDOWN=CODEC` makes that codec do 5 % more. So the tests can see that the guard sees it.
pub fn work((name, make): Codec, rounds: u64) {
    let planted = env::var(PLANTED).is_ok_and(|planted| planted == name);
    let passes = if planted {
        PASSES + PASSES / 20
    } else {
        PASSES
    };
    let mut pass = make();
    let done: usize = (0..rounds * passes).map(|_| pass()).sum();
    println!("{done}");
}

fn instructions(program: &Path, codec: &str, rounds: u64) -> Result<u64> {
    let out = tempfile::NamedTempFile::new().context("making a temporary file")?;
    let mut command = Command::new(VALGRIND);
    command
        .args(["--tool=cachegrind", "--cache-sim=no", "--error-exitcode=99"])
        .arg(joined("--cachegrind-out-file=", out.path()))
        .arg(program)
        .args(["--work", codec, "--rounds", &rounds.to_string()])
        .stdin(Stdio::null());
    // Nothing of the caller's surroundings counts.
    let kept = ["PATH", PLANTED].map(|name| (name, env::var_os(name)));
    let kept = kept
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    let done = command
        .env_clear()
        .envs(kept)
        .output()
        .context("starting valgrind")?;
    ensure!(
        done.status.success(),
        "{codec} under valgrind: {}: {}",
        done.status,
        String::from_utf8_lossy(&done.stderr).trim()
    );
    let text = std::fs::read_to_string(out.path()).context("reading what cachegrind counted")?;
    summary(&text)
}

/// The sum at the end of cachegrind's output: `summary: 123`, the first figure is that of instructions.
fn summary(text: &str) -> Result<u64> {
    let line = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("summary:"));
    let Some(line) = line else {
        bail!("cachegrind gave no sum");
    };
    let number = line.split_whitespace().next().unwrap_or_default();
    number
        .parse()
        .with_context(|| format!("cachegrind's sum is {line:?}"))
}

fn joined(option: &str, path: &Path) -> PathBuf {
    let mut text = std::ffi::OsString::from(option);
    text.push(path);
    text.into()
}

/// The variable that names a codec to slow down.
pub const PLANTED: &str = "TK_PLANTED_SLOWDOWN";

/// In a round; a multiple of 20.
const PASSES: u64 = 20;

const VALGRIND: &str = "valgrind";

const _: () = assert!(PASSES.is_multiple_of(20));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_the_first_figure_of_the_last_line() {
        let text = "desc: x\nevents: Ir\nfn=a\n1 100\nsummary: 1234 9\n";
        assert_eq!(summary(text).unwrap(), 1234);
        assert!(summary("events: Ir\n").is_err());
        assert!(summary("summary: many\n").is_err());
    }
}
