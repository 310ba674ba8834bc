//! flake.lock: which sources exactly the inputs of a flake are.
//!
//! ```text
//! lock  = { "nodes": { KEY: node }, "root": KEY, "version": 5 | 6 | 7 }
//! node  = { "inputs": { NAME: KEY | [ NAME, … ] },    a list follows another input, named from the root
//!           "locked": attributes, "original": attributes, "info": attributes,    not in the root; info in 5 only
//!           "flake": false, "parent": [ NAME, … ] }   parent: to what a relative path is relative
//! ```
//! It is written with sorted keys and two blanks of indent. Keys are names of inputs; a name that is taken gets
//! `_2`, `_3`, …, in the order in which the inputs are met depth first. Mirrors `lockfile.cc`.

mod attrs;
mod error;
mod graph;
mod read;
mod solve;
mod url;
mod verify;
mod write;

pub use attrs::{AttrValue, InputAttrs};
pub use error::FlakeFileError;
pub use graph::{DuplicatePins, GraphInput, LockGraph};
pub use read::{MAX_LOCK_BYTES, MAX_LOCK_DEPTH, MAX_LOCK_EDGES, MAX_LOCK_NODES};
pub use solve::{LockError, LockUpdates, SolvedLock, solve_lock};
pub use verify::{InputVerdict, VerifiedInput, VerifyOptions};

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// The content of a flake.lock.
///
/// ```
/// use tk_project::FlakeLock;
///
/// let text = r#"{ "nodes": { "root": {} }, "root": "root", "version": 7 }"#;
/// let lock = FlakeLock::parse("flake.lock", text)?;
/// assert!(lock.root().inputs.is_empty());
/// # Ok::<(), tk_project::FlakeFileError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlakeLock {
    /// 5 to 7; what is written is 7.
    version: u64,
    root: String,
    nodes: BTreeMap<String, LockNode>,
}

/// A flake in a lock, or a source that is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LockNode {
    /// Its inputs, by name.
    pub inputs: BTreeMap<String, LockEdge>,
    /// What it is; nothing for the flake that the lock belongs to.
    pub pin: Option<LockedInput>,
}

/// Where an input leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockEdge {
    /// To the node with this key.
    Node(String),
    /// To what another input is, named from the root; empty: to nothing.
    Follows(InputPath),
}

/// What an input is, and what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockedInput {
    /// As flake.nix names it.
    pub original: InputAttrs,
    /// What was found, with its hash.
    pub locked: InputAttrs,
    /// Whether it is a flake, whose flake.nix was read.
    pub is_flake: bool,
    /// For a relative path: the input that it lies in.
    pub parent: Option<InputPath>,
}

/// The name of an input from the root: `a/nixpkgs` is input `nixpkgs` of input `a`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InputPath(pub Vec<String>);

impl InputPath {
    /// Reads names with slashes between.
    ///
    /// # Errors
    /// With the reason, if one is no name that Nix allows.
    pub fn parse(text: &str) -> Result<InputPath, String> {
        let names = text.split('/').filter(|name| !name.is_empty());
        let names = names.map(|name| {
            let fault = || format!("'{name}' is not the name of an input");
            is_input_name(name)
                .then(|| name.to_owned())
                .ok_or_else(fault)
        });
        Ok(InputPath(names.collect::<Result<_, _>>()?))
    }

    /// Input `name` of this one.
    pub fn join(&self, name: &str) -> InputPath {
        let mut path = self.clone();
        path.0.push(name.to_owned());
        path
    }
}

impl fmt::Display for InputPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("/"))
    }
}

/// Whether it is a name as `flakeref.hh` has it: a letter, then letters, digits, `_` and `-`.
fn is_input_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphabetic());
    first && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

impl FlakeLock {
    /// A lock without inputs.
    pub fn empty() -> FlakeLock {
        let root = "root".to_owned();
        FlakeLock {
            version: CURRENT_VERSION,
            nodes: BTreeMap::from([(root.clone(), LockNode::default())]),
            root,
        }
    }

    /// A lock of these nodes.
    ///
    /// # Panics
    /// If there is no node `root`: the caller's mistake.
    pub fn from_nodes(root: &str, nodes: BTreeMap<String, LockNode>) -> FlakeLock {
        assert!(nodes.contains_key(root), "a lock has a root");
        FlakeLock {
            version: CURRENT_VERSION,
            root: root.to_owned(),
            nodes,
        }
    }

    /// The version that it was written in.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The node of the flake that it belongs to.
    pub fn root(&self) -> &LockNode {
        &self.nodes[&self.root]
    }

    /// The key of that node.
    pub fn root_key(&self) -> &str {
        &self.root
    }

    /// The node `key`.
    pub fn node(&self, key: &str) -> Option<&LockNode> {
        self.nodes.get(key)
    }

    /// All nodes by their keys, also those that nobody uses.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &LockNode)> {
        self.nodes.iter().map(|(key, node)| (key.as_str(), node))
    }

    /// The key of the node that `path` leads to, through what it follows.
    ///
    /// # Errors
    /// With the reason, where inputs follow each other in a circle.
    pub fn find(&self, path: &InputPath) -> Result<Option<&str>, String> {
        self.find_from(path, &mut BTreeSet::new())
    }

    fn find_from<'a>(
        &'a self,
        path: &InputPath,
        visited: &mut BTreeSet<InputPath>,
    ) -> Result<Option<&'a str>, String> {
        if visited.len() > MAX_FOLLOWS || !visited.insert(path.clone()) {
            return Err(format!(
                "the inputs that '{path}' follows go round in a circle"
            ));
        }
        let mut key = self.root.as_str();
        for name in &path.0 {
            let edge = self.nodes.get(key).and_then(|node| node.inputs.get(name));
            key = match edge {
                None => return Ok(None),
                Some(LockEdge::Node(key)) => key,
                Some(LockEdge::Follows(path)) => match self.find_from(path, visited)? {
                    None => return Ok(None),
                    Some(key) => key,
                },
            };
        }
        Ok(Some(key))
    }
}

/// What is written.
const CURRENT_VERSION: u64 = 7;
/// How many follow one another at most.
const MAX_FOLLOWS: usize = 200;
