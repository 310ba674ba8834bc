//! The environment of packages: the programs of several, and of those that they bring along.

use super::{environment::ShellEnvironment, evaluation::ShellEvaluation, files};
use crate::{Cause, Installable, NixBuildOptions, NixFailure, Result};
use tk_path::{DerivedPath, StorePath};

impl ShellEvaluation<'_> {
    /// Builds packages: the `PATH` of their programs, and those that they bring along.
    pub(super) async fn packages(
        &self,
        all: &[Installable],
    ) -> Result<(ShellEnvironment, Vec<StorePath>)> {
        let mut targets = Vec::new();
        for what in all {
            targets.extend(self.targets(what).await?);
        }
        let build = NixBuildOptions {
            eval: self.options.clone(),
            ..NixBuildOptions::default()
        };
        let mut paths = Vec::new();
        let named = targets.iter().filter_map(|target| match &target.path {
            DerivedPath::Opaque(path) => Some(path.clone()),
            DerivedPath::Built { .. } => None,
        });
        let there = self.builder.store().store.valid(&named.collect()).await?;
        if let Some(roots) = &self.builder.store().roots {
            roots.add_temp_roots(&there).await?;
        }
        // What is there is not built.
        targets.retain(|target| match &target.path {
            DerivedPath::Opaque(path) if there.contains(path) => {
                paths.push(path.clone());
                false
            }
            _ => true,
        });
        let built = if targets.is_empty() {
            Vec::new()
        } else {
            self.builder
                .build_targets(&targets, &build, self.log)
                .await?
        };
        for built in built {
            for output in built?.outputs.values() {
                let path = self.config.dir.parse(output);
                let path = path.map_err(|e| NixFailure::new(Cause::Other, e.to_string()))?;
                if !paths.contains(&path) {
                    paths.push(path);
                }
            }
        }
        let mut folders = Vec::new();
        for path in self.with_propagated(&paths)? {
            folders.push(format!("{}/bin", self.config.dir.path(&path)));
        }
        let environment = ShellEnvironment::exported([("PATH", folders.join(":"))]);
        Ok((environment, paths))
    }

    /// `paths` and those that they say users of them need as well.
    fn with_propagated(&self, paths: &[StorePath]) -> Result<Vec<StorePath>> {
        let real = self.config.real_dir();
        let mut all = paths.to_vec();
        let mut next = 0;
        while next < all.len() && all.len() < MOST_PACKAGES {
            let file = real.join(all[next].as_str()).join(PROPAGATED);
            let text = files::read(&file, MAX_PROPAGATED).ok().flatten();
            let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
            for word in text.split_whitespace() {
                if let Ok(path) = self.config.dir.parse(word)
                    && !all.contains(&path)
                {
                    all.push(path);
                }
            }
            next += 1;
        }
        Ok(all)
    }
}

/// Where a package names others that its users need.
const PROPAGATED: &str = "nix-support/propagated-user-env-packages";
/// Bytes of that file.
const MAX_PROPAGATED: u64 = 1 << 20;
/// Packages in one environment.
const MOST_PACKAGES: usize = 10_000;
