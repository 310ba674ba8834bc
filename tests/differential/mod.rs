//! Generated cases, of which real Nix says what is right: trees, closures, references,
//! derivations.
//!
//! Each family is a strategy of proptest and a check of many cases at once, since starting Nix
//! costs far more than a case. A case that fails is run again alone and made smaller.
//!
//! | Variable | |
//! |---|---|
//! | `TK_CASES` | cases of each family with the newest Nix, default 1,000; the others get a part |
//! | `TK_SEED` | a number; the same one makes the same cases. It stands in the table and in failures |

mod caches;
mod closures;
mod derivations;
mod engine;
mod garbage;
mod nix_conf;
mod node;
mod references;
mod trees;
