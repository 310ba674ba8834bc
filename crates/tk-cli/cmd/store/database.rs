//! Reading and writing what a store has registered.

use crate::{
    CommandContext, ExitStatus, keys,
    open::{OpenOptions, OpenStore, open, sources_of},
    paths::{NamedPaths, PathArgs},
    ui,
};
use anyhow::{Context as _, Result};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{self, BufReader, Seek, Write},
    path::{Path, PathBuf},
};
use tk_local::{LocalConfig, LocalStore, RecoverOptions, RecoverReport, RecoverWrite, ScanPaths};
use tk_open::local_config;
use tk_path::StoreDir;
use tk_store::{RegistrationReader, SigCheck, StoreReference, registration_text};

/// What to write out.
#[derive(clap::Args)]
pub struct DumpArgs {
    #[command(flatten)]
    paths: PathArgs,
}

impl DumpArgs {
    /// Writes what is registered to stdout.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let store = super::super::verify::whole_store::open_store(cx).await?;
        let paths = if self.paths.is_empty() {
            let abilities = store.abilities();
            let Some(graph) = &abilities.graph else {
                return Err(abilities
                    .unsupported("cannot list what is registered")
                    .into());
            };
            graph.all_paths().await?
        } else {
            let texts = self.paths.texts()?;
            let named = NamedPaths::find(&store, &texts).await?;
            named.paths.into_iter().collect()
        };
        let store = store.store();
        let mut out = io::BufWriter::new(crate::output::stdout());
        let mut infos = store.infos(stream::iter(paths).boxed());
        while let Some((path, info)) = infos.try_next().await? {
            let info = info.with_context(|| format!("{path} is not valid in {store}"))?;
            out.write_all(registration_text(store.dir(), &info).as_bytes())?;
        }
        out.flush()?;
        Ok(ExitStatus::Yes)
    }
}

/// What to register.
#[derive(clap::Args)]
pub struct LoadArgs {
    /// The dump [default: standard input]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

impl LoadArgs {
    /// Registers what a dump says.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let store = open_on_disk(cx).await?;
        let local = store.local().context(NOT_ON_DISK)?;
        let report = local.load_db(open_dump(self.file.as_deref())?).await?;
        if self.json {
            ui::out(json!({
                "store": local.to_string(),
                "registered": report.registered,
                "kept": report.kept,
            }))?;
        }
        let new = ui::paths(report.registered as usize);
        cx.ui.say(format_args!(
            "registered {new} in {local}; {} were valid already",
            report.kept
        ));
        Ok(ExitStatus::Yes)
    }
}

/// From what to make a database anew.
#[derive(clap::Args)]
pub struct RecoverArgs {
    /// What a dump of the database says (- is standard input); it is believed where the content fits
    #[arg(long, value_name = "FILE")]
    dump: Option<PathBuf>,
    /// A cache or another store that knows the paths (may be repeated)
    #[arg(long, value_name = "URI")]
    from: Vec<String>,
    /// Trust the public key, name:base64 or a file (may be repeated) [default: nix.conf's]
    #[arg(long, value_name = "KEY")]
    trusted_key: Vec<String>,
    /// Believe what the stores of --from say without a signature
    #[arg(long)]
    no_check_sigs: bool,
    /// Make valid as they are what nobody knows: the hash is what it is, and the references are what
    /// is found in it
    #[arg(long)]
    scan: bool,
    /// Say what would be valid, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print a report as JSON
    #[arg(long)]
    json: bool,
}

impl RecoverArgs {
    /// Makes the database anew.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let config = config_on_disk(cx)?;
        let check = if self.no_check_sigs {
            SigCheck::Skip
        } else {
            keys::signed(cx, &self.trusted_key, 1)?
        };
        let mut options = RecoverOptions::new(check);
        if let Some(file) = &self.dump {
            let file = Some(file.as_path()).filter(|file| *file != Path::new("-"));
            let records = RegistrationReader::new(&config.dir, open_dump(file)?);
            options.dump = records.collect::<Result<_, _>>()?;
        }
        // What stays open while it is asked.
        let mut sources = Vec::new();
        for uri in &self.from {
            sources.push(open(cx, uri, &OpenOptions::default()).await?);
        }
        options.from = sources.iter().map(OpenStore::store).collect();
        if self.scan {
            options.scan = ScanPaths::Yes;
        }
        if self.dry_run {
            options.write = RecoverWrite::DryRun;
        }
        let dir = config.dir.clone();
        let report = LocalStore::recover(config, options, &cx.ui.log()).await?;
        if self.json {
            ui::out(to_json(&dir, &report))?;
        } else {
            let line = |(path, truth): (_, &tk_local::PathTruth)| {
                format!("{}\t{}", truth.name(), dir.display(path))
            };
            ui::out_all(report.recovered.iter().map(line))?;
        }
        let (valid, left) = (ui::paths(report.recovered.len()), report.left_out.len());
        cx.ui.say(if self.dry_run {
            format!("would recover {valid}, and leave out {left}")
        } else {
            format!("recovered {valid}; {left} {} left out", ui::were(left))
        });
        if let Some(old) = &report.old {
            cx.ui
                .say(format_args!("the old database is {}", old.display()));
        }
        if left > 0 && !self.dry_run {
            cx.ui.warn(
                "what stays invalid is deleted by the next gc, roots or not; recover again with \
                 more sources first",
            );
        }
        Ok(if report.left_out.is_empty() {
            ExitStatus::Yes
        } else {
            ExitStatus::No
        })
    }
}

fn to_json(dir: &StoreDir, report: &RecoverReport) -> Value {
    let recovered = report.recovered.iter().map(|(path, truth)| {
        let store = match truth {
            tk_local::PathTruth::Narinfo { store } => Some(store),
            _ => None,
        };
        json!({ "path": dir.path(path), "truth": truth.name(), "store": store })
    });
    let left_out = report.left_out.iter();
    let left_out = left_out.map(|(path, why)| json!({ "path": dir.path(path), "error": why }));
    json!({
        "recovered": recovered.collect::<Vec<_>>(),
        "leftOut": left_out.collect::<Vec<_>>(),
        "oldDatabase": report.old,
    })
}

/// The dump as a file on disk: the store is locked while it is read, so whoever writes a pipe must be done.
fn open_dump(file: Option<&Path>) -> Result<BufReader<File>> {
    let opened = match file {
        None => copy_aside(io::stdin())?,
        Some(file) => {
            let opened = File::open(file).with_context(|| format!("opening {}", file.display()))?;
            if opened.metadata()?.is_file() {
                opened
            } else {
                copy_aside(opened)?
            }
        }
    };
    Ok(BufReader::new(opened))
}

fn copy_aside(mut from: impl io::Read) -> Result<File> {
    let mut copy = || {
        let mut file = tempfile::tempfile()?;
        io::copy(&mut from, &mut file)?;
        file.rewind()?;
        io::Result::Ok(file)
    };
    copy().context("copying the dump to a temporary file")
}

/// The store on disk to write to, which is made where there is none.
async fn open_on_disk(cx: &CommandContext) -> Result<OpenStore> {
    let mut wish = OpenOptions::default();
    wish.write = true;
    open(cx, &uri_on_disk(cx)?, &wish).await
}

/// Where the store on disk is, which cannot be opened.
fn config_on_disk(cx: &CommandContext) -> Result<LocalConfig> {
    let cwd = std::env::current_dir().context("finding the current directory")?;
    let uri = uri_on_disk(cx)?;
    let reference = StoreReference::parse(&uri, &cwd)?;
    // Without a database nobody knows better: it is the store of this machine.
    let is_auto = uri == "auto";
    anyhow::ensure!(is_auto || reference.scheme() == Some("local"), NOT_ON_DISK);
    let root = if is_auto { None } else { reference.path()? };
    let wish = OpenOptions::default();
    Ok(local_config(
        &cx.settings,
        root,
        &mut reference.settings(),
        &wish,
    )?)
}

fn uri_on_disk(cx: &CommandContext) -> Result<String> {
    let mut uris = sources_of(cx, &[], &[]);
    anyhow::ensure!(uris.len() == 1, "name one store with --store");
    Ok(uris.remove(0))
}

const NOT_ON_DISK: &str =
    "only a store on disk has a database of its own; name one, such as --store local?root=DIR";
