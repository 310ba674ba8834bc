//! Flakes that are made: what they say, that they are Nix, that Nix evaluates them.

use super::{
    small_projects::{CARGO_LOCK, PROJECTS, SmallProject, project, write_stub},
    support::{Rig, VERSIONS, every_nix_parses, rig, skip, test_name},
};
use serde_json::Value;
use std::{fs, path::Path, process::Command};
use tk_project::{
    detect::{DetectError, detect},
    flake_facts::{FlakeFact, FlakeFactKind, FlakeReason},
    flake_merge::{
        ExistingFlake, FlakeChange, FlakeLineReason, FlakePlan, FlakeRefusal, plan_flake,
    },
    nix_literal::syntax_error,
};

fn plan(folder: &Path, there: Option<&str>) -> Result<FlakePlan, FlakeRefusal> {
    let found = detect(folder).unwrap_or_else(|e| panic!("{e}"));
    plan_flake(there, found.facts, ExistingFlake::Keep)
}

fn made(small: &SmallProject) -> String {
    let folder = small.write();
    // The name of the folder is in some.
    let folder = folder.path().join("named");
    fs::create_dir(&folder).unwrap();
    small.write_to(&folder);
    plan(&folder, None).unwrap().text
}

#[test]
fn made_flakes_are_laid_out_and_parse_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    for small in PROJECTS {
        let text = made(small);
        assert_eq!(nixfmt_rs::format(&text).unwrap(), text, "{}", small.name);
        assert!(
            rnix::Root::parse(&text).errors().is_empty(),
            "{}",
            small.name
        );
        let name = format!("{}.nix", small.name);
        fs::write(folder.path().join(&name), &text).unwrap();
        names.push(name);
    }
    every_nix_parses(folder.path(), &names);
}

/// Every output of every flake, in one evaluation, against the stub of nixpkgs.
#[test]
fn nix_evaluates_every_output() {
    let folder = tempfile::tempdir().unwrap();
    write_stub(folder.path());
    let stub = format!("path:{}/nixpkgs", folder.path().display());
    for small in PROJECTS {
        let at = folder.path().join(small.name);
        fs::create_dir(&at).unwrap();
        small.write_to(&at);
        let mut facts = detect(&at).unwrap().facts;
        facts.push(FlakeFact {
            what: FlakeFactKind::Nixpkgs(stub.clone()),
            because: FlakeReason::new("", "the test", None),
        });
        let text = plan_flake(None, facts, ExistingFlake::Keep).unwrap().text;
        let overlay = format!("path:{}/rust-overlay", folder.path().display());
        let text = text.replace("github:oxalica/rust-overlay", &overlay);
        fs::write(at.join("flake.nix"), text).unwrap();
    }
    let names: Vec<_> = PROJECTS
        .iter()
        .map(|small| format!("{:?}", small.name))
        .collect();
    let code = format!(
        "let s = \"x86_64-linux\"; drvs = builtins.mapAttrs (_: p: p.drvPath);
           of = name: let f = builtins.getFlake \"path:{}/${{name}}\"; in {{
             inherit name; value = {{
               shell = drvs f.devShells.${{s}}; packages = drvs (f.packages.${{s}} or {{ }}); checks = drvs f.checks.${{s}};
               formatter = f.formatter.${{s}}.drvPath;
             elsewhere = [ (drvs f.devShells.aarch64-darwin) (drvs (f.packages.aarch64-darwin or {{ }})) ]; }}; }};
         in builtins.listToAttrs (map of [ {} ])",
        folder.path().display(),
        names.join(" ")
    );
    for version in VERSIONS {
        let Some(rig) = rig(version) else { continue };
        // getFlake of 2.8 makes no locks.
        for small in PROJECTS {
            let flake = format!("path:{}/{}", folder.path().display(), small.name);
            let mut lock = rig.command("nix");
            let store = folder.path().join(format!("store-{}", rig.version));
            lock.args(["flake", "lock", &flake, "--store"]).arg(store);
            rig.try_run(&mut lock).unwrap_or_else(|e| panic!("{e}"));
        }
        let found = evaluate(&rig, folder.path(), &code);
        for small in PROJECTS {
            let of = &found[small.name];
            assert!(
                of["shell"]["default"].is_string(),
                "{} with {version}",
                small.name
            );
            assert!(of["formatter"].is_string());
            let elsewhere = &of["elsewhere"][0]["default"];
            assert!(elsewhere.is_string() && *elsewhere != of["shell"]["default"]);
        }
        let names = |of: &str| -> Vec<String> {
            let packages = found[of]["packages"].as_object().unwrap();
            packages.keys().cloned().collect()
        };
        assert_eq!(names("rust"), ["default", "demo"]);
        assert_eq!(names("go"), ["default", "hello"]);
        assert_eq!(
            names("several"),
            ["default", "or", "several", "several-nodePackage"]
        );
        let checks = found["rust"]["checks"].as_object().unwrap();
        assert_eq!(
            checks.keys().collect::<Vec<_>>(),
            ["clippy", "nixFormat", "rustFormat", "rustPackage"]
        );
        assert!(
            found["uv"]["packages"]["tool"]
                .as_str()
                .unwrap()
                .ends_with("-tool-0.1.0.drv")
        );
        assert!(
            found["rust-nightly"]["packages"]["night"]
                .as_str()
                .unwrap()
                .ends_with("-night-2.0.0.drv")
        );
    }
}

fn evaluate(rig: &Rig, folder: &Path, code: &str) -> Value {
    fs::write(folder.join("x.nix"), code).unwrap();
    let mut command = rig.command("nix");
    let store = folder.join(format!("store-{}", rig.version));
    command
        .args(["eval", "--impure", "--json", "--store"])
        .arg(&store)
        .args(["--file", "x.nix"]);
    let out = rig
        .try_run(command.current_dir(folder))
        .unwrap_or_else(|e| panic!("{e}"));
    serde_json::from_slice(&out).unwrap()
}

/// As people do it: the default nixpkgs, overridden, without network.
#[test]
fn nix_locks_and_evaluates_with_an_overridden_nixpkgs() {
    for version in VERSIONS {
        let Some(rig) = rig(version) else { continue };
        let folder = tempfile::tempdir().unwrap();
        write_stub(folder.path());
        let at = folder.path().join("p");
        fs::create_dir(&at).unwrap();
        let small = project("rust-nightly");
        small.write_to(&at);
        fs::write(at.join("flake.nix"), plan(&at, None).unwrap().text).unwrap();
        let store = folder.path().join("store");
        for (command, rest) in [
            ("lock", ""),
            ("eval", "#devShells.x86_64-linux.default.drvPath"),
        ] {
            let flake = format!("path:{}{rest}", at.display());
            let mut nix = rig.command("nix");
            if command == "lock" {
                nix.arg("flake");
            }
            nix.args([command, &flake, "--store"]).arg(&store);
            for input in ["nixpkgs", "rust-overlay"] {
                let to = format!("path:{}/{input}", folder.path().display());
                nix.args(["--override-input", input, &to]);
            }
            rig.try_run(&mut nix).unwrap_or_else(|e| panic!("{e}"));
        }
        let lock = fs::read_to_string(at.join("flake.lock")).unwrap();
        let lock: Value = serde_json::from_str(&lock).unwrap();
        assert_eq!(
            lock["nodes"]["rust-overlay"]["inputs"]["nixpkgs"],
            serde_json::json!(["nixpkgs"])
        );
    }
}

#[test]
fn made_again_it_is_the_same_and_one_dependency_is_its_own_lines() {
    for small in PROJECTS {
        let folder = small.write();
        let first = plan(folder.path(), None).unwrap();
        let again = plan(folder.path(), Some(&first.text)).unwrap();
        assert_eq!(
            (again.change, &again.text),
            (FlakeChange::Same, &first.text),
            "{}",
            small.name
        );
    }
    let folder = project("rust").write();
    let before = plan(folder.path(), None).unwrap().text;
    let more = CARGO_LOCK.replace(
        "version = 4\n",
        "version = 4\n\n[[package]]\nname = \"libz-sys\"\nversion = \"1.1.0\"\n",
    );
    fs::write(folder.path().join("Cargo.lock"), more).unwrap();
    let after = plan(folder.path(), Some(&before)).unwrap();
    assert_eq!(after.change, FlakeChange::Updated);
    let kept: Vec<_> = after
        .text
        .lines()
        .filter(|line| !line.contains("zlib"))
        .collect();
    assert_eq!(kept, before.lines().collect::<Vec<_>>());
    assert_eq!(after.text.lines().count(), before.lines().count() + 2);
}

#[test]
fn what_people_changed_stays() {
    let folder = project("rust").write();
    let first = plan(folder.path(), None).unwrap().text;
    let by_hand = first.replace(
        "            pkgs.cargo\n",
        "            pkgs.cargo\n            pkgs.hello # mine\n",
    );
    assert_ne!(by_hand, first);
    // Nothing new: the file stays as it is.
    let same = plan(folder.path(), Some(&by_hand)).unwrap();
    assert_eq!((same.change, &same.text), (FlakeChange::Same, &by_hand));
    // Something new elsewhere: both.
    let more = CARGO_LOCK.replace(
        "version = 4\n",
        "version = 4\n\n[[package]]\nname = \"libz-sys\"\nversion = \"1.1.0\"\n",
    );
    fs::write(folder.path().join("Cargo.lock"), more).unwrap();
    let merged = plan(folder.path(), Some(&by_hand)).unwrap();
    assert_eq!(merged.change, FlakeChange::Merged);
    assert!(merged.text.contains("pkgs.hello # mine\n") && merged.text.contains("pkgs.zlib\n"));
    let hand = merged.lines.iter().zip(merged.text.lines());
    let hand: Vec<_> = hand
        .filter(|(why, _)| **why == FlakeLineReason::ByHand)
        .map(|(_, line)| line.trim())
        .collect();
    assert_eq!(hand, ["pkgs.hello # mine"]);
    assert_eq!(
        plan(folder.path(), Some(&merged.text)).unwrap().change,
        FlakeChange::Same
    );
    // The same place: refused, with the line.
    let clash = first.replace("pkgs.openssl", "pkgs.libressl");
    let refused = plan(folder.path(), Some(&clash)).unwrap_err();
    let line = clash
        .lines()
        .position(|line| line.contains("pkgs.libressl"))
        .unwrap()
        + 1;
    match refused {
        FlakeRefusal::Conflict { line: said } => {
            assert!(said.abs_diff(line) <= 1, "{said} for {line}")
        }
        other => panic!("{other}"),
    }
}

/// What somebody wrote and what a dependency brings stand apart, and Nix takes a name once.
#[test]
fn a_merge_that_nix_would_refuse_is_refused() {
    let folder = project("rust").write();
    let lock = "version = 4\n\n[[package]]\nname = \"demo\"\nversion = \"0.3.1\"\n";
    fs::write(folder.path().join("Cargo.lock"), lock).unwrap();
    let first = plan(folder.path(), None).unwrap().text;
    let pname = "        pname = \"demo\";\n";
    assert!(first.contains(pname), "{first}");
    fs::write(folder.path().join("Cargo.lock"), CARGO_LOCK).unwrap();
    for (line, name) in [
        ("buildInputs = [ pkgs.sqlite ];", "buildInputs"),
        ("nativeBuildInputs = [ ];", "nativeBuildInputs"),
    ] {
        let by_hand = first.replace(pname, &format!("{pname}        {line}\n"));
        let refused = plan(folder.path(), Some(&by_hand)).unwrap_err();
        let FlakeRefusal::Broken(words) = &refused else {
            panic!("{refused}");
        };
        let wanted = format!("the attribute \"{name}\" stands there twice");
        assert!(
            words.starts_with("line ") && words.ends_with(&wanted),
            "{words}"
        );
    }
}

/// As real Nix: which names may come again.
#[test]
fn names_that_come_again_are_refused_as_nix_does() {
    let cases = [
        ("{ a = 1; b = { a = 2; }; c = [ { a = 3; } ]; }", None),
        ("{ a.b = 1; a.c = 2; a = { d = 3; }; }", None),
        ("{ a = { b = 1; }; a = ({ c = 2; }); a.d = 3; }", None),
        ("let a.b = 1; a.c = 2; in a", None),
        ("{ \"a\" = 1;\n a = 2; }", Some((2, "a"))),
        ("{ a.b = 1;\n a = { b = 2; }; }", Some((2, "a.b"))),
        ("{ a = 1;\n a.b = 2; }", Some((2, "a"))),
        ("{ a.b = 1;\n a.b.c = 2; }", Some((2, "a.b"))),
        (
            "{ a = { b.c = 1; };\n a = { b.d = 2; }; }",
            Some((2, "a.b")),
        ),
        ("let a = 1;\n a = 2; in a", Some((2, "a"))),
        ("x: { inherit x;\n x = 1; }", Some((2, "x"))),
        (
            "x: { y = [ (rec { z.x = 1;\n z.x = 1; }) ]; }",
            Some((2, "z.x")),
        ),
        ("{ a = {\n b = 1;\n b = 2; }; }", Some((3, "b"))),
    ];
    for (text, wanted) in cases {
        let found = syntax_error(text).unwrap();
        let wanted =
            wanted.map(|(line, name)| (line, format!("the attribute {name:?} stands there twice")));
        assert_eq!(found, wanted, "{text}");
    }
    for version in VERSIONS {
        let Some(rig) = rig(version) else { continue };
        for (text, wanted) in cases {
            let mut command = rig.command("nix-instantiate");
            command.args(["--parse", "--store", "dummy://", "-E", text]);
            let taken = rig.try_run(&mut command).is_ok();
            // Sets below sets are joined since some version after 2.8: what one of them refuses is refused.
            if version == "2.8" || !text.contains("a = { b.d = 2; }") {
                assert_eq!(taken, wanted.is_none(), "{version}: {text}");
            }
        }
    }
}

#[test]
fn what_others_made_stays() {
    let folder = project("rust").write();
    let text = "{ outputs = _: { }; }\n";
    assert_eq!(
        plan(folder.path(), Some(text)).unwrap_err(),
        FlakeRefusal::NotOurs
    );
    let facts = detect(folder.path()).unwrap().facts;
    let replaced = plan_flake(Some(text), facts, ExistingFlake::Replace).unwrap();
    assert_eq!(replaced.change, FlakeChange::Replaced);
    let newer = replaced.text.replace("form 1", "form 99");
    assert_eq!(
        plan(folder.path(), Some(&newer)).unwrap_err(),
        FlakeRefusal::OtherForm("99".into())
    );
    let broken = replaced.text.replace("#: {\"description\"", "#: {\"descr");
    let refused = plan(folder.path(), Some(&broken)).unwrap_err();
    assert!(
        matches!(refused, FlakeRefusal::BrokenRecipe { .. }),
        "{refused}"
    );
}

#[test]
fn every_package_and_line_has_its_reason() {
    let folder = project("rust").write();
    let made = plan(folder.path(), None).unwrap();
    assert_eq!(made.lines.len(), made.text.lines().count());
    let why = |text: &str| {
        let at = made
            .text
            .lines()
            .position(|line| line.contains(text))
            .unwrap();
        match &made.lines[at] {
            FlakeLineReason::Project(reasons) => reasons.iter().map(ToString::to_string).collect(),
            other => vec![format!("{other:?}")],
        }
    };
    assert_eq!(why("pkgs.openssl"), ["Cargo.lock:11 openssl-sys"]);
    assert_eq!(why("pname = "), ["Cargo.toml:2 package.name"]);
    assert_eq!(why("pkgs.clippy\n".trim()), ["Cargo.toml:2 package.name"]);
    assert_eq!(why("formatter"), ["Every"]);
    // A package without a reason would be one that nobody asked for.
    for small in PROJECTS {
        let folder = small.write();
        let made = plan(folder.path(), None).unwrap();
        for (line, why) in made.text.lines().zip(&made.lines) {
            let is_package = line.trim().starts_with("pkgs.") && !line.contains(['=', ':']);
            assert!(
                !is_package || matches!(why, FlakeLineReason::Project(_)),
                "{}: {line}",
                small.name
            );
        }
    }
}

#[test]
fn notes_say_what_no_file_decides() {
    let said = |name: &str| -> Vec<String> {
        let found = detect(project(name).write().path()).unwrap();
        found.notes.iter().map(ToString::to_string).collect()
    };
    let has = |notes: Vec<String>, start: &str| {
        assert!(
            notes.iter().any(|note| note.starts_with(start)),
            "{notes:?}"
        )
    };
    has(
        said("rust-library-without-lock"),
        "Cargo.toml:2 package.name: there is no Cargo.lock",
    );
    has(
        said("rust-workspace"),
        "Cargo.lock:12 strange-sys: this crate may need a C library",
    );
    has(
        said("cmake"),
        "CMakeLists.txt:5 nobody-knows: no package of nixpkgs is known",
    );
    has(
        said("tool-versions"),
        ".tool-versions:4 nobodyknows: no package of nixpkgs is known",
    );
    has(said("pnpm"), "pnpm-lock.yaml: only with package-lock.json");
}

#[test]
fn bad_projects_are_said_with_file_and_line() {
    for (files, wanted) in [
        (&[("x", "")][..], "no project that is known here"),
        (
            &[("Cargo.toml", "[package]\nname = \"a\"\nversion = 1 2\n")],
            "Cargo.toml:3: ",
        ),
        (
            &[("Cargo.toml", "[lib]\n")],
            "Cargo.toml:1: neither [package] nor [workspace]",
        ),
        (
            &[("Cargo.toml", "\n[package]\nversion = \"1\"\n")],
            "Cargo.toml:2: [package] has no name",
        ),
        (
            &[("package.json", "{\n  \"name\": \"a\",\n}\n")],
            "package.json:3: ",
        ),
        (
            &[("go.mod", "go 1.24\n")],
            "go.mod:1: no line says which module",
        ),
        (&[("pyproject.toml", "[project\n")], "pyproject.toml:1: "),
        (
            &[(".tool-versions", "\nnode\n")],
            ".tool-versions:2: \"node\" has no version",
        ),
        (&[("meson.build", "x = 1\n")], "meson.build:1: "),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let error = detect(folder.path()).unwrap_err().to_string();
        assert!(error.contains(wanted) && !error.contains('\n'), "{error}");
    }
    let error = detect(Path::new("/nowhere/at/all")).unwrap_err();
    assert!(matches!(error, DetectError::Unreadable { .. }), "{error}");
}

/// Projects that cargo and npm make, where these are.
#[test]
fn projects_of_real_tools_are_understood() {
    let folder = tempfile::tempdir().unwrap();
    let made = |below: &str, program: &str, lines: &[&str]| {
        let folder = folder.path().join(below);
        fs::create_dir_all(&folder).unwrap();
        let ran = lines.iter().all(|line| {
            let mut command = Command::new(program);
            command.args(line.split(' ')).current_dir(&folder);
            command.env("npm_config_cache", folder.join("cache"));
            command.output().is_ok_and(|out| out.status.success())
        });
        if !ran {
            skip(
                &format!("{} with {program}", test_name()),
                "it is not there, or not without network",
            );
        }
        ran
    };
    let cargo = [
        "new --vcs none --name made rs",
        "generate-lockfile --offline --manifest-path rs/Cargo.toml",
    ];
    if made("", env!("CARGO"), &cargo) {
        let text = plan(&folder.path().join("rs"), None).unwrap().text;
        assert!(
            text.contains("pname = \"made\";") && text.contains("meta.mainProgram = \"made\";"),
            "{text}"
        );
    }
    if made(
        "js",
        "npm",
        &["init -y", "install --package-lock-only --offline"],
    ) {
        let text = plan(&folder.path().join("js"), None).unwrap().text;
        assert!(
            text.contains("pkgs.buildNpmPackage {") && text.contains("dontNpmBuild = true;"),
            "{text}"
        );
    }
}
