//! Derivations whose inputs have been built, so that they can be built without looking at those.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bstr::{BStr, BString};
use memchr::memchr;

use super::{BasicDerivation, Derivation, DerivationError, DerivationOutput, InputOutputs, Modulo};
use crate::{OutputName, Placeholder, StoreDir, StorePath};

impl Derivation {
    /// The derivation with each output of an input derivation replaced by the path it was realised at: among the
    /// inputs, and where its placeholder stands in builder, arguments, environment (names too) and structured
    /// attributes. Outputs that were deferred get their path then; the variables named like them are set to it.
    ///
    /// `realised` gives the path of an output, or `None` if it is not built; it is also asked about derivations that
    /// are themselves outputs, by the path they were realised at.
    ///
    /// The text of the structured attributes changes where placeholders stand, and nowhere else; Nix since 2.31 also
    /// brings it to its own form.
    pub fn resolve(
        &self,
        dir: &StoreDir,
        realised: impl Fn(&StorePath, &OutputName) -> Option<StorePath>,
    ) -> Result<BasicDerivation, ResolveError> {
        let mut found = ResolvedInputs {
            paths: self.inputs.srcs.clone(),
            placeholders: HashMap::new(),
        };
        for (drv, node) in &self.inputs.drvs {
            found.add(dir, &realised, drv, None, node)?;
        }
        let rewrite = |text: &BString| found.rewrite(text);
        let mut env = BTreeMap::new();
        for (name, value) in &self.env {
            // Two names can become one; as in Nix, the first stays.
            env.entry(rewrite(name)).or_insert_with(|| rewrite(value));
        }
        let mut resolved = Derivation {
            name: self.name.clone(),
            outputs: self.outputs.clone(),
            platform: self.platform.clone(),
            builder: rewrite(&self.builder),
            args: self.args.iter().map(rewrite).collect(),
            env,
            inputs: found.paths,
        };
        if resolved
            .outputs
            .values()
            .any(|o| *o == DerivationOutput::Deferred)
        {
            resolved.clear_variables();
            resolved.fill_outputs(&Modulo::new(dir.clone()))?;
        }
        Ok(resolved)
    }
}

impl BasicDerivation {
    /// Whatever the variables of outputs were, they are to become the paths.
    fn clear_variables(&mut self) {
        for name in self.outputs.keys() {
            if let Some(value) = self.env.get_mut(BStr::new(name.as_str())) {
                value.clear();
            }
        }
    }
}

/// What the input derivations turned out to be.
struct ResolvedInputs {
    paths: BTreeSet<StorePath>,
    /// By the text that stands for the path.
    placeholders: HashMap<BString, String>,
}

impl ResolvedInputs {
    /// Finds the outputs of `node`, of the derivation at `drv`; `unknown` stands for that, if it is itself an output.
    fn add(
        &mut self,
        dir: &StoreDir,
        realised: &impl Fn(&StorePath, &OutputName) -> Option<StorePath>,
        drv: &StorePath,
        unknown: Option<&Placeholder>,
        node: &InputOutputs,
    ) -> Result<(), ResolveError> {
        let placeholder = |output: &OutputName| match unknown {
            None => Placeholder::ca_output(drv, output),
            Some(unknown) => Placeholder::unknown_derivation(unknown, output),
        };
        let path = |output: &OutputName| {
            realised(drv, output).ok_or_else(|| ResolveError::Unrealised {
                drv: drv.clone(),
                output: output.clone(),
            })
        };
        for output in &node.outputs {
            let path = path(output)?;
            let text = placeholder(output).to_string();
            self.placeholders.insert(text.into(), dir.path(&path));
            self.paths.insert(path);
        }
        for (output, inner) in &node.dynamic {
            let inner_drv = path(output)?;
            self.add(dir, realised, &inner_drv, Some(&placeholder(output)), inner)?;
        }
        Ok(())
    }

    /// `text` with the paths instead of their placeholders.
    fn rewrite(&self, text: &BString) -> BString {
        let (mut rest, mut done): (&[u8], _) = (text, Vec::new());
        // No placeholder has a slash but its first byte, so none begins within another.
        while let Some(at) = memchr(b'/', rest) {
            let path = rest
                .get(at..at + Placeholder::LEN)
                .and_then(|text| self.placeholders.get(BStr::new(text)));
            let (end, with): (usize, &[u8]) = match path {
                Some(path) => (at + Placeholder::LEN, path.as_bytes()),
                None => (at + 1, b"/"),
            };
            done.extend_from_slice(&rest[..at]);
            done.extend_from_slice(with);
            rest = &rest[end..];
        }
        done.extend_from_slice(rest);
        done.into()
    }
}

/// A derivation that cannot be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// An output that it needs is not built.
    #[error("output {output} of {drv} is not built")]
    Unrealised {
        /// The derivation of the output.
        drv: StorePath,
        /// The output that is not built.
        output: OutputName,
    },
    /// The result breaks a rule.
    #[error("{0}")]
    Derivation(#[from] DerivationError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Inputs;

    fn path(name: &str) -> StorePath {
        StorePath::from_digest(&[7; 20], name).expect("path")
    }

    fn name(name: &str) -> OutputName {
        OutputName::parse(name).expect("name")
    }

    /// Needs `out` of `a.drv`, and `dev` of the derivation that is output `out` of `a.drv`.
    fn drv(text: &str, output: DerivationOutput) -> Derivation {
        let inner = InputOutputs {
            outputs: [name("dev")].into(),
            ..InputOutputs::default()
        };
        let node = InputOutputs {
            outputs: [name("out")].into(),
            dynamic: [(name("out"), inner)].into(),
        };
        Derivation {
            name: "x".into(),
            outputs: [(name("out"), output)].into(),
            inputs: Inputs {
                srcs: [path("src")].into(),
                drvs: [(path("a.drv"), node)].into(),
            },
            platform: text.into(),
            builder: text.into(),
            args: vec![text.into()],
            env: [(text.into(), text.into()), ("out".into(), "wrong".into())].into(),
        }
    }

    #[test]
    fn placeholders_everywhere() {
        let dir = StoreDir::default();
        let known = Placeholder::ca_output(&path("a.drv"), &name("out"));
        let unknown = Placeholder::unknown_derivation(&known, &name("dev"));
        let other = Placeholder::own_output(&name("out"));
        let text = |a: &str, b: &str| format!("//{a}{a}/x/{b}{b}{other}/");
        let before = text(&known.to_string(), &unknown.to_string());
        let after = text(&dir.path(&path("b.drv")), &dir.path(&path("c")));
        let realised = |drv: &StorePath, output: &OutputName| match (drv.name(), output.as_str()) {
            ("a.drv", "out") => Some(path("b.drv")),
            ("b.drv", "dev") => Some(path("c")),
            _ => None,
        };
        let resolved = drv(&before, DerivationOutput::Deferred)
            .resolve(&dir, realised)
            .expect("resolved");
        assert_eq!(
            resolved.inputs,
            [path("src"), path("b.drv"), path("c")].into()
        );
        assert_eq!(resolved.builder, after);
        assert_eq!(resolved.args, [after.as_str()]);
        assert_eq!(resolved.env[BStr::new(&after)], after);
        assert_eq!(resolved.platform, before);
        let DerivationOutput::InputAddressed(out) = &resolved.outputs["out"] else {
            panic!("{resolved:?}");
        };
        assert_eq!(resolved.env[BStr::new("out")], dir.path(out));
        resolved
            .check_outputs(&Modulo::new(dir.clone()))
            .expect("right");

        let drv = drv(&before, DerivationOutput::Deferred);
        for missing in ["a.drv", "b.drv"] {
            let realised = |drv: &StorePath, output: &OutputName| {
                realised(drv, output).filter(|_| drv.name() != missing)
            };
            let error = drv.resolve(&dir, realised).expect_err(missing);
            assert!(matches!(error, ResolveError::Unrealised { drv, .. } if drv == path(missing)));
        }
    }
}
