//! devenv.nix and devenv.yaml.

use super::{
    DevShellDeclaration, ShellFiles, ShellReading,
    nix_read::{NixFile, NixScope},
    nix_write::{packages, variables},
};
use crate::{
    emit::{EmitError, emit},
    generate::escape_breaks,
    lock::FlakeFileError,
    nix_expr::{NixBinding, NixExpr},
    nix_literal::{LiteralCode, LiteralNode},
};
use serde_json::{Value, json};

/// Reads both; the second may be absent.
pub fn read(read: &mut ShellReading, nix: &str, yaml: Option<&str>) -> Result<(), FlakeFileError> {
    let file = NixFile("devenv.nix");
    let whole = LiteralNode::parse(file.0, nix)?;
    let mut scope = NixScope::default();
    let body = file.body(read, &whole, &mut scope);
    let LiteralCode::Set(_) = &body.value else {
        return Err(FlakeFileError {
            file: file.0.to_owned(),
            line: body.line,
            what: "it is no set".to_owned(),
        });
    };
    for entry in body.flat_entries(&|_| false) {
        let names: Vec<_> = entry.path.iter().map(String::as_str).collect();
        match names[..] {
            ["name"] => read.shell.name = file.string(read, &entry),
            ["packages"] => file.packages(read, &entry.value, &scope),
            ["enterShell"] => read.shell.hook = file.string(read, &entry).unwrap_or_default(),
            ["env", name] => file.variable(read, name, &entry),
            ["scripts", name, "exec"] => {
                if let Some(text) = file.string(read, &entry) {
                    read.shell.scripts.insert(name.to_owned(), text);
                }
            }
            ["env" | "scripts"] if entry.value.value == LiteralCode::Set(Vec::new()) => {}
            _ => file.unread_entry(read, &entry),
        }
    }
    if let Some(yaml) = yaml {
        inputs(read, yaml)?;
    }
    Ok(())
}

/// The inputs of devenv.yaml; all else of it is told.
fn inputs(read: &mut ShellReading, text: &str) -> Result<(), FlakeFileError> {
    let failed = |line: usize, what: &str| FlakeFileError {
        file: YAML.to_owned(),
        line,
        what: what.to_owned(),
    };
    if text.len() > MAX_YAML_BYTES {
        return Err(failed(1, "it is too large"));
    }
    if text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    {
        return Ok(());
    }
    let whole: Value = serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(1, |at| at.line() as usize);
        let words = error.to_string();
        failed(line, words.lines().next().unwrap_or_default())
    })?;
    let whole = match &whole {
        Value::Object(whole) => whole,
        _ => return Err(failed(1, "it is no mapping")),
    };
    for (key, value) in whole {
        match (key.as_str(), value) {
            ("inputs", Value::Object(inputs)) => {
                for (name, input) in inputs {
                    one_input(read, text, name, input);
                }
            }
            ("inputs", Value::Null) => {}
            _ => read.lose(
                YAML,
                line_of(text, key),
                format!("{key}: it has no counterpart"),
            ),
        }
    }
    Ok(())
}

fn one_input(read: &mut ShellReading, text: &str, name: &str, input: &Value) {
    let empty = serde_json::Map::new();
    for (key, value) in input.as_object().unwrap_or(&empty) {
        match (key.as_str(), value.as_str()) {
            ("url", Some(flake)) => {
                read.shell.inputs.insert(name.to_owned(), flake.to_owned());
            }
            _ => {
                let what = format!("{key} of the input {name}: it has no counterpart");
                read.lose(YAML, line_of(text, name), what);
            }
        }
    }
    if !input.is_object() {
        read.lose(
            YAML,
            line_of(text, name),
            format!("the input {name} is no mapping"),
        );
    }
}

/// The line of a key, from 1: the parser of YAML does not keep it.
fn line_of(text: &str, key: &str) -> usize {
    let is_key = |line: &str| {
        let line = line.trim_start().trim_start_matches(['"', '\'']);
        let rest = line.strip_prefix(key);
        rest.is_some_and(|rest| {
            rest.trim_start_matches(['"', '\''])
                .trim_start()
                .starts_with(':')
        })
    };
    text.lines().position(is_key).map_or(1, |at| at + 1)
}

/// The text of both.
pub fn write(shell: &DevShellDeclaration) -> Result<ShellFiles, EmitError> {
    let mut all = Vec::new();
    if let Some(name) = &shell.name {
        all.push(NixBinding::set("name", NixExpr::string(name)));
    }
    all.push(NixBinding::set("packages", NixExpr::List(packages(shell))));
    if !shell.variables.is_empty() {
        all.push(NixBinding::set("env", variables(shell)));
    }
    for (name, text) in &shell.scripts {
        all.push(NixBinding::Set {
            path: vec!["scripts".to_owned(), name.clone(), "exec".to_owned()],
            value: NixExpr::string(text),
            comment: Vec::new(),
            because: None,
        });
    }
    if !shell.hook.is_empty() {
        all.push(NixBinding::set("enterShell", NixExpr::string(&shell.hook)));
    }
    let body = NixExpr::Function("{ pkgs, ... }", Box::new(NixExpr::Attrs(all)));
    let mut files = vec![("devenv.nix", emit(&body)?.text)];
    if !shell.inputs.is_empty() {
        files.push((YAML, yaml(shell)));
    }
    Ok(files)
}

/// devenv.yaml. A string of JSON is one of YAML.
fn yaml(shell: &DevShellDeclaration) -> String {
    let mut text = "inputs:\n".to_owned();
    for (name, flake) in &shell.inputs {
        let quoted = |text: &str| escape_breaks(&json!(text).to_string());
        text.push_str(&format!(
            "  {}:\n    url: {}\n",
            quoted(name),
            quoted(flake)
        ));
    }
    text
}

const YAML: &str = "devenv.yaml";
/// Bytes of a devenv.yaml that is read.
const MAX_YAML_BYTES: usize = 256 << 10;
