/// A quote that does not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a quote {0} is not closed")]
pub struct UnfinishedWord(char);

/// The words of `NIX_SSHOPTS`, as Nix from 2.26 on splits them: blanks separate, quotes and backslashes
/// keep together. Nothing is expanded, and `#` begins no comment.
pub fn split_options(text: &str) -> Result<Vec<String>, UnfinishedWord> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (None, ' ' | '\t' | '\n' | '\r') => words.extend(word.take()),
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (Some(open), _) if open == letter => quote = None,
            (None, '\\') => word.get_or_insert_default().extend(letters.next()),
            (Some('"'), '\\') => {
                let escaped = letters.next_if(|next| "$`\"\\\n".contains(*next));
                word.get_or_insert_default().push(escaped.unwrap_or('\\'));
            }
            _ => word.get_or_insert_default().push(letter),
        }
    }
    if let Some(quote) = quote {
        return Err(UnfinishedWord(quote));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What real Nix 2.26 and 2.34 hand to ssh.
    #[test]
    fn as_nix_splits() {
        for (text, words) in [
            ("", &[][..]),
            (" \t\n", &[]),
            (
                r#"-o "ProxyCommand=a b" -i /x\ y"#,
                &["-o", "ProxyCommand=a b", "-i", "/x y"],
            ),
            (
                r#"'a"b' "a\"b" "a\nb" "a\\b" "a\$b""#,
                &["a\"b", "a\"b", "a\\nb", "a\\b", "a$b"],
            ),
            ("a # b", &["a", "#", "b"]),
            ("a #b c#d", &["a", "#b", "c#d"]),
            (r"\# x", &["#", "x"]),
            (r"a\", &["a"]),
            ("$HOME ~ `x` *", &["$HOME", "~", "`x`", "*"]),
            ("''", &[""]),
            ("a\"b c\"d", &["ab cd"]),
            ("a  b\nc\td", &["a", "b", "c", "d"]),
        ] {
            assert_eq!(split_options(text).unwrap(), words, "{text}");
        }
        assert_eq!(split_options("a'b"), Err(UnfinishedWord('\'')));
        assert_eq!(split_options("\"a\\\""), Err(UnfinishedWord('"')));
    }
}
