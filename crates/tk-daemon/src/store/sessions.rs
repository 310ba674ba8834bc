use super::{DaemonConfig, DaemonStore};
use std::sync::Arc;
use tk_store::{Abilities, ClientSettings, Sessions, log::LogSink};

/// Each session has connections of its own: one that is slow keeps nobody else waiting, and what the daemon
/// keeps for a connection ends with the session.
impl Sessions for DaemonStore {
    fn session(&self, log: Arc<dyn LogSink>) -> Abilities {
        let transport = self.transport.clone();
        let config = DaemonConfig {
            log,
            ..DaemonConfig::clone(&self.config)
        };
        Arc::new(DaemonStore::new(transport, config)).abilities()
    }

    /// Connections from now on begin with these settings; what the daemon makes of them depends on
    /// whether it trusts this process.
    fn with_settings(&self, settings: &ClientSettings) -> Option<Abilities> {
        let config = DaemonConfig {
            settings: Some(settings.clone()),
            ..DaemonConfig::clone(&self.config)
        };
        let (transport, roots) = (self.transport.clone(), self.temp_roots.clone());
        let store = DaemonStore::with_roots(transport, config, roots);
        Some(Arc::new(store).abilities())
    }
}
