//! The physical limit of each job: a part of it that nobody can leave out, done with nothing around it.
//!
//! Each is done by a process of its own (`tk-bench limit …`), with a thread for each processor, and takes its turn like any
//! contender.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, mpsc};
use std::thread;

use anyhow::{Context, Result, ensure};
use tk_path::{Algorithm, Hasher};

use crate::measure::Cmd;

/// Do a part of a job, and nothing else.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Limit {
    /// SHA-256 of so many bytes in memory, in one piece or in independent ones
    Sha256 { bytes: u64, pieces: u64 },
    /// Open, read and close every file of a tree
    Read { tree: PathBuf },
    /// Make the folders and files that a list names (see `list`), and fill them
    Create { list: PathBuf, dest: PathBuf },
    /// Write so many bytes from memory to one new file
    Write { bytes: u64, dest: PathBuf },
    /// Compress files, or that share of them, in pieces of 4 MiB, into nothing, at the level that everybody uses
    Compress {
        with: Compression,
        files: PathBuf,
        share: f64,
    },
    /// Send so many bytes over a TCP connection on loopback, from memory into nothing
    Link { bytes: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Compression {
    Zstd,
    Xz,
}

impl Limit {
    pub fn name(&self) -> String {
        let what = match self {
            Limit::Sha256 { .. } => "SHA-256",
            Limit::Read { .. } => "reading",
            Limit::Create { .. } => "creating files",
            Limit::Write { .. } => "writing",
            Limit::Compress { with, .. } => with.name(),
            Limit::Link { .. } => "loopback",
        };
        format!("limit: {what}")
    }

    /// The same, filling `dest` if it fills something.
    pub fn filling(&self, dest: &Path) -> Self {
        let (mut limit, at) = (self.clone(), dest.to_owned());
        if let Limit::Create { dest, .. } | Limit::Write { dest, .. } = &mut limit {
            *dest = at;
        }
        limit
    }

    /// The command that does it.
    pub fn cmd(&self) -> Result<Cmd> {
        let cmd = Cmd::new(std::env::current_exe()?).arg("limit");
        Ok(match self {
            Limit::Sha256 { bytes, pieces } => {
                cmd.args(["sha256".to_owned(), bytes.to_string(), pieces.to_string()])
            }
            Limit::Read { tree } => cmd.arg("read").arg(tree),
            Limit::Create { list, dest } => cmd.arg("create").arg(list).arg(dest),
            Limit::Write { bytes, dest } => {
                cmd.args(["write".to_owned(), bytes.to_string()]).arg(dest)
            }
            Limit::Compress { with, files, share } => {
                let cmd = cmd.args(["compress", with.name()]).arg(files);
                cmd.arg(share.to_string())
            }
            Limit::Link { bytes } => cmd.args(["link".to_owned(), bytes.to_string()]),
        })
    }

    pub fn run(self) -> Result<()> {
        match self {
            Limit::Sha256 { bytes, pieces } => sha256(bytes, pieces),
            Limit::Read { tree } => read(&tree),
            Limit::Create { list, dest } => create(&list, &dest),
            Limit::Write { bytes, dest } => write(bytes, &dest),
            Limit::Compress { with, files, share } => compress(with, &files, share),
            Limit::Link { bytes } => link(bytes),
        }
    }
}

impl Compression {
    pub fn of(name: &str) -> Option<Self> {
        match name {
            "zstd" => Some(Compression::Zstd),
            "xz" => Some(Compression::Xz),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Compression::Zstd => "zstd",
            Compression::Xz => "xz",
        }
    }

    /// Both levels are the default of Nix and ours.
    fn squeeze(self, piece: &[u8]) -> std::io::Result<usize> {
        match self {
            Compression::Zstd => Ok(zstd::bulk::compress(piece, 3)?.len()),
            Compression::Xz => {
                let mut out = liblzma::write::XzEncoder::new(Vec::new(), 6);
                out.write_all(piece)?;
                Ok(out.finish()?.len())
            }
        }
    }
}

/// The sum of the lengths of the files in a folder.
pub fn bytes_in(folder: &Path) -> Result<u64> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.metadata()?.len())).sum()
}

fn sha256(bytes: u64, pieces: u64) -> Result<()> {
    ensure!(pieces > 0, "no pieces");
    let block = vec![0x5a; BLOCK];
    each(0..pieces, |_, _| {
        let (mut hasher, mut left) = (Hasher::new(Algorithm::Sha256), bytes / pieces);
        while left > 0 {
            let n = left.min(BLOCK as u64);
            hasher.update(&block[..n as usize]);
            left -= n;
        }
        black_box(hasher.finish());
        Ok(())
    })
}

/// Files are read while others are still being found; large ones in pieces.
fn read(tree: &Path) -> Result<()> {
    let (found, files) = mpsc::channel();
    let find = || -> Result<()> {
        walk(tree, Path::new(""), &mut |name, size| {
            let pieces = size.into_iter().flat_map(pieces);
            // Nobody receives after a failure, which is told there.
            pieces.for_each(|piece| drop(found.send((name.to_owned(), piece))));
            Ok(())
        })?;
        drop(found);
        Ok(())
    };
    thread::scope(|scope| {
        let finding = scope.spawn(find);
        each(files, |(name, piece), scratch| {
            read_piece(&at(tree, &name), piece, scratch, |_| Ok(()))
        })?;
        finding.join().ok().context("a thread panicked")?
    })
}

/// The lines of the list are `- NAME` for folders and `LENGTH NAME` for files, folders before what is in them.
fn create(list: &Path, dest: &Path) -> Result<()> {
    let list = fs::read_to_string(list)?;
    let mut files = Vec::new();
    for line in list.lines() {
        let (size, name) = line.split_once(' ').context("a line without a space")?;
        let path = at(dest, name.as_ref());
        match size {
            "-" => fs::create_dir(path)?,
            size => files.push((path, size.parse::<u64>()?)),
        }
    }
    let block = vec![0x5a; BLOCK];
    each(files, |(path, size), _| {
        pour(&mut File::create_new(path)?, size, &block)
    })
}

fn write(bytes: u64, dest: &Path) -> Result<()> {
    let mut file = File::create_new(dest)?;
    pour(&mut file, bytes, &vec![0x5a; BLOCK])
}

fn compress(with: Compression, files: &Path, share: f64) -> Result<()> {
    let mut all = Vec::new();
    walk(files, Path::new(""), &mut |name, size| {
        all.extend(size.map(|size| (name.to_owned(), size)));
        Ok(())
    })?;
    all.truncate((all.len() as f64 * share).ceil() as usize);
    let in_pieces =
        |(name, size): (PathBuf, u64)| pieces(size).map(move |piece| (name.clone(), piece));
    let all: Vec<_> = all.into_iter().flat_map(in_pieces).collect();
    each(all, |(name, piece), scratch| {
        let mut whole = Vec::with_capacity((piece.end - piece.start) as usize);
        read_piece(&at(files, &name), piece, scratch, |block| {
            whole.extend_from_slice(block);
            Ok(())
        })?;
        black_box(with.squeeze(&whole)?);
        Ok(())
    })
}

fn link(bytes: u64) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let sender = thread::spawn(move || -> Result<()> {
        pour(&mut TcpStream::connect(address)?, bytes, &vec![0x5a; BLOCK])
    });
    let (mut from, _) = listener.accept()?;
    let (mut block, mut got) = (vec![0; BLOCK], 0);
    loop {
        match from.read(&mut block)? {
            0 => break,
            n => got += n as u64,
        }
    }
    sender.join().ok().context("the sender panicked")??;
    ensure!(got == bytes, "{got} of {bytes} bytes arrived");
    Ok(())
}

fn pour(out: &mut impl Write, bytes: u64, block: &[u8]) -> Result<()> {
    let mut left = bytes;
    while left > 0 {
        let n = left.min(block.len() as u64);
        out.write_all(&block[..n as usize])?;
        left -= n;
    }
    Ok(())
}

/// Does the items with a thread for each processor, which has [`BLOCK`] bytes for whatever it likes.
fn each<T: Send>(
    items: impl IntoIterator<Item = T, IntoIter: Send>,
    work: impl Fn(T, &mut [u8]) -> Result<()> + Sync,
) -> Result<()> {
    let items = Mutex::new(items.into_iter());
    let next = || items.lock().ok()?.next();
    let threads = thread::available_parallelism()?.get();
    thread::scope(|scope| {
        let worker = || {
            let mut scratch = vec![0; BLOCK];
            std::iter::from_fn(next).try_for_each(|item| work(item, &mut scratch))
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let mut ended = workers.into_iter().map(|worker| worker.join());
        ended.try_for_each(|ended| ended.ok().context("a thread panicked")?)
    })
}

/// Writes the list for [`Limit::Create`] of the folders and files of `tree`.
pub fn list(tree: &Path, file: &Path) -> Result<()> {
    let mut lines = String::new();
    walk(tree, Path::new(""), &mut |name, size| {
        let name = name.to_str().context("a name is not UTF-8")?;
        let size = size.map_or("-".to_owned(), |size| size.to_string());
        Ok(writeln!(lines, "{size} {name}")?)
    })?;
    fs::write(file, lines).with_context(|| format!("writing {}", file.display()))
}

/// Tells `each` the folders (without a length) and files of a tree, by their names in it. Links are left out.
fn walk(
    tree: &Path,
    name: &Path,
    each: &mut dyn FnMut(&Path, Option<u64>) -> Result<()>,
) -> Result<()> {
    let path = at(tree, name);
    let stat = path.symlink_metadata();
    let stat = stat.with_context(|| format!("reading {}", path.display()))?;
    if stat.is_file() {
        each(name, Some(stat.len()))?;
    } else if stat.is_dir() {
        each(name, None)?;
        for entry in fs::read_dir(path)? {
            walk(tree, &name.join(entry?.file_name()), each)?;
        }
    }
    Ok(())
}

/// A file of that length, in pieces.
fn pieces(size: u64) -> impl Iterator<Item = Range<u64>> {
    let starts = (0..size).step_by(PIECE as usize);
    starts.map(move |start| start..size.min(start + PIECE))
}

/// Gives a piece of a file to `take`, as much at once as `scratch` holds.
fn read_piece(
    file: &Path,
    piece: Range<u64>,
    scratch: &mut [u8],
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let (file, mut offset) = (File::open(file)?, piece.start);
    while offset < piece.end {
        let length = (piece.end - offset).min(scratch.len() as u64);
        let block = &mut scratch[..length as usize];
        file.read_exact_at(block, offset)?;
        take(block)?;
        offset += length;
    }
    Ok(())
}

/// `name` in `tree`; the tree itself if it is empty, without a slash that files do not take.
fn at(tree: &Path, name: &Path) -> PathBuf {
    if name.as_os_str().is_empty() {
        tree.to_owned()
    } else {
        tree.join(name)
    }
}

/// Bytes that are read, written and hashed at once; they stay in the processor's own cache.
const BLOCK: usize = 256 << 10;
/// Bytes of a file that are read or compressed by themselves.
const PIECE: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_does_its_part() {
        let place = tempfile::tempdir().unwrap();
        let tree = place.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/one"), "one").unwrap();
        fs::write(tree.join("a/b/two"), vec![7; 9 << 20]).unwrap();
        let (names, dest) = (place.path().join("list"), place.path().join("dest"));

        list(&tree, &names).unwrap();
        create(&names, &dest).unwrap();
        let length = |name: &str| dest.join(name).metadata().unwrap().len();
        assert_eq!((length("a/one"), length("a/b/two")), (3, 9 << 20));
        assert_eq!(bytes_in(&dest.join("a/b")).unwrap(), 9 << 20);
        assert!(create(&names, &dest).is_err(), "it must be a new place");

        let file = place.path().join("file");
        write((2 << 20) + 5, &file).unwrap();
        assert_eq!(file.metadata().unwrap().len(), (2 << 20) + 5);
        read(&tree).unwrap();
        read(&tree.join("a/one")).unwrap();
        assert!(read(&tree.join("absent")).is_err());
        for with in [Compression::Zstd, Compression::Xz] {
            compress(with, &tree, 1.0).unwrap();
            assert!(with.squeeze(&[7; 1000]).unwrap() < 200);
        }
        link((3 << 20) + 1).unwrap();
        sha256((1 << 20) + 1, 2).unwrap();
        assert!(sha256(1, 0).is_err());
    }

    #[test]
    fn a_failure_in_a_thread_is_a_failure() {
        let odd = |n: u32, _: &mut [u8]| -> Result<()> {
            ensure!(n != 77, "seventy-seven");
            Ok(())
        };
        assert!(each(0..77, odd).is_ok());
        assert!(each(0..100, odd).is_err());
    }
}
