//! Values are the same from every version.

use super::{Table, with_each};
use serde_json::json;

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
