//! The key of an environment: what was asked for, and all that the answer depends on.

use super::{
    config::ShellConfig,
    eval_reads::{EvalReads, Heard},
    files,
    inputs::{InputsSnapshot, Trees, View},
    place::{self, FilePlace, FlakePlace, LocalFlake},
    wanted::{EnvironmentKind, WantedEnvironment},
};
use crate::{Cause, InstallableSource, Nix, NixFailure, Result};
use std::{ffi::OsString, path::PathBuf};

/// What was asked for, with all that the answer depends on but for content.
pub(super) struct EnvironmentRequest {
    pub(super) slot: String,
    pub(super) location: String,
    pub(super) attribute: String,
    flakes: Vec<LocalFlake>,
    /// Folders of files of Nix code.
    own: Vec<PathBuf>,
    watch: Vec<PathBuf>,
    /// Folders that change with every use.
    left_out: Vec<PathBuf>,
    view: View,
    pinned: bool,
    /// Whether code of the store may come from an address in the search path.
    searches_far: bool,
}

impl EnvironmentRequest {
    /// `wanted`, as `nix` would make it now.
    pub(super) fn of(
        config: &ShellConfig,
        nix: &Nix,
        wanted: &WantedEnvironment,
    ) -> Result<EnvironmentRequest> {
        let folder = &config.folder;
        let mut flakes = Vec::new();
        let mut own = Vec::new();
        let mut watch: Vec<_> = wanted.watch.iter().map(|path| folder.join(path)).collect();
        let mut pinned = !wanted.eval.impure;
        let mut sees_machine = wanted.eval.impure;
        let mut searches_far = false;
        let kind = match wanted.what {
            EnvironmentKind::Shell(_) => "shell",
            EnvironmentKind::Packages(_) => "packages",
        };
        // Whatever may change the result and is not a file goes into `parts`, whose digest names the slot.
        let mut parts = vec![VERSION.to_owned(), kind.to_owned()];
        let mut location = None;
        for what in wanted.installables() {
            match &what.source {
                InstallableSource::Flake(reference) => match FlakePlace::of(reference, folder)? {
                    FlakePlace::Local(flake) => flakes.push(flake),
                    FlakePlace::Far { pinned: this } => pinned &= this,
                },
                InstallableSource::File(file) => {
                    sees_machine = true;
                    match FilePlace::of(file, folder)? {
                        FilePlace::Local(place) if place.starts_with(config.dir.as_str()) => {}
                        FilePlace::Local(place) if place.is_dir() => own.push(place),
                        FilePlace::Local(place) => own.extend(place.parent().map(Into::into)),
                        FilePlace::Searched => {}
                        FilePlace::Far => searches_far = true,
                    }
                }
                // Nix evaluates it as purely as a flake; a path of the store is what it is.
                InstallableSource::Expr(_) | InstallableSource::Store(_) => {}
            }
            let place = place::location(&what.source, folder)?;
            parts.extend([what.to_string(), what.attr.clone(), place.clone()]);
            location.get_or_insert((place, what.attr.clone()));
        }
        if sees_machine {
            // What is fetched without a server may be old.
            pinned &= !wanted.eval.offline;
            searches_far |= add_machine(config, nix, wanted, &mut parts);
        }
        for (kind, pairs) in [
            ("arg", &wanted.eval.args),
            ("argstr", &wanted.eval.arg_strs),
        ] {
            for (name, value) in pairs {
                parts.extend([kind.to_owned(), name.clone(), value.clone()]);
            }
        }
        for (input, reference) in &wanted.eval.override_inputs {
            parts.extend(["override".into(), input.clone(), reference.clone()]);
            match FlakePlace::of(reference, folder)? {
                FlakePlace::Local(LocalFlake { tree, .. }) => watch.push(tree),
                FlakePlace::Far { pinned: this } => pinned &= this,
            }
        }
        let settings = nix.config();
        for (name, value) in &settings.options {
            parts.extend(["option".into(), name.clone(), value.clone()]);
        }
        parts.extend(watch.iter().map(|path| path.to_string_lossy().into_owned()));
        parts.extend([
            format!("{} {}", wanted.eval.impure, wanted.eval.no_write_lock_file),
            settings.store.clone().unwrap_or_default(),
            config.system.clone(),
            nix.version().to_string(),
        ]);
        let (location, attribute) = location.ok_or_else(|| {
            NixFailure::new(Cause::Misused, "there is nothing to make an environment of")
        })?;
        Ok(EnvironmentRequest {
            slot: files::digest(parts),
            location,
            attribute,
            flakes,
            own,
            watch,
            left_out: [&config.cache, &config.state]
                .map(|folder| folder.canonicalize().unwrap_or_else(|_| folder.clone()))
                .into(),
            view: View {
                sees_machine,
                tells_filtered: nix.version().at_least(2, 20),
                stores: config.stores(),
            },
            pinned,
            searches_far,
        })
    }

    pub(super) fn trees(&self, told: &EvalReads) -> Result<Trees> {
        let mut trees = Trees::new(self.left_out.clone(), self.view.clone());
        for flake in &self.flakes {
            trees.add_flake(flake)?;
        }
        self.own.iter().for_each(|own| trees.add_own(own.clone()));
        trees.add_told(told);
        self.watch.iter().for_each(|path| trees.add(path.clone()));
        Ok(trees)
    }

    pub(super) fn is_pinned(&self, heard: &Heard, snapshot: &InputsSnapshot) -> bool {
        let searched = heard.from_store && self.searches_far;
        self.pinned && !heard.fetched && !snapshot.partial && !searched
    }

    pub(super) fn key(&self, snapshot: &InputsSnapshot) -> String {
        files::digest([&self.slot, &snapshot.digest()])
    }

    /// Files that an evaluation itself writes.
    pub(super) fn locks(&self) -> Vec<PathBuf> {
        let flakes = self.flakes.iter();
        flakes.map(|local| local.flake.join("flake.lock")).collect()
    }
}

/// Adds to the parts of a slot what impure code commonly sees of the machine: the search path,
/// where it leads now, and settings of nixpkgs. Whether there are addresses in it.
fn add_machine(
    config: &ShellConfig,
    nix: &Nix,
    wanted: &WantedEnvironment,
    parts: &mut Vec<String>,
) -> bool {
    let mut places: Vec<String> = wanted.eval.search_path.clone();
    let options = nix.config().options.iter();
    let options = options.filter(|(name, _)| name.ends_with("nix-path"));
    let settings = options.map(|(_, value)| value).chain(&config.nix_path);
    places.extend(settings.flat_map(|v| v.split_whitespace().map(str::to_owned)));
    let variables = &config.variables;
    places.extend(
        config
            .nix_path()
            .map(|value| value.to_string_lossy().into()),
    );
    parts.extend(["search path".to_owned(), places.len().to_string()]);
    parts.extend(places.iter().cloned());
    // As Nix where nothing is set.
    places.push(CHANNELS.to_owned());
    if let Some(home) = variables.get(&OsString::from("HOME")) {
        let home = home.to_string_lossy();
        places.extend(OWN_CHANNELS.map(|channels| format!("{home}/{channels}")));
    }
    let mut far = false;
    for place in places {
        let (leads_to, is_far) = place::search_path(&place, &config.folder);
        far |= is_far;
        let leads_to = leads_to.iter();
        parts.extend(leads_to.map(|path| path.to_string_lossy().into_owned()));
    }
    for (name, value) in variables {
        let name = name.to_string_lossy();
        if name.starts_with("NIXPKGS_") {
            parts.push(format!("{name}={}", value.to_string_lossy()));
        }
    }
    far
}

/// The channels of root.
const CHANNELS: &str = "/nix/var/nix/profiles/per-user/root/channels";
/// Those of a user, in the home folder.
const OWN_CHANNELS: [&str; 2] = [".nix-defexpr/channels", ".local/state/nix/defexpr/channels"];
/// The format of entries and keys.
const VERSION: &str = "tk-nix environment 2";
