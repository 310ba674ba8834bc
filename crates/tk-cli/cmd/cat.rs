use crate::{CommandContext, ExitStatus, open::FromArgs, output::stdout, paths::NamedPaths};
use anyhow::{Context as _, Result, bail};
use std::{ffi::OsString, io::Write, slice};
use tk_nar::{Event, MemberError, NarReader};
use tk_store::nar::BlockingNar;

/// Print a file that is inside a store path
///
/// As nix store cat. The file's bytes are not checked against the path's hash; verify does that.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Cat {
    /// The file: /nix/store/…-hello/share/doc/README
    #[arg(value_name = "STOREPATH/FILE")]
    path: OsString,
    #[command(flatten)]
    from: FromArgs,
}

impl Cat {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let opened = self.from.open(cx, slice::from_ref(&self.path)).await?;
        let (path, member) = NamedPaths::one(&opened, &self.path).await?;
        let nar = BlockingNar::new(opened.store().nar(&path).await?);
        let copy = tokio::task::spawn_blocking(move || copy(nar, &member));
        copy.await?
            .with_context(|| format!("cannot print {}", self.path.display()))?;
        Ok(ExitStatus::Yes)
    }
}

/// Copies the contents of one member to stdout; the NAR is read only as far as that.
fn copy(nar: BlockingNar, member: &[u8]) -> Result<()> {
    let mut reader = NarReader::new(nar);
    // Where the reader is, and where each open folder begins in it.
    let (mut at, mut open) = (Vec::new(), Vec::new());
    let mut out = stdout();
    let mut inside = false;
    while let Some(event) = reader.next_event()? {
        match event {
            Event::Directory if at == member => bail!("it is a folder"),
            Event::Directory => open.push(at.len()),
            Event::Entry { name } => {
                at.truncate(open.last().copied().unwrap_or(0));
                if !at.is_empty() {
                    at.push(b'/');
                }
                at.extend_from_slice(name);
            }
            Event::LeaveDirectory => {
                at.truncate(open.pop().unwrap_or(0));
            }
            Event::Regular { .. } => inside = at == member,
            Event::Contents(piece) if inside => out.write_all(piece)?,
            Event::EndRegular if inside => return Ok(out.flush()?),
            Event::Symlink { target } if at == member => {
                bail!("it is a link to '{}'", String::from_utf8_lossy(target))
            }
            _ => {}
        }
    }
    Err(MemberError::Missing(member.to_vec()).into())
}

const EXAMPLES: &str = "\
Example:
  tk-store cat --store file:///srv/cache /nix/store/…-hello/share/doc/README";
