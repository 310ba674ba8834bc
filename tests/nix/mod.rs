//! Real Nix as the oracle: what it writes we write, byte for byte.

mod ca;
mod cache;
mod derivation;
mod disk_cache;
mod main_job;
mod nar;
mod store_path;
