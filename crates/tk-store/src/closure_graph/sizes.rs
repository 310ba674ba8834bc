//! What the paths of a closure weigh: alone, with all that they need, and with what is there for their sake only.

use super::ClosureGraph;
use crate::Result;

/// The sizes of the paths of a closure, each by its number: bytes of NARs. What is absent has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosureSizes {
    /// Of each path's own NAR.
    pub own: Vec<u64>,
    /// Of a path and all that it refers to, directly or not.
    pub closure: Vec<u64>,
    /// Of a path and all that no root leads to but through it: what would go if the path were dropped alone.
    pub added: Vec<u64>,
    /// The nearest other path through which every way from a root leads; `None` where there are several ways, from
    /// different roots or by different references of one, and for a root. The tree of these is that of `added`: the
    /// size of a path is its own and those of the paths below it.
    pub keeper: Vec<Option<u32>>,
}

impl ClosureSizes {
    /// The sizes in `graph`, which is the closure of `roots`.
    ///
    /// Closure sizes take time by the square of the closure (paths × paths / 64 steps: 10,000 paths some hundredths of a
    /// second) and memory by its length: which of 64 paths each path leads to is found out in one pass, and summed up.
    ///
    /// # Errors
    /// When the references form a circle, which only a lying store can say.
    pub fn of(graph: &ClosureGraph<'_>, roots: &[u32]) -> Result<Self> {
        let order = graph.references_first()?;
        let size = |node| graph.info(node).map_or(0, |info| info.nar_size);
        let own: Vec<u64> = graph.nodes().map(size).collect();
        let keeper = keepers(graph, &order, roots);
        let mut added = own.clone();
        // Who keeps a path comes after it.
        for &node in &order {
            if let Some(keeper) = keeper[node as usize] {
                added[keeper as usize] =
                    added[keeper as usize].saturating_add(added[node as usize]);
            }
        }
        let closure = closure_sizes(graph, &order, &own);
        Ok(ClosureSizes {
            own,
            closure,
            added,
            keeper,
        })
    }
}

fn closure_sizes(graph: &ClosureGraph<'_>, order: &[u32], own: &[u64]) -> Vec<u64> {
    // By place in the order, so that references lead back only.
    let mut places = vec![0u32; order.len()];
    for (place, node) in (0u32..).zip(order) {
        places[*node as usize] = place;
    }
    let mut references = Vec::new();
    let mut starts = vec![0];
    for &node in order {
        let others = graph.references(node).iter().filter(|to| **to != node);
        references.extend(others.map(|to| places[*to as usize]));
        starts.push(references.len());
    }
    let mut sums = vec![0u64; order.len()];
    let mut reached = vec![0u64; order.len()];
    for first in (0..order.len()).step_by(BLOCK) {
        let end = (first + BLOCK).min(order.len());
        let sizes = &order[first..end];
        let sizes = BlockSums::new(sizes.iter().map(|node| own[*node as usize]));
        // What comes before the block leads to nothing in it.
        for place in first..order.len() {
            let below = &references[starts[place]..starts[place + 1]];
            let below = below.iter().map(|to| *to as usize);
            let below = below.filter(|to| *to >= first);
            let itself = if place < end { 1 << (place - first) } else { 0 };
            reached[place] = below.fold(itself, |all, to| all | reached[to]);
            sums[place] = sums[place].saturating_add(sizes.of(reached[place]));
        }
    }
    let mut by_node = vec![0; order.len()];
    for (sum, node) in sums.into_iter().zip(order) {
        by_node[*node as usize] = sum;
    }
    by_node
}

/// The sums of all subsets of some numbers, by eight of them at a time.
struct BlockSums([[u64; 256]; BLOCK / 8]);

impl BlockSums {
    fn new(sizes: impl Iterator<Item = u64>) -> Self {
        let mut tables = [[0u64; 256]; BLOCK / 8];
        for (i, size) in sizes.enumerate() {
            let (table, bit) = (&mut tables[i / 8], 1 << (i % 8));
            // The subsets without this number come first.
            for subset in bit..2 * bit {
                table[subset] = table[subset - bit].saturating_add(size);
            }
        }
        BlockSums(tables)
    }

    fn of(&self, subset: u64) -> u64 {
        if subset == 0 {
            return 0;
        }
        let bytes = subset.to_le_bytes();
        let sums = self.0.iter().zip(bytes);
        sums.fold(0, |all, (table, byte)| {
            all.saturating_add(table[byte as usize])
        })
    }
}

/// Paths whose sizes are summed up in one pass.
const BLOCK: usize = 64;

/// For each path the nearest one through which every way from a root leads: its immediate dominator. The graph has no
/// circles, so one pass is enough, from the roots on: it is the nearest common one of all who refer to the path.
fn keepers(graph: &ClosureGraph<'_>, order: &[u32], roots: &[u32]) -> Vec<Option<u32>> {
    let referrers = graph.referrers();
    let top = order.len() as u32;
    let mut tree = KeeperTree::new(order.len());
    let mut is_root = vec![false; order.len()];
    roots.iter().for_each(|root| is_root[*root as usize] = true);
    for &node in order.iter().rev() {
        let mut keeper = is_root[node as usize].then_some(top);
        let others = referrers[node as usize].iter().filter(|by| **by != node);
        for &by in others.filter(|by| tree.depth[**by as usize] > 0) {
            keeper = Some(keeper.map_or(by, |keeper| tree.common(keeper, by)));
        }
        if let Some(keeper) = keeper {
            tree.insert(node, keeper);
        }
    }
    let keeper = tree.parent.into_iter().take(order.len());
    keeper
        .map(|parent| Some(parent).filter(|parent| *parent != top))
        .collect()
}

/// A tree that grows by leaves, in which the nearest common ancestor of two nodes is found in logarithmic time: each node
/// also knows one far above it, as in a skew-binary list (Myers 1983).
struct KeeperTree {
    parent: Vec<u32>,
    far: Vec<u32>,
    /// 0 for the root, which comes last, and for those that are not in the tree.
    depth: Vec<u32>,
}

impl KeeperTree {
    fn new(nodes: usize) -> Self {
        let root = nodes as u32;
        KeeperTree {
            parent: vec![root; nodes + 1],
            far: vec![root; nodes + 1],
            depth: vec![0; nodes + 1],
        }
    }

    fn insert(&mut self, node: u32, parent: u32) {
        let depth = |node: u32| self.depth[node as usize];
        let far = self.far[parent as usize];
        let farther = self.far[far as usize];
        let even = depth(parent) - depth(far) == depth(far) - depth(farther);
        self.far[node as usize] = if even { farther } else { parent };
        self.depth[node as usize] = depth(parent) + 1;
        self.parent[node as usize] = parent;
    }

    fn common(&self, a: u32, b: u32) -> u32 {
        let depth = |node: u32| self.depth[node as usize];
        let (mut high, mut low) = if depth(a) < depth(b) { (a, b) } else { (b, a) };
        while depth(low) > depth(high) {
            let far = self.far[low as usize];
            low = if depth(far) >= depth(high) {
                far
            } else {
                self.parent[low as usize]
            };
        }
        while high != low {
            let far = [high, low].map(|node| self.far[node as usize]);
            let next = if far[0] == far[1] {
                &self.parent
            } else {
                &self.far
            };
            (high, low) = (next[high as usize], next[low as usize]);
        }
        high
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Closure, closure_graph::tests::closure_of};
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use tk_narinfo::PathInfo;
    use tk_path::{NarHash, StorePath};

    /// What `roots` lead to, if nobody may go through `without`.
    fn reached(graph: &ClosureGraph<'_>, roots: &[u32], without: Option<u32>) -> BTreeSet<u32> {
        let mut seen = BTreeSet::new();
        let mut open = roots.to_vec();
        while let Some(node) = open.pop() {
            if Some(node) != without && seen.insert(node) {
                open.extend(graph.references(node));
            }
        }
        seen
    }

    fn sum(graph: &ClosureGraph<'_>, nodes: &BTreeSet<u32>) -> u64 {
        let infos = nodes.iter().filter_map(|node| graph.info(*node));
        infos.map(|info| info.nar_size).sum()
    }

    /// The sizes by their meaning.
    fn naive(graph: &ClosureGraph<'_>, roots: &[u32]) -> [Vec<u64>; 2] {
        let all = sum(graph, &reached(graph, roots, None));
        let closure = |node| sum(graph, &reached(graph, &[node], None));
        let added = |node| all - sum(graph, &reached(graph, roots, Some(node)));
        [
            graph.nodes().map(closure).collect(),
            graph.nodes().map(added).collect(),
        ]
    }

    #[test]
    fn a_closure_by_hand() {
        // d is there for b and c, e for d only.
        let closure = closure_of(&["a bca", "b d", "c df", "d e", "e", "f"]);
        let graph = ClosureGraph::new(&closure);
        let sizes = ClosureSizes::of(&graph, &[0]).unwrap();
        assert_eq!(sizes.own, [10, 20, 30, 40, 50, 60]);
        assert_eq!(sizes.closure, [210, 110, 180, 90, 50, 60]);
        assert_eq!(sizes.added, [210, 20, 90, 90, 50, 60]);
        let keepers = [None, Some(0), Some(0), Some(0), Some(3), Some(2)];
        assert_eq!(sizes.keeper, keepers);
        // With a second root, d is there for its own sake.
        let sizes = ClosureSizes::of(&graph, &[0, 3]).unwrap();
        assert_eq!(sizes.added, [120, 20, 90, 90, 50, 60]);
        assert_eq!(sizes.keeper[3], None);
    }

    #[test]
    fn circles_and_gaps() {
        let circle = closure_of(&["a b", "b a"]);
        assert!(ClosureSizes::of(&ClosureGraph::new(&circle), &[0]).is_err());
        let closure = closure_of(&["a bx", "b x"]);
        let sizes = ClosureSizes::of(&ClosureGraph::new(&closure), &[0]).unwrap();
        assert_eq!(sizes.closure, [30, 20, 0]);
    }

    /// A closure of some hundred paths, of which each refers to some before it.
    fn closures() -> impl Strategy<Value = (Closure, Vec<prop::sample::Index>)> {
        let one = (
            prop::collection::vec(any::<prop::sample::Index>(), 0..4),
            0..1000u64,
        );
        let all = prop::collection::vec(one, 1..200);
        let roots = prop::collection::vec(any::<prop::sample::Index>(), 1..4);
        (all.prop_map(made), roots)
    }

    fn made(all: Vec<(Vec<prop::sample::Index>, u64)>) -> Closure {
        let mut closure = Closure::default();
        // Names are in another order than references.
        let name =
            |n: usize| -> StorePath { format!("{:032}-x", n * 7919 % 10_007).parse().unwrap() };
        for (n, (references, size)) in all.into_iter().enumerate() {
            let mut info = PathInfo::new(name(n), NarHash::digest(b""), size);
            let references = references.iter().map(|at| name(at.index(n + 1)));
            info.references = references.collect();
            closure.infos.insert(info.path.clone(), info);
        }
        closure
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn as_by_their_meaning((closure, roots) in closures()) {
            let graph = ClosureGraph::new(&closure);
            let roots: Vec<u32> = roots.iter().map(|at| at.index(graph.len()) as u32).collect();
            let sizes = ClosureSizes::of(&graph, &roots).unwrap();
            let there = reached(&graph, &roots, None);
            let [closure, added] = naive(&graph, &roots);
            prop_assert_eq!(&sizes.closure, &closure);
            for node in there {
                prop_assert_eq!(sizes.added[node as usize], added[node as usize]);
            }
        }
    }
}
