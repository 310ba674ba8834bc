//! Giving up what dead processes began.

use super::{Inner, service::Bucket, upload::abort};
use crate::journal::{Journal, OpenUpload};
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tk_store::Result;

/// Gives up all uploads in the journal that nobody is busy with.
pub(super) async fn run(inner: &Arc<Inner>, journal: &Journal) -> Result<()> {
    let open = journal.open_uploads();
    if open.is_empty() {
        return Ok(());
    }
    let bucket = inner.bucket().await?;
    for upload in &open {
        match &upload.id {
            Some(id) => abort(bucket, &inner.key(&upload.name)?, &upload.name, id).await?,
            None => find_and_abort(inner, bucket, journal, upload).await?,
        }
        journal.note_ended(&upload.name, upload.id.as_deref())?;
    }
    Ok(())
}

/// The process died after it asked for an upload and before it noted the answer. It was asked for
/// when the intent was noted; one that was begun then, and that nobody is busy with, is it.
async fn find_and_abort(
    inner: &Inner,
    bucket: &Bucket,
    journal: &Journal,
    intent: &OpenUpload,
) -> Result<()> {
    let Some(s3) = &bucket.s3 else {
        return Ok(());
    };
    let key = inner.key(&intent.name)?;
    let listed = s3.uploads(&key).await;
    let listed = listed.map_err(|e| bucket.asked.failed("listing uploads", &*e))?;
    let mut busy: BTreeSet<String> = journal.uploads_of_others();
    busy.extend(journal.own_uploads());
    for upload in listed {
        if !busy.contains(&upload.id) && upload.began.is_some_and(|at| near(at, intent.began)) {
            abort(bucket, &key, &intent.name, &upload.id).await?;
        }
    }
    Ok(())
}

fn near(one: SystemTime, other: SystemTime) -> bool {
    let apart = one
        .duration_since(other)
        .or_else(|_| other.duration_since(one));
    apart.is_ok_and(|apart| apart <= SKEW)
}

/// How far the clocks may be apart, and how long the request may have taken. Amazon takes no
/// signature that is older.
const SKEW: Duration = Duration::from_secs(15 * 60);
