//! What makes a build depend on more than it declares.

use crate::{
    Cause, EvalOptions, Installable, InstallableSource, Nix, NixFailure, Result, Target,
    flake::FlakeMetadata,
};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};
use tk_nar::{Decoder, Event};
use tk_path::{
    Algorithm, Derivation, DerivationOutput, DerivedPath, SingleDerivedPath, StoreDir, StorePath,
};
use tk_store::{Error, Store, derivation, log::LogSink};

/// One thing that makes a build impure, or may.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Which kind of thing, such as `sandboxOff`: a word that stays the same.
    pub kind: &'static str,
    /// Where: a derivation (a whole path), an input, a setting.
    pub place: String,
    /// What is the matter, as a sentence.
    pub message: String,
    /// What to do about it.
    pub advice: &'static str,
}

/// How bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The same build may give something else, here or elsewhere.
    Error,
    /// It gives the same as long as something holds that nothing enforces.
    Warning,
    /// It is less than a warning, but worth knowing.
    Note,
}

impl Severity {
    /// The word in JSON: `error`, `warning`, `note`.
    pub const fn name(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Finding {
    fn new(
        severity: Severity,
        kind: &'static str,
        place: impl Into<String>,
        message: impl Into<String>,
        advice: &'static str,
    ) -> Self {
        Finding {
            severity,
            kind,
            place: place.into(),
            message: message.into(),
            advice,
        }
    }

    /// Returns the finding as the object `{"severity","kind","where","message","advice"}`.
    pub fn to_json(&self) -> Value {
        json!({
            "severity": self.severity.name(), "kind": self.kind, "where": self.place,
            "message": self.message, "advice": self.advice,
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// All that makes `what` impure: the settings of `nix`, how it is evaluated, the inputs of its flake, and
/// the derivations that it is built from. The worst come first. flake.lock is not written.
///
/// Derivations are read from `store`. Without `nix` settings are not looked at, and `what` must be a
/// derivation of the store. The settings are those of this machine; a daemon elsewhere has its own.
///
/// # Errors
/// When `what` cannot be evaluated or read; [`Cause::Misused`] for a path that is no derivation.
pub async fn audit(
    nix: Option<&Nix>,
    store: &dyn Store,
    what: &Installable,
    options: &EvalOptions,
    log: &dyn LogSink,
) -> Result<Vec<Finding>> {
    let options = EvalOptions {
        no_write_lock_file: true,
        ..options.clone()
    };
    let mut findings = Vec::new();
    let targets = match (&what.source, nix) {
        (InstallableSource::Store(path), _) => vec![Target::of(path.clone())],
        (_, None) => {
            let words = format!("{what} must be evaluated, which needs nix");
            return Err(NixFailure::new(Cause::NoNix, words));
        }
        (source, Some(nix)) => {
            findings.extend(evaluation(what, &options));
            if let InstallableSource::Flake(reference) = source {
                let metadata = nix.flake_metadata(reference, &options, log).await?;
                let lock = lock_file(store, &metadata).await?;
                findings.extend(audit_flake(&metadata, lock.as_ref()));
            }
            nix.targets(what, store.dir(), &options, log).await?
        }
    };
    if let Some(nix) = nix {
        findings.extend(audit_settings(&nix.settings().await?));
    }
    let roots: Result<BTreeSet<StorePath>> = targets.iter().map(root).collect();
    findings.extend(closure(store, roots?).await?);
    findings.sort();
    findings.dedup();
    Ok(findings)
}

/// What in the settings of nix, by their names, lets a build see more than its inputs.
pub fn audit_settings(settings: &BTreeMap<String, Value>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |severity, kind, place: &str, message: String, advice| {
        findings.push(Finding::new(severity, kind, place, message, advice));
    };
    let sandbox = settings.get("sandbox").map(plain).unwrap_or_default();
    match sandbox.as_str() {
        "false" => find(
            Severity::Error,
            "sandboxOff",
            "sandbox",
            "builders see the whole machine and the network".into(),
            "set sandbox = true in nix.conf",
        ),
        "relaxed" => find(
            Severity::Warning,
            "sandboxRelaxed",
            "sandbox",
            "derivations with __noChroot see the whole machine".into(),
            "set sandbox = true in nix.conf",
        ),
        _ => (),
    }
    let yes = |name: &str| settings.get(name).map(plain).as_deref() == Some("true");
    if sandbox != "false" && yes("sandbox-fallback") {
        find(
            Severity::Warning,
            "sandboxFallback",
            "sandbox-fallback",
            "where the kernel allows no sandbox, builds go on without, and nobody is told".into(),
            "set sandbox-fallback = false in nix.conf",
        );
    }
    for name in ["sandbox-paths", "extra-sandbox-paths"] {
        let paths = settings.get(name).map(words).unwrap_or_default();
        for path in paths.iter().filter(|path| !is_shell(path)) {
            find(
                Severity::Warning,
                "sandboxPath",
                name,
                format!("builders see {path} of this machine"),
                "take it off the setting, or make what it holds an input",
            );
        }
    }
    for name in ["allowed-impure-host-deps", "impure-env"] {
        let given = settings.get(name).map(words).unwrap_or_default();
        if !given.is_empty() {
            find(
                Severity::Note,
                "impureHostDeps",
                name,
                format!(
                    "derivations may ask for {} of this machine",
                    given.join(", ")
                ),
                "empty it where nothing needs it",
            );
        }
    }
    findings
}

/// What in the inputs of a flake is not pinned. `lock` is its flake.lock as it is; `metadata` has the one
/// that nix would write.
pub fn audit_flake(metadata: &FlakeMetadata, lock: Option<&Value>) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(tree(metadata));
    let held = lock.map(inputs).unwrap_or_default();
    for (name, node) in inputs(&metadata.locks) {
        let same = held
            .get(&name)
            .is_some_and(|h| h.get("original") == node.get("original"));
        if !same {
            let message = match lock {
                Some(_) => "flake.lock does not have it as flake.nix asks for it",
                None => "there is no flake.lock, so that it is looked up anew each time",
            };
            findings.push(Finding::new(
                Severity::Error,
                "unlockedInput",
                &name,
                message,
                "run nix flake lock, and keep flake.lock with the flake",
            ));
        }
        findings.extend(pinned(&name, node));
        findings.extend(floating(&name, node));
    }
    findings
}

/// What in one derivation, whose path is `path`, lets its builder see more than its inputs, or lets
/// somebody exchange what it fetches.
pub fn audit_derivation(dir: &StoreDir, path: &StorePath, drv: &Derivation) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |severity, kind, message: String, advice| {
        findings.push(Finding::new(
            severity,
            kind,
            dir.path(path),
            message,
            advice,
        ));
    };
    let attributes = Attributes::of(drv);
    let mut fixed = false;
    for (name, output) in &drv.outputs {
        match output {
            DerivationOutput::Impure(_) => find(
                Severity::Error,
                "impureDerivation",
                format!("it is impure: its output {name} may be another each time"),
                "take __impure off it",
            ),
            DerivationOutput::Fixed(ca) => {
                fixed = true;
                let hash = &ca.hash;
                if hash.as_bytes().iter().all(|byte| *byte == 0) {
                    find(
                        Severity::Error,
                        "noHash",
                        "its content is to be fixed, but it states no hash".into(),
                        "build it once, and write the hash that nix tells into it",
                    );
                }
                if matches!(hash.algorithm(), Algorithm::Md5 | Algorithm::Sha1) {
                    find(
                        Severity::Warning,
                        "weakHash",
                        format!("what it fetches is fixed by {} only", hash.algorithm()),
                        "state its sha256",
                    );
                }
            }
            _ => (),
        }
    }
    if attributes.is_true("__noChroot") {
        find(
            Severity::Error,
            "noChroot",
            "it asks to be built without the sandbox".into(),
            "take __noChroot off it",
        );
    }
    if attributes.is_given("__impureHostDeps") {
        find(
            Severity::Warning,
            "impureHostDeps",
            "it asks for files of the machine (__impureHostDeps)".into(),
            "make them inputs",
        );
    }
    if attributes.is_given("impureEnvVars") && !fixed {
        find(
            Severity::Warning,
            "impureEnvVars",
            "it asks for variables of the daemon's environment, which only what has a fixed hash gets".into(),
            "take impureEnvVars off it, or fix its hash",
        );
    }
    let builder = String::from_utf8_lossy(&drv.builder);
    if builder.starts_with('/') && dir.split(&builder).is_err() {
        find(
            Severity::Warning,
            "hostBuilder",
            format!("its builder {builder} belongs to the machine"),
            "take the builder from an input, such as \"${bash}/bin/bash\"",
        );
    }
    findings
}

/// What the way of evaluating lets in.
fn evaluation(what: &Installable, options: &EvalOptions) -> Vec<Finding> {
    let mut findings = Vec::new();
    if options.impure {
        findings.push(Finding::new(
            Severity::Error,
            "impureEvaluation",
            what.to_string(),
            "it is evaluated with --impure: its code sees this machine, its environment and the time",
            "evaluate it without --impure",
        ));
    } else if matches!(
        what.source,
        InstallableSource::File(_) | InstallableSource::Expr(_)
    ) {
        findings.push(Finding::new(
            Severity::Warning,
            "unpinnedEvaluation",
            what.to_string(),
            "code that is in no flake sees this machine while it is evaluated",
            "make it a flake",
        ));
    }
    for pair in &options.override_inputs {
        findings.push(Finding::new(
            Severity::Warning,
            "overriddenInput",
            &pair.0,
            format!("{} is taken instead of what flake.lock says", pair.1),
            "leave --override-input out",
        ));
    }
    findings
}

/// Where the flake itself comes from.
fn tree(metadata: &FlakeMetadata) -> Option<Finding> {
    let url = &metadata.resolved_url;
    let revision = metadata.revision.as_deref();
    let clean = revision.is_some_and(|revision| !revision.ends_with("-dirty"));
    if url.starts_with("git") && !clean {
        return Some(Finding::new(
            Severity::Warning,
            "dirtyTree",
            url,
            "it has changes that are not committed, so that nobody else can get it",
            "commit them",
        ));
    }
    url.starts_with("path:").then(|| {
        Finding::new(
            Severity::Note,
            "noRevision",
            url,
            "it is a folder of this machine, not a revision of anything",
            "keep it in git",
        )
    })
}

/// Whether an input is always the same.
fn pinned(name: &str, node: &Value) -> Option<Finding> {
    let locked = &node["locked"];
    let text = |key: &str| locked[key].as_str();
    let kind = text("type").unwrap_or_default();
    // A folder of the flake itself has no hash of its own.
    if kind == "path" && node.get("parent").is_some() {
        return None;
    }
    if text("narHash").is_none() {
        let severity = match text("rev") {
            Some(_) => Severity::Note,
            None => Severity::Error,
        };
        return Some(Finding::new(
            severity,
            "noNarHash",
            name,
            match severity {
                Severity::Error => "flake.lock has neither a hash nor a revision of it",
                _ => "flake.lock has its revision, but no hash of its content",
            },
            "run nix flake update for it",
        ));
    }
    let local = match kind {
        "path" => text("path"),
        "git" | "hg" | "tarball" | "file" => text("url").filter(|url| url.starts_with("file:")),
        _ => None,
    };
    local.map(|place| {
        Finding::new(
            Severity::Warning,
            "localInput",
            name,
            format!("it is {place} of this machine, where nobody else can get it"),
            "name a place that others reach",
        )
    })
}

/// Whether an input changes when the lock is written anew.
fn floating(name: &str, node: &Value) -> Option<Finding> {
    let original = &node["original"];
    let text = |key: &str| original[key].as_str();
    let is_pinned = text("rev").is_some() || text("narHash").is_some();
    let (kind, message) = match text("type")? {
        _ if is_pinned => return None,
        "indirect" => {
            let id = text("id").unwrap_or(name);
            let message = format!("what '{id}' means is up to the registry of whoever updates it");
            ("registryInput", message)
        }
        "path" => return None,
        "tarball" | "file" => {
            let url = text("url").unwrap_or_default();
            (
                "floatingInput",
                format!("what {url} gives may change, and nothing states its hash"),
            )
        }
        _ => {
            let branch = match text("ref") {
                Some(branch) => format!("the branch {branch}"),
                None => "the default branch".into(),
            };
            (
                "floatingInput",
                format!("it follows {branch}: only flake.lock holds it"),
            )
        }
    };
    Some(Finding::new(
        Severity::Warning,
        kind,
        name,
        message,
        "name a revision, or be sure that flake.lock is always kept",
    ))
}

/// The inputs in a lock, by their names from the root (`nixpkgs`, `a/nixpkgs`), each with its node. Those
/// that follow others are left out.
fn inputs(lock: &Value) -> BTreeMap<String, &Value> {
    let mut found = BTreeMap::new();
    let root = lock["root"].as_str().unwrap_or("root");
    let mut todo = vec![(String::new(), root)];
    let mut seen = BTreeSet::new();
    while let Some((prefix, key)) = todo.pop() {
        // Each node once: a lock may have cycles.
        if !seen.insert(key) || found.len() > MAX_INPUTS {
            continue;
        }
        let node = &lock["nodes"][key];
        for (name, target) in node["inputs"].as_object().into_iter().flatten() {
            let (Some(target), name) = (target.as_str(), format!("{prefix}{name}")) else {
                continue;
            };
            found.insert(name.clone(), &lock["nodes"][target]);
            todo.push((format!("{name}/"), target));
        }
    }
    found
}

/// The flake.lock in the sources of a flake; `None` if there is none.
async fn lock_file(store: &dyn Store, metadata: &FlakeMetadata) -> Result<Option<Value>> {
    let Ok((path, _)) = store.dir().split(&metadata.path) else {
        let words = "nix does not tell where the sources of the flake are";
        return Err(NixFailure::new(Cause::Other, words));
    };
    let folder = metadata
        .resolved_url
        .split(['?', '&'])
        .find_map(|p| p.strip_prefix("dir="));
    let mut wanted: Vec<&str> = folder.unwrap_or_default().split('/').collect();
    wanted.retain(|part| !part.is_empty());
    wanted.push("flake.lock");
    let Some(text) = read_file(store, &path, &wanted.join("/")).await? else {
        return Ok(None);
    };
    let lock = serde_json::from_slice(&text);
    let lock =
        lock.map_err(|e| NixFailure::new(Cause::Misused, format!("flake.lock is not JSON: {e}")))?;
    Ok(Some(lock))
}

/// A file in a path of the store.
async fn read_file(store: &dyn Store, path: &StorePath, file: &str) -> Result<Option<Vec<u8>>> {
    let mut nar = store.nar(path).await?;
    let mut decoder = Decoder::new();
    let (mut place, mut levels) = (Vec::new(), Vec::new());
    let mut contents: Option<Vec<u8>> = None;
    let bad = |e: String| NixFailure::from(Error::malformed(path.to_string(), e));
    while let Some(chunk) = nar.next().await {
        let chunk = chunk?;
        let mut rest = &chunk[..];
        loop {
            let fed = decoder.feed(rest).map_err(|e| bad(e.to_string()))?;
            rest = &rest[fed.consumed..];
            match fed.event {
                None => break,
                Some(Event::Directory) => levels.push(place.len()),
                Some(Event::Entry { name }) => {
                    place.truncate(levels.last().copied().unwrap_or(0));
                    if !place.is_empty() {
                        place.push(b'/');
                    }
                    place.extend_from_slice(name);
                }
                Some(Event::LeaveDirectory) => {
                    levels.pop();
                }
                Some(Event::Regular { size, .. }) if place == file.as_bytes() => {
                    if size > MAX_LOCK {
                        return Err(bad(format!("{file} has {size} bytes, more than any lock")));
                    }
                    contents = Some(Vec::new());
                }
                Some(Event::Contents(piece)) => {
                    if let Some(contents) = &mut contents {
                        contents.extend_from_slice(piece);
                    }
                }
                Some(Event::EndRegular) if contents.is_some() => return Ok(contents),
                Some(_) => (),
            }
        }
    }
    decoder.finish().map_err(|e| bad(e.to_string()))?;
    Ok(None)
}

fn root(target: &Target) -> Result<StorePath> {
    let drv = match &target.path {
        DerivedPath::Built {
            drv: SingleDerivedPath::Opaque(drv),
            ..
        } => Some(drv),
        _ => None,
    };
    drv.cloned().ok_or_else(|| {
        let path = target.path.base();
        let words = format!("{path} is not a derivation; name the one that it comes from");
        NixFailure::new(Cause::Misused, words)
    })
}

/// The findings in `roots` and all derivations that they need.
async fn closure(store: &dyn Store, roots: BTreeSet<StorePath>) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut seen = roots.clone();
    let mut todo = roots;
    while !todo.is_empty() {
        let reads = todo.into_iter().map(|path| async move {
            let drv = derivation::read(store, &path).await?;
            Ok::<_, Error>((path, drv))
        });
        let read: Vec<_> = stream::iter(reads)
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        todo = BTreeSet::new();
        for (path, drv) in read {
            findings.extend(audit_derivation(store.dir(), &path, &drv));
            let inputs = drv.inputs.drvs.into_keys();
            todo.extend(inputs.filter(|input| seen.insert(input.clone())));
        }
        if seen.len() > MAX_DERIVATIONS {
            let words = format!("it needs more than {MAX_DERIVATIONS} derivations");
            return Err(NixFailure::new(Cause::Misused, words));
        }
    }
    Ok(findings)
}

/// The attributes of a derivation, whether in its environment or structured.
struct Attributes<'a> {
    drv: &'a Derivation,
    structured: Value,
}

impl<'a> Attributes<'a> {
    fn of(drv: &'a Derivation) -> Self {
        let structured = drv.structured_attrs();
        let structured = structured.and_then(|text| serde_json::from_slice(text).ok());
        Attributes {
            drv,
            structured: structured.unwrap_or_default(),
        }
    }

    fn is_true(&self, name: &str) -> bool {
        let plain = self
            .drv
            .env
            .get(name.as_bytes())
            .is_some_and(|value| *value == "1");
        plain || self.structured[name] == true
    }

    fn is_given(&self, name: &str) -> bool {
        let plain = self.drv.env.get(name.as_bytes());
        let structured = &self.structured[name];
        plain.is_some_and(|value| !value.is_empty()) || !words(structured).is_empty()
    }
}

/// A setting as nix.conf has it: versions of Nix print some as texts, others as they are meant.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A setting that is a list: printed as one, as a text, or as an object with more about each.
fn words(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => text.split_whitespace().map(str::to_owned).collect(),
        Value::Array(all) => all.iter().map(plain).collect(),
        Value::Object(all) => {
            let pair = |(name, about): (&String, &Value)| match about["source"].as_str() {
                Some(source) if source != name => format!("{name}={source}"),
                _ => name.clone(),
            };
            all.iter().map(pair).collect()
        }
        _ => Vec::new(),
    }
}

/// The shell that every sandbox has.
fn is_shell(path: &str) -> bool {
    path == "/bin/sh" || path.starts_with("/bin/sh=")
}

/// Derivations read at once.
const AT_ONCE: usize = 16;
/// Derivations that are looked at.
const MAX_DERIVATIONS: usize = 100_000;
/// Inputs of a flake that are looked at.
const MAX_INPUTS: usize = 10_000;
/// Bytes of a flake.lock. Large ones have some hundred KiB.
const MAX_LOCK: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(findings: &[Finding]) -> Vec<String> {
        let told = findings.iter();
        told.map(|f| format!("{} {} {}", f.severity, f.kind, f.place))
            .collect()
    }

    /// As 2.8, 2.26 and 2.34 print them.
    #[test]
    fn settings() {
        let shell = json!({"/bin/sh": {"optional": false, "source": "/usr/bin/bash-static"}});
        for (settings, expected) in [
            (
                json!({"sandbox": false, "sandbox-fallback": true}),
                &["error sandboxOff sandbox"][..],
            ),
            (json!({"sandbox": "false"}), &["error sandboxOff sandbox"]),
            (
                json!({"sandbox": true, "sandbox-fallback": false, "sandbox-paths": []}),
                &[],
            ),
            (
                json!({"sandbox": true, "sandbox-paths": shell, "impure-env": {}}),
                &[],
            ),
            (
                json!({"sandbox": "relaxed", "sandbox-fallback": true, "sandbox-paths": ["/bin/sh=/b", "/dev/kvm"]}),
                &[
                    "warning sandboxRelaxed sandbox",
                    "warning sandboxFallback sandbox-fallback",
                    "warning sandboxPath sandbox-paths",
                ],
            ),
            (
                json!({"sandbox": true, "extra-sandbox-paths": "/a /b", "allowed-impure-host-deps": ["/c"]}),
                &[
                    "warning sandboxPath extra-sandbox-paths",
                    "warning sandboxPath extra-sandbox-paths",
                    "note impureHostDeps allowed-impure-host-deps",
                ],
            ),
        ] {
            let all: BTreeMap<String, Value> = serde_json::from_value(settings.clone()).unwrap();
            assert_eq!(kinds(&audit_settings(&all)), expected, "{settings}");
        }
    }

    fn metadata(url: &str, revision: Option<&str>, locks: Value) -> FlakeMetadata {
        FlakeMetadata {
            original_url: url.into(),
            resolved_url: url.into(),
            url: url.into(),
            description: None,
            path: String::new(),
            revision: revision.map(str::to_owned),
            last_modified: None,
            locks,
        }
    }

    #[test]
    fn flakes() {
        let github = json!({"type": "github", "owner": "a", "repo": "b"});
        let pinned = json!({"type": "github", "owner": "a", "repo": "b", "rev": "c"});
        let locked = json!({"type": "github", "narHash": "sha256-x", "rev": "c"});
        let lock = |nodes: Value, inputs: Value| {
            let mut nodes = nodes;
            nodes["root"] = json!({ "inputs": inputs });
            json!({"root": "root", "nodes": nodes, "version": 7})
        };
        let good = lock(
            json!({"n": {"locked": locked, "original": pinned}}),
            json!({"x": "n"}),
        );
        let clean = |locks| metadata("git+file:///a", Some("abc"), locks);
        assert_eq!(
            kinds(&audit_flake(&clean(good.clone()), Some(&good))),
            [""; 0]
        );
        let none = ["error unlockedInput x"];
        assert_eq!(kinds(&audit_flake(&clean(good.clone()), None)), none);
        let other = lock(
            json!({"n": {"locked": locked, "original": github}}),
            json!({"x": "n"}),
        );
        assert_eq!(
            kinds(&audit_flake(&clean(good.clone()), Some(&other))),
            none
        );
        for (original, locked, expected) in [
            (github.clone(), locked.clone(), "warning floatingInput x"),
            (
                json!({"type": "indirect", "id": "nixpkgs"}),
                locked.clone(),
                "warning registryInput x",
            ),
            (
                json!({"type": "tarball", "url": "https://a/b.tar.gz"}),
                locked.clone(),
                "warning floatingInput x",
            ),
            (
                pinned.clone(),
                json!({"type": "github", "rev": "c"}),
                "note noNarHash x",
            ),
            (
                pinned.clone(),
                json!({"type": "tarball", "url": "https://a/"}),
                "error noNarHash x",
            ),
            (
                json!({"type": "path"}),
                json!({"type": "path", "path": "/a", "narHash": "h"}),
                "warning localInput x",
            ),
        ] {
            let lock = lock(
                json!({"n": {"locked": locked, "original": original}}),
                json!({"x": "n"}),
            );
            assert_eq!(
                kinds(&audit_flake(&clean(lock.clone()), Some(&lock))),
                [expected]
            );
        }
        let none = lock(json!({}), json!({}));
        for (url, revision, expected) in [
            ("git+file:///a", None, "warning dirtyTree git+file:///a"),
            (
                "git+file:///a",
                Some("abc-dirty"),
                "warning dirtyTree git+file:///a",
            ),
            ("path:/a", None, "note noRevision path:/a"),
        ] {
            let found = audit_flake(&metadata(url, revision, none.clone()), None);
            assert_eq!(kinds(&found), [expected]);
        }
    }

    #[test]
    fn locks_with_cycles_and_follows() {
        let lock = json!({"root": "root", "nodes": {
            "root": {"inputs": {"a": "a", "b": "b"}},
            "a": {"inputs": {"b": ["b"], "c": "c"}},
            "b": {},
            "c": {"inputs": {"a": "a"}},
        }});
        let found = inputs(&lock);
        let names: Vec<_> = found.keys().map(String::as_str).collect();
        assert_eq!(names, ["a", "a/c", "a/c/a", "b"]);
        for odd in [
            json!(null),
            json!([]),
            json!({"nodes": 3}),
            json!({"root": 1}),
        ] {
            assert!(inputs(&odd).is_empty());
        }
    }

    #[test]
    fn derivations() {
        let dir = StoreDir::default();
        let path = StorePath::parse("0123456789abcdfghijklmnpqrsvwxyz-x.drv").unwrap();
        let zeros = "0".repeat(64);
        let fixed_zero = fixed(&dir, "sha256", &zeros);
        let fixed_sha1 = fixed(&dir, "sha1", &"1".repeat(40));
        for (outputs, builder, env, expected) in [
            (r#"("out","","","")"#, "builtin:fetchurl", "", &[][..]),
            (
                r#"("out","","r:sha256","impure")"#,
                "builtin:x",
                "",
                &["error impureDerivation"],
            ),
            (
                &fixed_zero,
                "builtin:x",
                r#"("impureEnvVars","http_proxy")"#,
                &["error noHash"],
            ),
            (&fixed_sha1, "builtin:x", "", &["warning weakHash"]),
            (
                r#"("out","","","")"#,
                "/bin/sh",
                r#"("__noChroot","1"),("impureEnvVars","HOME")"#,
                &[
                    "error noChroot",
                    "warning impureEnvVars",
                    "warning hostBuilder",
                ],
            ),
            (
                r#"("out","","","")"#,
                "builtin:x",
                r#"("__json","{\"__noChroot\":true,\"__impureHostDeps\":[\"/a\"]}")"#,
                &["error noChroot", "warning impureHostDeps"],
            ),
        ] {
            let text = format!(r#"Derive([{outputs}],[],[],"s","{builder}",[],[{env}])"#);
            let drv = Derivation::parse_aterm(&dir, "x", text.as_bytes()).unwrap();
            let found = audit_derivation(&dir, &path, &drv);
            let told: Vec<_> = found
                .iter()
                .map(|f| format!("{} {}", f.severity, f.kind))
                .collect();
            assert_eq!(told, expected, "{text}");
            assert!(found.iter().all(|f| f.place == dir.path(&path)));
        }
    }

    fn fixed(dir: &StoreDir, method: &str, digits: &str) -> String {
        let algorithm = if method == "sha1" {
            Algorithm::Sha1
        } else {
            Algorithm::Sha256
        };
        let hash = tk_path::Hash::parse_digits(digits, algorithm).unwrap();
        let method_of = tk_path::Method::Flat;
        let ca = tk_path::ContentAddress {
            method: method_of,
            hash,
        };
        let path = dir.path_of_content("x", &ca, &Default::default()).unwrap();
        format!(r#"("out","{}","{method}","{digits}")"#, dir.path(&path))
    }
}
