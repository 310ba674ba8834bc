use crate::{CommandContext, ExitStatus, keys, ui};
use anyhow::{Context as _, Result};
use std::{
    fs::{self, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use tk_narinfo::{PublicKey, SecretKey};

/// Make keys that sign store paths
#[derive(clap::Subcommand)]
pub enum KeyCommand {
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

impl KeyCommand {
    /// Runs the command.
    pub fn run(self, _: &CommandContext) -> Result<ExitStatus> {
        match self {
            KeyCommand::Generate {
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
            KeyCommand::Public { secret } => ui::out(keys::secret(&secret)?.public())?,
        }
        Ok(ExitStatus::Yes)
    }
}

/// Makes a pair of keys in two new files. The files hold no newline, as Nix's own.
pub fn generate(name: &str, secret: &Path, public: &Path) -> Result<PublicKey> {
    let key = new_key(name)?;
    write_new(secret, SECRET_MODE, key.to_text().as_bytes())?;
    write_new(public, PUBLIC_MODE, key.public().to_string().as_bytes())
        // A secret key without its other half is of no use, and in the way of the next try.
        .inspect_err(|_| drop(std::fs::remove_file(secret)))?;
    Ok(key.public())
}

/// The key in the file `secret`, which is made if it is not there, with the public half beside it. Of
/// several who do that at once all get the same key. An empty file is what a full disk left.
/// The result says whether the key is new.
pub fn find_or_generate(name: &str, secret: &Path, public: &Path) -> Result<(PublicKey, bool)> {
    if fs::metadata(secret).is_ok_and(|file| file.is_file() && file.len() == 0) {
        let removed = fs::remove_file(secret);
        removed.with_context(|| format!("removing the empty {}", secret.display()))?;
    }
    let mut new = !secret.exists();
    if new {
        match write_whole(secret, SECRET_MODE, new_key(name)?.to_text().as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => new = false,
            written => written.with_context(|| writing(secret))?,
        }
    }
    let key = keys::secret(secret)?.public();
    if !public.exists() {
        match write_whole(public, PUBLIC_MODE, key.to_string().as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // Who signs can do so without it.
            Err(_) if !new => {}
            written => written.with_context(|| writing(public))?,
        }
    }
    Ok((key, new))
}

fn new_key(name: &str) -> Result<SecretKey> {
    SecretKey::generate(name).context("cannot make a key")
}

fn write_new(file: &Path, mode: u32, content: &[u8]) -> Result<()> {
    write_whole(file, mode, content).with_context(|| writing(file))
}

/// Makes `file` with `content`, all of it or nothing.
fn write_whole(file: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut aside = tempfile::Builder::new();
    let aside = aside.permissions(Permissions::from_mode(mode));
    let mut aside = aside.prefix(".tk-store-key-").tempfile_in(folder)?;
    aside.write_all(content)?;
    aside.as_file().sync_all()?;
    aside.persist_noclobber(file)?;
    Ok(())
}

fn writing(file: &Path) -> String {
    format!("writing the key to {}", file.display())
}

/// For everybody.
const PUBLIC_MODE: u32 = 0o644;
/// For the owner's eyes only.
const SECRET_MODE: u32 = 0o600;

const GENERATE: &str = "\
Example:
  tk-store key generate cache.example.org-1 --secret my.key --public my.pub";
