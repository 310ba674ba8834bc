//! The jobs, and the command with which each contender does them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tk_path::{Algorithm, Hash};

use crate::contender::Contender;
use crate::corpus::{Corpus, Kind};
use crate::measure::{Cmd, Surroundings};
use crate::work::{Library, hash};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Job {
    /// Write the NAR to /dev/null
    Dump,
    /// The SHA-256 of the NAR
    Hash,
    /// Make the tree from its NAR, beside the corpora
    Unpack,
    /// The same in /dev/shm
    UnpackTmpfs,
    /// From a store to a new cache in a folder, zstd at level 3
    PushZstd,
    /// The same without compression
    PushNone,
    /// From such a cache to a new store
    PullZstd,
    /// The same without compression
    PullNone,
}

impl Job {
    pub const ALL: [Job; 8] = [
        Job::Dump,
        Job::Hash,
        Job::Unpack,
        Job::UnpackTmpfs,
        Job::PushZstd,
        Job::PushNone,
        Job::PullZstd,
        Job::PullNone,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Job::Dump => "dump",
            Job::Hash => "hash",
            Job::Unpack => "unpack",
            Job::UnpackTmpfs => "unpack-tmpfs",
            Job::PushZstd => "push-zstd",
            Job::PushNone => "push-none",
            Job::PullZstd => "pull-zstd",
            Job::PullNone => "pull-none",
        }
    }

    /// Whether a folder is filled, which must be a new one each time.
    pub fn writes(self) -> bool {
        !matches!(self, Job::Dump | Job::Hash)
    }

    /// Whether stores and caches take part; on the real corpus only.
    pub fn copies(self) -> bool {
        self.compression().is_some()
    }

    /// Whether a cache is filled, which has few files.
    pub fn is_push(self) -> bool {
        matches!(self, Job::PushZstd | Job::PushNone)
    }

    pub fn is_for(self, kind: Kind) -> bool {
        !self.copies() || kind == Kind::Real
    }

    fn compression(self) -> Option<&'static str> {
        match self {
            Job::PushZstd | Job::PullZstd => Some("zstd"),
            Job::PushNone | Job::PullNone => Some("none"),
            _ => None,
        }
    }
}

/// A job on a corpus, with what has to be there before.
#[derive(Debug)]
pub struct Task<'a> {
    pub job: Job,
    pub corpus: &'a Corpus,
    nar: PathBuf,
    stored: Option<Stored>,
}

/// The corpus as a store path, in a store and in a cache.
#[derive(Debug)]
struct Stored {
    store_path: String,
    store: String,
    cache: String,
}

/// One contender's way of doing a task.
#[derive(Debug)]
pub struct Run {
    pub cmd: Cmd,
    pub check: Check,
}

/// How to see that the work was done.
#[derive(Debug)]
pub enum Check {
    /// Not at all: another job of the same contender shows it.
    Nothing,
    /// It printed the corpus's hash.
    Printed,
    /// This tree equals the corpus.
    Tree(PathBuf),
    /// This file is there.
    File(PathBuf),
}

impl<'a> Task<'a> {
    /// Makes what `job` needs, in `dir`. Stores and caches are filled by `tk-store`.
    pub fn prepare(
        job: Job,
        corpus: &'a Corpus,
        dir: &Path,
        tk_store: Option<&Path>,
        around: &Surroundings,
    ) -> Result<Self> {
        let nar = match job {
            Job::Unpack | Job::UnpackTmpfs => corpus.nar()?,
            _ => PathBuf::new(),
        };
        let stored = match job.compression() {
            Some(compression) => {
                let tk_store =
                    tk_store.context("the store is filled by tk-store, which is not there")?;
                Some(Stored::prepare(corpus, compression, dir, tk_store, around)?)
            }
            None => None,
        };
        Ok(Self {
            job,
            corpus,
            nar,
            stored,
        })
    }

    /// How `who` does it, filling `dest`; none if it cannot.
    pub fn run(&self, who: &Contender, dest: &Path) -> Result<Option<Run>> {
        let path = &self.corpus.path;
        let (cmd, check) = match (self.job, &self.stored) {
            (Job::Dump, _) => (dump(who, path)?, Check::Nothing),
            (Job::Hash, _) => match who {
                Contender::OpenSsl(_) => (self.openssl(who), Check::Nothing),
                _ => (hash_path(who, path)?, Check::Printed),
            },
            (Job::PushZstd | Job::PushNone, Some(stored)) => {
                let narinfo = format!("{}.narinfo", stored.hash_part());
                let compression = self.job.compression().unwrap_or_default();
                (
                    stored.push(who, dest, compression),
                    Check::File(dest.join(narinfo)),
                )
            }
            (Job::PullZstd | Job::PullNone, Some(stored)) => {
                let made = dest.join(stored.store_path.trim_start_matches('/'));
                (stored.pull(who, dest), Check::Tree(made))
            }
            _ => (self.unpack(who, dest)?, Check::Tree(dest.to_owned())),
        };
        Ok(cmd.map(|cmd| Run { cmd, check }))
    }

    /// Looks at what `run` did; `printed` is its standard output.
    pub fn check(&self, check: &Check, printed: &Path) -> Result<()> {
        let found = match check {
            Check::Nothing => return Ok(()),
            Check::File(file) => {
                ensure!(file.is_file(), "{} was not made", file.display());
                return Ok(());
            }
            Check::Printed => {
                let text = std::fs::read_to_string(printed)?;
                Hash::parse_any(text.trim(), Some(Algorithm::Sha256))
                    .with_context(|| format!("this is no hash: {text:?}"))?
            }
            Check::Tree(tree) => hash(Library::TkNar, tree)?,
        };
        let right = self.corpus.hash;
        ensure!(
            found == right,
            "wrong result: NAR hash {found}, but the corpus has {right}"
        );
        Ok(())
    }

    fn unpack(&self, who: &Contender, dest: &Path) -> Result<Option<Cmd>> {
        Ok(match who {
            Contender::Library(library) => Some(work("unpack", *library)?.arg(&self.nar).arg(dest)),
            Contender::TkStore(tk_store) => {
                let args = ["nar", "unpack", "--writable"];
                Some(Cmd::new(tk_store).args(args).arg(&self.nar).arg(dest))
            }
            Contender::Nix { bin, .. } => {
                let nix_store = Cmd::new(bin.join("nix-store")).arg("--restore");
                Some(nix_store.arg(dest).stdin(&self.nar))
            }
            Contender::OpenSsl(_) => None,
        })
    }

    /// The hash of the bytes of the one file: what hashing costs with nothing around it.
    fn openssl(&self, who: &Contender) -> Option<Cmd> {
        match who {
            Contender::OpenSsl(openssl) if self.corpus.kind == Kind::Big => Some(
                Cmd::new(openssl)
                    .args(["dgst", "-sha256"])
                    .arg(&self.corpus.path),
            ),
            _ => None,
        }
    }
}

impl Stored {
    fn prepare(
        corpus: &Corpus,
        compression: &str,
        dir: &Path,
        tk_store: &Path,
        around: &Surroundings,
    ) -> Result<Self> {
        let store = format!("local?root={}", dir.join("store").display());
        let cache = format!(
            "file://{}",
            dir.join(format!("cache-{compression}")).display()
        );
        let tk_store = |args: &[&str]| -> Result<String> {
            let mut command = Command::new(tk_store);
            around.apply(&mut command);
            let out = command.args(args).output()?;
            let words = String::from_utf8_lossy(&out.stderr);
            ensure!(
                out.status.success(),
                "tk-store {}: {}",
                args.join(" "),
                words.trim()
            );
            Ok(String::from_utf8(out.stdout)?.trim().to_owned())
        };
        let tree = corpus
            .path
            .to_str()
            .context("the corpus's path is not UTF-8")?;
        let store_path = tk_store(&["add", "--store", &store, "--name", corpus.kind.name(), tree])?;
        let to = [
            "--from",
            &store,
            "--to",
            &cache,
            "--compression",
            compression,
        ];
        tk_store(&[&["push", &store_path], to.as_slice()].concat())?;
        Ok(Self {
            store_path,
            store,
            cache,
        })
    }

    fn hash_part(&self) -> &str {
        let base = self.store_path.rsplit('/').next().unwrap_or_default();
        base.split('-').next().unwrap_or_default()
    }

    fn push(&self, who: &Contender, dest: &Path, compression: &str) -> Option<Cmd> {
        let cache = format!("file://{}", dest.display());
        match who {
            Contender::TkStore(tk_store) => {
                let cmd = Cmd::new(tk_store).args([
                    "push",
                    "--quiet",
                    "--from",
                    &self.store,
                    "--to",
                    &cache,
                ]);
                let cmd = cmd.args(["--compression", compression]);
                let cmd = if compression == "zstd" {
                    cmd.args(["--level", "3"])
                } else {
                    cmd
                };
                Some(cmd.arg(&self.store_path))
            }
            Contender::Nix { bin, .. } => {
                let level = if compression == "zstd" {
                    "&compression-level=3"
                } else {
                    ""
                };
                let cache = format!("{cache}?compression={compression}{level}");
                let cmd =
                    Cmd::new(bin.join("nix")).args(["copy", "--from", &self.store, "--to", &cache]);
                Some(cmd.arg(&self.store_path))
            }
            _ => None,
        }
    }

    fn pull(&self, who: &Contender, dest: &Path) -> Option<Cmd> {
        let store = format!("local?root={}", dest.display());
        let args = [
            "--no-check-sigs",
            "--from",
            &self.cache,
            "--to",
            &store,
            &self.store_path,
        ];
        match who {
            Contender::TkStore(tk_store) => {
                Some(Cmd::new(tk_store).args(["pull", "--quiet"]).args(args))
            }
            Contender::Nix { bin, .. } => Some(Cmd::new(bin.join("nix")).arg("copy").args(args)),
            _ => None,
        }
    }
}

fn dump(who: &Contender, path: &Path) -> Result<Option<Cmd>> {
    Ok(match who {
        Contender::Library(library) => Some(work("dump", *library)?.arg(path)),
        Contender::TkStore(tk_store) => Some(Cmd::new(tk_store).args(["nar", "pack"]).arg(path)),
        Contender::Nix { bin, .. } => Some(Cmd::new(bin.join("nix-store")).arg("--dump").arg(path)),
        Contender::OpenSsl(_) => None,
    })
}

fn hash_path(who: &Contender, path: &Path) -> Result<Option<Cmd>> {
    Ok(match who {
        Contender::Library(library) => Some(work("hash", *library)?.arg(path)),
        Contender::TkStore(tk_store) => Some(Cmd::new(tk_store).args(["nar", "hash"]).arg(path)),
        Contender::Nix { bin, .. } => {
            Some(Cmd::new(bin.join("nix")).args(["hash", "path"]).arg(path))
        }
        Contender::OpenSsl(_) => None,
    })
}

fn work(what: &str, library: Library) -> Result<Cmd> {
    Ok(Cmd::new(std::env::current_exe()?).args(["work", what, library.name()]))
}
