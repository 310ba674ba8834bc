//! Caches on HTTP servers, and what every connection over the network has in common.

mod body;
mod causes;
mod client;
mod encoding;
mod failure;
mod login;
mod netrc;
mod origin;
mod retry;
mod send;
mod spool;
mod stream;
mod tls;
mod upload;

pub use client::Client;
pub use netrc::Netrc;
pub use retry::Retry;
#[cfg(feature = "bucket")]
pub(crate) use {
    body::StallGuard,
    causes::{causes, innermost, io_kind},
    encoding::Encodings,
    login::shown,
    retry::{RetryState, retry_after},
    send::{BodyProgress, pieces},
};
pub(crate) use {
    failure::RequestFailure,
    retry::{RetryClass, Retryable},
};

use crate::{
    layout::CACHE_INFO,
    objects::{ObjectMeta, Objects, Upload},
    observer::NetworkObserver,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, IF_NONE_MATCH},
};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use reqwest::Response;
use send::{HttpRequest, Payload};
use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tk_store::{ByteStream, Error, Result};
use tokio::sync::OnceCell;
use url::Url;

/// How to reach servers.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// PEM certificates of the authorities to trust instead of the system's, or of servers
    /// themselves. Only connections that are encrypted need the file.
    pub ca_file: Option<PathBuf>,
    /// What to present to servers that ask who this is: PEM files of the certificate chain and of
    /// its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Which proxies to go through.
    pub proxies: Proxies,
    /// The value of the `User-Agent` header. Default: `tk-store/` and the version.
    pub user_agent: String,
    /// How long a connection may take to come about, TLS included.
    pub connect_timeout: Duration,
    /// How long a server may send nothing (and take nothing) in the midst of a request, which is
    /// then sent once more. One that sends a few bytes now and then is given up after about twice
    /// this time.
    pub stall_timeout: Duration,
    /// What is tried again, and when.
    pub retry: Retry,
    /// The most small requests under way at once, over HTTP/2; over HTTP/1.1, where each needs a
    /// connection, they are fewer.
    pub parallel: usize,
    /// The logins to send. Default: none.
    pub credentials: HttpCredentials,
    /// Where bodies of uploads are kept while they are sent; `None`: in the system's folder for
    /// temporary files.
    pub spool: Option<PathBuf>,
    /// Who is told what happens.
    pub observer: Arc<dyn NetworkObserver>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        ClientConfig {
            ca_file: None,
            identity: None,
            proxies: Proxies::default(),
            user_agent: concat!("tk-store/", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(60),
            retry: Retry::default(),
            parallel: 256,
            credentials: HttpCredentials::default(),
            spool: None,
            observer: Arc::new(()),
        }
    }
}

/// Proxies by scheme, as the variables `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy`
/// mean them to curl. URLs may hold a login; without scheme they are `http://`.
#[derive(Clone, Default)]
pub struct Proxies {
    /// The proxy for `http://` URLs; `None` or empty: that of `all`.
    pub http: Option<String>,
    /// The proxy for `https://` URLs; `None` or empty: that of `all`.
    pub https: Option<String>,
    /// For those of the two that are not given.
    pub all: Option<String>,
    /// Hosts that are reached directly, separated by commas; `*`: all.
    pub no_proxy: Option<String>,
}

/// Shows the proxies without the logins in their URLs.
impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = |proxy: &Option<String>| {
            let after_login = |p: &String| p.rsplit('@').next().unwrap_or_default().to_owned();
            proxy.as_ref().map(after_login)
        };
        f.debug_struct("Proxies")
            .field("http", &host(&self.http))
            .field("https", &host(&self.https))
            .field("all", &host(&self.all))
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}

/// Logins for HTTP servers: one for the cache, and those of a netrc file.
#[derive(Debug, Clone, Default)]
pub struct HttpCredentials {
    /// For the cache itself: its scheme, host and port, nobody else.
    pub auth: Auth,
    /// For any host that has an entry, where `auth` does not apply; the user of the cache's URL picks
    /// its own entry. Not sent in the clear to where an encrypted answer redirects.
    pub netrc: Arc<Netrc>,
}

/// How to prove who this is. Secrets are never shown.
#[derive(Clone, Default)]
pub enum Auth {
    /// No login is given here; that of the cache's URL or of the netrc file still counts.
    #[default]
    None,
    /// By a name and a password, which are sent with each request.
    Basic {
        /// The name of the user.
        user: String,
        /// The password of that user.
        password: String,
    },
    /// By a token, which is sent with each request as `Authorization: Bearer`.
    Bearer(String),
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Auth::None => "None",
            Auth::Basic { .. } => "Basic(…)",
            Auth::Bearer(_) => "Bearer(…)",
        })
    }
}

/// Which cache, and how to reach it.
#[derive(Clone)]
pub struct HttpConfig {
    /// Its `http` or `https` URL. A login in it counts unless [`HttpCredentials::auth`] says another.
    /// Query and fragment are dropped.
    pub url: Url,
    /// How to reach it.
    pub client: ClientConfig,
}

impl HttpConfig {
    /// The defaults for the cache at `url`.
    pub fn new(url: Url) -> Self {
        HttpConfig {
            url,
            client: ClientConfig::default(),
        }
    }
}

/// Shows the URL and the settings without any login.
impl fmt::Debug for HttpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpConfig")
            .field("url", &login::shown(&self.url))
            .field("client", &self.client)
            .finish()
    }
}

/// A cache on an HTTP server.
///
/// # Security
/// A login goes to the cache only: not to where it redirects, not to other hosts that a narinfo
/// names. What servers send is bounded before it is held.
///
/// # Absent and forbidden
/// Buckets and those who stand before them answer "forbidden" for what is not there to those who
/// may not list it. As in Nix, 401 and 403 mean "absent" where the `nix-cache-info` of the cache can
/// be read with the same login; the first time a warning says so, since a right may be missing. From
/// a server that refuses that, too, they are errors.
///
/// A clone is the same cache.
#[derive(Clone)]
pub struct HttpObjects(Arc<HttpInner>);

struct HttpInner {
    client: Client,
    /// Without login, with a slash at the end.
    base: Url,
    /// The same as text without the slash.
    name: String,
    /// Whether something of the cache could be read, so that it is not us whom it refuses.
    readable: OnceCell<bool>,
    /// Whether it was told that "forbidden" is taken for "absent".
    warned: AtomicBool,
    wants_length: upload::WantsLength,
}

impl HttpObjects {
    /// Makes ready to ask the cache. Nothing is sent yet.
    ///
    /// # Errors
    /// When the URL is none of `http` or `https`, or certificates, proxies or the login are no
    /// such thing.
    pub fn open(config: HttpConfig) -> Result<Self> {
        let mut base = config.url;
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
            let url = login::shown(&base);
            return Err(Error::invalid(format!("{url} is not an http or https URL")));
        }
        let login = login::take_login(&mut base);
        base.set_query(None);
        base.set_fragment(None);
        let path = format!("{}/", base.path().trim_end_matches('/'));
        base.set_path(&path);
        Ok(HttpObjects(Arc::new(HttpInner {
            client: Client::for_cache(&config.client, &base, login)?,
            name: base.as_str().trim_end_matches('/').to_owned(),
            base,
            readable: OnceCell::new(),
            warned: AtomicBool::new(false),
            wants_length: upload::WantsLength::default(),
        })))
    }

    /// The client that it asks with.
    pub fn client(&self) -> &Client {
        &self.0.client
    }
}

impl HttpInner {
    fn url(&self, name: &str) -> Result<Url> {
        let url = format!("{}{}", self.base, utf8_percent_encode(name, NOT_IN_NAMES));
        Url::parse(&url).map_err(|e| Error::malformed(url, e))
    }

    /// What an answer that is not the object says: that there is none, or else the failure.
    async fn absent(&self, response: Response, url: &Url) -> Result<(), RequestFailure> {
        let status = response.status();
        if matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE) {
            body::drain(response, self.client.pace()).await;
            return Ok(());
        }
        let failure = body::refused(response, self.client.pace()).await;
        let forbidden = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        // Only below the cache's own URL can its `nix-cache-info` show what "forbidden" means.
        if !forbidden || !url.as_str().starts_with(self.base.as_str()) {
            return Err(failure);
        }
        let info = self.base.join(CACHE_INFO);
        let info = info.map_err(|e| RequestFailure::Local(e.to_string()))?;
        let learn = || self.is_readable(info.clone());
        // That file cannot speak for itself.
        if *url == info || !*self.readable.get_or_try_init(learn).await? {
            return Err(failure);
        }
        if !self.warned.swap(true, Ordering::Relaxed) {
            let text = format!(
                "{} answers HTTP status {status}, which is taken for \"not there\", as Nix does; \
                 it may also be that the login, if any, does not allow to read it ({})",
                self.name,
                login::shown(url)
            );
            self.client.observer().warned(&text);
        }
        Ok(())
    }

    /// Asks whether the `nix-cache-info` of the cache can be read.
    async fn is_readable(&self, info: Url) -> Result<bool, RequestFailure> {
        let response = self
            .client
            .send(&HttpRequest::new(Method::GET, info))
            .await?;
        if response.status().is_success() {
            body::drain(response, self.client.pace()).await;
            return Ok(true);
        }
        let failure = body::refused(response, self.client.pace()).await;
        if failure.retry_class() == RetryClass::Never {
            Ok(false)
        } else {
            Err(failure)
        }
    }

    async fn read_once(
        &self,
        request: &HttpRequest,
        limit: usize,
    ) -> Result<Option<Bytes>, RequestFailure> {
        let response = self.client.send(request).await?;
        match response.status() {
            StatusCode::OK | StatusCode::NON_AUTHORITATIVE_INFORMATION => {
                let content = body::read(response, limit, self.client.pace()).await?;
                // It may be known already.
                let _ = self.readable.set(true);
                Ok(Some(content))
            }
            _ => self.absent(response, &request.url).await.map(|()| None),
        }
    }

    async fn look_once(&self, request: &HttpRequest) -> Result<Option<ObjectMeta>, RequestFailure> {
        let response = self.client.send(request).await?;
        match response.status() {
            StatusCode::OK | StatusCode::NO_CONTENT => {
                // The size in transit says nothing of an object that is packed for it.
                let packed = response
                    .headers()
                    .contains_key(http::header::CONTENT_ENCODING);
                let size = body::length(response.headers()).filter(|_| !packed);
                Ok(Some(ObjectMeta { size }))
            }
            _ => self.absent(response, &request.url).await.map(|()| None),
        }
    }

    async fn write_once(&self, request: &HttpRequest) -> Result<bool, RequestFailure> {
        let response = self.client.send(request).await?;
        match response.status() {
            StatusCode::PRECONDITION_FAILED if request.headers.contains_key(IF_NONE_MATCH) => {
                body::drain(response, self.client.pace()).await;
                Ok(false)
            }
            status if status.is_success() => {
                body::drain(response, self.client.pace()).await;
                Ok(true)
            }
            _ => Err(body::refused(response, self.client.pace()).await),
        }
    }

    async fn remove_once(&self, request: &HttpRequest) -> Result<(), RequestFailure> {
        let response = self.client.send(request).await?;
        let status = response.status();
        if status.is_success() || matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE) {
            body::drain(response, self.client.pace()).await;
            return Ok(());
        }
        Err(body::refused(response, self.client.pace()).await)
    }

    fn failed(&self, verb: &str, url: &Url, failure: RequestFailure) -> Error {
        failure.into_error(&self.name, verb, url)
    }
}

#[async_trait]
impl Objects for HttpObjects {
    async fn read(&self, name: &str, limit: usize) -> Result<Option<Bytes>> {
        let url = self.0.url(name)?;
        let mut request = HttpRequest::new(Method::GET, url);
        if let Some(accept) = body::ACCEPT {
            request
                .headers
                .insert(ACCEPT_ENCODING, HeaderValue::from_static(accept));
        }
        let attempt = || self.0.read_once(&request, limit);
        let result = self.0.client.retry(&request.url, attempt).await;
        result.map_err(|failure| self.0.failed("reading", &request.url, failure))
    }

    async fn look(&self, name: &str) -> Result<Option<ObjectMeta>> {
        let request = HttpRequest::new(Method::HEAD, self.0.url(name)?);
        let attempt = || self.0.look_once(&request);
        let result = self.0.client.retry(&request.url, attempt).await;
        result.map_err(|failure| self.0.failed("looking for", &request.url, failure))
    }

    async fn stream(&self, url: &str) -> Result<Option<ByteStream>> {
        stream::open(&self.0, url).await
    }

    async fn write(&self, name: &str, content: Bytes, mime: &str, only_new: bool) -> Result<bool> {
        let mut request = HttpRequest::new(Method::PUT, self.0.url(name)?);
        request.headers = put_headers(mime)?;
        request.headers.insert(CONTENT_LENGTH, content.len().into());
        if only_new {
            request
                .headers
                .insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        request.body = Payload::bytes(content);
        let attempt = || self.0.write_once(&request);
        let result = self.0.client.retry(&request.url, attempt).await;
        result.map_err(|failure| self.0.failed("writing", &request.url, failure))
    }

    async fn upload(&self, upload: Upload<'_>) -> Result<()> {
        upload::run(&self.0, upload).await
    }

    async fn remove(&self, name: &str) -> Result<()> {
        let request = HttpRequest::new(Method::DELETE, self.0.url(name)?);
        let attempt = || self.0.remove_once(&request);
        let result = self.0.client.retry(&request.url, attempt).await;
        result.map_err(|failure| self.0.failed("removing", &request.url, failure))
    }

    fn list(&self, _folder: &str) -> BoxStream<'_, Result<String>> {
        let error = Error::Unsupported {
            store: self.to_string(),
            what: "cannot list what it holds".to_owned(),
        };
        Box::pin(futures::stream::iter([Err(error)]))
    }

    fn parallel(&self) -> usize {
        self.0.client.parallel(&self.0.base)
    }
}

/// Prints the canonical URI of the cache, without login and without a slash at the end.
impl fmt::Display for HttpObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name)
    }
}

impl fmt::Debug for HttpObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpObjects({})", self.0.name)
    }
}

fn put_headers(mime: &str) -> Result<HeaderMap> {
    let mime = HeaderValue::from_str(mime)
        .map_err(|_| Error::invalid(format!("{mime:?} is not a media type")))?;
    Ok(HeaderMap::from_iter([(CONTENT_TYPE, mime)]))
}

/// A name is a path, whatever it looks like: `log/x?.drv`.
const NOT_IN_NAMES: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');
