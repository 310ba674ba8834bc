//! Tells the program which compiler it was built by: its counts are comparable with those of the same one only.

use std::{env, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let rustc = env::var_os("RUSTC").expect("cargo names the compiler");
    let out = Command::new(rustc).arg("--version").output();
    let out = out.expect("the compiler says its version").stdout;
    let version = String::from_utf8_lossy(&out);
    println!("cargo:rustc-env=TK_RUSTC={}", version.trim());
    let target = env::var("TARGET").expect("cargo names the target");
    println!("cargo:rustc-env=TK_TARGET={target}");
}
