//! Health of backends: probes, and what their results say.
//!
//! - [`ProbeSpec`] says what to ask whom; [`probe`] asks once and measures.
//! - [`Prober`] asks at an interval, for any number of backends.
//! - [`Health`] turns results into `up` and `down` (rise, fall); it does no input or output and
//!   takes the time as an argument.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

mod connect;
mod failure;
mod http;
mod pace;
mod scheduler;
mod sockets;
mod state;
mod tcp;
#[cfg(test)]
mod tests;

use sockets::Sockets;

pub use failure::ProbeFailure;
pub use scheduler::{Applied, ProbeReport, Prober};
pub use state::{Health, HealthState, Thresholds, Transition};

/// The number of the probed backend, as in the slots of the data path and in the probe's mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProbeId(pub u16);

/// What one probe found: how long the answer took, or why there was none.
pub type ProbeResult = Result<Duration, ProbeFailure>;

/// The way a probe takes to its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// To the VIP, delivered to this one backend by the mark: the clients' own way.
    Vip,
    /// To the backend's own address.
    Address,
}

/// What a probe asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeKind {
    /// A TCP handshake.
    Tcp,
    /// An HTTP/1.1 GET, answered whole within the timeout.
    Http {
        /// Path and query, e.g. `/healthz`.
        path: String,
        /// The Host header; `None` sends the target's address and port.
        host: Option<String>,
        /// The statuses that mean healthy.
        status: RangeInclusive<u16>,
    },
}

/// One backend's probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeSpec {
    /// What is asked.
    pub kind: ProbeKind,
    /// Which way it goes.
    pub via: Via,
    /// Whom it is sent to: VIP and port, or the backend's address and port.
    pub target: SocketAddr,
    /// The backend's own address. A probe that gets no answer through the VIP looks here whether
    /// the backend lives.
    pub address: IpAddr,
    /// `SO_MARK` of the probe's socket, from which the egress program learns the backend.
    pub mark: Option<u32>,
    /// The one interface it may leave through and be answered on (`SO_BINDTODEVICE`); `None` for any.
    pub interface: Option<String>,
    /// Time from one probe's start to the next one's.
    pub interval: Duration,
    /// The whole probe, connection and answer, must be done within this.
    pub timeout: Duration,
}

impl ProbeSpec {
    /// The backend's own address with the probe's port.
    fn own_target(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.target.port())
    }
}

/// Probes once; takes no longer than the spec's timeout plus the closing of the connection.
///
/// # Errors
/// The reason why the backend did not answer as it should.
pub async fn probe(spec: &ProbeSpec) -> ProbeResult {
    probe_by(spec, None).await
}

/// The same, by sockets that many probes use one after the other, where there are some.
async fn probe_by(spec: &ProbeSpec, sockets: Option<&Sockets>) -> ProbeResult {
    let start = Instant::now();
    match &spec.kind {
        ProbeKind::Tcp => tcp::probe(spec, start, sockets).await,
        ProbeKind::Http { path, host, status } => {
            http::probe(spec, path, host.as_deref(), status, start).await
        }
    }
}
