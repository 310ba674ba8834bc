//! Opening binary caches far away.

use super::{OpenOptions, Result, caches};
use crate::{Environment, OpenError, OpenSettings, OpenStore, error::InContext};
use std::{collections::BTreeMap, fs, sync::Arc, time::Duration};
use tk_cache::{
    BinaryCache,
    http::{Auth, Client, ClientConfig, HttpConfig, HttpObjects, Netrc, Proxies},
    objects::Objects,
};
use tk_store::{StoreReference, StoreVariant, reference::Settings};
use url::Url;

/// The cache at an `http` or `https` URL.
pub async fn http(
    settings: &OpenSettings,
    reference: &StoreReference,
    params: &mut Settings,
    wish: &OpenOptions,
) -> Result<OpenStore> {
    let url = Url::parse(&reference.without_params().to_string())
        .map_err(|error| OpenError::Invalid(error.to_string()))?;
    let mut config = HttpConfig::new(url);
    config.client = client(settings, params)?;
    let objects = HttpObjects::open(config)?;
    let identity = objects.to_string();
    remote(settings, Arc::new(objects), identity, params, wish).await
}

/// The cache in a bucket.
#[cfg(feature = "bucket")]
pub async fn bucket(
    settings: &OpenSettings,
    scheme: &str,
    reference: &StoreReference,
    params: &mut Settings,
    wish: &OpenOptions,
) -> Result<OpenStore> {
    use tk_cache::bucket::{BucketConfig, BucketObjects, CloudEnvironment, PARAMETERS};
    let client = client(settings, params)?;
    let StoreVariant::Specified { authority, .. } = &reference.variant else {
        return Err(OpenError::invalid("it names no bucket"));
    };
    let taken: std::collections::BTreeMap<_, _> = PARAMETERS
        .iter()
        .filter_map(|name| Some((*name, params.take(name)?)))
        .collect();
    let parameter = |name: &str| taken.get(name).cloned();
    let is_cloud = |name: &str| {
        let begins = ["AWS_", "GOOGLE_", "AZURE_"];
        begins.iter().any(|begin| name.starts_with(begin)) || name == "SERVICE_ACCOUNT"
    };
    let environment = &settings.environment;
    let variables = environment.variables.iter().filter_map(|(name, value)| {
        let pair = (name.to_str()?.to_owned(), value.to_str()?.to_owned());
        is_cloud(&pair.0).then_some(pair)
    });
    let environment = CloudEnvironment {
        variables: variables.collect(),
        home: environment.path("HOME"),
    };
    let config = BucketConfig::from_parts(scheme, authority, &parameter, environment, client)?;
    let identity = config.identity()?;
    let objects = Arc::new(BucketObjects::open(config)?);
    remote(settings, objects, identity, params, wish).await
}

/// The cache whose objects are `objects`; `identity` tells it from all others.
async fn remote(
    settings: &OpenSettings,
    objects: Arc<dyn Objects>,
    identity: String,
    params: &mut Settings,
    wish: &OpenOptions,
) -> Result<OpenStore> {
    let mut config = caches::config(settings, params, wish)?;
    #[cfg(feature = "disk-cache")]
    {
        config.known = super::disk_cache::known(settings, &identity, &config.store_dir, wish);
    }
    config.observer = settings.observer.clone();
    config.journal = journal(settings, wish).map(|folder| (folder, identity));
    let cache = BinaryCache::open(objects, config).await?;
    Ok(cache.into())
}

/// How to reach servers, from nix.conf, the environment, and the URI.
/// Connections for files of any server, as caches are reached.
///
/// # Errors
/// When certificates, proxies or logins are no such thing.
pub fn http_client(settings: &OpenSettings) -> Result<Client> {
    let mut none = StoreReference::new(StoreVariant::Auto, BTreeMap::new()).settings();
    Ok(Client::new(&client(settings, &mut none)?)?)
}

fn client(settings: &OpenSettings, params: &mut Settings) -> Result<ClientConfig> {
    let mut config = ClientConfig {
        observer: settings.observer.clone(),
        ..ClientConfig::default()
    };
    let certificate = params.take_path("tls-certificate")?;
    let key = params.take_path("tls-private-key")?;
    config.identity = match (certificate, key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some((certificate, key)),
        // Both may be in one file.
        (Some(both), None) | (None, Some(both)) => Some((both.clone(), both)),
    };
    config.ca_file = ["NIX_SSL_CERT_FILE", "SSL_CERT_FILE"]
        .into_iter()
        .find_map(|name| settings.environment.path(name))
        .or_else(|| settings.nix_conf.path("ssl-cert-file"));
    config.proxies = proxies(&settings.environment);
    if let Some(suffix) = settings.nix_conf.get("user-agent-suffix") {
        config.user_agent = format!("{} {suffix}", config.user_agent);
    }
    config.credentials.netrc = Arc::new(netrc(settings)?);
    if let Some(file) = params.take_path("bearer-token-file")? {
        let token = fs::read_to_string(&file)
            .in_context(|| format!("reading the token in {}", file.display()))?;
        config.credentials.auth = Auth::Bearer(token.trim().to_owned());
    }
    let seconds = |name| {
        let number = settings
            .nix_conf
            .get(name)
            .and_then(|text| text.parse().ok());
        number.filter(|n| *n > 0).map(Duration::from_secs)
    };
    config.connect_timeout = seconds("connect-timeout").unwrap_or(config.connect_timeout);
    config.stall_timeout = seconds("stalled-download-timeout").unwrap_or(config.stall_timeout);
    let attempts = params.take_u64("retry-attempts")?.filter(|n| *n > 0);
    let configured = settings.nix_conf.get("download-attempts");
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
        if let Some(delay) = params.take_u64(name)?.filter(|n| *n > 0) {
            *field = Duration::from_millis(delay);
        }
    }
    Ok(config)
}

/// As curl: the small spelling first, and for plain http only that, since a web server's
/// environment may hold `HTTP_PROXY` from a request's header.
fn proxies(environment: &Environment) -> Proxies {
    let set = |name: &str| environment.text(name).map(str::to_owned);
    let either = |name: &str| set(name).or_else(|| set(&name.to_uppercase()));
    Proxies {
        http: set("http_proxy"),
        https: either("https_proxy"),
        all: either("all_proxy"),
        no_proxy: either("no_proxy"),
    }
}

/// The file that nix.conf names, else Nix's default one, else the user's own.
fn netrc(settings: &OpenSettings) -> Result<Netrc> {
    let named = settings.nix_conf.path("netrc-file");
    let conf = settings
        .environment
        .path("NIX_CONF_DIR")
        .unwrap_or_else(|| "/etc/nix".into());
    let own = settings.environment.path("NETRC").or_else(|| {
        settings
            .environment
            .path("HOME")
            .map(|home| home.join(".netrc"))
    });
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
                return Err(error).in_context(|| format!("reading {}", file.display()));
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

/// Where a push notes what has arrived.
fn journal(settings: &OpenSettings, wish: &OpenOptions) -> Option<std::path::PathBuf> {
    let folder = || Some(settings.environment.state_folder().ok()?.join("journal"));
    wish.write.then(folder).flatten()
}
