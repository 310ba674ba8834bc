use super::{Decode, Encode, Protocol, WireError, Writer};
use std::fmt::{Debug, Display};

/// What can be asked in protocol `P`: a type for each operation.
pub trait Request<P: Protocol>: Encode<P> + Decode<P> + Debug + Send + Sync {
    /// The operation whose number begins the request on the wire.
    const OP: P::Op;

    /// What comes back when it is done; data that follows is not part of it.
    type Reply: Encode<P> + Decode<P> + Debug + Send + Sync;

    /// In which way data follows the request.
    fn data(_: &P) -> Data {
        Data::None
    }

    /// Writes the number of the operation and the request.
    ///
    /// # Errors
    /// [`WireError::Unsupported`] if the other end does not know the operation, or there is no way
    /// to say it at its version.
    fn write(&self, to: &mut Writer<P>) -> Result<(), WireError> {
        let op = Self::OP;
        if !op.supported(to.protocol()) {
            return Err(to.unsupported(format_args!("the operation {op}")));
        }
        let start = to.len();
        to.u64(op.number());
        to.value(self).inspect_err(|_| to.truncate(start))
    }
}

/// What a request is of, by its number.
pub trait Operation<P>: Copy + Display {
    /// The number on the wire.
    fn number(self) -> u64;

    /// Whether the other end knows the operation, going by what was agreed on.
    fn supported(self, protocol: &P) -> bool;
}

/// Since when there is an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// This minor version; 0 is always, and 10 of the worker protocol also stands for longer ago.
    Minor(u8),
    /// Where this feature was agreed on.
    Feature(&'static str),
}

/// In which way the data of a request follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Data {
    /// No data follows: the request is complete as it is.
    None,
    /// In chunks, see [`FramedRead`](super::FramedRead).
    Framed,
    /// As a NAR that ends where it ends, see [`NarRead`](super::NarRead).
    RawNar,
    /// In strings that the server asks for, see [`Message::Read`](crate::worker::log::Message::Read).
    Pulled,
}

/// Declares the operations of a protocol: number, and since when there is one if not always.
macro_rules! operations {
    ($(#[$meta:meta])* $op:ident($protocol:ident) { $($name:ident = $number:literal $(, $since:expr)?;)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u64)]
        pub enum $op {
            $(#[doc = concat!("See [`", stringify!($name), "`].")] $name = $number,)*
        }

        impl $op {
            /// All of them, by number.
            pub const ALL: &[$op] = &[$($op::$name),*];

            /// The operation of that number.
            pub const fn from_u64(number: u64) -> Option<$op> {
                match number {
                    $($number => Some($op::$name),)*
                    _ => None,
                }
            }

            /// Nix's name of it.
            pub const fn name(self) -> &'static str {
                match self {
                    $($op::$name => stringify!($name),)*
                }
            }

            /// The number on the wire.
            pub const fn number(self) -> u64 {
                self as u64
            }

            /// What the other end must be for it.
            pub const fn since(self) -> $crate::wire::Since {
                match self {
                    $($op::$name => [$($since,)? $crate::wire::Since::Minor(0)][0],)*
                }
            }

            /// Whether the other end knows the operation, going by what was agreed on.
            pub fn supported(self, protocol: &$protocol) -> bool {
                $crate::wire::Protocol::supports(protocol, self.since())
            }
        }

        impl $crate::wire::Operation<$protocol> for $op {
            fn number(self) -> u64 {
                self.number()
            }

            fn supported(self, protocol: &$protocol) -> bool {
                self.supported(protocol)
            }
        }

        impl std::fmt::Display for $op {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

/// Declares requests that are read and written field by field, each with its reply and the way in
/// which data follows it, if any does.
macro_rules! requests {
    ($protocol:ident, $op:ident; $(
        $(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty),* $(,)? }
            -> $reply:ty $(, |$worker:ident| $data:expr)?;
    )*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        $crate::wire::field_by_field!($protocol, $name { $($field),* });

        impl $crate::wire::Request<$protocol> for $name {
            const OP: $op = $op::$name;
            type Reply = $reply;

            $(fn data($worker: &$protocol) -> $crate::wire::Data {
                $data
            })?
        }
    )*};
}

/// Reads and writes the fields of a struct in this order, and nothing else.
macro_rules! field_by_field {
    ($protocol:ident, $name:ident { $($field:ident),* $(,)? }) => {
        impl $crate::wire::Encode<$protocol> for $name {
            fn encode(
                &self,
                _to: &mut $crate::wire::Writer<$protocol>,
            ) -> Result<(), $crate::wire::WireError> {
                $(_to.value(&self.$field)?;)*
                Ok(())
            }
        }

        impl $crate::wire::Decode<$protocol> for $name {
            async fn decode<R: tokio::io::AsyncRead + Unpin + Send>(
                _from: &mut $crate::wire::WireReader<R, $protocol>,
            ) -> Result<Self, $crate::wire::WireError> {
                Ok($name { $($field: _from.value().await?,)* })
            }
        }
    };
}

/// Declares how a request is read and written whose layout is not just that of its fields.
macro_rules! by_version {
    ($protocol:ident, $op:ident; $name:ident -> $reply:ty, |$own:ident| $data:expr, |$value:ident, $to:ident| $write:expr, |$from:ident| $read:expr) => {
        impl $crate::wire::Encode<$protocol> for $name {
            fn encode(
                &self,
                $to: &mut $crate::wire::Writer<$protocol>,
            ) -> Result<(), $crate::wire::WireError> {
                let $value = self;
                $write
            }
        }

        impl $crate::wire::Decode<$protocol> for $name {
            async fn decode<R: tokio::io::AsyncRead + Unpin + Send>(
                $from: &mut $crate::wire::WireReader<R, $protocol>,
            ) -> Result<Self, $crate::wire::WireError> {
                $read
            }
        }

        impl $crate::wire::Request<$protocol> for $name {
            const OP: $op = $op::$name;
            type Reply = $reply;

            fn data($own: &$protocol) -> $crate::wire::Data {
                $data
            }
        }
    };
}

pub(crate) use {by_version, field_by_field, operations, requests};
