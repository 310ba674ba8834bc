use crate::{
    Answer, Context,
    open::{Wish, open},
    ui,
};
use anyhow::Result;

/// Look after binary caches
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
}

impl Cache {
    /// Runs the command.
    pub async fn run(self, cx: &Context) -> Result<Answer> {
        let Cache::Init {
            uri,
            priority,
            want_mass_query,
        } = self;
        let uri = match uri.contains("://") {
            true => uri,
            // Elsewhere a plain folder is a local store; here only a cache can be meant.
            false => format!("file://{}", std::path::absolute(&uri)?.display()),
        };
        let wish = Wish {
            write: true,
            priority,
            want_mass_query: Some(want_mass_query),
            ..Wish::default()
        };
        let opened = open(cx, &uri, &wish).await?;
        let made = opened.init_cache().await?;
        let store = opened.store();
        cx.ui.say(match made {
            true => format!("made the cache {store} for {}", store.dir()),
            false => format!("the cache {store} was there already; it is left as it is"),
        });
        ui::out(&store)?;
        Ok(Answer::Yes)
    }
}

const INIT: &str = "\
Example:
  tk-store cache init file:///srv/cache --priority 30";
