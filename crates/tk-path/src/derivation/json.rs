//! Derivations as JSON.
//!
//! ```text
//! version   1           2            3              4
//! of Nix    to 2.17     to 2.31      2.32           since 2.33
//! version   no          no           3              4
//! name      no          yes          yes            yes
//! paths     full        full         base names     base names
//! inputs    inputSrcs, inputDrvs ------------->     inputs: {srcs, drvs}, or a list when all are paths
//!   of drv  [output]    {"outputs": [output], "dynamicOutputs": {output: same}} ------------------>
//! fixed     path, hash, path, hash,  hash, method,  hash (SRI), method
//!           hashAlgo    method, hashAlgo  hashAlgo
//! floating  hashAlgo    method, hashAlgo -------------------------------------------------------->
//! impure    hashAlgo,   method, hashAlgo, impure: true ------------------------------------------>
//!           impure
//! others    {"path"}, {} ------------------------------------------------------------------------>
//! __json    in env      in env       structuredAttrs: the object, and not in env ---------------->
//! ```
//! In all: `system`, `builder`, `args`, `env`. `hash` is hex in versions 1 to 3; the `hashAlgo` of version 1 has the
//! method in front (`r:sha256`), the others' does not. Nix 2.18 to 2.21 mixed 1 and 2; 2.31 had `structuredAttrs` in 2.
//!
//! Version 4 is read, in it the output by its exact set of keys; other keys that are unknown are passed over, as Nix
//! does. Texts that are not UTF-8 have no JSON. Mirrors `derivation/json.cc`.

use std::collections::{BTreeMap, BTreeSet};

use bstr::{BString, ByteSlice};
use serde_json::{Map, Value, json};

use super::sealed::Sealed;
use super::{
    Derivation, DerivationError, DerivationErrorKind as Kind, DerivationInputs, DerivationOutput,
    InputOutputs, Inputs, STRUCTURED_ATTRS,
};
use crate::derived_path::MAX_DEPTH;
use crate::text::clip;
use crate::{
    Algorithm, ContentAddress, Encoding, Hash, Method, MethodAlgorithm, OutputName, StoreDir,
    StorePath,
};

/// A shape of the JSON of derivations; the numbers are Nix's, which wrote them down from 3 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DerivationJsonVersion {
    /// Up to Nix 2.17.
    V1,
    /// Up to Nix 2.31.
    V2,
    /// The shape of Nix 2.32 alone.
    V3,
    /// The shape of Nix 2.33 and later, the only one that is read.
    V4,
}

impl<I: DerivationInputs> Derivation<I> {
    /// The JSON in the shape `version`. An error when a text in it is not UTF-8.
    pub fn to_json(
        &self,
        dir: &StoreDir,
        version: DerivationJsonVersion,
    ) -> Result<Value, DerivationError> {
        let mut object = Map::new();
        let mut put = |key: &str, value: Value| object.insert(key.to_owned(), value);
        if version >= DerivationJsonVersion::V2 {
            put("name", self.name.as_str().into());
        }
        let outputs = self.outputs.iter().map(|(name, output)| {
            let value = self.output_json(dir, version, name, output)?;
            Ok((name.to_string(), value))
        });
        put("outputs", outputs.collect::<Result<_, _>>()?);
        match version {
            DerivationJsonVersion::V4 => drop(put("inputs", self.inputs.to_json())),
            older => {
                let path = |path: &StorePath| older.path(dir, path);
                put("inputSrcs", self.inputs.srcs().iter().map(path).collect());
                let drvs = self.inputs.drvs().iter();
                let drvs = drvs.map(|(drv, node)| (path(drv), older.node(node)));
                put("inputDrvs", drvs.collect());
            }
        }
        put("system", self.text("its platform", &self.platform)?.into());
        put("builder", self.text("its builder", &self.builder)?.into());
        let args = self.args.iter().map(|arg| self.text("an argument", arg));
        put("args", args.collect::<Result<_, _>>()?);
        put("env", self.env_json(version)?);
        if version >= DerivationJsonVersion::V3 {
            put(
                "version",
                if version == DerivationJsonVersion::V3 {
                    3
                } else {
                    4
                }
                .into(),
            );
            if let Some(text) = self.structured_attrs() {
                put("structuredAttrs", self.attributes(text)?);
            }
        }
        Ok(Value::Object(object))
    }

    /// Reads version 4. Whether the outputs go with the rest, [`Derivation::check_outputs`] tells.
    pub fn from_json(value: &Value) -> Result<Derivation<I>, DerivationError> {
        let name = value["name"].as_str().unwrap_or_default();
        read(value).map_err(|kind| DerivationError::new(name, kind))
    }

    fn output_json(
        &self,
        dir: &StoreDir,
        version: DerivationJsonVersion,
        name: &OutputName,
        output: &DerivationOutput,
    ) -> Result<Value, DerivationError> {
        if version == DerivationJsonVersion::V4 {
            return Ok(output.to_json());
        }
        let method = |method: MethodAlgorithm| match version {
            DerivationJsonVersion::V1 => json!({"hashAlgo": method.to_aterm()}),
            _ => method_json(method),
        };
        let mut value = match output {
            DerivationOutput::InputAddressed(path) => json!({"path": version.path(dir, path)}),
            DerivationOutput::Deferred => json!({}),
            DerivationOutput::Floating(of) => method(*of),
            DerivationOutput::Impure(of) => method(*of),
            DerivationOutput::Fixed(ca) => method(ca.method_algorithm()),
        };
        match output {
            DerivationOutput::Impure(_) => value["impure"] = true.into(),
            DerivationOutput::Fixed(ca) => {
                value["hash"] = ca.hash.digits(Encoding::Base16).into();
                let path = output.path(dir, &self.name, name);
                let path = path.map_err(|error| self.error((name.clone(), error)))?;
                if let Some(path) = path.filter(|_| version < DerivationJsonVersion::V3) {
                    value["path"] = dir.path(&path).into();
                }
            }
            _ => {}
        }
        Ok(value)
    }

    fn env_json(&self, version: DerivationJsonVersion) -> Result<Value, DerivationError> {
        let apart = version >= DerivationJsonVersion::V3;
        let entries = self.env.iter();
        let entries = entries.filter(|(name, _)| !(apart && **name == STRUCTURED_ATTRS));
        let pair = |(name, value): (&BString, &BString)| {
            let name = self.text("the name of a variable", name)?;
            let value = self.text(&format!("the variable {name}"), value)?;
            Ok((name, value))
        };
        entries.map(pair).collect()
    }

    fn attributes(&self, text: &BString) -> Result<Value, DerivationError> {
        match serde_json::from_slice(text) {
            Ok(value @ Value::Object(_)) => Ok(value),
            Ok(_) => Err(self.error(Kind::Attributes("they are not an object".into()))),
            Err(error) => Err(self.error(Kind::Attributes(error.to_string()))),
        }
    }

    fn text(&self, what: &str, bytes: &BString) -> Result<String, DerivationError> {
        match bytes.to_str() {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.error(Kind::NotUtf8(clip(what).into()))),
        }
    }
}

impl DerivationJsonVersion {
    fn path(self, dir: &StoreDir, path: &StorePath) -> String {
        if self < DerivationJsonVersion::V3 {
            dir.path(path)
        } else {
            path.to_string()
        }
    }

    fn node(self, node: &InputOutputs) -> Value {
        match self {
            DerivationJsonVersion::V1 => node.outputs.iter().map(OutputName::as_str).collect(),
            _ => node_json(node),
        }
    }
}

impl DerivationOutput {
    /// The JSON of version 4.
    pub fn to_json(&self) -> Value {
        match self {
            DerivationOutput::InputAddressed(path) => json!({"path": path.as_str()}),
            DerivationOutput::Fixed(ca) => {
                json!({"hash": ca.hash.to_text(Encoding::Sri), "method": ca.method.name()})
            }
            DerivationOutput::Floating(method) => method_json(*method),
            DerivationOutput::Deferred => json!({}),
            DerivationOutput::Impure(method) => {
                let mut value = method_json(*method);
                value["impure"] = true.into();
                value
            }
        }
    }

    /// Reads the JSON of version 4.
    pub fn from_json(value: &Value) -> Result<DerivationOutput, Kind> {
        read_output(value)
    }
}

fn method_json(method: MethodAlgorithm) -> Value {
    json!({"method": method.method.name(), "hashAlgo": method.algorithm.name()})
}

fn node_json(node: &InputOutputs) -> Value {
    let dynamic = node.dynamic.iter();
    let dynamic: Map<_, _> = dynamic
        .map(|(name, node)| (name.to_string(), node_json(node)))
        .collect();
    let outputs: Value = node.outputs.iter().map(OutputName::as_str).collect();
    json!({"outputs": outputs, "dynamicOutputs": dynamic})
}

impl Sealed for Inputs {
    fn to_json(&self) -> Value {
        let drvs = self.drvs.iter();
        let drvs: Map<_, _> = drvs
            .map(|(drv, node)| (drv.to_string(), node_json(node)))
            .collect();
        json!({"srcs": self.srcs.to_json(), "drvs": drvs})
    }

    fn from_json(value: &Value) -> Result<Self, Kind> {
        let drvs = object(field(value, "drvs")?, "drvs")?.iter();
        let drv = |(drv, node): (&String, &Value)| {
            Ok::<_, Kind>((StorePath::parse(drv)?, read_node(drv, node, MAX_DEPTH)?))
        };
        Ok(Inputs {
            srcs: BTreeSet::from_json(field(value, "srcs")?)?,
            drvs: drvs.map(drv).collect::<Result<_, _>>()?,
        })
    }
}

impl Sealed for BTreeSet<StorePath> {
    fn to_json(&self) -> Value {
        self.iter().map(StorePath::as_str).collect()
    }

    fn from_json(value: &Value) -> Result<Self, Kind> {
        let path = |path| Ok(StorePath::parse(text(path, "an input")?)?);
        array(value, "inputs")?.iter().map(path).collect()
    }
}

fn read<I: DerivationInputs>(value: &Value) -> Result<Derivation<I>, Kind> {
    let version = field(value, "version")?;
    if *version != 4 {
        return wrong(format!("it has version {version}, but only 4 can be read"));
    }
    let name = text(field(value, "name")?, "name")?;
    super::check_name(name)?;
    let output = |(name, output): (&String, &Value)| {
        let name = OutputName::parse(name)?;
        Ok::<_, Kind>((name, read_output(output)?))
    };
    let outputs = object(field(value, "outputs")?, "outputs")?.iter();
    let variable = |(name, value): (&String, &Value)| {
        Ok::<_, Kind>((BString::from(name.as_str()), bytes(value, "a variable")?))
    };
    let env = object(field(value, "env")?, "env")?.iter();
    let args = array(field(value, "args")?, "args")?.iter();
    let mut drv = Derivation {
        name: name.to_owned(),
        outputs: outputs.map(output).collect::<Result<_, _>>()?,
        inputs: I::from_json(field(value, "inputs")?)?,
        platform: bytes(field(value, "system")?, "system")?,
        builder: bytes(field(value, "builder")?, "builder")?,
        args: args
            .map(|arg| bytes(arg, "an argument"))
            .collect::<Result<_, _>>()?,
        env: env.map(variable).collect::<Result<BTreeMap<_, _>, _>>()?,
    };
    if let Some(attributes) = value.get("structuredAttrs") {
        object(attributes, "structuredAttrs")?;
        match drv.structured_attrs() {
            None => {
                let text = super::json_text::compact(attributes);
                drv.env.insert(STRUCTURED_ATTRS.into(), text.into());
            }
            // Both, as some versions wrote it. The text is what the derivation has.
            Some(text) if is_json(text, attributes) => {}
            Some(_) => {
                return wrong(format!(
                    "it has structuredAttrs and a variable {STRUCTURED_ATTRS} that says otherwise"
                ));
            }
        }
    }
    Ok(drv)
}

/// Whether `text` is the JSON of `value`.
fn is_json(text: &[u8], value: &Value) -> bool {
    serde_json::from_slice::<Value>(text).is_ok_and(|parsed| parsed == *value)
}

fn read_output(value: &Value) -> Result<DerivationOutput, Kind> {
    let object = object(value, "an output")?;
    let mut keys: Vec<&str> = object.keys().map(String::as_str).collect();
    keys.sort_unstable();
    let get = |key: &str| text(&object[key], key);
    let method = || {
        Ok::<_, Kind>(MethodAlgorithm {
            method: named::<Method>(get("method")?)?,
            algorithm: named::<Algorithm>(get("hashAlgo")?)?,
        })
    };
    match &keys[..] {
        [] => Ok(DerivationOutput::Deferred),
        ["path"] => Ok(DerivationOutput::InputAddressed(StorePath::parse(get(
            "path",
        )?)?)),
        ["hash", "method"] => Ok(DerivationOutput::Fixed(ContentAddress {
            method: named(get("method")?)?,
            hash: Hash::parse_sri(get("hash")?).map_err(|e| Kind::Json(e.to_string()))?,
        })),
        ["hashAlgo", "method"] => Ok(DerivationOutput::Floating(method()?)),
        ["hashAlgo", "impure", "method"] => Ok(DerivationOutput::Impure(method()?)),
        _ => wrong(format!(
            "no output has exactly the keys {}",
            clip(&keys.join(", "))
        )),
    }
}

fn read_node(whose: &str, value: &Value, depth: usize) -> Result<InputOutputs, Kind> {
    let depth = depth.checked_sub(1).ok_or(Kind::Depth)?;
    let output = |name| Ok(OutputName::parse(text(name, "an output")?)?);
    let outputs = array(field(value, "outputs")?, "outputs")?.iter();
    let outputs = outputs.map(output).collect::<Result<BTreeSet<_>, Kind>>()?;
    let inner = |(name, node): (&String, &Value)| {
        let node = read_node(name, node, depth)?;
        Ok::<_, Kind>((OutputName::parse(name)?, node))
    };
    let dynamic = object(field(value, "dynamicOutputs")?, "dynamicOutputs")?.iter();
    let dynamic = dynamic.map(inner).collect::<Result<BTreeMap<_, _>, _>>()?;
    if outputs.is_empty() && dynamic.is_empty() {
        Err(Kind::NoInputOutputs(clip(whose).into()))
    } else {
        Ok(InputOutputs { outputs, dynamic })
    }
}

fn field<'a>(value: &'a Value, key: &str) -> Result<&'a Value, Kind> {
    value
        .get(key)
        .ok_or_else(|| Kind::Json(format!("{key} is missing")))
}

fn object<'a>(value: &'a Value, what: &str) -> Result<&'a Map<String, Value>, Kind> {
    value
        .as_object()
        .ok_or_else(|| Kind::Json(format!("{what} must be an object")))
}

fn array<'a>(value: &'a Value, what: &str) -> Result<&'a Vec<Value>, Kind> {
    value
        .as_array()
        .ok_or_else(|| Kind::Json(format!("{what} must be an array")))
}

fn text<'a>(value: &'a Value, what: &str) -> Result<&'a str, Kind> {
    value
        .as_str()
        .ok_or_else(|| Kind::Json(format!("{what} must be a text")))
}

fn bytes(value: &Value, what: &str) -> Result<BString, Kind> {
    Ok(text(value, what)?.into())
}

fn named<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Kind> {
    text.parse()
        .map_err(|error: T::Err| Kind::Json(error.to_string()))
}

fn wrong<T>(why: String) -> Result<T, Kind> {
    Err(Kind::Json(why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BasicDerivation;
    use proptest::prelude::*;

    const V4: &str = r#"{"name":"x","version":4,"outputs":{"dev":{"hashAlgo":"sha1","method":"flat"},"out":{"hashAlgo":"sha256","impure":true,"method":"nar"}},
        "inputs":{"srcs":["c015dhfh5l0lp6wxyvdn7bmwhbbr6hr9-a"],"drvs":{"c015dhfh5l0lp6wxyvdn7bmwhbbr6hr9-d.drv":{"outputs":["out"],"dynamicOutputs":{"out":{"outputs":["a"],"dynamicOutputs":{}}}}}},
        "system":"p","builder":"b","args":["1","2"],"env":{"a":"b"},"structuredAttrs":{"b":1.5,"a":[]}}"#;

    fn read(text: &str) -> Result<Derivation, DerivationError> {
        Derivation::from_json(&serde_json::from_str(text).expect("JSON"))
    }

    #[test]
    fn shapes() {
        let drv = read(V4).expect("derivation");
        let dir = StoreDir::default();
        let shape = |version| drv.to_json(&dir, version).expect("JSON");
        assert_eq!(
            shape(DerivationJsonVersion::V4),
            serde_json::from_str::<Value>(V4).expect("JSON")
        );
        assert_eq!(
            drv.structured_attrs().map(|t| t.to_string()),
            Some(r#"{"a":[],"b":1.5}"#.into())
        );
        // Attributes and their text, which stays as it is.
        let mut both: Value = serde_json::from_str(V4).expect("JSON");
        let text = r#"{ "b":1.5, "a":[] }"#;
        both["env"]["__json"] = text.into();
        let both: Derivation = Derivation::from_json(&both).expect("derivation");
        assert_eq!(
            both.structured_attrs().map(|t| &***t),
            Some(text.as_bytes())
        );
        let full = "/nix/store/c015dhfh5l0lp6wxyvdn7bmwhbbr6hr9-d.drv";
        let node = shape(DerivationJsonVersion::V4)["inputs"]["drvs"][&full[11..]].clone();
        let env = json!({"a": "b", "__json": r#"{"a":[],"b":1.5}"#});
        let (v1, v2, v3) = (
            shape(DerivationJsonVersion::V1),
            shape(DerivationJsonVersion::V2),
            shape(DerivationJsonVersion::V3),
        );
        assert_eq!(v1["inputDrvs"], json!({full: ["out"]}));
        assert_eq!(
            v1["outputs"],
            json!({"dev": {"hashAlgo": "sha1"}, "out": {"hashAlgo": "r:sha256", "impure": true}})
        );
        assert_eq!(
            (&v1["env"], &v1["name"], &v1["version"]),
            (&env, &Value::Null, &Value::Null)
        );
        assert_eq!(v2["inputDrvs"], json!({full: node}));
        assert_eq!(
            (&v2["env"], &v2["name"], &v2["version"]),
            (&env, &json!("x"), &Value::Null)
        );
        assert_eq!(
            v2["outputs"]["out"],
            json!({"hashAlgo": "sha256", "method": "nar", "impure": true})
        );
        assert_eq!(v3["inputDrvs"], json!({&full[11..]: node}));
        assert_eq!(
            v3["inputSrcs"],
            json!(["c015dhfh5l0lp6wxyvdn7bmwhbbr6hr9-a"])
        );
        assert_eq!(
            (&v3["env"], &v3["version"]),
            (&json!({"a": "b"}), &json!(3))
        );
        assert_eq!(v3["structuredAttrs"], json!({"a": [], "b": 1.5}));
    }

    #[test]
    fn fixed_outputs_in_all_shapes() {
        let out = OutputName::out();
        let path = "/nix/store/i00sflxqsj37lfmf95m8mn0grv615hpj-source";
        let hex = "894517c9163c896ec31a2adbd33c0681fd5f45b2c0ef08a64c92a03fb97f390f";
        let dir = StoreDir::default();
        let fixed = DerivationOutput::from_strings(&dir, "source", &out, [path, "r:sha256", hex]);
        let mut drv = read(V4).expect("derivation");
        drv.name = "source".into();
        drv.outputs = [(out, fixed.expect("output"))].into();
        for (version, shape) in [
            (
                DerivationJsonVersion::V1,
                json!({"path": path, "hash": hex, "hashAlgo": "r:sha256"}),
            ),
            (
                DerivationJsonVersion::V2,
                json!({"path": path, "hash": hex, "hashAlgo": "sha256", "method": "nar"}),
            ),
            (
                DerivationJsonVersion::V3,
                json!({"hash": hex, "hashAlgo": "sha256", "method": "nar"}),
            ),
            (
                DerivationJsonVersion::V4,
                json!({"hash": "sha256-iUUXyRY8iW7DGirb0zwGgf1fRbLA7wimTJKgP7l/OQ8=", "method": "nar"}),
            ),
        ] {
            let json = drv.to_json(&dir, version).expect("JSON");
            assert_eq!(json["outputs"]["out"], shape);
        }
    }

    #[test]
    fn refuses() {
        for (from, to, says) in [
            (
                "\"version\":4",
                "\"version\":3",
                "it has version 3, but only 4 can be read",
            ),
            ("\"version\":4", "\"v\":4", "version is missing"),
            ("\"name\":\"x\"", "\"name\":\"x/y\"", "is not a store path"),
            ("\"name\":\"x\"", "\"name\":1", "name must be a text"),
            (
                "\"args\":[\"1\",\"2\"]",
                "\"args\":[1]",
                "an argument must be a text",
            ),
            ("\"a\":\"b\"", "\"a\":1", "a variable must be a text"),
            (
                "\"impure\":true",
                "\"impurely\":true",
                "no output has exactly the keys hashAlgo, impurely, method",
            ),
            ("\"flat\"", "\"flut\"", "unknown content-address method"),
            ("\"sha1\"", "\"sha2\"", "unknown hash algorithm"),
            (
                "\"outputs\":[\"a\"]",
                "\"outputs\":[]",
                "no output is named of its input out",
            ),
            (
                "\"outputs\":[\"a\"]",
                "\"outputs\":[\"a*\"]",
                "is not an output name",
            ),
            ("\"srcs\":[", "\"srcs\":[\"x\",", "is not a store path"),
            (
                "\"a\":\"b\"",
                "\"__json\":\"b\"",
                "structuredAttrs and a variable __json",
            ),
            (
                "{\"b\":1.5,\"a\":[]}",
                "[]",
                "structuredAttrs must be an object",
            ),
        ] {
            let text = V4.replace(from, to);
            assert_ne!(text, V4);
            let error = read(&text).expect_err(to).to_string();
            assert!(error.contains(says), "{error} / {says}");
        }
    }

    #[test]
    fn texts_without_json() {
        let dir = StoreDir::default();
        let good = read(V4).expect("derivation");
        let raw = || BString::from(&b"\xff"[..]);
        let mut cases = vec![good.clone(); 6];
        cases[0].platform = raw();
        cases[1].builder = raw();
        cases[2].args.push(raw());
        cases[3].env.insert(raw(), "x".into());
        cases[4].env.insert("x".into(), raw());
        cases[5].env.insert(STRUCTURED_ATTRS.into(), "[]".into());
        for (drv, says) in cases.iter().zip([
            "its platform is not UTF-8",
            "its builder is not UTF-8",
            "an argument is not UTF-8",
            "the name of a variable is not UTF-8",
            "the variable x is not UTF-8",
            "its structured attributes: they are not an object",
        ]) {
            let error = drv
                .to_json(&dir, DerivationJsonVersion::V4)
                .expect_err(says)
                .to_string();
            assert!(error.ends_with(says), "{error}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(drv in crate::derivation::arbitrary::derivation()) {
            let dir = StoreDir::default();
            let resolved: BasicDerivation = Derivation {
                name: drv.name.clone(),
                outputs: drv.outputs.clone(),
                inputs: drv.inputs.srcs.clone(),
                platform: drv.platform.clone(),
                builder: drv.builder.clone(),
                args: drv.args.clone(),
                env: drv.env.clone(),
            };
            for version in [DerivationJsonVersion::V1, DerivationJsonVersion::V2, DerivationJsonVersion::V3] {
                prop_assert_eq!(drv.to_json(&dir, version).is_ok(), resolved.to_json(&dir, version).is_ok());
            }
            if let Ok(json) = drv.to_json(&dir, DerivationJsonVersion::V4) {
                prop_assert_eq!(Derivation::from_json(&json), Ok(drv));
                let json = resolved.to_json(&dir, DerivationJsonVersion::V4).expect("JSON");
                prop_assert_eq!(Derivation::from_json(&json), Ok(resolved));
            }
        }
    }
}
