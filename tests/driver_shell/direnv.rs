//! The library for direnv, read by the real one: entered, changed, held back, and how fast.

use super::Bench;
use crate::support::{report, skip};
use std::{fs, time::Instant};

impl Bench {
    /// A flake that imports a file, with a `.envrc`, the library, and a direnv that knows nobody else.
    fn with_library(envrc: &str) -> Option<Bench> {
        let bench = Bench::start("2.34")?;
        if bench.sh("command -v direnv").status != 0 {
            let why = "not installed; tests/shells/install does it on Debian";
            skip("the library for direnv", why);
            return None;
        }
        fs::create_dir_all(bench.path("other")).unwrap();
        fs::write(bench.path("flake/part.nix"), "\"part\"").unwrap();
        let flake = bench.flake().join("flake.nix");
        let text = fs::read_to_string(&flake).unwrap();
        let text = text.replace("GREETING =", "PART = import ./part.nix; GREETING =");
        fs::write(flake, text).unwrap();
        fs::write(bench.flake().join(".envrc"), envrc).unwrap();
        bench.direnv("mkdir -p $HOME/.config/direnv/lib; tk direnv hook >$HOME/.config/direnv/lib/tk-store.sh");
        Some(bench)
    }

    /// Runs a script whose direnv finds tk-store.
    fn direnv(&self, script: &str) -> super::Done {
        let place = self.path("programs");
        fs::create_dir_all(&place).unwrap();
        let link = place.join("tk-store");
        if !link.exists() {
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_tk-store"), link).unwrap();
        }
        let place = place.display();
        self.sh(&format!(
            "unset XDG_CONFIG_HOME XDG_DATA_HOME; export DIRENV_LOG_FORMAT= PATH={place}:$PATH\n{script}"
        ))
    }

    #[track_caller]
    fn direnv_says(&self, script: &str, expected: &str) -> String {
        let done = self.direnv(script);
        assert_eq!(done.stdout.trim(), expected, "{script}: {done:?}");
        done.stderr
    }
}

/// Each prompt of a shell, in a bash that begins anew: `direnv export` is what a prompt runs.
const PROMPT: &str =
    "bash -c 'eval \"$(direnv export bash)\"; echo \"$GREETING $PART ${HOOKED:-no}\"'";

#[test]
fn a_plain_use_flake_is_served_from_the_cache() {
    let Some(bench) = Bench::with_library("use flake\n") else {
        return;
    };
    let refused = bench.direnv_says(PROMPT, "no");
    assert!(refused.contains("is blocked"), "{refused}");
    assert_eq!(bench.evaluations(), 0, "before it was allowed");
    let held = bench.direnv_says(&format!("direnv allow; {PROMPT}"), "good day part no");
    assert!(held.contains("tk-store env allow ."), "{held}");
    assert_eq!(bench.evaluations(), 1);

    // Its own use flake would have run nix, and made a folder.
    bench.direnv_says(PROMPT, "good day part no");
    assert_eq!(bench.evaluations(), 1);
    assert!(!bench.flake().join(".direnv").exists());

    // A hook runs once it was allowed; a change of it is held back, and shown.
    // The shell that is open notices.
    let allowed = "prompt() { eval \"$(direnv export bash)\"; echo ${HOOKED:-no}; }; prompt; prompt\n\
        tk-store env allow >/dev/null; prompt";
    fs::write(bench.path("prompts"), allowed).unwrap();
    bench.direnv_says("bash ../prompts", "no\nno\nyes");
    bench.direnv_says(PROMPT, "good day part yes");
    let flake = bench.flake().join("flake.nix");
    let text = fs::read_to_string(&flake).unwrap();
    fs::write(
        &flake,
        text.replace("echo hooked", "echo hooked; echo more"),
    )
    .unwrap();
    let held = bench.direnv_says(PROMPT, "good day part no");
    assert!(held.contains("+echo hooked; echo more"), "{held}");
    fs::write(&flake, text).unwrap();
    bench.direnv_says(PROMPT, "good day part yes");
    assert_eq!(bench.evaluations(), 2);
}

#[test]
fn what_it_depends_on_is_watched() {
    let Some(bench) = Bench::with_library("use tk-store .\n") else {
        return;
    };
    let prompts = "prompt() { eval \"$(direnv export bash)\"; }\n\
        prompt; echo $PART; prompt; echo $PART\n\
        echo '\"another\"' >part.nix; touch -d 'now + 5 seconds' part.nix; prompt; echo $PART\n\
        echo x >main.c; touch -d 'now + 5 seconds' main.c; direnv export bash | wc -c";
    fs::write(bench.path("prompts"), prompts).unwrap();
    bench.direnv_says("direnv allow; bash ../prompts", "part\npart\nanother\n0");

    // What is broken is tried again once it is mended.
    fs::write(bench.path("flake/part.nix"), "1 +").unwrap();
    let broken = bench.direnv_says(PROMPT, "no");
    assert!(broken.contains("part.nix"), "{broken}");
    let mended = "prompt() { eval \"$(direnv export bash)\"; }; prompt 2>/dev/null\n\
        echo '\"mended\"' >part.nix; touch -d 'now + 5 seconds' part.nix; prompt; echo $PART";
    fs::write(bench.path("prompts"), mended).unwrap();
    bench.direnv_says("bash ../prompts", "mended");
}

#[test]
fn what_is_the_users_stays() {
    let Some(bench) = Bench::with_library("use flake\n") else {
        return;
    };
    let script = "direnv allow; export TMPDIR=/tmp/mine TEMP=/tmp/temp; unset TMP NIX_BUILD_TOP\n\
        bash -c 'eval \"$(direnv export bash)\"; echo $TMPDIR $TEMP ${TMP:-none} ${NIX_BUILD_TOP:-none}'";
    bench.direnv("mkdir -p /tmp/mine");
    bench.direnv_says(script, "/tmp/mine /tmp/temp none none");
}

#[test]
fn options_of_nix_go_to_the_use_flake_that_there_was() {
    let Some(bench) = Bench::with_library("use flake . --accept-flake-config\n") else {
        return;
    };
    // Flakes are on in this nix.conf, as direnv's own needs it.
    bench.direnv_says(&format!("direnv allow; {PROMPT}"), "good day part yes");
    assert!(bench.flake().join(".direnv").exists());
    fs::write(
        bench.flake().join(".envrc"),
        "use flake . --impure --option cores 1\n",
    )
    .unwrap();
    fs::remove_dir_all(bench.flake().join(".direnv")).unwrap();
    bench.direnv_says(&format!("direnv allow; {PROMPT}"), "good day part no");
    assert!(!bench.flake().join(".direnv").exists());
}

/// No assertion: a machine may be busy. The ratio is for people to read.
#[test]
fn how_fast_direnv_enters() {
    let Some(bench) = Bench::with_library("use flake\n") else {
        return;
    };
    // The least of many: what others do on the machine only adds.
    let least = |script: &str| {
        let times = (0..9).map(|_| {
            let begun = Instant::now();
            assert_eq!(bench.direnv(script).status, 0);
            begun.elapsed().as_secs_f64()
        });
        times.min_by(f64::total_cmp).unwrap()
    };
    let enter = "direnv export bash >/dev/null 2>&1";
    bench.direnv(&format!("direnv allow; {enter}; sleep 2.1; {enter}"));
    let ours = least(enter);
    bench.direnv("mv $HOME/.config/direnv/lib $HOME/lib");
    bench.direnv(enter);
    let own = least(enter);
    // What direnv takes for itself, with nothing to do.
    bench.direnv("echo : >.envrc; direnv allow");
    let floor = least(enter);
    let (whole, inside) = (ours / own, (ours - floor) / (own - floor));
    report(
        "shells",
        &format!(
            "  direnv: warm {ours:.4} s, its own use flake {own:.4} s: {whole:.3}; without the {floor:.4} s of an \
             empty .envrc: {inside:.3}\n"
        ),
    );
}
