//! Counts the heaps of this process.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

use std::{env, fs, hint::black_box, process::Command, sync::Barrier, thread};

/// A test has threads, and so heaps, before it begins: what is measured is this program started anew.
#[test]
fn one_for_each_processor() {
    if let Some(limit) = env::var_os(CHILD) {
        return child(limit == "few");
    }
    let count = |limit: &str, chosen: Option<&str>| -> usize {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "one_for_each_processor", "--nocapture"]);
        command.env(CHILD, limit).env_remove("GLIBC_TUNABLES");
        match chosen {
            Some(chosen) => command.env("MALLOC_ARENA_MAX", chosen),
            None => command.env_remove("MALLOC_ARENA_MAX"),
        };
        let said = command.output().unwrap().stdout;
        let said = String::from_utf8(said).unwrap();
        let number = said.split_once("heaps: ").expect("it counts").1;
        number.lines().next().unwrap().parse().unwrap()
    };
    let processors = thread::available_parallelism().unwrap().get().max(2);
    let (many, few) = (count("as usual", None), count("few", None));
    assert!(few <= processors, "{few} of {processors}");
    assert!(many > few, "{many} without the limit, {few} with it");
    assert_eq!(count("few", Some("1")), 0, "what the user wants");
}

/// Far more threads than processors hold something at the same time. The main heap is not counted.
fn child(few: bool) {
    if few {
        tk_heap::few();
    }
    let processors = thread::available_parallelism().unwrap().get();
    let all = Barrier::new(processors * 8);
    thread::scope(|scope| {
        for _ in 0..processors * 8 {
            scope.spawn(|| {
                let held = black_box(vec![1_u8; 1000]);
                all.wait();
                drop(held);
            });
        }
    });
    // Heaps begin at multiples of their greatest size and have little in them; stacks are larger.
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let heaps = maps.lines().filter(|line| is_heap(line).unwrap_or(false));
    println!("heaps: {}", heaps.count());
}

fn is_heap(line: &str) -> Option<bool> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).ok());
    let (start, size) = (start?, end? - start?);
    let anonymous = line.contains(" rw-p ") && line.ends_with(" 0 ");
    Some(anonymous && start % HEAP == 0 && size < SMALL)
}

const CHILD: &str = "TK_HEAPS_OF_A_CHILD";
/// 64 MiB, on 64 bits.
const HEAP: u64 = 64 << 20;
const SMALL: u64 = 1 << 20;
