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

    /// Lines `[name]` and `key = value`. What is indented belongs to a setting above that is no
    /// concern of ours.
    fn parse(&mut self, text: &str, kind: Kind) {
        let mut current: Option<String> = None;
        for line in text.lines() {
            if line.starts_with([' ', '\t', '#', ';']) {
                continue;
            }
            if let Some(rest) = line.strip_prefix('[') {
                let name = rest.split(']').next().unwrap_or_default().trim();
                current = kind.profile(name).map(str::to_owned);
                continue;
            }
            if let (Some(name), Some((key, value))) = (&current, line.split_once('=')) {
                let value = value.split(" #").next().unwrap_or_default().trim();
                let profile = self.0.entry(name.clone()).or_default();
                let key = key.trim().to_ascii_lowercase();
                profile.0.insert(key, value.to_owned());
            }
        }
    }
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
    /// The profile of a section; `None` for one of another kind.
    fn profile(self, section: &str) -> Option<&str> {
        match (self, section.split_once(char::is_whitespace)) {
            (Kind::Config, Some(("profile", name))) => Some(name.trim()),
            (Kind::Config, None) if section == "default" => Some(section),
            (Kind::Credentials, None) => Some(section),
            _ => None,
        }
    }
}

fn text(path: &Path) -> Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(Error::io(format!("reading {}", path.display()), e)),
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
}
