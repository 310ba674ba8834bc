//! Foreign text inside error messages: short, and on one line.

use std::fmt;

/// The start of `text`, at most [`SHOWN`] bytes, for keeping in an error.
pub(crate) fn clip(text: &str) -> Box<str> {
    if text.len() <= SHOWN {
        return text.into();
    }
    let mut end = SHOWN;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end]).into()
}

/// One byte as a person wants to read it: `'!'`, or `0x00` when it does not print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Byte(pub u8);

impl fmt::Display for Byte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            b if b.is_ascii_graphic() => write!(f, "'{}'", b as char),
            b => write!(f, "0x{b:02x}"),
        }
    }
}

/// Longer than any valid store path below a short store directory, and than any hash.
const SHOWN: usize = 300;
