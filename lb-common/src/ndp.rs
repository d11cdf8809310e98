//! The answer to a neighbour solicitation for an IPv6 VIP (RFC 4861): the program gives it itself, as ARP's.

use crate::address::{Address, Ipv6};
use crate::packet::Packet;
use crate::parse::Icmp;
use crate::rewrite;
use crate::service::{Directory, lookup};
use crate::tables::Tables;
use crate::verdict::Verdict;
use crate::wire::{IPV6_LEN, MAC_MASK, be64_at, ipv6_at, le64_at, mac_bytes, mac_word, u8_at};

/// Bytes of a solicitation without options (RFC 4861 section 4.3), and of an advertisement (section 4.4).
const SOLICITATION_LEN: usize = 24;
/// Bytes of a link-layer address option for Ethernet (section 4.6.1, RFC 2464 section 6).
const OPTION_LEN: usize = 8;
/// Bytes of our advertisement: with the target's link-layer address, which an answer to a group must have (section 4.4).
const ANSWER_LEN: usize = SOLICITATION_LEN + OPTION_LEN;
/// Neighbour advertisement.
const ADVERTISEMENT: u8 = 136;
/// The hop limit that only a neighbour's packet can have (section 7.1.1).
const HOP_LIMIT: u8 = 255;
/// So many bytes of options at most are looked into: two or three options. Who signs his messages (RFC 3971) sends more, and
/// has to ask the host.
const MAX_OPTIONS: usize = 4 * OPTION_LEN;
/// Solicited-node multicast addresses are `ff02::1:ff00:0/104` (RFC 4291 section 2.7.1): this and 24 bits more.
const SOLICITED_NODE: Ipv6 = Ipv6 {
    high: 0xff02_0000_0000_0000,
    low: 0x0000_0001_ff00_0000,
};
/// The option with the sender's address.
const SOURCE_ADDRESS: u16 = 0x0101;
/// The option with the target's address: type 2, length 1 (in units of eight bytes).
const TARGET_ADDRESS: u64 = 0x0201;
/// Solicited.
const SOLICITED: u32 = 1 << 30;
/// Override: the answer is the one that holds.
const OVERRIDE: u32 = 1 << 29;
/// All nodes of the link (RFC 4291 section 2.7.1).
const ALL_NODES: Ipv6 = Ipv6 {
    high: 0xff02_0000_0000_0000,
    low: 1,
};
/// Its Ethernet address (RFC 2464 section 7).
const ALL_NODES_MAC: u64 = mac_word([0x33, 0x33, 0, 0, 0, 1]);
/// The bit of a MAC address's first byte that says "group" (IEEE 802).
const GROUP_BIT: u64 = 1;

/// Turns a solicitation for a VIP into its advertisement, in place. The frame's end moves where the solicitation had other
/// options than the sender's address.
///
/// What does not ask for a VIP is the host's: [`Verdict::NotOurs`]; so is what RFC 4861 section 7.1.1 tells to discard, which
/// the host does: a wrong checksum or hop limit, an option of no length (of the first option this is seen here), and from
/// nobody what is not sent to the target's group or names a sender. Duplicate address detection for a VIP (RFC 4862 section 5.4.3) is told that the address is taken.
#[inline(always)]
pub fn answer<P: Packet, T: Tables>(packet: &mut P, tables: &T, icmp: &Icmp<Ipv6>) -> Verdict {
    match advertise(packet, tables, icmp) {
        Ok(verdict) | Err(verdict) => verdict,
    }
}

#[inline(always)]
fn advertise<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    icmp: &Icmp<Ipv6>,
) -> Result<Verdict, Verdict> {
    let (link, at) = (icmp.link, icmp.transport);
    // Extension headers are for no solicitation (and with a fragment header it must be ignored, RFC 6980).
    if at != link.l3 + IPV6_LEN
        || icmp.length < SOLICITATION_LEN
        || icmp.length > SOLICITATION_LEN + MAX_OPTIONS
        || !icmp.length.is_multiple_of(OPTION_LEN)
    {
        return Err(Verdict::NotOurs);
    }
    let Some(hops) = packet.bytes::<1>(link.l3 + 7) else {
        return Err(Verdict::NotOurs);
    };
    let Some(message) = packet.bytes::<SOLICITATION_LEN>(at) else {
        return Err(Verdict::NotOurs);
    };
    let target = ipv6_at::<8, _>(message);
    let unspecified = icmp.client == (Ipv6 { high: 0, low: 0 });
    if u8_at::<0, _>(hops) != HOP_LIMIT
        || u8_at::<1, _>(message) != 0
        || (icmp.client.is_martian() && !unspecified)
        || icmp.client == target
        || (unspecified && !is_solicited_node(icmp.destination))
        || (link.destination & GROUP_BIT == 0 && !tables.is_own(link.destination))
    {
        return Err(Verdict::NotOurs);
    }
    let control = tables.control().ok_or(Verdict::Inconsistent)?;
    let directory = Directory(control.directory.get());
    if lookup(tables, directory, target, 0, 0).is_none() {
        return Err(Verdict::NotOurs);
    }
    let Some(frame) = packet.bytes::<14>(0) else {
        return Err(Verdict::Truncated);
    };
    let sender_mac = le64_at::<6, _>(frame) & MAC_MASK;
    // Type 14, length 1: as good as no option.
    let option = if icmp.length >= ANSWER_LEN {
        let option = packet.bytes::<OPTION_LEN>(at + SOLICITATION_LEN);
        be64_at::<0, _>(option.ok_or(Verdict::NotOurs)?)
    } else {
        NO_OPTION
    };
    let names_sender = (option >> 48) as u16 == SOURCE_ADDRESS;
    if option >> 48 & 0xff == 0 || (unspecified && names_sender) || !is_intact(packet, icmp)? {
        return Err(Verdict::NotOurs);
    }
    let asker_mac = if unspecified {
        ALL_NODES_MAC
    } else if names_sender {
        option.swap_bytes() >> 16
    } else {
        sender_mac
    };
    if asker_mac & GROUP_BIT != 0 && !unspecified {
        return Err(Verdict::NotOurs);
    }
    let asker = if unspecified { ALL_NODES } else { icmp.client };
    let flags = if unspecified {
        OVERRIDE
    } else {
        SOLICITED | OVERRIDE
    };

    // The frame may be longer than its packet: Ethernet pads.
    let have = packet.len();
    let want = at + ANSWER_LEN;
    if want != have && !packet.move_tail(want as i32 - have as i32) {
        return Err(Verdict::NoRoom);
    }
    // Type 136, code 0, no checksum yet, flags; then the target; then the option.
    let first = u64::from(ADVERTISEMENT) << 56 | u64::from(flags);
    let option = TARGET_ADDRESS << 48 | mac_bits(tables.answered_mac());
    let sum = checksum(target, asker, [first, target.high, target.low, option]);
    let first = first | u64::from(sum) << 32;
    write(packet, at, first)?;
    write(packet, at + 8, target.high)?;
    write(packet, at + 16, target.low)?;
    write(packet, at + 24, option)?;
    rewrite::ipv6_addresses(packet, link.l3, target, asker)?;
    let length = packet
        .bytes_mut::<2>(link.l3 + 4)
        .ok_or(Verdict::Truncated)?;
    *length = (ANSWER_LEN as u16).to_be_bytes();
    rewrite::ethernet(packet, asker_mac, tables.own_mac())?;
    Ok(Verdict::NeighbourReplied)
}

/// An option without meaning (a nonce, RFC 3971 section 5.3.2), where there is none.
const NO_OPTION: u64 = 0x0e01 << 48;

/// Whether an address is one that solicitations for some target are sent to.
#[inline(always)]
const fn is_solicited_node(address: Ipv6) -> bool {
    address.high == SOLICITED_NODE.high && address.low & !0x00ff_ffff == SOLICITED_NODE.low
}

/// Whether the solicitation's checksum is right (RFC 4443 section 2.3).
#[inline(always)]
fn is_intact<P: Packet>(packet: &P, icmp: &Icmp<Ipv6>) -> Result<bool, Verdict> {
    let word = |number: usize| -> Result<u64, Verdict> {
        let at = icmp.transport + 8 * number;
        // A word that is not there adds nothing.
        if 8 * number >= icmp.length {
            return Ok(0);
        }
        let bytes = packet.bytes::<8>(at).ok_or(Verdict::NotOurs)?;
        Ok(parts(be64_at::<0, _>(bytes)))
    };
    let message = word(0)? + word(1)? + word(2)? + word(3)? + word(4)? + word(5)? + word(6)?;
    let sum = pseudo_header(icmp.client, icmp.destination, icmp.length as u64) + message;
    Ok(folded(sum) == 0xffff)
}

/// A MAC address in the low 48 bits, its first byte uppermost.
#[inline(always)]
const fn mac_bits(word: u64) -> u64 {
    let [a, b, c, d, e, f] = mac_bytes(word);
    be64_at::<0, 8>(&[0, 0, a, b, c, d, e, f])
}

#[inline(always)]
fn write<P: Packet>(packet: &mut P, at: usize, word: u64) -> Result<(), Verdict> {
    *packet.bytes_mut::<8>(at).ok_or(Verdict::Truncated)? = word.to_be_bytes();
    Ok(())
}

/// The sum of a word's four 16-bit parts.
#[inline(always)]
const fn parts(word: u64) -> u64 {
    (word >> 48) + (word >> 32 & 0xffff) + (word >> 16 & 0xffff) + (word & 0xffff)
}

/// The sum of the pseudo-header of RFC 8200 section 8.1 for an ICMPv6 message of `length` bytes.
#[inline(always)]
const fn pseudo_header(source: Ipv6, destination: Ipv6, length: u64) -> u64 {
    parts(source.high)
        + parts(source.low)
        + parts(destination.high)
        + parts(destination.low)
        + length
        + crate::wire::PROTO_ICMPV6 as u64
}

/// A sum of fewer than 2^16 words of 16 bits, in one's complement.
#[inline(always)]
const fn folded(sum: u64) -> u16 {
    let folded = (sum & 0xffff) + (sum >> 16);
    ((folded & 0xffff) + (folded >> 16)) as u16
}

/// The checksum of our advertisement.
#[inline(always)]
const fn checksum(source: Ipv6, destination: Ipv6, message: [u64; 4]) -> u16 {
    let [a, b, c, d] = message;
    let sum = pseudo_header(source, destination, ANSWER_LEN as u64);
    !folded(sum + parts(a) + parts(b) + parts(c) + parts(d))
}
