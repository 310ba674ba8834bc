//! Arguments that name store paths, and such that name files to be added.

use crate::{Context, open::Opened, ui};
use anyhow::{Context as _, Result, bail};
use futures::{StreamExt, TryStreamExt};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use tk_nar::fs::DumpOptions;
use tk_narinfo::PathInfo;
use tk_path::{Algorithm, Method, References, StorePath};
use tk_store::{ContentHasher, nar};

/// What an argument turned out to be.
#[derive(Debug)]
pub enum Named {
    /// A store path, and what follows it in the text, such as `bin/sh`.
    Path(StorePath, String),
    /// A file, folder or link elsewhere.
    File(PathBuf),
}

/// Finds out what `text` names: a path of the store, a link to one, or an ordinary file.
pub fn named(store: &Opened, text: &str) -> Result<Named> {
    let shared = store.store();
    let dir = shared.dir();
    if let Ok((path, rest)) = dir.split(text) {
        return Ok(Named::Path(path, rest));
    }
    let file = Path::new(text);
    if fs::symlink_metadata(file).is_err() {
        return match StorePath::parse(text) {
            Ok(path) => Ok(Named::Path(path, String::new())),
            Err(wrong) if text.starts_with(dir.as_str()) => {
                bail!("'{text}' is not a store path: {wrong}")
            }
            Err(_) => bail!(
                "'{text}' is neither a store path, such as {dir}/<32 characters>-<name>, nor an existing file"
            ),
        };
    }
    // Links such as ./result lead into the store; where it lies elsewhere on disk, to that place.
    let mut place = std::path::absolute(file)?;
    for _ in 0..MAX_LINKS {
        if let Some(named) = inside(store, &place) {
            return Ok(named);
        }
        let Ok(target) = fs::read_link(&place) else {
            break;
        };
        place = match place.parent() {
            Some(folder) => folder.join(target),
            None => target,
        };
    }
    match fs::canonicalize(file)
        .ok()
        .and_then(|place| inside(store, &place))
    {
        Some(named) => Ok(named),
        None => Ok(Named::File(file.to_owned())),
    }
}

/// The store path that `text` names; what follows it in the text is not looked at, as in Nix.
pub fn store_path(store: &Opened, text: &str) -> Result<StorePath> {
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

/// [`store_path`] of each argument.
pub fn store_paths(store: &Opened, texts: &[String]) -> Result<Vec<StorePath>> {
    texts.iter().map(|text| store_path(store, text)).collect()
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
    cx: &Context,
    store: &Opened,
    file: &Path,
    name: Option<&str>,
    (method, algorithm): (Method, Algorithm),
    dry_run: bool,
) -> Result<PathInfo> {
    let doing = || format!("cannot add {}", file.display());
    let name = match name {
        Some(name) => name.to_owned(),
        None => name_of(file).with_context(doing)?,
    };
    // The name is looked at before a gigabyte is read.
    StorePath::from_digest(&[0; 20], &name)
        .map_err(anyhow::Error::from)
        .with_context(|| format!("'{name}' cannot be a name in the store; choose one with --name"))
        .with_context(doing)?;
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

fn inside(store: &Opened, place: &Path) -> Option<Named> {
    let shared = store.store();
    let split = |text: &str| shared.dir().split(text).ok();
    let text = place.to_str()?;
    let found = split(text).or_else(|| {
        let rest = place.strip_prefix(store.real_dir()?).ok()?;
        split(&format!("{}/{}", shared.dir(), rest.to_str()?))
    });
    found.map(|(path, rest)| Named::Path(path, rest))
}

const MAX_LINKS: usize = 40;
