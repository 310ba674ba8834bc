use async_trait::async_trait;
use std::{
    any::Any,
    fmt::{Debug, Display},
};
use tk_store::Result;
use tokio::io::{AsyncRead, AsyncWrite};

/// A way to a daemon: each call gives another connection. `Display` names the far end, for errors.
#[async_trait]
pub trait Transport: Debug + Display + Send + Sync {
    /// Opens a connection, at which nothing was said yet.
    async fn connect(&self) -> Result<Channel>;
}

/// The two directions of a connection. The far end sees the end of its input when `writer` is shut
/// down or dropped.
pub struct Channel {
    /// What the daemon says.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// What is said to it.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// Lives as long as the connection: a process that is stopped when this is dropped, say.
    pub guard: Option<Box<dyn Any + Send + Sync>>,
}

impl Channel {
    /// A connection with nothing behind it.
    pub fn new(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Channel {
            reader: Box::new(reader),
            writer: Box::new(writer),
            guard: None,
        }
    }

    /// The same with something that is to live as long.
    pub fn with_guard(mut self, guard: impl Any + Send + Sync) -> Self {
        self.guard = Some(Box::new(guard));
        self
    }
}

impl Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Channel")
    }
}
