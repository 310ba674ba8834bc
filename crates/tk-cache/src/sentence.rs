//! What servers say to people when they say no.

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

/// The content of the first element `name`, whose name has no attributes. Good for the small and
/// regular answers of storage services; what looks otherwise is not found.
pub(crate) fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(unescaped(text))
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
    let text = text.replace("&lt;", "<").replace("&gt;", ">");
    let text = text.replace("&quot;", "\"").replace("&#34;", "\"");
    let text = text.replace("&apos;", "'").replace("&#39;", "'");
    text.replace("&amp;", "&")
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
            ("<p>one</p><p>two", "one two"),
            ("{\n  \"error\": \"no\"\n}", "{ \"error\": \"no\" }"),
            ("nix-archive-1\0\0\0", ""),
            ("a < b", "a < b"),
            ("<", ""),
        ] {
            assert_eq!(sentence_of(body), expected, "{body:?}");
        }
        assert_eq!(sentence_of(&"x".repeat(1000)).len(), MAX_CHARACTERS);
    }
}
