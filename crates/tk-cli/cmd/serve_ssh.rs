use crate::{
    CommandContext, ExitStatus,
    copying::demand,
    open::{OpenOptions, open},
    output::{of_client, tell, tell_lines},
};
use anyhow::Result;
use std::sync::Arc;
use tk_daemon::serve::ServeServer;
use tk_store::log::{Level, LogEvent};

/// Serve a store at stdin and stdout, as nix-store --serve does
///
/// For clients that reach this machine by ssh: ssh://HOST with tk-store serve-ssh as remote-program, or as
/// the command of a key in authorized_keys. They are not asked for signatures. What is not there
/// is not built: that is refused. A store on disk fetches what the client wants fetched (nix copy -s)
/// from the substituters that nix.conf sets.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ServeSsh {
    /// Let the client add paths
    #[arg(long)]
    write: bool,
    /// Nix adds it to the program that it is told to run
    #[arg(long, hide = true)]
    serve: bool,
}

impl ServeSsh {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let mut wish = OpenOptions::default();
        wish.write = self.write;
        let store = open(cx, &cx.store_uri(), &wish).await?;
        // ssh brings it to the client: what builders print, and as with Nix what is wrong.
        let log = |event: LogEvent| match &event {
            LogEvent::Message { level, text } if *level <= Level::Warn => tell_lines(text),
            event => event.log_line().into_iter().for_each(tell),
        };
        let check = demand(cx, &store, &[], 1)?;
        let mut server =
            ServeServer::new(tk_open::served(&cx.settings, &store, check)).with_log(Arc::new(log));
        if self.write {
            server = server.writable();
        }
        server
            .serve(tokio::io::stdin(), tokio::io::stdout())
            .await
            .map_err(of_client)?;
        Ok(ExitStatus::Yes)
    }
}

const EXAMPLES: &str = "\
Examples:
  nix copy --to 'ssh://host?remote-program=tk-store%20serve-ssh' ./result
  tk-store serve-ssh --store file:///srv/cache --write

A line of authorized_keys:
  command=\"tk-store serve-ssh --store file:///srv/cache --write\" ssh-ed25519 AAAA… me@laptop";
