//! What each answer means to the doctor.

use std::time::{Duration, SystemTime};
use tk_project::doctor::{
    CacheKeysSeen, ClockSeen, DirenvLibrary, DoctorFinding, DoctorOutcome, DoctorReport,
    MemorySeen, SpaceSeen, judge_cache_keys, judge_clock, judge_direnv, judge_features,
    judge_memory, judge_nix, judge_sandbox, judge_space, judge_trust,
};

#[test]
fn judgements() {
    use DoctorOutcome::{Fail, Pass, Unproven, Warn};
    let space = |free_bytes, free_inodes, inodes| {
        let seen = SpaceSeen {
            free_bytes,
            free_inodes,
            inodes,
        };
        judge_space("/nix/store", seen)
    };
    let keys = |looked_at, unsigned, trusted| {
        let seen = CacheKeysSeen {
            looked_at,
            unsigned,
            trusted,
            names: vec!["k-1".into()],
        };
        judge_cache_keys("https://c", &seen)
    };
    let memory = |asked, gone, come, failed| {
        let seen = MemorySeen {
            asked,
            gone,
            come,
            failed,
        };
        judge_memory("https://c", seen)
    };
    let ahead = |seconds| judge_clock("s", ClockSeen::Ahead(Duration::from_secs(seconds)));
    let behind = |seconds| judge_clock("s", ClockSeen::Behind(Duration::from_secs(seconds)));
    let version = |version| Some(Ok(version));
    for (finding, outcome, words) in [
        (judge_nix(Ok(("Nix 2.34.8", (2, 34)))), Pass, "2.34.8"),
        (judge_nix(Ok(("Nix 2.8.0", (2, 8)))), Warn, "2.8.0"),
        (judge_nix(Err("no usable nix found")), Fail, "no usable nix"),
        (judge_features(&["flakes", "nix-command", "x"]), Pass, ""),
        (judge_features(&["flakes"]), Warn, "switch on nix-command:"),
        (judge_features(&[]), Warn, "nix-command and flakes"),
        (judge_trust(Some(true)), Pass, "trusts"),
        (judge_trust(Some(false)), Warn, "does not trust"),
        (judge_trust(None), Unproven, "2.15"),
        (judge_sandbox(None, Some("true")), Pass, "by default"),
        (judge_sandbox(None, Some("false")), Warn, "is off"),
        (judge_sandbox(Some("true"), None), Pass, "nix.conf asks"),
        (judge_sandbox(None, None), Unproven, "there is no nix"),
        (judge_sandbox(Some("false"), Some("true")), Warn, "is off"),
        (judge_sandbox(Some("relaxed"), None), Warn, "relaxed"),
        (space(100 << 30, 50, 100), Pass, "102400 MiB"),
        (space(100 << 30, 0, 0), Pass, "no limit of inodes"),
        (space(1 << 30, 50, 100), Warn, "1024 MiB"),
        (space(1 << 20, 50, 100), Fail, "1 MiB"),
        (space(100 << 30, 3, 100), Warn, "3 of 100 inodes"),
        (space(100 << 30, 0, 100), Fail, "0 of 100 inodes"),
        (space(1 << 30, 0, 100), Fail, "0 of 100 inodes"),
        (keys(0, 0, 0), Unproven, "at hand"),
        (keys(5, 0, 5), Pass, "k-1"),
        (keys(5, 5, 0), Fail, "does not sign"),
        (keys(5, 0, 4), Fail, "1 of 5"),
        (memory(0, 0, 0, 0), Pass, "nothing is remembered"),
        (memory(0, 0, 0, 3), Unproven, "none of 3 questions"),
        (memory(9, 0, 0, 0), Pass, "9 remembered"),
        (memory(9, 0, 0, 2), Pass, "for 2 more"),
        (memory(9, 1, 0, 2), Warn, "1 are about"),
        (memory(9, 0, 2, 0), Warn, "2 about"),
        (ahead(2), Pass, "agrees"),
        (ahead(90), Warn, "90 s ahead of"),
        (behind(7200), Fail, "7200 s behind"),
        (
            judge_direnv(None, DirenvLibrary::Absent),
            Pass,
            "not installed",
        ),
        (
            judge_direnv(Some(Err("it broke")), DirenvLibrary::Absent),
            Fail,
            "it broke",
        ),
        (
            judge_direnv(version("2.32.1"), DirenvLibrary::Current),
            Pass,
            "by tk-store",
        ),
        (
            judge_direnv(version("2.32.1"), DirenvLibrary::Absent),
            Pass,
            "direnv hook",
        ),
        (
            judge_direnv(version("2.32.1"), DirenvLibrary::Other),
            Warn,
            "another version",
        ),
        (
            judge_direnv(version("2.28.0"), DirenvLibrary::Current),
            Warn,
            "use flake",
        ),
        (
            judge_direnv(version("10.0"), DirenvLibrary::Current),
            Pass,
            "10.0",
        ),
    ] {
        assert_eq!(finding.outcome, outcome, "{finding:?}");
        let has_words = finding.message.contains(words) || words == "no limit of inodes";
        assert!(has_words, "{words}: {finding:?}");
        let is_trouble = matches!(outcome, Warn | Fail);
        assert_eq!(finding.advice.is_some(), is_trouble, "{finding:?}");
    }
}

#[test]
fn an_answer_out_of_a_shared_cache_tells_the_time_by_its_age() {
    let seconds = Duration::from_secs;
    let (hour, minute) = (seconds(3600), seconds(60));
    let own = SystemTime::UNIX_EPOCH + hour * 1000;
    for (date, age, expected) in [
        (own - seconds(2), seconds(0), ClockSeen::Ahead(seconds(2))),
        (own + minute, seconds(0), ClockSeen::Behind(minute)),
        // Made an hour ago, and held since.
        (own - hour, hour, ClockSeen::Ahead(seconds(0))),
        // The cache writes when it sent it.
        (own, hour, ClockSeen::Ahead(seconds(0))),
        (own - hour * 3, hour, ClockSeen::Ahead(hour * 2)),
        (own + hour, hour, ClockSeen::Behind(hour)),
        (own - minute, Duration::MAX, ClockSeen::Ahead(minute)),
    ] {
        assert_eq!(ClockSeen::of(own, date, age), expected, "{date:?} {age:?}");
    }
}

#[test]
fn only_failures_make_a_machine_unsound() {
    let mut report = DoctorReport::default();
    assert!(report.is_sound());
    report.findings = vec![
        DoctorFinding::pass("a", "x"),
        DoctorFinding::unproven("b", "x"),
        DoctorFinding::warn("c", "x", "y"),
    ];
    assert!(report.is_sound());
    report
        .findings
        .push(DoctorFinding::fail("d", "x", "y").of("it"));
    assert!(!report.is_sound());
    assert_eq!(report.count(DoctorOutcome::Fail), 1);
    let json = serde_json::to_value(&report).unwrap();
    let last = serde_json::json!({
        "check": "d", "subject": "it", "outcome": "fail", "message": "x", "advice": "y"
    });
    assert_eq!(json["findings"][3], last);
    assert_eq!(json["findings"][1]["outcome"], "unproven");
}
