//! One derivation on one machine: inputs there, build, outputs back.

use crate::{
    Connected, Needs, RemoteConfig,
    graph::BuildNode,
    log::{MachineLog, Numbers},
    pool::{MachinePool, MachineState},
    realised::Realised,
};
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
    Abilities, AddOptions, Build, BuildMode, Closure, Error, NarStream, Result, SigCheck, Store,
    closure,
    copy::{self, CopyOptions, Reach},
    log::{Level, LogEvent, LogSink, UNTRUSTED_WORDS, strip_ansi},
    nar,
};

/// What all jobs of one call share.
pub struct SharedJobs<'a> {
    pub local: &'a Abilities,
    pub realised: Realised,
    /// Whether what outputs turned out to be can be told to the store here.
    pub can_tell: bool,
    pub config: &'a RemoteConfig,
    pub pool: MachinePool<'a>,
    pub numbers: Numbers,
    pub log: &'a dyn LogSink,
}

/// A derivation whose inputs are all there.
pub struct BuildJob<'a> {
    path: &'a StorePath,
    node: &'a BuildNode,
    needs: Needs,
    /// Its inputs are paths.
    basic: BasicDerivation,
    /// All outputs, with their paths; `None` if only building tells them.
    outputs: Option<JobOutputs>,
}

type JobOutputs = BTreeMap<OutputName, StorePath>;

/// Why a machine did not do it.
enum JobFault {
    /// It was lost, or is not what it should be: another may do it.
    Lost(String),
    /// It turned inputs down: another may take them.
    Refused(String),
    /// No machine would do it: a failure of the build.
    Final(String),
}

impl<'a> BuildJob<'a> {
    /// `None` if its outputs are known only when it is built, and no machine is for that, or it could
    /// not be told to the store here, which then has to build it itself.
    pub fn new(
        shared: &SharedJobs<'_>,
        path: &'a StorePath,
        node: &'a BuildNode,
        known: impl Fn(&StorePath, &OutputName) -> Option<StorePath>,
    ) -> Option<Self> {
        let (dir, needs) = (shared.local.store.dir(), node.needs());
        if !node.is_known() {
            let can_tell = shared.can_tell && !node.is_impure();
            if !can_tell || !shared.pool.fits(&needs) {
                return None;
            }
        }
        let basic = node.drv.resolve(dir, known).ok()?;
        let output = |(name, how): (&OutputName, &DerivationOutput)| {
            let path = how.path(dir, &basic.name, name).ok()??;
            Some((name.clone(), path))
        };
        let outputs = basic.outputs.iter().map(output).collect();
        Some(BuildJob {
            path,
            node,
            needs,
            outputs,
            basic,
        })
    }

    /// Builds it on the best machine, and on others should that one be lost.
    ///
    /// # Errors
    /// What is no fault of the derivation or of a machine.
    pub async fn run(&self, shared: &SharedJobs<'_>) -> Result<BuildResult> {
        let mut tried = BTreeSet::new();
        let mut faults: Vec<String> = Vec::new();
        loop {
            let Some((i, slot)) = shared.pool.take(&self.needs, &tried).await? else {
                let words = if faults.is_empty() {
                    shared.pool.why_none(&self.needs)
                } else {
                    format!(
                        "no machine is left that could build it: {}",
                        faults.join("; ")
                    )
                };
                return Ok(failure(words));
            };
            tried.insert(i);
            let done = self.attempt(shared, i).await;
            drop(slot);
            let machine = &shared.pool.places[i].machine.uri;
            let why = match done {
                Ok(result) => return Ok(result),
                Err(JobFault::Final(words)) => return Ok(failure(words)),
                Err(JobFault::Refused(words)) => words,
                Err(JobFault::Lost(words)) => {
                    shared.pool.disconnect(i).await;
                    // If it is our own store that is gone, no machine is to blame.
                    shared
                        .local
                        .store
                        .valid(&BTreeSet::from([self.path.clone()]))
                        .await?;
                    words
                }
            };
            let text = format!("{} is not built on {machine}: {why}", self.path.name());
            shared.log.event(LogEvent::message(Level::Warn, text));
            faults.push(why);
        }
    }

    async fn attempt(&self, shared: &SharedJobs<'_>, i: usize) -> Result<BuildResult, JobFault> {
        let place = &shared.pool.places[i];
        let uri = &place.machine.uri;
        let builder = shared.pool.connect(i).await;
        let builder =
            builder.map_err(|why| JobFault::Lost(format!("{uri} cannot be used: {why}")))?;
        let log = MachineLog::new(shared.log, &shared.numbers, uri, &place.pulse);
        let at = At {
            shared,
            place,
            builder: &builder,
            log: &log,
        };
        let watch = shared.pool.watch(i, &builder, self.path, self.make(&at));
        let made = watch.await.map_err(JobFault::Lost);
        if !matches!(
            made,
            Err(_) | Ok(Err(JobFault::Lost(_) | JobFault::Refused(_)))
        ) {
            self.keep_log(&at).await;
        }
        made?
    }

    /// Keeps what the builder wrote where the store here has its logs.
    async fn keep_log(&self, at: &At<'_>) {
        let local = at.shared.local;
        let written = at.log.written(&local.store.dir().path(self.path));
        let (Some(log), Some(logs)) = (written, &local.logs) else {
            return;
        };
        let kept = logs.add_build_log(self.path, nar::from_bytes(log)).await;
        if let Err(error) = kept {
            let (name, why) = (self.path.name(), said(error));
            let text = format!("the log of {name} is not kept here: {why}");
            at.log.say(Level::Talkative, text);
        }
    }

    /// Sees to it that the outputs are there, and brings them here.
    async fn make(&self, at: &At<'_>) -> Result<BuildResult, JobFault> {
        let mut result = if self.is_there(at).await? {
            BuildResult::new(BuildStatus::AlreadyValid)
        } else {
            self.build(at).await?
        };
        if result.is_success() {
            let outputs = match &self.outputs {
                Some(outputs) => outputs.clone(),
                None => self.told(at, &result)?,
            };
            let mut brought = self.receive(at, &outputs).await?;
            if !self.node.is_known() {
                self.tell(at, &brought).await?;
            }
            brought.retain(|name, _| self.node.wanted.contains(name));
            let outputs = brought.into_iter();
            let outputs = outputs.map(|(name, path)| (name, UnkeyedRealisation::new(path)));
            result.outputs = outputs.collect();
        }
        Ok(result)
    }

    /// Whether the machine has all that is wanted.
    async fn is_there(&self, at: &At<'_>) -> Result<bool, JobFault> {
        let Some(outputs) = &self.outputs else {
            return Ok(false);
        };
        let wanted = self.node.wanted.iter().map(|name| outputs[name].clone());
        let wanted: BTreeSet<_> = wanted.collect();
        let there = at.builder.store.store.valid(&wanted).await;
        let there = there.map_err(|error| at.lost("asking it", error))?;
        Ok(there == wanted)
    }

    /// What the machine says that the outputs turned out to be, as far as it can be that.
    fn told(&self, at: &At<'_>, result: &BuildResult) -> Result<JobOutputs, JobFault> {
        let (uri, drv) = (&at.place.machine.uri, &self.node.drv);
        let mut outputs = JobOutputs::new();
        for (name, value) in &result.outputs {
            let is = &value.out_path;
            if !drv.outputs.contains_key(name) || is.name() != name.path_name(&drv.name) {
                let words = format!("{uri} says that {is} is the output {name} of {}", self.path);
                return Err(JobFault::Lost(words));
            }
            outputs.insert(name.clone(), is.clone());
        }
        let mut wanted = self.node.wanted.iter();
        match wanted.find(|name| !outputs.contains_key(*name)) {
            None => Ok(outputs),
            Some(name) => Err(JobFault::Lost(format!(
                "{uri} does not say what the output {name} of {} turned out to be",
                self.path
            ))),
        }
    }

    /// Tells the store here what the outputs turned out to be.
    async fn tell(&self, at: &At<'_>, outputs: &JobOutputs) -> Result<(), JobFault> {
        let (shared, built) = (at.shared, (self.path, &self.node.drv, &self.basic));
        let (local, sign) = (shared.local, &shared.config.sign);
        let told = shared.realised.tell(local, sign, built, outputs).await;
        told.map_err(|error| {
            JobFault::Final(format!(
                "{} was built on {}, but {} does not take what its outputs turned out to be ({})",
                self.path,
                at.place.machine.uri,
                local.store,
                said(error)
            ))
        })
    }

    /// Builds it in the way that the machine allows.
    async fn build(&self, at: &At<'_>) -> Result<BuildResult, JobFault> {
        if at.builder.trusted != Some(false) && !at.place.is_wary() {
            match self.build_one(at).await {
                // One of 2.8 says nothing before.
                Err(JobFault::Refused(_)) => {}
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
    async fn build_one(&self, at: &At<'_>) -> Result<BuildResult, JobFault> {
        at.send(&self.basic.inputs).await?;
        let build = at.build()?;
        let built = build.build_derivation(self.path, &self.basic, BuildMode::Normal, at.log);
        built.await.map_err(|error| at.building(error))
    }

    /// For one that does not: it gets the derivation with its closure, and those inputs that it
    /// may take.
    async fn build_closure(&self, at: &At<'_>) -> Result<BuildResult, JobFault> {
        at.send(&[self.path.clone()].into()).await?;
        at.offer(&self.basic.inputs).await?;
        let build = at.build()?;
        let path = DerivedPath::Built {
            drv: SingleDerivedPath::Opaque(self.path.clone()),
            outputs: OutputsSpec::Names(self.node.wanted.clone()),
        };
        let results = build.build(std::slice::from_ref(&path), BuildMode::Normal, at.log);
        let mut results = results.await.map_err(|error| at.building(error))?;
        match results.pop() {
            Some(keyed) => Ok(keyed.result),
            None => Err(JobFault::Lost(format!(
                "{} returned no build result",
                at.place.machine.uri
            ))),
        }
    }

    /// Brings the outputs that are wanted here, and those of `outputs` that they refer to. Gives which.
    async fn receive(&self, at: &At<'_>, outputs: &JobOutputs) -> Result<JobOutputs, JobFault> {
        let _turn = at.place.receiving.lock().await;
        let (local, builder) = (&at.shared.local.store, &at.builder.store.store);
        let own = |error: Error| JobFault::Final(error.to_line());
        let own_paths: BTreeSet<_> = outputs.values().cloned().collect();
        // An output may refer only to what went into its build, and to outputs of the same derivation.
        let inputs = closure(&**local, self.basic.inputs.iter().cloned()).await;
        let mut allowed: BTreeSet<_> = inputs.map_err(own)?.infos.into_keys().collect();
        allowed.extend(own_paths.iter().cloned());
        let mut found = Closure::default();
        let wanted = self.node.wanted.iter().map(|name| outputs[name].clone());
        let mut wave: BTreeSet<_> = wanted.collect();
        while !wave.is_empty() {
            let told = Closure::only(&**builder, wave).await;
            let told = told.map_err(|error| at.lost("asking for the outputs", error))?;
            if let Some(absent) = told.absent.keys().next() {
                let uri = &at.place.machine.uri;
                let words = format!("{uri} says that it built {absent}, and does not have it");
                return Err(JobFault::Lost(words));
            }
            let references = told.infos.values().flat_map(|info| info.references.clone());
            let references: BTreeSet<_> = references.collect();
            found.infos.extend(told.infos);
            wave = references.intersection(&own_paths).cloned().collect();
            wave.retain(|path| !found.infos.contains_key(path));
        }
        for info in found.infos.values_mut() {
            self.check(at, info, outputs, &allowed)?;
        }
        let order = found.references_first();
        let order = order.map_err(|error| at.lost("reading the outputs", error))?;
        at.fetch(order.into_iter().cloned().collect()).await?;
        let mut brought = outputs.clone();
        brought.retain(|_, path| found.infos.contains_key(path));
        Ok(brought)
    }

    /// Makes `info` what the derivation says of that output.
    ///
    /// # Errors
    /// When it cannot be that.
    fn check(
        &self,
        at: &At<'_>,
        info: &mut PathInfo,
        outputs: &JobOutputs,
        allowed: &BTreeSet<StorePath>,
    ) -> Result<(), JobFault> {
        if let Some(other) = info.references.iter().find(|r| !allowed.contains(*r)) {
            return Err(JobFault::Lost(format!(
                "{} from {} refers to {other}, which did not go into its build",
                info.path, at.place.machine.uri
            )));
        }
        let output = outputs.iter().find(|(_, path)| **path == info.path);
        let how = output.and_then(|(name, _)| self.basic.outputs.get(name));
        info.ca = match how {
            Some(DerivationOutput::Fixed(ca)) => Some(*ca),
            Some(DerivationOutput::Floating(method)) => {
                let ca = info.ca.filter(|ca| ca.method_algorithm() == *method);
                // That the content is that of the address is checked when it comes.
                if ca.is_none() || !info.is_content_addressed(at.shared.local.store.dir()) {
                    return Err(JobFault::Lost(format!(
                        "{} from {} does not follow from its content as the derivation wants it",
                        info.path, at.place.machine.uri
                    )));
                }
                ca
            }
            _ => None,
        };
        info.deriver = Some(self.path.clone());
        // Left as it came, `ultimate` would claim that the store here built the path itself.
        (info.ultimate, info.registration_time) = (false, 0);
        for key in &at.shared.config.sign {
            let signed = info.sign(at.shared.local.store.dir(), key);
            signed.map_err(|error| JobFault::Lost(format!("{}: {error}", info.path)))?;
        }
        Ok(())
    }
}

/// Where a job is being done.
struct At<'a> {
    shared: &'a SharedJobs<'a>,
    place: &'a MachineState,
    builder: &'a Connected,
    log: &'a MachineLog<'a>,
}

impl At<'_> {
    /// What builds at the machine.
    fn build(&self) -> Result<&dyn Build, JobFault> {
        let store = &self.builder.store;
        let none = || JobFault::Refused(store.unsupported("does not build").to_string());
        store.build.as_deref().ok_or_else(none)
    }

    /// Brings `roots` with their closure there.
    async fn send(&self, roots: &BTreeSet<StorePath>) -> Result<(), JobFault> {
        if self.shared.config.builders_substitute {
            self.let_fetch(roots).await;
        }
        let _turn = self.place.sending.lock().await;
        let (src, dst) = (&self.shared.local.store, &self.builder.store.store);
        // Whether that will do is for the builder to say.
        let mut options = CopyOptions::new(SigCheck::Skip);
        options.reach = Reach::Closure;
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
    async fn offer(&self, roots: &BTreeSet<StorePath>) -> Result<(), JobFault> {
        let _turn = self.place.sending.lock().await;
        let (src, dst) = (&self.shared.local.store, &self.builder.store.store);
        let found = closure(&**src, roots.iter().cloned()).await;
        let found = found.map_err(|error| JobFault::Final(error.to_line()))?;
        let all = found.infos.keys().cloned().collect();
        let mut there = dst.valid(&all).await.map_err(|e| self.copying(e))?;
        let mut going = Vec::new();
        let order = found.references_first();
        for info in order.map_err(|error| JobFault::Final(error.to_line()))? {
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
    async fn fetch(&self, infos: Vec<PathInfo>) -> Result<(), JobFault> {
        let (local, builder) = (self.shared.local, &self.builder.store.store);
        if let Some(roots) = &local.roots {
            let paths = infos.iter().map(|info| info.path.clone()).collect();
            let kept = roots.add_temp_roots(&paths).await;
            kept.map_err(|error| JobFault::Final(error.to_line()))?;
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
                let advice = if is_untrusted(&words) {
                    format!(", because this user is not trusted; {ADVICE_HERE}")
                } else {
                    String::new()
                };
                Err(JobFault::Final(format!(
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

    fn lost(&self, doing: &str, error: Error) -> JobFault {
        let uri = &self.place.machine.uri;
        let line = error.to_line();
        JobFault::Lost(if line.contains(uri.as_str()) {
            format!("{doing}: {line}")
        } else {
            format!("{doing}: {uri}: {line}")
        })
    }

    fn building(&self, error: Error) -> JobFault {
        match error {
            Error::Refused { words, .. } => self.refused(&words),
            error => self.lost("building there", error),
        }
    }

    fn refused(&self, words: &str) -> JobFault {
        let (uri, words) = (&self.place.machine.uri, strip_ansi(words.trim()));
        if is_untrusted(&words) {
            JobFault::Refused(format!(
                "the account at {uri} is not trusted there ({words}); {ADVICE}"
            ))
        } else {
            JobFault::Lost(format!("{uri} refused: {words}"))
        }
    }

    /// What went wrong between the two stores.
    fn copying(&self, error: Error) -> JobFault {
        match error {
            Error::Refused { words, .. } => self.refused(&words),
            // The inputs are not what they should be, wherever they go.
            Error::NotFound { .. }
            | Error::MissingReference { .. }
            | Error::Mismatch { .. }
            | Error::StoreDir { .. }
            | Error::Invalid { .. } => JobFault::Final(error.to_line()),
            error => self.lost("sending inputs", error),
        }
    }
}

/// What the other side said or, if it said nothing, what went wrong.
fn said(error: Error) -> String {
    match error {
        Error::Refused { words, .. } => strip_ansi(words.trim()).into_owned(),
        error => error.to_line(),
    }
}

fn is_untrusted(words: &str) -> bool {
    UNTRUSTED_WORDS.iter().any(|said| words.contains(said))
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
