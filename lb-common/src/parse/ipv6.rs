//! IPv6 (RFC 8200): a bounded number of extension headers is skipped, fragments are told apart.

use crate::address::Ipv6;
use crate::packet::Packet;
use crate::verdict::Verdict;
use crate::wire::{
    ETH_LEN, ETH_TYPE, ETHERTYPE_IPV6, IPV6_LEN, NEXT_DESTINATION, NEXT_FRAGMENT, NEXT_HOP_BY_HOP,
    NEXT_ROUTING, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, TCP_LEN, UDP_LEN, be16_at, be32_at, ipv6_at,
    u8_at,
};

use super::{Flow, Fragment, Icmp, Ip, Link, Part, Unfit};

/// Bytes that hold everything the pick needs of a frame without tags and extension headers.
pub(crate) const COMMON_LEN: usize = ETH_LEN + IPV6_LEN + UDP_LEN;
/// So many extension headers are followed: each kind once, and the destination options that may stand in two places
/// (RFC 8200 section 4.1), with one to spare.
pub const MAX_EXTENSIONS: u32 = 6;
/// So many bytes of extension headers are followed.
pub const MAX_EXTENSION_BYTES: usize = 1024;

/// The protocol of a whole TCP or UDP packet without tags and extension headers, if it is one: the first bytes of a frame of
/// `length` bytes.
#[inline(always)]
pub(crate) fn common(head: &[u8; COMMON_LEN], length: usize) -> Option<u8> {
    // EtherType and version in one comparison.
    if be32_at::<ETH_TYPE, _>(head) >> 12 != u32::from(ETHERTYPE_IPV6) << 4 | 6 {
        return None;
    }
    let payload = be16_at::<{ ETH_LEN + 4 }, _>(head) as usize;
    let protocol = u8_at::<{ ETH_LEN + 6 }, _>(head);
    let least = match protocol {
        PROTO_TCP => TCP_LEN,
        PROTO_UDP => UDP_LEN,
        _ => return None,
    };
    if payload < least || ETH_LEN + IPV6_LEN + payload > length {
        return None;
    }
    Some(protocol)
}

/// What stands behind the extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The upper-layer protocol, or the next header of a later fragment.
    pub protocol: u8,
    /// Offset of its header in the frame.
    pub at: usize,
    /// The fragment header's identification, offset (in bytes) and "more fragments"; all 0 without one.
    pub identification: u32,
    /// The fragment's offset in bytes.
    pub offset: usize,
    /// Whether more fragments follow.
    pub more: bool,
}

/// Follows the extension headers behind the IPv6 header at `l3`, whose packet ends at `end`.
///
/// # Errors
/// [`Verdict::ExtensionHeaders`] beyond [`MAX_EXTENSIONS`] or [`MAX_EXTENSION_BYTES`], for hop-by-hop options that are not
/// first, for a fragment of a fragment, and for a routing header that names another destination; [`Verdict::Malformed`] where one ends behind the packet.
#[inline(always)]
pub fn walk<P: Packet>(packet: &P, l3: usize, first: u8, end: usize) -> Result<Chain, Verdict> {
    let start = l3 + IPV6_LEN;
    let mut chain = Chain {
        protocol: first,
        at: start,
        identification: 0,
        offset: 0,
        more: false,
    };
    for number in 0..=MAX_EXTENSIONS {
        let kind = chain.protocol;
        if !matches!(
            kind,
            NEXT_HOP_BY_HOP | NEXT_ROUTING | NEXT_FRAGMENT | NEXT_DESTINATION
        ) {
            return Ok(chain);
        }
        if number == MAX_EXTENSIONS
            || (kind == NEXT_HOP_BY_HOP && number != 0)
            || (kind == NEXT_FRAGMENT && chain.more)
        {
            return Err(Verdict::ExtensionHeaders);
        }
        let Some(header) = packet.bytes::<8>(chain.at) else {
            // The frame has the whole packet (the callers see to it), so it is the packet that ends within a header.
            return Err(Verdict::Malformed);
        };
        let length = if kind == NEXT_FRAGMENT {
            8
        } else {
            (u8_at::<1, _>(header) as usize + 1) * 8
        };
        if kind == NEXT_ROUTING && u8_at::<3, _>(header) != 0 {
            // Segments left: the destination is one on the way (RFC 8200 section 4.4).
            return Err(Verdict::ExtensionHeaders);
        }
        chain.protocol = u8_at::<0, _>(header);
        chain.at += length;
        if chain.at > end {
            return Err(Verdict::Malformed);
        }
        if chain.at - start > MAX_EXTENSION_BYTES {
            return Err(Verdict::ExtensionHeaders);
        }
        if kind == NEXT_FRAGMENT {
            let word = be16_at::<2, _>(header);
            chain.identification = be32_at::<4, _>(header);
            chain.offset = (word & 0xfff8) as usize;
            chain.more = word & 1 != 0;
            if chain.offset != 0 {
                return Ok(chain);
            }
        }
    }
    Err(Verdict::ExtensionHeaders)
}

/// Any IPv6 packet, with a check for each step.
#[inline(always)]
pub(crate) fn parse<P: Packet>(packet: &P, link: Link) -> Result<Ip<Ipv6>, Verdict> {
    let l3 = link.l3;
    let ip = packet.bytes::<IPV6_LEN>(l3).ok_or(Verdict::Truncated)?;
    let client = ipv6_at::<8, _>(ip);
    let destination = ipv6_at::<24, _>(ip);
    let unfit = |verdict| {
        Ok(Ip::Unfit(Unfit {
            link,
            destination,
            verdict,
        }))
    };
    let payload = be16_at::<4, _>(ip) as usize;
    if u8_at::<0, _>(ip) >> 4 != 6 || payload == 0 {
        // Length 0 is a jumbogram (RFC 2675), which no Ethernet carries, or a packet without content.
        return unfit(Verdict::Malformed);
    }
    let end = l3 + IPV6_LEN + payload;
    if end > packet.len() {
        return unfit(Verdict::Truncated);
    }
    let chain = match walk(packet, l3, u8_at::<6, _>(ip), end) {
        Ok(chain) => chain,
        Err(verdict) => return unfit(verdict),
    };
    let left = end - chain.at;
    if chain.more && left & 7 != 0 {
        return unfit(Verdict::Malformed);
    }
    let protocol = chain.protocol;
    if chain.offset != 0 {
        if (protocol == PROTO_TCP && chain.offset < TCP_LEN)
            || left == 0
            || chain.offset + left > 65_535
        {
            return unfit(Verdict::Malformed);
        }
        // Behind the first fragment it is what followed the fragment header there, which may be another extension header.
        if !matches!(
            protocol,
            PROTO_TCP | PROTO_UDP | NEXT_DESTINATION | NEXT_ROUTING
        ) {
            return unfit(Verdict::Fragment);
        }
        return Ok(Ip::Fragment(Fragment {
            link,
            client,
            destination,
            protocol,
            identification: chain.identification,
        }));
    }
    let least = match protocol {
        PROTO_TCP => TCP_LEN,
        PROTO_UDP => UDP_LEN,
        PROTO_ICMPV6 if chain.more => return unfit(Verdict::Fragment),
        PROTO_ICMPV6 => {
            return Ok(Ip::Icmp(Icmp {
                link,
                client,
                destination,
                transport: chain.at,
                length: left,
            }));
        }
        _ => return unfit(Verdict::UnsupportedProtocol),
    };
    if left < least {
        return unfit(Verdict::Malformed);
    }
    let Some(head) = packet.bytes::<4>(chain.at) else {
        return unfit(Verdict::Truncated);
    };
    Ok(Ip::Flow(Flow {
        link,
        client,
        destination,
        ports: be32_at::<0, _>(head),
        protocol,
        transport: chain.at,
        end,
        part: if chain.more {
            Part::FirstFragment(chain.identification)
        } else {
            Part::Whole
        },
    }))
}
