//! Whatever `nix print-dev-env` prints, an environment that is read is exported in every format, and read
//! back as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tk_nix::shell::{Hook, ShellEnvironment, ShellFormat, Variables};
use tk_path::StoreDir;

fuzz_target!(|text: &[u8]| {
    let Ok(environment) = serde_json::from_slice::<ShellEnvironment>(text) else {
        return;
    };
    let printed = serde_json::to_vec(&environment).expect("it was read");
    let back: ShellEnvironment = serde_json::from_slice(&printed).expect("our own");
    assert_eq!(back, environment);
    for format in [
        ShellFormat::Bash,
        ShellFormat::Zsh,
        ShellFormat::Fish,
        ShellFormat::Direnv,
    ] {
        for hook in [Hook::None, Hook::Allowed] {
            let _ = environment.export(format, hook);
        }
    }
    let _ = environment.applied(&Variables::new());
    let _ = environment.references(&StoreDir::default());
});
