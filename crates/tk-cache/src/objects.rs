//! What a binary cache is made of: named objects, wherever they lie.

use crate::{journal::Journal, layout};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use std::{
    fmt::{Debug, Display},
    io,
    path::Path,
    sync::Arc,
};
use tk_narinfo::NarInfo;
use tk_path::{HashPart, StoreDir, StorePath};
use tk_store::{ByteStream, Error, Result, nar::BlockingNar};

/// Takes what was read of one of several objects: see [`Objects::read_each`].
pub type OnRead = Box<dyn FnMut(usize, Result<Option<&[u8]>>) + Send>;

/// The place where the objects of one cache lie: a folder, an HTTP server, a bucket.
///
/// Names are those of [`layout`], relative to the cache. An implementation retries
/// what may pass by itself, and bounds how many requests are under way at once; callers start as
/// much as they like. `Display` is the canonical URI without parameters, which identifies the
/// cache.
///
/// The methods without a default are what every place needs. The others are for places that can do
/// better than one request for each object.
///
/// # Errors
/// "Absent" (`None`) is only what the other side said in so many words. Refused credentials, a
/// server in trouble, a timeout are errors.
#[async_trait]
pub trait Objects: Debug + Display + Send + Sync {
    /// The content of an object of at most `limit` bytes, without its `Content-Encoding`.
    async fn read(&self, name: &str, limit: usize) -> Result<Option<Bytes>>;

    /// The same for each of `names`: `read` is given its place among them and what is there, on the thread
    /// that read it. What fails for one does not end the others.
    ///
    /// # Errors
    /// When nothing could be read; `read` was not called then.
    async fn read_each(&self, names: Vec<String>, limit: usize, mut read: OnRead) -> Result<()> {
        for (place, name) in names.iter().enumerate() {
            match self.read(name, limit).await {
                Ok(content) => read(place, Ok(content.as_deref())),
                Err(error) => read(place, Err(error)),
            }
        }
        Ok(())
    }

    /// Whether there is such an object, and its size in bytes if the other side says it.
    async fn look(&self, name: &str) -> Result<Option<ObjectMeta>>;

    /// The content of an object, without its `Content-Encoding`. A transfer that breaks is taken up
    /// where it stood; one that cannot be ends with an error, and so does one that is shorter than
    /// announced. That it is the same object all along may be seen only by its hash. `url` is what
    /// a narinfo says: a name, or where the place allows it, a URL.
    async fn stream(&self, url: &str) -> Result<Option<ByteStream>>;

    /// The same for a blocking thread. Called on a runtime.
    async fn reader(&self, url: &str) -> Result<Option<Box<dyn ObjectReader>>> {
        let stream = self.stream(url).await?;
        Ok(stream.map(|stream| Box::new(BlockingNar::new(stream)) as Box<dyn ObjectReader>))
    }

    /// Puts an object there, at once and whole; false if it was there and `only_new` was asked
    /// for. Where the other side knows no such condition it is overwritten.
    async fn write(&self, name: &str, content: Bytes, mime: &str, only_new: bool) -> Result<bool>;

    /// Writes each of `objects`, a name and its content, in their order; one result for each.
    async fn write_each(&self, objects: Vec<(String, Bytes)>) -> Vec<Result<()>> {
        let mut results = Vec::with_capacity(objects.len());
        for (name, content) in objects {
            let mime = layout::mime_type(&name);
            results.push(self.write(&name, content, mime, false).await.map(drop));
        }
        results
    }

    /// Puts a large object there whose content is still being made. It becomes visible whole, at
    /// the end, or not at all.
    async fn upload(&self, upload: Upload<'_>) -> Result<()>;

    /// Removes an object; that it is not there is no error.
    async fn remove(&self, name: &str) -> Result<()>;

    /// The names of the objects in `folder` of the cache (`nar`, or nothing for the cache itself,
    /// where the narinfos are), without those in folders below it.
    ///
    /// # Errors
    /// [`Unsupported`](tk_store::Error::Unsupported) where the other side cannot list, as plain
    /// HTTP servers.
    fn list(&self, folder: &str) -> BoxStream<'_, Result<String>>;

    /// Where the thread that makes an object can write it before its name is known; `None` where
    /// objects are sent. NARs go this way where it is open, and are named by the hash of the
    /// packed file, as Nix does.
    fn staging(&self) -> Option<Arc<dyn Staging>> {
        None
    }

    /// Keeps others who lock the same name away until the result is dropped, where the place can.
    async fn lock(&self, name: &str) -> Result<Box<dyn Send + Sync>> {
        let _ = name;
        Ok(Box::new(()))
    }

    /// Makes the place ready to be written to.
    async fn prepare(&self) -> Result<()> {
        Ok(())
    }

    /// Removes what earlier writers left unfinished that died. Called after writing; a fault is
    /// no fault of what was written.
    async fn sweep(&self) {}

    /// Ends what earlier uploads of this process or of dead ones left open, by their `journal`.
    /// Called when all that was to be uploaded is there.
    async fn tidy(&self, journal: &Journal) -> Result<()> {
        let _ = journal;
        Ok(())
    }

    /// How many small requests are worth having under way at once.
    fn parallel(&self) -> usize;

    /// How many names are best asked for, or written, with one call of
    /// [`read_each`](Objects::read_each) and [`write_each`](Objects::write_each).
    fn batch(&self) -> usize {
        1
    }

    /// The folder of this machine in which the objects are files. As in Nix, a folder is a cache
    /// also without `nix-cache-info`, which no other place is.
    fn folder(&self) -> Option<&Path> {
        None
    }

    /// Where the object `name` is, for errors: a URL, a file.
    fn place(&self, name: &str) -> String {
        if name.contains("://") {
            name.to_owned()
        } else {
            format!("{self}/{name}")
        }
    }
}

/// The bytes of an object, read on a blocking thread.
pub trait ObjectReader: io::Read + Send {
    /// How many bytes there are, where that is known beforehand.
    fn size(&self) -> Option<u64> {
        None
    }

    /// What made reading `place` fail, after it did with `error`.
    fn failure(&mut self, place: &str, error: io::Error) -> Error {
        Error::io(format!("reading {place}"), error)
    }
}

impl ObjectReader for BlockingNar {
    fn failure(&mut self, place: &str, error: io::Error) -> Error {
        let reading = |error| Error::io(format!("reading {place}"), error);
        self.take_error().unwrap_or_else(|| reading(error))
    }
}

/// See [`Objects::staging`]. Calls block.
pub trait Staging: Send + Sync {
    /// A new object without a name, for names in `folder`.
    fn begin(&self, folder: &str) -> io::Result<Box<dyn StagedObject>>;
}

/// An object that is being written. It is gone when it is dropped without a name.
pub trait StagedObject: io::Write + Send {
    /// Gives it its name. One that is there under that name is left, since it may be in use; it is
    /// replaced if its size is another, or with `replace`.
    fn publish(self: Box<Self>, name: &str, replace: bool) -> io::Result<()>;
}

/// What is known of an object without its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Its size in bytes.
    pub size: Option<u64>,
}

/// A large object on its way to [`Objects::upload`].
pub struct Upload<'a> {
    /// Its name in the cache.
    pub name: &'a str,
    /// The media type of the content, for places that keep one with an object.
    pub mime: &'a str,
    /// Its content. An error ends the upload with that error, and nothing becomes visible.
    pub body: ByteStream,
    /// About how many bytes will come; they may be fewer or more.
    pub size_hint: u64,
    /// Where to note what has arrived, so that an upload of the same bytes under the same name
    /// goes on there after the process was killed.
    pub journal: Option<&'a Journal>,
    /// Who is told how many bytes of the content the other side has taken by now. When it is sent
    /// again the count begins again.
    pub sent: Arc<dyn Fn(u64) + Send + Sync>,
}

/// Whoever answers with narinfos: binary caches, and what stands for one. `Display` is the URI.
pub trait NarInfos: Debug + Display + Send + Sync {
    /// The directory that the paths belong to.
    fn store_dir(&self) -> &StoreDir;

    /// One answer for each path, as it arrives: its narinfo, `None` if the cache says that it is
    /// absent, or why it could not be asked. What fails for one path does not end the others.
    ///
    /// The input may depend on the output, as in [`Store::infos`](tk_store::Store::infos).
    fn narinfos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, (StorePath, Result<Option<NarInfo>>)>;
}

/// What a cache said before, as somebody remembers it. Calls block, and may come from any thread.
///
/// A fault of the memory is no fault of the cache: what cannot be read is not known, what cannot
/// be written is forgotten.
pub trait NarInfoCache: Debug + Send + Sync {
    /// What is known of each of `parts`, in their order.
    fn get(&self, parts: &[HashPart]) -> Vec<Option<CachedNarInfo>>;
    /// Remembers answers: the text of a narinfo, or `None` for "absent".
    fn put(&self, answers: &[(HashPart, Option<Bytes>)]);
    /// Forgets what was said of `part`: it turned out to be wrong, or this process changed it.
    fn forget(&self, parts: &[HashPart]);
    /// The `nix-cache-info` of the cache: its text, or `None` within for "it has none".
    fn cache_info(&self) -> Option<Option<Bytes>>;
    /// Remembers the text of the cache's `nix-cache-info`, or `None` for "it has none".
    fn put_cache_info(&self, text: Option<&[u8]>);
}

/// An answer that is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CachedNarInfo {
    /// The cache had the path; the text of its narinfo.
    Present(Bytes),
    /// The cache said that it did not have the path.
    Absent,
}
