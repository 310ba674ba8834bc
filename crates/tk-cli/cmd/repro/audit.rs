use super::Refs;
use crate::{
    CommandContext, ExitStatus,
    build_log::LogPrinter,
    failure::tell_failure,
    open::{BuildArgs, NixOptions, OpenOptions, open},
    ui,
};
use anyhow::Result;
use serde_json::Value;
use std::collections::BTreeSet;
use tk_nix::{
    Nix,
    repro::{Finding, Severity, audit},
};

/// Tell what makes a build impure
///
/// Looks at nix's settings (the sandbox), at how it is evaluated, at the inputs of the flake (whether
/// flake.lock pins them), and at all derivations that it is built from. Nothing is built, and flake.lock
/// is not written. A derivation of the store needs no nix, but then no setting is looked at. Settings
/// are those of this machine: a builder elsewhere has its own.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Audit {
    #[command(flatten)]
    refs: Refs,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    nix: NixOptions,
    #[command(flatten)]
    build: BuildArgs,
}

impl Audit {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let wish = OpenOptions::to_write();
        let store = open(cx, &cx.store_uri(), &wish).await?.store();
        let nix = self
            .find_nix(cx, self.refs.all_in_store(store.dir()))
            .await?;
        let mut findings = BTreeSet::new();
        let mut failed = false;
        for what in self.refs.installables(store.dir())? {
            let log = LogPrinter::new(&cx.ui, true);
            let found = audit(nix.as_ref(), &*store, &what, &self.nix.eval(), &log).await;
            log.clear();
            match found {
                Ok(found) => findings.extend(found),
                Err(failure) => {
                    tell_failure(cx, &what.to_string(), &failure);
                    failed = true;
                }
            }
        }
        self.tell(cx, &findings)?;
        Ok(match (failed, findings.first().map(|f| f.severity)) {
            (true, _) => ExitStatus::Failed,
            (_, Some(Severity::Error)) => ExitStatus::No,
            _ => ExitStatus::Yes,
        })
    }

    async fn find_nix(&self, cx: &CommandContext, optional: bool) -> Result<Option<Nix>> {
        match self.nix.find(cx, &self.build).await {
            Ok(nix) => Ok(Some(nix)),
            Err(error) if optional => {
                cx.ui
                    .warn(format_args!("settings are not looked at: {error:#}"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn tell(&self, cx: &CommandContext, findings: &BTreeSet<Finding>) -> Result<()> {
        if self.json {
            let all = findings.iter().map(Finding::to_json);
            ui::out(Value::from_iter(all))?;
            return Ok(());
        }
        for finding in findings {
            let (severity, kind) = (finding.severity, finding.kind);
            ui::out(format_args!(
                "{severity} {kind} {finding}; {}",
                finding.advice
            ))?;
        }
        let count = |severity, word| {
            let found = findings.iter().filter(|f| f.severity == severity);
            ui::count(found.count(), word)
        };
        cx.ui.say(format_args!(
            "{}, {}, {}",
            count(Severity::Error, "error"),
            count(Severity::Warning, "warning"),
            count(Severity::Note, "note")
        ));
        Ok(())
    }
}

const EXAMPLES: &str = "\
Examples:
  tk-store repro audit .#hello
  tk-store repro audit --json /nix/store/…-hello.drv | jq -r '.[] | select(.severity == \"error\").where'

Prints a line for each finding, the worst first: error, warning or note, the kind, where it is, and what to do.

Exit status: 0 nothing that is an error was found, 1 something was, 2 it could not be looked at.";
