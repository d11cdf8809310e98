//! ICMP for a VIP: errors follow their flow, pings are answered, nothing else passes.

use std::net::Ipv4Addr;

use lb_common::{
    flow::{FlowName, Phase},
    pick::Slot,
    verdict::Verdict,
    wire::ETH_LEN,
};

use super::{WEB, town};
use crate::packets::{
    case::{Case, case},
    fixture::Flow,
    frame::{Frame, Packet, icmp, ping, pong, tcp, udp},
    network::{CLIENT, CLIENT_PORT, NO_VIP, VIP, VIP_ANY},
};

/// A router between the client and us.
const ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;

pub(super) fn cases() -> Vec<Case> {
    [echo(), errors(), rubbish(), in_transition(), others()].concat()
}

/// The first `len` bytes of the IP packet in a frame: what a router quotes.
fn quoted(frame: &Frame, len: usize) -> Vec<u8> {
    frame.0[ETH_LEN..].iter().copied().take(len).collect()
}

/// A packet of the backend to the client, as a router on its way sees it.
fn reply() -> Packet {
    tcp().from(VIP, 80).to(CLIENT, CLIENT_PORT)
}

/// An error about such a packet, of which as little is quoted as RFC 792 allows.
fn error(kind: u8, code: u8, about: &Frame) -> Packet {
    icmp(kind, code, &quoted(about, 28)).from(ROUTER, 0)
}

fn echo() -> Vec<Case> {
    let town = town();
    let mut cases = vec![
        case("a ping of a VIP is answered", &town, ping().build()).echoed(pong().build()),
        case("of every VIP", &town, ping().to(VIP_ANY, 0).build())
            .echoed(pong().from(VIP_ANY, 0).build()),
        case(
            "the answer has a TTL of its own",
            &town,
            ping().ttl(2).build(),
        )
        .echoed(pong().build()),
        case(
            "and keeps the options",
            &town,
            ping().option_words(3).build(),
        )
        .echoed(pong().option_words(3).build()),
        case(
            "and the padding",
            &town,
            ping().payload(b"").build().padded(60),
        )
        .echoed(pong().payload(b"").build().padded(60)),
        case(
            "a ping of another address is the host's",
            &town,
            ping().to(NO_VIP, 0).build(),
        )
        .ends(Verdict::NotOurs),
        case(
            "a ping cut short",
            &town,
            ping().payload(b"").build().total_length(27),
        )
        .ends(Verdict::Malformed),
    ];
    for (who, address) in [
        ("nobody", Ipv4Addr::UNSPECIFIED),
        ("loopback", Ipv4Addr::LOCALHOST),
        ("a multicast group", Ipv4Addr::new(224, 0, 0, 1)),
        ("everybody", Ipv4Addr::BROADCAST),
        ("the VIP itself", VIP),
    ] {
        let frame = ping().from(address, 0).build();
        cases.push(
            case(format!("a ping from {who} is not answered"), &town, frame)
                .ends(Verdict::MartianSource),
        );
        let frame = error(UNREACHABLE, 3, &reply().build())
            .from(address, 0)
            .build();
        cases.push(
            case(format!("an error from {who} reaches nobody"), &town, frame)
                .ends(Verdict::MartianSource),
        );
        let frame = error(UNREACHABLE, 3, &reply().to(address, 80).build()).build();
        cases.push(
            case(
                format!("nor does one about a packet to {who}"),
                &town,
                frame,
            )
            .ends(Verdict::MartianSource),
        );
    }
    cases
}

fn errors() -> Vec<Case> {
    let town = town();
    let mut cases = Vec::new();
    for (what, kind, code) in [
        ("network unreachable", UNREACHABLE, 0),
        ("port unreachable", UNREACHABLE, 3),
        ("fragmentation needed", UNREACHABLE, FRAGMENTATION_NEEDED),
        ("time exceeded", TIME_EXCEEDED, 0),
        ("parameter problem", PARAMETER_PROBLEM, 0),
    ] {
        let frame = error(kind, code, &reply().build()).build();
        cases.push(case(format!("{what} goes to the flow's backend"), &town, frame).forwarded(1));
    }
    let dns = udp().from(VIP, 53).to(CLIENT, CLIENT_PORT).build();
    let any = tcp().from(VIP_ANY, 8080).to(CLIENT, CLIENT_PORT).build();
    cases.extend([
        case(
            "about UDP, to the UDP service's",
            &town,
            error(UNREACHABLE, 3, &dns).build(),
        )
        .forwarded(2),
        case(
            "about a port of `any`",
            &town,
            error(UNREACHABLE, 3, &any).to(VIP_ANY, 0).build(),
        )
        .forwarded(3),
        case(
            "with options in the error's own header",
            &town,
            error(UNREACHABLE, 3, &reply().build())
                .option_words(10)
                .build(),
        )
        .forwarded(1),
        case(
            "with options in the quoted header",
            &town,
            icmp(
                UNREACHABLE,
                3,
                &quoted(&reply().option_words(10).build(), 68),
            )
            .from(ROUTER, 0)
            .build(),
        )
        .forwarded(1),
        case(
            "about a first fragment, which names the ports",
            &town,
            error(UNREACHABLE, 4, &reply().build().fragment(0, true)).build(),
        )
        .forwarded(1),
        case(
            "to an address that is no VIP",
            &town,
            error(UNREACHABLE, 3, &reply().from(NO_VIP, 80).build())
                .to(NO_VIP, 0)
                .build(),
        )
        .ends(Verdict::NotOurs),
        case(
            "about a port that nobody serves",
            &town,
            error(UNREACHABLE, 3, &reply().from(VIP, 81).build()).build(),
        )
        .ends(Verdict::Unserved),
    ]);
    cases
}

fn rubbish() -> Vec<Case> {
    let town = town();
    let about = |frame: &Frame| error(UNREACHABLE, 3, frame).build();
    let mut cases = vec![
        case(
            "an error about a packet from another address",
            &town,
            about(&reply().from(NO_VIP, 80).build()),
        )
        .ends(Verdict::IcmpUnrelated),
        case(
            "about a packet from another VIP",
            &town,
            about(&reply().from(VIP_ANY, 80).build()),
        )
        .ends(Verdict::IcmpUnrelated),
        case(
            "about the client's own packet, the wrong way round",
            &town,
            about(&tcp().build()),
        )
        .ends(Verdict::IcmpUnrelated),
        case(
            "about a later fragment",
            &town,
            about(&reply().build().fragment(1, true)),
        )
        .ends(Verdict::IcmpUnrelated),
        case("about ICMP", &town, about(&pong().build())).ends(Verdict::IcmpUnrelated),
        case(
            "quoting IPv6 by its version",
            &town,
            about(&reply().build().version_and_header_words(6, 5)),
        )
        .ends(Verdict::IcmpUnrelated),
        case(
            "quoting a header that is too short",
            &town,
            about(&reply().build().version_and_header_words(4, 4)),
        )
        .ends(Verdict::IcmpUnrelated),
        case(
            "quoting a header that reaches beyond the message",
            &town,
            about(&reply().build().version_and_header_words(4, 15)),
        )
        .ends(Verdict::IcmpUnrelated),
        case(
            "quoting zeros",
            &town,
            icmp(UNREACHABLE, 3, &[0; 28]).build(),
        )
        .ends(Verdict::IcmpUnrelated),
    ];
    for len in 0..24 {
        let frame = icmp(UNREACHABLE, 3, &quoted(&reply().build(), len)).build();
        cases.push(
            case(format!("quoting {len} bytes is not enough"), &town, frame)
                .ends(Verdict::IcmpUnrelated),
        );
    }
    let whole = error(UNREACHABLE, 3, &reply().build()).build();
    for len in ETH_LEN + 20..whole.0.len() {
        cases.push(
            case(
                format!("an error cut to {len} bytes"),
                &town,
                whole.clone().cut(len),
            )
            .ends(Verdict::Truncated),
        );
    }
    cases
}

fn in_transition() -> Vec<Case> {
    let changing = town().every_slot(Slot::new(2, 1));
    let flow = |backend| Flow {
        key: FlowName {
            client: CLIENT.into(),
            ports: u32::from(CLIENT_PORT) << 16 | 80,
            service: WEB,
            udp: false,
        },
        backend,
        phase: Phase::Open,
    };
    let frame = || error(UNREACHABLE, FRAGMENTATION_NEEDED, &reply().build()).build();
    vec![
        case(
            "in a slot in transition, about a flow older than the change: to the previous backend, and not recorded",
            &changing,
            frame(),
        )
        .forwarded(1),
        case(
            "about a recorded flow: where it is recorded, and the record is not renewed",
            &changing.clone().flow(flow(3)),
            frame(),
        )
        .forwarded(3),
    ]
}

fn others() -> Vec<Case> {
    let town = town();
    [
        ("an echo reply", 0, 0),
        ("a source quench", 4, 0),
        ("a redirect", 5, 1),
        ("an echo request with a code", 8, 1),
        ("a router advertisement", 9, 0),
        ("a timestamp request", 13, 0),
        ("an unknown type", 255, 0),
    ]
    .into_iter()
    .map(|(what, kind, code)| {
        let frame = icmp(kind, code, &quoted(&reply().build(), 28)).build();
        case(format!("{what} reaches no backend"), &town, frame).ends(Verdict::UnsupportedProtocol)
    })
    .collect()
}
