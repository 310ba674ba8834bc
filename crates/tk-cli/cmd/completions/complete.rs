use crate::{
    Cli, CommandContext, ExitStatus,
    open::{OpenOptions, OpenStore, open},
    ui,
};
use anyhow::Result;
use clap::{Arg, ArgAction, Command, CommandFactory};
use std::{any::TypeId, ffi::OsString, fs, path::Path};
use tk_narinfo::{Compression, NarInfo};
use tk_path::{Algorithm, Encoding, Method, StorePath};

/// Print what a word of a command line may become
///
/// For the code that `completions` prints. The first line is `files` if the word may be the name of a
/// file, else `words`; after it come the candidates, one a line, each with a tab and a description.
#[derive(clap::Args)]
pub struct Complete {
    /// The words after the program's name, up to the one that is being written
    #[arg(last = true)]
    words: Vec<OsString>,
}

impl Complete {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let mut words: Vec<_> = self
            .words
            .iter()
            .map(|word| word.to_string_lossy())
            .collect();
        let word = words.pop().unwrap_or_default();
        let mut root = Cli::command();
        root.build();
        let place = WordPlace::of(&root, words.iter().map(|word| &**word));
        let mut found = Candidates::default();
        place.complete(cx, &word, &mut found).await;
        ui::out(if found.files { "files" } else { "words" })?;
        for (candidate, help) in found.candidates {
            ui::out(format_args!("{candidate}\t{help}"))?;
        }
        Ok(ExitStatus::Yes)
    }
}

/// What the word may become.
#[derive(Default)]
struct Candidates {
    files: bool,
    candidates: Vec<(String, String)>,
}

impl Candidates {
    fn add(&mut self, candidate: impl Into<String>, help: impl Into<String>) {
        self.candidates.push((candidate.into(), help.into()));
    }
}

/// Where in a command line a word stands.
struct WordPlace<'a> {
    command: &'a Command,
    /// The option whose value comes next.
    option: Option<&'a Arg>,
    /// Arguments of the command that stand before, options not counted.
    before: usize,
    /// Only arguments may come: `--` stands before.
    arguments_only: bool,
    /// What `--store` and its like say.
    stores: Vec<(String, String)>,
}

impl<'a> WordPlace<'a> {
    /// The place after `words`.
    fn of<'w>(root: &'a Command, words: impl Iterator<Item = &'w str>) -> Self {
        let mut place = WordPlace {
            command: root,
            option: None,
            before: 0,
            arguments_only: false,
            stores: Vec::new(),
        };
        // Values that the option at hand still takes.
        let mut left = 0;
        for word in words {
            if let Some(option) = place.option.take() {
                place.value(option, word);
                left -= 1;
                if left > 0 {
                    place.option = Some(option);
                }
            } else if place.arguments_only {
                place.before += 1;
            } else if word == "--" {
                place.arguments_only = true;
            } else if let Some((option, value)) = place.option_of(word) {
                match value {
                    Some(value) => place.value(option, value),
                    None => {
                        left = values(option);
                        place.option = Some(option).filter(|_| left > 0);
                    }
                }
            } else if word.starts_with('-') && word != "-" {
                // Nobody knows what it is.
            } else if let Some(below) = place.command.find_subcommand(word) {
                (place.command, place.before) = (below, 0);
            } else {
                place.before += 1;
            }
        }
        place
    }

    /// The option that `word` is, and the value that it has with it.
    fn option_of<'w>(&self, word: &'w str) -> Option<(&'a Arg, Option<&'w str>)> {
        if let Some(long) = word.strip_prefix("--") {
            let (name, value) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (long, None),
            };
            let named = |arg: &&Arg| {
                let aliases = arg.get_all_aliases().unwrap_or_default();
                arg.get_long() == Some(name) || aliases.contains(&name)
            };
            return Some((self.command.get_arguments().find(named)?, value));
        }
        // Several in one word, of which the last that takes a value has the rest.
        let mut rest = word.strip_prefix('-')?.chars();
        loop {
            let letter = rest.next()?;
            let named = |arg: &&Arg| arg.get_short() == Some(letter);
            let arg = self.command.get_arguments().find(named)?;
            let value = Some(rest.as_str()).filter(|value| !value.is_empty());
            if values(arg) > 0 || value.is_none() {
                return Some((arg, value));
            }
        }
    }

    fn value(&mut self, option: &Arg, value: &str) {
        if wants(option, "URI") {
            let name = option.get_id().to_string();
            self.stores.push((name, value.to_owned()));
        }
    }

    async fn complete(&self, cx: &CommandContext, word: &str, found: &mut Candidates) {
        if let Some(option) = self.option {
            return self.values_of(cx, option, word, "", found).await;
        }
        if word.starts_with('-') && !self.arguments_only {
            if let Some((name, value)) = word.split_once('=')
                && let Some((option, _)) = self.option_of(name)
            {
                let before = format!("{name}=");
                return self.values_of(cx, option, value, &before, found).await;
            }
            return self.options(word, found);
        }
        if self.before == 0 && !self.arguments_only {
            for below in self.command.get_subcommands().filter(|c| !c.is_hide_set()) {
                for name in [below.get_name()]
                    .into_iter()
                    .chain(below.get_visible_aliases())
                {
                    if name.starts_with(word) {
                        found.add(name, help(below.get_about()));
                    }
                }
            }
        }
        let positionals: Vec<_> = self.command.get_positionals().collect();
        let last = positionals
            .last()
            .filter(|arg| values(arg) > 1 || arg.is_last_set());
        if let Some(arg) = positionals.get(self.before).or(last) {
            self.values_of(cx, arg, word, "", found).await;
        }
    }

    fn options(&self, word: &str, found: &mut Candidates) {
        for arg in self
            .command
            .get_arguments()
            .filter(|arg| !arg.is_hide_set())
        {
            let longs = arg.get_long_and_visible_aliases().unwrap_or_default();
            let longs = longs.into_iter().map(|long| format!("--{long}"));
            let short = arg.get_short().filter(|_| word == "-");
            for option in longs.chain(short.map(|short| format!("-{short}"))) {
                if option.starts_with(word) {
                    found.add(option, help(arg.get_help()));
                }
            }
        }
    }

    /// Values of `arg` that begin with `word`; `before` comes before each.
    async fn values_of(
        &self,
        cx: &CommandContext,
        arg: &Arg,
        word: &str,
        before: &str,
        found: &mut Candidates,
    ) {
        let add = |found: &mut Candidates, value: &str, help: String| {
            if value.starts_with(word) {
                found.add(format!("{before}{value}"), help);
            }
        };
        let known: Vec<_> = arg.get_possible_values();
        for value in known.iter().filter(|value| !value.is_hide_set()) {
            add(found, value.get_name(), help(value.get_help()));
        }
        let names = names_of(arg);
        for name in &names {
            add(found, name, String::new());
        }
        if !known.is_empty() || !names.is_empty() {
            return;
        }
        if wants(arg, "URI") {
            let configured = cx
                .settings
                .nix_conf
                .list("substituters")
                .unwrap_or_default();
            for uri in configured {
                add(found, uri, "a substituter of nix.conf".into());
            }
            for (scheme, help) in SCHEMES {
                add(found, scheme, (*help).to_owned());
            }
            found.files |= before.is_empty();
        } else if [
            "STOREPATH",
            "DEPENDENCY",
            "BEFORE",
            "AFTER",
            "PATH",
            "DRV",
            "REF",
            "OUTPUT",
        ]
        .iter()
        .any(|name| wants(arg, name))
        {
            self.store_paths(cx, word, before, found).await;
            found.files |= before.is_empty();
        } else if FILES.iter().any(|name| wants(arg, name)) || is_path(arg) {
            found.files |= before.is_empty();
        }
    }

    /// Paths of the store that the command reads.
    async fn store_paths(
        &self,
        cx: &CommandContext,
        word: &str,
        before: &str,
        found: &mut Candidates,
    ) {
        let named = |name: &str| {
            let said = self.stores.iter().rev().find(|(option, _)| option == name);
            said.map(|(_, uri)| uri.clone())
        };
        let uri = named("from").or_else(|| named("store"));
        let uri = uri.unwrap_or_else(|| cx.store_uri());
        let Ok(opened) = open(cx, &uri, &OpenOptions::default()).await else {
            return;
        };
        let store = opened.store();
        let Some(prefix) = word.strip_prefix(&format!("{}/", store.dir())) else {
            if !word.is_empty() && format!("{}/", store.dir()).starts_with(word) {
                found.add(format!("{before}{}/", store.dir()), "the store");
            }
            return;
        };
        for path in known_paths(&opened, prefix) {
            found.add(format!("{before}{}", store.dir().path(&path)), "");
        }
    }
}

/// Paths that begin with `prefix`, as far as a folder of this machine tells, and no more than anybody
/// wants to read.
fn known_paths(opened: &OpenStore, prefix: &str) -> Vec<StorePath> {
    let (folder, ending) = match opened.cache() {
        Some(cache) => (cache.folder(), ".narinfo"),
        None => (opened.real_dir(), ""),
    };
    let Some(folder) = folder else {
        return Vec::new();
    };
    let hash = prefix.split('-').next().unwrap_or_default();
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let name = name.strip_suffix(ending)?;
        name.starts_with(hash).then(|| name.to_owned())
    });
    let paths = names.take(MOST).filter_map(|name| match ending {
        "" => StorePath::parse(&name).ok(),
        ending => path_of(&folder.join(name + ending), opened),
    });
    let mut paths: Vec<_> = paths
        .filter(|path| path.as_str().starts_with(prefix))
        .collect();
    paths.sort();
    paths
}

fn path_of(file: &Path, opened: &OpenStore) -> Option<StorePath> {
    let text = fs::read(file).ok()?;
    let narinfo = NarInfo::parse(opened.store().dir(), str::from_utf8(&text).ok()?).ok()?;
    Some(narinfo.info.path)
}

/// The names that a value of the argument's type may have.
fn names_of(arg: &Arg) -> Vec<&'static str> {
    let parsed = arg.get_value_parser().type_id();
    if parsed == TypeId::of::<Compression>() {
        vec!["none", "xz", "zstd", "bzip2", "gzip", "br"]
    } else if parsed == TypeId::of::<Algorithm>() {
        Algorithm::ALL
            .iter()
            .map(|algorithm| algorithm.name())
            .collect()
    } else if parsed == TypeId::of::<Encoding>() {
        vec!["base16", "nix32", "base64", "sri"]
    } else if parsed == TypeId::of::<Method>() {
        Method::ALL.iter().map(|method| method.name()).collect()
    } else {
        Vec::new()
    }
}

/// How many values the argument takes, none for a flag.
fn values(arg: &Arg) -> usize {
    let takes = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let range = arg.get_num_args().filter(|_| takes);
    match (takes, range) {
        (false, _) => 0,
        (true, Some(range)) => range.max_values().max(1),
        (true, None) => 1,
    }
}

fn is_path(arg: &Arg) -> bool {
    arg.get_value_parser().type_id() == TypeId::of::<std::path::PathBuf>()
}

/// Whether a value of the argument is called so in the help.
fn wants(arg: &Arg, name: &str) -> bool {
    let names = arg.get_value_names().unwrap_or_default();
    names
        .iter()
        .any(|value| value.split(['|', '^', '/']).any(|part| part == name))
}

/// The first line of a help text.
fn help(text: Option<&clap::builder::StyledStr>) -> String {
    let text = text.map(ToString::to_string).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

/// Values that are files.
const FILES: &[&str] = &["FILE", "FOLDER", "KEY", "LINK", "PROGRAM", "TEXT", "[NAME="];
const SCHEMES: &[(&str, &str)] = &[
    ("auto", "the store that is in use on this machine"),
    ("daemon", "the daemon of this machine"),
    ("local", "the store on disk"),
    ("file://", "a cache in a folder"),
    ("https://", "a cache of a web server"),
    ("http://", "a cache of a web server"),
    ("s3://", "a cache in a bucket"),
    ("gs://", "a cache in a bucket"),
    ("az://", "a cache in a container"),
    ("ssh://", "a store of another machine"),
    ("ssh-ng://", "a store of another machine"),
    ("unix://", "a daemon's socket"),
];
/// Store paths that are looked at.
const MOST: usize = 1000;
