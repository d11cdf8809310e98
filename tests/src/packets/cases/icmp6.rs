//! ICMPv6 for a VIP: errors follow their flow, pings are answered, nothing else passes.

use std::net::Ipv6Addr;

use lb_common::{
    flow::{FlowName, Phase},
    pick::Slot,
    verdict::Verdict,
    wire::{ETH_LEN, IPV6_LEN, NEXT_DESTINATION, NEXT_HOP_BY_HOP, NEXT_ROUTING},
};

use super::{WEB, town6};
use crate::packets::{
    case::{Case, case},
    fixture::Flow,
    frame::{Frame, Packet, extension, icmp6, ping, ping6, pong6, tcp6, udp6},
    network::{CLIENT_PORT, CLIENT6, NEIGHBOUR_MAC, NO_VIP6, VIP6, VIP6_ANY},
};

/// A router between the client and us.
const ROUTER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xcafe, 0, 0, 0, 0, 1);
const UNREACHABLE: u8 = 1;
const TOO_BIG: u8 = 2;

pub(super) fn cases() -> Vec<Case> {
    [echo(), errors(), rubbish(), in_transition(), others()].concat()
}

fn quoted(frame: &Frame, len: usize) -> Vec<u8> {
    frame.0[ETH_LEN..].iter().copied().take(len).collect()
}

/// A packet of the backend to the client, as a router on its way sees it.
fn reply() -> Packet {
    tcp6().from(VIP6, 80).to(CLIENT6, CLIENT_PORT)
}

/// An error about such a packet, all of which is quoted.
fn error(kind: u8, code: u8, about: &Frame) -> Packet {
    icmp6(kind, code, &about.0[ETH_LEN..]).from(ROUTER, 0)
}

fn echo() -> Vec<Case> {
    let town = town6();
    let mut cases = vec![
        case("a ping of an IPv6 VIP is answered", &town, ping6().build()).echoed(pong6().build()),
        case(
            "a ping of every IPv6 VIP",
            &town,
            ping6().to(VIP6_ANY, 0).build(),
        )
        .echoed(pong6().from(VIP6_ANY, 0).build()),
        case(
            "the answer has a hop limit of its own",
            &town,
            ping6().ttl(2).build(),
        )
        .echoed(pong6().build()),
        case(
            "and keeps the extension headers",
            &town,
            ping6().extended(NEXT_HOP_BY_HOP, extension(2)).build(),
        )
        .echoed(pong6().extended(NEXT_HOP_BY_HOP, extension(2)).build()),
        case(
            "and the padding over IPv6",
            &town,
            ping6().payload(b"").build().padded(80),
        )
        .echoed(pong6().payload(b"").build().padded(80)),
        case(
            "a ping of another IPv6 address is the host's",
            &town,
            ping6().to(NO_VIP6, 0).build(),
        )
        .ends(Verdict::NotOurs),
        case(
            "a ping of an IPv6 VIP for another host",
            &town,
            ping6().to_mac(NEIGHBOUR_MAC).build(),
        )
        .ends(Verdict::OtherHost),
        case(
            "a ping over IPv6 of seven bytes",
            &town,
            ping6().payload(b"").build().with(ETH_LEN + 4, &[0, 7]),
        )
        .ends(Verdict::Malformed),
        case(
            "a fragment of a ping over IPv6",
            &town,
            ping6().payload(&[0; 16]).fragmented(5, 0, true).build(),
        )
        .ends(Verdict::Fragment),
        case(
            "ICMP for IPv4 over IPv6 is nothing",
            &town,
            ping6().build().with(ETH_LEN + 6, &[1]),
        )
        .ends(Verdict::UnsupportedProtocol),
        case(
            "ICMPv6 over IPv4 is nothing",
            &super::town(),
            ping().build().with(ETH_LEN + 9, &[58]),
        )
        .ends(Verdict::UnsupportedProtocol),
    ];
    for (who, address) in [
        ("nobody", Ipv6Addr::UNSPECIFIED),
        ("loopback", Ipv6Addr::LOCALHOST),
        ("all nodes", Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)),
        ("the VIP itself", VIP6),
    ] {
        let frame = ping6().from(address, 0).build();
        cases.push(
            case(
                format!("a ping over IPv6 from {who} is not answered"),
                &town,
                frame,
            )
            .ends(Verdict::MartianSource),
        );
        let frame = error(UNREACHABLE, 4, &reply().build())
            .from(address, 0)
            .build();
        cases.push(
            case(
                format!("an ICMPv6 error from {who} reaches nobody"),
                &town,
                frame,
            )
            .ends(Verdict::MartianSource),
        );
        let frame = error(UNREACHABLE, 4, &reply().to(address, 80).build()).build();
        cases.push(
            case(
                format!("nor does an ICMPv6 error about a packet to {who}"),
                &town,
                frame,
            )
            .ends(Verdict::MartianSource),
        );
    }
    cases
}

fn errors() -> Vec<Case> {
    let town = town6();
    let mut cases = Vec::new();
    for (what, kind, code) in [
        ("no route", 1, 0),
        ("port unreachable", 1, 4),
        ("packet too big", TOO_BIG, 0),
        ("hop limit exceeded", 3, 0),
        ("reassembly time exceeded", 3, 1),
        ("parameter problem", 4, 1),
    ] {
        let frame = error(kind, code, &reply().build()).build();
        cases.push(
            case(
                format!("over IPv6, {what} goes to the flow's backend"),
                &town,
                frame,
            )
            .forwarded(1),
        );
    }
    let dns = udp6().from(VIP6, 53).to(CLIENT6, CLIENT_PORT).build();
    let any = tcp6().from(VIP6_ANY, 8080).to(CLIENT6, CLIENT_PORT).build();
    let with_options = reply()
        .extended(NEXT_HOP_BY_HOP, extension(1))
        .extended(NEXT_DESTINATION, extension(2))
        .build();
    cases.extend([
        case(
            "an ICMPv6 error about UDP",
            &town,
            error(UNREACHABLE, 4, &dns).build(),
        )
        .forwarded(2),
        case(
            "an ICMPv6 error about a port of `any`",
            &town,
            error(UNREACHABLE, 4, &any).to(VIP6_ANY, 0).build(),
        )
        .forwarded(3),
        case(
            "with extension headers of the error's own",
            &town,
            error(TOO_BIG, 0, &reply().build())
                .extended(NEXT_HOP_BY_HOP, extension(3))
                .build(),
        )
        .forwarded(1),
        case(
            "with extension headers in the quoted packet",
            &town,
            error(TOO_BIG, 0, &with_options).build(),
        )
        .forwarded(1),
        case(
            "with both",
            &town,
            error(TOO_BIG, 0, &with_options)
                .extended(NEXT_DESTINATION, extension(1))
                .build(),
        )
        .forwarded(1),
        case(
            "about a first fragment of IPv6",
            &town,
            error(
                TOO_BIG,
                0,
                &reply().payload(&[0; 28]).fragmented(1, 0, true).build(),
            )
            .build(),
        )
        .forwarded(1),
        case(
            "as little as names the ports is enough",
            &town,
            icmp6(TOO_BIG, 0, &quoted(&reply().build(), IPV6_LEN + 4))
                .from(ROUTER, 0)
                .build(),
        )
        .forwarded(1),
        case(
            "an ICMPv6 error to an address that is no VIP",
            &town,
            error(TOO_BIG, 0, &reply().from(NO_VIP6, 80).build())
                .to(NO_VIP6, 0)
                .build(),
        )
        .ends(Verdict::NotOurs),
        case(
            "an ICMPv6 error about a port that nobody serves",
            &town,
            error(TOO_BIG, 0, &reply().from(VIP6, 81).build()).build(),
        )
        .ends(Verdict::Unserved),
        case(
            "an ICMPv6 error for another host",
            &town,
            error(TOO_BIG, 0, &reply().build())
                .to_mac(NEIGHBOUR_MAC)
                .build(),
        )
        .ends(Verdict::OtherHost),
    ]);
    cases
}

fn rubbish() -> Vec<Case> {
    let town = town6();
    let about = |frame: &Frame| error(UNREACHABLE, 4, frame).build();
    let mut turned = extension(3);
    (turned[2], turned[3]) = (0, 2);
    let mut cases = vec![
        case(
            "an ICMPv6 error about a packet from another address",
            &town,
            about(&reply().from(NO_VIP6, 80).build()),
        )
        .ends(Verdict::IcmpUnrelated),
        case(
            "about a packet from another IPv6 VIP",
            &town,
            about(&reply().from(VIP6_ANY, 80).build()),
        )
        .ends(Verdict::IcmpUnrelated),
        case(
            "about the IPv6 client's own packet, the wrong way round",
            &town,
            about(&tcp6().build()),
        )
        .ends(Verdict::IcmpUnrelated),
        case(
            "about a later fragment of IPv6",
            &town,
            about(&reply().fragmented(1, 8, true).build()),
        )
        .ends(Verdict::IcmpUnrelated),
        case("about ICMPv6", &town, about(&pong6().build())).ends(Verdict::IcmpUnrelated),
        case(
            "quoting IPv4 by its version",
            &town,
            about(&reply().build().with(ETH_LEN, &[0x45])),
        )
        .ends(Verdict::IcmpUnrelated),
        case(
            "quoting more extension headers than are followed",
            &town,
            about(
                &(0..7)
                    .fold(reply(), |packet, _| {
                        packet.extended(NEXT_DESTINATION, extension(1))
                    })
                    .build(),
            ),
        )
        .ends(Verdict::IcmpUnrelated),
        case(
            "quoting a routing header that is not through yet",
            &town,
            about(&reply().extended(NEXT_ROUTING, turned).build()),
        )
        .ends(Verdict::IcmpUnrelated),
        case(
            "quoting an extension header that reaches beyond the message",
            &town,
            about(
                &reply()
                    .extended(NEXT_DESTINATION, extension(1))
                    .build()
                    .with(ETH_LEN + 41, &[200]),
            ),
        )
        .ends(Verdict::IcmpUnrelated),
        case(
            "quoting zeros over IPv6",
            &town,
            icmp6(UNREACHABLE, 4, &[0; 64]).build(),
        )
        .ends(Verdict::IcmpUnrelated),
    ];
    for len in 0..IPV6_LEN + 4 {
        let frame = icmp6(UNREACHABLE, 4, &quoted(&reply().build(), len)).build();
        cases.push(
            case(
                format!("quoting {len} bytes of IPv6 is not enough"),
                &town,
                frame,
            )
            .ends(Verdict::IcmpUnrelated),
        );
    }
    cases
}

fn in_transition() -> Vec<Case> {
    let changing = town6().every_slot(Slot::new(2, 1));
    let flow = |backend| Flow {
        key: FlowName {
            client: CLIENT6.into(),
            ports: u32::from(CLIENT_PORT) << 16 | 80,
            service: WEB,
            udp: false,
        },
        backend,
        phase: Phase::Open,
    };
    let frame = || error(TOO_BIG, 0, &reply().build()).build();
    vec![
        case(
            "in a slot in transition, an ICMPv6 error about an older flow: to the previous backend, and not recorded",
            &changing,
            frame(),
        )
        .forwarded(1),
        case(
            "an ICMPv6 error about a recorded flow: where it is recorded",
            &changing.clone().flow(flow(3)),
            frame(),
        )
        .forwarded(3),
        case(
            "whose backend has failed: to the current one, and the record stays as it is",
            &changing.flow(flow(3)).failed(3),
            frame(),
        )
        .forwarded(2),
    ]
}

fn others() -> Vec<Case> {
    let town = town6();
    [
        ("the reserved type 0", 0, 0),
        ("an error of an unknown type", 5, 0),
        ("a private error", 100, 0),
        ("an echo request over IPv6 with a code", 128, 1),
        ("an echo reply over IPv6", 129, 0),
        ("a listener query", 130, 0),
        ("a router solicitation", 133, 0),
        ("a router advertisement over IPv6", 134, 0),
        ("a neighbour advertisement", 136, 0),
        ("a redirect over IPv6", 137, 0),
        ("an unknown type over IPv6", 255, 0),
    ]
    .into_iter()
    .map(|(what, kind, code)| {
        let frame = icmp6(kind, code, &quoted(&reply().build(), 64)).build();
        case(format!("{what} reaches no backend"), &town, frame).ends(Verdict::UnsupportedProtocol)
    })
    .collect()
}
