//! What running programs use (`findRuntimeRoots` of `gc.cc`), in one pass over `/proc`.
//!
//! ```text
//! /proc/PID/{exe,cwd,fd/*}   links into the store
//! /proc/PID/maps             files in the store that are mapped
//! /proc/PID/environ          store paths anywhere in the text
//! /proc/sys/kernel/{modprobe,fbsplash,poweroff_cmd}   the name of a program
//! ```
//! Beyond Nix, a mapped file counts too that was deleted or has a blank in its name: its program runs.

use crate::found_roots::{RootSearch, is_gone, root};
use memchr::{memmem::Finder, memrchr};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::Path,
};
use tk_path::StorePath;

/// Looks at all processes of `proc`, which is `/proc` but in tests.
pub(crate) fn find(search: &mut RootSearch, proc: &Path) {
    // Without ourselves it is not mounted, or shows the processes of another system.
    if let Err(error) = proc.join("self").metadata() {
        return search.unknown(proc, error);
    }
    let processes = match proc.read_dir() {
        Ok(processes) => processes,
        Err(error) => return search.unknown(proc, error),
    };
    let mut texts = ProcTexts::new(search);
    let mut hides_others = true;
    for process in processes {
        match process {
            Ok(process) if is_number(&process.file_name()) => {
                hides_others &= process.file_name() != "1";
                look_into(search, &mut texts, &process.path());
            }
            Ok(_) => {}
            Err(error) => search.unknown(proc, error),
        }
    }
    // There is always a first one, unless others are hidden (`hidepid`).
    search.found.hidden_processes += usize::from(hides_others);
    for file in ["modprobe", "fbsplash", "poweroff_cmd"] {
        let file = proc.join("sys/kernel").join(file);
        if let Ok(text) = fs::read(&file) {
            search.leads_to(&file, OsStr::from_bytes(text.trim_ascii_end()));
        }
    }
}

fn is_number(name: &OsStr) -> bool {
    name.as_bytes().iter().all(u8::is_ascii_digit)
}

fn look_into(search: &mut RootSearch, texts: &mut ProcTexts, process: &Path) {
    let looked = look_at(search, texts, process);
    match looked {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            search.found.hidden_processes += 1;
        }
        Err(error) => search.unknown(process, error),
        Ok(()) => {}
    }
}

/// Looks at all of a process, whatever of it goes meanwhile.
fn look_at(search: &mut RootSearch, texts: &mut ProcTexts, process: &Path) -> io::Result<()> {
    for name in ["exe", "cwd"] {
        link(search, &process.join(name))?;
    }
    if let Some(open) = there(process.join("fd").read_dir())? {
        for file in open {
            if let Some(file) = there(file)? {
                link(search, &file.path())?;
            }
        }
    }
    let file = process.join("maps");
    texts.read(&file)?;
    for target in texts.mapped() {
        search.found.roots.insert(root(&file, target));
    }
    let file = process.join("environ");
    texts.read(&file)?;
    for target in texts.mentioned() {
        search.found.roots.insert(root(&file, target));
    }
    Ok(())
}

fn link(search: &mut RootSearch, link: &Path) -> io::Result<()> {
    if let Some(text) = there(fs::read_link(link))? {
        search.leads_to(link, text.as_os_str());
    }
    Ok(())
}

fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if is_gone(&error) => Ok(None),
        result => result.map(Some),
    }
}

/// The text of one file at a time, and the folders whose names are looked for in it.
struct ProcTexts {
    folders: Vec<Finder<'static>>,
    text: Vec<u8>,
}

impl ProcTexts {
    fn new(search: &RootSearch) -> Self {
        let folders = search.folders.each();
        ProcTexts {
            folders: folders.map(|f| Finder::new(f).into_owned()).collect(),
            text: Vec::new(),
        }
    }

    fn read(&mut self, file: &Path) -> io::Result<()> {
        self.text.clear();
        let read = |text: &mut Vec<u8>| File::open(file)?.take(MOST_TEXT + 1).read_to_end(text);
        there(read(&mut self.text))?;
        if self.text.len() as u64 > MOST_TEXT {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(())
    }

    /// The store paths behind each folder's name, by the characters that Nix lets a name have there.
    fn mentioned(&self) -> impl Iterator<Item = StorePath> {
        let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-._?=".contains(byte);
        self.behind().filter_map(move |(_, rest)| {
            let end = rest.iter().position(|byte| !is_name(byte));
            parse(&rest[..end.unwrap_or(rest.len())])
        })
    }

    /// The store paths in which mapped files lie: those whose name begins behind the fifth field of a line.
    fn mapped(&self) -> impl Iterator<Item = StorePath> {
        self.behind().filter_map(|(before, rest)| {
            let line = memrchr(b'\n', before).map_or(0, |end| end + 1);
            let fields = before[line..].split(u8::is_ascii_whitespace);
            // A file whose name has no folder of ours at its beginning ends in no blank here.
            let is_name = before.ends_with(b" ") && fields.filter(|f| !f.is_empty()).count() == 5;
            let end = rest
                .iter()
                .position(|b| *b == b'/' || b.is_ascii_whitespace());
            is_name.then(|| parse(&rest[..end.unwrap_or(rest.len())]))?
        })
    }

    /// What stands before and behind each folder's name.
    fn behind(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.folders.iter().flat_map(|finder| {
            let at = finder.find_iter(&self.text);
            at.map(|at| {
                let (before, rest) = self.text.split_at(at);
                (before, &rest[finder.needle().len()..])
            })
        })
    }
}

fn parse(name: &[u8]) -> Option<StorePath> {
    StorePath::parse(std::str::from_utf8(name).ok()?).ok()
}

/// Bytes of one of these files; a process can have 65,530 maps, each a line of up to 4 KiB.
const MOST_TEXT: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LocalConfig;

    fn names(found: impl Iterator<Item = StorePath>) -> Vec<String> {
        found.map(|path| path.name().to_string()).collect()
    }

    #[test]
    fn texts_of_processes() {
        let search = RootSearch::new(&LocalConfig::chroot("/r"));
        let mut texts = ProcTexts::new(&search);
        let path = |name: &str| {
            let path = StorePath::from_digest(&[9; 20], name).unwrap();
            format!("/nix/store/{path}")
        };
        let (a, b, c, d) = (path("a"), path("b"), path("c"), path("d"));
        texts.text = format!("A=x:/r{a}/bin:{b}!x\0B=/nix/store/nix{c}\0/nix//store/x{d}").into();
        assert_eq!(names(texts.mentioned()), ["a", "b", "c", "d", "a"]);
        let fields = "7f00-7f01 r--p 00000000 fe:00 77             ";
        texts.text = [
            format!("{fields}{a}/lib/a.so\n{fields}/r{b}/x (deleted)\n"),
            format!("{fields}/home{c}/x\n{fields}/a {d}/x\n{fields}[heap]\n"),
        ]
        .concat()
        .into();
        assert_eq!(names(texts.mapped()), ["a", "b"]);
    }
}
