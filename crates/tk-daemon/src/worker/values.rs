use super::WorkerProtocol;
use crate::{
    values::{
        BuildResultForm, read_build_result, read_derived_path, read_old_derived_path,
        read_signatures, write_build_result, write_old_derived_path,
    },
    wire::{Decode, Encode, WireError, WireReader, Writer},
};
use std::collections::BTreeSet;
use tk_narinfo::{
    PathInfo, Signature,
    build_result::{BuildResult, KeyedBuildResult},
};
use tk_path::{
    Algorithm, ContentAddress, DerivedPath, Hash, HashError, NarHash, SingleDerivedPath, StorePath,
};
use tokio::io::AsyncRead;

/// What is known about a path, without the path. See [`PathInfo`] for the fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnkeyedPathInfo {
    /// The derivation that made it.
    pub deriver: Option<StorePath>,
    /// Hash of the NAR.
    pub nar_hash: NarHash,
    /// The paths it needs.
    pub references: BTreeSet<StorePath>,
    /// In seconds since 1970.
    pub registration_time: u64,
    /// Bytes of the NAR.
    pub nar_size: u64,
    /// Whether the store built it itself.
    pub ultimate: bool,
    /// Who vouches for it.
    pub signatures: BTreeSet<Signature>,
    /// Its claim to be made from its content.
    pub ca: Option<ContentAddress>,
}

impl UnkeyedPathInfo {
    /// The same about `path`.
    pub fn with_path(self, path: StorePath) -> PathInfo {
        PathInfo {
            path,
            deriver: self.deriver,
            nar_hash: self.nar_hash,
            nar_size: self.nar_size,
            references: self.references,
            registration_time: self.registration_time,
            ultimate: self.ultimate,
            signatures: self.signatures,
            ca: self.ca,
        }
    }
}

impl From<PathInfo> for UnkeyedPathInfo {
    fn from(info: PathInfo) -> Self {
        UnkeyedPathInfo {
            deriver: info.deriver,
            nar_hash: info.nar_hash,
            references: info.references,
            registration_time: info.registration_time,
            nar_size: info.nar_size,
            ultimate: info.ultimate,
            signatures: info.signatures,
            ca: info.ca,
        }
    }
}

/// The fields of a path info behind the path, borrowed from either type.
struct PathInfoFields<'a> {
    deriver: &'a Option<StorePath>,
    nar_hash: &'a NarHash,
    references: &'a BTreeSet<StorePath>,
    registration_time: u64,
    nar_size: u64,
    ultimate: bool,
    signatures: &'a BTreeSet<Signature>,
    ca: &'a Option<ContentAddress>,
}

macro_rules! fields {
    ($info:expr) => {
        PathInfoFields {
            deriver: &$info.deriver,
            nar_hash: &$info.nar_hash,
            references: &$info.references,
            registration_time: $info.registration_time,
            nar_size: $info.nar_size,
            ultimate: $info.ultimate,
            signatures: &$info.signatures,
            ca: &$info.ca,
        }
    };
}

impl Encode<WorkerProtocol> for PathInfoFields<'_> {
    fn encode(&self, to: &mut Writer<WorkerProtocol>) -> Result<(), WireError> {
        to.value(self.deriver)?;
        to.string(&self.nar_hash.hex());
        to.value(self.references)?;
        let time = i64::try_from(self.registration_time);
        to.time(time.map_err(|_| to.unsupported("so late a time"))?)?;
        to.u64(self.nar_size);
        if to.protocol().at_least(16) {
            to.bool(self.ultimate);
            to.value(self.signatures)?;
            to.value(self.ca)?;
        }
        Ok(())
    }
}

impl Encode<WorkerProtocol> for UnkeyedPathInfo {
    fn encode(&self, to: &mut Writer<WorkerProtocol>) -> Result<(), WireError> {
        fields!(self).encode(to)
    }
}

impl Decode<WorkerProtocol> for UnkeyedPathInfo {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, WorkerProtocol>,
    ) -> Result<Self, WireError> {
        let mut info = UnkeyedPathInfo {
            deriver: from.optional_path().await?,
            nar_hash: read_nar_hash(from).await?,
            references: from.value().await?,
            registration_time: from.time().await?.unsigned_abs(),
            nar_size: from.u64().await?,
            ultimate: false,
            signatures: BTreeSet::new(),
            ca: None,
        };
        if from.protocol().at_least(16) {
            info.ultimate = from.bool().await?;
            info.signatures = read_signatures(from).await?;
            info.ca = from.value().await?;
        }
        Ok(info)
    }
}

impl Encode<WorkerProtocol> for PathInfo {
    fn encode(&self, to: &mut Writer<WorkerProtocol>) -> Result<(), WireError> {
        to.path(&self.path);
        fields!(self).encode(to)
    }
}

impl Decode<WorkerProtocol> for PathInfo {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, WorkerProtocol>,
    ) -> Result<Self, WireError> {
        let path = from.path().await?;
        let info: UnkeyedPathInfo = from.value().await?;
        Ok(info.with_path(path))
    }
}

/// Reads a NAR hash in any form, which need not name its algorithm.
pub(crate) async fn read_nar_hash<R: AsyncRead + Unpin + Send, P>(
    from: &mut WireReader<R, P>,
) -> Result<NarHash, WireError> {
    let parse = |text: &str| -> Result<NarHash, HashError> {
        Hash::parse_any(text, Some(Algorithm::Sha256))?.try_into()
    };
    from.parse("a NAR hash", MAX_HASH, parse).await
}

/// Whether the daemon does what its client says without further proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trust {
    /// The daemon trusts the client: it adds paths without signatures, and refuses nothing for want of
    /// trust.
    Trusted,
    /// It does not: signatures are checked, and some operations are refused.
    NotTrusted,
}

impl Encode<WorkerProtocol> for Option<Trust> {
    fn encode(&self, to: &mut Writer<WorkerProtocol>) -> Result<(), WireError> {
        to.u64(match self {
            None => 0,
            Some(Trust::Trusted) => 1,
            Some(Trust::NotTrusted) => 2,
        });
        Ok(())
    }
}

impl Decode<WorkerProtocol> for Option<Trust> {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, WorkerProtocol>,
    ) -> Result<Self, WireError> {
        let known = |number| match number {
            0 => Some(None),
            1 => Some(Some(Trust::Trusted)),
            2 => Some(Some(Trust::NotTrusted)),
            _ => None,
        };
        from.tag("mark of trust", known).await
    }
}

impl Encode<WorkerProtocol> for DerivedPath {
    fn encode(&self, to: &mut Writer<WorkerProtocol>) -> Result<(), WireError> {
        if !to.protocol().at_least(30) {
            return write_old_derived_path(self, to);
        }
        let dir = to.protocol().dir.clone();
        to.display(self.display_legacy(&dir));
        Ok(())
    }
}

impl Decode<WorkerProtocol> for DerivedPath {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, WorkerProtocol>,
    ) -> Result<Self, WireError> {
        if from.protocol().at_least(30) {
            read_derived_path(from).await
        } else {
            read_old_derived_path(from).await
        }
    }
}

impl Encode<WorkerProtocol> for SingleDerivedPath {
    fn encode(&self, to: &mut Writer<WorkerProtocol>) -> Result<(), WireError> {
        let (mut path, mut outputs) = (self, Vec::new());
        while let SingleDerivedPath::Built { drv, output } = path {
            to.u64(1);
            outputs.push(output);
            path = drv;
        }
        to.u64(0);
        to.path(path.base());
        outputs
            .into_iter()
            .rev()
            .try_for_each(|name| to.value(name))
    }
}

impl Decode<WorkerProtocol> for SingleDerivedPath {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, WorkerProtocol>,
    ) -> Result<Self, WireError> {
        let known = |number| match number {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        };
        let mut depth = 0;
        while from.tag("kind of derived path", known).await? {
            depth += 1;
            if depth > MAX_DEPTH {
                return Err(from.too_large("the nesting of a derived path", depth, MAX_DEPTH));
            }
        }
        let mut path = SingleDerivedPath::Opaque(from.path().await?);
        for _ in 0..depth {
            path = path.output(from.value().await?);
        }
        Ok(path)
    }
}

impl Encode<WorkerProtocol> for BuildResult {
    fn encode(&self, to: &mut Writer<WorkerProtocol>) -> Result<(), WireError> {
        write_build_result(self, build_result_form(to.protocol()), to)
    }
}

impl Decode<WorkerProtocol> for BuildResult {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, WorkerProtocol>,
    ) -> Result<Self, WireError> {
        let form = build_result_form(from.protocol());
        read_build_result(from, form).await
    }
}

fn build_result_form(worker: &WorkerProtocol) -> BuildResultForm {
    BuildResultForm {
        times: worker.at_least(29),
        cpu: worker.at_least(37),
        outputs: worker.at_least(28),
    }
}

impl Encode<WorkerProtocol> for KeyedBuildResult {
    fn encode(&self, to: &mut Writer<WorkerProtocol>) -> Result<(), WireError> {
        to.value(&self.path)?;
        to.value(&self.result)
    }
}

impl Decode<WorkerProtocol> for KeyedBuildResult {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, WorkerProtocol>,
    ) -> Result<Self, WireError> {
        let path = from.value().await?;
        let result = from.value().await?;
        Ok(KeyedBuildResult { path, result })
    }
}

/// The deepest nesting of a derived path in its binary form.
const MAX_DEPTH: u64 = 64;

/// The longest text of a SHA-256, and more.
const MAX_HASH: u64 = 128;
