//! The packets of the simulation's clients.

use std::net::IpAddr;

use lb_common::wire::{
    PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, mac_bytes,
};

use super::{
    super::samples::OWN_MAC,
    services::{Path, Traffic},
};

/// What a client wants to say; only TCP has packets for all of it that others can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    Opens,
    Continues,
    Closes,
    Resets,
}

/// An Initial packet is never shorter (RFC 9000 section 14.1).
const INITIAL_LEN: usize = 1200;
/// The first byte and the version of Initial packets: version 1, version 1 with a greased fixed bit (RFC 9287), version 2
/// (RFC 9369), a draft.
const INITIALS: [[u8; 5]; 4] = [
    [0xc3, 0, 0, 0, 1],
    [0x86, 0, 0, 0, 1],
    [0xd1, 0x6b, 0x33, 0x43, 0xcf],
    [0xc0, 0xff, 0, 0, 29],
];
/// What follows: Handshake and 0-RTT packets of version 1 and 2, short headers, plain, greased, and with bytes where a long
/// header has its version.
const FOLLOWING: [[u8; 5]; 8] = [
    [0xe3, 0, 0, 0, 1],
    [0xd2, 0, 0, 0, 1],
    [0xf1, 0x6b, 0x33, 0x43, 0xcf],
    [0xe0, 0x6b, 0x33, 0x43, 0xcf],
    [0x43, 0x91, 0x1d, 0x0c, 0x7e],
    [0x5c, 0x27, 0xa4, 0x55, 0x02],
    [0x06, 0x91, 0x1d, 0x0c, 0x7e],
    [0x40, 0, 0, 0, 1],
];

/// The payload of a datagram, one of several kinds that say the same.
fn datagram(traffic: Traffic, says: Says, kind: usize) -> Vec<u8> {
    let initial = INITIALS[kind % INITIALS.len()];
    let following = FOLLOWING[kind % FOLLOWING.len()];
    let (head, length) = match (traffic, says) {
        // Whatever it looks like.
        (Traffic::Udp, _) if kind.is_multiple_of(2) => (initial, 40),
        (Traffic::Quic | Traffic::QuicAndTcp, Says::Opens) => (initial, INITIAL_LEN),
        _ => (following, 40),
    };
    let mut payload = head.to_vec();
    payload.resize(length, 0x2a);
    payload
}

/// A TCP segment without payload, or a datagram.
pub(super) fn frame(path: Path, traffic: Traffic, says: Says, kind: usize) -> Vec<u8> {
    let mut transport = path.ports.to_be_bytes().to_vec();
    if path.udp {
        let payload = datagram(traffic, says, kind);
        transport.extend((8 + payload.len() as u16).to_be_bytes());
        transport.extend([0xbe, 0xef]);
        transport.extend(payload);
    } else {
        let flags = match says {
            Says::Opens => TCP_SYN,
            Says::Continues => TCP_ACK,
            Says::Closes => TCP_ACK | TCP_FIN,
            Says::Resets => TCP_RST,
        };
        transport.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    }
    let protocol = if path.udp { PROTO_UDP } else { PROTO_TCP };
    let mut frame = ethernet(path.vip);
    frame.extend(packet(path.client, path.vip, protocol, &transport));
    frame
}

/// A router's word that a packet of the flow's server was too large for it (RFC 792, RFC 4443 section 3.2); `kind` makes two
/// routers.
pub(super) fn too_big(path: Path, kind: usize) -> Vec<u8> {
    let mut quoted = path.ports.rotate_left(16).to_be_bytes().to_vec();
    quoted.extend([0; 8]);
    let protocol = if path.udp { PROTO_UDP } else { PROTO_TCP };
    let quoted = packet(path.vip, path.client, protocol, &quoted);
    let (router, icmp, head): (IpAddr, u8, [u8; 8]) = match path.vip {
        IpAddr::V4(_) => (
            [198, 18, 0, kind as u8 % 2].into(),
            PROTO_ICMP,
            [3, 4, 0, 0, 0, 0, 5, 0],
        ),
        IpAddr::V6(_) => (
            [0x2001, 0xdb8, 9, 0, 0, 0, 0, 1 + kind as u16 % 2].into(),
            PROTO_ICMPV6,
            [2, 0, 0, 0, 0, 0, 5, 0],
        ),
    };
    let mut frame = ethernet(path.vip);
    frame.extend(packet(
        router,
        path.vip,
        icmp,
        &[&head[..], &quoted].concat(),
    ));
    frame
}

/// The header of a frame for the director, with the ethertype of this address.
fn ethernet(address: IpAddr) -> Vec<u8> {
    let mut header = mac_bytes(OWN_MAC).to_vec();
    header.extend([2, 9, 9, 9, 9, 9]);
    header.extend(if address.is_ipv4() {
        [0x08, 0x00]
    } else {
        [0x86, 0xdd]
    });
    header
}

fn packet(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u16;
    let mut packet = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend([0x45, 0]);
            packet.extend((20 + length).to_be_bytes());
            packet.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        families => unreachable!("{families:?}"),
    }
    packet.extend(payload);
    packet
}
