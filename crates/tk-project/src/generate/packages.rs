//! The packages of a flake: a definition for each language.

use super::{FactPackage, FactView, of_nixpkgs};
use crate::{
    flake_facts::{FlakeFactKind, GoModules, PackageBuilder, ProjectLanguage, VersionSource},
    nix_expr::{NixBinding, NixExpr},
};

/// The name by which the other parts call the package of a language.
pub fn definition_name(language: ProjectLanguage) -> &'static str {
    match language {
        ProjectLanguage::Rust => "rustPackage",
        ProjectLanguage::Go => "goPackage",
        ProjectLanguage::Node => "nodePackage",
        ProjectLanguage::Python => "pythonPackage",
        ProjectLanguage::C => "cPackage",
    }
}

/// The package of a language, for a `pkgs`.
pub fn call(language: ProjectLanguage) -> NixExpr {
    NixExpr::call(
        NixExpr::Code(definition_name(language)),
        NixExpr::Code("pkgs"),
    )
}

impl<'a> FactView<'a> {
    /// `NAME = pkgs: BUILDER { … };`.
    pub fn package_definition(self, package: FactPackage<'a>) -> NixBinding {
        let language = package.by.language();
        let mut attributes = vec![
            NixBinding::set("pname", NixExpr::string(package.name)).because(package.at),
            NixBinding::set("version", version(package.version)).because(package.at),
            NixBinding::set("src", NixExpr::Path(String::new())),
        ];
        attributes.extend(self.of_builder(package));
        let tools = (self.build_tools(language), Vec::new());
        for (name, (items, of_linux)) in [
            ("nativeBuildInputs", tools),
            ("buildInputs", self.libraries(language)),
        ] {
            if !items.is_empty() || !of_linux.is_empty() {
                attributes.push(NixBinding::set(name, system_list(items, of_linux)));
            }
        }
        if let PackageBuilder::Rust {
            program: Some(program),
            ..
        } = package.by
        {
            let program = NixExpr::string(program);
            attributes.push(NixBinding::set("meta.mainProgram", program).because(package.at));
        }
        let built = NixExpr::call(self.builder(package.by), NixExpr::Attrs(attributes));
        let function = NixExpr::Function("pkgs", Box::new(built));
        NixBinding::named(definition_name(language), function).because(package.at)
    }

    fn builder(self, by: &PackageBuilder) -> NixExpr {
        match by {
            PackageBuilder::Rust { .. } if self.toolchain().is_some() => {
                let platform = NixExpr::call(NixExpr::Code("rustPlatform"), NixExpr::Code("pkgs"));
                NixExpr::Select(Box::new(platform), vec!["buildRustPackage".to_owned()])
            }
            PackageBuilder::Rust { .. } => NixExpr::Code("pkgs.rustPlatform.buildRustPackage"),
            PackageBuilder::Go { .. } => NixExpr::Code("pkgs.buildGoModule"),
            PackageBuilder::Npm { .. } => NixExpr::Code("pkgs.buildNpmPackage"),
            PackageBuilder::Python(python) => {
                of_nixpkgs(&format!("{python}.pkgs.buildPythonApplication"))
            }
            PackageBuilder::Stdenv { .. } => NixExpr::Code("pkgs.stdenv.mkDerivation"),
        }
    }

    /// What only this builder wants.
    fn of_builder(self, package: FactPackage<'a>) -> Vec<NixBinding> {
        let because = |binding: NixBinding| binding.because(package.at);
        match package.by {
            PackageBuilder::Rust { git, .. } => {
                let lock = NixExpr::Path("Cargo.lock".to_owned());
                let mut all = vec![because(NixBinding::set("cargoLock.lockFile", lock))];
                if *git {
                    let allowed =
                        NixBinding::set("cargoLock.allowBuiltinFetchGit", NixExpr::Bool(true));
                    all.push(
                        because(allowed).commented(
                            "Cargo.lock has sources from git, which it names by revision.",
                        ),
                    );
                }
                all
            }
            PackageBuilder::Go {
                modules: GoModules::AtHand,
            } => {
                vec![because(NixBinding::set("vendorHash", NixExpr::Null))]
            }
            PackageBuilder::Go {
                modules: GoModules::Fetched,
            } => {
                let hash = NixBinding::set("vendorHash", NixExpr::Code("lib.fakeHash"));
                let hash = hash
                    .commented("Nobody knows this hash before the modules of go.sum are fetched:")
                    .commented("`tk-store build` or `nix build` fails and says the right one. Put it here, in quotes.");
                vec![because(hash)]
            }
            PackageBuilder::Npm { node, build } => {
                let mut all = vec![
                    NixBinding::set("nodejs", of_nixpkgs(node)),
                    // It takes the hashes of package-lock.json, so that no other is needed.
                    NixBinding::set(
                        "npmDeps",
                        NixExpr::Code("pkgs.importNpmLock { npmRoot = ./.; }"),
                    ),
                    NixBinding::set(
                        "npmConfigHook",
                        NixExpr::Code("pkgs.importNpmLock.npmConfigHook"),
                    ),
                ];
                if !*build {
                    let none = NixBinding::set("dontNpmBuild", NixExpr::Bool(true));
                    all.push(none.commented("package.json has no script `build`."));
                }
                all.into_iter().map(because).collect()
            }
            PackageBuilder::Python(python) => {
                let mut all = vec![because(NixBinding::set("pyproject", NixExpr::Bool(true)))];
                let (systems, modules) = self.python_modules(python);
                for (name, items) in [("build-system", systems), ("dependencies", modules)] {
                    if !items.is_empty() {
                        all.push(NixBinding::set(name, NixExpr::List(items)));
                    }
                }
                all
            }
            PackageBuilder::Stdenv { prefix: true } => {
                let flags = NixExpr::List(vec![NixExpr::string("PREFIX=$(out)")]);
                vec![because(NixBinding::set("makeFlags", flags))]
            }
            PackageBuilder::Stdenv { prefix: false } => Vec::new(),
        }
    }

    /// What builds the package, and what it needs where it runs.
    fn python_modules(self, python: &str) -> (Vec<NixExpr>, Vec<NixExpr>) {
        let module = |at, name: &String| {
            let pkgs = NixExpr::Code("pkgs");
            let path = vec![python.to_owned(), "pkgs".to_owned(), name.clone()];
            NixExpr::Select(Box::new(pkgs), path).because(at)
        };
        let (mut systems, mut modules) = (Vec::new(), Vec::new());
        for (at, what) in self.all() {
            match what {
                FlakeFactKind::PythonBuildSystem(name) => systems.push(module(at, name)),
                FlakeFactKind::PythonModule(name) => modules.push(module(at, name)),
                _ => {}
            }
        }
        (systems, modules)
    }

    /// The programs that build the package of `language`.
    pub fn build_tools(self, language: ProjectLanguage) -> Vec<NixExpr> {
        let tools = self.all().filter_map(|(at, what)| match what {
            FlakeFactKind::BuildTool { of, attribute } if *of == language => {
                Some(of_nixpkgs(attribute).because(at))
            }
            _ => None,
        });
        tools.collect()
    }

    /// The libraries that the package of `language` needs: on every system, and on Linux.
    pub fn libraries(self, language: ProjectLanguage) -> (Vec<NixExpr>, Vec<NixExpr>) {
        let (mut everywhere, mut of_linux) = (Vec::new(), Vec::new());
        for (at, what) in self.all() {
            match what {
                FlakeFactKind::Library { of, attribute } if *of == language => {
                    everywhere.push(of_nixpkgs(attribute).because(at));
                }
                FlakeFactKind::LinuxLibrary { of, attribute } if *of == language => {
                    of_linux.push(of_nixpkgs(attribute).because(at));
                }
                _ => {}
            }
        }
        (everywhere, of_linux)
    }
}

/// The list of `items`, and on Linux of these others, too.
pub fn system_list(items: Vec<NixExpr>, of_linux: Vec<NixExpr>) -> NixExpr {
    if of_linux.is_empty() {
        return NixExpr::List(items);
    }
    let optional = NixExpr::Call(
        Box::new(NixExpr::Code("lib.optionals")),
        vec![
            NixExpr::Code("pkgs.stdenv.hostPlatform.isLinux"),
            NixExpr::List(of_linux),
        ],
    );
    if items.is_empty() {
        return optional;
    }
    NixExpr::Concat(Box::new(NixExpr::List(items)), Box::new(optional))
}

/// The version, read from where it is.
fn version(source: &VersionSource) -> NixExpr {
    let read = |function, file: &String, keys: &Vec<String>| {
        let file = NixExpr::Path(file.clone());
        let read = NixExpr::call(NixExpr::Code(function), file);
        NixExpr::Select(Box::new(read), keys.clone())
    };
    match source {
        VersionSource::Literal(version) => NixExpr::string(version),
        VersionSource::Toml(file, keys) => read("lib.importTOML", file, keys),
        VersionSource::Json(file, keys) => read("lib.importJSON", file, keys),
    }
}
