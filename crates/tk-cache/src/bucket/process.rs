//! Programs that print credentials.

use std::{
    error::Error as StdError,
    io::{self, Read},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// What a `credential_process` prints. It is killed if it takes too long.
pub(super) fn run(command: &str) -> Result<Vec<u8>, Box<dyn StdError + Send + Sync>> {
    let words = match run_within(command, LIMIT)? {
        Ran::Ended(status, printed) if status.success() => return Ok(printed),
        Ran::Ended(status, _) => format!("ended with {status}"),
        Ran::TooMuch => "printed too much".to_owned(),
        Ran::Late => format!("took more than {} seconds", LIMIT.as_secs()),
    };
    Err(format!("the credential_process {command} {words}").into())
}

/// What became of a program.
#[derive(Debug)]
enum Ran {
    Ended(ExitStatus, Vec<u8>),
    /// More than an answer may be.
    TooMuch,
    Late,
}

fn run_within(command: &str, limit: Duration) -> io::Result<Ran> {
    let ends = Instant::now() + limit;
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    let ran = wait(&mut child, ends);
    if !matches!(ran, Ok(Ran::Ended(..))) {
        // It may have ended just now, which is as good.
        let _ = child.kill();
        let _ = child.wait();
    }
    ran
}

fn wait(child: &mut Child, ends: Instant) -> io::Result<Ran> {
    let Some(stdout) = child.stdout.take() else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    let (sender, printed) = mpsc::channel();
    // Nobody waits for this thread: what the program started may hold the pipe for ever.
    thread::Builder::new().spawn(move || {
        let mut text = Vec::new();
        let read = stdout.take(MAX_PRINTED as u64 + 1).read_to_end(&mut text);
        let _ = sender.send(read.map(|_| text));
    })?;
    let left = ends.saturating_duration_since(Instant::now());
    let Ok(text) = printed.recv_timeout(left) else {
        return Ok(Ran::Late);
    };
    let text = text?;
    if text.len() > MAX_PRINTED {
        return Ok(Ran::TooMuch);
    }
    // It has closed its output, and most likely ended.
    loop {
        match child.try_wait()? {
            Some(status) => return Ok(Ran::Ended(status, text)),
            None if Instant::now() >= ends => return Ok(Ran::Late),
            None => thread::sleep(POLL),
        }
    }
}

/// How long a program may take. Some ask a person to touch a key.
const LIMIT: Duration = Duration::from_secs(60);

/// Bytes that a program may print.
const MAX_PRINTED: usize = 64 << 10;

/// How often it is looked whether a program that says no more has ended.
const POLL: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_secs(1);

    #[test]
    fn what_it_prints() {
        let ran = run_within("echo x; exit 3", LONG).unwrap();
        assert!(
            matches!(&ran, Ran::Ended(status, text) if status.code() == Some(3) && text == b"x\n"),
            "{ran:?}"
        );
        let ran = run_within("yes", LONG).unwrap();
        assert!(matches!(ran, Ran::TooMuch), "{ran:?}");
    }

    /// Whether or not it closed its output, and whether or not another program holds that.
    #[test]
    fn one_that_does_not_end_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        for (i, command) in ["exec sleep 600", "exec sleep 600 >&-", "sleep 20; true"]
            .iter()
            .enumerate()
        {
            let file = folder.path().join(i.to_string());
            let command = format!("echo $$ > {}; {command}", file.display());
            let ran = run_within(&command, SHORT).unwrap();
            assert!(matches!(ran, Ran::Late), "{ran:?}");
            let pid = std::fs::read_to_string(&file).unwrap();
            let ran = run_within(&format!("kill -0 {} 2>&-", pid.trim()), LONG).unwrap();
            assert!(
                matches!(&ran, Ran::Ended(status, _) if !status.success()),
                "{command} is still there"
            );
        }
    }
}
