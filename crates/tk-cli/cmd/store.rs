mod database;

use crate::{
    CommandContext, ExitStatus,
    open::{OpenOptions, open},
    output::plain,
    ui,
};
use anyhow::Result;
use database::{DumpArgs, LoadArgs, RecoverArgs};
use serde_json::{Value, json};
use tk_store::StoreDescription;

/// Look at a store itself, and after what it has registered
#[derive(clap::Subcommand)]
pub enum StoreCommand {
    /// Say what kind of store it is, who is at the other end, and how far away
    ///
    /// As nix store info (nix store ping). Of a daemon: its version of Nix and of the protocol,
    /// the features agreed on, whether it trusts us, and the time of a round trip. Fails if the
    /// store does not answer.
    #[command(visible_alias = "ping", after_help = EXAMPLES)]
    Info {
        /// The store [default: --store]
        #[arg(value_name = "URI")]
        uri: Option<String>,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print what is registered, as nix-store --dump-db
    ///
    /// Hash, size, deriver and references of each path, as load-db and nix-store --load-db read
    /// them. Signatures are not in it.
    #[command(after_help = DUMP_EXAMPLES)]
    DumpDb(DumpArgs),
    /// Register what dump-db or nix-store --dump-db wrote
    ///
    /// All of it or nothing. The content must be in its place already, and is not read: verify
    /// --check-contents does that. Paths that are valid already keep their signatures, unlike
    /// with nix-store --load-db.
    #[command(after_help = LOAD_EXAMPLES)]
    LoadDb(LoadArgs),
    /// Make a lost or corrupt database anew from what lies in the store
    ///
    /// Each path is read, and becomes valid if a narinfo with a trusted signature, the dump, or its
    /// own name vouch for its content; with --scan also without. What vouches for it is printed
    /// before it: narinfo, dump, contentAddress or scanned. All else stays invalid, and the exit
    /// status is 1: what stays invalid is deleted by the next gc, roots or not; recover again with
    /// more sources first. Nobody else may have the store open. The old database stays under another name.
    #[command(after_help = RECOVER_EXAMPLES)]
    Recover(RecoverArgs),
}

impl StoreCommand {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let (uri, json) = match self {
            StoreCommand::Info { uri, json } => (uri, json),
            StoreCommand::DumpDb(args) => return args.run(cx).await,
            StoreCommand::LoadDb(args) => return args.run(cx).await,
            StoreCommand::Recover(args) => return args.run(cx).await,
        };
        let uri = uri.unwrap_or_else(|| cx.store_uri());
        // What is remembered of a cache says nothing of how it is now.
        let mut wish = OpenOptions::default();
        wish.refresh = true;
        let opened = open(cx, &uri, &wish).await?;
        let info = opened.describe().await?;
        let store = opened.store();
        if json {
            ui::out(to_json(&*store, &info))?;
        } else {
            for (name, value) in to_lines(&*store, &info) {
                ui::out(format_args!("{name}: {}", plain(&value)))?;
            }
        }
        Ok(ExitStatus::Yes)
    }
}

fn to_json(store: &dyn tk_store::Store, info: &StoreDescription) -> Value {
    let mut value = json!({
        "url": store.to_string(),
        "kind": info.kind,
        "storeDir": store.dir().as_str(),
    });
    let mut set = |name: &str, field: Option<Value>| {
        if let Some(field) = field {
            value[name] = field;
        }
    };
    set("version", info.version.as_ref().map(|v| json!(v)));
    set("protocol", info.protocol.as_ref().map(|p| json!(p)));
    set("features", info.features.as_ref().map(|f| json!(f)));
    set("trusted", info.trusted.map(Value::Bool));
    set("writable", info.writable.map(Value::Bool));
    set("priority", info.priority.map(|p| json!(p)));
    set("wantMassQuery", info.want_mass_query.map(Value::Bool));
    let latency = info.latency.map(|time| json!(time.as_secs_f64() * 1e3));
    set("latencyMs", latency);
    value
}

fn to_lines(store: &dyn tk_store::Store, info: &StoreDescription) -> Vec<(&'static str, String)> {
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let mut lines = vec![
        ("Store URL", store.to_string()),
        ("Kind", info.kind.to_owned()),
        ("Store directory", store.dir().to_string()),
    ];
    let mut add = |name, value: Option<String>| lines.extend(value.map(|value| (name, value)));
    add("Version", info.version.clone());
    add("Protocol", info.protocol.clone());
    let features = info.features.as_ref().map(|all| {
        if all.is_empty() {
            "none".to_owned()
        } else {
            all.join(", ")
        }
    });
    add("Features", features);
    add("Trusted", info.trusted.map(yes));
    add("Writable", info.writable.map(yes));
    add("Priority", info.priority.map(|p| p.to_string()));
    add("Mass queries", info.want_mass_query.map(yes));
    let latency = info
        .latency
        .map(|t| format!("{:.2} ms", t.as_secs_f64() * 1e3));
    add("Latency", latency);
    lines
}

const DUMP_EXAMPLES: &str = "\
Example:
  tk-store store dump-db > registered";
const LOAD_EXAMPLES: &str = "\
Example:
  tk-store store dump-db | tk-store store load-db";
const RECOVER_EXAMPLES: &str = "\
Examples:
  tk-store store recover --dump registered --from https://cache.nixos.org --dry-run
  tk-store store recover --from file:///srv/cache --trusted-key my.pub";
const EXAMPLES: &str = "\
Examples:
  tk-store store info
  tk-store store info ssh-ng://builder --json";
