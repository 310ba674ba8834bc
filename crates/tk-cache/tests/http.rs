//! Caches on HTTP servers that are in trouble, or mean ill.
#![cfg(feature = "http")]

mod faulty;
#[path = "http/observer.rs"]
mod observer;

use bytes::Bytes;
use faulty::{After, Exchange, Faulty, Seen};
use flate2::{Compression, write::GzEncoder};
use futures::{
    StreamExt, TryStreamExt,
    future::{Either, select},
    stream,
};
use std::{
    io::Write,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tk_cache::{
    http::{Auth, HttpConfig, HttpObjects, Netrc, Proxies},
    objects::{ObjectMeta, Objects, Upload},
    observer::NetworkObserver,
};
use tk_store::{Error, Result};
use tokio::sync::Notify;

#[tokio::test]
async fn what_is_there_and_what_is_not() {
    let server = Faulty::new(|e| match e.seen.target.as_str() {
        "/c/x.narinfo" => e.ok("text"),
        "/c/gone" => e.answer("410 Gone", &[], "gone"),
        _ => e.answer("404 Not Found", &["Content-Type: text/html"], "<html>"),
    });
    let cache = open(&format!("{}/c//?x=1#y", server.url()));
    assert_eq!(cache.to_string(), format!("{}/c", server.url()));
    assert_eq!(read(&cache, "x.narinfo").await.unwrap().unwrap(), "text");
    assert_eq!(read(&cache, "gone").await.unwrap(), None);
    assert_eq!(read(&cache, "none").await.unwrap(), None);
    assert_eq!(
        cache.look("x.narinfo").await.unwrap(),
        Some(ObjectMeta { size: Some(4) })
    );
    assert_eq!(cache.look("none").await.unwrap(), None);
    assert!(bounded(cache.stream("none")).await.unwrap().is_none());
    let seen = server.wait_for(6);
    assert!(
        seen.iter().all(|s| s.connection == 0),
        "a connection is used again: {seen:?}"
    );
    assert!(
        seen[0]
            .header("user-agent")
            .unwrap()
            .starts_with("tk-store/")
    );
    assert!(
        cache
            .list("")
            .next()
            .await
            .unwrap()
            .is_err_and(|e| unsupported(&e))
    );
}

#[tokio::test]
async fn names_are_paths() {
    let server = Faulty::new(|e| e.ok(""));
    read(&open(&server.url()), "log/a?b#c%d e").await.unwrap();
    assert_eq!(server.wait_for(1)[0].target, "/log/a%3Fb%23c%25d%20e");
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let server = Faulty::new(|e| {
        // Whatever tells whether the cache can be read is as forbidden as all else.
        let target = e.seen.target.replace("nix-cache-info", "403");
        let status = format!("{} Whatever", target.trim_start_matches('/'));
        e.read_body();
        e.answer(&status, &["Content-Type: text/plain"], "says\x07 why\nmore")
    });
    let cache = open(&server.url());
    for (name, words) in [
        (
            "401",
            "it wants a login, or does not take the one it was sent",
        ),
        ("403", "does not allow to read this"),
        ("407", "the proxy wants a login"),
        ("418", "418"),
    ] {
        let error = read(&cache, name).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
        says(&error, &[words, "says why", &server.url()]);
        let error = bounded(cache.stream(name)).await.err().unwrap();
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
        let error = bounded(cache.look(name)).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    }
    for (name, words) in [
        ("401", "login"),
        ("403", "does not allow to write there"),
        ("413", "larger than the server allows"),
        ("507", "no space left"),
    ] {
        let error = write(&cache, name, "x", false).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
        says(&error, &[words]);
    }
    for name in ["405", "501"] {
        let error = write(&cache, name, "x", false).await.unwrap_err();
        assert!(unsupported(&error), "{error:?}");
        says(&error, &["does not take uploads"]);
    }
    // Once it was asked whether the cache can be read at all.
    assert_eq!(server.wait_for(19).len(), 19, "none is tried again");
}

/// As buckets answer to those who may not list them, themselves or behind a CDN.
#[tokio::test]
async fn forbidden_is_absent_where_the_cache_can_be_read() {
    for status in ["401 Unauthorized", "403 Forbidden"] {
        let server = Faulty::new(move |e| match e.seen.target.as_str() {
            "/nix-cache-info" => e.ok("StoreDir: /nix/store"),
            _ => e.answer(status, &[], ""),
        });
        for read_before in [true, false] {
            let told = Arc::new(Warnings::default());
            let mut config = config(&server.url());
            config.client.observer = told.clone();
            let cache = HttpObjects::open(config).unwrap();
            if read_before {
                read(&cache, "nix-cache-info").await.unwrap().unwrap();
            }
            assert_eq!(read(&cache, "x.narinfo").await.unwrap(), None);
            assert_eq!(cache.look("x.narinfo").await.unwrap(), None);
            assert!(cache.stream("nar/x").await.unwrap().is_none());
            let told = told.0.lock().unwrap().clone();
            let [text] = &told[..] else {
                panic!("{told:?}");
            };
            assert!(
                text.contains(status) && text.contains("may also be"),
                "{text}"
            );
            assert!(write(&cache, "x", "y", false).await.is_err());
        }
        let asked = |s: &&Seen| s.target == "/nix-cache-info";
        assert_eq!(
            server.seen().iter().filter(asked).count(),
            2,
            "once for each cache"
        );
    }
}

/// Then it is us whom it refuses, and nothing is known.
#[tokio::test]
async fn forbidden_everywhere_is_an_error() {
    for info in ["403 Forbidden", "404 Not Found"] {
        let server = Faulty::new(move |e| match e.seen.target.as_str() {
            "/nix-cache-info" => e.answer(info, &[], ""),
            _ => e.answer("403 Forbidden", &[], ""),
        });
        let cache = open(&server.url());
        for _ in 0..2 {
            let error = read(&cache, "x.narinfo").await.unwrap_err();
            assert!(matches!(error, Error::Refused { .. }), "{error:?}");
            assert!(cache.look("x.narinfo").await.is_err());
            assert!(cache.stream("nar/x").await.is_err());
        }
        if info.starts_with("403") {
            assert!(read(&cache, "nix-cache-info").await.is_err());
        }
    }
    // What another server forbids says nothing of this one.
    let other = Faulty::new(|e| e.answer("403 Forbidden", &[], ""));
    let server = Faulty::new(|e| e.ok(""));
    let elsewhere = open(&server.url())
        .stream(&format!("{}/nar", other.url()))
        .await;
    assert!(elsewhere.is_err());
}

#[tokio::test]
async fn what_may_pass_is_tried_again() {
    type Fault = fn(&mut Exchange<'_>) -> After;
    let faults: [Fault; 9] = [
        |_| After::Close,
        |_| After::Reset,
        |e| partial(e, "HTTP/1.1 200 OK\r\nContent-Le", After::Close),
        |e| {
            partial(
                e,
                "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nte",
                After::Close,
            )
        },
        |e| {
            partial(
                e,
                "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nte",
                After::Reset,
            )
        },
        |e| e.answer("500 Oops", &[], ""),
        |e| e.answer("502 Bad Gateway", &[], "<html>"),
        |e| e.answer("503 Busy", &["Retry-After: 0"], ""),
        |e| {
            e.answer(
                "429 Too Many",
                &["Retry-After: Wed, 21 Oct 2015 07:28:00 GMT"],
                "",
            )
        },
    ];
    for (nth, fault) in faults.into_iter().enumerate() {
        let server = Faulty::new(move |e| if e.nth < 2 { fault(e) } else { e.ok("text") });
        let read = read(&open(&server.url()), "x").await;
        assert_eq!(read.unwrap().unwrap(), "text", "fault {nth}");
        assert_eq!(server.wait_for(3).len(), 3, "fault {nth}");

        let server = Faulty::new(fault);
        let error = self::read(&open(&server.url()), "x").await.unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "fault {nth}: {error:?}");
        says(&error, &[&format!("reading {}/x", server.url())]);
        // A server that has too much to do is asked for longer.
        let attempts = if nth < 7 { 4 } else { 7 };
        assert_eq!(server.wait_for(attempts).len(), attempts, "fault {nth}");
    }
}

#[tokio::test]
async fn a_wait_that_never_ends_is_capped() {
    let server = Faulty::new(|e| e.answer("429 Too Many", &["Retry-After: 99999999"], ""));
    let error = read(&open(&server.url()), "x").await.unwrap_err();
    says(&error, &["429"]);
}

/// One request waits as long as the server asks; the others go on.
#[tokio::test]
async fn nobody_else_waits() {
    let server = Faulty::new(|e| match e.seen.target.as_str() {
        "/busy" => e.answer("503 Busy", &["Retry-After: 3600"], ""),
        _ => e.ok("text"),
    });
    let mut config = config(&server.url());
    config.client.retry.max_delay = Duration::from_secs(3600);
    let cache = HttpObjects::open(config).unwrap();
    let busy = cache.read("busy", 9);
    let others = async {
        while server.seen().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for n in 0..50 {
            assert_eq!(
                read(&cache, &format!("x{n}")).await.unwrap().unwrap(),
                "text"
            );
        }
    };
    match select(std::pin::pin!(busy), std::pin::pin!(others)).await {
        Either::Left(_) => panic!("it waits for an hour"),
        Either::Right(_) => {}
    }
}

/// A server that takes a connection and says nothing, and one that takes nothing, are given up after
/// the second time, whatever is asked of them.
#[tokio::test]
async fn silence_ends() {
    for answered in [false, true] {
        let server = Faulty::new(move |e| {
            if answered {
                e.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1");
            }
            e.silence()
        });
        let mut config = config(&server.url());
        config.client.stall_timeout = Duration::from_millis(300);
        let cache = HttpObjects::open(config).unwrap();
        assert!(timed_out(&read(&cache, "x").await.unwrap_err()));
        assert_eq!(server.begun(), 2);
        let streamed = async { collect(cache.stream("x").await?.unwrap()).await };
        assert!(timed_out(&bounded(streamed).await.unwrap_err()));
        // On a slow machine the answer may have begun too late, once.
        assert!(server.begun() <= 5, "{}", server.begun());
        if !answered {
            let before = server.begun();
            assert!(timed_out(
                &write(&cache, "x", "y", false).await.unwrap_err()
            ));
            assert!(timed_out(
                &upload(&cache, "x", &[7; 1 << 20]).await.unwrap_err()
            ));
            assert_eq!(server.begun(), before + 4);
        }
    }
}

#[tokio::test]
async fn where_there_is_no_server() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let error = read(&open(&format!("http://127.0.0.1:{port}")), "x")
        .await
        .unwrap_err();
    says(&error, &["no connection", "refused"]);
    let error = read(&open("http://no-such-host.invalid"), "x")
        .await
        .unwrap_err();
    says(&error, &["no connection"]);
    let away = format!("Location: http://127.0.0.1:{port}/y?token");
    let server = Faulty::new(move |e| e.answer("302 Found", &[&away], ""));
    let error = read(&open(&server.url()), "x").await.unwrap_err();
    says(
        &error,
        &[&format!(
            "redirects to http://127.0.0.1:{port}/y: no connection"
        )],
    );
    // Whoever answers speaks no TLS.
    let server = Faulty::new(|e| e.ok(""));
    let url = server.url().replace("http", "https");
    let error = read(&open(&url), "x").await.unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
}

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_is_no_failure() {
    let server = Faulty::new(|e| {
        e.ok("text");
        After::Close
    });
    let mut config = config(&server.url());
    config.client.retry.attempts = 2;
    let cache = HttpObjects::open(config).unwrap();
    for _ in 0..20 {
        assert_eq!(read(&cache, "x").await.unwrap().unwrap(), "text");
    }
}

#[tokio::test]
async fn what_never_ends_is_bounded() {
    let pause = Duration::from_millis(20);
    let server = Faulty::new(move |e| match e.seen.target.as_str() {
        "/head" => e.drip(b"H", pause),
        "/headers" => {
            e.send("HTTP/1.1 200 OK\r\n");
            e.drip(b"X: y\r\n", pause)
        }
        "/body" => {
            e.send("HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n");
            e.drip(b"x", pause)
        }
        "/silent" => e.drip(b"", Duration::from_millis(100)),
        _ => {
            e.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            e.drip(
                format!("1000\r\n{}\r\n", "x".repeat(0x1000)).as_bytes(),
                Duration::ZERO,
            )
        }
    });
    let mut config = config(&server.url());
    config.client.stall_timeout = Duration::from_millis(200);
    config.client.retry.attempts = 2;
    let cache = HttpObjects::open(config).unwrap();
    for name in ["head", "headers", "body"] {
        let error = read(&cache, name).await.unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{name}: {error:?}");
        assert!(timed_out(&error), "{name}: {error:?}");
        let stream = bounded(cache.stream(name)).await;
        let error = match stream {
            Ok(stream) => bounded(collect(stream.unwrap())).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(timed_out(&error), "{name}: {error:?}");
    }
    let error = bounded(cache.read("endless", 100_000)).await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
    says(&error, &["larger than 100000 bytes"]);
}

#[tokio::test]
async fn redirects() {
    let other = Faulty::new(|e| e.ok("other"));
    let elsewhere = format!("Location: {}/elsewhere", other.url());
    let server = Faulty::new(move |e| match e.seen.target.as_str() {
        "/there" => e.ok("there"),
        "/relative" => e.answer("302 Found", &["Location: there"], "see there"),
        "/elsewhere" => e.answer("307 Temporary", &[&elsewhere], ""),
        "/file" => e.answer("302 Found", &["Location: file:///etc/passwd"], ""),
        "/none" => e.answer("302 Found", &[], ""),
        _ => e.answer("301 Moved", &["Location: /loop"], ""),
    });
    let mut config = config(&server.url());
    config.client.credentials.auth = Auth::Bearer("s3cret".to_owned());
    let cache = HttpObjects::open(config).unwrap();
    assert_eq!(read(&cache, "relative").await.unwrap().unwrap(), "there");
    assert_eq!(read(&cache, "elsewhere").await.unwrap().unwrap(), "other");
    let stream = bounded(cache.stream("elsewhere")).await.unwrap().unwrap();
    assert_eq!(collect(stream).await.unwrap(), b"other");
    let stream = bounded(cache.stream(&other.url())).await.unwrap().unwrap();
    assert_eq!(collect(stream).await.unwrap(), b"other");
    for (name, words) in [("loop", "redirects"), ("file", "no http"), ("none", "302")] {
        says(&read(&cache, name).await.unwrap_err(), &[words]);
    }
    for seen in server.seen() {
        assert_eq!(seen.header("authorization"), Some("Bearer s3cret"));
    }
    let leaked = |seen: &Seen| seen.header("authorization").is_some();
    assert!(
        !other.wait_for(3).iter().any(leaked),
        "the login went elsewhere"
    );
}

#[tokio::test]
async fn logins() {
    let server = Faulty::new(|e| match e.seen.target.as_str() {
        "/away" => {
            let port = e
                .seen
                .header("host")
                .unwrap()
                .rsplit(':')
                .next()
                .unwrap()
                .to_owned();
            let location = format!("Location: http://u:p@localhost:{port}/x");
            e.answer("302 Found", &[&location], "")
        }
        _ => e.ok(""),
    });
    let mut with_netrc = config(&server.url());
    let netrc = Netrc::parse("machine 127.0.0.1 login me password it default login a password b");
    with_netrc.client.credentials.netrc = Arc::new(netrc);
    read(&HttpObjects::open(with_netrc.clone()).unwrap(), "x")
        .await
        .unwrap();
    with_netrc.url.set_host(Some("localhost")).unwrap();
    read(&HttpObjects::open(with_netrc.clone()).unwrap(), "x")
        .await
        .unwrap();
    let alone = open_with(
        &server,
        "//later@",
        "machine 127.0.0.1 login me password it login later",
    );
    read(&alone, "x").await.unwrap();
    let alone = open_with(
        &server,
        "//nobody@",
        "machine 127.0.0.1 login me password it",
    );
    read(&alone, "x").await.unwrap();
    let url = server.url().replace("//", "//me%40x:s3cret@");
    let cache = open(&url);
    read(&cache, "away").await.unwrap();
    let seen = server.wait_for(6);
    let sent = |at: usize| seen[at].header("authorization");
    assert_eq!(sent(0), Some("Basic bWU6aXQ="));
    assert_eq!(sent(1), Some("Basic YTpi"));
    assert_eq!(
        sent(2),
        Some("Basic bGF0ZXI6"),
        "its user's entry, without password"
    );
    assert_eq!(sent(3), Some("Basic bm9ib2R5Og=="));
    assert_eq!(sent(4), Some("Basic bWVAeDpzM2NyZXQ="));
    assert_eq!(sent(5), Some("Basic dTpw"), "what the new URL itself says");

    let mut hidden = config(&url);
    hidden.client.credentials.auth = Auth::Basic {
        user: "me".to_owned(),
        password: "s3cret".to_owned(),
    };
    hidden.client.proxies.http = Some("http://me:s3cret@proxy.invalid".to_owned());
    let shown = format!("{hidden:?} {cache:?} {cache} {:?}", cache.client());
    assert!(!shown.contains("s3cret"), "{shown}");
    let error = read(&HttpObjects::open(hidden).unwrap(), "x")
        .await
        .unwrap_err();
    assert!(
        !format!("{error:?} {}", error.to_line()).contains("s3cret"),
        "{error:?}"
    );
    let error = bounded(cache.stream("ftp://a:s3cret@b/c?s3cret"))
        .await
        .err()
        .unwrap();
    assert!(
        !format!("{error:?} {}", error.to_line()).contains("s3cret"),
        "{error:?}"
    );
}

#[tokio::test]
async fn proxies() {
    let proxy = Faulty::new(|e| e.ok("by proxy"));
    let server = Faulty::new(|e| e.ok("directly"));
    let ask = async |proxies: Proxies, url: &str| {
        let mut config = config(url);
        config.client.proxies = proxies;
        read(&HttpObjects::open(config).unwrap(), "x")
            .await
            .unwrap()
            .unwrap()
    };
    let by = Proxies {
        http: Some(format!("127.0.0.1:{}", proxy.port())),
        no_proxy: Some("localhost, .example.org".to_owned()),
        ..Proxies::default()
    };
    assert_eq!(ask(by.clone(), "http://cache.invalid").await, "by proxy");
    assert_eq!(proxy.wait_for(1)[0].target, "http://cache.invalid/x");
    let local = format!("http://localhost:{}", server.port());
    assert_eq!(ask(by.clone(), &local).await, "directly");
    let all = Proxies {
        http: None,
        all: by.http,
        ..by.no_proxy.as_ref().map(|_| Proxies::default()).unwrap()
    };
    assert_eq!(ask(all, "http://cache.invalid").await, "by proxy");
}

#[tokio::test]
async fn content_encodings_of_metadata() {
    let bomb = gzip(&vec![b' '; 10 << 20]);
    let server = Faulty::new(move |e| match e.seen.target.as_str() {
        "/packed" => e.answer("200 OK", &["Content-Encoding: gzip"], gzip(b"text")),
        "/twice" => e.answer(
            "200 OK",
            &["Content-Encoding: gzip, x-gzip"],
            gzip(&gzip(b"text")),
        ),
        "/bomb" => e.answer("200 OK", &["Content-Encoding: gzip"], &bomb),
        "/cut" => e.answer("200 OK", &["Content-Encoding: gzip"], &gzip(b"text")[..12]),
        "/unknown" => e.answer("200 OK", &["Content-Encoding: rot13"], "grkg"),
        "/deep" => e.answer("200 OK", &["Content-Encoding: gzip,gzip,gzip,gzip"], ""),
        _ => e.answer("200 OK", &["Content-Encoding: identity"], "text"),
    });
    let cache = open(&server.url());
    for name in ["packed", "twice", "plain"] {
        assert_eq!(read(&cache, name).await.unwrap().unwrap(), "text", "{name}");
    }
    for (name, words) in [
        ("bomb", "larger than 65536 bytes"),
        ("cut", "Content-Encoding gzip"),
        ("unknown", "Content-Encoding"),
        ("deep", "layers"),
    ] {
        let error = read(&cache, name).await.unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
        says(&error, &[words]);
    }
    assert!(
        server.wait_for(1)[0]
            .header("accept-encoding")
            .unwrap()
            .contains("gzip")
    );
    assert_eq!(
        cache.look("packed").await.unwrap(),
        Some(ObjectMeta { size: None })
    );
}

#[tokio::test]
async fn a_nar_that_is_packed_for_the_way() {
    let content = noise(300_000);
    let packed = gzip(&content);
    let server = Faulty::new(move |e| match e.seen.target.as_str() {
        "/whole" => e.answer(
            "200 OK",
            &["Content-Encoding: gzip", "ETag: \"a\""],
            &packed,
        ),
        target => {
            let half = packed.len() / 2;
            let tag = if target == "/strong" {
                "ETag: \"a\""
            } else {
                "ETag: W/\"a\""
            };
            let mut headers = vec!["Content-Encoding: gzip", tag];
            let range = format!(
                "Content-Range: bytes {half}-{}/{}",
                packed.len() - 1,
                packed.len()
            );
            if e.seen.header("range").is_some() {
                headers.push(&range);
                return e.answer("206 Partial", &headers, &packed[half..]);
            }
            let length = format!("Content-Length: {}", packed.len());
            headers.push(&length);
            e.answer("200 OK", &headers, &packed[..half]);
            After::Close
        }
    });
    let cache = open(&server.url());
    for name in ["whole", "strong"] {
        let stream = bounded(cache.stream(name)).await.unwrap().unwrap();
        assert!(bounded(collect(stream)).await.unwrap() == content, "{name}");
    }
    let stream = bounded(cache.stream("weak")).await.unwrap().unwrap();
    assert!(
        bounded(collect(stream)).await.is_err(),
        "what is packed anew each time cannot be resumed"
    );
    let seen = server.wait_for(4);
    assert_eq!(seen.len(), 4);
    assert_eq!(seen[0].header("accept-encoding"), None);
}

#[tokio::test]
async fn urls_of_nars() {
    let server = Faulty::new(|e| e.ok(e.seen.target.clone()));
    let cache = open(&format!("{}/c", server.url()));
    for (url, target) in [
        ("nar/x.nar.xz", "/c/nar/x.nar.xz"),
        ("nar/x.nar?hash=y", "/c/nar/x.nar?hash=y"),
        ("?hash=y", "/c/?hash=y"),
        ("/nar/x", "/nar/x"),
        ("../d/x", "/d/x"),
        (&format!("//127.0.0.1:{}/e", server.port()), "/e"),
        (&format!("{}/f?g", server.url()), "/f?g"),
    ] {
        let stream = bounded(cache.stream(url)).await.unwrap().unwrap();
        assert_eq!(collect(stream).await.unwrap(), target.as_bytes(), "{url}");
    }
    for url in ["file:///etc/passwd", "http://", "data:,x"] {
        let error = bounded(cache.stream(url)).await.err().unwrap();
        assert!(matches!(error, Error::Malformed { .. }), "{url}: {error:?}");
    }
}

/// A server that breaks each transfer after `step` bytes.
fn breaking(content: Vec<u8>, step: usize, headers: &'static [&'static str]) -> Faulty {
    Faulty::new(move |e| {
        let start = e.seen.header("range").map_or(0, |r| {
            r.trim_start_matches("bytes=")
                .trim_end_matches('-')
                .parse()
                .unwrap()
        });
        let rest = &content[start..];
        let length = format!("Content-Length: {}", rest.len());
        let range = format!(
            "Content-Range: bytes {start}-{}/{}",
            content.len() - 1,
            content.len()
        );
        let mut lines = headers.to_vec();
        lines.push(&length);
        let status = match start {
            0 => "200 OK",
            _ => {
                lines.push(&range);
                "206 Partial Content"
            }
        };
        e.answer(status, &lines, &rest[..step.min(rest.len())]);
        if rest.len() > step {
            After::Close
        } else {
            After::Keep
        }
    })
}

#[tokio::test]
async fn broken_transfers_go_on() {
    let content = noise(1_000_000);
    for (headers, if_range) in [
        (&["ETag: \"a\"", "Last-Modified: x"][..], Some("\"a\"")),
        (&["ETag: W/\"a\"", "Last-Modified: x"], Some("x")),
        (&[], None),
    ] {
        let server = breaking(content.clone(), 100_000, headers);
        let cache = open(&server.url());
        let stream = bounded(cache.stream("nar")).await.unwrap().unwrap();
        assert!(bounded(collect(stream)).await.unwrap() == content);
        let seen = server.wait_for(10);
        assert_eq!(seen.len(), 10);
        assert_eq!(seen[1].header("range"), Some("bytes=100000-"));
        assert_eq!(seen[9].header("range"), Some("bytes=900000-"));
        assert_eq!(seen[1].header("if-range"), if_range);
    }
}

#[tokio::test]
async fn transfers_without_progress_end() {
    for step in [0, 1] {
        let server = breaking(noise(1000), step, &["ETag: \"a\""]);
        let cache = open(&server.url());
        let stream = bounded(cache.stream("nar")).await.unwrap().unwrap();
        let error = bounded(collect(stream)).await.unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error:?}");
        assert!(server.seen().len() < 10, "{} attempts", server.seen().len());
    }
}

#[tokio::test]
async fn what_does_not_fit_together_is_no_transfer() {
    type Second = fn(&mut Exchange<'_>) -> After;
    let ok: [Second; 8] = [
        |e| {
            e.answer(
                "206 P",
                &["ETag: \"a\"", "Content-Range: bytes 4-7/8"],
                "5678",
            )
        },
        |e| {
            e.answer(
                "206 P",
                &["ETag: \"a\"", "Content-Range: bytes 4-7/*"],
                "5678",
            )
        },
        |e| e.answer("200 OK", &["ETag: \"a\""], "12345678"),
        // Servers that know no parts, or have their own idea of them.
        |e| e.answer("200 OK", &[], "12345678"),
        |e| e.answer("200 OK", &["Content-Range: bytes 4-7/8"], "5678"),
        |e| match e.nth {
            1 => e.answer("416 Range", &[], ""),
            _ => e.answer("200 OK", &["ETag: \"a\""], "12345678"),
        },
        |e| match e.seen.header("range") {
            Some(_) => e.answer("416 Range", &["Content-Range: bytes */8"], ""),
            None if e.nth < 4 => {
                e.answer("200 OK", &["ETag: \"a\"", "Content-Length: 8"], "123456");
                After::Close
            }
            None => e.ok("12345678"),
        },
        |e| match e.nth {
            1 => e.answer(
                "206 P",
                &["ETag: \"a\"", "Content-Range: bytes 4-5/8"],
                "56",
            ),
            _ => e.answer(
                "206 P",
                &["ETag: \"a\"", "Content-Range: bytes 6-7/8"],
                "78",
            ),
        },
    ];
    let bad: [(Second, &str); 9] = [
        (
            |e| {
                e.answer(
                    "206 P",
                    &["ETag: \"b\"", "Content-Range: bytes 4-7/8"],
                    "5678",
                )
            },
            "changed",
        ),
        (
            |e| e.answer("206 P", &["Content-Range: bytes 4-8/9"], "56789"),
            "changed",
        ),
        (
            |e| e.answer("206 P", &["Content-Range: bytes 3-7/8"], "45678"),
            "from byte 4 on",
        ),
        (
            |e| e.answer("206 P", &["Content-Range: bytes 5-7/8"], "678"),
            "from byte 4 on",
        ),
        (|e| e.answer("206 P", &[], "5678"), "without saying which"),
        (
            |e| e.answer("206 P", &["Content-Range: bytes 4-5/8"], "5678"),
            "",
        ),
        (
            |e| e.answer("200 OK", &["ETag: \"b\""], "abcdefgh"),
            "changed",
        ),
        (|e| e.answer("200 OK", &[], "123456789"), "changed"),
        (|e| e.answer("404 Not Found", &[], ""), "404"),
    ];
    let first = |e: &mut Exchange<'_>| {
        e.answer("200 OK", &["ETag: \"a\"", "Content-Length: 8"], "1234");
        After::Close
    };
    for (nth, second) in ok.into_iter().enumerate() {
        let server = Faulty::new(move |e| if e.nth == 0 { first(e) } else { second(e) });
        let stream = bounded(open(&server.url()).stream("nar"))
            .await
            .unwrap()
            .unwrap();
        let got = bounded(collect(stream)).await;
        assert_eq!(got.unwrap(), b"12345678", "answer {nth}");
    }
    for (nth, (second, words)) in bad.into_iter().enumerate() {
        let server = Faulty::new(move |e| if e.nth == 0 { first(e) } else { second(e) });
        let stream = bounded(open(&server.url()).stream("nar"))
            .await
            .unwrap()
            .unwrap();
        let error = bounded(collect(stream)).await;
        says(&error.expect_err(&format!("answer {nth}")), &[words]);
    }
}

/// It is sent again from the start; that it is the same is seen by its hash.
#[tokio::test]
async fn a_transfer_that_nothing_identifies_begins_again() {
    let start = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n1234\r\n";
    for (second, expected) in [
        ("5\r\n12345\r\n0\r\n\r\n", Some("12345")),
        ("2\r\n12\r\n0\r\n\r\n", None),
    ] {
        let server = Faulty::new(move |e| {
            assert_eq!(e.seen.header("range"), None);
            match e.nth {
                0 => partial(e, start, After::Close),
                _ => {
                    e.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                    partial(e, second, After::Keep)
                }
            }
        });
        let stream = bounded(open(&server.url()).stream("nar")).await;
        let got = bounded(collect(stream.unwrap().unwrap())).await;
        assert_eq!(got.ok().as_deref(), expected.map(str::as_bytes));
        assert_eq!(server.wait_for(2).len(), 2);
    }
    // One that breaks each time gets nowhere.
    let server = Faulty::new(move |e| partial(e, start, After::Close));
    let stream = bounded(open(&server.url()).stream("nar")).await;
    let error = bounded(collect(stream.unwrap().unwrap()))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    assert!(server.seen().len() < 10, "{} attempts", server.seen().len());
}

#[tokio::test]
async fn writing() {
    let server = Faulty::new(|e| {
        let whole = e.read_body();
        match (e.seen.header("if-none-match"), e.nth) {
            (_, 0) => After::Close,
            (Some("*"), _) => e.answer("412 Precondition Failed", &[], ""),
            _ if whole => e.answer("201 Created", &[], ""),
            _ => After::Close,
        }
    });
    let cache = open(&server.url());
    assert!(write(&cache, "x", "content", false).await.unwrap());
    assert!(!write(&cache, "x", "content", true).await.unwrap());
    let large = Bytes::from(noise(500_000));
    let written = cache.write("y", large.clone(), "a/b", false);
    assert!(bounded(written).await.unwrap());
    bounded(cache.remove("x")).await.unwrap();
    let seen = server.wait_for(5);
    assert_eq!(seen[1].header("content-type"), Some("a/b"));
    assert_eq!(seen[1].header("content-length"), Some("7"));
    assert_eq!(
        (seen[1].method.as_str(), seen[1].body.as_slice()),
        ("PUT", &b"content"[..])
    );
    assert!(seen[3].body == large);
    assert_eq!(seen[3].header("transfer-encoding"), None);
    assert_eq!(seen[4].method, "DELETE");
    assert!(cache.write("x", Bytes::new(), "a\nb", false).await.is_err());
}

#[tokio::test]
async fn removing_what_is_not_there() {
    let server = Faulty::new(|e| e.answer("404 Not Found", &[], ""));
    bounded(open(&server.url()).remove("x")).await.unwrap();
}

#[tokio::test]
async fn uploads() {
    let content = noise(700_000);
    // It breaks the first in its midst, and does not mind the second.
    let server = Faulty::new(|e| match e.nth {
        0 => {
            e.read_body_to(100_000);
            After::Reset
        }
        _ => {
            e.read_body();
            e.answer("201 Created", &[], "")
        }
    });
    let cache = open(&server.url());
    upload(&cache, "nar/x", &content).await.unwrap();
    upload(&cache, "nar/y", b"").await.unwrap();
    let seen = server.wait_for(3);
    assert!(seen[1].whole && seen[1].body == content);
    assert_eq!(
        seen[1].header("content-type"),
        Some("application/x-nix-nar")
    );
    assert!(seen[2].whole && seen[2].body.is_empty());
}

#[tokio::test]
async fn uploads_to_servers_that_want_a_length() {
    for status in [
        "411 Length Required",
        "501 Not Implemented",
        "400 Bad Request",
    ] {
        let asked = Arc::new(Notify::new());
        let seen = asked.clone();
        let server = Faulty::new(move |e| match e.seen.header("content-length") {
            None => {
                seen.notify_one();
                e.answer(status, &["Connection: close"], "");
                e.read_body();
                After::Close
            }
            Some(_) => {
                e.read_body();
                e.answer("201 Created", &[], "")
            }
        });
        let cache = open(&server.url());
        let content = noise(400_000);
        // The first is not whole before the server was asked, the second not for a while.
        let wait = async move { asked.notified().await };
        upload_slowly(&cache, "x", &content, wait).await.unwrap();
        let wait = async {
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
        };
        upload_slowly(&cache, "y", &content, wait).await.unwrap();
        let seen = server.wait_for(3);
        let with_length = seen.iter().filter(|s| s.header("content-length").is_some());
        let with_length: Vec<_> = with_length.collect();
        assert_eq!(with_length.len(), 2, "{status}");
        assert!(with_length.iter().all(|s| s.whole && s.body == content));
        let tried = seen.iter().filter(|s| s.target == "/y").count();
        assert_eq!(tried, 1, "{status}: the second knows");
    }
}

#[tokio::test]
async fn an_upload_without_an_end_has_none() {
    for dropped in [false, true] {
        let arrived = Arc::new(Notify::new());
        let seen = arrived.clone();
        let server = Faulty::new(move |e| {
            e.read_body_to(100_000);
            seen.notify_one();
            e.read_body();
            e.answer("201 Created", &[], "")
        });
        let half = stream::iter([Ok(Bytes::from(noise(300_000)))]);
        let cause = arrived.clone();
        let failing = half.chain(stream::once(async move {
            if dropped {
                std::future::pending().await
            } else {
                cause.notified().await
            }
            Err(Error::invalid("no more of it"))
        }));
        let cache = open(&server.url());
        let upload = cache.upload(Upload {
            name: "x",
            mime: "a/b",
            body: failing.boxed(),
            size_hint: 1_000_000,
            journal: None,
            sent: Arc::new(|_| ()),
        });
        if dropped {
            drop(bounded(select(upload, Box::pin(arrived.notified()))).await)
        } else {
            says(&bounded(upload).await.unwrap_err(), &["no more of it"])
        }
        let waited = tokio::task::spawn_blocking(move || server.wait_for(1));
        for seen in bounded(waited).await.unwrap() {
            assert!(seen.body.len() >= 100_000);
            assert!(!seen.whole, "the server took half of it for all");
        }
    }
}

#[tokio::test]
async fn uploads_that_nobody_takes_end() {
    let server = Faulty::new(|e| e.drip(b"", Duration::from_millis(100)));
    let mut config = config(&server.url());
    config.client.stall_timeout = Duration::from_millis(200);
    config.client.retry.attempts = 2;
    let cache = HttpObjects::open(config).unwrap();
    let error = upload(&cache, "x", &noise(20_000_000)).await.unwrap_err();
    assert!(timed_out(&error), "{error:?}");
    let large = Bytes::from(noise(20_000_000));
    let error = bounded(cache.write("x", large, "a/b", false))
        .await
        .unwrap_err();
    assert!(timed_out(&error), "{error:?}");
}

#[tokio::test]
async fn an_upload_that_is_refused_ends_at_once() {
    let server = Faulty::new(|e| {
        e.answer("403 Forbidden", &["Connection: close"], "");
        e.read_body();
        After::Close
    });
    let endless = stream::repeat_with(|| Ok(Bytes::from_static(&[7; 1000]))).take(100_000);
    let cache = open(&server.url());
    let upload = cache.upload(Upload {
        name: "x",
        mime: "a/b",
        body: endless.boxed(),
        size_hint: 0,
        journal: None,
        sent: Arc::new(|_| ()),
    });
    let error = bounded(upload).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
}

/// The connections that need it fail, and no others.
#[tokio::test]
async fn certificates_that_are_not_there() {
    let server = Faulty::new(|e| e.ok("text"));
    let mut config = config(&server.url());
    config.client.ca_file = Some("/nonexistent".into());
    let plain = HttpObjects::open(config.clone()).unwrap();
    assert_eq!(read(&plain, "x").await.unwrap().unwrap(), "text");
}

#[test]
fn what_is_no_cache() {
    for url in ["ftp://x/", "file:///x", "data:,x"] {
        let opened = HttpObjects::open(HttpConfig::new(url.parse().unwrap()));
        assert!(matches!(opened, Err(Error::Invalid { .. })), "{url}");
    }
    let mut no_token = config("https://x");
    no_token.client.credentials.auth = Auth::Bearer("s3c\nret".to_owned());
    let error = HttpObjects::open(no_token).unwrap_err();
    assert!(!error.to_line().contains("s3c"));
}

fn config(url: &str) -> HttpConfig {
    let mut config = HttpConfig::new(url.parse().unwrap());
    config.client.stall_timeout = Duration::from_secs(20);
    config.client.retry.attempts = 4;
    config.client.retry.delay = Duration::from_millis(1);
    config.client.retry.delay_rate_limited = Duration::from_millis(2);
    config.client.retry.max_delay = Duration::from_millis(20);
    config
}

fn open(url: &str) -> HttpObjects {
    HttpObjects::open(config(url)).unwrap()
}

/// What people are warned of.
#[derive(Debug, Default)]
struct Warnings(Mutex<Vec<String>>);

impl NetworkObserver for Warnings {
    fn warned(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

/// With a user in the URL, and a netrc.
fn open_with(server: &Faulty, user: &str, netrc: &str) -> HttpObjects {
    let mut config = config(&server.url().replace("//", user));
    config.client.credentials.netrc = Arc::new(Netrc::parse(netrc));
    HttpObjects::open(config).unwrap()
}

/// Nothing here takes long, unless it hangs.
async fn bounded<T>(work: impl Future<Output = T>) -> T {
    let bounded = tokio::time::timeout(Duration::from_secs(60), work);
    bounded.await.expect("it hangs")
}

async fn read(cache: &HttpObjects, name: &str) -> Result<Option<Bytes>> {
    bounded(cache.read(name, 1 << 16)).await
}

async fn write(cache: &HttpObjects, name: &str, content: &'static str, new: bool) -> Result<bool> {
    bounded(cache.write(name, content.into(), "a/b", new)).await
}

async fn upload(cache: &HttpObjects, name: &str, content: &[u8]) -> Result<()> {
    upload_slowly(cache, name, content, async {}).await
}

/// `wait` comes before the last byte.
async fn upload_slowly(
    cache: &HttpObjects,
    name: &str,
    content: &[u8],
    wait: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let (start, last) = content.split_at(content.len().saturating_sub(1));
    let chunks: Vec<_> = start
        .chunks(50_000)
        .map(Bytes::copy_from_slice)
        .map(Ok)
        .collect();
    let last = Bytes::copy_from_slice(last);
    let last = stream::once(async move {
        wait.await;
        Ok(last)
    });
    let taken = Arc::new(AtomicU64::new(0));
    let seen = taken.clone();
    let upload = Upload {
        name,
        mime: "application/x-nix-nar",
        body: stream::iter(chunks).chain(last).boxed(),
        size_hint: content.len() as u64,
        journal: None,
        sent: Arc::new(move |bytes| seen.store(bytes, Ordering::Relaxed)),
    };
    bounded(cache.upload(upload)).await?;
    assert_eq!(taken.load(Ordering::Relaxed), content.len() as u64);
    Ok(())
}

async fn collect(stream: tk_store::ByteStream) -> Result<Vec<u8>> {
    let add = |mut all: Vec<u8>, chunk: Bytes| async move {
        all.extend_from_slice(&chunk);
        Ok(all)
    };
    stream.try_fold(Vec::new(), add).await
}

fn says(error: &Error, words: &[&str]) {
    let line = error.to_line();
    for words in words {
        assert!(line.contains(words), "{words:?} is not in {line:?}");
    }
    assert!(!line.contains(['\n', '\x07']), "{line:?}");
}

fn timed_out(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::TimedOut)
}

fn unsupported(error: &Error) -> bool {
    matches!(error, Error::Unsupported { .. })
}

fn partial(exchange: &mut Exchange<'_>, bytes: &str, after: After) -> After {
    exchange.send(bytes);
    after
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that do not repeat and cannot be packed.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as u8
    });
    next.take(length).collect()
}
