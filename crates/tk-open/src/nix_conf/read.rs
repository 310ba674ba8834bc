use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    fs::{self, File},
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};
use tk_store::{Error, Result};

/// Bytes of a nix.conf, and of one that it includes.
pub const MAX_CONF_BYTES: usize = 1 << 20;
/// How deep files may include further files; a file below that is an error.
pub const MAX_INCLUDES: usize = 32;
/// Files that one file includes, at all depths together.
pub const MAX_FILES: usize = 1000;

/// The key that Nix trusts when nothing else is configured.
pub const DEFAULT_TRUSTED_KEY: &str =
    "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
/// The cache that Nix fetches from when nothing else is configured.
pub const DEFAULT_SUBSTITUTER: &str = "https://cache.nixos.org/";

/// What nix.conf and its relatives set, with Nix's checks of the settings that this crate's users ask
/// for; of other settings, which only Nix knows, the text. `Debug` shows the names alone: a value may be a
/// secret.
#[derive(Clone, Default)]
pub struct NixConf {
    values: BTreeMap<String, Value>,
}

impl fmt::Debug for NixConf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

#[derive(Clone)]
struct Value {
    bytes: Vec<u8>,
    /// The same, with what is no UTF-8 replaced.
    text: String,
}

/// The places from which the settings of Nix are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfPlaces {
    /// The file for the whole machine, by default `/etc/nix/nix.conf`.
    pub system: PathBuf,
    /// The user's files; the first of them wins.
    pub user: Vec<PathBuf>,
    /// The text of `NIX_CONFIG`, which wins over all.
    pub text: Option<OsString>,
}

impl ConfPlaces {
    /// The places that Nix 2.34 would look at with the environment `var`, for a user whose home is
    /// `home`.
    pub fn of_environment(var: impl Fn(&str) -> Option<OsString>, home: Option<&Path>) -> Self {
        // Where an empty one would mean the current folder to Nix, it is as good as none.
        let folder = |name| var(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let system = folder("NIX_CONF_DIR").unwrap_or_else(|| "/etc/nix".into());
        let user = match var("NIX_USER_CONF_FILES") {
            Some(files) => split(&files).collect(),
            None => {
                let own = folder("NIX_CONFIG_HOME")
                    .or_else(|| Some(folder("XDG_CONFIG_HOME")?.join("nix")))
                    .or_else(|| Some(home?.join(".config/nix")));
                let shared = var("XDG_CONFIG_DIRS").unwrap_or_else(|| "/etc/xdg".into());
                let shared = split(&shared).map(|folder| folder.join("nix"));
                let all = own.into_iter().chain(shared);
                all.map(|folder| folder.join("nix.conf")).collect()
            }
        };
        ConfPlaces {
            system: system.join("nix.conf"),
            user,
            text: var("NIX_CONFIG"),
        }
    }
}

/// The members of a search path that are not empty.
fn split(paths: &OsStr) -> impl Iterator<Item = PathBuf> {
    let members = paths.as_bytes().split(|byte| *byte == b':');
    let members = members.filter(|member| !member.is_empty());
    members.map(|member| PathBuf::from(OsStr::from_bytes(member)))
}

impl NixConf {
    /// Reads all of `places`, the one that wins last.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what Nix would refuse to work with: a line that is no setting, a value
    /// that its setting cannot have. No text of a line but its name is in the error: it may be a secret.
    pub fn load(places: &ConfPlaces) -> Result<Self> {
        let mut conf = NixConf::default();
        let user = places.user.iter().rev();
        for path in [&places.system].into_iter().chain(user) {
            if let Some(text) = readable(path)? {
                conf.apply(&text, path)?;
            }
        }
        if let Some(text) = &places.text {
            conf.apply(text.as_bytes(), Path::new("NIX_CONFIG"))?;
        }
        Ok(conf)
    }

    /// The text of a setting, `None` if it is not set: numbers in digits, without their unit, and
    /// `true` or `false`.
    pub fn get(&self, name: &str) -> Option<&str> {
        Some(&self.values.get(name)?.text)
    }

    /// As [`NixConf::get`], with the bytes that are no UTF-8.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        let value = self.values.get(name)?;
        Some(OsStr::from_bytes(&value.bytes).into())
    }

    /// The words of a list, with those of its `extra-` form; `None` if nothing set or added to it.
    pub fn list(&self, name: &str) -> Option<Vec<&str>> {
        Some(self.get(name)?.split_ascii_whitespace().collect())
    }

    /// The words of a list as the names of files.
    pub fn paths(&self, name: &str) -> Vec<PathBuf> {
        let value = self.values.get(name);
        let words = value.into_iter().flat_map(|value| words(&value.bytes));
        words.map(|word| OsStr::from_bytes(word).into()).collect()
    }

    /// Whether a setting is on, `None` if it is not set.
    pub fn is_on(&self, name: &str) -> Option<bool> {
        Some(self.get(name)? == "true")
    }

    /// All that `text` sets, which stands in the file `path`; nothing if an included file cannot be
    /// looked for.
    fn apply(&mut self, text: &[u8], path: &Path) -> Result<()> {
        for Assignment { name, value } in parse(text, path)?.unwrap_or_default() {
            self.set(&name, value, path)?;
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: Vec<u8>, path: &Path) -> Result<()> {
        let (name, extra) = match canonical(name) {
            Some(known) => known,
            // Nix knows no such thing to add to.
            None if name.starts_with("extra-") => return Ok(()),
            None => (name, false),
        };
        let kind = known(name).map_or(SettingKind::Text, |setting| setting.kind);
        let mut text = String::from_utf8_lossy(&value).into_owned();
        let mut bytes = value;
        if let Some(wanted) = kind.wanted() {
            let normal = kind.normal(&text).ok_or_else(|| {
                let place = path.display();
                Error::invalid(format!("'{name}' in {place} must be {wanted}"))
            })?;
            // What stays as it is keeps its bytes, which need not be text.
            if normal != text {
                bytes = normal.clone().into_bytes();
                text = normal;
            }
        }
        if extra {
            let old = self.values.get(name).map(|old| old.bytes.clone());
            let mut all = old.unwrap_or_else(|| default(name).into());
            all.push(b' ');
            all.extend(&bytes);
            text = String::from_utf8_lossy(&all).into_owned();
            bytes = all;
        }
        self.values.insert(name.to_owned(), Value { bytes, text });
        Ok(())
    }
}

/// One line that gives a setting a value.
pub(super) struct Assignment {
    pub(super) name: String,
    /// Its words, with one blank between them.
    pub(super) value: Vec<u8>,
}

/// What the lines of `text`, of the file `path`, and of all that it includes say, in their order.
/// `None` if it cannot be known whether an included file exists.
pub(super) fn parse(text: &[u8], path: &Path) -> Result<Option<Vec<Assignment>>> {
    let mut reader = NixConfReader::default();
    let known = reader.text(text, path, 0)?;
    Ok(known.then_some(reader.found))
}

#[derive(Default)]
struct NixConfReader {
    found: Vec<Assignment>,
    files: usize,
}

impl NixConfReader {
    /// Whether all included files could be looked for.
    fn text(&mut self, text: &[u8], path: &Path, depth: usize) -> Result<bool> {
        for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let line = line.split(|byte| *byte == b'#').next().unwrap_or_default();
            let words: Vec<_> = words(line).collect();
            match words[..] {
                [] => {}
                [how @ (b"include" | b"!include"), file] => {
                    let needed = how == b"include";
                    if !self.include(OsStr::from_bytes(file), needed, path, depth)? {
                        return Ok(false);
                    }
                }
                [name, b"=", ref value @ ..] if !matches!(name, b"include" | b"!include") => {
                    self.found.push(Assignment {
                        name: String::from_utf8_lossy(name).into_owned(),
                        value: value.join(&b' '),
                    });
                }
                _ => return Err(syntax(number + 1, words[0], path)),
            }
        }
        Ok(true)
    }

    fn include(&mut self, file: &OsStr, needed: bool, by: &Path, depth: usize) -> Result<bool> {
        let path = by.parent().unwrap_or(Path::new("")).join(file);
        let (shown, by) = (path.display(), by.display());
        if !path.is_absolute() {
            return Err(Error::invalid(format!(
                "{by} includes {shown}, which is not an absolute path"
            )));
        }
        self.files += 1;
        if depth >= MAX_INCLUDES || self.files > MAX_FILES {
            let what = format!("{by} includes files that include files, and so on, too many");
            return Err(Error::invalid(what));
        }
        match fs::symlink_metadata(&path) {
            Ok(_) => match readable(&path)? {
                Some(text) => self.text(&text, &path, depth + 1),
                None => Ok(true),
            },
            Err(e) if !is_absent(&e) => Ok(false),
            Err(_) if needed => Err(Error::invalid(format!(
                "{by} includes {shown}, which is not there"
            ))),
            Err(_) => Ok(true),
        }
    }
}

/// The text of a file, if it can be read.
fn readable(path: &Path) -> Result<Option<Vec<u8>>> {
    match read(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::FileTooLarge => {
            Err(Error::io(format!("reading {}", path.display()), e))
        }
        Err(_) => Ok(None),
    }
}

/// The text of a file.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let limited = File::open(path)?.take(MAX_CONF_BYTES as u64 + 1);
    match { limited }.read_to_end(&mut text)? {
        0..=MAX_CONF_BYTES => Ok(text),
        _ => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is larger than {MAX_CONF_BYTES} bytes"),
        )),
    }
}

pub(super) fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

fn syntax(number: usize, word: &[u8], path: &Path) -> Error {
    let name: String = word
        .iter()
        .take_while(|byte| byte.is_ascii_alphanumeric() || b"-_!".contains(byte))
        .take(MAX_NAME)
        .map(|byte| char::from(*byte))
        .collect();
    let path = path.display();
    Error::invalid(format!(
        "line {number} of {path} ('{name}…') is not a setting: \
         write a name, '=' and a value with blanks around the '='"
    ))
}

pub(super) fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let words = line.split(|byte| b" \t\r\n".contains(byte));
    words.filter(|word| !word.is_empty())
}

/// The name that Nix 2.34 has for a known setting, and whether `name` is its `extra-` form.
pub(super) fn canonical(name: &str) -> Option<(&'static str, bool)> {
    if let Some(setting) = known(name) {
        return Some((setting.name, false));
    }
    let setting = known(name.strip_prefix("extra-")?)?;
    matches!(setting.kind, SettingKind::Words).then_some((setting.name, true))
}

fn known(name: &str) -> Option<&'static Setting> {
    let mut all = SETTINGS.iter();
    all.find(|setting| setting.name == name || setting.aliases.contains(&name))
}

fn default(name: &str) -> &'static str {
    match name {
        "substituters" => DEFAULT_SUBSTITUTER,
        "trusted-public-keys" => DEFAULT_TRUSTED_KEY,
        _ => "",
    }
}

/// A setting with more to it than a name and a text.
struct Setting {
    name: &'static str,
    kind: SettingKind,
    /// Older names of the setting, which nix.conf may use as well.
    aliases: &'static [&'static str],
}

#[derive(Clone, Copy)]
enum SettingKind {
    Text,
    Words,
    /// An absolute path: 2.34 takes no other, older ones take any text.
    Path,
    Bool,
    /// To this one, in whose units Nix may count.
    Number(u64),
    /// A number, or `auto`.
    Jobs,
}

impl SettingKind {
    /// What a value must be, of those that cannot be anything.
    fn wanted(self) -> Option<&'static str> {
        match self {
            SettingKind::Text | SettingKind::Words => None,
            SettingKind::Path => Some("an absolute path"),
            SettingKind::Bool => Some("true or false"),
            SettingKind::Number(_) => Some("a whole number"),
            SettingKind::Jobs => Some("a whole number or auto"),
        }
    }

    fn normal(self, text: &str) -> Option<String> {
        match (self, text) {
            (SettingKind::Text | SettingKind::Words, _) | (SettingKind::Jobs, "auto") => {
                Some(text.to_owned())
            }
            (SettingKind::Path, _) => text.starts_with('/').then(|| text.to_owned()),
            (SettingKind::Bool, "true" | "yes" | "1") => Some("true".to_owned()),
            (SettingKind::Bool, "false" | "no" | "0") => Some("false".to_owned()),
            (SettingKind::Bool, _) => None,
            (SettingKind::Number(max), _) => number(text, max),
            // Without units, as Nix has it.
            (SettingKind::Jobs, _) if text.ends_with(|c: char| !c.is_ascii_digit()) => None,
            (SettingKind::Jobs, _) => number(text, u32::MAX.into()),
        }
    }
}

fn number(text: &str, max: u64) -> Option<String> {
    let number = parse_number(text)?;
    (number <= max).then(|| number.to_string())
}

/// Reads a number as Nix does: digits, and perhaps K, M, G or T behind them, which stand for powers of 1024.
pub fn parse_number(text: &str) -> Option<u64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let (digits, shift) = match text.as_bytes().last()?.to_ascii_uppercase() {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        b'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

const fn setting(
    name: &'static str,
    kind: SettingKind,
    aliases: &'static [&'static str],
) -> Setting {
    Setting {
        name,
        kind,
        aliases,
    }
}

const U32: SettingKind = SettingKind::Number(u32::MAX as u64);
const SECONDS: SettingKind = SettingKind::Number(i64::MAX as u64);
const SETTINGS: &[Setting] = &[
    setting("substituters", SettingKind::Words, &["binary-caches"]),
    setting(
        "trusted-substituters",
        SettingKind::Words,
        &["trusted-binary-caches"],
    ),
    setting(
        "trusted-public-keys",
        SettingKind::Words,
        &["binary-cache-public-keys"],
    ),
    setting("secret-key-files", SettingKind::Words, &[]),
    setting("nix-path", SettingKind::Words, &[]),
    setting("netrc-file", SettingKind::Path, &[]),
    setting("require-sigs", SettingKind::Bool, &[]),
    setting("keep-outputs", SettingKind::Bool, &["gc-keep-outputs"]),
    setting(
        "keep-derivations",
        SettingKind::Bool,
        &["gc-keep-derivations"],
    ),
    setting("fallback", SettingKind::Bool, &["build-fallback"]),
    setting("substitute", SettingKind::Bool, &["build-use-substitutes"]),
    setting("keep-failed", SettingKind::Bool, &[]),
    setting("keep-going", SettingKind::Bool, &[]),
    setting("builders-use-substitutes", SettingKind::Bool, &[]),
    setting("max-jobs", SettingKind::Jobs, &["build-max-jobs"]),
    setting("cores", U32, &["build-cores"]),
    setting("max-silent-time", SECONDS, &["build-max-silent-time"]),
    setting("timeout", SECONDS, &["build-timeout"]),
    setting(
        "http-connections",
        U32,
        &["binary-caches-parallel-connections"],
    ),
    setting("connect-timeout", U32, &[]),
    setting("stalled-download-timeout", U32, &[]),
    setting("download-attempts", U32, &[]),
    setting("narinfo-cache-positive-ttl", U32, &[]),
    setting("narinfo-cache-negative-ttl", U32, &[]),
    setting("narinfo-cache-meta-ttl", U32, &[]),
];
/// Characters of a name in a message.
const MAX_NAME: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn of(text: &[u8]) -> Result<NixConf> {
        let mut conf = NixConf::default();
        conf.apply(text, Path::new("/etc/nix/nix.conf"))?;
        Ok(conf)
    }

    #[test]
    fn later_lines_win_and_extra_adds() {
        let conf = of(
            b"# Schl\xfcssel\nstore = daemon # why\r\nstore =\tauto \r\ncores = 2K\n\
              build-use-substitutes = no\nextra-trusted-public-keys = a:b\n\
              extra-binary-cache-public-keys = c:d\nextra-store = /x\nextra-foo = 1\nfoo = a  b\n\
              netrc-file = /\xfc/n\nsecret-key-files = /a\xfc /b\n",
        )
        .unwrap();
        assert_eq!(conf.get("store"), Some("auto"));
        assert_eq!(conf.get("cores"), Some("2048"));
        assert_eq!(conf.is_on("substitute"), Some(false));
        assert_eq!(conf.is_on("fallback"), None);
        assert_eq!(conf.get("foo"), Some("a b"));
        let keys = conf.list("trusted-public-keys").unwrap();
        assert_eq!(keys, [DEFAULT_TRUSTED_KEY, "a:b", "c:d"]);
        let file = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        assert_eq!(conf.path("netrc-file"), Some(file(b"/\xfc/n")));
        let files = conf.paths("secret-key-files");
        assert_eq!(files, [file(b"/a\xfc"), file(b"/b")]);
        let conf = of(b"extra-binary-caches = http://x\nstore =\n").unwrap();
        let caches = conf.list("substituters").unwrap();
        assert_eq!(caches, [DEFAULT_SUBSTITUTER, "http://x"]);
        assert_eq!(conf.get("store"), Some(""));
        assert_eq!(of(b"").unwrap().list("substituters"), None);
    }

    #[test]
    fn what_nix_refuses_is_refused_without_its_secrets() {
        for (text, words) in [
            ("store=/a", "line 1 of /etc/nix/nix.conf ('store…')"),
            ("\naccess-tokens=h=ghp_secret", "line 2"),
            ("k-1:secret+key==", "line 1"),
            ("store", "line 1"),
            ("include = /x", "line 1"),
            ("!include /x /secret", "line 1"),
            ("include", "line 1"),
            ("require-sigs = True", "'require-sigs' in"),
            ("require-sigs =", "true or false"),
            ("cores = -1", "a whole number"),
            ("cores = 1 1", "a whole number"),
            ("cores = K", "a whole number"),
            ("cores = 0x10", "a whole number"),
            ("download-attempts = 4G", "a whole number"),
            ("max-jobs = all", "or auto"),
        ] {
            let error = of(text.as_bytes()).unwrap_err().to_line();
            assert!(error.contains(words), "{text}: {error}");
            assert!(!error.contains("secret"), "{text}: {error}");
        }
    }

    #[test]
    fn includes() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("nix.conf");
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let load = |text: &str| {
            fs::write(&file, text).unwrap();
            NixConf::load(&ConfPlaces {
                system: file.clone(),
                ..ConfPlaces::default()
            })
        };
        fs::create_dir(folder.path().join("folder")).unwrap();
        symlink("nowhere", folder.path().join("dangling")).unwrap();
        write("more", "store = /more\ncores = 3\n");
        let all = "include more\n!include folder\ninclude folder\ninclude dangling\n!include nothing\n\
                   !include more/x\nstore = /after\n";
        let conf = load(all).unwrap();
        assert_eq!(conf.get("store"), Some("/after"));
        assert_eq!(conf.get("cores"), Some("3"));
        for bad in [
            "include nothing\n",
            "include more/x\n",
            "include nix.conf\n",
        ] {
            assert!(matches!(load(bad), Err(Error::Invalid { .. })), "{bad}");
        }
        // Twice itself at each step would be for ever.
        let twice = "include nix.conf\ninclude nix.conf\n";
        assert!(load(twice).is_err());
        write("large", &"#".repeat(MAX_CONF_BYTES + 1));
        assert!(load("!include large\n").is_err());
        let place = |text: &str| ConfPlaces {
            text: Some(text.into()),
            ..ConfPlaces::default()
        };
        let absolute = format!("include {}/more\n", folder.path().display());
        let conf = NixConf::load(&place(&absolute)).unwrap();
        assert_eq!(conf.get("store"), Some("/more"));
        assert!(NixConf::load(&place("!include more")).is_err());
    }

    /// Only for others than root, who may read all.
    #[test]
    fn what_may_not_be_read_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("nix.conf");
        let tokens = folder.path().join("tokens");
        fs::write(&tokens, "store = /tokens\n").unwrap();
        fs::set_permissions(&tokens, fs::Permissions::from_mode(0o000)).unwrap();
        if File::open(&tokens).is_ok() {
            return;
        }
        fs::write(&file, "cores = 2\n!include tokens\n").unwrap();
        let places = ConfPlaces {
            system: file.clone(),
            user: vec![tokens],
            text: None,
        };
        let conf = NixConf::load(&places).unwrap();
        assert_eq!((conf.get("cores"), conf.get("store")), (Some("2"), None));
    }

    #[test]
    fn places_of_the_environment() {
        let of = |vars: &[(&str, &str)]| {
            let vars: BTreeMap<_, _> = vars.iter().copied().collect();
            let var = |name: &str| vars.get(name).map(OsString::from);
            let places = ConfPlaces::of_environment(var, Some(Path::new("/h")));
            let user: Vec<_> = places
                .user
                .iter()
                .map(|f| f.display().to_string())
                .collect();
            (places.system.display().to_string(), user.join(" "))
        };
        let (system, user) = of(&[]);
        assert_eq!(system, "/etc/nix/nix.conf");
        assert_eq!(user, "/h/.config/nix/nix.conf /etc/xdg/nix/nix.conf");
        let (system, user) = of(&[
            ("NIX_CONF_DIR", "/c"),
            ("XDG_CONFIG_HOME", "/x"),
            ("XDG_CONFIG_DIRS", "/1::/2"),
        ]);
        assert_eq!(system, "/c/nix.conf");
        assert_eq!(user, "/x/nix/nix.conf /1/nix/nix.conf /2/nix/nix.conf");
        let own = of(&[("NIX_CONFIG_HOME", "/n"), ("XDG_CONFIG_DIRS", "")]);
        assert_eq!(own.1, "/n/nix.conf");
        assert_eq!(of(&[("NIX_USER_CONF_FILES", "/a:/b:")]).1, "/a /b");
        assert_eq!(of(&[("NIX_USER_CONF_FILES", "")]).1, "");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = of(&text);
        }
    }
}
