use super::{Features, Op, features};
use crate::wire::{Protocol, Since, Version};
use std::cmp::Ordering;
use tk_path::StoreDir;

/// The newest number, which Nix has kept since 2.24.
pub const LATEST: Version = Version::minor(38);

/// The oldest number that connections are made with, as in Nix since 2.33.
pub const MINIMUM: Version = Version::minor(18);

/// The oldest number whose layouts are known here.
pub const OLDEST: Version = Version::minor(10);

/// What one end of a connection can speak. Partly ordered: less is a lower or equal number *and* no
/// other features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// The newest version of the protocol that this end can speak.
    pub version: Version,
    /// The features; they count from 1.38 on.
    pub features: Features,
}

impl Capabilities {
    /// [`LATEST`] with these features.
    pub fn latest(features: Features) -> Self {
        Capabilities {
            version: LATEST,
            features,
        }
    }

    /// What both can speak.
    pub fn common(&self, other: &Capabilities) -> Capabilities {
        Capabilities {
            version: self.version.min(other.version),
            features: self.features.common(&other.features),
        }
    }
}

impl PartialOrd for Capabilities {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let less =
            |a: &Self, b: &Self| a.version <= b.version && a.features.is_subset_of(&b.features);
        match (less(self, other), less(other, self)) {
            (true, true) => Some(Ordering::Equal),
            (true, false) => Some(Ordering::Less),
            (false, true) => Some(Ordering::Greater),
            (false, false) => None,
        }
    }
}

/// What a connection speaks: decides the layout of every value on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerProtocol {
    /// The directory of all store paths.
    pub dir: StoreDir,
    /// The number that both ends agreed on.
    pub version: Version,
    /// The features that both ends named.
    pub features: Features,
}

impl WorkerProtocol {
    /// A connection at `version` without features.
    pub fn new(dir: StoreDir, version: Version) -> Self {
        WorkerProtocol {
            dir,
            version,
            features: Features::none(),
        }
    }

    /// The same at what was agreed on.
    pub fn with(&self, agreed: Capabilities) -> Self {
        WorkerProtocol {
            dir: self.dir.clone(),
            version: agreed.version,
            features: agreed.features,
        }
    }

    /// Whether the version is 1.`minor` or later.
    pub fn at_least(&self, minor: u8) -> bool {
        self.version >= Version::minor(minor)
    }

    /// Whether `feature` was agreed on.
    pub fn has(&self, feature: &str) -> bool {
        self.features.has(feature)
    }
}

impl Protocol for WorkerProtocol {
    const NAME: &'static str = "worker";
    const SERVER_MAGIC: u64 = 0x6478_696f;
    type Op = Op;

    fn supports(&self, since: Since) -> bool {
        match since {
            Since::Minor(minor) => self.at_least(minor),
            Since::Feature(feature) => self.has(feature),
        }
    }

    fn store_dir(&self) -> &StoreDir {
        &self.dir
    }

    fn describe(&self) -> String {
        let features: Vec<_> = self.features.iter().collect();
        if features.is_empty() {
            format!("worker protocol {}", self.version)
        } else {
            format!(
                "worker protocol {} with {}",
                self.version,
                features.join(", ")
            )
        }
    }

    fn has_build_trace(&self) -> bool {
        self.has(features::REALISATION_WITH_PATH)
    }
}
