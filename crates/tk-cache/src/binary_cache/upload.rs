//! Paths into the cache.
//!
//! Packing (on blocking threads, as many as there are processors) and sending (many at once) are
//! bounded apart from each other: a NAR that is packed whole leaves its packer to the next while it
//! is sent. One that is too large for that is sent while it is packed.

use super::{
    CacheInner,
    add::{AddFailure, Uploaded},
    staged, take,
};
use crate::{
    blocking,
    journal::ArrivedNar,
    layout,
    objects::Upload,
    pack::{PackSummary, Unpacked, narinfo, no_listing, pack},
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::{
    io::{self, Write},
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tk_narinfo::PathInfo;
use tk_path::StorePath;
use tk_store::{
    AddOptions, ByteStream, Error, Existing, NarStream, Result, nar::BlockingNar,
    progress::Progress,
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    task::JoinHandle,
};

impl CacheInner {
    /// NARs that are uploaded at once.
    pub(crate) fn uploads(&self) -> usize {
        match self.objects.staging() {
            Some(_) => self.config.jobs.get(),
            None => self.config.uploads.get(),
        }
    }

    /// Narinfos that are written with one call, and such calls at once.
    pub(crate) fn publishing(&self) -> (usize, usize) {
        match self.objects.batch() {
            1 => (1, self.objects.parallel()),
            // The more come together, the fewer calls there are.
            _ => (usize::MAX, 1),
        }
    }

    /// Puts `nar` into the cache, if it is what `info` says. Its narinfo is not written. What is
    /// there of the NAR is not relied on with [`Existing::Replace`].
    pub(crate) async fn upload(
        self: Arc<Self>,
        info: PathInfo,
        nar: NarStream,
        options: AddOptions,
    ) -> Result<Uploaded, AddFailure> {
        if let Some(staging) = self.objects.staging() {
            return staged::upload(self, staging, info, nar, options).await;
        }
        let size = (info.nar_size != 0).then_some(info.nar_size);
        let encoding = self.compressor.encoding(size);
        let url = layout::nar(&info.nar_hash, self.config.compression, &encoding);
        let arriving = Arriving::new(options.progress);
        let nar_size = info.nar_size;
        let replace = options.existing == Existing::Replace;
        let uploaded = match self.arrived(&url, replace).await? {
            Some(arrived) => self.described(info, url, &arrived, 0),
            None => CacheInner::send(&self, info, nar, url, &arriving).await,
        }?;
        arriving.tell(nar_size);
        Ok(uploaded)
    }

    /// Writes narinfos; one result for each, in order.
    pub(crate) async fn publish(
        self: Arc<Self>,
        narinfos: Vec<(StorePath, String)>,
    ) -> Vec<(StorePath, Result<()>)> {
        let (paths, texts): (Vec<_>, Vec<_>) = narinfos.into_iter().unzip();
        let parts: Vec<_> = paths.iter().map(StorePath::to_hash_part).collect();
        let names = parts.iter().map(layout::narinfo);
        let objects = names.zip(texts.into_iter().map(Bytes::from)).collect();
        let written = self.objects.write_each(objects).await;
        self.forget(parts).await;
        paths.into_iter().zip(written).collect()
    }

    /// What is known of the NAR `url` if all of it is there already, from an earlier push.
    async fn arrived(&self, url: &str, replace: bool) -> Result<Option<ArrivedNar>, AddFailure> {
        let Some(arrived) = self.journal().and_then(|journal| journal.arrived(url)) else {
            return Ok(None);
        };
        if replace {
            return Ok(None);
        }
        // Somebody may have removed it since.
        let there = self.objects.look(url).await.map_err(AddFailure::Cache)?;
        let size = |look: crate::objects::ObjectMeta| look.size.unwrap_or(arrived.file_size);
        Ok((there.map(size) == Some(arrived.file_size)).then_some(arrived))
    }

    /// Packs and sends the NAR, and what goes beside it.
    async fn send(
        this: &Arc<Self>,
        info: PathInfo,
        nar: NarStream,
        url: String,
        arriving: &Arc<Arriving>,
    ) -> Result<Uploaded, AddFailure> {
        let nar = arriving.watch(nar);
        let mut packing = Packing::start(this, info.clone(), nar, arriving.clone()).await;
        let begin = packing.begin().await;
        let sent = if packing.is_complete() {
            // What it was packed with is free for the next.
            let mime = layout::mime_type(&url);
            let packed = packing.finish().await?;
            let sent = this.objects.write(&url, begin.concat(), mime, false).await;
            sent.map(|_| packed)
        } else {
            this.send_large(&info, &url, begin, packing, arriving)
                .await?
        };
        let packed = sent.map_err(AddFailure::Cache)?;
        let companions = this.companions(&info, &url, &packed);
        this.send_companions(companions).await?;
        let arrived = ArrivedNar {
            file_hash: packed.hash(&info),
            file_size: packed.size,
            nar_size: packed.nar_size,
        };
        this.note(&url, &arrived).await.map_err(AddFailure::Cache)?;
        this.described(info, url, &arrived, packed.size)
    }

    /// The packer's error comes first: the other side only saw that something broke off.
    async fn send_large(
        &self,
        info: &PathInfo,
        url: &str,
        begin: PackedChunks,
        mut packing: Packing,
        arriving: &Arc<Arriving>,
    ) -> Result<Result<PackSummary>, AddFailure> {
        let journal = self.journal();
        let taken = arriving.clone();
        let upload = Upload {
            name: url,
            mime: layout::mime_type(url),
            body: packing.body(begin),
            size_hint: info.nar_size,
            journal: journal.as_deref(),
            sent: Arc::new(move |bytes| taken.sent(bytes)),
        };
        let sent = self.objects.upload(upload).await;
        match (packing.finish().await, sent) {
            (Ok(packed), sent) => Ok(sent.map(|()| packed)),
            // It only noticed that nobody takes its output any more.
            (Err(AddFailure::Cache(_)), Err(error)) => Ok(Err(error)),
            (Err(failure), _) => Err(failure),
        }
    }

    /// What goes beside the NAR of `info`: names and contents.
    pub(super) fn companions(
        &self,
        info: &PathInfo,
        url: &str,
        packed: &PackSummary,
    ) -> Vec<(String, String)> {
        let wanted = (self.config.write_listing, self.config.index_debug_info);
        let skipped = || self.config.warnings.tell(|| no_listing(info, self));
        packed.companions(info, url, wanted, skipped)
    }

    pub(super) async fn send_companions(
        &self,
        objects: Vec<(String, String)>,
    ) -> Result<(), AddFailure> {
        let write = |(name, content): (String, String)| async move {
            let mime = layout::mime_type(&name);
            self.objects.write(&name, content.into(), mime, false).await
        };
        let mut writes = stream::iter(objects.into_iter().map(write)).buffer_unordered(COMPANIONS);
        while let Some(written) = writes.next().await {
            written.map_err(AddFailure::Cache)?;
        }
        Ok(())
    }

    async fn note(&self, url: &str, arrived: &ArrivedNar) -> Result<()> {
        let Some(journal) = self.journal() else {
            return Ok(());
        };
        let (url, arrived) = (url.to_owned(), arrived.clone());
        blocking(move || {
            journal.note_arrived(&url, &arrived);
            Ok(())
        })
        .await
    }

    pub(super) fn described(
        &self,
        mut info: PathInfo,
        url: String,
        arrived: &ArrivedNar,
        written: u64,
    ) -> Result<Uploaded, AddFailure> {
        let config = &self.config;
        info.nar_size = arrived.nar_size;
        let file = (arrived.file_hash, arrived.file_size);
        let (dir, keys) = (&config.store_dir, &config.sign);
        let narinfo = narinfo(dir, info, url, config.compression, file, keys)?;
        Ok(Uploaded { narinfo, written })
    }
}

/// A NAR that is being packed on a thread of its own.
struct Packing {
    chunks: Option<mpsc::Receiver<Bytes>>,
    /// Whether the packer has ended.
    ended: bool,
    work: JoinHandle<Result<Result<PackSummary, AddFailure>>>,
    /// For what is packed and not sent yet.
    _room: OwnedSemaphorePermit,
}

impl Packing {
    /// Waits until there is a thread and memory for it.
    async fn start(
        cache: &Arc<CacheInner>,
        info: PathInfo,
        nar: NarStream,
        arriving: Arc<Arriving>,
    ) -> Self {
        let size = (info.nar_size != 0).then_some(info.nar_size);
        let room = size.map_or(WHOLE, |size| (size as usize).clamp(CHUNK, WHOLE));
        // What was packed and waits for the network goes first: it needs nothing more to end.
        let room = take(&cache.packed_memory, (room >> 10) as u32).await;
        let packer = take(&cache.free_packers, 1).await;
        let memory = cache.encoder_room(size).await;
        let (sender, chunks) = mpsc::channel(WINDOW);
        let (pool, cache) = (cache.clone(), cache.clone());
        let nar = BlockingNar::new(nar);
        let pack = move || {
            let _permits = (packer, memory);
            let sink = PackSink {
                filling: Vec::new(),
                sender,
                arriving,
            };
            let config = &cache.config;
            let list = config.write_listing || config.index_debug_info;
            let broken = |e| {
                let doing = format!("sending the NAR of {} to {cache}", info.path);
                AddFailure::Cache(Error::io(doing, e))
            };
            let nar = Unpacked::of(&info, nar);
            let (sink, check, packed) = pack(&cache.compressor, nar, list, sink, broken)?;
            check.finish().map_err(AddFailure::Item)?;
            sink.finish().map_err(broken)?;
            Ok(packed)
        };
        // A task, so that it begins at once, and ends when nobody takes what it packs.
        let work = tokio::spawn(async move { pool.packers.run(pack).await });
        Packing {
            chunks: Some(chunks),
            ended: false,
            work,
            _room: room,
        }
    }

    /// All of a small NAR, or the first part of a large one.
    async fn begin(&mut self) -> PackedChunks {
        let mut begin = PackedChunks::default();
        while let Some(chunks) = &mut self.chunks
            && begin.size < WHOLE
        {
            match chunks.recv().await {
                Some(chunk) if !chunk.is_empty() => begin.push(chunk),
                // It is packed, or failed: its result says which.
                _ => {
                    self.ended = true;
                    break;
                }
            }
        }
        begin
    }

    fn is_complete(&self) -> bool {
        self.ended
    }

    /// All of the NAR, as it comes. It ends with an error if the packer failed.
    fn body(&mut self, begin: PackedChunks) -> ByteStream {
        let chunks = self.chunks.take();
        let rest = stream::unfold(chunks, |chunks| async move {
            let mut chunks = chunks?;
            match chunks.recv().await {
                Some(chunk) if chunk.is_empty() => None,
                Some(chunk) => Some((Ok(chunk), Some(chunks))),
                None => Some((Err(broke_off()), None)),
            }
        });
        stream::iter(begin.chunks.into_iter().map(Ok))
            .chain(rest)
            .boxed()
    }

    async fn finish(self) -> Result<PackSummary, AddFailure> {
        drop(self.chunks);
        match self.work.await {
            Ok(result) => result.unwrap_or_else(|error| Err(AddFailure::Item(error))),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => {
                let error = io::Error::other(error);
                Err(AddFailure::Item(Error::io("waiting for a thread", error)))
            }
        }
    }
}

fn broke_off() -> Error {
    Error::io("packing a NAR", io::ErrorKind::UnexpectedEof)
}

/// Pieces of a packed NAR in their order, with the sum of their sizes.
#[derive(Default)]
struct PackedChunks {
    chunks: Vec<Bytes>,
    size: usize,
}

impl PackedChunks {
    fn push(&mut self, chunk: Bytes) {
        self.size += chunk.len();
        self.chunks.push(chunk);
    }

    fn concat(mut self) -> Bytes {
        match self.chunks.len() {
            1 => self.chunks.swap_remove(0),
            _ => self.chunks.concat().into(),
        }
    }
}

/// Where the packer writes. An empty chunk at the end says that all went well.
struct PackSink {
    filling: Vec<u8>,
    sender: mpsc::Sender<Bytes>,
    arriving: Arc<Arriving>,
}

impl PackSink {
    /// Sends what is left, and the end mark.
    fn finish(mut self) -> io::Result<()> {
        if !self.filling.is_empty() {
            self.send()?;
        }
        self.send()
    }

    fn send(&mut self) -> io::Result<()> {
        let chunk: Bytes = mem::take(&mut self.filling).into();
        self.arriving.packed(chunk.len() as u64);
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.sender.blocking_send(chunk).map_err(gone)
    }
}

impl Write for PackSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.filling.capacity() == 0 {
            self.filling.reserve_exact(CHUNK);
        }
        let n = bytes.len().min(CHUNK - self.filling.len());
        self.filling.extend_from_slice(&bytes[..n]);
        if self.filling.len() == CHUNK {
            self.send()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How much of one NAR has arrived, as far as it can be told from the packed bytes that were sent.
struct Arriving {
    progress: Arc<dyn Progress>,
    /// Bytes of the NAR that were read.
    read: AtomicU64,
    /// Bytes that were made of them.
    packed: AtomicU64,
    /// Bytes of the NAR that were said to have arrived.
    told: Mutex<u64>,
}

impl Arriving {
    fn new(progress: Arc<dyn Progress>) -> Arc<Self> {
        Arc::new(Arriving {
            progress,
            read: AtomicU64::new(0),
            packed: AtomicU64::new(0),
            told: Mutex::new(0),
        })
    }

    fn watch(self: &Arc<Self>, nar: NarStream) -> NarStream {
        let this = self.clone();
        let read = move |chunk: &Result<Bytes>| {
            let size = chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
            this.read.fetch_add(size, Relaxed);
        };
        nar.inspect(read).boxed()
    }

    fn packed(&self, bytes: u64) {
        self.packed.fetch_add(bytes, Relaxed);
    }

    /// So many of the packed bytes were taken.
    fn sent(&self, bytes: u64) {
        let read = u128::from(self.read.load(Relaxed));
        let packed = u128::from(self.packed.load(Relaxed)).max(1);
        let part = read * u128::from(bytes).min(packed) / packed;
        // What is still being packed has not arrived.
        self.tell(part as u64);
    }

    /// All in all, `bytes` of the NAR have arrived. It never becomes less.
    fn tell(&self, bytes: u64) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(more) = bytes.checked_sub(*told).filter(|more| *more > 0) {
            *told = bytes;
            self.progress.arrived(more);
        }
    }
}

/// Bytes of a packed NAR that are handed on at once.
const CHUNK: usize = 256 << 10;

/// Packed NARs of up to so many bytes are held whole and sent with one request.
const WHOLE: usize = 4 << 20;

/// Chunks between the packer and the sender of a large NAR.
const WINDOW: usize = 4;

/// Requests at once for what goes beside one NAR.
const COMPANIONS: usize = 8;
