//! What is behind an error.

use std::{error::Error as StdError, io};

/// The error, what caused it, what caused that, and so on.
pub(crate) fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    // The source of an `io::Error` is that of what it holds, which would be left out.
    std::iter::successors(Some(error), |&e| {
        match e.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(held) => Some(held as &(dyn StdError + 'static)),
            None => e.source(),
        }
    })
}

/// The innermost cause, which is what a person can act on.
pub(crate) fn innermost(error: &(dyn StdError + 'static)) -> String {
    let last = causes(error).last();
    last.map(ToString::to_string).unwrap_or_default()
}

/// What kind of trouble with the network is behind the error, if any is.
pub(crate) fn io_kind(error: &(dyn StdError + 'static)) -> Option<io::ErrorKind> {
    let kinds = causes(error).filter_map(|e| e.downcast_ref::<io::Error>());
    kinds
        .map(io::Error::kind)
        .find(|kind| *kind != io::ErrorKind::Other)
}

/// Whether the two sides do not agree on who they are, which trying again does not change.
pub(super) fn is_tls(error: &(dyn StdError + 'static)) -> bool {
    causes(error).any(|e| {
        matches!(
            e.downcast_ref(),
            Some(
                rustls::Error::InvalidCertificate(_)
                    | rustls::Error::NoCertificatesPresented
                    // There is nobody to trust.
                    | rustls::Error::Other(_)
                    | rustls::Error::AlertReceived(_)
            )
        )
    })
}
