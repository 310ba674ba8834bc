//! Plain bytes of unknown length, made a NAR: its length has to be known first.

use bytes::{Bytes, BytesMut};
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};
use tk_nar::{EncodeError, Encoder};
use tk_store::{Error, NarStream, Result, nar};
use tokio::task::spawn_blocking;

/// Collects bytes: a few in memory, many in a file that has no name.
pub(super) struct ByteSpool {
    memory: BytesMut,
    file: Option<File>,
    size: u64,
}

impl ByteSpool {
    pub fn new() -> Self {
        ByteSpool {
            memory: BytesMut::new(),
            file: None,
            size: 0,
        }
    }

    /// Takes the next bytes; a file is made in `folder`.
    pub async fn push(&mut self, bytes: Bytes, folder: &Path) -> Result<()> {
        self.size += bytes.len() as u64;
        self.memory.extend_from_slice(&bytes);
        if self.memory.len() < IN_MEMORY {
            return Ok(());
        }
        let (piece, file, folder) = (self.memory.split(), self.file.take(), folder.to_owned());
        let write = move || {
            let mut file = match file {
                Some(file) => file,
                None => tempfile::tempfile_in(&folder)?,
            };
            file.write_all(&piece).map(|()| file)
        };
        let written = spawn_blocking(write).await.map_err(std::io::Error::other);
        let written = written.and_then(|file| file);
        self.file = Some(written.map_err(|e| Error::io("keeping what is to be added", e))?);
        Ok(())
    }

    /// The NAR of a file with these bytes.
    pub fn into_nar(self) -> NarStream {
        nar::produce(move |send| {
            self.encode(SendWriter(send))
                .map_err(|e| Error::io("reading what is to be added", io::Error::other(e)))
        })
    }

    fn encode(self, to: impl Write) -> std::result::Result<(), EncodeError> {
        let mut nar = Encoder::new(to);
        nar.regular(false, self.size)?;
        if let Some(mut file) = self.file {
            file.seek(SeekFrom::Start(0))?;
            let mut piece = vec![0; PIECE];
            while let n @ 1.. = file.read(&mut piece)? {
                nar.contents(&piece[..n])?;
            }
        }
        nar.contents(&self.memory)?;
        nar.finish().map(drop)
    }
}

/// Sends what is written to it.
struct SendWriter<'a>(&'a mut dyn FnMut(Bytes) -> bool);

impl Write for SendWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.0)(Bytes::copy_from_slice(bytes)) {
            Ok(bytes.len())
        } else {
            // Nobody listens any more.
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes that need no file.
const IN_MEMORY: usize = 1 << 20;
const PIECE: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt;

    #[tokio::test]
    async fn whatever_the_size_it_is_the_nar_of_a_file() {
        for size in [
            0,
            1,
            7,
            8,
            1000,
            IN_MEMORY,
            IN_MEMORY + 5,
            3 * IN_MEMORY + 1,
        ] {
            let content: Vec<u8> = (0..size).map(|i| (i / 7) as u8).collect();
            let mut spool = ByteSpool::new();
            for piece in content.chunks(30_000) {
                let piece = Bytes::copy_from_slice(piece);
                spool.push(piece, &std::env::temp_dir()).await.unwrap();
                assert!(spool.memory.len() < IN_MEMORY);
            }
            let got: Vec<_> = spool.into_nar().try_collect().await.unwrap();
            let mut encoder = Encoder::new(Vec::new());
            encoder.file(false, &content).unwrap();
            assert!(got.concat() == encoder.finish().unwrap(), "{size}");
        }
    }
}
