//! Frames cut short at every length.

use lb_common::{
    verdict::Verdict,
    wire::{
        ARP_LEN, ETH_LEN, ETHERTYPE_IPV6, NEXT_DESTINATION, NEXT_HOP_BY_HOP, PROTO_TCP, PROTO_UDP,
        TCP_LEN, VLAN_LEN,
    },
};

use super::{town, town6};
use crate::packets::{
    case::{Case, case},
    fixture::{Fixture, Fragments},
    frame::{
        Frame, UDP_HEADER, UP_TO_TRANSPORT, UP_TO_TRANSPORT6, extension, icmp, icmp6,
        link_layer_option, ping, ping6, pong, pong6, solicitation, syn, tcp, tcp6, udp, udp6,
        who_has,
    },
    network::{
        CLIENT, CLIENT_PORT, CLIENT6, DIRECTOR_MAC, NEIGHBOUR, NEIGHBOUR_MAC, NO_VIP, NO_VIP6, VIP,
        VIP6,
    },
};

pub(super) fn cases() -> Vec<Case> {
    [as_sent(), with_a_true_length(), others()].concat()
}

/// What ends before its headers do, or before the length that they state, is dropped; the whole frame is forwarded.
fn as_sent() -> Vec<Case> {
    let (town, town6) = (town(), town6());
    let piece = [b'x'; 40];
    let mut cases = Vec::new();
    for (name, frame, backend) in [
        ("TCP", tcp().payload(b"data").build(), 1),
        ("a SYN", syn().build(), 1),
        ("UDP", udp().build(), 2),
        (
            "TCP behind IP options",
            tcp().option_words(10).payload(b"data").build(),
            1,
        ),
        ("UDP behind IP options", udp().option_words(1).build(), 2),
        ("TCP over IPv6", tcp6().payload(b"data").build(), 1),
        ("UDP over IPv6", udp6().build(), 2),
        (
            "TCP behind extension headers",
            tcp6()
                .extended(NEXT_HOP_BY_HOP, extension(1))
                .extended(NEXT_DESTINATION, extension(2))
                .payload(b"data")
                .build(),
            1,
        ),
    ] {
        let town = if is_ipv6(&frame) { &town6 } else { &town };
        cases.extend(every_cut(name, town, &frame));
        cases.push(case(format!("{name}, whole"), town, frame).forwarded(backend));
    }
    for (name, frame) in [
        ("TCP behind a tag", tcp().vlan(7).payload(b"data").build()),
        (
            "TCP behind two tags",
            tcp().vlan(7).vlan(8).payload(b"data").build(),
        ),
        (
            "tagged TCP over IPv6",
            tcp6().vlan(7).payload(b"data").build(),
        ),
    ] {
        let town = if is_ipv6(&frame) { &town6 } else { &town };
        cases.extend(every_cut(name, town, &frame));
        let popped = frame.clone().popped();
        cases.push(case(format!("{name}, whole"), town, frame).forwarded_as(1, popped));
    }
    for (name, packet, next, backend) in [
        ("a first fragment", tcp().payload(&[b'x'; 28]), false, 1),
        (
            "a first fragment of IPv6",
            tcp6().payload(&[b'x'; 28]),
            false,
            1,
        ),
        ("a later fragment", udp().payload(&piece), true, 3),
        ("a later fragment of IPv6", udp6().payload(&piece), true, 3),
    ] {
        let frame = packet
            .fragmented(9, if next { 30 } else { 0 }, true)
            .build();
        let ipv6 = is_ipv6(&frame);
        let (source, destination) = if ipv6 {
            (CLIENT6.into(), VIP6.into())
        } else {
            (CLIENT.into(), VIP.into())
        };
        let record = Fragments {
            source,
            destination,
            protocol: if next { PROTO_UDP } else { PROTO_TCP },
            identification: 9,
            backend,
            silent: 1,
        };
        let bare = if ipv6 { &town6 } else { &town };
        let given = if next {
            bare.clone().fragments(record)
        } else {
            bare.clone()
        };
        cases.extend(every_cut(name, &given, &frame));
        cases.push(
            case(format!("{name}, whole"), &given, frame)
                .forwarded(backend)
                .expects_fragments(&record),
        );
    }
    let reply = tcp().from(VIP, 80).to(CLIENT, CLIENT_PORT).build();
    let reply6 = tcp6().from(VIP6, 80).to(CLIENT6, CLIENT_PORT).build();
    for (name, frame) in [
        ("an ICMP error", icmp(3, 3, &reply.0[ETH_LEN..]).build()),
        ("an ICMPv6 error", icmp6(1, 4, &reply6.0[ETH_LEN..]).build()),
    ] {
        let town = if is_ipv6(&frame) { &town6 } else { &town };
        cases.extend(every_cut(name, town, &frame));
        cases.push(case(format!("{name}, whole"), town, frame).forwarded(1));
    }
    for (name, frame, answer) in [
        ("a ping", ping().build(), pong().build()),
        ("a ping over IPv6", ping6().build(), pong6().build()),
    ] {
        let town = if is_ipv6(&frame) { &town6 } else { &town };
        cases.extend(every_cut(name, town, &frame));
        cases.push(case(format!("{name}, whole"), town, frame).echoed(answer));
    }
    cases
}

fn is_ipv6(frame: &Frame) -> bool {
    [12, 16, 20]
        .iter()
        .any(|at| frame.0[*at..*at + 2] == ETHERTYPE_IPV6.to_be_bytes())
}

fn every_cut(name: &str, given: &Fixture, frame: &Frame) -> Vec<Case> {
    (0..frame.0.len())
        .map(|len| {
            let what = format!("{name}, cut to {len} of {} bytes", frame.0.len());
            case(what, given, frame.clone().cut(len)).ends(Verdict::Truncated)
        })
        .collect()
}

/// Where the total length tells the truth, a packet only needs its headers.
fn with_a_true_length() -> Vec<Case> {
    let town = town();
    let mut cases = Vec::new();
    for (name, frame, headers, backend) in [
        (
            "TCP",
            tcp().payload(b"data").build(),
            UP_TO_TRANSPORT + TCP_LEN,
            1,
        ),
        ("UDP", udp().build(), UP_TO_TRANSPORT + UDP_HEADER, 2),
        (
            "TCP behind IP options",
            tcp().option_words(2).build(),
            UP_TO_TRANSPORT + 8 + TCP_LEN,
            1,
        ),
        (
            "UDP behind IP options",
            udp().option_words(2).build(),
            UP_TO_TRANSPORT + 8 + UDP_HEADER,
            2,
        ),
    ] {
        for len in UP_TO_TRANSPORT..frame.0.len() {
            let total = u16::try_from(len - ETH_LEN).expect("a short packet");
            let what = format!("{name}, sent with {len} bytes");
            let given = case(what, &town, frame.clone().cut(len).total_length(total));
            cases.push(if len < headers {
                given.ends(Verdict::Malformed)
            } else {
                given.forwarded(backend)
            });
        }
    }
    cases
}

/// What is nobody's business but the host's stays so when it is cut, as soon as it can be told.
fn others() -> Vec<Case> {
    let town = town();
    let mut cases = Vec::new();
    let mut at_every_length = |name: &str, frame: Frame, known_from: usize, then: Verdict| {
        for len in 0..frame.0.len() {
            let verdict = if len < known_from {
                Verdict::Truncated
            } else {
                then
            };
            let what = format!("{name}, cut to {len} of {} bytes", frame.0.len());
            cases.push(case(what, &town, frame.clone().cut(len)).ends(verdict));
        }
    };
    at_every_length(
        "TCP to no VIP",
        tcp().to(NO_VIP, 80).build(),
        UP_TO_TRANSPORT,
        Verdict::NotOurs,
    );
    at_every_length(
        "TCP for another host",
        tcp().to_mac(NEIGHBOUR_MAC).build(),
        UP_TO_TRANSPORT,
        Verdict::OtherHost,
    );
    at_every_length(
        "a tagged frame of another protocol",
        tcp().vlan(7).build().with(16, &[0x88, 0xcc]),
        ETH_LEN + VLAN_LEN,
        Verdict::OtherEthertype,
    );
    at_every_length(
        "a frame with three tags",
        tcp().vlan(7).vlan(8).vlan(9).build(),
        ETH_LEN + 2 * VLAN_LEN,
        Verdict::OtherEthertype,
    );
    at_every_length(
        "TCP over IPv6 to no VIP",
        tcp6().to(NO_VIP6, 80).build(),
        UP_TO_TRANSPORT6,
        Verdict::NotOurs,
    );
    let asks = solicitation(VIP6, &link_layer_option(1, NEIGHBOUR_MAC)).build();
    at_every_length(
        "a neighbour solicitation",
        asks.clone().cut(asks.0.len() - 1),
        UP_TO_TRANSPORT6,
        Verdict::NotOurs,
    );
    let request = || who_has(VIP, NEIGHBOUR);
    at_every_length(
        "an ARP request",
        request().build(),
        ETH_LEN,
        Verdict::ArpOther,
    );
    cases.push(
        case(
            "an ARP request, whole",
            &town,
            request().build().cut(ETH_LEN + ARP_LEN),
        )
        .answered(request().answer(DIRECTOR_MAC).build()),
    );
    cases
}
