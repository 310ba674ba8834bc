//! The daemon's protocols against real Nix: our client and its daemons, its clients and our server.
mod client;
mod ssh;
