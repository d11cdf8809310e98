//! Random frames that know what a frame is made of: well-formed ones of every kind the data path tells apart, each changed in
//! its fields, lengths and bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::wire::{
    ETH_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN,
    IPV4_LEN, IPV6_LEN, NEXT_DESTINATION, NEXT_FRAGMENT, NEXT_HOP_BY_HOP, NEXT_ROUTING, PROTO_ICMP,
    PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, TCP_FLAGS,
};
use lb_common::{fence, presence};

use lb_userspace::neighbour::cluster_frames;

use super::{
    cases::BOTH_PORT,
    frame::{
        Frame, Packet, advertisement, extension, icmp, icmp6, link_layer_option, ping, ping6,
        solicitation, syn, syn6, tcp, tcp6, udp, udp6, who_has,
    },
    network::{
        BROADCAST_MAC, CLIENT, CLIENT_PORT, CLIENT6, CLUSTER_MAC, DIRECTOR_MAC, MULTICAST_MAC,
        NEIGHBOUR, NEIGHBOUR_MAC, NEIGHBOUR6, NO_VIP, NO_VIP6, VIP, VIP_ANY, VIP6, VIP6_ANY, VLAN,
    },
};

/// A stream of numbers that its seed decides: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let first = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let second = (first ^ first >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        second ^ second >> 31
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() >> 32) as usize % end
    }

    /// Once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of these.
    ///
    /// # Panics
    /// Where there are none.
    pub fn of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }

    fn byte(&mut self) -> u8 {
        (self.number() >> 56) as u8
    }
}

/// Makes random frames.
#[derive(Clone, Debug)]
pub struct Frames {
    random: Random,
    templates: Vec<Frame>,
}

impl Frames {
    /// Those of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            templates: templates(),
        }
    }

    /// The next frame: now and then shorter than an Ethernet header.
    ///
    /// # Panics
    /// Never.
    pub fn frame(&mut self) -> Frame {
        let random = &mut self.random;
        if random.once_in(200) {
            let len = random.below(120);
            return Frame((0..len).map(|_| random.byte()).collect());
        }
        let mut bytes = random.of(&self.templates).0.clone();
        identity(random, &mut bytes);
        // Half of them stay well-formed, so that flows come about and go on.
        let changes = [0, 0, 0, 0, 1, 1, 2, 4][random.below(8)];
        for _ in 0..changes {
            change(random, &mut bytes);
        }
        Frame(bytes)
    }
}

/// The token that fences backend 8 in one of the templates.
pub const FENCING_TOKEN: u64 = 0x0102_0304_0506_0708;

/// What a question about service 1 says in one of the templates.
pub const PRESENCE_ASKED: u64 = 0x1112_1314_1516_1718;

/// Well-formed frames: one at least of each kind that the data path tells apart.
fn templates() -> Vec<Frame> {
    let of_node =
        |payload: &[u8]| Frame(cluster_frames::frame(CLUSTER_MAC, NEIGHBOUR_MAC, payload));
    let mut frames = vec![
        of_node(&fence::payload(FENCING_TOKEN, 8)),
        of_node(&presence::question(PRESENCE_ASKED, 1, 7)),
    ];
    for (tcp, syn, udp, ping, vip, any, client) in [
        (
            tcp(),
            syn(),
            udp(),
            ping(),
            IpAddr::V4(VIP),
            IpAddr::V4(VIP_ANY),
            IpAddr::V4(CLIENT),
        ),
        (
            tcp6(),
            syn6(),
            udp6(),
            ping6(),
            IpAddr::V6(VIP6),
            IpAddr::V6(VIP6_ANY),
            IpAddr::V6(CLIENT6),
        ),
    ] {
        let fin = tcp.clone().flags(|tcp| tcp.fin = true);
        let rst = tcp.clone().flags(|tcp| tcp.rst = true);
        let quic = |first: u8, version: u32| {
            let mut payload = vec![first];
            payload.extend(version.to_be_bytes());
            payload.extend([8, 1, 2, 3, 4, 5, 6, 7, 8]);
            udp.clone().payload(&payload)
        };
        let whole = [
            tcp.clone(),
            tcp.clone().to_port(443),
            tcp.clone().to_port(BOTH_PORT),
            tcp.clone().to(any, 8080),
            tcp.clone().to(any, 443),
            syn.clone(),
            syn.clone().to_port(443),
            syn.clone().to(any, 8080),
            fin,
            rst,
            udp.clone(),
            udp.clone().to_port(BOTH_PORT),
            udp.clone().payload(b""),
            quic(0xc3, 1),
            quic(0xd3, 0x6b33_43cf),
            quic(0xe3, 1),
            quic(0xc3, 0),
            quic(0x43, 0x1234_5678),
            ping,
        ];
        frames.extend(whole.iter().cloned().map(Packet::build));
        frames.extend(
            whole
                .iter()
                .step_by(3)
                .cloned()
                .map(|packet| packet.vlan(VLAN).build()),
        );
        frames.push(tcp.clone().vlan(7).vlan(VLAN).build());
        frames.push(syn.clone().tagged(ETHERTYPE_QINQ, 7).vlan(8).build());
        for identification in [1, 2, 3] {
            let piece = |packet: &Packet, len, offset, more| {
                packet
                    .clone()
                    .payload(&vec![b'x'; len])
                    .fragmented(identification, offset, more)
                    .build()
            };
            frames.extend([
                piece(&tcp, 28, 0, true),
                piece(&tcp, 28, 6, true),
                piece(&tcp, 3, 12, false),
                piece(&udp, 32, 0, true),
                piece(&udp, 32, 5, true),
                piece(&udp, 5, 10, false),
            ]);
        }
        for (about, from, port) in [
            (&tcp, vip, 80),
            (&tcp, any, 443),
            (&udp, vip, 53),
            (
                &udp.clone().extended(NEXT_DESTINATION, extension(1)),
                vip,
                53,
            ),
        ] {
            let about = about
                .clone()
                .from(from, port)
                .to(client, CLIENT_PORT)
                .build();
            let quoted = &about.0[ETH_LEN..];
            let message = if vip.is_ipv4() {
                icmp(3, 4, quoted)
            } else {
                icmp6(2, 0, quoted)
            };
            frames.push(message.to(from, 0).build());
        }
    }
    frames.extend([
        tcp().option_words(3).build(),
        syn().option_words(10).build(),
        udp().option_words(1).build(),
        tcp6().extended(NEXT_HOP_BY_HOP, extension(1)).build(),
        syn6()
            .extended(NEXT_HOP_BY_HOP, extension(1))
            .extended(NEXT_DESTINATION, extension(2))
            .build(),
        udp6()
            .extended(NEXT_ROUTING, extension(3))
            .fragmented(4, 0, false)
            .build(),
        (0..6)
            .fold(tcp6(), |packet, _| {
                packet.extended(NEXT_DESTINATION, extension(1))
            })
            .build(),
        who_has(VIP, NEIGHBOUR).build(),
        who_has(VIP_ANY, Ipv4Addr::UNSPECIFIED).build(),
        who_has(NO_VIP, NEIGHBOUR).build(),
        who_has(VIP, NEIGHBOUR).build().pushed(ETHERTYPE_VLAN, 7),
    ]);
    for target in [VIP6, VIP6_ANY, NO_VIP6] {
        frames.extend([
            solicitation(target, &link_layer_option(1, NEIGHBOUR_MAC)).build(),
            solicitation(target, &[]).build(),
            solicitation(target, &[])
                .from(Ipv6Addr::UNSPECIFIED, 0)
                .build(),
            solicitation(target, &[14, 1, 1, 2, 3, 4, 5, 6])
                .vlan(7)
                .build(),
            advertisement(target, NEIGHBOUR_MAC, NEIGHBOUR6, DIRECTOR_MAC, true).build(),
        ]);
    }
    frames
}

/// Where the parts of a frame are, as far as it has them.
struct Anatomy {
    ethertype: u16,
    l3: usize,
    protocol: u8,
    l4: usize,
}

fn anatomy(bytes: &[u8]) -> Anatomy {
    let word = |at: usize| match bytes.get(at..at + 2) {
        Some([a, b]) => u16::from_be_bytes([*a, *b]),
        _ => 0,
    };
    let byte = |at: usize| bytes.get(at).copied().unwrap_or_default();
    let (mut ethertype, mut l3) = (word(12), ETH_LEN);
    while matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ) {
        ethertype = word(l3 + 2);
        l3 += 4;
    }
    let (mut protocol, mut l4) = (0, l3);
    if ethertype == ETHERTYPE_IPV4 {
        protocol = byte(l3 + 9);
        l4 = l3 + usize::from(byte(l3) & 15) * 4;
    } else if ethertype == ETHERTYPE_IPV6 {
        protocol = byte(l3 + 6);
        l4 = l3 + IPV6_LEN;
        while matches!(
            protocol,
            NEXT_HOP_BY_HOP | NEXT_ROUTING | NEXT_FRAGMENT | NEXT_DESTINATION
        ) && l4 < bytes.len()
        {
            let words = if protocol == NEXT_FRAGMENT {
                0
            } else {
                byte(l4 + 1)
            };
            protocol = byte(l4);
            l4 += (usize::from(words) + 1) * 8;
        }
    }
    Anatomy {
        ethertype,
        l3,
        protocol,
        l4,
    }
}

/// Writes where the frame is long enough.
fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + new.len()) {
        place.copy_from_slice(new);
    }
}

/// One of few clients and few of its ports, so that flows come back.
fn identity(random: &mut Random, bytes: &mut [u8]) {
    let Anatomy {
        ethertype,
        l3,
        protocol,
        l4,
    } = anatomy(bytes);
    let host = random.below(16) as u8;
    let port = CLIENT_PORT + random.below(8) as u16;
    match (ethertype, protocol) {
        (ETHERTYPE_IPV4, PROTO_TCP | PROTO_UDP) => {
            put(bytes, l3 + 15, &[host]);
            put(bytes, l4, &port.to_be_bytes());
        }
        (ETHERTYPE_IPV6, PROTO_TCP | PROTO_UDP) => {
            put(bytes, l3 + 23, &[host]);
            put(bytes, l4, &port.to_be_bytes());
        }
        // The quoted packet's destination and its port.
        (ETHERTYPE_IPV4, PROTO_ICMP) => {
            put(bytes, l4 + 8 + 19, &[host]);
            put(bytes, l4 + 8 + IPV4_LEN + 2, &port.to_be_bytes());
        }
        (ETHERTYPE_IPV6, PROTO_ICMPV6) if bytes.get(l4).is_some_and(|kind| *kind < 128) => {
            put(bytes, l4 + 8 + 39, &[host]);
            put(bytes, l4 + 8 + IPV6_LEN + 2, &port.to_be_bytes());
        }
        _ => {}
    }
}

/// Changes one thing.
fn change(random: &mut Random, bytes: &mut Vec<u8>) {
    let Anatomy {
        ethertype,
        l3,
        protocol,
        l4,
    } = anatomy(bytes);
    let ipv4 = ethertype == ETHERTYPE_IPV4;
    match random.below(20) {
        0 => {
            let macs = [
                DIRECTOR_MAC,
                CLUSTER_MAC,
                BROADCAST_MAC,
                MULTICAST_MAC,
                NEIGHBOUR_MAC,
            ];
            put(bytes, 0, &random.of(&macs)[..]);
        }
        1 if bytes.len() >= 12 => {
            let ethertype = *random.of(&[ETHERTYPE_VLAN, ETHERTYPE_VLAN, ETHERTYPE_QINQ]);
            let control = *random.of(&[0, 7, VLAN, 200, 0xf064, 0xffff]);
            let ([a, b], [c, d]) = (ethertype.to_be_bytes(), u16::to_be_bytes(control));
            bytes.splice(12..12, [a, b, c, d]);
        }
        2 if bytes.len() >= 16 && l3 > ETH_LEN => {
            bytes.drain(12..16);
        }
        3 => {
            let types = [
                ETHERTYPE_IPV4,
                ETHERTYPE_IPV6,
                ETHERTYPE_ARP,
                ETHERTYPE_VLAN,
                0x88cc,
            ];
            put(bytes, l3 - 2, &random.of(&types).to_be_bytes());
        }
        // Who sent it, and to whom.
        4 if ipv4 => {
            let others = [
                VIP,
                Ipv4Addr::UNSPECIFIED,
                Ipv4Addr::LOCALHOST,
                Ipv4Addr::BROADCAST,
            ];
            put(bytes, l3 + 12, &random.of(&others).octets());
        }
        4 => {
            let others = [
                VIP6,
                Ipv6Addr::UNSPECIFIED,
                Ipv6Addr::LOCALHOST,
                VIP.to_ipv6_mapped(),
            ];
            put(bytes, l3 + 8, &random.of(&others).octets());
        }
        5 if ipv4 => put(bytes, l3 + 16, &random.of(&[VIP, VIP_ANY, NO_VIP]).octets()),
        5 => put(
            bytes,
            l3 + 24,
            &random.of(&[VIP6, VIP6_ANY, NO_VIP6]).octets(),
        ),
        6 => {
            let ports = [
                80,
                443,
                53,
                BOTH_PORT,
                0,
                81,
                u16::MAX,
                random.number() as u16,
            ];
            put(bytes, l4 + 2, &random.of(&ports).to_be_bytes());
        }
        7 if protocol == PROTO_TCP => {
            let flags = random.byte() & *random.of(&[0xff, 0x12, 0x03, 0x17]);
            put(bytes, l4 + TCP_FLAGS, &[flags]);
        }
        7 => {
            let kinds = [
                0,
                1,
                2,
                3,
                4,
                8,
                11,
                12,
                128,
                129,
                133,
                135,
                136,
                random.byte(),
            ];
            put(bytes, l4, &[*random.of(&kinds)]);
        }
        8 => {
            let protocols = [
                PROTO_TCP,
                PROTO_UDP,
                PROTO_ICMP,
                PROTO_ICMPV6,
                59,
                random.byte(),
            ];
            let at = if ipv4 { l3 + 9 } else { l3 + 6 };
            put(bytes, at, &[*random.of(&protocols)]);
        }
        // Lengths that lie, mostly a little.
        9 | 10 => {
            let at = if ipv4 { l3 + 2 } else { l3 + 4 };
            let Some([a, b]) = bytes.get(at..at + 2) else {
                return;
            };
            let real = u16::from_be_bytes([*a, *b]);
            let little = (random.below(25) as u16).wrapping_sub(12);
            let length = if random.once_in(6) {
                *random.of(&[0, 1, 7, 8, 19, 20, 27, 28, 39, 40, 1500, u16::MAX])
            } else {
                real.wrapping_add(little)
            };
            put(bytes, at, &length.to_be_bytes());
        }
        11 if ipv4 => {
            let first = [0x44, 0x46, 0x4f, 0x55, 0x65, 0x40, random.byte()];
            put(bytes, l3, &[*random.of(&first)]);
        }
        12 if ipv4 => {
            let offset = *random.of(&[0, 1, 2, 3, 6, 100, 0x1fff]);
            let more = u16::from(random.once_in(2)) << 13;
            put(bytes, l3 + 6, &(offset | more).to_be_bytes());
            put(bytes, l3 + 4, &[0, random.below(5) as u8]);
        }
        11 | 12 if ethertype == ETHERTYPE_IPV6 && bytes.len() >= l3 + IPV6_LEN => {
            extend(random, bytes, l3);
        }
        13 => {
            let len = random.below(bytes.len() + 1);
            bytes.truncate(len);
        }
        14 => {
            let more = random.below(60);
            bytes.extend((0..more).map(|_| u8::from(random.once_in(3))));
        }
        15 | 16 if !bytes.is_empty() => {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }
        17 if !bytes.is_empty() => {
            let at = random.below(bytes.len());
            bytes[at] = random.byte();
        }
        18 => {
            // The fields of the extension headers, of the quoted packet, of the options.
            let at = l3 + random.below(60);
            put(bytes, at, &[random.byte()]);
        }
        _ => identity(random, bytes),
    }
}

/// Puts an extension header behind the IPv6 header, with a true length of the packet.
fn extend(random: &mut Random, bytes: &mut Vec<u8>, l3: usize) {
    let kinds = [
        NEXT_HOP_BY_HOP,
        NEXT_ROUTING,
        NEXT_FRAGMENT,
        NEXT_DESTINATION,
    ];
    let kind = *random.of(&kinds);
    let mut header = if kind == NEXT_FRAGMENT {
        let offset = *random.of(&[0u16, 0, 1, 2, 5, 100]) << 3 | u16::from(random.once_in(2));
        let [a, b] = offset.to_be_bytes();
        vec![0, 0, a, b, 0, 0, 0, random.below(4) as u8]
    } else {
        extension(*random.of(&[1, 1, 2, 3, 20, 128, 129]))
    };
    if kind == NEXT_ROUTING {
        header[3] = u8::from(random.once_in(3));
    }
    header[0] = bytes[l3 + 6];
    bytes[l3 + 6] = kind;
    let payload = u16::from_be_bytes([bytes[l3 + 4], bytes[l3 + 5]]);
    let longer = payload.wrapping_add(header.len() as u16);
    bytes[l3 + 4..l3 + 6].copy_from_slice(&longer.to_be_bytes());
    let start = l3 + IPV6_LEN;
    bytes.splice(start..start, header);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_all_frames() {
        let frames = |seed| {
            let mut frames = Frames::new(seed);
            (0..500).map(|_| frames.frame()).collect::<Vec<_>>()
        };
        assert_eq!(frames(7), frames(7));
        assert_ne!(frames(7), frames(8));
    }

    #[test]
    fn frames_fit_into_the_page_that_the_kernel_runs_them_in() {
        let mut frames = Frames::new(1);
        for _ in 0..20_000 {
            // bpf_prog_test_run_xdp in net/bpf/test_run.c: a page without headroom and shared information.
            assert!(frames.frame().0.len() <= 3500);
        }
    }
}
