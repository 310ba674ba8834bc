//! What both ends may agree on beside the version.
//!
//! | Feature | Effect |
//! |---|---|
//! | [`REALISATION_WITH_PATH`] | realisations, their keys and the outputs of build results in the new form |
//! | [`DELETE_DEAD_SPECIFIC_REFERRERS`] | `CollectGarbage` says which paths, and whether their referrers go too |
//! | [`DISABLE_SET_OPTIONS`] | the client does not send `SetOptions` |
//! | [`ADD_TO_STORE_SCANNING`] | operation 1001 |
//! | [`SUBMIT_OUTPUT`] | operation 1000 |
//! | [`ADD_TEMP_ROOTS`] | operation 49 (Determinate Nix) |
//! | [`QUERY_PATH_INFOS`] | operation 50 (Determinate Nix) |
//! | [`VERSIONED_ADD_TO_STORE_MULTIPLE`] | the path infos in `AddMultipleToStore` have the layout of the connection, not that of 1.16 (Determinate Nix) |
//!
//! Nix offers the first two since 2.35; the next three only to what runs in a build. Whoever offers a
//! feature must know all that it changes: what is not named here drops out of every agreement.

use crate::wire::{Decode, Encode, Protocol, WireError, WireReader, Writer};
use std::collections::BTreeSet;
use tokio::io::AsyncRead;

/// With this feature, realisations, their keys and the outputs of build results are written in the new
/// form.
pub const REALISATION_WITH_PATH: &str = "realisation-with-path-not-hash";
/// With this feature, `CollectGarbage` says which paths it is about, and whether their referrers go too.
pub const DELETE_DEAD_SPECIFIC_REFERRERS: &str = "delete-dead-specific-referrers";
/// With this feature, the client does not send `SetOptions`.
pub const DISABLE_SET_OPTIONS: &str = "disable-set-options";
/// With this feature, there is operation 1001, `AddToStoreScanning`. Nix offers it only to what runs in a
/// build.
pub const ADD_TO_STORE_SCANNING: &str = "add-to-store-scanning";
/// With this feature, there is operation 1000, `SubmitOutput`. Nix offers it only to what runs in a
/// build.
pub const SUBMIT_OUTPUT: &str = "submit-output";
/// With this feature, which is Determinate Nix's, there is operation 49, `AddTempRoots`.
pub const ADD_TEMP_ROOTS: &str = "addTempRoots";
/// With this feature, which is Determinate Nix's, there is operation 50, `QueryPathInfos`.
pub const QUERY_PATH_INFOS: &str = "queryPathInfos";
/// With this feature, which is Determinate Nix's, the path infos within `AddMultipleToStore` have the
/// layout of the connection's version, not that of 1.16.
pub const VERSIONED_ADD_TO_STORE_MULTIPLE: &str = "versionedAddToStoreMultiple";

/// All that is known here.
pub const ALL: [&str; 8] = [
    REALISATION_WITH_PATH,
    DELETE_DEAD_SPECIFIC_REFERRERS,
    DISABLE_SET_OPTIONS,
    ADD_TO_STORE_SCANNING,
    SUBMIT_OUTPUT,
    ADD_TEMP_ROOTS,
    QUERY_PATH_INFOS,
    VERSIONED_ADD_TO_STORE_MULTIPLE,
];

/// A set of features.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Features(BTreeSet<String>);

impl Features {
    /// Returns the empty set, with which nothing is agreed on beside the version.
    pub fn none() -> Self {
        Features::default()
    }

    /// Every feature of [`ALL`]: what a client can offer that speaks by these modules.
    pub fn all() -> Self {
        ALL.into_iter().collect()
    }

    /// Whether `feature` is among them.
    pub fn has(&self, feature: &str) -> bool {
        self.0.contains(feature)
    }

    /// Returns the features that are in both sets: what two ends with these agree on.
    pub fn common(&self, other: &Features) -> Features {
        Features(self.0.intersection(&other.0).cloned().collect())
    }

    /// Whether `other` has all of these.
    pub fn is_subset_of(&self, other: &Features) -> bool {
        self.0.is_subset(&other.0)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the names of the features, in sorted order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl<S: Into<String>> FromIterator<S> for Features {
    fn from_iter<I: IntoIterator<Item = S>>(features: I) -> Self {
        Features(features.into_iter().map(Into::into).collect())
    }
}

impl<P: Protocol> Encode<P> for Features {
    fn encode(&self, to: &mut Writer<P>) -> Result<(), WireError> {
        to.value(&self.0)
    }
}

impl<P: Protocol> Decode<P> for Features {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, P>,
    ) -> Result<Self, WireError> {
        let count = from.u64().await?;
        if count > MAX_FEATURES {
            return Err(from.too_large("features", count, MAX_FEATURES));
        }
        let mut features = BTreeSet::new();
        for _ in 0..count {
            let text = |text: &str| Ok::<_, &str>(text.to_owned());
            features.insert(from.parse("a feature", MAX_FEATURE, text).await?);
        }
        Ok(Features(features))
    }
}

/// More features than this are refused.
pub const MAX_FEATURES: u64 = 1024;

/// The longest name of a feature.
const MAX_FEATURE: u64 = 256;
