//! What is in an archive: a tree of nodes, and its JSON form (`.ls` files of binary caches).
//!
//! ```text
//! listing   = {"version":1,"root":node}
//! node      = {"type":"directory","entries":{name:node,…}}
//!           | {"type":"regular","size":n,"executable":bool,"narOffset":n}
//!           | {"type":"symlink","target":text}
//!           | {}                                  not listed (shallow listings)
//! ```
//! Mirrors `libutil/nar-listing.cc`: compact, keys sorted. A missing `executable` is false; `size` and `narOffset` may
//! be missing, and an offset of 0 means unknown.

use std::collections::BTreeMap;
use std::io::Read;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::decode::{Decoder, Event, feed_all};
use crate::error::NarError;
use crate::grammar::{self, MAX_DEPTH};
use crate::read::NarReader;

/// The tree of an archive without the contents. Takes memory for every entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The root node of the archive, which has no name.
    pub root: ListingNode,
}

/// A node of a [`Listing`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListingNode {
    /// A directory and its entries, by name.
    Directory(BTreeMap<Vec<u8>, ListingNode>),
    /// A regular file, without its contents.
    Regular {
        /// Bytes of contents, if known.
        size: Option<u64>,
        /// Whether it is executable.
        executable: bool,
        /// Bytes from the start of the archive to the contents, if known.
        nar_offset: Option<u64>,
    },
    /// A symlink, which is never followed.
    Symlink {
        /// The target as it stands in the archive; it need not be UTF-8.
        target: Vec<u8>,
    },
    /// Something a shallow listing names but does not describe. Never comes from an archive.
    Unlisted,
}

type Entries = BTreeMap<Vec<u8>, ListingNode>;

/// Whose spelling of a listing to write. All versions of Nix read all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ListingStyle {
    /// Nix 2.35 and later: keys sorted, `executable` always there.
    #[default]
    Current,
    /// Up to Nix 2.34: keys sorted, `executable` only where it is true.
    Sparse,
}

/// Why a listing's JSON was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListingError {
    /// It is no JSON.
    #[error("the listing is not JSON")]
    Json(#[source] serde_json::Error),
    /// It is JSON of another shape.
    #[error("bad listing at '{path}': {why}")]
    Shape {
        /// The member at fault, from the root; empty for the listing itself.
        path: String,
        /// What is wrong with the member.
        why: &'static str,
    },
}

impl Listing {
    /// Reads an archive to its end and lists it. Contents are passed over, not kept.
    pub fn read(nar: impl Read) -> Result<Listing, NarError> {
        let mut reader = NarReader::new(nar);
        let mut tree = TreeBuilder::default();
        while let Some(event) = reader.next_event()? {
            tree.take(event);
        }
        Ok(tree.into_listing())
    }

    /// The `.ls` text in the form of current Nix. See [`Listing::to_json_as`].
    pub fn to_json(&self) -> String {
        self.to_json_as(ListingStyle::Current)
    }

    /// The `.ls` text as one line without a newline. JSON cannot carry bytes that are not UTF-8 (Nix fails on such
    /// names): each such sequence in a name or target is written as U+FFFD, so that text does not read back equal; see
    /// [`Listing::is_utf8`].
    pub fn to_json_as(&self, style: ListingStyle) -> String {
        let mut out = String::from("{\"root\":");
        self.root.write_json(style, &mut out);
        out.push_str(",\"version\":1}");
        out
    }

    /// Reads a `.ls` text of any version of Nix. Names are checked as an archive's are; unknown keys are passed over.
    pub fn from_json(text: &str) -> Result<Listing, ListingError> {
        // The root is parsed apart: serde_json goes 127 levels deep, which 64 nodes need for themselves.
        let parts: BTreeMap<String, &RawValue> =
            serde_json::from_str(text).map_err(ListingError::Json)?;
        if parts.get("version").map(|version| version.get()) != Some("1") {
            return Err(shape("", "its version is not 1"));
        }
        let root = parts
            .get("root")
            .ok_or_else(|| shape("", "it has no root"))?;
        Ok(Listing {
            root: ListingNode::from_json(root.get())?,
        })
    }

    /// Whether all names and targets are UTF-8, so that [`Listing::to_json`] loses nothing.
    pub fn is_utf8(&self) -> bool {
        self.walk().all(|(path, node)| {
            let target = match node {
                ListingNode::Symlink { target } => target.as_slice(),
                _ => &[],
            };
            std::str::from_utf8(&path).is_ok() && std::str::from_utf8(target).is_ok()
        })
    }

    /// The node at `path`, such as `share/doc/x`. Empty steps and `.` are passed over (so `""` and `/` are the root);
    /// `..` finds nothing. Symlinks are not followed: see [`Listing::resolve`].
    pub fn find(&self, path: &[u8]) -> Option<&ListingNode> {
        steps(path).try_fold(&self.root, |node, step| node.child(step))
    }

    /// The node at `path` with symlinks on the way and at its end followed inside the archive. `None` if there is no
    /// such node, if a link leads out of the archive (absolute, or `..` above the root), or after 40 links.
    pub fn resolve(&self, path: &[u8]) -> Option<&ListingNode> {
        let mut todo: Vec<Vec<u8>> = steps(path).rev().map(<[u8]>::to_vec).collect();
        let mut trail = vec![&self.root];
        let mut links = 0;
        while let Some(step) = todo.pop() {
            if step == b".." {
                trail.pop();
                trail.last()?;
                continue;
            }
            let node = trail.last()?.child(&step)?;
            let ListingNode::Symlink { target } = node else {
                trail.push(node);
                continue;
            };
            links += 1;
            if links > MAX_LINKS || target.starts_with(b"/") {
                return None;
            }
            todo.extend(steps(target).rev().map(<[u8]>::to_vec));
        }
        match trail.last()? {
            ListingNode::Symlink { .. } => None,
            node => Some(node),
        }
    }

    /// All nodes with their paths (no leading slash, `""` for the root), parents before children, in archive order.
    pub fn walk(&self) -> impl Iterator<Item = (Vec<u8>, &ListingNode)> {
        let mut todo = vec![(Vec::new(), &self.root)];
        std::iter::from_fn(move || {
            let (path, node) = todo.pop()?;
            if let ListingNode::Directory(entries) = node {
                todo.extend(
                    entries
                        .iter()
                        .rev()
                        .map(|(name, node)| (joined(&path, name), node)),
                );
            }
            Some((path, node))
        })
    }
}

impl ListingNode {
    /// The entry `name` of a directory; `None` if there is none or this is no directory.
    pub fn child(&self, name: &[u8]) -> Option<&ListingNode> {
        match self {
            ListingNode::Directory(entries) => entries.get(name),
            _ => None,
        }
    }

    /// The node's JSON alone, in the form of current Nix, as the nodes inside a `.ls` text are.
    pub fn to_json(&self) -> String {
        self.to_json_as(ListingStyle::Current)
    }

    /// The node's JSON alone, in a form of choice. As lossy as [`Listing::to_json_as`].
    pub fn to_json_as(&self, style: ListingStyle) -> String {
        let mut out = String::new();
        self.write_json(style, &mut out);
        out
    }

    /// Reads the JSON of a node alone.
    pub fn from_json(text: &str) -> Result<ListingNode, ListingError> {
        let value = serde_json::from_str(text).map_err(ListingError::Json)?;
        ListingNode::from_value(&value, "", 1)
    }

    fn write_json(&self, style: ListingStyle, out: &mut String) {
        match self {
            ListingNode::Directory(entries) => {
                out.push_str("{\"entries\":{");
                for (index, (name, node)) in entries.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    write_text(name, out);
                    out.push(':');
                    node.write_json(style, out);
                }
                out.push_str("},\"type\":\"directory\"}");
            }
            ListingNode::Regular {
                size,
                executable,
                nar_offset,
            } => {
                out.push('{');
                if *executable || style == ListingStyle::Current {
                    out.push_str(&format!("\"executable\":{executable},"));
                }
                if let Some(offset) = nar_offset.filter(|&offset| offset != 0) {
                    out.push_str(&format!("\"narOffset\":{offset},"));
                }
                if let Some(size) = size {
                    out.push_str(&format!("\"size\":{size},"));
                }
                out.push_str("\"type\":\"regular\"}");
            }
            ListingNode::Symlink { target } => {
                out.push_str("{\"target\":");
                write_text(target, out);
                out.push_str(",\"type\":\"symlink\"}");
            }
            ListingNode::Unlisted => out.push_str("{}"),
        }
    }

    fn from_value(value: &Value, path: &str, depth: usize) -> Result<ListingNode, ListingError> {
        let Some(object) = value.as_object() else {
            return Err(shape(path, "a node must be an object"));
        };
        if depth > MAX_DEPTH {
            return Err(shape(path, "nodes are nested more than 64 deep"));
        }
        if object.is_empty() {
            return Ok(ListingNode::Unlisted);
        }
        match value.get("type").and_then(Value::as_str) {
            Some("directory") => directory_from(value, path, depth),
            Some("regular") => Ok(ListingNode::Regular {
                size: number(value, "size", path)?,
                executable: match value.get("executable") {
                    None => false,
                    Some(flag) => flag
                        .as_bool()
                        .ok_or_else(|| shape(path, "'executable' is not true or false"))?,
                },
                nar_offset: number(value, "narOffset", path)?.filter(|&offset| offset != 0),
            }),
            Some("symlink") => match value.get("target").and_then(Value::as_str) {
                Some(target) => Ok(ListingNode::Symlink {
                    target: target.into(),
                }),
                None => Err(shape(path, "a symlink has no target")),
            },
            _ => Err(shape(path, "its type is not directory, regular or symlink")),
        }
    }
}

/// Lists an archive whose bytes pass by on their way to something else.
#[derive(Debug, Default)]
pub struct ListingBuilder {
    decoder: Decoder,
    tree: TreeBuilder,
}

impl ListingBuilder {
    /// A builder at the first byte of an archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks at the next bytes of the archive. Bytes behind its end are an error.
    pub fn feed(&mut self, input: &[u8]) -> Result<(), NarError> {
        let tree = &mut self.tree;
        feed_all(&mut self.decoder, input, |event| {
            tree.take(event);
            Ok(())
        })
    }

    /// The listing; an error if the archive is not complete.
    pub fn finish(self) -> Result<Listing, NarError> {
        self.decoder.finish()?;
        Ok(self.tree.into_listing())
    }
}

/// Puts the events of a whole archive together.
#[derive(Debug, Default)]
pub(crate) struct TreeBuilder {
    /// The directories that are not complete yet, with their names.
    open: Vec<(Vec<u8>, Entries)>,
    name: Vec<u8>,
    root: Option<ListingNode>,
}

impl TreeBuilder {
    pub(crate) fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Directory => self
                .open
                .push((std::mem::take(&mut self.name), BTreeMap::new())),
            Event::Entry { name } => self.name = name.to_vec(),
            Event::LeaveDirectory => {
                if let Some((name, entries)) = self.open.pop() {
                    self.name = name;
                    self.add(ListingNode::Directory(entries));
                }
            }
            Event::Regular {
                executable,
                size,
                offset,
            } => {
                self.add(ListingNode::Regular {
                    size: Some(size),
                    executable,
                    nar_offset: Some(offset),
                });
            }
            Event::Symlink { target } => self.add(ListingNode::Symlink {
                target: target.to_vec(),
            }),
            Event::Contents(_) | Event::EndRegular | Event::End => {}
        }
    }

    /// The listing of a complete archive.
    pub(crate) fn into_listing(self) -> Listing {
        Listing {
            root: self.root.unwrap_or(ListingNode::Unlisted),
        }
    }

    fn add(&mut self, node: ListingNode) {
        match self.open.last_mut() {
            Some((_, entries)) => {
                entries.insert(std::mem::take(&mut self.name), node);
            }
            None => self.root = Some(node),
        }
    }
}

fn directory_from(value: &Value, path: &str, depth: usize) -> Result<ListingNode, ListingError> {
    let Some(entries) = value.get("entries").and_then(Value::as_object) else {
        return Err(shape(path, "a directory has no entries"));
    };
    let node = |(name, value): (&String, &Value)| {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}/{name}")
        };
        if grammar::name_fault(name.as_bytes()).is_some() {
            return Err(shape(&path, "its name is not allowed"));
        }
        Ok((
            name.clone().into_bytes(),
            ListingNode::from_value(value, &path, depth + 1)?,
        ))
    };
    Ok(ListingNode::Directory(
        entries.iter().map(node).collect::<Result<_, _>>()?,
    ))
}

fn number(value: &Value, key: &'static str, path: &str) -> Result<Option<u64>, ListingError> {
    match value.get(key) {
        None => Ok(None),
        Some(number) => match number.as_u64() {
            Some(number) => Ok(Some(number)),
            None => Err(shape(path, "'size' or 'narOffset' is not a whole number")),
        },
    }
}

fn shape(path: &str, why: &'static str) -> ListingError {
    ListingError::Shape {
        path: path.to_owned(),
        why,
    }
}

fn write_text(text: &[u8], out: &mut String) {
    out.push_str(&Value::from(String::from_utf8_lossy(text)).to_string());
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    match path {
        b"" => name.to_vec(),
        _ => [path, name].join(&b'/'),
    }
}

fn steps(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|step| !matches!(*step, b"" | b"."))
}

/// As many links as Linux follows in one path.
const MAX_LINKS: usize = 40;
