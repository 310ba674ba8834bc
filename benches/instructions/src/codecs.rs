//! The pieces of work that are counted.

use std::hint::black_box;

use futures::FutureExt;
use tk_daemon::wire::{Decode, Encode, WireReader, Writer};
use tk_daemon::worker::{LATEST, WorkerProtocol};
use tk_nar::{Event, SliceReader, Validator};
use tk_narinfo::{NarInfo, PathInfo};
use tk_path::scan::RefScanner;
use tk_path::{Derivation, StoreDir, StorePath, nix32};

use crate::inputs;

/// One pass over its input; what it gives keeps the compiler from leaving it out.
pub type Pass = Box<dyn FnMut() -> usize>;

/// A codec under guard: its name, and what makes its input.
pub type Codec = (&'static str, fn() -> Pass);

/// All codecs under guard, in the order of the report.
pub const CODECS: &[Codec] = &[
    ("nar-decode", nar_decode),
    ("nar-encode", nar_encode),
    ("nar-validate", nar_validate),
    ("narinfo-parse", narinfo_parse),
    ("narinfo-print", narinfo_print),
    ("aterm-parse", aterm_parse),
    ("aterm-print", aterm_print),
    ("nix32-encode", nix32_encode),
    ("nix32-decode", nix32_decode),
    ("store-path-parse", store_path_parse),
    ("scan-noise", || scan(inputs::noise(SCANNED))),
    ("scan-candidates", scan_candidates),
    ("scan-digits", || scan(inputs::digits(SCANNED))),
    ("path-info-encode", path_info_encode),
    ("path-info-decode", path_info_decode),
];

/// The codec of that name.
pub fn find(name: &str) -> Option<Codec> {
    CODECS.iter().find(|(known, _)| *known == name).copied()
}

/// A value as the worker protocol writes it.
pub fn encode<T: Encode<WorkerProtocol>>(value: &T) -> Vec<u8> {
    let mut out = Writer::new(worker());
    out.value(value).expect("the protocol can say it");
    out.take().to_vec()
}

/// A value of the worker protocol that is there as a whole, so that nothing waits.
pub fn decode<T: Decode<WorkerProtocol>>(bytes: &[u8]) -> T {
    let mut from = WireReader::new(bytes, worker());
    let value = T::decode(&mut from).now_or_never();
    value
        .expect("all bytes are there")
        .expect("a valid message")
}

/// The newest worker protocol.
pub fn worker() -> WorkerProtocol {
    WorkerProtocol::new(StoreDir::default(), LATEST)
}

fn nar_decode() -> Pass {
    let archive = inputs::nar(FOLDERS);
    Box::new(move || {
        let (mut events, mut files) = (SliceReader::new(black_box(&archive)), 0);
        while let Some(event) = events.next_event().expect("valid") {
            files += usize::from(matches!(event, Event::Regular { .. }));
        }
        files
    })
}

fn nar_encode() -> Pass {
    Box::new(|| inputs::nar(black_box(FOLDERS)).len())
}

fn nar_validate() -> Pass {
    let archive = inputs::nar(FOLDERS);
    Box::new(move || {
        let mut validator = Validator::new();
        validator.feed(black_box(&archive)).expect("valid");
        validator.finish().expect("whole");
        archive.len()
    })
}

fn narinfo_parse() -> Pass {
    let (dir, text) = (StoreDir::default(), narinfo_text());
    Box::new(move || {
        let parsed = NarInfo::parse(&dir, black_box(&text)).expect("valid");
        parsed.info.references.len()
    })
}

fn narinfo_print() -> Pass {
    let (dir, narinfo) = (StoreDir::default(), inputs::narinfo(0));
    Box::new(move || black_box(&narinfo).print(&dir).len())
}

fn narinfo_text() -> String {
    inputs::narinfo(0).print(&StoreDir::default())
}

fn aterm_parse() -> Pass {
    let (dir, drv) = (StoreDir::default(), inputs::derivation());
    let file = drv.to_aterm(&dir).expect("it has a file");
    Box::new(move || {
        let parsed = Derivation::parse_aterm(&dir, &drv.name, black_box(&file));
        parsed.expect("valid").env.len()
    })
}

fn aterm_print() -> Pass {
    let (dir, drv) = (StoreDir::default(), inputs::derivation());
    Box::new(move || black_box(&drv).to_aterm(&dir).expect("it has a file").len())
}

fn nix32_encode() -> Pass {
    let (digest, mut digits) = ([0xa5; 32], [0; 52]);
    Box::new(move || {
        for _ in 0..SMALL {
            nix32::encode_into(black_box(&digest), &mut digits);
        }
        digits[0].into()
    })
}

fn nix32_decode() -> Pass {
    let (text, mut bytes) = (nix32::encode(&[0xa5; 32]), [0; 32]);
    Box::new(move || {
        for _ in 0..SMALL {
            nix32::decode_into(black_box(text.as_bytes()), &mut bytes).expect("valid");
        }
        bytes[0].into()
    })
}

/// Base names, and with the store's folder.
fn store_path_parse() -> Pass {
    let dir = StoreDir::default();
    let base = inputs::path(1).to_string();
    let whole = dir.path(&inputs::path(2));
    Box::new(move || {
        let parse = || {
            let base = StorePath::parse(black_box(&base)).expect("valid");
            let whole = dir.parse(black_box(&whole)).expect("valid");
            base.name().len() + whole.name().len()
        };
        (0..SMALL).map(|_| parse()).sum()
    })
}

fn scan(data: Vec<u8>) -> Pass {
    let candidates: Vec<_> = (0..CANDIDATES).map(inputs::candidate).collect();
    Box::new(move || {
        let mut scanner = RefScanner::new(candidates.iter().copied());
        scanner.feed(black_box(&data));
        scanner.found().count()
    })
}

/// What scanning costs before it begins. These candidates begin alike.
fn scan_candidates() -> Pass {
    let candidates: Vec<_> = (0..500).map(inputs::candidate).collect();
    Box::new(move || {
        let scanner = RefScanner::new(black_box(&candidates).iter().copied());
        black_box(scanner).found().count()
    })
}

fn path_info_encode() -> Pass {
    let info = inputs::path_info(0);
    Box::new(move || encode(black_box(&info)).len())
}

fn path_info_decode() -> Pass {
    let bytes = encode(&inputs::path_info(0));
    Box::new(move || decode::<PathInfo>(black_box(&bytes)).references.len())
}

/// Of 50 files each.
const FOLDERS: usize = 4;
/// How often the smallest things (nix32, store paths) are done in one pass.
pub const SMALL: u32 = 100;
const CANDIDATES: u32 = 100;
/// Bytes.
const SCANNED: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_codec_has_a_name_of_its_own_and_does_its_work() {
        let mut names: Vec<_> = CODECS.iter().map(|(name, _)| *name).collect();
        for (name, make) in CODECS {
            let mut pass = make();
            let first = pass();
            assert_eq!(pass(), first, "{name} does the same each time");
            assert!(
                first > 0 || name.starts_with("scan"),
                "{name} gives {first}"
            );
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CODECS.len());
    }

    #[test]
    fn codecs_are_found_by_name() {
        assert!(find("nar-decode").is_some());
        assert!(find("nar").is_none());
    }
}
