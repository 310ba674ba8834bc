//! What is said about a Nix store path: path info, narinfo, keys and signatures: pure values.
