//! What breaks, breaks at every step: stores, transports, disks, clocks, and the process itself.
//!
//! Each main job is run with a fault at step 0, then again with it at step 1, and so on until a run
//! is over before its fault. After each: an error that says what, or all is there; what readers
//! rely on holds ([`invariants`]); nothing goes on for ever; and the same job once more, without a
//! fault, gives what an undisturbed one gives, to the byte.

mod clock;
mod disk;
mod http;
mod invariants;
mod jobs;
mod planted;
mod proxy;
mod signals;
mod steps;
mod store;
#[allow(dead_code, unused_imports, reason = "each test program uses its part")]
#[path = "../support/mod.rs"]
mod support;
mod sweep;
