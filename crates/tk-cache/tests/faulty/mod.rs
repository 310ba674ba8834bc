//! An HTTP/1.1 server that does what a test tells it, byte by byte.

use rustix::net::sockopt::set_socket_linger;
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// Listens on a port of its own until the program ends.
pub struct Faulty {
    port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    count: Arc<AtomicUsize>,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub target: String,
    headers: Vec<(String, String)>,
    /// What was read of its body, and whether that was all.
    pub body: Vec<u8>,
    pub whole: bool,
    /// Which connection it came on, from 0 on.
    pub connection: usize,
}

impl Seen {
    /// The value of a header, whose name is given in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// What becomes of the connection after an answer.
pub enum After {
    Keep,
    Close,
    Reset,
}

/// A request that wants an answer.
pub struct Exchange<'a> {
    /// How many requests came before, on all connections.
    pub nth: usize,
    pub seen: Seen,
    reader: &'a mut BufReader<TcpStream>,
}

impl Exchange<'_> {
    /// Reads the body; false if it ended before its time.
    pub fn read_body(&mut self) -> bool {
        self.read_body_to(usize::MAX)
    }

    /// Reads the body until at least `limit` bytes are there.
    pub fn read_body_to(&mut self, limit: usize) -> bool {
        let chunked = self.seen.header("transfer-encoding") == Some("chunked");
        let length = self
            .seen
            .header("content-length")
            .map(|l| l.parse().unwrap());
        let result = match (chunked, length) {
            (true, _) => self.read_chunks(limit),
            (false, Some(length)) => self.read_exactly(limit.min(length)),
            (false, None) => Ok(()),
        };
        let all = chunked || length.is_none_or(|length| length <= limit);
        self.seen.whole = result.is_ok() && all;
        self.seen.whole
    }

    fn read_exactly(&mut self, length: usize) -> io::Result<()> {
        let start = self.seen.body.len();
        self.seen.body.resize(start + length, 0);
        self.reader.read_exact(&mut self.seen.body[start..])
    }

    fn read_chunks(&mut self, limit: usize) -> io::Result<()> {
        while self.seen.body.len() < limit {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            self.read_exactly(size)?;
            let mut end = [0; 2];
            self.reader.read_exact(&mut end)?;
            if size == 0 {
                return Ok(());
            }
        }
        Err(io::ErrorKind::Other.into())
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.reader.get_mut().write_all(bytes.as_ref()).is_ok()
    }

    /// A whole answer, with `headers` as lines without line ends.
    pub fn answer(&mut self, status: &str, headers: &[&str], body: impl AsRef<[u8]>) -> After {
        let body = body.as_ref();
        let length = format!("Content-Length: {}", body.len());
        let mut lines = headers.to_vec();
        if !headers
            .iter()
            .any(|h| h.to_ascii_lowercase().starts_with("content-length"))
        {
            lines.push(&length);
        }
        let mut all = format!("HTTP/1.1 {status}\r\n{}\r\n\r\n", lines.join("\r\n")).into_bytes();
        if self.seen.method != "HEAD" {
            all.extend_from_slice(body);
        }
        if self.send(all) {
            After::Keep
        } else {
            After::Close
        }
    }

    pub fn ok(&mut self, body: impl AsRef<[u8]>) -> After {
        self.answer("200 OK", &[], body)
    }

    /// Says and takes nothing more.
    pub fn silence(&mut self) -> After {
        loop {
            thread::park();
        }
    }

    /// Sends `bytes` again and again, with a pause before each, until nobody takes them.
    pub fn drip(&mut self, bytes: &[u8], pause: Duration) -> After {
        while self.send(bytes) {
            thread::sleep(pause);
        }
        After::Close
    }
}

impl Faulty {
    /// Answers each request with `answer`.
    pub fn new(answer: impl Fn(&mut Exchange<'_>) -> After + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let count = Arc::<AtomicUsize>::default();
        let (answer, counted, kept) = (Arc::new(answer), count.clone(), seen.clone());
        thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                let (answer, count, seen) = (answer.clone(), counted.clone(), kept.clone());
                let stream = stream.unwrap();
                thread::spawn(move || serve(stream, connection, &*answer, &count, &seen));
            }
        });
        Faulty { port, seen, count }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The requests so far, in the order of their answers.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How many requests came so far, answered or not.
    pub fn begun(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Waits until `count` requests are done with.
    pub fn wait_for(&self, count: usize) -> Vec<Seen> {
        for _ in 0..1000 {
            let seen = self.seen();
            if seen.len() >= count {
                return seen;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("{count} requests did not come: {:?}", self.seen());
    }
}

fn serve(
    stream: TcpStream,
    connection: usize,
    answer: &(impl Fn(&mut Exchange<'_>) -> After + ?Sized),
    count: &AtomicUsize,
    seen: &Mutex<Vec<Seen>>,
) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream);
    while let Some(head) = read_head(&mut reader, connection) {
        let mut exchange = Exchange {
            nth: count.fetch_add(1, Ordering::SeqCst),
            seen: head,
            reader: &mut reader,
        };
        let after = answer(&mut exchange);
        seen.lock().unwrap().push(exchange.seen);
        match after {
            After::Keep => {}
            After::Close => return,
            After::Reset => {
                let _ = set_socket_linger(reader.get_ref(), Some(Duration::ZERO));
                return;
            }
        }
    }
}

fn read_head(reader: &mut impl BufRead, connection: usize) -> Option<Seen> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut first = lines.first()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let header = |line: &String| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    };
    Some(Seen {
        method,
        target,
        headers: lines[1..].iter().filter_map(header).collect(),
        body: Vec::new(),
        whole: false,
        connection,
    })
}
