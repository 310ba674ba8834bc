//! The files `~/.aws/config` and `~/.aws/credentials`.

use super::config::Environment;
use std::{collections::BTreeMap, fs, io, path::Path};
use tk_store::{Error, Result};

/// All profiles of both files. Where both say something of a profile, `credentials` counts.
#[derive(Default)]
pub(super) struct Profiles(BTreeMap<String, Profile>);

/// One profile: its settings by name.
#[derive(Clone, Default)]
pub(super) struct Profile(BTreeMap<String, String>);

impl Profiles {
    /// Files that are not there are empty.
    pub(super) fn read(environment: &Environment) -> Result<Self> {
        let mut profiles = Profiles::default();
        if let Some(path) = environment.aws_file("AWS_CONFIG_FILE", "config") {
            profiles.parse(&text(&path)?, Kind::Config);
        }
        if let Some(path) = environment.aws_file("AWS_SHARED_CREDENTIALS_FILE", "credentials") {
            profiles.parse(&text(&path)?, Kind::Credentials);
        }
        Ok(profiles)
    }

    pub(super) fn find(&self, name: &str) -> Option<&Profile> {
        self.0.get(name)
    }

    /// As botocore, which reads them as Python's configparser does: `[section]`, `key = value` or
    /// `key: value`, indented or not; lines that begin with `#` or `;` are comments, and what is
    /// indented deeper than the setting above belongs to that one.
    fn parse(&mut self, text: &str, kind: Kind) {
        let mut current: Option<String> = None;
        let mut in_setting = false;
        let mut indent = 0;
        for line in text.trim_start_matches('\u{feff}').lines() {
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
                continue;
            }
            let depth = line.len() - line.trim_start().len();
            if in_setting && depth > indent {
                continue;
            }
            (in_setting, indent) = (false, depth);
            if let Some((section, _)) = trimmed.strip_prefix('[').and_then(|r| r.rsplit_once(']')) {
                current = kind.profile(section);
                continue;
            }
            let Some((key, value)) = trimmed.split_once(['=', ':']) else {
                continue;
            };
            in_setting = true;
            if let Some(name) = &current {
                let key = key.trim().to_ascii_lowercase();
                let value = without_comment(&key, value.trim()).to_owned();
                let profile = self.0.entry(name.clone()).or_default();
                profile.0.insert(key, value);
            }
        }
    }
}

/// To botocore, what follows ` #` belongs to the value, but no other tool of Amazon's takes it so, and
/// these values have no blanks in them. Commands and names of files may.
fn without_comment<'a>(key: &str, value: &'a str) -> &'a str {
    if key.ends_with("_process") || key.ends_with("_file") {
        return value;
    }
    let end = [" #", " ;", "\t#", "\t;"]
        .iter()
        .filter_map(|mark| value.find(mark))
        .min();
    value[..end.unwrap_or(value.len())].trim_end()
}

impl Profile {
    /// A setting that is there and not empty.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        let value = self.0.get(key).map(String::as_str);
        value.filter(|value| !value.is_empty())
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Config,
    Credentials,
}

impl Kind {
    /// The profile of a section; `None` for one of another kind. In `config` names stand as words of
    /// a shell.
    fn profile(self, section: &str) -> Option<String> {
        match self {
            Kind::Credentials => Some(section.to_owned()),
            Kind::Config if section == "default" => Some(section.to_owned()),
            Kind::Config if section.starts_with("profile") => match shell_words::split(section) {
                Ok(words) if words.len() == 2 => words.into_iter().nth(1),
                _ => None,
            },
            Kind::Config => None,
        }
    }
}

/// Files that are not there, or that this user may not read, are empty.
fn text(path: &Path) -> Result<String> {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied};
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) => match e.kind() {
            NotFound | NotADirectory | IsADirectory | PermissionDenied => Ok(String::new()),
            _ => Err(Error::io(format!("reading {}", path.display()), e)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_win_over_config() {
        let mut profiles = Profiles::default();
        let config = "[default]\nregion = eu-west-3 # near\n[profile a]\naws_access_key_id=old\n\
                      s3 =\n  addressing_style = path\n[sso-session x]\nregion=no\n[a b]\nx=y\n";
        let credentials = "; mine\n[a]\nAWS_ACCESS_KEY_ID = new\naws_secret_access_key=a=b#c\n";
        profiles.parse(config, Kind::Config);
        profiles.parse(credentials, Kind::Credentials);
        let get = |name: &str, key: &str| Some(profiles.find(name)?.get(key)?.to_owned());
        assert_eq!(get("default", "region").unwrap(), "eu-west-3");
        assert_eq!(get("a", "aws_access_key_id").unwrap(), "new");
        assert_eq!(get("a", "aws_secret_access_key").unwrap(), "a=b#c");
        assert_eq!(get("a", "addressing_style"), None);
        assert_eq!(profiles.0.len(), 2);
    }

    /// What botocore 1.44 makes of the same files.
    #[test]
    fn files_as_people_write_them() {
        let of = |text: &str, kind| {
            let mut profiles = Profiles::default();
            profiles.parse(text, kind);
            profiles
        };
        for (text, kind, name) in [
            (
                "\u{feff}[default]\n  aws_access_key_id = K\n  region = r\n",
                Kind::Credentials,
                "default",
            ),
            (
                " [default]\n  aws_access_key_id = K\n\n  region: r\n",
                Kind::Config,
                "default",
            ),
            (
                "[default]\r\naws_access_key_id=K\r\nregion=r\r\n",
                Kind::Config,
                "default",
            ),
            (
                "[profile \"my prof\"]\nAws_Access_Key_Id=K\nregion=r",
                Kind::Config,
                "my prof",
            ),
            (
                "[profile 'a b']\naws_access_key_id=K\nregion=r",
                Kind::Config,
                "a b",
            ),
            (
                "[profile\tp]\naws_access_key_id=K\n; c\n # c\nregion=r",
                Kind::Config,
                "p",
            ),
            (
                "[my prof]\naws_access_key_id=K\nregion=r",
                Kind::Credentials,
                "my prof",
            ),
            (
                "[profile p]\ns3 =\n    region = no\n    x = y\naws_access_key_id=K\nregion=r",
                Kind::Config,
                "p",
            ),
        ] {
            let profiles = of(text, kind);
            let profile = profiles.find(name).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(profile.get("aws_access_key_id"), Some("K"), "{text}");
            assert_eq!(profile.get("region"), Some("r"), "{text}");
        }
        let none = of(
            "[profile a b]\nx=1\n[profile \"a]\nx=1\n[a]\nx=1\n[profile]\nx=1",
            Kind::Config,
        );
        assert!(none.0.is_empty());
        let command = of(
            "[default]\ncredential_process = sh -c 'x # y'",
            Kind::Config,
        );
        let command = command.find("default").unwrap().get("credential_process");
        assert_eq!(command, Some("sh -c 'x # y'"));
    }
}
