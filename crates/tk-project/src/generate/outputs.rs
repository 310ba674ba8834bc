//! The outputs of a flake: packages, checks, dev shell, formatter.

use super::{
    FactView, of_nixpkgs,
    packages::{call, system_list},
};
use crate::{
    flake_facts::{FlakeFactKind, ProjectLanguage},
    nix_expr::{NixBinding, NixExpr},
};
use std::collections::BTreeSet;

impl<'a> FactView<'a> {
    /// What the outputs share.
    pub fn definitions(self) -> Vec<NixBinding> {
        let systems = SYSTEMS.map(NixExpr::string).to_vec();
        let mut all = vec![
            NixBinding::Code("inherit (nixpkgs) lib;"),
            NixBinding::set("systems", NixExpr::List(systems)),
        ];
        if let Some((at, file)) = self.toolchain() {
            let file = NixExpr::Path(file.to_owned());
            let read = NixExpr::Code("pkgs.rust-bin.fromRustupToolchainFile");
            let toolchain = NixExpr::Function("pkgs", Box::new(NixExpr::call(read, file)));
            for (name, value) in [
                ("eachSystem", NixExpr::Code(EACH_SYSTEM_OVERLAID)),
                ("rustToolchain", toolchain),
                ("rustPlatform", NixExpr::Code(OVERLAID_PLATFORM)),
            ] {
                all.push(NixBinding::set(name, value).because(at));
            }
        } else {
            all.push(NixBinding::set("eachSystem", NixExpr::Code(EACH_SYSTEM)));
        }
        for package in self.packages() {
            all.push(NixBinding::Blank);
            all.push(self.package_definition(package));
        }
        if let Some(rust) = self.package_of(ProjectLanguage::Rust) {
            all.push(NixBinding::Blank);
            let check = NixBinding::set("cargoCheck", NixExpr::Code(CARGO_CHECK)).because(rust.at);
            all.push(
                check.commented(
                    "The same build with another cargo command in place of the package.",
                ),
            );
        }
        all
    }

    /// The set of outputs.
    pub fn outputs(self) -> NixExpr {
        let mut all = Vec::new();
        for (name, of_system) in [
            ("packages", self.package_outputs()),
            ("checks", self.checks()),
            ("devShells", vec![NixBinding::set("default", self.shell())]),
        ] {
            if !of_system.is_empty() {
                let each = NixExpr::Function("pkgs", Box::new(NixExpr::Attrs(of_system)));
                let each = NixExpr::call(NixExpr::Code("eachSystem"), each);
                all.push(NixBinding::set(name, each));
                all.push(NixBinding::Blank);
            }
        }
        let formatter = NixExpr::Code("eachSystem (pkgs: pkgs.nixfmt)");
        all.push(NixBinding::set("formatter", formatter));
        NixExpr::Attrs(all)
    }

    /// The packages, by their names; the first is the default, too.
    fn package_outputs(self) -> Vec<NixBinding> {
        let mut names = BTreeSet::from(["default".to_owned()]);
        let mut all = Vec::new();
        for package in self.packages() {
            let language = package.by.language();
            if all.is_empty() {
                all.push(NixBinding::set("default", call(language)).because(package.at));
            }
            let mut name = package.name.to_owned();
            if !names.insert(name.clone()) {
                name = format!("{name}-{}", super::packages::definition_name(language));
                names.insert(name.clone());
            }
            all.push(NixBinding::named(name, call(language)).because(package.at));
        }
        all
    }

    fn checks(self) -> Vec<NixBinding> {
        let mut all: Vec<_> = self
            .packages()
            .map(|package| {
                let language = package.by.language();
                let name = super::packages::definition_name(language);
                NixBinding::set(name, call(language)).because(package.at)
            })
            .collect();
        if let Some(rust) = self.package_of(ProjectLanguage::Rust) {
            let (clippy, format) = match self.toolchain() {
                Some(_) => (OVERLAID_CLIPPY, OVERLAID_FORMAT),
                None => (CLIPPY, RUST_FORMAT),
            };
            for (name, code) in [("clippy", clippy), ("rustFormat", format)] {
                all.push(NixBinding::set(name, NixExpr::Code(code)).because(rust.at));
            }
        }
        all.push(NixBinding::set("nixFormat", NixExpr::Code(NIX_FORMAT)));
        all
    }

    fn shell(self) -> NixExpr {
        let mut inputs = Vec::new();
        let mut packages = Vec::new();
        let mut packages_of_linux = Vec::new();
        for language in LANGUAGES {
            match self.package_of(language) {
                Some(package) => inputs.push(call(language).because(package.at)),
                None => {
                    packages.extend(self.build_tools(language));
                    let (everywhere, of_linux) = self.libraries(language);
                    packages.extend(everywhere);
                    packages_of_linux.extend(of_linux);
                }
            }
        }
        let mut variables = Vec::new();
        if let Some((at, _)) = self.toolchain() {
            let toolchain = NixExpr::call(NixExpr::Code("rustToolchain"), NixExpr::Code("pkgs"));
            packages.push(toolchain.because(at));
        }
        for (at, what) in self.all() {
            match what {
                FlakeFactKind::Tool(attribute) => packages.push(of_nixpkgs(attribute).because(at)),
                FlakeFactKind::Variable { name, value } => {
                    let value = NixExpr::string(value);
                    variables.push(NixBinding::named(name, value).because(at));
                }
                _ => {}
            }
        }
        let mut all = Vec::new();
        if !inputs.is_empty() {
            all.push(NixBinding::set("inputsFrom", NixExpr::List(inputs)));
        }
        let packages = system_list(packages, packages_of_linux);
        all.push(NixBinding::set("packages", packages));
        if !variables.is_empty() {
            all.push(NixBinding::set("env", NixExpr::Attrs(variables)));
        }
        NixExpr::call(NixExpr::Code("pkgs.mkShell"), NixExpr::Attrs(all))
    }
}

const LANGUAGES: [ProjectLanguage; 5] = [
    ProjectLanguage::Rust,
    ProjectLanguage::Go,
    ProjectLanguage::Node,
    ProjectLanguage::Python,
    ProjectLanguage::C,
];
/// The systems of every flake.
pub(crate) const SYSTEMS: [&str; 4] = [
    "x86_64-linux",
    "aarch64-linux",
    "x86_64-darwin",
    "aarch64-darwin",
];
/// Calls a function with the packages of each system.
pub(crate) const EACH_SYSTEM: &str =
    "f: lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system})";
const EACH_SYSTEM_OVERLAID: &str = "f: lib.genAttrs systems (system: f (import nixpkgs {
  inherit system;
  overlays = [ rust-overlay.overlays.default ];
}))";
const OVERLAID_PLATFORM: &str = "pkgs: pkgs.makeRustPlatform {
  cargo = rustToolchain pkgs;
  rustc = rustToolchain pkgs;
}";
const CARGO_CHECK: &str = "pkgs: name: tool: command: (rustPackage pkgs).overrideAttrs (old: {
  pname = \"${old.pname}-${name}\";
  nativeBuildInputs = (old.nativeBuildInputs or [ ]) ++ [ tool ];
  buildPhase = command;
  doCheck = false;
  installPhase = \"touch $out\";
})";
const CLIPPY: &str = "cargoCheck pkgs \"clippy\" pkgs.clippy \"cargo clippy --offline --all-targets -- --deny warnings\"";
const RUST_FORMAT: &str = "cargoCheck pkgs \"format\" pkgs.rustfmt \"cargo fmt --all --check\"";
const OVERLAID_CLIPPY: &str = "cargoCheck pkgs \"clippy\" (rustToolchain pkgs) \"cargo clippy --offline --all-targets -- --deny warnings\"";
const OVERLAID_FORMAT: &str =
    "cargoCheck pkgs \"format\" (rustToolchain pkgs) \"cargo fmt --all --check\"";
const NIX_FORMAT: &str =
    "pkgs.runCommand \"nix-format\" { nativeBuildInputs = [ pkgs.nixfmt ]; } ''
  nixfmt --check ${./flake.nix}
  touch $out
''";
