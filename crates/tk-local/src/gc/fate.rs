//! What is alive, and what is about to go: shared by the collector and those who tell it new roots.

use super::{cut_off, doomed::Doomed};
use crate::{db::graph::StoreGraph, found_roots::FoundRoots};
use std::{collections::HashSet, sync::Arc};
use tk_path::{HashPart, StorePath};
use tk_store::GcOptions;

/// What becomes of each path. New roots only ever add to what is alive.
#[derive(Debug, Default)]
pub(super) struct Fate {
    /// Without nodes until [`Fate::begin`].
    graph: Arc<StoreGraph>,
    alive: Vec<bool>,
    /// Hash parts of temporary roots: their paths need not be valid yet.
    temporary: HashSet<HashPart>,
    /// What is being deleted at this moment.
    condemned: HashSet<HashPart>,
}

impl Fate {
    /// Marks what the roots reach, with those that were told before this.
    pub fn begin(&mut self, graph: Arc<StoreGraph>, found: &FoundRoots, options: &GcOptions) {
        self.alive = vec![false; graph.len()];
        self.graph = graph.clone();
        let told = std::mem::take(&mut self.temporary);
        for part in told.into_iter().chain(
            found
                .temporary
                .iter()
                .map(|root| root.target.to_hash_part()),
        ) {
            self.add_temporary(part);
        }
        // What nobody can read may keep anything.
        for node in graph.unreadable() {
            self.mark(node);
        }
        if !options.ignore_liveness {
            for root in &found.roots {
                if let Some(node) = graph.find(root.target.as_str()) {
                    self.mark(node);
                }
            }
        }
        if let Some(cut_off) = cut_off(options) {
            for node in graph.nodes().filter(|n| graph.times[*n as usize] > cut_off) {
                self.mark(node);
            }
        }
    }

    /// Takes a temporary root, with all that it keeps.
    pub fn add_temporary(&mut self, part: HashPart) {
        self.temporary.insert(part);
        for node in self.graph.clone().with_hash(&part) {
            self.mark(*node);
        }
    }

    pub fn mark(&mut self, node: u32) {
        self.graph.mark(node, &mut self.alive);
    }

    pub fn is_alive(&self, node: u32) -> bool {
        self.alive[node as usize]
    }

    pub fn dead(&self) -> Vec<bool> {
        self.alive.iter().map(|alive| !alive).collect()
    }

    pub fn is_temporary(&self, part: &HashPart) -> bool {
        self.temporary.contains(part)
    }

    pub fn is_condemned(&self, part: &HashPart) -> bool {
        self.condemned.contains(part)
    }

    /// Chooses up to `most` paths that go now, of limited size together.
    pub fn condemn(&mut self, doomed: &mut Doomed, most: usize) -> Vec<u32> {
        let (mut batch, mut bytes) = (Vec::new(), 0u64);
        while batch.len() < most && bytes < BATCH_BYTES {
            let Some(node) = doomed.next(|node| !self.is_alive(node)) else {
                break;
            };
            bytes = bytes.saturating_add(self.graph.nar_sizes[node as usize]);
            // A row that names no path is alive, see `begin`.
            let path = StorePath::parse(self.graph.name(node));
            self.condemned.extend(path.map(|path| path.to_hash_part()));
            batch.push(node);
        }
        batch
    }

    /// The same for what is not valid; false if somebody is about to make it so.
    pub fn condemn_name(&mut self, part: Option<HashPart>) -> bool {
        let free = part.is_none_or(|part| !self.is_temporary(&part));
        if free {
            self.condemned.extend(part);
        }
        free
    }

    /// What was condemned is gone.
    pub fn release(&mut self) {
        self.condemned.clear();
    }
}

/// Bytes of NARs that go in one batch: whoever wants one of its paths waits for all.
const BATCH_BYTES: u64 = 64 << 20;
