//! The program as people and scripts meet it: the words they rely on, exit status, and what comes
//! out on stdout and stderr.

mod check;
mod copying;
mod derivation;
mod files;
mod misuse;
mod progress;
mod stores;

pub use crate::support::machine::{Done, Machine};
