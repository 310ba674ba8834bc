//! Where things are: our program, and the folder that is worked in.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where things are.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Place {
    /// Where everything is kept and filled [default: a folder of its own in target]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Our program, a release build [default: beside this one]
    #[arg(long, value_name = "PATH")]
    tk_store: Option<PathBuf>,
}

impl Place {
    /// The folder, which is made, and `tk-store`, which need not be there. `usual` is the name of the folder in target.
    pub fn find(&self, usual: &str) -> Result<(PathBuf, PathBuf)> {
        if cfg!(debug_assertions) {
            eprintln!(
                "tk-bench: this is a debug build; its figures mean nothing (cargo run --release)"
            );
        }
        let exe = std::env::current_exe()?;
        let target = exe.parent().and_then(Path::parent);
        let target = target.context("where is this program?")?;
        let dir = self.work.clone().unwrap_or_else(|| target.join(usual));
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let tk_store = self.tk_store.clone();
        let tk_store = tk_store.unwrap_or_else(|| exe.with_file_name("tk-store"));
        Ok((dir.canonicalize()?, tk_store))
    }
}
