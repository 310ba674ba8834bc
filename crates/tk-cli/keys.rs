//! Keys as the command line takes them: files, stdin or variables for secrets, text or files for public
//! ones. Whatever is given where, no secret is ever repeated.

use crate::{CommandContext, open::OpenStore, output::is_base64};
use anyhow::{Context as _, Result, bail, ensure};
use std::{
    env,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};
use tk_narinfo::{Policy, PublicKey, SecretKey, TrustedKeys};
use tk_nix::nix_conf::DEFAULT_TRUSTED_KEY;
use tk_store::SigCheck;

/// Keys that sign.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SignKeyArgs {
    /// Sign each path with the secret key in FILE, or in stdin with - (may be repeated) [default:
    /// what the variable TK_SIGN_KEY holds, a key or the name of its file]
    #[arg(long, value_name = "FILE")]
    pub sign_key: Vec<PathBuf>,
    /// Sign with the secret key that the environment variable NAME holds (may be repeated)
    #[arg(long, value_name = "NAME")]
    pub sign_key_env: Vec<String>,
}

impl SignKeyArgs {
    /// Whether the command line names any.
    pub fn is_given(&self) -> bool {
        !self.sign_key.is_empty() || !self.sign_key_env.is_empty()
    }

    /// The keys; none if nothing says that there are any.
    pub fn keys(&self) -> Result<Vec<Arc<SecretKey>>> {
        load(&self.sign_key, &self.sign_key_env)
    }
}

/// Keys of a command whose work is to sign.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct KeyFileArgs {
    /// The file with the secret key, or - for stdin (may be repeated) [default: what the variable
    /// TK_SIGN_KEY holds, a key or the name of its file]
    #[arg(long, short, visible_alias = "sign-key", value_name = "FILE")]
    key_file: Vec<PathBuf>,
    /// The environment variable that holds the secret key (may be repeated)
    #[arg(long, visible_alias = "sign-key-env", value_name = "NAME")]
    key_env: Vec<String>,
}

impl KeyFileArgs {
    /// The keys, at least one.
    pub fn keys(&self) -> Result<Vec<Arc<SecretKey>>> {
        let keys = load(&self.key_file, &self.key_env)?;
        ensure!(
            !keys.is_empty(),
            "there is no key to sign with; name its file with --key-file, or set {SIGN_KEY}"
        );
        Ok(keys)
    }
}

/// The secret keys in `files` and in the variables `names`; without any, that of `TK_SIGN_KEY`.
fn load(files: &[PathBuf], names: &[String]) -> Result<Vec<Arc<SecretKey>>> {
    let default = files.is_empty() && names.is_empty() && set(SIGN_KEY).is_some();
    let default = default.then(|| from_variable(SIGN_KEY));
    let files = files.iter().map(|file| secret(file));
    let variables = names.iter().map(|name| from_variable(name));
    let keys = files.chain(variables).chain(default);
    keys.map(|key| key.map(Arc::new)).collect()
}

/// The secret key in `file`; `-` is stdin.
pub fn secret(file: &Path) -> Result<SecretKey> {
    refuse_secret(file)?;
    if file == Path::new("-") {
        return parsed(
            &read(&mut io::stdin().lock()).context("reading the secret key from stdin")?,
        )
        .context("stdin does not hold a secret key");
    }
    secret_in(file)
}

fn secret_in(file: &Path) -> Result<SecretKey> {
    let text = File::open(file).and_then(|mut file| read(&mut file));
    let text = text.with_context(|| format!("reading the secret key {}", file.display()))?;
    parsed(&text).with_context(|| format!("{} does not hold a secret key", file.display()))
}

/// The secret key that the environment variable `name` holds, or that is in the file it names.
fn from_variable(name: &str) -> Result<SecretKey> {
    ensure!(
        !looks_secret(name),
        "--sign-key-env takes the name of a variable, and was given the key itself"
    );
    let value = set(name).with_context(|| format!("the variable {name} is not set"))?;
    match PathBuf::from(&value) {
        file if !looks_secret(&value) && !value.contains(':') && file.is_file() => secret(&file),
        _ => parsed(&value)
            .with_context(|| format!("the variable {name} does not hold a secret key")),
    }
}

/// Fails where a secret key stands in place of the name of its file, without repeating it.
pub fn refuse_secret(file: &Path) -> Result<()> {
    ensure!(
        !looks_secret(&file.to_string_lossy()) || file.exists(),
        "a file that holds the secret key is wanted here, and the key itself was given, which others can \
         see in the list of processes; write it into a file, or hand it over in a variable: \
         --sign-key-env NAME"
    );
    Ok(())
}

/// A public key, given as `name:base64` or as a file that holds it.
pub fn public(text: &str) -> Result<PublicKey> {
    let wrong = match PublicKey::parse(text) {
        Ok(key) => return Ok(key),
        Err(wrong) => wrong,
    };
    if SecretKey::parse(text).is_ok() {
        bail!(
            "a public key is wanted here, and a secret one was given; keep it to yourself, and give \
             what tk-store key public prints for it"
        );
    }
    match File::open(text).and_then(|mut file| read(&mut file)) {
        Ok(content) => PublicKey::parse(content.trim_end())
            .with_context(|| format!("the file {text} does not hold a public key")),
        Err(_) if looks_secret(text) => {
            let name = text.split_once(':').map_or("", |(name, _)| name);
            Err(wrong).with_context(|| format!("'{name}:…' is not a public key (name:base64)"))
        }
        Err(_) => Err(wrong).with_context(|| {
            format!("'{text}' is neither a public key (name:base64) nor a file with one")
        }),
    }
}

/// That `threshold` of the keys given, or of nix.conf's, have signed each path.
pub fn signed(cx: &CommandContext, given: &[String], threshold: usize) -> Result<SigCheck> {
    let policy = policy(cx, given, threshold)?;
    Ok(SigCheck::Require(Arc::new(policy)))
}

/// Whom to trust: the keys given, or those of nix.conf, or Nix's default.
pub fn policy(cx: &CommandContext, given: &[String], threshold: usize) -> Result<Policy> {
    let keys = if given.is_empty() {
        configured(cx)?
    } else {
        given.iter().map(|key| public(key)).collect::<Result<_>>()?
    };
    Ok(Policy { keys, threshold })
}

/// The keys that nix.conf trusts, or Nix's default: also what this machine signs with is trusted, as
/// far as this user may read it.
fn configured(cx: &CommandContext) -> Result<TrustedKeys> {
    let named = cx.settings.list("trusted-public-keys");
    let named = named.unwrap_or_else(|| vec![DEFAULT_TRUSTED_KEY]);
    let mut keys: TrustedKeys = named.into_iter().map(public).collect::<Result<_>>()?;
    for file in cx.settings.paths("secret-key-files") {
        refuse_secret(&file)?;
        if File::open(&file).is_ok() {
            keys.insert(secret_in(&file)?.public());
        }
    }
    Ok(keys)
}

/// Whether a path needs a signature to come into `dst`: a store on disk is what `require-sigs` of its URI and of
/// nix.conf is about, a daemon heeds its own. Keys that are `given` are wanted for a reason.
pub fn are_required(cx: &CommandContext, given: &[String], dst: &OpenStore) -> bool {
    let Some(store) = dst.local() else {
        return true;
    };
    let of_store = store.config().require_signatures;
    let required = of_store.or_else(|| cx.settings.is_on("require-sigs"));
    required.unwrap_or(true) || !given.is_empty()
}

/// Whether the text may be a secret, or a part of one: more base64 than a public key has, or than
/// anybody writes where no name stands before.
fn looks_secret(text: &str) -> bool {
    let text = text.trim();
    let (name, digits) = text.split_once(':').unwrap_or(("", text));
    let most = if name.is_empty() { 40 } else { 45 };
    digits.len() >= most && digits.trim_end().chars().all(is_base64) && !text.starts_with('/')
}

fn parsed(text: &str) -> Result<SecretKey> {
    Ok(SecretKey::parse(text.trim())?)
}

fn read(from: &mut impl Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(LONGEST_KEY).read_to_string(&mut text)?;
    Ok(text)
}

/// The value of a variable; empty counts as unset.
fn set(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Holds a key, or the name of its file, for commands that sign.
const SIGN_KEY: &str = "TK_SIGN_KEY";
/// Bytes of a file that holds one key.
const LONGEST_KEY: u64 = 64 << 10;
