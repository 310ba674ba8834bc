use crate::support::{Rig, each_version, rig};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Output},
};
use tk_nar::fs::remove_tree;
use tk_narinfo::SecretKey;

each_version!(nix_fetches_from_a_cache_that_is_in_use);

/// Real Nix fetches from the cache with the key, and refuses without it; the file keeps what else
/// stood in it, and a second call changes nothing.
fn nix_fetches_from_a_cache_that_is_in_use(version: &'static str) {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let key = SecretKey::generate("test-1").unwrap();
    fs::write(place("secret"), key.to_text().as_str()).unwrap();
    fs::write(place("file"), "content").unwrap();
    let uri = format!("file://{}", place("cache").display());
    let pushed = tk(
        &place(""),
        &[
            "push",
            place("file").to_str().unwrap(),
            "--to",
            &uri,
            "--sign-key",
            place("secret").to_str().unwrap(),
            "--compression",
            "xz",
        ],
    );
    assert!(pushed.status.success(), "{pushed:?}");
    let path = String::from_utf8(pushed.stdout).unwrap().trim().to_owned();
    // Content-addressed paths need no signature: this one is made to need it.
    let mut narinfo = fs::read_dir(place("cache"))
        .unwrap()
        .map(|e| e.unwrap().path());
    let narinfo = narinfo
        .find(|p| p.extension().is_some_and(|e| e == "narinfo"))
        .unwrap();
    let text = fs::read_to_string(&narinfo).unwrap();
    let text: String = text
        .lines()
        .filter(|l| !l.starts_with("CA:"))
        .map(|l| format!("{l}\n"))
        .collect();
    fs::write(&narinfo, text).unwrap();

    let Some(rig) = rig(version) else { return };
    let version = rig.version;
    let conf = place(&format!("nix-{version}.conf"));
    let own = "# mine\nsubstituters = \ncores = 1 # one\nexperimental-features = nix-command";
    fs::write(&conf, own).unwrap();
    let fetch = |name: &str| {
        let store = place(&format!("store-{version}-{name}"));
        let done = fetch(&rig, &conf, &store, &path);
        remove_tree(&store).unwrap();
        done
    };
    let configure = |args: &[&str]| {
        let conf = conf.to_str().unwrap();
        let done = tk(
            &place(""),
            &[&["cache", "use", &uri, "--conf", conf], args].concat(),
        );
        assert!(done.status.success(), "{version}: {done:?}");
    };
    assert!(fetch("before").is_err(), "{version}");
    configure(&[]);
    let refused = fetch("without").unwrap_err();
    assert!(refused.contains("sign"), "{version}: {refused}");
    configure(&[
        "--secret-key",
        place("secret").to_str().unwrap(),
        "--priority",
        "31",
    ]);
    let seen = |file: &Path| {
        let told = fs::metadata(file).unwrap();
        (
            told.ino(),
            told.mtime(),
            told.mtime_nsec(),
            fs::read(file).unwrap(),
        )
    };
    let info = place("cache/nix-cache-info");
    let before = (seen(&conf), seen(&info));
    configure(&[
        "--public-key",
        &key.public().to_string(),
        "--priority",
        "31",
    ]);
    assert_eq!((seen(&conf), seen(&info)), before, "{version}");
    fetch("with").unwrap_or_else(|e| panic!("{version}: {e}"));

    let text = fs::read_to_string(&conf).unwrap();
    assert!(text.starts_with(&format!("{own}\n")), "{text}");
    let secret = key.to_text();
    assert!(!text.contains(secret.as_str()), "{text}");
    assert!(
        fs::read_to_string(&info)
            .unwrap()
            .contains("Priority: 31\n")
    );
    configure(&["--remove"]);
    assert_eq!(fs::read_to_string(&conf).unwrap(), format!("{own}\n"));
    assert!(fetch("after").is_err(), "{version}");
}

/// What cannot be right is refused before anything is written.
#[test]
fn what_is_wrong_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let conf = place("conf");
    let uri = format!("file://{}", place("cache"));
    let run = |uri: &str, args: &[&str]| {
        let done = tk(
            folder.path(),
            &[&["cache", "use", uri, "--conf", &conf], args].concat(),
        );
        assert_eq!(done.status.code(), Some(2), "{done:?}");
        assert!(!Path::new(&conf).exists(), "{done:?}");
        String::from_utf8(done.stderr).unwrap()
    };
    run(&uri, &[]);
    assert!(tk(folder.path(), &["cache", "init", &uri]).status.success());
    let (key, other) = (
        SecretKey::generate("k").unwrap(),
        SecretKey::generate("k").unwrap(),
    );
    fs::write(place("secret"), key.to_text().as_str()).unwrap();
    let public = other.public().to_string();
    let said = run(
        &uri,
        &["--public-key", &public, "--secret-key", &place("secret")],
    );
    assert!(said.contains("does not belong to the secret key"), "{said}");
    let said = run(&uri, &["--public-key", "k:AAAA"]);
    assert!(said.contains("neither a public key"), "{said}");
    let said = run(&place("store"), &[]);
    assert!(
        said.contains("No such file") || said.contains("not"),
        "{said}"
    );
    fs::write(place("cache/nix-cache-info"), "StoreDir: /gnu/store\n").unwrap();
    let said = run(&uri, &[]);
    assert!(said.contains("/gnu/store"), "{said}");
}

fn tk(home: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tk-store"));
    command
        .args(args)
        .env("HOME", home)
        .env("XDG_DATA_HOME", home.join("data"));
    command
        .env("NIX_CONF_DIR", home)
        .env("NIX_USER_CONF_FILES", "");
    command.env_remove("NIX_REMOTE").env_remove("NIX_CONFIG");
    command.output().unwrap()
}

/// Lets Nix fetch `path` into a new store, by the user's nix.conf `conf`.
fn fetch(rig: &Rig, conf: &Path, store: &Path, path: &str) -> Result<(), String> {
    let mut command = rig.command("nix-store");
    command.env("NIX_USER_CONF_FILES", conf);
    // What it remembers of the cache would be of another test.
    command.env("XDG_CACHE_HOME", store.join("memory"));
    let store = store.join("root");
    let out = command
        .arg("--store")
        .arg(&store)
        .args(["-r", path])
        .output()
        .unwrap();
    if out.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&out.stderr).into_owned())
    }
}
