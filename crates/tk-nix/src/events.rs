//! What nix writes to stderr with `--log-format internal-json`.
//!
//! ```text
//! line   = "@nix " JSON object | any other text (programs that nix starts write there too)
//! object = {"action":"msg",    "level":N, "msg":TEXT [, "raw_msg":TEXT, "file", "line", "column", "trace"]}
//!        | {"action":"start",  "id":N, "level":N, "type":N, "text":TEXT [, "fields":[N|TEXT…]] [, "parent":N]}
//!        | {"action":"stop",   "id":N}
//!        | {"action":"result", "id":N, "type":N, "fields":[N|TEXT…]}
//! ```
//! `raw_msg` is an error without the word "error:", the position and the traces; messages that are no
//! error of the program itself have none. `parent` is absent before 2.15. Numbers are those of
//! [`tk_store::log`].
//!
//! # Security
//! Lines come from nix, and through it from builders. A line is read up to [`MAX_LINE`] bytes, an event
//! has up to [`MAX_FIELDS`] fields; what is beyond is dropped.

use serde_json::{Map, Value};
use tk_store::log::{
    ActivityType, Level, LogEvent, LogField, ResultType, strip_ansi, strip_error_prefix,
};

/// Bytes of a line that are looked at.
pub const MAX_LINE: usize = 1 << 20;
/// Fields of an event that are kept.
pub const MAX_FIELDS: usize = 64;

/// One line of stderr.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The event that the line tells; a line that holds none is taken as a message.
    pub event: LogEvent,
    /// If it is an error of nix itself: what it says.
    pub error: Option<ErrorMessage>,
}

/// What an error says, without colours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorMessage {
    /// The error alone, without where it is in the code.
    pub bare: String,
    /// With where it is in the code, and what was being evaluated.
    pub full: String,
}

/// What `line`, without its line end, tells. Text that is no event is a message.
pub fn parse(line: &str) -> Line {
    let event = line.strip_prefix(PREFIX).and_then(object);
    event.unwrap_or_else(|| Line {
        event: LogEvent::message(Level::Info, line),
        error: None,
    })
}

fn object(text: &str) -> Option<Line> {
    let Value::Object(object) = serde_json::from_str(text).ok()? else {
        return None;
    };
    let event = match object.get("action")?.as_str()? {
        "msg" => return message(&object),
        "start" => LogEvent::Start {
            id: number(&object, "id")?,
            level: level(&object),
            kind: ActivityType(number(&object, "type")?),
            text: text_of(&object, "text").unwrap_or_default(),
            fields: fields(&object),
            parent: number(&object, "parent").unwrap_or(0),
        },
        "stop" => LogEvent::Stop {
            id: number(&object, "id")?,
        },
        "result" => LogEvent::Result {
            id: number(&object, "id")?,
            kind: ResultType(number(&object, "type")?),
            fields: fields(&object),
        },
        _ => return None,
    };
    Some(Line { event, error: None })
}

fn message(object: &Map<String, Value>) -> Option<Line> {
    let text = text_of(object, "msg")?;
    let is_error = object.contains_key("raw_msg") || strip_ansi(&text).starts_with("error:");
    let level = match level(object) {
        Level::Error if REMARKS.iter().any(|begin| text.starts_with(begin)) => Level::Chatty,
        // What code says with builtins.trace.
        Level::Error if !is_error => Level::Notice,
        level => level,
    };
    let error = (level == Level::Error).then(|| {
        let full = strip_error_prefix(&strip_ansi(&text));
        let raw = text_of(object, "raw_msg");
        let bare = raw.map(|raw| strip_ansi(&raw).trim().to_owned());
        let bare = bare.unwrap_or_else(|| full.clone());
        ErrorMessage { bare, full }
    });
    let event = LogEvent::message(level, text);
    Some(Line { event, error })
}

fn level(object: &Map<String, Value>) -> Level {
    Level::from_u64(number(object, "level").unwrap_or(Level::Info.as_u64()))
}

fn number(object: &Map<String, Value>, key: &str) -> Option<u64> {
    object.get(key)?.as_u64()
}

fn text_of(object: &Map<String, Value>, key: &str) -> Option<String> {
    object.get(key)?.as_str().map(str::to_owned)
}

fn fields(object: &Map<String, Value>) -> Vec<LogField> {
    let Some(Value::Array(fields)) = object.get("fields") else {
        return Vec::new();
    };
    let field = |value: &Value| match value {
        Value::String(text) => LogField::Text(text.clone()),
        // Progress may be negative; nothing here means less than none.
        value => LogField::Int(value.as_u64().unwrap_or(0)),
    };
    fields.iter().take(MAX_FIELDS).map(field).collect()
}

/// What a daemon that shall tell much says as errors, though it is none.
const REMARKS: [&str; 2] = ["executing builder '", "using builder args '"];
const PREFIX: &str = "@nix ";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Each as written by a real Nix: 2.8 has no `parent`, later ones have.
    #[test]
    fn lines_of_real_nix() {
        let start = |parent| LogEvent::Start {
            id: 92187178041348,
            level: Level::Info,
            kind: ActivityType::BUILD,
            text: "building 'a.drv'".into(),
            fields: vec!["/nix/store/a.drv".into(), "".into(), 1.into(), 1.into()],
            parent,
        };
        let cases = [
            (
                r#"@nix {"action":"start","fields":["/nix/store/a.drv","",1,1],"id":92187178041348,"level":3,"text":"building 'a.drv'","type":105}"#,
                start(0),
            ),
            (
                r#"@nix {"action":"start","fields":["/nix/store/a.drv","",1,1],"id":92187178041348,"level":3,"parent":7,"text":"building 'a.drv'","type":105}"#,
                start(7),
            ),
            (
                r#"@nix {"action":"stop","id":92363271700480}"#,
                LogEvent::Stop { id: 92363271700480 },
            ),
            (
                r#"@nix {"action":"result","fields":["line one"],"id":9,"type":101}"#,
                LogEvent::Result {
                    id: 9,
                    kind: ResultType::BUILD_LOG_LINE,
                    fields: vec!["line one".into()],
                },
            ),
            (
                r#"@nix {"action":"msg","level":3,"msg":"this derivation will be built:"}"#,
                LogEvent::message(Level::Info, "this derivation will be built:"),
            ),
            (
                r#"@nix {"action":"msg","level":0,"msg":"executing builder '/bin/sh'"}"#,
                LogEvent::message(Level::Chatty, "executing builder '/bin/sh'"),
            ),
            (
                r#"@nix {"action":"msg","level":0,"msg":"trace: seen"}"#,
                LogEvent::message(Level::Notice, "trace: seen"),
            ),
            (
                "Warning: Permanently added 'host'",
                LogEvent::message(Level::Info, "Warning: Permanently added 'host'"),
            ),
            (
                "@nix {broken",
                LogEvent::message(Level::Info, "@nix {broken"),
            ),
            (
                r#"@nix {"action":"dance"}"#,
                LogEvent::message(Level::Info, r#"@nix {"action":"dance"}"#),
            ),
        ];
        for (line, event) in cases {
            assert_eq!(parse(line), Line { event, error: None }, "{line}");
        }
    }

    #[test]
    fn errors_are_bare() {
        for (line, error) in [
            (
                r#"@nix {"action":"msg","column":null,"file":null,"level":0,"line":null,"msg":"\u001b[31;1merror:\u001b[0m no such luck","raw_msg":"no such luck"}"#,
                "no such luck",
            ),
            (
                r#"@nix {"action":"msg","level":0,"msg":"\u001b[31;1merror:\u001b[0m builder for 'x' failed;\n       last lines:\n       > one"}"#,
                "builder for 'x' failed;\nlast lines:\n> one",
            ),
        ] {
            assert_eq!(parse(line).error.unwrap().bare, error);
        }
    }

    #[test]
    fn fields_are_counted() {
        let many = vec!["1"; 1000].join(",");
        let line = format!(r#"@nix {{"action":"result","id":1,"type":1,"fields":[{many}]}}"#);
        match parse(&line).event {
            LogEvent::Result { fields, .. } => assert_eq!(fields.len(), MAX_FIELDS),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn anything_is_an_event(line in r#"(@nix )?[{}\[\]":,a-z0-9 \\]{0,80}"#) {
            let parsed = parse(&line);
            if !line.starts_with(PREFIX) {
                prop_assert_eq!(parsed.event, LogEvent::message(Level::Info, line));
            }
        }
    }
}
