//! Commands about files: nar, hash, key.

use super::Machine;
use std::{fs, os::unix::fs::symlink};

/// A small tree with one of each kind.
fn tree(machine: &Machine) {
    machine.write("tree/share/doc/x", "this is x\n");
    machine.write("tree/bin/tool", "#!/bin/sh\n");
    let tool = machine.home().join("tree/bin/tool");
    fs::set_permissions(tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    symlink("bin/tool", machine.home().join("tree/link")).unwrap();
}

#[test]
fn a_nar_goes_round() {
    let machine = Machine::new();
    tree(&machine);
    let nar = machine.command(["nar", "pack", "tree"]).output().unwrap();
    assert!(nar.status.success());
    machine.write("x.nar", &nar.stdout);
    machine.ok("nar unpack x.nar copy");
    let again = machine.command(["nar", "pack", "copy"]).output().unwrap();
    assert_eq!(again.stdout, nar.stdout);

    let hash = machine.ok("nar hash tree");
    assert_eq!(
        hash,
        "sha256:0hjsa3w2y5694a3ryc1rrz5c800ggjgr94csk84p24l1wwl2bw4f"
    );
    assert_eq!(
        machine.ok("hash file --format nix32 x.nar"),
        hash["sha256:".len()..]
    );
    assert_eq!(
        machine.ok("hash path --format nix32 tree"),
        hash["sha256:".len()..]
    );

    assert_eq!(
        machine.ok("nar ls x.nar"),
        "bin\nbin/tool\nlink\nshare\nshare/doc\nshare/doc/x"
    );
    let json: serde_json::Value = serde_json::from_str(&machine.ok("nar ls x.nar --json")).unwrap();
    let file = &json["root"]["entries"]["share"]["entries"]["doc"]["entries"]["x"];
    assert_eq!(
        (&file["type"], &file["size"]),
        (&"regular".into(), &10.into())
    );
    let offset = file["narOffset"].as_u64().unwrap() as usize;
    assert_eq!(&nar.stdout[offset..offset + 10], b"this is x\n");
    assert_eq!(json["version"], 1);

    assert_eq!(machine.ok("nar cat x.nar share/doc/x"), "this is x");
    assert_eq!(machine.ok("nar cat --follow x.nar link"), "#!/bin/sh");
    for (member, status) in [("share", 2), ("link", 2), ("nothing", 1), ("../x", 1)] {
        machine.fails(status, &format!("nar cat x.nar {member}"));
    }
}

#[test]
fn unpacking_touches_nothing_that_is_there() {
    let machine = Machine::new();
    tree(&machine);
    let nar = machine
        .command(["nar", "pack", "tree"])
        .output()
        .unwrap()
        .stdout;
    machine.write("x.nar", &nar);
    machine.write("there", "precious");
    assert!(machine.fails(2, "nar unpack x.nar there").contains("there"));
    assert_eq!(fs::read(machine.home().join("there")).unwrap(), b"precious");
    // Neither a cut NAR nor one with something behind it leaves anything.
    machine.write("cut.nar", &nar[..nar.len() - 8]);
    assert!(machine.fails(2, "nar unpack cut.nar made").contains("byte"));
    machine.write("long.nar", [&nar[..], b"more"].concat());
    machine.fails(2, "nar unpack long.nar made");
    assert!(!machine.home().join("made").exists());
}

#[test]
fn unpacked_files_are_canonical_or_writable() {
    use std::os::unix::fs::MetadataExt;
    let machine = Machine::new();
    tree(&machine);
    machine.write(
        "x.nar",
        machine
            .command(["nar", "pack", "tree"])
            .output()
            .unwrap()
            .stdout,
    );
    machine.ok("nar unpack x.nar copy");
    let stat = |path: &str| fs::symlink_metadata(machine.home().join(path)).unwrap();
    for (path, mode) in [
        ("copy/share/doc/x", 0o100444),
        ("copy/bin/tool", 0o100555),
        ("copy/share", 0o040555),
        ("copy", 0o040555),
    ] {
        assert_eq!((stat(path).mode(), stat(path).mtime()), (mode, 1), "{path}");
    }
    machine.ok("nar unpack --writable x.nar copy2");
    assert_eq!(stat("copy2/share/doc/x").mode() & 0o200, 0o200);
    assert!(stat("copy2/share/doc/x").mtime() > 1);
}

#[test]
fn hashes_convert_as_nix_does() {
    let machine = Machine::new();
    let sri = "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";
    let nix32 = "1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s";
    assert_eq!(machine.ok(&format!("hash convert --to nix32 {sri}")), nix32);
    assert_eq!(machine.ok(&format!("hash convert sha256:{nix32}")), sri);
    let bare = format!("hash convert --hash-algo sha256 --prefix --to base16 {nix32}");
    let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(machine.ok(&bare), format!("sha256:{hex}"));
    machine.write("abc", "abc");
    assert_eq!(machine.ok("hash file abc"), sri);
    assert_eq!(
        machine.ok("hash file --type md5 --format base16 abc"),
        "900150983cd24fb0d6963f7d28e17f72"
    );
    for bad in [
        "hash convert sha256:abc",
        "hash convert nothing",
        "hash file absent",
    ] {
        machine.fails(2, bad);
    }
}

#[test]
fn keys_are_made_once_and_for_the_owner_only() {
    use std::os::unix::fs::MetadataExt;
    let machine = Machine::new();
    let public = machine.ok("key generate test-1 --secret s --public p");
    let file = |name: &str| fs::read_to_string(machine.home().join(name)).unwrap();
    assert_eq!(file("p"), public, "without a newline, as Nix's own");
    assert!(public.starts_with("test-1:") && file("s").starts_with("test-1:"));
    assert_eq!(machine.ok("key public s"), public);
    let mode = fs::metadata(machine.home().join("s")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
    let before = file("s");
    assert!(
        machine
            .fails(2, "key generate test-1 --secret s --public p2")
            .contains("exists")
    );
    assert_eq!(file("s"), before);
    assert!(!machine.home().join("p2").exists());
    machine.fails(2, "key generate test-1 --secret s2 --public p");
    assert!(
        !machine.home().join("s2").exists(),
        "half a pair is of no use"
    );
    machine.fails(2, "key generate a:b --secret s3 --public p3");
    machine.fails(2, "key public p");
}
