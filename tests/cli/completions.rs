//! What the shells themselves offer, with the code that `tk-store completions` prints.

use super::Machine;
use crate::support;
use std::{collections::BTreeSet, process::Command};

/// What a word of a command line becomes, in every shell: the line, what must be among the offers, and
/// what must not.
fn cases(machine: &Machine) -> Vec<(String, Vec<String>, Vec<String>)> {
    let texts = |words: &[&str]| {
        words
            .iter()
            .map(|word| word.to_string())
            .collect::<Vec<_>>()
    };
    let case = |line: &str, there: &[&str], absent: &[&str]| {
        (line.to_owned(), texts(there), texts(absent))
    };
    machine.write("file", "x");
    let cache = machine.cache("cache");
    let path = machine.ok(&format!("push file --to {cache} --add"));
    let conf = "substituters = https://cache.nixos.org https://mine.example\n";
    machine.write("etc/nix.conf", conf);
    vec![
        case("tk-store pu", &["push", "pull"], &["copy"]),
        case(
            "tk-store push --c",
            &["--compression", "--create-key"],
            &["--to"],
        ),
        case("tk-store cache ", &["init", "use"], &["push"]),
        case(
            "tk-store push --compression ",
            &["xz", "zstd", "none"],
            &["--to"],
        ),
        case("tk-store push x --compression z", &["zstd"], &["xz"]),
        case(
            "tk-store hash file --format b",
            &["base16", "base64"],
            &["sri"],
        ),
        case(
            "tk-store hash file --hash-algo ",
            &["sha256", "blake3"],
            &["sri"],
        ),
        case("tk-store env export --format f", &["fish"], &["bash"]),
        case("tk-store daemon --log-format ", &["json", "text"], &[]),
        case("tk-store --sto", &["--store"], &["--quiet"]),
        case(
            "tk-store check --in https://c",
            &["https://cache.nixos.org"],
            &["https://mine.example"],
        ),
        case(
            "tk-store pull --from https://",
            &["https://cache.nixos.org", "https://mine.example"],
            &[],
        ),
        case(
            &format!("tk-store path-info {}", &path[..18]),
            &[&path],
            &[],
        ),
        case(
            &format!("tk-store pull --from {cache} {}", &path[..18]),
            &[&path],
            &[],
        ),
        case("tk-store nar pack fi", &["file"], &["etc"]),
    ]
}

#[test]
fn bash() {
    // As bash calls it; words are cut where bash cuts them.
    let script = r#"
        source <("$1" completions bash)
        COMP_LINE=$2 COMP_POINT=${#2} COMP_WORDS=() word=
        for ((i = 0; i < COMP_POINT; i++)); do
            c=${2:i:1}
            case $c in
            ' ') [[ $word ]] && COMP_WORDS+=("$word"); word= ;;
            [:=]) [[ $word == [!:=]* ]] && COMP_WORDS+=("$word") && word=; word+=$c ;;
            *) [[ $word == [:=]* ]] && COMP_WORDS+=("$word") && word=; word+=$c ;;
            esac
        done
        COMP_WORDS+=("$word") COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        f=$(complete -p tk-store); f=${f##*-F }; f=${f%% *}
        $f tk-store "$word" "${COMP_WORDS[COMP_CWORD - 1]}"
        # What bash makes of it.
        typed=${2##* } typed=${typed%"$word"}
        for reply in "${COMPREPLY[@]}"; do echo "$typed$reply"; done
        [[ ${COMPREPLY[*]} ]] || compgen -f -- "$word""#;
    try_all("bash", &["--norc", "-c", script, "bash"]);
}

#[test]
fn zsh() {
    // A shell at a terminal of its own, which lists what its completion offers and goes on to tell.
    let script = r#"
        zmodload zsh/zpty zsh/zselect
        rm -f $HOME/offers $HOME/finished; : >$HOME/offers
        export TYPED=$2
        zpty z zsh -f -i
        for line in "PS1= PS2= RPS1=" \
            "autoload -Uz compinit && compinit -u -d $HOME/dump" \
            "source <($1 completions zsh)" \
            'compadd() { if [[ " $* " != *\ -[OAD]\ * ]]; then local -a __w; builtin compadd -O __w "$@"; print -rl -- $__w >>$HOME/offers; fi; builtin compadd "$@" }' \
            'zle -C offer list-choices _main_complete' \
            'zle-line-init() { BUFFER=$TYPED CURSOR=$#TYPED; zle offer; : >$HOME/finished }; zle -N zle-line-init'; do
            zpty -w z $line
        done
        while [[ ! -e $HOME/finished ]]; do zpty -r -t z x >/dev/null; zselect -t 2; done
        cat $HOME/offers"#;
    try_all("zsh", &["-f", "-c", script, "zsh"]);
}

#[test]
fn fish() {
    let script = r#"
        source ($argv[1] completions fish | psub)
        complete -C $argv[2] | string replace -r '\t.*' ''"#;
    try_all("fish", &["--no-config", "-c", script]);
}

fn try_all(shell: &str, args: &[&str]) {
    if Command::new(shell).arg("--version").output().is_err() {
        return support::skip(shell, "there is no such shell here");
    }
    let machine = Machine::new();
    for (line, there, absent) in cases(&machine) {
        let _ = std::fs::remove_file(machine.home().join("finished"));
        let template = machine.command(["x"]);
        let mut run = Command::new(shell);
        run.args(args).args([env!("CARGO_BIN_EXE_tk-store"), &line]);
        run.current_dir(machine.home()).env("TERM", "dumb");
        for (name, value) in template.get_envs() {
            match value {
                Some(value) => run.env(name, value),
                None => run.env_remove(name),
            };
        }
        let done = machine.done(run.output());
        let offered: BTreeSet<_> = done.out.lines().map(str::trim).collect();
        for word in &there {
            assert!(
                offered.contains(&**word),
                "{shell}: {line}: no {word} in {done:?}"
            );
        }
        for word in &absent {
            assert!(
                !offered.contains(&**word),
                "{shell}: {line}: {word} in {done:?}"
            );
        }
    }
}
