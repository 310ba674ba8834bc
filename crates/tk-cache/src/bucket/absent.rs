//! When "absent" is really meant.

use super::{BucketInner, refusal::Refusal, service::Bucket};
use crate::layout::CACHE_INFO;
use http::StatusCode;
use object_store::{GetOptions, list::PaginatedListOptions, path::Path};
use std::sync::atomic::{AtomicBool, Ordering};
use tk_store::Result;
use tokio::sync::OnceCell;

/// What is known of how the service says that something is not there.
#[derive(Debug, Default)]
pub(super) struct Absence {
    /// Something was read from the bucket, so that there is one.
    bucket_exists: AtomicBool,
    /// What "forbidden" means; asked once.
    forbidden: OnceCell<Forbidden>,
    /// Whether that was told.
    warned: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Forbidden {
    /// The object is not there, or at least nothing better can be learnt.
    Absent,
    /// The answer means what it says: whoever asks may not read the object.
    Forbidden,
}

impl Absence {
    pub(super) fn saw_bucket(&self) {
        self.bucket_exists.store(true, Ordering::Relaxed);
    }
}

impl BucketInner {
    /// Whether a failed request for `key` says that there is no such object; otherwise the error.
    pub(super) async fn check_absent(
        &self,
        bucket: &Bucket,
        key: &Path,
        doing: &str,
        error: &object_store::Error,
    ) -> Result<()> {
        let Some(refusal) = Refusal::of(error) else {
            return Err(bucket.asked.failed(doing, error));
        };
        let mut refusal = refusal.clone();
        let missing = matches!(refusal.status, StatusCode::NOT_FOUND | StatusCode::GONE);
        if refusal.code.is_empty() && !refusal.may_pass() {
            if missing && self.absence.bucket_exists.load(Ordering::Relaxed) {
                return Ok(());
            }
            // The answer to HEAD has no body that would say why.
            match bucket.store.get_opts(key, GetOptions::default()).await {
                Ok(_) => return Err(bucket.asked.refused(doing, &refusal)),
                Err(error) => match Refusal::of(&error) {
                    Some(reason) => refusal = reason.clone(),
                    None => return Err(bucket.asked.failed(doing, &error)),
                },
            }
        }
        if refusal.is_absent() {
            self.absence.saw_bucket();
            return Ok(());
        }
        if missing && refusal.code.is_empty() {
            // Anything may answer 404. What lists the bucket is the service.
            self.list_one(bucket)
                .await
                .map_err(|e| bucket.asked.failed(doing, &e))?;
            self.absence.saw_bucket();
            return Ok(());
        }
        if refusal.is_denied() && self.forbidden(bucket).await? == Forbidden::Absent {
            self.warn_of_forbidden(&refusal, doing);
            return Ok(());
        }
        Err(bucket.asked.refused(doing, &refusal))
    }

    fn warn_of_forbidden(&self, refusal: &Refusal, doing: &str) {
        if self.absence.warned.swap(true, Ordering::Relaxed) {
            return;
        }
        let text = format!(
            "{} answers {refusal}, which is taken for \"not there\", as Nix does; it may also be \
             that these credentials do not allow to read it ({doing})",
            self.name
        );
        self.config.client.observer.warned(&text);
    }

    async fn forbidden(&self, bucket: &Bucket) -> Result<Forbidden> {
        let learn = self
            .absence
            .forbidden
            .get_or_try_init(|| self.learn_forbidden(bucket));
        learn.await.copied()
    }

    async fn learn_forbidden(&self, bucket: &Bucket) -> Result<Forbidden> {
        let refused =
            |e: &object_store::Error| Refusal::of(e).is_some_and(|refusal| !refusal.may_pass());
        match self.list_one(bucket).await {
            // Whoever may list is told "not found" for what is absent, so this is meant.
            Ok(()) => return Ok(Forbidden::Forbidden),
            // Whatever stands before the bucket may not know listings.
            Err(error) if refused(&error) => {}
            Err(error) => return Err(bucket.asked.failed("listing", &error)),
        }
        // Every cache has this object: if even that cannot be read, the access is missing.
        let info = self.key(CACHE_INFO)?;
        match bucket.store.get_opts(&info, GetOptions::default()).await {
            Ok(_) => Ok(Forbidden::Absent),
            Err(error) if refused(&error) => Ok(Forbidden::Forbidden),
            Err(error) => Err(bucket
                .asked
                .failed(&format!("reading {CACHE_INFO}"), &error)),
        }
    }

    async fn list_one(&self, bucket: &Bucket) -> object_store::Result<()> {
        let options = PaginatedListOptions {
            max_keys: Some(1),
            ..PaginatedListOptions::default()
        };
        let prefix = Some(self.config.prefix.as_str()).filter(|prefix| !prefix.is_empty());
        bucket
            .lister
            .list_paginated(prefix, options)
            .await
            .map(|_| ())
    }
}
