//! Runs a command of the shell behind a slow line: `delay ROUND_TRIP_MS COMMAND`.
//!
//! Whatever is read from stdin reaches the command half a round trip later, and so does what the
//! command answers. The line has no limit to its bandwidth.

use std::{
    env,
    io::{self, Read, Write},
    process::{Command, Stdio, exit},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::{Duration, Instant},
};

fn main() {
    let mut arguments = env::args().skip(1);
    let round_trip = arguments.next().and_then(|text| text.parse().ok());
    let (Some(round_trip), Some(command)) = (round_trip, arguments.next()) else {
        eprintln!("usage: delay ROUND_TRIP_MS COMMAND");
        exit(255);
    };
    let delay = Duration::from_millis(round_trip) / 2;
    let child = Command::new("/bin/sh")
        .args(["-c", &command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = child.unwrap_or_else(|error| {
        eprintln!("delay: /bin/sh: {error}");
        exit(255);
    });
    let stdin = child.stdin.take().expect("it is piped");
    let stdout = child.stdout.take().expect("it is piped");
    line(io::stdin(), stdin, delay);
    let answers = line(stdout, io::stdout(), delay);
    // The command may have ended without reading all of its input.
    let status = child.wait();
    let _ = answers.join();
    exit(status.ok().and_then(|status| status.code()).unwrap_or(255));
}

/// Carries bytes from `from` to `to`, each `delay` after it came.
fn line(
    mut from: impl Read + Send + 'static,
    mut to: impl Write + Send + 'static,
    delay: Duration,
) -> thread::JoinHandle<()> {
    let (send, receive): (SyncSender<(Instant, Vec<u8>)>, Receiver<_>) = sync_channel(IN_FLIGHT);
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            if send
                .send((Instant::now() + delay, buffer[..n].to_vec()))
                .is_err()
            {
                break;
            }
        }
        // The end of the stream takes its time too.
        let _ = send.send((Instant::now() + delay, Vec::new()));
    });
    thread::spawn(move || {
        for (due, bytes) in receive {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).and_then(|()| to.flush()).is_err() {
                break;
            }
        }
    })
}

/// Chunks on the line at once.
const IN_FLIGHT: usize = 4096;
