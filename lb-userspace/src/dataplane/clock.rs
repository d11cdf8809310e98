//! The data path's clock, read from userspace.

use lb_common::flow::TICK_SHIFT;
use rustix::time::{ClockId, clock_gettime};

/// The time as the flow table has it: `bpf_ktime_get_coarse_ns` is `CLOCK_MONOTONIC_COARSE`, in units of
/// [`lb_common::flow::TICK_NS`], wrapping after 65,536 of them (about 9.8 h).
#[must_use]
pub fn coarse_ticks() -> u16 {
    let time = clock_gettime(ClockId::MonotonicCoarse);
    // The clock starts at 0 with the machine, so neither part is negative.
    let nanoseconds = time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned();
    (nanoseconds >> TICK_SHIFT) as u16
}
