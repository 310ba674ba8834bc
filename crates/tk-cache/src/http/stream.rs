//! Large objects on their way here.

use super::{
    Inner,
    body::{self, Pace},
    failure::Failure,
    send::Request,
};
use futures::StreamExt;
use http::{Method, StatusCode};
use reqwest::Response;
use std::sync::Arc;
use tk_store::{ByteStream, Error, Result};
use url::Url;

/// The object at `url`, which is relative to the cache or not.
pub(super) async fn open(cache: &Arc<Inner>, url: &str) -> Result<Option<ByteStream>> {
    let url = resolve(cache, url)?;
    let request = Request::new(Method::GET, url);
    let attempt = || start(cache, &request);
    let result = cache.client.retry(&request.url, attempt).await;
    let response = result.map_err(|failure| cache.failed("reading", &request.url, failure))?;
    let Some(response) = response else {
        return Ok(None);
    };
    let transfer = Transfer {
        cache: cache.clone(),
        request,
        response,
        pace: cache.client.pace(),
    };
    let chunks = futures::stream::try_unfold(transfer, |mut transfer| async move {
        match transfer.pace.chunk(&mut transfer.response).await {
            Ok(chunk) => Ok(chunk.map(|chunk| (chunk, transfer))),
            Err(failure) => Err(transfer
                .cache
                .failed("reading", &transfer.request.url, failure)),
        }
    });
    Ok(Some(chunks.boxed()))
}

struct Transfer {
    cache: Arc<Inner>,
    request: Request,
    response: Response,
    pace: Pace,
}

async fn start(cache: &Inner, request: &Request) -> Result<Option<Response>, Failure> {
    let response = cache.client.send(request).await?;
    match response.status() {
        StatusCode::OK => Ok(Some(response)),
        status if cache.absent(status) => {
            body::drain(response, cache.client.pace()).await;
            Ok(None)
        }
        _ => Err(Failure::of(response, cache.client.pace()).await),
    }
}

fn resolve(cache: &Inner, url: &str) -> Result<Url> {
    let joined = cache
        .base
        .join(url)
        .map_err(|e| Error::malformed(format!("the URL {url:?}"), e))?;
    match joined.scheme() {
        "http" | "https" => Ok(joined),
        _ => Err(Error::malformed(
            format!("the URL {url:?}"),
            "it is none of http or https",
        )),
    }
}
