//! Our client and real daemons.

use crate::support::{RigDaemon, VERSIONS};

#[test]
fn daemons_start() {
    for version in VERSIONS {
        let Some(daemon) = RigDaemon::start(version, true) else {
            continue;
        };
        let said = daemon.ask("nix", &["--version"]);
        assert!(said.contains(version), "{said}");
        assert!(daemon.socket().exists());
        let state = daemon.state().to_owned();
        drop(daemon);
        assert!(!state.exists());
    }
}
