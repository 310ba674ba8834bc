//! The program as people and scripts meet it: the words they rely on, exit status, and what comes
//! out on stdout and stderr.

mod caches;
mod check;
mod completions;
mod copying;
mod derivation;
mod examples;
mod files;
mod flake_init;
mod flake_lock;
mod maintenance;
mod misuse;
mod progress;
mod requests;
mod settings;
mod signatures;
mod sources;
mod stores;
mod straight;
mod transcripts;
mod words;

pub use crate::support::machine::{Done, Machine};
