//! The objects of a cache as files in a folder: `file://`.

mod files;

use crate::{
    blocking,
    layout::{self, DEBUG_FOLDER, NAR_FOLDER},
    objects::{ObjectMeta, ObjectReader, Objects, OnRead, StagedObject, Staging, Upload},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use std::{
    fmt,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};
use tk_nar::fs::trees_at_once;
use tk_store::{
    ByteStream, Error, Result,
    nar::{BlockingNar, produce},
};

/// A folder with the objects of a cache, as Nix's `file://` stores. A clone is the same folder.
///
/// A file has its name when it is whole. Files are not synced to the disk, as in Nix: what is
/// promised holds when processes are killed, not when the power fails.
#[derive(Clone)]
pub struct FolderObjects(Arc<FolderInner>);

struct FolderInner {
    /// The absolute path of the folder.
    root: PathBuf,
    create: bool,
    parallel: usize,
}

impl FolderObjects {
    /// The folder at `path`, which must be there.
    ///
    /// # Errors
    /// When it is not, or is not a folder.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self> {
        Self::at(path.into(), false).await
    }

    /// The folder at `path`, which is made when it is first written to; until then, nothing is in
    /// it.
    ///
    /// # Errors
    /// When something else is there.
    pub async fn open_or_create(path: impl Into<PathBuf>) -> Result<Self> {
        Self::at(path.into(), true).await
    }

    async fn at(path: PathBuf, create: bool) -> Result<Self> {
        blocking(move || FolderInner::open(&path, create))
            .await
            .map(|inner| FolderObjects(Arc::new(inner)))
    }

    /// Runs `work` on a thread that may wait for the disk.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&FolderInner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.0.clone();
        blocking(move || work(&inner)).await
    }
}

#[async_trait]
impl Objects for FolderObjects {
    async fn read(&self, name: &str, limit: usize) -> Result<Option<Bytes>> {
        let name = name.to_owned();
        self.run(move |inner| inner.read_present(&name, limit))
            .await
    }

    /// Reads all of them on one thread, in their order.
    async fn read_each(&self, names: Vec<String>, limit: usize, mut read: OnRead) -> Result<()> {
        self.run(move |inner| inner.read_each(&names, limit, &mut read))
            .await
    }

    async fn look(&self, name: &str) -> Result<Option<ObjectMeta>> {
        let name = name.to_owned();
        self.run(move |inner| {
            let file = inner.root.join(name);
            let size = files::size(&file).map_err(|e| reading(&file, e))?;
            let look = |size| ObjectMeta { size: Some(size) };
            Ok(size.map(look))
        })
        .await
    }

    async fn stream(&self, url: &str) -> Result<Option<ByteStream>> {
        let Some(mut reader) = self.reader(url).await? else {
            return Ok(None);
        };
        let place = self.place(url);
        let stream = produce(move |send| {
            loop {
                let mut chunk = Vec::with_capacity(CHUNK);
                let read = reader.by_ref().take(CHUNK as u64).read_to_end(&mut chunk);
                read.map_err(|e| reader.failure(&place, e))?;
                if chunk.is_empty() || !send(chunk.into()) {
                    return Ok(());
                }
            }
        });
        Ok(Some(stream))
    }

    async fn reader(&self, url: &str) -> Result<Option<Box<dyn ObjectReader>>> {
        let name = layout::path_of_url(url);
        let name = name.map_err(|e| Error::malformed(format!("a narinfo in {self}"), e))?;
        let name = name.to_owned();
        self.run(move |inner| {
            let path = inner.root.join(name);
            let file = files::open(&path).map_err(|e| reading(&path, e))?;
            Ok(file.map(|file| Box::new(file) as Box<dyn ObjectReader>))
        })
        .await
    }

    async fn write(&self, name: &str, content: Bytes, _: &str, only_new: bool) -> Result<bool> {
        let name = name.to_owned();
        self.run(move |inner| {
            if only_new && inner.root.join(&name).exists() {
                return Ok(false);
            }
            inner.write(&name, &content).map(|()| true)
        })
        .await
    }

    /// Writes all of them on one thread, in their order.
    async fn write_each(&self, objects: Vec<(String, Bytes)>) -> Vec<Result<()>> {
        let count = objects.len();
        let write = move |inner: &FolderInner| {
            let write = |(name, content): &(String, Bytes)| inner.write(name, content);
            Ok(objects.iter().map(write).collect())
        };
        let written = self.run(write).await;
        written.unwrap_or_else(|error| each(error, count))
    }

    async fn upload(&self, upload: Upload<'_>) -> Result<()> {
        let (name, sent) = (upload.name.to_owned(), upload.sent);
        let body = BlockingNar::new(upload.body);
        self.run(move |inner| inner.upload(&name, body, &*sent))
            .await
    }

    async fn remove(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.run(move |inner| {
            let file = inner.root.join(name);
            match fs::remove_file(&file) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(writing(&file, e)),
                _ => Ok(()),
            }
        })
        .await
    }

    fn list(&self, folder: &str) -> BoxStream<'_, Result<String>> {
        let folder = folder.to_owned();
        let names = async move {
            match self.run(move |inner| inner.names(&folder)).await {
                Ok(names) => names.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            }
        };
        stream::once(names).flat_map(stream::iter).boxed()
    }

    fn staging(&self) -> Option<Arc<dyn Staging>> {
        Some(self.0.clone())
    }

    /// Another process waits, too.
    async fn lock(&self, name: &str) -> Result<Box<dyn Send + Sync>> {
        let name = name.to_owned();
        self.run(move |inner| {
            let file = inner.root.join(name);
            let locked = files::lock(&file).map_err(|e| reading(&file, e))?;
            Ok(Box::new(locked) as Box<dyn Send + Sync>)
        })
        .await
    }

    async fn prepare(&self) -> Result<()> {
        self.run(FolderInner::prepare).await
    }

    async fn sweep(&self) {
        let sweep = |inner: &FolderInner| {
            inner.sweep();
            Ok(())
        };
        // Whatever stays is removed by the next writer.
        let _ = self.run(sweep).await;
    }

    fn parallel(&self) -> usize {
        self.0.parallel
    }

    fn batch(&self) -> usize {
        BATCH
    }

    fn folder(&self) -> Option<&Path> {
        Some(&self.0.root)
    }

    fn place(&self, name: &str) -> String {
        self.0.root.join(name).display().to_string()
    }
}

impl ObjectReader for File {
    fn size(&self) -> Option<u64> {
        self.metadata().ok().map(|meta| meta.len())
    }
}

impl Staging for FolderInner {
    fn begin(&self, folder: &str) -> io::Result<Box<dyn StagedObject>> {
        let temporary = files::TemporaryFile::new(&self.root.join(folder))?;
        Ok(Box::new(StagedFile {
            temporary,
            root: self.root.clone(),
        }))
    }
}

/// A file that has no name yet.
struct StagedFile {
    temporary: files::TemporaryFile,
    root: PathBuf,
}

impl Write for StagedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.temporary.file().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StagedObject for StagedFile {
    fn publish(mut self: Box<Self>, name: &str, replace: bool) -> io::Result<()> {
        let file = self.root.join(name);
        let size = self.temporary.file().metadata()?.len();
        if !replace && files::size(&file)? == Some(size) {
            return Ok(());
        }
        self.temporary.rename(&file)
    }
}

impl FolderInner {
    fn open(path: &Path, create: bool) -> Result<Self> {
        let doing = || format!("opening the binary cache in {}", path.display());
        let root = std::path::absolute(path).map_err(|e| Error::io(doing(), e))?;
        let root: PathBuf = root.components().collect();
        match fs::metadata(&root) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(Error::io(doing(), io::ErrorKind::NotADirectory)),
            Err(e) if e.kind() == io::ErrorKind::NotFound && create => {}
            Err(e) => return Err(Error::io(doing(), e)),
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(FolderInner {
            root,
            create,
            parallel: cores.min(MOST_THREADS).min(trees_at_once().get()),
        })
    }

    fn read(&self, name: &str, limit: usize) -> Result<Option<Bytes>> {
        let file = self.root.join(name);
        let content = files::read(&file, limit).map_err(|e| reading(&file, e))?;
        Ok(content.map(Bytes::from))
    }

    /// A file is absent only where there is a folder in which it is not.
    fn read_present(&self, name: &str, limit: usize) -> Result<Option<Bytes>> {
        let content = self.read(name, limit)?;
        if content.is_none() {
            self.check_root()?;
        }
        Ok(content)
    }

    fn read_each(&self, names: &[String], limit: usize, read: &mut OnRead) -> Result<()> {
        let mut absent = Vec::new();
        match files::OpenFolder::open(&self.root) {
            Ok(folder) => {
                let mut buffer = Vec::new();
                for (place, name) in names.iter().enumerate() {
                    match folder.read(name, limit, &mut buffer) {
                        Ok(true) => read(place, Ok(Some(&buffer))),
                        Ok(false) => absent.push(place),
                        Err(e) => read(place, Err(reading(&self.root.join(name), e))),
                    }
                }
            }
            Err(error) if self.may_be_made(&error) => absent.extend(0..names.len()),
            Err(error) => return Err(reading(&self.root, error)),
        }
        // If the folder itself went away, nothing is known to be absent from it.
        match self.check_root() {
            Ok(()) => absent.into_iter().for_each(|place| read(place, Ok(None))),
            Err(error) => {
                let errors = error.for_each(absent).into_iter();
                errors.for_each(|(place, gone)| read(place, gone));
            }
        }
        Ok(())
    }

    /// That there is a folder, if it is not still to be made.
    fn check_root(&self) -> Result<()> {
        match fs::metadata(&self.root) {
            Err(e) if !self.may_be_made(&e) => Err(reading(&self.root, e)),
            _ => Ok(()),
        }
    }

    fn may_be_made(&self, error: &io::Error) -> bool {
        self.create && error.kind() == io::ErrorKind::NotFound
    }

    /// Puts a file there, at once.
    fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        self.put(name, |file| file.write_all(content).map_err(Into::into))
    }

    /// Puts a file there when all of `body` has come, at once.
    fn upload(&self, name: &str, body: BlockingNar, sent: &dyn Fn(u64)) -> Result<()> {
        self.put(name, |file| {
            let mut size = 0;
            for chunk in body {
                let chunk = chunk?;
                file.write_all(&chunk)?;
                size += chunk.len() as u64;
                sent(size);
            }
            Ok(())
        })
    }

    fn put(&self, name: &str, fill: impl FnOnce(&mut File) -> Result<(), Unwritten>) -> Result<()> {
        let path = self.root.join(name);
        let folder = path.parent().unwrap_or(&self.root);
        let put = || {
            if folder != self.root {
                self.make_folders(folder)?;
            }
            let mut temporary = files::TemporaryFile::new(folder)?;
            fill(temporary.file())?;
            Ok(temporary.rename(&path)?)
        };
        let put = put().map_err(|unwritten| match unwritten {
            Unwritten::Io(error) => writing(&path, error),
            Unwritten::Source(error) => error,
        });
        // Nobody else removes what killed writers left there.
        if !is_swept(name) {
            files::sweep(folder);
        }
        put
    }

    /// Makes `folder` and those above it, as far as the cache's own, which is made by
    /// [`FolderInner::prepare`].
    fn make_folders(&self, folder: &Path) -> io::Result<()> {
        match files::make_folder(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match folder.parent().filter(|parent| *parent != self.root) {
                    Some(parent) => self.make_folders(parent)?,
                    None => return Err(error),
                }
                files::make_folder(folder)
            }
            made => made,
        }
    }

    fn names(&self, folder: &str) -> Result<Vec<String>> {
        let path = self.root.join(folder);
        let broken = |e| reading(&path, e);
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.check_root().map(|()| Vec::new());
            }
            entries => entries.map_err(broken)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(broken)?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            // No object of a cache has a name that is not UTF-8.
            let name = entry.file_name().into_string();
            names.extend(name.map(|name| match folder {
                "" => name,
                folder => format!("{folder}/{name}"),
            }));
        }
        Ok(names)
    }

    fn prepare(&self) -> Result<()> {
        let making = |e| {
            let what = format!("making the binary cache {}", self.root.display());
            Error::io(what, e)
        };
        if self.create {
            fs::create_dir_all(&self.root).map_err(making)?;
        }
        files::make_folder(&self.root.join(NAR_FOLDER)).map_err(making)?;
        self.sweep();
        Ok(())
    }

    fn sweep(&self) {
        for folder in SWEPT {
            files::sweep(&self.root.join(folder));
        }
    }
}

/// Whether what is left beside `name` is removed before and after each push.
fn is_swept(name: &str) -> bool {
    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
    SWEPT.contains(&folder)
}

/// Why a file was not written.
enum Unwritten {
    /// The disk did not take it.
    Io(io::Error),
    /// Its content did not come.
    Source(Error),
}

impl From<io::Error> for Unwritten {
    fn from(error: io::Error) -> Self {
        Unwritten::Io(error)
    }
}

impl From<Error> for Unwritten {
    fn from(error: Error) -> Self {
        Unwritten::Source(error)
    }
}

/// Prints the canonical URI of the folder, `file://` and its absolute path.
impl fmt::Display for FolderObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.0.root.to_string_lossy();
        write!(f, "file://{}", utf8_percent_encode(&path, NOT_IN_URLS))
    }
}

impl fmt::Debug for FolderObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FolderObjects").field(&self.0.root).finish()
    }
}

/// The same for each of `count` objects.
fn each<T>(error: Error, count: usize) -> Vec<Result<T>> {
    let all = error.for_each(0..count).into_iter();
    all.map(|(_, result)| result).collect()
}

fn reading(path: &Path, error: impl Into<io::Error>) -> Error {
    Error::io(format!("reading {}", path.display()), error)
}

fn writing(path: &Path, error: impl Into<io::Error>) -> Error {
    Error::io(format!("writing {}", path.display()), error)
}

/// Small files that one thread reads or writes before it answers.
const BATCH: usize = 128;

/// Threads that read at once.
const MOST_THREADS: usize = 8;

/// The folders into which much is written.
const SWEPT: [&str; 3] = ["", NAR_FOLDER, DEBUG_FOLDER];

/// The most bytes of a file that are handed on at once.
const CHUNK: usize = 64 << 10;

const NOT_IN_URLS: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');
