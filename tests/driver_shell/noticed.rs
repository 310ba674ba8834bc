//! Whatever code looks at: a change of it is noticed.

use super::{Bench, each};
use std::fs;

/// What is done, and what the shell says after it.
type Step<'a> = (&'a str, &'a str);

impl Bench {
    /// Goes through `steps` in a new folder with a flake, or a shell.nix, whose shell has `code` as its X.
    #[track_caller]
    fn notices(&self, reference: &str, code: &str, steps: &[Step<'_>]) {
        fs::remove_dir_all(self.path("project")).ok();
        fs::create_dir_all(self.path("project")).unwrap();
        let shell = SHELL.replace("CODE", code);
        let flake =
            format!("{{ outputs = {{ self }}: {{ devShells.x86_64-linux.default = {shell}; }}; }}");
        fs::write(self.path("project/flake.nix"), flake).unwrap();
        fs::write(self.path("project/shell.nix"), shell).unwrap();
        let git = "git() { command git -c user.name=x -c user.email=a@b -c commit.gpgsign=false \"$@\"; }";
        let ask = format!("tk shell {reference} -- sh -c 'printf %s \"$X\"'");
        for (step, expected) in steps {
            let said = self.ask(&format!(
                "cd ../project; {git}; ({step}) >/dev/null && {ask}"
            ));
            assert_eq!(
                said, *expected,
                "{} {code} after {step}",
                self.daemon.version
            );
            let bad = self.show("bad");
            let warm = self.ask(&format!("cd ../project; PATH={bad}:$PATH; {ask}"));
            assert_eq!(
                warm, *expected,
                "{} {code}: nix was run",
                self.daemon.version
            );
        }
    }
}

const BEGIN: &str = "git init -q . && echo 1 >main.c && echo one >VERSION && mkdir d && echo a >d/a \
                     && git add . && git commit -qm 1";

#[test]
fn what_git_has() {
    each("shell: what git has", |bench| {
        let local = "if builtins.pathExists ./local.nix then import ./local.nix else \"none\"";
        bench.notices(
            ".",
            local,
            &[
                (BEGIN, "none"),
                ("echo '\"added\"' >local.nix", "none"),
                ("git add local.nix", "added"),
                ("git rm -q --cached local.nix", "none"),
                ("git add -N local.nix", "added"),
            ],
        );
        let list = "toString (builtins.attrNames (builtins.readDir ./d))";
        bench.notices(
            ".",
            list,
            &[
                (BEGIN, "a"),
                ("echo b >d/b", "a"),
                ("git add d/b", "a b"),
                ("git rm -qf d/a", "b"),
            ],
        );
        bench.notices(
            ".",
            "builtins.readFile ./VERSION",
            &[
                (BEGIN, "one"),
                ("echo two >VERSION", "two"),
                ("git checkout -q VERSION", "one"),
            ],
        );
        bench.notices(
            ".",
            "builtins.readFile \"${./d}/a\"",
            &[(BEGIN, "a"), ("echo b >d/a", "b")],
        );
        let version = "if self ? rev then \"clean\" else \"dirty\"";
        bench.notices(
            ".",
            version,
            &[
                (BEGIN, "clean"),
                ("echo 2 >main.c", "dirty"),
                ("git commit -qam 2", "clean"),
            ],
        );
        // The commit, but not files that code cannot mean.
        bench.notices(".", "builtins.substring 0 0 self.rev", &[(BEGIN, "")]);
        let before = bench.evaluations();
        bench.notices(".", "\"x\"", &[(BEGIN, "x")]);
        let enter = "cd ../project; tk shell . -- true";
        bench.ask(&format!("{enter}; echo 2 >main.c; tk shell . -- true"));
        assert_eq!(bench.evaluations(), before + 1);
        bench.ask(&format!(
            "cd ../project; git -c user.name=x -c user.email=a@b commit -qam 2; {enter}"
        ));
        assert_eq!(bench.evaluations(), before + 2);
    });
}

#[test]
fn the_commit_itself() {
    each("shell: the commit", |bench| {
        bench.notices(
            "",
            "self.rev or \"dirty\"",
            &[(&format!("{BEGIN}; echo 2 >main.c"), "dirty")],
        );
        let commit = bench.ask(
            "cd ../project; git -c user.name=x -c user.email=a@b commit -qam 2; git rev-parse HEAD",
        );
        let said = bench.ask("cd ../project; tk shell -- sh -c 'echo $X'");
        assert_eq!(said, commit);
    });
}

#[test]
fn folders_of_any_name() {
    each("shell: folders of any name", |bench| {
        for folder in ["outputs", "target", "result-x", "node_modules", ".direnv"] {
            let write =
                |text: &str| format!("mkdir -p {folder}; echo '\"{text}\"' >{folder}/default.nix");
            let steps = [write("one"), write("two")];
            let steps: Vec<_> = steps
                .iter()
                .map(String::as_str)
                .zip(["one", "two"])
                .collect();
            let code = format!("import ./{folder}");
            bench.notices("path:.", &code, &steps);
            bench.notices("-f shell.nix", &code, &steps);
        }
    });
}

#[test]
fn files_of_any_kind() {
    each("shell -f: files of any kind", |bench| {
        // What was a folder is a file now, or a link to one.
        bench.notices(
            "-f shell.nix",
            "import ./d",
            &[
                ("mkdir d; echo '\"one\"' >d/default.nix", "one"),
                ("rm -r d; echo '\"two\"' >d", "two"),
                ("echo '\"three\"' >e; ln -sf e d", "three"),
                ("rm d; mkdir d; echo '\"four\"' >d/default.nix", "four"),
            ],
        );
        for code in [
            "builtins.readFile \"${builtins.filterSource (path: type: true) ./src}/a.txt\"",
            "builtins.readFile \"${builtins.path { path = ./src; name = \"s\"; }}/a.txt\"",
            "builtins.readFile \"${./.}/src/a.txt\"",
            "builtins.readFile (./src + \"/${\"a\"}.txt\")",
            "builtins.readFile ../elsewhere-data/text",
            "builtins.readFile (../elsewhere-data + \"/text\")",
            "toString (map (n: builtins.readFile (./src + \"/${n}\")) (builtins.attrNames (builtins.readDir ./src)))",
        ] {
            let write = |text: &str| {
                format!(
                    "mkdir -p src ../elsewhere-data; printf {text} | tee src/a.txt >../elsewhere-data/text"
                )
            };
            let (one, two) = (write("one"), write("two"));
            bench.notices("-f shell.nix", code, &[(&one, "one"), (&two, "two")]);
        }
    });
}

const SHELL: &str = "derivation { name = \"shell\"; system = \"x86_64-linux\"; builder = \"/bin/bash\"; \
                     outputs = [ \"out\" ]; PATH = \"/usr/bin:/bin\"; X = CODE; }";
