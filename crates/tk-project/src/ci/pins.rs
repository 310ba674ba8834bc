//! Actions by the commit that they are: a tag can be moved, a commit cannot.

/// An action at one commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinnedAction {
    /// `OWNER/NAME` on GitHub.
    pub repository: &'static str,
    /// The release, as its tag names it.
    pub version: &'static str,
    /// The commit of that tag, 40 digits.
    pub commit: &'static str,
    /// When the commit was looked up, as YYYY-MM-DD.
    pub looked_up: &'static str,
    /// Where and how it was looked up.
    pub source: &'static str,
}

/// Brings the repository.
pub(super) const CHECKOUT: PinnedAction = PinnedAction {
    repository: "actions/checkout",
    version: "v7.0.1",
    commit: "3d3c42e5aac5ba805825da76410c181273ba90b1",
    looked_up: "2026-11-30",
    source: "git rev-list -n1 v7.0.1, in a clone of https://github.com/actions/checkout",
};

/// The action that installs Nix on a runner.
pub(super) const INSTALL_NIX: PinnedAction = PinnedAction {
    repository: "cachix/install-nix-action",
    version: "v31.11.0",
    commit: "630ae543ea3a38a9a4166f03376c02c50f408342",
    looked_up: "2026-11-30",
    source: "git rev-list -n1 v31.11.0, in a clone of https://github.com/cachix/install-nix-action",
};

/// All actions that are written into files. Each was looked up; to update one, look up the commit of its new tag.
pub const PINNED_ACTIONS: &[PinnedAction] = &[CHECKOUT, INSTALL_NIX];
