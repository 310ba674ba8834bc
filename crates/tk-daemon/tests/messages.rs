//! Every request and every reply, written and read again at every version: nothing is lost that the
//! version can say, nothing is read beyond the message, and a cut message is an error.

mod common;
#[path = "common/strategies.rs"]
mod strategies;

use common::{decode, encode, run};
use proptest::{
    collection::{btree_map, btree_set, vec},
    option,
    prelude::*,
};
use std::fmt::Debug;
use strategies::*;
use tk_daemon::{
    serve::{self, Command, Serve, commands},
    values::Done,
    wire::{Decode, Encode, Protocol, Request, WireError, WireReader, Writer},
    worker::{
        Capabilities, Features, LATEST, Op, Trust, UnkeyedPathInfo, Version, WorkerProtocol,
        handshake::ServerHello,
        log::{Message, RemoteError},
        ops::{self, AddedContent, FoundRealisation, RootList, Since, SubstitutablePathInfo},
    },
};
use tk_narinfo::{
    build_result::{BuildResult, BuildStatus},
    realisation::UnkeyedRealisation,
};
use tk_path::{Algorithm, Encoding, Hash, OutputName, StoreDir, StorePath};
use tk_store::{
    GcAction, GcReport, Missing, Root,
    log::{ActivityType, Level, LogEvent},
};

/// Every minor version at which something changed, without features, and the latest with all.
fn workers() -> Vec<WorkerProtocol> {
    let dir = StoreDir::new("/opt/store").expect("a directory");
    let minors = [
        10, 12, 16, 17, 18, 19, 20, 21, 22, 23, 25, 26, 27, 28, 29, 30, 31, 32, 34, 35, 36, 37, 38,
    ];
    let plain = minors.map(|minor| WorkerProtocol::new(dir.clone(), Version::minor(minor)));
    let all = WorkerProtocol::new(dir, LATEST).with(Capabilities::latest(Features::all()));
    [all].into_iter().chain(plain).collect()
}

fn serves() -> Vec<Serve> {
    let dir = StoreDir::new("/opt/store").expect("a directory");
    (1..=serve::LATEST)
        .map(|minor| Serve::new(dir.clone(), minor))
        .collect()
}

/// What a version cannot say is refused; what it says is read as the same, but for fields that it
/// does not have. One version at least must say everything.
fn check<P: Protocol, T>(protocols: &[P], value: &T) -> Result<(), TestCaseError>
where
    T: Encode<P> + Decode<P> + PartialEq + Debug,
{
    let mut whole = 0;
    for protocol in protocols {
        let bytes = match encode(protocol, value) {
            Ok(bytes) => bytes,
            Err(WireError::Unsupported { .. }) => continue,
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        };
        let read: T = decode(protocol, &bytes, false)
            .map_err(|e| TestCaseError::fail(format!("{}: {e}: {value:?}", protocol.describe())))?;
        prop_assert_eq!(encode(protocol, &read).expect("it was"), &bytes[..]);
        whole += usize::from(read == *value);
        let slow: T = decode(protocol, &bytes, true).expect("it was");
        prop_assert_eq!(slow, read);
    }
    prop_assert!(whole > 0, "no version says all of {value:?}");
    Ok(())
}

/// Every cut of a message is the end of the connection, and nothing else.
fn check_cuts<P: Protocol, T>(protocols: &[P], value: &T) -> Result<(), TestCaseError>
where
    T: Encode<P> + Decode<P> + Debug,
{
    for protocol in [protocols.first(), protocols.last()].into_iter().flatten() {
        let Ok(bytes) = encode(protocol, value) else {
            continue;
        };
        for end in 0..bytes.len() {
            match decode::<P, T>(protocol, &bytes[..end], false) {
                Err(error) if error.is_end() => {}
                other => return Err(TestCaseError::fail(format!("{end}: {other:?}"))),
            }
        }
    }
    Ok(())
}

fn check_request<Q: Request<WorkerProtocol> + PartialEq>(request: &Q) -> Result<(), TestCaseError> {
    let workers = workers();
    check(&workers, request)?;
    check_cuts(&workers, request)?;
    for worker in &workers {
        let mut writer = Writer::new(worker.clone());
        match request.write(&mut writer) {
            Ok(()) => {
                prop_assert!(Q::OP.supported(worker));
                let bytes = writer.take();
                prop_assert_eq!(&bytes[..8], &Q::OP.number().to_le_bytes()[..]);
                prop_assert_eq!(&bytes[8..], &encode(worker, request).expect("it was")[..]);
            }
            Err(error) => {
                prop_assert!(matches!(error, WireError::Unsupported { .. }), "{error}");
                prop_assert!(writer.is_empty());
            }
        }
    }
    Ok(())
}

fn check_reply<T>(reply: &T) -> Result<(), TestCaseError>
where
    T: Encode<WorkerProtocol> + Decode<WorkerProtocol> + PartialEq + Debug,
{
    let workers = workers();
    check(&workers, reply)?;
    check_cuts(&workers, reply)
}

macro_rules! operations {
    ($($name:ident: $request:expr => $reply:expr;)*) => {
        #[allow(non_snake_case, reason = "tests named like the operations")]
        mod operation {
            use super::*;

            proptest! {
                #![proptest_config(ProptestConfig::with_cases(24))]
                $(
                    #[test]
                    fn $name(request in $request, reply in $reply) {
                        let request: ops::$name = request;
                        let reply: <ops::$name as Request<WorkerProtocol>>::Reply = reply;
                        check_request(&request)?;
                        check_reply(&reply)?;
                    }
                )*
            }
        }

        const TESTED: &[Op] = &[$(Op::$name),*];
    };
}

operations! {
    IsValidPath: path().prop_map(|path| ops::IsValidPath { path }) => any::<bool>();
    QueryReferrers: path().prop_map(|path| ops::QueryReferrers { path }) => paths();
    AddToStore: add_to_store() => prop_oneof![
        path_info().prop_map(AddedContent::Info),
        path().prop_map(AddedContent::Path),
    ];
    AddTextToStore: (".{0,10}", data(), paths()).prop_map(|(name, text, references)| {
        ops::AddTextToStore { name, text, references }
    }) => path();
    BuildPaths: (vec(derived(), 0..4), mode())
        .prop_map(|(paths, mode)| ops::BuildPaths { paths, mode }) => Just(Done);
    EnsurePath: path().prop_map(|path| ops::EnsurePath { path }) => Just(Done);
    AddTempRoot: path().prop_map(|path| ops::AddTempRoot { path }) => Just(Done);
    AddIndirectRoot: bstring().prop_map(|link| ops::AddIndirectRoot { link }) => Just(Done);
    SyncWithGC: Just(ops::SyncWithGC {}) => Just(Done);
    FindRoots: Just(ops::FindRoots {}) => vec((".{0,20}", path()), 0..4).prop_map(|roots| {
        RootList(roots.into_iter().map(|(link, target)| Root { link, target }).collect())
    });
    QueryDeriver: path().prop_map(|path| ops::QueryDeriver { path }) => option::of(path());
    SetOptions: set_options() => Just(());
    CollectGarbage: collect_garbage() => (btree_set(".{0,20}", 0..3), any::<u64>())
        .prop_map(|(paths, bytes_freed)| GcReport {
            paths,
            bytes_freed,
            failed: Vec::new(),
        });
    QuerySubstitutablePathInfo: path()
        .prop_map(|path| ops::QuerySubstitutablePathInfo { path }) => option::of(substitutable());
    QueryDerivationOutputs: path()
        .prop_map(|path| ops::QueryDerivationOutputs { path }) => paths();
    QueryAllValidPaths: Just(ops::QueryAllValidPaths {}) => paths();
    QueryPathInfo: path().prop_map(|path| ops::QueryPathInfo { path })
        => option::of(path_info().prop_map(UnkeyedPathInfo::from));
    QueryDerivationOutputNames: path()
        .prop_map(|path| ops::QueryDerivationOutputNames { path }) => btree_set(output(), 0..3);
    QueryPathFromHashPart: hash_part()
        .prop_map(|part| ops::QueryPathFromHashPart { part }) => option::of(path());
    QuerySubstitutablePathInfos: btree_map(path(), option::of(content_address()), 0..4)
        .prop_map(|paths| ops::QuerySubstitutablePathInfos { paths })
        => btree_map(path(), substitutable(), 0..3);
    QueryValidPaths: (paths(), any::<bool>())
        .prop_map(|(paths, substitute)| ops::QueryValidPaths { paths, substitute }) => paths();
    QuerySubstitutablePaths: paths()
        .prop_map(|paths| ops::QuerySubstitutablePaths { paths }) => paths();
    QueryValidDerivers: path().prop_map(|path| ops::QueryValidDerivers { path }) => paths();
    OptimiseStore: Just(ops::OptimiseStore {}) => Just(Done);
    VerifyStore: any::<(bool, bool)>().prop_map(|(check_contents, repair)| {
        ops::VerifyStore { check_contents, repair }
    }) => any::<bool>();
    BuildDerivation: (derivation(), mode()).prop_map(|((path, derivation), mode)| {
        ops::BuildDerivation { path, derivation, mode }
    }) => build_result();
    AddSignatures: (path(), signatures())
        .prop_map(|(path, signatures)| ops::AddSignatures { path, signatures }) => Just(Done);
    NarFromPath: path().prop_map(|path| ops::NarFromPath { path }) => Just(());
    AddToStoreNar: (path_info(), any::<(bool, bool)>())
        .prop_map(|(info, (repair, dont_check_signatures))| {
            ops::AddToStoreNar { info, repair, dont_check_signatures }
        }) => Just(());
    QueryMissing: vec(derived(), 0..4).prop_map(|paths| ops::QueryMissing { paths })
        => (paths(), paths(), paths(), any::<(u64, u64)>())
        .prop_map(|(build, substitute, unknown, (download_size, nar_size))| Missing {
            build,
            substitute,
            unknown,
            download_size,
            nar_size,
        });
    QueryDerivationOutputMap: path()
        .prop_map(|path| ops::QueryDerivationOutputMap { path })
        => btree_map(output(), option::of(path()), 0..3);
    RegisterDrvOutput: prop_oneof![
        realisation().prop_map(ops::RegisterDrvOutput::New),
        old_realisation().prop_map(ops::RegisterDrvOutput::Legacy),
    ] => Just(());
    QueryRealisation: prop_oneof![
        drv_output().prop_map(ops::QueryRealisation::New),
        old_drv_output().prop_map(ops::QueryRealisation::Legacy),
    ] => prop_oneof![
        option::of(unkeyed_realisation()).prop_map(FoundRealisation::New),
        btree_set(old_realisation(), 0..2).prop_map(FoundRealisation::Legacy),
        paths().prop_map(FoundRealisation::Paths),
    ];
    AddMultipleToStore: any::<(bool, bool)>().prop_map(|(repair, dont_check_signatures)| {
        ops::AddMultipleToStore { repair, dont_check_signatures }
    }) => Just(());
    AddBuildLog: drv().prop_map(|path| ops::AddBuildLog { path }) => Just(Done);
    BuildPathsWithResults: (vec(derived(), 0..4), mode())
        .prop_map(|(paths, mode)| ops::BuildPathsWithResults { paths, mode })
        => vec(keyed_build_result(), 0..3);
    AddPermRoot: (path(), bstring())
        .prop_map(|(path, link)| ops::AddPermRoot { path, link }) => bstring();
    AddTempRoots: paths().prop_map(|paths| ops::AddTempRoots { paths }) => Just(Done);
    QueryPathInfos: paths().prop_map(|paths| ops::QueryPathInfos { paths })
        => vec(path_info(), 0..3);
    SubmitOutput: (single(), output())
        .prop_map(|(path, output)| ops::SubmitOutput { path, output }) => Just(Done);
    AddToStoreScanning: (".{0,10}", method())
        .prop_map(|(name, method)| ops::AddToStoreScanning { name, method }) => path_info();
}

#[test]
fn every_operation_is_tested() {
    assert_eq!(TESTED, Op::ALL);
    for number in 0..2000 {
        let known = Op::ALL.iter().find(|op| op.number() == number);
        assert_eq!(Op::from_u64(number), known.copied());
    }
}

#[test]
fn operations_by_version() {
    let dir = StoreDir::default();
    let names = |worker: &WorkerProtocol| -> Vec<u64> {
        let ops = Op::ALL.iter().filter(|op| !op.supported(worker));
        ops.map(|op| op.number()).collect()
    };
    let featured = [49, 50, 1000, 1001];
    // Nix 2.3 and 2.8, and the latest without and with features.
    let at = |minor| names(&WorkerProtocol::new(dir.clone(), Version::minor(minor)));
    assert_eq!(
        at(21),
        [&[41, 42, 43, 44, 45, 46, 47][..], &featured].concat()
    );
    assert_eq!(at(34), [&[47][..], &featured].concat());
    assert_eq!(at(38), featured);
    let all = WorkerProtocol::new(dir, LATEST).with(Capabilities::latest(Features::all()));
    assert!(names(&all).is_empty());
    for op in Op::ALL {
        assert_eq!(
            matches!(op.since(), Since::Feature(_)),
            featured.contains(&op.number())
        );
    }
}

#[test]
fn options_of_nix() {
    // As nix 2.34 sends them: integers, then the count of overrides.
    let mut options = ops::SetOptions::default();
    options.keep_going = true;
    options.max_build_jobs = 2;
    options.overrides = [("timeout".to_owned(), "7".to_owned())].into();
    let mut bytes = common::words(&[0, 1, 0, 3, 2, 0, 1, 0, 0, 0, 0, 1, 1, 7]);
    bytes.extend_from_slice(b"timeout\0");
    bytes.extend(common::words(&[1]));
    bytes.extend_from_slice(b"7\0\0\0\0\0\0\0");
    let worker = WorkerProtocol::new(StoreDir::default(), LATEST);
    assert_eq!(encode(&worker, &options).expect("options"), bytes);
}

fn add_to_store() -> impl Strategy<Value = ops::AddToStore> {
    (".{0,10}", method(), paths(), any::<bool>()).prop_map(|(name, method, references, repair)| {
        ops::AddToStore {
            name,
            method,
            references,
            repair,
        }
    })
}

fn substitutable() -> impl Strategy<Value = SubstitutablePathInfo> {
    (option::of(drv()), paths(), any::<(u64, u64)>()).prop_map(
        |(deriver, references, (download_size, nar_size))| SubstitutablePathInfo {
            deriver,
            references,
            download_size,
            nar_size,
        },
    )
}

fn set_options() -> impl Strategy<Value = ops::SetOptions> {
    let bools = any::<(bool, bool, bool, bool, bool)>();
    let numbers = any::<(u32, u64, u32)>();
    (bools, level(), numbers, btree_map(".{0,8}", ".{0,8}", 0..3)).prop_map(
        |(bools, verbosity, numbers, overrides)| {
            let mut options = ops::SetOptions::default();
            options.keep_failed = bools.0;
            options.keep_going = bools.1;
            options.try_fallback = bools.2;
            options.verbosity = verbosity;
            options.max_build_jobs = numbers.0;
            options.max_silent_time = numbers.1;
            options.verbose_build = bools.3;
            options.build_cores = numbers.2;
            options.use_substitutes = bools.4;
            options.overrides = overrides;
            options
        },
    )
}

fn collect_garbage() -> impl Strategy<Value = ops::CollectGarbage> {
    let action = prop_oneof![
        Just(GcAction::ReturnLive),
        Just(GcAction::ReturnDead),
        Just(GcAction::DeleteDead),
        paths().prop_map(GcAction::DeleteSpecific),
    ];
    (
        action,
        option::of(paths()),
        any::<(bool, bool)>(),
        any::<u64>(),
    )
        .prop_map(
            |(action, only, (with_referrers, ignore_liveness), max_freed)| {
                let specific = matches!(action, GcAction::DeleteSpecific(_));
                let only = only.filter(|_| !specific);
                ops::CollectGarbage {
                    with_referrers: with_referrers && (specific || only.is_some()),
                    action,
                    only,
                    ignore_liveness,
                    max_freed,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn log(event in log_event()) {
        // Before, there are no activities, and their texts are messages.
        let workers: Vec<_> = workers().into_iter().filter(|w| w.at_least(20)).collect();
        check(&workers, &Message::Log(event.clone()))?;
        check_cuts(&workers, &Message::Log(event))?;
    }

    #[test]
    fn errors(level in level(), message in ".{0,20}", traces in vec(".{0,20}", 0..4)) {
        let error = RemoteError { level, message, traces, exit_status: 1 };
        check_reply(&Message::Error(error))?;
    }

    #[test]
    fn data_messages(length in any::<u64>(), data in data()) {
        check_reply(&Message::Read(length))?;
        check_reply(&Message::Write(data))?;
        check_reply(&Message::Last)?;
    }

    #[test]
    fn hello(version in ".{0,20}", trust in prop::sample::select(TRUST.to_vec())) {
        check_reply(&ServerHello { nix_version: Some(version), trust })?;
    }

    #[test]
    fn serve_commands(
        paths in paths(),
        (drv, derivation) in derivation(),
        derived in vec(old_derived(), 0..3),
        options in build_options(),
        info in path_info(),
        (first, second) in any::<(bool, bool)>(),
    ) {
        use commands::*;
        let path = drv.clone();
        check_command(&QueryValidPaths { lock: first, substitute: second, paths: paths.clone() })?;
        check_command(&QueryPathInfos { paths: paths.clone() })?;
        check_command(&DumpStorePath { path: path.clone() })?;
        check_command(&ImportPaths {})?;
        check_command(&BuildPaths { paths: derived, options: options.clone() })?;
        check_command(&QueryClosure { include_outputs: first, paths })?;
        check_command(&BuildDerivation { path, derivation, options })?;
        check_command(&AddToStoreNar { info })?;
    }

    #[test]
    fn serve_replies(
        paths in paths(),
        infos in vec(path_info(), 0..3),
        result in build_result(),
        exit_status in 1..u64::MAX,
        message in ".{0,20}",
    ) {
        let unkeyed = infos.iter().map(|info| {
            (info.path.clone(), serve::ServePathInfo::from(info.clone()))
        });
        check_serve(&commands::PathInfos(unkeyed.collect()))?;
        check_serve(&commands::BuildOutcome::Success)?;
        check_serve(&commands::BuildOutcome::Failure { exit_status, message })?;
        // There are no processor times here.
        let result = BuildResult {
            cpu_user: None,
            cpu_system: None,
            ..result
        };
        check_serve(&result)?;
        for info in infos {
            check_serve(&serve::ExportTrailer {
                path: info.path,
                references: info.references,
                deriver: info.deriver,
            })?;
        }
        check_serve(&paths)?;
    }

    /// One damaged byte: whatever it is taken for, it is read without panic, and can be written.
    #[test]
    fn damaged(
        (path, derivation) in derivation(),
        info in path_info(),
        result in keyed_build_result(),
        options in set_options(),
        event in log_event(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let build = ops::BuildDerivation { path, derivation, mode: Default::default() };
        damage(&build, at, byte)?;
        damage(&info, at, byte)?;
        damage(&result, at, byte)?;
        damage(&options, at, byte)?;
        damage(&Message::Log(event), at, byte)?;
    }

    /// Anything at all, as anything.
    #[test]
    fn noise(bytes in vec(prop_oneof![3 => 0..9u8, 1 => any::<u8>()], 0..400)) {
        for worker in workers() {
            let _ = decode::<_, Message>(&worker, &bytes, false);
            let _ = decode::<_, ops::BuildDerivation>(&worker, &bytes, false);
            let _ = decode::<_, ops::CollectGarbage>(&worker, &bytes, false);
            let _ = decode::<_, ops::SubmitOutput>(&worker, &bytes, false);
            let _ = decode::<_, FoundRealisation>(&worker, &bytes, false);
            let _ = decode::<_, UnkeyedPathInfo>(&worker, &bytes, false);
        }
    }
}

const TRUST: [Option<Trust>; 3] = [None, Some(Trust::Trusted), Some(Trust::NotTrusted)];

#[test]
fn every_command_is_known() {
    for number in 0..20 {
        let known = Command::ALL
            .iter()
            .find(|command| command.number() == number);
        assert_eq!(Command::from_u64(number), known.copied());
    }
    let numbers: Vec<_> = Command::ALL
        .iter()
        .map(|command| command.number())
        .collect();
    assert_eq!(numbers, [1, 2, 3, 4, 6, 7, 8, 9]);
}

#[test]
fn activities_before_1_20() {
    let worker = WorkerProtocol::new(StoreDir::default(), Version::minor(19));
    let start = |text: &str| {
        Message::Log(LogEvent::Start {
            id: 1,
            level: Level::Info,
            kind: ActivityType::BUILD,
            text: text.to_owned(),
            fields: Vec::new(),
            parent: 0,
        })
    };
    let bytes = encode(&worker, &start("building")).expect("a message");
    let read: Message = decode(&worker, &bytes, false).expect("a message");
    assert_eq!(
        read,
        Message::Log(LogEvent::message(Level::Notice, "building..."))
    );
    for silent in [start(""), Message::Log(LogEvent::Stop { id: 1 })] {
        assert!(encode(&worker, &silent).expect("nothing").is_empty());
    }
}

/// The old request for content: every combination that can be said, by its words.
/// In the old form of realisations the outputs of a build keep the hash under which Nix registers what
/// was built for it elsewhere.
#[test]
fn outputs_keep_their_hash() {
    let hash = Hash::digest(Algorithm::Sha256, b"a derivation modulo its inputs");
    let path = StorePath::from_digest(&[7; 20], "made").unwrap();
    let result = |legacy_hash| BuildResult {
        outputs: [(OutputName::out(), UnkeyedRealisation::new(path.clone()))].into(),
        legacy_hash,
        ..BuildResult::new(BuildStatus::Built)
    };
    let dir = StoreDir::default();
    let worker = WorkerProtocol::new(dir.clone(), Version::minor(38));
    let serve = Serve::new(dir, 7);
    for known in [Some(hash), None] {
        let value = result(known);
        let (one, other) = (encode(&worker, &value), encode(&serve, &value));
        let (one, other) = (one.unwrap(), other.unwrap());
        let digits = hash.to_text(Encoding::Base16).to_string();
        let has = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(&format!("{digits}!out"));
        assert_eq!((has(&one), has(&other)), (known.is_some(), known.is_some()));
        let read: BuildResult = decode(&worker, &one, false).unwrap();
        assert_eq!(read, value);
        let read: BuildResult = decode(&serve, &other, false).unwrap();
        assert_eq!(read, value);
    }
}

#[test]
fn add_to_store_before_1_25() {
    let worker = WorkerProtocol::new(StoreDir::default(), Version::minor(24));
    for (method, fixed, recursive, algorithm) in [
        ("fixed:r:sha256", 0, 1, Algorithm::Sha256),
        ("fixed:sha256", 1, 0, Algorithm::Sha256),
        ("fixed:r:sha1", 1, 1, Algorithm::Sha1),
        ("fixed:md5", 1, 0, Algorithm::Md5),
    ] {
        let request = ops::AddToStore {
            name: "x".to_owned(),
            method: method.parse().expect("a method"),
            references: Default::default(),
            repair: false,
        };
        let bytes = encode(&worker, &request).expect("it can be said");
        let mut reader = WireReader::new(&bytes[..], worker.clone());
        run(async {
            assert_eq!(reader.string().await.expect("a name"), "x");
            assert_eq!(reader.u64().await.expect("fixed"), fixed, "{method}");
            assert_eq!(
                reader.u64().await.expect("recursive"),
                recursive,
                "{method}"
            );
            let name = reader.string().await.expect("an algorithm");
            assert_eq!(name, algorithm.to_string());
        });
    }
}

fn damage<T>(value: &T, at: prop::sample::Index, byte: u8) -> Result<(), TestCaseError>
where
    T: Encode<WorkerProtocol> + Decode<WorkerProtocol> + PartialEq + Debug,
{
    for worker in workers().into_iter().filter(|worker| worker.at_least(20)) {
        let Ok(mut bytes) = encode(&worker, value) else {
            continue;
        };
        if bytes.is_empty() {
            continue;
        }
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let Ok(read) = decode::<_, T>(&worker, &bytes, false) else {
            continue;
        };
        let written = match encode(&worker, &read) {
            Ok(written) => written,
            Err(error) => return Err(TestCaseError::fail(format!("{error}: {read:?}"))),
        };
        prop_assert_eq!(decode::<_, T>(&worker, &written, true).expect("ours"), read);
    }
    Ok(())
}

fn check_command<Q: Request<Serve> + PartialEq>(request: &Q) -> Result<(), TestCaseError> {
    let serves = serves();
    check(&serves, request)?;
    check_cuts(&serves, request)?;
    let mut writer = Writer::new(serves[0].clone());
    request.write(&mut writer).expect("it can be said");
    let bytes = writer.take();
    prop_assert_eq!(&bytes[..8], &Q::OP.number().to_le_bytes()[..]);
    prop_assert_eq!(
        &bytes[8..],
        &encode(&serves[0], request).expect("it was")[..]
    );
    Ok(())
}

fn check_serve<T>(value: &T) -> Result<(), TestCaseError>
where
    T: Encode<Serve> + Decode<Serve> + PartialEq + Debug,
{
    let serves = serves();
    check(&serves, value)?;
    check_cuts(&serves, value)
}

/// Derived paths that the older form can say.
fn old_derived() -> impl Strategy<Value = tk_path::DerivedPath> {
    use tk_path::{DerivedPath, SingleDerivedPath};
    prop_oneof![
        path()
            .prop_filter("a plain file", |path| !path.is_derivation())
            .prop_map(DerivedPath::Opaque),
        (drv(), outputs_spec()).prop_map(|(drv, outputs)| DerivedPath::Built {
            drv: SingleDerivedPath::Opaque(drv),
            outputs,
        }),
    ]
}

fn build_options() -> impl Strategy<Value = serve::ServeBuildOptions> {
    any::<(u64, u64, u64, u64, bool, bool)>().prop_map(|numbers| {
        let mut options = serve::ServeBuildOptions::default();
        options.max_silent_time = numbers.0;
        options.build_timeout = numbers.1;
        options.max_log_size = numbers.2;
        options.repeats = numbers.3;
        options.enforce_determinism = numbers.4;
        options.keep_failed = numbers.5;
        options
    })
}
