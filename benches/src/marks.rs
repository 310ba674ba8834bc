//! The marks for speed and memory, and whether a run meets them.

use std::fmt;

use serde_json::{Value, json};

use crate::contest::{Contest, Row, find};

/// One mark: a figure of ours, divided by another one or not, and what it may be at most.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// For people.
    job: &'static str,
    ours: Of,
    than: Than,
    /// Of the ratio, or seconds, or bytes.
    at_most: f64,
}

/// A row of a contest: the job, what it is done on, and how the name of the row begins.
#[derive(Debug, Clone, Copy)]
struct Of(&'static str, &'static str, &'static str);

/// What ours is divided by.
#[derive(Debug, Clone, Copy)]
enum Than {
    /// The median time of another one.
    Time(Of),
    /// Nothing: the median time counts, in seconds.
    Nothing,
    /// The bytes it is done on: nanoseconds a byte, which are seconds a GB.
    Throughput,
    /// Nothing: the highest peak memory of ours in all jobs with xz (true), or without it; bytes.
    Peak(bool),
}

/// What became of a mark.
#[derive(Debug)]
pub struct Judged {
    mark: &'static Mark,
    /// None if this run did not measure it.
    figure: Option<f64>,
}

const fn time(job: &'static str, ours: Of, than: Of, at_most: f64) -> Mark {
    Mark {
        job,
        ours,
        than: Than::Time(than),
        at_most,
    }
}

/// A mark for a push, pull or add of many paths, beside the newest Nix.
const fn copy(name: &'static str, job: &'static str, at_most: f64) -> Mark {
    time(name, Of(job, "", "tk-store"), Of(job, "", NIX), at_most)
}

/// A mark for the scan of what is named, beside nix-archive's scanner on the same.
const fn scan(name: &'static str, on: &'static str, at_most: f64) -> Mark {
    let (ours, theirs) = (Of(SCAN, on, "tk-path"), Of(SCAN, on, "nix-archive"));
    time(name, ours, theirs, at_most)
}

/// A mark for something small, in times of hex encoding 32 bytes.
const fn small(name: &'static str, job: &'static str, nanoseconds: f64) -> Mark {
    let (ours, hex) = (
        Of(job, "", "tk-path"),
        Of("nix32 encode", "", "hex encoding"),
    );
    time(name, ours, hex, nanoseconds / HEX_NANOSECONDS)
}

const fn peak(name: &'static str, xz: bool, mebibytes: f64) -> Mark {
    Mark {
        job: name,
        ours: Of("", "", ""),
        than: Than::Peak(xz),
        at_most: mebibytes * MEBIBYTE,
    }
}

#[rustfmt::skip]
const MARKS: &[Mark] = &[
    time("NAR hash of 100,000 files / nix-archive", Of("hash", "many", "tk-nar"), Of("hash", "many", "nix-archive"), 0.55),
    time("NAR hash of 100,000 files / nix hash path", Of("hash", "many", "tk-store"), Of("hash", "many", NIX), 0.3),
    time("NAR dump of 100,000 files / nix-archive", Of("dump", "many", "tk-nar"), Of("dump", "many", "nix-archive"), 0.6),
    time("NAR hash of 1 GiB / SHA-256 of the bytes", Of("hash", "big", "tk-nar"), Of("hash", "big", "limit: SHA-256"), 1.05),
    time("NAR unpack of 100,000 files, ext4 / nix-store --restore", Of("unpack", "many", "tk-store"), Of("unpack", "many", NIX), 0.7),
    time("NAR unpack of 100,000 files, tmpfs / the same", Of("unpack-tmpfs", "many", "tk-store"), Of("unpack-tmpfs", "many", NIX), 0.55),
    time("NAR unpack of the Rust toolchain / the same", Of("unpack", "real", "tk-store"), Of("unpack", "real", NIX), 0.7),
    scan("scan of noise for 1 path / nix-archive", "noise, 1", 1.0 / 1.7),
    scan("scan of noise for 100 paths / nix-archive", "noise, 100", 1.0 / 1.7),
    scan("scan of noise for 2,000 paths / nix-archive", "noise, 2000", 1.0 / 1.7),
    scan("scan of digits for 1 path / nix-archive", "digits, 1", 0.25),
    scan("scan of digits for 100 paths / nix-archive", "digits, 100", 0.25),
    scan("scan of digits for 2,000 paths / nix-archive", "digits, 2000", 0.25),
    time("scan of noise for 2,000 paths / for 1", Of(SCAN, "noise, 2000", "tk-path"), Of(SCAN, "noise, 1", "tk-path"), NEAR),
    time("scan of digits for 2,000 paths / for 1", Of(SCAN, "digits, 2000", "tk-path"), Of(SCAN, "digits, 1", "tk-path"), NEAR),
    time("narinfo parse / split into lines", Of("narinfo parse", "", "tk-narinfo"), Of("narinfo parse", "", "memchr lines"), 20.0),
    Mark { job: "ATerm parse, ns a byte", ours: Of("ATerm parse", "", "tk-path"), than: Than::Throughput, at_most: 1.0 / 0.8 },
    small("nix32 encode of 32 bytes / hex", "nix32 encode", 60.0),
    small("nix32 decode of 32 bytes / hex encode", "nix32 decode", 40.0),
    small("store path parse / hex encode of 32 bytes", "store path parse", 60.0),
    Mark { job: "path-info of one path, seconds", ours: Of("path-info", "real", "tk-store"), than: Than::Nothing, at_most: 0.005 },
    time("path-info of one path / nix path-info", Of("path-info", "real", "tk-store"), Of("path-info", "real", NIX), 0.15),
    copy("push to a folder, none / nix", "push folder none", 0.5),
    copy("push to a folder, zstd / nix", "push folder zstd", 0.6),
    copy("push to a folder, xz / nix", "push folder xz", 0.8),
    copy("pull from a folder, none / nix", "pull folder none", 0.5),
    copy("pull from a folder, zstd / nix", "pull folder zstd", 0.6),
    copy("pull from a folder, xz / nix", "pull folder xz", 0.8),
    copy("a known environment / nix develop", "shell", 0.1),
    copy("add to a daemon, none / nix", "folder to daemon, none", 0.5),
    copy("add to a daemon, from zstd / nix", "folder to daemon, zstd", 0.6),
    copy("add to a daemon, from xz / nix", "folder to daemon, xz", 0.8),
    copy("push to S3, none / nix", "push s3 none", 0.5),
    copy("push to S3, zstd / nix", "push s3 zstd", 0.6),
    copy("push to S3, xz / nix", "push s3 xz", 0.8),
    time("closure of 10,000 paths / nix-store -qR", Of("closure of 10,000", "", "tk-store"), Of("closure of 10,000", "", NIX), 0.2),
    time("why-depends / nix", Of("why-depends", "", "tk-store"), Of("why-depends", "", NIX), 0.2),
    time("gc --dry-run of 100,000 paths / --print-dead", Of("gc --dry-run", "", "tk-store"), Of("gc --dry-run", "", NIX), 0.2),
    time("20,000 paths deleted / nix-store --gc", Of("gc", "", "tk-store"), Of("gc", "", NIX), 0.6),
    time("add of 1,000 folders / nix-store --add", Of("add of 1,000 folders", "", "tk-store"), Of("add of 1,000 folders", "", NIX), 0.4),
    time("du of 10,000 paths / closure", Of("du of 10,000", "", "tk-store"), Of("closure of 10,000", "", "tk-store"), 1.5),
    Mark { job: "du of 10,000 paths, seconds", ours: Of("du of 10,000", "", "tk-store"), than: Than::Nothing, at_most: 0.5 },
    time("verify with contents / nix-store --verify", Of("verify --check-contents", "", "tk-store"), Of("verify --check-contents", "", NIX), 0.6),
    peak("peak memory of any of these, MiB", false, 64.0),
    peak("peak memory with xz, MiB", true, 128.0),
];

/// Whether `contests` meet the marks, as far as it has the figures.
pub fn judge(contests: &[Contest]) -> Vec<Judged> {
    let judged = MARKS.iter().map(|mark| Judged {
        mark,
        figure: mark.figure(contests),
    });
    judged.collect()
}

/// For people; nothing if none was measured.
pub fn table(judged: &[Judged], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let measured: Vec<_> = judged
        .iter()
        .filter(|judged| judged.figure.is_some())
        .collect();
    if measured.is_empty() {
        return Ok(());
    }
    writeln!(f, "\nmarks{:57}{:>10}{:>10}", "", "at most", "measured")?;
    for judged in &measured {
        writeln!(f, "  {judged}")?;
    }
    let met = measured
        .iter()
        .filter(|judged| judged.met() == Some(true))
        .count();
    let absent = judged.len() - measured.len();
    writeln!(
        f,
        "  {met} of {} met, {absent} not measured in this run",
        measured.len()
    )
}

impl Judged {
    /// None if it was not measured.
    pub fn met(&self) -> Option<bool> {
        self.figure.map(|figure| figure <= self.mark.at_most)
    }

    /// Memory in bytes, times in seconds (of throughput: nanoseconds a byte), anything else a ratio.
    pub fn to_json(&self) -> Value {
        json!({
            "job": self.mark.job,
            "atMost": self.mark.at_most,
            "measured": self.figure,
            "met": self.met(),
        })
    }
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.mark.than {
            Than::Peak(_) => MEBIBYTE,
            _ => 1.0,
        };
        let figure = self.figure.unwrap_or(f64::NAN) / unit;
        let at_most = self.mark.at_most / unit;
        let met = match self.met() {
            Some(true) => "met",
            _ => "NOT MET",
        };
        write!(
            f,
            "{:60}{at_most:>10.3}{figure:>10.3}  {met}",
            self.mark.job
        )
    }
}

impl Mark {
    fn figure(&self, contests: &[Contest]) -> Option<f64> {
        let figure = match self.than {
            Than::Time(than) => self.ours.seconds(contests)? / than.seconds(contests)?,
            Than::Nothing => self.ours.seconds(contests)?,
            Than::Throughput => {
                let contest = find(contests, self.ours.0, self.ours.1)?;
                self.ours.seconds(contests)? * 1e9 / contest.bytes? as f64
            }
            Than::Peak(xz) => peak_of(contests, xz)?,
        };
        figure.is_finite().then_some(figure)
    }
}

impl Of {
    /// Of several that begin so, the last: the newest Nix.
    fn seconds(self, contests: &[Contest]) -> Option<f64> {
        let Of(job, on, who) = self;
        let rows = &find(contests, job, on)?.rows;
        let row = rows.iter().rfind(|row| row.name.starts_with(who))?;
        Some(row.seconds()).filter(|seconds| seconds.is_finite())
    }
}

/// Bytes, of ours in all that it does.
fn peak_of(contests: &[Contest], xz: bool) -> Option<f64> {
    let jobs = contests
        .iter()
        .filter(|contest| contest.job.contains("xz") == xz);
    let ours = jobs
        .flat_map(|contest| &contest.rows)
        .filter(|row| row.is_ours());
    // What is measured within this program has no memory of its own.
    let peaks = ours.map(Row::peak).filter(|bytes| *bytes > 0);
    peaks.max().map(|bytes| bytes as f64)
}

const NIX: &str = "nix 2.34";
const SCAN: &str = "reference scan";
/// What "near the same" is.
const NEAR: f64 = 1.2;
/// Of hex encoding 32 bytes, where the marks were set.
const HEX_NANOSECONDS: f64 = 70.0;
const MEBIBYTE: f64 = (1 << 20) as f64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contender::Role;
    use crate::measure::Sample;
    use crate::report::Report;

    /// Job, corpus, and of each contender its name, role, seconds and peak memory.
    type Told<'a> = (&'static str, &'a str, &'a [(&'a str, Role, f64, u64)]);

    fn report(contests: &[Told<'_>]) -> Vec<Contest> {
        let mut report = Vec::new();
        for (job, corpus, rows) in contests {
            let rows = rows.iter().map(|(name, role, seconds, peak)| Row {
                samples: vec![Sample {
                    seconds: *seconds,
                    cpu: *seconds,
                    peak: *peak,
                }],
                ..Row::named(*name, *role)
            });
            report.push(Contest {
                job,
                corpus: (*corpus).to_owned(),
                bytes: Some(1000),
                rounds: 1,
                rows: rows.collect(),
            });
        }
        report
    }

    fn judged(report: &[Contest], job: &str) -> Option<bool> {
        let all = judge(report);
        all.iter()
            .find(|judged| judged.mark.job == job)
            .expect("a mark")
            .met()
    }

    #[test]
    fn a_mark_is_met_missed_or_not_measured() {
        let hash = |ours| {
            let rows: &[_] = &[
                ("tk-nar", Role::Ours, ours, 0),
                ("nix-archive", Role::Rival, 1.0, 0),
            ];
            judged(
                &report(&[("hash", "many", rows)]),
                "NAR hash of 100,000 files / nix-archive",
            )
        };
        assert_eq!(hash(0.54), Some(true));
        assert_eq!(hash(0.56), Some(false));
        assert_eq!(hash(f64::NAN), None);
        assert_eq!(
            judged(&report(&[]), "NAR hash of 100,000 files / nix-archive"),
            None
        );
    }

    #[test]
    fn throughput_and_seconds_are_no_ratios() {
        // 1000 bytes in a microsecond are 1 GB/s.
        let aterm =
            |seconds| report(&[("ATerm parse", "", &[("tk-path", Role::Ours, seconds, 0)])]);
        assert_eq!(judged(&aterm(1.0e-6), "ATerm parse, ns a byte"), Some(true));
        assert_eq!(
            judged(&aterm(1.3e-6), "ATerm parse, ns a byte"),
            Some(false)
        );
        let info =
            |seconds| report(&[("path-info", "real", &[("tk-store", Role::Ours, seconds, 0)])]);
        assert_eq!(
            judged(&info(0.004), "path-info of one path, seconds"),
            Some(true)
        );
        assert_eq!(
            judged(&info(0.006), "path-info of one path, seconds"),
            Some(false)
        );
    }

    #[test]
    fn memory_counts_where_it_is_worst_and_xz_by_itself() {
        let push = |peak| ("tk-store", Role::Ours, 1.0, peak);
        let report = report(&[
            (
                "push s3 zstd",
                "",
                &[push(40 << 20), ("nix 2.34", Role::Rival, 1.0, 900 << 20)],
            ),
            ("pull folder none", "", &[push(65 << 20)]),
            ("push s3 xz", "", &[push(100 << 20)]),
        ]);
        assert_eq!(
            judged(&report, "peak memory of any of these, MiB"),
            Some(false)
        );
        assert_eq!(judged(&report, "peak memory with xz, MiB"), Some(true));
        let report = Report {
            contests: report,
            ..Report::new(1.0)
        };
        let text = report.to_string();
        assert!(text.contains("65.000  NOT MET"), "{text}");
    }

    /// A mark that names a job that nobody runs would never be judged.
    #[test]
    fn the_names_in_the_marks_are_those_of_contests() {
        let known = crate::compare::all_contests();
        let named = MARKS.iter().flat_map(|mark| match mark.than {
            Than::Time(than) => vec![mark.ours, than],
            Than::Peak(_) => Vec::new(),
            _ => vec![mark.ours],
        });
        for Of(job, on, _) in named {
            assert!(
                known.contains(&(job.to_owned(), on.to_owned())),
                "{job} {on}"
            );
        }
    }
}
