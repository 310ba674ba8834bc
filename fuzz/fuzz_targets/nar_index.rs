//! All that lists an archive agrees, and members read by seeking are what the archive holds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::io::{Cursor, Read};
use tk_fuzz::Pieces;
use tk_nar::{Index, Listing, ListingBuilder, ListingNode, SliceReader};

fuzz_target!(|data: &[u8]| {
    let read = Listing::read(data).ok();
    let index = Index::open(Cursor::new(data));
    let opened = index.as_ref().ok().map(Index::listing);
    assert_eq!(read.as_ref(), opened, "Index");
    let (Some(listing), Ok(mut index)) = (read, index) else {
        return;
    };
    for (path, node) in listing.walk() {
        assert_eq!(listing.find(&path), Some(node));
        listing.resolve(&path);
        let ListingNode::Regular {
            size: Some(size),
            nar_offset: Some(offset),
            ..
        } = *node
        else {
            continue;
        };
        let mut contents = Vec::new();
        let mut member = index.read(&path).expect("a regular file");
        member.read_to_end(&mut contents).expect("all of it");
        assert_eq!(contents, data[offset as usize..][..size as usize]);
    }
    if listing.is_utf8() {
        let back = Listing::from_json(&listing.to_json()).expect("our own listing");
        assert_eq!(back, listing, "as JSON");
    }
    assert_eq!(built(data), Some(listing), "ListingBuilder");
});

/// Fed up to the end of the archive, because bytes behind it are an error.
fn built(data: &[u8]) -> Option<Listing> {
    let mut reader = SliceReader::new(data);
    while reader.next_event().ok()?.is_some() {}
    let mut builder = ListingBuilder::new();
    let mut pieces = Pieces::of(&data[..reader.offset() as usize]);
    while let Some(piece) = pieces.next_piece() {
        builder.feed(piece).ok()?;
    }
    builder.finish().ok()
}
