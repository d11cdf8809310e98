//! Frames by their Ethernet header: for this host, for others, and of other protocols.

use lb_common::verdict::Verdict;

use super::{lenient_town, town};
use crate::packets::{
    case::{Case, case},
    frame::{Frame, ping, tcp, tcp6, udp},
    network::{BROADCAST_MAC, DIRECTOR_MAC, MULTICAST_MAC, NEIGHBOUR_MAC, NO_VIP},
};

pub(super) fn cases() -> Vec<Case> {
    let town = town();
    let mut cases = Vec::new();
    for (whom, mac) in [
        ("another host's MAC", NEIGHBOUR_MAC),
        ("the broadcast address", BROADCAST_MAC),
        ("a multicast address", MULTICAST_MAC),
    ] {
        // Whatever is wrong with them otherwise, these are not ours to drop.
        let frames: [(&str, Frame); 7] = [
            ("TCP for a VIP", tcp().to_mac(mac).build()),
            ("UDP for a VIP", udp().to_mac(mac).build()),
            (
                "a packet for an unserved port",
                tcp().to_port(81).to_mac(mac).build(),
            ),
            ("ICMP for a VIP", ping().to_mac(mac).build()),
            (
                "a fragment for a VIP",
                tcp().to_mac(mac).build().fragment(0, true),
            ),
            (
                "a malformed packet for a VIP",
                tcp().to_mac(mac).build().total_length(19),
            ),
            ("a cut packet for a VIP", tcp().to_mac(mac).build().cut(60)),
        ];
        cases.extend(frames.map(|(what, frame)| {
            case(format!("{what}, sent to {whom}"), &town, frame).ends(Verdict::OtherHost)
        }));
        let frame = tcp().to_port(81).to_mac(mac).build();
        cases.push(
            case(
                format!("an unserved port, sent to {whom}, where those are passed"),
                &lenient_town(),
                frame,
            )
            .ends(Verdict::OtherHost),
        );
        let frame = tcp().to(NO_VIP, 80).to_mac(mac).build();
        cases.push(
            case(format!("TCP for no VIP, sent to {whom}"), &town, frame).ends(Verdict::NotOurs),
        );
    }
    for byte in 0..6 {
        let mut mac = DIRECTOR_MAC;
        mac[byte] ^= 0x10;
        cases.push(
            case(
                format!(
                    "a MAC that differs from this interface's in byte {byte} is another host's"
                ),
                &town,
                tcp().to_mac(mac).build(),
            )
            .ends(Verdict::OtherHost),
        );
    }
    cases.extend([
        case("IPv6 to no VIP is the host's", &town, tcp6().build()).ends(Verdict::NotOurs)
    ]);
    for (what, ethertype) in [
        ("LLDP", 0x88cc_u16),
        ("MPLS", 0x8847),
        ("reverse ARP", 0x8035),
        ("an IEEE 802.3 length", 0x0026),
        ("an EtherType whose bytes are swapped", 0x0008),
    ] {
        let frame = tcp().build().with(12, &ethertype.to_be_bytes());
        cases.push(
            case(
                format!("{what} ({ethertype:#06x}) is the host's"),
                &town,
                frame,
            )
            .ends(Verdict::OtherEthertype),
        );
    }
    cases
}
