//! A dev shell apart from the file that it is written in.
//!
//! | form | what it carries |
//! | --- | --- |
//! | flake.nix | all of it |
//! | devenv.nix with devenv.yaml | all of it |
//! | shell.nix | all but the inputs: nixpkgs is `<nixpkgs>` |
//! | .envrc | packages (`use nix -p`) and variables (`export`) |
//!
//! Of Nix code the literal part is read. Everything else is a [`ShellLoss`] with its line, and so is what a form
//! cannot carry: nothing is dropped in silence.

mod devenv;
mod envrc;
mod flake;
mod nix_read;
mod nix_write;

use crate::{emit::EmitError, lock::FlakeFileError};
use std::{collections::BTreeMap, fmt};

/// A dev shell as it is declared: what is in it, and what it is made of. What an evaluation makes of it, paths of a
/// store, is `NixDevShell` of tk-nix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DevShellDeclaration {
    /// The name of the shell, where the form has one.
    pub name: Option<String>,
    /// Packages: paths of attributes below nixpkgs, in their order.
    pub packages: Vec<Vec<String>>,
    /// Scripts by their names, which are commands in the shell.
    pub scripts: BTreeMap<String, String>,
    /// The variables that the shell sets, by name.
    pub variables: BTreeMap<String, String>,
    /// The code that runs when the shell is entered; may be empty.
    pub hook: String,
    /// Inputs by their names, as references of flakes; `nixpkgs` is where the packages are from.
    pub inputs: BTreeMap<String, String>,
}

/// A way to write a dev shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DevShellForm {
    /// `devShells.SYSTEM.default` of flake.nix.
    Flake,
    /// shell.nix.
    ShellNix,
    /// devenv.nix and devenv.yaml.
    Devenv,
    /// .envrc of direnv.
    Envrc,
}

impl DevShellForm {
    /// The files of the form. Of devenv the second may be absent.
    pub fn files(self) -> &'static [&'static str] {
        match self {
            DevShellForm::Flake => &["flake.nix"],
            DevShellForm::ShellNix => &["shell.nix"],
            DevShellForm::Devenv => &["devenv.nix", "devenv.yaml"],
            DevShellForm::Envrc => &[".envrc"],
        }
    }
}

/// Something that was not taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShellLoss {
    /// The file that has it or that cannot.
    pub file: String,
    /// The line in what was read, from 1.
    pub line: Option<usize>,
    /// What, and why.
    pub what: String,
}

impl fmt::Display for ShellLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.what),
            None => write!(f, "{}: {}", self.file, self.what),
        }
    }
}

/// The files of a dev shell: names and texts, in the order of [`DevShellForm::files`].
pub type ShellFiles = Vec<(&'static str, String)>;

/// Reads a dev shell from the texts of the files of `form`.
///
/// # Errors
/// Where a file is not what its name says.
pub fn read_shell(
    form: DevShellForm,
    texts: &[Option<String>],
) -> Result<(DevShellDeclaration, Vec<ShellLoss>), FlakeFileError> {
    let text = |at: usize| texts.get(at).and_then(Option::as_deref);
    let first = text(0).unwrap_or_default();
    let mut read = ShellReading::default();
    match form {
        DevShellForm::Flake => flake::read(&mut read, first)?,
        DevShellForm::ShellNix => nix_read::shell_nix(&mut read, first)?,
        DevShellForm::Devenv => devenv::read(&mut read, first, text(1))?,
        DevShellForm::Envrc => envrc::read(&mut read, first),
    }
    Ok((read.shell, read.lost))
}

/// Writes a dev shell: the files, and what they do not carry.
///
/// # Errors
/// If something in it is nothing that Nix can hold; see [`EmitError`].
pub fn write_shell(
    form: DevShellForm,
    shell: &DevShellDeclaration,
) -> Result<(ShellFiles, Vec<ShellLoss>), EmitError> {
    match form {
        DevShellForm::Flake => Ok((vec![("flake.nix", flake::write(shell)?)], Vec::new())),
        DevShellForm::ShellNix => {
            let text = nix_write::shell_nix(shell)?;
            let lost = shell.inputs.iter().map(|(name, flake)| ShellLoss {
                file: "shell.nix".to_owned(),
                line: None,
                what: format!("it has no inputs: {name} = {flake} is left out, packages are those of <nixpkgs>"),
            });
            Ok((vec![("shell.nix", text)], lost.collect()))
        }
        DevShellForm::Devenv => Ok((devenv::write(shell)?, Vec::new())),
        DevShellForm::Envrc => {
            let (text, lost) = envrc::write(shell);
            Ok((vec![(".envrc", text)], lost))
        }
    }
}

/// What was read so far.
#[derive(Default)]
struct ShellReading {
    shell: DevShellDeclaration,
    lost: Vec<ShellLoss>,
}

impl ShellReading {
    fn lose(&mut self, file: &str, line: usize, what: impl Into<String>) {
        self.lost.push(ShellLoss {
            file: file.to_owned(),
            line: Some(line),
            what: what.into(),
        });
    }
}
