//! Signals in the midst of a command.

use super::{
    invariants,
    support::{
        machine::{Done, Machine},
        made, report,
    },
    sweep::{TABLE, same},
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};
use tk_local::{LocalConfig, LocalStore};
use tk_path::{Algorithm, Method, References};
use tk_store::{AddContent, nar};

#[test]
fn signals_that_end_a_push() {
    ends(&Job::push());
}

#[test]
fn signals_that_end_a_pull() {
    ends(&Job::pull());
}

#[test]
fn signals_that_end_a_copy() {
    ends(&Job::copy());
}

/// While it is stopped what is there holds, and others do the same job; then it goes on to its end.
#[test]
fn a_push_that_is_stopped_and_goes_on() {
    let job = Job::push();
    for few in MOMENTS {
        let folder = job.machine.home().join(format!("stopped-{few}"));
        let mut child = job.midst(&folder, few);
        signal(&child, Signal::STOP);
        job.holds(&folder);
        let other = job.command(&folder).output();
        let other = job.machine.done(other);
        assert_eq!(other.status, 0, "{other:?}");
        job.holds(&folder);
        signal(&child, Signal::CONT);
        let done = finished(&mut child);
        assert_eq!(done.0.code(), Some(0), "{}", done.1);
        assert_eq!((job.content)(&folder), job.whole);
    }
}

/// Nobody reads what the command says: the work is done all the same, and it says nothing of it.
#[test]
fn a_pipe_that_nobody_reads() {
    for job in [Job::push(), Job::pull(), Job::copy()] {
        let folder = job.machine.home().join("unread");
        let mut command = job.command(&folder);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut child = command
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(command);
        let (status, said) = finished(&mut child);
        assert!(matches!(status.code(), Some(0 | 141)), "{status:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
        assert_eq!((job.content)(&folder), job.whole);
    }
}

/// Guard: a process that is killed in the midst of making what it should make at once is found.
#[test]
fn a_command_that_is_not_safe_is_found() {
    let job = Job::push();
    let folder = job.machine.home().join("unsafe");
    // As a program that copies file by file, in the order of their names.
    let whole = job.machine.home().join("whole");
    let script = "mkdir -p $1; cd $0; for f in *.narinfo; do cp $f $1; done; exec sleep 600";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(&whole).arg(&folder);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    wait_for(|| count(&folder) >= SIZES.len());
    signal(&child, Signal::KILL);
    finished(&mut child);
    assert!(job.invariant(&folder).is_err());
}

/// A command that fills a folder, `{to}`.
struct Job {
    name: &'static str,
    machine: Machine,
    line: String,
    invariant: fn(&Path) -> Result<(), String>,
    content: fn(&Path) -> BTreeMap<String, String>,
    whole: BTreeMap<String, String>,
}

impl Job {
    fn push() -> Job {
        Job::new(
            "push",
            "push --store ./store --to file://{to} {top}",
            in_cache,
            invariants::files,
        )
    }

    fn pull() -> Job {
        let line = "pull --no-check-sigs --from file://{home}/cache --to {to} {top}";
        Job::new("pull", line, in_store, rows)
    }

    fn copy() -> Job {
        let line = "copy --no-check-sigs --from ./store --to {to} {top}";
        Job::new("copy", line, in_store, rows)
    }

    fn new(
        name: &'static str,
        line: &str,
        invariant: fn(&Path) -> Result<(), String>,
        content: fn(&Path) -> BTreeMap<String, String>,
    ) -> Job {
        let machine = Machine::new();
        let paths = made::fill(&machine.home().join("store"), &SIZES);
        let top = format!("/nix/store/{}", paths.last().expect("some"));
        machine.ok(&format!(
            "push --store ./store --to {} {top}",
            machine.cache("cache")
        ));
        let home = machine.home().to_string_lossy().into_owned();
        let mut job = Job {
            name,
            line: line.replace("{top}", &top).replace("{home}", &home),
            machine,
            invariant,
            content,
            whole: BTreeMap::new(),
        };
        let folder = job.machine.home().join("whole");
        let done = job.machine.done(job.command(&folder).output());
        assert_eq!(done.status, 0, "{done:?}");
        job.whole = content(&folder);
        job
    }

    fn command(&self, folder: &Path) -> Command {
        let line = self.line.replace("{to}", &folder.to_string_lossy());
        self.machine.command(line.split_whitespace())
    }

    /// The command at work, when there are at least `few` files and folders.
    fn midst(&self, folder: &Path, few: usize) -> Child {
        let mut command = self.command(folder);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        wait_for(|| count(folder) >= few);
        child.expect("tk-store starts")
    }

    fn invariant(&self, folder: &Path) -> Result<(), String> {
        (self.invariant)(folder)
    }

    fn holds(&self, folder: &Path) {
        self.invariant(folder)
            .unwrap_or_else(|words| panic!("{}: {words}", self.name));
    }
}

/// Each signal that ends a process, at some moments: it ends the command, what is there holds, and
/// the same command again makes all of it.
fn ends(job: &Job) {
    for end in [Signal::INT, Signal::TERM, Signal::HUP, Signal::KILL] {
        for few in MOMENTS {
            let folder = job.machine.home().join(format!("{}-{few}", end.as_raw()));
            let mut child = job.midst(&folder, few);
            signal(&child, end);
            let (status, said) = finished(&mut child);
            let number = end.as_raw();
            let by_signal = status.signal() == Some(number) || status.code() == Some(128 + number);
            // It may have been faster.
            assert!(
                by_signal || status.code() == Some(0),
                "{end:?}: {status:?}: {said}"
            );
            job.holds(&folder);
            let done: Done = job.machine.done(job.command(&folder).output());
            assert_eq!(done.status, 0, "after {end:?}: {done:?}");
            same("done again", &(job.content)(&folder), &job.whole)
                .unwrap_or_else(|words| panic!("{}, after {end:?}: {words}", job.name));
        }
    }
    let line = format!(
        "  {:<34} 4 signals at {} moments\n",
        job.name,
        MOMENTS.len()
    );
    report(TABLE, &line);
}

fn in_cache(folder: &Path) -> Result<(), String> {
    block_on(invariants::cache(folder))
}

fn in_store(folder: &Path) -> Result<(), String> {
    block_on(invariants::local(folder))
}

/// What is there when one more path was added: whoever adds removes what the dead left.
fn rows(folder: &Path) -> BTreeMap<String, String> {
    block_on(async {
        let store = LocalStore::open(LocalConfig::chroot(folder)).await;
        let (store, nar) = (store.expect("a store"), made::nar_of(b"later"));
        let (method, algorithm) = (Method::Nar, Algorithm::Sha256);
        let (none, nar) = (References::default(), nar::from_bytes(nar));
        let added = store.add_content("later", method, algorithm, &none, nar);
        added.await.expect("nothing is in the way");
        drop(store);
        let mut rows = invariants::rows(folder).await;
        // Who is killed after the row and before the end of the lock leaves an empty file that
        // nobody holds, as Nix does; a collector takes it.
        rows.retain(|name, _| !name.ends_with(".lock"));
        rows
    })
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new()
        .expect("a runtime")
        .block_on(work)
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_child(child);
    // It may have ended by itself; until it is waited for nobody else has its number.
    let _ = kill_process(pid, signal);
}

/// How it ended, and what it said.
fn finished(child: &mut Child) -> (ExitStatus, String) {
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_string(&mut said);
    }
    (child.wait().expect("it ends"), said)
}

/// Files and folders below `folder`, however deep.
fn count(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| 1 + count(&entry.path())).sum()
}

fn wait_for(mut there: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !there() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does nothing");
        thread::sleep(Duration::from_micros(200));
    }
}

/// So many files and folders have been made when the signal comes.
const MOMENTS: [usize; 4] = [1, 9, 17, 26];

/// Bytes of the files.
const SIZES: [usize; 24] = [70_000; 24];
