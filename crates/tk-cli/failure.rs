//! What people are told of a failure of nix or of a build.

use crate::{CommandContext, ExitStatus, output::tell_lines};
use tk_nix::{Cause, NixFailure};

/// Says why `what` failed, with the last lines of its log and what to do next; the answer that
/// follows: 1 for what was understood and is wrong itself, 2 for what could not be done.
pub fn tell_failure(cx: &CommandContext, what: &str, failure: &NixFailure) -> ExitStatus {
    // Where it is in the code, as nix draws it.
    if failure.cause == Cause::Evaluation && failure.message.lines().count() > 1 {
        tell_lines(failure.message.trim_start_matches('\n'));
    }
    cx.ui.error(format_args!("{what}: {failure}"));
    if let Some(phase) = &failure.phase {
        cx.ui.error(format_args!("it was in its {phase}"));
    }
    if failure.derivation.is_some() && !failure.log.is_empty() {
        cx.ui.error(format_args!("the last lines of its log:"));
        for line in &failure.log {
            cx.ui.error(format_args!("  > {line}"));
        }
    }
    if let Some(advice) = advice(failure) {
        cx.ui.error(advice);
    }
    for other in &failure.others {
        tell_failure(cx, what, other);
    }
    answer(failure)
}

/// The exit status that a failure means.
pub fn answer(failure: &NixFailure) -> ExitStatus {
    match failure.cause {
        Cause::NoNix
        | Cause::Misused
        | Cause::OutputLimit
        | Cause::NoSpace
        | Cause::Network
        | Cause::Sandbox
        | Cause::Untrusted
        | Cause::NoBuilder
        | Cause::Cancelled
        | Cause::Other => ExitStatus::Failed,
        _ => ExitStatus::No,
    }
}

/// What to do about it, where that is not in the words of nix.
fn advice(failure: &NixFailure) -> Option<String> {
    Some(match &failure.cause {
        Cause::HashMismatch { actual, .. } => {
            format!("if the new content is right, write {actual} into the derivation")
        }
        Cause::Untrusted => {
            "ask for your name among trusted-users in the nix.conf of that daemon, \
                             or sign what you send with a key that it trusts"
                .into()
        }
        Cause::NoSpace => "make room (nix-collect-garbage), then try again".into(),
        Cause::Network => "nothing is wrong with what was asked for; try again later".into(),
        Cause::Sandbox => "the machine may not allow sandboxes: --option sandbox false".into(),
        Cause::NoBuilder => {
            "name a store that builds for that system: --store ssh-ng://host".into()
        }
        _ => return None,
    })
}
