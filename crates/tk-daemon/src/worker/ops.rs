//! The operations: what can be asked, and what is replied.
//!
//! A request is the number of its [`Op`] and the fields of its type, in order. In this table P is a
//! store path, P* a set of them, and OK the integer 1 ([`Done`]); — is nothing at all. What is said
//! of versions is what changes the layout; [`Op::supported`] knows since when an operation is there.
//!
//! | # | Name | Request | Reply |
//! |---|---|---|---|
//! | 1 | IsValidPath | P | bool |
//! | 6 | QueryReferrers | P | P* |
//! | 7 | AddToStore | from 1.25 on: name, method and algorithm, P* references, bool repair, then **framed** the flat bytes (flat, text) or the NAR (nar, git) | P and path info |
//! |  |  | before: name, bool fixed (0 only for a NAR by SHA-256), recursive 0 or 1, algorithm, then a **raw NAR** always | P |
//! | 8 | AddTextToStore | name, text, P* | P |
//! | 9 | BuildPaths | list of derived paths, build mode | OK |
//! | 10 | EnsurePath | P | OK |
//! | 11 | AddTempRoot | P | OK |
//! | 12 | AddIndirectRoot | string: absolute path of a link | OK |
//! | 13 | SyncWithGC | — | OK |
//! | 14 | FindRoots | — | list of string (link) and P; the link is `{censored}` for those who are not trusted |
//! | 18 | QueryDeriver | P | optional P |
//! | 19 | SetOptions | keep failed, keep going, try fallback, verbosity, max build jobs, max silent time, 1, build log (0 shown, 7 not), 0, 0, build cores, use substitutes; from 1.12 on map of overrides | — |
//! | 20 | CollectGarbage | action; with the feature `delete-dead-specific-referrers`: 1 for the whole store, or 0, P*, bool with referrers; without: P*; then bool ignore liveness, max bytes freed, 0, 0, 0 | set of strings, bytes freed, 0 |
//! | 21 | QuerySubstitutablePathInfo | P | 0, or 1, optional deriver, P*, download size, NAR size |
//! | 22 | QueryDerivationOutputs | P | P* |
//! | 23 | QueryAllValidPaths | — | P* |
//! | 26 | QueryPathInfo | P | from 1.17 on: bool valid, and if so the unkeyed path info; before: that, or an error |
//! | 28 | QueryDerivationOutputNames | P | set of output names |
//! | 29 | QueryPathFromHashPart | string of 32 digits | optional P |
//! | 30 | QuerySubstitutablePathInfos | from 1.22 on: map of P to optional content address; before: P* | map of P to optional deriver, P*, download size, NAR size |
//! | 31 | QueryValidPaths | P*, from 1.27 on bool substitute | P* |
//! | 32 | QuerySubstitutablePaths | P* | P* |
//! | 33 | QueryValidDerivers | P | P* |
//! | 34 | OptimiseStore | — | OK |
//! | 35 | VerifyStore | bool check contents, bool repair | bool whether errors are left |
//! | 36 | BuildDerivation | P of the derivation, basic derivation, build mode | build result |
//! | 37 | AddSignatures | P, set of signatures | OK |
//! | 38 | NarFromPath | P | a **raw NAR** |
//! | 39 | AddToStoreNar | P and path info with all fields, bool repair, bool unchecked signatures; then from 1.23 on the **framed** NAR, from 1.21 on **pulled** by messages, before **raw** | — |
//! | 40 | QueryMissing | list of derived paths | P* to build, P* to fetch, P* unknown, download size, NAR size |
//! | 41 | QueryDerivationOutputMap | P | map of output name to optional P |
//! | 42 | RegisterDrvOutput | new: realisation; from 1.31 on: its JSON; before: its id, base name of the path | — |
//! | 43 | QueryRealisation | new: path of the derivation, output name; old: string id | new: 0, or 1 and unkeyed realisation; from 1.31 on: set of JSON; before: P* |
//! | 44 | AddMultipleToStore | bool repair, bool unchecked signatures, then **framed**: count, each P and path info at [`AddMultipleToStore::item_protocol`] and the raw NAR | — |
//! | 45 | AddBuildLog | base name of the derivation, then the **framed** log | OK |
//! | 46 | BuildPathsWithResults | list of derived paths, build mode | list of keyed build results |
//! | 47 | AddPermRoot | P, string: path of the link | string: the same |
//! | 49 | AddTempRoots | P* | OK |
//! | 50 | QueryPathInfos | P* | list of P and path info, of those that are valid |
//! | 1000 | SubmitOutput | single derived path, output name | OK |
//! | 1001 | AddToStoreScanning | name, method and algorithm, then **framed** as for AddToStore | P and path info |
//!
//! 49 and 50 are Determinate Nix's. 3, 4, 5, 16, 24, 25 and 27 are gone, 48 is Determinate Nix's report on
//! running builds, as JSON; none of these is an [`Op`].
//!
//! **Data.** The types hold what comes before the data; [`Data`] says in which way it follows.
//! The client sends the request at once; framed data it sends after that, looking out for an error
//! of the server, upon which it stops and still sends the empty chunk. A server that fails reads
//! framed data to its end before it says so. The NAR of `NarFromPath` comes after the last
//! message, so a server that fails then can only close the connection.
//!
//! **Trust.** For a client that is not trusted, servers refuse repair in 9, 35 and 46, refuse 45, 47, and 36
//! for input-addressed derivations; they do check signatures in 39 and 44, whatever the request says.

pub use crate::wire::{Data, Request, Since};

use super::{UnkeyedPathInfo, Version, WorkerProtocol, features};
use crate::{
    values::{Done, read_derivation},
    wire::{
        Decode, Encode, WireError, WireReader, Writer, by_version, field_by_field, operations,
        requests,
    },
};
use bstr::BString;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use tk_narinfo::{
    PathInfo, Signature,
    build_result::{BuildResult, KeyedBuildResult},
    realisation::{DrvOutput, Realisation, UnkeyedRealisation, legacy},
};
use tk_path::{
    Algorithm, BasicDerivation, ContentAddress, DerivedPath, HashPart, Method, MethodAlgorithm,
    OutputName, SingleDerivedPath, StorePath,
};
use tk_store::{BuildMode, GcAction, GcOptions, GcReport, Missing, Root, log::Level};
use tokio::io::AsyncRead;

operations! {
    /// An operation of the worker protocol.
    Op(WorkerProtocol) {
        IsValidPath = 1, Since::Minor(10);
        QueryReferrers = 6, Since::Minor(10);
        AddToStore = 7, Since::Minor(10);
        AddTextToStore = 8, Since::Minor(10);
        BuildPaths = 9, Since::Minor(10);
        EnsurePath = 10, Since::Minor(10);
        AddTempRoot = 11, Since::Minor(10);
        AddIndirectRoot = 12, Since::Minor(10);
        SyncWithGC = 13, Since::Minor(10);
        FindRoots = 14, Since::Minor(10);
        QueryDeriver = 18, Since::Minor(10);
        SetOptions = 19, Since::Minor(10);
        CollectGarbage = 20, Since::Minor(10);
        QuerySubstitutablePathInfo = 21, Since::Minor(10);
        QueryDerivationOutputs = 22, Since::Minor(10);
        QueryAllValidPaths = 23, Since::Minor(10);
        QueryPathInfo = 26, Since::Minor(10);
        QueryDerivationOutputNames = 28, Since::Minor(10);
        QueryPathFromHashPart = 29, Since::Minor(11);
        QuerySubstitutablePathInfos = 30, Since::Minor(12);
        QueryValidPaths = 31, Since::Minor(12);
        QuerySubstitutablePaths = 32, Since::Minor(12);
        QueryValidDerivers = 33, Since::Minor(13);
        OptimiseStore = 34, Since::Minor(14);
        VerifyStore = 35, Since::Minor(14);
        BuildDerivation = 36, Since::Minor(14);
        AddSignatures = 37, Since::Minor(16);
        NarFromPath = 38, Since::Minor(17);
        AddToStoreNar = 39, Since::Minor(17);
        QueryMissing = 40, Since::Minor(19);
        QueryDerivationOutputMap = 41, Since::Minor(22);
        RegisterDrvOutput = 42, Since::Minor(27);
        QueryRealisation = 43, Since::Minor(27);
        AddMultipleToStore = 44, Since::Minor(32);
        AddBuildLog = 45, Since::Minor(32);
        BuildPathsWithResults = 46, Since::Minor(34);
        AddPermRoot = 47, Since::Minor(36);
        AddTempRoots = 49, Since::Feature(features::ADD_TEMP_ROOTS);
        QueryPathInfos = 50, Since::Feature(features::QUERY_PATH_INFOS);
        SubmitOutput = 1000, Since::Feature(features::SUBMIT_OUTPUT);
        AddToStoreScanning = 1001, Since::Feature(features::ADD_TO_STORE_SCANNING);
    }
}

requests! {
    WorkerProtocol, Op;

    /// Whether a path is valid.
    IsValidPath {
        /// The path that may be valid.
        path: StorePath,
    } -> bool;

    /// Which valid paths refer to a path.
    QueryReferrers {
        /// The path whose referrers are asked for.
        path: StorePath,
    } -> BTreeSet<StorePath>;

    /// Adds a file with this content. [`AddToStore`] does the same from 1.25 on.
    AddTextToStore {
        /// The name of the path to be.
        name: String,
        /// The content of the file, which is sent as a whole within the request.
        text: Bytes,
        /// What it refers to.
        references: BTreeSet<StorePath>,
    } -> StorePath;

    /// Builds or fetches what is asked for; an error if one of it fails.
    BuildPaths {
        /// What is asked for.
        paths: Vec<DerivedPath>,
        /// What becomes of what is there already.
        mode: BuildMode,
    } -> Done;

    /// Fetches a path unless it is there.
    EnsurePath {
        /// The path that is to be valid afterwards.
        path: StorePath,
    } -> Done;

    /// Keeps a path as long as the connection lives.
    AddTempRoot {
        /// The path, which need not be there.
        path: StorePath,
    } -> Done;

    /// Keeps what a link leads to as long as the link is there.
    AddIndirectRoot {
        /// The absolute path of the link.
        link: BString,
    } -> Done;

    /// Waits for a garbage collection to end. Obsolete: temporary roots work during one.
    SyncWithGC {} -> Done;

    /// Asks for all roots of the garbage collector, each with the path that it keeps.
    FindRoots {} -> RootList;

    /// The derivation that made a path. Obsolete: a part of its path info.
    QueryDeriver {
        /// The path whose deriver is asked for.
        path: StorePath,
    } -> Option<StorePath>;

    /// What a substituter knows about a path. Obsolete: see [`QuerySubstitutablePathInfos`].
    QuerySubstitutablePathInfo {
        /// The path that a substituter may have.
        path: StorePath,
    } -> Option<SubstitutablePathInfo>;

    /// The paths of a derivation's outputs. Obsolete: see [`QueryDerivationOutputMap`].
    QueryDerivationOutputs {
        /// The store path of the derivation.
        path: StorePath,
    } -> BTreeSet<StorePath>;

    /// Everything that is valid. The reply may need more than the usual limit, see
    /// [`WireReader::begin_message_of`].
    QueryAllValidPaths {} -> BTreeSet<StorePath>;

    /// What is known about a path; `None` if it is not valid. Before 1.17 that is an error that
    /// contains "is not valid".
    QueryPathInfo {
        /// The path whose metadata is asked for.
        path: StorePath,
    } -> Option<UnkeyedPathInfo>;

    /// The names of a derivation's outputs. Obsolete: see [`QueryDerivationOutputMap`].
    QueryDerivationOutputNames {
        /// The store path of the derivation.
        path: StorePath,
    } -> BTreeSet<OutputName>;

    /// The valid path that begins with these digits.
    QueryPathFromHashPart {
        /// The 32 digits that stand before the name in a store path.
        part: HashPart,
    } -> Option<StorePath>;

    /// Which of the paths a substituter has.
    QuerySubstitutablePaths {
        /// The paths that substituters may have; the reply is a subset of them.
        paths: BTreeSet<StorePath>,
    } -> BTreeSet<StorePath>;

    /// The valid derivations that have a path as an output.
    QueryValidDerivers {
        /// The path whose derivers are asked for.
        path: StorePath,
    } -> BTreeSet<StorePath>;

    /// Makes equal files of the store one.
    OptimiseStore {} -> Done;

    /// Checks the store; true if errors are left.
    VerifyStore {
        /// Also that every path has the hash it should have.
        check_contents: bool,
        /// Also mends what it can.
        repair: bool,
    } -> bool;

    /// Gives a path further signatures.
    AddSignatures {
        /// The valid path that the signatures are about.
        path: StorePath,
        /// Who vouches for it.
        signatures: BTreeSet<Signature>,
    } -> Done;

    /// The NAR of a path, which follows the reply raw.
    NarFromPath {
        /// The path whose NAR is wanted, which must be valid.
        path: StorePath,
    } -> ();

    /// What building or fetching would have to do.
    QueryMissing {
        /// The paths and outputs that would be built or fetched.
        paths: Vec<DerivedPath>,
    } -> Missing;

    /// The outputs of a derivation, with their paths as far as they are known.
    QueryDerivationOutputMap {
        /// The store path of the derivation.
        path: StorePath,
    } -> BTreeMap<OutputName, Option<StorePath>>;

    /// As [`BuildPaths`], but the reply tells about each; no error if one fails.
    BuildPathsWithResults {
        /// What is asked for.
        paths: Vec<DerivedPath>,
        /// What becomes of what is there already.
        mode: BuildMode,
    } -> Vec<KeyedBuildResult>;

    /// Makes a link to a path, which keeps it. The reply is the link.
    AddPermRoot {
        /// The path that the link is to lead to and to keep.
        path: StorePath,
        /// The absolute path of the link.
        link: BString,
    } -> BString;

    /// Keeps paths as long as the connection lives.
    AddTempRoots {
        /// The paths, which need not be there.
        paths: BTreeSet<StorePath>,
    } -> Done;

    /// What is known about many paths at once; those that are not valid are left out.
    QueryPathInfos {
        /// The paths whose metadata is asked for.
        paths: BTreeSet<StorePath>,
    } -> Vec<PathInfo>;

    /// From within a build: what one of its outputs is.
    SubmitOutput {
        /// What the output is.
        path: SingleDerivedPath,
        /// The name of the output that is told about.
        output: OutputName,
    } -> Done;

    /// Adds a path, whose NAR follows.
    AddToStoreNar {
        /// The path and what is to be known about it.
        info: PathInfo,
        /// Whether a path that is there is written again.
        repair: bool,
        /// Whether to take it without signatures. Servers ignore it from clients that are not trusted.
        dont_check_signatures: bool,
    } -> (), |worker| match worker.version.minor {
        23.. => Data::Framed,
        21.. => Data::Pulled,
        _ => Data::RawNar,
    };

    /// Adds many paths, which follow with their NARs, references first. All or none of them need not
    /// hold: what came before a failure may be there.
    AddMultipleToStore {
        /// Whether paths that are there are written again.
        repair: bool,
        /// Whether to take them without signatures. Servers ignore it from clients that are not trusted.
        dont_check_signatures: bool,
    } -> (), |_worker| Data::Framed;

    /// From within a build: adds what follows, with the references that are found in it.
    AddToStoreScanning {
        /// The name of the path to be.
        name: String,
        /// How its content names it.
        method: MethodAlgorithm,
    } -> PathInfo, |_worker| Data::Framed;
}

pub use tk_store::SubstitutablePathInfo;

field_by_field!(
    WorkerProtocol,
    SubstitutablePathInfo {
        deriver,
        references,
        download_size,
        nar_size
    }
);

/// Adds a file or tree, named by its content, which follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddToStore {
    /// The name of the path to be.
    pub name: String,
    /// How its content names it. Before 1.25 only flat and NAR can be said.
    pub method: MethodAlgorithm,
    /// What it refers to. Before 1.25 there can be none.
    pub references: BTreeSet<StorePath>,
    /// Whether a path that is there is written again. Before 1.25 it cannot be asked for.
    pub repair: bool,
}

by_version!(
    WorkerProtocol, Op;
    AddToStore -> AddedContent,
    |worker| if worker.at_least(25) { Data::Framed } else { Data::RawNar },
    |value, to| {
        to.string(&value.name);
        if to.protocol().at_least(25) {
            to.value(&value.method)?;
            to.value(&value.references)?;
            return to.value(&value.repair);
        }
        if value.repair || !value.references.is_empty() {
            return Err(to.unsupported("AddToStore with references or repair"));
        }
        let recursive = match value.method.method {
            Method::Flat => false,
            Method::Nar => true,
            method => return Err(to.unsupported(format_args!("AddToStore by {method}"))),
        };
        let algorithm = value.method.algorithm;
        to.bool(!(recursive && algorithm == Algorithm::Sha256));
        to.bool(recursive);
        to.display(algorithm);
        Ok(())
    },
    |from| {
        let name = from.string().await?;
        if from.protocol().at_least(25) {
            return Ok(AddToStore {
                name,
                method: from.value().await?,
                references: from.value().await?,
                repair: from.bool().await?,
            });
        }
        let fixed = from.bool().await?;
        let known = |number| match number {
            0 => Some(Method::Flat),
            1 => Some(Method::Nar),
            _ => None,
        };
        let method = from.tag("way to add a path", known).await?;
        let algorithm = from.parse("a hash algorithm", 16, str::parse).await?;
        // As Nix does: what is not fixed is a NAR by SHA-256, whatever else is said.
        let method = if fixed { MethodAlgorithm { method, algorithm } } else { MethodAlgorithm {
                method: Method::Nar,
                algorithm: Algorithm::Sha256,
            } };
        Ok(AddToStore {
            name,
            method,
            references: BTreeSet::new(),
            repair: false,
        })
    }
);

/// The reply to [`AddToStore`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddedContent {
    /// All that is known about the path: from 1.25 on.
    Info(PathInfo),
    /// Only the path, which is all that is told before 1.25.
    Path(StorePath),
}

impl AddedContent {
    /// Returns the path that was added, which is told at every version.
    pub fn path(&self) -> &StorePath {
        match self {
            AddedContent::Info(info) => &info.path,
            AddedContent::Path(path) => path,
        }
    }
}

impl Encode<WorkerProtocol> for AddedContent {
    fn encode(&self, to: &mut Writer<WorkerProtocol>) -> Result<(), WireError> {
        match (self, to.protocol().at_least(25)) {
            (AddedContent::Info(info), true) => to.value(info),
            (added, false) => to.value(added.path()),
            (AddedContent::Path(_), true) => Err(to.unsupported("a path without its info")),
        }
    }
}

impl Decode<WorkerProtocol> for AddedContent {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, WorkerProtocol>,
    ) -> Result<Self, WireError> {
        Ok(if from.protocol().at_least(25) {
            AddedContent::Info(from.value().await?)
        } else {
            AddedContent::Path(from.path().await?)
        })
    }
}

/// The roots: each with what it keeps, in no order. Links that are not UTF-8 are shown as well as can
/// be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RootList(pub Vec<Root>);

impl Encode<WorkerProtocol> for RootList {
    fn encode(&self, to: &mut Writer<WorkerProtocol>) -> Result<(), WireError> {
        to.count(self.0.len());
        for root in &self.0 {
            to.string(&root.link);
            to.path(&root.target);
        }
        Ok(())
    }
}

impl Decode<WorkerProtocol> for RootList {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, WorkerProtocol>,
    ) -> Result<Self, WireError> {
        let count = from.count("roots", size_of::<Root>()).await?;
        let mut roots = Vec::new();
        for _ in 0..count {
            let link = from.text("a root", MAX_LINK, MAX_LINK as u64).await?;
            let target = from.path().await?;
            roots.push(Root { link, target });
        }
        Ok(RootList(roots))
    }
}

/// Sets what the server does for this client. Normally the first request; a client that agreed on
/// [`features::DISABLE_SET_OPTIONS`] does not send it.
///
/// A server takes from a client that is not trusted only timeouts, an empty `builders`, and
/// substituters that it trusts anyhow; it warns about the rest. Before 1.12 there can be no overrides.
pub use tk_store::ClientSettings as SetOptions;

by_version!(
    WorkerProtocol, Op;
    SetOptions -> (),
    |_worker| Data::None,
    |value, to| {
        to.bool(value.keep_failed);
        to.bool(value.keep_going);
        to.bool(value.try_fallback);
        to.u64(value.verbosity.as_u64());
        to.u64(value.max_build_jobs.into());
        to.u64(value.max_silent_time);
        to.u64(1);
        let hidden = if value.verbose_build { Level::Error } else { Level::Vomit };
        to.u64(hidden.as_u64());
        to.u64(0);
        to.u64(0);
        to.u64(value.build_cores.into());
        to.bool(value.use_substitutes);
        match (to.protocol().at_least(12), value.overrides.is_empty()) {
            (true, _) => to.value(&value.overrides),
            (false, true) => Ok(()),
            (false, false) => Err(to.unsupported("settings by name")),
        }
    },
    |from| {
        let mut options = SetOptions::default();
        options.keep_failed = from.bool().await?;
        options.keep_going = from.bool().await?;
        options.try_fallback = from.bool().await?;
        options.verbosity = Level::from_u64(from.u64().await?);
        options.max_build_jobs = from.int("the number of jobs").await?;
        options.max_silent_time = from.u64().await?;
        from.u64().await?;
        options.verbose_build = from.u64().await? == Level::Error.as_u64();
        from.u64().await?;
        from.u64().await?;
        options.build_cores = from.int("the number of cores").await?;
        options.use_substitutes = from.bool().await?;
        if from.protocol().at_least(12) {
            options.overrides = from.value().await?;
        }
        Ok(options)
    }
);

/// Finds out what is alive or dead, and deletes if asked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectGarbage {
    /// What to do, and to which paths.
    pub action: GcAction,
    /// The only paths that [`GcAction::DeleteDead`] is about. Needs
    /// [`features::DELETE_DEAD_SPECIFIC_REFERRERS`].
    pub only: Option<BTreeSet<StorePath>>,
    /// Whether what refers to the paths goes too, if it is dead. Needs the same.
    pub with_referrers: bool,
    /// Whether to delete what is alive. Servers refuse it.
    pub ignore_liveness: bool,
    /// Stop after so many bytes have been freed.
    pub max_freed: u64,
}

impl From<GcOptions> for CollectGarbage {
    fn from(options: GcOptions) -> Self {
        CollectGarbage {
            action: options.action,
            only: None,
            with_referrers: false,
            ignore_liveness: options.ignore_liveness,
            max_freed: options.max_freed,
        }
    }
}

by_version!(
    WorkerProtocol, Op;
    CollectGarbage -> GcReport,
    |_worker| Data::None,
    |value, to| {
        let none = BTreeSet::new();
        let (action, paths) = match &value.action {
            GcAction::ReturnLive => (0, value.only.as_ref()),
            GcAction::ReturnDead => (1, value.only.as_ref()),
            GcAction::DeleteDead => (2, value.only.as_ref()),
            GcAction::DeleteSpecific(paths) => (3, Some(paths)),
        };
        to.u64(action);
        if to.protocol().has(features::DELETE_DEAD_SPECIFIC_REFERRERS) {
            to.bool(paths.is_none());
            if let Some(paths) = paths {
                to.value(paths)?;
                to.bool(value.with_referrers);
            }
        } else if value.only.is_some() || value.with_referrers {
            return Err(to.unsupported("a garbage collection of some paths"));
        } else {
            to.value(paths.unwrap_or(&none))?;
        }
        to.bool(value.ignore_liveness);
        to.u64(value.max_freed);
        (0..3).for_each(|_| to.u64(0));
        Ok(())
    },
    |from| {
        let known = |number| (number <= 3).then_some(number);
        let action = from.tag("action of a garbage collection", known).await?;
        let mut with_referrers = false;
        let paths = if !from.protocol().has(features::DELETE_DEAD_SPECIFIC_REFERRERS) {
            let paths = from.value::<BTreeSet<StorePath>>().await?;
            if action != 3 && !paths.is_empty() {
                return Err(from.malformed("paths, for an action on the whole store"));
            }
            (action == 3).then_some(paths)
        } else if from.bool().await? {
            None
        } else {
            let paths = from.value().await?;
            with_referrers = from.bool().await?;
            Some(paths)
        };
        let ignore_liveness = from.bool().await?;
        let max_freed = from.u64().await?;
        for _ in 0..3 {
            from.u64().await?;
        }
        let (action, only) = match (action, paths) {
            (0, only) => (GcAction::ReturnLive, only),
            (1, only) => (GcAction::ReturnDead, only),
            (2, only) => (GcAction::DeleteDead, only),
            (_, Some(paths)) => (GcAction::DeleteSpecific(paths), None),
            (_, None) => return Err(from.malformed("deleting certain paths, but all of them")),
        };
        Ok(CollectGarbage {
            action,
            only,
            with_referrers,
            ignore_liveness,
            max_freed,
        })
    }
);

impl Encode<WorkerProtocol> for GcReport {
    fn encode(&self, to: &mut Writer<WorkerProtocol>) -> Result<(), WireError> {
        to.value(&self.paths)?;
        to.u64(self.bytes_freed);
        to.u64(0);
        Ok(())
    }
}

impl Decode<WorkerProtocol> for GcReport {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, WorkerProtocol>,
    ) -> Result<Self, WireError> {
        let paths = from.value().await?;
        let bytes_freed = from.u64().await?;
        from.u64().await?;
        Ok(GcReport {
            paths,
            bytes_freed,
            failed: Vec::new(),
        })
    }
}

/// The reply of [`QuerySubstitutablePathInfo`]: 0, or 1 and the info.
impl Encode<WorkerProtocol> for Option<SubstitutablePathInfo> {
    fn encode(&self, to: &mut Writer<WorkerProtocol>) -> Result<(), WireError> {
        to.bool(self.is_some());
        self.iter().try_for_each(|info| to.value(info))
    }
}

impl Decode<WorkerProtocol> for Option<SubstitutablePathInfo> {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, WorkerProtocol>,
    ) -> Result<Self, WireError> {
        Ok(if from.bool().await? {
            Some(from.value().await?)
        } else {
            None
        })
    }
}

/// The reply of [`QueryPathInfo`].
impl Encode<WorkerProtocol> for Option<UnkeyedPathInfo> {
    fn encode(&self, to: &mut Writer<WorkerProtocol>) -> Result<(), WireError> {
        match (self, to.protocol().at_least(17)) {
            (None, false) => return Err(to.unsupported("that a path is not valid")),
            (_, false) => {}
            (info, true) => to.bool(info.is_some()),
        }
        self.iter().try_for_each(|info| to.value(info))
    }
}

impl Decode<WorkerProtocol> for Option<UnkeyedPathInfo> {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, WorkerProtocol>,
    ) -> Result<Self, WireError> {
        Ok(if !from.protocol().at_least(17) || from.bool().await? {
            Some(from.value().await?)
        } else {
            None
        })
    }
}

/// What substituters know about paths; those that none has are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuerySubstitutablePathInfos {
    /// The paths, each with the content address that it has in a store with another directory. Before
    /// 1.22 there can be none.
    pub paths: BTreeMap<StorePath, Option<ContentAddress>>,
}

by_version!(
    WorkerProtocol, Op;
    QuerySubstitutablePathInfos -> BTreeMap<StorePath, SubstitutablePathInfo>,
    |_worker| Data::None,
    |value, to| {
        if to.protocol().at_least(22) {
            return to.value(&value.paths);
        }
        to.count(value.paths.len());
        for (path, ca) in &value.paths {
            if ca.is_some() {
                return Err(to.unsupported("content addresses of paths to fetch"));
            }
            to.path(path);
        }
        Ok(())
    },
    |from| {
        let paths = if from.protocol().at_least(22) { from.value().await? } else {
                let paths: BTreeSet<StorePath> = from.value().await?;
                paths.into_iter().map(|path| (path, None)).collect()
            };
        Ok(QuerySubstitutablePathInfos { paths })
    }
);

/// Which of the paths are valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryValidPaths {
    /// The paths to look for; the reply is the subset that is valid.
    pub paths: BTreeSet<StorePath>,
    /// Whether to fetch those that are not there. Before 1.27 it cannot be asked for.
    pub substitute: bool,
}

by_version!(
    WorkerProtocol, Op;
    QueryValidPaths -> BTreeSet<StorePath>,
    |_worker| Data::None,
    |value, to| {
        to.value(&value.paths)?;
        match (to.protocol().at_least(27), value.substitute) {
            (true, substitute) => to.value(&substitute),
            (false, false) => Ok(()),
            (false, true) => Err(to.unsupported("fetching the paths asked for")),
        }
    },
    |from| {
        let paths = from.value().await?;
        let substitute = from.protocol().at_least(27) && from.bool().await?;
        Ok(QueryValidPaths { paths, substitute })
    }
);

/// Builds a derivation that need not be in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildDerivation {
    /// Where the derivation lies, or would lie. It is named by this.
    pub path: StorePath,
    /// The derivation to build, whose inputs are plain store paths.
    pub derivation: BasicDerivation,
    /// What becomes of outputs that are there already.
    pub mode: BuildMode,
}

by_version!(
    WorkerProtocol, Op;
    BuildDerivation -> BuildResult,
    |_worker| Data::None,
    |value, to| {
        to.path(&value.path);
        to.value(&value.derivation)?;
        to.value(&value.mode)
    },
    |from| {
        let path = from.path().await?;
        let derivation = read_derivation(from, &path).await?;
        let mode = from.value().await?;
        Ok(BuildDerivation {
            path,
            derivation,
            mode,
        })
    }
);

field_by_field!(
    WorkerProtocol,
    Missing {
        build,
        substitute,
        unknown,
        download_size,
        nar_size
    }
);

/// Tells what an output turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegisterDrvOutput {
    /// The form with [`features::REALISATION_WITH_PATH`]: the key names the derivation by its path.
    New(Realisation),
    /// Without it. Before 1.31 signatures and dependent realisations cannot be said.
    Legacy(legacy::LegacyRealisation),
}

by_version!(
    WorkerProtocol, Op;
    RegisterDrvOutput -> (),
    |_worker| Data::None,
    |value, to| match (value, form(to.protocol())) {
        (RegisterDrvOutput::New(value), Form::New) => to.value(value),
        (RegisterDrvOutput::Legacy(value), Form::Json) => to.value(value),
        (RegisterDrvOutput::Legacy(value), Form::Paths)
            if value.signatures.is_empty() && value.dependent.is_empty() =>
        {
            to.value(&value.id)?;
            to.string(value.out_path.as_str());
            Ok(())
        }
        _ => Err(to.unsupported("a realisation of this form")),
    },
    |from| Ok(match form(from.protocol()) {
        Form::New => RegisterDrvOutput::New(from.value().await?),
        Form::Json => RegisterDrvOutput::Legacy(from.value().await?),
        Form::Paths => {
            let id = from.value().await?;
            let path = from.parse("a base name", MAX_BASE_NAME, StorePath::parse).await?;
            RegisterDrvOutput::Legacy(legacy::LegacyRealisation::new(id, path))
        }
    })
);

/// What an output turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueryRealisation {
    /// The form with [`features::REALISATION_WITH_PATH`]: the path of a derivation, and an output name.
    New(DrvOutput),
    /// The form without that feature: a hash that stands for the derivation, and an output name.
    Legacy(legacy::LegacyDrvOutput),
}

by_version!(
    WorkerProtocol, Op;
    QueryRealisation -> FoundRealisation,
    |_worker| Data::None,
    |value, to| match (value, form(to.protocol())) {
        (QueryRealisation::New(id), Form::New) => to.value(id),
        (QueryRealisation::Legacy(id), Form::Json | Form::Paths) => to.value(id),
        _ => Err(to.unsupported("an id of an output of this form")),
    },
    |from| Ok(match form(from.protocol()) {
        Form::New => QueryRealisation::New(from.value().await?),
        Form::Json | Form::Paths => QueryRealisation::Legacy(from.value().await?),
    })
);

/// The reply to [`QueryRealisation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundRealisation {
    /// With [`features::REALISATION_WITH_PATH`]: the realisation, or `None` where none is known.
    New(Option<UnkeyedRealisation>),
    /// Without it, from 1.31 on; one or none in practice.
    Legacy(BTreeSet<legacy::LegacyRealisation>),
    /// Before 1.31; one or none in practice.
    Paths(BTreeSet<StorePath>),
}

impl Encode<WorkerProtocol> for FoundRealisation {
    fn encode(&self, to: &mut Writer<WorkerProtocol>) -> Result<(), WireError> {
        match (self, form(to.protocol())) {
            (FoundRealisation::New(found), Form::New) => {
                to.bool(found.is_some());
                found.iter().try_for_each(|found| to.value(found))
            }
            (FoundRealisation::Legacy(found), Form::Json) => to.value(found),
            (FoundRealisation::Paths(found), Form::Paths) => to.value(found),
            _ => Err(to.unsupported("a realisation of this form")),
        }
    }
}

impl Decode<WorkerProtocol> for FoundRealisation {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, WorkerProtocol>,
    ) -> Result<Self, WireError> {
        Ok(match form(from.protocol()) {
            Form::New if from.bool().await? => FoundRealisation::New(Some(from.value().await?)),
            Form::New => FoundRealisation::New(None),
            Form::Json => FoundRealisation::Legacy(from.value().await?),
            Form::Paths => FoundRealisation::Paths(from.value().await?),
        })
    }
}

/// How realisations are written.
enum Form {
    New,
    Json,
    Paths,
}

fn form(worker: &WorkerProtocol) -> Form {
    if worker.has(features::REALISATION_WITH_PATH) {
        Form::New
    } else if worker.at_least(31) {
        Form::Json
    } else {
        Form::Paths
    }
}

impl AddMultipleToStore {
    /// By which protocol the path infos within the data are written. The data is a count, and for
    /// each path its [`PathInfo`] and its raw NAR.
    pub fn item_protocol(worker: &WorkerProtocol) -> WorkerProtocol {
        if worker.has(features::VERSIONED_ADD_TO_STORE_MULTIPLE) {
            worker.clone()
        } else {
            WorkerProtocol::new(worker.dir.clone(), Version::minor(16))
        }
    }
}

/// Adds the log of a build, which follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddBuildLog {
    /// The derivation that was built.
    pub path: StorePath,
}

by_version!(
    WorkerProtocol, Op;
    AddBuildLog -> Done,
    |_worker| Data::Framed,
    |value, to| {
        to.string(value.path.as_str());
        Ok(())
    },
    |from| {
        let path = from.parse("a base name", MAX_BASE_NAME, StorePath::parse).await?;
        Ok(AddBuildLog { path })
    }
);

/// The longest base name of a store path, and more.
const MAX_BASE_NAME: u64 = 512;

/// The longest path of a link that is a root, and more.
const MAX_LINK: usize = 64 << 10;
