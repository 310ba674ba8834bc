//! What is at the other end if it does not speak the protocol: often a sentence for people.

use super::{Protocol, WireReader};
use std::{future::poll_fn, time::Duration};
use tk_store::log::join_lines;
use tokio::{io::AsyncRead, time::timeout};

impl<R: AsyncRead + Unpin, P: Protocol> WireReader<R, P> {
    /// The text that came in place of the protocol, if it is one: with `begin`, the number that its first
    /// bytes were taken for, and what follows within a moment. A connection that broke off in the middle of
    /// the number with which the protocol begins sent no text.
    pub(crate) async fn foreign_text(&mut self, begin: Option<u64>) -> Option<String> {
        // Whoever ended the connection has said all that there is, but it may not have been read.
        let more = async {
            while self.buffered() < LONGEST {
                match poll_fn(|context| self.poll_fill(context)).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => break,
                }
            }
        };
        let _ = timeout(MOMENT, more).await;
        let begin = begin.map(u64::to_le_bytes);
        let mut bytes = begin.as_ref().map_or(Vec::new(), |begin| begin.to_vec());
        bytes.extend_from_slice(self.peek());
        bytes.truncate(LONGEST);
        if P::SERVER_MAGIC.to_le_bytes().starts_with(&bytes) {
            return None;
        }
        let binary = |b: &u8| b.is_ascii_control() && !b.is_ascii_whitespace() && *b != ESCAPE;
        let mut text = &bytes[..];
        if let Some(end) = bytes.iter().position(binary) {
            // The protocol may come after all, with a line of its own.
            let lines = bytes[..end].iter().rposition(|b| *b == b'\n')?;
            text = &bytes[..lines];
        }
        let words = join_lines(&String::from_utf8_lossy(text));
        (!words.is_empty()).then_some(words)
    }
}

/// What is wrong with a peer that begins with `text`.
pub(crate) fn begins_with(text: &str, protocol: &str) -> String {
    format!(
        "it begins with the text '{text}', not with the {protocol} protocol; what the shell runs at the \
         start must print nothing, and the account must be one that may log in"
    )
}

const ESCAPE: u8 = 0x1b;
/// Bytes of text that are shown.
const LONGEST: usize = 512;
/// How long the rest of a text may take.
const MOMENT: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::Serve;
    use tk_path::StoreDir;

    /// The text that is made of `bytes`, of which the first eight were taken for a number.
    async fn text_of(bytes: &[u8]) -> Option<String> {
        let mut reader = WireReader::new(bytes, Serve::new(StoreDir::default(), 0));
        let begin = reader.u64().await.ok();
        reader.foreign_text(begin).await
    }

    #[tokio::test]
    async fn text_is_told_from_a_protocol() {
        let long = "x".repeat(600);
        for (bytes, text) in [
            (&b"Welcome!"[..], Some("Welcome!")),
            (b"bash: \n\tno such thing\n", Some("bash: no such thing")),
            (b"no", Some("no")),
            (b"\x1b[31mred\x1b[0m\n", Some("red")),
            (
                b"hello\nthere\n\xcb\xee\x52\x54\0\0\0\0",
                Some("hello; there"),
            ),
            (b"hello the\xcb\xee\x52\x54\0\0\0\0", None),
            (b"\xcb\xee\x52\x54\0\0\0\0", None),
            (b"\xcb\xee\x52\x54", None),
            (b"\xcb", None),
            (b"", None),
            (long.as_bytes(), Some(&long[..LONGEST])),
        ] {
            assert_eq!(
                text_of(bytes).await.as_deref(),
                text,
                "{}",
                bytes.escape_ascii()
            );
        }
    }
}
