//! What people ask a store about its paths, beside real Nix: trees, graphs, chains, closures that differ, and derivations
//! from JSON.

use super::{PLAIN, nix_store, open, text};
use crate::support::{Rig, Tally, VERSIONS, machine::Machine, rig};
use futures::{StreamExt, stream};
use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};
use tempfile::TempDir;
use tk_nar::Encoder;
use tk_narinfo::PathInfo;
use tk_path::{Algorithm, Hash, NarHash, StoreDir, StorePath};
use tk_store::{SigCheck, Store, log::strip_ansi};

/// A node of a folder in a NAR.
enum Node {
    File(Vec<u8>),
    Link(String),
}

/// A store path in the making: its name, its files in their order, and the names of what it refers to.
struct Made {
    name: String,
    files: Vec<(String, Node)>,
    references: Vec<String>,
}

fn path_of(name: &str) -> StorePath {
    let digest = Hash::digest(Algorithm::Sha256, name.as_bytes()).compress(20);
    StorePath::from_digest(&digest.try_into().unwrap(), name).unwrap()
}

fn full(name: &str) -> String {
    StoreDir::default().path(&path_of(name))
}

/// Adds `all` to a new store in `root`, references first.
async fn fill(root: &Path, all: &[Made]) {
    let item = |made: &Made| {
        let mut encoder = Encoder::new(Vec::new());
        encoder.directory().unwrap();
        let files: BTreeMap<_, _> = made.files.iter().map(|(name, node)| (name, node)).collect();
        for (name, node) in files {
            encoder.entry(name.as_bytes()).unwrap();
            match node {
                Node::File(content) => encoder.file(false, content).unwrap(),
                Node::Link(target) => encoder.symlink(target.as_bytes()).unwrap(),
            }
        }
        encoder.leave().unwrap();
        let nar = encoder.finish().unwrap();
        let mut info = PathInfo::new(path_of(&made.name), NarHash::digest(&nar), nar.len() as u64);
        info.references = made.references.iter().map(|name| path_of(name)).collect();
        Ok((info, tk_store::nar::from_bytes(nar)))
    };
    let store = open(root).await;
    let items = stream::iter(all.iter().map(item).collect::<Vec<_>>()).boxed();
    let report = store.add(items, &SigCheck::Skip.into()).await.unwrap();
    assert_eq!(report.added.len(), all.len(), "{:?}", report.failed);
}

/// What `tk-store` prints about the store in `root`.
fn ours(machine: &Machine, root: &Path, args: &[&str]) -> String {
    let mut command = machine.command(args);
    let done = machine.done(command.args(["--store", text(root)]).output());
    assert!(done.status < 2, "{args:?}: {done:?}");
    done.out
}

/// What `nix` prints about it, without colours.
fn nix(rig: &Rig, root: &Path, args: &[&str]) -> String {
    let mut command = rig.command("nix");
    let out = rig.try_run(command.args(args).args(PLAIN).args(["--store", text(root)]));
    let out = out.unwrap_or_else(|error| panic!("{error}"));
    strip_ansi(&String::from_utf8_lossy(&out)).into_owned()
}

/// Paths of which each refers to some before it, and some to themselves: by multiples of primes, so that no two have the same.
fn web(count: usize) -> Vec<Made> {
    let name = |n: usize| format!("web-{n}");
    let made = |n: usize| {
        let mut back: Vec<usize> = [1, 2, 5, 11].map(|step| (n * 7 + step) % 13 + step).into();
        back.retain(|back| *back <= n && !(n + back).is_multiple_of(3));
        let mut references: Vec<_> = back.iter().map(|back| name(n - back)).collect();
        references.extend(n.is_multiple_of(4).then(|| name(n)));
        Made {
            name: name(n),
            files: vec![("n".into(), Node::File(n.to_string().into()))],
            references,
        }
    };
    (0..count).map(made).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn trees_graphs_and_referrers() {
    let mut table = Tally::new("stores: trees, graphs, referrers as Nix's", &VERSIONS);
    let (temp, machine) = (TempDir::new().unwrap(), Machine::new());
    let root = temp.path().join("root");
    let web = web(60);
    fill(&root, &web).await;
    let last: Vec<String> = web
        .iter()
        .rev()
        .take(2)
        .map(|made| full(&made.name))
        .collect();
    let [one, other] = [&last[0], &last[1]];
    let first = full("web-0");
    let few = full("web-40");
    for rig in VERSIONS.into_iter().filter_map(rig) {
        for (theirs, options) in [
            ("--tree", ["--tree"].as_slice()),
            ("--graph", &["--graph"]),
            ("--graph", &["--graph", "dot"]),
            ("--referrers-closure", &["--referrers"]),
            ("--requisites", &[]),
        ] {
            for paths in [
                vec![one],
                vec![one, other],
                vec![&few, &first],
                vec![&first],
            ] {
                let paths: Vec<&str> = paths.into_iter().map(String::as_str).collect();
                let expected = nix_store(&rig, &root, &[&["-q", theirs][..], &paths].concat());
                let args = [&["closure"][..], options, &paths].concat();
                let printed = ours(&machine, &root, &args);
                let what = format!("{options:?} {paths:?}");
                table.equal(rig.version, &what, printed.trim_end(), expected.trim_end());
            }
        }
    }
    table.finish();
    // A cache knows no referrers, and is asked for all that it has.
    let cache = machine.cache("cache");
    let root_text = text(&root);
    machine.ok(&format!("push {one} --from {root_text} --to {cache}"));
    let ask = |store: &str| machine.ok(&format!("closure --referrers {few} --store {store}"));
    let referrers = ask(&cache);
    assert!(referrers.lines().count() > 1, "{referrers}");
    let all = ask(root_text);
    assert!(
        referrers
            .lines()
            .all(|path| all.lines().any(|known| known == path))
    );
    machine.fails(1, &format!("closure --referrers {other}x --store {cache}"));
}

/// Every way in which a path can mention another one.
fn mentions() -> Vec<Made> {
    let made = |name: &str, references: &[&str], files: Vec<(&str, Node)>| Made {
        name: name.into(),
        files: files
            .into_iter()
            .map(|(name, node)| (name.to_owned(), node))
            .collect(),
        references: references.iter().map(|name| (*name).to_owned()).collect(),
    };
    let file = |text: String| Node::File(text.into());
    let [b, c, d] = ["b-1", "c-1", "d-1"].map(full);
    let long = "on and ".repeat(20);
    vec![
        made("c-1", &[], vec![("f", file("c".into()))]),
        made(
            "d-1",
            &["c-1", "d-1"],
            vec![("f", file(format!("{c}\n{d}\n")))],
        ),
        made(
            "b-1",
            &["c-1", "d-1"],
            vec![
                (
                    "bytes",
                    Node::File([b"\x00\x01\xff\n", c.as_bytes(), " é\t".as_bytes()].concat()),
                ),
                ("link", Node::Link(format!("{d}/x"))),
                ("twice", file(format!("{long}{c}{long}{c}{long}{d}"))),
                ("zlink", Node::Link(c.clone())),
            ],
        ),
        made(
            "a-1",
            &["b-1", "c-1", "d-1", "a-1"],
            vec![
                (
                    d["/nix/store/".len()..].into(),
                    file("by its name only".into()),
                ),
                ("f", file(format!("{b} {c}"))),
                ("self", file(full("a-1"))),
            ],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn why_paths_depend() {
    let mut table = Tally::new("stores: why-depends as Nix's", &VERSIONS);
    let (temp, machine) = (TempDir::new().unwrap(), Machine::new());
    let root = temp.path().join("root");
    fill(&root, &mentions()).await;
    for rig in VERSIONS.into_iter().filter_map(rig) {
        for (from, to) in [
            ("a-1", "c-1"),
            ("a-1", "d-1"),
            ("b-1", "c-1"),
            ("a-1", "a-1"),
            ("c-1", "c-1"),
        ] {
            for options in [&[][..], &["--all"], &["--precise"], &["--all", "--precise"]] {
                let (from, to) = (full(from), full(to));
                let args = [&["why-depends", &from, &to], options].concat();
                let expected = nix(&rig, &root, &args);
                let printed = ours(&machine, &root, &args);
                table.equal(rig.version, &args.join(" "), printed, expected);
            }
        }
    }
    table.finish();
    let line = |words: &str| format!("{words} --store {}", root.display());
    let no = line(&format!("why-depends {} {}", full("c-1"), full("a-1")));
    let said = machine.fails(1, &no);
    assert!(said.contains("does not depend on"), "{said}");
    machine.fails(
        2,
        &line(&format!("why-depends {} {}", full("absent"), full("a-1"))),
    );
    let json = line(&format!(
        "why-depends --json --precise {} {}",
        full("b-1"),
        full("c-1")
    ));
    let json: serde_json::Value = serde_json::from_str(&machine.ok(&json)).unwrap();
    assert_eq!(json["chain"], serde_json::json!([full("b-1"), full("c-1")]));
    let found = &json["references"][0]["found"][0];
    assert_eq!(
        (&found["file"], &found["offset"]),
        (&"bytes".into(), &15.into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn closures_that_differ() {
    let mut table = Tally::new("stores: diff of closures as Nix 2.34 has it", &["2.34"]);
    let (temp, machine) = (TempDir::new().unwrap(), Machine::new());
    let root = temp.path().join("root");
    let sides = [
        (
            "top-1",
            [
                ("glibc-2.38-44", 20_000),
                ("glibc-2.38-44-bin", 100),
                ("gone-1.0", 10),
                ("grow-1", 10_000),
            ],
            [
                ("multi-1", 1),
                ("multi-2", 1),
                ("shrink", 3_000_000),
                ("nv", 1),
            ],
        ),
        (
            "top-2",
            [
                ("glibc-2.39-1", 30_000),
                ("glibc-2.39-1-bin", 100),
                ("new", 9_000),
                ("grow-1-lib", 50_000),
            ],
            [
                ("multi-2", 1),
                ("multi-3", 1),
                ("shrink-lib32", 10),
                ("nv-3", 1),
            ],
        ),
    ];
    let mut all: BTreeMap<String, Made> = BTreeMap::new();
    for (top, some, more) in sides {
        let mut references = Vec::new();
        for (name, size) in some.into_iter().chain(more) {
            references.push(name.to_owned());
            let files = vec![("f".into(), Node::File(vec![b'x'; size]))];
            // The tops come last, as they begin with a letter behind all others.
            all.insert(
                name.into(),
                Made {
                    name: name.into(),
                    files,
                    references: Vec::new(),
                },
            );
        }
        all.insert(
            top.into(),
            Made {
                name: top.into(),
                files: Vec::new(),
                references,
            },
        );
    }
    fill(&root, &all.into_values().collect::<Vec<_>>()).await;
    let Some(rig) = rig("2.34") else { return };
    for (before, after) in [
        ("top-1", "top-2"),
        ("top-2", "top-1"),
        ("top-1", "top-1"),
        ("top-1", "nv"),
    ] {
        let (before, after) = (full(before), full(after));
        let expected = nix(&rig, &root, &["store", "diff-closures", &before, &after]);
        let printed = ours(&machine, &root, &["diff", &before, &after]);
        table.equal("2.34", &format!("{before} {after}"), printed, expected);
    }
    table.finish();
}

/// Derivations of Nix as JSON become the same files in the same places.
#[tokio::test(flavor = "multi_thread")]
async fn derivations_from_json() {
    let Some(rig) = rig("2.34") else { return };
    let mut table = Tally::new(
        "stores: derivations added as JSON as Nix adds them",
        &["2.34"],
    );
    let (temp, machine) = (TempDir::new().unwrap(), Machine::new());
    let [root, theirs] = ["ours", "theirs"].map(|name| temp.path().join(name));
    fs::write(temp.path().join("d.nix"), DERIVATIONS).unwrap();
    let code = temp.path().join("d.nix");
    let made = nix_store_of(&rig, "nix-instantiate", &theirs, &[text(&code)]);
    let shown = nix(
        &rig,
        &theirs,
        &["derivation", "show", "-r", made.lines().last().unwrap()],
    );
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    // Those that others need first: by how many derivations each needs itself.
    let mut drvs: Vec<_> = shown["derivations"].as_object().unwrap().values().collect();
    drvs.sort_by_key(|drv| drv["inputs"]["drvs"].as_object().unwrap().len());
    assert_eq!(drvs.len(), 4);
    for drv in drvs {
        let json = drv.to_string();
        let mut command = rig.command("nix");
        let added = piped(
            command.args(["derivation", "add", "--store", text(&theirs)]),
            &json,
        );
        let args = ["derivation", "add", "--store", text(&root)];
        let printed = piped(&mut machine.command(args), &json);
        table.equal("2.34", &json, &printed, &added);
        let file =
            |root: &Path| fs::read(root.join(added.trim_end().trim_start_matches('/'))).unwrap();
        table.equal("2.34", "the file", file(&root), file(&theirs));
        let ask = |root: &Path| nix_store(&rig, root, &["-q", "--references", added.trim_end()]);
        table.equal("2.34", "references", ask(&root), ask(&theirs));
    }
    table.finish();
}

fn nix_store_of(rig: &Rig, program: &str, root: &Path, args: &[&str]) -> String {
    let mut command = rig.command(program);
    let out = rig.try_run(command.args(args).args(["--store", text(root)]));
    String::from_utf8(out.unwrap_or_else(|error| panic!("{error}"))).unwrap()
}

/// What `command` prints, given `input`.
fn piped(command: &mut Command, input: &str) -> String {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{command:?}");
    String::from_utf8(out.stdout).unwrap()
}

const DERIVATIONS: &str = r#"
let
  drv = name: more: derivation ({ inherit name; system = "x86_64-linux"; builder = "/bin/sh"; } // more);
  fixed = drv "fixed" { outputHash = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="; outputHashAlgo = "sha256"; };
  several = drv "several" { outputs = [ "out" "dev" ]; text = "a\n\"b\"\\ \t"; };
  structured = drv "structured" { __structuredAttrs = true; list = [ 1 2 ]; };
in drv "top" { inputs = [ fixed several.dev structured ]; args = [ "-c" "echo ${several.out} >$out" ]; }
"#;
