//! Peers that lie about sizes, talk without end, or nest without end: an error or a cut, after
//! few bytes, and the limits are those that the documentation names.

mod common;

use common::{Pieces, decode, encode, run, words};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};
use tk_daemon::{
    serve::{ExportTrailer, Serve, commands::PathInfos},
    wire::{
        CUT, Decode, FRAME_END, FramedRead, Limits, MAX_FRAME, NarRead, Protocol, WireError,
        WireReader, frames,
    },
    worker::{
        Capabilities, Features, LATEST, Version, WorkerProtocol,
        features::MAX_FEATURES,
        log::{MAX_FIELDS, MAX_SKIPPED_TRACES, MAX_TEXT, MAX_TRACES, Message},
        ops,
    },
};
use tk_path::{DerivedPath, SingleDerivedPath, StoreDir, StorePath};
use tk_store::conformance::file_nar;
use tk_store::log::LogEvent;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

fn worker() -> WorkerProtocol {
    let latest = Capabilities::latest(Features::all());
    WorkerProtocol::new(StoreDir::default(), LATEST).with(latest)
}

/// The same words for ever; counts the bytes that were asked for.
struct Endless {
    words: Vec<u8>,
    repeat: usize,
    at: usize,
    read: Arc<AtomicU64>,
}

impl Endless {
    /// `first`, and then `repeat` again and again.
    fn new(first: &[u64], repeat: &[u64]) -> (Self, Arc<AtomicU64>) {
        let read = Arc::new(AtomicU64::new(0));
        let endless = Endless {
            words: words(&[first, repeat].concat()),
            repeat: first.len() * 8,
            at: 0,
            read: read.clone(),
        };
        (endless, read)
    }
}

impl AsyncRead for Endless {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while out.remaining() > 0 {
            out.put_slice(&self.words[self.at..=self.at]);
            self.at += 1;
            if self.at == self.words.len() {
                self.at = self.repeat;
            }
            self.read.fetch_add(1, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

/// Decodes from an endless peer; the error, and how many bytes it took.
fn endless<P: Protocol, T: Decode<P> + Debug>(
    protocol: P,
    first: &[u64],
    repeat: &[u64],
) -> (WireError, u64) {
    let (source, read) = Endless::new(first, repeat);
    let mut reader = WireReader::new(source, protocol);
    let error = run(reader.message::<T>()).expect_err("a limit");
    (error, read.load(Ordering::Relaxed))
}

fn refuses<T: Decode<WorkerProtocol> + Debug>(first: &[u64]) {
    let (error, read) = endless::<_, T>(worker(), first, &[0]);
    assert!(matches!(error, WireError::TooLarge { .. }), "{error}");
    assert!(read <= 128 << 10, "{read} bytes read: {error}");
}

#[test]
fn counts_and_lengths() {
    for claim in [1 << 60, u64::MAX, 1 << 32, 1 << 27] {
        refuses::<String>(&[claim]);
        refuses::<StorePath>(&[claim]);
        refuses::<BTreeSet<StorePath>>(&[claim]);
        refuses::<Vec<bool>>(&[claim]);
        refuses::<Vec<()>>(&[claim]);
        refuses::<BTreeMap<String, String>>(&[claim]);
        refuses::<Features>(&[claim]);
        refuses::<ops::RootList>(&[claim]);
        refuses::<ops::QueryMissing>(&[claim]);
        refuses::<ops::QueryPathInfos>(&[claim]);
        refuses::<ops::SetOptions>(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, claim]);
        refuses::<ops::CollectGarbage>(&[3, 0, claim]);
        refuses::<ops::AddTextToStore>(&[0, claim]);
        refuses::<ops::FoundRealisation>(&[1, claim]);
        // Messages: next, write, an activity's text and fields, a result's fields.
        refuses::<Message>(&[0x6f6c_6d67, claim]);
        refuses::<Message>(&[0x6461_7416, claim]);
        refuses::<Message>(&[0x5354_5254, 1, 1, 1, claim]);
        refuses::<Message>(&[0x5354_5254, 1, 1, 1, 0, claim]);
        refuses::<Message>(&[0x5253_4c54, 1, 1, claim]);
        refuses::<Message>(&[0x5253_4c54, 1, 1, 1, 1, claim]);
        // An error: `Error`, level, empty name, empty message, no position, traces.
        let error = u64::from_le_bytes(*b"Error\0\0\0");
        refuses::<Message>(&[0x6378_7470, claim]);
        refuses::<Message>(&[0x6378_7470, 5, error, 0, 0, claim]);
        refuses::<Message>(&[0x6378_7470, 5, error, 0, 0, 0, 0, claim]);
        refuses::<Message>(&[0x6378_7470, 5, error, 0, 0, 0, 0, 1, 0, claim]);
    }
}

#[test]
fn empty_items_cost_memory_too() {
    // So many empty strings fit in no list: refused by the count alone.
    let (error, read) = endless::<_, Vec<String>>(worker(), &[1 << 20], &[0]);
    assert!(matches!(error, WireError::TooLarge { .. }), "{error}");
    assert!(read <= 128 << 10, "{read}");
    // Lists of lists: each passes on its own, together they do not.
    let nested = endless::<_, Vec<Vec<u64>>>(worker(), &[1000], &[1000]);
    assert!(
        matches!(nested.0, WireError::TooLarge { .. }),
        "{}",
        nested.0
    );
    assert!(nested.1 <= 8 << 20, "{}", nested.1);
    // A list that nobody counts.
    let path = *b"/nix/store/g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo\0";
    let mut item = vec![47];
    item.extend(
        path.chunks(8)
            .map(|c| u64::from_le_bytes(c.try_into().expect("8"))),
    );
    item.extend([0; 7]);
    let serve = Serve::new(StoreDir::default(), 8);
    let (error, read) = endless::<_, PathInfos>(serve, &[], &item);
    assert!(matches!(error, WireError::TooLarge { .. }), "{error}");
    assert!(read <= 32 << 20, "{read}");
}

#[test]
fn limits_are_the_callers() {
    run(async {
        let bytes = words(&[2, 0, 0]);
        let mut limits = Limits::default();
        limits.string = 16;
        limits.message = 200;
        let mut reader = WireReader::new(&bytes[..], worker()).with_limits(limits);
        let refused = reader.message::<Vec<String>>().await;
        assert!(matches!(refused, Err(WireError::TooLarge { .. })));
        // The same with more for this message only.
        let mut reader = WireReader::new(&bytes[..], worker()).with_limits(limits);
        reader.begin_message_of(1000);
        let list: Vec<String> = reader.value().await.expect("enough");
        assert_eq!(list, ["", ""]);
    });
    let limits = Limits::default();
    assert_eq!((limits.string, limits.message), (16 << 20, 32 << 20));
}

#[test]
fn long_lines_are_cut() {
    for extra in [1, 7, 8, 200_000] {
        let line = "x".repeat(MAX_TEXT + extra);
        let message = Message::Log(LogEvent::message(Default::default(), line));
        let mut bytes = encode(&worker(), &message).expect("a message");
        bytes.extend(encode(&worker(), &Message::Last).expect("a message"));
        let mut reader = WireReader::new(&bytes[..], worker());
        run(async {
            let Message::Log(LogEvent::Message { text, .. }) = reader.message().await.expect("cut")
            else {
                panic!("a message");
            };
            assert_eq!(text.len(), MAX_TEXT + CUT.len());
            assert!(text.ends_with(CUT));
            let next: Message = reader.message().await.expect("the next message");
            assert_eq!(next, Message::Last);
        });
    }
}

#[test]
fn traces_are_counted() {
    let error = |count: u64| {
        let mut bytes = words(&[0x6378_7470, 5]);
        bytes.extend_from_slice(b"Error\0\0\0");
        bytes.extend(words(&[0, 0, 0, 0, count]));
        bytes.extend(words(&[0, 0]).repeat(count.min(20_000) as usize));
        decode::<_, Message>(&worker(), &bytes, false)
    };
    let traces = |count| match error(count) {
        Ok(Message::Error(error)) => error.traces,
        other => panic!("{other:?}"),
    };
    assert_eq!(traces(MAX_TRACES).len() as u64, MAX_TRACES);
    let more = traces(MAX_TRACES + 12);
    assert_eq!(more.len() as u64, MAX_TRACES + 1);
    assert_eq!(more.last().map(String::as_str), Some("[12 more]"));
    assert_eq!(traces(MAX_SKIPPED_TRACES).len() as u64, MAX_TRACES + 1);
    assert!(matches!(
        error(MAX_SKIPPED_TRACES + 1),
        Err(WireError::TooLarge { .. })
    ));
}

#[test]
fn fields_and_features_are_counted() {
    let result = |count: u64| {
        let mut bytes = words(&[0x5253_4c54, 1, 1, count]);
        bytes.extend(words(&[0, 7]).repeat(count as usize));
        decode::<_, Message>(&worker(), &bytes, false)
    };
    assert!(result(MAX_FIELDS).is_ok());
    assert!(matches!(
        result(MAX_FIELDS + 1),
        Err(WireError::TooLarge { .. })
    ));
    let features = |count: u64| {
        let mut bytes = words(&[count]);
        bytes.extend(words(&[0]).repeat(count as usize));
        decode::<_, Features>(&worker(), &bytes, false)
    };
    assert!(features(MAX_FEATURES).is_ok());
    assert!(matches!(
        features(MAX_FEATURES + 1),
        Err(WireError::TooLarge { .. })
    ));
}

#[test]
fn nesting() {
    let path = StorePath::parse("g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo.drv").expect("a path");
    refuses::<SingleDerivedPath>(&[1; 100]);
    let (error, read) = endless::<_, SingleDerivedPath>(worker(), &[], &[1]);
    assert!(matches!(error, WireError::TooLarge { .. }), "{error}");
    assert!(read <= 128 << 10);
    let text = format!("/nix/store/{path}{}", "!a".repeat(20_000));
    let bytes = encode(&worker(), &text).expect("a string");
    let error = decode::<_, DerivedPath>(&worker(), &bytes, false).expect_err("too deep");
    assert!(matches!(error, WireError::Malformed { .. }), "{error}");
    // JSON within JSON.
    let text = "[".repeat(500_000);
    let bytes = [
        words(&[1]),
        encode(&Serve::new(StoreDir::default(), 8), &text).expect("a string"),
    ];
    let mut plain = worker();
    plain.features = Features::none();
    let found = decode::<_, ops::FoundRealisation>(&plain, &bytes.concat(), false);
    assert!(matches!(found, Err(WireError::Malformed { .. })));
}

#[test]
fn padding_must_be_zero() {
    let good = encode(&worker(), &"abc".to_owned()).expect("a string");
    assert_eq!(good.len(), 16);
    for at in 11..16 {
        let mut bad = good.clone();
        bad[at] = 1;
        for slow in [false, true] {
            let error = decode::<_, String>(&worker(), &bad, slow).expect_err("padding");
            assert!(error.to_string().contains("padding"), "{error}");
        }
        let bytes = decode::<_, bytes::Bytes>(&worker(), &bad, false);
        assert!(matches!(bytes, Err(WireError::Malformed { .. })));
    }
    // Longer than the buffer.
    let long = "x".repeat(100_001);
    let mut bytes = encode(&worker(), &long).expect("a string");
    assert_eq!(
        decode::<_, String>(&worker(), &bytes, false).expect("a string"),
        long
    );
    *bytes.last_mut().expect("padding") = 1;
    assert!(decode::<_, String>(&worker(), &bytes, false).is_err());
}

#[test]
fn numbers_and_texts_that_do_not_fit() {
    let bad = |error: WireError| assert!(matches!(error, WireError::Malformed { .. }), "{error}");
    bad(decode::<_, tk_store::BuildMode>(&worker(), &words(&[3]), false).expect_err("mode"));
    bad(decode::<_, Message>(&worker(), &words(&[7]), false).expect_err("message"));
    bad(decode::<_, ops::CollectGarbage>(&worker(), &words(&[4]), false).expect_err("action"));
    let status = words(&[99, 0, 0, 0, 0, 0, 0, 0, 0]);
    type Result = tk_narinfo::build_result::BuildResult;
    bad(decode::<_, Result>(&worker(), &status, false).expect_err("status"));
    let time = words(&[0, 0, 0, 0, 1 << 63, 0, 0, 0, 0]);
    bad(decode::<_, Result>(&worker(), &time, false).expect_err("time"));
    let often = words(&[0, 0, 1 << 32, 0, 0, 0, 0, 0, 0]);
    bad(decode::<_, Result>(&worker(), &often, false).expect_err("times built"));
    let mut text = words(&[2]);
    text.extend_from_slice(b"\xff\xfe\0\0\0\0\0\0");
    bad(decode::<_, String>(&worker(), &text, false).expect_err("UTF-8"));
    let trailer = words(&[1]);
    bad(decode::<_, ExportTrailer>(&worker(), &trailer, false).expect_err("a mark"));
    // What people read is shown as well as can be.
    let mut next = words(&[0x6f6c_6d67]);
    next.extend_from_slice(&text);
    assert!(decode::<_, Message>(&worker(), &next, false).is_ok());
}

#[test]
fn framed_data() {
    let data: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
    let mut bytes = Vec::new();
    for (header, chunk) in data
        .chunks(70_001)
        .map(bytes::Bytes::copy_from_slice)
        .flat_map(frames)
    {
        bytes.extend(header);
        bytes.extend_from_slice(&chunk);
    }
    bytes.extend(FRAME_END);
    bytes.extend(words(&[42]));
    for slow in [false, true] {
        run(async {
            // By chunks, and what follows is untouched.
            let mut reader = WireReader::new(Pieces::new(&bytes[..], slow), worker());
            let mut framed = FramedRead::new(&mut reader);
            let mut read = Vec::new();
            while let Some(chunk) = framed.next_chunk().await.expect("data") {
                assert!(!chunk.is_empty());
                read.extend_from_slice(&chunk);
            }
            assert!(read == data && framed.is_ended());
            assert!(framed.next_chunk().await.expect("still the end").is_none());
            assert_eq!(reader.u64().await.expect("what follows"), 42);
            // As a stream.
            let mut reader = WireReader::new(Pieces::new(&bytes[..], slow), worker());
            let mut framed = FramedRead::new(&mut reader);
            let mut read = Vec::new();
            framed.read_to_end(&mut read).await.expect("data");
            assert!(read == data && framed.is_ended());
            assert_eq!(reader.u64().await.expect("what follows"), 42);
            // Some of it, and then away with the rest.
            let mut reader = Box::new(WireReader::new(Pieces::new(&bytes[..], slow), worker()));
            let mut framed = FramedRead::new(&mut *reader);
            let first = framed.next_chunk().await.expect("data").expect("some");
            let rest = framed.drain().await.expect("data");
            assert_eq!(first.len() as u64 + rest, data.len() as u64);
            assert_eq!(reader.u64().await.expect("what follows"), 42);
        });
    }
    for end in [0, 3, 8, 9, 70_009, 70_010, bytes.len() - 17] {
        run(async {
            let mut reader = WireReader::new(&bytes[..end], worker());
            let error = FramedRead::new(&mut reader).drain().await.expect_err("cut");
            assert!(error.is_end(), "{end}: {error}");
            let mut reader = WireReader::new(&bytes[..end], worker());
            let mut read = Vec::new();
            let cut = FramedRead::new(&mut reader).read_to_end(&mut read).await;
            assert_eq!(cut.expect_err("cut").kind(), io::ErrorKind::UnexpectedEof);
        });
    }
}

#[test]
fn framed_lengths() {
    for claim in [1 << 32, u64::MAX] {
        run(async {
            let bytes = words(&[claim, 0]);
            let mut reader = WireReader::new(&bytes[..], worker());
            let error = FramedRead::new(&mut reader).next_chunk().await;
            assert!(matches!(error, Err(WireError::Malformed { .. })));
            let mut reader = WireReader::new(&bytes[..], worker());
            let mut out = [0; 8];
            let error = FramedRead::new(&mut reader).read(&mut out).await;
            assert_eq!(
                error.expect_err("refused").kind(),
                io::ErrorKind::InvalidData
            );
        });
    }
    // No data is no chunk, which would be the end; much is several.
    assert_eq!(frames(bytes::Bytes::new()).count(), 0);
    let much = bytes::Bytes::from(vec![0; 2 * MAX_FRAME + 1]);
    let lengths: Vec<_> = frames(much).map(|(_, chunk)| chunk.len()).collect();
    assert_eq!(lengths, [MAX_FRAME, MAX_FRAME, 1]);
}

#[test]
fn raw_nars() {
    for contents in [&b""[..], b"hello", &[7; 100_000]] {
        let nar = file_nar(contents);
        let stream = [&nar[..], &words(&[42]), &nar].concat();
        for slow in [false, true] {
            run(async {
                let mut reader = WireReader::new(Pieces::new(&stream[..], slow), worker());
                let mut raw = NarRead::new(&mut reader);
                let mut read = Vec::new();
                while let Some(chunk) = raw.next_chunk().await.expect("a NAR") {
                    read.extend_from_slice(&chunk);
                }
                assert!(read == nar && raw.is_ended());
                assert_eq!(raw.size(), nar.len() as u64);
                assert_eq!(reader.u64().await.expect("what follows"), 42);
                NarRead::new(&mut reader).drain().await.expect("a NAR");
                assert!(reader.at_end().await.expect("the end"));
            });
        }
        for end in (0..nar.len()).filter(|end| *end < 300 || end % 997 == 0) {
            let mut reader = WireReader::new(&nar[..end], worker());
            let error = run(NarRead::new(&mut reader).drain()).expect_err("cut");
            assert!(error.is_end(), "{end}: {error}");
        }
    }
    let mut bad = file_nar(b"hello").to_vec();
    bad[8] ^= 1;
    let mut reader = WireReader::new(&bad[..], worker());
    let error = run(NarRead::new(&mut reader).drain()).expect_err("no NAR");
    assert!(matches!(error, WireError::Malformed { .. }), "{error}");
}

/// The items of AddMultipleToStore: a reader within the framed stream of another.
#[test]
fn items_within_frames() {
    let worker = worker();
    let item = ops::AddMultipleToStore::item_protocol(&worker);
    assert_eq!(item, worker, "the feature is there");
    let plain = WorkerProtocol::new(StoreDir::default(), LATEST);
    let item = ops::AddMultipleToStore::item_protocol(&plain);
    assert_eq!(
        (item.version, item.features.is_empty()),
        (Version::minor(16), true)
    );

    let nar = file_nar(b"hello");
    let path = StorePath::parse("g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo").expect("a path");
    let hash = tk_path::NarHash::digest(&nar);
    let info = tk_narinfo::PathInfo::new(path, hash, nar.len() as u64);
    let one = [encode(&item, &info).expect("an info"), nar.to_vec()].concat();
    let data = [words(&[2]), one.clone(), one].concat();
    let mut bytes = Vec::new();
    for (header, chunk) in data
        .chunks(13)
        .map(bytes::Bytes::copy_from_slice)
        .flat_map(frames)
    {
        bytes.extend(header);
        bytes.extend_from_slice(&chunk);
    }
    bytes.extend(FRAME_END);
    bytes.extend(words(&[42]));
    run(async {
        let mut outer = WireReader::new(Pieces::new(&bytes[..], true), plain);
        let mut inner = WireReader::new(FramedRead::new(&mut outer), item);
        for _ in 0..inner.u64().await.expect("a count") {
            let read: tk_narinfo::PathInfo = inner.message().await.expect("an info");
            assert_eq!(read, info);
            NarRead::new(&mut inner).drain().await.expect("a NAR");
        }
        assert!(inner.at_end().await.expect("the end of the data"));
        let (framed, rest) = inner.into_parts();
        assert!(framed.is_ended() && rest.is_empty());
        assert_eq!(outer.u64().await.expect("what follows"), 42);
    });
}
