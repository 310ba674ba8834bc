//! How trees are printed, by `ls` and `nar ls`.

use crate::output::{name_for_stdout, stdout};
use anyhow::{Result, ensure};
use std::{
    collections::BTreeMap,
    io::{self, BufWriter, Write},
};
use tk_nar::{Listing, ListingNode, ListingStyle, MemberError};

/// Which lines are printed, and how.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Style {
    /// Print type, size and link targets as well
    #[arg(long, short)]
    pub long: bool,
    /// Print the tree as JSON
    #[arg(long)]
    pub json: bool,
}

/// The form of the JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JsonForm {
    /// That of a cache's `.ls` files, with all that there is.
    ListingFile,
    /// That of `nix store ls`: the node itself, and of what is in a folder in a folder only the name,
    /// unless it is listed recursively.
    Node {
        /// Whether it says where in the NAR a file's bytes are, as nix does of caches.
        offsets: bool,
    },
}

/// Prints what is at `member` of `listing`: the node itself, or the entries of a directory, down
/// to the leaves if `recursive`.
///
/// JSON is text: a byte of a name that is not UTF-8 is written as `\xNN` there.
pub fn print(
    listing: &Listing,
    member: &[u8],
    style: Style,
    recursive: bool,
    form: JsonForm,
) -> Result<()> {
    let Some(node) = listing.find(member) else {
        return Err(MemberError::Missing(member.to_vec()).into());
    };
    let mut out = BufWriter::new(stdout());
    if style.json {
        match form {
            JsonForm::ListingFile => {
                let root = node_of_text(node, true, true)?;
                match member {
                    b"" => writeln!(out, "{}", Listing { root }.to_json())?,
                    _ => writeln!(out, "{}", root.to_json())?,
                }
            }
            JsonForm::Node { offsets } => {
                let node = node_of_text(node, recursive, offsets)?;
                writeln!(out, "{}", node.to_json_as(ListingStyle::Sparse))?;
            }
        }
    } else if let ListingNode::Directory(_) = node {
        let sub = Listing { root: node.clone() };
        let depth = |path: &[u8]| path.iter().filter(|b| **b == b'/').count();
        for (path, node) in sub.walk().skip(1) {
            if recursive || depth(&path) == 0 {
                line(&mut out, &path, node, style.long)?;
            }
        }
    } else {
        let name = member.rsplit(|b| *b == b'/').next().unwrap_or_default();
        line(&mut out, name, node, style.long)?;
    }
    out.flush()?;
    Ok(())
}

/// The node with names that JSON can hold, down to the leaves if `deep`.
fn node_of_text(node: &ListingNode, deep: bool, offsets: bool) -> Result<ListingNode> {
    Ok(match node {
        ListingNode::Directory(entries) => {
            let mut texts = BTreeMap::new();
            for (name, child) in entries {
                let child = if deep {
                    node_of_text(child, deep, offsets)?
                } else {
                    ListingNode::Unlisted
                };
                let text = text_of(name);
                let shown = String::from_utf8_lossy(&text).into_owned();
                ensure!(
                    texts.insert(text, child).is_none(),
                    "two names in it are '{shown}' in JSON; list it without --json"
                );
            }
            ListingNode::Directory(texts)
        }
        ListingNode::Regular {
            size,
            executable,
            nar_offset,
        } => ListingNode::Regular {
            size: *size,
            executable: *executable,
            nar_offset: nar_offset.filter(|_| offsets),
        },
        ListingNode::Symlink { target } => ListingNode::Symlink {
            target: text_of(target),
        },
        ListingNode::Unlisted => ListingNode::Unlisted,
    })
}

/// `bytes`, or where they are not UTF-8, with `\xNN` for each byte that is not, and `\\` for `\`, so that
/// two such names never become one.
fn text_of(bytes: &[u8]) -> Vec<u8> {
    if std::str::from_utf8(bytes).is_ok() {
        return bytes.to_vec();
    }
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(&chunk.valid().replace('\\', "\\\\"));
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text.into_bytes()
}

fn line(out: &mut impl Write, name: &[u8], node: &ListingNode, long: bool) -> io::Result<()> {
    if long {
        let (mode, size) = match node {
            ListingNode::Directory(_) | ListingNode::Unlisted => ("dr-xr-xr-x", 0),
            ListingNode::Regular {
                executable: true,
                size,
                ..
            } => ("-r-xr-xr-x", size.unwrap_or(0)),
            ListingNode::Regular { size, .. } => ("-r--r--r--", size.unwrap_or(0)),
            ListingNode::Symlink { .. } => ("lrwxrwxrwx", 0),
        };
        write!(out, "{mode} {size:>20} ")?;
    }
    out.write_all(&name_for_stdout(name))?;
    if let (true, ListingNode::Symlink { target }) = (long, node) {
        out.write_all(b" -> ")?;
        out.write_all(&name_for_stdout(target))?;
    }
    out.write_all(b"\n")
}
