//! The trees that are worked on. Two are made, the same bytes on every machine; one is the Rust toolchain.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tk_nar::fs::{Dump, DumpOptions, remove_tree};
use tk_path::Hash;

use crate::work::{Library, hash};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// One file of 1 GiB of noise
    Big,
    /// 100,000 files of 200 to 4096 bytes in 211 nested folders
    Many,
    /// The folder of the Rust toolchain
    Real,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Big, Kind::Many, Kind::Real];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Big => "big",
            Kind::Many => "many",
            Kind::Real => "real",
        }
    }
}

/// A tree on disk.
#[derive(Debug)]
pub struct Corpus {
    pub kind: Kind,
    pub path: PathBuf,
    /// Files, folders and links.
    pub entries: u64,
    /// In all its files.
    pub bytes: u64,
    /// That a copy takes on disk.
    pub disk: u64,
    /// Of its NAR.
    pub hash: Hash,
    /// Length of its NAR.
    pub nar_bytes: u64,
    nar: PathBuf,
}

impl Corpus {
    /// Makes the corpus in `dir` unless it is there. `scale` is the share of the full size, up to 1.
    pub fn make(kind: Kind, scale: f64, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let place = dir.join(match scale {
            1.0 => kind.name().to_owned(),
            _ => format!("{}-{scale}", kind.name()),
        });
        let path = match kind {
            Kind::Real if scale == 1.0 => toolchain()?,
            _ => {
                complete(&place, |path| match kind {
                    Kind::Big => make_big(path, scaled(BIG_BYTES, scale)),
                    Kind::Many => make_many(path, scaled(MANY_FILES, scale)),
                    Kind::Real => copy_share(&toolchain()?, path, scale),
                })
                .with_context(|| format!("making the corpus {}", place.display()))?;
                place.clone()
            }
        };
        let mut corpus = Corpus {
            kind,
            hash: hash(Library::TkNar, &path)?,
            nar_bytes: nar_bytes(&path)?,
            entries: 0,
            bytes: 0,
            disk: 0,
            nar: place.with_extension("nar"),
            path,
        };
        let path = corpus.path.clone();
        corpus.count(&path)?;
        Ok(corpus)
    }

    /// The file with its NAR; written anew, since the toolchain may have changed.
    pub fn nar(&self) -> Result<PathBuf> {
        tk_nar::fs::dump(
            &self.path,
            &DumpOptions::default(),
            &mut File::create(&self.nar)?,
        )?;
        Ok(self.nar.clone())
    }

    fn count(&mut self, path: &Path) -> Result<()> {
        let stat = path.symlink_metadata()?;
        self.entries += 1;
        self.disk += stat.size().next_multiple_of(BLOCK) + INODE;
        if stat.is_dir() {
            for entry in fs::read_dir(path)? {
                self.count(&entry?.path())?;
            }
        } else {
            self.bytes += stat.size();
        }
        Ok(())
    }
}

fn nar_bytes(path: &Path) -> Result<u64> {
    let mut chunks = Dump::new(path, &DumpOptions::default())?;
    chunks.try_fold(0, |sum, chunk| Ok(sum + chunk?.as_ref().len() as u64))
}

/// Noise that is the same everywhere: the SplitMix64 sequence.
#[derive(Debug)]
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            let noise = self.next().to_le_bytes();
            piece.copy_from_slice(&noise[..piece.len()]);
        }
    }
}

/// Has `make` make `place`, under another name until it is whole.
fn complete(place: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if place.symlink_metadata().is_ok() {
        return Ok(());
    }
    let part = place.with_extension("part");
    if part.symlink_metadata().is_ok() {
        remove_tree(&part)?;
    }
    make(&part)?;
    Ok(fs::rename(&part, place)?)
}

fn make_big(path: &Path, size: u64) -> Result<()> {
    let (mut out, mut noise) = (BufWriter::new(File::create(path)?), Noise::new(1));
    let (mut block, mut left) = (vec![0; 1 << 16], size);
    while left > 0 {
        let n = left.min(block.len() as u64);
        noise.fill(&mut block);
        out.write_all(&block[..n as usize])?;
        left -= n;
    }
    Ok(out.flush()?)
}

fn make_many(path: &Path, files: u64) -> Result<()> {
    let mut folders = vec![path.to_owned()];
    for i in 1..MANY_FOLDERS {
        folders.push(folders[(i - 1) / 5].join(format!("folder-{i:03}")));
    }
    for folder in &folders {
        fs::create_dir(folder)?;
    }
    let (mut noise, mut contents) = (Noise::new(2), [0; 4096]);
    for i in 0..files {
        let size = 200 + (noise.next() % (4096 - 200 + 1)) as usize;
        noise.fill(&mut contents[..size]);
        let folder = &folders[i as usize % folders.len()];
        fs::write(folder.join(format!("file-{i:06}")), &contents[..size])?;
    }
    Ok(())
}

pub fn toolchain() -> Result<PathBuf> {
    let out = Command::new("rustc").args(["--print", "sysroot"]).output();
    let out = out.context("the corpus real is the Rust toolchain, and rustc does not start")?;
    ensure!(out.status.success(), "rustc --print sysroot failed");
    Ok(PathBuf::from(String::from_utf8(out.stdout)?.trim()))
}

/// Copies every n-th file, so that a share of all kinds of files is there.
fn copy_share(from: &Path, to: &Path, scale: f64) -> Result<()> {
    let every = (1.0 / scale).round().max(1.0) as u64;
    let (mut folders, mut seen) = (vec![PathBuf::new()], 0);
    while let Some(folder) = folders.pop() {
        let mut entries = fs::read_dir(from.join(&folder))?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            let name = folder.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(name);
            } else if kind.is_file() {
                seen += 1;
                if seen % every == 0 {
                    fs::create_dir_all(to.join(&folder))?;
                    fs::copy(entry.path(), to.join(&name))?;
                }
            }
        }
    }
    Ok(())
}

fn scaled(full: u64, scale: f64) -> u64 {
    ((full as f64 * scale) as u64).max(1)
}

const BIG_BYTES: u64 = 1 << 30;
const MANY_FILES: u64 = 100_000;
const MANY_FOLDERS: usize = 211;
/// Bytes: what a file takes at least on the usual file systems, and its inode.
const BLOCK: u64 = 4096;
const INODE: u64 = 512;
