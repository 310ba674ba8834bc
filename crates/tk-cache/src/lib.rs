//! Nix binary caches: layout, folder caches, compression.
