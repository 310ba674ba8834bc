//! One request: whom it goes to, with which login, over what.

use super::{
    Auth, Netrc, body,
    client::Client,
    failure::RequestFailure,
    origin::{self, Origin},
};
use crate::observer::{AnsweredRequest, NetworkObserver};
use bytes::Bytes;
use data_encoding::BASE64;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{AUTHORIZATION, LOCATION},
};
use percent_encoding::percent_decode_str;
use reqwest::Response;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tk_store::{Error, Result};
use tokio::time::{Instant, timeout, timeout_at};
use url::{Position, Url};

/// What to ask. It can be sent any number of times.
pub(super) struct HttpRequest {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Payload,
    /// Whether a body of any length comes or goes.
    pub(super) bulk: bool,
}

pub(super) enum Payload {
    None,
    /// What is made anew for each attempt, and says how far it is.
    Stream(MakeBody, Arc<BodyProgress>),
}

pub(super) type MakeBody =
    Box<dyn Fn() -> BoxStream<'static, Result<Bytes, BodyFailed>> + Send + Sync>;

impl Payload {
    /// Content that is at hand, in pieces, so that it is seen whether the server takes them.
    pub(super) fn bytes(content: Bytes) -> Self {
        let progress = Arc::new(BodyProgress::default());
        let seen = progress.clone();
        let make = move || stream::iter(pieces(content.clone(), seen.clone()).map(Ok)).boxed();
        Payload::Stream(Box::new(make), progress)
    }
}

/// `content` in pieces, whose sending is seen.
pub(crate) fn pieces(mut content: Bytes, seen: Arc<BodyProgress>) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        seen.moved();
        let piece = content.split_to(content.len().min(PIECE));
        (!piece.is_empty()).then_some(piece)
    })
}

/// When the server last took something of a body.
#[derive(Debug, Default)]
pub(crate) struct BodyProgress(Mutex<Option<Instant>>);

impl BodyProgress {
    /// It took something, or the answer is awaited from now on.
    pub(super) fn moved(&self) {
        *self.lock() = Some(Instant::now());
    }

    /// There is nothing to take at the moment: its time does not pass.
    pub(super) fn waits(&self) {
        *self.lock() = None;
    }

    /// When its time will have passed, if nothing happens.
    fn ends(&self, stall: Duration) -> Instant {
        self.lock().unwrap_or_else(Instant::now) + stall
    }

    /// Waits for `answer`, as long as the body moves.
    pub(crate) async fn watch<T>(
        &self,
        answer: impl Future<Output = Result<T, RequestFailure>>,
        stall: Duration,
    ) -> Result<T, RequestFailure> {
        self.moved();
        let mut answer = std::pin::pin!(answer);
        loop {
            match timeout_at(self.ends(stall), &mut answer).await {
                Ok(answer) => return answer,
                Err(_) if self.ends(stall) > Instant::now() => {}
                Err(_) => return Err(no_answer(stall)),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a body ended early; the reason is known to whoever made it.
#[derive(Debug, thiserror::Error)]
#[error("what was to be sent could not be made")]
pub(super) struct BodyFailed;

/// Whom a login is for, and the header that it is.
pub(super) struct Login {
    origin: url::Origin,
    header: HeaderValue,
}

impl Login {
    pub(super) fn new(cache: &Url, auth: &Auth) -> Result<Option<Self>> {
        let header = match auth {
            Auth::None => return Ok(None),
            Auth::Basic { user, password } => basic(user.as_bytes(), password.as_bytes()),
            Auth::Bearer(token) => bearer(token).ok_or_else(|| {
                Error::invalid("the token holds characters that cannot be sent, such as line ends")
            })?,
        };
        let origin = cache.origin();
        Ok(Some(Login { origin, header }))
    }
}

impl HttpRequest {
    pub(super) fn new(method: Method, url: Url) -> Self {
        HttpRequest {
            method,
            url,
            headers: HeaderMap::new(),
            body: Payload::None,
            bulk: false,
        }
    }

    fn make(
        &self,
        url: &Url,
        login: Option<&HeaderValue>,
        observer: &Arc<dyn NetworkObserver>,
    ) -> reqwest::Request {
        let mut request = reqwest::Request::new(self.method.clone(), url.clone());
        *request.headers_mut() = self.headers.clone();
        if let Some(login) = login {
            request.headers_mut().insert(AUTHORIZATION, login.clone());
        }
        *request.body_mut() = match &self.body {
            Payload::None => None,
            Payload::Stream(make, _) => {
                let observer = observer.clone();
                let tell = move |chunk: &Result<Bytes, _>| {
                    observer.sent(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64));
                };
                Some(reqwest::Body::wrap_stream(make().inspect(tell)))
            }
        };
        request
    }
}

impl Client {
    /// The head of the answer, of whatever status but a redirect. It has come in a bounded time,
    /// except where the body is a stream.
    pub(super) async fn send(&self, request: &HttpRequest) -> Result<Response, RequestFailure> {
        let mut url = request.url.clone();
        let mut encrypted = false;
        for hop in 0..=MAX_REDIRECTS {
            let in_url = take_login(&mut url);
            // After an encrypted hop a netrc login must not go out in the clear.
            encrypted |= url.scheme() == "https";
            let exposed = encrypted && url.scheme() != "https";
            let login = self.login_for(&url, in_url, exposed);
            let response = self.send_to(request, &url, login.as_ref()).await;
            let response = match hop {
                0 => response?,
                // That another server cannot be reached must not count against this one.
                _ => response.map_err(|failure| failure.elsewhere(&url))?,
            };
            match target(&response, &request.method, &url)? {
                None => return Ok(response),
                Some(next) => url = next,
            }
            body::drain(response, self.pace()).await;
        }
        Err(RequestFailure::Nonsense(format!(
            "more than {MAX_REDIRECTS} redirects, the last to {}",
            shown(&url)
        )))
    }

    fn login_for(&self, url: &Url, in_url: Option<UrlLogin>, exposed: bool) -> Option<HeaderValue> {
        let inner = self.inner();
        let own = inner.login.as_ref().filter(|l| l.origin == url.origin());
        match (own, in_url) {
            (Some(own), _) => Some(own.header.clone()),
            (None, Some(in_url)) => Some(in_url.header(url, &inner.netrc)),
            (None, None) if exposed => None,
            (None, None) => {
                let found = inner.netrc.find(url.host_str()?, None);
                found.map(|(user, password)| basic(user, password))
            }
        }
    }

    async fn send_to(
        &self,
        request: &HttpRequest,
        url: &Url,
        login: Option<&HeaderValue>,
    ) -> Result<Response, RequestFailure> {
        let start = Instant::now();
        let answer = self.send_unobserved(request, url, login).await;
        let reason = answer.as_ref().err().map(RequestFailure::reason);
        let answered = AnsweredRequest {
            method: request.method.as_str(),
            url: &shown(url),
            outcome: match (&answer, &reason) {
                (Ok(response), _) => Ok(response.status().as_u16()),
                (Err(_), reason) => Err(reason.as_deref().unwrap_or_default()),
            },
            time: start.elapsed(),
            size: answer.as_ref().ok().and_then(|r| body::length(r.headers())),
        };
        self.inner().observer.answered(&answered);
        answer
    }

    async fn send_unobserved(
        &self,
        request: &HttpRequest,
        url: &Url,
        login: Option<&HeaderValue>,
    ) -> Result<Response, RequestFailure> {
        let stall = self.inner().stall_timeout;
        let make = || request.make(url, login, &self.inner().observer);
        let answer = self.send_over(url, request.bulk, &make);
        match &request.body {
            Payload::Stream(_, progress) => progress.watch(answer, stall).await,
            Payload::None => BodyProgress::default().watch(answer, stall).await,
        }
    }

    /// Over HTTP/2 if the server speaks it.
    async fn send_over(
        &self,
        url: &Url,
        bulk: bool,
        make: &(dyn Fn() -> reqwest::Request + Send + Sync),
    ) -> Result<Response, RequestFailure> {
        let inner = self.inner();
        loop {
            let gate = match inner.origins.of(url) {
                Origin::Http1 => return Ok(inner.http1.execute(make()).await?),
                Origin::Http2 => None,
                Origin::Unknown(gate) => Some(gate),
            };
            let mut held = match &gate {
                None => None,
                Some(gate) => match gate.try_lock() {
                    Ok(held) => Some(held),
                    // Somebody is finding out. One slow answer does not hold up all others.
                    Err(_) => match timeout(inner.connect_timeout, gate.lock()).await {
                        Ok(held) => match &*held {
                            Some(failure) => return Err(failure.clone()),
                            None => continue,
                        },
                        Err(_) => None,
                    },
                },
            };
            let client = if bulk && held.is_none() {
                &inner.http2_bulk
            } else {
                &inner.http2
            };
            match client.execute(make()).await {
                Ok(response) => {
                    if gate.is_some() {
                        inner.origins.set(url, Origin::Http2);
                    }
                    return Ok(response);
                }
                Err(error) if origin::is_not_http2(&error) => {
                    // Only the connection was refused, nothing was sent: the next round sends it
                    // over HTTP/1.1.
                    inner.origins.set(url, Origin::Http1);
                }
                Err(error) => {
                    let failure = RequestFailure::from(error);
                    if let Some(held) = &mut held {
                        **held = Some(failure.clone());
                    }
                    if matches!(failure, RequestFailure::Connect { .. }) || held.is_some() {
                        inner.origins.forget(url);
                    }
                    return Err(failure);
                }
            }
        }
    }
}

/// Where a redirect leads.
fn target(response: &Response, method: &Method, url: &Url) -> Result<Option<Url>, RequestFailure> {
    let follow = match response.status() {
        StatusCode::SEE_OTHER => matches!(*method, Method::GET | Method::HEAD),
        status => matches!(status.as_u16(), 301 | 302 | 307 | 308),
    };
    let Some(location) = response.headers().get(LOCATION).filter(|_| follow) else {
        return Ok(None);
    };
    let next = location
        .to_str()
        .ok()
        .and_then(|location| url.join(location).ok());
    match next {
        Some(next) if matches!(next.scheme(), "http" | "https") => Ok(Some(next)),
        _ => Err(RequestFailure::Nonsense(
            "it redirects to no http or https URL".to_owned(),
        )),
    }
}

fn no_answer(waited: Duration) -> RequestFailure {
    RequestFailure::timeout(format!("no answer for {waited:?}"))
}

/// The URL for people: without login, and without a query, which may be one too.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    take_login(&mut url);
    url[..Position::AfterPath].to_owned()
}

/// What a URL says of who this is.
pub(super) struct UrlLogin {
    user: Vec<u8>,
    password: Option<Vec<u8>>,
}

impl UrlLogin {
    /// The header for it. As with curl, a user alone picks its entry for the host.
    fn header(&self, url: &Url, netrc: &Netrc) -> HeaderValue {
        let entry = || netrc.find(url.host_str()?, Some(&self.user));
        let password = match &self.password {
            Some(password) => Some(password.as_slice()),
            None => entry().map(|(_, password)| password),
        };
        basic(&self.user, password.unwrap_or_default())
    }

    /// The same as a login for the cache at `url`.
    pub(super) fn login(&self, url: &Url, netrc: &Netrc) -> Login {
        Login {
            origin: url.origin(),
            header: self.header(url, netrc),
        }
    }
}

/// Takes the login out of a URL.
pub(super) fn take_login(url: &mut Url) -> Option<UrlLogin> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let login = UrlLogin {
        user: percent_decode_str(url.username()).collect(),
        password: url
            .password()
            .map(|text| percent_decode_str(text).collect()),
    };
    // Both fail only for URLs that cannot have a login.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    Some(login)
}

fn basic(user: &[u8], password: &[u8]) -> HeaderValue {
    let encoded = BASE64.encode(&[user, b":", password].concat());
    let mut header = HeaderValue::try_from(format!("Basic {encoded}"))
        .unwrap_or(HeaderValue::from_static("Basic"));
    header.set_sensitive(true);
    header
}

fn bearer(token: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// Bytes of a body at once.
const PIECE: usize = 64 << 10;

/// As curl in Nix and most browsers allow, or fewer.
const MAX_REDIRECTS: usize = 10;
