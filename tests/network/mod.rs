//! Caches far away, as the program and real Nix see them: nginx over HTTP/1.1, over TLS with
//! HTTP/2, and a real S3 service.

mod errors;
mod kills;
mod round_trip;
mod tampering;

use crate::{
    cli::Machine,
    support::{made::fill, servers::Nginx},
};
use std::path::PathBuf;
use tempfile::TempDir;
use tk_path::StorePath;

/// A machine with a store of its own, that holds a closure, and a key.
struct Source {
    machine: Machine,
    /// References first; the last one leads to all others.
    paths: Vec<StorePath>,
    /// The public key of `s`.
    key: String,
}

impl Source {
    /// A closure of `count` paths that nothing but signatures vouches for; those in `large` are so
    /// large that they are sent while they are packed.
    fn new(count: usize, large: &[usize]) -> Source {
        let machine = Machine::new();
        let size = |i| {
            if large.contains(&i) {
                9 << 20
            } else {
                2000 + 37 * i
            }
        };
        let sizes: Vec<_> = (0..count).map(size).collect();
        let paths = fill(&machine.home().join("store"), &sizes);
        machine.ok("key generate test-1 --secret s --public p");
        let key = machine.ok("key public s");
        Source {
            machine,
            paths,
            key,
        }
    }

    /// The path that leads to all others.
    fn top(&self) -> String {
        full(self.paths.last().unwrap())
    }
}

fn full(path: &StorePath) -> String {
    format!("/nix/store/{path}")
}

/// A folder that nginx serves.
struct Served {
    root: TempDir,
    nginx: Nginx,
}

impl Served {
    fn start(tls: bool) -> Option<Served> {
        let root = TempDir::new().unwrap();
        let nginx = Nginx::start(root.path(), tls, 0)?;
        Some(Served { root, nginx })
    }

    fn path(&self) -> PathBuf {
        self.root.path().to_owned()
    }
}
