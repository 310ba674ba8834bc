use super::DaemonStore;
use crate::{
    client::Connection,
    worker::ops::{AddIndirectRoot, AddPermRoot, AddTempRoot, FindRoots, Op},
};
use async_trait::async_trait;
use std::{collections::BTreeSet, io, os::unix::ffi::OsStrExt, path::Path};
use tk_nar::fs::replace_link;
use tk_path::StorePath;
use tk_store::{Error, Result, Root, Roots};
use tokio::sync::Mutex;

/// The connection that temporary roots hang on, which the pool must not close, and what they are.
#[derive(Default)]
pub(super) struct DaemonTempRoots {
    held: Mutex<HeldRoots>,
}

#[derive(Default)]
struct HeldRoots {
    connection: Option<Connection>,
    paths: BTreeSet<StorePath>,
}

#[async_trait]
impl Roots for DaemonStore {
    /// The roots live as long as this store is open: on a connection of its own, beside those of
    /// the pool. Should that break, the next call makes another, with all roots again.
    async fn add_temp_roots(&self, paths: &BTreeSet<StorePath>) -> Result<()> {
        let held = &mut *self.temp_roots.held.lock().await;
        let alive = held.connection.as_mut().is_some_and(Connection::is_alive);
        if alive && paths.is_subset(&held.paths) {
            return Ok(());
        }
        let mut wanted = paths.clone();
        let mut connection = match held.connection.take().filter(|_| alive) {
            Some(connection) => connection,
            None => {
                wanted.extend(held.paths.iter().cloned());
                self.pool.open().await?
            }
        };
        let requests = wanted.into_iter().map(|path| ((), AddTempRoot { path }));
        let requests = futures::stream::iter(requests);
        let mut outcome = Ok(());
        let answered = |(), answer: Result<_>| {
            if let Err(error) = answer {
                outcome = Err(error);
            }
        };
        connection.pipeline(requests, self.log(), answered).await?;
        held.connection = Some(connection);
        outcome?;
        held.paths.extend(paths.iter().cloned());
        Ok(())
    }

    async fn add_indirect_root(&self, link: &Path) -> Result<()> {
        require_absolute(link)?;
        let link = link.as_os_str().as_bytes().into();
        self.call(&AddIndirectRoot { link }).await.map(drop)
    }

    /// With the store's files on this machine the link is made here, by the user who asks, as Nix
    /// does; otherwise by the daemon, which does that only for those whom it trusts.
    async fn add_perm_root(&self, path: &StorePath, link: &Path) -> Result<()> {
        require_absolute(link)?;
        if self.config.real.is_some() {
            self.add_temp_root(path).await?;
            let (link_path, target) = (link.to_owned(), self.config.dir.path(path));
            let dir = self.config.dir.as_str().to_owned();
            let made = tokio::task::spawn_blocking(move || make_link(&link_path, &target, &dir));
            let made = made.await.map_err(io::Error::other).flatten();
            made.map_err(|e| Error::io(format!("making the link {}", link.display()), e))?;
            return self.add_indirect_root(link).await;
        }
        let mut connection = self.connection().await?;
        if !Op::AddPermRoot.supported(connection.protocol()) {
            return Err(self.unsupported("cannot make roots for others: its daemon is too old"));
        }
        let request = AddPermRoot {
            path: path.clone(),
            link: link.as_os_str().as_bytes().into(),
        };
        connection.call(&request, self.log()).await.map(drop)
    }

    async fn roots(&self) -> Result<Vec<Root>> {
        Ok(self.call(&FindRoots {}).await?.0)
    }
}

fn require_absolute(link: &Path) -> Result<()> {
    if link.is_absolute() {
        Ok(())
    } else {
        Err(Error::invalid(format!(
            "{} cannot be a root: its path is not absolute",
            link.display()
        )))
    }
}

/// Makes or replaces a link to `target`; what is there and is no link into `dir` stays.
fn make_link(link: &Path, target: &str, dir: &str) -> io::Result<()> {
    let made = replace_link(link, Path::new(target), |text| text.starts_with(dir));
    made.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            let text = format!("something else is there, which is not a link into {dir}");
            io::Error::new(io::ErrorKind::AlreadyExists, text)
        }
        _ => error,
    })
}
