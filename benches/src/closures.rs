//! Closures as they are copied: made of the Rust toolchain, in a store on disk.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use tk_local::{LocalConfig, LocalStore};
use tk_nar::fs::{DumpOptions, remove_tree};
use tk_path::{Algorithm, Method, References, StorePath};
use tk_store::{AddContent, Store, nar};

use crate::corpus::toolchain;
use crate::limits::{Compression, Limit, bytes_in};

/// How many paths of each kind.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub small: usize,
    pub chain: usize,
    pub large: usize,
}

/// Store paths in a store of their own.
pub struct Closures {
    pub dir: PathBuf,
    /// Its URI.
    pub store: String,
    /// A line of text each, each referring to the one before it and to the tenth.
    pub small: Vec<String>,
    /// The root of a closure: the last of the first `chain` small ones.
    pub chain: String,
    /// Folders of files, 2 MB each; they form a binary tree, so that many are independent.
    pub large: Vec<String>,
}

impl Closures {
    /// Makes them in `dir`, unless they are there.
    pub fn make(dir: &Path, sizes: Sizes) -> Result<Self> {
        let list = dir.join("list");
        let root = dir.join("source");
        if !list.exists() {
            if dir.exists() {
                remove_tree(dir)?;
            }
            fs::create_dir_all(dir)?;
            let runtime = tokio::runtime::Builder::new_current_thread().build()?;
            let paths = runtime.block_on(fill(&root, &dir.join("folder"), sizes))?;
            fs::write(&list, paths.join("\n"))?;
        }
        let paths = fs::read_to_string(&list)?;
        let mut small: Vec<String> = paths.lines().map(str::to_owned).collect();
        let large = small.split_off(sizes.small);
        Ok(Closures {
            dir: dir.to_owned(),
            store: format!("local?root={}", root.display()),
            chain: small[sizes.chain.min(small.len()) - 1].clone(),
            small,
            large,
        })
    }
}

impl Closures {
    /// The large paths that are copied with that compression: with xz every tenth part, since it takes minutes.
    pub fn copied(&self, compression: &str) -> &[String] {
        match compression {
            "xz" => &self.large[..(self.large.len() / XZ_SHARE).max(2)],
            _ => &self.large,
        }
    }

    /// Bytes of disk that a copy of them takes, at most.
    pub fn disk(&self, compression: &str) -> u64 {
        self.copied(compression).len() as u64 * (LARGE as u64 + LARGE as u64 / 4)
    }

    /// Has `tk_store` make a cache in a folder with the paths that are copied with that compression, unless it is there.
    pub fn fill_cache(&self, tk_store: &Path, cache: &Path, compression: &str) -> Result<()> {
        self.fill_cache_with(tk_store, cache, compression, self.copied(compression))
    }

    /// The same with these paths, without their closures.
    pub fn fill_cache_with<'a>(
        &self,
        tk_store: &Path,
        cache: &Path,
        compression: &str,
        paths: impl IntoIterator<Item = &'a String>,
    ) -> Result<()> {
        let done = cache.with_extension("filled");
        if done.exists() {
            return Ok(());
        }
        let uri = format!("file://{}?compression={compression}", cache.display());
        let copy = Command::new(tk_store)
            .args(["copy", "--quiet", "--no-closure"])
            .args(["--from", &self.store, "--to", &uri])
            .args(paths)
            .stdout(Stdio::null())
            .status()
            .with_context(|| format!("starting {}", tk_store.display()))?;
        ensure!(copy.success(), "filling {uri}: {copy}");
        File::create(done)?;
        Ok(())
    }

    /// What nobody can do without who copies them, `wire`: over a connection. `plain` is a cache with all of them that is
    /// not compressed; `packs` says whether a cache is filled, or read.
    pub fn limits(
        &self,
        plain: &Path,
        compression: &str,
        packs: bool,
        wire: bool,
    ) -> Result<Vec<Limit>> {
        let nars = plain.join("nar");
        let copied = self.copied(compression);
        let share = copied.len() as f64 / self.large.len() as f64;
        let bytes = (bytes_in(&nars)? as f64 * share) as u64;
        let pieces = copied.len() as u64;
        let mut limits = vec![Limit::Sha256 { bytes, pieces }];
        match Compression::of(compression) {
            Some(with) if packs => limits.push(Limit::Compress {
                with,
                files: nars,
                share,
            }),
            None if wire => limits.push(Limit::Link { bytes }),
            None => limits.push(Limit::Write {
                bytes,
                dest: PathBuf::new(),
            }),
            _ => (),
        }
        Ok(limits)
    }
}

async fn fill(root: &Path, folder: &Path, sizes: Sizes) -> Result<Vec<String>> {
    let store = Arc::new(LocalStore::open(LocalConfig::chroot(root)).await?);
    let mut paths: Vec<StorePath> = Vec::new();
    for i in 0..sizes.small {
        fs::write(folder, format!("{i}\n"))?;
        let refs = [i.checked_sub(1), i.checked_sub(10)];
        let refs = refs.into_iter().flatten().map(|r| paths[r].clone());
        let refs: Vec<_> = refs.collect();
        paths.push(add(&store, folder, &format!("small-{i}"), &refs).await?);
    }
    fs::remove_file(folder)?;
    let mut pieces = Pieces::of(&toolchain()?)?;
    for i in 0..sizes.large {
        pieces.fill(folder)?;
        let refs: Vec<_> = match i {
            0 => Vec::new(),
            _ => vec![paths[sizes.small + (i - 1) / 2].clone()],
        };
        paths.push(add(&store, folder, &format!("large-{i}"), &refs).await?);
        remove_tree(folder)?;
    }
    let dir = store.dir();
    Ok(paths.iter().map(|path| dir.path(path)).collect())
}

async fn add(store: &LocalStore, file: &Path, name: &str, refs: &[StorePath]) -> Result<StorePath> {
    let refs = References {
        others: refs.iter().cloned().collect(),
        itself: false,
    };
    let nar = nar::dump(file.to_owned(), DumpOptions::default());
    let info = store
        .add_content(name, Method::Nar, Algorithm::Sha256, &refs, nar)
        .await?;
    Ok(info.path)
}

/// The files of a tree over and over, cut into folders of about the same size.
struct Pieces {
    files: Vec<PathBuf>,
    next: usize,
    /// Bytes of that file that were handed out.
    taken: usize,
}

impl Pieces {
    fn of(tree: &Path) -> Result<Self> {
        let mut files = Vec::new();
        collect(tree, &mut files)?;
        files.sort();
        ensure!(!files.is_empty(), "{} has no files", tree.display());
        Ok(Pieces {
            files,
            next: 0,
            taken: 0,
        })
    }

    fn fill(&mut self, folder: &Path) -> Result<()> {
        fs::create_dir(folder)?;
        let mut left = LARGE;
        while left > 0 {
            let i = self.next % self.files.len();
            let file = &self.files[i];
            let content = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
            let piece = &content[self.taken..];
            let piece = &piece[..piece.len().min(left)];
            fs::write(folder.join(format!("{}-{}", self.next, self.taken)), piece)?;
            left -= piece.len();
            self.taken += piece.len();
            if self.taken == content.len() {
                (self.next, self.taken) = (self.next + 1, 0);
            }
        }
        Ok(())
    }
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&entry.path(), files)?;
        } else if kind.is_file() && entry.metadata()?.len() > 0 {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Bytes of a large path.
const LARGE: usize = 2_036_000;
/// One path in so many is copied with xz.
const XZ_SHARE: usize = 10;
