use super::{Connection, Transport, connection::ConnectionSource};
use crate::{
    wire::{NarRead, Protocol, WireReader},
    worker::WorkerProtocol,
};
use futures::{StreamExt, stream};
use std::{
    fmt,
    future::Future,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tk_store::{Error, NarStream, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A protocol as a client begins to speak it.
pub trait ClientProtocol: Protocol {
    /// How a server is talked to.
    type Config: fmt::Debug + Send + Sync;

    /// Connects, up to the end of the handshake.
    fn connect(
        transport: &dyn Transport,
        config: &Self::Config,
    ) -> impl Future<Output = Result<Connection<Self>>> + Send;
}

/// Connections to one server, a bounded number of them. Who comes first gets one first.
///
/// A connection that was dropped in the middle of an operation, or that failed, is closed and
/// never lent again.
pub(crate) struct ConnectionPool<P: ClientProtocol> {
    transport: Arc<dyn Transport>,
    config: Arc<P::Config>,
    max_age: Duration,
    places: Arc<Semaphore>,
    /// The one that was used last is lent next, so that the others grow old.
    idle: Mutex<Vec<Connection<P>>>,
}

impl<P: ClientProtocol> ConnectionPool<P> {
    /// A pool of at most `max_connections` (at least one), none of which is lent once it is older
    /// than `max_age`. Opens none.
    pub fn new(
        transport: Arc<dyn Transport>,
        config: Arc<P::Config>,
        max_connections: usize,
        max_age: Duration,
    ) -> Arc<Self> {
        let places = max_connections.clamp(1, Semaphore::MAX_PERMITS);
        Arc::new(ConnectionPool {
            transport,
            config,
            max_age,
            places: Arc::new(Semaphore::new(places)),
            idle: Mutex::default(),
        })
    }

    /// Lends a connection, once one is free: an idle one, or a new one.
    pub async fn get(self: &Arc<Self>) -> Result<ConnectionLease<P>> {
        let place = self.places.clone().acquire_owned().await;
        let place = place.map_err(|_| Error::invalid("the pool of connections was closed"))?;
        self.fill(place).await
    }

    /// As [`ConnectionPool::get`], but `None` if as many connections as may be are lent: for whoever has one
    /// already, and must not wait for another.
    pub async fn try_get(self: &Arc<Self>) -> Result<Option<ConnectionLease<P>>> {
        match self.places.clone().try_acquire_owned() {
            Ok(place) => Ok(Some(self.fill(place).await?)),
            Err(_) => Ok(None),
        }
    }

    async fn fill(self: &Arc<Self>, place: OwnedSemaphorePermit) -> Result<ConnectionLease<P>> {
        while let Some(mut connection) = self.take_idle() {
            if self.is_young(&connection) && connection.is_alive() {
                return Ok(self.lease(connection, place));
            }
        }
        Ok(self.lease(self.open().await?, place))
    }

    /// A connection beside those of the pool.
    pub async fn open(&self) -> Result<Connection<P>> {
        P::connect(&*self.transport, &self.config).await
    }

    fn lease(
        self: &Arc<Self>,
        connection: Connection<P>,
        place: OwnedSemaphorePermit,
    ) -> ConnectionLease<P> {
        ConnectionLease {
            connection: Some(connection),
            pool: self.clone(),
            _place: place,
        }
    }

    fn take_idle(&self) -> Option<Connection<P>> {
        self.idle().pop()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection<P>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_young(&self, connection: &Connection<P>) -> bool {
        connection.opened().elapsed() <= self.max_age
    }

    fn give_back(&self, connection: Connection<P>) {
        if connection.is_clean() && self.is_young(&connection) {
            self.idle().push(connection);
        }
    }
}

impl<P: ClientProtocol> fmt::Debug for ConnectionPool<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionPool")
            .field("to", &self.config)
            .field("free", &self.places.available_permits())
            .field("idle", &self.idle().len())
            .finish()
    }
}

/// A connection on loan; dropping it gives it back, if it is clean.
#[derive(Debug)]
pub struct ConnectionLease<P: ClientProtocol = WorkerProtocol> {
    /// Some until it is dropped.
    connection: Option<Connection<P>>,
    pool: Arc<ConnectionPool<P>>,
    /// Goes after the connection was given back.
    _place: OwnedSemaphorePermit,
}

/// A connection of the worker protocol on loan.
pub type DaemonLease = ConnectionLease<WorkerProtocol>;

impl<P: ClientProtocol> ConnectionLease<P> {
    /// The raw NAR that comes next, checked to be one. The connection is given back at its end, which is
    /// the end of what was asked last.
    pub(crate) fn into_nar(self) -> NarStream {
        let peer = self.input.peer.clone();
        let nar = NarRead::new(NarLease(self));
        let next = move |nar: Option<NarRead<NarLease<P>>>| {
            let peer = peer.clone();
            async move {
                let Some(mut nar) = nar else { return Ok(None) };
                let chunk = nar.next_chunk().await.map_err(|e| peer.failed(e))?;
                let rest = if nar.is_ended() {
                    nar.into_inner().0.flight.end();
                    None
                } else {
                    Some(nar)
                };
                Ok(Some((chunk.unwrap_or_default(), rest)))
            }
        };
        stream::try_unfold(Some(nar), next).boxed()
    }
}

impl<P: ClientProtocol> Deref for ConnectionLease<P> {
    type Target = Connection<P>;

    fn deref(&self) -> &Connection<P> {
        self.connection.as_ref().expect("there until dropped")
    }
}

impl<P: ClientProtocol> DerefMut for ConnectionLease<P> {
    fn deref_mut(&mut self) -> &mut Connection<P> {
        self.connection.as_mut().expect("there until dropped")
    }
}

impl<P: ClientProtocol> Drop for ConnectionLease<P> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.give_back(connection);
        }
    }
}

/// A connection whose reader is in the middle of a NAR.
struct NarLease<P: ClientProtocol>(ConnectionLease<P>);

impl<P: ClientProtocol> Deref for NarLease<P> {
    type Target = WireReader<ConnectionSource, P>;

    fn deref(&self) -> &Self::Target {
        &self.0.input.reader
    }
}

impl<P: ClientProtocol> DerefMut for NarLease<P> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0.input.reader
    }
}
