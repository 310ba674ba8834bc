//! The inputs that a flake.nix asks for.

mod declared;
mod literal;
mod reference;

pub(crate) use declared::names_from;
pub use declared::{DeclaredInput, DeclaredInputs};
pub(crate) use reference::{canonical, is_relative};
pub use reference::{parse_reference, reference_from_attrs};
