//! What makes a project a Nix project, made and checked without nix.
//!
//! ```
//! use tk_project::{detect::detect, flake_merge::{ExistingFlake, plan_flake}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let project = folder.path();
//! std::fs::write(project.join("go.mod"), "module example.org/hello\n")?;
//! let found = detect(project)?;
//! let plan = plan_flake(None, found.facts, ExistingFlake::Keep)?;
//! assert!(plan.text.contains("pkgs.buildGoModule"));
//! # Ok(())
//! # }
//! ```

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
mod nix_repeats;
mod source;
mod text;
mod url;

pub use files::{read_bounded, write_whole};
pub use lock::{FlakeFileError, FlakeLock, InputAttrs, InputPath, LockEdge, LockNode, LockedInput};
pub use source::InputSourceError;
