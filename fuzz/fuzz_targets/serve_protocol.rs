//! Requests and replies of the serve protocol, at any version: read without panic and in little
//! memory; what is accepted is written and read again as the same, in pieces too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::fmt::Debug;
use tk_daemon::{
    serve::{Command, ExportTrailer, Serve, commands},
    wire::{Decode, Encode, Request},
};
use tk_fuzz::protocol::{decode, encode};
use tk_path::StoreDir;

fuzz_target!(|input: &[u8]| {
    let [minor, which, rest @ ..] = input else {
        return;
    };
    let serve = Serve::new(StoreDir::default(), 1 + minor % 8);
    macro_rules! try_all {
        ($($name:ident)*) => {
            match Command::ALL[usize::from(*which) % Command::ALL.len()] {
                $(Command::$name => {
                    check::<commands::$name>(&serve, rest);
                    check::<<commands::$name as Request<Serve>>::Reply>(&serve, rest);
                })*
            }
        };
    }
    try_all! {
        QueryValidPaths QueryPathInfos DumpStorePath ImportPaths BuildPaths QueryClosure
        BuildDerivation AddToStoreNar
    }
    check::<ExportTrailer>(&serve, rest);
});

fn check<T: Encode<Serve> + Decode<Serve> + PartialEq + Debug>(serve: &Serve, input: &[u8]) {
    let read = decode::<_, T>(serve, input, true);
    let Ok(value) = decode::<_, T>(serve, input, false) else {
        assert!(read.is_err());
        return;
    };
    assert_eq!(read.expect("in pieces too"), value);
    let written = encode(serve, &value);
    assert_eq!(
        decode::<_, T>(serve, &written, false).expect("our own"),
        value
    );
}
