//! The edge between this program and who reads it. All words for people go to stderr through here, and
//! all data to stdout: what others wrote never reaches a terminal or a log as it came, secret keys never
//! reach it at all, and a reader who is gone is told apart from a store that is gone.

use crate::help;
use std::{
    error::Error,
    fmt::{self, Display},
    io::{self, BufWriter, IsTerminal, StdoutLock, Write},
    process::ExitCode,
    sync::{
        LazyLock,
        atomic::{AtomicBool, Ordering},
    },
};
use tk_narinfo::SecretKey;
use tk_open::keys::is_base64;
use tk_store::log::{escape_controls, strip_ansi};

/// Says one line on stderr. Words that cannot be written are lost: the work goes on without them.
pub fn tell(line: impl Display) {
    let line = plain(&line.to_string()) + "\n";
    // One write a line, so that those of several processes do not mix.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Says what others said in several lines, such as the trace of an evaluation.
pub fn tell_lines(text: &str) {
    strip_ansi(text).lines().for_each(tell);
}

/// Says why the command failed.
pub fn tell_error(error: &anyhow::Error) {
    tell(format_args!("tk-store: {}", line_of(error)));
}

/// The error and all its causes, joined by `: `, without saying twice which path is not trusted.
pub fn line_of(error: &anyhow::Error) -> String {
    let repeated = |cause: &&(dyn Error + 'static)| {
        matches!(
            cause.downcast_ref(),
            Some(tk_store::Error::Untrusted { .. })
        )
    };
    let causes = error.chain().filter(|cause| !repeated(cause));
    let causes: Vec<_> = causes.map(ToString::to_string).collect();
    causes.join(": ")
}

/// `text` as one line without what a terminal would obey, and without secret keys.
pub fn plain(text: &str) -> String {
    conceal(&escape_controls(text))
}

/// `text` without the secret halves of the keys that it holds.
fn conceal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(colon) = rest.find(':') {
        let (before, after) = rest.split_at(colon + 1);
        let end = after.find(|c| !is_base64(c)).unwrap_or(after.len());
        out.push_str(before);
        let secret =
            end >= SECRET_DIGITS && SecretKey::parse(&format!("x:{}", &after[..end])).is_ok();
        out.push_str(if secret { "…" } else { &after[..end] });
        rest = &after[end..];
    }
    out + rest
}

/// Writes a line of data to stdout; on a terminal what it would obey is escaped.
pub fn out(line: impl Display) -> io::Result<()> {
    let mut out = stdout();
    // Whole, so that it goes with one system call.
    let line = format!("{line}\n");
    if !is_terminal() {
        return out.write_all(line.as_bytes());
    }
    // Columns and lines are ours.
    for piece in line.split_inclusive(['\t', '\n']) {
        let end = piece.ends_with(['\t', '\n']) as usize;
        let (text, mark) = piece.split_at(piece.len() - end);
        write!(out, "{}{mark}", escape_controls(text))?;
    }
    Ok(())
}

/// Writes lines of data to stdout. Where no terminal shows them as they come, many go with one system call.
pub fn out_all(lines: impl IntoIterator<Item = impl Display>) -> io::Result<()> {
    if is_terminal() {
        return lines.into_iter().try_for_each(out);
    }
    let mut out = BufWriter::with_capacity(LINES_BYTES, stdout());
    for line in lines {
        writeln!(out, "{line}")?;
    }
    out.flush()
}

/// A name of others as it goes to stdout: as it is, but for a terminal escaped.
pub fn name_for_stdout(name: &[u8]) -> Vec<u8> {
    if is_terminal() {
        escape_controls(&String::from_utf8_lossy(name))
            .into_owned()
            .into_bytes()
    } else {
        name.to_vec()
    }
}

/// Whether stdout is a terminal.
pub fn is_terminal() -> bool {
    static TERMINAL: LazyLock<bool> = LazyLock::new(|| io::stdout().is_terminal());
    *TERMINAL
}

/// Whether anything was written to stdout so far.
pub fn has_written() -> bool {
    WRITTEN.load(Ordering::Relaxed)
}

/// Stdout, whose errors say that they are its own: see [`is_reader_gone`].
pub fn stdout() -> Stdout {
    Stdout(io::stdout().lock())
}

/// See [`stdout`].
pub struct Stdout(StdoutLock<'static>);

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        WRITTEN.store(true, Ordering::Relaxed);
        self.0.write(bytes).map_err(of_stdout)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(of_stdout)
    }
}

/// The error as one of stdout.
pub fn of_stdout(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), StdoutError(error))
}

/// The error of a server whose client is at stdin and stdout.
pub fn of_client(error: tk_store::Error) -> anyhow::Error {
    match error {
        tk_store::Error::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe => {
            of_stdout(source).into()
        }
        error => error.into(),
    }
}

/// Why stdout took no more.
#[derive(Debug)]
struct StdoutError(io::Error);

impl Display for StdoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("writing to stdout")
    }
}

impl Error for StdoutError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

/// Whether somebody like `head` closed our stdout: no failure of ours, and nothing to say. A store that
/// hangs up is another matter, though the system has the same word for it.
pub fn is_reader_gone(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let cause = cause.downcast_ref::<io::Error>();
        cause.is_some_and(|error| {
            let ours = error
                .get_ref()
                .is_some_and(|inner| inner.is::<StdoutError>());
            ours && error.kind() == io::ErrorKind::BrokenPipe
        })
    })
}

/// Prints what the parser of the command line has to say: what is wrong with it, or the help that was
/// asked for. The status to end with.
pub fn tell_usage(error: &clap::Error) -> ExitCode {
    let terminal = if error.use_stderr() {
        io::stderr().is_terminal()
    } else {
        is_terminal()
    };
    let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    let text = error.render();
    let text = if colours {
        text.ansi().to_string()
    } else {
        text.to_string()
    };
    let text = conceal(&help::unglued(&text));
    if error.use_stderr() {
        let _ = io::stderr().write_all(text.as_bytes());
        return ExitCode::from(error.exit_code().try_into().unwrap_or(2));
    }
    let mut out = stdout();
    let written = out.write_all(text.as_bytes());
    match written
        .and_then(|()| out.flush())
        .map_err(anyhow::Error::from)
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) if is_reader_gone(&failed) => ExitCode::from(READER_GONE),
        Err(failed) => {
            tell_error(&failed);
            ExitCode::from(2)
        }
    }
}

static WRITTEN: AtomicBool = AtomicBool::new(false);
/// The status of a program whose reader is gone, as if of SIGPIPE.
pub const READER_GONE: u8 = 141;
/// Bytes of lines that are written together.
const LINES_BYTES: usize = 64 << 10;
/// Base64 digits of 64 bytes, without padding.
const SECRET_DIGITS: usize = 86;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_keys_are_concealed_wherever_they_stand() {
        let key = SecretKey::generate("ci-1").unwrap();
        let (text, public) = (key.to_text(), key.public());
        let (_, digits) = text.split_once(':').unwrap();
        for line in [
            format!("reading {}: no", *text),
            format!("file:///c?secret-key={}&x=1 and {}", *text, *text),
            format!("{}:{}", "a:b", *text),
        ] {
            let shown = plain(&line);
            assert!(!shown.contains(&digits[..40]), "{shown}");
            assert!(shown.contains("ci-1:…"), "{shown}");
        }
        let line = format!("{public} a:b :: http://x:80/AAAA é");
        assert_eq!(plain(&line), line);
        assert_eq!(plain("a\u{1b}[1m\nb"), "a\\u{1b}[1m\\nb");
    }

    #[test]
    fn only_stdout_has_readers() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        let store = tk_store::Error::io("talking to unix:///x", broken());
        assert!(!is_reader_gone(&store.into()));
        assert!(!is_reader_gone(
            &of_stdout(io::ErrorKind::StorageFull.into()).into()
        ));
        let ours = anyhow::Error::from(of_stdout(broken())).context("printing");
        assert!(is_reader_gone(&ours));
        let line = format!("{ours:#}");
        assert!(line.starts_with("printing: writing to stdout: "), "{line}");
    }
}
