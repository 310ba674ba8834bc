//! One derivation on one machine: inputs there, build, outputs back.

use super::{
    Connected, RemoteConfig,
    graph::Node,
    log::{MachineLog, Numbers},
    pick::{Place, Pool},
};
use crate::{Cause, Failure, machines::Needs};
use futures::{StreamExt, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tk_narinfo::{
    PathInfo,
    build_result::{BuildResult, BuildStatus},
    realisation::UnkeyedRealisation,
};
use tk_path::{
    BasicDerivation, DerivationOutput, DerivedPath, OutputName, OutputsSpec, SingleDerivedPath,
    StorePath,
};
use tk_store::{
    Abilities, AddOptions, BuildMode, Closure, Error, NarStream, Result, SigCheck, Store, closure,
    copy::{self, CopyOptions, Reach},
    log::{Level, LogEvent, LogSink, strip_ansi},
    nar,
};

/// What all jobs of one call share.
pub struct Shared<'a> {
    pub local: &'a Abilities,
    pub config: &'a RemoteConfig,
    pub pool: Pool<'a>,
    pub numbers: Numbers,
    pub log: &'a dyn LogSink,
}

/// A derivation whose inputs are all there.
pub struct Job {
    pub path: StorePath,
    pub needs: Needs,
    /// Its inputs are paths.
    pub basic: BasicDerivation,
    /// All outputs, with their paths.
    pub outputs: BTreeMap<OutputName, StorePath>,
    pub wanted: BTreeSet<OutputName>,
}

/// Why a machine did not do it.
enum Fault {
    /// It was lost, or is not what it should be: another may do it.
    Lost(String),
    /// It turned inputs down: another may take them.
    Refused(String),
    /// No machine would do it: a failure of the build.
    Final(String),
}

impl Job {
    /// `None` if not all that is needed is known before it is built.
    pub fn new(
        local: &dyn Store,
        path: &StorePath,
        node: &Node,
        known: impl Fn(&StorePath, &OutputName) -> Option<StorePath>,
    ) -> Option<Job> {
        let (dir, drv) = (local.dir(), &node.drv);
        let basic = drv.resolve(dir, known).ok()?;
        let output = |(name, how): (&OutputName, &DerivationOutput)| {
            let path = how.path(dir, &drv.name, name).ok()??;
            Some((name.clone(), path))
        };
        let outputs: Option<_> = drv.outputs.iter().map(output).collect();
        Some(Job {
            path: path.clone(),
            needs: node.needs(),
            basic,
            outputs: outputs?,
            wanted: node.wanted.clone(),
        })
    }

    /// Builds it on the best machine, and on others should that one be lost.
    ///
    /// # Errors
    /// What is no fault of the derivation or of a machine.
    pub async fn run(&self, shared: &Shared<'_>) -> Result<BuildResult> {
        let mut tried = BTreeSet::new();
        let mut faults: Vec<String> = Vec::new();
        loop {
            let Some((i, slot)) = shared.pool.take(&self.needs, &tried).await? else {
                let words = match faults.is_empty() {
                    true => shared.pool.why_none(&self.needs),
                    false => format!(
                        "no machine is left that could build it: {}",
                        faults.join("; ")
                    ),
                };
                return Ok(failure(words));
            };
            tried.insert(i);
            let done = self.attempt(shared, i).await;
            drop(slot);
            let machine = &shared.pool.places[i].machine.uri;
            let why = match done {
                Ok(result) => return Ok(result),
                Err(Fault::Final(words)) => return Ok(failure(words)),
                Err(Fault::Refused(words)) => words,
                Err(Fault::Lost(words)) => {
                    shared.pool.disconnect(i).await;
                    // If it is our own store that is gone, no machine is to blame.
                    shared
                        .local
                        .store
                        .valid(&[self.path.clone()].into())
                        .await?;
                    words
                }
            };
            let text = format!("{} is not built on {machine}: {why}", self.path.name());
            shared.log.event(LogEvent::message(Level::Warn, text));
            faults.push(why);
        }
    }

    async fn attempt(&self, shared: &Shared<'_>, i: usize) -> Result<BuildResult, Fault> {
        let place = &shared.pool.places[i];
        let uri = &place.machine.uri;
        let builder = shared.pool.connect(i).await;
        let builder = builder.map_err(|why| Fault::Lost(format!("{uri} cannot be used: {why}")))?;
        let log = MachineLog::new(shared.log, &shared.numbers, uri, &place.pulse);
        let at = At {
            shared,
            place,
            builder: &builder,
            log: &log,
        };
        let watch = shared.pool.watch(i, &builder, &self.path, self.make(&at));
        watch.await.map_err(Fault::Lost)?
    }

    /// Sees to it that the outputs are there, and brings them here.
    async fn make(&self, at: &At<'_>) -> Result<BuildResult, Fault> {
        let wanted = self.wanted.iter().map(|name| self.outputs[name].clone());
        let wanted: BTreeSet<_> = wanted.collect();
        let there = at.builder.store.store.valid(&wanted).await;
        let there = there.map_err(|error| at.lost("asking it", error))?;
        let mut result = match there == wanted {
            true => BuildResult::new(BuildStatus::AlreadyValid),
            false => self.build(at).await?,
        };
        if result.is_success() {
            self.receive(at).await?;
            let outputs = self.outputs.iter();
            let outputs = outputs.filter(|(name, _)| self.wanted.contains(*name));
            let outputs =
                outputs.map(|(name, path)| (name.clone(), UnkeyedRealisation::new(path.clone())));
            result.outputs = outputs.collect();
        }
        Ok(result)
    }

    /// Builds it in the way that the machine allows.
    async fn build(&self, at: &At<'_>) -> Result<BuildResult, Fault> {
        if at.builder.trusted != Some(false) && !at.place.is_wary() {
            match self.build_one(at).await {
                // One of 2.8 says nothing before.
                Err(Fault::Refused(_)) => {}
                done => return done,
            }
        }
        let text = format!(
            "the account at {} is not trusted there, so that it builds inputs again instead of taking them; {}",
            at.place.machine.uri, ADVICE
        );
        if !at.place.becomes_wary() {
            at.log.say(Level::Notice, text);
        }
        self.build_closure(at).await
    }

    /// For a builder that trusts us: it gets the inputs.
    async fn build_one(&self, at: &At<'_>) -> Result<BuildResult, Fault> {
        at.send(&self.basic.inputs).await?;
        let Some(build) = &at.builder.store.build else {
            return Err(Fault::Refused(
                at.builder.store.unsupported("does not build").to_string(),
            ));
        };
        let built = build.build_derivation(&self.path, &self.basic, BuildMode::Normal, at.log);
        built.await.map_err(|error| match error {
            Error::Refused { words, .. } => at.refused(&words),
            error => at.lost("building there", error),
        })
    }

    /// For one that does not: it gets the derivation with its closure, and those inputs that it
    /// may take.
    async fn build_closure(&self, at: &At<'_>) -> Result<BuildResult, Fault> {
        at.send(&[self.path.clone()].into()).await?;
        at.offer(&self.basic.inputs).await?;
        let Some(build) = &at.builder.store.build else {
            return Err(Fault::Refused(
                at.builder.store.unsupported("does not build").to_string(),
            ));
        };
        let path = DerivedPath::Built {
            drv: SingleDerivedPath::Opaque(self.path.clone()),
            outputs: OutputsSpec::Names(self.wanted.clone()),
        };
        let results = build.build(std::slice::from_ref(&path), BuildMode::Normal, at.log);
        let mut results = results.await.map_err(|error| match error {
            Error::Refused { words, .. } => at.refused(&words),
            error => at.lost("building there", error),
        })?;
        match results.pop() {
            Some(keyed) => Ok(keyed.result),
            None => Err(Fault::Lost(format!(
                "{} told nothing of the build",
                at.place.machine.uri
            ))),
        }
    }

    /// Brings the outputs that are wanted here, and those that they refer to.
    async fn receive(&self, at: &At<'_>) -> Result<(), Fault> {
        let _turn = at.place.receiving.lock().await;
        let (local, builder) = (&at.shared.local.store, &at.builder.store.store);
        let own = |error: Error| Fault::Final(error.to_line());
        let own_paths: BTreeSet<_> = self.outputs.values().cloned().collect();
        let inputs = closure(&**local, self.basic.inputs.iter().cloned()).await;
        let mut allowed: BTreeSet<_> = inputs.map_err(own)?.infos.into_keys().collect();
        allowed.extend(own_paths.iter().cloned());
        let mut found = Closure::default();
        let wanted = self.wanted.iter().map(|name| self.outputs[name].clone());
        let mut wave: BTreeSet<_> = wanted.collect();
        while !wave.is_empty() {
            let told = Closure::only(&**builder, wave).await;
            let told = told.map_err(|error| at.lost("asking for the outputs", error))?;
            if let Some(absent) = told.absent.keys().next() {
                let uri = &at.place.machine.uri;
                let words = format!("{uri} says that it built {absent}, and does not have it");
                return Err(Fault::Lost(words));
            }
            let references = told.infos.values().flat_map(|info| info.references.clone());
            let references: BTreeSet<_> = references.collect();
            found.infos.extend(told.infos);
            wave = references.intersection(&own_paths).cloned().collect();
            wave.retain(|path| !found.infos.contains_key(path));
        }
        for info in found.infos.values_mut() {
            self.check(at, info, &allowed)?;
        }
        let order = found.references_first();
        let order = order.map_err(|error| at.lost("reading the outputs", error))?;
        at.fetch(order.into_iter().cloned().collect()).await
    }

    /// Makes `info` what the derivation says of that output.
    ///
    /// # Errors
    /// When it cannot be that.
    fn check(
        &self,
        at: &At<'_>,
        info: &mut PathInfo,
        allowed: &BTreeSet<StorePath>,
    ) -> Result<(), Fault> {
        if let Some(other) = info.references.iter().find(|r| !allowed.contains(*r)) {
            return Err(Fault::Lost(format!(
                "{} from {} refers to {other}, which did not go into its build",
                info.path, at.place.machine.uri
            )));
        }
        let output = self.outputs.iter().find(|(_, path)| **path == info.path);
        let how = output.and_then(|(name, _)| self.basic.outputs.get(name));
        info.ca = match how {
            Some(DerivationOutput::Fixed(ca)) => Some(*ca),
            _ => None,
        };
        info.deriver = Some(self.path.clone());
        (info.ultimate, info.registration_time) = (false, 0);
        for key in &at.shared.config.sign {
            let signed = info.sign(at.shared.local.store.dir(), key);
            signed.map_err(|error| Fault::Lost(format!("{}: {error}", info.path)))?;
        }
        Ok(())
    }
}

/// Where a job is being done.
struct At<'a> {
    shared: &'a Shared<'a>,
    place: &'a Place,
    builder: &'a Connected,
    log: &'a MachineLog<'a>,
}

impl At<'_> {
    /// Brings `roots` with their closure there.
    async fn send(&self, roots: &BTreeSet<StorePath>) -> Result<(), Fault> {
        if self.shared.config.builders_substitute {
            self.let_fetch(roots).await;
        }
        let _turn = self.place.sending.lock().await;
        let (src, dst) = (&self.shared.local.store, &self.builder.store.store);
        let options = CopyOptions {
            reach: Reach::Closure,
            // Whether that will do is for the builder to say.
            ..CopyOptions::new(SigCheck::Skip)
        };
        let plan = copy::plan(&**src, &**dst, roots, &options).await;
        let plan = plan.map_err(|error| self.copying(error))?;
        if plan.missing.is_empty() {
            return Ok(());
        }
        let (n, uri) = (plan.missing.len(), &self.place.machine.uri);
        let s = if n == 1 { "" } else { "s" };
        self.log
            .say(Level::Info, format!("copying {n} path{s} to {uri}"));
        let report = plan.run(src, &**dst, self.place.pulse.clone()).await;
        let failed = report.map_err(|error| self.copying(error))?.failed;
        // What follows from another failure says nothing.
        let consequence =
            |(_, e): &&(StorePath, Error)| matches!(e, Error::MissingReference { .. });
        let first = failed.iter().position(|f| !consequence(&f));
        match failed.into_iter().nth(first.unwrap_or(0)) {
            Some((_, error)) => Err(self.copying(error)),
            None => Ok(()),
        }
    }

    /// Offers the closure of `roots` to a builder that does not trust us, as far as it may take it.
    async fn offer(&self, roots: &BTreeSet<StorePath>) -> Result<(), Fault> {
        let _turn = self.place.sending.lock().await;
        let (src, dst) = (&self.shared.local.store, &self.builder.store.store);
        let found = closure(&**src, roots.iter().cloned()).await;
        let found = found.map_err(|error| Fault::Final(error.to_line()))?;
        let all = found.infos.keys().cloned().collect();
        let mut there = dst.valid(&all).await.map_err(|e| self.copying(e))?;
        let mut going = Vec::new();
        let order = found.references_first();
        for info in order.map_err(|error| Fault::Final(error.to_line()))? {
            let own = |r: &StorePath| *r == info.path;
            let proves = info.is_content_addressed(src.dir()) || !info.signatures.is_empty();
            let may = proves && info.references.iter().all(|r| own(r) || there.contains(r));
            if may && there.insert(info.path.clone()) {
                going.push(info.clone());
            }
        }
        let items = going.into_iter().map(|mut info| {
            (info.ultimate, info.registration_time) = (false, 0);
            let nar = self.nar(src, &info.path);
            Ok((info, nar))
        });
        let items = stream::iter(items.collect::<Vec<_>>()).boxed();
        // What it does not take it builds.
        let report = dst.add(items, &AddOptions::new(SigCheck::Skip)).await;
        report.map(drop).map_err(|error| self.copying(error))
    }

    /// Lets the builder fetch what its substituters have; what it cannot is sent afterwards.
    async fn let_fetch(&self, roots: &BTreeSet<StorePath>) {
        let Some(build) = &self.builder.store.build else {
            return;
        };
        let there = self
            .builder
            .store
            .store
            .valid(roots)
            .await
            .unwrap_or_default();
        let absent = roots.difference(&there).cloned();
        let paths: Vec<_> = absent.map(DerivedPath::Opaque).collect();
        if !paths.is_empty() {
            // A failure is told as a result, or shows again when the rest is sent.
            let _ = build.build(&paths, BuildMode::Normal, self.log).await;
        }
    }

    /// Adds `infos`, references first, to the store here, with content from the builder.
    async fn fetch(&self, infos: Vec<PathInfo>) -> Result<(), Fault> {
        let (local, builder) = (self.shared.local, &self.builder.store.store);
        if let Some(roots) = &local.roots {
            for info in &infos {
                let kept = roots.add_temp_root(&info.path).await;
                kept.map_err(|error| Fault::Final(error.to_line()))?;
            }
        }
        let items = infos.into_iter().map(|info| {
            let nar = self.nar(builder, &info.path);
            Ok((info, nar))
        });
        let items = stream::iter(items.collect::<Vec<_>>()).boxed();
        // They were asked for, and checked as far as that can be; see the module.
        let options = AddOptions::new(SigCheck::Skip);
        let report = local.store.add(items, &options).await;
        let report = report.map_err(|error| self.lost("fetching the outputs", error))?;
        match report.failed.into_iter().next() {
            None => Ok(()),
            Some((path, Error::Refused { words, .. })) => {
                let words = strip_ansi(words.trim());
                let advice = match Failure::of_words(&words).cause {
                    Cause::Untrusted => {
                        format!(", because this user is not trusted; {ADVICE_HERE}")
                    }
                    _ => String::new(),
                };
                Err(Fault::Final(format!(
                    "{path} was built on {}, but {} does not take it ({words}){advice}",
                    self.place.machine.uri, local.store
                )))
            }
            Some((_, error)) => Err(self.lost("fetching the outputs", error)),
        }
    }

    /// The NAR of `path` in `store`; each part of it that goes or comes is a sign of life.
    fn nar(&self, store: &Arc<dyn Store>, path: &StorePath) -> NarStream {
        let (store, path) = (store.clone(), path.clone());
        let pulse = self.place.pulse.clone();
        let nar = nar::lazy(async move { store.nar(&path).await });
        nar.inspect(move |_| pulse.beat()).boxed()
    }

    fn lost(&self, doing: &str, error: Error) -> Fault {
        let uri = &self.place.machine.uri;
        let line = error.to_line();
        Fault::Lost(match line.contains(uri.as_str()) {
            true => format!("{doing}: {line}"),
            false => format!("{doing}: {uri}: {line}"),
        })
    }

    fn refused(&self, words: &str) -> Fault {
        let (uri, words) = (&self.place.machine.uri, strip_ansi(words.trim()));
        match Failure::of_words(&words).cause {
            Cause::Untrusted => Fault::Refused(format!(
                "the account at {uri} is not trusted there ({words}); {ADVICE}"
            )),
            _ => Fault::Lost(format!("{uri} refused: {words}")),
        }
    }

    /// What went wrong between the two stores.
    fn copying(&self, error: Error) -> Fault {
        match error {
            Error::Refused { words, .. } => self.refused(&words),
            // The inputs are not what they should be, wherever they go.
            Error::NotFound { .. }
            | Error::MissingReference { .. }
            | Error::Mismatch { .. }
            | Error::StoreDir { .. }
            | Error::Invalid { .. } => Fault::Final(error.to_line()),
            error => self.lost("sending inputs", error),
        }
    }
}

/// A build that is not built, for this reason.
pub fn failure(words: impl Into<String>) -> BuildResult {
    BuildResult {
        error: words.into(),
        ..BuildResult::new(BuildStatus::MiscFailure)
    }
}

const ADVICE: &str = "add it to trusted-users in the nix.conf of that machine, or sign the inputs \
                      with a key of its trusted-public-keys";
const ADVICE_HERE: &str = "add it to trusted-users in the nix.conf here, or sign the outputs with a \
                           key of the trusted-public-keys here";
