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
//!
//! Of flakes the same is told, but of their copies in the store, whose root is that of the first flake.nix (2.34
//! names the files of repositories where they lie):
//!
//! ```text
//! evaluating file '/nix/store/H-source/flake.nix'
//! copying 'TREE' to the store                          the flake itself, before …/call-flake.nix is evaluated
//! copied source '/nix/store/H-source/src' -> 'STOREPATH'
//! ```

use super::place::LocalFlake;
use serde::{Deserialize, Serialize};
use std::{
    borrow::Cow,
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};
use tk_store::log::{ActivityType, Level, LogEvent, LogSink, strip_ansi};

/// The files and folders that an evaluation read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EvalReads {
    /// Files of Nix code.
    pub(super) files: BTreeSet<PathBuf>,
    /// Files and folders that were copied to the store.
    pub(super) copied: BTreeSet<PathBuf>,
}

/// What an evaluation said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// What it read outside the store.
    pub(super) told: EvalReads,
    /// Whether it asked a server or a repository for something, so that the next one may get another
    /// answer.
    pub(super) fetched: bool,
    /// Whether code in the store was evaluated.
    pub(super) from_store: bool,
}

impl EvalReads {
    /// With what is in `other`, as far as there is room.
    pub(super) fn add(&mut self, other: EvalReads) {
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

    /// The same for the evaluation of a flake, of which what it fetches is pinned.
    pub(super) fn of_flake(&'a self, flake: &'a LocalFlake) -> FlakeEars<'a> {
        FlakeEars {
            ears: self,
            flake,
            seen: Mutex::default(),
        }
    }

    /// What was copied to the store, as was found out otherwise.
    pub(super) fn add_copied(&self, path: PathBuf) {
        self.locked().told.copied.insert(path);
    }

    fn locked(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn heard(self) -> Heard {
        self.heard
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, kind: ActivityType, text: &str) {
        let mut heard = self.locked();
        let fetches = FETCHING.iter().any(|begin| text.starts_with(begin));
        heard.fetched |= kind == ActivityType::FILE_TRANSFER || fetches;
        let is_stored = |path: &Path| self.stores.iter().any(|store| path.starts_with(store));
        if let Some(file) = between(text, "evaluating file '", "'") {
            if is_stored(file) {
                heard.from_store = true
            } else if heard.told.files.len() < MOST {
                heard.told.files.insert(file.to_owned());
            } else {
                // What is not noted cannot be watched.
                heard.fetched = true
            }
        }
        let copied = copying(text).or_else(|| copied(text));
        if let Some(path) = copied.filter(|path| !is_stored(path)) {
            if heard.told.copied.len() < MOST {
                heard.told.copied.insert(path.components().collect());
            } else {
                heard.fetched = true
            }
        }
    }
}

impl LogSink for Ears<'_> {
    fn event(&self, event: LogEvent) {
        if let Some((kind, text)) = words(&event) {
            self.take(kind, &text);
        }
        pass_on(self.log, event);
    }
}

/// Listens to the evaluation of a flake in a folder of this machine.
pub(super) struct FlakeEars<'a> {
    ears: &'a Ears<'a>,
    flake: &'a LocalFlake,
    seen: Mutex<FlakeSeen>,
}

#[derive(Debug, Default)]
struct FlakeSeen {
    /// Where evaluation has the tree.
    root: Option<PathBuf>,
    /// Whether its outputs are being evaluated.
    is_called: bool,
}

impl FlakeEars<'_> {
    fn take(&self, text: &str) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.is_called |= text.ends_with("/call-flake.nix'");
        let file = between(text, "evaluating file '", "'");
        if let (Some(file), None) = (file, &seen.root) {
            let file = Some(file).filter(|file| file.ends_with(self.flake.file()));
            let depth = self.flake.file().components().count();
            seen.root = file.and_then(|file| Some(file.ancestors().nth(depth)?.to_owned()));
        }
        // The flake itself goes to the store in any case.
        let copied = copied(text).or_else(|| copying(text).filter(|_| seen.is_called));
        let (Some(root), tree) = (&seen.root, &self.flake.tree) else {
            return;
        };
        let in_tree = |path: &Path| {
            let path = path.strip_prefix(root).ok()?;
            Some(tree.join(path).components().collect::<PathBuf>())
        };
        let told = &mut self.ears.locked().told;
        for (all, path) in [(&mut told.files, file), (&mut told.copied, copied)] {
            if let Some(path) = path.and_then(in_tree).filter(|_| all.len() < MOST) {
                all.insert(path);
            }
        }
    }
}

impl LogSink for FlakeEars<'_> {
    fn event(&self, event: LogEvent) {
        if let Some((_, text)) = words(&event) {
            self.take(&text);
        }
        pass_on(self.ears.log, event);
    }
}

/// What an event says, and of what kind it is.
fn words(event: &LogEvent) -> Option<(ActivityType, Cow<'_, str>)> {
    match event {
        LogEvent::Message { text, .. } => Some((ActivityType::UNKNOWN, strip_ansi(text))),
        LogEvent::Start { kind, text, .. } => Some((*kind, strip_ansi(text))),
        LogEvent::Stop { .. } | LogEvent::Result { .. } => None,
    }
}

/// Tells what nix would have said without being asked.
fn pass_on(log: &dyn LogSink, event: LogEvent) {
    let level = match &event {
        LogEvent::Message { level, .. } | LogEvent::Start { level, .. } => *level,
        // The end of what was never told of is passed on: nobody waits for it.
        LogEvent::Stop { .. } | LogEvent::Result { .. } => Level::Info,
    };
    if level <= Level::Info {
        log.event(event);
    }
}

fn copying(text: &str) -> Option<&Path> {
    between(text, "copying '", "' to the store")
}

fn copied(text: &str) -> Option<&Path> {
    between(text, "copied source '", "' -> '")
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
        assert!(heard.from_store && heard.told == EvalReads::default());
        // What was asked for here only does not reach the user.
        let passed = passed.lock().unwrap();
        assert_eq!(passed.len(), 1, "{passed:?}");
    }

    /// The same of flakes: 2.8 and 2.26 of a copy, 2.34 of a repository where it is.
    #[test]
    fn what_real_nix_says_of_flakes() {
        let copy = "/nix/store/jilb168fzji80zpl1dqqfwxd3va8ql8f-source";
        for (lines, files, copied) in [
            (
                &[
                    "evaluating file 'COPY/sub/flake.nix'",
                    "copied source 'COPY/src' -> 'X'",
                ][..],
                "/x/sub/flake.nix",
                "/x/src",
            ),
            (
                &[
                    "copying '/x/' to the store",
                    "evaluating file 'COPY/sub/flake.nix'",
                    "evaluating file '«nix-internal»/call-flake.nix'",
                    "evaluating file '/nix/store/another/flake.nix'",
                    "copying 'COPY/src' to the store",
                    "evaluating file 'COPY/sub/x.nix'",
                ],
                "/x/sub/flake.nix /x/sub/x.nix",
                "/x/src",
            ),
            (
                &[
                    "evaluating file '/x/sub/flake.nix'",
                    "copying '/x/' to the store",
                    "evaluating file '«flakes-internal»/call-flake.nix'",
                ],
                "/x/sub/flake.nix",
                "",
            ),
            (
                &[
                    "evaluating file '/x/sub/flake.nix'",
                    "copied source '/x/' -> 'X'",
                ],
                "/x/sub/flake.nix",
                "/x",
            ),
        ] {
            let ears = Ears::new(&(), vec!["/nix/store".into()]);
            let flake = LocalFlake {
                flake: "/x/sub".into(),
                tree: "/x".into(),
                is_tracked: true,
            };
            let listening = ears.of_flake(&flake);
            for line in lines {
                listening.event(LogEvent::message(Level::Chatty, line.replace("COPY", copy)));
            }
            let shown = |all: &BTreeSet<PathBuf>| {
                let all = all.iter().map(|path| path.display().to_string());
                all.collect::<Vec<_>>().join(" ")
            };
            let told = ears.heard().told;
            assert_eq!(shown(&told.files), files, "{lines:?}");
            assert_eq!(shown(&told.copied), copied, "{lines:?}");
        }
    }
}
