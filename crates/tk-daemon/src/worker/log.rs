//! What the server says while it works on a request, up to the reply.
//!
//! | Message | Number | Fields |
//! |---|---|---|
//! | next | `0x6f6c6d67` | string: lines for people |
//! | read | `0x64617461` | how much data the server wants; the client answers with one string of 1 to so many bytes, or an empty one at the end |
//! | write | `0x64617416` | string: data for the client |
//! | last | `0x616c7473` | none; the reply follows |
//! | error | `0x63787470` | from 1.26 on: `Error`, level, `Error`, message, 0, count of traces, each: 0 and string; before: string, exit status. Nothing follows |
//! | start activity | `0x53545254` | id, level, type, text, fields, id of the parent (from 1.20 on, like the next two) |
//! | stop activity | `0x53544f50` | id |
//! | result | `0x52534c54` | id, type, fields |
//!
//! Fields are a count, then each 0 and an integer, or 1 and a string. Levels, types of activities and
//! types of results that are not known here pass through. The 0 before a message and a trace stands
//! for "no position"; nothing else was ever defined.
//!
//! An error while the server works leaves the connection usable; an error about the request itself
//! is sent in the same way, and then the server closes the connection.
//!
//! # Security
//! A server can talk without end, each message within these limits:
//!
//! | Limit | Beyond it |
//! |---|---|
//! | [`MAX_TEXT`] of one text | the rest is dropped, marked by [`CUT`](crate::wire::CUT) |
//! | 64 MiB of one text | error |
//! | [`MAX_FIELDS`] of one event | error |
//! | [`MAX_TRACES`] of one error | the others are dropped, a last one says how many |
//! | [`MAX_SKIPPED_TRACES`] of one error | error |
//! | 32 MiB of memory altogether | error |

use super::WorkerProtocol;
use crate::{
    values::MAX_SKIPPED,
    wire::{Decode, Encode, WireError, WireReader, Writer},
};
use bytes::Bytes;
use std::fmt;
use tk_store::log::{ActivityType, Level, LogEvent, LogField, ResultType, strip_ansi};
use tokio::io::AsyncRead;

/// One message of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Something for people, or about an activity. A [`LogEvent::Message`] goes without its level: the
    /// server sends what the client's verbosity asks for, and it is [`Level::Notice`] when read.
    Log(LogEvent),
    /// The server wants up to so many bytes of data.
    Read(u64),
    /// Data for the client.
    Write(Bytes),
    /// The work is done, and the reply follows.
    Last,
    /// The work failed, and no reply follows.
    Error(RemoteError),
}

/// Why the server did not do what it was asked. `Display` is its message as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteError {
    /// How important it is; [`Level::Error`] in practice.
    pub level: Level,
    /// The message, which may have several lines and colours.
    pub message: String,
    /// What it was doing at the time, the innermost first.
    pub traces: Vec<String>,
    /// What a program ends with that fails for this reason. Known before 1.26 only, otherwise 1.
    pub exit_status: u32,
}

impl RemoteError {
    /// An error with nothing but a message.
    pub fn new(message: impl Into<String>) -> Self {
        RemoteError {
            level: Level::Error,
            message: message.into(),
            traces: Vec::new(),
            exit_status: 1,
        }
    }

    /// The message and the traces without escape sequences, in one line.
    pub fn plain(&self) -> String {
        let texts = std::iter::once(&self.message).chain(&self.traces);
        let texts: Vec<_> = texts.map(|text| one_line(&strip_ansi(text))).collect();
        texts.join("; ")
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for RemoteError {}

impl Message {
    /// An error with nothing but a message.
    pub fn error(message: impl Into<String>) -> Self {
        Message::Error(RemoteError::new(message))
    }
}

/// Before 1.20 the text of an activity goes as a message, and nothing else of it.
impl Encode<WorkerProtocol> for Message {
    fn encode(&self, to: &mut Writer<WorkerProtocol>) -> Result<(), WireError> {
        match self {
            Message::Log(event) => write_event(event, to),
            Message::Read(length) => {
                to.u64(READ);
                to.u64(*length);
            }
            Message::Write(data) => {
                to.u64(WRITE);
                to.bytes(data);
            }
            Message::Last => to.u64(LAST),
            Message::Error(error) => write_error(error, to),
        }
        Ok(())
    }
}

/// A message of its own: it has a limit of its own, whatever the reader's limits are.
impl Decode<WorkerProtocol> for Message {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, WorkerProtocol>,
    ) -> Result<Self, WireError> {
        from.begin_message_of(MAX_MESSAGE);
        Ok(match from.u64().await? {
            NEXT => {
                let mut text = text(from).await?;
                // Servers end every message with a line end.
                if text.ends_with('\n') {
                    text.pop();
                }
                let level = Level::Notice;
                Message::Log(LogEvent::Message { level, text })
            }
            READ => Message::Read(from.u64().await?),
            WRITE => Message::Write(from.bytes().await?),
            LAST => Message::Last,
            ERROR => Message::Error(read_error(from).await?),
            START_ACTIVITY => Message::Log(LogEvent::Start {
                id: from.u64().await?,
                level: Level::from_u64(from.u64().await?),
                kind: ActivityType(from.u64().await?),
                text: text(from).await?,
                fields: read_fields(from).await?,
                parent: from.u64().await?,
            }),
            STOP_ACTIVITY => Message::Log(LogEvent::Stop {
                id: from.u64().await?,
            }),
            RESULT => Message::Log(LogEvent::Result {
                id: from.u64().await?,
                kind: ResultType(from.u64().await?),
                fields: read_fields(from).await?,
            }),
            other => return Err(from.malformed(format_args!("message number {other:#x}"))),
        })
    }
}

fn write_event(event: &LogEvent, to: &mut Writer<WorkerProtocol>) {
    let activities = to.protocol().at_least(20);
    match event {
        LogEvent::Message { text, .. } => write_line(text, to),
        LogEvent::Start { text, .. } if !activities => {
            if !text.is_empty() {
                write_line(&format!("{text}..."), to);
            }
        }
        LogEvent::Start {
            id,
            level,
            kind,
            text,
            fields,
            parent,
        } => {
            to.u64(START_ACTIVITY);
            to.u64(*id);
            to.u64(level.as_u64());
            to.u64(kind.0);
            to.string(text);
            write_fields(fields, to);
            to.u64(*parent);
        }
        LogEvent::Stop { id } if activities => {
            to.u64(STOP_ACTIVITY);
            to.u64(*id);
        }
        LogEvent::Result { id, kind, fields } if activities => {
            to.u64(RESULT);
            to.u64(*id);
            to.u64(kind.0);
            write_fields(fields, to);
        }
        LogEvent::Stop { .. } | LogEvent::Result { .. } => {}
    }
}

fn write_line(text: &str, to: &mut Writer<WorkerProtocol>) {
    to.u64(NEXT);
    to.display(format_args!("{text}\n"));
}

fn write_fields(fields: &[LogField], to: &mut Writer<WorkerProtocol>) {
    to.count(fields.len());
    for field in fields {
        match field {
            LogField::Int(number) => {
                to.u64(0);
                to.u64(*number);
            }
            LogField::Text(text) => {
                to.u64(1);
                to.string(text);
            }
        }
    }
}

async fn read_fields<R: AsyncRead + Unpin + Send>(
    from: &mut WireReader<R, WorkerProtocol>,
) -> Result<Vec<LogField>, WireError> {
    let count = from.u64().await?;
    if count > MAX_FIELDS {
        return Err(from.too_large("the fields of a log message", count, MAX_FIELDS));
    }
    let mut fields = Vec::new();
    for _ in 0..count {
        fields.push(match from.u64().await? {
            0 => LogField::Int(from.u64().await?),
            1 => LogField::Text(text(from).await?),
            other => return Err(from.malformed(format_args!("{other} is not a type of a field"))),
        });
    }
    Ok(fields)
}

fn write_error(error: &RemoteError, to: &mut Writer<WorkerProtocol>) {
    to.u64(ERROR);
    if !to.protocol().at_least(26) {
        to.string(&error.message);
        to.u64(error.exit_status.into());
        return;
    }
    to.string("Error");
    to.u64(error.level.as_u64());
    to.string("Error");
    to.string(&error.message);
    to.u64(0);
    to.count(error.traces.len());
    for trace in &error.traces {
        to.u64(0);
        to.string(trace);
    }
}

async fn read_error<R: AsyncRead + Unpin + Send>(
    from: &mut WireReader<R, WorkerProtocol>,
) -> Result<RemoteError, WireError> {
    if !from.protocol().at_least(26) {
        let mut error = RemoteError::new(text(from).await?);
        error.exit_status = from.int("an exit status").await?;
        return Ok(error);
    }
    let is_error = |text: &str| match text {
        "Error" => Ok(()),
        _ => Err("an error whose type is not Error"),
    };
    from.parse("the type of an error", 16, is_error).await?;
    let level = Level::from_u64(from.u64().await?);
    // The name of an exception, which nobody looks at.
    from.text("the name of an error", 0, MAX_SKIPPED).await?;
    let mut error = RemoteError::new(text(from).await?);
    error.level = level;
    position(from).await?;
    let count = from.u64().await?;
    if count > MAX_SKIPPED_TRACES {
        return Err(from.too_large("the traces of an error", count, MAX_SKIPPED_TRACES));
    }
    for i in 0..count {
        position(from).await?;
        if i < MAX_TRACES {
            error.traces.push(text(from).await?);
        } else {
            from.text("a trace", 0, MAX_SKIPPED).await?;
        }
    }
    if count > MAX_TRACES {
        error.traces.push(format!("[{} more]", count - MAX_TRACES));
    }
    Ok(error)
}

async fn position<R: AsyncRead + Unpin + Send>(
    from: &mut WireReader<R, WorkerProtocol>,
) -> Result<(), WireError> {
    let none = |number| (number == 0).then_some(());
    from.tag("mark for no position", none).await
}

async fn text<R: AsyncRead + Unpin + Send>(
    from: &mut WireReader<R, WorkerProtocol>,
) -> Result<String, WireError> {
    from.text("a text of the log", MAX_TEXT, MAX_SKIPPED).await
}

fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

/// What is kept of a text, in bytes. The lines of a build can be as long as a builder likes.
pub const MAX_TEXT: usize = 256 << 10;

/// More fields than this are refused; Nix has up to five.
pub const MAX_FIELDS: u64 = 64;

/// What is kept of the traces of an error.
pub const MAX_TRACES: u64 = 64;

/// More traces than this are refused.
pub const MAX_SKIPPED_TRACES: u64 = 16 << 10;

/// What one message may take in memory, in bytes.
const MAX_MESSAGE: u64 = 32 << 20;

const NEXT: u64 = 0x6f6c_6d67;
const READ: u64 = 0x6461_7461;
const WRITE: u64 = 0x6461_7416;
const LAST: u64 = 0x616c_7473;
const ERROR: u64 = 0x6378_7470;
const START_ACTIVITY: u64 = 0x5354_5254;
const STOP_ACTIVITY: u64 = 0x5354_4f50;
const RESULT: u64 = 0x5253_4c54;
