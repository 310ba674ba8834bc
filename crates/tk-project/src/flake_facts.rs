//! What is known of a project that bears on its flake, each with its reason.
//!
//! What is known is all that the generator reads. It is written into the flake, a line of JSON each, so that the
//! text that was made can be made again and told from what people changed. The reasons are not: they move with
//! changes that are none.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Where something was read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FlakeReason {
    /// The file, below the folder of the project; empty where every project gets it.
    pub file: String,
    /// The key in it, or what it says there.
    pub key: String,
    /// The line, from 1.
    pub line: Option<usize>,
}

impl FlakeReason {
    /// The reason that `file` says `key` in `line`.
    pub fn new(file: &str, key: impl Into<String>, line: impl Into<Option<usize>>) -> Self {
        FlakeReason {
            file: file.to_owned(),
            key: key.into(),
            line: line.into(),
        }
    }
}

impl fmt::Display for FlakeReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.file.is_empty() {
            return f.write_str(&self.key);
        }
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if self.key.is_empty() {
            return Ok(());
        }
        write!(f, " {}", self.key)
    }
}

/// One thing that is known, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlakeFact {
    /// What the flake is to have.
    pub what: FlakeFactKind,
    /// The file and line that ask for it.
    pub because: FlakeReason,
}

/// What is known. Attributes are paths below nixpkgs, `python3.pkgs.requests`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlakeFactKind {
    /// The flake's description.
    Description(String),
    /// The reference of the nixpkgs to take.
    Nixpkgs(String),
    /// Rust comes from rust-overlay, as this toolchain file says.
    RustToolchain(String),
    /// A package that the flake builds.
    Package {
        /// The name that it has in the flake.
        name: String,
        /// Where its version is.
        version: VersionSource,
        /// How it is built.
        by: PackageBuilder,
    },
    /// A library that the package of this language needs, here and where it runs.
    Library {
        /// The language whose package needs it.
        of: ProjectLanguage,
        /// The attribute of nixpkgs, below `pkgs`.
        attribute: String,
    },
    /// The same, on Linux only: nixpkgs has it for no other system.
    LinuxLibrary {
        /// The language whose package needs it.
        of: ProjectLanguage,
        /// The attribute of nixpkgs, below `pkgs`.
        attribute: String,
    },
    /// A program that builds the package of this language.
    BuildTool {
        /// The language whose package needs it.
        of: ProjectLanguage,
        /// The attribute of nixpkgs, below `pkgs`.
        attribute: String,
    },
    /// A module of Python that the package needs where it runs.
    PythonModule(String),
    /// A module of Python that builds the package.
    PythonBuildSystem(String),
    /// A program of the dev shell.
    Tool(String),
    /// A variable of the dev shell.
    Variable {
        /// The name of the variable.
        name: String,
        /// The value of the variable.
        value: String,
    },
}

/// The language of a package: a flake has one package of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProjectLanguage {
    /// A Rust project, built by cargo.
    Rust,
    /// A Go module.
    Go,
    /// JavaScript and TypeScript.
    Node,
    /// A Python project.
    Python,
    /// C, C++ and what else CMake, meson and make build.
    C,
}

/// Where the version of a package is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VersionSource {
    /// The version itself.
    Literal(String),
    /// In a TOML file, behind these keys.
    Toml(String, Vec<String>),
    /// In a JSON file, behind these keys.
    Json(String, Vec<String>),
}

/// How a package is built, with what its builder must know.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PackageBuilder {
    /// A package that `rustPlatform.buildRustPackage` builds.
    Rust {
        /// Whether Cargo.lock has sources from git.
        git: bool,
        /// The program that `nix run` starts.
        program: Option<String>,
    },
    /// A package that `buildGoModule` builds.
    Go {
        /// Where the modules come from.
        modules: GoModules,
    },
    /// A package that `buildNpmPackage` builds.
    Npm {
        /// The attribute of node.
        node: String,
        /// Whether there is a script `build`.
        build: bool,
    },
    /// `buildPythonApplication` of this interpreter.
    Python(String),
    /// `stdenv.mkDerivation`, which knows what to do from its tools.
    Stdenv {
        /// Whether make must be told where to install.
        prefix: bool,
    },
}

impl PackageBuilder {
    /// The language that it builds.
    pub fn language(&self) -> ProjectLanguage {
        match self {
            PackageBuilder::Rust { .. } => ProjectLanguage::Rust,
            PackageBuilder::Go { .. } => ProjectLanguage::Go,
            PackageBuilder::Npm { .. } => ProjectLanguage::Node,
            PackageBuilder::Python(_) => ProjectLanguage::Python,
            PackageBuilder::Stdenv { .. } => ProjectLanguage::C,
        }
    }
}

/// Where a Go package has its modules from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GoModules {
    /// It needs none, or has them in `vendor`.
    AtHand,
    /// From elsewhere: a hash is needed that nobody knows yet.
    Fetched,
}
