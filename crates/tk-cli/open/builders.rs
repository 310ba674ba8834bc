//! Machines that build for others, as the command line and nix.conf name them.

use super::{BuildArgs, OpenOptions, open};
use crate::{CommandContext, keys};
use anyhow::{Context as _, Result, bail};
use rustix::fs::{Access, access};
use std::{env::consts, io, path::PathBuf, sync::Arc};
use tk_builders::{Connect, Connected, Machine, Machines, RemoteBuilder, RemoteConfig, Slots};
use tk_store::{Abilities, Error};

/// Which machines build.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RemoteArgs {
    /// Build on these machines: lines as in nix.conf's builders, or @FILE with such lines
    #[arg(long, value_name = "TEXT|@FILE")]
    builders: Option<String>,
    /// Build on this machine: its URI, or a line with systems, jobs and features (may be repeated)
    #[arg(long, value_name = "URI")]
    builder: Vec<String>,
    /// Let the machines fetch inputs from their own substituters
    #[arg(long)]
    builders_use_substitutes: bool,
    /// Sign the outputs with the secret key in FILE, for a store here that takes only signed paths (may
    /// be repeated)
    #[arg(long, value_name = "FILE")]
    builders_sign_key: Vec<PathBuf>,
}

impl RemoteArgs {
    /// Whether machines are named.
    pub fn is_given(&self) -> bool {
        self.builders.is_some() || !self.builder.is_empty()
    }

    /// The machines that are named, or else those of nix.conf.
    pub fn machines(&self, cx: &CommandContext) -> Result<Machines> {
        let folder = std::env::current_dir().context("finding the current directory")?;
        let system = system(cx);
        let read = |text: &str, name: &str| Machines::read(text, name, &system, &folder);
        let mut all = match (&self.builders, self.builder.is_empty()) {
            (Some(text), _) => read(text, "--builders"),
            (None, false) => Machines::default(),
            (None, true) => match cx.settings.nix_conf.get("builders") {
                Some(text) => read(text, "builders of nix.conf"),
                // Who names no machines needs no file of them.
                None => Machines {
                    absent: Vec::new(),
                    ..read(&format!("@{}", machines_file(cx).display()), "nix.conf")
                },
            },
        };
        for text in &self.builder {
            let one = read(text, "--builder");
            all.all.extend(one.all);
            all.faults.extend(one.faults);
            all.absent.extend(one.absent);
        }
        Ok(all)
    }

    /// `store` with its builds on the machines that are named, or else those of nix.conf.
    pub fn builder(
        &self,
        cx: &CommandContext,
        store: Abilities,
        options: &BuildArgs,
    ) -> Result<Abilities> {
        let machines = self.machines(cx)?.complete()?;
        if machines.is_empty() {
            bail!(
                "no machine is named; name some with --builder ssh-ng://host, --builders, or in nix.conf"
            );
        }
        let substitute = cx.settings.nix_conf.is_on("builders-use-substitutes") == Some(true);
        let sign = self
            .builders_sign_key
            .iter()
            .map(|file| keys::secret(file).map(Arc::new));
        let connect = Arc::new(MachineOpener::new(cx, options));
        let mut config = RemoteConfig::new(machines, connect, slots(cx)?);
        config.keep_going = options.keep_going();
        config.builders_substitute = self.builders_use_substitutes || substitute;
        config.sign = sign.collect::<Result<_>>()?;
        Ok(RemoteBuilder::new(store, config).abilities())
    }

    /// `store`, with its builds on other machines if some are named.
    pub fn abilities(
        &self,
        cx: &CommandContext,
        store: Abilities,
        options: &BuildArgs,
    ) -> Result<Abilities> {
        if self.is_given() {
            self.builder(cx, store, options)
        } else {
            Ok(store)
        }
    }
}

/// Opens machines as any store.
pub struct MachineOpener {
    cx: CommandContext,
    options: BuildArgs,
}

impl MachineOpener {
    /// With `options` for their daemons.
    pub fn new(cx: &CommandContext, options: &BuildArgs) -> Self {
        MachineOpener {
            cx: cx.clone(),
            options: options.clone(),
        }
    }

    async fn open(&self, machine: &Machine, connections: usize) -> Result<Connected> {
        let reference = machine.reference(connections).map_err(anyhow::Error::msg)?;
        let mut wish = OpenOptions::to_write();
        self.options.apply(&self.cx, &mut wish);
        let opened = open(&self.cx, &reference.to_string(), &wish).await?;
        let info = opened.describe().await?;
        Ok(Connected {
            store: opened.abilities(),
            nix_version: info.version,
            protocol: info.protocol,
            trusted: info.trusted,
            latency: info.latency,
        })
    }
}

#[async_trait::async_trait]
impl Connect for MachineOpener {
    async fn connect(&self, machine: &Machine, connections: usize) -> tk_store::Result<Connected> {
        self.open(machine, connections).await.map_err(|error| {
            let doing = format!("connecting to {}", machine.uri);
            Error::io(doing, io::Error::other(format!("{error:#}")))
        })
    }
}

/// Where slots are noted: with Nix's, if they may be written, else with those of this user.
pub fn slots(cx: &CommandContext) -> Result<Slots> {
    let environment = &cx.settings.environment;
    let state = environment.nix_state();
    let nix = state.join("current-load");
    let writable = |folder: &PathBuf| access(folder, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    Ok(Slots::new(match nix.exists() {
        true if writable(&nix) => nix,
        false if writable(&state) => nix,
        _ => environment.state_folder()?.join("current-load"),
    }))
}

/// Nix's name of this system, or what nix.conf calls it.
fn system(cx: &CommandContext) -> String {
    if let Some(system) = cx.settings.nix_conf.get("system") {
        return system.to_owned();
    }
    let arch = match consts::ARCH {
        "x86" => "i686",
        "arm" => "armv7l",
        "powerpc64" => "powerpc64le",
        arch => arch,
    };
    let os = match consts::OS {
        "macos" => "darwin",
        os => os,
    };
    format!("{arch}-{os}")
}

fn machines_file(cx: &CommandContext) -> PathBuf {
    cx.settings
        .environment
        .conf_places()
        .system
        .with_file_name("machines")
}
