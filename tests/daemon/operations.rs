//! Every operation with every daemon: what it gives is what the command line says, and the
//! connection goes on.

use crate::support::{RigDaemon, VERSIONS, daemon::quote, made::nar_of, report};
use bytes::Bytes;
use futures::{TryStreamExt, stream};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::Arc,
};
use tk_daemon::{DaemonConfig, DaemonStore, UnixTransport, wire::Writer, worker::ops::*};
use tk_narinfo::{PathInfo, SecretKey, build_result::BuildStatus, realisation::legacy};
use tk_path::{
    Algorithm, BasicDerivation, Derivation, DerivedPath, Hash, Method, MethodAlgorithm, NarHash,
    OutputName, OutputsSpec, References, SingleDerivedPath, StoreDir, StorePath,
};
use tk_store::{AddContent, BuildMode, Error, GcAction, GcOptions, Result, Store, StoreExt, nar};

macro_rules! same {
    ($ours:expr, $theirs:expr) => {
        if let Err(difference) = crate::support::equal($ours, $theirs) {
            return Ok(Err(format!("{}: {difference}", stringify!($ours))));
        }
    };
}

/// A table of operation by version and trust.
#[tokio::test(flavor = "multi_thread")]
async fn every_operation() {
    let mut table = String::new();
    let mut wrong = Vec::new();
    let mut columns = Vec::new();
    let mut outcomes: BTreeMap<Op, Vec<Outcome>> = BTreeMap::new();
    for version in VERSIONS {
        for trusted in [true, false] {
            let Some(bench) = Bench::new(version, trusted).await else {
                continue;
            };
            columns.push(format!("{version}{}", if trusted { "" } else { "u" }));
            for op in Op::ALL {
                let (outcome, fault) = bench.row(*op).await;
                outcomes.entry(*op).or_default().push(outcome);
                let expected = expected(*op, version, trusted);
                let place = format!("{op} with {version}, trusted: {trusted}");
                if let Some(fault) = fault {
                    wrong.push(format!("{place}: {fault}"));
                } else if outcome != expected {
                    wrong.push(format!("{place}: {outcome:?}, expected {expected:?}"));
                }
            }
        }
    }
    if columns.is_empty() {
        return;
    }
    let mut line = |name: &str, cells: Vec<String>| {
        let cells: String = cells.iter().map(|cell| format!("{cell:>9}")).collect();
        writeln!(table, "  {name:<28}{cells}").unwrap();
    };
    line("", columns.clone());
    for op in Op::ALL {
        let cells = outcomes.remove(op).unwrap_or_default();
        assert_eq!(cells.len(), columns.len(), "{op} was left out");
        let cells = cells.iter().map(|outcome| outcome.word().to_owned());
        line(op.name(), cells.collect());
    }
    table.push_str("  same: as the command line says; u: not trusted; unknown: the daemon does not know it; hung up: refused, and no further\n");
    report(
        "Operations of the worker protocol, each followed by another",
        &table,
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What became of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// What the command line says.
    Same,
    /// The daemon said no, and the command line agrees.
    Refused,
    /// The same, and the daemon hung up, as Nix does where it says no before it begins to work.
    HungUp,
    /// The daemon's protocol does not have it; it was not sent.
    Unknown,
    /// Neither.
    Wrong,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Outcome::Same => "same",
            Outcome::Refused => "refused",
            Outcome::HungUp => "hung up",
            Outcome::Unknown => "unknown",
            Outcome::Wrong => "WRONG",
        }
    }
}

fn expected(op: Op, version: &str, trusted: bool) -> Outcome {
    match op {
        Op::AddTempRoots | Op::QueryPathInfos | Op::SubmitOutput | Op::AddToStoreScanning => {
            Outcome::Unknown
        }
        Op::AddPermRoot if version == "2.8" => Outcome::Unknown,
        Op::AddPermRoot | Op::AddBuildLog if !trusted => Outcome::HungUp,
        Op::AddSignatures if !trusted && version == "2.8" => Outcome::Refused,
        Op::BuildDerivation | Op::AddToStoreNar | Op::AddMultipleToStore if !trusted => {
            Outcome::Refused
        }
        _ => Outcome::Same,
    }
}

/// A daemon with things in its store, and our store in front of it.
struct Bench {
    daemon: RigDaemon,
    /// One connection at most, so that two operations share it.
    store: DaemonStore,
    dir: StoreDir,
    /// A plain file.
    file: StorePath,
    /// Built, with `file` as reference.
    built: StorePath,
    /// What it was built by.
    drv: StorePath,
    /// Only in the cache that the daemon fetches from.
    cached: StorePath,
    /// Built, content-addressed; with its realisation.
    floating: legacy::LegacyRealisation,
    key: SecretKey,
}

const EXPRESSION: &str = r#"
{ file }: let
  d = name: script: attrs: derivation ({
    inherit name; system = builtins.currentSystem;
    builder = "/bin/sh"; args = [ "-c" script ];
  } // attrs);
in {
  one = d "one" "echo $dep > $out" { dep = builtins.storePath file; };
  two = d "two" "echo two > $out; echo dev > $dev" { outputs = [ "out" "dev" ]; };
  three = d "three" "echo three > $out; echo dev > $dev" { outputs = [ "out" "dev" ]; };
  basic = d "basic" "echo basic > $out" { };
  missing = d "missing" "echo $dep > $out" { dep = d "missing-dep" "echo x > $out" { }; };
  floating = d "floating" "echo floating > $out" {
    __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";
  };
}
"#;

impl Bench {
    async fn new(version: &'static str, trusted: bool) -> Option<Bench> {
        let key = SecretKey::generate("bench-1").unwrap();
        let public = format!("trusted-public-keys = {}", key.public());
        let conf = ["substituters = file://{STATE}/work/cache", &public];
        let daemon = RigDaemon::start_with(version, trusted, &conf)?;
        let folder = daemon.folder();
        let place = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        fs::write(place("expression.nix"), EXPRESSION).unwrap();
        fs::write(place("key"), &*key.to_text()).unwrap();
        fs::write(place("file"), "a file\n").unwrap();
        fs::write(place("cached"), "only in the cache\n").unwrap();

        let dir = StoreDir::default();
        let add = |file: &str| {
            dir.parse(&daemon.ask("nix-store", &["--add", file]))
                .unwrap()
        };
        let (file, cached) = (add(&place("file")), add(&place("cached")));
        // Other caches are not asked about many paths at once.
        fs::create_dir(place("cache")).unwrap();
        let about = "StoreDir: /nix/store\nWantMassQuery: 1\n";
        fs::write(format!("{}/nix-cache-info", place("cache")), about).unwrap();
        let url = format!("file://{}?secret-key={}", place("cache"), place("key"));
        daemon.ask("nix", &["copy", "--to", &url, &dir.path(&cached)]);
        daemon.ask("nix-store", &["--delete", &dir.path(&cached)]);

        let mut config = DaemonConfig::new(format!("unix://{}", daemon.socket().display()));
        config.max_connections = 1;
        config.timeout = Some(std::time::Duration::from_secs(30));
        let transport = Arc::new(UnixTransport::new(daemon.socket()));
        let mut bench = Bench {
            store: DaemonStore::new(transport, config),
            built: file.clone(),
            drv: file.clone(),
            floating: legacy::LegacyRealisation::new(NO_ID.parse().unwrap(), file.clone()),
            daemon,
            dir,
            file,
            cached,
            key,
        };
        bench.drv = bench.instantiate("one");
        let link = place("result");
        let drv = bench.dir.path(&bench.drv);
        let args = ["--realise", &drv, "--add-root", &link, "--indirect"];
        bench.daemon.ask("nix-store", &args);
        let output = fs::read_link(&link).unwrap();
        bench.built = bench.dir.parse(output.to_str().unwrap()).unwrap();
        bench.build_floating();
        Some(bench)
    }

    fn build_floating(&mut self) {
        let drv = self.instantiate("floating");
        self.nix_store(&["--realise", &self.dir.path(&drv)]);
        let installable = match self.daemon.version {
            "2.8" => self.dir.path(&drv),
            _ => format!("{}^out", self.dir.path(&drv)),
        };
        let said = self
            .daemon
            .ask("nix", &["realisation", "info", "--json", &installable]);
        let said: Value = serde_json::from_str(&said).unwrap();
        let said = said.get(0).unwrap_or(&said);
        self.floating = legacy::LegacyRealisation::from_json(said).unwrap();
    }

    fn instantiate(&self, name: &str) -> StorePath {
        let expression = self.daemon.folder().join("expression.nix");
        let expression = expression.to_str().unwrap();
        let args = [
            expression,
            "-A",
            name,
            "--argstr",
            "file",
            &self.dir.path(&self.file),
        ];
        self.parse(&self.daemon.ask("nix-instantiate", &args))
    }

    fn parse(&self, path: &str) -> StorePath {
        self.dir
            .parse(path.trim())
            .unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    fn nix_store(&self, args: &[&str]) -> String {
        self.daemon.ask("nix-store", args)
    }

    /// The paths that `nix-store` prints.
    fn paths(&self, args: &[&str]) -> BTreeSet<StorePath> {
        self.nix_store(args)
            .lines()
            .map(|line| self.parse(line))
            .collect()
    }

    /// A path of its own for an operation, which nothing keeps alive.
    fn fresh(&self, name: &str) -> StorePath {
        let file = self.daemon.folder().join(name);
        fs::write(&file, format!("{name}\n")).unwrap();
        self.parse(&self.nix_store(&["--add", file.to_str().unwrap()]))
    }

    fn absent(&self) -> StorePath {
        StorePath::from_digest(&[3; 20], "absent").unwrap()
    }

    /// One operation, then another on the same connection.
    async fn row(&self, op: Op) -> (Outcome, Option<String>) {
        let opened = self.store.connection().await.unwrap().opened();
        let answer = self.run(op).await;
        let (outcome, mut fault) = match answer {
            Ok(Ok(())) => (Outcome::Same, None),
            Ok(Err(fault)) => (Outcome::Wrong, Some(fault)),
            Err(Error::Unsupported { .. }) => (Outcome::Unknown, None),
            Err(Error::Refused { .. }) => (Outcome::Refused, None),
            Err(error) => (Outcome::Wrong, Some(error.to_line())),
        };
        let path = self.file.clone();
        match self.store.call(&IsValidPath { path }).await {
            Ok(true) => {}
            other => fault = Some(format!("afterwards: {other:?}")),
        }
        let kept = self.store.connection().await.unwrap().opened() == opened;
        let outcome = match (outcome, kept) {
            (outcome, true) => outcome,
            (Outcome::Refused, false) => Outcome::HungUp,
            (outcome, false) => {
                fault = Some("the connection was given up".to_owned());
                outcome
            }
        };
        (outcome, fault)
    }

    /// The operation, compared with the command line. The outer error is that of the operation.
    async fn run(&self, op: Op) -> Result<Checked> {
        let (store, dir) = (&self.store, &self.dir);
        let (file, built, drv) = (self.file.clone(), self.built.clone(), self.drv.clone());
        let (file_path, built_path, drv_path) = (dir.path(&file), dir.path(&built), dir.path(&drv));
        match op {
            Op::IsValidPath => {
                for path in [file, built, self.absent()] {
                    let args = ["--check-validity", &dir.path(&path)];
                    let said = self.daemon.run("nix-store", &args).status == 0;
                    same!(store.call(&IsValidPath { path }).await?, said);
                }
            }
            Op::QueryReferrers => {
                let said = self.paths(&["-q", "--referrers", &file_path]);
                same!(store.call(&QueryReferrers { path: file }).await?, said);
            }
            Op::AddToStore => {
                for (method, flags) in [
                    (Method::Nar, ["--add-fixed", "--recursive"]),
                    (Method::Flat, ["--add-fixed", ""]),
                ] {
                    let name = format!("added-{method}");
                    let text = format!("{name} to the store");
                    let none = References::default();
                    let nar = nar::from_bytes(nar_of(text.as_bytes()));
                    let added = store
                        .add_content(&name, method, Algorithm::Sha256, &none, nar)
                        .await?;
                    let place = self.daemon.folder().join(&name);
                    fs::write(&place, text).unwrap();
                    let mut args: Vec<_> =
                        flags.into_iter().filter(|flag| !flag.is_empty()).collect();
                    args.extend(["sha256", place.to_str().unwrap()]);
                    same!(&added.path, &self.parse(&self.nix_store(&args)));
                    let said = self.path_info(&added.path);
                    same!(added, said);
                }
            }
            Op::AddTextToStore => {
                let added = store
                    .call(&AddTextToStore {
                        name: "text".to_owned(),
                        text: Bytes::from_static(b"a text"),
                        references: BTreeSet::new(),
                    })
                    .await?;
                let eval = ["--eval", "-E", "builtins.toFile \"text\" \"a text\""];
                let said = self.daemon.ask("nix-instantiate", &eval);
                same!(added, self.parse(said.trim_matches('"')));
            }
            Op::BuildPaths => {
                let drv = self.instantiate("two");
                let paths = vec![everything_of(&drv)];
                let mode = BuildMode::Normal;
                store.call(&BuildPaths { paths, mode }).await?;
                let outputs = self.nix_store(&["-q", "--outputs", &dir.path(&drv)]);
                let mut check = vec!["--check-validity"];
                check.extend(outputs.lines());
                same!(check.len(), 3);
                same!(self.daemon.run("nix-store", &check).status, 0);
            }
            Op::EnsurePath => {
                store.call(&EnsurePath { path: file }).await?;
                let path = self.cached.clone();
                store.call(&EnsurePath { path }).await?;
                let fetched = dir.path(&self.cached);
                same!(
                    self.daemon
                        .run("nix-store", &["--check-validity", &fetched])
                        .status,
                    0
                );
                let path = self.absent();
                let absent = store.call(&EnsurePath { path }).await;
                same!(matches!(absent, Err(Error::Refused { .. })), true);
            }
            Op::AddTempRoot => {
                let path = self.fresh("temporary");
                store.call(&AddTempRoot { path: path.clone() }).await?;
                let deleted = self
                    .daemon
                    .run("nix-store", &["--delete", &dir.path(&path)]);
                same!(deleted.status != 0, true);
            }
            Op::AddIndirectRoot => {
                let path = self.fresh("indirect");
                let link = self.daemon.folder().join("indirect-root");
                symlink(dir.path(&path), &link).unwrap();
                let bytes = link.to_str().unwrap().into();
                store.call(&AddIndirectRoot { link: bytes }).await?;
                let deleted = self
                    .daemon
                    .run("nix-store", &["--delete", &dir.path(&path)]);
                same!(deleted.status != 0, true);
                same!(self.roots_said().contains(&root_of(&link, &path)), true);
            }
            Op::SyncWithGC => drop(store.call(&SyncWithGC {}).await?),
            Op::FindRoots => {
                let roots = store.call(&FindRoots {}).await?.0;
                let roots: BTreeSet<_> = roots
                    .into_iter()
                    .map(|root| (root.link, root.target))
                    .filter(|(link, _)| is_lasting(link))
                    .collect();
                same!(&roots, &self.roots_said());
                let link = self.daemon.folder().join("result");
                same!(roots.contains(&root_of(&link, &built)), true);
            }
            Op::QueryDeriver => {
                let said = self.parse(&self.nix_store(&["-q", "--deriver", &built_path]));
                same!(store.call(&QueryDeriver { path: built }).await?, Some(said));
                same!(store.call(&QueryDeriver { path: file }).await?, None);
            }
            Op::SetOptions => {
                let overrides = [("timeout".to_owned(), "600".to_owned())];
                let mut options = SetOptions::default();
                options.overrides = overrides.into();
                store.call(&options).await?;
            }
            Op::CollectGarbage => {
                let dead = self.fresh("dead");
                // Whoever served the command line may still hold it for a moment.
                let mut report = store.call(&gc(GcAction::ReturnDead)).await?;
                for _ in 0..100 {
                    if report.paths.contains(&dir.path(&dead)) {
                        break;
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    report = store.call(&gc(GcAction::ReturnDead)).await?;
                }
                let said: BTreeSet<_> = self
                    .nix_store(&["--gc", "--print-dead"])
                    .lines()
                    .map(str::to_owned)
                    .collect();
                same!(report.paths, said);
                let report = store.call(&gc(GcAction::ReturnLive)).await?;
                same!(report.paths.contains(&built_path), true);
                let only = BTreeSet::from([dead.clone()]);
                let report = store.call(&gc(GcAction::DeleteSpecific(only))).await?;
                same!(report.paths, BTreeSet::from([dir.path(&dead)]));
                let gone = self
                    .daemon
                    .run("nix-store", &["--check-validity", &dir.path(&dead)]);
                same!(gone.status != 0, true);
            }
            Op::QuerySubstitutablePathInfo => {
                let path = self.cached.clone();
                let found = store.call(&QuerySubstitutablePathInfo { path }).await?;
                let found = found.ok_or_else(|| Error::invalid("nothing to fetch"))?;
                same!(found.nar_size, self.cached_size());
                let path = self.absent();
                same!(
                    store.call(&QuerySubstitutablePathInfo { path }).await?,
                    None
                );
            }
            Op::QueryDerivationOutputs => {
                let said = self.paths(&["-q", "--outputs", &drv_path]);
                same!(
                    store.call(&QueryDerivationOutputs { path: drv }).await?,
                    said
                );
            }
            Op::QueryAllValidPaths => {
                let said = self.daemon.ask("nix", &["path-info", "--all"]);
                let said: BTreeSet<_> = said.lines().map(|line| self.parse(line)).collect();
                same!(store.call(&QueryAllValidPaths {}).await?, said);
            }
            Op::QueryPathInfo => {
                for path in [file, built, drv] {
                    let info = store.call(&QueryPathInfo { path: path.clone() }).await?;
                    let info = info.map(|info| info.with_path(path.clone()));
                    same!(info, Some(self.path_info(&path)));
                }
                let path = self.absent();
                same!(store.call(&QueryPathInfo { path }).await?, None);
            }
            Op::QueryDerivationOutputNames => {
                let drv = self.instantiate("two");
                let names = store
                    .call(&QueryDerivationOutputNames { path: drv })
                    .await?;
                let names: Vec<_> = names.iter().map(OutputName::as_str).collect();
                same!(names, vec!["dev", "out"]);
            }
            Op::QueryPathFromHashPart => {
                let part = file.to_hash_part();
                same!(
                    store.call(&QueryPathFromHashPart { part }).await?,
                    Some(file)
                );
                let part = self.absent().to_hash_part();
                same!(store.call(&QueryPathFromHashPart { part }).await?, None);
            }
            Op::QuerySubstitutablePathInfos => {
                let paths = [self.cached.clone(), self.absent()].map(|path| (path, None));
                let paths = BTreeMap::from(paths);
                let found = store.call(&QuerySubstitutablePathInfos { paths }).await?;
                let found: Vec<_> = found
                    .into_iter()
                    .map(|(p, info)| (p, info.nar_size))
                    .collect();
                same!(found, vec![(self.cached.clone(), self.cached_size())]);
            }
            Op::QueryValidPaths => {
                let paths = BTreeSet::from([file.clone(), built.clone(), self.absent()]);
                let substitute = false;
                let valid = store.call(&QueryValidPaths { paths, substitute }).await?;
                same!(valid, BTreeSet::from([file, built]));
            }
            Op::QuerySubstitutablePaths => {
                let paths = BTreeSet::from([self.cached.clone(), self.absent()]);
                let found = store.call(&QuerySubstitutablePaths { paths }).await?;
                same!(found, BTreeSet::from([self.cached.clone()]));
            }
            Op::QueryValidDerivers => {
                let said = self.parse(&self.nix_store(&["-q", "--deriver", &built_path]));
                let derivers = store.call(&QueryValidDerivers { path: built }).await?;
                same!(derivers, BTreeSet::from([said]));
            }
            Op::OptimiseStore => {
                store.call(&OptimiseStore {}).await?;
                let links = self.daemon.store().join(".links");
                same!(fs::read_dir(links).unwrap().count() > 0, true);
            }
            Op::VerifyStore => {
                let request = VerifyStore {
                    check_contents: true,
                    repair: false,
                };
                let said = self
                    .daemon
                    .run("nix-store", &["--verify", "--check-contents"]);
                same!(store.call(&request).await?, said.status != 0);
                let request = VerifyStore {
                    check_contents: false,
                    repair: true,
                };
                let repaired = store.call(&request).await;
                let refused = matches!(repaired, Err(Error::Refused { .. }));
                same!(refused, !self.daemon.trusted);
            }
            Op::BuildDerivation => {
                let drv = self.instantiate("basic");
                let derivation = self.basic(&drv);
                let path = drv.clone();
                let mode = BuildMode::Normal;
                let request = BuildDerivation {
                    path,
                    derivation,
                    mode,
                };
                let result = store.call(&request).await?;
                same!(result.status, BuildStatus::Built);
                let output = self.nix_store(&["-q", "--outputs", &dir.path(&drv)]);
                same!(
                    self.daemon
                        .run("nix-store", &["--check-validity", &output])
                        .status,
                    0
                );
            }
            Op::AddSignatures => {
                let mut info = store.require_info(&file).await?;
                info.sign(dir, &self.key).unwrap();
                let signatures = info.signatures;
                store
                    .call(&AddSignatures {
                        path: file,
                        signatures,
                    })
                    .await?;
                let said = self.daemon.ask("nix", &["path-info", "--sigs", &file_path]);
                same!(said.contains("bench-1:"), true);
            }
            Op::NarFromPath => {
                let chunks: Vec<Bytes> = store.nar(&built).await?.try_collect().await?;
                let said = self.daemon.sh(&format!(
                    "nix-store --dump {} | sha256sum",
                    quote(&built_path)
                ));
                let hash = NarHash::digest(&chunks.concat()).hex();
                same!(
                    said.stdout.split(' ').next().unwrap_or_default(),
                    hash.as_str()
                );
                same!(store.require_info(&built).await?.nar_hash.hex(), hash);
            }
            Op::AddToStoreNar => {
                let (mut info, nar) = self.unsigned("by-nar");
                let dont_check_signatures = true;
                let repair = false;
                let request = |info: &PathInfo| AddToStoreNar {
                    info: info.clone(),
                    repair,
                    dont_check_signatures,
                };
                let data = || stream::iter([Ok(nar.clone())]);
                let log = &();
                let added = store
                    .connection()
                    .await?
                    .upload(&request(&info), data(), log)
                    .await;
                same!(self.is_said_valid(&info.path), added.is_ok());
                info.sign(dir, &self.key).unwrap();
                store
                    .connection()
                    .await?
                    .upload(&request(&info), data(), log)
                    .await?;
                same!(self.path_info(&info.path).nar_hash, info.nar_hash);
                added?;
            }
            Op::QueryMissing => {
                let drv = self.instantiate("missing");
                let drv_path = dir.path(&drv);
                let paths = vec![everything_of(&drv), DerivedPath::Opaque(self.absent())];
                let missing = store.call(&QueryMissing { paths }).await?;
                let dry = self
                    .daemon
                    .run("nix-store", &["--realise", "--dry-run", &drv_path]);
                let said = dry.stderr.lines().filter(|line| line.ends_with(".drv"));
                let said: BTreeSet<_> = said.map(|line| self.parse(line)).collect();
                same!(missing.build.len(), 2);
                same!(missing.build, said);
                same!(missing.unknown, BTreeSet::from([self.absent()]));
            }
            Op::QueryDerivationOutputMap => {
                let drv = self.instantiate("two");
                let map = store
                    .call(&QueryDerivationOutputMap { path: drv.clone() })
                    .await?;
                let names: Vec<_> = map.keys().map(OutputName::as_str).collect();
                same!(names, vec!["dev", "out"]);
                let said = self.paths(&["-q", "--outputs", &dir.path(&drv)]);
                same!(map.into_values().flatten().collect::<BTreeSet<_>>(), said);
            }
            Op::RegisterDrvOutput => {
                let id = legacy::LegacyDrvOutput {
                    hash: Hash::digest(Algorithm::Sha256, b"anything"),
                    output: OutputName::out(),
                };
                let realisation = legacy::LegacyRealisation::new(id.clone(), file);
                let request = RegisterDrvOutput::Legacy(realisation.clone());
                store.call(&request).await?;
                let found = store.call(&QueryRealisation::Legacy(id)).await?;
                same!(found, FoundRealisation::Legacy([realisation].into()));
            }
            Op::QueryRealisation => {
                let id = self.floating.id.clone();
                let found = store.call(&QueryRealisation::Legacy(id.clone())).await?;
                let FoundRealisation::Legacy(found) = found else {
                    return Ok(Err("the other form".to_owned()));
                };
                let paths: Vec<_> = found
                    .into_iter()
                    .map(|found| (found.id, found.out_path))
                    .collect();
                same!(paths, vec![(id, self.floating.out_path.clone())]);
                let id = NO_ID.parse().unwrap();
                let none = store.call(&QueryRealisation::Legacy(id)).await?;
                same!(none, FoundRealisation::Legacy(BTreeSet::new()));
            }
            Op::AddMultipleToStore => {
                let items = [self.unsigned("several-1"), self.unsigned("several-2")];
                let mut connection = store.connection().await?;
                let at = AddMultipleToStore::item_protocol(connection.protocol());
                let mut body = Writer::new(at);
                body.count(items.len());
                for (info, nar) in &items {
                    body.value(info).unwrap();
                    body.raw(nar);
                }
                let request = AddMultipleToStore {
                    repair: false,
                    dont_check_signatures: true,
                };
                let data = stream::iter([Ok(body.take().freeze())]);
                let added = connection.upload(&request, data, &()).await;
                drop(connection);
                for (info, _) in &items {
                    same!(self.is_said_valid(&info.path), added.is_ok());
                }
                added?;
            }
            Op::AddBuildLog => {
                let drv = self.instantiate("three");
                let data = stream::iter([Ok(Bytes::from_static(b"what it wrote\n"))]);
                let request = AddBuildLog { path: drv.clone() };
                let added = store.connection().await?.upload(&request, data, &()).await;
                let said = self
                    .daemon
                    .run("nix-store", &["--read-log", &dir.path(&drv)]);
                same!(said.stdout == "what it wrote\n", added.is_ok());
                added?;
            }
            Op::BuildPathsWithResults => {
                let drv = self.instantiate("three");
                let paths = vec![everything_of(&drv)];
                let mode = BuildMode::Normal;
                let results = store.call(&BuildPathsWithResults { paths, mode }).await?;
                same!(results.len(), 1);
                same!(results[0].result.status, BuildStatus::Built);
                let outputs = results[0].result.outputs.values();
                let outputs: BTreeSet<_> = outputs.map(|output| output.out_path.clone()).collect();
                same!(outputs, self.paths(&["-q", "--outputs", &dir.path(&drv)]));
            }
            Op::AddPermRoot => {
                let path = self.fresh("permanent");
                let link = self.daemon.folder().join("permanent-root");
                let text = link.to_str().unwrap().to_owned();
                let request = AddPermRoot {
                    path: path.clone(),
                    link: text.clone().into(),
                };
                same!(store.call(&request).await?.to_string(), text);
                same!(
                    fs::read_link(&link).unwrap(),
                    Path::new(&dir.path(&path)).to_owned()
                );
                same!(self.roots_said().contains(&root_of(&link, &path)), true);
            }
            Op::AddTempRoots => {
                let paths = BTreeSet::from([file]);
                store.call(&AddTempRoots { paths }).await?;
            }
            Op::QueryPathInfos => {
                let paths = BTreeSet::from([file]);
                store.call(&QueryPathInfos { paths }).await?;
            }
            Op::SubmitOutput => {
                let (path, output) = (SingleDerivedPath::Opaque(file), OutputName::out());
                store.call(&SubmitOutput { path, output }).await?;
            }
            Op::AddToStoreScanning => {
                let method = MethodAlgorithm {
                    method: Method::Nar,
                    algorithm: Algorithm::Sha256,
                };
                let request = AddToStoreScanning {
                    name: "scanned".to_owned(),
                    method,
                };
                let data = stream::iter([Ok(nar_of(b"scanned"))]);
                store
                    .connection()
                    .await?
                    .upload(&request, data, &())
                    .await?;
            }
        }
        Ok(Ok(()))
    }

    /// What `nix path-info --json` says.
    fn path_info(&self, path: &StorePath) -> PathInfo {
        let whole = self.dir.path(path);
        let mut args = vec!["path-info", "--json", &whole];
        if self.daemon.version == "2.8" && path.is_derivation() {
            // Its outputs are meant otherwise.
            args.push("--derivation");
        }
        let said = self.daemon.ask("nix", &args);
        let said: Value = serde_json::from_str(&said).unwrap();
        let said = said
            .get(0)
            .or_else(|| said.as_object()?.values().next())
            .unwrap();
        let text = |key: &str| said.get(key).and_then(Value::as_str);
        let hash = NarHash::parse(text("narHash").unwrap()).unwrap();
        let mut info = PathInfo::new(path.clone(), hash, said["narSize"].as_u64().unwrap());
        let references = said["references"].as_array().unwrap().iter();
        info.references = references
            .map(|r| self.parse(r.as_str().unwrap()))
            .collect();
        info.deriver = text("deriver").map(|path| self.parse(path));
        info.registration_time = said["registrationTime"].as_u64().unwrap();
        info.ultimate = said
            .get("ultimate")
            .and_then(Value::as_bool)
            .unwrap_or(false);
        info.ca = text("ca").map(|ca| ca.parse().unwrap());
        let signatures = said.get("signatures").and_then(Value::as_array);
        let signatures = signatures.into_iter().flatten();
        info.signatures = signatures
            .map(|s| s.as_str().unwrap().parse().unwrap())
            .collect();
        info
    }

    fn is_said_valid(&self, path: &StorePath) -> bool {
        let args = ["--check-validity", &self.dir.path(path)];
        self.daemon.run("nix-store", &args).status == 0
    }

    /// The bytes of the cached path's NAR, by its cache.
    fn cached_size(&self) -> u64 {
        let file = format!("work/cache/{}.narinfo", self.cached.hash_part());
        let text = fs::read_to_string(self.daemon.state().join(file)).unwrap();
        let size = text.lines().find_map(|line| line.strip_prefix("NarSize: "));
        size.unwrap().parse().unwrap()
    }

    /// What `nix-store --gc --print-roots` says, without the roots of processes.
    fn roots_said(&self) -> BTreeSet<(String, StorePath)> {
        let said = self.nix_store(&["--gc", "--print-roots"]);
        let roots = said.lines().filter_map(|line| line.split_once(" -> "));
        // 2.34 puts it in quotation marks.
        let plain = |link: &str| link.trim_matches('"').to_owned();
        let roots = roots.map(|(link, target)| (plain(link), self.parse(target)));
        roots.filter(|(link, _)| is_lasting(link)).collect()
    }

    /// A path that nobody has signed, and its NAR.
    fn unsigned(&self, name: &str) -> (PathInfo, Bytes) {
        let nar = nar_of(name.as_bytes());
        let digest = Hash::digest(Algorithm::Sha256, name.as_bytes()).compress(20);
        let path = StorePath::from_digest(&digest.try_into().unwrap(), name).unwrap();
        (
            PathInfo::new(path, NarHash::digest(&nar), nar.len() as u64),
            nar,
        )
    }

    /// The derivation without inputs of its own.
    fn basic(&self, drv: &StorePath) -> BasicDerivation {
        let file = fs::read(self.daemon.store().join(drv.as_str())).unwrap();
        let name = drv.name().strip_suffix(".drv").unwrap();
        let parsed = Derivation::parse_aterm(&self.dir, name, &file).unwrap();
        assert!(parsed.inputs.drvs.is_empty());
        Derivation {
            name: parsed.name,
            outputs: parsed.outputs,
            inputs: parsed.inputs.srcs,
            platform: parsed.platform,
            builder: parsed.builder,
            args: parsed.args,
            env: parsed.env,
        }
    }
}

/// Whether the command line agrees.
type Checked = std::result::Result<(), String>;

fn everything_of(drv: &StorePath) -> DerivedPath {
    DerivedPath::Built {
        drv: SingleDerivedPath::Opaque(drv.clone()),
        outputs: OutputsSpec::All,
    }
}

fn gc(action: GcAction) -> CollectGarbage {
    GcOptions::new(action).into()
}

fn root_of(link: &Path, target: &StorePath) -> (String, StorePath) {
    (link.to_str().unwrap().to_owned(), target.clone())
}

/// Whether a root is a link, rather than a process that may be gone a moment later.
fn is_lasting(link: &str) -> bool {
    !link.starts_with('{') && !link.starts_with("/proc/")
}

const NO_ID: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000!out";
