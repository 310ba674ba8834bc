//! A dev shell out of Nix code: the call of mkShell, and lists of packages.

use super::ShellReading;
use crate::{
    lock::FlakeFileError,
    nix_literal::{LiteralCode, LiteralEntry, LiteralNode},
};
use std::collections::BTreeSet;

/// Reads what `text`, a shell.nix, says of a shell; all else is told by its line.
pub fn shell_nix(read: &mut ShellReading, text: &str) -> Result<(), FlakeFileError> {
    let file = NixFile("shell.nix");
    let whole = LiteralNode::parse(file.0, text)?;
    file.made_shell(read, &whole)
}

/// A file of Nix code, by its name in what is said.
#[derive(Clone, Copy)]
pub struct NixFile(pub &'static str);

impl NixFile {
    /// Reads the first call of mkShell in `node`. What is around it and bears on it, or is beside it, is told.
    pub fn made_shell(
        self,
        read: &mut ShellReading,
        node: &LiteralNode,
    ) -> Result<(), FlakeFileError> {
        let mut scope = NixScope::default();
        let first = if leads_to_shell(node) {
            self.first_shell(read, node, &mut scope)
        } else {
            None
        };
        let Some(first) = first else {
            return Err(FlakeFileError {
                file: self.0.to_owned(),
                line: node.line,
                what: "no call of mkShell is in it that can be read without evaluation".to_owned(),
            });
        };
        for other in node.all() {
            if shell_argument(other).is_some_and(|argument| !std::ptr::eq(argument, first)) {
                read.lose(self.0, other.line, "another shell: only the first is read");
            }
        }
        self.attributes(read, first, &scope);
        Ok(())
    }

    /// The argument of the first call of mkShell in `node`, where `scope` holds.
    fn first_shell<'a>(
        self,
        read: &mut ShellReading,
        node: &'a LiteralNode,
        scope: &mut NixScope,
    ) -> Option<&'a LiteralNode> {
        if let Some(argument) = shell_argument(node) {
            return Some(argument);
        }
        let next = match &node.value {
            LiteralCode::Function(_) => self.body_of(read, node, scope),
            LiteralCode::Let(entries, body) => {
                self.definitions(read, entries, scope);
                let mut values = entries.iter().map(|entry| &entry.value);
                if leads_to_shell(body) {
                    body
                } else {
                    values.find(|value| leads_to_shell(value))?
                }
            }
            LiteralCode::Set(entries) => {
                for entry in entries.iter().filter(|entry| !leads_to_shell(&entry.value)) {
                    self.unread_entry(read, entry);
                }
                let mut values = entries.iter().map(|entry| &entry.value);
                values.find(|value| leads_to_shell(value))?
            }
            LiteralCode::Call(first, second) | LiteralCode::Concat(first, second) => {
                let (next, beside) = if leads_to_shell(first) {
                    (first, second)
                } else {
                    (second, first)
                };
                if !matches!(beside.value, LiteralCode::Name(_))
                    && !is_plumbing(beside)
                    && !leads_to_shell(beside)
                {
                    self.unread(read, beside, "what the shell is given to");
                }
                next
            }
            LiteralCode::With(what, body) => {
                if !is_name(what, &["pkgs"]) && !is_nixpkgs(what) {
                    self.unread(read, what, "with");
                }
                body
            }
            LiteralCode::List(items) => items.iter().find(|item| leads_to_shell(item))?,
            _ => return None,
        };
        self.first_shell(read, next, scope)
    }

    /// The body of a function, or below `let`; what is said before it goes into `scope` and is told.
    pub fn body<'a>(
        self,
        read: &mut ShellReading,
        node: &'a LiteralNode,
        scope: &mut NixScope,
    ) -> &'a LiteralNode {
        let body = self.body_of(read, node, scope);
        if std::ptr::eq(body, node) {
            return node;
        }
        self.body(read, body, scope)
    }

    fn body_of<'a>(
        self,
        read: &mut ShellReading,
        node: &'a LiteralNode,
        scope: &mut NixScope,
    ) -> &'a LiteralNode {
        match &node.value {
            LiteralCode::Function(function) => {
                scope.bound.extend(function.whole.clone());
                for argument in &function.arguments {
                    scope.bound.insert(argument.name.clone());
                    if let Some(default) = &argument.default
                        && !is_understood(&argument.name, default)
                    {
                        let what = format!(
                            "the default of {}: only an evaluation could tell what it gives",
                            argument.name
                        );
                        read.lose(self.0, argument.line, what);
                    }
                }
                &function.body
            }
            LiteralCode::Let(entries, body) => {
                self.definitions(read, entries, scope);
                body
            }
            _ => node,
        }
    }

    /// What `let` says.
    fn definitions(self, read: &mut ShellReading, entries: &[LiteralEntry], scope: &mut NixScope) {
        for entry in entries {
            scope.bound.extend(entry.path.first().cloned());
            let is_understood = match &entry.path[..] {
                [name] => is_understood(name, &entry.value),
                _ => false,
            };
            if !is_understood && !leads_to_shell(&entry.value) {
                let name = entry.path.join(".");
                let what = format!(
                    "the definition of {name}: only an evaluation could tell what it gives"
                );
                read.lose(self.0, entry.line, what);
            }
        }
    }

    /// The attributes of mkShell.
    fn attributes(self, read: &mut ShellReading, argument: &LiteralNode, scope: &NixScope) {
        if !matches!(argument.value, LiteralCode::Set(_)) {
            self.unread(read, argument, "mkShell's argument");
        }
        for entry in argument.flat_entries(&|path| path[0] != "env") {
            let names: Vec<_> = entry.path.iter().map(String::as_str).collect();
            match names[..] {
                ["name"] => read.shell.name = self.string(read, &entry),
                ["packages" | "buildInputs" | "nativeBuildInputs"] => {
                    self.packages(read, &entry.value, scope);
                }
                ["shellHook"] => read.shell.hook = self.string(read, &entry).unwrap_or_default(),
                ["inputsFrom"] if entry.value.value == LiteralCode::List(Vec::new()) => {}
                ["inputsFrom"] => read.lose(self.0, entry.line, "inputsFrom: what packages need"),
                ["env", name] => self.variable(read, name, &entry),
                ["env"] if entry.value.value == LiteralCode::Set(Vec::new()) => {}
                [name] if name != "env" => self.variable(read, name, &entry),
                _ => self.unread_entry(read, &entry),
            }
        }
    }

    /// A variable with a plain value.
    pub fn variable(self, read: &mut ShellReading, name: &str, entry: &LiteralEntry) {
        let value = match &entry.value.value {
            LiteralCode::String(text) => text.clone(),
            LiteralCode::Integer(number) => number.to_string(),
            _ => return self.unread(read, &entry.value, &format!("the variable {name}")),
        };
        let before = read.shell.variables.insert(name.to_owned(), value);
        if before.is_some() {
            read.lose(
                self.0,
                entry.line,
                format!("the variable {name} is there twice: the last is taken"),
            );
        }
    }

    /// A plain string.
    pub fn string(self, read: &mut ShellReading, entry: &LiteralEntry) -> Option<String> {
        match &entry.value.value {
            LiteralCode::String(text) => Some(text.clone()),
            _ => {
                self.unread(read, &entry.value, &entry.path.join("."));
                None
            }
        }
    }

    /// A list of packages.
    pub fn packages(self, read: &mut ShellReading, list: &LiteralNode, scope: &NixScope) {
        match &list.value {
            LiteralCode::List(items) => {
                for item in items {
                    self.package(read, item, scope);
                }
            }
            LiteralCode::Concat(first, second) => {
                self.packages(read, first, scope);
                self.packages(read, second, scope);
            }
            LiteralCode::With(what, body) if is_name(what, &["pkgs"]) => {
                let scope = NixScope {
                    with_pkgs: true,
                    ..scope.clone()
                };
                self.packages(read, body, &scope);
            }
            _ => self.unread(read, list, "packages"),
        }
    }

    fn package(self, read: &mut ShellReading, item: &LiteralNode, scope: &NixScope) {
        match &item.value {
            LiteralCode::Name(path) if path[0] == "pkgs" && path.len() > 1 => {
                read.shell.packages.push(path[1..].to_vec());
            }
            LiteralCode::Name(path) if scope.gives(&path[0]) => {
                read.shell.packages.push(path.clone());
            }
            _ => match script(item) {
                Some((name, text)) => {
                    read.shell.scripts.insert(name.to_owned(), text.to_owned());
                }
                None => self.unread(read, item, "a package"),
            },
        }
    }

    /// Says that something was not taken over.
    pub fn unread(self, read: &mut ShellReading, node: &LiteralNode, what: &str) {
        let text = match &node.value {
            LiteralCode::Other(text) | LiteralCode::Path(text) => {
                format!("{what} is no literal: {text}")
            }
            LiteralCode::Name(path) => format!("{what} is defined elsewhere: {}", path.join(".")),
            _ => format!("{what} is not of a kind that is read"),
        };
        read.lose(self.0, node.line, text);
    }

    /// Says that an attribute was not taken over.
    pub fn unread_entry(self, read: &mut ShellReading, entry: &LiteralEntry) {
        let name = match entry.path.join(".") {
            name if name.is_empty() => "a name that is computed".to_owned(),
            name => name,
        };
        read.lose(self.0, entry.line, format!("{name}: it has no counterpart"));
    }
}

/// What names mean where packages are read.
#[derive(Debug, Clone, Default)]
pub struct NixScope {
    /// Names of arguments and of `let`. They go before those of `with`.
    bound: BTreeSet<String>,
    /// Whether other names are looked up in nixpkgs: it is below `with pkgs;`.
    with_pkgs: bool,
}

impl NixScope {
    /// Whether nixpkgs gives what is called `name`.
    fn gives(&self, name: &str) -> bool {
        self.with_pkgs && name != "pkgs" && !self.bound.contains(name) && !GLOBALS.contains(&name)
    }
}

/// The argument of mkShell, if `node` is a call of it.
fn shell_argument(node: &LiteralNode) -> Option<&LiteralNode> {
    match &node.value {
        LiteralCode::Call(function, argument)
            if is_called(function, &["mkShell", "mkShellNoCC"]) =>
        {
            Some(argument)
        }
        _ => None,
    }
}

fn leads_to_shell(node: &LiteralNode) -> bool {
    node.all()
        .into_iter()
        .any(|node| shell_argument(node).is_some())
}

/// Whether what `name` is bound to changes nothing in the shell but where the name itself is used.
fn is_understood(name: &str, value: &LiteralNode) -> bool {
    match name {
        "pkgs" => is_nixpkgs(value),
        "lib" => true,
        "system" => is_plumbing(value) || is_name(value, &["builtins", "currentSystem"]),
        _ => is_plumbing(value),
    }
}

/// Whether `node` is nixpkgs without settings of its own: `nixpkgs.legacyPackages.…`, or
/// `import <nixpkgs> { }` with no argument but `system`.
fn is_nixpkgs(node: &LiteralNode) -> bool {
    let is_source = |node: &LiteralNode| match &node.value {
        LiteralCode::Other(text) => text == "<nixpkgs>",
        _ => is_name(node, &["nixpkgs"]) || is_name(node, &["inputs", "nixpkgs"]),
    };
    match &node.value {
        LiteralCode::Name(path) => {
            let path: Vec<_> = path.iter().map(String::as_str).collect();
            matches!(
                path[..],
                ["nixpkgs", "legacyPackages", _] | ["inputs", "nixpkgs", "legacyPackages", _]
            )
        }
        // The name of the system is computed.
        LiteralCode::Other(text) => {
            let text = text.strip_prefix("inputs.").unwrap_or(text);
            let system = text.strip_prefix("nixpkgs.legacyPackages.${");
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-'".contains(c);
            system
                .and_then(|rest| rest.strip_suffix('}'))
                .is_some_and(|name| name.chars().all(plain))
        }
        LiteralCode::Call(function, settings) => {
            let LiteralCode::Call(import, source) = &function.value else {
                return false;
            };
            let LiteralCode::Set(settings) = &settings.value else {
                return false;
            };
            is_name(import, &["import"])
                && is_source(source)
                && settings.iter().all(|entry| entry.path == ["system"])
        }
        _ => false,
    }
}

/// Whether `node` only hands texts, names and nixpkgs around, as functions that go through all systems do.
fn is_plumbing(node: &LiteralNode) -> bool {
    if is_nixpkgs(node) {
        return true;
    }
    match &node.value {
        LiteralCode::String(_) => true,
        LiteralCode::Name(path) => {
            path.last().is_some_and(|last| last == "genAttrs")
                || (path.len() == 1 && path[0] != "import")
        }
        LiteralCode::List(items) => items.iter().all(is_plumbing),
        LiteralCode::Set(entries) => entries.iter().all(|entry| match &entry.value.value {
            LiteralCode::Other(text) if text.starts_with("inherit ") => !text.contains('('),
            _ => is_plumbing(&entry.value),
        }),
        LiteralCode::Function(function) => {
            let mut arguments = function.arguments.iter();
            arguments.all(|argument| argument.default.is_none()) && is_plumbing(&function.body)
        }
        LiteralCode::Call(function, argument) => is_plumbing(function) && is_plumbing(argument),
        _ => false,
    }
}

/// Whether `node` is one of these functions, below whatever set.
fn is_called(node: &LiteralNode, names: &[&str]) -> bool {
    match &node.value {
        LiteralCode::Name(path) => path
            .last()
            .is_some_and(|last| names.contains(&last.as_str())),
        _ => false,
    }
}

fn is_name(node: &LiteralNode, path: &[&str]) -> bool {
    matches!(&node.value, LiteralCode::Name(name) if name == path)
}

/// `pkgs.writeShellScriptBin "name" "text"`.
fn script(node: &LiteralNode) -> Option<(&str, &str)> {
    let LiteralCode::Call(call, text) = &node.value else {
        return None;
    };
    let LiteralCode::Call(writer, name) = &call.value else {
        return None;
    };
    match (&name.value, &text.value) {
        (LiteralCode::String(name), LiteralCode::String(text))
            if is_called(writer, &["writeShellScriptBin"]) =>
        {
            Some((name, text))
        }
        _ => None,
    }
}

/// Names that Nix itself binds, so that `with` does not (2.8 to 2.34).
const GLOBALS: [&str; 22] = [
    "abort",
    "baseNameOf",
    "break",
    "builtins",
    "derivation",
    "derivationStrict",
    "dirOf",
    "false",
    "fetchGit",
    "fetchMercurial",
    "fetchTarball",
    "fetchTree",
    "fromTOML",
    "import",
    "isNull",
    "map",
    "null",
    "placeholder",
    "removeAttrs",
    "throw",
    "toString",
    "true",
];
