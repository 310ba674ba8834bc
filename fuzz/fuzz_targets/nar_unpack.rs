//! Unpacking makes what the archive says or nothing, and nothing elsewhere; what it made dumps as the same archive.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::{fs, num::NonZeroUsize, path::Path, sync::OnceLock};
use tempfile::TempDir;
use tk_nar::fs::{CaseHack, DumpOptions, UnpackError, UnpackMetadata, UnpackOptions};
use tk_nar::{Decoder, Event, NarError};

fuzz_target!(|data: &[u8]| {
    static ROOM: OnceLock<TempDir> = OnceLock::new();
    let room = ROOM.get_or_init(|| {
        // Never dropped: fuzz/run removes the folder that this is in.
        let room = TempDir::with_prefix("tk-fuzz-").expect("a temporary folder");
        fs::write(room.path().join("canary"), "").expect("canary");
        room
    });
    // Every way in turn for archives that mutate, the same way each time for the same archive.
    let turn = data.iter().map(|&b| usize::from(b)).sum::<usize>();
    let threads = NonZeroUsize::new(1 + turn % 3).expect("one at least");
    let case_hack = [CaseHack::Off, CaseHack::On][turn / 3 % 2];
    let metadata = [UnpackMetadata::Canonical, UnpackMetadata::Plain][turn / 6 % 2];
    let dest = room.path().join("dest");

    let (length, hacked) = judge(data);
    let mut options = UnpackOptions::default();
    (options.case_hack, options.metadata, options.threads) = (case_hack, metadata, threads);
    let unpacked = tk_nar::fs::unpack(data, &dest, &options);
    assert_untouched(room.path());
    match unpacked {
        Ok(bytes) => {
            assert_eq!(length.expect("it is well-formed"), bytes);
            if case_hack == CaseHack::Off || !hacked {
                assert_dumps_as(&data[..bytes as usize], &dest, case_hack, threads);
            }
            tk_nar::fs::remove_tree(&dest).expect("it can be removed");
        }
        Err(error) => {
            let collides = matches!(error, UnpackError::CaseCollision { .. });
            assert!(length.is_err() || (collides && hacked), "{error:?}");
        }
    }
    assert!(fs::symlink_metadata(&dest).is_err(), "something is left");
});

/// The archive's length, and whether a name in it looks like one that the case hack made.
fn judge(data: &[u8]) -> (Result<u64, NarError>, bool) {
    let mut decoder = Decoder::new();
    let (mut rest, mut hacked) = (data, false);
    loop {
        match decoder.feed(rest) {
            Ok(fed) => {
                rest = &rest[fed.consumed..];
                match fed.event {
                    Some(Event::Entry { name }) => hacked |= has_suffix(name),
                    Some(_) => {}
                    None => break,
                }
            }
            Err(error) => return (Err(error), hacked),
        }
    }
    (decoder.finish().map(|()| decoder.offset()), hacked)
}

fn has_suffix(name: &[u8]) -> bool {
    let suffix = b"~nix~case~hack~";
    // In any case: where the hack is for, `~nIx~` is the same name as `~nix~`.
    name.windows(suffix.len())
        .any(|part| part.eq_ignore_ascii_case(suffix))
}

fn assert_untouched(room: &Path) {
    for entry in fs::read_dir(room).expect("the folder is there") {
        let entry = entry.expect("an entry");
        let name = entry.file_name();
        assert!(name == "dest" || name == "canary", "outside: {name:?}");
        if name == "canary" {
            assert_eq!(entry.metadata().expect("canary").len(), 0);
        }
    }
}

fn assert_dumps_as(nar: &[u8], tree: &Path, case_hack: CaseHack, threads: NonZeroUsize) {
    let mut dumped = Vec::new();
    let mut options = DumpOptions::default();
    (options.case_hack, options.threads) = (case_hack, threads);
    tk_nar::fs::dump(tree, &options, &mut dumped).expect("it can be dumped");
    assert_eq!(dumped, nar);
}
