//! ICMP and ICMPv6 for a VIP: errors about a flow go where the flow goes, an echo request is answered here, nothing else
//! passes.

use crate::address::Ipv6;
use crate::packet::Packet;
use crate::parse::{Flow, Icmp, Part, walk};
use crate::rewrite;
use crate::verdict::Verdict;
use crate::wire::{
    IPV4_FRAGMENT_OFFSET, IPV4_LEN, IPV6_LEN, PROTO_TCP, PROTO_UDP, be16_at, be32_at, ipv6_at,
    u8_at,
};

/// Bytes of an ICMP or ICMPv6 header (RFC 792, RFC 4443).
pub(crate) const ICMP_LEN: usize = 8;
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
/// ICMPv6 destination unreachable (RFC 4443 section 3.1); packet too big, time exceeded and parameter problem follow.
const UNREACHABLE6: u8 = 1;
/// ICMPv6 parameter problem (section 3.4).
const PARAMETER_PROBLEM6: u8 = 4;
/// ICMPv6 echo request (section 4.1).
const ECHO_REQUEST6: u8 = 128;
/// ICMPv6 echo reply.
const ECHO_REPLY6: u8 = 129;
/// ICMPv6 neighbour solicitation (RFC 4861 section 4.3).
const NEIGHBOUR_SOLICITATION: u8 = 135;
/// The TTL or hop limit of an answer of our own: Linux's default (RFC 1700).
const TTL: u8 = 64;

/// What an ICMP message asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<A> {
    /// It is about this flow, and goes to the flow's backend.
    About(Flow<A>),
    /// It wants an answer.
    Echo,
}

/// Whether an ICMPv6 message is a neighbour solicitation, which is not sent to the VIP that it asks for.
#[inline(always)]
pub fn is_solicitation<P: Packet>(packet: &P, icmp: &Icmp<Ipv6>) -> bool {
    match packet.bytes::<1>(icmp.transport) {
        Some(kind) => u8_at::<0, _>(kind) == NEIGHBOUR_SOLICITATION,
        None => false,
    }
}

/// The type and code of a message whose header is whole.
#[inline(always)]
fn kind<P: Packet, A>(packet: &P, icmp: &Icmp<A>) -> Result<(u8, u8), Verdict> {
    if icmp.length < ICMP_LEN {
        return Err(Verdict::Malformed);
    }
    let header = packet
        .bytes::<ICMP_LEN>(icmp.transport)
        .ok_or(Verdict::Truncated)?;
    Ok((u8_at::<0, _>(header), u8_at::<1, _>(header)))
}

/// Reads an ICMP message whose destination is a VIP.
///
/// # Errors
/// [`Verdict::Truncated`] and [`Verdict::Malformed`] where it is cut short; [`Verdict::IcmpUnrelated`] where an error
/// quotes no TCP or UDP packet from the VIP, or quotes too little of it to tell the flow;
/// [`Verdict::UnsupportedProtocol`] for every other type.
#[inline(always)]
pub fn read4<P: Packet>(packet: &P, icmp: &Icmp<u32>) -> Result<Message<u32>, Verdict> {
    match kind(packet, icmp)? {
        (ECHO_REQUEST, 0) => Ok(Message::Echo),
        (UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM, _) => {
            quoted4(packet, icmp).map(Message::About)
        }
        _ => Err(Verdict::UnsupportedProtocol),
    }
}

/// Reads an ICMPv6 message whose destination is a VIP.
///
/// # Errors
/// As [`read4`].
#[inline(always)]
pub fn read6<P: Packet>(packet: &P, icmp: &Icmp<Ipv6>) -> Result<Message<Ipv6>, Verdict> {
    match kind(packet, icmp)? {
        (ECHO_REQUEST6, 0) => Ok(Message::Echo),
        (UNREACHABLE6..=PARAMETER_PROBLEM6, _) => quoted6(packet, icmp).map(Message::About),
        _ => Err(Verdict::UnsupportedProtocol),
    }
}

/// The flow of the packet that an error quotes: it went from the VIP to the client, so its ends change places.
#[inline(always)]
fn quoted4<P: Packet>(packet: &P, icmp: &Icmp<u32>) -> Result<Flow<u32>, Verdict> {
    let at = icmp.transport + ICMP_LEN;
    if icmp.length < ICMP_LEN + IPV4_LEN {
        return Err(Verdict::IcmpUnrelated);
    }
    let ip = packet.bytes::<IPV4_LEN>(at).ok_or(Verdict::Truncated)?;
    let header = (u8_at::<0, _>(ip) & 0xf) as usize * 4;
    let vip = be32_at::<12, _>(ip);
    if u8_at::<0, _>(ip) >> 4 != 4
        || header < IPV4_LEN
        // A later fragment does not name the ports.
        || be16_at::<6, _>(ip) & IPV4_FRAGMENT_OFFSET != 0
        || vip != icmp.destination
    {
        return Err(Verdict::IcmpUnrelated);
    }
    let client = be32_at::<16, _>(ip);
    let protocol = u8_at::<9, _>(ip);
    about(packet, icmp, client, protocol, at + header)
}

/// Likewise of an ICMPv6 error (RFC 4443 section 3: "as much of invoking packet as possible").
#[inline(always)]
fn quoted6<P: Packet>(packet: &P, icmp: &Icmp<Ipv6>) -> Result<Flow<Ipv6>, Verdict> {
    let at = icmp.transport + ICMP_LEN;
    let end = icmp.transport + icmp.length;
    if icmp.length < ICMP_LEN + IPV6_LEN {
        return Err(Verdict::IcmpUnrelated);
    }
    let ip = packet.bytes::<IPV6_LEN>(at).ok_or(Verdict::Truncated)?;
    if u8_at::<0, _>(ip) >> 4 != 6 || ipv6_at::<8, _>(ip) != icmp.destination {
        return Err(Verdict::IcmpUnrelated);
    }
    let client = ipv6_at::<24, _>(ip);
    match walk(packet, at, u8_at::<6, _>(ip), end) {
        Ok(chain) if chain.offset == 0 => about(packet, icmp, client, chain.protocol, chain.at),
        _ => Err(Verdict::IcmpUnrelated),
    }
}

/// The flow from `client` whose quoted transport header is at `transport`.
#[inline(always)]
fn about<P: Packet, A: Copy>(
    packet: &P,
    icmp: &Icmp<A>,
    client: A,
    protocol: u8,
    transport: usize,
) -> Result<Flow<A>, Verdict> {
    let end = icmp.transport + icmp.length;
    if (protocol != PROTO_TCP && protocol != PROTO_UDP) || transport + 4 > end {
        return Err(Verdict::IcmpUnrelated);
    }
    let ports = packet.bytes::<4>(transport).ok_or(Verdict::Truncated)?;
    let client_port = be16_at::<2, _>(ports);
    let service_port = be16_at::<0, _>(ports);
    Ok(Flow {
        link: icmp.link,
        client,
        destination: icmp.destination,
        ports: u32::from(client_port) << 16 | u32::from(service_port),
        protocol,
        transport,
        end,
        part: Part::Quoted,
    })
}

/// Turns the type of an echo request into that of its reply.
#[inline(always)]
fn reply<P: Packet>(packet: &mut P, at: usize, before: u8, after: u8) -> Result<(), Verdict> {
    let header = packet.bytes_mut::<4>(at).ok_or(Verdict::Truncated)?;
    let [kind, _, high, low] = header;
    *kind = after;
    // Only the type changed.
    let sum = updated(
        u16::from_be_bytes([*high, *low]),
        u16::from(before) << 8,
        u16::from(after) << 8,
    );
    [*high, *low] = sum.to_be_bytes();
    Ok(())
}

/// Turns an echo request into its reply, in place.
///
/// # Errors
/// [`Verdict::Truncated`] where it is cut short.
#[inline(always)]
pub fn answer4<P: Packet>(
    packet: &mut P,
    icmp: &Icmp<u32>,
    own_mac: u64,
) -> Result<Verdict, Verdict> {
    reply(packet, icmp.transport, ECHO_REQUEST, ECHO_REPLY)?;
    let ip = packet
        .bytes_mut::<IPV4_LEN>(icmp.link.l3)
        .ok_or(Verdict::Truncated)?;
    let sum = be16_at::<10, _>(ip);
    let before = be16_at::<8, _>(ip);
    let after = before & 0xff | u16::from(TTL) << 8;
    let [
        ..,
        ttl,
        _,
        sum_high,
        sum_low,
        a0,
        a1,
        a2,
        a3,
        b0,
        b1,
        b2,
        b3, // source, destination
    ] = ip;
    *ttl = TTL;
    [*sum_high, *sum_low] = updated(sum, before, after).to_be_bytes();
    // Exchanged addresses make the same sum.
    [*a0, *a1, *a2, *a3] = icmp.destination.to_be_bytes();
    [*b0, *b1, *b2, *b3] = icmp.client.to_be_bytes();
    rewrite::back(packet, own_mac)?;
    Ok(Verdict::EchoReplied)
}

/// Likewise over IPv6.
///
/// # Errors
/// As [`answer4`].
#[inline(always)]
pub fn answer6<P: Packet>(
    packet: &mut P,
    icmp: &Icmp<Ipv6>,
    own_mac: u64,
) -> Result<Verdict, Verdict> {
    reply(packet, icmp.transport, ECHO_REQUEST6, ECHO_REPLY6)?;
    let hops = packet
        .bytes_mut::<1>(icmp.link.l3 + 7)
        .ok_or(Verdict::Truncated)?;
    *hops = [TTL];
    // Exchanged addresses make the same sum.
    rewrite::ipv6_addresses(packet, icmp.link.l3, icmp.destination, icmp.client)?;
    rewrite::back(packet, own_mac)?;
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
}
