//! Opening binary caches far away.

use super::{OpenOptions, OpenStore, caches};
use crate::{
    CommandContext,
    settings::{cache_folder, path_var, state_folder},
};
use anyhow::{Context as _, Result, bail};
use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};
use tk_cache::{
    BinaryCache,
    bucket::{BucketConfig, BucketObjects, CloudEnvironment, PARAMETERS},
    disk_cache::{DiskCache, DiskCacheConfig},
    http::{Auth, ClientConfig, HttpConfig, HttpObjects, Netrc, Proxies},
    objects::{NarInfoCache, Objects},
};
use tk_path::StoreDir;
use tk_store::{StoreReference, StoreVariant, reference::Settings};
use url::Url;

/// The cache at an `http` or `https` URL.
pub async fn http(
    cx: &CommandContext,
    reference: &StoreReference,
    settings: &mut Settings,
    wish: &OpenOptions,
) -> Result<OpenStore> {
    let url = Url::parse(&reference.without_params().to_string())?;
    let mut config = HttpConfig::new(url);
    config.client = client(cx, settings)?;
    let objects = HttpObjects::open(config)?;
    let identity = objects.to_string();
    remote(cx, Arc::new(objects), identity, settings, wish).await
}

/// The cache in a bucket.
pub async fn bucket(
    cx: &CommandContext,
    scheme: &str,
    reference: &StoreReference,
    settings: &mut Settings,
    wish: &OpenOptions,
) -> Result<OpenStore> {
    let client = client(cx, settings)?;
    let StoreVariant::Specified { authority, .. } = &reference.variant else {
        bail!("it names no bucket");
    };
    let taken: BTreeMap<_, _> = PARAMETERS
        .iter()
        .filter_map(|name| Some((*name, settings.take(name)?)))
        .collect();
    let parameter = |name: &str| taken.get(name).cloned();
    let environment = CloudEnvironment {
        variables: env::vars().filter(|(name, _)| is_cloud(name)).collect(),
        home: path_var("HOME"),
    };
    let config = BucketConfig::from_parts(scheme, authority, &parameter, environment, client)?;
    let identity = config.identity()?;
    let objects = Arc::new(BucketObjects::open(config)?);
    remote(cx, objects, identity, settings, wish).await
}

/// Whether a variable is about credentials of object storage.
fn is_cloud(name: &str) -> bool {
    let begins = ["AWS_", "GOOGLE_", "AZURE_"];
    begins.iter().any(|begin| name.starts_with(begin)) || name == "SERVICE_ACCOUNT"
}

/// The cache whose objects are `objects`; `identity` tells it from all others.
pub async fn remote(
    cx: &CommandContext,
    objects: Arc<dyn Objects>,
    identity: String,
    settings: &mut Settings,
    wish: &OpenOptions,
) -> Result<OpenStore> {
    let mut config = caches::config(cx, settings, wish)?;
    config.known = known(cx, &identity, &config.store_dir, wish);
    config.observer = cx.ui.observer();
    config.journal = journal(wish).map(|folder| (folder, identity));
    let cache = BinaryCache::open(objects, config).await?;
    Ok(cache.into())
}

/// How to reach servers, from nix.conf, the environment, and the URI.
pub fn client(cx: &CommandContext, settings: &mut Settings) -> Result<ClientConfig> {
    let mut config = ClientConfig {
        observer: cx.ui.observer(),
        ..ClientConfig::default()
    };
    let certificate = settings.take_path("tls-certificate")?;
    let key = settings.take_path("tls-private-key")?;
    config.identity = match (certificate, key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some((certificate, key)),
        // Both may be in one file.
        (Some(both), None) | (None, Some(both)) => Some((both.clone(), both)),
    };
    config.ca_file = ["NIX_SSL_CERT_FILE", "SSL_CERT_FILE"]
        .into_iter()
        .find_map(path_var)
        .or_else(|| cx.settings.path("ssl-cert-file"));
    config.proxies = proxies();
    if let Some(suffix) = cx.settings.get("user-agent-suffix") {
        config.user_agent = format!("{} {suffix}", config.user_agent);
    }
    config.credentials.netrc = Arc::new(netrc(cx)?);
    if let Some(file) = settings.take_path("bearer-token-file")? {
        let token = fs::read_to_string(&file)
            .with_context(|| format!("reading the token in {}", file.display()))?;
        config.credentials.auth = Auth::Bearer(token.trim().to_owned());
    }
    let seconds = |name| {
        let number = cx.settings.get(name).and_then(|text| text.parse().ok());
        number.filter(|n| *n > 0).map(Duration::from_secs)
    };
    config.connect_timeout = seconds("connect-timeout").unwrap_or(config.connect_timeout);
    config.stall_timeout = seconds("stalled-download-timeout").unwrap_or(config.stall_timeout);
    let attempts = settings.take_u64("retry-attempts")?.filter(|n| *n > 0);
    let configured = cx.settings.get("download-attempts");
    let attempts = attempts.or_else(|| configured?.parse().ok());
    if let Some(attempts) = attempts {
        config.retry.attempts = u32::try_from(attempts).unwrap_or(u32::MAX).max(1);
    }
    // In milliseconds, as Nix has them.
    for (name, field) in [
        ("retry-delay", &mut config.retry.delay),
        (
            "retry-delay-rate-limited",
            &mut config.retry.delay_rate_limited,
        ),
        ("retry-max-delay", &mut config.retry.max_delay),
    ] {
        if let Some(delay) = settings.take_u64(name)?.filter(|n| *n > 0) {
            *field = Duration::from_millis(delay);
        }
    }
    Ok(config)
}

/// As curl: the small spelling first, and for plain http only that, since a web server's
/// environment may hold `HTTP_PROXY` from a request's header.
fn proxies() -> Proxies {
    let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let either = |name: &str| set(name).or_else(|| set(&name.to_uppercase()));
    Proxies {
        http: set("http_proxy"),
        https: either("https_proxy"),
        all: either("all_proxy"),
        no_proxy: either("no_proxy"),
    }
}

/// The file that nix.conf names, else Nix's default one, else the user's own.
fn netrc(cx: &CommandContext) -> Result<Netrc> {
    let named = cx.settings.path("netrc-file");
    let conf = path_var("NIX_CONF_DIR").unwrap_or_else(|| "/etc/nix".into());
    let own = path_var("NETRC").or_else(|| path_var("HOME").map(|home| home.join(".netrc")));
    let files = match named {
        Some(file) => vec![file],
        None => [Some(conf.join("netrc")), own]
            .into_iter()
            .flatten()
            .collect(),
    };
    for file in files {
        match fs::read(&file) {
            Ok(text) => return Ok(Netrc::parse(text)),
            // It is made for others to read it or not; without it there is just no login.
            Err(error) if is_absent(&error) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("reading {}", file.display()));
            }
        }
    }
    Ok(Netrc::default())
}

fn is_absent(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied};
    matches!(
        error.kind(),
        NotFound | NotADirectory | IsADirectory | PermissionDenied
    )
}

/// What the cache said before.
fn known(
    cx: &CommandContext,
    identity: &str,
    dir: &StoreDir,
    wish: &OpenOptions,
) -> Option<Arc<dyn NarInfoCache>> {
    /// One for all caches, so that what is wrong with it is told once.
    static SHARED: OnceLock<Option<Arc<DiskCache>>> = OnceLock::new();
    let shared = SHARED.get_or_init(|| disk_cache(cx));
    let disk = shared.as_ref()?;
    Some(if wish.refresh || cx.refresh {
        disk.of_now(identity, dir)
    } else {
        disk.of(identity, dir)
    })
}

/// What all caches said before. A machine without a folder for that works without.
fn disk_cache(cx: &CommandContext) -> Option<Arc<DiskCache>> {
    let folder = cache_folder().ok()?;
    let mut config = DiskCacheConfig {
        nix: Some(folder.join("nix")),
        observer: cx.ui.observer(),
        ..DiskCacheConfig::default()
    };
    for (name, field) in [
        ("narinfo-cache-positive-ttl", &mut config.positive),
        ("narinfo-cache-negative-ttl", &mut config.negative),
        ("narinfo-cache-meta-ttl", &mut config.info),
    ] {
        if let Some(seconds) = cx.settings.get(name).and_then(|text| text.parse().ok()) {
            *field = Duration::from_secs(seconds);
        }
    }
    let file = folder.join(Path::new("tk-store/narinfo-v1.sqlite"));
    match DiskCache::open(file, config) {
        Ok(cache) => Some(cache),
        Err(error) => {
            let line = error.to_line();
            cx.ui
                .warn(format_args!("what caches say is not remembered: {line}"));
            None
        }
    }
}

/// Where a push notes what has arrived.
fn journal(wish: &OpenOptions) -> Option<PathBuf> {
    let folder = || state_folder().ok().map(|folder| folder.join("journal"));
    wish.write.then(folder).flatten()
}
