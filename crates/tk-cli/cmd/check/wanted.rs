//! Which paths a check is about: arguments, lines of stdin, derivations and their outputs.

use super::CheckCommand;
use crate::{
    CommandContext,
    open::{OpenOptions, OpenStore, open},
    paths::{NamedPaths, PathArgs, is_output, lines_of_stdin},
};
use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use std::{
    collections::BTreeSet,
    ffi::OsString,
    io::{self, IsTerminal},
    slice,
};
use tk_path::StorePath;
use tk_store::{Store, closure, derivation};

/// What is to be checked.
pub struct WantedPaths {
    pub paths: Vec<StorePath>,
    /// The store that knows the references, if one was named or needed.
    pub store: Option<OpenStore>,
    /// Outputs whose paths nobody can tell yet.
    pub unknown_outputs: usize,
}

/// Finds out what `check` is asked for.
pub async fn find(
    cx: &CommandContext,
    check: &CheckCommand,
    caches: &[OpenStore],
) -> Result<WantedPaths> {
    let mut store = if cx.store.is_empty() {
        None
    } else {
        Some(open(cx, &cx.store_uri(), &OpenOptions::default()).await?)
    };
    let names = texts(&check.paths)?;
    let mut paths = Vec::new();
    for text in &names {
        paths.extend(named(cx, &mut store, caches, text).await?);
    }
    let (drvs, paths): (Vec<_>, Vec<_>) = paths.into_iter().partition(is_derivation);
    if drvs.is_empty() || !(check.closure || check.outputs) {
        return Ok(WantedPaths {
            paths: paths.into_iter().chain(drvs).collect(),
            store,
            unknown_outputs: 0,
        });
    }
    if store.is_none() {
        store = Some(open(cx, &cx.store_uri(), &OpenOptions::default()).await?);
    }
    let mut wanted = WantedPaths {
        paths,
        store,
        unknown_outputs: 0,
    };
    wanted.add_derivations(cx, check, drvs).await?;
    Ok(wanted)
}

impl WantedPaths {
    /// Derivations, what they are made from, and what they make.
    async fn add_derivations(
        &mut self,
        cx: &CommandContext,
        check: &CheckCommand,
        drvs: Vec<StorePath>,
    ) -> Result<()> {
        let opened = self.store.as_ref().context("there is no store")?;
        let store = opened.store();
        let reading = || format!("cannot read the derivations in {store}");
        let mut all = drvs.clone();
        if check.closure {
            let found = closure(&*store, drvs).await.with_context(reading)?;
            found.require_complete(&*store).with_context(reading)?;
            all = found.infos.into_keys().collect();
        }
        let (drvs, sources): (Vec<_>, Vec<_>) = all.into_iter().partition(is_derivation);
        let (outputs, unknown) = outputs(opened, &*store, &drvs)
            .await
            .with_context(reading)?;
        if unknown > 0 {
            cx.ui.error(format_args!(
                "outputs that have no path before they are built, and could not be checked: {unknown}"
            ));
        }
        self.unknown_outputs = unknown;
        self.paths.extend(outputs);
        if !check.outputs {
            self.paths.extend(sources);
            self.paths.extend(drvs);
        }
        Ok(())
    }
}

/// The paths of all outputs of `drvs`, and how many have none yet.
async fn outputs(
    opened: &OpenStore,
    store: &dyn Store,
    drvs: &[StorePath],
) -> Result<(BTreeSet<StorePath>, usize)> {
    let abilities = opened.abilities();
    let realisations = abilities.realisations.as_deref();
    let (mut paths, mut unknown) = (BTreeSet::new(), 0);
    let maps = stream::iter(drvs).map(|drv| derivation::output_map(store, drv, realisations));
    let mut maps = maps.buffer_unordered(READS);
    while let Some(outputs) = maps.try_next().await? {
        for path in outputs.into_values() {
            match path {
                Some(path) => drop(paths.insert(path)),
                None => unknown += 1,
            }
        }
    }
    Ok((paths, unknown))
}

/// The paths that `text` names: in the store if one is open, else in the caches. Outputs of a
/// derivation are looked for in both.
async fn named(
    cx: &CommandContext,
    store: &mut Option<OpenStore>,
    caches: &[OpenStore],
    text: &OsString,
) -> Result<Vec<StorePath>> {
    let mut sources = NamedPaths::default();
    if !is_output(text) {
        let within = store.as_ref().unwrap_or(&caches[0]);
        let found = NamedPaths::find(within, slice::from_ref(text)).await?;
        return Ok(found.paths);
    }
    if store.is_none() {
        let mut wish = OpenOptions::default();
        wish.dry_run = true;
        // The caches may know it as well.
        *store = open(cx, &cx.store_uri(), &wish).await.ok();
    }
    let mut first = None;
    for place in store.iter().chain(caches) {
        match sources.add(place, text).await {
            Ok(_) => return Ok(sources.paths),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.context("there is no store")?)
}

/// The arguments, or the lines of stdin where they say so.
fn texts(args: &PathArgs) -> Result<Vec<OsString>> {
    if !args.is_empty() {
        return args.texts();
    }
    ensure!(
        !io::stdin().is_terminal(),
        "there is nothing to check; name store paths, or give them on stdin"
    );
    let texts = lines_of_stdin()?;
    // Such as `check $EMPTY` where stdin is empty as well.
    ensure!(
        !texts.is_empty(),
        "there is nothing to check: no paths were named, and stdin is empty; \
         with --stdin that is no error"
    );
    Ok(texts)
}

fn is_derivation(path: &StorePath) -> bool {
    path.name().ends_with(".drv")
}

/// Derivations read at once.
const READS: usize = 32;
