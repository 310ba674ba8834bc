//! The tests of the whole: golden data, and real Nix as the oracle. `tests/run` runs them.
//!
//! What a machine lacks (real Nix, the golden data) is skipped visibly, never silently passed:
//! see [`support::skip`].

mod cli;
mod daemon;
mod differential;
mod driver;
mod driver_remote;
mod driver_repro;
mod driver_shell;
mod examples;
mod local;
mod machines;
mod network;
mod nix;
mod support;
mod vectors;
