//! NARs: every `*.nar` and `*.nar.hex`, judged by `derived/nar-results.json`; the files and trees
//! beside some of them; listings.

use super::{say, text, unhex};
use crate::support::{Golden, Tally, Vectors, equal};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    io::{Cursor, Read},
    path::Path,
};
use tempfile::TempDir;
use tk_nar::{
    Decoder, Encoder, Event, Index, Listing, ListingNode, NarError, NarReader, SliceReader,
    Validator,
    fs::{CaseHack, DumpOptions, UnpackMetadata, UnpackOptions, dump, unpack},
};
use tk_path::{Algorithm, Hash};

#[test]
fn nars() {
    let vectors = Vectors::find();
    let mut tally = Tally::new("golden data: NAR", &ROWS);
    let results = vectors.json("derived/nar-results.json").unwrap_or_default();
    for (file, nar) in archives(&vectors) {
        tally.case(AGREE, &file, || every_way_agrees(&nar));
        match results.get(&file) {
            Some(expected) if expected["valid"] == true => {
                let used = expected["consumed"].as_u64().expect("bytes") as usize;
                tally.equal(
                    LENGTH,
                    &file,
                    events(&nar).map(|(_, n)| n).map_err(say),
                    Ok(used),
                );
                valid(&mut tally, &file, &nar[..used], expected);
            }
            Some(expected) => hostile(&mut tally, &file, &nar, expected),
            None => {}
        }
    }
    tally.finish();
}

#[test]
fn nars_and_their_sources() {
    let vectors = Vectors::find();
    let rows = [SOURCE, PLAIN, MEMBER, TREE, SHALLOW];
    let mut tally = Tally::new("golden data: NAR and its source", &rows);
    for file in vectors.below("", ".nar") {
        let source = vectors.path(&file.name.replace(".nar", ".in"));
        if source.exists() {
            tally.case(SOURCE, &file.name, || has_contents_of(&file.bytes, &source));
        }
        // attic/X beside attic/X.nar: the very file.
        let plain = vectors.path(file.name.trim_end_matches(".nar"));
        if plain.is_file() {
            tally.case(PLAIN, &file.name, || {
                equal(packed(&plain)?, file.bytes.clone())
            });
        }
        for member in vectors.below(folder(&file.name), "") {
            // NAME.nar_bin_arp: /bin/arp inside of NAME.nar.
            if let Some(inside) = member.base().strip_prefix(&format!("{}_", file.base())) {
                tally.case(MEMBER, &member.name, || {
                    let path = inside.replace('_', "/");
                    equal(
                        read_member(&file.bytes, path.as_bytes())?,
                        member.bytes.clone(),
                    )
                });
            }
        }
    }
    for file in vectors.files("nix/libutil/memory-source-accessor", ".json") {
        tally.case(TREE, &file.name, || {
            let mut encoder = Encoder::new(Vec::new());
            encode_tree(&mut encoder, &file.json())?;
            let nar = encoder.finish().map_err(say)?;
            equal(tree(&nar)?, file.json())
        });
    }
    for file in vectors.files("nix/libutil/nar-listing", ".json") {
        tally.case(SHALLOW, &file.name, || {
            let node = ListingNode::from_json(file.text()).map_err(say)?;
            let printed: Value = serde_json::from_str(&node.to_json()).map_err(say)?;
            equal(printed, file.json())
        });
    }
    tally.finish();
}

#[test]
fn case_hack() {
    let vectors = Vectors::find();
    let rows = [
        "restored under new names",
        "dumped back the same",
        "collision or malformed, refused",
    ];
    let mut tally = Tally::new("golden data: case hack", &rows);
    for file in vectors.files("nix/functional", ".nar") {
        let (temp, options) = (TempDir::new().expect("a folder"), unpacking(CaseHack::On));
        let dest = temp.path().join("x");
        let done = unpack(&file.bytes[..], &dest, &options);
        if file.base().contains("collision") || events(&file.bytes).is_err() {
            tally.equal(rows[2], &file.name, done.is_err(), true);
            continue;
        }
        tally.case(rows[1], &file.name, || {
            done.map_err(say)?;
            let mut nar = Vec::new();
            let mut options = DumpOptions::default();
            options.case_hack = CaseHack::On;
            dump(&dest, &options, &mut nar).map_err(say)?;
            equal(nar, file.bytes.clone())
        });
        if file.base() == "case.nar" {
            tally.case(rows[0], &file.name, || {
                let found = below(&dest);
                let missing: Vec<_> = HACKED
                    .iter()
                    .filter(|name| !found.iter().any(|f| f.ends_with(*name)))
                    .collect();
                equal(missing, Vec::new())
            });
        }
    }
    tally.finish();
}

/// `case.nar` restored with the hack holds these.
const HACKED: [&str; 6] = [
    "/xt_CONNMARK.h",
    "/xt_CONNmark.h~nix~case~hack~1",
    "/xt_connmark.h~nix~case~hack~2",
    "/x/FOO",
    "/x/Foo~nix~case~hack~1",
    "/x/foo~nix~case~hack~2/a~nix~case~hack~1/foo",
];

/// A valid archive: read in every way, written again, unpacked and packed, indexed.
fn valid(tally: &mut Tally, file: &str, nar: &[u8], expected: &Value) {
    tally.case(HASH, file, || {
        let hash = Hash::digest(Algorithm::Sha256, nar).to_string();
        equal(hash.as_str(), text(expected, "narHash"))
    });
    tally.case(LISTING, file, || {
        let listing = Listing::read(nar).map_err(say)?;
        equal(&root_of(&listing)?, &expected["listing"])?;
        equal(
            Listing::from_json(&listing.to_json()).map_err(say)?,
            listing,
        )
    });
    tally.case(ENCODED, file, || {
        let (events, _) = events(nar).map_err(say)?;
        equal(encode(&events)?, nar.to_vec())
    });
    tally.case(UNPACKED, file, || {
        let temp = TempDir::new().map_err(say)?;
        for (i, metadata) in [UnpackMetadata::Canonical, UnpackMetadata::Plain]
            .into_iter()
            .enumerate()
        {
            let dest = temp.path().join(i.to_string());
            let mut options = unpacking(CaseHack::Off);
            options.metadata = metadata;
            equal(unpack(nar, &dest, &options).map_err(say)?, nar.len() as u64)?;
            equal(packed(&dest)?, nar.to_vec())?;
        }
        tk_nar::fs::remove_tree(&temp.path().join("0")).map_err(say)
    });
    tally.case(INDEXED, file, || {
        for (path, contents) in members(nar)? {
            if !path.is_empty() {
                equal(read_member(nar, &path)?, contents)?;
            }
        }
        Ok(())
    });
    tally.case(CUT, file, || {
        for end in cuts(nar.len()) {
            match events(&nar[..end]) {
                Err(e) if e.is_unexpected_end() && e.offset <= end as u64 => {}
                other => return Err(format!("cut at {end}: {other:?}")),
            }
        }
        Ok(())
    });
}

/// An archive that must be refused, everywhere, with a place in it; and leave nothing outside.
fn hostile(tally: &mut Tally, file: &str, nar: &[u8], expected: &Value) {
    tally.case(REFUSED, file, || match events(nar) {
        Ok(_) => Err("accepted".into()),
        Err(e) => {
            equal(e.is_unexpected_end(), expected["kind"] == "truncated")?;
            equal(e.offset <= nar.len() as u64, true)
        }
    });
    tally.case(NOT_UNPACKED, file, || {
        let temp = TempDir::new().map_err(say)?;
        let dest = temp.path().join("x");
        equal(unpack(nar, &dest, &unpacking(CaseHack::Off)).is_err(), true)?;
        let outside = fs::read_dir(temp.path()).map_err(say)?.flatten();
        equal(outside.filter(|entry| entry.file_name() != "x").count(), 0)
    });
}

/// Slices, readers that give one byte at a time, single bytes pushed, the validator and the
/// listing: all come to the same end.
fn every_way_agrees(nar: &[u8]) -> Result<(), String> {
    let slice = verdict(events(nar));
    equal(verdict(read_events(nar)), slice.clone())?;
    equal(verdict(read_events(OneByte(nar))), slice.clone())?;
    equal(verdict(pushed(nar)), slice.clone())?;
    let listed = Listing::read(OneByte(nar)).map(drop);
    equal(verdict(listed), slice.clone().map(drop))?;
    let mut validator = Validator::new();
    let used = slice.as_ref().map_or(nar.len(), |(_, used)| *used);
    let mut valid = Ok(());
    for byte in nar[..used].chunks(1) {
        valid = valid.and_then(|()| validator.feed(byte));
    }
    let length = valid.and_then(|()| validator.finish());
    equal(verdict(length), slice.map(|(_, used)| used as u64))
}

/// A result that can be compared: where an archive is wrong, and in which words.
fn verdict<T>(result: Result<T, NarError>) -> Result<T, (u64, String)> {
    result.map_err(|e| (e.offset, e.to_string()))
}

/// An event that holds its texts; all contents of a file are one.
#[derive(Debug, Clone, PartialEq)]
enum Owned {
    Directory,
    Entry(Vec<u8>),
    LeaveDirectory,
    Regular(bool, u64, u64),
    Contents(Vec<u8>),
    EndRegular,
    Symlink(Vec<u8>),
    End,
}

/// The events of an archive, and its length.
type Events = Result<(Vec<Owned>, usize), NarError>;

fn push(events: &mut Vec<Owned>, event: Event<'_>) {
    let owned = match event {
        Event::Directory => Owned::Directory,
        Event::Entry { name } => Owned::Entry(name.to_vec()),
        Event::LeaveDirectory => Owned::LeaveDirectory,
        Event::Regular {
            executable,
            size,
            offset,
        } => Owned::Regular(executable, size, offset),
        Event::Contents(piece) => match events.last_mut() {
            Some(Owned::Contents(so_far)) => return so_far.extend_from_slice(piece),
            _ => Owned::Contents(piece.to_vec()),
        },
        Event::EndRegular => Owned::EndRegular,
        Event::Symlink { target } => Owned::Symlink(target.to_vec()),
        Event::End => Owned::End,
    };
    events.push(owned);
}

fn events(nar: &[u8]) -> Events {
    let (mut reader, mut events) = (SliceReader::new(nar), Vec::new());
    while let Some(event) = reader.next_event()? {
        push(&mut events, event);
    }
    Ok((events, reader.offset() as usize))
}

fn read_events(nar: impl Read) -> Events {
    let (mut reader, mut events) = (NarReader::new(nar), Vec::new());
    while let Some(event) = reader.next_event()? {
        push(&mut events, event);
    }
    Ok((events, reader.offset() as usize))
}

fn pushed(nar: &[u8]) -> Events {
    let (mut decoder, mut events) = (Decoder::new(), Vec::new());
    for mut byte in nar.chunks(1) {
        loop {
            let fed = decoder.feed(byte)?;
            byte = &byte[fed.consumed..];
            match fed.event {
                Some(event) => push(&mut events, event),
                None => break,
            }
        }
        if decoder.is_done() {
            break;
        }
    }
    decoder.finish()?;
    Ok((events, decoder.offset() as usize))
}

fn encode(events: &[Owned]) -> Result<Vec<u8>, String> {
    let mut encoder = Encoder::new(Vec::new());
    for event in events {
        match event {
            Owned::Directory => encoder.directory(),
            Owned::Entry(name) => encoder.entry(name),
            Owned::LeaveDirectory => encoder.leave(),
            Owned::Regular(executable, size, _) => encoder.regular(*executable, *size),
            Owned::Contents(bytes) => encoder.contents(bytes),
            Owned::EndRegular | Owned::End => Ok(()),
            Owned::Symlink(target) => encoder.symlink(target),
        }
        .map_err(say)?;
    }
    encoder.finish().map_err(say)
}

/// Path and contents of every regular file.
fn members(nar: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, String> {
    let (mut path, mut found) = (Vec::new(), BTreeMap::new());
    let mut name = Vec::new();
    for event in events(nar).map_err(say)?.0 {
        match event {
            Owned::Entry(next) => name = next,
            Owned::Directory => path.push(std::mem::take(&mut name)),
            Owned::LeaveDirectory => drop(path.pop()),
            Owned::Regular(..) => {
                let mut whole = path.clone();
                whole.push(name.clone());
                found.insert(whole[1.min(whole.len())..].join(&b'/'), Vec::new());
            }
            Owned::Contents(bytes) => {
                let mut whole = path.clone();
                whole.push(name.clone());
                found.insert(whole[1.min(whole.len())..].join(&b'/'), bytes);
            }
            _ => {}
        }
    }
    Ok(found)
}

fn read_member(nar: &[u8], path: &[u8]) -> Result<Vec<u8>, String> {
    let mut index = Index::open(Cursor::new(nar)).map_err(say)?;
    let mut contents = Vec::new();
    index
        .read(path)
        .map_err(say)?
        .read_to_end(&mut contents)
        .map_err(say)?;
    Ok(contents)
}

fn packed(path: &Path) -> Result<Vec<u8>, String> {
    let mut nar = Vec::new();
    let length = dump(path, &DumpOptions::default(), &mut nar).map_err(say)?;
    equal(length, nar.len() as u64)?;
    Ok(nar)
}

fn unpacking(case_hack: CaseHack) -> UnpackOptions {
    let mut options = UnpackOptions::default();
    options.case_hack = case_hack;
    options
}

/// Every file below `source`, or `source` itself, is in the archive with the same contents. (The
/// folder of golden data keeps neither links nor executable bits.)
fn has_contents_of(nar: &[u8], source: &Path) -> Result<(), String> {
    let members = members(nar)?;
    let root = source.to_string_lossy().len();
    let sources = if source.is_dir() {
        below(source)
    } else {
        vec![source.to_string_lossy().into_owned()]
    };
    let is_file = |path: &&String| {
        Path::new(path)
            .symlink_metadata()
            .is_ok_and(|m| m.is_file())
    };
    for path in sources.iter().filter(is_file) {
        let name = path[root..].trim_start_matches('/').as_bytes();
        equal(members.get(name), fs::read(path).ok().as_ref())?;
    }
    Ok(())
}

/// Everything below a folder, as texts.
fn below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        found.push(entry.path().to_string_lossy().into_owned());
        if entry.file_type().expect("a type").is_dir() {
            found.extend(below(&entry.path()));
        }
    }
    found
}

/// The root node of a listing's JSON.
fn root_of(listing: &Listing) -> Result<Value, String> {
    let mut json: Value = serde_json::from_str(&listing.to_json()).map_err(say)?;
    equal(&json["version"], &Value::from(1))?;
    Ok(json["root"].take())
}

/// Writes the tree of a JSON node with contents.
pub fn encode_tree(encoder: &mut Encoder<Vec<u8>>, node: &Value) -> Result<(), String> {
    match text(node, "type") {
        "directory" => {
            encoder.directory().map_err(say)?;
            for (name, child) in node["entries"].as_object().expect("entries") {
                encoder.entry(name.as_bytes()).map_err(say)?;
                encode_tree(encoder, child)?;
            }
            encoder.leave().map_err(say)
        }
        "regular" => {
            let contents = text(node, "contents").as_bytes();
            let executable = node["executable"] == true;
            encoder.file(executable, contents).map_err(say)
        }
        _ => encoder
            .symlink(text(node, "target").as_bytes())
            .map_err(say),
    }
}

/// The tree of an archive as JSON with contents.
fn tree(nar: &[u8]) -> Result<Value, String> {
    fn fill(node: &mut Value, path: &str, members: &BTreeMap<Vec<u8>, Vec<u8>>) {
        if let Some(Value::Object(entries)) = node.get_mut("entries") {
            for (name, child) in entries {
                fill(
                    child,
                    format!("{path}/{name}").trim_start_matches('/'),
                    members,
                );
            }
        } else if node["type"] == "regular" {
            let contents = String::from_utf8_lossy(&members[path.as_bytes()]).into_owned();
            let node = node.as_object_mut().expect("a node");
            node.retain(|key, _| key != "size" && key != "narOffset");
            node.insert("contents".into(), contents.into());
        }
    }
    let mut root = root_of(&Listing::read(nar).map_err(say)?)?;
    fill(&mut root, "", &members(nar)?);
    Ok(root)
}

fn archives(vectors: &Vectors) -> Vec<(String, Vec<u8>)> {
    let plain = vectors
        .below("", ".nar")
        .into_iter()
        .map(|file| (file.name, file.bytes));
    let hex = |file: Golden| (file.name.clone(), unhex(file.text()));
    plain
        .chain(vectors.below("", ".nar.hex").into_iter().map(hex))
        .collect()
}

fn folder(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Where to cut an archive: everywhere in a short one, in a long one at the ends and here and there.
fn cuts(length: usize) -> impl Iterator<Item = usize> {
    (0..length).filter(move |n| length < 4096 || *n < 512 || length - n < 512 || n % 997 == 0)
}

/// A reader of short reads.
struct OneByte<'a>(&'a [u8]);

impl Read for OneByte<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = out.len().min(1);
        self.0.read(&mut out[..n])
    }
}

const AGREE: &str = "slices, short reads and single bytes agree";
const LENGTH: &str = "valid: length as expected";
const HASH: &str = "valid: hash as expected";
const LISTING: &str = "valid: listing as expected, and read back";
const ENCODED: &str = "valid: encoded again, byte for byte";
const UNPACKED: &str = "valid: unpacked and packed, byte for byte";
const INDEXED: &str = "valid: every file read by seeking";
const CUT: &str = "valid: cut at every byte, refused";
const REFUSED: &str = "hostile: refused, truncated or malformed as expected";
const NOT_UNPACKED: &str = "hostile: not unpacked, nothing outside";
const ROWS: [&str; 10] = [
    AGREE,
    LENGTH,
    HASH,
    LISTING,
    ENCODED,
    UNPACKED,
    INDEXED,
    CUT,
    REFUSED,
    NOT_UNPACKED,
];

const SOURCE: &str = "NAR holds the files of X.in";
const PLAIN: &str = "X packed is X.nar";
const MEMBER: &str = "one member, read by seeking";
const TREE: &str = "tree with contents, both directions";
const SHALLOW: &str = "listing without offsets, both directions";
