//! Locks of generated graphs of flakes are, byte for byte, those of real Nix.

use super::{
    flakes::{Dice, FlakeBench, commit},
    support::cases,
};
use std::{collections::BTreeSet, fs, path::Path, process::Command};
use tk_project::{
    FlakeLock, InputPath,
    fetch::FetchOptions,
    lock::{LockUpdates, solve_lock},
};

/// The lock that we make, starting from the one that is there; the same where nothing changes.
fn ours(folder: &Path, updates: LockUpdates) -> Result<String, String> {
    let before = fs::read_to_string(folder.join("flake.lock")).ok();
    let old = before
        .as_ref()
        .map(|text| FlakeLock::parse("flake.lock", text).unwrap());
    let solved = solve_lock(folder, old.as_ref(), updates, &FetchOptions::default());
    let solved = solved.map_err(|e| e.to_string())?;
    Ok(if solved.is_changed {
        solved.lock.to_text()
    } else {
        before.unwrap_or_default()
    })
}

/// What Nix makes with `args`, of the lock `before`.
fn theirs(bench: &FlakeBench, before: Option<&str>, args: &[&str]) -> Result<String, String> {
    let folder = bench.path("root");
    put(&folder, before);
    let mut all = args.to_vec();
    let root = format!("path:{}", folder.display());
    all.extend(if args[1] == "update" {
        vec!["--flake", &root]
    } else {
        vec![root.as_str()]
    });
    all.extend(["--option", "tarball-ttl", "0"]);
    let done = bench.nix(&all);
    let made = fs::read_to_string(folder.join("flake.lock")).unwrap_or_default();
    put(&folder, before);
    done.map(|_| made)
}

fn put(folder: &Path, lock: Option<&str>) {
    let file = folder.join("flake.lock");
    match lock {
        Some(text) => fs::write(file, text).unwrap(),
        None => drop(fs::remove_file(file)),
    }
}

const NAMES: [&str; 5] = ["a", "b", "lib", "nixpkgs", "z-1"];

/// A graph: leaves of all kinds, and flakes that take them and one another.
struct Graph<'a> {
    bench: &'a FlakeBench,
    dice: Dice,
    /// What inputs may be, each with whether it is a flake, and the inputs that it has itself.
    targets: Vec<Target>,
    case: usize,
}

#[derive(Clone)]
struct Target {
    url: String,
    is_flake: bool,
    inputs: Vec<String>,
}

impl Graph<'_> {
    fn at(&self, name: &str) -> String {
        self.bench
            .path(&format!("{}/{name}", self.case))
            .display()
            .to_string()
    }

    fn leaves(&mut self) {
        let flake = "{ outputs = _: { }; }\n";
        let case = self.case;
        for name in ["leaf", "repo", "packed/top"] {
            self.bench.write(&format!("{case}/{name}/flake.nix"), flake);
            self.bench.write(
                &format!("{case}/{name}/data"),
                self.dice.roll(1000).to_string(),
            );
        }
        self.bench
            .write(&format!("{case}/repo/inner/flake.nix"), flake);
        let rev = self.bench.commit(&format!("{case}/repo"));
        self.bench.git(&format!("{case}/repo"), &["tag", "v1"]);
        let packed = self.at("packed.tar.gz");
        let tar = Command::new("tar")
            .args(["-caf", &packed, "-C", &self.at("packed"), "top"])
            .status();
        assert!(tar.unwrap().success());
        let repo = self.at("repo");
        for url in [
            format!("path:{}", self.at("leaf")),
            self.at("leaf"),
            format!("git+file://{repo}"),
            format!("git+file://{repo}?ref=main"),
            format!("git+file://{repo}?ref=refs/tags/v1"),
            format!("git+file://{repo}?rev={rev}"),
            format!("git+file://{repo}?dir=inner"),
            format!("git+file://{repo}?shallow=1&ref=main"),
            format!("git+file://{repo}?other=1"),
            format!("tarball+file://{packed}"),
            format!("file://{packed}"),
        ] {
            self.targets.push(Target {
                url,
                is_flake: true,
                inputs: vec![],
            });
        }
        let data = format!("file+file://{}/data", self.at("leaf"));
        self.targets.push(Target {
            url: data,
            is_flake: false,
            inputs: vec![],
        });
    }

    /// The text of a flake, and the names of its inputs. `folder` gets the folders that it refers to.
    fn flake(&mut self, folder: &Path) -> (String, Vec<String>) {
        let mut lines = Vec::new();
        let mut names: Vec<String> = Vec::new();
        let mut known: Vec<(String, Vec<String>)> = Vec::new();
        for name in NAMES {
            if self.dice.roll(5) < 2 {
                continue;
            }
            names.push(name.to_owned());
            let kind = self.dice.roll(8);
            if kind == 0 && !known.is_empty() {
                let (other, inner) = &known[self.dice.roll(known.len())];
                let path = match inner.len() {
                    0 => other.clone(),
                    n => format!("{other}/{}", inner[self.dice.roll(n)]),
                };
                lines.push(format!("  inputs.{name}.follows = \"{path}\";"));
                continue;
            }
            if kind == 1 {
                let sub = folder.join(format!("sub-{name}"));
                fs::create_dir_all(&sub).unwrap();
                fs::write(sub.join("flake.nix"), "{ outputs = _: { }; }\n").unwrap();
                let flake = if self.dice.roll(3) == 0 {
                    " flake = false;"
                } else {
                    ""
                };
                let url = if self.dice.roll(2) == 0 {
                    format!("\"path:./sub-{name}\"")
                } else {
                    format!("./sub-{name}")
                };
                lines.push(format!("  inputs.{name} = {{ url = {url};{flake} }};"));
                continue;
            }
            // Rather the last ones, so that flakes stand deep in one another.
            let last = self.targets.len().min(3);
            let at = match self.dice.roll(2) {
                0 => self.targets.len() - 1 - self.dice.roll(last),
                _ => self.dice.roll(self.targets.len()),
            };
            let target = self.targets[at].clone();
            let is_flake = target.is_flake && self.dice.roll(5) > 0;
            let flake = if is_flake { "" } else { " flake = false;" };
            let url = &target.url;
            lines.push(match self.dice.roll(3) {
                0 if is_flake => format!("  inputs.{name}.url = \"{url}\";"),
                1 if url.starts_with("path:") => {
                    let path = &url["path:".len()..];
                    format!("  inputs.{name} = {{ type = \"path\"; path = \"{path}\";{flake} }};")
                }
                _ => format!("  inputs.{name} = {{ url = \"{url}\";{flake} }};"),
            });
            if is_flake {
                for inner in &target.inputs {
                    match self.dice.roll(5) {
                        0 if names.len() > 1 => {
                            let other = &names[self.dice.roll(names.len() - 1)];
                            lines.push(format!(
                                "  inputs.{name}.inputs.{inner}.follows = \"{other}\";"
                            ));
                        }
                        1 => {
                            let other = self.targets[self.dice.roll(self.targets.len() / 2)]
                                .url
                                .clone();
                            lines
                                .push(format!("  inputs.{name}.inputs.{inner}.url = \"{other}\";"));
                        }
                        2 => lines.push(format!("  inputs.{name}.inputs.{inner}.follows = \"\";")),
                        _ => (),
                    }
                }
                known.push((name.to_owned(), target.inputs));
            }
        }
        let text = format!("{{\n{}\n  outputs = _: {{ }};\n}}\n", lines.join("\n"));
        (text, names)
    }

    /// Flakes that take the leaves and one another.
    fn flakes(&mut self) {
        for index in 0..3 + self.dice.roll(3) {
            let name = format!("f{index}");
            let folder = self.bench.path(&format!("{}/{name}", self.case));
            fs::create_dir_all(&folder).unwrap();
            let (text, inputs) = self.flake(&folder);
            fs::write(folder.join("flake.nix"), text).unwrap();
            if self.dice.roll(2) == 0
                && let Ok(lock) = ours(&folder, LockUpdates::Needed)
                && !lock.is_empty()
            {
                fs::write(folder.join("flake.lock"), lock).unwrap();
            }
            let mut url = format!("path:{}", folder.display());
            if self.dice.roll(3) == 0 {
                commit(&folder);
                url = format!("git+file://{}", folder.display());
            }
            self.targets.push(Target {
                url,
                is_flake: true,
                inputs,
            });
        }
    }

    fn root(&mut self) {
        let folder = self.bench.path("root");
        fs::create_dir_all(&folder).unwrap();
        let (text, _) = self.flake(&folder);
        fs::write(folder.join("flake.nix"), text).unwrap();
    }
}

/// Compares one lock; whether both say that there is none.
fn same(
    bench: &FlakeBench,
    case: usize,
    before: Option<&str>,
    args: &[&str],
    updates: LockUpdates,
) -> Option<String> {
    let expected = theirs(bench, before, args);
    put(&bench.path("root"), before);
    let found = ours(&bench.path("root"), updates);
    let flake = || fs::read_to_string(bench.path("root/flake.nix")).unwrap();
    match (expected, found) {
        (Ok(expected), Ok(found)) => {
            assert_eq!(
                found,
                expected,
                "case {case} {args:?}\n{}\nbefore {before:?}",
                flake()
            );
            Some(found).filter(|text| !text.is_empty())
        }
        (Err(_), Err(_)) => None,
        (expected, found) => {
            panic!(
                "case {case} {args:?}: nix {expected:?}\nours {found:?}\n{}",
                flake()
            )
        }
    }
}

/// Makes a graph, and locks it: anew, after a change of flake.nix, and after a change of an input.
fn compare(bench: &FlakeBench, case: usize) -> usize {
    let mut graph = Graph {
        bench,
        dice: Dice::new(case as u64 + 1),
        targets: vec![],
        case,
    };
    let _ = fs::remove_dir_all(bench.path("root"));
    graph.leaves();
    graph.flakes();
    graph.root();
    let lock = ["flake", "lock"];
    let mut before = same(bench, case, None, &lock, LockUpdates::Needed);
    let made = before.is_some() as usize;
    graph.root();
    before = same(bench, case, before.as_deref(), &lock, LockUpdates::Needed).or(before);
    bench.write(&format!("{case}/leaf/data"), "changed");
    bench.write(&format!("{case}/repo/data"), "changed");
    bench.commit(&format!("{case}/repo"));
    before = same(bench, case, before.as_deref(), &lock, LockUpdates::Needed).or(before);
    let Some(text) = before else { return made };
    let parsed = FlakeLock::parse("flake.lock", &text).unwrap();
    let inputs = parsed.graph().inputs;
    if inputs.is_empty() {
        return made;
    }
    let name = inputs[graph.dice.roll(inputs.len())].path.to_string();
    let updates = LockUpdates::Inputs(BTreeSet::from([InputPath::parse(&name).unwrap()]));
    same(
        bench,
        case,
        Some(&text),
        &["flake", "update", &name],
        updates,
    );
    same(
        bench,
        case,
        Some(&text),
        &["flake", "update"],
        LockUpdates::All,
    );
    made
}

#[test]
fn locks_are_those_of_nix() {
    let Some(bench) = FlakeBench::new("2.34") else {
        return;
    };
    let count = cases(6);
    let first: usize = std::env::var("TK_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let made: usize = (first..first + count)
        .map(|case| compare(&bench, case))
        .sum();
    assert!(
        made * 2 > count,
        "most graphs can be locked: {made} of {count}"
    );
}

#[test]
fn the_older_nix_agrees() {
    let Some(bench) = FlakeBench::new("2.26") else {
        return;
    };
    for case in 0..cases(2) {
        let mut graph = Graph {
            bench: &bench,
            dice: Dice::new(case as u64 + 7),
            targets: vec![],
            case,
        };
        let _ = fs::remove_dir_all(bench.path("root"));
        graph.leaves();
        // It keeps revCount where 2.34 does not.
        graph
            .targets
            .retain(|target| !target.url.contains("shallow"));
        graph.flakes();
        graph.root();
        // It takes no path for a URL.
        let file = bench.path("root/flake.nix");
        let text = fs::read_to_string(&file)
            .unwrap()
            .replace("url = ./", "url = \"path:./");
        let text = text.lines().map(|line| match line.split_once("path:./") {
            Some((before, after)) if !after.contains('"') => {
                let (name, rest) = after.split_once(';').unwrap();
                format!("{before}path:./{name}\";{rest}\n")
            }
            _ => format!("{line}\n"),
        });
        fs::write(&file, text.collect::<String>()).unwrap();
        same(&bench, case, None, &["flake", "lock"], LockUpdates::Needed);
    }
}
