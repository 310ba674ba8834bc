//! Builds derivations without nix: on other machines, after what caches have of them is fetched.
//!
//! - [`RemoteBuilder`] is a store whose builds go to other machines: the store of the user is the source of
//!   what is built and the place where the outputs end up, the machines only build.
//! - [`machines`] reads the machines that nix.conf names, [`Slots`] says who builds on them, [`probe`] asks
//!   whether they are there.
//! - [`fetch()`] brings what caches have of what would be built.
//!
//! ```
//! use std::sync::Arc;
//! use tk_builders::{Connect, Machine, RemoteBuilder, RemoteConfig, Slots};
//! use tk_store::Abilities;
//!
//! /// `store`, which builds at the daemon of `host`, over a way there of your own.
//! fn building(store: Abilities, host: &str, connect: Arc<dyn Connect>) -> Abilities {
//!     let mut machine = Machine::new(&format!("ssh-ng://{host}"), ["x86_64-linux".to_owned()]);
//!     machine.max_jobs = 8;
//!     let slots = Slots::new("/nix/var/nix/current-load");
//!     let mut config = RemoteConfig::new(vec![machine], connect, slots);
//!     config.keep_going = true;
//!     RemoteBuilder::new(store, config).abilities()
//! }
//! ```
//!
//! # How a build goes
//! ```text
//! what is wanted → fetch what substituters have → derivations whose outputs are not there, and
//! theirs → each one whose inputs are there: a machine that fits and has a free slot → its inputs
//! there → build → outputs back, checked → those that waited for it
//! ```
//! Two ways lead to an output. A builder that trusts the account gets the closure of the inputs and
//! builds the one derivation (`BuildDerivation`). One that does not takes only what proves itself:
//! derivations, sources, what a key that it trusts has signed. It gets the closure of the
//! derivation, and builds by itself what is missing of the inputs (`BuildPathsWithResults`).
//! Derivations whose outputs are known only when they are built (`ca-derivations`) go to machines that
//! have that feature. What a machine says that they turned out to be is checked, and told to the store
//! of the user. If that keeps no such things, or no machine fits, it builds them itself; and always
//! those that are impure.
//!
//! A builder that is lost in the middle, or that turns inputs down, is followed by another that
//! fits. So is one that falls silent: while nothing is heard of it, it is asked whether it is there
//! ([`MachineTimeouts`]), and lost when it does not answer. A build that fails has failed: it is not tried
//! elsewhere.
//!
//! # Security
//! A machine is believed that its output is what the derivation makes, as anybody is who builds.
//! Not believed is what can be checked: that it is the output that the derivation says or, where it
//! says none, a path that follows from its content by the derivation's own method; that content
//! is what hash, size and content address say; that references lead only to what went into the
//! build. Only then is it added, without asking for signatures: [`tk_store::SigCheck::Skip`] is
//! said for exactly those paths.

mod config;
mod connect;
mod fetch;
mod graph;
mod job;
mod log;
pub mod machines;
mod pool;
mod pulse;
mod realised;
mod remote;
mod run;
mod silence;
mod slots;

pub use config::{MachineTimeouts, RemoteConfig};
pub use connect::{Connect, Connected, Probe, probe};
pub use fetch::{FetchReport, Fetchable, fetch, fetchable};
pub use machines::{Machine, MachineFault, MachineLine, Machines, Needs};
pub use remote::RemoteBuilder;
pub use slots::{BuildSlot, MAX_SLOTS, Slots};
