//! The codecs as small pieces of work on fixed inputs, and how many instructions each takes.
//!
//! Instructions are counted by valgrind, so the figures are the same on a busy machine as on a quiet one, and a change of
//! 1 % can be seen. What they do not show is waiting for memory: for that there are the benches of `tk-bench`.

pub mod codecs;
pub mod counts;
pub mod inputs;
pub mod valgrind;
