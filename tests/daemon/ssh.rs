//! Stores over ssh beside real Nix, both ways: its clients and our servers, our clients and its
//! servers. What ssh would run on another machine runs on this one (tests/rig/fake-ssh).

use crate::support::{Rig, Tally, VERSIONS, each_version, rig, skip, test_name};
use futures::{StreamExt, TryStreamExt, stream};
use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tk_daemon::{
    DaemonConfig, DaemonStore,
    client::Transport,
    serve::{
        Command, ExportTrailer, LATEST, Serve, ServeConfig, ServeStore,
        commands::{ImportPaths, QueryValidPaths},
        handshake,
    },
    ssh::{SshConfig, SshHost, SshStderr, SshTransport},
    values::Done,
    wire::{Request, WireReader, Writer},
};
use tk_local::{LocalConfig, LocalStore};
use tk_nar::fs::remove_tree;
use tk_narinfo::{PathInfo, SecretKey, build_result::BuildStatus};
use tk_path::{
    Algorithm, DerivedPath, Hash, NarHash, OutputName, OutputsSpec, SingleDerivedPath, StoreDir,
    StorePath,
};
use tk_store::conformance::file_nar;
use tk_store::{
    Build, BuildMode, Error, SigCheck, Store, StoreExt, closure, log::LogEvent, nar, verify,
};
use tokio::io::AsyncWriteExt;

each_version!(async real_clients_of_our_servers);

/// Each Nix copies to and from a store of ours, and asks about it.
async fn real_clients_of_our_servers(version: &'static str) {
    let Some(rig) = rig(version) else { return };
    for scheme in ["ssh", "ssh-ng"] {
        let far = FarEnd::new();
        let source = far.path("source");
        let chain = fill(&source, 4).await;
        let top = full(&chain[3].0.path);
        let uri = far.uri(scheme);
        let place = format!("{scheme}:// with Nix {}", rig.version);

        far.nix(
            &rig,
            "nix",
            &[
                "copy",
                "--no-check-sigs",
                "--from",
                &source,
                "--to",
                &uri,
                &top,
            ],
        );
        let ours = open(&far.path("ours")).await;
        for (info, _) in &chain {
            let found = ours.require_info(&info.path).await.unwrap();
            verify(&ours, &found).await.unwrap();
            assert_eq!(found.references, info.references, "{place}");
            assert_eq!(found.signatures, info.signatures, "{place}");
        }

        let all: BTreeSet<_> = chain.iter().map(|(info, _)| full(&info.path)).collect();
        let lines = |text: String| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
        let listed = far.nix(&rig, "nix", &["path-info", "-r", "--store", &uri, &top]);
        assert_eq!(lines(listed), all, "{place}");
        let listed = far.nix(&rig, "nix-store", &["--store", &uri, "-qR", &top]);
        assert_eq!(lines(listed), all, "{place}");

        let back = far.path("back");
        far.nix(
            &rig,
            "nix",
            &[
                "copy",
                "--no-check-sigs",
                "--from",
                &uri,
                "--to",
                &back,
                &top,
            ],
        );
        let checked = far.nix(
            &rig,
            "nix-store",
            &["--store", &back, "--verify-path", &top],
        );
        assert_eq!(checked, "", "{place}");
        let listed = far.nix(&rig, "nix-store", &["--store", &back, "-qR", &top]);
        assert_eq!(lines(listed), all, "{place}");
        far.end();
    }
}

/// What our client asks of each `nix-store --serve --write`. Every row is followed by another
/// operation on the same connection; only what the table says may cost it.
#[tokio::test(flavor = "multi_thread")]
async fn our_client_of_real_servers() {
    let commands: Vec<_> = Command::ALL.iter().map(|command| command.name()).collect();
    let mut table = Tally::new("serve protocol of real Nix", &commands);
    for rig in VERSIONS.into_iter().filter_map(rig) {
        let far = FarEnd::new();
        let drvs = far.derivations(&rig);
        let config = far.real(&rig, "nix-store", SshConfig::serve);
        let store = serve_store(config);
        let chain: Vec<_> = chain(4);
        let paths: BTreeSet<_> = chain.iter().map(|(info, _)| info.path.clone()).collect();
        let top = &chain[3].0.path;
        let place = format!("Nix {}", rig.version);
        let mut done = |command: Command| table.case(command.name(), rig.version, || Ok(()));
        let next = async || {
            let one = BTreeSet::from([drvs[0].clone()]);
            assert_eq!(store.valid(&one).await.unwrap(), one, "{place}");
        };

        assert_eq!(store.server_info().await.unwrap().minor, 7, "{place}");
        next().await;
        assert!(store.valid(&paths).await.unwrap().is_empty());
        next().await;
        done(Command::QueryValidPaths);
        let report = store
            .add(items(&chain), &SigCheck::Skip.into())
            .await
            .unwrap();
        assert_eq!(report.added.len(), 4, "{place}: {:?}", report.failed);
        next().await;
        let report = store
            .add(items(&chain), &SigCheck::Skip.into())
            .await
            .unwrap();
        assert_eq!((report.added.len(), report.written), (4, 0), "{place}");
        done(Command::AddToStoreNar);
        for (info, _) in &chain {
            let found = store.require_info(&info.path).await.unwrap();
            let same = PathInfo {
                registration_time: 0,
                ..info.clone()
            };
            assert_eq!(found, same, "{place}");
        }
        next().await;
        assert_eq!(closure(&store, [top.clone()]).await.unwrap().infos.len(), 4);
        done(Command::QueryPathInfos);
        let one = BTreeSet::from([top.clone()]);
        assert_eq!(store.closure(&one, false).await.unwrap(), paths, "{place}");
        next().await;
        done(Command::QueryClosure);
        let content = store.nar(top).await.unwrap();
        let content: Vec<_> = content.try_collect().await.unwrap();
        assert_eq!(content.concat(), chain[3].1, "{place}");
        next().await;
        done(Command::DumpStorePath);
        let built = |drv: &StorePath| DerivedPath::Built {
            drv: SingleDerivedPath::Opaque(drv.clone()),
            outputs: OutputsSpec::All,
        };
        let [good, bad] = [&drvs[0], &drvs[1]].map(built);
        let log = Lines::default();
        let build = async |paths: &[DerivedPath]| {
            let results = store.build(paths, BuildMode::Normal, &log.sink()).await;
            let results = results.unwrap().into_iter().map(|keyed| keyed.result);
            results.collect::<Vec<_>>()
        };
        let results = build(std::slice::from_ref(&good)).await;
        assert_eq!(
            results[0].status,
            BuildStatus::Built,
            "{place}: {results:?}"
        );
        let out = results[0].outputs[&OutputName::out()].out_path.clone();
        assert!(store.info(&out).await.unwrap().is_some(), "{place}");
        assert!(
            log.text().contains("said by the builder"),
            "{place}: {}",
            log.text()
        );
        let results = build(&[good.clone(), bad.clone()]).await;
        assert!(results[0].is_success(), "{place}: {results:?}");
        assert_eq!(results[1].status, BuildStatus::PermanentFailure, "{place}");
        assert!(results[1].error.contains("failing"), "{place}: {results:?}");
        next().await;
        done(Command::BuildPaths);
        let file = tk_store::derivation::read(&store, &drvs[1]).await.unwrap();
        let basic = file.resolve(store.dir(), |_, _| None).unwrap();
        let result = store.build_derivation(&drvs[1], &basic, BuildMode::Normal, &());
        let result = result.await.unwrap();
        assert_eq!(
            result.status,
            BuildStatus::PermanentFailure,
            "{place}: {result:?}"
        );
        next().await;
        done(Command::BuildDerivation);
        assert_eq!(far.calls(), 1, "{place}: all of it on one connection");
        // What is absent ends the server, and the next question finds another.
        let absent = &chain_named("absent", 1)[0].0.path.clone();
        assert!(matches!(
            store.nar(absent).await,
            Err(Error::NotFound { .. })
        ));
        next().await;
        assert_eq!(far.calls(), 2, "{place}");
        let error = store
            .closure(&BTreeSet::from([absent.clone()]), false)
            .await;
        let error = error.unwrap_err().to_line();
        assert!(
            error.contains("ended with status 1: ") && error.contains("not valid"),
            "{error}"
        );
        next().await;
        import(far.real(&rig, "nix-store", SshConfig::serve)).await;
        done(Command::ImportPaths);
        far.end();
    }
    table.finish();
}

each_version!(async our_daemon_store_over_ssh);

/// Our client of the worker protocol over ssh.
async fn our_daemon_store_over_ssh(version: &'static str) {
    let Some(rig) = rig(version) else { return };
    let far = FarEnd::new();
    let transport = SshTransport::new(far.real(&rig, "nix-daemon", SshConfig::worker));
    let mut config = DaemonConfig::new("ssh-ng://far");
    config.max_connections = 1;
    let store = DaemonStore::new(Arc::new(transport), config);
    let chain = chain(4);
    let paths: BTreeSet<_> = chain.iter().map(|(info, _)| info.path.clone()).collect();
    let report = store
        .add(items(&chain), &SigCheck::Skip.into())
        .await
        .unwrap();
    assert_eq!(report.added.len(), 4, "{:?}", report.failed);
    let found = closure(&store, [chain[3].0.path.clone()]).await.unwrap();
    assert_eq!(found.infos.into_keys().collect::<BTreeSet<_>>(), paths);
    for (info, content) in &chain {
        let nar = store.nar(&info.path).await.unwrap();
        assert_eq!(
            nar.try_collect::<Vec<_>>().await.unwrap().concat(),
            *content
        );
    }
    assert_eq!(store.valid(&paths).await.unwrap(), paths);
    assert_eq!(
        far.calls(),
        1,
        "Nix {}: all of it on one connection",
        rig.version
    );
    drop(store);
    far.end();
}

/// `localhost` is this machine, which needs no ssh; our servers pass on to it, as Nix's do.
#[tokio::test]
async fn this_machine_without_ssh() {
    let far = FarEnd::new();
    let chain = fill(&far.path("ours"), 2).await;
    let paths: BTreeSet<_> = chain.iter().map(|(info, _)| info.path.clone()).collect();
    let mut config = SshConfig::serve(SshHost::parse("localhost").unwrap());
    config.ssh = "/no/such/ssh".into();
    config.program = far.server("serve-ssh");
    let store = serve_store(config.clone());
    assert_eq!(store.valid(&paths).await.unwrap(), paths);
    // Through one more server, whose store is the one above.
    let beyond = format!("ssh://localhost?remote-program={}", config.program);
    let line = format!(
        "exec {} serve-ssh --store '{beyond}' \"$@\"",
        env!("CARGO_BIN_EXE_tk-store")
    );
    config.program = far.script("relay", &line).to_str().unwrap().to_owned();
    let store = serve_store(config.clone());
    assert_eq!(store.valid(&paths).await.unwrap(), paths);
    config.program = "false".into();
    let error = serve_store(config)
        .valid(&paths)
        .await
        .unwrap_err()
        .to_line();
    let expected = "false --serve --write on this machine ended with status 1";
    assert!(error.contains(expected), "{error}");
    far.end();
}

each_version!(async substitution_on_the_far_side);

/// Our servers fetch from the substituters of their nix.conf what a client wants substituted: here the
/// client's own content is damaged, so that nothing of it may be sent.
async fn substitution_on_the_far_side(version: &'static str) {
    let Some(rig) = rig(version) else { return };
    for (scheme, name) in [("ssh", "serve-ssh"), ("ssh-ng", "daemon")] {
        let far = FarEnd::new();
        let [source, good] = ["source", "good"].map(|name| far.path(name));
        let chain = fill(&source, 3).await;
        fill(&good, 3).await;
        let top = &chain[2].0.path;
        let file = PathBuf::from(format!("{source}{}", full(top)));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(&file, "damaged").unwrap();
        let program = far.server(name);
        let line = format!(
            "export NIX_CONFIG='substituters = local?root={good}
require-sigs = false'
exec {program} \"$@\""
        );
        let program = far.script("fetching", &line);
        let uri = format!("{scheme}://far?remote-program={}", program.display());
        let copy = ["copy", "--no-check-sigs", "--from", &source, "--to", &uri];
        let top = full(top);
        // All that 2.8 tells a daemon about it.
        let option = ["--option", "builders-use-substitutes", "true"];
        let words = [&copy[..], &option, &["--substitute-on-destination", &top]].concat();
        far.nix(&rig, "nix", &words);
        let ours = open(&far.path("ours")).await;
        for (info, _) in &chain {
            let found = ours.require_info(&info.path).await.unwrap();
            verify(&ours, &found).await.unwrap();
        }
        far.end();
    }
}

/// What ssh says when it fails is in the error; nothing hangs.
#[tokio::test(flavor = "multi_thread")]
async fn ssh_that_fails() {
    let far = FarEnd::new();
    fill(&far.path("ours"), 2).await;
    let serve = |ssh: PathBuf| {
        let mut config = SshConfig::serve(SshHost::parse("me@far").unwrap());
        config.ssh = ssh;
        config.program = far.server("serve-ssh");
        serve_store(config)
    };
    let ask = async |ssh: PathBuf| {
        let started = Instant::now();
        let store = serve(ssh);
        let path = chain(1)[0].0.path.clone();
        let asked = store.valid(&BTreeSet::from([path])).await;
        assert!(started.elapsed() < Duration::from_secs(20));
        asked.map_err(|error| error.to_line())
    };
    let fake = fake_ssh();
    assert_eq!(
        ask(far.script("good", &format!("exec {fake} \"$@\"")))
            .await
            .unwrap()
            .len(),
        1
    );

    let refused = "echo 'A banner of the machine' >&2; echo 'me@far: Permission denied (publickey).' >&2; exit 255";
    let error = ask(far.script("refused", refused)).await.unwrap_err();
    let words =
        "ssh to me@far ended with status 255: A banner of the machine; me@far: Permission denied";
    assert!(error.contains(words), "{error}");

    let error = ask(far.script("quiet", "exit 1")).await.unwrap_err();
    assert!(
        error.ends_with("ssh to me@far ended with status 1"),
        "{error}"
    );
    let error = ask(far.script("killed", "kill -9 $$")).await.unwrap_err();
    assert!(error.contains("was ended by signal 9"), "{error}");
    let error = ask("/no/such/ssh".into()).await.unwrap_err();
    assert!(
        error.contains("starting /no/such/ssh to reach me@far: No such file"),
        "{error}"
    );

    let banner = format!("echo 'Welcome to this machine'; exec {fake} \"$@\"");
    let error = ask(far.script("banner", &banner)).await.unwrap_err();
    assert!(
        error.contains("it begins with the text 'Welcome to this machine'"),
        "{error}"
    );

    // A line that ends in the middle of an answer.
    let end = "(dd bs=1 count=30 2>/dev/null; echo 'Connection reset by peer' >&2; kill -9 $$)";
    let cut = format!("{fake} \"$@\" | {end}");
    let error = ask(far.script("cut", &cut)).await.unwrap_err();
    assert!(error.contains("Connection reset by peer"), "{error}");

    // Endless words do not fill the memory, and the last of them are told.
    let flood = "yes 'nothing to say' | head -n 100000 >&2; echo 'the end' >&2; exit 3";
    let error = ask(far.script("flood", flood)).await.unwrap_err();
    assert!(
        error.ends_with("the end") && error.len() < 6000,
        "{} bytes",
        error.len()
    );
    far.end();
}

/// ssh does not outlive its connection, and what it writes comes line by line.
#[tokio::test(flavor = "multi_thread")]
async fn ssh_ends_with_its_connection() {
    let far = FarEnd::new();
    fill(&far.path("ours"), 1).await;
    let pid = far.path("pid");
    let script = format!("echo $$ >{pid}; echo hello >&2; exec {} \"$@\"", fake_ssh());
    let lines = Lines::default();
    let mut config = SshConfig::serve(SshHost::parse("far").unwrap());
    config.ssh = far.script("ssh", &script);
    config.program = far.server("serve-ssh");
    config.stderr = SshStderr::Log(Arc::new(lines.sink()));
    let store = serve_store(config);
    store.server_info().await.unwrap();
    let pid = fs::read_to_string(&pid).unwrap();
    let process = PathBuf::from(format!("/proc/{}", pid.trim()));
    assert!(process.exists());
    drop(store);
    let gone = || match fs::read_to_string(process.join("stat")) {
        // Dead, but not waited for yet.
        Ok(stat) => stat.contains(") Z "),
        Err(_) => true,
    };
    for _ in 0..200 {
        if gone() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(gone());
    assert_eq!(lines.text(), "hello");
    far.end();
}

/// A thousand paths at the far end of a slow line are asked about in one go.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_line() {
    let far = FarEnd::new();
    let infos = fill(&far.path("ours"), 1000).await;
    let all: BTreeSet<_> = infos.iter().map(|(info, _)| info.path.clone()).collect();
    let script = format!("export FAKE_SSH_DELAY_MS=200\nexec {} \"$@\"", fake_ssh());
    let ssh = far.script("ssh", &script);
    let warm = process::Command::new(&ssh).arg("-V").output().unwrap();
    if !warm.status.success() {
        skip(
            &test_name(),
            "the delay of the stand-in for ssh needs rustc",
        );
        return;
    }
    let mut serve = SshConfig::serve(SshHost::parse("far").unwrap());
    serve.ssh = ssh.clone();
    serve.program = far.server("serve-ssh");
    let mut worker = SshConfig::worker(SshHost::parse("far").unwrap());
    worker.ssh = ssh;
    worker.program = far.server("daemon");
    let daemon = SshTransport::new(worker);
    let daemon = DaemonStore::new(Arc::new(daemon), DaemonConfig::new("ssh-ng://far"));
    let stores: [&dyn Store; 2] = [&serve_store(serve), &daemon];
    for store in stores {
        // Connects.
        store
            .valid(&BTreeSet::from([infos[0].0.path.clone()]))
            .await
            .unwrap();
        let start = Instant::now();
        assert_eq!(store.valid(&all).await.unwrap().len(), 1000);
        let took = start.elapsed();
        assert!(
            took >= Duration::from_millis(200),
            "{store}: no delay at all"
        );
        // One trip, and what a busy machine needs for the rest.
        assert!(took < Duration::from_millis(1000), "{store}: {took:?}");
    }
    far.end();
}

/// Sends an export stream, which no store of ours does, and asks for what was in it.
async fn import(config: SshConfig) {
    let channel = SshTransport::new(config).connect().await.unwrap();
    let protocol = Serve::new(StoreDir::default(), LATEST);
    let (mut reader, mut to) = (WireReader::new(channel.reader, protocol), channel.writer);
    handshake::client(&mut reader, &mut to, LATEST)
        .await
        .unwrap();
    let mut writer = Writer::new(reader.protocol().clone());
    let chain = chain_named("imported", 2);
    ImportPaths {}.write(&mut writer).unwrap();
    for (info, nar) in &chain {
        writer.u64(1);
        writer.raw(nar);
        let trailer = ExportTrailer {
            path: info.path.clone(),
            references: info.references.clone(),
            deriver: None,
        };
        writer.value(&trailer).unwrap();
    }
    writer.u64(0);
    let paths: BTreeSet<_> = chain.into_iter().map(|(info, _)| info.path).collect();
    let question = QueryValidPaths {
        lock: true,
        substitute: false,
        paths: paths.clone(),
    };
    question.write(&mut writer).unwrap();
    to.write_all(&writer.take()).await.unwrap();
    to.flush().await.unwrap();
    let Done = reader.value().await.unwrap();
    let valid: BTreeSet<StorePath> = reader.value().await.unwrap();
    assert_eq!(valid, paths);
}

/// A machine at the other end of ssh, in a folder.
struct FarEnd {
    folder: TempDir,
}

impl FarEnd {
    fn new() -> Self {
        FarEnd {
            folder: TempDir::new().unwrap(),
        }
    }

    /// The name of something in the folder.
    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn script(&self, name: &str, text: &str) -> PathBuf {
        let file = PathBuf::from(self.path(name));
        // Moved into place, so that no other process has it open for writing when it is run.
        let new = file.with_extension("new");
        fs::write(&new, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, &file).unwrap();
        file
    }

    /// A program that serves the store `ours` here, by a command of ours.
    fn server(&self, command: &str) -> String {
        let (program, store) = (env!("CARGO_BIN_EXE_tk-store"), self.path("ours"));
        let line = format!("exec {program} {command} --store {store} \"$@\"");
        let script = self.script(&format!("server-{command}"), &line);
        script.to_str().unwrap().to_owned()
    }

    /// The URI of that store.
    fn uri(&self, scheme: &str) -> String {
        let command = if scheme == "ssh" {
            "serve-ssh"
        } else {
            "daemon"
        };
        format!("{scheme}://far?remote-program={}", self.server(command))
    }

    /// Runs a program of real Nix for which ssh is the stand-in; gives its stdout.
    fn nix(&self, rig: &Rig, program: &str, args: &[&str]) -> String {
        let mut command = rig.command(program);
        let folders = [fake_ssh_folder()].into_iter();
        let usual = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths(folders.chain(env::split_paths(&usual))).unwrap();
        command
            .env("PATH", path)
            .args(["--option", "experimental-features", "nix-command"]);
        let out = command.args(args).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(
            out.status.success(),
            "{program} {args:?} of {}: {said}",
            rig.version
        );
        String::from_utf8(out.stdout).unwrap()
    }

    /// A way to a program of real Nix that has the store `real` here as its `/nix`.
    fn real(&self, rig: &Rig, program: &str, of: fn(SshHost) -> SshConfig) -> SshConfig {
        let (log, fake) = (self.path("calls"), fake_ssh());
        let mut config = of(SshHost::parse("far").unwrap());
        config.ssh = self.script("ssh", &format!("FAKE_SSH_LOG={log} exec {fake} \"$@\""));
        config.program = self.inside(rig, program);
        config
    }

    /// The words that run a program of real Nix with its own `/nix`.
    fn inside(&self, rig: &Rig, program: &str) -> String {
        let with = rig.with_daemon();
        let rigs = with.get_envs().find(|(name, _)| *name == "NIX_RIG_DIR");
        let rigs = rigs
            .and_then(|(_, folder)| folder)
            .unwrap()
            .to_str()
            .unwrap();
        let script = with.get_program().to_str().unwrap();
        let state = self.path("real");
        let line = format!("env NIX_RIG_DIR={rigs} {script} --no-daemon --state {state}");
        format!("{line} {} -- {program}", rig.version)
    }

    /// How often ssh was started.
    fn calls(&self) -> usize {
        let log = fs::read_to_string(self.path("calls")).unwrap();
        log.lines().filter(|line| *line == "ssh").count()
    }

    /// Two derivations in the store `real`: one that builds and says so, one that fails.
    fn derivations(&self, rig: &Rig) -> Vec<StorePath> {
        let file = self.path("drvs.nix");
        fs::write(&file, DERIVATIONS).unwrap();
        let words = self.inside(rig, "nix-instantiate");
        let out = process::Command::new(words.split(' ').next().unwrap())
            .args(words.split(' ').skip(1))
            .arg(&file)
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        let paths = String::from_utf8(out.stdout).unwrap();
        let dir = StoreDir::default();
        let mut paths: Vec<_> = paths.lines().map(|path| dir.parse(path).unwrap()).collect();
        paths.sort_by_key(|path| path.name() == "failing.drv");
        assert_eq!(paths.len(), 2);
        paths
    }

    /// Removes the folder, in which stores have made all read-only.
    fn end(self) {
        remove_tree(&self.folder.keep()).unwrap();
    }
}

/// Collects what is logged.
#[derive(Default, Clone)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn sink(&self) -> impl Fn(LogEvent) + Send + Sync + use<> {
        let lines = self.0.clone();
        move |event| {
            if let LogEvent::Message { text, .. } = event {
                lines.lock().unwrap().push(text);
            }
        }
    }

    fn text(&self) -> String {
        self.0.lock().unwrap().join("\n")
    }
}

fn serve_store(config: SshConfig) -> ServeStore {
    let transport = Arc::new(SshTransport::new(config));
    let mut config = ServeConfig::new("ssh://far");
    config.connect_timeout = Some(Duration::from_secs(60));
    ServeStore::new(transport, config)
}

async fn open(root: &str) -> LocalStore {
    LocalStore::open(LocalConfig::chroot(Path::new(root)))
        .await
        .unwrap()
}

/// Makes a store of ours at `root` with a chain of paths.
async fn fill(root: &str, n: usize) -> Vec<(PathInfo, Vec<u8>)> {
    let chain = chain(n);
    let store = open(root).await;
    let report = store
        .add(items(&chain), &SigCheck::Skip.into())
        .await
        .unwrap();
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    chain
}

/// Paths, each of which refers to the one before it and has a signature.
fn chain(n: usize) -> Vec<(PathInfo, Vec<u8>)> {
    chain_named("link", n)
}

fn chain_named(name: &str, n: usize) -> Vec<(PathInfo, Vec<u8>)> {
    static KEY: OnceLock<SecretKey> = OnceLock::new();
    let key = KEY.get_or_init(|| SecretKey::generate("test-1").unwrap());
    let mut chain: Vec<(PathInfo, Vec<u8>)> = Vec::new();
    for i in 0..n {
        let name = format!("{name}-{i}");
        let nar = file_nar(name.repeat(50 * (i % 7 + 1)).as_bytes()).to_vec();
        let digest = Hash::digest(Algorithm::Sha256, name.as_bytes()).compress(20);
        let path = StorePath::from_digest(&digest.try_into().unwrap(), &name).unwrap();
        let hash = NarHash::try_from(Hash::digest(Algorithm::Sha256, &nar)).unwrap();
        let mut info = PathInfo::new(path, hash, nar.len() as u64);
        info.references = chain
            .last()
            .map(|(before, _)| before.path.clone())
            .into_iter()
            .collect();
        info.sign(&StoreDir::default(), key).unwrap();
        chain.push((info, nar));
    }
    chain
}

fn items(chain: &[(PathInfo, Vec<u8>)]) -> tk_store::AddItems<'static> {
    let items = chain
        .iter()
        .map(|(info, nar)| Ok((info.clone(), nar::from_bytes(nar.clone()))));
    stream::iter(items.collect::<Vec<_>>()).boxed()
}

fn full(path: &StorePath) -> String {
    StoreDir::default().path(path)
}

fn fake_ssh_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rig/fake-ssh")
}

fn fake_ssh() -> String {
    fake_ssh_folder().join("ssh").to_str().unwrap().to_owned()
}

const DERIVATIONS: &str = r#"
let
  d = name: script: derivation {
    inherit name; system = builtins.currentSystem;
    builder = "/bin/sh"; args = [ "-c" script ];
  };
in [
  (d "good" "echo said by the builder; echo good > $out")
  (d "failing" "echo last words >&2; exit 3")
]
"#;
