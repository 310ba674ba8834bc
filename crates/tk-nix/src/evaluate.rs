use crate::{Cause, Installable, InstallableSource, Invocation, Nix, NixFailure, Result};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};
use tk_path::{DerivedPath, OutputName, OutputsSpec, SingleDerivedPath, StoreDir, StorePath};
use tk_store::log::LogSink;

/// How Nix code is evaluated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EvalOptions {
    /// Let it see the machine: its environment, its time, files that nothing pins.
    pub impure: bool,
    /// Run nix with `--offline`, so that it asks no server.
    pub offline: bool,
    /// Do not write flake.lock.
    pub no_write_lock_file: bool,
    /// Inputs of the flake that are to be others: name, reference.
    pub override_inputs: Vec<(String, String)>,
    /// Arguments for a function in a file, as Nix code: name, expression.
    pub args: Vec<(String, String)>,
    /// The same with texts as values.
    pub arg_strs: Vec<(String, String)>,
    /// Where `<NAME>` is looked for before `NIX_PATH`: `PATH` or `NAME=PATH`.
    pub search_path: Vec<String>,
    /// The folder in which relative references begin; `None`: that of this process.
    pub folder: Option<PathBuf>,
}

impl EvalOptions {
    /// `what` with these options.
    pub(crate) fn apply(&self, mut what: Invocation, is_flake: bool) -> Invocation {
        if let Some(folder) = &self.folder {
            what = what.folder(folder);
        }
        for (given, flag) in [
            (self.impure, "--impure"),
            (self.offline, "--offline"),
            (self.no_write_lock_file && is_flake, "--no-write-lock-file"),
        ] {
            if given {
                what = what.arg(flag);
            }
        }
        for place in &self.search_path {
            what = what.args(["-I", place]);
        }
        let inputs = self.override_inputs.iter().filter(|_| is_flake);
        for (flag, pairs) in [
            ("--override-input", inputs.collect::<Vec<_>>()),
            ("--arg", self.args.iter().collect()),
            ("--argstr", self.arg_strs.iter().collect()),
        ] {
            for (name, value) in pairs {
                what = what.args([flag, name, value]);
            }
        }
        what
    }
}

/// A derivation that an [`Installable`] turned out to be, with the outputs that are wanted of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What is to be built, or is there: nothing but `path` if it is no derivation.
    pub path: DerivedPath,
    /// The derivation's name, such as `hello-2.12`; empty if it is not known.
    pub name: String,
    /// The system that it is built on; empty if it is not known.
    pub system: String,
    /// The outputs that it has, the main one first; empty if it is not known.
    pub outputs: Vec<OutputName>,
}

impl Target {
    /// What needs no evaluation.
    pub fn of(path: DerivedPath) -> Self {
        Target {
            path,
            name: String::new(),
            system: String::new(),
            outputs: Vec::new(),
        }
    }

    /// The derivation, if it is one that is known.
    pub fn derivation(&self) -> Option<&StorePath> {
        match &self.path {
            DerivedPath::Built {
                drv: SingleDerivedPath::Opaque(drv),
                ..
            } => Some(drv),
            _ => None,
        }
    }
}

impl Nix {
    /// The value of what is named, as JSON. Derivations are their output paths, which are not
    /// built.
    ///
    /// # Errors
    /// [`Cause::Misused`] for a path of the store, which has no value.
    pub async fn eval(
        &self,
        what: &Installable,
        options: &EvalOptions,
        log: &dyn LogSink,
    ) -> Result<Value> {
        let evaluated = self
            .json(invocation(&["eval", "--json"], what, options)?, log)
            .await;
        match evaluated {
            Ok(value) => Ok(value),
            Err(failure) => Err(self.with_near(failure, what, options).await),
        }
    }

    /// What is named, evaluated to what could be built: one derivation or, if it is a set of a file,
    /// all of them in it. Derivations are in the store afterwards; nothing is built but what the
    /// evaluation itself needs.
    pub async fn targets(
        &self,
        what: &Installable,
        dir: &StoreDir,
        options: &EvalOptions,
        log: &dyn LogSink,
    ) -> Result<Vec<Target>> {
        self.targets_with(what, dir, options, |ask| ask, log).await
    }

    /// As [`Nix::targets`], with `more` for the run that evaluates.
    pub(crate) async fn targets_with(
        &self,
        what: &Installable,
        dir: &StoreDir,
        options: &EvalOptions,
        more: impl FnOnce(Invocation) -> Invocation,
        log: &dyn LogSink,
    ) -> Result<Vec<Target>> {
        if let InstallableSource::Store(path) = &what.source {
            return Ok(vec![Target::of(path.clone())]);
        }
        let ask = invocation(&["eval", "--json"], what, options)?
            .args(["--apply", &apply(options, DESCRIBE)]);
        let value = match self.json(more(ask), log).await {
            Ok(value) => value,
            Err(failure) => return Err(self.with_near(failure, what, options).await),
        };
        let all: Vec<Described> = serde_json::from_value(value)
            .map_err(|e| NixFailure::new(Cause::Other, format!("{what} evaluates to {e}")))?;
        if all.is_empty() {
            let words = format!("{what} is neither a derivation nor a path of the store");
            return Err(NixFailure::new(Cause::Evaluation, words));
        }
        let is_flake = matches!(what.source, InstallableSource::Flake(_));
        let targets = all.into_iter().map(|described| {
            described
                .target(dir, what.outputs.as_ref(), is_flake)
                .map_err(|why| NixFailure::new(Cause::Evaluation, format!("{what}: {why}")))
        });
        targets.collect()
    }

    /// A failure about a missing attribute, with the names that are similar.
    async fn with_near(
        &self,
        mut failure: NixFailure,
        what: &Installable,
        options: &EvalOptions,
    ) -> NixFailure {
        let Cause::MissingAttribute { near, .. } = &mut failure.cause else {
            return failure;
        };
        let (parent, last) = what.attr.rsplit_once('.').unwrap_or(("", &what.attr));
        let names = self.names(what, parent, options).await;
        let mut similar: Vec<_> = names
            .into_iter()
            .filter_map(|name| Some((distance(last, &name, FAR)?, name)))
            .collect();
        similar.sort();
        let similar = similar.into_iter().map(|(_, name)| name);
        let known: BTreeSet<String> = near.iter().cloned().collect();
        near.extend(similar.filter(|name| !known.contains(name)));
        near.truncate(NEAR);
        failure
    }

    /// The names in the set `parent`; none if that cannot be found out.
    async fn names(&self, what: &Installable, parent: &str, options: &EvalOptions) -> Vec<String> {
        let mut set = what.clone();
        set.attr = match (&what.source, parent) {
            (InstallableSource::Flake(_), "") => match self.system().await {
                Ok(system) => format!("packages.{system}"),
                Err(_) => return Vec::new(),
            },
            (_, parent) => parent.to_owned(),
        };
        let Ok(ask) = invocation(&["eval", "--json"], &set, options) else {
            return Vec::new();
        };
        let names = apply(options, "builtins.attrNames value");
        let names = self.json(ask.args(["--apply", &names]), &()).await;
        names
            .ok()
            .and_then(|v| serde_json::from_value(v).ok())
            .unwrap_or_default()
    }

    /// The system for which it builds, such as `x86_64-linux`.
    pub async fn system(&self) -> Result<String> {
        let what = Invocation::new(["eval", "--json", "--impure"]);
        let what = what.args(["--expr", "builtins.currentSystem"]);
        match self.json(what, &()).await? {
            Value::String(system) => Ok(system),
            other => Err(NixFailure::new(
                Cause::Other,
                format!("the system is {other}"),
            )),
        }
    }
}

/// `command` of nix about `what`.
pub(crate) fn invocation(
    command: &[&str],
    what: &Installable,
    options: &EvalOptions,
) -> Result<Invocation> {
    // Such an attribute would be taken for an option of nix.
    if what.attr.starts_with('-') {
        let words = format!("'{}' is not an attribute", what.attr);
        return Err(NixFailure::new(Cause::Misused, words));
    }
    match &what.source {
        InstallableSource::Flake(reference) => {
            let path = reference.strip_prefix("path:").unwrap_or(reference);
            let path = path.split('?').next().unwrap_or(path);
            if path.starts_with(['/', '.']) {
                there(Path::new(path), options)?;
            }
        }
        // Others are addresses, and names in the search path.
        InstallableSource::File(file) if !file.to_string_lossy().contains(['<', ':']) => {
            there(file, options)?
        }
        _ => {}
    }
    let is_flake = matches!(what.source, InstallableSource::Flake(_));
    let base = options.apply(Invocation::new(command), is_flake);
    let attr = |base: Invocation| match what.attr.as_str() {
        "" => base,
        attr => base.arg(attr),
    };
    match &what.source {
        InstallableSource::Flake(reference) => Ok(base.arg(format!("{reference}#{}", what.attr))),
        InstallableSource::File(file) => Ok(attr(base.arg("--file").arg(file))),
        InstallableSource::Expr(code) => Ok(attr(base.args(["--expr", code]))),
        InstallableSource::Store(_) => {
            let words = format!("{what} is a path of the store; it has no value");
            Err(NixFailure::new(Cause::Misused, words))
        }
    }
}

/// Fails if `path` is not there: versions of nix differ in what they say of one that is not.
fn there(path: &Path, options: &EvalOptions) -> Result<()> {
    let folder = options.folder.as_deref().unwrap_or(Path::new(""));
    match folder.join(path).symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let words = format!("there is no {}", path.display());
            Err(NixFailure::new(Cause::Misused, words))
        }
        _ => Ok(()),
    }
}

/// A function for `--apply` that gives `body`, in which `value` is what was named; a function in a
/// file is called first, as nix build does it, with the arguments that there are for it.
fn apply(options: &EvalOptions, body: &str) -> String {
    let args = options
        .args
        .iter()
        .map(|(name, code)| (name, format!("({code})")));
    let texts = options
        .arg_strs
        .iter()
        .map(|(name, text)| (name, quote(text)));
    let args: String = args
        .chain(texts)
        .map(|(name, value)| format!("{} = {value}; ", quote(name)))
        .collect();
    format!(
        "given: let
           args = {{ {args}}};
           wanted = builtins.intersectAttrs (builtins.functionArgs given) args;
           value = if builtins.isFunction given then given wanted else given;
         in {body}"
    )
}

/// `text` as a text of the Nix language.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\' | '$') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.push('"');
    quoted
}

/// As [`DESCRIBE`] prints it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    /// Of what is no derivation.
    path: Option<String>,
    #[serde(default)]
    drv_path: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    system: String,
    #[serde(default)]
    outputs: Vec<String>,
    /// The one that was selected, as in `hello.dev`.
    selected: Option<String>,
    to_install: Option<Vec<String>>,
}

impl Described {
    fn target(
        self,
        dir: &StoreDir,
        wanted: Option<&OutputsSpec>,
        is_flake: bool,
    ) -> Result<Target, String> {
        let said = |e: &dyn std::fmt::Display| e.to_string();
        if let Some(path) = &self.path {
            let (path, _) = dir.split(path).map_err(|e| said(&e))?;
            return Ok(Target::of(DerivedPath::Opaque(path)));
        }
        let drv = dir.parse(&self.drv_path).map_err(|e| said(&e))?;
        let names = |all: &[String]| {
            let names = all.iter().map(|name| OutputName::parse(name));
            names.collect::<Result<Vec<_>, _>>().map_err(|e| said(&e))
        };
        let outputs = names(&self.outputs)?;
        let usual = match (&self.selected, &self.to_install) {
            (Some(one), _) => names(std::slice::from_ref(one))?,
            (None, Some(some)) if !some.is_empty() => names(some)?,
            // As Nix: one output of an attribute of a flake, all of an attribute of a file.
            _ if is_flake => match outputs.iter().find(|name| name.as_str() == "out") {
                Some(out) => vec![out.clone()],
                None => outputs.iter().take(1).cloned().collect(),
            },
            _ => outputs.clone(),
        };
        let wanted = wanted.cloned();
        let outputs_spec =
            wanted.unwrap_or_else(|| OutputsSpec::Names(usual.into_iter().collect()));
        Ok(Target {
            path: DerivedPath::Built {
                drv: SingleDerivedPath::Opaque(drv),
                outputs: outputs_spec,
            },
            name: self.name,
            system: self.system,
            outputs,
        })
    }
}

/// How many changes of one letter make `b` of `a`; `None` if more than `most`.
fn distance(a: &str, b: &str, most: usize) -> Option<usize> {
    let (a, b): (Vec<_>, Vec<_>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > most || a.len() > LONG || b.len() > LONG {
        return None;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let least = (row[j] + 1)
                .min(row[j + 1] + 1)
                .min(diagonal + usize::from(x != y));
            diagonal = std::mem::replace(&mut row[j + 1], least);
        }
    }
    Some(row[b.len()]).filter(|distance| *distance <= most)
}

/// Describes what could be built: one derivation, a path, or the derivations in a set. With the
/// system's `type`, not `lib.isDerivation`, since there may be no nixpkgs.
const DESCRIBE: &str = r#"
let
  isDrv = v: builtins.isAttrs v && (v.type or null) == "derivation";
  one = d: {
    drvPath = d.drvPath;
    name = d.name or "";
    system = d.system or "";
    outputs = d.outputs or [ "out" ];
    selected = if d.outputSpecified or false then d.outputName else null;
    toInstall = d.meta.outputsToInstall or null;
  };
  isPath = v: builtins.isPath v || builtins.isString v && builtins.hasContext v;
in
if isDrv value then [ (one value) ]
else if isPath value then [ { path = "${value}"; } ]
else if builtins.isAttrs value then map one (builtins.filter isDrv (builtins.attrValues value))
else if builtins.isList value then map one (builtins.filter isDrv value)
else [ ]"#;

/// Similar names that are told.
const NEAR: usize = 5;
/// Changes of one letter up to which a name is similar.
const FAR: usize = 2;
/// Letters of a name beyond which it is not compared.
const LONG: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in [
            ("hello", "hello", Some(0)),
            ("helo", "hello", Some(1)),
            ("hlelo", "hello", Some(2)),
            ("", "ab", Some(2)),
            ("abc", "xyz", None),
            ("a", "abcd", None),
        ] {
            assert_eq!(distance(a, b, FAR), expected, "{a} {b}");
            assert_eq!(distance(b, a, FAR), expected, "{b} {a}");
        }
    }

    #[test]
    fn texts_of_the_language() {
        for (text, quoted) in [
            ("a b", r#""a b""#),
            (r#"a"b\c"#, r#""a\"b\\c""#),
            ("${x}$$", r#""\${x}\$\$""#),
        ] {
            assert_eq!(quote(text), quoted);
        }
    }

    fn described(value: Value) -> Described {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn outputs_that_are_usual() {
        let dir = StoreDir::default();
        let drv = format!("{dir}/{}-x.drv", "a".repeat(32));
        let base = |extra: Value| {
            let mut value = serde_json::json!({
                "drvPath": drv, "name": "x", "system": "s", "outputs": ["bin", "out", "dev"],
                "selected": null, "toInstall": null,
            });
            for (key, extra) in extra.as_object().unwrap() {
                value[key] = extra.clone();
            }
            value
        };
        let none = serde_json::json!({});
        for (extra, wanted, is_flake, expected) in [
            (none.clone(), None, true, "out"),
            (none.clone(), None, false, "bin,dev,out"),
            (none.clone(), Some("*"), true, "*"),
            (
                serde_json::json!({"toInstall": ["bin", "dev"]}),
                None,
                true,
                "bin,dev",
            ),
            (
                serde_json::json!({"toInstall": ["bin"], "selected": "dev"}),
                None,
                false,
                "dev",
            ),
            (
                serde_json::json!({"outputs": ["lib", "doc"]}),
                None,
                true,
                "lib",
            ),
        ] {
            let wanted = wanted.map(|text: &str| text.parse::<OutputsSpec>().unwrap());
            let described = described(base(extra.clone()));
            let target = described.target(&dir, wanted.as_ref(), is_flake).unwrap();
            match target.path {
                DerivedPath::Built { outputs, .. } => {
                    assert_eq!(outputs.to_string(), expected, "{extra}");
                }
                other => panic!("{other:?}"),
            }
        }
        let file = format!("{dir}/{}-source/a/b", "a".repeat(32));
        let target = described(serde_json::json!({ "path": file }));
        let target = target.target(&dir, None, true).unwrap();
        assert!(matches!(target.path, DerivedPath::Opaque(_)));
    }
}
