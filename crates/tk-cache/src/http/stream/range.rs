//! Parts of objects: what is asked for, and whether it is what comes.

use crate::http::{body, failure::RequestFailure};
use http::{
    HeaderMap, HeaderValue,
    header::{CONTENT_RANGE, ETAG, LAST_MODIFIED},
};

/// What the first answer said about the object.
#[derive(Debug, Default)]
pub(super) struct FirstAnswer {
    /// Its size in bytes, as it is sent.
    pub(super) size: Option<u64>,
    etag: Option<HeaderValue>,
    modified: Option<HeaderValue>,
}

/// What an answer to the request for the rest holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RangeAnswer {
    Rest,
    /// All of it, from the start.
    Again,
    /// Nothing: the server gives no parts of it.
    Refused,
    /// Nothing, because there is no more.
    End,
}

impl FirstAnswer {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        FirstAnswer {
            size: body::length(headers),
            etag: headers.get(ETAG).cloned(),
            modified: headers.get(LAST_MODIFIED).cloned(),
        }
    }

    /// Whether it can be told that a part is one of the same.
    pub(super) fn can_be_told(&self) -> bool {
        self.validator().is_some() || self.size.is_some()
    }

    /// Whether each byte is known to be the same where the tag is.
    pub(super) fn has_strong_tag(&self) -> bool {
        self.etag.as_ref().is_some_and(is_strong)
    }

    /// For `If-Range`: a weak tag does not do there.
    pub(super) fn validator(&self) -> Option<HeaderValue> {
        let tag = self.etag.as_ref().filter(|tag| is_strong(tag));
        tag.or(self.modified.as_ref()).cloned()
    }

    /// Of a 200 with all of it. Where nothing tells that it is the same, its hash will.
    pub(super) fn again(&self, headers: &HeaderMap) -> Result<RangeAnswer, RequestFailure> {
        if self.differs(&FirstAnswer::of(headers)) {
            Err(changed())
        } else {
            Ok(RangeAnswer::Again)
        }
    }

    fn differs(&self, new: &FirstAnswer) -> bool {
        fn differ<T: PartialEq>(old: &Option<T>, new: &Option<T>) -> bool {
            old.is_some() && new.is_some() && old != new
        }
        differ(&self.etag, &new.etag)
            || differ(&self.modified, &new.modified)
            || differ(&self.size, &new.size)
    }

    /// Of a part that should hold everything from `at` on.
    pub(super) fn rest(
        &mut self,
        headers: &HeaderMap,
        at: u64,
    ) -> Result<RangeAnswer, RequestFailure> {
        let range = headers.get(CONTENT_RANGE).and_then(|r| r.to_str().ok());
        let Some((start, end, size)) = range.and_then(parse) else {
            return Err(RequestFailure::Nonsense(
                "it is a part of the object, without saying which".to_owned(),
            ));
        };
        let new = FirstAnswer::of(headers);
        let length = new.size;
        if self.differs(&FirstAnswer { size, ..new }) {
            return Err(changed());
        }
        let told = self.validator().is_some() || (self.size.is_some() && self.size == size);
        // Without any size it would not be seen that even the rest is cut off.
        if !told || self.size.or(size).is_none() {
            return Err(changed());
        }
        let length = length.is_none_or(|length| end.checked_sub(start) == length.checked_sub(1));
        if start != at || end < start || !length || size.is_some_and(|size| end >= size) {
            return Err(RequestFailure::Nonsense(format!(
                "asked for everything from byte {at} on, it sent {start} to {end}"
            )));
        }
        self.size = self.size.or(size);
        Ok(RangeAnswer::Rest)
    }

    /// Whether a 416 says that nothing follows `at`.
    pub(super) fn ends(&self, headers: &HeaderMap, at: u64) -> bool {
        let range = headers.get(CONTENT_RANGE).and_then(|r| r.to_str().ok());
        let size = range.and_then(|r| r.trim().strip_prefix("bytes */")?.parse().ok());
        size == Some(at) && self.size.is_none_or(|size| size == at)
    }
}

fn is_strong(tag: &HeaderValue) -> bool {
    !tag.as_bytes().starts_with(b"W/")
}

/// For `Range`: everything from `at` on.
pub(super) fn header(at: u64) -> HeaderValue {
    let all = || HeaderValue::from_static("bytes=0-");
    HeaderValue::try_from(format!("bytes={at}-")).unwrap_or_else(|_| all())
}

/// First and last byte, and the size of the whole unless it is `*`.
fn parse(range: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, size) = range.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let size = match size.trim() {
        "*" => None,
        size => Some(size.parse().ok()?),
    };
    Some((start.trim().parse().ok()?, end.trim().parse().ok()?, size))
}

pub(super) fn changed() -> RequestFailure {
    RequestFailure::Nonsense("it changed while it was read".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |&(name, value): &(&'static str, &'static str)| {
            let name = http::HeaderName::from_static(name);
            (name, HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn ranges() {
        for (text, expected) in [
            ("bytes 5-9/10", Some((5, 9, Some(10)))),
            ("bytes 5-9/*", Some((5, 9, None))),
            ("bytes */10", None),
            ("bytes 5-/10", None),
            ("lines 5-9/10", None),
            ("bytes 5-99999999999999999999/10", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn only_the_same_goes_on() {
        let first = headers(&[("etag", "\"a\""), ("content-length", "10")]);
        let rest = |pairs: &[_]| FirstAnswer::of(&first).rest(&headers(pairs), 5).is_ok();
        assert!(rest(&[
            ("content-range", "bytes 5-9/10"),
            ("etag", "\"a\"")
        ]));
        assert!(rest(&[("content-range", "bytes 5-9/10")]));
        assert!(rest(&[("content-range", "bytes 5-7/10")]));
        assert!(!rest(&[
            ("content-range", "bytes 5-9/10"),
            ("etag", "\"b\"")
        ]));
        assert!(!rest(&[
            ("content-range", "bytes 5-9/11"),
            ("etag", "\"a\"")
        ]));
        assert!(!rest(&[
            ("content-range", "bytes 4-9/10"),
            ("etag", "\"a\"")
        ]));
        assert!(!rest(&[
            ("content-range", "bytes 6-9/10"),
            ("etag", "\"a\"")
        ]));
        assert!(!rest(&[
            ("content-range", "bytes 5-10/10"),
            ("etag", "\"a\"")
        ]));
        assert!(!rest(&[
            ("content-range", "bytes 5-4/10"),
            ("etag", "\"a\"")
        ]));
        assert!(!rest(&[]));
    }

    #[test]
    fn without_a_tag_the_size_tells() {
        let first = headers(&[("content-length", "10"), ("etag", "W/\"a\"")]);
        let rest = |pairs: &[_]| FirstAnswer::of(&first).rest(&headers(pairs), 5).is_ok();
        assert!(rest(&[("content-range", "bytes 5-9/10")]));
        assert!(!rest(&[("content-range", "bytes 5-9/*")]));
        assert!(!FirstAnswer::of(&headers(&[])).can_be_told());
        assert_eq!(
            FirstAnswer::of(&first).again(&first).unwrap(),
            RangeAnswer::Again
        );
        for other in [("content-length", "11"), ("etag", "W/\"b\"")] {
            let other = headers(&[other]);
            assert!(FirstAnswer::of(&first).again(&other).is_err(), "{other:?}");
        }
    }
}
