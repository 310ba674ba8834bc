//! Small real projects, as their tools make them, and a nixpkgs that has what they need.

use std::{fs, path::Path};
use tempfile::TempDir;

/// A project: its name, and its files with their text.
pub struct SmallProject {
    pub name: &'static str,
    pub files: &'static [(&'static str, &'static str)],
}

impl SmallProject {
    /// The project in a new folder.
    pub fn write(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        self.write_to(folder.path());
        folder
    }

    /// The project in `folder`.
    pub fn write_to(&self, folder: &Path) {
        for (name, text) in self.files {
            let file = folder.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
    }
}

/// The project of this name.
pub fn project(name: &str) -> &'static SmallProject {
    PROJECTS
        .iter()
        .find(|project| project.name == name)
        .unwrap()
}

pub const PROJECTS: &[SmallProject] = &[
    SmallProject {
        name: "rust",
        files: &[
            (
                "Cargo.toml",
                "[package]\nname = \"demo\"\nversion = \"0.3.1\"\nedition = \"2024\"\n\n[dependencies]\nopenssl-sys = \"0.9\"\n",
            ),
            ("Cargo.lock", CARGO_LOCK),
            ("src/main.rs", "fn main() {}\n"),
        ],
    },
    SmallProject {
        name: "rust-library-without-lock",
        files: &[
            (
                "Cargo.toml",
                "[package]\nname = \"lib\"\nversion = \"1.0.0\"\n",
            ),
            ("src/lib.rs", ""),
        ],
    },
    SmallProject {
        name: "rust-workspace",
        files: &[
            (
                "Cargo.toml",
                "[workspace]\nmembers = [\"crates/*\"]\nresolver = \"3\"\n",
            ),
            (
                "Cargo.lock",
                "version = 4\n\n[[package]]\nname = \"one\"\nversion = \"0.2.0\"\n\n[[package]]\nname = \"fork\"\nversion = \"0.1.0\"\nsource = \"git+https://example.org/fork?rev=0123456#0123456789012345678901234567890123456789\"\n\n[[package]]\nname = \"strange-sys\"\nversion = \"0.1.0\"\n",
            ),
            (
                "crates/one/Cargo.toml",
                "[package]\nname = \"one\"\nversion = \"0.2.0\"\n",
            ),
            ("crates/one/src/lib.rs", ""),
        ],
    },
    SmallProject {
        name: "rust-nightly",
        files: &[
            (
                "Cargo.toml",
                "[package]\nname = \"night\"\nversion.workspace = true\n\n[workspace]\n[workspace.package]\nversion = \"2.0.0\"\n",
            ),
            (
                "Cargo.lock",
                "version = 4\n\n[[package]]\nname = \"night\"\nversion = \"2.0.0\"\n",
            ),
            (
                "rust-toolchain.toml",
                "[toolchain]\nchannel = \"nightly-2026-01-01\"\ncomponents = [\"rustfmt\", \"clippy\"]\n",
            ),
            ("src/main.rs", "fn main() {}\n"),
        ],
    },
    SmallProject {
        name: "linux-libraries",
        files: &[
            (
                "Cargo.toml",
                "[package]\nname = \"sound\"\nversion = \"1.0.0\"\n",
            ),
            (
                "Cargo.lock",
                "version = 4\n\n[[package]]\nname = \"alsa-sys\"\nversion = \"0.3.0\"\n\n[[package]]\nname = \"libudev-sys\"\nversion = \"0.1.0\"\n",
            ),
            ("src/lib.rs", ""),
            (
                "CMakeLists.txt",
                "project(sound)\npkg_check_modules(DEPS REQUIRED libudev zlib)\n",
            ),
        ],
    },
    SmallProject {
        name: "go",
        files: &[
            (
                "go.mod",
                "module example.org/tools/hello/v2\n\ngo 1.24\n\nrequire golang.org/x/text v0.3.0 // indirect\n",
            ),
            ("go.sum", ""),
            ("main.go", "package main\nfunc main() {}\n"),
        ],
    },
    SmallProject {
        name: "go-without-modules",
        files: &[
            ("go.mod", "module hello\n\ngo 1.24\n"),
            ("main.go", "package main\nfunc main() {}\n"),
        ],
    },
    SmallProject {
        name: "npm",
        files: &[
            (
                "package.json",
                "{\n  \"name\": \"@scope/web\",\n  \"version\": \"1.2.3\",\n  \"engines\": { \"node\": \"^22.0.0\" },\n  \"scripts\": { \"build\": \"tsc\" }\n}\n",
            ),
            (
                "package-lock.json",
                "{ \"name\": \"@scope/web\", \"version\": \"1.2.3\", \"lockfileVersion\": 3, \"packages\": { \"\": { \"name\": \"@scope/web\", \"version\": \"1.2.3\" } } }\n",
            ),
        ],
    },
    SmallProject {
        name: "pnpm",
        files: &[
            (
                "package.json",
                "{ \"name\": \"site\", \"packageManager\": \"pnpm@9.1.0\" }\n",
            ),
            ("pnpm-lock.yaml", "lockfileVersion: '9.0'\n"),
            (".nvmrc", "v24\n"),
        ],
    },
    SmallProject {
        name: "yarn",
        files: &[
            ("package.json", "{}\n"),
            ("yarn.lock", "__metadata:\n  version: 8\n"),
        ],
    },
    SmallProject {
        name: "uv",
        files: &[
            (
                "pyproject.toml",
                "[project]\nname = \"tool\"\nversion = \"0.1.0\"\nrequires-python = \">=3.12\"\ndependencies = [\n  \"requests>=2\",\n  \"PyYAML\",\n  \"pywin32; sys_platform == 'win32'\",\n]\n\n[build-system]\nrequires = [\"hatchling\"]\nbuild-backend = \"hatchling.build\"\n\n[tool.ruff]\n",
            ),
            ("uv.lock", "version = 1\n"),
            (".python-version", "3.12\n"),
        ],
    },
    SmallProject {
        name: "poetry",
        files: &[
            (
                "pyproject.toml",
                "[tool.poetry]\nname = \"old\"\nversion = \"1.0\"\n\n[tool.poetry.dependencies]\npython = \"~3.13\"\nclick = \"^8\"\n\n[build-system]\nrequires = [\"poetry-core>=1\"]\nbuild-backend = \"poetry.core.masonry.api\"\n",
            ),
            ("poetry.lock", ""),
        ],
    },
    SmallProject {
        name: "pdm-without-package",
        files: &[(
            "pyproject.toml",
            "[project]\nname = \"scripts\"\nversion = \"0\"\n\n[tool.pdm]\ndistribution = false\n",
        )],
    },
    SmallProject {
        name: "cmake",
        files: &[(
            "CMakeLists.txt",
            "cmake_minimum_required(VERSION 3.20)\nproject(viewer VERSION 1.4 LANGUAGES CXX) # a \"name\"\nfind_package(ZLIB REQUIRED)\nfind_package(PkgConfig REQUIRED)\npkg_check_modules(DEPS REQUIRED IMPORTED_TARGET libpng>=1.6 nobody-knows)\nadd_executable(viewer main.cc)\ninstall(TARGETS viewer)\n",
        )],
    },
    SmallProject {
        name: "meson",
        files: &[(
            "meson.build",
            "project('player', 'c',\n  version : '0.9')\nglib = dependency('glib-2.0', version : '>=2.70')\n# dependency('comment')\nexecutable('player', 'main.c', dependencies : [glib], install : true)\n",
        )],
    },
    SmallProject {
        name: "make",
        files: &[(
            "Makefile",
            "CFLAGS = $(shell pkg-config --cflags sqlite3)\n\nall: x\n\ninstall: all\n\tinstall -D x $(PREFIX)/bin/x\n",
        )],
    },
    SmallProject {
        name: "tool-versions",
        files: &[
            (
                ".tool-versions",
                "# of the team\nnodejs 22.4.1\ngolang 1.24\nnobodyknows 1\n",
            ),
            (
                "mise.toml",
                "[tools]\njust = \"1\"\n\"npm:prettier\" = \"3\"\n\n[env]\nGREETING = \"it's ${HOME} and ''quotes''\"\n_.file = \".env\"\n",
            ),
        ],
    },
    SmallProject {
        name: "several",
        files: &[
            (
                "Cargo.toml",
                "[package]\nname = \"several\"\nversion = \"0.1.0\"\n",
            ),
            (
                "Cargo.lock",
                "version = 4\n\n[[package]]\nname = \"several\"\nversion = \"0.1.0\"\n",
            ),
            ("src/main.rs", "fn main() {}\n"),
            (
                "package.json",
                "{\n  \"name\": \"several\",\n  \"version\": \"0.1.0\"\n}\n",
            ),
            (
                "package-lock.json",
                "{ \"lockfileVersion\": 3, \"packages\": { \"\": {} } }\n",
            ),
            (
                "pyproject.toml",
                "[project]\nname = \"or\"\nversion = \"3\"\n[build-system]\nrequires = [\"setuptools\"]\n",
            ),
            ("Makefile", "test:\n\tcargo test\n"),
            (".tool-versions", "rust 1.90.0\npython 3.13.1\n"),
        ],
    },
];

pub const CARGO_LOCK: &str = r#"version = 4

[[package]]
name = "cc"
version = "1.0.0"

[[package]]
name = "demo"
version = "0.3.1"

[[package]]
name = "openssl-sys"
version = "0.9.100"
source = "registry+https://github.com/rust-lang/crates.io-index"

[[package]]
name = "pkg-config"
version = "0.3.0"
"#;

/// Writes a stub of nixpkgs, and of rust-overlay, into `folder`. It is no nixpkgs: its builders take the arguments
/// that those of nixpkgs have and give derivations that nobody could build.
pub fn write_stub(folder: &Path) {
    for (name, text) in [
        ("nixpkgs/flake.nix", STUB_FLAKE),
        ("nixpkgs/lib.nix", STUB_LIB),
        ("nixpkgs/default.nix", STUB_PACKAGES),
        ("rust-overlay/flake.nix", STUB_OVERLAY),
    ] {
        let file = folder.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
}

const STUB_FLAKE: &str = "{
  outputs = { self }: rec {
    lib = import ./lib.nix;
    legacyPackages = lib.genAttrs [ \"x86_64-linux\" \"aarch64-linux\" \"x86_64-darwin\" \"aarch64-darwin\" ]
      (system: import ./. { inherit system; });
  };
}
";

const STUB_LIB: &str = "{
  genAttrs = names: f: builtins.listToAttrs (map (name: { inherit name; value = f name; }) names);
  importTOML = file: builtins.fromTOML (builtins.readFile file);
  importJSON = file: builtins.fromJSON (builtins.readFile file);
  optionals = condition: list: if condition then list else [ ];
  fakeHash = \"sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\";
}
";

const STUB_PACKAGES: &str = r#"{ system, overlays ? [ ] }:
let
  lib = import ./lib.nix;
  isLinux = builtins.match ".*-linux" system != null;
  make = name: attrs: derivation ({ inherit name system; builder = "/bin/bash"; outputs = [ "out" ]; } // attrs);
  plain = name: make name { };
  overridable = f: attrs: (f attrs) // { overrideAttrs = change: overridable f (attrs // change (attrs)); };
  inputs = attrs: (attrs.nativeBuildInputs or [ ]) ++ (attrs.buildInputs or [ ]);
  built = attrs: make "${attrs.pname}-${attrs.version}" {
    inherit (attrs) src;
    inputs = inputs attrs;
    phases = "${attrs.buildPhase or ""}${attrs.installPhase or ""}";
  };
  buildRustPackage = { pname, version, src, cargoLock, nativeBuildInputs ? [ ], buildInputs ? [ ], meta ? { } }@attrs:
    assert (builtins.fromTOML (builtins.readFile cargoLock.lockFile)) ? package;
    assert builtins.removeAttrs cargoLock [ "lockFile" "allowBuiltinFetchGit" ] == { };
    overridable built attrs;
  python = name: (plain name) // {
    pkgs = lib.genAttrs [ "requests" "pyyaml" "click" "hatchling" "poetry-core" "setuptools" ] plain // {
      buildPythonApplication = { pname, version, pyproject, src, build-system ? [ ], dependencies ? [ ] }:
        make "${pname}-${version}" { inherit src; inputs = build-system ++ dependencies; };
    };
  };
  base = lib.genAttrs [
    "alsa-lib" "cargo" "clippy" "cmake" "glib" "gnumake" "go" "gopls" "just" "libpng" "meson" "mypy" "ninja" "nixfmt" "nodejs"
    "nodejs_22" "nodejs_24" "openssl" "pdm" "pkg-config" "pnpm" "poetry" "prettier" "ruff" "rust-analyzer" "rustc"
    "rustfmt" "sqlite" "uv" "yarn-berry" "zlib"
  ] plain // lib.genAttrs [ "python3" "python312" "python313" ] python // {
    inherit lib;
    # Its meta.platforms is Linux, and nixpkgs throws elsewhere.
    udev = if isLinux then plain "udev" else throw "udev is not available on ${system}";
    rustPlatform = { inherit buildRustPackage; };
    makeRustPlatform = { cargo, rustc }: { inherit buildRustPackage; };
    buildGoModule = { pname, version, src, vendorHash }:
      assert vendorHash == null || builtins.isString vendorHash;
      make "${pname}-${version}" { inherit src; };
    importNpmLock = { __functor = self: { npmRoot }: plain "npm-deps"; npmConfigHook = plain "hook"; };
    buildNpmPackage = { pname, version, src, nodejs, npmDeps, npmConfigHook, dontNpmBuild ? false }:
      make "${pname}-${version}" { inherit src; inputs = [ nodejs npmDeps npmConfigHook ]; };
    stdenv.hostPlatform = { inherit isLinux; };
    stdenv.mkDerivation = { pname, version, src, makeFlags ? [ ], nativeBuildInputs ? [ ], buildInputs ? [ ] }@attrs:
      built attrs // { inherit makeFlags; };
    runCommand = name: env: command: make name (env // { inherit command; });
    mkShell = { inputsFrom ? [ ], packages ? [ ], env ? { }, shellHook ? "" }:
      make "nix-shell" (env // { inherit shellHook; inputs = packages ++ inputsFrom; });
  };
in
builtins.foldl' (pkgs: overlay: pkgs // overlay pkgs pkgs) base overlays
"#;

const STUB_OVERLAY: &str = "{
  inputs.nixpkgs.url = \"github:NixOS/nixpkgs\";
  outputs = { self, nixpkgs }: {
    overlays.default = final: prev: {
      rust-bin.fromRustupToolchainFile = file:
        assert (builtins.fromTOML (builtins.readFile file)) ? toolchain;
        derivation { name = \"rust\"; system = \"x86_64-linux\"; builder = \"/bin/bash\"; };
    };
  };
}
";
