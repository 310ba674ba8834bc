//! The parts of a dev shell as Nix code.

use super::DevShellDeclaration;
use crate::{
    emit::{EmitError, emit},
    nix_expr::{NixBinding, NixExpr},
};

/// The text of shell.nix.
pub fn shell_nix(shell: &DevShellDeclaration) -> Result<String, EmitError> {
    let made = make_shell(shell);
    let head = "{ pkgs ? import <nixpkgs> { } }";
    Ok(emit(&NixExpr::Function(head, Box::new(made)))?.text)
}

/// `pkgs.mkShell { … }`.
pub fn make_shell(shell: &DevShellDeclaration) -> NixExpr {
    let mut all = Vec::new();
    if let Some(name) = &shell.name {
        all.push(NixBinding::set("name", NixExpr::string(name)));
    }
    let mut items = packages(shell);
    items.extend(shell.scripts.iter().map(|(name, text)| {
        let writer = Box::new(NixExpr::Code("pkgs.writeShellScriptBin"));
        NixExpr::Call(writer, vec![NixExpr::string(name), NixExpr::string(text)])
    }));
    all.push(NixBinding::set("packages", NixExpr::List(items)));
    if !shell.variables.is_empty() {
        all.push(NixBinding::set("env", variables(shell)));
    }
    if !shell.hook.is_empty() {
        all.push(NixBinding::set("shellHook", NixExpr::string(&shell.hook)));
    }
    NixExpr::call(NixExpr::Code("pkgs.mkShell"), NixExpr::Attrs(all))
}

/// The packages, below `pkgs`.
pub fn packages(shell: &DevShellDeclaration) -> Vec<NixExpr> {
    let pkgs = || Box::new(NixExpr::Code("pkgs"));
    let all = shell.packages.iter();
    all.map(|path| NixExpr::Select(pkgs(), path.clone()))
        .collect()
}

/// The variables as a set.
pub fn variables(shell: &DevShellDeclaration) -> NixExpr {
    let all = shell.variables.iter();
    let all = all.map(|(name, value)| NixBinding::named(name, NixExpr::string(value)));
    NixExpr::Attrs(all.collect())
}
