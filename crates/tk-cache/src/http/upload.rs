//! Large objects on their way there.
//!
//! What is sent is kept in a [`UploadSpool`] while it is made, so that it can be sent again. The first
//! attempt sends it as it grows. A server that wants to know the length gets what is whole.

use super::{
    HttpInner,
    failure::RequestFailure,
    put_headers,
    send::{BodyProgress, HttpRequest, Payload},
    spool::{SpoolReader, UploadSpool},
};
use crate::objects::Upload;
use bytes::Bytes;
use futures::{StreamExt, future::Either, future::select};
use http::{Method, header::CONTENT_LENGTH};
use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tk_store::{Error, Result};

/// Whether the server is known to want a length.
#[derive(Default)]
pub(super) struct WantsLength(AtomicBool);

/// Puts the object there. When its body fails, or this is dropped, the request breaks off in its
/// midst, and no server takes it for whole.
pub(super) async fn run(cache: &HttpInner, upload: Upload<'_>) -> Result<()> {
    let what = cache.url(upload.name)?;
    let keeping = |e| Error::io(format!("making a file to keep {what}"), e);
    let spool = UploadSpool::new(cache.client.spool()).map_err(keeping)?;
    let mut request = HttpRequest::new(Method::PUT, what.clone());
    request.bulk = true;
    request.headers = put_headers(upload.mime)?;
    let reader = spool.reader();
    let progress = Arc::new(BodyProgress::default());
    let (source, seen, sent) = (reader.clone(), progress.clone(), upload.sent);
    let make = move || {
        let (sent, mut size) = (sent.clone(), 0);
        let count = move |chunk: &Result<Bytes, _>| {
            size += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
            sent(size);
        };
        source.clone().stream(seen.clone()).inspect(count).boxed()
    };
    request.body = Payload::Stream(Box::new(make), progress);

    let filling = pin!(spool.fill(upload.body, what.as_str()));
    let sending = pin!(send(cache, request, reader));
    let sent = match select(filling, sending).await {
        Either::Left((filled, sending)) => {
            filled?;
            sending.await
        }
        // Where all is sent, all was there.
        Either::Right((sent, _)) => sent,
    };
    sent.map_err(|failure| cache.failed("uploading", &what, failure))
}

async fn send(
    cache: &HttpInner,
    mut request: HttpRequest,
    mut reader: SpoolReader,
) -> Result<(), RequestFailure> {
    let mut tries = cache.client.tries(&request.url);
    let mut wants_length = cache.wants_length.0.load(Ordering::Relaxed);
    loop {
        if wants_length {
            let made = reader.whole().await;
            made.map_err(|e| RequestFailure::Local(e.to_string()))?;
        }
        let size = reader.size();
        if let Some(size) = size {
            request.headers.insert(CONTENT_LENGTH, size.into());
        }
        let mut permit = tries.start().await;
        // It may take hours, in which small requests are not to wait.
        permit.give_back();
        match cache.write_once(&request).await {
            Ok(_) if reader.size().is_none() => {
                let words = "it said that all is well before all was sent";
                return Err(RequestFailure::Nonsense(words.to_owned()));
            }
            Ok(_) => {
                if wants_length {
                    cache.wants_length.0.store(true, Ordering::Relaxed);
                }
                permit.succeeded();
                return Ok(());
            }
            Err(failure) if size.is_none() && may_want_length(&failure) => wants_length = true,
            Err(failure) => tries.again(permit, failure).await?,
        }
    }
}

/// What servers say that do not take bodies of unknown length.
fn may_want_length(failure: &RequestFailure) -> bool {
    let RequestFailure::Status { status, .. } = failure else {
        return false;
    };
    matches!(status.as_u16(), 400 | 411 | 501)
}
