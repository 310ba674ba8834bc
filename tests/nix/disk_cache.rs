//! What real Nix remembers of a cache, as the disk cache reads it.

use crate::support::{Rig, rig, servers::Nginx};
use std::{fs, path::Path};
use tempfile::TempDir;
use tk_cache::{
    disk_cache::{DiskCache, DiskCacheConfig},
    objects::CachedNarInfo,
};
use tk_path::{StoreDir, StorePath};

#[test]
fn what_nix_found_in_a_cache_is_known_without_asking() {
    let Some(nix) = rig("2.34") else { return };
    let place = TempDir::new().unwrap();
    let at = |name: &str| place.path().join(name);
    fs::create_dir(at("cache")).unwrap();
    let Some(server) = Nginx::start(&at("cache"), false, 0) else {
        return;
    };
    let there = add(&nix, place.path(), "there");
    let absent = add(&nix, place.path(), "absent");
    let dir = StoreDir::default();
    let store = at("store").display().to_string();
    let to = format!("file://{}", at("cache").display());
    let (from, copied) = (["copy", "--store", &store, "--to", &to], dir.path(&there));
    nix.run("nix", from.into_iter().chain([copied.as_str()]));
    for path in [&there, &absent] {
        let mut ask = nix.command("nix");
        ask.args(["path-info", "--store", &server.url, &dir.path(path)])
            .env("XDG_CACHE_HOME", at("xdg"));
        let found = ask.output().unwrap().status.success();
        assert_eq!(found, path == &there);
    }

    let config = DiskCacheConfig {
        nix: Some(at("xdg/nix")),
        ..DiskCacheConfig::default()
    };
    let disk = DiskCache::open(at("ours.sqlite"), config).unwrap();
    let known = |url: &str| {
        let cache = disk.of(url, &dir);
        cache.get(&[there.to_hash_part(), absent.to_hash_part()])
    };
    let narinfo = at("cache").join(format!("{}.narinfo", there.hash_part()));
    let narinfo = CachedNarInfo::Present(fs::read(narinfo).unwrap().into());
    assert_eq!(known(&server.url), [Some(narinfo), None]);
    assert_eq!(known("https://elsewhere.example"), [None, None]);
    // Nix goes on as before.
    let mut ask = nix.command("nix");
    ask.args(["path-info", "--store", &server.url, &dir.path(&there)])
        .env("XDG_CACHE_HOME", at("xdg"));
    assert!(ask.output().unwrap().status.success());
}

/// A path in the store of `place`.
fn add(nix: &Rig, place: &Path, name: &str) -> StorePath {
    let file = place.join(name);
    fs::write(&file, name).unwrap();
    let (store, file) = (place.join("store"), file.display().to_string());
    let store = store.display().to_string();
    let path = nix.run("nix-store", ["--store", &store, "--add", &file]);
    let path = String::from_utf8(path).unwrap();
    StoreDir::default().parse(path.trim()).unwrap()
}
