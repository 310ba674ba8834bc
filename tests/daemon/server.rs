//! Real clients and our server.

use crate::support::{Rig, Tally, VERSIONS, each_version, equal, rig, skip, test_name};
use serde_json::Value;
use std::{
    fs,
    io::Write,
    os::unix::{
        fs::{PermissionsExt, symlink},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tk_cache::{BinaryCache, BinaryCacheConfig};
use tk_local::{LocalConfig, LocalStore};
use tk_narinfo::{PathInfo, SecretKey};
use tk_path::{Algorithm, Hash, StoreDir, StorePath};
use tk_store::conformance::file_nar;
use tk_store::{SigCheck, Store, StoreExt, nar};

/// What each version must be able to do with a store of ours on disk.
#[tokio::test(flavor = "multi_thread")]
async fn real_clients_of_a_store_on_disk() {
    let mut table = Tally::new("real clients and our server: a store on disk", ROWS);
    for rig in VERSIONS.into_iter().filter_map(rig) {
        let place = Place::new();
        let server = place.serve(&place.path("root"), &[]);
        let uri = server.uri();
        let client = Client {
            rig: &rig,
            place: &place,
        };
        let v = rig.version;

        table.case("store ping", v, || {
            let out = client.run("nix", &["store", "ping", "--store", &uri]);
            equal(out.status.success(), true)?;
            // Some versions write it to stderr. 2.8 does not know what trust is.
            let told = [out.stdout, out.stderr].concat();
            let told = String::from_utf8_lossy(&told);
            contains(&told, "Version: tk-store")?;
            match v {
                "2.8" => Ok(()),
                _ => contains(&told, "Trusted: 1"),
            }
        });
        let source = place.tree("tree");
        let added = client.line("nix-store", &["--store", &uri, "--add", text(&source)]);
        table.case("nix-store --add", v, || {
            let elsewhere = place.path("elsewhere");
            let args = ["--store", text(&elsewhere), "--add", text(&source)];
            equal(added.clone()?, client.line("nix-store", &args)?)
        });
        table.case("nix-store --add-fixed", v, || {
            let file = source.join("file");
            let args = ["--store", &uri, "--add-fixed", "sha256", text(&file)];
            client.line("nix-store", &args).map(drop)
        });
        let top = client.text_with_reference(&uri);
        table.case("text with references", v, || top.clone().map(drop));
        let (Ok(added), Ok(top)) = (added, top) else {
            continue;
        };
        let closure = client.line("nix-store", &["--store", &uri, "-qR", &top]);
        table.case("nix-store -qR", v, || {
            equal(closure.clone()?.lines().count(), 2)
        });
        table.case("path-info -r", v, || {
            let listed = client.line("nix", &["path-info", "--store", &uri, "-r", &top])?;
            equal(lines(&listed), lines(closure.as_deref()?))
        });
        table.case("path-info --json", v, || {
            let json = client.line("nix", &["path-info", "--store", &uri, "--json", &added])?;
            let json: Value = serde_json::from_str(&json).map_err(|e| e.to_string())?;
            let info = if json.is_array() {
                &json[0]
            } else {
                &json[&added]
            };
            let hash = client.line("nix", &["hash", "path", "--sri", text(&source)])?;
            equal(info["narHash"].as_str(), Some(hash.as_str()))
        });
        table.case("store ls", v, || {
            let told = client.line("nix", &["store", "ls", "--store", &uri, "-R", &added])?;
            equal(lines(&told), lines("./deep\n./deep/link\n./file"))
        });
        table.case("store cat", v, || {
            let file = format!("{added}/file");
            equal(
                client.line("nix", &["store", "cat", "--store", &uri, &file])?,
                "content".into(),
            )
        });
        table.case("nix copy from", v, || {
            let to = place.path("copied");
            let copy = [
                "copy",
                "--from",
                &uri,
                "--to",
                text(&to),
                "--no-check-sigs",
                &top,
                &added,
            ];
            client.ok("nix", &copy)?;
            client.ok(
                "nix-store",
                &["--store", text(&to), "--verify", "--check-contents"],
            )?;
            let listed = client.line("nix-store", &["--store", text(&to), "-qR", &top])?;
            equal(lines(&listed), lines(closure.as_deref()?))
        });
        table.case("nix copy to", v, || {
            let from = place.path("source");
            let path = client.text_with_reference(text(&from))?;
            let other = place.tree("another");
            let other = client.line(
                "nix-store",
                &["--store", text(&from), "--add", text(&other)],
            )?;
            client.ok(
                "nix",
                &["copy", "--from", text(&from), "--to", &uri, &path, &other],
            )?;
            let listed =
                client.line("nix", &["path-info", "--store", &uri, "-r", &path, &other])?;
            equal(lines(&listed).len(), 3)
        });
        for row in [
            "build by path",
            "build by output",
            "build of what is missing",
        ] {
            let (args, there) = match row {
                "build by path" => (vec![added.clone()], true),
                _ => (vec![], row == "build by output"),
            };
            table.case(row, v, || match args.first() {
                Some(path) => client.build(&uri, path).map(drop),
                None => client.build_fixed(&uri, there),
            });
        }
        table.case("roots", v, || {
            let link = place.path("result");
            client.ok(
                "nix",
                &["build", "--store", &uri, &added, "--out-link", text(&link)],
            )?;
            equal(
                fs::read_link(&link)
                    .map_err(|e| e.to_string())?
                    .is_absolute(),
                true,
            )
        });
        table.case("verify", v, || {
            client
                .ok(
                    "nix-store",
                    &["--store", &uri, "--verify", "--check-contents"],
                )
                .map(drop)
        });
        table.case("gc, delete, optimise", v, || {
            let dead = place.tree("dead");
            let nix_store =
                |args: &[&str]| client.ok("nix-store", &[&["--store", &uri], args].concat());
            let dead = nix_store(&["--add", text(&dead)])?;
            let dead = dead.trim_end();
            nix_store(&["--optimise"])?;
            contains(&nix_store(&["--gc", "--print-dead"])?, dead)?;
            contains(&nix_store(&["--delete", dead])?, "1 store paths deleted")?;
            contains(&nix_store(&["--gc"])?, "store paths deleted")?;
            // It has a root since the case before.
            let kept = nix_store(&["--gc", "--print-live"])?;
            contains(&kept, &added)?;
            let words = client.fails("nix-store", &["--store", &uri, "--delete", &added])?;
            contains(&words, "still alive")
        });
        let store = LocalStore::open_existing(LocalConfig::chroot(place.path("root")))
            .await
            .unwrap();
        for path in store.all().await.unwrap() {
            let info = store.require_info(&path).await.unwrap();
            let verified = tk_store::verify(&store, &info).await;
            table.case("what is there then is whole", v, || {
                verified.map_err(|e| e.to_line())
            });
        }
    }
    table.finish();
}

const ROWS: &[&str] = &[
    "store ping",
    "nix-store --add",
    "nix-store --add-fixed",
    "text with references",
    "nix-store -qR",
    "path-info -r",
    "path-info --json",
    "store ls",
    "store cat",
    "nix copy from",
    "nix copy to",
    "build by path",
    "build by output",
    "build of what is missing",
    "roots",
    "verify",
    "gc, delete, optimise",
    "what is there then is whole",
];

/// A binary cache behind the server, on a socket and behind ssh.
#[tokio::test(flavor = "multi_thread")]
async fn real_clients_of_a_cache() {
    let rows = [
        "copy to",
        "path-info -r",
        "-qR",
        "copy from",
        "ls and cat",
        "build by path",
    ];
    let mut table = Tally::new("real clients and our server: a cache", &rows);
    for rig in VERSIONS.into_iter().filter_map(rig) {
        let place = Place::new();
        let cache = format!("file://{}", place.path("cache").display());
        let server = place.serve(cache.as_ref(), &[]);
        let uri = server.uri();
        let client = Client {
            rig: &rig,
            place: &place,
        };
        let v = rig.version;
        let from = place.path("source");
        let path = client.text_with_reference(text(&from)).unwrap();
        let tree = place.tree("tree");
        let tree = client
            .line("nix-store", &["--store", text(&from), "--add", text(&tree)])
            .unwrap();
        table.case("copy to", v, || {
            client
                .ok(
                    "nix",
                    &["copy", "--from", text(&from), "--to", &uri, &path, &tree],
                )
                .map(drop)
        });
        let closure = client
            .line("nix-store", &["--store", text(&from), "-qR", &path])
            .unwrap();
        table.case("path-info -r", v, || {
            let listed = client.line("nix", &["path-info", "--store", &uri, "-r", &path])?;
            equal(lines(&listed), lines(&closure))
        });
        table.case("-qR", v, || {
            let listed = client.line("nix-store", &["--store", &uri, "-qR", &path])?;
            equal(lines(&listed), lines(&closure))
        });
        table.case("build by path", v, || client.build(&uri, &tree).map(drop));
        // A client of a socket reads files itself, and a cache has none: this way it does not.
        let program = place.script(&format!(
            "#!/bin/sh\nexec '{}' daemon --store '{cache}' --stdio\n",
            env!("CARGO_BIN_EXE_tk-store")
        ));
        let ssh = format!("ssh-ng://anybody?remote-program={}", program.display());
        table.case("copy from", v, || {
            let to = place.path("copied");
            let copy = [
                "copy",
                "--from",
                &ssh,
                "--to",
                text(&to),
                "--no-check-sigs",
                &path,
                &tree,
            ];
            client.ok("nix", &copy)?;
            client.ok(
                "nix-store",
                &["--store", text(&to), "--verify", "--check-contents"],
            )?;
            let listed = client.line("nix-store", &["--store", text(&to), "-qR", &path])?;
            equal(lines(&listed), lines(&closure))
        });
        table.case("ls and cat", v, || {
            let told = client.line("nix", &["store", "ls", "--store", &ssh, "-R", &tree])?;
            equal(lines(&told), lines("./deep\n./deep/link\n./file"))?;
            let file = format!("{tree}/file");
            equal(
                client.line("nix", &["store", "cat", "--store", &ssh, &file])?,
                "content".into(),
            )
        });
    }
    table.finish();
}

/// Who needs which signatures: the owner, somebody else, and whoever comes to a server that trusts
/// nobody.
#[tokio::test(flavor = "multi_thread")]
async fn signatures() {
    let mut table = Tally::new("real clients and our server: signatures", &VERSIONS);
    for rig in VERSIONS.into_iter().filter_map(rig) {
        let place = Place::new();
        let client = Client {
            rig: &rig,
            place: &place,
        };
        let key = SecretKey::generate("test-1").unwrap();
        // Others can read it, unlike a local store.
        let config = BinaryCacheConfig {
            create: true,
            ..BinaryCacheConfig::default()
        };
        let source = BinaryCache::open_folder(place.path("source"), config);
        let source = source.await.unwrap();
        let unsigned = input_addressed(&source, "unsigned", None).await;
        let signed = input_addressed(&source, "signed", Some(&key)).await;
        let from = format!("file://{}", place.path("source").display());
        let public = key.public().to_string();
        for (name, args, other_user, trusted) in [
            ("owner", &["--trusted-key", &public][..], false, true),
            (
                "nobody trusted",
                &["--trusted-key", &public, "--force-untrusted"],
                false,
                false,
            ),
            ("another user", &["--trusted-key", &public], true, false),
            (
                "a trusted user",
                &["--trusted-key", &public, "--trusted-user", "nobody"],
                true,
                true,
            ),
        ] {
            if other_user && !rustix::process::geteuid().is_root() {
                skip(&test_name(), "only root can be another user as well");
                continue;
            }
            let server = place.serve(
                &place.path(&format!("root of {name}").replace(' ', "-")),
                args,
            );
            let uri = server.uri();
            let copy = |path: &str, more: &[&str]| {
                let mut args = vec!["copy", "--from", &from, "--to", &uri, path];
                args.extend(more);
                if other_user {
                    client.run_as_nobody("nix", &args)
                } else {
                    client.run("nix", &args)
                }
            };
            for (path, more, fine) in [
                (&unsigned, &[][..], false),
                (&unsigned, &["--no-check-sigs"], trusted),
                (&signed, &[], true),
            ] {
                let what = format!("{name}: {path} {more:?}");
                let out = copy(path, more);
                table.case(rig.version, &what, || {
                    let words = String::from_utf8_lossy(&out.stderr);
                    equal((out.status.success(), &*words), (fine, &*words))?;
                    if !fine {
                        contains(&words, "is not signed")?;
                    }
                    let valid = client.run("nix", &["path-info", "--store", &uri, path]);
                    equal(valid.status.success(), fine)
                });
            }
        }
        // As with Nix: a store that asks nobody for signatures takes what it is given.
        let open = format!(
            "local?root={}&require-sigs=false",
            text(&place.path("open"))
        );
        let server = place.serve(open.as_ref(), &["--force-untrusted"]);
        let uri = format!("unix://{}", text(&server.socket));
        table.case(rig.version, "require-sigs=false", || {
            client
                .ok("nix", &["copy", "--from", &from, "--to", &uri, &unsigned])
                .map(drop)
        });
    }
    table.finish();
}

each_version!(killed_clients);

/// A client that is killed in the middle of an upload leaves nothing, not even a lock.
fn killed_clients(version: &'static str) {
    let Some(rig) = rig(version) else { return };
    let place = Place::new();
    let root = place.path("root");
    let server = place.serve(&root, &[]);
    let client = Client {
        rig: &rig,
        place: &place,
    };
    let big = place.path("big");
    let file = fs::File::create(&big).unwrap();
    file.set_len(2 << 30).unwrap();
    let args = ["--store", &server.uri(), "--add", text(&big)];
    let mut child = client.command("nix-store", &args).spawn().unwrap();
    let begun = wait_for(|| uploading(&root));
    assert!(begun, "the upload has begun");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(wait_for(|| !uploading(&root)), "what was unpacked goes");
    let listed = client
        .ok("nix", &["path-info", "--store", &server.uri(), "--all"])
        .unwrap();
    assert_eq!(listed, "", "nothing is visible");
    // The same path from somebody else, at once.
    file.set_len(1 << 20).unwrap();
    let start = Instant::now();
    client.ok("nix-store", &args).unwrap();
    assert!(start.elapsed() < Duration::from_secs(20), "no lock is held");
}

/// Whether something is being unpacked.
fn uploading(root: &Path) -> bool {
    let Ok(entries) = fs::read_dir(root.join("nix/store")) else {
        return false;
    };
    let mut names = entries
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned());
    names.any(|name| {
        name.contains("-tk-tmp-") && holds_something(&root.join("nix/store").join(name))
    })
}

fn holds_something(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}

/// The process under attack: what it takes in memory at its peak, and that it goes on.
#[test]
fn hostile_clients() {
    let place = Place::new();
    let server = place.serve(&place.path("root"), &[]);
    let words = |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|w| w.to_le_bytes()).collect() };
    let hello = words(&[0x6e69_7863, 1 << 8 | 37, 0, 0]);
    let huge = 1 << 60;
    let mut attacks = vec![
        words(&[huge, huge, huge]),
        [hello.clone(), words(&[31, huge])].concat(),
        [hello.clone(), words(&[44, 0, 1, 8, huge])].concat(),
        [hello.clone(), words(&[1, huge])].concat(),
        [hello.clone(), vec![0xff; 4096]].concat(),
    ];
    // A text that goes on to the limit and beyond; a list of empty texts without end.
    let endless = [
        hello.clone(),
        words(&[8, 1, 0x61, 1 << 23]),
        vec![b'x'; 9 << 20],
    ]
    .concat();
    let list = [hello.clone(), words(&[37, 0, 1 << 17]), vec![0; 4 << 20]].concat();
    let frames = words(&[39]);
    attacks.extend([endless, list, [hello.clone(), frames].concat()]);
    for attack in &attacks {
        let mut stream = UnixStream::connect(&server.socket).unwrap();
        stream
            .set_write_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        // It may hang up at any time, which is the point.
        let _ = stream.write_all(attack);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let answer = std::io::copy(&mut stream, &mut std::io::sink());
        assert!(
            !matches!(&answer, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock),
            "it hangs"
        );
    }
    let status = fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib <= 64 << 10, "the server took {kib} KiB");
    let mut machine = Command::new(env!("CARGO_BIN_EXE_tk-store"));
    let store = format!("unix://{}", server.socket.display());
    let path = "/nix/store/g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-absent";
    let out = machine
        .args(["path-info", "--store", &store, path])
        .output()
        .unwrap();
    assert_eq!(
        out.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
}

/// The log, one object a line; how the server ends; what it replaces and what not.
#[test]
fn log_and_end() {
    let place = Place::new();
    let mut server = place.serve(&place.path("root"), &["--log-format", "json"]);
    let store = format!("unix://{}", server.socket.display());
    let ask = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tk-store"));
        let path = "/nix/store/g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-absent";
        command
            .args(["path-info", "--store", &store, path])
            .output()
            .unwrap()
    };
    assert_eq!(ask().status.code(), Some(1));
    let root = place.path("other");
    let second = place.daemon(&root, &server.socket, &[]).output().unwrap();
    assert_eq!(second.status.code(), Some(2));
    let words = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(words.contains("another server answers there"), "{words}");

    rustix::process::kill_process(pid(&server.child), rustix::process::Signal::TERM).unwrap();
    assert!(server.child.wait().unwrap().success());
    assert!(!server.socket.exists(), "it takes its socket away");
    let log = fs::read_to_string(&server.log).unwrap();
    let events: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let find = |name: &str| events.iter().find(|e| e["event"] == name).unwrap();
    assert_eq!(
        find("connected")["uid"],
        rustix::process::geteuid().as_raw()
    );
    assert_eq!(find("ready")["version"], "1.38");
    assert_eq!(find("ready")["trusted"], true);
    let operation = events
        .iter()
        .find(|e| e["operation"] == "QueryPathInfo")
        .unwrap();
    assert_eq!(operation["outcome"], "done");
    assert!(operation["duration_ms"].is_number());
    let operations = |e: &Value| e["operations"].as_u64().is_some_and(|n| n > 0);
    assert!(
        events
            .iter()
            .any(|e| e["event"] == "closed" && operations(e))
    );

    // What a killed server leaves is no obstacle.
    let mut server = place.serve(&place.path("root"), &[]);
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    assert!(server.socket.exists());
    let _third = place.serve(&place.path("root"), &[]);
    assert_eq!(ask().status.code(), Some(1));
}

/// The socket of a store that only its owner can read is for the owner.
#[test]
fn private_stores_have_private_sockets() {
    let place = Place::new();
    let closed = place.path("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    for (store, mode) in [(place.path("open"), 0o666), (closed.join("root"), 0o600)] {
        let server = place.serve(&store, &[]);
        let permissions = fs::metadata(&server.socket).unwrap().permissions();
        assert_eq!(permissions.mode() & 0o777, mode, "{}", store.display());
    }
}

/// Systemd passes a socket, and is told when the server is ready.
#[test]
fn socket_activation() {
    let Ok(found) = Command::new("python3").arg("--version").output() else {
        return skip(&test_name(), "there is no python3 to play systemd");
    };
    assert!(found.status.success());
    let place = Place::new();
    let script = format!(
        "import os, socket, sys\n\
         s = socket.socket(socket.AF_UNIX); s.bind({socket:?}); s.listen()\n\
         n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); n.bind({notify:?}); n.settimeout(30)\n\
         pid = os.fork()\n\
         if pid == 0:\n\
         \x20   os.dup2(s.fileno(), 3); os.set_inheritable(3, True)\n\
         \x20   os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()), NOTIFY_SOCKET={notify:?})\n\
         \x20   os.execv({program:?}, ['tk-store', 'daemon', '--store', {root:?}])\n\
         print(n.recv(100).decode(), flush=True)\n\
         c = socket.socket(socket.AF_UNIX); c.connect({socket:?})\n\
         c.sendall((0x6e697863).to_bytes(8, 'little')); print(c.recv(8).hex(), flush=True); c.close()\n\
         os.kill(pid, 15); print(n.recv(100).decode(), flush=True)\n\
         print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), os.path.exists({socket:?}))\n",
        socket = text(&place.path("s")),
        notify = text(&place.path("n")),
        program = env!("CARGO_BIN_EXE_tk-store"),
        root = text(&place.path("root")),
    );
    let out = Command::new("python3")
        .args(["-c", &script])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&out.stdout);
    let lines: Vec<_> = told.split_whitespace().collect();
    let expected = ["READY=1", "6f69786400000000", "STOPPING=1", "0", "True"];
    assert_eq!(lines, expected, "{}", String::from_utf8_lossy(&out.stderr));
}

/// A folder for stores, sockets and what is added.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("serve.")
            .tempdir_in("/tmp")
            .unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Place { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Something to add.
    fn tree(&self, name: &str) -> PathBuf {
        let folder = self.path(name);
        fs::create_dir_all(folder.join("deep")).unwrap();
        fs::write(folder.join("file"), "content").unwrap();
        symlink("../file", folder.join("deep/link")).unwrap();
        folder
    }

    fn script(&self, content: &str) -> PathBuf {
        let path = self.path("program");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn daemon(&self, store: &Path, socket: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tk-store"));
        command
            .args(["daemon", "--store", text(store), "--socket", text(socket)])
            .args(args)
            .env("NIX_CONF_DIR", self.path("etc"))
            .stdin(Stdio::null());
        command
    }

    /// A server that answers.
    fn serve(&self, store: &Path, args: &[&str]) -> Served {
        let (socket, log) = (self.path("socket"), self.path("log"));
        let _ = fs::remove_file(&log);
        let mut command = self.daemon(store, &socket, args);
        command.stderr(fs::File::create(&log).unwrap());
        let served = Served {
            child: command.spawn().unwrap(),
            socket,
            log,
            root: if store.starts_with("file:") {
                self.path("no-files")
            } else {
                store.to_owned()
            },
        };
        let up = wait_for(|| UnixStream::connect(&served.socket).is_ok());
        assert!(
            up,
            "{}",
            fs::read_to_string(&served.log).unwrap_or_default()
        );
        served
    }
}

/// A running `tk-store daemon`; it ends when this is dropped.
struct Served {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
    root: PathBuf,
}

impl Served {
    /// For clients that see the files of the store, or of none.
    fn uri(&self) -> String {
        format!(
            "unix://{}?root={}",
            self.socket.display(),
            self.root.display()
        )
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A real Nix as a client.
struct Client<'a> {
    rig: &'a Rig,
    place: &'a Place,
}

impl Client<'_> {
    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = self.rig.command(program);
        let ssh = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rig/fake-ssh");
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .args(args)
            .env("PATH", format!("{}:{path}", ssh.display()))
            .current_dir(self.place.folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, program: &str, args: &[&str]) -> Output {
        self.command(program, args).output().expect("nix starts")
    }

    /// With a configuration and a state that this user may use.
    fn run_as_nobody(&self, program: &str, args: &[&str]) -> Output {
        let home = self.place.path("nobody");
        fs::create_dir_all(&home).unwrap();
        rustix::fs::chown(&home, Some(uid(NOBODY)), None).unwrap();
        let plain = self.command(program, args);
        let mut command = Command::new("setpriv");
        command
            .args([
                "--reuid",
                &NOBODY.to_string(),
                "--regid",
                &NOBODY.to_string(),
                "--clear-groups",
            ])
            .arg(plain.get_program())
            .args(args)
            .args(["--extra-experimental-features", "nix-command"])
            .current_dir(&home)
            .stdin(Stdio::null());
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        for (name, folder) in [
            ("HOME", "."),
            ("NIX_CONF_DIR", "conf"),
            ("NIX_STATE_DIR", "state"),
            ("NIX_LOG_DIR", "log"),
            ("XDG_CACHE_HOME", "cache"),
            ("XDG_CONFIG_HOME", "config"),
            ("XDG_DATA_HOME", "data"),
        ] {
            command.env(name, home.join(folder));
        }
        command.output().expect("setpriv starts")
    }

    fn ok(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let out = self.run(program, args);
        if out.status.success() {
            Ok(String::from_utf8_lossy(&out.stdout).into_owned())
        } else {
            Err(format!(
                "{args:?}: {}",
                String::from_utf8_lossy(&out.stderr)
            ))
        }
    }

    /// The same without the last line break.
    fn line(&self, program: &str, args: &[&str]) -> Result<String, String> {
        Ok(self.ok(program, args)?.trim_end().to_owned())
    }

    /// What a command says that must fail.
    fn fails(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let out = self.run(program, args);
        if out.status.success() {
            Err(format!("{args:?} did not fail"))
        } else {
            Ok(String::from_utf8_lossy(&out.stderr).into_owned())
        }
    }

    /// A text that refers to another one, both added.
    fn text_with_reference(&self, store: &str) -> Result<String, String> {
        let expression = r#"builtins.toFile "top" "see ${builtins.toFile "below" "hello"}""#;
        // Without the mode nothing is added.
        let args = [
            "--store",
            store,
            "--eval",
            "--read-write-mode",
            "--expr",
            expression,
        ];
        Ok(self
            .line("nix-instantiate", &args)?
            .trim_matches('"')
            .to_owned())
    }

    fn build(&self, store: &str, what: &str) -> Result<String, String> {
        let args = ["build", "--store", store, "--no-link", "--json", what];
        self.ok("nix", &args)
    }

    /// A derivation whose content is demanded: built if it is there already.
    fn build_fixed(&self, store: &str, there: bool) -> Result<(), String> {
        let name = if there { "made" } else { "not-made" };
        let content = self.place.path(name);
        fs::write(&content, name).map_err(|e| e.to_string())?;
        let hash = Hash::digest(Algorithm::Sha256, name.as_bytes());
        let hash = hash.to_text(tk_path::Encoding::Base16);
        let expression = format!(
            r#"derivation {{ name = "{name}"; system = "x86_64-linux"; builder = "/bin/sh";
               outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = "{hash}"; }}"#
        );
        let args = ["--store", store, "--expr", &expression];
        let drv = self.line("nix-instantiate", &args)?;
        if !there {
            let words = self.fails("nix-store", &["--store", store, "-r", &drv])?;
            contains(&words, "cannot build without nix")?;
            let what = self.output_of(&drv);
            let build = ["build", "--store", store, "--no-link", &what];
            return contains(&self.fails("nix", &build)?, "cannot build without nix");
        }
        let fixed = ["--store", store, "--add-fixed", "sha256", text(&content)];
        let path = self.line("nix-store", &fixed)?;
        let realised = self.line("nix-store", &["--store", store, "-r", &drv])?;
        equal(realised, path.clone())?;
        contains(&self.build(store, &self.output_of(&drv))?, &path)
    }

    fn output_of(&self, drv: &str) -> String {
        match self.rig.version {
            // All outputs, of which there is one.
            "2.8" => drv.to_owned(),
            _ => format!("{drv}^out"),
        }
    }
}

/// A path that nothing but a signature vouches for.
async fn input_addressed(store: &BinaryCache, name: &str, key: Option<&SecretKey>) -> String {
    let nar = file_nar(name.as_bytes());
    let hash = Hash::digest(Algorithm::Sha256, &nar);
    let digest = hash.as_bytes()[..20].try_into().unwrap();
    let path = StorePath::from_digest(&digest, name).unwrap();
    let mut info = PathInfo::new(path, hash.try_into().unwrap(), nar.len() as u64);
    if let Some(key) = key {
        info.sign(&StoreDir::default(), key).unwrap();
    }
    let path = store.dir().path(&info.path);
    store
        .add_one(info, nar::from_bytes(nar), &SigCheck::Skip.into())
        .await
        .unwrap();
    path
}

fn contains(text: &str, what: &str) -> Result<(), String> {
    if text.contains(what) {
        Ok(())
    } else {
        Err(format!("{what:?} is not in {text:?}"))
    }
}

fn lines(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    lines.sort_unstable();
    lines
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn wait_for(mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(30) {
        if done() {
            return true;
        }
        thread::sleep(Duration::from_millis(10));
    }
    false
}

fn pid(child: &Child) -> rustix::process::Pid {
    rustix::process::Pid::from_child(child)
}

fn uid(id: u32) -> rustix::fs::Uid {
    rustix::fs::Uid::from_raw(id)
}

const NOBODY: u32 = 65534;
