//! Environments that are kept: found, evaluated, entered.

use super::{
    config::ShellConfig,
    consent::StartupCode,
    entry::{EnvironmentEntry, MAX_ENTRY, attrs_file, read_entry},
    eval_reads::{Ears, EvalReads},
    evaluation::ShellEvaluation,
    files::{self, Lock},
    inputs::InputsSnapshot,
    namespace::StoreElsewhere,
    nix_version_cache::{NixVersionCache, Resolved},
    request::EnvironmentRequest,
    session::{Hook, ShellSession},
    wanted::{EnvironmentKind, WantedEnvironment},
};
use crate::{
    Cause, EvalOptions, Installable, InstallableSource, Nix, NixBuilder, NixConfig, NixFailure,
    Result,
};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::SystemTime,
};
use tk_path::StoreDir;
use tk_store::{lease::Leases, log::LogSink};

/// Environments that are kept in two folders, shared by all processes that name the same.
#[derive(Debug, Clone)]
pub struct Shells {
    pub(super) config: ShellConfig,
    pub(super) leases: Leases,
    known: NixVersionCache,
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
        let resolved = self.known.resolve(nix, &self.config.search_path()).await;
        let Some(Resolved { nix, .. }) = resolved.filter(|_| !wanted.refresh) else {
            return Ok(None);
        };
        let asked = EnvironmentRequest::of(&self.config, &nix, wanted)?;
        let found = self.look_up(&asked, wanted)?;
        Ok(found.filter(|found| found.leased))
    }

    /// The files that the environment depends on, as far as is known without it, as after a failure. Runs no nix
    /// but to learn the version of a program that was never seen.
    pub async fn files_of(
        &self,
        nix: &NixConfig,
        wanted: &WantedEnvironment,
    ) -> Result<Vec<PathBuf>> {
        let resolved = self.known.resolve(nix, &self.config.search_path()).await;
        let Some(Resolved { nix, .. }) = resolved else {
            return Ok(Vec::new());
        };
        let asked = EnvironmentRequest::of(&self.config, &nix, wanted)?;
        Ok(self.snapshot(&asked)?.files().map(Into::into).collect())
    }

    /// The nix that `config` names, by its known version or asked for it: the first of its name.
    pub async fn nix(&self, config: &NixConfig) -> Result<Nix> {
        let path = self.config.search_path();
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
        let asked = EnvironmentRequest::of(&self.config, builder.nix(), wanted)?;
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
        path.push(self.config.search_path());
        StartupCode::of(&entry.environment, &path)
    }

    /// Lets the code of `entry` run from now on that would run without being named, as long as all of
    /// it is the same.
    pub fn allow(&self, entry: &EnvironmentEntry) -> Result<()> {
        let text = self.startup_code(entry).text();
        files::replace(&self.allowed_text(entry), text.as_bytes())?;
        files::replace(&self.consent_file(entry), entry.name.as_bytes())
    }

    /// Whether its code may run.
    pub fn is_allowed(&self, entry: &EnvironmentEntry) -> Result<bool> {
        Ok(self.consent_file(entry).exists())
    }

    /// What was allowed last for the environment of this name, if it was kept: see
    /// [`StartupCode::text`].
    pub fn allowed_before(&self, entry: &EnvironmentEntry) -> Option<String> {
        let text = files::read(&self.allowed_text(entry), MAX_ENTRY).ok()??;
        String::from_utf8(text).ok()
    }

    /// Takes the consent back; whether there was one.
    pub fn revoke(&self, entry: &EnvironmentEntry) -> Result<bool> {
        let consent = self.consent_file(entry);
        let there = consent.exists();
        files::remove(&consent)?;
        Ok(there)
    }

    /// The file that is there as long as the code of `entry` may run: who watches it sees that it was allowed.
    pub fn consent_file(&self, entry: &EnvironmentEntry) -> PathBuf {
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

    fn entry_file(&self, key: &str) -> PathBuf {
        self.config
            .cache
            .join("entries")
            .join(format!("{key}.json"))
    }

    fn index_file(&self, slot: &str) -> PathBuf {
        self.config.cache.join("index").join(format!("{slot}.json"))
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
        let leased = self.leases.renew(&key, &entry.paths, &wanted.lease)?;
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
        let options = EvalOptions {
            folder: Some(self.config.folder.clone()),
            ..wanted.eval.clone()
        };
        for _ in 0..TRIES {
            let before = InputsSnapshot::take(&asked.trees(&told)?, None)?;
            let begun = SystemTime::now();
            let ears = Ears::new(log, self.config.stores());
            let evaluation = ShellEvaluation {
                config: &self.config,
                builder,
                options: options.clone(),
                ears: &ears,
                log,
            };
            let evaluated = match &wanted.what {
                EnvironmentKind::Shell(what) => evaluation.shell(what).await,
                EnvironmentKind::Packages(all) => evaluation.packages(all).await,
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
            let real = self.config.real_dir();
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
        let lease = &wanted.lease;
        self.leases
            .begin(&entry.key, &entry.paths, lease, &**roots)
            .await?;
        Ok(())
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
/// Evaluations until files must have stopped changing.
const TRIES: usize = 3;
/// Bytes of an index.
const MAX_INDEX: u64 = 128 << 20;
