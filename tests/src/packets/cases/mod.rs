//! The specification of the data path, case by case.

mod addressed;
mod arp;
mod cut;
mod icmp;
mod ipv4;
mod pick;
mod services;
mod transition;

use lb_common::{
    abi::Port,
    pick::{Affinity, Slot},
    wire::{PROTO_TCP, PROTO_UDP, mac_word},
};

use super::{
    case::Case,
    fixture::{Fixture, Ports, Service},
    network::{EGRESS_MAC, EGRESS_PORT, OWN_PORT, VIP, VIP_ANY},
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
        cut::cases(),
        pick::cases(),
        transition::cases(),
    ]
    .concat()
}

/// The id of the service `web`.
pub const WEB: u16 = 1;

/// Four services on two VIPs, and five backends of which the fifth is behind the other interface:
///
/// | service | VIP, ports | every slot names |
/// | --- | --- | --- |
/// | 1 `web` | `VIP` tcp 80, 443 | backend 1 |
/// | 2 `dns` | `VIP` udp 53 | backend 2 |
/// | 3 `any` | `VIP_ANY` tcp, any port | backend 3 |
/// | 4 `secure` | `VIP_ANY` tcp 443 | backend 4 |
#[must_use]
pub fn town() -> Fixture {
    let service = |id, vip, protocol, ports| Service {
        id,
        vip,
        protocol,
        ports,
        affinity: Affinity::NONE_IPV4,
        slots: vec![Slot::settled(id); 16],
        misplaced: None,
    };
    let mut fixture = Fixture::default()
        .service(service(WEB, VIP, PROTO_TCP, Ports::List(vec![80, 443])))
        .service(service(2, VIP, PROTO_UDP, Ports::List(vec![53])))
        .service(service(3, VIP_ANY, PROTO_TCP, Ports::Any))
        .service(service(4, VIP_ANY, PROTO_TCP, Ports::List(vec![443])));
    for number in 1..=4 {
        fixture = fixture.backend(number, OWN_PORT);
    }
    // Any interface that is always there does: nothing is really sent.
    let egress = Port {
        mac: mac_word(EGRESS_MAC),
        ifindex: 1,
        vlan: 0,
        device: EGRESS_PORT,
    };
    fixture.ports.push((EGRESS_PORT, egress));
    fixture.backend(5, EGRESS_PORT)
}

/// The same, where packets for unserved ports go to the host.
#[must_use]
pub fn lenient_town() -> Fixture {
    Fixture {
        unserved_pass: true,
        ..town()
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
