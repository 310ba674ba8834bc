//! Giving up what dead processes began.

use super::{BucketInner, service::Bucket, upload::abort};
use crate::journal::Journal;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tk_store::Result;

/// Gives up all uploads in the journal that nobody is busy with.
pub(super) async fn run(inner: &Arc<BucketInner>, journal: &Journal) -> Result<()> {
    let open = journal.open_uploads();
    if open.is_empty() {
        return Ok(());
    }
    let bucket = inner.bucket().await?;
    let mut intents = BTreeMap::<_, Vec<_>>::new();
    for upload in &open {
        let Some(id) = &upload.id else {
            let of_name = intents.entry(&*upload.name).or_default();
            of_name.push(upload.began);
            continue;
        };
        abort(bucket, &inner.key(&upload.name)?, &upload.name, id).await?;
        journal.note_ended(&upload.name, Some(id));
    }
    for (name, began) in intents {
        if find_and_abort(inner, bucket, journal, name, &began).await? {
            // All of them at once: without ids nothing tells them apart.
            journal.note_ended(name, None);
        }
    }
    Ok(())
}

/// Processes died after they asked for uploads of `name` and before they noted the answers. They
/// asked when the intents were noted, at `began`; what was begun then, and nobody is busy with, is
/// theirs. False if that cannot be told now.
async fn find_and_abort(
    inner: &BucketInner,
    bucket: &Bucket,
    journal: &Journal,
    name: &str,
    began: &[SystemTime],
) -> Result<bool> {
    let Some(s3) = &bucket.s3 else {
        return Ok(true);
    };
    let key = inner.key(name)?;
    let listed = s3.uploads(&key).await;
    let listed = listed.map_err(|e| bucket.asked.failed("listing uploads", &*e))?;
    // Only now: who begins an upload notes it before, so that whatever was listed is known here.
    if journal.others_begin(name) {
        return Ok(false);
    }
    let mut busy: BTreeSet<String> = journal.uploads_of_others();
    busy.extend(journal.own_uploads());
    let mut found = 0;
    for upload in listed {
        let theirs = |at| began.iter().any(|began| near(at, *began));
        if !busy.contains(&upload.id) && upload.began.is_some_and(theirs) {
            abort(bucket, &key, name, &upload.id).await?;
            found += 1;
        }
    }
    // The service may still be busy with what was asked for just now: the next push looks again.
    let young = |began: &SystemTime| began.elapsed().is_ok_and(|age| age < SETTLED);
    Ok(found >= began.len() || !began.iter().any(young))
}

fn near(one: SystemTime, other: SystemTime) -> bool {
    let apart = one
        .duration_since(other)
        .or_else(|_| other.duration_since(one));
    apart.is_ok_and(|apart| apart <= SKEW)
}

/// After so long a service has done, or never will do, what it was asked for.
const SETTLED: Duration = Duration::from_secs(60);

/// How far the clocks may be apart, and how long the request may have taken. Amazon takes no
/// signature that is older.
const SKEW: Duration = Duration::from_secs(15 * 60);
