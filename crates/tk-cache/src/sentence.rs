//! What servers say to people when they say no, and the markup that it stands in.

use quick_xml::{Reader, escape::unescape, events::Event};
use std::{borrow::Cow, ops::Range};

/// The sentence in the body of an error, on one line and without control characters: the code and
/// message of XML, the title of a page, else its text without tags. Empty if it is no text.
pub(crate) fn sentence_of(body: &str) -> String {
    let markup = body.trim_start().starts_with('<');
    let text = if markup {
        said_in(body)
    } else {
        body.to_owned()
    };
    if text.contains([char::REPLACEMENT_CHARACTER, '\0']) {
        return String::new();
    }
    one_line(&text)
}

/// `text` on one line, shortened, without control characters.
pub(crate) fn one_line(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let shown = words.chars().filter(|c| !c.is_control());
    shown.take(MAX_CHARACTERS).collect()
}

/// The content of the first element `name`, at any depth. A page for people with `<code>` in it is not a
/// service that says `<Code>`.
pub(crate) fn element(markup: &str, name: &str) -> Option<String> {
    let (_, content) = elements(markup, &[name]).next()?;
    Some(unescaped(content))
}

/// Where the elements with one of `names` stand, and what is in each. They end where the markup
/// makes no sense.
pub(crate) fn elements<'a>(
    markup: &'a str,
    names: &[&str],
) -> impl Iterator<Item = (Range<usize>, &'a str)> {
    // The reader leaves a byte order mark out, also out of its counts.
    let mark = markup.len() - markup.trim_start_matches('\u{feff}').len();
    let mut reader = Reader::from_str(&markup[mark..]);
    // Pages for people leave elements open.
    reader.config_mut().check_end_names = false;
    reader.config_mut().allow_unmatched_ends = true;
    std::iter::from_fn(move || {
        loop {
            let start = mark + reader.buffer_position() as usize;
            let tag = match reader.read_event().ok()? {
                Event::Start(tag) => tag,
                Event::Eof => return None,
                _ => continue,
            };
            let is = |name: &&str| tag.local_name().as_ref() == name.as_bytes();
            if names.iter().any(is) {
                let content = reader.read_to_end(tag.name()).ok()?;
                let end = mark + reader.buffer_position() as usize;
                let content =
                    markup.get(mark + content.start as usize..mark + content.end as usize)?;
                return Some((start..end, content));
            }
        }
    })
}

fn said_in(markup: &str) -> String {
    let message = element(markup, "Message");
    match (element(markup, "Code"), message) {
        (Some(code), Some(message)) => return format!("{code}: {message}"),
        (None, Some(message)) => return message,
        _ => {}
    }
    let title = ["title", "TITLE", "Title"];
    let title = title.iter().find_map(|name| element(markup, name));
    title.unwrap_or_else(|| unescaped(&without_tags(markup)))
}

fn without_tags(markup: &str) -> String {
    let mut text = String::new();
    for piece in markup.split('<') {
        let (_, after) = piece.split_once('>').unwrap_or(("", piece));
        text.push(' ');
        text.push_str(after);
    }
    text
}

fn unescaped(text: &str) -> String {
    unescape(text).map_or_else(|_| text.to_owned(), Cow::into_owned)
}

/// Characters of a sentence that are shown.
const MAX_CHARACTERS: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences() {
        for (body, expected) in [
            ("", ""),
            ("  no\n  more\u{1b}[31m room\r\n", "no more[31m room"),
            ("<Error>quota exceeded</Error>", "quota exceeded"),
            (
                "<?xml version=\"1.0\"?>\n<Error><Code>Quota</Code><Message>5 &lt; 6\n&amp; no\
                 </Message></Error>",
                "Quota: 5 < 6 & no",
            ),
            (
                "<html><head><title>Sign in</title></head><body>…</body></html>",
                "Sign in",
            ),
            ("<HTML><TITLE>Gone</TITLE></HTML>", "Gone"),
            ("<p>one</p><p>two", "one two"),
            (
                "<title>Error 404</title><p>The URL <code>/x</code> was not found.",
                "Error 404",
            ),
            ("{\n  \"error\": \"no\"\n}", "{ \"error\": \"no\" }"),
            ("nix-archive-1\0\0\0", ""),
            ("a < b", "a < b"),
            ("<", ""),
        ] {
            assert_eq!(sentence_of(body), expected, "{body:?}");
        }
        assert_eq!(sentence_of(&"x".repeat(1000)).len(), MAX_CHARACTERS);
    }

    #[test]
    fn elements_of_services_and_of_pages() {
        for (markup, expected) in [
            ("<a><b>x &#38; y&#x21;</b></a>", Some("x & y!")),
            ("\u{feff}<a><b n='1'>x</b><b>y</b></a>", Some("x")),
            ("<s:a xmlns:s='s'><s:b>x &who; y</s:b>", Some("x &who; y")),
            ("<!doctype html><meta x=y><p><b>x</b>", Some("x")),
            ("<a><!-- <b>x</b> --></a>", None),
            ("<a><b>x", None),
            ("<a><b/></a>", None),
            ("<a><B>x</B></a>", None),
            ("no markup", None),
        ] {
            assert_eq!(element(markup, "b").as_deref(), expected, "{markup}");
        }
        let mut places = elements("\u{feff}<a><b>x</b> <c>y</c></a>", &["b", "c"]);
        assert_eq!(places.next(), Some((6..14, "x")));
        assert_eq!(places.next(), Some((15..23, "y")));
        assert_eq!(places.next(), None);
    }
}
