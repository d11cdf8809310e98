//! The addresses of the network that all cases play in: documentation addresses (RFC 5737, RFC 3849) and locally administered MACs.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The interface that the packets come in on.
pub const DIRECTOR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// The director's other interface.
pub const EGRESS_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
/// The router that the clients' packets come from.
pub const ROUTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfe];
/// A neighbour that is neither a director nor a backend.
pub const NEIGHBOUR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x77];
/// Ethernet broadcast.
pub const BROADCAST_MAC: [u8; 6] = [0xff; 6];
/// The Ethernet multicast address of 224.0.0.1 (RFC 1112 section 6.4).
pub const MULTICAST_MAC: [u8; 6] = [0x01, 0x00, 0x5e, 0, 0, 1];

/// The VIP with services on single ports.
pub const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The VIP whose TCP is one service, whatever the port, but for port 443.
pub const VIP_ANY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 20);
/// An address beside the VIPs that is none.
pub const NO_VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);
/// The client, unless a case says otherwise.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// A host on the director's own network.
pub const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
/// The client's port.
pub const CLIENT_PORT: u16 = 40_000;

/// The MAC address of an NLB cluster: what Windows makes of [`VIP`] in unicast mode.
pub const CLUSTER_MAC: [u8; 6] = [0x02, 0xbf, 192, 0, 2, 10];

/// The IPv6 VIP with services on single ports.
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
/// The IPv6 VIP whose TCP is one service, whatever the port, but for port 443.
pub const VIP6_ANY: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x20);
/// An IPv6 address beside the VIPs that is none.
pub const NO_VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99);
/// The IPv6 client, unless a case says otherwise.
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xc11e, 0x47, 0, 0, 0, 7);
/// A host on the director's own network.
pub const NEIGHBOUR6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x77);

/// The port number of the interface that the packets come in on.
pub const OWN_PORT: u16 = 0;
/// The port number of the director's other interface.
pub const EGRESS_PORT: u16 = 1;
/// A port number that names no interface.
pub const NO_PORT: u16 = 2;
/// The port number of a VLAN on the interface that the packets come in on.
pub const TAGGED_PORT: u16 = 3;
/// The port number of a VLAN on the other interface.
pub const TAGGED_EGRESS_PORT: u16 = 4;
/// How many port numbers there are.
pub const PORTS: u16 = 5;
/// The VLAN of [`TAGGED_PORT`].
pub const VLAN: u16 = 100;
/// The VLAN of [`TAGGED_EGRESS_PORT`].
pub const EGRESS_VLAN: u16 = 200;

/// The MAC address of a backend.
#[must_use]
pub const fn backend_mac(number: u16) -> [u8; 6] {
    let [high, low] = number.to_be_bytes();
    [0x02, 0xbb, 0, 0, high, low]
}
