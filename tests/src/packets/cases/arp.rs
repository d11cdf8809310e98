//! Who answers for a VIP.

use std::net::Ipv4Addr;

use lb_common::{verdict::Verdict, wire::ETH_LEN};

use super::{blank, town};
use crate::packets::{
    case::{Case, case},
    frame::who_has,
    network::{
        BROADCAST_MAC, DIRECTOR_MAC, MULTICAST_MAC, NEIGHBOUR, NEIGHBOUR_MAC, NO_VIP, ROUTER_MAC,
        VIP, VIP_ANY,
    },
};

pub(super) fn cases() -> Vec<Case> {
    let town = town();
    let request = || who_has(VIP, NEIGHBOUR);
    let answer = || request().answer(DIRECTOR_MAC).build();
    let mut cases = vec![
        case(
            "a request for a VIP is answered with this interface's MAC",
            &town,
            request().build(),
        )
        .answered(answer()),
        case("for every VIP", &town, who_has(VIP_ANY, NEIGHBOUR).build())
            .answered(who_has(VIP_ANY, NEIGHBOUR).answer(DIRECTOR_MAC).build()),
        case(
            "a neighbour that asks again asks this host alone",
            &town,
            request().to_mac(DIRECTOR_MAC).build(),
        )
        .answered(answer()),
        case(
            "a request to a group of hosts is answered",
            &town,
            request().to_mac(MULTICAST_MAC).build(),
        )
        .answered(answer()),
        case(
            "a request sent to another host is that host's to answer",
            &town,
            request().to_mac(NEIGHBOUR_MAC).build(),
        )
        .ends(Verdict::ArpOther),
        case("padding stays", &town, request().build().padded(60)).answered(answer().padded(60)),
        case(
            "the answer goes to the sender that the request names",
            &town,
            request().build().with(6, &ROUTER_MAC),
        )
        .answered(answer()),
        case(
            "a probe learns that the VIP is taken (RFC 5227 section 2.1.1)",
            &town,
            who_has(VIP, Ipv4Addr::UNSPECIFIED).build(),
        )
        .answered(
            who_has(VIP, Ipv4Addr::UNSPECIFIED)
                .answer(DIRECTOR_MAC)
                .build(),
        ),
        case(
            "an announcement of a VIP is left to the host",
            &town,
            who_has(VIP, VIP).build(),
        )
        .ends(Verdict::ArpOther),
        case(
            "a gratuitous reply for a VIP as well",
            &town,
            who_has(VIP, VIP)
                .answer(NEIGHBOUR_MAC)
                .to_mac(BROADCAST_MAC)
                .build(),
        )
        .ends(Verdict::ArpOther),
        case(
            "a reply is no request",
            &town,
            who_has(NEIGHBOUR, VIP)
                .answer(NEIGHBOUR_MAC)
                .to_mac(DIRECTOR_MAC)
                .build(),
        )
        .ends(Verdict::ArpOther),
        case(
            "a VIP may ask for another VIP",
            &town,
            who_has(VIP, VIP_ANY).build(),
        )
        .answered(who_has(VIP, VIP_ANY).answer(DIRECTOR_MAC).build()),
        case(
            "a request for another address is the host's",
            &town,
            who_has(NO_VIP, NEIGHBOUR).build(),
        )
        .ends(Verdict::ArpOther),
        case(
            "so is a probe for it",
            &town,
            who_has(NO_VIP, Ipv4Addr::UNSPECIFIED).build(),
        )
        .ends(Verdict::ArpOther),
        case(
            "a request by a VIP for another address is the host's",
            &town,
            who_has(NEIGHBOUR, VIP).build(),
        )
        .ends(Verdict::ArpOther),
        case(
            "nobody answers to the broadcast address",
            &town,
            request().from_mac(BROADCAST_MAC).build(),
        )
        .ends(Verdict::ArpOther),
        case(
            "nor to a multicast address",
            &town,
            request().from_mac(MULTICAST_MAC).build(),
        )
        .ends(Verdict::ArpOther),
        case(
            "before the controller has written anything there is no VIP",
            &blank(),
            request().build(),
        )
        .ends(Verdict::ArpOther),
    ];
    for (what, offset, bytes) in [
        ("hardware other than Ethernet", 0, [0, 6]),
        ("a protocol other than IPv4", 2, [0x86, 0xdd]),
        ("a hardware address of 8 bytes", 4, [8, 4]),
        ("a protocol address of 16 bytes", 4, [6, 16]),
        ("operation 0", 6, [0, 0]),
        ("operation 3, reverse request", 6, [0, 3]),
        (
            "an operation whose low byte alone is a request's",
            6,
            [1, 1],
        ),
    ] {
        let frame = request().build().with(ETH_LEN + offset, &bytes);
        cases.push(
            case(format!("{what} is left to the host"), &town, frame).ends(Verdict::ArpOther),
        );
    }
    cases
}
