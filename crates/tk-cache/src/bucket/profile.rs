//! The files `~/.aws/config` and `~/.aws/credentials`.

use super::environment::CloudEnvironment;
use std::{collections::BTreeMap, fs, io, path::Path};
use tk_store::{Error, Result};

/// The profile that counts.
pub(super) fn profile_name<'a>(
    environment: &'a CloudEnvironment,
    profile: Option<&'a str>,
) -> &'a str {
    // In this order, as botocore.
    let variables = ["AWS_DEFAULT_PROFILE", "AWS_PROFILE"];
    let of_environment = || variables.iter().find_map(|name| environment.get(name));
    profile.or_else(of_environment).unwrap_or(DEFAULT)
}

/// All profiles of both files. Where both say something of a profile, `credentials` counts.
#[derive(Default)]
pub(super) struct Profiles {
    profiles: BTreeMap<String, Profile>,
    /// The sections `[services NAME]`, which profiles name.
    services: BTreeMap<String, Profile>,
}

/// One profile: its settings by name. Those that stand below another one have its name and a dot before
/// theirs.
#[derive(Clone, Default)]
pub(super) struct Profile(BTreeMap<String, String>);

impl Profiles {
    /// Files that are not there are empty.
    pub(super) fn read(environment: &CloudEnvironment) -> Result<Self> {
        let mut profiles = Profiles::default();
        if let Some(path) = environment.aws_file("AWS_CONFIG_FILE", "config") {
            profiles.parse(&text(&path)?, ProfileKind::Config);
        }
        if let Some(path) = environment.aws_file("AWS_SHARED_CREDENTIALS_FILE", "credentials") {
            profiles.parse(&text(&path)?, ProfileKind::Credentials);
        }
        Ok(profiles)
    }

    pub(super) fn find(&self, name: &str) -> Option<&Profile> {
        self.profiles.get(name)
    }

    /// The URL of the server that the profile `name` uses for `service`, such as `s3`, in the place of
    /// Amazon's: the one for this service counts before the one for all.
    pub(super) fn endpoint(&self, name: &str, service: &str) -> Option<&str> {
        let profile = self.find(name)?;
        let ignored = profile.get("ignore_configured_endpoint_urls");
        if ignored.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return None;
        }
        let services = profile
            .get("services")
            .and_then(|name| self.services.get(name));
        let own = services.and_then(|services| services.get(&format!("{service}.endpoint_url")));
        own.or_else(|| profile.get("endpoint_url"))
    }

    /// As botocore, which reads them as Python's configparser does: `[section]`, `key = value` or
    /// `key: value`, indented or not; lines that begin with `#` or `;` are comments, and what is
    /// indented deeper than the setting above belongs to that one.
    fn parse(&mut self, text: &str, kind: ProfileKind) {
        let mut current: Option<&mut Profile> = None;
        let mut setting: Option<String> = None;
        let mut indent = 0;
        for line in text.trim_start_matches('\u{feff}').lines() {
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
                continue;
            }
            let depth = line.len() - line.trim_start().len();
            let below = setting.as_deref().filter(|_| depth > indent);
            if below.is_none() {
                indent = depth;
                if let Some((section, _)) =
                    trimmed.strip_prefix('[').and_then(|r| r.rsplit_once(']'))
                {
                    setting = None;
                    current = self.section(kind, section);
                    continue;
                }
            }
            let Some((key, value)) = trimmed.split_once(['=', ':']) else {
                if below.is_none() {
                    setting = None;
                }
                continue;
            };
            let key = key.trim().to_ascii_lowercase();
            let value = without_comment(&key, value.trim()).to_owned();
            let full = match below {
                Some(above) => format!("{above}.{key}"),
                None => setting.insert(key).clone(),
            };
            if let Some(profile) = &mut current {
                profile.0.insert(full, value);
            }
        }
    }

    /// What the section is about, where it is about anything here. In `config` names stand as words of a shell.
    fn section(&mut self, kind: ProfileKind, section: &str) -> Option<&mut Profile> {
        if kind == ProfileKind::Credentials || section == "default" {
            return Some(self.profiles.entry(section.to_owned()).or_default());
        }
        let words = shell_words::split(section).ok()?;
        let [kind, name] = <[String; 2]>::try_from(words).ok()?;
        match kind.as_str() {
            "profile" => Some(self.profiles.entry(name).or_default()),
            "services" => Some(self.services.entry(name).or_default()),
            _ => None,
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum ProfileKind {
    Config,
    Credentials,
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

/// The profile that counts where none is named.
pub(super) const DEFAULT: &str = "default";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_win_over_config() {
        let mut profiles = Profiles::default();
        let config = "[default]\nregion = eu-west-3 # near\n[profile a]\naws_access_key_id=old\n\
                      s3 =\n  addressing_style = path\n[sso-session x]\nregion=no\n[a b]\nx=y\n";
        let credentials = "; mine\n[a]\nAWS_ACCESS_KEY_ID = new\naws_secret_access_key=a=b#c\n";
        profiles.parse(config, ProfileKind::Config);
        profiles.parse(credentials, ProfileKind::Credentials);
        let get = |name: &str, key: &str| Some(profiles.find(name)?.get(key)?.to_owned());
        assert_eq!(get("default", "region").unwrap(), "eu-west-3");
        assert_eq!(get("a", "aws_access_key_id").unwrap(), "new");
        assert_eq!(get("a", "aws_secret_access_key").unwrap(), "a=b#c");
        assert_eq!(get("a", "addressing_style"), None);
        assert_eq!(profiles.profiles.len(), 2);
    }

    #[test]
    fn servers_of_profiles() {
        let mut profiles = Profiles::default();
        let config = "[default]\nendpoint_url = http://all\nservices = own\n\
                      [services own]\ns3 =\n  endpoint_url = http://s3\nec2 =\n  endpoint_url = http://ec2\n\
                      [profile a]\nendpoint_url = http://a\nservices = none\ns3 =\n  endpoint_url = no\n\
                      [profile b]\nendpoint_url = http://b\nignore_configured_endpoint_urls = true\n";
        profiles.parse(config, ProfileKind::Config);
        for (name, service, expected) in [
            ("default", "s3", Some("http://s3")),
            ("default", "sts", Some("http://all")),
            ("a", "s3", Some("http://a")),
            ("b", "s3", None),
            ("c", "s3", None),
        ] {
            assert_eq!(profiles.endpoint(name, service), expected, "{name}");
        }
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
                ProfileKind::Credentials,
                "default",
            ),
            (
                " [default]\n  aws_access_key_id = K\n\n  region: r\n",
                ProfileKind::Config,
                "default",
            ),
            (
                "[default]\r\naws_access_key_id=K\r\nregion=r\r\n",
                ProfileKind::Config,
                "default",
            ),
            (
                "[profile \"my prof\"]\nAws_Access_Key_Id=K\nregion=r",
                ProfileKind::Config,
                "my prof",
            ),
            (
                "[profile 'a b']\naws_access_key_id=K\nregion=r",
                ProfileKind::Config,
                "a b",
            ),
            (
                "[profile\tp]\naws_access_key_id=K\n; c\n # c\nregion=r",
                ProfileKind::Config,
                "p",
            ),
            (
                "[my prof]\naws_access_key_id=K\nregion=r",
                ProfileKind::Credentials,
                "my prof",
            ),
            (
                "[profile p]\ns3 =\n    region = no\n    x = y\naws_access_key_id=K\nregion=r",
                ProfileKind::Config,
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
            ProfileKind::Config,
        );
        assert!(none.profiles.is_empty());
        let command = of(
            "[default]\ncredential_process = sh -c 'x # y'",
            ProfileKind::Config,
        );
        let command = command.find("default").unwrap().get("credential_process");
        assert_eq!(command, Some("sh -c 'x # y'"));
    }
}
