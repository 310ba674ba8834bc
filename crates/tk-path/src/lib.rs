//! Hashes, nix32, store paths, content addresses and reference scanning for the Nix store: pure values.
