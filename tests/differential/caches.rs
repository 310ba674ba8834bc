//! Paths with their NARs, put into a binary cache; and what Nix says of paths.

use super::node::Node;
use crate::support::Rig;
use bytes::Bytes;
use futures::{StreamExt, stream};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};
use tk_cache::{BinaryCache, BinaryCacheConfig};
use tk_narinfo::{Compression, PathInfo};
use tk_path::{Algorithm, Method, References, StoreDir, StorePath};
use tk_store::{ContentHasher, SigCheck, Store, nar};

/// A path and its NAR.
pub type Item = (PathInfo, Bytes);

/// What `nar` is under the path that its content makes.
pub fn content(name: &str, method: Method, nar: Vec<u8>, references: BTreeSet<StorePath>) -> Item {
    let references = References {
        others: references,
        itself: false,
    };
    let mut hasher = ContentHasher::new(method, Algorithm::Sha256).expect("sha256 does for all");
    hasher.update(&nar).expect("an archive");
    let info = hasher.finish(&StoreDir::default(), name, &references);
    (info.expect("a path"), nar.into())
}

/// A text as Nix adds those of expressions.
pub fn text(name: &str, text: &[u8], references: BTreeSet<StorePath>) -> Item {
    content(name, Method::Text, Node::text(text).nar(), references)
}

/// Puts `items`, references first, into a new cache in `folder`.
pub fn publish(folder: &Path, items: Vec<Item>) -> Result<(), String> {
    let config = BinaryCacheConfig {
        create: true,
        compression: Compression::None,
        ..BinaryCacheConfig::default()
    };
    runtime().block_on(async {
        let cache = BinaryCache::open_folder(folder, config).await;
        let cache = cache.map_err(|e| e.to_line())?;
        let item = |(info, bytes): Item| Ok((info, nar::from_bytes(bytes)));
        let items = stream::iter(items).map(item).boxed();
        let report = cache.add(items, &SigCheck::Skip.into()).await;
        match report.map_err(|e| e.to_line())?.failed.pop() {
            None => Ok(()),
            Some((path, error)) => Err(format!("{path}: {}", error.to_line())),
        }
    })
}

/// What `nix path-info --json` with `options` says of `paths` in a store, by full path.
pub fn path_infos(
    rig: &Rig,
    store: &Path,
    options: &[&str],
    paths: &[String],
) -> Result<BTreeMap<String, Value>, String> {
    let mut command = rig.command("nix");
    command.args(["path-info", "--json", "--store"]).arg(store);
    let out = rig.try_run(command.args(options).args(paths))?;
    match serde_json::from_slice(&out).map_err(|e| e.to_string())? {
        Value::Object(infos) => Ok(infos.into_iter().collect()),
        Value::Array(infos) => {
            let path = |info: &Value| info["path"].as_str().unwrap_or_default().to_owned();
            Ok(infos.into_iter().map(|info| (path(&info), info)).collect())
        }
        other => Err(format!("{other} is not a list")),
    }
}

/// For the futures of one check.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}
