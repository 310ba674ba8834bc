//! Git objects: `nix/libutil/git`, where `X-blob.bin` is the object of `X.bin`, and
//! `tree-ALGORITHM.bin` the one that `tree-ALGORITHM.txt` lists.

use super::{say, unhex};
use crate::support::{Tally, Vectors, equal};
use std::fs;
use tk_path::{
    Algorithm, Hash,
    git::{GitMode, GitTree, blob_header, hash_blob},
};

#[test]
fn git_objects() {
    let vectors = Vectors::find();
    let rows = [
        "blob of bytes",
        "hash of a file",
        "tree, both directions",
        "tree listed as git lists it",
    ];
    let mut tally = Tally::new("golden data: git objects", &rows);
    for object in vectors.files("nix/libutil/git", "-blob.bin") {
        let source = vectors.path(&object.name.replace("-blob.bin", ".bin"));
        let Ok(bytes) = fs::read(source) else {
            continue;
        };
        tally.case(rows[0], &object.name, || {
            let header = blob_header(bytes.len() as u64);
            equal([&header[..], &bytes].concat(), object.bytes.clone())
        });
        tally.case(rows[1], &object.name, || {
            for algorithm in [Algorithm::Sha1, Algorithm::Sha256] {
                let whole = Hash::digest(algorithm, &object.bytes);
                equal(hash_blob(&bytes, algorithm).map_err(say)?, whole)?;
            }
            Ok(())
        });
    }
    for object in vectors.files("nix/libutil/git", ".bin") {
        let stem = object.base().trim_end_matches(".bin");
        let Some(Ok(algorithm)) = stem.strip_prefix("tree-").map(str::parse) else {
            continue;
        };
        let decode = || GitTree::decode(&object.bytes, algorithm).map_err(say);
        tally.case(rows[2], &object.name, || {
            let tree = decode()?;
            equal(tree.encode(), object.bytes.clone())?;
            let hash = Hash::digest(algorithm, &object.bytes);
            equal(tree.hash(algorithm).map_err(say)?, hash)
        });
        let listing = vectors.path(&object.name.replace(".bin", ".txt"));
        if let Ok(listing) = fs::read_to_string(listing) {
            tally.case(rows[3], &object.name, || {
                equal(decode()?, listed(&listing, algorithm)?)
            });
        }
    }
    tally.finish();
}

/// The tree of lines `MODE TYPE HASH<tab>NAME`.
fn listed(text: &str, algorithm: Algorithm) -> Result<GitTree, String> {
    let mut tree = GitTree::new();
    for line in text.lines() {
        let (facts, name) = line.split_once('\t').ok_or("no tab")?;
        let facts: Vec<_> = facts.split(' ').collect();
        let [mode, _, hash] = facts[..] else {
            return Err(format!("not a line of git ls-tree: {line}"));
        };
        let mode = |known: &GitMode| known.digits() == mode.trim_start_matches('0');
        let mode = GitMode::ALL
            .into_iter()
            .find(mode)
            .ok_or("an unknown mode")?;
        let hash = Hash::new(algorithm, &unhex(hash)).map_err(say)?;
        tree.insert(name.as_bytes(), mode, hash).map_err(say)?;
    }
    Ok(tree)
}
