use crate::{
    OpenSettings, OpenStore,
    open::{OpenOptions, open_several},
};
use async_trait::async_trait;
use std::sync::Arc;
use tk_store::{Abilities, Fetching, SigCheck, Sources, Store};

/// What a server has for its clients: the store with all that it can do, and for a store on disk that it
/// fetches what satisfies `check` from the substituters that nix.conf names.
pub fn served(settings: &OpenSettings, store: &OpenStore, check: SigCheck) -> Abilities {
    let abilities = store.abilities();
    if store.local().is_none() {
        return abilities;
    }
    let sources = ConfiguredSources(settings.clone(), check.clone());
    Fetching::new(abilities, Arc::new(sources), check).abilities()
}

/// The substituters of nix.conf, and what is demanded of what they have. Nix's default counts only where
/// something is added to it: nobody's server should ask the world by itself.
#[derive(Debug)]
struct ConfiguredSources(OpenSettings, SigCheck);

#[async_trait]
impl Sources for ConfiguredSources {
    async fn open(&self, uris: Option<&[String]>) -> tk_store::Result<Option<Arc<dyn Store>>> {
        let ConfiguredSources(settings, check) = self;
        let conf = &settings.nix_conf;
        let configured = || match conf.is_on("substitute") {
            Some(false) => Vec::new(),
            _ => conf.list("substituters").unwrap_or_default(),
        };
        let uris = match uris {
            Some(uris) => uris.to_vec(),
            None => configured().into_iter().map(str::to_owned).collect(),
        };
        if uris.is_empty() {
            return Ok(None);
        }
        let opened = open_several(&uris, settings, &OpenOptions::default()).await;
        let opened = opened.map_err(|error| tk_store::Error::invalid(error.to_line()))?;
        Ok(Some(opened.preferring(check).store()))
    }
}
