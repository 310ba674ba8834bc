//! Events as lines.

use super::{ArrivedNar, UploadedPart};
use serde_json::{Map, Value, json};
use tk_path::{Algorithm, Encoding, Hash};

/// Something that happened during a push. Times are in seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum JournalEvent {
    /// The cache that the file is about.
    Journal(String),
    /// An upload of a name is about to be begun: name, part size, time.
    Intent(String, u64, u64),
    /// It was: name, id, part size, time.
    Begun(String, String, u64, u64),
    /// A part arrived: name, id, number, part.
    Part(String, String, u32, UploadedPart),
    /// An upload is no more: name, id.
    Ended(String, Option<String>),
    /// An object is there.
    Arrived(String, ArrivedNar),
}

impl JournalEvent {
    pub(super) fn to_line(&self) -> String {
        let event = self.to_json().to_string();
        format!("{} {event}\n", check(event.as_bytes()))
    }

    /// `None` for what is torn, and for what a later version wrote.
    pub(super) fn from_line(line: &[u8]) -> Option<JournalEvent> {
        let (sum, event) = line.split_at_checked(CHECK)?;
        let event = event.strip_prefix(b" ")?;
        if sum != check(event).as_bytes() {
            return None;
        }
        let Value::Object(map) = serde_json::from_slice(event).ok()? else {
            return None;
        };
        JournalEvent::from_json(&map)
    }

    fn to_json(&self) -> Value {
        match self {
            JournalEvent::Journal(identity) => json!({"event": "journal", "cache": identity}),
            JournalEvent::Intent(name, part_size, at) => {
                json!({"event": "intent", "name": name, "partSize": part_size, "at": at})
            }
            JournalEvent::Begun(name, id, part_size, at) => json!({
                "event": "begun", "name": name, "id": id, "partSize": part_size, "at": at
            }),
            JournalEvent::Part(name, id, number, part) => json!({
                "event": "part", "name": name, "id": id, "number": number, "etag": part.etag,
                "size": part.size, "sha256": part.sha256.digits(Encoding::Base16)
            }),
            JournalEvent::Ended(name, id) => json!({"event": "ended", "name": name, "id": id}),
            JournalEvent::Arrived(name, arrived) => json!({
                "event": "arrived", "name": name, "fileSize": arrived.file_size,
                "fileHash": arrived.file_hash.to_text(Encoding::Nix32), "narSize": arrived.nar_size
            }),
        }
    }

    fn from_json(map: &Map<String, Value>) -> Option<JournalEvent> {
        let text = |key: &str| Some(map.get(key)?.as_str()?.to_owned());
        let number = |key: &str| map.get(key)?.as_u64();
        Some(match text("event")?.as_str() {
            "journal" => JournalEvent::Journal(text("cache")?),
            "intent" => JournalEvent::Intent(text("name")?, number("partSize")?, number("at")?),
            "begun" => {
                let (part_size, at) = (number("partSize")?, number("at")?);
                JournalEvent::Begun(text("name")?, text("id")?, part_size, at)
            }
            "part" => {
                let part = UploadedPart {
                    etag: text("etag")?,
                    size: number("size")?,
                    sha256: Hash::parse_digits(&text("sha256")?, Algorithm::Sha256).ok()?,
                };
                let index = u32::try_from(number("number")?).ok()?;
                JournalEvent::Part(text("name")?, text("id")?, index, part)
            }
            "ended" => JournalEvent::Ended(text("name")?, text("id")),
            "arrived" => {
                let arrived = ArrivedNar {
                    file_hash: Hash::parse_prefixed(&text("fileHash")?).ok()?,
                    file_size: number("fileSize")?,
                    nar_size: number("narSize")?,
                };
                JournalEvent::Arrived(text("name")?, arrived)
            }
            _ => return None,
        })
    }
}

fn check(event: &[u8]) -> String {
    let mut digits = Hash::digest(Algorithm::Sha256, event).digits(Encoding::Base16);
    digits.truncate(CHECK);
    digits
}

/// Hex digits of the check.
const CHECK: usize = 8;
