//! CI files for a flake: what they run is one plan, which also runs here.
//!
//! ```text
//! CiProject   the flake's outputs, by system        from `nix flake show --json`, or their names
//! CiOptions   what no flake says: branch, cache, runners
//! CiPlan      the jobs and their steps              the same for each service, and for `ci run`
//! CiService   how a plan is written                 GitHub, GitLab, Forgejo
//! ```
//!
//! # Security
//! Who opens a pull request runs code, but gets no secret: steps that have secrets are for pushes to one branch
//! alone. Tokens may read the repository and nothing else. Actions are named by the commit ([`PINNED_ACTIONS`]),
//! images by their digest. No expression of the service stands in the text of a script.

mod options;
mod pins;
mod plan;
mod project;
mod service;
mod yaml;

pub use options::{CiCache, CiOptions};
pub use pins::{PINNED_ACTIONS, PinnedAction};
pub use plan::{CiJob, CiPlan, CiStep, CiTrigger};
pub use project::CiProject;
pub use service::{CiFileState, CiService};

/// Why there is no CI file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CiError {
    /// The outputs of the flake are not told in a form that is known.
    #[error("what the flake has is not understood: {0}")]
    Outputs(String),
    /// There is nothing that could be checked or built.
    #[error("the flake has neither packages nor checks for a system")]
    Nothing,
    /// Nobody knows where this system is run.
    #[error(
        "no runner of {service} is known for {system}; name one with --runner {system}=LABEL, or leave the system out with --system"
    )]
    NoRunner {
        /// The service, as it calls itself.
        service: &'static str,
        /// Nix's name of the system.
        system: String,
    },
    /// The image must be named by its digest, and none that was looked up comes with this program.
    #[error(
        "GitLab runs jobs in an image, and no digest of one could be looked up for this program: name one \
         with --image NAME@sha256:DIGEST ('docker buildx imagetools inspect nixos/nix:TAG' tells it)"
    )]
    NoImage,
    /// What is named cannot be written into a file safely.
    #[error("{what} '{text}' {why}")]
    Text {
        /// What it is.
        what: &'static str,
        /// What was named.
        text: String,
        /// What it should be.
        why: &'static str,
    },
    /// Paths are to be pushed, and nobody said where tk-store comes from.
    #[error(
        "to push, CI needs tk-store itself: name its flake with --tk-store, such as github:OWNER/tk-store/COMMIT"
    )]
    NoTkStore,
}
