//! Probes on their way out: the mark of the socket names the backend, whose MAC the frame gets.

use aya_ebpf::programs::TcContext;
use lb_common::{
    abi::{PROBE_MAC, PROBE_MARK},
    wire::{MAC_MASK, mac_word},
};

use crate::maps;

/// A packet to a VIP that names no backend: it would reach nobody.
pub(crate) struct Unaimed;

/// Rewrites the destination of a frame that goes to the probes' MAC; leaves every other frame alone.
///
/// # Errors
/// [`Unaimed`] where the mark names no backend with a MAC address, or where the frame is the host's own traffic to a
/// VIP, which no mark aims.
#[inline(always)]
pub(crate) fn aim(context: &TcContext) -> Result<(), Unaimed> {
    // Eight bytes, because the stack takes only aligned words: the destination and the source's first two bytes.
    let Ok(start) = context.load::<u64>(0) else {
        return Ok(());
    };
    let start = u64::from_le(start);
    if start & MAC_MASK != const { mac_word(PROBE_MAC) } {
        return Ok(());
    }
    // SAFETY: the context is the kernel's `__sk_buff`, whose mark every tc program may read.
    let mark = unsafe { (*context.skb.skb).mark };
    if mark & 0xffff_0000 != PROBE_MARK {
        return Err(Unaimed);
    }
    let backend = maps::backend(mark as u16);
    if backend.mac() == 0 {
        return Err(Unaimed);
    }
    let aimed = (start & !MAC_MASK) | backend.mac();
    context
        .store(0, &aimed.to_le(), 0)
        .map_err(|_error| Unaimed)
}
