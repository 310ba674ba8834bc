//! What the surroundings of the process say of credentials.

use std::{collections::BTreeMap, fmt, path::PathBuf};

/// What the process was given by its surroundings, as far as credentials are concerned.
#[derive(Clone, Default)]
pub struct CloudEnvironment {
    /// Variables: those whose names start with `AWS_`, `GOOGLE_` and `AZURE_`, and
    /// `SERVICE_ACCOUNT`.
    pub variables: BTreeMap<String, String>,
    /// The user's home directory, for `~/.aws`.
    pub home: Option<PathBuf>,
}

/// Without the values, some of which are secrets.
impl fmt::Debug for CloudEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("variables", &self.variables.keys())
            .field("home", &self.home)
            .finish()
    }
}

impl CloudEnvironment {
    /// A variable that is set and not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let value = self.variables.get(name).map(String::as_str);
        value.filter(|value| !value.is_empty())
    }

    /// The file that a variable names, or the one of that name in `~/.aws`.
    pub(super) fn aws_file(&self, variable: &str, name: &str) -> Option<PathBuf> {
        let home = self.home.as_deref();
        let in_home = || Some(home?.join(".aws").join(name));
        let named = self
            .get(variable)
            .map(|file| match file.strip_prefix("~/") {
                Some(rest) => home.map_or_else(|| file.into(), |home| home.join(rest)),
                None => PathBuf::from(file),
            });
        named.or_else(in_home)
    }
}
