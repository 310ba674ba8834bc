use super::CiError;
use std::collections::BTreeMap;

/// What no flake says of its CI.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CiOptions {
    /// The branch whose pushes are checked, and pushed to the cache. Default: `main`.
    pub branch: String,
    /// The cache that gets what was built from pushes to the branch. Default: none.
    pub cache: Option<CiCache>,
    /// Systems to run, of those that the flake has. Default: empty, which is all of them.
    pub systems: Vec<String>,
    /// Where a system runs, in the words of the service, beside or instead of what is known.
    pub runners: BTreeMap<String, String>,
    /// The image for GitLab, `NAME@sha256:DIGEST`.
    pub image: Option<String>,
    /// Further jobs on the first system: their names, and what each runs in the repository.
    pub jobs: Vec<(String, String)>,
}

/// A cache to push to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CiCache {
    /// Its URI, as `tk-store push --to` takes it. It stands in the file: no login may be in it.
    pub uri: String,
    /// The flake of tk-store.
    pub tk_store: String,
    /// Variables of the push that are secrets of the service by the same names, such as `TK_SIGN_KEY`.
    pub secrets: Vec<String>,
}

impl Default for CiOptions {
    fn default() -> Self {
        CiOptions {
            branch: "main".into(),
            cache: None,
            systems: Vec::new(),
            runners: BTreeMap::new(),
            image: None,
            jobs: Vec::new(),
        }
    }
}

impl CiOptions {
    /// Refuses what would not be what it looks like in a file or a shell.
    pub(super) fn check(&self) -> Result<(), CiError> {
        let word = |what, text: &str, more: &str| {
            let fine = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
            if !text.is_empty() && !text.starts_with('-') && text.chars().all(fine) {
                return Ok(());
            }
            let why = "has characters that do not belong there";
            Err(CiError::Text {
                what,
                text: text.escape_debug().to_string(),
                why,
            })
        };
        word("the branch", &self.branch, "._/-")?;
        for (system, label) in &self.runners {
            word("the system", system, "_-")?;
            word("the runner", label, "._-")?;
        }
        for (name, command) in &self.jobs {
            word("the job", name, "_-")?;
            if RESERVED.contains(&name.as_str()) || name.starts_with(|c: char| c.is_ascii_digit()) {
                return Err(CiError::Text {
                    what: "the job",
                    text: name.clone(),
                    why: "has a name that the service or the first job has",
                });
            }
            if command.trim().is_empty() {
                return Err(CiError::Text {
                    what: "the job",
                    text: name.clone(),
                    why: "has nothing to run",
                });
            }
            if command.contains("${{") || command.contains(|c: char| c.is_control() && c != '\n') {
                return Err(CiError::Text {
                    what: "the command",
                    text: command.escape_debug().to_string(),
                    why: "has an expression of the service or a control character in it",
                });
            }
        }
        if let Some(cache) = &self.cache {
            word("the cache", &cache.uri, "._/-:?=&+%,~")?;
            word("the flake", &cache.tk_store, "._/-:?=&+#~")?;
            for name in &cache.secrets {
                word("the secret", name, "_")?;
            }
        }
        match &self.image {
            Some(image) => check_image(image),
            None => Ok(()),
        }
    }
}

fn check_image(image: &str) -> Result<(), CiError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._/-:".contains(c);
    let is_digest =
        |d: &str| d.len() == 64 && d.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'));
    let parts = image.split_once("@sha256:");
    let is_pinned = parts.is_some_and(|(name, digest)| {
        !name.is_empty() && name.chars().all(fine) && is_digest(digest)
    });
    if is_pinned {
        return Ok(());
    }
    Err(CiError::Text {
        what: "the image",
        text: image.escape_debug().to_string(),
        why: "is not named by a digest (NAME@sha256: and 64 digits)",
    })
}

/// Names of jobs that are taken, or mean something else to GitLab.
const RESERVED: &[&str] = &[
    "nix",
    "image",
    "services",
    "stages",
    "types",
    "before_script",
    "after_script",
    "variables",
    "cache",
    "include",
    "pages",
    "default",
    "workflow",
    "spec",
    "true",
    "false",
    "nil",
];
