//! What each answer means.

use super::DoctorFinding;
use std::time::{Duration, SystemTime};

/// The nix program: its version as text and as the two numbers that count, or why there is none.
pub fn judge_nix(found: Result<(&str, (u32, u32)), &str>) -> DoctorFinding {
    match found {
        Err(why) => DoctorFinding::fail(
            "nix",
            why,
            "install Nix (https://nixos.org/download), or name its program with --nix or TK_NIX",
        ),
        Ok((text, version)) if version < FLAKES_SETTLED => DoctorFinding::warn(
            "nix",
            format!("{text} evaluates; flakes of that age are locked and shown differently"),
            "update it: 2.18 and later agree on flake.lock",
        ),
        Ok((text, _)) => DoctorFinding::pass("nix", format!("{text} evaluates")),
    }
}

/// Whether flakes are switched on for who runs nix by hand; `enabled` is `experimental-features` of nix.conf.
pub fn judge_features(enabled: &[&str]) -> DoctorFinding {
    let wanted = ["nix-command", "flakes"];
    let off: Vec<_> = wanted.iter().filter(|w| !enabled.contains(w)).collect();
    if off.is_empty() {
        return DoctorFinding::pass("features", "nix-command and flakes are on");
    }
    let off: Vec<_> = off.into_iter().copied().collect();
    DoctorFinding::warn(
        "features",
        format!(
            "nix.conf does not switch on {}: tk-store does so by itself, but 'nix build' and direnv's own \
             'use flake' fail",
            off.join(" and ")
        ),
        "put 'extra-experimental-features = nix-command flakes' into nix.conf",
    )
}

/// Whether the daemon trusts this user, as it tells.
pub fn judge_trust(trusted: Option<bool>) -> DoctorFinding {
    match trusted {
        Some(true) => DoctorFinding::pass("trust", "the daemon trusts this user"),
        Some(false) => DoctorFinding::warn(
            "trust",
            "the daemon does not trust this user: caches and keys of the user's own nix.conf count for \
             nothing, and only signed paths can be added",
            "have the administrator add this user to trusted-users in /etc/nix/nix.conf, or name the \
             caches and keys there",
        ),
        None => DoctorFinding::unproven(
            "trust",
            "the daemon does not tell whom it trusts (Nix before 2.15)",
        ),
    }
}

/// Whether builds are to be shut off from the machine; `setting` is `sandbox` of nix.conf, and `default` what the
/// nix that there is does without it, `None` if there is none. What the builds of a daemon do, only it knows.
pub fn judge_sandbox(setting: Option<&str>, default: Option<&str>) -> DoctorFinding {
    let Some(value) = setting.or(default) else {
        return DoctorFinding::unproven(
            "sandbox",
            "nix.conf does not say whether builds run in the sandbox, and there is no nix whose default counts",
        );
    };
    match value {
        "true" if setting.is_some() => {
            DoctorFinding::pass("sandbox", "nix.conf asks for the sandbox")
        }
        "true" => DoctorFinding::pass("sandbox", "nix asks for the sandbox by default"),
        "relaxed" => DoctorFinding::warn(
            "sandbox",
            "builds that ask for it run outside of the sandbox (relaxed)",
            "set 'sandbox = true' in nix.conf unless one of your builds needs it",
        ),
        _ => DoctorFinding::warn(
            "sandbox",
            "builds see this machine: the sandbox is off, so that a build that works here may fail elsewhere",
            "set 'sandbox = true' in nix.conf",
        ),
    }
}

/// What a disk has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceSeen {
    /// Bytes that this user may still write.
    pub free_bytes: u64,
    /// Files that can still be made.
    pub free_inodes: u64,
    /// Files that fit in all; 0 where the file system has no such limit.
    pub inodes: u64,
}

/// Whether the disk of the store in `place` has room.
pub fn judge_space(place: &str, seen: SpaceSeen) -> DoctorFinding {
    let advice = "collect garbage (nix-collect-garbage, 'tk-store env gc' before it), or give the store a \
                  larger disk";
    let left = format!("{} MiB are free in {place}", seen.free_bytes >> 20);
    let share = match seen.inodes {
        0 => 100.0,
        all => 100.0 * seen.free_inodes as f64 / all as f64,
    };
    let few_inodes = format!(
        "only {} of {} inodes are free in {place}: files cannot be made although there is room",
        seen.free_inodes, seen.inodes
    );
    let finding = if seen.free_bytes < FULL {
        DoctorFinding::fail("space", left, advice)
    } else if share < 1.0 {
        DoctorFinding::fail("space", few_inodes, advice)
    } else if seen.free_bytes < TIGHT {
        DoctorFinding::warn("space", left, advice)
    } else if share < 5.0 {
        DoctorFinding::warn("space", few_inodes, advice)
    } else {
        DoctorFinding::pass("space", left)
    };
    finding.of(place)
}

/// How the clock of this machine differs from that of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockSeen {
    /// It is later by so much.
    Ahead(Duration),
    /// It is earlier by so much.
    Behind(Duration),
}

impl ClockSeen {
    /// What `own` is beside the `date` of an answer that a shared cache held for `age`. By the standard (RFC 9111)
    /// that is when it was made, but some caches write when they sent it: the nearer of the two counts.
    pub fn of(own: SystemTime, date: SystemTime, age: Duration) -> ClockSeen {
        let seen = |theirs| match own.duration_since(theirs) {
            Ok(ahead) => ClockSeen::Ahead(ahead),
            Err(behind) => ClockSeen::Behind(behind.duration()),
        };
        let sent = seen(date);
        match date.checked_add(age).map(seen) {
            Some(made) if made.by() < sent.by() => made,
            _ => sent,
        }
    }

    fn by(self) -> Duration {
        match self {
            ClockSeen::Ahead(by) | ClockSeen::Behind(by) => by,
        }
    }
}

/// Whether the clock is right, by the `Date` of `server`, which has a resolution of a second.
pub fn judge_clock(server: &str, seen: ClockSeen) -> DoctorFinding {
    let by = seen.by();
    let how = match seen {
        ClockSeen::Ahead(_) => "ahead of",
        ClockSeen::Behind(_) => "behind",
    };
    let words = format!("the clock is {} s {how} that of {server}", by.as_secs());
    let advice = "set the clock (timedatectl set-ntp true): certificates, what is remembered of caches and \
                  the times of locks go by it";
    let finding = if by > CLOCK_WRONG {
        DoctorFinding::fail("clock", words, advice)
    } else if by > CLOCK_OFF {
        DoctorFinding::warn("clock", words, advice)
    } else {
        DoctorFinding::pass("clock", format!("the clock agrees with {server}"))
    };
    finding.of(server)
}

/// What a sample of a cache's narinfos shows of its signatures.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheKeysSeen {
    /// Narinfos that were looked at.
    pub looked_at: usize,
    /// Of these, those that nobody signed.
    pub unsigned: usize,
    /// Of these, those that a trusted key signed.
    pub trusted: usize,
    /// Names of the keys that signed.
    pub names: Vec<String>,
}

/// Whether what `cache` has will be taken.
pub fn judge_cache_keys(cache: &str, seen: &CacheKeysSeen) -> DoctorFinding {
    let names = seen.names.join(", ");
    let finding = if seen.looked_at == 0 {
        DoctorFinding::unproven(
            "keys",
            format!("no path of {cache} is at hand whose signature could be checked"),
        )
    } else if seen.trusted == seen.looked_at {
        DoctorFinding::pass(
            "keys",
            format!("{cache} signs with a trusted key ({names})"),
        )
    } else if seen.unsigned == seen.looked_at {
        DoctorFinding::fail(
            "keys",
            format!("{cache} does not sign what it has: nix refuses it"),
            "sign it (tk-store sign PATH --store CACHE --key FILE), and trust the key in nix.conf",
        )
    } else {
        DoctorFinding::fail(
            "keys",
            format!(
                "{} of {} paths of {cache} have no signature that is trusted (signed by: {names}): nix \
                 refuses them",
                seen.looked_at - seen.trusted,
                seen.looked_at
            ),
            "put the public key of the cache into trusted-public-keys of nix.conf, as its owner tells it",
        )
    };
    finding.of(cache)
}

/// What was remembered of a cache beside what it says now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemorySeen {
    /// Remembered answers that the cache was asked again.
    pub asked: usize,
    /// Of these, those it was said to have, and has not.
    pub gone: usize,
    /// Of these, those it was said to lack, and has.
    pub come: usize,
    /// Remembered answers that it was asked for in vain: it failed, or wanted a login.
    pub failed: usize,
}

/// Whether what is remembered of `cache` still holds.
pub fn judge_memory(cache: &str, seen: MemorySeen) -> DoctorFinding {
    let MemorySeen {
        asked,
        gone,
        come,
        failed,
    } = seen;
    let finding = if asked == 0 && failed > 0 {
        DoctorFinding::unproven(
            "memory",
            format!("{cache} answers none of {failed} questions about what is remembered of it"),
        )
    } else if asked == 0 {
        DoctorFinding::pass("memory", format!("nothing is remembered of {cache}"))
    } else if gone == 0 && come == 0 {
        let more = match failed {
            0 => String::new(),
            _ => format!("; it does not answer for {failed} more"),
        };
        DoctorFinding::pass(
            "memory",
            format!("{asked} remembered answers of {cache} hold{more}"),
        )
    } else {
        DoctorFinding::warn(
            "memory",
            format!(
                "of {asked} remembered answers of {cache}, {gone} are about paths that it no longer has, and \
                 {come} about paths that it has by now"
            ),
            "ask anew with --refresh (tk-store), --refresh or --option narinfo-cache-negative-ttl 0 (nix)",
        )
    };
    finding.of(cache)
}

/// What there is of tk-store's library file for direnv.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirenvLibrary {
    /// There is none.
    Absent,
    /// It is what `tk-store direnv hook` prints.
    Current,
    /// It is something else.
    Other,
}

/// Whether direnv works: the version that it tells, `None` if there is no such program, or how it failed.
pub fn judge_direnv(version: Option<Result<&str, &str>>, library: DirenvLibrary) -> DoctorFinding {
    let update = "write it anew: tk-store direnv hook >~/.config/direnv/lib/tk-store.sh";
    match (version, library) {
        (None, _) => DoctorFinding::pass("direnv", "direnv is not installed, which is fine"),
        (Some(Err(why)), _) => DoctorFinding::fail(
            "direnv",
            format!("direnv does not run: {why}"),
            "install it again",
        ),
        (Some(Ok(version)), _) if !has_use_flake(version) => DoctorFinding::warn(
            "direnv",
            format!("direnv {version} does not know 'use flake'"),
            "update it to 2.29 or later",
        ),
        (Some(Ok(version)), DirenvLibrary::Other) => DoctorFinding::warn(
            "direnv",
            format!("direnv {version} reads a library of tk-store that is of another version"),
            update,
        ),
        (Some(Ok(version)), DirenvLibrary::Current) => DoctorFinding::pass(
            "direnv",
            format!("direnv {version} enters environments by tk-store"),
        ),
        (Some(Ok(version)), DirenvLibrary::Absent) => DoctorFinding::pass(
            "direnv",
            format!("direnv {version}, without tk-store's library ('tk-store direnv hook')"),
        ),
    }
}

fn has_use_flake(version: &str) -> bool {
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(2), Some(29))
}

/// Since then flake.lock and `nix flake show` are alike.
const FLAKES_SETTLED: (u32, u32) = (2, 18);
/// Bytes with which not even a small build ends.
const FULL: u64 = 256 << 20;
/// Bytes that one large closure takes.
const TIGHT: u64 = 5 << 30;
/// What a busy server and the resolution of `Date` explain.
const CLOCK_OFF: Duration = Duration::from_secs(60);
/// Tokens and signed requests are refused from here on.
const CLOCK_WRONG: Duration = Duration::from_secs(600);
