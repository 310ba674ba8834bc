use serde::Serialize;
use std::fmt;

/// What a check came to. The worse, the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DoctorOutcome {
    /// It is as it should be.
    Pass,
    /// Nobody could tell: there was nothing to look at, or no answer in time.
    Unproven,
    /// It works, but not as well as it could, or not for long.
    Warn,
    /// It does not work.
    Fail,
}

impl fmt::Display for DoctorOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DoctorOutcome::Pass => "pass",
            DoctorOutcome::Unproven => "unproven",
            DoctorOutcome::Warn => "warn",
            DoctorOutcome::Fail => "fail",
        })
    }
}

/// What was found of one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DoctorFinding {
    /// The check: one of `nix`, `features`, `store`, `trust`, `sandbox`, `substituter`, `keys`, `clock`,
    /// `memory`, `write`, `builders`, `direnv`, `space`. More may come.
    pub check: &'static str,
    /// What it is about, where there are several: a cache, a machine. May hold what others wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What it came to.
    pub outcome: DoctorOutcome,
    /// What was seen, in a sentence. May hold what others wrote.
    pub message: String,
    /// What to do about it; `None` where there is nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl DoctorFinding {
    /// That `check` found what it should.
    pub fn pass(check: &'static str, message: impl Into<String>) -> Self {
        DoctorFinding {
            check,
            subject: None,
            outcome: DoctorOutcome::Pass,
            message: message.into(),
            advice: None,
        }
    }

    /// That `check` could not tell.
    pub fn unproven(check: &'static str, message: impl Into<String>) -> Self {
        DoctorFinding {
            outcome: DoctorOutcome::Unproven,
            ..DoctorFinding::pass(check, message)
        }
    }

    /// That something could be better.
    pub fn warn(check: &'static str, message: impl Into<String>, advice: &str) -> Self {
        DoctorFinding {
            outcome: DoctorOutcome::Warn,
            advice: Some(advice.to_owned()),
            ..DoctorFinding::pass(check, message)
        }
    }

    /// That something does not work.
    pub fn fail(check: &'static str, message: impl Into<String>, advice: &str) -> Self {
        DoctorFinding {
            outcome: DoctorOutcome::Fail,
            ..DoctorFinding::warn(check, message, advice)
        }
    }

    /// The same, of `subject`.
    pub fn of(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }
}

/// All that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DoctorReport {
    /// In the order in which they are told.
    pub findings: Vec<DoctorFinding>,
}

impl DoctorReport {
    /// Whether nothing failed. Warnings, and what could not be told, leave a machine sound.
    pub fn is_sound(&self) -> bool {
        self.count(DoctorOutcome::Fail) == 0
    }

    /// How many came to `outcome`.
    pub fn count(&self, outcome: DoctorOutcome) -> usize {
        let all = self.findings.iter();
        all.filter(|finding| finding.outcome == outcome).count()
    }
}
