use crate::{Answer, Context, keys, ui};
use anyhow::{Context as _, Result};
use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use tk_narinfo::{PublicKey, SecretKey};

/// Make keys that sign store paths
#[derive(clap::Subcommand)]
pub enum Key {
    /// Make a new pair of keys
    #[command(after_help = GENERATE)]
    Generate {
        /// The key's name, by convention the cache's host name and a number: cache.example.org-1
        name: String,
        /// The file for the secret key; it must not exist
        #[arg(long, value_name = "FILE")]
        secret: PathBuf,
        /// The file for the public key; it must not exist
        #[arg(long, value_name = "FILE")]
        public: Option<PathBuf>,
    },
    /// Print the public key of a secret key
    #[command(after_help = "Example:\n  tk-store key public my.key")]
    Public {
        /// The file with the secret key; - is stdin
        #[arg(value_name = "FILE")]
        secret: PathBuf,
    },
}

impl Key {
    /// Runs the command.
    pub fn run(self, _: &Context) -> Result<Answer> {
        match self {
            Key::Generate {
                name,
                secret,
                public,
            } => {
                let key = match public {
                    Some(public) => generate(&name, &secret, &public)?,
                    None => {
                        let key = new_key(&name)?;
                        write_new(&secret, SECRET_MODE, key.to_text().as_bytes())?;
                        key.public()
                    }
                };
                ui::out(key)?;
            }
            Key::Public { secret } => ui::out(keys::secret(&secret)?.public())?,
        }
        Ok(Answer::Yes)
    }
}

/// Makes a pair of keys in two new files. The files hold no newline, as Nix's own.
pub fn generate(name: &str, secret: &Path, public: &Path) -> Result<PublicKey> {
    let key = new_key(name)?;
    write_new(secret, SECRET_MODE, key.to_text().as_bytes())?;
    write_new(public, 0o644, key.public().to_string().as_bytes())
        // A secret key without its other half is of no use, and in the way of the next try.
        .inspect_err(|_| drop(std::fs::remove_file(secret)))?;
    Ok(key.public())
}

fn new_key(name: &str) -> Result<SecretKey> {
    SecretKey::generate(name).context("cannot make a key")
}

fn write_new(file: &Path, mode: u32, content: &[u8]) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    let write = || options.open(file)?.write_all(content);
    write().with_context(|| format!("writing the key to {}", file.display()))
}

/// For the owner's eyes only.
const SECRET_MODE: u32 = 0o600;

const GENERATE: &str = "\
Example:
  tk-store key generate cache.example.org-1 --secret my.key --public my.pub";
