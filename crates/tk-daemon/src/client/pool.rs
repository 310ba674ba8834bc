use super::{Connection, ConnectionSettings, Transport};
use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tk_store::{Error, Result, log::LogSink};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections to one daemon, a bounded number of them. Who comes first gets one first.
///
/// A connection that was dropped in the middle of an operation, or that failed, is closed and
/// never lent again.
pub struct ConnectionPool {
    transport: Arc<dyn Transport>,
    settings: Arc<ConnectionSettings>,
    max_age: Duration,
    places: Arc<Semaphore>,
    /// The one that was used last is lent next, so that the others grow old.
    idle: Mutex<Vec<Connection>>,
}

impl ConnectionPool {
    /// A pool of at most `max_connections` (at least one), none of which is lent once it is older
    /// than `max_age`. Opens none.
    pub fn new(
        transport: Arc<dyn Transport>,
        settings: ConnectionSettings,
        max_connections: usize,
        max_age: Duration,
    ) -> Arc<ConnectionPool> {
        let places = max_connections.clamp(1, Semaphore::MAX_PERMITS);
        Arc::new(ConnectionPool {
            transport,
            settings: Arc::new(settings),
            max_age,
            places: Arc::new(Semaphore::new(places)),
            idle: Mutex::default(),
        })
    }

    /// What all connections have in common.
    pub fn settings(&self) -> &ConnectionSettings {
        &self.settings
    }

    /// Lends a connection, once one is free: an idle one, or a new one.
    /// What the daemon says while it is connected to goes to `log`.
    pub async fn get(self: &Arc<Self>, log: &dyn LogSink) -> Result<DaemonLease> {
        let place = self.places.clone().acquire_owned().await;
        let place = place.map_err(|_| Error::invalid("the pool of connections was closed"))?;
        self.fill(place, log).await
    }

    /// As [`ConnectionPool::get`], but `None` if as many connections as may be are lent: for whoever has one
    /// already, and must not wait for another.
    pub async fn try_get(self: &Arc<Self>, log: &dyn LogSink) -> Result<Option<DaemonLease>> {
        match self.places.clone().try_acquire_owned() {
            Ok(place) => Ok(Some(self.fill(place, log).await?)),
            Err(_) => Ok(None),
        }
    }

    async fn fill(
        self: &Arc<Self>,
        place: OwnedSemaphorePermit,
        log: &dyn LogSink,
    ) -> Result<DaemonLease> {
        while let Some(mut connection) = self.take_idle() {
            if self.is_young(&connection) && connection.is_alive() {
                return Ok(self.lease(connection, place));
            }
        }
        let connection = self.open(log).await?;
        Ok(self.lease(connection, place))
    }

    /// A connection beside those of the pool.
    pub async fn open(&self, log: &dyn LogSink) -> Result<Connection> {
        Connection::open(&*self.transport, self.settings.clone(), log).await
    }

    fn lease(self: &Arc<Self>, connection: Connection, place: OwnedSemaphorePermit) -> DaemonLease {
        DaemonLease {
            connection: Some(connection),
            pool: self.clone(),
            _place: place,
        }
    }

    fn take_idle(&self) -> Option<Connection> {
        self.idle().pop()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_young(&self, connection: &Connection) -> bool {
        connection.opened().elapsed() <= self.max_age
    }

    fn give_back(&self, connection: Connection) {
        if connection.is_clean() && self.is_young(&connection) {
            self.idle().push(connection);
        }
    }
}

impl fmt::Debug for ConnectionPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("to", &self.settings.name)
            .field("free", &self.places.available_permits())
            .field("idle", &self.idle().len())
            .finish()
    }
}

/// A connection on loan; dropping it gives it back, if it is clean.
#[derive(Debug)]
pub struct DaemonLease {
    /// Some until it is dropped.
    connection: Option<Connection>,
    pool: Arc<ConnectionPool>,
    /// Goes after the connection was given back.
    _place: OwnedSemaphorePermit,
}

impl Deref for DaemonLease {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("there until dropped")
    }
}

impl DerefMut for DaemonLease {
    fn deref_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("there until dropped")
    }
}

impl Drop for DaemonLease {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.give_back(connection);
        }
    }
}
