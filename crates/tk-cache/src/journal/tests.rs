use super::*;
use proptest::prelude::*;
use std::fs;
use tk_path::Algorithm;

const CACHE: &str = "s3://bucket at https://s3.example";

fn arrived(n: u64) -> ArrivedNar {
    ArrivedNar {
        file_hash: Hash::digest(Algorithm::Sha256, &n.to_le_bytes()),
        file_size: n,
        nar_size: n * 3,
    }
}

fn part(n: u64) -> UploadedPart {
    UploadedPart {
        etag: format!("\"etag {n}\""),
        size: n,
        sha256: Hash::digest(Algorithm::Sha256, &n.to_be_bytes()),
    }
}

/// What the process notes that is killed, step by step.
fn notes(journal: &Journal) {
    journal.note_arrived("nar/a", &arrived(1));
    journal.note_intent("nar/b", 8);
    journal.note_begun("nar/b", "id b", 8);
    journal.note_part("nar/b", "id b", 0, &part(8));
    journal.note_part("nar/b", "id b", 1, &part(5));
    journal.note_arrived("nar/ü", &arrived(2));
    journal.note_intent("nar/c", 8);
    journal.note_begun("nar/c", "id c", 8);
    journal.note_ended("nar/c", Some("id c"));
    journal.note_intent("nar/d", 16);
}

fn only_file(folder: &Path) -> PathBuf {
    let mut files = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let file = files.next().unwrap();
    assert_eq!(files.next(), None);
    file
}

fn open_names(journal: &Journal) -> Vec<(String, Option<String>)> {
    let uploads = journal.open_uploads().into_iter();
    uploads.map(|upload| (upload.name, upload.id)).collect()
}

#[test]
fn what_a_dead_process_noted_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    notes(&Journal::open(folder.path(), CACHE).unwrap());

    for _ in 0..3 {
        let journal = Journal::open(folder.path(), CACHE).unwrap();
        assert_eq!(journal.arrived("nar/a"), Some(arrived(1)));
        assert_eq!(journal.arrived("nar/ü"), Some(arrived(2)));
        assert_eq!(journal.arrived("nar/b"), None);
        let b = ("nar/b".to_owned(), Some("id b".to_owned()));
        assert_eq!(open_names(&journal), [b, ("nar/d".to_owned(), None)]);
        let upload = journal.resume("nar/b").unwrap();
        assert_eq!(upload.part_size, 8);
        assert_eq!(upload.parts, BTreeMap::from([(0, part(8)), (1, part(5))]));
        assert_eq!(journal.resume("nar/b"), None, "given out twice");
        assert_eq!(journal.resume("nar/d"), None, "there is no id");
        only_file(folder.path());
    }
}

/// Otherwise what the dead process may have begun would never be given up.
#[test]
fn beginning_again_does_not_forget_the_intent_of_the_dead() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let dies = Journal::open(folder.path(), CACHE).unwrap();
        dies.note_intent("nar/a", 8);
    }
    let again = Journal::open(folder.path(), CACHE).unwrap();
    again.note_intent("nar/a", 8);
    again.note_begun("nar/a", "id", 8);
    let intent = ("nar/a".to_owned(), None);
    assert_eq!(open_names(&again), [intent.clone(), intent.clone()]);
    drop(again);
    let later = Journal::open(folder.path(), CACHE).unwrap();
    assert_eq!(open_names(&later).len(), 3);
    later.note_ended("nar/a", None);
    assert_eq!(open_names(&later).len(), 1);
}

#[test]
fn caches_do_not_mix() {
    let folder = tempfile::tempdir().unwrap();
    notes(&Journal::open(folder.path(), CACHE).unwrap());
    let other = Journal::open(folder.path(), "s3://bucket at https://s3.example/2").unwrap();
    assert_eq!(other.arrived("nar/a"), None);
    assert_eq!(open_names(&other), []);
}

#[test]
fn a_living_process_keeps_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let alive = Journal::open(folder.path(), CACHE).unwrap();
    notes(&alive);
    let other = Journal::open(folder.path(), CACHE).unwrap();
    assert_eq!(other.arrived("nar/a"), None);
    assert_eq!(open_names(&other), []);
    assert_eq!(
        other.uploads_of_others(),
        BTreeSet::from(["id b".to_owned()])
    );
    assert_eq!(alive.uploads_of_others(), BTreeSet::new());
    assert!(other.others_begin("nar/d"));
    assert!(!other.others_begin("nar/b"), "its id is known");
    assert!(!alive.others_begin("nar/d"));
}

#[test]
fn a_push_that_ended_well_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), CACHE).unwrap();
    notes(&journal);
    journal.finish().unwrap();
    only_file(folder.path());
    journal.note_ended("nar/b", Some("id b"));
    journal.note_ended("nar/d", None);
    journal.finish().unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_is_old_is_given_up_but_its_uploads_are_known() {
    let folder = tempfile::tempdir().unwrap();
    notes(&Journal::open(folder.path(), CACHE).unwrap());
    notes(&Journal::open(folder.path(), "other").unwrap());
    let eight_days_ago = SystemTime::now() - Duration::from_secs(8 * 24 * 3600);
    for entry in fs::read_dir(folder.path()).unwrap() {
        let file = fs::File::options().append(true).open(entry.unwrap().path());
        file.unwrap().set_modified(eight_days_ago).unwrap();
    }
    let journal = Journal::open(folder.path(), CACHE).unwrap();
    only_file(folder.path());
    assert_eq!(journal.arrived("nar/a"), None);
    assert_eq!(open_names(&journal).len(), 2);
}

/// Cut off after any byte, what is read is what was noted up to there, and no more.
#[test]
fn torn_after_every_byte() {
    let folder = tempfile::tempdir().unwrap();
    notes(&Journal::open(folder.path(), CACHE).unwrap());
    let file = only_file(folder.path());
    let whole = fs::read(&file).unwrap();
    let mut lines = 0;
    for end in 0..=whole.len() {
        lines += usize::from(end > 0 && whole[end - 1] == b'\n');
        let mut known = JournalSummary::default();
        files::read(&whole[..end]).for_each(|event| known.apply(event));
        let arrived_is = |name: &str, from, a| {
            let expected = (lines >= from).then_some(a);
            assert_eq!(known.arrived.get(name).cloned(), expected, "at {end}");
        };
        arrived_is("nar/a", 2, arrived(1));
        arrived_is("nar/ü", 7, arrived(2));
        let mut uploads = known.uploads.iter();
        let parts = uploads.find(|u| u.id.as_deref() == Some("id b"));
        let expected = (lines >= 4).then(|| [0, 1, 2][(lines - 4).min(2)]);
        assert_eq!(parts.map(|upload| upload.parts.len()), expected, "at {end}");
    }
    assert_eq!(lines, 11);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Nothing is claimed that was never noted, whatever happened to the file.
    #[test]
    fn damaged_anywhere(at in any::<prop::sample::Index>(), with: Vec<u8>, cut in 0..40_usize) {
        let folder = tempfile::tempdir().unwrap();
        notes(&Journal::open(folder.path(), CACHE).unwrap());
        let file = only_file(folder.path());
        let mut bytes = fs::read(&file).unwrap();
        let at = at.index(bytes.len());
        let end = (at + cut).min(bytes.len());
        bytes.splice(at..end, with);
        fs::write(&file, bytes).unwrap();
        let journal = Journal::open(folder.path(), CACHE).unwrap();
        prop_assert!(journal.arrived("nar/a").is_none_or(|a| a == arrived(1)));
        prop_assert!(journal.arrived("nar/ü").is_none_or(|a| a == arrived(2)));
        for upload in journal.open_uploads() {
            for (number, found) in upload.parts {
                prop_assert_eq!(found, part(if number == 0 { 8 } else { 5 }));
            }
        }
    }

    /// Bytes that were never a journal.
    #[test]
    fn garbage_is_no_journal(bytes: Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let name = format!("{}-1-1-0.journal", files::stem(CACHE));
        fs::write(folder.path().join(name), bytes).unwrap();
        let journal = Journal::open(folder.path(), CACHE).unwrap();
        prop_assert_eq!(journal.open_uploads(), []);
    }
}

/// On a full disk what is noted is known to this process, and the fault is told once.
#[test]
fn what_cannot_be_written_is_known_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), CACHE).unwrap();
    let full = std::fs::OpenOptions::new()
        .append(true)
        .open("/dev/full")
        .unwrap();
    journal.state().file.write_to(full);
    notes(&journal);
    assert_eq!(journal.arrived("nar/a"), Some(arrived(1)));
    assert!(
        journal
            .open_uploads()
            .iter()
            .any(|open| open.name == "nar/d")
    );
    let fault = journal.fault().unwrap().to_line();
    assert!(fault.contains("No space left"), "{fault}");
    assert!(journal.fault().is_none());
}
