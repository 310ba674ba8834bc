//! Logs, realisations and derivations in folder caches.

mod support;

use futures::TryStreamExt;
use std::{cell::Cell, collections::BTreeMap, fs, io::Write, num::NonZeroUsize, path::Path};
use support::{add, config, item, nar_of, open};
use tempfile::TempDir;
use tk_cache::{BinaryCache, compress::Compressor};
use tk_narinfo::{
    Compression, PathInfo, Signature,
    realisation::{DrvOutput, Realisation, UnkeyedRealisation, legacy},
};
use tk_path::{
    Algorithm, Derivation, DerivationOutput, Hash, Inputs, Method, MethodAlgorithm, NarHash,
    OutputName, StorePath,
};
use tk_store::{Error, Graph, Logs, Realisations, SigCheck, Store, conformance, nar};

#[tokio::test]
async fn conforms() {
    let folder = TempDir::new().unwrap();
    let made = Cell::new(0);
    let make = || {
        made.set(made.get() + 1);
        open(config(&folder.path().join(made.get().to_string())))
    };
    conformance::run_logs(make).await;
    conformance::run_realisations(make).await;
    conformance::run_legacy_realisations(make).await;
    for cache in folder.path().read_dir().unwrap() {
        no_left_overs(&cache.unwrap().path());
    }
}

#[tokio::test]
async fn logs_are_read_however_they_are_packed() {
    let folder = TempDir::new().unwrap();
    let cache = cache(folder.path()).await;
    fs::create_dir(folder.path().join("log")).unwrap();
    let text = "a line of a log\n".repeat(10_000);
    let packed = [
        Compression::None,
        Compression::Xz,
        Compression::Zstd,
        Compression::Gzip,
        Compression::Bzip2,
    ];
    for compression in packed {
        for text in ["", &text] {
            let packed = pack(compression, text.as_bytes());
            let file = folder.path().join("log").join(drv().as_str());
            fs::write(&file, &packed).unwrap();
            let found = log(&cache).await.unwrap();
            assert!(
                found == text.as_bytes(),
                "{compression}: {} bytes",
                text.len()
            );
            if compression != Compression::None && !text.is_empty() {
                fs::write(&file, &packed[..packed.len() / 2]).unwrap();
                let line = log(&cache).await.unwrap_err().to_line();
                assert!(line.contains(drv().as_str()), "{line}");
            }
        }
    }
    // Text that only begins like something packed.
    for text in ["BZh9", "BZh9 is not a log", "\u{1f}", "(\u{b5}"] {
        let file = folder.path().join("log").join(drv().as_str());
        fs::write(file, text).unwrap();
        assert_eq!(log(&cache).await.unwrap(), text.as_bytes());
    }
}

#[tokio::test]
async fn logs_are_plain_files() {
    let folder = TempDir::new().unwrap();
    let cache = cache(folder.path()).await;
    let text = nar::from_bytes("as it is");
    cache.add_build_log(&drv(), text).await.unwrap();
    let file = folder.path().join("log").join(drv().as_str());
    assert_eq!(fs::read(file).unwrap(), b"as it is");
    assert!(folder.path().join("nix-cache-info").exists());
}

#[tokio::test]
async fn realisations_lie_where_nix_looks() {
    let folder = TempDir::new().unwrap();
    let cache = cache(folder.path()).await;
    let out = StorePath::from_digest(&[2; 20], "out").unwrap();
    let mut new = Realisation {
        id: id(),
        value: UnkeyedRealisation::new(out.clone()),
    };
    let signature: Signature = "k-1:YWJj".parse().unwrap();
    new.value.signatures.insert(signature.clone());
    let skip = SigCheck::Skip;
    Realisations::register(&cache, &new, &skip).await.unwrap();
    let file = folder
        .path()
        .join(format!("build-trace-v2/{}/out.doi", drv()));
    let value = format!(r#"{{"outPath":"{out}","signatures":[{{"keyName":"k-1","sig":"YWJj"}}]}}"#);
    assert_eq!(fs::read_to_string(&file).unwrap(), value);
    // With its key inside it is read too, if it is the right one.
    fs::write(&file, new.to_json().to_string()).unwrap();
    assert_eq!(
        cache.realisation(&id()).await.unwrap(),
        Some(new.value.clone())
    );
    let mut other = new.to_json();
    other["key"]["outputName"] = "dev".into();
    for (content, words) in [
        (other.to_string(), "about another output"),
        ("{}".to_owned(), "outPath: is missing"),
        ("{".to_owned(), "EOF"),
        (" ".repeat(2 << 20), "larger than"),
    ] {
        fs::write(&file, content).unwrap();
        let line = cache.realisation(&id()).await.unwrap_err().to_line();
        assert!(line.contains(words) && line.contains("out.doi"), "{line}");
    }

    let hash = Hash::digest(Algorithm::Sha256, b"x");
    let output = OutputName::out();
    let id = legacy::LegacyDrvOutput { hash, output };
    let old = legacy::LegacyRealisation::new(id.clone(), out);
    cache.register_legacy(&old, &skip).await.unwrap();
    let file = folder.path().join(format!("realisations/{id}.doi"));
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        old.to_json().to_string()
    );
    let other = id.to_string().replace("!out", "!dev");
    let content = old.to_json().to_string().replace(&id.to_string(), &other);
    fs::write(&file, content).unwrap();
    let line = cache.legacy_realisation(&id).await.unwrap_err().to_line();
    assert!(line.contains("about another output"), "{line}");
}

#[tokio::test]
async fn outputs_of_derivations() {
    let folder = TempDir::new().unwrap();
    let cache = cache(folder.path()).await;
    let floating = DerivationOutput::Floating(MethodAlgorithm {
        method: Method::Nar,
        algorithm: Algorithm::Sha256,
    });
    let derivation = Derivation {
        name: "x".to_owned(),
        outputs: [(OutputName::out(), floating)].into(),
        inputs: Inputs::default(),
        platform: "any".into(),
        builder: "/bin/sh".into(),
        args: vec![],
        env: BTreeMap::new(),
    };
    let content = nar_of(&derivation.to_aterm(cache.dir()).unwrap());
    let info = PathInfo::new(drv(), NarHash::digest(&content), content.len() as u64);
    let report = add(&cache, vec![item(&info, &content)]).await;
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    let outputs = cache.output_map(&drv()).await.unwrap();
    assert_eq!(outputs, [(OutputName::out(), None)].into());
    let out = StorePath::from_digest(&[2; 20], "x").unwrap();
    let known = Realisation {
        id: id(),
        value: UnkeyedRealisation::new(out.clone()),
    };
    let skip = SigCheck::Skip;
    Realisations::register(&cache, &known, &skip).await.unwrap();
    let outputs = cache.output_map(&drv()).await.unwrap();
    assert_eq!(outputs, [(OutputName::out(), Some(out.clone()))].into());
    assert_eq!(Graph::all_paths(&cache).await.unwrap(), [drv()].into());
    for asked in [
        cache.referrers(&out).await,
        cache.valid_derivers(&out).await,
    ] {
        assert!(matches!(asked, Err(Error::Unsupported { .. })), "{asked:?}");
    }
}

async fn cache(folder: &Path) -> BinaryCache {
    open(config(folder)).await
}

fn drv() -> StorePath {
    StorePath::from_digest(&[1; 20], "x.drv").unwrap()
}

fn id() -> DrvOutput {
    DrvOutput {
        drv: drv(),
        output: OutputName::out(),
    }
}

fn pack(compression: Compression, text: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    let compressor = Compressor::new(compression, None, NonZeroUsize::MIN).unwrap();
    let mut encoder = compressor.encoder(&mut packed, None).unwrap();
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap();
    packed
}

async fn log(cache: &BinaryCache) -> Result<Vec<u8>, Error> {
    let log = cache.build_log(&drv()).await?.expect("a log");
    let chunks: Vec<_> = log.try_collect().await?;
    Ok(chunks.concat())
}

fn no_left_overs(folder: &Path) {
    for entry in folder.read_dir().unwrap() {
        let entry = entry.unwrap();
        assert_ne!(entry.file_name(), ".tmp", "in {}", folder.display());
        if entry.file_type().unwrap().is_dir() {
            no_left_overs(&entry.path());
        }
    }
}
