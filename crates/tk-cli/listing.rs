//! How trees are printed, by `ls` and `nar ls`.

use crate::words::{name_for_stdout, stdout};
use anyhow::Result;
use std::io::{self, BufWriter, Write};
use tk_nar::{Listing, MemberError, Node};

/// Which lines are printed, and how.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Style {
    /// Print type, size and link targets as well
    #[arg(long, short)]
    pub long: bool,
    /// Print the tree as JSON, in the form of a cache's .ls files
    #[arg(long)]
    pub json: bool,
}

/// Prints what is at `member` of `listing`: the node itself, or the entries of a directory, down
/// to the leaves if `recursive`. With JSON the whole listing if `member` is empty, else the node.
pub fn print(listing: &Listing, member: &[u8], style: Style, recursive: bool) -> Result<()> {
    let Some(node) = listing.find(member) else {
        return Err(MemberError::Missing(member.to_vec()).into());
    };
    let mut out = BufWriter::new(stdout());
    if style.json {
        match member {
            b"" => writeln!(out, "{}", listing.to_json())?,
            _ => writeln!(out, "{}", node.to_json())?,
        }
    } else if let Node::Directory(_) = node {
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

fn line(out: &mut impl Write, name: &[u8], node: &Node, long: bool) -> io::Result<()> {
    if long {
        let (mode, size) = match node {
            Node::Directory(_) | Node::Unlisted => ("dr-xr-xr-x", 0),
            Node::Regular {
                executable: true,
                size,
                ..
            } => ("-r-xr-xr-x", size.unwrap_or(0)),
            Node::Regular { size, .. } => ("-r--r--r--", size.unwrap_or(0)),
            Node::Symlink { .. } => ("lrwxrwxrwx", 0),
        };
        write!(out, "{mode} {size:>20} ")?;
    }
    out.write_all(&name_for_stdout(name))?;
    if let (true, Node::Symlink { target }) = (long, node) {
        out.write_all(b" -> ")?;
        out.write_all(&name_for_stdout(target))?;
    }
    out.write_all(b"\n")
}
