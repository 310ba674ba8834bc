mod derivations;

use crate::{CommandContext, ExitStatus, open::FromArgs, paths::NamedPaths, ui};
use anyhow::{Result, bail};
use serde_json::{Value, json};
use std::ffi::OsString;
use tk_nar::compare::MAX_DIFFERENCES;
use tk_nix::repro::difference_json;
use tk_path::StorePath;
use tk_store::{
    Closure, Store, closure, compare,
    packages::{PackageChange, PackageShare, package_changes},
};

/// Tell what differs between two paths: packages, files, or what they are built from
///
/// Of two paths, prints the packages of which their closures have other versions or another size, as nix store
/// diff-closures. Of two derivations, prints which input, variable, argument or output differs, and the same of each
/// input that differs. The exit status is 1 if something differs, which may be less than a line tells.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct DiffCommand {
    /// The first path
    #[arg(value_name = "BEFORE")]
    before: OsString,
    /// The second path
    #[arg(value_name = "AFTER")]
    after: OsString,
    #[command(flatten)]
    from: FromArgs,
    /// Compare the files of the two paths themselves: tell which were added, removed or changed, and from
    /// which byte on
    #[arg(long)]
    files: bool,
    /// Tell so many differences between files
    #[arg(long, value_name = "N", default_value_t = MAX_DIFFERENCES, requires = "files")]
    max_differences: usize,
    /// Print an object with all of it
    #[arg(long)]
    json: bool,
}

impl DiffCommand {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let texts = [self.before.clone(), self.after.clone()];
        let opened = self.from.open(cx, &texts).await?;
        let mut pair = Vec::new();
        for text in &texts {
            let (path, member) = NamedPaths::one(&opened, text).await?;
            if !member.is_empty() {
                bail!(
                    "{} is inside of a store path; whole paths are compared",
                    text.display()
                );
            }
            pair.push(path);
        }
        let store = opened.store();
        let [before, after] = [pair.remove(0), pair.remove(0)];
        match (self.files, before.is_derivation(), after.is_derivation()) {
            (true, _, _) => self.files(cx, &*store, [before, after]).await,
            (false, true, true) => derivations::tell(cx, &*store, [before, after], self.json).await,
            _ => self.packages(cx, &*store, [before, after]).await,
        }
    }

    async fn packages(
        &self,
        cx: &CommandContext,
        store: &dyn Store,
        pair: [StorePath; 2],
    ) -> Result<ExitStatus> {
        let mut closures = Vec::new();
        let mut answer = ExitStatus::Yes;
        for path in &pair {
            let asked = closure(store, [path.clone()]);
            let found = cx.ui.asking(path.as_str(), asked).await?;
            answer = answer.max(super::tell_absent(cx, &found, store));
            closures.push(found);
        }
        if answer != ExitStatus::Yes {
            // What is not there cannot be compared.
            return Ok(ExitStatus::Failed);
        }
        let changes = package_changes(&closures[0], &closures[1]);
        if self.json {
            let side = |i: usize| json!({ "path": store.dir().path(&pair[i]), "narSize": closures[i].nar_size() });
            let packages: Vec<_> = changes.iter().map(package).collect();
            ui::out(json!({ "before": side(0), "after": side(1), "packages": packages }))?;
        } else {
            ui::out_all(&changes)?;
        }
        let [removed, added] = [others(&closures, 0, 1), others(&closures, 1, 0)];
        let sizes = [&closures[0], &closures[1]].map(|found| ui::size(found.nar_size()));
        cx.ui.say(format_args!(
            "{} {} removed, {} added; {} before, {} after",
            ui::paths(removed),
            ui::were(removed),
            added,
            sizes[0],
            sizes[1]
        ));
        Ok(if removed + added > 0 {
            ExitStatus::No
        } else {
            ExitStatus::Yes
        })
    }

    async fn files(
        &self,
        cx: &CommandContext,
        store: &dyn Store,
        pair: [StorePath; 2],
    ) -> Result<ExitStatus> {
        let [before, after] = &pair;
        let nars = [
            (before.to_string(), store.nar(before).await?),
            (after.to_string(), store.nar(after).await?),
        ];
        let work = compare(nars, self.max_differences);
        let compared = cx.ui.asking("both NARs", work).await?;
        let found = &compared.found;
        let shown = pair.each_ref().map(|path| store.dir().path(path));
        if self.json {
            let differences: Vec<_> = found.differences.iter().map(difference_json).collect();
            ui::out(json!({
                "before": { "path": shown[0], "narHash": compared.hashes[0].sri() },
                "after": { "path": shown[1], "narHash": compared.hashes[1].sri() },
                "differences": differences,
                "differenceCount": found.count,
            }))?;
        } else {
            for difference in &found.differences {
                let path = match difference.shown_path() {
                    path if path.is_empty() => "/".to_owned(),
                    path => path,
                };
                ui::out(format_args!("{path}: {difference}"))?;
            }
        }
        let rest = found.count.saturating_sub(found.differences.len() as u64);
        if rest > 0 {
            cx.ui
                .say(format_args!("{rest} more differences are not shown"));
        }
        Ok(if found.is_same() {
            ExitStatus::Yes
        } else {
            ExitStatus::No
        })
    }
}

/// How many paths the closure `side` has and `other` has not.
fn others(closures: &[Closure], side: usize, other: usize) -> usize {
    let paths = closures[side].infos.keys();
    paths
        .filter(|path| !closures[other].infos.contains_key(*path))
        .count()
}

fn package(change: &PackageChange) -> Value {
    let share =
        |share: &PackageShare| json!({ "versions": share.versions, "narSize": share.nar_size });
    json!({
        "name": change.name,
        "before": share(&change.before),
        "after": share(&change.after),
        "removed": change.removed().collect::<Vec<_>>(),
        "added": change.added().collect::<Vec<_>>(),
        "growth": change.growth() as i64,
    })
}

const EXAMPLES: &str = "\
Examples:
  tk-store diff /nix/store/…-hello ./result
  tk-store diff --files ./result /nix/store/…-hello
  tk-store diff /nix/store/…-hello.drv /nix/store/…-hello.drv";
