//! What nix says it read while it evaluated a file.
//!
//! Nix has no list of that. With `-vv` it tells in prose, the same from 2.8 to 2.34:
//!
//! ```text
//! msg    level 4             evaluating file 'FILE'                  links resolved; FILE may be in the store
//! start  level 5, type 0     copying 'PATH' to the store             2.26 and later
//! msg    level 5             copied source 'PATH' -> 'STOREPATH'     files of all versions, folders of 2.8
//! start  level 4, type 101   downloading 'URL'                       every time, if `tarball-ttl` is 0
//! msg    level 4             using revision REV of repo 'REPO'       fetchGit: what the branch is now
//! start  level 5, type 0     getting Git revision count of 'REPO'    the same of a folder, 2.26 and later
//! msg    level 1             Git tree 'REPO' is dirty                warning: fetchGit of changed files
//! ```
//! What `readFile`, `readDir`, `pathExists`, `hashFile` and `getEnv` look at is not told. So this comes on
//! top of what is watched anyway, and does not take its place.

use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};
use tk_store::log::{ActivityType, Level, LogEvent, LogSink, strip_ansi};

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Told {
    /// Files of Nix code.
    pub(super) files: BTreeSet<PathBuf>,
    /// Files and folders that were copied to the store.
    pub(super) copied: BTreeSet<PathBuf>,
}

/// What an evaluation said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// What it read outside the store.
    pub(super) told: Told,
    /// Whether it asked a server or a repository for something, so that the next one may get another
    /// answer.
    pub(super) fetched: bool,
    /// Whether code in the store was evaluated.
    pub(super) from_store: bool,
}

impl Told {
    /// With what is in `other`, as far as there is room.
    pub(super) fn add(&mut self, other: Told) {
        for (all, more) in [
            (&mut self.files, other.files),
            (&mut self.copied, other.copied),
        ] {
            let room = MOST.saturating_sub(all.len());
            all.extend(more.into_iter().take(room));
        }
    }
}

/// Listens to an evaluation; what nix would have said without being asked goes on to `log`.
pub(super) struct Ears<'a> {
    pub(super) log: &'a dyn LogSink,
    /// Folders of the store.
    stores: Vec<PathBuf>,
    heard: Mutex<Heard>,
}

impl<'a> Ears<'a> {
    pub(super) fn new(log: &'a dyn LogSink, stores: Vec<PathBuf>) -> Self {
        Ears {
            log,
            stores,
            heard: Mutex::default(),
        }
    }

    pub(super) fn heard(self) -> Heard {
        self.heard
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, kind: ActivityType, text: &str) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let fetches = FETCHING.iter().any(|begin| text.starts_with(begin));
        heard.fetched |= kind == ActivityType::FILE_TRANSFER || fetches;
        let is_stored = |path: &Path| self.stores.iter().any(|store| path.starts_with(store));
        if let Some(file) = between(text, "evaluating file '", "'") {
            match is_stored(file) {
                true => heard.from_store = true,
                false if heard.told.files.len() < MOST => {
                    heard.told.files.insert(file.to_owned());
                }
                // What is not noted cannot be watched.
                false => heard.fetched = true,
            }
        }
        let copied = between(text, "copying '", "' to the store");
        let copied = copied.or_else(|| between(text, "copied source '", "' -> '"));
        if let Some(path) = copied.filter(|path| !is_stored(path)) {
            match heard.told.copied.len() < MOST {
                true => drop(heard.told.copied.insert(path.components().collect())),
                false => heard.fetched = true,
            }
        }
    }
}

impl LogSink for Ears<'_> {
    fn event(&self, event: LogEvent) {
        let level = match &event {
            LogEvent::Message { level, text } => {
                self.take(ActivityType::UNKNOWN, &strip_ansi(text));
                *level
            }
            LogEvent::Start {
                level, kind, text, ..
            } => {
                self.take(*kind, &strip_ansi(text));
                *level
            }
            LogEvent::Stop { .. } | LogEvent::Result { .. } => Level::Info,
        };
        // The end of what was never told of is passed on: nobody waits for it.
        if level <= Level::Info {
            self.log.event(event);
        }
    }
}

/// The absolute path in `text` after `begin` and before the last `end`; `<nix/…>` and the like are in nix.
fn between<'a>(text: &'a str, begin: &str, end: &str) -> Option<&'a Path> {
    let rest = text.strip_prefix(begin)?;
    let (path, _) = rest.rsplit_once(end)?;
    Some(Path::new(path)).filter(|path| path.is_absolute())
}

/// Beginnings of what is said when something is asked for that may be another the next time.
const FETCHING: &[&str] = &[
    "using revision ",
    "getting Git revision count of ",
    "fetching ",
    "warning: Git tree '",
    "Git tree '",
];
/// Files, and folders, that are noted of one evaluation.
const MOST: usize = 50_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events;

    /// Lines as real Nix wrote them: 2.8, 2.26, 2.34.
    #[test]
    fn what_real_nix_says() {
        let stored = "/nix/store/4d1ibbbhj3xwxdfqpbpgs6a6mi8hv4nn-source/default.nix";
        let passed = Mutex::new(Vec::new());
        let log = |event: LogEvent| passed.lock().unwrap().push(event);
        let hear = |line: &str| {
            let ears = Ears::new(&log, vec!["/nix/store".into()]);
            ears.event(events::parse(&format!("@nix {line}")).event);
            ears.heard()
        };
        let paths = |all: &BTreeSet<PathBuf>| -> Vec<String> {
            let all = all.iter().map(|path| path.display().to_string());
            all.collect()
        };
        for (line, files, copied) in [
            (
                r#"{"action":"msg","level":4,"msg":"evaluating file '/x/it's/a.nix'"}"#,
                "/x/it's/a.nix",
                "",
            ),
            (
                r#"{"action":"msg","level":4,"msg":"evaluating file '<nix/derivation-internal.nix>'"}"#,
                "",
                "",
            ),
            (
                r#"{"action":"start","id":5935644803072,"level":5,"parent":0,"text":"copying '/x/dir/' to the store","type":0}"#,
                "",
                "/x/dir",
            ),
            (
                r#"{"action":"start","id":10002978832386,"level":5,"parent":0,"text":"copying '«file:///x/t.tgz»/' to the store","type":0}"#,
                "",
                "",
            ),
            (
                r#"{"action":"msg","level":5,"msg":"copied source '/x/copied.txt' -> '/nix/store/qi3lmdliw2982p2853wfhmgjvpxdzmlm-copied.txt'"}"#,
                "",
                "/x/copied.txt",
            ),
        ] {
            let heard = hear(line);
            assert_eq!(paths(&heard.told.files).join(" "), files, "{line}");
            assert_eq!(paths(&heard.told.copied).join(" "), copied, "{line}");
            assert!(!heard.fetched && !heard.from_store, "{line}");
        }
        for line in [
            r#"{"action":"start","fields":["file:///x/t.tgz"],"id":1,"level":4,"text":"downloading 'file:///x/t.tgz'","type":101}"#,
            r#"{"action":"msg","level":4,"msg":"using revision 611f08c194ef669fd22acebfaef37a649a283b4a of repo '/x/repo'"}"#,
            r#"{"action":"start","id":2,"level":5,"parent":0,"text":"getting Git revision count of '/x/repo'","type":0}"#,
            r#"{"action":"msg","level":1,"msg":"\u001b[35;1mwarning:\u001b[0m Git tree '/x/repo' is dirty"}"#,
        ] {
            assert!(hear(line).fetched, "{line}");
        }
        let stored = format!(r#"{{"action":"msg","level":4,"msg":"evaluating file '{stored}'"}}"#);
        let heard = hear(&stored);
        assert!(heard.from_store && heard.told == Told::default());
        // What was asked for here only does not reach the user.
        let passed = passed.lock().unwrap();
        assert_eq!(passed.len(), 1, "{passed:?}");
    }
}
