//! ICMP for a VIP: errors about a flow go where the flow goes, an echo request is answered here, nothing else passes.

use crate::packet::Packet;
use crate::parse::{Icmpv4, Ipv4Flow};
use crate::verdict::Verdict;
use crate::wire::{
    ETH_LEN, IPV4_FRAGMENT_MASK, IPV4_LEN, PROTO_TCP, PROTO_UDP, be16_at, be32_at, le64_at,
    mac_bytes, u8_at,
};

/// Bytes of an ICMP header (RFC 792).
const ICMP_LEN: usize = 8;
/// Echo reply (RFC 792).
const ECHO_REPLY: u8 = 0;
/// Destination unreachable, "fragmentation needed" among them (RFC 792, RFC 1191).
const UNREACHABLE: u8 = 3;
/// Echo request.
const ECHO_REQUEST: u8 = 8;
/// Time exceeded.
const TIME_EXCEEDED: u8 = 11;
/// Parameter problem.
const PARAMETER_PROBLEM: u8 = 12;
/// The TTL of an answer of our own: Linux's default (RFC 1700).
const TTL: u8 = 64;

/// What an ICMP message for a VIP asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// It is about this flow, and goes to the flow's backend.
    About(Ipv4Flow),
    /// It wants an answer.
    Echo,
}

/// Reads an ICMP message whose destination is a VIP.
///
/// # Errors
/// [`Verdict::Truncated`] and [`Verdict::Malformed`] where it is cut short; [`Verdict::IcmpUnrelated`] where an error
/// quotes no TCP or UDP packet from the VIP, or quotes too little of it to tell the flow;
/// [`Verdict::UnsupportedProtocol`] for every other type.
#[inline(always)]
pub fn read<P: Packet>(packet: &P, icmp: &Icmpv4) -> Result<Message, Verdict> {
    if icmp.length < ICMP_LEN {
        return Err(Verdict::Malformed);
    }
    let header = packet
        .bytes::<ICMP_LEN>(icmp.transport)
        .ok_or(Verdict::Truncated)?;
    match (u8_at::<0, _>(header), u8_at::<1, _>(header)) {
        (ECHO_REQUEST, 0) => Ok(Message::Echo),
        (UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM, _) => {
            quoted(packet, icmp).map(Message::About)
        }
        _ => Err(Verdict::UnsupportedProtocol),
    }
}

/// The flow of the packet that an error quotes: it went from the VIP to the client, so its ends change places.
#[inline(always)]
fn quoted<P: Packet>(packet: &P, icmp: &Icmpv4) -> Result<Ipv4Flow, Verdict> {
    let at = icmp.transport + ICMP_LEN;
    if icmp.length < ICMP_LEN + IPV4_LEN {
        return Err(Verdict::IcmpUnrelated);
    }
    let ip = packet.bytes::<IPV4_LEN>(at).ok_or(Verdict::Truncated)?;
    let header = (u8_at::<0, _>(ip) & 0xf) as usize * 4;
    let protocol = u8_at::<9, _>(ip);
    let vip = be32_at::<12, _>(ip);
    let client = be32_at::<16, _>(ip);
    if u8_at::<0, _>(ip) >> 4 != 4
        || header < IPV4_LEN
        || (protocol != PROTO_TCP && protocol != PROTO_UDP)
        // A later fragment does not name the ports.
        || be16_at::<6, _>(ip) & IPV4_FRAGMENT_MASK & 0x1fff != 0
        || vip != icmp.destination
        || icmp.length < ICMP_LEN + header + 4
    {
        return Err(Verdict::IcmpUnrelated);
    }
    let ports = packet.bytes::<4>(at + header).ok_or(Verdict::Truncated)?;
    let client_port = be16_at::<2, _>(ports);
    let service_port = be16_at::<0, _>(ports);
    Ok(Ipv4Flow {
        eth_destination: icmp.eth_destination,
        client,
        destination: vip,
        ports: u32::from(client_port) << 16 | u32::from(service_port),
        protocol,
        transport: at + header,
        related: true,
    })
}

/// Turns an echo request into its reply, in place.
///
/// # Errors
/// [`Verdict::MartianSource`] where the request comes from an address that nobody may be answered at (RFC 1122 section
/// 3.2.1.3): such a reply would be broadcast.
#[inline(always)]
pub fn answer<P: Packet>(packet: &mut P, icmp: &Icmpv4, own_mac: u64) -> Result<Verdict, Verdict> {
    if is_martian(icmp.client) {
        return Err(Verdict::MartianSource);
    }
    let header = packet
        .bytes_mut::<4>(icmp.transport)
        .ok_or(Verdict::Truncated)?;
    let [kind, _, high, low] = header;
    *kind = ECHO_REPLY;
    // Only the type changed, from 8 to 0.
    let sum = updated(
        u16::from_be_bytes([*high, *low]),
        u16::from(ECHO_REQUEST) << 8,
        0,
    );
    [*high, *low] = sum.to_be_bytes();

    let frame = packet
        .bytes_mut::<{ ETH_LEN + IPV4_LEN }>(0)
        .ok_or(Verdict::Truncated)?;
    let asker = mac_bytes(le64_at::<6, _>(frame));
    let sum = be16_at::<{ ETH_LEN + 10 }, _>(frame);
    let before = be16_at::<{ ETH_LEN + 8 }, _>(frame);
    let after = before & 0xff | u16::from(TTL) << 8;
    let [
        d0,
        d1,
        d2,
        d3,
        d4,
        d5,
        s0,
        s1,
        s2,
        s3,
        s4,
        s5,
        _,
        _, // Ethernet; the type stays
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        ttl,
        _,
        sum_high,
        sum_low, // IPv4
        a0,
        a1,
        a2,
        a3,
        b0,
        b1,
        b2,
        b3, // source, destination
    ] = frame;
    [*d0, *d1, *d2, *d3, *d4, *d5] = asker;
    [*s0, *s1, *s2, *s3, *s4, *s5] = mac_bytes(own_mac);
    *ttl = TTL;
    [*sum_high, *sum_low] = updated(sum, before, after).to_be_bytes();
    // Exchanged addresses make the same sum.
    [*a0, *a1, *a2, *a3] = icmp.destination.to_be_bytes();
    [*b0, *b1, *b2, *b3] = icmp.client.to_be_bytes();
    Ok(Verdict::EchoReplied)
}

/// An Internet checksum after one of the words it covers has changed (RFC 1624, equation 3).
#[inline(always)]
#[must_use]
pub const fn updated(sum: u16, before: u16, after: u16) -> u16 {
    let total = (!sum) as u32 + (!before) as u32 + after as u32;
    let folded = (total & 0xffff) + (total >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// Whether nobody can have this source address: this network, loopback, multicast, reserved and broadcast (RFC 1122
/// section 3.2.1.3, RFC 6890).
#[inline(always)]
#[must_use]
pub const fn is_martian(address: u32) -> bool {
    let first = (address >> 24) as u8;
    first == 0 || first == 127 || first >= 224
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    fn checksum(words: &[u16]) -> u16 {
        let mut sum: u32 = words.iter().map(|word| u32::from(*word)).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    /// An updated checksum is the one computed anew, for every pair of words that can carry.
    #[test]
    fn updating_is_the_same_as_summing_anew() {
        for before in [0, 1, 0x0800, 0x7fff, 0x8000, 0xfffe, 0xffff] {
            for after in [0, 1, 0x0800, 0x7fff, 0x8000, 0xfffe, 0xffff] {
                for rest in [1, 0x1234, 0xfffe, 0xffff] {
                    let old = checksum(&[before, rest]);
                    assert_eq!(
                        updated(old, before, after),
                        checksum(&[after, rest]),
                        "{before:x} {after:x} {rest:x}"
                    );
                }
            }
        }
    }

    #[test]
    fn who_can_not_be_answered() {
        for address in [
            0x0000_0001u32,
            0x7f00_0001,
            0xe000_0001,
            0xffff_ffff,
            0xf000_0000,
        ] {
            assert!(is_martian(address), "{address:x}");
        }
        for address in [0x0100_0001u32, 0xc0a8_0001, 0xdfff_ffff, 0x7eff_ffff] {
            assert!(!is_martian(address), "{address:x}");
        }
    }
}
