//! CMake: CMakeLists.txt.

use super::{
    c_libraries,
    scan::{DetectError, ProjectScan, line_of},
};
use crate::flake_facts::{FlakeReason, PackageBuilder, ProjectLanguage, VersionSource};

/// Notes what a CMake project needs.
pub fn detect(scan: &mut ProjectScan) -> Result<(), DetectError> {
    let Some(text) = scan.read(FILE)? else {
        return Ok(());
    };
    let mut name = None;
    let mut installs = false;
    for command in commands(&text) {
        let because = |key: &str| FlakeReason::new(FILE, key, command.line);
        let words = &command.words;
        match command.name.as_str() {
            "project" if name.is_none() => {
                let version = words.iter().position(|word| word == "VERSION");
                let version = version.and_then(|at| words.get(at + 1));
                name = words
                    .first()
                    .map(|name| (name.clone(), version.cloned(), because("project")));
            }
            "install" => installs = true,
            "find_package" => {
                if let Some(package) = words.first() {
                    find(scan, package, because(package));
                }
            }
            "pkg_check_modules" | "pkg_search_module" => {
                for module in words.iter().skip(1) {
                    let module = module.split(['<', '>', '=']).next().unwrap_or(module);
                    if !KEYWORDS.contains(&module) {
                        c_libraries::need(scan, module, because(module));
                    }
                }
                scan.build_tool(ProjectLanguage::C, "pkg-config", because(&command.name));
            }
            _ => {}
        }
    }
    let file = FlakeReason::new(FILE, "", None);
    scan.build_tool(ProjectLanguage::C, "cmake", file.clone());
    let (name, version, because) = name.unwrap_or_else(|| (scan.folder_name(), None, file));
    if installs {
        let version = version.filter(|version| !version.contains('$'));
        let version = VersionSource::Literal(version.unwrap_or_else(|| "0".to_owned()));
        scan.package(
            &name,
            version,
            PackageBuilder::Stdenv { prefix: false },
            because,
        );
    } else {
        scan.note(
            because,
            "nothing is installed, so the flake has a shell and no package",
        );
    }
    Ok(())
}

fn find(scan: &mut ProjectScan, package: &str, because: FlakeReason) {
    match package {
        "PkgConfig" => scan.build_tool(ProjectLanguage::C, "pkg-config", because),
        "Git" | "Doxygen" | "Python" | "Python3" | "Perl" | "BISON" | "FLEX" => {
            let attribute = match package {
                "Git" => "git",
                "Doxygen" => "doxygen",
                "Perl" => "perl",
                "BISON" => "bison",
                "FLEX" => "flex",
                _ => "python3",
            };
            scan.build_tool(ProjectLanguage::C, attribute, because);
        }
        library => c_libraries::need(scan, library, because),
    }
}

/// A command: its name in small letters, and its words.
struct CMakeCommand {
    name: String,
    words: Vec<String>,
    line: usize,
}

/// The commands of a file, as far as they are plain words.
fn commands(text: &str) -> Vec<CMakeCommand> {
    let clean: String = text.split_inclusive('\n').map(without_comment).collect();
    let mut found = Vec::new();
    let mut rest = 0;
    while let Some(open) = clean[rest..].find('(').map(|at| rest + at) {
        let before = clean[..open].trim_end();
        let start = before.rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let start = start.map_or(0, |at| {
            at + before[at..].chars().next().map_or(1, char::len_utf8)
        });
        let Some(close) = clean[open..].find(')').map(|at| open + at) else {
            break;
        };
        let words = clean[open + 1..close].split_whitespace();
        found.push(CMakeCommand {
            name: before[start..].to_ascii_lowercase(),
            words: words
                .map(|word| word.trim_matches('"').to_owned())
                .collect(),
            line: line_of(&clean, start),
        });
        rest = close + 1;
    }
    found
}

/// The line without its comment; a `#` within quotes is none.
fn without_comment(line: &str) -> String {
    let mut quoted = false;
    let cut = line.char_indices().find(|(_, c)| {
        quoted ^= *c == '"';
        *c == '#' && !quoted
    });
    match cut {
        Some((at, _)) => format!("{}\n", &line[..at]),
        None => line.to_owned(),
    }
}

const FILE: &str = "CMakeLists.txt";
/// Words of pkg_check_modules that are no modules.
const KEYWORDS: [&str; 7] = [
    "REQUIRED",
    "QUIET",
    "IMPORTED_TARGET",
    "GLOBAL",
    "STATIC_TARGET",
    "NO_CMAKE_PATH",
    "",
];
