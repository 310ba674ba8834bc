use crate::{
    CommandContext, ExitStatus,
    listing::{self, JsonForm, Style},
    output::stdout,
    ui,
};
use anyhow::{Context as _, Result};
use std::{
    fs::File,
    io::{self, IsTerminal, Read, Write},
    path::{Path, PathBuf},
};
use tk_nar::{
    Index, Listing,
    fs::{CaseHack, Dump, DumpOptions, UnpackMetadata, UnpackOptions, Unpacker, remove_tree},
};
use tk_path::Algorithm;

/// Make, unpack and look into NARs, Nix's archives
#[derive(clap::Subcommand)]
pub enum Nar {
    /// Write the NAR of a file or folder to stdout
    #[command(
        visible_alias = "dump-path",
        after_help = "Example:\n  tk-store nar pack ./folder > folder.nar"
    )]
    Pack {
        /// A file, folder or link
        path: PathBuf,
        /// Undo the names that Nix gives on file systems that ignore case
        #[arg(long)]
        case_hack: bool,
    },
    /// Unpack a NAR to a place where nothing is yet
    #[command(after_help = "Example:\n  tk-store nar unpack folder.nar ./folder")]
    Unpack {
        /// The NAR; - is standard input
        nar: PathBuf,
        /// What is made; it must not exist
        dest: PathBuf,
        /// Leave files writable and their times as they are, as nix-store --restore does
        #[arg(long)]
        writable: bool,
        /// Rename what would collide on a file system that ignores case
        #[arg(long)]
        case_hack: bool,
    },
    /// List what is in a NAR
    #[command(after_help = "Example:\n  tk-store nar ls --long folder.nar share/doc")]
    Ls {
        /// The NAR; - is standard input
        nar: PathBuf,
        /// A folder or file in it
        #[arg(default_value = "")]
        member: String,
        #[command(flatten)]
        style: Style,
    },
    /// Print a file that is in a NAR, reading no more of it than needed
    #[command(after_help = "Example:\n  tk-store nar cat folder.nar share/doc/README")]
    Cat {
        /// The NAR
        nar: PathBuf,
        /// The file in it
        member: String,
        /// Follow links inside the NAR
        #[arg(long, short = 'L')]
        follow: bool,
    },
    /// Print the hash of the NAR of a file or folder: sha256:<nix32>
    #[command(after_help = "Example:\n  tk-store nar hash ./folder")]
    Hash {
        /// Files, folders or links
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
}

impl Nar {
    /// Runs the command.
    pub fn run(self, _: &CommandContext) -> Result<ExitStatus> {
        match self {
            Nar::Pack { path, case_hack } => pack(&path, case_hack)?,
            Nar::Unpack {
                nar,
                dest,
                writable,
                case_hack,
            } => {
                let mut options = UnpackOptions::default();
                options.case_hack = hack(case_hack);
                options.metadata = if writable {
                    UnpackMetadata::Plain
                } else {
                    UnpackMetadata::Canonical
                };
                let doing = || format!("unpacking {} to {}", nar.display(), dest.display());
                let input = input(&nar)?;
                unpack(input, &dest, &options).with_context(doing)?;
            }
            Nar::Ls { nar, member, style } => {
                let doing = || format!("listing {}", nar.display());
                let listing = if is_stdin(&nar) {
                    Listing::read(io::stdin().lock())
                } else {
                    Index::open(open(&nar)?).map(|index| index.listing().clone())
                };
                let listing = listing.with_context(doing)?;
                let form = JsonForm::ListingFile;
                listing::print(&listing, member.as_bytes(), style, true, form)
                    .with_context(doing)?;
            }
            Nar::Cat {
                nar,
                member,
                follow,
            } => {
                let doing = || format!("reading {} in {}", member, nar.display());
                let mut index = Index::open(open(&nar)?).with_context(doing)?;
                let found = if follow {
                    index.read_resolved(&member)
                } else {
                    index.read(&member)
                };
                let mut out = stdout();
                io::copy(&mut found.with_context(doing)?, &mut out).with_context(doing)?;
                out.flush()?;
            }
            Nar::Hash { paths } => {
                for path in paths {
                    ui::out(tk_open::nar_hash(&path, Algorithm::Sha256)?)?;
                }
            }
        }
        Ok(ExitStatus::Yes)
    }
}

fn pack(path: &Path, case_hack: bool) -> Result<()> {
    let mut out = stdout();
    anyhow::ensure!(
        !io::stdout().is_terminal(),
        "a NAR is not for terminals; send it to a file: tk-store nar pack {} > X.nar",
        path.display()
    );
    let mut options = DumpOptions::default();
    options.case_hack = hack(case_hack);
    for chunk in Dump::new(path, &options)? {
        out.write_all(chunk?.as_ref())?;
    }
    out.flush()?;
    Ok(())
}

/// Unpacks a NAR that must be all that there is in the input.
fn unpack(mut input: impl Read, dest: &Path, options: &UnpackOptions) -> Result<()> {
    let mut unpacker = Unpacker::new(dest, options)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let fed = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => unpacker.feed(&buffer[..n]).map_err(anyhow::Error::from),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => Err(e.into()),
        };
        if let Err(error) = fed {
            unpacker.discard();
            return Err(error);
        }
    }
    // finish() alone would leave a tree that lacks its end.
    if let Err(error) = unpacker.finish() {
        let _ = remove_tree(dest);
        return Err(error.into());
    }
    Ok(())
}

fn input(nar: &Path) -> Result<Box<dyn Read>> {
    Ok(if is_stdin(nar) {
        Box::new(io::stdin().lock())
    } else {
        Box::new(open(nar)?)
    })
}

fn open(nar: &Path) -> Result<File> {
    File::open(nar).with_context(|| format!("opening {}", nar.display()))
}

fn is_stdin(nar: &Path) -> bool {
    nar == Path::new("-")
}

fn hack(on: bool) -> CaseHack {
    if on { CaseHack::On } else { CaseHack::Off }
}

const BUFFER: usize = 256 << 10;
