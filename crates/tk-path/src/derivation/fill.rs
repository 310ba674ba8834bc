//! Output paths filled in and checked.

use std::collections::{BTreeSet, btree_map::Entry};

use bstr::{BStr, BString, ByteSlice};
use serde_json::Value;

use super::{
    Derivation, DerivationError, DerivationErrorKind as Kind, DerivationInputs, DerivationKind,
    DerivationOutput, Modulo,
};
use crate::{OutputName, StorePath};

impl<I: DerivationInputs> Derivation<I> {
    /// Makes deferred outputs input-addressed where all that goes into them is known, and sets variables of the
    /// environment that are named like outputs, if they are missing or empty, to the output's path. A stated path or
    /// variable that differs is an error. `modulo` must know the inputs.
    ///
    /// A derivation that asks for the system feature `builder-rpc-v0` gets no variables, and must be content-addressed.
    /// Missing variables count as empty ones in the hash, so that the result passes [`Derivation::check_outputs`];
    /// Nix 2.34 hashes without them and then refuses what it made. After an error `self` may be half filled in.
    pub fn fill_outputs(&mut self, modulo: &Modulo) -> Result<(), DerivationError> {
        let variables = !self.has_rpc_outputs();
        let mut missing = BTreeSet::new();
        if variables && self.is_input_addressed()? {
            for name in self.outputs.keys() {
                if let Entry::Vacant(variable) = self.env.entry(name.as_str().into()) {
                    variable.insert(BString::default());
                    missing.insert(name.clone());
                }
            }
        }
        for (name, path) in self.stated_paths(modulo)? {
            let Some(path) = path else {
                if missing.contains(&name) {
                    self.env.remove(BStr::new(name.as_str()));
                }
                continue;
            };
            if variables {
                let variable = self.env.entry(name.as_str().into()).or_default();
                if variable.is_empty() {
                    *variable = modulo.dir().path(&path).into();
                }
                self.check_variable(modulo, &name, &path)?;
            }
            if let Some(output @ DerivationOutput::Deferred) = self.outputs.get_mut(&name) {
                *output = DerivationOutput::InputAddressed(path);
            }
        }
        Ok(())
    }

    /// Checks what every derivation in a store keeps: outputs of one kind, the paths that follow from its content, and
    /// the same paths in the variables named like outputs. Outputs that are deferred without need are allowed, as
    /// older versions of Nix made them. `modulo` must know the inputs.
    pub fn check_outputs(&self, modulo: &Modulo) -> Result<(), DerivationError> {
        let paths = self.stated_paths(modulo)?;
        if self.has_rpc_outputs() {
            return Ok(());
        }
        for (name, path) in paths {
            if let Some(path) = path
                && self.outputs.get(&name) != Some(&DerivationOutput::Deferred)
            {
                self.check_variable(modulo, &name, &path)?;
            }
        }
        Ok(())
    }

    /// The computed paths, of which those that are stated are the same.
    fn stated_paths(
        &self,
        modulo: &Modulo,
    ) -> Result<Vec<(OutputName, Option<StorePath>)>, DerivationError> {
        if self.is_input_addressed()? && self.has_rpc_outputs() {
            return Err(self.error(Kind::ContentAddressedOnly(BUILDER_RPC)));
        }
        let paths = modulo.output_paths(self)?;
        for (output, computed) in &paths {
            let Some(DerivationOutput::InputAddressed(stated)) = self.outputs.get(output) else {
                continue;
            };
            if computed.as_ref() != Some(stated) {
                return Err(self.error(Kind::OtherPath {
                    output: output.clone(),
                    stated: stated.clone(),
                    computed: computed.clone().map(Box::new),
                }));
            }
        }
        Ok(paths.into_iter().collect())
    }

    fn check_variable(
        &self,
        modulo: &Modulo,
        output: &OutputName,
        path: &StorePath,
    ) -> Result<(), DerivationError> {
        let value = self.env.get(BStr::new(output.as_str()));
        let path = modulo.dir().path(path);
        if value.is_some_and(|value| *value == path) {
            return Ok(());
        }
        Err(self.error(Kind::Environment {
            output: output.clone(),
            value: value.cloned(),
            path: path.into(),
        }))
    }

    fn is_input_addressed(&self) -> Result<bool, DerivationError> {
        let kind = self.kind()?;
        Ok(matches!(
            kind,
            DerivationKind::InputAddressed | DerivationKind::Deferred
        ))
    }

    /// Whether the builder tells its outputs itself, so that no variables do.
    fn has_rpc_outputs(&self) -> bool {
        let Some(attributes) = self.structured_attrs() else {
            let features = self.env.get(BStr::new(FEATURES));
            return features.is_some_and(|features| {
                features
                    .split(u8::is_ascii_whitespace)
                    .any(|name| name == BUILDER_RPC.as_bytes())
            });
        };
        // Looking for the text first spares nearly all derivations the parsing.
        attributes.contains_str(BUILDER_RPC)
            && serde_json::from_slice::<Value>(attributes).is_ok_and(|attributes| {
                let features = attributes[FEATURES].as_array();
                features.is_some_and(|names| names.iter().any(|name| name == BUILDER_RPC))
            })
    }
}

const FEATURES: &str = "requiredSystemFeatures";
const BUILDER_RPC: &str = "builder-rpc-v0";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modulo::HashModulo;
    use crate::{StoreDir, StorePath};

    /// One output that is `output`, and these variables.
    fn drv(output: [&str; 3], env: &[(&str, &str)]) -> Derivation {
        let dir = StoreDir::default();
        let name = OutputName::out();
        let output = DerivationOutput::from_strings(&dir, "x", &name, output).expect("output");
        let env = env
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()));
        Derivation {
            name: "x".into(),
            outputs: [(name, output)].into(),
            inputs: crate::Inputs::default(),
            platform: "p".into(),
            builder: "b".into(),
            args: Vec::new(),
            env: env.collect(),
        }
    }

    fn fill(mut drv: Derivation) -> Result<Derivation, DerivationError> {
        let modulo = Modulo::new(StoreDir::default());
        drv.fill_outputs(&modulo)?;
        drv.check_outputs(&modulo)?;
        let again = drv.clone();
        drv.fill_outputs(&modulo)?;
        assert_eq!(drv, again);
        Ok(drv)
    }

    #[test]
    fn variables() {
        let filled = fill(drv(DEFERRED, &[("out", "")])).expect("filled in");
        assert!(matches!(
            filled.outputs["out"],
            DerivationOutput::InputAddressed(_)
        ));
        assert_eq!(fill(drv(DEFERRED, &[])), Ok(filled.clone()));
        let path = filled.env[BStr::new("out")].to_string();
        assert_eq!(fill(drv(DEFERRED, &[("out", &path)])), Ok(filled.clone()));
        let error = fill(drv(DEFERRED, &[("out", "x")]))
            .expect_err("another")
            .to_string();
        assert!(
            error.contains("the variable out of its environment is \"x\""),
            "{error}"
        );
        let mut missing = filled;
        missing.env.clear();
        assert!(
            missing
                .check_outputs(&Modulo::new(StoreDir::default()))
                .is_err()
        );

        let fixed = fill(drv(FIXED, &[])).expect("filled in");
        assert_eq!(fixed.env[BStr::new("out")], FIXED[0]);
        assert!(fill(drv(FIXED, &[("out", "x")])).is_err());
        let floating = drv(FLOATING, &[("out", "anything")]);
        assert_eq!(fill(floating.clone()), Ok(floating));
        let mut none = drv(DEFERRED, &[]);
        none.outputs.clear();
        assert!(fill(none).is_err());
    }

    #[test]
    fn outputs_that_the_builder_tells() {
        let json = r#"{"requiredSystemFeatures":["builder-rpc-v0"]}"#;
        for variable in [
            ("requiredSystemFeatures", "kvm builder-rpc-v0"),
            ("__json", json),
        ] {
            for output in [FIXED, FLOATING] {
                let drv = drv(output, &[variable]);
                assert_eq!(fill(drv.clone()), Ok(drv));
            }
            let error = fill(drv(DEFERRED, &[variable])).expect_err("not content-addressed");
            assert_eq!(error.kind(), &Kind::ContentAddressedOnly(BUILDER_RPC));
        }
        for variable in [
            ("requiredSystemFeatures", "builder-rpc-v01"),
            ("__json", "builder-rpc-v0"),
        ] {
            assert!(fill(drv(DEFERRED, &[variable])).is_ok());
        }
    }

    #[test]
    fn dependants_of_what_is_not_known_are_deferred() {
        let dir = StoreDir::default();
        let mut modulo = Modulo::new(dir.clone());
        let floating = drv(FLOATING, &[]);
        let path = floating.path(&dir).expect("path");
        let mut dependant = drv(DEFERRED, &[("out", "")]);
        let needed = crate::InputOutputs {
            outputs: [OutputName::out()].into(),
            ..Default::default()
        };
        dependant.inputs.drvs.insert(path.clone(), needed);
        let unfilled = dependant.clone();
        assert_eq!(
            dependant.fill_outputs(&modulo).expect_err("unknown").kind(),
            &Kind::UnknownInput(path.clone())
        );
        modulo.add(path, &floating).expect("known");
        dependant.fill_outputs(&modulo).expect("deferred");
        assert_eq!(dependant, unfilled);
        dependant.env.clear();
        dependant.fill_outputs(&modulo).expect("deferred");
        assert!(dependant.env.is_empty());
        assert_eq!(modulo.hash(&dependant), Ok(HashModulo::Deferred));
        let stated = StorePath::parse("c015dhfh5l0lp6wxyvdn7bmwhbbr6hr9-x").expect("path");
        let stated = DerivationOutput::InputAddressed(stated);
        dependant.outputs.insert(OutputName::out(), stated);
        let error = dependant.check_outputs(&modulo).expect_err("stated");
        assert!(
            error
                .to_string()
                .ends_with("none is known before its inputs are built")
        );
    }

    const DEFERRED: [&str; 3] = ["", "", ""];
    const FLOATING: [&str; 3] = ["", "r:sha256", ""];
    const FIXED: [&str; 3] = [
        "/nix/store/s0897cjmash79gpdx41a9d460agbpxsa-x",
        "r:sha256",
        "894517c9163c896ec31a2adbd33c0681fd5f45b2c0ef08a64c92a03fb97f390f",
    ];
}
