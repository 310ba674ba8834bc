use super::DaemonStore;
use crate::worker::ops::{
    AddSignatures as Sign, AddTextToStore, AddToStore, AddedContent, Data, Request,
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Seek, SeekFrom, Write},
    sync::{Arc, Mutex, PoisonError},
};
use tk_nar::{Decoder, Event};
use tk_narinfo::{PathInfo, Signature};
use tk_path::{Algorithm, Method, MethodAlgorithm, References, StorePath};
use tk_store::{
    AddContent, AddSignatures, ContentHasher, Error, NarStream, Result, SigCheck, StoreExt, nar,
};
use tokio::task::spawn_blocking;

#[async_trait]
impl AddContent for DaemonStore {
    async fn add_content(
        &self,
        name: &str,
        method: Method,
        algorithm: Algorithm,
        references: &References,
        nar: NarStream,
    ) -> Result<PathInfo> {
        if references.itself {
            return Err(Error::invalid(format!(
                "{name} cannot be added by its content: it refers to itself"
            )));
        }
        let hasher = ContentHasher::new(method, algorithm)?;
        let mut nar = nar;
        if matches!(method, Method::Flat | Method::Text) {
            let (executable, whole) = look_at_start(nar).await?;
            // What goes over as plain bytes is no longer executable.
            if executable {
                return self.add_spooled(name, hasher, references, whole).await;
            }
            nar = whole;
        }
        let (dir, own_name, own_references) =
            (self.config.dir.clone(), name.to_owned(), references.clone());
        let finish = move |hasher: ContentHasher| hasher.finish(&dir, &own_name, &own_references);
        let made = Made::default();
        let nar = hashed(nar, hasher, finish, made.clone());
        let mut connection = self.connection().await?;
        let framed = AddToStore::data(connection.protocol()) == Data::Framed;
        let added = match (method, framed) {
            (Method::Text, false) => {
                let text = flat(nar).try_fold(BytesMut::new(), collect).await?;
                let request = AddTextToStore {
                    name: name.to_owned(),
                    text: text.freeze(),
                    references: references.others.clone(),
                };
                AddedContent::Path(connection.call(&request, self.log()).await?)
            }
            _ => {
                let request = AddToStore {
                    name: name.to_owned(),
                    method: MethodAlgorithm { method, algorithm },
                    references: references.others.clone(),
                    repair: false,
                };
                let data = match (method, framed) {
                    (Method::Flat | Method::Text, true) => flat(nar),
                    _ => nar,
                };
                connection.upload(&request, data, self.log()).await?
            }
        };
        drop(connection);
        let made = made.lock().unwrap_or_else(PoisonError::into_inner).take();
        let expected = made
            .ok_or_else(|| Error::invalid(format!("{self} did not wait for the end of {name}")))?;
        let info = match added {
            AddedContent::Info(info) => info,
            AddedContent::Path(path) => self.require_info(&path).await?,
        };
        // A file that is there already may be executable under the same path.
        let plain = matches!(method, Method::Flat | Method::Text);
        if info.path == expected.path && (plain || info.nar_hash == expected.nar_hash) {
            return Ok(info);
        }
        Err(Error::Mismatch {
            what: "path",
            path: expected.path.clone(),
            from: self.to_string(),
            expected: expected.path.to_string(),
            actual: info.path.to_string(),
        })
    }
}

impl DaemonStore {
    /// Adds content with its NAR, where the daemon would not make the right one; which path that is has
    /// to be known first.
    async fn add_spooled(
        &self,
        name: &str,
        mut hasher: ContentHasher,
        references: &References,
        mut nar: NarStream,
    ) -> Result<PathInfo> {
        let keeping = |e| Error::io("keeping what is to be added in a temporary file", e);
        let mut file = tempfile::tempfile().map_err(keeping)?;
        while let Some(chunk) = nar.next().await {
            let chunk = chunk?;
            hasher.update(&chunk)?;
            let write = move || file.write_all(&chunk).map(|()| file);
            let written = spawn_blocking(write).await.map_err(io::Error::other);
            file = written.and_then(|file| file).map_err(keeping)?;
        }
        let info = hasher.finish(&self.config.dir, name, references)?;
        let known = StoreExt::info(self, &info.path).await?;
        // As elsewhere: what is there is not written again.
        if let Some(known) = known {
            return Ok(known);
        }
        let nar = nar::produce(move |send| {
            file.seek(SeekFrom::Start(0)).map_err(keeping)?;
            loop {
                let mut piece = vec![0; PIECE];
                let n = file.read(&mut piece).map_err(keeping)?;
                piece.truncate(n);
                if n == 0 || !send(piece.into()) {
                    return Ok(());
                }
            }
        });
        self.add_one(info.clone(), nar, &SigCheck::Skip.into())
            .await?;
        self.require_info(&info.path).await
    }
}

#[async_trait]
impl AddSignatures for DaemonStore {
    /// Requests are written ahead, on one connection.
    async fn add_all_signatures(
        &self,
        signatures: BTreeMap<StorePath, BTreeSet<Signature>>,
    ) -> Vec<(StorePath, Result<()>)> {
        let paths: Vec<_> = signatures.keys().cloned().collect();
        let mut connection = match self.connection().await {
            Ok(connection) => connection,
            Err(error) => return error.for_each(paths),
        };
        let requests = signatures.into_iter().map(|(path, signatures)| {
            let request = Sign {
                path: path.clone(),
                signatures,
            };
            (path, request)
        });
        let mut results = Vec::with_capacity(paths.len());
        let answered = |path, answer: Result<_>| results.push((path, answer.map(drop)));
        let requests = stream::iter(requests.collect::<Vec<_>>());
        let sent = connection.pipeline(requests, self.log(), answered).await;
        drop(connection);
        if let Err(error) = sent {
            let unanswered = paths[results.len()..].to_vec();
            results.extend(error.for_each(unanswered));
        }
        self.tell_absent(&mut results).await;
        results
    }
}

/// What the content turned out to be, once all of it has passed.
type Made = Arc<Mutex<Option<PathInfo>>>;

/// `nar`, hashed while it passes. That it is complete is known before its receiver hears of its
/// end.
fn hashed(
    nar: NarStream,
    hasher: ContentHasher,
    finish: impl FnOnce(ContentHasher) -> Result<PathInfo> + Send + 'static,
    made: Made,
) -> NarStream {
    let next = |(mut nar, mut hasher, finish, made): (NarStream, ContentHasher, _, Made)| async {
        match nar.next().await {
            Some(chunk) => {
                let chunk = chunk?;
                hasher.update(&chunk)?;
                Ok(Some((chunk, (nar, hasher, finish, made))))
            }
            None => {
                let finish: Box<dyn FnOnce(_) -> _ + Send> = finish;
                let info = finish(hasher)?;
                *made.lock().unwrap_or_else(PoisonError::into_inner) = Some(info);
                Ok(None)
            }
        }
    };
    let finish: Box<dyn FnOnce(ContentHasher) -> Result<PathInfo> + Send> = Box::new(finish);
    stream::try_unfold((nar, hasher, finish, made), next).boxed()
}

/// Whether `nar` is that of an executable file, and all of it again.
async fn look_at_start(mut nar: NarStream) -> Result<(bool, NarStream)> {
    let (mut decoder, mut seen, mut first) = (Decoder::new(), Vec::new(), None);
    while first.is_none()
        && let Some(chunk) = nar.next().await
    {
        let chunk = chunk?;
        let mut rest = &chunk[..];
        while first.is_none() && !rest.is_empty() {
            let fed = decoder.feed(rest).map_err(malformed)?;
            rest = &rest[fed.consumed..];
            first = fed.event.map(|event| {
                matches!(
                    event,
                    Event::Regular {
                        executable: true,
                        ..
                    }
                )
            });
        }
        seen.push(Ok(chunk));
    }
    let whole = stream::iter(seen).chain(nar).boxed();
    Ok((first == Some(true), whole))
}

/// The contents of the single file that `nar` is.
fn flat(nar: NarStream) -> NarStream {
    let contents = |decoder: &mut Decoder, chunk: Result<Bytes>| {
        let chunk = chunk?;
        let (mut contents, mut rest) = (BytesMut::new(), &chunk[..]);
        loop {
            let fed = decoder.feed(rest).map_err(malformed)?;
            rest = &rest[fed.consumed..];
            match fed.event {
                Some(Event::Contents(piece)) => contents.extend_from_slice(piece),
                Some(_) => {}
                None => return Ok(contents.freeze()),
            }
        }
    };
    let pieces = nar.scan(Decoder::new(), move |decoder, chunk| {
        std::future::ready(Some(contents(decoder, chunk)))
    });
    let some = |piece: &Result<Bytes>| !matches!(piece, Ok(bytes) if bytes.is_empty());
    pieces
        .filter(move |piece| std::future::ready(some(piece)))
        .boxed()
}

async fn collect(mut text: BytesMut, chunk: Bytes) -> Result<BytesMut> {
    if text.len() + chunk.len() > MAX_TEXT {
        return Err(Error::invalid(format!(
            "a text of more than {MAX_TEXT} bytes is too long for so old a daemon"
        )));
    }
    text.extend_from_slice(&chunk);
    Ok(text)
}

fn malformed(error: tk_nar::NarError) -> Error {
    Error::malformed("the NAR of the content to add", error)
}

/// Bytes read in one go.
const PIECE: usize = 64 << 10;
/// In bytes: what is sent as a string, where there is no other way.
const MAX_TEXT: usize = 64 << 20;
