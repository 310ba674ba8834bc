//! Evaluates an environment with nix, and hears what it reads.

use super::{
    config::ShellConfig,
    environment::ShellEnvironment,
    eval_reads::Ears,
    files,
    place::{FlakePlace, LocalFlake},
};
use crate::{
    Cause, EvalOptions, Installable, InstallableSource, Invocation, Nix, NixBuilder, NixFailure,
    Result, Target, evaluate::invocation,
};
use std::fs;
use tk_path::{DerivedPath, SingleDerivedPath, StorePath};
use tk_store::log::LogSink;

/// One evaluation, which tells `ears` what it reads, and `log` what people want to know.
pub(super) struct ShellEvaluation<'a> {
    pub(super) config: &'a ShellConfig,
    pub(super) builder: &'a NixBuilder,
    pub(super) options: EvalOptions,
    pub(super) ears: &'a Ears<'a>,
    pub(super) log: &'a dyn LogSink,
}

impl ShellEvaluation<'_> {
    /// Builds and reads the environment of a derivation, and the path that keeps it alive, which is
    /// a temporary root of the store's until this connection ends.
    pub(super) async fn shell(
        &self,
        what: &Installable,
    ) -> Result<(ShellEnvironment, Vec<StorePath>)> {
        let nix = self.builder.nix();
        let places = self.config.cache.join("evaluating");
        files::make_folder(&places)?;
        let place = tempfile::tempdir_in(&places);
        let place = place.map_err(files::failed("making a folder in", &places))?;
        let profile = place.path().join("profile");
        let command = ["print-dev-env", "--json"];
        let mut run = match &what.source {
            InstallableSource::Flake(_) => invocation(&command, what, &self.options)?,
            _ => {
                let drv = self.derivation(what).await?;
                Invocation::new(command).arg(self.config.dir.path(&drv))
            }
        };
        let local = self.local_flake(what)?;
        let of_flake = local.as_ref().map(|local| self.ears.of_flake(local));
        let listening: &dyn LogSink = match &of_flake {
            Some(of_flake) => {
                // Only with this much detail nix tells which files it reads.
                run = run.arg("-vv");
                of_flake
            }
            None => self.log,
        };
        run = self
            .config
            .with_nix_path(run)
            .arg("--profile")
            .arg(&profile);
        for (name, value) in without_floating(nix).await? {
            run = run.args(["--option", &name, &value]);
        }
        let printed = nix.json(run, listening).await?;
        let environment: ShellEnvironment = serde_json::from_value(printed).map_err(|error| {
            let words = format!("nix prints an environment of a kind that is not known: {error}");
            NixFailure::new(Cause::Other, words)
        })?;
        if let Some(local) = &local {
            self.hear_of_self(local, &environment);
        }
        // The profile's generation, then the path.
        let generation = fs::read_link(&profile).map(|link| place.path().join(link));
        let target = generation.and_then(fs::read_link);
        let target = target.map_err(files::failed("reading the link", &profile))?;
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let path = StorePath::parse(&name).map_err(|error| {
            let words = format!("the environment is not in the store: {error}");
            NixFailure::new(Cause::Other, words)
        })?;
        // The profile goes with its folder when this returns; until there is a lease, this root keeps the
        // path.
        if let Some(roots) = &self.builder.store().roots {
            roots.add_temp_root(&path).await?;
        }
        Ok((environment, vec![path]))
    }

    /// What is named, evaluated; of what is no flake all is heard that nix reads.
    pub(super) async fn targets(&self, what: &Installable) -> Result<Vec<Target>> {
        let is_flake = matches!(what.source, InstallableSource::Flake(_));
        let more = |ask: Invocation| {
            let ask = self.config.with_nix_path(ask).arg("-vv");
            if is_flake || self.options.offline {
                ask
            } else {
                // So that it is told of what nothing pins, however lately it was fetched.
                ask.args(["--option", "tarball-ttl", "0"])
            }
        };
        let (nix, dir) = (self.builder.nix(), &self.config.dir);
        let local = self.local_flake(what)?;
        let of_flake = local.as_ref().map(|local| self.ears.of_flake(local));
        let log: &dyn LogSink = match (&of_flake, is_flake) {
            (Some(of_flake), _) => of_flake,
            // What a flake fetches its lock pins.
            (None, true) => self.ears.log,
            (None, false) => self.ears,
        };
        nix.targets_with(what, dir, &self.options, more, log).await
    }

    /// The flake in a folder of this machine that `what` is of.
    fn local_flake(&self, what: &Installable) -> Result<Option<LocalFlake>> {
        let InstallableSource::Flake(reference) = &what.source else {
            return Ok(None);
        };
        Ok(match FlakePlace::of(reference, &self.config.folder)? {
            FlakePlace::Local(local) => Some(local),
            FlakePlace::Far { .. } => None,
        })
    }

    /// Tells `ears` that all of a flake was copied, if `environment` has the path of the copy: nix
    /// does not say so of `"${self}"`.
    fn hear_of_self(&self, local: &LocalFlake, environment: &ShellEnvironment) {
        let own = files::read(&local.flake.join("flake.nix"), MAX_FLAKE);
        let is_copy = |path: &StorePath| {
            let copy = self
                .config
                .real_dir()
                .join(path.as_str())
                .join(local.file());
            let copy = files::read(&copy, MAX_FLAKE);
            copy.is_ok_and(|copy| copy.is_some() && own.as_ref().is_ok_and(|own| *own == copy))
        };
        let references = environment.references(&self.config.dir);
        if references
            .iter()
            .any(|path| path.name() == "source" && is_copy(path))
        {
            self.ears.add_copied(local.tree.clone());
        }
    }

    /// The one derivation that is named, which stays in the store until this connection ends.
    async fn derivation(&self, what: &Installable) -> Result<StorePath> {
        let targets = self.targets(what).await?;
        let drv = match targets.as_slice() {
            [one] => match &one.path {
                DerivedPath::Built {
                    drv: SingleDerivedPath::Opaque(drv),
                    ..
                } => drv.clone(),
                other => {
                    let words = format!(
                        "{} is not a derivation, whose shell could be entered",
                        other.display(&self.config.dir)
                    );
                    return Err(NixFailure::new(Cause::Misused, words));
                }
            },
            all => {
                let names = all.iter().take(NAMES).map(|target| target.name.as_str());
                let names: Vec<_> = names.collect();
                let words = format!(
                    "{what} is {} derivations ({}); name the attribute of one",
                    all.len(),
                    names.join(", ")
                );
                return Err(NixFailure::new(Cause::Misused, words));
            }
        };
        if let Some(roots) = &self.builder.store().roots {
            roots.add_temp_root(&drv).await?;
        }
        Ok(drv)
    }
}

/// Settings without content-addressed derivations: with them the builder of environments aborts on
/// an assertion before 2.34.
async fn without_floating(nix: &Nix) -> Result<Vec<(String, String)>> {
    if nix.version().at_least(2, 34) {
        return Ok(Vec::new());
    }
    let settings = nix.settings().await?;
    let features = settings.get("experimental-features");
    let names = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => text.split_whitespace().map(str::to_owned).collect(),
        value => serde_json::from_value::<Vec<String>>(value.clone())
            // 2.8 tells numbers, which are others in each version; this much is needed.
            .unwrap_or_else(|_| NUMBERED.map(str::to_owned).to_vec()),
    };
    let mut features = features.map(names).unwrap_or_default();
    let all = features.len();
    features.retain(|name| name != "ca-derivations");
    Ok(if features.len() == all {
        Vec::new()
    } else {
        vec![("experimental-features".into(), features.join(" "))]
    })
}

/// Derivations that are named where one was wanted.
const NAMES: usize = 5;
/// What takes the place of features that are told as numbers.
const NUMBERED: [&str; 3] = ["ca-derivations", "nix-command", "flakes"];
/// Bytes of a flake.nix.
const MAX_FLAKE: u64 = 16 << 20;
