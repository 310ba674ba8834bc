//! Real daemons: each with a store of its own, whose genuine name is `/nix/store` where it runs.
#![allow(dead_code, reason = "each test uses its part")]

use super::{Rig, rig, skip, test_name};
use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Stdio},
    sync::{Mutex, PoisonError},
};
use tempfile::TempDir;
use tk_nar::fs::remove_tree;
use tokio::net::UnixStream;

/// A running daemon of real Nix. It ends, and its state goes, when this is dropped.
pub struct RigDaemon {
    /// As in [`super::VERSIONS`].
    pub version: &'static str,
    /// Whether it trusts us.
    pub trusted: bool,
    child: Child,
    shell: Mutex<Option<Shell>>,
    state: Option<TempDir>,
    _rig: Rig,
}

/// A shell beside the daemon, which sees its `/nix`.
struct Shell {
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    commands: u32,
}

/// What became of a command.
#[derive(Debug)]
pub struct Finished {
    /// The exit status.
    pub status: i32,
    /// All of its stdout.
    pub stdout: String,
    /// All of its stderr.
    pub stderr: String,
}

impl RigDaemon {
    /// A daemon of real Nix `version`; without it the test is skipped.
    pub fn start(version: &'static str, trusted: bool) -> Option<RigDaemon> {
        RigDaemon::start_with(version, trusted, &[])
    }

    /// As [`RigDaemon::start`], with further lines for its `nix.conf`, in which `{STATE}` is
    /// [`RigDaemon::state`].
    pub fn start_with(version: &'static str, trusted: bool, conf: &[&str]) -> Option<RigDaemon> {
        let rig = rig(version)?;
        let state = short_folder();
        let mut command = rig.with_daemon();
        if !trusted {
            command.arg("--untrusted");
        }
        for line in conf {
            let line = line.replace("{STATE}", &state.path().to_string_lossy());
            command.args(["--conf", &line]);
        }
        let mut child = command
            .arg("--state")
            .arg(state.path())
            .args([version, "--", "sh"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tests/rig/with-daemon starts");
        let shell = Shell {
            stdin: child.stdin.take().expect("piped"),
            stdout: BufReader::new(child.stdout.take().expect("piped")),
            commands: 0,
        };
        let daemon = RigDaemon {
            version,
            trusted,
            child,
            shell: Mutex::new(Some(shell)),
            state: Some(state),
            _rig: rig,
        };
        match daemon.sh("true").status {
            0 => Some(daemon),
            _ => {
                let name = format!("{} with a daemon {version}", test_name());
                skip(&name, "it does not start; see stderr");
                None
            }
        }
    }

    /// Its socket, reachable from here.
    pub fn socket(&self) -> PathBuf {
        self.state().join("nix/var/nix/daemon-socket/socket")
    }

    /// Where the files of its `/nix/store` lie, seen from here.
    pub fn store(&self) -> PathBuf {
        self.state().join("nix/store")
    }

    /// Where its build logs lie, seen from here.
    pub fn logs(&self) -> PathBuf {
        self.state().join("nix/var/log/nix")
    }

    /// A folder that goes with the daemon, with the same name on both sides.
    pub fn folder(&self) -> PathBuf {
        let folder = self.state().join("work");
        fs::create_dir_all(&folder).expect("a folder for the test");
        folder
    }

    /// Everything of it: the folder that holds its `/nix`.
    pub fn state(&self) -> &Path {
        self.state.as_ref().expect("there until dropped").path()
    }

    /// Ends it without a chance to clean up: the process that listens, and those that serve a
    /// connection, which are its children.
    pub async fn kill(&self) {
        self.signal("KILL").await;
    }

    /// Stops the same processes, so that whoever asks it something waits, on connections that there are
    /// and on new ones.
    pub async fn freeze(&self) {
        self.signal("STOP").await;
    }

    /// The end of [`RigDaemon::freeze`].
    pub async fn thaw(&self) {
        self.signal("CONT").await;
    }

    async fn signal(&self, signal: &str) {
        let stream = UnixStream::connect(self.socket())
            .await
            .expect("it listens");
        let pid = stream.peer_cred().expect("a peer").pid().expect("its id");
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.expect("a process").trim_end().to_owned();
        // A child may end by itself meanwhile: its client, an earlier command, is gone.
        let script = format!(
            "kill -{signal} {pid} || exit
             for child in {children}; do kill -{signal} $child 2>/dev/null || [ ! -e /proc/$child ]; done"
        );
        let done = self.sh(&script);
        assert_eq!(done.status, 0, "{done:?}");
    }

    /// Runs `script` in a shell that sees the daemon's `/nix`, with that version's Nix in `PATH`
    /// and the daemon as its store.
    pub fn sh(&self, script: &str) -> Finished {
        let mut shell = self.shell.lock().unwrap_or_else(PoisonError::into_inner);
        let shell = shell.as_mut().expect("there until dropped");
        shell.run(self.state(), script)
    }

    /// Runs a program of this Nix as a client of the daemon.
    pub fn run(&self, program: &str, args: &[&str]) -> Finished {
        let words: Vec<_> = [program].iter().chain(args).map(|arg| quote(arg)).collect();
        self.sh(&words.join(" "))
    }

    /// What [`RigDaemon::run`] prints, without the last line break.
    ///
    /// # Panics
    /// When the command fails.
    pub fn ask(&self, program: &str, args: &[&str]) -> String {
        let done = self.run(program, args);
        assert_eq!(
            done.status, 0,
            "{program} {args:?} of {}: {}",
            self.version, done.stderr
        );
        done.stdout.trim_end().to_owned()
    }
}

impl Shell {
    fn run(&mut self, state: &Path, script: &str) -> Finished {
        self.commands += 1;
        let file = |what: &str| state.join(format!("command-{}.{what}", self.commands));
        let (input, out, err) = (file("sh"), file("out"), file("err"));
        fs::write(&input, script).expect("writable");
        // A shell of its own, which may change folders and exit.
        let line = format!(
            "sh {} >{} 2>{} </dev/null; echo $?\n",
            quote(&input.to_string_lossy()),
            quote(&out.to_string_lossy()),
            quote(&err.to_string_lossy()),
        );
        let mut status = String::new();
        let asked = self.stdin.write_all(line.as_bytes());
        let answered = asked.and_then(|()| self.stdout.read_line(&mut status));
        let status = match answered {
            Ok(_) => status.trim().parse().unwrap_or(NO_SHELL),
            Err(_) => NO_SHELL,
        };
        let read = |file: &Path| {
            let bytes = fs::read(file).unwrap_or_default();
            let _ = fs::remove_file(file);
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let _ = fs::remove_file(&input);
        Finished {
            status,
            stdout: read(&out),
            stderr: read(&err),
        }
    }
}

impl Drop for RigDaemon {
    fn drop(&mut self) {
        // Without its command the daemon is stopped, before its folder goes.
        *self.shell.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let _ = self.child.wait();
        if let Some(state) = self.state.take() {
            let _ = remove_tree(&state.keep());
        }
    }
}

/// `text` as one word of a shell.
pub fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A temporary folder in which the name of a socket is not too long for the system.
fn short_folder() -> TempDir {
    let usual = env::temp_dir();
    let place = match usual.as_os_str().len() {
        0..=SHORT => usual,
        _ => PathBuf::from("/tmp"),
    };
    tempfile::Builder::new()
        .prefix("rig.")
        .tempdir_in(place)
        .expect("a temporary folder")
}

/// As with-daemon exits when there is no daemon.
const NO_SHELL: i32 = 125;
/// In bytes: what is left of the 107 of a socket's name.
const SHORT: usize = 50;
