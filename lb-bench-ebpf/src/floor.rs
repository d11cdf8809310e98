//! What can't be done faster: programs that answer at once, one that does the least a balancer must, and the same with as
//! much memory as a balancer's tables take.

use core::ptr;

use aya_ebpf::{
    Global,
    bindings::xdp_action,
    btf_maps::{Array as BtfArray, ArrayOfMaps},
    macros::{btf_map, map, xdp},
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
/// How many lines there are, a power of two, less one; in [`PIECES`] a piece counts as 512.
#[unsafe(no_mangle)]
static MEMORY_MASK: Global<u32> = Global::new(0);

/// Lines of a piece of [`PIECES`]: so many that they fit into 32 KiB with the 312 bytes that Linux 6.18 has before them. An array
/// of up to 32 KiB is in memory that the kernel has mapped in its largest pages, a larger one in pages of 4 KiB
/// (`__bpf_map_area_alloc` in `kernel/bpf/syscall.c`).
const PIECE_LINES: usize = 504;

/// A piece of memory.
#[repr(C)]
struct Piece([[u64; 8]; PIECE_LINES]);

const _: () = assert!(size_of::<Piece>() + 312 <= 32 << 10);

/// Memory as large as a table, in pieces that lie in large pages; `lb-userspace/src/dataplane/bench_object.rs` makes them.
#[btf_map]
static PIECES: ArrayOfMaps<BtfArray<Piece, 1>, 1> = ArrayOfMaps::new();

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
    forward(&context, |_| Some(0))
}

/// The floor, and one word of a line of memory that the flow's hash names.
#[xdp]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands the context over by value"
)]
fn floor_read(context: XdpContext) -> u32 {
    forward(&context, |flow| Some(word(line(flow))))
}

/// The same of two lines, of which the first says where the second is.
#[xdp]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands the context over by value"
)]
fn floor_two_reads(context: XdpContext) -> u32 {
    forward(&context, |flow| Some(word(line(!flow ^ word(line(flow))))))
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
        Some(word(line))
    })
}

/// [`floor_read`] of [`PIECES`].
#[xdp]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands the context over by value"
)]
fn floor_read_large(context: XdpContext) -> u32 {
    forward(&context, |flow| in_piece(flow).map(word))
}

/// [`floor_write`] of [`PIECES`].
#[xdp]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands the context over by value"
)]
fn floor_write_large(context: XdpContext) -> u32 {
    forward(&context, |flow| {
        let line = in_piece(flow)?;
        let read = word(line);
        // The same one: a piece does not begin where a line of the cache does, and another one may lie in the next.
        // SAFETY: `in_piece` says where one is.
        unsafe { line.write_volatile(flow) };
        Some(read)
    })
}

/// The first word of a line of [`MEMORY`] or [`PIECES`].
#[inline(always)]
fn word(line: *mut u64) -> u64 {
    // SAFETY: `line` says where one is. Volatile: somebody else may have written it.
    unsafe { line.read_volatile() }
}

/// A hash of a flow: its upper 32 bits, on which all others have an effect.
#[inline(always)]
fn spread(flow: u64) -> u64 {
    /// The golden ratio's bits.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    (flow ^ flow >> 32).wrapping_mul(SPREAD) >> 32
}

/// The line of [`PIECES`] of a flow.
#[inline(always)]
fn in_piece(flow: u64) -> Option<*mut u64> {
    let spread = spread(flow);
    // The upper 16 bits name the line, the lower 16 the piece. Never the last line: the verifier forgets that an index is a
    // multiple of 64 bytes where it keeps how large it may be, and would see the line's end behind the piece.
    let index = ((spread >> 16) as usize * (PIECE_LINES - 1)) >> 16;
    let piece = spread as u32 & MEMORY_MASK.load() >> 9;
    // A variable: the compiler takes a constant for the same word as a global that is 0 until the program is loaded.
    let key = 0;
    let piece = PIECES.get_value_ptr_mut(piece, &key)?;
    Some(piece.cast::<u64>().wrapping_add(8 * index))
}

/// The line of [`MEMORY`] of a flow.
#[inline(always)]
fn line(flow: u64) -> *mut u64 {
    // There are no more than 2^24 lines.
    let index = (spread(flow) >> 8) as u32 & MEMORY_MASK.load();
    // As a number: the compiler may think that the static is all there is.
    let first = (&raw const MEMORY).expose_provenance();
    ptr::with_exposed_provenance_mut(first + index as usize * size_of::<Line>())
}

/// What the floor does; `memory` is given the client and the ports, and what it takes from there becomes part of the address.
/// A frame for which there is no memory is none that is sent.
#[inline(always)]
fn forward(context: &XdpContext, memory: impl Fn(u64) -> Option<u64>) -> u32 {
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
        let Some(word) = memory(u64::from(source) << 32 | u64::from(ports)) else {
            return xdp_action::XDP_PASS;
        };
        let own = FLOOR_MAC.load();
        let mac = *mac ^ word;
        ((start) as *mut u64).write_unaligned(mac | own << 48);
        ((start + 8) as *mut u32).write_unaligned((own >> 16) as u32);
    }
    xdp_action::XDP_TX
}
