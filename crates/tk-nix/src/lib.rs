//! Drives the `nix` binary, which is asked for two things only: to evaluate Nix code, and to build
//! where no daemon does it. What there is to know about paths comes from our own stores.
//!
//! - [`Nix`] is a program that was found, its version and kind; [`Nix::run`] runs it, with its log as
//!   typed events, within bounds of time and output.
//! - [`Installable`] is what people name: a flake reference, an attribute of a file, a derivation.
//! - [`Nix::eval`], [`Nix::targets`] evaluate; [`NixBuilder`] builds, and its [`NixBuildResult`] is the same
//!   whatever the version of Nix.
//! - [`repro`] tells whether a build gives the same again, and what makes it impure.
//! - [`shell`] keeps environments to work in: evaluated once for all processes, entered without nix.
//! - [`NixFailure`] says what went wrong, as values: the derivation, its exit, its last lines, the likely
//!   cause, and whether trying again may help.
//!
//! ```no_run
//! use tk_nix::{Nix, NixBuilder, NixConfig};
//! # async fn example(store: tk_store::Abilities) -> tk_nix::Result<()> {
//! let nix = Nix::find(NixConfig::default()).await?;
//! let builder = NixBuilder::new(nix, store);
//! println!("{}", builder.eval("{ answer = 6 * 7; }").await?);
//! println!("{:?}", builder.build(".", "hello").await?);
//! # Ok(()) }
//! ```
//!
//! # Security
//! Nix code that is evaluated or built runs as with Nix. What is built is believed as far as the store
//! believes it. Logs and messages are read within limits.
//!
//! Arguments never go through a shell. A dropped future ends the whole group of processes that it
//! started.

mod build;
mod build_tracker;
mod daemon;
mod evaluate;
pub mod events;
mod failure;
pub mod flake;
mod installable;
mod nix;
mod process;
pub mod repro;
pub mod shell;

pub use build::{NixBuildOptions, NixBuildResult, NixBuilder, StoreBuilder, or_cancelled};
pub use build_tracker::BuildTracker;
pub use daemon::StdioTransport;
pub use evaluate::{EvalOptions, Target};
pub use failure::{Cause, Details, Exit, NixFailure};
pub use installable::{Installable, InstallableError, InstallableSource};
pub use nix::{Flavour, Nix, NixConfig, NixVersion};
pub use process::{Finished, Invocation, ending};
pub use shell::{ExecResult, NixDevShell, ShellSession};
pub use tokio_util::sync::CancellationToken;

/// The result of everything that runs nix.
pub type Result<T, E = NixFailure> = std::result::Result<T, E>;
