//! A store whose files lie elsewhere than its paths say, put in that place for one command.
//!
//! As `nix run --store` does it: in a mount namespace of its own the folder of the files is bound over the
//! store's directory. Where there is no such directory, a root is made of what lies in the present one,
//! with the store beside it. A user who is not root gets that in a user namespace, and is the same user again in
//! the command. `unshare` and `mount` of util-linux do it.

use super::environment::Variables;
use crate::{Cause, NixFailure, Result};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Files of a store that lie in another place than the store's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoreElsewhere {
    dir: PathBuf,
    real: PathBuf,
    /// The program unshare with its options.
    unshare: Vec<PathBuf>,
    /// An empty folder that a root can be made on.
    root: PathBuf,
}

impl StoreElsewhere {
    /// `None` if `path`, whose file lies at `place`, is where it says.
    ///
    /// # Errors
    /// [`Cause::Sandbox`] if this machine allows no namespaces.
    pub(super) fn of(path: &Path, place: &Path, root: &Path) -> Result<Option<StoreElsewhere>> {
        let is_there = path == place || fs::symlink_metadata(path).is_ok();
        let (Some(dir), Some(real), false) = (path.parent(), place.parent(), is_there) else {
            return Ok(None);
        };
        let mut why = String::new();
        // Root may mount as it is; other users may only in a user namespace. Trying tells what is allowed.
        for options in [&["--mount"][..], &["--user", "--map-root-user", "--mount"]] {
            let program = program("unshare");
            let mut run = Command::new(&program);
            run.args(options).arg("true").stdin(Stdio::null());
            match run.output() {
                Ok(done) if done.status.success() => {
                    let options = options.iter().map(PathBuf::from);
                    return Ok(Some(StoreElsewhere {
                        dir: dir.to_owned(),
                        real: real.to_owned(),
                        unshare: [program].into_iter().chain(options).collect(),
                        root: root.to_owned(),
                    }));
                }
                Ok(done) => why = String::from_utf8_lossy(&done.stderr).trim().to_owned(),
                Err(error) => why = format!("{}: {error}", program.display()),
            }
        }
        let words = format!(
            "the files of {} lie in {}; to run them where they belong needs a user namespace, which \
             this machine does not allow ({why}); the administrator can allow it \
             (user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns), or run it as root",
            dir.display(),
            real.display()
        );
        Err(NixFailure::new(Cause::Sandbox, words))
    }

    /// The command `program` in `folder`, to which arguments can be added; it gets `variables`.
    pub(super) fn command(
        &self,
        program: &std::ffi::OsStr,
        variables: &Variables,
        folder: &Path,
    ) -> Command {
        let (unshare, options) = self.unshare.split_first().expect("there is a program");
        let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
        let mut run = Command::new(unshare);
        run.args(options).args(["/bin/sh", "-c", SCRIPT, "sh"]);
        run.args([&self.dir, &self.real, &self.root]).arg(folder);
        run.args([user.as_raw().to_string(), group.as_raw().to_string()]);
        run.arg(program).env_clear().envs(variables);
        run
    }
}

/// Where the program is: in the usual folders, whatever an environment has in its `PATH`.
fn program(name: &str) -> PathBuf {
    let mut all = env::split_paths(USUAL).map(|folder| folder.join(name));
    all.find(|file| file.is_file())
        .unwrap_or_else(|| name.into())
}

const USUAL: &str = "/usr/bin:/bin:/usr/sbin:/sbin:/run/current-system/sw/bin";
/// Arguments: the store's directory, where its files are, a folder for a root, the folder to be in, user and
/// group, the command.
const SCRIPT: &str = r#"
set -e
path=${PATH-}
PATH=/usr/bin:/bin:/usr/sbin:/sbin:/run/current-system/sw/bin
dir=$1 real=$2 root=$3 here=$4 user=$5 group=$6
shift 6
# Nothing of this is seen outside.
mount --make-rprivate / 2>/dev/null || :
add() {
  for entry in "$1"/* "$1"/.[!.]*; do
    if [ -L "$entry" ]; then ln -s "$(readlink "$entry")" "$root$entry"
    elif [ "$entry" = "$top" ] && [ -d "$entry" ]; then mkdir "$root$entry"; add "$entry"
    elif [ -d "$entry" ]; then mkdir "$root$entry"; mount --rbind "$entry" "$root$entry"
    elif [ -e "$entry" ]; then : >"$root$entry"; mount --bind "$entry" "$root$entry"
    fi
  done
}
if [ -d "$dir" ]; then
  mount --rbind "$real" "$dir"
else
  top=${dir#/} top=/${top%%/*}
  mkdir -p "$root"
  mount -t tmpfs none "$root"
  add ""
  mkdir -p "$root$dir"
  mount --rbind "$real" "$root$dir"
  cd "$root"
  pivot_root . .
  umount -l .
fi
cd "$here"
if [ "$(id -u)" != "$user" ]; then
  set -- unshare --user --map-user="$user" --map-group="$group" -- env PATH="$path" "$@"
else
  PATH=$path
fi
exec "$@"
"#;
