//! What `env export` writes, read by the real zsh, fish, direnv and bash.

use super::{Bench, program};
use crate::support::{report, skip};
use std::{collections::BTreeMap, fs};

type Variables = BTreeMap<String, String>;

impl Bench {
    /// A shell with values that are hard to write, and one of a stdenv with functions.
    fn nasty() -> Option<Bench> {
        let bench = Bench::start("2.34")?;
        let mut text = "derivation {\n".to_owned();
        for (name, value) in NASTY {
            text.push_str(&format!("  {name} = {};\n", nix_text(value)));
        }
        for name in NAMES {
            text.push_str(&format!("  {name} = \"its own\";\n"));
        }
        text.push_str(REST);
        fs::create_dir_all(bench.path("flake/stdenv")).unwrap();
        fs::write(bench.path("flake/stdenv/setup"), SETUP).unwrap();
        fs::write(bench.path("flake/nasty.nix"), text).unwrap();
        Some(bench)
    }

    /// The variables that a command prints with `env -0` at its end, without words on stderr.
    #[track_caller]
    fn variables(&self, script: &str) -> Variables {
        let done = self.sh(script);
        assert_eq!(
            (done.status, done.stderr.as_str()),
            (0, ""),
            "{script}: {done:?}"
        );
        let pairs = done.stdout.split_terminator('\0');
        let pairs = pairs.map(|pair| pair.split_once('=').expect("a variable"));
        pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    /// Compares what a program has after it read the export with what a command gets.
    #[track_caller]
    fn same(&self, what: &str, script: &str, own: &[&str]) {
        let shell = "$TK shell -f nasty.nix -- env -0";
        self.ask(&format!("{shell} >/dev/null 2>&1"));
        let mut expected = self.variables(&format!("{shell} 2>/dev/null"));
        let mut found = self.variables(script);
        let without: Vec<_> = OF_THE_SESSION.iter().chain(own).collect();
        for variables in [&mut expected, &mut found] {
            variables.retain(|name, _| {
                !without.contains(&&name.as_str()) && !name.starts_with("DIRENV_")
            });
        }
        for (name, value) in NASTY {
            assert_eq!(
                expected.get(*name).map(String::as_str),
                Some(*value),
                "{name}"
            );
        }
        assert!(!expected.contains_key("unexported"));
        for name in expected.keys().chain(found.keys()) {
            assert_eq!(found.get(name), expected.get(name), "{what}: {name}");
        }
        report(
            "shells",
            &format!(
                "  env export --format {what:<20}  {} variables\n",
                expected.len()
            ),
        );
    }

    fn has(&self, name: &str) -> bool {
        let is_there = self.sh(&format!("command -v {name}")).status == 0;
        if !is_there {
            let why = "not installed; tests/shells/install does it on Debian";
            skip(&format!("env export for {name}"), why);
        }
        is_there
    }
}

#[test]
fn bash_reads_it() {
    let Some(bench) = Bench::nasty() else { return };
    let export = "source <($TK env export -f nasty.nix)";
    bench.same("bash", &format!("bash -c '{export}; env -0'"), &[]);
    // It alone gets functions, and what is not exported.
    let ask = format!("bash -c '{export}; greet you; echo \"$unexported ${{list[1]}}\"'");
    assert_eq!(bench.ask(&ask), "greetings, you\nit's plain b c");
}

#[test]
fn zsh_reads_it() {
    let Some(bench) = Bench::nasty() else { return };
    if bench.has("zsh") {
        let script = "zsh -fc 'eval \"$($TK env export -f nasty.nix --format zsh)\"; env -0'";
        bench.same("zsh", script, NAMES);
        bench.same("zsh", &script.replace("-fc", "-fuec"), NAMES);
    }
}

#[test]
fn fish_reads_it() {
    let Some(bench) = Bench::nasty() else { return };
    if bench.has("fish") {
        let script =
            "fish --no-config -c '$TK env export -f nasty.nix --format fish | source; env -0'";
        bench.same("fish", script, NAMES);
        let list = script.replace(
            "env -0",
            "count $PATH; contains /usr/bin $PATH; and echo $PATH[1]",
        );
        let list = bench.ask(&list);
        let (count, first) = list.split_once('\n').unwrap();
        assert!(count.parse::<usize>().unwrap() > 2, "{list}");
        assert_eq!(first, "/a folder/bin", "PATH is a list");
    }
}

#[test]
fn direnv_reads_it() {
    let Some(bench) = Bench::nasty() else { return };
    if !bench.has("direnv") {
        return;
    }
    let own = "unset XDG_CONFIG_HOME XDG_DATA_HOME; export DIRENV_LOG_FORMAT=";
    let line = "eval \"$($TK env export -f nasty.nix --format direnv)\"\n";
    fs::write(bench.path("flake/.envrc"), line).unwrap();
    let script = format!("{own}; direnv allow; direnv exec . env -0");
    bench.same("direnv", &script, &[]);

    // It notices what changed, as after each command of a shell: a file that is imported, too.
    fs::create_dir_all(bench.path("other")).unwrap();
    fs::write(bench.path("other/part.nix"), "\"part\"").unwrap();
    let file = bench.path("flake/nasty.nix");
    let text = fs::read_to_string(&file).unwrap();
    let text = text.replace(
        "derivation {\n",
        "derivation {\n  PART = import ../other/part.nix;\n",
    );
    fs::write(&file, text).unwrap();
    program(
        &bench.path("prompt"),
        "#!/bin/bash\nprompt() { eval \"$(direnv export bash)\"; }\n\
         prompt; echo $PART; prompt; echo $PART\n\
         echo '\"another\"' >../other/part.nix; touch -d 'now + 5 seconds' ../other/part.nix\n\
         prompt; echo $PART\n",
    );
    let done = bench.sh(&format!("{own}; direnv allow; ../prompt"));
    assert_eq!(done.stdout, "part\npart\nanother\n", "{done:?}");
}

/// `text` as a text of the Nix language.
fn nix_text(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{}\"", text.replace('$', "\\$").replace('\n', "\\n"))
}

/// Variables as they are to arrive, each in its place of the alphabet: the language comes before the
/// letters.
const NASTY: &[(&str, &str)] = &[
    ("BACKSLASHES", "\\ \\\\ \\n \\' end\\"),
    ("BACKTICKS", "`echo no` $(echo no)"),
    ("BRACES", "{a,b} * ? [x] ~ ! # & | ; < > ( ) % ^"),
    ("DOLLARS", "$HOME ${HOME} $$ $"),
    ("EMPTY", ""),
    ("LANG", "C"),
    ("LINES_OF_IT", "one\n\n  two\n"),
    ("LINE_ALONE", "\n"),
    ("MINUS", "-n"),
    ("OTHER_PATH", ":/a b::/c:"),
    ("QUOTES", "it's \"so\" '' \"\" '"),
    ("SPACES", "  a  b\tc  "),
    ("TILDE", "~/x:~"),
    ("UNICODE", "grüße, 世界 🦀 \u{200d} e\u{301}"),
    ("lower_case", "yes"),
];

/// Names that mean something to zsh or fish, which keep their own.
const NAMES: &[&str] = &[
    "FISH_VERSION",
    "KEYTIMEOUT",
    "aliases",
    "argv",
    "builtins",
    "cdpath",
    "commands",
    "dirstack",
    "dis_builtins",
    "fignore",
    "fish_pid",
    "fpath",
    "functions",
    "functrace",
    "history",
    "hostname",
    "jobstates",
    "mailpath",
    "manpath",
    "module_path",
    "modules",
    "options",
    "parameters",
    "path",
    "pipestatus",
    "prompt",
    "psvar",
    "reswords",
    "signals",
    "status",
    "status_generation",
    "termcap",
    "umask",
    "userdirs",
    "version",
    "watch",
    "zsh_eval_context",
];

const REST: &str = r#"
  name = "nasty";
  system = "x86_64-linux";
  builder = "/bin/bash";
  outputs = [ "out" ];
  PATH = "/a folder/bin:/usr/bin:/bin";
  stdenv = ./stdenv;
  shellHook = "echo hooked";
}
"#;

const SETUP: &str = r#"
unexported=$'it\'s plain'
list=(a "b c")
greet() { echo "greetings, $1"; }
"#;

/// What a session has beside the environment, and what every shell has of its own.
const OF_THE_SESSION: &[&str] = &[
    "NIX_GCROOT",
    "NIX_BUILD_TOP",
    "SHELL",
    "SHLVL",
    "OLDPWD",
    "PWD",
    "_",
    "LOGNAME",
    "USER",
];
