//! The protocols' values: `nix/libstore/{common,worker,serve}-protocol/STEM.bin` are the bytes of the
//! values in `STEM.json`, one after another. The end of the stem says the version. A stem that is not
//! known here fails. Every file is also read in pieces of one byte, and cut at every byte.

use super::say;
use crate::support::{Golden, Tally, Vectors, equal};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fmt::Debug,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};
use tk_daemon::{
    serve::{self, Serve},
    wire::{Decode, Encode, Protocol, WireError, WireReader, Writer},
    worker::{
        self, Capabilities, Features, Op, Trust, Version, WorkerProtocol, handshake::ServerHello,
    },
};
use tk_narinfo::{
    PathInfo,
    build_result::{BuildResult, KeyedBuildResult},
    json::path_info_from_json,
    realisation::{DrvOutput, Realisation, UnkeyedRealisation, legacy},
};
use tk_path::{ContentAddress, DerivedPath, Hash, NarHash, StoreDir, StorePath};
use tk_store::BuildMode;
use tokio::io::{AsyncRead, ReadBuf};

#[test]
fn common() {
    protocol("common", |_| WorkerProtocol::new(StoreDir::default(), OLD));
}

#[test]
fn worker() {
    protocol("worker", |stem| {
        let mut worker = WorkerProtocol::new(StoreDir::default(), stem.version.unwrap_or(OLD));
        if stem.new {
            worker.version = worker::LATEST;
            worker.features = Features::from_iter([worker::features::REALISATION_WITH_PATH]);
        }
        worker
    });
}

#[test]
fn serve() {
    protocol("serve", |stem| {
        let minor = stem.version.map_or(5, |version| version.minor);
        Serve::new(StoreDir::default(), minor)
    });
}

#[test]
fn harmonia() {
    let vectors = Vectors::find();
    let row = "numbers of operations";
    let mut tally = Tally::new("golden data: harmonia's worker protocol", &[row]);
    for file in vectors.files("harmonia/worker-protocol", "") {
        tally.case(row, &file.name, || {
            let mut reader = WireReader::new(
                &file.bytes[..],
                WorkerProtocol::new(StoreDir::default(), OLD),
            );
            let number = run(reader.u64()).map_err(say)?;
            let op = Op::from_u64(number).ok_or_else(|| format!("no operation {number}"))?;
            let name = format!("op_{}", op.name().to_lowercase());
            equal(name.as_str(), file.base())?;
            equal(op.number(), number)
        });
    }
    tally.finish();
}

/// What a protocol must be able to do for [`protocol`].
trait Folder: Protocol {
    /// Runs one file, if its kind is known.
    fn case(run: &mut Run<'_, Self>) -> Option<()>;
}

fn protocol<P: Folder>(name: &str, context: impl Fn(&Stem) -> P) {
    let vectors = Vectors::find();
    let folder = format!("nix/libstore/{name}-protocol");
    // The protocols' common values have no handshake.
    let rows = &ROWS[usize::from(name == "common")..];
    let mut tally = Tally::new(&format!("golden data: {name} protocol"), rows);
    for file in vectors.files(&folder, ".bin") {
        let stem = Stem::parse(file.base().trim_end_matches(".bin"));
        let json = vectors.json(&file.name.replace(".bin", ".json"));
        let items = match json {
            Some(Value::Array(items)) => items,
            Some(one) => vec![one],
            None => Vec::new(),
        };
        let mut run = Run {
            protocol: context(&stem),
            file: &file,
            stem: &stem,
            items,
            tally: &mut tally,
        };
        let known = P::case(&mut run);
        tally.case(KNOWN, &file.name, || {
            known.ok_or_else(|| format!("nothing tests {:?}", stem.kind))
        });
    }
    tally.finish();
}

impl Folder for WorkerProtocol {
    fn case(run: &mut Run<'_, Self>) -> Option<()> {
        match (run.stem.kind.as_str(), run.stem.new) {
            ("drv-output", true) => run.all(|v| DrvOutput::from_json(v).map_err(say)),
            ("unkeyed-realisation", true) => {
                run.all(|v| UnkeyedRealisation::from_json(v).map_err(say));
            }
            ("realisation", true) => run.all(|v| Realisation::from_json(v).map_err(say)),
            ("build-result", true) => run.all(|v| BuildResult::from_json(v).map_err(say)),
            ("build-result", false) => run.build_results(BuildResult::from_json),
            ("keyed-build-result", _) => run.build_results(KeyedBuildResult::from_json),
            ("derived-path", _) => run.all(|v| DerivedPath::from_json(v).map_err(say)),
            ("unkeyed-valid-path-info", _) => {
                run.all(|v| Ok(worker::UnkeyedPathInfo::from(path_info(v)?)))
            }
            ("valid-path-info", _) => run.all(path_info),
            ("build-mode", _) => run.all(|v| match v.as_u64() {
                Some(0) => Ok(BuildMode::Normal),
                Some(1) => Ok(BuildMode::Repair),
                Some(2) => Ok(BuildMode::Check),
                _ => Err(format!("mode {v}")),
            }),
            ("optional-trusted-flag", _) => run.all(|v| match v {
                Value::Null => Ok(None),
                Value::Bool(true) => Ok(Some(Trust::Trusted)),
                Value::Bool(false) => Ok(Some(Trust::NotTrusted)),
                _ => Err(format!("flag {v}")),
            }),
            ("client-handshake-info", _) => {
                let values = hellos(run.stem.version.expect("a version").minor);
                run.values(Ok(values), true);
            }
            ("handshake-to-client", _) => run.handshake(|bytes| async move {
                let mut reader =
                    WireReader::new(bytes, WorkerProtocol::new(StoreDir::default(), OLD));
                let offered = Capabilities {
                    version: OLD,
                    features: Features::all(),
                };
                worker::handshake::greet(&mut reader, &mut Vec::new(), &offered, OLD)
                    .await
                    .map_err(say)?;
                let agreed = reader.protocol();
                equal((agreed.version, &agreed.features), (OLD, &Features::none()))
            }),
            _ => return run.common(),
        }
        Some(())
    }
}

impl Folder for Serve {
    fn case(run: &mut Run<'_, Self>) -> Option<()> {
        match (run.stem.kind.as_str(), run.protocol.at_least(8)) {
            ("drv-output", true) => run.all(|v| DrvOutput::from_json(v).map_err(say)),
            ("unkeyed-realisation", true) => {
                run.all(|v| UnkeyedRealisation::from_json(v).map_err(say));
            }
            ("realisation", true) => run.all(|v| Realisation::from_json(v).map_err(say)),
            ("build-result", true) => run.all(|v| BuildResult::from_json(v).map_err(say)),
            ("build-result", false) => run.build_results(BuildResult::from_json),
            ("unkeyed-valid-path-info", _) => {
                let hashed = run.protocol.at_least(4);
                run.all(|v| {
                    let mut info = serve::ServePathInfo::from(path_info(v)?);
                    // Where there is none on the wire, the JSON has zeros.
                    let none = Some(NarHash::from_bytes([0; 32]));
                    info.nar_hash = info.nar_hash.filter(|_| hashed || info.nar_hash != none);
                    Ok(info)
                });
            }
            ("build-options", _) => run.build_options(),
            ("handshake-to-client", _) => run.handshake(|bytes| async move {
                let mut reader = WireReader::new(bytes, Serve::new(StoreDir::default(), 0));
                serve::handshake::client(&mut reader, &mut Vec::new(), 5)
                    .await
                    .map_err(say)?;
                equal(reader.protocol().minor, 5)
            }),
            _ => return run.common(),
        }
        Some(())
    }
}

/// One file.
struct Run<'a, P> {
    protocol: P,
    file: &'a Golden,
    stem: &'a Stem,
    items: Vec<Value>,
    tally: &'a mut Tally,
}

impl<P: Protocol> Run<'_, P> {
    /// The kinds that are the same in all protocols.
    fn common(&mut self) -> Option<()> {
        match self.stem.kind.as_str() {
            "string" => self.all(|v| text(v).map(str::to_owned)),
            "store-path" => self.all(store_path),
            "optional-store-path" => self.all(|v| optional(v, store_path)),
            "content-address" => self.all(content_address),
            "optional-content-address" => self.all(|v| optional(v, content_address)),
            "vector" | "set" => self.nested(),
            "drv-output" => self.all(|v| legacy::LegacyDrvOutput::parse(text(v)?).map_err(say)),
            "realisation" | "realisation-with-deps" => {
                let values =
                    self.read_json(|v| legacy::LegacyRealisation::from_json(v).map_err(say));
                // Signatures that are objects are read, but the older form has texts.
                let texts = !String::from_utf8_lossy(&self.file.bytes).contains("keyName");
                self.values(values, texts);
            }
            _ => return None,
        }
        Some(())
    }

    /// Reads and writes the values that `from_json` makes of the JSON.
    fn all<T>(&mut self, from_json: impl Fn(&Value) -> Result<T, String>)
    where
        T: Encode<P> + Decode<P> + PartialEq + Debug,
    {
        let values = self.read_json(from_json);
        self.values(values, true);
    }

    /// Build results: of those that tell outputs in the older form, only the names and paths are
    /// read, and they are not written like that again.
    fn build_results<T, E: ToString>(&mut self, from_json: impl Fn(&Value) -> Result<T, E>)
    where
        T: Encode<P> + Decode<P> + PartialEq + Debug,
    {
        let values = self.read_json(|v| from_json(v).map_err(|e| e.to_string()));
        let older = String::from_utf8_lossy(&self.file.bytes).contains("dependentRealisations");
        self.values(values, !older);
    }

    fn build_options(&mut self)
    where
        serve::ServeBuildOptions: Encode<P> + Decode<P>,
    {
        let minor = self.stem.version.expect("a version").minor;
        let since = |version| minor >= version;
        let mut options = serve::ServeBuildOptions::default();
        options.max_silent_time = 5;
        options.build_timeout = 6;
        options.max_log_size = if since(2) { 7 } else { 0 };
        options.repeats = if since(3) { 8 } else { 0 };
        options.enforce_determinism = since(3) && !since(7);
        options.keep_failed = since(7);
        self.values(Ok(vec![options]), true);
    }

    fn read_json<T>(
        &self,
        from_json: impl Fn(&Value) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        if self.items.is_empty() {
            Err("there is no JSON, or none in it".to_owned())
        } else {
            self.items.iter().map(from_json).collect()
        }
    }

    /// The bytes must be `values`, and if `written`, `values` must be the bytes.
    fn values<T>(&mut self, values: Result<Vec<T>, String>, written: bool)
    where
        T: Encode<P> + Decode<P> + PartialEq + Debug,
    {
        let (bytes, name) = (&self.file.bytes[..], &self.file.name);
        let values = match values {
            Ok(values) => values,
            Err(error) => return self.tally.case(READ, name, || Err(error)),
        };
        let read =
            |bytes: &[u8], slow| run(read_all::<P, T>(&self.protocol, bytes, slow, values.len()));
        let got = |slow| equal(&read(bytes, slow).map_err(say)?, &values);
        self.tally.case(READ, name, || got(false));
        self.tally.case(SLOW, name, || got(true));
        let write = || {
            let mut writer = Writer::new(self.protocol.clone());
            for value in &values {
                writer.value(value).map_err(say)?;
            }
            Ok::<_, String>(writer.take())
        };
        if written {
            self.tally
                .case(WRITTEN, name, || equal(&write()?[..], bytes))
        } else {
            self.tally.case(AGAIN, name, || {
                equal(&read(&write()?, false).map_err(say)?, &values)
            })
        }
        for end in 0..bytes.len() {
            let what = format!("{name} to byte {end}");
            self.tally
                .case(CUT, &what, || match read(&bytes[..end], true) {
                    Err(error) if error.is_end() => Ok(()),
                    other => Err(format!("{other:?}")),
                });
        }
    }

    /// Lists of texts and lists of lists of texts.
    fn nested(&mut self) {
        let set = self.stem.kind == "set";
        let is_nested = |item: &Value| {
            item.as_array()
                .is_some_and(|a| a.iter().any(Value::is_array))
        };
        let (protocol, items) = (&self.protocol, &self.items);
        let read = |bytes: &[u8], slow: bool| {
            let mut reader = WireReader::new(Pieces::new(bytes, slow), protocol.clone());
            let mut writer = Writer::new(protocol.clone());
            let mut values = Vec::new();
            for item in items {
                values.push(run(async {
                    match (set, is_nested(item)) {
                        (true, true) => {
                            again::<P, BTreeSet<BTreeSet<String>>>(&mut reader, &mut writer).await
                        }
                        (true, false) => {
                            again::<P, BTreeSet<String>>(&mut reader, &mut writer).await
                        }
                        (false, true) => {
                            again::<P, Vec<Vec<String>>>(&mut reader, &mut writer).await
                        }
                        (false, false) => again::<P, Vec<String>>(&mut reader, &mut writer).await,
                    }
                })?);
            }
            equal(run(reader.at_end()).map_err(say)?, true)?;
            Ok::<_, String>((values, writer.take()))
        };
        let (bytes, name) = (&self.file.bytes[..], &self.file.name);
        for (row, slow) in [(READ, false), (SLOW, true)] {
            self.tally
                .case(row, name, || equal(&read(bytes, slow)?.0, items));
        }
        self.tally
            .case(WRITTEN, name, || equal(&read(bytes, false)?.1[..], bytes));
        for end in 0..bytes.len() {
            self.tally.case(CUT, &format!("{name} to byte {end}"), || {
                match read(&bytes[..end], true) {
                    Ok(values) => Err(format!("{values:?}")),
                    Err(_) => Ok(()),
                }
            });
        }
    }

    /// The first words of a server. Nothing that is cut passes, and what is damaged does not pass for
    /// something else.
    fn handshake<F>(&mut self, client: impl Fn(Pieces) -> F)
    where
        F: Future<Output = Result<(), String>>,
    {
        let (bytes, name) = (&self.file.bytes[..], &self.file.name);
        for (row, slow) in [(READ, false), (SLOW, true)] {
            self.tally
                .case(row, name, || run(client(Pieces::new(bytes, slow))));
        }
        for end in 0..bytes.len() {
            self.tally.case(CUT, &format!("{name} to byte {end}"), || {
                match run(client(Pieces::new(&bytes[..end], true))) {
                    Ok(()) => Err("it passed".to_owned()),
                    Err(_) => Ok(()),
                }
            });
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            self.tally.case(DAMAGED, &format!("{name}, bit {bit}"), || {
                match run(client(Pieces::new(&damaged, false))) {
                    // A client passes if it finds what it would have without the damage.
                    Ok(()) if bit / 8 < 8 => Err("it passed".to_owned()),
                    _ => Ok(()),
                }
            });
        }
    }
}

/// Reads a value of nested lists, writes it again, and gives it as JSON.
async fn again<P: Protocol, T>(
    reader: &mut WireReader<Pieces, P>,
    writer: &mut Writer<P>,
) -> Result<Value, String>
where
    T: Decode<P> + Encode<P> + Json,
{
    let value: T = reader.value().await.map_err(say)?;
    writer.value(&value).map_err(say)?;
    Ok(value.json())
}

/// Lists as JSON.
trait Json {
    fn json(&self) -> Value;
}

impl Json for String {
    fn json(&self) -> Value {
        self.as_str().into()
    }
}

impl<T: Json> Json for Vec<T> {
    fn json(&self) -> Value {
        self.iter().map(Json::json).collect()
    }
}

impl<T: Json> Json for BTreeSet<T> {
    fn json(&self) -> Value {
        self.iter().map(Json::json).collect()
    }
}

async fn read_all<P: Protocol, T: Decode<P>>(
    protocol: &P,
    bytes: &[u8],
    slow: bool,
    count: usize,
) -> Result<Vec<T>, WireError> {
    let mut reader = WireReader::new(Pieces::new(bytes, slow), protocol.clone());
    let mut values = Vec::new();
    for _ in 0..count {
        values.push(reader.message().await?);
    }
    if reader.at_end().await? {
        Ok(values)
    } else {
        Err(reader.malformed("something is left over"))
    }
}

/// What the end of a name says: `KIND[-1.30][-compat]`, `KIND_1_30`, or `KIND-FEATURE`.
#[derive(Debug)]
struct Stem {
    kind: String,
    version: Option<Version>,
    new: bool,
}

impl Stem {
    fn parse(stem: &str) -> Self {
        let (stem, new) = match stem.strip_suffix("-realisation-with-path-not-hash") {
            Some(kind) => (kind, true),
            None => (stem.strip_suffix("-compat").unwrap_or(stem), false),
        };
        let numbers = |major: &str, minor: &str| {
            Some(Version {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
            })
        };
        let dotted = stem.rsplit_once('-').and_then(|(kind, version)| {
            let (major, minor) = version.split_once('.')?;
            Some((kind, numbers(major, minor)?))
        });
        let scored = stem.rsplit_once('_').and_then(|(rest, minor)| {
            let (kind, major) = rest.rsplit_once('_')?;
            Some((kind, numbers(major, minor)?))
        });
        let (kind, version) = match dotted.or(scored) {
            Some((kind, version)) => (kind, Some(version)),
            None => (stem, None),
        };
        Stem {
            kind: kind.to_owned(),
            version,
            new,
        }
    }
}

/// Bytes that come at once, or one by one with pauses.
struct Pieces {
    bytes: Vec<u8>,
    at: usize,
    slow: bool,
    pause: bool,
}

impl Pieces {
    fn new(bytes: &[u8], slow: bool) -> Self {
        Pieces {
            bytes: bytes.to_vec(),
            at: 0,
            slow,
            pause: false,
        }
    }
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.pause = self.slow && !self.pause;
        if self.pause {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let most = if self.slow { 1 } else { usize::MAX };
        let end = self.bytes.len().min(self.at + most.min(out.remaining()));
        out.put_slice(&self.bytes[self.at..end]);
        self.at = end;
        Poll::Ready(Ok(()))
    }
}

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime")
        .block_on(future)
}

fn hellos(minor: u8) -> Vec<ServerHello> {
    let hello = |version: &str, trust| ServerHello {
        nix_version: Some(version.to_owned()),
        trust: Some(trust).filter(|_| minor >= 35),
    };
    match minor {
        ..33 => vec![ServerHello::default()],
        _ => vec![
            hello("foo", Trust::NotTrusted),
            hello("bar", Trust::Trusted),
        ],
    }
}

fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| format!("no text: {value}"))
}

fn optional<T>(
    value: &Value,
    from_json: impl Fn(&Value) -> Result<T, String>,
) -> Result<Option<T>, String> {
    match value {
        Value::Null => Ok(None),
        value => from_json(value).map(Some),
    }
}

fn store_path(value: &Value) -> Result<StorePath, String> {
    StorePath::parse(text(value)?).map_err(say)
}

fn content_address(value: &Value) -> Result<ContentAddress, String> {
    Ok(ContentAddress {
        method: text(&value["method"])?.parse().map_err(say)?,
        hash: Hash::parse_sri(text(&value["hash"])?).map_err(say)?,
    })
}

/// A path info with its path; one is made up where there is none.
fn path_info(value: &Value) -> Result<PathInfo, String> {
    let path = match &value["path"] {
        Value::Null => "g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-unkeyed",
        path => text(path)?,
    };
    let path = StorePath::parse(path).map_err(say)?;
    path_info_from_json(value, &StoreDir::default(), &path).map_err(say)
}

/// Where nothing else is said.
const OLD: Version = Version::minor(10);

const ROWS: [&str; 7] = [DAMAGED, READ, SLOW, WRITTEN, AGAIN, CUT, KNOWN];
const READ: &str = "read";
const SLOW: &str = "read byte by byte";
const WRITTEN: &str = "written, the same bytes";
const AGAIN: &str = "written in the form of today, and read again";
const CUT: &str = "cut at a byte: an error";
const DAMAGED: &str = "a bit of the handshake changed: an error, or the same";
const KNOWN: &str = "of a kind that is tested";
