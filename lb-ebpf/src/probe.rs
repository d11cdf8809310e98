//! Probes on their way out: the mark of the socket names the backend, whose MAC the frame gets.

use aya_ebpf::programs::TcContext;
use lb_common::{
    abi::{PROBE_MAC, PROBE_MARK},
    wire::{mac_bytes, mac_word},
};

use crate::maps;

/// A packet to a VIP that names no backend: it would reach nobody.
pub(crate) struct Unaimed;

/// Bytes of an Ethernet address.
const MAC_LEN: usize = 6;

/// Rewrites the destination of a frame that goes to the probes' MAC; leaves every other frame alone.
///
/// # Errors
/// [`Unaimed`] where the mark names no backend with a MAC address, or where the frame is the host's own traffic to a
/// VIP, which no mark aims.
#[inline(always)]
pub(crate) fn aim(context: &TcContext) -> Result<(), Unaimed> {
    let Ok(destination) = context.load::<[u8; MAC_LEN]>(0) else {
        return Ok(());
    };
    if mac_word(destination) != const { mac_word(PROBE_MAC) } {
        return Ok(());
    }
    // SAFETY: the context is the kernel's `__sk_buff`, whose mark every tc program may read.
    let mark = unsafe { (*context.skb.skb).mark };
    if mark & 0xffff_0000 != PROBE_MARK {
        return Err(Unaimed);
    }
    let backend = maps::backend(mark as u16).ok_or(Unaimed)?;
    if backend.mac() == 0 {
        return Err(Unaimed);
    }
    context
        .store(0, &mac_bytes(backend.mac()), 0)
        .map_err(|_error| Unaimed)
}
