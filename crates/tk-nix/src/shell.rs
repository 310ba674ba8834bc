//! Environments to work in: evaluated once, entered often.
//!
//! ```text
//! CACHE/nix.json          which version programs called nix are
//! CACHE/index/SLOT.json   what was looked at for a reference, and its state: see `inputs`
//! CACHE/entries/KEY.json  an environment
//! CACHE/entries/KEY-attrs.json, KEY-attrs.sh   its structured attributes, if it has some
//! CACHE/locks/SLOT        held by whoever evaluates
//! CACHE/run/              scripts that take themselves away
//! STATE/leases/           roots: see `tk_store::lease`
//! STATE/allowed/HASH      code that may be run: of a place, an attribute, and all that `consent` tells
//! STATE/allowed/HASH.text what was allowed last for the place and the attribute
//! ```
//! SLOT is the hash of what was asked for: reference, attribute, options, system, store, version of
//! Nix; KEY that of SLOT and of the content of all that was looked at. An entry counts as long as its paths
//! are in the store. What the caller says may be impure, or what nothing pins, counts for
//! [`UNPINNED_FOR`].
//!
//! Files are impure by nature. Their SLOT has the search path too (`NIX_PATH` and so on), where that leads
//! now, and variables named `NIXPKGS_…`; what nix says it read is looked at from then on (see `eval_reads`),
//! for expressions likewise. They count for [`UNPINNED_FOR`] only if the evaluation asked a server or a repository
//! for something, if it was offline, or if there was too much to watch; else as long as all that is the
//! same. What nix does not tell of, `getEnv` of other variables or `readFile` in folders without Nix code,
//! is the caller's to name in [`WantedEnvironment::watch`]. A derivation depends on nothing but its path.
//!
//! # Security
//! Entries are the user's own files, in folders for the user alone. An environment may change every
//! variable, `PATH` first of all: running a command in it means to trust it. Its hook, and what shells
//! run by themselves, is code that would run without being named, so it needs a consent, which
//! is bound to its text and to all that it can call. Without it such variables and functions are left out.

mod collect;
mod config;
mod consent;
mod entry;
mod environment;
mod eval_reads;
mod evaluation;
mod export;
mod files;
mod git;
mod inputs;
mod mentions;
mod namespace;
mod nix_version_cache;
mod packages;
mod place;
mod request;
mod session;
mod shells;
mod wanted;

pub use collect::Collected;
pub use config::ShellConfig;
pub use consent::StartupCode;
pub use entry::{EnvironmentEntry, UNPINNED_FOR};
pub use environment::{ShellEnvironment, Variable, Variables};
pub use export::ShellFormat;
pub use session::{ExecResult, Hook, NixDevShell, ShellSession, Stream};
pub use shells::{FoundEnvironment, Shells};
pub use tk_store::lease::{LeaseOptions, LeaseOwner, RootLease};
pub use wanted::{EnvironmentKind, WantedEnvironment, package};

use crate::{Cause, Installable, NixBuilder, NixFailure, Result};
use wanted::installable;

impl NixBuilder {
    /// The environment of the flake `flake_ref`, perhaps with an attribute, FLAKE#ATTR, or of a
    /// derivation of the store. Known or evaluated, its hook run if that was allowed.
    ///
    /// # Errors
    /// [`Cause::Misused`] if there are no folders for environments: see [`NixBuilder::with_shells`].
    pub async fn dev_shell(&self, flake_ref: &str) -> Result<ShellSession> {
        let what = installable(&self.store().store.dir().clone(), flake_ref)?;
        self.dev_shell_of(what).await
    }

    /// As [`NixBuilder::dev_shell`], of anything that is one derivation: an attribute of a file
    /// ([`Installable::attribute`]) or of an expression, too.
    ///
    /// # Errors
    /// As there; [`Cause::Misused`] too for what is no derivation, or several.
    pub async fn dev_shell_of(&self, what: Installable) -> Result<ShellSession> {
        let mut session = self.session(EnvironmentKind::Shell(what)).await?;
        session.enter().await?;
        Ok(session)
    }

    /// Runs `command` with the programs of `packages`, which are named as in [`package`].
    ///
    /// # Errors
    /// As [`NixBuilder::dev_shell`]; a command that fails is none.
    pub async fn run(&self, packages: &[&str], command: &[&str]) -> Result<ExecResult> {
        let dir = self.store().store.dir().clone();
        let all = packages.iter().map(|name| package(&dir, name));
        let what = EnvironmentKind::Packages(all.collect::<Result<_>>()?);
        self.session(what).await?.run(command).await
    }

    /// A session in `what`, known or evaluated. Its hook was not run: each command runs it first,
    /// if it was allowed.
    ///
    /// # Errors
    /// As [`NixBuilder::dev_shell_of`].
    pub async fn session(&self, what: EnvironmentKind) -> Result<ShellSession> {
        let Some(shells) = self.shells() else {
            let words = "no folders were named in which environments are kept";
            return Err(NixFailure::new(Cause::Misused, words));
        };
        let found = shells
            .find(self, &WantedEnvironment::new(what), &())
            .await?;
        shells.session(&found.entry, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn futures_can_be_sent() {
        fn sent<T: Send>(_: impl FnOnce(&'static NixBuilder) -> T) {}
        sent(|builder| builder.dev_shell("."));
        sent(|builder| builder.run(&["a"], &["b"]));
        sent(|builder| builder.session(EnvironmentKind::Packages(Vec::new())));
    }
}
