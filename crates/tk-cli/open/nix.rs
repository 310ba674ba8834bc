//! The nix binary, and stores that build with it where they cannot build themselves.

use super::{BuildOptions, Opened, Pick, Wish, open, pick, remote};
use crate::{
    Context,
    settings::{data_folder, path_var},
};
use anyhow::{Context as _, Result};
use std::{path::PathBuf, sync::Arc};
use tk_daemon::{DaemonConfig, DaemonStore};
use tk_nix::{EvalOptions, Nix, NixBuilder, NixConfig, StdioTransport};
use tk_store::{Abilities, StoreReference};

/// Which nix is run, and how it evaluates.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct NixOptions {
    /// The nix program that evaluates
    #[arg(long, value_name = "PROGRAM", env = "TK_NIX", default_value = "nix")]
    nix: PathBuf,
    /// Let the Nix code see this machine: its environment, its time, files that nothing pins
    #[arg(long)]
    impure: bool,
    /// Ask no server while evaluating
    #[arg(long)]
    offline: bool,
    /// Do not write flake.lock
    #[arg(long)]
    no_write_lock_file: bool,
    /// Take another flake for an input
    #[arg(long, num_args = 2, value_names = ["INPUT", "FLAKE"])]
    override_input: Vec<String>,
    /// An argument for a function in a file: a name, and Nix code
    #[arg(long, num_args = 2, value_names = ["NAME", "EXPR"])]
    arg: Vec<String>,
    /// An argument for a function in a file: a name, and a text
    #[arg(long, num_args = 2, value_names = ["NAME", "TEXT"])]
    argstr: Vec<String>,
}

impl NixOptions {
    /// How it evaluates.
    pub fn eval(&self) -> EvalOptions {
        let pairs = |all: &[String]| {
            let pairs = all.chunks_exact(2);
            pairs
                .map(|pair| (pair[0].clone(), pair[1].clone()))
                .collect()
        };
        EvalOptions {
            impure: self.impure,
            offline: self.offline,
            no_write_lock_file: self.no_write_lock_file,
            override_inputs: pairs(&self.override_input),
            args: pairs(&self.arg),
            arg_strs: pairs(&self.argstr),
            folder: None,
        }
    }

    /// How it is run, on the store of the command.
    pub fn config(&self, cx: &Context, build: &BuildOptions) -> Result<NixConfig> {
        Ok(NixConfig {
            program: self.nix.clone(),
            store: Some(store_for_nix(cx)?),
            options: build.options(),
            ..NixConfig::default()
        })
    }

    /// The nix, on the store of the command.
    pub async fn find(&self, cx: &Context, build: &BuildOptions) -> Result<Nix> {
        Ok(Nix::find(self.config(cx, build)?).await?)
    }

    /// The nix, and the store of the command as one that builds.
    pub async fn builder(
        &self,
        cx: &Context,
        build: &BuildOptions,
    ) -> Result<(NixBuilder, Opened)> {
        let nix = self.find(cx, build).await?;
        self.builder_with(cx, build, nix).await
    }

    /// As [`NixOptions::builder`], with a nix that was found already.
    pub async fn builder_with(
        &self,
        cx: &Context,
        build: &BuildOptions,
        nix: Nix,
    ) -> Result<(NixBuilder, Opened)> {
        let wish = Wish {
            write: true,
            build: build.clone(),
            ..Wish::default()
        };
        let opened = open(cx, &cx.store_uri(), &wish).await?;
        let store = builds(cx, &nix, &opened, build)?;
        Ok((NixBuilder::new(nix, store), opened))
    }
}

/// The store with the ability to build: by a daemon of `nix` for itself if it has none.
fn builds(cx: &Context, nix: &Nix, opened: &Opened, build: &BuildOptions) -> Result<Abilities> {
    let mut store = opened.abilities();
    if store.build.is_some() || !matches!(opened, Opened::Local(_)) {
        return Ok(store);
    }
    let uri = store_for_nix(cx)?;
    let mut config = DaemonConfig::new(store.store.to_string());
    config.dir = store.store.dir().clone();
    config.settings = build.to_settings(cx)?;
    config.max_connections = 1;
    // It starts with the first question, on a machine that may be busy.
    config.timeout = None;
    let transport = Arc::new(StdioTransport::new(nix.clone(), uri));
    let daemon = Arc::new(DaemonStore::new(transport, config));
    store.build = Some(daemon.clone());
    store.graph = Some(daemon);
    Ok(store)
}

/// The store of the command, as nix is told it: what `auto` is here is not always what it is for
/// nix.
fn store_for_nix(cx: &Context) -> Result<String> {
    let uri = cx.store_uri();
    let cwd = std::env::current_dir().context("finding the current directory")?;
    if StoreReference::parse(&uri, &cwd)?.scheme().is_some() {
        return Ok(match uri.starts_with("./") || uri.starts_with("../") {
            // Relative to our folder, not to that of a flake.
            true => cwd.join(uri).to_string_lossy().into_owned(),
            false => uri,
        });
    }
    let state = path_var("NIX_STATE_DIR");
    let configured = state.is_some() || path_var("NIX_STORE_DIR").is_some();
    let state = state.unwrap_or_else(|| "/nix/var/nix".into());
    Ok(
        match pick(&state, &remote::default_socket(&state), configured) {
            Pick::System => "local".into(),
            Pick::Daemon => "daemon".into(),
            Pick::Own => data_folder()?.join("root").to_string_lossy().into_owned(),
        },
    )
}
