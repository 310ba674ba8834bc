//! Which servers speak HTTP/2.
//!
//! Many requests at once must not open a connection each to find out, so the first to a server
//! goes alone. What it finds is remembered, and if there is no connection to be had, all that
//! waited fail with it.

use super::{causes::causes, failure::RequestFailure};
use hyper_util::client::legacy::connect::Connection;
use std::{
    collections::HashMap,
    error::Error as StdError,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tower_layer::Layer;
use tower_service::Service;
use url::{Position, Url};

/// What is known of servers, by `https://host:port`. The others speak HTTP/1.1.
#[derive(Default)]
pub(super) struct Origins {
    known: Mutex<HashMap<String, Origin>>,
    /// Servers that could not be connected to, and when.
    down: Mutex<HashMap<String, (Instant, RequestFailure)>>,
}

#[derive(Clone)]
pub(super) enum Origin {
    Unknown(Arc<Gate>),
    Http1,
    Http2,
}

/// Held by whoever finds out; the failure if there was no connection.
pub(super) type Gate = tokio::sync::Mutex<Option<RequestFailure>>;

impl Origins {
    pub(super) fn of(&self, url: &Url) -> Origin {
        if url.scheme() != "https" {
            return Origin::Http1;
        }
        let mut known = self.lock();
        match known.get(key(url)) {
            Some(origin) => origin.clone(),
            None => {
                let origin = Origin::Unknown(Arc::default());
                known.insert(key(url).to_owned(), origin.clone());
                origin
            }
        }
    }

    pub(super) fn may_be_http2(&self, url: &Url) -> bool {
        url.scheme() == "https" && !matches!(self.lock().get(key(url)), Some(Origin::Http1))
    }

    pub(super) fn set(&self, url: &Url, origin: Origin) {
        self.lock().insert(key(url).to_owned(), origin);
    }

    /// As if it had never been asked.
    pub(super) fn forget(&self, url: &Url) {
        self.lock().remove(key(url));
    }

    /// Why nobody could connect to the server a moment ago, however often it was tried. Thousands
    /// of requests need not find that out one after the other.
    pub(super) fn down(&self, url: &Url) -> Option<RequestFailure> {
        let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        if down.is_empty() {
            return None;
        }
        down.retain(|_, (since, _)| since.elapsed() < DOWN);
        down.get(key(url)).map(|(_, failure)| failure.clone())
    }

    pub(super) fn note_down(&self, url: &Url, failure: &RequestFailure) {
        if matches!(failure, RequestFailure::Connect { .. }) {
            let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
            down.insert(key(url).to_owned(), (Instant::now(), failure.clone()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Origin>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(url: &Url) -> &str {
    &url[..Position::BeforePath]
}

/// Lets only connections through whose server agreed to speak HTTP/2.
#[derive(Clone)]
pub(super) struct OnlyHttp2;

impl<S> Layer<S> for OnlyHttp2 {
    type Service = OnlyHttp2Service<S>;

    fn layer(&self, inner: S) -> OnlyHttp2Service<S> {
        OnlyHttp2Service(inner)
    }
}

#[derive(Clone)]
pub(super) struct OnlyHttp2Service<S>(S);

type HttpBoxError = Box<dyn StdError + Send + Sync>;

impl<S, R> Service<R> for OnlyHttp2Service<S>
where
    S: Service<R, Error = HttpBoxError>,
    S::Response: Connection,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = HttpBoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, HttpBoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), HttpBoxError>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let connecting = self.0.call(request);
        Box::pin(async move {
            let connection = connecting.await?;
            if connection.connected().is_negotiated_h2() {
                Ok(connection)
            } else {
                Err(NotHttp2.into())
            }
        })
    }
}

/// The server is there, but speaks HTTP/1.1.
#[derive(Debug)]
struct NotHttp2;

impl fmt::Display for NotHttp2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server does not speak HTTP/2")
    }
}

impl StdError for NotHttp2 {}

/// Whether that is why there is no connection.
pub(super) fn is_not_http2(error: &reqwest::Error) -> bool {
    causes(error).any(|e| e.is::<NotHttp2>())
}

/// How long a server is taken to be down after all attempts failed.
const DOWN: Duration = Duration::from_secs(1);
