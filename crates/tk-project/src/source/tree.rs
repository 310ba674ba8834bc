use super::InputSourceError;
use std::{
    collections::BTreeMap,
    io::{self, BufWriter, Read, Write},
};
use tk_nar::{EncodeError, Encoder};
use tk_path::{Algorithm, Hasher, NarHash};

/// A tree whose contents lie elsewhere: `C` says where.
#[derive(Debug, Clone)]
pub(crate) enum SourceNode<C> {
    /// A folder, by name.
    Folder(BTreeMap<Vec<u8>, SourceNode<C>>),
    /// A regular file.
    File {
        /// Whether it is executable.
        executable: bool,
        /// What the file holds.
        content: C,
    },
    /// A link, whose content is its target.
    Link(C),
}

/// Where the contents of a tree are read.
pub(crate) trait SourceContents<C> {
    /// The length of `content` and its bytes. Contents are asked for in the order in which they stand in a NAR.
    fn open<'a>(
        &'a mut self,
        content: &'a C,
    ) -> Result<(u64, Box<dyn Read + 'a>), InputSourceError>;
}

impl<C> SourceNode<C> {
    /// A folder without anything.
    pub(crate) fn empty() -> SourceNode<C> {
        SourceNode::Folder(BTreeMap::new())
    }

    /// What is at `path` in it; links are not followed.
    pub(crate) fn find(&self, path: &str) -> Option<&SourceNode<C>> {
        let mut node = self;
        for name in path
            .split('/')
            .filter(|name| !name.is_empty() && *name != ".")
        {
            let SourceNode::Folder(entries) = node else {
                return None;
            };
            node = entries.get(name.as_bytes())?;
        }
        Some(node)
    }

    /// Calls `each` for all contents, in the order in which they stand in a NAR.
    pub(crate) fn contents<'a>(&'a self, each: &mut impl FnMut(&'a C)) {
        match self {
            SourceNode::Folder(entries) => entries.values().for_each(|node| node.contents(each)),
            SourceNode::File { content, .. } | SourceNode::Link(content) => each(content),
        }
    }

    /// The hash of its NAR.
    pub(crate) fn nar_hash(
        &self,
        contents: &mut impl SourceContents<C>,
    ) -> Result<NarHash, InputSourceError> {
        let hasher = BufWriter::with_capacity(BUFFER, Hasher::new(Algorithm::Sha256));
        let mut nar = Encoder::new(hasher);
        self.put(&mut nar, contents)?;
        let hasher = nar.finish().map_err(of_nar)?.into_inner();
        let hasher = hasher.map_err(|e| InputSourceError::failed("hashing", e.into_error()))?;
        let hash = NarHash::try_from(hasher.finish());
        hash.map_err(|e| InputSourceError::Unsupported(e.to_string()))
    }

    /// The encoder bounds the depth.
    fn put<W: Write>(
        &self,
        nar: &mut Encoder<W>,
        contents: &mut impl SourceContents<C>,
    ) -> Result<(), InputSourceError> {
        match self {
            SourceNode::Folder(entries) => {
                nar.directory().map_err(of_nar)?;
                for (name, node) in entries {
                    nar.entry(name).map_err(of_nar)?;
                    node.put(nar, contents)?;
                }
                nar.leave().map_err(of_nar)
            }
            SourceNode::File {
                executable,
                content,
            } => {
                let (size, mut bytes) = contents.open(content)?;
                nar.regular(*executable, size).map_err(of_nar)?;
                let mut buffer = vec![0; BUFFER.min(size.max(1) as usize)];
                loop {
                    let read = bytes.read(&mut buffer);
                    match read.map_err(|e| InputSourceError::failed("reading a file of it", e))? {
                        0 => return Ok(()),
                        read => nar.contents(&buffer[..read]).map_err(of_nar)?,
                    }
                }
            }
            SourceNode::Link(content) => {
                let (_, bytes) = contents.open(content)?;
                let mut target = Vec::new();
                let read = bytes.take(MAX_TARGET).read_to_end(&mut target);
                read.map_err(|e| InputSourceError::failed("reading a link of it", e))?;
                nar.symlink(&target).map_err(of_nar)
            }
        }
    }

    /// The content of the file at `path`, of at most `max` bytes.
    pub(crate) fn read(
        &self,
        path: &str,
        max: u64,
        contents: &mut impl SourceContents<C>,
    ) -> Result<Option<Vec<u8>>, InputSourceError> {
        let Some(SourceNode::File { content, .. }) = self.find(path) else {
            return Ok(None);
        };
        let (size, bytes) = contents.open(content)?;
        if size > max {
            let what = format!("{path} has {size} bytes, more than {max}");
            return Err(InputSourceError::Unsupported(what));
        }
        let mut out = Vec::new();
        let read = bytes.take(max).read_to_end(&mut out);
        read.map_err(|e| InputSourceError::failed(format!("reading {path}"), e))?;
        Ok(Some(out))
    }
}

fn of_nar(error: EncodeError) -> InputSourceError {
    match error {
        EncodeError::Io(source) => InputSourceError::failed("writing a NAR", source),
        EncodeError::Size { .. } => {
            InputSourceError::failed("reading a file of it", io::Error::other(error.to_string()))
        }
        other => InputSourceError::Unsupported(format!("it cannot be in a NAR: {other}")),
    }
}

const BUFFER: usize = 256 << 10;
/// More bytes than the target of a link may have.
const MAX_TARGET: u64 = 8192;
