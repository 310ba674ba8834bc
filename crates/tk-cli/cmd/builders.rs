use crate::{
    CommandContext, ExitStatus,
    build_log::LogPrinter,
    failure::tell_failure,
    open::{BuildArgs, OpenMachine, OpenOptions, RemoteArgs, open, slots},
    output::plain,
    ui,
};
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tk_builders::{Machine, MachineFault, MachineTimeouts, Probe, probe};
use tk_daemon::client::BuildLogs;
use tk_narinfo::build_result::KeyedBuildResult;
use tk_nix::{Installable, InstallableSource, NixFailure};
use tk_path::{DerivedPath, StoreDir};
use tk_store::{
    BuildMode,
    log::{LogEvent, LogSink, strip_ansi},
};

/// List, check and use remote builders
///
/// Machines are those of --builders or --builder, or else those that nix.conf names (builders; by
/// default @/etc/nix/machines). A line is: URL, systems, ssh key, builds at once, speed, features,
/// mandatory features, host key; "-" and what is left out are defaults.
#[derive(clap::Subcommand)]
pub enum Builders {
    /// Print the machines
    #[command(after_help = LIST)]
    List(BuildersArgs),
    /// Say what is wrong with the lines that name them; exit status 1 if anything is
    #[command(after_help = CHECK)]
    Check(BuildersArgs),
    /// Ask each machine, all at once, who it is; exit status 1 if one does not answer
    ///
    /// Told are the version of its Nix and of the protocol, whether it trusts the account
    /// (Nix before 2.15 does not tell), the time of a round trip, and free slots: how many builds may be started there, less those that
    /// run from here (this program's, and Nix's where its state can be written). What others build
    /// there no protocol tells. Systems and features are what the line says. No machine is waited for
    /// longer than two minutes.
    #[command(after_help = PROBE)]
    Probe(BuildersArgs),
    /// Build derivations of the store on the machines, and bring the outputs back
    ///
    /// What substituters have is fetched; of the rest each derivation goes to the machine that fits
    /// its system and features and has the most to spare. Inputs are sent over, outputs come back,
    /// are checked and added to the store. A machine that is lost, or that neither says anything nor
    /// answers for a while, is followed by another. Content-addressed derivations go to machines with
    /// the feature ca-derivations; without one the store builds them itself. Prints the output paths.
    #[command(after_help = BUILD)]
    Build(Box<BuildersBuild>),
}

/// Which machines, and how they are shown.
#[derive(clap::Args)]
pub struct BuildersArgs {
    #[command(flatten)]
    remote: RemoteArgs,
    /// Print them as JSON
    #[arg(long)]
    json: bool,
}

/// What is to be built.
#[derive(clap::Args)]
pub struct BuildersBuild {
    /// Derivations with their outputs, DRV^OUT,... or DRV^*
    #[arg(required = true, value_name = "DRV^OUT")]
    paths: Vec<String>,
    #[command(flatten)]
    remote: RemoteArgs,
    #[command(flatten)]
    options: BuildArgs,
    /// Leave out what builders print
    #[arg(long)]
    no_log: bool,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
}

impl Builders {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        match self {
            Builders::List(args) => args.list(cx),
            Builders::Check(args) => args.check(cx),
            Builders::Probe(args) => args.probe(cx).await,
            Builders::Build(args) => args.run(cx).await,
        }
    }
}

impl BuildersArgs {
    fn list(self, cx: &CommandContext) -> Result<ExitStatus> {
        let machines = self.remote.machines(cx)?.complete()?;
        if self.json {
            ui::out(machines.iter().map(Machine::to_json).collect::<Value>())?;
            return Ok(ExitStatus::Yes);
        }
        for machine in &machines {
            ui::out(line(machine))?;
        }
        Ok(ExitStatus::Yes)
    }

    fn check(self, cx: &CommandContext) -> Result<ExitStatus> {
        let mut read = self.remote.machines(cx)?;
        read.faults.append(&mut read.absent);
        if self.json {
            ui::out(json!({
                "machines": read.all.iter().map(Machine::to_json).collect::<Value>(),
                "faults": read.faults.iter().map(MachineFault::to_json).collect::<Value>(),
            }))?;
        }
        for fault in &read.faults {
            cx.ui.error(fault);
        }
        let n = read.all.len();
        let s = if n == 1 { "" } else { "s" };
        cx.ui.say(format_args!("{n} machine{s}"));
        Ok(if read.faults.is_empty() {
            ExitStatus::Yes
        } else {
            ExitStatus::No
        })
    }

    async fn probe(self, cx: &CommandContext) -> Result<ExitStatus> {
        let machines = self.remote.machines(cx)?.complete()?;
        if machines.is_empty() {
            bail!("no machine is named");
        }
        let connect = OpenMachine::new(cx, &BuildArgs::default());
        let probes = probe(
            &machines,
            &connect,
            &slots(cx)?,
            MachineTimeouts::default().connect,
        )
        .await;
        if self.json {
            ui::out(probes.iter().map(probe_to_json).collect::<Value>())?;
        } else {
            for probe in &probes {
                ui::out(probe_line(probe))?;
            }
        }
        Ok(if probes.iter().all(|probe| probe.answer.is_ok()) {
            ExitStatus::Yes
        } else {
            ExitStatus::No
        })
    }
}

impl BuildersBuild {
    async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let mut wish = OpenOptions::to_write();
        self.options.apply(cx, &mut wish);
        let opened = open(cx, &cx.store_uri(), &wish).await?;
        let store = self.remote.builder(cx, opened.abilities(), &self.options)?;
        let dir = store.store.dir().clone();
        let paths: Result<Vec<_>> = self.paths.iter().map(|p| derived_path(&dir, p)).collect();
        let Some(builder) = &store.build else {
            bail!("{} does not build", store.store);
        };
        let shown = LogPrinter::new(&cx.ui, !self.no_log);
        let logs = BuildLogs::with(LINES, |event: LogEvent| shown.event(event));
        let results = builder.build(&paths?, BuildMode::Normal, &logs).await;
        shown.clear();
        let results = results.context("cannot build on other machines")?;
        let (mut answer, mut all, mut seen) = (ExitStatus::Yes, Vec::new(), BTreeSet::new());
        for keyed in &results {
            let drv = drv_of(&dir, &keyed.path);
            let log = drv.as_deref().and_then(|drv| logs.of(drv));
            if !keyed.result.is_success() {
                let failure = NixFailure::of_build(drv, &keyed.result, log.as_ref());
                let what = keyed.path.display(&dir).to_string();
                answer = answer.max(tell_failure(cx, &what, &failure));
            }
            if self.json {
                all.push(to_json(&dir, keyed, log.map(|log| log.machine)));
                continue;
            }
            for value in keyed.result.outputs.values() {
                if seen.insert(value.out_path.clone()) {
                    ui::out(dir.path(&value.out_path))?;
                }
            }
        }
        if self.json {
            ui::out(Value::from(all))?;
        }
        Ok(answer)
    }
}

fn derived_path(dir: &StoreDir, text: &str) -> Result<DerivedPath> {
    match Installable::parse(dir, text)?.source {
        InstallableSource::Store(path) => Ok(path),
        _ => bail!("'{text}' is not a derivation of the store; write {dir}/…-name.drv^out"),
    }
}

fn drv_of(dir: &StoreDir, path: &DerivedPath) -> Option<String> {
    match path {
        DerivedPath::Built { drv, .. } => Some(drv.display(dir).to_string()),
        DerivedPath::Opaque(_) => None,
    }
}

/// As `nix build --json` has it, with the machine that built it.
fn to_json(dir: &StoreDir, keyed: &KeyedBuildResult, machine: Option<String>) -> Value {
    let outputs = keyed.result.outputs.iter();
    let outputs = outputs.map(|(name, value)| (name.to_string(), dir.path(&value.out_path).into()));
    let mut value = keyed.to_json();
    value["outputs"] = Value::Object(outputs.collect());
    if !keyed.result.is_success() {
        value["errorMsg"] = strip_ansi(&keyed.result.error).into();
    }
    value["drvPath"] = drv_of(dir, &keyed.path).into();
    value["machine"] = machine.into();
    value
}

fn line(machine: &Machine) -> String {
    let jobs = match machine.max_jobs {
        1 => "1 build".to_owned(),
        n => format!("{n} builds"),
    };
    let mut line = format!(
        "{}  {}  {jobs} at once, speed {}",
        machine.uri,
        list(&machine.systems),
        machine.speed
    );
    if !machine.features.is_empty() {
        line += &format!(", features {}", list(&machine.features));
    }
    if !machine.mandatory.is_empty() {
        line += &format!(", only for {}", list(&machine.mandatory));
    }
    line
}

fn list(names: &BTreeSet<String>) -> String {
    names.iter().cloned().collect::<Vec<_>>().join(",")
}

fn probe_line(probe: &Probe) -> String {
    let machine = line(&probe.machine);
    let said = match &probe.answer {
        Err(error) => return format!("{machine}\n  does not answer: {}", error.to_line()),
        Ok(said) => said,
    };
    let nix = plain(said.nix_version.as_deref().unwrap_or("of unknown version"));
    let protocol = plain(said.protocol.as_deref().unwrap_or("unknown"));
    let trust = match said.trusted {
        Some(true) => "trusts the account",
        Some(false) => "does not trust the account",
        None => "does not tell whom it trusts",
    };
    let latency = said
        .latency
        .map(|t| format!(", {:.2} ms away", t.as_secs_f64() * 1e3));
    let slots = match probe.free_slots {
        Some(free) => format!("{free} of {} slots free", probe.machine.max_jobs),
        None => "slots are not known".to_owned(),
    };
    format!(
        "{machine}\n  Nix {nix}, protocol {protocol}, {trust}{}, {slots}",
        latency.unwrap_or_default()
    )
}

fn probe_to_json(probe: &Probe) -> Value {
    let mut value = probe.machine.to_json();
    let said = probe.answer.as_ref().ok();
    value["reachable"] = said.is_some().into();
    value["error"] = probe.answer.as_ref().err().map(|e| e.to_line()).into();
    value["nixVersion"] = said.and_then(|said| said.nix_version.clone()).into();
    value["protocol"] = said.and_then(|said| said.protocol.clone()).into();
    value["trusted"] = said.and_then(|said| said.trusted).into();
    let latency = said.and_then(|said| said.latency);
    value["latencyMs"] = latency.map(|time| time.as_secs_f64() * 1e3).into();
    value["freeSlots"] = probe.free_slots.into();
    value
}

/// Last lines of a builder that are kept.
const LINES: usize = 25;

const LIST: &str = "\
Examples:
  tk-store builders list
  tk-store builders list --builders @/etc/nix/machines --json";
const CHECK: &str = "\
Examples:
  tk-store builders check
  tk-store builders check --builders 'ssh-ng://me@mac aarch64-darwin - 8 2; linux x86_64-linux - 4 1 kvm,big-parallel'";
const PROBE: &str = "\
Examples:
  tk-store builders probe
  tk-store builders probe --builder ssh-ng://me@fast --builder ssh-ng://slow --json";
const BUILD: &str = "\
Examples:
  tk-store builders build /nix/store/…-hello.drv^out
  tk-store builders build '/nix/store/…-hello.drv^*' --builder 'ssh-ng://me@fast x86_64-linux - 8' --json";
