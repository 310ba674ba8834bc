//! nix.conf and the environment, as they reach the commands.

use super::Machine;
use std::os::unix::fs::symlink;

/// A path signed by the key in the file `s`, in the cache `c`; nothing else vouches for it.
fn signed() -> (Machine, String, String) {
    let machine = Machine::new();
    machine.write("data/a", "a");
    machine.ok("key generate test-1 --secret s --public p");
    let cache = machine.cache("c");
    let path = machine.ok(&format!("push data --to {cache} --sign-key s"));
    let (hash, _) = path["/nix/store/".len()..].split_once('-').unwrap();
    let narinfo = machine.home().join(format!("c/{hash}.narinfo"));
    let text = std::fs::read_to_string(&narinfo).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("CA:"));
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    std::fs::write(narinfo, text).unwrap();
    let pull = format!("pull {path} --from {cache}");
    (machine, path, pull)
}

#[test]
fn keys_under_every_name_and_in_every_file() {
    let (machine, path, pull) = signed();
    let key = std::fs::read_to_string(machine.home().join("p")).unwrap();
    let secret = machine.home().join("s").display().to_string();
    std::fs::create_dir_all(machine.home().join("etc/conf.d")).unwrap();
    symlink("nowhere", machine.home().join("etc/dangling")).unwrap();
    machine.fails(1, &format!("{pull} --to ./none"));
    for (n, text) in [
        format!("trusted-public-keys = {key}\n"),
        format!("binary-cache-public-keys = {key}\r\n"),
        format!("extra-binary-cache-public-keys = {key} # mine\n"),
        format!("!include conf.d\ninclude dangling\ntrusted-public-keys = {key}\n"),
        format!("secret-key-files = /nothing/here {secret}\n"),
        "require-sigs = false\n".to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        machine.write("etc/nix.conf", &text);
        assert_eq!(machine.ok(&format!("{pull} --to ./n{n}")), path, "{text}");
    }
    let mut bytes = b"# Schl\xfcssel\n".to_vec();
    bytes.extend(format!("trusted-public-keys = {key}\n").bytes());
    machine.write("etc/nix.conf", bytes);
    machine.ok(&format!("{pull} --to ./latin"));
    // Named keys count alone.
    machine.write("etc/nix.conf", "require-sigs = false\n");
    machine.ok("key generate other-1 --secret s2 --public p2");
    machine.fails(1, &format!("{pull} --to ./other --trusted-key p2"));
    // What a store says of itself counts before nix.conf.
    let store = |name: &str, required: bool| {
        let root = machine.home().join(name);
        format!("local?root={}&require-sigs={required}", root.display())
    };
    machine.fails(1, &format!("{pull} --to {}", store("strict", true)));
    machine.write("etc/nix.conf", "");
    machine.ok(&format!("{pull} --to {}", store("open", false)));
}

#[test]
fn what_nix_would_not_read_is_an_error_that_tells_no_secret() {
    let machine = Machine::new();
    machine.write("x", "x");
    machine.write("etc/nix.conf", "cores=4\n");
    let error = machine.fails(2, "hash file x");
    assert!(
        error.contains("etc/nix.conf") && error.contains("line 1"),
        "{error}"
    );
    machine.write("etc/nix.conf", "\naccess-tokens=github.com=ghp_secret\n");
    let error = machine.fails(2, "hash file x");
    assert!(
        error.contains("line 2") && !error.contains("secret"),
        "{error}"
    );
    machine.write("etc/nix.conf", "cores = many\n");
    assert!(machine.fails(2, "hash file x").contains("'cores'"));
}

#[test]
fn the_store_of_nix_conf_and_its_directory() {
    let (machine, path, _) = signed();
    let conf = format!("store = {}\n", machine.home().join("own").display());
    machine.write("etc/nix.conf", conf);
    // As with Nix it counts before NIX_REMOTE, which names the store of this machine here.
    machine.write("b/x", "x");
    let added = machine.ok("add b");
    assert!(machine.home().join("own").join(&added[1..]).exists());
    machine.fails(1, &format!("path-info {path}"));
    // Every kind of store is for the directory of the environment.
    machine.write("etc/nix.conf", "");
    let cache = machine.cache("moved");
    let line = format!("push b --store ./moved-store --to {cache}");
    let mut command = machine.command(line.split(' '));
    let done = machine.done(command.env("NIX_STORE_DIR", "/my/store").output());
    assert_eq!(done.status, 0, "{done:?}");
    assert!(done.out.starts_with("/my/store/"), "{done:?}");
    let info = std::fs::read_to_string(machine.home().join("moved/nix-cache-info")).unwrap();
    assert!(info.contains("StoreDir: /my/store\n"), "{info}");
}

/// The default of Nix, which is out of reach here, is asked beside the caches that were added.
#[test]
fn extra_substituters_are_extra() {
    let (machine, _, _) = signed();
    let text = format!(
        "extra-substituters = {}\ndownload-attempts = 1\n",
        machine.cache("c")
    );
    machine.write("etc/nix.conf", text);
    let absent = "/nix/store/00000000000000000000000000000000-x";
    let mut command = machine.command(["check", absent]);
    let done = machine.done(command.env("https_proxy", "http://127.0.0.1:1").output());
    assert_eq!(done.status, 2, "{done:?}");
    assert!(done.err.contains("cache.nixos.org"), "{done:?}");
}

/// A store and a cache are for all, and only their owner writes them, whatever the umask.
#[test]
fn modes_do_not_depend_on_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let machine = Machine::new();
    machine.write("data/a", "a");
    for mask in ["077", "000"] {
        let program = env!("CARGO_BIN_EXE_tk-store");
        let script = format!(
            "umask {mask}; exec {program} push data --store ./store{mask} --to file://$PWD/cache{mask}"
        );
        let command = machine.command(Vec::<&str>::new());
        let mut shell = std::process::Command::new("/bin/sh");
        shell.args(["-c", &script]).current_dir(machine.home());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        let done = machine.done(shell.output());
        assert_eq!(done.status, 0, "{done:?}");
        let mode = |name: String| {
            let meta = std::fs::metadata(machine.home().join(&name));
            meta.unwrap_or_else(|e| panic!("{name}: {e}"))
                .permissions()
                .mode()
                & 0o777
        };
        for folder in ["nix/store", "nix/var/nix/db"] {
            assert_eq!(mode(format!("store{mask}/{folder}")), 0o755, "{folder}");
        }
        assert_eq!(mode(format!("store{mask}/nix/var/nix/db/db.sqlite")), 0o644);
        assert_eq!(mode(format!("cache{mask}")), 0o755);
        assert_eq!(mode(format!("cache{mask}/nix-cache-info")), 0o644);
    }
}

#[test]
fn links_replace_only_links_into_stores() {
    let (machine, path, pull) = signed();
    let pull = format!("{pull} --to ./dst --trusted-key p --out-link");
    machine.write("file", "mine");
    std::fs::create_dir(machine.home().join("folder")).unwrap();
    symlink("file", machine.home().join("link")).unwrap();
    for taken in ["file", "folder", "link"] {
        let error = machine.fails(2, &format!("{pull} {taken}"));
        assert!(error.contains("in the way of the link"), "{error}");
    }
    assert_eq!(std::fs::read(machine.home().join("link")).unwrap(), b"mine");
    for place in ["new", "new", "no/such/folder"] {
        machine.ok(&format!("{pull} {place}"));
        let link = std::fs::read_link(machine.home().join(place)).unwrap();
        assert!(link.ends_with(&path[1..]), "{link:?}");
    }
    let left = std::fs::read_dir(machine.home()).unwrap().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert!(
        !left
            .iter()
            .any(|name| name.to_string_lossy().contains("new-link")),
        "{left:?}"
    );
}

#[test]
fn a_key_is_made_whole_and_once() {
    let machine = Machine::new();
    machine.write("data/a", "a");
    // What a full disk left in the time of an older version.
    machine.write("k.sec", "");
    let push = format!(
        "push data --to {} --create-key --sign-key",
        machine.cache("c")
    );
    machine.ok(&format!("{push} k.sec"));
    let both = |name: &str| {
        let public = std::fs::read_to_string(machine.home().join(format!("{name}.pub"))).unwrap();
        assert_eq!(machine.ok(&format!("key public {name}")), public);
    };
    both("k.sec");
    let children: Vec<_> = (0..6)
        .map(|n| {
            let line = format!("{push} many --name n{n}");
            machine.command(line.split(' ')).spawn().unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    both("many");
    assert!(
        machine
            .fails(2, "key generate k-1 --secret many")
            .contains("many")
    );
}

/// As with Nix: mode 555 and an NAR of its own, under the path of the plain file.
#[test]
fn a_flat_file_stays_executable() {
    use std::os::unix::fs::PermissionsExt;
    let machine = Machine::new();
    machine.write("run", "run\n");
    let file = machine.home().join("run");
    let plain = machine.ok("add --mode flat run --store ./plain");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
    let path = machine.ok("add --mode flat run --store ./one");
    assert_eq!(path, plain);
    let cache = machine.cache("c");
    machine.ok(&format!("push {path} --store ./one --to {cache}"));
    machine.ok(&format!("pull {path} --from {cache} --to ./two"));
    machine.ok(&format!("verify --no-trust --store ./two {path}"));
    let there = machine.home().join("two").join(&path[1..]);
    let mode = std::fs::metadata(there).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o555);
}

#[test]
fn a_cache_may_be_named_from_here() {
    let machine = Machine::new();
    machine.write("data", "a");
    let path = machine.ok("add data");
    let store = machine.store().display().to_string();
    for name in ["file:./near", "file:nearer"] {
        machine.ok(&format!(
            "copy {path} --from {store} --to {name} --no-check-sigs"
        ));
        let folder = machine.home().join(name.trim_start_matches("file:"));
        assert!(folder.join("nix-cache-info").exists(), "{name}");
    }
    for name in ["file://near/x", "local:./x", "http:x/y", "foo:./bar"] {
        machine.fails(2, &format!("copy {path} --from {store} --to {name}"));
    }
    assert!(!machine.home().join("foo:.").exists());
}

/// A name that an older Nix allowed is told, and does not hide the others.
#[test]
fn a_bad_name_in_the_database_is_named() {
    let machine = Machine::new();
    machine.write("a", "a");
    machine.write("b", "b");
    let (good, bad) = (machine.ok("add a"), machine.ok("add b"));
    let database = machine.store().join("nix/var/nix/db/db.sqlite");
    let connection = rusqlite::Connection::open(database).unwrap();
    let odd = bad.replace("-b", "-.-b");
    let sql = "update ValidPaths set path = ? where path = ?";
    connection.execute(sql, [&odd, &bad]).unwrap();
    for command in ["path-info --all", "verify --all --no-trust"] {
        let done = machine.run(command);
        assert_eq!(done.status, 1, "{done:?}");
        assert!(done.err.contains("-.-b"), "{done:?}");
    }
    let done = machine.run("path-info --all");
    assert_eq!(done.out.trim_end(), good, "{done:?}");
}
