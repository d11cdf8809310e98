//! The packets of the simulation's clients.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::wire::mac_bytes;

use super::{super::samples::OWN_MAC, HOT_SERVICE, SERVICES, SOURCES, World};

/// The first service is IPv4, the second IPv6.
pub(super) fn vip(service: usize) -> IpAddr {
    match service {
        0 => IpAddr::from([192, 0, 2, 10]),
        _ => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x11]),
    }
}

/// A source of the second service, in the family of its VIP.
pub(super) fn source_of(source: usize) -> IpAddr {
    let source = (source % SOURCES) as u16;
    match vip(HOT_SERVICE) {
        IpAddr::V4(_) => {
            Ipv4Addr::from_bits(Ipv4Addr::new(203, 0, 200, 0).to_bits() + u32::from(source)).into()
        }
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 3, source, 0, 0, 0, 1).into(),
    }
}

/// Its client's address, in the family of its service. Clients of the second service share a few.
pub(super) fn client(flow: usize) -> IpAddr {
    if World::service_of(flow) == HOT_SERVICE {
        return source_of(flow / SERVICES);
    }
    match vip(World::service_of(flow)) {
        IpAddr::V4(_) => {
            Ipv4Addr::from_bits(Ipv4Addr::new(203, 0, 113, 0).to_bits() + flow as u32).into()
        }
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 2, flow as u16, 0, 0, 0, 1).into(),
    }
}

pub(super) fn ports(flow: usize) -> u32 {
    (20_000 + flow as u32) << 16 | 80
}

/// A TCP segment without payload.
pub(super) fn frame(flow: usize, flags: u8) -> Vec<u8> {
    let mut frame = mac_bytes(OWN_MAC).to_vec();
    frame.extend([2, 9, 9, 9, 9, 9]);
    match (client(flow), vip(World::service_of(flow))) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => {
            frame.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
            frame.extend(client.octets());
            frame.extend(vip.octets());
        }
        (IpAddr::V6(client), IpAddr::V6(vip)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
            frame.extend(client.octets());
            frame.extend(vip.octets());
        }
        families => unreachable!("{families:?}"),
    }
    frame.extend(ports(flow).to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}
