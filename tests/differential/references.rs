//! References: what Nix finds in outputs that it builds, our scanner finds too.

use super::{
    caches::{self, Item},
    engine::{Plan, Verdicts, expect_find, hold},
    node::Node,
};
use crate::support::{Rig, equal, rig, trees::Scratch};
use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any, prop_oneof},
    sample::select,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    env::consts::ARCH,
    fs,
};
use tk_path::{
    Derivation, DerivationOutput, Inputs, OutputName, StoreDir, StorePath, modulo::Modulo,
    scan::RefScanner,
};

#[test]
fn as_nix_scans() {
    hold("references", BATCH, &case(), |rig, cases| {
        Batch::new(rig, scan, cases).verdicts()
    });
}

#[test]
fn a_scanner_that_takes_upper_case_is_found() {
    let Some(rig) = rig("2.34") else { return };
    let plan = Plan::planted(BATCH);
    let find = plan.search(&case(), |cases| {
        Batch::new(&rig, scan_all_cases, cases).verdicts()
    });
    expect_find(find, |case| match &case[..] {
        [(_, pieces)] => matches!(pieces[..], [Piece::Path(_, Form::UpperCase)]),
        _ => false,
    });
}

/// What the files of an output are made of.
type Case = Vec<(Place, Vec<Piece>)>;

/// Where a text stands.
#[derive(Debug, Clone, Copy)]
enum Place {
    Contents,
    Target,
    Name,
}

#[derive(Debug, Clone)]
enum Piece {
    Noise(Vec<u8>),
    /// Something like a path.
    Path(Whose, Form),
}

#[derive(Debug, Clone)]
enum Whose {
    /// Of an input.
    Input(usize),
    /// Of the output that it is in.
    Own,
    /// Of an output before: this one, counted round.
    Output(u8),
}

/// What of a path stands there: some is none.
#[derive(Debug, Clone, Copy)]
enum Form {
    Whole,
    HashPart,
    /// So many digits of the hash part.
    Start(usize),
    /// The hash part with another last digit.
    OffByOne,
    UpperCase,
    /// The name without the hash part.
    Rest,
}

fn case() -> impl Strategy<Value = Case> {
    let places = vec![Place::Contents, Place::Contents, Place::Target, Place::Name];
    vec((select(places), vec(piece(), 0..6)), 1..4)
}

fn piece() -> impl Strategy<Value = Piece> {
    let digits = select(b"0123456789abcdfghijklmnpqrsvwxyz".to_vec());
    let noise = prop_oneof![
        vec(any::<u8>(), 0..50),
        vec(digits, 0..70),
        (0..100usize).prop_map(|len| vec![0; len]),
    ];
    let whose = prop_oneof![
        5 => (0..INPUTS).prop_map(Whose::Input),
        1 => Just(Whose::Own),
        1 => any::<u8>().prop_map(Whose::Output),
    ];
    let form = prop_oneof![
        4 => select(vec![Form::Whole, Form::HashPart]),
        2 => (1..32usize).prop_map(Form::Start),
        2 => select(vec![Form::OffByOne, Form::UpperCase, Form::Rest]),
    ];
    prop_oneof![
        noise.prop_map(Piece::Noise),
        (whose, form).prop_map(|(whose, form)| Piece::Path(whose, form)),
    ]
}

impl Form {
    fn of(self, path: &StorePath) -> Vec<u8> {
        let part = path.hash_part();
        match self {
            Form::Whole => StoreDir::default().path(path).into(),
            Form::HashPart => part.into(),
            Form::Start(len) => part[..len].into(),
            Form::OffByOne => {
                let last = if part.ends_with('0') { "1" } else { "0" };
                [&part[..part.len() - 1], last].concat().into()
            }
            Form::UpperCase => part.to_uppercase().into(),
            Form::Rest => path.name().into(),
        }
    }
}

/// One derivation, of which each case is an output. Its builder copies what we wrote.
struct Batch<'a> {
    rig: &'a Rig,
    scan: fn(&[u8], &[StorePath]) -> BTreeSet<StorePath>,
    inputs: Vec<Item>,
    /// Of each case.
    outputs: Vec<StorePath>,
    trees: Vec<Node>,
    derivation: Item,
    place: Scratch,
}

impl<'a> Batch<'a> {
    fn new(
        rig: &'a Rig,
        scan: fn(&[u8], &[StorePath]) -> BTreeSet<StorePath>,
        cases: &[Case],
    ) -> Batch<'a> {
        let place = Scratch::new();
        let inputs = (0..INPUTS).map(|n| {
            let text = format!("input {n}");
            caches::text(&format!("input-{n}"), text.as_bytes(), BTreeSet::new())
        });
        let inputs: Vec<Item> = inputs.collect();
        let trees = place.path().join("trees");
        let drv = derivation(cases.len(), &inputs, &trees.display().to_string());
        let dir = StoreDir::default();
        let output = |number: usize| {
            let name = output_name(number);
            let path = drv.outputs[&name].path(&dir, &drv.name, &name);
            path.expect("a path").expect("a known one")
        };
        let printed = drv.to_aterm(&dir).expect("printable");
        let references = drv.inputs.srcs.clone();
        let mut batch = Batch {
            rig,
            scan,
            inputs,
            outputs: (0..cases.len()).map(output).collect(),
            trees: Vec::new(),
            derivation: caches::text(&format!("{NAME}.drv"), &printed, references),
            place,
        };
        let numbers = 0..cases.len();
        batch.trees = numbers
            .map(|number| batch.tree(&cases[number], number))
            .collect();
        fs::create_dir(&trees).expect("writable");
        for (number, tree) in batch.trees.iter().enumerate() {
            tree.write(&trees.join(output_name(number).as_str()));
        }
        batch
    }

    fn tree(&self, case: &Case, number: usize) -> Node {
        let entry = |(index, (place, pieces)): (usize, &(Place, Vec<Piece>))| {
            let pieces = pieces.iter().map(|piece| self.piece(piece, number));
            let text = pieces.collect::<Vec<_>>().concat();
            let mut name = index.to_string().into_bytes();
            match place {
                Place::Contents => (name, Node::text(text)),
                Place::Target => {
                    let target = [b"->", &text[..]].concat();
                    (name, Node::Link(without(b"\0", target)))
                }
                Place::Name => {
                    name.extend(without(b"\0/", text));
                    name.truncate(LONGEST_NAME);
                    (name, Node::text(""))
                }
            }
        };
        Node::Folder(case.iter().enumerate().map(entry).collect())
    }

    fn piece(&self, piece: &Piece, number: usize) -> Vec<u8> {
        match piece {
            Piece::Noise(bytes) => bytes.clone(),
            Piece::Path(Whose::Input(index), form) => form.of(&self.inputs[*index].0.path),
            Piece::Path(Whose::Own, form) => form.of(&self.outputs[number]),
            // A circle of outputs is refused, so only to those before.
            Piece::Path(Whose::Output(_), _) if number == 0 => Vec::new(),
            Piece::Path(Whose::Output(index), form) => {
                form.of(&self.outputs[usize::from(*index) % number])
            }
        }
    }

    fn verdicts(&self) -> Verdicts {
        self.built()?;
        let found = self.found_by_nix()?;
        let inputs = self.inputs.iter().map(|(info, _)| info.path.clone());
        let candidates: Vec<_> = inputs.chain(self.outputs.clone()).collect();
        let verdict = |(tree, output): (&Node, &StorePath)| {
            let ours = (self.scan)(&tree.nar(), &candidates);
            equal(Some(&ours), found.get(output))
        };
        Ok(self.trees.iter().zip(&self.outputs).map(verdict).collect())
    }

    /// Nix takes the derivation out of a cache and builds it.
    fn built(&self) -> Result<(), String> {
        let cache = self.place.path().join("cache");
        let mut items = self.inputs.clone();
        items.push(self.derivation.clone());
        caches::publish(&cache, items)?;
        let drv = StoreDir::default().path(&self.derivation.0.path);
        let only_file = match self.rig.version {
            "2.8" => "--derivation",
            _ => "",
        };
        let cache = cache.display();
        let script = format!(
            "nix copy --from 'file://{cache}' {only_file} {drv} && nix-store --realise {drv}"
        );
        let mut command = self.rig.with_daemon();
        command
            .args(["--no-daemon", "--state"])
            .arg(self.place.path());
        command.args([self.rig.version, "--", "sh", "-c", &script]);
        self.rig.try_run(&mut command).map(|_| ())
    }

    fn found_by_nix(&self) -> Result<BTreeMap<StorePath, BTreeSet<StorePath>>, String> {
        let dir = StoreDir::default();
        let parse = |text: &str| dir.parse(text).map_err(|e| e.to_string());
        let outputs = self.outputs.iter().map(|path| dir.path(path));
        let outputs: Vec<_> = outputs.collect();
        let infos = caches::path_infos(self.rig, self.place.path(), &[], &outputs)?;
        let references = |value: &Value| {
            let references = value["references"].as_array().into_iter().flatten();
            let parse = |value: &Value| parse(value.as_str().unwrap_or_default());
            references.map(parse).collect::<Result<_, String>>()
        };
        let item = |(path, value): (&String, &Value)| Ok((parse(path)?, references(value)?));
        infos.iter().map(item).collect()
    }
}

/// A derivation that copies an output for each case from the folder `trees`.
fn derivation(cases: usize, inputs: &[Item], trees: &str) -> Derivation {
    let names: Vec<_> = (0..cases).map(output_name).collect();
    let script = format!(
        "PATH=/bin:/usr/bin
         for name in $names; do eval \"to=\\$$name\"; cp -RP '{trees}'/$name \"$to\" || exit; done"
    );
    let texts: Vec<_> = names.iter().map(OutputName::as_str).collect();
    let env = BTreeMap::from([("names".into(), texts.join(" ").into())]);
    let outputs = names
        .into_iter()
        .map(|name| (name, DerivationOutput::Deferred));
    let srcs = inputs.iter().map(|(info, _)| info.path.clone()).collect();
    let mut drv = Derivation {
        name: NAME.to_owned(),
        outputs: outputs.collect(),
        inputs: Inputs {
            srcs,
            ..Inputs::default()
        },
        platform: format!("{ARCH}-linux").into(),
        builder: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env,
    };
    let modulo = Modulo::new(StoreDir::default());
    drv.fill_outputs(&modulo).expect("nothing is missing");
    drv
}

fn output_name(number: usize) -> OutputName {
    OutputName::parse(&format!("o{number}")).expect("a name")
}

fn without(unwanted: &[u8], mut text: Vec<u8>) -> Vec<u8> {
    text.retain(|byte| !unwanted.contains(byte));
    text
}

/// Which of `candidates` stand in `nar`.
fn scan(nar: &[u8], candidates: &[StorePath]) -> BTreeSet<StorePath> {
    let mut scanner = RefScanner::new(candidates.iter().map(StorePath::to_hash_part));
    scanner.feed(nar);
    scanner
        .found()
        .map(|index| candidates[index].clone())
        .collect()
}

/// The planted fault: upper case counts too.
fn scan_all_cases(nar: &[u8], candidates: &[StorePath]) -> BTreeSet<StorePath> {
    scan(&nar.to_ascii_lowercase(), candidates)
}

/// Of the derivation.
const NAME: &str = "scanned";
/// Paths that every output may refer to.
const INPUTS: usize = 12;
/// In bytes, for file systems.
const LONGEST_NAME: usize = 255;
/// Cases at once: outputs of one derivation.
const BATCH: usize = 250;
