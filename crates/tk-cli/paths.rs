//! Arguments that name store paths, and such that name files to be added.

use crate::{CommandContext, open::OpenStore, ui};
use anyhow::{Context as _, Result, bail};
use futures::{StreamExt, TryStreamExt};
use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{self, BufRead},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tk_nar::fs::DumpOptions;
use tk_narinfo::{PathInfo, realisation::legacy};
use tk_path::{Algorithm, Method, OutputsSpec, References, StorePath};
use tk_store::{ContentHasher, copy::OutputPaths, nar};

/// Arguments that name store paths.
#[derive(Debug, clap::Args)]
pub struct PathArgs {
    /// Store paths, links to them, or outputs of derivations: DRV^OUT, DRV^*
    #[arg(value_name = "STOREPATH")]
    paths: Vec<OsString>,
    /// Read more of them from standard input, one a line
    #[arg(long)]
    stdin: bool,
}

/// As [`PathArgs`], or everything that is there.
#[derive(Debug, clap::Args)]
#[command(mut_arg("paths", |arg| arg.required_unless_present_any(["all", "stdin"])))]
pub struct PathsOrAll {
    #[command(flatten)]
    pub paths: PathArgs,
    /// Every path of the store
    #[arg(long, conflicts_with_all = ["paths", "stdin"])]
    pub all: bool,
}

/// For commands that do nothing without a path.
pub fn required(paths: clap::Arg) -> clap::Arg {
    paths.required_unless_present("stdin")
}

impl PathArgs {
    /// The arguments, and the lines of standard input if they are asked for by `--stdin` or `-`.
    pub fn texts(&self) -> Result<Vec<OsString>> {
        let given = self.paths.iter().filter(|text| *text != "-");
        let mut texts: Vec<_> = given.cloned().collect();
        if self.stdin || texts.len() < self.paths.len() {
            texts.extend(lines_of_stdin()?);
        }
        Ok(texts)
    }

    /// Whether there are none, so that nothing but standard input is left.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty() && !self.stdin
    }
}

impl PathsOrAll {
    /// As [`PathArgs::texts`]; none where everything is asked for.
    pub fn texts(&self) -> Result<Vec<OsString>> {
        self.paths.texts()
    }
}

/// The lines of standard input that are not blank, without blanks around them. Several paths may be
/// on one line, as nix takes them, unless there is a file with such a name.
pub fn lines_of_stdin() -> Result<Vec<OsString>> {
    let mut texts = Vec::new();
    for line in io::stdin().lock().split(b'\n') {
        let line = line.context("reading store paths from standard input")?;
        let line = OsStr::from_bytes(line.trim_ascii());
        if line.as_bytes().contains(&b' ') && fs::symlink_metadata(line).is_err() {
            let words = line.as_bytes().split(u8::is_ascii_whitespace);
            let words = words.filter(|word| !word.is_empty());
            texts.extend(words.map(|word| OsStr::from_bytes(word).to_owned()));
        } else if !line.is_empty() {
            texts.push(line.to_owned());
        }
    }
    Ok(texts)
}

/// What an argument turned out to be.
#[derive(Debug)]
pub enum Named {
    /// A store path, and what follows it in the text, such as `bin/sh`.
    Path(StorePath, Vec<u8>),
    /// A file, folder or link elsewhere.
    File(PathBuf),
}

/// Finds out what `text` names: a path of the store, a link to one, or an ordinary file.
pub fn named(store: &OpenStore, text: impl AsRef<OsStr>) -> Result<Named> {
    let text = text.as_ref();
    let shared = store.store();
    let dir = shared.dir();
    let not_inside = match dir.split_bytes(text.as_bytes()) {
        Ok((path, rest)) => return Ok(Named::Path(path, rest)),
        Err(why) => why,
    };
    let file = Path::new(text);
    if fs::symlink_metadata(file).is_err() {
        let shown = text.display();
        return match StorePath::parse(&text.to_string_lossy()) {
            Ok(path) => Ok(Named::Path(path, Vec::new())),
            Err(_) if text.as_bytes().starts_with(dir.as_str().as_bytes()) => {
                Err(not_inside.into())
            }
            Err(_) => bail!(
                "'{shown}' is neither a store path, such as {dir}/<32 characters>-<name>, nor an existing file"
            ),
        };
    }
    // Links such as ./result lead into the store; where it lies elsewhere on disk, to that place.
    let places = places(file)?;
    if let Some(named) = places.iter().find_map(|place| inside(store, place)) {
        return Ok(named);
    }
    if let Some(root) = places.iter().find_map(|place| root_of(place)) {
        bail!(
            "{} is a path of the store in {root}, and not of {shared}; name that store: \
             --store {root}, or --from {root}",
            file.display(),
            root = root.display(),
        );
    }
    Ok(Named::File(file.to_owned()))
}

/// Where `file` lies: as it is written, where each link leads, and where it is in the end.
fn places(file: &Path) -> Result<Vec<PathBuf>> {
    let mut places = vec![std::path::absolute(file)?];
    while let Some(place) = places.last()
        && let Ok(target) = fs::read_link(place)
        && places.len() <= MAX_LINKS
    {
        let target = place.parent().unwrap_or(Path::new("/")).join(target);
        places.push(target);
    }
    places.extend(fs::canonicalize(file));
    Ok(places)
}

/// The folder of the store in a folder of its own (`local?root=`) that all of `texts` are in by their
/// place on disk; `None` if one is not.
pub fn root_of_all(texts: &[OsString]) -> Option<PathBuf> {
    let mut roots = texts.iter().map(|text| {
        let places = places(Path::new(text)).ok()?;
        fs::symlink_metadata(text).ok()?;
        places.iter().find_map(|place| root_of(place))
    });
    let first = roots.next()??;
    roots
        .all(|root| root.as_ref() == Some(&first))
        .then_some(first)
}

/// `/a/root` of `/a/root/nix/store/…-hello/bin`, if a store is there.
fn root_of(place: &Path) -> Option<PathBuf> {
    place.ancestors().find_map(|path| {
        let folder = path
            .parent()
            .filter(|folder| folder.ends_with("nix/store"))?;
        let root = folder.parent()?.parent()?;
        let is_store = StorePath::parse(path.file_name()?.to_str()?).is_ok()
            // The system's own store is no other one.
            && root.parent().is_some()
            && root.join("nix/var/nix/db/db.sqlite").exists();
        is_store.then(|| root.components().collect())
    })
}

/// The store path that `text` names; what follows it in the text is not looked at, as in Nix.
pub fn store_path(store: &OpenStore, text: impl AsRef<OsStr>) -> Result<StorePath> {
    match named(store, text)? {
        Named::Path(path, _) => Ok(path),
        Named::File(file) => bail!(
            "{} is not in the store {}; add it first: tk-store add {}",
            file.display(),
            store.store(),
            file.display()
        ),
    }
}

/// Store paths, with what says that some of them are outputs of derivations.
#[derive(Default)]
pub struct NamedPaths {
    /// In the order of the arguments.
    pub paths: Vec<StorePath>,
    pub outputs: OutputPaths,
}

impl NamedPaths {
    /// What `texts` name in `store`.
    pub async fn find(store: &OpenStore, texts: &[OsString]) -> Result<Self> {
        let mut sources = NamedPaths::default();
        for text in texts {
            if let Some(file) = sources.add(store, text).await? {
                // The same words as for a single path.
                store_path(store, file)?;
            }
        }
        Ok(sources)
    }

    /// Adds what `text` names; a file that is in no store is given back.
    pub async fn add(&mut self, store: &OpenStore, text: &OsStr) -> Result<Option<PathBuf>> {
        let (found, rest) = self.outputs_named(store, text).await?;
        if !found.is_empty() {
            ensure_no_member(text, &rest)?;
            self.paths.extend(found);
            return Ok(None);
        }
        match named(store, text)? {
            Named::Path(path, _) => self.paths.push(path),
            Named::File(file) => return Ok(Some(file)),
        }
        Ok(None)
    }

    /// The one path that `text` names, and what follows it in the text, as `bin/sh`.
    pub async fn one(store: &OpenStore, text: &OsStr) -> Result<(StorePath, Vec<u8>)> {
        let (mut found, rest) = NamedPaths::default().outputs_named(store, text).await?;
        match (found.pop(), found.is_empty()) {
            (Some(path), true) => return Ok((path, rest)),
            (Some(_), false) => bail!("{} are several paths; name one output", text.display()),
            (None, _) => {}
        }
        match named(store, text)? {
            Named::Path(path, rest) => Ok((path, rest)),
            Named::File(file) => bail!("{} is not in the store {}", file.display(), store.store()),
        }
    }

    /// The paths that `text` names if it is of the kind `DRV^OUT` (or, as it was written before,
    /// `DRV!OUT`), and what follows it; none if it is of another kind.
    async fn outputs_named(
        &mut self,
        store: &OpenStore,
        text: &OsStr,
    ) -> Result<(Vec<StorePath>, Vec<u8>)> {
        let shown = text.to_str().filter(|_| is_output(text));
        let Some(shown) = shown else {
            return Ok((Vec::new(), Vec::new()));
        };
        if let Ok(id) = shown.parse::<legacy::LegacyDrvOutput>() {
            let found = self.outputs.find_legacy(&store.abilities(), &id).await?;
            let unknown = || format!("{} does not know what {id} is", store.store());
            return Ok((vec![found.with_context(unknown)?], Vec::new()));
        }
        let (drv, wanted) = shown.rsplit_once(['^', '!']).unwrap_or((shown, ""));
        let (wanted, member) = wanted.split_once('/').unwrap_or((wanted, ""));
        let wanted: OutputsSpec = wanted.parse().with_context(|| format!("'{shown}'"))?;
        let drv = store_path(store, drv)?;
        anyhow::ensure!(
            drv.is_derivation(),
            "'{shown}' names an output, and {drv} is not a derivation: its name does not end in .drv"
        );
        let found = self.outputs.find(&store.abilities(), &drv, &wanted).await;
        let found = found.with_context(|| format!("cannot tell what {shown} is"))?;
        Ok((found, member.as_bytes().to_vec()))
    }
}

/// Whether `text` is of the kind `DRV^OUT` or `sha256:HASH!OUT`, and no file.
pub fn is_output(text: &OsStr) -> bool {
    text.as_bytes().iter().any(|byte| b"^!".contains(byte)) && fs::symlink_metadata(text).is_err()
}

fn ensure_no_member(text: &OsStr, member: &[u8]) -> Result<()> {
    anyhow::ensure!(
        member.is_empty(),
        "'{}' is not an output of a derivation: no output is called so",
        text.display()
    );
    Ok(())
}

/// How files become store paths.
#[derive(Debug, Clone, clap::Args)]
pub struct AddArgs {
    /// The name of the store path, instead of the file's own
    #[arg(long, short, value_name = "NAME")]
    pub name: Option<String>,
}

/// Adds `file` to the store, or with `dry_run` only finds the path it would get.
pub async fn add_file(
    cx: &CommandContext,
    store: &OpenStore,
    file: &Path,
    name: Option<&str>,
    (method, algorithm): (Method, Algorithm),
    dry_run: bool,
) -> Result<PathInfo> {
    let doing = || format!("cannot add {}", file.display());
    let name = name_in_store(file, name).with_context(doing)?;
    let dump = DumpOptions::default();
    if dry_run {
        let dir = store.store().dir().clone();
        let hasher = ContentHasher::new(method, algorithm)?;
        let source = file.to_owned();
        let info = tokio::task::spawn_blocking(move || hasher.file(&source, &dump, &dir, &name));
        return info.await?.with_context(doing);
    }
    let meter = Arc::new(cx.ui.reading("add"));
    meter.name(&name);
    let counter = meter.clone();
    let nar = nar::dump(file.to_owned(), dump).inspect_ok(move |chunk| {
        counter.moved(chunk.len() as u64);
    });
    let store = store.add_content().with_context(doing)?;
    let none = References::default();
    let info = store.add_content(&name, method, algorithm, &none, nar.boxed());
    let info = info.await;
    meter.clear();
    let info = info.with_context(doing)?;
    cx.ui.say(format_args!(
        "added {} as {} ({})",
        file.display(),
        store.dir().display(&info.path),
        ui::size(info.nar_size)
    ));
    Ok(info)
}

/// `name`, else the file's own, if it can be one in the store. That is looked at before a gigabyte is
/// read.
pub fn name_in_store(file: &Path, name: Option<&str>) -> Result<String> {
    let name = match name {
        Some(name) => name.to_owned(),
        None => name_of(file)?,
    };
    let valid = StorePath::from_digest(&[0; 20], &name).map_err(anyhow::Error::from);
    valid.with_context(|| {
        format!("'{name}' cannot be a name in the store; choose one with --name")
    })?;
    Ok(name)
}

/// The file's own name, also of `.` and `..`.
fn name_of(file: &Path) -> Result<String> {
    let named = match file.file_name() {
        Some(name) => name.to_owned(),
        None => {
            let place = fs::canonicalize(file)?;
            place
                .file_name()
                .context("the root folder has no name; choose one with --name")?
                .to_owned()
        }
    };
    match named.into_string() {
        Ok(name) => Ok(name),
        Err(name) => bail!(
            "the name {} is not UTF-8; choose one with --name",
            name.display()
        ),
    }
}

fn inside(store: &OpenStore, place: &Path) -> Option<Named> {
    let shared = store.store();
    let split = |text: &OsStr| shared.dir().split_bytes(text.as_bytes()).ok();
    let found = split(place.as_os_str()).or_else(|| {
        let rest = place.strip_prefix(store.real_dir()?).ok()?;
        split(Path::new(shared.dir().as_str()).join(rest).as_os_str())
    });
    found.map(|(path, rest)| Named::Path(path, rest))
}

const MAX_LINKS: usize = 40;
