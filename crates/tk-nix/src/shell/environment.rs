//! An environment as `nix print-dev-env --json` prints it.
//!
//! ```text
//! {"variables": {NAME: {"type": "exported" | "var",  "value": TEXT}
//!                    | {"type": "array",             "value": [TEXT…]}
//!                    | {"type": "associative",       "value": {KEY: TEXT…}}
//!                    | {"type": "unknown"}},
//!  "bashFunctions": {NAME: BODY},
//!  "structuredAttrs": {".attrs.json": TEXT, ".attrs.sh": TEXT}}     (absent without them)
//! ```

use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::Path,
};
use tk_path::{StoreDir, StorePath};

/// Variables and functions that a derivation's builder would have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShellEnvironment {
    /// Variables of bash, exported or not.
    pub variables: BTreeMap<String, Variable>,
    /// Functions of bash: their bodies.
    #[serde(default)]
    pub bash_functions: BTreeMap<String, String>,
    /// With structured attributes, the files that tell them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub structured_attrs: Option<BTreeMap<String, String>>,
}

/// A variable of bash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "value", rename_all = "lowercase")]
pub enum Variable {
    /// A text that the processes which bash starts get as well.
    Exported(String),
    /// bash alone has it.
    Var(String),
    /// A list of texts, which bash alone has.
    Array(Vec<String>),
    /// A table of texts by their keys, which bash alone has.
    Associative(BTreeMap<String, String>),
    /// Something that was not told.
    #[serde(other)]
    Unknown,
}

/// The variables of a process.
pub type Variables = BTreeMap<OsString, OsString>;

impl ShellEnvironment {
    /// Variables with these values, exported.
    pub fn exported<K: Into<String>, V: Into<String>>(
        values: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let values = values.into_iter();
        ShellEnvironment {
            variables: values
                .map(|(name, value)| (name.into(), Variable::Exported(value.into())))
                .collect(),
            ..ShellEnvironment::default()
        }
    }

    /// The text of a variable, if it is one.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.variables.get(name)? {
            Variable::Exported(text) | Variable::Var(text) => Some(text),
            _ => None,
        }
    }

    /// What is run when the environment is entered; empty if nothing is.
    pub fn hook(&self) -> &str {
        self.text("shellHook").unwrap_or_default()
    }

    /// Exported variables that go to a process: without those that concern the builder alone.
    pub fn effective(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables
            .iter()
            .filter_map(|(name, value)| match value {
                Variable::Exported(value) if is_told(name) && !value.contains('\0') => {
                    Some((name.as_str(), value.as_str()))
                }
                _ => None,
            })
    }

    /// The variables of a process in this environment that had `base` before, as `nix develop` makes
    /// them: `PATH` and `XDG_DATA_DIRS` go before those of `base`; `SHELL` is the environment's bash.
    /// `NIX_BUILD_TOP` is the folder for temporary files: there is no new one that nobody removes.
    pub fn applied(&self, base: &Variables) -> Variables {
        let mut all = base.clone();
        all.remove(&OsString::from("shellHook"));
        for (name, value) in self.effective() {
            let key = OsString::from(name);
            let old = all.get(&key).filter(|_| PREFIXED.contains(&name));
            let new = match old.filter(|old| !old.is_empty()) {
                None => value.into(),
                Some(old) => {
                    let mut new = OsString::from(value);
                    new.push(":");
                    new.push(old);
                    new
                }
            };
            all.insert(key, new);
        }
        if let Some(shell) = self.bash() {
            all.insert("SHELL".into(), shell.into());
        }
        if self.variables.contains_key("outputs") {
            let temporary = all.get(&OsString::from("TMPDIR")).cloned();
            all.insert(
                "NIX_BUILD_TOP".into(),
                temporary.unwrap_or_else(|| "/tmp".into()),
            );
        }
        all
    }

    /// The bash that built the environment.
    pub fn bash(&self) -> Option<&str> {
        let names = ["SHELL", "BASH"].into_iter();
        let mut texts = names.filter_map(|name| self.text(name));
        texts.find(|text| text.starts_with('/') && text.ends_with("/bash"))
    }

    /// With other folders for its outputs, `folder/NAME`, which a builder may write to, and other
    /// places for the files of structured attributes, `attrs` with `.json` and `.sh`.
    pub fn redirected(mut self, folder: &Path, attrs: &Path) -> Self {
        let mut places: Vec<_> = self
            .outputs()
            .into_iter()
            .filter(|(_, from)| from.len() > 1)
            .map(|(name, from)| (from, folder.join(name).to_string_lossy().into_owned()))
            .collect();
        if self.structured_attrs.is_some() {
            for (variable, suffix) in [("NIX_ATTRS_JSON_FILE", "json"), ("NIX_ATTRS_SH_FILE", "sh")]
            {
                let place = attrs.with_extension(suffix);
                let from = self.text(variable).filter(|from| from.len() > 1);
                let from = from.map(str::to_owned);
                places.extend(from.map(|from| (from, place.to_string_lossy().into_owned())));
            }
        }
        // The name of one output may begin with that of another.
        places.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
        self.each_text(&mut |text| {
            for (from, to) in &places {
                if text.contains(from) {
                    *text = text.replace(from, to);
                }
            }
        });
        self
    }

    /// The names of its outputs, each with its path.
    pub(super) fn outputs(&self) -> Vec<(String, String)> {
        match self.variables.get("outputs") {
            Some(Variable::Associative(paths)) => paths.clone().into_iter().collect(),
            Some(Variable::Exported(names) | Variable::Var(names)) => names
                .split_whitespace()
                .filter_map(|name| Some((name.to_owned(), self.text(name)?.to_owned())))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// The paths of the store that it refers to.
    pub fn references(&self, dir: &StoreDir) -> BTreeSet<StorePath> {
        let mut found = BTreeSet::new();
        let own: Vec<_> = self.outputs().into_iter().map(|(_, path)| path).collect();
        let mut copy = self.clone();
        copy.each_text(&mut |text| {
            for (at, _) in text.match_indices(dir.as_str()) {
                let Some(name) = text[at + dir.as_str().len()..].strip_prefix('/') else {
                    continue;
                };
                let end = name.find(|c: char| !is_name(c)).unwrap_or(name.len());
                if let Ok(path) = StorePath::parse(&name[..end])
                    && !own.contains(&dir.path(&path))
                {
                    found.insert(path);
                }
            }
        });
        found
    }

    fn each_text(&mut self, change: &mut dyn FnMut(&mut String)) {
        for variable in self.variables.values_mut() {
            match variable {
                Variable::Exported(text) | Variable::Var(text) => change(text),
                Variable::Array(texts) => texts.iter_mut().for_each(&mut *change),
                Variable::Associative(texts) => texts.values_mut().for_each(&mut *change),
                Variable::Unknown => {}
            }
        }
        self.bash_functions.values_mut().for_each(change);
    }
}

/// Whether `name` is one that shells know, and not one of the builder alone.
pub(super) fn is_told(name: &str) -> bool {
    is_identifier(name) && !IGNORED.contains(&name)
}

/// Whether it is a name of a variable.
pub(super) fn is_identifier(name: &str) -> bool {
    let mut chars = name.chars();
    let first = chars.next();
    first.is_some_and(|c| c == '_' || c.is_ascii_alphabetic())
        && chars.all(|c| c == '_' || c.is_ascii_alphanumeric())
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || "+-._?=".contains(c)
}

/// Variables that go before what the user has.
pub(super) const PREFIXED: &[&str] = &["PATH", "XDG_DATA_DIRS"];
/// Variables that are about the builder's machine: as develop.cc, and `SHELL`, which it sets last.
const IGNORED: &[&str] = &[
    "BASHOPTS",
    "HOME",
    "NIX_BUILD_TOP",
    "NIX_ENFORCE_PURITY",
    "NIX_LOG_FD",
    "NIX_REMOTE",
    "OLDPWD",
    "PPID",
    "PWD",
    "SHELL",
    "SHELLOPTS",
    "SHLVL",
    "SSL_CERT_FILE",
    "TEMP",
    "TEMPDIR",
    "TERM",
    "TMP",
    "TMPDIR",
    "TZ",
    "UID",
];

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = r#"{"bashFunctions":{"greet":" \n echo hi\n"},"variables":{
        "A":{"type":"exported","value":"in /nix/store/00000000000000000000000000000000-x-env-dev/a"},
        "BASH":{"type":"var","value":"/usr/bin/bash"},
        "HOME":{"type":"exported","value":"/homeless-shelter"},
        "PATH":{"type":"exported","value":"/nix/store/11111111111111111111111111111111-tool/bin:/bin"},
        "list":{"type":"array","value":["a","b c"]},
        "odd-name":{"type":"exported","value":"x"},
        "out":{"type":"exported","value":"/nix/store/00000000000000000000000000000000-x-env"},
        "dev":{"type":"exported","value":"/nix/store/00000000000000000000000000000000-x-env-dev"},
        "outputs":{"type":"exported","value":"out dev"},
        "shellHook":{"type":"exported","value":"echo hook"},
        "table":{"type":"associative","value":{"k":"v"}},
        "what":{"type":"unknown"}}}"#;

    fn printed() -> ShellEnvironment {
        serde_json::from_str(PRINTED).unwrap()
    }

    #[test]
    fn it_is_read_and_written() {
        let environment = printed();
        assert_eq!(environment.hook(), "echo hook");
        assert_eq!(environment.variables["what"], Variable::Unknown);
        let text = serde_json::to_string(&environment).unwrap();
        let again: ShellEnvironment = serde_json::from_str(&text).unwrap();
        assert_eq!(again, environment);
    }

    #[test]
    fn a_process_gets_what_is_exported() {
        let base: Variables = [
            ("PATH", "/mine"),
            ("HOME", "/me"),
            ("TMPDIR", "/t"),
            ("X", "1"),
        ]
        .map(|(k, v)| (k.into(), v.into()))
        .into();
        let all = printed().applied(&base);
        let get = |name: &str| all.get(&OsString::from(name)).map(|v| v.to_str().unwrap());
        let path = "/nix/store/11111111111111111111111111111111-tool/bin:/bin";
        assert_eq!(get("PATH"), Some(format!("{path}:/mine").as_str()));
        assert_eq!(get("HOME"), Some("/me"));
        assert_eq!(get("X"), Some("1"));
        assert_eq!(get("BASH"), None);
        assert_eq!(get("odd-name"), None);
        assert_eq!(get("SHELL"), Some("/usr/bin/bash"));
        assert_eq!(get("NIX_BUILD_TOP"), Some("/t"));
        let pure = printed().applied(&Variables::new());
        assert_eq!(pure[&OsString::from("PATH")], path);
    }

    #[test]
    fn outputs_are_folders_that_can_be_written() {
        let environment = printed().redirected(Path::new("/w/outputs"), Path::new("/c/x"));
        assert_eq!(environment.text("out"), Some("/w/outputs/out"));
        assert_eq!(environment.text("dev"), Some("/w/outputs/dev"));
        assert_eq!(environment.text("A"), Some("in /w/outputs/dev/a"));
    }

    #[test]
    fn references_are_those_of_others() {
        let dir = StoreDir::default();
        let found: Vec<_> = printed().references(&dir).into_iter().collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name(), "tool");
    }
}
