//! What a frame is: Ethernet, IPv4 with options, TCP or UDP.

use crate::packet::Packet;
use crate::verdict::Verdict;
use crate::wire::{
    ETH_LEN, ETH_TYPE, ETHERTYPE_ARP, ETHERTYPE_IPV4, IPV4_FRAGMENT_MASK, IPV4_LEN, PROTO_ICMP,
    PROTO_TCP, PROTO_UDP, TCP_ACK, TCP_FIN, TCP_FLAGS, TCP_LEN, TCP_RST, TCP_SYN, UDP_LEN, be16_at,
    be32_at, le64_at, u8_at,
};

/// Bytes that hold everything the pick needs of a frame without IPv4 options: up to the ports.
const COMMON_LEN: usize = ETH_LEN + IPV4_LEN + UDP_LEN;

/// A frame whose headers are whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// TCP or UDP over IPv4.
    Ipv4(Ipv4Flow),
    /// IPv4 that can't be balanced, for the reason of the verdict: only matters if its destination is a VIP.
    Ipv4Unfit {
        /// The Ethernet destination, as [`crate::wire::mac_word`].
        eth_destination: u64,
        /// Destination address in host order.
        destination: u32,
        /// Why.
        verdict: Verdict,
    },
    /// ICMP over IPv4, not looked into yet.
    Icmpv4(Icmpv4),
    /// ARP, not looked into yet.
    Arp,
    /// Anything else.
    Other,
}

/// The ends of a flow, and where its headers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Flow {
    /// The Ethernet destination, as [`crate::wire::mac_word`].
    pub eth_destination: u64,
    /// Source address in host order.
    pub client: u32,
    /// Destination address in host order.
    pub destination: u32,
    /// Source port in the upper half, destination port in the lower one.
    pub ports: u32,
    /// [`PROTO_TCP`] or [`PROTO_UDP`].
    pub protocol: u8,
    /// Offset of the transport header.
    pub transport: usize,
    /// Whether the packet is not of the flow, but about it: an ICMP error that quotes it.
    pub related: bool,
}

/// An ICMP message whose IPv4 header is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmpv4 {
    /// The Ethernet destination, as [`crate::wire::mac_word`].
    pub eth_destination: u64,
    /// Source address in host order.
    pub client: u32,
    /// Destination address in host order.
    pub destination: u32,
    /// Offset of the ICMP header.
    pub transport: usize,
    /// Bytes from there to the end of the IP packet.
    pub length: usize,
}

impl Ipv4Flow {
    /// The port of the service.
    #[inline(always)]
    #[must_use]
    pub const fn service_port(&self) -> u16 {
        self.ports as u16
    }
}

/// What a packet says about its flow's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// It opens the flow: TCP SYN without ACK.
    Opens,
    /// It belongs to a flow that is there.
    Continues,
    /// FIN.
    Closes,
    /// RST.
    Resets,
    /// It is not of the flow, but about it: it goes where the flow goes and leaves no trace.
    Related,
    /// The protocol does not tell.
    Unknown,
}

/// Reads the headers.
///
/// # Errors
/// [`Verdict::Truncated`] where the frame ends before its destination can be told. What is found out later comes as
/// [`Frame::Ipv4Unfit`], because it is nobody's business but the host's if the destination is no VIP.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P) -> Result<Frame, Verdict> {
    // One bounds check for what nearly every packet is.
    if let Some(head) = packet.bytes::<COMMON_LEN>(0)
        && be16_at::<ETH_TYPE, _>(head) == ETHERTYPE_IPV4
        && u8_at::<ETH_LEN, _>(head) == 0x45
    {
        let protocol = u8_at::<{ ETH_LEN + 9 }, _>(head);
        let fragment = be16_at::<{ ETH_LEN + 6 }, _>(head) & IPV4_FRAGMENT_MASK;
        let total = be16_at::<{ ETH_LEN + 2 }, _>(head) as usize;
        let least = if protocol == PROTO_TCP {
            IPV4_LEN + TCP_LEN
        } else {
            IPV4_LEN + UDP_LEN
        };
        if (protocol == PROTO_TCP || protocol == PROTO_UDP)
            && fragment == 0
            && total >= least
            && ETH_LEN + total <= packet.len()
        {
            return Ok(Frame::Ipv4(Ipv4Flow {
                eth_destination: le64_at::<0, _>(head) & crate::wire::MAC_MASK,
                client: be32_at::<{ ETH_LEN + 12 }, _>(head),
                destination: be32_at::<{ ETH_LEN + 16 }, _>(head),
                ports: be32_at::<{ ETH_LEN + IPV4_LEN }, _>(head),
                protocol,
                transport: ETH_LEN + IPV4_LEN,
                related: false,
            }));
        }
    }
    parse_rare(packet)
}

/// Everything else, with a check for each step.
#[inline(always)]
fn parse_rare<P: Packet>(packet: &P) -> Result<Frame, Verdict> {
    let eth = packet.bytes::<ETH_LEN>(0).ok_or(Verdict::Truncated)?;
    let eth_destination = le64_at::<0, _>(eth) & crate::wire::MAC_MASK;
    match be16_at::<ETH_TYPE, _>(eth) {
        ETHERTYPE_IPV4 => parse_ipv4(packet, eth_destination),
        ETHERTYPE_ARP => Ok(Frame::Arp),
        _ => Ok(Frame::Other),
    }
}

#[inline(always)]
fn parse_ipv4<P: Packet>(packet: &P, eth_destination: u64) -> Result<Frame, Verdict> {
    let ip = packet
        .bytes::<IPV4_LEN>(ETH_LEN)
        .ok_or(Verdict::Truncated)?;
    let destination = be32_at::<16, _>(ip);
    let client = be32_at::<12, _>(ip);
    let unfit = |verdict| {
        Ok(Frame::Ipv4Unfit {
            eth_destination,
            destination,
            verdict,
        })
    };

    let version = u8_at::<0, _>(ip) >> 4;
    let header = (u8_at::<0, _>(ip) & 0xf) as usize * 4;
    let total = be16_at::<2, _>(ip) as usize;
    if version != 4 || header < IPV4_LEN || total < header {
        return unfit(Verdict::Malformed);
    }
    if ETH_LEN + total > packet.len() {
        return unfit(Verdict::Truncated);
    }
    if be16_at::<6, _>(ip) & IPV4_FRAGMENT_MASK != 0 {
        return unfit(Verdict::Fragment);
    }
    let protocol = u8_at::<9, _>(ip);
    let least = match protocol {
        PROTO_TCP => TCP_LEN,
        PROTO_UDP => UDP_LEN,
        PROTO_ICMP => {
            return Ok(Frame::Icmpv4(Icmpv4 {
                eth_destination,
                client,
                destination,
                transport: ETH_LEN + header,
                length: total - header,
            }));
        }
        _ => return unfit(Verdict::UnsupportedProtocol),
    };
    if total < header + least {
        return unfit(Verdict::Malformed);
    }
    let transport = ETH_LEN + header;
    let Some(head) = packet.bytes::<4>(transport) else {
        return unfit(Verdict::Truncated);
    };
    let ports = be32_at::<0, _>(head);
    Ok(Frame::Ipv4(Ipv4Flow {
        eth_destination,
        client,
        destination,
        ports,
        protocol,
        transport,
        related: false,
    }))
}

/// What the packet says about its flow's life; only asked in a slot in transition.
///
/// # Errors
/// [`Verdict::Truncated`] where the transport header is cut short.
#[inline(always)]
pub fn signal<P: Packet>(packet: &P, flow: &Ipv4Flow) -> Result<Signal, Verdict> {
    if flow.related && flow.protocol == PROTO_TCP {
        return Ok(Signal::Related);
    }
    if flow.protocol != PROTO_TCP {
        return Ok(Signal::Unknown);
    }
    let flags = u8_at::<0, 1>(
        packet
            .bytes::<1>(flow.transport + TCP_FLAGS)
            .ok_or(Verdict::Truncated)?,
    );
    Ok(if flags & TCP_RST != 0 {
        Signal::Resets
    } else if flags & (TCP_SYN | TCP_ACK) == TCP_SYN {
        Signal::Opens
    } else if flags & TCP_FIN != 0 {
        Signal::Closes
    } else {
        Signal::Continues
    })
}
