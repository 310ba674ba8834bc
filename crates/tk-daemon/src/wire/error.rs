use std::io;

/// Why a message could not be read or written. Offsets count the bytes from the peer since the
/// connection began.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Reading from the connection or writing to it failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The peer closed the connection where more should have come.
    #[error("the peer closed the connection after {offset} bytes, in the middle of a message")]
    End {
        /// What had come by then.
        offset: u64,
    },
    /// The peer does not keep to the protocol.
    #[error("the peer sent what is not in the protocol at byte {offset}: {what}")]
    Malformed {
        /// Where the value ends that is wrong.
        offset: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The peer wants more than it gets.
    #[error("the peer announced {claimed} for {what} at byte {offset}, more than {limit}")]
    TooLarge {
        /// How many bytes had been read when the limit was broken.
        offset: u64,
        /// What is too large.
        what: &'static str,
        /// The peer's number: bytes, or items of a list.
        claimed: u64,
        /// The limit that it breaks.
        limit: u64,
    },
    /// The protocol, at the version and with the features agreed on, has no way to say this.
    #[error("{protocol} cannot express {what}")]
    Unsupported {
        /// What was to be said.
        what: String,
        /// The protocol with its version.
        protocol: String,
    },
}

impl WireError {
    /// Whether the connection ended, rather than carried something wrong.
    pub fn is_end(&self) -> bool {
        match self {
            WireError::End { .. } => true,
            WireError::Io(error) => matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::ConnectionReset
            ),
            _ => false,
        }
    }

    /// Whether the connection ended, and nobody has said more than that.
    pub(crate) fn is_bare_end(&self) -> bool {
        let explained = matches!(self, WireError::Io(error) if error.get_ref().is_some());
        self.is_end() && !explained
    }

    /// The error as an [`io::Error`], for where only those pass.
    pub fn into_io(self) -> io::Error {
        match self {
            // The system's words for it are about pipes.
            WireError::Io(_) if self.is_bare_end() => io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the peer closed the connection",
            ),
            WireError::Io(error) => error,
            WireError::End { .. } => io::Error::new(io::ErrorKind::UnexpectedEof, self),
            _ => io::Error::new(io::ErrorKind::InvalidData, self),
        }
    }
}
