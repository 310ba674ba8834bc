//! nix.conf: read as Nix reads it, and caches put into it for nix to fetch from.
//!
//! ```text
//! file = line { "\n" line }
//! line = [ name "=" { word } | "include" FILE | "!include" FILE ] [ "#" anything ]
//! ```
//! Words stand apart by blanks, tabs and carriage returns, the `=` too: a line such as `store=/a` is
//! an error. A file is bytes, not text. Lines count in their order: a name sets, `extra-` and the name of a
//! list adds to what is set so far, which is Nix's default if nothing is. Older names of a setting are
//! names of it.
//!
//! A file that is not there or may not be read is passed over, as is one that is included, be it a
//! folder; only `include` of what does not exist is an error. If it cannot be known whether an included
//! file exists, since its folder may not be entered, the file that includes it counts for nothing.
//! All this is what Nix 2.34 does (`configuration.cc`), and Nix 2.8 but for the last.

#[cfg(feature = "substituter")]
mod caches;
mod read;

#[cfg(feature = "substituter")]
pub use caches::{Caches, Change, add, remove};
pub use read::{
    ConfPlaces, DEFAULT_SUBSTITUTER, DEFAULT_TRUSTED_KEY, MAX_CONF_BYTES, MAX_FILES, MAX_INCLUDES,
    NixConf, parse_number,
};
