//! Why one path depends on another: the chains of references between them.

use super::ClosureGraph;
use std::collections::VecDeque;

/// The chains of references from one path to another, nearest first.
#[derive(Debug, Clone)]
pub struct DependencyChains<'g> {
    graph: &'g ClosureGraph<'g>,
    from: u32,
    to: u32,
    distances: Vec<Option<u32>>,
}

impl<'g> DependencyChains<'g> {
    /// The chains from `from` to `to`; `None` if there is none. A path depends on itself.
    pub fn find(graph: &'g ClosureGraph<'g>, from: u32, to: u32) -> Option<Self> {
        let distances = graph.distances_to(&[to]);
        distances[from as usize]?;
        Some(DependencyChains {
            graph,
            from,
            to,
            distances,
        })
    }

    /// What `node` refers to and leads on to the end, the shortest way first, otherwise by name. A reference to
    /// itself leads on only where that is what is asked for.
    pub fn onwards(&self, node: u32) -> Vec<u32> {
        let own = self.from == self.to;
        let references = self.graph.references(node).iter();
        let far = |to: &u32| Some((self.distances[*to as usize]?, *to));
        let mut onwards: Vec<_> = references
            .filter(|to| own || **to != node)
            .filter_map(far)
            .collect();
        onwards.sort_unstable();
        onwards.into_iter().map(|(_, to)| to).collect()
    }

    /// A shortest chain, both ends included.
    pub fn shortest(&self) -> Vec<u32> {
        let mut chain = vec![self.from];
        let mut node = self.from;
        while let Some(next) = self.onwards(node).first() {
            chain.push(*next);
            if *next == self.to {
                break;
            }
            node = *next;
        }
        chain
    }
}

impl ClosureGraph<'_> {
    /// How many references lead from each path to the nearest of `targets`; `None` if none do.
    pub fn distances_to(&self, targets: &[u32]) -> Vec<Option<u32>> {
        let referrers = self.referrers();
        let mut distances = vec![None; self.len()];
        let mut todo: VecDeque<(u32, u32)> = targets.iter().map(|node| (*node, 0)).collect();
        while let Some((node, far)) = todo.pop_front() {
            if distances[node as usize].is_none() {
                distances[node as usize] = Some(far);
                let further = referrers[node as usize].iter();
                todo.extend(further.map(|referrer| (*referrer, far + 1)));
            }
        }
        distances
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::closure_graph::tests::{closure_of, names};

    #[test]
    fn nearest_first() {
        let closure = closure_of(&["a bcfa", "b c", "c d", "d", "e d", "f d"]);
        let graph = ClosureGraph::new(&closure);
        let chains = DependencyChains::find(&graph, 0, 3).unwrap();
        assert_eq!(names(&graph, &chains.shortest()), "acd");
        assert_eq!(names(&graph, &chains.onwards(0)), "cfb");
        assert_eq!(names(&graph, &chains.onwards(3)), "");
        assert!(DependencyChains::find(&graph, 3, 0).is_none());
        assert!(DependencyChains::find(&graph, 0, 4).is_none());
    }

    #[test]
    fn a_path_and_itself() {
        let closure = closure_of(&["a ab", "b"]);
        let graph = ClosureGraph::new(&closure);
        for (node, chain) in [(0, "aa"), (1, "b")] {
            let chains = DependencyChains::find(&graph, node, node).unwrap();
            assert_eq!(names(&graph, &chains.shortest()), chain);
        }
    }
}
