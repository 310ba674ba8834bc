//! A dev shell out of Nix code: the call of mkShell, and lists of packages.

use super::ShellReading;
use crate::{
    lock::FlakeFileError,
    nix_literal::{LiteralCode, LiteralEntry, LiteralNode},
};

/// Reads shell.nix.
pub fn shell_nix(read: &mut ShellReading, text: &str) -> Result<(), FlakeFileError> {
    let file = NixFile("shell.nix");
    let whole = LiteralNode::parse(file.0, text)?;
    file.made_shell(read, &whole)
}

/// A file of Nix code, by its name in what is said.
#[derive(Clone, Copy)]
pub struct NixFile(pub &'static str);

impl NixFile {
    /// Reads the first call of mkShell in `node`.
    pub fn made_shell(
        self,
        read: &mut ShellReading,
        node: &LiteralNode,
    ) -> Result<(), FlakeFileError> {
        let all = node.all();
        let mut calls = all.iter().filter_map(|node| match &node.value {
            LiteralCode::Call(function, argument)
                if is_called(function, &["mkShell", "mkShellNoCC"]) =>
            {
                Some((node.line, argument.as_ref()))
            }
            _ => None,
        });
        let Some((_, argument)) = calls.next() else {
            return Err(FlakeFileError {
                file: self.0.to_owned(),
                line: node.line,
                what: "no call of mkShell is in it that can be read without evaluation".to_owned(),
            });
        };
        for (line, _) in calls {
            read.lose(self.0, line, "another shell: only the first is read");
        }
        self.attributes(read, argument);
        Ok(())
    }

    /// The attributes of mkShell.
    fn attributes(self, read: &mut ShellReading, argument: &LiteralNode) {
        if !matches!(argument.value, LiteralCode::Set(_)) {
            self.unread(read, argument, "mkShell's argument");
        }
        for entry in argument.flat_entries(&|path| path[0] != "env") {
            let names: Vec<_> = entry.path.iter().map(String::as_str).collect();
            match names[..] {
                ["name"] => read.shell.name = self.string(read, &entry),
                ["packages" | "buildInputs" | "nativeBuildInputs"] => {
                    self.packages(read, &entry.value, Scope::Outside);
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
    pub fn packages(self, read: &mut ShellReading, list: &LiteralNode, scope: Scope) {
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
                self.packages(read, body, Scope::WithPkgs);
            }
            _ => self.unread(read, list, "packages"),
        }
    }

    fn package(self, read: &mut ShellReading, item: &LiteralNode, scope: Scope) {
        match &item.value {
            LiteralCode::Name(path) if path[0] == "pkgs" && path.len() > 1 => {
                read.shell.packages.push(path[1..].to_vec());
            }
            LiteralCode::Name(path) if scope == Scope::WithPkgs && path[0] != "pkgs" => {
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
            LiteralCode::Other(text) => format!("{what} is no literal: {text}"),
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

/// Whether names are looked up in nixpkgs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// They are not.
    Outside,
    /// Below `with pkgs;`.
    WithPkgs,
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
