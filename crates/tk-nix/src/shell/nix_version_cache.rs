//! Which version a program called nix is, without running it: noted by the program's fingerprint (path,
//! size, inode, mtime) when it was asked once.
//!
//! ```text
//! nix.json = [{"path": …, "size": …, "inode": …, "mtime": NANOSECONDS, "version": "nix (Nix) 2.34.8"}…]
//! ```

use super::files;
use crate::{Nix, NixConfig, NixVersion, Result};
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The programs that were asked.
#[derive(Debug, Clone)]
pub(super) struct NixVersionCache {
    file: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    program: Fingerprint,
    version: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Fingerprint {
    path: PathBuf,
    size: u64,
    inode: u64,
    mtime: i64,
}

impl Fingerprint {
    fn of(program: &Path) -> Option<Fingerprint> {
        let path = program.canonicalize().ok()?;
        let meta = fs::metadata(&path).ok().filter(|m| m.is_file())?;
        let runs = meta.mode() & 0o111 != 0;
        runs.then(|| Fingerprint {
            path,
            size: meta.size(),
            inode: meta.ino(),
            mtime: meta
                .mtime()
                .saturating_mul(1_000_000_000)
                .saturating_add(meta.mtime_nsec()),
        })
    }
}

/// A nix whose version is known.
pub(super) struct Resolved {
    /// It, which was not run.
    pub nix: Nix,
    /// Whether it is not the first of its name: the first is a script that was never asked.
    pub passed_over: bool,
}

impl NixVersionCache {
    pub(super) fn at(folder: &Path) -> NixVersionCache {
        NixVersionCache {
            file: folder.join("nix.json"),
        }
    }

    /// The nix that `config` names, looked for in `path` if it is a name. A program that is not known
    /// is asked for its version if it is one of the machine's own format; a script, which could
    /// be anything, is passed over.
    pub(super) async fn resolve(&self, config: &NixConfig, path: &OsStr) -> Option<Resolved> {
        let records = self.records();
        let mut passed_over = false;
        for candidate in candidates(&config.program, path) {
            let Some(fingerprint) = Fingerprint::of(&candidate) else {
                continue;
            };
            let known = records.iter().find(|record| record.program == fingerprint);
            let mut own = config.clone();
            own.program = candidate;
            let version = match known.and_then(|record| NixVersion::parse(&record.version)) {
                Some(version) => Some(version),
                None if !is_elf(&fingerprint.path) => None,
                None => self.ask(own.clone(), fingerprint).await,
            };
            if let Some(nix) = version.and_then(|version| Nix::known(own, version).ok()) {
                return Some(Resolved { nix, passed_over });
            }
            passed_over = true;
        }
        None
    }

    async fn ask(&self, config: NixConfig, program: Fingerprint) -> Option<NixVersion> {
        let nix = Nix::find(config).await.ok()?;
        self.note(program, nix.version());
        Some(nix.version().clone())
    }

    /// The nix that `config` names, asked for its version, which is noted.
    pub(super) async fn learn(&self, config: &NixConfig, path: &OsStr) -> Result<Nix> {
        let mut config = config.clone();
        let all = candidates(&config.program, path);
        let mut fingerprints = all.into_iter().map(|c| (Fingerprint::of(&c), c));
        let first = fingerprints.find_map(|(f, c)| Some((f?, c)));
        if let Some((_, program)) = &first {
            config.program.clone_from(program);
        }
        let nix = Nix::find(config).await?;
        if let Some((fingerprint, _)) = first {
            self.note(fingerprint, nix.version());
        }
        Ok(nix)
    }

    /// Notes a version. What cannot be noted is asked for again.
    fn note(&self, program: Fingerprint, version: &NixVersion) {
        let mut records = self.records();
        records.retain(|record| record.program.path != program.path);
        let name = version.to_string();
        let name = name.strip_suffix(&version.text).unwrap_or_default().trim();
        records.push(Record {
            program,
            version: format!("nix ({name}) {}", version.text),
        });
        let old = records.len().saturating_sub(MOST);
        records.drain(..old);
        if let Ok(text) = serde_json::to_vec(&records) {
            let _ = files::replace(&self.file, &text);
        }
    }

    fn records(&self) -> Vec<Record> {
        let bytes = files::read(&self.file, MAX_FILE).ok().flatten();
        let records = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        records.unwrap_or_default()
    }
}

fn candidates(program: &Path, path: &OsStr) -> Vec<PathBuf> {
    match program.components().count() {
        1 if !program.is_absolute() => {
            let folders = std::env::split_paths(path);
            folders.map(|folder| folder.join(program)).collect()
        }
        _ => vec![program.to_owned()],
    }
}

fn is_elf(program: &Path) -> bool {
    let mut magic = [0; 4];
    let read = File::open(program).and_then(|mut file| file.read_exact(&mut magic));
    // As Mach-O has it, either way round, for one processor or several.
    let macho = [0xfeed_facf, 0xcffa_edfe, 0xcafe_babe].map(u32::to_be_bytes);
    read.is_ok() && (magic == *b"\x7fELF" || macho.contains(&magic))
}

/// Programs that are remembered.
const MOST: usize = 64;
/// Bytes of the file.
const MAX_FILE: u64 = 1 << 20;
