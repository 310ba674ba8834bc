//! What clients want of builds: passed on to a store that builds, and otherwise said to be of no use.

use super::context::OperationContext;
use std::sync::Arc;
use tk_narinfo::{Policy, TrustedKeys};
use tk_store::{
    ClientSettings,
    log::{Level, LogEvent, LogSink},
};

impl OperationContext {
    /// From now on works by `settings`, as far as this client may set them.
    pub fn set_options(&mut self, mut settings: ClientSettings) {
        let mut ignored = Vec::new();
        if !self.trusted {
            settings.overrides.retain(|name, value| {
                let may =
                    FOR_ALL.contains(&name.as_str()) || (name == "builders" && value.is_empty());
                if !may {
                    ignored.push(name.clone());
                }
                may
            });
        }
        self.set_policy(&settings);
        let names = ignored.join(", ");
        if !ignored.is_empty() {
            self.say(format!(
                "not set, as the server does not trust you: {names}"
            ));
        }
        let Some(sessions) = &self.abilities.sessions else {
            return self.of_no_use(&settings);
        };
        match sessions.with_settings(&settings) {
            Some(abilities) => self.abilities = abilities,
            None => self.of_no_use(&settings),
        }
    }

    /// Signatures are checked here, also where the rest is somebody else's work.
    fn set_policy(&mut self, settings: &ClientSettings) {
        if !self.trusted {
            return;
        }
        let mut policy = Policy::clone(&self.config.policy);
        let given = |name: &str| settings.overrides.get(name);
        if given("require-sigs").is_some_and(|value| value == "false") {
            policy.threshold = 0;
        }
        for (name, more) in KEYS {
            let Some(keys) = given(name) else { continue };
            match TrustedKeys::parse_list(keys) {
                Ok(keys) if more => policy.keys.extend(keys.iter().cloned()),
                Ok(keys) => policy.keys = keys,
                Err(error) => self.say(format!("{name} is not set: {error}")),
            }
        }
        self.policy = Arc::new(policy);
    }

    fn of_no_use(&self, settings: &ClientSettings) {
        if !settings.overrides.is_empty() {
            let names: Vec<_> = settings.overrides.keys().map(String::as_str).collect();
            let (store, names) = (&self.abilities.store, names.join(", "));
            self.say(format!(
                "{store} is served by tk-store, which builds nothing: \
                 of no use here are {names}"
            ));
        }
    }

    fn say(&self, words: String) {
        self.events
            .event(LogEvent::message(Level::Talkative, words));
    }
}

/// Names of lists of public keys, and whether they are added to those that there are.
const KEYS: [(&str, bool); 4] = [
    ("trusted-public-keys", false),
    ("binary-cache-public-keys", false),
    ("extra-trusted-public-keys", true),
    ("extra-binary-cache-public-keys", true),
];
/// What Nix lets everybody set.
const FOR_ALL: [&str; 5] = [
    "build-timeout",
    "timeout",
    "build-max-silent-time",
    "max-silent-time",
    "connect-timeout",
];
