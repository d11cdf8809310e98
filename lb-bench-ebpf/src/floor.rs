//! What can't be done faster: programs that answer at once, and one that does the least a balancer must.

use aya_ebpf::{
    Global,
    bindings::xdp_action,
    macros::{map, xdp},
    maps::Array,
    programs::XdpContext,
};

/// Entries of [`FLOOR`].
const ENTRIES: u32 = 1024;

/// MAC addresses: bits 0 to 47, in the order of memory.
#[map]
static FLOOR: Array<u64> = Array::with_max_entries(ENTRIES, 0);

/// The source address of what leaves.
#[unsafe(no_mangle)]
static FLOOR_MAC: Global<u64> = Global::new(0);

/// Answers `XDP_TX`: what is subtracted.
#[xdp]
fn answer_tx(_context: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Answers `XDP_PASS`: what is subtracted from a program that passes.
#[xdp]
fn answer_pass(_context: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Swaps the MAC addresses and sends the frame back.
#[xdp]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands the context over by value"
)]
fn floor_swap(context: XdpContext) -> u32 {
    let start = context.data();
    if start + 14 > context.data_end() {
        return xdp_action::XDP_PASS;
    }
    // SAFETY: the first 12 bytes lie before the end of the frame; any alignment will do.
    unsafe {
        let first = (start as *const u64).read_unaligned();
        let second = ((start + 8) as *const u32).read_unaligned();
        let source = first >> 48 | u64::from(second) << 16;
        ((start) as *mut u64).write_unaligned(source | first << 48);
        ((start + 8) as *mut u32).write_unaligned((first >> 16) as u32);
    }
    xdp_action::XDP_TX
}

/// The floor: parses an IPv4 packet (the checks that the data path makes before it looks anything up), takes a MAC address
/// from an array, writes both addresses, and sends the frame back. No service, no hash, no counter.
#[xdp]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands the context over by value"
)]
fn floor(context: XdpContext) -> u32 {
    let (start, end) = (context.data(), context.data_end());
    if start + 42 > end {
        return xdp_action::XDP_PASS;
    }
    // SAFETY: all that is read and written here lies in the first 42 bytes, which the frame has; any alignment will do.
    unsafe {
        let kind = ((start + 12) as *const u32).read_unaligned();
        let total = u16::from_be(((start + 16) as *const u16).read_unaligned()) as usize;
        let fragment = ((start + 20) as *const u16).read_unaligned();
        // IPv4 without options, whatever its type of service; TCP or UDP, whole, and no fragment.
        let least = match *((start + 23) as *const u8) {
            6 => 40,
            17 => 28,
            _ => return xdp_action::XDP_PASS,
        };
        if kind & 0x00ff_ffff != 0x0045_0008
            || fragment & 0xff3f != 0
            || total < least
            || 14 + total > end - start
        {
            return xdp_action::XDP_PASS;
        }
        let source = ((start + 26) as *const u32).read_unaligned();
        let destination = ((start + 30) as *const u32).read_unaligned();
        let ports = ((start + 34) as *const u32).read_unaligned();
        let index = (source >> 16 ^ destination ^ ports) & (ENTRIES - 1);
        let Some(mac) = FLOOR.get(index) else {
            return xdp_action::XDP_PASS;
        };
        let own = FLOOR_MAC.load();
        ((start) as *mut u64).write_unaligned(*mac | own << 48);
        ((start + 8) as *mut u32).write_unaligned((own >> 16) as u32);
    }
    xdp_action::XDP_TX
}
