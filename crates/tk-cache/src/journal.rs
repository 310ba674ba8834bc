//! What has arrived in a cache so far, on disk, so that a killed push goes on where it stood.
//!
//! A journal is a folder with one file for each process that pushes. A file is a sequence of
//! lines, one for each event, only ever appended to:
//!
//! ```text
//! line  = check " " event "\n"
//! check = the first 8 hex digits of the SHA-256 of event
//! event = a JSON object whose "event" is journal | intent | begun | part | ended | arrived
//! ```
//!
//! A line whose check fails (the torn last one of a killed process) is skipped. Each event stands
//! for itself, and losing any of them costs work, never correctness: what is not noted is sent
//! again. So what cannot be written (a full disk) is known to this process only, see
//! [`Journal::fault`]. The file is locked as long as its process lives; the next process that opens the journal
//! of the same cache takes over what the dead ones left.

mod events;
mod files;

use events::JournalEvent;
use files::JournalFile;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tk_path::Hash;
use tk_store::{Error, Result};

/// The journal of one push.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    /// What the names of the files of this cache start with.
    stem: String,
    state: Mutex<JournalState>,
}

/// A NAR that is wholly there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArrivedNar {
    /// Hash of the packed file.
    pub file_hash: Hash,
    /// Its size in bytes.
    pub file_size: u64,
    /// Size of the NAR in bytes.
    pub nar_size: u64,
}

/// A multipart upload that neither ended nor was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenUpload {
    /// The name of the object.
    pub name: String,
    /// What the service calls the upload. `None`: the process died before it learned that, and
    /// there may or may not be such an upload.
    pub id: Option<String>,
    /// When it was begun, by the clock of this machine.
    pub began: SystemTime,
    /// Bytes in each part but the last.
    pub part_size: u64,
    /// The parts that arrived, by number from 0.
    pub parts: BTreeMap<u32, UploadedPart>,
}

/// A part that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadedPart {
    /// What the service calls it, to be handed back when the upload is completed.
    pub etag: String,
    /// Its size in bytes.
    pub size: u64,
    /// The SHA-256 of its content.
    pub sha256: Hash,
}

impl Journal {
    /// Opens a journal in `folder` for the cache `identity`, and takes over what processes that
    /// have died noted there. The folder is made if need be; journals that nobody came back to for
    /// seven days are removed, whatever their cache.
    ///
    /// # Errors
    /// When the folder cannot be written to. What a dead process left can at worst be useless.
    pub fn open(folder: &Path, identity: &str) -> Result<Self> {
        let stem = files::stem(identity);
        let mut state = JournalState {
            file: JournalFile::create(folder, &stem)?,
            known: JournalSummary::default(),
            claimed: BTreeSet::new(),
            fault: None,
        };
        state.note(JournalEvent::Journal(identity.to_owned()), Sync::No);
        let dead = files::dead(folder, &stem, state.file.path(), KEPT);
        let mut left = Vec::new();
        for file in &dead {
            let mut known = JournalSummary::default();
            file.events().for_each(|event| known.apply(event));
            if file.is_old() {
                // Open uploads are kept at any age: somebody must give them up.
                known.arrived.clear();
            }
            left.extend(known.into_events());
        }
        // What one process began has nothing to do with what another meant to.
        left.sort_by_key(|event| matches!(event, JournalEvent::Intent(..)));
        for event in left {
            state.note(event, Sync::No);
        }
        if let Some(fault) = state.fault.take() {
            // Of no use to anybody, and it may have stayed empty.
            let _ = state.file.remove();
            return Err(fault);
        }
        state.file.sync()?;
        // Only now that it is all in our own file.
        dead.into_iter().for_each(files::Dead::remove);
        Ok(Journal {
            folder: folder.to_owned(),
            stem,
            state: Mutex::new(state),
        })
    }

    /// What went wrong the first time that something could not be written, told once.
    pub fn fault(&self) -> Option<Error> {
        self.state().fault.take()
    }

    /// The file of this process, which nobody else writes to.
    pub fn path(&self) -> PathBuf {
        self.state().file.path().to_owned()
    }

    /// What is known of the object `name`, if all of it arrived.
    pub fn arrived(&self, name: &str) -> Option<ArrivedNar> {
        self.state().known.arrived.get(name).cloned()
    }

    /// Notes that the object `name` is wholly there.
    pub fn note_arrived(&self, name: &str, arrived: &ArrivedNar) {
        let event = JournalEvent::Arrived(name.to_owned(), arrived.clone());
        self.state().note(event, Sync::No);
    }

    /// Notes that a multipart upload of `name` is about to be begun.
    pub fn note_intent(&self, name: &str, part_size: u64) {
        let event = JournalEvent::Intent(name.to_owned(), part_size, now());
        self.state().note(event, Sync::Yes);
    }

    /// Notes that it was begun, and that it is this process that goes on with it.
    pub fn note_begun(&self, name: &str, id: &str, part_size: u64) {
        let mut state = self.state();
        state.claimed.insert(id.to_owned());
        let event = JournalEvent::Begun(name.to_owned(), id.to_owned(), part_size, now());
        state.note(event, Sync::Yes);
    }

    /// Notes that the part `number` (from 0) of an upload arrived.
    pub fn note_part(&self, name: &str, id: &str, number: u32, part: &UploadedPart) {
        let event = JournalEvent::Part(name.to_owned(), id.to_owned(), number, part.clone());
        self.state().note(event, Sync::No);
    }

    /// Notes that an upload is no more: completed, or given up. `None`: that of which only the
    /// intent is known.
    pub fn note_ended(&self, name: &str, id: Option<&str>) {
        let mut state = self.state();
        if let Some(id) = id {
            state.claimed.remove(id);
        }
        let event = JournalEvent::Ended(name.to_owned(), id.map(str::to_owned));
        state.note(event, Sync::No);
    }

    /// The upload of `name` that a dead process left and that may be gone on with, if there is
    /// one. It counts as this process's own from now on: nobody gets it twice.
    pub fn resume(&self, name: &str) -> Option<OpenUpload> {
        let mut state = self.state();
        let free = |u: &&OpenUpload| u.name == name && u.id.is_some() && state.is_free(u);
        let uploads = state.known.uploads.iter().filter(free);
        let most = uploads.max_by_key(|u| u.parts.len())?.clone();
        state.claimed.extend(most.id.clone());
        Some(most)
    }

    /// Gives back what [`Journal::resume`] or [`Journal::note_begun`] claimed: the upload failed,
    /// and may be gone on with later.
    pub fn release(&self, id: &str) {
        self.state().claimed.remove(id);
    }

    /// The uploads that are open and that this process is not busy with.
    pub fn open_uploads(&self) -> Vec<OpenUpload> {
        let state = self.state();
        let idle = |u: &&OpenUpload| state.is_free(u);
        state.known.uploads.iter().filter(idle).cloned().collect()
    }

    /// The ids of the uploads that this process is busy with.
    pub fn own_uploads(&self) -> BTreeSet<String> {
        self.state().claimed.clone()
    }

    /// The ids of the uploads that other processes, which are alive, are busy with.
    pub fn uploads_of_others(&self) -> BTreeSet<String> {
        let uploads = self.others().uploads.into_iter();
        uploads.filter_map(|upload| upload.id).collect()
    }

    /// Whether another process, which is alive, may be about to begin an upload of `name`, or have
    /// begun it without having noted its id yet.
    pub fn others_begin(&self, name: &str) -> bool {
        let mut uploads = self.others().uploads.into_iter();
        uploads.any(|upload| upload.name == name && upload.id.is_none())
    }

    fn others(&self) -> JournalSummary {
        let own = self.path();
        let mut others = JournalSummary::default();
        for event in files::others(&self.folder, &self.stem, &own) {
            others.apply(event);
        }
        others
    }

    /// The push ended well: removes the journal, unless there are open uploads in it that somebody
    /// must give up one day.
    pub fn finish(&self) -> Result<()> {
        let state = self.state();
        if state.known.uploads.is_empty() {
            state.file.remove()?;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, JournalState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known, and where it is noted.
#[derive(Debug)]
struct JournalState {
    file: JournalFile,
    known: JournalSummary,
    /// Ids of the uploads that this process is busy with.
    claimed: BTreeSet<String>,
    /// Why something could not be written, until that is told.
    fault: Option<Error>,
}

impl JournalState {
    fn note(&mut self, event: JournalEvent, sync: Sync) {
        let mut written = self.file.append(&event);
        if let Sync::Yes = sync {
            written = written.and_then(|()| self.file.sync());
        }
        if let Err(fault) = written {
            self.fault.get_or_insert(fault);
        }
        self.known.apply(event);
    }

    fn is_free(&self, upload: &OpenUpload) -> bool {
        let id = upload.id.as_ref();
        id.is_none_or(|id| !self.claimed.contains(id))
    }
}

/// Whether the event must be on the disk before anything else happens. What is not survives the
/// death of the process, but not that of the machine.
enum Sync {
    Yes,
    No,
}

/// What the events of a journal come to.
#[derive(Debug, Default)]
struct JournalSummary {
    arrived: BTreeMap<String, ArrivedNar>,
    uploads: Vec<OpenUpload>,
}

impl JournalSummary {
    fn apply(&mut self, event: JournalEvent) {
        match event {
            JournalEvent::Journal(_) => {}
            JournalEvent::Arrived(name, arrived) => {
                self.arrived.insert(name, arrived);
            }
            JournalEvent::Intent(name, part_size, at) => self.open(name, None, part_size, at),
            JournalEvent::Begun(name, id, part_size, at) => {
                // The last one: those before were taken over, and led to who knows what.
                let intent = |u: &OpenUpload| u.name == name && u.id.is_none();
                if let Some(at) = self.uploads.iter().rposition(intent) {
                    self.uploads.remove(at);
                }
                self.open(name, Some(id), part_size, at);
            }
            JournalEvent::Part(name, id, number, part) => {
                let of = |u: &&mut OpenUpload| u.name == name && u.id.as_ref() == Some(&id);
                if let Some(upload) = self.uploads.iter_mut().find(of) {
                    upload.parts.insert(number, part);
                }
            }
            JournalEvent::Ended(name, id) => self.uploads.retain(|u| u.name != name || u.id != id),
        }
    }

    fn open(&mut self, name: String, id: Option<String>, part_size: u64, at: u64) {
        self.uploads.push(OpenUpload {
            name,
            id,
            began: UNIX_EPOCH + Duration::from_secs(at.min(MAX_SECONDS)),
            part_size,
            parts: BTreeMap::new(),
        });
    }

    /// The events that lead to what is known.
    fn into_events(self) -> Vec<JournalEvent> {
        let arrived = self.arrived.into_iter();
        let mut events: Vec<_> = arrived
            .map(|(n, arrived)| JournalEvent::Arrived(n, arrived))
            .collect();
        for upload in self.uploads {
            let (name, at) = (upload.name, seconds(upload.began));
            let Some(id) = upload.id else {
                events.push(JournalEvent::Intent(name, upload.part_size, at));
                continue;
            };
            events.push(JournalEvent::Begun(
                name.clone(),
                id.clone(),
                upload.part_size,
                at,
            ));
            for (number, part) in upload.parts {
                events.push(JournalEvent::Part(name.clone(), id.clone(), number, part));
            }
        }
        events
    }
}

fn now() -> u64 {
    seconds(SystemTime::now())
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// How long what a dead process left is of use.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Year 9999: what is later is no time, and could not be added to one.
const MAX_SECONDS: u64 = 253_402_300_799;

#[cfg(test)]
mod tests;
