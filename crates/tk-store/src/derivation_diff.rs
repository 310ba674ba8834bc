//! Why two derivations differ: which input, variable, argument or output is another one, down to where it begins.

use crate::{Error, Result, Store, derivation, packages::split_version};
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tk_path::{Derivation, DerivationOutput, HashPart, OutputName, StoreDir, StorePath};

/// How two derivations differ from each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DerivationDiff {
    /// The two.
    pub pair: [StorePath; 2],
    /// What differs. Where that is nothing but store paths that follow from other differences, such as the outputs' own
    /// paths, these stand for themselves.
    pub changes: Vec<DerivationChange>,
}

/// One difference between two derivations: what the first has, and the second. Texts are any bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DerivationChange {
    /// Derivations of one name, or one package, that they are built from, one each, and which outputs of it they use; how the two differ
    /// from each other is told on its own.
    Input([(StorePath, BTreeSet<String>); 2]),
    /// Derivations that they are built from, where those of one name or package cannot be told apart, or only one has any.
    Inputs(String, [BTreeSet<StorePath>; 2]),
    /// Paths that they are built from, of one name.
    Sources(String, [BTreeSet<StorePath>; 2]),
    /// The system to build on.
    Platform([Vec<u8>; 2]),
    /// The program that is run.
    Builder([Vec<u8>; 2]),
    /// Its arguments.
    Arguments([Vec<Vec<u8>>; 2]),
    /// A variable of its environment.
    Variable(Vec<u8>, [Option<Vec<u8>>; 2]),
    /// An output: its path, how its content is hashed, and its hash, as the file has them.
    Output(String, [Option<[String; 3]>; 2]),
}

/// How the derivations `pair` in `store` differ, and those that they are built from: each pair once, those after the ones in
/// which they are inputs. Nothing if they are the same.
///
/// Paths below the store directory that differ by their hash only are no difference where anything else differs: they follow
/// from it.
///
/// # Errors
/// [`Error::NotFound`] or [`Error::Malformed`] for a derivation that cannot be read, and when there are more than
/// [`MAX_DIFF_PAIRS`] pairs.
pub async fn diff_derivations(
    store: &dyn Store,
    pair: [StorePath; 2],
) -> Result<Vec<DerivationDiff>> {
    let mut found: HashMap<[StorePath; 2], Vec<DerivationChange>> = HashMap::new();
    let mut wave = BTreeSet::from([pair.clone()]);
    wave.retain(|[before, after]| before != after);
    let whole = !wave.is_empty();
    while !wave.is_empty() {
        if found.len() + wave.len() > MAX_DIFF_PAIRS {
            let words = format!("more than {MAX_DIFF_PAIRS} pairs of derivations differ");
            return Err(Error::invalid(words));
        }
        let compare = |pair: [StorePath; 2]| async move {
            let [before, after] = &pair;
            let drvs = [
                derivation::read(store, before).await?,
                derivation::read(store, after).await?,
            ];
            let changes = changes(store.dir(), &drvs)?;
            Ok::<_, Error>((pair, changes))
        };
        let compared = stream::iter(wave.into_iter().map(compare)).buffer_unordered(AT_ONCE);
        let compared: Vec<_> = compared.try_collect().await?;
        wave = compared
            .iter()
            .flat_map(|(_, found)| inputs(found))
            .collect();
        found.extend(compared);
        wave.retain(|pair| !found.contains_key(pair));
    }
    let mut diffs = Vec::with_capacity(found.len());
    let mut todo = Vec::from_iter(whole.then_some(pair));
    while let Some(pair) = todo.pop() {
        if let Some(changes) = found.remove(&pair) {
            todo.extend(inputs(&changes).rev());
            diffs.push(DerivationDiff { pair, changes });
        }
    }
    Ok(diffs)
}

/// The pairs of inputs that are told on their own.
fn inputs(changes: &[DerivationChange]) -> impl DoubleEndedIterator<Item = [StorePath; 2]> {
    changes.iter().filter_map(|change| match change {
        DerivationChange::Input([(before, _), (after, _)]) if before != after => {
            Some([before.clone(), after.clone()])
        }
        _ => None,
    })
}

fn changes(dir: &StoreDir, drvs: &[Derivation; 2]) -> Result<Vec<DerivationChange>> {
    let mut sorted = SortedChanges::new(dir);
    input_changes(drvs, &mut sorted);
    source_changes(drvs, &mut sorted);
    let [before, after] = drvs;
    sorted.texts(
        [&before.platform, &after.platform],
        DerivationChange::Platform,
    );
    sorted.texts([&before.builder, &after.builder], DerivationChange::Builder);
    let args = [before, after].map(|drv| {
        let args = drv.args.iter().map(|arg| arg.to_vec());
        args.collect::<Vec<_>>()
    });
    let hidden = args.each_ref().map(|args| {
        let args = args.iter().map(|arg| masked(dir, arg));
        args.collect::<Vec<_>>()
    });
    sorted.add(args[0] != args[1], hidden[0] != hidden[1], || {
        DerivationChange::Arguments(args)
    });
    let names: BTreeSet<&[u8]> = drvs
        .iter()
        .flat_map(|drv| drv.env.keys())
        .map(|name| &name[..])
        .collect();
    for name in names {
        let values = [before, after].map(|drv| drv.env.get(name));
        if values[0] == values[1] {
            continue;
        }
        let values = values.map(|value| value.map(|value| value.to_vec()));
        let hidden = values.each_ref();
        let hidden = hidden.map(|value| value.as_ref().map(|value| masked(dir, value)));
        sorted.add(true, hidden[0] != hidden[1], || {
            DerivationChange::Variable(name.to_vec(), values)
        });
    }
    output_changes(dir, drvs, &mut sorted)?;
    Ok(sorted.finish())
}

/// Changes, and apart from them those that may follow from others.
struct SortedChanges<'a> {
    dir: &'a StoreDir,
    causes: Vec<DerivationChange>,
    effects: Vec<DerivationChange>,
}

impl<'a> SortedChanges<'a> {
    fn new(dir: &'a StoreDir) -> Self {
        SortedChanges {
            dir,
            causes: Vec::new(),
            effects: Vec::new(),
        }
    }

    /// Adds a change if there is one; `cause` where more differs than hashes of store paths.
    fn add(&mut self, differs: bool, cause: bool, change: impl FnOnce() -> DerivationChange) {
        if cause {
            self.causes.push(change());
        } else if differs {
            self.effects.push(change());
        }
    }

    fn texts(&mut self, texts: [&[u8]; 2], change: fn([Vec<u8>; 2]) -> DerivationChange) {
        let hidden = texts.map(|text| masked(self.dir, text));
        self.add(texts[0] != texts[1], hidden[0] != hidden[1], || {
            change(texts.map(<[u8]>::to_vec))
        });
    }

    fn finish(self) -> Vec<DerivationChange> {
        if self.causes.is_empty() {
            self.effects
        } else {
            self.causes
        }
    }
}

/// `text` with a fixed text for the hash of each store path in it.
fn masked(dir: &StoreDir, text: &[u8]) -> Vec<u8> {
    let prefix = [dir.as_str().as_bytes(), b"/"].concat();
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some(at) = rest.windows(prefix.len()).position(|run| run == prefix) {
        let (before, hash) = rest.split_at(at + prefix.len());
        out.extend_from_slice(before);
        rest = hash;
        if let Some((hash, behind)) = hash.split_at_checked(HashPart::LEN)
            && HashPart::from_ascii(hash).is_ok()
        {
            out.extend_from_slice(b"...");
            rest = behind;
        }
    }
    out.extend_from_slice(rest);
    out
}

/// Those that only one of them has, by name.
fn by_name(all: [BTreeSet<&StorePath>; 2]) -> BTreeMap<&str, [BTreeSet<StorePath>; 2]> {
    let mut names: BTreeMap<&str, [BTreeSet<StorePath>; 2]> = BTreeMap::new();
    for (side, other) in [(0, 1), (1, 0)] {
        for path in all[side].difference(&all[other]) {
            names.entry(path.name()).or_default()[side].insert((*path).clone());
        }
    }
    names
}

/// The same, where names that only one of them has are put together if they are of one package: another version of it.
fn by_package(
    names: BTreeMap<&str, [BTreeSet<StorePath>; 2]>,
) -> BTreeMap<&str, [BTreeSet<StorePath>; 2]> {
    let mut packages: BTreeMap<&str, [BTreeSet<StorePath>; 2]> = BTreeMap::new();
    for (name, sets) in names {
        let package = if sets.iter().any(BTreeSet::is_empty) {
            split_version(name.trim_end_matches(".drv")).0
        } else {
            name
        };
        let both = packages.entry(package).or_default();
        for (all, more) in both.iter_mut().zip(sets) {
            all.extend(more);
        }
    }
    packages
}

fn input_changes(drvs: &[Derivation; 2], sorted: &mut SortedChanges<'_>) {
    let used = |side: usize, path: &StorePath| -> BTreeSet<String> {
        let node = drvs[side].inputs.drvs.get(path);
        let outputs = node.iter().flat_map(|node| node.outputs.iter());
        outputs.map(ToString::to_string).collect()
    };
    let all = drvs
        .each_ref()
        .map(|drv| drv.inputs.drvs.keys().collect::<BTreeSet<_>>());
    for path in all[0].intersection(&all[1]) {
        let both = [0, 1].map(|side| ((*path).clone(), used(side, path)));
        let differs = both[0] != both[1];
        sorted.add(differs, differs, || DerivationChange::Input(both));
    }
    for (name, paths) in by_package(by_name(all)) {
        let singles = paths.each_ref().map(|paths| match paths.len() {
            1 => paths.first(),
            _ => None,
        });
        sorted.add(true, true, || match singles {
            [Some(before), Some(after)] => {
                let both = [(0, before), (1, after)];
                DerivationChange::Input(both.map(|(side, path)| (path.clone(), used(side, path))))
            }
            _ => DerivationChange::Inputs(name.to_owned(), paths.clone()),
        });
    }
}

fn source_changes(drvs: &[Derivation; 2], sorted: &mut SortedChanges<'_>) {
    let all = drvs.each_ref().map(|drv| drv.inputs.srcs.iter().collect());
    for (name, paths) in by_name(all) {
        sorted.add(true, true, || {
            DerivationChange::Sources(name.to_owned(), paths)
        });
    }
}

fn output_changes(
    dir: &StoreDir,
    drvs: &[Derivation; 2],
    sorted: &mut SortedChanges<'_>,
) -> Result<()> {
    let names: BTreeSet<&OutputName> = drvs.iter().flat_map(|drv| drv.outputs.keys()).collect();
    for name in names {
        let outputs = drvs.each_ref().map(|drv| drv.outputs.get(name));
        let differs = outputs[0] != outputs[1];
        let only_path = match outputs {
            [
                Some(DerivationOutput::InputAddressed(before)),
                Some(DerivationOutput::InputAddressed(after)),
            ] => before.name() == after.name(),
            _ => false,
        };
        let mut texts = [None, None];
        for (side, output) in outputs.into_iter().enumerate() {
            if let Some(output) = output {
                let found = output.to_strings(dir, &drvs[side].name, name);
                let wrong = |e| Error::malformed(drvs[side].name.as_str(), e);
                texts[side] = Some(found.map_err(wrong)?);
            }
        }
        sorted.add(differs, differs && !only_path, || {
            DerivationChange::Output(name.to_string(), texts)
        });
    }
    Ok(())
}

/// The most pairs of derivations that are compared.
pub const MAX_DIFF_PAIRS: usize = 100_000;
/// Pairs that are read at once.
const AT_ONCE: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryStore;
    use tk_path::{InputOutputs, Inputs, modulo::Modulo};

    /// A shelf of derivations, each with what it is built from.
    #[derive(Default)]
    struct Shelf {
        store: MemoryStore,
        modulo: Option<Modulo>,
    }

    impl Shelf {
        /// Adds a derivation with these variables.
        async fn add(
            &mut self,
            name: &str,
            env: &[(&str, &str)],
            inputs: &[&StorePath],
        ) -> StorePath {
            let mut drv = Derivation {
                name: name.into(),
                outputs: [(OutputName::out(), DerivationOutput::Deferred)].into(),
                inputs: Inputs::default(),
                platform: "p".into(),
                builder: "b".into(),
                args: Vec::new(),
                env: env
                    .iter()
                    .map(|(name, value)| ((*name).into(), (*value).into()))
                    .collect(),
            };
            for input in inputs {
                let node = InputOutputs {
                    outputs: [OutputName::out()].into(),
                    ..Default::default()
                };
                drv.inputs.drvs.insert((*input).clone(), node);
            }
            let modulo = self
                .modulo
                .get_or_insert_with(|| Modulo::new(StoreDir::default()));
            drv.fill_outputs(modulo).unwrap();
            let path = derivation::add(&self.store, &drv).await.unwrap();
            modulo.add(path.clone(), &drv).unwrap();
            path
        }

        async fn diff(&self, before: &StorePath, after: &StorePath) -> Vec<DerivationDiff> {
            let pair = [before.clone(), after.clone()];
            diff_derivations(&self.store, pair).await.unwrap()
        }
    }

    fn variable(name: &str, values: [Option<&str>; 2]) -> DerivationChange {
        let values = values.map(|value| value.map(|value| value.as_bytes().to_vec()));
        DerivationChange::Variable(name.into(), values)
    }

    /// Two tops that differ only in what is at the bottom, by two ways.
    #[tokio::test]
    async fn down_to_the_cause_and_each_pair_once() {
        let mut shelf = Shelf::default();
        let mut tops = Vec::new();
        for flags in ["-O1", "-O2"] {
            let bottom = shelf.add("bottom", &[("FLAGS", flags)], &[]).await;
            let dir = shelf.store.dir();
            let uses = dir.path(&bottom);
            let left = shelf.add("left", &[("BOTTOM", &uses)], &[&bottom]).await;
            let right = shelf.add("right", &[], &[&bottom]).await;
            let top = shelf.add("top", &[("same", "x")], &[&left, &right]).await;
            tops.push((top, bottom));
        }
        let diffs = shelf.diff(&tops[0].0, &tops[1].0).await;
        let names: Vec<_> = diffs.iter().map(|diff| diff.pair[0].name()).collect();
        assert_eq!(names, ["top.drv", "left.drv", "bottom.drv", "right.drv"]);
        // Neither the outputs' paths nor the variable that names one: they follow.
        for diff in [&diffs[0], &diffs[1], &diffs[3]] {
            let inputs = |change| matches!(change, &DerivationChange::Input(_));
            assert!(diff.changes.iter().all(inputs), "{diff:?}");
        }
        assert_eq!(diffs[0].changes.len(), 2);
        let cause = variable("FLAGS", [Some("-O1"), Some("-O2")]);
        assert_eq!(diffs[2].changes, [cause]);
        assert!(shelf.diff(&tops[0].0, &tops[0].0).await.is_empty());
    }

    #[tokio::test]
    async fn inputs_and_variables_that_only_one_has() {
        let mut shelf = Shelf::default();
        let mut added = Vec::new();
        for name in ["dep-1", "dep-2", "dep-2.1", "lib-1", "lib-2a"] {
            added.push(shelf.add(name, &[("name", name)], &[]).await);
        }
        let [one, two, three, old, new] = <[StorePath; 5]>::try_from(added).unwrap();
        let before = [("A", ""), ("B", "b")];
        let before = shelf.add("x", &before, &[&one, &old]).await;
        let after = [("B", "b"), ("C", "c")];
        let after = shelf.add("x", &after, &[&two, &three, &new]).await;
        let diffs = shelf.diff(&before, &after).await;
        assert_eq!(diffs.len(), 2);
        // One of each side: another version of it.
        assert_eq!(diffs[1].pair, [old.clone(), new.clone()]);
        let used = |path| (path, BTreeSet::from(["out".to_owned()]));
        let sets = [[one].into(), [two, three].into()];
        let expected = [
            DerivationChange::Inputs("dep".into(), sets),
            DerivationChange::Input([old, new].map(used)),
            variable("A", [Some(""), None]),
            variable("C", [None, Some("c")]),
        ];
        assert_eq!(diffs[0].changes, expected);
    }

    #[tokio::test]
    async fn hashes_alone_count_where_nothing_else_differs() {
        let mut shelf = Shelf::default();
        let paths = ["0", "1"].map(|digit| format!("/nix/store/{}-x/bin", digit.repeat(32)));
        let before = shelf.add("x", &[("P", &paths[0])], &[]).await;
        let after = shelf.add("x", &[("P", &paths[1])], &[]).await;
        let diffs = shelf.diff(&before, &after).await;
        let expected = variable("P", [Some(&paths[0]), Some(&paths[1])]);
        assert!(diffs[0].changes.contains(&expected), "{diffs:?}");
        let dir = StoreDir::default();
        assert_eq!(masked(&dir, paths[0].as_bytes()), b"/nix/store/...-x/bin");
        for text in ["/nix/store/x", "/nix/store/", "/nix/stor", ""] {
            assert_eq!(masked(&dir, text.as_bytes()), text.as_bytes());
        }
    }
}
