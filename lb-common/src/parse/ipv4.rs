//! IPv4 (RFC 791): options are skipped, fragments told apart.

use crate::packet::Packet;
use crate::verdict::Verdict;
use crate::wire::{
    ETH_LEN, ETH_TYPE, ETHERTYPE_IPV4, IPV4_FRAGMENT_MASK, IPV4_FRAGMENT_OFFSET, IPV4_LEN,
    IPV4_MORE_FRAGMENTS, PROTO_ICMP, PROTO_TCP, PROTO_UDP, TCP_LEN, UDP_LEN, be16_at, be32_at,
    le32_at, u8_at,
};

use super::{Flow, Fragment, Icmp, Ip, Link, Part, Unfit};

/// Bytes that hold everything the pick needs of a frame without tags and IPv4 options: up to the ports.
pub(crate) const COMMON_LEN: usize = ETH_LEN + IPV4_LEN + UDP_LEN;
/// The largest IP packet there is: a fragment that would end behind it is one of the attack called "ping of death".
const MAX_PACKET: usize = 65_535;

/// The protocol of a whole packet without tags and options, if it is one that has the room for TCP's header, or UDP's: the
/// first bytes of a frame of `length` bytes. That it is neither of the two is found out by looking for its service.
#[inline(always)]
pub(crate) fn common(head: &[u8; COMMON_LEN], length: usize) -> Option<u8> {
    // EtherType, version and header length in one comparison.
    if be32_at::<ETH_TYPE, _>(head) >> 8 != u32::from(ETHERTYPE_IPV4) << 8 | 0x45 {
        return None;
    }
    // With the identification before it, in the packet's order: one instruction for the mask.
    const FRAGMENT: u32 = (IPV4_FRAGMENT_MASK.to_be() as u32) << 16;
    let fragment = le32_at::<{ ETH_LEN + 4 }, _>(head) & FRAGMENT;
    let total = be16_at::<{ ETH_LEN + 2 }, _>(head) as usize;
    let protocol = u8_at::<{ ETH_LEN + 9 }, _>(head);
    if fragment != 0 || ETH_LEN + total > length {
        return None;
    }
    // Long enough for either; a shorter one may be a datagram still.
    if total < IPV4_LEN + TCP_LEN && (protocol != PROTO_UDP || total < IPV4_LEN + UDP_LEN) {
        return None;
    }
    Some(protocol)
}

/// Any IPv4 packet, with a check for each step.
#[inline(always)]
pub(crate) fn parse<P: Packet>(packet: &P, link: Link) -> Result<Ip<u32>, Verdict> {
    let l3 = link.l3;
    let ip = packet.bytes::<IPV4_LEN>(l3).ok_or(Verdict::Truncated)?;
    let destination = be32_at::<16, _>(ip);
    let client = be32_at::<12, _>(ip);
    let unfit = |verdict| {
        Ok(Ip::Unfit(Unfit {
            link,
            destination,
            verdict,
        }))
    };

    let version = u8_at::<0, _>(ip) >> 4;
    let header = (u8_at::<0, _>(ip) & 0xf) as usize * 4;
    let total = be16_at::<2, _>(ip) as usize;
    if version != 4 || header < IPV4_LEN || total < header {
        return unfit(Verdict::Malformed);
    }
    if l3 + total > packet.len() {
        return unfit(Verdict::Truncated);
    }
    let protocol = u8_at::<9, _>(ip);
    let identification = u32::from(be16_at::<4, _>(ip));
    let fragment = be16_at::<6, _>(ip);
    let offset = usize::from(fragment & IPV4_FRAGMENT_OFFSET) * 8;
    let more = fragment & IPV4_MORE_FRAGMENTS != 0;
    let payload = total - header;
    if offset != 0 {
        // A second fragment that reaches back into the TCP header would change its flags behind the first one's back
        // (RFC 1858 section 3.2, RFC 3128); all but the last carry multiples of eight bytes.
        if (protocol == PROTO_TCP && offset < TCP_LEN)
            || (more && payload & 7 != 0)
            || payload == 0
            || header + offset + payload > MAX_PACKET
        {
            return unfit(Verdict::Malformed);
        }
        if protocol != PROTO_TCP && protocol != PROTO_UDP {
            return unfit(Verdict::Fragment);
        }
        return Ok(Ip::Fragment(Fragment {
            link,
            client,
            destination,
            protocol,
            identification,
        }));
    }
    let least = match protocol {
        PROTO_TCP => TCP_LEN,
        PROTO_UDP => UDP_LEN,
        // A fragmented message is not put together here.
        PROTO_ICMP if more => return unfit(Verdict::Fragment),
        PROTO_ICMP => {
            return Ok(Ip::Icmp(Icmp {
                link,
                client,
                destination,
                transport: l3 + header,
                length: payload,
            }));
        }
        _ => return unfit(Verdict::UnsupportedProtocol),
    };
    if payload < least || (more && payload & 7 != 0) {
        return unfit(Verdict::Malformed);
    }
    let transport = l3 + header;
    let Some(head) = packet.bytes::<4>(transport) else {
        return unfit(Verdict::Truncated);
    };
    Ok(Ip::Flow(Flow {
        link,
        client,
        destination,
        ports: be32_at::<0, _>(head),
        protocol,
        transport,
        end: l3 + total,
        part: if more {
            Part::FirstFragment(identification)
        } else {
            Part::Whole
        },
    }))
}
