//! A flake.nix that is there, and one that was made: what becomes of both.
//!
//! The file that was made before can be made again from the facts at its end. What differs from that in the
//! file is what people changed; what differs from it in the new one is what the project changed. Both are
//! kept where they do not touch (a three-way merge), and refused where they do: nothing is lost.

use crate::{
    emit::EmitError,
    flake_facts::{FlakeFact, FlakeFactKind, FlakeReason},
    generate::{FORM, GeneratedFlake, HEADER, RECIPE_MARK, generate},
    nix_literal::syntax_error,
};
use similar::{ChangeTag, TextDiff};

/// What there is to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlakePlan {
    /// The text that the file is to have.
    pub text: String,
    /// Of each line, why it is there.
    pub lines: Vec<FlakeLineReason>,
    /// What it is made from.
    pub facts: Vec<FlakeFact>,
    /// What that is to the file that is there.
    pub change: FlakeChange,
}

/// Why a line of a flake is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlakeLineReason {
    /// Files of the project say so.
    Project(Vec<FlakeReason>),
    /// Every flake that is made has it.
    Every,
    /// Somebody wrote it.
    ByHand,
}

/// What a plan is to the file that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlakeChange {
    /// There is none.
    New,
    /// The file is as it should be.
    Same,
    /// Nobody changed the file; it is made anew.
    Updated,
    /// Somebody changed the file; the changes stay.
    Merged,
    /// Whatever there was goes.
    Replaced,
}

/// Why the file that is there stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlakeRefusal {
    /// Somebody else made it.
    #[error("it was not made by `tk-store flake init`; --force replaces it")]
    NotOurs,
    /// Another version of this program made it.
    #[error(
        "line 1: it has form {0} and this program makes form {FORM}, so it cannot tell what people changed; \
         --force replaces it"
    )]
    OtherForm(String),
    /// A fact at its end was changed.
    #[error(
        "line {line}: what it was made from was changed ({what}); put the line back, or --force replaces the file"
    )]
    BrokenRecipe {
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// The project and somebody changed the same lines.
    #[error(
        "line {line}: this was changed by hand, and the project changes it too; --force replaces the file"
    )]
    Conflict {
        /// The line of the file, from 1.
        line: usize,
    },
    /// The changes do not go together.
    #[error("with the changes of both it is no Nix code ({0}); --force replaces it")]
    Broken(String),
    /// It cannot be made.
    #[error(transparent)]
    Emit(#[from] EmitError),
}

/// What to do about a file that is there and is not what was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExistingFlake {
    /// Keep what people wrote.
    Keep,
    /// Replace all of it.
    Replace,
}

/// The plan for a project with `facts` whose flake.nix is `there`.
///
/// A reference of nixpkgs that the file was made with stays unless `facts` name one; without any it is
/// [`DEFAULT_NIXPKGS`].
///
/// # Errors
/// Where something would be lost.
pub fn plan_flake(
    there: Option<&str>,
    mut facts: Vec<FlakeFact>,
    existing: ExistingFlake,
) -> Result<FlakePlan, FlakeRefusal> {
    let keep = there.filter(|_| existing == ExistingFlake::Keep);
    let before = keep.map(recipe).transpose()?;
    if !facts.iter().any(is_nixpkgs) {
        let made_with = before.iter().flatten().find(|fact| is_nixpkgs(fact));
        facts.push(made_with.cloned().unwrap_or_else(default_nixpkgs));
    }
    facts.sort_by(|a, b| a.what.cmp(&b.what));
    let new = generate(&facts)?;
    let (Some(there), Some(before)) = (keep, before) else {
        let change = match there {
            None => FlakeChange::New,
            Some(text) if text == new.text => FlakeChange::Same,
            Some(_) => FlakeChange::Replaced,
        };
        return Ok(FlakePlan::of(new, facts, change));
    };
    if there == new.text {
        return Ok(FlakePlan::of(new, facts, FlakeChange::Same));
    }
    let base = generate(&before)?.text;
    if there == base {
        return Ok(FlakePlan::of(new, facts, FlakeChange::Updated));
    }
    let text = diffy::merge(&base, there, &new.text).map_err(|marked| FlakeRefusal::Conflict {
        line: conflict_line(&marked, there),
    })?;
    let change = if text == there {
        FlakeChange::Same
    } else {
        FlakeChange::Merged
    };
    // What people wrote may be broken; what is made of it must not be.
    if change == FlakeChange::Merged
        && let Ok(Some((line, error))) | Err((line, error)) = syntax_error(&text)
    {
        return Err(FlakeRefusal::Broken(format!("line {line}: {error}")));
    }
    let lines = line_reasons(&new, &text);
    Ok(FlakePlan {
        text,
        lines,
        facts,
        change,
    })
}

impl FlakePlan {
    fn of(made: GeneratedFlake, facts: Vec<FlakeFact>, change: FlakeChange) -> Self {
        let lines = made.reasons.into_iter().map(FlakeLineReason::of);
        FlakePlan {
            lines: lines.collect(),
            text: made.text,
            facts,
            change,
        }
    }
}

impl FlakeLineReason {
    fn of(reasons: Vec<FlakeReason>) -> Self {
        if reasons.is_empty() {
            FlakeLineReason::Every
        } else {
            FlakeLineReason::Project(reasons)
        }
    }
}

/// The reasons of the lines of `text`, which is `made` with changes.
fn line_reasons(made: &GeneratedFlake, text: &str) -> Vec<FlakeLineReason> {
    let diff = TextDiff::from_lines(made.text.as_str(), text);
    let kept = diff
        .iter_all_changes()
        .filter(|change| change.tag() != ChangeTag::Delete);
    let reasons = kept.map(|change| match change.old_index() {
        Some(at) => FlakeLineReason::of(made.reasons[at].clone()),
        None => FlakeLineReason::ByHand,
    });
    reasons.collect()
}

/// The facts that a file was made from.
fn recipe(text: &str) -> Result<Vec<FlakeFact>, FlakeRefusal> {
    let header = text
        .lines()
        .next()
        .and_then(|line| line.strip_prefix(HEADER));
    let form = header.ok_or(FlakeRefusal::NotOurs)?;
    let form = form.split('.').next().unwrap_or_default();
    if form != FORM.to_string() {
        let plain = form.chars().filter(char::is_ascii_digit).take(9).collect();
        return Err(FlakeRefusal::OtherForm(plain));
    }
    let lines = text.lines().enumerate();
    let facts = lines.filter_map(|(at, line)| {
        let json = line.strip_prefix(RECIPE_MARK)?;
        let because = FlakeReason::new("flake.nix", "what it was made with before", at + 1);
        let what = serde_json::from_str(json);
        Some(
            what.map(|what| FlakeFact { what, because })
                .map_err(|error: serde_json::Error| {
                    let what = error.to_string();
                    let line = at + 1;
                    FlakeRefusal::BrokenRecipe { line, what }
                }),
        )
    });
    facts.collect()
}

/// The line of `there` where the first conflict of `marked` begins.
fn conflict_line(marked: &str, there: &str) -> usize {
    let before = marked
        .lines()
        .take_while(|line| !line.starts_with("<<<<<<<"));
    let before: Vec<_> = before.collect();
    // What came in above the conflict is not in the file: the last line before it is looked for.
    let last = before.iter().rev().find_map(|line| {
        let mut places = there.lines().enumerate().filter(|(_, other)| other == line);
        let place = places.next()?;
        places.next().is_none().then_some(place.0)
    });
    last.map_or(1, |at| at + 2)
}

fn is_nixpkgs(fact: &FlakeFact) -> bool {
    matches!(fact.what, FlakeFactKind::Nixpkgs(_))
}

fn default_nixpkgs() -> FlakeFact {
    FlakeFact {
        what: FlakeFactKind::Nixpkgs(DEFAULT_NIXPKGS.to_owned()),
        because: FlakeReason::new(
            "",
            "the release that this program knows; flake.lock pins its revision",
            None,
        ),
    }
}

/// The nixpkgs of a new flake: a release, whose names of packages this crate knows.
pub const DEFAULT_NIXPKGS: &str = "github:NixOS/nixpkgs/nixos-26.05";
