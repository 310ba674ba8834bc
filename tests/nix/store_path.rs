//! Store paths of content: ours against `nix-store --add` and `--add-fixed`.

use crate::support::{VERSIONS, rig};
use std::fs;
use tempfile::TempDir;
use tk_nar::fs::{DumpOptions, dump};
use tk_path::{Algorithm, ContentAddress, Hash, Method, References, StoreDir};

#[test]
fn content_goes_where_nix_puts_it() {
    let temp = TempDir::new().expect("a folder");
    let contents = b"one line\n";
    let file = temp.path().join("a+b.txt");
    fs::write(&file, contents).expect("writable");
    let mut nar = Vec::new();
    dump(&file, &DumpOptions::default(), &mut nar).expect("readable");
    let file = file.to_str().expect("UTF-8");
    for rig in VERSIONS.iter().filter_map(|version| rig(version)) {
        let store = temp.path().join(rig.version);
        let store = ["--store", store.to_str().expect("UTF-8")];
        let add = |args: &[&str]| {
            let out = rig.run("nix-store", store.iter().chain(args).copied());
            String::from_utf8(out).expect("a path").trim().to_owned()
        };
        assert_eq!(
            add(&["--add", file]),
            path(Method::Nar, Algorithm::Sha256, &nar),
            "{}",
            rig.version
        );
        for algorithm in [
            Algorithm::Md5,
            Algorithm::Sha1,
            Algorithm::Sha256,
            Algorithm::Sha512,
        ] {
            let flat = add(&["--add-fixed", algorithm.name(), file]);
            assert_eq!(
                flat,
                path(Method::Flat, algorithm, contents),
                "{}",
                rig.version
            );
            let recursive = add(&["--add-fixed", "--recursive", algorithm.name(), file]);
            assert_eq!(
                recursive,
                path(Method::Nar, algorithm, &nar),
                "{}",
                rig.version
            );
        }
    }
}

/// The full path that content makes under the name of the test's file.
fn path(method: Method, algorithm: Algorithm, content: &[u8]) -> String {
    let hash = Hash::digest(algorithm, content);
    let (dir, ca) = (StoreDir::default(), ContentAddress { method, hash });
    let path = dir.path_of_content("a+b.txt", &ca, &References::default());
    dir.path(&path.expect("a path"))
}
