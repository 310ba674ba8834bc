//! .envrc: `export NAME=value` and `use nix -p PACKAGE…`, as far as the words are plain.
//!
//! ```text
//! line   = word { blank word }, up to a newline, `;` or a comment
//! word   = pieces without blanks between them: 'any', "any but $ ` and \ before what it would change", \any, plain
//! ```

use super::{DevShellDeclaration, ShellLoss, ShellReading};
use crate::{emit::is_identifier, text::is_variable};

/// Reads what `text`, a .envrc, says of a shell; all else is told by its line.
pub fn read(read: &mut ShellReading, text: &str) {
    let mut block = EnvrcBlock::default();
    for command in commands(text) {
        let line = command.line;
        if block.holds(&command) {
            if !block.is_open() {
                block.tell(read);
            }
            continue;
        }
        if !command.is_plain {
            read.lose(FILE, line, "code that only bash could tell the meaning of");
            continue;
        }
        let words: Vec<_> = command
            .words
            .iter()
            .map(|word| word.text.as_str())
            .collect();
        if ["return", "exit"].contains(&words[0]) {
            read.lose(
                FILE,
                line,
                format!("{}: nothing behind it is read", words[0]),
            );
            return;
        }
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
    if block.is_open() {
        block.tell(read);
    }
}

/// Code that runs under a condition, several times, when it is called, or in a shell of its own.
#[derive(Default)]
struct EnvrcBlock {
    first_line: usize,
    last_line: usize,
    /// Of `if`, `case`, loops and `{`, how many are open.
    words: usize,
    /// Of `(`, how many are open.
    brackets: usize,
}

impl EnvrcBlock {
    fn is_open(&self) -> bool {
        self.words + self.brackets > 0
    }

    /// Whether `command` is in the block, opens or closes it.
    fn holds(&mut self, command: &EnvrcCommand) -> bool {
        let was_open = self.is_open();
        self.brackets = (self.brackets + command.opened).saturating_sub(command.closed);
        let mut before: Option<&EnvrcWord> = None;
        for (at, word) in command.words.iter().enumerate() {
            let is_function = at == 2 && command.words[0].is_bare("function");
            if before.is_none_or(EnvrcWord::lets_a_command_follow) || is_function {
                if OPENING.iter().any(|opening| word.is_bare(opening)) {
                    self.words += 1;
                }
                if CLOSING.iter().any(|closing| word.is_bare(closing)) {
                    self.words = self.words.saturating_sub(1);
                }
            }
            before = Some(word);
        }
        if !was_open {
            self.first_line = command.line;
        }
        self.last_line = command.line;
        was_open || self.is_open()
    }

    fn tell(&self, read: &mut ShellReading) {
        let what = format!(
            "only bash could tell what runs of the lines up to {}",
            self.last_line
        );
        read.lose(FILE, self.first_line, what);
    }
}

/// `a.b.c` of plain names.
fn package_path(text: &str) -> Option<Vec<String>> {
    let path: Vec<_> = text.split('.').map(str::to_owned).collect();
    path.iter().all(|name| is_identifier(name)).then_some(path)
}

/// A command of bash.
struct EnvrcCommand {
    line: usize,
    words: Vec<EnvrcWord>,
    /// Whether the words mean what they say.
    is_plain: bool,
    /// Brackets, `(` and `)`.
    opened: usize,
    closed: usize,
}

/// A word without its quotes.
#[derive(Default)]
struct EnvrcWord {
    text: String,
    is_quoted: bool,
}

impl EnvrcWord {
    fn is_bare(&self, text: &str) -> bool {
        !self.is_quoted && self.text == text
    }

    /// Whether what comes next is no argument.
    fn lets_a_command_follow(&self) -> bool {
        !self.is_quoted
            && (self.text.ends_with(['&', '|', '(', ')', '{', '!'])
                || BEFORE_COMMANDS.contains(&self.text.as_str()))
    }

    /// Whether the command goes on behind the end of the line.
    fn goes_on(&self) -> bool {
        !self.is_quoted && (self.text.ends_with("&&") || self.text.ends_with('|'))
    }
}

/// The commands of `text`.
fn commands(text: &str) -> Vec<EnvrcCommand> {
    let mut reader = WordReader {
        rest: text.chars().peekable(),
        line: 1,
        documents: Vec::new(),
    };
    let mut found = Vec::new();
    while reader.rest.peek().is_some() {
        let command = reader.command();
        if !command.words.is_empty() || !command.is_plain {
            found.push(command);
        }
    }
    found
}

struct WordReader<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
    /// The last lines of the documents (`<<`) that begin behind this line, and whether tabs before them do not count.
    documents: Vec<(String, bool)>,
}

impl WordReader<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.rest.next();
        self.line += usize::from(next == Some('\n'));
        next
    }

    /// What stands up to the end of the command.
    fn command(&mut self) -> EnvrcCommand {
        let line = self.line;
        let mut words: Vec<EnvrcWord> = Vec::new();
        let mut word: Option<EnvrcWord> = None;
        let mut is_plain = true;
        let (mut opened, mut closed) = (0, 0);
        while let Some(c) = self.next() {
            match c {
                ';' => break,
                '\n' => {
                    self.skip_documents();
                    words.extend(word.take());
                    if !words.last().is_some_and(EnvrcWord::goes_on) {
                        break;
                    }
                }
                ' ' | '\t' => words.extend(word.take()),
                '#' if word.is_none() => {
                    while self.rest.peek().is_some_and(|c| *c != '\n') {
                        self.next();
                    }
                }
                '\'' | '"' => {
                    let word = word.get_or_insert_default();
                    word.is_quoted = true;
                    is_plain &= if c == '"' {
                        self.double_quoted(&mut word.text)
                    } else {
                        self.quoted(&mut word.text)
                    };
                }
                '\\' => match self.next() {
                    Some('\n') => {}
                    Some(c) => {
                        let word = word.get_or_insert_default();
                        word.is_quoted = true;
                        word.text.push(c);
                    }
                    None => is_plain = false,
                },
                // Between (( and )) it is a number's.
                '<' if self.rest.peek() == Some(&'<') && opened < closed + 2 => {
                    is_plain = false;
                    word.get_or_insert_default().text.push_str("<<");
                    self.next();
                    self.document();
                }
                '$' | '`' | '&' | '|' | '<' | '>' | '(' | ')' | '{' | '}' | '*' | '?' | '['
                | ']' | '~' | '!' => {
                    is_plain = false;
                    opened += usize::from(c == '(');
                    closed += usize::from(c == ')');
                    word.get_or_insert_default().text.push(c);
                }
                c => word.get_or_insert_default().text.push(c),
            }
        }
        words.extend(word);
        EnvrcCommand {
            line,
            words,
            is_plain,
            opened,
            closed,
        }
    }

    /// Behind `<<`: how a document ends. `<<<` has a word and no document.
    fn document(&mut self) {
        if self.rest.next_if_eq(&'<').is_some() {
            return;
        }
        let cuts_tabs = self.rest.next_if_eq(&'-').is_some();
        while self.rest.next_if(|c| " \t".contains(*c)).is_some() {}
        let mut end = String::new();
        while let Some(c) = self.rest.next_if(|c| !" \t\n;&|<>()".contains(*c)) {
            if !"'\"\\".contains(c) {
                end.push(c);
            }
        }
        self.documents.push((end, cuts_tabs));
    }

    /// Goes behind the documents that begin here.
    fn skip_documents(&mut self) {
        for (end, cuts_tabs) in std::mem::take(&mut self.documents) {
            while self.rest.peek().is_some() {
                let mut line = String::new();
                while let Some(c) = self.next().filter(|c| *c != '\n') {
                    line.push(c);
                }
                let line = if cuts_tabs {
                    line.trim_start_matches('\t')
                } else {
                    &line
                };
                if line == end {
                    break;
                }
            }
        }
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
/// Words that open a block where a command may stand, and that close one.
const OPENING: [&str; 7] = ["if", "case", "for", "while", "until", "select", "{"];
const CLOSING: [&str; 4] = ["fi", "esac", "done", "}"];
/// Words behind which a command may stand.
const BEFORE_COMMANDS: [&str; 8] = ["then", "else", "elif", "do", "if", "while", "until", "time"];
