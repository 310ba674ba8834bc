//! Reading a project: its files, and what is gathered from them.

use super::{pins::ToolPin, toml_file::TomlFile};
use crate::{
    files::read_bounded,
    flake_facts::{
        FlakeFact, FlakeFactKind, FlakeReason, PackageBuilder, ProjectLanguage, VersionSource,
    },
};
use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

/// Why a project cannot be understood.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DetectError {
    /// Nothing there says what it is.
    #[error(
        "{}: no project that is known here (no Cargo.toml, go.mod, package.json, pyproject.toml, \
         CMakeLists.txt, meson.build, Makefile, .tool-versions, mise.toml or .python-version)",
        .0.display()
    )]
    NoProject(PathBuf),
    /// It cannot be read.
    #[error("{}: it cannot be read", .path.display())]
    Unreadable {
        /// The file or folder that could not be read.
        path: PathBuf,
        /// What the system says of it.
        source: io::Error,
    },
    /// It is not what its name says.
    #[error("{}:{line}: {message}", .path.display())]
    Malformed {
        /// The file that is malformed.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        message: String,
    },
}

/// What somebody should know or do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectNote {
    /// What it is about.
    pub because: FlakeReason,
    /// What to know.
    pub text: String,
}

impl fmt::Display for ProjectNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.because, self.text)
    }
}

/// A project that is looked at.
pub struct ProjectScan {
    folder: PathBuf,
    /// What was found.
    pub facts: Vec<FlakeFact>,
    /// What to say.
    pub notes: Vec<ProjectNote>,
    /// Versions that files for version managers name, and that no language has taken yet.
    pub pins: Vec<ToolPin>,
}

impl ProjectScan {
    pub fn open(folder: &Path) -> Result<Self, DetectError> {
        // That a file is not there is known only where the folder can be read.
        fs::read_dir(folder).map_err(|source| DetectError::Unreadable {
            path: folder.to_owned(),
            source,
        })?;
        Ok(ProjectScan {
            folder: folder.to_owned(),
            facts: Vec::new(),
            notes: Vec::new(),
            pins: Vec::new(),
        })
    }

    /// The text of a file of the project; `None` where there is no such file.
    pub fn read(&self, name: &str) -> Result<Option<String>, DetectError> {
        let path = self.folder.join(name);
        read_bounded(&path, LARGEST_FILE).map_err(|source| DetectError::Unreadable { path, source })
    }

    /// A TOML file of the project; `None` where there is no such file.
    pub fn toml(&self, name: &str) -> Result<Option<TomlFile>, DetectError> {
        let Some(text) = self.read(name)? else {
            return Ok(None);
        };
        TomlFile::parse(name, &text)
            .map(Some)
            .map_err(|(line, message)| self.malformed(name, line, message))
    }

    /// Whether there is a file or folder of this name.
    pub fn has(&self, name: &str) -> bool {
        self.folder.join(name).exists()
    }

    /// The first of these files that is there.
    pub fn first_of<'a>(&self, names: &[&'a str]) -> Option<&'a str> {
        names.iter().copied().find(|name| self.has(name))
    }

    /// The folders directly in `folder`, in their order.
    pub fn folders_in(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.folder.join(folder)).into_iter().flatten();
        let folders = entries.flatten().filter(|entry| entry.path().is_dir());
        let names = folders.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    pub fn malformed(&self, name: &str, line: usize, message: impl Into<String>) -> DetectError {
        DetectError::Malformed {
            path: self.folder.join(name),
            line,
            message: message.into(),
        }
    }

    pub fn fact(&mut self, what: FlakeFactKind, because: FlakeReason) {
        self.facts.push(FlakeFact { what, because });
    }

    pub fn tool(&mut self, attribute: impl Into<String>, because: FlakeReason) {
        self.fact(FlakeFactKind::Tool(attribute.into()), because);
    }

    /// A variable of the shell, if nothing has set it: what people set goes first.
    pub fn variable(&mut self, name: &str, value: &str, because: FlakeReason) {
        let is_set = |fact: &FlakeFact| matches!(&fact.what, FlakeFactKind::Variable { name: other, .. } if other == name);
        if !self.facts.iter().any(is_set) {
            let (name, value) = (name.to_owned(), value.to_owned());
            self.fact(FlakeFactKind::Variable { name, value }, because);
        }
    }

    pub fn library(&mut self, of: ProjectLanguage, attribute: &str, because: FlakeReason) {
        let is_of_linux = LINUX_ONLY.contains(&attribute);
        let attribute = attribute.to_owned();
        let what = if is_of_linux {
            FlakeFactKind::LinuxLibrary { of, attribute }
        } else {
            FlakeFactKind::Library { of, attribute }
        };
        self.fact(what, because);
    }

    pub fn build_tool(&mut self, of: ProjectLanguage, attribute: &str, because: FlakeReason) {
        let attribute = attribute.to_owned();
        self.fact(FlakeFactKind::BuildTool { of, attribute }, because);
    }

    /// A package; its name may be anything.
    pub fn package(
        &mut self,
        name: &str,
        version: VersionSource,
        by: PackageBuilder,
        because: FlakeReason,
    ) {
        let name = store_name(name);
        self.fact(FlakeFactKind::Package { name, version, by }, because);
    }

    pub fn has_package(&self, of: ProjectLanguage) -> bool {
        self.facts.iter().any(
            |fact| matches!(&fact.what, FlakeFactKind::Package { by, .. } if by.language() == of),
        )
    }

    pub fn note(&mut self, because: FlakeReason, text: impl Into<String>) {
        let text = text.into();
        self.notes.push(ProjectNote { because, text });
    }

    /// The name of the project's folder.
    pub fn folder_name(&self) -> String {
        let folder = fs::canonicalize(&self.folder).unwrap_or_else(|_| self.folder.clone());
        let name = folder.file_name().map(|name| name.to_string_lossy());
        store_name(&name.unwrap_or_default())
    }
}

/// `name` as a store path can carry it: `@scope/name` is `scope-name`.
fn store_name(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "+-._?=".contains(c);
    let name: String = name
        .trim_start_matches('@')
        .chars()
        .map(|c| if allowed(c) { c } else { '-' })
        .take(LONGEST_NAME)
        .collect();
    let name = name.trim_start_matches('.');
    if name.is_empty() {
        "project".to_owned()
    } else {
        name.to_owned()
    }
}

/// The line of a byte of `text`, from 1.
pub fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset.min(text.len())]
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
}

/// Libraries that nixpkgs (release 26.05) does not evaluate for other systems, or that are of use on Linux only.
const LINUX_ONLY: [&str; 7] = [
    "alsa-lib",
    "libpulseaudio",
    "pipewire",
    "systemdLibs",
    "udev",
    "wayland",
    "webkitgtk_4_1",
];
/// Bytes of the largest file that is read: locks of large projects have some megabytes.
pub const LARGEST_FILE: u64 = 64 << 20;
/// Nix allows 211 characters, and `-` with a version comes behind.
const LONGEST_NAME: usize = 120;
