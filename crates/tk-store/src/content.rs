use crate::{Error, Result};
use std::{io, path::Path};
use tk_nar::{
    Decoder, Event, NarError,
    fs::{Dump, DumpOptions},
};
use tk_narinfo::PathInfo;
use tk_path::{
    Algorithm, ContentAddress, Hash, Hasher, Method, NarHash, References, StoreDir,
    git::{self, GitError},
};

/// Finds the content address of a tree while its NAR passes by: whatever the method, in one pass,
/// and with the NAR hash that the path's metadata needs anyway.
#[derive(Debug)]
pub struct ContentHasher {
    method: Method,
    nar: Hasher,
    decoder: Decoder,
    content: Content,
}

/// The hash that the content address is made of, if it is not that of the NAR.
#[derive(Debug)]
enum Content {
    /// sha256 of the NAR: the NAR hash itself.
    NarHash,
    /// Another hash of the NAR.
    Nar(Hasher),
    /// The bytes of the only file.
    File(Hasher),
    /// The hash of the tree as objects of git.
    Git(GitHasher),
}

impl ContentHasher {
    /// A hasher for content to be added with `method` and `algorithm`.
    ///
    /// # Errors
    /// When they do not go together: text is sha256 only, git sha1 or sha256.
    pub fn new(method: Method, algorithm: Algorithm) -> Result<Self> {
        let content = match (method, algorithm) {
            (Method::Nar, Algorithm::Sha256) => Content::NarHash,
            (Method::Nar, _) => Content::Nar(Hasher::new(algorithm)),
            (Method::Flat, _) | (Method::Text, Algorithm::Sha256) => {
                Content::File(Hasher::new(algorithm))
            }
            (Method::Git, Algorithm::Sha1 | Algorithm::Sha256) => {
                Content::Git(GitHasher::new(algorithm))
            }
            (Method::Text, _) => return Err(Error::invalid("text is hashed with sha256 only")),
            (Method::Git, _) => {
                return Err(Error::invalid(
                    "git objects are hashed with sha1 or sha256 only",
                ));
            }
        };
        Ok(ContentHasher {
            method,
            nar: Hasher::new(Algorithm::Sha256),
            decoder: Decoder::new(),
            content,
        })
    }

    /// Takes the next bytes of the NAR.
    ///
    /// # Errors
    /// When they are no NAR, or when a single file is needed and it is none.
    pub fn update(&mut self, chunk: &[u8]) -> Result<()> {
        self.nar.update(chunk);
        if let Content::Nar(hasher) = &mut self.content {
            hasher.update(chunk);
        }
        self.feed(chunk)
    }

    /// Gives every event of the NAR's next bytes to the content's own hash.
    fn feed(&mut self, mut rest: &[u8]) -> Result<()> {
        loop {
            let fed = self.decoder.feed(rest).map_err(malformed)?;
            rest = &rest[fed.consumed..];
            match fed.event {
                Some(event) => self.content.event(event)?,
                None if rest.is_empty() => return Ok(()),
                None => {
                    let end = self.decoder.offset();
                    let why = format!("bad archive: more data follows its end, at byte {end}");
                    return Err(Error::malformed(WHAT, why));
                }
            }
        }
    }

    /// The metadata of the content as a path named `name`: path, content address, NAR hash and
    /// size, references.
    ///
    /// # Errors
    /// When the NAR is not complete, when `references` do not go with the method, or when the path
    /// is to refer to itself.
    pub fn finish(self, dir: &StoreDir, name: &str, references: &References) -> Result<PathInfo> {
        // Its address would have to be made of the content without the path, which is not known
        // before the address is.
        if references.itself {
            return Err(Error::invalid(format!(
                "{name} cannot be added by its content: it refers to itself"
            )));
        }
        let method = self.method;
        let (hash, nar_hash, nar_size) = self.hashes()?;
        let ca = ContentAddress { method, hash };
        let path = dir
            .path_of_content(name, &ca, references)
            .map_err(|e| Error::invalid(e.to_string()))?;
        let mut info = PathInfo::new(path, nar_hash, nar_size);
        info.references = references.others.clone();
        info.ca = Some(ca);
        Ok(info)
    }

    /// The hash of the content address, and the NAR's hash and size.
    pub(crate) fn hashes(self) -> Result<(Hash, NarHash, u64)> {
        self.decoder.finish().map_err(malformed)?;
        let size = self.nar.bytes();
        let nar_hash = NarHash::try_from(self.nar.finish()).expect("sha256 was asked for");
        let hash = match self.content {
            Content::NarHash => nar_hash.into(),
            Content::Nar(hasher) | Content::File(hasher) => hasher.finish(),
            Content::Git(git) => git.finish()?,
        };
        Ok((hash, nar_hash, size))
    }

    /// The metadata that the file or folder at `path` would have; reads it on this thread.
    pub fn file(
        mut self,
        path: &Path,
        options: &DumpOptions,
        dir: &StoreDir,
        name: &str,
    ) -> Result<PathInfo> {
        let reading = |e| Error::io(format!("reading {}", path.display()), io::Error::other(e));
        for chunk in Dump::new(path, options).map_err(reading)? {
            self.update(chunk.map_err(reading)?.as_ref())?;
        }
        self.finish(dir, name, &References::default())
    }
}

impl Content {
    fn event(&mut self, event: Event<'_>) -> Result<()> {
        match self {
            Content::NarHash | Content::Nar(_) => Ok(()),
            Content::File(hasher) => match event {
                // Whether it is executable makes another NAR, but no other address.
                Event::Regular { .. } | Event::EndRegular | Event::End => Ok(()),
                Event::Contents(piece) => {
                    hasher.update(piece);
                    Ok(())
                }
                _ => Err(Error::invalid(
                    "only a plain file can be added as text or flat file",
                )),
            },
            Content::Git(git) => git.event(event),
        }
    }
}

/// Git's hash of a tree, from the events of its NAR: every object is hashed as it closes, so that
/// what is kept is one entry for each node of the open folders.
#[derive(Debug)]
struct GitHasher {
    algorithm: Algorithm,
    mode: git::GitMode,
    blob: Option<Hasher>,
    /// The open folders, each with its name in the one before it.
    open: Vec<(Vec<u8>, git::GitTree)>,
    name: Vec<u8>,
    root: Option<Hash>,
}

impl GitHasher {
    fn new(algorithm: Algorithm) -> Self {
        GitHasher {
            algorithm,
            mode: git::GitMode::Regular,
            blob: None,
            open: Vec::new(),
            name: Vec::new(),
            root: None,
        }
    }

    fn event(&mut self, event: Event<'_>) -> Result<()> {
        match event {
            Event::Directory => {
                let name = std::mem::take(&mut self.name);
                self.open.push((name, git::GitTree::new()));
            }
            Event::Entry { name } => self.name = name.to_vec(),
            Event::LeaveDirectory => {
                let (name, tree) = self.open.pop().unwrap_or_default();
                self.name = name;
                self.close(
                    git::GitMode::Directory,
                    tree.hash(self.algorithm).map_err(git_error)?,
                )?;
            }
            Event::Regular {
                executable, size, ..
            } => {
                self.mode = if executable {
                    git::GitMode::Executable
                } else {
                    git::GitMode::Regular
                };
                self.blob = Some(self.blob_of(size));
            }
            Event::Contents(piece) => {
                if let Some(blob) = &mut self.blob {
                    blob.update(piece);
                }
            }
            Event::EndRegular => {
                if let Some(blob) = self.blob.take() {
                    self.close(self.mode, blob.finish())?;
                }
            }
            Event::Symlink { target } => {
                let mut blob = self.blob_of(target.len() as u64);
                blob.update(target);
                self.close(git::GitMode::Symlink, blob.finish())?;
            }
            Event::End => {}
        }
        Ok(())
    }

    fn blob_of(&self, size: u64) -> Hasher {
        let mut hasher = Hasher::new(self.algorithm);
        hasher.update(&git::blob_header(size));
        hasher
    }

    /// A node is complete: it becomes an entry of its folder, or is the root.
    fn close(&mut self, mode: git::GitMode, hash: Hash) -> Result<()> {
        match self.open.last_mut() {
            Some((_, folder)) => folder.insert(&self.name, mode, hash).map_err(git_error),
            None => {
                self.root = Some(hash);
                Ok(())
            }
        }
    }

    fn finish(self) -> Result<Hash> {
        self.root
            .ok_or_else(|| Error::malformed(WHAT, "it has no root"))
    }
}

fn git_error(error: GitError) -> Error {
    Error::malformed(WHAT, error)
}

fn malformed(error: NarError) -> Error {
    Error::malformed(WHAT, error)
}

const WHAT: &str = "the NAR of the content to add";
