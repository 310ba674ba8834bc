//! Nix code as far as it is literal: what can be known of it without evaluation, with its lines.
//!
//! Nothing is guessed: what is no literal is [`LiteralCode::Other`]. The parser (rnix 0.15.1) recurses, and takes a time
//! that grows with the square of a chain of operators, calls, selections or brackets. So the code is bounded in
//! length, depth and words of one chain before it is parsed.

use crate::{lock::FlakeFileError, nix_repeats::repeated_attribute, text::LineStarts};
use rnix::{
    SyntaxKind, SyntaxNode,
    ast::{self, AstToken, HasEntry, InterpolPart},
};
use rowan::ast::AstNode;
use std::thread;

/// A piece of Nix code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiteralNode {
    /// The line, from 1.
    pub line: usize,
    /// What it is.
    pub value: LiteralCode,
}

/// What a piece of Nix code is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LiteralCode {
    /// A string without interpolation.
    String(String),
    /// An integer.
    Integer(i64),
    /// A name, and names of attributes below it: `pkgs.python3.pkgs`, `true`, `null`.
    Name(Vec<String>),
    /// A list, with its elements in their order.
    List(Vec<LiteralNode>),
    /// A set, whose entries are in their order.
    Set(Vec<LiteralEntry>),
    /// A set whose entries may name each other, `rec { … }`.
    RecSet(Vec<LiteralEntry>),
    /// A path without interpolation, as it is written: `./x`.
    Path(String),
    /// A function: what it takes, and its body.
    Function(Box<LiteralFunction>),
    /// A function and its argument.
    Call(Box<LiteralNode>, Box<LiteralNode>),
    /// `with`: what, and the body.
    With(Box<LiteralNode>, Box<LiteralNode>),
    /// `let … in …`: the entries and the body.
    Let(Vec<LiteralEntry>, Box<LiteralNode>),
    /// Two lists, one behind the other.
    Concat(Box<LiteralNode>, Box<LiteralNode>),
    /// Something that only an evaluation could tell: its text, shortened.
    Other(String),
}

/// `{ name ? default, … }@whole: body`, or `whole: body`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiteralFunction {
    /// What it takes of a set, in their order.
    pub arguments: Vec<LiteralArgument>,
    /// The name of the whole argument.
    pub whole: Option<String>,
    /// What it gives.
    pub body: LiteralNode,
}

/// One of the names that a function takes of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiteralArgument {
    /// The line, from 1.
    pub line: usize,
    /// The name of the argument.
    pub name: String,
    /// What it is where the set has it not.
    pub default: Option<LiteralNode>,
}

/// `a.b = value;`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiteralEntry {
    /// The line, from 1.
    pub line: usize,
    /// The names; empty for one that is computed.
    pub path: Vec<String>,
    /// The value that the names get.
    pub value: LiteralNode,
}

impl LiteralNode {
    /// Reads `text`, which is called `file` in errors.
    ///
    /// # Errors
    /// Where it is longer than [`MAX_NIX_BYTES`] or the parser refuses it.
    pub fn parse(file: &str, text: &str) -> Result<LiteralNode, FlakeFileError> {
        let failed = |line, what: String| FlakeFileError {
            file: file.to_owned(),
            line,
            what,
        };
        on_large_stack(text, |text| {
            let parsed = rnix::Root::parse(text);
            if let Some(error) = parsed.errors().first() {
                return Err(parse_error(text, error));
            }
            let lines = LineStarts::of(text);
            match parsed.tree().expr() {
                Some(expr) => Ok(lines.node(&expr, 0)),
                None => Err((1, "no expression".to_owned())),
            }
        })
        .and_then(|found| found)
        .map_err(|(line, what)| failed(line, what))
    }

    /// All nodes, this one first.
    pub fn all(&self) -> Vec<&LiteralNode> {
        let mut found = vec![self];
        let mut at = 0;
        while let Some(node) = found.get(at) {
            at += 1;
            match &node.value {
                LiteralCode::List(items) => found.extend(items),
                LiteralCode::Set(entries) => found.extend(entries.iter().map(|entry| &entry.value)),
                LiteralCode::Function(function) => found.push(&function.body),
                LiteralCode::Let(entries, body) => {
                    found.extend(entries.iter().map(|entry| &entry.value));
                    found.push(body);
                }
                LiteralCode::Call(a, b) | LiteralCode::With(a, b) | LiteralCode::Concat(a, b) => {
                    found.extend([a.as_ref(), b.as_ref()]);
                }
                _ => {}
            }
        }
        found
    }

    /// Its entries, with those of sets in it under their whole names. Sets that are in `whole` stay values.
    pub fn flat_entries(&self, whole: &dyn Fn(&[String]) -> bool) -> Vec<LiteralEntry> {
        let mut found = Vec::new();
        if let LiteralCode::Set(entries) = &self.value {
            for entry in entries {
                flatten(entry, &[], whole, &mut found);
            }
        }
        found
    }
}

fn flatten(
    entry: &LiteralEntry,
    above: &[String],
    whole: &dyn Fn(&[String]) -> bool,
    found: &mut Vec<LiteralEntry>,
) {
    let path = [above, &entry.path].concat();
    match &entry.value.value {
        LiteralCode::Set(below) if !entry.path.is_empty() && !below.is_empty() && !whole(&path) => {
            for entry in below {
                flatten(entry, &path, whole, found);
            }
        }
        _ => found.push(LiteralEntry {
            path: if entry.path.is_empty() {
                Vec::new()
            } else {
                path
            },
            ..entry.clone()
        }),
    }
}

/// What Nix's parser has against `text`: the line and the words. `None` if nothing.
///
/// # Errors
/// Where it is longer than [`MAX_NIX_BYTES`].
pub fn syntax_error(text: &str) -> Result<Option<(usize, String)>, (usize, String)> {
    on_large_stack(text, |text| {
        let parsed = rnix::Root::parse(text);
        if let Some(error) = parsed.errors().first() {
            return Some(parse_error(text, error));
        }
        let (at, name) = repeated_attribute(&parsed.syntax())?;
        let line = LineStarts::of(text).line(at);
        Some((line, format!("the attribute {name:?} stands there twice")))
    })
}

/// What `read` makes of `text`, which is bounded, on a stack that suffices for it.
///
/// # Errors
/// The line, and why `text` is not given to the parser.
fn on_large_stack<T: Send>(
    text: &str,
    read: impl FnOnce(&str) -> T + Send,
) -> Result<T, (usize, String)> {
    if text.len() > MAX_NIX_BYTES {
        return Err((1, format!("more than {MAX_NIX_BYTES} bytes of Nix code")));
    }
    if let Some(at) = too_intricate(text) {
        let what = format!(
            "more than {MAX_CHAIN} words without a `;`, or {MAX_BRACKETS} brackets in brackets"
        );
        return Err((LineStarts::of(text).line(at), what));
    }
    thread::scope(|scope| {
        let large = thread::Builder::new().stack_size(STACK_BYTES);
        let reader = large
            .spawn_scoped(scope, || read(text))
            .map_err(|error| (1, format!("no thread to read it: {error}")))?;
        reader
            .join()
            .map_err(|_| (1, "the parser gave up".to_owned()))
    })
}

/// The byte where the code becomes more than the parser is to be given.
fn too_intricate(text: &str) -> Option<usize> {
    use SyntaxKind::*;
    // Of each open bracket the words since the last `;`.
    let mut words = vec![0_usize];
    let mut at = 0;
    for (kind, word) in rnix::tokenize(text) {
        match kind {
            TOKEN_WHITESPACE | TOKEN_COMMENT => {}
            TOKEN_L_BRACE | TOKEN_L_BRACK | TOKEN_L_PAREN | TOKEN_INTERPOL_START
            | TOKEN_STRING_START => {
                words.push(0);
            }
            TOKEN_R_BRACE | TOKEN_R_BRACK | TOKEN_R_PAREN | TOKEN_INTERPOL_END
            | TOKEN_STRING_END
                if words.len() > 1 =>
            {
                words.pop();
            }
            _ => {}
        }
        let depth = words.len();
        let here = words.last_mut().expect("the outermost stays");
        *here = if kind == TOKEN_SEMICOLON {
            0
        } else {
            *here + 1
        };
        if *here > MAX_CHAIN || depth > MAX_BRACKETS {
            return Some(at);
        }
        at += word.len();
    }
    None
}

/// Where an error of the parser is, and its words.
fn parse_error(text: &str, error: &rnix::ParseError) -> (usize, String) {
    use rnix::ParseError as E;
    let range = match error {
        E::Unexpected(range)
        | E::UnexpectedExtra(range)
        | E::UnexpectedDoubleBind(range)
        | E::UnexpectedWanted(_, range, _)
        | E::DuplicatedArgs(range, _) => Some(range.start()),
        _ => None,
    };
    // A file that ends too early does so behind its last word.
    let at = range.map_or(text.trim_end().len(), usize::from);
    let words = error.to_string();
    let words = words.split(" at ").next().unwrap_or_default().to_owned();
    (LineStarts::of(text).line(at), words)
}

impl LineStarts {
    fn line_of(&self, node: &SyntaxNode) -> usize {
        self.line(node.text_range().start().into())
    }

    fn node(&self, expr: &ast::Expr, depth: usize) -> LiteralNode {
        let line = self.line_of(expr.syntax());
        let value = if depth < MAX_DEPTH {
            self.value(expr, depth + 1)
        } else {
            None
        };
        LiteralNode {
            line,
            value: value.unwrap_or_else(|| other(expr.syntax())),
        }
    }

    fn boxed(&self, expr: Option<ast::Expr>, depth: usize) -> Option<Box<LiteralNode>> {
        Some(Box::new(self.node(&expr?, depth)))
    }

    fn value(&self, expr: &ast::Expr, depth: usize) -> Option<LiteralCode> {
        Some(match expr {
            ast::Expr::Paren(paren) => self.node(&paren.expr()?, depth).value,
            ast::Expr::Str(text) => LiteralCode::String(string(text)?),
            ast::Expr::Literal(literal) => match literal.kind() {
                ast::LiteralKind::Integer(number) => LiteralCode::Integer(number.value().ok()?),
                ast::LiteralKind::Uri(uri) => LiteralCode::String(uri.syntax().text().to_owned()),
                _ => return None,
            },
            ast::Expr::UnaryOp(minus) if minus.operator() == Some(ast::UnaryOpKind::Negate) => {
                match self.node(&minus.expr()?, depth).value {
                    LiteralCode::Integer(number) => LiteralCode::Integer(number.checked_neg()?),
                    _ => return None,
                }
            }
            ast::Expr::Ident(name) => {
                LiteralCode::Name(vec![name.ident_token()?.text().to_owned()])
            }
            ast::Expr::Select(select) if select.default_expr().is_none() => {
                let LiteralCode::Name(mut path) = self.node(&select.expr()?, depth).value else {
                    return None;
                };
                path.extend(names(&select.attrpath()?)?);
                LiteralCode::Name(path)
            }
            ast::Expr::List(list) => {
                LiteralCode::List(list.items().map(|item| self.node(&item, depth)).collect())
            }
            ast::Expr::AttrSet(set) => match set.rec_token() {
                None => LiteralCode::Set(self.entries(set, depth)),
                Some(_) => LiteralCode::RecSet(self.entries(set, depth)),
            },
            ast::Expr::PathRel(path) => match path.parts()[..] {
                [InterpolPart::Literal(_)] => LiteralCode::Path(path.to_string()),
                _ => return None,
            },
            ast::Expr::Lambda(lambda) => {
                LiteralCode::Function(Box::new(self.function(lambda, depth)?))
            }
            ast::Expr::Apply(apply) => LiteralCode::Call(
                self.boxed(apply.lambda(), depth)?,
                self.boxed(apply.argument(), depth)?,
            ),
            ast::Expr::With(with) => LiteralCode::With(
                self.boxed(with.namespace(), depth)?,
                self.boxed(with.body(), depth)?,
            ),
            ast::Expr::LetIn(let_in) => LiteralCode::Let(
                self.entries(let_in, depth),
                self.boxed(let_in.body(), depth)?,
            ),
            ast::Expr::BinOp(both) if both.operator() == Some(ast::BinOpKind::Concat) => {
                LiteralCode::Concat(
                    self.boxed(both.lhs(), depth)?,
                    self.boxed(both.rhs(), depth)?,
                )
            }
            _ => return None,
        })
    }

    fn function(&self, lambda: &ast::Lambda, depth: usize) -> Option<LiteralFunction> {
        let ident = |name: Option<ast::Ident>| Some(name?.ident_token()?.text().to_owned());
        let mut function = LiteralFunction {
            arguments: Vec::new(),
            whole: None,
            body: self.node(&lambda.body()?, depth),
        };
        match lambda.param()? {
            ast::Param::IdentParam(param) => function.whole = ident(param.ident()),
            ast::Param::Pattern(pattern) => {
                function.whole = pattern.pat_bind().and_then(|bind| ident(bind.ident()));
                for entry in pattern.pat_entries() {
                    function.arguments.push(LiteralArgument {
                        line: self.line_of(entry.syntax()),
                        name: ident(entry.ident())?,
                        default: entry.default().map(|value| self.node(&value, depth)),
                    });
                }
            }
        }
        Some(function)
    }

    fn entries(&self, set: &impl HasEntry, depth: usize) -> Vec<LiteralEntry> {
        let mut found = Vec::new();
        for entry in set.entries() {
            match entry {
                ast::Entry::AttrpathValue(entry) => {
                    let line = self.line_of(entry.syntax());
                    let path = entry.attrpath().and_then(|path| names(&path));
                    let value = match entry.value() {
                        Some(value) => self.node(&value, depth),
                        None => LiteralNode {
                            line,
                            value: other(entry.syntax()),
                        },
                    };
                    let path = path.unwrap_or_default();
                    found.push(LiteralEntry { line, path, value });
                }
                ast::Entry::Inherit(inherit) => {
                    let line = self.line_of(inherit.syntax());
                    let value = LiteralNode {
                        line,
                        value: other(inherit.syntax()),
                    };
                    for name in inherit.attrs() {
                        let path = attribute(&name).into_iter().collect();
                        found.push(LiteralEntry {
                            line,
                            path,
                            value: value.clone(),
                        });
                    }
                }
            }
        }
        found
    }
}

/// The text of a string without interpolation.
fn string(text: &ast::Str) -> Option<String> {
    let mut whole = String::new();
    for part in text.normalized_parts() {
        match part {
            InterpolPart::Literal(literal) => whole.push_str(&literal),
            InterpolPart::Interpolation(_) => return None,
        }
    }
    Some(whole)
}

pub(crate) fn names(path: &ast::Attrpath) -> Option<Vec<String>> {
    path.attrs().map(|name| attribute(&name)).collect()
}

pub(crate) fn attribute(name: &ast::Attr) -> Option<String> {
    match name {
        ast::Attr::Ident(name) => Some(name.ident_token()?.text().to_owned()),
        ast::Attr::Str(text) => string(text),
        ast::Attr::Dynamic(_) => None,
    }
}

fn other(node: &SyntaxNode) -> LiteralCode {
    let mut text = String::new();
    for token in node
        .descendants_with_tokens()
        .filter_map(|element| element.into_token())
    {
        if token.kind() == SyntaxKind::TOKEN_WHITESPACE {
            text.push(' ');
        } else if token.kind() != SyntaxKind::TOKEN_COMMENT {
            text.push_str(token.text());
        }
        if text.len() > SHOWN {
            break;
        }
    }
    LiteralCode::Other(text.chars().take(SHOWN).collect())
}

/// Bytes of Nix code that are parsed.
pub const MAX_NIX_BYTES: usize = 128 << 10;
/// Words of one expression, without those in brackets in it.
const MAX_CHAIN: usize = 3000;
/// Brackets, strings and interpolations in each other; rnix allows 512 expressions.
const MAX_BRACKETS: usize = 500;
/// For chains of operators, which are as deep as they are long. Memory is taken only where it is used.
const STACK_BYTES: usize = 256 << 20;
/// Sets in sets, and the like: what is deeper is no literal.
const MAX_DEPTH: usize = 64;
/// Characters of code that are shown.
const SHOWN: usize = 60;
