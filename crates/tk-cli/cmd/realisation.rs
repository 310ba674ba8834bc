use crate::{
    CommandContext, ExitStatus,
    keys::{self, KeyFileArgs},
    open::{OpenOptions, open},
    paths::store_path,
    ui,
};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tk_narinfo::{
    Policy, SecretKey, Untrusted,
    realisation::{DrvOutput, Realisation as Entry, legacy},
};
use tk_path::{OutputName, StorePath};
use tk_store::{Abilities, Realisations, SigCheck};

/// Query and sign realisations
#[derive(clap::Subcommand)]
pub enum RealisationCommand {
    Info(Info),
    Verify(RealisationVerify),
    Sign(RealisationSign),
}

impl RealisationCommand {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        match self {
            RealisationCommand::Info(args) => args.run(cx).await,
            RealisationCommand::Verify(args) => args.run(cx).await,
            RealisationCommand::Sign(args) => args.run(cx).await,
        }
    }
}

/// Say which path an output is
///
/// As nix realisation info. What is not known is told on stderr, and the exit status is 1.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Info {
    /// Outputs: DRV^OUT, or sha256:HASH!OUT as Nix up to 2.34 has them
    #[arg(required = true, value_name = "OUTPUT")]
    outputs: Vec<String>,
    /// Print all that is known, as JSON, one for each output
    #[arg(long)]
    json: bool,
}

impl Info {
    async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let (abilities, found) = look_up(cx, &self.outputs, false).await?;
        let mut all = Vec::new();
        for (id, known) in &found {
            match known {
                None => absent(cx, &abilities, id),
                Some(known) if self.json => all.push(known.to_json()),
                Some(known) => {
                    let dir = abilities.store.dir();
                    ui::out(format_args!("{id} {}", dir.display(known.out_path())))?;
                }
            }
        }
        if self.json {
            ui::out(Value::Array(all))?;
        }
        Ok(answer(&found))
    }
}

/// Check who has signed what outputs are said to be
#[derive(clap::Args)]
#[command(after_help = VERIFY_EXAMPLES)]
pub struct RealisationVerify {
    /// Outputs: DRV^OUT, or sha256:HASH!OUT as Nix up to 2.34 has them
    #[arg(required = true, value_name = "OUTPUT")]
    outputs: Vec<String>,
    /// Trust the public key, name:base64 or a file (may be repeated)
    /// [default: trusted-public-keys of nix.conf]
    #[arg(long, value_name = "KEY")]
    trusted_key: Vec<String>,
    /// How many trusted keys must have signed
    #[arg(long, value_name = "N", default_value_t = 1)]
    sigs_needed: usize,
}

impl RealisationVerify {
    async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let policy = keys::policy(cx, &self.trusted_key, self.sigs_needed)?;
        let (abilities, found) = look_up(cx, &self.outputs, false).await?;
        let mut answer = answer(&found);
        for (id, known) in &found {
            match known.as_ref().map(|known| known.check(&policy)) {
                None => absent(cx, &abilities, id),
                Some(Ok(())) => ui::out(format_args!("{id} is trusted"))?,
                Some(Err(why)) => {
                    cx.ui.error(format_args!("{id}: {why}"));
                    answer = ExitStatus::No;
                }
            }
        }
        Ok(answer)
    }
}

/// Sign realisations
#[derive(clap::Args)]
#[command(after_help = SIGN_EXAMPLES)]
pub struct RealisationSign {
    /// Outputs: DRV^OUT, or sha256:HASH!OUT as Nix up to 2.34 has them
    #[arg(required = true, value_name = "OUTPUT")]
    outputs: Vec<String>,
    #[command(flatten)]
    keys: KeyFileArgs,
}

impl RealisationSign {
    async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let keys = self.keys.keys()?;
        let (abilities, found) = look_up(cx, &self.outputs, true).await?;
        let store = realisations(&abilities)?;
        for (id, known) in &found {
            let Some(mut known) = known.clone() else {
                absent(cx, &abilities, id);
                continue;
            };
            for key in &keys {
                known.sign(key);
            }
            known.register(store).await?;
            ui::out(id)?;
        }
        Ok(answer(&found))
    }
}

/// A realisation in either form.
#[derive(Clone)]
enum EitherRealisation {
    New(Entry),
    Legacy(legacy::LegacyRealisation),
}

impl EitherRealisation {
    fn to_json(&self) -> Value {
        match self {
            EitherRealisation::New(known) => known.to_json(),
            EitherRealisation::Legacy(known) => known.to_json(),
        }
    }

    fn out_path(&self) -> &StorePath {
        match self {
            EitherRealisation::New(known) => &known.value.out_path,
            EitherRealisation::Legacy(known) => &known.out_path,
        }
    }

    fn check(&self, policy: &Policy) -> Result<(), Untrusted> {
        match self {
            EitherRealisation::New(known) => policy.check_realisation(known),
            EitherRealisation::Legacy(known) => policy.check_legacy_realisation(known),
        }
    }

    fn sign(&mut self, key: &SecretKey) -> bool {
        match self {
            EitherRealisation::New(known) => known.sign(key),
            EitherRealisation::Legacy(known) => known.sign(key),
        }
    }

    async fn register(&self, store: &dyn Realisations) -> tk_store::Result<()> {
        // They come from this very store.
        match self {
            EitherRealisation::New(known) => store.register(known, &SigCheck::Skip).await,
            EitherRealisation::Legacy(known) => store.register_legacy(known, &SigCheck::Skip).await,
        }
    }
}

/// What the store knows of each of `outputs`, by the name that it is told by.
async fn look_up(
    cx: &CommandContext,
    outputs: &[String],
    write: bool,
) -> Result<(Abilities, Vec<(String, Option<EitherRealisation>)>)> {
    let mut wish = OpenOptions::default();
    wish.write = write;
    let opened = open(cx, &cx.store_uri(), &wish).await?;
    let abilities = opened.abilities();
    let store = realisations(&abilities)?;
    let mut found = Vec::new();
    for text in outputs {
        if let Ok(id) = text.parse::<legacy::LegacyDrvOutput>() {
            let known = store.legacy_realisation(&id).await?;
            found.push((id.to_string(), known.map(EitherRealisation::Legacy)));
            continue;
        }
        let Some((drv, output)) = text.rsplit_once('^') else {
            bail!("'{text}' does not name an output: write DRV^OUT or sha256:HASH!OUT");
        };
        let output = OutputName::parse(output).with_context(|| format!("'{text}'"))?;
        let drv = store_path(&opened, drv)?;
        let id = DrvOutput { drv, output };
        let known = store.realisation(&id).await?;
        let shown = id.display(store.dir()).to_string();
        found.push((
            shown,
            known.map(|value| EitherRealisation::New(Entry { id, value })),
        ));
    }
    Ok((abilities, found))
}

fn realisations(abilities: &Abilities) -> Result<&dyn Realisations> {
    match &abilities.realisations {
        Some(store) => Ok(&**store),
        None => bail!(abilities.unsupported("does not know what outputs turned out to be")),
    }
}

fn absent(cx: &CommandContext, abilities: &Abilities, id: &str) {
    let store = &abilities.store;
    cx.ui
        .error(format_args!("{store} does not know what {id} is"));
}

fn answer(found: &[(String, Option<EitherRealisation>)]) -> ExitStatus {
    if found.iter().all(|(_, known)| known.is_some()) {
        ExitStatus::Yes
    } else {
        ExitStatus::No
    }
}

const VERIFY_EXAMPLES: &str = "\
Example:
  tk-store realisation verify --store file:///srv/cache /nix/store/…-hello.drv^out --trusted-key my.pub";
const SIGN_EXAMPLES: &str = "\
Example:
  tk-store realisation sign --store file:///srv/cache /nix/store/…-hello.drv^out --key-file my.key";
const EXAMPLES: &str = "\
Example:
  tk-store realisation info --store file:///srv/cache /nix/store/…-hello.drv^out --json";
