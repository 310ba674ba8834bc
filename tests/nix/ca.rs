//! Outputs of content-addressed derivations, which real Nix built: found by their derivation.

use crate::{
    cli::Machine,
    support::{RigDaemon, each_version},
};

each_version!(an_output_is_found_by_its_derivation);

/// In a store on disk, and in a cache that Nix wrote.
fn an_output_is_found_by_its_derivation(version: &'static str) {
    let Some(daemon) = RigDaemon::start(version, true) else {
        return;
    };
    let folder = daemon.folder();
    std::fs::write(folder.join("d.nix"), EXPRESSION).unwrap();
    let made = daemon.sh(&format!(
        "cd {}; set -e
             export NIX_CONFIG='experimental-features = nix-command flakes ca-derivations'
             drv=$(nix-instantiate d.nix)
             out=$(nix-store -r $drv)
             case $(nix --version) in *' 2.8'*) outputs=$drv ;; *) outputs=$drv^out ;; esac
             nix copy --to file://$PWD/his $outputs >&2
             nix copy --derivation --to file://$PWD/his $drv >&2
             echo $drv $out",
        folder.display()
    ));
    assert_eq!(made.status, 0, "{version}: {made:?}");
    let (drv, out) = made.stdout.trim().split_once(' ').expect("two paths");
    let machine = Machine::new();
    let store = format!("local?root={}", daemon.state().display());
    let mine = machine.cache("mine");
    assert_eq!(
        machine.ok(&format!("push {drv}^out --store {store} --to {mine}")),
        out,
        "{version}"
    );
    let his = format!("file://{}", folder.join("his").display());
    let pulled = format!("pull {drv}^out --from {his} --to ./dst --no-check-sigs");
    assert_eq!(machine.ok(&pulled), out, "{version}");
    let real = machine.home().join("dst").join(out.trim_start_matches('/'));
    assert_eq!(std::fs::read(real).unwrap(), b"1\n");
    // What was pushed is known there by the derivation as well, once that is there.
    machine.ok(&format!("copy {drv} --from {store} --to {mine}"));
    let again = format!("pull {drv}^* --from {mine} --to ./again --no-check-sigs");
    assert_eq!(machine.ok(&again), out, "{version}");
}

/// One that depends on another, so that the names of both are made from two derivations.
const EXPRESSION: &str = r#"
let make = name: args: derivation ({
  inherit name;
  system = builtins.currentSystem;
  builder = "/bin/sh";
  __contentAddressed = true;
  outputHashMode = "recursive";
  outputHashAlgo = "sha256";
} // args); in
make "two" {
  one = make "one" { args = [ "-c" "echo 1 >$out" ]; };
  args = [ "-c" "read -r x <$one; echo $x >$out" ];
}
"#;
