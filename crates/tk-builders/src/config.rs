//! How to build on other machines.

use crate::{Connect, Machine, Slots};
use std::{sync::Arc, time::Duration};
use tk_narinfo::SecretKey;

/// How to build on other machines.
#[derive(Clone)]
#[non_exhaustive]
pub struct RemoteConfig {
    /// The machines that may be asked to build.
    pub machines: Vec<Machine>,
    /// The way to them.
    pub connect: Arc<dyn Connect>,
    /// Which of their slots are held.
    pub slots: Slots,
    /// Whether other builds go on when one fails.
    pub keep_going: bool,
    /// Whether a builder may fetch inputs from substituters of its own instead of getting them from here.
    pub builders_substitute: bool,
    /// Keys that sign the outputs, for a store here that does not trust the user.
    pub sign: Vec<Arc<SecretKey>>,
    /// How long machines are waited for.
    pub patience: MachineTimeouts,
}

impl RemoteConfig {
    /// `machines` are opened by `connect` and have `slots`: one failed build ends the others, builders get
    /// all inputs from here, nothing is signed.
    pub fn new(machines: Vec<Machine>, connect: Arc<dyn Connect>, slots: Slots) -> Self {
        RemoteConfig {
            machines,
            connect,
            slots,
            keep_going: false,
            builders_substitute: false,
            sign: Vec::new(),
            patience: MachineTimeouts::default(),
        }
    }
}

/// How long machines are waited for that say nothing. As long as one answers, its builds may be as
/// quiet as they like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MachineTimeouts {
    /// After so long without a sign of life in the middle of a build or a copy a machine is asked
    /// whether it is still there.
    pub silence: Duration,
    /// How long its answer may take. It is asked three times, then it is lost.
    pub answer: Duration,
    /// How long connecting may take, with all that ssh asks the user.
    pub connect: Duration,
}

impl Default for MachineTimeouts {
    /// 30 s, 20 s and 120 s.
    fn default() -> Self {
        MachineTimeouts {
            silence: Duration::from_secs(30),
            answer: Duration::from_secs(20),
            connect: Duration::from_secs(120),
        }
    }
}
