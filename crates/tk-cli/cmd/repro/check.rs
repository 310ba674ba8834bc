use super::{Refs, require_one_dir};
use crate::{
    CommandContext, ExitStatus,
    build_log::LogPrinter,
    failure::tell_failure,
    open::{BuildArgs, NixOptions, OpenOptions, OpenStore, open},
    ui,
};
use anyhow::Result;
use serde_json::{Value, json};
use std::num::NonZeroU32;
use tk_nix::{
    Installable, InstallableSource, Nix, NixBuilder, NixFailure, Target, or_cancelled,
    repro::{
        CheckOptions, Instance, InstanceState, MAX_DIFFERENCES, ReproVerdict, check,
        compare_stores, wanted,
    },
};
use tk_store::Abilities;

/// Build again, or ask several stores, and tell where the results differ
///
/// Builds what is not there, builds it again, and compares the two: each output's files, their contents,
/// executable bits, links and names. Needs nix to evaluate, and a store that builds; for a derivation or
/// a path of the store only the latter. What the second build gave, if it differs, stays in the store
/// beside the first as PATH.check until garbage is collected, and so does its build folder (the daemon
/// says where).
///
/// With --in nothing is built: each store is asked for the output, and where two hold different ones,
/// both are read and compared. One --in is compared with --store.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ReproCheckCommand {
    #[command(flatten)]
    refs: Refs,
    /// Build nothing, but compare what is in this cache or store (may be repeated)
    #[arg(long = "in", value_name = "URI")]
    stores: Vec<String>,
    /// Build so many times again, until one differs
    #[arg(long, value_name = "N", default_value = "1", conflicts_with = "stores")]
    rounds: NonZeroU32,
    /// Tell so many differences of each output
    #[arg(long, value_name = "N", default_value_t = MAX_DIFFERENCES)]
    max_differences: usize,
    /// Leave out what builders print
    #[arg(long)]
    no_log: bool,
    /// Print the results as JSON, an object for each output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    nix: NixOptions,
    #[command(flatten)]
    build: BuildArgs,
}

impl ReproCheckCommand {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let mut told = PrintedCounts {
            json: self.json.then(Vec::new),
            answer: ExitStatus::Yes,
        };
        if self.stores.is_empty() {
            self.build_again(cx, &mut told).await?
        } else {
            self.ask(cx, &mut told).await?
        }
        if let Some(all) = told.json {
            ui::out(Value::Array(all))?;
        }
        Ok(told.answer)
    }

    async fn build_again(&self, cx: &CommandContext, told: &mut PrintedCounts) -> Result<()> {
        let build = self.build.keeping_failed();
        let (builder, opened) = if self.refs.all_in_store(&cx.settings.store_dir()?) {
            self.nix.builder_of_derivations(cx, &build).await?
        } else {
            self.nix.builder(cx, &build).await?
        };
        let mut options = CheckOptions::default();
        options.rounds = self.rounds;
        options.limit = self.max_differences;
        options.real_dir = opened.real_dir().map(Into::into);
        options.cancel = cx.cancel.clone();
        for what in self.refs.installables(builder.store().store.dir())? {
            let log = LogPrinter::new(&cx.ui, !self.no_log);
            let verdicts = self.verdicts(&builder, &what, &options, &log).await;
            log.clear();
            told.all(cx, &what, verdicts)?;
        }
        Ok(())
    }

    async fn verdicts(
        &self,
        builder: &NixBuilder,
        what: &Installable,
        options: &CheckOptions,
        log: &LogPrinter,
    ) -> Result<Vec<ReproVerdict>, NixFailure> {
        let dir = builder.store().store.dir();
        let eval = self.nix.eval();
        let found = builder.nix().targets(what, dir, &eval, log);
        let targets = or_cancelled(&options.cancel, found).await?;
        let mut all = Vec::new();
        for target in targets {
            all.extend(check(builder, &target, options, log).await?);
        }
        Ok(all)
    }

    async fn ask(&self, cx: &CommandContext, told: &mut PrintedCounts) -> Result<()> {
        let mut wish = OpenOptions::default();
        // What counts is what they have, not what they had.
        wish.refresh = true;
        let mut uris = self.stores.clone();
        if uris.len() == 1 {
            uris.insert(0, cx.store_uri());
        }
        let mut stores = Vec::new();
        for uri in &uris {
            let store = open(cx, uri, &wish).await?.abilities();
            if let Some(first) = stores.first().map(|a: &Abilities| a.store.clone()) {
                require_one_dir(&*first, &*store.store)?;
            }
            stores.push(store);
        }
        let dir = stores[0].store.dir().clone();
        let evaluates = !self.refs.all_in_store(&dir);
        let nix = if evaluates {
            Some(self.nix.find(cx, &self.build).await?)
        } else {
            None
        };
        // Derivations are where they were evaluated to, or where the user says.
        let mut shelves = stores.clone();
        if evaluates || !cx.store.is_empty() {
            let opened: OpenStore = open(cx, &cx.store_uri(), &wish).await?;
            shelves.insert(0, opened.abilities());
        }
        for what in self.refs.installables(&dir)? {
            let log = LogPrinter::new(&cx.ui, !self.no_log);
            let found = self.found(nix.as_ref(), &what, &stores, &shelves, &log);
            let found = or_cancelled(&cx.cancel, found).await;
            log.clear();
            told.all(cx, &what, found)?;
        }
        Ok(())
    }

    async fn found(
        &self,
        nix: Option<&Nix>,
        what: &Installable,
        stores: &[Abilities],
        shelves: &[Abilities],
        log: &LogPrinter,
    ) -> Result<Vec<ReproVerdict>, NixFailure> {
        let targets = match (&what.source, nix) {
            (InstallableSource::Store(path), _) => vec![Target::of(path.clone())],
            (_, Some(nix)) => {
                let dir = stores[0].store.dir();
                nix.targets(what, dir, &self.nix.eval(), log).await?
            }
            (_, None) => Vec::new(),
        };
        let mut all = Vec::new();
        for target in targets {
            let wanted = wanted(&target, shelves).await?;
            all.extend(compare_stores(&wanted, stores, self.max_differences).await);
        }
        Ok(all)
    }
}

/// What was told so far.
struct PrintedCounts {
    /// Where it is kept, if it is told as JSON.
    json: Option<Vec<Value>>,
    answer: ExitStatus,
}

impl PrintedCounts {
    fn all(
        &mut self,
        cx: &CommandContext,
        what: &Installable,
        verdicts: Result<Vec<ReproVerdict>, NixFailure>,
    ) -> Result<()> {
        let verdicts = match verdicts {
            Ok(verdicts) => verdicts,
            Err(failure) => {
                tell_failure(cx, &what.to_string(), &failure);
                self.answer = ExitStatus::Failed;
                if let Some(json) = &mut self.json {
                    json.push(failed(what, &failure));
                }
                return Ok(());
            }
        };
        self.answer = self.answer.max(answer(&verdicts));
        for verdict in &verdicts {
            match &mut self.json {
                Some(json) => json.push(verdict.to_json()),
                None => tell(cx, verdict)?,
            }
        }
        Ok(())
    }
}

/// What differs is an answer, even where it kept something else from being found out.
fn answer(verdicts: &[ReproVerdict]) -> ExitStatus {
    let any = |what| verdicts.iter().any(|v| v.reproducible == what);
    match (any(Some(false)), any(None)) {
        (true, _) => ExitStatus::No,
        (false, true) => ExitStatus::Failed,
        (false, false) => ExitStatus::Yes,
    }
}

fn tell(cx: &CommandContext, verdict: &ReproVerdict) -> Result<()> {
    let absent = |copy: &Instance| copy.state == InstanceState::Absent;
    let hash = verdict.copies.iter().find_map(|copy| match &copy.state {
        InstanceState::Present { nar_hash, .. } => Some(nar_hash.sri()),
        _ => None,
    });
    let name = verdict.name();
    match verdict.reproducible {
        Some(true) => ui::out(format_args!("same {name} {}", hash.unwrap_or_default()))?,
        None => ui::out(format_args!("unknown {name}"))?,
        Some(false) if verdict.count == 0 && verdict.copies.iter().any(absent) => {
            ui::out(format_args!("missing {name}"))?;
        }
        Some(false) => ui::out(format_args!("different {name}"))?,
    }
    for difference in &verdict.differences {
        let path = match difference.shown_path() {
            path if path.is_empty() => verdict.path.clone().unwrap_or_default(),
            path => path,
        };
        ui::out(format_args!("  {path}: {difference}"))?;
    }
    let rest = verdict
        .count
        .saturating_sub(verdict.differences.len() as u64);
    if rest > 0 {
        cx.ui
            .say(format_args!("{rest} more differences are not shown"));
    }
    if verdict.reproducible != Some(true) {
        copies(cx, verdict);
    }
    if let Some(note) = &verdict.note {
        cx.ui.warn(format_args!("{name}: {note}"));
    }
    Ok(())
}

fn copies(cx: &CommandContext, verdict: &ReproVerdict) {
    for (i, copy) in verdict.copies.iter().enumerate() {
        let from = &copy.from;
        let which = match verdict.compared {
            Some([first, _]) if first == i => "; the first of those compared",
            Some([_, second]) if second == i => "; the second of those compared",
            _ => "",
        };
        match &copy.state {
            InstanceState::Present { path, nar_hash } => {
                let hash = nar_hash.sri();
                cx.ui.say(format_args!("{from}: {path} {hash}{which}"));
            }
            InstanceState::Absent => cx.ui.error(format_args!("{from} does not have it")),
            InstanceState::Unknown(why) => {
                cx.ui
                    .error(format_args!("{from} cannot be looked at: {why}"));
            }
        }
    }
}

fn failed(what: &Installable, failure: &NixFailure) -> Value {
    json!({
        "ref": what.to_string(),
        "drvPath": failure.derivation,
        "output": null,
        "path": null,
        "reproducible": null,
        "narHashes": [],
        "copies": [],
        "compared": null,
        "differences": [],
        "differenceCount": 0,
        "note": null,
        "failure": failure.to_json(),
    })
}

const EXAMPLES: &str = "\
Examples:
  tk-store repro check .#hello
  tk-store repro check --rounds 5 --json '/nix/store/…-hello.drv^*'
  tk-store repro check /nix/store/…-hello --in https://cache.nixos.org --in file:///srv/cache
  tk-store repro check .#hello --in ssh-ng://builder-a --in ssh-ng://builder-b

Prints a line for each output: same, different, missing (from a store) or unknown, and its name. What differs
follows, each indented: the file in the output, and how. Offsets count bytes of the file from 0.

Exit status: 0 all are the same, 1 something differs or is missing, 2 it could not be found out.";
