//! The TCP probe: a handshake.

use std::time::Instant;

use super::{
    ProbeResult, ProbeSpec, Via, connect,
    sockets::{Kind, Sockets},
};

/// Connects and lets go. The connection ends with a reset (see [`connect::connect`]): at ten probes
/// a second an orderly close would leave six hundred ports in TIME_WAIT for every backend, all
/// towards the same VIP and port.
///
/// One that is bound to an interface has a socket of its own: a binding can't be taken back, and the interface of that name may
/// have become another one.
pub(super) async fn probe(
    spec: &ProbeSpec,
    start: Instant,
    sockets: Option<&Sockets>,
) -> ProbeResult {
    let Some(sockets) = sockets.filter(|_| spec.interface.is_none()) else {
        connect::connect(spec, start).await?;
        return Ok(start.elapsed());
    };
    let kind = Kind::towards(spec.target, spec.via == Via::Vip);
    let connecting = sockets.connect(
        spec.target,
        kind,
        spec.mark.unwrap_or_default(),
        spec.timeout,
    );
    let connection = connect::explained(spec, start, connecting).await?;
    let took = start.elapsed();
    connection.reset();
    Ok(took)
}
