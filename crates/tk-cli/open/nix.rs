//! The nix binary, and stores that build with it where they cannot build themselves.

use super::{BuildArgs, OpenOptions, OpenStore, open};
use crate::CommandContext;
use anyhow::{Context as _, Result};
use std::{collections::BTreeSet, path::PathBuf, sync::Arc};
use tk_daemon::{DaemonConfig, DaemonStore};
use tk_nix::{EvalOptions, Nix, NixBuilder, NixConfig, NixVersion, StdioTransport};
use tk_open::{AutoStore, local_config, take_store_dir};
use tk_path::{StoreDir, StorePath};
use tk_store::StoreReference;

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
    /// Look here for <NAME> before NIX_PATH (may be repeated)
    #[arg(long, short = 'I', value_name = "[NAME=]PATH")]
    include: Vec<String>,
    /// An argument for a function in a file: a name, and Nix code
    #[arg(long, num_args = 2, value_names = ["NAME", "EXPR"], allow_hyphen_values = true)]
    arg: Vec<String>,
    /// An argument for a function in a file: a name, and a text
    #[arg(long, num_args = 2, value_names = ["NAME", "TEXT"], allow_hyphen_values = true)]
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
        let mut options = EvalOptions::default();
        options.impure = self.impure;
        options.offline = self.offline;
        options.no_write_lock_file = self.no_write_lock_file;
        options.override_inputs = pairs(&self.override_input);
        options.args = pairs(&self.arg);
        options.arg_strs = pairs(&self.argstr);
        options.search_path = self.include.clone();
        options
    }

    /// How it is run, on the store of the command.
    pub fn config(&self, cx: &CommandContext, build: &BuildArgs) -> Result<NixConfig> {
        let mut config = NixConfig::default();
        config.program = self.nix.clone();
        config.store = Some(store_for_nix(cx)?);
        config.options = build.options();
        Ok(config)
    }

    /// The nix, on the store of the command.
    pub async fn find(&self, cx: &CommandContext, build: &BuildArgs) -> Result<Nix> {
        Ok(Nix::find(self.config(cx, build)?).await?)
    }

    /// The nix, and the store of the command as one that builds: one on disk by a nix-daemon of its
    /// own.
    pub async fn builder(
        &self,
        cx: &CommandContext,
        build: &BuildArgs,
    ) -> Result<(NixBuilder, OpenStore)> {
        let nix = self.find(cx, build).await?;
        self.builder_with(cx, build, nix).await
    }

    /// As [`NixOptions::builder`], for what is a derivation already: no nix is run to evaluate.
    pub async fn builder_of_derivations(
        &self,
        cx: &CommandContext,
        build: &BuildArgs,
    ) -> Result<(NixBuilder, OpenStore)> {
        let nix = Nix::known(self.config(cx, build)?, NixVersion::OLDEST)?;
        self.builder_with(cx, build, nix).await
    }

    /// As [`NixOptions::builder_with`]; but a store on disk that has all of `paths`, which are all that
    /// is wanted, is opened without a nix-daemon.
    pub async fn builder_of_paths(
        &self,
        cx: &CommandContext,
        build: &BuildArgs,
        nix: Nix,
        paths: &BTreeSet<StorePath>,
    ) -> Result<(NixBuilder, OpenStore)> {
        if !paths.is_empty() && on_disk(cx)?.is_some() {
            let opened = open(cx, &cx.store_uri(), &OpenOptions::default()).await?;
            if opened.store().valid(paths).await? == *paths {
                return Ok((NixBuilder::new(nix, opened.abilities()), opened));
            }
        }
        self.builder_with(cx, build, nix).await
    }

    /// As [`NixOptions::builder`], with a nix that was found already.
    pub async fn builder_with(
        &self,
        cx: &CommandContext,
        build: &BuildArgs,
        nix: Nix,
    ) -> Result<(NixBuilder, OpenStore)> {
        let mut wish = OpenOptions::to_write();
        build.apply(cx, &mut wish);
        let opened = match on_disk(cx)? {
            None => open(cx, &cx.store_uri(), &wish).await?,
            Some(reference) => by_stdio(cx, &nix, &reference, &wish)?.into(),
        };
        Ok((NixBuilder::new(nix, opened.abilities()), opened))
    }
}

/// The directory that the paths of the command's store name, without opening it.
pub fn store_dir(cx: &CommandContext) -> Result<StoreDir> {
    let cwd = std::env::current_dir().context("finding the current directory")?;
    let reference = StoreReference::parse(&store_for_nix(cx)?, &cwd)?;
    Ok(take_store_dir(&cx.settings, &mut reference.settings())?)
}

/// The store of the command, if it is one on disk.
fn on_disk(cx: &CommandContext) -> Result<Option<StoreReference>> {
    let cwd = std::env::current_dir().context("finding the current directory")?;
    let reference = StoreReference::parse(&store_for_nix(cx)?, &cwd)?;
    Ok(Some(reference).filter(|reference| reference.scheme() == Some("local")))
}

/// The store on disk `reference`, by a daemon of `nix` for it. It is not opened here as well: some
/// versions of nix wait until nobody else has it open.
fn by_stdio(
    cx: &CommandContext,
    nix: &Nix,
    reference: &StoreReference,
    wish: &OpenOptions,
) -> Result<DaemonStore> {
    let mut settings = reference.settings();
    let local = local_config(&cx.settings, reference.path()?, &mut settings, wish)?;
    let mut config = DaemonConfig::new(reference.to_string());
    config.dir = local.dir;
    config.real = Some(local.real);
    config.log_dir = Some(local.log);
    config.settings = wish.daemon.clone();
    // Each is a process.
    config.max_connections = 2;
    let transport = StdioTransport::new(nix.clone(), store_for_nix(cx)?);
    Ok(DaemonStore::new(Arc::new(transport), config))
}

/// The store of the command, as nix is told it: what `auto` is here is not always what it is for
/// nix.
fn store_for_nix(cx: &CommandContext) -> Result<String> {
    let uri = cx.store_uri();
    let cwd = std::env::current_dir().context("finding the current directory")?;
    if StoreReference::parse(&uri, &cwd)?.scheme().is_some() {
        return Ok(if uri.starts_with("./") || uri.starts_with("../") {
            // Relative to our folder, not to that of a flake.
            cwd.join(uri).to_string_lossy().into_owned()
        } else {
            uri
        });
    }
    let environment = &cx.settings.environment;
    Ok(match AutoStore::of(environment) {
        AutoStore::System => "local".into(),
        AutoStore::Daemon => "daemon".into(),
        AutoStore::Own => {
            let root = environment.data_folder()?.join("root");
            root.to_string_lossy().into_owned()
        }
    })
}
