//! The grammar of a Nix archive, its limits, and its words as they stand in the file.
//!
//! ```text
//! nar    = "nix-archive-1" node
//! node   = "(" "type" kind ")"
//! kind   = "regular" [ "executable" "" ] "contents" blob
//!        | "symlink" "target" string
//!        | "directory" { "entry" "(" "name" string "node" node ")" }
//! string = length bytes padding     length: u64, little endian; padding: zero bytes up to a multiple of 8
//! blob   = a string of any length
//! ```
//!
//! | Rule | Enforced by |
//! |---|---|
//! | magic at most 13 bytes, tags at most 32, the executable marker's value empty | decoder |
//! | names 1 to 255 bytes, not `.` or `..`, no `/`, no NUL; strictly increasing as unsigned bytes | decoder, encoder |
//! | link targets 1 to 4095 bytes, no NUL | decoder, encoder |
//! | at most 64 nested nodes, the root counts | decoder, encoder |
//! | padding is zero, also behind contents | decoder |
//! | bytes behind the root's `)` are not looked at | decoder |
//!
//! Mirrors `libutil/archive.cc` of Nix 2.35 and later; earlier ones lack the limits on targets and depth, and those
//! before 2.32 take a regular file without `contents`, which is refused here.

/// Most nodes inside each other, the root counted.
pub const MAX_DEPTH: usize = 64;
/// Longest name of a directory entry, in bytes.
pub const MAX_NAME: usize = 255;
/// Longest symlink target, in bytes.
pub const MAX_TARGET: usize = 4095;
/// Longest tag (`type`, `entry`, …), in bytes; a longer one is refused before it is read.
pub const MAX_TAG: usize = 32;
/// Length of the magic string.
pub const MAX_MAGIC: usize = 13;

pub(crate) const MAGIC_TEXT: &[u8] = b"nix-archive-1";
pub(crate) const MAGIC: [u8; 24] = words(&[MAGIC_TEXT]);
pub(crate) const NODE_BEGIN: [u8; 32] = words(&[b"(", b"type"]);
pub(crate) const NODE_IN_ENTRY: [u8; 48] = words(&[b"node", b"(", b"type"]);
pub(crate) const REGULAR_CONTENTS: [u8; 32] = words(&[b"regular", b"contents"]);
pub(crate) const REGULAR_EXECUTABLE: [u8; 64] =
    words(&[b"regular", b"executable", b"", b"contents"]);
pub(crate) const SYMLINK_TARGET: [u8; 32] = words(&[b"symlink", b"target"]);
pub(crate) const DIRECTORY: [u8; 24] = words(&[b"directory"]);
pub(crate) const ENTRY_NAME: [u8; 48] = words(&[b"entry", b"(", b"name"]);
pub(crate) const CLOSE_ENTRY_NAME: [u8; 64] = words(&[b")", b"entry", b"(", b"name"]);
pub(crate) const CLOSE: [u8; 16] = words(&[b")"]);
pub(crate) const CLOSE_BOTH: [u8; 32] = words(&[b")", b")"]);

/// Zero bytes that follow a string of `length` bytes (0 to 7).
pub(crate) const fn padding(length: u64) -> usize {
    (length.wrapping_neg() % 8) as usize
}

/// Why `name` cannot be the name of a directory entry; `None` if it can.
pub(crate) fn name_fault(name: &[u8]) -> Option<&'static str> {
    match name {
        b"" => Some("is empty"),
        b"." | b".." => Some("means a folder itself or its parent"),
        _ if name.len() > MAX_NAME => Some("is longer than 255 bytes"),
        _ if name.contains(&b'/') => Some("contains a slash"),
        _ if name.contains(&0) => Some("contains a NUL byte"),
        _ => None,
    }
}

/// Why `target` cannot be the target of a symlink; `None` if it can.
pub(crate) fn target_fault(target: &[u8]) -> Option<&'static str> {
    match target {
        b"" => Some("is empty"),
        _ if target.len() > MAX_TARGET => Some("is longer than 4095 bytes"),
        _ if target.contains(&0) => Some("contains a NUL byte"),
        _ => None,
    }
}

/// Something archive words are written into.
pub(crate) trait WordSink {
    fn put(&mut self, bytes: &[u8]);

    fn put_string(&mut self, text: &[u8]) {
        self.put(&(text.len() as u64).to_le_bytes());
        self.put(text);
        self.put_padding(text.len() as u64);
    }

    fn put_padding(&mut self, length: u64) {
        self.put(&[0; 8][..padding(length)]);
    }

    /// From `entry` up to the child's `type`.
    fn put_entry(&mut self, name: &[u8]) {
        self.put(&ENTRY_NAME);
        self.put_string(name);
        self.put(&NODE_IN_ENTRY);
    }

    /// From the kind up to the first byte of the contents.
    fn put_regular(&mut self, executable: bool, size: u64) {
        self.put(if executable {
            &REGULAR_EXECUTABLE
        } else {
            &REGULAR_CONTENTS
        });
        self.put(&size.to_le_bytes());
    }

    fn put_symlink(&mut self, target: &[u8]) {
        self.put(&SYMLINK_TARGET);
        self.put_string(target);
    }
}

impl WordSink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

const fn words<const N: usize>(texts: &[&[u8]]) -> [u8; N] {
    let mut out = [0; N];
    let (mut at, mut word) = (0, 0);
    while word < texts.len() {
        let text = texts[word];
        let length = (text.len() as u64).to_le_bytes();
        let mut i = 0;
        while i < 8 {
            out[at + i] = length[i];
            i += 1;
        }
        i = 0;
        while i < text.len() {
            out[at + 8 + i] = text[i];
            i += 1;
        }
        at += 8 + text.len() + padding(text.len() as u64);
        word += 1;
    }
    assert!(at == N, "the array is as long as its words");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_length_text_and_zeros() {
        assert_eq!(MAGIC, *b"\x0d\0\0\0\0\0\0\0nix-archive-1\0\0\0");
        assert_eq!(CLOSE, *b"\x01\0\0\0\0\0\0\0)\0\0\0\0\0\0\0");
    }

    #[test]
    fn padding_reaches_the_next_multiple_of_eight() {
        for (length, zeros) in [(0, 0), (1, 7), (7, 1), (8, 0), (9, 7), (u64::MAX, 1)] {
            assert_eq!(padding(length), zeros, "{length}");
        }
    }

    #[test]
    fn names() {
        for good in [
            &b"a"[..],
            b"...",
            b" ",
            b"\xff\xfe",
            b"~nix~case~hack~1",
            &[b'n'; 255],
        ] {
            assert_eq!(name_fault(good), None);
        }
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0", &[b'n'; 256]] {
            assert!(name_fault(bad).is_some());
        }
    }
}
