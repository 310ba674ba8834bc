use super::{FlakeFileError, FlakeLock, InputAttrs, InputPath, LockEdge, LockNode, LockedInput};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a flake.lock. Large ones have some hundred KiB.
pub const MAX_LOCK_BYTES: u64 = 16 << 20;
/// Nodes of a flake.lock. Large ones have some hundred.
pub const MAX_LOCK_NODES: usize = 10_000;
/// Inputs of all nodes of a flake.lock together.
pub const MAX_LOCK_EDGES: usize = 50_000;
/// How many inputs of inputs are below one another, also in what is followed.
pub const MAX_LOCK_DEPTH: usize = 100;

impl FlakeLock {
    /// Reads the text of a flake.lock; `file` is what errors call it.
    ///
    /// # Errors
    /// If Nix would refuse it: a version that is not 5 to 7, a node that is named but not there, an input without
    /// `locked` or `original`; also if it is larger than [`MAX_LOCK_BYTES`] or has more than [`MAX_LOCK_NODES`] or
    /// [`MAX_LOCK_EDGES`], or is nested deeper than [`MAX_LOCK_DEPTH`].
    /// Attributes inside of `locked` are not looked at.
    pub fn parse(file: &str, text: &str) -> Result<FlakeLock, FlakeFileError> {
        let reader = LockReader { file, text };
        if text.len() as u64 > MAX_LOCK_BYTES {
            let bytes = text.len();
            return Err(reader.error("", format!("a lock of {bytes} bytes is too large")));
        }
        let json: Value = serde_json::from_str(text).map_err(|error| FlakeFileError {
            file: file.to_owned(),
            line: error.line().max(1),
            what: format!("not JSON: {}", without_place(&error)),
        })?;
        reader.lock(&json)
    }
}

/// serde_json says the place in its words, too.
fn without_place(error: &serde_json::Error) -> String {
    let words = error.to_string();
    let end = words.rfind(" at line ").unwrap_or(words.len());
    words[..end].to_owned()
}

struct LockReader<'a> {
    file: &'a str,
    text: &'a str,
}

impl LockReader<'_> {
    fn lock(&self, json: &Value) -> Result<FlakeLock, FlakeFileError> {
        let Some(version) = json.get("version").and_then(Value::as_u64) else {
            return Err(self.error("version", "it has no version".into()));
        };
        if !VERSIONS.contains(&version) {
            let what = format!("version {version} is not known; known are 5, 6 and 7");
            return Err(self.error("version", what));
        }
        let Some(root) = json.get("root").and_then(Value::as_str) else {
            return Err(self.error("root", "it names no root".into()));
        };
        let Some(all) = json.get("nodes").and_then(Value::as_object) else {
            return Err(self.error("nodes", "it has no nodes".into()));
        };
        if all.len() > MAX_LOCK_NODES {
            let what = format!("{} nodes are more than {MAX_LOCK_NODES}", all.len());
            return Err(self.error("nodes", what));
        }
        if !all.contains_key(root) {
            return Err(self.error("root", format!("its root '{root}' is not among its nodes")));
        }
        let mut nodes = BTreeMap::new();
        for (key, node) in all {
            let read = self.node(node, key == root);
            let read = read.map_err(|what| self.error(key, format!("node '{key}': {what}")))?;
            nodes.insert(key.clone(), read);
        }
        for (key, node) in &nodes {
            for edge in node.inputs.values() {
                let LockEdge::Node(target) = edge else {
                    continue;
                };
                if target == root {
                    let what = format!("node '{key}': an input of it is the root itself");
                    return Err(self.error(key, what));
                }
                if !nodes.contains_key(target) {
                    let what = format!("node '{key}' refers to '{target}', which is not there");
                    return Err(self.error(key, what));
                }
            }
        }
        let lock = FlakeLock {
            version,
            root: root.to_owned(),
            nodes,
        };
        lock.check_size()
            .map_err(|what| self.error("nodes", what))?;
        Ok(lock)
    }

    fn node(&self, node: &Value, is_root: bool) -> Result<LockNode, String> {
        let mut inputs = BTreeMap::new();
        if let Some(all) = node.get("inputs") {
            let all = all.as_object().ok_or("its inputs are not an object")?;
            for (name, target) in all {
                inputs.insert(name.clone(), edge(target)?);
            }
        }
        let pin = if is_root { None } else { Some(pin(node)?) };
        Ok(LockNode { inputs, pin })
    }

    /// The error at the line where the object `key` begins, or else at the first that has `key` in quotes.
    fn error(&self, key: &str, what: String) -> FlakeFileError {
        let quoted = Value::from(key).to_string();
        let object = self.text.find(&format!("{quoted}: {{"));
        let at = object.or_else(|| self.text.find(&quoted)).unwrap_or(0);
        FlakeFileError {
            file: self.file.to_owned(),
            line: 1 + self.text[..at].matches('\n').count(),
            what,
        }
    }
}

impl FlakeLock {
    /// Whether it can be written and shown, which both go depth first, with an answer that is not much larger.
    fn check_size(&self) -> Result<(), String> {
        let edges: usize = self.nodes.values().map(|node| node.inputs.len()).sum();
        if edges > MAX_LOCK_EDGES {
            return Err(format!("{edges} inputs are more than {MAX_LOCK_EDGES}"));
        }
        let (mut seen, mut bytes) = (BTreeSet::new(), 0);
        // A node, how deep it is, and how long its name from the root is.
        let mut open = vec![(self.root.as_str(), 0, 0)];
        while let Some((key, depth, prefix)) = open.pop() {
            if !seen.insert(key) {
                continue;
            }
            for (name, edge) in self.nodes[key].inputs.iter().rev() {
                if depth >= MAX_LOCK_DEPTH {
                    return Err(format!("its inputs are more than {MAX_LOCK_DEPTH} deep"));
                }
                let path = prefix + name.len() + NAME_COST;
                bytes += path;
                if bytes > MAX_PATH_BYTES {
                    return Err("the names of its inputs from the root are too long".into());
                }
                if let LockEdge::Node(target) = edge {
                    open.push((target, depth + 1, path));
                }
            }
        }
        Ok(())
    }
}

fn edge(target: &Value) -> Result<LockEdge, String> {
    match target {
        Value::String(key) => Ok(LockEdge::Node(key.clone())),
        Value::Array(_) => Ok(LockEdge::Follows(input_path(target)?)),
        _ => Err("an input of it is neither a node nor a list of names".into()),
    }
}

fn input_path(list: &Value) -> Result<InputPath, String> {
    let names = list.as_array().into_iter().flatten();
    if names.clone().count() > MAX_LOCK_DEPTH {
        return Err(format!("a list has more than {MAX_LOCK_DEPTH} names"));
    }
    let names = names.map(|name| {
        let name = name.as_str();
        name.map(str::to_owned)
            .ok_or("a list of names has something else".to_owned())
    });
    Ok(InputPath(names.collect::<Result<_, _>>()?))
}

fn pin(node: &Value) -> Result<LockedInput, String> {
    let attrs = |name: &str| {
        let value = node.get(name).ok_or(format!("it has no '{name}'"))?;
        InputAttrs::from_json(value)
    };
    let mut locked = attrs("locked")?;
    // Only version 5 has it.
    if node.get("info").is_some() {
        for (name, value) in attrs("info")?.iter() {
            locked.set(name, value.clone());
        }
    }
    let is_flake = match node.get("flake") {
        None => true,
        Some(flag) => flag.as_bool().ok_or("its 'flake' is not a boolean")?,
    };
    let parent = node.get("parent").map(|parent| match parent {
        Value::Array(_) => input_path(parent),
        _ => Err("its 'parent' is not a list of names".into()),
    });
    Ok(LockedInput {
        original: attrs("original")?,
        locked,
        is_flake,
        parent: parent.transpose()?,
    })
}

/// Bytes of the names of all inputs from the root, with what it costs to hold them.
const MAX_PATH_BYTES: usize = 64 << 20;
/// Bytes that it costs to hold a name, beside its own.
const NAME_COST: usize = 48;
const VERSIONS: std::ops::RangeInclusive<u64> = 5..=7;
