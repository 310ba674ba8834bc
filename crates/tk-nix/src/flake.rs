//! What nix says of flakes, in one form for all its versions.

use crate::{Cause, EvalOptions, Invocation, Nix, NixFailure, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tk_store::log::LogSink;

/// What is known of a flake without evaluating its outputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlakeMetadata {
    /// As it was named, with defaults made explicit.
    pub original_url: String,
    /// After registries were asked.
    pub resolved_url: String,
    /// With everything that pins it.
    pub url: String,
    /// Its own words about itself, if it has some.
    pub description: Option<String>,
    /// Its sources in the store: a whole path.
    pub path: String,
    /// The commit, if it is one.
    pub revision: Option<String>,
    /// Seconds since 1970, if that is known.
    pub last_modified: Option<u64>,
    /// The content of flake.lock, as it is or would be.
    pub locks: Value,
}

/// Metadata as Nix prints it: keys came and went.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Printed {
    original_url: Option<String>,
    resolved_url: Option<String>,
    url: Option<String>,
    locked_url: Option<String>,
    description: Option<String>,
    path: Option<String>,
    revision: Option<String>,
    dirty_revision: Option<String>,
    last_modified: Option<u64>,
    #[serde(default)]
    locks: Value,
}

impl Nix {
    /// What is known of the flake `reference`. Its inputs are fetched as far as that needs it.
    pub async fn flake_metadata(
        &self,
        reference: &str,
        options: &EvalOptions,
        log: &dyn LogSink,
    ) -> Result<FlakeMetadata> {
        let what = flake(&["flake", "metadata", "--json"], reference, options)?;
        let printed = self.json(what, log).await?;
        let printed: Printed = serde_json::from_value(printed).map_err(|e| odd(&e))?;
        let original = printed.original_url.unwrap_or_else(|| reference.into());
        let resolved = printed.resolved_url.unwrap_or_else(|| original.clone());
        Ok(FlakeMetadata {
            url: printed
                .url
                .or(printed.locked_url)
                .unwrap_or_else(|| resolved.clone()),
            original_url: original,
            resolved_url: resolved,
            description: printed.description,
            path: printed.path.unwrap_or_default(),
            revision: printed.revision.or(printed.dirty_revision),
            last_modified: printed.last_modified,
            locks: printed.locks,
        })
    }

    /// The outputs of the flake `reference`: sets within sets, whose leaves have a `type` and, where
    /// Nix says so, a `name` and a `description`. What was left out (other systems) is `{}`.
    pub async fn flake_show(
        &self,
        reference: &str,
        options: &EvalOptions,
        log: &dyn LogSink,
    ) -> Result<Value> {
        let what = flake(&["flake", "show", "--json"], reference, options)?;
        self.json(what, log).await
    }

    /// Makes flake.lock what flake.nix asks for, with the inputs in `update` looked up anew. Its
    /// content afterwards.
    pub async fn flake_lock(
        &self,
        reference: &str,
        update: &[String],
        options: &EvalOptions,
        log: &dyn LogSink,
    ) -> Result<Value> {
        // 2.19 made `--update-input` a command of its own.
        if update.is_empty() {
            let what = flake(&["flake", "lock"], reference, options)?;
            self.run(what, log).await?;
        } else if self.version().at_least(2, 19) {
            let mut command = vec!["flake", "update"];
            command.extend(update.iter().map(String::as_str));
            command.push("--flake");
            self.run(flake(&command, reference, options)?, log).await?;
        } else {
            let mut what = flake(&["flake", "lock"], reference, options)?;
            for input in update {
                what = what.args(["--update-input", input]);
            }
            self.run(what, log).await?;
        }
        Ok(self.flake_metadata(reference, options, log).await?.locks)
    }
}

fn flake(command: &[&str], reference: &str, options: &EvalOptions) -> Result<Invocation> {
    if reference.starts_with('-') {
        let words = format!("'{reference}' is not a flake");
        return Err(NixFailure::new(Cause::Misused, words));
    }
    Ok(options.apply(Invocation::new(command).arg(reference), true))
}

fn odd(error: &dyn std::fmt::Display) -> NixFailure {
    let words = format!("nix prints metadata of a kind that is not known: {error}");
    NixFailure::new(Cause::Other, words)
}
