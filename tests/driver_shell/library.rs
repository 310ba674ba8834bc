//! The same as a library has it.

#[path = "../../examples/enter_a_shell.rs"]
#[allow(dead_code, reason = "a program's main")]
mod enter_a_shell;

use super::Bench;
use std::{env, sync::Arc};
use tk_daemon::{DaemonConfig, DaemonStore, UnixTransport};
use tk_nix::{
    Cause, Installable, InstallableSource, Nix, NixBuilder, NixConfig, ShellSession,
    shell::{EnvironmentKind, Hook, ShellConfig, Shells, Stream, Variables},
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

#[tokio::test(flavor = "multi_thread")]
async fn anything_that_can_be_built() {
    let Some(bench) = Bench::plain("2.34") else {
        return;
    };
    let builder = builder(&bench).await;
    let plain = || InstallableSource::File(bench.path("plain"));
    let what = Installable::attribute(plain(), "shell").unwrap();
    let session = builder.dev_shell_of(what).await.unwrap();
    assert_eq!(session.describe().env_vars["PART"], "part");
    let said = session.run(&["sh", "-c", "echo $GREETING"]).await.unwrap();
    assert_eq!((said.exit_code, said.stdout.as_str()), (0, "good day\n"));

    // Packages of a file and a path of the store together: which folders have their programs.
    let dir = StoreDir::default();
    let of = |session: &ShellSession| -> Vec<String> {
        let folders = session.environment().text("PATH").unwrap().split(':');
        folders.map(str::to_owned).collect()
    };
    let tool = Installable::attribute(plain(), "tool").unwrap();
    let session = builder
        .session(EnvironmentKind::Packages(vec![tool]))
        .await
        .unwrap();
    let folders = of(&session);
    assert_eq!(folders.len(), 2, "a tool and what it brings: {folders:?}");
    let path = folders[0].strip_suffix("/bin").unwrap();
    let path = Installable::parse(&dir, path).unwrap();
    let other = Installable::attribute(plain(), "other").unwrap();
    let both = EnvironmentKind::Packages(vec![path.clone(), other]);
    let session = builder.session(both).await.unwrap();
    let more = of(&session);
    assert_eq!((&more[0], &more[2]), (&folders[0], &folders[1]));
    assert!(more[1].ends_with("-other/bin"), "{more:?}");

    for (what, words) in [
        (path, "is not a derivation"),
        (Installable::attribute(plain(), "").unwrap(), "derivations"),
    ] {
        let failure = builder.dev_shell_of(what).await.unwrap_err();
        assert_eq!(failure.cause, Cause::Misused, "{failure}");
        assert!(failure.message.contains(words), "{failure}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example() {
    let Some(bench) = Bench::start("2.34") else {
        return;
    };
    let (nix, real) = (nix(&bench), Some(bench.daemon.store()));
    let made = enter_a_shell::builder(nix, daemon(&bench), bench.path("example"), real);
    let (builder, flake) = (
        made.await.unwrap(),
        format!("path:{}", bench.flake().display()),
    );
    let command = ["sh", "-c", "echo $GREETING"].map(str::to_owned);
    let said = enter_a_shell::enter(&builder, &flake, &command).await;
    assert_eq!(said.unwrap(), "good day\n");
}

fn daemon(bench: &Bench) -> DaemonStore {
    let mut config = DaemonConfig::new("daemon");
    config.real = Some(bench.daemon.store());
    DaemonStore::new(Arc::new(UnixTransport::new(bench.daemon.socket())), config)
}

fn nix(bench: &Bench) -> NixConfig {
    let daemon = &bench.daemon;
    let uri = format!(
        "unix://{}?root={}",
        daemon.socket().display(),
        daemon.state().display()
    );
    let etc = daemon.state().join("etc");
    let mut nix = NixConfig::default();
    nix.program = bench.ask("echo $NIX_RIG_BIN/nix").into();
    nix.store = Some(uri);
    nix.env = [
        ("NIX_CONF_DIR".into(), Some(etc.into())),
        ("NIX_USER_CONF_FILES".into(), Some("".into())),
        ("HOME".into(), Some(bench.path("home").into())),
    ]
    .into();
    nix
}

async fn builder(bench: &Bench) -> NixBuilder {
    let (cache, state) = (bench.path("cache"), bench.path("state"));
    let mut config = ShellConfig::new(cache, state, "x86_64-linux".into(), bench.flake());
    config.variables = Variables::from([("PATH".into(), env::var_os("PATH").unwrap_or_default())]);
    config.real_dir = Some(bench.daemon.store());
    let shells = Shells::new(config);
    let nix = Nix::find(nix(bench)).await.unwrap();
    NixBuilder::new(nix, Arc::new(daemon(bench)).abilities()).with_shells(shells)
}
