//! Data on its way into the store. One pass: what comes from the client goes on in a channel, which
//! the store reads; a store that does not want the rest does not stop the reading, since the next
//! request stands behind it.

use super::{
    context::{OperationContext, OperationFailure, OperationResult, refused},
    spool::ByteSpool,
};
use crate::{
    wire::{FramedRead, NarRead, WireError, WireReader, Writer},
    worker::{WorkerProtocol, log::Message, ops::AddMultipleToStore},
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future::join, stream};
use std::io;
use tk_nar::Decoder;
use tk_narinfo::PathInfo;
use tk_path::{MethodAlgorithm, References, StorePath};
use tk_store::{AddItem, Error, NarStream, Result, StoreExt};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};

/// Where data comes from, whatever is around it.
pub(super) trait DataSource: Send {
    /// The next bytes; `None` at the end.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, WireError>> + Send;

    /// Passes over the rest.
    fn drain(&mut self) -> impl Future<Output = Result<(), WireError>> + Send;
}

impl<R: AsyncRead + Unpin + Send> DataSource for FramedRead<&mut WireReader<R, WorkerProtocol>> {
    async fn next(&mut self) -> Result<Option<Bytes>, WireError> {
        self.next_chunk().await
    }

    async fn drain(&mut self) -> Result<(), WireError> {
        FramedRead::drain(self).await.map(drop)
    }
}

impl<R: AsyncRead + Unpin + Send> DataSource for NarRead<&mut WireReader<R, WorkerProtocol>> {
    async fn next(&mut self) -> Result<Option<Bytes>, WireError> {
        self.next_chunk().await
    }

    async fn drain(&mut self) -> Result<(), WireError> {
        NarRead::drain(self).await
    }
}

/// What came with the request.
pub(super) struct WholeRequest(pub Option<Bytes>);

impl DataSource for WholeRequest {
    async fn next(&mut self) -> Result<Option<Bytes>, WireError> {
        Ok(self.0.take())
    }

    async fn drain(&mut self) -> Result<(), WireError> {
        Ok(())
    }
}

/// A NAR that the client sends piece by piece, when it is asked to.
pub(super) struct PulledRead<'a, R, W> {
    reader: &'a mut WireReader<R, WorkerProtocol>,
    output: &'a mut W,
    writer: &'a mut Writer<WorkerProtocol>,
    decoder: Decoder,
}

impl<'a, R, W> PulledRead<'a, R, W> {
    pub fn new(
        reader: &'a mut WireReader<R, WorkerProtocol>,
        output: &'a mut W,
        writer: &'a mut Writer<WorkerProtocol>,
    ) -> Self {
        PulledRead {
            reader,
            output,
            writer,
            decoder: Decoder::new(),
        }
    }
}

impl<R, W> DataSource for PulledRead<'_, R, W>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    async fn next(&mut self) -> Result<Option<Bytes>, WireError> {
        if self.decoder.is_done() {
            return Ok(None);
        }
        self.writer.value(&Message::Read(PULL))?;
        self.output.write_all(&self.writer.take()).await?;
        self.output.flush().await?;
        self.reader.begin_message();
        let piece = self.reader.bytes().await?;
        if piece.is_empty() {
            return Err(self.reader.malformed("the end of the data within a NAR"));
        }
        let mut rest = &piece[..];
        loop {
            let fed = self
                .decoder
                .feed(rest)
                .map_err(|e| self.reader.malformed(e))?;
            rest = &rest[fed.consumed..];
            match fed.event {
                Some(_) => {}
                None if rest.is_empty() => return Ok(Some(piece)),
                None => return Err(self.reader.malformed("data behind the end of a NAR")),
            }
        }
    }

    /// What is not asked for does not come.
    async fn drain(&mut self) -> Result<(), WireError> {
        Ok(())
    }
}

impl OperationContext {
    /// Adds content under the name that it makes. The data is that of a file if it is `plain`, or
    /// else a NAR.
    pub async fn add_content(
        &self,
        data: impl DataSource,
        (name, how, references): (&str, MethodAlgorithm, &References),
        plain: bool,
        repair: bool,
    ) -> OperationResult<PathInfo> {
        if repair {
            return skip(data, no_repair()).await;
        }
        let ability = &self.abilities.content;
        let store = match self.able(ability, "takes store paths only, no files to be named") {
            Ok(store) => store,
            Err(refusal) => return skip(data, refusal).await,
        };
        let (method, algorithm) = (how.method, how.algorithm);
        let add = |nar| store.add_content(name, method, algorithm, references, nar);
        if plain {
            Ok(add(self.spool(data).await?).await?)
        } else {
            piped(data, add).await
        }
    }

    /// Reads plain bytes to their end: a NAR begins with their length.
    async fn spool(&self, mut data: impl DataSource) -> OperationResult<NarStream> {
        let mut spool = ByteSpool::new();
        while let Some(bytes) = data.next().await? {
            if let Err(error) = spool.push(bytes, &self.config.spool).await {
                return skip(data, error.into()).await;
            }
        }
        Ok(spool.into_nar())
    }

    /// Adds one path with its metadata.
    pub async fn add_path(
        &self,
        data: impl DataSource,
        mut info: PathInfo,
        repair: bool,
        skip_signatures: bool,
    ) -> OperationResult<()> {
        let options = match self.adding(repair, skip_signatures) {
            Ok(options) => options,
            Err(refusal) => return skip(data, refusal).await,
        };
        info.ultimate &= self.trusted;
        self.bound_signatures(&mut info);
        let store = &self.abilities.store;
        piped(data, |nar| store.add_one(info, nar, &options)).await
    }

    /// Adds many paths, which come one after the other in one framed stream.
    pub async fn add_paths<R: AsyncRead + Unpin + Send>(
        &self,
        reader: &mut WireReader<R, WorkerProtocol>,
        repair: bool,
        skip_signatures: bool,
    ) -> OperationResult<()> {
        let options = match self.adding(repair, skip_signatures) {
            Ok(options) => options,
            Err(refusal) => return skip(FramedRead::new(reader), refusal).await,
        };
        let (send, receive) = mpsc::channel(1);
        let received = received(receive).map_ok(|(mut info, nar): AddItem| {
            self.bound_signatures(&mut info);
            (info, nar)
        });
        let add = self.abilities.store.add(received.boxed(), &options);
        let (read, added) = join(read_paths(reader, send), add).await;
        if let Some(error) = read? {
            return Err(error.into());
        }
        let mut failed = added?.failed;
        let others = failed.len().saturating_sub(1);
        match failed.drain(..).next() {
            None => Ok(()),
            Some((_, error)) if others == 0 => Err(error.into()),
            Some((_, error)) => Err(refused(format!(
                "{}; {others} more paths were not added",
                error.to_line()
            ))),
        }
    }

    /// Keeps the log of a build.
    pub async fn add_build_log(
        &self,
        data: impl DataSource,
        drv: &StorePath,
    ) -> OperationResult<()> {
        let logs = self
            .require_trust("adding a build log")
            .and_then(|()| self.able(&self.abilities.logs, "keeps no build logs"));
        match logs {
            Err(refusal) => skip(data, refusal).await,
            Ok(logs) => piped(data, |log| logs.add_build_log(drv, log)).await,
        }
    }
}

/// Reads what nobody wants, and refuses.
pub(super) async fn skip<T>(
    mut data: impl DataSource,
    refusal: OperationFailure,
) -> OperationResult<T> {
    data.drain().await?;
    Err(refusal)
}

/// Gives the data to `take` while it comes.
async fn piped<T, F: Future<Output = Result<T>>>(
    data: impl DataSource,
    take: impl FnOnce(NarStream) -> F,
) -> OperationResult<T> {
    let (send, receive) = mpsc::channel(WINDOW);
    let (read, taken) = join(feed(data, send), take(received(receive))).await;
    read?;
    Ok(taken?)
}

/// Sends the data on, as long as somebody listens, and reads it to its end in any case.
async fn feed(mut data: impl DataSource, to: mpsc::Sender<Result<Bytes>>) -> Result<(), WireError> {
    loop {
        match data.next().await {
            Ok(None) => return Ok(()),
            Ok(Some(bytes)) => {
                if to.send(Ok(bytes)).await.is_err() {
                    return data.drain().await;
                }
            }
            Err(error) => {
                // Or the store would take it for the end.
                let _ = to.send(Err(cut())).await;
                return Err(error);
            }
        }
    }
}

/// Takes paths apart and sends them on. The stream is read to its end, unless the connection
/// breaks; what is wrong *in* the stream is the second result.
async fn read_paths<R: AsyncRead + Unpin + Send>(
    reader: &mut WireReader<R, WorkerProtocol>,
    to: mpsc::Sender<Result<AddItem>>,
) -> Result<Option<Error>, WireError> {
    let protocol = AddMultipleToStore::item_protocol(reader.protocol());
    let (limits, admission) = (reader.limits(), reader.admission());
    let framed = FramedRead::new(reader);
    let inner = WireReader::new(framed, protocol).with_limits(limits);
    let mut inner = inner.with_admission(admission);
    let read = read_items(&mut inner, &to).await;
    if read.is_err() {
        let _ = to.send(Err(cut())).await;
    }
    drop(to);
    let (mut framed, rest) = inner.into_parts();
    if let Err(WireError::Io(error)) = read {
        // Not what is in the stream but the stream is broken.
        return Err(WireError::Io(error));
    }
    let more = framed.drain().await? > 0 || !rest.is_empty();
    let wrong = match read {
        Ok(All::Sent) if more => Some("it goes on behind the last path".to_owned()),
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    };
    Ok(wrong.map(|why| Error::malformed("the stream of paths", why)))
}

async fn read_items<D: AsyncRead + Unpin + Send>(
    inner: &mut WireReader<D, WorkerProtocol>,
    to: &mpsc::Sender<Result<AddItem>>,
) -> Result<All, WireError> {
    let count = inner.u64().await?;
    for _ in 0..count {
        let mut info: PathInfo = inner.message().await?;
        // As Nix: who built it is not for the client to say here.
        info.ultimate = false;
        let (send, receive) = mpsc::channel(WINDOW);
        if to.send(Ok((info, received(receive)))).await.is_err() {
            return Ok(All::Unwanted);
        }
        feed(NarRead::new(&mut *inner), send).await?;
    }
    Ok(All::Sent)
}

/// What became of the paths in a stream.
enum All {
    Sent,
    /// The store has given up; the rest is passed over as a whole.
    Unwanted,
}

/// The receiving end as a stream.
fn received<T: Send + 'static>(receive: mpsc::Receiver<T>) -> stream::BoxStream<'static, T> {
    stream::unfold(receive, |mut receive| async {
        receive.recv().await.map(|item| (item, receive))
    })
    .boxed()
}

fn cut() -> Error {
    let why = "the client's data broke off";
    Error::io(
        "receiving",
        io::Error::new(io::ErrorKind::UnexpectedEof, why),
    )
}

fn no_repair() -> OperationFailure {
    refused("cannot repair: a path that is there is left as it is (without --repair)")
}

/// How much to ask for at once, in bytes.
const PULL: u64 = 64 << 10;
/// Chunks that may wait for the store, of at most 64 KiB each.
const WINDOW: usize = 4;
