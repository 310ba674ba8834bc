//! One request: whom it goes to, with which login, over what.

use super::{
    Auth, body,
    client::Client,
    failure::Failure,
    origin::{self, Origin},
};
use bytes::Bytes;
use data_encoding::BASE64;
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{AUTHORIZATION, LOCATION},
};
use percent_encoding::percent_decode_str;
use reqwest::Response;
use std::{sync::Arc, time::Duration};
use tk_store::{Error, Result};
use tokio::time::timeout;
use url::{Position, Url};

/// What to ask. It can be sent any number of times.
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Payload,
}

pub(super) enum Payload {
    None,
    Bytes(Bytes),
    /// Made anew for each attempt, and watched by whoever gives it.
    Stream(Arc<dyn Fn() -> reqwest::Body + Send + Sync>),
}

/// Whom a login is for, and the header that it is.
pub(super) struct Login {
    origin: url::Origin,
    header: HeaderValue,
}

impl Login {
    pub(super) fn new(cache: &Url, auth: &Auth) -> Result<Option<Self>> {
        let header = match auth {
            Auth::None => return Ok(None),
            Auth::Basic { user, password } => basic(user, password),
            Auth::Bearer(token) => bearer(token).ok_or_else(|| {
                Error::invalid("the token holds characters that cannot be sent, such as line ends")
            })?,
        };
        let origin = cache.origin();
        Ok(Some(Login { origin, header }))
    }
}

impl Request {
    pub(super) fn new(method: Method, url: Url) -> Self {
        Request {
            method,
            url,
            headers: HeaderMap::new(),
            body: Payload::None,
        }
    }

    fn make(&self, url: &Url, login: Option<&HeaderValue>) -> reqwest::Request {
        let mut request = reqwest::Request::new(self.method.clone(), url.clone());
        *request.headers_mut() = self.headers.clone();
        if let Some(login) = login {
            request.headers_mut().insert(AUTHORIZATION, login.clone());
        }
        *request.body_mut() = match &self.body {
            Payload::None => None,
            Payload::Bytes(bytes) => Some(bytes.clone().into()),
            Payload::Stream(make) => Some(make()),
        };
        request
    }
}

impl Client {
    /// The head of the answer, of whatever status but a redirect. It has come in a bounded time,
    /// except where the body is a stream.
    pub(super) async fn send(&self, request: &Request) -> Result<Response, Failure> {
        let mut url = request.url.clone();
        let mut encrypted = false;
        for _ in 0..=MAX_REDIRECTS {
            let in_url = take_login(&mut url);
            encrypted |= url.scheme() == "https";
            let exposed = encrypted && url.scheme() != "https";
            let login = self.login_for(&url, in_url, exposed);
            let response = self.send_to(request, &url, login.as_ref()).await?;
            match target(&response, &request.method, &url)? {
                None => return Ok(response),
                Some(next) => url = next,
            }
            body::drain(response, self.pace()).await;
        }
        Err(Failure::Nonsense(format!(
            "more than {MAX_REDIRECTS} redirects, the last to {}",
            shown(&url)
        )))
    }

    fn login_for(&self, url: &Url, in_url: Option<Auth>, exposed: bool) -> Option<HeaderValue> {
        let inner = self.inner();
        let own = inner.login.as_ref().filter(|l| l.origin == url.origin());
        if let Some(own) = own {
            return Some(own.header.clone());
        }
        if let Some(Auth::Basic { user, password }) = in_url {
            return Some(basic(&user, &password));
        }
        let found = inner.netrc.find(url.host_str()?).filter(|_| !exposed);
        found.map(|(user, password)| basic(user, password))
    }

    async fn send_to(
        &self,
        request: &Request,
        url: &Url,
        login: Option<&HeaderValue>,
    ) -> Result<Response, Failure> {
        let make = || request.make(url, login);
        let bounded = async {
            match timeout(self.inner().stall_timeout, self.send_over(url, &make)).await {
                Ok(result) => result,
                Err(_) => Err(no_answer(self.inner().stall_timeout)),
            }
        };
        match request.body {
            Payload::Stream(_) => self.send_over(url, &make).await,
            _ => bounded.await,
        }
    }

    /// Over HTTP/2 if the server speaks it.
    async fn send_over(
        &self,
        url: &Url,
        make: &(dyn Fn() -> reqwest::Request + Send + Sync),
    ) -> Result<Response, Failure> {
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
            match inner.http2.execute(make()).await {
                Ok(response) => {
                    if gate.is_some() {
                        inner.origins.set(url, Origin::Http2);
                    }
                    return Ok(response);
                }
                Err(error) if origin::is_not_http2(&error) => {
                    inner.origins.set(url, Origin::Http1);
                }
                Err(error) => {
                    let failure = Failure::from(error);
                    if let Some(held) = &mut held {
                        **held = Some(failure.clone());
                    }
                    if matches!(failure, Failure::Connect { .. }) || held.is_some() {
                        inner.origins.forget(url);
                    }
                    return Err(failure);
                }
            }
        }
    }
}

/// Where a redirect leads.
fn target(response: &Response, method: &Method, url: &Url) -> Result<Option<Url>, Failure> {
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
        _ => Err(Failure::Nonsense(
            "it redirects to no http or https URL".to_owned(),
        )),
    }
}

fn no_answer(waited: Duration) -> Failure {
    Failure::timeout(format!("no answer for {waited:?}"))
}

/// The URL for people: without login, and without a query, which may be one too.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    take_login(&mut url);
    url[..Position::AfterPath].to_owned()
}

/// Takes the login out of a URL.
pub(super) fn take_login(url: &mut Url) -> Option<Auth> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let plain = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let auth = Auth::Basic {
        user: plain(url.username()),
        password: plain(url.password().unwrap_or_default()),
    };
    // Both fail only for URLs that cannot have a login.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    Some(auth)
}

fn basic(user: &str, password: &str) -> HeaderValue {
    let encoded = BASE64.encode(format!("{user}:{password}").as_bytes());
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

/// As curl in Nix and most browsers allow, or fewer.
const MAX_REDIRECTS: usize = 10;
