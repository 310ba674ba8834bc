//! What is read from a `.ls` text is written as a text that reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tk_nar::{Listing, ListingNode, ListingStyle};

fuzz_target!(|text: &str| {
    let Ok(listing) = Listing::from_json(text) else {
        return;
    };
    assert!(listing.is_utf8());
    for style in [ListingStyle::Current, ListingStyle::Sparse] {
        let printed = listing.to_json_as(style);
        let back = Listing::from_json(&printed).expect("our own listing");
        assert_eq!(back, listing);
        assert_eq!(back.to_json_as(style), printed);
    }
    for (path, node) in listing.walk() {
        assert_eq!(listing.find(&path), Some(node));
        listing.resolve(&path);
    }
    let root = ListingNode::from_json(&listing.root.to_json()).expect("our own node");
    assert_eq!(root, listing.root);
});
