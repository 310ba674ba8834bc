//! How many files may be open, and what follows for trees: those of few descriptors take turns rather
//! than fail.

use std::num::NonZeroUsize;

use rustix::process::{Resource, getrlimit};

use super::default_threads;
use crate::grammar::MAX_DEPTH;

/// The files that this process may have open at once, as far as the system limits them.
pub fn descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}

/// How many trees may be dumped and unpacked at once, each of them both, so that descriptors are left for
/// everything else: a quarter of what the process may have.
pub fn trees_at_once() -> NonZeroUsize {
    let all = descriptors();
    let threads = default_threads().get();
    let unpacked = unpacked_directories(all).max(MAX_DEPTH) + threads + 1;
    let dumped = MAX_DEPTH + threads * (dumped_directories(all) + 1);
    let trees = all / 4 * 3 / (unpacked + dumped);
    NonZeroUsize::new(trees).unwrap_or(NonZeroUsize::MIN)
}

/// Directories of a tree being unpacked that may be incomplete, each with a descriptor, before everything
/// waits for the threads; more only where the tree is so deep.
pub(super) fn unpacked_directories(descriptors: usize) -> usize {
    (descriptors / 64).clamp(16, 256)
}

/// Directories that one batch of a dump may refer to.
pub(super) fn dumped_directories(descriptors: usize) -> usize {
    (descriptors / 512).clamp(2, 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_descriptors_are_few_directories() {
        assert_eq!(
            (unpacked_directories(256), dumped_directories(256)),
            (16, 2)
        );
        assert_eq!(
            (unpacked_directories(1024), dumped_directories(1024)),
            (16, 2)
        );
        assert_eq!(
            (unpacked_directories(4096), dumped_directories(4096)),
            (64, 8)
        );
        assert_eq!(unpacked_directories(usize::MAX), 256);
        assert_eq!(dumped_directories(usize::MAX), 32);
        assert!(trees_at_once().get() <= descriptors());
    }
}
