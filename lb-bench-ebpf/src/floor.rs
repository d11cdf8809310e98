//! What can't be done faster: programs that answer at once, one that does the least a balancer must, and the same with as
//! much memory as a balancer's tables take.

use core::ptr;

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

/// A cache line of [`MEMORY`].
#[repr(C, align(64))]
struct Line([Global<u64>; 8]);

/// Memory as large as a table: the first line of a map that has one value, as the data path's own direct maps, which
/// `lb-userspace/src/dataplane/rig.rs` makes and puts in this one's place.
#[unsafe(link_section = ".bss.MEMORY")]
#[unsafe(no_mangle)]
static MEMORY: Line = Line([const { Global::new(0) }; 8]);
/// How many lines it has, a power of two, less one.
#[unsafe(no_mangle)]
static MEMORY_MASK: Global<u32> = Global::new(0);

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
    forward(&context, |_| 0)
}

/// The floor, and one word of a line of memory that the flow's hash names.
#[xdp]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands the context over by value"
)]
fn floor_read(context: XdpContext) -> u32 {
    forward(&context, |flow| word(line(flow)))
}

/// The same of two lines, of which the first says where the second is.
#[xdp]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands the context over by value"
)]
fn floor_two_reads(context: XdpContext) -> u32 {
    forward(&context, |flow| word(line(!flow ^ word(line(flow)))))
}

/// The same of one line, of which a word is written as well.
#[xdp]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands the context over by value"
)]
fn floor_write(context: XdpContext) -> u32 {
    forward(&context, |flow| {
        let line = line(flow);
        // SAFETY: the second of its eight words.
        unsafe { line.add(1).write_volatile(flow) };
        word(line)
    })
}

/// The first word of a line of [`MEMORY`].
#[inline(always)]
fn word(line: *mut u64) -> u64 {
    // SAFETY: `line` says where one is. Volatile: somebody else may have written it.
    unsafe { line.read_volatile() }
}

/// The line of [`MEMORY`] of a flow.
#[inline(always)]
fn line(flow: u64) -> *mut u64 {
    /// The golden ratio's bits.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let spread = (flow ^ flow >> 32).wrapping_mul(SPREAD);
    // The upper bits, on which all others have an effect; there are no more than 2^24 lines.
    let index = (spread >> 40) as u32 & MEMORY_MASK.load();
    // As a number: the compiler may think that the static is all there is.
    let first = (&raw const MEMORY).expose_provenance();
    ptr::with_exposed_provenance_mut(first + index as usize * size_of::<Line>())
}

/// What the floor does; `memory` is given the client and the ports, and what it takes from there becomes part of the address.
#[inline(always)]
fn forward(context: &XdpContext, memory: impl Fn(u64) -> u64) -> u32 {
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
        let mac = *mac ^ memory(u64::from(source) << 32 | u64::from(ports));
        ((start) as *mut u64).write_unaligned(mac | own << 48);
        ((start + 8) as *mut u32).write_unaligned((own >> 16) as u32);
    }
    xdp_action::XDP_TX
}
