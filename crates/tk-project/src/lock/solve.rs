//! A lock for what flake.nix asks for. Mirrors `lockFlake` of `flake.cc` in Nix 2.34.

use super::{
    FlakeFileError, FlakeLock, InputAttrs, InputPath, LockEdge, LockNode, LockedInput,
    MAX_LOCK_BYTES, MAX_LOCK_DEPTH, MAX_LOCK_EDGES, MAX_LOCK_NODES,
};
use crate::{
    fetch::{FetchError, FetchOptions, FetchedInput, FetchedTree},
    inputs::{DeclaredInput, DeclaredInputs, canonical, is_relative, names_from},
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    rc::Rc,
};

/// Which inputs are looked up anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockUpdates {
    /// Those that flake.lock does not have as flake.nix asks for them.
    Needed,
    /// These, and those.
    Inputs(BTreeSet<InputPath>),
    /// All inputs are looked up anew.
    All,
}

/// A lock that was made.
#[derive(Debug)]
#[non_exhaustive]
pub struct SolvedLock {
    /// The lock that fits flake.nix.
    pub lock: FlakeLock,
    /// Whether it says something else than what was there before.
    pub is_changed: bool,
    /// What Nix warns of: overrides of what is not there, names to update that are not there.
    pub warnings: Vec<String>,
}

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// A flake.nix or flake.lock is wrong.
    #[error(transparent)]
    File(#[from] FlakeFileError),
    /// An input could not be fetched.
    #[error("input '{input}': {source}")]
    Fetch {
        /// The input that is meant.
        input: InputPath,
        /// Why its source could not be had.
        source: FetchError,
    },
    /// The inputs fit together in no way.
    #[error("input '{input}': {what}")]
    Input {
        /// The input that is meant.
        input: InputPath,
        /// What is wrong with it.
        what: String,
    },
}

/// Makes the lock of the flake in `folder`, whose lock is `old`. Blocks.
///
/// # Errors
/// If flake.nix cannot be read without running it, or an input cannot be fetched.
pub fn solve_lock(
    folder: &Path,
    old: Option<&FlakeLock>,
    updates: LockUpdates,
    options: &FetchOptions<'_>,
) -> Result<SolvedLock, LockError> {
    let before = Rc::new(old.cloned().unwrap_or_else(FlakeLock::empty));
    let mut solver = LockSolver {
        options,
        is_all: updates == LockUpdates::All,
        updates: match updates {
            LockUpdates::Inputs(inputs) => inputs,
            _ => BTreeSet::new(),
        },
        met: BTreeSet::new(),
        nodes: BTreeMap::new(),
        edges: 0,
        overrides: BTreeMap::new(),
        fetched: Vec::new(),
        parents: Vec::new(),
        warnings: Vec::new(),
    };
    let root = InputPath::default();
    let (source, below) = source_of(folder);
    let place = LockPlace {
        shown: source.display().to_string(),
        tree: Rc::new(RefCell::new(FetchedTree::Folder(source))),
        folder: below,
    };
    let declared = solver.declared(&place, &root)?;
    let key = solver.node(None, &root)?;
    let old_root = OldNode {
        lock: before.clone(),
        key: before.root_key().to_owned(),
    };
    let old_root = (!solver.is_all).then_some(old_root);
    solver.inputs(
        &declared.inputs,
        &LockStep {
            key: key.clone(),
            path: root.clone(),
            old: old_root,
            follows: root,
            place,
            trust: TrustLock::Check,
        },
    )?;
    for name in solver.updates.difference(&solver.met) {
        solver
            .warnings
            .push(format!("this flake has no input '{name}'"));
    }
    let lock = FlakeLock::from_nodes(&key, solver.nodes);
    check(&lock)?;
    Ok(SolvedLock {
        is_changed: lock.to_json() != before.to_json(),
        lock,
        warnings: solver.warnings,
    })
}

/// Whether all that inputs follow is there.
fn check(lock: &FlakeLock) -> Result<(), LockError> {
    for input in lock.graph().inputs {
        if let LockEdge::Follows(target) = input.edge
            && !target.0.is_empty()
        {
            let found = lock.find(target);
            let what = match found {
                Ok(Some(_)) => continue,
                Ok(None) => format!("it follows '{target}', which is not there"),
                Err(what) => what,
            };
            return Err(LockError::Input {
                input: input.path,
                what,
            });
        }
    }
    Ok(())
}

struct LockSolver<'a> {
    options: &'a FetchOptions<'a>,
    is_all: bool,
    updates: BTreeSet<InputPath>,
    /// The inputs that were met.
    met: BTreeSet<InputPath>,
    nodes: BTreeMap<String, LockNode>,
    /// How many inputs all nodes have together.
    edges: usize,
    overrides: BTreeMap<InputPath, InputOverride>,
    /// What was fetched already, by what was asked for.
    fetched: Vec<(InputAttrs, InputAttrs, Rc<RefCell<FetchedTree>>)>,
    /// The flakes that are being looked at.
    parents: Vec<InputAttrs>,
    warnings: Vec<String>,
}

/// An input that an outer flake gives another one.
#[derive(Clone)]
struct InputOverride {
    input: DeclaredInput,
    place: LockPlace,
    parent: InputPath,
}

/// Where a flake is: a folder in a source.
#[derive(Clone)]
struct LockPlace {
    tree: Rc<RefCell<FetchedTree>>,
    folder: String,
    /// What errors call the source.
    shown: String,
}

/// A node of a lock that was there before.
#[derive(Clone)]
struct OldNode {
    lock: Rc<FlakeLock>,
    key: String,
}

/// Whether what follows something in a lock is taken as it is there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TrustLock {
    /// It is looked for in the flake, if nobody outside asks for it.
    Check,
    Trust,
}

/// The flake whose inputs are locked.
struct LockStep {
    /// Its new node.
    key: String,
    path: InputPath,
    old: Option<OldNode>,
    /// What names of `follows` are relative to.
    follows: InputPath,
    place: LockPlace,
    trust: TrustLock,
}

impl OldNode {
    fn node(&self) -> &LockNode {
        &self.lock.nodes[&self.key]
    }

    fn input(&self, name: &str) -> Option<OldNode> {
        match self.node().inputs.get(name)? {
            LockEdge::Node(key) => Some(OldNode {
                lock: self.lock.clone(),
                key: key.clone(),
            }),
            LockEdge::Follows(_) => None,
        }
    }
}

impl LockPlace {
    /// The file `name` of the flake.
    fn file(&self, name: &str) -> String {
        match self.folder.as_str() {
            "" => name.to_owned(),
            folder => format!("{folder}/{name}"),
        }
    }

    /// The folder at `path` from here.
    fn join(&self, path: &str) -> Result<LockPlace, String> {
        let names = names_from(&self.folder, path);
        let names = names.ok_or_else(|| format!("'{path}' leads out of its source"))?;
        Ok(LockPlace {
            folder: names.join("/"),
            ..self.clone()
        })
    }
}

impl LockSolver<'_> {
    fn inputs(
        &mut self,
        inputs: &BTreeMap<String, DeclaredInput>,
        step: &LockStep,
    ) -> Result<(), LockError> {
        if !inputs.is_empty() && step.path.0.len() >= MAX_LOCK_DEPTH {
            return Err(failed(&step.path, "inputs are nested too deep".into()));
        }
        self.edges += inputs.len();
        if self.edges > MAX_LOCK_EDGES {
            let what = format!("there are more than {MAX_LOCK_EDGES} inputs");
            return Err(failed(&step.path, what));
        }
        for (name, input) in inputs {
            self.add_overrides(input, &step.path.join(name), step);
        }
        let inner = self.overrides.keys().filter(|path| {
            path.0
                .split_last()
                .is_some_and(|(_, parent)| *parent == step.path.0[..])
        });
        for path in inner {
            let name = path.0.last().map(String::as_str).unwrap_or_default();
            if !inputs.contains_key(name) {
                let outer = &step.path;
                self.warnings.push(format!(
                    "input '{outer}' has no input '{name}' that could be another one"
                ));
            }
        }
        for (name, input) in inputs {
            self.input(name, input, step)?;
        }
        Ok(())
    }

    /// The outermost flake has the last word, so that what is there stays.
    fn add_overrides(&mut self, input: &DeclaredInput, prefix: &InputPath, step: &LockStep) {
        for (name, inner) in &input.overrides {
            let path = prefix.join(name);
            if inner.reference.is_some() || inner.follows.is_some() {
                let mut input = inner.clone();
                input.follows = input.follows.map(|follows| from_root(&step.path, &follows));
                self.overrides
                    .entry(path.clone())
                    .or_insert_with(|| InputOverride {
                        input,
                        place: step.place.clone(),
                        parent: step.path.clone(),
                    });
            }
            self.add_overrides(inner, &path, step);
        }
    }

    fn input(
        &mut self,
        name: &str,
        declared: &DeclaredInput,
        step: &LockStep,
    ) -> Result<(), LockError> {
        let path = step.path.join(name);
        let outer = self.overrides.get(&path).cloned();
        let mut input = declared.clone();
        let mut place = &step.place;
        let mut parent = &step.path;
        if let Some(outer) = &outer {
            input = outer.input.clone();
            input.is_flake = declared.is_flake;
            (place, parent) = (&outer.place, &outer.parent);
        }
        if let Some(follows) = &input.follows {
            self.set(&step.key, name, LockEdge::Follows(follows.clone()));
            return Ok(());
        }
        let reference = input.reference.clone().unwrap_or_else(|| {
            let mut attrs = InputAttrs::of_kind("indirect");
            attrs.set_text("id", name);
            attrs
        });
        let parent = is_relative(&reference).map(|_| parent.clone());
        self.met.insert(path.clone());
        let old = step.old.as_ref().filter(|_| !self.updates.contains(&path));
        let old = old.and_then(|old| old.input(name));
        let kept = old.filter(|old| {
            old.node().pin.as_ref().is_some_and(|pin| {
                canonical(&pin.original) == canonical(&reference) && pin.parent == parent
            })
        });
        match kept {
            Some(old) => self.keep(name, path, old, place, step),
            None => self.lock(name, path, reference, input.is_flake, parent, place, step),
        }
    }

    /// Takes a node as it was.
    fn keep(
        &mut self,
        name: &str,
        path: InputPath,
        old: OldNode,
        place: &LockPlace,
        step: &LockStep,
    ) -> Result<(), LockError> {
        let Some(pin) = old.node().pin.clone() else {
            return Ok(());
        };
        let key = self.node(Some(pin.clone()), &path)?;
        self.set(&step.key, name, LockEdge::Node(key.clone()));
        let is_below =
            |update: &InputPath| update.0.len() > path.0.len() && update.0.starts_with(&path.0);
        let known = if self.updates.iter().any(is_below) {
            None
        } else {
            self.known_inputs(&path, &old, step)
        };
        let mut below = LockStep {
            key,
            path: path.clone(),
            old: Some(old),
            follows: step.follows.clone(),
            place: step.place.clone(),
            trust: TrustLock::Trust,
        };
        if let Some(inputs) = known {
            return self.inputs(&inputs, &below);
        }
        below.trust = TrustLock::Check;
        below.place = match is_relative(&pin.locked) {
            Some(relative) => {
                let inner = place
                    .join(relative)
                    .and_then(|inner| inner.join(dir_of(&pin.locked)));
                inner.map_err(|what| failed(&path, what))?
            }
            None => {
                let tree = self.options.fetch_locked(&pin.locked);
                let tree = tree.map_err(|source| LockError::Fetch {
                    input: path.clone(),
                    source,
                })?;
                flake_place(tree, &pin.locked).map_err(|what| failed(&path, what))?
            }
        };
        let declared = self.declared(&below.place, &path)?;
        self.inputs(&declared.inputs, &below)
    }

    /// The inputs of a node, as the lock has them; `None` if the flake itself has to be asked.
    fn known_inputs(
        &self,
        path: &InputPath,
        old: &OldNode,
        step: &LockStep,
    ) -> Option<BTreeMap<String, DeclaredInput>> {
        let mut inputs = BTreeMap::new();
        for (name, edge) in &old.node().inputs {
            let mut input = DeclaredInput::default();
            match edge {
                LockEdge::Node(key) => {
                    let pin = old.lock.nodes[key].pin.as_ref()?;
                    input.reference = Some(pin.original.clone());
                    input.is_flake = pin.is_flake;
                }
                LockEdge::Follows(follows) => {
                    let is_asked_for = self.overrides.contains_key(&path.join(name));
                    if step.trust == TrustLock::Check && !is_asked_for {
                        return None;
                    }
                    input.follows = Some(from_root(&step.follows, follows));
                }
            }
            inputs.insert(name.clone(), input);
        }
        Some(inputs)
    }

    /// Fetches an input.
    #[allow(clippy::too_many_arguments, reason = "each is another thing")]
    fn lock(
        &mut self,
        name: &str,
        path: InputPath,
        reference: InputAttrs,
        is_flake: bool,
        parent: Option<InputPath>,
        place: &LockPlace,
        step: &LockStep,
    ) -> Result<(), LockError> {
        let mut pin = LockedInput {
            original: reference.clone(),
            locked: reference.clone(),
            is_flake,
            parent,
        };
        let inner = match is_relative(&reference) {
            Some(relative) if is_flake => {
                let inner = place
                    .join(relative)
                    .and_then(|inner| inner.join(dir_of(&reference)));
                Some(inner.map_err(|what| failed(&path, what))?)
            }
            Some(_) => None,
            None => {
                let (locked, tree) = self.fetch(&path, &reference)?;
                pin.locked = locked;
                let shown = reference.to_url();
                let place = LockPlace {
                    tree,
                    folder: String::new(),
                    shown,
                };
                let place = place.join(dir_of(&reference));
                Some(place.map_err(|what| failed(&path, what))?)
            }
        };
        let Some(mut place) = inner.filter(|_| is_flake) else {
            let key = self.node(Some(pin), &path)?;
            self.set(&step.key, name, LockEdge::Node(key));
            return Ok(());
        };
        let mut declared = self.declared(&place, &path)?;
        if pin.parent.is_none() {
            let mut again = pin.locked.clone();
            for (name, value) in declared.own.iter() {
                again.set(name, value.clone());
            }
            if again != pin.locked {
                again.remove("narHash");
                let (locked, tree) = self.fetch(&path, &again)?;
                pin.locked = locked;
                place.tree = tree;
                declared = self.declared(&place, &path)?;
            }
        }
        let key = self.node(Some(pin), &path)?;
        self.set(&step.key, name, LockEdge::Node(key.clone()));
        if self.parents.contains(&reference) {
            return Err(failed(
                &path,
                format!("{} is an input of itself", reference.to_url()),
            ));
        }
        let old = self.lock_of(&place)?.map(Rc::new);
        let old = old.map(|lock| OldNode {
            key: lock.root_key().to_owned(),
            lock,
        });
        self.parents.push(reference);
        let done = self.inputs(
            &declared.inputs,
            &LockStep {
                key,
                path: path.clone(),
                old,
                follows: path,
                place,
                trust: TrustLock::Check,
            },
        );
        self.parents.pop();
        done
    }

    /// What `reference` is now; each is fetched once.
    fn fetch(
        &mut self,
        path: &InputPath,
        reference: &InputAttrs,
    ) -> Result<(InputAttrs, Rc<RefCell<FetchedTree>>), LockError> {
        if let Some((_, locked, tree)) = self.fetched.iter().find(|(asked, ..)| asked == reference)
        {
            return Ok((locked.clone(), tree.clone()));
        }
        let fetched = self.options.fetch(reference);
        let FetchedInput { locked, tree } = fetched.map_err(|source| LockError::Fetch {
            input: path.clone(),
            source,
        })?;
        let tree = Rc::new(RefCell::new(tree));
        self.fetched
            .push((reference.clone(), locked.clone(), tree.clone()));
        Ok((locked, tree))
    }

    /// What the flake at `place` asks for. Names that it follows are made those from the root.
    fn declared(&self, place: &LockPlace, path: &InputPath) -> Result<DeclaredInputs, LockError> {
        let name = place.file("flake.nix");
        let Some(text) = self.text(place, &name, path)? else {
            return Err(failed(path, format!("{} has no {name}", place.shown)));
        };
        let file = if path.0.is_empty() {
            "flake.nix".into()
        } else {
            format!("{name} of input '{path}'")
        };
        let mut declared = DeclaredInputs::parse(&file, &text, &place.folder)?;
        for input in declared.inputs.values_mut() {
            input.follows = input
                .follows
                .take()
                .map(|follows| from_root(path, &follows));
        }
        Ok(declared)
    }

    /// The lock of the flake at `place`.
    fn lock_of(&self, place: &LockPlace) -> Result<Option<FlakeLock>, LockError> {
        let name = place.file("flake.lock");
        let text = self.text(place, &name, &InputPath::default())?;
        let shown = format!("{}/{name}", place.shown);
        Ok(text
            .map(|text| FlakeLock::parse(&shown, &text))
            .transpose()?)
    }

    fn text(
        &self,
        place: &LockPlace,
        name: &str,
        path: &InputPath,
    ) -> Result<Option<String>, LockError> {
        let read = place.tree.borrow_mut().read(name, MAX_LOCK_BYTES);
        let bytes = read.map_err(|source| LockError::Fetch {
            input: path.clone(),
            source: source.into(),
        })?;
        let text = bytes.map(String::from_utf8).transpose();
        text.map_err(|_| failed(path, format!("{name} is not UTF-8")))
    }

    /// A new node; its key.
    fn node(&mut self, pin: Option<LockedInput>, path: &InputPath) -> Result<String, LockError> {
        if self.nodes.len() >= MAX_LOCK_NODES {
            return Err(failed(
                path,
                format!("there are more than {MAX_LOCK_NODES} inputs"),
            ));
        }
        let key = self.nodes.len().to_string();
        self.nodes.insert(
            key.clone(),
            LockNode {
                inputs: BTreeMap::new(),
                pin,
            },
        );
        Ok(key)
    }

    fn set(&mut self, key: &str, name: &str, edge: LockEdge) {
        let node = self.nodes.get_mut(key).expect("nodes stay");
        node.inputs.insert(name.to_owned(), edge);
    }
}

/// The source of the flake in `folder`, and where the flake is in it: the source of one below the top of a repository
/// is all of that. As `parsePathFlakeRefWithFragment` of `flakeref.cc`.
fn source_of(folder: &Path) -> (PathBuf, String) {
    let in_repository = || {
        let real = folder.canonicalize().ok()?;
        let top = real.ancestors().find(|above| above.join(".git").exists())?;
        let below = real.strip_prefix(top).ok()?.to_str()?;
        (!below.is_empty()).then(|| (top.to_owned(), below.to_owned()))
    };
    in_repository().unwrap_or_else(|| (folder.to_owned(), String::new()))
}

fn flake_place(tree: FetchedTree, locked: &InputAttrs) -> Result<LockPlace, String> {
    let place = LockPlace {
        tree: Rc::new(RefCell::new(tree)),
        folder: String::new(),
        shown: locked.to_url(),
    };
    place.join(dir_of(locked))
}

fn dir_of(reference: &InputAttrs) -> &str {
    reference.text("dir").unwrap_or_default()
}

fn from_root(prefix: &InputPath, path: &InputPath) -> InputPath {
    InputPath(prefix.0.iter().chain(&path.0).cloned().collect())
}

fn failed(path: &InputPath, what: String) -> LockError {
    LockError::Input {
        input: path.clone(),
        what,
    }
}
