//! Recycled buffers: a dump fills blocks, hands them out as chunks, and gets them back when a chunk is dropped.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use crate::grammar::WordSink;

/// Bytes of one block. More would not be read faster, and the few in use should stay in a core's cache.
pub(super) const BLOCK: usize = 256 * 1024;

/// A piece of an archive, never empty. Its buffer goes back to the dump it came from when it is dropped, so
/// `bytes::Bytes::from_owner(chunk)` copies nothing.
pub struct Chunk {
    block: Option<Block>,
    pool: Arc<Blocks>,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        self.block.as_ref().map_or(&[], Block::filled)
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_ref()
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chunk({} bytes)", self.len())
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            self.pool.give(block);
        }
    }
}

#[cfg(feature = "stream")]
impl From<Chunk> for bytes::Bytes {
    /// Makes the chunk the owner of the bytes, so that nothing is copied.
    fn from(chunk: Chunk) -> Self {
        bytes::Bytes::from_owner(chunk)
    }
}

/// A buffer of fixed size, all of it initialised, of which a part is filled.
#[derive(Debug)]
pub(super) struct Block {
    bytes: Box<[u8]>,
    filled: usize,
}

impl Block {
    pub(super) fn filled(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// The part that is not filled yet.
    pub(super) fn spare(&mut self) -> &mut [u8] {
        &mut self.bytes[self.filled..]
    }

    pub(super) fn room(&self) -> usize {
        self.bytes.len() - self.filled
    }

    /// Counts bytes that were written into [`Block::spare`].
    pub(super) fn add(&mut self, count: usize) {
        self.filled += count;
    }
}

impl WordSink for Block {
    /// The caller has made sure that there is room.
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.filled..self.filled + bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
    }
}

/// Blocks that wait for use, a bounded number of them.
#[derive(Debug)]
pub(super) struct Blocks {
    free: Mutex<Vec<Box<[u8]>>>,
    keep: usize,
}

impl Blocks {
    pub(super) fn new(keep: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Mutex::new(Vec::new()),
            keep,
        })
    }

    pub(super) fn take(&self) -> Block {
        let free = self
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        // Zeroed once; a recycled block keeps its old bytes behind `filled`, where nobody looks.
        let bytes = free.unwrap_or_else(|| vec![0; BLOCK].into_boxed_slice());
        Block { bytes, filled: 0 }
    }

    pub(super) fn give(&self, block: Block) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < self.keep {
            free.push(block.bytes);
        }
    }

    pub(super) fn chunk(self: &Arc<Self>, block: Block) -> Chunk {
        Chunk {
            block: Some(block),
            pool: self.clone(),
        }
    }
}
