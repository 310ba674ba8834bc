//! A store that fetches what it lacks: one path that cannot be had costs no other.

use async_trait::async_trait;
use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex},
};
use tk_narinfo::PathInfo;
use tk_path::{NarHash, StoreDir, StorePath};
use tk_store::conformance::file_nar;
use tk_store::{
    Abilities, AddOptions, Error, Fetching, MemoryStore, Result, SigCheck, Sources, Store,
    StoreExt,
    log::{LogEvent, LogSink},
    nar,
};

fn path(name: &str) -> StorePath {
    StorePath::from_digest(&[name.len() as u8; 20], name).unwrap()
}

/// Puts a path there whose references may be absent.
async fn put(store: &MemoryStore, name: &str, references: &[&str]) {
    let nar = file_nar(name.as_bytes());
    let mut info = PathInfo::new(path(name), NarHash::digest(&nar), nar.len() as u64);
    info.references
        .extend(references.iter().map(|name| path(name)));
    let mut options = AddOptions::new(SigCheck::Skip);
    options.elsewhere = Arc::new(info.references.clone());
    let added = store.add_one(info, nar::from_bytes(nar), &options).await;
    added.unwrap();
}

#[derive(Debug)]
struct From(Option<Arc<MemoryStore>>);

#[async_trait]
impl Sources for From {
    async fn open(&self, _: Option<&[String]>) -> Result<Option<Arc<dyn Store>>> {
        match &self.0 {
            Some(store) => Ok(Some(store.clone())),
            None => Err(Error::io("asking", io::Error::other("no answer"))),
        }
    }
}

#[derive(Default)]
struct Words(Mutex<Vec<String>>);

impl LogSink for Words {
    fn event(&self, event: LogEvent) {
        if let LogEvent::Message { text, .. } = event {
            self.0.lock().unwrap().push(text);
        }
    }
}

fn fetching(into: &Arc<MemoryStore>, from: Option<&Arc<MemoryStore>>) -> Abilities {
    let sources = Arc::new(From(from.cloned()));
    Fetching::new(Abilities::of(into.clone()), sources, SigCheck::Skip).abilities()
}

#[tokio::test]
async fn a_broken_closure_costs_no_other() {
    let [near, far] = [(); 2].map(|()| Arc::new(MemoryStore::new(StoreDir::default())));
    put(&far, "good", &[]).await;
    put(&far, "dependent", &["good"]).await;
    put(&far, "without", &["absent-everywhere"]).await;
    let paths: BTreeSet<_> = ["dependent", "without", "unheard-of-by-all"]
        .map(path)
        .into();
    let abilities = fetching(&near, Some(&far));
    let substitutes = abilities.substitutes.unwrap();
    let words = Words::default();
    let valid = substitutes.valid_or_fetched(&paths, &words).await.unwrap();
    assert_eq!(valid, [path("dependent")].into());
    assert_eq!(
        near.info(&path("good")).await.unwrap().unwrap().path,
        path("good")
    );
    let words = words.0.into_inner().unwrap().join("\n");
    assert!(words.contains("copying path '/nix/store/"), "{words}");
    let why = format!("{} cannot be fetched: ", path("without"));
    assert!(
        words.contains(&why) && words.contains("absent-everywhere"),
        "{words}"
    );
    assert!(!words.contains("unheard-of"), "{words}");
}

/// The client sends what could not be fetched; but that nobody could be asked is not that nobody has it.
#[tokio::test]
async fn nobody_can_be_asked() {
    let near = Arc::new(MemoryStore::new(StoreDir::default()));
    put(&near, "there", &[]).await;
    let paths: BTreeSet<_> = ["there", "lacking"].map(path).into();
    let substitutes = fetching(&near, None).substitutes.unwrap();
    let words = Words::default();
    let valid = substitutes.valid_or_fetched(&paths, &words).await.unwrap();
    assert_eq!(valid, [path("there")].into());
    let words = words.0.into_inner().unwrap().join("\n");
    assert!(
        words.contains("nothing can be fetched: ") && words.contains("no answer"),
        "{words}"
    );
    assert!(substitutes.substitutable_paths(&paths).await.is_err());
    let words = Words::default();
    let there = [path("there")].into();
    assert_eq!(
        substitutes.valid_or_fetched(&there, &words).await.unwrap(),
        there
    );
    assert!(
        words.0.into_inner().unwrap().is_empty(),
        "nobody need be asked"
    );
}
