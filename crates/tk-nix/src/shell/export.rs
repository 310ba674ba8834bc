//! Environments as code of shells.

use super::{
    environment::{PREFIXED, ShellEnvironment, Variable, is_identifier, is_told},
    session::Hook,
};
use std::{fmt::Write as _, path::Path};

/// A shell, or what reads the code of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShellFormat {
    /// bash: everything, functions too.
    Bash,
    /// zsh: what is exported.
    Zsh,
    /// fish: what is exported.
    Fish,
    /// A `.envrc` of direnv: what is exported, and files to watch.
    Direnv,
}

impl ShellEnvironment {
    /// Code that makes this environment of that of the shell which reads it. If `hook` is allowed, bash
    /// runs it at its end. Else functions do not take the place of what the shell has by their names.
    pub fn export(&self, format: ShellFormat, hook: Hook) -> String {
        let (mut code, with_hook) = (String::new(), hook == Hook::Allowed);
        match format {
            ShellFormat::Bash => {
                code.push_str("unset shellHook\n");
                self.exports(&mut code, &[]);
                code.push_str(&self.unexported(with_hook));
                if with_hook {
                    code.push_str(RUN_HOOK);
                }
            }
            ShellFormat::Zsh => self.exports(&mut code, ZSH_OWN),
            ShellFormat::Direnv => self.exports(&mut code, &[]),
            ShellFormat::Fish => self.fish(&mut code),
        }
        code
    }

    fn exports(&self, code: &mut String, left_out: &[&str]) {
        let all = self.effective();
        for (name, value) in all.filter(|(name, _)| !left_out.contains(name)) {
            let value = quoted(value);
            let _ = if PREFIXED.contains(&name) {
                writeln!(code, "export {name}={value}\"${{{name}:+:${name}}}\"")
            } else {
                writeln!(code, "export {name}={value}")
            };
        }
    }

    fn fish(&self, code: &mut String) {
        for (name, value) in self.effective().filter(|(n, _)| !FISH_OWN.contains(n)) {
            let text = fish_quoted(value);
            let _ = match name {
                "PATH" => {
                    let folders: Vec<_> = value.split(':').map(fish_quoted).collect();
                    writeln!(code, "set -gx PATH {} $PATH", folders.join(" "))
                }
                name if PREFIXED.contains(&name) => writeln!(
                    code,
                    "if set -q {name}; set -gx {name} {text}:\"${name}\"; else; set -gx {name} {text}; end"
                ),
                _ => writeln!(code, "set -gx {name} {text}"),
            };
        }
    }

    /// Code for bash of what no process gets: variables that are not exported, lists, functions, which
    /// take the place of others only if that `is_allowed`.
    pub(super) fn unexported(&self, is_allowed: bool) -> String {
        let mut code = String::new();
        for (name, variable) in self.variables.iter().filter(|(name, _)| is_told(name)) {
            let _ = match variable {
                Variable::Var(text) => writeln!(code, "{name}={}", quoted(text)),
                Variable::Array(texts) => {
                    let texts: Vec<_> = texts.iter().map(|text| quoted(text)).collect();
                    writeln!(code, "declare -a {name}=({})", texts.join(" "))
                }
                Variable::Associative(texts) => {
                    let pair =
                        |(k, v): (&String, &String)| format!("[{}]={}", quoted(k), quoted(v));
                    let texts: Vec<_> = texts.iter().map(pair).collect();
                    writeln!(code, "declare -A {name}=({})", texts.join(" "))
                }
                Variable::Exported(_) | Variable::Unknown => Ok(()),
            };
        }
        for (name, body) in self
            .bash_functions
            .iter()
            .filter(|(name, _)| is_function(name))
        {
            let unless = if is_allowed {
                String::new()
            } else {
                format!("type {name} >/dev/null 2>&1 || ")
            };
            let _ = writeln!(code, "{unless}{name} ()\n{{\n{body}}}");
        }
        code
    }

    /// A script for bash, to be run with the variables of [`ShellEnvironment::applied`] and a command as its
    /// arguments: it takes itself away, runs the hook if `with_hook`, and becomes the command.
    pub(super) fn script(&self, own: &Path, with_hook: bool) -> String {
        let hook = if with_hook { RUN_HOOK } else { "" };
        format!(
            "{}__tk_command=(\"$@\")\nset --\n{}{hook}exec -- \"${{__tk_command[@]}}\"\n",
            remove(own),
            self.unexported(with_hook),
        )
    }

    /// The start file of an interactive bash with the variables of [`ShellEnvironment::applied`].
    pub(super) fn rc(&self, own: &Path, with_hook: bool) -> String {
        let mut code = remove(own);
        code.push_str("[ -e ~/.bashrc ] && source ~/.bashrc\nshopt -u expand_aliases\n");
        // The user's file may have changed what the environment says.
        for (name, value) in self
            .effective()
            .filter(|(name, _)| !PREFIXED.contains(name))
        {
            let _ = writeln!(code, "export {name}={}", quoted(value));
        }
        code.push_str(&self.unexported(with_hook));
        if with_hook {
            code.push_str(RUN_HOOK);
        }
        code.push_str("shopt -s expand_aliases\n");
        code
    }
}

fn remove(own: &Path) -> String {
    format!("command rm -f {}\n", quoted(&own.to_string_lossy()))
}

/// `text` as one word of a POSIX shell.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn fish_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"))
}

fn is_function(name: &str) -> bool {
    let first_ok = name.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic());
    first_ok
        && (is_identifier(name)
            || name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_-.:+".contains(c)))
}

const RUN_HOOK: &str = "eval \"${shellHook:-}\"\n";
/// Names that zsh 5.9 does not let go to processes as they are: its own, numbers, lists. To set one that
/// cannot be changed ends the reading of the code.
const ZSH_OWN: &[&str] = &[
    "ARGC",
    "COLUMNS",
    "EGID",
    "EUID",
    "FUNCNEST",
    "GID",
    "HISTCMD",
    "HISTSIZE",
    "KEYBOARD_HACK",
    "KEYTIMEOUT",
    "LINENO",
    "LINES",
    "LISTMAX",
    "MAILCHECK",
    "OPTIND",
    "PPID",
    "RANDOM",
    "SAVEHIST",
    "SECONDS",
    "SHLVL",
    "TRY_BLOCK_ERROR",
    "TRY_BLOCK_INTERRUPT",
    "TTYIDLE",
    "UID",
    "USERNAME",
    "WATCH",
    "ZSH_EVAL_CONTEXT",
    "ZSH_SUBSHELL",
    "aliases",
    "argv",
    "builtins",
    "cdpath",
    "commands",
    "dirstack",
    "dis_aliases",
    "dis_builtins",
    "dis_functions",
    "dis_functions_source",
    "dis_galiases",
    "dis_patchars",
    "dis_reswords",
    "dis_saliases",
    "fignore",
    "fpath",
    "funcfiletrace",
    "funcsourcetrace",
    "funcstack",
    "functions",
    "functions_source",
    "functrace",
    "galiases",
    "history",
    "historywords",
    "jobdirs",
    "jobstates",
    "jobtexts",
    "keymaps",
    "mailpath",
    "manpath",
    "module_path",
    "modules",
    "nameddirs",
    "options",
    "parameters",
    "patchars",
    "path",
    "pipestatus",
    "psvar",
    "reswords",
    "saliases",
    "signals",
    "status",
    "termcap",
    "terminfo",
    "userdirs",
    "usergroups",
    "watch",
    "widgets",
    "zsh_eval_context",
    "zsh_scheduled_events",
];
/// The same of fish 3.6 and 4, which goes on with an error.
const FISH_OWN: &[&str] = &[
    "FISH_VERSION",
    "_",
    "argv",
    "fish_kill_signal",
    "fish_killring",
    "fish_pid",
    "history",
    "hostname",
    "pipestatus",
    "status",
    "status_generation",
    "umask",
    "version",
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeMap, process::Command};

    fn environment() -> ShellEnvironment {
        let mut environment = ShellEnvironment::exported([
            ("ODD", "it's \"$HOME\" `x` \\ \n two"),
            ("PATH", "/tool/bin"),
            ("shellHook", "echo hook; MADE=1"),
            ("path", "x"),
            ("version", "1"),
        ]);
        let list = Variable::Array(vec!["a b".into(), "c'".into()]);
        let table = BTreeMap::from([("k 1".to_owned(), "v'".to_owned())]);
        environment.variables.insert("list".into(), list);
        environment
            .variables
            .insert("table".into(), Variable::Associative(table));
        environment
            .variables
            .insert("plain".into(), Variable::Var("p".into()));
        let functions = &mut environment.bash_functions;
        functions.insert("greet".into(), "  echo greeting $1\n".into());
        functions.insert("bad;name".into(), "true\n".into());
        environment
    }

    fn bash(code: &str) -> String {
        let out = Command::new("bash").args(["-c", code]).output().unwrap();
        assert!(
            out.stderr.is_empty(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).unwrap()
    }

    #[test]
    fn bash_reads_it() {
        let code = environment().export(ShellFormat::Bash, Hook::None);
        let ask = "printf '%s|' \"$ODD\" \"${list[1]}\" \"${table['k 1']}\" $plain \"${PATH%%:*}\"; greet you";
        let expected = "it's \"$HOME\" `x` \\ \n two|c'|v'|p|/tool/bin|greeting you\n";
        assert_eq!(bash(&format!("{code}{ask}")), expected);
        let own = "greet() { echo mine; }\n";
        assert!(bash(&format!("{own}{code}greet you")).ends_with("mine\n"));
        let code = environment().export(ShellFormat::Bash, Hook::Allowed);
        assert_eq!(bash(&format!("{code}echo $MADE")), "hook\n1\n");
        assert!(bash(&format!("{own}{code}greet you")).ends_with("greeting you\n"));
    }

    #[test]
    fn others() {
        let code = environment().export(ShellFormat::Fish, Hook::None);
        assert!(code.contains("set -gx PATH '/tool/bin' $PATH\n"), "{code}");
        assert!(code.contains(r#"'it\'s "$HOME" `x` \\ "#), "{code}");
        assert!(!code.contains("version"), "{code}");
        let code = environment().export(ShellFormat::Zsh, Hook::Allowed);
        assert!(
            !code.contains("export path=") && !code.contains("greet"),
            "{code}"
        );
    }
}
