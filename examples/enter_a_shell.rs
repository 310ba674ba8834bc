//! Runs a command in the development environment of a flake. The second time it takes milliseconds, without nix.
//!
//!     cargo run --example enter_a_shell -- path:/home/me/project make test

use std::{env, path::PathBuf, sync::Arc};
use tk_daemon::{DaemonConfig, DaemonStore, UnixTransport};
use tk_nix::{Nix, NixBuilder, NixConfig, Result, shell::ShellConfig, shell::Shells};

/// What the machine has: its nix, its daemon, and a folder for the environments that are known.
pub async fn builder(
    nix: NixConfig,
    daemon: DaemonStore,
    folder: PathBuf,
    real_dir: Option<PathBuf>,
) -> Result<NixBuilder> {
    let (cache, state) = (folder.join("cache"), folder.join("state"));
    let here = env::current_dir().unwrap_or_default();
    let mut config = ShellConfig::new(cache, state, "x86_64-linux".into(), here);
    config.variables = env::vars_os().collect();
    config.real_dir = real_dir;
    let shells = Shells::new(config);
    let store = Arc::new(daemon).abilities();
    Ok(NixBuilder::new(Nix::find(nix).await?, store).with_shells(shells))
}

/// Returns what `command` writes to its standard output.
pub async fn enter(builder: &NixBuilder, flake: &str, command: &[String]) -> Result<String> {
    let mut shell = builder.dev_shell(flake).await?;
    // Runs the shell's hook, if the user has allowed it.
    shell.enter().await?;
    Ok(shell.run(command).await?.stdout)
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [flake, command @ ..] = &arguments[..] else {
        panic!("arguments are wanted: FLAKE COMMAND...");
    };
    let socket = UnixTransport::new("/nix/var/nix/daemon-socket/socket");
    let daemon = DaemonStore::new(Arc::new(socket), DaemonConfig::new("daemon"));
    let folder = env::temp_dir().join("environments");
    let builder = builder(NixConfig::default(), daemon, folder, None).await?;
    print!("{}", enter(&builder, flake, command).await?);
    Ok(())
}
