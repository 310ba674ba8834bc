use crate::{
    Answer, Context,
    open::{Wish, open},
    words::{of_client, tell},
};
use anyhow::Result;
use std::sync::Arc;
use tk_daemon::serve::ServeServer;
use tk_store::log::LogEvent;

/// Serve a store at stdin and stdout, as nix-store --serve does
///
/// For clients that reach this machine by ssh: ssh://HOST with tk-store serve-ssh as remote-program, or as
/// the command of a key in authorized_keys. They are not asked for signatures. What is not there
/// is not built: that is refused.
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
    pub async fn run(self, cx: &Context) -> Result<Answer> {
        let wish = Wish {
            write: self.write,
            ..Wish::default()
        };
        let store = open(cx, &cx.store_uri(), &wish).await?;
        let log = |event: LogEvent| {
            if let Some(line) = event.log_line() {
                // ssh brings it to the client.
                tell(line);
            }
        };
        let server = ServeServer::new(store.abilities(), self.write).with_log(Arc::new(log));
        server
            .serve(tokio::io::stdin(), tokio::io::stdout())
            .await
            .map_err(of_client)?;
        Ok(Answer::Yes)
    }
}

const EXAMPLES: &str = "\
Examples:
  nix copy --to 'ssh://host?remote-program=tk-store%20serve-ssh' ./result
  tk-store serve-ssh --store file:///srv/cache --write

A line of authorized_keys:
  command=\"tk-store serve-ssh --store file:///srv/cache --write\" ssh-ed25519 AAAA… me@laptop";
