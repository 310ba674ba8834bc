//! Requests, replies and messages of the worker protocol, at any version: read without panic and in
//! little memory; what is accepted is written and read again as the same, in pieces too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::fmt::Debug;
use tk_daemon::{
    wire::{Decode, Encode},
    worker::{
        Capabilities, Features, Op, Request, Version, WorkerProtocol, handshake::ServerHello,
        log::Message, ops,
    },
};
use tk_fuzz::protocol::{decode, encode};
use tk_path::StoreDir;

fuzz_target!(|input: &[u8]| {
    let [minor, which, rest @ ..] = input else {
        return;
    };
    let worker = worker(*minor);
    for part in ["request", "reply"] {
        let request = part == "request";
        macro_rules! try_all {
            ($($name:ident)*) => {
                match Op::ALL[usize::from(*which) % Op::ALL.len()] {
                    $(Op::$name if request => check::<ops::$name>(&worker, rest),
                    Op::$name => check::<<ops::$name as Request<WorkerProtocol>>::Reply>(&worker, rest),)*
                }
            };
        }
        try_all! {
            IsValidPath QueryReferrers AddToStore AddTextToStore BuildPaths EnsurePath AddTempRoot
            AddIndirectRoot SyncWithGC FindRoots QueryDeriver SetOptions CollectGarbage
            QuerySubstitutablePathInfo QueryDerivationOutputs QueryAllValidPaths QueryPathInfo
            QueryDerivationOutputNames QueryPathFromHashPart QuerySubstitutablePathInfos
            QueryValidPaths QuerySubstitutablePaths QueryValidDerivers OptimiseStore VerifyStore
            BuildDerivation AddSignatures NarFromPath AddToStoreNar QueryMissing
            QueryDerivationOutputMap RegisterDrvOutput QueryRealisation AddMultipleToStore
            AddBuildLog BuildPathsWithResults AddPermRoot AddTempRoots QueryPathInfos SubmitOutput
            AddToStoreScanning
        }
    }
    // Texts in messages may be changed: what is no UTF-8, what is too long.
    let _ = decode::<_, Message>(&worker, rest, false);
    check::<ServerHello>(&worker, rest);
});

fn check<T: Encode<WorkerProtocol> + Decode<WorkerProtocol> + PartialEq + Debug>(
    worker: &WorkerProtocol,
    input: &[u8],
) {
    let read = decode::<_, T>(worker, input, true);
    let Ok(value) = decode::<_, T>(worker, input, false) else {
        assert!(read.is_err());
        return;
    };
    assert_eq!(read.expect("in pieces too"), value);
    let written = encode(worker, &value);
    assert_eq!(
        decode::<_, T>(worker, &written, false).expect("our own"),
        value
    );
}

/// One of the versions, the highest with features.
fn worker(byte: u8) -> WorkerProtocol {
    let worker = WorkerProtocol::new(StoreDir::default(), Version::minor(10 + byte % 29));
    match byte {
        ..200 => worker,
        _ => worker.with(Capabilities::latest(Features::all())),
    }
}
