//! A small S3 service: one bucket, one user, signatures checked as Amazon's are.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{SystemTime, UNIX_EPOCH},
};
use tk_path::{Algorithm, Encoding, Hash};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream},
    net::{TcpListener, TcpStream},
};

pub const KEY: &str = "AKEXAMPLE";
pub const SECRET: &str = "secret/+=";
pub const REGION: &str = "eu-test-1";
pub const BUCKET: &str = "cache";

/// A running service. A clone is the same one.
#[derive(Clone)]
pub struct S3 {
    pub addr: SocketAddr,
    state: Arc<Mutex<State>>,
}

type Fault = Box<dyn FnMut(&Request) -> Option<Reply> + Send>;

#[derive(Default)]
pub struct State {
    pub objects: BTreeMap<String, Object>,
    /// By id.
    pub uploads: BTreeMap<String, Multipart>,
    /// All that was asked: `GET /cache/x?query`.
    pub asked: Vec<String>,
    /// Bytes of bodies that were sent here.
    pub received: usize,
    /// Temporary credentials that are known beside [`KEY`]: id to secret.
    pub keys: BTreeMap<String, String>,
    /// Whether requests without signature are answered.
    pub open_to_all: bool,
    fault: Option<Fault>,
    next_id: u64,
}

#[derive(Clone, Default)]
pub struct Object {
    pub content: Vec<u8>,
    pub headers: BTreeMap<String, String>,
}

#[derive(Clone)]
pub struct Multipart {
    pub key: String,
    pub parts: BTreeMap<usize, Vec<u8>>,
    pub began: u64,
    headers: BTreeMap<String, String>,
}

pub struct Request {
    pub method: String,
    pub path: String,
    pub query: BTreeMap<String, String>,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Bytes of the body after which the connection ends.
    pub cut: Option<usize>,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let (headers, cut) = (Vec::new(), None);
        Reply {
            status,
            headers,
            body: body.into(),
            cut,
        }
    }

    pub fn error(status: u16, code: &str, more: &str) -> Self {
        let xml = format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>in words</Message>{more}\
             </Error>"
        );
        Reply::new(status, xml)
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Nothing, on a connection that stays open.
    pub fn silence() -> Self {
        Reply::new(1, "")
    }

    /// No answer at all.
    pub fn hang_up() -> Self {
        let mut reply = Reply::new(0, "");
        reply.cut = Some(0);
        reply
    }
}

impl S3 {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::default();
        let s3 = S3 { addr, state };
        let accepting = s3.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let serving = accepting.clone();
                tokio::spawn(async move { serving.serve(connection).await });
            }
        });
        s3
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Answers of `fault` come before all others.
    pub fn fault(&self, fault: impl FnMut(&Request) -> Option<Reply> + Send + 'static) {
        self.state().fault = Some(Box::new(fault));
    }

    pub fn no_fault(&self) {
        self.state().fault = None;
    }

    /// An upload that somebody began so many seconds ago.
    pub fn add_upload(&self, key: &str, id: &str, ago: u64) {
        let upload = Multipart {
            key: key.to_owned(),
            parts: BTreeMap::new(),
            began: now() - ago,
            headers: BTreeMap::new(),
        };
        self.state().uploads.insert(id.to_owned(), upload);
    }

    async fn serve(&self, connection: TcpStream) {
        let mut connection = BufStream::new(connection);
        while let Some(request) = read_request(&mut connection).await {
            let reply = self.reply(&request);
            if reply.status == 1 {
                std::future::pending::<()>().await;
            }
            let mut head = format!("HTTP/1.1 {} Words\r\n", reply.status);
            let mut length = reply.body.len().to_string();
            for (name, value) in &reply.headers {
                match name.as_str() {
                    "content-length" => length.clone_from(value),
                    _ => head.push_str(&format!("{name}: {value}\r\n")),
                }
            }
            head.push_str(&format!("content-length: {length}\r\n\r\n"));
            if reply.cut == Some(0) {
                return;
            }
            let body = match request.method.as_str() {
                "HEAD" => &[][..],
                _ => &reply.body[..reply.cut.unwrap_or(reply.body.len())],
            };
            let sent = async {
                connection.write_all(head.as_bytes()).await?;
                connection.write_all(body).await?;
                connection.flush().await
            };
            if sent.await.is_err() || reply.cut.is_some() {
                return;
            }
        }
    }

    fn reply(&self, request: &Request) -> Reply {
        let mut state = self.state();
        let query = request.query.iter().map(|(k, v)| format!("{k}={v}"));
        let query = query.collect::<Vec<_>>().join("&");
        state
            .asked
            .push(format!("{} {}?{query}", request.method, request.path));
        state.received += request.body.len();
        let mut fault = state.fault.take();
        let reply = fault.as_mut().and_then(|fault| fault(request));
        state.fault = fault;
        if let Some(reply) = reply {
            return reply;
        }
        if let Err(reply) = check_signature(&state, request) {
            return reply;
        }
        let path = request.path.trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        if bucket != BUCKET {
            return Reply::error(404, "NoSuchBucket", "");
        }
        state.answer(request, key)
    }
}

impl State {
    fn answer(&mut self, request: &Request, key: &str) -> Reply {
        let query = |name: &str| request.query.get(name).map(String::as_str);
        let upload = query("uploadId").map(str::to_owned);
        match (request.method.as_str(), upload) {
            ("GET", None) if key.is_empty() && query("uploads").is_some() => {
                self.list_uploads(query("prefix").unwrap_or_default())
            }
            ("GET", None) if key.is_empty() => self.list(request),
            ("POST", None) if query("uploads").is_some() => self.begin(request, key),
            ("POST", None) if query("delete").is_some() => self.delete(request),
            ("PUT", None) => self.put(request, key),
            ("GET" | "HEAD", None) => self.get(request, key),
            (method, Some(id)) => match (self.uploads.get_mut(&id), method) {
                (None, _) => Reply::error(404, "NoSuchUpload", ""),
                (Some(upload), "PUT") => {
                    let number = query("partNumber").unwrap().parse().unwrap();
                    upload.parts.insert(number, request.body.clone());
                    Reply::new(200, "").with("etag", &etag(&request.body))
                }
                (Some(_), "GET") => Reply::new(200, "<ListPartsResult></ListPartsResult>"),
                (Some(_), "DELETE") => {
                    self.uploads.remove(&id);
                    Reply::new(204, "")
                }
                _ => self.complete(request, &id),
            },
            _ => Reply::error(501, "NotImplemented", ""),
        }
    }

    fn put(&mut self, request: &Request, key: &str) -> Reply {
        if request.headers.contains_key("if-none-match") && self.objects.contains_key(key) {
            return Reply::error(412, "PreconditionFailed", "");
        }
        let content = request.body.clone();
        let etag = etag(&content);
        let headers = request.headers.clone();
        self.objects
            .insert(key.to_owned(), Object { content, headers });
        Reply::new(200, "").with("etag", &etag)
    }

    fn get(&self, request: &Request, key: &str) -> Reply {
        let Some(object) = self.objects.get(key) else {
            return Reply::error(404, "NoSuchKey", "");
        };
        let etag = etag(&object.content);
        if request
            .headers
            .get("if-match")
            .is_some_and(|wanted| *wanted != etag)
        {
            return Reply::error(412, "PreconditionFailed", "");
        }
        let size = object.content.len();
        let range = request.headers.get("range").map(|range| {
            let (from, to) = range
                .strip_prefix("bytes=")
                .unwrap()
                .split_once('-')
                .unwrap();
            (from.parse::<usize>().unwrap(), to.parse::<usize>().unwrap())
        });
        let mut reply = match range {
            None => Reply::new(200, object.content.clone()),
            Some((from, to)) => Reply::new(206, object.content[from..=to].to_vec())
                .with("content-range", &format!("bytes {from}-{to}/{size}")),
        };
        for name in ["content-type", "content-encoding"] {
            if let Some(value) = object.headers.get(name) {
                reply = reply.with(name, value);
            }
        }
        reply
            .with("etag", &etag)
            .with("last-modified", "Mon, 23 Nov 2026 22:11:33 GMT")
    }

    /// Two names a page.
    fn list(&self, request: &Request) -> Reply {
        let query = |name: &str| request.query.get(name).map_or("", String::as_str);
        let (prefix, after) = (query("prefix"), query("continuation-token"));
        let below = |key: &String| key.starts_with(prefix) && key.as_str() > after;
        let mut folders = BTreeSet::new();
        let mut names: Vec<_> = self.objects.keys().filter(|key| below(key)).collect();
        if let Some(delimiter) = request.query.get("delimiter") {
            names.retain(|key| match key[prefix.len()..].split_once(delimiter) {
                Some((folder, _)) => {
                    folders.insert(format!("{prefix}{folder}{delimiter}"));
                    false
                }
                None => true,
            });
        }
        let page = &names[..names.len().min(2)];
        let mut xml = "<ListBucketResult>".to_owned();
        for key in page {
            let size = self.objects[*key].content.len();
            xml.push_str(&format!(
                "<Contents><Key>{key}</Key><Size>{size}</Size>\
                 <LastModified>2026-11-23T22:11:33.000Z</LastModified></Contents>"
            ));
        }
        for folder in folders {
            xml.push_str(&format!(
                "<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>"
            ));
        }
        if names.len() > page.len() {
            xml.push_str(&format!(
                "<NextContinuationToken>{}</NextContinuationToken>",
                page[1]
            ));
        }
        Reply::new(200, xml + "</ListBucketResult>")
    }

    fn delete(&mut self, request: &Request) -> Reply {
        let body = String::from_utf8_lossy(&request.body);
        let keys = body
            .split("<Key>")
            .skip(1)
            .map(|rest| rest.split('<').next().unwrap());
        let mut xml = "<DeleteResult>".to_owned();
        for key in keys {
            self.objects.remove(key);
            xml.push_str(&format!("<Deleted><Key>{key}</Key></Deleted>"));
        }
        Reply::new(200, xml + "</DeleteResult>")
    }

    fn begin(&mut self, request: &Request, key: &str) -> Reply {
        self.next_id += 1;
        let id = format!("upload/{}+", self.next_id);
        let upload = Multipart {
            key: key.to_owned(),
            parts: BTreeMap::new(),
            began: now(),
            headers: request.headers.clone(),
        };
        self.uploads.insert(id.clone(), upload);
        let xml = format!(
            "<InitiateMultipartUploadResult><UploadId>{id}</UploadId>\
             </InitiateMultipartUploadResult>"
        );
        Reply::new(200, xml)
    }

    fn complete(&mut self, request: &Request, id: &str) -> Reply {
        let body = String::from_utf8_lossy(&request.body);
        let upload = self.uploads[id].clone();
        let mut content = Vec::new();
        let sections: Vec<_> = body.split("<Part>").skip(1).collect();
        for (i, section) in sections.iter().enumerate() {
            let field = |name: &str| {
                let rest = section.split(&format!("<{name}>")).nth(1).unwrap();
                rest.split('<').next().unwrap().replace("&quot;", "\"")
            };
            let part = upload.parts.get(&field("PartNumber").parse().unwrap());
            match part {
                Some(part) if etag(part) == field("ETag") => content.extend_from_slice(part),
                _ => return Reply::error(400, "InvalidPart", ""),
            }
            if i + 1 < sections.len() && part.unwrap().len() < 5 << 20 {
                return Reply::error(400, "EntityTooSmall", "");
            }
        }
        self.uploads.remove(id);
        let etag = etag(&content);
        let headers = upload.headers;
        self.objects.insert(upload.key, Object { content, headers });
        Reply::new(
            200,
            format!(
                "<CompleteMultipartUploadResult><ETag>{etag}</ETag>\
                 </CompleteMultipartUploadResult>"
            ),
        )
    }

    fn list_uploads(&self, prefix: &str) -> Reply {
        let mut xml = "<ListMultipartUploadsResult>".to_owned();
        for (id, upload) in self
            .uploads
            .iter()
            .filter(|(_, u)| u.key.starts_with(prefix))
        {
            xml.push_str(&format!(
                "<Upload><Key>{}</Key><UploadId>{id}</UploadId><Initiated>{}</Initiated></Upload>",
                upload.key,
                time(upload.began)
            ));
        }
        Reply::new(200, xml + "</ListMultipartUploadsResult>")
    }
}

async fn read_request(connection: &mut BufStream<TcpStream>) -> Option<Request> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if connection.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut words = lines[0].split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers = lines[1..].iter().map(|line| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_ascii_lowercase(), value.trim().to_owned())
    });
    let headers: BTreeMap<_, _> = headers.collect();
    let length = headers
        .get("content-length")
        .map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    connection.read_exact(&mut body).await.ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    Some(Request {
        method,
        path: decode(path),
        query: pairs.map(|(k, v)| (decode(k), decode(v))).collect(),
        headers,
        body,
    })
}

/// As Amazon describes it, from what arrived.
fn check_signature(state: &State, request: &Request) -> Result<(), Reply> {
    let Some(authorization) = request.headers.get("authorization") else {
        return if state.open_to_all {
            Ok(())
        } else {
            Err(Reply::error(403, "AccessDenied", ""))
        };
    };
    let field = |name: &str| {
        let (_, rest) = authorization.split_once(&format!("{name}=")).unwrap();
        rest.split(',').next().unwrap().to_owned()
    };
    let credential = field("Credential");
    let (id, scope) = credential.split_once('/').unwrap();
    let secret = match state.keys.get(id) {
        Some(secret) => secret.as_str(),
        None if id == KEY => SECRET,
        None => return Err(Reply::error(403, "InvalidAccessKeyId", "")),
    };
    let [date, region, service, _] = scope.split('/').collect::<Vec<_>>()[..] else {
        panic!("{scope}");
    };
    if region != REGION {
        let region = format!("<Region>{REGION}</Region>");
        return Err(Reply::error(400, "AuthorizationHeaderMalformed", &region));
    }
    let signed = field("SignedHeaders");
    let headers = signed
        .split(';')
        .map(|name| format!("{name}:{}\n", request.headers[name]));
    let query = request
        .query
        .iter()
        .map(|(k, v)| format!("{}={}", encode(k), encode(v)));
    let hash = &request.headers["x-amz-content-sha256"];
    assert!(
        hash == "UNSIGNED-PAYLOAD" || *hash == hex(&sha256(&request.body)),
        "{hash}"
    );
    let canonical = format!(
        "{}\n{}\n{}\n{}\n{signed}\n{hash}",
        request.method,
        request
            .path
            .split('/')
            .map(encode)
            .collect::<Vec<_>>()
            .join("/"),
        query.collect::<Vec<_>>().join("&"),
        headers.collect::<String>(),
    );
    let time = &request.headers["x-amz-date"];
    let text = format!(
        "AWS4-HMAC-SHA256\n{time}\n{scope}\n{}",
        hex(&sha256(canonical.as_bytes()))
    );
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in [date, region, service, "aws4_request"] {
        key = hmac(&key, part.as_bytes());
    }
    if hex(&hmac(&key, text.as_bytes())) == field("Signature") {
        Ok(())
    } else {
        Err(Reply::error(403, "SignatureDoesNotMatch", ""))
    }
}

fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let key = if key.len() > 64 {
        sha256(key)
    } else {
        key.to_vec()
    };
    let pad = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(&key).for_each(|(b, k)| *b ^= k);
        block
    };
    let inner = sha256(&[&pad(0x36)[..], text].concat());
    sha256(&[&pad(0x5c)[..], &inner].concat())
}

fn sha256(data: &[u8]) -> Vec<u8> {
    Hash::digest(Algorithm::Sha256, data).as_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The tag that the service gives to `content`.
pub fn etag(content: &[u8]) -> String {
    let hash = Hash::digest(Algorithm::Sha256, content).digits(Encoding::Base16);
    format!("\"{}\"", &hash[..32])
}

fn encode(text: &str) -> String {
    let keep = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    let encode = |b: u8| {
        if keep(b) {
            char::from(b).to_string()
        } else {
            format!("%{b:02X}")
        }
    };
    text.bytes().map(encode).collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(b) = rest.next() {
        bytes.push(match b {
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            b'+' => b' ',
            b => b,
        });
    }
    String::from_utf8(bytes).unwrap()
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// Seconds since 1970 as S3 writes them.
fn time(seconds: u64) -> String {
    let (mut days, mut year) = (seconds / 86_400, 1970);
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [
        31,
        28 + u64::from(leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    let (hour, minute) = (seconds / 3600 % 24, seconds / 60 % 60);
    let second = seconds % 60;
    let (month, day) = (month + 1, days + 1);
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.000Z")
}
