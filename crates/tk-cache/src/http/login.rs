//! Who this is to a server, and URLs without it.

use super::{Auth, Netrc};
use data_encoding::BASE64;
use http::HeaderValue;
use percent_encoding::percent_decode_str;
use tk_store::{Error, Result};
use url::{Position, Url};

/// Whom a login is for, and the header that it is.
pub(super) struct Login {
    pub(super) origin: url::Origin,
    pub(super) header: HeaderValue,
}

impl Login {
    pub(super) fn new(cache: &Url, auth: &Auth) -> Result<Option<Self>> {
        let header = match auth {
            Auth::None => return Ok(None),
            Auth::Basic { user, password } => basic(user.as_bytes(), password.as_bytes()),
            Auth::Bearer(token) => bearer(token).ok_or_else(|| {
                Error::invalid("the token holds characters that cannot be sent, such as line ends")
            })?,
        };
        let origin = cache.origin();
        Ok(Some(Login { origin, header }))
    }
}

/// The URL for people: without login, and without a query, which may be one too.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    take_login(&mut url);
    url[..Position::AfterPath].to_owned()
}

/// What a URL says of who this is.
pub(super) struct UrlLogin {
    user: Vec<u8>,
    password: Option<Vec<u8>>,
}

impl UrlLogin {
    /// The header for it. As with curl, a user alone picks its entry for the host.
    pub(super) fn header(&self, url: &Url, netrc: &Netrc) -> HeaderValue {
        let entry = || netrc.find(url.host_str()?, Some(&self.user));
        let password = match &self.password {
            Some(password) => Some(password.as_slice()),
            None => entry().map(|(_, password)| password),
        };
        basic(&self.user, password.unwrap_or_default())
    }

    /// The same as a login for the cache at `url`.
    pub(super) fn login(&self, url: &Url, netrc: &Netrc) -> Login {
        Login {
            origin: url.origin(),
            header: self.header(url, netrc),
        }
    }
}

/// Takes the login out of a URL.
pub(super) fn take_login(url: &mut Url) -> Option<UrlLogin> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let login = UrlLogin {
        user: percent_decode_str(url.username()).collect(),
        password: url
            .password()
            .map(|text| percent_decode_str(text).collect()),
    };
    // Both fail only for URLs that cannot have a login.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    Some(login)
}

pub(super) fn basic(user: &[u8], password: &[u8]) -> HeaderValue {
    let encoded = BASE64.encode(&[user, b":", password].concat());
    let mut header = HeaderValue::try_from(format!("Basic {encoded}"))
        .unwrap_or(HeaderValue::from_static("Basic"));
    header.set_sensitive(true);
    header
}

fn bearer(token: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}
