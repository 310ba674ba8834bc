//! Plain bytes of unknown length, made a NAR: its length has to be known first.

use bytes::{Bytes, BytesMut};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
};
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
        let size = self.size;
        nar::produce(move |send| {
            let (head, tail) = around(size);
            let doing = |e| Error::io("reading what is to be added", e);
            if !send(head) {
                return Ok(());
            }
            if let Some(mut file) = self.file {
                file.seek(SeekFrom::Start(0)).map_err(doing)?;
                loop {
                    let mut piece = vec![0; PIECE];
                    let n = file.read(&mut piece).map_err(doing)?;
                    piece.truncate(n);
                    if n == 0 {
                        break;
                    }
                    if !send(piece.into()) {
                        return Ok(());
                    }
                }
            }
            let _ = send(self.memory.freeze()) && send(tail);
            Ok(())
        })
    }
}

/// What stands in a NAR before and behind the bytes of its only file.
fn around(size: u64) -> (Bytes, Bytes) {
    let mut head = Vec::new();
    for token in ["nix-archive-1", "(", "type", "regular", "contents"] {
        string(&mut head, token);
    }
    head.extend_from_slice(&size.to_le_bytes());
    let padding = size.next_multiple_of(8) - size;
    let mut tail = vec![0; padding as usize];
    string(&mut tail, ")");
    (head.into(), tail.into())
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
    out.resize(out.len() + text.len().next_multiple_of(8) - text.len(), 0);
}

/// Bytes that need no file.
const IN_MEMORY: usize = 1 << 20;
const PIECE: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt;
    use tk_nar::Encoder;

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
