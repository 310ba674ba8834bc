//! Derivations: the same from an expression that Nix evaluates and from our own values.

use super::{
    caches,
    engine::{Plan, Verdict, Verdicts, expect_find, hold},
};
use crate::support::{Rig, equal, rig, trees::Scratch};
use proptest::{
    collection::{btree_map, vec},
    prelude::{Just, Strategy, any, prop_oneof},
    sample::{Index, select, subsequence},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::PathBuf,
};
use tk_path::{
    Algorithm, ContentAddress, Derivation, DerivationJsonVersion, DerivationOutput, Encoding, Hash,
    Inputs, Method, MethodAlgorithm, OutputName, Placeholder, StoreDir, StorePath, modulo::Modulo,
    placeholder,
};

#[test]
fn as_nix_instantiates_and_takes_them() {
    hold("derivations", BATCH, &case(), |rig, cases| {
        Batch::new(rig, printed, cases).verdicts()
    });
}

#[test]
fn a_printer_that_forgets_to_escape_tabs_is_found() {
    let Some(rig) = rig("2.34") else { return };
    let plan = Plan::planted(BATCH);
    let find = plan.search(&case(), |cases| {
        Batch::new(&rig, with_tabs, cases).instantiated()
    });
    expect_find(find, |case| {
        let [spec] = &case[..] else { return false };
        spec.args.len() + spec.attrs.len() <= 1
    });
}

/// Derivations, of which each may use those before.
type Case = Vec<Spec>;

/// What a derivation is made from, in Nix's language and by us.
#[derive(Debug, Clone)]
struct Spec {
    name: String,
    kind: Kind,
    structured: bool,
    builder: Text,
    args: Vec<Text>,
    attrs: BTreeMap<String, Attr>,
}

#[derive(Debug, Clone)]
enum Kind {
    /// With these outputs.
    InputAddressed(Vec<&'static str>),
    /// With these outputs, and how they are hashed.
    Floating(Vec<&'static str>, MethodAlgorithm),
    /// With the content of this address, whose hash is written so.
    Fixed(ContentAddress, Encoding),
}

#[derive(Debug, Clone)]
enum Attr {
    Text(Text),
    Int(i64),
    Bool(bool),
    Null,
    List(Vec<Attr>),
    /// Without structured attributes a list of its values.
    Set(BTreeMap<String, Attr>),
}

type Text = Vec<Piece>;

#[derive(Debug, Clone)]
enum Piece {
    Plain(String),
    /// The path of an output of its own.
    Own(Index),
    /// A file with this text.
    Source(String),
    /// An output of a derivation before.
    Output(Index, Index),
    /// The file of a derivation before.
    File(Index),
}

fn case() -> impl Strategy<Value = Case> {
    vec(spec(), 1..4)
}

fn spec() -> impl Strategy<Value = Spec> {
    let name = prop_oneof![
        "[a-z][a-z0-9.]{0,6}",
        "[0-9a-zA-Z+_?=-][0-9a-zA-Z+._?=-]{0,20}"
    ];
    let name = name.prop_filter("a derivation's file", |name| !name.ends_with(".drv"));
    let attrs = btree_map(key(), attr(), 0..5);
    // There must be one.
    let builder = text().prop_map(|mut text| {
        text.insert(0, Piece::Plain("/b".into()));
        text
    });
    (
        name,
        kind(),
        any::<bool>(),
        builder,
        vec(text(), 0..4),
        attrs,
    )
        .prop_map(|(name, kind, structured, builder, args, attrs)| Spec {
            name,
            kind,
            structured,
            builder,
            args,
            attrs,
        })
}

fn kind() -> impl Strategy<Value = Kind> {
    let algorithms = vec![
        Algorithm::Sha256,
        Algorithm::Sha1,
        Algorithm::Sha512,
        Algorithm::Md5,
    ];
    let method = (select(vec![Method::Nar, Method::Flat]), select(algorithms));
    let method = method.prop_map(|(method, algorithm)| MethodAlgorithm { method, algorithm });
    let encodings = vec![
        Encoding::Base16,
        Encoding::Nix32,
        Encoding::Base64,
        Encoding::Sri,
    ];
    let fixed = (method.clone(), any::<u8>(), select(encodings));
    let fixed = fixed.prop_map(
        |(MethodAlgorithm { method, algorithm }, content, encoding)| {
            let hash = Hash::digest(algorithm, &[content]);
            Kind::Fixed(ContentAddress { method, hash }, encoding)
        },
    );
    let outputs = || {
        let some = subsequence(vec!["out", "dev", "lib", "bin", "a"], 1..=5);
        prop_oneof![Just(vec!["out"]), some.prop_shuffle()]
    };
    prop_oneof![
        4 => outputs().prop_map(Kind::InputAddressed),
        1 => (outputs(), method).prop_map(|(outputs, method)| Kind::Floating(outputs, method)),
        1 => fixed,
    ]
}

fn attr() -> impl Strategy<Value = Attr> {
    let leaf = prop_oneof![
        4 => text().prop_map(Attr::Text),
        1 => any::<i64>().prop_map(Attr::Int),
        1 => any::<bool>().prop_map(Attr::Bool),
        1 => Just(Attr::Null),
    ];
    leaf.prop_recursive(3, 10, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Attr::List),
            btree_map(key(), inner, 0..3).prop_map(Attr::Set),
        ]
    })
}

/// Names of attributes that mean nothing to Nix.
fn key() -> impl Strategy<Value = String> {
    plain().prop_map(|text| format!("k{text}"))
}

fn text() -> impl Strategy<Value = Text> {
    let piece = prop_oneof![
        6 => plain().prop_map(Piece::Plain),
        1 => any::<Index>().prop_map(Piece::Own),
        1 => plain().prop_map(Piece::Source),
        3 => any::<(Index, Index)>().prop_map(|(drv, output)| Piece::Output(drv, output)),
        1 => any::<Index>().prop_map(Piece::File),
    ];
    vec(piece, 0..4)
}

/// Texts of which many want an escape, in one of the languages or the other.
fn plain() -> impl Strategy<Value = String> {
    let escaped = [
        "\"",
        "\\",
        "\n",
        "\r",
        "\t",
        "\r\n",
        "$",
        "${",
        "$$",
        "''",
        "}",
        "\\n",
        ")]",
        ",",
        "\u{1}",
        "\u{1f}",
        "\u{7f}",
        "\u{85}",
        "\u{e9}",
        "\u{2028}",
        "\u{fffd}",
        "\u{10ffff}",
    ];
    // Nix 2.8 has texts of its own for these two in JSON, and Nix's strings no NUL.
    let odd = ['\0', '\u{8}', '\u{c}'];
    let any = any::<char>().prop_map(move |char| if odd.contains(&char) { 'x' } else { char });
    let piece = prop_oneof![
        4 => select(escaped.map(String::from).to_vec()),
        3 => "[a-z /=-]{1,5}",
        1 => any.prop_map(String::from),
    ];
    vec(piece, 0..5).prop_map(|pieces| pieces.concat())
}

impl Kind {
    fn outputs(&self) -> &[&'static str] {
        match self {
            Kind::InputAddressed(outputs) | Kind::Floating(outputs, _) => outputs,
            Kind::Fixed(..) => &["out"],
        }
    }

    /// The attributes that say so.
    fn attrs(&self) -> Vec<(&'static str, String)> {
        let mode = |method| match method {
            Method::Nar => "recursive".to_owned(),
            _ => "flat".to_owned(),
        };
        match self {
            Kind::InputAddressed(_) => Vec::new(),
            Kind::Floating(_, MethodAlgorithm { method, algorithm }) => vec![
                ("outputHashAlgo", algorithm.name().to_owned()),
                ("outputHashMode", mode(*method)),
            ],
            Kind::Fixed(ContentAddress { method, hash }, encoding) => vec![
                ("outputHash", hash.digits_or_sri(*encoding)),
                ("outputHashAlgo", hash.algorithm().name().to_owned()),
                ("outputHashMode", mode(*method)),
            ],
        }
    }
}

/// How hashes are written in expressions.
trait DigitsOrSri {
    fn digits_or_sri(&self, encoding: Encoding) -> String;
}

impl DigitsOrSri for Hash {
    fn digits_or_sri(&self, encoding: Encoding) -> String {
        match encoding {
            Encoding::Sri => self.to_text(encoding),
            digits => self.digits(digits),
        }
    }
}

/// The Nix expression of a spec; `before` are the variables of those before.
fn expression(spec: &Spec, before: &[(String, &Spec)]) -> String {
    let context = Context {
        before,
        outputs: spec.kind.outputs(),
    };
    let mut text = format!(
        "derivation {{ name = {}; system = \"{SYSTEM}\"; builder = {}; args = [ ",
        quoted(&spec.name),
        context.text(&spec.builder)
    );
    for arg in &spec.args {
        text += &format!("{} ", context.text(arg));
    }
    text += "]; ";
    if spec.structured {
        text += "__structuredAttrs = true; ";
    }
    match &spec.kind {
        Kind::Fixed(..) => {}
        kind => {
            let outputs = kind.outputs().iter().map(|output| quoted(output));
            let outputs: Vec<_> = outputs.collect();
            let _ = write!(text, "outputs = [ {} ]; ", outputs.join(" "));
        }
    }
    if let Kind::Floating(..) = spec.kind {
        text += "__contentAddressed = true; ";
    }
    for (name, value) in spec.kind.attrs() {
        let _ = write!(text, "{name} = {}; ", quoted(&value));
    }
    text + &context.attrs(&spec.attrs, spec.structured) + "}"
}

struct Context<'a> {
    before: &'a [(String, &'a Spec)],
    outputs: &'a [&'static str],
}

impl Context<'_> {
    fn attrs(&self, attrs: &BTreeMap<String, Attr>, structured: bool) -> String {
        let attr = |(key, value): (&String, &Attr)| {
            let value = self.attr(value, structured);
            format!("{} = {value}; ", quoted(key))
        };
        attrs.iter().map(attr).collect()
    }

    fn attr(&self, attr: &Attr, structured: bool) -> String {
        let list = |items: Vec<&Attr>| {
            let items = items.into_iter().map(|item| self.attr(item, structured));
            format!("[ {} ]", items.collect::<Vec<_>>().join(" "))
        };
        match attr {
            Attr::Text(text) => self.text(text),
            // There is no literal of the smallest number.
            Attr::Int(i64::MIN) => format!("({} - 1)", i64::MIN + 1),
            Attr::Int(n) => format!("({n})"),
            Attr::Bool(bool) => bool.to_string(),
            Attr::Null => "null".to_owned(),
            Attr::List(items) => list(items.iter().collect()),
            Attr::Set(set) if structured => format!("{{ {}}}", self.attrs(set, true)),
            Attr::Set(set) => list(set.values().collect()),
        }
    }

    fn text(&self, text: &Text) -> String {
        let piece = |piece: &Piece| match piece {
            Piece::Plain(text) => escaped(text),
            Piece::Own(output) => {
                let output = quoted(self.outputs[output.index(self.outputs.len())]);
                format!("${{builtins.placeholder {output}}}")
            }
            Piece::Source(text) => {
                format!("${{builtins.toFile \"{SOURCE}\" {}}}", quoted(text))
            }
            Piece::Output(..) | Piece::File(_) if self.before.is_empty() => String::new(),
            Piece::Output(drv, output) => {
                let (variable, spec) = drv.get(self.before);
                format!("${{{variable}.{}}}", output.get(spec.kind.outputs()))
            }
            Piece::File(drv) => {
                let (variable, _) = drv.get(self.before);
                format!("${{builtins.unsafeDiscardOutputDependency {variable}.drvPath}}")
            }
        };
        format!("\"{}\"", text.iter().map(piece).collect::<String>())
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(text))
}

/// `text` inside of a string of Nix's language.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for char in text.chars() {
        match char {
            '"' | '\\' | '$' => out.extend(['\\', char]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            other => out.push(other),
        }
    }
    out
}

/// What we make of a spec.
#[derive(Debug, Clone)]
struct Made {
    path: StorePath,
    drv: Derivation,
    /// In the order of the spec, as the expression counts them.
    outputs: Vec<OutputName>,
    /// The sources that it needs, each with its text.
    sources: BTreeMap<StorePath, String>,
}

/// Makes the derivations of a case; `modulo` learns them.
fn make(case: &Case, modulo: &mut Modulo) -> Result<Vec<Made>, String> {
    let mut made = Vec::new();
    for spec in case {
        let maker = Maker {
            before: &made,
            spec,
            inputs: Inputs::default(),
            sources: BTreeMap::new(),
        };
        let next = maker.make(modulo).map_err(|e| e.to_string())?;
        modulo
            .add(next.path.clone(), &next.drv)
            .map_err(|e| e.to_string())?;
        made.push(next);
    }
    Ok(made)
}

struct Maker<'a> {
    before: &'a [Made],
    spec: &'a Spec,
    inputs: Inputs,
    sources: BTreeMap<StorePath, String>,
}

impl Maker<'_> {
    fn make(mut self, modulo: &Modulo) -> Result<Made, tk_path::DerivationError> {
        let spec = self.spec;
        let builder = self.text(&spec.builder);
        let args = spec.args.iter().map(|arg| self.text(arg).into()).collect();
        let mut attrs: BTreeMap<String, Value> = BTreeMap::new();
        for (key, attr) in &spec.attrs {
            attrs.insert(key.clone(), self.json(attr));
        }
        attrs.insert("name".into(), spec.name.as_str().into());
        attrs.insert("system".into(), SYSTEM.into());
        attrs.insert("builder".into(), builder.as_str().into());
        if !matches!(spec.kind, Kind::Fixed(..)) {
            attrs.insert("outputs".into(), spec.kind.outputs().into());
        }
        for (name, value) in spec.kind.attrs() {
            attrs.insert(name.into(), value.into());
        }
        let mut env = if spec.structured {
            BTreeMap::from([("__json".into(), serde_json::json!(attrs).to_string().into())])
        } else {
            attrs
                .iter()
                .map(|(key, v)| (key.as_str().into(), flat(v).into()))
                .collect()
        };
        let names = spec.kind.outputs().iter();
        let names = names.map(|name| OutputName::parse(name).expect("a name"));
        let names: Vec<_> = names.collect();
        let mut outputs = BTreeMap::new();
        for name in &names {
            let (output, variable) = match &spec.kind {
                Kind::InputAddressed(_) => (DerivationOutput::Deferred, String::new()),
                Kind::Floating(_, how) => (DerivationOutput::Floating(*how), placeholder(name)),
                Kind::Fixed(ca, _) => (DerivationOutput::Fixed(*ca), String::new()),
            };
            env.insert(name.as_str().into(), variable.into());
            outputs.insert(name.clone(), output);
        }
        let mut drv = Derivation {
            name: spec.name.clone(),
            outputs,
            inputs: self.inputs,
            platform: SYSTEM.into(),
            builder: builder.into(),
            args,
            env,
        };
        drv.fill_outputs(modulo)?;
        let path = drv.path(modulo.dir())?;
        Ok(Made {
            path,
            drv,
            outputs: names,
            sources: self.sources,
        })
    }

    fn json(&mut self, attr: &Attr) -> Value {
        match attr {
            Attr::Text(text) => self.text(text).into(),
            Attr::Int(n) => (*n).into(),
            Attr::Bool(bool) => (*bool).into(),
            Attr::Null => Value::Null,
            Attr::List(items) => items.iter().map(|item| self.json(item)).collect(),
            Attr::Set(set) if self.spec.structured => {
                let entries = set.iter().map(|(key, v)| (key.clone(), self.json(v)));
                Value::Object(entries.collect())
            }
            Attr::Set(set) => set.values().map(|item| self.json(item)).collect(),
        }
    }

    fn text(&mut self, text: &Text) -> String {
        text.iter().map(|piece| self.piece(piece)).collect()
    }

    fn piece(&mut self, piece: &Piece) -> String {
        let dir = StoreDir::default();
        match piece {
            Piece::Plain(text) => text.clone(),
            Piece::Own(output) => {
                let output = output.get(self.spec.kind.outputs());
                placeholder(&OutputName::parse(output).expect("a name"))
            }
            Piece::Source(text) => {
                let path = caches::text(SOURCE, text.as_bytes(), BTreeSet::new())
                    .0
                    .path;
                self.sources.insert(path.clone(), text.clone());
                self.inputs.srcs.insert(path.clone());
                dir.path(&path)
            }
            Piece::Output(..) | Piece::File(_) if self.before.is_empty() => String::new(),
            Piece::File(drv) => {
                let path = &drv.get(self.before).path;
                self.inputs.srcs.insert(path.clone());
                dir.path(path)
            }
            Piece::Output(drv, output) => {
                let Made {
                    path, drv, outputs, ..
                } = drv.get(self.before);
                let output = output.get(outputs).clone();
                let input = self.inputs.drvs.entry(path.clone()).or_default();
                input.outputs.insert(output.clone());
                let stated = drv.outputs[&output].path(&dir, &drv.name, &output);
                match stated.expect("a path") {
                    Some(path) => dir.path(&path),
                    None => Placeholder::ca_output(path, &output).to_string(),
                }
            }
        }
    }
}

/// A value as a variable of the environment.
fn flat(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "1".to_owned(),
        Value::Bool(false) | Value::Null => String::new(),
        Value::Array(items) => {
            let mut text = String::new();
            for (at, item) in items.iter().enumerate() {
                text += &flat(item);
                // As Nix does it: nothing behind an empty list, whatever comes.
                let empty = item.as_array().is_some_and(Vec::is_empty);
                if at + 1 < items.len() && !empty {
                    text.push(' ');
                }
            }
            text
        }
        other => other.to_string(),
    }
}

/// Cases as Nix has them, and as we do.
struct Batch<'a> {
    rig: &'a Rig,
    print: fn(&Derivation) -> Vec<u8>,
    cases: &'a [Case],
    place: Scratch,
}

impl<'a> Batch<'a> {
    fn new(rig: &'a Rig, print: fn(&Derivation) -> Vec<u8>, cases: &'a [Case]) -> Batch<'a> {
        Batch {
            rig,
            print,
            cases,
            place: Scratch::new(),
        }
    }

    fn verdicts(&self) -> Verdicts {
        let verdicts = self.instantiated()?;
        if verdicts.iter().any(Result::is_err) {
            return Ok(verdicts);
        }
        let (made, _) = self.made()?;
        let taken = self.taken(&made)?;
        let same = |case: &Vec<Made>| {
            let same = |made: &Made| {
                let ours = made.drv.to_json(&StoreDir::default(), shape(self.rig));
                equal(ours.as_ref().ok(), taken.get(&made.path))
            };
            case.iter().try_for_each(same)
        };
        Ok(made.iter().map(same).collect())
    }

    /// Whether Nix makes of the expressions what we make.
    fn instantiated(&self) -> Verdicts {
        let (made, modulo) = self.made()?;
        let mut theirs = self.instantiate()?.into_iter();
        let mut verdict = |case: &Vec<Made>| {
            let theirs: Vec<_> = theirs.by_ref().take(case.len()).collect();
            let mut pairs = case.iter().zip(theirs);
            pairs.try_for_each(|(made, path)| self.as_instantiated(made, &path, &modulo))
        };
        Ok(made.iter().map(&mut verdict).collect())
    }

    fn made(&self) -> Result<(Vec<Vec<Made>>, Modulo), String> {
        let mut modulo = Modulo::new(StoreDir::default());
        let cases = self.cases.iter();
        let made: Result<Vec<_>, String> = cases.map(|case| make(case, &mut modulo)).collect();
        made.map(|made| (made, modulo))
    }

    /// The paths of all derivations, in order.
    fn instantiate(&self) -> Result<Vec<String>, String> {
        let (mut definitions, mut variables) = (String::new(), String::new());
        for (number, case) in self.cases.iter().enumerate() {
            let mut before: Vec<(String, &Spec)> = Vec::new();
            for spec in case {
                let variable = format!("d{number}_{}", before.len());
                let expression = expression(spec, &before);
                let _ = writeln!(definitions, "{variable} = {expression};");
                let _ = write!(variables, " {variable}");
                before.push((variable, spec));
            }
        }
        let file = self.place.path().join("all.nix");
        let text = format!("let\n{definitions}in [{variables} ]\n");
        fs::write(&file, text).expect("writable");
        let mut command = self.rig.command("nix-instantiate");
        command.arg("--store").arg(self.store("instantiated"));
        let out = self.rig.try_run(command.arg(file))?;
        let out = String::from_utf8(out).map_err(|e| e.to_string())?;
        // Behind "!" the output that comes first.
        let path = |line: &str| line.split('!').next().unwrap_or_default().to_owned();
        let paths: Vec<_> = out.lines().map(path).collect();
        let wanted: usize = self.cases.iter().map(Vec::len).sum();
        equal(paths.len(), wanted).map(|()| paths)
    }

    fn as_instantiated(&self, made: &Made, path: &str, modulo: &Modulo) -> Verdict {
        let dir = StoreDir::default();
        let file = fs::read(self.store("instantiated").join(&path[1..]));
        let file = file.map_err(|e| format!("{path}: {e}"))?;
        let show = |bytes: &[u8]| bytes.escape_ascii().to_string();
        equal(show(&(self.print)(&made.drv)), show(&file))?;
        equal(dir.path(&made.path).as_str(), path)?;
        let drv = Derivation::parse_aterm(&dir, &made.drv.name, &file);
        let drv = drv.map_err(|e| e.to_string())?;
        equal(&drv, &made.drv)?;
        drv.check_outputs(modulo).map_err(|e| e.to_string())
    }

    /// What Nix shows of our files, which it copies out of a cache of ours: where it adds a
    /// derivation, it checks the paths in it.
    fn taken(&self, made: &[Vec<Made>]) -> Result<BTreeMap<StorePath, Value>, String> {
        let mut items = BTreeMap::new();
        for made in made.iter().flatten() {
            for (path, text) in &made.sources {
                let source = caches::text(SOURCE, text.as_bytes(), BTreeSet::new());
                items.insert(path.clone(), source);
            }
            let name = made.path.name().to_owned();
            let inputs = &made.drv.inputs;
            let references = inputs.srcs.iter().chain(inputs.drvs.keys()).cloned();
            let item = caches::text(&name, &(self.print)(&made.drv), references.collect());
            items.insert(made.path.clone(), item);
        }
        let cache = self.place.path().join("cache");
        let order = made.iter().flatten().flat_map(|made| {
            let sources = made.sources.keys();
            sources.chain([&made.path]).cloned()
        });
        let order: Vec<StorePath> = order.collect();
        let items: Vec<_> = order.iter().filter_map(|path| items.remove(path)).collect();
        caches::publish(&cache, items)?;
        let dir = StoreDir::default();
        let paths = made.iter().flatten().map(|made| dir.path(&made.path));
        let paths: BTreeSet<_> = paths.collect();
        let store = self.store("taken");
        let mut copy = self.rig.command("nix");
        copy.args(["copy", "--from"])
            .arg(format!("file://{}", cache.display()));
        copy.arg("--to").arg(&store).args(&paths);
        if self.rig.version == "2.8" {
            // It takes the file for its outputs otherwise.
            copy.arg("--derivation");
        }
        self.rig.try_run(&mut copy)?;
        self.shown(&store, &paths)
    }

    fn shown(
        &self,
        store: &PathBuf,
        paths: &BTreeSet<String>,
    ) -> Result<BTreeMap<StorePath, Value>, String> {
        let mut show = self.rig.command("nix");
        match self.rig.version {
            "2.8" => show.arg("show-derivation"),
            _ => show.args(["derivation", "show"]),
        };
        let out = self
            .rig
            .try_run(show.arg("--store").arg(store).args(paths))?;
        let mut json: Value = serde_json::from_slice(&out).map_err(|e| e.to_string())?;
        if shape(self.rig) == DerivationJsonVersion::V4 {
            json = json["derivations"].take();
        }
        let Value::Object(all) = json else {
            return Err(format!("{json} is not an object"));
        };
        let item = |(path, value): (String, Value)| {
            let base = path.rsplit('/').next().unwrap_or_default();
            let path = StorePath::parse(base).map_err(|e| e.to_string())?;
            Ok((path, value))
        };
        all.into_iter().map(item).collect()
    }

    fn store(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }
}

fn shape(rig: &Rig) -> DerivationJsonVersion {
    match rig.version {
        "2.8" => DerivationJsonVersion::V1,
        "2.26" => DerivationJsonVersion::V2,
        _ => DerivationJsonVersion::V4,
    }
}

fn printed(drv: &Derivation) -> Vec<u8> {
    drv.to_aterm(&StoreDir::default()).expect("printable")
}

/// The planted fault: tabs as they are.
fn with_tabs(drv: &Derivation) -> Vec<u8> {
    let text = String::from_utf8(printed(drv)).expect("generated as text");
    text.replace("\\t", "\t").into_bytes()
}

const SYSTEM: &str = "x86_64-linux";
/// The name of every source.
const SOURCE: &str = "source";
/// Cases at once: what a command line holds.
const BATCH: usize = 250;
