//! Building frames: well-formed ones from a description, malformed ones from those by editing bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv6Header,
    PacketBuilder, TcpHeader, UdpHeader,
};
use lb_common::wire::{ETH_LEN, ETHERTYPE_VLAN, IPV4_LEN, IPV6_LEN, NEXT_FRAGMENT};

use super::network::{
    BROADCAST_MAC, CLIENT, CLIENT_PORT, CLIENT6, DIRECTOR_MAC, NEIGHBOUR_MAC, NEIGHBOUR6,
    ROUTER_MAC, VIP, VIP6,
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

    /// With a VLAN tag in front of everything behind the Ethernet addresses.
    #[must_use]
    pub fn pushed(mut self, ethertype: u16, control: u16) -> Self {
        let ([a, b], [c, d]) = (ethertype.to_be_bytes(), control.to_be_bytes());
        self.0.splice(12..12, [a, b, c, d]);
        self
    }

    /// Without the four bytes behind the Ethernet addresses: the outer VLAN tag.
    ///
    /// # Panics
    /// Where the frame ends before them.
    #[must_use]
    pub fn popped(mut self) -> Self {
        self.0.drain(12..16);
        self
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
    /// An ICMP or ICMPv6 message, whichever the packet's family has: type, code, and the word behind the checksum.
    Icmp(u8, u8, [u8; 4]),
}

/// Identifier and sequence number of the pings.
const PING: [u8; 4] = [0, 7, 0, 1];

/// A well-formed IPv4 or IPv6 packet in an Ethernet frame.
#[derive(Clone, Debug)]
pub struct Packet {
    to_mac: [u8; 6],
    from: (IpAddr, u16),
    to: (IpAddr, u16),
    options: Vec<u8>,
    extensions: Vec<(u8, Vec<u8>)>,
    fragment: Option<(u32, u16, bool)>,
    tags: Vec<(u16, u16)>,
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
    Packet::new(0, Transport::Icmp(8, 0, PING), b"anybody there?")
}

/// The director's answer to [`ping`].
#[must_use]
pub fn pong() -> Packet {
    Packet::new(0, Transport::Icmp(0, 0, PING), b"anybody there?").turned()
}

/// An ICMP message to the VIP from the client: type, code, and what follows the header.
#[must_use]
pub fn icmp(kind: u8, code: u8, payload: &[u8]) -> Packet {
    Packet::new(0, Transport::Icmp(kind, code, [0; 4]), payload)
}

/// [`tcp`] from the IPv6 client to the IPv6 VIP.
#[must_use]
pub fn tcp6() -> Packet {
    tcp().over_ipv6()
}

/// [`syn`] over IPv6.
#[must_use]
pub fn syn6() -> Packet {
    syn().over_ipv6()
}

/// [`udp`] over IPv6.
#[must_use]
pub fn udp6() -> Packet {
    udp().over_ipv6()
}

/// An ICMPv6 echo request from the client to the VIP.
#[must_use]
pub fn ping6() -> Packet {
    Packet::new(0, Transport::Icmp(128, 0, PING), b"anybody there?").over_ipv6()
}

/// The director's answer to [`ping6`].
#[must_use]
pub fn pong6() -> Packet {
    Packet::new(0, Transport::Icmp(129, 0, PING), b"anybody there?")
        .over_ipv6()
        .turned()
}

/// An ICMPv6 message to the VIP from the client: type, code, and what follows the header.
#[must_use]
pub fn icmp6(kind: u8, code: u8, payload: &[u8]) -> Packet {
    icmp(kind, code, payload).over_ipv6()
}

/// A neighbour solicitation for `target` by the neighbour, to the target's group, with these options.
#[must_use]
pub fn solicitation(target: Ipv6Addr, options: &[u8]) -> Packet {
    let payload = [&target.octets(), options].concat();
    let [.., a, b, c] = target.octets();
    // RFC 4291 section 2.7.1, RFC 2464 section 7.
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    let mut packet = icmp6(135, 0, &payload)
        .from(NEIGHBOUR6, 0)
        .to(group, 0)
        .to_mac([0x33, 0x33, 0xff, a, b, c])
        .ttl(255);
    packet.from_mac = NEIGHBOUR_MAC;
    packet
}

/// The advertisement that `target` is at `mac`, sent by the director to `asker` at `asker_mac`.
#[must_use]
pub fn advertisement(
    target: Ipv6Addr,
    mac: [u8; 6],
    asker: Ipv6Addr,
    asker_mac: [u8; 6],
    solicited: bool,
) -> Packet {
    let payload = [&target.octets()[..], &link_layer_option(2, mac)].concat();
    let flags = if solicited { 0x60 } else { 0x20 };
    let mut packet = Packet::new(0, Transport::Icmp(136, 0, [flags, 0, 0, 0]), &payload)
        .from(target, 0)
        .to(asker, 0)
        .to_mac(asker_mac)
        .ttl(255);
    packet.from_mac = DIRECTOR_MAC;
    packet
}

/// The option with the sender's (1) or the target's (2) Ethernet address (RFC 4861 section 4.6.1).
#[must_use]
pub fn link_layer_option(kind: u8, mac: [u8; 6]) -> [u8; 8] {
    let [a, b, c, d, e, f] = mac;
    [kind, 1, a, b, c, d, e, f]
}

/// An IPv6 extension header of `words` times eight bytes: hop-by-hop or destination options, all padding (RFC 8200
/// section 4.2), or a routing header of type 0 with nothing left.
///
/// # Panics
/// Where one header is not that long.
#[must_use]
pub fn extension(words: usize) -> Vec<u8> {
    let mut bytes = vec![0; 8 * words];
    bytes[1] = u8::try_from(words - 1).expect("at most 256 times eight bytes");
    bytes
}

impl Packet {
    fn new(port: u16, transport: Transport, payload: &[u8]) -> Self {
        Self {
            to_mac: DIRECTOR_MAC,
            from: (CLIENT.into(), CLIENT_PORT),
            to: (VIP.into(), port),
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            tags: Vec::new(),
            transport,
            payload: payload.to_vec(),
            ttl: 64,
            from_mac: ROUTER_MAC,
        }
    }

    fn over_ipv6(mut self) -> Self {
        self.from.0 = CLIENT6.into();
        self.to.0 = VIP6.into();
        self
    }

    /// Its ends change places; the director sends it.
    fn turned(mut self) -> Self {
        (self.to_mac, self.from_mac) = (ROUTER_MAC, DIRECTOR_MAC);
        (self.from, self.to) = (self.to, self.from);
        self
    }

    /// With another Ethernet destination.
    #[must_use]
    pub fn to_mac(mut self, mac: [u8; 6]) -> Self {
        self.to_mac = mac;
        self
    }

    /// With another Ethernet source.
    #[must_use]
    pub fn from_mac(mut self, mac: [u8; 6]) -> Self {
        self.from_mac = mac;
        self
    }

    /// From another address and port.
    #[must_use]
    pub fn from(mut self, address: impl Into<IpAddr>, port: u16) -> Self {
        self.from = (address.into(), port);
        self
    }

    /// To another address and port.
    #[must_use]
    pub fn to(mut self, address: impl Into<IpAddr>, port: u16) -> Self {
        self.to = (address.into(), port);
        self
    }

    /// To another port.
    #[must_use]
    pub fn to_port(mut self, port: u16) -> Self {
        self.to.1 = port;
        self
    }

    /// With `words` words of IPv4 options, at most ten: no-operations (RFC 791).
    #[must_use]
    pub fn option_words(mut self, words: usize) -> Self {
        self.options = vec![1; 4 * words];
        self
    }

    /// With one more IPv6 extension header, behind those there are. The first byte, the next header, is written when the
    /// frame is built; everything else is as given, lies included.
    #[must_use]
    pub fn extended(mut self, kind: u8, bytes: Vec<u8>) -> Self {
        self.extensions.push((kind, bytes));
        self
    }

    /// Made a fragment: what the packet's fragments share, `offset` in units of eight bytes, whether more follow. In IPv6
    /// the fragment header stands behind the other extension headers.
    #[must_use]
    pub fn fragmented(mut self, identification: u32, offset: u16, more: bool) -> Self {
        self.fragment = Some((identification, offset, more));
        self
    }

    /// With another TTL or hop limit.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// With one more VLAN tag, inside those there are.
    #[must_use]
    pub fn vlan(self, id: u16) -> Self {
        self.tagged(ETHERTYPE_VLAN, id)
    }

    /// With one more VLAN tag, inside those there are: its EtherType, and its second half with the priority.
    #[must_use]
    pub fn tagged(mut self, ethertype: u16, control: u16) -> Self {
        self.tags.push((ethertype, control));
        self
    }

    /// Without VLAN tags.
    #[must_use]
    pub fn untagged(mut self) -> Self {
        self.tags.clear();
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
    /// Where the description can't be built: more options or payload than there is room for, two families.
    #[must_use]
    pub fn build(self) -> Frame {
        let mut bytes = match (self.from.0, self.to.0) {
            (IpAddr::V4(from), IpAddr::V4(to)) => self.build4(from, to),
            (IpAddr::V6(from), IpAddr::V6(to)) => self.build6(from, to),
            _ => panic!("a packet has addresses of one family"),
        };
        let tags: Vec<u8> = self
            .tags
            .iter()
            .flat_map(|(ethertype, control)| {
                let ([a, b], [c, d]) = (ethertype.to_be_bytes(), control.to_be_bytes());
                [a, b, c, d]
            })
            .collect();
        bytes.splice(12..12, tags);
        Frame(bytes)
    }

    fn build4(&self, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
        let mut ip = Ipv4Header::new(0, self.ttl, IpNumber::UDP, from.octets(), to.octets())
            .expect("an empty payload fits");
        ip.options = self
            .options
            .as_slice()
            .try_into()
            .expect("at most ten words of options");
        if let Some((identification, offset, more)) = self.fragment {
            ip.identification = u16::try_from(identification).expect("16 bits in IPv4");
            ip.fragment_offset = IpFragOffset::try_new(offset).expect("13 bits");
            ip.more_fragments = more;
            ip.dont_fragment = false;
        }
        let ip = IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default());
        self.written(ip)
    }

    fn build6(&self, from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
        let ip = Ipv6Header {
            hop_limit: self.ttl,
            source: from.octets(),
            destination: to.octets(),
            ..Ipv6Header::default()
        };
        let mut bytes = self.written(IpHeaders::Ipv6(ip, etherparse::Ipv6Extensions::default()));
        let mut headers = self.extensions.clone();
        if let Some((identification, offset, more)) = self.fragment {
            let word = (offset << 3 | u16::from(more)).to_be_bytes();
            let header = [&[0, 0], &word[..], &identification.to_be_bytes()].concat();
            headers.push((NEXT_FRAGMENT, header));
        }
        // From the innermost one outwards, each behind the IPv6 header and before what is there already.
        let (next, start) = (ETH_LEN + 6, ETH_LEN + IPV6_LEN);
        for (kind, mut header) in headers.into_iter().rev() {
            header[0] = bytes[next];
            bytes[next] = kind;
            bytes.splice(start..start, header);
        }
        let payload = u16::try_from(bytes.len() - start).expect("a short packet");
        bytes[ETH_LEN + 4..ETH_LEN + 6].copy_from_slice(&payload.to_be_bytes());
        bytes
    }

    /// Ethernet, the IP header, transport and payload, with true lengths and checksums.
    fn written(&self, ip: IpHeaders) -> Vec<u8> {
        let over_ipv6 = matches!(ip, IpHeaders::Ipv6(..));
        let step = PacketBuilder::ethernet2(self.from_mac, self.to_mac).ip(ip);
        let mut bytes = Vec::new();
        match self.transport.clone() {
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
            Transport::Icmp(kind, code, word) if over_ipv6 => step
                .icmpv6_raw(kind, code, word)
                .write_to_vec(&mut bytes, &self.payload),
            Transport::Icmp(kind, code, word) => step
                .icmpv4_raw(kind, code, word)
                .write_to_vec(&mut bytes, &self.payload),
        }
        .expect("a payload that fits");
        bytes
    }
}

/// Bytes of a UDP header alone: the least a datagram has.
pub const UDP_HEADER: usize = UdpHeader::LEN;
/// Bytes of Ethernet and IPv4 headers without options.
pub const UP_TO_TRANSPORT: usize = ETH_LEN + IPV4_LEN;
/// Bytes of Ethernet and IPv6 headers without extension headers.
pub const UP_TO_TRANSPORT6: usize = ETH_LEN + IPV6_LEN;

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
