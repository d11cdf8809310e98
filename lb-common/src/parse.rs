//! What a frame is: Ethernet with up to two VLAN tags, then IPv4 ([`ipv4`]) or IPv6 ([`ipv6`]), then TCP, UDP or ICMP.

pub(crate) mod ipv4;
pub(crate) mod ipv6;
mod signal;

pub use ipv6::{Chain, MAX_EXTENSION_BYTES, MAX_EXTENSIONS, walk};
pub use signal::{Signal, of_flags, signal};

use crate::address::Ipv6;
use crate::features::Features;
use crate::packet::Packet;
use crate::verdict::Verdict;
use crate::wire::{
    ETH_LEN, ETH_TYPE, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ,
    ETHERTYPE_VLAN, VLAN_LEN, be16_at, le64_at,
};

/// The frame around a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The Ethernet destination, as [`crate::wire::mac_word`].
    pub destination: u64,
    /// Offset of the IP header or ARP packet: 14 bytes, and 4 more for each VLAN tag.
    pub l3: usize,
}

impl Link {
    /// Whether the frame has a VLAN tag.
    #[inline(always)]
    #[must_use]
    pub const fn is_tagged(&self) -> bool {
        self.l3 != ETH_LEN
    }
}

/// How a packet belongs to the flow it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It is one of the flow's packets, whole.
    Whole,
    /// It is the first fragment of one of its packets; the identification that the others share (16 bits in IPv4).
    FirstFragment(u32),
    /// It is an ICMP error about the flow: it goes where the flow goes and leaves no trace.
    Quoted,
}

/// The ends of a flow, and where its headers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<A> {
    /// The frame.
    pub link: Link,
    /// Source address.
    pub client: A,
    /// Destination address.
    pub destination: A,
    /// Source port in the upper half, destination port in the lower one.
    pub ports: u32,
    /// [`crate::wire::PROTO_TCP`] or [`crate::wire::PROTO_UDP`].
    pub protocol: u8,
    /// Offset of the transport header.
    pub transport: usize,
    /// Offset of the end of the IP packet.
    pub end: usize,
    /// How the packet belongs to the flow.
    pub part: Part,
}

impl<A> Flow<A> {
    /// The port of the service.
    #[inline(always)]
    #[must_use]
    pub const fn service_port(&self) -> u16 {
        self.ports as u16
    }
}

/// An ICMP or ICMPv6 message whose IP header is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp<A> {
    /// The frame.
    pub link: Link,
    /// Source address.
    pub client: A,
    /// Destination address.
    pub destination: A,
    /// Offset of the ICMP header.
    pub transport: usize,
    /// Bytes from there to the end of the IP packet.
    pub length: usize,
}

/// A fragment that is not the first of its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment<A> {
    /// The frame.
    pub link: Link,
    /// Source address.
    pub client: A,
    /// Destination address.
    pub destination: A,
    /// The protocol, as the fragment says it.
    pub protocol: u8,
    /// What the fragments of one packet share (16 bits in IPv4).
    pub identification: u32,
}

/// A packet that can't be balanced: only matters if its destination is a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfit<A> {
    /// The frame.
    pub link: Link,
    /// Destination address.
    pub destination: A,
    /// Why.
    pub verdict: Verdict,
}

/// A packet of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ip<A> {
    /// TCP or UDP, or the first fragment of it.
    Flow(Flow<A>),
    /// ICMP, not looked into yet.
    Icmp(Icmp<A>),
    /// A later fragment.
    Fragment(Fragment<A>),
    /// What can't be balanced.
    Unfit(Unfit<A>),
}

/// A frame whose headers are whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// IPv4.
    V4(Ip<u32>),
    /// IPv6.
    V6(Ip<Ipv6>),
    /// ARP, not looked into yet.
    Arp(Link),
    /// Anything else.
    Other,
}

/// Reads the headers.
///
/// # Errors
/// [`Verdict::Truncated`] where the frame ends before its destination can be told. What is found out later comes as
/// [`Ip::Unfit`], because it is nobody's business but the host's if the destination is no VIP.
pub fn parse<P: Packet>(packet: &P, features: Features) -> Result<Frame, Verdict> {
    let (link, ethertype) = link(packet, features)?;
    match ethertype {
        ETHERTYPE_IPV4 => ipv4::parse(packet, link).map(Frame::V4),
        ETHERTYPE_IPV6 if features.has(Features::IPV6) => ipv6::parse(packet, link).map(Frame::V6),
        ETHERTYPE_ARP => Ok(Frame::Arp(link)),
        _ => Ok(Frame::Other),
    }
}

/// Reads the frame's own header and its tags; the EtherType of what is in it.
///
/// # Errors
/// [`Verdict::Truncated`].
#[inline(always)]
pub(crate) fn link<P: Packet>(packet: &P, features: Features) -> Result<(Link, u16), Verdict> {
    let eth = packet.bytes::<ETH_LEN>(0).ok_or(Verdict::Truncated)?;
    let destination = le64_at::<0, _>(eth) & crate::wire::MAC_MASK;
    let mut ethertype = be16_at::<ETH_TYPE, _>(eth);
    let mut l3 = ETH_LEN;
    if features.has(Features::VLAN) && is_tag(ethertype) {
        ethertype = behind_tag::<ETH_LEN, _>(packet)?;
        l3 = ETH_LEN + VLAN_LEN;
        if is_tag(ethertype) {
            ethertype = behind_tag::<{ ETH_LEN + VLAN_LEN }, _>(packet)?;
            l3 = ETH_LEN + 2 * VLAN_LEN;
        }
    }
    Ok((Link { destination, l3 }, ethertype))
}

#[inline(always)]
const fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ)
}

/// The EtherType behind the tag whose second half is at `AT`.
#[inline(always)]
fn behind_tag<const AT: usize, P: Packet>(packet: &P) -> Result<u16, Verdict> {
    let tag = packet.bytes::<VLAN_LEN>(AT).ok_or(Verdict::Truncated)?;
    Ok(be16_at::<2, _>(tag))
}
