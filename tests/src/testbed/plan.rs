//! Who has which name, address and MAC in a testbed.
//!
//! One layer 2 segment, `10.77.0.0/16`: the director is `10.77.0.2`, the backends `10.77.1.11` and up,
//! the clients `10.77.2.1` and up. A client's many source addresses are not on the segment but behind the client
//! (`10.78.CLIENT.x`, routed to it), as if it were the router of an office: a kernel's neighbour table is shared by all
//! namespaces and holds some 1000 entries, which many addresses on the segment would overflow.
//!
//! With IPv6 each host has a second address made of the same numbers, in `fd77::/64`: 10.77.1.11 is also fd77::1:b. A client's
//! source addresses are then in `fd78:0:CLIENT::/48`, 250 to a /56.
//!
//! A router, where there is one, is 10.77.3.1, with a host `far` behind it (10.79.0.2, fd79::2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The length of the segment's prefix, in bits.
pub(super) const SEGMENT_PREFIX: u8 = 16;
/// The VIP unless the builder names another.
pub const DEFAULT_VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 100));
/// The length of the segment's IPv6 prefix, in bits.
pub(super) const SEGMENT6_PREFIX: u8 = 64;
/// The IPv6 VIP of a testbed that has one.
pub const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100));
/// The router's address, and that of its interface towards the host behind it; then that host's.
pub(super) const FAR: [[IpAddr; 2]; 2] = [
    [
        IpAddr::V4(Ipv4Addr::new(10, 79, 0, 1)),
        IpAddr::V4(Ipv4Addr::new(10, 79, 0, 2)),
    ],
    [
        IpAddr::V6(Ipv6Addr::new(0xfd79, 0, 0, 0, 0, 0, 0, 1)),
        IpAddr::V6(Ipv6Addr::new(0xfd79, 0, 0, 0, 0, 0, 0, 2)),
    ],
];
/// The name of the bridge in the switch's namespace.
pub(super) const BRIDGE: &str = "br0";
/// The name of every host's only interface.
pub const INTERFACE: &str = "eth0";
/// As many clients as the address plan has room for.
pub(super) const MAX_CLIENTS: usize = 16;
/// As many source addresses per client as the plan has room for: sixteen /24 networks of 250.
pub(super) const MAX_SOURCES: usize = 16 * 250;
/// As many backends as the plan has room for.
pub(super) const MAX_BACKENDS: usize = 240;

/// A 48-bit MAC address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::fmt::Debug for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// What a host is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sends requests to the VIP.
    Client,
    /// Runs xdp-lb.
    Director,
    /// A real server: has the VIP on its loopback and answers clients directly.
    Backend,
    /// Routes between the segment and the host behind it, over a link that takes smaller packets.
    Router,
    /// The host behind the router.
    Far,
}

/// One host of the plan.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    /// Its name, also the name of its port on the bridge: `c1`, `director`, `b1`.
    pub name: String,
    /// What it is there for.
    pub role: Role,
    /// Its address on the segment.
    pub address: IpAddr,
    /// Its IPv6 address there; used where the testbed has IPv6.
    pub address6: IpAddr,
    /// Its MAC, made from the address so that a packet dump can be read by eye.
    pub mac: Mac,
    /// The addresses it sends requests from; of a client only.
    pub sources: Vec<IpAddr>,
    /// The same of IPv6.
    pub sources6: Vec<IpAddr>,
    /// The networks behind it that the other hosts must route to it, as (address, prefix length).
    pub networks: Vec<(IpAddr, u8)>,
}

/// The hosts of a testbed: the clients, the director, the backends.
pub(super) fn hosts(clients: usize, sources: usize, backends: usize) -> Vec<Planned> {
    let mut hosts = Vec::with_capacity(clients + backends + 1);
    for client in 0..clients {
        hosts.push(Planned {
            sources: (0..sources)
                .map(|source| source_address(client, source))
                .collect(),
            sources6: (0..sources)
                .map(|source| source6_address(client, source))
                .collect(),
            networks: vec![
                (IpAddr::V4(Ipv4Addr::new(10, 78, byte(client * 16), 0)), 20),
                (
                    IpAddr::V6(Ipv6Addr::new(0xfd78, 0, word(client), 0, 0, 0, 0, 0)),
                    48,
                ),
            ],
            ..planned(
                format!("c{}", client + 1),
                Role::Client,
                [10, 77, 2, byte(client + 1)],
            )
        });
    }
    hosts.push(planned("director".into(), Role::Director, [10, 77, 0, 2]));
    for backend in 0..backends {
        hosts.push(planned(
            format!("b{}", backend + 1),
            Role::Backend,
            [10, 77, 1, byte(backend + 11)],
        ));
    }
    hosts
}

/// The router, and the host behind it.
pub(super) fn far() -> [Planned; 2] {
    let router = Planned {
        networks: vec![
            (IpAddr::V4(Ipv4Addr::new(10, 79, 0, 0)), 24),
            (IpAddr::V6(Ipv6Addr::new(0xfd79, 0, 0, 0, 0, 0, 0, 0)), 64),
        ],
        ..planned("router".into(), Role::Router, [10, 77, 3, 1])
    };
    let [[_, address], [_, address6]] = FAR;
    let far = Planned {
        address,
        address6,
        ..planned("far".into(), Role::Far, [10, 79, 0, 2])
    };
    [router, far]
}

fn planned(name: String, role: Role, address: [u8; 4]) -> Planned {
    let [a, b, c, d] = address;
    Planned {
        name,
        role,
        address: IpAddr::V4(Ipv4Addr::from(address)),
        address6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, c.into(), d.into()).into(),
        // 02: locally administered, unicast.
        mac: Mac([0x02, 0x00, a, b, c, d]),
        sources: Vec::new(),
        sources6: Vec::new(),
        networks: Vec::new(),
    }
}

/// Each client has a /20 for itself, filled one /24 after the other with host parts 1 to 250.
fn source_address(client: usize, source: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(
        10,
        78,
        byte(client * 16 + source / 250),
        byte(source % 250 + 1),
    ))
}

/// Each client has a /48 for itself, filled one /56 after the other with host parts 1 to 250.
fn source6_address(client: usize, source: usize) -> IpAddr {
    Ipv6Addr::new(
        0xfd78,
        0,
        word(client),
        word(source / 250 * 256),
        0,
        0,
        0,
        word(source % 250 + 1),
    )
    .into()
}

fn word(n: usize) -> u16 {
    u16::try_from(n).expect("the builder checks the counts against the plan's room")
}

fn byte(n: usize) -> u8 {
    u8::try_from(n).expect("the builder checks the counts against the plan's room")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_address_or_mac_is_given_twice() {
        let hosts = hosts(MAX_CLIENTS, MAX_SOURCES, MAX_BACKENDS);
        let mut addresses = HashSet::from([DEFAULT_VIP, VIP6]);
        let mut macs = HashSet::new();
        for host in &hosts {
            assert!(macs.insert(host.mac), "{} shares its MAC", host.name);
            let own = [&host.address, &host.address6];
            for address in host.sources.iter().chain(&host.sources6).chain(own) {
                assert!(
                    addresses.insert(*address),
                    "{}: {address} is given twice",
                    host.name
                );
            }
        }
        assert_eq!(
            addresses.len(),
            2 * (1 + MAX_CLIENTS * (MAX_SOURCES + 1) + 1 + MAX_BACKENDS)
        );
    }

    #[test]
    fn sources_lie_in_the_network_that_is_routed_to_their_client() {
        for host in hosts(MAX_CLIENTS, MAX_SOURCES, 1) {
            for source in &host.sources {
                let (IpAddr::V4(source), Some((IpAddr::V4(network), bits))) =
                    (source, host.networks.first())
                else {
                    panic!("{}: a source without a network", host.name);
                };
                let mask = u32::MAX << (32 - bits);
                assert_eq!(source.to_bits() & mask, network.to_bits(), "{}", host.name);
            }
        }
    }
}
