use crate::{
    CommandContext, ExitStatus,
    open::{OpenOptions, OpenStore, open},
    ui,
};
use anyhow::{Context as _, Result};
use serde_json::json;
use std::{path::PathBuf, sync::Arc};
use tk_cache::BinaryCache;
use tk_open::{CacheConfig, configure, keys::read_public_key, nix_conf};
use tk_store::StoreReference;

/// Create and configure binary caches
#[derive(clap::Subcommand)]
pub enum Cache {
    /// Make a new, empty cache
    #[command(after_help = INIT)]
    Init {
        /// The cache: file:///a/folder, or a folder
        #[arg(value_name = "URI")]
        uri: String,
        /// Which cache readers ask first: the lower, the earlier
        #[arg(long, value_name = "N")]
        priority: Option<i32>,
        /// Whether readers may ask for many paths at once
        #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
        want_mass_query: bool,
    },
    /// Make nix fetch from a cache, and trust its key
    ///
    /// Writes extra-substituters and extra-trusted-public-keys to the end of nix.conf; all else in
    /// the file stays as it is, and what it already says is not written again. The cache must answer,
    /// and the keys must belong to each other. The secret key is looked at, never written. A nix
    /// daemon takes this from a user's nix.conf only if it trusts the user (trusted-users); else
    /// name the system's with --conf.
    #[command(after_help = USE)]
    Use(Use),
}

/// Which cache nix is to use, and how.
#[derive(clap::Args)]
pub struct Use {
    /// The cache: https://host/path, s3://bucket, file:///a/folder, or a folder
    #[arg(value_name = "URI")]
    uri: String,
    /// Trust this key, name:base64 or a file [default: that of --secret-key]
    #[arg(long, value_name = "KEY")]
    public_key: Option<String>,
    /// Check that the public key belongs to the secret key in FILE
    #[arg(long, value_name = "FILE")]
    secret_key: Option<String>,
    /// Which cache is asked first: the lower, the earlier. Written into the cache itself, for all
    /// who use it
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    priority: Option<i32>,
    /// The nix.conf to write [default: yours, ~/.config/nix/nix.conf]
    #[arg(long, value_name = "FILE")]
    conf: Option<PathBuf>,
    /// Take out again what this command wrote for the cache
    #[arg(long, conflicts_with_all = ["public_key", "secret_key", "priority"])]
    remove: bool,
    /// Print what is configured as JSON
    #[arg(long)]
    json: bool,
}

impl Cache {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        match self {
            Cache::Init {
                uri,
                priority,
                want_mass_query,
            } => init(cx, &uri, priority, want_mass_query).await,
            Cache::Use(args) => args.run(cx).await,
        }
    }
}

async fn init(
    cx: &CommandContext,
    uri: &str,
    priority: Option<i32>,
    want_mass_query: bool,
) -> Result<ExitStatus> {
    let mut wish = OpenOptions::to_write();
    wish.priority = priority;
    wish.want_mass_query = Some(want_mass_query);
    let opened = open(cx, &cache_uri(uri)?, &wish).await?;
    let made = required(&opened)?.init().await?;
    let store = opened.store();
    cx.ui.say(if made {
        format!("made the cache {store} for {}", store.dir())
    } else {
        format!("the cache {store} was there already; it is left as it is")
    });
    ui::out(&store)?;
    Ok(ExitStatus::Yes)
}

impl Use {
    async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let uri = cache_uri(&self.uri)?;
        let conf = self
            .conf
            .clone()
            .or_else(|| {
                cx.settings
                    .environment
                    .conf_places()
                    .user
                    .into_iter()
                    .next()
            })
            .context("there is no place for a nix.conf of yours; name one with --conf")?;
        if self.remove {
            return self.remove(cx, &uri, &conf);
        }
        let public_key = self
            .public_key
            .as_deref()
            .map(read_public_key)
            .transpose()?;
        let config = CacheConfig {
            url: uri.clone(),
            public_key: public_key.map(|key| key.to_string()),
            secret_key: self.secret_key,
            priority: self.priority,
        };
        // What was remembered of the cache may not hold any more.
        let mut wish = OpenOptions::default();
        wish.refresh = true;
        let opened = open(cx, &uri, &wish).await?;
        let done = configure(required(&opened)?, &conf, &config).await?;
        let file = done.conf.file.display();
        if self.json {
            ui::out(json!({
                "url": done.url,
                "publicKey": done.public_key.map(|key| key.to_string()),
                "priority": done.priority,
                "conf": done.conf.file,
                "changed": done.conf.changed,
                "cacheChanged": done.cache_changed,
            }))?;
            return Ok(ExitStatus::Yes);
        }
        if done.conf.changed {
            cx.ui.say(format_args!("{file} now has {}", done.url))
        } else {
            cx.ui.say(format_args!("{file} had {} already", done.url))
        }
        if done.public_key.is_none() {
            cx.ui.warn(
                "without --public-key nix takes nothing from it that it does not trust already",
            );
        }
        if done.cache_changed
            && let Some(priority) = done.priority
        {
            cx.ui
                .say(format_args!("the cache now says priority {priority}"));
        }
        Ok(ExitStatus::Yes)
    }

    fn remove(&self, cx: &CommandContext, uri: &str, conf: &std::path::Path) -> Result<ExitStatus> {
        let change = nix_conf::remove(conf, uri)?;
        let left = nix_conf::Caches::of_file(conf)?.has(uri);
        let file = change.file.display();
        if self.json {
            ui::out(
                json!({ "url": uri, "conf": change.file, "changed": change.changed, "left": left }),
            )?;
        }
        match (left, change.changed) {
            (true, _) => cx.ui.error(format_args!(
                "{file} still has {uri}, in a line that this command did not write; it is left to you"
            )),
            (false, true) => cx.ui.say(format_args!("{file} has {uri} no more")),
            (false, false) => cx.ui.say(format_args!("{file} did not have {uri}")),
        }
        Ok(if left {
            ExitStatus::No
        } else {
            ExitStatus::Yes
        })
    }
}

/// The cache that `opened` is.
fn required(opened: &OpenStore) -> Result<&Arc<BinaryCache>> {
    opened
        .cache()
        .with_context(|| format!("{} is not a binary cache but a store", opened.store()))
}

/// The URI; elsewhere a plain folder is a local store, here only a cache can be meant.
fn cache_uri(uri: &str) -> Result<String> {
    if uri.contains("://") {
        return Ok(uri.to_owned());
    }
    match uri.strip_prefix("file:") {
        // As it is elsewhere, but whole, wherever it is read.
        Some(_) => Ok(StoreReference::parse(uri, &std::env::current_dir()?)?.to_string()),
        None => Ok(format!("file://{}", std::path::absolute(uri)?.display())),
    }
}

const INIT: &str = "\
Example:
  tk-store cache init file:///srv/cache --priority 30";
const USE: &str = "\
Examples:
  tk-store cache use https://cache.example.org --public-key cache.example.org-1:AAAA…=
  tk-store cache use file:///srv/cache --secret-key my.key --priority 30 --conf /etc/nix/nix.conf
  tk-store cache use https://cache.example.org --remove";
