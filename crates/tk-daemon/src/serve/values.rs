use super::Serve;
use crate::{
    values::{
        BuildResultForm, read_build_result, read_old_derived_path, read_signatures,
        write_build_result, write_old_derived_path,
    },
    wire::{Decode, Encode, Protocol, WireError, WireReader, Writer},
};
use std::collections::BTreeSet;
use tk_narinfo::{PathInfo, Signature, build_result::BuildResult};
use tk_path::{ContentAddress, DerivedPath, NarHash, StorePath};
use tokio::io::AsyncRead;

/// What is known about a path, without the path. Neither its registration time nor whether the
/// store built it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServePathInfo {
    /// The derivation that made it.
    pub deriver: Option<StorePath>,
    /// The paths it needs.
    pub references: BTreeSet<StorePath>,
    /// Bytes of the NAR.
    pub nar_size: u64,
    /// Hash of the NAR; never there before 2.4.
    pub nar_hash: Option<NarHash>,
    /// Its claim to be made from its content; never there before 2.4.
    pub ca: Option<ContentAddress>,
    /// Who vouches for it; nobody before 2.4.
    pub signatures: BTreeSet<Signature>,
}

impl ServePathInfo {
    /// The same about `path`; nothing without a NAR hash.
    pub fn with_path(self, path: StorePath) -> Option<PathInfo> {
        let mut info = PathInfo::new(path, self.nar_hash?, self.nar_size);
        info.deriver = self.deriver;
        info.references = self.references;
        info.ca = self.ca;
        info.signatures = self.signatures;
        Some(info)
    }
}

impl From<PathInfo> for ServePathInfo {
    fn from(info: PathInfo) -> Self {
        ServePathInfo {
            deriver: info.deriver,
            references: info.references,
            nar_size: info.nar_size,
            nar_hash: Some(info.nar_hash),
            ca: info.ca,
            signatures: info.signatures,
        }
    }
}

impl Encode<Serve> for ServePathInfo {
    fn encode(&self, to: &mut Writer<Serve>) -> Result<(), WireError> {
        to.value(&self.deriver)?;
        to.value(&self.references)?;
        to.u64(self.nar_size);
        to.u64(self.nar_size);
        if to.protocol().at_least(4) {
            match &self.nar_hash {
                Some(hash) => to.display(hash),
                None => to.string(""),
            }
            to.value(&self.ca)?;
            to.value(&self.signatures)?;
        }
        Ok(())
    }
}

impl Decode<Serve> for ServePathInfo {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, Serve>,
    ) -> Result<Self, WireError> {
        let deriver = from.value().await?;
        let references = from.value().await?;
        from.u64().await?;
        let mut info = ServePathInfo {
            deriver,
            references,
            nar_size: from.u64().await?,
            nar_hash: None,
            ca: None,
            signatures: BTreeSet::new(),
        };
        if from.protocol().at_least(4) {
            let parse = |text: &str| match text {
                "" => Ok(None),
                text => NarHash::parse(text).map(Some),
            };
            info.nar_hash = from.parse("a NAR hash", MAX_HASH, parse).await?;
            info.ca = from.value().await?;
            info.signatures = read_signatures(from).await?;
        }
        Ok(info)
    }
}

/// How to build. There is no saying so beforehand, as the worker protocol has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServeBuildOptions {
    /// Seconds after which a silent build is ended; 0: never.
    pub max_silent_time: u64,
    /// Seconds after which any build is ended; 0: never.
    pub build_timeout: u64,
    /// Bytes of log after which a build is ended; 0: never. From 2.2 on.
    pub max_log_size: u64,
    /// How often to build again. From 2.3 on; current servers refuse all but 0.
    pub repeats: u64,
    /// Whether it is an error if these differ. From 2.3 on.
    pub enforce_determinism: bool,
    /// Whether to keep the directories of builds that fail. From 2.7 on.
    pub keep_failed: bool,
}

impl Encode<Serve> for ServeBuildOptions {
    fn encode(&self, to: &mut Writer<Serve>) -> Result<(), WireError> {
        to.u64(self.max_silent_time);
        to.u64(self.build_timeout);
        if to.protocol().at_least(2) {
            to.u64(self.max_log_size);
        }
        if to.protocol().at_least(3) {
            to.u64(self.repeats);
            to.bool(self.enforce_determinism);
        }
        if to.protocol().at_least(7) {
            to.bool(self.keep_failed);
        }
        Ok(())
    }
}

impl Decode<Serve> for ServeBuildOptions {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, Serve>,
    ) -> Result<Self, WireError> {
        let mut options = ServeBuildOptions {
            max_silent_time: from.u64().await?,
            build_timeout: from.u64().await?,
            ..ServeBuildOptions::default()
        };
        if from.protocol().at_least(2) {
            options.max_log_size = from.u64().await?;
        }
        if from.protocol().at_least(3) {
            options.repeats = from.u64().await?;
            options.enforce_determinism = from.bool().await?;
        }
        if from.protocol().at_least(7) {
            options.keep_failed = from.bool().await?;
        }
        Ok(options)
    }
}

impl Encode<Serve> for DerivedPath {
    fn encode(&self, to: &mut Writer<Serve>) -> Result<(), WireError> {
        write_old_derived_path(self, to)
    }
}

impl Decode<Serve> for DerivedPath {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, Serve>,
    ) -> Result<Self, WireError> {
        read_old_derived_path(from).await
    }
}

impl Encode<Serve> for BuildResult {
    fn encode(&self, to: &mut Writer<Serve>) -> Result<(), WireError> {
        write_build_result(self, build_result_form(to.protocol()), to)
    }
}

impl Decode<Serve> for BuildResult {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, Serve>,
    ) -> Result<Self, WireError> {
        let form = build_result_form(from.protocol());
        read_build_result(from, form).await
    }
}

fn build_result_form(serve: &Serve) -> BuildResultForm {
    BuildResultForm {
        times: serve.at_least(3),
        cpu: false,
        outputs: serve.at_least(6),
    }
}

/// What follows the NAR of each path in an export stream (`nix-store --export`), which is
/// `( 1 NAR trailer )* 0`, references first. The NAR hash is not in it. In every protocol, since such
/// streams also lie in files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportTrailer {
    /// The store path whose NAR stands before this trailer.
    pub path: StorePath,
    /// The paths it needs.
    pub references: BTreeSet<StorePath>,
    /// The derivation that made it.
    pub deriver: Option<StorePath>,
}

impl<P: Protocol> Encode<P> for ExportTrailer {
    fn encode(&self, to: &mut Writer<P>) -> Result<(), WireError> {
        to.u64(EXPORT_MAGIC);
        to.path(&self.path);
        to.value(&self.references)?;
        to.value(&self.deriver)?;
        to.u64(0);
        Ok(())
    }
}

impl<P: Protocol> Decode<P> for ExportTrailer {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, P>,
    ) -> Result<Self, WireError> {
        let magic = |number| (number == EXPORT_MAGIC).then_some(());
        from.tag("mark behind an exported NAR", magic).await?;
        let trailer = ExportTrailer {
            path: from.value().await?,
            references: from.value().await?,
            deriver: from.value().await?,
        };
        // A signature of a kind that is long gone.
        if from.u64().await? == 1 {
            from.bytes().await?;
        }
        Ok(trailer)
    }
}

const EXPORT_MAGIC: u64 = 0x4558_494e;

/// The longest text of a SHA-256 with its algorithm, and more.
const MAX_HASH: u64 = 128;
