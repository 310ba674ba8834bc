//! flake.nix from the facts of a project.
//!
//! The file ends with the facts that it was made from, a line of JSON each, so that what was made can be made
//! again: what differs from it in the file is what people changed. See [`crate::flake_merge`].

mod outputs;
mod packages;

pub(crate) use outputs::{EACH_SYSTEM, SYSTEMS};

use crate::{
    emit::{EmitError, emit},
    flake_facts::{FlakeFact, FlakeFactKind, FlakeReason, PackageBuilder, ProjectLanguage},
    nix_expr::{NixBinding, NixExpr},
};

/// A flake.nix that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratedFlake {
    /// The text of flake.nix.
    pub text: String,
    /// Of each line, why it is there; empty for what every flake has.
    pub reasons: Vec<Vec<FlakeReason>>,
}

/// The flake of `facts`, which are sorted. The same facts give the same bytes.
///
/// # Errors
/// If a fact holds what Nix cannot; see [`EmitError`].
pub fn generate(facts: &[FlakeFact]) -> Result<GeneratedFlake, EmitError> {
    let view = FactView { facts };
    let emitted = emit(&view.flake())?;
    let reason = |at: &usize| facts[*at].because.clone();
    let body = emitted.reasons.iter();
    let mut reasons: Vec<Vec<_>> = body.map(|line| line.iter().map(reason).collect()).collect();
    let mut text = format!("{HEADER}{FORM}{HEADER_END}\n{}", emitted.text);
    reasons.insert(0, Vec::new());
    text.push_str(RECIPE_TITLE);
    text.push('\n');
    reasons.push(Vec::new());
    for fact in facts {
        let line =
            serde_json::to_string(&fact.what).map_err(|e| EmitError::Broken(e.to_string()))?;
        text.push_str(RECIPE_MARK);
        text.push_str(&escape_breaks(&line));
        text.push('\n');
        reasons.push(vec![fact.because.clone()]);
    }
    Ok(GeneratedFlake { text, reasons })
}

/// JSON without the characters that some programs take for the end of a line.
pub(crate) fn escape_breaks(json: &str) -> String {
    let breaks = |c: char| {
        matches!(
            c,
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}'
        )
    };
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if breaks(c) {
            out.push_str(&format!("\\u{:04x}", c as u32));
        } else {
            out.push(c);
        }
    }
    out
}

/// The facts as the parts of the flake ask for them. Their places are the reasons of what is made of them.
#[derive(Clone, Copy)]
struct FactView<'a> {
    facts: &'a [FlakeFact],
}

/// A package among the facts.
#[derive(Clone, Copy)]
struct FactPackage<'a> {
    at: usize,
    name: &'a str,
    version: &'a crate::flake_facts::VersionSource,
    by: &'a PackageBuilder,
}

impl<'a> FactView<'a> {
    fn all(self) -> impl Iterator<Item = (usize, &'a FlakeFactKind)> {
        let facts = self.facts.iter().enumerate();
        facts.map(|(at, fact)| (at, &fact.what))
    }

    fn packages(self) -> impl Iterator<Item = FactPackage<'a>> {
        self.all().filter_map(|(at, what)| match what {
            FlakeFactKind::Package { name, version, by } => Some(FactPackage {
                at,
                name,
                version,
                by,
            }),
            _ => None,
        })
    }

    fn package_of(self, of: ProjectLanguage) -> Option<FactPackage<'a>> {
        self.packages().find(|package| package.by.language() == of)
    }

    /// The toolchain file of Rust, if rust-overlay is to read it.
    fn toolchain(self) -> Option<(usize, &'a str)> {
        self.all().find_map(|(at, what)| match what {
            FlakeFactKind::RustToolchain(file) => Some((at, file.as_str())),
            _ => None,
        })
    }

    fn flake(self) -> NixExpr {
        let mut bindings = Vec::new();
        let mut inputs = Vec::new();
        for (at, what) in self.all() {
            match what {
                FlakeFactKind::Description(text) => {
                    let text = NixExpr::string(text);
                    bindings.push(NixBinding::set("description", text).because(at));
                    bindings.push(NixBinding::Blank);
                }
                FlakeFactKind::Nixpkgs(url) => {
                    let url = NixExpr::string(url);
                    inputs.push(NixBinding::set("inputs.nixpkgs.url", url).because(at));
                }
                _ => {}
            }
        }
        let mut names = vec!["self".to_owned(), "nixpkgs".to_owned()];
        if let Some((at, _)) = self.toolchain() {
            names.push("rust-overlay".to_owned());
            for (name, value) in [
                ("inputs.rust-overlay.url", "github:oxalica/rust-overlay"),
                ("inputs.rust-overlay.inputs.nixpkgs.follows", "nixpkgs"),
            ] {
                inputs.push(NixBinding::set(name, NixExpr::string(value)).because(at));
            }
        }
        bindings.append(&mut inputs);
        bindings.push(NixBinding::Blank);
        let body = NixExpr::Let(self.definitions(), Box::new(self.outputs()));
        let outputs = NixExpr::SetFunction(names, Box::new(body));
        bindings.push(NixBinding::set("outputs", outputs));
        NixExpr::Attrs(bindings)
    }
}

/// The attribute of nixpkgs, a path that dots join.
fn of_nixpkgs(attribute: &str) -> NixExpr {
    NixExpr::select("pkgs", attribute)
}

/// What every file that was made begins with; then come [`FORM`] and [`HEADER_END`].
pub(crate) const HEADER: &str = "# Made by `tk-store flake init`, form ";
pub(crate) const HEADER_END: &str = ". Change it as you like: made again, it keeps your changes.";
/// Grows with every change of what is made from the same facts, so that a file of another form is not taken
/// for one that somebody changed.
pub const FORM: u32 = 1;
const RECIPE_TITLE: &str = "# Made from these facts; `tk-store flake init` reads them again.";
/// What a line with a fact begins with.
pub(crate) const RECIPE_MARK: &str = "#: ";
