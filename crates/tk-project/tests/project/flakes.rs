//! Flakes in a folder of their own, locked by real Nix.

use super::support::{Rig, rig};
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tempfile::TempDir;

/// A folder for flakes, and a real Nix with a store in it.
pub struct FlakeBench {
    pub rig: Rig,
    dir: TempDir,
}

impl FlakeBench {
    /// One with Nix `version`, if it is there.
    pub fn new(version: &'static str) -> Option<FlakeBench> {
        let rig = rig(version)?;
        let dir = TempDir::new().unwrap();
        Some(FlakeBench { rig, dir })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// Makes the flake `name` with these lines about inputs.
    pub fn flake(&self, name: &str, inputs: &str) -> PathBuf {
        let text = format!("{{\n{inputs}\n  outputs = _: {{ }};\n}}\n");
        let file = self.write(&format!("{name}/flake.nix"), text);
        file.parent().unwrap().to_owned()
    }

    /// Nix with `args`; what it prints, or its words.
    pub fn nix(&self, args: &[&str]) -> Result<String, String> {
        let mut command = self.rig.command("nix");
        command.args(args).arg("--store").arg(self.path("store"));
        hermetic(&mut command);
        let out = self.rig.try_run(&mut command)?;
        Ok(String::from_utf8(out).unwrap())
    }

    /// The flake.lock that Nix makes for the flake `name`; empty if it makes none.
    pub fn locked(&self, name: &str) -> Result<String, String> {
        let folder = self.path(name);
        self.nix(&["flake", "lock", &format!("path:{}", folder.display())])?;
        Ok(fs::read_to_string(folder.join("flake.lock")).unwrap_or_default())
    }

    /// Git with `args` in the folder `name`; its line.
    pub fn git(&self, name: &str, args: &[&str]) -> String {
        git(&self.path(name), args)
    }

    /// Makes the folder `name` a repository with all that is in it.
    pub fn commit(&self, name: &str) -> String {
        commit(&self.path(name))
    }
}

pub fn hermetic(command: &mut Command) {
    command
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "protocol.file.allow")
        .env("GIT_CONFIG_VALUE_0", "always")
        .env("GIT_AUTHOR_DATE", "@1600000000 +0000")
        .env("GIT_COMMITTER_DATE", "@1600000001 +0000");
}

pub fn git(folder: &Path, args: &[&str]) -> String {
    let mut command = Command::new("git");
    hermetic(&mut command);
    command.current_dir(folder).stdin(Stdio::null()).args([
        "-c",
        "user.name=n",
        "-c",
        "user.email=n@example.org",
        "-c",
        "init.defaultBranch=main",
    ]);
    let out = command.args(args).output().expect("git is there");
    assert!(
        out.status.success(),
        "git {args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap().trim_end().to_owned()
}

/// Commits all that is in `folder`, which becomes a repository if it is none. The commit.
pub fn commit(folder: &Path) -> String {
    if !folder.join(".git").exists() {
        git(folder, &["init", "-q"]);
    }
    git(folder, &["add", "-A"]);
    git(folder, &["commit", "-q", "--allow-empty", "-m", "c"]);
    git(folder, &["rev-parse", "HEAD"])
}

/// Numbers that look random, always the same ones.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// One below `below`.
    pub fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }

    /// Fills `folder` with files, executables, links and folders.
    pub fn tree(&mut self, folder: &Path, depth: usize) {
        fs::create_dir_all(folder).unwrap();
        for index in 0..2 + self.roll(4) {
            let names = ["a", "a.b", "a-b", "é", "with blank", "B", "z", "0"];
            let path = folder.join(format!("{}{index}", names[self.roll(names.len())]));
            match self.roll(6) {
                0 => symlink(["a", "../x", "/nowhere"][self.roll(3)], &path).unwrap(),
                1 if depth > 0 => self.tree(&path, depth - 1),
                kind => {
                    let size = [0, 1, 7, 8, 9, 4096, 70_000][self.roll(7)];
                    let bytes: Vec<u8> = (0..size).map(|_| self.roll(256) as u8).collect();
                    fs::write(&path, bytes).unwrap();
                    let mode = if kind == 2 { 0o755 } else { 0o644 };
                    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                }
            }
        }
    }
}
