//! What is registered against what is there.
//!
//! The order, the words and what is done are those of `nix-store --verify` (`local-store.cc`). Other than with
//! Nix, contents are read by all processors at once, what is mended is mended at once and as a whole, and
//! nothing is taken for gone that could not be looked at.

use crate::{
    LocalStore, canonical,
    inner::LocalInner,
    links,
    lock::{LockKind, OutputLock, lock, open_lock_file, try_lock},
    telling::{Teller, in_parallel},
};
use futures::{StreamExt, stream};
use rustix::fs::{AtFlags, unlinkat};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs::File,
    io,
    path::Path,
    sync::Arc,
};
use tk_nar::fs::{CaseHack, Dump, DumpError, DumpOptions};
use tk_narinfo::PathInfo;
use tk_path::{Algorithm, Hasher, NarHash, StorePath};
use tk_store::{
    AddOptions, Error, Existing, FaultKind, MetadataCheck, RepairSource, Result, SigCheck, Store,
    StoreExt, StoreFault, StoreVerifyOptions, StoreVerifyReport, VerifyDepth,
    log::{Level, LogEvent, LogSink},
    nar,
};

impl LocalStore {
    /// Implements [`tk_store::Maintain::verify_store`]. A collector waits until it is done.
    ///
    /// A path that disappeared and that nothing valid refers to is made invalid, as by Nix. A path is repaired
    /// by putting whole content in its place, for which the store that gives it need not be trusted: it
    /// must be exactly what is registered.
    pub(crate) async fn verify_all(
        &self,
        options: &StoreVerifyOptions,
        log: &dyn LogSink,
    ) -> Result<StoreVerifyReport> {
        if options.repair.is_wanted() {
            self.inner().require_writable()?;
        }
        let (depth, metadata) = (options.depth, options.metadata);
        let repair = options.repair.is_wanted();
        let found = self.run_telling(log, move |store, teller| {
            let mut check = StoreCheck::begin(store, teller, repair)?;
            check.existence()?;
            if depth == VerifyDepth::Contents {
                check.links()?;
                check.contents(metadata)?;
            }
            Ok(check.found)
        });
        let mut found = found.await?;
        let from: &[Arc<dyn Store>] = match &options.repair {
            RepairSource::Stores(stores) => stores,
            RepairSource::Nothing | RepairSource::Substituters => &[],
        };
        if repair {
            self.repair(&mut found, from, log).await;
        }
        Ok(StoreVerifyReport {
            verified: Some(found.verified),
            errors_left: found.faults.iter().any(|fault| !fault.mended),
            faults: found.faults,
        })
    }

    /// Repairs what is broken, several paths at once. What needs another one that is broken, as derivations
    /// do, is tried again once that is mended.
    async fn repair(&self, found: &mut Found, from: &[Arc<dyn Store>], log: &dyn LogSink) {
        let mut broken = std::mem::take(&mut found.broken);
        loop {
            let before = broken.len();
            let repairs = stream::iter(broken).map(|(path, fault)| async move {
                let mended = self.repair_path(&path, from, log).await;
                (path, fault, mended)
            });
            let mut repairs = repairs.buffer_unordered(self.config().jobs.get());
            let mut failed = Vec::new();
            while let Some((path, fault, mended)) = repairs.next().await {
                match mended {
                    Ok(()) => found.faults[fault].mended = true,
                    Err(why) => failed.push((path, fault, why)),
                }
            }
            if failed.is_empty() || failed.len() == before {
                return self.tell_unrepaired(found, failed, log);
            }
            let again = failed.into_iter().map(|(path, fault, _)| (path, fault));
            broken = again.collect();
        }
    }

    fn tell_unrepaired(
        &self,
        found: &mut Found,
        failed: Vec<(StorePath, usize, String)>,
        log: &dyn LogSink,
    ) {
        for (path, fault, why) in failed {
            let path = self.config().dir.path(&path);
            let words = format!("cannot repair path '{path}'{why}");
            found.faults[fault].line += &format!("; {words}");
            log.event(LogEvent::message(Level::Error, words));
        }
    }

    /// Puts what is registered as `path` in its place; an error says in words why that cannot be done.
    async fn repair_path(
        &self,
        path: &StorePath,
        from: &[Arc<dyn Store>],
        log: &dyn LogSink,
    ) -> Result<(), String> {
        let registered = self.require_info(path).await;
        let registered = registered.map_err(|e| format!(": {}", e.to_line()))?;
        let mut reasons = String::new();
        for store in from {
            match self.repair_from(store, &registered, log).await {
                Ok(()) => return Ok(()),
                Err(error) => reasons += &format!(": {}", error.to_line()),
            }
        }
        Err(reasons)
    }

    async fn repair_from(
        &self,
        store: &Arc<dyn Store>,
        registered: &PathInfo,
        log: &dyn LogSink,
    ) -> Result<()> {
        let path = &registered.path;
        let theirs = store.require_info(path).await?;
        if theirs.nar_hash != registered.nar_hash {
            return Err(Error::Mismatch {
                what: "NAR hash",
                path: path.clone(),
                from: store.to_string(),
                expected: registered.nar_hash.to_string(),
                actual: theirs.nar_hash.to_string(),
            });
        }
        let full = self.config().dir.path(path);
        let words = format!("copying path '{full}' from '{store}'...");
        log.event(LogEvent::message(Level::Info, words));
        let mut info = registered.clone();
        // From now on it is not what was built here.
        info.ultimate = false;
        if theirs.references == info.references {
            info.signatures.extend(theirs.signatures);
        }
        let mut options = AddOptions::new(SigCheck::Skip);
        options.existing = Existing::Replace;
        let (source, wanted) = (store.clone(), path.clone());
        let nar = nar::lazy(async move { source.nar(&wanted).await });
        self.add_one(info, nar, &options).await
    }
}

/// What was found so far.
#[derive(Default)]
struct Found {
    verified: u64,
    faults: Vec<StoreFault>,
    /// What can be repaired, each with the place of its fault.
    broken: Vec<(StorePath, usize)>,
    /// What is valid and there.
    valid: Vec<StorePath>,
    /// Held against collectors, until all is done.
    _lock: Option<File>,
}

struct StoreCheck<'a> {
    store: &'a LocalInner,
    teller: &'a Teller,
    repair: bool,
    found: Found,
}

impl<'a> StoreCheck<'a> {
    fn begin(store: &'a LocalInner, teller: &'a Teller, repair: bool) -> Result<Self> {
        teller.say(Level::Info, "reading the Nix store...");
        let mut found = Found::default();
        if !store.config.read_only {
            found._lock = Some(collector_lock(store, teller)?);
        }
        Ok(StoreCheck {
            store,
            teller,
            repair,
            found,
        })
    }

    /// Whether what is valid is there. What is gone and not needed becomes invalid.
    fn existence(&mut self) -> Result<()> {
        self.teller.say(Level::Info, "checking path existence...");
        let store = self.store;
        // First the database: what is added meanwhile is no concern of ours.
        let (valid, bad) = store.db.all_readable()?;
        for (name, error) in bad {
            self.fault(name, FaultKind::Database, error.to_line());
        }
        self.found.verified = valid.len() as u64;
        let there = names_in(&store.config.real)?;
        let (there, gone): (Vec<_>, BTreeSet<_>) = {
            let (there, gone): (Vec<_>, Vec<_>) = valid
                .into_iter()
                .partition(|path| there.contains(path.as_str()));
            (there, gone.into_iter().collect())
        };
        // A store that is not mounted has lost nothing.
        if there.is_empty() && gone.len() > 1 {
            let real = store.config.real.display();
            return Err(Error::invalid(format!(
                "none of the {} registered paths is in {real}: is it the right folder, and mounted? \
                 nothing was changed",
                gone.len()
            )));
        }
        self.found.valid = there;
        self.gone(&gone)
    }

    fn gone(&mut self, gone: &BTreeSet<StorePath>) -> Result<()> {
        let (order, needed) = self.plan(gone)?;
        for path in order {
            self.teller.cancel.check()?;
            self.disappeared(&path)?;
        }
        for path in needed {
            self.needed(&path);
        }
        Ok(())
    }

    /// Which of `gone` nothing valid refers to that is there, referrers first; and the others.
    fn plan(&self, gone: &BTreeSet<StorePath>) -> Result<(Vec<StorePath>, BTreeSet<StorePath>)> {
        let mut refers = BTreeMap::<&StorePath, Vec<&StorePath>>::new();
        let mut referrers_left = BTreeMap::<&StorePath, usize>::new();
        for path in gone {
            let referrers = self.store.db.referrers(path)?;
            let others = referrers.iter().filter(|referrer| *referrer != path);
            referrers_left.insert(path, others.clone().count());
            for referrer in others.filter_map(|referrer| gone.get(referrer)) {
                refers.entry(referrer).or_default().push(path);
            }
        }
        let free = referrers_left.iter().filter(|(_, left)| **left == 0);
        let mut free: Vec<_> = free.map(|(path, _)| *path).collect();
        let mut order = Vec::new();
        while let Some(path) = free.pop() {
            order.push(path.clone());
            for reference in refers.get(path).into_iter().flatten() {
                let left = referrers_left.entry(reference).or_default();
                *left -= 1;
                if *left == 0 {
                    free.push(reference);
                }
            }
        }
        let unneeded: HashSet<_> = order.iter().collect();
        let needed = gone.iter().filter(|path| !unneeded.contains(path));
        let needed = needed.cloned().collect();
        Ok((order, needed))
    }

    /// Makes `path` invalid, which is gone and which nothing valid refers to.
    fn disappeared(&mut self, path: &StorePath) -> Result<()> {
        let full = self.store.config.dir.path(path);
        if self.store.config.read_only {
            let line = format!("path '{full}' disappeared, and the store is open for reading only");
            self.fault(full, FaultKind::Disappeared, line);
            return Ok(());
        }
        // Nobody puts it there while we look again.
        let real = self.store.real_path(path);
        let _lock = OutputLock::acquire(&real, &self.teller.cancel)?;
        match real.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let error = Error::io(format!("looking at {}", real.display()), error);
                self.fault(full, FaultKind::Unreadable, error.to_line());
                return Ok(());
            }
            // It has come back meanwhile.
            Ok(_) => return Ok(()),
        }
        if self.store.db.invalidate(path)? {
            let line = format!("path '{full}' disappeared, removing from database...");
            self.mended(full, FaultKind::Disappeared, line);
        } else {
            self.needed(path);
        }
        Ok(())
    }

    fn needed(&mut self, path: &StorePath) {
        let full = self.store.config.dir.path(path);
        let line = format!("path '{full}' disappeared, but it still has valid referrers!");
        let fault = self.fault(full, FaultKind::DisappearedWithReferrers, line);
        self.found.broken.push((path.clone(), fault));
    }

    /// Whether the entries of `.links` are what their names say.
    fn links(&mut self) -> Result<()> {
        self.teller.say(Level::Info, "checking link hashes...");
        let real = &self.store.config.real;
        let entries = links::entries(real);
        let entries =
            entries.map_err(|e| Error::io(format!("listing {}/.links", real.display()), e));
        let Some((folder, names)) = entries? else {
            return Ok(());
        };
        let shown = |at: usize| real.join(".links").join(&*names[at].to_string_lossy());
        let (jobs, cancel) = (self.store.config.jobs, &self.teller.cancel);
        let hashed = in_parallel(jobs, names.len(), cancel, |at| {
            let expected = names[at].to_string_lossy();
            match links::file_hash(&folder, &names[at]).map(|hash| links::entry_name(&hash)) {
                Ok(actual) if actual == expected => None,
                // A collector has just removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Ok(actual) => {
                    let line = format!(
                        "link '{}' was modified! expected hash '{expected}', got '{actual}'",
                        shown(at).display()
                    );
                    Some((FaultKind::LinkModified, line))
                }
                Err(error) => {
                    let error = Error::io(format!("reading {}", shown(at).display()), error);
                    Some((FaultKind::Unreadable, error.to_line()))
                }
            }
        })?;
        for (at, (kind, line)) in hashed {
            let place = shown(at).display().to_string();
            let fault = self.fault(place.clone(), kind, line);
            if !self.repair || kind != FaultKind::LinkModified {
                continue;
            }
            match unlinkat(&folder, &*names[at], AtFlags::empty()) {
                Ok(()) => {
                    self.found.faults[fault].mended = true;
                    let words = format!("removed link '{place}'");
                    self.teller.say(Level::Info, words);
                }
                Err(error) => {
                    let error = Error::io(format!("removing {place}"), error);
                    self.teller.say(Level::Error, error.to_line());
                }
            }
        }
        Ok(())
    }

    /// Whether the content of each path is what is registered.
    fn contents(&mut self, metadata: MetadataCheck) -> Result<()> {
        self.teller.say(Level::Info, "checking store hashes...");
        let valid = std::mem::take(&mut self.found.valid);
        let (jobs, cancel) = (self.store.config.jobs, &self.teller.cancel);
        let bad = in_parallel(jobs, valid.len(), cancel, |at| {
            let path = &valid[at];
            match self.content(path, metadata) {
                Ok(fault) => fault,
                // A path that nobody needed any more is none of our business.
                Err(_) if self.store.is_valid(path).is_ok_and(|valid| !valid) => None,
                Err(error) => Some((FaultKind::Unreadable, error.to_line())),
            }
        })?;
        for (at, (kind, line)) in bad {
            let full = self.store.config.dir.path(&valid[at]);
            if kind == FaultKind::SizeUnknown {
                self.mended(full, kind, line);
                continue;
            }
            let fault = self.fault(full, kind, line);
            if kind == FaultKind::Modified {
                self.found.broken.push((valid[at].clone(), fault));
            }
        }
        Ok(())
    }

    fn content(
        &self,
        path: &StorePath,
        metadata: MetadataCheck,
    ) -> Result<Option<(FaultKind, String)>> {
        let full = || self.store.config.dir.path(path);
        let info = match self.store.db.info(path) {
            Ok(Some(info)) => info,
            Ok(None) => return Ok(None),
            Err(error) => return Ok(Some((FaultKind::Database, error.to_line()))),
        };
        let real = self.store.real_path(path);
        let (hash, size) = match nar_hash(&real, self.teller) {
            Ok(hashed) => hashed,
            // Nothing that can be in an archive: whatever it is, it is not what was registered.
            Err(ContentError::NoArchive(error)) => {
                let line = format!("path '{}' was modified! {error}", full());
                return Ok(Some((FaultKind::Modified, line)));
            }
            Err(ContentError::Other(error)) => return Err(error),
        };
        let hash_is_known = info.nar_hash != NarHash::from_bytes([0; 32]);
        if hash_is_known && hash != info.nar_hash {
            let line = format!(
                "path '{}' was modified! expected hash '{}', got '{hash}'",
                full(),
                info.nar_hash
            );
            return Ok(Some((FaultKind::Modified, line)));
        }
        if (info.nar_size == 0 || !hash_is_known) && !self.store.config.read_only {
            self.store.db.set_content(path, &hash, size)?;
            let line = if hash_is_known {
                format!("updating size field on '{}' to {size}", full())
            } else {
                format!("fixing missing hash on '{}'", full())
            };
            return Ok(Some((FaultKind::SizeUnknown, line)));
        }
        if metadata == MetadataCheck::Canonical
            && let Some(wrong) = canonical::deviation(&real)?
        {
            return Ok(Some((FaultKind::Metadata, wrong)));
        }
        Ok(None)
    }

    /// Tells an error; returns its place.
    fn fault(&mut self, subject: String, kind: FaultKind, line: String) -> usize {
        self.teller.say(Level::Error, line.clone());
        self.found.faults.push(StoreFault {
            subject,
            kind,
            line,
            mended: false,
        });
        self.found.faults.len() - 1
    }

    /// Tells what was mended at once.
    fn mended(&mut self, subject: String, kind: FaultKind, line: String) {
        self.teller.say(Level::Info, line.clone());
        self.found.faults.push(StoreFault {
            subject,
            kind,
            line,
            mended: true,
        });
    }
}

/// Why there is no hash of a tree.
pub(crate) enum ContentError {
    /// It has what no archive can hold.
    NoArchive(String),
    Other(Error),
}

/// The hash and the size, in bytes, of the NAR of the tree at `real`.
pub(crate) fn nar_hash(real: &Path, teller: &Teller) -> Result<(NarHash, u64), ContentError> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    each_chunk(real, teller, |chunk| hasher.update(chunk))?;
    let size = hasher.bytes();
    let hash = NarHash::try_from(hasher.finish()).expect("sha256 was asked for");
    Ok((hash, size))
}

/// Shows the NAR of the tree at `real` to `watch`, in pieces.
pub(crate) fn each_chunk(
    real: &Path,
    teller: &Teller,
    mut watch: impl FnMut(&[u8]),
) -> Result<(), ContentError> {
    let mut options = DumpOptions::default();
    options.case_hack = CaseHack::Off;
    // Other paths are read at the same time.
    options.threads = std::num::NonZeroUsize::MIN;
    let failed = |error: DumpError| match error {
        DumpError::Io { .. } | DumpError::Changed { .. } | DumpError::Thread => {
            let doing = format!("reading {}", real.display());
            ContentError::Other(Error::io(doing, io::Error::other(error)))
        }
        error => ContentError::NoArchive(error.to_string()),
    };
    for chunk in Dump::new(real, &options).map_err(failed)? {
        watch(&chunk.map_err(failed)?);
        teller.cancel.check().map_err(ContentError::Other)?;
    }
    Ok(())
}

/// The names in the store directory.
pub(crate) fn names_in(real: &Path) -> Result<HashSet<String>> {
    let list = || -> io::Result<_> {
        let mut names = HashSet::new();
        for entry in real.read_dir()? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    };
    list().map_err(|e| Error::io(format!("listing {}", real.display()), e))
}

/// The collector's lock, shared: while it is held nothing is collected.
pub(crate) fn collector_lock(store: &LocalInner, teller: &Teller) -> Result<File> {
    let path = store.config.state.join("gc.lock");
    let file = open_lock_file(&path)?;
    if !try_lock(&file, LockKind::Shared).unwrap_or(false) {
        let words = "waiting for the big garbage collector lock...";
        teller.say(Level::Info, words);
        lock(&file, &path, LockKind::Shared, &teller.cancel)?;
    }
    Ok(file)
}
