//! The TCP probe: a handshake.

use std::time::Instant;

use super::{ProbeResult, ProbeSpec, connect};

/// Connects and lets go. The connection ends with a reset (see [`connect::connect`]): at ten probes
/// a second an orderly close would leave six hundred ports in TIME_WAIT for every backend, all
/// towards the same VIP and port.
pub(super) async fn probe(spec: &ProbeSpec, start: Instant) -> ProbeResult {
    connect::connect(spec, start).await?;
    Ok(start.elapsed())
}
