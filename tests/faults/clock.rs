//! A clock that jumps, by years: in the midst of a command, and between two.
//!
//! `clock.c` is preloaded, so that it jumps for all that is in the process.

use super::{
    invariants,
    support::{
        machine::{Done, Machine},
        made, report,
        servers::Nginx,
        skip, test_name,
    },
    sweep::{TABLE, room},
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

#[test]
fn jumps_in_the_midst() {
    let Some(world) = World::new() else { return };
    let present = format!("check --in {}/cache {}", world.nginx.url, world.top);
    let absent = format!("check --in {}/cache /nix/store/{ABSENT}", world.nginx.url);
    let pull = format!(
        "pull --no-check-sigs --from {}/cache --to ./to {}",
        world.nginx.url, world.top
    );
    let far = format!(
        "push --store {} --to {}/NAME {}",
        world.store().display(),
        world.nginx.url,
        world.top
    );
    let mut table = String::new();
    for (name, line, status) in [
        ("check, present", present, 0),
        ("check, absent", absent, 1),
        ("pull over HTTP", pull, 0),
        ("push over HTTP", far, 0),
    ] {
        let mut runs = 0;
        for jump in JUMPS {
            runs += world.at_each_call(&line, status, jump);
        }
        table += &format!("  {name:<34} the clock jumps at {runs} calls\n");
    }
    report(TABLE, &table);
}

/// What was remembered at a time that has not come yet, or long ago, is asked anew.
#[test]
fn jumps_between_two_commands() {
    let Some(world) = World::new() else { return };
    // With an unmoved clock it is believed that the path is absent, unless the memory is too busy
    // to take it.
    let believed = |_| world.absent_and_then_pushed(0, 0) == 1;
    assert!((0..TRIES).any(believed), "nothing is remembered at all");
    for (before, after) in [(YEAR, 0), (0, YEAR), (0, -YEAR)] {
        let status = world.absent_and_then_pushed(before, after);
        assert_eq!(status, 0, "{before} and {after}");
    }
}

/// A machine with a store, and its closure in the folder `cache` that nginx serves.
struct World {
    machine: Machine,
    served: TempDir,
    nginx: Nginx,
    clock: PathBuf,
    top: String,
    homes: TempDir,
}

/// From which call on the clock is other by how many seconds.
#[derive(Debug, Clone, Copy)]
struct Jump {
    at: usize,
    by: i64,
}

impl World {
    /// Without a C compiler, or nginx, the test is skipped.
    fn new() -> Option<World> {
        let machine = Machine::new();
        let clock = clock(machine.home())?;
        let served = room();
        let nginx = Nginx::start(served.path(), false, 0)?;
        let paths = made::fill(&machine.home().join("store"), &[3, 2_000, 20_000]);
        let top = format!("/nix/store/{}", paths.last().expect("some"));
        machine.ok(&format!(
            "push --store ./store --to {}/cache {top}",
            nginx.url
        ));
        let homes = room();
        Some(World {
            machine,
            served,
            nginx,
            clock,
            top,
            homes,
        })
    }

    fn store(&self) -> PathBuf {
        self.machine.home().join("store")
    }

    /// The home of somebody who remembers nothing.
    fn home(&self) -> PathBuf {
        let count = fs::read_dir(self.homes.path()).expect("a folder").count();
        let home = self.homes.path().join(format!("home-{count}"));
        fs::create_dir_all(home.join("etc")).expect("writable");
        fs::write(
            home.join("etc/nix.conf"),
            "narinfo-cache-negative-ttl = 3600\n",
        )
        .expect("writable");
        home
    }

    /// Runs a command, in which `NAME` is the last part of `home`.
    fn run(&self, home: &Path, line: &str, jump: Jump) -> Done {
        let name = home.file_name().expect("a name").to_string_lossy();
        let line = line.replace("NAME", &name);
        let mut command = self.machine.command(line.split_whitespace());
        command
            .current_dir(home)
            .env("HOME", home)
            .env("NIX_CONF_DIR", home.join("etc"))
            .env("LD_PRELOAD", &self.clock)
            .env("TK_CLOCK_AT", jump.at.to_string())
            .env("TK_CLOCK_JUMP", jump.by.to_string())
            .env("TK_CLOCK_CALLS", home.join(CALLS));
        self.machine.done(command.output())
    }

    /// What a check says, by a clock that is off by `after`, of a path that was absent at a check
    /// when the clock was off by `before`, and was pushed by somebody else since.
    fn absent_and_then_pushed(&self, before: i64, after: i64) -> i32 {
        let _ = fs::remove_dir_all(self.served.path().join("other"));
        let (home, cache) = (self.home(), format!("{}/other", self.nginx.url));
        let check = format!("check --in {cache} {}", self.top);
        self.machine.ok(&format!("cache init {cache}"));
        let first = self.run(&home, &check, Jump { at: 0, by: before });
        assert_eq!(first.status, 1, "{first:?}");
        let push = format!("push --store ./store --to {cache} {}", self.top);
        self.machine.ok(&push);
        self.run(&home, &check, Jump { at: 0, by: after }).status
    }

    /// A command with a jump at each call of the clock, and then once more without: what it gives
    /// is what it always gives. The number of calls.
    fn at_each_call(&self, line: &str, status: i32, by: i64) -> usize {
        let undisturbed = self.home();
        let done = self.run(&undisturbed, line, Jump { at: 0, by: 0 });
        assert_eq!(done.status, status, "{line}: {done:?}");
        let whole = self.result(&undisturbed);
        let mut at = 0;
        loop {
            let home = self.home();
            for jump in [Jump { at, by }, Jump { at: 0, by: 0 }] {
                let done = self.run(&home, line, jump);
                assert_eq!(done.status, status, "{line}, {jump:?}: {done:?}");
                assert_eq!(self.result(&home), whole, "{line}, {jump:?}");
                if jump.by != 0 && calls(&home) <= at {
                    return at;
                }
            }
            at += 1;
        }
    }

    /// What a command made in a home, or on the server for it.
    fn result(&self, home: &Path) -> BTreeMap<String, String> {
        let served = self.served.path().join(home.file_name().expect("a name"));
        let (here, runtime) = (home.join("to"), tokio::runtime::Runtime::new());
        let runtime = runtime.expect("a runtime");
        let held = runtime.block_on(async {
            invariants::cache(&served).await?;
            invariants::local(&here).await
        });
        held.unwrap_or_else(|words| panic!("{words}"));
        if here.join("nix").exists() {
            runtime.block_on(invariants::rows(&here))
        } else {
            invariants::files(&served)
        }
    }
}

/// The clock as a library, made in `folder`.
fn clock(folder: &Path) -> Option<PathBuf> {
    let library = folder.join("clock.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/clock.c");
    let made = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &source])
        .output();
    match made {
        Ok(made) if made.status.success() => Some(library),
        Ok(made) => panic!("{}", String::from_utf8_lossy(&made.stderr)),
        Err(_) => {
            skip(&test_name(), "there is no C compiler to make a clock with");
            None
        }
    }
}

/// How often the last command in `home` asked for the time.
fn calls(home: &Path) -> usize {
    let text = fs::read_to_string(home.join(CALLS)).expect("the clock was preloaded");
    text.parse().expect("a number")
}

const TRIES: usize = 5;

const CALLS: &str = "calls-of-the-clock";

/// In seconds.
const YEAR: i64 = 365 * 24 * 3600;

/// Back by a year, forwards by a year, and before the time that counts from 1970.
const JUMPS: [i64; 3] = [-YEAR, YEAR, -80 * YEAR];

const ABSENT: &str = "00000000000000000000000000000000-absent";
