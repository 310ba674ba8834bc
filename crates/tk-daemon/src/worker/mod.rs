//! The worker protocol: what clients and Nix's daemon say to each other (`unix://`, `ssh-ng://`,
//! `nix-daemon --stdio`).
//!
//! A connection begins with a [`handshake`]. Then the client sends requests, each the number of its
//! operation ([`Op`]) and its arguments. The server answers with messages of the [`log`] until one of
//! them is [`Last`](log::Message::Last), which the reply follows, or
//! [`Error`](log::Message::Error), which nothing follows. Some requests and replies carry
//! data beside that, see [`ops`]. The encoding is that of [`wire`](crate::wire), the values are those of
//! [`values`](crate::values) and these, which depend on the version:
//!
//! | Type | Layout |
//! |---|---|
//! | [`UnkeyedPathInfo`] | optional deriver, NAR hash in hex without prefix (readers take every form), set of references, registration time, NAR size; from 1.16 on: bool ultimate, set of signatures, optional content address |
//! | [`PathInfo`](tk_narinfo::PathInfo) | path, then the above |
//! | [`DerivedPath`](tk_path::DerivedPath) | from 1.30 on string: `path`, `path!*`, `path!a,b`, `path!x!a`; before: the older form |
//! | [`SingleDerivedPath`](tk_path::SingleDerivedPath) | 0 and path, or 1, inner and output name |
//! | [`BuildResult`](tk_narinfo::build_result::BuildResult) | status, error; from 1.29 on times built, bool not deterministic, start, stop; from 1.37 on processor times of user and system, each 0 or 1 and microseconds; from 1.28 on outputs |
//! | [`KeyedBuildResult`](tk_narinfo::build_result::KeyedBuildResult) | derived path, build result |
//! | [`Trust`], optional | 0 unknown, 1 trusted, 2 not trusted |
//!
//! # Versions
//! The number of a connection is the lower one of both ends; [`LATEST`] has not moved since Nix 2.24.
//! What came later are [`features`], of which those hold that both ends name. Nix speaks with 1.18 and
//! later ([`MINIMUM`]); the layouts here go back to 1.10.
//!
//! | Minor | What came |
//! |---|---|
//! | 11, 14 | reserved space and processor affinity in the handshake |
//! | 12 | `QueryValidPaths`, overrides in `SetOptions` |
//! | 16 | ultimate, signatures and content address of path infos |
//! | 17 | `QueryPathInfo` says absent instead of failing |
//! | 19 | `QueryMissing` |
//! | 20 | activities |
//! | 21, 23 | the data of `AddToStoreNar`: pulled, framed |
//! | 22 | `QueryDerivationOutputMap`; content addresses in `QuerySubstitutablePathInfos` |
//! | 25 | `AddToStore` with references, framed |
//! | 26 | errors with traces |
//! | 27 | substitution in `QueryValidPaths` |
//! | 28, 29, 37 | outputs, times, processor times of build results |
//! | 30 | derived paths as texts |
//! | 31 | realisations as JSON |
//! | 32 | `AddMultipleToStore`, `AddBuildLog` |
//! | 33, 35 | Nix's version and trust in the handshake |
//! | 34 | `BuildPathsWithResults` |
//! | 36 | better errors about dynamic derivations |
//! | 38 | features |

pub mod features;
pub mod handshake;
pub mod log;
pub mod ops;
mod values;
mod version;

pub use crate::wire::{Request, Version};
pub use features::Features;
pub use ops::Op;
pub(crate) use values::read_nar_hash;
pub use values::{Trust, UnkeyedPathInfo};
pub use version::{Capabilities, LATEST, MINIMUM, OLDEST, WorkerProtocol};
