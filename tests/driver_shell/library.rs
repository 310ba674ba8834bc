//! The same as a library has it.

use super::Bench;
use std::{env, sync::Arc};
use tk_daemon::{DaemonConfig, DaemonStore, UnixTransport};
use tk_nix::{
    Nix, NixBuilder, NixConfig,
    shell::{Hook, ShellConfig, Shells, Stream, Variables},
};
use tk_path::StoreDir;

#[tokio::test(flavor = "multi_thread")]
async fn sessions() {
    let Some(bench) = Bench::start("2.34") else {
        return;
    };
    let builder = builder(&bench).await;
    let mut session = builder.dev_shell(".").await.unwrap();
    assert_eq!(session.hook(), Hook::Held);
    let shell = session.describe();
    assert_eq!(shell.name, "shell");
    assert_eq!(shell.env_vars["GREETING"], "good day");
    assert!(shell.shell_hook.contains("echo hooked"), "{shell:?}");

    // Several commands in one environment, heard as they write.
    let mut heard = String::new();
    let mut told = |stream, bytes: &[u8]| {
        assert_eq!(stream, Stream::Stdout);
        heard.push_str(&String::from_utf8_lossy(bytes));
    };
    for (script, status) in [("echo $GREETING", 0), ("echo $INPUT; exit 4", 4)] {
        let done = session.run_with(&["sh", "-c", script], &mut told).await;
        assert_eq!(done.unwrap().exit_code, status, "{script}");
    }
    assert_eq!(heard, "good day\ndata\n");
    session.enter().await.unwrap();

    // A command that is given up takes what it started with it.
    let place = bench.path("started");
    let script = format!("sleep 1000 & echo $! >{}; wait", place.display());
    let command = ["sh", "-c", &script];
    let running = session.run(&command);
    let begun = async {
        loop {
            match std::fs::read_to_string(&place).map(|text| text.trim().to_owned()) {
                Ok(pid) if !pid.is_empty() => return pid,
                _ => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
    };
    let pid = tokio::select! {
        done = running => panic!("{done:?}"),
        pid = begun => pid,
    };
    let stat = format!("/proc/{pid}/stat");
    while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

async fn builder(bench: &Bench) -> NixBuilder {
    let daemon = &bench.daemon;
    let mut config = DaemonConfig::new("daemon");
    config.real = Some(daemon.store());
    let store = DaemonStore::new(Arc::new(UnixTransport::new(daemon.socket())), config);
    let abilities = Arc::new(store).abilities();
    let uri = format!(
        "unix://{}?root={}",
        daemon.socket().display(),
        daemon.state().display()
    );
    let etc = daemon.state().join("etc");
    let nix = NixConfig {
        program: bench.ask("echo $NIX_RIG_BIN/nix").into(),
        store: Some(uri),
        env: [
            ("NIX_CONF_DIR".into(), Some(etc.into())),
            ("NIX_USER_CONF_FILES".into(), Some("".into())),
            ("HOME".into(), Some(bench.path("home").into())),
        ]
        .into(),
        ..NixConfig::default()
    };
    let shells = Shells::new(ShellConfig {
        cache: bench.path("cache"),
        state: bench.path("state"),
        system: "x86_64-linux".into(),
        folder: bench.flake(),
        variables: Variables::from([("PATH".into(), env::var_os("PATH").unwrap_or_default())]),
        dir: StoreDir::default(),
        real_dir: Some(daemon.store()),
    });
    let nix = Nix::find(nix).await.unwrap();
    NixBuilder::new(nix, abilities).with_shells(shells)
}
