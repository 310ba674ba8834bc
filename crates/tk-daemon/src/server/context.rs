use super::{Server, ServerConfig, events::Events};
use crate::{wire::WireError, worker::Trust};
use std::{collections::BTreeSet, sync::Arc};
use tk_narinfo::Policy;
use tk_path::StorePath;
use tk_store::{Abilities, AddOptions, Error, Existing, SigCheck};

/// What every operation is worked on with.
pub(super) struct OperationContext {
    pub abilities: Abilities,
    pub config: Arc<ServerConfig>,
    pub trusted: bool,
    /// What is demanded of what this client adds; one who is trusted may change it.
    pub policy: Arc<Policy>,
    /// What the store tells meanwhile.
    pub events: Arc<Events>,
}

/// Why an operation is not done.
#[derive(Debug)]
pub(super) enum OperationFailure {
    /// The client gets an error, and can go on.
    Refused(Error),
    /// The connection is of no use any more.
    Broken(WireError),
    /// Data failed that was announced already, so that the connection cannot go on.
    Late(Error),
    /// The client has gone.
    Gone,
}

/// The reply to an operation.
pub(super) type OperationResult<T> = Result<T, OperationFailure>;

impl OperationContext {
    pub fn new(server: &Server, trust: Trust) -> Self {
        let events = Arc::<Events>::default();
        OperationContext {
            abilities: server.abilities.session(events.clone()),
            policy: server.config.policy.clone(),
            config: server.config.clone(),
            trusted: trust == Trust::Trusted,
            events,
        }
    }

    /// What is demanded of a path that is added, and what becomes of one that is there.
    pub fn adding(&self, repair: bool, skip: bool) -> OperationResult<AddOptions> {
        let mut options = AddOptions::new(self.check(skip));
        if repair {
            self.require_trust("repairing paths")?;
            options.existing = Existing::Replace;
        }
        Ok(options)
    }

    /// What signatures are demanded. Only those who are trusted may ask for none.
    pub fn check(&self, skip: bool) -> SigCheck {
        if skip && self.trusted {
            SigCheck::Skip
        } else {
            SigCheck::Require(self.policy.clone())
        }
    }

    /// The ability, or a refusal with `what` the store cannot do.
    pub fn able<T: ?Sized>(&self, ability: &Option<Arc<T>>, what: &str) -> OperationResult<Arc<T>> {
        match ability {
            Some(ability) => Ok(ability.clone()),
            None => Err(self.abilities.unsupported(what).into()),
        }
    }

    /// Refuses those who are not trusted.
    pub fn require_trust(&self, what: &str) -> OperationResult<()> {
        if self.trusted {
            Ok(())
        } else {
            Err(refused(format!(
                "{what}: this needs a user whom the server trusts (--trusted-user)"
            )))
        }
    }

    pub async fn is_valid(&self, path: &StorePath) -> OperationResult<bool> {
        let one = BTreeSet::from([path.clone()]);
        Ok(!self.abilities.store.valid(&one).await?.is_empty())
    }
}

/// A refusal with a whole sentence.
pub(super) fn refused(what: impl Into<String>) -> OperationFailure {
    OperationFailure::Refused(Error::invalid(what))
}

impl From<Error> for OperationFailure {
    fn from(error: Error) -> Self {
        OperationFailure::Refused(error)
    }
}

impl From<WireError> for OperationFailure {
    fn from(error: WireError) -> Self {
        OperationFailure::Broken(error)
    }
}
