//! Runs the examples one after the other, as a user would.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tk_open::{OpenOptions, OpenSettings, SecretKey, StoreExt, StorePath, open, open_with};

/// The built example, which cargo puts beside the tests.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    profile.join("examples").join(name)
}

fn run<A: AsRef<OsStr>>(home: &Path, name: &str, args: impl IntoIterator<Item = A>) -> Output {
    let mut command = Command::new(example(name));
    command.env_clear().env("HOME", home).args(args);
    command.output().unwrap()
}

fn stdout(output: &Output) -> &str {
    assert!(output.stderr.is_empty(), "{output:?}");
    std::str::from_utf8(&output.stdout).unwrap().trim_end()
}

#[test]
fn a_folder_is_hashed_pushed_found_and_pulled() {
    let temp = tempfile::tempdir().unwrap();
    let home = temp.path();
    let text = |name: &str| home.join(name).to_str().unwrap().to_owned();
    fs::create_dir(home.join("site")).unwrap();
    fs::write(home.join("site/index.html"), "hello").unwrap();
    let key = SecretKey::generate("example-1").unwrap();
    fs::write(home.join("key"), key.to_text().as_bytes()).unwrap();
    let cache = format!("file://{}", text("cache"));

    let hashed = run(home, "hash", [text("site")]);
    // What `nix hash path` prints.
    assert_eq!(stdout(&hashed), SITE);

    let args = [&text("site"), "site", &cache, &text("key")].map(str::to_owned);
    let pushed = run(home, "push_folder", args);
    let path = stdout(&pushed).to_owned();
    assert!(path.ends_with("-site"), "{path}");

    let found = run(home, "is_cached", [&cache, &path]);
    assert_eq!((found.status.code(), stdout(&found)), (Some(0), ""));
    let other = path.replace("-site", "-other");
    let found = run(home, "is_cached", [&cache, &path, &other]);
    assert_eq!(found.status.code(), Some(1));

    let store = text("store");
    // Its content makes the path of a folder, so that it needs nobody's signature.
    let stranger = SecretKey::generate("example-1").unwrap().public();
    let elsewhere = text("elsewhere");
    let pulled = run(
        home,
        "pull",
        [&path, &cache, &elsewhere, &stranger.to_string()],
    );
    assert_eq!(stdout(&pulled), "fetched 1, failed 0");
    let pulled = run(
        home,
        "pull",
        [&path, &cache, &store, &key.public().to_string()],
    );
    assert_eq!(stdout(&pulled), "fetched 1, failed 0");
    let real = format!("{store}{path}/index.html");
    assert_eq!(fs::read_to_string(real).unwrap(), "hello");
}

#[test]
fn the_five_jobs_of_the_book_run() {
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir(temp.path().join("site")).unwrap();
    fs::write(temp.path().join("site/index.html"), "hello").unwrap();
    let mut command = Command::new(example("five_jobs"));
    let output = command.current_dir(temp.path()).output().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let book = fs::read_to_string(root.join("../../docs/embedding.md")).unwrap();
    let shown = format!("```text\n{}\n```", stdout(&output));
    assert!(book.contains(&shown), "{shown}");
    let program = fs::read_to_string(root.join("examples/five_jobs.rs")).unwrap();
    let (_, program) = program.split_once("\n\n").unwrap();
    assert!(book.contains(program), "the book shows another program");
}

#[test]
fn settings_do_not_show_secrets() {
    let temp = tempfile::tempdir().unwrap();
    let conf = temp.path().join("nix.conf");
    fs::write(&conf, "access-tokens = github.com=secret\n").unwrap();
    let mut settings = OpenSettings::default();
    let variables = [
        ("NIX_CONF_DIR", temp.path().to_str().unwrap()),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];
    let variables = variables.map(|(name, value)| (name.into(), value.into()));
    settings.environment.variables = variables.into();
    let places = settings.environment.conf_places();
    settings.nix_conf = tk_open::nix_conf::NixConf::load(&places).unwrap();
    let shown = format!("{settings:?}");
    assert!(
        shown.contains("access-tokens") && shown.contains("AWS_SECRET"),
        "{shown}"
    );
    assert!(!shown.contains("secret"), "{shown}");
}

#[tokio::test]
async fn default_settings_read_nothing_of_the_machine() {
    let temp = tempfile::tempdir().unwrap();
    let settings = OpenSettings::default();
    assert_eq!(settings.store_uri(), "auto");
    assert!(settings.environment.cache_folder().is_err());
    let uri = temp.path().join("store").to_str().unwrap().to_owned();
    // Who only reads makes no store.
    let error = open(&uri, &settings).await.unwrap_err().to_line();
    assert!(
        error.starts_with(&format!("cannot open the store {uri}: ")),
        "{error}"
    );
    let store = open_with(&uri, &settings, &OpenOptions::to_write())
        .await
        .unwrap();
    let absent = StorePath::parse(&format!("{}-a", "0".repeat(32))).unwrap();
    assert_eq!(store.store().info(&absent).await.unwrap(), None);
    let error = open("nothing://x", &settings).await.unwrap_err().to_line();
    assert!(error.contains("no kind of store 'nothing://'"), "{error}");
}

const SITE: &str = "sha256-A1FHMpX1WxUiAX/W9fAq08Duc9r/0w/427OwFMntv0w=";
