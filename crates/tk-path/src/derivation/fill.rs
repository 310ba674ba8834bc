//! Output paths filled in and checked.

use bstr::{BStr, ByteSlice};
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
    pub fn fill_outputs(&mut self, modulo: &Modulo) -> Result<(), DerivationError> {
        let paths = self.stated_paths(modulo)?;
        for (name, path) in paths {
            let Some(path) = path else { continue };
            if self.outputs.get(&name) == Some(&DerivationOutput::Deferred) {
                let output = DerivationOutput::InputAddressed(path.clone());
                self.outputs.insert(name.clone(), output);
            }
            if !self.has_rpc_outputs() {
                let variable = self.env.entry(name.as_str().into()).or_default();
                if variable.is_empty() {
                    *variable = modulo.dir().path(&path).into();
                }
                self.check_variable(modulo, &name, &path)?;
            }
        }
        Ok(())
    }

    /// Checks what every derivation in a store keeps: outputs of one kind, the paths that follow from its content, and
    /// the same paths in the variables named like outputs. Outputs that are deferred without need are allowed, as
    /// older versions of Nix made them. `modulo` must know the inputs.
    pub fn check_outputs(&self, modulo: &Modulo) -> Result<(), DerivationError> {
        for (name, path) in self.stated_paths(modulo)? {
            if let Some(path) = path
                && self.outputs.get(&name) != Some(&DerivationOutput::Deferred)
                && !self.has_rpc_outputs()
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
        let input_addressed = matches!(
            self.kind()?,
            DerivationKind::InputAddressed | DerivationKind::Deferred
        );
        if input_addressed && self.has_rpc_outputs() {
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
