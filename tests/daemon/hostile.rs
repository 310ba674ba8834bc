//! Peers that lie about sizes, or never stop: `tk-store` as client and as server stays small.
//!
//! Written against bytes, not against our own messages, so that nothing is bounded on the wrong side.

use crate::{cli::Machine, support::report};
use std::{
    fmt::Write as _,
    io::{PipeReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

/// What a process may have resident at its peak.
const LIMIT_KIB: u64 = 64 << 10;
/// An endless peer is stopped after this time; a lie must have been noticed by then.
const PATIENCE: Duration = Duration::from_secs(40);
/// How long an endless stream that is no lie is watched.
const WATCHED: Duration = Duration::from_secs(3);
const HUGE: u64 = 1 << 60;
/// So many looks in a row, at a process that is never kept waiting for bytes.
const ASLEEP: u32 = 30;
/// Bytes that a pipe holds.
const PIPE: usize = 1 << 16;
const PATH: &str = "/nix/store/575s52sh487i0ylmbs9pvi606ljdszr0-hello";

const NEXT: u64 = 0x6f6c6d67;
const LAST: u64 = 0x616c7473;
const ERROR: u64 = 0x63787470;
const START: u64 = 0x53545254;
const RESULT: u64 = 0x52534c54;

/// Bytes as they go over the wire.
#[derive(Default, Clone)]
struct Wire(Vec<u8>);

impl Wire {
    fn int(mut self, n: u64) -> Self {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn text(mut self, text: &str) -> Self {
        self = self.int(text.len() as u64);
        self.0.extend(text.as_bytes());
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self
    }
}

/// What comes after a good beginning: once, and then again and again.
struct Attack {
    name: &'static str,
    head: Wire,
    forever: Wire,
    /// Whether it can be noticed; else it is only watched.
    lie: bool,
}

fn attack(name: &'static str, head: Wire, forever: Wire) -> Attack {
    Attack {
        name,
        head,
        forever,
        lie: true,
    }
}

/// Answers to QueryPathInfo.
fn on_clients() -> Vec<Attack> {
    let w = Wire::default;
    let valid = || w().int(LAST).int(1);
    let hash = "00".repeat(32);
    let log = |name, message: Wire| Attack {
        lie: false,
        ..attack(name, w(), message)
    };
    vec![
        attack("a string of 2^60 bytes", valid().int(HUGE), w().text(PATH)),
        attack(
            "2^60 references",
            valid().text("").text(&hash).int(HUGE),
            w().text(PATH),
        ),
        attack(
            "2^60 empty references",
            valid().text("").text(&hash).int(HUGE),
            w().text(""),
        ),
        attack(
            "2^60 signatures",
            valid()
                .text("")
                .text(&hash)
                .int(0)
                .int(1)
                .int(100)
                .int(0)
                .int(HUGE),
            w().text("a:b"),
        ),
        attack(
            "a log line of 2^60 bytes",
            w().int(NEXT).int(HUGE),
            w().text("x"),
        ),
        attack(
            "an error of 2^60 bytes",
            w().int(ERROR).text("Error").int(0).text("Error").int(HUGE),
            w().text("x"),
        ),
        attack(
            "2^60 traces",
            w().int(ERROR)
                .text("Error")
                .int(0)
                .text("Error")
                .text("no")
                .int(0)
                .int(HUGE),
            w().int(0).text("trace"),
        ),
        attack(
            "2^60 fields",
            w().int(START)
                .int(1)
                .int(0)
                .int(105)
                .text("building")
                .int(HUGE),
            w().int(1).text("field"),
        ),
        attack(
            "2^60 integer fields",
            w().int(RESULT).int(1).int(105).int(HUGE),
            w().int(0).int(7),
        ),
        // What is just small enough to be taken.
        attack(
            "a log line of 8 MiB",
            w().int(NEXT).int(8 << 20),
            w().text("x"),
        ),
        attack("a text of 15 MiB", valid().int(15 << 20), w().text(PATH)),
        attack(
            "100,000 fields",
            w().int(START)
                .int(1)
                .int(0)
                .int(105)
                .text("building")
                .int(100_000),
            w().int(1).text("field"),
        ),
        attack(
            "100,000 traces",
            w().int(ERROR)
                .text("Error")
                .int(0)
                .text("Error")
                .text("no")
                .int(0)
                .int(100_000),
            w().int(0).text(&"trace".repeat(10)),
        ),
        log("endless log lines", w().int(NEXT).text(&"x".repeat(1000))),
        log(
            "endless activities",
            w().int(START)
                .int(7)
                .int(3)
                .int(105)
                .text(&"x".repeat(400))
                .int(0)
                .int(6),
        ),
        attack("noise", Wire(vec![0xa5; 64]), Wire(vec![0xa5; 4096])),
    ]
}

/// Requests to a server.
fn on_servers() -> Vec<Attack> {
    let w = Wire::default;
    let options = || {
        let mut options = w().int(19);
        for n in [0, 0, 0, 3, 1, 0, 1, 7, 0, 0, 0, 0] {
            options = options.int(n);
        }
        options
    };
    let info = |wire: Wire| {
        wire.text(PATH)
            .text("")
            .text(&"00".repeat(32))
            .int(0)
            .int(0)
    };
    vec![
        attack("2^60 options", options().int(HUGE), w().text("a").text("b")),
        attack("2^60 paths", w().int(31).int(HUGE), w().text(PATH)),
        attack("a path of 2^60 bytes", w().int(1).int(HUGE), w().text(PATH)),
        attack("2^60 derived paths", w().int(40).int(HUGE), w().text(PATH)),
        attack(
            "a derived path nested without end",
            w().int(40).int(1).int(HUGE),
            Wire(b"!x!x!x!x".to_vec()),
        ),
        attack(
            "a derivation with 2^60 outputs",
            w().int(36).text(PATH).int(HUGE),
            w().text("out").text("").text("").text(""),
        ),
        attack(
            "a frame of 2^60 bytes",
            w().int(44).int(0).int(1).int(HUGE),
            Wire(vec![0; 4096]),
        ),
        attack(
            "2^60 paths in frames",
            w().int(44).int(0).int(1).int(32).int(HUGE),
            Wire(vec![0xff; 4096]),
        ),
        attack(
            "a NAR that does not end",
            info(w().int(39))
                .int(HUGE)
                .int(0)
                .int(0)
                .text("")
                .int(0)
                .int(0),
            w().int(8).text("nix-archive-1").int(16).int(1),
        ),
        // What is just small enough to be taken.
        attack(
            "50,000 derived paths",
            w().int(40).int(50_000),
            w().text(PATH),
        ),
        attack("a text of 7 MiB", w().int(1).int(7 << 20), w().text(PATH)),
        attack("noise", Wire(vec![0xa5; 64]), Wire(vec![0xa5; 4096])),
    ]
}

#[test]
fn clients_stay_small() {
    let machine = Machine::new();
    let mut table = String::new();
    for attack in on_clients() {
        let socket = machine.home().join("s");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).expect("bound");
        let (head, forever) = (attack.head.clone(), attack.forever.clone());
        thread::spawn(move || {
            for peer in listener.incoming() {
                let (head, forever) = (head.clone(), forever.clone());
                thread::spawn(move || daemon(peer.expect("a client"), &head, &forever));
            }
        });
        let uri = format!("unix://{}", socket.display());
        let mut command = machine.command(["path-info", "--store", &uri, PATH]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        if !attack.lie {
            let mut child = command.spawn().expect("tk-store starts");
            thread::sleep(WATCHED);
            row(&mut table, &attack, peak(&child));
            child.kill().expect("it ran until now");
            child.wait().expect("it ends");
            continue;
        }
        // Full: its last words keep it until it has been looked at.
        let (stderr, mut full) = std::io::pipe().expect("a pipe");
        full.write_all(&[b'.'; PIPE]).expect("there is room");
        let child = command.stderr(full).spawn().expect("tk-store starts");
        drop(command);
        let (peak, status, words) = watch(child, stderr);
        row(&mut table, &attack, peak);
        assert_eq!(status, Some(2), "{}: {words}", attack.name);
    }
    report("Hostile daemons: peak memory of tk-store", &table);
}

#[test]
fn servers_stay_small() {
    let machine = Machine::new();
    let mut table = String::new();
    for attack in on_servers() {
        let socket = machine.home().join("s");
        let mut command = machine.command(["daemon", "--socket", "s", "--store", "./store"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = command.spawn().expect("tk-store starts");
        let mut peer = connect(&socket);
        greet(&mut peer);
        let drain = peer.try_clone().expect("cloned");
        thread::spawn(move || sink(drain));
        flood(&mut peer, &attack.head, &attack.forever);
        let peak = peak(&server);
        row(&mut table, &attack, peak);
        drop(peer);
        // It serves others, as if nothing had been.
        let mut other = connect(&socket);
        greet(&mut other);
        other
            .write_all(&Wire::default().int(1).text(PATH).0)
            .expect("it listens");
        assert_eq!(answers(&mut other), [LAST, 0], "{}", attack.name);
        server.kill().expect("it ran until now");
        server.wait().expect("it ends");
        let _ = std::fs::remove_file(&socket);
    }
    report("Hostile clients: peak memory of tk-store daemon", &table);
}

/// A daemon that begins well.
fn daemon(mut client: UnixStream, head: &Wire, forever: &Wire) {
    let hello = Wire::default().int(0x6478696f).int(0x126).int(0);
    let hello = hello.text("2.34.8").int(1).int(LAST);
    if client.write_all(&hello.0).is_err() {
        return;
    }
    let drain = client.try_clone().expect("cloned");
    thread::spawn(move || sink(drain));
    flood(&mut client, head, forever);
}

fn flood(peer: &mut UnixStream, head: &Wire, forever: &Wire) {
    let many = forever.0.repeat((1 << 16) / forever.0.len() + 1);
    let end = Instant::now() + PATIENCE;
    peer.set_write_timeout(Some(Duration::from_secs(2)))
        .expect("set");
    if peer.write_all(&head.0).is_err() {
        return;
    }
    while Instant::now() < end && peer.write_all(&many).is_ok() {}
}

fn sink(mut from: UnixStream) {
    let mut buffer = [0; 1 << 16];
    while from.read(&mut buffer).is_ok_and(|n| n > 0) {}
}

fn connect(socket: &Path) -> UnixStream {
    let end = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < end, "no server: {error}"),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// A client's part of the handshake at 1.38, and the server's read to its end.
fn greet(server: &mut UnixStream) {
    server.set_read_timeout(Some(PATIENCE)).expect("set");
    let hello = Wire::default()
        .int(0x6e697863)
        .int(0x126)
        .int(0)
        .int(0)
        .int(0);
    server.write_all(&hello.0).expect("it listens");
    let mut int = || {
        let mut bytes = [0; 8];
        server.read_exact(&mut bytes).expect("it answers");
        u64::from_le_bytes(bytes)
    };
    assert_eq!(int(), 0x6478696f);
    assert_eq!(int() & 0xff, 38);
    for _ in 0..int() {
        for _ in 0..int().div_ceil(8) {
            int();
        }
    }
    for _ in 0..int().div_ceil(8) {
        int();
    }
    assert!(int() <= 2, "a trust flag");
    assert_eq!(int(), LAST);
}

fn answers(server: &mut UnixStream) -> [u64; 2] {
    [(); 2].map(|()| {
        let mut bytes = [0; 8];
        server.read_exact(&mut bytes).expect("it answers");
        u64::from_le_bytes(bytes)
    })
}

/// Waits until `child` has something to say, and then lets it end; its peak memory in KiB, its exit
/// status, and its words.
fn watch(mut child: Child, mut stderr: PipeReader) -> (u64, Option<i32>, String) {
    let end = Instant::now() + PATIENCE;
    let mut asleep = 0;
    while asleep < ASLEEP && Instant::now() < end {
        thread::sleep(Duration::from_millis(10));
        asleep = match status(&child, "State:").as_deref() {
            Some("S") => asleep + 1,
            _ => 0,
        };
    }
    let highest = peak(&child);
    let mut words = String::new();
    stderr.read_to_string(&mut words).expect("text");
    let status = child.wait().expect("it ends").code();
    (highest, status, words.trim_start_matches('.').to_owned())
}

/// A value of the kernel's description of `child`.
fn status(child: &Child, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next().map(str::to_owned)
}

/// The most memory that `child` had resident until now, in KiB; 0 when it has ended.
fn peak(child: &Child) -> u64 {
    let peak = status(child, "VmHWM:");
    peak.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn row(table: &mut String, attack: &Attack, peak: u64) {
    let name = attack.name;
    writeln!(table, "  {name:<50} {:>5.1} MiB", peak as f64 / 1024.0).expect("text");
    assert!(
        (1 << 10..LIMIT_KIB).contains(&peak),
        "{name}: {peak} KiB at the peak"
    );
}
