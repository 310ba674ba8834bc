//! Prints the hash of the NAR of a file or folder, as `nix hash path` does.

use std::{error::Error, path::Path};
use tk_open::path::{Algorithm, Encoding};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: hash PATH")?;
    let hash = tk_open::nar_hash(Path::new(&path), Algorithm::Sha256)?;
    println!("{}", hash.to_text(Encoding::Sri));
    Ok(())
}
