//! Store paths and content addresses: `derived/store-paths.json`, the JSON and wire goldens of
//! `nix/libstore`, and the tables of accepted and refused texts.

use super::{say, text, unhex};
use crate::support::{Golden, Tally, Vectors, equal};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tk_path::{Algorithm, ContentAddress, Encoding, Hash, Method, References, StoreDir, StorePath};

#[test]
fn store_paths() {
    let vectors = Vectors::find();
    let rows = [
        "path made of content",
        "content that can have no path",
        "parsed and printed",
        "JSON, both directions",
        "wire, both directions",
    ];
    let mut tally = Tally::new("golden data: store paths", &rows);
    for item in vectors.items("derived/store-paths.json") {
        let made = made_path(&item);
        let what = item.to_string();
        match item["path"].as_str() {
            None => tally.case("content that can have no path", &what, || match made {
                Err(_) => Ok(()),
                Ok(path) => Err(format!("made {path}")),
            }),
            Some(path) => {
                let dir = StoreDir::new(text(&item, "storeDir")).expect("a store directory");
                tally.case("path made of content", &what, || {
                    equal(made?, path.to_owned())
                });
                tally.case("parsed and printed", path, || {
                    let parsed = dir.parse(path).map_err(say)?;
                    equal(dir.parse_canonical(path).map_err(say)?, parsed.clone())?;
                    equal(parsed.name().to_owned(), text(&item, "name").to_owned())?;
                    equal(
                        StorePath::from_digest(&parsed.digest(), parsed.name()).map_err(say)?,
                        parsed.clone(),
                    )?;
                    equal(dir.path(&parsed), path.to_owned())
                });
            }
        }
    }
    for file in vectors.files("nix/libstore/store-path", ".json") {
        tally.case("JSON, both directions", &file.name, || {
            base_name(&file.json())
        });
    }
    for protocol in ["common-protocol", "worker-protocol", "serve-protocol"] {
        for stem in ["store-path", "optional-store-path"] {
            for (file, values) in wire(&vectors, protocol, stem) {
                tally.case("wire, both directions", &file, || {
                    for (wire, json) in values? {
                        if wire.is_empty() {
                            equal(json, Value::Null)?;
                            continue;
                        }
                        let dir = StoreDir::default();
                        let path = dir.parse(&wire).map_err(say)?;
                        equal(json!(path.as_str()), json)?;
                        equal(dir.path(&path), wire)?;
                    }
                    Ok(())
                });
            }
        }
    }
    tally.finish();
}

#[test]
fn content_addresses() {
    let vectors = Vectors::find();
    let rows = ["JSON, both directions", "wire, both directions"];
    let mut tally = Tally::new("golden data: content addresses", &rows);
    for file in vectors.files("nix/libstore/content-address", ".json") {
        tally.case("JSON, both directions", &file.name, || {
            let json = file.json();
            let ca = address(&json)?;
            equal(ca.to_string().parse::<ContentAddress>().map_err(say)?, ca)?;
            equal(address_json(&ca), json)
        });
    }
    for protocol in ["common-protocol", "worker-protocol", "serve-protocol"] {
        for stem in ["content-address", "optional-content-address"] {
            for (file, values) in wire(&vectors, protocol, stem) {
                tally.case("wire, both directions", &file, || {
                    for (wire, json) in values? {
                        if wire.is_empty() {
                            equal(json, Value::Null)?;
                            continue;
                        }
                        let ca: ContentAddress = wire.parse().map_err(say)?;
                        equal(ca, address(&json)?)?;
                        equal(ca.to_string(), wire)?;
                    }
                    Ok(())
                });
            }
        }
    }
    tally.finish();
}

#[test]
fn names_and_texts() {
    let base = |name: &str| format!("575s52sh487i0ylmbs9pvi606ljdszr0-{name}");
    let longest = "a".repeat(211);
    let accepted = [
        "02345",
        "foo",
        "FOO",
        "foo+bar",
        "foo-dev",
        "foo_bar",
        "foo.txt",
        "foo?why",
        "foo=foo",
        ".gitignore",
        "...a",
        "...1",
        "...-",
        "...",
        &longest,
    ];
    for name in accepted {
        assert_eq!(StorePath::parse(&base(name)).unwrap().name(), name);
    }
    let too_long = "a".repeat(212);
    let refused = [
        "", "&*()", "**", "*,foo", "foo,*", "foo!o", ".", "..", "..-1", ".-1", "..-a", &too_long,
    ];
    for name in refused {
        assert!(StorePath::parse(&base(name)).is_err(), "{name}");
    }
    for bad in [
        "575s52sh487i0ylmbs9pvi606ljdszr0_foo",
        "575s52sh487i0ylmbs9pvi606ljdszr0\0foo",
    ] {
        assert!(StorePath::parse(bad).is_err(), "{bad}");
    }
    let (dir, foo) = (StoreDir::default(), base("foo"));
    for unclean in [
        format!("/nix/store/{foo}/"),
        format!("/nix/store//{foo}"),
        format!("/nix/store/./{foo}"),
    ] {
        assert_eq!(dir.parse(&unclean).unwrap().as_str(), foo, "{unclean}");
        assert!(dir.parse_canonical(&unclean).is_err(), "{unclean}");
    }
    let inside = format!("/nix/store/{foo}/bin/sh");
    let elsewhere = [format!("/foo/{foo}"), format!("/nix/store{foo}")];
    let others = [
        String::new(),
        foo.clone(),
        "/nix/store".into(),
        "/nix/store/".into(),
        inside,
    ];
    for bad in elsewhere.iter().chain(&others) {
        assert!(dir.parse(bad).is_err(), "{bad}");
        assert!(dir.parse_canonical(bad).is_err(), "{bad}");
    }
    for method in ["text", "flat", "nar", "git"] {
        assert_eq!(method.parse::<Method>().unwrap().to_string(), method);
    }
    assert!("narwhal".parse::<Method>().is_err());
}

/// What an item of store-paths.json makes, as a full path.
fn made_path(item: &Value) -> Result<String, String> {
    let dir = StoreDir::new(text(item, "storeDir")).map_err(say)?;
    let algorithm: Algorithm = text(item, "algo").parse().map_err(say)?;
    let hash = Hash::new(algorithm, &unhex(text(item, "hashBase16"))).map_err(say)?;
    let method: Method = text(item, "method").parse().map_err(say)?;
    let others: BTreeSet<StorePath> = item["references"]
        .as_array()
        .expect("references")
        .iter()
        .map(|base| StorePath::parse(base.as_str().expect("a base name")).map_err(say))
        .collect::<Result<_, _>>()?;
    let itself = item["selfReference"] == json!(true);
    let ca = ContentAddress { method, hash };
    let references = References { others, itself };
    let path = dir
        .path_of_content(text(item, "name"), &ca, &references)
        .map_err(say)?;
    Ok(dir.path(&path))
}

fn base_name(json: &Value) -> Result<(), String> {
    let base = json.as_str().expect("a JSON string");
    equal(StorePath::parse(base).map_err(say)?.as_str(), base)
}

/// A content address from its JSON form.
fn address(json: &Value) -> Result<ContentAddress, String> {
    Ok(ContentAddress {
        method: text(json, "method").parse().map_err(say)?,
        hash: Hash::parse_any(text(json, "hash"), None).map_err(say)?,
    })
}

fn address_json(ca: &ContentAddress) -> Value {
    json!({ "method": ca.method.to_string(), "hash": ca.hash.to_text(Encoding::Sri) })
}

type Wire = Result<Vec<(String, Value)>, String>;

/// The wire goldens `STEM.bin` of a protocol: the strings on the wire, each with its JSON.
fn wire(vectors: &Vectors, protocol: &str, stem: &str) -> Vec<(String, Wire)> {
    let folder = format!("nix/libstore/{protocol}");
    let files = vectors.files(&folder, &format!("{stem}.bin"));
    let exact = files
        .into_iter()
        .filter(|file| file.base() == format!("{stem}.bin"));
    exact
        .map(|file| {
            let json = vectors.items(&file.name.replace(".bin", ".json"));
            let values = strings(&file).and_then(|texts| {
                equal(texts.len(), json.len())?;
                Ok(texts.into_iter().zip(json).collect())
            });
            (file.name, values)
        })
        .collect()
}

/// All of a file as strings of the wire: length, bytes, padding to 8.
fn strings(file: &Golden) -> Result<Vec<String>, String> {
    let (mut rest, mut found) = (&file.bytes[..], Vec::new());
    while let Some((length, tail)) = rest.split_first_chunk::<8>() {
        let length = u64::from_le_bytes(*length) as usize;
        let padded = length.next_multiple_of(8);
        if tail.len() < padded {
            return Err("cut".into());
        }
        found.push(String::from_utf8(tail[..length].to_vec()).map_err(say)?);
        rest = &tail[padded..];
    }
    equal(rest.len(), 0)?;
    Ok(found)
}
