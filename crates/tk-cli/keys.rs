//! Keys as the command line takes them: files, stdin or variables for secrets, text or files for public
//! ones. Whatever is given where, no secret is ever repeated.

use crate::{CommandContext, open::OpenStore};
use anyhow::{Context as _, Result, ensure};
use std::{
    env, io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tk_narinfo::{Policy, SecretKey};
use tk_open::keys::{looks_secret, read_key, read_public_key, read_secret_key, refuse_secret};
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
            &read_key(&mut io::stdin().lock()).context("reading the secret key from stdin")?,
        )
        .context("stdin does not hold a secret key");
    }
    Ok(read_secret_key(file)?)
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

/// That `threshold` of the keys given, or of nix.conf's, have signed each path.
pub fn signed(cx: &CommandContext, given: &[String], threshold: usize) -> Result<SigCheck> {
    let policy = policy(cx, given, threshold)?;
    Ok(SigCheck::Require(Arc::new(policy)))
}

/// Whom to trust: the keys given, or those of nix.conf, or Nix's default.
pub fn policy(cx: &CommandContext, given: &[String], threshold: usize) -> Result<Policy> {
    let keys = if given.is_empty() {
        cx.settings.trusted_keys()?
    } else {
        given
            .iter()
            .map(|key| read_public_key(key))
            .collect::<Result<_, _>>()?
    };
    Ok(Policy { keys, threshold })
}

/// Whether a path needs a signature to come into `dst`: a store on disk is what `require-sigs` of its URI and of
/// nix.conf is about, a daemon heeds its own. Keys that are `given` are wanted for a reason.
pub fn are_required(cx: &CommandContext, given: &[String], dst: &OpenStore) -> bool {
    let Some(store) = dst.local() else {
        return true;
    };
    let of_store = store.config().require_signatures;
    let required = of_store.or_else(|| cx.settings.nix_conf.is_on("require-sigs"));
    required.unwrap_or(true) || !given.is_empty()
}

fn parsed(text: &str) -> Result<SecretKey> {
    Ok(SecretKey::parse(text.trim())?)
}

/// The value of a variable; empty counts as unset.
fn set(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Holds a key, or the name of its file, for commands that sign.
const SIGN_KEY: &str = "TK_SIGN_KEY";
