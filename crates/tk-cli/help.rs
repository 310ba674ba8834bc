//! The help texts: examples stay lines that can be copied, and every command has some.

use clap::Command;

/// `command` with examples for all commands below it, those that only have others below them too, each
/// glued together so that it is not wrapped: see [`unglued`].
pub fn with_examples(command: Command) -> Command {
    let command = command.mut_subcommands(with_examples);
    let own = command.get_after_help().map(ToString::to_string);
    let text = own.unwrap_or_else(|| of_below(&command));
    if text.is_empty() {
        command
    } else {
        command.after_help(glued(&text))
    }
}

/// The text as it is to be printed.
pub fn unglued(text: &str) -> String {
    text.replace(GLUE, " ")
}

/// The first example of each command below.
fn of_below(command: &Command) -> String {
    let texts = command
        .get_subcommands()
        .filter(|below| !below.is_hide_set());
    let firsts = texts.filter_map(|below| {
        let text = below.get_after_help()?.to_string();
        Some(text.lines().find(|line| is_example(line))?.to_owned())
    });
    let firsts: Vec<_> = firsts.collect();
    if firsts.is_empty() {
        String::new()
    } else {
        format!("Examples:\n{}", firsts.join("\n"))
    }
}

/// The blanks of the examples replaced, since lines are wrapped at blanks.
fn glued(text: &str) -> String {
    let lines = text.lines().map(|line| {
        if is_example(line) {
            line.replace(' ', GLUE)
        } else {
            line.to_owned()
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn is_example(line: &str) -> bool {
    line.starts_with("  ") || line.starts_with(GLUE)
}

/// A blank at which no line ends. No text has it otherwise.
const GLUE: &str = "\u{a0}";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cli;
    use clap::{CommandFactory, Parser, error::ErrorKind};

    /// Lines of the examples, each whole.
    fn examples(command: &Command) -> Vec<String> {
        let text = command.get_after_help().map(ToString::to_string);
        let text = unglued(&text.unwrap_or_default()).replace("\\\n", " ");
        let after = text.lines().skip_while(|line| !line.starts_with("Example"));
        let lines = after
            .skip(1)
            .take_while(|line| is_example(line) || line.is_empty());
        let lines = lines.map(|line| line.trim().to_owned());
        lines.filter(|line| !line.is_empty()).collect()
    }

    /// The command lines of this program in a line of a shell.
    fn lines_of(line: &str, found: &mut Vec<Vec<String>>) {
        let words = shell_words::split(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        let mut words = words.into_iter().peekable();
        let mut before = String::new();
        while let Some(word) = words.next() {
            if word.trim_start_matches(['<', '$', '(']) != "tk-store" {
                // `use tk-store` is a word of direnv.
                if let Some(start) = word.find("tk-store ")
                    && !word[..start].ends_with("use ")
                {
                    lines_of(word[start..].trim_end_matches([')', '"']), found);
                }
                before = word;
                continue;
            }
            let mut own = vec!["tk-store".to_owned()];
            while let Some(next) =
                words.next_if(|w| !["|", "&&", "#"].contains(&&**w) && !w.starts_with('>'))
            {
                // The number of the shell itself.
                let next = next.replace("$$", "1");
                own.push(if word.ends_with("(tk-store") {
                    next.trim_end_matches(')').to_owned()
                } else {
                    next
                });
            }
            if before == "-r" {
                own.push("what-xargs-reads".into());
            }
            found.push(own);
        }
    }

    #[test]
    fn every_command_has_examples_that_make_sense() {
        let mut todo = vec![(vec!["tk-store".to_owned()], with_examples(Cli::command()))];
        let mut seen = 0;
        while let Some((name, command)) = todo.pop() {
            let whole = name.join(" ");
            let all = examples(&command);
            assert!(
                all.iter().any(|line| line.contains(&whole)),
                "{whole} has no example: {all:?}"
            );
            let mut found = Vec::new();
            all.iter().for_each(|line| lines_of(line, &mut found));
            assert!(!found.is_empty(), "{whole}: {all:?}");
            for line in found {
                seen += 1;
                if let Err(error) = Cli::try_parse_from(&line) {
                    assert_eq!(
                        error.kind(),
                        ErrorKind::DisplayHelp,
                        "{whole}: {line:?}: {error}"
                    );
                }
            }
            for below in command
                .get_subcommands()
                .filter(|below| !below.is_hide_set())
            {
                let mut name = name.clone();
                name.push(below.get_name().to_owned());
                todo.push((name, below.clone()));
            }
        }
        assert!(seen > 80, "{seen}");
    }

    #[test]
    fn examples_are_not_wrapped() {
        let line = format!("  tk-store {}", "word ".repeat(60));
        let text = format!("Examples:\n{line}\n\n{}", "prose ".repeat(60));
        let command = Command::new("x").term_width(40).after_help(text);
        let shown = with_examples(command).render_help().to_string();
        assert!(unglued(&shown).contains(line.trim_end()), "{shown}");
        assert!(
            shown
                .lines()
                .all(|l| l.contains(GLUE) || l.chars().count() <= 40)
        );
    }
}
