//! The services of the simulation, and whose flow is whose: who speaks what, where, and what is promised to it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use lb_common::{
    abi::{InfoTrack, PROTO_TCP_UDP},
    wire::{PROTO_TCP, PROTO_UDP},
};

use super::{FLOWS, HOT_SERVICE, SERVICES, SOURCES};

/// What the clients of a service speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Traffic {
    Tcp,
    /// HTTP/3 alone.
    Quic,
    /// HTTP/3 beside HTTP/2, in a service of both protocols: each client has a flow of either from the same port.
    QuicAndTcp,
    /// Datagrams without a beginning or an end.
    Udp,
}

/// What the clients of each service speak.
pub(super) type Traffics = [Traffic; SERVICES];

/// As long as nothing else is asked for.
pub(super) const USUAL: Traffics = [
    Traffic::Tcp,
    Traffic::Tcp,
    Traffic::QuicAndTcp,
    Traffic::Udp,
];

impl Traffic {
    /// As the configuration's `protocol`.
    pub(super) const fn protocol(self) -> u8 {
        match self {
            Self::Tcp => PROTO_TCP,
            Self::Quic | Self::Udp => PROTO_UDP,
            Self::QuicAndTcp => PROTO_TCP_UDP,
        }
    }

    /// The `track` that such a service begins with.
    pub(super) const fn first_track(self) -> InfoTrack {
        match self {
            Self::Tcp => InfoTrack::Changes,
            Self::Quic | Self::QuicAndTcp => InfoTrack::Quic,
            Self::Udp => InfoTrack::Always,
        }
    }

    /// The next best `track` that somebody would give such a service.
    pub(super) fn fitting(self, track: InfoTrack) -> InfoTrack {
        match (self, track) {
            (Self::Udp, InfoTrack::Quic) => InfoTrack::Always,
            _ => track,
        }
    }
}

/// What docs/configuration.md promises to a flow, by its protocol and its service's `track`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promise {
    /// It stays, and its packets tell which of them open it: TCP, QUIC.
    Opened,
    /// It stays from its first packet on: UDP that is always recorded.
    Recorded,
    /// It goes where a new flow of its client would go, with every packet.
    Nothing,
}

/// A flow's protocol, and who speaks to whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    pub(super) client: IpAddr,
    pub(super) vip: IpAddr,
    /// The client's port in the upper half, the service's in the lower one.
    pub(super) ports: u32,
    pub(super) udp: bool,
}

/// Half of the flows are TCP's, in turns of the first service and of the second; the other half are the others'.
const FIRST_HALF: usize = FLOWS / 2;
/// So many flows of the last service have one client.
const SHARE: usize = 4;

pub(super) const fn service_of(flow: usize) -> usize {
    flow % 2 + if flow < FIRST_HALF { 0 } else { 2 }
}

pub(super) fn idle(service: usize) -> Duration {
    Duration::from_secs([10, 3, 8, 4][service])
}

/// Every other service is IPv6. There are two on each VIP.
pub(super) fn vip(service: usize) -> IpAddr {
    match service % 2 {
        0 => IpAddr::from([192, 0, 2, 10]),
        _ => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x11]),
    }
}

pub(super) const fn port(service: usize) -> u16 {
    if service < 2 { 80 } else { 443 }
}

/// A source of the second service.
pub(super) fn source_of(source: usize) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 3, (source % SOURCES) as u16, 0, 0, 0, 1)
}

/// Clients of the second service share a few addresses, those of the last one one each.
pub(super) fn path(traffics: &Traffics, flow: usize) -> Path {
    let service = service_of(flow);
    // Of its service's flows.
    let index = flow % FIRST_HALF / 2;
    let (number, udp) = match traffics[service] {
        Traffic::Tcp => (flow, false),
        Traffic::Quic | Traffic::Udp => (flow, true),
        // Two in a row are one client's.
        Traffic::QuicAndTcp => (flow - index % 2 * 2, index.is_multiple_of(2)),
    };
    let client = match service {
        HOT_SERVICE => source_of(index).into(),
        3 => Ipv6Addr::new(0x2001, 0xdb8, 2, (index / SHARE) as u16, 0, 0, 0, 1).into(),
        _ => {
            let first = Ipv4Addr::new(203, 0, 113, 0).to_bits();
            Ipv4Addr::from_bits(first + number as u32).into()
        }
    };
    Path {
        client,
        vip: vip(service),
        ports: (20_000 + number as u32) << 16 | u32::from(port(service)),
        udp,
    }
}
