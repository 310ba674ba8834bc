//! Machines that build for others: nix.conf's `builders`, and files such as `/etc/nix/machines`.
//!
//! ```text
//! text   = line { "\n" line }
//! line   = { entry ";" } entry [ "#" anything ]
//! entry  = "" | "@" FILE | field { blanks field }        blanks: spaces and tabs
//! field  = "-" for the default, or by its place:
//!   1  URL          without "://" and "/", other than auto, daemon, local: gets "ssh://"
//!   2  systems      by commas                            default: the system of this machine
//!   3  ssh key      a file
//!   4  jobs         a whole number                       default: 1
//!   5  speed        a number from 0 on, where 0 is 1     default: 1
//!   6  features     by commas: what it can do
//!   7  mandatory    by commas: features without which it takes nothing; it has them, too
//!   8  host key     base64 of a line such as "ssh-ed25519 AAAA..."
//!   9… are ignored
//! ```
//! A file that is not there is an empty one; `FILE` is relative to a folder that the caller names, as
//! Nix takes its working directory. Commas with nothing between them are nothing. Mirrors
//! `machines.cc`; other than there, a speed must be finite and a URL one that can be read.
//!
//! # Security
//! Files are read up to [`MAX_FILE_BYTES`], [`MAX_DEPTH`] deep and [`MAX_FILES`] in all; from
//! [`MAX_MACHINES`] machines on the rest is a fault.

use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fmt, fs,
    io::{self, Read},
    path::{Path, PathBuf},
};
use tk_daemon::ssh::HostKey;
use tk_store::{StoreReference, StoreVariant};

/// Bytes of one file, and of the text itself.
pub const MAX_FILE_BYTES: usize = 1 << 20;
/// How deep files may name further files with `@`; a file below that is a fault.
pub const MAX_DEPTH: usize = 16;
/// Files that are read in all.
pub const MAX_FILES: usize = 256;
/// Machines that are taken.
pub const MAX_MACHINES: usize = 4096;

/// A machine that builds for others.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// The URI of its store, complete.
    pub uri: String,
    /// What it builds for, such as `x86_64-linux`.
    pub systems: BTreeSet<String>,
    /// The file of the private key for ssh.
    pub ssh_key: Option<PathBuf>,
    /// How many builds it runs at once; 1 if the line does not say.
    pub max_jobs: u32,
    /// How fast it is, beside others; above 0.
    pub speed: f32,
    /// What it can do that a derivation may ask for.
    pub features: BTreeSet<String>,
    /// Features that a derivation must ask for; it has them.
    pub mandatory: BTreeSet<String>,
    /// The host's public key in base64, as in the URI of a store.
    pub host_key: Option<String>,
    /// The line that describes the machine.
    pub place: MachineLine,
}

/// A line of a text or of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineLine {
    /// The file, or what the text is called.
    pub file: String,
    /// The number of the line, counted from 1.
    pub line: usize,
}

/// What a derivation asks of a machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Needs {
    /// The system that it is for.
    pub system: String,
    /// Features that the machine must have.
    pub features: BTreeSet<String>,
}

/// What was read: the machines, and what is wrong with the rest.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Machines {
    /// In the order in which they stand.
    pub all: Vec<Machine>,
    /// Lines that are none, in their order.
    pub faults: Vec<MachineFault>,
    /// Files that are named and not there, which Nix takes for empty ones.
    pub absent: Vec<MachineFault>,
}

/// Why a line is no machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineFault {
    /// The line that is at fault.
    pub place: MachineLine,
    /// Which field, from 1 on, and its name; `None` if it is the line as a whole.
    pub field: Option<(usize, &'static str)>,
    /// What is wrong with the line, in words.
    pub why: String,
}

impl Machines {
    /// The machines of `text`, which is called `name` in faults. `system` is that of this machine,
    /// `folder` what file names are relative to.
    pub fn read(text: &str, name: &str, system: &str, folder: &Path) -> Machines {
        let mut reader = ReadMachines {
            system,
            folder,
            files: 0,
            found: Machines::default(),
        };
        match text.len() {
            0..=MAX_FILE_BYTES => reader.text(text.as_bytes(), name, 0),
            _ => reader.fault(name, 1, None, too_large()),
        }
        reader.found
    }

    /// The machines, if nothing is wrong.
    ///
    /// # Errors
    /// The first fault.
    pub fn complete(self) -> Result<Vec<Machine>, MachineFault> {
        match self.faults.into_iter().next() {
            None => Ok(self.all),
            Some(fault) => Err(fault),
        }
    }
}

impl Machine {
    /// The machine at `uri`, which needs no scheme: for `systems`, with Nix's defaults.
    pub fn new(uri: &str, systems: impl IntoIterator<Item = String>) -> Machine {
        Machine {
            uri: whole_uri(uri),
            systems: systems.into_iter().collect(),
            ssh_key: None,
            max_jobs: 1,
            speed: 1.0,
            features: BTreeSet::new(),
            mandatory: BTreeSet::new(),
            host_key: None,
            place: MachineLine {
                file: "the command line".into(),
                line: 1,
            },
        }
    }

    /// Whether it may build what needs `needs`.
    pub fn fits(&self, needs: &Needs) -> bool {
        let system = needs.system == BUILTIN || self.systems.contains(&needs.system);
        let has = |feature| self.features.contains(feature) || self.mandatory.contains(feature);
        system && needs.features.iter().all(has) && self.mandatory.is_subset(&needs.features)
    }

    /// Its store as Nix opens it, with keys and features as settings; `connections` are so many
    /// processes of ssh at most.
    ///
    /// # Errors
    /// A sentence, when the URI cannot be read. What [`Machines::read`] gave can.
    pub fn reference(&self, connections: usize) -> Result<StoreReference, String> {
        let read = StoreReference::parse(&self.uri, Path::new("/"));
        let read = read.map_err(|e| e.to_string())?;
        let mut settings = Vec::new();
        if is_ssh(&read) {
            let key = self.ssh_key.as_ref().map(|key| key.display().to_string());
            settings.extend(key.map(|key| ("ssh-key".to_owned(), key)));
            let host = self.host_key.clone();
            settings.extend(host.map(|key| ("base64-ssh-public-host-key".to_owned(), key)));
        }
        if !read.params.contains_key(CONNECTIONS) && read.scheme() != Some("local") {
            settings.push((CONNECTIONS.to_owned(), connections.to_string()));
        }
        let features: Vec<_> = self.features.union(&self.mandatory).cloned().collect();
        if !features.is_empty() {
            settings.push(("system-features".to_owned(), features.join(" ")));
        }
        Ok(read.with_params(settings))
    }

    /// All of it, with keys in camelCase; what it does not have is null.
    pub fn to_json(&self) -> Value {
        json!({
            "uri": self.uri,
            "systems": self.systems,
            "sshKey": self.ssh_key,
            "maxJobs": self.max_jobs,
            "speedFactor": self.speed,
            "supportedFeatures": self.features,
            "mandatoryFeatures": self.mandatory,
            "publicHostKey": self.host_key,
            "file": self.place.file,
            "line": self.place.line,
        })
    }
}

impl MachineFault {
    /// All of it, with keys in camelCase.
    pub fn to_json(&self) -> Value {
        json!({
            "file": self.place.file,
            "line": self.place.line,
            "field": self.field.map(|(number, _)| number),
            "fieldName": self.field.map(|(_, name)| name),
            "message": self.why,
        })
    }
}

impl fmt::Display for MachineLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} line {}", self.file, self.line)
    }
}

impl fmt::Display for MachineFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field {
            Some((n, name)) => write!(f, "{}, field {n} ({name}): {}", self.place, self.why),
            None => write!(f, "{}: {}", self.place, self.why),
        }
    }
}

impl std::error::Error for MachineFault {}

struct ReadMachines<'a> {
    system: &'a str,
    folder: &'a Path,
    files: usize,
    found: Machines,
}

impl ReadMachines<'_> {
    fn text(&mut self, text: &[u8], name: &str, depth: usize) {
        for (line, bytes) in (1..).zip(text.split(|byte| *byte == b'\n')) {
            let bytes = bytes.split(|byte| *byte == b'#').next().unwrap_or_default();
            let Ok(text) = std::str::from_utf8(bytes) else {
                self.fault(name, line, None, "it is not UTF-8");
                continue;
            };
            for entry in text.split(';').map(str::trim).filter(|e| !e.is_empty()) {
                match entry.strip_prefix('@') {
                    Some(file) => self.include(file.trim(), name, line, depth),
                    None => self.machine(entry, name, line),
                }
            }
        }
    }

    fn include(&mut self, file: &str, name: &str, line: usize, depth: usize) {
        if depth == MAX_DEPTH {
            let why = format!("@{file}: files are nested more than {MAX_DEPTH} deep");
            return self.fault(name, line, None, why);
        }
        self.files += 1;
        if self.files > MAX_FILES {
            let why = format!("@{file}: these are more than {MAX_FILES} files");
            return self.fault(name, line, None, why);
        }
        let path = self.folder.join(file);
        match read_file(&path) {
            Ok(Some(text)) => self.text(&text, &path.display().to_string(), depth + 1),
            Ok(None) if self.found.absent.len() < MAX_FAULTS => {
                let (file, why) = (name.to_owned(), format!("there is no {}", path.display()));
                let place = MachineLine { file, line };
                let (field, absent) = (None, &mut self.found.absent);
                absent.push(MachineFault { place, field, why });
            }
            Ok(None) => {}
            Err(error) => {
                let why = format!("reading {}: {error}", path.display());
                self.fault(name, line, None, why);
            }
        }
    }

    fn machine(&mut self, entry: &str, name: &str, line: usize) {
        if self.found.all.len() == MAX_MACHINES {
            let why = format!("these are more than {MAX_MACHINES} machines");
            return self.fault(name, line, None, why);
        }
        let place = MachineLine {
            file: name.to_owned(),
            line,
        };
        match machine(entry, self.system, place.clone()) {
            Ok(machine) => self.found.all.push(machine),
            Err((field, why)) => self.fault(name, line, Some((field, FIELDS[field - 1])), why),
        }
    }

    fn fault(
        &mut self,
        file: &str,
        line: usize,
        field: Option<(usize, &'static str)>,
        why: impl Into<String>,
    ) {
        // A hostile file is not answered with more than it has.
        if self.found.faults.len() < MAX_FAULTS {
            let (file, why) = (file.to_owned(), why.into());
            let place = MachineLine { file, line };
            self.found.faults.push(MachineFault { place, field, why });
        }
    }
}

/// The machine, or the number of the field that is wrong and why.
fn machine(entry: &str, system: &str, place: MachineLine) -> Result<Machine, (usize, String)> {
    let fields: Vec<_> = entry
        .split([' ', '\t', '\r'])
        .filter(|field| !field.is_empty())
        .collect();
    let field = |n: usize| fields.get(n - 1).copied().filter(|field| *field != "-");
    let list = |n| field(n).map(names).unwrap_or_default();
    let uri = field(1).ok_or((1, "there must be the URL of a store".to_owned()))?;
    let uri = whole_uri(uri);
    StoreReference::parse(&uri, Path::new("/")).map_err(|e| (1, e.to_string()))?;
    let max_jobs = field(4).map_or(Ok(1), |text| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits);
        number.ok_or_else(|| (4, format!("'{text}' is not a whole number of builds")))
    })?;
    Ok(Machine {
        uri,
        systems: match field(2) {
            Some(text) => names(text),
            None => [system.to_owned()].into(),
        },
        ssh_key: field(3).map(PathBuf::from),
        max_jobs,
        speed: field(5).map_or(Ok(1.0), |text| speed(text).map_err(|why| (5, why)))?,
        features: list(6),
        mandatory: list(7),
        host_key: field(8)
            .map(|text| match HostKey::from_base64(text) {
                Ok(_) => Ok(text.to_owned()),
                Err(error) => Err((8, error.to_string())),
            })
            .transpose()?,
        place,
    })
}

fn speed(text: &str) -> Result<f32, String> {
    let number: Option<f32> = text.parse().ok().filter(|n: &f32| n.is_finite());
    match number {
        Some(0.0) => Ok(1.0),
        Some(number) if number > 0.0 => Ok(number),
        _ => Err(format!("'{text}' is not a non-negative number")),
    }
}

fn names(text: &str) -> BTreeSet<String> {
    let names = text.split(',').filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

fn whole_uri(text: &str) -> String {
    let word = text.split('?').next().unwrap_or_default();
    let known = matches!(word, "auto" | "daemon" | "local");
    if known || text.contains('/') {
        text.to_owned()
    } else {
        format!("ssh://{text}")
    }
}

fn is_ssh(reference: &StoreReference) -> bool {
    let StoreVariant::Specified { scheme, .. } = &reference.variant else {
        return false;
    };
    matches!(scheme.as_str(), "ssh" | "ssh-ng")
}

/// `None` if there is no such file.
fn read_file(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(MAX_FILE_BYTES as u64 + 1)
        .read_to_end(&mut text)?;
    match text.len() {
        0..=MAX_FILE_BYTES => Ok(Some(text)),
        _ => Err(io::Error::new(io::ErrorKind::FileTooLarge, too_large())),
    }
}

fn too_large() -> String {
    format!("it is larger than {MAX_FILE_BYTES} bytes")
}

/// What every machine can build: fetchers and the like, which Nix does itself.
const BUILTIN: &str = "builtin";
const CONNECTIONS: &str = "max-connections";
const FIELDS: [&str; 8] = [
    "URL",
    "systems",
    "ssh key",
    "jobs",
    "speed",
    "features",
    "mandatory features",
    "host key",
];
const MAX_FAULTS: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Machines {
        Machines::read(
            text,
            "builders",
            "x86_64-linux",
            Path::new("/no/such/folder"),
        )
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn fields_and_defaults() {
        let key = "c3NoLWVkMjU1MTkgQUFBQQo=";
        let text = format!(
            "# none here\nme@a  # one\n\
             ssh-ng://b i686-linux,,x86_64-linux /key 8 2.5 kvm,big-parallel benchmark {key} more; c - - - 0 ; \n\t\n"
        );
        let found = read(&text);
        assert_eq!(found.faults, []);
        let [a, b, c] = &found.all[..] else {
            panic!("{found:?}")
        };
        let defaults = |uri: &str, line| Machine {
            place: MachineLine {
                file: "builders".into(),
                line,
            },
            ..Machine::new(uri, ["x86_64-linux".to_owned()])
        };
        assert_eq!(*a, defaults("ssh://me@a", 2));
        assert_eq!(*c, defaults("ssh://c", 3));
        assert_eq!(
            *b,
            Machine {
                systems: set(&["i686-linux", "x86_64-linux"]),
                ssh_key: Some("/key".into()),
                max_jobs: 8,
                speed: 2.5,
                features: set(&["kvm", "big-parallel"]),
                mandatory: set(&["benchmark"]),
                host_key: Some(key.into()),
                ..defaults("ssh-ng://b", 3)
            }
        );
        let opened = b.reference(3).unwrap().to_string();
        for part in [
            "ssh-ng://b?",
            "ssh-key=",
            "max-connections=3",
            "base64-ssh-public-host-key=",
            "system-features=benchmark",
        ] {
            assert!(opened.contains(part), "{part} in {opened}");
        }
    }

    #[test]
    fn urls_without_a_scheme() {
        for (text, expected) in [
            ("host", "ssh://host"),
            ("me@host?compress=true", "ssh://me@host?compress=true"),
            ("daemon", "daemon"),
            ("local?root=x", "local?root=x"),
            ("auto", "auto"),
            ("/a/folder", "/a/folder"),
            ("ssh-ng://x", "ssh-ng://x"),
            ("localhost", "ssh://localhost"),
        ] {
            assert_eq!(whole_uri(text), expected);
        }
    }

    #[test]
    fn faults_say_where() {
        let text = "a\n- x86_64-linux; b - - x\nc - - -1\nd - - 1 -2\ne - - 1 nan\nf - - - - - - !\ngopher:/x y\nh - - 99999999999\n\
                    @/proc/self/mem";
        let faults = read(text).faults;
        let told: Vec<_> = faults.iter().map(MachineFault::to_string).collect();
        let expected = [
            "builders line 2, field 1 (URL): there must be the URL of a store",
            "builders line 2, field 4 (jobs): 'x' is not a whole number of builds",
            "builders line 3, field 4 (jobs): '-1' is not a whole number of builds",
            "builders line 4, field 5 (speed): '-2' is not a non-negative number",
            "builders line 5, field 5 (speed): 'nan' is not a non-negative number",
            "builders line 6, field 8 (host key): a public host key is",
        ];
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.starts_with(expected), "{told}");
        }
        assert!(told.iter().any(|told| told.contains("line 8, field 4")));
        assert!(told.last().unwrap().contains("reading /proc/self/mem"));
        assert!(read(text).complete().is_err());
    }

    #[test]
    fn files_within_files_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("a", "one; @b\n@nothing\nfour");
        write("b", "two; @ c");
        write("c", "three - - x\nthree");
        write("loop", "@loop");
        write("twice", "@twice;@twice");
        write("large", &" ".repeat(MAX_FILE_BYTES + 1));
        let read = |text: &str| Machines::read(text, "x", "s", folder.path());
        let found = read("@a");
        let uris: Vec<_> = found.all.iter().map(|m| m.uri.as_str()).collect();
        assert_eq!(
            uris,
            ["ssh://one", "ssh://two", "ssh://three", "ssh://four"]
        );
        let place = format!("{} line 1, field 4", folder.path().join("c").display());
        assert!(found.faults[0].to_string().starts_with(&place));
        let told = read("@loop").faults[0].to_string();
        assert!(told.contains("more than 16 deep"), "{told}");
        assert!(read("@twice").faults.len() <= MAX_FAULTS);
        let told = read("@large").faults[0].to_string();
        assert!(told.contains("larger than"), "{told}");
        let many = "m\n".repeat(MAX_MACHINES + 1);
        assert_eq!(read(&many).all.len(), MAX_MACHINES);
        assert_eq!(read(&many).faults.len(), 1);
        let bytes = "m\n".repeat(MAX_FILE_BYTES);
        assert!(read(&bytes).all.is_empty());
    }

    #[test]
    fn what_fits() {
        let machine = &read("a x,y - 1 1 kvm,big test").all[0];
        for (system, features, fits) in [
            ("x", &["test"][..], true),
            ("y", &["test", "kvm"], true),
            ("builtin", &["test", "big"], true),
            ("x", &[], false),
            ("x", &["kvm"], false),
            ("z", &["test"], false),
            ("x", &["test", "other"], false),
        ] {
            let needs = Needs {
                system: system.into(),
                features: set(features),
            };
            assert_eq!(machine.fits(&needs), fits, "{needs:?}");
        }
    }

    proptest! {
        #[test]
        fn anything_is_read(text in "[a-z0-9@;# \t\n,./:?=-]{0,200}") {
            let found = read(&text.replace('@', "a"));
            for machine in &found.all {
                prop_assert!(machine.speed > 0.0 && machine.reference(1).is_ok());
            }
        }
    }
}
