//! The specification of the data path, case by case.

mod addressed;
mod arp;
mod cut;
mod features;
mod fragments;
mod icmp;
mod icmp6;
mod ipv4;
mod ipv6;
mod neighbours;
mod pick;
mod services;
mod track;
mod transition;
mod vlan;

use std::net::IpAddr;

use lb_common::{
    abi::Port,
    features::Features,
    pick::{Affinity, Slot},
    service::Track,
    wire::{PROTO_TCP, PROTO_UDP, mac_word},
};

use super::{
    case::Case,
    fixture::{Fixture, Ports, Service, Setup},
    network::{
        CLUSTER_MAC, DIRECTOR_MAC, EGRESS_MAC, EGRESS_PORT, EGRESS_VLAN, OWN_PORT,
        TAGGED_EGRESS_PORT, TAGGED_PORT, VIP, VIP_ANY, VIP6, VIP6_ANY, VLAN,
    },
};

/// Every case.
#[must_use]
pub fn all() -> Vec<Case> {
    [
        services::cases(),
        addressed::cases(),
        arp::cases(),
        ipv4::cases(),
        icmp::cases(),
        ipv6::cases(),
        icmp6::cases(),
        neighbours::cases(),
        vlan::cases(),
        fragments::cases(),
        cut::cases(),
        pick::cases(),
        transition::cases(),
        track::cases(),
        features::cases(),
    ]
    .concat()
}

/// The id of the service `web`.
pub const WEB: u16 = 1;
/// The id of the service `dns`.
pub const DNS: u16 = 2;
/// The id of the service `both`.
pub const BOTH: u16 = 5;
/// The port of the service `both`.
pub const BOTH_PORT: u16 = 8443;

/// Five services on two VIPs, and seven backends of which the fifth is behind the other interface, [`TAGGED`] behind a VLAN of
/// the interface that packets come in on, [`TAGGED_EGRESS`] behind a VLAN of the other one:
///
/// | service | VIP, ports | every slot names |
/// | --- | --- | --- |
/// | 1 `web` | `VIP` tcp 80, 443 | backend 1 |
/// | 2 `dns` | `VIP` udp 53 | backend 2 |
/// | 3 `any` | `VIP_ANY` tcp, any port | backend 3 |
/// | 4 `secure` | `VIP_ANY` tcp 443 | backend 4 |
/// | 5 `both` | `VIP` tcp and udp 8443 | backend 4 |
#[must_use]
pub fn town() -> Fixture {
    town_at(VIP.into(), VIP_ANY.into(), Affinity::NONE_IPV4)
}

/// The same on the IPv6 VIPs.
#[must_use]
pub fn town6() -> Fixture {
    town_at(VIP6.into(), VIP6_ANY.into(), Affinity::NONE_IPV6)
}

fn town_at(vip: IpAddr, vip_any: IpAddr, affinity: Affinity) -> Fixture {
    let service = |id, vip, protocols: &[u8], ports, backend| Service {
        id,
        vip,
        protocols: protocols.to_vec(),
        ports,
        affinity,
        slots: vec![Slot::settled(backend); 16],
        misplaced: None,
        track: Track::Changes,
        clients: false,
        fragments: false,
    };
    let list = |ports: &[u16]| Ports::List(ports.to_vec());
    let mut fixture = Fixture::default()
        .service(service(WEB, vip, &[PROTO_TCP], list(&[80, 443]), 1))
        .service(service(DNS, vip, &[PROTO_UDP], list(&[53]), 2))
        .service(service(3, vip_any, &[PROTO_TCP], Ports::Any, 3))
        .service(service(4, vip_any, &[PROTO_TCP], list(&[443]), 4))
        .service(service(
            BOTH,
            vip,
            &[PROTO_TCP, PROTO_UDP],
            list(&[BOTH_PORT]),
            4,
        ));
    for number in 1..=4 {
        fixture = fixture.backend(number, OWN_PORT);
    }
    // Any interface that is always there does: nothing is really sent.
    let port = |mac, vlan, device| Port {
        mac: mac_word(mac),
        ifindex: 1,
        vlan,
        device,
    };
    fixture.ports = vec![
        (EGRESS_PORT, port(EGRESS_MAC, 0, EGRESS_PORT)),
        (TAGGED_PORT, port(DIRECTOR_MAC, VLAN, OWN_PORT)),
        (
            TAGGED_EGRESS_PORT,
            port(EGRESS_MAC, EGRESS_VLAN, EGRESS_PORT),
        ),
    ];
    fixture
        .backend(5, EGRESS_PORT)
        .backend(TAGGED, TAGGED_PORT)
        .backend(TAGGED_EGRESS, TAGGED_EGRESS_PORT)
}

/// The backend behind a VLAN of the interface that packets come in on.
pub const TAGGED: u16 = 9;
/// The backend behind a VLAN of the other interface.
pub const TAGGED_EGRESS: u16 = 10;

/// The same, where packets for unserved ports go to the host.
#[must_use]
pub fn lenient_town() -> Fixture {
    lenient(town())
}

/// A fixture where packets for unserved ports go to the host.
#[must_use]
pub fn lenient(mut fixture: Fixture) -> Fixture {
    fixture.setup.unserved_pass = true;
    fixture
}

/// A fixture on a node of an NLB cluster: `mode = "pick"`.
#[must_use]
pub fn clustered(fixture: Fixture) -> Fixture {
    Fixture {
        setup: Setup {
            features: Features::ALL,
            cluster_mac: CLUSTER_MAC,
            ..fixture.setup
        },
        ..fixture
    }
}

/// Maps as they are before the controller has written anything.
#[must_use]
pub fn blank() -> Fixture {
    Fixture {
        blank: true,
        ..Fixture::default()
    }
}
