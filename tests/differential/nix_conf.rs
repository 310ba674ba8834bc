//! nix.conf: what real Nix makes of files and of the environment that names them, and what we do.

use super::engine::{Plan, Verdict, expect_find};
use crate::support::{Rig, Tally, VERSIONS, rig};
use proptest::{
    collection::vec,
    option,
    prelude::{Just, Strategy, prop_oneof},
    sample::select,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    os::unix::fs::symlink,
    path::Path,
};
use tempfile::TempDir;
use tk_open::nix_conf::{ConfPlaces, NixConf};

#[test]
fn files_mean_what_they_mean_to_nix() {
    let rows = VERSIONS.map(|version| format!("generated files, Nix {version}"));
    let names = rows.each_ref().map(String::as_str);
    let mut tally = Tally::new("differential: nix.conf", &names);
    for (version, row) in VERSIONS.iter().zip(names) {
        let Some(rig) = rig(version) else { continue };
        let plan = Plan::new(if rig.version == "2.34" { 100 } else { 30 }, 10);
        let nix = Shown::new(&rig);
        let find = plan.search(&case(rig.version), |cases| {
            let verdicts: Vec<_> = cases.iter().map(|case| compare(&nix, case, load)).collect();
            for _ in verdicts.iter().filter(|verdict| verdict.is_ok()) {
                tally.case(row, "", || Ok(()));
            }
            Ok(verdicts)
        });
        if let Some(find) = find {
            tally.case(row, "", || Err(format!("seed {}: {find:?}", plan.seed)));
        }
    }
    tally.finish();
}

#[test]
fn a_reader_that_takes_no_old_names_is_found() {
    let Some(rig) = rig("2.34") else { return };
    let nix = Shown::new(&rig);
    let find = Plan::planted(60).search(&case(rig.version), |cases| {
        let deaf = |places: &ConfPlaces| {
            let text = fs::read_to_string(&places.system).unwrap_or_default();
            fs::write(
                &places.system,
                text.replace("binary-caches", "binary-cashes"),
            )
            .unwrap();
            let said = load(places);
            fs::write(&places.system, text).unwrap();
            said
        };
        Ok(cases.iter().map(|case| compare(&nix, case, deaf)).collect())
    });
    expect_find(find, |case| case.system.len() <= 2);
}

/// Odd single files, and the environment.
#[test]
fn odd_files_and_places_too() {
    let rows = VERSIONS.map(|version| format!("odd files, Nix {version}"));
    let names = rows.each_ref().map(String::as_str);
    let mut tally = Tally::new("differential: nix.conf by hand", &names);
    for (version, row) in VERSIONS.iter().zip(names) {
        let Some(rig) = rig(version) else { continue };
        let nix = Shown::new(&rig);
        let old = rig.version == "2.8";
        for text in FILES {
            // The newest drops what the others keep.
            if old && text.starts_with(b"cores = 3\n!include loop/x") {
                continue;
            }
            let place = Files::new();
            place.write("etc/nix.conf", text);
            let what = String::from_utf8_lossy(text).into_owned();
            tally.case(row, &what, || nix.compare(&place, &[], load));
        }
        for env in ENVIRONMENTS {
            if old && env.iter().any(|(name, _)| *name == "NIX_CONFIG_HOME") {
                continue;
            }
            let place = Files::new();
            for (at, name) in ["etc", "one", "two", "two/nix"].into_iter().enumerate() {
                let text = format!(
                    "cores = {at}\nextra-substituters = http://{at}\nnetrc-file = /{name}\n"
                );
                place.write(&format!("{name}/nix.conf"), text.as_bytes());
            }
            tally.case(row, &format!("{env:?}"), || nix.compare(&place, env, load));
        }
    }
    tally.finish();
}

const FILES: &[&[u8]] = &[
    b"# Schl\xfcssel\ncores = 3",
    b"cores = 3\r\nfallback = yes\r\n",
    b"cores = 3 # = 4\n",
    b"cores=3\n",
    b"cores =3\n",
    b"cores\n",
    b"= 3\n",
    b"cores = = 3\n",
    b"cores = 3\n!include loop/x\n",
    b"include dangling\ncores = 3\n",
    b"include folder\ncores = 3\n",
    b"!include /proc/self/mem\ncores = 3\n",
    b"include nothing\n",
    b"include = nothing\n",
    b"!include a/x\ncores = 3\n",
    b"!include nothing more\n",
    b"user-agent-suffix = \x0c \x0b a\x0bb\n",
    b"netrc-file = /a b\n",
    b"extra-netrc-file = /a\nextra-unknown = 1\nunknown = 2\ncores = 3\n",
    b"max-jobs = auto\n",
    b"max-jobs = -1\n",
    b"cores = +5\n",
    b"cores = 0x5\n",
    b"download-attempts = 99999999999\n",
    b"timeout = 99999999999\n",
    b"require-sigs = True\n",
    b"require-sigs =\n",
];

/// `{}` is the folder of the files.
const ENVIRONMENTS: &[&[(&str, &str)]] = &[
    &[("NIX_USER_CONF_FILES", "{}/one/nix.conf:{}/two/nix.conf")],
    &[(
        "NIX_USER_CONF_FILES",
        "::{}/two/nix.conf:{}/nothing:{}/folder",
    )],
    &[("NIX_USER_CONF_FILES", "")],
    &[("XDG_CONFIG_HOME", "{}/two"), ("XDG_CONFIG_DIRS", "")],
    &[
        ("XDG_CONFIG_HOME", "{}/nothing"),
        ("XDG_CONFIG_DIRS", "{}/one::{}/two"),
    ],
    &[("NIX_CONFIG_HOME", "{}/one"), ("XDG_CONFIG_HOME", "{}/two")],
    &[("NIX_CONF_DIR", "{}/one")],
    &[(
        "NIX_CONFIG",
        "include {}/one/nix.conf\nextra-substituters = http://x",
    )],
    &[("NIX_CONFIG", "!include {}/nothing\ncores = 7")],
    &[("NIX_CONFIG", "!include nothing")],
    &[("NIX_CONFIG", "cores=7")],
    &[("NIX_CONFIG", "")],
];

/// A folder in which each name in a case means something.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let files = Files(TempDir::new().expect("a temporary folder"));
        files.write(
            "etc/a",
            b"cores = 9\n!include b\nextra-substituters = http://a\n",
        );
        files.write("etc/b", b"# fran\xe7ais\nbinary-caches = http://b\n");
        fs::create_dir(files.place("etc/folder")).expect("writable");
        symlink("nowhere", files.place("etc/dangling")).expect("writable");
        symlink("loop", files.place("etc/loop")).expect("writable");
        files
    }

    fn place(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &[u8]) {
        let file = self.place(name);
        fs::create_dir_all(file.parent().expect("in a folder")).expect("writable");
        fs::write(file, text).expect("writable");
    }

    /// `env` as it is for these files.
    fn environment(&self, env: &[(&str, &str)]) -> BTreeMap<String, OsString> {
        let folder = self.0.path().to_string_lossy();
        let etc = self.place("etc").into_os_string();
        let usual = [
            ("NIX_CONF_DIR".to_owned(), etc),
            ("HOME".to_owned(), self.0.path().into()),
            ("XDG_CONFIG_DIRS".to_owned(), "/nowhere".into()),
        ];
        let here = |(name, value): &(&str, &str)| {
            let value = value.replace("{}", &folder);
            ((*name).to_owned(), value.into())
        };
        usual.into_iter().chain(env.iter().map(here)).collect()
    }
}

/// What `nix config show` says.
struct Shown<'a> {
    rig: &'a Rig,
    /// Without any setting.
    defaults: BTreeMap<String, Value>,
}

impl<'a> Shown<'a> {
    fn new(rig: &'a Rig) -> Self {
        let mut shown = Shown {
            rig,
            defaults: BTreeMap::new(),
        };
        let nothing = Files::new();
        shown.defaults = shown.ask(&nothing.environment(&[])).expect("nix works");
        shown
    }

    fn ask(&self, env: &BTreeMap<String, OsString>) -> Result<BTreeMap<String, Value>, String> {
        let mut command = self.rig.command("nix");
        for name in [
            "NIX_CONF_DIR",
            "NIX_USER_CONF_FILES",
            "XDG_CONFIG_HOME",
            "XDG_CONFIG_DIRS",
        ] {
            command.env_remove(name);
        }
        command.args(["--extra-experimental-features", "nix-command"]);
        command.args(match self.rig.version {
            "2.8" => &["show-config", "--json"][..],
            _ => &["config", "show", "--json"],
        });
        let out = self.rig.try_run(command.envs(env))?;
        let all: BTreeMap<String, Value> = serde_json::from_slice(&out).expect("JSON");
        let value = |(name, mut all): (String, Value)| (name, all["value"].take());
        Ok(all.into_iter().map(value).collect())
    }

    /// Compares the settings that we know about, or that both refuse.
    fn compare(
        &self,
        files: &Files,
        env: &[(&str, &str)],
        load: impl Fn(&ConfPlaces) -> Result<NixConf, String>,
    ) -> Verdict {
        let env = files.environment(env);
        let home = env.get("HOME").map(Path::new);
        let places = ConfPlaces::of_environment(|name| env.get(name).cloned(), home);
        let (ours, nix) = match (load(&places), self.ask(&env)) {
            (Ok(ours), Ok(nix)) => (ours, nix),
            (Err(_), Err(_)) => return Ok(()),
            (Ok(_), Err(error)) => return Err(format!("only nix refuses: {error}")),
            (Err(error), Ok(_)) => return Err(format!("only we refuse: {error}")),
        };
        for name in NAMES {
            let want = nix.get(*name).ok_or_else(|| format!("nix has no {name}"))?;
            let got = match ours.get(name) {
                // As many as this machine has processors.
                Some("auto") if *name == "max-jobs" => continue,
                None if *name == "netrc-file" => {
                    let file = places.system.with_file_name("netrc");
                    file.to_string_lossy().into_owned().into()
                }
                None => self.defaults[*name].clone(),
                Some(_) if want.is_array() => ours.list(name).unwrap_or_default().into(),
                Some(text) if want.is_number() => {
                    text.parse::<u64>().map_err(|e| e.to_string())?.into()
                }
                Some(text) if want.is_boolean() => (text == "true").into(),
                Some(text) => text.into(),
            };
            if in_any_order(name, &got) != in_any_order(name, want) {
                return Err(format!("{name}: ours {got}, nix {want}"));
            }
        }
        Ok(())
    }
}

/// The value, of which order and repetitions do not count where they do not for Nix.
fn in_any_order(name: &str, value: &Value) -> Value {
    let Some(words) = value.as_array().filter(|_| name == "trusted-substituters") else {
        return value.clone();
    };
    let words: BTreeSet<_> = words.iter().map(Value::to_string).collect();
    words.into_iter().collect()
}

fn load(places: &ConfPlaces) -> Result<NixConf, String> {
    NixConf::load(places).map_err(|e| e.to_line())
}

fn compare(
    nix: &Shown<'_>,
    case: &Case,
    load: impl Fn(&ConfPlaces) -> Result<NixConf, String>,
) -> Verdict {
    let files = Files::new();
    let text = |lines: &[Vec<u8>]| lines.join(&b'\n');
    files.write("etc/nix.conf", &text(&case.system));
    files.write("one", &text(&case.users.0));
    files.write("two", &text(&case.users.1));
    let config = case.config.as_deref().map(text);
    let config = config.map(|text| String::from_utf8(text).expect("text"));
    let mut env = vec![("NIX_USER_CONF_FILES", "{}/one:{}/two")];
    env.extend(config.as_deref().map(|text| ("NIX_CONFIG", text)));
    nix.compare(&files, &env, load)
}

#[derive(Debug, Clone)]
struct Case {
    system: Vec<Vec<u8>>,
    users: (Vec<Vec<u8>>, Vec<Vec<u8>>),
    config: Option<Vec<Vec<u8>>>,
}

fn case(version: &'static str) -> impl Strategy<Value = Case> {
    let file = || vec(line(version), 0..6);
    let config = vec(setting(version), 0..3);
    (file(), (file(), file()), option::of(config)).prop_map(|(system, users, config)| Case {
        system,
        users,
        config,
    })
}

/// Mostly such as nix takes: one that it does not is the end of all.
fn line(version: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let included = select(&["a", "b", "folder", "dangling", "/proc/self/mem"][..]);
    let include = (select(&["include", "!include"][..]), included);
    let include = include.prop_map(|(how, what)| format!("{how} {what}").into_bytes());
    let other: &[&[u8]] = &[b"", b"# caf\xe9 = 1", b" \t\r", b"!include nothing", b"#"];
    let wrong: &[&[u8]] = &[
        b"cores",
        b"cores=1",
        b"include nothing",
        b"a = b\x0b=",
        b"x y",
    ];
    prop_oneof![
        20 => setting(version),
        4 => include,
        4 => select(other).prop_map(<[u8]>::to_vec),
        1 => select(wrong).prop_map(<[u8]>::to_vec),
    ]
}

fn setting(version: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let lists = select(
        &[
            "substituters",
            "binary-caches",
            "trusted-substituters",
            "trusted-binary-caches",
            "trusted-public-keys",
            "binary-cache-public-keys",
            "secret-key-files",
        ][..],
    );
    // Such that the newest, which reads stores and writes them in its own form, leaves them as they are.
    let words = vec(
        select(&["http://x", "http://y?a=b", "http://z/k-1:AAAA"][..]),
        0..4,
    );
    let list = (select(&["", "extra-"][..]), lists, words)
        .prop_map(|(extra, name, words)| (format!("{extra}{name}"), words.join("  ")));
    let numbers = select(
        &[
            "cores",
            "build-cores",
            "max-jobs",
            "build-max-jobs",
            "download-attempts",
            "connect-timeout",
            "timeout",
            "build-timeout",
            "max-silent-time",
            "binary-caches-parallel-connections",
            "narinfo-cache-negative-ttl",
        ][..],
    );
    // Older ones know no units.
    let digits: &[&str] = match version {
        "2.34" => &["0", "1", "04", "+3", "70000", "2K", "1m"],
        _ => &["0", "1", "04", "+3", "70000"],
    };
    let number = (numbers, select(digits)).prop_map(|(name, text)| (name.into(), text.into()));
    let flags = select(
        &[
            "require-sigs",
            "fallback",
            "build-fallback",
            "substitute",
            "build-use-substitutes",
            "keep-failed",
            "keep-going",
            "builders-use-substitutes",
        ][..],
    );
    let values = select(&["true", "yes", "1", "false", "no", "0"][..]);
    let flag = (flags, values).prop_map(|(name, text)| (name.into(), text.into()));
    let texts = select(
        &[
            "netrc-file",
            "user-agent-suffix",
            "extra-netrc-file",
            "extra-cores",
        ][..],
    );
    // Only the newest takes no relative paths, and so do we.
    let values: &[&str] = match version {
        "2.34" => &["/a", "/a  b", "= x", "x=y", "/a\x0bb"],
        _ => &["/a", "/a  b", "/= x", "/x=y", "/a\x0bb"],
    };
    let values = select(values);
    let text = (texts, values).prop_map(|(name, text)| (name.into(), text.into()));
    let wrong = (Just("cores".to_owned()), Just("many".to_owned()));
    let pair = prop_oneof![8 => list, 4 => number, 4 => flag, 3 => text, 1 => wrong];
    let style = select(&["N = V", "N\t=\tV", " N  = V # c", "N = V\r", "N = V#d = e"][..]);
    (pair, style).prop_map(|((name, value), style): ((String, String), _)| {
        style.replace('N', &name).replace('V', &value).into_bytes()
    })
}

/// What is compared.
const NAMES: &[&str] = &[
    "substituters",
    "trusted-substituters",
    "trusted-public-keys",
    "secret-key-files",
    "require-sigs",
    "fallback",
    "substitute",
    "keep-failed",
    "keep-going",
    "builders-use-substitutes",
    "max-jobs",
    "cores",
    "timeout",
    "max-silent-time",
    "http-connections",
    "connect-timeout",
    "download-attempts",
    "narinfo-cache-negative-ttl",
    "user-agent-suffix",
    "netrc-file",
];
