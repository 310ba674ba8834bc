//! What the fuzz targets share.

pub mod protocol;

use std::{
    cell::OnceCell,
    future::Future,
    io::{self, BufRead, Read},
};
use tokio::runtime::{Builder, Runtime};

/// The result of a future, on a runtime that all of a thread share.
pub fn wait<F: Future>(future: F) -> F::Output {
    thread_local! {
        static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() };
    }
    let build = || Builder::new_current_thread().enable_all().build();
    RUNTIME.with(|cell| {
        cell.get_or_init(|| build().expect("a runtime"))
            .block_on(future)
    })
}

/// Gives its bytes in pieces of odd sizes, with interrupted reads in between.
pub struct Pieces<'a> {
    rest: &'a [u8],
    turn: usize,
}

impl<'a> Pieces<'a> {
    /// The pieces of `bytes`.
    pub fn of(bytes: &'a [u8]) -> Self {
        let turn = bytes.len();
        Pieces { rest: bytes, turn }
    }

    /// The next piece; `None` after the last.
    pub fn next_piece(&mut self) -> Option<&'a [u8]> {
        let piece = &self.rest[..self.size()];
        self.advance(piece.len());
        Some(piece).filter(|piece| !piece.is_empty())
    }

    /// What has not come yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn size(&self) -> usize {
        SIZES[self.turn % SIZES.len()].min(self.rest.len())
    }

    fn advance(&mut self, count: usize) {
        self.rest = &self.rest[count..];
        self.turn += 1;
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.size().min(into.len());
        if self.turn % 5 == 4 {
            self.turn += 1;
            return Err(io::ErrorKind::Interrupted.into());
        }
        into[..count].copy_from_slice(&self.rest[..count]);
        self.advance(count);
        Ok(count)
    }
}

/// Not interrupted: decompressors are given files and channels, which are not.
impl BufRead for Pieces<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(&self.rest[..self.size()])
    }

    fn consume(&mut self, count: usize) {
        if count > 0 {
            self.advance(count);
        }
    }
}

/// Around the 8 of the archive's words, and some that hold several of them.
const SIZES: [usize; 11] = [1, 7, 3, 8, 64, 2, 9, 33, 5, 4096, 16];
