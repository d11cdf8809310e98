//! Frames cut short at every length.

use lb_common::{
    verdict::Verdict,
    wire::{ARP_LEN, ETH_LEN, TCP_LEN},
};

use super::town;
use crate::packets::{
    case::{Case, case},
    frame::{Frame, UDP_HEADER, UP_TO_TRANSPORT, syn, tcp, udp, who_has},
    network::{DIRECTOR_MAC, NEIGHBOUR, NEIGHBOUR_MAC, NO_VIP, VIP},
};

pub(super) fn cases() -> Vec<Case> {
    [as_sent(), with_a_true_length(), others()].concat()
}

/// What ends before its headers do, or before the length that they state, is dropped; the whole frame is forwarded.
fn as_sent() -> Vec<Case> {
    let town = town();
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
    ] {
        for len in 0..frame.0.len() {
            let what = format!("{name}, cut to {len} of {} bytes", frame.0.len());
            cases.push(case(what, &town, frame.clone().cut(len)).ends(Verdict::Truncated));
        }
        cases.push(case(format!("{name}, whole"), &town, frame).forwarded(backend));
    }
    cases
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
        "a tagged frame",
        tcp().vlan(7).build(),
        ETH_LEN,
        Verdict::OtherEthertype,
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
