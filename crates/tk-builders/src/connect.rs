//! The way to machines, and asking whether they are there.

use crate::{Machine, Slots};
use async_trait::async_trait;
use std::{io, time::Duration};
use tk_store::{Abilities, Error, Result};
use tokio::time::timeout;

/// Opens the stores of machines.
#[async_trait]
pub trait Connect: Send + Sync {
    /// The store of `machine`, which has answered. Over it go up to `connections` things at once.
    async fn connect(&self, machine: &Machine, connections: usize) -> Result<Connected>;
}

/// The store of a machine.
#[derive(Debug, Clone)]
pub struct Connected {
    /// The store of the machine, opened.
    pub store: Abilities,
    /// The version of its Nix, if it tells.
    pub nix_version: Option<String>,
    /// The protocol and its version, such as `worker 1.38`.
    pub protocol: Option<String>,
    /// Whether it trusts the account, if it tells.
    pub trusted: Option<bool>,
    /// How long the shortest question took, if it was asked one.
    pub latency: Option<Duration>,
}

/// What became of asking a machine, by [`probe`].
#[derive(Debug)]
pub struct Probe {
    /// The machine that was asked.
    pub machine: Machine,
    /// The store that the machine opened, or why it could not be reached.
    pub answer: Result<Connected>,
    /// Its slots that nobody here holds. What others than this machine build there is not
    /// known: no protocol tells.
    pub free_slots: Option<u32>,
}

/// Asks all machines at once whether they are there, and waits for the slowest, but not for longer than
/// `limit`.
pub async fn probe(
    machines: &[Machine],
    connect: &dyn Connect,
    slots: &Slots,
    limit: Duration,
) -> Vec<Probe> {
    let asked = machines.iter().map(|machine| async {
        Probe {
            answer: connect_within(limit, connect, machine, 1).await,
            free_slots: slots.free(machine).ok(),
            machine: machine.clone(),
        }
    });
    futures::future::join_all(asked).await
}

/// The store of `machine`, if it has answered after `limit`.
pub async fn connect_within(
    limit: Duration,
    connect: &dyn Connect,
    machine: &Machine,
    connections: usize,
) -> Result<Connected> {
    match timeout(limit, connect.connect(machine, connections)).await {
        Ok(connected) => connected,
        Err(_) => {
            let words = format!("no answer for {} s", limit.as_secs_f32());
            let error = io::Error::new(io::ErrorKind::TimedOut, words);
            Err(Error::io(format!("connecting to {}", machine.uri), error))
        }
    }
}
