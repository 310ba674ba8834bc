//! The jobs, and the command with which each contender does them.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tk_path::{Algorithm, Hash};

use crate::contender::{Contender, Tool};
use crate::corpus::{Corpus, Kind};
use crate::limits::{self, Compression, Limit};
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
    /// What a store on disk knows about one path, as JSON
    PathInfo,
}

impl Job {
    pub const ALL: [Job; 9] = [
        Job::Dump,
        Job::Hash,
        Job::Unpack,
        Job::UnpackTmpfs,
        Job::PushZstd,
        Job::PushNone,
        Job::PullZstd,
        Job::PullNone,
        Job::PathInfo,
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
            Job::PathInfo => "path-info",
        }
    }

    /// Whether a folder is filled, which must be a new one each time.
    pub fn writes(self) -> bool {
        !matches!(self, Job::Dump | Job::Hash | Job::PathInfo)
    }

    pub fn copies(self) -> bool {
        self.compression().is_some()
    }

    /// Whether stores and caches take part, which `tk-store` fills; on the real corpus only.
    pub fn needs_store(self) -> bool {
        self.copies() || self == Job::PathInfo
    }

    /// Whether a cache is filled, which has few files.
    pub fn is_push(self) -> bool {
        matches!(self, Job::PushZstd | Job::PushNone)
    }

    /// Whether it ends with the corpus's tree in another place.
    fn makes_trees(self) -> bool {
        self.writes() && !self.is_push()
    }

    pub fn is_for(self, kind: Kind) -> bool {
        !self.needs_store() || kind == Kind::Real
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
    tar: PathBuf,
    list: PathBuf,
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
            job if job.copies() => corpus.nar()?,
            _ => PathBuf::new(),
        };
        let tar = nar.with_extension("tar");
        let list = nar.with_extension("list");
        if matches!(job, Job::Unpack | Job::UnpackTmpfs) {
            pack_tar(&corpus.path, &tar)?;
        }
        if job.makes_trees() {
            limits::list(&corpus.path, &list)?;
        }
        let stored = if job.needs_store() {
            let tk_store =
                tk_store.context("the store is filled by tk-store, which is not there")?;
            let compression = job.compression().unwrap_or("none");
            Some(Stored::prepare(corpus, compression, dir, tk_store, around)?)
        } else {
            None
        };
        Ok(Self {
            job,
            corpus,
            nar,
            tar,
            list,
            stored,
        })
    }

    /// What nobody can do without, on this corpus; what it fills is decided later.
    pub fn limits(&self) -> Vec<Limit> {
        let (tree, dest) = (self.corpus.path.clone(), PathBuf::new());
        let sha256 = Limit::Sha256 {
            bytes: self.corpus.nar_bytes,
            pieces: 1,
        };
        let create = Limit::Create {
            list: self.list.clone(),
            dest: dest.clone(),
        };
        match self.job {
            Job::Dump => vec![Limit::Read { tree }],
            Job::Hash => vec![Limit::Read { tree }, sha256],
            Job::Unpack | Job::UnpackTmpfs => vec![create],
            Job::PushNone => {
                let bytes = self.corpus.nar_bytes;
                vec![sha256, Limit::Write { bytes, dest }]
            }
            Job::PushZstd => {
                let (with, files, share) = (Compression::Zstd, self.nar.clone(), 1.0);
                vec![sha256, Limit::Compress { with, files, share }]
            }
            Job::PullZstd | Job::PullNone => vec![sha256, create],
            Job::PathInfo => Vec::new(),
        }
    }

    /// How `who` does it, filling `dest`; none if it cannot.
    pub fn run(&self, who: &Contender, dest: &Path) -> Result<Option<Run>> {
        let path = &self.corpus.path;
        let unchecked = match who {
            Contender::Limit(limit) => Some(Some(limit.filling(dest).cmd()?)),
            Contender::Tool { tool, path } => Some(self.tool(*tool, path, dest)),
            _ => None,
        };
        if let Some(cmd) = unchecked {
            let check = Check::Nothing;
            return Ok(cmd.map(|cmd| Run { cmd, check }));
        }
        let (cmd, check) = match (self.job, &self.stored) {
            (Job::Dump, _) => (dump(who, path)?, Check::Nothing),
            (Job::Hash, _) => (hash_path(who, path)?, Check::Printed),
            (Job::PathInfo, Some(stored)) => (stored.path_info(who), Check::Nothing),
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
            _ => None,
        })
    }

    /// `dump` has tar write to /dev/zero: it reads no files if it sees that its archive is /dev/null. `openssl` hashes the
    /// bytes of the one file.
    fn tool(&self, tool: Tool, program: &Path, dest: &Path) -> Option<Cmd> {
        let (path, cmd) = (&self.corpus.path, Cmd::new(program));
        match (tool, self.job) {
            (Tool::OpenSsl, Job::Hash) if self.corpus.kind == Kind::Big => {
                Some(cmd.args(["dgst", "-sha256"]).arg(path))
            }
            (Tool::Tar, Job::Dump) => {
                let cmd = cmd.args(["-b", TAR_BLOCKS, "-cf", "/dev/zero", "-C"]);
                Some(cmd.arg(path.parent()?).arg(path.file_name()?))
            }
            (Tool::Tar, Job::Unpack | Job::UnpackTmpfs) => {
                let mut into = OsString::from("--one-top-level=");
                into.push(dest);
                Some(cmd.args(["-b", TAR_BLOCKS, "-xf"]).arg(&self.tar).arg(into))
            }
            (Tool::Cp, Job::Unpack | Job::UnpackTmpfs) => {
                Some(cmd.args(["-r", "--reflink=never"]).arg(path).arg(dest))
            }
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

    fn path_info(&self, who: &Contender) -> Option<Cmd> {
        let cmd = match who {
            Contender::TkStore(tk_store) => Cmd::new(tk_store),
            Contender::Nix { bin, .. } => Cmd::new(bin.join("nix")),
            _ => return None,
        };
        Some(cmd.args([
            "path-info",
            "--json",
            "--store",
            &self.store,
            &self.store_path,
        ]))
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

/// The same tree as tar knows it.
fn pack_tar(tree: &Path, tar: &Path) -> Result<()> {
    let (parent, name) = (tree.parent(), tree.file_name());
    let (parent, name) = (parent.context("no folder")?, name.context("no name")?);
    let made = Command::new("tar")
        .arg("-cf")
        .arg(tar)
        .arg("-C")
        .arg(parent)
        .arg(name)
        .status();
    // Without tar there is nobody who wants it.
    match made {
        Ok(made) => ensure!(made.success(), "making {}: {made}", tar.display()),
        Err(error) if error.kind() == ErrorKind::NotFound => (),
        Err(error) => return Err(error).context("starting tar"),
    }
    Ok(())
}

fn dump(who: &Contender, path: &Path) -> Result<Option<Cmd>> {
    Ok(match who {
        Contender::Library(library) => Some(work("dump", *library)?.arg(path)),
        Contender::TkStore(tk_store) => Some(Cmd::new(tk_store).args(["nar", "pack"]).arg(path)),
        Contender::Nix { bin, .. } => Some(Cmd::new(bin.join("nix-store")).arg("--dump").arg(path)),
        _ => None,
    })
}

fn hash_path(who: &Contender, path: &Path) -> Result<Option<Cmd>> {
    Ok(match who {
        Contender::Library(library) => Some(work("hash", *library)?.arg(path)),
        Contender::TkStore(tk_store) => Some(Cmd::new(tk_store).args(["nar", "hash"]).arg(path)),
        Contender::Nix { bin, .. } => {
            Some(Cmd::new(bin.join("nix")).args(["hash", "path"]).arg(path))
        }
        _ => None,
    })
}

fn work(what: &str, library: Library) -> Result<Cmd> {
    Ok(Cmd::new(std::env::current_exe()?).args(["work", what, library.name()]))
}

/// Of 512 bytes: 256 KiB at once, as the crates.
const TAR_BLOCKS: &str = "512";
