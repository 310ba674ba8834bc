//! What is wrong with an archive, and at which byte.

use std::{error::Error, fmt, io};

/// A malformed or unreadable archive: what is wrong, and where. The fault lies with whoever made or sent the archive,
/// except for [`NarErrorKind::Read`].
#[derive(Debug)]
pub struct NarError {
    /// Bytes from the start of the archive to the first byte of the offending word (for padding: to the byte that is
    /// not zero; for a truncated archive: to the end of the input).
    pub offset: u64,
    /// What is wrong there.
    pub kind: NarErrorKind,
}

impl fmt::Display for NarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad archive at byte {}: {}", self.offset, self.kind)
    }
}

/// The kind is in the text; the source is what lies behind the kind.
impl Error for NarError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.kind.source()
    }
}

impl NarError {
    pub(crate) fn new(offset: u64, kind: NarErrorKind) -> Self {
        Self { offset, kind }
    }

    /// Whether the input stopped before the archive was complete, as a broken transfer does.
    pub fn is_unexpected_end(&self) -> bool {
        matches!(self.kind, NarErrorKind::UnexpectedEnd)
    }
}

/// The ways in which an archive can be wrong. Texts taken from the archive are bounded (at most 255 bytes).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NarErrorKind {
    /// The input stops before the root node is closed.
    #[error("unexpected end of the archive")]
    UnexpectedEnd,
    /// The first string is not `nix-archive-1`.
    #[error("this is not a Nix archive (it does not start with 'nix-archive-1')")]
    NotAnArchive,
    /// A string claims more bytes than its place allows; it was not read.
    #[error("{what} claims to be {length} bytes long, the limit is {limit}")]
    TooLong {
        /// The kind of string, such as `a name` or `a link target`.
        what: &'static str,
        /// The length that the string claims, in bytes.
        length: u64,
        /// The largest length allowed for this kind, in bytes.
        limit: usize,
    },
    /// Another word than the grammar has here.
    #[error("expected {expected}, found '{}'", .found.escape_ascii())]
    UnexpectedTag {
        /// What could stand here.
        expected: &'static str,
        /// What stands here, at most 32 bytes.
        found: Vec<u8>,
    },
    /// A string is filled up with something else than zero bytes.
    #[error("padding is not zero")]
    Padding,
    /// The executable marker carries a value.
    #[error("the executable marker has a value")]
    Marker,
    /// A directory entry's name is not allowed.
    #[error("the name '{}' {why}", .name.escape_ascii())]
    Name {
        /// The name as it stands in the archive.
        name: Vec<u8>,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A directory entry's name is not greater than the one before it.
    #[error("the name '{}' follows '{}': names are not sorted", .name.escape_ascii(), .previous.escape_ascii())]
    Order {
        /// The name that is not greater than the one before it.
        name: Vec<u8>,
        /// The name of the entry before it.
        previous: Vec<u8>,
    },
    /// A symlink's target is not allowed.
    #[error("a link target {why}")]
    Target {
        /// What is wrong with it.
        why: &'static str,
    },
    /// More than 64 nodes inside each other.
    #[error("nodes are nested more than 64 deep")]
    TooDeep,
    /// The caller fed bytes that follow a complete archive.
    #[error("there are bytes behind the archive")]
    Trailing,
    /// The decoder refused this archive before and was fed again.
    #[error("the archive was refused here before")]
    Refused,
    /// The source of the archive failed; not the archive's fault.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
}
