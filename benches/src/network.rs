//! `tk-bench network`: caches in folders, on a real nginx and on a real S3 service, asked, filled and read by us, by real
//! Nix and, where it can, by curl, in turn.
//!
//! Each turn has a server of its own that starts empty, or holds what is asked for.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use tk_nar::fs::remove_tree;

use crate::closures::{Closures, Sizes};
use crate::contender::Role;
use crate::contender::{self, Contender};
use crate::contest::{Contest, Row};
use crate::fresh::Fresh;
use crate::measure::{self, Sample, Surroundings, sample};
use crate::report::{NO_SPACE, Outputs, Report, Skip};

/// Ask, fill and read caches on real servers, with ours, with real Nix and with curl in turn.
#[derive(clap::Parser)]
pub struct Network {
    /// Which jobs, by parts of their names [default: all]
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    jobs: Vec<String>,
    /// How often each is measured, after one time to warm up
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// The version of real Nix that is the rival
    #[arg(long, default_value = "2.34", value_name = "VERSION")]
    nix: String,
    /// The share of the full size, for a quick try
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    #[command(flatten)]
    outputs: Outputs,
    #[command(flatten)]
    place: crate::place::Place,
}

/// One thing to do, somewhere.
#[derive(Debug, Clone, Copy)]
struct Job {
    name: &'static str,
    what: What,
    place: Place,
    /// The round trip, milliseconds.
    rtt: u32,
    compression: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// Which of 2,000 paths are there; every second one is. Nothing is known before.
    Check,
    /// The same, asked once before.
    CheckAgain,
    /// 500 paths, 1 GB; with xz 50 paths, since that takes Nix minutes.
    Push,
    /// The same back into a new store on disk.
    Pull,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Folder,
    Nginx,
    NginxTls,
    Ceph,
}

const fn job(
    name: &'static str,
    what: What,
    place: Place,
    rtt: u32,
    compression: &'static str,
) -> Job {
    Job {
        name,
        what,
        place,
        rtt,
        compression,
    }
}

const JOBS: [Job; 23] = [
    job("push folder none", What::Push, Place::Folder, 0, "none"),
    job("push folder zstd", What::Push, Place::Folder, 0, "zstd"),
    job("push folder xz", What::Push, Place::Folder, 0, "xz"),
    job("pull folder none", What::Pull, Place::Folder, 0, "none"),
    job("pull folder zstd", What::Pull, Place::Folder, 0, "zstd"),
    job("pull folder xz", What::Pull, Place::Folder, 0, "xz"),
    job("check http", What::Check, Place::Nginx, 0, "zstd"),
    job(
        "check https 40 ms",
        What::Check,
        Place::NginxTls,
        40,
        "zstd",
    ),
    job(
        "check again https 40 ms",
        What::CheckAgain,
        Place::NginxTls,
        40,
        "zstd",
    ),
    job("push http zstd", What::Push, Place::Nginx, 0, "zstd"),
    job("push http 40 ms zstd", What::Push, Place::Nginx, 40, "zstd"),
    job("push http xz", What::Push, Place::Nginx, 0, "xz"),
    job("push http 40 ms xz", What::Push, Place::Nginx, 40, "xz"),
    job("push http none", What::Push, Place::Nginx, 0, "none"),
    job("push s3 none", What::Push, Place::Ceph, 0, "none"),
    job("push s3 zstd", What::Push, Place::Ceph, 0, "zstd"),
    job("push s3 40 ms zstd", What::Push, Place::Ceph, 40, "zstd"),
    job("push s3 xz", What::Push, Place::Ceph, 0, "xz"),
    job("push s3 40 ms xz", What::Push, Place::Ceph, 40, "xz"),
    job("pull http zstd", What::Pull, Place::Nginx, 0, "zstd"),
    job("pull http 40 ms zstd", What::Pull, Place::Nginx, 40, "zstd"),
    job("pull s3 zstd", What::Pull, Place::Ceph, 0, "zstd"),
    job("pull s3 40 ms zstd", What::Pull, Place::Ceph, 40, "zstd"),
];

impl Network {
    /// All jobs, as [`compare`](crate::compare) runs them.
    pub fn whole(rounds: u16, scale: f64) -> Self {
        let defaults = Network::parse_from([""]);
        Network {
            rounds,
            scale,
            ..defaults
        }
    }

    /// False if something of ours failed.
    pub fn run(self) -> Result<bool> {
        let (dir, tk_store) = self.place.find("bench-network")?;
        let mut report = Report::new(self.scale);
        let (_, absent) = contender::find(&tk_store);
        report.skip_absent(absent, &["tk-store", "nix"]);
        self.contests(&dir, &tk_store, &mut report)?;
        report.publish(&self.outputs)?;
        Ok(!report.ours_failed)
    }

    /// The jobs, in a folder; their results go to `report`.
    pub fn contests(&self, dir: &Path, tk_store: &Path, report: &mut Report) -> Result<()> {
        let prefix = format!("{}.", self.nix);
        let takes_part = |who: &Contender| match who {
            Contender::TkStore(_) => true,
            Contender::Nix { version, .. } => version.starts_with(&prefix),
            _ => false,
        };
        let (found, _) = contender::find(tk_store);
        let found = found.into_iter().filter(takes_part).map(Rival::Of);
        let entrants: Vec<_> = found.chain([Rival::Curl]).collect();
        let jobs: Vec<_> = JOBS.iter().filter(|job| self.wants(job)).collect();
        ensure!(
            !jobs.is_empty(),
            "no job has {} in its name",
            self.jobs.join(" or ")
        );
        let mut bench = Bench::prepare(self, dir.to_owned(), tk_store.to_owned())?;
        for job in jobs {
            bench.contest(*job, &entrants, self.rounds, report)?;
        }
        Ok(())
    }

    fn wants(&self, job: &Job) -> bool {
        let wanted = |part: &String| job.name.contains(part.as_str());
        self.jobs.is_empty() || self.jobs.iter().any(wanted)
    }
}

/// The names of the jobs.
#[cfg(test)]
pub fn names() -> impl Iterator<Item = &'static str> {
    JOBS.iter().map(|job| job.name)
}

/// Who takes part.
#[derive(Debug, Clone)]
enum Rival {
    Of(Contender),
    Curl,
}

impl Rival {
    fn name(&self) -> String {
        match self {
            Rival::Of(who) => who.name(),
            Rival::Curl => "curl -Z".to_owned(),
        }
    }

    fn role(&self) -> Role {
        match self {
            Rival::Of(who) => who.role(),
            Rival::Curl => Role::Yardstick,
        }
    }

    fn can(&self, job: Job) -> bool {
        !matches!(self, Rival::Curl) || job.what == What::Check
    }
}

struct Bench {
    servers: PathBuf,
    tk_store: PathBuf,
    closures: Closures,
    port: u16,
    fresh: Fresh,
}

impl Bench {
    fn prepare(options: &Network, dir: PathBuf, tk_store: PathBuf) -> Result<Self> {
        let servers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/servers");
        let served = |job: &Job| job.place != Place::Folder && options.wants(job);
        if JOBS.iter().any(served) {
            let installed = Command::new(servers.join("install")).status()?;
            ensure!(installed.success(), "tests/servers/install: {installed}");
        }
        let sizes = Sizes {
            small: scaled(2000, options.scale),
            chain: 2,
            large: scaled(500, options.scale),
        };
        eprintln!("preparing {}", dir.display());
        let closures = Closures::make(&dir.join(format!("closures-{}", options.scale)), sizes)?;
        let bench = Bench {
            servers,
            tk_store,
            closures,
            port: 21000 + (std::process::id() % 8000) as u16,
            fresh: Fresh::new(dir.join("fresh")),
        };
        bench.fill()?;
        Ok(bench)
    }

    /// The caches in folders that are read, by nginx too.
    fn fill(&self) -> Result<()> {
        let (closures, tk_store) = (&self.closures, &self.tk_store);
        let every_second = closures.small.iter().step_by(2);
        let small = self.served("small").join("c");
        closures.fill_cache_with(tk_store, &small, "zstd", every_second)?;
        for compression in ["none", "zstd", "xz"] {
            closures.fill_cache(tk_store, &self.large(compression).join("c"), compression)?;
        }
        Ok(())
    }

    fn contest(
        &mut self,
        job: Job,
        entrants: &[Rival],
        rounds: u16,
        report: &mut Report,
    ) -> Result<()> {
        let able = entrants.iter().filter(|who| who.can(job)).cloned();
        let mut entrants: Vec<_> = able.collect();
        if matches!(job.what, What::Push | What::Pull) {
            let (packs, wire) = (job.what == What::Push, job.place != Place::Folder);
            let plain = self.large("none").join("c");
            let limits = self.closures.limits(&plain, job.compression, packs, wire)?;
            entrants.extend(
                limits
                    .into_iter()
                    .map(|limit| Rival::Of(Contender::Limit(limit))),
            );
        }
        let stays = job.what == What::Pull;
        let turns = if stays { entrants.len() } else { 1 };
        let bytes = turns as u64 * self.closures.disk(job.compression);
        let Some(rounds) = self.fresh.rounds_that_fit(rounds, bytes, stays)? else {
            report
                .skips
                .push(Skip::new("everybody", job.name, NO_SPACE));
            return Ok(());
        };
        let rows = entrants
            .iter()
            .map(|who| Row::named(who.name(), who.role()));
        let contest = Contest {
            job: job.name,
            corpus: String::new(),
            bytes: None,
            rounds,
            rows: rows.collect(),
        };
        report.hold(contest, |i, _| self.turn(job, &entrants[i]));
        Ok(())
    }

    fn turn(&mut self, job: Job, who: &Rival) -> Result<Sample> {
        let fresh = self.fresh.next()?;
        fs::create_dir_all(&fresh)?;
        self.fresh.settle(self.closures.disk(job.compression))?;
        let around = Surroundings::new(fresh.join("home"))?;
        if let Rival::Of(Contender::Limit(limit)) = who {
            let cmd = limit.filling(&fresh.join("filled")).cmd()?;
            let sample = measure::run(&cmd, &around, Path::new("/dev/null"))?;
            remove_tree(&fresh)?;
            return Ok(sample);
        }
        let root = match job.what {
            What::Check | What::CheckAgain => self.served("small"),
            What::Pull if job.place != Place::Ceph => self.large(job.compression),
            _ => fresh.join("served"),
        };
        fs::create_dir_all(&root)?;
        self.port = 21000 + (self.port - 21000 + 8) % 8000;
        let server = Server::start(&self.servers, job, &root, self.port)?;
        if job.place == Place::Ceph && job.what == What::Pull {
            let mut fill = Command::new(&self.tk_store);
            fill.args([
                "copy",
                "--quiet",
                "--no-check-sigs",
                "--from",
                &self.closures.store,
            ]);
            fill.args(["--to", &format!("{}&compression=zstd", server.cache)]);
            let fill = fill.args(self.paths(job)).envs(server.env.iter().cloned());
            let filled = fill.stdout(Stdio::null()).status()?;
            ensure!(filled.success(), "filling {}: {filled}", server.cache);
        }
        if job.what == What::CheckAgain {
            self.measured(job, who, &server, &fresh, &around)?;
        }
        let sample = self.measured(job, who, &server, &fresh, &around)?;
        if job.what == What::Push && job.place != Place::Ceph {
            let made = fs::read_dir(root.join("c"))?.flatten();
            let made = made.filter(|e| e.path().extension().is_some_and(|x| x == "narinfo"));
            let (made, wanted) = (made.count(), self.paths(job).len());
            ensure!(made == wanted, "{made} of {wanted} paths were pushed");
        }
        drop(server);
        if job.what != What::Pull {
            // Caches have few files.
            remove_tree(&fresh)?;
        }
        Ok(sample)
    }

    fn measured(
        &self,
        job: Job,
        who: &Rival,
        server: &Server,
        fresh: &Path,
        around: &Surroundings,
    ) -> Result<Sample> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["measure", "--or-no"])
            .arg(fresh.join("out"))
            .arg("--");
        let program = match who {
            Rival::Of(Contender::TkStore(path)) => path.clone(),
            Rival::Of(Contender::Nix { bin, .. }) => bin.join("nix"),
            Rival::Curl => "curl".into(),
            Rival::Of(_) => bail!("cannot do this"),
        };
        command.arg(&program);
        self.arguments(job, who, server, fresh, &mut command)?;
        around.apply(&mut command);
        command
            .envs(server.env.iter().cloned())
            .stdin(Stdio::null());
        let done = command.output().context("starting tk-bench measure")?;
        sample(&program, &done)
    }

    fn arguments(
        &self,
        job: Job,
        who: &Rival,
        server: &Server,
        fresh: &Path,
        command: &mut Command,
    ) -> Result<()> {
        let ours = who.role() == Role::Ours;
        let cache = &server.cache;
        let mark = if cache.contains('?') { '&' } else { '?' };
        let (compression, store) = (job.compression, &self.closures.store);
        match job.what {
            What::Check | What::CheckAgain => match who {
                Rival::Curl => {
                    let list = fresh.join("urls");
                    let url = |path: &String| {
                        let part = &path["/nix/store/".len()..][..32];
                        format!("url={cache}/{part}.narinfo\noutput=/dev/null\n")
                    };
                    let urls: String = self.closures.small.iter().map(url).collect();
                    fs::write(&list, urls)?;
                    command.args(["-s", "-Z", "--parallel-max", "300", "--http2", "-K"]);
                    command.arg(list);
                }
                _ if ours => {
                    command
                        .args(["check", "--in", cache])
                        .args(&self.closures.small);
                }
                _ => {
                    command.args(["path-info", "--json", "--store", cache]);
                    command.args(&self.closures.small);
                }
            },
            What::Push => {
                let to = format!(
                    "{cache}{mark}compression={compression}&compression-level={}",
                    level(compression)
                );
                command.args(["copy", "--no-check-sigs", "--from", store, "--to", &to]);
                if ours {
                    command.arg("--quiet");
                }
                command.args(self.paths(job));
            }
            What::Pull => {
                let to = fresh.join("store");
                command.args(["copy", "--no-check-sigs", "--from", cache]);
                command.args(["--to", &format!("local?root={}", to.display())]);
                if ours {
                    command.arg("--quiet");
                }
                command.args(self.paths(job));
            }
        }
        Ok(())
    }

    fn paths(&self, job: Job) -> &[String] {
        self.closures.copied(job.compression)
    }

    fn large(&self, compression: &str) -> PathBuf {
        self.served(&format!("large-{compression}"))
    }

    fn served(&self, name: &str) -> PathBuf {
        self.closures.dir.join(format!("served-{name}"))
    }
}

/// What both take as the default level, said so that nobody has to know.
fn level(compression: &str) -> u8 {
    if compression == "xz" { 6 } else { 3 }
}

/// A server beside which something is measured.
struct Server {
    children: Vec<Child>,
    /// The URI of a cache on it.
    cache: String,
    env: Vec<(String, String)>,
}

impl Server {
    fn start(scripts: &Path, job: Job, root: &Path, port: u16) -> Result<Server> {
        if job.place == Place::Folder {
            return Ok(Server {
                children: Vec::new(),
                cache: format!("file://{}", root.join("c").display()),
                env: Vec::new(),
            });
        }
        let name = match job.place {
            Place::Ceph => "with-ceph",
            _ => "with-nginx",
        };
        let mut command = Command::new(scripts.join(name));
        command.args(["--port", &port.to_string()]);
        if job.place == Place::NginxTls {
            command.arg("--tls");
        }
        if job.place != Place::Ceph {
            command.args(["--rtt-ms", &job.rtt.to_string()]).arg(root);
        }
        // It says what it was given, and then stays until its input ends.
        command.args(["--", "sh", "-c", "env; echo; exec cat"]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting tests/servers/{name}"))?;
        let out = child.stdout.take().context("no output")?;
        let mut given = Vec::new();
        for line in BufReader::new(out).lines() {
            let line = line?;
            if line.is_empty() {
                break;
            }
            let wanted = [
                "CACHE_URL",
                "S3_ENDPOINT",
                "AWS_",
                "SSL_CERT",
                "NIX_SSL",
                "CURL_CA",
            ];
            if let Some((name, value)) = line.split_once('=')
                && wanted.iter().any(|wanted| name.starts_with(wanted))
            {
                given.push((name.to_owned(), value.to_owned()));
            }
        }
        let mut server = Server {
            children: vec![child],
            cache: String::new(),
            env: given,
        };
        server.cache = match job.place {
            Place::Ceph => server.bucket(scripts, job.rtt, port)?,
            _ => format!("{}/c", server.given("CACHE_URL")?),
        };
        Ok(server)
    }

    fn given(&self, name: &str) -> Result<&str> {
        let found = self.env.iter().find(|(key, _)| key == name);
        let value = found.map(|(_, value)| value.as_str());
        value.with_context(|| format!("the server gave no {name}"))
    }

    /// Makes a bucket; it is used through a proxy that makes round trips long.
    fn bucket(&mut self, scripts: &Path, rtt: u32, port: u16) -> Result<String> {
        let endpoint = self.given("S3_ENDPOINT")?;
        let user = format!(
            "{}:{}",
            self.given("AWS_ACCESS_KEY_ID")?,
            self.given("AWS_SECRET_ACCESS_KEY")?
        );
        // The service makes its pools when the first object comes, which takes it 2 s: nobody's time.
        const FIRST: (&str, &str) = ("bench/first-object", "x");
        // Some builds of Nix cannot log in to S3: everybody may write.
        let policy = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:*",
            "Resource":["arn:aws:s3:::bench","arn:aws:s3:::bench/*"]}]}"#;
        for (what, body) in [("bench", ""), ("bench?policy=", policy), FIRST] {
            let made = Command::new("curl")
                .args([
                    "--fail-with-body",
                    "-sS",
                    "-X",
                    "PUT",
                    "--data-binary",
                    body,
                ])
                .args(["--aws-sigv4", "aws:amz:us-east-1:s3", "--user", &user])
                .args(["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"])
                .arg(format!("{endpoint}/{what}"))
                .status()?;
            ensure!(made.success(), "making a bucket: {made}");
        }
        let mut host = format!("127.0.0.1:{port}");
        if rtt > 0 {
            let near = port + 4;
            let proxy = Command::new(scripts.join("delay-proxy"))
                .args([near.to_string(), port.to_string()])
                .arg((f64::from(rtt) / 2.0).to_string())
                .spawn()
                .context("starting tests/servers/delay-proxy")?;
            self.children.push(proxy);
            host = format!("127.0.0.1:{near}");
            for _ in 0..100 {
                if std::net::TcpStream::connect(&host).is_ok() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
        Ok(format!(
            "s3://bench?endpoint={host}&scheme=http&region=us-east-1"
        ))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            match child.stdin.take() {
                // The script cleans up behind itself.
                Some(stdin) => drop(stdin),
                None => drop(child.kill()),
            }
            let _ = child.wait();
        }
    }
}

fn scaled(number: usize, scale: f64) -> usize {
    ((number as f64 * scale) as usize).max(2)
}
