//! Nix32, the base-32 text of hashes and store paths.
//!
//! ```text
//! digit = one of 0123456789abcdfghijklmnpqrsvwxyz    (no e, o, u, t; lower case only)
//! text  = the bytes as one little-endian number, most significant digit first
//! ```
//! `n` bytes make ⌈8n/5⌉ digits. The number of digits tells the number of bytes, so some lengths (1, 3, 6, 9 …)
//! cannot occur; bits of the first digit that lie beyond the last byte must be zero. Both are checked here, so that
//! every value has exactly one text. Mirrors `base-nix-32.cc`.

use crate::text::Byte;

/// The digits in order of their value.
pub const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// The number of digits that `bytes` bytes make.
pub const fn encoded_len(bytes: usize) -> usize {
    // Not (8n + 4) / 5, which would overflow first.
    bytes / 5 * 8 + (bytes % 5 * 8).div_ceil(5)
}

/// The number of bytes that `digits` digits stand for, or `None` when no number of bytes makes that many.
pub const fn decoded_len(digits: usize) -> Option<usize> {
    let bytes = digits / 8 * 5 + digits % 8 * 5 / 8;
    if encoded_len(bytes) == digits {
        Some(bytes)
    } else {
        None
    }
}

/// The digits of `bytes`.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = vec![0; encoded_len(bytes.len())];
    encode_into(bytes, &mut text);
    String::from_utf8(text).unwrap_or_default()
}

/// Writes the digits of `bytes` to `text`.
///
/// # Panics
/// When `text` is not [`encoded_len`]`(bytes.len())` long.
pub fn encode_into(bytes: &[u8], text: &mut [u8]) {
    assert_eq!(text.len(), encoded_len(bytes.len()), "length of the text");
    let (groups, rest) = bytes.as_chunks::<5>();
    let (head, tail) = text.split_at_mut(encoded_len(rest.len()));
    // The first bytes weigh least, so their digits stand last.
    for (group, out) in groups
        .iter()
        .zip(tail.as_chunks_mut::<8>().0.iter_mut().rev())
    {
        *out = digits(number(group));
    }
    let first = digits(number(rest));
    for (out, digit) in head.iter_mut().rev().zip(first.iter().rev()) {
        *out = *digit;
    }
}

/// The bytes that `text` stands for.
pub fn decode(text: &[u8]) -> Result<Vec<u8>, Nix32Error> {
    let len = decoded_len(text.len()).ok_or(Nix32Error::Length(text.len()))?;
    // Decoding on the stack first is quicker than having the heap's bytes zeroed.
    let mut short = [0; 64];
    if let Some(bytes) = short.get_mut(..len) {
        decode_into(text, bytes)?;
        return Ok(bytes.to_vec());
    }
    let mut bytes = vec![0; len];
    decode_into(text, &mut bytes)?;
    Ok(bytes)
}

/// Writes the bytes that `text` stands for to `bytes`, whose length says how many are expected. After an error the
/// content of `bytes` means nothing.
pub fn decode_into(text: &[u8], bytes: &mut [u8]) -> Result<(), Nix32Error> {
    if text.len() != encoded_len(bytes.len()) {
        return Err(Nix32Error::Expected {
            digits: text.len(),
            expected: encoded_len(bytes.len()),
        });
    }
    let (groups, rest) = bytes.as_chunks_mut::<5>();
    let (head, tail) = text.split_at(encoded_len(rest.len()));
    let mut bad = 0;
    for (digits, out) in tail.as_chunks::<8>().0.iter().rev().zip(groups) {
        let (value, wrong) = group_value(digits);
        bad |= wrong;
        out.copy_from_slice(&value.to_le_bytes()[..5]);
    }
    let (value, wrong) = group_value(head);
    if (bad | wrong) & INVALID != 0 {
        return Err(first_bad(text));
    }
    if value >> (8 * rest.len()) != 0 {
        return Err(Nix32Error::TopDigit);
    }
    for (out, byte) in rest.iter_mut().zip(value.to_le_bytes()) {
        *out = byte;
    }
    Ok(())
}

/// Whether `byte` is a digit.
pub const fn is_digit(byte: u8) -> bool {
    VALUES[byte as usize] & INVALID == 0
}

/// Why a text is not nix32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Nix32Error {
    /// No number of bytes makes this many digits.
    #[error("no bytes make {0} nix32 digits")]
    Length(usize),
    /// The text is longer or shorter than the value that is wanted.
    #[error("{digits} digits where nix32 needs {expected}")]
    Expected {
        /// The number of digits that were found.
        digits: usize,
        /// The number of digits that the value needs.
        expected: usize,
    },
    /// A byte that is not in [`ALPHABET`].
    #[error("byte {at} is {}, which is not a nix32 digit (0-9 a-z without e, o, u, t)", Byte(*byte))]
    Digit {
        /// Where it stands, from 0.
        at: usize,
        /// The byte that was found there.
        byte: u8,
    },
    /// The first digit has bits beyond the last byte.
    #[error("its first nix32 digit is too large for the number of bytes")]
    TopDigit,
}

/// Up to eight bytes as a little-endian number. The lengths that matter are constants after inlining.
#[inline(always)]
fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// The eight digits of a 40 bit number.
#[inline(always)]
fn digits(value: u64) -> [u8; 8] {
    let pair = |shift: u32| PAIRS[(value >> shift) as usize & 1023];
    let ([a, b], [c, d], [e, f], [g, h]) = (pair(30), pair(20), pair(10), pair(0));
    [a, b, c, d, e, f, g, h]
}

/// The value of up to eight digits, and a byte with [`INVALID`] set if one of them is none.
#[inline(always)]
fn group_value(digits: &[u8]) -> (u64, u8) {
    digits.iter().fold((0, 0), |(value, bad), &digit| {
        let v = VALUES[usize::from(digit)];
        (value << 5 | u64::from(v & 31), bad | v)
    })
}

fn first_bad(text: &[u8]) -> Nix32Error {
    let at = text.iter().position(|&b| !is_digit(b)).unwrap_or(0);
    let byte = text.get(at).copied().unwrap_or(0);
    Nix32Error::Digit { at, byte }
}

/// Set in [`VALUES`] for bytes that are no digits.
const INVALID: u8 = 0x80;

/// Value of each byte as a digit.
pub(crate) static VALUES: [u8; 256] = {
    let mut table = [INVALID; 256];
    let mut i = 0;
    while i < 32 {
        table[ALPHABET[i] as usize] = i as u8;
        i += 1;
    }
    table
};

/// Two digits for each ten bits: half as many look-ups as one digit at a time.
static PAIRS: [[u8; 2]; 1024] = {
    let mut table = [[0; 2]; 1024];
    let mut i = 0;
    while i < 1024 {
        table[i] = [ALPHABET[i >> 5], ALPHABET[i & 31]];
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_texts() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"\xff", "7z"),
            (b"\x82", "42"),
            (b"\xb7\x0e", "03mp"),
            (b"\xee\x7f\x1a", "1lzzf"),
            (b"\x50\x39\xbe\xf0", "3qbwfah"),
            (b"\x7e\xc2\x34\x7f\x06", "0rzk9hky"),
            (b"\x6e\xd0\x8f\x5d\xc7\x51\x24", "092iqxfqzl3f"),
        ] {
            assert_eq!(encode(bytes), text);
            assert_eq!(decode(text.as_bytes()).as_deref(), Ok(bytes));
        }
    }

    #[test]
    fn refuses() {
        let cases: [(&str, Nix32Error); 6] = [
            ("0", Nix32Error::Length(1)),
            ("000", Nix32Error::Length(3)),
            ("8z", Nix32Error::TopDigit),
            ("e0", Nix32Error::Digit { at: 0, byte: b'e' }),
            ("0000000A", Nix32Error::Digit { at: 7, byte: b'A' }),
            ("00\u{e9}", Nix32Error::Digit { at: 2, byte: 0xc3 }),
        ];
        for (text, error) in cases {
            assert_eq!(decode(text.as_bytes()), Err(error), "{text}");
        }
        let long = decode_into(b"00", &mut [0; 2]);
        assert_eq!(
            long,
            Err(Nix32Error::Expected {
                digits: 2,
                expected: 4
            })
        );
    }

    #[test]
    fn lengths() {
        for bytes in 0..200 {
            assert_eq!(encoded_len(bytes), (bytes * 8).div_ceil(5));
            assert_eq!(decoded_len(encoded_len(bytes)), Some(bytes));
        }
        assert_eq!(decoded_len(33), None);
    }

    /// Bit by bit, straight from the definition.
    fn slow(bytes: &[u8]) -> String {
        let bit = |i: usize| bytes.get(i / 8).map_or(0, |b| b >> (i % 8) & 1);
        (0..encoded_len(bytes.len()))
            .rev()
            .map(|d| {
                (0..5)
                    .map(|b| usize::from(bit(d * 5 + b)) << b)
                    .sum::<usize>()
            })
            .map(|d| ALPHABET[d] as char)
            .collect()
    }

    proptest! {
        #[test]
        fn there_and_back(bytes: Vec<u8>) {
            let text = encode(&bytes);
            prop_assert_eq!(&text, &slow(&bytes));
            prop_assert_eq!(decode(text.as_bytes()), Ok(bytes));
        }

        #[test]
        fn one_text_per_value(text in "[0-9a-df-np-s]{0,70}") {
            if let Ok(bytes) = decode(text.as_bytes()) {
                prop_assert_eq!(encode(&bytes), text);
            }
        }
    }
}
