//! Which packets belong to a service, and what becomes of those that do not.

use std::net::Ipv4Addr;

use lb_common::verdict::Verdict;

use super::{BOTH_PORT, blank, lenient_town, town};
use crate::packets::{
    case::{Case, case},
    fixture::Fixture,
    frame::{icmp, ping, syn, tcp, udp},
    network::{CLIENT, NO_VIP, VIP, VIP_ANY},
};

pub(super) fn cases() -> Vec<Case> {
    let town = town();
    let lenient = lenient_town();
    let mut cases = vec![
        case(
            "TCP to a port of a service goes to the slot's backend",
            &town,
            tcp().build(),
        )
        .forwarded(1),
        case(
            "so does the SYN that opens the connection",
            &town,
            syn().build(),
        )
        .forwarded(1),
        case(
            "all ports of a service share its table",
            &town,
            tcp().to_port(443).build(),
        )
        .forwarded(1),
        case(
            "UDP to a port of a service goes to the slot's backend",
            &town,
            udp().build(),
        )
        .forwarded(2),
        case(
            "the client's port may be 0",
            &town,
            tcp().from(CLIENT, 0).build(),
        )
        .forwarded(1),
        case(
            "a service of both protocols takes TCP",
            &town,
            tcp().to_port(BOTH_PORT).build(),
        )
        .forwarded(4),
        case("and UDP", &town, udp().to_port(BOTH_PORT).build()).forwarded(4),
        case(
            "a port that both protocols have is one of its own VIP",
            &town,
            udp().to(VIP_ANY, BOTH_PORT).build(),
        )
        .ends(Verdict::Unserved),
        case(
            "a port that no service has is dropped",
            &town,
            tcp().to_port(81).build(),
        )
        .ends(Verdict::Unserved),
        case(
            "UDP to a port served by TCP is dropped",
            &town,
            udp().to_port(80).build(),
        )
        .ends(Verdict::Unserved),
        case(
            "TCP to a port served by UDP is dropped",
            &town,
            tcp().to_port(53).build(),
        )
        .ends(Verdict::Unserved),
        case("port 0 is nobody's", &town, tcp().to_port(0).build()).ends(Verdict::Unserved),
        case(
            "a single port goes before `any`",
            &town,
            tcp().to(VIP_ANY, 443).build(),
        )
        .forwarded(4),
        case(
            "port 0 is not among `any`",
            &town,
            tcp().to(VIP_ANY, 0).build(),
        )
        .ends(Verdict::Unserved),
        case(
            "`any` is of one protocol",
            &town,
            udp().to(VIP_ANY, 53).build(),
        )
        .ends(Verdict::Unserved),
        case("`any` is of one VIP", &town, tcp().to(VIP, 8080).build()).ends(Verdict::Unserved),
        case(
            "with `unserved = \"pass\"` the host gets it",
            &lenient,
            tcp().to_port(81).build(),
        )
        .ends(Verdict::UnservedPassed),
        case("likewise UDP", &lenient, udp().to_port(80).build()).ends(Verdict::UnservedPassed),
        case("likewise port 0", &lenient, tcp().to_port(0).build()).ends(Verdict::UnservedPassed),
        case(
            "likewise port 0 beside `any`",
            &lenient,
            tcp().to(VIP_ANY, 0).build(),
        )
        .ends(Verdict::UnservedPassed),
        case(
            "`unserved = \"pass\"` changes nothing for a served port",
            &lenient,
            tcp().build(),
        )
        .forwarded(1),
        case(
            "nor for a protocol that no service can have",
            &lenient,
            icmp(13, 0, &[0; 12]).build(),
        )
        .ends(Verdict::UnsupportedProtocol),
        case(
            "UDP to an address that is no VIP is the host's",
            &town,
            udp().to(NO_VIP, 53).build(),
        )
        .ends(Verdict::NotOurs),
        case(
            "before the controller has written anything, all is the host's",
            &blank(),
            tcp().build(),
        )
        .ends(Verdict::NotOurs),
        case("UDP as well", &blank(), udp().build()).ends(Verdict::NotOurs),
        case(
            "and what could not be balanced anyway",
            &blank(),
            ping().build(),
        )
        .ends(Verdict::NotOurs),
    ];
    cases.extend([1, 80, 442, 444, 8080, 65535].map(|port| {
        let frame = tcp().to(VIP_ANY, port).build();
        case(format!("port {port} is one of `any`"), &town, frame).forwarded(3)
    }));
    // Nobody can be answered there (RFC 1122 section 3.2.1.3); from the VIP to itself is the attack called "land".
    for (who, address) in [
        ("the VIP itself", VIP),
        ("nobody", Ipv4Addr::UNSPECIFIED),
        ("this network", Ipv4Addr::new(0, 1, 2, 3)),
        ("loopback", Ipv4Addr::LOCALHOST),
        ("the end of loopback", Ipv4Addr::new(127, 255, 255, 254)),
        ("a multicast group", Ipv4Addr::new(224, 0, 0, 1)),
        ("the reserved addresses", Ipv4Addr::new(240, 0, 0, 1)),
        ("everybody", Ipv4Addr::BROADCAST),
    ] {
        cases.extend([
            case(
                format!("TCP from {who}"),
                &town,
                tcp().from(address, 80).build(),
            )
            .ends(Verdict::MartianSource),
            case(
                format!("UDP from {who}"),
                &town,
                udp().from(address, 53).build(),
            )
            .ends(Verdict::MartianSource),
            case(
                format!("from {who} to an unserved port"),
                &town,
                tcp().from(address, 80).to_port(81).build(),
            )
            .ends(Verdict::Unserved),
            case(
                format!("from {who} to no VIP: the host's"),
                &town,
                tcp().from(address, 80).to(NO_VIP, 80).build(),
            )
            .ends(Verdict::NotOurs),
        ]);
    }
    for address in [
        Ipv4Addr::new(1, 0, 0, 1),
        Ipv4Addr::new(126, 255, 255, 255),
        Ipv4Addr::new(128, 0, 0, 1),
        Ipv4Addr::new(223, 255, 255, 255),
        VIP_ANY,
    ] {
        let frame = tcp().from(address, 80).build();
        cases.push(case(format!("{address} may be a client"), &town, frame).forwarded(1));
    }
    let neighbours = [
        Ipv4Addr::new(192, 0, 2, 11),
        Ipv4Addr::new(192, 0, 3, 10),
        Ipv4Addr::new(192, 1, 2, 10),
        Ipv4Addr::new(193, 0, 2, 10),
        Ipv4Addr::new(10, 2, 0, 192),
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::BROADCAST,
        NO_VIP,
    ];
    cases.extend(neighbours.map(|address| {
        let frame = tcp().to(address, 80).build();
        case(format!("{address} is no VIP: the host's"), &town, frame).ends(Verdict::NotOurs)
    }));

    // What was served before the last change of the directory.
    let moved = Fixture {
        stale: town.services.clone(),
        services: Vec::new(),
        ..town.clone()
    };
    cases.extend([
        case(
            "a service only in the half that is not in use is none",
            &moved,
            tcp().build(),
        )
        .ends(Verdict::NotOurs),
        case("nor is its VIP one", &moved, ping().build()).ends(Verdict::NotOurs),
    ]);
    cases
}
