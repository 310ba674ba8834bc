//! What the crates do in a process of their own: `tk-bench work dump tk-nar PATH`.
//!
//! Each crate is used the way its documentation shows, and writes to the same kind of file.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write, stdout};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::Result;
use tk_nar::fs::{Dump, DumpOptions, UnpackMetadata, UnpackOptions};
use tk_path::{Algorithm, Hash, Hasher};

/// Do a piece of work with one crate.
#[derive(clap::Subcommand)]
pub enum Work {
    /// Write the NAR of a tree to stdout
    Dump { library: Library, path: PathBuf },
    /// Print the SHA-256 of the NAR of a tree
    Hash { library: Library, path: PathBuf },
    /// Make the tree of a NAR
    Unpack {
        library: Library,
        nar: PathBuf,
        dest: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Library {
    TkNar,
    NixArchive,
    NixNar,
}

impl Library {
    pub fn name(self) -> &'static str {
        match self {
            Library::TkNar => "tk-nar",
            Library::NixArchive => "nix-archive",
            Library::NixNar => "nix-nar",
        }
    }
}

impl Work {
    pub fn run(self) -> Result<()> {
        match self {
            Work::Dump { library, path } => dump(library, &path),
            Work::Hash { library, path } => {
                println!("{}", hash(library, &path)?);
                Ok(())
            }
            Work::Unpack { library, nar, dest } => unpack(library, &nar, &dest),
        }
    }
}

/// The hash of the NAR of `path`, as `sha256:<nix32>`.
pub fn hash(library: Library, path: &Path) -> Result<Hash> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    match library {
        Library::TkNar => {
            for chunk in Dump::new(path, &DumpOptions::default())? {
                hasher.update(chunk?.as_ref());
            }
        }
        Library::NixArchive => {
            let hash = nix_archive::nar::hash_path(path, nix_archive::nar::CaseHack::Disabled)?;
            return Ok(Hash::new(Algorithm::Sha256, &hash.sha256)?);
        }
        Library::NixNar => pump(nix_nar::Encoder::new(path)?, hasher.by_ref())?,
    }
    Ok(hasher.finish())
}

fn dump(library: Library, path: &Path) -> Result<()> {
    // std's own stdout looks for line ends in everything.
    let mut out = File::from(stdout().as_fd().try_clone_to_owned()?);
    match library {
        Library::TkNar => drop(tk_nar::fs::dump(path, &DumpOptions::default(), &mut out)?),
        Library::NixArchive => {
            let mut out = BufWriter::with_capacity(BUFFER, out);
            nix_archive::nar::encode_path(&mut out, path, nix_archive::nar::CaseHack::Disabled)?;
            out.flush()?;
        }
        Library::NixNar => pump(nix_nar::Encoder::new(path)?, &mut out)?,
    }
    Ok(())
}

/// Ours leaves modes and times as `nix-store --restore` and the other crates do.
fn unpack(library: Library, nar: &Path, dest: &Path) -> Result<()> {
    let nar = File::open(nar)?;
    match library {
        Library::TkNar => {
            let mut options = UnpackOptions::default();
            options.metadata = UnpackMetadata::Plain;
            tk_nar::fs::unpack(nar, dest, &options)?;
        }
        Library::NixArchive => {
            let mut nar = BufReader::with_capacity(BUFFER, nar);
            nix_archive::nar::restore_reader(&mut nar, dest, nix_archive::nar::CaseHack::Disabled)?;
        }
        Library::NixNar => {
            nix_nar::Decoder::new(BufReader::with_capacity(BUFFER, nar))?.unpack(dest)?
        }
    }
    Ok(())
}

fn pump(mut source: impl Read, out: &mut impl Write) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match source.read(&mut buffer)? {
            0 => return Ok(()),
            n => out.write_all(&buffer[..n])?,
        }
    }
}

/// Bytes. Where the crates are fastest; half or twice as much changes nothing.
const BUFFER: usize = 256 * 1024;
