//! All pumps give the same events, the same verdict at the same byte, and take the same bytes.
#![cfg(all(feature = "tokio", feature = "stream"))]

mod common;

use std::io::{Cursor, Read};

use bytes::Bytes;
use common::{Short, Tree, random, sample, tree};
use futures::executor::block_on;
use proptest::prelude::*;
use tk_nar::{
    AsyncReader, Decoder, Event, ListingBuilder, NarError, NarErrorKind, NarReader, SliceReader,
    StreamReader, Validator,
};

/// What a pump made of an input, with the pieces of contents put together.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    events: Vec<String>,
    /// Bytes taken, or the error.
    verdict: Result<u64, String>,
}

#[derive(Default)]
struct Log {
    events: Vec<String>,
    contents: Vec<u8>,
}

impl Log {
    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Contents(piece) => {
                assert!(!piece.is_empty());
                self.contents.extend_from_slice(piece);
            }
            event => {
                let contents = std::mem::take(&mut self.contents);
                self.events
                    .push(format!("{} {event:?}", contents.escape_ascii()));
            }
        }
    }

    fn end(mut self, verdict: Result<u64, NarError>) -> Outcome {
        // Contents that came before an error count too.
        self.events.push(self.contents.escape_ascii().to_string());
        Outcome {
            events: self.events,
            verdict: verdict.map_err(|error| error.to_string()),
        }
    }
}

fn by_slice(nar: &[u8]) -> Outcome {
    let mut reader = SliceReader::new(nar);
    let mut log = Log::default();
    let verdict = loop {
        match reader.next_event() {
            Ok(Some(event)) => log.take(event),
            Ok(None) => break Ok(reader.offset()),
            Err(error) => break Err(error),
        }
    };
    if let Ok(end) = verdict {
        assert_eq!(reader.rest(), &nar[end as usize..]);
    }
    log.end(verdict)
}

fn by_feeding(nar: &[u8], mut cut: impl FnMut() -> usize) -> Outcome {
    let mut decoder = Decoder::new();
    let mut log = Log::default();
    let mut at = 0;
    let verdict = 'all: loop {
        let mut piece = &nar[at..nar.len().min(at + cut())];
        if piece.is_empty() {
            break decoder.finish().map(|()| decoder.offset());
        }
        loop {
            let fed = match decoder.feed(piece) {
                Ok(fed) => fed,
                Err(error) => break 'all Err(error),
            };
            at += fed.consumed;
            piece = &piece[fed.consumed..];
            match fed.event {
                Some(event) => log.take(event),
                None => break,
            }
        }
        if decoder.is_done() {
            break Ok(decoder.offset());
        }
    };
    log.end(verdict)
}

fn by_reader(nar: &[u8], seed: u64) -> Outcome {
    let mut reader = NarReader::new(Short { inner: nar, seed });
    let mut log = Log::default();
    let verdict = loop {
        match reader.next_event() {
            Ok(Some(event)) => log.take(event),
            Ok(None) => break Ok(reader.offset()),
            Err(error) => break Err(error),
        }
    };
    if let Ok(end) = verdict {
        assert_eq!(
            reader.into_inner().inner,
            &nar[end as usize..],
            "nothing behind the archive was read"
        );
    }
    log.end(verdict)
}

fn by_async_reader(nar: &[u8]) -> Outcome {
    block_on(async {
        let mut reader = AsyncReader::new(nar);
        let mut log = Log::default();
        let verdict = loop {
            match reader.next_event().await {
                Ok(Some(event)) => log.take(event),
                Ok(None) => break Ok(reader.offset()),
                Err(error) => break Err(error),
            }
        };
        if let Ok(end) = verdict {
            assert_eq!(reader.into_inner(), &nar[end as usize..]);
        }
        log.end(verdict)
    })
}

fn by_stream(nar: &[u8], mut seed: u64) -> Outcome {
    let mut chunks = Vec::new();
    let mut rest = Bytes::copy_from_slice(nar);
    while !rest.is_empty() {
        let size = rest.len().min(random(&mut seed) as usize % 40);
        chunks.push(Ok::<_, std::io::Error>(rest.split_to(size)));
    }
    block_on(async {
        let mut reader = StreamReader::new(futures::stream::iter(chunks));
        let mut log = Log::default();
        let verdict = loop {
            match reader.next_event().await {
                Ok(Some(event)) => log.take(event),
                Ok(None) => break Ok(reader.offset()),
                Err(error) => break Err(error),
            }
        };
        log.end(verdict)
    })
}

fn agree(nar: &[u8], mut seed: u64) -> Outcome {
    let expected = by_slice(nar);
    assert_eq!(by_feeding(nar, || 1), expected, "one byte at a time");
    let cut = seed;
    assert_eq!(
        by_feeding(nar, || 1 + random(&mut seed) as usize % 30),
        expected,
        "random pieces, seed {cut}"
    );
    assert_eq!(by_reader(nar, seed), expected, "reader");
    assert_eq!(by_async_reader(nar), expected, "async reader");
    assert_eq!(by_stream(nar, seed), expected, "stream");
    expected
}

#[test]
fn on_the_sample() {
    let nar = sample().nar();
    let outcome = agree(&nar, 1);
    assert_eq!(outcome.verdict, Ok(nar.len() as u64));
}

#[test]
fn what_follows_is_left_alone() {
    let mut nar = Tree::file(b"x").nar();
    let length = nar.len();
    nar.extend_from_slice(b"\xffsomething else");
    assert_eq!(agree(&nar, 2).verdict, Ok(length as u64));
}

#[test]
fn truncated_at_every_byte() {
    let tree = Tree::directory([
        (
            "a",
            Tree::File {
                executable: true,
                contents: b"eleven byte".into(),
            },
        ),
        ("b", Tree::directory([("c", Tree::Link(b"target".into()))])),
        ("d", Tree::file(b"")),
    ]);
    let nar = tree.nar();
    for end in 0..nar.len() {
        let outcome = agree(&nar[..end], end as u64);
        let expected = format!("bad archive at byte {end}: unexpected end of the archive");
        assert_eq!(outcome.verdict, Err(expected));
    }
}

#[test]
fn every_byte_damaged() {
    let tree = Tree::directory([
        (
            "a",
            Tree::File {
                executable: true,
                contents: b"x".into(),
            },
        ),
        ("b", Tree::Link(b"t".into())),
    ]);
    let nar = tree.nar();
    for at in 0..nar.len() {
        for mask in [1, 0x20, 0x80, 0xff] {
            let mut damaged = nar.clone();
            damaged[at] ^= mask;
            let outcome = agree(&damaged, at as u64);
            if let Err(error) = outcome.verdict {
                let offset: usize = error
                    .trim_start_matches("bad archive at byte ")
                    .split(':')
                    .next()
                    .unwrap_or("")
                    .parse()
                    .expect(&error);
                // A damaged length can show later, but nothing before the damaged word is blamed.
                assert!(at < offset + 32, "{at}: {error}");
            }
        }
    }
}

#[test]
fn push_forms_refuse_what_follows() {
    let mut nar = Tree::file(b"x").nar();
    let length = nar.len() as u64;
    let mut whole = Validator::new();
    whole.feed(&nar).expect("it is an archive");
    assert_eq!(whole.finish().expect("it is complete"), length);
    nar.push(0);
    let error = Validator::new().feed(&nar).expect_err("a byte too many");
    assert!(matches!(error, NarError { offset, kind: NarErrorKind::Trailing } if offset == length));
    assert!(ListingBuilder::new().feed(&nar).is_err());
    let mut half = Validator::new();
    half.feed(&nar[..50]).expect("so far");
    assert!(half.finish().expect_err("half").is_unexpected_end());
}

#[test]
fn a_failing_source_is_not_the_archives_fault() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("cable pulled"))
        }
    }
    let nar = Tree::file(b"x").nar();
    let mut reader = NarReader::new(Cursor::new(&nar[..40]).chain(Broken));
    let error = loop {
        match reader.next_event() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the archive is not complete"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.offset, 40);
    assert!(matches!(error.kind, NarErrorKind::Read(_)));
}

#[test]
fn contents_can_be_skipped() {
    let nar = Tree::file(&[7; 1003]).nar();
    let mut decoder = Decoder::new();
    let mut at = 0;
    while decoder.contents_left().is_none() {
        at += decoder.feed(&nar[at..]).expect("valid").consumed;
    }
    assert_eq!(decoder.skip_contents(1000), 1000);
    assert_eq!(decoder.skip_contents(u64::MAX), 3);
    at += 1003;
    while !decoder.is_done() {
        at += decoder.feed(&nar[at..]).expect("valid").consumed;
    }
    assert_eq!((at, decoder.offset()), (nar.len(), nar.len() as u64));
}

proptest! {
    #[test]
    fn on_any_tree(tree in tree(), seed: u64) {
        let nar = tree.nar();
        prop_assert_eq!(agree(&nar, seed).verdict, Ok(nar.len() as u64));
    }

    #[test]
    fn on_damaged_archives(tree in tree(), seed: u64, places in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut: prop::sample::Index) {
        let mut nar = tree.nar();
        for (place, byte) in places {
            let place = place.index(nar.len());
            nar[place] = byte;
        }
        nar.truncate(nar.len() - cut.index(nar.len()) / 8);
        agree(&nar, seed);
    }
}
