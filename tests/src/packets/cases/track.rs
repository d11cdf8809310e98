//! What services record beyond TCP in transition: every flow (`track = "always"`), QUIC, clients (`affinity_timeout`).

use std::net::{IpAddr, Ipv4Addr};

use lb_common::{
    flow::{FlowName, Phase},
    pick::{Affinity, Slot},
    service::Track,
    verdict::Verdict,
};

use super::{BOTH, BOTH_PORT, DNS, WEB, town, town6};
use crate::packets::{
    case::{Case, case},
    fixture::{Fixture, Flow},
    frame::{Frame, Packet, icmp, icmp6, syn, syn6, tcp, tcp6, udp, udp6},
    network::{CLIENT, CLIENT_PORT, CLIENT6, VIP, VIP6},
};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for family in [
        Family {
            name: "IPv4",
            town: town(),
            syn: syn(),
            tcp: tcp(),
            udp: udp(),
            client: CLIENT.into(),
        },
        Family {
            name: "IPv6",
            town: town6(),
            syn: syn6(),
            tcp: tcp6(),
            udp: udp6(),
            client: CLIENT6.into(),
        },
    ] {
        cases.extend(family.always());
        cases.extend(family.quic());
        cases.extend(family.clients());
    }
    cases.extend(networks());
    cases.extend(both_protocols());
    cases
}

struct Family {
    name: &'static str,
    town: Fixture,
    syn: Packet,
    tcp: Packet,
    udp: Packet,
    client: IpAddr,
}

fn flow(client: IpAddr, port: u16, service: u16, udp: bool, backend: u16, phase: Phase) -> Flow {
    Flow {
        key: FlowName {
            client,
            ports: u32::from(CLIENT_PORT) << 16 | u32::from(port),
            service,
            udp,
        },
        backend,
        phase,
    }
}

/// A recorded client.
fn client(address: IpAddr, service: u16, backend: u16) -> Flow {
    Flow {
        key: FlowName {
            client: address,
            ports: 0,
            service,
            udp: false,
        },
        backend,
        phase: Phase::Open,
    }
}

impl Family {
    fn say(&self, what: &str) -> String {
        format!("{}: {what}", self.name)
    }

    fn web(&self, backend: u16, phase: Phase) -> Flow {
        flow(self.client, 80, WEB, false, backend, phase)
    }

    fn dns(&self, backend: u16, phase: Phase) -> Flow {
        flow(self.client, 53, DNS, true, backend, phase)
    }

    fn with(&self, packet: &Packet, change: fn(&mut etherparse::TcpHeader)) -> Frame {
        packet.clone().flags(change).build()
    }

    /// An error about a datagram of the backend to the client.
    fn about_udp(&self) -> Frame {
        match self.client {
            IpAddr::V4(_) => {
                let reply = udp().from(VIP, 53).to(CLIENT, CLIENT_PORT).build();
                icmp(3, 3, &reply.0[14..]).build()
            }
            IpAddr::V6(_) => {
                let reply = udp6().from(VIP6, 53).to(CLIENT6, CLIENT_PORT).build();
                icmp6(1, 4, &reply.0[14..]).build()
            }
        }
    }

    fn always(&self) -> Vec<Case> {
        let settled = self.town.clone().track(Track::Always);
        let changing = settled.clone().every_slot(Slot::new(2, 1));
        let (syn, tcp, udp) = (
            self.syn.clone().build(),
            self.tcp.clone().build(),
            self.udp.clone().build(),
        );
        let fin = self.with(&self.tcp, |tcp| tcp.fin = true);
        let rst = self.with(&self.tcp, |tcp| tcp.rst = true);
        vec![
            case(self.say("always: a SYN in a settled slot is recorded"), &settled, syn.clone())
                .forwarded(1)
                .records(self.web(1, Phase::Opening)),
            case(
                self.say("always: a flow that is not known is one of before this service tracked"),
                &settled,
                tcp.clone(),
            )
            .forwarded(1)
            .records(self.web(1, Phase::Open)),
            case(
                self.say("always: a recorded flow stays where it is, though its slot is settled elsewhere"),
                &settled.clone().flow(self.web(3, Phase::Open)),
                tcp.clone(),
            )
            .forwarded(3),
            case(
                self.say("always: the flow's second packet opens it"),
                &settled.clone().flow(self.web(3, Phase::Opening)),
                tcp.clone(),
            )
            .forwarded(3)
            .records(self.web(3, Phase::Open)),
            case(
                self.say("always: FIN closes"),
                &settled.clone().flow(self.web(3, Phase::Open)),
                fin,
            )
            .forwarded(3)
            .records(self.web(3, Phase::Closing)),
            case(
                self.say("always: RST ends"),
                &settled.clone().flow(self.web(3, Phase::Open)),
                rst,
            )
            .forwarded(3)
            .records(self.web(3, Phase::Ended)),
            case(
                self.say("always: a SYN sent again stays"),
                &settled.clone().flow(self.web(3, Phase::Opening)),
                syn.clone(),
            )
            .forwarded(3),
            case(
                self.say("always: a new flow of the same ports goes where its slot says"),
                &settled.clone().flow(self.web(3, Phase::Closing)),
                syn.clone(),
            )
            .forwarded(1)
            .records(self.web(1, Phase::Opening)),
            case(
                self.say("always: a failed backend's flow moves"),
                &settled.clone().flow(self.web(3, Phase::Open)).failed(3),
                tcp.clone(),
            )
            .forwarded(1)
            .records(self.web(1, Phase::Open)),
            case(
                self.say("always: with nobody to take it, a SYN is dropped and not recorded"),
                &settled.clone().every_slot(Slot::settled(0)),
                syn.clone(),
            )
            .ends(Verdict::NoBackend),
            case(
                self.say("always: an unknown flow with nobody to take it"),
                &settled.clone().every_slot(Slot::settled(0)),
                tcp.clone(),
            )
            .ends(Verdict::NoBackend),
            case(self.say("always: a datagram is recorded"), &settled, udp.clone())
                .forwarded(2)
                .records(self.dns(2, Phase::Open)),
            case(
                self.say("always: the next one goes the same way"),
                &settled.clone().flow(self.dns(3, Phase::Open)),
                udp.clone(),
            )
            .forwarded(3),
            case(
                self.say("always: unless that backend has failed"),
                &settled.clone().flow(self.dns(3, Phase::Open)).failed(3),
                udp.clone(),
            )
            .forwarded(2)
            .records(self.dns(2, Phase::Open)),
            case(
                self.say("always: in transition an unknown datagram is a new flow's"),
                &changing,
                udp.clone(),
            )
            .forwarded(2)
            .records(self.dns(2, Phase::Open)),
            case(
                self.say("always: in transition a known one stays"),
                &changing.clone().flow(self.dns(1, Phase::Open)),
                udp,
            )
            .forwarded(1),
            case(
                self.say("always: in transition an unknown segment is older than the change"),
                &changing,
                tcp,
            )
            .forwarded(1)
            .records(self.web(1, Phase::Open)),
            case(self.say("always: in transition a SYN opens"), &changing, syn)
                .forwarded(2)
                .records(self.web(2, Phase::Opening)),
            case(
                self.say("always: an error about a datagram goes where its flow is, and leaves no trace"),
                &settled.clone().flow(self.dns(3, Phase::Open)),
                self.about_udp(),
            )
            .forwarded(3),
            case(
                self.say("always: about an unknown one, where a new flow would go"),
                &settled,
                self.about_udp(),
            )
            .forwarded(2),
        ]
    }

    /// A datagram with these first bytes.
    fn datagram(&self, payload: &[u8]) -> Frame {
        self.udp.clone().payload(payload).build()
    }

    fn quic(&self) -> Vec<Case> {
        let settled = self.town.clone().track(Track::Quic);
        let changing = settled.clone().every_slot(Slot::new(2, 1));
        // Type and version, then a connection ID of eight bytes and more.
        let long = |first: u8, version: u32| {
            let mut payload = vec![first];
            payload.extend(version.to_be_bytes());
            payload.extend([8, 1, 2, 3, 4, 5, 6, 7, 8, 0]);
            payload
        };
        let opening = self.dns(2, Phase::Opening);
        let mut cases = vec![
            case(
                self.say("quic: in a settled slot nothing is recorded"),
                &settled,
                self.datagram(&long(0xc3, 1)),
            )
            .forwarded(2),
            case(
                self.say("quic: an Initial packet sent again stays"),
                &changing.clone().flow(self.dns(3, Phase::Opening)),
                self.datagram(&long(0xc3, 1)),
            )
            .forwarded(3),
            case(
                self.say("quic: one of a connection that was open opens another"),
                &changing.clone().flow(self.dns(3, Phase::Open)),
                self.datagram(&long(0xc3, 1)),
            )
            .forwarded(2)
            .records(opening),
            case(
                self.say("quic: what follows opens the connection"),
                &changing.clone().flow(opening),
                self.datagram(&[0x41; 20]),
            )
            .forwarded(2)
            .records(self.dns(2, Phase::Open)),
            case(
                self.say("quic: a known connection stays"),
                &changing.clone().flow(self.dns(3, Phase::Open)),
                self.datagram(&[0x41; 20]),
            )
            .forwarded(3),
            case(
                self.say("quic: unless its backend has failed"),
                &changing.clone().flow(self.dns(3, Phase::Open)).failed(3),
                self.datagram(&[0x41; 20]),
            )
            .forwarded(2)
            .records(self.dns(2, Phase::Open)),
            case(
                self.say("quic: TCP of such a service is tracked as ever"),
                &changing,
                self.syn.clone().build(),
            )
            .forwarded(2)
            .records(self.web(2, Phase::Opening)),
            case(
                self.say("quic: an error about a connection older than the change leaves no trace"),
                &changing,
                self.about_udp(),
            )
            .forwarded(1),
        ];
        for (what, payload) in [
            ("an Initial packet", long(0xc0, 1)),
            ("one with all bits that are protected", long(0xcf, 1)),
            ("one of version 2 (RFC 9369)", long(0xd0, 0x6b33_43cf)),
            ("one of a draft", long(0xc3, 0xff00_001d)),
            ("one whose fixed bit is greased (RFC 9287)", long(0x80, 1)),
            (
                "one of a version that nobody knows",
                long(0xc3, 0x1a2a_3a4a),
            ),
            ("one cut behind its version", long(0xc3, 1)[..5].to_vec()),
        ] {
            cases.push(
                case(
                    self.say(&format!("quic: {what} opens a connection")),
                    &changing,
                    self.datagram(&payload),
                )
                .forwarded(2)
                .records(opening),
            );
        }
        for (what, payload) in [
            ("a short header", vec![0x40; 30]),
            ("a short header of one byte", vec![0x40]),
            ("an empty datagram", Vec::new()),
            (
                "an Initial packet cut within its version",
                long(0xc3, 1)[..4].to_vec(),
            ),
            ("a 0-RTT packet", long(0xd0, 1)),
            ("a Handshake packet", long(0xe0, 1)),
            ("a Retry packet", long(0xf0, 1)),
            (
                "what is a Retry packet in version 2",
                long(0xc0, 0x6b33_43cf),
            ),
            ("a Version Negotiation packet", long(0xc0, 0)),
            ("something else", vec![0x00; 30]),
        ] {
            cases.push(
                case(
                    self.say(&format!("quic: {what} is an older connection's")),
                    &changing,
                    self.datagram(&payload),
                )
                .forwarded(1)
                .records(self.dns(1, Phase::Open)),
            );
        }
        cases
    }

    fn clients(&self) -> Vec<Case> {
        let settled = self.town.clone().recording_clients();
        let changing = settled.clone().every_slot(Slot::new(2, 1));
        let (syn, tcp, udp) = (
            self.syn.clone().build(),
            self.tcp.clone().build(),
            self.udp.clone().build(),
        );
        let web = |backend| client(self.client, WEB, backend);
        let dns = |backend| client(self.client, DNS, backend);
        vec![
            case(
                self.say("clients: in a settled slot none is recorded"),
                &settled,
                syn.clone(),
            )
            .forwarded(1),
            case(
                self.say(
                    "clients: a client that may be older than the change stays, and is recorded",
                ),
                &changing,
                syn.clone(),
            )
            .forwarded(1)
            .records(web(1))
            .records(self.web(1, Phase::Opening)),
            case(
                self.say("clients: unless its backend is closed to new ones"),
                &changing.clone().closed_to_new(1),
                syn.clone(),
            )
            .forwarded(2)
            .records(web(2))
            .records(self.web(2, Phase::Opening)),
            case(
                self.say("clients: or has failed"),
                &changing.clone().failed(1),
                syn.clone(),
            )
            .forwarded(2)
            .records(web(2))
            .records(self.web(2, Phase::Opening)),
            case(
                self.say("clients: a known client's new flow goes to its backend"),
                &changing.clone().flow(web(3)),
                syn.clone(),
            )
            .forwarded(3)
            .records(self.web(3, Phase::Opening)),
            case(
                self.say("clients: unless that is closed to new flows"),
                &changing.clone().flow(web(3)).closed_to_new(3),
                syn.clone(),
            )
            .forwarded(2)
            .records(web(2))
            .records(self.web(2, Phase::Opening)),
            case(
                self.say(
                    "clients: a known client whose backend has failed goes to the current one",
                ),
                &changing.clone().flow(web(3)).failed(3),
                syn.clone(),
            )
            .forwarded(2)
            .records(web(2))
            .records(self.web(2, Phase::Opening)),
            case(
                self.say("clients: another service's record of the client says nothing"),
                &changing.clone().flow(dns(3)),
                syn.clone(),
            )
            .forwarded(1)
            .records(web(1))
            .records(self.web(1, Phase::Opening)),
            case(
                self.say(
                    "clients: a recorded flow stays where it is, and its client where that is",
                ),
                &changing.clone().flow(web(3)).flow(self.web(4, Phase::Open)),
                tcp.clone(),
            )
            .forwarded(4),
            case(
                self.say("clients: an old flow is recorded, and its client with it"),
                &changing,
                tcp.clone(),
            )
            .forwarded(1)
            .records(web(1))
            .records(self.web(1, Phase::Open)),
            case(
                self.say("clients: but not where new flows of the client would not go"),
                &changing.clone().closed_to_new(1),
                tcp,
            )
            .forwarded(1)
            .records(self.web(1, Phase::Open)),
            case(
                self.say("clients: UDP follows its client"),
                &changing.clone().flow(dns(3)),
                udp.clone(),
            )
            .forwarded(3),
            case(
                self.say("clients: UDP of a client that may be older than the change stays"),
                &changing,
                udp.clone(),
            )
            .forwarded(1)
            .records(dns(1)),
            case(
                self.say("clients: nobody takes new ones, and the old backend is closed"),
                &settled.clone().every_slot(Slot::new(0, 1)).closed_to_new(1),
                syn,
            )
            .ends(Verdict::NoBackend),
            case(
                self.say("clients: nor UDP"),
                &settled.every_slot(Slot::new(0, 1)).closed_to_new(1),
                udp,
            )
            .ends(Verdict::NoBackend),
        ]
    }
}

/// A client is what the affinity takes it for.
fn networks() -> Vec<Case> {
    let changing = town()
        .affinity(Affinity::NETWORK_IPV4)
        .recording_clients()
        .every_slot(Slot::new(2, 1));
    let network = client(Ipv4Addr::new(198, 51, 100, 0).into(), WEB, 3);
    let neighbour = Ipv4Addr::new(198, 51, 100, 200);
    vec![
        case(
            "clients: with affinity network the whole network is one",
            &changing.clone().flow(network),
            syn().from(neighbour, CLIENT_PORT).build(),
        )
        .forwarded(3)
        .records(flow(neighbour.into(), 80, WEB, false, 3, Phase::Opening)),
        case("clients: and is recorded as such", &changing, syn().build())
            .forwarded(1)
            .records(Flow {
                backend: 1,
                ..network
            })
            .records(flow(CLIENT.into(), 80, WEB, false, 1, Phase::Opening)),
    ]
}

/// Flows of both protocols between the same ports are two.
fn both_protocols() -> Vec<Case> {
    let always = town().track(Track::Always);
    let of = |udp, backend, phase| flow(CLIENT.into(), BOTH_PORT, BOTH, udp, backend, phase);
    vec![
        case(
            "a TCP flow's record says nothing about UDP between the same ports",
            &always.clone().flow(of(false, 3, Phase::Open)),
            udp().to_port(BOTH_PORT).build(),
        )
        .forwarded(4)
        .records(of(true, 4, Phase::Open)),
        case(
            "nor the other way round",
            &always.clone().flow(of(true, 3, Phase::Open)),
            tcp().to_port(BOTH_PORT).build(),
        )
        .forwarded(4)
        .records(of(false, 4, Phase::Open)),
        case(
            "each finds its own",
            &always
                .flow(of(true, 3, Phase::Open))
                .flow(of(false, 2, Phase::Open)),
            udp().to_port(BOTH_PORT).build(),
        )
        .forwarded(3),
    ]
}
