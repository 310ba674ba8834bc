//! A server for folders, with a clock of its own.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

/// Serves a folder on a port of its own until the test program ends; refuses to be written to.
pub struct FolderServer {
    pub url: String,
}

impl FolderServer {
    /// Serves `folder`; its answers are dated `date`, as `date -d` reads it.
    pub fn start(folder: &Path, date: &str) -> FolderServer {
        let (folder, date) = (folder.to_owned(), date.to_owned());
        FolderServer::with(move |stream| answer(stream, &folder, &date))
    }

    /// Takes connections, and says nothing.
    pub fn silent() -> FolderServer {
        FolderServer::with(|stream| {
            let _ = stream.set_read_timeout(None);
            let _ = BufReader::new(stream).lines().last();
        })
    }

    fn with(answer: impl Fn(TcpStream) + Clone + Send + 'static) -> FolderServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answer = answer.clone();
                thread::spawn(move || answer(stream));
            }
        });
        FolderServer { url }
    }
}

fn answer(mut stream: TcpStream, folder: &Path, date: &str) {
    let mut head = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(first)) = head.next() else { return };
    while head
        .next()
        .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
    {}
    let mut words = first.split(' ');
    let (method, name) = (words.next().unwrap(), words.next().unwrap_or_default());
    let file: PathBuf = folder.join(name.trim_start_matches('/'));
    let (status, body) = match fs::read(file) {
        _ if method != "GET" && method != "HEAD" => ("405 Method Not Allowed", Vec::new()),
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", Vec::new()),
    };
    let now = Command::new("date")
        .args(["-u", "-R", "-d", date])
        .output()
        .unwrap();
    let now = String::from_utf8(now.stdout)
        .unwrap()
        .replace("+0000", "GMT");
    let length = body.len();
    let mut all = format!(
        "HTTP/1.1 {status}\r\nDate: {}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n",
        now.trim()
    )
    .into_bytes();
    if method != "HEAD" {
        all.extend(body);
    }
    let _ = stream.write_all(&all);
}
