//! The inputs of a lock as a tree with names from the root.

use super::{FlakeLock, InputAttrs, InputPath, LockEdge, LockedInput};
use std::collections::{BTreeMap, BTreeSet};

/// All inputs of a lock, each once, and which of them are there more than once.
#[derive(Debug, Clone)]
pub struct LockGraph<'a> {
    /// Depth first, by name.
    pub inputs: Vec<GraphInput<'a>>,
    /// What is pinned by several nodes.
    pub duplicates: Vec<DuplicatePins>,
}

/// An input by its name from the root.
#[derive(Debug, Clone)]
pub struct GraphInput<'a> {
    /// The names that lead to it from the root.
    pub path: InputPath,
    /// Where it leads. What is below a node is told at the first name that leads to it.
    pub edge: &'a LockEdge,
    /// What it is: nothing where it follows another one.
    pub pin: Option<&'a LockedInput>,
}

/// One source that several nodes of a lock pin, perhaps at different revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DuplicatePins {
    /// The source without a revision, as a URL.
    pub url: String,
    /// The inputs that pin it.
    pub inputs: Vec<InputPath>,
    /// Whether all have the same content.
    pub is_same: bool,
}

impl FlakeLock {
    /// The inputs that are reached from the root.
    pub fn graph(&self) -> LockGraph<'_> {
        let (mut inputs, mut seen) = (Vec::new(), BTreeSet::new());
        // Names stand behind one another reversed, so that the first is next.
        let mut open: Vec<_> = self.edges(&InputPath::default(), &self.root);
        while let Some((path, edge)) = open.pop() {
            let key = match edge {
                LockEdge::Node(key) => Some(key),
                LockEdge::Follows(_) => None,
            };
            let pin = key.and_then(|key| self.nodes[key].pin.as_ref());
            if let Some(key) = key.filter(|key| seen.insert(key.as_str())) {
                open.extend(self.edges(&path, key));
            }
            inputs.push(GraphInput { path, edge, pin });
        }
        let duplicates = duplicates(&inputs);
        LockGraph { inputs, duplicates }
    }

    fn edges(&self, prefix: &InputPath, key: &str) -> Vec<(InputPath, &LockEdge)> {
        let edges = self.nodes[key].inputs.iter().rev();
        edges
            .map(|(name, edge)| (prefix.join(name), edge))
            .collect()
    }
}

fn duplicates(inputs: &[GraphInput<'_>]) -> Vec<DuplicatePins> {
    let mut by_url: BTreeMap<String, BTreeMap<&str, (&InputPath, &LockedInput)>> = BTreeMap::new();
    for input in inputs {
        // A folder of another input is a part of it, and none of its own.
        if let (LockEdge::Node(key), Some(pin)) = (input.edge, input.pin)
            && pin.parent.is_none()
        {
            let nodes = by_url.entry(without_revision(&pin.locked)).or_default();
            nodes.entry(key).or_insert((&input.path, pin));
        }
    }
    let several = by_url.into_iter().filter(|(_, nodes)| nodes.len() > 1);
    several
        .map(|(url, nodes)| {
            let hashes: BTreeSet<_> = nodes
                .values()
                .map(|(_, pin)| pin.locked.text("narHash"))
                .collect();
            let mut inputs: Vec<_> = nodes.values().map(|(path, _)| (*path).clone()).collect();
            inputs.sort();
            DuplicatePins {
                url,
                inputs,
                is_same: hashes.len() == 1 && !hashes.contains(&None),
            }
        })
        .collect()
}

fn without_revision(attrs: &InputAttrs) -> String {
    let mut attrs = attrs.clone();
    for name in ["rev", "ref", "dir"] {
        attrs.remove(name);
    }
    attrs.to_url()
}
