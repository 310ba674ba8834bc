//! Which machine builds what: one that fits, has a free slot, and is the least busy for its speed.

use crate::{
    BuildSlot, Connected, MAX_SLOTS, Machine, Needs, RemoteConfig, connect::connect_within,
    pulse::Pulse,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tk_store::{Error, Result};

/// The machines of one call.
pub struct MachinePool<'a> {
    pub config: &'a RemoteConfig,
    pub places: Vec<MachineState>,
    /// Those who wait for the same kind of machine ask one after the other.
    turns: Mutex<BTreeMap<Needs, Arc<tokio::sync::Mutex<()>>>>,
}

/// A machine with what is known of it.
pub struct MachineState {
    pub machine: Machine,
    store: tokio::sync::Mutex<Option<Arc<Connected>>>,
    /// Why it is not used any more.
    gone: Mutex<Option<String>>,
    wary: AtomicBool,
    pub pulse: Arc<Pulse>,
    /// Why it counts as lost; held by who asks it whether it is.
    pub lost: tokio::sync::Mutex<Option<String>>,
    /// One closure goes there at a time, and one comes back: the line is full with that, and
    /// connections are left for builds.
    pub sending: tokio::sync::Mutex<()>,
    pub receiving: tokio::sync::Mutex<()>,
}

impl<'a> MachinePool<'a> {
    pub fn new(config: &'a RemoteConfig) -> Self {
        let place = |machine: &Machine| MachineState {
            machine: machine.clone(),
            store: tokio::sync::Mutex::new(None),
            gone: Mutex::new(None),
            wary: AtomicBool::new(false),
            pulse: Arc::default(),
            lost: tokio::sync::Mutex::new(None),
            sending: tokio::sync::Mutex::new(()),
            receiving: tokio::sync::Mutex::new(()),
        };
        MachinePool {
            config,
            places: config.machines.iter().map(place).collect(),
            turns: Mutex::default(),
        }
    }

    /// The best machine for `needs` that is not among `tried`, once one has a free slot. `None` if there
    /// is none that could have one.
    ///
    /// # Errors
    /// When slots cannot be noted.
    pub async fn take(
        &self,
        needs: &Needs,
        tried: &BTreeSet<usize>,
    ) -> Result<Option<(usize, BuildSlot)>> {
        let turn = self.turn(needs);
        let _turn = turn.lock().await;
        let mut pause = SHORTEST;
        loop {
            let fitting = |(i, place): &(usize, &MachineState)| {
                !tried.contains(i) && place.why_gone().is_none() && place.may(needs)
            };
            let mut fitting = self.places.iter().enumerate().filter(fitting).peekable();
            if fitting.peek().is_none() {
                return Ok(None);
            }
            let mut best: Option<(usize, BuildSlot, Load)> = None;
            for (i, place) in fitting {
                let taken = self.config.slots.take(&place.machine);
                let (slot, held) =
                    taken.map_err(|e| Error::io("noting who builds on which machine", e))?;
                let load = Load {
                    held,
                    speed: place.machine.speed,
                };
                if let Some(slot) = slot
                    && best.as_ref().is_none_or(|(.., other)| load.better(other))
                {
                    best = Some((i, slot, load));
                }
            }
            if let Some((i, slot, _)) = best {
                return Ok(Some((i, slot)));
            }
            // Other processes hold slots, too, as locks on files, and nobody tells when one of them is free.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST);
        }
    }

    /// Whether there is a machine for `needs`, free or not.
    pub fn fits(&self, needs: &Needs) -> bool {
        let may = |place: &MachineState| place.why_gone().is_none() && place.may(needs);
        self.places.iter().any(may)
    }

    /// The store of the machine at `i`, opened when it is first wanted.
    ///
    /// # Errors
    /// Why it cannot be used, a line. Nobody who waits for it tries again.
    pub async fn connect(&self, i: usize) -> Result<Arc<Connected>, String> {
        let place = &self.places[i];
        let mut store = place.store.lock().await;
        if let Some(store) = &*store {
            return Ok(store.clone());
        }
        if let Some(why) = place.why_gone() {
            return Err(why);
        }
        let jobs = place.machine.max_jobs.min(MAX_SLOTS) as usize;
        let connections = (jobs + SPARE).min(MOST_CONNECTIONS);
        let connect = &*self.config.connect;
        let limit = self.config.patience.connect;
        match connect_within(limit, connect, &place.machine, connections).await {
            Ok(connected) => Ok(store.insert(Arc::new(connected)).clone()),
            Err(error) => {
                let why = error.to_line();
                place.leave(&why);
                Err(why)
            }
        }
    }

    /// Whoever wants the machine next opens its store anew.
    pub async fn disconnect(&self, i: usize) {
        *self.places[i].store.lock().await = None;
    }

    /// Why nobody can build what needs `needs`, a sentence.
    pub fn why_none(&self, needs: &Needs) -> String {
        let features: Vec<_> = needs.features.iter().map(String::as_str).collect();
        let wanted = if features.is_empty() {
            format!("'{}'", needs.system)
        } else {
            format!(
                "'{}' with the features {{{}}}",
                needs.system,
                features.join(", ")
            )
        };
        let there = self.places.iter().map(|place| {
            let machine = &place.machine;
            let list = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(", ");
            let features = list(&(&machine.features | &machine.mandatory));
            let gone = match place.why_gone() {
                Some(why) => format!(", which cannot be used: {why}"),
                None if !machine.mandatory.is_empty() => {
                    format!(", only for what asks for {{{}}}", list(&machine.mandatory))
                }
                None => String::new(),
            };
            let systems = list(&machine.systems);
            format!("{} ({systems}; {{{features}}}{gone})", machine.uri)
        });
        let there: Vec<_> = there.collect();
        if there.is_empty() {
            format!("a machine for {wanted} is required to build it, and none is named")
        } else {
            format!(
                "a machine for {wanted} is required to build it; there are {}",
                there.join(", ")
            )
        }
    }

    fn turn(&self, needs: &Needs) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.entry(needs.clone()).or_default().clone()
    }
}

impl MachineState {
    /// Says that it is of no use any more.
    pub fn leave(&self, why: &str) {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.get_or_insert_with(|| why.to_owned());
    }

    pub fn why_gone(&self) -> Option<String> {
        let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.clone()
    }

    /// Whether it is known not to trust us.
    pub fn is_wary(&self) -> bool {
        self.wary.load(Ordering::Relaxed)
    }

    /// Notes that it does not trust us; whether that was known.
    pub fn becomes_wary(&self) -> bool {
        self.wary.swap(true, Ordering::Relaxed)
    }

    fn may(&self, needs: &Needs) -> bool {
        self.machine.max_jobs > 0 && self.machine.fits(needs)
    }
}

/// How busy a machine is.
#[derive(Debug, Clone, Copy)]
struct Load {
    held: u32,
    speed: f32,
}

impl Load {
    /// As build-remote.cc: fewer builds for its speed; then the faster; then the less busy.
    fn better(&self, other: &Load) -> bool {
        let (ours, theirs) = (
            self.held as f32 / self.speed,
            other.held as f32 / other.speed,
        );
        if ours != theirs {
            return ours < theirs;
        }
        if self.speed == other.speed {
            self.held < other.held
        } else {
            self.speed > other.speed
        }
    }
}

/// Connections beside those of builds.
const SPARE: usize = 4;
const MOST_CONNECTIONS: usize = 64;
/// Who waits for a slot asks again after that long, later more seldom.
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_busy_for_its_speed() {
        let load = |held, speed| Load { held, speed };
        for (one, other) in [
            (load(0, 1.0), load(1, 1.0)),
            (load(0, 2.0), load(0, 1.0)),
            (load(1, 4.0), load(1, 2.0)),
            (load(1, 4.0), load(2, 4.0)),
            (load(0, 1.0), load(1, 100.0)),
        ] {
            assert!(one.better(&other), "{one:?} {other:?}");
            assert!(!other.better(&one), "{one:?} {other:?}");
        }
        assert!(!load(1, 1.0).better(&load(1, 1.0)));
    }
}
