//! Every fuzz target over its seeds, and over mutations of them for a while: what must never happen
//! shows on any machine, without a fuzzer. `fuzz/run` looks thoroughly, guided by coverage.
//!
//! `TK_FUZZ_SECONDS` says how long each target runs after its seeds.
// Each target is the root of a program of its own elsewhere.
#![allow(missing_docs, unused_attributes)]

// The targets think that this is the fuzzer's crate.
extern crate self as libfuzzer_sys;

#[path = "../../fuzz_targets/cache_info.rs"]
mod cache_info;
#[path = "../../fuzz_targets/client_session.rs"]
mod client_session;
#[path = "../../fuzz_targets/decompress.rs"]
mod decompress;
#[path = "../../fuzz_targets/derivation.rs"]
mod derivation;
#[path = "../../fuzz_targets/derived_path.rs"]
mod derived_path;
#[path = "../../fuzz_targets/environment.rs"]
mod environment;
#[path = "../../fuzz_targets/flake_lock.rs"]
mod flake_lock;
#[path = "../../fuzz_targets/hash_text.rs"]
mod hash_text;
#[path = "../../fuzz_targets/internal_json.rs"]
mod internal_json;
#[path = "../../fuzz_targets/keys.rs"]
mod keys;
#[path = "../../fuzz_targets/listing.rs"]
mod listing;
#[path = "../../fuzz_targets/local_store.rs"]
mod local_store;
#[path = "../../fuzz_targets/machines.rs"]
mod machines;
#[path = "../../fuzz_targets/nar_decode.rs"]
mod nar_decode;
#[path = "../../fuzz_targets/nar_index.rs"]
mod nar_index;
#[path = "../../fuzz_targets/nar_unpack.rs"]
mod nar_unpack;
#[path = "../../fuzz_targets/narinfo.rs"]
mod narinfo;
#[path = "../../fuzz_targets/path_info_json.rs"]
mod path_info_json;
#[path = "../../fuzz_targets/serve_protocol.rs"]
mod serve_protocol;
#[path = "../../fuzz_targets/server_session.rs"]
mod server_session;
#[path = "../../fuzz_targets/store_path.rs"]
mod store_path;
#[path = "../../fuzz_targets/store_reference.rs"]
mod store_reference;
#[path = "../../fuzz_targets/worker_protocol.rs"]
mod worker_protocol;

mod mutate;

use mutate::Mutations;
use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

type Target = fn(&[u8]);

const TARGETS: &[(&str, Target)] = &[
    ("cache_info", cache_info::run),
    ("client_session", client_session::run),
    ("decompress", decompress::run),
    ("derivation", derivation::run),
    ("derived_path", derived_path::run),
    ("environment", environment::run),
    ("flake_lock", flake_lock::run),
    ("hash_text", hash_text::run),
    ("internal_json", internal_json::run),
    ("keys", keys::run),
    ("listing", listing::run),
    ("local_store", local_store::run),
    ("machines", machines::run),
    ("nar_decode", nar_decode::run),
    ("nar_index", nar_index::run),
    ("nar_unpack", nar_unpack::run),
    ("narinfo", narinfo::run),
    ("path_info_json", path_info_json::run),
    ("serve_protocol", serve_protocol::run),
    ("server_session", server_session::run),
    ("store_path", store_path::run),
    ("store_reference", store_reference::run),
    ("worker_protocol", worker_protocol::run),
];

/// Targets that begin with another's seeds.
const SHARED: &[(&str, &str)] = &[("nar_index", "nar_decode"), ("nar_unpack", "nar_decode")];

#[test]
fn seeds_and_mutations() {
    let results = Mutex::new(BTreeMap::new());
    let turn = AtomicUsize::new(0);
    let work = || {
        while let Some((name, target)) = TARGETS.get(turn.fetch_add(1, Relaxed)) {
            let seeds = seeds(name);
            assert!(!seeds.is_empty(), "{name} has no seeds");
            let result = runs(*target, &seeds, time()).map(|count| (seeds.len(), count));
            results.lock().unwrap().insert(*name, result);
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let mut table = String::new();
    let mut found = Vec::new();
    for (name, result) in results.into_inner().unwrap() {
        match result {
            Ok((seeds, count)) => {
                table.push_str(&format!("  {name:<58} {seeds:>3} seeds {count:>8} runs\n"));
            }
            Err((input, words)) => found.push(format!("{name}: {words}: {}", shown(&input))),
        }
    }
    report(&table);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// A fault that only a mutation of a seed reaches is found, so that all others would be.
#[test]
fn a_planted_fault_is_found() {
    let planted: Target = |data| {
        let text = String::from_utf8_lossy(data);
        if let Some(size) = text.strip_prefix("Size: ") {
            assert!(!size.contains('-'), "a size below zero");
        }
    };
    let seeds = [b"Size: 1234".to_vec(), b"Hash: a-b-c".to_vec()];
    assert_eq!(
        runs(planted, &seeds, Duration::ZERO).unwrap(),
        2,
        "seeds are fine"
    );
    let (_, words) = runs(planted, &seeds, Duration::from_secs(60)).unwrap_err();
    assert!(words.contains("below zero"), "{words}");
}

/// What happens in a store on disk behind the model's back is found.
#[test]
fn a_store_that_lies_is_found() {
    let seed = fs::read(folder("seeds").join("local_store/add-all")).unwrap();
    local_store::play(&seed, |_| {});
    let contents = |root: &Path| {
        let entries = fs::read_dir(root.join("nix/store")).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.is_file()).collect::<Vec<_>>()
    };
    type Plant<'a> = (&'a str, &'a dyn Fn(&Path));
    let plants: [Plant<'_>; 3] = [
        ("something left", &|root| {
            fs::write(root.join("nix/store/left"), "").unwrap();
        }),
        ("lost content", &|root| {
            contents(root)
                .iter()
                .for_each(|path| fs::remove_file(path).unwrap());
        }),
        ("other content", &|root| {
            contents(root).iter().for_each(|path| {
                fs::remove_file(path).unwrap();
                fs::write(path, "other").unwrap();
            });
        }),
    ];
    for (what, plant) in plants {
        let played = catch_unwind(AssertUnwindSafe(|| local_store::play(&seed, plant)));
        assert!(played.is_err(), "{what} is not found");
    }
}

/// No target is left out.
#[test]
fn every_target_is_here() {
    let files = fs::read_dir(folder("fuzz_targets")).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    let files: BTreeSet<_> = files
        .map(|file| file.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let here: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(files, here);
    let manifest = fs::read_to_string(folder("Cargo.toml")).unwrap();
    for name in here {
        assert!(
            manifest.contains(&format!("name = \"{name}\"")),
            "fuzz/Cargo.toml: {name}"
        );
    }
}

/// How often `target` ran; or the input at which it panicked, and its words.
fn runs(target: Target, seeds: &[Vec<u8>], time: Duration) -> Result<u64, (Vec<u8>, String)> {
    let mut count = 0;
    let mut run = |input: &[u8]| {
        count += 1;
        let done = catch_unwind(AssertUnwindSafe(|| target(input)));
        done.map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            (input.to_vec(), text.unwrap_or_default())
        })
    };
    for seed in seeds {
        run(seed)?;
    }
    let begun = Instant::now();
    let mut mutations = Mutations::of(seeds);
    while begun.elapsed() < time {
        run(&mutations.next())?;
    }
    Ok(count)
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let shared = SHARED.iter().find(|(name, _)| *name == target);
    let own = folder("seeds").join(target);
    let folders = [
        Some(own),
        shared.map(|(_, other)| folder("seeds").join(other)),
    ];
    let folders = folders
        .into_iter()
        .flatten()
        .filter(|folder| folder.is_dir());
    let files = folders.flat_map(|folder| fs::read_dir(folder).unwrap());
    let mut files: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
        .into_iter()
        .map(|file| fs::read(file).unwrap())
        .collect()
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

fn time() -> Duration {
    let given = env::var("TK_FUZZ_SECONDS").ok();
    let seconds = given.map(|text| text.parse().expect("TK_FUZZ_SECONDS is a number"));
    Duration::from_secs_f64(seconds.unwrap_or(SECONDS))
}

/// Adds `table` to those at the end of `tests/run`.
fn report(table: &str) {
    println!("{table}");
    if let Some(folder) = env::var_os("TK_REPORTS") {
        let file = Path::new(&folder).join("fuzz targets, their seeds and mutations of them");
        let file = fs::File::create(file).and_then(|mut file| file.write_all(table.as_bytes()));
        file.expect("the folder of reports is writable");
    }
}

fn shown(input: &[u8]) -> String {
    let start = &input[..input.len().min(400)];
    format!("{} bytes: {}", input.len(), start.escape_ascii())
}

/// For each target, unless told otherwise.
const SECONDS: f64 = 1.0;

// At the end, so that targets come by it only through their `use`.
macro_rules! fuzz_target {
    (|$data:ident: &[u8]| $body:block) => {
        pub fn run($data: &[u8]) {
            $body
        }
    };
    (|$data:ident: &str| $body:block) => {
        pub fn run(data: &[u8]) {
            fn of_text($data: &str) {
                $body
            }
            if let Ok(text) = std::str::from_utf8(data) {
                of_text(text);
            }
        }
    };
}
pub(crate) use fuzz_target;
