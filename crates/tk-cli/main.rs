//! The command line of tk-store.
fn main() {}
