//! Inputs that come from servers.

use super::flakes::FlakeBench;
use serde_json::{Value, json};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, Write},
    net::{TcpListener, TcpStream},
    process::Command,
};
use tk_project::{
    fetch::{AccessTokens, DownloadedFile, FetchOptions, HttpDownload},
    lock::{LockUpdates, solve_lock},
};

/// A URL, and headers.
type Question = (String, Vec<(String, String)>);

/// Files by URL; what was asked, and with which headers.
#[derive(Default)]
struct Shelf {
    files: BTreeMap<String, Vec<u8>>,
    asked: RefCell<Vec<Question>>,
}

fn spooled(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

impl HttpDownload for Shelf {
    fn download(&self, url: &str, headers: &[(String, String)]) -> io::Result<DownloadedFile> {
        self.asked
            .borrow_mut()
            .push((url.to_owned(), headers.to_vec()));
        let found = self
            .files
            .get(url)
            .ok_or_else(|| io::Error::other("HTTP status 404"))?;
        Ok(DownloadedFile {
            content: spooled(found),
            immutable_link: None,
        })
    }
}

const REV: &str = "0123456789012345678901234567890123456789";

fn packed() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("repo-rev")).unwrap();
    fs::write(
        dir.path().join("repo-rev/flake.nix"),
        "{ outputs = _: { }; }\n",
    )
    .unwrap();
    let tar = Command::new("tar")
        .args(["-czf", "-", "--sort=name", "--mtime=@1600000000", "-C"])
        .arg(dir.path())
        .arg("repo-rev")
        .output();
    tar.unwrap().stdout
}

fn locked(url: &str, files: &[(&str, &str)], tokens: &str) -> (Result<Value, String>, Shelf) {
    let mut shelf = Shelf::default();
    for (url, text) in files {
        let bytes = if *text == "ARCHIVE" {
            packed()
        } else {
            text.as_bytes().to_vec()
        };
        shelf.files.insert((*url).to_owned(), bytes);
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("flake.nix"),
        format!("{{ inputs.a.url = \"{url}\"; outputs = _: {{ }}; }}"),
    )
    .unwrap();
    let mut options = FetchOptions::default();
    options.http = Some(&shelf);
    options.tokens = AccessTokens::parse(tokens);
    let solved = solve_lock(dir.path(), None, LockUpdates::Needed, &options);
    drop(options);
    let node = solved.map(|solved| solved.lock.to_json()["nodes"]["a"]["locked"].clone());
    (node.map_err(|e| e.to_string()), shelf)
}

#[test]
fn forges_are_asked_as_nix_asks_them() {
    let sha = format!("{{\"sha\": \"{REV}\", \"commit\": {{}}}}");
    let id = format!("[{{\"id\": \"{REV}\"}}]");
    let refs =
        format!("1111111111111111111111111111111111111111\trefs/heads/x\n{REV}\trefs/heads/main\n");
    let archive = |url: &str| url.replace("REV", REV);
    for (url, tokens, asked, header) in [
        (
            "github:o/repo",
            "",
            vec![
                (
                    "https://api.github.com/repos/o/repo/commits/HEAD",
                    sha.as_str(),
                ),
                ("https://github.com/o/repo/archive/REV.tar.gz", "ARCHIVE"),
            ],
            None,
        ),
        (
            "github:o/repo/main",
            "gitlab.com=PAT:x github.com=all github.com/o=some github.com/o/re=none",
            vec![
                ("https://api.github.com/repos/o/repo/commits/main", &sha),
                ("https://api.github.com/repos/o/repo/tarball/REV", "ARCHIVE"),
            ],
            Some(("Authorization", "token some")),
        ),
        (
            "github:o/repo?host=git.example",
            "git.example=x",
            vec![
                ("https://git.example/api/v3/repos/o/repo/commits/HEAD", &sha),
                (
                    "https://git.example/api/v3/repos/o/repo/tarball/REV",
                    "ARCHIVE",
                ),
            ],
            Some(("Authorization", "token x")),
        ),
        (
            "gitlab:o/repo/v1",
            "gitlab.com=PAT:x",
            vec![
                (
                    "https://gitlab.com/api/v4/projects/o%2Frepo/repository/commits?ref_name=v1",
                    &id,
                ),
                (
                    "https://gitlab.com/api/v4/projects/o%2Frepo/repository/archive.tar.gz?sha=REV",
                    "ARCHIVE",
                ),
            ],
            Some(("Private-token", "x")),
        ),
        (
            "sourcehut:~o/repo",
            "",
            vec![
                ("https://git.sr.ht/~o/repo/HEAD", "ref: refs/heads/main"),
                ("https://git.sr.ht/~o/repo/info/refs", &refs),
                ("https://git.sr.ht/~o/repo/archive/REV.tar.gz", "ARCHIVE"),
            ],
            None,
        ),
    ] {
        let files: Vec<_> = asked
            .iter()
            .map(|(url, text)| (archive(url), *text))
            .collect();
        let files: Vec<_> = files
            .iter()
            .map(|(url, text)| (url.as_str(), *text))
            .collect();
        let (found, shelf) = locked(url, &files, tokens);
        let found = found.unwrap();
        assert_eq!(found["rev"], REV, "{url}");
        assert_eq!(found["lastModified"], 1_600_000_000);
        assert_eq!(found.get("ref"), None);
        let told: Vec<_> = shelf
            .asked
            .borrow()
            .iter()
            .map(|(url, _)| url.clone())
            .collect();
        assert_eq!(
            told,
            files
                .iter()
                .map(|(url, _)| url.to_string())
                .collect::<Vec<_>>()
        );
        let expected: Vec<_> = header
            .into_iter()
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
            .collect();
        assert!(
            shelf
                .asked
                .borrow()
                .iter()
                .all(|(_, headers)| *headers == expected),
            "{url}"
        );
    }
}

#[test]
fn forges_that_say_nothing_useful() {
    let api = "https://api.github.com/repos/o/repo/commits/HEAD";
    for (text, why) in [
        ("{}", "does not say which commit"),
        ("no json", "does not say which commit"),
        (
            "{\"sha\": \"../../x\"}",
            "says that the commit is '../../x'",
        ),
    ] {
        let (found, _) = locked("github:o/repo", &[(api, text)], "");
        let error = found.unwrap_err();
        assert!(
            error.starts_with("input 'a': ") && error.contains(why),
            "{error}"
        );
    }
    let (found, _) = locked("github:o/repo", &[], "");
    assert!(found.unwrap_err().contains("404"));
    assert!(
        locked("indirect-name", &[], "")
            .0
            .unwrap_err()
            .contains("registry")
    );
}

/// Serves `body` for every path; what ends in `moving` says where it stays.
fn serve(body: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let told = base.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut first, mut line) = (String::new(), String::new());
            reader.read_line(&mut first).unwrap();
            while reader.read_line(&mut line).unwrap_or(0) > 2 {
                line.clear();
            }
            let link = if first.contains("/moving") {
                format!("Link: <{told}/fixed.tar.gz?rev={REV}&revCount=5>; rel=\"immutable\"\r\n")
            } else {
                String::new()
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{link}Connection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(head.as_bytes());
            if !first.starts_with("HEAD") {
                let _ = stream.write_all(&body);
            }
        }
    });
    base
}

/// Asks as plainly as it can be done.
struct Plain;

impl HttpDownload for Plain {
    fn download(&self, url: &str, _: &[(String, String)]) -> io::Result<DownloadedFile> {
        let rest = url.strip_prefix("http://").unwrap();
        let (host, path) = rest.split_once('/').unwrap();
        let mut stream = TcpStream::connect(host)?;
        write!(
            stream,
            "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        )?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        let end = all.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = String::from_utf8_lossy(&all[..end]);
        let link = head
            .split_once("Link: <")
            .and_then(|(_, rest)| rest.split_once('>'));
        Ok(DownloadedFile {
            immutable_link: link.map(|(url, _)| url.to_owned()),
            content: spooled(&all[end + 4..]),
        })
    }
}

#[test]
fn what_servers_give_is_locked_as_nix_does() {
    let Some(bench) = FlakeBench::new("2.34") else {
        return;
    };
    let base = serve(packed());
    let text = format!(
        "  inputs.a.url = \"{base}/a.tar.gz\";\n  inputs.b.url = \"{base}/moving\";\n  inputs.c = {{ url = \"{base}/c.json\"; flake = false; }};\n  inputs.d = {{ url = \"tarball+{base}/d?x=1\"; flake = false; }};"
    );
    let folder = bench.flake("project", &text);
    let expected = bench.locked("project").unwrap();
    let mut options = FetchOptions::default();
    options.http = Some(&Plain);
    let solved = solve_lock(&folder, None, LockUpdates::Needed, &options).unwrap();
    assert_eq!(solved.lock.to_text(), expected);
    let locked = &solved.lock.to_json()["nodes"]["b"]["locked"];
    assert_eq!(locked["url"], json!(format!("{base}/fixed.tar.gz")));
}
