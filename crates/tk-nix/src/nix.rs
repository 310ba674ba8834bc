use crate::{Cause, Invocation, NixFailure, Result};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tk_store::log::LogSink;
use tokio::{
    process::Command,
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// A nix that was found. Clones are the same one, and share its limits.
#[derive(Clone)]
pub struct Nix(Arc<NixInner>);

struct NixInner {
    config: NixConfig,
    version: NixVersion,
    turns: Arc<Semaphore>,
}

/// How nix is run.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NixConfig {
    /// The program: a path, or a name that is looked for in `PATH`.
    pub program: PathBuf,
    /// The store that it works on, a URI; `None`: what it picks itself.
    pub store: Option<String>,
    /// Settings, as on its command line with `--option`.
    pub options: Vec<(String, String)>,
    /// Variables of its environment beside what this process has; `None` takes one away.
    pub env: BTreeMap<OsString, Option<OsString>>,
    /// How long a run may take; `None` is for ever.
    pub timeout: Option<Duration>,
    /// Bytes of stdout that are taken.
    pub max_output: u64,
    /// Runs at once; others wait.
    pub jobs: usize,
}

impl Default for NixConfig {
    /// `nix`, without limits of time, 256 MiB of output, four at once.
    fn default() -> Self {
        NixConfig {
            program: "nix".into(),
            store: None,
            options: Vec::new(),
            env: BTreeMap::new(),
            timeout: None,
            max_output: 256 << 20,
            jobs: 4,
        }
    }
}

impl Nix {
    /// The nix that `config` names, which is asked for its version.
    ///
    /// # Errors
    /// [`Cause::NoNix`] if there is none, or one before [`NixVersion::OLDEST`].
    pub async fn find(config: NixConfig) -> Result<Nix> {
        let program = config.program.display().to_string();
        let turns = Arc::new(Semaphore::new(config.jobs.max(1)));
        let nix = |config, version| {
            Nix(Arc::new(NixInner {
                config,
                version,
                turns: turns.clone(),
            }))
        };
        let asking = nix(config.clone(), NixVersion::OLDEST);
        let ask = Invocation::new(["--version"]).timeout(ASKING);
        let said = asking.run(ask, &()).await.map_err(|failure| {
            let hint = "install Nix, or name its program";
            let words = format!("no usable nix found: {}; {hint}", failure.message);
            NixFailure::new(Cause::NoNix, words)
        })?;
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        let version = NixVersion::parse(&text).ok_or_else(|| {
            let words = format!(
                "{program} does not tell a version of Nix but '{}'",
                text.trim()
            );
            NixFailure::new(Cause::NoNix, words)
        })?;
        Nix::known(config, version)
    }

    /// The nix of `config`, whose version is known already: nothing is run.
    ///
    /// # Errors
    /// [`Cause::NoNix`] for one before [`NixVersion::OLDEST`].
    pub fn known(config: NixConfig, version: NixVersion) -> Result<Nix> {
        if !version.at_least(2, 8) {
            let words = format!("this is {version}, and Nix 2.8 is the oldest that will do");
            return Err(NixFailure::new(Cause::NoNix, words));
        }
        let turns = Arc::new(Semaphore::new(config.jobs.max(1)));
        Ok(Nix(Arc::new(NixInner {
            config,
            version,
            turns,
        })))
    }

    /// How it is run.
    pub fn config(&self) -> &NixConfig {
        &self.0.config
    }

    /// Returns the version of this nix.
    pub fn version(&self) -> &NixVersion {
        &self.0.version
    }

    /// Its settings, by name: the values that count for this user.
    pub async fn settings(&self) -> Result<BTreeMap<String, Value>> {
        // Renamed in 2.20.
        let command: &[&str] = if self.version().at_least(2, 20) {
            &["config", "show"]
        } else {
            &["show-config"]
        };
        let what = Invocation::new(command).arg("--json");
        let Value::Object(all) = self.json(what, &()).await? else {
            return Err(NixFailure::new(Cause::Other, "nix told no settings"));
        };
        let value = |mut setting: Value| setting.get_mut("value").map(Value::take);
        let all = all.into_iter();
        Ok(all.filter_map(|(k, v)| Some((k, value(v)?))).collect())
    }

    /// What nix prints, which is to be JSON.
    pub(crate) async fn json(&self, what: Invocation, log: &dyn LogSink) -> Result<Value> {
        let done = self.run(what, log).await?;
        serde_json::from_slice(&done.stdout).map_err(|error| {
            let words = format!("what nix printed is not JSON: {error}");
            NixFailure::new(Cause::Other, words)
        })
    }

    /// Waits until nix may be run once more.
    pub(crate) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.0.turns.clone().acquire_owned().await.ok()
    }

    /// nix with `args`, not started yet.
    pub(crate) fn command(&self, args: &[OsString]) -> Command {
        let mut command = self.program(&self.config().program);
        command.args(args);
        if args.first().is_some_and(|arg| arg != "--version") {
            command.args(["--log-format", "internal-json"]);
            command.args(["--extra-experimental-features", FEATURES]);
            for (name, value) in &self.config().options {
                command.args(["--option", name, value]);
            }
        }
        command
    }

    /// A program of Nix with its environment, not started yet.
    pub(crate) fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        for (name, value) in &self.config().env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(store) = &self.config().store {
            command.env("NIX_REMOTE", store);
        }
        command
    }
}

impl fmt::Debug for Nix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nix")
            .field("config", self.config())
            .field("version", self.version())
            .finish_non_exhaustive()
    }
}

/// Which of the implementations of Nix a program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flavour {
    /// Nix as the NixOS project makes it.
    Nix,
    /// Lix, which went its own way at 2.18.
    Lix,
    /// Determinate Nix, the edition of Determinate Systems.
    Determinate,
}

/// A version of Nix, such as `nix (Nix) 2.34.8`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NixVersion {
    /// Which implementation it is.
    pub flavour: Flavour,
    /// The first number of the version: 2 in `2.34.8`.
    pub major: u32,
    /// The second number of the version: 34 in `2.34.8`.
    pub minor: u32,
    /// The version as it is told: `2.34.8`, `2.30pre20250521_76a4d4c`.
    pub text: String,
}

impl NixVersion {
    /// The oldest that will do.
    pub const OLDEST: NixVersion = NixVersion {
        flavour: Flavour::Nix,
        major: 2,
        minor: 8,
        text: String::new(),
    };

    /// The version in what `nix --version` prints: `nix (Nix) 2.34.8`, `nix (Lix, like Nix) 2.91.1`,
    /// `nix (Determinate Nix 3.11.2) 2.31.1`.
    pub fn parse(text: &str) -> Option<NixVersion> {
        let line = text.lines().next()?.trim();
        let (name, version) = line.rsplit_once(' ')?;
        let name = name.split_once('(').map_or("", |(_, name)| name);
        let flavour = match name {
            name if name.starts_with("Lix") => Flavour::Lix,
            name if name.starts_with("Determinate") => Flavour::Determinate,
            _ => Flavour::Nix,
        };
        let mut numbers = version.split('.').map(|part| {
            let end = part
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(part.len());
            part[..end].parse().ok()
        });
        Some(NixVersion {
            flavour,
            major: numbers.next()??,
            minor: numbers.next()??,
            text: version.to_owned(),
        })
    }

    /// Whether it is `major.minor` of Nix or later. Lix counts from 2.90 on, but is like 2.18.
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        let own = match self.flavour {
            Flavour::Lix if (self.major, self.minor) >= (2, 90) => (2, 18),
            _ => (self.major, self.minor),
        };
        own >= (major, minor)
    }
}

impl fmt::Display for NixVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.flavour {
            Flavour::Nix => "Nix",
            Flavour::Lix => "Lix",
            Flavour::Determinate => "Determinate Nix",
        };
        write!(f, "{name} {}", self.text)
    }
}

/// What every command here needs.
const FEATURES: &str = "nix-command flakes";
/// How long nix may take to tell its version.
const ASKING: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (text, flavour, major, minor, new) in [
            ("nix (Nix) 2.34.8\n", Flavour::Nix, 2, 34, true),
            ("nix (Nix) 2.8.0", Flavour::Nix, 2, 8, false),
            (
                "nix (Nix) 2.30pre20250521_76a4d4c",
                Flavour::Nix,
                2,
                30,
                true,
            ),
            (
                "nix (Lix, like Nix) 2.91.1\nmore",
                Flavour::Lix,
                2,
                91,
                false,
            ),
            (
                "nix (Determinate Nix 3.11.2) 2.31.1",
                Flavour::Determinate,
                2,
                31,
                true,
            ),
        ] {
            let version = NixVersion::parse(text).unwrap();
            let numbers = (version.flavour, version.major, version.minor);
            assert_eq!(numbers, (flavour, major, minor), "{text}");
            assert_eq!(version.at_least(2, 20), new, "{text}");
            assert!(version.at_least(2, 8), "{text}");
        }
        for text in ["", "nix", "nix (Nix) x.y", "nix (Nix) 3"] {
            assert_eq!(NixVersion::parse(text), None, "{text}");
        }
    }

    #[tokio::test]
    async fn what_is_no_nix() {
        for (program, words) in [
            ("/nowhere/nix", "/nowhere/nix"),
            ("false", "no usable nix found"),
        ] {
            let config = NixConfig {
                program: program.into(),
                ..NixConfig::default()
            };
            let failure = Nix::find(config).await.unwrap_err();
            assert_eq!(failure.cause, Cause::NoNix);
            assert!(failure.message.contains(words), "{failure}");
        }
        let old = NixVersion::parse("nix (Nix) 2.7.1").unwrap();
        let failure = Nix::known(NixConfig::default(), old).unwrap_err();
        assert!(failure.message.contains("2.7.1"), "{failure}");
    }
}
