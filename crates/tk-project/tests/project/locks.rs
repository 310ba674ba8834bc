//! flake.lock read and written.

use tk_project::{FlakeLock, InputPath, LockEdge};

const LOCK: &str = r#"{
  "nodes": {
    "a": {
      "inputs": {
        "n": [
          "n"
        ]
      },
      "locked": {
        "lastModified": 1,
        "narHash": "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        "path": "/a",
        "type": "path"
      },
      "original": {
        "path": "/a",
        "type": "path"
      }
    },
    "n": {
      "flake": false,
      "locked": {
        "path": "./n",
        "type": "path"
      },
      "original": {
        "path": "./n",
        "type": "path"
      },
      "parent": []
    },
    "root": {
      "inputs": {
        "a": "a",
        "n": "n"
      }
    }
  },
  "root": "root",
  "version": 7
}
"#;

fn parse(text: &str) -> Result<FlakeLock, String> {
    FlakeLock::parse("flake.lock", text).map_err(|e| e.to_string())
}

#[test]
fn what_is_written_is_what_was_read() {
    let lock = parse(LOCK).unwrap();
    assert_eq!(lock.to_text(), LOCK);
    let path = InputPath::parse("a/n").unwrap();
    assert_eq!(lock.find(&path).unwrap(), Some("n"));
    let edge = &lock.node("a").unwrap().inputs["n"];
    assert_eq!(*edge, LockEdge::Follows(InputPath(vec!["n".into()])));
}

#[test]
fn versions() {
    for version in [5, 6] {
        let text = LOCK.replace("\"version\": 7", &format!("\"version\": {version}"));
        let lock = parse(&text).unwrap();
        assert_eq!(lock.version(), version);
        assert_eq!(lock.to_text(), LOCK);
    }
    // Version 5 has a part of what is locked elsewhere.
    let text = LOCK
        .replace("\"lastModified\": 1,\n        \"narHash\": \"sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\",\n", "")
        .replace("      \"locked\": {\n        \n", "      \"locked\": {\n")
        .replacen(
            "      \"original\"",
            "      \"info\": {\"lastModified\": 1, \"narHash\": \"sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\"},\n      \"original\"",
            1,
        )
        .replace("\"version\": 7", "\"version\": 5");
    assert_ne!(text, LOCK);
    assert_eq!(parse(&text).unwrap().to_text(), LOCK);
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    let change = |from: &str, to: &str| {
        assert!(LOCK.contains(from), "{from}");
        parse(&LOCK.replacen(from, to, 1)).unwrap_err()
    };
    for (from, to, expected) in [
        (
            "\"version\": 7",
            "\"version\": 8",
            "flake.lock:40: version 8 is not known",
        ),
        (
            "\"version\": 7",
            "\"version\": \"7\"",
            "flake.lock:40: it has no version",
        ),
        (
            "\"a\": \"a\"",
            "\"a\": \"b\"",
            "flake.lock:32: node 'root' refers to 'b'",
        ),
        (
            "\"a\": \"a\"",
            "\"a\": \"root\"",
            "flake.lock:32: node 'root': an input of it is the root",
        ),
        (
            "\"root\": \"root\"",
            "\"root\": \"toor\"",
            "its root 'toor' is not among",
        ),
        (
            "\"flake\": false",
            "\"flake\": 0",
            "flake.lock:20: node 'n': its 'flake' is not",
        ),
        (
            "\"lastModified\": 1",
            "\"lastModified\": -1",
            "flake.lock:3: node 'a': the attribute 'lastModified'",
        ),
        (
            "\"parent\": []",
            "\"parent\": {}",
            "its 'parent' is not a list",
        ),
        (
            "\"original\"",
            "\"0riginal\"",
            "flake.lock:3: node 'a': it has no 'original'",
        ),
    ] {
        let error = change(from, to);
        assert!(error.contains(expected), "{to}: {error}");
    }
    for end in 0..LOCK.len() - 2 {
        let error = parse(&LOCK[..end]).unwrap_err();
        assert!(error.starts_with("flake.lock:"), "cut at {end}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    for odd in [
        "null",
        "[]",
        "3",
        "{}",
        r#"{"version":7,"root":"r","nodes":[]}"#,
    ] {
        parse(odd).expect_err(odd);
    }
    let deep = "[".repeat(100_000);
    parse(&deep).expect_err("deep");
    let many: Vec<_> = (0..20_000).map(|n| format!("\"{n}\":{{}}")).collect();
    let many = format!(
        r#"{{"version":7,"root":"0","nodes":{{{}}}}}"#,
        many.join(",")
    );
    assert!(parse(&many).unwrap_err().contains("20000 nodes"));
}

#[test]
fn circles() {
    let text = r#"{"version":7,"root":"root","nodes":{"root":{"inputs":{"a":["b"],"b":["a"]}}}}"#;
    let lock = parse(text).unwrap();
    let a = InputPath::parse("a").unwrap();
    assert!(lock.find(&a).unwrap_err().contains("circle"));
    let pin = r#""locked":{"type":"path"},"original":{"type":"path"}"#;
    let text = format!(
        r#"{{"version":7,"root":"root","nodes":{{"root":{{"inputs":{{"a":"a"}}}},
        "a":{{"inputs":{{"b":"b"}},{pin}}},"b":{{"inputs":{{"a":"a"}},{pin}}}}}}}"#
    );
    let lock = parse(&text).unwrap();
    let names: Vec<_> = lock
        .graph()
        .inputs
        .iter()
        .map(|i| i.path.to_string())
        .collect();
    assert_eq!(names, ["a", "a/b", "a/b/a"]);
    assert_eq!(lock.to_json()["nodes"]["b"]["inputs"]["a"], "a");
}

#[test]
fn names_are_numbered_depth_first() {
    let pin = r#""locked":{"type":"path"},"original":{"type":"path"}"#;
    let text = format!(
        r#"{{"version":7,"root":"r","nodes":{{"r":{{"inputs":{{"a":"1","n":"2"}}}},
        "1":{{"inputs":{{"n":"3"}},{pin}}},"2":{{{pin}}},"3":{{{pin}}},"unused":{{{pin}}}}}}}"#
    );
    let json = parse(&text).unwrap().to_json();
    assert_eq!(
        json["nodes"]["root"]["inputs"],
        serde_json::json!({"a": "a", "n": "n_2"})
    );
    assert_eq!(json["nodes"]["a"]["inputs"]["n"], "n");
    assert_eq!(json["nodes"].as_object().unwrap().len(), 4);
}

#[test]
fn duplicates() {
    let pin = |rev: &str, hash: &str| {
        format!(
            r#""locked":{{"type":"github","owner":"o","repo":"p","rev":"{rev}","narHash":"{hash}"}},"original":{{"type":"indirect","id":"p"}}"#
        )
    };
    let text = format!(
        r#"{{"version":7,"root":"r","nodes":{{"r":{{"inputs":{{"a":"1","n":"2","x":["n"]}}}},
        "1":{{"inputs":{{"n":"3"}},"locked":{{"type":"path"}},"original":{{"type":"path"}}}},
        "2":{{{}}},"3":{{{}}}}}}}"#,
        pin("1", "x"),
        pin("2", "y")
    );
    let lock = parse(&text).unwrap();
    let twice = &lock.graph().duplicates;
    assert_eq!(twice.len(), 1);
    assert_eq!(twice[0].url, "github:o/p");
    assert!(!twice[0].is_same);
    let names: Vec<_> = twice[0].inputs.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["a/n", "n"]);
}
