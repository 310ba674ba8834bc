//! Deleting what nothing needs, beside whoever uses the store meanwhile (Nix's `gc.cc`).
//!
//! 1. `gc.lock` is held alone. Whoever makes a temporary root meanwhile finds it held, and tells the path to
//!    `gc-socket/socket` instead, see [`RootServer`].
//! 2. Roots are looked for, and all that they reach is marked in the [graph](StoreGraph) of the database.
//! 3. The rest goes in small batches, referrers first: rows in one transaction, then the content. A path that
//!    somebody makes a root of in the meantime is marked with all that it keeps; if its batch is at work, its
//!    user waits for the end of the batch and sees that the path is not valid any more.
//!
//! A path that was registered after the graph was read is kept, with what it refers to: the database does not
//! let go of a row to which another one refers. What is killed half-way leaves content without a row, which
//! the next collection takes.
//!
//! # Where Nix differs
//! | | Nix | here |
//! |---|---|---|
//! | a dry run | deletes entries of the store folder that are no store paths | deletes nothing, and needs no lock |
//! | lock files, and scratch folders that somebody holds locked | deleted (2.26 and later spare `tmp-*`) | kept |
//! | a row that names no store path | its folder is deleted | kept, with what it refers to |
//! | order | a fixed shuffle of the folder | the oldest first |
//! | some of the paths to delete are alive | those before the first such path are deleted | none is |

mod disk;
mod doomed;
mod fate;
mod server;

use crate::{
    LocalStore,
    db::graph::{KeepRules, StoreGraph},
    found_roots::FoundRoots,
    inner::{LocalInner, reserve},
    lock::{LockKind, lock, open_lock_file, try_lock},
    telling::Teller,
};
use async_trait::async_trait;
use disk::LeftOver;
use doomed::Doomed;
use fate::Fate;
use server::RootServer;
use std::{collections::BTreeSet, fs::File, path::Path, sync::Arc, time::UNIX_EPOCH};
use tk_path::StorePath;
use tk_store::{
    Error, GarbageCollector, GcAction, GcOptions, GcReport, Result, Root,
    log::{Level, LogSink},
};

#[async_trait]
impl GarbageCollector for LocalStore {
    /// Deletes nothing while roots may be hidden from this process. Dropping the future ends the
    /// collection after the batch at work.
    async fn collect_garbage(&self, options: &GcOptions, log: &dyn LogSink) -> Result<GcReport> {
        let options = options.clone();
        let collect = move |store: &LocalInner, teller: &Teller| match &options.action {
            GcAction::ReturnLive | GcAction::ReturnDead => store.look_for_garbage(&options, teller),
            GcAction::DeleteDead | GcAction::DeleteSpecific(_) => {
                Collection::begin(store, &options, teller)?.run()
            }
        };
        self.run_telling(log, collect).await
    }
}

impl LocalInner {
    /// What is alive or dead. Nothing is locked nor changed.
    fn look_for_garbage(&self, options: &GcOptions, teller: &Teller) -> Result<GcReport> {
        let found = self.find_roots();
        tell_hidden(&found, teller);
        for unknown in &found.unknown {
            teller.say(Level::Warn, unknown.to_line());
        }
        let graph = self.db.graph(self.keep_rules(options))?;
        let graph = Arc::new(graph);
        let mut fate = Fate::default();
        fate.begin(graph.clone(), &found, options);
        let mut report = GcReport::default();
        let live = options.action == GcAction::ReturnLive;
        for node in graph.nodes().filter(|node| fate.is_alive(*node) == live) {
            report.paths.insert(self.full(graph.name(node)));
            let size = graph.nar_sizes[node as usize];
            report.bytes_freed = report.bytes_freed.saturating_add(size);
        }
        if live {
            report.bytes_freed = 0;
            return Ok(report);
        }
        for left in self.left_overs(&graph, options)? {
            if left.hash().is_none_or(|part| !fate.is_temporary(&part)) && !left.is_in_use() {
                report.bytes_freed = report.bytes_freed.saturating_add(left.size());
                report.paths.insert(self.full(&left.name));
            }
        }
        Ok(report)
    }

    fn keep_rules(&self, options: &GcOptions) -> KeepRules {
        // Otherwise what is to go in spite of all would take derivers or outputs along.
        let may = !options.ignore_liveness;
        KeepRules {
            outputs: may && self.config.keep_outputs,
            derivations: may && self.config.keep_derivations,
        }
    }

    fn full(&self, name: &str) -> String {
        format!("{}/{name}", self.config.dir)
    }
}

/// One collection at work: as long as it exists, nobody else collects.
struct Collection<'a> {
    store: &'a LocalInner,
    options: &'a GcOptions,
    teller: &'a Teller,
    found: FoundRoots,
    graph: Arc<StoreGraph>,
    report: GcReport,
    server: RootServer,
    /// Last: the server ends before others may collect.
    _lock: File,
}

impl<'a> Collection<'a> {
    fn begin(store: &'a LocalInner, options: &'a GcOptions, teller: &'a Teller) -> Result<Self> {
        store.require_writable()?;
        let state = &store.config.state;
        let lock = collector_lock(&state.join("gc.lock"), teller)?;
        let server = RootServer::start(state, &store.config.dir)?;
        let found = store.find_roots();
        found.require_known()?;
        tell_hidden(&found, teller);
        for stale in store.remove_stale_roots(&found.stale)? {
            teller.say(Level::Info, format!("removing {stale}"));
        }
        let graph = Arc::new(store.db.graph(store.keep_rules(options))?);
        // The database needs room to get smaller, on a disk that is full.
        let _ = std::fs::remove_file(state.join("db/reserved"));
        server.fate().begin(graph.clone(), &found, options);
        Ok(Collection {
            store,
            options,
            teller,
            found,
            graph,
            report: GcReport::default(),
            server,
            _lock: lock,
        })
    }

    fn run(mut self) -> Result<GcReport> {
        let done = match &self.options.action {
            GcAction::DeleteSpecific(paths) => self.delete_these(paths),
            _ if self.options.max_freed > 0 => self.delete_dead(),
            _ => Ok(()),
        };
        let links = self.store.config.real.join(".links");
        // What becomes free by this was counted with the paths that had the files, as Nix does.
        if let Err(error) = disk::remove_unused_links(&links) {
            self.teller.say(Level::Warn, error.to_line());
        }
        reserve(&self.store.config.state.join("db/reserved"));
        done.map(|()| self.report)
    }

    fn delete_dead(&mut self) -> Result<()> {
        for left in self.store.left_overs(&self.graph, self.options)? {
            if self.is_enough() {
                return Ok(());
            }
            self.delete_left_over(&left)?;
        }
        let dead = self.server.fate().dead();
        self.delete_nodes(&dead)
    }

    /// All of `paths`, or none.
    fn delete_these(&mut self, paths: &BTreeSet<StorePath>) -> Result<()> {
        let mut wanted = vec![false; self.graph.len()];
        let mut left = Vec::new();
        for path in paths {
            match self.graph.find(path.as_str()) {
                Some(node) => wanted[node as usize] = true,
                None => left.push(LeftOver::at(&self.store.config.real, path.as_str())),
            }
        }
        if self.options.skip_live {
            self.leave_live(&mut wanted);
        }
        self.check_unused(&wanted)?;
        for left in left {
            if self.delete_left_over(&left)? {
                // To ask twice is no error.
                self.report.paths.insert(self.store.full(&left.name));
            } else if !self.options.skip_live {
                let full = self.store.full(&left.name);
                return Err(still_alive(
                    self.store,
                    &full,
                    "somebody is about to make it",
                ));
            }
        }
        self.delete_nodes(&wanted)?;
        let mut wanted = self.graph.nodes().filter(|node| wanted[*node as usize]);
        let fate = self.server.fate();
        match wanted.find(|node| fate.is_alive(*node)) {
            Some(node) if !self.options.skip_live && !self.options.ignore_liveness => {
                let full = self.store.full(self.graph.name(node));
                Err(still_alive(
                    self.store,
                    &full,
                    "somebody has just begun to use it",
                ))
            }
            _ => Ok(()),
        }
    }

    /// Takes those out of `wanted` that something else needs.
    fn leave_live(&self, wanted: &mut [bool]) {
        let fate = self.server.fate();
        let mut needed = vec![false; wanted.len()];
        for node in self.graph.nodes() {
            if !wanted[node as usize] || fate.is_alive(node) {
                self.graph.mark(node, &mut needed);
            }
        }
        for (wanted, needed) in wanted.iter_mut().zip(needed) {
            *wanted &= !needed;
        }
    }

    /// An error if one of the `wanted` is alive, or kept by one that is not wanted.
    fn check_unused(&self, wanted: &[bool]) -> Result<()> {
        let is_wanted = |node: u32| wanted[node as usize];
        let why = |node: u32, why: &str| {
            let full = self.store.full(self.graph.name(node));
            Err(still_alive(self.store, &full, why))
        };
        let alive = {
            let fate = self.server.fate();
            let mut nodes = self.graph.nodes();
            nodes.find(|node| is_wanted(*node) && fate.is_alive(*node))
        };
        if let Some(node) = alive {
            let by = self.root_of(node);
            let by = by.map_or("it is in use".to_owned(), |root| {
                format!("{} leads to it", root.link)
            });
            return why(node, &by);
        }
        let used = self
            .graph
            .edges()
            .find(|(from, to)| is_wanted(*to) && !is_wanted(*from));
        match used {
            Some((from, to)) => why(
                to,
                &format!("{} needs it", self.store.full(self.graph.name(from))),
            ),
            None => Ok(()),
        }
    }

    /// A root from which `node` is reached.
    fn root_of(&self, node: u32) -> Option<&Root> {
        let mut edges: Vec<_> = self.graph.edges().collect();
        edges.sort_unstable_by_key(|(_, to)| *to);
        let mut above = vec![false; self.graph.len()];
        above[node as usize] = true;
        let mut todo = vec![node];
        while let Some(node) = todo.pop() {
            let first = edges.partition_point(|(_, to)| *to < node);
            for (from, _) in edges[first..].iter().take_while(|(_, to)| *to == node) {
                if !std::mem::replace(&mut above[*from as usize], true) {
                    todo.push(*from);
                }
            }
        }
        let is_above = |root: &&Root| {
            let node = self.graph.find(root.target.as_str());
            node.is_some_and(|node| above[node as usize])
        };
        self.found.roots.iter().find(is_above)
    }

    fn delete_nodes(&mut self, which: &[bool]) -> Result<()> {
        let graph = self.graph.clone();
        let mut doomed = Doomed::new(&graph, which);
        let most = if self.options.max_freed == u64::MAX {
            BATCH
        } else {
            1
        };
        while !self.is_enough() {
            self.teller.cancel.check()?;
            let batch = self.server.fate().condemn(&mut doomed, most);
            if batch.is_empty() {
                return Ok(());
            }
            let deleted = self.delete_batch(batch);
            // First of all: whoever waits for one of them need not wait until all is told.
            self.server.release();
            for (name, removed) in deleted? {
                self.removed(&name, removed);
            }
        }
        Ok(())
    }

    fn delete_batch(&mut self, mut batch: Vec<u32>) -> Result<Vec<(String, Result<u64>)>> {
        let graph = self.graph.clone();
        let ids: Vec<_> = batch.iter().map(|node| graph.id(*node)).collect();
        let left = self.store.db.forget(&ids)?;
        if !left.is_empty() {
            let is_left = |node: &u32| left.contains(&graph.id(*node));
            for node in batch.iter().filter(|node| is_left(node)) {
                self.server.fate().mark(*node);
            }
            batch.retain(|node| !is_left(node));
        }
        let names: Vec<_> = batch.iter().map(|node| graph.name(*node)).collect();
        let removed = disk::remove_all(&self.store.config.real, &names);
        let names = names.into_iter().map(str::to_owned);
        Ok(names.zip(removed).collect())
    }

    fn removed(&mut self, name: &str, removed: Result<u64>) {
        let full = self.store.full(name);
        match removed {
            Ok(bytes) => {
                self.teller.say(Level::Info, format!("deleting '{full}'"));
                self.report.bytes_freed = self.report.bytes_freed.saturating_add(bytes);
                self.report.paths.insert(full);
            }
            Err(error) => {
                let line = error.to_line();
                self.teller.say(Level::Error, line.clone());
                self.report.failed.push(line);
            }
        }
    }

    /// Whether it is not there any more.
    fn delete_left_over(&mut self, left: &LeftOver) -> Result<bool> {
        self.teller.cancel.check()?;
        if !self.server.fate().condemn_name(left.hash()) {
            return Ok(false);
        }
        // Somebody may have made it valid since the graph was read.
        let valid = match StorePath::parse(&left.name) {
            Ok(path) => self.store.db.is_valid(&path),
            Err(_) => Ok(false),
        };
        let removed = match valid {
            Ok(false) => left.remove(),
            _ => Ok(None),
        };
        self.server.release();
        match removed {
            Ok(Some(bytes)) => self.removed(&left.name, Ok(bytes)),
            Err(error) => self.removed(&left.name, Err(error)),
            Ok(None) => return Ok(!valid? && left.is_absent()),
        }
        Ok(true)
    }

    fn is_enough(&mut self) -> bool {
        let enough = self.report.bytes_freed > self.options.max_freed;
        if enough {
            let most = self.options.max_freed;
            self.teller.say(
                Level::Info,
                format!("deleted more than {most} bytes; stopping"),
            );
        }
        enough
    }
}

/// Nix passes over such processes in silence.
fn tell_hidden(found: &FoundRoots, teller: &Teller) {
    if found.hidden_processes > 0 {
        let hidden = found.hidden_processes;
        teller.say(
            Level::Talkative,
            format!("this user may not see what {hidden} processes use"),
        );
    }
}

fn still_alive(store: &LocalInner, full: &str, why: &str) -> Error {
    Error::Refused {
        who: store.uri.clone(),
        words: format!("Cannot delete path '{full}' since it is still alive: {why}"),
    }
}

fn collector_lock(path: &Path, teller: &Teller) -> Result<File> {
    let file = open_lock_file(path)?;
    let taken = try_lock(&file, LockKind::Exclusive);
    if !taken.map_err(|e| Error::io(format!("locking {}", path.display()), e))? {
        let words = "waiting for the big garbage collector lock...";
        teller.say(Level::Notice, words);
        lock(&file, path, LockKind::Exclusive, &teller.cancel)?;
    }
    Ok(file)
}

/// Seconds since 1970 after which paths are kept.
fn cut_off(options: &GcOptions) -> Option<u64> {
    let time = options.keep_newer_than?;
    Some(
        time.duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
    )
}

/// Paths whose rows go in one transaction. Who wants one of them waits until all of them are gone.
const BATCH: usize = 128;
