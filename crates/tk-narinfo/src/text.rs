//! Small helpers for text of peers: base64 as Nix reads it, and quoting for messages.

use data_encoding::BASE64;

/// Longest piece of a peer's text that an error message repeats, in characters.
const SHOWN: usize = 80;

/// `text` in quotes with control characters escaped, cut to a readable length.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((cut, _)) => format!("{:?}…", &text[..cut]),
        None => format!("{text:?}"),
    }
}

/// Padded base64, as every writer of Nix makes it.
pub(crate) fn encode_base64(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

/// Bytes of base64 by Nix's rules (libutil's base64::decode): reading stops at the first `=`, `\n` is skipped, left-over
/// bits are dropped. `Err` is the offset of a character that is none of base64's.
///
/// The buffer never grows while decoding, so that no copy of a secret is left behind.
pub(crate) fn decode_base64(text: &[u8]) -> Result<Vec<u8>, usize> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let mut done = 0;
    for quad in text.chunks_exact(4) {
        let digits = [quad[0], quad[1], quad[2], quad[3]].map(|c| DIGITS[usize::from(c)]);
        if digits.contains(&NO_DIGIT) {
            break;
        }
        let bits = digits.iter().fold(0, |bits, &d| bits << 6 | u32::from(d));
        out.extend_from_slice(&bits.to_be_bytes()[1..]);
        done += 4;
    }
    decode_rest(text, done, &mut out)?;
    Ok(out)
}

/// Decodes from the first four characters on that are not all digits.
fn decode_rest(text: &[u8], done: usize, out: &mut Vec<u8>) -> Result<(), usize> {
    let mut bits = 0u32;
    let mut pending = 0u32;
    for (offset, &c) in text.iter().enumerate().skip(done) {
        if c == b'=' {
            break;
        }
        if c == b'\n' {
            continue;
        }
        let digit = DIGITS[usize::from(c)];
        if digit == NO_DIGIT {
            return Err(offset);
        }
        bits = bits << 6 | u32::from(digit);
        pending += 6;
        if pending >= 8 {
            pending -= 8;
            out.push((bits >> pending) as u8);
        }
    }
    Ok(())
}

const NO_DIGIT: u8 = 0xff;

/// Value of each character as a base64 digit.
const DIGITS: [u8; 256] = {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut table = [NO_DIGIT; 256];
    let mut i = 0;
    while i < alphabet.len() {
        table[alphabet[i] as usize] = i as u8;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn base64_is_as_lenient_as_nix() {
        for (text, bytes) in [
            ("", Ok(&b""[..])),
            ("YWJj", Ok(b"abc")),
            ("YWI=", Ok(b"ab")),
            ("YWI", Ok(b"ab")),
            ("Y\nWI=\n", Ok(b"ab")),
            ("YWI= cheesecake", Ok(b"ab")),
            ("YWJ", Ok(b"ab")), // a left-over bit
            ("Y", Ok(b"")),
            ("YW I=", Err(2)),
            ("YW_=", Err(2)),
        ] {
            assert_eq!(
                decode_base64(text.as_bytes()).as_deref(),
                bytes.as_ref().copied(),
                "{text:?}"
            );
        }
    }

    #[test]
    fn long_text_is_cut_in_messages() {
        assert_eq!(shown("a\nb"), r#""a\nb""#);
        assert_eq!(shown(&"é".repeat(200)).chars().count(), SHOWN + 3);
    }

    proptest! {
        #[test]
        fn base64_comes_back(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(decode_base64(encode_base64(&bytes).as_bytes()), Ok(bytes));
        }

        #[test]
        fn decoding_never_reallocates(text in "[A-Za-z0-9+/\n=]{0,200}") {
            let out = decode_base64(text.as_bytes()).unwrap();
            prop_assert!(out.capacity() <= text.len() / 4 * 3 + 3);
        }
    }
}
