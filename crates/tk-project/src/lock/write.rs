use super::{FlakeLock, LockEdge};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

impl FlakeLock {
    /// The text of the file, byte for byte as Nix 2.34 writes it, in version 7. Nodes that nobody uses are left
    /// out, and keys are given anew.
    pub fn to_text(&self) -> String {
        // nlohmann's `dump(2)` and this agree, also in what is escaped.
        format!("{:#}\n", self.to_json())
    }

    /// The same as JSON. Two locks that give the same are the same to Nix.
    pub fn to_json(&self) -> Value {
        let mut dump = LockDump {
            lock: self,
            keys: BTreeMap::new(),
            taken: BTreeSet::new(),
            numbers: BTreeMap::new(),
            nodes: Map::new(),
        };
        let root = dump.node("root", &self.root);
        json!({ "nodes": dump.nodes, "root": root, "version": super::CURRENT_VERSION })
    }
}

struct LockDump<'a> {
    lock: &'a FlakeLock,
    /// The new keys by the old ones.
    keys: BTreeMap<&'a str, String>,
    taken: BTreeSet<String>,
    /// The number behind each name that may be free.
    numbers: BTreeMap<String, usize>,
    nodes: Map<String, Value>,
}

impl<'a> LockDump<'a> {
    /// Writes the node with the old key `old`, which would like to be called `wish`, and all below it. Its key.
    /// Who reads and who makes a lock bounds the depth.
    fn node(&mut self, wish: &str, old: &'a str) -> String {
        if let Some(key) = self.keys.get(old) {
            return key.clone();
        }
        let key = self.free(wish);
        self.keys.insert(old, key.clone());
        let node = &self.lock.nodes[old];
        let mut out = Map::new();
        if !node.inputs.is_empty() {
            let mut inputs = Map::new();
            for (name, edge) in &node.inputs {
                let target = match edge {
                    LockEdge::Node(old) => self.node(name, old).into(),
                    LockEdge::Follows(path) => path.0.clone().into(),
                };
                inputs.insert(name.clone(), target);
            }
            out.insert("inputs".into(), inputs.into());
        }
        if let Some(pin) = &node.pin {
            out.insert("original".into(), pin.original.to_json());
            out.insert("locked".into(), pin.locked.to_json());
            if !pin.is_flake {
                out.insert("flake".into(), false.into());
            }
            if let Some(parent) = &pin.parent {
                out.insert("parent".into(), parent.0.clone().into());
            }
        }
        self.nodes.insert(key.clone(), out.into());
        key
    }

    /// `wish`, or with the first number behind it that is free.
    fn free(&mut self, wish: &str) -> String {
        let mut key = wish.to_owned();
        let number = self.numbers.entry(wish.to_owned()).or_insert(2);
        while !self.taken.insert(key.clone()) {
            key = format!("{wish}_{number}");
            *number += 1;
        }
        key
    }
}
