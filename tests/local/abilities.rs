//! What stores on disk and caches can do beyond paths, beside real Nix: derivations, roots, logs,
//! realisations.

use super::{PLAIN, add_content, database, fill, nix_store, open, text};
use crate::support::{Rig, Tally, VERSIONS, each_version, equal, rig};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::symlink,
    path::Path,
};
use tempfile::TempDir;
use tk_cache::{BinaryCache, BinaryCacheConfig};
use tk_local::LocalStore;
use tk_narinfo::realisation::legacy;
use tk_path::{Algorithm, Method, StorePath};
use tk_store::{Error, Graph, Logs, Realisations, Roots, SigCheck, Store, closure, nar};

/// Derivations of real Nix that come to us are known to Nix by their outputs, as its own are.
#[tokio::test(flavor = "multi_thread")]
async fn derivations_that_we_added() {
    let rows = ["2.8", "2.26", "2.34"];
    let mut table = Tally::new("local stores: outputs of derivations as in Nix", &rows);
    for rig in VERSIONS.into_iter().filter_map(rig) {
        let temp = TempDir::new().unwrap();
        let (ours, theirs) = (temp.path().join("ours"), temp.path().join("theirs"));
        let drvs = instantiate(&rig, &temp, &theirs);
        let source = open(&theirs).await;
        let store = open(&ours).await;
        copy(&source, &store, drvs.values().cloned()).await;
        table.equal(rig.version, "rows", outputs(&ours), outputs(&theirs));
        for (name, drv) in &drvs {
            let full = store.dir().path(drv);
            for question in ["--references", "--referrers", "--requisites"] {
                let ask = |root| nix_store(&rig, root, &["-q", question, &full]);
                table.equal(
                    rig.version,
                    &format!("{name} {question}"),
                    ask(&ours),
                    ask(&theirs),
                );
            }
            let map = store.output_map(drv).await.unwrap();
            table.equal(
                rig.version,
                name,
                source.output_map(drv).await.unwrap(),
                map.clone(),
            );
            let known: BTreeSet<_> = map.values().flatten().cloned().collect();
            for output in &known {
                let derivers = Graph::valid_derivers(&store, output).await.unwrap();
                table.equal(rig.version, name, derivers, [drv.clone()].into());
            }
            // Nix cannot list outputs that are not known yet.
            if known.len() == map.len() {
                let told = nix_store(&rig, &ours, &["-q", "--outputs", &full]);
                let told = told.lines().map(|line| store.dir().parse(line).unwrap());
                table.equal(rig.version, name, told.collect(), known);
            }
        }
    }
    table.finish();
}

/// What Nix refuses to take as a derivation we refuse, and the other way round.
#[tokio::test(flavor = "multi_thread")]
async fn derivations_that_lie() {
    let rows = ["2.8", "2.26", "2.34"];
    let mut table = Tally::new("local stores: derivations refused as by Nix", &rows);
    for rig in VERSIONS.into_iter().filter_map(rig) {
        let temp = TempDir::new().unwrap();
        let (ours, theirs) = (temp.path().join("ours"), temp.path().join("theirs"));
        let drvs = instantiate(&rig, &temp, &theirs);
        let store = open(&ours).await;
        copy(&open(&theirs).await, &store, drvs.values().cloned()).await;
        let read = |name: &str| {
            let file = theirs.join("nix/store").join(drvs[name].as_str());
            fs::read_to_string(file).unwrap()
        };
        let top = read("top");
        let (low, fixed) = (drvs["low"].to_string(), read("fixed"));
        let digest = &low[..8];
        for (case, name, content) in [
            ("as it is", "top.drv", top.clone()),
            ("junk", "junk.drv", "junk".to_owned()),
            ("empty", "empty.drv", String::new()),
            ("half", "top.drv", top[..top.len() / 2].to_owned()),
            ("another name", "top2.drv", top.clone()),
            (
                "another output",
                "top.drv",
                top.replace("-top-dev", "-top-dex"),
            ),
            (
                "another builder",
                "top.drv",
                top.replace("/bin/sh", "/bin/false"),
            ),
            (
                "an input that is absent",
                "top.drv",
                top.replace(digest, "00000000"),
            ),
            ("fixed", "fixed.drv", fixed.clone()),
            ("fixed, another name", "fixed2.drv", fixed.clone()),
            (
                "fixed, another builder",
                "fixed.drv",
                fixed.replace("/bin/sh", "/bin/false"),
            ),
            ("no derivation", "junk.dry", "junk".to_owned()),
        ] {
            let folder = TempDir::new().unwrap();
            let file = folder.path().join(name);
            fs::write(&file, content).unwrap();
            judge(&mut table, &rig, case, &file, &store, &theirs).await;
        }
        let folder = temp.path().join("folder.drv");
        fs::create_dir(&folder).unwrap();
        judge(&mut table, &rig, "a folder", &folder, &store, &theirs).await;
        let link = temp.path().join("link.drv");
        symlink("/no/such/place", &link).unwrap();
        judge(&mut table, &rig, "a link", &link, &store, &theirs).await;
        table.equal(rig.version, "rows", outputs(&ours), outputs(&theirs));
    }
    table.finish();
}

each_version!(async roots);

/// Roots that we make keep paths from Nix's collector, and are listed by both alike.
async fn roots(version: &'static str) {
    let Some(rig) = rig(version) else { return };
    let temp = TempDir::new().unwrap();
    let root = temp.path().join("root");
    let store = open(&root).await;
    let infos = fill(&store, &temp.path().join("in")).await;
    let at = |name: &str| temp.path().join(name);
    let full = |i: usize| store.dir().path(&infos[i].path);
    store
        .add_perm_root(&infos[0].path, &at("ours"))
        .await
        .unwrap();
    symlink(full(1), at("indirect")).unwrap();
    store.add_indirect_root(&at("indirect")).await.unwrap();
    nix_store(
        &rig,
        &root,
        &[
            "--add-root",
            text(&at("theirs")),
            "--indirect",
            "-r",
            &full(2),
        ],
    );
    symlink(full(3), root.join("nix/var/nix/gcroots/direct")).unwrap();
    fs::write(
        root.join("nix/var/nix/gcroots")
            .join(infos[4].path.as_str()),
        "",
    )
    .unwrap();
    fs::create_dir_all(root.join("nix/var/nix/profiles/per-user/me")).unwrap();
    symlink(
        full(5),
        root.join("nix/var/nix/profiles/per-user/me/profile-1"),
    )
    .unwrap();

    let told = nix_store(&rig, &root, &["--gc", "--print-roots"]);
    let told: BTreeSet<_> = told
        .lines()
        .filter_map(|line| line.split_once(" -> "))
        // 2.34 quotes them.
        .map(|(link, path)| (link.trim_matches('"'), path))
        .collect();
    let found = store.roots().await.unwrap();
    let found: Vec<_> = found
        .iter()
        .map(|root| (root.link.as_str(), store.dir().path(&root.target)))
        .collect();
    let of_processes = |link: &str| link.starts_with("/proc") || link.starts_with('{');
    let files = |roots: BTreeSet<(&str, &str)>| -> BTreeSet<(String, String)> {
        let files = roots.into_iter().filter(|(link, _)| !of_processes(link));
        files.map(|(l, t)| (l.to_owned(), t.to_owned())).collect()
    };
    let found = files(
        found
            .iter()
            .map(|(link, path)| (*link, path.as_str()))
            .collect(),
    );
    assert_eq!(found, files(told), "Nix {}", rig.version);
    assert_eq!(found.len(), 6, "Nix {}", rig.version);

    let all: BTreeSet<_> = infos.iter().map(|info| info.path.clone()).collect();
    let live: BTreeSet<_> = infos[..6].iter().map(|info| info.path.clone()).collect();
    drop(store);
    nix_store(&rig, &root, &["--gc"]);
    let store = open(&root).await;
    let left = store.valid(&all).await.unwrap();
    assert_eq!(left, live, "Nix {}", rig.version);
}

each_version!(async logs);

/// A log that we keep is printed by Nix, and the log of a build by Nix is read by us.
async fn logs(version: &'static str) {
    let Some(rig) = rig(version) else { return };
    let temp = TempDir::new().unwrap();
    let root = temp.path().join("root");
    let drvs = instantiate(&rig, &temp, &root);
    let store = open(&root).await;
    let drv = &drvs["top"];
    let text_of_log = "first line\nsecond line \u{e4}\n".repeat(5000);
    let log = nar::from_bytes(text_of_log.clone());
    store.add_build_log(drv, log).await.unwrap();
    let full = store.dir().path(drv);
    // Without a pager.
    for told in [
        nix_store(&rig, &root, &["--read-log", &full]),
        String::from_utf8(rig.run(
            "nix",
            [&PLAIN[..], &["log", "--store", text(&root), &full]].concat(),
        ))
        .unwrap(),
    ] {
        assert_eq!(
            told.trim_end(),
            text_of_log.trim_end(),
            "Nix {}",
            rig.version
        );
    }

    let built = Built::new(&rig);
    let theirs = open(&built.root()).await;
    let drv = StorePath::parse(&built.resolved(&theirs).await).unwrap();
    assert_eq!(read_log(&theirs, &drv).await, b"a line of the log\n");
    // And through a cache.
    let config = BinaryCacheConfig {
        create: true,
        ..BinaryCacheConfig::default()
    };
    let cache = BinaryCache::open_folder(temp.path().join("cache"), config);
    let cache = cache.await.unwrap();
    // Nix 2.8 looks for the derivation first.
    copy(&theirs, &cache, [drv.clone()]).await;
    let log = theirs.build_log(&drv).await.unwrap().unwrap();
    cache.add_build_log(&drv, log).await.unwrap();
    let uri = cache.to_string();
    let drv = theirs.dir().path(&drv);
    let told = rig.run("nix", ["log", "--store", &uri, &drv]);
    assert_eq!(told, b"a line of the log\n", "Nix {}", rig.version);
}

each_version!(async realisations);

/// Realisations that Nix made are read from its database and its cache, and those that we register
/// are known to Nix.
async fn realisations(version: &'static str) {
    let Some(rig) = rig(version) else { return };
    let built = Built::new(&rig);
    let theirs = open(&built.root()).await;
    let config = BinaryCacheConfig::default();
    let cache = BinaryCache::open_folder(built.temp.path().join("cache"), config);
    let cache = cache.await.unwrap();
    // A store with the tables of realisations, which real Nix makes.
    let fresh = built.temp.path().join("fresh");
    rig.run(
        "nix-store",
        [
            "--store",
            text(&fresh),
            "--add",
            text(&built.temp.path().join("t.nix")),
        ],
    );
    let store = open(&fresh).await;
    let told: Value = serde_json::from_slice(&built.told).unwrap();
    let told: Vec<_> = told
        .as_array()
        .unwrap()
        .iter()
        .map(legacy::LegacyRealisation::from_json)
        .collect();
    let [Ok(told)] = &told[..] else {
        panic!("Nix {} said {told:?}", rig.version)
    };
    let found = theirs.legacy_realisation(&told.id).await.unwrap();
    assert_eq!(found.as_ref(), Some(told), "Nix {}", rig.version);
    let in_cache = cache.legacy_realisation(&told.id).await.unwrap();
    assert_eq!(in_cache.as_ref(), Some(told), "Nix {}", rig.version);

    copy(&theirs, &store, [built.drv.clone(), told.out_path.clone()]).await;
    for (id, path) in &told.dependent {
        let needed = legacy::LegacyRealisation::new(id.clone(), path.clone());
        store
            .register_legacy(&needed, &SigCheck::Skip)
            .await
            .unwrap();
    }
    let key = tk_narinfo::SecretKey::generate("test-1").unwrap();
    let mut signed = told.clone();
    signed.sign(&key);
    store
        .register_legacy(&signed, &SigCheck::Skip)
        .await
        .unwrap();
    let drv = store.dir().path(&built.drv);
    let output = match rig.version {
        "2.8" => drv,
        _ => format!("{drv}^out"),
    };
    let args = [
        "realisation",
        "info",
        "--store",
        text(&fresh),
        "--json",
        &output,
    ];
    let known: Value = serde_json::from_slice(&rig.run("nix", args)).unwrap();
    let known = legacy::LegacyRealisation::from_json(&known[0]);
    assert_eq!(known, Ok(signed), "Nix {}", rig.version);
}

/// What real Nix built in a store of its own, and copied to a cache.
struct Built {
    temp: TempDir,
    drv: StorePath,
    /// What Nix says of its realisation, as JSON.
    told: Vec<u8>,
}

impl Built {
    fn new(rig: &Rig) -> Self {
        let temp = TempDir::new().unwrap();
        let at = |name: &str| temp.path().join(name);
        fs::write(at("t.nix"), FLOATING).unwrap();
        let output = match rig.version {
            "2.8" => "$drv",
            _ => "$drv^out",
        };
        let (file, cache) = (at("t.nix"), at("cache"));
        let script = format!(
            "set -e; drv=$(nix-instantiate {}); echo $drv; nix-store -r $drv >/dev/null; \
             nix realisation info {output} --json; nix copy --to file://{} {output}",
            file.display(),
            cache.display()
        );
        let mut command = rig.with_daemon();
        let state = at("state");
        let arguments = ["--no-daemon", "--state", text(&state), rig.version, "--"];
        let out = command.args(arguments).args(["sh", "-c", &script]).output();
        let out = out.unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "Nix {}: {said}", rig.version);
        let (drv, told) = out
            .stdout
            .split_at(out.stdout.iter().position(|b| *b == b'\n').unwrap());
        let drv = std::str::from_utf8(drv).unwrap();
        let drv = StorePath::parse(drv.strip_prefix("/nix/store/").unwrap()).unwrap();
        let told = told.to_owned();
        Built { temp, drv, told }
    }

    fn root(&self) -> std::path::PathBuf {
        self.temp.path().join("state")
    }

    /// The derivation that was built in the place of ours: with the paths of its inputs.
    async fn resolved(&self, store: &LocalStore) -> String {
        let all = store.all().await.unwrap().into_iter();
        let mut others = all.filter(|path| path.name() == "top.drv" && *path != self.drv);
        others.next().expect("a resolved derivation").to_string()
    }
}

/// What Nix makes of [`DERIVATIONS`], by name.
fn instantiate(rig: &Rig, temp: &TempDir, root: &Path) -> BTreeMap<String, StorePath> {
    let file = temp.path().join("derivations.nix");
    fs::write(&file, DERIVATIONS).unwrap();
    let out = rig.run("nix-instantiate", ["--store", text(root), text(&file)]);
    let paths = String::from_utf8(out).unwrap();
    let paths = paths.lines().map(|line| {
        let path = StorePath::parse(line.strip_prefix("/nix/store/").unwrap()).unwrap();
        (path.name().trim_end_matches(".drv").to_owned(), path)
    });
    paths.collect()
}

/// Adds all that `paths` refer to.
async fn copy(from: &LocalStore, to: &dyn Store, paths: impl IntoIterator<Item = StorePath>) {
    let found = closure(from, paths).await.unwrap();
    let mut items = Vec::new();
    for info in found.references_first().unwrap() {
        items.push(Ok((info.clone(), from.nar(&info.path).await.unwrap())));
    }
    let report = to
        .add(stream::iter(items).boxed(), &SigCheck::Skip.into())
        .await;
    let report = report.unwrap();
    assert!(report.failed.is_empty(), "{:?}", report.failed);
}

/// Whether both take `file`, or both refuse it.
async fn judge(
    table: &mut Tally,
    rig: &Rig,
    case: &str,
    file: &Path,
    store: &LocalStore,
    theirs: &Path,
) {
    let ours = add_content(store, file, Method::Nar, Algorithm::Sha256).await;
    let mut command = rig.command("nix-store");
    command.args(["--store", text(theirs), "--add", text(file)]);
    let out = command.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    table.case(rig.version, case, || {
        let refused = ours.as_ref().err().map(Error::to_line);
        match (&refused, out.status.success()) {
            (None, true) | (Some(_), false) => Ok(()),
            _ => Err(format!("we: {refused:?}, Nix: {said}")),
        }
    });
    if let Err(error) = ours {
        table.case(rig.version, case, || {
            let line = error.to_line();
            equal(line.contains(".drv") && !line.contains('\n'), true)
        });
    }
}

/// The rows of DerivationOutputs.
fn outputs(root: &Path) -> BTreeSet<[String; 3]> {
    let database = database(root);
    let sql =
        "select v.path, d.id, d.path from DerivationOutputs d join ValidPaths v on v.id = d.drv";
    let mut statement = database.prepare(sql).unwrap();
    let rows = statement.query_map([], |r| Ok([r.get(0)?, r.get(1)?, r.get(2)?]));
    rows.unwrap().map(Result::unwrap).collect()
}

async fn read_log(store: &LocalStore, drv: &StorePath) -> Vec<u8> {
    let log = store.build_log(drv).await.unwrap().expect("a log");
    let chunks: Vec<_> = log.try_collect().await.unwrap();
    chunks.concat()
}

/// Input-addressed with several outputs and an input, with structured attributes, fixed, and both
/// kinds that are known only when they are built.
const DERIVATIONS: &str = r#"
let
  common = { system = "x86_64-linux"; builder = "/bin/sh"; };
  low = derivation (common // { name = "low"; text = "quote \" and \n"; });
  floating = derivation (common // { name = "floating"; __contentAddressed = true;
    outputHashMode = "recursive"; outputHashAlgo = "sha256"; });
  fixed = derivation (common // { name = "fixed"; outputHashMode = "recursive";
    outputHashAlgo = "sha256"; outputHash = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="; });
in [
  low floating fixed
  (derivation (common // { name = "top"; inherit low fixed; outputs = [ "out" "dev" ]; }))
  (derivation (common // { name = "structured"; __structuredAttrs = true; list = [ 1 low ]; }))
  (derivation (common // { name = "deferred"; inherit floating; }))
]
"#;

const FLOATING: &str = r#"
let floating = name: script: more: derivation ({ inherit name; system = "x86_64-linux";
  builder = "/bin/sh"; args = [ "-c" script ]; __contentAddressed = true;
  outputHashMode = "recursive"; outputHashAlgo = "sha256"; } // more);
in floating "top" "echo a line of the log; echo $low > $out" { low = floating "low" "echo low > $out" { }; }
"#;
