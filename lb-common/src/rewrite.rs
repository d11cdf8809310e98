//! The Ethernet addresses of a packet on its way to a backend, whose IP packet stays as it is; and of an answer, whose
//! addresses change places.

use crate::address::Ipv6;
use crate::packet::Packet;
use crate::verdict::Verdict;
use crate::wire::{MAC_MASK, le64_at, mac_bytes};

/// Writes destination and source, both as [`crate::wire::mac_word`].
///
/// The source is the director's own egress MAC: a switch that saw the client's MAC arrive from the director would send
/// the replies there (design.md section 2, step 7).
///
/// # Errors
/// [`Verdict::Truncated`] where there is no Ethernet header.
#[inline(always)]
pub fn ethernet<P: Packet>(packet: &mut P, destination: u64, source: u64) -> Result<(), Verdict> {
    let addresses = packet.bytes_mut::<12>(0).ok_or(Verdict::Truncated)?;
    addresses_in(addresses, destination, source);
    Ok(())
}

/// The same, where a frame's first bytes are at hand.
#[inline(always)]
pub fn addresses_in(head: &mut [u8], destination: u64, source: u64) {
    head_in(head, destination | source << 48, (source >> 16) as u32);
    debug_assert_eq!(head[..6], mac_bytes(destination));
    debug_assert_eq!(head[6..12], mac_bytes(source));
}

/// The same as two little-endian words: the first eight bytes (destination and the source's first two), and the `rest`.
#[inline(always)]
pub fn head_in(head: &mut [u8], first: u64, rest: u32) {
    let Some((eight, behind)) = head.split_first_chunk_mut() else {
        return;
    };
    let Some(four) = behind.first_chunk_mut() else {
        return;
    };
    *eight = first.to_le_bytes();
    *four = rest.to_le_bytes();
}

/// Writes the destination alone, as [`crate::wire::mac_word`].
///
/// # Errors
/// [`Verdict::Truncated`] where there is no Ethernet header.
#[inline(always)]
pub fn destination<P: Packet>(packet: &mut P, destination: u64) -> Result<(), Verdict> {
    *packet.bytes_mut::<6>(0).ok_or(Verdict::Truncated)? = mac_bytes(destination);
    Ok(())
}

/// Sends a frame back to the Ethernet address it came from, `own` (as [`crate::wire::mac_word`]) being its sender.
///
/// # Errors
/// [`Verdict::Truncated`] where there is no Ethernet header.
#[inline(always)]
pub fn back<P: Packet>(packet: &mut P, own: u64) -> Result<(), Verdict> {
    let frame = packet.bytes::<14>(0).ok_or(Verdict::Truncated)?;
    let sender = le64_at::<6, _>(frame) & MAC_MASK;
    ethernet(packet, sender, own)
}

/// Writes source and destination of the IPv6 header at `l3`.
///
/// # Errors
/// [`Verdict::Truncated`] where there is none.
#[inline(always)]
pub fn ipv6_addresses<P: Packet>(
    packet: &mut P,
    l3: usize,
    source: Ipv6,
    destination: Ipv6,
) -> Result<(), Verdict> {
    write64(packet, l3 + 8, source.high)?;
    write64(packet, l3 + 16, source.low)?;
    write64(packet, l3 + 24, destination.high)?;
    write64(packet, l3 + 32, destination.low)
}

#[inline(always)]
fn write64<P: Packet>(packet: &mut P, at: usize, word: u64) -> Result<(), Verdict> {
    *packet.bytes_mut::<8>(at).ok_or(Verdict::Truncated)? = word.to_be_bytes();
    Ok(())
}
