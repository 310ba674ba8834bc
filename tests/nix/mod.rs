//! Real Nix as the oracle: what it writes we write, byte for byte.

mod nar;
mod store_path;
