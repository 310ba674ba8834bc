//! Folder caches: the suite of all stores, tampering, and faults.

#[path = "folder/ahead.rs"]
mod ahead;
mod support;

use futures::{StreamExt, TryStreamExt, stream};
use std::{
    collections::BTreeSet,
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use support::{
    FolderConfig, add, assert_invariant, chain, config, item, nar_of, open, sample, tree,
};
use tempfile::TempDir;
use tk_cache::{BinaryCache, CacheWarnings, layout};
use tk_narinfo::{Compression, NarInfo, SecretKey};
use tk_path::{HashPart, StoreDir, StorePath};
use tk_store::{AddSignatures, Error, SigCheck, Store, StoreExt, conformance, verify};

const WRITTEN: [Compression; 6] = [
    Compression::None,
    Compression::Zstd,
    Compression::Xz,
    Compression::Gzip,
    Compression::Bzip2,
    Compression::Br,
];

#[tokio::test(flavor = "multi_thread")]
async fn conforms_with_every_compression() {
    for compression in WRITTEN {
        let folder = TempDir::new().unwrap();
        let made = std::sync::atomic::AtomicUsize::new(0);
        conformance::run(|| {
            let n = made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let mut config = config(&folder.path().join(n.to_string()));
            config.compression = compression;
            config.level = (compression != Compression::None).then_some(1);
            config.write_listing = n % 2 == 1;
            open(config)
        })
        .await;
        for cache in fs::read_dir(folder.path()).unwrap() {
            assert_invariant(&cache.unwrap().path()).await;
        }
    }
}

#[tokio::test]
async fn conforms_on_a_single_thread() {
    let folder = TempDir::new().unwrap();
    let made = std::sync::atomic::AtomicUsize::new(0);
    conformance::run(|| {
        let n = made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut config = config(&folder.path().join(n.to_string()));
        config.jobs = NonZeroUsize::MIN;
        open(config)
    })
    .await;
}

#[tokio::test]
async fn a_new_cache_looks_like_one_of_nix() {
    let folder = TempDir::new().unwrap();
    let root = folder.path().join("made/on/demand");
    let mut config = config(&root);
    config.compression = Compression::Xz;
    config.level = None;
    config.write_listing = true;
    let cache = open(config).await;
    assert!(!root.exists(), "made before it is written to");
    let (info, nar) = sample("hello", b"hello\n", []);
    add(&cache, vec![item(&info, &nar)]).await;

    let text = fs::read_to_string(root.join("nix-cache-info")).unwrap();
    assert_eq!(text, "StoreDir: /nix/store\n");
    let part = info.path.hash_part();
    let narinfo = fs::read_to_string(root.join(format!("{part}.narinfo"))).unwrap();
    let narinfo = NarInfo::parse(cache.dir(), narinfo).unwrap();
    assert_eq!(narinfo.compression, Compression::Xz);
    let hash = narinfo.file_hash.unwrap();
    assert_eq!(narinfo.url, NarInfo::url_for(&hash, Compression::Xz));
    assert!(narinfo.quirks.is_empty(), "{:?}", narinfo.quirks);
    let listing = fs::read_to_string(root.join(format!("{part}.ls"))).unwrap();
    assert_eq!(
        listing,
        r#"{"root":{"executable":false,"narOffset":96,"size":6,"type":"regular"},"version":1}"#
    );
    let names = [narinfo.url.as_str(), "nix-cache-info"].map(PathBuf::from);
    let more = ["ls", "narinfo"].map(|ext| PathBuf::from(format!("{part}.{ext}")));
    assert_eq!(
        tree(&root),
        BTreeSet::from_iter(names.into_iter().chain(more))
    );
    assert_eq!(cache.to_string(), format!("file://{}", root.display()));
}

#[tokio::test]
async fn what_the_cache_says_of_itself() {
    let folder = TempDir::new().unwrap();
    let root = folder.path().join("a b%c");
    let mut asked = config(&root);
    asked.priority = Some(30);
    asked.want_mass_query = Some(true);
    let cache = open(asked.clone()).await;
    assert!(cache.init().await.unwrap());
    assert!(!cache.init().await.unwrap());
    let text = fs::read_to_string(root.join("nix-cache-info")).unwrap();
    assert_eq!(
        text,
        "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n"
    );
    assert_eq!(cache.cache_info().await.unwrap().priority, Some(30));
    assert!(cache.to_string().ends_with("/a%20b%25c"), "{cache}");

    // Another store directory is refused, when opened and when it comes later.
    let other = StoreDir::new("/gnu/store").unwrap();
    asked.store_dir = other.clone();
    let error = asked.clone().open().await.unwrap_err();
    assert!(matches!(error, Error::StoreDir { .. }), "{error:?}");
    assert!(
        error
            .to_string()
            .contains("holds paths of /nix/store, not of /gnu/store"),
        "{error}"
    );
    asked.path = folder.path().join("late");
    asked.store_dir = StoreDir::default();
    let late = open(asked.clone()).await;
    fs::create_dir(&asked.path).unwrap();
    fs::write(asked.path.join("nix-cache-info"), "StoreDir: /gnu/store\n").unwrap();
    let (info, nar) = sample("late", b"late", []);
    let error = late
        .add_one(info, tk_store::nar::from_bytes(nar), &SigCheck::Skip.into())
        .await;
    assert!(matches!(error, Err(Error::StoreDir { .. })), "{error:?}");
    assert_eq!(tree(&asked.path), BTreeSet::from(["nix-cache-info".into()]));

    // Neither is one that makes no sense.
    fs::write(
        asked.path.join("nix-cache-info"),
        "StoreDir: /nix/store\nPriority: x\n",
    )
    .unwrap();
    let error = asked.open().await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
}

#[tokio::test]
async fn folders_that_are_no_cache() {
    let folder = TempDir::new().unwrap();
    let missing = FolderConfig::new(folder.path().join("missing"));
    let error = missing.open().await.unwrap_err().to_line();
    assert!(
        error.contains("missing") && error.contains("No such file"),
        "{error}"
    );
    fs::write(folder.path().join("file"), "").unwrap();
    let file = FolderConfig::new(folder.path().join("file"));
    let error = file.open().await.unwrap_err().to_line();
    assert!(error.contains("not a directory"), "{error}");
    // Any folder will do for reading, as in Nix.
    let empty = FolderConfig::new(folder.path()).open().await.unwrap();
    assert!(empty.all_paths().await.unwrap().is_empty());

    let mut wrong = config(folder.path());
    wrong.level = Some(99);
    let error = wrong.open().await.unwrap_err().to_string();
    assert!(
        error.contains("zstd has no compression level 99; choose -7 to 22"),
        "{error}"
    );
    let mut wrong = config(folder.path());
    wrong.compression = Compression::Lz4;
    wrong.level = None;
    let error = wrong.open().await.unwrap_err().to_string();
    assert!(
        error.contains("compression lz4 is not supported"),
        "{error}"
    );
}

#[tokio::test]
async fn signs_what_it_writes() {
    let folder = TempDir::new().unwrap();
    let keys = [
        SecretKey::generate("a-1").unwrap(),
        SecretKey::generate("b-1").unwrap(),
    ];
    let mut config = config(folder.path());
    config.sign = keys.into_iter().map(Arc::new).collect();
    let cache = open(config.clone()).await;
    let (mut info, nar) = sample("signed", b"signed", []);
    let own = SecretKey::generate("own-1").unwrap();
    info.sign(cache.dir(), &own).unwrap();
    add(&cache, vec![item(&info, &nar)]).await;
    let found = cache.require_info(&info.path).await.unwrap();
    let names: Vec<_> = found.signatures.iter().map(|s| s.key_name()).collect();
    assert_eq!(names, ["a-1", "b-1", "own-1"]);
    let keys = config.sign.iter().map(|key| key.public()).collect();
    assert_eq!(found.valid_signatures(cache.dir(), &keys).unwrap(), 2);
}

#[tokio::test]
async fn signatures_can_be_added() {
    let folder = TempDir::new().unwrap();
    let cache = open(config(folder.path())).await;
    let (info, nar) = sample("later", b"later", []);
    add(&cache, vec![item(&info, &nar)]).await;
    let file = folder
        .path()
        .join(format!("{}.narinfo", info.path.hash_part()));
    let text = fs::read_to_string(&file).unwrap() + "System: x86_64-linux\n";
    fs::write(&file, &text).unwrap();

    let sign = |n: usize| {
        let key = SecretKey::generate(&format!("key-{n}")).unwrap();
        let mut info = info.clone();
        info.sign(&StoreDir::default(), &key).unwrap();
        info.signatures
    };
    // Each keeps what the others add at the same time.
    let all: Vec<_> = (0..8).map(sign).collect();
    let added = all
        .iter()
        .map(|signatures| cache.add_signatures(&info.path, signatures));
    futures::future::try_join_all(added).await.unwrap();
    let found = cache.require_info(&info.path).await.unwrap();
    assert_eq!(found.signatures, all.into_iter().flatten().collect());
    let after = fs::read_to_string(&file).unwrap();
    assert!(after.ends_with("\nSystem: x86_64-linux\n"), "{after}");
    let kept: Vec<_> = after
        .lines()
        .filter(|line| !line.starts_with("Sig: "))
        .collect();
    assert_eq!(kept, text.lines().collect::<Vec<_>>());

    let (absent, _) = sample("absent", b"absent", []);
    let error = cache.add_signatures(&absent.path, &found.signatures).await;
    assert!(matches!(error, Err(Error::NotFound { .. })), "{error:?}");
    assert_invariant(folder.path()).await;
}

#[tokio::test]
async fn incomplete_closures_only_when_said() {
    let folder = TempDir::new().unwrap();
    let mut config = config(folder.path());
    config.require_references = false;
    let cache = open(config).await;
    let chain = chain(3);
    let report = add(&cache, vec![item(&chain[2].0, &chain[2].1)]).await;
    assert_eq!(report.added, std::slice::from_ref(&chain[2].0.path));
}

#[tokio::test]
async fn equal_content_is_stored_once() {
    let folder = TempDir::new().unwrap();
    let cache = open(config(folder.path())).await;
    let (a, nar) = sample("a", b"same", []);
    let (b, _) = sample("b", b"same", []);
    add(&cache, vec![item(&a, &nar), item(&b, &nar)]).await;
    assert_eq!(fs::read_dir(folder.path().join("nar")).unwrap().count(), 1);
    let file = tree(&folder.path().join("nar")).pop_first().unwrap();
    // A damaged one is not taken for the same.
    fs::write(folder.path().join("nar").join(file), "short").unwrap();
    let (c, _) = sample("c", b"same", []);
    add(&cache, vec![item(&c, &nar)]).await;
    for info in [a, b, c] {
        verify(&cache, &info).await.unwrap();
    }
}

#[tokio::test]
async fn nothing_is_left_of_failures() {
    let folder = TempDir::new().unwrap();
    let cache = open(config(folder.path())).await;
    let (good, good_nar) = sample("good", b"good", []);
    let (bad, _) = sample("bad", b"what it should be", []);
    let wrong = nar_of(b"what it should ba");
    let report = add(&cache, vec![item(&bad, &wrong), item(&good, &good_nar)]).await;
    assert_eq!(report.added, std::slice::from_ref(&good.path));
    let [(path, error @ Error::Mismatch { .. })] = &report.failed[..] else {
        panic!("{report:?}");
    };
    assert_eq!(*path, bad.path);
    assert!(
        error.to_string().contains(&bad.nar_hash.to_string()),
        "{error}"
    );
    let names: Vec<_> = tree(folder.path()).into_iter().collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert_invariant(folder.path()).await;
}

#[tokio::test]
async fn what_dead_writers_left_is_removed() {
    let folder = TempDir::new().unwrap();
    let root = folder.path();
    for place in [root.join(".tmp"), root.join("nar/.tmp")] {
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("1.0"), "half").unwrap();
        fs::write(place.join("99999999.3"), "half").unwrap();
    }
    let cache = open(config(root)).await;
    let (info, nar) = sample("next", b"next", []);
    add(&cache, vec![item(&info, &nar)]).await;
    assert!(!root.join(".tmp").exists() && !root.join("nar/.tmp").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn live_writers_are_left_alone() {
    let folder = TempDir::new().unwrap();
    let (slow, fast) = (
        open(config(folder.path())).await,
        open(config(folder.path())).await,
    );
    let (info, nar) = sample("slow", &[b's'; 100_000], []);
    let (send, receive) = tokio::sync::mpsc::channel(1);
    let stream = stream::unfold(receive, |mut r| async {
        r.recv().await.map(|b| (Ok(b), r))
    });
    let adding = {
        let info = info.clone();
        tokio::spawn(async move {
            slow.add_one(info, stream.boxed(), &SigCheck::Skip.into())
                .await
        })
    };
    send.send(nar.slice(..50_000)).await.unwrap();
    send.send(nar.slice(50_000..50_000)).await.unwrap();
    // By now the first part was taken, and its file is there.
    send.send(nar.slice(50_000..50_000)).await.unwrap();
    assert_eq!(
        fs::read_dir(folder.path().join("nar/.tmp"))
            .unwrap()
            .count(),
        1
    );
    let (other, other_nar) = sample("fast", b"fast", []);
    add(&fast, vec![item(&other, &other_nar)]).await;
    send.send(nar.slice(50_000..)).await.unwrap();
    drop(send);
    adding.await.unwrap().unwrap();
    verify(&fast, &info).await.unwrap();
}

/// A cache with one path, and ways to damage it.
struct Victim {
    folder: TempDir,
    cache: BinaryCache,
    path: StorePath,
}

impl Victim {
    async fn new(compression: Compression) -> Self {
        let folder = TempDir::new().unwrap();
        let mut config = config(folder.path());
        config.strict_file_hash = true;
        config.compression = compression;
        config.level = (compression != Compression::None).then_some(1);
        let cache = open(config).await;
        let content: Vec<u8> = (0..200_000u32)
            .map(|i| (i.wrapping_mul(i) >> 9) as u8)
            .collect();
        let (info, nar) = sample("victim", &content, []);
        add(&cache, vec![item(&info, &nar)]).await;
        let path = info.path;
        Victim {
            folder,
            cache,
            path,
        }
    }

    fn narinfo(&self) -> PathBuf {
        self.folder
            .path()
            .join(format!("{}.narinfo", self.path.hash_part()))
    }

    async fn nar(&self) -> PathBuf {
        let narinfo = self.cache.narinfo(&self.path).await.unwrap().unwrap();
        self.folder.path().join(narinfo.url)
    }

    /// Replaces the value of a field.
    fn set(&self, key: &str, value: &str) {
        let text = fs::read_to_string(self.narinfo()).unwrap();
        let line = |line: &str| {
            if line.starts_with(&format!("{key}: ")) {
                format!("{key}: {value}\n")
            } else {
                format!("{line}\n")
            }
        };
        fs::write(self.narinfo(), text.lines().map(line).collect::<String>()).unwrap();
    }

    /// Leaves a field out.
    fn unset(&self, key: &str) {
        let text = fs::read_to_string(self.narinfo()).unwrap();
        let keep = |line: &&str| !line.starts_with(&format!("{key}: "));
        let text: String = text
            .lines()
            .filter(keep)
            .map(|line| format!("{line}\n"))
            .collect();
        fs::write(self.narinfo(), text).unwrap();
    }

    async fn read(&self) -> Result<usize, Error> {
        let chunks: Vec<_> = self.cache.nar(&self.path).await?.try_collect().await?;
        Ok(chunks.iter().map(|chunk: &bytes::Bytes| chunk.len()).sum())
    }

    async fn verified(&self) -> Result<(), Error> {
        let info = self.cache.require_info(&self.path).await?;
        verify(&self.cache, &info).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bits_are_found() {
    for compression in WRITTEN {
        let victim = Victim::new(compression).await;
        victim.verified().await.unwrap();
        let file = victim.nar().await;
        let whole = fs::read(&file).unwrap();
        let narinfo = fs::read(victim.narinfo()).unwrap();
        for i in 0..40 {
            let mut bytes = whole.clone();
            let at = i * (whole.len() - 1) / 39;
            bytes[at] ^= 1 << (i % 8);
            fs::write(&file, &bytes).unwrap();
            let error = victim.read().await.expect_err("a flipped bit went by");
            assert!(
                matches!(error, Error::Mismatch { .. } | Error::Malformed { .. }),
                "{compression} at {at}: {error:?}"
            );
            assert!(error.to_line().contains(victim.path.hash_part()), "{error}");
            // Whoever compares the NAR hash needs no file hash. (A field that does not matter may
            // differ in the compressed formats, such as a time.)
            victim.unset("FileHash");
            let harmless = victim.verified().await.is_ok();
            assert!(
                !harmless || compression != Compression::None,
                "{compression} at {at}"
            );
            fs::write(victim.narinfo(), &narinfo).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_files_are_found() {
    for compression in WRITTEN {
        let victim = Victim::new(compression).await;
        let file = victim.nar().await;
        let whole = fs::read(&file).unwrap();
        for cut in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&file, &whole[..cut]).unwrap();
            let error = victim.read().await.unwrap_err();
            let Error::Mismatch {
                what: "file size", ..
            } = error
            else {
                panic!("{error:?}");
            };
        }
        // Without size and hash the format must notice; `none` is noticed by its NAR.
        victim.unset("FileSize");
        victim.unset("FileHash");
        for cut in [1, whole.len() / 2, whole.len() - 1] {
            fs::write(&file, &whole[..cut]).unwrap();
            assert!(
                victim.verified().await.is_err(),
                "{compression} cut at {cut}"
            );
            assert_eq!(
                victim.read().await.is_ok(),
                compression == Compression::None
            );
        }
        fs::write(&file, [&whole[..], b"more"].concat()).unwrap();
        // As Nix: what fills up a tape is passed over.
        let passed = [Compression::Gzip, Compression::Bzip2, Compression::Br];
        assert_eq!(
            victim.read().await.is_ok(),
            passed.contains(&compression),
            "{compression}: bytes behind the end"
        );
        fs::remove_file(&file).unwrap();
        let error = victim.read().await.unwrap_err().to_line();
        assert!(
            error.contains("its narinfo is there, its NAR is not"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn narinfos_that_lie() {
    let victim = Victim::new(Compression::Zstd).await;
    let other = "sha256:1w1fff338fvdw53sqgamddn1b2xgds473pv6y13gizdbqjv4i5p3";
    victim.set("FileHash", other);
    let error = victim.read().await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Mismatch {
                what: "file hash",
                ..
            }
        ),
        "{error:?}"
    );
    victim.unset("FileHash");
    let nar_size: u64 = victim
        .cache
        .require_info(&victim.path)
        .await
        .unwrap()
        .nar_size;
    victim.set("NarSize", &(nar_size - 1).to_string());
    let error = victim.read().await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Mismatch {
                what: "NAR size",
                ..
            }
        ),
        "{error:?}"
    );
    victim.set("NarSize", &(nar_size + 1).to_string());
    assert!(victim.verified().await.is_err());
    victim.set("NarSize", &nar_size.to_string());
    victim.set("NarHash", other);
    let error = victim.verified().await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Mismatch {
                what: "NAR hash",
                ..
            }
        ),
        "{error:?}"
    );
}

/// As Nix, which looks at neither: the NAR hash decides, and it is what was signed.
#[tokio::test]
async fn the_packed_file_may_be_another_one() {
    let victim = Victim::new(Compression::Zstd).await;
    victim.set(
        "FileHash",
        "sha256:1w1fff338fvdw53sqgamddn1b2xgds473pv6y13gizdbqjv4i5p3",
    );
    victim.set("FileSize", "77");
    let told = Arc::new(Mutex::new(Vec::new()));
    let mut config = config(victim.folder.path());
    config.warnings = warnings(&told);
    let cache = open(config).await;
    let info = cache.require_info(&victim.path).await.unwrap();
    verify(&cache, &info).await.unwrap();
    let words = told.lock().unwrap().concat();
    assert!(
        words.contains("file size mismatch") && words.contains("77 bytes"),
        "{words}"
    );
    victim.set(
        "NarHash",
        "sha256:1w1fff338fvdw53sqgamddn1b2xgds473pv6y13gizdbqjv4i5p3",
    );
    let info = cache.require_info(&victim.path).await.unwrap();
    assert!(verify(&cache, &info).await.is_err());
}

fn warnings(told: &Arc<Mutex<Vec<String>>>) -> CacheWarnings {
    let told = told.clone();
    CacheWarnings::to(move |warning| told.lock().unwrap().push(warning.to_string()))
}

/// What is no narinfo of the path does not stand for it, and is written again.
#[tokio::test]
async fn broken_narinfos_are_written_again() {
    let folder = TempDir::new().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let mut config = config(folder.path());
    config.warnings = warnings(&told);
    let cache = open(config).await;
    let links = chain(2);
    let items = || links.iter().map(|(info, nar)| item(info, nar)).collect();
    add(&cache, items()).await;
    let paths: BTreeSet<_> = links.iter().map(|(info, _)| info.path.clone()).collect();
    let files = links
        .iter()
        .map(|(info, _)| layout::narinfo(&info.path.to_hash_part()));
    let files: Vec<_> = files.map(|name| folder.path().join(name)).collect();
    let [good, other] = [&files[0], &files[1]].map(|file| fs::read_to_string(file).unwrap());
    for broken in [
        String::new(),
        good[..good.len() / 2].to_owned(),
        good.trim_end().to_owned(),
        good.replace("/nix/store", "/gnu/store"),
        other,
        "<html>Sign in</html>\n".to_owned(),
    ] {
        fs::write(&files[0], &broken).unwrap();
        let valid = cache.valid(&paths).await.unwrap();
        assert_eq!(valid, BTreeSet::from([links[1].0.path.clone()]), "{broken}");
        assert_eq!(told.lock().unwrap().len(), 1, "{broken}");
        let report = add(&cache, items()).await;
        assert_eq!((report.added.len(), report.failed.len()), (2, 0));
        assert_eq!(fs::read_to_string(&files[0]).unwrap(), good);
        told.lock().unwrap().clear();
    }
}

#[tokio::test]
async fn all_narinfos_go_on_past_a_broken_one() {
    let victim = Victim::new(Compression::None).await;
    let nobody = layout::narinfo(&HashPart::parse(&"0".repeat(32)).unwrap());
    fs::write(victim.folder.path().join(&nobody), "").unwrap();
    let all = victim.cache.all_narinfos().await.unwrap();
    let all: std::collections::BTreeMap<_, _> = all.collect().await;
    assert_eq!(all.len(), 2);
    let error = all[&nobody].as_ref().unwrap_err().to_line();
    assert!(error.contains(&nobody), "{error}");
    assert!(all.values().flatten().all(|n| n.info.path == victim.path));
}

#[tokio::test]
async fn compressions_that_do_not_fit() {
    let victim = Victim::new(Compression::Zstd).await;
    for name in [
        "xz", "gzip", "bzip2", "br", "lzma", "lzip", "lz4", "compress",
    ] {
        victim.set("Compression", name);
        let error = victim.read().await.unwrap_err();
        assert!(
            matches!(error, Error::Malformed { .. }),
            "{name}: {error:?}"
        );
    }
    for name in ["grzip", "lrzip", "lzop"] {
        victim.set("Compression", name);
        let error = victim.read().await.unwrap_err().to_line();
        assert!(
            error.contains(&format!("compression {name} is not supported")),
            "{error}"
        );
    }
}

#[tokio::test]
async fn broken_narinfos_are_errors_not_absences() {
    let victim = Victim::new(Compression::Zstd).await;
    let whole = fs::read(victim.narinfo()).unwrap();
    let huge = vec![b'x'; 3 << 20];
    for bytes in [
        &b""[..],
        b"\0\0",
        b"StorePath",
        &whole[..whole.len() - 1],
        &huge,
    ] {
        fs::write(victim.narinfo(), bytes).unwrap();
        let error = victim.cache.info(&victim.path).await.unwrap_err();
        assert!(
            error.to_line().contains(victim.path.hash_part()),
            "{error:?}"
        );
        assert!(
            victim
                .cache
                .find(&victim.path.to_hash_part())
                .await
                .is_err()
        );
        assert!(victim.cache.all_paths().await.is_err());
        assert!(victim.cache.nar(&victim.path).await.is_err());
    }
    fs::remove_file(victim.narinfo()).unwrap();
    fs::create_dir(victim.narinfo()).unwrap();
    let error = victim.cache.info(&victim.path).await.unwrap_err().to_line();
    assert!(error.contains("it is not a regular file"), "{error}");
}

#[tokio::test]
async fn a_narinfo_about_another_path() {
    let victim = Victim::new(Compression::Zstd).await;
    let (other, _) = sample("other", b"other", []);
    let name = format!("{}.narinfo", other.path.hash_part());
    fs::copy(victim.narinfo(), victim.folder.path().join(name)).unwrap();
    let error = victim.cache.info(&other.path).await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
    assert!(
        error.to_line().contains(victim.path.as_str()),
        "{}",
        error.to_line()
    );
    // The same hash part with another name is another path, and absent.
    let renamed = StorePath::parse(&format!("{}-renamed", victim.path.hash_part())).unwrap();
    assert_eq!(victim.cache.info(&renamed).await.unwrap(), None);
    let part: HashPart = renamed.to_hash_part();
    assert_eq!(
        victim.cache.find(&part).await.unwrap(),
        Some(victim.path.clone())
    );
}

#[tokio::test]
async fn urls_do_not_lead_out() {
    let victim = Victim::new(Compression::None).await;
    let outside = victim
        .folder
        .path()
        .parent()
        .unwrap()
        .join("tk-cache-outside.nar");
    fs::copy(victim.nar().await, &outside).unwrap();
    for url in [
        "../tk-cache-outside.nar",
        "nar/../../tk-cache-outside.nar",
        outside.to_str().unwrap(),
        &format!("file://{}", outside.display()),
        "../../../../../../../../etc/passwd",
        "https://example.org/nar/x.nar",
    ] {
        victim.set("URL", url);
        let error = victim.read().await.unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{url}: {error:?}");
        assert!(error.to_line().contains(url), "{}", error.to_line());
    }
    fs::remove_file(outside).unwrap();
    // A URL is a path as it stands.
    let nar = victim.folder.path().join("nar");
    let file = fs::read_dir(&nar).unwrap().next().unwrap().unwrap().path();
    fs::rename(file, nar.join("a%20b?c.nar")).unwrap();
    victim.set("URL", "nar/a%20b?c.nar");
    victim.verified().await.unwrap();
    // What is no file is not waited for.
    let made = std::process::Command::new("mkfifo")
        .arg(nar.join("fifo"))
        .status();
    assert!(made.unwrap().success());
    victim.set("URL", "nar/fifo");
    let error = victim.read().await.unwrap_err().to_line();
    assert!(error.contains("it is not a regular file"), "{error}");
}

#[tokio::test]
async fn a_folder_without_permission_is_named() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("nar"), "in the way").unwrap();
    let cache = open(config(folder.path())).await;
    let (info, nar) = sample("x", b"x", []);
    let items = stream::iter([item(&info, &nar)]).boxed();
    let error = cache
        .add(items, &SigCheck::Skip.into())
        .await
        .unwrap_err()
        .to_line();
    assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
    assert_eq!(tree(folder.path()), BTreeSet::from(["nar".into()]));
    let _: Option<&Path> = cache.folder();
}
