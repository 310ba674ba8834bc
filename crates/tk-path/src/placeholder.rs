//! Texts that stand in derivations for paths that are not known yet.
//!
//! ```text
//! placeholder = "/" nix32(sha256(x))
//! x = "nix-output:" output                                               an output of the derivation itself
//!   | "nix-upstream-output:" hash part of the derivation ":" name        an output of a known derivation
//!   | "nix-computed-output:" nix32(sha256 of the outer placeholder's x,
//!                                  compressed to 20 bytes) ":" output    an output of an unknown derivation
//! name = that of the output's path: the derivation's without .drv, and "-" output unless that is "out"
//! ```
//! Mirrors `downstream-placeholder.cc`.

use std::fmt;

use crate::{Algorithm, Encoding, Hash, OutputName, SingleDerivedPath, StorePath, nix32};

/// What a derivation has in place of a path, see the functions that make one. `Display` writes the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Placeholder(Hash);

impl Placeholder {
    /// The length of the text.
    pub const LEN: usize = 1 + nix32::encoded_len(32);

    /// For the output `output` of the derivation that the text is in.
    pub fn own_output(output: &OutputName) -> Placeholder {
        Placeholder::of(&format!("nix-output:{output}"))
    }

    /// For the output `output` of another derivation, when its path depends on its content.
    pub fn ca_output(drv: &StorePath, output: &OutputName) -> Placeholder {
        let name = drv.name();
        let name = output.path_name(name.strip_suffix(".drv").unwrap_or(name));
        Placeholder::of(&format!("nix-upstream-output:{}:{name}", drv.hash_part()))
    }

    /// For the output `output` of a derivation that is itself unknown, and that `drv` stands for.
    pub fn unknown_derivation(drv: &Placeholder, output: &OutputName) -> Placeholder {
        let outer = nix32::encode(&drv.0.compress_to_path());
        Placeholder::of(&format!("nix-computed-output:{outer}:{output}"))
    }

    /// For `output` of what `drv` stands for, however deeply nested.
    pub fn built(drv: &SingleDerivedPath, output: &OutputName) -> Placeholder {
        match drv {
            SingleDerivedPath::Opaque(path) => Placeholder::ca_output(path, output),
            SingleDerivedPath::Built {
                drv: outer,
                output: inner,
            } => Placeholder::unknown_derivation(&Placeholder::built(outer, inner), output),
        }
    }

    fn of(text: &str) -> Placeholder {
        Placeholder(Hash::digest(Algorithm::Sha256, text.as_bytes()))
    }
}

impl fmt::Display for Placeholder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0.digits(Encoding::Nix32))
    }
}

/// What a derivation writes for its own output `output`: what `builtins.placeholder` gives.
pub fn placeholder(output: &OutputName) -> String {
    Placeholder::own_output(output).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StoreDir;

    #[test]
    fn known_values() {
        let out = OutputName::out();
        assert_eq!(
            placeholder(&out),
            "/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9"
        );
        for (path, text) in [
            (
                "foo.drv^out",
                "/0c6rn30q4frawknapgwq386zq358m8r6msvywcvc89n6m5p2dgbz",
            ),
            (
                "foo.drv.drv^out^out",
                "/0gn6agqxjyyalf0dpihgyf49xq5hqxgw100f0wydnj6yqrhqsb3w",
            ),
        ] {
            let path = format!("/nix/store/g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-{path}");
            match SingleDerivedPath::parse(&StoreDir::default(), &path).expect("path") {
                SingleDerivedPath::Built { drv, output } => {
                    let placeholder = Placeholder::built(&drv, &output).to_string();
                    assert_eq!(placeholder, text);
                    assert_eq!(placeholder.len(), Placeholder::LEN);
                }
                SingleDerivedPath::Opaque(path) => panic!("{path} is not built"),
            }
        }
    }
}
