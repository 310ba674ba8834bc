//! Code that would run without being named needs a consent, which is bound to all of it.

use super::{Bench, each};
use crate::support::skip;
use std::fs;

impl Bench {
    /// A flake whose shell has `attributes`, and a function that says `word`.
    fn write_greeting(&self, word: &str, attributes: &str) {
        let text = GREETING
            .replace("WORD", word)
            .replace("ATTRIBUTES", attributes);
        fs::write(self.flake().join("flake.nix"), text).unwrap();
    }

    /// Whether `file` was made by code that ran; it is taken away again.
    fn ran(&self, file: &str) -> bool {
        let there = self.path(file).exists();
        fs::remove_file(self.path(file)).ok();
        there
    }
}

#[test]
fn all_that_a_hook_calls() {
    each("shell: a consent covers what a hook calls", |bench| {
        bench.write_greeting("harmless", "shellHook = \"greet\"; OTHER = \"1\";");
        let enter = "tk shell -- true";
        assert_eq!(bench.ask(enter), "");
        let shown = bench.ask("tk env allow --show");
        assert!(
            shown.contains("greet") && shown.contains("harmless"),
            "{shown}"
        );
        assert_eq!(bench.ask(enter), "", "it was only shown");
        bench.ask("tk env allow");
        assert_eq!(bench.ask(enter), "harmless");
        // What it does not call is not covered, nor asked for again.
        bench.write_greeting("harmless", "shellHook = \"greet\"; OTHER = \"2\";");
        assert_eq!(bench.ask(enter), "harmless");
        bench.write_greeting("another", "shellHook = \"greet\"; OTHER = \"2\";");
        let held = bench.sh(enter);
        assert_eq!(held.stdout, "", "{held:?}");
        assert!(held.stderr.contains("tk-store env allow ."), "{held:?}");
        let changes = bench.ask("tk env allow");
        for line in ["-    echo harmless", "+    echo another", " greet"] {
            assert!(
                changes.lines().any(|l| l.starts_with(line)),
                "{line}: {changes}"
            );
        }
        assert_eq!(bench.ask(enter), "another");
        bench.write_greeting("harmless", "shellHook = \"greet\"; OTHER = \"1\";");
        assert_eq!(bench.ask(enter), "harmless", "it was allowed before");
    });
}

#[test]
fn what_shells_run_by_themselves() {
    each("shell: what shells run by themselves", |bench| {
        let one = bench.show("one");
        let attributes = format!(
            "PROMPT_COMMAND = \"touch {one}\"; ENV = \"/x\"; ZDOTDIR = \"/y\"; MAILPATH = \"/x?$(y)\"; PLAIN = \"x\";"
        );
        bench.write_greeting("x", &attributes);
        let ask = "tk shell -- bash -c 'echo $PLAIN $PROMPT_COMMAND $ENV $ZDOTDIR'";
        let held = bench.sh(ask);
        assert_eq!((held.status, held.stdout.as_str()), (0, "x\n"), "{held:?}");
        assert!(held.stderr.contains("PROMPT_COMMAND"), "{held:?}");
        for format in ["bash", "zsh", "fish", "direnv"] {
            let code = bench.ask(&format!("tk env export --format {format}"));
            let is_there = |name| code.contains(name);
            assert!(
                is_there("PLAIN") && !is_there("PROMPT_COMMAND") && !is_there("ZDOTDIR"),
                "{code}"
            );
        }
        let sourced = bench.ask("tk env export >../code; PATH=/usr/bin:/bin bash --norc -c 'source ../code; greet; cd() { echo mine; }; source ../code; cd'");
        assert_eq!(sourced, "x\nmine", "its functions take nobody's place");
        if bench.sh("command -v script").status != 0 {
            return skip("prompts on a terminal", "there is no program script");
        }
        let on_terminal = "printf 'exit\\n' | script -qec \"$TK shell\" /dev/null";
        bench.ask(on_terminal);
        assert!(!bench.ran("one"), "a prompt of the flake was run");
        let shown = bench.ask("tk env allow");
        for name in ["PROMPT_COMMAND", "ENV", "ZDOTDIR", "MAILPATH"] {
            assert!(shown.contains(name), "{shown}");
        }
        bench.ask(on_terminal);
        assert!(bench.ran("one"));
        assert_eq!(bench.ask(ask), format!("x touch {one} /x /y"));
        bench.ask("tk env allow --revoke");
        assert_eq!(bench.sh(ask).stdout, "x\n");
    });
}

const GREETING: &str = r#"{
  outputs = { self }:
    let
      system = "x86_64-linux";
      stdenv = derivation {
        name = "stdenv";
        inherit system;
        builder = "/bin/sh";
        args = [ "-c" "/bin/mkdir -p $out; echo 'greet() { echo WORD; }; cd() { builtin cd \"$@\"; }' > $out/setup" ];
      };
    in {
      devShells.${system}.default = derivation {
        name = "shell";
        inherit system stdenv;
        builder = "/bin/bash";
        outputs = [ "out" ];
        PATH = "/usr/bin:/bin";
        ATTRIBUTES
      };
    };
}
"#;
