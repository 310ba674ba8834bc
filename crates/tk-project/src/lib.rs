//! What makes a project a Nix project, made and checked without nix.
