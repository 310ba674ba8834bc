//! Puts a folder into a binary cache, signed with the key in a file, and prints its store path.

use std::{error::Error, path::Path, sync::Arc};
use tk_open::{OpenOptions, OpenSettings, keys::read_secret_key, open_with, push_folder};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let [_, folder, name, uri, key] = &std::env::args().collect::<Vec<_>>()[..] else {
        return Err("usage: push_folder FOLDER NAME URI KEY_FILE".into());
    };
    let settings = OpenSettings::from_environment()?;
    let cache = open_with(uri, &settings, &OpenOptions::to_write()).await?;
    let key = Arc::new(read_secret_key(Path::new(key))?);
    let path = push_folder(folder, name, &cache, &[key]).await?;
    println!("{}", cache.store().dir().path(&path));
    Ok(())
}
