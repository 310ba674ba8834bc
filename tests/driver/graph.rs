//! What a build needs, and what became of all of it.

use super::{Project, with_each};
use serde_json::Value;
use std::fs;

const GRAPH: &str = r#"
let
  mk = name: script: more: derivation ({
    inherit name; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" script ]; PATH = "/usr/bin:/bin";
  } // more);
in rec {
  bad1 = mk "bad1" "echo wrong one; exit 3" { };
  bad2 = mk "bad2" "echo wrong two; exit 4" { };
  bad3 = mk "bad3" "exit 5" { };
  top = mk "top" "echo ${bad1} ${bad2} > $out" { };
  other = mk "other" "echo ${bad3} > $out" { };
  multi = mk "multi" "echo a > $out; echo dev > $dev" { outputs = [ "out" "dev" ]; };
  dep = mk "dep" "echo dep > $out" { };
  last = mk "last" "echo ${dep} > $out" { };
  floating = mk "floating" "echo floating > $out" {
    __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";
  };
  traced = builtins.trace "seen" dep;
}
"#;

impl Project {
    fn drv(&self, attr: &str) -> String {
        let file = self.write("graph.nix", GRAPH);
        let file = file.display().to_string();
        self.daemon
            .ask("nix-instantiate", &[&file, "-A", attr])
            .trim()
            .to_owned()
    }
}

fn status_of(failure: &Value) -> (Option<&str>, Option<&str>, Vec<&str>) {
    let lines = failure["log"].as_array().unwrap().iter();
    let name = failure["derivation"]
        .as_str()
        .and_then(|drv| drv.split_once('-'));
    (
        name.map(|(_, name)| name),
        failure["status"].as_str(),
        lines.filter_map(Value::as_str).collect(),
    )
}

#[test]
fn all_failures_are_told() {
    with_each(|version, project| {
        project.write("graph.nix", GRAPH);
        let (status, value) = project.json("build -f graph.nix -A top -A other -A multi -k --json");
        assert_eq!(status, 1, "{version}: {value}");
        assert_eq!(value[0]["status"], "DependencyFailed", "{version}: {value}");
        let first = &value[0]["failure"];
        let others = first["others"].as_array().unwrap();
        assert_eq!(others.len(), 1, "{version}: {value}");
        let mut both = [status_of(first), status_of(&others[0])];
        both.sort();
        let failed = Some("PermanentFailure");
        let expected = [
            (Some("bad1.drv"), failed, vec!["wrong one"]),
            (Some("bad2.drv"), failed, vec!["wrong two"]),
        ];
        assert_eq!(both, expected, "{version}");
        // What another target needs is not its failure.
        let other = &value[1]["failure"];
        assert_eq!(status_of(other).0, Some("bad3.drv"), "{version}: {value}");
        assert_eq!(
            other["others"].as_array().unwrap().len(),
            0,
            "{version}: {value}"
        );
        assert_eq!(value[2]["success"], true, "{version}: {value}");
        let done = project.run("build -f graph.nix -A top -k");
        for words in ["exit status 3", "exit status 4", "built nothing"] {
            assert!(done.stderr.contains(words), "{version}: {words}: {done:?}");
        }
    });
}

#[test]
fn each_target_by_itself() {
    with_each(|version, project| {
        let (multi, dep) = (project.drv("multi"), project.drv("dep"));
        let (status, value) = project.json(&format!("build {multi}^out {multi}^dev --json"));
        assert_eq!(status, 0, "{version}: {value}");
        for (at, name) in [(0, "out"), (1, "dev")] {
            let outputs = value[at]["outputs"].as_object().unwrap();
            let names: Vec<_> = outputs.keys().map(String::as_str).collect();
            assert_eq!(names, [name], "{version}: {value}");
        }
        let (_, value) = project.json(&format!("build {dep}^out {dep}^nothing --json"));
        assert_eq!(value[0]["success"], true, "{version}: {value}");
        assert_eq!(value[1]["success"], false, "{version}: {value}");
        let done = project.run("build -f graph.nix -A traced");
        assert!(done.stderr.contains("trace: seen"), "{version}: {done:?}");
    });
}

#[test]
fn all_that_was_built_is_pushed() {
    with_each(|version, project| {
        let multi = project.drv("multi");
        let cache = project.folder.join("all");
        let push = format!("build {multi}^out --push file://{}", cache.display());
        assert_eq!(project.run(&push).status, 0, "{version}");
        let files = fs::read_dir(&cache).unwrap().map(|e| e.unwrap().path());
        let narinfos = files.filter(|f| f.extension().is_some_and(|e| e == "narinfo"));
        assert_eq!(narinfos.count(), 2, "{version}");
    });
}

#[test]
fn caches_have_what_is_needed() {
    with_each(|version, project| {
        let (dep, last) = (project.drv("dep"), project.drv("last"));
        let [one, two] = ["one", "two"].map(|name| project.folder.join(name));
        project.run("key generate k-1 --secret k.sec --public k.pub");
        let (one_uri, two_uri) = (
            format!("file://{}", one.display()),
            format!("file://{}", two.display()),
        );
        let done = project.run(&format!(
            "build {dep}^out --push {one_uri} --push {two_uri} --sign-key k.sec"
        ));
        assert_eq!(done.status, 0, "{version}: {done:?}");
        let path = done.stdout.trim().to_owned();
        project.daemon.ask("nix-store", &["--delete", &path]);
        // The first says that it has it, and does not.
        fs::remove_dir_all(one.join("nar")).unwrap();
        let prefer = format!(
            "build {last}^out --prefer-cache --from {one_uri} --from {two_uri} --trusted-key k.pub"
        );
        let (_, would) = project.json(&format!("{prefer} --dry-run --json"));
        assert_eq!(
            would["willBuild"].as_array().unwrap().len(),
            1,
            "{version}: {would}"
        );
        assert_eq!(
            would["willSubstitute"][0],
            path.as_str(),
            "{version}: {would}"
        );
        let done = project.run(&prefer);
        assert_eq!(done.status, 0, "{version}: {done:?}");
        for words in ["built 1 derivation", "fetched 1 path"] {
            assert!(done.stderr.contains(words), "{version}: {words}: {done:?}");
        }
        // Where an output is that is named after its content, its realisation tells.
        let floating = project.drv("floating");
        let push = format!("build {floating}^out --push {two_uri} --sign-key k.sec");
        let done = project.run(&push);
        assert_eq!(done.status, 0, "{version}: {done:?}");
        let path = done.stdout.trim().to_owned();
        project.daemon.ask("nix-store", &["--delete", &path]);
        let done = project.run(&format!(
            "build {floating}^out --prefer-cache --from {two_uri} --trusted-key k.pub"
        ));
        assert_eq!(done.status, 0, "{version}: {done:?}");
        assert_eq!(done.stdout.trim(), path, "{version}: {done:?}");
        assert!(
            done.stderr.contains("fetched 1 path"),
            "{version}: {done:?}"
        );
        assert!(!done.stderr.contains("built 1"), "{version}: {done:?}");
    });
}
