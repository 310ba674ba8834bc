//! Caches in object storage: `s3://`, `gs://`, `az://`.
//!
//! The protocols are those of the crate `object_store`; connections, tries, limits and the meaning
//! of what services answer are our own.

mod absent;
mod config;
mod credentials;
mod environment;
mod listing;
mod process;
mod profile;
mod refusal;
mod service;
mod sources;
mod stream;
mod tidy;
mod transport;
mod upload;

pub use config::{Addressing, BucketConfig, MIN_CHUNK, PARAMETERS, S3Params, Service};
pub use environment::CloudEnvironment;

use crate::{
    http::{Client, Encodings, RequestFailure, innermost, io_kind},
    journal::Journal,
    objects::{ObjectMeta, Objects, Upload},
};
use absent::Absence;
use async_trait::async_trait;
use bytes::Bytes;
use chrono::DateTime;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    Attribute, GetOptions, GetResult, PutMode, PutOptions, list::PaginatedListOptions, path::Path,
};
use refusal::Refusal;
use service::{Bucket, attributes};
use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};
use tk_store::{ByteStream, Error, Result};
use tokio::sync::OnceCell;
use transport::BucketTransport;
use upload::Memory;

/// A cache in a bucket.
///
/// # Absent and forbidden
/// S3 answers "forbidden" for objects that are not there to those who may not list the bucket. Nix
/// always takes that for "absent". Here it means "absent" only if listing is forbidden and yet
/// something of the cache could be read (its `nix-cache-info`): otherwise nothing tells it from a
/// bucket that one has no access to at all, which is an error. The first time a warning says so.
///
/// A clone is the same cache.
#[derive(Clone)]
pub struct BucketObjects(Arc<BucketInner>);

struct BucketInner {
    config: BucketConfig,
    name: String,
    transport: BucketTransport,
    /// Made when it is first needed, since it takes requests to learn who we are.
    bucket: OnceCell<Bucket>,
    absence: Absence,
    /// The service knows no conditions on writing.
    unconditional: AtomicBool,
    /// For parts on their way.
    memory: Memory,
}

impl BucketObjects {
    /// Makes ready to ask the cache. Nothing is sent yet, and credentials are not looked for.
    ///
    /// # Errors
    /// When the bucket cannot be addressed as it was asked for, or certificates or proxies are no
    /// such thing.
    pub fn open(config: BucketConfig) -> Result<Self> {
        if let Service::S3(params) = &config.service {
            params.bucket_url(
                &config.bucket,
                params.region.as_deref().unwrap_or("us-east-1"),
            )?;
        }
        let client = Client::new(&config.client)?;
        // At least one part at once, however large.
        let memory = config.chunk_size.clamp(MEMORY, u32::MAX.into()) as u32;
        Ok(BucketObjects(Arc::new(BucketInner {
            name: config.to_string(),
            transport: BucketTransport::new(client),
            bucket: OnceCell::new(),
            absence: Absence::default(),
            unconditional: AtomicBool::new(false),
            memory: Memory::new(memory),
            config,
        })))
    }
}

impl BucketInner {
    async fn bucket(&self) -> Result<&Bucket> {
        let open = || Bucket::open(&self.config, &self.transport);
        self.bucket.get_or_try_init(open).await
    }

    /// The whole name of an object in the bucket.
    fn key(&self, name: &str) -> Result<Path> {
        let key = match self.config.prefix.as_str() {
            "" => name.to_owned(),
            prefix => format!("{prefix}/{name}"),
        };
        Path::parse(&key).map_err(|e| Error::malformed(format!("the name {name:?}"), e))
    }

    /// An object, if it is there.
    async fn get(&self, name: &str, options: GetOptions) -> Result<Option<GetResult>> {
        let (bucket, key) = (self.bucket().await?, self.key(name)?);
        match bucket.store.get_opts(&key, options).await {
            Ok(object) => {
                self.absence.saw_bucket();
                Ok(Some(object))
            }
            Err(error) => {
                self.check_absent(bucket, &key, &format!("reading {name}"), &error)
                    .await?;
                Ok(None)
            }
        }
    }

    /// The error of reading `name`, after the last attempt ended with `failure`.
    async fn not_read(&self, name: &str, failure: RequestFailure) -> Error {
        if let RequestFailure::Nonsense(words) = failure {
            return Error::malformed(format!("{name} in {}", self.name), words);
        }
        let doing = format!("reading {name}");
        match self.bucket().await {
            Ok(bucket) => bucket.asked.failed(&doing, &io::Error::from(failure)),
            Err(error) => error,
        }
    }

    async fn content(&self, object: GetResult, limit: usize) -> Result<Bytes, RequestFailure> {
        let encodings = encodings(&object)?;
        if object.meta.size > limit as u64 {
            return Err(RequestFailure::larger(limit));
        }
        let chunks = object.into_stream().map_err(broke_off);
        let body = self.transport.pace().collect(chunks, limit).await?;
        encodings.decode(body, limit).await
    }
}

#[async_trait]
impl Objects for BucketObjects {
    async fn read(&self, name: &str, limit: usize) -> Result<Option<Bytes>> {
        let mut tries = self.0.transport.tries(format!("{}/{name}", self.0.name));
        loop {
            let Some(object) = self.0.get(name, GetOptions::default()).await? else {
                return Ok(None);
            };
            let failure = match self.0.content(object, limit).await {
                Ok(content) => return Ok(Some(content)),
                Err(failure) => failure,
            };
            let permit = tries.start().await;
            if let Err(failure) = tries.again(permit, failure).await {
                return Err(self.0.not_read(name, failure).await);
            }
        }
    }

    async fn look(&self, name: &str) -> Result<Option<ObjectMeta>> {
        let options = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        let found = self.0.get(name, options).await?;
        // The size as it is stored says nothing of an object that is packed for the way.
        let size = |object: GetResult| match encodings(&object) {
            Ok(encodings) if encodings.is_empty() => Some(object.meta.size),
            _ => None,
        };
        Ok(found.map(|object| ObjectMeta { size: size(object) }))
    }

    async fn stream(&self, url: &str) -> Result<Option<ByteStream>> {
        stream::open(&self.0, url).await
    }

    async fn write(&self, name: &str, content: Bytes, mime: &str, only_new: bool) -> Result<bool> {
        self.0.put(name, content.into(), mime, only_new).await
    }

    async fn upload(&self, upload: Upload<'_>) -> Result<()> {
        upload::run(&self.0, upload).await
    }

    async fn remove(&self, name: &str) -> Result<()> {
        let (bucket, key) = (self.0.bucket().await?, self.0.key(name)?);
        let one = futures::stream::iter([Ok(key.clone())]).boxed();
        let removed = bucket
            .store
            .delete_stream(one)
            .try_collect::<Vec<_>>()
            .await;
        match removed {
            Ok(_) => Ok(()),
            Err(error) if Refusal::of(&error).is_some_and(Refusal::is_absent) => Ok(()),
            Err(error) => Err(bucket.asked.failed(&format!("removing {name}"), &error)),
        }
    }

    fn list(&self, folder: &str) -> BoxStream<'_, Result<String>> {
        let slash = |folder: &str| match folder {
            "" => String::new(),
            folder => format!("{folder}/"),
        };
        let base = slash(&self.0.config.prefix);
        let folder = format!("{base}{}", slash(folder));
        let pages = futures::stream::try_unfold(Some(None), move |page: Option<Option<String>>| {
            let (base, folder) = (base.clone(), folder.clone());
            async move {
                let Some(token) = page else {
                    return Ok(None);
                };
                let (names, next) = self.0.page(&base, &folder, token).await?;
                Ok::<_, Error>(Some((names, next.map(Some))))
            }
        });
        let names = pages.map_ok(|names| futures::stream::iter(names.into_iter().map(Ok)));
        names.try_flatten().boxed()
    }

    fn parallel(&self) -> usize {
        self.0.transport.parallel()
    }

    async fn tidy(&self, journal: &Journal) -> Result<()> {
        tidy::run(&self.0, journal).await
    }
}

impl BucketInner {
    async fn put(
        &self,
        name: &str,
        content: object_store::PutPayload,
        mime: &str,
        only_new: bool,
    ) -> Result<bool> {
        let (bucket, key) = (self.bucket().await?, self.key(name)?);
        let put = async |mode| {
            let options = PutOptions {
                mode,
                attributes: attributes(mime, self.config.storage_class.as_deref()),
                ..PutOptions::default()
            };
            bucket.store.put_opts(&key, content.clone(), options).await
        };
        if only_new && !self.unconditional.load(Ordering::Relaxed) {
            match put(PutMode::Create).await {
                Ok(_) => return Ok(true),
                Err(error) => match Refusal::of(&error) {
                    Some(refusal) if there_already(refusal) => return Ok(false),
                    Some(refusal) if refusal.is("NotImplemented") => {
                        self.unconditional.store(true, Ordering::Relaxed);
                    }
                    _ => return Err(bucket.asked.failed(&format!("writing {name}"), &error)),
                },
            }
        }
        match put(PutMode::Overwrite).await {
            Ok(_) => Ok(true),
            Err(error) => Err(bucket.asked.failed(&format!("writing {name}"), &error)),
        }
    }

    /// Names without `base`, and what the next page is asked for with.
    async fn page(
        &self,
        base: &str,
        folder: &str,
        token: Option<String>,
    ) -> Result<(Vec<String>, Option<String>)> {
        let bucket = self.bucket().await?;
        let options = PaginatedListOptions {
            page_token: token,
            delimiter: Some("/".into()),
            ..PaginatedListOptions::default()
        };
        let prefix = Some(folder).filter(|prefix| !prefix.is_empty());
        let page = bucket.lister.list_paginated(prefix, options).await;
        let page = page.map_err(|e| bucket.asked.failed("listing", &e))?;
        let keys = page
            .result
            .objects
            .iter()
            .map(|object| object.location.as_ref());
        let names = keys
            .filter_map(|key| key.strip_prefix(base))
            .map(str::to_owned);
        Ok((names.collect(), page.page_token))
    }
}

/// Prints the canonical URI of the cache, with the bucket and the prefix.
impl fmt::Display for BucketObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name)
    }
}

impl fmt::Debug for BucketObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BucketObjects")
            .field(&self.0.config)
            .finish()
    }
}

/// Of the body of an object.
fn broke_off(error: object_store::Error) -> RequestFailure {
    RequestFailure::Broken {
        kind: io_kind(&error).unwrap_or(io::ErrorKind::ConnectionAborted),
        words: innermost(&error),
    }
}

/// How an object is packed for the way. Nix stores metadata packed if it is told to.
fn encodings(object: &GetResult) -> Result<Encodings, RequestFailure> {
    let value = object.attributes.get(&Attribute::ContentEncoding);
    Encodings::parse(value.map(|value| value.as_ref()))
}

fn there_already(refusal: &Refusal) -> bool {
    matches!(refusal.status.as_u16(), 304 | 412) || refusal.is("BlobAlreadyExists")
}

/// A time as services write it, like `2026-11-23T22:11:33.000Z`.
fn time(text: &str) -> Option<SystemTime> {
    let time = DateTime::parse_from_rfc3339(text.trim()).ok()?;
    Some(time.into())
}

/// Bytes of parts in memory, of all uploads of one cache. A larger part is alone in there.
const MEMORY: u64 = 48 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn times() {
        let cases = [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:34:56.000Z", 951_827_696),
            ("2026-11-23T22:11:33+00:00", 1_795_471_893),
            ("2026-11-23T23:11:33+01:00", 1_795_471_893),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
        ];
        for (text, seconds) in cases {
            let expected = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(time(text), Some(expected), "{text}");
        }
        for text in [
            "",
            "Z",
            "2026-11-23",
            "2026-13-01T00:00:00Z",
            "99999-01-01T00:00:00Z",
            "2026-11-23T22:11Z",
            "0-0-0T0:0:0Z",
        ] {
            assert_eq!(time(text), None, "{text}");
        }
    }
}
