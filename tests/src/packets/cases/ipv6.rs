//! IPv6: addresses, extension headers, and lengths that lie.

use std::net::Ipv6Addr;

use lb_common::{
    parse::{MAX_EXTENSION_BYTES, MAX_EXTENSIONS},
    verdict::Verdict,
    wire::{ETH_LEN, NEXT_DESTINATION, NEXT_FRAGMENT, NEXT_HOP_BY_HOP, NEXT_ROUTING, TCP_LEN},
};

use super::{BOTH_PORT, WEB, lenient, town6};
use crate::packets::{
    case::{Case, case},
    fixture::Fixture,
    frame::{Frame, Packet, extension, syn6, tcp6, udp6},
    network::{BROADCAST_MAC, CLIENT6, MULTICAST_MAC, NEIGHBOUR_MAC, NO_VIP6, VIP, VIP6, VIP6_ANY},
};

pub(super) fn cases() -> Vec<Case> {
    [
        services(),
        addressed(),
        extensions(),
        protocols(),
        lengths(),
    ]
    .concat()
}

fn services() -> Vec<Case> {
    let town = town6();
    let mut cases = vec![
        case(
            "TCP over IPv6 goes to the slot's backend",
            &town,
            tcp6().build(),
        )
        .forwarded(1),
        case("so does a SYN over IPv6", &town, syn6().build()).forwarded(1),
        case("so does UDP over IPv6", &town, udp6().build()).forwarded(2),
        case(
            "TCP over IPv6 to a service of both protocols",
            &town,
            tcp6().to_port(BOTH_PORT).build(),
        )
        .forwarded(4),
        case(
            "UDP over IPv6 to a service of both protocols",
            &town,
            udp6().to_port(BOTH_PORT).build(),
        )
        .forwarded(4),
        case("`any` over IPv6", &town, tcp6().to(VIP6_ANY, 8080).build()).forwarded(3),
        case(
            "a single port goes before `any` over IPv6",
            &town,
            tcp6().to(VIP6_ANY, 443).build(),
        )
        .forwarded(4),
        case(
            "an unserved port of an IPv6 VIP",
            &town,
            tcp6().to_port(81).build(),
        )
        .ends(Verdict::Unserved),
        case(
            "an unserved port of an IPv6 VIP, where those are passed",
            &lenient(town.clone()),
            tcp6().to_port(81).build(),
        )
        .ends(Verdict::UnservedPassed),
        case("port 0 of an IPv6 VIP", &town, udp6().to_port(0).build()).ends(Verdict::Unserved),
        case(
            "IPv6 to a backend behind the other interface",
            &town6().every_slot(lb_common::pick::Slot::settled(5)),
            tcp6().build(),
        )
        .redirected(5),
        case(
            "traffic class and flow label change nothing",
            &town,
            tcp6().build().with(ETH_LEN, &[0x6f, 0xff, 0xff, 0xff]),
        )
        .forwarded(1),
        case(
            "a hop limit of 1 is the backend's business",
            &town,
            tcp6().ttl(1).build(),
        )
        .forwarded(1),
        // Two addresses may be one in the lookup; the whole one is compared.
        case(
            "an address that only looks like a VIP is none",
            &Fixture {
                other_vips: [1, 2, 5].map(|id| (id, NO_VIP6)).to_vec(),
                ..town.clone()
            },
            tcp6().build(),
        )
        .ends(Verdict::NotOurs),
        case(
            "nor is one whose lower half is another",
            &Fixture {
                other_vips: [1, 2, 5]
                    .map(|id| (id, Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 1, 0, 0x10)))
                    .to_vec(),
                ..town.clone()
            },
            tcp6().build(),
        )
        .ends(Verdict::NotOurs),
        case(
            "a service whose address only looks like the VIP's serves nothing",
            &Fixture {
                other_vips: vec![(WEB, NO_VIP6)],
                // The VIP's own entry names the first service; let that be another.
                services: town.services.iter().rev().cloned().collect(),
                ..town.clone()
            },
            tcp6().build(),
        )
        .ends(Verdict::Unserved),
    ];
    for byte in 0..16 {
        let mut octets = VIP6.octets();
        octets[byte] ^= 0x40;
        let address = Ipv6Addr::from(octets);
        let frame = tcp6().to(address, 80).build();
        cases.push(
            case(format!("{address} is no VIP: the host's"), &town, frame).ends(Verdict::NotOurs),
        );
    }
    for (who, address) in [
        ("nobody", Ipv6Addr::UNSPECIFIED),
        ("loopback", Ipv6Addr::LOCALHOST),
        ("an IPv4-mapped address", VIP.to_ipv6_mapped()),
        ("all nodes", Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)),
        ("a global group", Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 0, 9)),
        ("the VIP itself", VIP6),
    ] {
        cases.extend([
            case(
                format!("TCP over IPv6 from {who}"),
                &town,
                tcp6().from(address, 80).build(),
            )
            .ends(Verdict::MartianSource),
            case(
                format!("UDP over IPv6 from {who}"),
                &town,
                udp6().from(address, 53).build(),
            )
            .ends(Verdict::MartianSource),
        ]);
    }
    for address in [
        Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 2),
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9),
        Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0xc633, 0x6407),
        VIP6_ANY,
    ] {
        let frame = tcp6().from(address, 80).build();
        cases.push(case(format!("{address} may be a client"), &town, frame).forwarded(1));
    }
    cases
}

fn addressed() -> Vec<Case> {
    let town = town6();
    let mut cases = Vec::new();
    for (whom, mac) in [
        ("another host's MAC", NEIGHBOUR_MAC),
        ("the broadcast address", BROADCAST_MAC),
        ("a multicast address", MULTICAST_MAC),
    ] {
        let frames: [(&str, Frame); 5] = [
            ("TCP for an IPv6 VIP", tcp6().to_mac(mac).build()),
            (
                "an unserved port of an IPv6 VIP",
                tcp6().to_port(81).to_mac(mac).build(),
            ),
            (
                "too many extension headers for an IPv6 VIP",
                options(tcp6(), 7).to_mac(mac).build(),
            ),
            (
                "a later fragment for an IPv6 VIP",
                tcp6().fragmented(1, 8, false).to_mac(mac).build(),
            ),
            (
                "a cut packet for an IPv6 VIP",
                tcp6().to_mac(mac).build().cut(70),
            ),
        ];
        cases.extend(frames.map(|(what, frame)| {
            case(format!("{what}, sent to {whom}"), &town, frame).ends(Verdict::OtherHost)
        }));
    }
    cases
}

/// With so many headers of destination options.
fn options(packet: Packet, count: u32) -> Packet {
    (0..count).fold(packet, |packet, _| {
        packet.extended(NEXT_DESTINATION, extension(1))
    })
}

fn extensions() -> Vec<Case> {
    let town = town6();
    let with = |kind, bytes: Vec<u8>| tcp6().extended(kind, bytes).build();
    let mut routing = extension(3);
    (routing[2], routing[3]) = (0, 1);
    let segment_routing = {
        let mut bytes = extension(3);
        (bytes[2], bytes[3]) = (4, 0);
        bytes
    };
    let most = MAX_EXTENSION_BYTES / 8;
    let mut cases = vec![
        case(
            "hop-by-hop options are stepped over",
            &town,
            with(NEXT_HOP_BY_HOP, extension(1)),
        )
        .forwarded(1),
        case(
            "destination options are stepped over",
            &town,
            with(NEXT_DESTINATION, extension(4)),
        )
        .forwarded(1),
        case(
            "a routing header that has been through is stepped over",
            &town,
            with(NEXT_ROUTING, segment_routing),
        )
        .forwarded(1),
        case(
            "a routing header that names another destination",
            &town,
            with(NEXT_ROUTING, routing.clone()),
        )
        .ends(Verdict::ExtensionHeaders),
        case(
            "the routing header of another's packet is the host's business",
            &town,
            tcp6()
                .to(NO_VIP6, 80)
                .extended(NEXT_ROUTING, routing)
                .build(),
        )
        .ends(Verdict::NotOurs),
        case(
            "every header in the order of RFC 8200, before UDP",
            &town,
            udp6()
                .extended(NEXT_HOP_BY_HOP, extension(1))
                .extended(NEXT_DESTINATION, extension(1))
                .extended(NEXT_ROUTING, extension(3))
                .extended(NEXT_DESTINATION, extension(1))
                .build(),
        )
        .forwarded(2),
        case(
            "a fragment header on a whole packet is stepped over (RFC 6946)",
            &town,
            tcp6().fragmented(7, 0, false).build(),
        )
        .forwarded(1),
        case(
            "as many headers as are followed",
            &town,
            options(tcp6(), MAX_EXTENSIONS).build(),
        )
        .forwarded(1),
        case(
            "one more",
            &town,
            options(tcp6(), MAX_EXTENSIONS + 1).build(),
        )
        .ends(Verdict::ExtensionHeaders),
        case("a hundred", &town, options(tcp6(), 100).build()).ends(Verdict::ExtensionHeaders),
        case(
            "hop-by-hop options that are not first",
            &town,
            tcp6()
                .extended(NEXT_DESTINATION, extension(1))
                .extended(NEXT_HOP_BY_HOP, extension(1))
                .build(),
        )
        .ends(Verdict::ExtensionHeaders),
        case(
            "hop-by-hop options twice",
            &town,
            tcp6()
                .extended(NEXT_HOP_BY_HOP, extension(1))
                .extended(NEXT_HOP_BY_HOP, extension(1))
                .build(),
        )
        .ends(Verdict::ExtensionHeaders),
        case(
            "as many bytes of headers as are followed",
            &town,
            with(NEXT_DESTINATION, extension(most)),
        )
        .forwarded(1),
        case(
            "eight bytes more",
            &town,
            with(NEXT_DESTINATION, extension(most + 1)),
        )
        .ends(Verdict::ExtensionHeaders),
        case(
            "the longest header there is",
            &town,
            with(NEXT_DESTINATION, extension(256)),
        )
        .ends(Verdict::ExtensionHeaders),
        case(
            "too many bytes in two headers",
            &town,
            tcp6()
                .extended(NEXT_DESTINATION, extension(most))
                .extended(NEXT_DESTINATION, extension(1))
                .build(),
        )
        .ends(Verdict::ExtensionHeaders),
        case(
            "a fragment of a fragment",
            &town,
            tcp6()
                .payload(&[b'x'; 28])
                .extended(NEXT_FRAGMENT, vec![0, 0, 0, 1, 0, 0, 0, 5])
                .fragmented(6, 0, true)
                .build(),
        )
        .ends(Verdict::ExtensionHeaders),
        case(
            "a header that ends behind the packet",
            &town,
            tcp6()
                .extended(NEXT_DESTINATION, extension(1))
                .build()
                .with(ETH_LEN + 41, &[9]),
        )
        .ends(Verdict::Malformed),
        case(
            "a header that ends with the packet leaves no TCP header",
            &town,
            tcp6()
                .payload(b"1234")
                .extended(NEXT_DESTINATION, extension(1))
                .build()
                .with(ETH_LEN + 41, &[3]),
        )
        .ends(Verdict::Malformed),
        case(
            "a header behind the packet's end",
            &town,
            tcp6()
                .build()
                .with(ETH_LEN + 6, &[NEXT_DESTINATION])
                .with(ETH_LEN + 4, &[0, 7]),
        )
        .ends(Verdict::Malformed),
        case(
            "the last bytes of the frame begin a header",
            &town,
            udp6()
                .payload(b"")
                .build()
                .with(ETH_LEN + 6, &[NEXT_DESTINATION])
                .with(ETH_LEN + 40, &[NEXT_DESTINATION, 0])
                .cut(ETH_LEN + 40 + 4)
                .with(ETH_LEN + 4, &[0, 4]),
        )
        .ends(Verdict::Malformed),
    ];
    for words in [1, 2, 16] {
        let frame = udp6().extended(NEXT_HOP_BY_HOP, extension(words)).build();
        let what = format!("{} bytes of hop-by-hop options before UDP", 8 * words);
        cases.push(case(what, &town, frame).forwarded(2));
    }
    cases
}

fn protocols() -> Vec<Case> {
    let town = town6();
    let mut cases = Vec::new();
    for (name, number) in [
        ("ICMP for IPv4", 1),
        ("IPv4 in IPv6", 4),
        ("IPv6 in IPv6", 41),
        ("GRE", 47),
        ("ESP", 50),
        ("AH", 51),
        ("nothing", 59),
        ("SCTP", 132),
        ("mobility", 135),
        ("HIP", 139),
        ("the reserved protocol", 255),
    ] {
        let frame = tcp6().build().with(ETH_LEN + 6, &[number]);
        cases.push(
            case(
                format!("{name} (next header {number}) to an IPv6 VIP"),
                &town,
                frame,
            )
            .ends(Verdict::UnsupportedProtocol),
        );
    }
    let behind = tcp6()
        .extended(NEXT_DESTINATION, extension(1))
        .build()
        .with(ETH_LEN + 40, &[59]);
    cases.push(
        case("nothing behind destination options", &town, behind)
            .ends(Verdict::UnsupportedProtocol),
    );
    for version in [0, 4, 5, 7, 15] {
        let frame = tcp6().build().with(ETH_LEN, &[version << 4]);
        cases.push(
            case(
                format!("version {version} behind IPv6's EtherType"),
                &town,
                frame,
            )
            .ends(Verdict::Malformed),
        );
    }
    let other = tcp6().to(NO_VIP6, 80).build().with(ETH_LEN, &[0x40]);
    cases.push(
        case("a wrong version on the way to no IPv6 VIP", &town, other).ends(Verdict::NotOurs),
    );
    cases
}

fn lengths() -> Vec<Case> {
    let town = town6();
    let long = |frame: Frame, payload: u16| frame.with(ETH_LEN + 4, &payload.to_be_bytes());
    let whole = || tcp6().build();
    let real = u16::try_from(whole().0.len() - ETH_LEN - 40).expect("a short packet");
    vec![
        case(
            "a payload length of one byte too many",
            &town,
            long(whole(), real + 1),
        )
        .ends(Verdict::Truncated),
        case("the largest payload length", &town, long(whole(), u16::MAX)).ends(Verdict::Truncated),
        case(
            "one byte beyond the payload length is padding",
            &town,
            long(whole(), real - 1),
        )
        .forwarded(1),
        case(
            "all behind the TCP header is padding",
            &town,
            long(whole(), TCP_LEN as u16),
        )
        .forwarded(1),
        case(
            "a payload length that ends within the TCP header",
            &town,
            long(whole(), 19),
        )
        .ends(Verdict::Malformed),
        case(
            "a payload length that ends within the ports",
            &town,
            long(whole(), 3),
        )
        .ends(Verdict::Malformed),
        case("a payload length of 0", &town, long(whole(), 0)).ends(Verdict::Malformed),
        case("a UDP payload length of 7", &town, long(udp6().build(), 7)).ends(Verdict::Malformed),
        case(
            "a datagram of IPv6 without payload",
            &town,
            udp6().payload(b"").build(),
        )
        .forwarded(2),
        case(
            "an IPv6 datagram with padding",
            &town,
            udp6().payload(b"").build().padded(80),
        )
        .forwarded(2),
        case(
            "a full Ethernet frame of IPv6",
            &town,
            tcp6().payload(&[b'x'; 1440]).build(),
        )
        .forwarded(1),
        case(
            "a lying payload length on the way to no IPv6 VIP",
            &town,
            long(tcp6().to(NO_VIP6, 80).build(), 0),
        )
        .ends(Verdict::NotOurs),
        case(
            "the client's port may be 0 over IPv6",
            &town,
            tcp6().from(CLIENT6, 0).build(),
        )
        .forwarded(1),
    ]
}
