//! Listings, in which names of others may be.

use crate::sentence::elements;
use bytes::Bytes;
use object_store::path::Path;
use quick_xml::escape::unescape;

/// A page of a listing, without the objects whose names the library cannot hold (`a//b`, `a/`,
/// `../b`), and without the folders. For one such name it would refuse the whole page; a cache has
/// none.
pub(super) fn without_foreign(page: Bytes) -> Bytes {
    let Ok(text) = std::str::from_utf8(&page) else {
        return page;
    };
    let (mut kept, mut copied) = (String::new(), 0);
    for (place, content) in elements(text, &ENTRIES) {
        let folder = FOLDERS
            .iter()
            .any(|tag| text[place.start..].starts_with(tag));
        if folder || is_foreign(content) {
            kept.push_str(&text[copied..place.start]);
            copied = place.end;
        }
    }
    kept.push_str(&text[copied..]);
    kept.into()
}

fn is_foreign(object: &str) -> bool {
    let name = elements(object, &["Key", "Name"]).next();
    // What cannot be unescaped ends the library's reading of the whole page.
    name.is_some_and(|(_, name)| !unescape(name).is_ok_and(|name| can_be_held(&name)))
}

/// The library silently takes a slash off the ends.
fn can_be_held(name: &str) -> bool {
    Path::parse(name).is_ok_and(|path| path.as_ref() == name)
}

/// What stands around an object and around a folder: S3 and Google, Azure.
const ENTRIES: [&str; 4] = ["Contents", "CommonPrefixes", "Blob", "BlobPrefix"];

const FOLDERS: [&str; 2] = ["<CommonPrefixes", "<BlobPrefix"];

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
            "a//b", "a/", "/a", "a/../b", "./a", "a&#10;b", "a&#x0D;b", "a&#0;b", "a&who;b", "/",
        ] {
            let foreign = format!("<Contents><Size>1</Size><Key>{name}</Key></Contents>");
            let page = |more: &str| format!("<L>{own}{more}<T>t</T>{more}{own}</L>");
            assert_eq!(kept(&page(&foreign)), page(""), "{name}");
        }
        let page = |own: &str| format!("\u{feff}<?xml version=\"1.0\"?><L>{own}</L>");
        let folder = "<CommonPrefixes><Prefix>nar/</Prefix></CommonPrefixes>";
        assert_eq!(kept(&page(folder)), page(""));
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
