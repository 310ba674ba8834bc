//! What makes a project a Nix project, made and checked without nix.

mod files;
pub mod lock;

pub use files::read_bounded;
pub use lock::{FlakeFileError, FlakeLock, InputAttrs, InputPath, LockEdge, LockNode, LockedInput};
