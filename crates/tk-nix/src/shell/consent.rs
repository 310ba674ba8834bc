//! Code of an environment that would run without being named, for which the user's consent is asked.
//!
//! ```text
//! shellHook                               run when the environment is entered
//! functions, variables that it mentions   and those that these mention: a hook may call and evaluate them
//! PROMPT_COMMAND, BASH_ENV, ENV, …        variables that shells run or read code from by themselves
//! PS1, PROMPT, MAILPATH, …                the same, if there is something in them to be run
//! functions that take a command's place   what somebody types is another thing then
//! ```
//! Running a command in an environment means to trust its `PATH`: programs are not among it.

use super::environment::{ShellEnvironment, Variable, is_told};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fmt::Write as _,
};

/// The code of an environment that would run without being named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StartupCode {
    hook: String,
    /// Variables that shells run by themselves.
    run_by_shells: BTreeMap<String, Variable>,
    /// Functions that take the place of commands.
    shadowing: BTreeMap<String, String>,
    /// What the code above mentions.
    variables: BTreeMap<String, Variable>,
    functions: BTreeMap<String, String>,
}

impl StartupCode {
    /// That of `environment`, where commands are looked for in the folders of `path`.
    pub(super) fn of(environment: &ShellEnvironment, path: &OsStr) -> StartupCode {
        let told = environment.variables.iter();
        let told = told.filter(|(name, _)| is_told(name));
        let by_shells = told.filter(|(name, variable)| is_run_by_shells(name, variable));
        let by_name = environment.bash_functions.iter();
        let shadowing = by_name.filter(|(name, _)| is_command(name, path));
        let clone = |(name, value): (&String, &String)| (name.clone(), value.clone());
        let mut code = StartupCode {
            hook: environment.hook().to_owned(),
            run_by_shells: by_shells.map(|(n, v)| (n.clone(), v.clone())).collect(),
            shadowing: shadowing.map(clone).collect(),
            ..StartupCode::default()
        };
        code.add_mentioned(environment);
        code
    }

    /// Whether nothing would run.
    pub fn is_empty(&self) -> bool {
        self.hook.is_empty() && self.run_by_shells.is_empty() && self.shadowing.is_empty()
    }

    /// Whether something would run beside the hook and what it mentions.
    pub fn has_more_than_hook(&self) -> bool {
        !self.run_by_shells.is_empty() || !self.shadowing.is_empty()
    }

    /// Names of what would run: `shellHook`, variables, functions.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let hook = (!self.hook.is_empty()).then_some("shellHook").into_iter();
        let variables = self.run_by_shells.keys().map(String::as_str);
        hook.chain(variables)
            .chain(self.shadowing.keys().map(String::as_str))
    }

    /// All of it, for people to read: the hook, then the rest as bash has it.
    pub fn text(&self) -> String {
        self.parts().join("\n")
    }

    /// The same in parts, the hook first.
    pub(super) fn parts(&self) -> Vec<String> {
        let mut parts = vec![self.hook.clone()];
        let variables = self.run_by_shells.iter().chain(&self.variables);
        parts.extend(variables.map(|(name, variable)| declaration(name, variable)));
        let functions = self.shadowing.iter().chain(&self.functions);
        parts.extend(functions.map(|(name, body)| format!("{name} ()\n{{\n{body}}}")));
        parts
    }

    /// `environment` without what shells would run by themselves. Its hook is left, which is
    /// run by those only who ask for it.
    pub(super) fn taken_out_of(&self, mut environment: ShellEnvironment) -> ShellEnvironment {
        let variables = &mut environment.variables;
        variables.retain(|name, _| !self.run_by_shells.contains_key(name));
        let functions = &mut environment.bash_functions;
        functions.retain(|name, _| !self.shadowing.contains_key(name));
        environment
    }

    /// Adds what the code mentions, and what that mentions.
    fn add_mentioned(&mut self, environment: &ShellEnvironment) {
        let is_output = |name: &str| environment.outputs().iter().any(|(own, _)| own == name);
        let mut texts = vec![self.hook.clone()];
        for variable in self.run_by_shells.values() {
            each_text(variable, |text| texts.push(text.to_owned()));
        }
        texts.extend(self.shadowing.values().cloned());
        let mut seen = BTreeSet::new();
        while let Some(text) = texts.pop() {
            for name in names(&text) {
                if !seen.insert(name.to_owned()) {
                    continue;
                }
                let body = environment.bash_functions.get(name);
                if let Some(body) = body.filter(|_| !self.shadowing.contains_key(name)) {
                    texts.push(body.clone());
                    self.functions.insert(name.to_owned(), body.clone());
                }
                let is_left_out = OF_BASH.contains(&name)
                    || name == "shellHook"
                    || !is_told(name)
                    || self.run_by_shells.contains_key(name)
                    || is_output(name);
                let variable = environment.variables.get(name);
                if let Some(variable) = variable.filter(|_| !is_left_out) {
                    each_text(variable, |text| texts.push(text.to_owned()));
                    self.variables.insert(name.to_owned(), variable.clone());
                }
            }
        }
    }
}

fn each_text(variable: &Variable, mut told: impl FnMut(&str)) {
    match variable {
        Variable::Exported(text) | Variable::Var(text) => told(text),
        Variable::Array(texts) => texts.iter().for_each(|text| told(text)),
        Variable::Associative(texts) => texts.values().for_each(|text| told(text)),
        Variable::Unknown => {}
    }
}

/// Words of a text that can be names of functions or variables.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let plain = text.split(move |c| !is_plain(c));
    let wide = text.split(move |c| !is_plain(c) && !"-.:+".contains(c));
    plain.chain(wide).filter(|name| !name.is_empty())
}

fn declaration(name: &str, variable: &Variable) -> String {
    let mut text = String::new();
    let _ = match variable {
        Variable::Array(texts) => write!(text, "{name}={texts:?}"),
        Variable::Associative(texts) => write!(text, "{name}={texts:?}"),
        Variable::Exported(value) => write!(text, "export {name}={value}"),
        Variable::Var(value) => write!(text, "{name}={value}"),
        Variable::Unknown => write!(text, "{name}"),
    };
    text
}

fn is_run_by_shells(name: &str, variable: &Variable) -> bool {
    let mut is_run = false;
    each_text(variable, |text| {
        let has_code = text.contains("$(") || text.contains("${") || text.contains('`');
        is_run |= RUN.contains(&name) && !text.is_empty() || EXPANDED.contains(&name) && has_code;
    });
    is_run
}

/// Whether somebody who types `name` means a command, or a shell calls it by itself.
fn is_command(name: &str, path: &OsStr) -> bool {
    CALLED.contains(&name)
        || BUILTINS.contains(&name)
        || std::env::split_paths(path).any(|folder| folder.join(name).is_file())
}

/// Variables that shells, or direnv, run as code or read code from: bash, sh, zsh, fish.
const RUN: &[&str] = &[
    "BASH_ENV",
    "DIRENV_BASH",
    "DIRENV_CONFIG",
    "ENV",
    "FPATH",
    "MODULE_PATH",
    "PROMPT_COMMAND",
    "ZDOTDIR",
    "chpwd_functions",
    "fish_complete_path",
    "fish_function_path",
    "fish_key_bindings",
    "precmd_functions",
    "preexec_functions",
];
/// Variables that shells show, with what runs in them expanded.
const EXPANDED: &[&str] = &[
    "MAIL", "MAILPATH", "PROMPT", "PROMPT2", "PROMPT3", "PROMPT4", "PS0", "PS1", "PS2", "PS3",
    "PS4", "RPROMPT", "RPROMPT2", "RPS1", "RPS2", "SPROMPT",
];
/// Functions that shells call by themselves.
const CALLED: &[&str] = &[
    "chpwd",
    "command_not_found_handle",
    "command_not_found_handler",
    "fish_prompt",
    "periodic",
    "precmd",
    "preexec",
];
/// Commands of bash itself.
const BUILTINS: &[&str] = &[
    "alias",
    "bg",
    "bind",
    "break",
    "builtin",
    "caller",
    "cd",
    "command",
    "compgen",
    "complete",
    "compopt",
    "continue",
    "declare",
    "dirs",
    "disown",
    "echo",
    "enable",
    "eval",
    "exec",
    "exit",
    "export",
    "false",
    "fc",
    "fg",
    "getopts",
    "hash",
    "help",
    "history",
    "jobs",
    "kill",
    "let",
    "local",
    "logout",
    "mapfile",
    "popd",
    "printf",
    "pushd",
    "pwd",
    "read",
    "readarray",
    "readonly",
    "return",
    "set",
    "shift",
    "shopt",
    "source",
    "suspend",
    "test",
    "times",
    "trap",
    "true",
    "type",
    "typeset",
    "ulimit",
    "umask",
    "unalias",
    "unset",
    "wait",
];
/// Variables of bash itself or of every environment, which change without code that does.
const OF_BASH: &[&str] = &[
    "BASH",
    "BASHPID",
    "BASH_VERSION",
    "DIRSTACK",
    "EPOCHREALTIME",
    "EPOCHSECONDS",
    "EUID",
    "FUNCNAME",
    "HOSTNAME",
    "HOSTTYPE",
    "IFS",
    "LINENO",
    "MACHTYPE",
    "OPTERR",
    "OPTIND",
    "OSTYPE",
    "PATH",
    "PIPESTATUS",
    "RANDOM",
    "SECONDS",
    "SRANDOM",
    "XDG_DATA_DIRS",
    "_",
    "outputs",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)], functions: &[(&str, &str)]) -> ShellEnvironment {
        let mut environment = ShellEnvironment::exported(variables.iter().copied());
        let functions = functions
            .iter()
            .map(|(name, body)| ((*name).to_owned(), (*body).to_owned()));
        environment.bash_functions = functions.collect();
        environment
    }

    fn names_of(environment: &ShellEnvironment) -> String {
        let code = StartupCode::of(environment, OsStr::new("/usr/bin:/bin"));
        code.names().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_runs_by_itself() {
        for (name, value, runs) in [
            ("A", "$(x)", false),
            ("PROMPT_COMMAND", "x", true),
            ("PROMPT_COMMAND", "", false),
            ("BASH_ENV", "/x", true),
            ("ENV", "/x", true),
            ("ZDOTDIR", "/x", true),
            ("fish_function_path", "/x", true),
            ("PS1", "\\u \\$ ", false),
            ("PS1", "$(x)", true),
            ("PS4", "+ ", false),
            ("RPROMPT", "`x`", true),
            ("HOME", "$(x)", false),
        ] {
            let code = StartupCode::of(&environment(&[(name, value)], &[]), OsStr::new(""));
            assert_eq!(code.is_empty(), !runs, "{name}={value}");
            let left = code.taken_out_of(environment(&[(name, value), ("B", "b")], &[]));
            assert_eq!(left.variables.contains_key(name), !runs, "{name}={value}");
            assert!(left.variables.contains_key("B"));
        }
        let mut list = ShellEnvironment::default();
        let array = Variable::Array(vec!["x".into()]);
        list.variables.insert("PROMPT_COMMAND".into(), array);
        assert_eq!(names_of(&list), "PROMPT_COMMAND");
        let functions = environment(
            &[],
            &[
                ("cd", ""),
                ("greet", ""),
                ("sh", ""),
                ("command_not_found_handle", ""),
            ],
        );
        assert_eq!(names_of(&functions), "cd command_not_found_handle sh");
    }

    #[test]
    fn what_a_hook_may_call() {
        let all = |one: &str, two: &str| {
            environment(
                &[
                    ("shellHook", "one; eval \"$more\"; $out/x; echo $PATH"),
                    ("more", one),
                    ("other", "o"),
                    ("PATH", two),
                    ("out", two),
                    ("outputs", "out"),
                ],
                &[
                    ("one", "two-b\n"),
                    ("two-b", two),
                    ("three", "x"),
                    ("unused", two),
                ],
            )
        };
        let of = |one: &str, two: &str| StartupCode::of(&all(one, two), OsStr::new("")).parts();
        let parts = of("three", "echo $other");
        assert_eq!(parts.len(), 1 + 2 + 3, "{parts:?}");
        assert_ne!(of("three", "1").join("\n"), of("three", "2").join("\n"));
        assert_ne!(of("1", "2").join("\n"), of("3", "2").join("\n"));
        // A hook by itself is bound to its text, whatever else there is.
        for other in ["1", "2"] {
            let mut alone = all(other, other);
            let hook = Variable::Exported("echo hi; echo $PATH".into());
            alone.variables.insert("shellHook".into(), hook);
            let code = StartupCode::of(&alone, OsStr::new(""));
            assert_eq!(code.parts(), ["echo hi; echo $PATH"]);
        }
    }
}
