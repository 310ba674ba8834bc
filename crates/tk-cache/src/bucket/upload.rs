//! Large objects, in parts that are sent while more of them are being made.

use super::{
    BucketInner,
    refusal::Refusal,
    service::{Bucket, attributes},
};
use crate::{
    blocking,
    journal::{Journal, OpenUpload, UploadedPart},
    objects::Upload,
};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture};
use object_store::{
    GetOptions, PutMultipartOptions, PutPayload,
    multipart::{MultipartStore, PartId},
    path::Path,
};
use std::{collections::BTreeMap, sync::Arc};
use tk_path::{Algorithm, Hash, Hasher};
use tk_store::{ByteStream, Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(super) async fn run(inner: &Arc<BucketInner>, upload: Upload<'_>) -> Result<()> {
    let bucket = inner.bucket().await?;
    let key = inner.key(upload.name)?;
    // Where unfinished parts go by themselves, nobody must find them again to give them up.
    let journal = upload.journal.filter(|_| bucket.uploads_last);
    let wanted = part_size(inner.config.chunk_size, upload.size_hint);
    let resumed = resumed(bucket, &key, upload.name, wanted, journal).await?;
    let part_size = resumed.as_ref().map_or(wanted, |upload| upload.part_size);
    let mut pieces = BodyPieces::new(upload.body, part_size, inner.memory.clone());
    let first = match pieces.next().await {
        Ok(first) => first,
        Err(error) => {
            release(journal, resumed.as_ref());
            return Err(error);
        }
    };
    if first.last && resumed.is_none() {
        let whole = PutPayload::from_iter(first.content);
        inner.put(upload.name, whole, upload.mime, false).await?;
        (upload.sent)(first.size);
        return Ok(());
    }
    let session = match resumed {
        Some(open) => UploadSession::of(bucket, &key, upload.name, journal, open),
        None => {
            let class = inner.config.storage_class.as_deref();
            let options = PutMultipartOptions {
                attributes: attributes(upload.mime, class),
                ..PutMultipartOptions::default()
            };
            let lost = || inner.transport.lost_creations();
            UploadSession::begin(bucket, &key, upload.name, journal, part_size, options, lost)
                .await?
        }
    };
    session.send(first, pieces, &*upload.sent).await
}

/// Bytes in each part but the last, so that `size` bytes and a quarter more fit.
fn part_size(chunk: u64, size: u64) -> u64 {
    let needed = size.saturating_add(size / 4).div_ceil(MAX_PARTS);
    chunk.max(needed.next_multiple_of(MIB))
}

/// The upload to go on with, if a process died with it and the service still knows it.
async fn resumed(
    bucket: &Bucket,
    key: &Path,
    name: &str,
    wanted: u64,
    journal: Option<&Journal>,
) -> Result<Option<OpenUpload>> {
    // Only S3 can be asked whether it still knows one.
    let (Some(journal), Some(s3)) = (journal, &bucket.s3) else {
        return Ok(None);
    };
    while let Some(open) = journal.resume(name) {
        let Some(id) = open.id.clone() else {
            return Ok(None);
        };
        let usable = if open.part_size == wanted && !open.parts.is_empty() {
            s3.is_open(key, &id).await
        } else {
            Ok(false)
        };
        match usable {
            Ok(true) => return Ok(Some(open)),
            // Its parts are cut in another way, or there are none: to go on with it saves
            // nothing.
            Ok(false) => {
                let session = UploadSession::of(bucket, key, name, Some(journal), open);
                session.give_up().await?;
            }
            Err(error) => {
                journal.release(&id);
                return Err(bucket.asked.failed(&format!("uploading {name}"), &*error));
            }
        }
    }
    Ok(None)
}

fn release(journal: Option<&Journal>, open: Option<&OpenUpload>) {
    if let (Some(journal), Some(id)) = (journal, open.and_then(|open| open.id.as_ref())) {
        journal.release(id);
    }
}

/// The memory that pieces may take. A clone is the same one.
#[derive(Clone)]
pub(super) struct Memory {
    free: Arc<Semaphore>,
    bytes: u32,
}

impl Memory {
    pub(super) fn new(bytes: u32) -> Self {
        let free = Arc::new(Semaphore::new(bytes as usize));
        Memory { free, bytes }
    }

    /// Waits until there is room for `bytes`: for more than there ever is, until all else is gone.
    async fn reserve(&self, bytes: u64) -> Result<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).map_or(self.bytes, |bytes| bytes.min(self.bytes));
        let reserved = self.free.clone().acquire_many_owned(bytes).await;
        reserved.map_err(|e| Error::io("uploading", std::io::Error::other(e)))
    }
}

/// A piece of the body, as large as a part.
struct Piece {
    content: Vec<Bytes>,
    size: u64,
    /// Whether the body ends with it.
    last: bool,
    memory: OwnedSemaphorePermit,
}

/// The body in pieces.
struct BodyPieces {
    body: ByteStream,
    /// What came already and belongs to the next piece.
    rest: Bytes,
    part_size: u64,
    memory: Memory,
    ended: bool,
}

impl BodyPieces {
    fn new(body: ByteStream, part_size: u64, memory: Memory) -> Self {
        BodyPieces {
            body,
            rest: Bytes::new(),
            part_size,
            memory,
            ended: false,
        }
    }

    async fn next(&mut self) -> Result<Piece> {
        // All of it at once: waiting for more with a half-full piece in hand could last for ever.
        let memory = self.memory.reserve(self.part_size).await?;
        let (mut content, mut size) = (Vec::new(), 0);
        loop {
            let room = self.part_size - size;
            let taken = self.rest.split_to(self.rest.len().min(room as usize));
            size += taken.len() as u64;
            if !taken.is_empty() {
                content.push(taken);
            }
            if size == self.part_size && !self.rest.is_empty() {
                break;
            }
            // Whether a full piece is the last is known only when nothing follows.
            match self.body.next().await {
                Some(chunk) => self.rest = chunk?,
                None => {
                    self.ended = true;
                    break;
                }
            }
        }
        Ok(Piece {
            content,
            size,
            last: self.ended,
            memory,
        })
    }
}

/// An upload that the service knows. Unless it was completed or given up it is left for a later
/// process if there is a journal; without one it is given up.
struct UploadSession<'a> {
    bucket: &'a Bucket,
    key: &'a Path,
    name: &'a str,
    id: String,
    journal: Option<&'a Journal>,
    /// Parts that arrived before.
    before: BTreeMap<u32, UploadedPart>,
    ended: bool,
}

impl<'a> UploadSession<'a> {
    async fn begin(
        bucket: &'a Bucket,
        key: &'a Path,
        name: &'a str,
        journal: Option<&'a Journal>,
        part_size: u64,
        options: PutMultipartOptions,
        lost: impl Fn() -> u64,
    ) -> Result<Self> {
        let lost_before = lost();
        // On disk before the service is asked: if this process dies before the answer, another
        // one still knows to look for the upload and give it up.
        if let Some(journal) = journal {
            journal.note_intent(name, part_size);
        }
        let created = if bucket.uploads_last {
            bucket.multipart.create_multipart_opts(key, options).await
        } else {
            // Azure takes no attributes at the beginning.
            bucket.multipart.create_multipart(key).await
        };
        let id = created.map_err(|e| bucket.asked.failed(&format!("uploading {name}"), &e))?;
        let session = UploadSession {
            bucket,
            key,
            name,
            id,
            journal,
            before: BTreeMap::new(),
            ended: false,
        };
        if let Some(journal) = journal {
            if lost() != lost_before {
                // The note of what was begun takes the place of one intent. The other stays, so
                // that what may have been begun unheard is looked for and given up.
                journal.note_intent(name, part_size);
            }
            journal.note_begun(name, &session.id, part_size);
        }
        Ok(session)
    }

    fn of(
        bucket: &'a Bucket,
        key: &'a Path,
        name: &'a str,
        journal: Option<&'a Journal>,
        open: OpenUpload,
    ) -> Self {
        UploadSession {
            bucket,
            key,
            name,
            id: open.id.unwrap_or_default(),
            journal,
            before: open.parts,
            ended: false,
        }
    }

    /// `taken` is told how many bytes the service has.
    async fn send(self, first: Piece, pieces: BodyPieces, taken: &Taken) -> Result<()> {
        match self.send_parts(first, pieces, taken).await {
            Ok((parts, size)) => self.complete(parts, size).await,
            Err(UploadError::Body(error)) => {
                // What was wrong with the body is what matters.
                let _ = self.give_up().await;
                Err(error)
            }
            Err(UploadError::Service(error)) => {
                // With a journal it stays open: a later process goes on with the parts that
                // arrived.
                if self.journal.is_none() {
                    let _ = self.give_up().await;
                }
                Err(error)
            }
        }
    }

    /// The parts, in order, and how many bytes they are.
    async fn send_parts(
        &self,
        first: Piece,
        pieces: BodyPieces,
        taken: &Taken,
    ) -> Result<(Vec<PartId>, u64), UploadError> {
        let rest = futures::stream::unfold(Some(pieces), async |pieces| {
            let mut pieces: BodyPieces = pieces?;
            match pieces.next().await {
                Ok(piece) if piece.last => Some((Ok(piece), None)),
                Ok(piece) => Some((Ok(piece), Some(pieces))),
                Err(error) => Some((Err(error), None)),
            }
        });
        let rest = if first.last {
            futures::stream::empty().boxed()
        } else {
            rest.boxed()
        };
        let pieces = futures::stream::iter([Ok(first)]).chain(rest).boxed();
        let sent = pieces
            .enumerate()
            .map(|(number, piece)| self.send_piece(number, piece));
        let mut all = 0;
        let sent = sent.buffer_unordered(PARALLEL).inspect_ok(|(.., size)| {
            all += size;
            taken(all);
        });
        let mut parts: Vec<_> = sent.try_collect().await?;
        parts.sort_by_key(|(number, ..)| *number);
        let size = parts.iter().map(|(.., size)| size).sum();
        Ok((parts.into_iter().map(|(_, part, _)| part).collect(), size))
    }

    fn send_piece(
        &self,
        number: usize,
        piece: Result<Piece>,
    ) -> BoxFuture<'_, Result<(u32, PartId, u64), UploadError>> {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        async move {
            let piece = piece.map_err(UploadError::Body)?;
            let size = piece.size;
            let part = self
                .send_part(number, piece)
                .await
                .map_err(UploadError::Service)?;
            Ok((number, part, size))
        }
        .boxed()
    }

    async fn send_part(&self, number: u32, piece: Piece) -> Result<PartId> {
        if u64::from(number) >= MAX_PARTS {
            let words = format!("{} became larger than {MAX_PARTS} parts hold", self.name);
            return Err(Error::invalid(words));
        }
        let Piece {
            content,
            size,
            memory,
            ..
        } = piece;
        let sha256 = match self.journal {
            Some(_) => Some(digest(content.clone()).await?),
            None => None,
        };
        if let (Some(sha256), Some(part)) = (&sha256, self.before.get(&number))
            && part.size == size
            && part.sha256 == *sha256
        {
            let content_id = part.etag.clone();
            return Ok(PartId { content_id });
        }
        let payload = PutPayload::from_iter(content);
        let sent = self
            .bucket
            .multipart
            .put_part(self.key, &self.id, number as usize, payload);
        let sent = sent.await.map_err(|e| self.failed(&e))?;
        // The service has the bytes, so other parts may take their room.
        drop(memory);
        if let (Some(journal), Some(sha256)) = (self.journal, sha256) {
            let part = UploadedPart {
                etag: sent.content_id.clone(),
                size,
                sha256,
            };
            journal.note_part(self.name, &self.id, number, &part);
        }
        Ok(sent)
    }

    async fn complete(mut self, parts: Vec<PartId>, size: u64) -> Result<()> {
        let completed = self
            .bucket
            .multipart
            .complete_multipart(self.key, &self.id, parts)
            .await;
        let error = match completed {
            Ok(_) => {
                self.note_ended();
                return Ok(());
            }
            Err(error) => error,
        };
        // It may have been completed, and only the answer been lost. Where a process was killed
        // while it waited for that answer, Ceph calls the upload a key that is not there.
        let gone = |refusal: &Refusal| refusal.is("NoSuchUpload") || refusal.is("NoSuchKey");
        if Refusal::of(&error).is_some_and(gone) {
            let options = GetOptions {
                head: true,
                ..GetOptions::default()
            };
            let there = self.bucket.store.get_opts(self.key, options).await;
            self.note_ended();
            if there.is_ok_and(|object| object.meta.size == size) {
                return Ok(());
            }
            return Err(self.failed(&error));
        }
        let error = self.failed(&error);
        if self.journal.is_none() {
            let _ = self.give_up().await;
        }
        Err(error)
    }

    async fn give_up(mut self) -> Result<()> {
        abort(self.bucket, self.key, self.name, &self.id).await?;
        self.note_ended();
        Ok(())
    }

    fn note_ended(&mut self) {
        self.ended = true;
        if let Some(journal) = self.journal {
            journal.note_ended(self.name, Some(&self.id));
        }
    }

    fn failed(&self, error: &object_store::Error) -> Error {
        self.bucket
            .asked
            .failed(&format!("uploading {}", self.name), error)
    }
}

impl Drop for UploadSession<'_> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if let Some(journal) = self.journal {
            return journal.release(&self.id);
        }
        // Nobody waits for the end any more, and nobody will know of it later.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let multipart: Arc<dyn MultipartStore> = self.bucket.multipart.clone();
            let (key, id) = (self.key.clone(), self.id.clone());
            runtime.spawn(async move { multipart.abort_multipart(&key, &id).await });
        }
    }
}

/// Gives up an upload. That it is not there is no error.
pub(super) async fn abort(bucket: &Bucket, key: &Path, name: &str, id: &str) -> Result<()> {
    match bucket.multipart.abort_multipart(key, &id.to_owned()).await {
        Ok(()) => Ok(()),
        Err(error) => match Refusal::of(&error) {
            Some(refusal) if refusal.is("NoSuchUpload") || refusal.is_absent() => Ok(()),
            _ => Err(bucket
                .asked
                .failed(&format!("giving up an upload of {name}"), &error)),
        },
    }
}

/// Who is at fault.
enum UploadError {
    Body(Error),
    Service(Error),
}

async fn digest(content: Vec<Bytes>) -> Result<Hash> {
    blocking(move || {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        content.iter().for_each(|chunk| hasher.update(chunk));
        Ok(hasher.finish())
    })
    .await
}

/// Who is told of what the service has.
type Taken = dyn Fn(u64) + Send + Sync;

/// Parts that S3 takes.
const MAX_PARTS: u64 = 10_000;

/// Parts of one object under way at once.
const PARALLEL: usize = 4;

const MIB: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    /// Also a part that is larger than what is there for all of them.
    #[tokio::test]
    async fn pieces_reserve_what_they_take() {
        for (part_size, reserved) in [(10, 10), (90, 90), (100, 100), (1 << 40, 100)] {
            let memory = Memory::new(100);
            let body = futures::stream::iter([Ok(Bytes::from_static(&[0; 40]))]).boxed();
            let mut pieces = BodyPieces::new(body, part_size, memory.clone());
            let piece = pieces.next().await.unwrap();
            assert_eq!(piece.size, part_size.min(40));
            assert_eq!(memory.free.available_permits(), 100 - reserved);
            drop(piece);
            assert_eq!(memory.free.available_permits(), 100);
        }
    }
}
