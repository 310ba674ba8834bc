//! Logins by machine name, as curl and ftp keep them.
//!
//! ```text
//! machine NAME login USER password SECRET account IGNORED
//! default login USER password SECRET
//! macdef NAME            # up to the next empty line: skipped
//! ```
//! As curl reads it, byte by byte: words are separated by blanks and line ends; `"…"` with `\"`,
//! `\n`, `\r`, `\t` holds blanks, but no line end; key words and names of machines in any case of
//! letters; a line that begins with `#` is a comment, while a `#` elsewhere belongs to its word. The
//! first entry for a machine counts, `default` where it stands; of those without a password (a
//! token) only where there is none with one.

use std::fmt;

/// The text of a netrc file. Its passwords are never shown.
#[derive(Clone, Default)]
pub struct Netrc(Vec<NetrcEntry>);

#[derive(Clone, Default)]
struct NetrcEntry {
    /// The host that the login is for; `None` for `default`, which is any host.
    machine: Option<Vec<u8>>,
    login: Option<Vec<u8>>,
    password: Option<Vec<u8>>,
}

impl Netrc {
    /// Reads the text of a netrc file, whatever its encoding. As curl, what is not understood is
    /// skipped.
    pub fn parse(text: impl AsRef<[u8]>) -> Self {
        let mut entries: Vec<NetrcEntry> = Vec::new();
        let mut keyword = Vec::new();
        let mut in_macro = false;
        for line in text.as_ref().split(|byte| *byte == b'\n') {
            let line = line.trim_ascii();
            in_macro &= !line.is_empty();
            if in_macro || line.starts_with(b"#") {
                continue;
            }
            for word in NetrcWords(line) {
                // A word after a key word belongs to it, also on the next line.
                match &*std::mem::take(&mut keyword) {
                    b"machine" => entries.push(NetrcEntry {
                        machine: Some(word),
                        ..NetrcEntry::default()
                    }),
                    b"login" => entry(&mut entries, |e| &e.login, |e| e.login = Some(word)),
                    b"password" => {
                        entry(&mut entries, |e| &e.password, |e| e.password = Some(word))
                    }
                    b"account" => {}
                    _ => match word.to_ascii_lowercase() {
                        word if word == b"default" => entries.push(NetrcEntry::default()),
                        word if word == b"macdef" => {
                            in_macro = true;
                            break;
                        }
                        word => keyword = word,
                    },
                }
            }
        }
        Netrc(entries)
    }

    /// Login and password for `host` (a name without a port; case does not matter), of the user
    /// `login` if one is given. An entry without a password has an empty one.
    pub fn find(&self, host: &str, login: Option<&[u8]>) -> Option<(&[u8], &[u8])> {
        let host = host.trim_matches(['[', ']']).as_bytes();
        let named = |e: &&NetrcEntry| {
            let machine = e.machine.as_deref();
            machine.is_none_or(|machine| machine.eq_ignore_ascii_case(host))
                && login.is_none_or(|login| e.login.as_deref() == Some(login))
        };
        let entries = || self.0.iter().filter(named);
        let whole = entries().find(|e| e.password.is_some());
        let entry = whole.or_else(|| entries().find(|e| e.login.is_some()))?;
        Some((
            entry.login.as_deref().unwrap_or_default(),
            entry.password.as_deref().unwrap_or_default(),
        ))
    }
}

impl fmt::Debug for Netrc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Netrc({} machines)", self.0.len())
    }
}

/// Puts a value into the last entry, or where that has one already, into another of its machine.
/// What stands before the first machine belongs to nobody.
fn entry(
    entries: &mut Vec<NetrcEntry>,
    held: impl Fn(&NetrcEntry) -> &Option<Vec<u8>>,
    put: impl FnOnce(&mut NetrcEntry),
) {
    if let Some(last) = entries.last()
        && held(last).is_some()
    {
        let machine = last.machine.clone();
        entries.push(NetrcEntry {
            machine,
            ..NetrcEntry::default()
        });
    }
    if let Some(last) = entries.last_mut() {
        put(last);
    }
}

/// The words of a line.
struct NetrcWords<'a>(&'a [u8]);

impl NetrcWords<'_> {
    fn quoted(&mut self) -> Option<Vec<u8>> {
        let mut word = Vec::new();
        let mut bytes = self.0.iter().enumerate();
        while let Some((at, byte)) = bytes.next() {
            match byte {
                b'"' => {
                    self.0 = &self.0[at + 1..];
                    return Some(word);
                }
                b'\\' => word.extend(bytes.next().map(|(_, byte)| match byte {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    byte => *byte,
                })),
                byte => word.push(*byte),
            }
        }
        self.0 = &[];
        None
    }
}

impl Iterator for NetrcWords<'_> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let start = self.0.iter().position(|byte| *byte > b' ')?;
        self.0 = &self.0[start..];
        if let Some(rest) = self.0.strip_prefix(b"\"") {
            self.0 = rest;
            return self.quoted();
        }
        let end = self.0.iter().position(|byte| *byte <= b' ');
        let (word, rest) = self.0.split_at(end.unwrap_or(self.0.len()));
        self.0 = rest;
        Some(word.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(netrc: &'a Netrc, host: &str) -> Option<(&'a str, &'a str)> {
        let text = |bytes| std::str::from_utf8(bytes).unwrap();
        let (login, password) = netrc.find(host, None)?;
        Some((text(login), text(password)))
    }

    #[test]
    fn logins() {
        let netrc = Netrc::parse(
            "# comment machine no\nmachine a.example login me password p#1\r\n\
             MACHINE B.example\n\tPassword \"a \\\"b\\\" \\\\ c\"\n login\nyou account x\n\
             macdef init\nmachine evil login x password y\n\n\
             machine c.example login only\n\
             machine a.example login later password never\n\
               # machine d.example login no\n\
             machine d.example login d password #q\n\
             machine [::1] login six password p\n",
        );
        assert_eq!(find(&netrc, "A.example"), Some(("me", "p#1")));
        assert_eq!(find(&netrc, "b.example"), Some(("you", "a \"b\" \\ c")));
        assert_eq!(find(&netrc, "c.example"), Some(("only", "")));
        assert_eq!(find(&netrc, "d.example"), Some(("d", "#q")));
        assert_eq!(find(&netrc, "evil"), None);
        let later = netrc.find("a.example", Some(b"later"));
        assert_eq!(later, Some((&b"later"[..], &b"never"[..])));
        assert_eq!(netrc.find("a.example", Some(b"nobody")), None);
        assert!(!format!("{netrc:?}").contains("p#1"));
    }

    #[test]
    fn the_first_that_has_a_password_counts() {
        let text = "machine a login token\ndefault login any password one\n\
                    machine b login b password 2\nmachine a login a password 3 login c password 4";
        let netrc = Netrc::parse(text);
        assert_eq!(find(&netrc, "a"), Some(("any", "one")));
        assert_eq!(find(&netrc, "b"), Some(("any", "one")), "it comes before");
        let of = |user: &'static str| netrc.find("a", Some(user.as_bytes())).map(|(_, p)| p);
        assert_eq!(of("token"), Some(&b""[..]));
        assert_eq!(of("a"), Some(&b"3"[..]));
        assert_eq!(of("c"), Some(&b"4"[..]));
    }

    /// What curl sends are bytes, whatever they mean.
    #[test]
    fn bytes_of_any_encoding() {
        let netrc = Netrc::parse(b"# caf\xe9\nmachine a login me password caf\xe9\n");
        assert_eq!(netrc.find("a", None), Some((&b"me"[..], &b"caf\xe9"[..])));
    }

    #[test]
    fn broken_text_is_no_login() {
        for text in [
            "",
            "machine",
            "machine a login",
            "machine a",
            "password x",
            "\"",
            "macdef x",
            "login \"\\",
            "machine a login \"open",
            "machine a\0",
        ] {
            assert_eq!(Netrc::parse(text).find("a", None), None, "{text}");
        }
    }
}
