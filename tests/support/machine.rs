//! The program on a machine of its own.
#![allow(dead_code, reason = "each test uses its part")]

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};
use tempfile::TempDir;

/// A machine without Nix: a home of its own, no configuration, no daemon.
pub struct Machine {
    home: TempDir,
}

/// What a command did.
#[derive(Debug)]
pub struct Done {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Machine {
    pub fn new() -> Self {
        Machine {
            home: TempDir::new().expect("a temporary folder"),
        }
    }

    /// The home folder, in which relative paths of commands begin.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The user's own store.
    pub fn store(&self) -> PathBuf {
        self.home().join(".local/share/nix/root")
    }

    /// Makes a file with its folders.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.home().join(name);
        fs::create_dir_all(path.parent().expect("below home")).expect("writable");
        fs::write(&path, content).expect("writable");
        path
    }

    /// `tk-store` with `args`, not started yet.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tk-store"));
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            let own = ["TK_STORE", "TK_SIGN_KEY", "TK_TO"].contains(&&*name);
            if own || name.starts_with("NIX_") || name.starts_with("XDG_") {
                command.env_remove(&*name);
            }
        }
        command
            .args(args)
            .current_dir(self.home())
            .env("HOME", self.home())
            .env("NIX_CONF_DIR", self.home().join("etc"))
            // What `auto` would give where there is no Nix; this machine may have one.
            .env("NIX_REMOTE", self.store())
            .stdin(Stdio::null());
        command
    }

    /// Runs `tk-store` to its end. Words are split at blanks, so no argument may hold one.
    pub fn run(&self, line: &str) -> Done {
        self.done(self.command(line.split_whitespace()).output())
    }

    /// [`run`](Self::run), which must end with 0; gives stdout without the last newline.
    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        let done = self.run(line);
        assert_eq!(done.status, 0, "tk-store {line}: {done:?}");
        done.out.trim_end().to_owned()
    }

    /// [`run`](Self::run), which must end with `status`; gives stderr.
    #[track_caller]
    pub fn fails(&self, status: i32, line: &str) -> String {
        let done = self.run(line);
        assert_eq!(done.status, status, "tk-store {line}: {done:?}");
        assert!(!done.err.contains("panicked"), "tk-store {line}: {done:?}");
        done.err
    }

    pub fn done(&self, output: std::io::Result<Output>) -> Done {
        let output = output.expect("tk-store starts");
        Done {
            status: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The URI of the cache in `name`.
    pub fn cache(&self, name: &str) -> String {
        format!("file://{}/{name}", self.home().display())
    }
}
