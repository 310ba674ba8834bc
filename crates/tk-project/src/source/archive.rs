//! Tarballs as Nix takes them.
//!
//! Names are cleaned as if the archive were the root of a file system. Of two files of one name the later counts, and
//! nothing else replaces what is there. Hard links are made at the end. Mirrors `unpackTarfileToSink` of `tarfile.cc`
//! and `GitFileSystemObjectSinkImpl` of `git-utils.cc`.

use super::{
    InputSourceError, MAX_ENTRIES, open_file,
    sparse::SparseFile,
    tree::{SourceContents, SourceNode},
};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, Cursor, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::Path,
};
use tar::EntryType;
use tk_cache::compress;
use tk_path::NarHash;

/// The content of a tarball.
#[derive(Debug)]
pub(crate) struct ArchiveTree {
    pub(crate) root: SourceNode<ArchiveContent>,
    /// Seconds since 1970: the newest time of any entry, those of folders too.
    pub(crate) last_modified: u64,
    contents: ArchiveFile,
}

/// Whether a folder that is alone at the top stands for the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SingleFolder {
    IsTheTree,
    IsInTheTree,
}

/// What an entry contains.
#[derive(Debug, Clone)]
pub(crate) enum ArchiveContent {
    /// Bytes of the archive.
    Span(ArchivePart),
    /// The same, with holes between.
    Sparse(SparseFile),
    /// The target of a link.
    Target(Vec<u8>),
}

/// Bytes of an archive, and which of a file they are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ArchivePart {
    /// Where they are in the file.
    pub(super) at: u64,
    /// Where they are in the archive.
    pub(super) offset: u64,
    pub(super) size: u64,
}

impl ArchiveTree {
    /// The tarball at `path`, packed with whatever its first bytes say. It is unpacked into a file without a name in
    /// `scratch`.
    pub(crate) fn open(path: &Path, scratch: &Path) -> Result<ArchiveTree, InputSourceError> {
        Self::read(open_file(path)?, scratch, SingleFolder::IsTheTree)
    }

    /// The tarball that `input` gives.
    pub(crate) fn read(
        input: impl Read + Send,
        scratch: &Path,
        single: SingleFolder,
    ) -> Result<ArchiveTree, InputSourceError> {
        let spooled = spool(input, scratch)?;
        let mut builder = ArchiveBuilder::default();
        let clone = spooled.try_clone().map_err(broken)?;
        let mut archive = tar::Archive::new(BufReader::new(clone));
        for entry in archive.entries_with_seek().map_err(broken)? {
            builder.entry(&mut entry.map_err(broken)?, &spooled)?;
        }
        builder.finish(spooled, single)
    }

    /// The hash of its NAR.
    pub(crate) fn nar_hash(&mut self) -> Result<NarHash, InputSourceError> {
        self.root.nar_hash(&mut self.contents)
    }

    /// If there is one thing at the top and that is a file, the hash of the NAR of this file: what Nix 2.8 makes of it.
    pub(crate) fn single_file_hash(&mut self) -> Result<Option<NarHash>, InputSourceError> {
        let SourceNode::Folder(entries) = &self.root else {
            return Ok(None);
        };
        match entries.values().next() {
            Some(file) if entries.len() == 1 && !matches!(file, SourceNode::Folder(_)) => {
                file.nar_hash(&mut self.contents).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The file at `path`, of at most `max` bytes.
    pub(crate) fn read_file(
        &mut self,
        path: &str,
        max: u64,
    ) -> Result<Option<Vec<u8>>, InputSourceError> {
        self.root.read(path, max, &mut self.contents)
    }
}

/// The archive, unpacked.
#[derive(Debug)]
struct ArchiveFile(File);

impl SourceContents<ArchiveContent> for ArchiveFile {
    fn open<'a>(
        &'a mut self,
        content: &'a ArchiveContent,
    ) -> Result<(u64, Box<dyn Read + 'a>), InputSourceError> {
        Ok(match content {
            ArchiveContent::Span(part) => {
                let parts = std::slice::from_ref(part);
                let reader = ArchiveSpanReader::new(&self.0, parts, part.size);
                (part.size, Box::new(reader))
            }
            ArchiveContent::Sparse(sparse) => {
                let reader = ArchiveSpanReader::new(&self.0, &sparse.parts, sparse.size);
                (sparse.size, Box::new(reader))
            }
            ArchiveContent::Target(target) => (target.len() as u64, Box::new(&target[..])),
        })
    }
}

/// Reads a file that is in an archive.
pub(super) struct ArchiveSpanReader<'a> {
    archive: &'a File,
    parts: &'a [ArchivePart],
    at: u64,
    size: u64,
}

impl<'a> ArchiveSpanReader<'a> {
    /// Of `size` bytes; what is not in `parts` is zero.
    pub(super) fn new(archive: &'a File, parts: &'a [ArchivePart], size: u64) -> Self {
        ArchiveSpanReader {
            archive,
            parts,
            at: 0,
            size,
        }
    }
}

impl Read for ArchiveSpanReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let [part, rest @ ..] = self.parts
            && self.at >= part.at + part.size
        {
            self.parts = rest;
        }
        let part = self.parts.first();
        let here = part.filter(|part| part.at <= self.at);
        let end = match (here, part) {
            (Some(part), _) => part.at + part.size,
            (None, Some(next)) => next.at,
            (None, None) => self.size,
        };
        let most = usize::try_from(end - self.at).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        let buffer = &mut buffer[..most];
        let mut read = most;
        if let Some(part) = here {
            read = self
                .archive
                .read_at(buffer, part.offset + (self.at - part.at))?;
        } else {
            buffer.fill(0);
        }
        if read == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        Ok(read)
    }
}

/// The bytes of `input` without what they are packed with.
fn spool(mut input: impl Read + Send, scratch: &Path) -> Result<File, InputSourceError> {
    let mut head = Vec::new();
    input
        .by_ref()
        .take(HEAD)
        .read_to_end(&mut head)
        .map_err(broken)?;
    if head.starts_with(b"PK\x03\x04") {
        let what = "it is a zip archive, which is not read here";
        return Err(InputSourceError::Unsupported(what.into()));
    }
    let packed = compress::compression_of(&head);
    let whole = BufReader::with_capacity(BUFFER, Cursor::new(head).chain(input));
    let plain = compress::decoder(packed, whole)
        .map_err(|e| InputSourceError::Unsupported(e.to_string()))?;
    let spooling = |e| InputSourceError::failed(format!("writing to {}", scratch.display()), e);
    let mut file = tempfile::tempfile_in(scratch).map_err(spooling)?;
    let copied = io::copy(&mut plain.take(MAX_ARCHIVE + 1), &mut file).map_err(|error| {
        // A disk that is full is no fault of the archive.
        if error.kind() == io::ErrorKind::StorageFull {
            spooling(error)
        } else {
            broken(error)
        }
    })?;
    if copied > MAX_ARCHIVE {
        let what = format!("it unpacks to more than {MAX_ARCHIVE} bytes");
        return Err(InputSourceError::Unsupported(what));
    }
    file.seek(SeekFrom::Start(0)).map_err(spooling)?;
    Ok(file)
}

fn broken(error: io::Error) -> InputSourceError {
    InputSourceError::Unsupported(format!("it cannot be read as an archive: {error}"))
}

/// A tree in the making.
#[derive(Default)]
struct ArchiveBuilder {
    root: BTreeMap<Vec<u8>, ArchiveNode>,
    hard_links: BTreeMap<Vec<Vec<u8>>, Vec<Vec<u8>>>,
    entries: usize,
    files: usize,
    last_modified: u64,
}

/// A node, and which of the files it is: 0 for all else.
struct ArchiveNode {
    what: ArchiveKind,
    number: usize,
}

enum ArchiveKind {
    Folder(BTreeMap<Vec<u8>, ArchiveNode>),
    Leaf(SourceNode<ArchiveContent>),
}

impl ArchiveBuilder {
    fn entry<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        archive: &File,
    ) -> Result<(), InputSourceError> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            let what = format!("it has more than {MAX_ENTRIES} entries");
            return Err(InputSourceError::Unsupported(what));
        }
        self.last_modified = self.last_modified.max(modified(entry)?);
        let sparse = SparseFile::of(entry, archive, MAX_ENTRIES - self.entries).map_err(broken)?;
        let name = sparse.as_ref().and_then(|sparse| sparse.name.as_deref());
        let path = clean(name.unwrap_or(&entry.path_bytes()));
        let target = entry.link_name_bytes().map(|target| target.into_owned());
        let target = || target.ok_or_else(|| broken(io::Error::other("a link has no target")));
        match kind {
            EntryType::Link => {
                self.hard_links.insert(path, clean(&target()?));
                Ok(())
            }
            EntryType::Directory => self.put(&path, ArchiveKind::Folder(BTreeMap::new()), 0),
            EntryType::Symlink => {
                let link = SourceNode::Link(ArchiveContent::Target(target()?));
                self.put(&path, ArchiveKind::Leaf(link), 0)
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                // Old archives mark folders by a slash only.
                if entry.path_bytes().ends_with(b"/") {
                    return self.put(&path, ArchiveKind::Folder(BTreeMap::new()), 0);
                }
                let mode = entry.header().mode().map_err(broken)?;
                let content = match sparse {
                    Some(sparse) => {
                        self.entries += sparse.parts.len();
                        ArchiveContent::Sparse(sparse)
                    }
                    None => ArchiveContent::Span(ArchivePart {
                        at: 0,
                        offset: entry.raw_file_position(),
                        size: entry.size(),
                    }),
                };
                let executable = mode & 0o100 != 0;
                let file = SourceNode::File {
                    executable,
                    content,
                };
                let number = self.files;
                self.files += 1;
                self.put(&path, ArchiveKind::Leaf(file), number)
            }
            other => {
                let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
                let what = format!("'{name}' in it is of a kind that has no NAR ({other:?})");
                Err(InputSourceError::Unsupported(what))
            }
        }
    }

    fn put(
        &mut self,
        path: &[Vec<u8>],
        what: ArchiveKind,
        number: usize,
    ) -> Result<(), InputSourceError> {
        let Some((name, parents)) = path.split_last() else {
            return Ok(());
        };
        if let Some(name) = path.iter().find(|name| is_of_git(name)) {
            let name = String::from_utf8_lossy(name);
            let what = format!(
                "'{}' in it is called '{name}', which Nix refuses",
                shown(path)
            );
            return Err(InputSourceError::Unsupported(what));
        }
        if path.len() > MAX_DEPTH {
            let what = format!("it is nested more than {MAX_DEPTH} deep");
            return Err(InputSourceError::Unsupported(what));
        }
        let mut folder = &mut self.root;
        for parent in parents {
            let node = folder.entry(parent.clone()).or_insert_with(|| ArchiveNode {
                what: ArchiveKind::Folder(BTreeMap::new()),
                number: 0,
            });
            let ArchiveKind::Folder(entries) = &mut node.what else {
                let what = format!(
                    "'{}' in it lies in something that is no folder",
                    shown(path)
                );
                return Err(InputSourceError::Unsupported(what));
            };
            folder = entries;
        }
        if folder.get(name).is_none_or(|before| before.number < number) {
            folder.insert(name.clone(), ArchiveNode { what, number });
        }
        Ok(())
    }

    fn finish(mut self, file: File, single: SingleFolder) -> Result<ArchiveTree, InputSourceError> {
        for (path, target) in std::mem::take(&mut self.hard_links) {
            if target.is_empty() {
                continue;
            }
            let Some(leaf) = self.leaf(&target).cloned() else {
                let what = format!(
                    "'{}' in it is a link to a file that is not there",
                    shown(&path)
                );
                return Err(InputSourceError::Unsupported(what));
            };
            self.put(&path, ArchiveKind::Leaf(leaf), 0)?;
        }
        let mut root = plain(self.root);
        if single == SingleFolder::IsTheTree
            && let SourceNode::Folder(entries) = &mut root
            && entries.len() == 1
            && let Some((name, only)) = entries.pop_first()
        {
            if let SourceNode::Folder(_) = only {
                root = only;
            } else {
                entries.insert(name, only);
            }
        }
        Ok(ArchiveTree {
            root,
            last_modified: self.last_modified,
            contents: ArchiveFile(file),
        })
    }

    fn leaf(&self, path: &[Vec<u8>]) -> Option<&SourceNode<ArchiveContent>> {
        let (name, parents) = path.split_last()?;
        let mut folder = &self.root;
        for parent in parents {
            let ArchiveKind::Folder(entries) = &folder.get(parent)?.what else {
                return None;
            };
            folder = entries;
        }
        match &folder.get(name)?.what {
            ArchiveKind::Leaf(leaf) => Some(leaf),
            ArchiveKind::Folder(_) => None,
        }
    }
}

fn plain(entries: BTreeMap<Vec<u8>, ArchiveNode>) -> SourceNode<ArchiveContent> {
    let entries = entries.into_iter().map(|(name, node)| match node.what {
        ArchiveKind::Folder(entries) => (name, plain(entries)),
        ArchiveKind::Leaf(leaf) => (name, leaf),
    });
    SourceNode::Folder(entries.collect())
}

/// Seconds since 1970. What stands in front of an entry counts more than what stands in it.
fn modified<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<u64, InputSourceError> {
    if let Some(extensions) = entry.pax_extensions().map_err(broken)? {
        for extension in extensions {
            let extension = extension.map_err(broken)?;
            if extension.key_bytes() == b"mtime" {
                let text = String::from_utf8_lossy(extension.value_bytes()).into_owned();
                let whole = text.split('.').next().unwrap_or_default();
                return Ok(since_1970(whole.parse().unwrap_or(0)));
            }
        }
    }
    // The two's complement of a time before 1970 is read as a large number.
    let time = entry.header().mtime().map_err(broken)?;
    Ok(since_1970(time.cast_signed()))
}

/// Times before count as 0.
fn since_1970(time: i64) -> u64 {
    time.try_into().unwrap_or(0)
}

/// Whether a name is `.git` on some file system, so that git has it in no tree. As `validate_dotgit` of libgit2 with
/// `core.protectNTFS`, its default.
fn is_of_git(name: &[u8]) -> bool {
    let starts = |with: &str| {
        let start = name.get(..with.len())?;
        start
            .eq_ignore_ascii_case(with.as_bytes())
            .then(|| &name[with.len()..])
    };
    let Some(rest) = starts(".git").or_else(|| starts("git~1")) else {
        return false;
    };
    let is_padding = |byte: &u8| matches!(byte, b' ' | b'.');
    matches!(rest.first(), Some(b'\\' | b':')) || rest.iter().all(is_padding)
}

/// The names of a path, without `.`; `..` takes the name before it away.
fn clean(path: &[u8]) -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => (),
            b".." => {
                names.pop();
            }
            name => names.push(name.to_vec()),
        }
    }
    names
}

fn shown(path: &[Vec<u8>]) -> String {
    String::from_utf8_lossy(&path.join(&b'/')).into_owned()
}

const BUFFER: usize = 256 << 10;
/// Bytes that tell what something is packed with.
const HEAD: u64 = 512;
/// Bytes of an archive that is unpacked.
const MAX_ARCHIVE: u64 = 32 << 30;
/// As in a NAR.
const MAX_DEPTH: usize = 64;
