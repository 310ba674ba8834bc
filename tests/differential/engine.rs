//! Cases in batches; those that fail alone again, and smaller.

use crate::support::{Rig, Tally, VERSIONS, quick, rig};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use std::{env, fmt::Debug};

/// What became of each case of a batch, in order; or, when nothing can be said of single ones,
/// why the batch failed.
pub type Verdicts = Result<Vec<Verdict>, String>;

/// `Err` says how ours and Nix's differ.
pub type Verdict = Result<(), String>;

/// A case that failed.
#[derive(Debug)]
pub struct Find<C> {
    /// Which of the cases it was.
    pub index: usize,
    /// The case, as small as it could be made.
    pub case: C,
    /// What is wrong with it.
    pub message: String,
}

/// Whose cases, and how many.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// What they are made from: each case from this and its number.
    pub seed: u64,
    /// How many.
    pub cases: usize,
    /// How many go to one check.
    pub batch: usize,
}

impl Plan {
    /// `cases` of them, with the seed that the user wants.
    pub fn new(cases: usize, batch: usize) -> Plan {
        let seed = variable("TK_SEED").unwrap_or(SEED);
        Plan { seed, cases, batch }
    }

    /// One batch, always the same: for faults that are planted, and are in it.
    pub fn planted(batch: usize) -> Plan {
        Plan {
            seed: SEED,
            cases: batch,
            batch,
        }
    }

    /// The first case that `check` refuses, made small; `None` if all pass.
    pub fn search<S: Strategy>(
        &self,
        strategy: &S,
        mut check: impl FnMut(&[S::Value]) -> Verdicts,
    ) -> Option<Find<S::Value>> {
        let numbers: Vec<usize> = (0..self.cases).collect();
        for numbers in numbers.chunks(self.batch) {
            let mut trees: Vec<_> = numbers.iter().map(|n| self.tree(strategy, *n)).collect();
            let cases: Vec<_> = trees.iter().map(ValueTree::current).collect();
            if let Some((at, message)) = first_failure(&cases, &mut check) {
                let (case, message) = smaller(trees.swap_remove(at), message, &mut check);
                let index = numbers[at];
                return Some(Find {
                    index,
                    case,
                    message,
                });
            }
        }
        None
    }

    fn tree<S: Strategy>(&self, strategy: &S, number: usize) -> S::Tree {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.seed.to_le_bytes());
        seed[8..16].copy_from_slice(&(number as u64).to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
        let config = Config {
            failure_persistence: None,
            ..Config::default()
        };
        let mut runner = TestRunner::new_with_rng(config, rng);
        strategy.new_tree(&mut runner).expect("nothing is rejected")
    }
}

/// Runs a family with every Nix that is there: all cases with the newest, a part of them with the
/// others.
///
/// # Panics
/// When a case fails, with the smallest one that does.
pub fn hold<S: Strategy>(
    family: &str,
    batch: usize,
    strategy: &S,
    check: impl FnMut(&Rig, &[S::Value]) -> Verdicts,
) {
    hold_share(family, 1, batch, strategy, check);
}

/// The same with one case of so many: for what takes long, or is one of several families of a kind.
pub fn hold_share<S: Strategy>(
    family: &str,
    one_of: usize,
    batch: usize,
    strategy: &S,
    mut check: impl FnMut(&Rig, &[S::Value]) -> Verdicts,
) {
    for rig in VERSIONS.iter().filter_map(|version| rig(version)) {
        let plan = Plan::new(cases(rig.version).div_ceil(one_of), batch);
        let row = format!("{family}, Nix {}, seed {}", rig.version, plan.seed);
        let mut tally = Tally::new(TABLE, &[&row]);
        let find = plan.search(strategy, |cases| {
            let verdicts = check(&rig, cases)?;
            assert_eq!(verdicts.len(), cases.len(), "a verdict for each case");
            let passed = verdicts.iter().take_while(|verdict| verdict.is_ok());
            for _ in passed {
                tally.case(&row, "", || Ok(()));
            }
            Ok(verdicts)
        });
        if let Some(find) = find {
            tally.case(&row, "", || Err(told(&find, &plan)));
        }
        tally.finish();
    }
}

/// Checks that `find` was found, and is small enough: what a planted fault must come to.
///
/// # Panics
/// When it was not.
pub fn expect_find<C: Debug>(find: Option<Find<C>>, small: impl FnOnce(&C) -> bool) {
    let find = find.expect("the planted fault is found");
    assert!(small(&find.case), "not small: {find:?}");
}

fn told<C: Debug>(find: &Find<C>, plan: &Plan) -> String {
    let Find {
        index,
        case,
        message,
    } = find;
    let (seed, cases) = (plan.seed, index + 1);
    format!("case {index} (TK_SEED={seed} TK_CASES={cases}): {message}\n{case:?}")
}

/// How many cases Nix `version` gets.
fn cases(version: &str) -> usize {
    let usual = if quick() { CASES / PART } else { CASES };
    let all = variable("TK_CASES").map_or(usual, |cases| cases as usize);
    match version {
        NEWEST => all,
        _ => all.div_ceil(PART),
    }
}

fn variable(name: &str) -> Option<u64> {
    let value = env::var(name).ok().filter(|value| !value.is_empty())?;
    let number = value.parse();
    Some(number.unwrap_or_else(|e| panic!("{name}={value}: {e}")))
}

/// The place of the first case that fails, and why. A batch that fails as a whole is halved until
/// it is one case.
fn first_failure<C>(
    cases: &[C],
    check: &mut impl FnMut(&[C]) -> Verdicts,
) -> Option<(usize, String)> {
    let message = match check(cases) {
        Ok(verdicts) => {
            let mut verdicts = verdicts.into_iter().enumerate();
            return verdicts.find_map(|(at, verdict)| Some((at, verdict.err()?)));
        }
        Err(message) if cases.len() == 1 => return Some((0, message)),
        Err(message) => message,
    };
    let (left, right) = cases.split_at(cases.len() / 2);
    let in_right = |(at, message)| (left.len() + at, message);
    first_failure(left, check)
        .or_else(|| first_failure(right, check).map(in_right))
        .or_else(|| Some((0, format!("only in a batch of {}: {message}", cases.len()))))
}

/// The smallest case that `tree` shrinks to and that fails when it is alone. The case as it is,
/// with `message`, if it fails only among others.
fn smaller<T: ValueTree>(
    mut tree: T,
    message: String,
    check: &mut impl FnMut(&[T::Value]) -> Verdicts,
) -> (T::Value, String) {
    let mut fails = |tree: &T| {
        let case = [tree.current()];
        let (_, message) = first_failure(&case, check)?;
        let [case] = case;
        Some((case, message))
    };
    let Some(mut smallest) = fails(&tree) else {
        return (tree.current(), format!("only among others: {message}"));
    };
    let mut goes_on = tree.simplify();
    for _ in 0..MAX_STEPS {
        if !goes_on {
            break;
        }
        goes_on = match fails(&tree) {
            Some(smaller) => {
                smallest = smaller;
                tree.simplify()
            }
            None => tree.complicate(),
        };
    }
    smallest
}

/// All rows of all families.
const TABLE: &str = "generated cases beside real Nix";
const NEWEST: &str = "2.34";
/// Of each family, with the newest Nix.
const CASES: usize = 1000;
/// The others, and the short run, get one of so many.
const PART: usize = 5;
/// The same cases in every run, unless the user wants others.
const SEED: u64 = 1;
/// Steps in making a case smaller: each starts Nix several times.
const MAX_STEPS: usize = 200;

/// The engine itself, without Nix.
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::any};

    fn plan(cases: usize) -> Plan {
        Plan {
            seed: 7,
            cases,
            batch: 64,
        }
    }

    /// Refuses lists with a number above 99.
    fn picky(cases: &[Vec<u16>]) -> Verdicts {
        let verdict = |case: &Vec<u16>| {
            if case.iter().any(|n| *n > 99) {
                Err("too large".to_owned())
            } else {
                Ok(())
            }
        };
        Ok(cases.iter().map(verdict).collect())
    }

    #[test]
    fn a_failure_is_found_and_made_small() {
        let strategy = vec(0u16..110, 0..5);
        let find = plan(500).search(&strategy, picky).expect("one of 500");
        assert_eq!(find.case, [100]);
        assert_eq!(find.message, "too large");
        let again = plan(find.index + 1).search(&strategy, picky);
        assert_eq!(again.expect("the same").index, find.index);
        assert!(plan(find.index).search(&strategy, picky).is_none());
    }

    #[test]
    fn a_batch_that_fails_as_a_whole_is_halved() {
        let whole = |cases: &[Vec<u16>]| {
            let verdicts = picky(cases)?;
            if verdicts.iter().all(Result::is_ok) {
                Ok(verdicts)
            } else {
                Err("one of them".to_owned())
            }
        };
        let strategy = vec(0u16..110, 0..5);
        let find = plan(500).search(&strategy, whole).expect("one of 500");
        let other = plan(500).search(&strategy, picky).expect("one of 500");
        assert_eq!((find.index, find.case), (other.index, other.case));
        let crowd = |cases: &[u8]| match cases.len() {
            1 => Ok(vec![Ok(())]),
            _ => Err("a crowd".to_owned()),
        };
        let find = plan(64).search(&any::<u8>(), crowd).expect("a crowd");
        assert!(find.message.contains("only among others"), "{find:?}");
    }
}
