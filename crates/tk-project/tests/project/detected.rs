//! What is found out about projects whose files say something unusual.

use std::fs;
use tk_project::{
    detect::{ProjectFindings, detect},
    flake_facts::FlakeFactKind,
    flake_merge::{ExistingFlake, plan_flake},
};

fn found(files: &[(&str, &str)]) -> ProjectFindings {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    detect(folder.path()).unwrap_or_else(|e| panic!("{e}"))
}

fn flake(found: &ProjectFindings) -> String {
    let plan = plan_flake(None, found.facts.clone(), ExistingFlake::Keep);
    plan.unwrap_or_else(|e| panic!("{e}")).text
}

fn has_note(found: &ProjectFindings, start: &str) -> bool {
    let mut notes = found.notes.iter().map(ToString::to_string);
    notes.any(|note| note.starts_with(start))
}

/// One unfree package, and nixpkgs refuses the shell.
#[test]
fn unfree_tools_are_told_and_not_taken() {
    for (tool, instead) in [
        ("terraform", "take opentofu"),
        ("packer", "take another tool"),
        ("vault", "take openbao"),
    ] {
        let found = found(&[(".tool-versions", &format!("just 1\n{tool} 1.2.3\n"))]);
        let note = format!(".tool-versions:2 {tool}: its package is unfree");
        assert!(has_note(&found, &note), "{:?}", found.notes);
        let said = found.notes.iter().any(|note| note.text.ends_with(instead));
        assert!(said, "{:?}", found.notes);
        assert!(!flake(&found).contains(&format!("pkgs.{tool}")));
    }
}

fn python_modules(dependencies: &str) -> (ProjectFindings, Vec<String>) {
    let build = "[build-system]\nrequires = [\"setuptools\", \"extra-tool; os_name == 'nt'\"]\n";
    let found = found(&[("pyproject.toml", &format!("{dependencies}\n{build}"))]);
    let modules = found.facts.iter().filter_map(|fact| match &fact.what {
        FlakeFactKind::PythonModule(name) => Some(name.clone()),
        _ => None,
    });
    let modules = modules.collect();
    (found, modules)
}

#[test]
fn markers_leave_out_what_no_linux_takes() {
    let cases = [
        ("sys_platform != 'win32'", true),
        ("sys_platform == 'win32'", false),
        ("sys_platform=='win32'", false),
        ("'win32' == sys_platform", false),
        ("os_name != 'nt' and python_version >= '3.8'", true),
        (
            "platform_system == 'Windows' and python_version < '4'",
            false,
        ),
        ("sys_platform == 'win32' or sys_platform == 'linux'", true),
        (
            "(sys_platform == 'darwin' or sys_platform == 'win32')",
            false,
        ),
        ("platform_system != 'Linux'", false),
        ("sys_platform != 'darwin'", true),
        ("extra == 'test'", false),
        ("python_version < '3.11'", true),
        ("platform_python_implementation != 'PyPy'", true),
    ];
    for (marker, is_taken) in cases {
        let text = format!("[project]\nname = \"a\"\ndependencies = [\"uvloop; {marker}\"]");
        let (found, modules) = python_modules(&text);
        assert_eq!(modules == ["uvloop"], is_taken, "{marker}");
        assert!(!flake(&found).contains("extra-tool"));
        let note = "pyproject.toml:3 project.dependencies: the modules were not looked up";
        assert_eq!(has_note(&found, note), is_taken, "{:?}", found.notes);
        let text = format!(
            "[tool.poetry]\nname = \"a\"\n[tool.poetry.dependencies]\nuvloop = {{ version = \"1\", markers = \"{marker}\" }}"
        );
        assert_eq!(python_modules(&text).1 == ["uvloop"], is_taken, "{marker}");
    }
    for (platform, is_taken) in [("win32", false), ("linux", true)] {
        let text = format!(
            "[tool.poetry]\nname = \"a\"\n[tool.poetry.dependencies]\nuvloop = {{ version = \"1\", platform = \"{platform}\" }}"
        );
        assert_eq!(
            python_modules(&text).1 == ["uvloop"],
            is_taken,
            "{platform}"
        );
    }
}

/// importNpmLock of nixpkgs reads package-lock.json, which has had `packages` since version 2.
#[test]
fn only_a_lock_that_nixpkgs_reads_makes_a_package_of_npm() {
    let manifest = ("package.json", "{ \"name\": \"a\" }\n");
    let version = |version: &str| format!("{{ {version} \"packages\": {{ }} }}\n");
    for (lock, text, note) in [
        (
            "package-lock.json",
            version("\"lockfileVersion\": 3,"),
            None,
        ),
        (
            "package-lock.json",
            version("\"lockfileVersion\": 2,"),
            None,
        ),
        (
            "package-lock.json",
            version("\"lockfileVersion\": 1,"),
            Some("package-lock.json lockfileVersion: importNpmLock"),
        ),
        (
            "package-lock.json",
            version(""),
            Some("package-lock.json lockfileVersion: importNpmLock"),
        ),
        (
            "npm-shrinkwrap.json",
            version("\"lockfileVersion\": 3,"),
            Some("npm-shrinkwrap.json: npm reads this"),
        ),
    ] {
        let found = found(&[manifest, (lock, &text)]);
        let is_package = flake(&found).contains("pkgs.buildNpmPackage");
        assert_eq!(is_package, note.is_none(), "{lock}: {text}");
        assert!(
            note.is_none_or(|note| has_note(&found, note)),
            "{:?}",
            found.notes
        );
    }
    let lock = version("\"lockfileVersion\": 3,");
    let both = found(&[
        manifest,
        ("package-lock.json", &lock),
        ("npm-shrinkwrap.json", &lock),
    ]);
    assert!(!flake(&both).contains("pkgs.buildNpmPackage"));
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [
        manifest,
        ("package-lock.json", "{\n  \"lockfileVersion\": }\n"),
    ] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let error = detect(folder.path()).unwrap_err().to_string();
    assert!(error.contains("package-lock.json:2: "), "{error}");
}

#[test]
fn a_variable_that_people_set_is_not_set_again() {
    let found = found(&[
        ("mise.toml", "[env]\nUV_PYTHON_DOWNLOADS = \"manual\"\n"),
        ("pyproject.toml", "[project]\nname = \"a\"\n"),
        ("uv.lock", "version = 1\n"),
    ]);
    let text = flake(&found);
    assert!(text.contains("UV_PYTHON_DOWNLOADS = \"manual\";"), "{text}");
}
