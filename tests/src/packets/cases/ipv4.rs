//! IPv4 headers: options, fragments, other protocols, and lengths that lie.

use lb_common::{verdict::Verdict, wire::ETH_LEN};

use super::town;
use crate::packets::{
    case::{Case, case},
    frame::{Packet, UDP_HEADER, UP_TO_TRANSPORT, ping, syn, tcp, udp},
    network::{NO_VIP, VIP, VIP_ANY},
};

pub(super) fn cases() -> Vec<Case> {
    [options(), fragments(), protocols(), lengths(), versions()].concat()
}

fn options() -> Vec<Case> {
    let town = town();
    let mut cases = Vec::new();
    for words in 1..=10 {
        let with = |packet: Packet| packet.option_words(words).build();
        let what = format!("{} bytes of IP options are stepped over", 4 * words);
        cases.push(case(format!("{what} to TCP"), &town, with(tcp())).forwarded(1));
        cases.push(case(format!("{what} to UDP"), &town, with(udp())).forwarded(2));
    }
    cases.extend([
        case(
            "options before an unserved port",
            &town,
            tcp().to_port(81).option_words(3).build(),
        )
        .ends(Verdict::Unserved),
        case(
            "options on the way to no VIP",
            &town,
            tcp().to(NO_VIP, 80).option_words(3).build(),
        )
        .ends(Verdict::NotOurs),
    ]);
    cases
}

/// What is on its way to no VIP, or no fragment at all; the others have a file of their own.
fn fragments() -> Vec<Case> {
    let town = town();
    let flags = |bits: u16| tcp().build().with(ETH_LEN + 6, &bits.to_be_bytes());
    vec![
        case(
            "a fragment for another address",
            &town,
            tcp().to(NO_VIP, 80).build().fragment(1, true),
        )
        .ends(Verdict::NotOurs),
        case("\"don't fragment\" makes no fragment", &town, flags(0x4000)).forwarded(1),
        case("nor does the reserved bit (RFC 3514)", &town, flags(0x8000)).forwarded(1),
    ]
}

fn protocols() -> Vec<Case> {
    let town = town();
    let mut cases = vec![
        case(
            "ICMP to another address",
            &town,
            ping().to(NO_VIP, 0).build(),
        )
        .ends(Verdict::NotOurs),
    ];
    for (name, number) in [
        ("the hop-by-hop option", 0),
        ("IGMP", 2),
        ("IP in IP", 4),
        ("IPv6 in IP", 41),
        ("GRE", 47),
        ("ESP", 50),
        ("AH", 51),
        ("SCTP", 132),
        ("UDP-Lite", 136),
        ("the reserved protocol", 255),
    ] {
        for (what, to, port, verdict) in [
            ("a VIP", VIP, 80, Verdict::UnsupportedProtocol),
            // The VIP's own entry is that of protocol 0, and the frame's bytes look like a port of its service.
            (
                "the VIP of a service of all ports",
                VIP_ANY,
                12_345,
                Verdict::UnsupportedProtocol,
            ),
            ("another address", NO_VIP, 80, Verdict::NotOurs),
        ] {
            let frame = tcp().to(to, port).build().with(ETH_LEN + 9, &[number]);
            let name = format!("{name} (protocol {number}) to {what}");
            cases.push(case(name, &town, frame).ends(verdict));
        }
    }
    cases
}

/// The total length against the frame's and the headers' lengths.
fn lengths() -> Vec<Case> {
    let town = town();
    let frame = || tcp().build();
    let real = u16::try_from(frame().0.len() - ETH_LEN).expect("a short packet");
    let short = udp().payload(b"").build();
    let bare = u16::try_from(UP_TO_TRANSPORT + UDP_HEADER - ETH_LEN).expect("28");
    vec![
        case(
            "a total length of one byte too many",
            &town,
            frame().total_length(real + 1),
        )
        .ends(Verdict::Truncated),
        case(
            "the largest total length",
            &town,
            frame().total_length(u16::MAX),
        )
        .ends(Verdict::Truncated),
        case(
            "one byte beyond the total length is padding",
            &town,
            frame().total_length(real - 1),
        )
        .forwarded(1),
        case(
            "all behind the headers is padding",
            &town,
            frame().total_length(40),
        )
        .forwarded(1),
        case(
            "a total length that ends within the TCP header",
            &town,
            frame().total_length(39),
        )
        .ends(Verdict::Malformed),
        case(
            "a total length of the IP header alone",
            &town,
            frame().total_length(20),
        )
        .ends(Verdict::Malformed),
        case(
            "a total length that ends within the IP header",
            &town,
            frame().total_length(19),
        )
        .ends(Verdict::Malformed),
        case("a total length of 0", &town, frame().total_length(0)).ends(Verdict::Malformed),
        case(
            "a lying total length on the way to no VIP",
            &town,
            tcp().to(NO_VIP, 80).build().total_length(0),
        )
        .ends(Verdict::NotOurs),
        case("a datagram without payload", &town, short.clone()).forwarded(2),
        case(
            "a datagram padded to Ethernet's shortest frame",
            &town,
            short.clone().padded(60),
        )
        .forwarded(2),
        case(
            "a UDP total length that ends within the header",
            &town,
            short.clone().total_length(bare - 1),
        )
        .ends(Verdict::Malformed),
        case(
            "a UDP total length of one byte too many",
            &town,
            short.clone().total_length(bare + 1),
        )
        .ends(Verdict::Truncated),
        case(
            "the padding may hide one",
            &town,
            short.padded(60).total_length(bare + 1),
        )
        .forwarded(2),
        case(
            "a segment padded to Ethernet's shortest frame",
            &town,
            tcp().payload(b"").build().padded(60),
        )
        .forwarded(1),
        case(
            "a full Ethernet frame",
            &town,
            tcp().payload(&[b'x'; 1460]).build(),
        )
        .forwarded(1),
        case(
            "a jumbo frame, as far as the kernel runs one in a page",
            &town,
            udp().payload(&[b'x'; 3000]).build(),
        )
        .forwarded(2),
        case(
            "a header length beyond the total length",
            &town,
            syn().build().version_and_header_words(4, 15),
        )
        .ends(Verdict::Malformed),
        // Six words end in what was meant as the ports; what follows names none that is served.
        case(
            "a header length that swallows the ports",
            &town,
            frame().version_and_header_words(4, 6),
        )
        .ends(Verdict::Unserved),
    ]
}

fn versions() -> Vec<Case> {
    let town = town();
    let header = |version, words| tcp().build().version_and_header_words(version, words);
    let mut cases = Vec::new();
    for words in 0..5 {
        cases.push(
            case(
                format!("a header of {words} words is too short to be one"),
                &town,
                header(4, words),
            )
            .ends(Verdict::Malformed),
        );
    }
    for version in [0, 3, 5, 6, 15] {
        cases.push(
            case(
                format!("version {version} behind IPv4's EtherType"),
                &town,
                header(version, 5),
            )
            .ends(Verdict::Malformed),
        );
    }
    let other = tcp().to(NO_VIP, 80).build().version_and_header_words(6, 5);
    cases.push(case("a wrong version on the way to no VIP", &town, other).ends(Verdict::NotOurs));
    // The checksum is the backend's to check, as on any switch's way.
    let wrong = tcp().to(VIP, 80).build().with(ETH_LEN + 10, &[0xba, 0xad]);
    cases.push(case("a wrong header checksum", &town, wrong).forwarded(1));
    cases
}
