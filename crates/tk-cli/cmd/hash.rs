use crate::{CommandContext, ExitStatus, ui};
use anyhow::{Context as _, Result};
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};
use tk_open::nar_hash;
use tk_path::{Algorithm, Encoding, Hasher};

/// Hash files and folders, and convert hashes
#[derive(clap::Subcommand)]
pub enum HashCommand {
    /// Print the hash of a file's bytes
    #[command(after_help = "Example:\n  tk-store hash file --format nix32 download.tar.gz")]
    File {
        /// Files; - is standard input
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        #[command(flatten)]
        how: How,
    },
    /// Print the hash of the NAR of a file or folder, as fetchers and store paths use it
    #[command(after_help = "Example:\n  tk-store hash path ./source")]
    Path {
        /// Files, folders or links
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
        #[command(flatten)]
        how: How,
    },
    /// Print hashes in another encoding
    #[command(after_help = CONVERT)]
    Convert {
        /// Hashes: sha256:…, sha256-…, or bare digits with --hash-algo
        #[arg(required = true, value_name = "HASH")]
        hashes: Vec<String>,
        /// The algorithm of bare digits
        #[arg(long, value_name = "ALGO")]
        hash_algo: Option<Algorithm>,
        /// The encoding to print: base16, nix32, base64 or sri
        #[arg(long, value_name = "FORMAT", default_value = "sri")]
        to: Encoding,
        /// Print the algorithm in front (sri always does)
        #[arg(long)]
        prefix: bool,
    },
}

/// Which hash, and how it is printed.
#[derive(Debug, clap::Args)]
pub struct How {
    /// The hash: sha256, sha512, sha1, md5 or blake3
    #[arg(
        long,
        visible_alias = "type",
        default_value = "sha256",
        value_name = "ALGO"
    )]
    hash_algo: Algorithm,
    /// How it is printed: base16, nix32, base64 or sri
    #[arg(long, value_name = "FORMAT", default_value = "sri")]
    format: Encoding,
}

impl HashCommand {
    /// Runs the command.
    pub fn run(self, _: &CommandContext) -> Result<ExitStatus> {
        match self {
            HashCommand::File { files, how } => {
                for file in files {
                    let hash = of_file(&file, how.hash_algo);
                    let hash = hash.with_context(|| format!("reading {}", file.display()))?;
                    ui::out(how.show(hash))?;
                }
            }
            HashCommand::Path { paths, how } => {
                for path in paths {
                    ui::out(how.show(nar_hash(&path, how.hash_algo)?))?;
                }
            }
            HashCommand::Convert {
                hashes,
                hash_algo,
                to,
                prefix,
            } => {
                for text in hashes {
                    let hash = tk_path::Hash::parse_any(&text, hash_algo)?;
                    ui::out(if prefix {
                        hash.to_text(to)
                    } else {
                        bare(hash, to)
                    })?;
                }
            }
        }
        Ok(ExitStatus::Yes)
    }
}

impl How {
    fn show(&self, hash: tk_path::Hash) -> String {
        bare(hash, self.format)
    }
}

/// As Nix prints hashes: only SRI tells the algorithm.
fn bare(hash: tk_path::Hash, format: Encoding) -> String {
    match format {
        Encoding::Sri => hash.to_text(format),
        _ => hash.digits(format),
    }
}

fn of_file(file: &Path, algorithm: Algorithm) -> io::Result<tk_path::Hash> {
    let mut hasher = Hasher::new(algorithm);
    let mut input: Box<dyn Read> = if file == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(file)?)
    };
    let mut buffer = vec![0; BUFFER];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

const BUFFER: usize = 256 << 10;

const CONVERT: &str = "\
Examples:
  tk-store hash convert --to nix32 sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=
  tk-store hash convert --hash-algo sha256 --to sri 1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s";
