//! The NixOS module, evaluated by real Nix: by a stub of nixpkgs' lib, and by the real one where
//! `TK_NIXPKGS_LIB` names it.

use super::support::{Rig, VERSIONS, rig, skip};
use serde_json::{Value, json};
use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

/// What the module makes of settings, which are Nix code.
fn evaluated(rig: &Rig, settings: &str, package: Option<&Path>) -> Result<Value, String> {
    evaluated_with(rig, settings, package, None)
}

fn evaluated_with(
    rig: &Rig,
    settings: &str,
    package: Option<&Path>,
    lib: Option<&str>,
) -> Result<Value, String> {
    let stub = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/module/stub.nix");
    let package = package.map_or("null".into(), |package| {
        let place = package.display();
        format!("{{ type = \"derivation\"; outPath = \"{place}\"; }}")
    });
    let code = format!(
        "import {} {{ settings = {settings}; package = {package}; realLib = {}; }}",
        stub.display(),
        lib.unwrap_or("null"),
    );
    let store = TempDir::new().unwrap();
    let mut command = rig.command("nix-instantiate");
    command.args([
        "--eval",
        "--strict",
        "--json",
        "--read-write-mode",
        "--store",
    ]);
    command.arg(store.path()).args(["-E", &code]);
    let out = rig.try_run(&mut command)?;
    Ok(serde_json::from_slice(&out).expect("JSON"))
}

const SETTINGS: &str = r#"{
  enable = true;
  config = { model = "large"; limits.builds = 4; passwordFile = "/run/p"; };
  secrets = { api-key = "/run/secrets/key"; other = "/run/secrets/other"; };
}"#;

/// A package as far as systemd looks at it.
fn package() -> TempDir {
    let folder = TempDir::new().unwrap();
    let program = folder.path().join("bin/tachikoma");
    fs::create_dir(folder.path().join("bin")).unwrap();
    fs::write(&program, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

/// The unit as NixOS writes it.
fn unit(service: &Value) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let words = |value: &Value| {
        let words: Vec<_> = value.as_array().unwrap().iter().map(text).collect();
        words.join(" ")
    };
    let mut unit = format!(
        "[Unit]\nDescription={}\nAfter={}\n\n[Service]\n",
        text(&service["description"]),
        words(&service["after"])
    );
    for (name, value) in service["environment"].as_object().unwrap() {
        unit += &format!("Environment=\"{name}={}\"\n", text(value));
    }
    for (name, value) in service["serviceConfig"].as_object().unwrap() {
        let all = value.as_array().cloned().unwrap_or(vec![value.clone()]);
        for one in &all {
            unit += &format!("{name}={}\n", text(one));
        }
    }
    unit + &format!("\n[Install]\nWantedBy={}\n", words(&service["wantedBy"]))
}

#[test]
fn a_unit_is_made_of_settings() {
    let package = package();
    for version in VERSIONS {
        let Some(rig) = rig(version) else { continue };
        let made = evaluated(&rig, SETTINGS, Some(package.path())).unwrap();
        assert_eq!(made["failed"], json!([]), "{version}");
        let service = &made["services"]["tachikoma"];
        let own = &service["serviceConfig"];
        let program = format!("{}/bin/tachikoma agent", package.path().display());
        assert_eq!(own["ExecStart"], program.as_str());
        assert_eq!(own["Restart"], "always");
        assert_eq!(own["StateDirectory"], "tachikoma");
        let credentials = ["api-key:/run/secrets/key", "other:/run/secrets/other"];
        assert_eq!(own["LoadCredential"], json!(credentials));
        assert_eq!(service["after"], json!(["network.target"]));
        assert_eq!(service["wantedBy"], json!(["multi-user.target"]));
        let off = evaluated(&rig, "{ secrets.x = \"bad\"; }", None).unwrap();
        assert_eq!(off, json!({"failed": [], "services": {}}));
    }
}

#[test]
fn the_real_library_makes_the_same_unit() {
    let Some(lib) = env::var("TK_NIXPKGS_LIB").ok() else {
        return skip(
            "the module by nixpkgs' own lib",
            "TK_NIXPKGS_LIB names none",
        );
    };
    let Some(rig) = rig("2.34") else { return };
    let package = package();
    for settings in [
        SETTINGS,
        "{ enable = true; secrets.\"a b\" = \"x\"; stateDirectory = \"/y\"; }",
    ] {
        let stub = evaluated(&rig, settings, Some(package.path())).unwrap();
        let real = evaluated_with(&rig, settings, Some(package.path()), Some(&lib)).unwrap();
        assert_eq!(real, stub);
    }
}

#[test]
fn bad_settings_fail_with_a_sentence() {
    let Some(rig) = rig("2.34") else { return };
    for (settings, words) in [
        ("", "services.tachikoma.package is not set"),
        (
            "secrets.k = \"k\";",
            "services.tachikoma.secrets.k is 'k', which is not the absolute place",
        ),
        ("secrets.k = \"/a/../b\";", "not the absolute place"),
        ("secrets.k = \"/a b\";", "not the absolute place"),
        ("secrets.k = \"/a%b\";", "not the absolute place"),
        (
            "secrets.\"a/b\" = \"/k\";",
            "has a name that systemd does not take",
        ),
        (
            "secrets.k = \"${builtins.storeDir}/x\";",
            "keep the file outside of the store",
        ),
        (
            "secrets.k = \"${./stub.nix}\";",
            "keep the file outside of the store",
        ),
        (
            "config.llm.apiKey = \"x\";",
            "services.tachikoma.config.llm.apiKey would be readable",
        ),
        (
            "config.all = [ { token = \"x\"; } ];",
            "services.tachikoma.config.all.token would be readable",
        ),
        (
            "stateDirectory = \"/var/lib/x\";",
            "which is not the name of a folder below /var/lib",
        ),
        (
            "stateDirectory = \"../x\";",
            "which is not the name of a folder below /var/lib",
        ),
    ] {
        let code = format!("{{ enable = true; {settings} }}");
        let code = code.replace(
            "./stub.nix",
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/module/stub.nix"),
        );
        let made = evaluated(&rig, &code, None).unwrap();
        let failed = made["failed"].as_array().unwrap();
        let found = failed
            .iter()
            .filter_map(Value::as_str)
            .find(|f| f.contains(words));
        assert!(
            found.is_some_and(|f| f.ends_with('.')),
            "{settings}: {failed:?}"
        );
        assert_eq!(made["services"], json!({}), "{settings}");
    }
    for settings in [
        "enabled = true;",
        "config = 1; secrets = [ ];",
        "stateDirectory = 1;",
    ] {
        let code = format!("{{ enable = true; {settings} }}");
        assert!(evaluated(&rig, &code, None).is_err(), "{settings}");
    }
}

#[test]
fn a_secret_is_known_by_its_name() {
    let Some(rig) = rig("2.34") else { return };
    let failed = |config: &str| {
        let code = format!("{{ enable = true; config = {{ {config} }}; }}");
        let made = evaluated(&rig, &code, Some(package().path()));
        let made = made.unwrap_or_else(|error| panic!("{config}: {error}"));
        made["failed"].as_array().unwrap().len()
    };
    // As a derivation, it has itself in it.
    let derivation = "(let own = { outPath = \"/x\"; out = own; }; in own)";
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/module/stub.nix");
    let names = "password dbPasswd PASSPHRASE secret clientSecrets token tokens auth_token credentials apiKey \
        api-key API_KEYS access_key secret_key secretKey secretAccessKey private-key signKey signing_key \
        encryption_key OWN_KEY";
    let secrets = names
        .split_whitespace()
        .map(|name| format!("a.{name} = \"x\";"));
    let other_kinds = [
        "tokens = [ \"x\" ];".to_owned(),
        "all = [ { api_keys = [ \"x\" ]; } ];".to_owned(),
        format!("password = {file};"),
        format!("token = {derivation};"),
        "token.__toString = _: \"x\";".to_owned(),
    ];
    for config in secrets.chain(other_kinds) {
        assert_eq!(failed(&config), 1, "{config}");
    }
    for config in [
        "passwordFile = \"/run/x\"; token.file = \"/run/x\"; max_tokens = 4096;",
        "keyboard = \"x\"; monkey = \"x\"; secretary = \"x\"; publicKey = \"x\"; token = \"\";",
        &format!("tool = {derivation}; folder = {file}; all = [ ({derivation}) ];"),
    ] {
        assert_eq!(failed(config), 0, "{config}");
    }
}

/// What is written to the store while the module is evaluated holds no credential, nor the place of one.
#[test]
fn no_secret_is_in_a_store_path() {
    let Some(rig) = rig("2.34") else { return };
    let package = package();
    let folder = TempDir::new().unwrap();
    let secret = folder.path().join("key");
    fs::write(&secret, "very secret").unwrap();
    let settings = SETTINGS.replace("/run/secrets/key", &secret.to_string_lossy());
    let store = TempDir::new().unwrap();
    let stub = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/module/stub.nix");
    let code = format!(
        "import {} {{ settings = {settings}; package = {{ outPath = \"{}\"; }}; }}",
        stub.display(),
        package.path().display()
    );
    let mut command = rig.command("nix-instantiate");
    command.args([
        "--eval",
        "--strict",
        "--json",
        "--read-write-mode",
        "--store",
    ]);
    rig.try_run(command.arg(store.path()).args(["-E", &code]))
        .unwrap();
    let files = fs::read_dir(store.path().join("nix/store")).unwrap();
    let files = files
        .map(|file| file.unwrap().path())
        .filter(|path| path.is_file());
    let texts: Vec<_> = files
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    assert!(
        texts
            .iter()
            .any(|text| text.contains("\"limits\":{\"builds\":4}")),
        "{texts:?}"
    );
    for text in texts {
        assert!(!text.contains("very secret"), "{text}");
    }
}

#[test]
fn systemd_takes_the_unit() {
    let Some(rig) = rig("2.34") else { return };
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        return skip("the unit by systemd-analyze", "there is no systemd-analyze");
    }
    let package = package();
    let made = evaluated(&rig, SETTINGS, Some(package.path())).unwrap();
    let text = unit(&made["services"]["tachikoma"]);
    let folder = TempDir::new().unwrap();
    let verify = |text: &str| -> Output {
        let file: PathBuf = folder.path().join("tachikoma.service");
        fs::write(&file, text).unwrap();
        let mut verify = Command::new("systemd-analyze");
        // Without it unknown keys are told, and all is well.
        verify.args(["verify", "--recursive-errors=no"]).arg(&file);
        verify.output().unwrap()
    };
    let done = verify(&text);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    if said.contains("unrecognized option") {
        return skip(
            "the unit by systemd-analyze",
            "it has no --recursive-errors",
        );
    }
    assert!(done.status.success(), "{said}\n{text}");
    assert!(!said.contains("tachikoma.service"), "{said}");
    let typo = verify(&text.replace("ProtectHome=", "ProtectHomes="));
    assert!(!typo.status.success(), "a typo is seen");

    let mut rate = Command::new("systemd-analyze");
    rate.args(["security", "--offline=true", "--threshold=30", "--no-pager"]);
    let rated = rate.arg(folder.path().join("tachikoma.service"));
    fs::write(folder.path().join("tachikoma.service"), &text).unwrap();
    let rated = rated.output().unwrap();
    assert!(
        rated.status.success(),
        "{}",
        String::from_utf8_lossy(&rated.stdout)
    );
}
