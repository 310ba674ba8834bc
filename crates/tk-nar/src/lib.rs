//! Reads, writes, lists, unpacks and indexes Nix archives (NAR): one state machine, no async runtime.
