//! Jobs with a fault in themselves: each is found, so that those of the product would be.

use super::{
    jobs::{Place, World},
    steps::{Kind, Steps},
    sweep::{Job, Outcome, sweep},
};
use async_trait::async_trait;
use std::{
    collections::BTreeMap, fs, io, os::unix::fs::PermissionsExt, path::Path, sync::Arc,
    time::Duration,
};
use tk_local::{LocalConfig, LocalStore};
use tk_store::{Error, Store, StoreExt};

#[test]
fn a_narinfo_before_its_nar() {
    let words = found(Plant::NarInfoFirst, Kind::Fail);
    assert!(words.contains("the content of"), "{words}");
}

#[test]
fn a_narinfo_before_those_of_its_references() {
    let words = found(Plant::ReferrersFirst, Kind::Stall);
    assert!(words.contains("is visible without"), "{words}");
}

#[test]
fn a_row_before_its_content() {
    let words = found(Plant::RowFirst, Kind::Gone);
    assert!(words.contains("the content of"), "{words}");
}

#[test]
fn something_left_behind() {
    let words = found(Plant::LeftBehind, Kind::Stall);
    assert!(words.contains("done again, but left-over"), "{words}");
}

#[test]
fn success_without_the_work() {
    let words = found(Plant::Swallows, Kind::Fail);
    assert!(words.contains("said that all is well"), "{words}");
}

#[test]
fn an_error_that_tells_nothing() {
    let words = found(Plant::Vague, Kind::Fail);
    assert!(words.contains("do not tell the reason"), "{words}");
}

#[test]
fn no_end() {
    let words = found(Plant::Hangs, Kind::Fail);
    assert!(words.contains("does not come to an end"), "{words}");
}

#[test]
fn a_thread_that_goes_on() {
    let words = found(Plant::GoesOn, Kind::Stall);
    assert!(words.contains("goes on after the job"), "{words}");
}

/// What is found of `plant` when it meets `kind`.
fn found(plant: Plant, kind: Kind) -> String {
    let world = World::new();
    let planted = Planted { plant, world };
    let found = sweep(&planted, &[kind], SHORT);
    found.expect_err("the planted fault is found")
}

/// What is wrong with a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plant {
    NarInfoFirst,
    ReferrersFirst,
    RowFirst,
    LeftBehind,
    Swallows,
    Vague,
    Hangs,
    GoesOn,
}

/// A push, or for [`Plant::RowFirst`] a pull, as it must not be.
struct Planted {
    plant: Plant,
    world: Arc<World>,
}

impl Planted {
    fn place(&self) -> Place {
        match self.plant {
            Plant::RowFirst => Place::Local,
            _ => Place::Cache,
        }
    }

    async fn work(&self, folder: &Path, steps: &Steps) -> Result<(), Error> {
        let left_over = folder.join("left-over");
        match self.plant {
            Plant::RowFirst => return self.pull(folder, steps).await,
            Plant::LeftBehind if !left_over.exists() => {
                copy_file(Path::new("/dev/null"), &left_over);
                steps.step("working").await?;
                fs::remove_file(left_over).expect("just made");
            }
            Plant::GoesOn => {
                tokio::task::spawn_blocking(|| std::thread::sleep(2 * SHORT));
            }
            _ => {}
        }
        self.push(folder, steps).await
    }

    /// Copies the files of the cache, in an order.
    async fn push(&self, folder: &Path, steps: &Steps) -> Result<(), Error> {
        let from = self.world.root(Place::Cache);
        let mut paths = self.world.paths().to_vec();
        if self.plant == Plant::ReferrersFirst {
            paths.reverse();
        }
        let narinfos = paths
            .iter()
            .map(|path| format!("{}.narinfo", path.hash_part()));
        let narinfos: Vec<_> = narinfos.collect();
        let nars = fs::read_dir(from.join("nar")).expect("a cache");
        let nars = nars.map(|nar| nar.expect("a NAR").file_name());
        let nars = nars.map(|name| format!("nar/{}", name.to_string_lossy()));
        let order: Vec<_> = match self.plant {
            Plant::NarInfoFirst => narinfos.iter().cloned().chain(nars).collect(),
            _ => nars.chain(narinfos.iter().cloned()).collect(),
        };
        for name in order {
            steps.step("copying a file").await?;
            copy_file(&from.join(&name), &folder.join(&name));
        }
        Ok(())
    }

    /// Registers paths before their content is there.
    async fn pull(&self, folder: &Path, steps: &Steps) -> Result<(), Error> {
        let open = |root: &Path| LocalStore::open(LocalConfig::chroot(root));
        let from = open(&self.world.root(Place::Local)).await?;
        let to = open(folder).await?;
        for path in self.world.paths() {
            let mut info = from.require_info(path).await?;
            info.registration_time = 0;
            let real = to.real_path(path);
            if to.valid(&[path.clone()].into()).await?.is_empty() {
                fs::write(&real, "").expect("writable");
                to.register(vec![info]).await?;
            }
            steps.step("unpacking").await?;
            copy_file(&from.real_path(path), &real);
        }
        Ok(())
    }
}

#[async_trait]
impl Job for Planted {
    fn name(&self) -> String {
        format!("planted {:?}", self.plant)
    }

    async fn prepare(&self, _: &Path) {}

    async fn run(&self, folder: &Path, steps: &Arc<Steps>) -> Outcome {
        match (self.work(folder, steps).await, self.plant) {
            (Ok(()), _) | (Err(_), Plant::Swallows) => Outcome::Done,
            (Err(_), Plant::Hangs) => std::future::pending().await,
            (Err(_), Plant::Vague) => {
                let error = Error::io("working", io::ErrorKind::Other);
                Outcome::Failed(vec![error])
            }
            (Err(error), _) => Outcome::Failed(vec![error]),
        }
    }

    async fn invariant(&self, folder: &Path) -> Result<(), String> {
        self.place().invariant(folder).await
    }

    async fn result(&self, folder: &Path) -> BTreeMap<String, String> {
        self.place().content(folder).await
    }
}

fn copy_file(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().expect("below a folder")).expect("writable");
    if to.exists() {
        fs::set_permissions(to, fs::Permissions::from_mode(0o644)).expect("ours");
    }
    fs::write(to, fs::read(from).expect("readable")).expect("writable");
    fs::set_permissions(to, fs::Permissions::from_mode(0o444)).expect("ours");
}

/// How long nothing may go on here, where some things do.
const SHORT: Duration = Duration::from_secs(2);
