//! Content that is packed before it is known which path it is.

use super::*;
use tk_path::{Algorithm, Method};
use tk_store::nar;

const HOW: (Method, Algorithm) = (Method::Nar, Algorithm::Sha256);

/// Files of the cache, but for the one that says what it is.
fn names(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for folder in ["", "nar", "nar/.tmp"] {
        for entry in fs::read_dir(root.join(folder)).into_iter().flatten() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() && entry.file_name() != "nix-cache-info" {
                names.push(format!("{folder}/{}", entry.file_name().display()));
            }
        }
    }
    names
}

#[tokio::test]
async fn its_nar_is_read_once() {
    for compression in [Compression::None, Compression::Zstd, Compression::Xz] {
        let folder = TempDir::new().unwrap();
        let mut config = config(folder.path());
        (config.compression, config.level) = (compression, None);
        config.write_listing = true;
        let cache = open(config).await;
        assert!(!cache.may_have_name("data").await.unwrap());
        let content = nar_of(&vec![b'x'; 100_000]);
        let ahead = cache.pack_ahead("data", HOW, nar::from_bytes(content.clone()));
        let info = ahead.await.unwrap();
        assert_eq!(info.nar_hash, tk_path::NarHash::digest(&content));
        let paths = BTreeSet::from([info.path.clone()]);
        assert!(
            cache.valid(&paths).await.unwrap().is_empty(),
            "nobody sees it"
        );
        let hidden = names(folder.path());
        assert!(
            hidden.iter().all(|name| name.starts_with("nar/.tmp/")),
            "{hidden:?}"
        );

        let unread = nar::lazy(async { panic!("it is packed already") });
        let report = add(&cache, vec![Ok((info.clone(), unread))]).await;
        assert_eq!(
            report.added,
            std::slice::from_ref(&info.path),
            "{:?}",
            report.failed
        );
        let found = cache.require_info(&info.path).await.unwrap();
        assert_eq!(found.ca, info.ca);
        verify(&cache, &found).await.unwrap();
        assert_invariant(folder.path()).await;
        assert!(
            names(folder.path())
                .iter()
                .any(|name| name.ends_with(".ls"))
        );
        assert!(cache.may_have_name("data").await.unwrap());
        assert!(!cache.may_have_name("dat").await.unwrap());
        // What was taken is gone: the next time it is read again.
        let again = add(&cache, vec![item(&info, &content)]).await;
        assert!(again.failed.is_empty());
    }
}

#[tokio::test]
async fn what_is_not_added_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let cache = open(config(folder.path())).await;
    let content = nar_of(b"content");
    let ahead = cache.pack_ahead("data", HOW, nar::from_bytes(content.clone()));
    ahead.await.unwrap();
    let broken = stream::iter([Ok(content.slice(..40)), Err(Error::invalid("it broke"))]);
    let error = cache
        .pack_ahead("x", HOW, broken.boxed())
        .await
        .unwrap_err();
    assert!(error.to_line().contains("it broke"), "{error:?}");
    let cut = nar::from_bytes(content.slice(..40));
    assert!(cache.pack_ahead("x", HOW, cut).await.is_err());
    assert_eq!(names(folder.path()).len(), 1);
    drop(cache);
    assert_eq!(names(folder.path()), Vec::<String>::new());
}
