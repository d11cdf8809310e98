//! The Ethernet addresses of a packet on its way to a backend; the IP packet stays as it is.

use crate::packet::Packet;
use crate::verdict::Verdict;
use crate::wire::mac_bytes;

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
    // Two stores: eight bytes (destination and the source's first two), then four.
    let first = destination | source << 48;
    let rest = (source >> 16) as u32;
    let [a, b, c, d, e, f, g, h] = first.to_le_bytes();
    let [i, j, k, l] = rest.to_le_bytes();
    *addresses = [a, b, c, d, e, f, g, h, i, j, k, l];
    debug_assert_eq!(addresses[..6], mac_bytes(destination));
    debug_assert_eq!(addresses[6..], mac_bytes(source));
    Ok(())
}
