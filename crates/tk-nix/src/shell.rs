//! Environments to work in: evaluated once, entered often.
//!
//! ```text
//! CACHE/nix.json          which version programs called nix are
//! CACHE/index/SLOT.json   what was looked at for a reference, and its state: see `inputs`
//! CACHE/entries/KEY.json  an environment
//! CACHE/entries/KEY-attrs.json, KEY-attrs.sh   its structured attributes, if it has some
//! CACHE/locks/SLOT        held by whoever evaluates
//! CACHE/run/              scripts that take themselves away
//! STATE/leases/           roots: see `lease`
//! STATE/allowed/HASH      code that may be run: of a place, an attribute, and all that `consent` tells
//! STATE/allowed/HASH.text what was allowed last for the place and the attribute
//! ```
//! SLOT is the hash of what was asked for: reference, attribute, options, system, store, version of
//! Nix; KEY that of SLOT and of the content of all that was looked at. An entry counts as long as its paths
//! are in the store. What the caller says may be impure, or what nothing pins, counts for
//! [`UNPINNED_FOR`].
//!
//! Files are impure by nature. Their SLOT has the search path too (`NIX_PATH` and so on), where that leads
//! now, and variables named `NIXPKGS_…`; what nix says it read is looked at from then on (see `told`),
//! for expressions likewise. They count for [`UNPINNED_FOR`] only if the evaluation asked a server or a repository
//! for something, if it was offline, or if there was too much to watch; else as long as all that is the
//! same. What nix does not tell of, `getEnv` of other variables or `readFile` in folders without Nix code,
//! is the caller's to name in [`WantedEnvironment::watch`]. A derivation depends on nothing but its path.
//!
//! # Security
//! Entries are the user's own files, in folders for the user alone. An environment may change every
//! variable, `PATH` first of all: running a command in it means to trust it. Its hook, and what shells
//! run by themselves, is code that would run without being named, so it needs a consent, which
//! is bound to its text and to all that it can call. Without it such variables and functions are left out.

mod consent;
mod environment;
mod eval_reads;
mod export;
mod files;
mod git;
mod inputs;
mod lease;
mod mentions;
mod namespace;
mod nix_version_cache;
mod session;

pub use consent::StartupCode;
pub use environment::{ShellEnvironment, Variable, Variables};
pub use export::ShellFormat;
pub use lease::{EnvironmentLease, LeaseOptions, Owner};
pub use session::{ExecResult, Hook, NixDevShell, ShellSession, Stream};

use crate::{
    Cause, EvalOptions, Installable, InstallableSource, Invocation, Nix, NixBuilder, NixConfig,
    NixFailure, Result, Target, evaluate::invocation,
};
use eval_reads::{Ears, EvalReads, Heard};
use files::Lock;
use inputs::{FilePlace, FlakePlace, InputsSnapshot, LocalFlake, Trees, View};
use lease::Leases;
use namespace::StoreElsewhere;
use nix_version_cache::{NixVersionCache, Resolved};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tk_path::{DerivedPath, SingleDerivedPath, StoreDir, StorePath};
use tk_store::log::LogSink;

/// Where environments are kept, and what they are entered from.
#[derive(Debug, Clone)]
pub struct ShellConfig {
    /// The folder for what can be made again.
    pub cache: PathBuf,
    /// The folder for leases and consents.
    pub state: PathBuf,
    /// The system for which nix evaluates, such as `x86_64-linux`.
    pub system: String,
    /// The folder in which relative references begin, and in which commands run.
    pub folder: PathBuf,
    /// The variables that commands have but for the environment's. nix has the `NIX_PATH` among them.
    pub variables: Variables,
    /// The setting `nix-path` of nix.conf, if there is one.
    pub nix_path: Option<String>,
    /// The directory of the store as paths name it, such as `/nix/store`.
    pub dir: StoreDir,
    /// Where the files of the store lie, if not in `dir`.
    pub real_dir: Option<PathBuf>,
}

/// Environments that are kept in two folders, shared by all processes that name the same.
#[derive(Debug, Clone)]
pub struct Shells {
    config: ShellConfig,
    known: NixVersionCache,
    leases: Leases,
}

/// What is to be entered.
#[derive(Debug, Clone)]
pub struct WantedEnvironment {
    /// The environment itself: a shell for development, or a set of packages.
    pub what: EnvironmentKind,
    /// How it is evaluated. Its folder is that of the [`ShellConfig`].
    pub eval: EvalOptions,
    /// Files and folders that it depends on, beside those that are found.
    pub watch: Vec<PathBuf>,
    /// Evaluate, whatever is known.
    pub refresh: bool,
    /// How long it is kept, and for whom.
    pub lease: LeaseOptions,
}

/// A kind of environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvironmentKind {
    /// That in which a derivation is built, as `nix develop` has it: an attribute of a flake, of a file
    /// or an expression, or a derivation of the store.
    Shell(Installable),
    /// The programs of packages, as `nix shell` has them; paths of the store are among what they
    /// can be.
    Packages(Vec<Installable>),
}

impl WantedEnvironment {
    /// `what`, with everything else as usual.
    pub fn new(what: EnvironmentKind) -> Self {
        WantedEnvironment {
            what,
            eval: EvalOptions::default(),
            watch: Vec::new(),
            refresh: false,
            lease: LeaseOptions::default(),
        }
    }

    fn installables(&self) -> &[Installable] {
        match &self.what {
            EnvironmentKind::Shell(one) => std::slice::from_ref(one),
            EnvironmentKind::Packages(all) => all,
        }
    }

    /// The paths of the store that it is of, if it is of nothing else: they need no nix if they are
    /// there.
    pub fn store_paths(&self) -> Option<BTreeSet<StorePath>> {
        let all = match &self.what {
            EnvironmentKind::Packages(all) => all.iter(),
            EnvironmentKind::Shell(_) => return None,
        };
        let paths = all.map(|one| match &one.source {
            InstallableSource::Store(DerivedPath::Opaque(path)) => Some(path.clone()),
            _ => None,
        });
        paths.collect()
    }

    /// What was asked for, as people wrote it.
    pub fn name(&self) -> String {
        let names: Vec<_> = self
            .installables()
            .iter()
            .map(ToString::to_string)
            .collect();
        names.join(" ")
    }
}

/// An environment that is ready to be entered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvironmentEntry {
    /// The digest of what was asked for and of what it was made from; it also names the file of the entry.
    pub key: String,
    /// What was asked for.
    pub name: String,
    /// The flake's folder, or its reference; the file; the path of the store.
    pub location: String,
    /// The attribute; empty is the default one.
    pub attribute: String,
    /// Who evaluated it, such as `Nix 2.34.8`.
    pub nix: String,
    /// When, in seconds since 1970.
    pub made: u64,
    /// Whether it counts as long as its inputs are the same, and not for a while only.
    pub pinned: bool,
    /// What keeps it alive: whole paths of the store.
    pub paths: Vec<String>,
    /// Where these lie on this machine.
    pub places: Vec<PathBuf>,
    /// The variables and bash functions of the environment.
    pub environment: ShellEnvironment,
}

/// An environment, and how it was come by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundEnvironment {
    /// The environment that was found or made.
    pub entry: EnvironmentEntry,
    /// Whether it was known: nix was not run.
    pub warm: bool,
    /// The files that it depends on, as far as they are known.
    pub files: Vec<PathBuf>,
    /// Whether its lease was renewed or made.
    leased: bool,
}

/// Counts of what [`Shells::collect`] removed, and of what it left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Collected {
    /// Leases that were over.
    pub leases: usize,
    /// Environments that nobody has a lease of, or whose paths are gone.
    pub environments: usize,
    /// Environments that are left.
    pub kept: usize,
}

impl Shells {
    /// Environments in the folders of `config`.
    pub fn new(config: ShellConfig) -> Self {
        Shells {
            known: NixVersionCache::at(&config.cache),
            leases: Leases::at(&config.state),
            config,
        }
    }

    /// The same for a store whose files lie in `real_dir`.
    pub fn with_store(mut self, dir: StoreDir, real_dir: Option<PathBuf>) -> Self {
        self.config.dir = dir;
        self.config.real_dir = real_dir;
        self
    }

    /// The environment, if it is known and its lease could be renewed without asking the store. Runs
    /// no nix but to learn the version of a program that was never seen.
    pub async fn warm(
        &self,
        nix: &NixConfig,
        wanted: &WantedEnvironment,
    ) -> Result<Option<FoundEnvironment>> {
        let resolved = self.known.resolve(nix, &self.search_path()).await;
        let Some(Resolved { nix, .. }) = resolved.filter(|_| !wanted.refresh) else {
            return Ok(None);
        };
        let asked = self.asked(&nix, wanted)?;
        let found = self.look_up(&asked, wanted)?;
        Ok(found.filter(|found| found.leased))
    }

    /// The nix that `config` names, by its known version or asked for it: the first of its name.
    pub async fn nix(&self, config: &NixConfig) -> Result<Nix> {
        let path = self.search_path();
        match self.known.resolve(config, &path).await {
            Some(resolved) if !resolved.passed_over => Ok(resolved.nix),
            _ => self.known.learn(config, &path).await,
        }
    }

    /// The environment: known, or evaluated by `builder` and kept. Many who ask at once evaluate
    /// once.
    pub async fn find(
        &self,
        builder: &NixBuilder,
        wanted: &WantedEnvironment,
        log: &dyn LogSink,
    ) -> Result<FoundEnvironment> {
        let asked = self.asked(builder.nix(), wanted)?;
        let begun = files::now();
        let lock = self.config.cache.join("locks").join(&asked.slot);
        let _lock = Lock::exclusive(&lock).await?;
        let mut known = self.look_up(&asked, wanted)?;
        // Who waited for another's evaluation need not ask once more.
        known = known.filter(|found| !wanted.refresh || found.entry.made > begun);
        if let Some(found) = known {
            if !found.leased {
                self.lease(builder, &found.entry, wanted).await?;
            }
            return Ok(found);
        }
        self.leases.expire()?;
        let (entry, snapshot) = self.evaluate(builder, &asked, wanted, log).await?;
        Ok(FoundEnvironment {
            entry,
            warm: false,
            files: snapshot.files().map(Into::into).collect(),
            leased: true,
        })
    }

    /// A session in `entry`. If its files lie elsewhere than its paths say, commands get a namespace in
    /// which they are where they belong. With `keep` the environment is pure: of the caller's variables those are left
    /// that `nix-shell --pure` leaves, and those in `keep`.
    pub fn session(
        &self,
        entry: &EnvironmentEntry,
        keep: Option<&[String]>,
    ) -> Result<ShellSession> {
        let base = match keep {
            None => self.config.variables.clone(),
            Some(keep) => {
                let kept = |name: &OsString| {
                    PURE.iter().any(|pure| name == pure) || keep.iter().any(|k| name == k.as_str())
                };
                let all = self.config.variables.clone().into_iter();
                all.filter(|(name, _)| kept(name)).collect()
            }
        };
        let outputs = self.config.folder.join("outputs");
        let attrs = attrs_file(&self.entry_file(&entry.key), "");
        let environment = entry.environment.clone().redirected(&outputs, &attrs);
        let code = self.startup_code(entry);
        let (hook, environment) = if code.is_empty() {
            (Hook::None, environment)
        } else if self.is_allowed(entry)? {
            (Hook::Allowed, environment)
        } else {
            (Hook::Held, code.taken_out_of(environment))
        };
        let (folder, scripts) = (self.config.folder.clone(), self.config.cache.join("run"));
        let dir = self.config.dir.clone();
        let session = ShellSession::new(environment, &base, hook, folder, scripts, dir);
        let elsewhere = match (entry.paths.first(), entry.places.first()) {
            (Some(path), Some(place)) => {
                let root = self.config.cache.join("run/root");
                StoreElsewhere::of(Path::new(path), place, &root)?
            }
            _ => None,
        };
        let session = session.with_store_elsewhere(elsewhere);
        Ok(match entry.paths.first() {
            Some(path) if entry.is_shell() => session.with_root(path),
            _ => session,
        })
    }

    /// The code of `entry` that would run without being named.
    pub fn startup_code(&self, entry: &EnvironmentEntry) -> StartupCode {
        let mut path = OsString::from(entry.environment.text("PATH").unwrap_or_default());
        path.push(":");
        path.push(self.search_path());
        StartupCode::of(&entry.environment, &path)
    }

    /// Lets the code of `entry` run from now on that would run without being named, as long as all of
    /// it is the same.
    pub fn allow(&self, entry: &EnvironmentEntry) -> Result<()> {
        let text = self.startup_code(entry).text();
        files::replace(&self.allowed_text(entry), text.as_bytes())?;
        files::replace(&self.consent(entry), entry.name.as_bytes())
    }

    /// Whether its code may run.
    pub fn is_allowed(&self, entry: &EnvironmentEntry) -> Result<bool> {
        Ok(self.consent(entry).exists())
    }

    /// What was allowed last for the environment of this name, if it was kept: see
    /// [`StartupCode::text`].
    pub fn allowed_before(&self, entry: &EnvironmentEntry) -> Option<String> {
        let text = files::read(&self.allowed_text(entry), MAX_ENTRY).ok()??;
        String::from_utf8(text).ok()
    }

    /// Takes the consent back; whether there was one.
    pub fn revoke(&self, entry: &EnvironmentEntry) -> Result<bool> {
        let consent = self.consent(entry);
        let there = consent.exists();
        files::remove(&consent)?;
        Ok(there)
    }

    fn consent(&self, entry: &EnvironmentEntry) -> PathBuf {
        let mut parts = vec![entry.location.clone(), entry.attribute.clone()];
        parts.extend(self.startup_code(entry).parts());
        self.config.state.join("allowed").join(files::digest(parts))
    }

    fn allowed_text(&self, entry: &EnvironmentEntry) -> PathBuf {
        let name = files::digest([&entry.location, &entry.attribute]);
        self.config
            .state
            .join("allowed")
            .join(format!("{name}.text"))
    }

    /// All that are kept, the newest first, each with its leases.
    pub fn list(&self) -> Result<Vec<(EnvironmentEntry, Vec<EnvironmentLease>)>> {
        let leases = self.leases.all()?;
        let mut all = Vec::new();
        for file in files::entries(&self.config.cache.join("entries"))? {
            if let Some(entry) = is_json(&file).then(|| read_entry(&file)).flatten() {
                let own = leases.iter().filter(|lease| lease.key == entry.key);
                let own = own.cloned().collect();
                all.push((entry, own));
            }
        }
        all.sort_by_key(|(entry, _)| std::cmp::Reverse(entry.made));
        Ok(all)
    }

    /// Ends the leases that are over, and forgets environments without any or without their paths.
    /// The store's own collection then takes what nothing else keeps.
    pub fn collect(&self) -> Result<Collected> {
        let mut done = Collected {
            leases: self.leases.expire()?,
            ..Collected::default()
        };
        let held: BTreeSet<_> = self
            .leases
            .all()?
            .into_iter()
            .map(|lease| lease.key)
            .collect();
        for file in files::entries(&self.config.cache.join("entries"))? {
            if !is_json(&file) {
                continue;
            }
            match read_entry(&file) {
                Some(entry) if held.contains(&entry.key) && entry.is_there() => done.kept += 1,
                _ => {
                    files::remove(&file)?;
                    for suffix in ["json", "sh"] {
                        files::remove(&attrs_file(&file, suffix))?;
                    }
                    done.environments += 1;
                }
            }
        }
        self.sweep()?;
        Ok(done)
    }

    /// Takes away what processes left that were killed.
    fn sweep(&self) -> Result<()> {
        for folder in ["run", "evaluating"] {
            for left in files::entries(&self.config.cache.join(folder))? {
                let age = fs::symlink_metadata(&left).and_then(|meta| meta.modified());
                let age = age.ok().and_then(|modified| modified.elapsed().ok());
                if age.is_none_or(|age| age < LEFT_FOR) {
                    continue;
                }
                let removed = if left.is_dir() {
                    fs::remove_dir_all(&left)
                } else {
                    fs::remove_file(&left)
                };
                removed.map_err(files::failed("removing", &left))?;
            }
        }
        Ok(())
    }

    fn search_path(&self) -> OsString {
        let path = self.config.variables.get(&OsString::from("PATH"));
        path.cloned().unwrap_or_default()
    }

    fn entry_file(&self, key: &str) -> PathBuf {
        self.config
            .cache
            .join("entries")
            .join(format!("{key}.json"))
    }

    fn index_file(&self, slot: &str) -> PathBuf {
        self.config.cache.join("index").join(format!("{slot}.json"))
    }
}

/// What was asked for, with all that the answer depends on but for content.
struct EnvironmentRequest {
    slot: String,
    location: String,
    attribute: String,
    flakes: Vec<LocalFlake>,
    /// Folders of files of Nix code.
    own: Vec<PathBuf>,
    watch: Vec<PathBuf>,
    /// Folders that change with every use.
    left_out: Vec<PathBuf>,
    view: View,
    pinned: bool,
    /// Whether code of the store may come from an address in the search path.
    searches_far: bool,
}

impl EnvironmentRequest {
    fn trees(&self, told: &EvalReads) -> Result<Trees> {
        let mut trees = Trees::new(self.left_out.clone(), self.view.clone());
        for flake in &self.flakes {
            trees.add_flake(flake)?;
        }
        self.own.iter().for_each(|own| trees.add_own(own.clone()));
        trees.add_told(told);
        self.watch.iter().for_each(|path| trees.add(path.clone()));
        Ok(trees)
    }

    fn is_pinned(&self, heard: &Heard, snapshot: &InputsSnapshot) -> bool {
        let searched = heard.from_store && self.searches_far;
        self.pinned && !heard.fetched && !snapshot.partial && !searched
    }

    fn key(&self, snapshot: &InputsSnapshot) -> String {
        files::digest([&self.slot, &snapshot.digest()])
    }

    /// Files that an evaluation itself writes.
    fn locks(&self) -> Vec<PathBuf> {
        let flakes = self.flakes.iter();
        flakes.map(|local| local.flake.join("flake.lock")).collect()
    }
}

impl Shells {
    fn asked(&self, nix: &Nix, wanted: &WantedEnvironment) -> Result<EnvironmentRequest> {
        let folder = &self.config.folder;
        let mut flakes = Vec::new();
        let mut own = Vec::new();
        let mut watch: Vec<_> = wanted.watch.iter().map(|path| folder.join(path)).collect();
        let mut pinned = !wanted.eval.impure;
        let mut sees_machine = wanted.eval.impure;
        let mut searches_far = false;
        let kind = match wanted.what {
            EnvironmentKind::Shell(_) => "shell",
            EnvironmentKind::Packages(_) => "packages",
        };
        // Whatever may change the result and is not a file goes into `parts`, whose digest names the slot.
        let mut parts = vec![VERSION.to_owned(), kind.to_owned()];
        let mut location = None;
        for what in wanted.installables() {
            match &what.source {
                InstallableSource::Flake(reference) => match FlakePlace::of(reference, folder)? {
                    FlakePlace::Local(flake) => flakes.push(flake),
                    FlakePlace::Far { pinned: this } => pinned &= this,
                },
                InstallableSource::File(file) => {
                    sees_machine = true;
                    match FilePlace::of(file, folder)? {
                        FilePlace::Local(place) if place.starts_with(self.config.dir.as_str()) => {}
                        FilePlace::Local(place) if place.is_dir() => own.push(place),
                        FilePlace::Local(place) => own.extend(place.parent().map(Into::into)),
                        FilePlace::Searched => {}
                        FilePlace::Far => searches_far = true,
                    }
                }
                // Nix evaluates it as purely as a flake; a path of the store is what it is.
                InstallableSource::Expr(_) | InstallableSource::Store(_) => {}
            }
            let place = inputs::location(&what.source, folder)?;
            parts.extend([what.to_string(), what.attr.clone(), place.clone()]);
            location.get_or_insert((place, what.attr.clone()));
        }
        if sees_machine {
            // What is fetched without a server may be old.
            pinned &= !wanted.eval.offline;
            searches_far |= self.add_machine(nix, wanted, &mut parts);
        }
        for (kind, pairs) in [
            ("arg", &wanted.eval.args),
            ("argstr", &wanted.eval.arg_strs),
        ] {
            for (name, value) in pairs {
                parts.extend([kind.to_owned(), name.clone(), value.clone()]);
            }
        }
        for (input, reference) in &wanted.eval.override_inputs {
            parts.extend(["override".into(), input.clone(), reference.clone()]);
            match FlakePlace::of(reference, folder)? {
                FlakePlace::Local(LocalFlake { tree, .. }) => watch.push(tree),
                FlakePlace::Far { pinned: this } => pinned &= this,
            }
        }
        let config = nix.config();
        for (name, value) in &config.options {
            parts.extend(["option".into(), name.clone(), value.clone()]);
        }
        parts.extend(watch.iter().map(|path| path.to_string_lossy().into_owned()));
        parts.extend([
            format!("{} {}", wanted.eval.impure, wanted.eval.no_write_lock_file),
            config.store.clone().unwrap_or_default(),
            self.config.system.clone(),
            nix.version().to_string(),
        ]);
        let (location, attribute) = location.ok_or_else(|| {
            NixFailure::new(Cause::Misused, "there is nothing to make an environment of")
        })?;
        Ok(EnvironmentRequest {
            slot: files::digest(parts),
            location,
            attribute,
            flakes,
            own,
            watch,
            left_out: [&self.config.cache, &self.config.state]
                .map(|folder| folder.canonicalize().unwrap_or_else(|_| folder.clone()))
                .into(),
            view: View {
                sees_machine,
                tells_filtered: nix.version().at_least(2, 20),
                stores: self.stores(),
            },
            pinned,
            searches_far,
        })
    }

    /// Adds to the parts of a slot what impure code commonly sees of the machine: the search path,
    /// where it leads now, and settings of nixpkgs. Whether there are addresses in it.
    fn add_machine(&self, nix: &Nix, wanted: &WantedEnvironment, parts: &mut Vec<String>) -> bool {
        let mut places: Vec<String> = wanted.eval.search_path.clone();
        let options = nix.config().options.iter();
        let options = options.filter(|(name, _)| name.ends_with("nix-path"));
        let settings = options.map(|(_, value)| value).chain(&self.config.nix_path);
        places.extend(settings.flat_map(|v| v.split_whitespace().map(str::to_owned)));
        let variables = &self.config.variables;
        places.extend(self.nix_path().map(|value| value.to_string_lossy().into()));
        parts.extend(["search path".to_owned(), places.len().to_string()]);
        parts.extend(places.iter().cloned());
        // As Nix where nothing is set.
        places.push(CHANNELS.to_owned());
        if let Some(home) = variables.get(&OsString::from("HOME")) {
            let home = home.to_string_lossy();
            places.extend(OWN_CHANNELS.map(|channels| format!("{home}/{channels}")));
        }
        let mut far = false;
        for place in places {
            let (leads_to, is_far) = inputs::search_path(&place, &self.config.folder);
            far |= is_far;
            let leads_to = leads_to.iter();
            parts.extend(leads_to.map(|path| path.to_string_lossy().into_owned()));
        }
        for (name, value) in variables {
            let name = name.to_string_lossy();
            if name.starts_with("NIXPKGS_") {
                parts.push(format!("{name}={}", value.to_string_lossy()));
            }
        }
        far
    }

    fn nix_path(&self) -> Option<&OsString> {
        self.config.variables.get(&OsString::from("NIX_PATH"))
    }

    fn with_nix_path(&self, what: Invocation) -> Invocation {
        match self.nix_path() {
            Some(value) => what.env("NIX_PATH", value),
            None => what.without_env("NIX_PATH"),
        }
    }

    /// The folder in which the files of the store lie.
    fn real_dir(&self) -> &Path {
        let real = self.config.real_dir.as_deref();
        real.unwrap_or(Path::new(self.config.dir.as_str()))
    }

    /// Where files of the store lie.
    fn stores(&self) -> Vec<PathBuf> {
        let dir = PathBuf::from(self.config.dir.as_str());
        let all = [Some(dir), self.config.real_dir.clone()].into_iter();
        all.flatten().collect()
    }

    /// The entry that is known for the present content, with its lease renewed if that needs no store.
    fn look_up(
        &self,
        asked: &EnvironmentRequest,
        wanted: &WantedEnvironment,
    ) -> Result<Option<FoundEnvironment>> {
        let snapshot = self.snapshot(asked)?;
        let key = asked.key(&snapshot);
        let entry = read_entry(&self.entry_file(&key));
        let Some(entry) = entry.filter(|entry| entry.counts(&key) && entry.is_there()) else {
            return Ok(None);
        };
        let leased = self.leases.renew(&key, &entry.places, &wanted.lease)?;
        Ok(Some(FoundEnvironment {
            entry,
            warm: true,
            files: snapshot.files().map(Into::into).collect(),
            leased,
        }))
    }

    /// The state of all that counts. What was noted is believed as far as nothing changed.
    fn snapshot(&self, asked: &EnvironmentRequest) -> Result<InputsSnapshot> {
        let file = self.index_file(&asked.slot);
        let old = files::read(&file, MAX_INDEX).ok().flatten();
        let old: Option<InputsSnapshot> = old.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let Some(old) = old.as_ref().filter(|old| old.holds()) {
            return Ok(old.clone());
        }
        let told = old.as_ref().map(|old| old.told.clone()).unwrap_or_default();
        let mut new = InputsSnapshot::take(&asked.trees(&told)?, old.as_ref())?;
        new.told = told;
        if old.as_ref() != Some(&new) {
            self.note(asked, &new);
        }
        Ok(new)
    }

    /// Without a note all is read again; a name that is no text cannot be noted.
    fn note(&self, asked: &EnvironmentRequest, snapshot: &InputsSnapshot) {
        if let Ok(text) = serde_json::to_vec(snapshot) {
            let _ = files::replace(&self.index_file(&asked.slot), &text);
        }
    }

    /// Evaluates until nothing changed meanwhile but what nix wrote.
    async fn evaluate(
        &self,
        builder: &NixBuilder,
        asked: &EnvironmentRequest,
        wanted: &WantedEnvironment,
        log: &dyn LogSink,
    ) -> Result<(EnvironmentEntry, InputsSnapshot)> {
        let locks = asked.locks();
        // What was read before counts, too: who goes back finds what there was.
        let mut told = if wanted.refresh {
            EvalReads::default()
        } else {
            self.snapshot(asked)?.told
        };
        for _ in 0..TRIES {
            let before = InputsSnapshot::take(&asked.trees(&told)?, None)?;
            let begun = SystemTime::now();
            let ears = Ears::new(log, self.stores());
            let evaluated = match &wanted.what {
                EnvironmentKind::Shell(what) => self.shell(builder, what, wanted, &ears, log).await,
                EnvironmentKind::Packages(all) => {
                    self.packages(builder, all, wanted, &ears, log).await
                }
            };
            let (environment, paths) = evaluated?;
            let heard = ears.heard();
            told.add(heard.told.clone());
            let mut after = InputsSnapshot::take(&asked.trees(&told)?, None)?;
            after.told = told.clone();
            // If a file changed meanwhile, nobody knows which content nix read, and so which state the result
            // is for.
            if !before.is_kept_in(&after, &locks) || after.has_new_since(&before, begun, &locks) {
                continue;
            }
            let real = self.real_dir();
            let entry = EnvironmentEntry {
                key: asked.key(&after),
                name: match &wanted.what {
                    EnvironmentKind::Shell(what) => name(what, &asked.location),
                    EnvironmentKind::Packages(_) => wanted.name(),
                },
                location: asked.location.clone(),
                attribute: asked.attribute.clone(),
                nix: builder.nix().version().to_string(),
                made: files::now(),
                pinned: asked.is_pinned(&heard, &after),
                places: paths.iter().map(|path| real.join(path.as_str())).collect(),
                paths: paths
                    .iter()
                    .map(|path| self.config.dir.path(path))
                    .collect(),
                environment,
            };
            // The lease comes before the entry: an entry without a lease may be collected at any time.
            self.lease(builder, &entry, wanted).await?;
            self.keep(&entry)?;
            self.note(asked, &after);
            return Ok((entry, after));
        }
        let words = format!(
            "the files of {} kept changing while they were evaluated",
            wanted.name()
        );
        Err(NixFailure::new(Cause::Other, words))
    }

    fn keep(&self, entry: &EnvironmentEntry) -> Result<()> {
        let file = self.entry_file(&entry.key);
        for (name, text) in entry.environment.structured_attrs.iter().flatten() {
            if let Some(suffix @ ("json" | "sh")) = name.rsplit('.').next() {
                files::replace(&attrs_file(&file, suffix), text.as_bytes())?;
            }
        }
        let text = serde_json::to_vec(entry);
        let text = text.map_err(|e| NixFailure::new(Cause::Other, e.to_string()))?;
        files::replace(&file, &text)
    }

    async fn lease(
        &self,
        builder: &NixBuilder,
        entry: &EnvironmentEntry,
        wanted: &WantedEnvironment,
    ) -> Result<()> {
        let store = builder.store();
        let Some(roots) = &store.roots else {
            let words = format!("{} keeps nothing: it has no roots", store.store);
            return Err(NixFailure::new(Cause::Misused, words));
        };
        let (paths, places) = (&entry.paths, &entry.places);
        let lease = &wanted.lease;
        self.leases
            .begin(&entry.key, paths, places, lease, &**roots)
            .await
    }

    /// Builds and reads the environment of a derivation, and the path that keeps it alive, which is
    /// a temporary root of the store's until this connection ends.
    async fn shell(
        &self,
        builder: &NixBuilder,
        what: &Installable,
        wanted: &WantedEnvironment,
        ears: &Ears<'_>,
        log: &dyn LogSink,
    ) -> Result<(ShellEnvironment, Vec<StorePath>)> {
        let nix = builder.nix();
        let place = TemporaryFolder::make(&self.config.cache.join("evaluating").join("env"))?;
        let profile = place.0.join("profile");
        let options = EvalOptions {
            folder: Some(self.config.folder.clone()),
            ..wanted.eval.clone()
        };
        let command = ["print-dev-env", "--json"];
        let mut run = match &what.source {
            InstallableSource::Flake(_) => invocation(&command, what, &options)?,
            _ => {
                let drv = self.derivation(builder, what, &options, ears).await?;
                Invocation::new(command).arg(self.config.dir.path(&drv))
            }
        };
        let local = self.local_flake(what)?;
        let of_flake = local.as_ref().map(|local| ears.of_flake(local));
        let listening: &dyn LogSink = match &of_flake {
            Some(of_flake) => {
                // Only with this much detail nix tells which files it reads.
                run = run.arg("-vv");
                of_flake
            }
            None => log,
        };
        run = self.with_nix_path(run).arg("--profile").arg(&profile);
        for (name, value) in without_floating(nix).await? {
            run = run.args(["--option", &name, &value]);
        }
        let printed = nix.json(run, listening).await?;
        let environment: ShellEnvironment = serde_json::from_value(printed).map_err(|error| {
            let words = format!("nix prints an environment of a kind that is not known: {error}");
            NixFailure::new(Cause::Other, words)
        })?;
        if let Some(local) = &local {
            self.hear_of_self(local, &environment, ears);
        }
        // The profile's generation, then the path.
        let generation = fs::read_link(&profile).map(|link| place.0.join(link));
        let target = generation.and_then(fs::read_link);
        let target = target.map_err(files::failed("reading the link", &profile))?;
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let path = StorePath::parse(&name).map_err(|error| {
            let words = format!("the environment is not in the store: {error}");
            NixFailure::new(Cause::Other, words)
        })?;
        // The profile goes with its folder when this returns; until there is a lease, this root keeps the
        // path.
        if let Some(roots) = &builder.store().roots {
            roots.add_temp_root(&path).await?;
        }
        Ok((environment, vec![path]))
    }

    /// What is named, evaluated; of what is no flake all is heard that nix reads.
    async fn targets(
        &self,
        builder: &NixBuilder,
        what: &Installable,
        options: &EvalOptions,
        ears: &Ears<'_>,
    ) -> Result<Vec<Target>> {
        let is_flake = matches!(what.source, InstallableSource::Flake(_));
        let more = |ask: Invocation| {
            let ask = self.with_nix_path(ask).arg("-vv");
            if is_flake || options.offline {
                ask
            } else {
                // So that it is told of what nothing pins, however lately it was fetched.
                ask.args(["--option", "tarball-ttl", "0"])
            }
        };
        let (nix, dir) = (builder.nix(), &self.config.dir);
        let local = self.local_flake(what)?;
        let of_flake = local.as_ref().map(|local| ears.of_flake(local));
        let log: &dyn LogSink = match (&of_flake, is_flake) {
            (Some(of_flake), _) => of_flake,
            // What a flake fetches its lock pins.
            (None, true) => ears.log,
            (None, false) => ears,
        };
        nix.targets_with(what, dir, options, more, log).await
    }

    /// The flake in a folder of this machine that `what` is of.
    fn local_flake(&self, what: &Installable) -> Result<Option<LocalFlake>> {
        let InstallableSource::Flake(reference) = &what.source else {
            return Ok(None);
        };
        Ok(match FlakePlace::of(reference, &self.config.folder)? {
            FlakePlace::Local(local) => Some(local),
            FlakePlace::Far { .. } => None,
        })
    }

    /// Tells `ears` that all of a flake was copied, if `environment` has the path of the copy: nix
    /// does not say so of `"${self}"`.
    fn hear_of_self(&self, local: &LocalFlake, environment: &ShellEnvironment, ears: &Ears<'_>) {
        let own = files::read(&local.flake.join("flake.nix"), MAX_FLAKE);
        let is_copy = |path: &StorePath| {
            let copy = self.real_dir().join(path.as_str()).join(local.file());
            let copy = files::read(&copy, MAX_FLAKE);
            copy.is_ok_and(|copy| copy.is_some() && own.as_ref().is_ok_and(|own| *own == copy))
        };
        let references = environment.references(&self.config.dir);
        if references
            .iter()
            .any(|path| path.name() == "source" && is_copy(path))
        {
            ears.add_copied(local.tree.clone());
        }
    }

    /// The one derivation that is named, which stays in the store until this connection ends.
    async fn derivation(
        &self,
        builder: &NixBuilder,
        what: &Installable,
        options: &EvalOptions,
        ears: &Ears<'_>,
    ) -> Result<StorePath> {
        let targets = self.targets(builder, what, options, ears).await?;
        let drv = match targets.as_slice() {
            [one] => match &one.path {
                DerivedPath::Built {
                    drv: SingleDerivedPath::Opaque(drv),
                    ..
                } => drv.clone(),
                other => {
                    let words = format!(
                        "{} is not a derivation, whose shell could be entered",
                        other.display(&self.config.dir)
                    );
                    return Err(NixFailure::new(Cause::Misused, words));
                }
            },
            all => {
                let names = all.iter().take(NAMES).map(|target| target.name.as_str());
                let names: Vec<_> = names.collect();
                let words = format!(
                    "{what} is {} derivations ({}); name the attribute of one",
                    all.len(),
                    names.join(", ")
                );
                return Err(NixFailure::new(Cause::Misused, words));
            }
        };
        if let Some(roots) = &builder.store().roots {
            roots.add_temp_root(&drv).await?;
        }
        Ok(drv)
    }

    /// Builds packages: the `PATH` of their programs, and those that they bring along.
    async fn packages(
        &self,
        builder: &NixBuilder,
        all: &[Installable],
        wanted: &WantedEnvironment,
        ears: &Ears<'_>,
        log: &dyn LogSink,
    ) -> Result<(ShellEnvironment, Vec<StorePath>)> {
        let options = EvalOptions {
            folder: Some(self.config.folder.clone()),
            ..wanted.eval.clone()
        };
        let mut targets = Vec::new();
        for what in all {
            targets.extend(self.targets(builder, what, &options, ears).await?);
        }
        let build = crate::NixBuildOptions {
            eval: options,
            ..crate::NixBuildOptions::default()
        };
        let mut paths = Vec::new();
        let named = targets.iter().filter_map(|target| match &target.path {
            DerivedPath::Opaque(path) => Some(path.clone()),
            DerivedPath::Built { .. } => None,
        });
        let there = builder.store().store.valid(&named.collect()).await?;
        if let Some(roots) = &builder.store().roots {
            roots.add_temp_roots(&there).await?;
        }
        // What is there is not built.
        targets.retain(|target| match &target.path {
            DerivedPath::Opaque(path) if there.contains(path) => {
                paths.push(path.clone());
                false
            }
            _ => true,
        });
        let built = if targets.is_empty() {
            Vec::new()
        } else {
            builder.build_targets(&targets, &build, log).await?
        };
        for built in built {
            for output in built?.outputs.values() {
                let path = self.config.dir.parse(output);
                let path = path.map_err(|e| NixFailure::new(Cause::Other, e.to_string()))?;
                if !paths.contains(&path) {
                    paths.push(path);
                }
            }
        }
        let mut folders = Vec::new();
        for path in self.with_propagated(&paths)? {
            folders.push(format!("{}/bin", self.config.dir.path(&path)));
        }
        let environment = ShellEnvironment::exported([("PATH", folders.join(":"))]);
        Ok((environment, paths))
    }

    /// `paths` and those that they say users of them need as well.
    fn with_propagated(&self, paths: &[StorePath]) -> Result<Vec<StorePath>> {
        let real = self.real_dir();
        let mut all = paths.to_vec();
        let mut next = 0;
        while next < all.len() && all.len() < MOST_PACKAGES {
            let file = real.join(all[next].as_str()).join(PROPAGATED);
            let text = files::read(&file, MAX_PROPAGATED).ok().flatten();
            let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
            for word in text.split_whitespace() {
                if let Ok(path) = self.config.dir.parse(word)
                    && !all.contains(&path)
                {
                    all.push(path);
                }
            }
            next += 1;
        }
        Ok(all)
    }
}

impl EnvironmentEntry {
    fn is_shell(&self) -> bool {
        self.environment.variables.contains_key("outputs")
    }

    fn counts(&self, key: &str) -> bool {
        let age = Duration::from_secs(files::now().saturating_sub(self.made));
        self.key == key && (self.pinned || age < UNPINNED_FOR)
    }

    /// Whether its paths are in the store.
    pub fn is_there(&self) -> bool {
        let mut places = self.places.iter();
        places.all(|place| fs::symlink_metadata(place).is_ok())
    }
}

impl NixBuilder {
    /// The environment of the flake `flake_ref`, perhaps with an attribute, FLAKE#ATTR, or of a
    /// derivation of the store. Known or evaluated, its hook run if that was allowed.
    ///
    /// # Errors
    /// [`Cause::Misused`] if there are no folders for environments: see [`NixBuilder::with_shells`].
    pub async fn dev_shell(&self, flake_ref: &str) -> Result<ShellSession> {
        let what = installable(&self.store().store.dir().clone(), flake_ref)?;
        self.dev_shell_of(what).await
    }

    /// As [`NixBuilder::dev_shell`], of anything that is one derivation: an attribute of a file
    /// ([`Installable::attribute`]) or of an expression, too.
    ///
    /// # Errors
    /// As there; [`Cause::Misused`] too for what is no derivation, or several.
    pub async fn dev_shell_of(&self, what: Installable) -> Result<ShellSession> {
        let mut session = self.session(EnvironmentKind::Shell(what)).await?;
        session.enter().await?;
        Ok(session)
    }

    /// Runs `command` with the programs of `packages`, which are named as in [`package`].
    ///
    /// # Errors
    /// As [`NixBuilder::dev_shell`]; a command that fails is none.
    pub async fn run(&self, packages: &[&str], command: &[&str]) -> Result<ExecResult> {
        let dir = self.store().store.dir().clone();
        let all = packages.iter().map(|name| package(&dir, name));
        let what = EnvironmentKind::Packages(all.collect::<Result<_>>()?);
        self.session(what).await?.run(command).await
    }

    /// A session in `what`, known or evaluated. Its hook was not run: each command runs it first,
    /// if it was allowed.
    ///
    /// # Errors
    /// As [`NixBuilder::dev_shell_of`].
    pub async fn session(&self, what: EnvironmentKind) -> Result<ShellSession> {
        let Some(shells) = self.shells() else {
            let words = "no folders were named in which environments are kept";
            return Err(NixFailure::new(Cause::Misused, words));
        };
        let found = shells
            .find(self, &WantedEnvironment::new(what), &())
            .await?;
        shells.session(&found.entry, None)
    }
}

/// How a list of environments names the one of `what`, which comes from `location`.
fn name(what: &Installable, location: &str) -> String {
    match (&what.source, what.attr.as_str()) {
        (InstallableSource::Expr(_), _) => what.to_string(),
        (_, "") => location.to_owned(),
        (InstallableSource::File(_), attr) => format!("{attr} of {location}"),
        (_, attr) => format!("{location}#{attr}"),
    }
}

/// The package `name`: an attribute of `nixpkgs` if it is a bare name, else what
/// [`Installable::parse`] takes.
pub fn package(dir: &StoreDir, name: &str) -> Result<Installable> {
    if name.contains(['#', ':', '/']) || name.starts_with('.') {
        installable(dir, name)
    } else {
        installable(dir, &format!("nixpkgs#{name}"))
    }
}

fn installable(dir: &StoreDir, text: &str) -> Result<Installable> {
    let what = Installable::parse(dir, text);
    what.map_err(|error| NixFailure::new(Cause::Misused, error.to_string()))
}

/// Settings without content-addressed derivations: with them the builder of environments aborts on
/// an assertion before 2.34.
async fn without_floating(nix: &Nix) -> Result<Vec<(String, String)>> {
    if nix.version().at_least(2, 34) {
        return Ok(Vec::new());
    }
    let settings = nix.settings().await?;
    let features = settings.get("experimental-features");
    let names = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => text.split_whitespace().map(str::to_owned).collect(),
        value => serde_json::from_value::<Vec<String>>(value.clone())
            // 2.8 tells numbers, which are others in each version; this much is needed.
            .unwrap_or_else(|_| NUMBERED.map(str::to_owned).to_vec()),
    };
    let mut features = features.map(names).unwrap_or_default();
    let all = features.len();
    features.retain(|name| name != "ca-derivations");
    Ok(if features.len() == all {
        Vec::new()
    } else {
        vec![("experimental-features".into(), features.join(" "))]
    })
}

/// A folder that goes when this is dropped.
struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    fn make(beside: &Path) -> Result<TemporaryFolder> {
        let place = files::unique(beside);
        files::make_folder(&place)?;
        Ok(TemporaryFolder(place))
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn read_entry(file: &Path) -> Option<EnvironmentEntry> {
    let bytes = files::read(file, MAX_ENTRY).ok()??;
    serde_json::from_slice(&bytes).ok()
}

/// Where the structured attributes of the entry `file` lie.
fn attrs_file(file: &Path, suffix: &str) -> PathBuf {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    file.with_file_name(format!("{stem}-attrs.{suffix}"))
}

/// Whether it is the file of an entry, not one of structured attributes.
fn is_json(file: &Path) -> bool {
    let is_hex = |stem: &std::ffi::OsStr| stem.len() == 64;
    file.extension().is_some_and(|e| e == "json") && file.file_stem().is_some_and(is_hex)
}

/// How long what a process left is not taken away: it may still be at work.
const LEFT_FOR: Duration = Duration::from_secs(3600);
/// How long an environment counts that nothing pins.
pub const UNPINNED_FOR: Duration = Duration::from_secs(3600);
/// Variables that a pure environment leaves: as `nix-shell --pure`, but for `PATH`.
const PURE: &[&str] = &[
    "DISPLAY",
    "HOME",
    "LOGNAME",
    "NIX_SHELL_PRESERVE_PROMPT",
    "PAGER",
    "SHLVL",
    "TERM",
    "TZ",
    "USER",
    "WAYLAND_DISPLAY",
    "WAYLAND_SOCKET",
    "XAUTHORITY",
    "XDG_RUNTIME_DIR",
];
/// The channels of root.
const CHANNELS: &str = "/nix/var/nix/profiles/per-user/root/channels";
/// Those of a user, in the home folder.
const OWN_CHANNELS: [&str; 2] = [".nix-defexpr/channels", ".local/state/nix/defexpr/channels"];
/// Derivations that are named where one was wanted.
const NAMES: usize = 5;
/// The format of entries and keys.
const VERSION: &str = "tk-nix environment 2";
/// Evaluations until files must have stopped changing.
const TRIES: usize = 3;
/// What takes the place of features that are told as numbers.
const NUMBERED: [&str; 3] = ["ca-derivations", "nix-command", "flakes"];
/// Bytes of an index.
const MAX_INDEX: u64 = 128 << 20;
/// Bytes of an entry.
const MAX_ENTRY: u64 = 64 << 20;
/// Bytes of a flake.nix.
const MAX_FLAKE: u64 = 16 << 20;
/// Where a package names others that its users need.
const PROPAGATED: &str = "nix-support/propagated-user-env-packages";
/// Bytes of that file.
const MAX_PROPAGATED: u64 = 1 << 20;
/// Packages in one environment.
const MOST_PACKAGES: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_by_name() {
        let dir = StoreDir::default();
        for (name, reference, attr) in [
            ("jq", "nixpkgs", "jq"),
            ("python3.pkgs.x", "nixpkgs", "python3.pkgs.x"),
            (".#tool", ".", "tool"),
            (".", ".", ""),
            ("github:a/b", "github:a/b", ""),
            ("./here", "./here", ""),
        ] {
            let what = package(&dir, name).unwrap();
            assert_eq!(
                what.source,
                InstallableSource::Flake(reference.into()),
                "{name}"
            );
            assert_eq!(what.attr, attr, "{name}");
        }
    }

    #[test]
    fn futures_can_be_sent() {
        fn sent<T: Send>(_: impl FnOnce(&'static NixBuilder) -> T) {}
        sent(|builder| builder.dev_shell("."));
        sent(|builder| builder.run(&["a"], &["b"]));
        sent(|builder| builder.session(EnvironmentKind::Packages(Vec::new())));
    }
}
