//! The packets that are prepared.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{IpHeaders, IpNumber, Ipv4Header, PacketBuilder};

use crate::dataplane::rig::{FRAME_WORDS, Recipe};

/// The first IPv4 source: of 198.18.0.0/15, which is for benchmarks (RFC 2544, appendix C.2.2). The sources of many flows
/// are 198.18.0.0/16.
pub const CLIENT4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// The first IPv6 source: of 2001:2::/48, which is for benchmarks (RFC 5180, section 8).
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 1);
/// The source port that the flow's bits are added to: one of those that never is 0, whatever is added.
const CLIENT_PORT: u16 = 0x0080;
/// A next hop's MAC address, as that of a router before the director.
const ROUTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];

/// Bytes of an IPv4 frame: the shortest that Ethernet has, as it arrives.
pub const FRAME4: usize = 64;
/// Bytes of an IPv6 frame.
pub const FRAME6: usize = 80;

/// What a packet is in its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One of TCP's in the middle of a connection.
    Tcp,
    /// TCP's first.
    Syn,
    /// UDP.
    Udp,
}

/// How many flows there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flows {
    /// One.
    One,
    /// Two to this power, at most 31.
    Bits(u8),
}

impl Flows {
    /// 2^20.
    pub const MILLION: Self = Self::Bits(20);
    /// As many as can be made: of a flood, nearly every packet is of another one.
    pub const ENDLESS: Self = Self::Bits(31);

    const fn mask(self) -> u64 {
        match self {
            Self::One => 0,
            Self::Bits(bits) => (1 << bits) - 1,
        }
    }
}

/// Where packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The interface's MAC address.
    pub mac: [u8; 6],
    /// The VIP, or the first one.
    pub vip: IpAddr,
    /// The port, or the first one.
    pub port: u16,
    /// 2 to this power are the VIPs, the first of which ends in as many zeros; only of IPv4.
    pub vip_bits: u8,
    /// Likewise the ports, at most 4 bits.
    pub port_bits: u8,
}

impl Destination {
    /// One VIP and port.
    #[must_use]
    pub const fn one(mac: [u8; 6], vip: IpAddr, port: u16) -> Self {
        Self {
            mac,
            vip,
            port,
            vip_bits: 0,
            port_bits: 0,
        }
    }
}

/// What to prepare.
#[must_use]
pub fn recipe(kind: Kind, flows: Flows, destination: &Destination) -> Recipe {
    let ipv6 = destination.vip.is_ipv6();
    let bytes = frame(kind, destination);
    let mut words = [0; FRAME_WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(whole);
    }
    Recipe {
        frame: words,
        ipv6,
        flow_mask: flows.mask(),
        vip_mask: (1 << destination.vip_bits) - 1,
        port_mask: (1 << destination.port_bits) - 1,
    }
}

/// The first packet.
fn frame(kind: Kind, destination: &Destination) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(ROUTER_MAC, destination.mac);
    let (ip, length) = match destination.vip {
        IpAddr::V4(vip) => (ethernet.ip(ipv4(vip)), FRAME4),
        IpAddr::V6(vip) => (ethernet.ipv6(CLIENT6.octets(), vip.octets(), 64), FRAME6),
    };
    let mut bytes = Vec::with_capacity(length);
    let written = match kind {
        Kind::Udp => {
            let udp = ip.udp(CLIENT_PORT, destination.port);
            let payload = vec![0; length - udp.size(0)];
            udp.write(&mut bytes, &payload)
        }
        Kind::Tcp | Kind::Syn => {
            let tcp = ip.tcp(CLIENT_PORT, destination.port, 1, 1024);
            let tcp = if kind == Kind::Syn {
                tcp.syn()
            } else {
                tcp.ack(1)
            };
            let payload = vec![0; length - tcp.size(0)];
            tcp.write(&mut bytes, &payload)
        }
    };
    // A short payload and memory to write to: there is nothing to fail.
    debug_assert!(written.is_ok());
    bytes
}

/// The IPv4 header. Its identification is the opposite of the source's lower half: the bits of a flow change both, and the
/// checksum of a frame that is sent stays true.
fn ipv4(vip: Ipv4Addr) -> IpHeaders {
    let [.., high, low] = CLIENT4.octets();
    let header = Ipv4Header {
        // Length, protocol and checksum are the builder's.
        protocol: IpNumber::TCP,
        time_to_live: 64,
        dont_fragment: true,
        identification: !u16::from_be_bytes([high, low]),
        source: CLIENT4.octets(),
        destination: vip.octets(),
        ..Ipv4Header::default()
    };
    IpHeaders::Ipv4(header, Default::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flow_does_not_change_the_checksum() {
        let four = Destination::one([2; 6], Ipv4Addr::new(192, 0, 2, 10).into(), 443);
        for flow in [0, 1, 0x1234, 0xffff_u16] {
            let mut packet = frame(Kind::Tcp, &four);
            // As `generate4` does: identification and the source's lower half.
            for place in [18, 28] {
                let [high, low] = flow.to_be_bytes();
                packet[place] ^= high;
                packet[place + 1] ^= low;
            }
            let (header, _) = Ipv4Header::from_slice(&packet[14..]).expect("a header");
            assert_eq!(header.source[2..], flow.to_be_bytes());
            assert_eq!(
                header.header_checksum,
                header.calc_header_checksum(),
                "{flow:#x}"
            );
        }
    }

    #[test]
    fn frames_are_whole() {
        let four = Destination::one([2; 6], Ipv4Addr::new(192, 0, 2, 10).into(), 443);
        let six = Destination::one([2; 6], Ipv6Addr::LOCALHOST.into(), 443);
        for kind in [Kind::Tcp, Kind::Syn, Kind::Udp] {
            assert_eq!(frame(kind, &four).len(), FRAME4, "{kind:?}");
            assert_eq!(frame(kind, &six).len(), FRAME6, "{kind:?}");
        }
        let packet = frame(Kind::Syn, &four);
        let sliced = etherparse::SlicedPacket::from_ethernet(&packet).expect("a valid frame");
        let Some(etherparse::TransportSlice::Tcp(tcp)) = sliced.transport else {
            panic!("it is TCP");
        };
        assert!(tcp.syn() && !tcp.ack());
        assert_eq!(tcp.destination_port(), 443);
        let first = recipe(Kind::Syn, Flows::One, &four);
        assert_eq!(first.frame[0].to_ne_bytes(), packet[..8]);
        assert_eq!((first.flow_mask, first.frame[8]), (0, 0));
        assert_eq!(recipe(Kind::Udp, Flows::MILLION, &four).flow_mask, 0xf_ffff);
    }
}
