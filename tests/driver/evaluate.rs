//! Values are the same from every version.

use super::{FLAKE, Project, Table, read, with_each};
use crate::support::{Rig, VERSIONS, rig};
use serde_json::{Value, json};
use std::{fs, os::unix::fs::PermissionsExt, path::Path};
use tempfile::TempDir;
use tk_nar::fs::remove_tree;
use tk_nix::{EvalOptions, Nix, NixConfig, flake::FlakeMetadata};

#[test]
fn values() {
    let table = Table::new("evaluation by real Nix");
    let ran = with_each(|version, project| {
        for (line, expected) in [
            (
                "eval --expr '{ a = 6 * 7; b = [ 1.5 null true \"x\" ]; }'",
                json!({"a": 42, "b": [1.5, null, true, "x"]}),
            ),
            ("eval --expr '{ a.b = 1; }' -A a.b", json!(1)),
            (
                "eval path:.#value --json",
                json!({"answer": 42, "list": [1, "two", null]}),
            ),
            ("eval path:.#plain.name", json!("plain")),
            (
                "eval -f default.nix -A one.name --argstr suffix -s",
                json!("one-s"),
            ),
            (
                "eval -f default.nix -A one.name --arg suffix '\"-\" + \"t\"'",
                json!("one-t"),
            ),
            (
                "eval --impure --expr 'builtins.getEnv \"HOME\" != \"\"'",
                json!(true),
            ),
            ("eval --expr 'builtins.getEnv \"HOME\"'", json!("")),
        ] {
            assert_eq!(project.json(line), (0, expected), "{version}: {line}");
            table.ok(line, version);
        }
        let raw = project.run("eval path:.#plain.name --raw");
        assert_eq!((raw.status, raw.stdout.as_str()), (0, "plain\n"), "{raw:?}");
        table.ok("eval --raw", version);
        for (line, status, words) in [
            ("eval --expr '1 +'", 1, "syntax error"),
            ("eval path:.#throws", 1, "no such luck"),
            ("eval path:.#valu", 1, "there is no attribute 'valu'"),
            ("eval path:.#plai", 1, "did you mean plain?"),
            ("eval path:.#value --raw", 2, "leave out --raw"),
            ("eval -f default.nix -A onne", 1, "did you mean one?"),
            ("eval -f nowhere.nix -A one", 2, "there is no nowhere.nix"),
            ("eval ./nowhere", 2, "there is no ./nowhere"),
        ] {
            let done = project.run(line);
            assert_eq!(
                (done.status, done.stdout.as_str()),
                (status, ""),
                "{version}: {done:?}"
            );
            assert!(done.stderr.contains(words), "{version}: {line}: {done:?}");
            assert!(!done.stderr.contains('\x1b'), "{version}: {line}: {done:?}");
            table.ok(line, version);
        }
    });
    table.finish(&ran);
}

/// A library's caller gets the same facts about flakes from every version.
#[test]
fn flakes() {
    let table = Table::new("facts about flakes from real Nix");
    let mut ran = Vec::new();
    let mut seen: Vec<(FlakeMetadata, Value)> = Vec::new();
    let folder = TempDir::new().unwrap();
    let (flake, input) = (folder.path().join("flake"), folder.path().join("input"));
    for dir in [&flake, &input] {
        fs::create_dir(dir).unwrap();
    }
    fs::write(
        input.join("flake.nix"),
        "{ outputs = { self }: { x = 1; }; }",
    )
    .unwrap();
    let text = FLAKE.replace(
        "inputs = { };",
        &format!(
            "description = \"small\"; inputs.other.url = \"path:{}\";",
            input.display()
        ),
    );
    let text = text.replace("outputs = { self }:", "outputs = { self, other }:");
    // What evaluates to an error has no place in a listing.
    let text = text.replace("throws = throw \"no such luck\";", "");
    fs::write(flake.join("flake.nix"), text).unwrap();
    let reference = format!("path:{}", flake.display());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for version in VERSIONS {
        let Some(rig) = rig(version) else { continue };
        let root = TempDir::new().unwrap();
        let nix = nix_of(&rig, root.path());
        let options = EvalOptions::default();
        runtime.block_on(async {
            let nix = Nix::find(nix).await.unwrap();
            assert!(
                nix.version().text.starts_with(version),
                "{:?}",
                nix.version()
            );
            let locks = nix
                .flake_lock(&reference, &[], &options, &())
                .await
                .unwrap();
            assert_eq!(
                locks["nodes"]["root"]["inputs"]["other"], "other",
                "{locks}"
            );
            let update = ["other".to_owned()];
            let again = nix
                .flake_lock(&reference, &update, &options, &())
                .await
                .unwrap();
            assert_eq!(locks, again, "{version}: nothing has changed");
            let metadata = nix.flake_metadata(&reference, &options, &()).await.unwrap();
            assert_eq!(metadata.description.as_deref(), Some("small"));
            assert_eq!(metadata.locks, locks, "{version}");
            let show = nix.flake_show(&reference, &options, &()).await.unwrap();
            let plain = &show["packages"]["x86_64-linux"]["plain"];
            assert_eq!(
                (&plain["type"], &plain["name"]),
                (&json!("derivation"), &json!("plain"))
            );
            let settings = nix.settings().await.unwrap();
            assert!(settings["cores"].is_number(), "{version}: {settings:?}");
            assert_eq!(settings["sandbox"], false, "{version}");
            seen.push((metadata, plain.clone()));
        });
        remove_tree(&root.keep()).unwrap();
        for operation in ["flake lock", "flake metadata", "flake show", "settings"] {
            table.ok(operation, version);
        }
        ran.push(version);
    }
    for (metadata, plain) in &seen {
        let (first, first_plain) = &seen[0];
        assert_eq!(
            (&metadata.path, &metadata.locks),
            (&first.path, &first.locks)
        );
        assert_eq!(plain["name"], first_plain["name"]);
    }
    table.finish(&ran);
}

/// Real Nix on a store of its own.
fn nix_of(rig: &Rig, root: &Path) -> NixConfig {
    let command = rig.command("nix");
    let env = command.get_envs();
    let env = env.map(|(name, value)| (name.to_owned(), value.map(Into::into)));
    let mut config = NixConfig::default();
    config.program = command.get_program().into();
    config.store = Some(root.display().to_string());
    config.env = env.collect();
    config
}

/// Those who went their own way are known by their version line, and asked as the Nix they are like.
/// They are played by real Nix here.
#[test]
fn flavours() {
    for (line, version) in [
        ("nix (Lix, like Nix) 2.91.1", "2.26"),
        ("nix (Determinate Nix 3.11.2) 2.34.1", "2.34"),
    ] {
        let Some(project) = Project::start(version) else {
            continue;
        };
        let real = project.daemon.ask("sh", &["-c", "echo $NIX_RIG_BIN/nix"]);
        let script = format!(
            "#!/bin/sh\necho \"$@\" >>{}/asked\ncase $1 in --version) echo '{line}';; *) exec {real} \"$@\";; esac\n",
            project.folder.display()
        );
        let nix = project.write("nix", &script);
        fs::set_permissions(&nix, fs::Permissions::from_mode(0o755)).unwrap();
        let nix = format!("--nix {}", nix.display());
        let (status, built) = project.json(&format!("build path:.#plain --json {nix}"));
        assert_eq!(
            (status, &built[0]["success"]),
            (0, &json!(true)),
            "{line}: {built}"
        );
        let (status, value) = project.json(&format!("eval path:.#value.answer {nix}"));
        assert_eq!((status, value), (0, json!(42)), "{line}");
        // This asks for the settings, whose command was renamed in 2.20.
        let (status, audit) = project.json(&format!("repro audit path:.#plain --json {nix}"));
        assert_eq!(status, 1, "{line}: {audit}");
        let asked = read(project.folder.join("asked"));
        let is_lix = line.contains("Lix");
        assert_eq!(asked.contains("show-config"), is_lix, "{asked}");
        assert_eq!(asked.contains("config show"), !is_lix, "{asked}");
    }
}
