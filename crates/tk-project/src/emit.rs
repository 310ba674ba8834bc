//! Nix text of [`NixExpr`], in the layout of nixfmt (RFC 166).
//!
//! Rules of Nix's lexer that the escapes follow, which hold from 2.8 to 2.34:
//!
//! ```text
//! "…"     \" \\ \n \r \t are escapes, and \${ is no interpolation. A bare CR would be read as LF.
//! ''…''   ''' is two quotes, ''${ is no interpolation, ''\x is what \x is in "…". The indentation that all
//!         lines share is cut: blanks count, tabs do not; lines of blanks only do not either.
//! name    [a-zA-Z_][a-zA-Z0-9_'-]*, and no keyword; anything else is "…".
//! path    ./ and [a-zA-Z0-9._+-] between single slashes; anything else is ./. + "/…".
//! ```
//!
//! No string of Nix holds NUL, and no name may come twice: both are errors here.

use crate::nix_expr::{NixBinding, NixExpr};
use rnix::{NodeOrToken, SyntaxKind, SyntaxNode};
use std::{collections::BTreeSet, fmt::Write as _};

/// Text that was written, and why each of its lines is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmittedNix {
    /// The text, which ends with a newline.
    pub text: String,
    /// Of each line the indexes of [`NixExpr::Because`] that it stands for, in their order on it.
    pub reasons: Vec<Vec<usize>>,
}

/// Why an expression cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// A string of Nix cannot hold NUL.
    #[error("{0:?} holds a NUL character, which no string of Nix can")]
    Nul(String),
    /// The same name twice in one set: Nix refuses it.
    #[error("the attribute {0:?} would be there twice")]
    Twice(String),
    /// An attribute without a name.
    #[error("an attribute without a name")]
    Nameless,
    /// What was written does not come back from the parser: a bug of this crate.
    #[error("the text that was made is not the Nix code that was meant: {0}")]
    Broken(String),
}

/// The text of `expr`: laid out, and parsed again.
///
/// # Errors
/// For what Nix cannot hold; see [`EmitError`].
pub fn emit(expr: &NixExpr) -> Result<EmittedNix, EmitError> {
    let mut writer = NixWriter::default();
    writer.expr(expr)?;
    let raw = writer.text;
    let text = nixfmt_rs::format(&raw).map_err(|e| EmitError::Broken(e.to_string()))?;
    let (before, after) = (tokens(&raw)?, tokens(&text)?);
    let differs = |(a, b): &(&NixToken, &NixToken)| a.kind != b.kind;
    if let Some((_, token)) = before.iter().zip(&after).find(differs) {
        let near: String = text[token.start..].chars().take(40).collect();
        return Err(EmitError::Broken(format!(
            "its layout changed its words at {near:?}"
        )));
    }
    if before.len() != after.len() {
        return Err(EmitError::Broken(
            "its layout changed its last words".into(),
        ));
    }
    let mut reasons = vec![Vec::new(); text.lines().count()];
    let mut line = LineCounter::of(&text);
    for (old, new) in before.iter().zip(&after) {
        let Some(reason) = writer.marks.at(old.start) else {
            continue;
        };
        let first = line.at(new.start);
        let last = first + text[new.start..new.end].trim_end().matches('\n').count();
        for at in first..=last.min(reasons.len() - 1) {
            if !reasons[at].contains(&reason) {
                reasons[at].push(reason);
            }
        }
    }
    Ok(EmittedNix { text, reasons })
}

/// A word of Nix code: where it stands, in bytes.
struct NixToken {
    kind: SyntaxKind,
    start: usize,
    end: usize,
}

/// The words of `text` without blanks and comments, and without commas: the layout adds a last one.
fn tokens(text: &str) -> Result<Vec<NixToken>, EmitError> {
    let parsed = rnix::Root::parse(text);
    if let Some(error) = parsed.errors().first() {
        return Err(EmitError::Broken(error.to_string()));
    }
    let trivia = |kind| {
        matches!(
            kind,
            SyntaxKind::TOKEN_WHITESPACE | SyntaxKind::TOKEN_COMMENT | SyntaxKind::TOKEN_COMMA
        )
    };
    let root: SyntaxNode = parsed.syntax();
    let all = root.descendants_with_tokens();
    let words = all.filter_map(|element| match element {
        NodeOrToken::Token(token) if !trivia(token.kind()) => Some(NixToken {
            kind: token.kind(),
            start: token.text_range().start().into(),
            end: token.text_range().end().into(),
        }),
        _ => None,
    });
    Ok(words.collect())
}

/// Counts lines up to growing offsets.
struct LineCounter<'a> {
    text: &'a str,
    offset: usize,
    line: usize,
}

impl<'a> LineCounter<'a> {
    fn of(text: &'a str) -> Self {
        LineCounter {
            text,
            offset: 0,
            line: 0,
        }
    }

    fn at(&mut self, offset: usize) -> usize {
        self.line += self.text[self.offset..offset].matches('\n').count();
        self.offset = offset;
        self.line
    }
}

/// From which byte on which reason holds.
#[derive(Default)]
struct ReasonMarks {
    starts: Vec<(usize, Option<usize>)>,
    now: Option<usize>,
}

impl ReasonMarks {
    /// The reason from `offset` on; gives the one before.
    fn change(&mut self, offset: usize, to: Option<usize>) -> Option<usize> {
        self.starts.push((offset, to));
        std::mem::replace(&mut self.now, to)
    }

    fn at(&self, offset: usize) -> Option<usize> {
        let after = self.starts.partition_point(|(start, _)| *start <= offset);
        after.checked_sub(1).and_then(|last| self.starts[last].1)
    }
}

/// Writes correct Nix code without care for its layout, but for what nixfmt leaves as it is: lists and
/// sets with a newline in them stay one element a line, so that another element is another line.
#[derive(Default)]
struct NixWriter {
    text: String,
    marks: ReasonMarks,
}

impl NixWriter {
    fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    fn reasoned(
        &mut self,
        reason: Option<usize>,
        write: impl FnOnce(&mut Self) -> Result<(), EmitError>,
    ) -> Result<(), EmitError> {
        let Some(reason) = reason else {
            return write(self);
        };
        let outer = self.marks.change(self.text.len(), Some(reason));
        write(self)?;
        self.marks.change(self.text.len(), outer);
        Ok(())
    }

    fn expr(&mut self, expr: &NixExpr) -> Result<(), EmitError> {
        match expr {
            NixExpr::String(text) => self.string(text)?,
            NixExpr::Integer(i64::MIN) => self.push("(-9223372036854775807 - 1)"),
            NixExpr::Integer(number) => self.push(&number.to_string()),
            NixExpr::Bool(value) => self.push(if *value { "true" } else { "false" }),
            NixExpr::Null => self.push("null"),
            NixExpr::Path(path) => self.path(path)?,
            NixExpr::Select(of, path) => {
                self.atom(of)?;
                for name in path {
                    self.push(".");
                    self.name(name)?;
                }
            }
            NixExpr::List(items) => self.list(items)?,
            NixExpr::Attrs(bindings) if bindings.is_empty() => self.push("{ }"),
            NixExpr::Attrs(bindings) => {
                self.push("{\n");
                self.bindings(bindings)?;
                self.push("}");
            }
            NixExpr::Call(function, arguments) => {
                self.atom(function)?;
                for argument in arguments {
                    self.push(" ");
                    self.atom(argument)?;
                }
            }
            NixExpr::Concat(first, second) => {
                self.operand(first)?;
                self.push(" ++ ");
                self.operand(second)?;
            }
            NixExpr::Function(head, body) => {
                self.push(head);
                self.push(": ");
                self.expr(body)?;
            }
            NixExpr::SetFunction(names, body) => {
                let distinct: BTreeSet<_> = names.iter().collect();
                if let Some(bad) = names.iter().find(|name| !is_identifier(name)) {
                    return Err(EmitError::Broken(format!(
                        "{bad:?} is no name of an argument"
                    )));
                }
                if distinct.len() < names.len() {
                    return Err(EmitError::Twice(names.join(", ")));
                }
                write!(self.text, "{{ {} }}: ", names.join(", ")).expect("to memory");
                self.expr(body)?;
            }
            NixExpr::Let(bindings, body) => {
                self.push("let\n");
                self.bindings(bindings)?;
                self.push("in\n");
                self.expr(body)?;
            }
            NixExpr::Code(code) => self.push(code),
            NixExpr::Because(reason, expr) => {
                self.reasoned(Some(*reason), |writer| writer.expr(expr))?;
            }
            NixExpr::Commented(lines, expr) => {
                self.push("\n");
                self.comment(lines);
                self.expr(expr)?;
            }
        }
        Ok(())
    }

    /// The expression where only one word, or one thing in brackets, may stand.
    fn atom(&mut self, expr: &NixExpr) -> Result<(), EmitError> {
        let inner = match expr {
            NixExpr::Because(reason, inner) => {
                return self.reasoned(Some(*reason), |writer| writer.atom(inner));
            }
            NixExpr::Commented(lines, inner) => {
                self.push("\n");
                self.comment(lines);
                return self.atom(inner);
            }
            inner => inner,
        };
        let bare = match inner {
            NixExpr::String(_)
            | NixExpr::Bool(_)
            | NixExpr::Null
            | NixExpr::Select(..)
            | NixExpr::List(_)
            | NixExpr::Attrs(_) => true,
            NixExpr::Integer(number) => *number >= 0 || *number == i64::MIN,
            NixExpr::Path(path) => is_plain_path(path),
            NixExpr::Code(code) => !code.contains(char::is_whitespace),
            _ => false,
        };
        if bare {
            return self.expr(inner);
        }
        self.push("(");
        self.expr(inner)?;
        self.push(")");
        Ok(())
    }

    /// The expression beside an operator, which binds less than a call.
    fn operand(&mut self, expr: &NixExpr) -> Result<(), EmitError> {
        if matches!(expr, NixExpr::Call(..)) {
            return self.expr(expr);
        }
        self.atom(expr)
    }

    fn list(&mut self, items: &[NixExpr]) -> Result<(), EmitError> {
        if items.is_empty() {
            self.push("[ ]");
            return Ok(());
        }
        self.push("[\n");
        for item in items {
            self.atom(item)?;
            self.push("\n");
        }
        self.push("]");
        Ok(())
    }

    fn bindings(&mut self, bindings: &[NixBinding]) -> Result<(), EmitError> {
        let mut seen = SeenPaths::default();
        for binding in bindings {
            match binding {
                NixBinding::Blank => self.push("\n"),
                NixBinding::Code(code) => {
                    self.push(code);
                    self.push("\n");
                }
                NixBinding::Set {
                    path,
                    value,
                    comment,
                    because,
                } => {
                    seen.add(path)?;
                    self.comment(comment);
                    self.reasoned(*because, |writer| {
                        for (at, name) in path.iter().enumerate() {
                            writer.push(if at == 0 { "" } else { "." });
                            writer.name(name)?;
                        }
                        writer.push(" = ");
                        writer.expr(value)?;
                        writer.push(";");
                        Ok(())
                    })?;
                    self.push("\n");
                }
            }
        }
        Ok(())
    }

    /// Lines of comment; what would end a line or be obeyed by a terminal becomes a blank.
    fn comment(&mut self, lines: &[String]) {
        for line in lines.iter().flat_map(|line| line.lines()) {
            let plain = line.replace(|c: char| c.is_control(), " ");
            self.push(&format!("# {}\n", plain.trim()));
        }
    }

    fn name(&mut self, name: &str) -> Result<(), EmitError> {
        if is_identifier(name) {
            self.push(name);
            return Ok(());
        }
        self.quoted(name)
    }

    fn string(&mut self, text: &str) -> Result<(), EmitError> {
        if suits_indented(text) {
            self.indented(text);
            return Ok(());
        }
        self.quoted(text)
    }

    fn quoted(&mut self, text: &str) -> Result<(), EmitError> {
        if text.contains('\0') {
            return Err(EmitError::Nul(text.to_owned()));
        }
        self.push("\"");
        let mut rest = text.chars().peekable();
        while let Some(c) = rest.next() {
            match c {
                '"' => self.push("\\\""),
                '\\' => self.push("\\\\"),
                '\n' => self.push("\\n"),
                '\r' => self.push("\\r"),
                '\t' => self.push("\\t"),
                '$' if rest.peek() == Some(&'{') => self.push("\\$"),
                c => self.text.push(c),
            }
        }
        self.push("\"");
        Ok(())
    }

    /// `text`, which [`suits_indented`].
    fn indented(&mut self, text: &str) {
        self.push("''\n");
        let mut before = '\n';
        let mut rest = text.chars().peekable();
        while let Some(c) = rest.next() {
            let next = rest.peek().copied();
            match c {
                // Beside what could make more of it than one quote.
                '\'' if before == '\'' || matches!(next, None | Some('\'' | '$')) => {
                    self.push("''\\'");
                }
                '$' if next == Some('{') => self.push("''$"),
                c => self.text.push(c),
            }
            before = c;
        }
        self.push("''");
    }

    fn path(&mut self, path: &str) -> Result<(), EmitError> {
        if path.is_empty() {
            self.push("./.");
        } else if is_plain_path(path) {
            self.push("./");
            self.push(path);
        } else {
            self.push("./. + ");
            self.quoted(&format!("/{path}"))?;
        }
        Ok(())
    }
}

/// The paths of one set, none of which may lie within another.
#[derive(Default)]
struct SeenPaths(BTreeSet<Vec<String>>);

impl SeenPaths {
    fn add(&mut self, path: &[String]) -> Result<(), EmitError> {
        if path.is_empty() {
            return Err(EmitError::Nameless);
        }
        let above = (1..=path.len()).any(|end| self.0.contains(&path[..end]));
        let below = self.0.range(path.to_vec()..).next();
        if above || below.is_some_and(|other| other.starts_with(path)) {
            return Err(EmitError::Twice(path.join(".")));
        }
        self.0.insert(path.to_vec());
        Ok(())
    }
}

/// Whether `name` can stand without quotes.
pub fn is_identifier(name: &str) -> bool {
    let mut chars = name.chars();
    let first = chars.next();
    first.is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || "_'-".contains(c))
        && !KEYWORDS.contains(&name)
}

fn is_plain_path(path: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    path.is_empty()
        || path
            .split('/')
            .all(|name| !name.is_empty() && name.chars().all(plain))
}

/// Whether `''…''` carries the text: several lines, of which one at least begins at the margin and none is
/// of blanks only, and nothing that would be read as something else or looks like nothing.
fn suits_indented(text: &str) -> bool {
    let at_margin = |line: &str| !line.starts_with(' ') && !line.is_empty();
    let harmless =
        |line: &str| !line.starts_with('\t') && (line.is_empty() || !line.trim().is_empty());
    text.contains('\n')
        && text.trim_start_matches('\n').len() == text.len()
        && !text.contains(|c: char| c.is_control() && c != '\n' && c != '\t')
        && text.lines().any(at_margin)
        && text.split('\n').all(harmless)
}

/// What is no name without quotes. `or` is one only for the oldest.
const KEYWORDS: [&str; 10] = [
    "assert", "else", "if", "in", "inherit", "let", "or", "rec", "then", "with",
];
