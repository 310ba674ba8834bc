//! What a machine needs to work with Nix, judged from what was seen of it.
//!
//! Who asks (a daemon, a server, the disk) is the caller's matter. Here is what an answer means, and what to do
//! about it, so that each judgement can be tried without the fault that it is about.

mod judge;
mod report;

pub use judge::{
    CacheKeysSeen, ClockSeen, DirenvLibrary, MemorySeen, SpaceSeen, judge_cache_keys, judge_clock,
    judge_direnv, judge_features, judge_memory, judge_nix, judge_sandbox, judge_space, judge_trust,
};
pub use report::{DoctorFinding, DoctorOutcome, DoctorReport};
