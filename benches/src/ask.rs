//! `tk-bench ask`: one closed loop of questions to a daemon: each connection asks the next as soon as it has the answer.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Asks a daemon IsValidPath and QueryPathInfo in turn.
#[derive(clap::Args)]
pub struct Ask {
    /// Its socket
    #[arg(long)]
    socket: PathBuf,
    /// The program that is to serve the store at the socket first, with its arguments
    #[arg(long, num_args = 1.., value_terminator = ";", allow_hyphen_values = true)]
    serve: Vec<String>,
    /// Connections at once
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Questions, all connections taken together
    #[arg(long, default_value_t = 40_000)]
    questions: usize,
    /// What to ask about
    paths: Vec<String>,
}

impl Ask {
    pub fn run(&self) -> Result<()> {
        let _server = Server::start(&self.serve, &self.socket)?;
        let each = self.questions.div_ceil(self.connections);
        thread::scope(|scope| {
            let ask = |n: usize| {
                scope.spawn(move || Client::connect(&self.socket)?.ask(&self.paths, n, each))
            };
            let asking: Vec<_> = (0..self.connections).map(ask).collect();
            for client in asking {
                client
                    .join()
                    .map_err(|_| anyhow::anyhow!("a client panicked"))??;
            }
            Ok(())
        })
    }
}

/// A server that ends with this.
struct Server(Option<Child>);

impl Server {
    fn start(command: &[String], socket: &Path) -> Result<Self> {
        let Some((program, args)) = command.split_first() else {
            return Ok(Server(None));
        };
        let child = Command::new(program)
            .args(args)
            .stderr(Stdio::null())
            .spawn();
        let server = Server(Some(child.with_context(|| format!("starting {program}"))?));
        let start = Instant::now();
        while !socket.exists() {
            ensure!(
                start.elapsed() < Duration::from_secs(10),
                "no server at {}",
                socket.display()
            );
            thread::sleep(Duration::from_millis(2));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A client of the worker protocol at 1.35, which waits for each answer.
struct Client {
    stream: UnixStream,
    buffer: Vec<u8>,
    taken: usize,
}

impl Client {
    fn connect(socket: &Path) -> Result<Self> {
        let mut client = Client {
            stream: UnixStream::connect(socket).context("connecting")?,
            buffer: Vec::new(),
            taken: 0,
        };
        client.send(&[0x6e69_7863, 1 << 8 | 35].map(u64::to_le_bytes).concat())?;
        ensure!(client.u64()? == 0x6478_696f, "it is no daemon");
        client.u64()?;
        client.send(&[0; 16])?;
        client.string()?;
        client.u64()?;
        client.last()?;
        Ok(client)
    }

    fn ask(&mut self, paths: &[String], first: usize, questions: usize) -> Result<()> {
        for (n, path) in (0..questions).zip(paths.iter().cycle().skip(first * 7 % paths.len())) {
            let operation = if n % 2 == 0 { 1_u64 } else { 26 };
            let mut request = operation.to_le_bytes().to_vec();
            request.extend_from_slice(&(path.len() as u64).to_le_bytes());
            request.extend_from_slice(path.as_bytes());
            request.resize(request.len().next_multiple_of(8), 0);
            self.send(&request)?;
            self.last()?;
            ensure!(self.u64()? == 1, "{path} is not there");
            if n % 2 == 1 {
                self.info()?;
            }
        }
        Ok(())
    }

    fn info(&mut self) -> Result<()> {
        // Deriver and hash, references, time, size and where it was built, signatures, content address.
        self.string()?;
        self.string()?;
        self.strings()?;
        for _ in 0..3 {
            self.u64()?;
        }
        self.strings()?;
        self.string()
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// Up to the end of what is told meanwhile: nothing is expected.
    fn last(&mut self) -> Result<()> {
        match self.u64()? {
            0x616c_7473 => Ok(()),
            other => bail!("message {other:#x}"),
        }
    }

    fn strings(&mut self) -> Result<()> {
        for _ in 0..self.u64()? {
            self.string()?;
        }
        Ok(())
    }

    fn string(&mut self) -> Result<()> {
        let length = self.u64()? as usize;
        self.need(length.next_multiple_of(8))?;
        self.taken += length.next_multiple_of(8);
        Ok(())
    }

    fn u64(&mut self) -> Result<u64> {
        self.need(8)?;
        let bytes = &self.buffer[self.taken..self.taken + 8];
        self.taken += 8;
        Ok(u64::from_le_bytes(bytes.try_into()?))
    }

    fn need(&mut self, length: usize) -> Result<()> {
        if self.taken == self.buffer.len() {
            self.buffer.clear();
            self.taken = 0;
        }
        while self.buffer.len() - self.taken < length {
            let mut piece = [0; 4096];
            let n = self.stream.read(&mut piece)?;
            ensure!(n > 0, "the daemon hung up");
            self.buffer.extend_from_slice(&piece[..n]);
        }
        Ok(())
    }
}
