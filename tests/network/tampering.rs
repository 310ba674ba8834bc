//! A flipped bit anywhere is refused before anything is visible.

use super::{Served, Source};
use crate::cli::Machine;
use std::{fs, path::Path};

#[test]
fn flipped_bits_are_refused() {
    let Some(served) = Served::start(false) else {
        return;
    };
    let source = Source::new(3, &[]);
    let url = &served.nginx.url;
    let top = source.top();
    for compression in ["zstd", "xz", "none"] {
        let cache = format!("{url}/{compression}");
        source.machine.ok(&format!(
            "push --store ./store --to {cache}?secret-key=s&compression={compression} {top}"
        ));
        let root = served.path().join(compression);
        let victim = source.paths.last().unwrap();
        let narinfo = root.join(format!("{}.narinfo", victim.hash_part()));
        let text = fs::read_to_string(&narinfo).unwrap();
        let value = |key: &str| {
            let line = text.lines().find(|line| line.starts_with(key)).unwrap();
            line[key.len() + 2..].to_owned()
        };
        let nar = root.join(value("URL"));
        let refused = |what: &str| {
            let other = Machine::new();
            let done = other.run(&format!(
                "pull --from {cache} --to ./store --trusted-key {} {top}",
                source.key
            ));
            assert_ne!(done.status, 0, "{compression}, {what}: {done:?}");
            assert!(!done.err.contains("panicked"), "{done:?}");
            let there = other
                .home()
                .join("store/nix/store")
                .join(victim.to_string());
            assert!(!there.exists(), "{compression}, {what}: it is visible");
            let valid = other.run("path-info --store ./store --all").out;
            assert!(!valid.contains(&victim.to_string()), "{what}: {valid}");
        };
        for place in [0.01, 0.3, 0.6, 0.99] {
            flip(&nar, place, || refused(&format!("the file at {place}")));
        }
        for key in ["NarHash", "NarSize", "References", "Sig", "StorePath"] {
            let old = value(key);
            // The last digit of a signature's base64 has bits that nobody looks at, Nix neither.
            let at = old.len() - 4;
            let other = if &old[at..=at] == "1" { "2" } else { "1" };
            let new = format!("{}{other}{}", &old[..at], &old[at + 1..]);
            fs::write(&narinfo, text.replace(&old, &new)).unwrap();
            refused(key);
        }
        fs::write(&narinfo, &text).unwrap();
        let other = Machine::new();
        other.ok(&format!(
            "pull --from {cache} --to ./store --trusted-key {} {top}",
            source.key
        ));
    }
}

fn flip(file: &Path, place: f64, test: impl FnOnce()) {
    let content = fs::read(file).unwrap();
    let mut bent = content.clone();
    let at = (bent.len() as f64 * place) as usize;
    bent[at] ^= 0x10;
    fs::write(file, bent).unwrap();
    test();
    fs::write(file, content).unwrap();
}
