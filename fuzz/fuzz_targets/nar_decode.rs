//! The three ways to decode an archive agree, and the encoder makes the same bytes of the same events.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tk_fuzz::Pieces;
use tk_nar::{Decoder, Encoder, Event, NarError, NarReader, SliceReader};

fuzz_target!(|data: &[u8]| {
    let (events, verdict) = of_slice(data);
    assert_eq!(of_reader(data), (events.clone(), verdict.clone()), "Reader");
    assert_eq!(
        of_chunks(data),
        (events.clone(), verdict.clone()),
        "Decoder"
    );
    if let Ok(length) = verdict {
        assert_eq!(encode(&events), data[..length as usize], "Encoder");
    }
});

/// What was seen, and bytes consumed or the error.
type Outcome = (Vec<Owned>, Result<u64, String>);

#[derive(Debug, Clone, PartialEq)]
enum Owned {
    Directory,
    Entry(Vec<u8>),
    LeaveDirectory,
    Regular(bool, u64, u64),
    Contents(Vec<u8>),
    EndRegular,
    Symlink(Vec<u8>),
    End,
}

fn of_slice(data: &[u8]) -> Outcome {
    let mut events = Vec::new();
    let mut reader = SliceReader::new(data);
    let verdict = loop {
        match reader.next_event() {
            Ok(Some(event)) => keep(&mut events, event),
            Ok(None) => break Ok(reader.offset()),
            Err(error) => break Err(told(error)),
        }
    };
    if verdict.is_ok() {
        assert_eq!(reader.rest(), &data[reader.offset() as usize..]);
    }
    (events, verdict)
}

fn of_reader(data: &[u8]) -> Outcome {
    let mut events = Vec::new();
    let mut reader = NarReader::new(Pieces::of(data));
    let verdict = loop {
        match reader.next_event() {
            Ok(Some(event)) => keep(&mut events, event),
            Ok(None) => break Ok(reader.offset()),
            Err(error) => break Err(told(error)),
        }
    };
    if let Ok(length) = verdict {
        let rest = reader.into_inner().rest();
        assert_eq!(rest, &data[length as usize..], "read behind the archive");
    }
    (events, verdict)
}

fn of_chunks(data: &[u8]) -> Outcome {
    let mut events = Vec::new();
    let mut decoder = Decoder::new();
    let mut pieces = Pieces::of(data);
    while let Some(mut piece) = pieces.next_piece() {
        loop {
            match decoder.feed(piece) {
                Ok(fed) => {
                    piece = &piece[fed.consumed..];
                    let Some(event) = fed.event else { break };
                    keep(&mut events, event);
                }
                Err(error) => return (events, Err(told(error))),
            }
        }
        assert!(piece.is_empty() || decoder.is_done());
    }
    let verdict = decoder.finish().map(|()| decoder.offset());
    (events, verdict.map_err(told))
}

fn keep(events: &mut Vec<Owned>, event: Event<'_>) {
    let event = match event {
        Event::Directory => Owned::Directory,
        Event::Entry { name } => Owned::Entry(name.to_vec()),
        Event::LeaveDirectory => Owned::LeaveDirectory,
        Event::Regular {
            executable,
            size,
            offset,
        } => Owned::Regular(executable, size, offset),
        Event::Contents(piece) => {
            assert!(!piece.is_empty());
            if let Some(Owned::Contents(whole)) = events.last_mut() {
                return whole.extend_from_slice(piece);
            }
            Owned::Contents(piece.to_vec())
        }
        Event::EndRegular => Owned::EndRegular,
        Event::Symlink { target } => Owned::Symlink(target.to_vec()),
        Event::End => Owned::End,
    };
    events.push(event);
}

fn told(error: NarError) -> String {
    format!("{error:?}")
}

fn encode(events: &[Owned]) -> Vec<u8> {
    let mut nar = Encoder::new(Vec::new());
    for event in events {
        match event {
            Owned::Directory => nar.directory(),
            Owned::Entry(name) => nar.entry(name),
            Owned::LeaveDirectory => nar.leave(),
            Owned::Regular(executable, size, _) => nar.regular(*executable, *size),
            Owned::Contents(contents) => nar.contents(contents),
            Owned::Symlink(target) => nar.symlink(target),
            Owned::EndRegular | Owned::End => Ok(()),
        }
        .expect("the encoder takes what the decoder gives");
    }
    nar.finish().expect("the archive is complete")
}
