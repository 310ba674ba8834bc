//! Hashes, nix32, store paths, content addresses, derivations and reference scanning for the Nix store: pure values.
//!
//! Everything here is parsed once, at the edge, into a type that cannot hold a wrong value:
//!
//! ```
//! use tk_path::{Algorithm, ContentAddress, Hash, Method, References, StoreDir};
//!
//! let dir = StoreDir::default();
//! let ca = ContentAddress { method: Method::Text, hash: Hash::digest(Algorithm::Sha256, b"hi\n") };
//! let path = dir.path_of_content("greeting", &ca, &References::default())?;
//! assert_eq!(dir.parse(&dir.path(&path))?, path);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Nothing is printed, no environment is read, and no file is touched.

mod content_address;
mod derivation;
mod derived_path;
pub mod git;
mod hash;
pub mod nix32;
mod output_name;
mod outputs_spec;
mod placeholder;
pub mod scan;
#[cfg(feature = "serde")]
mod serde;
mod store_dir;
mod store_path;
mod text;

pub use content_address::{
    ContentAddress, ContentAddressError, ContentPathError, Method, MethodAlgorithm, References,
    UnknownMethod,
};
pub use derivation::{
    BasicDerivation, Derivation, DerivationError, DerivationErrorKind, DerivationInputs,
    DerivationJsonVersion, DerivationKind, DerivationOutput, InputOutputs, Inputs, OutputError,
    ResolveError, modulo,
};
pub use derived_path::{DerivedPath, DerivedPathError, SingleDerivedPath};
pub use hash::{
    Algorithm, Encoding, Hash, HashError, HashErrorKind, Hasher, NarHash, UnknownAlgorithm,
    UnknownEncoding,
};
pub use output_name::{OutputName, OutputNameError};
pub use outputs_spec::{ExtendedOutputsSpec, OutputsSpec, OutputsSpecError};
pub use placeholder::{Placeholder, placeholder};
pub use store_dir::{StoreDir, StoreDirError, clean_path};
pub use store_path::{HashPart, NameError, StorePath, StorePathError, StorePathErrorKind};
