//! The tests of the crate, in one program. Those beside real Nix are skipped, visibly, where it is not there.

mod project {
    mod ci;
    mod doctor;
    mod emit;
    mod flakes;
    mod lock_graphs;
    mod locks;
    mod module;
    mod support;
    mod verify;
}
