//! Caches in buckets, against a small S3 service.
#![cfg(feature = "bucket")]

mod s3;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use rustix::fs::{FlockOperation, flock};
use s3::{BUCKET, KEY, REGION, Reply, Request, S3, SECRET};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tk_cache::{
    BinaryCache, BinaryCacheConfig,
    bucket::{BucketConfig, BucketObjects, CloudEnvironment},
    http::{ClientConfig, Retry},
    journal::Journal,
    objects::{Objects, Upload},
    observer::NetworkObserver,
};
use tk_store::{
    ByteStream, Error, MemoryStore, SigCheck, Store,
    copy::{self, CopyOptions},
};

/// How to get at the bucket `location` of the service.
fn config(s3: &S3, location: &str, variables: &[(&str, &str)]) -> BucketConfig {
    let endpoint = s3.url();
    let parameter = |name: &str| match name {
        "endpoint" => Some(endpoint.clone()),
        "region" => Some(REGION.to_owned()),
        "multipart-chunk-size" => Some(PART.to_string()),
        _ => None,
    };
    let retry = Retry {
        attempts: 3,
        delay: Duration::from_millis(1),
        delay_rate_limited: Duration::from_millis(2),
        max_delay: Duration::from_millis(20),
    };
    let client = ClientConfig {
        retry,
        ..ClientConfig::default()
    };
    let variables = variables
        .iter()
        .map(|(k, v)| (k.to_string(), v.to_string()));
    let mut variables: BTreeMap<_, _> = variables.collect();
    variables
        .entry("AWS_EC2_METADATA_DISABLED".to_owned())
        .or_insert_with(|| "true".to_owned());
    let home = None;
    let environment = CloudEnvironment { variables, home };
    BucketConfig::from_parts("s3", location, &parameter, environment, client).unwrap()
}

fn open(s3: &S3) -> BucketObjects {
    BucketObjects::open(config(s3, &format!("{BUCKET}/some/where"), &KEYS)).unwrap()
}

fn text(read: Option<Bytes>) -> String {
    String::from_utf8(read.unwrap().to_vec()).unwrap()
}

fn body(chunks: impl IntoIterator<Item = Bytes>) -> ByteStream {
    let chunks: Vec<_> = chunks.into_iter().map(Ok).collect();
    futures::stream::iter(chunks).boxed()
}

/// Bytes that differ from part to part.
fn content(size: usize) -> Bytes {
    (0..size)
        .map(|i| (i / 1000 + i) as u8)
        .collect::<Vec<_>>()
        .into()
}

fn upload<'a>(name: &'a str, body: ByteStream, journal: Option<&'a Journal>) -> Upload<'a> {
    Upload {
        name,
        mime: "application/x-nix-nar",
        body,
        size_hint: 0,
        journal,
        sent: Arc::new(|_| ()),
    }
}

fn count(s3: &S3, what: &str) -> usize {
    let state = s3.state();
    state
        .asked
        .iter()
        .filter(|asked| asked.contains(what))
        .count()
}

#[tokio::test]
async fn small_objects() {
    let s3 = S3::start().await;
    let cache = open(&s3);
    assert_eq!(cache.to_string(), "s3://cache/some/where");
    assert_eq!(cache.read("x.narinfo", 100).await.unwrap(), None);
    assert_eq!(cache.look("x.narinfo").await.unwrap(), None);
    assert!(cache.stream("x.narinfo").await.unwrap().is_none());

    for name in ["a.narinfo", "log/x?+=ä.drv", "nar/b", "nar/c", "narrow"] {
        let written = cache
            .write(name, Bytes::from(name.to_owned()), "text/x", false)
            .await;
        assert!(written.unwrap(), "{name}");
        assert_eq!(text(cache.read(name, 100).await.unwrap()), name);
        let size = cache.look(name).await.unwrap().unwrap().size;
        assert_eq!(size, Some(name.len() as u64));
    }
    assert_eq!(
        s3.state().objects["some/where/nar/b"].headers["content-type"],
        "text/x"
    );
    s3.state()
        .objects
        .insert("some/wherever".to_owned(), Default::default());

    // What others left there is not in the way.
    for foreign in ["a//b", "/b", "nar/", "x/../y"] {
        let key = format!("some/where/{foreign}");
        s3.state().objects.insert(key, Default::default());
    }
    let list = async |folder| cache.list(folder).try_collect::<Vec<_>>().await.unwrap();
    assert_eq!(list("").await, ["a.narinfo", "narrow"]);
    assert_eq!(list("nar").await, ["nar/b", "nar/c"]);
    assert_eq!(list("log").await, ["log/x?+=ä.drv"]);
    assert_eq!(list("none").await, [""; 0]);

    assert!(
        !cache
            .write("nar/b", Bytes::from("new"), "text/x", true)
            .await
            .unwrap()
    );
    assert_eq!(text(cache.read("nar/b", 100).await.unwrap()), "nar/b");
    cache.remove("nar/b").await.unwrap();
    cache.remove("nar/b").await.unwrap();
    assert_eq!(cache.read("nar/b", 100).await.unwrap(), None);
    assert!(
        cache
            .write("nar/b", Bytes::from("new"), "text/x", true)
            .await
            .unwrap()
    );

    let too_large = cache.read("a.narinfo", 5).await.unwrap_err();
    assert!(
        too_large.to_line().contains("larger than 5 bytes"),
        "{too_large}"
    );
}

#[tokio::test]
async fn conditions_that_a_service_does_not_know_are_left_out() {
    let s3 = S3::start().await;
    s3.fault(|request| {
        let condition = request.headers.contains_key("if-none-match");
        condition.then(|| Reply::error(501, "NotImplemented", ""))
    });
    let cache = open(&s3);
    for _ in 0..2 {
        assert!(
            cache
                .write("a", Bytes::from("x"), "text/x", true)
                .await
                .unwrap()
        );
    }
    assert_eq!(count(&s3, "PUT"), 3, "it is asked for only once");
}

#[tokio::test]
async fn packed_metadata_is_unpacked() {
    use std::io::Write;
    let s3 = S3::start().await;
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&[b'x'; 5000]).unwrap();
    let mut object = s3::Object {
        content: packed.finish().unwrap(),
        ..Default::default()
    };
    object
        .headers
        .insert("content-encoding".to_owned(), "gzip".to_owned());
    s3.state()
        .objects
        .insert("some/where/a.ls".to_owned(), object.clone());
    let cache = open(&s3);
    assert_eq!(
        cache.read("a.ls", 5000).await.unwrap().unwrap(),
        [b'x'; 5000][..]
    );
    let bomb = cache.read("a.ls", 4999).await.unwrap_err().to_line();
    assert!(bomb.contains("larger than 4999 bytes"), "{bomb}");
    // NARs as well, in whatever letters it says so.
    object
        .headers
        .insert("content-encoding".to_owned(), "X-GZip".to_owned());
    s3.state()
        .objects
        .insert("some/where/nar/a".to_owned(), object);
    let nar = cache.stream("nar/a").await.unwrap().unwrap();
    let nar = nar.try_collect::<Vec<_>>().await.unwrap().concat();
    assert_eq!(nar, [b'x'; 5000][..]);
    assert_eq!(cache.look("nar/a").await.unwrap().unwrap().size, None);
}

/// Each has a sentence of its own, for each way to ask, and none is taken for "absent".
#[tokio::test]
async fn what_is_refused_is_not_absent() {
    let s3 = S3::start().await;
    let wrong_key = [
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
    ];
    let wrong_secret = [("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", "x")];
    let no_bucket = "there is no bucket nowhere at http://127.0.0.1";
    type Variables<'a> = &'a [(&'a str, &'a str)];
    let cases: &[(&str, Variables, &str)] = &[
        (BUCKET, &wrong_key, "does not know this access key"),
        (
            BUCKET,
            &wrong_secret,
            "the secret key is not that of the access key",
        ),
        ("nowhere", &KEYS, no_bucket),
        (BUCKET, &[], "no credentials were found"),
    ];
    for (location, variables, words) in cases {
        refused(&config(&s3, location, variables), words).await;
    }
    let mut elsewhere = config(&s3, BUCKET, &KEYS);
    let tk_cache::bucket::Service::S3(params) = &mut elsewhere.service else {
        panic!();
    };
    params.region = Some("us-east-1".to_owned());
    refused(
        &elsewhere,
        "is in the region eu-test-1, not in us-east-1: use ?region=",
    )
    .await;

    type Case = (u16, &'static str, &'static str);
    let cases: &[Case] = &[
        (400, "ExpiredToken", "the session token has expired"),
        (403, "RequestTimeTooSkewed", "the clock of this machine"),
        (
            403,
            "AccessDenied",
            "no permission for this in the bucket cache",
        ),
        (
            301,
            "PermanentRedirect",
            "is in the region moved, not in eu-test-1",
        ),
        (400, "Strange", "HTTP status 400 Strange: in words"),
    ];
    for (status, code, words) in cases {
        s3.fault(|_| Some(Reply::error(*status, code, "").with("x-amz-bucket-region", "moved")));
        if *status != 301 {
            s3.fault(|_| Some(Reply::error(*status, code, "")));
        }
        refused(&config(&s3, BUCKET, &KEYS), words).await;
    }
}

async fn refused(config: &BucketConfig, words: &str) {
    let check = |what: &str, error: Error| {
        assert!(matches!(error, Error::Refused { .. }), "{what}: {error:?}");
        let line = error.to_line();
        assert!(line.contains(words), "{what}: {line:?} is not {words:?}");
        assert!(!line.contains(SECRET), "{line}");
    };
    let cache = || BucketObjects::open(config.clone()).unwrap();
    check("read", cache().read("a.narinfo", 9).await.unwrap_err());
    check("look", cache().look("a.narinfo").await.unwrap_err());
    check("stream", cache().stream("a.narinfo").await.err().unwrap());
    check(
        "write",
        cache()
            .write("a", Bytes::new(), "x/y", true)
            .await
            .unwrap_err(),
    );
    check("list", cache().list("").next().await.unwrap().unwrap_err());
    let large = body([content(PART + 1)]);
    check(
        "upload",
        cache()
            .upload(upload("nar/x", large, None))
            .await
            .unwrap_err(),
    );
}

/// Those who may read but not list are told "forbidden" for what is absent.
#[tokio::test]
async fn forbidden_is_absent_if_something_can_be_read() {
    let s3 = S3::start().await;
    let reader = |request: &Request| {
        let may = request.method != "GET" && request.method != "HEAD"
            || request.path.ends_with("/nix-cache-info");
        (!may).then(|| Reply::error(403, "AccessDenied", ""))
    };
    let nothing_there = open(&s3);
    s3.fault(|_| Some(Reply::error(403, "AccessDenied", "")));
    assert!(nothing_there.look("a.narinfo").await.is_err());

    s3.fault(reader);
    let told = Arc::new(Warnings::default());
    let mut config = config(&s3, &format!("{BUCKET}/some/where"), &KEYS);
    config.client.observer = told.clone();
    let cache = BucketObjects::open(config).unwrap();
    cache
        .write("nix-cache-info", Bytes::from("StoreDir: /x"), "x/y", false)
        .await
        .unwrap();
    assert_eq!(cache.look("a.narinfo").await.unwrap(), None);
    assert_eq!(cache.read("a.narinfo", 9).await.unwrap(), None);
    assert_eq!(count(&s3, "list-type"), 2, "asked once for each store");
    let told = told.0.lock().unwrap();
    let [text] = &told[..] else {
        panic!("{told:?}");
    };
    assert!(
        text.contains("AccessDenied") && text.contains("may also be"),
        "{text}"
    );
}

/// What people are warned of.
#[derive(Debug, Default)]
struct Warnings(Mutex<Vec<String>>);

impl NetworkObserver for Warnings {
    fn warned(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

/// What stands before a bucket may have no words for it, and know no listings.
#[tokio::test]
async fn forbidden_without_words() {
    let s3 = S3::start().await;
    let info = |request: &Request| request.path.ends_with("/nix-cache-info");
    for (listing, forbidden) in [(403, 403), (501, 403), (403, 401)] {
        s3.fault(move |request| {
            if request.query.contains_key("list-type") {
                Some(Reply::new(listing, ""))
            } else if info(request) {
                Some(Reply::new(200, "StoreDir: /x").with("last-modified", DATE))
            } else {
                Some(Reply::new(forbidden, "<html>"))
            }
        });
        assert_eq!(open(&s3).read("a.narinfo", 9).await.unwrap(), None);
        assert_eq!(open(&s3).look("a.narinfo").await.unwrap(), None);
        s3.fault(move |_| Some(Reply::new(forbidden, "<html>")));
        assert!(open(&s3).read("a.narinfo", 9).await.is_err());
    }
}

#[tokio::test]
async fn a_busy_service_is_waited_for() {
    let s3 = S3::start().await;
    let cache = open(&s3);
    cache
        .write("a", Bytes::from("x"), "x/y", false)
        .await
        .unwrap();
    let left = Arc::new(AtomicUsize::new(2));
    let counter = left.clone();
    s3.fault(move |_| {
        let more = counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        let busy = || Reply::error(503, "SlowDown", "").with("retry-after", "0");
        more.ok().map(|_| busy())
    });
    assert_eq!(text(cache.read("a", 9).await.unwrap()), "x");
    assert_eq!(left.load(Ordering::SeqCst), 0);

    s3.fault(|_| Some(Reply::error(503, "SlowDown", "")));
    let before = s3.state().asked.len();
    for error in [
        cache.read("a", 9).await.unwrap_err(),
        cache
            .write("a", Bytes::new(), "x/y", false)
            .await
            .unwrap_err(),
    ] {
        assert!(matches!(error, Error::Io { .. }), "{error:?}");
        assert!(error.to_line().contains("SlowDown"), "{}", error.to_line());
    }
    assert_eq!(s3.state().asked.len(), before + 10);
}

/// Each request waits for itself: the others go on.
#[tokio::test]
async fn a_service_that_refuses_every_third_request() {
    let s3 = S3::start().await;
    let cache = open(&s3);
    let count = AtomicUsize::new(0);
    s3.fault(move |_| {
        let third = count.fetch_add(1, Ordering::SeqCst) % 3 == 2;
        third.then(|| Reply::error(503, "SlowDown", ""))
    });
    let writes = (0..100).map(|n| {
        let cache = &cache;
        async move {
            let name = format!("a{n}");
            cache.write(&name, Bytes::from("x"), "x/y", false).await
        }
    });
    let written = futures::stream::iter(writes).buffer_unordered(64);
    assert!(written.all(|written| async move { written.is_ok() }).await);
    assert_eq!(s3.state().objects.len(), 100);
}

/// What the service began and could not say is given up at the end of the same push, or by the next.
#[tokio::test]
async fn an_upload_whose_beginning_was_lost_is_given_up() {
    let s3 = S3::start().await;
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), "x").unwrap();
    let (service, lost) = (s3.clone(), AtomicUsize::new(0));
    s3.fault(move |request| {
        let begins = request.method == "POST" && request.query.contains_key("uploads");
        (begins && lost.fetch_add(1, Ordering::SeqCst) == 0).then(Reply::hang_up)
    });
    s3.add_upload("some/where/nar/a", "lost", 0);
    let cache = open(&s3);
    let sent = upload("nar/a", body([content(PART + 1)]), Some(&journal));
    cache.upload(sent).await.unwrap();
    let left = || service.state().uploads.keys().cloned().collect::<Vec<_>>();
    assert_eq!(left(), ["lost"]);
    cache.tidy(&journal).await.unwrap();
    assert!(left().is_empty(), "{:?}", left());
    journal.finish().unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// A gateway that gives no parts of objects, or refuses to.
#[tokio::test]
async fn a_broken_transfer_begins_again_where_there_are_no_parts() {
    for (status, whole_first) in [(200, true), (416, true), (200, false)] {
        let s3 = S3::start().await;
        let cache = open(&s3);
        let whole = content(100_000);
        let (stored, times) = (whole.clone(), AtomicUsize::new(0));
        s3.fault(move |request| {
            let nth = times.fetch_add(1, Ordering::SeqCst);
            let mut reply = Reply::new(200, stored.to_vec());
            if request.headers.contains_key("range") {
                reply.status = status;
            } else if nth == 0 || nth == 2 && !whole_first {
                reply.cut = Some(30_000 + nth * 1000);
            }
            Some(reply.with("etag", "\"a\"").with("last-modified", DATE))
        });
        let stream = cache.stream("nar/a").await.unwrap().unwrap();
        let got = stream.try_collect::<Vec<_>>().await.unwrap().concat();
        assert!(got == whole, "{status}, {}", got.len());
    }
}

/// A service that takes a connection and says nothing, or takes nothing, is given up after the second
/// time.
#[tokio::test]
async fn silence_ends() {
    let s3 = S3::start().await;
    let mut config = config(&s3, BUCKET, &KEYS);
    config.client.stall_timeout = Duration::from_millis(300);
    let cache = BucketObjects::open(config).unwrap();
    s3.fault(|_| Some(Reply::silence()));
    let large = || upload("nar/a", body([content(PART)]), None);
    for error in [
        cache.read("a", 9).await.unwrap_err(),
        cache.stream("a").await.err().unwrap(),
        cache
            .write("a", Bytes::from("x"), "x/y", false)
            .await
            .unwrap_err(),
        cache.upload(large()).await.unwrap_err(),
    ] {
        let Error::Io { source, .. } = &error else {
            panic!("{error:?}");
        };
        assert_eq!(source.kind(), std::io::ErrorKind::TimedOut, "{error:?}");
    }
    assert_eq!(s3.state().asked.len(), 8);
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_stood() {
    let s3 = S3::start().await;
    let cache = open(&s3);
    let whole = content(100_000);
    cache
        .write("nar/a", whole.clone(), "x/y", false)
        .await
        .unwrap();
    let stored = whole.clone();
    s3.fault(move |request| {
        let from = request.headers.get("range").map_or(0, |range| {
            range["bytes=".len()..]
                .split('-')
                .next()
                .unwrap()
                .parse()
                .unwrap()
        });
        // Each time a bit comes.
        (request.method == "GET" && from < 60_000 && !request.headers.contains_key("range"))
            .then(|| {
                let mut reply = Reply::new(200, stored.to_vec());
                reply.cut = Some(30_000);
                reply
            })
            .map(|reply| {
                reply
                    .with("etag", "\"changing\"")
                    .with("last-modified", DATE)
            })
    });
    let error = cache.stream("nar/a").await.unwrap().unwrap();
    let error = error.try_collect::<Vec<_>>().await.unwrap_err().to_line();
    assert!(error.contains("it changed while it was read"), "{error}");

    let first = Arc::new(AtomicUsize::new(0));
    let times = first.clone();
    let object = s3.state().objects["some/where/nar/a"].clone();
    s3.no_fault();
    let etag = etag_of(&s3, &cache).await;
    s3.fault(move |request| {
        let cut = request.method == "GET" && times.fetch_add(1, Ordering::SeqCst) == 0;
        cut.then(|| {
            let mut reply = Reply::new(200, object.content.clone());
            reply.cut = Some(30_000);
            reply.with("etag", &etag).with("last-modified", DATE)
        })
    });
    let stream = cache.stream("nar/a").await.unwrap().unwrap();
    assert_eq!(
        stream.try_collect::<Vec<_>>().await.unwrap().concat(),
        whole
    );
    assert_eq!(first.load(Ordering::SeqCst), 2);
}

/// The tag of the only object, as the service makes it.
async fn etag_of(s3: &S3, cache: &BucketObjects) -> String {
    let _ = cache.look("nar/a").await.unwrap();
    let content = s3.state().objects["some/where/nar/a"].content.clone();
    s3::etag(&content)
}

#[tokio::test]
async fn large_objects_go_in_parts() {
    let s3 = S3::start().await;
    let cache = open(&s3);
    for size in [0, 1, PART, PART + 1, 3 * PART, 3 * PART + 7] {
        let whole = content(size);
        let chunks = (0..size)
            .step_by(70_001)
            .map(|at| whole.slice(at..(at + 70_001).min(size)));
        s3.state().asked.clear();
        cache
            .upload(upload("nar/a", body(chunks), None))
            .await
            .unwrap();
        let stored = s3.state().objects["some/where/nar/a"].clone();
        assert!(stored.content == whole, "{size}");
        assert_eq!(stored.headers["content-type"], "application/x-nix-nar");
        let parts = if size <= PART { 0 } else { size.div_ceil(PART) };
        assert_eq!(count(&s3, "partNumber"), parts, "{size}");
    }
    assert!(s3.state().uploads.is_empty());
}

#[tokio::test]
async fn a_body_that_fails_leaves_nothing() {
    let s3 = S3::start().await;
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), "x").unwrap();
    for journal in [None, Some(&journal)] {
        let fails = Err(Error::invalid("the body is no good"));
        let chunks = [Ok(content(2 * PART)), fails].into_iter();
        let body = futures::stream::iter(chunks.collect::<Vec<_>>()).boxed();
        let failed = open(&s3).upload(upload("nar/a", body, journal)).await;
        assert_eq!(failed.unwrap_err().to_string(), "the body is no good");
        assert_eq!(count(&s3, "POST"), 1 + usize::from(journal.is_some()));
        assert!(s3.state().uploads.is_empty());
        assert!(s3.state().objects.is_empty());
    }
    assert_eq!(journal.open_uploads(), []);
}

#[tokio::test]
async fn an_upload_that_is_dropped_is_given_up() {
    let s3 = S3::start().await;
    let cache = open(&s3);
    let stuck = body([content(PART + 1)])
        .chain(futures::stream::pending())
        .boxed();
    let uploading = cache.upload(upload("nar/a", stuck, None));
    let begun = until(|| !s3.state().uploads.is_empty());
    futures::future::select(uploading, std::pin::pin!(begun)).await;
    until(|| s3.state().uploads.is_empty()).await;
}

/// What S3 says too late: the answer began well.
#[tokio::test]
async fn completing_may_fail_late() {
    let s3 = S3::start().await;
    let cache = open(&s3);
    let times = AtomicUsize::new(0);
    s3.fault(move |request| {
        let completes = request.method == "POST" && request.query.contains_key("uploadId");
        let late = completes && times.fetch_add(1, Ordering::SeqCst) < 2;
        late.then(|| {
            let mut reply = Reply::error(500, "InternalError", "");
            reply.status = 200;
            reply
        })
    });
    cache
        .upload(upload("nar/a", body([content(PART + 1)]), None))
        .await
        .unwrap();
    assert_eq!(
        s3.state().objects["some/where/nar/a"].content.len(),
        PART + 1
    );
}

/// Uploads `parts` parts of `whole`, and is killed.
async fn killed(s3: &S3, journal: Journal, whole: &Bytes, parts: usize) {
    let cache = open(s3);
    let sent = body([whole.slice(..parts * PART + 9)]);
    let stuck = sent.chain(futures::stream::pending()).boxed();
    let uploading = cache.upload(upload("nar/a", stuck, Some(&journal)));
    let arrived = until(|| journal_parts(&journal) == parts);
    futures::future::select(uploading, std::pin::pin!(arrived)).await;
    // A process that another test starts holds the lock of the file, too, until it has become its program.
    let file = std::fs::File::open(journal.path()).unwrap();
    drop(journal);
    until(|| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()).await;
    flock(&file, FlockOperation::Unlock).unwrap();
}

/// Parts that are noted, also of uploads that are under way.
fn journal_parts(journal: &Journal) -> usize {
    let lines = std::fs::read(journal.path()).unwrap();
    let lines = String::from_utf8(lines).unwrap();
    lines.matches("\"event\":\"part\"").count()
}

async fn until(mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait)
        .await
        .expect("in time");
}

#[tokio::test]
async fn a_killed_upload_sends_only_what_is_missing() {
    let s3 = S3::start().await;
    let folder = tempfile::tempdir().unwrap();
    let whole = content(4 * PART + 100);
    killed(&s3, Journal::open(folder.path(), "x").unwrap(), &whole, 3).await;
    assert!(s3.state().objects.is_empty());

    let journal = Journal::open(folder.path(), "x").unwrap();
    s3.state().received = 0;
    let again = upload("nar/a", body([whole.clone()]), Some(&journal));
    open(&s3).upload(again).await.unwrap();
    assert!(s3.state().objects["some/where/nar/a"].content == whole);
    let received = s3.state().received;
    assert!(
        (PART..PART + 5000).contains(&received),
        "{received} bytes sent again"
    );
    assert_eq!(count(&s3, "?uploads="), 1);
    assert!(s3.state().uploads.is_empty());
    journal.finish().unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn other_bytes_under_the_same_name_are_sent() {
    let s3 = S3::start().await;
    let folder = tempfile::tempdir().unwrap();
    killed(
        &s3,
        Journal::open(folder.path(), "x").unwrap(),
        &content(4 * PART),
        3,
    )
    .await;
    let journal = Journal::open(folder.path(), "x").unwrap();
    let other = Bytes::from([&content(PART)[..], &[7; 2 * PART + 5]].concat());
    let again = upload("nar/a", body([other.clone()]), Some(&journal));
    open(&s3).upload(again).await.unwrap();
    assert!(s3.state().objects["some/where/nar/a"].content == other);
    assert!(s3.state().uploads.is_empty());
}

/// S3 and Ceph have different words for it when asked for the parts.
#[tokio::test]
async fn an_upload_that_the_service_forgot_is_begun_again() {
    for code in ["NoSuchUpload", "NoSuchKey"] {
        let s3 = S3::start().await;
        let folder = tempfile::tempdir().unwrap();
        let whole = content(3 * PART);
        killed(&s3, Journal::open(folder.path(), "x").unwrap(), &whole, 2).await;
        s3.state().uploads.clear();
        s3.fault(move |request| {
            let asks = request.method == "GET" && request.query.contains_key("max-parts");
            asks.then(|| Reply::error(404, code, ""))
        });
        let journal = Journal::open(folder.path(), "x").unwrap();
        let again = upload("nar/a", body([whole.clone()]), Some(&journal));
        let sent = open(&s3).upload(again).await;
        assert!(sent.is_ok(), "{code}: {sent:?}");
        assert!(s3.state().objects["some/where/nar/a"].content == whole);
    }
}

/// Uploads that dead processes began go away at the end of a later push, those of the living do
/// not.
#[tokio::test]
async fn what_nobody_goes_on_with_is_given_up() {
    let s3 = S3::start().await;
    let folder = tempfile::tempdir().unwrap();
    let journal = || Journal::open(folder.path(), "x").unwrap();
    let begun_by = |journal: &Journal, name: &str, id: &str| {
        journal.note_intent(name, 1);
        s3.add_upload(&format!("some/where/{name}"), id, 0);
        journal.note_begun(name, id, 1);
    };
    let living = journal();
    begun_by(&living, "nar/b", "of a living process");
    killed(&s3, journal(), &content(3 * PART), 2).await;
    assert_eq!(s3.state().uploads.len(), 2);

    dies_while_it_begins(&s3, journal(), "nar/b").await;
    s3.add_upload("some/where/nar/b", "lost", 0);
    s3.add_upload("some/where/nar/b", "of another machine", 7200);
    s3.add_upload("some/where/nar/bb", "of another name", 0);

    let later = journal();
    begun_by(&later, "nar/b", "of this process");
    let pushed = upload("nar/c", body([content(PART + 1)]), Some(&later));
    open(&s3).upload(pushed).await.unwrap();
    open(&s3).tidy(&later).await.unwrap();
    let left: Vec<_> = s3.state().uploads.keys().cloned().collect();
    let expected = [
        "of a living process",
        "of another machine",
        "of another name",
        "of this process",
    ];
    assert_eq!(left, expected);
    assert_eq!(later.open_uploads(), []);
    assert!(s3.state().objects.contains_key("some/where/nar/c"));
}

/// Also where a push finds that all is there, so that nothing is added.
#[tokio::test]
async fn what_was_left_open_is_given_up_though_nothing_is_added() {
    let s3 = S3::start().await;
    let folder = tempfile::tempdir().unwrap();
    killed(
        &s3,
        Journal::open(folder.path(), "x").unwrap(),
        &content(3 * PART),
        2,
    )
    .await;
    assert_eq!(s3.state().uploads.len(), 1);
    let config = BinaryCacheConfig {
        create: true,
        journal: Some((folder.path().into(), "x".into())),
        ..BinaryCacheConfig::default()
    };
    let cache = BinaryCache::open(Arc::new(open(&s3)), config)
        .await
        .unwrap();
    let source: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let options = CopyOptions::new(SigCheck::Skip);
    let plan = copy::plan(&*source, &cache, &BTreeSet::new(), &options).await;
    let plan = plan.unwrap();
    let report = plan.run(&source, &cache, Arc::new(())).await.unwrap();
    assert_eq!(report.warnings.len(), 0);
    assert!(s3.state().uploads.is_empty());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// A service may still be busy with what a process asked for just before it died.
#[tokio::test]
async fn what_may_still_be_begun_is_looked_for_again() {
    let s3 = S3::start().await;
    let folder = tempfile::tempdir().unwrap();
    let journal = || Journal::open(folder.path(), "x").unwrap();
    dies_while_it_begins(&s3, journal(), "nar/b").await;
    let first = journal();
    open(&s3).tidy(&first).await.unwrap();
    first.finish().unwrap();
    drop(first);
    s3.add_upload("some/where/nar/b", "late", 0);
    let second = journal();
    open(&s3).tidy(&second).await.unwrap();
    assert!(s3.state().uploads.is_empty());
    assert_eq!(second.open_uploads(), []);
}

/// One that a living process has begun just now, and not noted yet, is nobody else's.
#[tokio::test]
async fn an_upload_that_is_being_begun_is_left_alone() {
    let s3 = S3::start().await;
    let folder = tempfile::tempdir().unwrap();
    let journal = || Journal::open(folder.path(), "x").unwrap();
    let living = journal();
    living.note_intent("nar/b", 1);
    dies_while_it_begins(&s3, journal(), "nar/b").await;
    s3.add_upload("some/where/nar/b", "lost", 0);
    s3.add_upload("some/where/nar/b", "living", 0);

    let later = journal();
    open(&s3).tidy(&later).await.unwrap();
    assert_eq!(s3.state().uploads.len(), 2);
    living.note_begun("nar/b", "living", 1);
    open(&s3).tidy(&later).await.unwrap();
    let left: Vec<_> = s3.state().uploads.keys().cloned().collect();
    assert_eq!(left, ["living"]);
    assert_eq!(later.open_uploads(), []);
}

/// Asks for an upload, and is killed before the answer comes.
async fn dies_while_it_begins(s3: &S3, journal: Journal, name: &str) {
    s3.fault(|request| request.query.contains_key("uploads").then(Reply::hang_up));
    let lost = upload(name, body([content(PART + 1)]), Some(&journal));
    assert!(open(s3).upload(lost).await.is_err());
    s3.no_fault();
    assert!(journal.open_uploads().iter().any(|open| open.id.is_none()));
}

#[tokio::test]
async fn without_credentials_nothing_is_signed() {
    let s3 = S3::start().await;
    s3.state().open_to_all = true;
    s3.state()
        .objects
        .insert("a".to_owned(), Default::default());
    let cache = BucketObjects::open(config(&s3, BUCKET, &[])).unwrap();
    assert_eq!(text(cache.read("a", 9).await.unwrap()), "");
    assert_eq!(cache.read("b", 9).await.unwrap(), None);
}

/// A profile whose role is taken with the credentials that a program of another profile prints.
#[tokio::test]
async fn profiles_programs_and_roles() {
    let s3 = S3::start().await;
    s3.state()
        .objects
        .insert("a".to_owned(), Default::default());
    s3.state()
        .keys
        .insert("TEMPORARY".to_owned(), "also secret".to_owned());
    s3.fault(|request| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let sts = request.path == "/" && body.contains("Action=AssumeRole&");
        let as_printed = request
            .headers
            .get("authorization")?
            .contains("Credential=AKEXAMPLE/");
        (sts && as_printed && body.contains("RoleArn=arn%3Ax")).then(|| {
            Reply::new(
                200,
                "<AssumeRoleResponse><Credentials><AccessKeyId>TEMPORARY</AccessKeyId>\
                 <SecretAccessKey>also secret</SecretAccessKey><SessionToken>t</SessionToken>\
                 <Expiration>2999-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResponse>",
            )
        })
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config");
    let printed = format!(r#"{{"Version":1,"AccessKeyId":"{KEY}","SecretAccessKey":"{SECRET}"}}"#);
    let text = format!(
        "[profile role]\nrole_arn = arn:x\nsource_profile = program\n\
         [profile program]\ncredential_process = echo '{printed}'\n\
         [profile sso]\nsso_session = x\n[profile loop]\nrole_arn=x\nsource_profile=back\n\
         [profile back]\nrole_arn=x\nsource_profile=loop\n"
    );
    std::fs::write(&file, text).unwrap();
    let sts = s3.url();
    let read = async |profile: &str| {
        let variables = [
            ("AWS_CONFIG_FILE", file.to_str().unwrap()),
            ("AWS_ENDPOINT_URL_STS", sts.as_str()),
            ("AWS_PROFILE", profile),
        ];
        let cache = BucketObjects::open(config(&s3, BUCKET, &variables)).unwrap();
        cache.read("a", 9).await
    };
    assert!(read("role").await.unwrap().is_some());
    assert!(read("program").await.unwrap().is_some());
    assert_eq!(count(&s3, "POST /?"), 1);
    for (profile, words) in [
        ("sso", "signs in with SSO"),
        ("nobody", "there is no AWS profile nobody"),
        ("loop", "refers to itself"),
    ] {
        let error = read(profile).await.unwrap_err().to_line();
        assert!(error.contains(words), "{error}");
    }
}

/// The host of a container, the service of a machine, and the token service for a web identity.
#[tokio::test]
async fn services_that_give_credentials() {
    let s3 = S3::start().await;
    {
        let mut state = s3.state();
        let secret = "also secret".to_owned();
        state.objects.insert("a".to_owned(), Default::default());
        state.keys.insert("TEMPORARY".to_owned(), secret);
    }
    let given = r#"{"AccessKeyId":"TEMPORARY","SecretAccessKey":"also secret","Token":"t",
        "Expiration":"2999-01-01T00:00:00Z"}"#;
    s3.fault(move |request| {
        let has = |name: &str, value: &str| request.headers.get(name).is_some_and(|v| v == value);
        let body = String::from_utf8_lossy(&request.body);
        let of_machine = |path: &str, role: &str| {
            has("x-aws-ec2-metadata-token", "session")
                && path == format!("/latest/meta-data/iam/security-credentials/{role}")
        };
        Some(match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/open") => Reply::new(200, given),
            ("GET", "/container") if has("authorization", "let me in") => Reply::new(200, given),
            ("PUT", "/latest/api/token") => Reply::new(200, "session\n"),
            ("GET", path) if of_machine(path, "") => Reply::new(200, "role\nother\n"),
            ("GET", path) if of_machine(path, "role") => Reply::new(200, given),
            ("POST", "/")
                if body.starts_with("Action=AssumeRoleWithWebIdentity&")
                    && body.contains("&RoleArn=arn%3Ax&RoleSessionName=me&")
                    && body.ends_with("&WebIdentityToken=let+me+in") =>
            {
                Reply::new(
                    200,
                    "<r:AssumeRoleWithWebIdentityResponse xmlns:r='x'><r:Credentials>\
                     <r:AccessKeyId note='temporary'>TEMPORARY</r:AccessKeyId>\
                     <r:SecretAccessKey>also&#x20;secret</r:SecretAccessKey>\
                     <r:SessionToken>t</r:SessionToken>\
                     <r:Expiration>2999-01-01T00:00:00Z</r:Expiration></r:Credentials>\
                     </r:AssumeRoleWithWebIdentityResponse>",
                )
            }
            _ => return None,
        })
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "let me in\n").unwrap();
    let (file, url) = (file.to_str().unwrap(), s3.url());
    let (open, container) = (format!("{url}/open"), format!("{url}/container"));
    let cases: [&[(&str, &str)]; 5] = [
        &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &open)],
        &[
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "let me in"),
        ],
        &[
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "not this"),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file),
        ],
        &[
            ("AWS_WEB_IDENTITY_TOKEN_FILE", file),
            ("AWS_ROLE_ARN", "arn:x"),
            ("AWS_ROLE_SESSION_NAME", "me"),
            ("AWS_ENDPOINT_URL_STS", &url),
        ],
        &[
            ("AWS_EC2_METADATA_DISABLED", "false"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url),
        ],
    ];
    for variables in cases {
        let cache = BucketObjects::open(config(&s3, BUCKET, variables)).unwrap();
        let read = cache.read("a", 9).await;
        assert!(matches!(read, Ok(Some(_))), "{variables:?}: {read:?}");
    }
}

const KEYS: [(&str, &str); 2] = [
    ("AWS_ACCESS_KEY_ID", KEY),
    ("AWS_SECRET_ACCESS_KEY", SECRET),
];

const PART: usize = 5 << 20;

const DATE: &str = "Mon, 23 Nov 2026 22:11:33 GMT";
