//! What a cache says is only believed when it is so.

use super::{Done, Machine};
use serde_json::Value;
use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
};

/// A machine with a signed path in the cache `cache`.
struct Cached {
    machine: Machine,
    path: String,
    uri: String,
}

fn cached() -> Cached {
    let machine = Machine::new();
    machine.write("file", "a file");
    machine.ok("key generate k-1 --secret s --public p");
    let uri = machine.cache("cache");
    let path = machine.ok("add file");
    machine.ok(&format!(
        "push {path} --to {uri}?compression=none --sign-key s"
    ));
    Cached { machine, path, uri }
}

impl Cached {
    fn narinfo(&self) -> PathBuf {
        let name = format!("cache/{}.narinfo", &self.path[11..43]);
        self.machine.home().join(name)
    }

    fn done(&self, status: i32, line: &str) -> Done {
        let done = self.machine.run(line);
        assert_eq!(done.status, status, "tk-store {line}: {done:?}");
        done
    }
}

/// One dead cache of several is told of at once, and the others answer.
#[test]
fn a_check_goes_on_past_a_dead_cache() {
    let cached = cached();
    let Cached { path, uri, machine } = &cached;
    let absent = format!("/nix/store/{}-absent", "0".repeat(32));
    machine.write("foreign/nix-cache-info", "StoreDir: /gnu/store\n");
    machine.write("file-cache", "no folder");
    let forbidden = Server::start(|_| (403, b"no".to_vec()));
    let nothing = Server::start(|_| (404, b"no".to_vec()));
    for dead in [
        "http://127.0.0.1:1",
        &machine.cache("nowhere"),
        &machine.cache("foreign"),
        &machine.cache("file-cache"),
        &forbidden.url,
        &nothing.url,
    ] {
        let both = format!("--in {dead} --in {uri}");
        let done = cached.done(0, &format!("check {path} {both}"));
        assert!(done.out.contains("\terror\tpresent\t"), "{done:?}");
        // Beside what is said of each try.
        let told = |line: &&str| line.contains(dead) && line.contains("asked");
        assert_eq!(
            done.err.lines().filter(told).count(),
            1,
            "told once: {done:?}"
        );
        assert!(done.err.starts_with("warning: "), "{done:?}");
        let done = cached.done(2, &format!("check {absent} {both}"));
        assert!(done.out.contains("\terror\tabsent\t"), "{done:?}");
        let done = cached.done(2, &format!("check --json {absent} {path} {both}"));
        let found: Value = serde_json::from_str(&done.out).expect("JSON");
        assert_eq!(found["summary"]["present"], 1, "{found}");
        assert_eq!(found["summary"]["notAsked"], 1, "{found}");
    }
    machine.write(
        "etc/nix.conf",
        format!("substituters = http://127.0.0.1:1 {uri}\n"),
    );
    cached.done(0, &format!("check {path}"));
    let alone = cached.done(2, &format!("check {path} --in http://127.0.0.1:1"));
    assert!(alone.err.contains("127.0.0.1:1"), "{alone:?}");
}

#[test]
fn nothing_to_check_is_no_yes() {
    let cached = cached();
    let uri = &cached.uri;
    let done = cached.done(2, &format!("check --in {uri}"));
    assert!(done.err.contains("no paths were named"), "{done:?}");
    cached.done(0, &format!("check --stdin --in {uri}"));
    cached.done(0, &format!("check - --in {uri}"));
}

#[test]
fn sizes_that_a_cache_does_not_tell_are_unknown() {
    let cached = cached();
    let text = fs::read_to_string(cached.narinfo()).unwrap();
    let text: String = text
        .lines()
        .filter(|line| !line.starts_with("File"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(cached.narinfo(), text).unwrap();
    let line = format!("check {} --in {}", cached.path, cached.uri);
    let done = cached.done(0, &line);
    assert!(done.out.trim_end().ends_with("\tunknown"), "{done:?}");
    assert!(done.err.contains("an unknown size to fetch"), "{done:?}");
    let done = cached.done(0, &format!("{line} --json"));
    let found: Value = serde_json::from_str(&done.out).expect("JSON");
    assert_eq!(found["summary"]["unknownSize"], 1, "{found}");
}

/// What is damaged is named, and does not end the rest.
#[test]
fn listings_go_on_past_what_cannot_be_read() {
    let cached = cached();
    let Cached { machine, path, uri } = &cached;
    machine.write(&format!("cache/{}.narinfo", "0".repeat(32)), "");
    let store = format!("--store {uri}");
    for line in [
        "path-info --all",
        "path-info --all --json",
        "verify --all --trusted-key p",
    ] {
        let done = cached.done(1, &format!("{line} {store}"));
        assert!(done.err.contains(&"0".repeat(32)), "{line}: {done:?}");
        assert!(
            line.starts_with("verify") || done.out.contains(path),
            "{line}: {done:?}"
        );
    }
    let done = cached.done(1, &format!("verify --all --json --no-trust {store}"));
    let found: Value = serde_json::from_str(&done.out).expect("JSON");
    assert_eq!(
        (&found["verified"], found["bad"].as_array().map(Vec::len)),
        (&1.into(), Some(1))
    );
    let done = cached.done(1, &format!("sign --all --key-file s {store}"));
    assert_eq!(done.out.trim_end(), path);
    let done = cached.done(
        1,
        &format!("copy --all --from {uri} --to {}", machine.cache("new")),
    );
    assert_eq!(done.out.trim_end(), path);
}

/// A narinfo that is none is written again by the next push.
#[test]
fn a_push_writes_again_what_is_no_narinfo() {
    let cached = cached();
    let Cached { machine, path, uri } = &cached;
    let good = fs::read_to_string(cached.narinfo()).unwrap();
    for (n, broken) in ["", &good[..good.len() / 2], "<html>Sign in</html>\n"]
        .iter()
        .enumerate()
    {
        fs::write(cached.narinfo(), broken).unwrap();
        cached.done(2, &format!("check {path} --in {uri}"));
        let up = format!(
            "push {path} --to {} --upstream {uri}",
            machine.cache(&format!("other{n}"))
        );
        let done = cached.done(0, &up);
        assert!(done.err.contains("broken narinfo"), "{done:?}");
        assert!(
            machine
                .home()
                .join(format!("other{n}/{}.narinfo", &path[11..43]))
                .exists()
        );
        let done = cached.done(
            0,
            &format!("push {path} --to {uri}?compression=none --sign-key s"),
        );
        assert!(done.err.contains("broken narinfo"), "{done:?}");
        assert_eq!(fs::read_to_string(cached.narinfo()).unwrap(), good);
    }
}

/// A server that answers every question with a page has nothing, and takes nothing.
#[test]
fn a_page_for_everything_is_no_cache() {
    let cached = cached();
    let Cached { machine, path, .. } = &cached;
    for page in ["<html>Welcome</html>\n", "", "OK"] {
        let parked = Server::start(move |_| (200, page.as_bytes().to_vec()));
        let url = &parked.url;
        let done = cached.done(2, &format!("push {path} --to {url} --sign-key s"));
        assert!(done.err.contains("no binary cache is there"), "{done:?}");
        let to = machine.cache("elsewhere");
        cached.done(2, &format!("push {path} --to {to} --upstream {url}"));
        assert!(
            !machine.home().join("elsewhere/nar").exists()
                || !machine
                    .home()
                    .join(format!("elsewhere/{}.narinfo", &path[11..43]))
                    .exists()
        );
        cached.done(2, &format!("check {path} --in {url}"));
        let asked = parked.asked();
        assert!(
            !asked.iter().any(|line| line.starts_with("PUT")),
            "{asked:?}"
        );
    }
}

/// One question a path is enough, also for what is only planned.
#[test]
fn each_narinfo_is_asked_for_once() {
    let cached = cached();
    let Cached { machine, path, .. } = &cached;
    let root = machine.home().join("cache");
    let served =
        Server::start(
            move |name| match fs::read(root.join(name.trim_start_matches('/'))) {
                Ok(content) => (200, content),
                Err(_) => (404, Vec::new()),
            },
        );
    let narinfos = |served: &Server| {
        let asked = served.asked();
        asked
            .iter()
            .filter(|line| line.contains(".narinfo"))
            .count()
    };
    for line in ["push", "push --dry-run"] {
        cached.done(0, &format!("{line} {path} --to {}", served.url));
        assert_eq!(narinfos(&served), 1, "{line}");
    }
    let url = &served.url;
    cached.done(0, &format!("path-info {path} --store {url}"));
    assert_eq!(narinfos(&served), 1);
    cached.done(0, &format!("path-info {path} --store {url}"));
    assert_eq!(narinfos(&served), 0, "it is remembered");
    cached.done(0, &format!("path-info --refresh {path} --store {url}"));
    assert_eq!(narinfos(&served), 1, "unless that is not wanted");
}

#[test]
fn listings_that_are_not_written_are_told() {
    let machine = Machine::new();
    let odd = machine
        .write("tree/plain", "x")
        .with_file_name(OsStr::from_bytes(b"\xff"));
    fs::write(odd, "y").unwrap();
    let cache = machine.cache("cache");
    let done = machine.run(&format!("push tree --to {cache} --listing"));
    assert_eq!(done.status, 0, "{done:?}");
    assert!(done.err.contains("no listing of"), "{done:?}");
    let again = machine.run(&format!("push tree --to {cache} --listing"));
    assert!(again.err.contains("--repair writes them"), "{again:?}");
    let path = done.out.trim_end();
    let copy = format!("copy {path} --from {cache} --to ./store2 --listing");
    let done = machine.run(&copy);
    assert!(
        done.err.contains("only binary caches have listings"),
        "{done:?}"
    );
}

#[test]
fn a_latency_is_that_of_a_question() {
    let cached = cached();
    let here = cached.done(0, &format!("store info {}", cached.uri));
    assert!(!here.out.contains("Latency"), "{here:?}");
    let served = Server::start(|_| (200, b"StoreDir: /nix/store\n".to_vec()));
    let far = cached.done(0, &format!("store info {}", served.url));
    assert!(far.out.contains("Latency"), "{far:?}");
    assert_eq!(served.asked().len(), 2, "one to open it, one to measure");
}

/// A server of HTTP/1.1 on this machine, which remembers what it was asked.
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(answer: impl Fn(&str) -> (u16, Vec<u8>) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (asked.clone(), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer) = (log.clone(), answer.clone());
                thread::spawn(move || serve(stream, &log, &*answer));
            }
        });
        Server { url, asked }
    }

    /// What was asked since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn serve(stream: TcpStream, log: &Mutex<Vec<String>>, answer: &dyn Fn(&str) -> (u16, Vec<u8>)) {
    let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
    let mut writer = stream;
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_owned());
        }
        let Some(first) = head.first() else { return };
        let words: Vec<_> = first.split(' ').collect();
        log.lock().unwrap().push(first.clone());
        let length = head.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse().ok())?
        });
        let mut body = vec![0; length.unwrap_or(0)];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let (status, mut content) = answer(words[1]);
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n",
            content.len()
        );
        if words[0] == "HEAD" {
            content.clear();
        }
        if writer
            .write_all(head.as_bytes())
            .and_then(|()| writer.write_all(&content))
            .is_err()
        {
            return;
        }
    }
}
