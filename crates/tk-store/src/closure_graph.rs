//! A closure as a graph of numbers: what can be asked of it beyond which paths it has.

mod chains;
mod draw;
mod sizes;
mod treemap;

pub use chains::DependencyChains;
pub use draw::{GraphLanguage, TreeDrawing};
pub use sizes::ClosureSizes;
pub use treemap::Treemap;

use crate::{Closure, Error, Result};
use std::collections::HashMap;
use tk_narinfo::PathInfo;
use tk_path::StorePath;

/// The paths of a closure by number, in the order of their names, with those that are absent. References that
/// lead out of the closure are left out.
#[derive(Debug, Clone)]
pub struct ClosureGraph<'a> {
    paths: Vec<&'a StorePath>,
    infos: Vec<Option<&'a PathInfo>>,
    /// The references of all paths, one after the other, each path's in the order of their names.
    references: Vec<u32>,
    /// Where those of each path begin, and the end.
    starts: Vec<usize>,
}

impl<'a> ClosureGraph<'a> {
    /// The graph of `closure`.
    pub fn new(closure: &'a Closure) -> Self {
        let present = closure.infos.iter().map(|(path, info)| (path, Some(info)));
        let absent = closure.absent.keys().map(|path| (path, None));
        let mut all: Vec<(&StorePath, Option<&PathInfo>)> = present.chain(absent).collect();
        all.sort_unstable_by_key(|(path, _)| *path);
        let (paths, infos): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        let numbers = paths.iter().zip(0u32..);
        let numbers: HashMap<&StorePath, u32> = numbers.map(|(path, n)| (*path, n)).collect();
        let mut references = Vec::new();
        let mut starts = vec![0];
        for info in &infos {
            let own = info.iter().flat_map(|info| &info.references);
            references.extend(own.filter_map(|path| numbers.get(path)));
            starts.push(references.len());
        }
        ClosureGraph {
            paths,
            infos,
            references,
            starts,
        }
    }

    /// How many paths there are.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// The path `node`.
    pub fn path(&self, node: u32) -> &'a StorePath {
        self.paths[node as usize]
    }

    /// What the store says of `node`; `None` if it is absent.
    pub fn info(&self, node: u32) -> Option<&'a PathInfo> {
        self.infos[node as usize]
    }

    /// The number of `path`, if it is in the closure.
    pub fn node(&self, path: &StorePath) -> Option<u32> {
        let found = self.paths.binary_search(&path).ok()?;
        u32::try_from(found).ok()
    }

    /// What `node` refers to, with itself if it does.
    pub fn references(&self, node: u32) -> &[u32] {
        let node = node as usize;
        &self.references[self.starts[node]..self.starts[node + 1]]
    }

    /// All paths in an order in which each comes after all that it refers to; otherwise by name.
    ///
    /// # Errors
    /// When the references form a circle, which only a lying store can say.
    pub fn references_first(&self) -> Result<Vec<u32>> {
        let mut order = Vec::with_capacity(self.len());
        let mut state = vec![Visit::New; self.len()];
        for root in self.nodes() {
            self.visit(root, &mut state, &mut order)?;
        }
        Ok(order)
    }

    /// The numbers of all paths.
    pub(crate) fn nodes(&self) -> std::ops::Range<u32> {
        0..self.paths.len() as u32
    }

    /// Depth first without recursion: a hostile closure may be deep.
    fn visit(&self, root: u32, state: &mut [Visit], order: &mut Vec<u32>) -> Result<()> {
        let mut stack = vec![(root, true)];
        while let Some((node, entering)) = stack.pop() {
            if !entering {
                state[node as usize] = Visit::Done;
                order.push(node);
                continue;
            }
            // It may have been put on the stack by several paths before it was visited.
            if state[node as usize] != Visit::New {
                continue;
            }
            state[node as usize] = Visit::Open;
            stack.push((node, false));
            let others = self.references(node).iter().rev();
            for &reference in others.filter(|reference| **reference != node) {
                match state[reference as usize] {
                    Visit::Open => return Err(circle(self.path(reference))),
                    Visit::Done => {}
                    Visit::New => stack.push((reference, true)),
                }
            }
        }
        Ok(())
    }

    /// Who refers to each path.
    fn referrers(&self) -> Vec<Vec<u32>> {
        let mut referrers = vec![Vec::new(); self.len()];
        for node in self.nodes() {
            for &reference in self.references(node) {
                referrers[reference as usize].push(node);
            }
        }
        referrers
    }
}

fn circle(path: &StorePath) -> Error {
    Error::invalid(format!(
        "the references of {path} lead back to itself through other paths; no store can hold that"
    ))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Visit {
    New,
    Open,
    Done,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tk_path::NarHash;

    /// A closure of paths that are called by one letter each: `"a bc"` refers to `b` and `c`. The NAR of a path
    /// has ten bytes for each letter in the alphabet up to its own; what is only referred to is absent.
    pub(crate) fn closure_of(lines: &[&str]) -> Closure {
        let mut closure = Closure::default();
        for line in lines {
            let (name, references) = line.split_once(' ').unwrap_or((line, ""));
            let size = 10 * u64::from(name.as_bytes()[0] - b'a' + 1);
            let mut info = PathInfo::new(path(name), NarHash::digest(b""), size);
            let references = references.char_indices();
            info.references = references.map(|(_, c)| path(&c.to_string())).collect();
            closure.infos.insert(info.path.clone(), info);
        }
        for info in closure.infos.values() {
            let lacking = info.references.iter();
            let lacking = lacking.filter(|path| !closure.infos.contains_key(*path));
            let lacking = lacking.map(|path| (path.clone(), Some(info.path.clone())));
            closure.absent.extend(lacking);
        }
        closure
    }

    /// The path that is called `name`, so that the order of names is that of paths.
    pub(crate) fn path(name: &str) -> StorePath {
        let digit = u32::from(name.as_bytes()[0] - b'a');
        format!("{digit:032}-{name}").parse().unwrap()
    }

    /// The names of `nodes`.
    pub(crate) fn names(graph: &ClosureGraph<'_>, nodes: &[u32]) -> String {
        nodes.iter().map(|node| graph.path(*node).name()).collect()
    }

    #[test]
    fn references_come_first() {
        let closure = closure_of(&["a bca", "b d", "c d", "d dx"]);
        let graph = ClosureGraph::new(&closure);
        assert_eq!(names(&graph, &graph.references_first().unwrap()), "xdbca");
        assert_eq!(names(&graph, graph.references(0)), "abc");
        assert!(graph.info(graph.node(&path("x")).unwrap()).is_none());
        assert_eq!(graph.node(&path("e")), None);
        let circle = closure_of(&["a b", "b c", "c a"]);
        let error = ClosureGraph::new(&circle).references_first().unwrap_err();
        assert!(error.to_line().contains("lead back to itself"), "{error}");
    }
}
