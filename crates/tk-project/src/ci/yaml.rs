//! Writing YAML that YAML 1.1 and 1.2 read alike: block maps and lists, plain words, else quotes.

use std::fmt::Write as _;

/// A node of a file.
#[derive(Debug, Clone)]
pub(super) enum YamlNode {
    Text(String),
    Number(u32),
    Bool(bool),
    /// A map or a list without entries: `{}`.
    Empty,
    /// An empty value, where a key alone means something.
    Nothing,
    Map(Vec<(String, YamlNode)>),
    List(Vec<YamlNode>),
    /// A text with a comment behind it.
    Noted(String, String),
}

pub(super) fn map<const N: usize>(entries: [(&str, YamlNode); N]) -> YamlNode {
    YamlNode::Map(entries.map(|(key, value)| (key.to_owned(), value)).into())
}

pub(super) fn text(text: impl Into<String>) -> YamlNode {
    YamlNode::Text(text.into())
}

pub(super) fn texts<'a>(all: impl IntoIterator<Item = &'a str>) -> YamlNode {
    YamlNode::List(all.into_iter().map(text).collect())
}

impl YamlNode {
    /// The document, with a line break at its end.
    pub(super) fn print(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, 0);
        out.trim_start_matches('\n').to_owned()
    }

    /// Writes what follows `key:` or `-`, with the line break at its end.
    fn write(&self, out: &mut String, depth: usize) {
        let pad = "  ".repeat(depth);
        let _ = match self {
            YamlNode::Nothing => writeln!(out),
            YamlNode::Empty => writeln!(out, " {{}}"),
            YamlNode::Number(n) => writeln!(out, " {n}"),
            YamlNode::Bool(yes) => writeln!(out, " {yes}"),
            YamlNode::Noted(text, note) => writeln!(out, " {} # {note}", scalar(text)),
            YamlNode::Text(text) if is_block(text) => {
                out.push_str(" |\n");
                let lines = text.trim_end_matches('\n').lines();
                lines.for_each(|line| {
                    let _ = writeln!(out, "{}", format!("{pad}{line}").trim_end());
                });
                Ok(())
            }
            YamlNode::Text(text) => writeln!(out, " {}", scalar(text)),
            YamlNode::Map(entries) => {
                out.push('\n');
                for (key, value) in entries {
                    let _ = write!(out, "{pad}{}:", scalar_key(key));
                    value.write(out, depth + 1);
                }
                Ok(())
            }
            YamlNode::List(items) => {
                out.push('\n');
                for item in items {
                    let mut own = String::new();
                    item.write(&mut own, depth + 1);
                    // The first key of a map stands behind the dash.
                    match own.strip_prefix('\n') {
                        Some(own) => write!(out, "{pad}- {}", own.trim_start()),
                        None => write!(out, "{pad}-{own}"),
                    }
                    .unwrap_or_default();
                }
                Ok(())
            }
        };
    }
}

/// Several lines, none of which would lose what is in it: each is text with no blank at its end.
fn is_block(text: &str) -> bool {
    let lines = || text.lines();
    text.contains('\n')
        && lines()
            .next()
            .is_some_and(|line| !line.is_empty() && !line.starts_with([' ', '\t']))
        && lines().all(|line| line.trim_end() == line && !line.contains(|c: char| c.is_control()))
        && text.is_ascii()
}

/// `on` is a word in the files of CI: their readers take it as one.
fn scalar_key(key: &str) -> String {
    if key == "on" {
        key.to_owned()
    } else {
        scalar(key)
    }
}

fn scalar(text: &str) -> String {
    if is_plain(text) {
        return text.to_owned();
    }
    if !text.contains(|c: char| c.is_control()) && text.is_ascii() {
        return format!("'{}'", text.replace('\'', "''"));
    }
    // JSON's escapes are YAML's.
    serde_json::to_string(text).unwrap_or_default()
}

/// Whether every reader takes it for this very text.
fn is_plain(text: &str) -> bool {
    let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || "._/$".contains(c));
    let fine = |c: char| c.is_ascii_alphanumeric() || " ._/@$-{}()=#:+'\"&".contains(c);
    let is_word = WORDS.iter().any(|word| text.eq_ignore_ascii_case(word));
    let digit = |c: char| c.is_ascii_digit() || c == '_';
    let is_number = text.starts_with('.') && text[1..].starts_with(digit);
    first
        && text.chars().all(fine)
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !text.contains(" #")
        && !is_word
        && !is_number
}

/// What is no text for one reader or the other.
const WORDS: &[&str] = &[
    "y", "n", "yes", "no", "on", "off", "true", "false", "null", ".inf", ".nan",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written() {
        let node = map([
            (
                "on",
                map([
                    ("push", YamlNode::Nothing),
                    ("a b", texts(["x", "no", "1", ""])),
                ]),
            ),
            (
                "steps",
                YamlNode::List(vec![map([
                    ("uses", YamlNode::Noted("a/b@c".into(), "v1".into())),
                    ("run", text("if x; then\n  y\nfi")),
                    ("with", map([("k", YamlNode::Bool(false))])),
                ])]),
            ),
            ("permissions", YamlNode::Empty),
            ("odd", text("it's: {x} # no")),
            ("control", text("a\tb\n c")),
            ("expression", text("${{ matrix.system }}")),
        ]);
        let expected = "on:\n  push:\n  a b:\n    - x\n    - 'no'\n    - '1'\n    - ''\nsteps:\n  - uses: a/b@c # v1\n    \
            run: |\n      if x; then\n        y\n      fi\n    with:\n      k: false\npermissions: {}\n\
            odd: 'it''s: {x} # no'\ncontrol: \"a\\tb\\n c\"\nexpression: ${{ matrix.system }}\n";
        assert_eq!(node.print(), expected);
    }
}
