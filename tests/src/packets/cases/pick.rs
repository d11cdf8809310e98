//! From the source to the backend: affinity, slot, backend, interface.

use std::net::{Ipv4Addr, Ipv6Addr};

use lb_common::{
    abi::MAX_PORTS,
    pick::{Affinity, Backend, Slot},
    verdict::Verdict,
};

use super::{town, town6};
use crate::packets::{
    case::{Case, case},
    fixture::{CAPACITY, Fixture},
    frame::{syn, tcp, tcp6, udp},
    network::{CLIENT, CLIENT6, NO_PORT},
};

pub(super) fn cases() -> Vec<Case> {
    [affinity(), affinity6(), slots(), backends()].concat()
}

/// A town whose tables name backends 1 to 4 in turn.
fn spread(affinity: Affinity) -> Fixture {
    let mut fixture = town().affinity(affinity);
    for service in &mut fixture.services {
        service.slots = (0..16).map(|slot| Slot::settled(slot % 4 + 1)).collect();
    }
    fixture
}

/// Which backend a source picks is a contract between directors: two of different versions must pick alike, or a router
/// that changes its mind breaks connections. So the picks stand here as they are.
fn affinity() -> Vec<Case> {
    let [a, b] = [CLIENT, Ipv4Addr::new(198, 51, 100, 200)];
    let beyond = Ipv4Addr::new(198, 51, 101, 7);
    let mut cases = Vec::new();
    for (name, affinity, picks) in [
        ("none", Affinity::NONE_IPV4, PICKS_NONE),
        ("client", Affinity::CLIENT_IPV4, PICKS_CLIENT),
        ("network", Affinity::NETWORK_IPV4, PICKS_NETWORK),
    ] {
        let town = spread(affinity);
        let sources = [
            (a, 40_000, 80),
            (a, 40_001, 80),
            (a, 40_002, 80),
            (a, 40_000, 443),
            (b, 40_000, 80),
            (b, 40_001, 80),
            (beyond, 40_000, 80),
            (beyond, 40_001, 443),
        ];
        for ((client, port, to), backend) in sources.into_iter().zip(picks) {
            let what = format!("affinity {name}: {client}:{port} to port {to}");
            let frame = tcp().from(client, port).to_port(to).build();
            cases.push(case(what, &town, frame).forwarded(backend));
        }
    }
    cases
}

/// Likewise of IPv6.
fn affinity6() -> Vec<Case> {
    let [a, b] = [
        CLIENT6,
        Ipv6Addr::new(0x2001, 0xdb8, 0xc11e, 0x47, 0, 0, 0, 8),
    ];
    let same_site = Ipv6Addr::new(0x2001, 0xdb8, 0xc11e, 0x99, 0, 0, 0, 7);
    let beyond = Ipv6Addr::new(0x2001, 0xdb8, 0xc11e, 0x147, 0, 0, 0, 7);
    let mut cases = Vec::new();
    for (name, affinity, picks) in [
        ("none", Affinity::NONE_IPV6, PICKS6_NONE),
        ("client", Affinity::CLIENT_IPV6, PICKS6_CLIENT),
        ("network", Affinity::NETWORK_IPV6, PICKS6_NETWORK),
    ] {
        let mut town = town6().affinity(affinity);
        for service in &mut town.services {
            service.slots = (0..16).map(|slot| Slot::settled(slot % 4 + 1)).collect();
        }
        let sources = [
            (a, 40_000, 80),
            (a, 40_001, 80),
            (a, 40_000, 443),
            (b, 40_000, 80),
            (b, 40_001, 80),
            (same_site, 40_000, 80),
            (same_site, 40_001, 443),
            (beyond, 40_000, 80),
        ];
        for ((client, port, to), backend) in sources.into_iter().zip(picks) {
            let what = format!("affinity {name}: [{client}]:{port} to port {to}");
            let frame = tcp6().from(client, port).to_port(to).build();
            cases.push(case(what, &town, frame).forwarded(backend));
        }
    }
    cases
}

/// Every flow for itself.
const PICKS6_NONE: [u16; 8] = [3, 2, 3, 1, 3, 1, 2, 3];
/// All flows of a client together.
const PICKS6_CLIENT: [u16; 8] = [3, 3, 3, 4, 4, 2, 2, 2];
/// All clients of a /56 together.
const PICKS6_NETWORK: [u16; 8] = [4, 4, 4, 4, 4, 4, 4, 3];

/// Every flow for itself.
const PICKS_NONE: [u16; 8] = [3, 1, 2, 2, 1, 2, 1, 3];
/// All flows of a client together, to whichever port of the service.
const PICKS_CLIENT: [u16; 8] = [3, 3, 3, 3, 1, 1, 3, 3];
/// All clients of a /24 together.
const PICKS_NETWORK: [u16; 8] = [4, 4, 4, 4, 4, 4, 2, 2];

fn slots() -> Vec<Case> {
    let all = |number| town().every_slot(Slot::settled(number));
    let beyond = u16::try_from(CAPACITY.backends).expect("few");
    let mut misplaced = town();
    for service in &mut misplaced.services {
        service.misplaced = Some(CAPACITY.slots);
    }
    let mut overhanging = town();
    overhanging.services.truncate(1);
    for service in &mut overhanging.services {
        service.slots = vec![Slot::settled(1); 512];
        service.misplaced = Some(CAPACITY.slots - 1);
    }
    let area = |backend| all(1).areas(&[backend; 4]);
    vec![
        case(
            "an area that a backend has alone is not looked at slot by slot",
            &area(2),
            tcp().build(),
        )
        .forwarded(2),
        case("nor for UDP", &area(2), udp().build()).forwarded(2),
        case("nor for IPv6", &town6().areas(&[2; 4]), tcp6().build()).forwarded(2),
        case("an area that several have is", &area(0), tcp().build()).forwarded(1),
        case("nobody takes new flows", &all(0), syn().build()).ends(Verdict::NoBackend),
        case(
            "nor old ones, where the slot is settled",
            &all(0),
            tcp().build(),
        )
        .ends(Verdict::NoBackend),
        case("nor UDP", &all(0), udp().build()).ends(Verdict::NoBackend),
        case(
            "the first backend number that nobody can have",
            &all(beyond),
            tcp().build(),
        )
        .ends(Verdict::NoNeighbour),
        case("the largest backend number", &all(u16::MAX), udp().build())
            .ends(Verdict::NoNeighbour),
        case(
            "the last number, which names nobody yet",
            &all(beyond - 1),
            tcp().build(),
        )
        .ends(Verdict::NoNeighbour),
        case("a table beyond the slots", &misplaced, tcp().build()).ends(Verdict::Inconsistent),
        case(
            "a table that begins in the last slot",
            &overhanging,
            tcp().build(),
        )
        .ends(Verdict::Inconsistent),
    ]
}

fn backends() -> Vec<Case> {
    let all = |fixture: Fixture, number| fixture.every_slot(Slot::settled(number));
    let beyond = u16::try_from(MAX_PORTS).expect("few");
    let unplugged = town()
        .backend(6, NO_PORT)
        .backend(7, beyond)
        .backend(8, Backend::LOCAL_PORT - 1);
    let local = town().backend(11, Backend::LOCAL_PORT);
    let portless = Fixture {
        ports: Vec::new(),
        ..town()
    };
    vec![
        case(
            "a backend behind the other interface",
            &all(town(), 5),
            tcp().build(),
        )
        .redirected(5),
        case(
            "UDP to a backend behind the other interface",
            &all(town(), 5),
            udp().build(),
        )
        .redirected(5),
        case(
            "behind the other interface, with options and padding",
            &all(town(), 5),
            udp().option_words(1).build().padded(200),
        )
        .redirected(5),
        case(
            "a backend behind an interface that is not there",
            &all(unplugged.clone(), 6),
            tcp().build(),
        )
        .ends(Verdict::Inconsistent),
        case(
            "behind a port beyond the map",
            &all(unplugged.clone(), 7),
            tcp().build(),
        )
        .ends(Verdict::Inconsistent),
        case("behind the largest port", &all(unplugged, 8), tcp().build())
            .ends(Verdict::Inconsistent),
        case(
            "a backend that is this very host",
            &all(local.clone(), 11),
            tcp().build(),
        )
        .local(11),
        case(
            "UDP for this very host",
            &all(local.clone(), 11),
            udp().build(),
        )
        .local(11),
        case(
            "IPv6 for this very host",
            &all(town6().backend(11, Backend::LOCAL_PORT), 11),
            tcp6().build(),
        )
        .local(11),
        case(
            "this host needs no MAC address of its own there",
            &all(local.without_mac(11), 11),
            syn().build(),
        )
        .local(11),
        case(
            "behind an interface that the controller has not written yet",
            &all(portless.clone(), 5),
            tcp().build(),
        )
        .ends(Verdict::Inconsistent),
        case(
            "the interface it came in on needs no entry",
            &portless,
            tcp().build(),
        )
        .forwarded(1),
        case(
            "a backend without a MAC address",
            &town().without_mac(1),
            tcp().build(),
        )
        .ends(Verdict::NoNeighbour),
        case(
            "a backend without a MAC address behind the other interface",
            &all(town().without_mac(5), 5),
            tcp().build(),
        )
        .ends(Verdict::NoNeighbour),
        case(
            "whom a settled slot names gets the packet: taking out who failed is the controller's",
            &town().failed(1),
            tcp().build(),
        )
        .forwarded(1),
    ]
}
