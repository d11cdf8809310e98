//! The connection to the kernel's routing tables.

use std::io;
use std::time::Duration;

use rtnetlink::Handle;
use tokio::task::AbortHandle;

/// The kernel answers at once; a request that has waited this long has lost its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A request to the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// The kernel refused, or its answer was not understood.
    #[error("{action}: {error}")]
    Request {
        /// What was asked for.
        action: String,
        /// What was wrong with it.
        error: io::Error,
    },
}

impl NetlinkError {
    /// The kernel's error number, if it gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Socket(error) | Self::Request { error, .. } => error.raw_os_error(),
        }
    }
}

/// A netlink socket in the network namespace of the thread that opened it. It gets the answers to
/// its own requests and no notifications, so no flood of those can cost it an answer.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    connection: AbortHandle,
}

impl Netlink {
    /// Opens the socket; to be called within a tokio runtime.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`].
    pub fn open() -> Result<Self, NetlinkError> {
        // Strict checking lets the kernel filter what it lists: a director that has learned all
        // routes of the Internet should not have to read them to find its own.
        let (connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(NetlinkError::Socket)?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection).abort_handle(),
        })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Waits for the answer to a request; `action` says in an error what was tried.
    pub(super) async fn ask<T>(
        &self,
        action: impl Fn() -> String,
        answer: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, NetlinkError> {
        let error = match tokio::time::timeout(ANSWER_WITHIN, answer).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(rtnetlink::Error::NetlinkError(error))) => error.to_io(),
            Ok(Err(error)) => io::Error::other(error),
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, "no answer from the kernel"),
        };
        Err(NetlinkError::Request {
            action: action(),
            error,
        })
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
