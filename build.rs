//! Links the unwinder of GCC into the program, where the C compiler has it as an archive: to load
//! `libgcc_s.so`, and to wait for it to look at the processor, takes a tenth of the start of a small
//! program (.93 → .84 ms on a virtual machine, where each such look is a trap).

use std::{env, path::PathBuf, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if let Some(folder) = folder() {
        println!("cargo::rustc-link-search=native={}", folder.display());
        // All of it: what needs it is linked later, and would find libgcc_s first.
        println!("cargo::rustc-link-lib=static:+whole-archive=gcc_eh");
    }
}

/// Where the archive is. Without it the program is as good, and starts a little later.
fn folder() -> Option<PathBuf> {
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    let gnu = is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu");
    // The compiler of this machine says nothing of another one.
    if !gnu || env::var("HOST") != env::var("TARGET") {
        return None;
    }
    let asked = Command::new("cc")
        .arg("-print-file-name=libgcc_eh.a")
        .output();
    let said = String::from_utf8(asked.ok()?.stdout).ok()?;
    let archive = PathBuf::from(said.trim());
    // A name that is not found is said as it was asked.
    let there = archive.is_absolute() && archive.is_file();
    there.then(|| archive.parent().map(PathBuf::from))?
}
