//! What each command asks a cache: nothing twice, and no path waits for another.

use super::Machine;
use crate::support::{made::fill, shelf::Shelf};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tk_path::StorePath;

const PATHS: usize = 20;

/// A machine that remembers nothing on disk, 20 paths in a store, and a server that counts.
struct Counted {
    machine: Machine,
    paths: Vec<StorePath>,
    counts: Arc<Mutex<BTreeMap<&'static str, usize>>>,
    http: String,
    bucket: String,
}

impl Counted {
    fn new() -> Self {
        let machine = Machine::new();
        let paths = fill(&machine.home().join("store"), &[500; PATHS]);
        let counts = Arc::new(Mutex::new(BTreeMap::new()));
        let counted = counts.clone();
        let shelf = Shelf::new(move |asked| {
            let name = asked.path.split('?').next().unwrap_or_default();
            let what = match (asked.method, name) {
                (_, name) if name.ends_with("nix-cache-info") => "info",
                ("GET", name) if name.ends_with(".narinfo") => "GET narinfo",
                ("PUT", name) if name.ends_with(".narinfo") => "PUT narinfo",
                ("GET", name) if name.contains("/nar/") => "GET nar",
                ("PUT", name) if name.contains("/nar/") => "PUT nar",
                ("GET", _) if asked.path.contains("list-type") => "list",
                _ => "other",
            };
            *counted.lock().unwrap().entry(what).or_default() += 1;
            None
        });
        let http = shelf.url("") + "/http";
        let bucket = format!("s3://bucket?endpoint={}&region=x", shelf.url(""));
        Counted {
            machine,
            paths,
            counts,
            http,
            bucket,
        }
    }

    /// What the server was asked while the command ran.
    fn asked(&self, args: &[&str], with_paths: bool) -> BTreeMap<&'static str, usize> {
        self.counts.lock().unwrap().clear();
        let mut command = self.machine.command(args);
        if with_paths {
            command.args(self.paths.iter().map(|path| format!("/nix/store/{path}")));
        }
        command
            .env("XDG_CACHE_HOME", "/proc/nowhere")
            .env("AWS_ACCESS_KEY_ID", "a")
            .env("AWS_SECRET_ACCESS_KEY", "b");
        let done = self.machine.done(command.output());
        assert_eq!(done.status, 0, "{args:?}: {done:?}");
        self.counts.lock().unwrap().clone()
    }
}

#[test]
fn each_is_asked_for_once() {
    let counted = Counted::new();
    let home = counted.machine.home();
    let (store, new) = (home.join("store"), home.join("new"));
    let (store, new) = (store.to_str().unwrap(), new.to_str().unwrap());
    let (http, bucket) = (&*counted.http, &*counted.bucket);
    let elsewhere = format!("{http}2");
    let n = PATHS;
    let (secret, public) = (home.join("secret"), home.join("public"));
    let key = secret.to_str().unwrap();
    let made = ["key", "generate", "k-1", "--secret", key, "--public"];
    counted.asked(&[&made[..], &[public.to_str().unwrap()]].concat(), false);
    let push = &[
        ("info", 2),
        ("GET narinfo", n),
        ("PUT narinfo", n),
        ("PUT nar", n),
    ][..];
    let questions = &[("info", 1), ("GET narinfo", n)][..];
    let listed = &[("info", 1), ("list", 1), ("GET narinfo", n)][..];
    let signed = &[
        ("info", 1),
        ("list", 1),
        ("GET narinfo", n),
        ("PUT narinfo", n),
    ][..];
    let read = &[("info", 1), ("list", 1), ("GET narinfo", n), ("GET nar", n)][..];
    let pulled = &[("info", 1), ("GET narinfo", n), ("GET nar", n)][..];
    let from_store = ["push", "--from", store, "--to"];
    for (args, with_paths, expected) in [
        (
            [&from_store[..], &[&elsewhere, "--dry-run"]].concat(),
            true,
            questions,
        ),
        ([&from_store[..], &[http]].concat(), true, push),
        ([&from_store[..], &[http]].concat(), true, questions),
        ([&from_store[..], &[bucket]].concat(), true, push),
        (vec!["check", "--in", http], true, questions),
        (vec!["check", "--closure", "--in", http], true, questions),
        (vec!["path-info", "--store", http], true, questions),
        (
            vec!["path-info", "--json", "--store", http],
            true,
            questions,
        ),
        (vec!["path-info", "--all", "--store", bucket], false, listed),
        (
            vec!["path-info", "--all", "--json", "--store", bucket],
            false,
            listed,
        ),
        (
            vec!["verify", "--all", "--no-trust", "--store", bucket],
            false,
            read,
        ),
        (
            vec!["sign", "--all", "--key-file", key, "--store", bucket],
            false,
            signed,
        ),
        (
            vec!["sign", "--all", "--key-file", key, "--store", bucket],
            false,
            listed,
        ),
        (
            vec![
                "pull",
                "--dry-run",
                "--no-check-sigs",
                "--from",
                http,
                "--to",
                new,
            ],
            true,
            questions,
        ),
        (
            vec!["pull", "--no-check-sigs", "--from", http, "--to", new],
            true,
            pulled,
        ),
    ] {
        let asked = counted.asked(&args, with_paths);
        assert_eq!(asked, expected.iter().copied().collect(), "{args:?}");
    }
}
