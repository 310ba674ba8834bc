//! Why nix did not do what it was asked, as values.

mod messages;

use crate::{events::ErrorMessage, process::Finished};
use serde_json::{Value, json};
use std::{
    fmt,
    ops::{Deref, DerefMut},
    time::Duration,
};
use tk_daemon::client::BuildTail;
use tk_narinfo::build_result::{BuildResult, BuildStatus};
use tk_store::log::strip_ansi;

/// Why something failed: [`Details`]. `Display` is one line; the message is all that was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NixFailure(Box<Details>);

/// What is known of a [`NixFailure`], which derefs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Details {
    /// The likely cause of the failure.
    pub cause: Cause,
    /// What was said, without colours; it may have several lines.
    pub message: String,
    /// How the build ended, if a store built it.
    pub status: Option<BuildStatus>,
    /// The derivation whose build failed: a whole path.
    pub derivation: Option<String>,
    /// How the builder ended or, where nothing was built, nix.
    pub exit: Option<Exit>,
    /// The phase in which the builder was, if it tells.
    pub phase: Option<String>,
    /// The last lines that the builder or, where nothing was built, nix wrote.
    pub log: Vec<String>,
    /// How what was asked for ended, if that is not the derivation: `DependencyFailed`.
    pub asked_status: Option<BuildStatus>,
    /// Other builds that failed, and without which what was asked for cannot be.
    pub others: Vec<NixFailure>,
}

/// What made something fail.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// There is no nix that can be run.
    NoNix,
    /// What was asked for is no reference that nix understands, or makes no sense.
    Misused,
    /// The Nix code has an error.
    Evaluation,
    /// There is no such attribute.
    MissingAttribute {
        /// The attribute that was asked for.
        attribute: String,
        /// Those there are with similar names, the most similar first.
        near: Vec<String>,
    },
    /// The builder ended with a status other than 0, or by a signal: see [`Details::exit`].
    Builder,
    /// A fixed output has another hash than the derivation says.
    HashMismatch {
        /// What the derivation says, as SRI.
        expected: String,
        /// What it is: the right hash if the content is the right one.
        actual: String,
    },
    /// The builder ended well without making an output.
    MissingOutput {
        /// The name of the output that was not made.
        output: String,
    },
    /// An output is something that must not be, such as one that refers to what it may not.
    OutputRejected,
    /// It took too long, or was silent for too long.
    TimedOut,
    /// The builder wrote more to its log than is allowed.
    LogLimit,
    /// nix wrote more than is taken.
    OutputLimit,
    /// Something that it needs could not be built.
    Dependency,
    /// Built again it was another.
    NotDeterministic,
    /// No space, on the disk or for files.
    NoSpace,
    /// A server could not be reached.
    Network,
    /// The sandbox could not be set up, or stopped the builder.
    Sandbox,
    /// The daemon does not trust this user enough.
    Untrusted,
    /// Nobody can build for that system, or with such features.
    NoBuilder,
    /// The caller gave up.
    Cancelled,
    /// The cause is another one, or is not known.
    Other,
}

impl Cause {
    /// The name in JSON, such as `hashMismatch`.
    pub const fn name(&self) -> &'static str {
        match self {
            Cause::NoNix => "noNix",
            Cause::Misused => "misused",
            Cause::Evaluation => "evaluation",
            Cause::MissingAttribute { .. } => "missingAttribute",
            Cause::Builder => "builder",
            Cause::HashMismatch { .. } => "hashMismatch",
            Cause::MissingOutput { .. } => "missingOutput",
            Cause::OutputRejected => "outputRejected",
            Cause::TimedOut => "timedOut",
            Cause::LogLimit => "logLimit",
            Cause::OutputLimit => "outputLimit",
            Cause::Dependency => "dependency",
            Cause::NotDeterministic => "notDeterministic",
            Cause::NoSpace => "noSpace",
            Cause::Network => "network",
            Cause::Sandbox => "sandbox",
            Cause::Untrusted => "untrusted",
            Cause::NoBuilder => "noBuilder",
            Cause::Cancelled => "cancelled",
            Cause::Other => "other",
        }
    }

    /// Whether the same may work another time without anything being changed.
    pub const fn is_retryable(&self) -> bool {
        matches!(
            self,
            Cause::TimedOut | Cause::NoSpace | Cause::Network | Cause::Cancelled
        )
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The process ended by itself, with this exit status.
    Code(i32),
    /// A signal of this number ended the process; 0 if the number is not known.
    Signal(i32),
}

impl Exit {
    /// How a process that has ended did.
    pub fn of(status: std::process::ExitStatus) -> Exit {
        use std::os::unix::process::ExitStatusExt;
        match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, signal) => Exit::Signal(signal.unwrap_or(0)),
        }
    }

    /// Whether it says that all went well.
    pub fn is_success(self) -> bool {
        self == Exit::Code(0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit status {code}"),
            Exit::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

impl Deref for NixFailure {
    type Target = Details;

    fn deref(&self) -> &Details {
        &self.0
    }
}

impl DerefMut for NixFailure {
    fn deref_mut(&mut self) -> &mut Details {
        &mut self.0
    }
}

impl NixFailure {
    /// A failure with this cause and these words, and nothing else known.
    pub fn new(cause: Cause, message: impl Into<String>) -> Self {
        NixFailure(Box::new(Details {
            cause,
            message: message.into(),
            status: None,
            derivation: None,
            exit: None,
            phase: None,
            log: Vec::new(),
            asked_status: None,
            others: Vec::new(),
        }))
    }

    /// Whether the same may work another time without anything being changed.
    pub fn is_retryable(&self) -> bool {
        self.cause.is_retryable()
    }

    /// What became of nix that did not end well.
    ///
    /// Nix says most of it in prose only. Of the errors that it wrote the first is about the first
    /// derivation that failed; those that follow from it come later.
    pub(crate) fn of_nix(done: &Finished) -> Self {
        let root = |error: &&ErrorMessage| {
            messages::cause(&messages::own(&error.bare)) != Cause::Dependency
        };
        let first = done.errors.iter().find(root).or(done.errors.first());
        let message = first.map(|error| error.bare.clone()).unwrap_or_else(|| {
            let tail = done.tail.join("\n");
            if tail.is_empty() {
                format!("nix ended with {}", done.exit)
            } else {
                tail
            }
        });
        let mut failure = NixFailure::of_words(&message);
        failure.exit = failure.exit.or(Some(done.exit));
        if failure.cause == Cause::Other && failure.derivation.is_none() && !done.errors.is_empty()
        {
            failure.cause = Cause::Evaluation;
        }
        if let (Cause::Evaluation, Some(error)) = (&failure.cause, first) {
            failure.message = error.full.clone();
        }
        let drv = failure.derivation.as_deref();
        let build = done.builds.iter().rev().find(|b| Some(&*b.drv) == drv);
        failure.log = match build {
            Some(_) => Vec::new(),
            None => done.tail.clone(),
        };
        failure.with_log(build)
    }

    /// What became of a build that a daemon did.
    pub fn of_build(drv: Option<String>, result: &BuildResult, log: Option<&BuildTail>) -> Self {
        let text = strip_ansi(result.error.trim()).into_owned();
        let mut failure = NixFailure::of_words(&text);
        let cause = failure.cause.clone();
        failure.cause = match (result.status, cause) {
            (BuildStatus::TimedOut, _) => Cause::TimedOut,
            (BuildStatus::LogLimitExceeded, _) => Cause::LogLimit,
            (BuildStatus::NotDeterministic, _) => Cause::NotDeterministic,
            (BuildStatus::DependencyFailed, _) => Cause::Dependency,
            (BuildStatus::OutputRejected, Cause::Other) => Cause::OutputRejected,
            (BuildStatus::InputRejected, Cause::Other) => Cause::Misused,
            (BuildStatus::PermanentFailure, Cause::Other) => Cause::Builder,
            (_, cause) => cause,
        };
        failure.status = Some(result.status);
        failure.derivation = drv.or(failure.derivation.take());
        failure.with_log(log)
    }

    /// What these words of nix mean.
    pub(crate) fn of_words(text: &str) -> Self {
        let own = messages::own(text);
        let mut failure = NixFailure::new(messages::cause(&own), text);
        failure.derivation = messages::derivation(&own);
        failure.exit = messages::exit(&own);
        failure
    }

    /// The failure of a derivation, of which nothing but its words was told.
    pub(crate) fn of_words_of_build(text: &str) -> Self {
        let mut failure = NixFailure::of_words(text);
        failure.status = Some(match failure.cause {
            Cause::HashMismatch { .. } | Cause::OutputRejected | Cause::MissingOutput { .. } => {
                BuildStatus::OutputRejected
            }
            Cause::TimedOut => BuildStatus::TimedOut,
            Cause::LogLimit => BuildStatus::LogLimitExceeded,
            Cause::Dependency => BuildStatus::DependencyFailed,
            Cause::NotDeterministic => BuildStatus::NotDeterministic,
            Cause::Builder => BuildStatus::PermanentFailure,
            _ => BuildStatus::MiscFailure,
        });
        failure
    }

    pub(crate) fn with_log(mut self, log: Option<&BuildTail>) -> Self {
        if let Some(log) = log {
            self.log = log.lines.iter().cloned().collect();
            self.phase = log.phase.clone();
        }
        self.with_likely(false)
    }

    /// The same with a cause that the last lines of a builder suggest; `fixed` if it makes a fixed
    /// output.
    pub(crate) fn with_likely(mut self, fixed: bool) -> Self {
        if self.cause == Cause::Builder
            && let Some(cause) = messages::likely(self.log.iter().map(String::as_str), fixed)
        {
            self.cause = cause;
        }
        self
    }

    pub(crate) fn cancelled() -> Self {
        NixFailure::new(Cause::Cancelled, "it was given up")
    }

    pub(crate) fn timed_out(after: Duration) -> Self {
        let words = format!("nix was ended after {} s", after.as_secs_f32());
        NixFailure::new(Cause::TimedOut, words)
    }

    /// All of it, with keys in camelCase; what is not known is null.
    pub fn to_json(&self) -> Value {
        let (code, signal) = match self.exit {
            Some(Exit::Code(code)) => (Some(code), None),
            Some(Exit::Signal(signal)) => (None, Some(signal)),
            None => (None, None),
        };
        let mut value = json!({
            "cause": self.cause.name(),
            "message": self.message,
            "status": self.status.map(BuildStatus::name),
            "derivation": self.derivation,
            "exitCode": code,
            "signal": signal,
            "phase": self.phase,
            "log": self.log,
            "others": self.others.iter().map(NixFailure::to_json).collect::<Value>(),
            "retryable": self.is_retryable(),
        });
        match &self.cause {
            Cause::HashMismatch { expected, actual } => {
                value["expectedHash"] = json!(expected);
                value["actualHash"] = json!(actual);
            }
            Cause::MissingAttribute { attribute, near } => {
                value["attribute"] = json!(attribute);
                value["near"] = json!(near);
            }
            Cause::MissingOutput { output } => value["output"] = json!(output),
            _ => (),
        }
        value
    }
}

impl fmt::Display for NixFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.derivation.as_deref().unwrap_or_default();
        match (&self.cause, self.exit) {
            (Cause::Builder, Some(exit)) => write!(f, "the builder of {name} ended with {exit}"),
            (Cause::NoSpace, Some(exit)) if !name.is_empty() => {
                write!(
                    f,
                    "the builder of {name} had no space, and ended with {exit}"
                )
            }
            (Cause::Network, Some(exit)) if !name.is_empty() => {
                write!(
                    f,
                    "the builder of {name} reached no server, and ended with {exit}"
                )
            }
            (Cause::HashMismatch { expected, actual }, _) => {
                write!(
                    f,
                    "hash mismatch in {name}: expected {expected}, got {actual}"
                )
            }
            (Cause::MissingAttribute { attribute, near }, _) => {
                write!(f, "there is no attribute '{attribute}'")?;
                if near.is_empty() {
                    Ok(())
                } else {
                    write!(f, "; did you mean {}?", near.join(", "))
                }
            }
            (Cause::MissingOutput { output }, _) => {
                write!(
                    f,
                    "the builder of {name} did not make the output '{output}'"
                )
            }
            (Cause::TimedOut, _) if !name.is_empty() => {
                write!(f, "the build of {name} took too long")
            }
            (Cause::Cancelled, _) if !name.is_empty() => {
                write!(f, "the build of {name} was given up")
            }
            _ => {
                // What was being evaluated comes before the error itself.
                let text = match (&self.cause, self.message.rsplit_once("error:")) {
                    (Cause::Evaluation, Some((_, last))) => last,
                    _ => &self.message,
                };
                f.write_str(&one_line(text))
            }
        }
    }
}

/// `text` of nix on one line: without the excerpts of code that it draws.
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for part in text.lines().map(str::trim) {
        let drawn = part.trim_start_matches(|c: char| c.is_ascii_digit());
        if part.is_empty() || drawn.starts_with('|') {
            continue;
        }
        let place = part
            .strip_suffix(':')
            .filter(|part| part.starts_with("at "));
        if !line.is_empty() {
            line.push_str(if place.is_some() { " " } else { "; " });
        }
        line.push_str(place.unwrap_or(part));
    }
    line
}

impl std::error::Error for NixFailure {}

impl From<tk_store::Error> for NixFailure {
    fn from(error: tk_store::Error) -> Self {
        let line = error.to_line();
        let mut failure = NixFailure::of_words(&strip_ansi(&line));
        if let (tk_store::Error::Io { .. }, Cause::Other) = (&error, &failure.cause) {
            failure.cause = Cause::Network;
        }
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_one_line() {
        let drawn = "syntax error, unexpected end of file\n       at «string»:1:5:\n            1| 1 +\n             |     ^\n";
        for (text, expected) in [
            (
                drawn,
                "syntax error, unexpected end of file at «string»:1:5",
            ),
            ("one\n  two:\n", "one; two:"),
            ("at last\n", "at last"),
            ("\n", ""),
        ] {
            assert_eq!(one_line(text), expected);
        }
    }
}
