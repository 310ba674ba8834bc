//! The order in which paths go.

use crate::db::graph::StoreGraph;
use std::{cmp::Reverse, collections::BinaryHeap};

/// Paths that are to be deleted: each after all that refer to it, and among those the oldest first.
pub(super) struct Doomed<'a> {
    graph: &'a StoreGraph,
    which: &'a [bool],
    /// How many of those that are to go refer to each, and have not gone yet.
    waiting: Vec<u32>,
    ready: BinaryHeap<Reverse<(u64, u32)>>,
}

impl<'a> Doomed<'a> {
    pub fn new(graph: &'a StoreGraph, which: &'a [bool]) -> Self {
        let mut waiting = vec![0; graph.len()];
        let all = || graph.nodes().filter(|node| which[*node as usize]);
        for to in all().flat_map(|node| graph.references(node)) {
            waiting[*to as usize] += 1;
        }
        let ready = all().filter(|node| waiting[*node as usize] == 0);
        let ready = ready.map(|node| Reverse((graph.times[node as usize], node)));
        Doomed {
            graph,
            which,
            ready: ready.collect(),
            waiting,
        }
    }

    /// The next that `may_go`. What one that may not go refers to never comes.
    pub fn next(&mut self, may_go: impl Fn(u32) -> bool) -> Option<u32> {
        loop {
            let Reverse((_, node)) = self.ready.pop()?;
            if !may_go(node) {
                continue;
            }
            for to in self.graph.references(node) {
                let waiting = &mut self.waiting[*to as usize];
                *waiting -= 1;
                if *waiting == 0 && self.which[*to as usize] {
                    self.ready
                        .push(Reverse((self.graph.times[*to as usize], *to)));
                }
            }
            return Some(node);
        }
    }
}
