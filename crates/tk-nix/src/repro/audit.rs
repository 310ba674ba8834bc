//! What makes a build depend on more than it declares: settings, the way of evaluating, and all derivations that
//! it needs.

use super::{
    findings::*,
    flake_lock::{audit_flake, lock_file},
};
use crate::{Cause, EvalOptions, Installable, InstallableSource, Nix, NixFailure, Result, Target};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use tk_path::{
    Algorithm, Derivation, DerivationOutput, DerivedPath, SingleDerivedPath, StoreDir, StorePath,
};
use tk_store::{Error, Store, derivation, log::LogSink};

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
    let sandbox = settings.get("sandbox").map(plain).unwrap_or_default();
    match sandbox.as_str() {
        "false" => findings
            .push(SANDBOX_OFF.at("sandbox", "builders see the whole machine and the network")),
        "relaxed" => findings.push(SANDBOX_RELAXED.at(
            "sandbox",
            "derivations with __noChroot see the whole machine",
        )),
        _ => (),
    }
    let yes = |name: &str| settings.get(name).map(plain).as_deref() == Some("true");
    if sandbox != "false" && yes("sandbox-fallback") {
        findings.push(SANDBOX_FALLBACK.at(
            "sandbox-fallback",
            "where the kernel allows no sandbox, builds go on without, and nobody is told",
        ));
    }
    for name in ["sandbox-paths", "extra-sandbox-paths"] {
        let paths = settings.get(name).map(words).unwrap_or_default();
        for path in paths.iter().filter(|path| !is_shell(path)) {
            findings.push(SANDBOX_PATH.at(name, format!("builders see {path} of this machine")));
        }
    }
    for name in ["allowed-impure-host-deps", "impure-env"] {
        let given = settings.get(name).map(words).unwrap_or_default();
        if !given.is_empty() {
            let given = given.join(", ");
            let message = format!("derivations may ask for {given} of this machine");
            findings.push(HOST_DEPS_ALLOWED.at(name, message));
        }
    }
    findings
}

/// What in one derivation, whose path is `path`, lets its builder see more than its inputs, or lets
/// somebody exchange what it fetches.
pub fn audit_derivation(dir: &StoreDir, path: &StorePath, drv: &Derivation) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |rule: Rule, message: String| findings.push(rule.at(dir.path(path), message));
    let attributes = Attributes::of(drv);
    let mut fixed = false;
    for (name, output) in &drv.outputs {
        match output {
            DerivationOutput::Impure(_) => {
                let message = format!("it is impure: its output {name} may be another each time");
                find(IMPURE_DERIVATION, message);
            }
            DerivationOutput::Fixed(ca) => {
                fixed = true;
                let hash = &ca.hash;
                if hash.as_bytes().iter().all(|byte| *byte == 0) {
                    let message = "its content is to be fixed, but it states no hash";
                    find(NO_HASH, message.into());
                }
                if matches!(hash.algorithm(), Algorithm::Md5 | Algorithm::Sha1) {
                    let message = format!("what it fetches is fixed by {} only", hash.algorithm());
                    find(WEAK_HASH, message);
                }
            }
            _ => (),
        }
    }
    if attributes.is_true("__noChroot") {
        find(NO_CHROOT, "it asks to be built without the sandbox".into());
    }
    if attributes.is_given("__impureHostDeps") {
        let message = "it asks for files of the machine (__impureHostDeps)";
        find(IMPURE_HOST_DEPS, message.into());
    }
    if attributes.is_given("impureEnvVars") && !fixed {
        let message = "it asks for variables of the daemon's environment, which only what has a fixed hash gets";
        find(IMPURE_ENV_VARS, message.into());
    }
    let builder = String::from_utf8_lossy(&drv.builder);
    if builder.starts_with('/') && dir.split(&builder).is_err() {
        let message = format!("its builder {builder} belongs to the machine");
        find(HOST_BUILDER, message);
    }
    findings
}

/// What the way of evaluating lets in.
fn evaluation(what: &Installable, options: &EvalOptions) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is_code = matches!(
        what.source,
        InstallableSource::File(_) | InstallableSource::Expr(_)
    );
    if options.impure {
        findings.push(IMPURE_EVALUATION.at(
            what.to_string(),
            "it is evaluated with --impure: its code sees this machine, its environment and the time",
        ));
    } else if is_code {
        let message = "code that is in no flake sees this machine while it is evaluated";
        findings.push(UNPINNED_EVALUATION.at(what.to_string(), message));
    }
    for (name, reference) in &options.override_inputs {
        let message = format!("{reference} is taken instead of what flake.lock says");
        findings.push(OVERRIDDEN_INPUT.at(name, message));
    }
    findings
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
