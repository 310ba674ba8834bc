//! CI files: what they say, read by a strict reader of the parts that they use.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use tk_project::ci::{
    CiCache, CiError, CiFileState, CiOptions, CiPlan, CiProject, CiService, CiTrigger,
    PINNED_ACTIONS,
};

const DIGEST: &str =
    "nixos/nix@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn project() -> CiProject {
    CiProject::of_json(&json!({
        "packages": { "x86_64-linux": { "default": { "type": "derivation" }, "tool": {} },
                      "aarch64-linux": ["default"] },
        "checks": { "x86_64-linux": ["format"], "aarch64-darwin": ["format"] },
        "devShells": { "x86_64-linux": ["default"] },
    }))
    .unwrap()
}

fn options() -> CiOptions {
    let mut options = CiOptions::default();
    options.systems = ["x86_64-linux", "aarch64-linux"].map(str::to_owned).into();
    options.runners = [("aarch64-linux".into(), "arm".into())].into();
    options.image = Some(DIGEST.into());
    options.jobs = vec![("gate".into(), "bash .ci/run\n\n  echo 'it''s': # x".into())];
    options.cache = Some(CiCache {
        uri: "s3://my-cache?endpoint=h&x=1".into(),
        tk_store: "github:o/tk-store/0123456789abcdef0123456789abcdef01234567".into(),
        secrets: vec!["TK_SIGN_KEY".into(), "AWS_SECRET_ACCESS_KEY".into()],
    });
    options
}

fn file(service: CiService, project: &CiProject, options: &CiOptions) -> Result<String, CiError> {
    let plan = CiPlan::new(project, options)?;
    service.file(&plan, options, "tk-store ci generate x --job 'a=b c'")
}

fn parsed(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

#[track_caller]
fn keys(value: &Value, known: &[&str]) {
    let map = value
        .as_object()
        .unwrap_or_else(|| panic!("no map: {value}"));
    let unknown = map.keys().find(|key| !known.contains(&key.as_str()));
    assert_eq!(unknown, None, "{value}");
}

/// Reads a workflow, and refuses what GitHub would: the validators let some of that pass.
fn check_workflow(file: &str, has_permissions: bool) -> Value {
    let flow = parsed(file);
    keys(
        &flow,
        &[
            "name",
            "on",
            "permissions",
            "concurrency",
            "defaults",
            "jobs",
        ],
    );
    assert_eq!(
        flow["on"],
        json!({"push": {"branches": ["main"]}, "pull_request": null})
    );
    assert_eq!(flow["permissions"], json!({}));
    for (name, job) in flow["jobs"].as_object().unwrap() {
        keys(
            job,
            &[
                "name",
                "runs-on",
                "permissions",
                "timeout-minutes",
                "strategy",
                "steps",
            ],
        );
        assert!(!has_permissions || job["permissions"] == json!({"contents": "read"}));
        let include = job["strategy"]["matrix"]["include"].as_array();
        let steps = job["steps"].as_array().unwrap();
        assert!(steps.len() > 2, "{name}");
        // Each expression of the matrix is in each of its runs.
        let text = job.to_string();
        for expression in text.split("${{ ").skip(1) {
            let expression = expression.split(" }}").next().unwrap();
            match expression.split_once('.') {
                Some(("matrix", key)) => {
                    let include = include.expect("a matrix");
                    assert!(
                        include.iter().all(|run| run[key].is_string()),
                        "{expression}"
                    );
                }
                Some(("secrets", _)) => {}
                _ => panic!("{expression}"),
            }
        }
        for step in steps {
            keys(step, &["name", "uses", "with", "if", "env", "run"]);
            assert_ne!(step["uses"].is_string(), step["run"].is_string(), "{step}");
            if let Some(uses) = step["uses"].as_str() {
                let (_, commit) = uses.rsplit_once('@').unwrap();
                assert!(
                    PINNED_ACTIONS.iter().any(|pin| pin.commit == commit),
                    "{uses}"
                );
            }
            let run = step["run"].as_str().unwrap_or_default();
            assert!(!run.contains("${{"), "an expression in a script: {run}");
            let is_secret = step["env"].to_string().contains("secrets.");
            assert_eq!(
                is_secret,
                step["if"] == "github.event_name == 'push'",
                "{step}"
            );
        }
    }
    flow
}

#[test]
fn pins_are_commits() {
    for pin in PINNED_ACTIONS {
        assert_eq!(pin.commit.len(), 40, "{pin:?}");
        assert!(
            pin.commit
                .chars()
                .all(|c| c.is_ascii_hexdigit() && !c.is_ascii_uppercase())
        );
        assert!(pin.source.contains(pin.repository) && pin.source.contains(pin.version));
        assert_eq!(pin.looked_up.len(), 10);
    }
}

#[test]
fn a_workflow_says_what_the_plan_does() {
    let (project, options) = (project(), options());
    let plan = CiPlan::new(&project, &options).unwrap();
    for service in [CiService::GitHub, CiService::Forgejo] {
        let text = file(service, &project, &options).unwrap();
        let flow = check_workflow(&text, true);
        let nix = &flow["jobs"]["nix"];
        let runs = &nix["strategy"]["matrix"]["include"];
        let first = match service {
            CiService::Forgejo => "docker",
            _ => "ubuntu-24.04",
        };
        assert_eq!(
            *runs,
            json!([
                {"system": "aarch64-linux", "runner": "arm", "build": ".#packages.aarch64-linux.default"},
                {"system": "x86_64-linux", "runner": first,
                 "build": ".#packages.x86_64-linux.default .#packages.x86_64-linux.tool"},
            ])
        );
        let steps = nix["steps"].as_array().unwrap();
        let scripts: Vec<_> = steps
            .iter()
            .filter_map(|s| s["run"].as_str())
            .map(str::trim_end)
            .collect();
        let planned: Vec<_> = plan
            .nix
            .steps
            .iter()
            .map(|step| step.script.as_str())
            .collect();
        assert_eq!(scripts, planned);
        let gate = &flow["jobs"]["gate"]["steps"][2]["run"];
        assert_eq!(gate.as_str().unwrap().trim_end(), options.jobs[0].1);
        assert_eq!(flow["jobs"]["gate"]["runs-on"], first);
    }
}

#[test]
fn gitlab_says_the_same() {
    let (project, options) = (project(), options());
    let plan = CiPlan::new(&project, &options).unwrap();
    let text = file(CiService::GitLab, &project, &options).unwrap();
    let flow = parsed(&text);
    keys(&flow, &["workflow", "default", "variables", "nix", "gate"]);
    assert_eq!(flow["default"]["image"], DIGEST);
    keys(&flow["nix"], &["parallel", "tags", "script"]);
    let scripts = flow["nix"]["script"].as_array().unwrap();
    assert_eq!(scripts.len(), plan.nix.steps.len());
    for (step, script) in plan.nix.steps.iter().zip(scripts) {
        let script = script.as_str().unwrap();
        assert!(script.contains(&step.script), "{script}");
        let is_guarded = script.starts_with("if [ \"$CI_PIPELINE_SOURCE\" = push ]");
        assert_eq!(is_guarded, step.trigger == CiTrigger::Push);
        assert_eq!(is_guarded, script.contains("must be protected variables"));
    }
    let mut without = options.clone();
    without.image = None;
    let error = file(CiService::GitLab, &project, &without).unwrap_err();
    assert!(
        error.to_string().contains("--image NAME@sha256:"),
        "{error}"
    );
}

/// A repository may have files of its own named `result…`.
#[test]
fn what_is_pushed_is_what_was_built() {
    let plan = CiPlan::new(&project(), &options()).unwrap();
    let [_, build, push] = &plan.nix.steps[..] else {
        panic!("{plan:?}")
    };
    let word = |script: &str, before: &str| {
        let (_, rest) = script.split_once(before).unwrap();
        rest.split_whitespace().next().unwrap().to_owned()
    };
    let link = word(&build.script, " --out-link ");
    assert!(link.starts_with("./.tk-store-results/"), "{link}");
    assert_eq!(word(&push.script, "if [ -e "), link);
    assert_eq!(word(&push.script, " tk-store push "), format!("{link}*"));
}

/// As on the service, where only the push has the secrets in its environment.
#[test]
fn a_secret_is_kept_from_all_other_steps() {
    let plan = CiPlan::new(&project(), &options()).unwrap();
    let secrets = BTreeSet::from(["AWS_SECRET_ACCESS_KEY", "TK_SIGN_KEY"]);
    let jobs = [&plan.nix].into_iter().chain(&plan.jobs);
    let mut pushes = 0;
    for step in jobs.flat_map(|job| &job.steps) {
        let kept = plan.secrets_kept_from(step);
        if step.trigger == CiTrigger::Push {
            assert!(kept.is_empty(), "{step:?}");
            pushes += 1;
        } else {
            assert_eq!(kept, secrets, "{step:?}");
        }
    }
    assert_eq!(pushes, 1);
}

#[test]
fn what_cannot_be_written_is_refused() {
    let project = project();
    let mut all = options();
    all.systems = Vec::new();
    let error = file(CiService::GitLab, &project, &all).unwrap_err();
    assert!(error.to_string().contains("aarch64-darwin"), "{error}");
    assert!(file(CiService::GitHub, &project, &all).is_ok());
    let changes: &[fn(&mut CiOptions)] = &[
        |o| o.branch = "main]\nx: y".into(),
        |o| o.branch = "-x".into(),
        |o| o.branch = "a'b".into(),
        |o| o.runners = [("x86_64-linux".into(), "${{ x }}".into())].into(),
        |o| o.jobs = vec![("nix".into(), "x".into())],
        |o| o.jobs = vec![("default".into(), "x".into())],
        |o| o.jobs = vec![("a b".into(), "x".into())],
        |o| o.jobs = vec![("a".into(), "echo ${{ secrets.X }}".into())],
        |o| o.jobs = vec![("a".into(), "\u{1b}[1m".into())],
        |o| o.jobs = vec![("a".into(), " ".into())],
        |o| o.image = Some("nixos/nix:latest".into()),
        |o| o.image = Some(DIGEST[..DIGEST.len() - 1].into()),
        |o| o.cache.as_mut().unwrap().uri = "s3://a' ; rm -rf /".into(),
        |o| o.cache.as_mut().unwrap().uri = "https://user:pass@host".into(),
        |o| o.cache.as_mut().unwrap().tk_store = "$(x)".into(),
        |o| o.cache.as_mut().unwrap().secrets = vec!["A-B".into()],
        |o| o.systems = vec!["riscv64-linux".into()],
    ];
    for (at, change) in changes.iter().enumerate() {
        let mut options = options();
        change(&mut options);
        let made = file(CiService::GitHub, &project, &options);
        assert!(made.is_err(), "change {at}: {}", made.unwrap());
    }
    // 'ci run' reads the command back.
    let plan = CiPlan::new(&project, &options()).unwrap();
    let made = CiService::GitHub.file(&plan, &options(), "tk-store ci generate x --job 'a=b\nc'");
    assert!(made.unwrap_err().to_string().contains("a=b\\nc"));
    let odd = json!({"packages": {"x86_64-linux": ["a b", "a.b", "$(x)", "fine"]}});
    let odd = CiProject::of_json(&odd).unwrap();
    assert_eq!(
        odd.left_out,
        ["$(x)", "a b", "a.b"].map(str::to_owned).into()
    );
    assert_eq!(
        odd.packages["x86_64-linux"],
        BTreeSet::from(["fine".to_owned()])
    );
    for wrong in [
        json!([]),
        json!({"packages": []}),
        json!({"packages": {"x86_64-linux": 1}}),
        json!({"packages": {"x86_64-linux": [1]}}),
        json!({"checks": {"x86_64-linux\n- x": ["a"]}}),
    ] {
        assert!(
            matches!(CiProject::of_json(&wrong), Err(CiError::Outputs(_))),
            "{wrong}"
        );
    }
    let none = CiProject::of_json(&json!({"lib": {}})).unwrap();
    let error = CiPlan::new(&none, &CiOptions::default()).unwrap_err();
    assert_eq!(error, CiError::Nothing);
}

#[test]
fn an_edit_is_seen() {
    let (project, options) = (project(), options());
    for service in CiService::ALL {
        let text = file(service, &project, &options).unwrap();
        assert_eq!(
            file(service, &project, &options).unwrap(),
            text,
            "made again"
        );
        assert_eq!(CiFileState::of(&text), CiFileState::Made);
        assert_eq!(
            CiFileState::command_of(&text),
            Some("tk-store ci generate x --job 'a=b c'")
        );
        for edited in [
            format!("{text}# more\n"),
            text.replacen("nix flake check", "nix flake show", 1),
            text.replacen("ci generate", "ci generated", 1),
            text.replacen("sha256 ", "sha256 0", 1),
        ] {
            assert_ne!(edited, text);
            assert_eq!(CiFileState::of(&edited), CiFileState::Edited);
        }
        for foreign in ["", "on: push\n", "a\nb\nc"] {
            assert_eq!(CiFileState::of(foreign), CiFileState::Foreign);
        }
    }
}

#[test]
fn any_text_comes_back_from_a_file() {
    for command in [
        "a: b",
        "- x",
        "yes",
        "on",
        "1",
        "0x1",
        "1e3",
        "~",
        "null",
        "#x",
        "x #y",
        "x:",
        "'",
        "\"",
        "a'b\"c",
        "é",
        "&a",
        "*a",
        "!t",
        "%x",
        "@x",
        "`x`",
        "{a}",
        "[a]",
        "a\n  b\nc",
        "a\n\nb",
        "  a",
        "a ",
        "? x",
        "|",
        ">",
        "=",
        "<<",
        "a\\nb",
        "2026-11-30",
        "1:30",
        ".5",
        "._",
        "-",
        "--x",
        "a\n b",
        "if x\nthen y # z\nfi",
    ] {
        let mut options = options();
        options.jobs = vec![("own".into(), command.into())];
        let text = file(CiService::GitHub, &project(), &options).unwrap();
        let flow = parsed(&text);
        let run = flow["jobs"]["own"]["steps"][2]["run"].as_str().unwrap();
        let end = if command.contains('\n') { "\n" } else { "" };
        assert!(
            run == command || *run == format!("{command}{end}"),
            "{command:?} {run:?}"
        );
    }
}
