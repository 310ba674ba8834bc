//! Machines that fall silent in the middle, and quiet builds on machines that do not.

use super::{Lab, count, wait_for};
use crate::support::RigDaemon;
use async_trait::async_trait;
use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};
use tk_builders::{
    Connect, Connected, Machine, MachineTimeouts, Machines, RemoteBuilder, RemoteConfig, Slots,
};
use tk_daemon::{
    DaemonConfig, DaemonStore, UnixTransport,
    ssh::{SshConfig, SshHost, SshTransport},
};
use tk_narinfo::build_result::{BuildStatus, KeyedBuildResult};
use tk_path::{DerivedPath, OutputsSpec, SingleDerivedPath, StoreDir};
use tk_store::{
    Abilities, BuildMode, Result,
    log::{LogEvent, LogSink},
};
use tokio::time::timeout;

const SLOW: &str = r#"
let
  d = name: derivation {
    inherit name; system = builtins.currentSystem; PATH = "/usr/bin:/bin"; builder = "/bin/sh";
    args = [ "-c" ''
      echo >> @LAB@/begun
      n=0; while [ ! -e @LAB@/go ]; do sleep 0.05; n=$((n+1)); [ $n -lt 2400 ] || exit 7; done
      echo ${name} > $out
    '' ];
  };
in { one = d "one"; two = d "two"; }
"#;

/// A host that is frozen while it builds: its connections are neither closed nor answer. Another
/// machine does what was under way there, and no process is left that waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_frozen() {
    let (Some(lab), Some(alpha), Some(beta)) = (
        Lab::new(),
        RigDaemon::start("2.26", true),
        RigDaemon::start("2.34", true),
    ) else {
        return;
    };
    lab.host("alpha", &alpha);
    lab.host("beta", &beta);
    let mut patience = MachineTimeouts::default();
    patience.silence = Duration::from_secs(1);
    patience.answer = Duration::from_secs(4);
    let remote = Remote::new(
        &lab,
        "ssh-ng://alpha - - 2 10; ssh-ng://beta - - 2",
        patience,
    );
    // Both go to the one until the other has slots.
    let slots = Slots::new(lab.path("slots"));
    let mut held = Machine::new("ssh-ng://beta", []);
    held.max_jobs = 2;
    let held = [(); 2].map(|()| slots.take(&held).unwrap().0.expect("a free slot"));
    let building = remote.build(&["one", "two"].map(|attr| lab.instantiate(SLOW, attr)));
    let begun = lab.path("begun");
    wait_for(|| count(&begun) == 2);
    assert_eq!(lab.calls("beta"), 0);
    alpha.freeze().await;
    drop(held);
    wait_for(|| count(&begun) == 4);
    fs::write(lab.path("go"), "").unwrap();
    let results = finished(building).await;
    let said = remote.said();
    for (KeyedBuildResult { result, .. }, name) in results.iter().zip(["one", "two"]) {
        assert_eq!(
            result.status,
            BuildStatus::Built,
            "{}: {said}",
            result.error
        );
        let words = format!(
            "{name}.drv is not built on ssh-ng://alpha: ssh-ng://alpha fell silent and does not answer"
        );
        assert!(said.contains(&words), "{said}");
        let out = StoreDir::default().path(&result.outputs["out"].out_path);
        lab.source.ask("nix-store", &["--verify-path", &out]);
    }
    wait_for(|| !lab.is_called("alpha"));
    alpha.thaw().await;
}

/// A build that says nothing for much longer than the time after which its machine is asked is waited
/// for, as the machine answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_build() {
    let (Some(lab), Some(alpha)) = (Lab::new(), RigDaemon::start("2.34", true)) else {
        return;
    };
    lab.host("alpha", &alpha);
    let mut patience = MachineTimeouts::default();
    patience.silence = Duration::from_millis(50);
    patience.answer = Duration::from_secs(60);
    let remote = Remote::new(&lab, "ssh-ng://alpha", patience);
    let building = remote.build(&[lab.instantiate(SLOW, "one")]);
    let begun = lab.path("begun");
    wait_for(|| count(&begun) == 1);
    tokio::time::sleep(40 * patience.silence).await;
    fs::write(lab.path("go"), "").unwrap();
    let results = finished(building).await;
    let (result, said) = (&results[0].result, remote.said());
    assert_eq!(
        result.status,
        BuildStatus::Built,
        "{}: {said}",
        result.error
    );
    assert!(!said.contains("is not built on"), "{said}");
    assert_eq!(count(&begun), 1);
}

/// A host that takes connections and says nothing on them.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_does_not_answer_from_the_beginning() {
    let (Some(lab), Some(beta)) = (Lab::new(), RigDaemon::start("2.34", true)) else {
        return;
    };
    lab.say("deaf", "exec sleep 1000\n");
    lab.host("beta", &beta);
    fs::write(lab.path("go"), "").unwrap();
    let mut patience = MachineTimeouts::default();
    patience.connect = Duration::from_secs(20);
    let remote = Remote::new(&lab, "ssh-ng://deaf - - 1 100; ssh-ng://beta", patience);
    let building = remote.build(&[lab.instantiate(SLOW, "one")]);
    let results = finished(building).await;
    let (result, said) = (&results[0].result, remote.said());
    assert_eq!(
        result.status,
        BuildStatus::Built,
        "{}: {said}",
        result.error
    );
    let words = "ssh-ng://deaf cannot be used: connecting to ssh-ng://deaf";
    assert!(said.contains(words), "{said}");
}

/// Builds on machines in this process, which has the patience that a test has.
struct Remote {
    store: Abilities,
    log: Arc<Log>,
}

type Building = tokio::task::JoinHandle<Result<Vec<KeyedBuildResult>>>;

impl Remote {
    fn new(lab: &Lab, machines: &str, patience: MachineTimeouts) -> Remote {
        let system = lab.source.ask(
            "nix-instantiate",
            &["--eval", "-E", "builtins.currentSystem"],
        );
        let folder = std::path::Path::new("/");
        let machines = Machines::read(machines, "the test", system.trim_matches('"'), folder);
        let mut config = DaemonConfig::new("the store here");
        config.real = Some(lab.source.store());
        let local = DaemonStore::new(Arc::new(UnixTransport::new(lab.source.socket())), config);
        let connect = Arc::new(Ssh(lab.path("bin/ssh").into()));
        let slots = Slots::new(lab.path("slots"));
        let mut config = RemoteConfig::new(machines.complete().unwrap(), connect, slots);
        config.patience = patience;
        Remote {
            store: RemoteBuilder::new(Arc::new(local).abilities(), config).abilities(),
            log: Arc::default(),
        }
    }

    fn build(&self, drvs: &[String]) -> Building {
        let path = |drv: &String| DerivedPath::Built {
            drv: SingleDerivedPath::Opaque(StoreDir::default().parse(drv).unwrap()),
            outputs: OutputsSpec::All,
        };
        let paths: Vec<_> = drvs.iter().map(path).collect();
        let (store, log) = (self.store.build.clone().unwrap(), self.log.clone());
        tokio::spawn(async move { store.build(&paths, BuildMode::Normal, &*log).await })
    }

    fn said(&self) -> String {
        self.log.0.lock().unwrap().join("\n")
    }
}

/// What became of it; a build that hangs is a failure.
async fn finished(building: Building) -> Vec<KeyedBuildResult> {
    let results = timeout(Duration::from_secs(120), building).await;
    results.expect("it comes to an end").unwrap().unwrap()
}

#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl LogSink for Log {
    fn event(&self, event: LogEvent) {
        if let LogEvent::Message { text, .. } = event {
            self.0.lock().unwrap().push(text);
        }
    }
}

/// By this program instead of ssh.
struct Ssh(PathBuf);

#[async_trait]
impl Connect for Ssh {
    async fn connect(&self, machine: &Machine, connections: usize) -> Result<Connected> {
        let host = machine.uri.strip_prefix("ssh-ng://").unwrap();
        let mut ssh = SshConfig::worker(SshHost::parse(host).unwrap());
        ssh.ssh = self.0.clone();
        let mut config = DaemonConfig::new(machine.uri.clone());
        config.max_connections = connections;
        // It is for the one who builds to bound that.
        config.connect_timeout = None;
        let store = DaemonStore::new(Arc::new(SshTransport::new(ssh)), config);
        let info = store.server_info().await?;
        Ok(Connected {
            store: Arc::new(store).abilities(),
            nix_version: info.nix_version,
            protocol: None,
            trusted: None,
            latency: None,
        })
    }
}
