use super::OpenOptions;
use crate::CommandContext;
use std::collections::BTreeMap;
use tk_daemon::{serve::ServeBuildOptions, worker::ops::SetOptions};

/// How a daemon is to build, in the words of Nix.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
pub struct BuildArgs {
    /// Go on with other builds when one fails
    #[arg(long, short)]
    keep_going: bool,
    /// Keep the folder of a build that failed
    #[arg(long, short = 'K')]
    keep_failed: bool,
    /// Build what cannot be fetched
    #[arg(long)]
    fallback: bool,
    /// Builds at once [default: the daemon's]
    #[arg(long, short = 'j', value_name = "N")]
    max_jobs: Option<u32>,
    /// Processors for each build, 0 for all of them [default: the daemon's]
    #[arg(long, value_name = "N")]
    cores: Option<u32>,
    /// End a build that runs longer [default: the daemon's]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
    /// End a build that says nothing for longer [default: the daemon's]
    #[arg(long, value_name = "SECONDS")]
    max_silent_time: Option<u32>,
    /// Do not fetch from substituters
    #[arg(long)]
    no_substitute: bool,
    /// Any other setting of the daemon, as in nix.conf
    #[arg(long, num_args = 2, value_names = ["NAME", "VALUE"])]
    option: Vec<String>,
}

impl BuildArgs {
    /// What a daemon is told. Nothing, so that it works by its own configuration, unless something
    /// was asked for; then, as the message has no blanks, the rest is nix.conf's.
    pub fn to_settings(&self, cx: &CommandContext) -> Option<SetOptions> {
        if *self == BuildArgs::default() {
            return None;
        }
        let conf = &cx.settings.nix_conf;
        let configured = |key: &str| conf.get(key);
        let number = |key: &str| configured(key).and_then(|text| text.parse().ok());
        let yes = |key: &str| conf.is_on(key) == Some(true);
        let jobs = match configured("max-jobs") {
            Some("auto") => std::thread::available_parallelism()
                .ok()
                .map(|n| n.get() as u32),
            _ => number("max-jobs"),
        };
        let mut overrides: BTreeMap<String, String> = BTreeMap::new();
        for pair in self.option.chunks_exact(2) {
            overrides.insert(pair[0].clone(), pair[1].clone());
        }
        if let Some(seconds) = self.timeout {
            overrides.insert("timeout".into(), seconds.to_string());
        }
        let silent = self.max_silent_time.or(number("max-silent-time"));
        let mut options = SetOptions::default();
        options.keep_failed = self.keep_failed || yes("keep-failed");
        options.keep_going = self.keep_going || yes("keep-going");
        options.try_fallback = self.fallback || yes("fallback");
        options.max_build_jobs = self.max_jobs.or(jobs).unwrap_or(1);
        options.max_silent_time = silent.unwrap_or(0).into();
        options.build_cores = self.cores.or(number("cores")).unwrap_or(0);
        options.use_substitutes = !self.no_substitute && conf.is_on("substitute") != Some(false);
        options.overrides = overrides;
        Some(options)
    }
}

impl BuildArgs {
    /// Whether other builds go on when one fails.
    pub fn keep_going(&self) -> bool {
        self.keep_going
    }

    /// The same, with what a build that failed or differed has left kept.
    pub fn keeping_failed(&self) -> BuildArgs {
        BuildArgs {
            keep_failed: true,
            ..self.clone()
        }
    }

    /// The same as settings for nix's command line, for what it builds while it evaluates.
    pub fn options(&self) -> Vec<(String, String)> {
        let number = |name: &str, value: Option<u32>| Some((name.into(), value?.to_string()));
        let yes = |name: &str, given: bool| given.then(|| (name.into(), "true".into()));
        let own = [
            yes("keep-going", self.keep_going),
            yes("keep-failed", self.keep_failed),
            yes("fallback", self.fallback),
            number("max-jobs", self.max_jobs),
            number("cores", self.cores),
            number("timeout", self.timeout),
            number("max-silent-time", self.max_silent_time),
            self.no_substitute
                .then(|| ("substitute".into(), "false".into())),
        ];
        let pairs = self.option.chunks_exact(2);
        let given = pairs.map(|pair| (pair[0].clone(), pair[1].clone()));
        own.into_iter().flatten().chain(given).collect()
    }

    /// Has stores that are opened by `wish` build so.
    pub fn apply(&self, cx: &CommandContext, wish: &mut OpenOptions) {
        wish.daemon = self.to_settings(cx);
        wish.serve = self.to_serve();
    }

    /// The few that the serve protocol has.
    fn to_serve(&self) -> ServeBuildOptions {
        let seconds = |given: Option<u32>| given.unwrap_or(0).into();
        let mut options = ServeBuildOptions::default();
        options.max_silent_time = seconds(self.max_silent_time);
        options.build_timeout = seconds(self.timeout);
        options.keep_failed = self.keep_failed;
        options
    }
}
