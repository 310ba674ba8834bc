//! Looking after a store on disk: optimise, verify and repair, dump, load, recover.

use super::Machine;
use serde_json::Value;
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

/// A store with two folders that have a file in common, and a cache of them.
struct Kept {
    machine: Machine,
    paths: Vec<String>,
    cache: String,
}

impl Kept {
    fn new() -> Self {
        let machine = Machine::new();
        for folder in ["one", "two"] {
            machine.write(&format!("{folder}/same"), "the same in both");
            machine.write(&format!("{folder}/own"), folder);
        }
        let added = machine.ok("add one two");
        let paths: Vec<_> = added.lines().map(str::to_owned).collect();
        let cache = machine.cache("cache");
        machine.ok("key generate k-1 --secret k --public p");
        machine.ok(&format!(
            "push {} --to {cache} --sign-key k",
            paths.join(" ")
        ));
        Kept {
            machine,
            paths,
            cache,
        }
    }

    fn damage(&self) {
        let file = self.machine.store().join(&self.paths[0][1..]).join("own");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(file, "bad").unwrap();
    }

    fn json(&self, status: i32, line: &str) -> Value {
        let done = self.machine.run(line);
        assert_eq!(done.status, status, "{line}: {done:?}");
        serde_json::from_str(&done.out).unwrap()
    }
}

#[test]
fn equal_files_take_their_space_once() {
    let kept = Kept::new();
    let done = kept.json(0, "optimise --json");
    assert_eq!(
        (&done["filesLinked"], &done["bytesSaved"]),
        (&1.into(), &16.into())
    );
    let again = kept.machine.run("optimise");
    assert!(
        again.err.contains("0 B freed by hard-linking 0 files"),
        "{again:?}"
    );
    // A cache has no such files.
    kept.machine
        .fails(2, &format!("optimise --store {}", kept.cache));
}

#[test]
fn damage_is_found_and_mended() {
    let kept = Kept::new();
    let (machine, cache) = (&kept.machine, &kept.cache);
    machine.ok("verify --check-contents");
    kept.damage();
    machine.ok("verify --database");
    let said = machine.fails(1, "verify --check-contents");
    let words = format!(
        "path '{}' was modified! expected hash 'sha256:",
        kept.paths[0]
    );
    assert!(said.contains(&words), "{said}");
    assert!(
        said.contains("warning: not all store errors were fixed"),
        "{said}"
    );
    let report = kept.json(1, "verify --check-contents --repair --json");
    assert_eq!(report["faults"][0]["kind"], "modified");
    let from = format!("verify --check-contents --repair --from {cache} --json");
    let report = kept.json(0, &from);
    assert_eq!(report["errorsLeft"], false);
    assert_eq!(report["verified"], 2);
    let fault = &report["faults"][0];
    assert_eq!(
        (&fault["path"], &fault["mended"]),
        (&kept.paths[0].as_str().into(), &true.into())
    );
    machine.ok("verify --check-contents --check-metadata");
    for misuse in [
        "verify --check-contents --all".to_owned(),
        format!("verify --repair {}", kept.paths[0]),
        format!("verify --check-contents --from {cache}"),
        format!("verify --database --store {cache}"),
        "verify --check-metadata --all".to_owned(),
    ] {
        machine.fails(2, &misuse);
    }
}

#[test]
fn a_lost_database_is_made_anew() {
    let kept = Kept::new();
    let (machine, cache) = (&kept.machine, &kept.cache);
    let dump = machine.ok("store dump-db");
    assert_eq!(dump.lines().count(), 10, "{dump}");
    machine.write("dump", format!("{dump}\n"));
    let one = machine.ok(&format!("store dump-db {}", kept.paths[0]));
    assert!(dump.contains(&one) && one.lines().count() == 5, "{one}");
    let loaded = kept.json(0, "store load-db dump --json");
    assert_eq!(
        (&loaded["registered"], &loaded["kept"]),
        (&0.into(), &2.into())
    );

    let database = machine.store().join("nix/var/nix/db/db.sqlite");
    let lose = |content: &str| {
        for name in ["db.sqlite-wal", "db.sqlite-shm"] {
            let _ = fs::remove_file(database.with_file_name(name));
        }
        fs::write(&database, content).unwrap();
    };
    lose("not a database");
    machine.fails(2, "path-info --all");
    let told = kept.json(0, "store recover --dry-run --json");
    assert_eq!(told["recovered"][0]["truth"], "contentAddress");
    assert_eq!(told["oldDatabase"], Value::Null);
    assert_eq!(fs::read(&database).unwrap(), b"not a database");
    let told = machine.ok(&format!(
        "store recover --dump dump --from {cache} --trusted-key p"
    ));
    let expected: Vec<_> = kept
        .paths
        .iter()
        .map(|path| format!("narinfo\t{path}"))
        .collect();
    let mut told: Vec<_> = told.lines().collect();
    told.sort_unstable();
    let mut expected: Vec<_> = expected.iter().map(String::as_str).collect();
    expected.sort_unstable();
    assert_eq!(told, expected);
    machine.ok("verify --check-contents");
    assert_eq!(machine.ok("store dump-db"), dump);

    kept.damage();
    lose("");
    let said = machine.fails(1, "store recover --dump dump");
    assert!(
        said.contains("stays invalid: was modified! expected hash"),
        "{said}"
    );
    machine.fails(2, &format!("store recover --store {cache}"));
    assert!(Path::new(&database).exists());
}
