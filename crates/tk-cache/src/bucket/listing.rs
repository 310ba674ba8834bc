//! Listings, in which names of others may be.

use crate::sentence::element;
use bytes::Bytes;
use object_store::path::Path;

/// A page of a listing, without the objects whose names the library cannot hold (`a//b`, `a/`,
/// `../b`), and without the folders. For one such name it would refuse the whole page; a cache has
/// none.
pub(super) fn without_foreign(page: Bytes) -> Bytes {
    let Ok(text) = std::str::from_utf8(&page) else {
        return page;
    };
    let mut kept = text.to_owned();
    for element in OBJECTS {
        kept = without(kept, element, is_foreign);
    }
    for element in FOLDERS {
        kept = without(kept, element, |_| true);
    }
    kept.into()
}

/// `text` without the elements that are `unwanted`.
fn without(text: String, (open, close): (&str, &str), unwanted: fn(&str) -> bool) -> String {
    let mut kept = String::new();
    let mut rest = text.as_str();
    while let Some(start) = rest.find(open)
        && let Some(length) = rest[start..].find(close)
    {
        let end = start + length + close.len();
        let unwanted = unwanted(&rest[start..end]);
        kept.push_str(&rest[..if unwanted { start } else { end }]);
        rest = &rest[end..];
    }
    if kept.is_empty() && rest.len() == text.len() {
        return text;
    }
    kept + rest
}

fn is_foreign(object: &str) -> bool {
    let name = element(object, "Key").or_else(|| element(object, "Name"));
    name.is_some_and(|name| {
        // The library silently takes a slash off the ends.
        let same = Path::parse(&name).is_ok_and(|path| path.as_ref() == name);
        !same || has_control(&name)
    })
}

/// Whether a character that XML can only write as a number is no printable one.
fn has_control(name: &str) -> bool {
    name.split("&#").skip(1).any(|rest| {
        let number = rest.split(';').next().unwrap_or_default();
        let code = match number.strip_prefix(['x', 'X']) {
            Some(hex) => u32::from_str_radix(hex, 16),
            None => number.parse(),
        };
        code.is_ok_and(|code| code < 0x20 || code == 0x7f)
    })
}

/// What stands around an object: S3 and Google, Azure.
const OBJECTS: [(&str, &str); 2] = [("<Contents>", "</Contents>"), ("<Blob>", "</Blob>")];

/// What stands around a folder, likewise.
const FOLDERS: [(&str, &str); 2] = [
    ("<CommonPrefixes>", "</CommonPrefixes>"),
    ("<BlobPrefix>", "</BlobPrefix>"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(page: &str) -> String {
        let page = without_foreign(Bytes::from(page.to_owned()));
        String::from_utf8(page.to_vec()).unwrap()
    }

    #[test]
    fn foreign_names_are_left_out() {
        let own = "<Contents><Key>nar/a&amp;b</Key><Size>1</Size></Contents>";
        for name in [
            "a//b", "a/", "/a", "a/../b", "./a", "a&#10;b", "a&#x0D;b", "/",
        ] {
            let foreign = format!("<Contents><Size>1</Size><Key>{name}</Key></Contents>");
            let page = |more: &str| format!("<L>{own}{more}<T>t</T>{more}{own}</L>");
            assert_eq!(kept(&page(&foreign)), page(""), "{name}");
        }
        let azure = "<Blobs><Blob><Name>a</Name></Blob><Blob><Name>a//b</Name></Blob></Blobs>";
        let without = "<Blobs><Blob><Name>a</Name></Blob></Blobs>";
        assert_eq!(kept(azure), without);
    }

    #[test]
    fn all_else_is_as_it_came() {
        for page in [
            "",
            "no listing",
            "<Contents>",
            "<Contents><Key>a//b</Key>",
            "</Contents><Contents></Contents>",
            "<Contents><Key>ä&#228;&#x41;</Key></Contents>",
        ] {
            assert_eq!(kept(page), page);
        }
        let no_text = Bytes::from_static(b"<Contents>\xff</Contents>");
        assert_eq!(without_foreign(no_text.clone()), no_text);
    }
}
