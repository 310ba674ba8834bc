//! Old generations of profiles, as `nix-collect-garbage` deletes them.

use crate::support::{each_version, rig};
use std::{
    collections::BTreeSet, fs, os::unix::fs::symlink, path::Path, process::Command,
    time::SystemTime,
};
use tempfile::TempDir;
use tk_local::{
    LocalConfig,
    profiles::{GenerationAction, OldGenerations, delete_old_generations},
};

each_version!(the_same_generations);

/// Both delete the same links of the same profiles.
fn the_same_generations(version: &'static str) {
    let Some(rig) = rig(version) else { return };
    for older_than in [None, Some("25d"), Some("1d"), Some("1000d")] {
        let temp = TempDir::new().unwrap();
        let (ours, theirs) = (temp.path().join("ours"), temp.path().join("theirs"));
        for state in [&ours, &theirs] {
            fill(state);
        }
        let mut command = rig.command("nix-collect-garbage");
        command
            .env("NIX_STATE_DIR", &theirs)
            .arg("--store")
            .arg(temp.path().join("store"));
        match older_than {
            None => command.arg("--delete-old"),
            Some(days) => command.args(["--delete-older-than", days]),
        };
        rig.try_run(&mut command).unwrap();
        let which = match older_than {
            None => OldGenerations::AllButCurrent,
            Some(days) => OldGenerations::older_than(days, SystemTime::now()).unwrap(),
        };
        let before = links(&ours);
        let mut config = LocalConfig::system();
        config.state = ours.clone();
        let folders = config.profile_folders(None, None);
        let told = delete_old_generations(&folders, which, GenerationAction::Tell).unwrap();
        assert_eq!(links(&ours), before, "a dry run deletes nothing");
        let deleted = delete_old_generations(&folders, which, GenerationAction::Delete).unwrap();
        assert_eq!(told, deleted);
        assert_eq!(before.len() - links(&ours).len(), deleted.len());
        // What newer versions make.
        let mut left = links(&theirs);
        left.remove("default");
        assert_eq!(links(&ours), left, "{version} {older_than:?}");
    }
}

/// A profile in order, one after a rollback, one of a user, one whose current generation is gone, and links
/// that are none.
fn fill(state: &Path) {
    let profiles = state.join("profiles");
    let user = profiles.join("per-user/me");
    fs::create_dir_all(&user).unwrap();
    for (folder, name, current, days) in [
        (&profiles, "a", 5, &[50, 40, 30, 20, 2][..]),
        (&profiles, "rolled-back", 2, &[50, 40, 30, 20, 2]),
        (&user, "b", 3, &[50, 6, 3]),
        (&profiles, "lost", 9, &[90, 80]),
        (&profiles, "a-1", 1, &[60]),
    ] {
        symlink(format!("{name}-{current}-link"), folder.join(name)).unwrap();
        for (n, days) in (1..).zip(days) {
            let link = folder.join(format!("{name}-{n}-link"));
            symlink("/nix/store/00000000000000000000000000000000-x", &link).unwrap();
            let mut touch = Command::new("touch");
            touch
                .args(["-h", "-d", &format!("{days} days ago")])
                .arg(link);
            assert!(touch.status().unwrap().success());
        }
    }
    let elsewhere = state.join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink("c-2-link", elsewhere.join("c")).unwrap();
    symlink("/x", elsewhere.join("c-1-link")).unwrap();
    symlink(&elsewhere, profiles.join("folder")).unwrap();
    symlink(
        "/nix/store/00000000000000000000000000000000-x",
        profiles.join("plain"),
    )
    .unwrap();
    symlink("/x", profiles.join("a-old-link")).unwrap();
}

/// All links of profiles below `state`, by their places.
fn links(state: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let profiles = state.join("profiles");
    let mut left = vec![profiles.clone()];
    while let Some(folder) = left.pop() {
        for entry in folder.read_dir().unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            } else {
                let place = entry.path();
                let place = place.strip_prefix(&profiles).unwrap();
                found.insert(place.to_str().unwrap().to_owned());
            }
        }
    }
    found
}
