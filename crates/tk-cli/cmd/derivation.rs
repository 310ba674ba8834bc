use crate::{
    CommandContext, ExitStatus,
    open::{OpenOptions, OpenStore, open},
    paths::{Named, named},
    ui,
};
use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{self, Read},
    path::Path,
    sync::Arc,
};
use tk_path::{
    Derivation as Drv, DerivationJsonVersion, DerivationOutput, StoreDir, StorePath, modulo::Modulo,
};
use tk_store::{
    Store,
    derivation::{MAX_DERIVATION_BYTES, add, read},
};

/// Show derivations, compute their store paths, and add them to a store
#[derive(clap::Subcommand)]
pub enum DerivationCommand {
    Show(DerivationShow),
    Path(PathOf),
    Add(DerivationAdd),
}

impl DerivationCommand {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        match self {
            DerivationCommand::Show(args) => args.run(cx).await,
            DerivationCommand::Path(args) => args.run(cx).await,
            DerivationCommand::Add(args) => args.run(cx).await,
        }
    }
}

/// Print derivations as JSON
///
/// As nix derivation show: an object with each derivation by its path. The JSON says what would be
/// run to build something, in which environment, from what (inputs), and what comes out (outputs).
#[derive(clap::Args)]
#[command(after_help = SHOW)]
pub struct DerivationShow {
    /// Derivations: paths of the store that end in .drv, or files
    #[arg(required = true, value_name = "DRV|FILE")]
    derivations: Vec<String>,
    /// All derivations that they need as well
    #[arg(long, short)]
    recursive: bool,
    /// The shape of the JSON, as Nix numbers them: 1 up to Nix 2.17 (also called legacy),
    /// 2 up to 2.31, 3 for 2.32, 4 since 2.33
    #[arg(
        long,
        value_name = "N",
        default_value = "4",
        hide_possible_values = true
    )]
    json_version: Shape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shape {
    #[value(name = "1", alias = "legacy")]
    V1,
    #[value(name = "2")]
    V2,
    #[value(name = "3")]
    V3,
    #[value(name = "4")]
    V4,
}

impl From<Shape> for DerivationJsonVersion {
    fn from(shape: Shape) -> DerivationJsonVersion {
        match shape {
            Shape::V1 => DerivationJsonVersion::V1,
            Shape::V2 => DerivationJsonVersion::V2,
            Shape::V3 => DerivationJsonVersion::V3,
            Shape::V4 => DerivationJsonVersion::V4,
        }
    }
}

impl DerivationShow {
    async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let files = self.derivations.iter().all(|text| is_file(text));
        let shelf = Shelf::new(cx, self.recursive || !files).await?;
        let mut all = BTreeMap::new();
        for text in &self.derivations {
            let (path, drv) = shelf.read(text).await?;
            all.insert(path, Arc::new(drv));
        }
        if self.recursive {
            let more = shelf.closure(all.values().cloned(), every_input).await?;
            all.extend(more);
        }
        let version = DerivationJsonVersion::from(self.json_version);
        let mut shown = Map::new();
        for (path, drv) in &all {
            let key = if version < DerivationJsonVersion::V3 {
                shelf.dir.path(path)
            } else {
                path.to_string()
            };
            shown.insert(key, drv.to_json(&shelf.dir, version)?);
        }
        let shown = match version {
            DerivationJsonVersion::V4 => json!({"version": 4, "derivations": shown}),
            _ => Value::Object(shown),
        };
        ui::out(shown)?;
        Ok(ExitStatus::Yes)
    }
}

/// Print the path of a derivation, and of what it makes
///
/// Nothing is written to a store. In JSON, outputs that are {} and their variables are filled in
/// first, as nix derivation add does. With --outputs, the outputs' paths are reckoned anew from all
/// that goes into the derivation; for that its input derivations are read from the store. When it
/// states others, that is told on stderr and the exit status is 1.
#[derive(clap::Args)]
#[command(after_help = PATH)]
pub struct PathOf {
    /// A derivation: a file as in the store, JSON (version 4), or a path of the store; - is
    /// standard input
    #[arg(value_name = "FILE")]
    file: String,
    /// The name, which a file from elsewhere does not have in it (default: the file's, without
    /// .drv)
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Print the paths of the outputs too: name and path, or - for what only building tells
    #[arg(long)]
    outputs: bool,
    /// Print an object: path, and with --outputs the outputs by name, null for unknown ones
    #[arg(long)]
    json: bool,
}

impl PathOf {
    async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let elsewhere = self.file == "-" || is_file(&self.file);
        let mut shelf = Shelf::new(cx, !elsewhere).await?;
        let mut drv = if elsewhere {
            read_file(&self.file, self.name.as_deref(), &shelf.dir)?
        } else {
            shelf.read(&self.file).await?.1
        };
        let fill = elsewhere && has_deferred(&drv);
        let mut modulo = Modulo::new(shelf.dir.clone());
        if fill || self.outputs {
            if shelf.opened.is_none() && modulo.missing(&drv).next().is_some() {
                shelf = Shelf::new(cx, true).await?;
            }
            modulo = shelf.modulo(&drv).await?;
        }
        if fill {
            drv.fill_outputs(&modulo)?;
        }
        let mut answer = ExitStatus::Yes;
        let path = shelf.dir.path(&drv.path(&shelf.dir)?);
        let mut outputs = BTreeMap::new();
        if self.outputs {
            for (name, path) in modulo.output_paths(&drv)? {
                outputs.insert(name.to_string(), path.map(|path| shelf.dir.path(&path)));
            }
            if let Err(wrong) = drv.check_outputs(&modulo) {
                cx.ui.error(wrong);
                answer = ExitStatus::No;
            }
        }
        self.print(path, outputs)?;
        Ok(answer)
    }

    fn print(&self, path: String, outputs: BTreeMap<String, Option<String>>) -> Result<()> {
        if self.json {
            let mut shown = json!({ "path": path });
            if self.outputs {
                shown["outputs"] = json!(outputs);
            }
            ui::out(shown)?;
            return Ok(());
        }
        ui::out(path)?;
        for (name, path) in outputs {
            ui::out(format_args!("{name} {}", path.as_deref().unwrap_or("-")))?;
        }
        Ok(())
    }
}

/// Add a derivation to the store, and print its path
///
/// As nix derivation add: JSON of version 4 in, a .drv file out. What it is built from must be in the store. Outputs
/// that are {} and their variables are filled in; a derivation whose outputs have other paths than what goes into it
/// makes is refused.
#[derive(clap::Args)]
#[command(after_help = ADD)]
pub struct DerivationAdd {
    /// A derivation: JSON, or a file as in a store; - is standard input
    #[arg(value_name = "FILE", default_value = "-")]
    file: String,
    /// The name, which a file from elsewhere does not have in it (default: the file's, without .drv)
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Print the path it would get, and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl DerivationAdd {
    async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let mut wish = OpenOptions::default();
        wish.write = !self.dry_run;
        let shelf = Shelf::of(open(cx, &cx.store_uri(), &wish).await?);
        let mut drv = read_file(&self.file, self.name.as_deref(), &shelf.dir)?;
        let modulo = shelf.modulo(&drv).await?;
        if has_deferred(&drv) {
            drv.fill_outputs(&modulo)?;
        }
        drv.check_outputs(&modulo)?;
        let path = match &shelf.opened {
            Some(opened) if !self.dry_run => add(opened.add_content()?, &drv).await?,
            _ => drv.path(&shelf.dir)?,
        };
        ui::out(shelf.dir.display(&path))?;
        Ok(ExitStatus::Yes)
    }
}

/// The derivation in `file`, JSON or as in a store; `-` is standard input.
fn read_file(file: &str, name: Option<&str>, dir: &StoreDir) -> Result<Drv> {
    let what = || format!("cannot read the derivation {file}");
    let text = match file {
        "-" => limited(io::stdin().lock()),
        file => File::open(file).map_err(Into::into).and_then(limited),
    };
    let text = text.with_context(what)?;
    if text.trim_ascii_start().first() == Some(&b'{') {
        return from_json(&text).with_context(what);
    }
    let name = match (name, file) {
        (Some(name), _) => name.to_owned(),
        (None, "-") => bail!("a derivation from standard input has no name; say --name NAME"),
        (None, file) => name_of(Path::new(file))?,
    };
    Ok(Drv::parse_aterm(dir, &name, &text)?)
}

/// Whether the paths of some outputs are to be filled in.
fn has_deferred(drv: &Drv) -> bool {
    let mut outputs = drv.outputs.values();
    outputs.any(|output| *output == DerivationOutput::Deferred)
}

/// Where derivations come from.
struct Shelf {
    opened: Option<OpenStore>,
    dir: StoreDir,
}

impl Shelf {
    /// Opens the store if it was named, or is `needed`; files alone are read without one.
    async fn new(cx: &CommandContext, needed: bool) -> Result<Shelf> {
        let opened = if needed || !cx.store.is_empty() {
            Some(open(cx, &cx.store_uri(), &OpenOptions::default()).await?)
        } else {
            None
        };
        let dir = match &opened {
            Some(opened) => opened.store().dir().clone(),
            None => cx.settings.store_dir()?,
        };
        Ok(Shelf { opened, dir })
    }

    /// What is in the store `opened`.
    fn of(opened: OpenStore) -> Shelf {
        let dir = opened.store().dir().clone();
        Shelf {
            opened: Some(opened),
            dir,
        }
    }

    /// What the paths of the outputs of `drv` follow from.
    async fn modulo(&self, drv: &Drv) -> Result<Modulo> {
        let inputs = self.closure([Arc::new(drv.clone())], hashed_inputs).await?;
        let mut modulo = Modulo::new(self.dir.clone());
        modulo.load(drv, |path| {
            Ok(inputs.get(path).ok_or("it was not read")?.clone())
        })?;
        Ok(modulo)
    }

    /// The derivation that an argument names, with its path.
    async fn read(&self, text: &str) -> Result<(StorePath, Drv)> {
        let named = match &self.opened {
            Some(opened) => named(opened, text)?,
            None => Named::File(text.into()),
        };
        match named {
            Named::Path(path, inside) if inside.is_empty() && path.is_derivation() => {
                let drv = read(&*self.store()?, &path).await?;
                Ok((path, drv))
            }
            Named::Path(..) => bail!(
                "{text} is not a derivation: its name does not end in .drv; \
                 what made a path, tk-store path-info --json tells as its deriver"
            ),
            Named::File(file) => {
                let bytes = File::open(&file).map_err(Into::into).and_then(limited);
                let bytes = bytes.with_context(|| format!("cannot read the derivation {text}"))?;
                let drv = Drv::parse_aterm(&self.dir, &name_of(&file)?, &bytes)?;
                Ok((drv.path(&self.dir)?, drv))
            }
        }
    }

    /// The derivations that `drvs` need, by `inputs`, and so on; without `drvs` themselves.
    async fn closure(
        &self,
        drvs: impl IntoIterator<Item = Arc<Drv>>,
        inputs: fn(&Drv) -> Vec<StorePath>,
    ) -> Result<HashMap<StorePath, Arc<Drv>>> {
        let mut found = HashMap::new();
        let mut todo: Vec<Arc<Drv>> = drvs.into_iter().collect();
        while !todo.is_empty() {
            let mut wanted: Vec<StorePath> = todo.iter().flat_map(|drv| inputs(drv)).collect();
            wanted.sort_unstable();
            wanted.dedup();
            wanted.retain(|path| !found.contains_key(path));
            if wanted.is_empty() {
                break;
            }
            let store = self.store()?;
            let store = &*store;
            let read = wanted.into_iter().map(|path| async move {
                let drv = read(store, &path).await?;
                anyhow::Ok((path, Arc::new(drv)))
            });
            let read: Vec<_> = stream::iter(read)
                .buffer_unordered(AT_ONCE)
                .try_collect()
                .await?;
            todo = read.iter().map(|(_, drv)| drv.clone()).collect();
            found.extend(read);
        }
        Ok(found)
    }

    fn store(&self) -> Result<Arc<dyn Store>> {
        let opened = self.opened.as_ref().context("no store is open")?;
        Ok(opened.store())
    }
}

fn every_input(drv: &Drv) -> Vec<StorePath> {
    drv.inputs.drvs.keys().cloned().collect()
}

/// Those that output paths depend on.
fn hashed_inputs(drv: &Drv) -> Vec<StorePath> {
    let modulo = Modulo::new(StoreDir::default());
    modulo.missing(drv).cloned().collect()
}

/// One derivation as JSON, by itself or as `derivation show` prints it.
fn from_json(text: &[u8]) -> Result<Drv> {
    let value: Value = serde_json::from_slice(text)?;
    let drv = match value.get("derivations").and_then(Value::as_object) {
        None => &value,
        Some(all) => {
            let mut each = all.values();
            match (each.next(), each.next()) {
                (Some(one), None) => one,
                _ => bail!("it has {} derivations; give one at a time", all.len()),
            }
        }
    };
    Ok(Drv::from_json(drv)?)
}

/// Whether `text` is a file, and no path of a store nor a link, which may lead into one.
fn is_file(text: &str) -> bool {
    fs::symlink_metadata(text).is_ok_and(|meta| meta.is_file())
        && StoreDir::default().split(text).is_err()
}

/// The name of the derivation in `file`: that of the file without `.drv`, and without the hash part
/// if it was copied from a store under its name there.
fn name_of(file: &Path) -> Result<String> {
    let name = file.file_name().and_then(|name| name.to_str());
    let Some(name) = name.and_then(|name| name.strip_suffix(".drv")) else {
        bail!(
            "{} does not end in .drv, and a derivation's name is that of its file",
            file.display()
        );
    };
    Ok(match StorePath::parse(name) {
        Ok(path) => path.name().to_owned(),
        Err(_) => name.to_owned(),
    })
}

fn limited(from: impl Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MAX_DERIVATION_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() > MAX_DERIVATION_BYTES {
        bail!("it has more than {MAX_DERIVATION_BYTES} bytes, which no derivation has");
    }
    Ok(bytes)
}

/// Derivations read at once.
const AT_ONCE: usize = 16;

const SHOW: &str = "\
Examples:
  tk-store derivation show /nix/store/…-hello.drv
  tk-store derivation show -r --store file:///srv/cache /nix/store/…-hello.drv
  tk-store derivation show --json-version legacy ./hello.drv";

const PATH: &str = "\
Examples:
  tk-store derivation path ./hello.drv
  tk-store derivation show /nix/store/…-hello.drv | tk-store derivation path --outputs -
  tk-store derivation path --outputs --json /nix/store/…-hello.drv";

const ADD: &str = "\
Examples:
  tk-store derivation show /nix/store/…-hello.drv | tk-store derivation add
  tk-store derivation add ./hello.drv";
