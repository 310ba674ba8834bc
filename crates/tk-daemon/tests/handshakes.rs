//! How connections begin, between our own ends and against peers that say odd things.

mod common;

use common::{Pieces, encode, run, words};
use std::sync::Mutex;
use tk_daemon::{
    serve::{self, Serve},
    wire::{WireError, WireReader},
    worker::{
        Capabilities, Features, LATEST, Trust, Version, WorkerProtocol,
        handshake::{HandshakeError, ServerHello, client, server},
        log::Message,
    },
};
use tk_path::StoreDir;
use tk_store::log::{Level, LogEvent};
use tokio::io::{AsyncWriteExt, duplex, split};

const CLIENT: u64 = 0x6e69_7863;
const SERVER: u64 = 0x6478_696f;

fn can(minor: u8, features: &[&str]) -> Capabilities {
    Capabilities {
        version: Version::minor(minor),
        features: features.iter().copied().collect(),
    }
}

fn blank() -> WorkerProtocol {
    WorkerProtocol::new(StoreDir::default(), LATEST)
}

fn hello() -> ServerHello {
    ServerHello {
        nix_version: Some("2.34.0".to_owned()),
        trust: Some(Trust::NotTrusted),
    }
}

/// Both ends at once; what each then speaks, and what the client learnt.
fn both(
    ours: &Capabilities,
    theirs: &Capabilities,
    end: Message,
) -> Result<(WorkerProtocol, WorkerProtocol, ServerHello), HandshakeError> {
    run(async {
        let (a, b) = duplex(16);
        let (from_server, mut to_server) = split(a);
        let (from_client, mut to_client) = split(b);
        let mut at_client = WireReader::new(from_server, blank());
        let mut at_server = WireReader::new(from_client, blank());
        let serve = async {
            server(&mut at_server, &mut to_client, theirs, &hello()).await?;
            let last = encode(at_server.protocol(), &end).expect("a message");
            to_client.write_all(&last).await.expect("a client");
            Ok::<_, HandshakeError>(())
        };
        let (learnt, served) =
            tokio::join!(client(&mut at_client, &mut to_server, ours, &()), serve);
        served?;
        Ok((
            at_client.protocol().clone(),
            at_server.protocol().clone(),
            learnt?,
        ))
    })
}

#[test]
fn the_lower_version_and_common_features() {
    let ours = can(123, &["bar", "aap", "mies", "xyzzy"]);
    let theirs = can(200, &["foo", "bar", "xyzzy"]);
    let (client, server, learnt) = both(&ours, &theirs, Message::Last).expect("a connection");
    assert_eq!(client, server);
    assert_eq!(client.version, Version::minor(123));
    assert_eq!(client.features, Features::from_iter(["bar", "xyzzy"]));
    assert_eq!(learnt, hello());
    for (a, b) in [
        (18, 38),
        (38, 18),
        (21, 21),
        (34, 38),
        (38, 37),
        (33, 38),
        (38, 38),
    ] {
        let features = ["x"];
        let (client, server, learnt) =
            both(&can(a, &features), &can(b, &features), Message::Last).expect("a connection");
        let minor = a.min(b);
        assert_eq!(client, server);
        assert_eq!(client.version, Version::minor(minor));
        assert_eq!(client.has("x"), minor >= 38);
        assert_eq!(
            learnt.nix_version,
            hello().nix_version.filter(|_| minor >= 33)
        );
        assert_eq!(learnt.trust, hello().trust.filter(|_| minor >= 35));
    }
}

#[test]
fn versions_are_partly_ordered() {
    let (small, large) = (can(37, &["a"]), can(38, &["a", "b"]));
    use std::cmp::Ordering::{Equal, Greater, Less};
    assert_eq!(small.partial_cmp(&large), Some(Less));
    assert_eq!(large.partial_cmp(&small), Some(Greater));
    assert_eq!(small.partial_cmp(&small.clone()), Some(Equal));
    let other = can(38, &["c"]);
    assert_eq!(small.partial_cmp(&other), None);
    assert_eq!(small.common(&large), small);
    assert_eq!(large.common(&other), can(38, &[]));
}

#[test]
fn a_server_that_refuses() {
    let refused = both(
        &can(38, &[]),
        &can(38, &[]),
        Message::error("no store here"),
    );
    match refused {
        Err(HandshakeError::Refused(error)) => assert_eq!(error.to_string(), "no store here"),
        other => panic!("{other:?}"),
    }
}

/// A client against recorded words of a server.
fn against(server: &[u8]) -> Result<(ServerHello, Vec<LogEvent>), HandshakeError> {
    let heard = Mutex::new(Vec::new());
    let log = |event: LogEvent| heard.lock().expect("alone").push(event);
    let mut reader = WireReader::new(Pieces::new(server, true), blank());
    let mut sent = Vec::new();
    let offered = Capabilities::latest(Features::all());
    let learnt = run(client(&mut reader, &mut sent, &offered, &log))?;
    assert_eq!(sent[..16], words(&[CLIENT, LATEST.word()]));
    Ok((learnt, heard.into_inner().expect("alone")))
}

#[test]
fn what_the_server_says_first() {
    // 1.34, as Nix 2.8: version, a message, last.
    let mut old = words(&[SERVER, 1 << 8 | 34, 3]);
    old.extend_from_slice(b"2.8\0\0\0\0\0");
    old.extend(words(&[0x6f6c_6d67, 3]));
    old.extend_from_slice(b"hi\n\0\0\0\0\0");
    old.extend(words(&[0x616c_7473]));
    let (learnt, heard) = against(&old).expect("a connection");
    assert_eq!(learnt.nix_version.as_deref(), Some("2.8"));
    assert_eq!(learnt.trust, None);
    assert_eq!(heard, [LogEvent::message(Level::Notice, "hi")]);
    for end in 0..old.len() {
        match against(&old[..end]) {
            Err(HandshakeError::Wire(error)) => assert!(error.is_end(), "{end}: {error}"),
            other => panic!("{end}: {other:?}"),
        }
    }
    // Data is not expected here.
    old.truncate(old.len() - 8);
    old.extend(words(&[0x6461_7461, 5]));
    assert!(matches!(
        against(&old),
        Err(HandshakeError::Wire(WireError::Malformed { .. }))
    ));
}

#[test]
fn other_worlds() {
    let refused = |server: &[u64]| against(&words(server)).expect_err("refused");
    // An HTTP server, and our own words coming back.
    for magic in [u64::from_le_bytes(*b"HTTP/1.1"), CLIENT, 0] {
        assert!(
            matches!(refused(&[magic, 1 << 8 | 38]), HandshakeError::Magic { number, .. } if number == magic)
        );
    }
    for version in [1 << 8 | 17, 1 << 8, 38, 2 << 8 | 38, 0] {
        let error = refused(&[SERVER, version]);
        assert!(matches!(error, HandshakeError::Version { .. }), "{error}");
    }
    assert!(matches!(
        refused(&[SERVER, 1 << 32]),
        HandshakeError::Wire(_)
    ));
}

/// A server against a client that asks for a processor, which some did.
#[test]
fn affinity() {
    let client = words(&[CLIENT, 1 << 8 | 34, 1, 77, 0, 42]);
    run(async {
        let mut reader = WireReader::new(Pieces::new(client, true), blank());
        let mut sent = Vec::new();
        let offered = Capabilities::latest(Features::all());
        server(&mut reader, &mut sent, &offered, &hello())
            .await
            .expect("a connection");
        assert_eq!(reader.u64().await.expect("the first request"), 42);
        assert_eq!(sent[..16], words(&[SERVER, LATEST.word()]));
        assert_eq!(sent[24..30], *b"2.34.0");
        assert_eq!(sent.len(), 32, "no trust at 1.34");
    });
}

#[test]
fn serve_versions() {
    for (a, b) in [(8, 7), (7, 8), (5, 8), (8, 8)] {
        run(async {
            let (left, right) = duplex(16);
            let (from_server, mut to_server) = split(left);
            let (from_client, mut to_client) = split(right);
            let mut at_client = WireReader::new(from_server, Serve::new(StoreDir::default(), 0));
            let mut at_server = WireReader::new(from_client, Serve::new(StoreDir::default(), 0));
            let (asked, served) = tokio::join!(
                serve::handshake::client(&mut at_client, &mut to_server, a),
                serve::handshake::server(&mut at_server, &mut to_client, b),
            );
            asked.and(served).expect("a connection");
            assert_eq!(at_client.protocol(), at_server.protocol());
            assert_eq!(at_client.protocol().minor, a.min(b));
        });
    }
    for bytes in [
        words(&[0x5452_eecb, 1 << 8 | 8]),
        words(&[0x5452_eecb, 2 << 8 | 4]),
        words(&[7, 0]),
    ] {
        let mut reader = WireReader::new(&bytes[..], Serve::new(StoreDir::default(), 0));
        let refused = run(serve::handshake::client(&mut reader, &mut Vec::new(), 8));
        assert!(refused.is_err());
    }
}

/// The futures run on any thread.
#[test]
fn futures_are_send() {
    fn is_send(_: impl Send) {}
    let bytes: &'static [u8] = &[];
    let mut reader = WireReader::new(bytes, blank());
    let offered = can(38, &[]);
    is_send(client(&mut reader, &mut Vec::new(), &offered, &()));
    is_send(server(&mut reader, &mut Vec::new(), &offered, &hello()));
    is_send(reader.message::<Message>());
    let mut reader = WireReader::new(bytes, Serve::new(StoreDir::default(), 8));
    is_send(serve::handshake::client(&mut reader, &mut Vec::new(), 8));
    is_send(serve::handshake::server(&mut reader, &mut Vec::new(), 8));
}
