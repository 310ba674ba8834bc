//! Paths made up for tests.
#![allow(dead_code)]

use bytes::Bytes;
use futures::{StreamExt, stream};
use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use tk_local::{LocalConfig, LocalStore};
use tk_nar::{EncodeError, Encoder};
use tk_narinfo::PathInfo;
use tk_path::{Algorithm, Hash, NarHash, StorePath};
use tk_store::{AddReport, SigCheck, Store, nar};

/// A path with its NAR.
pub struct Sample {
    pub info: PathInfo,
    pub nar: Bytes,
}

pub async fn open(root: &Path) -> LocalStore {
    LocalStore::open(LocalConfig::chroot(root)).await.unwrap()
}

/// Adds all of `samples`, references first, and expects that nothing fails.
pub async fn add_all(store: &dyn Store, samples: &[Sample]) -> AddReport {
    let report = try_add(store, samples).await;
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    assert_eq!(report.added.len(), samples.len());
    report
}

pub async fn try_add(store: &dyn Store, samples: &[Sample]) -> AddReport {
    let items = samples
        .iter()
        .map(|s| Ok((s.info.clone(), nar::from_bytes(s.nar.clone()))));
    let items = stream::iter(items.collect::<Vec<_>>()).boxed();
    store.add(items, &SigCheck::Skip.into()).await.unwrap()
}

/// `n` paths of very different sizes, each of which refers to the two before it and to itself.
pub fn chain(n: usize) -> Vec<Sample> {
    let mut samples: Vec<Sample> = Vec::new();
    for i in 0..n {
        let size = [13, 4_000, 70_000, 300_000][i % 4];
        let before = samples.iter().rev().take(2).map(|s| s.info.path.clone());
        let references: Vec<_> = before.collect();
        let mut sample = sample(&format!("chain-{i}"), &vec![i as u8; size]);
        sample.info.references.extend(references);
        sample.info.references.insert(sample.info.path.clone());
        samples.push(sample);
    }
    samples
}

/// A folder with a file of `content`, an executable and a link.
pub fn sample(name: &str, content: &[u8]) -> Sample {
    let digest = Hash::digest(Algorithm::Sha256, name.as_bytes());
    let digest: [u8; 20] = digest.compress(20).try_into().unwrap();
    let nar = nar_of_folder(content).unwrap();
    let hash = NarHash::try_from(Hash::digest(Algorithm::Sha256, &nar)).unwrap();
    let path = StorePath::from_digest(&digest, name).unwrap();
    Sample {
        info: PathInfo::new(path, hash, nar.len() as u64),
        nar,
    }
}

fn nar_of_folder(content: &[u8]) -> Result<Bytes, EncodeError> {
    let mut nar = Encoder::new(Vec::new());
    nar.directory()?;
    nar.entry(b"file")?;
    nar.file(false, content)?;
    nar.entry(b"link")?;
    nar.symlink(b"file")?;
    nar.entry(b"run")?;
    nar.file(true, b"#!")?;
    nar.leave()?;
    Ok(nar.finish()?.into())
}

/// Lets a child work as the test `name` does, and kills it after `delay`; says whether it was still at work.
pub fn run_and_kill(name: &str, root: &Path, delay: Option<Duration>) -> bool {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(CHILD, root)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    if let Some(delay) = delay {
        std::thread::sleep(delay);
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
    }
    assert!(child.wait().unwrap().success());
    false
}

/// Names the store to a test that is run again as the process that gets killed.
pub const CHILD: &str = "TK_LOCAL_TEST_CRASH";
