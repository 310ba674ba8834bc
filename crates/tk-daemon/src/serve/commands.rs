//! The commands: what can be asked, and what is replied.
//!
//! A request is the number of its [`Command`] and the fields of its type, in order. In this table P is a
//! store path, P* a set of them, and OK the integer 1 ([`Done`]).
//!
//! | # | Name | Request | Reply |
//! |---|---|---|---|
//! | 1 | QueryValidPaths | bool lock, bool substitute, P* | P* |
//! | 2 | QueryPathInfos | P* | for each that is known: P, unkeyed path info; then an empty string |
//! | 3 | DumpStorePath | P | a **raw NAR** |
//! | 4 | ImportPaths | an **export stream**, see [`ExportTrailer`](super::ExportTrailer) | OK |
//! | 6 | BuildPaths | list of derived paths, build options | 0, or exit status and string |
//! | 7 | QueryClosure | bool include outputs, P* | P* |
//! | 8 | BuildDerivation | P of the derivation, basic derivation, build options | build result |
//! | 9 | AddToStoreNar | P, optional deriver, NAR hash in hex without prefix, P* references, registration time, NAR size, bool ultimate, set of signatures, optional content address, then a **raw NAR** of so many bytes | OK |
//!
//! 5 is gone. Only a server started with `--write` does more than read; 4 and 9 need it. It does
//! not check signatures, and takes a NAR size of 0 for an error.
//!
//! **A trap.** The reply of BuildPaths on failure is the exit status of the server's process (1, 100 and
//! up), not the status of a build, whose 1 would be a success. Whatever is not 0 is a failure
//! here, and a message follows.

use super::{Serve, ServeBuildOptions, ServePathInfo};
use crate::{
    values::{Done, MAX_BUILD_ERROR, MAX_SKIPPED, read_derivation},
    wire::{
        Data, Decode, Encode, ITEM_COST, WireError, WireReader, Writer, by_version, operations,
        requests,
    },
    worker::read_nar_hash,
};
use std::collections::BTreeSet;
use tk_narinfo::{PathInfo, build_result::BuildResult};
use tk_path::{BasicDerivation, DerivedPath, StorePath};
use tokio::io::AsyncRead;

operations! {
    /// A command of the serve protocol.
    Command(Serve) {
        QueryValidPaths = 1;
        QueryPathInfos = 2;
        DumpStorePath = 3;
        ImportPaths = 4;
        BuildPaths = 6;
        QueryClosure = 7;
        BuildDerivation = 8;
        AddToStoreNar = 9;
    }
}

requests! {
    Serve, Command;

    /// Which of the paths are valid.
    QueryValidPaths {
        /// Whether to keep them as long as the connection lives.
        lock: bool,
        /// Whether to fetch those that are not there.
        substitute: bool,
        /// The paths to look for; the reply is the subset that is valid.
        paths: BTreeSet<StorePath>,
    } -> BTreeSet<StorePath>;

    /// What is known about paths.
    QueryPathInfos {
        /// The paths to look for; the reply leaves out those that are not valid.
        paths: BTreeSet<StorePath>,
    } -> PathInfos;

    /// The NAR of a path, which is the reply, raw. A server that does not have it ends.
    DumpStorePath {
        /// The path whose NAR is wanted, which must be valid.
        path: StorePath,
    } -> ();

    /// Adds the paths of an export stream, which follows.
    ImportPaths {} -> Done;

    /// Builds or fetches what is asked for.
    BuildPaths {
        /// What is asked for.
        paths: Vec<DerivedPath>,
        /// How the server is to build, such as its time limits.
        options: ServeBuildOptions,
    } -> BuildOutcome;

    /// All that the paths need.
    QueryClosure {
        /// Whether the outputs of derivations among them count too.
        include_outputs: bool,
        /// The paths whose closure is asked for; they are part of the reply.
        paths: BTreeSet<StorePath>,
    } -> BTreeSet<StorePath>;
}

/// The reply to [`QueryPathInfos`], in the server's order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathInfos(pub Vec<(StorePath, ServePathInfo)>);

impl Encode<Serve> for PathInfos {
    fn encode(&self, to: &mut Writer<Serve>) -> Result<(), WireError> {
        for (path, info) in &self.0 {
            to.path(path);
            to.value(info)?;
        }
        to.string("");
        Ok(())
    }
}

impl Decode<Serve> for PathInfos {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, Serve>,
    ) -> Result<Self, WireError> {
        let mut infos = Vec::new();
        while let Some(path) = from.optional_path().await? {
            // Nobody says beforehand how many there are.
            let item = size_of::<(StorePath, ServePathInfo)>() as u64;
            if from.charge("the infos of paths", item + ITEM_COST)? {
                from.admit().await?;
            }
            infos.push((path, from.value().await?));
        }
        Ok(PathInfos(infos))
    }
}

/// The reply to [`BuildPaths`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildOutcome {
    /// Every path was built or fetched, or was valid already; 0 on the wire.
    Success,
    /// At least one of the paths could not be had; the reply does not say which.
    Failure {
        /// The exit status of the server's process; never 0.
        exit_status: u64,
        /// What it says about it.
        message: String,
    },
}

impl Encode<Serve> for BuildOutcome {
    fn encode(&self, to: &mut Writer<Serve>) -> Result<(), WireError> {
        match self {
            BuildOutcome::Success => to.u64(0),
            BuildOutcome::Failure { exit_status: 0, .. } => {
                return Err(to.unsupported("a failure with exit status 0"));
            }
            BuildOutcome::Failure {
                exit_status,
                message,
            } => {
                to.u64(*exit_status);
                to.string(message);
            }
        }
        Ok(())
    }
}

impl Decode<Serve> for BuildOutcome {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, Serve>,
    ) -> Result<Self, WireError> {
        Ok(match from.u64().await? {
            0 => BuildOutcome::Success,
            exit_status => BuildOutcome::Failure {
                exit_status,
                message: from
                    .text("the error of a build", MAX_BUILD_ERROR, MAX_SKIPPED)
                    .await?,
            },
        })
    }
}

/// Builds a derivation that need not be in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildDerivation {
    /// Where the derivation lies, or would lie. It is named by this.
    pub path: StorePath,
    /// The derivation to build, whose inputs are plain store paths.
    pub derivation: BasicDerivation,
    /// How the server is to build, such as its time limits.
    pub options: ServeBuildOptions,
}

by_version!(
    Serve, Command;
    BuildDerivation -> BuildResult,
    |_serve| Data::None,
    |value, to| {
        to.path(&value.path);
        to.value(&value.derivation)?;
        to.value(&value.options)
    },
    |from| {
        let path = from.path().await?;
        Ok(BuildDerivation {
            derivation: read_derivation(from, &path).await?,
            path,
            options: from.value().await?,
        })
    }
);

/// Adds a path, whose raw NAR follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddToStoreNar {
    /// The path and what is to be known about it.
    pub info: PathInfo,
}

by_version!(
    Serve, Command;
    AddToStoreNar -> Done,
    |_serve| Data::RawNar,
    |value, to| {
        let info = &value.info;
        to.path(&info.path);
        to.value(&info.deriver)?;
        to.string(&info.nar_hash.hex());
        to.value(&info.references)?;
        let time = i64::try_from(info.registration_time);
        to.time(time.map_err(|_| to.unsupported("so late a time"))?)?;
        to.u64(info.nar_size);
        to.bool(info.ultimate);
        to.value(&info.signatures)?;
        to.value(&info.ca)
    },
    |from| {
        let info = PathInfo {
            path: from.path().await?,
            deriver: from.value().await?,
            nar_hash: read_nar_hash(from).await?,
            references: from.value().await?,
            registration_time: from.time().await?.unsigned_abs(),
            nar_size: from.u64().await?,
            ultimate: from.bool().await?,
            signatures: from.value().await?,
            ca: from.value().await?,
        };
        Ok(AddToStoreNar { info })
    }
);
