//! What makes a project a Nix project, made and checked without nix.

pub mod ci;
pub mod detect;
pub mod dev_shell;
pub mod doctor;
pub mod emit;
pub mod fetch;
mod files;
pub mod flake_facts;
pub mod flake_merge;
pub mod generate;
pub mod inputs;
pub mod lock;
pub mod nix_expr;
pub mod nix_literal;
mod source;
mod url;

pub use files::{read_bounded, write_whole};
pub use lock::{FlakeFileError, FlakeLock, InputAttrs, InputPath, LockEdge, LockNode, LockedInput};
pub use source::InputSourceError;
