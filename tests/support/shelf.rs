//! An HTTP server that keeps what it is given, and answers otherwise where a test wants it. It lists as S3
//! does, so that it is a bucket as well.
#![allow(dead_code, reason = "each test uses its part")]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// Listens on a port of its own until the program ends. A clone is the same server.
#[derive(Clone)]
pub struct Shelf(Arc<Inner>);

struct Inner {
    port: u16,
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    asked: AtomicUsize,
}

/// A request: its method, its path, and how many came before it.
pub struct Asked<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub nth: usize,
}

/// Another answer than the usual one: a status with its words, and a body.
pub type Answer = (&'static str, &'static str);

impl Shelf {
    /// Answers with what `hook` gives, or as a server should.
    pub fn new(hook: impl Fn(&Asked<'_>) -> Option<Answer> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let shelf = Shelf(Arc::new(Inner {
            port: listener.local_addr().expect("bound").port(),
            objects: Mutex::default(),
            asked: AtomicUsize::new(0),
        }));
        let (serving, hook) = (shelf.clone(), Arc::new(hook));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shelf, hook) = (serving.clone(), hook.clone());
                thread::spawn(move || shelf.serve(stream, &*hook));
            }
        });
        shelf
    }

    /// Its URL, with `login` such as `me:secret@`.
    pub fn url(&self, login: &str) -> String {
        format!("http://{login}127.0.0.1:{}", self.0.port)
    }

    /// The names of what is there, without the first slash.
    pub fn names(&self) -> Vec<String> {
        let objects = self.0.objects.lock().expect("no panics");
        objects.keys().map(|path| path[1..].to_owned()).collect()
    }

    /// Paths that somebody who reads it would find.
    pub fn narinfos(&self) -> usize {
        let names = self.names().into_iter();
        names.filter(|name| name.ends_with(".narinfo")).count()
    }

    fn serve(&self, stream: TcpStream, hook: &(impl Fn(&Asked<'_>) -> Option<Answer> + ?Sized)) {
        let mut reader = BufReader::new(stream);
        while let Some((method, path, body)) = read(&mut reader) {
            let asked = Asked {
                method: &method,
                path: &path,
                nth: self.0.asked.fetch_add(1, Ordering::SeqCst),
            };
            let (status, body) = match hook(&asked) {
                Some((status, body)) => (status, body.into()),
                None => self.answer(&method, path, body),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"x\"\r\n\
                 Last-Modified: Mon, 23 Nov 2026 22:11:33 GMT\r\n\r\n",
                body.len()
            );
            let stream = reader.get_mut();
            let mut sent = stream.write_all(head.as_bytes());
            if method != "HEAD" {
                sent = sent.and_then(|()| stream.write_all(&body));
            }
            if sent.is_err() {
                return;
            }
        }
    }

    fn answer(&self, method: &str, path: String, body: Vec<u8>) -> (&'static str, Vec<u8>) {
        let mut objects = self.0.objects.lock().expect("no panics");
        if let Some((bucket, query)) = path.split_once('?')
            && query.contains("list-type=2")
        {
            return ("200 OK", listing(&objects, bucket).into());
        }
        if method == "PUT" {
            objects.insert(path, body);
            return ("201 Created", Vec::new());
        }
        match objects.get(&path) {
            Some(content) => ("200 OK", content.clone()),
            // In the words of S3, which are more than the number.
            None => ("404 Not Found", ABSENT.into()),
        }
    }
}

const ABSENT: &str = "<Error><Code>NoSuchKey</Code></Error>";

/// What lies in the bucket itself, not in a folder of it.
fn listing(objects: &BTreeMap<String, Vec<u8>>, bucket: &str) -> String {
    let bucket = format!("{}/", bucket.trim_end_matches('/'));
    let keys = objects.keys().filter_map(|path| path.strip_prefix(&bucket));
    let contents = keys.filter(|key| !key.contains('/')).map(|key| {
        format!(
            "<Contents><Key>{key}</Key><Size>1</Size>\
             <LastModified>2026-11-23T22:11:33.000Z</LastModified></Contents>"
        )
    });
    let contents: String = contents.collect();
    format!("<ListBucketResult>{contents}</ListBucketResult>")
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<(String, String, Vec<u8>)> {
    let mut line = || {
        let mut line = String::new();
        let size = reader.read_line(&mut line).ok()?;
        (size > 0).then(|| line.trim_end().to_owned())
    };
    let first = line()?;
    let (mut length, mut chunked) = (0, false);
    loop {
        let header = line()?.to_ascii_lowercase();
        match header.split_once(':') {
            None => break,
            Some(("content-length", value)) => length = value.trim().parse().ok()?,
            Some(("transfer-encoding", _)) => chunked = true,
            Some(_) => {}
        }
    }
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    while chunked {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let size = usize::from_str_radix(line.trim(), 16).ok()?;
        let start = body.len();
        body.resize(start + size + 2, 0);
        reader.read_exact(&mut body[start..]).ok()?;
        body.truncate(start + size);
        chunked = size > 0;
    }
    Some((method, path, body))
}
