//! What is said, and what is not: streams that take nothing, secret keys, words of others, one cause for
//! many failures, and what programs are told.

use super::Machine;
use crate::support::made;
use serde_json::Value;
use std::{
    fs::{self, OpenOptions},
    io::{Read, Write, pipe},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    process::Stdio,
};

/// All commands, as the program itself lists them.
pub fn commands(machine: &Machine) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    let mut todo = vec![Vec::new()];
    while let Some(above) = todo.pop() {
        let mut words = vec!["complete".to_owned(), "--".to_owned()];
        words.extend(above.iter().cloned());
        words.push(String::new());
        let listed = machine.done(machine.command(&words).output());
        assert_eq!(listed.status, 0, "{listed:?}");
        let names = listed
            .out
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once('\t'));
        // Values have no help; `help` repeats all others.
        let names = names.filter(|(name, help)| !help.is_empty() && *name != "help");
        let below: Vec<_> = names.map(|(name, _)| name.to_owned()).collect();
        let group = above.len() == 1 && below.iter().all(|name| !name.contains([':', '/']));
        if above.is_empty() || (group && !below.is_empty()) {
            todo.extend(
                below
                    .into_iter()
                    .map(|name| [above.clone(), vec![name]].concat()),
            );
        }
        if !above.is_empty() {
            all.push(above);
        }
    }
    assert!(all.len() > 40, "{all:?}");
    all
}

/// A stream that takes nothing: a full disk, or a reader that has left.
fn closed(full: bool) -> Stdio {
    if full {
        OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap()
            .into()
    } else {
        pipe().unwrap().1.into()
    }
}

#[test]
fn no_command_panics_when_nobody_listens() {
    let machine = Machine::new();
    for command in commands(&machine) {
        for help in [true, false] {
            let mut words = command.clone();
            if help {
                words.push("--help".into());
            }
            let mut run = machine.command(&words);
            run.stdout(closed(help)).stderr(closed(!help));
            let status = run.status().unwrap().code();
            assert!(matches!(status, Some(0..=2 | 141)), "{words:?}: {status:?}");
        }
    }
    for (words, full, expected) in [
        ("completions bash", true, 2),
        ("completions bash", false, 141),
        ("completions elvish", false, 141),
        ("--version", true, 2),
        ("push --help", false, 141),
    ] {
        let mut run = machine.command(words.split(' '));
        let status = run.stdout(closed(full)).stderr(Stdio::null()).status();
        assert_eq!(status.unwrap().code(), Some(expected), "{words}");
    }
}

#[test]
fn words_that_are_lost_do_not_stop_the_work() {
    let machine = Machine::new();
    let paths = made::fill(&machine.store(), &[100; 12]);
    let last = &paths[11];
    for full in [true, false] {
        let (cache, store) = (machine.cache(&format!("c{full}")), format!("./s{full}"));
        for line in [
            format!("push {last} --to {cache}"),
            format!("pull {last} --from {cache} --no-check-sigs --to {store}"),
            format!("verify --all --no-trust --store {store}"),
        ] {
            let mut run = machine.command(line.split(' '));
            let status = run.stderr(closed(full)).stdout(Stdio::null()).status();
            assert_eq!(status.unwrap().code(), Some(0), "{line}");
        }
        let there = machine.ok(&format!("path-info --all --store {store}"));
        assert_eq!(there.lines().count(), 12, "{there}");
    }
}

#[test]
fn secret_keys_are_repeated_nowhere() {
    let machine = Machine::new();
    machine.write("file", "x");
    machine.ok("key generate ci-1 --secret s --public p");
    let key = fs::read_to_string(machine.home().join("s")).unwrap();
    let (_, digits) = key.split_once(':').unwrap();
    let cache = machine.cache("cache");
    let path = machine.ok(&format!("push file --to {cache} --sign-key s"));
    machine.write("etc/nix.conf", format!("trusted-public-keys = {key}\n"));
    let cut = &key[..key.len() - 12];
    for line in [
        format!("push file --to {cache} --sign-key {key}"),
        format!("push file --to {cache} --sign-key {key} --create-key"),
        format!("push file --to {cache} --sign-key {cut}"),
        format!("push file --to {cache} --sign-key {digits}"),
        format!("push file --to {cache} --sign-key-env {key}"),
        format!("push {key} --to {cache}"),
        format!("push file --to {cache}?secret-key={key}"),
        format!("pull {path} --from {cache} --to ./n --trusted-key {key}"),
        format!("pull {path} --from {cache} --to ./n --trusted-key {cut}"),
        format!("pull {path} --from {cache} --to ./n"),
        format!("sign {path} --store {cache} --key-file {key}"),
        format!("key public {key}"),
        format!("key generate {key} --secret t"),
        key.to_string(),
        format!("push --jobs {key}"),
        format!("cache use {cache} --public-key {key} --conf c"),
    ] {
        let done = machine.run(&line);
        assert_eq!(done.status, 2, "{line}: {done:?}");
        let said = format!("{}{}", done.out, done.err);
        assert!(!said.contains(&digits[..30]), "{line}: {said}");
    }
    let made = fs::read_dir(machine.home()).unwrap();
    let made: Vec<_> = made.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        made.iter()
            .all(|name| !name.to_string_lossy().contains("ci-1")),
        "{made:?}"
    );
}

#[test]
fn secret_keys_come_from_stdin_and_variables() {
    let machine = Machine::new();
    machine.write("file", "x");
    machine.ok("key generate ci-1 --secret s --public p");
    let key = fs::read_to_string(machine.home().join("s")).unwrap();
    let public = fs::read_to_string(machine.home().join("p")).unwrap();
    let place = machine.home().join("s").display().to_string();
    let run = |n: usize, words: &str, variable: Option<(&str, &str)>, stdin: Option<&str>| {
        let cache = machine.cache(&format!("cache{n}"));
        let line = format!("push file --to {cache} {words}");
        let mut run = machine.command(line.split_whitespace());
        run.envs(variable)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        run.stdin(Stdio::piped());
        let mut child = run.spawn().unwrap();
        let mut to = child.stdin.take().unwrap();
        to.write_all(stdin.unwrap_or_default().as_bytes()).unwrap();
        drop(to);
        let done = machine.done(child.wait_with_output());
        assert_eq!(done.status, 0, "{words}: {done:?}");
        let path = done.out.trim().to_owned();
        let pull = format!("pull {path} --from {cache} --to ./n{n} --trusted-key {public}");
        machine.ok(&pull);
    };
    run(0, "--sign-key -", None, Some(&format!("{key}\n")));
    run(1, "--sign-key-env MY_KEY", Some(("MY_KEY", &key)), None);
    run(2, "--sign-key-env MY_KEY", Some(("MY_KEY", &place)), None);
    run(3, "", Some(("TK_SIGN_KEY", &key)), None);
    run(4, "", Some(("TK_SIGN_KEY", &place)), None);
    let push = format!("push file --to {}", machine.cache("x"));
    let err = machine.fails(2, &format!("{push} --sign-key-env NO_KEY"));
    assert!(err.contains("the variable NO_KEY is not set"), "{err}");

    let mut info = machine.command(["path-info", "--all"]);
    let info = info.env("TK_STORE", machine.cache("cache0")).output();
    assert_eq!(machine.done(info).out.lines().count(), 1);
    let mut pushed = machine.command(["push", "file"]);
    let pushed = pushed.env("TK_TO", machine.cache("cache9")).output();
    assert_eq!(machine.done(pushed).status, 0);
    assert!(machine.home().join("cache9/nix-cache-info").exists());
    machine.ok("add file");
    let mut empty = machine.command(["store", "info"]);
    let empty = machine.done(empty.env("TK_STORE", "").output());
    assert_eq!(empty.status, 0, "as if it were not set: {empty:?}");
}

#[test]
fn a_member_that_is_absent_is_no() {
    let machine = Machine::new();
    machine.write("tree/file", "x");
    let path = machine.ok("add tree");
    machine
        .command(["nar", "pack", "tree"])
        .stdout(fs::File::create(machine.home().join("t.nar")).unwrap())
        .status()
        .unwrap();
    for line in [
        format!("ls {path}/absent"),
        format!("ls --json {path}/file/below"),
        format!("cat {path}/absent"),
        "nar ls t.nar absent".into(),
        "nar cat t.nar absent".into(),
        "nar cat -L t.nar absent".into(),
    ] {
        let err = machine.fails(1, &line);
        assert!(err.contains("no member"), "{line}: {err}");
    }
    machine.fails(2, &format!("cat {path}"));
    machine.fails(2, "nar cat t.nar");
}

#[test]
fn one_cause_is_told_once() {
    let machine = Machine::new();
    let paths = made::fill(&machine.store(), &[50; 20]);
    machine.ok("key generate ci-1 --secret s --public p");
    machine.ok("key generate dev-1 --secret t --public q");
    let cache = machine.cache("cache");
    let last = &paths[19];
    machine.ok(&format!("push {last} --to {cache} --sign-key s"));
    // What is not trusted is not followed; so each is asked for.
    let all: Vec<_> = paths.iter().map(ToString::to_string).collect();
    let all = all.join(" ");
    let pull = format!("pull {all} --from {cache} --to ./n --trusted-key q");
    let err = machine.fails(1, &pull);
    let lines: Vec<_> = err
        .lines()
        .filter(|line| line.starts_with("tk-store: "))
        .collect();
    assert!(
        lines[0].contains("signed by ci-1, which is not among the trusted keys dev-1")
            && lines[0].contains("--trusted-key")
            && lines[0].contains("--no-check-sigs"),
        "{err}"
    );
    assert_eq!(lines[0].matches("path-").count(), 1, "{err}");
    assert!(lines.len() <= 3, "{err}");

    let done = machine.run(&format!("{pull} --json"));
    let report: Value = serde_json::from_str(&done.out).unwrap();
    let failed = report["failed"].as_array().unwrap();
    assert_eq!(failed.len(), 20);
    let kind = |kind: &str| failed.iter().filter(|f| f["kind"] == kind).count();
    assert!(kind("untrusted") >= 1, "{failed:?}");
    assert_eq!(
        kind("untrusted") + kind("missingReference"),
        20,
        "{failed:?}"
    );

    let verify = format!("verify --all --store {cache} --trusted-key q");
    let err = machine.fails(1, &verify);
    assert!(err.contains("20 paths are signed by ci-1"), "{err}");
    let check = format!("check {last} --closure --in {cache} --trusted-key q");
    let err = machine.fails(1, &check);
    assert!(err.contains("20 paths are signed by ci-1"), "{err}");
}

#[test]
fn a_report_comes_also_when_all_fails() {
    let machine = Machine::new();
    let nowhere = machine.cache("nowhere");
    let absent = "/nix/store/00000000000000000000000000000000-absent";
    machine.write("file", "x");
    let cache = machine.cache("cache");
    machine.ok(&format!("push file --to {cache}"));
    let other = machine.cache("other");
    machine.write("other/nix-cache-info", "StoreDir: /other/store\n");
    for (line, status, kind) in [
        (
            format!("pull {absent} --from {nowhere} --json --to ./n"),
            2,
            "io",
        ),
        (
            format!("pull {absent} --from {cache} --json --to ./n"),
            1,
            "notFound",
        ),
        (
            format!("copy {absent} --from gopher://x --json"),
            2,
            "invalid",
        ),
        (format!("verify {absent} --store {nowhere} --json"), 2, "io"),
        (format!("path-info --all --store {nowhere} --json"), 2, "io"),
        (
            format!("path-info --all --store {other} --json"),
            2,
            "storeDir",
        ),
        (format!("push file --to {other} --json"), 2, "storeDir"),
    ] {
        let done = machine.run(&line);
        assert_eq!(done.status, status, "{line}: {done:?}");
        let report: Value =
            serde_json::from_str(&done.out).unwrap_or_else(|e| panic!("{line}: {e}: {done:?}"));
        assert_eq!(report["failed"][0]["kind"], kind, "{line}: {report}");
        assert!(
            done.err.contains(report["error"].as_str().unwrap()),
            "{done:?}"
        );
    }
}

#[test]
fn what_others_write_is_shown_as_text() {
    let machine = Machine::new();
    let evil = "\u{1b}]0;owned\u{7}\u{1b}[31m\u{202e}";
    machine.write("a/nix-cache-info", format!("StoreDir: /{evil}\n"));
    let err = machine.fails(
        2,
        &format!("path-info --all --store {}", machine.cache("a")),
    );
    assert!(err.contains("owned"), "{err:?}");
    assert!(
        !err.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'),
        "{err:?}"
    );

    machine.write("file", "x");
    let path = machine.ok(&format!("push file --to {}", machine.cache("c")));
    let narinfo = format!("c/{}.narinfo", &path["/nix/store/".len()..][..32]);
    let text = fs::read_to_string(machine.home().join(&narinfo)).unwrap();
    let url = text.lines().find(|line| line.starts_with("URL: ")).unwrap();
    machine.write(&narinfo, text.replace(url, &format!("URL: nar/{evil}.nar")));
    let pull = format!(
        "pull {path} --from {} --to ./n --no-check-sigs",
        machine.cache("c")
    );
    let done = machine.run(&pull);
    assert_ne!(done.status, 0);
    let control = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!done.err.contains(control), "{done:?}");
    // A name with an end of line cannot make a line of its own.
    let err = machine
        .done(machine.command(["add", "x\nwarning: all is well"]).output())
        .err;
    assert!(err.contains("\\n") && !err.contains("\nwarning"), "{err:?}");
}

#[test]
fn a_store_that_hangs_up_is_told() {
    let machine = Machine::new();
    let place = machine.home().join("socket");
    let listener = UnixListener::bind(&place).unwrap();
    let server = std::thread::spawn(move || {
        for _ in 0..3 {
            let (mut client, _) = listener.accept().unwrap();
            let mut word = [0; 8];
            client.read_exact(&mut word).unwrap();
            client.write_all(&0x6478_696f_u64.to_le_bytes()).unwrap();
            client.write_all(&0x126_u64.to_le_bytes()).unwrap();
            client.read_exact(&mut word).unwrap();
        }
    });
    let path = "/nix/store/00000000000000000000000000000000-x";
    for _ in 0..3 {
        let line = format!("path-info --store unix://{} {path}", place.display());
        let err = machine.fails(2, &line);
        assert!(
            err.contains("closed the connection") && err.contains("allowed-users"),
            "{err}"
        );
    }
    server.join().unwrap();
}

#[test]
fn text_in_place_of_a_protocol_is_shown() {
    let machine = Machine::new();
    for (script, words) in [
        (
            "echo 'This account is currently not available.'; exit 1",
            "This account is",
        ),
        ("printf no; exit 1", "'no'"),
        (
            "printf 'Welcome\\033[31m to\\r\\nthis machine\\n'; exec cat >/dev/null",
            "Welcome to; this machine",
        ),
    ] {
        let ssh = machine.write("bin/ssh", format!("#!/bin/sh\n{script}\n"));
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
        for scheme in ["ssh", "ssh-ng"] {
            let path = format!(
                "{}:{}",
                machine.home().join("bin").display(),
                std::env::var("PATH").unwrap()
            );
            let mut info =
                machine.command(["store", "info", "--store", &format!("{scheme}://host")]);
            let done = machine.done(info.env("PATH", path).output());
            assert_eq!(done.status, 2, "{done:?}");
            assert!(done.err.contains(words), "{scheme}: {done:?}");
            assert_eq!(done.err.lines().count(), 1, "{done:?}");
        }
    }
}

#[test]
fn few_files_at_once_are_enough() {
    let machine = Machine::new();
    for tree in 0..4 {
        for folder in 0..300 {
            machine.write(
                &format!("t{tree}/{}/{}/f", folder / 20, folder % 20),
                format!("{tree} {folder}"),
            );
        }
    }
    let cache = machine.cache("cache");
    let program = env!("CARGO_BIN_EXE_tk-store");
    for (limit, line) in [
        (
            64,
            format!("push t0 t1 t2 t3 --to {cache} --compression none --jobs 8"),
        ),
        (
            64,
            format!("copy --all --from {cache} --to ./n --no-check-sigs --jobs 32"),
        ),
        (
            256,
            "copy --all --from ./n --to ./m --no-check-sigs --jobs 32".to_owned(),
        ),
    ] {
        let script = format!("ulimit -n {limit} && exec {program} {line}");
        let template = machine.command(["x"]);
        let mut run = std::process::Command::new("bash");
        run.arg("-c").arg(script).current_dir(machine.home());
        for (name, value) in template.get_envs() {
            match value {
                Some(value) => run.env(name, value),
                None => run.env_remove(name),
            };
        }
        let done = machine.done(run.output());
        assert_eq!(done.status, 0, "{line}: {done:?}");
    }
}

#[test]
fn an_interrupted_push_says_how_to_go_on() {
    let machine = Machine::new();
    machine.write("bin/x", "");
    // A store that never answers.
    let place = machine.home().join("socket");
    let listener = UnixListener::bind(&place).unwrap();
    let path = "/nix/store/00000000000000000000000000000000-x";
    let line = format!(
        "push {path} --from unix://{} --to {}",
        place.display(),
        machine.cache("c")
    );
    let mut run = machine.command(line.split(' '));
    let child = run
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (mut client, _) = listener.accept().unwrap();
    let mut word = [0; 16];
    client.read_exact(&mut word).unwrap();
    // Whether its signals are caught yet is in the mask of caught signals.
    let caught = || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix("SigCgt:\t"))
            .unwrap();
        u64::from_str_radix(mask, 16).unwrap() & 1 << 1 != 0
    };
    while !caught() {
        std::thread::yield_now();
    }
    let id = child.id().to_string();
    std::process::Command::new("kill")
        .args(["-INT", &id])
        .status()
        .unwrap();
    let done = machine.done(child.wait_with_output());
    assert_eq!(done.status, 130, "{done:?}");
    assert!(
        done.err.contains("the same command goes on from there"),
        "{done:?}"
    );
}

#[test]
fn few_threads_are_enough_or_told() {
    // Nobody limits root, and only root can be somebody else.
    let tools = ["setpriv", "prlimit"].map(|tool| {
        std::process::Command::new(tool)
            .arg("--version")
            .output()
            .is_ok()
    });
    let root = std::process::Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|id| id.stdout == b"0\n");
    if !root || tools.contains(&false) {
        return crate::support::skip("few threads", "only root can try, with setpriv and prlimit");
    }
    let scratch = crate::support::trees::Scratch::new();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let place = scratch.path().display().to_string();
    fs::copy(
        env!("CARGO_BIN_EXE_tk-store"),
        scratch.path().join("tk-store"),
    )
    .unwrap();
    let paths = made::fill(&scratch.path().join("from"), &[30_000; 24]);
    let machine = Machine::new();
    let last = &paths[23];
    // Who has no other process.
    let user = 700_000 + std::process::id() % 100_000;
    for threads in [2, 5, 7, 12, 40, 100] {
        for (n, line) in [
            format!("push {last} --from local?root={place}/from&read-only=true --to file://{place}/cache{threads} --jobs 32"),
            format!("pull {last} --from file://{place}/cache{threads} --to {place}/to{threads} --no-check-sigs --jobs 32"),
        ].iter().enumerate() {
            let mut run = std::process::Command::new("setpriv");
            run.arg(format!("--reuid={user}")).args(["--regid=12345", "--clear-groups", "prlimit"]);
            run.arg(format!("--nproc={threads}")).arg(format!("{place}/tk-store"));
            run.args(line.split(' ')).env("HOME", &place).env("NIX_CONF_DIR", &place).env_remove("NIX_REMOTE");
            let done = machine.done(run.output());
            if threads < 7 {
                assert_eq!(done.status, 2, "{n}: {done:?}");
                assert!(done.err.contains("TasksMax"), "{done:?}");
            } else {
                assert_eq!(done.status, 0, "{threads}: {line}: {done:?}");
            }
        }
    }
}
