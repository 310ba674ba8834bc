//! The small things in memory: what each contender does in one pass, on the inputs of `tk-instructions`.
//!
//! Both `tk-bench compare` and the criterion bench `small` measure these.

use std::hint::black_box;

use nix_archive::nar::{ReferencePattern, ReferenceScanner};
use tk_instructions::codecs::{self, Pass, SMALL};
use tk_instructions::inputs;
use tk_path::scan::RefScanner;
use tk_path::{Algorithm, HashPart, Hasher, StoreDir, StorePath, nix32};

/// One thing that several can do.
pub struct Contest {
    pub job: &'static str,
    /// What it is done on; empty where there is only one thing.
    pub on: String,
    /// How often it is done in one pass.
    pub times: u32,
    /// Bytes that it is done on, each time; none where that means nothing.
    pub bytes: Option<u64>,
    /// Who does it, ours first.
    pub entrants: Vec<Entrant>,
}

/// Somebody who does it.
pub struct Entrant {
    pub name: &'static str,
    pub pass: Pass,
}

/// All of them.
pub fn contests() -> Vec<Contest> {
    let mut all = vec![
        narinfo_parse(),
        alone("narinfo print", "narinfo-print"),
        aterm_parse(),
        alone("ATerm print", "aterm-print"),
        nix32_encode(),
        nix32_decode(),
        store_path(),
        alone("path info encode", "path-info-encode"),
        alone("path info decode", "path-info-decode"),
        sha256(),
    ];
    let noise = inputs::noise(SIZE);
    let digits = inputs::digits(SIZE);
    for (on, data) in [("noise", noise), ("digits", digits)] {
        all.extend(CANDIDATES.map(|count| scan(on, &data, count)));
    }
    all.extend(CANDIDATES.map(scanner));
    all
}

impl Contest {
    fn of(job: &'static str, entrants: Vec<Entrant>) -> Self {
        Self {
            job,
            on: String::new(),
            times: 1,
            bytes: None,
            entrants,
        }
    }
}

impl Entrant {
    fn new(name: &'static str, work: impl FnMut() -> usize + 'static) -> Self {
        let pass = Box::new(work);
        Self { name, pass }
    }

    fn codec(name: &'static str, codec: &str) -> Self {
        let (_, make) = codecs::find(codec).expect("a codec that is there");
        Self { name, pass: make() }
    }
}

/// No rival that may be linked does it.
fn alone(job: &'static str, codec: &str) -> Contest {
    Contest::of(job, vec![Entrant::codec(ours(codec), codec)])
}

fn ours(codec: &str) -> &'static str {
    match codec.split('-').next() {
        Some("narinfo") => "tk-narinfo",
        Some("path") => "tk-daemon",
        _ => "tk-path",
    }
}

fn narinfo_parse() -> Contest {
    let text = inputs::narinfo(0).print(&StoreDir::default());
    let bytes = text.len() as u64;
    let lines = move || memchr::memchr_iter(b'\n', black_box(text.as_bytes())).sum();
    let entrants = vec![
        Entrant::codec("tk-narinfo", "narinfo-parse"),
        Entrant::new(LINES, lines),
    ];
    Contest {
        bytes: Some(bytes),
        ..Contest::of("narinfo parse", entrants)
    }
}

fn aterm_parse() -> Contest {
    let file = inputs::derivation().to_aterm(&StoreDir::default());
    let bytes = file.expect("it has a file").len() as u64;
    Contest {
        bytes: Some(bytes),
        ..alone("ATerm parse", "aterm-parse")
    }
}

/// Hex, by a good library, is what turning bytes into digits costs at least.
fn nix32_encode() -> Contest {
    let mut digits = [0; 64];
    let hex = move || {
        for _ in 0..SMALL {
            data_encoding::HEXLOWER.encode_mut(black_box(&DIGEST), &mut digits);
        }
        digits[0].into()
    };
    let mut text = [0; 52];
    let harmonia = move || {
        for _ in 0..SMALL {
            harmonia_utils_base_encoding::base32::encode_mut(black_box(&DIGEST), &mut text);
        }
        text[0].into()
    };
    let nix_base32 = || {
        let encode = || nix_base32::to_nix_base32(black_box(&DIGEST)).as_bytes()[0];
        (0..SMALL).fold(0, |_, _| encode()).into()
    };
    let entrants = vec![
        Entrant::codec("tk-path", "nix32-encode"),
        Entrant::new("harmonia", harmonia),
        Entrant::new("nix-base32", nix_base32),
        Entrant::new(HEX, hex),
    ];
    Contest {
        times: SMALL,
        ..Contest::of("nix32 encode", entrants)
    }
}

fn nix32_decode() -> Contest {
    let (hex, mut bytes) = (data_encoding::HEXLOWER.encode(&DIGEST), [0; 32]);
    let hex = move || {
        for _ in 0..SMALL {
            let done = data_encoding::HEXLOWER.decode_mut(black_box(hex.as_bytes()), &mut bytes);
            done.expect("valid");
        }
        bytes[0].into()
    };
    let (text, mut bytes) = (nix32::encode(&DIGEST), [0; 32]);
    let digits = text.clone();
    let harmonia = move || {
        for _ in 0..SMALL {
            let digits = black_box(digits.as_bytes());
            let done = harmonia_utils_base_encoding::base32::decode_mut(digits, &mut bytes);
            assert!(done.is_ok(), "valid");
        }
        bytes[0].into()
    };
    let nix_base32 = move || {
        let decode = || nix_base32::from_nix_base32(black_box(&text)).map_or(0, |bytes| bytes[0]);
        (0..SMALL).fold(0, |_, _| decode()).into()
    };
    let entrants = vec![
        Entrant::codec("tk-path", "nix32-decode"),
        Entrant::new("harmonia", harmonia),
        Entrant::new("nix-base32", nix_base32),
        Entrant::new(HEX, hex),
    ];
    Contest {
        times: SMALL,
        ..Contest::of("nix32 decode", entrants)
    }
}

fn store_path() -> Contest {
    let base = inputs::path(1).to_string();
    let parse = move || StorePath::parse(black_box(&base)).map_or(0, |path| path.name().len());
    let mut digits = [0; 64];
    let hex = move || {
        data_encoding::HEXLOWER.encode_mut(black_box(&DIGEST), &mut digits);
        digits[0].into()
    };
    let many = |mut one: Pass| move || (0..SMALL).map(|_| one()).sum::<usize>();
    let entrants = vec![
        Entrant::new("tk-path", many(Box::new(parse))),
        Entrant::new(HEX, many(Box::new(hex))),
    ];
    Contest {
        times: SMALL,
        ..Contest::of("store path parse", entrants)
    }
}

fn sha256() -> Contest {
    let data = inputs::noise(SIZE);
    let hash = move || {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(black_box(&data));
        hasher.finish().as_bytes()[0].into()
    };
    Contest {
        bytes: Some(SIZE as u64),
        ..Contest::of("SHA-256", vec![Entrant::new("tk-path", hash)])
    }
}

/// The data alone: what is looked for is known before, see [`scanner`].
fn scan(on: &str, data: &[u8], count: u32) -> Contest {
    let (ours, theirs) = (data.to_vec(), data.to_vec());
    let (mut scanner, mut archive) = (tk_path(count), nix_archive(count));
    let tk_path = move || {
        scanner.feed(black_box(&ours));
        scanner.found().count()
    };
    let nix_archive = move || {
        archive.scan(black_box(&theirs));
        archive.matched_count()
    };
    let entrants = vec![
        Entrant::new("tk-path", tk_path),
        Entrant::new("nix-archive", nix_archive),
    ];
    Contest {
        on: format!("{on}, {count}"),
        bytes: Some(data.len() as u64),
        ..Contest::of("reference scan", entrants)
    }
}

/// Making a scanner, for data that has nothing in it.
fn scanner(count: u32) -> Contest {
    let entrants = vec![
        Entrant::new("tk-path", move || tk_path(count).found().count()),
        Entrant::new("nix-archive", move || nix_archive(count).matched_count()),
    ];
    Contest {
        on: count.to_string(),
        ..Contest::of("reference scanner made", entrants)
    }
}

fn tk_path(count: u32) -> RefScanner {
    RefScanner::new((0..black_box(count)).map(inputs::candidate))
}

fn nix_archive(count: u32) -> ReferenceScanner {
    let candidates: Vec<_> = (0..black_box(count)).map(inputs::candidate).collect();
    let texts = candidates.iter().map(HashPart::as_str);
    ReferencePattern::new(texts)
        .expect("valid candidates")
        .scanner()
}

/// A bare search for line ends, and hex of 32 bytes: not rivals, but a measure of the machine.
pub const LINES: &str = "memchr lines";
pub const HEX: &str = "hex encoding";

const DIGEST: [u8; 32] = [0xa5; 32];
const CANDIDATES: [u32; 3] = [1, 100, 2000];
/// Bytes; fits in no cache of the processor but the last.
const SIZE: usize = 4 << 20;
