use super::FlakeFolder;
use crate::{CommandContext, ExitStatus, output::plain, ui};
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::time::{SystemTime, UNIX_EPOCH};
use tk_project::{
    FlakeLock, LockEdge,
    lock::{DuplicatePins, GraphInput},
};

/// Show the inputs that flake.lock pins: what each is, how old it is, what follows what
///
/// Each input stands below the one that it is an input of. What several of them pin, perhaps in different
/// revisions, is told at the end: let one follow the other to have it once.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct FlakeInputs {
    #[command(flatten)]
    folder: FlakeFolder,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

impl FlakeInputs {
    /// Runs the command.
    pub fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let lock = self.folder.lock()?;
        if lock.is_none() {
            cx.ui.say("there is no flake.lock: nothing is pinned");
        }
        let lock = lock.unwrap_or_else(FlakeLock::empty);
        let graph = lock.graph();
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        if self.json {
            let inputs: Vec<_> = graph
                .inputs
                .iter()
                .map(|input| to_json(input, now))
                .collect();
            let twice: Vec<_> = graph.duplicates.iter().map(duplicate_to_json).collect();
            ui::out(json!({ "version": lock.version(), "inputs": inputs, "duplicates": twice }))?;
            return Ok(ExitStatus::Yes);
        }
        for input in &graph.inputs {
            ui::out(line(input, now))?;
        }
        for twice in &graph.duplicates {
            let names: Vec<_> = twice.inputs.iter().map(ToString::to_string).collect();
            let same = if twice.is_same {
                "the same content"
            } else {
                "different content"
            };
            cx.ui.say(format_args!(
                "{} is pinned {} times, with {same}: {}",
                twice.url,
                names.len(),
                names.join(", ")
            ));
        }
        Ok(ExitStatus::Yes)
    }
}

fn line(input: &GraphInput<'_>, now: u64) -> String {
    let indent = "  ".repeat(input.path.0.len() - 1);
    let name = input.path.0.last().map(String::as_str).unwrap_or_default();
    let rest = match (input.edge, input.pin) {
        (LockEdge::Follows(path), _) if path.0.is_empty() => "follows nothing".to_owned(),
        (LockEdge::Follows(path), _) => format!("follows {path}"),
        (LockEdge::Node(_), Some(pin)) => {
            let age = pin.locked.number("lastModified").map(|then| age(then, now));
            let kind = if pin.is_flake { "" } else { ", no flake" };
            format!("{}{}{kind}", pin.locked.to_url(), age.unwrap_or_default())
        }
        (LockEdge::Node(key), None) => key.clone(),
    };
    format!("{indent}{}", plain(&format!("{name}: {rest}")))
}

fn age(then: u64, now: u64) -> String {
    match now.saturating_sub(then) / DAY {
        0 => ", of today".into(),
        days => format!(", {} old", ui::count(days as usize, "day")),
    }
}

fn to_json(input: &GraphInput<'_>, now: u64) -> Value {
    let mut out = Map::new();
    out.insert("path".into(), input.path.0.clone().into());
    match input.edge {
        LockEdge::Follows(path) => out.insert("follows".into(), path.0.clone().into()),
        LockEdge::Node(key) => out.insert("node".into(), key.as_str().into()),
    };
    if let Some(pin) = input.pin {
        let modified = pin.locked.number("lastModified");
        out.insert("url".into(), pin.locked.to_url().into());
        out.insert("locked".into(), pin.locked.to_json());
        out.insert("original".into(), pin.original.to_json());
        out.insert("flake".into(), pin.is_flake.into());
        out.insert(
            "ageSeconds".into(),
            modified.map(|then| now.saturating_sub(then)).into(),
        );
    }
    out.into()
}

fn duplicate_to_json(twice: &DuplicatePins) -> Value {
    let names: Vec<_> = twice.inputs.iter().map(|path| path.0.clone()).collect();
    json!({ "url": twice.url, "inputs": names, "sameContent": twice.is_same })
}

/// The seconds of a day.
const DAY: u64 = 86_400;

const EXAMPLES: &str = "\
Examples:
  tk-store flake inputs
  tk-store flake inputs ./project --json | jq '.duplicates'";
