//! What a store says of itself.

use crate::Result;
use async_trait::async_trait;
use std::{fmt::Debug, time::Duration};

/// Stores that can be asked what they are.
#[async_trait]
pub trait Describe: Debug + Send + Sync {
    /// Asks the store what it is.
    ///
    /// # Errors
    /// When it cannot be asked.
    async fn describe(&self) -> Result<StoreDescription>;
}

/// What can be said of a store itself; `None` where its kind has no such thing, or does not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreDescription {
    /// What kind of store it is, for people: `binary cache`, `daemon`.
    pub kind: &'static str,
    /// The version of the Nix at the other end.
    pub version: Option<String>,
    /// The name and the version of the protocol: `worker 1.38`.
    pub protocol: Option<String>,
    /// The features of the protocol that both ends have.
    pub features: Option<Vec<String>>,
    /// Whether the other end trusts us.
    pub trusted: Option<bool>,
    /// Whether paths can be added.
    pub writable: Option<bool>,
    /// How late it is asked beside others: the lower, the earlier.
    pub priority: Option<i32>,
    /// Whether it wants to be asked for many paths at once.
    pub want_mass_query: Option<bool>,
    /// The time of the shortest question and its answer, of what is not on this machine.
    pub latency: Option<Duration>,
}

impl StoreDescription {
    /// A store of the kind `kind`, of which nothing more is known.
    pub fn of(kind: &'static str) -> Self {
        StoreDescription {
            kind,
            ..StoreDescription::default()
        }
    }
}
