//! What became of a build, as a daemon tells it.
//!
//! | JSON key | | Value |
//! |---|---|---|
//! | `success`, `status` | always | true or false; the name of a [`BuildStatus`] |
//! | `timesBuilt`, `startTime`, `stopTime` | always | a count; seconds since 1970, 0 is unknown |
//! | `cpuUser`, `cpuSystem` | if known | microseconds |
//! | `builtOutputs` | on success | output name → `{"outPath","signatures"}` |
//! | `errorMsg`, `isNonDeterministic` | on failure | text; true or false |
//! | `path` | [`KeyedBuildResult`] | the derived path that was asked for |

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tk_path::{DerivedPath, Hash, OutputName};

use crate::json::{JsonError, boolean, expected, number, parse, text};
use crate::realisation::{UnkeyedRealisation, legacy::LegacyDrvOutput};
use crate::text::shown;

/// How a build ended. `Display` and `FromStr` use Nix's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BuildStatus {
    /// The store built it.
    Built,
    /// It was fetched instead.
    Substituted,
    /// It was there already.
    AlreadyValid,
    /// The builder failed, and would fail again.
    PermanentFailure,
    /// The derivation makes no sense.
    InputRejected,
    /// The builder made something that must not be.
    OutputRejected,
    /// It may work the next time: no space, no network.
    TransientFailure,
    /// It is known to fail. Not used since Nix 2.
    CachedFailure,
    /// The builder took too long, or was silent for too long.
    TimedOut,
    /// It failed in a way that no other status describes.
    MiscFailure,
    /// Something that it needs failed.
    DependencyFailed,
    /// The builder wrote too much to its log.
    LogLimitExceeded,
    /// Built again, it was another.
    NotDeterministic,
    /// Its outputs are known and there.
    ResolvesToAlreadyValid,
    /// Nobody had it to fetch.
    NoSubstituters,
    /// A fixed output has another hash than it should have. Protocols know only
    /// [`OutputRejected`](BuildStatus::OutputRejected), so that this comes from JSON alone.
    HashMismatch,
}

impl BuildStatus {
    /// Every status, by number; the last has none of its own.
    pub const ALL: [BuildStatus; 16] = [
        BuildStatus::Built,
        BuildStatus::Substituted,
        BuildStatus::AlreadyValid,
        BuildStatus::PermanentFailure,
        BuildStatus::InputRejected,
        BuildStatus::OutputRejected,
        BuildStatus::TransientFailure,
        BuildStatus::CachedFailure,
        BuildStatus::TimedOut,
        BuildStatus::MiscFailure,
        BuildStatus::DependencyFailed,
        BuildStatus::LogLimitExceeded,
        BuildStatus::NotDeterministic,
        BuildStatus::ResolvesToAlreadyValid,
        BuildStatus::NoSubstituters,
        BuildStatus::HashMismatch,
    ];

    /// The number in protocols.
    pub const fn code(self) -> u64 {
        match self {
            BuildStatus::HashMismatch => BuildStatus::OutputRejected as u64,
            other => other as u64,
        }
    }

    /// The status of that number in protocols.
    pub fn from_code(code: u64) -> Option<BuildStatus> {
        let statuses = BuildStatus::ALL.into_iter();
        let mut own = statuses.filter(|s| *s != BuildStatus::HashMismatch);
        own.find(|status| status.code() == code)
    }

    /// Whether all outputs that were asked for are there.
    pub const fn is_success(self) -> bool {
        matches!(
            self,
            BuildStatus::Built
                | BuildStatus::Substituted
                | BuildStatus::AlreadyValid
                | BuildStatus::ResolvesToAlreadyValid
        )
    }

    /// Nix's name, such as `PermanentFailure`.
    pub const fn name(self) -> &'static str {
        match self {
            BuildStatus::Built => "Built",
            BuildStatus::Substituted => "Substituted",
            BuildStatus::AlreadyValid => "AlreadyValid",
            BuildStatus::PermanentFailure => "PermanentFailure",
            BuildStatus::InputRejected => "InputRejected",
            BuildStatus::OutputRejected => "OutputRejected",
            BuildStatus::TransientFailure => "TransientFailure",
            BuildStatus::CachedFailure => "CachedFailure",
            BuildStatus::TimedOut => "TimedOut",
            BuildStatus::MiscFailure => "MiscFailure",
            BuildStatus::DependencyFailed => "DependencyFailed",
            BuildStatus::LogLimitExceeded => "LogLimitExceeded",
            BuildStatus::NotDeterministic => "NotDeterministic",
            BuildStatus::ResolvesToAlreadyValid => "ResolvesToAlreadyValid",
            BuildStatus::NoSubstituters => "NoSubstituters",
            BuildStatus::HashMismatch => "HashMismatch",
        }
    }
}

impl fmt::Display for BuildStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for BuildStatus {
    type Err = UnknownBuildStatus;

    fn from_str(name: &str) -> Result<Self, UnknownBuildStatus> {
        let mut all = BuildStatus::ALL.into_iter();
        all.find(|status| status.name() == name)
            .ok_or_else(|| UnknownBuildStatus(shown(name)))
    }
}

/// A name that no [`BuildStatus`] has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a status of a build")]
pub struct UnknownBuildStatus(String);

/// What became of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildResult {
    /// How the build ended.
    pub status: BuildStatus,
    /// Why it failed, in the builder's words; empty on success.
    pub error: String,
    /// How often it was built.
    pub times_built: u32,
    /// Whether builds are known to differ. False is no proof that they do not.
    pub non_deterministic: bool,
    /// When it began, in seconds since 1970; 0 is unknown.
    pub start: i64,
    /// When it ended, in seconds since 1970; 0 is unknown.
    pub stop: i64,
    /// Processor time of the builder itself, if known.
    pub cpu_user: Option<Duration>,
    /// Processor time that the system spent for it, if known.
    pub cpu_system: Option<Duration>,
    /// What was asked for, on success. The outputs of a daemon before protocol 1.28 are not known; without
    /// `realisation-with-path-not-hash` nobody vouches for them.
    pub outputs: BTreeMap<OutputName, UnkeyedRealisation>,
    /// The hash modulo of the derivation, under which the older form of realisations knows its outputs; only
    /// protocols that have that form tell it. Nix registers what it has built elsewhere under it.
    pub legacy_hash: Option<Hash>,
}

impl BuildResult {
    /// A result of which nothing else is known.
    pub fn new(status: BuildStatus) -> BuildResult {
        BuildResult {
            status,
            error: String::new(),
            times_built: 0,
            non_deterministic: false,
            start: 0,
            stop: 0,
            cpu_user: None,
            cpu_system: None,
            outputs: BTreeMap::new(),
            legacy_hash: None,
        }
    }

    /// Whether all outputs that were asked for are there.
    pub fn is_success(&self) -> bool {
        self.status.is_success()
    }

    /// As JSON, see the [module](self). What the status has no key for is left out.
    pub fn to_json(&self) -> Value {
        let mut value = json!({
            "success": self.is_success(),
            "status": self.status.name(),
            "timesBuilt": self.times_built,
            "startTime": self.start,
            "stopTime": self.stop,
        });
        for (key, time) in [("cpuUser", self.cpu_user), ("cpuSystem", self.cpu_system)] {
            if let Some(time) = time {
                value[key] = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).into();
            }
        }
        if self.is_success() {
            let outputs = self.outputs.iter();
            let outputs = outputs.map(|(name, value)| (name.to_string(), value.to_json()));
            value["builtOutputs"] = outputs.collect::<Map<_, _>>().into();
        } else {
            value["errorMsg"] = self.error.as_str().into();
            value["isNonDeterministic"] = self.non_deterministic.into();
        }
        value
    }

    /// Reads what [`BuildResult::to_json`] writes. Only `success` and `status` must be there, and on failure `errorMsg`;
    /// realisations of the older form are read too.
    pub fn from_json(value: &Value) -> Result<BuildResult, JsonError> {
        let object = value
            .as_object()
            .ok_or_else(|| at("", expected("an object", value)))?;
        let status = required(object, "status", |v| parse(text(v)?.parse::<BuildStatus>()))?;
        if required(object, "success", boolean)? != status.is_success() {
            return Err(at(
                "success",
                format!("is at odds with the status {status}"),
            ));
        }
        let mut result = BuildResult::new(status);
        result.times_built = optional(object, "timesBuilt", small)?.unwrap_or(0);
        result.start = optional(object, "startTime", seconds)?.unwrap_or(0);
        result.stop = optional(object, "stopTime", seconds)?.unwrap_or(0);
        result.cpu_user = optional(object, "cpuUser", microseconds)?;
        result.cpu_system = optional(object, "cpuSystem", microseconds)?;
        if status.is_success() {
            result.outputs = optional(object, "builtOutputs", outputs)?.unwrap_or_default();
            result.legacy_hash = object.get("builtOutputs").and_then(legacy_hash);
        } else {
            result.error = required(object, "errorMsg", text)?.to_owned();
            let differs = optional(object, "isNonDeterministic", boolean)?;
            result.non_deterministic = differs.unwrap_or(false);
        }
        Ok(result)
    }
}

/// What became of one of the paths that were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyedBuildResult {
    /// The path, as it was asked for.
    pub path: DerivedPath,
    /// What became of it.
    pub result: BuildResult,
}

impl KeyedBuildResult {
    /// As [`BuildResult::to_json`], with `path`.
    pub fn to_json(&self) -> Value {
        let mut value = self.result.to_json();
        value["path"] = self.path.to_json();
        value
    }

    /// Reads what [`KeyedBuildResult::to_json`] writes.
    pub fn from_json(value: &Value) -> Result<KeyedBuildResult, JsonError> {
        let result = BuildResult::from_json(value)?;
        let path = value
            .get("path")
            .ok_or_else(|| at("path", "is missing".into()))?;
        let path = parse(DerivedPath::from_json(path)).map_err(|what| at("path", what))?;
        Ok(KeyedBuildResult { path, result })
    }
}

/// The exit status of a program that was to build all of these, as `nix build` has it: 0 if all is there; 1 for failures
/// of no certain kind; else 96 and of these what applies:
///
/// | Bit | |
/// |---|---|
/// | 4 | a permanent failure, rejected input, a timeout or a hash mismatch |
/// | 1 | a timeout |
/// | 2 | a hash mismatch |
/// | 8 | not deterministic |
pub fn exit_status<'a>(results: impl IntoIterator<Item = &'a BuildResult>) -> u8 {
    let failed = results.into_iter().filter(|result| !result.is_success());
    let bits = failed.map(|result| match result.status {
        BuildStatus::PermanentFailure | BuildStatus::InputRejected => 0x64,
        BuildStatus::TimedOut => 0x65,
        BuildStatus::HashMismatch => 0x66,
        BuildStatus::NotDeterministic => 0x68,
        _ => 0,
    });
    match bits.reduce(|all, bits| all | bits) {
        None => 0,
        Some(0) => 1,
        Some(bits) => bits,
    }
}

fn outputs(value: &Value) -> Result<BTreeMap<OutputName, UnkeyedRealisation>, String> {
    let map = value
        .as_object()
        .ok_or_else(|| expected("an object", value))?;
    let entries = map.iter().map(|(name, value)| {
        let name = parse(OutputName::parse(name))?;
        Ok((name, parse(UnkeyedRealisation::from_json(value))?))
    });
    entries.collect()
}

/// The hash in the ids of realisations of the older form; zeros stand for one that is not known.
fn legacy_hash(outputs: &Value) -> Option<Hash> {
    let ids = outputs.as_object()?.values();
    let ids = ids.filter_map(|value| LegacyDrvOutput::parse(value.get("id")?.as_str()?).ok());
    let mut hashes = ids.map(|id| id.hash);
    hashes.find(|hash| hash.as_bytes().iter().any(|byte| *byte != 0))
}

fn required<'a, T>(
    object: &'a Map<String, Value>,
    key: &'static str,
    read: impl FnOnce(&'a Value) -> Result<T, String>,
) -> Result<T, JsonError> {
    optional(object, key, read)?.ok_or_else(|| at(key, "is missing".into()))
}

fn optional<'a, T>(
    object: &'a Map<String, Value>,
    key: &'static str,
    read: impl FnOnce(&'a Value) -> Result<T, String>,
) -> Result<Option<T>, JsonError> {
    let found = object.get(key).filter(|value| !value.is_null());
    found
        .map(|value| read(value).map_err(|what| at(key, what)))
        .transpose()
}

fn small(value: &Value) -> Result<u32, String> {
    number(value)?
        .try_into()
        .map_err(|_| format!("{value} is too large"))
}

fn seconds(value: &Value) -> Result<i64, String> {
    value
        .as_i64()
        .ok_or_else(|| expected("a time in seconds", value))
}

fn microseconds(value: &Value) -> Result<Duration, String> {
    number(value).map(Duration::from_micros)
}

fn at(key: &'static str, what: String) -> JsonError {
    let of = "build result";
    JsonError { of, key, what }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary;
    use proptest::prelude::*;
    use tk_path::StorePath;

    const OUT: &str = "g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo";

    fn built() -> BuildResult {
        let path = StorePath::parse(OUT).unwrap();
        BuildResult {
            times_built: 1,
            start: 30,
            stop: 50,
            cpu_user: Some(Duration::from_micros(7)),
            outputs: [(OutputName::out(), UnkeyedRealisation::new(path))].into(),
            ..BuildResult::new(BuildStatus::Built)
        }
    }

    fn failed() -> BuildResult {
        BuildResult {
            error: "no idea why".into(),
            non_deterministic: true,
            ..BuildResult::new(BuildStatus::NotDeterministic)
        }
    }

    #[test]
    fn statuses() {
        for (i, status) in BuildStatus::ALL.into_iter().enumerate() {
            assert_eq!(status.to_string().parse(), Ok(status));
            match status {
                BuildStatus::HashMismatch => assert_eq!(status.code(), 5),
                _ => {
                    assert_eq!(status.code(), i as u64);
                    assert_eq!(BuildStatus::from_code(i as u64), Some(status));
                }
            }
        }
        for code in [15, 256, u64::MAX] {
            assert_eq!(BuildStatus::from_code(code), None);
        }
        let good = BuildStatus::ALL.into_iter().filter(|s| s.is_success());
        assert_eq!(
            good.map(BuildStatus::code).collect::<Vec<_>>(),
            [0, 1, 2, 13]
        );
        assert!("built".parse::<BuildStatus>().is_err());
    }

    #[test]
    fn shapes() {
        let value = json!({
            "builtOutputs": { "out": { "outPath": OUT, "signatures": [] } },
            "cpuUser": 7,
            "startTime": 30,
            "status": "Built",
            "stopTime": 50,
            "success": true,
            "timesBuilt": 1,
        });
        assert_eq!(built().to_json(), value);
        assert_eq!(BuildResult::from_json(&value), Ok(built()));
        let value = json!({
            "errorMsg": "no idea why",
            "isNonDeterministic": true,
            "startTime": 0,
            "status": "NotDeterministic",
            "stopTime": 0,
            "success": false,
            "timesBuilt": 0,
        });
        assert_eq!(failed().to_json(), value);
        assert_eq!(BuildResult::from_json(&value), Ok(failed()));
        let short = json!({ "success": true, "status": "AlreadyValid" });
        let short = BuildResult::from_json(&short).unwrap();
        assert_eq!(short, BuildResult::new(BuildStatus::AlreadyValid));
    }

    #[test]
    fn keyed_by_what_was_asked_for() {
        let path = DerivedPath::Opaque(StorePath::parse(OUT).unwrap());
        let keyed = KeyedBuildResult {
            path,
            result: built(),
        };
        let value = keyed.to_json();
        assert_eq!(value["path"], json!(OUT));
        assert_eq!(KeyedBuildResult::from_json(&value), Ok(keyed));
        let error = KeyedBuildResult::from_json(&built().to_json()).unwrap_err();
        assert_eq!(error.key, "path");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (mut bad, key, value) in [
            (built(), "status", json!("Build")),
            (built(), "status", Value::Null),
            (built(), "success", json!(false)),
            (built(), "success", json!(1)),
            (built(), "timesBuilt", json!(1u64 << 32)),
            (built(), "startTime", json!("now")),
            (built(), "cpuUser", json!(-1)),
            (built(), "builtOutputs", json!([])),
            (built(), "builtOutputs", json!({ "a b": {} })),
            (built(), "builtOutputs", json!({ "out": {} })),
            (failed(), "errorMsg", Value::Null),
            (failed(), "isNonDeterministic", json!("no")),
        ]
        .map(|(result, key, value)| (result.to_json(), key, value))
        {
            bad[key] = value;
            let error = BuildResult::from_json(&bad).unwrap_err();
            assert_eq!(error.key, key, "{error}");
        }
        assert!(BuildResult::from_json(&json!([])).is_err());
    }

    #[test]
    fn exit_statuses() {
        use BuildStatus::*;
        for (statuses, expected) in [
            (&[][..], 0),
            (&[Built, AlreadyValid], 0),
            (&[Built, MiscFailure], 1),
            (&[DependencyFailed, TransientFailure], 1),
            (&[PermanentFailure, DependencyFailed], 100),
            (&[InputRejected], 100),
            (&[TimedOut], 101),
            (&[HashMismatch], 102),
            (&[HashMismatch, TimedOut], 103),
            (&[NotDeterministic], 104),
            (&[NotDeterministic, PermanentFailure], 108),
        ] {
            let results: Vec<_> = statuses.iter().copied().map(BuildResult::new).collect();
            assert_eq!(exit_status(&results), expected, "{statuses:?}");
        }
    }

    proptest! {
        #[test]
        fn any_comes_back(result in arbitrary::build_result()) {
            let text = result.to_json().to_string();
            let value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(BuildResult::from_json(&value), Ok(result));
        }
    }
}
