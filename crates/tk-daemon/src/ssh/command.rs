//! What ssh is started with.

use super::SshConfig;
use std::{
    borrow::Cow,
    ffi::{OsStr, OsString},
    path::Path,
};

/// The program to start for a connection, and its arguments.
pub(super) fn to_start<'a>(
    config: &'a SshConfig,
    known_hosts: Option<&Path>,
) -> (&'a OsStr, Vec<OsString>) {
    if config.host.is_this_machine() {
        let command = remote_command(config);
        return ("/bin/sh".as_ref(), vec!["-c".into(), command.into()]);
    }
    (config.ssh.as_os_str(), arguments(config, known_hosts))
}

/// The arguments of ssh. Of options that are given twice ssh takes the first, so the user's come
/// before those of the store's URI, as in Nix.
fn arguments(config: &SshConfig, known_hosts: Option<&Path>) -> Vec<OsString> {
    // No X11, and no terminal at the far end, which would change bytes.
    let mut words: Vec<OsString> = vec!["-x".into(), "-T".into()];
    words.extend(config.options.iter().map(OsString::from));
    if let Some(interval) = config.alive_interval {
        // 0 would be never.
        let seconds = interval.as_secs().max(1);
        words.push(format!("-oServerAliveInterval={seconds}").into());
    }
    if let Some(key) = &config.key {
        words.extend(["-i".into(), key.into()]);
    }
    if let Some(known_hosts) = known_hosts {
        // Under this name whatever the port and ssh's configuration; and nobody is asked about
        // another key.
        let alias = format!("-oHostKeyAlias={}", config.host.name());
        words.push(file_option("-oUserKnownHostsFile=", known_hosts));
        words.extend([alias.into(), "-oStrictHostKeyChecking=yes".into()]);
    }
    if config.compress {
        words.push("-C".into());
    }
    if let Some(port) = config.host.port() {
        words.push(format!("-p{port}").into());
    }
    words.extend([config.host.argument().into(), "--".into()]);
    words.push(remote_command(config).into());
    words
}

/// The command for the shell of the far end: the program, its arguments, and the store it is to
/// open.
pub(super) fn remote_command(config: &SshConfig) -> String {
    let words = config.program.split_whitespace();
    let words: Vec<_> = words.chain(config.arguments.iter().copied()).collect();
    let mut line = words.join(" ");
    if let Some(store) = &config.remote_store {
        line.push_str(" --store ");
        line.push_str(&quoted(store));
    }
    line
}

/// `ssh -o` splits the names of files at blanks, and takes `%` for its own.
fn file_option(option: &str, file: &Path) -> OsString {
    let name = file.to_string_lossy().replace('%', "%%");
    format!("{option}\"{name}\"").into()
}

/// `word` as one word of a POSIX shell.
fn quoted(word: &str) -> Cow<'_, str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"%+,-./:=@_".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''")).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::{HostKey, SshHost};
    use std::process::Command;

    fn config(uri: &str) -> SshConfig {
        SshConfig::worker(SshHost::parse(uri).unwrap())
    }

    fn line(config: &SshConfig) -> String {
        let words = arguments(
            config,
            config.host_key.as_ref().map(|_| "/tmp/k h".as_ref()),
        );
        let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        words.join("|")
    }

    #[test]
    fn arguments_of_ssh() {
        assert_eq!(
            line(&config("host")),
            "-x|-T|-oServerAliveInterval=30|host|--|nix-daemon --stdio"
        );
        let serve = SshConfig::serve(SshHost::parse("u@[::1]:9").unwrap());
        assert_eq!(
            line(&serve),
            "-x|-T|-oServerAliveInterval=30|-p9|u@::1|--|nix-store --serve --write"
        );
        let all = SshConfig {
            options: vec!["-p".into(), "99".into()],
            key: Some("/home/me/a key".into()),
            host_key: Some(HostKey::from_base64("c3NoLWVkMjU1MTkgQUFBQQ==").unwrap()),
            alive_interval: None,
            compress: true,
            remote_store: Some("/a b".into()),
            program: "sudo  nix-daemon ".into(),
            ..config("host:22")
        };
        assert_eq!(
            line(&all),
            "-x|-T|-p|99|-i|/home/me/a key|-oUserKnownHostsFile=\"/tmp/k h\"|-oHostKeyAlias=host\
             |-oStrictHostKeyChecking=yes|-C|-p22|host|--|sudo nix-daemon --stdio --store '/a b'"
        );
    }

    #[test]
    fn this_machine_is_reached_without_ssh() {
        let words = |host: &str| {
            let mut config = config(host);
            config.remote_store = Some("ssh://localhost?remote-store=/a b".into());
            let (program, words) = to_start(&config, None);
            let words = words.iter().map(|word| word.to_string_lossy());
            let words: Vec<_> = words.collect();
            format!("{} {}", program.display(), words.join("|"))
        };
        assert_eq!(
            words("localhost"),
            "/bin/sh -c|nix-daemon --stdio --store 'ssh://localhost?remote-store=/a b'"
        );
        for far in ["me@localhost", "localhost:22", "127.0.0.1", "localhost.x"] {
            let started = words(far);
            assert!(started.starts_with("ssh -x|-T|"), "{started}");
        }
    }

    /// The shell at the far end makes of the store's URI just what was meant.
    #[test]
    fn the_store_reaches_the_far_end_as_it_is() {
        let plain = [
            "",
            "a b",
            "it's",
            "-x",
            "''",
            "a\nb",
            "ä",
            "local?root=/tmp/x&y=1",
        ];
        let special = [
            "$HOME", "`id`", "$(id)", "*", "~", "~root", "a~b", "a;b", "{a,b}",
        ];
        for word in [&plain[..], &special, &["\\", "\"", "!x", "#"]].concat() {
            let config = SshConfig {
                program: r"printf %s\\0".into(),
                arguments: vec!["end"],
                remote_store: Some(word.into()),
                ..config("host")
            };
            let command = remote_command(&config);
            let out = Command::new("/bin/sh").args(["-c", &command]).output();
            let out = String::from_utf8(out.unwrap().stdout).unwrap();
            let want = format!("end\0--store\0{word}\0");
            assert_eq!(out, want, "{command}");
        }
    }

    #[test]
    fn the_far_shell_finds_the_program() {
        let config = SshConfig {
            program: "env A=$HOME/x  sh -c 'echo $A;#'".into(),
            ..config("host")
        };
        let command = remote_command(&config);
        assert_eq!(command, "env A=$HOME/x sh -c 'echo $A;#' --stdio");
        let out = Command::new("/bin/sh")
            .args(["-c", &command])
            .env("HOME", "/far")
            .output();
        assert_eq!(out.unwrap().stdout, b"/far/x\n");
    }
}
