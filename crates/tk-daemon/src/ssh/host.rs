use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use std::{
    fmt,
    net::Ipv6Addr,
    num::{NonZeroU16, ParseIntError},
};

/// Whom an ssh store is at. `Display` is the part of its URI behind `://`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SshHost {
    user: Option<String>,
    /// Without brackets; an IPv6 address may have a zone behind `%`.
    name: String,
    port: Option<NonZeroU16>,
}

/// Why a text names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a host for ssh: {fault}")]
pub struct SshHostError {
    text: String,
    fault: HostFault,
}

impl SshHost {
    /// Parses the authority of a store URI: `[user[:password]@]host[:port]`, percent-encoded. An IPv6
    /// address stands in brackets, with its zone behind `%25` (or `%`). A password is left out, as
    /// ssh takes none there. The user may hold any letter, such as `user%40domain@host`.
    ///
    /// # Security
    /// The text may come from somebody else. User and host that begin with `-` are refused, since
    /// ssh would take them for options that run programs; so are control characters, and blanks in
    /// the host.
    pub fn parse(text: &str) -> Result<Self, SshHostError> {
        parse(text).map_err(|fault| SshHostError {
            text: text.to_owned(),
            fault,
        })
    }

    /// What ssh is to be called with: `user@host`, without brackets, as the host's name may be an
    /// alias of the user's configuration of ssh.
    pub fn argument(&self) -> String {
        match &self.user {
            Some(user) => format!("{user}@{}", self.name),
            None => self.name.clone(),
        }
    }

    /// The name or address of the host.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The user, if it is not the one that ssh is configured for.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// Whether it is `localhost` and nothing more. Like Nix, nobody calls ssh to reach that: the program
    /// runs on this machine, as this user.
    pub fn is_this_machine(&self) -> bool {
        self.name == "localhost" && self.user.is_none() && self.port.is_none()
    }

    /// The port, if it is not the one that ssh is configured for.
    pub fn port(&self) -> Option<u16> {
        self.port.map(NonZeroU16::get)
    }
}

impl fmt::Display for SshHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{}@", utf8_percent_encode(user, RESERVED))?;
        }
        if self.name.contains(':') {
            write!(f, "[{}]", self.name.replace('%', "%25"))?
        } else {
            f.write_str(&self.name)?
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

fn parse(text: &str) -> Result<SshHost, HostFault> {
    let (user, rest) = match text.rsplit_once('@') {
        Some((user, rest)) => {
            let user = user.split(':').next().unwrap_or_default();
            (Some(decoded(user, "")?), rest)
        }
        None => (None, text),
    };
    let (name, port) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or(HostFault::Address)?;
            (address_with_zone(address)?, port)
        }
        None => {
            let (name, port) = rest.split_at(rest.find(':').unwrap_or(rest.len()));
            (decoded(name, IN_NO_HOST)?, port)
        }
    };
    let port = match port.strip_prefix(':') {
        Some("") => None,
        Some(port) => Some(port.parse()?),
        None if port.is_empty() => None,
        None => return Err(HostFault::Address),
    };
    Ok(SshHost { user, name, port })
}

/// A name that is safe as a word of ssh's command line.
fn decoded(text: &str, never: &str) -> Result<String, HostFault> {
    let text = percent_decode_str(text).decode_utf8();
    let text = text.map_err(|_| HostFault::Letters)?;
    let odd = |c: char| c.is_control() || never.contains(c);
    match text.chars().next() {
        None => Err(HostFault::Empty),
        Some('-') => Err(HostFault::Option),
        Some(_) if text.contains(odd) => Err(HostFault::Letters),
        Some(_) => Ok(text.into_owned()),
    }
}

fn address_with_zone(text: &str) -> Result<String, HostFault> {
    let (address, zone) = match text.split_once('%') {
        Some((address, zone)) => (address, Some(zone.strip_prefix("25").unwrap_or(zone))),
        None => (text, None),
    };
    let address: Ipv6Addr = address.parse().map_err(|_| HostFault::Address)?;
    match zone {
        Some(zone) => Ok(format!("{address}%{}", decoded(zone, IN_NO_HOST)?)),
        None => Ok(address.to_string()),
    }
}

/// Letters that no host's name has.
const IN_NO_HOST: &str = " /@[]";
/// In a user's name these stand for something else in a URI.
const RESERVED: &AsciiSet = &CONTROLS
    .add(b'%')
    .add(b'@')
    .add(b':')
    .add(b'/')
    .add(b'?')
    .add(b'#')
    .add(b'[')
    .add(b']')
    .add(b' ');

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum HostFault {
    #[error("a name is missing")]
    Empty,
    #[error("a name that begins with '-' would be an option")]
    Option,
    #[error("a name holds a character that no name has")]
    Letters,
    #[error("brackets go around an IPv6 address, and only a port follows them")]
    Address,
    #[error("a port is a number from 1 to 65535")]
    Port(#[from] ParseIntError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (text, argument, port, printed) in [
            ("host", "host", None, "host"),
            (
                "alice@host.example",
                "alice@host.example",
                None,
                "alice@host.example",
            ),
            ("host:2222", "host", Some(2222), "host:2222"),
            ("a%2Db@h_1", "a-b@h_1", None, "a-b@h_1"),
            ("[::1]", "::1", None, "[::1]"),
            ("[0:0::1]:22", "::1", Some(22), "[::1]:22"),
            (
                "u@[fe80::1%25eth0]:22",
                "u@fe80::1%eth0",
                Some(22),
                "u@[fe80::1%25eth0]:22",
            ),
            ("[fe80::1%eth0]", "fe80::1%eth0", None, "[fe80::1%25eth0]"),
            // A domain in the user's name.
            ("a%5Cb@host", "a\\b@host", None, "a\\b@host"),
            (
                "user%40corp@host",
                "user@corp@host",
                None,
                "user%40corp@host",
            ),
            (
                "us%20er%2F%3A@host",
                "us er/:@host",
                None,
                "us%20er%2F%3A@host",
            ),
            // What real Nix makes of a password, and of a port that is not said.
            ("user:secret@host:22", "user@host", Some(22), "user@host:22"),
            ("host:", "host", None, "host"),
            ("[::1]:", "::1", None, "[::1]"),
        ] {
            let host = SshHost::parse(text).unwrap();
            assert_eq!(host.argument(), argument, "{text}");
            assert_eq!(host.port(), port, "{text}");
            assert_eq!(host.to_string(), printed);
            assert_eq!(SshHost::parse(printed).unwrap(), host);
        }
    }

    #[test]
    fn what_is_no_host() {
        for (text, why) in [
            ("", "missing"),
            ("@host", "missing"),
            ("user@", "missing"),
            ("-oProxyCommand=touch%20x", "option"),
            ("%2DoProxyCommand=x", "option"),
            ("-oProxyCommand=x@host", "option"),
            ("[fe80::1%25-x]", "option"),
            ("a%20b", "character"),
            ("a%0Ab", "character"),
            ("a%00b", "character"),
            ("%ff", "character"),
            ("host/path", "character"),
            ("a%40b", "character"),
            (":secret@host", "missing"),
            ("[::1", "brackets"),
            ("[::1]x", "brackets"),
            ("[host]", "brackets"),
            ("host:0", "port"),
            ("host:65536", "port"),
            ("::1", "missing"),
        ] {
            let error = SshHost::parse(text).unwrap_err().to_string();
            assert!(
                error.contains(why) && error.contains(text),
                "{text}: {error}"
            );
        }
    }
}
