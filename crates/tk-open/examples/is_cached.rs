//! Is a closure in a cache? Prints what the cache lacks; the status is 0 if it lacks nothing, else 1.

use std::{error::Error, process::ExitCode};
use tk_open::{OpenSettings, StorePath, open};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let [_, uri, paths @ ..] = &std::env::args().collect::<Vec<_>>()[..] else {
        return Err("usage: is_cached URI STORE_PATH...".into());
    };
    let cache = open(uri, &OpenSettings::from_environment()?).await?;
    let dir = cache.store().dir().clone();
    let paths = paths.iter().map(|path| dir.parse(path));
    let found = cache
        .look_at_closure(&paths.collect::<Result<Vec<StorePath>, _>>()?)
        .await;
    // What could not be asked is neither there nor absent.
    if let Some((_, error)) = found.listed.unreadable.into_iter().next() {
        return Err(error.into());
    }
    for path in &found.absent {
        println!("{}", dir.path(path));
    }
    Ok(ExitCode::from(u8::from(!found.absent.is_empty())))
}
