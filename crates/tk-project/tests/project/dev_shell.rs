//! Dev shells to and from their files: nothing is lost but what is said.

use super::{
    emit::{generated, hostile, lines},
    support::{cases, every_nix_parses},
};
use proptest::{
    collection::{btree_map, vec},
    option,
    prelude::*,
};
use std::{collections::BTreeMap, fs, process::Command};
use tk_project::{
    dev_shell::{DevShellDeclaration, DevShellForm, ShellFiles, read_shell, write_shell},
    emit::is_identifier,
    nix_literal::{LiteralCode, LiteralNode, MAX_NIX_BYTES},
};

fn shells() -> impl Strategy<Value = DevShellDeclaration> {
    let word = || prop_oneof![3 => "[a-zA-Z_][a-zA-Z0-9_]{0,6}", 1 => hostile()];
    let text = || prop_oneof![hostile(), lines()];
    let packages = vec(
        vec(
            prop_oneof![5 => "[a-z][a-z0-9-]{0,6}", 1 => hostile()],
            1..3,
        ),
        0..4,
    );
    let inputs = btree_map(word(), text(), 0..3);
    let parts = (
        option::of(text()),
        packages,
        btree_map(word(), text(), 0..3),
        btree_map(word(), text(), 0..4),
        prop_oneof![Just(String::new()), text()],
        inputs,
    );
    parts.prop_map(|(name, packages, scripts, variables, hook, mut inputs)| {
        // A flake is never without.
        inputs.insert("nixpkgs".to_owned(), "github:NixOS/nixpkgs".to_owned());
        let mut shell = DevShellDeclaration::default();
        shell.name = name;
        shell.packages = packages;
        shell.scripts = scripts;
        shell.variables = variables;
        shell.hook = hook;
        shell.inputs = inputs;
        shell
    })
}

/// What comes back, and how much was said to be lost on the way out and in.
fn there_and_back(
    form: DevShellForm,
    shell: &DevShellDeclaration,
) -> (DevShellDeclaration, usize, usize) {
    let (files, lost) = write_shell(form, shell).unwrap();
    let texts = texts(form, &files);
    let (back, unread) = read_shell(form, &texts).unwrap_or_else(|e| panic!("{e}\n{files:?}"));
    (back, lost.len(), unread.len())
}

fn texts(form: DevShellForm, files: &ShellFiles) -> Vec<Option<String>> {
    let text = |name: &&str| {
        let found = files.iter().find(|(other, _)| other == name);
        found.map(|(_, text)| text.clone())
    };
    form.files().iter().map(text).collect()
}

#[test]
fn round_trips_lose_nothing_that_the_form_can_carry() {
    for shell in generated(shells(), cases(300)) {
        for form in [DevShellForm::Flake, DevShellForm::Devenv] {
            let (back, lost, unread) = there_and_back(form, &shell);
            assert_eq!((&back, lost, unread), (&shell, 0, 0), "{form:?}");
        }
        let (back, lost, unread) = there_and_back(DevShellForm::ShellNix, &shell);
        let mut wanted = shell.clone();
        wanted.inputs = BTreeMap::new();
        assert_eq!((back, lost, unread), (wanted, shell.inputs.len(), 0));

        let (back, lost, unread) = there_and_back(DevShellForm::Envrc, &shell);
        let mut wanted = DevShellDeclaration::default();
        let plain = |path: &&Vec<String>| path.iter().all(|name| is_identifier(name));
        wanted.packages = shell.packages.iter().filter(plain).cloned().collect();
        let bash = |name: &str| {
            is_identifier(
                name.replace(|c: char| c.is_ascii_alphanumeric(), "a")
                    .as_str(),
            ) && !name.starts_with(|c: char| c.is_ascii_digit())
                && !name.contains(['-', '\''])
        };
        let variables = shell.variables.iter().filter(|(name, _)| bash(name));
        wanted.variables = variables
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let said = shell.packages.len() - wanted.packages.len() + shell.variables.len()
            - wanted.variables.len()
            + usize::from(shell.name.is_some())
            + usize::from(!shell.hook.is_empty())
            + shell.scripts.len()
            + shell.inputs.len();
        assert_eq!((back, lost, unread), (wanted, said, 0));
    }
}

#[test]
fn nix_takes_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    for (at, shell) in generated(shells(), 40).iter().enumerate() {
        for form in [
            DevShellForm::Flake,
            DevShellForm::ShellNix,
            DevShellForm::Devenv,
        ] {
            for (name, text) in write_shell(form, shell).unwrap().0 {
                if name.ends_with(".nix") {
                    let name = format!("{at}-{name}");
                    fs::write(folder.path().join(&name), text).unwrap();
                    names.push(name);
                }
            }
        }
    }
    every_nix_parses(folder.path(), &names);
}

#[test]
fn bash_reads_the_variables_of_envrc() {
    let mut shell = DevShellDeclaration::default();
    for (at, value) in generated(hostile(), 60).into_iter().enumerate() {
        shell.variables.insert(format!("V{at:02}"), value);
    }
    shell.packages = vec![
        vec!["hello".into()],
        vec!["python3".into(), "pkgs".into(), "pip".into()],
    ];
    let (files, lost) = write_shell(DevShellForm::Envrc, &shell).unwrap();
    assert!(lost.is_empty());
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "use() {{ printf '%s\\0' \"$*\"; }}\n{}\nprintf '%s\\0' \"${{!V@}}\"\nfor v in \"${{!V@}}\"; do printf '%s\\0' \"${{!v}}\"; done",
        files[0].1
    );
    fs::write(folder.path().join("x"), script).unwrap();
    let out = Command::new("bash")
        .arg("x")
        .current_dir(folder.path())
        .env_clear()
        .output()
        .unwrap();
    let out = String::from_utf8(out.stdout).unwrap();
    let words: Vec<_> = out.split_terminator('\0').collect();
    assert_eq!(words[0], "nix -p hello python3.pkgs.pip");
    let values: Vec<_> = shell.variables.values().map(String::as_str).collect();
    assert_eq!(words[1 + values.len()..], values);
}

fn read_one(form: DevShellForm, texts: &[&str]) -> (DevShellDeclaration, Vec<String>) {
    let texts: Vec<_> = texts.iter().map(|text| Some((*text).to_owned())).collect();
    let (shell, lost) = read_shell(form, &texts).unwrap();
    (shell, lost.iter().map(ToString::to_string).collect())
}

#[test]
fn what_is_no_literal_is_told_with_its_line() {
    let nix = "{ pkgs, lib, ... }:\n{\n  env.GREET = \"devenv\";\n  env.PORT = 8080;\n  env.LIB = \"${pkgs.zlib}/lib\";\n  packages = with pkgs; [ git jq ] ++ lib.optionals true [ hello ];\n  languages.rust.enable = true;\n  enterShell = ''\n    hello\n      git --version\n  '';\n  scripts = { hello.exec = \"echo $GREET\"; };\n}\n";
    let yaml = "inputs:\n  nixpkgs:\n    url: github:cachix/devenv-nixpkgs/rolling\n  other:\n    url: path:./x\n    flake: false\nallow_unfree: true\n";
    let (shell, lost) = read_one(DevShellForm::Devenv, &[nix, yaml]);
    assert_eq!(shell.variables["PORT"], "8080");
    assert_eq!(shell.hook, "hello\n  git --version\n");
    assert_eq!(shell.scripts["hello"], "echo $GREET");
    assert_eq!(shell.packages, [["git"], ["jq"]]);
    assert_eq!(shell.inputs.len(), 2);
    let starts = [
        "devenv.nix:5: the variable LIB is no literal",
        "devenv.nix:6: packages is",
        "devenv.nix:7: languages.rust.enable",
        "devenv.yaml:7: allow_unfree",
        "devenv.yaml:4: flake of the input other",
    ];
    for start in starts {
        assert!(
            lost.iter().any(|line| line.starts_with(start)),
            "{start}: {lost:?}"
        );
    }
    assert_eq!(lost.len(), starts.len(), "{lost:?}");

    let flake = "{\n  inputs.nixpkgs.url = \"nixpkgs\";\n  inputs.a = { url = \"b\"; flake = false; };\n  outputs = { nixpkgs, ... }: let pkgs = nixpkgs.legacyPackages.x86_64-linux; in {\n    devShells.x86_64-linux.default = pkgs.mkShell {\n      buildInputs = [ pkgs.a (pkgs.b.override { }) ];\n      FOO = \"bar\";\n      inputsFrom = [ pkgs.hello ];\n    };\n  };\n}\n";
    let (shell, lost) = read_one(DevShellForm::Flake, &[flake]);
    assert_eq!(
        (shell.packages, shell.variables["FOO"].as_str()),
        (vec![vec!["a".to_owned()]], "bar")
    );
    assert_eq!(lost.len(), 3, "{lost:?}");
    assert!(
        lost.iter()
            .any(|line| line.starts_with("flake.nix:3: inputs.a.flake")),
        "{lost:?}"
    );
    assert!(
        lost.iter()
            .any(|line| line.starts_with("flake.nix:6: a package is")),
        "{lost:?}"
    );
    assert!(
        lost.iter()
            .any(|line| line.starts_with("flake.nix:8: inputsFrom")),
        "{lost:?}"
    );

    let envrc = "# mine\nexport A=\"b c\" # why\nexport B=$HOME/x\nPATH_add bin\n\nuse flake .#ci\nexport C='two\nlines'\n";
    let (shell, lost) = read_one(DevShellForm::Envrc, &[envrc]);
    assert_eq!(shell.variables["A"], "b c");
    assert_eq!(shell.variables["C"], "two\nlines");
    let lines: Vec<_> = lost
        .iter()
        .map(|line| line.split(": ").next().unwrap())
        .collect();
    assert_eq!(lines, [".envrc:3", ".envrc:4", ".envrc:6"], "{lost:?}");
}

fn losses(lost: &[String]) -> Vec<&str> {
    lost.iter()
        .map(|line| line.split(": ").next().unwrap())
        .collect()
}

/// A name that something binds goes before one of `with`.
#[test]
fn names_that_something_binds_are_no_packages() {
    let made = "mkShell { packages = with pkgs; [ python jq null ]; }";
    for (head, form) in [
        (
            "{ pkgs ? import <nixpkgs> { } }:\nlet python = pkgs.python3.withPackages (p: [ p.requests ]);\nin pkgs.",
            DevShellForm::ShellNix,
        ),
        (
            "{ pkgs ? import <nixpkgs> { } }: let\ninherit (import ./python.nix) python;\nin pkgs.",
            DevShellForm::ShellNix,
        ),
        (
            "{ outputs = { nixpkgs, self }: let pkgs = nixpkgs.legacyPackages.x86_64-linux;\npython = pkgs.python3.override { };\nin { devShells.x86_64-linux.default = pkgs.",
            DevShellForm::Flake,
        ),
    ] {
        let end = if form == DevShellForm::Flake {
            "; }; }"
        } else {
            ""
        };
        let (shell, lost) = read_one(form, &[&format!("{head}{made}{end}")]);
        assert_eq!(shell.packages, [["jq"]], "{head}");
        let file = form.files()[0];
        let lines = [2, 3, 3].map(|line| format!("{file}:{line}"));
        assert_eq!(losses(&lost), lines, "{head}: {lost:?}");
        assert!(
            lost[1].ends_with("a package is defined elsewhere: python"),
            "{lost:?}"
        );
    }
    // An argument, and in devenv.nix.
    let (shell, lost) = read_one(
        DevShellForm::ShellNix,
        &["{ pkgs, python, ... }@all: pkgs.mkShell { packages = with pkgs; [ python all jq ]; }"],
    );
    assert_eq!((shell.packages.len(), lost.len()), (1, 2), "{lost:?}");
    let (shell, lost) = read_one(
        DevShellForm::Devenv,
        &[
            "{ pkgs, ... }:\nlet python = import ./python.nix;\nin { packages = with pkgs; [ python jq ]; }",
        ],
    );
    assert_eq!(shell.packages, [["jq"]]);
    assert_eq!(losses(&lost), ["devenv.nix:2", "devenv.nix:3"], "{lost:?}");
}

/// Another nixpkgs, settings, overlays: what makes `pkgs.hello` another package is told.
#[test]
fn what_changes_packages_is_told() {
    let shell = "pkgs.mkShell { packages = [ pkgs.hello ]; }";
    let flake = |before: &str| {
        format!(
            "{{ outputs = {{ self, nixpkgs, other }}:\n{before} {{ devShells.x.default = {shell}; }}; }}"
        )
    };
    let each = |body: &str| {
        format!(
            "{{ outputs = {{ self, nixpkgs, other }}: let\neach = {body};\nin {{ devShells = each (pkgs: {{ default = {shell}; }}); }}; }}"
        )
    };
    let told = [
        (
            DevShellForm::ShellNix,
            format!("{{\npkgs ? import (fetchTarball \"x\") {{ }} }}: {shell}"),
        ),
        (
            DevShellForm::ShellNix,
            format!("{{\npkgs ? import <nixpkgs> {{ config.allowUnfree = true; }} }}: {shell}"),
        ),
        (
            DevShellForm::ShellNix,
            format!("{{\npkgs ? import ./nix {{ }} }}: {shell}"),
        ),
        (
            DevShellForm::ShellNix,
            format!("let\npkgs = import (import ./sources.nix).nixpkgs {{ }}; in {shell}"),
        ),
        (
            DevShellForm::ShellNix,
            format!("\nwith import ./nix {{ }}; {shell}"),
        ),
        (
            DevShellForm::Flake,
            flake("let pkgs = import nixpkgs { system = \"x\"; overlays = [ ]; }; in"),
        ),
        (
            DevShellForm::Flake,
            flake("let pkgs = other.legacyPackages.x; in"),
        ),
        (
            DevShellForm::Flake,
            flake("let pkgs = nixpkgs.legacyPackages.${x}.pkgsStatic; in"),
        ),
        (
            DevShellForm::Flake,
            flake("let pkgs = nixpkgs.legacyPackages.x.extend other; in"),
        ),
        (
            DevShellForm::Flake,
            each(
                "f: nixpkgs.lib.genAttrs [ \"x\" ] (system: f (import nixpkgs { config = { }; }))",
            ),
        ),
        (
            DevShellForm::Flake,
            each("f: nixpkgs.lib.genAttrs [ \"x\" ] (system: f other.legacyPackages.${system})"),
        ),
        (
            DevShellForm::Flake,
            format!(
                "{{ outputs = {{ self, nixpkgs }}: {{\npackages.x.default = 1; devShells.x.default = {shell}; }}; }}"
            ),
        ),
    ];
    for (form, text) in told {
        let (read, lost) = read_one(form, &[&text]);
        assert_eq!(read.packages, [["hello"]], "{text}");
        let line = format!("{}:2", form.files()[0]);
        assert_eq!(losses(&lost), [line], "{text}: {lost:?}");
    }
    let plain = [
        (
            DevShellForm::ShellNix,
            format!("{{ pkgs ? import <nixpkgs> {{ }}, lib ? pkgs.lib }}: {shell}"),
        ),
        (
            DevShellForm::ShellNix,
            format!(
                "{{ system ? builtins.currentSystem, pkgs ? import <nixpkgs> {{ inherit system; }} }}: {shell}"
            ),
        ),
        (
            DevShellForm::ShellNix,
            format!("let pkgs = import <nixpkgs> {{ }}; in {shell}"),
        ),
        (
            DevShellForm::Flake,
            flake("let system = \"x\"; pkgs = inputs.nixpkgs.legacyPackages.${system}; in"),
        ),
        (
            DevShellForm::Flake,
            flake("let pkgs = import nixpkgs { system = \"x\"; }; in"),
        ),
        (
            DevShellForm::Flake,
            each("f: nixpkgs.lib.genAttrs [ \"x\" ] (system: f nixpkgs.legacyPackages.${system})"),
        ),
        (
            DevShellForm::Flake,
            each(
                "f: nixpkgs.lib.genAttrs [ \"x\" ] (system: f (import nixpkgs { inherit system; }))",
            ),
        ),
    ];
    for (form, text) in plain {
        let (read, lost) = read_one(form, &[&text]);
        assert_eq!(read.packages, [["hello"]], "{text}");
        assert!(lost.is_empty(), "{text}: {lost:?}");
    }
}

/// What runs only sometimes is no variable of the shell.
#[test]
fn blocks_of_envrc_are_told() {
    for block in [
        "if x; then\nexport A=1\nelse if y; then\nexport A=2\nfi\nexport A=3\nfi",
        "if x; then export A=1; fi",
        "case x in\n  a) export A=1 ;;\n  (b)\nexport A=2\n;;\nesac",
        "for a in b; do\n export A=1\ndone",
        "while read a\ndo\nexport A=1\ndone <<E\nexport A=2\nE",
        "f() {\nexport A=1\n}",
        "function f {\nexport A=1\n}",
        "f ()\n{\nexport A=1\n}",
        "(\nexport A=1\n)",
        "x && {\nexport A=1\n}",
        "x &&\nexport A=1",
        "x ||\n  export A=1",
        "cat > f <<EOF\nexport A=1\nEOF",
        "cat <<-'EOF' > f\nexport A=1\n\tEOF",
        "cat <<a; cat <<b\nexport A=1\na\nexport A=2\nb",
        "X=$(\nexport A=1\n)",
    ] {
        let text = format!("export B=1\n{block}\nexport C='if'\necho if \"{{\"\nexport D=1\n");
        let (shell, lost) = read_one(DevShellForm::Envrc, &[&text]);
        let names: Vec<_> = shell.variables.keys().map(String::as_str).collect();
        assert_eq!(names, ["B", "C", "D"], "{text}: {lost:?}");
        assert_eq!(
            lost[0].split(": ").next(),
            Some(".envrc:2"),
            "{text}: {lost:?}"
        );
    }
    let (shell, lost) = read_one(
        DevShellForm::Envrc,
        &["export A=$((1<<2))\nexport B=1\nif x; then\nexport C=1\n"],
    );
    assert_eq!(shell.variables.keys().collect::<Vec<_>>(), ["B"]);
    assert_eq!(losses(&lost), [".envrc:1", ".envrc:3"], "{lost:?}");
    let (shell, lost) = read_one(DevShellForm::Envrc, &["export A=1\nreturn\nexport B=1\n"]);
    assert_eq!(shell.variables.keys().collect::<Vec<_>>(), ["A"]);
    assert_eq!(losses(&lost), [".envrc:2"], "{lost:?}");
}

#[test]
fn what_is_no_nix_is_said_with_its_line() {
    for (form, text, wanted) in [
        (
            DevShellForm::Flake,
            "{\n  outputs = ;\n}\n",
            "flake.nix:2: ",
        ),
        (DevShellForm::Flake, "{ }", "flake.nix:1: it has no outputs"),
        (
            DevShellForm::Flake,
            "{ outputs = _: { }; }",
            "flake.nix:1: no call of mkShell",
        ),
        (DevShellForm::ShellNix, "", "shell.nix:1: "),
        (DevShellForm::Devenv, "[ ]", "devenv.nix:1: it is no set"),
    ] {
        let error = read_shell(form, &[Some(text.to_owned())])
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(wanted) && !error.contains('\n'),
            "{error}"
        );
    }
    let texts = [Some("{ }".to_owned()), Some("inputs:\n  a: [\n".to_owned())];
    let error = read_shell(DevShellForm::Devenv, &texts)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("devenv.yaml:") && !error.contains('\n'),
        "{error}"
    );
}

#[test]
fn deep_code_is_no_danger() {
    // As long as the limit lets it be, and much longer.
    for (piece, end) in [
        ("(", ""),
        ("[", ""),
        ("!", "1"),
        ("a ", "a"),
        ("a+", "a"),
        ("a//", "a"),
        (".b", ""),
        ("''${", "a"),
        ("{a=1;} ", "a"),
        ("let a=1; in ", "a"),
        ("a:", "1"),
    ] {
        for bytes in [2900, MAX_NIX_BYTES - 10] {
            let text = format!("a {}{end}", piece.repeat(bytes / piece.len()));
            if let Ok(node) = LiteralNode::parse("x", &text) {
                assert!(node.all().len() < 1000);
            }
        }
    }
    let chain = LiteralNode::parse("x", &format!("\n{}", "a ".repeat(3001))).unwrap_err();
    assert!(
        chain.to_string().starts_with("x:2: more than 3000 words"),
        "{chain}"
    );
    assert!(LiteralNode::parse("x", &" ".repeat(MAX_NIX_BYTES + 1)).is_err());
    let fine = LiteralNode::parse("x", "-5").unwrap();
    assert_eq!(fine.value, LiteralCode::Integer(-5));
}
