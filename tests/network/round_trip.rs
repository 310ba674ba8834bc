//! Push, check and pull; real Nix pulls what we pushed, and we pull what it pushed.

use super::{Served, Source, full};
use crate::{
    cli::{Done, Machine},
    support::{Rig, rig, servers::S3},
};
use serde_json::Value;
use std::process::Output;

/// A place for caches, and what programs need in their environment to use it.
struct Place {
    name: &'static str,
    /// URIs of two empty caches.
    caches: [String; 2],
    env: Vec<(&'static str, String)>,
    _server: Box<dyn std::any::Any>,
}

fn places() -> Vec<Place> {
    let mut places = Vec::new();
    for (name, tls) in [("nginx", false), ("nginx with TLS", true)] {
        if let Some(served) = Served::start(tls) {
            places.push(Place {
                name,
                caches: ["one", "two"].map(|cache| format!("{}/{cache}", served.nginx.url)),
                env: served.nginx.env(),
                _server: Box::new(served),
            });
        }
    }
    if let Some(ceph) = S3::ceph() {
        let caches = ["one", "two"].map(|bucket| {
            ceph.make_bucket(bucket);
            ceph.open_to_all(bucket);
            ceph.uri(bucket)
        });
        places.push(Place {
            name: "Ceph",
            caches,
            env: ceph.env(),
            _server: Box::new(ceph),
        });
    }
    places
}

/// Those, and where real Nix cannot log in.
fn our_places() -> Vec<Place> {
    let mut places = places();
    if let Some(s3) = S3::s3s_fs() {
        let caches = ["one", "two"].map(|bucket| {
            s3.make_bucket(bucket);
            s3.uri(bucket)
        });
        places.push(Place {
            name: "s3s-fs",
            caches,
            env: s3.env(),
            _server: Box::new(s3),
        });
    }
    places
}

impl Place {
    fn run(&self, machine: &Machine, args: &[&str]) -> Done {
        let mut command = machine.command(args);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        machine.done(command.output())
    }

    #[track_caller]
    fn expect(&self, status: i32, machine: &Machine, args: &[&str]) -> Done {
        let done = self.run(machine, args);
        assert_eq!(
            done.status, status,
            "{}: tk-store {args:?}: {done:?}",
            self.name
        );
        assert!(!done.err.contains("panicked"), "{done:?}");
        done
    }

    fn nix(&self, nix: &Rig, args: &[&str]) -> Output {
        let mut command = nix.command("nix");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.args(args).output().expect("nix starts")
    }
}

/// The URI with one more parameter.
fn with(uri: &str, parameter: &str) -> String {
    let mark = if uri.contains('?') { '&' } else { '?' };
    format!("{uri}{mark}{parameter}")
}

#[test]
fn push_check_and_pull() {
    for place in our_places() {
        let source = Source::new(30, &[11]);
        let (machine, top) = (&source.machine, source.top());
        let [cache, _] = &place.caches;
        let signed = with(cache, "secret-key=s");
        let check = [
            "check",
            "--closure",
            "--store",
            "./store",
            "--in",
            cache,
            &top,
        ];

        // A place that is not a cache cannot be asked; one that lacks paths can.
        let done = place.expect(2, machine, &check);
        assert!(
            done.err.contains("nix-cache-info"),
            "{}: {done:?}",
            place.name
        );
        place.expect(0, machine, &["cache", "init", cache]);
        place.expect(1, machine, &check);

        let push = [
            "push", "--store", "./store", "--to", &signed, "--json", &top,
        ];
        let report = place.expect(0, machine, &push).out;
        let report: Value = serde_json::from_str(&report).unwrap();
        assert_eq!(
            report["copied"].as_array().unwrap().len(),
            30,
            "{}",
            place.name
        );
        let again = place.expect(0, machine, &push).out;
        let again: Value = serde_json::from_str(&again).unwrap();
        assert_eq!(again["copied"], Value::Array(vec![]), "{}", place.name);

        place.expect(0, machine, &check);
        let absent = full(&source.paths[0]).replace("path-0", "path-1");
        place.expect(1, machine, &["check", "--in", cache, &absent]);

        let other = Machine::new();
        let pull = ["pull", "--from", cache, "--to", "./store", &top];
        let refused = place.expect(1, &other, &pull);
        assert!(
            refused.err.contains("test-1"),
            "{}: {refused:?}",
            place.name
        );
        let pull = [&pull[..], &["--trusted-key", &source.key]].concat();
        place.expect(0, &other, &pull);
        place.expect(
            0,
            &other,
            &["verify", "--store", "./store", "--all", "--no-trust"],
        );
        let hash = |machine, store: &str| {
            place
                .expect(
                    0,
                    machine,
                    &["path-info", "--store", store, "--json", "-r", &top],
                )
                .out
        };
        assert_eq!(
            names(&hash(&other, "./store")),
            names(&hash(machine, "./store"))
        );
        assert_eq!(
            names(&hash(&other, cache)),
            names(&hash(machine, "./store"))
        );
        place.expect(0, &other, &["ls", "--store", cache, &top]);
        let content = place
            .expect(0, &other, &["cat", "--store", cache, &top])
            .out;
        assert!(!content.is_empty());
    }
}

/// Paths and NAR hashes of `path-info --json`.
fn names(text: &str) -> Vec<(String, Value)> {
    let value: Value = serde_json::from_str(text).unwrap();
    let mut names: Vec<_> = match &value {
        Value::Object(all) => {
            let name = |(path, info): (&String, &Value)| (path.clone(), info["narHash"].clone());
            all.iter().map(name).collect()
        }
        other => panic!("{other}"),
    };
    assert_eq!(names.len(), 30);
    names.sort_by(|a, b| a.0.cmp(&b.0));
    names
}

#[test]
fn real_nix_pulls_what_we_pushed() {
    let Some(nix) = rig("2.34") else { return };
    for place in places() {
        let source = Source::new(12, &[5]);
        let [cache, _] = &place.caches;
        let top = source.top();
        for compression in ["zstd", "xz", "none"] {
            let machine = &source.machine;
            let signed = with(cache, &format!("secret-key=s&compression={compression}"));
            place.expect(
                0,
                machine,
                &[
                    "push", "--force", "--store", "./store", "--to", &signed, &top,
                ],
            );
            let to = tempfile::TempDir::new().unwrap();
            let store = to.path().join("store").display().to_string();
            let copy = ["copy", "--from", cache, "--to", &store, &top];
            let refused = place.nix(&nix, &copy);
            let words = String::from_utf8_lossy(&refused.stderr);
            assert!(!refused.status.success(), "{}: {words}", place.name);
            assert!(words.contains("signature"), "{}: {words}", place.name);
            let trusted = ["--option", "trusted-public-keys", &source.key];
            let taken = place.nix(&nix, &[&copy[..], &trusted].concat());
            let words = String::from_utf8_lossy(&taken.stderr);
            assert!(
                taken.status.success(),
                "{} {compression}: {words}",
                place.name
            );
        }
    }
}

#[test]
fn we_pull_what_real_nix_pushed() {
    let Some(nix) = rig("2.34") else { return };
    for place in places() {
        let source = Source::new(12, &[5]);
        let [_, cache] = &place.caches;
        let top = source.top();
        let from = source.machine.home().join("store").display().to_string();
        let key = source.machine.home().join("s").display().to_string();
        let to = with(cache, &format!("secret-key={key}&compression=xz"));
        let sent = place.nix(
            &nix,
            &[
                "copy",
                "--no-check-sigs",
                "--from",
                &from,
                "--to",
                &to,
                &top,
            ],
        );
        let words = String::from_utf8_lossy(&sent.stderr);
        assert!(sent.status.success(), "{}: {words}", place.name);
        let other = Machine::new();
        let pull = ["pull", "--from", cache, "--to", "./store", &top];
        place.expect(1, &other, &pull);
        place.expect(
            0,
            &other,
            &[&pull[..], &["--trusted-key", &source.key]].concat(),
        );
        place.expect(0, &other, &["check", "--closure", "--in", cache, &top]);
    }
}
