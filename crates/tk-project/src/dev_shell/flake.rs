//! A dev shell in flake.nix.

use super::{DevShellDeclaration, ShellReading, nix_read::NixFile, nix_write::make_shell};
use crate::{
    emit::{EmitError, emit},
    flake_merge::DEFAULT_NIXPKGS,
    generate::{EACH_SYSTEM, SYSTEMS},
    lock::FlakeFileError,
    nix_expr::{NixBinding, NixExpr},
    nix_literal::{LiteralCode, LiteralNode},
};

/// Reads the inputs and the first shell of flake.nix.
pub fn read(read: &mut ShellReading, text: &str) -> Result<(), FlakeFileError> {
    let file = NixFile("flake.nix");
    let whole = LiteralNode::parse(file.0, text)?;
    let LiteralCode::Set(_) = &whole.value else {
        return Err(FlakeFileError {
            file: file.0.to_owned(),
            line: whole.line,
            what: "it is no set".to_owned(),
        });
    };
    let mut outputs = None;
    for entry in whole.flat_entries(&|path| path[0] != "inputs") {
        let names: Vec<_> = entry.path.iter().map(String::as_str).collect();
        match names[..] {
            ["description"] => {}
            ["outputs"] => outputs = Some(entry.value),
            ["inputs", name, "url"] => {
                if let Some(flake) = file.string(read, &entry) {
                    read.shell.inputs.insert(name.to_owned(), flake);
                }
            }
            ["inputs"] if entry.value.value == LiteralCode::Set(Vec::new()) => {}
            _ => file.unread_entry(read, &entry),
        }
    }
    let outputs = outputs.ok_or_else(|| FlakeFileError {
        file: file.0.to_owned(),
        line: whole.line,
        what: "it has no outputs".to_owned(),
    })?;
    file.made_shell(read, &outputs)
}

/// The text of flake.nix with the shell as its only output.
pub fn write(shell: &DevShellDeclaration) -> Result<String, EmitError> {
    let mut all = Vec::new();
    for (name, flake) in with_nixpkgs(shell) {
        all.push(NixBinding::Set {
            path: vec!["inputs".to_owned(), name.to_owned(), "url".to_owned()],
            value: NixExpr::string(flake),
            comment: Vec::new(),
            because: None,
        });
    }
    all.push(NixBinding::Blank);
    let systems = SYSTEMS.map(NixExpr::string).to_vec();
    let definitions = vec![
        NixBinding::Code("inherit (nixpkgs) lib;"),
        NixBinding::set("systems", NixExpr::List(systems)),
        NixBinding::set("eachSystem", NixExpr::Code(EACH_SYSTEM)),
    ];
    let shells = NixExpr::Attrs(vec![NixBinding::set("default", make_shell(shell))]);
    let shells = NixExpr::Function("pkgs", Box::new(shells));
    let shells = NixExpr::call(NixExpr::Code("eachSystem"), shells);
    let outputs = NixExpr::Attrs(vec![NixBinding::set("devShells", shells)]);
    let body = NixExpr::Let(definitions, Box::new(outputs));
    let outputs = NixExpr::Function("{ self, nixpkgs, ... }", Box::new(body));
    all.push(NixBinding::set("outputs", outputs));
    Ok(emit(&NixExpr::Attrs(all))?.text)
}

/// The inputs; a flake takes its packages from one.
fn with_nixpkgs(shell: &DevShellDeclaration) -> Vec<(&str, &str)> {
    let mut all: Vec<_> = shell
        .inputs
        .iter()
        .map(|(name, flake)| (name.as_str(), flake.as_str()))
        .collect();
    if !shell.inputs.contains_key("nixpkgs") {
        all.push(("nixpkgs", DEFAULT_NIXPKGS));
        all.sort();
    }
    all
}
