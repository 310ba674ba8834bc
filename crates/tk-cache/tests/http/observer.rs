//! What those are told who watch the requests.

use super::*;
use tk_cache::observer::{AnsweredRequest, RetriedRequest};

#[derive(Debug, Default)]
struct Watcher {
    lines: Mutex<Vec<String>>,
    received: AtomicU64,
    sent: AtomicU64,
}

impl Watcher {
    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

impl NetworkObserver for Watcher {
    fn answered(&self, request: &AnsweredRequest<'_>) {
        let AnsweredRequest { method, url, .. } = request;
        let line = format!("{method} {url} {:?} {:?}", request.outcome, request.size);
        self.lines.lock().unwrap().push(line);
    }

    fn retrying(&self, retry: &RetriedRequest<'_>) {
        let RetriedRequest { url, reason, .. } = retry;
        let (attempt, attempts) = (retry.attempt, retry.attempts);
        let line = format!("again {url} {reason} {attempt}/{attempts}");
        self.lines.lock().unwrap().push(line);
    }

    fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }
}

fn watched(url: &str, stall: Duration) -> (HttpObjects, Arc<Watcher>) {
    let watcher = Arc::new(Watcher::default());
    let mut config = config(url);
    config.client.observer = watcher.clone();
    config.client.stall_timeout = stall;
    (HttpObjects::open(config).unwrap(), watcher)
}

const PATIENT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn what_is_tried_again_is_told_with_the_words_of_the_server() {
    let server = Faulty::new(|e| match e.nth {
        0 => {
            let words = "<Error><Code>SlowDown</Code><Message>not\x1b[31m so\nfast</Message>";
            e.answer("503 Service Unavailable", &[], format!("{words}</Error>"))
        }
        _ => e.ok("text"),
    });
    let (cache, watcher) = watched(&server.url().replace("//", "//me:secret@"), PATIENT);
    assert_eq!(read(&cache, "x").await.unwrap().unwrap(), "text");
    let url = format!("{}/x", server.url());
    let lines = watcher.lines();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(
        lines[0].starts_with(&format!("GET {url} Ok(503)")),
        "{lines:?}"
    );
    let why = "HTTP status 503 Service Unavailable: SlowDown: not[31m so fast";
    assert_eq!(lines[1], format!("again {url} {why} 1/7"));
    assert_eq!(lines[2], format!("GET {url} Ok(200) Some(4)"));
    assert!(watcher.received.load(Ordering::Relaxed) > 4);
}

#[tokio::test]
async fn a_server_that_says_nothing_is_told_of() {
    let server = Faulty::new(|e| match e.nth {
        0 => {
            std::thread::sleep(Duration::from_secs(5));
            After::Close
        }
        _ => e.ok("text"),
    });
    let (cache, watcher) = watched(&server.url(), Duration::from_millis(300));
    assert_eq!(read(&cache, "x").await.unwrap().unwrap(), "text");
    let again = watcher.lines().swap_remove(1);
    assert!(again.contains("no answer for 300ms 1/2"), "{again}");
}

#[tokio::test]
async fn bytes_are_counted_as_they_come_and_go() {
    let server = Faulty::new(|e| {
        e.read_body();
        e.ok("y".repeat(5000))
    });
    let (cache, watcher) = watched(&server.url(), PATIENT);
    let stream = bounded(cache.stream("x")).await.unwrap().unwrap();
    collect(stream).await.unwrap();
    assert_eq!(watcher.received.load(Ordering::Relaxed), 5000);
    write(&cache, "x", "content", false).await.unwrap();
    assert_eq!(watcher.sent.load(Ordering::Relaxed), 7);
    upload(&cache, "x", &[7; 9000]).await.unwrap();
    assert_eq!(watcher.sent.load(Ordering::Relaxed), 9007);
}

#[tokio::test]
async fn what_is_refused_is_refused_in_the_words_of_the_server() {
    let server = Faulty::new(|e| {
        e.read_body();
        e.answer(
            "403 Forbidden",
            &["Content-Type: application/xml"],
            "<Error>quota exceeded</Error>",
        )
    });
    let cache = open(&server.url());
    let error = write(&cache, "x", "y", false).await.unwrap_err();
    says(&error, &["quota exceeded"]);
    let error = upload(&cache, "x", &[7; 9000]).await.unwrap_err();
    says(&error, &["quota exceeded"]);
}
