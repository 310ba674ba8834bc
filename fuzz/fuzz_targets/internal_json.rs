//! Every line that nix may log is an event; what is no event is a message with its text, and errors have
//! no colours.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tk_nix::events::{MAX_FIELDS, parse};
use tk_store::log::LogEvent;

fuzz_target!(|text: &str| {
    for line in text.lines() {
        let parsed = parse(line);
        match &parsed.event {
            LogEvent::Start { fields, .. } | LogEvent::Result { fields, .. } => {
                assert!(fields.len() <= MAX_FIELDS);
            }
            LogEvent::Message { text, .. } if !line.starts_with("@nix ") => assert_eq!(text, line),
            _ => (),
        }
        if let Some(error) = parsed.error {
            let plain = |text: &str| !text.contains('\u{1b}');
            assert!(plain(&error.bare) && plain(&error.full), "{error:?}");
        }
    }
});
