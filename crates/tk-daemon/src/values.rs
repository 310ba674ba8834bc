//! The values that both protocols write in the same way.
//!
//! | Type | Layout |
//! |---|---|
//! | [`OutputName`] | string |
//! | [`Signature`] | string `name:base64` |
//! | [`ContentAddress`] | string `text:...`, `fixed:...`; optional: empty is absent |
//! | [`BuildMode`] | 0 normal, 1 repair, 2 check |
//! | [`BuildStatus`] | its code; a hash mismatch goes as 5 (output rejected) |
//! | [`BasicDerivation`] | count of outputs, each: name, path, method and algorithm, hash (the three texts of the ATerm, empty where they do not apply); set of input paths; platform, builder, list of arguments; count of variables, each: name, value (structured attributes as `__json`). Its name is not there: it is that of the derivation's path |
//! | [`DerivedPath`], older form | string: `path`, where a `.drv` stands for all its outputs, or `path!a,b`. A derivation as a plain file, or nesting, cannot be said. The serve protocol, and the worker protocol before 1.30 |
//!
//! Realisations (the build trace) have two forms. The new one needs the worker protocol's feature
//! `realisation-with-path-not-hash`, or serve protocol 2.8:
//!
//! | Type | New | Old |
//! |---|---|---|
//! | [`DrvOutput`] | path of the derivation, output name | [`legacy::LegacyDrvOutput`]: string `sha256:<hex>!<output>` |
//! | [`UnkeyedRealisation`] | path of the output, set of signatures | |
//! | [`Realisation`] | both | [`legacy::LegacyRealisation`]: string with compact JSON |
//! | outputs of a [`BuildResult`] | map of output name to [`UnkeyedRealisation`] | map of `sha256:<hex>!<output>` to the JSON of a [`legacy::LegacyRealisation`] |
//!
//! The outputs of a build result in the old form are read for their id and path only, and written with
//! `{"id","outPath"}` for the JSON, and 64 zeros for a hash that nobody told, as Nix 2.35 does.
//!
//! # Security
//! Every text here is parsed into its type, so that nothing else gets past the decoder. The limits of
//! their lengths are named in this module; JSON is limited to 1 MiB, since it may
//! take many times that when parsed.

use crate::wire::{Decode, Encode, Protocol, WireError, WireReader, Writer};
use bstr::BString;
use bytes::Bytes;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tk_narinfo::{
    Signature,
    build_result::{BuildResult, BuildStatus},
    realisation::{DrvOutput, Realisation, UnkeyedRealisation, legacy},
};
use tk_path::{
    BasicDerivation, ContentAddress, DerivationOutput, DerivedPath, Hash, HashPart,
    MethodAlgorithm, OutputName, OutputsSpec, SingleDerivedPath, StorePath,
};
use tk_store::BuildMode;
use tokio::io::AsyncRead;

/// The reply of an operation that says no more than that it is done: 1. Readers take any integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Done;

/// Declares the encoding of a type in every protocol, as two expressions.
macro_rules! everywhere {
    ($type:ty, |$value:ident, $to:ident| $write:expr, |$from:ident| $read:expr) => {
        impl<P: Protocol> Encode<P> for $type {
            fn encode(&self, $to: &mut Writer<P>) -> Result<(), WireError> {
                let $value = self;
                $write;
                Ok(())
            }
        }

        impl<P: Protocol> Decode<P> for $type {
            async fn decode<R: AsyncRead + Unpin + Send>(
                $from: &mut WireReader<R, P>,
            ) -> Result<Self, WireError> {
                $read
            }
        }
    };
}

everywhere!((), |_value, _to| {}, |_from| Ok(()));
everywhere!(u64, |value, to| to.u64(*value), |from| from.u64().await);
everywhere!(bool, |value, to| to.bool(*value), |from| from.bool().await);
everywhere!(Done, |_value, to| to.u64(1), |from| {
    from.u64().await?;
    Ok(Done)
});
everywhere!(String, |value, to| to.string(value), |from| from
    .string()
    .await);
everywhere!(Bytes, |value, to| to.bytes(value), |from| from
    .bytes()
    .await);
everywhere!(BString, |value, to| to.bytes(value), |from| {
    Ok(Vec::from(from.bytes().await?).into())
});
everywhere!(StorePath, |value, to| to.path(value), |from| from
    .path()
    .await);
everywhere!(
    Option<StorePath>,
    |value, to| to.optional_path(value.as_ref()),
    |from| from.optional_path().await
);
everywhere!(HashPart, |value, to| to.string(value.as_str()), |from| {
    let parse = HashPart::parse;
    from.parse("the hash part of a path", MAX_NAME, parse).await
});
everywhere!(OutputName, |value, to| to.string(value.as_str()), |from| {
    from.parse("an output name", MAX_NAME, OutputName::parse)
        .await
});
everywhere!(Signature, |value, to| to.display(value), |from| {
    from.parse("a signature", MAX_SIGNATURE, Signature::parse)
        .await
});
everywhere!(ContentAddress, |value, to| to.display(value), |from| {
    from.parse("a content address", MAX_CONTENT_ADDRESS, str::parse)
        .await
});
everywhere!(
    Option<ContentAddress>,
    |value, to| match value {
        Some(address) => to.value(address)?,
        None => to.string(""),
    },
    |from| {
        let parse = |text: &str| match text {
            "" => Ok(None),
            text => text.parse().map(Some),
        };
        from.parse("a content address", MAX_CONTENT_ADDRESS, parse)
            .await
    }
);
everywhere!(MethodAlgorithm, |value, to| to.display(value), |from| {
    from.parse("a method with algorithm", MAX_CONTENT_ADDRESS, str::parse)
        .await
});
everywhere!(BuildMode, |value, to| to.u64(*value as u64), |from| {
    let known = |number| match number {
        0 => Some(BuildMode::Normal),
        1 => Some(BuildMode::Repair),
        2 => Some(BuildMode::Check),
        _ => None,
    };
    from.tag("build mode", known).await
});
everywhere!(BuildStatus, |value, to| to.u64(value.code()), |from| {
    from.tag("status of a build", BuildStatus::from_code).await
});
everywhere!(
    DrvOutput,
    |value, to| {
        check_build_trace(to.protocol())?;
        to.path(&value.drv);
        to.value(&value.output)?;
    },
    |from| {
        check_build_trace(from.protocol())?;
        let drv = from.path().await?;
        let output = from.value().await?;
        Ok(DrvOutput { drv, output })
    }
);
everywhere!(
    UnkeyedRealisation,
    |value, to| {
        check_build_trace(to.protocol())?;
        to.path(&value.out_path);
        to.value(&value.signatures)?;
    },
    |from| {
        check_build_trace(from.protocol())?;
        let out_path = from.path().await?;
        let signatures = read_signatures(from).await?;
        Ok(UnkeyedRealisation {
            out_path,
            signatures,
        })
    }
);
everywhere!(
    Realisation,
    |value, to| {
        to.value(&value.id)?;
        to.value(&value.value)?;
    },
    |from| {
        let id = from.value().await?;
        let value = from.value().await?;
        Ok(Realisation { id, value })
    }
);
everywhere!(
    legacy::LegacyDrvOutput,
    |value, to| to.display(value),
    |from| {
        from.parse("an id of an output", MAX_ID, |text| {
            legacy::LegacyDrvOutput::parse(text).map_err(|e| with_source(&e))
        })
        .await
    }
);
everywhere!(
    legacy::LegacyRealisation,
    |value, to| to.display(value.to_json()),
    |from| {
        let parse = |text: &str| legacy::LegacyRealisation::from_json(&json(text)?).map_err(say);
        from.parse("a realisation", MAX_REALISATION, parse).await
    }
);

impl<P: Protocol, T: Encode<P>> Encode<P> for Vec<T> {
    fn encode(&self, to: &mut Writer<P>) -> Result<(), WireError> {
        to.count(self.len());
        self.iter().try_for_each(|item| item.encode(to))
    }
}

impl<P: Protocol, T: Decode<P>> Decode<P> for Vec<T> {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, P>,
    ) -> Result<Self, WireError> {
        let count = from.count("the items of a list", size_of::<T>()).await?;
        let mut list = Vec::new();
        for _ in 0..count {
            list.push(from.value().await?);
        }
        Ok(list)
    }
}

impl<P: Protocol, T: Encode<P>> Encode<P> for BTreeSet<T> {
    fn encode(&self, to: &mut Writer<P>) -> Result<(), WireError> {
        to.count(self.len());
        self.iter().try_for_each(|item| item.encode(to))
    }
}

impl<P: Protocol, T: Decode<P> + Ord> Decode<P> for BTreeSet<T> {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, P>,
    ) -> Result<Self, WireError> {
        let count = from.count("the items of a set", size_of::<T>()).await?;
        let mut set = BTreeSet::new();
        for _ in 0..count {
            set.insert(from.value().await?);
        }
        Ok(set)
    }
}

/// Signatures of something that is known by more than them. Nix takes any text for one: those that are none
/// are passed over, so that they do not make the others, and all the rest, unreadable.
pub(crate) async fn read_signatures<R: AsyncRead + Unpin + Send, P: Protocol>(
    from: &mut WireReader<R, P>,
) -> Result<BTreeSet<Signature>, WireError> {
    let count = from.count("signatures", size_of::<Signature>()).await?;
    let mut signatures = BTreeSet::new();
    for _ in 0..count {
        let text = from.text("a signature", MAX_SIGNATURE as usize, MAX_SIGNATURE);
        signatures.extend(Signature::parse(&text.await?));
    }
    Ok(signatures)
}

impl<P: Protocol, K: Encode<P>, V: Encode<P>> Encode<P> for BTreeMap<K, V> {
    fn encode(&self, to: &mut Writer<P>) -> Result<(), WireError> {
        to.count(self.len());
        self.iter().try_for_each(|(key, value)| {
            key.encode(to)?;
            value.encode(to)
        })
    }
}

impl<P: Protocol, K: Decode<P> + Ord, V: Decode<P>> Decode<P> for BTreeMap<K, V> {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, P>,
    ) -> Result<Self, WireError> {
        let entry = size_of::<K>() + size_of::<V>();
        let count = from.count("the entries of a map", entry).await?;
        let mut map = BTreeMap::new();
        for _ in 0..count {
            let key = from.value().await?;
            map.insert(key, from.value().await?);
        }
        Ok(map)
    }
}

impl<P: Protocol, A: Encode<P>, B: Encode<P>> Encode<P> for (A, B) {
    fn encode(&self, to: &mut Writer<P>) -> Result<(), WireError> {
        self.0.encode(to)?;
        self.1.encode(to)
    }
}

impl<P: Protocol, A: Decode<P>, B: Decode<P>> Decode<P> for (A, B) {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, P>,
    ) -> Result<Self, WireError> {
        let first = from.value().await?;
        Ok((first, from.value().await?))
    }
}

impl<P: Protocol> Encode<P> for BasicDerivation {
    fn encode(&self, to: &mut Writer<P>) -> Result<(), WireError> {
        let dir = to.protocol().store_dir().clone();
        to.count(self.outputs.len());
        for (name, output) in &self.outputs {
            to.value(name)?;
            let texts = output
                .to_strings(&dir, &self.name, name)
                .map_err(|e| to.unsupported(e))?;
            texts.iter().for_each(|text| to.string(text));
        }
        to.value(&self.inputs)?;
        to.bytes(&self.platform);
        to.bytes(&self.builder);
        to.value(&self.args)?;
        to.value(&self.env)
    }
}

/// Reads the derivation that lies at `path`, from which it has its name.
pub(crate) async fn read_derivation<R: AsyncRead + Unpin + Send, P: Protocol>(
    from: &mut WireReader<R, P>,
    path: &StorePath,
) -> Result<BasicDerivation, WireError> {
    let name = path.name();
    let name = name.strip_suffix(".drv").unwrap_or(name).to_owned();
    let entry = size_of::<(OutputName, DerivationOutput)>();
    let count = from.count("the outputs of a derivation", entry).await?;
    let dir = from.dir().clone();
    let mut outputs = BTreeMap::new();
    for _ in 0..count {
        let output = from.value::<OutputName>().await?;
        let texts = [
            from.string().await?,
            from.string().await?,
            from.string().await?,
        ];
        let texts = texts.each_ref().map(String::as_str);
        let value = DerivationOutput::from_strings(&dir, &name, &output, texts)
            .map_err(|e| from.malformed(e))?;
        outputs.insert(output, value);
    }
    Ok(BasicDerivation {
        name,
        outputs,
        inputs: from.value().await?,
        platform: from.value().await?,
        builder: from.value().await?,
        args: from.value().await?,
        env: from.value().await?,
    })
}

/// Which parts of a build result there are.
#[derive(Clone, Copy)]
pub(crate) struct BuildResultForm {
    /// Times built, whether deterministic, start and stop.
    pub times: bool,
    /// The processor time that the build took, of the user and of the system.
    pub cpu: bool,
    /// Built outputs, in the form that the protocol has for realisations.
    pub outputs: bool,
}

pub(crate) fn write_build_result<P: Protocol>(
    result: &BuildResult,
    form: BuildResultForm,
    to: &mut Writer<P>,
) -> Result<(), WireError> {
    to.value(&result.status)?;
    to.string(&result.error);
    if form.times {
        to.u64(result.times_built.into());
        to.bool(result.non_deterministic);
        to.time(result.start)?;
        to.time(result.stop)?;
    }
    if form.cpu {
        write_duration(result.cpu_user, to)?;
        write_duration(result.cpu_system, to)?;
    }
    match (form.outputs, to.protocol().has_build_trace()) {
        (false, _) => {}
        (true, true) => to.value(&result.outputs)?,
        (true, false) => write_old_outputs(result, to),
    }
    Ok(())
}

pub(crate) async fn read_build_result<R: AsyncRead + Unpin + Send, P: Protocol>(
    from: &mut WireReader<R, P>,
    form: BuildResultForm,
) -> Result<BuildResult, WireError> {
    let mut result = BuildResult::new(from.value().await?);
    result.error = from
        .text("the error of a build", MAX_BUILD_ERROR, MAX_SKIPPED)
        .await?;
    if form.times {
        result.times_built = from.int("how often it was built").await?;
        result.non_deterministic = from.bool().await?;
        result.start = from.time().await?;
        result.stop = from.time().await?;
    }
    if form.cpu {
        result.cpu_user = read_duration(from).await?;
        result.cpu_system = read_duration(from).await?;
    }
    match (form.outputs, from.protocol().has_build_trace()) {
        (false, _) => {}
        (true, true) => result.outputs = from.value().await?,
        (true, false) => read_old_outputs(&mut result, from).await?,
    }
    Ok(result)
}

/// 0, or 1 and microseconds.
fn write_duration<P: Protocol>(
    time: Option<Duration>,
    to: &mut Writer<P>,
) -> Result<(), WireError> {
    to.bool(time.is_some());
    if let Some(time) = time {
        let micros = i64::try_from(time.as_micros())
            .map_err(|_| to.unsupported(format_args!("{} seconds", time.as_secs())))?;
        to.time(micros)?;
    }
    Ok(())
}

async fn read_duration<R: AsyncRead + Unpin + Send, P: Protocol>(
    from: &mut WireReader<R, P>,
) -> Result<Option<Duration>, WireError> {
    let known = |number| match number {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    };
    if !from.tag("mark of an optional time", known).await? {
        return Ok(None);
    }
    let micros = from.time().await?;
    Ok(Some(Duration::from_micros(micros.unsigned_abs())))
}

fn write_old_outputs<P: Protocol>(result: &BuildResult, to: &mut Writer<P>) {
    to.count(result.outputs.len());
    for (name, value) in &result.outputs {
        let output = name.clone();
        let id = match result.legacy_hash {
            Some(hash) => legacy::LegacyDrvOutput { hash, output }.to_string(),
            None => format!("sha256:{:064}!{output}", 0),
        };
        to.string(&id);
        to.display(json!({ "id": id, "outPath": value.out_path.as_str() }));
    }
}

async fn read_old_outputs<R: AsyncRead + Unpin + Send, P: Protocol>(
    result: &mut BuildResult,
    from: &mut WireReader<R, P>,
) -> Result<(), WireError> {
    let entry = size_of::<(OutputName, UnkeyedRealisation)>();
    let count = from.count("the outputs of a build", entry).await?;
    for _ in 0..count {
        let id = |id: &str| match id.split_once('!') {
            // Some servers have no hash to tell.
            Some((hash, name)) => Ok((
                Hash::parse_any(hash, None).ok(),
                OutputName::parse(name).map_err(say)?,
            )),
            None => Err("an id of an output without '!'".to_owned()),
        };
        let (hash, name) = from.parse("an id of an output", MAX_ID, id).await?;
        let known = |hash: &Hash| hash.as_bytes().iter().any(|byte| *byte != 0);
        result.legacy_hash = result.legacy_hash.or(hash.filter(known));
        let path = from
            .parse("a realisation", MAX_REALISATION, |text| {
                out_path(&json(text)?)
            })
            .await?;
        let output = UnkeyedRealisation::new(path);
        result.outputs.insert(name, output);
    }
    Ok(())
}

fn out_path(realisation: &Value) -> Result<StorePath, String> {
    let path = realisation["outPath"].as_str();
    StorePath::parse(path.ok_or("a realisation without outPath")?).map_err(say)
}

/// Writes the older form of a derived path.
pub(crate) fn write_old_derived_path<P: Protocol>(
    path: &DerivedPath,
    to: &mut Writer<P>,
) -> Result<(), WireError> {
    let dir = to.protocol().store_dir().clone();
    let inexpressible = |why: &str| {
        let path = path.display(&dir);
        Err(to.unsupported(format_args!("{path} ({why})")))
    };
    match path {
        DerivedPath::Opaque(path) if path.is_derivation() => {
            inexpressible("a derivation as a plain file")
        }
        DerivedPath::Opaque(path) => {
            to.path(path);
            Ok(())
        }
        DerivedPath::Built {
            drv: SingleDerivedPath::Built { .. },
            ..
        } => inexpressible("an output of an output"),
        DerivedPath::Built {
            drv: SingleDerivedPath::Opaque(drv),
            outputs: OutputsSpec::All,
        } if drv.is_derivation() => {
            to.path(drv);
            Ok(())
        }
        DerivedPath::Built {
            outputs: OutputsSpec::All,
            ..
        } => inexpressible("a derivation whose name does not end in .drv"),
        DerivedPath::Built { .. } => {
            to.display(path.display_legacy(&dir));
            Ok(())
        }
    }
}

/// Reads the older form of a derived path.
pub(crate) async fn read_old_derived_path<R: AsyncRead + Unpin + Send, P: Protocol>(
    from: &mut WireReader<R, P>,
) -> Result<DerivedPath, WireError> {
    match read_derived_path(from).await? {
        DerivedPath::Opaque(drv) if drv.is_derivation() => Ok(DerivedPath::Built {
            drv: SingleDerivedPath::Opaque(drv),
            outputs: OutputsSpec::All,
        }),
        DerivedPath::Built {
            drv: SingleDerivedPath::Opaque(drv),
            outputs: OutputsSpec::All,
        } if !drv.is_derivation() => Err(from.malformed("`^*` on a path that is not a derivation")),
        DerivedPath::Built {
            drv: SingleDerivedPath::Built { .. },
            ..
        } => Err(from.malformed("an output of an output, in the older form")),
        path => Ok(path),
    }
}

/// Reads the form with `!`.
pub(crate) async fn read_derived_path<R: AsyncRead + Unpin + Send, P: Protocol>(
    from: &mut WireReader<R, P>,
) -> Result<DerivedPath, WireError> {
    let dir = from.dir().clone();
    let parse = |text: &str| DerivedPath::parse_legacy(&dir, text);
    from.parse("a derived path", MAX_DERIVED_PATH, parse).await
}

/// Reads the texts that only people look at, in `Result`s of parsers.
fn say(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(say)
}

fn check_build_trace<P: Protocol>(protocol: &P) -> Result<(), WireError> {
    if protocol.has_build_trace() {
        return Ok(());
    }
    Err(WireError::Unsupported {
        what: "realisations keyed by the path of the derivation".to_owned(),
        protocol: protocol.describe(),
    })
}

/// The longest JSON of an older realisation, which names all it depends on.
pub(crate) const MAX_REALISATION: u64 = 1 << 20;

/// The longest derived path; its nesting is limited by [`tk_path`].
pub(crate) const MAX_DERIVED_PATH: u64 = 64 << 10;

/// The longest signature; nobody limits the name of its key.
pub(crate) const MAX_SIGNATURE: u64 = 4 << 10;

/// What is kept of the error of a build.
pub(crate) const MAX_BUILD_ERROR: usize = 1 << 20;

/// A text for people that is longer than this is refused, where otherwise its end would be dropped.
pub(crate) const MAX_SKIPPED: u64 = 64 << 20;

/// The longest content address: the longest hash in its longest form fits twice.
const MAX_CONTENT_ADDRESS: u64 = 512;

/// The longest id of an output, `sha256:<hex>!<output>`, in bytes.
const MAX_ID: u64 = 1024;

/// The longest name within a store path, and more.
const MAX_NAME: u64 = 256;
