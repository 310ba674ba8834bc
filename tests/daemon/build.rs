//! Builds over the protocol: what fails and what does not, told in types, and the connection goes on.

use crate::support::{RigDaemon, each_version};
use futures::TryStreamExt;
use std::{collections::BTreeSet, fs, sync::Arc, time::Duration};
use tk_daemon::{
    DaemonConfig, DaemonStore, UnixTransport,
    client::BuildLogs,
    worker::{Version, ops::SetOptions},
};
use tk_narinfo::build_result::{BuildResult, BuildStatus};
use tk_path::{DerivedPath, OutputName, OutputsSpec, SingleDerivedPath, StorePath};
use tk_store::{Build, BuildMode, Logs, Store, StoreExt};

const EXPRESSION: &str = r#"
let
  d = name: script: attrs: derivation ({
    inherit name; system = builtins.currentSystem;
    builder = "/bin/sh"; args = [ "-c" script ];
  } // attrs);
in rec {
  failing = d "failing" "for i in 1 2 3 4 5; do echo line $i; done; echo at last >&2; exit 3" { };
  dependent = d "dependent" "echo $dep > $out" { dep = failing; };
  several = d "several" "echo out > $out; echo dev > $dev; echo doc > $doc" {
    outputs = [ "out" "dev" "doc" ];
  };
  floating = d "floating" "echo floating > $out" {
    __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";
  };
  wrong = d "wrong" "echo not what was promised > $out" {
    outputHashMode = "flat"; outputHashAlgo = "sha256";
    outputHash = "0000000000000000000000000000000000000000000000000000000000000000";
  };
}
"#;

each_version!(async builds);

async fn builds(version: &'static str) {
    for trusted in [true, false] {
        if let Some(daemon) = RigDaemon::start(version, trusted) {
            one_by_one(&daemon).await;
            all_at_once(&daemon).await;
        }
    }
}

/// With the results of 1.34 and later.
async fn one_by_one(daemon: &RigDaemon) {
    let store = open(daemon, |_| {});
    let opened = store.connection().await.unwrap().opened();

    let failing = instantiate(daemon, "failing");
    let logs = BuildLogs::new(3);
    let result = build(&store, &failing, OutputsSpec::All, &logs).await;
    let place = format!("{}: {result:?}", daemon.version);
    assert_eq!(result.status, BuildStatus::PermanentFailure, "{place}");
    assert!(result.error.contains("failed with exit code 3"), "{place}");
    assert!(result.outputs.is_empty(), "{place}");
    assert!(result.start > 0 && result.stop >= result.start, "{place}");
    let log = logs.of(&store.dir().path(&failing)).expect("it was built");
    assert_eq!(log.lines, ["line 4", "line 5", "at last"], "{place}");
    assert_eq!(log.count, 6);
    assert!(log.stop.is_some_and(|stop| stop >= log.start));
    let kept = store.build_log(&failing).await.unwrap().expect("a log");
    let kept: Vec<_> = kept.try_collect().await.unwrap();
    let said = daemon.ask("nix-store", &["--read-log", &store.dir().path(&failing)]);
    assert_eq!(String::from_utf8(kept.concat()).unwrap().trim_end(), said);

    let dependent = instantiate(daemon, "dependent");
    let result = build(&store, &dependent, OutputsSpec::All, &()).await;
    assert_eq!(result.status, BuildStatus::DependencyFailed, "{result:?}");

    let wrong = instantiate(daemon, "wrong");
    let result = build(&store, &wrong, OutputsSpec::All, &()).await;
    assert_eq!(result.status, BuildStatus::OutputRejected, "{result:?}");
    assert!(result.error.contains("hash mismatch"), "{result:?}");
    let output = daemon.ask("nix-store", &["-q", "--outputs", &store.dir().path(&wrong)]);
    let output = store.dir().parse(&output).unwrap();
    assert_eq!(store.info(&output).await.unwrap(), None);

    let several = instantiate(daemon, "several");
    let some = OutputsSpec::Names(["dev", "doc"].map(name).into());
    let result = build(&store, &several, some.clone(), &()).await;
    assert_eq!(result.status, BuildStatus::Built, "{result:?}");
    let names: BTreeSet<_> = result.outputs.keys().cloned().collect();
    assert!(
        names.is_superset(&["dev", "doc"].map(name).into()),
        "{result:?}"
    );
    are_valid(&store, &result).await;
    let result = build(&store, &several, some, &()).await;
    assert_eq!(result.status, BuildStatus::AlreadyValid, "{result:?}");
    assert!(
        store
            .build_log(&instantiate(daemon, "floating"))
            .await
            .unwrap()
            .is_none()
    );

    let floating = instantiate(daemon, "floating");
    let result = build(&store, &floating, OutputsSpec::All, &()).await;
    assert_eq!(result.status, BuildStatus::Built, "{result:?}");
    are_valid(&store, &result).await;
    let path = &result.outputs[&OutputName::out()].out_path;
    let file = daemon.store().join(path.as_str());
    assert_eq!(fs::read_to_string(file).unwrap(), "floating\n");

    let after = store.connection().await.unwrap().opened();
    assert_eq!(opened, after, "a build that failed cost the connection");
}

/// A result for each, in their order, when others fail.
async fn all_at_once(daemon: &RigDaemon) {
    let keep_going = |config: &mut DaemonConfig| {
        let mut settings = SetOptions::default();
        settings.keep_going = true;
        config.settings = Some(settings);
    };
    let names = ["failing", "several", "wrong", "dependent"];
    let expected = [
        BuildStatus::PermanentFailure,
        BuildStatus::AlreadyValid,
        BuildStatus::OutputRejected,
        BuildStatus::DependencyFailed,
    ];
    let paths = names.map(|name| derived(&instantiate(daemon, name), OutputsSpec::All));
    let store = open(daemon, keep_going);
    let results = store.build(&paths, BuildMode::Normal, &()).await.unwrap();
    let mut found = std::collections::BTreeMap::new();
    for result in &results {
        let path = result.path.display(store.dir()).to_string();
        found.insert(path, result.result.status);
    }
    for (path, expected) in paths.iter().zip(expected) {
        let path = path.display(store.dir()).to_string();
        assert_eq!(
            found.get(&path),
            Some(&expected),
            "{path} with {}",
            daemon.version
        );
    }

    // The same by what older daemons tell.
    for minor in [21, 33] {
        let old = |config: &mut DaemonConfig| {
            keep_going(config);
            config.version = Version::minor(minor);
        };
        let store = open(daemon, old);
        let results = store.build(&paths, BuildMode::Normal, &()).await.unwrap();
        let statuses: Vec<_> = results.iter().map(|result| result.result.status).collect();
        let failed = BuildStatus::MiscFailure;
        assert_eq!(
            statuses,
            [failed, BuildStatus::AlreadyValid, failed, failed]
        );
        assert!(!results[0].result.error.is_empty());
        assert_eq!(results[1].result.outputs.len(), 3);
        are_valid(&store, &results[1].result).await;
    }
}

async fn build(
    store: &DaemonStore,
    drv: &StorePath,
    outputs: OutputsSpec,
    log: &dyn tk_store::log::LogSink,
) -> BuildResult {
    let paths = [derived(drv, outputs)];
    let mut results = store.build(&paths, BuildMode::Normal, log).await.unwrap();
    assert_eq!(results.len(), 1);
    let result = results.remove(0);
    assert_eq!(result.path, paths[0]);
    result.result
}

async fn are_valid(store: &DaemonStore, result: &BuildResult) {
    let outputs = result.outputs.values();
    let outputs: BTreeSet<_> = outputs.map(|output| output.out_path.clone()).collect();
    assert!(!outputs.is_empty());
    assert_eq!(store.valid(&outputs).await.unwrap(), outputs);
}

fn derived(drv: &StorePath, outputs: OutputsSpec) -> DerivedPath {
    DerivedPath::Built {
        drv: SingleDerivedPath::Opaque(drv.clone()),
        outputs,
    }
}

fn name(name: &str) -> OutputName {
    OutputName::parse(name).unwrap()
}

fn instantiate(daemon: &RigDaemon, name: &str) -> StorePath {
    let file = daemon.folder().join("expression.nix");
    fs::write(&file, EXPRESSION).unwrap();
    let drv = daemon.ask("nix-instantiate", &[file.to_str().unwrap(), "-A", name]);
    tk_path::StoreDir::default().parse(&drv).unwrap()
}

fn open(daemon: &RigDaemon, change: impl FnOnce(&mut DaemonConfig)) -> DaemonStore {
    let mut config = DaemonConfig::new(format!("unix://{}", daemon.socket().display()));
    config.max_connections = 1;
    config.timeout = Some(Duration::from_secs(30));
    config.log_dir = Some(daemon.logs());
    change(&mut config);
    DaemonStore::new(Arc::new(UnixTransport::new(daemon.socket())), config)
}
