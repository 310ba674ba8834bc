//! Real Nix beside the tests: the versions that `tests/rig/install` provides.
#![allow(dead_code, reason = "each test uses its part")]

use super::{skip, test_name};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tempfile::TempDir;

/// The versions that must take what we write, and whose writing we must take.
pub const VERSIONS: [&str; 3] = ["2.8", "2.26", "2.34"];

/// One real Nix, with configuration and state of its own: nothing of the user's Nix is read.
pub struct Rig {
    /// As in [`VERSIONS`].
    pub version: &'static str,
    bin: PathBuf,
    home: TempDir,
}

/// Real Nix `version`; without it the test is skipped.
pub fn rig(version: &'static str) -> Option<Rig> {
    let bin = folder().join(version).join("bin");
    if !bin.join("nix").exists() {
        let name = format!("{} with real Nix {version}", test_name());
        skip(&name, "not installed; tests/rig/install does it on Debian");
        return None;
    }
    let home = TempDir::new().expect("a temporary folder");
    fs::write(home.path().join("nix.conf"), CONFIGURATION).expect("writable");
    Some(Rig { version, bin, home })
}

impl Rig {
    /// A program of this Nix (`nix`, `nix-store`, ...), without a store: give it `--store DIR`.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("NIX_") {
                command.env_remove(name);
            }
        }
        let home = self.home.path();
        command
            .env("HOME", home)
            .env("NIX_CONF_DIR", home)
            .env("NIX_USER_CONF_FILES", "")
            .env("NIX_STATE_DIR", home.join("state"))
            .env("NIX_LOG_DIR", home.join("log"))
            .env("XDG_CACHE_HOME", home.join("cache"))
            .env("XDG_CONFIG_HOME", home.join("config"))
            .env("XDG_DATA_HOME", home.join("data"))
            .stdin(Stdio::null());
        command
    }

    /// The script that runs a command beside a private daemon of this version; add its options and
    /// the command with [`Command::args`], in the order `OPTION... VERSION -- COMMAND`.
    pub fn with_daemon(&self) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rig/with-daemon");
        let mut command = Command::new(script);
        command.env("NIX_RIG_DIR", folder()).stdin(Stdio::null());
        command
    }

    /// Runs a command of this Nix to its end and gives its stdout.
    ///
    /// # Panics
    /// When it fails, with what it wrote to stderr.
    pub fn run<'a>(&self, program: &str, args: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
        self.try_run(self.command(program).args(args))
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs `command`, which [`Rig::command`] made, and gives its stdout; when it fails, what it
    /// wrote to stderr.
    pub fn try_run(&self, command: &mut Command) -> Result<Vec<u8>, String> {
        let out = command.output().expect("nix starts");
        if out.status.success() {
            return Ok(out.stdout);
        }
        let shown: String = format!("{command:?}").chars().take(SHOWN).collect();
        Err(format!(
            "{shown} of {}: {}\n{}",
            self.version,
            out.status,
            String::from_utf8_lossy(&out.stderr)
        ))
    }
}

/// As tests/rig/where.
fn folder() -> PathBuf {
    if let Some(folder) = env::var_os("NIX_RIG_DIR").filter(|dir| !dir.is_empty()) {
        return folder.into();
    }
    let cache = || match env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()) {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache"),
    };
    let usual = PathBuf::from("/opt/nix-rig");
    if usual.is_dir() {
        usual
    } else {
        cache().join("tk-store/nix-rig")
    }
}

/// Characters of a command in a message: it may have hundreds of arguments.
const SHOWN: usize = 2000;
const CONFIGURATION: &str = "\
experimental-features = nix-command flakes ca-derivations
build-users-group =
substituters =
sandbox = false
connect-timeout = 5
";
