//! VLAN tags: read on the way in, and set on the way out as the backend's port says.

use lb_common::{
    pick::{Backend, Slot},
    verdict::Verdict,
    wire::{ETHERTYPE_QINQ, ETHERTYPE_VLAN, VLAN_LEN},
};

use super::{TAGGED, TAGGED_EGRESS, town, town6};
use crate::packets::{
    case::{Case, case},
    fixture::Fixture,
    frame::{
        Packet, advertisement, icmp, link_layer_option, ping, pong, solicitation, syn, tcp, tcp6,
        udp, who_has,
    },
    network::{
        CLIENT, CLIENT_PORT, DIRECTOR_MAC, EGRESS_VLAN, NEIGHBOUR, NEIGHBOUR_MAC, NEIGHBOUR6,
        NO_VIP, VIP, VIP6, VLAN,
    },
};

pub(super) fn cases() -> Vec<Case> {
    [popped(), pushed(), set(), answers(), ends()].concat()
}

fn all_on(fixture: Fixture, backend: u16) -> Fixture {
    fixture.every_slot(Slot::settled(backend))
}

/// A tag's second half with the highest priority, which is dropped first.
const PRIORITY: u16 = 0xf000;

fn popped() -> Vec<Case> {
    let town = town();
    let mut cases = Vec::new();
    for (what, packet) in [
        ("a tagged packet", tcp().vlan(VLAN)),
        (
            "a packet with a service tag",
            tcp().tagged(ETHERTYPE_QINQ, VLAN),
        ),
        (
            "a packet tagged with a priority alone",
            tcp().tagged(ETHERTYPE_VLAN, PRIORITY),
        ),
        ("a tagged SYN", syn().vlan(VLAN)),
        (
            "a tagged packet with IP options",
            tcp().vlan(VLAN).option_words(4),
        ),
    ] {
        let after = packet.clone().untagged().build();
        cases.push(
            case(
                format!("{what} loses its tag on the way to a backend without one"),
                &town,
                packet.build(),
            )
            .forwarded_as(1, after),
        );
    }
    cases.extend([
        case("tagged UDP loses its tag", &town, udp().vlan(VLAN).build())
            .forwarded_as(2, udp().build()),
        case(
            "tagged IPv6 loses its tag",
            &town6(),
            tcp6().vlan(VLAN).build(),
        )
        .forwarded_as(1, tcp6().build()),
        case(
            "of two tags the outer one goes",
            &town,
            tcp().tagged(ETHERTYPE_QINQ, 7).vlan(8).build(),
        )
        .forwarded_as(1, tcp().vlan(8).build()),
        case(
            "a tag goes on the way to the other interface as well",
            &all_on(town.clone(), 5),
            tcp().vlan(VLAN).build(),
        )
        .redirected_as(5, tcp().build()),
        case(
            "a tagged ICMP error goes where its flow goes",
            &town,
            about().vlan(VLAN).build(),
        )
        .forwarded_as(1, about().build()),
    ]);
    cases
}

/// An error about a packet of the backend to the client.
fn about() -> Packet {
    let reply = tcp().from(VIP, 80).to(CLIENT, CLIENT_PORT).build();
    icmp(3, 4, &reply.0[14..])
}

fn pushed() -> Vec<Case> {
    let town = town();
    vec![
        case(
            "a packet gets the tag of its backend's port",
            &all_on(town.clone(), TAGGED),
            tcp().build(),
        )
        .forwarded_as(TAGGED, tcp().vlan(VLAN).build()),
        case(
            "on the other interface as well",
            &all_on(town.clone(), TAGGED_EGRESS),
            tcp().build(),
        )
        .redirected_as(TAGGED_EGRESS, tcp().vlan(EGRESS_VLAN).build()),
        case(
            "UDP gets a tag",
            &all_on(town.clone(), TAGGED),
            udp().build(),
        )
        .forwarded_as(TAGGED, udp().vlan(VLAN).build()),
        case("IPv6 gets a tag", &all_on(town6(), TAGGED), tcp6().build())
            .forwarded_as(TAGGED, tcp6().vlan(VLAN).build()),
        case(
            "a full Ethernet frame gets a tag",
            &all_on(town.clone(), TAGGED),
            tcp().payload(&[b'x'; 1460]).build(),
        )
        .forwarded_as(TAGGED, tcp().payload(&[b'x'; 1460]).vlan(VLAN).build()),
        case(
            "no room for a tag",
            &all_on(town.clone(), TAGGED),
            tcp().build(),
        )
        .finds_no_room(),
        case(
            "no room for a tag on the other interface",
            &all_on(town, TAGGED_EGRESS),
            udp().build(),
        )
        .finds_no_room(),
    ]
}

fn set() -> Vec<Case> {
    let town = town();
    vec![
        case(
            "a tag becomes that of the backend's port",
            &all_on(town.clone(), TAGGED),
            tcp().vlan(7).build(),
        )
        .forwarded_as(TAGGED, tcp().vlan(VLAN).build()),
        case(
            "its own stays",
            &all_on(town.clone(), TAGGED),
            tcp().vlan(VLAN).build(),
        )
        .forwarded_as(TAGGED, tcp().vlan(VLAN).build()),
        case(
            "its priority stays",
            &all_on(town.clone(), TAGGED),
            tcp().tagged(ETHERTYPE_VLAN, PRIORITY | 7).build(),
        )
        .forwarded_as(
            TAGGED,
            tcp().tagged(ETHERTYPE_VLAN, PRIORITY | VLAN).build(),
        ),
        case(
            "its EtherType stays, and the inner tag",
            &all_on(town.clone(), TAGGED_EGRESS),
            tcp().tagged(ETHERTYPE_QINQ, 7).vlan(8).build(),
        )
        .redirected_as(
            TAGGED_EGRESS,
            tcp().tagged(ETHERTYPE_QINQ, EGRESS_VLAN).vlan(8).build(),
        ),
        case(
            "the largest identifier becomes another",
            &all_on(town6(), TAGGED),
            tcp6().vlan(4095).build(),
        )
        .forwarded_as(TAGGED, tcp6().vlan(VLAN).build()),
        case(
            "a backend that is this very host gets the tag as it came",
            &all_on(town.backend(11, Backend::LOCAL_PORT), 11),
            tcp().vlan(7).build(),
        )
        .local(11),
    ]
}

/// Answers go back under the tag they came with.
fn answers() -> Vec<Case> {
    let asked = || who_has(VIP, NEIGHBOUR).build();
    let told = || who_has(VIP, NEIGHBOUR).answer(DIRECTOR_MAC).build();
    let asks = || solicitation(VIP6, &link_layer_option(1, NEIGHBOUR_MAC));
    let tells = || advertisement(VIP6, DIRECTOR_MAC, NEIGHBOUR6, NEIGHBOUR_MAC, true);
    vec![
        case(
            "a tagged ARP request is answered under its tag",
            &town(),
            asked().pushed(ETHERTYPE_VLAN, 7),
        )
        .answered(told().pushed(ETHERTYPE_VLAN, 7)),
        case(
            "so is one with two tags",
            &town(),
            asked().pushed(ETHERTYPE_VLAN, 7).pushed(ETHERTYPE_QINQ, 8),
        )
        .answered(told().pushed(ETHERTYPE_VLAN, 7).pushed(ETHERTYPE_QINQ, 8)),
        case("so is a tagged ping", &town(), ping().vlan(7).build()).echoed(pong().vlan(7).build()),
        case(
            "so is a tagged solicitation",
            &town6(),
            asks().vlan(7).build(),
        )
        .advertised(tells().vlan(7).build()),
        case(
            "so is a solicitation with two tags, which grows",
            &town6(),
            solicitation(VIP6, &[]).vlan(7).vlan(8).build(),
        )
        .advertised(tells().vlan(7).vlan(8).build()),
    ]
}

fn ends() -> Vec<Case> {
    let town = town();
    vec![
        case(
            "a third tag is not read",
            &town,
            tcp().vlan(7).vlan(8).vlan(9).build(),
        )
        .ends(Verdict::OtherEthertype),
        case(
            "a tag with another protocol behind it is the host's",
            &town,
            tcp().vlan(7).build().with(16, &[0x88, 0xcc]),
        )
        .ends(Verdict::OtherEthertype),
        case(
            "a tagged packet for no VIP is the host's",
            &town,
            tcp().to(NO_VIP, 80).vlan(7).build(),
        )
        .ends(Verdict::NotOurs),
        case(
            "a tagged packet for another host",
            &town,
            tcp().to_mac(NEIGHBOUR_MAC).vlan(7).build(),
        )
        .ends(Verdict::OtherHost),
        case(
            "a tagged packet for an unserved port",
            &town,
            tcp().to_port(81).vlan(7).build(),
        )
        .ends(Verdict::Unserved),
        case(
            "a tagged packet with a lying length",
            &town,
            tcp().vlan(7).build().with(14 + VLAN_LEN + 2, &[0xff, 0xff]),
        )
        .ends(Verdict::Truncated),
        case(
            "an old MAC address is none for a tagged backend either",
            &all_on(town, TAGGED).without_mac(TAGGED),
            tcp().vlan(7).build(),
        )
        .ends(Verdict::NoNeighbour),
    ]
}
