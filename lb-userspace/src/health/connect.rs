//! The connection of a probe, and why there is none.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout_at;

use super::{ProbeFailure, ProbeSpec, Via};

/// How a probe's socket differs from any other.
#[derive(Clone, Copy)]
struct Options<'s> {
    mark: Option<u32>,
    interface: Option<&'s str>,
    on_link: bool,
}

/// Connects to the spec's target. The stream is set to close with a reset.
pub(super) async fn connect(spec: &ProbeSpec, start: Instant) -> Result<TcpStream, ProbeFailure> {
    let options = Options {
        mark: spec.mark,
        interface: spec.interface.as_deref(),
        on_link: spec.via == Via::Vip,
    };
    explained(spec, start, open(spec.target, options, spec.timeout)).await
}

/// What comes of connecting to the spec's target, or why it does not.
///
/// Through the VIP, an answer that stays out has two common causes: the backend is dead, or its
/// loopback lacks the VIP. The second is looked for at the backend's own address, from the
/// moment half of the timeout has passed (or the probe failed as unreachable), so that the
/// finding neither costs a healthy backend a connection nor makes a probe longer than its timeout.
pub(super) async fn explained<T>(
    spec: &ProbeSpec,
    start: Instant,
    target: impl Future<Output = Result<T, ProbeFailure>>,
) -> Result<T, ProbeFailure> {
    let deadline = (start + spec.timeout).into();
    tokio::pin!(target);
    if spec.via == Via::Address {
        return timeout_at(deadline, target)
            .await
            .unwrap_or_else(|_| Err(timed_out(spec)));
    }

    let half = (start + spec.timeout / 2).into();
    let failure = match timeout_at(half, &mut target).await {
        Ok(Ok(stream)) => return Ok(stream),
        Ok(Err(failure @ ProbeFailure::Unreachable { .. })) => Some(failure),
        Ok(Err(failure)) => return Err(failure),
        Err(_) => None,
    };

    // The way to the backend's own address needs no mark: its MAC is the neighbour's.
    let plain = Options {
        mark: None,
        interface: None,
        on_link: false,
    };
    let own = timeout_at(deadline, open(spec.own_target(), plain, spec.timeout));
    if let Some(failure) = failure {
        return Err(explain(spec, failure, own.await.ok().as_ref()));
    }
    tokio::pin!(own);
    let mut target = std::pin::pin!(timeout_at(deadline, target));
    let mut own_result = None;
    loop {
        tokio::select! {
            biased;
            result = &mut target => {
                let failure = match result {
                    Ok(Ok(stream)) => return Ok(stream),
                    Ok(Err(failure)) => failure,
                    Err(_) => timed_out(spec),
                };
                return Err(explain(spec, failure, own_result.as_ref()));
            }
            result = &mut own, if own_result.is_none() => {
                // Its deadline is the target's too: there is no answer any more to wait for.
                let Ok(result) = result else { return Err(timed_out(spec)) };
                own_result = Some(result);
            }
        }
    }
}

/// What the backend's own address tells about a failure through the VIP.
fn explain(
    spec: &ProbeSpec,
    failure: ProbeFailure,
    own: Option<&Result<TcpStream, ProbeFailure>>,
) -> ProbeFailure {
    match (failure, own) {
        (
            ProbeFailure::TimedOut { target, .. } | ProbeFailure::Unreachable { target, .. },
            Some(Ok(_)),
        ) => ProbeFailure::VipNotServed {
            vip: target,
            address: spec.address,
        },
        // A host that has the VIP refuses there too. But a server may listen on the VIP alone, and
        // a filter may drop what is sent to it; only that the host lives is certain.
        (
            ProbeFailure::TimedOut {
                target, timeout, ..
            },
            Some(Err(ProbeFailure::Refused { target: own })),
        ) => ProbeFailure::TimedOut {
            target,
            timeout,
            alive: Some(*own),
        },
        (failure, _) => failure,
    }
}

fn timed_out(spec: &ProbeSpec) -> ProbeFailure {
    ProbeFailure::TimedOut {
        target: spec.target,
        timeout: spec.timeout,
        alive: None,
    }
}

async fn open(
    target: SocketAddr,
    options: Options<'_>,
    timeout: Duration,
) -> Result<TcpStream, ProbeFailure> {
    socket(target, options)?
        .connect(target)
        .await
        .map_err(|error| ProbeFailure::from_io(&error, target, timeout))
}

fn socket(target: SocketAddr, options: Options<'_>) -> Result<TcpSocket, ProbeFailure> {
    let socket = match target {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
    .map_err(|error| ProbeFailure::local("socket", &error))?;
    let reference = SockRef::from(&socket);
    if let Some(mark) = options.mark {
        set_mark(&reference, mark)?;
    }
    if let Some(interface) = options.interface {
        reference
            .bind_device(Some(interface.as_bytes()))
            .map_err(|error| ProbeFailure::local("SO_BINDTODEVICE", &error))?;
    }
    set_options(&reference, target.is_ipv6(), options.on_link)?;
    Ok(socket)
}

/// The mark, from which the egress program learns the backend.
pub(super) fn set_mark(socket: &SockRef<'_>, mark: u32) -> Result<(), ProbeFailure> {
    socket
        .set_mark(mark)
        .map_err(|error| ProbeFailure::local("SO_MARK (needs CAP_NET_ADMIN)", &error))
}

/// What all probes of a kind have in common; `on_link`: no router passes their packets on.
pub(super) fn set_options(
    socket: &SockRef<'_>,
    v6: bool,
    on_link: bool,
) -> Result<(), ProbeFailure> {
    if on_link {
        // A backend that lacks the VIP but forwards packets would route the probe back to the
        // director, which would balance it to a healthy backend: a false success. With a TTL of 1
        // it must drop it (RFC 1812 5.3.1). The backend that has the VIP does not look at the TTL.
        if v6 {
            socket.set_unicast_hops_v6(1)
        } else {
            socket.set_ttl_v4(1)
        }
        .map_err(|error| ProbeFailure::local("IP_TTL", &error))?;
    }
    // Closed with a reset: neither side keeps a connection in TIME_WAIT.
    socket
        .set_linger(Some(Duration::ZERO))
        .map_err(|error| ProbeFailure::local("SO_LINGER", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_probe_through_the_vip_carries_its_mark_and_a_ttl_of_one() {
        let options = Options {
            mark: Some(0x7864_0007),
            interface: Some("lo"),
            on_link: true,
        };
        let v4 = socket("192.0.2.10:80".parse().unwrap(), options)
            .expect("SO_MARK needs CAP_NET_ADMIN: run the tests as root");
        assert_eq!(SockRef::from(&v4).mark().unwrap(), 0x7864_0007);
        assert_eq!(SockRef::from(&v4).ttl_v4().unwrap(), 1);
        assert_eq!(
            SockRef::from(&v4).device().unwrap().as_deref(),
            Some(&b"lo"[..])
        );
        let v6 = socket("[2001:db8::10]:80".parse().unwrap(), options).unwrap();
        assert_eq!(SockRef::from(&v6).unicast_hops_v6().unwrap(), 1);
    }

    #[tokio::test]
    async fn any_other_probe_has_neither() {
        let options = Options {
            mark: None,
            interface: None,
            on_link: false,
        };
        let plain = socket("192.0.2.21:80".parse().unwrap(), options).unwrap();
        assert_eq!(SockRef::from(&plain).mark().unwrap(), 0);
        assert!(SockRef::from(&plain).ttl_v4().unwrap() > 1);
        assert_eq!(SockRef::from(&plain).device().unwrap(), None);
    }
}
