//! Python: pyproject.toml with uv, poetry or pdm, requirements.txt.

use super::{
    pins::{self, ToolPin},
    scan::{DetectError, ProjectScan},
    toml_file::{TomlFile, TomlValue},
};
use crate::flake_facts::{FlakeFact, FlakeFactKind, FlakeReason, PackageBuilder, VersionSource};

/// Notes what a Python project needs.
pub fn detect(scan: &mut ProjectScan) -> Result<(), DetectError> {
    let Some(project) = scan.toml(MANIFEST)? else {
        if let Some(file) = scan.first_of(&["requirements.txt", "setup.py"]) {
            let because = FlakeReason::new(file, "", None);
            let (python, because) = interpreter(scan, None, because);
            scan.tool(python, because);
        }
        return Ok(());
    };
    let fallback = FlakeReason::new(MANIFEST, "", None);
    let (python, because) = interpreter(scan, Some(&project), fallback);
    scan.tool(&python, because);
    manager(scan, &project);
    for (key, attribute) in [
        ("tool.ruff", "ruff"),
        ("tool.mypy", "mypy"),
        ("tool.black", "black"),
    ] {
        if project.get(key).is_some() {
            scan.tool(attribute, project.reason(key));
        }
    }
    package(scan, &project, &python);
    Ok(())
}

/// The attribute of the interpreter, and why that.
fn interpreter(
    scan: &mut ProjectScan,
    project: Option<&TomlFile>,
    fallback: FlakeReason,
) -> (String, FlakeReason) {
    if let Some(pin) = scan.take_pin("python") {
        return (pins::python_attribute(scan, &pin), pin.because);
    }
    // Only where one minor version is asked for: the default of nixpkgs is newer than most lower bounds.
    let exact = project.and_then(|project| {
        let keys = ["project.requires-python", "tool.poetry.dependencies.python"];
        keys.into_iter().find_map(|key| {
            let text = project.string(key)?.trim();
            let version = text.strip_prefix("==").or(text.strip_prefix('~'));
            let version = version?
                .trim_start_matches('=')
                .trim()
                .trim_end_matches(".*");
            Some(ToolPin {
                tool: "python".to_owned(),
                version: version.to_owned(),
                because: project.reason(key),
            })
        })
    });
    match exact {
        Some(pin) => (pins::python_attribute(scan, &pin), pin.because),
        None => ("python3".to_owned(), fallback),
    }
}

/// The program that installs the modules.
fn manager(scan: &mut ProjectScan, project: &TomlFile) {
    for (attribute, lock) in [
        ("uv", "uv.lock"),
        ("poetry", "poetry.lock"),
        ("pdm", "pdm.lock"),
    ] {
        let key = format!("tool.{attribute}");
        let because = if scan.has(lock) {
            FlakeReason::new(lock, "", None)
        } else if project.get(&key).is_some() {
            project.reason(&key)
        } else {
            continue;
        };
        let _ = scan.take_pin(attribute);
        scan.tool(attribute, because.clone());
        if attribute == "uv" {
            scan.variable("UV_PYTHON_DOWNLOADS", "never", because);
        }
        return;
    }
}

/// The package, of modules of nixpkgs: their versions are those of nixpkgs, whatever a lock says.
fn package(scan: &mut ProjectScan, project: &TomlFile, python: &str) {
    let named = ["project", "tool.poetry"];
    let found = named
        .into_iter()
        .find(|key| project.string(&format!("{key}.name")).is_some());
    let (Some(key), Some(_)) = (found, project.get("build-system.requires")) else {
        scan.note(
            project.reason("build-system"),
            "without a name and a [build-system] there is nothing to install: the flake has a shell and no package",
        );
        return;
    };
    let because = project.reason(&format!("{key}.name"));
    let backends = project.get("build-system.requires");
    for (requirement, value) in backends.into_iter().flat_map(|all| all.strings()) {
        if let Some((_, marker)) = requirement.split_once(';')
            && is_elsewhere(marker)
        {
            continue;
        }
        if let Some(name) = module_name(requirement) {
            if name == "maturin" {
                scan.note(
                    value.reason(requirement),
                    "maturin needs a Rust toolchain and its hooks: the flake has a shell and no package",
                );
                return;
            }
            scan.fact(
                FlakeFactKind::PythonBuildSystem(name.clone()),
                value.reason(name),
            );
        }
    }
    let name = project
        .string(&format!("{key}.name"))
        .unwrap_or_default()
        .to_owned();
    let keys: Vec<_> = key.split('.').map(str::to_owned).collect();
    let version = match project.string(&format!("{key}.version")) {
        Some(_) => {
            VersionSource::Toml(MANIFEST.to_owned(), [keys, vec!["version".into()]].concat())
        }
        None => VersionSource::Literal("0".to_owned()),
    };
    scan.package(
        &name,
        version,
        PackageBuilder::Python(python.to_owned()),
        because,
    );
    let modern = project.get("project.dependencies");
    for (requirement, value) in modern.into_iter().flat_map(|all| all.strings()) {
        depend(scan, requirement, value);
    }
    let poetry = project.get("tool.poetry.dependencies");
    for (name, value) in poetry.into_iter().flat_map(|all| all.entries()) {
        if name != "python" && !value.get("optional").is_some_and(TomlValue::is_true) {
            depend(scan, name, value);
        }
    }
    let takes_modules = |fact: &FlakeFact| matches!(fact.what, FlakeFactKind::PythonModule(_));
    if scan.facts.iter().any(takes_modules) {
        scan.note(
            project.reason(&format!("{key}.dependencies")),
            "the modules were not looked up in nixpkgs: take those out that it lacks, or package and shell fail",
        );
    }
    let lock = ["uv.lock", "poetry.lock", "pdm.lock"];
    if let Some(lock) = scan.first_of(&lock) {
        scan.note(
            FlakeReason::new(lock, "", None),
            "the package is built with the versions of nixpkgs, the shell has those of the lock",
        );
    }
}

fn depend(scan: &mut ProjectScan, requirement: &str, value: TomlValue<'_>) {
    // Poetry has the marker, or a short form of it, beside the version.
    let marker = requirement.split_once(';').map(|(_, marker)| marker);
    let marker = marker.or_else(|| value.get("markers")?.string());
    let platform = value.get("platform").and_then(|platform| platform.string());
    let platform = platform.map(|platform| format!("sys_platform == '{platform}'"));
    if marker.or(platform.as_deref()).is_some_and(is_elsewhere) {
        return;
    }
    match module_name(requirement) {
        Some(name) => scan.fact(
            FlakeFactKind::PythonModule(name.clone()),
            value.reason(name),
        ),
        None => scan.note(value.reason(requirement), "no name of a module"),
    }
}

/// Whether a marker (PEP 508) holds on no Linux: each of its alternatives asks for another system or for an extra.
/// What is not understood may hold.
fn is_elsewhere(marker: &str) -> bool {
    let is_blank = |c: char| c.is_whitespace() || "()\"'".contains(c);
    let words = marker.replace("==", " == ").replace("!=", " != ");
    let words: Vec<_> = words
        .split(is_blank)
        .filter(|word| !word.is_empty())
        .collect();
    words.split(|word| *word == "or").all(|alternative| {
        alternative
            .split(|word| *word == "and")
            .any(|condition| match condition {
                ["extra", "==", _] | [_, "==", "extra"] => true,
                [a, "==", b] => OTHER_SYSTEMS.contains(a) || OTHER_SYSTEMS.contains(b),
                [a, "!=", b] => LINUX.contains(a) || LINUX.contains(b),
                _ => false,
            })
    })
}

/// The name of a requirement (PEP 508) as nixpkgs spells it (PEP 503).
fn module_name(requirement: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let end = requirement
        .find(|c| !allowed(c))
        .unwrap_or(requirement.len());
    let name = requirement[..end]
        .to_ascii_lowercase()
        .replace(['_', '.'], "-");
    let mut parts = name.split('-').filter(|part| !part.is_empty()).peekable();
    parts.peek()?;
    Some(parts.collect::<Vec<_>>().join("-"))
}

const MANIFEST: &str = "pyproject.toml";
/// Values of `sys_platform`, `platform_system` and `os_name` that are not Linux.
const OTHER_SYSTEMS: [&str; 6] = ["win32", "Windows", "nt", "cygwin", "darwin", "Darwin"];
const LINUX: [&str; 3] = ["linux", "Linux", "posix"];
