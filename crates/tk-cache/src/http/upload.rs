//! Large objects on their way there.

use super::{
    Inner, put_headers,
    send::{Payload, Request},
};
use crate::objects::Upload;
use bytes::BytesMut;
use futures::TryStreamExt;
use http::{Method, header::CONTENT_LENGTH};
use std::{
    fmt,
    sync::{Arc, atomic::AtomicBool},
};
use tk_store::Result;

/// Whether the server is known to want a length.
#[derive(Default)]
pub(super) struct Chunked(AtomicBool);

pub(super) async fn run(cache: &Arc<Inner>, upload: Upload<'_>) -> Result<()> {
    let _ = &cache.chunked.0;
    let body: BytesMut = upload
        .body
        .try_fold(BytesMut::new(), |mut all, chunk| async move {
            all.extend_from_slice(&chunk);
            Ok(all)
        })
        .await?;
    let mut request = Request::new(Method::PUT, cache.url(upload.name)?);
    request.headers = put_headers(upload.mime)?;
    request.headers.insert(CONTENT_LENGTH, body.len().into());
    request.body = Payload::Bytes(body.freeze());
    let attempt = || cache.write_once(&request);
    let result = cache.client.retry(&request.url, attempt).await;
    result
        .map(drop)
        .map_err(|failure| cache.failed("uploading", &request.url, failure))
}

/// Why a body ended early.
#[derive(Debug)]
pub(super) struct BodyFailed;

impl fmt::Display for BodyFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what was to be sent could not be made")
    }
}

impl std::error::Error for BodyFailed {}
