//! The daemon's protocols against real Nix: our client and its daemons, its clients and our server.

mod build;
mod client;
mod faults;
mod hostile;
mod operations;
mod program;
mod server;
mod ssh;
