//! The tests of the crate, in one program. Those beside real Nix are skipped, visibly, where it is not there.

mod project {
    mod ci;
    mod detected;
    mod dev_shell;
    mod doctor;
    mod emit;
    mod flake_init;
    mod flakes;
    mod git_inputs;
    mod lock_corners;
    mod lock_graphs;
    mod locks;
    mod module;
    mod references;
    mod servers;
    mod small_projects;
    mod support;
    mod verify;
}
