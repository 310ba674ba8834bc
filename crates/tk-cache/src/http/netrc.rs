//! Logins by machine name, as curl and ftp keep them.
//!
//! ```text
//! machine NAME login USER password SECRET account IGNORED
//! default login USER password SECRET
//! macdef NAME            # up to the next empty line: skipped
//! ```
//! Words are separated by blanks and line ends; `"…"` with `\"`, `\n`, `\r`, `\t` holds blanks; `#`
//! at the start of a word begins a comment. The first entry for a machine counts, `default` where
//! it stands.

use std::fmt;

/// The text of a netrc file. Its passwords are never shown.
#[derive(Clone, Default)]
pub struct Netrc(Vec<Entry>);

#[derive(Clone, Default)]
struct Entry {
    /// `None`: any machine.
    machine: Option<String>,
    login: String,
    password: Option<String>,
}

impl Netrc {
    /// Reads the text of a netrc file. As curl, what is not understood is skipped.
    pub fn parse(text: &str) -> Self {
        let mut entries: Vec<Entry> = Vec::new();
        let mut words = Words(text);
        while let Some(word) = words.next() {
            match word.as_str() {
                "machine" => entries.extend(words.next().map(|machine| Entry {
                    machine: Some(machine),
                    ..Entry::default()
                })),
                "default" => entries.push(Entry::default()),
                "login" => set(&mut entries, words.next(), |e, login| e.login = login),
                "password" => set(&mut entries, words.next(), |e, p| e.password = Some(p)),
                "account" => drop(words.next()),
                "macdef" => words.skip_macro(),
                _ => {}
            }
        }
        Netrc(entries)
    }

    /// Login and password for `host` (a name without a port; case does not matter). An entry
    /// without a password is no login.
    pub fn find(&self, host: &str) -> Option<(&str, &str)> {
        let named = |e: &&Entry| {
            let machine = e.machine.as_deref();
            machine.is_none_or(|machine| machine.eq_ignore_ascii_case(host))
        };
        let entry = self.0.iter().find(named)?;
        Some((&entry.login, entry.password.as_deref()?))
    }
}

impl fmt::Debug for Netrc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Netrc({} machines)", self.0.len())
    }
}

/// What stands before the first machine belongs to nobody.
fn set(entries: &mut [Entry], value: Option<String>, put: impl FnOnce(&mut Entry, String)) {
    if let (Some(entry), Some(value)) = (entries.last_mut(), value) {
        put(entry, value);
    }
}

struct Words<'a>(&'a str);

impl Words<'_> {
    fn skip_macro(&mut self) {
        let end = self.0.find("\n\n").map(|at| at + 2);
        let end = end
            .into_iter()
            .chain(self.0.find("\n\r\n").map(|at| at + 3));
        self.0 = &self.0[end.min().unwrap_or(self.0.len())..];
    }

    fn quoted(&mut self) -> String {
        let mut word = String::new();
        let mut chars = self.0.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.0 = &self.0[at + 1..];
                    return word;
                }
                '\\' => word.extend(chars.next().map(|(_, c)| match c {
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    c => c,
                })),
                c => word.push(c),
            }
        }
        self.0 = "";
        word
    }
}

impl Iterator for Words<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        loop {
            self.0 = self.0.trim_start();
            match self.0.chars().next()? {
                '#' => {
                    let end = self.0.find('\n').unwrap_or(self.0.len());
                    self.0 = &self.0[end..];
                }
                '"' => {
                    self.0 = &self.0[1..];
                    return Some(self.quoted());
                }
                _ => {
                    let end = self.0.find(char::is_whitespace).unwrap_or(self.0.len());
                    let (word, rest) = self.0.split_at(end);
                    self.0 = rest;
                    return Some(word.to_owned());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins() {
        let netrc = Netrc::parse(
            "# comment machine no\nmachine a.example login me password p#1\n\
             machine B.example\n\tpassword \"a \\\"b\\\" \\\\ c\"\n login you account x\n\
             macdef init\nmachine evil login x password y\n\n\
             machine c.example login only\n\
             machine a.example login later password never\n\
             default login any password one",
        );
        assert_eq!(netrc.find("a.example"), Some(("me", "p#1")));
        assert_eq!(netrc.find("b.example"), Some(("you", "a \"b\" \\ c")));
        assert_eq!(netrc.find("c.example"), None);
        assert_eq!(netrc.find("evil"), Some(("any", "one")));
        assert!(!format!("{netrc:?}").contains("p#1"));
    }

    #[test]
    fn broken_text_is_no_login() {
        for text in [
            "",
            "machine",
            "machine a login",
            "password x",
            "\"",
            "macdef x",
            "login \"\\",
        ] {
            assert_eq!(Netrc::parse(text).find("a"), None, "{text}");
        }
    }
}
