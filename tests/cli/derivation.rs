//! derivation show and path.

use super::Machine;
use serde_json::{Value, json};

/// A store with two derivations that Nix made; one needs the other.
fn machine() -> Machine {
    let machine = Machine::new();
    machine.write("base.drv", BASE);
    machine.write("outputs.drv", OUTPUTS);
    let added = machine.ok("add --mode text base.drv");
    assert_eq!(added, BASE_PATH);
    machine
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

#[test]
fn derivations_are_shown() {
    let machine = machine();
    let base = &BASE_PATH["/nix/store/".len()..];
    let from_store = json(&machine.ok(&format!("derivation show {BASE_PATH}")));
    assert_eq!(from_store["version"], 4);
    let drv = &from_store["derivations"][base];
    let expected = json!({
        "name": "base", "version": 4, "system": "x86_64-linux", "builder": "/bin/sh",
        "outputs": {"out": {"path": "0c6988igqizlns512xmknr0qhm5v4i3q-base"}},
        "inputs": {"srcs": [], "drvs": {}}, "args": ["-c", "echo hello > $out"],
        "env": {"builder": "/bin/sh", "name": "base", "system": "x86_64-linux",
            "out": "/nix/store/0c6988igqizlns512xmknr0qhm5v4i3q-base"},
    });
    assert_eq!(drv, &expected);
    assert_eq!(json(&machine.ok("derivation show base.drv")), from_store);

    let both = json(&machine.ok("derivation show -r outputs.drv"));
    assert_eq!(both["derivations"].as_object().unwrap().len(), 2);
    assert_eq!(both["derivations"][base], expected);
    for (version, key) in [
        ("1", BASE_PATH),
        ("legacy", BASE_PATH),
        ("2", BASE_PATH),
        ("3", base),
    ] {
        let line = format!("derivation show --json-version {version} base.drv");
        let shown = json(&machine.ok(&line));
        assert_eq!(shown[key]["inputDrvs"], json!({}), "{version}");
    }
}

#[test]
fn paths_are_reckoned() {
    let machine = machine();
    assert_eq!(machine.ok("derivation path base.drv"), BASE_PATH);
    assert_eq!(
        machine.ok(&format!("derivation path {BASE_PATH}")),
        BASE_PATH
    );
    let lines = [
        OUTPUTS_PATH,
        "bin /nix/store/39k4bkybb6zfjq09y7l73ls2amww7221-outputs-bin",
        "dev /nix/store/bvpr2qhjydf6imkdvkc016xk57jw68ak-outputs-dev",
        "out /nix/store/f8xz1ybgzalnnqk1va2mz4bdfca7xyh7-outputs",
    ];
    assert_eq!(
        machine.ok("derivation path --outputs outputs.drv"),
        lines.join("\n")
    );
    let shown = json(&machine.ok("derivation path --outputs --json outputs.drv"));
    assert_eq!(shown["path"], OUTPUTS_PATH);
    assert_eq!(shown["outputs"]["dev"], lines[2]["dev ".len()..]);

    // As JSON, with what follows from the rest left out.
    let mut drv = json(&machine.ok("derivation show outputs.drv"));
    let each = drv["derivations"]
        .as_object_mut()
        .unwrap()
        .values_mut()
        .next()
        .unwrap();
    for name in ["out", "dev", "bin"] {
        each["outputs"][name] = json!({});
        each["env"][name] = "".into();
    }
    machine.write("outputs.json", drv.to_string());
    assert_eq!(
        machine.ok("derivation path --outputs outputs.json"),
        lines.join("\n")
    );
    // A file elsewhere under its name in a store, and one without any.
    machine.write(&format!("copy{BASE_PATH}"), BASE);
    assert_eq!(
        machine.ok(&format!("derivation path copy{BASE_PATH}")),
        BASE_PATH
    );
    machine.write("text", BASE);
    assert_eq!(machine.ok("derivation path --name base text"), BASE_PATH);

    machine.write("floating.drv", FLOATING);
    let floating = machine.ok("derivation path --outputs floating.drv");
    assert!(floating.ends_with("\nout -"), "{floating}");
}

#[test]
fn wrong_paths_are_told() {
    let machine = machine();
    machine.write("other.drv", BASE.replace("hello", "hallo"));
    machine.ok("derivation path other.drv");
    let err = machine.fails(1, "derivation path --outputs other.drv");
    assert!(err.contains("states the path"), "{err}");
    let unknown = OUTPUTS.replace("9fwr49", "9fwr48");
    machine.write("unknown.drv", unknown);
    machine.ok("derivation path unknown.drv");
    let err = machine.fails(1, "derivation path --outputs unknown.drv");
    assert!(err.contains("9fwr48"), "{err}");
}

#[test]
fn what_is_no_derivation_is_refused() {
    let machine = machine();
    machine.write("x.drv", "Derive(");
    machine.write("cut.drv", &BASE[..BASE.len() - 2]);
    machine.write("bad.json", "{\"version\":3}");
    let dir = machine.ok("add --mode text --name x x.drv");
    for (line, says) in [
        ("derivation show x.drv".to_owned(), "byte 7 of its file"),
        ("derivation path cut.drv".to_owned(), "is expected"),
        ("derivation path bad.json".to_owned(), "only 4 can be read"),
        ("derivation path text".to_owned(), "text"),
        ("derivation path -".to_owned(), "--name"),
        (format!("derivation show {dir}"), "does not end in .drv"),
        ("derivation show nothing.drv".to_owned(), "nothing.drv"),
    ] {
        let err = machine.fails(2, &line);
        assert!(err.contains(says), "{line}: {err}");
        assert_eq!(err.lines().count(), 1, "{line}: {err}");
    }
    let raw = [b"Derive([],[],[],\"p\",\"b\xff\",[],[])".as_slice(), b""].concat();
    machine.write("raw.drv", raw);
    let err = machine.fails(2, "derivation show raw.drv");
    assert!(err.contains("its builder is not UTF-8"), "{err}");
}

const BASE_PATH: &str = "/nix/store/9fwr49ll3jycmq7m85w13l3wslc3f562-base.drv";
const OUTPUTS_PATH: &str = "/nix/store/gpr4x9blhnk666cafi5xpnws3shki9pc-outputs.drv";

const BASE: &str = r#"Derive([("out","/nix/store/0c6988igqizlns512xmknr0qhm5v4i3q-base","","")],[],[],"x86_64-linux","/bin/sh",["-c","echo hello > $out"],[("builder","/bin/sh"),("name","base"),("out","/nix/store/0c6988igqizlns512xmknr0qhm5v4i3q-base"),("system","x86_64-linux")])"#;

const OUTPUTS: &str = r#"Derive([("bin","/nix/store/39k4bkybb6zfjq09y7l73ls2amww7221-outputs-bin","",""),("dev","/nix/store/bvpr2qhjydf6imkdvkc016xk57jw68ak-outputs-dev","",""),("out","/nix/store/f8xz1ybgzalnnqk1va2mz4bdfca7xyh7-outputs","","")],[("/nix/store/9fwr49ll3jycmq7m85w13l3wslc3f562-base.drv",["out"])],[],"x86_64-linux","/bin/sh",[],[("base","/nix/store/0c6988igqizlns512xmknr0qhm5v4i3q-base"),("bin","/nix/store/39k4bkybb6zfjq09y7l73ls2amww7221-outputs-bin"),("builder","/bin/sh"),("dev","/nix/store/bvpr2qhjydf6imkdvkc016xk57jw68ak-outputs-dev"),("name","outputs"),("out","/nix/store/f8xz1ybgzalnnqk1va2mz4bdfca7xyh7-outputs"),("outputs","out dev bin"),("system","x86_64-linux")])"#;

const FLOATING: &str = r#"Derive([("out","","r:sha256","")],[],[],"x86_64-linux","/bin/sh",[],[])"#;
