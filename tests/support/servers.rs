//! Real servers on loopback: nginx as a plain cache, Ceph and s3s-fs as S3 services. Each test has
//! its own.
#![allow(dead_code, reason = "each test uses its part")]

use super::{skip, test_name};
use std::{
    env,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{self, Child, ChildStdin, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
};

/// A running nginx: a folder as a static cache that takes PUT and DELETE. It ends when this is
/// dropped, the folder stays.
pub struct Nginx {
    /// Such as `https://localhost:20123`, without a slash at the end.
    pub url: String,
    /// The authority that signed its certificate; with TLS only.
    pub ca_file: Option<PathBuf>,
    _server: Server,
}

impl Nginx {
    /// nginx over the folder `root`; without it the test is skipped. With `tls` it speaks HTTP/2
    /// too. `rtt_ms`: what each round trip takes, in milliseconds.
    pub fn start(root: &Path, tls: bool, rtt_ms: u32) -> Option<Nginx> {
        let (server, [url, ca_file]) = Server::start("nginx", |command, port| {
            command.args(["--port", &port.to_string()]);
            if tls {
                command.arg("--tls");
            }
            if rtt_ms > 0 {
                command.args(["--rtt-ms", &rtt_ms.to_string()]);
            }
            command.arg(root);
            ["CACHE_URL", if tls { "SSL_CERT_FILE" } else { NOTHING }]
        })?;
        let ca_file = (!ca_file.is_empty()).then(|| ca_file.into());
        Some(Nginx {
            url,
            ca_file,
            _server: server,
        })
    }

    /// The environment in which programs trust it.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        let file = self.ca_file.as_ref().map(|f| f.display().to_string());
        let names = ["SSL_CERT_FILE", "NIX_SSL_CERT_FILE", "CURL_CA_BUNDLE"];
        let set = |file: String| names.map(|name| (name, file.clone()));
        file.into_iter().flat_map(set).collect()
    }
}

/// A running S3 service, without buckets. It ends, and its data goes, when this is dropped.
pub struct S3 {
    /// Such as `http://127.0.0.1:20123`.
    pub endpoint: String,
    /// The id of the key that may do everything.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    /// The region to sign for.
    pub region: String,
    _server: Server,
}

impl S3 {
    /// A Ceph gateway; without Ceph the test is skipped.
    ///
    /// It takes about 15 s to start and 240 MB: share one between the tests of a module.
    pub fn ceph() -> Option<S3> {
        S3::start("ceph")
    }

    /// s3s-fs over a folder of its own; without it the test is skipped.
    pub fn s3s_fs() -> Option<S3> {
        S3::start("s3s-fs")
    }

    fn start(name: &str) -> Option<S3> {
        let (server, [endpoint, access_key, secret_key, region]) =
            Server::start(name, |command, port| {
                command.args(["--port", &port.to_string()]);
                [
                    "S3_ENDPOINT",
                    "AWS_ACCESS_KEY_ID",
                    "AWS_SECRET_ACCESS_KEY",
                    "AWS_REGION",
                ]
            })?;
        Some(S3 {
            endpoint,
            access_key,
            secret_key,
            region,
            _server: server,
        })
    }

    /// The environment in which programs may use it.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", self.access_key.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.secret_key.clone()),
            ("AWS_REGION", self.region.clone()),
            ("AWS_DEFAULT_REGION", self.region.clone()),
        ]
    }

    /// The URI of a cache in `bucket`, as Nix and we take it.
    pub fn uri(&self, bucket: &str) -> String {
        let S3 {
            endpoint, region, ..
        } = self;
        let host = endpoint.trim_start_matches("http://");
        format!("s3://{bucket}?endpoint={host}&scheme=http&region={region}")
    }

    /// Makes the bucket.
    pub fn make_bucket(&self, bucket: &str) {
        self.curl(&["-X", "PUT"], bucket);
    }

    /// Lets everybody read and write the bucket: some builds of Nix cannot log in to S3.
    pub fn open_to_all(&self, bucket: &str) {
        let policy = format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Principal":"*","Action":"s3:*",
            "Resource":["arn:aws:s3:::{bucket}","arn:aws:s3:::{bucket}/*"]}}]}}"#
        );
        self.curl(
            &["-X", "PUT", "--data-binary", &policy],
            &format!("{bucket}?policy="),
        );
    }

    /// Uploads in parts that were begun and not ended, as XML.
    pub fn open_uploads(&self, bucket: &str) -> String {
        self.curl(&[], &format!("{bucket}?uploads="))
    }

    /// A signed request; gives the answer.
    fn curl(&self, args: &[&str], what: &str) -> String {
        let signing = format!("aws:amz:{}:s3", self.region);
        let user = format!("{}:{}", self.access_key, self.secret_key);
        let done = Command::new("curl")
            .args(["--fail-with-body", "-sS", "--noproxy", "*"])
            .args(["--aws-sigv4", &signing, "--user", &user])
            // Older ones sign without it, which S3 refuses.
            .args(["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"])
            .args(args)
            .arg(format!("{}/{what}", self.endpoint))
            .output()
            .expect("curl starts");
        assert!(done.status.success(), "{done:?}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    }
}

/// One of `tests/servers/with-*`, at work until this is dropped.
struct Server {
    child: Child,
    /// Its command reads it to the end: also when this process is killed, the server goes.
    stdin: Option<ChildStdin>,
}

impl Server {
    /// Runs `with-NAME`; `options` gives it its options and says which variables are wanted.
    fn start<const N: usize>(
        name: &str,
        options: impl Fn(&mut Command, u16) -> [&'static str; N],
    ) -> Option<(Server, [String; N])> {
        let lack = |reason: &str| skip(&format!("{} with {name}", test_name()), reason);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers");
        if !program_there(name) {
            lack("not installed; tests/servers/install does it on Debian");
            return None;
        }
        // Somebody else may take a port between the look and the start.
        for _ in 0..ATTEMPTS {
            let mut command = Command::new(folder.join(format!("with-{name}")));
            let variables = options(&mut command, free_ports());
            let names: Vec<_> = variables.map(|name| format!("\"${{{name}:-}}\"")).into();
            let script = format!("printf '%s\\n' {}; exec cat >/dev/null", names.join(" "));
            let mut child = command
                .args(["--", "sh", "-c", &script])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("tests/servers/with-* starts");
            let stdout = BufReader::new(child.stdout.take().expect("piped"));
            let server = Server {
                stdin: child.stdin.take(),
                child,
            };
            let lines: Vec<_> = stdout.lines().take(N).map_while(Result::ok).collect();
            if let Ok(values) = lines.try_into() {
                return Some((server, values));
            }
        }
        lack("it does not start; see stderr");
        None
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.wait();
    }
}

fn program_there(name: &str) -> bool {
    let program = match name {
        "ceph" => "radosgw",
        other => other,
    };
    let path = env::var_os("PATH").unwrap_or_default();
    let rig = env::var_os("NIX_RIG_DIR").map_or("/opt/nix-rig".into(), PathBuf::from);
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), rig.join(name).join("bin")])
        .any(|folder| folder.join(program).exists())
}

/// The first of some ports in a row that nobody uses, below those that the system hands out.
fn free_ports() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let spread = (process::id() % 1000) as u16 * 10;
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) * IN_A_ROW;
        let first = FIRST + spread.wrapping_add(step) % (LAST - FIRST - IN_A_ROW);
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if (first..first + IN_A_ROW).all(free) {
            return first;
        }
    }
}

/// A variable that is never set.
const NOTHING: &str = "TK_NO_SUCH_VARIABLE";
const ATTEMPTS: u32 = 3;
/// As many as a server needs.
const IN_A_ROW: u16 = 3;
const FIRST: u16 = 20_000;
const LAST: u16 = 32_000;
