//! Derivations that real Nix instantiates: read, printed back byte for byte, with the paths and the JSON of Nix. And
//! derivations made from JSON, which get the paths that Nix gives them.

use crate::support::{Rig, Tally, VERSIONS, equal, rig};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, io::Write, path::Path, process::Stdio};
use tempfile::TempDir;
use tk_path::modulo::Modulo;
use tk_path::{
    Derivation, DerivationJsonVersion, DerivationKind, DerivationOutput, StoreDir, StorePath,
};

#[test]
fn what_nix_instantiates() {
    let mut tally = Tally::new("real Nix: derivations", &ROWS);
    for rig in VERSIONS.iter().filter_map(|version| rig(version)) {
        let temp = TempDir::new().expect("a folder");
        let store = instantiate(&rig, temp.path());
        let files = files(Path::new(&store));
        assert!(files.len() >= 17, "{}: only {}", rig.version, files.len());
        let drvs = read(&files);
        let shown = shown(&rig, &store, &drvs);
        for (path, file) in &files {
            let what = format!("{} {path}", rig.version);
            let drv = &drvs[path];
            tally.case(row(drv), &what, || as_nix_has_it(path, drv, file, &drvs));
            tally.case(JSON, &what, || {
                let ours = drv.to_json(&StoreDir::default(), shape(&rig));
                match path.name() {
                    "raw.drv" => ours.map_or(Ok(()), |_| Err("has bytes without JSON".into())),
                    _ => equal(ours.as_ref().ok(), shown.get(path)),
                }
            });
            if rig.version == "2.34" && path.name() != "raw.drv" {
                tally.case(ADD, &what, || added(&rig, &store, drv, &drvs));
            }
        }
    }
    tally.finish();
}

const ROWS: [&str; 7] = [
    "input-addressed",
    "structured attributes",
    "fixed",
    "floating",
    "deferred",
    JSON,
    ADD,
];
const JSON: &str = "JSON as nix derivation show";
const ADD: &str = "filled in as nix derivation add";

fn row(drv: &Derivation) -> &'static str {
    match drv.kind().expect("outputs of one kind") {
        DerivationKind::InputAddressed if drv.structured_attrs().is_some() => ROWS[1],
        DerivationKind::InputAddressed => ROWS[0],
        DerivationKind::Fixed => ROWS[2],
        DerivationKind::Floating(_) => ROWS[3],
        DerivationKind::Deferred => ROWS[4],
        DerivationKind::Impure(_) => panic!("nothing here is impure"),
    }
}

/// Instantiates everything below, and gives the URI of the store, which is its folder.
fn instantiate(rig: &Rig, temp: &Path) -> String {
    fs::write(temp.join("all.nix"), EXPRESSIONS).expect("writable");
    fs::write(temp.join("bytes"), b"a\xff\xfe\xc3(\x01\x7f\n").expect("writable");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let store = text(&temp.join("root"));
    let all = text(&temp.join("all.nix"));
    rig.run("nix-instantiate", ["--store", &store, &all]);
    store
}

fn files(store: &Path) -> BTreeMap<StorePath, Vec<u8>> {
    let entries = fs::read_dir(store.join("nix/store")).expect("a store");
    let file = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.expect("readable");
        let path = StorePath::parse(entry.file_name().to_str()?).ok()?;
        let file = || fs::read(entry.path()).expect("readable");
        path.is_derivation().then(|| (path.clone(), file()))
    };
    entries.filter_map(file).collect()
}

fn read(files: &BTreeMap<StorePath, Vec<u8>>) -> BTreeMap<StorePath, Derivation> {
    let dir = StoreDir::default();
    let read = |(path, file): (&StorePath, &Vec<u8>)| {
        let name = path.name().trim_end_matches(".drv");
        let drv = Derivation::parse_aterm(&dir, name, file);
        (path.clone(), drv.unwrap_or_else(|e| panic!("{path}: {e}")))
    };
    files.iter().map(read).collect()
}

fn as_nix_has_it(
    path: &StorePath,
    drv: &Derivation,
    file: &[u8],
    all: &BTreeMap<StorePath, Derivation>,
) -> Result<(), String> {
    let dir = StoreDir::default();
    let printed = drv.to_aterm(&dir).map_err(|e| e.to_string())?;
    let show = |bytes: &[u8]| bytes.escape_ascii().to_string();
    equal(show(&printed), show(file))?;
    equal(&drv.path(&dir).map_err(|e| e.to_string())?, path)?;
    let modulo = loaded(drv, all)?;
    drv.check_outputs(&modulo).map_err(|e| e.to_string())?;
    let stated = |o: &DerivationOutput| matches!(o, DerivationOutput::InputAddressed(_));
    if drv.outputs.values().any(stated) {
        let mut other = drv.clone();
        other.args.push("changed".into());
        if other.check_outputs(&modulo).is_ok() {
            return Err("a changed argument is not noticed".to_owned());
        }
    }
    Ok(())
}

fn loaded(drv: &Derivation, all: &BTreeMap<StorePath, Derivation>) -> Result<Modulo, String> {
    let mut modulo = Modulo::new(StoreDir::default());
    let get = |path: &StorePath| Ok(all.get(path).ok_or("it is not there")?.clone().into());
    modulo.load(drv, get).map_err(|e| e.to_string())?;
    Ok(modulo)
}

fn shape(rig: &Rig) -> DerivationJsonVersion {
    match rig.version {
        "2.8" => DerivationJsonVersion::V1,
        "2.26" => DerivationJsonVersion::V2,
        _ => DerivationJsonVersion::V4,
    }
}

/// What Nix shows of each derivation, apart from that with bytes which JSON cannot hold.
fn shown(
    rig: &Rig,
    store: &str,
    drvs: &BTreeMap<StorePath, Derivation>,
) -> BTreeMap<StorePath, Value> {
    let command: &[&str] = match rig.version {
        "2.8" => &["show-derivation"],
        _ => &["derivation", "show"],
    };
    let dir = StoreDir::default();
    let paths = drvs.keys().filter(|path| path.name() != "raw.drv");
    let paths: Vec<String> = paths.map(|path| dir.path(path)).collect();
    let args = ["--store", store]
        .into_iter()
        .chain(command.iter().copied());
    let out = rig.run("nix", args.chain(paths.iter().map(String::as_str)));
    let mut json: Value = serde_json::from_slice(&out).expect("JSON");
    if rig.version == "2.34" {
        assert_eq!(json["version"], 4);
        json = json["derivations"].take();
    }
    let Value::Object(all) = json else {
        panic!("{json} is not an object");
    };
    let item = |(path, value): (String, Value)| {
        let base = path.rsplit('/').next().expect("a name");
        (StorePath::parse(base).expect("a path"), value)
    };
    all.into_iter().map(item).collect()
}

/// Without its output paths and their variables, `drv` becomes what Nix makes of it.
fn added(
    rig: &Rig,
    store: &str,
    drv: &Derivation,
    all: &BTreeMap<StorePath, Derivation>,
) -> Result<(), String> {
    let mut json = drv
        .to_json(&StoreDir::default(), DerivationJsonVersion::V4)
        .map_err(|e| e.to_string())?;
    for (name, output) in &drv.outputs {
        if let DerivationOutput::InputAddressed(_) = output {
            json["outputs"][name.as_str()] = json!({});
            json["env"][name.as_str()] = "".into();
        }
    }
    let mut command = rig.command("nix");
    command.args(["--store", store, "derivation", "add"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut nix = command.spawn().expect("nix starts");
    let mut stdin = nix.stdin.take().expect("a pipe");
    write!(stdin, "{json}").expect("nix reads");
    drop(stdin);
    let out = nix.wait_with_output().expect("nix ends");
    let theirs = String::from_utf8(out.stdout).expect("a path");
    let mut ours: Derivation = Derivation::from_json(&json).map_err(|e| e.to_string())?;
    let modulo = loaded(&ours, all)?;
    ours.fill_outputs(&modulo).map_err(|e| e.to_string())?;
    equal(&ours, drv)?;
    let path = ours.path(modulo.dir()).map_err(|e| e.to_string())?;
    equal(modulo.dir().path(&path), theirs.trim().to_owned())
}

const EXPRESSIONS: &str = r#"
let
  drv = args: derivation ({ system = "x86_64-linux"; builder = "/bin/sh"; } // args);
  hash = "89451791163c896ec31a2adbd33c0681fd5f45b2c0ef0a264c92a03fb97f390f";
  fixed = name: args: drv ({ inherit name; outputHash = hash; outputHashAlgo = "sha256"; } // args);
  floating = args: drv ({
    __contentAddressed = true; outputHashAlgo = "sha256"; outputHashMode = "recursive";
  } // args);
in rec {
  base = drv { name = "base"; args = [ "-c" "echo hello > $out" ]; };
  source = drv { name = "source"; src = ./all.nix; };
  outputs = drv { name = "outputs"; outputs = [ "out" "dev" "bin" ]; inherit base; };
  chain = drv { name = "chain"; args = [ outputs.dev "${source}/x" ]; both = [ outputs outputs.bin ]; };
  flat = fixed "flat" { outputHashMode = "flat"; };
  recursive = fixed "recursive" { outputHashMode = "recursive"; };
  sha1 = fixed "sha1" {
    outputHashAlgo = "sha1"; outputHashMode = "recursive"; outputHash = "da39a3ee5e6b4b0d3255bfef95601890afd80709";
  };
  sri = fixed "sri" {
    outputHashAlgo = null;
    outputHash = "sha512-z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg==";
  };
  # The same content from two places: one hash modulo.
  merged = drv {
    name = "merged"; a = recursive; b = fixed "recursive" { outputHashMode = "recursive"; url = "elsewhere"; };
  };
  structured = drv {
    name = "structured"; __structuredAttrs = true; outputs = [ "out" "lib" ]; inherit base;
    list = [ 1 2.5 true null "x" ]; nested = { b = "é\n\"\\"; a = { }; }; numbers = [ 1.0e20 0.5e-7 1.0 (-12.75) ];
  };
  content = floating { name = "content"; outputs = [ "out" "dev" ]; };
  contents = floating { name = "contents"; inherit content; inherit (content) dev; };
  deferred = drv { name = "deferred"; inherit content base; self = placeholder "out"; };
  deferredTwice = drv { name = "deferred-twice"; inherit deferred; };
  strange = drv {
    name = "strange+-._?=1"; "key with \" and \\" = "quote\" backslash\\ newline\n return\r tab\t dollar\${x} é";
    empty = ""; args = [ "" "a\"b\\c\nd" ];
  };
  raw = drv { name = "raw"; bytes = builtins.readFile ./bytes; };
}
"#;
