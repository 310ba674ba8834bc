//! What a store tells while it works: messages, and activities within activities.
//!
//! An activity begins with a [`Start`](LogEvent::Start), has any number of [`Result`](LogEvent::Result)s
//! and ends with a [`Stop`](LogEvent::Stop). The lines of a build's log are such results. Kinds are numbers:
//! those that are not known here pass through as they are.
//!
//! | Kind of activity | Fields |
//! |---|---|
//! | `COPY_PATH` | path, from, to |
//! | `FILE_TRANSFER` | URL |
//! | `BUILD` | derivation, machine, current round, rounds |
//! | `SUBSTITUTE`, `QUERY_PATH_INFO` | path, store |
//! | `POST_BUILD_HOOK`, `BUILD_WAITING` | derivation; and what it waits for |
//!
//! | Kind of result | Fields |
//! |---|---|
//! | `FILE_LINKED` | bytes saved, blocks saved |
//! | `BUILD_LOG_LINE`, `POST_BUILD_LOG_LINE` | the line |
//! | `UNTRUSTED_PATH`, `CORRUPTED_PATH` | the path |
//! | `SET_PHASE` | the phase |
//! | `PROGRESS` | done, expected, running, failed |
//! | `SET_EXPECTED` | kind of activity, how many are expected |
//! | `FETCH_STATUS` | a sentence |

use std::{borrow::Cow, fmt, sync::Arc};

/// How important a message is; the lower, the more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Level {
    /// Something failed, and what was asked for may not be done.
    Error = 0,
    /// Something is odd, but the work goes on.
    Warn,
    /// What everybody sees, unless told to be quiet.
    Notice,
    /// What Nix shows without further options.
    #[default]
    Info,
    /// What Nix shows in addition with `-v`.
    Talkative,
    /// What Nix shows in addition with `-vv`.
    Chatty,
    /// What Nix shows in addition with `--debug`.
    Debug,
    /// What Nix shows only with `-vvvvv`; higher numbers count as this.
    Vomit,
}

impl Level {
    /// The number in protocols.
    pub const fn as_u64(self) -> u64 {
        self as u64
    }

    /// The level of that number; what is beyond the last is the last.
    pub const fn from_u64(number: u64) -> Level {
        match number {
            0 => Level::Error,
            1 => Level::Warn,
            2 => Level::Notice,
            3 => Level::Info,
            4 => Level::Talkative,
            5 => Level::Chatty,
            6 => Level::Debug,
            _ => Level::Vomit,
        }
    }
}

/// What an activity does, by Nix's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActivityType(pub u64);

impl ActivityType {
    /// Something without a kind.
    pub const UNKNOWN: ActivityType = ActivityType(0);
    /// A path goes from one store to another.
    pub const COPY_PATH: ActivityType = ActivityType(100);
    /// A file is fetched or sent.
    pub const FILE_TRANSFER: ActivityType = ActivityType(101);
    /// All that was asked for is built or fetched.
    pub const REALISE: ActivityType = ActivityType(102);
    /// Several paths go from one store to another.
    pub const COPY_PATHS: ActivityType = ActivityType(103);
    /// All builds of one operation together.
    pub const BUILDS: ActivityType = ActivityType(104);
    /// One derivation is built.
    pub const BUILD: ActivityType = ActivityType(105);
    /// Equal files are made one.
    pub const OPTIMISE: ActivityType = ActivityType(106);
    /// The paths of a store are checked against what is registered.
    pub const VERIFY: ActivityType = ActivityType(107);
    /// A path is fetched instead of built.
    pub const SUBSTITUTE: ActivityType = ActivityType(108);
    /// A store is asked about a path.
    pub const QUERY_PATH_INFO: ActivityType = ActivityType(109);
    /// A program runs after a build.
    pub const POST_BUILD_HOOK: ActivityType = ActivityType(110);
    /// A build waits for a lock or a machine.
    pub const BUILD_WAITING: ActivityType = ActivityType(111);
    /// A source tree is fetched.
    pub const FETCH_TREE: ActivityType = ActivityType(112);
    /// A source tree is fetched to the store.
    pub const FETCH_TO_STORE: ActivityType = ActivityType(113);

    /// The name of a known kind, such as `copy path`.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            0 => "unknown",
            100 => "copy path",
            101 => "file transfer",
            102 => "realise",
            103 => "copy paths",
            104 => "builds",
            105 => "build",
            106 => "optimise",
            107 => "verify",
            108 => "substitute",
            109 => "query path info",
            110 => "post-build hook",
            111 => "build waiting",
            112 => "fetch tree",
            113 => "fetch to store",
            _ => return None,
        })
    }
}

/// What is told about an activity, by Nix's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResultType(pub u64);

impl ResultType {
    /// Two equal files are one now.
    pub const FILE_LINKED: ResultType = ResultType(100);
    /// The builder wrote a line.
    pub const BUILD_LOG_LINE: ResultType = ResultType(101);
    /// A path lacks a trusted signature.
    pub const UNTRUSTED_PATH: ResultType = ResultType(102);
    /// A path is not what it should be.
    pub const CORRUPTED_PATH: ResultType = ResultType(103);
    /// The builder is in another phase.
    pub const SET_PHASE: ResultType = ResultType(104);
    /// How far it is.
    pub const PROGRESS: ResultType = ResultType(105);
    /// How much there will be to do.
    pub const SET_EXPECTED: ResultType = ResultType(106);
    /// The program after the build wrote a line.
    pub const POST_BUILD_LOG_LINE: ResultType = ResultType(107);
    /// How far the fetching of a source tree is.
    pub const FETCH_STATUS: ResultType = ResultType(108);
    /// How far the fetching of a source tree to the store is.
    pub const FETCH_TO_STORE: ResultType = ResultType(109);

    /// The name of a known kind, such as `build log line`.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            100 => "file linked",
            101 => "build log line",
            102 => "untrusted path",
            103 => "corrupted path",
            104 => "set phase",
            105 => "progress",
            106 => "set expected",
            107 => "post-build log line",
            108 => "fetch status",
            109 => "fetch to store",
            _ => return None,
        })
    }
}

/// A number or a text that belongs to an activity or a result.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LogField {
    /// A number, such as a count of bytes or a kind of activity.
    Int(u64),
    /// A text, such as a path, a URL or a line of a log.
    Text(String),
}

impl fmt::Display for LogField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogField::Int(number) => number.fmt(f),
            LogField::Text(text) => text.fmt(f),
        }
    }
}

impl From<u64> for LogField {
    fn from(number: u64) -> Self {
        LogField::Int(number)
    }
}

impl From<&str> for LogField {
    fn from(text: &str) -> Self {
        LogField::Text(text.to_owned())
    }
}

/// One thing that a store tells.
///
/// # Security
/// Texts are the other side's: they may hold escape sequences of terminals, see [`strip_ansi`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogEvent {
    /// A message that belongs to no activity.
    Message {
        /// How important it is.
        level: Level,
        /// The message; it may be several lines.
        text: String,
    },
    /// An activity begins, and goes on until a `Stop` with the same number.
    Start {
        /// Its number, which no other running activity of this store has.
        id: u64,
        /// How important it is.
        level: Level,
        /// The kind of the activity, which says what `fields` hold.
        kind: ActivityType,
        /// The same for people; often empty.
        text: String,
        /// The same for programs.
        fields: Vec<LogField>,
        /// The activity that it is a part of; 0: of none.
        parent: u64,
    },
    /// An activity has ended.
    Stop {
        /// The number of the activity that has ended.
        id: u64,
    },
    /// Something is told about a running activity.
    Result {
        /// The number of the activity that this is about.
        id: u64,
        /// The kind of the result, which says what `fields` hold.
        kind: ResultType,
        /// The values, in the order that the kind of result prescribes.
        fields: Vec<LogField>,
    },
}

impl LogEvent {
    /// Returns the event for a message that belongs to no activity.
    pub fn message(level: Level, text: impl Into<String>) -> Self {
        let text = text.into();
        LogEvent::Message { level, text }
    }

    /// The line of a log that this is, of a build or of what runs after it.
    pub fn log_line(&self) -> Option<&str> {
        match self {
            LogEvent::Result {
                kind: ResultType::BUILD_LOG_LINE | ResultType::POST_BUILD_LOG_LINE,
                fields,
                ..
            } => match fields.first() {
                Some(LogField::Text(line)) => Some(line),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Takes what a store tells. It is called often and must not block.
pub trait LogSink: Send + Sync {
    /// Takes one event, from any thread, and returns at once.
    fn event(&self, event: LogEvent);
}

/// The sink that drops every event.
impl LogSink for () {
    fn event(&self, _: LogEvent) {}
}

impl<T: LogSink + ?Sized> LogSink for Arc<T> {
    fn event(&self, event: LogEvent) {
        (**self).event(event);
    }
}

impl<F: Fn(LogEvent) + Send + Sync> LogSink for F {
    fn event(&self, event: LogEvent) {
        self(event);
    }
}

/// `text` without escape sequences of terminals (colours, links, cursor movements) and without
/// control characters other than tab and newline. A carriage return before a newline goes, any
/// other becomes a newline.
pub fn strip_ansi(text: &str) -> Cow<'_, str> {
    let plain = |c: char| !c.is_control() || c == '\n' || c == '\t';
    if text.chars().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ESCAPE => skip_escape(&mut chars),
            CSI => skip_until(&mut chars, is_final),
            '\r' if chars.peek().is_none_or(|next| *next == '\n') => {}
            '\r' => out.push('\n'),
            c if plain(c) => out.push(c),
            _ => {}
        }
    }
    Cow::Owned(out)
}

/// The text of an error without what Nix puts before each: `error: `, and blanks before further lines.
pub fn strip_error_prefix(text: &str) -> String {
    let text = text.trim();
    let text = text.strip_prefix("error:").unwrap_or(text);
    let lines = text.lines().map(|l| l.strip_prefix("       ").unwrap_or(l));
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}

/// One of these stands in what Nix says, in prose only, when it does not trust a user or a path.
pub const UNTRUSTED_WORDS: &[&str] = &[
    "you are not privileged",
    "lacks a valid signature",
    "lacks a signature",
    "not trusted",
];

/// `text` as a part of one line that is safe to show: control characters, ends of lines and what turns
/// the direction of writing around are escaped as in Rust (`\n`, `\u{1b}`). To do it twice changes
/// nothing.
///
/// # Security
/// For names, URLs and words of others on their way to a terminal or a log, which could otherwise be told
/// to hide, forge or run something.
pub fn escape_controls(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) {
            out.extend(c.escape_default())
        } else {
            out.push(c)
        }
    }
    Cow::Owned(out)
}

/// What somebody says in several lines as one: joined by `; `, or by a blank after a line that ends in a
/// mark already. Escape sequences of terminals are left out.
pub fn join_lines(text: &str) -> String {
    let text = strip_ansi(text);
    let mut out = String::with_capacity(text.len());
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if !out.is_empty() {
            out.push_str(if out.ends_with([':', ';', ',']) {
                " "
            } else {
                "; "
            });
        }
        out.push_str(line);
    }
    out
}

/// Whether a terminal or whoever reads a log line by line would take the character for more than itself.
fn is_unsafe(c: char) -> bool {
    // Ends of lines and paragraphs, and Unicode's Bidi_Control.
    let turns = matches!(c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// Skips what belongs to an escape character (ECMA-48): a control sequence, a string, or a few
/// characters.
fn skip_escape(chars: &mut Chars<'_>) {
    match chars.peek() {
        Some('[') => {
            chars.next();
            skip_until(chars, is_final);
        }
        // A command of the system (links, titles) or another string, to BEL or ESC \.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            chars.next();
            while let Some(c) = chars.next() {
                if c == BELL {
                    break;
                }
                if c == ESCAPE {
                    chars.next_if_eq(&'\\');
                    break;
                }
            }
        }
        Some(' '..='/') => skip_until(chars, |c| ('0'..='~').contains(&c)),
        Some('0'..='~') => drop(chars.next()),
        _ => {}
    }
}

/// Skips up to and with the character that `last` tells; what breaks the sequence stays.
fn skip_until(chars: &mut Chars<'_>, last: impl Fn(char) -> bool) {
    while let Some(c) = chars.next_if(|c| (' '..='~').contains(c)) {
        if last(c) {
            break;
        }
    }
}

fn is_final(c: char) -> bool {
    ('@'..='~').contains(&c)
}

const ESCAPE: char = '\u{1b}';
const CSI: char = '\u{9b}';
const BELL: char = '\u{7}';

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Mutex;

    #[test]
    fn levels_and_kinds_have_nix_numbers() {
        for number in 0..8 {
            assert_eq!(Level::from_u64(number).as_u64(), number);
        }
        assert_eq!(Level::from_u64(8), Level::Vomit);
        assert_eq!(Level::from_u64(u64::MAX), Level::Vomit);
        assert!(Level::Error < Level::Info && Level::Info < Level::Debug);
        assert_eq!(ActivityType::BUILD.name(), Some("build"));
        assert_eq!(ActivityType::FETCH_TO_STORE.name(), Some("fetch to store"));
        assert_eq!(ActivityType(114).name(), None);
        assert_eq!(ResultType::BUILD_LOG_LINE.name(), Some("build log line"));
        assert_eq!(ResultType::FETCH_TO_STORE.name(), Some("fetch to store"));
        assert_eq!(ResultType(110).name(), None);
        let named = |name: fn(u64) -> bool| (0..200).filter(|n| name(*n)).count();
        assert_eq!(named(|n| ActivityType(n).name().is_some()), 15);
        assert_eq!(named(|n| ResultType(n).name().is_some()), 10);
    }

    #[test]
    fn sinks() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let keep = {
            let lines = lines.clone();
            move |event: LogEvent| {
                lines
                    .lock()
                    .unwrap()
                    .extend(event.log_line().map(String::from))
            }
        };
        let sink: Arc<dyn LogSink> = Arc::new(keep);
        let result = |kind, field: LogField| LogEvent::Result {
            id: 1,
            kind,
            fields: vec![field],
        };
        sink.event(result(ResultType::BUILD_LOG_LINE, "hello".into()));
        sink.event(result(ResultType::BUILD_LOG_LINE, 7.into()));
        sink.event(result(ResultType::SET_PHASE, "build".into()));
        sink.event(result(ResultType::POST_BUILD_LOG_LINE, "after".into()));
        sink.event(LogEvent::message(Level::Info, "x"));
        ().event(LogEvent::Stop { id: 1 });
        assert_eq!(*lines.lock().unwrap(), ["hello", "after"]);
    }

    #[test]
    fn escape_sequences_go() {
        for (text, plain) in [
            ("plain\ttext\n", "plain\ttext\n"),
            ("\u{1b}[31;1merror:\u{1b}[0m no", "error: no"),
            ("a\u{1b}[Kb\u{1b}[2Kc", "abc"),
            ("\u{1b}]8;;https://x\u{1b}\\link\u{1b}]8;;\u{7}!", "link!"),
            ("\u{1b}(Bx\u{1b}7y\u{1b}", "xy"),
            ("\u{9b}1mx", "x"),
            ("10%\r20%\rdone\r\n\r", "10%\n20%\ndone\n"),
            ("bell\u{7} nul\0 del\u{7f}", "bell nul del"),
            ("cut \u{1b}[31", "cut "),
            ("broken \u{1b}[31é", "broken é"),
        ] {
            assert_eq!(strip_ansi(text), plain, "{text:?}");
        }
        assert!(matches!(strip_ansi("plain ü"), Cow::Borrowed(_)));
    }

    #[test]
    fn what_is_shown_is_one_line() {
        for (text, shown) in [
            ("plain ü 日本", "plain ü 日本"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{1b}]0;t\u{7}\u{9b}1m", "\\u{1b}]0;t\\u{7}\\u{9b}1m"),
            ("cod\u{202e}gpj\u{2028}", "cod\\u{202e}gpj\\u{2028}"),
            ("back\\slash", "back\\slash"),
        ] {
            assert_eq!(escape_controls(text), shown, "{text:?}");
            assert_eq!(escape_controls(shown), shown);
        }
        assert!(matches!(escape_controls("plain"), Cow::Borrowed(_)));
        assert_eq!(
            join_lines("no\n  the last lines:\r\n  > x\u{1b}[31m\n\nend\n"),
            "no; the last lines: > x; end"
        );
    }

    proptest! {
        #[test]
        fn nothing_that_a_terminal_obeys_is_left(text in "[a-z\u{1b}\u{9b}\\[\\]\r\n\t0-9;()é\u{7}\\\\]{0,60}") {
            let plain = strip_ansi(&text).into_owned();
            prop_assert!(plain.chars().all(|c| !c.is_control() || c == '\n' || c == '\t'));
            prop_assert_eq!(strip_ansi(&plain), plain.as_str());
        }
    }
}
