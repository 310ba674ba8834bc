//! .envrc: `export NAME=value` and `use nix -p PACKAGE…`, as far as the words are plain.
//!
//! ```text
//! line   = word { blank word }, up to a newline, `;` or a comment
//! word   = pieces without blanks between them: 'any', "any but $ ` and \ before what it would change", \any, plain
//! ```

use super::{DevShellDeclaration, ShellLoss, ShellReading};
use crate::emit::is_identifier;

/// Reads .envrc.
pub fn read(read: &mut ShellReading, text: &str) {
    for command in commands(text) {
        let line = command.line;
        let Some(words) = &command.words else {
            read.lose(FILE, line, "code that only bash could tell the meaning of");
            continue;
        };
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["export", assignment] => match assignment.split_once('=') {
                Some((name, value)) if is_variable(name) => {
                    read.shell
                        .variables
                        .insert(name.to_owned(), value.to_owned());
                }
                _ => read.lose(FILE, line, "export of what is set elsewhere"),
            },
            ["use", "nix", "-p" | "--packages", ref packages @ ..] => {
                for package in packages {
                    match package_path(package) {
                        Some(path) => read.shell.packages.push(path),
                        None => read.lose(
                            FILE,
                            line,
                            format!("the package {package} is an expression"),
                        ),
                    }
                }
            }
            ["use", "flake" | "nix" | "devenv", ..] => {
                read.lose(
                    FILE,
                    line,
                    format!("{}: the shell is in another file", words.join(" ")),
                );
            }
            _ => read.lose(FILE, line, format!("{}: it has no counterpart", words[0])),
        }
    }
}

/// `a.b.c` of plain names.
fn package_path(text: &str) -> Option<Vec<String>> {
    let path: Vec<_> = text.split('.').map(str::to_owned).collect();
    path.iter().all(|name| is_identifier(name)).then_some(path)
}

fn is_variable(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(plain)
}

/// A command of bash.
struct EnvrcCommand {
    line: usize,
    /// Its words, if they mean what they say.
    words: Option<Vec<String>>,
}

/// The commands of `text`.
fn commands(text: &str) -> Vec<EnvrcCommand> {
    let mut reader = WordReader {
        rest: text.chars().peekable(),
        line: 1,
    };
    let mut found = Vec::new();
    while reader.rest.peek().is_some() {
        let line = reader.line;
        let words = reader.command();
        if words.as_ref().is_none_or(|words| !words.is_empty()) {
            found.push(EnvrcCommand { line, words });
        }
    }
    found
}

struct WordReader<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
}

impl WordReader<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.rest.next();
        self.line += usize::from(next == Some('\n'));
        next
    }

    /// The words up to the end of the command; `None` if bash would do something with them.
    fn command(&mut self) -> Option<Vec<String>> {
        let mut words = Vec::new();
        let mut word: Option<String> = None;
        let mut is_plain = true;
        while let Some(c) = self.next() {
            match c {
                '\n' | ';' => break,
                ' ' | '\t' => words.extend(word.take()),
                '#' if word.is_none() => {
                    while self.rest.peek().is_some_and(|c| *c != '\n') {
                        self.next();
                    }
                }
                '\'' => is_plain &= self.quoted(word.get_or_insert_default()),
                '"' => is_plain &= self.double_quoted(word.get_or_insert_default()),
                '\\' => match self.next() {
                    Some('\n') => {}
                    Some(c) => word.get_or_insert_default().push(c),
                    None => is_plain = false,
                },
                '$' | '`' | '&' | '|' | '<' | '>' | '(' | ')' | '{' | '}' | '*' | '?' | '['
                | ']' | '~' | '!' => {
                    is_plain = false;
                    word.get_or_insert_default().push(c);
                }
                c => word.get_or_insert_default().push(c),
            }
        }
        words.extend(word);
        is_plain.then_some(words)
    }

    fn quoted(&mut self, word: &mut String) -> bool {
        while let Some(c) = self.next() {
            if c == '\'' {
                return true;
            }
            word.push(c);
        }
        false
    }

    fn double_quoted(&mut self, word: &mut String) -> bool {
        let mut is_plain = true;
        while let Some(c) = self.next() {
            match c {
                '"' => return is_plain,
                '$' | '`' => is_plain = false,
                '\\' => match self.next() {
                    Some('\n') => {}
                    Some(c @ ('$' | '`' | '"' | '\\')) => word.push(c),
                    Some(c) => word.extend(['\\', c]),
                    None => return false,
                },
                c => word.push(c),
            }
        }
        false
    }
}

/// The text of .envrc, and what it does not carry.
pub fn write(shell: &DevShellDeclaration) -> (String, Vec<ShellLoss>) {
    let mut text = String::new();
    let mut lost = Vec::new();
    let mut lose = |what: String| {
        lost.push(ShellLoss {
            file: FILE.to_owned(),
            line: None,
            what,
        });
    };
    let (plain, others): (Vec<_>, Vec<_>) = shell
        .packages
        .iter()
        .partition(|path| path.iter().all(|name| is_identifier(name)));
    if !plain.is_empty() {
        let names: Vec<_> = plain.iter().map(|path| path.join(".")).collect();
        text.push_str(&format!("use nix -p {}\n", names.join(" ")));
    }
    for path in others {
        lose(format!("no word of it names the package {path:?}"));
    }
    for (name, value) in &shell.variables {
        if is_variable(name) && !value.contains('\0') {
            text.push_str(&format!(
                "export {name}='{}'\n",
                value.replace('\'', "'\\''")
            ));
        } else {
            lose(format!("bash has no variable {name:?} with such a value"));
        }
    }
    if shell.name.is_some() {
        lose("the name: an environment of direnv has none".to_owned());
    }
    if !shell.hook.is_empty() {
        lose("the hook: direnv keeps variables, and no functions or aliases".to_owned());
    }
    for name in shell.scripts.keys() {
        lose(format!("the script {name}: it would be a file of its own"));
    }
    for (name, flake) in &shell.inputs {
        lose(format!(
            "the input {name} = {flake}: packages are those of <nixpkgs>"
        ));
    }
    (text, lost)
}

const FILE: &str = ".envrc";
