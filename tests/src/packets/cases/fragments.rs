//! Fragments: the first one names the ports, the others go where it went.

use std::net::IpAddr;

use lb_common::{
    flow::{FlowName, Phase},
    fragment::FRAGMENT_TICKS,
    pick::{Affinity, Backend, Slot},
    service::Track,
    verdict::Verdict,
    wire::{PROTO_TCP, PROTO_UDP},
};

use super::{DNS, TAGGED, WEB, town, town6};
use crate::packets::{
    case::{Case, case},
    fixture::{Fixture, Flow, Fragments},
    frame::{Packet, extension, icmp, ping, syn, tcp, tcp6, udp, udp6},
    network::{
        CLIENT, CLIENT_PORT, CLIENT6, NEIGHBOUR_MAC, NO_VIP, NO_VIP6, VIP, VIP_ANY, VIP6, VLAN,
    },
};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for family in [
        Family {
            name: "IPv4",
            town: town(),
            tcp: tcp(),
            udp: udp(),
            client: CLIENT.into(),
            vip: VIP.into(),
            no_vip: NO_VIP.into(),
            identification: 0xbeef,
        },
        Family {
            name: "IPv6",
            town: town6(),
            tcp: tcp6(),
            udp: udp6(),
            client: CLIENT6.into(),
            vip: VIP6.into(),
            no_vip: NO_VIP6.into(),
            identification: 0xdead_beef,
        },
    ] {
        cases.extend(family.first());
        cases.extend(family.later());
        cases.extend(family.alone());
        cases.extend(family.malformed());
    }
    cases.extend(of_ipv4());
    cases.extend(of_ipv6());
    cases
}

/// The cases of both families.
struct Family {
    name: &'static str,
    town: Fixture,
    tcp: Packet,
    udp: Packet,
    client: IpAddr,
    vip: IpAddr,
    no_vip: IpAddr,
    identification: u32,
}

/// As many bytes behind the TCP header as make a multiple of eight.
const PIECE: [u8; 28] = [b'x'; 28];
/// Likewise behind the UDP header.
const DATAGRAM: [u8; 32] = [b'x'; 32];

impl Family {
    fn say(&self, what: &str) -> String {
        format!("{}: {what}", self.name)
    }

    fn record(&self, protocol: u8, backend: u16) -> Fragments {
        Fragments {
            source: self.client,
            destination: self.vip,
            protocol,
            identification: self.identification,
            backend,
            silent: 1,
        }
    }

    /// The first fragment of a segment, and of a datagram.
    fn first_tcp(&self) -> Packet {
        self.tcp
            .clone()
            .payload(&PIECE)
            .fragmented(self.identification, 0, true)
    }

    fn first_udp(&self) -> Packet {
        self.udp
            .clone()
            .payload(&DATAGRAM)
            .fragmented(self.identification, 0, true)
    }

    /// A later one, whose first bytes are no ports.
    fn later_tcp(&self) -> Packet {
        self.tcp
            .clone()
            .payload(&PIECE)
            .fragmented(self.identification, 100, true)
    }

    fn later_udp(&self) -> Packet {
        self.udp
            .clone()
            .payload(&DATAGRAM)
            .fragmented(self.identification, 100, true)
    }

    fn first(&self) -> Vec<Case> {
        let town = &self.town;
        let changing = town.clone().every_slot(Slot::new(2, 1));
        let open = |backend, phase| Flow {
            key: FlowName {
                client: self.client,
                ports: u32::from(CLIENT_PORT) << 16 | 80,
                service: WEB,
                udp: false,
            },
            backend,
            phase,
        };
        vec![
            case(
                self.say("the first fragment of a segment goes to its flow's backend"),
                town,
                self.first_tcp().build(),
            )
            .forwarded(1)
            .expects_fragments(&self.record(PROTO_TCP, 1)),
            case(
                self.say("the first fragment of a datagram as well"),
                town,
                self.first_udp().build(),
            )
            .forwarded(2)
            .expects_fragments(&self.record(PROTO_UDP, 2)),
            case(
                self.say("a first fragment with an identification that is known takes its place"),
                &town.clone().fragments(self.record(PROTO_UDP, 3)),
                self.first_udp().build(),
            )
            .forwarded(2)
            .expects_fragments(&self.record(PROTO_UDP, 2)),
            case(
                self.say("the first fragment of an old flow stays with it"),
                &changing,
                self.first_tcp().build(),
            )
            .forwarded(1)
            .records(open(1, Phase::Open))
            .expects_fragments(&self.record(PROTO_TCP, 1)),
            case(
                self.say("the first fragment of a recorded flow follows the record"),
                &changing.clone().flow(open(3, Phase::Open)),
                self.first_tcp().build(),
            )
            .forwarded(3)
            .expects_fragments(&self.record(PROTO_TCP, 3)),
            case(
                self.say("a first fragment for an unserved port"),
                town,
                self.first_tcp().to_port(81).build(),
            )
            .ends(Verdict::Unserved),
            case(
                self.say("a first fragment for another address"),
                town,
                self.first_tcp().to(self.no_vip, 80).build(),
            )
            .ends(Verdict::NotOurs),
            case(
                self.say("a first fragment for another host"),
                town,
                self.first_tcp().to_mac(NEIGHBOUR_MAC).build(),
            )
            .ends(Verdict::OtherHost),
            case(
                self.say("a first fragment from the VIP itself"),
                town,
                self.first_tcp().from(self.vip, 80).build(),
            )
            .ends(Verdict::MartianSource),
            case(
                self.say("a first fragment with nobody to take it"),
                &town.clone().every_slot(Slot::settled(0)),
                self.first_tcp().build(),
            )
            .ends(Verdict::NoBackend),
            case(
                self.say("a first fragment whose backend's MAC address is not known"),
                &town.clone().without_mac(1),
                self.first_tcp().build(),
            )
            .ends(Verdict::NoNeighbour)
            .expects_fragments(&self.record(PROTO_TCP, 1)),
            case(
                self.say("a first fragment gets its backend's tag"),
                &town.clone().every_slot(Slot::settled(TAGGED)),
                self.first_udp().build(),
            )
            .forwarded_as(TAGGED, self.first_udp().vlan(VLAN).build())
            .expects_fragments(&self.record(PROTO_UDP, TAGGED)),
            case(
                self.say("a first fragment for this very host"),
                &town
                    .clone()
                    .backend(11, Backend::LOCAL_PORT)
                    .every_slot(Slot::settled(11)),
                self.first_udp().build(),
            )
            .local(11)
            .expects_fragments(&self.record(PROTO_UDP, 11)),
        ]
    }

    fn later(&self) -> Vec<Case> {
        let town = &self.town;
        let with = |record: Fragments| town.clone().fragments(record);
        let known = with(self.record(PROTO_TCP, 3));
        let others = [
            (
                "another client's",
                Fragments {
                    source: self.no_vip,
                    ..self.record(PROTO_TCP, 3)
                },
            ),
            (
                "another destination's",
                Fragments {
                    destination: self.no_vip,
                    ..self.record(PROTO_TCP, 3)
                },
            ),
            (
                "another identification's",
                Fragments {
                    identification: self.identification ^ 1,
                    ..self.record(PROTO_TCP, 3)
                },
            ),
        ];
        let mut cases = vec![
            case(
                self.say("a later fragment goes where the first one went"),
                &known,
                self.later_tcp().build(),
            )
            .forwarded(3),
            case(
                self.say("so does the last one"),
                &known,
                self.tcp
                    .clone()
                    .payload(b"odd")
                    .fragmented(self.identification, 200, false)
                    .build(),
            )
            .forwarded(3),
            case(
                self.say("so does one of a datagram"),
                &with(self.record(PROTO_UDP, 3)),
                self.later_udp().build(),
            )
            .forwarded(3),
            case(
                self.say("even behind the other interface"),
                &with(self.record(PROTO_UDP, 5)),
                self.later_udp().build(),
            )
            .redirected(5),
            case(
                self.say("with its tag"),
                &with(self.record(PROTO_UDP, TAGGED)),
                self.later_udp().vlan(7).build(),
            )
            .forwarded_as(TAGGED, self.later_udp().vlan(VLAN).build()),
            case(
                self.say("even to an unserved port: it names none"),
                &known,
                self.later_tcp().to_port(81).build(),
            )
            .forwarded(3),
            case(
                self.say("a record is believed for as long as a host waits"),
                &with(Fragments {
                    // One tick of the clock may pass meanwhile.
                    silent: FRAGMENT_TICKS - 2,
                    ..self.record(PROTO_TCP, 3)
                }),
                self.later_tcp().build(),
            )
            .forwarded(3),
            case(
                self.say("no longer"),
                &with(Fragments {
                    silent: FRAGMENT_TICKS + 1,
                    ..self.record(PROTO_TCP, 3)
                }),
                self.later_tcp().build(),
            )
            .ends(Verdict::Fragment),
            case(
                self.say("a later fragment whose first one has not been seen"),
                town,
                self.later_tcp().build(),
            )
            .ends(Verdict::Fragment),
            case(
                self.say("one of a datagram"),
                town,
                self.later_udp().build(),
            )
            .ends(Verdict::Fragment),
            case(
                self.say("one of a protocol that no service of the VIP has all ports of"),
                town,
                self.later_udp()
                    .fragmented(self.identification, 0x1fff, false)
                    .payload(b"")
                    .build(),
            )
            .ends(Verdict::Malformed),
            case(
                self.say("a later fragment whose backend has failed"),
                &known.clone().failed(3),
                self.later_tcp().build(),
            )
            .ends(Verdict::Fragment),
            case(
                self.say("a later fragment whose backend's MAC address is not known"),
                &known.clone().without_mac(3),
                self.later_tcp().build(),
            )
            .ends(Verdict::NoNeighbour),
            case(
                self.say("a later fragment for another address"),
                &known,
                self.later_tcp().to(self.no_vip, 80).build(),
            )
            .ends(Verdict::NotOurs),
            case(
                self.say("a later fragment for another host"),
                &known,
                self.later_tcp().to_mac(NEIGHBOUR_MAC).build(),
            )
            .ends(Verdict::OtherHost),
            case(
                self.say("a later fragment from the VIP itself"),
                &known,
                self.later_tcp().from(self.vip, 80).build(),
            )
            .ends(Verdict::MartianSource),
        ];
        cases.extend(others.map(|(whose, record)| {
            case(
                self.say(&format!("{whose} record says nothing about this packet")),
                &with(record),
                self.later_tcp().build(),
            )
            .ends(Verdict::Fragment)
        }));
        cases
    }

    /// Later fragments whose first one has not been seen, where all ports of the protocol share one pick without ports.
    fn alone(&self) -> Vec<Case> {
        let shared = |affinity: Affinity| {
            let mut fixture = self.town.clone().affinity(affinity);
            for service in &mut fixture.services {
                service.fragments = service.id == WEB || service.id == DNS;
            }
            fixture
        };
        let client = shared(match self.client {
            IpAddr::V4(_) => Affinity::CLIENT_IPV4,
            IpAddr::V6(_) => Affinity::CLIENT_IPV6,
        });
        let ports = shared(match self.client {
            IpAddr::V4(_) => Affinity::NONE_IPV4,
            IpAddr::V6(_) => Affinity::NONE_IPV6,
        });
        let (tcp, udp) = (self.later_tcp().build(), self.later_udp().build());
        vec![
            case(
                self.say("a fragment needs no first one where the ports don't pick"),
                &client,
                tcp.clone(),
            )
            .forwarded(1),
            case(self.say("nor does one of a datagram"), &client, udp.clone()).forwarded(2),
            case(self.say("it does where they do"), &ports, tcp.clone()).ends(Verdict::Fragment),
            case(
                self.say("what its first one says goes before"),
                &client.clone().fragments(self.record(PROTO_TCP, 3)),
                tcp.clone(),
            )
            .forwarded(3),
            case(
                self.say("in a slot in transition a record might name another backend"),
                &client.clone().every_slot(Slot::new(2, 1)),
                tcp.clone(),
            )
            .ends(Verdict::Fragment),
            case(
                self.say("of UDP none is recorded: the new pick has it"),
                &client.clone().every_slot(Slot::new(2, 1)),
                udp.clone(),
            )
            .forwarded(2),
            case(
                self.say("unless it is QUIC"),
                &client
                    .clone()
                    .track(Track::Quic)
                    .every_slot(Slot::new(2, 1)),
                udp.clone(),
            )
            .ends(Verdict::Fragment),
            case(
                self.say("QUIC in a settled slot is not recorded either"),
                &client.clone().track(Track::Quic),
                udp.clone(),
            )
            .forwarded(2),
            case(
                self.say("or its client may be recorded"),
                &client
                    .clone()
                    .recording_clients()
                    .every_slot(Slot::new(2, 1)),
                udp.clone(),
            )
            .ends(Verdict::Fragment),
            case(
                self.say("where every flow is recorded, this one's may name another backend"),
                &client.clone().track(Track::Always),
                tcp.clone(),
            )
            .ends(Verdict::Fragment),
            case(
                self.say("alone, with nobody to take it"),
                &client.clone().every_slot(Slot::settled(0)),
                tcp,
            )
            .ends(Verdict::NoBackend),
            case(
                self.say("the entry for fragments serves no port of its own"),
                &client,
                self.tcp.clone().to_port(81).build(),
            )
            .ends(Verdict::Unserved),
        ]
    }

    fn malformed(&self) -> Vec<Case> {
        let known = self.town.clone().fragments(self.record(PROTO_TCP, 3));
        let piece = |offset, more, payload: &[u8]| {
            self.tcp
                .clone()
                .payload(payload)
                .fragmented(self.identification, offset, more)
                .build()
        };
        vec![
            case(
                self.say("a first fragment whose length is no multiple of eight"),
                &known,
                piece(0, true, b"x"),
            ),
            case(
                self.say(
                    "a later fragment whose length is no multiple of eight, and is not the last",
                ),
                &known,
                piece(100, true, b"x"),
            ),
            // RFC 1858 section 3.2, RFC 3128: it would change the flags that the first one showed.
            case(
                self.say("a later fragment that overlaps the TCP header"),
                &known,
                piece(1, true, &PIECE),
            ),
            case(
                self.say("a last fragment that overlaps the end of the TCP header"),
                &known,
                piece(2, false, b""),
            ),
            case(
                self.say("a last fragment beyond the largest packet there is"),
                &known,
                piece(0x1fff, false, &PIECE),
            ),
            case(
                self.say("a first fragment that ends within the TCP header"),
                &known,
                // The UDP header and eight bytes more, read as TCP.
                {
                    let frame = self
                        .udp
                        .clone()
                        .payload(&[0; 8])
                        .fragmented(self.identification, 0, true)
                        .build();
                    let at = if self.client.is_ipv4() { 23 } else { 54 };
                    frame.with(at, &[PROTO_TCP])
                },
            ),
        ]
        .into_iter()
        .map(|given| given.ends(Verdict::Malformed))
        .collect()
    }
}

/// What RFC 8200 section 4.5 says of fragments: those behind the first one may name another next header, which counts nothing.
fn of_ipv6() -> Vec<Case> {
    const ID: u32 = 7;
    /// Where the fragment header begins, without other extension headers.
    const AT: usize = 54;
    const DESTINATION_OPTIONS: u8 = 60;
    let known = town6().fragments(Fragments {
        source: CLIENT6.into(),
        destination: VIP6.into(),
        protocol: PROTO_TCP,
        identification: ID,
        backend: 3,
        silent: 1,
    });
    let later = || tcp6().payload(&PIECE).fragmented(ID, 100, true);
    // The options behind the fragment header: only the first fragment has them.
    let first = tcp6()
        .payload(&PIECE)
        .extended(DESTINATION_OPTIONS, extension(1))
        .fragmented(ID, 0, true)
        .build()
        .with(20, &[44])
        .with(AT, &[DESTINATION_OPTIONS, 0, 0, 1, 0, 0, 0, 7])
        .with(AT + 8, &[PROTO_TCP, 0, 1, 4, 0, 0, 0, 0]);
    vec![
        case(
            "IPv6: the first fragment, with destination options behind its fragment header",
            &town6(),
            first,
        )
        .forwarded(1)
        .expects_fragments(&Fragments {
            source: CLIENT6.into(),
            destination: VIP6.into(),
            protocol: PROTO_TCP,
            identification: ID,
            backend: 1,
            silent: 0,
        }),
        case(
            "IPv6: a later fragment, which names these options, goes where the first one went",
            &known,
            later().build().with(AT, &[DESTINATION_OPTIONS]),
        )
        .forwarded(3),
        case(
            "IPv6: nor does any other protocol matter there",
            &known,
            later().build().with(AT, &[PROTO_UDP]),
        )
        .forwarded(3),
        case(
            "IPv6: nobody knows whose it is before the first one has come",
            &town6(),
            later().build().with(AT, &[DESTINATION_OPTIONS]),
        )
        .ends(Verdict::Fragment),
    ]
}

fn of_ipv4() -> Vec<Case> {
    let town = town();
    let mut any = town.clone().affinity(Affinity::CLIENT_IPV4);
    for service in &mut any.services {
        service.fragments = service.id == 3;
    }
    let beside = town.clone().affinity(Affinity::CLIENT_IPV4);
    let of_any = || {
        tcp()
            .to(VIP_ANY, 443)
            .payload(&PIECE)
            .fragmented(7, 100, true)
            .build()
    };
    let of_udp = town.clone().fragments(Fragments {
        source: CLIENT.into(),
        destination: VIP.into(),
        protocol: PROTO_UDP,
        identification: 7,
        backend: 3,
        silent: 1,
    });
    vec![
        case(
            "another protocol's record says nothing about this packet",
            &of_udp,
            tcp().payload(&PIECE).fragmented(7, 100, true).build(),
        )
        .ends(Verdict::Fragment),
        case(
            "a first fragment with options",
            &town,
            syn()
                .payload(&[b'x'; 8])
                .option_words(2)
                .fragmented(7, 0, true)
                .build(),
        )
        .forwarded(1)
        .expects_fragments(&Fragments {
            source: CLIENT.into(),
            destination: VIP.into(),
            protocol: PROTO_TCP,
            identification: 7,
            backend: 1,
            silent: 0,
        }),
        case(
            "a fragment that came before its first one, where `any` has all ports",
            &any,
            of_any(),
        )
        .forwarded(3),
        case(
            "where another service has one of them, it might be that one's",
            &beside,
            of_any(),
        )
        .ends(Verdict::Fragment),
        case(
            "a later fragment of a protocol without ports",
            &town,
            ping().payload(&[0; 16]).fragmented(7, 1, false).build(),
        )
        .ends(Verdict::Fragment),
        case(
            "the first fragment of a ping",
            &town,
            ping().payload(&[0; 16]).fragmented(7, 0, true).build(),
        )
        .ends(Verdict::Fragment),
        case(
            "the first fragment of an ICMP error",
            &town,
            icmp(3, 3, &[0; 32]).fragmented(7, 0, true).build(),
        )
        .ends(Verdict::Fragment),
        case(
            "a later fragment without content",
            &town,
            udp()
                .payload(b"")
                .fragmented(7, 100, false)
                .build()
                .total_length(20),
        )
        .ends(Verdict::Malformed),
        case(
            "the last fragment that ends with the largest packet there is",
            &of_udp,
            // 20 bytes of header, 8188 times 8 bytes before it, and 11 in it make 65,535.
            udp().payload(b"abc").fragmented(7, 8188, false).build(),
        )
        .forwarded(3),
        case(
            "one byte more",
            &town,
            udp().payload(b"abcd").fragmented(7, 8188, false).build(),
        )
        .ends(Verdict::Malformed),
    ]
}
