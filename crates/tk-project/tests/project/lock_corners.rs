//! What a lock, a flake and a source may be at the edge of what is taken.

use super::flakes::{FlakeBench, commit};
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tk_path::StoreDir;
use tk_project::{
    FlakeLock, InputPath,
    fetch::FetchOptions,
    inputs::parse_reference,
    lock::{LockUpdates, SolvedLock, solve_lock},
};

const PIN: &str = r#""locked":{"type":"path"},"original":{"type":"path"}"#;

/// A lock of these nodes, each with its inputs as JSON; the first is the root.
fn lock_of(nodes: impl IntoIterator<Item = (String, String)>) -> String {
    let mut text = String::from(r#"{"version":7,"root":"root","nodes":{"#);
    for (index, (key, inputs)) in nodes.into_iter().enumerate() {
        let (comma, pin) = if index == 0 {
            ("", String::new())
        } else {
            (",", format!(",{PIN}"))
        };
        write!(text, r#"{comma}"{key}":{{"inputs":{{{inputs}}}{pin}}}"#).unwrap();
    }
    text + "}}"
}

fn root(inputs: impl Into<String>) -> (String, String) {
    ("root".to_owned(), inputs.into())
}

fn refused(text: &str, expected: &str) {
    let error = FlakeLock::parse("flake.lock", text).unwrap_err();
    assert!(error.to_string().contains(expected), "{error}");
}

/// Nodes below one another.
fn chain(length: usize) -> impl Iterator<Item = (String, String)> {
    (0..=length).map(move |at| {
        let inputs = if at < length {
            format!(r#""n":"n{}""#, at + 1)
        } else {
            String::new()
        };
        (format!("n{at}"), inputs)
    })
}

#[test]
fn a_hostile_lock_is_refused_before_it_costs() {
    let starts = Instant::now();
    let nodes = |length| std::iter::once(root(r#""n":"n0""#)).chain(chain(length));
    refused(&lock_of(nodes(9000)), "more than 100 deep");
    refused(&lock_of(nodes(100)), "more than 100 deep");
    let lock = FlakeLock::parse("flake.lock", &lock_of(nodes(99))).unwrap();
    assert_eq!(lock.graph().inputs.last().unwrap().path.0.len(), 100);
    assert_eq!(lock.to_json()["nodes"].as_object().unwrap().len(), 101);
    // A node that is near the root by one name is met by a longer one.
    let near: Vec<_> = (0..200).map(|at| format!(r#""z{at}":"n{at}""#)).collect();
    let inputs = format!(r#""a":"n0",{}"#, near.join(","));
    refused(
        &lock_of(std::iter::once(root(inputs)).chain(chain(200))),
        "more than 100 deep",
    );
    // One long name above many inputs, each of which has it in its name.
    let many: Vec<_> = (0..40_000).map(|at| format!(r#""i{at}":[]"#)).collect();
    let long = format!(r#""{}":"n""#, "x".repeat(1 << 20));
    refused(
        &lock_of([root(long), ("n".into(), many.join(","))]),
        "names of its inputs from the root are too long",
    );
    let many: Vec<_> = (0..50_001).map(|at| format!(r#""i{at}":[]"#)).collect();
    refused(&lock_of([root(many.join(","))]), "50001 inputs");
    let follows = vec![r#""a""#; 101].join(",");
    refused(
        &lock_of([root(format!(r#""a":[{follows}]"#))]),
        "a list has more than 100 names",
    );
    let taken = starts.elapsed();
    assert!(taken < Duration::from_secs(20), "it took {taken:?}");
}

#[test]
fn many_nodes_of_one_name_are_numbered_in_little_time() {
    let inner = |at: usize| (format!("o{at}"), format!(r#""n":"i{at}""#));
    let count = 4900;
    let outer: Vec<_> = (0..count).map(|at| format!(r#""o{at}":"o{at}""#)).collect();
    let nodes = std::iter::once(root(format!(r#"{},"n_3":"taken""#, outer.join(","))))
        .chain((0..count).map(inner))
        .chain((0..count).map(|at| (format!("i{at}"), String::new())))
        .chain([("taken".into(), String::new())]);
    let lock = FlakeLock::parse("flake.lock", &lock_of(nodes)).unwrap();
    let starts = Instant::now();
    let json = lock.to_json();
    let taken = starts.elapsed();
    let nodes = json["nodes"].as_object().unwrap();
    assert_eq!(nodes.len(), 2 * count + 2);
    // 'n_3' of the root is met first, so that the numbers pass it by.
    assert_eq!(json["nodes"]["root"]["inputs"]["n_3"], "n_3");
    assert!(nodes.contains_key(&format!("n_{}", count + 1)));
    assert!(taken < Duration::from_secs(2), "it took {taken:?}");
}

fn solved(folder: &Path, options: &FetchOptions<'_>) -> Result<SolvedLock, String> {
    let old = fs::read_to_string(folder.join("flake.lock")).ok();
    let old = old.map(|text| FlakeLock::parse("flake.lock", &text).unwrap());
    solve_lock(folder, old.as_ref(), LockUpdates::Needed, options).map_err(|e| e.to_string())
}

/// The lock of the flake `name` is that of Nix, where Nix makes one; whether it does.
fn as_nix(bench: &FlakeBench, name: &str) -> bool {
    let folder = bench.path(name);
    let found = solved(&folder, &FetchOptions::default()).map(|solved| solved.lock.to_text());
    let expected = bench.locked(name);
    match (&found, &expected) {
        (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{name}"),
        (Err(_), Err(_)) => (),
        _ => panic!("{name}: nix {expected:?}, ours {found:?}"),
    }
    found.is_ok()
}

#[test]
fn path_literals_of_a_flake_in_a_folder_lead_beside_it() {
    let Some(bench) = FlakeBench::new("2.34") else {
        return;
    };
    let leaf = "{ outputs = _: { }; }\n";
    for (case, (dir, literal, target)) in [
        ("app", "../lib", "lib"),
        ("a/b", "../c/x", "a/c/x"),
        ("a/b", "../../x", "x"),
        ("a/b", "./c", "a/b/c"),
        ("a/b", "../b/c", "a/b/c"),
        ("a/b", "../.", "a"),
    ]
    .into_iter()
    .enumerate()
    {
        let repo = format!("repo{case}");
        bench.write(&format!("{repo}/{target}/flake.nix"), leaf);
        bench.flake(
            &format!("{repo}/{dir}"),
            &format!("  inputs.x.url = {literal};"),
        );
        commit(&bench.path(&repo));
        let url = format!("git+file://{}?dir={dir}", bench.path(&repo).display());
        let root = format!("root{case}");
        bench.flake(&root, &format!("  inputs.r.url = \"{url}\";"));
        assert!(as_nix(&bench, &root), "{dir} {literal}");
    }
}

#[test]
fn names_of_branches_are_those_of_git() {
    // What Nix 2.34 says to each.
    for name in [
        "main",
        "a/b",
        "HEAD",
        "%c3%a9",
        "@a",
        "a@",
        "refs/heads/x",
        "a%7bb",
        "x/HEAD",
        "a%5db",
        "a'b",
    ] {
        let url = format!("git+https://h/r?ref={name}");
        assert!(parse_reference(&url, true).is_ok(), "{name}");
    }
    for name in [
        "main~1", "@", "-x", "a%20b", "a%7fb", "a..b", "a.lock", "a.lock/b", "/a", "a/", "a//b",
        ".a", "a/.b", "a.", "a@%7bb", "a:b", "a%3fb", "a*b", "a%5bb", "a%5cb", "a%5eb", "a%09b",
        "",
    ] {
        for kind in ["git+https://h/r", "github:o/r", "gitlab:o/r"] {
            let url = format!("{kind}?ref={name}");
            assert!(parse_reference(&url, true).is_err(), "{url}");
        }
    }
}

#[test]
fn what_is_said_of_a_revision_must_be_so() {
    let Some(bench) = FlakeBench::new("2.34") else {
        return;
    };
    bench.write("repo/file", "1");
    bench.commit("repo");
    let url = format!("file://{}", bench.path("repo").display());
    for (case, (attr, is_so)) in [
        ("revCount = 1", true),
        ("revCount = 77", false),
        ("lastModified = 1600000001", true),
        ("lastModified = 1600000000", false),
    ]
    .into_iter()
    .enumerate()
    {
        let root = format!("root{case}");
        let input =
            format!("  inputs.r = {{ type = \"git\"; url = \"{url}\"; {attr}; flake = false; }};");
        bench.flake(&root, &input);
        assert_eq!(as_nix(&bench, &root), is_so, "{attr}");
    }
}

/// Packs the folder `from` of the bench.
fn pack(bench: &FlakeBench, name: &str, args: &[&str], from: &str) {
    let mut tar = Command::new("tar");
    tar.args(args).arg("-cf").arg(bench.path(name));
    let done = tar.arg("-C").arg(bench.path(from)).arg("top").status();
    assert!(done.unwrap().success());
}

/// Whether the archive can be locked; Nix says the same.
fn archive_as_nix(bench: &FlakeBench, name: &str) -> bool {
    let url = format!("tarball+file://{}", bench.path(name).display());
    let root = format!("root-{name}");
    let input = format!("  inputs.t = {{ url = \"{url}\"; flake = false; }};");
    bench.flake(&root, &input);
    as_nix(bench, &root)
}

#[test]
fn archives_of_files_with_holes() {
    let Some(bench) = FlakeBench::new("2.34") else {
        return;
    };
    use std::os::unix::fs::FileExt;
    bench.write("t/top/plain", "plain");
    let holes = |name: &str, parts: usize, size: u64| {
        let path = bench.write(&format!("t/top/{name}"), "");
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(size).unwrap();
        for part in 0..parts {
            let at = part as u64 * 65_536 + 8192;
            file.write_all_at(&[part as u8 + 1; 5000], at).unwrap();
        }
    };
    holes("few", 2, 1 << 20);
    // More parts than a header has room for, and than a block behind it.
    holes("many", 40, 40 << 16);
    holes("nothing", 0, 100_000);
    holes("until-the-end", 1, 13_192);
    let mut hashes = Vec::new();
    for (name, args) in [
        ("gnu.tar", &["--format=gnu", "-S"][..]),
        ("0.0.tar", &["--format=posix", "-S", "--sparse-version=0.0"]),
        ("0.1.tar", &["--format=posix", "-S", "--sparse-version=0.1"]),
        ("1.0.tar", &["--format=posix", "-S", "--sparse-version=1.0"]),
        ("whole.tar", &["--format=posix"]),
    ] {
        pack(&bench, name, args, "t");
        let size = fs::metadata(bench.path(name)).unwrap().len();
        assert_eq!(size > 2 << 20, name == "whole.tar", "{name} {size}");
        assert!(archive_as_nix(&bench, name), "{name}");
        let lock = fs::read_to_string(bench.path(&format!("root-{name}/flake.lock"))).unwrap();
        let lock = FlakeLock::parse("flake.lock", &lock).unwrap();
        let pin = lock.node("t").unwrap().pin.as_ref().unwrap();
        hashes.push(pin.locked.text("narHash").unwrap().to_owned());
    }
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
}

#[test]
fn a_map_of_holes_that_lies_is_refused() {
    let dir = TempDir::new().unwrap();
    let packed = dir.path().join("t.tar");
    let flake = format!(
        "{{ inputs.t = {{ url = \"tarball+file://{}\"; flake = false; }}; outputs = _: {{ }}; }}",
        packed.display()
    );
    fs::write(dir.path().join("flake.nix"), flake).unwrap();
    let lock = |attributes: &[(&str, &str)], data: &[u8]| {
        let mut archive = tar::Builder::new(fs::File::create(&packed).unwrap());
        let attributes = attributes
            .iter()
            .map(|(key, value)| (*key, value.as_bytes()));
        archive.append_pax_extensions(attributes).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, "top/f", data).unwrap();
        archive.into_inner().unwrap();
        solved(dir.path(), &FetchOptions::default())
    };
    let sound = [("GNU.sparse.size", "9"), ("GNU.sparse.map", "1,2,5,1")];
    assert!(lock(&sound, b"abc").is_ok());
    for (size, map) in [
        ("9", "1,2,5"),
        ("9", "5,1,1,2"),
        ("9", "1,2,2,1"),
        ("9", "1,2,9,1"),
        ("9", "1,4"),
        ("9", "1,-1"),
        ("9", "18446744073709551615,2"),
        ("x", "1,2"),
    ] {
        let attributes = [("GNU.sparse.size", size), ("GNU.sparse.map", map)];
        let error = lock(&attributes, b"abc").unwrap_err();
        assert!(error.contains("a file with holes has"), "{map}: {error}");
    }
    let in_data = [("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "9")];
    for data in [&b""[..], b"1\n0\n1\nx", b"99999999999\n", b"1\n1", b"x\n"] {
        let error = lock(&in_data, data).unwrap_err();
        assert!(error.contains("cannot be read as an archive"), "{error}");
    }
}

#[test]
fn archives_with_times_before_1970_and_names_of_git() {
    let Some(bench) = FlakeBench::new("2.34") else {
        return;
    };
    bench.write("t/top/f", "x");
    for format in ["gnu", "posix"] {
        let name = format!("{format}.tar");
        let format = format!("--format={format}");
        pack(&bench, &name, &[&format, "--mtime=@-5"], "t");
        assert!(archive_as_nix(&bench, &name));
        let more = ["-rf", "--mtime=@1400000000", "f"];
        let done = Command::new("tar")
            .args([&format, more[0]])
            .arg(bench.path(&name))
            .args([more[1], "-C"])
            .arg(bench.path("t/top"))
            .arg(more[2])
            .status();
        assert!(done.unwrap().success());
        assert!(archive_as_nix(&bench, &name));
        fs::remove_dir_all(bench.path(&format!("root-{name}"))).unwrap();
    }
    for (case, (inner, is_taken)) in [
        (".git/config", false),
        ("GIT~1", false),
        (".GIT. .", false),
        (".git:x", false),
        (".git .:x", true),
        ("git~10", true),
        (".gitmodules", true),
    ]
    .into_iter()
    .enumerate()
    {
        let folder = format!("names{case}");
        bench.write(&format!("{folder}/top/sub/{inner}"), "x");
        let name = format!("{folder}.tar");
        pack(&bench, &name, &["--mtime=@1400000000"], &folder);
        assert_eq!(archive_as_nix(&bench, &name), is_taken, "{inner}");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    let done = Command::new("cp").arg("-r").args([from, to]).status();
    assert!(done.unwrap().success());
}

#[test]
fn an_input_that_is_kept_is_read_from_the_store() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| -> PathBuf { dir.path().canonicalize().unwrap().join(name) };
    let write = |name: &str, inputs: &str| {
        fs::create_dir_all(at(name)).unwrap();
        let text = format!("{{ {inputs} outputs = _: {{ }}; }}\n");
        fs::write(at(name).join("flake.nix"), text).unwrap();
    };
    let url = |name: &str| format!("inputs.{name}.url = \"path:{}\"; ", at(name).display());
    write("a", "");
    write("z", "");
    write("m", &format!("{} inputs.b.follows = \"a\";", url("a")));
    write("root", &url("m"));
    let mut options = FetchOptions::default();
    options.store_dir = StoreDir::new(at("store").to_str().unwrap()).unwrap();
    let first = solved(&at("root"), &options).unwrap().lock;
    fs::write(at("root/flake.lock"), first.to_text()).unwrap();
    let pin = first.node("m").map(|node| node.pin.as_ref().unwrap());
    let key = first.find(&InputPath::parse("m").unwrap()).unwrap();
    let pin = pin.or_else(|| first.node(key?)?.pin.as_ref()).unwrap();
    let held = options
        .store_dir
        .path(&pin.store_path(&options.store_dir).unwrap());
    copy(&at("m"), Path::new(&held));
    fs::write(at("m/file"), "changed").unwrap();
    write("root", &(url("m") + &url("z")));
    let second = solved(&at("root"), &options).unwrap().lock.to_json();
    assert_eq!(second["nodes"]["m"], first.to_json()["nodes"]["m"]);
    assert!(second["nodes"].get("z").is_some());
    // What the store has is not what is locked: then it is of no use.
    fs::write(Path::new(&held).join("file"), "another").unwrap();
    let error = solved(&at("root"), &options).unwrap_err();
    assert!(error.contains("the narHash of"), "{error}");
}
