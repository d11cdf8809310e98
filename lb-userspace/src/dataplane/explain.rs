//! What the data path would do with a packet: `lb_common::forward::process_any`, the code of the kernel program, run over
//! the pinned maps with a packet that is only thought of. Nothing is recorded and nothing is counted.

use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    abi::{Bucket, Control, Fence, HotLine, Port, Presence, SampleRing, Vip6},
    features::Features,
    flow::{FlowBucket, FlowBucket6},
    forward::process_any,
    packet::{Buffer, HEADROOM},
    pick::{Backend, Slot},
    tables::{Event, Step, Tables},
    verdict::Verdict,
    wire::{
        ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, IPV4_LEN, IPV6_LEN, PROTO_TCP,
        PROTO_UDP, TCP_ACK, TCP_FLAGS, TCP_LEN, TCP_SYN, UDP_LEN, VLAN_ID, mac_bytes,
    },
};

use super::{DataplaneError, Maps, clock::coarse_ticks};

/// What kind of packet is thought of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP SYN: opens a flow.
    TcpOpens,
    /// TCP ACK: belongs to a flow that is there.
    TcpContinues,
    /// UDP; where a service speaks QUIC, a packet of a connection that is there.
    Udp,
    /// A QUIC Initial packet: opens a connection.
    QuicOpens,
}

/// The start of a QUIC version 1 Initial packet (RFC 9000 section 17.2.2): long header, fixed bit, type 0, version.
const QUIC_INITIAL: [u8; 5] = [0xc0, 0, 0, 0, 1];

impl Kind {
    const fn protocol(self) -> u8 {
        match self {
            Self::TcpOpens | Self::TcpContinues => PROTO_TCP,
            Self::Udp | Self::QuicOpens => PROTO_UDP,
        }
    }
}

/// Where a packet comes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// The index of one of the director's interfaces; `None` for the first.
    pub interface: Option<u32>,
    /// The VLAN identifier of its tag, 0 for none.
    pub vlan: u16,
}

/// The packet that is thought of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// From where.
    pub client: SocketAddr,
    /// To where: VIP and port, of the same family.
    pub service: SocketAddr,
    /// What it is.
    pub kind: Kind,
    /// Whether the configuration leaves packets for unserved ports of a VIP to the host; the maps do not say.
    pub unserved_pass: bool,
    /// Where it comes in.
    pub arrival: Arrival,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The end it came to.
    pub verdict: Verdict,
    /// What was decided on the way, in the order in which it was.
    pub steps: Vec<Step>,
    /// The interface's index it came in on.
    pub ingress: Option<u32>,
    /// The interface's index it leaves through, where it goes to another host.
    pub egress: Option<u32>,
    /// The VLAN identifier it leaves with, 0 for none.
    pub egress_vlan: u16,
    /// The frame's destination MAC, where it goes to a backend.
    pub destination: Option<[u8; 6]>,
    /// The frame's source MAC, likewise.
    pub source: Option<[u8; 6]>,
}

/// Asks where a packet would go that comes in as the question says.
///
/// # Errors
/// [`DataplaneError::Map`] where the maps can't be read.
pub fn explain(maps: &Maps, question: &Question) -> Result<Explained, DataplaneError> {
    let ports = maps.ports()?;
    let Arrival { interface, vlan } = question.arrival;
    let own = (0..).zip(&ports).find(|(_, port)| {
        port.ifindex != 0 && port.vlan == 0 && interface.is_none_or(|index| index == port.ifindex)
    });
    let (own_port, own_mac) = own.map_or((0, 0), |(number, port)| (number, port.mac));
    let tables = Thought {
        maps,
        ports: &ports,
        own_port,
        own_mac,
        unserved_pass: question.unserved_pass,
        now: coarse_ticks(),
        steps: RefCell::new(Vec::new()),
    };
    let mut thought_of = frame(question, mac_bytes(own_mac));
    if vlan != 0 {
        let [a, b] = ETHERTYPE_VLAN.to_be_bytes();
        let [c, d] = vlan.to_be_bytes();
        thought_of.splice(12..12, [a, b, c, d]);
    }
    let mut memory = vec![0; HEADROOM];
    memory.extend_from_slice(&thought_of);
    let mut packet = Buffer::with_room(&mut memory, HEADROOM, thought_of.len());
    let outcome = process_any(&mut packet, &tables);
    let forwarded = outcome.verdict.reached_backend();
    let mac = |at: usize| -> Option<[u8; 6]> {
        let rest = packet.frame().get(at..)?;
        rest.first_chunk().copied().filter(|_| forwarded)
    };
    let egress = ports
        .get(usize::from(outcome.port))
        .map(|port| port.ifindex);
    let head: Option<&[u8; 16]> = packet.frame().first_chunk();
    let egress_vlan = match head {
        Some([.., a, b, c, d]) if u16::from_be_bytes([*a, *b]) == ETHERTYPE_VLAN => {
            u16::from_be_bytes([*c, *d]) & VLAN_ID
        }
        _ => 0,
    };
    Ok(Explained {
        verdict: outcome.verdict,
        steps: tables.steps.into_inner(),
        ingress: own.map(|(_, port)| port.ifindex),
        egress: egress.filter(|_| forwarded),
        egress_vlan,
        destination: mac(0),
        source: mac(6),
    })
}

/// The frame of the packet, on its way to `own_mac`: no payload but what opens a QUIC connection, no checksums, which the data path does not look at.
#[must_use]
pub fn frame(question: &Question, own_mac: [u8; 6]) -> Vec<u8> {
    /// A locally administered address: the client's router, whoever that is.
    const ROUTER: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
    /// The usual initial hop limit (RFC 1700); any would do.
    const TTL: u8 = 64;
    let (transport_len, flags) = match question.kind {
        Kind::TcpOpens => (TCP_LEN, Some(TCP_SYN)),
        Kind::TcpContinues => (TCP_LEN, Some(TCP_ACK)),
        Kind::Udp => (UDP_LEN, None),
        Kind::QuicOpens => (UDP_LEN + QUIC_INITIAL.len(), None),
    };
    let mut frame = Vec::with_capacity(ETH_LEN + IPV6_LEN + TCP_LEN);
    frame.extend(own_mac);
    frame.extend(ROUTER);
    match (question.client.ip(), question.service.ip()) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => {
            frame.extend(ETHERTYPE_IPV4.to_be_bytes());
            // RFC 791 section 3.1: version and header length, TOS, total length, id, fragment, TTL, protocol, checksum.
            let total = (IPV4_LEN + transport_len) as u16;
            frame.extend([0x45, 0]);
            frame.extend(total.to_be_bytes());
            frame.extend([0, 0, 0, 0, TTL, question.kind.protocol(), 0, 0]);
            frame.extend(client.octets());
            frame.extend(vip.octets());
        }
        (client, vip) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            frame.extend(ETHERTYPE_IPV6.to_be_bytes());
            // RFC 8200 section 3: version, traffic class and flow label, payload length, next header, hop limit.
            frame.extend([0x60, 0, 0, 0]);
            frame.extend((transport_len as u16).to_be_bytes());
            frame.extend([question.kind.protocol(), TTL]);
            frame.extend(octets(client));
            frame.extend(octets(vip));
        }
    }
    let transport = frame.len();
    frame.extend(question.client.port().to_be_bytes());
    frame.extend(question.service.port().to_be_bytes());
    frame.resize(transport + transport_len, 0);
    match flags {
        Some(flags) => {
            // Data offset: five words (RFC 9293 section 3.1).
            frame[transport + TCP_FLAGS - 1] = 5 << 4;
            frame[transport + TCP_FLAGS] = flags;
        }
        None => {
            let length = (transport_len as u16).to_be_bytes();
            frame[transport + 4..transport + 6].copy_from_slice(&length);
            if question.kind == Kind::QuicOpens {
                frame[transport + UDP_LEN..].copy_from_slice(&QUIC_INITIAL);
            }
        }
    }
    frame
}

/// The pinned maps as the data path sees them, with a place for the steps and without a memory.
struct Thought<'m> {
    maps: &'m Maps,
    ports: &'m [Port],
    own_port: u16,
    own_mac: u64,
    unserved_pass: bool,
    now: u16,
    steps: RefCell<Vec<Step>>,
}

impl Tables for Thought<'_> {
    fn control(&self) -> Option<&Control> {
        Some(self.maps.control())
    }

    fn service_bucket(&self, index: u32) -> Option<&Bucket> {
        self.maps.service_buckets().get(index as usize)
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        self.maps.slot(index)
    }

    fn area(&self, index: u32) -> Option<u16> {
        self.maps.area(index)
    }

    fn backend(&self, number: u16) -> Backend {
        self.maps.backend(number)
    }

    fn port(&self, port: u16) -> Option<Port> {
        self.ports.get(usize::from(port)).copied()
    }

    fn flow_bucket(&self, index: u32) -> Option<&FlowBucket> {
        self.maps.flow_buckets().get(index as usize)
    }

    fn flow_bits(&self) -> u32 {
        self.maps.flow_bits()
    }

    fn flow6_bucket(&self, index: u32) -> Option<&FlowBucket6> {
        self.maps.flow6_buckets().get(index as usize)
    }

    fn flow6_bits(&self) -> u32 {
        self.maps.flow6_bits()
    }

    fn fragment_bucket(&self, index: u32) -> Option<&FlowBucket> {
        self.maps.fragment_buckets().get(index as usize)
    }

    fn fragment_bits(&self) -> u32 {
        self.maps.fragment_bits()
    }

    fn vip(&self, service: u16) -> Option<&Vip6> {
        self.maps.vips().get(usize::from(service))
    }

    fn hot_line(&self, index: u32) -> Option<&HotLine> {
        self.maps.hot_lines().get(index as usize)
    }

    fn sample_ring(&self) -> Option<&SampleRing> {
        None
    }

    fn fence(&self, number: u16) -> Option<&Fence> {
        self.maps.fences().get(usize::from(number))
    }
    fn presence(&self, place: u16) -> Option<&Presence> {
        self.maps.presences().get(usize::from(place))
    }

    fn now(&self) -> u16 {
        self.now
    }

    fn own_mac(&self) -> u64 {
        self.own_mac
    }

    fn own_port(&self) -> u16 {
        self.own_port
    }

    fn unserved_pass(&self) -> bool {
        self.unserved_pass
    }

    fn features(&self) -> Features {
        self.maps.features()
    }

    fn cluster_mac(&self) -> u64 {
        0
    }

    fn count_backend(&self, _backend: u16, _bytes: u64) {}

    fn count_verdict(&self, _verdict: Verdict) {}

    fn count_event(&self, _event: Event) {}

    fn records(&self) -> bool {
        false
    }

    fn note(&self, step: Step) {
        self.steps.borrow_mut().push(step);
    }
}

#[cfg(test)]
mod tests {
    use lb_common::{
        parse::{Frame, Ip, Signal, parse, signal},
        service::Track,
    };

    use super::*;

    #[test]
    fn the_thought_of_packet_is_one() {
        let question = |kind| Question {
            client: "10.1.2.3:40000".parse().expect("an address"),
            service: "192.0.2.10:443".parse().expect("an address"),
            kind,
            unserved_pass: false,
            arrival: Arrival::default(),
        };
        let cases = [
            (Kind::TcpOpens, Signal::Opens),
            (Kind::TcpContinues, Signal::Continues),
            (Kind::Udp, Signal::Unknown),
            (Kind::QuicOpens, Signal::Unknown),
        ];
        for (kind, expected) in cases {
            let mut bytes = frame(&question(kind), [2, 0, 0, 0, 0, 9]);
            let packet = Buffer::new(&mut bytes);
            let Ok(Frame::V4(Ip::Flow(flow))) = parse(&packet, Features::NONE) else {
                panic!("{kind:?} is not parsed");
            };
            assert_eq!(flow.client, 0x0a01_0203);
            assert_eq!(flow.destination, 0xc000_020a);
            assert_eq!(flow.ports, 40_000 << 16 | 443);
            assert_eq!(signal(&packet, &flow, Track::Changes), Ok(expected));

            let (client, vip) = ("2001:db8:1::3", "2001:db8::10");
            let socket =
                |address: &str, port| SocketAddr::new(address.parse().expect("an address"), port);
            let six = Question {
                client: socket(client, 40_000),
                service: socket(vip, 443),
                ..question(kind)
            };
            let mut bytes = frame(&six, [2, 0, 0, 0, 0, 9]);
            let packet = Buffer::new(&mut bytes);
            let Ok(Frame::V6(Ip::Flow(flow))) = parse(&packet, Features::IPV6) else {
                panic!("{kind:?} is not parsed");
            };
            assert_eq!(flow.client.addr().to_string(), client);
            assert_eq!(flow.destination.addr().to_string(), vip);
            assert_eq!(flow.ports, 40_000 << 16 | 443);
            assert_eq!(signal(&packet, &flow, Track::Changes), Ok(expected));
        }
    }
}
