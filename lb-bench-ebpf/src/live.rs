//! The other end of live frames.

use aya_ebpf::{
    bindings::xdp_action,
    macros::{map, xdp},
    maps::PerCpuArray,
    programs::XdpContext,
};

/// How many frames have come back.
#[map]
static ARRIVED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Counts a frame and drops it.
#[xdp]
fn sink(_context: XdpContext) -> u32 {
    if let Some(arrived) = ARRIVED.get_ptr_mut(0) {
        // SAFETY: this processor's own entry; XDP runs with preemption disabled.
        unsafe { *arrived += 1 };
    }
    xdp_action::XDP_DROP
}
