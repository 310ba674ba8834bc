use super::{
    environment::{ShellEnvironment, Variables},
    files,
    namespace::StoreElsewhere,
};
use crate::{Cause, Exit, NixFailure, Result, process::ProcessGroup};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io,
    os::unix::{ffi::OsStringExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};
use tk_path::StoreDir;
use tokio::io::{AsyncRead, AsyncReadExt};

/// An environment to run commands in, as many as one likes.
#[derive(Debug, Clone)]
pub struct ShellSession {
    environment: ShellEnvironment,
    variables: Variables,
    hook: Hook,
    folder: PathBuf,
    scripts: PathBuf,
    max_output: u64,
    dir: StoreDir,
    elsewhere: Option<StoreElsewhere>,
}

/// What becomes of the environment's hook, and of what else of it would run without being named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// There is nothing to run: the environment has no hook, or the hook was run already.
    None,
    /// The user allowed it.
    Allowed,
    /// It is not run, since nobody allowed it; what shells would run by themselves is left out.
    Held,
}

/// What a shell for development is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NixDevShell {
    /// The name of its derivation.
    pub name: String,
    /// What it was given as inputs: whole paths of the store.
    pub packages: Vec<String>,
    /// What is run when it is entered, if that was allowed; may be empty.
    pub shell_hook: String,
    /// The variables that it sets. `PATH` and `XDG_DATA_DIRS` go before those that are there.
    pub env_vars: BTreeMap<String, String>,
    /// All that it refers to: whole paths of the store.
    pub pure_deps: Vec<String>,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecResult {
    /// Its exit status; 128 and the signal's number if a signal ended it.
    pub exit_code: i32,
    /// What it wrote to stdout, as text.
    pub stdout: String,
    /// What it wrote to stderr, as text.
    pub stderr: String,
    /// How long it took, in seconds.
    pub duration: f64,
}

/// Where a command wrote something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// The command wrote it to its standard output.
    Stdout,
    /// The command wrote it to its standard error.
    Stderr,
}

impl ShellSession {
    pub(super) fn new(
        environment: ShellEnvironment,
        base: &Variables,
        hook: Hook,
        folder: PathBuf,
        scripts: PathBuf,
        dir: StoreDir,
    ) -> Self {
        let variables = environment.applied(base);
        ShellSession {
            environment,
            variables,
            hook,
            folder,
            scripts,
            max_output: MAX_OUTPUT,
            dir,
            elsewhere: None,
        }
    }

    /// With the files of the store in the place where commands look for them.
    pub(super) fn with_store_elsewhere(mut self, elsewhere: Option<StoreElsewhere>) -> Self {
        self.elsewhere = elsewhere;
        self
    }

    /// With the path that keeps the environment alive: a process that has it in its variables is a root
    /// for Nix.
    pub(super) fn with_root(mut self, path: &str) -> Self {
        self.variables.insert("NIX_GCROOT".into(), path.into());
        self
    }

    /// With another limit for what is kept of a command's stdout, and of its stderr, in bytes.
    pub fn with_max_output(mut self, bytes: u64) -> Self {
        self.max_output = bytes;
        self
    }

    /// What becomes of its hook.
    pub fn hook(&self) -> Hook {
        self.hook
    }

    /// Returns the environment that the session was made of.
    pub fn environment(&self) -> &ShellEnvironment {
        &self.environment
    }

    /// The variables that its commands get.
    pub fn variables(&self) -> &Variables {
        &self.variables
    }

    /// What it is made of.
    pub fn describe(&self) -> NixDevShell {
        let environment = &self.environment;
        let name = environment.text("name").unwrap_or_default();
        let texts = INPUTS.iter().filter_map(|name| environment.text(name));
        let words = texts.flat_map(str::split_whitespace);
        let mut packages: Vec<_> = words
            .filter(|word| word.starts_with(self.dir.as_str()))
            .map(str::to_owned)
            .collect();
        packages.dedup();
        let references = environment.references(&self.dir);
        NixDevShell {
            // The derivation that tells the environment is called so.
            name: name.strip_suffix("-env").unwrap_or(name).to_owned(),
            packages,
            shell_hook: environment.hook().to_owned(),
            env_vars: environment
                .effective()
                .filter(|(name, _)| *name != "shellHook")
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .collect(),
            pure_deps: references.iter().map(|path| self.dir.path(path)).collect(),
        }
    }

    /// Runs the hook once, if it is allowed, so that what it does to variables holds for all commands
    /// that follow. What it writes is dropped.
    pub async fn enter(&mut self) -> Result<()> {
        if self.hook != Hook::Allowed {
            return Ok(());
        }
        let told = files::unique(&self.scripts.join("environment"));
        let tell = ["bash", "-c", "exec env -0 >\"$1\"", "bash"].map(OsString::from);
        let mut tell = tell.to_vec();
        tell.push(told.clone().into());
        let done = self.run(&tell).await?;
        let bytes = files::read(&told, self.max_output).map_err(files::failed("reading", &told));
        files::remove(&told)?;
        let Some(bytes) = bytes?.filter(|_| done.exit_code == 0) else {
            let words = format!("the shellHook failed: {}", done.stderr.trim());
            return Err(NixFailure::new(Cause::Other, words));
        };
        let pairs = bytes.split(|b| *b == 0).filter_map(|pair| {
            let at = pair.iter().position(|b| *b == b'=')?;
            let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
            Some((text(&pair[..at]), text(&pair[at + 1..])))
        });
        self.variables = pairs.collect();
        self.hook = Hook::None;
        Ok(())
    }

    /// Runs a command to its end, with an empty stdin. Dropping the future ends it and all that it
    /// started.
    ///
    /// # Errors
    /// [`Cause::Misused`] if there is no such command, [`Cause::OutputLimit`] if it writes too much.
    pub async fn run<S: AsRef<OsStr>>(&self, command: &[S]) -> Result<ExecResult> {
        self.run_with(command, &mut |_, _| {}).await
    }

    /// As [`ShellSession::run`]; what it writes goes to `told`, too, as it comes.
    pub async fn run_with<S: AsRef<OsStr>>(
        &self,
        command: &[S],
        told: &mut (dyn FnMut(Stream, &[u8]) + Send),
    ) -> Result<ExecResult> {
        let begun = Instant::now();
        let mut command = tokio::process::Command::from(self.command(command)?);
        command.stdin(Stdio::null());
        let name = command
            .as_std()
            .get_program()
            .to_string_lossy()
            .into_owned();
        let mut group = ProcessGroup::start(&mut command).map_err(|e| not_run(&name, &e))?;
        let mut kept = Kept {
            stdout: Vec::new(),
            stderr: Vec::new(),
            most: self.max_output,
        };
        let mut pipes = (group.child.stdout.take(), group.child.stderr.take());
        // The end of the command counts, not that of its pipes: what it left in the background may keep them
        // open.
        let status = loop {
            let mut out = [0; 16 << 10];
            let mut err = [0; 16 << 10];
            tokio::select! {
                n = next(&mut pipes.0, &mut out) => kept.take(Stream::Stdout, &out[..n?], told)?,
                n = next(&mut pipes.1, &mut err) => kept.take(Stream::Stderr, &err[..n?], told)?,
                status = group.child.wait() => break status,
            }
        };
        let status = status.map_err(|e| not_run(&name, &e))?;
        group.ended = true;
        // What it left in the pipes; who else has them open is not waited for.
        let rest = async {
            while pipes.0.is_some() || pipes.1.is_some() {
                let mut out = [0; 16 << 10];
                let mut err = [0; 16 << 10];
                tokio::select! {
                    n = next(&mut pipes.0, &mut out) => kept.take(Stream::Stdout, &out[..n?], told)?,
                    n = next(&mut pipes.1, &mut err) => kept.take(Stream::Stderr, &err[..n?], told)?,
                }
            }
            Ok::<_, NixFailure>(())
        };
        if let Ok(read) = tokio::time::timeout(LEFT, rest).await {
            read?;
        }
        let exit_code = match Exit::of(status) {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal,
        };
        Ok(ExecResult {
            exit_code,
            stdout: String::from_utf8_lossy(&kept.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&kept.stderr).into_owned(),
            duration: begun.elapsed().as_secs_f64(),
        })
    }

    /// Becomes the command. Returns only if that cannot be: the kind of the error is `NotFound` if
    /// there is no such command.
    pub fn exec<S: AsRef<OsStr>>(&self, command: &[S]) -> io::Error {
        match self.command(command) {
            Ok(mut command) => command.exec(),
            Err(failure) => io::Error::other(failure.to_string()),
        }
    }

    /// Becomes an interactive bash. Returns only if that cannot be.
    pub fn exec_interactive(&self) -> io::Error {
        let script = files::unique(&self.scripts.join("rc"));
        let code = self.environment.rc(&script, self.hook == Hook::Allowed);
        let made = files::make_folder(&self.scripts).map_err(|f| io::Error::other(f.to_string()));
        if let Err(error) = made.and_then(|()| files::create(&script, code.as_bytes())) {
            return error;
        }
        let mut command = self.with_variables("bash");
        command.arg("--rcfile").arg(&script).arg("-i").exec()
    }

    /// The command, by way of bash if there is a hook to run.
    fn command<S: AsRef<OsStr>>(&self, command: &[S]) -> Result<std::process::Command> {
        let [program, args @ ..] = command else {
            return Err(NixFailure::new(
                Cause::Misused,
                "there is no command to run",
            ));
        };
        if self.hook != Hook::Allowed {
            let mut run = self.with_variables(program);
            run.args(args);
            return Ok(run);
        }
        let script = files::unique(&self.scripts.join("script"));
        let code = self.environment.script(&script, true);
        files::make_folder(&self.scripts)?;
        files::create(&script, code.as_bytes()).map_err(files::failed("writing", &script))?;
        let bash = self
            .environment
            .bash()
            .filter(|bash| Path::new(bash).exists());
        let mut run = self.with_variables(bash.unwrap_or("bash"));
        run.arg(script).args(command);
        Ok(run)
    }

    fn with_variables(&self, program: impl AsRef<OsStr>) -> std::process::Command {
        let program = program.as_ref();
        if let Some(elsewhere) = &self.elsewhere {
            return elsewhere.command(program, &self.variables, &self.folder);
        }
        let mut run = std::process::Command::new(program);
        run.env_clear()
            .envs(&self.variables)
            .current_dir(&self.folder);
        run
    }
}

fn not_run(name: &str, error: &io::Error) -> NixFailure {
    NixFailure::new(Cause::Misused, format!("cannot run {name}: {error}"))
}

/// What was read of a command.
struct Kept {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    most: u64,
}

impl Kept {
    fn take(
        &mut self,
        stream: Stream,
        bytes: &[u8],
        told: &mut (dyn FnMut(Stream, &[u8]) + Send),
    ) -> Result<()> {
        let kept = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        if (kept.len() + bytes.len()) as u64 > self.most {
            let words = format!("the command wrote more than {} bytes", self.most);
            return Err(NixFailure::new(Cause::OutputLimit, words));
        }
        if !bytes.is_empty() {
            kept.extend_from_slice(bytes);
            told(stream, bytes);
        }
        Ok(())
    }
}

/// Reads on from a pipe; at its end it is taken away. Without one this never ends.
async fn next(pipe: &mut Option<impl AsyncRead + Unpin>, bytes: &mut [u8]) -> Result<usize> {
    let Some(open) = pipe else {
        return std::future::pending().await;
    };
    let read = open.read(bytes).await;
    let n = read.map_err(|e| NixFailure::new(Cause::Other, format!("reading its output: {e}")))?;
    if n == 0 {
        *pipe = None;
    }
    Ok(n)
}

/// Variables in which stdenv has the inputs of a derivation.
const INPUTS: &[&str] = &[
    "nativeBuildInputs",
    "buildInputs",
    "propagatedNativeBuildInputs",
    "propagatedBuildInputs",
];
/// Bytes that are kept of each stream of a command.
const MAX_OUTPUT: u64 = 64 << 20;
/// How long pipes are read after a command's end.
const LEFT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn session(folder: &Path, hook: Hook) -> ShellSession {
        let path = std::env::var("PATH").unwrap();
        let mut environment =
            ShellEnvironment::exported([("A", "a"), ("shellHook", "export B=b$A")]);
        environment
            .bash_functions
            .insert("f".into(), "true\n".into());
        let base = Variables::from([("PATH".into(), path.into())]);
        let folder = folder.to_owned();
        ShellSession::new(
            environment,
            &base,
            hook,
            folder.clone(),
            folder,
            StoreDir::default(),
        )
    }

    #[tokio::test]
    async fn commands_and_their_ends() {
        let folder = tempfile::tempdir().unwrap();
        let session = session(folder.path(), Hook::Held);
        let script = "printf $A; printf err >&2; exit 3";
        let mut heard = Vec::new();
        let mut told = |stream, bytes: &[u8]| heard.push((stream, bytes.to_vec()));
        let done = session
            .run_with(&["sh", "-c", script], &mut told)
            .await
            .unwrap();
        assert_eq!((done.exit_code, done.stdout.as_str()), (3, "a"));
        assert_eq!(done.stderr, "err");
        assert!(heard.contains(&(Stream::Stderr, b"err".to_vec())));
        let killed = session.run(&["sh", "-c", "kill -9 $$"]).await.unwrap();
        assert_eq!(killed.exit_code, 137);
        let failure = session.run(&["no-such-command"]).await.unwrap_err();
        assert!(failure.message.contains("no-such-command"), "{failure}");
        let small = session.with_max_output(10);
        let failure = small.run(&["sh", "-c", "while :; do echo x; done"]).await;
        assert_eq!(failure.unwrap_err().cause, Cause::OutputLimit);
    }

    #[tokio::test]
    async fn the_hook_is_run_if_it_is_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let ask = ["sh", "-c", "echo $B"];
        let held = session(folder.path(), Hook::Held);
        assert_eq!(held.run(&ask).await.unwrap().stdout, "\n");
        let mut allowed = session(folder.path(), Hook::Allowed);
        assert_eq!(allowed.run(&ask).await.unwrap().stdout, "ba\n");
        allowed.enter().await.unwrap();
        assert_eq!(allowed.run(&ask).await.unwrap().stdout, "ba\n");
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
