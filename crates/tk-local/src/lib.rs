//! A Nix store on disk without Nix, in Nix's own format.
