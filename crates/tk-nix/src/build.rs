use crate::{
    Cause, EvalOptions, Installable, InstallableSource, Nix, NixFailure, Result, Target,
    shell::Shells,
};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use tk_daemon::client::BuildLogs;
use tk_narinfo::{
    PathInfo,
    build_result::{BuildStatus, KeyedBuildResult},
};
use tk_path::{DerivationKind, DerivedPath, OutputName, OutputsSpec, SingleDerivedPath, StorePath};
use tk_store::{
    Abilities, Build, BuildMode, Error, StoreExt, closure, derivation,
    log::{LogEvent, LogSink, strip_ansi, strip_error_prefix},
};
use tokio_util::sync::CancellationToken;

/// Builds what people name: evaluated by nix, built by a store.
#[derive(Debug, Clone)]
pub struct NixBuilder {
    nix: Nix,
    builder: StoreBuilder,
    shells: Option<Shells>,
}

/// Builds what was evaluated already; needs no nix.
#[derive(Debug, Clone)]
pub struct StoreBuilder {
    store: Abilities,
}

/// How something is built.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct NixBuildOptions {
    /// How it is evaluated.
    pub eval: EvalOptions,
    /// What is done with outputs that are there.
    pub mode: BuildMode,
    /// The build is given up after so long; `None`: never. Evaluation has nix's own limit.
    pub timeout: Option<Duration>,
    /// All of it is given up when this is cancelled, and told as [`Cause::Cancelled`]. The same as
    /// dropping the future, but for somebody who wants to know what was going on.
    pub cancel: CancellationToken,
}

/// `work`, unless `cancel` comes first: then it is dropped, which ends what it started, and the
/// failure is [`Cause::Cancelled`].
pub async fn or_cancelled<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    // What is done is done, even if it was cancelled in the same moment.
    tokio::select! {
        biased;
        done = work => done,
        () = cancel.cancelled() => Err(NixFailure::cancelled()),
    }
}

/// What was built. The same for all versions of Nix; facts about outputs are those of the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NixBuildResult {
    /// The main output, or the path if it was one: a whole path.
    pub store_path: String,
    /// Whole paths by the outputs' names.
    pub outputs: BTreeMap<String, String>,
    /// Seconds from the beginning of the build to its end; 0 if it was there.
    pub build_time: f64,
    /// Bytes of the NARs of all outputs.
    pub size: u64,
    /// What the outputs refer to, without themselves: whole paths.
    pub references: Vec<String>,
    /// The derivation, if there is one: a whole path.
    pub drv_path: Option<String>,
    /// `Built`, `Substituted` or `AlreadyValid`, and so on: Nix's names.
    pub status: String,
}

impl NixBuilder {
    /// `nix` evaluates, `store` builds and knows the outputs: nix must work on the same store.
    pub fn new(nix: Nix, store: Abilities) -> Self {
        NixBuilder {
            nix,
            builder: StoreBuilder::new(store),
            shells: None,
        }
    }

    /// With a place for environments: see [`NixBuilder::dev_shell`].
    pub fn with_shells(mut self, shells: Shells) -> Self {
        self.shells = Some(shells);
        self
    }

    /// Where environments are kept, if that was told.
    pub fn shells(&self) -> Option<&Shells> {
        self.shells.as_ref()
    }

    /// The nix that evaluates.
    pub fn nix(&self) -> &Nix {
        &self.nix
    }

    /// The store that builds.
    pub fn store(&self) -> &Abilities {
        &self.builder.store
    }

    /// What builds, by itself.
    pub fn builder(&self) -> &StoreBuilder {
        &self.builder
    }

    /// Builds the attribute `attr` of the flake `flake_ref`; with an empty one its default package.
    pub async fn build(&self, flake_ref: &str, attr: &str) -> Result<NixBuildResult> {
        let source = InstallableSource::Flake(flake_ref.to_owned());
        let what = Installable::attribute(source, attr).map_err(misused)?;
        self.build_one(&what, &NixBuildOptions::default(), &())
            .await
    }

    /// The value of the expression `expr`.
    pub async fn eval(&self, expr: &str) -> Result<Value> {
        let source = InstallableSource::Expr(expr.to_owned());
        let what = Installable::attribute(source, "").map_err(misused)?;
        self.nix.eval(&what, &EvalOptions::default(), &()).await
    }

    /// Builds what `what` names, which must be one thing.
    pub async fn build_one(
        &self,
        what: &Installable,
        options: &NixBuildOptions,
        log: &dyn LogSink,
    ) -> Result<NixBuildResult> {
        let dir = self.store().store.dir();
        let found = self.nix.targets(what, dir, &options.eval, log);
        let mut targets = or_cancelled(&options.cancel, found).await?;
        if targets.len() != 1 {
            let words = format!("{what} is {} derivations; name one of them", targets.len());
            return Err(NixFailure::new(Cause::Misused, words));
        }
        let target = targets.remove(0);
        let mut built = self
            .build_targets(std::slice::from_ref(&target), options, log)
            .await?;
        built.pop().unwrap_or_else(|| Err(nothing(&target)))
    }

    /// Builds several targets together, as [`StoreBuilder::build_targets`] does.
    pub async fn build_targets(
        &self,
        targets: &[Target],
        options: &NixBuildOptions,
        log: &dyn LogSink,
    ) -> Result<Vec<Result<NixBuildResult>>> {
        self.builder.build_targets(targets, options, log).await
    }
}

impl StoreBuilder {
    /// `store` builds, and knows the outputs.
    pub fn new(store: Abilities) -> Self {
        StoreBuilder { store }
    }

    /// The store that builds.
    pub fn store(&self) -> &Abilities {
        &self.store
    }

    /// Builds `targets` together. One result for each, in their order; what fails does not keep the
    /// others from being told, and what is given up not those that were finished before.
    pub async fn build_targets(
        &self,
        targets: &[Target],
        options: &NixBuildOptions,
        log: &dyn LogSink,
    ) -> Result<Vec<Result<NixBuildResult>>> {
        let Some(builder) = &self.store.build else {
            let words = format!("{} does not build", self.store.store);
            return Err(NixFailure::new(Cause::Misused, words));
        };
        // A result tells of a dependency only that it failed; why it failed is said in the log alone.
        let errors = Mutex::new(Vec::new());
        let logs = BuildLogs::with(LINES, |event| {
            keep_error(&errors, &event);
            log.event(event);
        });
        let begun = Instant::now();
        let results = match self.results(&**builder, targets, options, &logs).await? {
            Ok(results) => results,
            Err(failure) => return Ok(self.given_up(targets, &failure, &logs).await),
        };
        let elapsed = begun.elapsed();
        let errors = errors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut all = Vec::with_capacity(targets.len());
        for target in targets {
            let mut keyed = results.iter();
            let found = keyed.clone().find(|keyed| keyed.path == target.path);
            // 2.8 gives one result for all that was asked of a derivation.
            let found = found.or_else(|| keyed.find(|keyed| answers(&keyed.path, &target.path)));
            all.push(match found {
                Some(keyed) if !keyed.result.status.is_success() => {
                    Err(self.failed(keyed, target, &logs, &errors).await)
                }
                Some(keyed) => self.told(keyed, target, &logs, elapsed).await,
                None => Err(nothing(target)),
            });
        }
        Ok(all)
    }

    /// Why a build failed. If things that it needs failed, those are told.
    async fn failed<S: LogSink>(
        &self,
        keyed: &KeyedBuildResult,
        target: &Target,
        logs: &BuildLogs<S>,
        errors: &[String],
    ) -> NixFailure {
        let dir = self.store.store.dir();
        let drv = target.derivation().map(|drv| dir.path(drv));
        let own = drv.as_deref().and_then(|drv| logs.of(drv));
        let failure = NixFailure::of_build(drv.clone(), &keyed.result, own.as_ref());
        if failure.cause != Cause::Dependency {
            return self.with_likely(failure).await;
        }
        let mut roots: Vec<NixFailure> = Vec::new();
        for text in errors {
            let root = NixFailure::of_words_of_build(text);
            let is_known = roots
                .iter()
                .any(|known| known.derivation == root.derivation);
            let is_other = root.derivation.is_some() && root.derivation != drv;
            if root.cause != Cause::Dependency && is_other && !is_known {
                roots.push(root);
            }
        }
        // What other targets need is theirs.
        if roots.len() > 1
            && let Some(drv) = target.derivation()
            && let Ok(needed) = closure(&*self.store.store, [drv.clone()]).await
        {
            roots.retain(|root| {
                let root = root.derivation.as_deref();
                let root = root.and_then(|root| dir.parse(root).ok());
                root.is_none_or(|root| needed.infos.contains_key(&root))
            });
        }
        let mut told = Vec::with_capacity(roots.len());
        for root in roots {
            let log = root.derivation.as_deref().and_then(|drv| logs.of(drv));
            told.push(self.with_likely(root.with_log(log.as_ref())).await);
        }
        let mut told = told.into_iter();
        match told.next() {
            Some(mut root) => {
                root.asked_status = failure.status;
                root.others = told.collect();
                root
            }
            None => failure,
        }
    }

    async fn with_likely(&self, failure: NixFailure) -> NixFailure {
        let fixed = self.is_fixed(failure.derivation.as_deref()).await;
        failure.with_likely(fixed)
    }

    /// Whether the output of this derivation is fixed, as far as that can be found out.
    async fn is_fixed(&self, drv: Option<&str>) -> bool {
        let store = &*self.store.store;
        let Some(drv) = drv.and_then(|drv| store.dir().parse(drv).ok()) else {
            return false;
        };
        let drv = derivation::read(store, &drv).await;
        drv.is_ok_and(|drv| matches!(drv.kind(), Ok(DerivationKind::Fixed)))
    }

    /// What the builder told, or why it was given up.
    async fn results<S: LogSink>(
        &self,
        builder: &dyn Build,
        targets: &[Target],
        options: &NixBuildOptions,
        logs: &BuildLogs<S>,
    ) -> Result<Result<Vec<KeyedBuildResult>>> {
        let mut paths: Vec<DerivedPath> = Vec::new();
        for target in targets {
            if !paths.contains(&target.path) {
                paths.push(target.path.clone());
            }
        }
        let too_long = async {
            match options.timeout {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        // Giving the future up ends the builds.
        // With `biased`, results that are there win over a limit that is reached at the same time.
        let mut failure = tokio::select! {
            biased;
            results = build_each(builder, &paths, options.mode, logs) => return Ok(Ok(results?)),
            () = options.cancel.cancelled() => NixFailure::cancelled(),
            () = too_long => {
                let limit = options.timeout.unwrap_or_default().as_secs_f32();
                NixFailure::new(Cause::TimedOut, format!("the build was ended after {limit} s"))
            }
        };
        // What was running is what took so long.
        if let Some(build) = logs.builds().into_iter().rev().find(|b| b.stop.is_none()) {
            failure.derivation = Some(build.drv.clone());
            failure.log = build.lines.into();
            failure.phase = build.phase;
        }
        Ok(Err(failure))
    }

    /// What became of `targets`, which were given up: those that are there were built before.
    async fn given_up<S: LogSink>(
        &self,
        targets: &[Target],
        failure: &NixFailure,
        logs: &BuildLogs<S>,
    ) -> Vec<Result<NixBuildResult>> {
        let mut all = Vec::with_capacity(targets.len());
        let asking = async {
            for target in targets {
                let result = self.left(target, logs).await;
                all.push(result.ok_or_else(|| failure.clone()));
            }
        };
        // Whoever gives up waits for nobody.
        let _ = tokio::time::timeout(LOOKING, asking).await;
        all.resize_with(targets.len(), || Err(failure.clone()));
        all
    }

    /// The result of a target all of whose outputs are there.
    async fn left<S: LogSink>(
        &self,
        target: &Target,
        logs: &BuildLogs<S>,
    ) -> Option<NixBuildResult> {
        let drv = target
            .derivation()
            .map(|drv| self.store.store.dir().path(drv));
        let built = drv.as_deref().and_then(|drv| logs.of(drv));
        let status = match built {
            Some(_) => BuildStatus::Built,
            None => BuildStatus::AlreadyValid,
        };
        let keyed = KeyedBuildResult {
            path: target.path.clone(),
            result: tk_narinfo::build_result::BuildResult::new(status),
        };
        let outputs = self.outputs(&keyed, target).await.ok()?;
        let wanted = outputs.values().cloned().collect();
        let there = self.store.store.valid(&wanted).await.ok()?;
        if there == wanted {
            self.told(&keyed, target, logs, Duration::ZERO).await.ok()
        } else {
            None
        }
    }

    /// What became of `target`.
    async fn told<S: LogSink>(
        &self,
        keyed: &KeyedBuildResult,
        target: &Target,
        logs: &BuildLogs<S>,
        elapsed: Duration,
    ) -> Result<NixBuildResult> {
        let dir = self.store.store.dir();
        let drv = target.derivation().map(|drv| dir.path(drv));
        let outputs = self.outputs(keyed, target).await?;
        let log = drv.as_deref().and_then(|drv| logs.of(drv));
        let build_time = match (&log, keyed.result.status) {
            (Some(log), _) => {
                let stop = log
                    .stop
                    .and_then(|stop| stop.duration_since(log.start).ok());
                stop.unwrap_or(elapsed).as_secs_f64()
            }
            // Nobody told when it began.
            (None, BuildStatus::Built) => {
                let seconds = keyed.result.stop - keyed.result.start;
                u32::try_from(seconds).map_or(0.0, f64::from)
            }
            (None, _) => 0.0,
        };
        let infos = self.infos(outputs.values().cloned().collect()).await?;
        let own: BTreeSet<_> = outputs.values().collect();
        let references = infos.iter().flat_map(|info| &info.references);
        let references: BTreeSet<_> = references.filter(|path| !own.contains(path)).collect();
        let main = target
            .outputs
            .iter()
            .find_map(|name| outputs.get(name.as_str()));
        let main = outputs.get("out").or(main).or(outputs.values().next());
        Ok(NixBuildResult {
            store_path: main.map(|path| dir.path(path)).unwrap_or_default(),
            outputs: outputs
                .iter()
                .map(|(k, v)| (k.clone(), dir.path(v)))
                .collect(),
            build_time,
            size: infos.iter().map(|info| info.nar_size).sum(),
            references: references.into_iter().map(|path| dir.path(path)).collect(),
            drv_path: drv,
            status: keyed.result.status.name().to_owned(),
        })
    }

    /// The outputs that are wanted, by name.
    async fn outputs(
        &self,
        keyed: &KeyedBuildResult,
        target: &Target,
    ) -> Result<BTreeMap<String, StorePath>> {
        let (drv, spec) = match &target.path {
            DerivedPath::Opaque(path) => {
                return Ok(BTreeMap::from([("out".to_owned(), path.clone())]));
            }
            DerivedPath::Built { drv, outputs } => (drv, outputs),
        };
        let told = keyed.result.outputs.iter();
        let told = told.map(|(name, value)| (name.to_string(), value.out_path.clone()));
        let mut outputs: BTreeMap<_, _> = told.collect();
        let lacks = match spec {
            OutputsSpec::All => outputs.is_empty(),
            OutputsSpec::Names(names) => {
                let told = |name: &OutputName| outputs.contains_key(name.as_str());
                !names.iter().all(told)
            }
        };
        if lacks && let (Some(graph), SingleDerivedPath::Opaque(drv)) = (&self.store.graph, drv) {
            let known = graph.output_map(drv).await?.into_iter();
            outputs = known
                .filter_map(|(name, path)| Some((name.to_string(), path?)))
                .collect();
        }
        // Daemons tell of all outputs, wanted or not.
        if let OutputsSpec::Names(names) = spec {
            outputs.retain(|name, _| names.iter().any(|wanted| wanted.as_str() == name));
        }
        if outputs.is_empty() {
            Err(nothing(target))
        } else {
            Ok(outputs)
        }
    }

    async fn infos(&self, paths: BTreeSet<StorePath>) -> Result<Vec<PathInfo>> {
        let mut answers = self.store.store.infos_of(paths);
        let mut infos = Vec::new();
        while let Some(answer) = answers.next().await {
            infos.extend(answer?.1);
        }
        Ok(infos)
    }
}

/// Builds `paths` together. If one of them is turned down, so that the others are not told either, each by
/// itself.
async fn build_each(
    builder: &dyn Build,
    paths: &[DerivedPath],
    mode: BuildMode,
    log: &dyn LogSink,
) -> tk_store::Result<Vec<KeyedBuildResult>> {
    match builder.build(paths, mode, log).await {
        Err(error) if is_turned_down(&error) && paths.len() > 1 => {}
        results => return results,
    }
    let mut all = Vec::with_capacity(paths.len());
    for path in paths {
        match builder.build(std::slice::from_ref(path), mode, log).await {
            Ok(results) => all.extend(results),
            Err(error) if is_turned_down(&error) => {
                let words = match error {
                    Error::Refused { words, .. } => words,
                    error => error.to_line(),
                };
                let mut result =
                    tk_narinfo::build_result::BuildResult::new(BuildStatus::MiscFailure);
                result.error = words;
                let path = path.clone();
                all.push(KeyedBuildResult { path, result });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// Whether the fault is that of what was asked for, not of the store.
fn is_turned_down(error: &Error) -> bool {
    matches!(
        error,
        Error::Refused { .. }
            | Error::Invalid { .. }
            | Error::NotFound { .. }
            | Error::Malformed { .. }
    )
}

/// Whether the result for `path` is one for `wanted`, too: both are of one derivation.
fn answers(path: &DerivedPath, wanted: &DerivedPath) -> bool {
    match (path, wanted) {
        (DerivedPath::Built { drv, .. }, DerivedPath::Built { drv: wanted, .. }) => drv == wanted,
        _ => false,
    }
}

/// What failed on the way is told as a message only.
fn keep_error(errors: &Mutex<Vec<String>>, event: &LogEvent) {
    let LogEvent::Message { text, .. } = event else {
        return;
    };
    let text = strip_ansi(text);
    if text.trim_start().starts_with("error:") {
        let mut errors = errors.lock().unwrap_or_else(PoisonError::into_inner);
        if errors.len() < ERRORS {
            errors.push(strip_error_prefix(&text));
        }
    }
}

fn nothing(target: &Target) -> NixFailure {
    let name = match target.name.as_str() {
        "" => target.path.base().to_string(),
        name => name.to_owned(),
    };
    NixFailure::new(Cause::Other, format!("nothing was told of {name}"))
}

fn misused(error: crate::InstallableError) -> NixFailure {
    NixFailure::new(Cause::Misused, error.to_string())
}

/// Last lines of a builder that are kept.
const LINES: usize = 25;
/// How long it may take to find out what was finished before a build was given up.
const LOOKING: Duration = Duration::from_secs(1);
/// Errors that are kept.
const ERRORS: usize = 100;
