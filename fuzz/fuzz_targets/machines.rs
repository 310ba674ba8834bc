//! Each entry of a machines file is a machine or a fault that has words, the same each time.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use tk_builders::Machines;

fuzz_target!(|text: &str| {
    // Files are not part of this.
    if text.contains('@') {
        return;
    }
    let read = |text: &str| Machines::read(text, "fuzz", "x86_64-linux", Path::new("/nowhere"));
    let machines = read(text);
    for fault in &machines.faults {
        assert!(!fault.to_string().is_empty());
    }
    for machine in &machines.all {
        let _ = machine.reference(1);
        assert!(machine.to_json().is_object());
    }
    let again = read(text);
    assert_eq!(machines.all, again.all);
});
