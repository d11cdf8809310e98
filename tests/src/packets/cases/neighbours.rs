//! Neighbour solicitations for a VIP (RFC 4861): who is answered, and how.

use std::net::Ipv6Addr;

use lb_common::{
    verdict::Verdict,
    wire::{ETH_LEN, NEXT_HOP_BY_HOP},
};

use super::{blank, town6};
use crate::packets::{
    case::{Case, case},
    frame::{Frame, Packet, advertisement, extension, link_layer_option, solicitation},
    network::{
        CLIENT6, DIRECTOR_MAC, MULTICAST_MAC, NEIGHBOUR_MAC, NEIGHBOUR6, NO_VIP6, ROUTER_MAC, VIP6,
        VIP6_ANY,
    },
};

/// All nodes of a link, and their Ethernet address.
const EVERYBODY: (Ipv6Addr, [u8; 6]) = (
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
    [0x33, 0x33, 0, 0, 0, 1],
);
/// A nonce (RFC 3971 section 5.3.2), as Linux sends it with duplicate address detection (RFC 7527).
const NONCE: [u8; 8] = [14, 1, 1, 2, 3, 4, 5, 6];

pub(super) fn cases() -> Vec<Case> {
    [answered(), left_to_the_host(), room()].concat()
}

/// With the sender's address, as every host asks a group.
fn asks(target: Ipv6Addr) -> Packet {
    solicitation(target, &link_layer_option(1, NEIGHBOUR_MAC))
}

/// What the neighbour is told of a VIP.
fn told(target: Ipv6Addr) -> Packet {
    advertisement(target, DIRECTOR_MAC, NEIGHBOUR6, NEIGHBOUR_MAC, true)
}

/// Duplicate address detection: from nobody.
fn detection(options: &[u8]) -> Packet {
    solicitation(VIP6, options).from(Ipv6Addr::UNSPECIFIED, 0)
}

/// With the checksum that its changed bytes ask for (RFC 4443 section 2.3).
fn intact(frame: Frame) -> Frame {
    let ip = &frame.0[ETH_LEN..];
    let length = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    let mut covered = [&ip[8..40], &[0, 0, ip[4], ip[5], 0, 0, 0, 58]].concat();
    covered.extend(&ip[40..40 + length]);
    covered[42..44].fill(0);
    covered.resize(covered.len().next_multiple_of(2), 0);
    let words = covered
        .chunks_exact(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !(sum as u16 + (sum >> 16) as u16);
    frame.with(ETH_LEN + 42, &checksum.to_be_bytes())
}

fn answered() -> Vec<Case> {
    let town = town6();
    let told_everybody =
        || advertisement(VIP6, DIRECTOR_MAC, EVERYBODY.0, EVERYBODY.1, false).build();
    vec![
        case(
            "a solicitation for a VIP is answered",
            &town,
            asks(VIP6).build(),
        )
        .advertised(told(VIP6).build()),
        case("for every IPv6 VIP", &town, asks(VIP6_ANY).build())
            .advertised(told(VIP6_ANY).build()),
        case(
            "a neighbour that asks for it again asks this host alone",
            &town,
            asks(VIP6).to(VIP6, 0).to_mac(DIRECTOR_MAC).build(),
        )
        .advertised(told(VIP6).build()),
        case(
            "then it need not say who it is: the frame does",
            &town,
            solicitation(VIP6, &[])
                .to(VIP6, 0)
                .to_mac(DIRECTOR_MAC)
                .build(),
        )
        .advertised(told(VIP6).build()),
        case(
            "the answer goes to the address that the option names",
            &town,
            asks(VIP6).from_mac(ROUTER_MAC).build(),
        )
        .advertised(told(VIP6).build()),
        case(
            "an option of another kind names nobody",
            &town,
            solicitation(VIP6, &NONCE).build(),
        )
        .advertised(told(VIP6).build()),
        case(
            "what follows the sender's address is dropped from the answer",
            &town,
            solicitation(
                VIP6,
                &[&link_layer_option(1, NEIGHBOUR_MAC)[..], &NONCE].concat(),
            )
            .build(),
        )
        .advertised(told(VIP6).build()),
        case(
            "as many options as are looked into",
            &town,
            solicitation(VIP6, &[NONCE; 4].concat()).build(),
        )
        .advertised(told(VIP6).build()),
        case(
            "so is Ethernet's padding",
            &town,
            asks(VIP6).build().padded(100),
        )
        .advertised(told(VIP6).build()),
        case(
            "duplicate address detection learns that the VIP is taken, as everybody does",
            &town,
            detection(&[]).build(),
        )
        .advertised(told_everybody()),
        case(
            "likewise with a nonce (RFC 7527)",
            &town,
            detection(&NONCE).build(),
        )
        .advertised(told_everybody()),
        case(
            "a global address may ask",
            &town,
            asks(VIP6).from(CLIENT6, 0).build(),
        )
        .advertised(advertisement(VIP6, DIRECTOR_MAC, CLIENT6, NEIGHBOUR_MAC, true).build()),
        case(
            "a VIP may ask for another one",
            &town,
            asks(VIP6).from(VIP6_ANY, 0).build(),
        )
        .advertised(advertisement(VIP6, DIRECTOR_MAC, VIP6_ANY, NEIGHBOUR_MAC, true).build()),
    ]
}

fn left_to_the_host() -> Vec<Case> {
    let town = town6();
    let mut cases = vec![
        case(
            "a solicitation for another address",
            &town,
            asks(NO_VIP6).build(),
        ),
        case(
            "a solicitation that came through a router",
            &town,
            asks(VIP6).ttl(254).build(),
        ),
        case(
            "a solicitation sent to another host is that host's to answer",
            &town,
            asks(VIP6).to_mac(NEIGHBOUR_MAC).build(),
        ),
        case(
            "a VIP that asks for itself",
            &town,
            asks(VIP6).from(VIP6, 0).build(),
        ),
        case(
            "a solicitation from loopback",
            &town,
            asks(VIP6).from(Ipv6Addr::LOCALHOST, 0).build(),
        ),
        case(
            "a solicitation from a group",
            &town,
            asks(VIP6).from(EVERYBODY.0, 0).build(),
        ),
        case(
            "a solicitation that names a group as its sender's address",
            &town,
            solicitation(VIP6, &link_layer_option(1, MULTICAST_MAC)).build(),
        ),
        case(
            "a solicitation from a group's Ethernet address",
            &town,
            solicitation(VIP6, &[]).from_mac(MULTICAST_MAC).build(),
        ),
        case(
            "a solicitation with a code",
            &town,
            intact(asks(VIP6).build().with(ETH_LEN + 41, &[1])),
        ),
        case(
            "a solicitation that was damaged on its way",
            &town,
            asks(VIP6).build().with(ETH_LEN + 44, &[1]),
        ),
        case(
            "a solicitation whose last option was damaged on its way",
            &town,
            solicitation(VIP6, &[NONCE; 4].concat())
                .build()
                .with(ETH_LEN + 95, &[7]),
        ),
        case(
            "a solicitation with more options than are looked into",
            &town,
            solicitation(VIP6, &[NONCE; 5].concat()).build(),
        ),
        case(
            "an option of no length",
            &town,
            solicitation(VIP6, &[14, 0, 1, 2, 3, 4, 5, 6]).build(),
        ),
        case(
            "half an option",
            &town,
            solicitation(VIP6, &NONCE[..4]).build(),
        ),
        case(
            "duplicate address detection asks no single host",
            &town,
            detection(&[]).to(VIP6, 0).to_mac(DIRECTOR_MAC).build(),
        ),
        case(
            "nor all nodes",
            &town,
            detection(&[])
                .to(EVERYBODY.0, 0)
                .to_mac(EVERYBODY.1)
                .build(),
        ),
        case(
            "and names nobody",
            &town,
            detection(&link_layer_option(1, NEIGHBOUR_MAC)).build(),
        ),
        case(
            "a solicitation behind extension headers",
            &town,
            asks(VIP6).extended(NEXT_HOP_BY_HOP, extension(1)).build(),
        ),
        case(
            "a solicitation in a fragment (RFC 6980)",
            &town,
            asks(VIP6).fragmented(1, 0, false).build(),
        ),
        case(
            "a solicitation that ends within the target",
            &town,
            intact(asks(VIP6).build().with(ETH_LEN + 4, &[0, 23])),
        ),
        case(
            "before the controller has written anything there is no VIP to ask for",
            &blank(),
            asks(VIP6).build(),
        ),
        case(
            "an advertisement to all nodes",
            &town,
            told(VIP6).to(EVERYBODY.0, 0).to_mac(EVERYBODY.1).build(),
        ),
    ]
    .into_iter()
    .map(|given| given.ends(Verdict::NotOurs))
    .collect::<Vec<_>>();
    cases.push(
        case(
            "a solicitation that asks a VIP for another address is still no packet for the VIP",
            &town,
            asks(NO_VIP6).to(VIP6, 0).to_mac(DIRECTOR_MAC).build(),
        )
        .ends(Verdict::NotOurs),
    );
    cases
}

fn room() -> Vec<Case> {
    vec![
        case(
            "no room for the answer's option",
            &town6(),
            solicitation(VIP6, &[]).build(),
        )
        .finds_no_room(),
    ]
}
