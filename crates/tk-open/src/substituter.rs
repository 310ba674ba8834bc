use crate::{
    jobs::copy,
    nix_conf::{self, Caches, Change},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tk_cache::BinaryCache;
use tk_narinfo::{CacheInfo, PublicKey, SecretKey};
use tk_path::StorePath;
use tk_store::{
    Error, Result, SigCheck, Store, StoreReference, blocking,
    copy::{CopyOptions, CopyReport},
};

/// A binary cache that is filled from a store here, and that nix can be made to fetch from.
#[derive(Debug, Clone)]
pub struct Substituter {
    cache: Arc<BinaryCache>,
    source: Arc<dyn Store>,
    conf: PathBuf,
    sign: Vec<Arc<SecretKey>>,
}

/// How nix is to use a cache.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheConfig {
    /// The URL that nix gets. Where secret keys lie is left out of it.
    pub url: String,
    /// Whose signatures nix is to trust: `name:base64`. Without it, that of the secret key.
    #[serde(default)]
    pub public_key: Option<String>,
    /// The key that signs what is put into the cache, or the file that holds it. Only looked at: it
    /// is written nowhere, neither by this nor by `Debug` or `Serialize`.
    #[serde(default, skip_serializing)]
    pub secret_key: Option<String>,
    /// When the cache is asked, beside others: the lower, the earlier. It stands in the cache itself,
    /// for all who use it.
    #[serde(default)]
    pub priority: Option<i32>,
}

/// What [`Substituter::configure`] found or made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredSubstituter {
    /// The URL as nix has it.
    pub url: String,
    /// The key that nix trusts.
    pub public_key: Option<PublicKey>,
    /// The priority that the cache says.
    pub priority: Option<i32>,
    /// The nix.conf that names the cache now, and whether it was changed.
    pub conf: Change,
    /// Whether the cache was told another priority.
    pub cache_changed: bool,
}

impl Substituter {
    /// `cache`, filled from `source`; nix reads the nix.conf at `conf`.
    pub fn new(cache: Arc<BinaryCache>, source: Arc<dyn Store>, conf: impl Into<PathBuf>) -> Self {
        Substituter {
            cache,
            source,
            conf: conf.into(),
            sign: Vec::new(),
        }
    }

    /// The same, which signs with `key` what is put there.
    pub fn sign_with(mut self, key: Arc<SecretKey>) -> Self {
        self.sign.push(key);
        self
    }

    /// Whether the cache has `path`.
    ///
    /// # Errors
    /// When it could not be asked, which is never "no".
    pub async fn exists(&self, path: &StorePath) -> Result<bool> {
        let one = BTreeSet::from([path.clone()]);
        Ok(self.cache.valid(&one).await?.contains(path))
    }

    /// Puts `path` there with its closure; what is there is not sent again, but signed if it lacks the
    /// signature.
    ///
    /// # Errors
    /// The first path that could not be put there is the error.
    pub async fn upload(&self, path: &StorePath) -> Result<CopyReport> {
        let mut options = CopyOptions::new(SigCheck::Skip);
        options.sign = self.sign.clone();
        let roots = [path.clone()].into();
        let mut report = copy(&self.source, &self.cache.abilities(), &roots, &options).await?;
        if report.failed.is_empty() {
            Ok(report)
        } else {
            Err(report.failed.swap_remove(0).1)
        }
    }

    /// Makes nix fetch from the cache and trust its key; see [`configure`].
    pub async fn configure(&self, config: &CacheConfig) -> Result<ConfiguredSubstituter> {
        configure(&self.cache, &self.conf, config).await
    }
}

/// Makes nix fetch from `cache`, which is what `config.url` names, and trust its key: in the nix.conf at
/// `conf`, see [`nix_conf`]. All is checked first: that the cache answers and is for the same store directory, that the
/// keys are keys and belong to each other. Doing it again changes nothing.
///
/// Whoever knows the cache already may need a week to hear of another priority: so long nix
/// remembers what a cache said. A daemon takes caches and keys from the nix.conf of a user only if it trusts that user.
///
/// # Errors
/// [`Error::Invalid`] for what is no key or no URL for nix.conf, [`Error::Io`] for files and caches
/// that cannot be read or written.
pub async fn configure(
    cache: &BinaryCache,
    conf: &Path,
    config: &CacheConfig,
) -> Result<ConfiguredSubstituter> {
    let url = url_for_nix(&config.url)?;
    let public_key = config.checked_key()?;
    let said = cache.read_cache_info().await?;
    if said.is_none() && config.priority.is_none() {
        return Err(Error::invalid(format!(
            "{cache} has no nix-cache-info, so that nix takes it for no cache; make one first (tk-store cache init)"
        )));
    }
    let told = tell_priority(cache, said, config.priority).await?;
    let (info, cache_changed) = told;
    info.check_store_dir(cache.dir())
        .map_err(|e| Error::invalid(format!("{cache}: {e}")))?;
    let file = conf.to_owned();
    let (wanted, key) = (url.clone(), public_key.clone());
    let work = move || {
        let change = nix_conf::add(&file, &wanted, key.as_ref())?;
        // Read back: what counts is what nix will read.
        let said = Caches::of_file(&file)?;
        let has_key = key.is_none_or(|key| said.keys.contains(&key.to_string()));
        if said.has(&wanted) && has_key {
            Ok(change)
        } else {
            Err(Error::io(
                format!("reading back {}", file.display()),
                io::Error::other("somebody else changed it meanwhile"),
            ))
        }
    };
    Ok(ConfiguredSubstituter {
        url,
        public_key,
        priority: info.priority,
        conf: blocking(work).await?,
        cache_changed,
    })
}

/// What the cache says of itself, once it says `priority`; whether that was new to it.
async fn tell_priority(
    cache: &BinaryCache,
    said: Option<Vec<u8>>,
    priority: Option<i32>,
) -> Result<(CacheInfo, bool)> {
    let malformed = |e| Error::malformed(format!("nix-cache-info of {}", cache), e);
    let text = match said {
        Some(text) => text,
        None => {
            cache.init().await?;
            cache.read_cache_info().await?.unwrap_or_default()
        }
    };
    let info = CacheInfo::parse(&text).map_err(malformed)?;
    if priority.is_none() || info.priority == priority {
        return Ok((info, false));
    }
    let new = with_priority(&text, priority.unwrap_or_default());
    cache.write_cache_info(new).await?;
    let back = cache.read_cache_info().await?.unwrap_or_default();
    let back = CacheInfo::parse(&back).map_err(malformed)?;
    if back.priority == priority {
        Ok((back, true))
    } else {
        Err(Error::io(
            format!("telling {} its priority", cache),
            io::Error::other("it still says another"),
        ))
    }
}

impl CacheConfig {
    /// The public key, after the secret one was found to belong to it.
    fn checked_key(&self) -> Result<Option<PublicKey>> {
        let public = self.public_key.as_deref().map(|text| {
            let key = PublicKey::parse(text.trim());
            // The text may be a secret key by mistake.
            key.map_err(|e| Error::invalid(format!("publicKey is not a public key: {e}")))
        });
        let public = public.transpose()?;
        let Some(secret) = &self.secret_key else {
            return Ok(public);
        };
        let own = secret_key(secret)?.public();
        match public {
            Some(key) if key != own => Err(Error::invalid(format!(
                "the public key {key} does not belong to the secret key, whose public key is {own}"
            ))),
            _ => Ok(Some(own)),
        }
    }
}

impl fmt::Debug for CacheConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = self.secret_key.as_ref().map(|_| "hidden");
        f.debug_struct("CacheConfig")
            .field("url", &self.url)
            .field("public_key", &self.public_key)
            .field("secret_key", &hidden)
            .field("priority", &self.priority)
            .finish()
    }
}

/// The key, or the one in the file of that name. No error shows it.
fn secret_key(text: &str) -> Result<SecretKey> {
    if let Ok(key) = SecretKey::parse(text.trim_end()) {
        return Ok(key);
    }
    let wrong = || "the secret key is neither a key (name:base64) nor a file with one";
    let content =
        fs::read_to_string(text).map_err(|e| Error::io(wrong(), io::Error::from(e.kind())))?;
    SecretKey::parse(content.trim_end()).map_err(|e| Error::invalid(format!("{}: {e}", wrong())))
}

/// The URL for nix.conf, which others may read.
fn url_for_nix(url: &str) -> Result<String> {
    let invalid = |e: &dyn fmt::Display| Error::invalid(format!("'{url}' is not a cache: {e}"));
    let mut read = StoreReference::parse(url, Path::new("/")).map_err(|e| invalid(&e))?;
    for name in ["secret-key", "secret-keys"] {
        read.params.remove(name);
    }
    let text = read.to_string();
    let authority = text.split_once("://").map_or("", |(_, rest)| rest);
    let authority = authority.split(['/', '?']).next().unwrap_or_default();
    match authority.rsplit_once('@') {
        Some((user, _)) if user.contains(':') => Err(Error::invalid(
            "the URL holds a password, which others could read in nix.conf: write it into the file \
             that netrc-file of nix.conf names",
        )),
        _ => Ok(text),
    }
}

/// The text of a nix-cache-info with another priority; the rest of it stays.
fn with_priority(text: &[u8], priority: i32) -> Vec<u8> {
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    let other = lines.filter(|line| !line.starts_with(b"Priority:"));
    let mut new: Vec<u8> = other.flatten().copied().collect();
    if !new.is_empty() && !new.ends_with(b"\n") {
        new.push(b'\n');
    }
    new.extend(format!("Priority: {priority}\n").bytes());
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use tk_cache::BinaryCacheConfig;
    use tk_narinfo::{Compression, TrustedKeys};
    use tk_path::{Algorithm, Method, References};
    use tk_store::{AddContent, MemoryStore, StoreExt, nar};

    fn config(url: &str) -> CacheConfig {
        CacheConfig {
            url: url.into(),
            public_key: None,
            secret_key: None,
            priority: None,
        }
    }

    async fn opened(place: &Path) -> BinaryCache {
        let config = BinaryCacheConfig {
            create: true,
            compression: Compression::None,
            ..BinaryCacheConfig::default()
        };
        BinaryCache::open_folder(place, config).await.unwrap()
    }

    #[tokio::test]
    async fn configured_twice_is_configured_once() {
        let folder = tempfile::tempdir().unwrap();
        let (conf, place) = (
            folder.path().join("conf/nix.conf"),
            folder.path().join("cache"),
        );
        let cache = Arc::new(opened(&place).await);
        let cache = Substituter::new(cache, Arc::new(MemoryStore::default()), &conf);
        let secret = SecretKey::generate("k-1").unwrap();
        let mut config = CacheConfig {
            secret_key: Some(secret.to_text().to_string()),
            ..config(&format!("file://{}", place.display()))
        };
        let error = cache.configure(&config).await.unwrap_err().to_line();
        assert!(error.contains("cache init"), "{error}");
        assert!(!conf.exists());
        config.priority = Some(30);
        let done = cache.configure(&config).await.unwrap();
        assert!(done.conf.changed && done.cache_changed);
        assert_eq!(done.public_key, Some(secret.public()));
        let done = cache.configure(&config).await.unwrap();
        assert!(!done.conf.changed && !done.cache_changed);
        assert_eq!(done.priority, Some(30));
        let info = fs::read_to_string(place.join("nix-cache-info")).unwrap();
        assert_eq!(info, "StoreDir: /nix/store\nPriority: 30\n");

        let other = SecretKey::generate("k-1").unwrap().public();
        config.public_key = Some(other.to_string());
        let error = cache.configure(&config).await.unwrap_err().to_line();
        assert!(error.contains("does not belong"), "{error}");
        config.public_key = Some("k-1:AAAA".into());
        let error = cache.configure(&config).await.unwrap_err().to_line();
        assert!(error.contains("is not a public key"), "{error}");
    }

    #[tokio::test]
    async fn uploaded_is_there_with_all_it_refers_to() {
        let folder = tempfile::tempdir().unwrap();
        let opened = Arc::new(opened(folder.path()).await);
        let source = Arc::new(MemoryStore::default());
        let add = async |name: &str, references: References| {
            let mut nar = tk_nar::Encoder::new(Vec::new());
            nar.file(false, name.as_bytes()).unwrap();
            let nar = nar::from_bytes(nar.finish().unwrap());
            let (method, hash) = (Method::Nar, Algorithm::Sha256);
            let added = source.add_content(name, method, hash, &references, nar);
            added.await.unwrap().path
        };
        let one = add("one", References::default()).await;
        let to_one = References {
            others: [one.clone()].into(),
            ..References::default()
        };
        let two = add("two", to_one).await;
        let key = Arc::new(SecretKey::generate("k-1").unwrap());
        let cache =
            Substituter::new(opened.clone(), source.clone(), "nix.conf").sign_with(key.clone());
        assert!(!cache.exists(&two).await.unwrap());
        assert_eq!(cache.upload(&two).await.unwrap().copied.len(), 2);
        for path in [&one, &two] {
            assert!(cache.exists(path).await.unwrap());
            let info = opened.require_info(path).await.unwrap();
            let mut keys = TrustedKeys::default();
            keys.insert(key.public());
            assert_eq!(info.valid_signatures(opened.dir(), &keys).unwrap(), 1);
        }
        let again = cache.upload(&two).await.unwrap();
        assert_eq!((again.copied.len(), again.present.len()), (0, 2));
        let absent = StorePath::parse(&format!("{}-absent", "0".repeat(32))).unwrap();
        assert!(matches!(
            cache.upload(&absent).await,
            Err(Error::NotFound { .. })
        ));
    }

    #[test]
    fn secrets_are_not_shown() {
        let secret = SecretKey::generate("k-1").unwrap().to_text();
        let text = secret.as_str();
        let read = serde_json::json!({"url": "https://a?secret-key=/k&priority=3", "publicKey": null,
            "secretKey": text, "priority": 3});
        let config: CacheConfig = serde_json::from_value(read).unwrap();
        assert_eq!(config.secret_key.as_deref(), Some(text));
        let shown = format!("{config:?} {}", serde_json::to_string(&config).unwrap());
        assert!(!shown.contains(text) && shown.contains("hidden"), "{shown}");
        assert_eq!(url_for_nix(&config.url).unwrap(), "https://a?priority=3");
        assert!(url_for_nix("https://u:p@h/c").is_err());
        assert!(url_for_nix("https://u@h/c").is_ok());
        let error = secret_key(&text[..text.len() - 20]).unwrap_err().to_line();
        assert!(!error.contains(&text[10..]), "{error}");
    }

    #[test]
    fn other_lines_of_a_cache_info_stay() {
        let text = b"StoreDir: /nix/store\nPriority: 1\nOther: x";
        let new = with_priority(text, -4);
        assert_eq!(new, b"StoreDir: /nix/store\nOther: x\nPriority: -4\n");
    }
}
