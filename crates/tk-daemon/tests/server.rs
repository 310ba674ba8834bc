//! Our server, asked by our client and by nobody's client at all.

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tk_daemon::{
    DaemonConfig, DaemonStore, UnixTransport,
    client::{Channel, Transport},
    server::{Server, ServerConfig, ServerEvent, TrustRule, bind},
    wire::Writer,
    worker::{
        Features, Trust, Version, WorkerProtocol,
        features::{ADD_TEMP_ROOTS, QUERY_PATH_INFOS, REALISATION_WITH_PATH},
        ops::{self, Request},
    },
};
use tk_narinfo::{
    PathInfo, Policy, SecretKey, Signature,
    build_result::{BuildResult, BuildStatus, KeyedBuildResult},
};
use tk_path::{
    Algorithm, BasicDerivation, ContentAddress, DerivedPath, Hash, Method, NarHash, OutputsSpec,
    References, SingleDerivedPath, StoreDir, StorePath,
};
use tk_store::conformance::file_nar;
use tk_store::{
    Abilities, AddContent, AddItems, AddOptions, AddReport, Build, BuildMode, ClientSettings,
    Error, Fetching, Graph, MemoryStore, Missing, NarStream, Result, Sessions, SigCheck, Sources,
    Store, StoreExt, Substitute, conformance,
    log::{Level, LogEvent, LogSink},
    nar,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::UnixStream,
    sync::Notify,
    time::{sleep, timeout},
};

/// The suite of all stores, over each form that the messages have.
#[tokio::test(flavor = "multi_thread")]
async fn conformance_of_a_served_store() {
    let dir = StoreDir::default();
    for minor in [18, 21, 24, 25, 31, 38] {
        let make = || async {
            let server = served(MemoryStore::new(dir.clone()));
            client(server, Trust::Trusted, |config| {
                config.version = Version::minor(minor);
            })
        };
        conformance::run(make).await;
        if minor >= 22 {
            conformance::run_graph(make).await;
        }
        if minor >= 31 {
            conformance::run_legacy_realisations(|| async {
                let server = served(MemoryStore::new(dir.clone()));
                client(server, Trust::Trusted, |config| {
                    config.version = Version::minor(minor);
                    config.features = Features::none();
                })
            })
            .await;
        }
    }
    conformance::run_realisations(|| async {
        let server = served(MemoryStore::new(dir.clone()));
        client(server, Trust::Trusted, |_| {})
    })
    .await;
}

/// What Determinate Nix asks for in one go is served if it is offered.
#[tokio::test]
async fn batches() {
    let store = Arc::new(MemoryStore::default());
    let mut config = ServerConfig::default();
    let names = [REALISATION_WITH_PATH, QUERY_PATH_INFOS, ADD_TEMP_ROOTS];
    config.features = names.into_iter().collect();
    let client = client(
        Server::new(abilities(&store), config),
        Trust::Trusted,
        |_| {},
    );
    let (one, nar) = sample("one", b"one", &[]);
    store
        .add_one(one.clone(), nar::from_bytes(nar), &SigCheck::Skip.into())
        .await
        .unwrap();
    let (absent, _) = sample("absent", b"absent", &[]);
    let paths = BTreeSet::from([one.path.clone(), absent.path]);
    let infos = client
        .call(&ops::QueryPathInfos {
            paths: paths.clone(),
        })
        .await
        .unwrap();
    assert_eq!(infos, [store.info(&one.path).await.unwrap().unwrap()]);
    client.call(&ops::AddTempRoots { paths }).await.unwrap();
}

/// Every operation that this store cannot do says so, and the next one on the same connection is
/// answered.
#[tokio::test]
async fn what_is_refused_leaves_the_connection_usable() {
    let store = Arc::new(MemoryStore::default());
    let (info, nar) = sample("there", b"there", &[]);
    store
        .add_one(info.clone(), nar::from_bytes(nar), &SigCheck::Skip.into())
        .await
        .unwrap();
    let bare = Abilities::of(store.clone());
    let server = Server::new(bare, ServerConfig::default());
    let client = client(server, Trust::Trusted, |config| config.max_connections = 1);
    let there = info.path.clone();
    let absent = path("absent");
    let drv = path("absent.drv");

    macro_rules! refused {
        ($request:expr, $words:literal) => {{
            let request = $request;
            let error = client.call(&request).await.expect_err($words);
            let Error::Refused { words, .. } = &error else {
                panic!("{request:?}: {error:?}")
            };
            assert!(words.contains($words), "{request:?}: {words}");
            let next = ops::IsValidPath {
                path: there.clone(),
            };
            assert!(client.call(&next).await.unwrap(), "after {request:?}");
        }};
    }
    let collect = tk_store::GcOptions::new(tk_store::GcAction::ReturnDead);
    refused!(ops::CollectGarbage::from(collect), "cannot collect garbage");
    refused!(ops::OptimiseStore {}, "cannot share equal files");
    refused!(
        ops::VerifyStore {
            check_contents: true,
            repair: true
        },
        "cannot repair paths"
    );
    refused!(
        ops::VerifyStore {
            check_contents: true,
            repair: false
        },
        "cannot list its paths"
    );
    refused!(ops::QueryAllValidPaths {}, "cannot list its paths");
    refused!(
        ops::QueryReferrers {
            path: there.clone()
        },
        "does not know who refers to a path"
    );
    refused!(
        ops::EnsurePath {
            path: absent.clone()
        },
        "-absent is not in dummy://"
    );
    refused!(
        ops::QueryDerivationOutputMap { path: drv.clone() },
        "absent.drv is not in dummy://"
    );
    refused!(
        ops::QueryDeriver {
            path: absent.clone()
        },
        "-absent is not in dummy://"
    );
    refused!(
        ops::BuildPaths {
            paths: vec![DerivedPath::Opaque(absent.clone())],
            mode: BuildMode::Normal
        },
        "nothing says how to come by it"
    );
    refused!(
        ops::AddSignatures {
            path: there.clone(),
            signatures: BTreeSet::new()
        },
        "takes no further signatures"
    );
    refused!(
        ops::AddPermRoot {
            path: there.clone(),
            link: "/tmp/link".into()
        },
        "has no roots"
    );
    refused!(
        ops::AddTextToStore {
            name: "a".into(),
            text: Bytes::new(),
            references: BTreeSet::new()
        },
        "takes store paths only"
    );
    refused!(
        ops::NarFromPath {
            path: absent.clone()
        },
        "-absent is not in dummy://"
    );

    // And what is done all the same.
    client
        .call(&ops::AddTempRoot {
            path: absent.clone(),
        })
        .await
        .unwrap();
    client
        .call(&ops::AddIndirectRoot {
            link: "/tmp/link".into(),
        })
        .await
        .unwrap();
    client.call(&ops::SyncWithGC {}).await.unwrap();
    assert!(client.call(&ops::FindRoots {}).await.unwrap().0.is_empty());
    let derivers = ops::QueryValidDerivers {
        path: there.clone(),
    };
    assert!(client.call(&derivers).await.unwrap().is_empty());
    let substitutable = ops::QuerySubstitutablePaths {
        paths: BTreeSet::from([absent.clone()]),
    };
    assert!(client.call(&substitutable).await.unwrap().is_empty());
    let substitutable = ops::QuerySubstitutablePathInfo {
        path: absent.clone(),
    };
    assert_eq!(client.call(&substitutable).await.unwrap(), None);
    client
        .call(&ops::EnsurePath {
            path: there.clone(),
        })
        .await
        .unwrap();
}

/// The trusted may leave out signatures, others may not, whatever they say.
#[tokio::test]
async fn trust() {
    let key = SecretKey::generate("a-1").unwrap();
    let policy = Policy::new([key.public()].into_iter().collect());
    let (info, nar) = sample("unsigned", b"unsigned", &[]);
    let signed = {
        let mut info = info.clone();
        info.sign(&StoreDir::default(), &key).unwrap();
        info.ultimate = true;
        info
    };
    // Who, which signatures, whether the server is told not to look.
    for (trust, info, skip, added) in [
        (Trust::Trusted, &info, true, true),
        (Trust::Trusted, &info, false, false),
        (Trust::Trusted, &signed, false, true),
        (Trust::NotTrusted, &info, true, false),
        (Trust::NotTrusted, &info, false, false),
        (Trust::NotTrusted, &signed, true, true),
    ] {
        for together in [false, true] {
            let store = Arc::new(MemoryStore::default());
            let mut config = ServerConfig::default();
            config.policy = Arc::new(policy.clone());
            let mut raw = Raw::connect(Server::new(abilities(&store), config), trust).await;
            if together {
                raw.request(&ops::AddMultipleToStore {
                    repair: false,
                    dont_check_signatures: skip,
                });
                let items = WorkerProtocol::new(StoreDir::default(), Version::minor(16));
                let mut data = Writer::new(items);
                data.count(1);
                data.value(info).unwrap();
                data.raw(&nar);
                raw.frames(&data.take());
            } else {
                raw.request(&ops::AddToStoreNar {
                    info: info.clone(),
                    repair: false,
                    dont_check_signatures: skip,
                });
                raw.frames(&nar);
            }
            let answer = raw.answer().await;
            let case = format!("{trust:?} skip {skip} together {together}: {answer:?}");
            assert_eq!(answer.is_ok(), added, "{case}");
            if let Err(words) = answer {
                assert!(words.contains("is not signed"), "{case}");
            }
            let found = store.info(&info.path).await.unwrap();
            assert_eq!(found.is_some(), added, "{case}");
            if let Some(found) = found {
                let kept = trust == Trust::Trusted && !together;
                assert_eq!(found.ultimate, info.ultimate && kept, "{case}");
            }
            raw.request(&ops::IsValidPath {
                path: info.path.clone(),
            });
            assert!(raw.answer().await.is_ok(), "{case}");
            assert_eq!(raw.u64().await, u64::from(added), "{case}");
        }
    }
}

/// What only the trusted may do.
#[tokio::test]
async fn untrusted_clients() {
    let store = Arc::new(MemoryStore::default());
    let server = Server::new(abilities(&store), ServerConfig::default());
    let client = client(server, Trust::NotTrusted, |_| {});
    assert_eq!(
        client.server_info().await.unwrap().trust,
        Some(Trust::NotTrusted)
    );
    let path = path("x");
    let mut errors = Vec::new();
    let root = ops::AddPermRoot {
        path: path.clone(),
        link: "/tmp/x".into(),
    };
    errors.push(client.call(&root).await.unwrap_err());
    let verify = ops::VerifyStore {
        check_contents: false,
        repair: true,
    };
    errors.push(client.call(&verify).await.unwrap_err());
    let paths = vec![DerivedPath::Opaque(path.clone())];
    let build = ops::BuildPaths {
        paths: paths.clone(),
        mode: BuildMode::Repair,
    };
    errors.push(client.call(&build).await.unwrap_err());
    let build = ops::BuildPathsWithResults {
        paths,
        mode: BuildMode::Repair,
    };
    errors.push(client.call(&build).await.unwrap_err());
    for error in errors {
        assert!(error.to_line().contains("--trusted-user"), "{error}");
    }
}

/// Content under a name of its own, in every form, by both generations of messages.
#[tokio::test]
async fn content() {
    for minor in [18, 25, 38] {
        let store = Arc::new(MemoryStore::default());
        let server = Server::new(abilities(&store), ServerConfig::default());
        let client = client(server, Trust::NotTrusted, |config| {
            config.version = Version::minor(minor);
        });
        // More than is kept in memory, in a form that says no length.
        let content = vec![7; 3 << 20];
        for (method, algorithm) in [
            (Method::Flat, Algorithm::Sha1),
            (Method::Nar, Algorithm::Sha256),
            (Method::Text, Algorithm::Sha256),
            (Method::Git, Algorithm::Sha1),
        ] {
            if minor < 25 && method == Method::Git {
                continue;
            }
            let (nar, expected) = (file_nar(&content), MemoryStore::default());
            let none = References::default();
            let add = |to| nar_add(to, method, algorithm, nar.clone(), &none);
            let expected = add(&expected as &dyn AddContent).await;
            let added = add(&client).await;
            assert_eq!(added.path, expected.path, "{method} {algorithm} 1.{minor}");
            assert_eq!(
                store.info(&added.path).await.unwrap().unwrap().nar_hash,
                expected.nar_hash
            );
        }
    }
}

/// A client that goes away in the middle leaves nothing visible, whatever it was sending.
#[tokio::test]
async fn cut_off_uploads() {
    let (info, nar) = sample("cut", &vec![1; 200_000], &[]);
    for form in 0..3 {
        for cut in [0, 8, 100, nar.len() / 2, nar.len() - 1] {
            let store = Arc::new(MemoryStore::default());
            let server = Server::new(abilities(&store), ServerConfig::default());
            let mut raw = Raw::connect(server, Trust::Trusted).await;
            match form {
                0 => raw.request(&ops::AddToStoreNar {
                    info: info.clone(),
                    repair: false,
                    dont_check_signatures: true,
                }),
                1 => raw.request(&ops::AddMultipleToStore {
                    repair: false,
                    dont_check_signatures: true,
                }),
                _ => raw.request(&ops::AddToStore {
                    name: "cut".into(),
                    method: "fixed:r:sha256".parse().unwrap(),
                    references: BTreeSet::new(),
                    repair: false,
                }),
            }
            let mut data =
                Writer::new(WorkerProtocol::new(StoreDir::default(), Version::minor(16)));
            if form == 1 {
                data.count(1);
                data.value(&info).unwrap();
            }
            data.raw(&nar[..cut]);
            raw.frames(&data.take());
            let end = raw.out.len() - 8;
            raw.out.truncate(end);
            raw.send().await;
            let ended = raw.hang_up().await;
            assert!(ended.is_err(), "form {form} cut at {cut}");
            assert!(
                store.all_paths().await.unwrap().is_empty(),
                "form {form} cut at {cut}"
            );
        }
    }
}

/// A client that is gone does not go on working: the store's future is dropped.
#[tokio::test]
async fn a_build_ends_with_its_client() {
    let builder = Arc::new(Builder::default());
    let mut raw = Raw::connect(builder.served(), Trust::Trusted).await;
    raw.request(&ops::BuildPaths {
        paths: vec![DerivedPath::Opaque(path("for-ever"))],
        mode: BuildMode::Normal,
    });
    raw.send().await;
    builder.started.notified().await;
    assert_eq!(builder.running.load(Ordering::SeqCst), 1);
    assert!(raw.hang_up().await.is_err());
    assert_eq!(builder.running.load(Ordering::SeqCst), 0);
}

/// What a store that builds tells is sent while it builds.
#[tokio::test]
async fn logs_come_while_it_builds() {
    let builder = Arc::new(Builder::default());
    let client = client(builder.served(), Trust::Trusted, |_| {});
    let go = builder.go.clone();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = {
        let seen = seen.clone();
        move |event: LogEvent| {
            // The builder goes on only when its line has come.
            go.notify_one();
            seen.lock().unwrap().push(event);
        }
    };
    let paths = [DerivedPath::Opaque(path("waits"))];
    let build = client.build(&paths, BuildMode::Normal, &log);
    let results = timeout(Duration::from_secs(20), build)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(results[0].result.status, BuildStatus::Built);
    let texts: Vec<_> = seen
        .lock()
        .unwrap()
        .iter()
        .map(|e| format!("{e:?}"))
        .collect();
    assert!(texts[0].contains("a line"), "{texts:?}");
    assert!(!texts.concat().contains("chatter"), "{texts:?}");
    let missing = client.missing(&paths).await.unwrap();
    assert_eq!(missing.unknown.len(), 1);
}

/// Outputs that are there need no building; without a builder nothing else is built.
#[tokio::test]
async fn building_what_is_there() {
    let store = Arc::new(MemoryStore::default());
    let dir = StoreDir::default();
    let drv = fixed_output("made", b"made");
    let drv_path = add_derivation(&store, &drv).await;
    let output = drv.outputs["out"]
        .path(&dir, "made", &"out".parse().unwrap())
        .unwrap()
        .unwrap();
    let server = || Server::new(Abilities::of(store.clone()), ServerConfig::default());
    let client = client(server(), Trust::Trusted, |_| {});
    let wanted = [DerivedPath::Built {
        drv: SingleDerivedPath::Opaque(drv_path.clone()),
        outputs: OutputsSpec::All,
    }];
    let missing = client.missing(&wanted).await.unwrap();
    assert_eq!(missing.build, BTreeSet::from([drv_path.clone()]));
    let failed = client.build(&wanted, BuildMode::Normal, &()).await.unwrap();
    assert_eq!(failed[0].result.status, BuildStatus::MiscFailure);
    assert!(
        failed[0]
            .result
            .error
            .starts_with("cannot build without nix")
    );

    let mut content = PathInfo::new(output.clone(), NarHash::from_bytes([0; 32]), 0);
    let nar = file_nar(b"made");
    content.nar_hash = Hash::digest(Algorithm::Sha256, &nar).try_into().unwrap();
    content.nar_size = nar.len() as u64;
    store
        .add_one(content, nar::from_bytes(nar), &SigCheck::Skip.into())
        .await
        .unwrap();
    assert_eq!(client.missing(&wanted).await.unwrap(), Missing::default());
    let built = client.build(&wanted, BuildMode::Normal, &()).await.unwrap();
    assert_eq!(built[0].result.status, BuildStatus::AlreadyValid);
    assert_eq!(built[0].result.outputs["out"].out_path, output);
    let again = client.build(&wanted, BuildMode::Check, &()).await.unwrap();
    assert_eq!(again[0].result.status, BuildStatus::MiscFailure);
    let wrong = [DerivedPath::Built {
        drv: SingleDerivedPath::Opaque(drv_path.clone()),
        outputs: OutputsSpec::one("doc".parse().unwrap()),
    }];
    let error = client.missing(&wrong).await.unwrap_err().to_line();
    assert!(error.contains("has no output 'doc'"), "{error}");

    let basic: BasicDerivation = tk_path::Derivation {
        name: drv.name.clone(),
        outputs: drv.outputs.clone(),
        inputs: BTreeSet::new(),
        platform: drv.platform.clone(),
        builder: drv.builder.clone(),
        args: vec![],
        env: Default::default(),
    };
    let result = client
        .build_derivation(&drv_path, &basic, BuildMode::Normal, &())
        .await
        .unwrap();
    assert_eq!(result.status, BuildStatus::AlreadyValid);
}

/// What a store lacks and others have is fetched when a client asks for it, as far as it is signed as
/// demanded.
#[tokio::test]
async fn what_others_have_is_fetched() {
    let key = SecretKey::generate("cache-1").unwrap();
    let put = async |store: &MemoryStore, name: &str, sign: bool, references: &[&StorePath]| {
        let (mut info, nar) = sample(name, name.as_bytes(), references);
        if sign {
            info.sign(&StoreDir::default(), &key).unwrap();
        }
        let nar = nar::from_bytes(nar);
        store
            .add_one(info.clone(), nar, &SigCheck::Skip.into())
            .await
            .unwrap();
        info.path
    };
    let [near, far, other] = [(); 3].map(|()| Arc::new(MemoryStore::default()));
    let base = put(&far, "base", true, &[]).await;
    let top = put(&far, "top", true, &[&base]).await;
    let lone = put(&far, "lone", true, &[]).await;
    let unsigned = put(&far, "unsigned", false, &[]).await;
    let elsewhere = put(&other, "elsewhere", true, &[]).await;
    let (nowhere, _) = sample("nowhere", b"nowhere", &[]);
    let drv = fixed_output("made", b"made");
    let drv_path = add_derivation(&near, &drv).await;
    let output = drv.outputs["out"].path(&StoreDir::default(), "made", &"out".parse().unwrap());
    let output = output.unwrap().unwrap();
    let nar = file_nar(b"made");
    let hash = NarHash::try_from(Hash::digest(Algorithm::Sha256, &nar)).unwrap();
    let mut made = PathInfo::new(output.clone(), hash, nar.len() as u64);
    made.sign(&StoreDir::default(), &key).unwrap();
    far.add_one(made, nar::from_bytes(nar), &SigCheck::Skip.into())
        .await
        .unwrap();

    let policy = Policy::new([key.public()].into_iter().collect());
    let client = |trust, change: fn(&mut ops::SetOptions)| {
        let stores = BTreeMap::from([("far", far.clone()), ("other", other.clone())]);
        let check = SigCheck::Require(Arc::new(policy.clone()));
        let fetching = Fetching::new(abilities(&near), Arc::new(Named(stores)), check);
        let server = Server::new(fetching.abilities(), ServerConfig::default());
        let mut options = ops::SetOptions::default();
        change(&mut options);
        client(server, trust, |config| config.settings = Some(options))
    };
    let set = |paths: &[&StorePath]| -> BTreeSet<StorePath> {
        paths.iter().map(|path| (*path).clone()).collect()
    };
    let plain = client(Trust::NotTrusted, |_| {});

    let everything = set(&[&top, &unsigned, &nowhere.path]);
    let wanted: Vec<_> = everything
        .iter()
        .cloned()
        .map(DerivedPath::Opaque)
        .collect();
    let missing = plain.missing(&wanted).await.unwrap();
    assert_eq!(missing.substitute, set(&[&top, &base, &unsigned]));
    assert_eq!(missing.unknown, set(&[&nowhere.path]));
    let offered = plain.substitutable_paths(&everything).await.unwrap();
    assert_eq!(offered, set(&[&top, &unsigned]));

    let no = client(Trust::NotTrusted, |options| options.use_substitutes = false);
    let fetched = no.valid_or_fetched(&everything, &()).await.unwrap();
    assert_eq!(fetched, set(&[]), "the client does not want it");
    assert!(no.ensure(&lone, &()).await.is_err());
    assert_eq!(
        plain.valid(&everything).await.unwrap(),
        set(&[]),
        "only asked"
    );
    let fetched = plain.valid_or_fetched(&everything, &()).await.unwrap();
    assert_eq!(fetched, set(&[&top]));
    assert_eq!(near.valid(&set(&[&base])).await.unwrap().len(), 1);
    plain.ensure(&lone, &()).await.unwrap();
    assert!(plain.ensure(&unsigned, &()).await.is_err());

    let wanted = [DerivedPath::Built {
        drv: SingleDerivedPath::Opaque(drv_path),
        outputs: OutputsSpec::All,
    }];
    let missing = plain.missing(&wanted).await.unwrap();
    assert_eq!(
        (missing.build, missing.substitute),
        (set(&[]), set(&[&output]))
    );
    let built = plain.build(&wanted, BuildMode::Normal, &()).await.unwrap();
    assert_eq!(built[0].result.outputs["out"].out_path, output);

    // From where, only those say who are trusted.
    for (trust, taken) in [(Trust::NotTrusted, false), (Trust::Trusted, true)] {
        let from_other = client(trust, |options| {
            let other = "other".to_owned();
            options.overrides.insert("substituters".to_owned(), other);
        });
        let done = from_other.ensure(&elsewhere, &()).await;
        assert_eq!(done.is_ok(), taken, "{trust:?}: {done:?}");
    }
}

/// Stores by name; the configured one is `far`.
#[derive(Debug)]
struct Named(BTreeMap<&'static str, Arc<MemoryStore>>);

#[async_trait]
impl Sources for Named {
    async fn open(&self, uris: Option<&[String]>) -> Result<Option<Arc<dyn Store>>> {
        let name = match uris {
            None => "far",
            Some([]) => return Ok(None),
            Some([name]) => name,
            Some(names) => panic!("{names:?}"),
        };
        Ok(Some(self.0[name].clone()))
    }
}

/// A NAR that turns out to be bad after it was announced ends the connection: there is no other
/// way to say so.
#[tokio::test]
async fn a_late_failure_ends_the_connection() {
    let builder = Arc::new(Builder::default());
    let mut raw = Raw::connect(builder.served(), Trust::Trusted).await;
    raw.request(&ops::NarFromPath {
        path: path("broken"),
    });
    assert!(raw.answer().await.is_ok());
    let mut rest = Vec::new();
    raw.stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.len() < 2000);
    assert!(
        raw.hang_up()
            .await
            .unwrap_err()
            .to_line()
            .contains("the disk is gone")
    );
    // And before that it is an error like any other.
    let client = client(builder.served(), Trust::Trusted, |_| {});
    let error = client.nar(&path("absent")).await;
    let error = match error {
        Ok(mut nar) => nar.next().await.unwrap().unwrap_err(),
        Err(error) => error,
    };
    assert!(
        matches!(error, Error::NotFound { .. } | Error::Refused { .. }),
        "{error:?}"
    );
}

/// Whatever bytes come, in whatever place of a session: the connection ends, and nothing is added.
#[tokio::test(flavor = "multi_thread")]
async fn garbage_at_every_byte() {
    let (info, nar) = sample("recorded", b"recorded", &[]);
    let mut session = Vec::new();
    {
        let server = served(MemoryStore::default());
        let mut raw = Raw::connect(server, Trust::Trusted).await;
        session.extend_from_slice(&raw.sent);
        raw.request(&ops::SetOptions::default());
        raw.request(&ops::IsValidPath {
            path: info.path.clone(),
        });
        raw.request(&ops::AddMultipleToStore {
            repair: false,
            dont_check_signatures: false,
        });
        let mut data = Writer::new(WorkerProtocol::new(StoreDir::default(), Version::minor(16)));
        data.count(1);
        data.value(&info).unwrap();
        data.raw(&nar);
        raw.frames(&data.take());
        session.extend_from_slice(&raw.out);
    }
    let store = Arc::new(MemoryStore::default());
    let server = Server::new(abilities(&store), ServerConfig::default());
    for at in 0..session.len() {
        let mut bytes = session[..at].to_vec();
        bytes.extend_from_slice(&[0xff; 24]);
        run_bytes(&server, bytes).await;
        let mut bytes = session.clone();
        bytes[at] ^= 0x55;
        run_bytes(&server, bytes).await;
    }
    // Nothing was signed, so whatever was changed, nothing may be there.
    assert!(store.all_paths().await.unwrap().is_empty());
    let client = client(server, Trust::Trusted, |_| {});
    assert!(
        !client
            .call(&ops::IsValidPath { path: info.path })
            .await
            .unwrap()
    );
}

/// Counts and lengths of 2^60, and texts without end.
#[tokio::test]
async fn claims_that_nobody_can_keep() {
    let huge = 1_u64 << 60;
    let server = served(MemoryStore::default());
    for (op, words) in [
        (31, vec![huge]),
        (31, vec![2, huge]),
        (1, vec![huge]),
        (9, vec![huge]),
        (19, vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, huge]),
        (37, vec![huge]),
        (44, vec![0, 1, huge]),
        (44, vec![0, 1, 8, huge, 0]),
        (36, vec![huge]),
        (8, vec![huge]),
        (1000, vec![]),
        (4, vec![]),
        (u64::MAX, vec![]),
    ] {
        let mut raw = Raw::connect(server.clone(), Trust::Trusted).await;
        raw.out.extend_from_slice(&op.to_le_bytes());
        for word in &words {
            raw.out.extend_from_slice(&word.to_le_bytes());
        }
        raw.send().await;
        if op == 44 && words.len() == 5 {
            // That is a list of 2^60 paths within a stream that ends: refused, not broken.
            let answer = timeout(Duration::from_secs(10), raw.answer())
                .await
                .unwrap();
            assert!(answer.unwrap_err().contains("the stream of paths"));
            continue;
        }
        let answer = timeout(Duration::from_secs(10), raw.answer())
            .await
            .unwrap();
        let words = answer.expect_err("an error");
        assert!(!words.is_empty(), "{op}");
        let ended = timeout(Duration::from_secs(10), raw.ended()).await.unwrap();
        assert!(ended.is_err(), "{op}");
    }
    // A text that goes on and on is not kept: its length is refused, or its bytes are passed over.
    let mut raw = Raw::connect(server.clone(), Trust::Trusted).await;
    raw.out.extend_from_slice(&1_u64.to_le_bytes());
    raw.out.extend_from_slice(&(1_u64 << 32).to_le_bytes());
    raw.out.resize(1 << 20, b'x');
    let _ = raw.stream.write_all(&raw.out).await;
    assert!(
        timeout(Duration::from_secs(10), raw.ended())
            .await
            .unwrap()
            .is_err()
    );
}

/// Only the handshake has a time limit.
#[tokio::test]
async fn slow_clients() {
    let mut config = ServerConfig::default();
    config.handshake_timeout = Duration::from_millis(50);
    let server = Server::new(abilities(&Arc::new(MemoryStore::default())), config);
    let (mut ours, theirs) = duplex(4096);
    let (reader, writer) = tokio::io::split(theirs);
    ours.write_all(&[0x63, 0x78]).await.unwrap();
    let error = server
        .serve(reader, writer, Trust::Trusted)
        .await
        .unwrap_err()
        .to_line();
    assert!(error.contains("too slow"), "{error}");
    let mut raw = Raw::connect(server, Trust::Trusted).await;
    sleep(Duration::from_millis(120)).await;
    raw.request(&ops::IsValidPath { path: path("x") });
    assert!(raw.answer().await.is_ok());
}

/// A server that stops closes idle connections at once, and lets running requests end.
#[tokio::test]
async fn stopping() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let (listener, _file) = bind(&socket, 0o600).await.unwrap();
    let builder = Arc::new(Builder::default());
    let server = builder.served();
    let stop = Arc::new(Notify::new());
    let stopping = stop.clone();
    let running = tokio::spawn(async move {
        server
            .listen(vec![listener], async move { stopping.notified().await })
            .await;
    });
    let idle = socket_client(&socket);
    idle.server_info().await.unwrap();
    let busy = socket_client(&socket);
    let (started, go) = (builder.started.clone(), builder.go.clone());
    let building = tokio::spawn(async move {
        busy.build(
            &[DerivedPath::Opaque(path("waits"))],
            BuildMode::Normal,
            &(),
        )
        .await
    });
    started.notified().await;
    stop.notify_one();
    sleep(Duration::from_millis(50)).await;
    assert!(
        UnixStream::connect(&socket).await.is_err(),
        "no more are taken"
    );
    assert!(!running.is_finished());
    go.notify_one();
    let results = building.await.unwrap().unwrap();
    assert_eq!(results[0].result.status, BuildStatus::Built);
    timeout(Duration::from_secs(4), running)
        .await
        .unwrap()
        .unwrap();
}

/// A connection too many waits; one that breaks harms no other; the log has it all.
#[tokio::test]
async fn several_connections() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let (listener, _file) = bind(&socket, 0o600).await.unwrap();
    let lines = Arc::new(Mutex::new(Vec::new()));
    let seen = lines.clone();
    let observe = move |number: u64, event: ServerEvent<'_>| {
        let line = match event {
            ServerEvent::Connected { peer } => format!("connected {}", peer.unwrap().uid),
            ServerEvent::Ready {
                version, trusted, ..
            } => format!("{version} {trusted}"),
            ServerEvent::Operation { name, error, .. } => format!("{name} {}", error.is_none()),
            ServerEvent::Closed { operations, error } => {
                format!("{operations} {}", error.is_none())
            }
            other => format!("{other:?}"),
        };
        seen.lock().unwrap().push(format!("{number} {line}"));
    };
    let mut config = ServerConfig::default();
    config.trust = TrustRule::Nobody;
    config.max_connections = 2;
    config.observer = Arc::new(observe);
    let server = Server::new(abilities(&Arc::new(MemoryStore::default())), config);
    let running = tokio::spawn(async move {
        server.listen(vec![listener], std::future::pending()).await;
    });
    let one = socket_client(&socket);
    assert_eq!(
        one.server_info().await.unwrap().trust,
        Some(Trust::NotTrusted)
    );
    let mut bad = UnixStream::connect(&socket).await.unwrap();
    bad.write_all(&[0xaa; 64]).await.unwrap();
    let mut end = Vec::new();
    let _ = bad.read_to_end(&mut end).await;
    drop(bad);
    // Two are taken by silence.
    let silent = UnixStream::connect(&socket).await.unwrap();
    let three = socket_client(&socket);
    let waiting = three.server_info();
    tokio::pin!(waiting);
    assert!(
        timeout(Duration::from_millis(100), &mut waiting)
            .await
            .is_err()
    );
    drop(silent);
    timeout(Duration::from_secs(5), waiting)
        .await
        .unwrap()
        .unwrap();
    one.call(&ops::IsValidPath { path: path("x") })
        .await
        .unwrap();
    running.abort();
    let lines = lines.lock().unwrap().clone();
    let uid = rustix::process::geteuid().as_raw();
    for line in [
        format!("1 connected {uid}"),
        "1 1.38 false".into(),
        "1 QueryValidPaths true".into(),
        "2 0 false".into(),
        "3 0 false".into(),
        "1 IsValidPath true".into(),
    ] {
        assert!(lines.contains(&line), "{line}: {lines:#?}");
    }
}

/// Roots that are made through one connection are not those of another, and settings reach the store that can use
/// them, without what those may not set who are not trusted.
#[tokio::test]
async fn each_client_has_a_session_of_its_own() {
    let sessions = Arc::new(Recorded::default());
    let store = Arc::new(MemoryStore::default());
    let server = || {
        let mut abilities = abilities(&store);
        abilities.sessions = Some(Arc::new(RecordedSessions {
            store: store.clone(),
            seen: sessions.clone(),
        }));
        Server::new(abilities, ServerConfig::default())
    };
    let mut options = ops::SetOptions::default();
    options.overrides.insert("timeout".into(), "7".into());
    options
        .overrides
        .insert("post-build-hook".into(), "/x".into());
    for (trust, set) in [(Trust::Trusted, 2), (Trust::NotTrusted, 1)] {
        let mut raw = Raw::connect(server(), trust).await;
        raw.request(&options);
        // A word about what is ignored comes only to those who want to see so much.
        assert!(raw.answer().await.is_ok());
        let last = sessions.settings.lock().unwrap().pop().unwrap();
        assert_eq!(last.overrides.len(), set);
        assert!(raw.hang_up().await.is_ok());
    }
    assert_eq!(sessions.begun.load(Ordering::Relaxed), 2);
}

/// Junk signatures are bounded, and leave what trusted keys have signed alone.
#[tokio::test]
async fn junk_signatures() {
    let key = SecretKey::generate("good-1").unwrap();
    let store = Arc::new(MemoryStore::default());
    let (info, nar) = sample("signed", b"signed", &[]);
    let any = AddOptions::new(SigCheck::Skip);
    let add = store.add_one(info.clone(), nar::from_bytes(nar), &any);
    add.await.unwrap();
    let mut config = ServerConfig::default();
    config.policy = Arc::new(Policy::new([key.public()].into_iter().collect()));
    let server = Server::new(abilities(&store), config);
    let client = client(server, Trust::NotTrusted, |_| {});
    let junk = |n: usize| Signature::new(&format!("junk-{n}"), [n as u8; 64]);
    let add = async |signatures: BTreeSet<Signature>| {
        let path = info.path.clone();
        let request = ops::AddSignatures { path, signatures };
        client.call(&request).await.map(drop)
    };
    add((0..100).map(junk).collect()).await.unwrap();
    let error = add((100..1000).map(junk).collect()).await.unwrap_err();
    assert!(error.to_line().contains("too many"), "{}", error.to_line());
    let mut signed = info.clone();
    signed.sign(&StoreDir::default(), &key).unwrap();
    add(signed.signatures.clone()).await.unwrap();
    let now = store.info(&info.path).await.unwrap().unwrap();
    assert_eq!(now.signatures.len(), 101);
    assert!(now.signatures.is_superset(&signed.signatures));

    // The same on the way in with a path.
    let (mut info, nar) = sample("other", b"other", &[]);
    info.sign(&StoreDir::default(), &key).unwrap();
    let good = info.signatures.clone();
    info.signatures.extend((0..1000).map(junk));
    let path = info.path.clone();
    let added = client.add_one(info, nar::from_bytes(nar), &any);
    added.await.unwrap();
    let now = store.info(&path).await.unwrap().unwrap();
    assert!(now.signatures.is_superset(&good));
    assert!(now.signatures.len() < 300, "{}", now.signatures.len());
}

/// A trusted client may say that signatures are not needed, or whose; another one may not.
#[tokio::test]
async fn settings_about_signatures() {
    let key = SecretKey::generate("own-1").unwrap();
    let own = key.public().to_string();
    let cases = [
        ("require-sigs", "false", false, Trust::Trusted, true),
        ("require-sigs", "false", false, Trust::NotTrusted, false),
        (
            "extra-trusted-public-keys",
            &own,
            true,
            Trust::Trusted,
            true,
        ),
        (
            "extra-trusted-public-keys",
            &own,
            false,
            Trust::Trusted,
            false,
        ),
        ("trusted-public-keys", &own, true, Trust::NotTrusted, false),
    ];
    for (i, (name, value, sign, trust, taken)) in cases.into_iter().enumerate() {
        let mut options = ops::SetOptions::default();
        options.overrides.insert(name.into(), value.into());
        let server = served(MemoryStore::default());
        let client = client(server, trust, |config| config.settings = Some(options));
        let (mut info, nar) = sample(&format!("n{i}"), b"content", &[]);
        if sign {
            info.sign(&StoreDir::default(), &key).unwrap();
        }
        let request = ops::AddToStoreNar {
            info,
            repair: false,
            dont_check_signatures: false,
        };
        let data = stream::iter([Ok(nar)]);
        let mut connection = client.connection().await.unwrap();
        let added = connection.upload(&request, data, &()).await;
        assert_eq!(added.is_ok(), taken, "{name} {trust:?}: {added:?}");
        if let Err(error) = added {
            // Nix's words, which programs look for, and then what was found.
            let words = error.to_line();
            let path = format!(
                "cannot add path '/nix/store/{}' because it lacks",
                request.info.path
            );
            assert!(words.contains(&path), "{words}");
            let found = "a signature by a trusted key: ";
            assert!(words.contains(found) && words.contains("signed"), "{words}");
        }
    }
}

/// A client who is silent keeps nobody out who is trusted, nor all the places.
#[tokio::test]
async fn silent_clients() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let (listener, _file) = bind(&socket, 0o600).await.unwrap();
    let mut config = ServerConfig::default();
    config.trust = TrustRule::Nobody;
    config.max_connections = 2;
    config.idle_limit = Duration::from_millis(1);
    let server = Server::new(abilities(&Arc::new(MemoryStore::default())), config);
    tokio::spawn(async move { server.listen(vec![listener], std::future::pending()).await });
    let mut silent = Vec::new();
    for _ in 0..2 {
        let client = socket_client(&socket);
        client.server_info().await.unwrap();
        silent.push(client);
    }
    // One of them makes room.
    let next = socket_client(&socket);
    timeout(Duration::from_secs(20), next.server_info())
        .await
        .unwrap()
        .unwrap();
}

/// Large requests of one client wait for each other; small ones, and those of others, do not.
#[tokio::test]
async fn half_of_a_large_request() {
    let server = served(MemoryStore::default());
    let paths: BTreeSet<_> = (0..20_000).map(|n| path(&format!("n{n}"))).collect();
    let request = ops::QueryValidPaths {
        paths,
        substitute: false,
    };
    let mut halves = Vec::new();
    for _ in 0..2 {
        let mut raw = Raw::connect(server.clone(), Trust::NotTrusted).await;
        raw.request(&request);
        let half = raw.out.len() / 2;
        let rest = raw.out.split_off(half);
        raw.send().await;
        raw.out = rest;
        halves.push(raw);
    }
    let mut third = Raw::connect(server.clone(), Trust::NotTrusted).await;
    third.request(&ops::IsValidPath { path: path("x") });
    assert!(third.answer().await.is_ok());
    assert_eq!(third.u64().await, 0);
    third.request(&request);
    let waits = timeout(Duration::from_millis(100), third.answer()).await;
    assert!(waits.is_err(), "there is no turn for it yet");
    for half in &mut halves {
        assert!(half.answer().await.is_ok());
        assert_eq!(half.u64().await, 0);
    }
}

/// What was asked of the sessions.
#[derive(Debug, Default)]
struct Recorded {
    begun: AtomicUsize,
    settings: Mutex<Vec<ClientSettings>>,
}

#[derive(Debug)]
struct RecordedSessions {
    store: Arc<MemoryStore>,
    seen: Arc<Recorded>,
}

impl fmt::Display for RecordedSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("recorded")
    }
}

#[async_trait]
impl Store for RecordedSessions {
    fn dir(&self) -> &StoreDir {
        self.store.dir()
    }

    async fn valid(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        self.store.valid(paths).await
    }

    fn infos<'a>(
        &'a self,
        paths: stream::BoxStream<'a, StorePath>,
    ) -> stream::BoxStream<'a, Result<(StorePath, Option<PathInfo>)>> {
        self.store.infos(paths)
    }

    async fn nar(&self, path: &StorePath) -> Result<NarStream> {
        self.store.nar(path).await
    }

    async fn add(&self, items: AddItems<'_>, options: &AddOptions) -> Result<AddReport> {
        self.store.add(items, options).await
    }

    async fn find(&self, part: &tk_path::HashPart) -> Result<Option<StorePath>> {
        self.store.find(part).await
    }
}

impl Sessions for RecordedSessions {
    fn session(&self, _: Arc<dyn LogSink>) -> Abilities {
        self.seen.begun.fetch_add(1, Ordering::Relaxed);
        let mut abilities = abilities(&self.store);
        abilities.sessions = Some(Arc::new(RecordedSessions {
            store: self.store.clone(),
            seen: self.seen.clone(),
        }));
        abilities
    }

    fn with_settings(&self, settings: &ClientSettings) -> Option<Abilities> {
        self.seen.settings.lock().unwrap().push(settings.clone());
        Some(abilities(&self.store))
    }
}

fn abilities(store: &Arc<MemoryStore>) -> Abilities {
    Abilities {
        content: Some(store.clone()),
        signatures: Some(store.clone()),
        graph: Some(store.clone()),
        realisations: Some(store.clone()),
        ..Abilities::of(store.clone())
    }
}

fn served(store: MemoryStore) -> Server {
    Server::new(abilities(&Arc::new(store)), ServerConfig::default())
}

/// Our client, each of whose connections the server serves.
fn client(server: Server, trust: Trust, change: impl FnOnce(&mut DaemonConfig)) -> DaemonStore {
    let mut config = DaemonConfig::new("dummy-daemon");
    config.timeout = Some(Duration::from_secs(20));
    change(&mut config);
    DaemonStore::new(Arc::new(InMemory { server, trust }), config)
}

fn socket_client(socket: &std::path::Path) -> DaemonStore {
    let config = DaemonConfig::new("unix://socket");
    DaemonStore::new(Arc::new(UnixTransport::new(PathBuf::from(socket))), config)
}

struct InMemory {
    server: Server,
    trust: Trust,
}

#[async_trait]
impl Transport for InMemory {
    async fn connect(&self) -> Result<Channel> {
        let (ours, theirs) = duplex(64 << 10);
        let (server, trust) = (self.server.clone(), self.trust);
        tokio::spawn(async move {
            let (reader, writer) = tokio::io::split(theirs);
            let _ = server.serve(reader, writer, trust).await;
        });
        let (reader, writer) = tokio::io::split(ours);
        Ok(Channel::new(reader, writer))
    }
}

impl fmt::Display for InMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server in memory")
    }
}

impl fmt::Debug for InMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InMemory")
    }
}

/// A client that says what it likes.
struct Raw {
    stream: DuplexStream,
    writer: Writer<WorkerProtocol>,
    out: Vec<u8>,
    /// What was sent by the handshake.
    sent: Vec<u8>,
    server: tokio::task::JoinHandle<Result<()>>,
}

impl Raw {
    async fn connect(server: Server, trust: Trust) -> Self {
        let (stream, theirs) = duplex(1 << 20);
        let server = tokio::spawn(async move {
            let (reader, writer) = tokio::io::split(theirs);
            server.serve(reader, writer, trust).await
        });
        let worker = WorkerProtocol::new(StoreDir::default(), Version::minor(37));
        let mut raw = Raw {
            stream,
            writer: Writer::new(worker),
            out: Vec::new(),
            sent: Vec::new(),
            server,
        };
        for word in [0x6e69_7863_u64, Version::minor(37).word(), 0, 0] {
            raw.out.extend_from_slice(&word.to_le_bytes());
        }
        raw.sent = raw.out.clone();
        raw.send().await;
        assert_eq!(raw.u64().await, 0x6478_696f);
        assert_eq!(raw.u64().await, Version::minor(38).word());
        raw.text().await;
        raw.u64().await;
        assert_eq!(raw.u64().await, LAST);
        raw
    }

    fn request(&mut self, request: &impl Request<WorkerProtocol>) {
        request.write(&mut self.writer).unwrap();
        self.out.extend_from_slice(&self.writer.take());
    }

    /// The data in chunks of no particular size, and its end.
    fn frames(&mut self, data: &[u8]) {
        for piece in data.chunks(777) {
            self.out
                .extend_from_slice(&(piece.len() as u64).to_le_bytes());
            self.out.extend_from_slice(piece);
        }
        self.out.extend_from_slice(&[0; 8]);
    }

    async fn send(&mut self) {
        self.stream.write_all(&self.out).await.unwrap();
        self.out.clear();
    }

    async fn u64(&mut self) -> u64 {
        self.stream.read_u64_le().await.unwrap()
    }

    async fn text(&mut self) -> String {
        let length = self.u64().await as usize;
        let mut bytes = vec![0; length.next_multiple_of(8)];
        self.stream.read_exact(&mut bytes).await.unwrap();
        bytes.truncate(length);
        String::from_utf8(bytes).unwrap()
    }

    /// Up to the reply, or the words of the error.
    async fn answer(&mut self) -> Result<(), String> {
        self.send().await;
        match self.u64().await {
            LAST => Ok(()),
            ERROR => {
                self.text().await;
                self.u64().await;
                self.text().await;
                let words = self.text().await;
                assert_eq!((self.u64().await, self.u64().await), (0, 0));
                Err(words)
            }
            other => panic!("message {other:#x}"),
        }
    }

    async fn hang_up(self) -> Result<()> {
        drop(self.stream);
        timeout(Duration::from_secs(10), self.server)
            .await
            .unwrap()
            .unwrap()
    }

    async fn ended(&mut self) -> Result<()> {
        (&mut self.server).await.unwrap()
    }
}

/// Sends bytes and hangs up; the server must come to an end by itself.
async fn run_bytes(server: &Server, bytes: Vec<u8>) {
    let (mut ours, theirs) = duplex(1 << 20);
    let (reader, writer) = tokio::io::split(theirs);
    ours.write_all(&bytes).await.unwrap();
    ours.shutdown().await.unwrap();
    let serve = server.serve(reader, writer, Trust::NotTrusted);
    let _ = timeout(Duration::from_secs(10), serve)
        .await
        .expect("no hang");
}

const LAST: u64 = 0x616c_7473;
const ERROR: u64 = 0x6378_7470;

/// A store whose builds wait, and whose NARs break off.
#[derive(Default)]
struct Builder {
    memory: MemoryStore,
    started: Arc<Notify>,
    go: Arc<Notify>,
    running: AtomicUsize,
}

impl Builder {
    fn served(self: &Arc<Self>) -> Server {
        let abilities = Abilities {
            build: Some(self.clone()),
            ..Abilities::of(self.clone())
        };
        Server::new(abilities, ServerConfig::default())
    }
}

struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Build for Builder {
    async fn build(
        &self,
        paths: &[DerivedPath],
        _: BuildMode,
        log: &dyn LogSink,
    ) -> Result<Vec<KeyedBuildResult>> {
        self.running.fetch_add(1, Ordering::SeqCst);
        let _running = Running(&self.running);
        log.event(LogEvent::message(Level::Info, "a line"));
        log.event(LogEvent::message(Level::Vomit, "chatter"));
        self.started.notify_one();
        self.go.notified().await;
        let result = |path: &DerivedPath| KeyedBuildResult {
            path: path.clone(),
            result: BuildResult::new(BuildStatus::Built),
        };
        Ok(paths.iter().map(result).collect())
    }

    async fn build_derivation(
        &self,
        _: &StorePath,
        _: &BasicDerivation,
        _: BuildMode,
        _: &dyn LogSink,
    ) -> Result<BuildResult> {
        Ok(BuildResult::new(BuildStatus::Built))
    }

    async fn missing(&self, paths: &[DerivedPath]) -> Result<Missing> {
        let mut missing = Missing::default();
        missing
            .unknown
            .extend(paths.iter().map(|p| p.base().clone()));
        Ok(missing)
    }

    async fn ensure(&self, _: &StorePath, _: &dyn LogSink) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Store for Builder {
    fn dir(&self) -> &StoreDir {
        self.memory.dir()
    }

    async fn valid(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        self.memory.valid(paths).await
    }

    fn infos<'a>(
        &'a self,
        paths: stream::BoxStream<'a, StorePath>,
    ) -> stream::BoxStream<'a, Result<(StorePath, Option<PathInfo>)>> {
        self.memory.infos(paths)
    }

    async fn nar(&self, path: &StorePath) -> Result<NarStream> {
        if path.name() == "absent" {
            return self.memory.nar(path).await;
        }
        let begin = file_nar(&[1; 4000]).slice(..1000);
        let fault = Error::io("reading", std::io::Error::other("the disk is gone"));
        Ok(stream::iter([Ok(begin), Err(fault)]).boxed())
    }

    async fn add(&self, items: AddItems<'_>, options: &AddOptions) -> Result<AddReport> {
        self.memory.add(items, options).await
    }

    async fn find(&self, part: &tk_path::HashPart) -> Result<Option<StorePath>> {
        self.memory.find(part).await
    }
}

impl fmt::Display for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("builder://")
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Builder")
    }
}

fn path(name: &str) -> StorePath {
    let base = format!("g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-{name}");
    StorePath::parse(&base).unwrap()
}

/// A path that needs signatures, with its NAR.
fn sample(name: &str, content: &[u8], references: &[&StorePath]) -> (PathInfo, Bytes) {
    let nar = file_nar(content);
    let hash = Hash::digest(Algorithm::Sha256, &nar).try_into().unwrap();
    let mut info = PathInfo::new(path(name), hash, nar.len() as u64);
    info.references
        .extend(references.iter().map(|r| (*r).clone()));
    (info, nar)
}

async fn nar_add(
    to: &dyn AddContent,
    method: Method,
    algorithm: Algorithm,
    nar: Bytes,
    references: &References,
) -> PathInfo {
    to.add_content(
        "content",
        method,
        algorithm,
        references,
        nar::from_bytes(nar),
    )
    .await
    .unwrap()
}

fn fixed_output(name: &str, content: &[u8]) -> tk_path::Derivation {
    let ca = ContentAddress {
        method: Method::Flat,
        hash: Hash::digest(Algorithm::Sha256, content),
    };
    let out = ("out".parse().unwrap(), tk_path::DerivationOutput::Fixed(ca));
    tk_path::Derivation {
        name: name.into(),
        outputs: [out].into(),
        inputs: tk_path::Inputs::default(),
        platform: "x86_64-linux".into(),
        builder: "/bin/sh".into(),
        args: vec![],
        env: Default::default(),
    }
}

async fn add_derivation(store: &MemoryStore, drv: &tk_path::Derivation) -> StorePath {
    let text = drv.to_aterm(&StoreDir::default()).unwrap();
    let name = format!("{}.drv", drv.name);
    let nar = nar::from_bytes(file_nar(&text));
    let none = References::default();
    let added = store
        .add_content(&name, Method::Text, Algorithm::Sha256, &none, nar)
        .await;
    added.unwrap().path
}
