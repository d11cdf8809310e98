//! Building frames: well-formed ones from a description, malformed ones from those by editing bytes.

use std::net::Ipv4Addr;

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, IpHeaders, IpNumber, Ipv4Header, PacketBuilder, TcpHeader,
    UdpHeader, VlanId,
};
use lb_common::wire::{ETH_LEN, IPV4_LEN};

use super::network::{
    BROADCAST_MAC, CLIENT, CLIENT_PORT, DIRECTOR_MAC, NEIGHBOUR_MAC, ROUTER_MAC, VIP,
};

/// The bytes of a frame, without the frame check sequence.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame(pub Vec<u8>);

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())?;
        for line in self.0.chunks(16) {
            write!(f, "\n ")?;
            for byte in line {
                write!(f, " {byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl Frame {
    /// The first `len` bytes.
    #[must_use]
    pub fn cut(mut self, len: usize) -> Self {
        self.0.truncate(len);
        self
    }

    /// Filled up with zeros to `len` bytes, as Ethernet does with frames shorter than 60.
    #[must_use]
    pub fn padded(mut self, len: usize) -> Self {
        if self.0.len() < len {
            self.0.resize(len, 0);
        }
        self
    }

    /// With other bytes from `offset` on.
    ///
    /// # Panics
    /// Where the frame ends before them.
    #[must_use]
    pub fn with(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// With another IP total length: true or not.
    #[must_use]
    pub fn total_length(self, total: u16) -> Self {
        self.with(ETH_LEN + 2, &total.to_be_bytes())
    }

    /// With another first byte of the IP header: version and header length in words.
    #[must_use]
    pub fn version_and_header_words(self, version: u8, words: u8) -> Self {
        self.with(ETH_LEN, &[version << 4 | words])
    }

    /// Made a fragment: `offset` in units of eight bytes (RFC 791).
    #[must_use]
    pub fn fragment(self, offset: u16, more: bool) -> Self {
        let field = u16::from(more) << 13 | offset;
        self.with(ETH_LEN + 6, &field.to_be_bytes())
    }

    /// With other Ethernet addresses: what the data path makes of a frame for a backend.
    #[must_use]
    pub fn sent(self, to: [u8; 6], from: [u8; 6]) -> Self {
        self.with(0, &to).with(6, &from)
    }
}

/// The transport of a [`Packet`].
#[derive(Clone, Debug)]
enum Transport {
    Tcp(TcpHeader),
    Udp,
    Icmp,
    /// Any other ICMP message: type, code, and the word behind the checksum.
    IcmpOther(u8, u8, [u8; 4]),
    EchoReply,
}

/// A well-formed IPv4 packet in an Ethernet frame.
#[derive(Clone, Debug)]
pub struct Packet {
    to_mac: [u8; 6],
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    options: Vec<u8>,
    vlan: Option<u16>,
    transport: Transport,
    payload: Vec<u8>,
    ttl: u8,
    from_mac: [u8; 6],
}

/// A TCP segment with ACK set, in the middle of a connection from the client to port 80 of the VIP.
#[must_use]
pub fn tcp() -> Packet {
    let mut header = TcpHeader::new(0, 0, 0x1000_0000, 0xffff);
    header.ack = true;
    header.acknowledgment_number = 0x2000_0000;
    Packet::new(80, Transport::Tcp(header), b"GET / HTTP/1.0\r\n\r\n")
}

/// The segment that opens a connection: SYN, with the maximum segment size as an option.
#[must_use]
pub fn syn() -> Packet {
    let mut packet = tcp().flags(|tcp| {
        tcp.syn = true;
        tcp.ack = false;
    });
    packet.payload.clear();
    packet
}

/// A UDP datagram from the client to port 53 of the VIP.
#[must_use]
pub fn udp() -> Packet {
    Packet::new(53, Transport::Udp, b"a question")
}

/// An ICMP echo request from the client to the VIP.
#[must_use]
pub fn ping() -> Packet {
    Packet::new(0, Transport::Icmp, b"anybody there?")
}

/// The director's answer to [`ping`].
#[must_use]
pub fn pong() -> Packet {
    let mut packet = Packet::new(0, Transport::EchoReply, b"anybody there?");
    (packet.to_mac, packet.from_mac) = (ROUTER_MAC, DIRECTOR_MAC);
    (packet.from, packet.to) = (packet.to, packet.from);
    packet
}

/// An ICMP message to the VIP from the client: type, code, and what follows the header.
#[must_use]
pub fn icmp(kind: u8, code: u8, payload: &[u8]) -> Packet {
    Packet::new(0, Transport::IcmpOther(kind, code, [0; 4]), payload)
}

impl Packet {
    fn new(port: u16, transport: Transport, payload: &[u8]) -> Self {
        Self {
            to_mac: DIRECTOR_MAC,
            from: (CLIENT, CLIENT_PORT),
            to: (VIP, port),
            options: Vec::new(),
            vlan: None,
            transport,
            payload: payload.to_vec(),
            ttl: 64,
            from_mac: ROUTER_MAC,
        }
    }

    /// With another Ethernet destination.
    #[must_use]
    pub fn to_mac(mut self, mac: [u8; 6]) -> Self {
        self.to_mac = mac;
        self
    }

    /// From another address and port.
    #[must_use]
    pub fn from(mut self, address: Ipv4Addr, port: u16) -> Self {
        self.from = (address, port);
        self
    }

    /// To another address and port.
    #[must_use]
    pub fn to(mut self, address: Ipv4Addr, port: u16) -> Self {
        self.to = (address, port);
        self
    }

    /// To another port.
    #[must_use]
    pub fn to_port(mut self, port: u16) -> Self {
        self.to.1 = port;
        self
    }

    /// With `words` words of IP options, at most ten: no-operations (RFC 791).
    #[must_use]
    pub fn option_words(mut self, words: usize) -> Self {
        self.options = vec![1; 4 * words];
        self
    }

    /// With another TTL.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// With a VLAN tag.
    #[must_use]
    pub fn vlan(mut self, id: u16) -> Self {
        self.vlan = Some(id);
        self
    }

    /// With other TCP flags; nothing where it is no TCP.
    #[must_use]
    pub fn flags(mut self, set: impl FnOnce(&mut TcpHeader)) -> Self {
        if let Transport::Tcp(header) = &mut self.transport {
            set(header);
        }
        self
    }

    /// With another payload.
    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// The frame.
    ///
    /// # Panics
    /// Where the description can't be built: more options or payload than there is room for.
    #[must_use]
    pub fn build(self) -> Frame {
        let mut ip = Ipv4Header::new(
            0,
            self.ttl,
            IpNumber::UDP,
            self.from.0.octets(),
            self.to.0.octets(),
        )
        .expect("an empty payload fits");
        ip.options = self
            .options
            .as_slice()
            .try_into()
            .expect("at most ten words of options");
        let ip = IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default());
        let link = PacketBuilder::ethernet2(self.from_mac, self.to_mac);
        let step = match self.vlan {
            Some(id) => link
                .single_vlan(VlanId::try_new(id).expect("12 bits"))
                .ip(ip),
            None => link.ip(ip),
        };
        let mut bytes = Vec::new();
        match self.transport {
            Transport::Tcp(mut header) => {
                (header.source_port, header.destination_port) = (self.from.1, self.to.1);
                if header.syn {
                    header
                        .set_options(&[etherparse::TcpOptionElement::MaximumSegmentSize(1460)])
                        .expect("four bytes");
                }
                step.tcp_header(header)
                    .write_to_vec(&mut bytes, &self.payload)
            }
            Transport::Udp => step
                .udp(self.from.1, self.to.1)
                .write_to_vec(&mut bytes, &self.payload),
            Transport::EchoReply => step
                .icmpv4_echo_reply(7, 1)
                .write_to_vec(&mut bytes, &self.payload),
            Transport::IcmpOther(kind, code, word) => step
                .icmpv4_raw(kind, code, word)
                .write_to_vec(&mut bytes, &self.payload),
            Transport::Icmp => step
                .icmpv4_echo_request(7, 1)
                .write_to_vec(&mut bytes, &self.payload),
        }
        .expect("a payload that fits");
        Frame(bytes)
    }
}

/// A TCP segment over IPv6.
///
/// # Panics
/// Never.
#[must_use]
pub fn ipv6() -> Frame {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(ROUTER_MAC, DIRECTOR_MAC)
        .ipv6(
            [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7],
            [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10],
            64,
        )
        .tcp(CLIENT_PORT, 80, 1, 1024)
        .write_to_vec(&mut bytes, &[])
        .expect("no payload");
    Frame(bytes)
}

/// Bytes of a UDP header alone: the least a datagram has.
pub const UDP_HEADER: usize = UdpHeader::LEN;
/// Bytes of Ethernet and IPv4 headers without options.
pub const UP_TO_TRANSPORT: usize = ETH_LEN + IPV4_LEN;

/// An ARP packet for Ethernet and IPv4.
#[derive(Clone, Debug)]
pub struct Arp {
    to_mac: [u8; 6],
    packet: ArpEthIpv4Packet,
}

/// A broadcast request for the MAC address of `target`, by the neighbour.
#[must_use]
pub fn who_has(target: Ipv4Addr, asker: Ipv4Addr) -> Arp {
    Arp {
        to_mac: BROADCAST_MAC,
        packet: ArpEthIpv4Packet {
            operation: ArpOperation::REQUEST,
            sender_mac: NEIGHBOUR_MAC,
            sender_ipv4: asker.octets(),
            target_mac: [0; 6],
            target_ipv4: target.octets(),
        },
    }
}

impl Arp {
    /// Sent to one host instead of all.
    #[must_use]
    pub fn to_mac(mut self, mac: [u8; 6]) -> Self {
        self.to_mac = mac;
        self
    }

    /// From another MAC address.
    #[must_use]
    pub fn from_mac(mut self, mac: [u8; 6]) -> Self {
        self.packet.sender_mac = mac;
        self
    }

    /// The answer that `mac` gives to this request.
    #[must_use]
    pub fn answer(self, mac: [u8; 6]) -> Self {
        let asked = self.packet;
        Self {
            to_mac: asked.sender_mac,
            packet: ArpEthIpv4Packet {
                operation: ArpOperation::REPLY,
                sender_mac: mac,
                sender_ipv4: asked.target_ipv4,
                target_mac: asked.sender_mac,
                target_ipv4: asked.sender_ipv4,
            },
        }
    }

    /// The frame.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn build(self) -> Frame {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2(self.packet.sender_mac, self.to_mac)
            .arp(self.packet.into())
            .write_to_vec(&mut bytes)
            .expect("a vector takes it");
        Frame(bytes)
    }
}
