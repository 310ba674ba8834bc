//! Machines that fall silent. A build may be quiet for as long as it likes, so that silence alone says
//! nothing: the machine is asked whether it is there, first over the connections that there are,
//! then over new ones. One that answers is waited for; one that does not is lost, with all
//! that is under way there.

use crate::{
    Connected,
    pool::{MachinePool, MachineState},
};
use std::{collections::BTreeSet, future::Future, pin::pin};
use tk_path::StorePath;
use tk_store::Error;
use tokio::time::{Instant, sleep_until, timeout_at};

impl MachinePool<'_> {
    /// Waits for `work` at the machine at `i`, as long as that shows a sign of life now and then.
    /// `path` is what it can be asked about.
    ///
    /// # Errors
    /// That it is lost, a sentence. `work` is given up then.
    pub async fn watch<T>(
        &self,
        i: usize,
        builder: &Connected,
        path: &StorePath,
        work: impl Future<Output = T>,
    ) -> Result<T, String> {
        let (pulse, silence) = (&self.places[i].pulse, self.config.patience.silence);
        let begun = Instant::now();
        let mut work = pin!(work);
        loop {
            let heard = pulse.last().max(begun);
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = sleep_until(heard + silence) => {}
            }
            if pulse.last() > heard {
                continue;
            }
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                answer = self.ask(i, builder, path) => answer?,
            }
        }
    }

    /// Asks the machine at `i` for a sign of life: one of those who want to know for all of them, as a
    /// machine may turn down many who come at once.
    async fn ask(&self, i: usize, builder: &Connected, path: &StorePath) -> Result<(), String> {
        let (place, limit) = (&self.places[i], self.config.patience.answer);
        let asked = Instant::now();
        let mut lost = place.lost.lock().await;
        let mut why = String::new();
        for round in 0..QUESTIONS {
            if place.pulse.last() > asked {
                return Ok(());
            }
            // Another one may have found the machine lost while this one waited for the lock.
            if let Some(words) = &*lost {
                return Err(words.clone());
            }
            let until = Instant::now() + limit;
            why = match timeout_at(until, self.question(round, place, builder, path)).await {
                Ok(Ok(())) => {
                    place.pulse.beat();
                    return Ok(());
                }
                Ok(Err(error)) => error.to_line(),
                Err(_) => format!("no answer for {} s", limit.as_secs_f32()),
            };
            // One that turns us down may be beginning anew.
            sleep_until(until).await;
        }
        if place.pulse.last() > asked {
            return Ok(());
        }
        place.leave(&format!("it fell silent and does not answer: {why}"));
        let words = format!(
            "{} fell silent and does not answer: {why}",
            place.machine.uri
        );
        Err(lost.insert(words).clone())
    }

    /// Asks something small: first of all over the connections that there are, which no user has to
    /// let in again.
    async fn question(
        &self,
        round: u32,
        place: &MachineState,
        builder: &Connected,
        path: &StorePath,
    ) -> Result<(), Error> {
        if round == 0 {
            let paths = BTreeSet::from([path.clone()]);
            return builder.store.store.valid(&paths).await.map(drop);
        }
        let connected = self.config.connect.connect(&place.machine, 1).await;
        connected.map(drop)
    }
}

/// How often a machine is asked before it is lost.
const QUESTIONS: u32 = 3;
