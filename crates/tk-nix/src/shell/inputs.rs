//! What an evaluation depends on, and whether any of it changed.
//!
//! Of a flake's own tree, and of the folder of a file, those files count that evaluation commonly reads
//! (`READ`), and those that the code can mean that was evaluated (see `mentions`); of local inputs and of what the
//! caller names the whole trees; and all that nix said it read (see `eval_reads`): each file of Nix code with
//! the files beside it that count in the same way, and what was copied to the store. Of a flake in a
//! repository evaluation sees nothing but what git has, and the commit (see `git`).
//!
//! All that is looked at is noted with its state (size, times, inode); as long as the states are the same nothing is
//! read. Like git, a file that changed moments before it was noted is read again, since a further
//! change may leave its times the same.

mod snapshot;
mod trees;
mod walk;

pub(super) use snapshot::InputsSnapshot;
pub(super) use trees::{Trees, View};

#[cfg(test)]
mod tests {
    use super::{walk::MAX_OWN, *};
    use crate::shell::{eval_reads::EvalReads, place::LocalFlake};
    use std::{
        fs::{self, File, FileTimes},
        path::Path,
        time::{Duration, SystemTime},
    };

    /// Makes the file as if it had been there for long; ctime is what it is.
    fn write(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        let file = File::options().write(true).open(path).unwrap();
        let old = SystemTime::now() - Duration::from_secs(60);
        file.set_times(FileTimes::new().set_modified(old)).unwrap();
    }

    fn of(folder: &Path) -> Trees {
        let mut trees = Trees::default();
        let local = LocalFlake {
            flake: folder.into(),
            tree: folder.into(),
            is_tracked: false,
        };
        trees.add_flake(&local).unwrap();
        trees
    }

    #[test]
    fn what_was_told_counts() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for name in ["own/sub", "own/.hidden", "far/sub", "copied/sub", "left"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        write(&root.join("far/a.nix"), "1");
        let mut trees = Trees::new(vec![root.join("own/left")], View::default());
        trees.add_own(root.join("own"));
        let mut told = EvalReads::default();
        told.files.insert(root.join("far/a.nix"));
        told.copied.insert(root.join("copied"));
        trees.add_told(&told);
        let take = || InputsSnapshot::take(&trees, None).unwrap();
        fs::create_dir_all(root.join("own/left")).unwrap();
        for (name, counts) in [
            ("far/a.nix", true),
            ("far/data.json", true),
            ("far/main.c", false),
            ("far/sub/b.nix", false),
            ("own/sub/b.nix", true),
            ("own/sub/main.c", false),
            ("own/.hidden/b.nix", false),
            ("own/left/b.nix", false),
            ("copied/sub/main.c", true),
            ("left/b.nix", false),
        ] {
            let before = take();
            write(&root.join(name), "2");
            assert_eq!(take().digest() != before.digest(), counts, "{name}");
            assert!(!take().partial);
        }
        let before = take();
        fs::remove_file(root.join("far/a.nix")).unwrap();
        assert_ne!(take().digest(), before.digest());
    }

    #[test]
    fn too_much_is_not_all_watched() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let many = root.join("many");
        fs::create_dir_all(&many).unwrap();
        for n in 0..=MAX_OWN {
            File::create(many.join(n.to_string())).unwrap();
        }
        let mut trees = Trees::default();
        trees.add_own(root.to_owned());
        write(&root.join("a.nix"), "1");
        let before = InputsSnapshot::take(&trees, None).unwrap();
        assert!(before.partial);
        write(&root.join("a.nix"), "2");
        let after = InputsSnapshot::take(&trees, None).unwrap();
        assert_ne!(after.digest(), before.digest(), "the folder itself is");
    }

    #[test]
    fn new_files_are_suspected() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let begun = SystemTime::now();
        write(&root.join("a.nix"), "1");
        write(&root.join("flake.lock"), "1");
        let mut trees = Trees::default();
        trees.add_own(root.to_owned());
        let after = InputsSnapshot::take(&trees, None).unwrap();
        let lock = [root.join("flake.lock")];
        let none = InputsSnapshot::default();
        assert!(after.has_new_since(&none, begun, &lock));
        assert!(!after.has_new_since(&after, begun, &lock), "it was known");
        let later = begun + Duration::from_secs(60);
        assert!(!after.has_new_since(&none, later, &lock));
        fs::remove_file(root.join("a.nix")).unwrap();
        let after = InputsSnapshot::take(&trees, None).unwrap();
        assert!(!after.has_new_since(&none, begun, &lock), "a lock is");
    }

    #[test]
    fn what_counts_changes_the_digest() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("target")).unwrap();
        fs::create_dir_all(root.join("nix")).unwrap();
        write(&root.join("flake.nix"), "1");
        let first = InputsSnapshot::take(&of(root), None).unwrap();
        let digest =
            |old: &InputsSnapshot| InputsSnapshot::take(&of(root), Some(old)).unwrap().digest();
        assert_eq!(digest(&first), first.digest());
        for (name, counts) in [
            ("main.rs", false),
            ("target/x.nix", false),
            ("result-1", false),
            ("nix/x.nix", true),
            ("Cargo.lock", true),
            ("flake.nix", true),
        ] {
            let before = InputsSnapshot::take(&of(root), None).unwrap();
            write(&root.join(name), "2");
            assert_eq!(digest(&before) != before.digest(), counts, "{name}");
        }
        let before = InputsSnapshot::take(&of(root), None).unwrap();
        fs::remove_file(root.join("nix/x.nix")).unwrap();
        assert_ne!(digest(&before), before.digest());
    }

    #[test]
    fn what_has_just_changed_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("flake.nix");
        write(&file, "1");
        let first = InputsSnapshot::take(&of(folder.path()), None).unwrap();
        assert!(!first.holds(), "it may change again in the same tick");
        fs::write(&file, "2").unwrap();
        let second = InputsSnapshot::take(&of(folder.path()), Some(&first)).unwrap();
        assert_ne!(first.digest(), second.digest());
    }

    #[test]
    fn whole_trees_count() {
        let folder = tempfile::tempdir().unwrap();
        let (flake, input) = (folder.path().join("flake"), folder.path().join("input"));
        fs::create_dir_all(&flake).unwrap();
        let text = format!("{{ inputs.i.url = \"path:{}\"; }}", input.display());
        write(&flake.join("flake.nix"), &text);
        let absent = InputsSnapshot::take(&of(&flake), None).unwrap();
        fs::create_dir_all(&input).unwrap();
        write(&input.join("data.txt"), "1");
        let there = InputsSnapshot::take(&of(&flake), Some(&absent)).unwrap();
        assert_ne!(there.digest(), absent.digest());
        write(&input.join("data.txt"), "22");
        let changed = InputsSnapshot::take(&of(&flake), Some(&there)).unwrap();
        assert_ne!(there.digest(), changed.digest());
    }
}
