use super::CiError;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The outputs of a flake that CI is about, by system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CiProject {
    /// Names of packages, for each system that has some.
    pub packages: BTreeMap<String, BTreeSet<String>>,
    /// Names of checks, for each system that has some.
    pub checks: BTreeMap<String, BTreeSet<String>>,
    /// Packages whose names cannot stand on a command line as they are; they are not built by name.
    pub left_out: BTreeSet<String>,
}

impl CiProject {
    /// The outputs that `value` tells: what `nix flake show --json` prints, or the same with a list of names for
    /// each system, as `{"packages": {"x86_64-linux": ["default"]}}`. Other outputs are passed over.
    ///
    /// # Errors
    /// [`CiError::Outputs`] for another form.
    pub fn of_json(value: &Value) -> Result<CiProject, CiError> {
        let Value::Object(all) = value else {
            return Err(CiError::Outputs("it is no object".into()));
        };
        let mut project = CiProject {
            checks: by_system(all.get("checks"), "checks")?,
            ..CiProject::default()
        };
        for (system, names) in by_system(all.get("packages"), "packages")? {
            let (plain, odd) = names.into_iter().partition(|name| is_plain(name));
            project.left_out.append(&mut { odd });
            let plain: BTreeSet<String> = plain;
            if !plain.is_empty() {
                project.packages.insert(system, plain);
            }
        }
        Ok(project)
    }

    /// The systems that have something to check or to build.
    pub fn systems(&self) -> BTreeSet<&str> {
        let all = self.packages.keys().chain(self.checks.keys());
        all.map(String::as_str).collect()
    }
}

fn by_system(
    value: Option<&Value>,
    what: &str,
) -> Result<BTreeMap<String, BTreeSet<String>>, CiError> {
    let wrong = |why: &str| CiError::Outputs(format!("{what} {why}"));
    let systems = match value {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::Object(systems)) => systems,
        Some(_) => return Err(wrong("are no object")),
    };
    let mut all = BTreeMap::new();
    for (system, outputs) in systems {
        if !is_system(system) {
            return Err(wrong(&format!(
                "have '{}', which is no system",
                system.escape_debug()
            )));
        }
        let names: BTreeSet<String> = match outputs {
            // For a system that was not asked for, nix may leave the outputs out.
            Value::Object(outputs) => outputs.keys().cloned().collect(),
            Value::Array(names) => {
                let names = names.iter().map(|name| name.as_str().map(str::to_owned));
                let names: Option<_> = names.collect();
                names.ok_or_else(|| wrong(&format!("of {system} are not all names")))?
            }
            _ => {
                return Err(wrong(&format!(
                    "of {system} are neither an object nor a list"
                )));
            }
        };
        if !names.is_empty() {
            all.insert(system.clone(), names);
        }
    }
    Ok(all)
}

fn is_system(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    name.contains('-') && !name.starts_with('-') && name.chars().all(fine)
}

/// Whether it is one attribute of a path, and one word of a shell.
fn is_plain(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '+';
    !name.is_empty() && name.chars().all(fine)
}
