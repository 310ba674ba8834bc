//! What is said about a Nix store path, as pure values: no I/O, no runtime.
//!
//! | Value | What it is |
//! |---|---|
//! | [`PathInfo`] | what a store knows about a path: NAR hash and size, references, deriver, signatures |
//! | [`NarInfo`] | the same in a binary cache's file, and where the packed NAR is |
//! | [`CacheInfo`] | what a binary cache says about itself |
//! | [`PublicKey`], [`SecretKey`], [`Signature`], [`TrustedKeys`] | who vouches for a path |
//! | [`Policy`] | whether that is enough |
//! | [`realisation`] | what the outputs of content-addressed derivations turned out to be |
//! | [`build_result`] | what became of a build |
//! | [`json`] | path infos and narinfos as Nix's JSON |
//!
//! ```
//! use tk_narinfo::{NarInfo, Policy, SecretKey};
//! use tk_path::StoreDir;
//!
//! let dir = StoreDir::default();
//! let text = "StorePath: /nix/store/g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo\n\
//!     URL: nar/foo.nar.xz\n\
//!     Compression: xz\n\
//!     NarHash: sha256:1w1fff338fvdw53sqgamddn1b2xgds473pv6y13gizdbqjv4i5p3\n\
//!     NarSize: 120\n\
//!     References: \n";
//! let mut narinfo = NarInfo::parse(&dir, text)?;
//! assert_eq!(narinfo.print(&dir), text);
//!
//! let key = SecretKey::generate("cache.example.org-1")?;
//! let policy = Policy::new([key.public()].into_iter().collect());
//! assert!(policy.check(&dir, &narinfo.info).is_err());
//! narinfo.info.sign(&dir, &key)?;
//! policy.check(&dir, &narinfo.info)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Security
//! Parsing accepts what Nix accepts, never panics, and needs memory in proportion to the text, whose size is limited. It
//! verifies nothing: a parsed narinfo is a claim. [`NarInfo::expect`] checks that it is about the path one asked for,
//! [`Policy::check`] that someone trusted says so; that the NAR has the stated hash is up to whoever reads it.

#[cfg(test)]
mod arbitrary;
pub mod build_result;
mod cache_info;
mod compression;
pub mod json;
mod keys;
mod narinfo;
mod path_info;
mod policy;
pub mod realisation;
mod text;

pub use cache_info::{CacheInfo, CacheInfoError, MAX_CACHE_INFO_BYTES};
pub use compression::{Compression, UnknownCompression};
pub use keys::{
    KeyError, KeyTextKind as KeyKind, PUBLIC_KEY_BYTES, PublicKey, SECRET_KEY_BYTES,
    SIGNATURE_BYTES, SecretKey, Signature, TrustedKeys,
};
pub use narinfo::{
    MAX_EXTRA_FIELDS, MAX_NARINFO_BYTES, NarInfo, NarInfoError, NarInfoErrorKind, Quirk,
};
pub use path_info::{PathInfo, SignatureError, SignatureVerdict};
pub use policy::{Policy, Untrusted};
