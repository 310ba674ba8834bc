use super::FlakeFolder;
use crate::{
    CommandContext, ExitStatus,
    open::{OpenOptions, OpenStore, open},
    output::plain,
    ui,
};
use anyhow::Result;
use futures::{StreamExt, stream};
use serde_json::{Map, Value, json};
use tk_project::lock::{InputVerdict, VerifiedInput, VerifyOptions};

/// Verify that what flake.lock pins is what is at hand: its hash is computed, without nix and without network
///
/// Looked at are folders, repositories of git and tarballs of this machine, paths of its store, and whatever the
/// stores given with --in have. What is not at hand is said to be unverifiable, with the reason: it is neither sound
/// nor wrong. The devenv.lock of a project that is no flake is verified in the same way. Prints a line for each
/// input: its name, the verdict, and why, with tabs between.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct FlakeVerify {
    #[command(flatten)]
    folder: FlakeFolder,
    /// Look in this cache or store, too (may be repeated)
    #[arg(long = "in", value_name = "URI")]
    caches: Vec<String>,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

impl FlakeVerify {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let Some(lock) = self.folder.lock()? else {
            cx.ui.say("there is no flake.lock: nothing is pinned");
            if self.json {
                ui::out(json!({ "inputs": [] }))?;
            }
            return Ok(ExitStatus::Yes);
        };
        let mut options = VerifyOptions::new(self.folder.folder.canonicalize()?);
        options.scratch = std::env::temp_dir();
        let mut stores = Vec::new();
        for uri in &self.caches {
            stores.push(open(cx, uri, &OpenOptions::default()).await?);
        }
        let (mut shown, mut answer) = (Vec::new(), ExitStatus::Yes);
        let looked = stream::iter(lock.verify(&options)).map(|input| look_in(&stores, input));
        let mut looked = std::pin::pin!(looked.buffered(AT_ONCE));
        while let Some(input) = looked.next().await {
            let input = input?;
            answer = answer.max(status(&input.verdict));
            if self.json {
                shown.push(to_json(&input));
            } else {
                ui::out(line(&input))?;
            }
        }
        if self.json {
            ui::out(json!({ "inputs": shown }))?;
        }
        Ok(answer)
    }
}

/// Looks for what is not at hand in the stores, until one of them has it.
async fn look_in<'a>(
    stores: &[OpenStore],
    mut input: VerifiedInput<'a>,
) -> Result<VerifiedInput<'a>> {
    if matches!(input.verdict, InputVerdict::Unverifiable { .. }) {
        for store in stores {
            if let Some(verdict) = input.pin.verify_in(&*store.store()).await? {
                input.verdict = verdict;
                break;
            }
        }
    }
    Ok(input)
}

/// Inputs that stores are asked about at once.
const AT_ONCE: usize = 8;

fn status(verdict: &InputVerdict) -> ExitStatus {
    match verdict {
        InputVerdict::Tampered { .. } => ExitStatus::No,
        InputVerdict::NotRead(_) => ExitStatus::Failed,
        _ => ExitStatus::Yes,
    }
}

fn name(verdict: &InputVerdict) -> &'static str {
    match verdict {
        InputVerdict::Verified { .. } => "verified",
        InputVerdict::Tampered { .. } => "tampered",
        InputVerdict::Unverifiable { .. } => "unverifiable",
        _ => "failed",
    }
}

fn line(input: &VerifiedInput<'_>) -> String {
    let why = match &input.verdict {
        InputVerdict::Verified { place } => place.clone(),
        InputVerdict::Tampered { place, found } => {
            let locked = input.locked.map(|hash| hash.sri()).unwrap_or_default();
            format!("{place} has {}, flake.lock {locked}", found.sri())
        }
        InputVerdict::Unverifiable { why } => why.clone(),
        InputVerdict::NotRead(error) => error.to_string(),
        _ => String::new(),
    };
    // Names and places come from the lock: they forge no line.
    let field = |text: &str| plain(&text.replace('\t', " "));
    let path = field(&input.path.to_string());
    format!("{path}\t{}\t{}", name(&input.verdict), field(&why))
}

fn to_json(input: &VerifiedInput<'_>) -> Value {
    let mut out = Map::new();
    out.insert("path".into(), input.path.0.clone().into());
    out.insert("node".into(), input.node.into());
    out.insert("url".into(), input.pin.locked.to_url().into());
    out.insert("verdict".into(), name(&input.verdict).into());
    out.insert("locked".into(), input.locked.map(|hash| hash.sri()).into());
    match &input.verdict {
        InputVerdict::Verified { place } => {
            out.insert("place".into(), place.as_str().into());
        }
        InputVerdict::Tampered { place, found } => {
            out.insert("place".into(), place.as_str().into());
            out.insert("found".into(), found.sri().into());
        }
        InputVerdict::Unverifiable { why } => {
            out.insert("reason".into(), why.as_str().into());
        }
        InputVerdict::NotRead(error) => {
            out.insert("reason".into(), error.to_string().into());
        }
        _ => (),
    }
    out.into()
}

const EXAMPLES: &str = "\
Examples:
  tk-store flake verify
  tk-store flake verify ./project --in https://cache.nixos.org --json

Exit status: 0 all inputs are verified or said to be unverifiable, 1 one is tampered with, 2 one could not
be read.";
