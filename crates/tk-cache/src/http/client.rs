//! Connections.

use super::{
    ClientConfig, Netrc, Proxies, Retry,
    body::StallGuard,
    failure::RequestFailure,
    login::{Login, UrlLogin, shown},
    origin::{OnlyHttp2, Origins},
    retry::RetryState,
    tls,
};
use crate::{limit::Limit, observer::NetworkObserver};
use reqwest::{NoProxy, Proxy, redirect::Policy};
use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tk_nar::fs::descriptors;
use tk_store::{Error, Result};
use url::Url;

/// Connections to servers, kept while they are of use: two for each HTTP/2 server, some for each
/// HTTP/1.1 server.
///
/// A clone shares them.
#[derive(Clone)]
pub struct Client(Arc<ClientInner>);

pub(super) struct ClientInner {
    pub(super) http1: reqwest::Client,
    pub(super) http2: reqwest::Client,
    /// For bodies of any length: those that nobody reads for a while would hold up everything
    /// else on their connection.
    pub(super) http2_bulk: reqwest::Client,
    pub(super) origins: Origins,
    limit_http1: Limit,
    limit_http2: Limit,
    parallel: usize,
    pub(super) login: Option<Login>,
    pub(super) netrc: Arc<Netrc>,
    retry: Retry,
    pub(super) stall_timeout: Duration,
    pub(super) connect_timeout: Duration,
    spool: Option<PathBuf>,
    pub(super) observer: Arc<dyn NetworkObserver>,
}

impl Client {
    /// Makes ready to connect; [`Credentials::auth`](super::HttpCredentials::auth) has no server to go
    /// to and is not used. Nothing is sent yet.
    ///
    /// # Errors
    /// When certificates or proxies are no such thing.
    pub fn new(config: &ClientConfig) -> Result<Self> {
        Client::with_login(config, None)
    }

    /// The same for the cache at a URL, with the login that stands in it unless another is given.
    pub(super) fn for_cache(
        config: &ClientConfig,
        cache: &Url,
        in_url: Option<UrlLogin>,
    ) -> Result<Self> {
        let credentials = &config.credentials;
        let in_url = in_url.map(|login| login.login(cache, &credentials.netrc));
        let login = Login::new(cache, &credentials.auth)?.or(in_url);
        Client::with_login(config, login)
    }

    fn with_login(config: &ClientConfig, login: Option<Login>) -> Result<Self> {
        let tls = tls::config(config)?;
        let parallel = config.parallel.max(1);
        let of_http1 = parallel.min(http1_connections());
        let mut tls1 = tls.clone();
        tls1.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut tls2 = tls;
        // Both are offered, so that a server without HTTP/2 agrees to the other instead of
        // breaking off; `OnlyHttp2` then tells which it was.
        tls2.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let http1 = builder(config)?
            .http1_only()
            .tls_backend_preconfigured(tls1);
        let http2 = || {
            let builder = builder(config)?.http2_prior_knowledge();
            let builder = builder
                .connector_layer(OnlyHttp2)
                .http2_initial_stream_window_size(STREAM_WINDOW)
                .http2_initial_connection_window_size(CONNECTION_WINDOW)
                .http2_max_frame_size(FRAME)
                .tls_backend_preconfigured(tls2.clone());
            builder.build().map_err(preparing)
        };
        Ok(Client(Arc::new(ClientInner {
            http1: http1.build().map_err(preparing)?,
            http2: http2()?,
            http2_bulk: http2()?,
            origins: Origins::default(),
            limit_http1: Limit::new(of_http1, of_http1),
            limit_http2: Limit::new(parallel, parallel),
            parallel,
            login,
            netrc: config.credentials.netrc.clone(),
            retry: config.retry.clone(),
            stall_timeout: config.stall_timeout,
            connect_timeout: config.connect_timeout,
            spool: config.spool.clone(),
            observer: config.observer.clone(),
        })))
    }

    /// The client underneath, over HTTP/1.1: with certificates, proxies and timeouts for
    /// connecting, but without login, redirects, tries or any bound.
    pub fn raw(&self) -> &reqwest::Client {
        &self.0.http1
    }

    /// Who is told what happens.
    pub fn observer(&self) -> &Arc<dyn NetworkObserver> {
        &self.0.observer
    }

    /// What is tried again, and when.
    pub fn retry_config(&self) -> &Retry {
        &self.0.retry
    }

    pub(super) fn inner(&self) -> &ClientInner {
        &self.0
    }

    pub(super) fn spool(&self) -> Option<&Path> {
        self.0.spool.as_deref()
    }

    pub(crate) fn pace(&self) -> StallGuard {
        StallGuard::new(self.0.stall_timeout, self.0.observer.clone())
    }

    pub(super) fn parallel(&self, url: &Url) -> usize {
        if self.0.origins.may_be_http2(url) {
            self.0.parallel
        } else {
            self.0.parallel.min(http1_connections())
        }
    }

    pub(super) fn tries(&self, url: &Url) -> RetryState {
        let limit = if self.0.origins.may_be_http2(url) {
            &self.0.limit_http2
        } else {
            &self.0.limit_http1
        };
        let observed = (shown(url), self.0.observer.clone());
        RetryState::new(self.0.retry.clone(), limit.clone(), observed)
    }

    /// The result of the last attempt of those that are worth making.
    pub(super) async fn retry<T, F>(
        &self,
        url: &Url,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, RequestFailure>
    where
        F: Future<Output = Result<T, RequestFailure>>,
    {
        let mut tries = self.tries(url);
        loop {
            let permit = tries.start().await;
            if let Some(failure) = self.0.origins.down(url) {
                return Err(failure);
            }
            let failure = match attempt().await {
                Ok(result) => {
                    permit.succeeded();
                    return Ok(result);
                }
                Err(failure) => failure,
            };
            if let Err(failure) = tries.again(permit, failure).await {
                self.0.origins.note_down(url, &failure);
                return Err(failure);
            }
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// What both kinds of connections have in common.
fn builder(config: &ClientConfig) -> Result<reqwest::ClientBuilder> {
    let mut builder = reqwest::Client::builder()
        // Proxies, redirects and tries are decided on here, where logins and limits are known.
        .no_proxy()
        .redirect(Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .user_agent(config.user_agent.as_str())
        .connect_timeout(config.connect_timeout)
        .tcp_nodelay(true)
        .tcp_keepalive(KEEP_ALIVE)
        .pool_idle_timeout(IDLE);
    for proxy in proxies(&config.proxies)? {
        builder = builder.proxy(proxy);
    }
    Ok(builder)
}

fn proxies(proxies: &Proxies) -> Result<Vec<Proxy>> {
    let direct = proxies.no_proxy.as_deref().and_then(NoProxy::from_string);
    let make = |make: fn(String) -> reqwest::Result<Proxy>, proxy: &String| {
        let proxy = if proxy.contains("://") {
            proxy.clone()
        } else {
            format!("http://{proxy}")
        };
        let shown = Url::parse(&proxy).map_or("the given proxy".to_owned(), |url| shown(&url));
        let made = make(proxy).map_err(|_| Error::invalid(format!("{shown} is not a proxy")))?;
        Ok(made.no_proxy(direct.clone()))
    };
    // As with curl, an empty one is none.
    let given = |proxy: &'_ Option<String>| proxy.clone().filter(|proxy| !proxy.is_empty());
    let http = given(&proxies.http).map(|p| make(Proxy::http, &p));
    let https = given(&proxies.https).map(|p| make(Proxy::https, &p));
    let all = given(&proxies.all).map(|p| make(Proxy::all, &p));
    http.into_iter().chain(https).chain(all).collect()
}

fn preparing(error: reqwest::Error) -> Error {
    Error::io("preparing connections", io::Error::other(error))
}

/// Connections to one HTTP/1.1 server for small requests: fewer where few files may be open, since there may
/// be several servers.
fn http1_connections() -> usize {
    (descriptors() / 8).clamp(1, HTTP1_CONNECTIONS)
}

const HTTP1_CONNECTIONS: usize = 64;

/// What a server may send before it hears from us: 200 MB/s for each NAR at a round trip of 40 ms.
/// The second is the most that is held for readers that are slower than their server.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;

const FRAME: u32 = 64 << 10;

/// Idle connections are closed after this long, before servers usually do.
const IDLE: Duration = Duration::from_secs(50);

const KEEP_ALIVE: Duration = Duration::from_secs(15);
