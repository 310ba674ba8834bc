use crate::{
    Answer, Context,
    build_log::BuildLog,
    open::{BuildOptions, Wish, open},
    out_link::OutLink,
    ui,
};
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::{collections::BTreeSet, path::PathBuf};
use tk_narinfo::build_result::{BuildResult, KeyedBuildResult};
use tk_path::{DerivedPath, OutputsSpec, SingleDerivedPath, StoreDir, StorePath};
use tk_store::{BuildMode, log::strip_ansi};

/// Build outputs of derivations, by a daemon that can
///
/// Needs no nix, only a store that builds: a daemon's socket, or one over ssh. The builders' log is
/// shown as it comes; the output paths are printed. A build that fails makes the exit status 1, and
/// its last log lines are told; the others go on with --keep-going.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Build {
    /// Derivations with their outputs, DRV^OUT,... or DRV^*; a path that is no derivation is
    /// fetched from a substituter
    #[arg(required = true, value_name = "DRV^OUT")]
    paths: Vec<String>,
    /// Say what would be built and fetched, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Build again what is there, and compare
    #[arg(long, visible_alias = "check", conflicts_with = "repair")]
    rebuild: bool,
    /// Build or fetch again what is damaged
    #[arg(long)]
    repair: bool,
    /// Leave out what builders print
    #[arg(long)]
    no_log: bool,
    /// Make LINK a link to the first output (more: LINK-dev, LINK-1, LINK-1-dev, …), and a root
    #[arg(long, short, value_name = "LINK")]
    out_link: Option<PathBuf>,
    #[command(flatten)]
    options: BuildOptions,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
}

impl Build {
    /// Runs the command.
    pub async fn run(self, cx: &Context) -> Result<Answer> {
        let wish = Wish {
            build: self.options.clone(),
            ..Wish::default()
        };
        let opened = open(cx, &cx.store_uri(), &wish).await?;
        let abilities = opened.abilities();
        let dir = abilities.store.dir().clone();
        let paths: Result<Vec<_>> = self.paths.iter().map(|p| derived_path(&dir, p)).collect();
        let paths = paths?;
        let Some(builder) = &abilities.build else {
            bail!(
                "{} cannot build; name a daemon, such as --store daemon or ssh-ng://host",
                abilities.store
            );
        };
        if self.dry_run {
            let missing = builder.missing(&paths).await?;
            return self.tell_missing(cx, &dir, &missing);
        }
        if let Some(link) = &self.out_link {
            OutLink::new(link, "")?;
        }
        let mode = match (self.rebuild, self.repair) {
            (true, _) => BuildMode::Check,
            (_, true) => BuildMode::Repair,
            _ => BuildMode::Normal,
        };
        let log = BuildLog::new(&cx.ui, !self.no_log);
        let results = builder.build(&paths, mode, &log).await;
        log.clear();
        let results = results.with_context(|| format!("cannot build by {}", abilities.store))?;
        let answer = self.tell(cx, &dir, &results)?;
        if let Some(link) = &self.out_link
            && answer == Answer::Yes
        {
            for (i, keyed) in results.iter().enumerate() {
                for (output, path) in outputs(&keyed.path, &keyed.result) {
                    let suffix = suffix(i, &output);
                    OutLink::new(link, &suffix)?.make(&opened, &path).await?;
                }
            }
        }
        Ok(answer)
    }

    fn tell(&self, cx: &Context, dir: &StoreDir, results: &[KeyedBuildResult]) -> Result<Answer> {
        let mut answer = Answer::Yes;
        for KeyedBuildResult { path, result } in results {
            if result.status.is_success() {
                continue;
            }
            answer = Answer::No;
            let why = strip_ansi(result.error.trim_end());
            cx.ui.error(format_args!(
                "{} was not built ({}): {why}",
                path.display(dir),
                result.status
            ));
        }
        if self.json {
            let results = results.iter().map(|keyed| to_json(dir, keyed));
            ui::out(Value::from_iter(results))?;
            return Ok(answer);
        }
        let all = results.iter().flat_map(|k| outputs(&k.path, &k.result));
        let mut seen = BTreeSet::new();
        for (_, path) in all.filter(|(_, path)| seen.insert(path.clone())) {
            ui::out(dir.display(&path))?;
        }
        Ok(answer)
    }

    fn tell_missing(
        &self,
        cx: &Context,
        dir: &StoreDir,
        missing: &tk_store::Missing,
    ) -> Result<Answer> {
        let list = |paths: &BTreeSet<StorePath>| -> Vec<String> {
            paths.iter().map(|path| dir.path(path)).collect()
        };
        let kinds = [
            ("would be built", "willBuild", &missing.build),
            ("would be fetched", "willSubstitute", &missing.substitute),
            ("cannot be had", "unknown", &missing.unknown),
        ];
        if self.json {
            let mut value =
                json!({ "downloadSize": missing.download_size, "narSize": missing.nar_size });
            for (_, key, paths) in kinds {
                value[key] = json!(list(paths));
            }
            ui::out(value)?;
        } else {
            for (words, _, paths) in kinds.iter().filter(|(.., paths)| !paths.is_empty()) {
                cx.ui
                    .say(format_args!("{} {words}:", ui::paths(paths.len())));
                for path in list(paths) {
                    ui::out(path)?;
                }
            }
            if missing.download_size > 0 {
                cx.ui.say(format_args!(
                    "{} to download, {} unpacked",
                    ui::size(missing.download_size),
                    ui::size(missing.nar_size)
                ));
            }
        }
        Ok(match missing.unknown.is_empty() {
            true => Answer::Yes,
            false => Answer::No,
        })
    }
}

/// `DRV^OUT`; a derivation alone means all its outputs, which is what building it is for.
fn derived_path(dir: &StoreDir, text: &str) -> Result<DerivedPath> {
    let path = DerivedPath::parse(dir, text)
        .with_context(|| format!("'{text}' names nothing to build; write {dir}/…-name.drv^out"))?;
    Ok(match path {
        DerivedPath::Opaque(drv) if drv.is_derivation() => DerivedPath::Built {
            drv: SingleDerivedPath::Opaque(drv),
            outputs: OutputsSpec::All,
        },
        path => path,
    })
}

/// As Nix has it, with what `nix build --json` prints: whole paths, of the derivation and the outputs.
fn to_json(dir: &StoreDir, keyed: &KeyedBuildResult) -> Value {
    let mut value = keyed.to_json();
    if !keyed.result.status.is_success() {
        value["errorMsg"] = strip_ansi(&keyed.result.error).into();
    }
    let outputs = outputs(&keyed.path, &keyed.result);
    let outputs = outputs
        .into_iter()
        .map(|(name, path)| (name, dir.path(&path).into()));
    value["outputs"] = Value::Object(outputs.collect());
    if let DerivedPath::Built { drv, .. } = &keyed.path {
        value["drvPath"] = drv.display(dir).to_string().into();
    }
    value
}

/// What Nix adds to the name of a link.
fn suffix(number: usize, output: &str) -> String {
    let number = match number {
        0 => String::new(),
        n => format!("-{n}"),
    };
    match output {
        "out" => number,
        output => format!("{number}-{output}"),
    }
}

/// The paths there are now, each with the name of its output (`out` for a path that was fetched).
fn outputs(path: &DerivedPath, result: &BuildResult) -> Vec<(String, StorePath)> {
    match path {
        DerivedPath::Opaque(path) if result.status.is_success() => {
            vec![("out".into(), path.clone())]
        }
        DerivedPath::Opaque(_) => Vec::new(),
        DerivedPath::Built { .. } => {
            let outputs = result.outputs.iter();
            outputs
                .map(|(name, value)| (name.to_string(), value.out_path.clone()))
                .collect()
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  tk-store build /nix/store/…-hello.drv^out
  tk-store build '/nix/store/…-hello.drv^*' --store ssh-ng://builder --json
  tk-store build --dry-run /nix/store/…-hello.drv^out,dev";
