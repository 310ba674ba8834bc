//! Files of version managers: .tool-versions (asdf), mise.toml, .python-version, .nvmrc, .node-version.

use super::scan::{DetectError, ProjectScan};
use crate::{flake_facts::FlakeReason, text::is_variable};

/// A tool and the version that such a file names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolPin {
    /// The tool, by its name in asdf and mise without the part that names a source.
    pub tool: String,
    /// The version, as it is written.
    pub version: String,
    /// The place in the file that names the tool.
    pub because: FlakeReason,
}

impl ProjectScan {
    /// The first version that is named for `tool`; nobody else gets it.
    pub fn take_pin(&mut self, tool: &str) -> Option<ToolPin> {
        let at = self.pins.iter().position(|pin| pin.tool == tool)?;
        let first = self.pins.remove(at);
        self.pins.retain(|pin| pin.tool != tool);
        Some(first)
    }
}

/// Reads those that are there.
pub fn read(scan: &mut ProjectScan) -> Result<(), DetectError> {
    for (file, tool) in [
        (".python-version", "python"),
        (".nvmrc", "node"),
        (".node-version", "node"),
    ] {
        let text = scan.read(file)?.unwrap_or_default();
        if let Some((line, version)) = lines(&text).next() {
            pin(scan, tool, version, FlakeReason::new(file, version, line));
        }
    }
    let text = scan.read(".tool-versions")?.unwrap_or_default();
    for (line, words) in lines(&text) {
        let mut words = words.split_whitespace();
        let Some(tool) = words.next() else { continue };
        let Some(version) = words.next() else {
            return Err(scan.malformed(".tool-versions", line, format!("{tool:?} has no version")));
        };
        let because = FlakeReason::new(".tool-versions", tool, line);
        pin(scan, tool, version, because);
    }
    mise(scan)
}

fn mise(scan: &mut ProjectScan) -> Result<(), DetectError> {
    let Some(name) = scan.first_of(&["mise.toml", ".mise.toml"]) else {
        return Ok(());
    };
    let Some(file) = scan.toml(name)? else {
        return Ok(());
    };
    let tools = file.get("tools");
    for (tool, value) in tools.into_iter().flat_map(|tools| tools.entries()) {
        let first = value.elements().next().and_then(|first| first.string());
        let named = value.get("version").and_then(|version| version.string());
        let version = value.string().or(first).or(named).unwrap_or("latest");
        pin(scan, tool, version, value.reason(format!("tools.{tool}")));
    }
    let variables = file.get("env");
    for (name, value) in variables.into_iter().flat_map(|env| env.entries()) {
        let because = value.reason(format!("env.{name}"));
        match value.string() {
            Some(text) if is_variable(name) && !text.contains("{{") => {
                scan.variable(name, text, because);
            }
            _ => scan.note(because, "no plain value: the shell does not get it"),
        }
    }
    Ok(())
}

/// The lines that say something, without comments, and their numbers.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let all = text.lines().enumerate();
    let all = all.map(|(at, line)| (at + 1, line.split('#').next().unwrap_or_default().trim()));
    all.filter(|(_, line)| !line.is_empty())
}

fn pin(scan: &mut ProjectScan, tool: &str, version: &str, because: FlakeReason) {
    let tool = tool.rsplit([':', '/']).next().unwrap_or(tool);
    let tool = match tool {
        "nodejs" => "node",
        "golang" => "go",
        "python3" => "python",
        other => other,
    };
    scan.pins.push(ToolPin {
        tool: tool.to_owned(),
        version: version.to_owned(),
        because,
    });
}

/// The tools that no language asked for.
pub fn detect_rest(scan: &mut ProjectScan) {
    while let Some(tool) = scan.pins.first().map(|pin| pin.tool.clone()) {
        let Some(pin) = scan.take_pin(&tool) else {
            break;
        };
        let attribute = match tool.as_str() {
            "node" => Some(node_attribute(scan, &pin)),
            "python" => Some(python_attribute(scan, &pin)),
            other => TOOLS
                .iter()
                .find(|(name, _)| *name == other)
                .map(|(_, attribute)| (*attribute).to_owned()),
        };
        match attribute {
            Some(attribute) => {
                if !["node", "python"].contains(&tool.as_str()) && !is_any(&pin.version) {
                    let text = format!(
                        "the shell has {attribute} of nixpkgs, whether or not that is {}",
                        pin.version
                    );
                    scan.note(pin.because.clone(), text);
                }
                scan.tool(attribute, pin.because);
            }
            None => {
                let unfree = UNFREE.iter().find(|(name, _)| *name == tool);
                let text = match unfree {
                    Some((_, instead)) => format!(
                        "its package is unfree, so that nixpkgs refuses it: allow it and add it to the shell, or take {instead}"
                    ),
                    None => "no package of nixpkgs is known for this tool: add it to the shell"
                        .to_owned(),
                };
                scan.note(pin.because, text);
            }
        }
    }
}

fn is_any(version: &str) -> bool {
    ["latest", "system", "lts", "stable"].contains(&version)
}

/// The node of nixpkgs for a version.
pub fn node_attribute(scan: &mut ProjectScan, pin: &ToolPin) -> String {
    let digits = pin
        .version
        .trim_start_matches(|c: char| !c.is_ascii_digit());
    let major = digits
        .split(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap_or_default();
    if NODES.contains(&major) {
        return format!("nodejs_{major}");
    }
    if !is_any(&pin.version) && !pin.version.starts_with("lts") {
        let text = format!("nixpkgs has no node {}: it is its default", pin.version);
        scan.note(pin.because.clone(), text);
    }
    "nodejs".to_owned()
}

/// The python of nixpkgs for a version, `3.12` or `3.12.4`.
pub fn python_attribute(scan: &mut ProjectScan, pin: &ToolPin) -> String {
    let digits = pin
        .version
        .trim_start_matches(|c: char| !c.is_ascii_digit());
    let mut parts = digits.split('.');
    let (major, minor) = (parts.next(), parts.next().unwrap_or_default());
    let minor = minor
        .split(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap_or_default();
    if major == Some("3") && PYTHONS.contains(&minor) {
        return format!("python3{minor}");
    }
    if !is_any(&pin.version) && pin.version != "3" {
        let text = format!("nixpkgs has no python {}: it is its default", pin.version);
        scan.note(pin.because.clone(), text);
    }
    "python3".to_owned()
}

/// Majors of node, and minors of python 3, in nixpkgs 26.05.
const NODES: [&str; 2] = ["22", "24"];
const PYTHONS: [&str; 4] = ["11", "12", "13", "14"];

/// Tools whose packages are unfree in nixpkgs 26.05 (all under BSL-1.1), and what is free.
const UNFREE: [(&str, &str); 7] = [
    ("boundary", "another tool"),
    ("consul", "another tool"),
    ("nomad", "another tool"),
    ("packer", "another tool"),
    ("terraform", "opentofu"),
    ("vagrant", "another tool"),
    ("vault", "openbao"),
];

/// Names in asdf and mise, and in nixpkgs: free packages only, or the whole shell is refused.
#[rustfmt::skip]
const TOOLS: &[(&str, &str)] = &[
    ("actionlint", "actionlint"), ("awscli", "awscli2"), ("bat", "bat"), ("biome", "biome"), ("black", "black"),
    ("buf", "buf"), ("bun", "bun"), ("clojure", "clojure"), ("cmake", "cmake"), ("crystal", "crystal"),
    ("deno", "deno"), ("direnv", "direnv"), ("dotnet", "dotnet-sdk"), ("dprint", "dprint"), ("elixir", "elixir"),
    ("elm", "elmPackages.elm"), ("erlang", "erlang"), ("fd", "fd"), ("fzf", "fzf"), ("gcloud", "google-cloud-sdk"),
    ("gh", "gh"), ("gleam", "gleam"), ("go", "go"), ("golangci-lint", "golangci-lint"), ("goreleaser", "goreleaser"),
    ("gradle", "gradle"), ("hadolint", "hadolint"), ("helm", "kubernetes-helm"), ("hugo", "hugo"), ("java", "jdk"),
    ("jq", "jq"), ("just", "just"), ("k9s", "k9s"), ("kind", "kind"), ("kotlin", "kotlin"), ("kubectl", "kubectl"),
    ("kustomize", "kustomize"), ("lefthook", "lefthook"), ("lua", "lua"), ("make", "gnumake"), ("maven", "maven"),
    ("mdbook", "mdbook"), ("nim", "nim"), ("ninja", "ninja"), ("ocaml", "ocaml"), ("opentofu", "opentofu"),
    ("perl", "perl"), ("php", "php"), ("pnpm", "pnpm"), ("poetry", "poetry"),
    ("pre-commit", "pre-commit"), ("protoc", "protobuf"), ("pulumi", "pulumi"), ("ripgrep", "ripgrep"),
    ("ruby", "ruby"), ("ruff", "ruff"), ("rust", "rustup"), ("sbt", "sbt"), ("scala", "scala"),
    ("shellcheck", "shellcheck"), ("shfmt", "shfmt"), ("sops", "sops"), ("sqlc", "sqlc"), ("task", "go-task"),
    ("terragrunt", "terragrunt"), ("tflint", "tflint"), ("typos", "typos"),
    ("usql", "usql"), ("uv", "uv"), ("watchexec", "watchexec"), ("yarn", "yarn"), ("yq", "yq-go"), ("zig", "zig"),
];
