//! Packets, written whole before each run: the same one, or one of so many by a generator that costs next to nothing.
//!
//! A program that is run over one packet again and again sees its own output, and finds everything in the first-level cache.
//! Each of these programs therefore writes the whole frame anew and ends in a tail call; what the same takes with a target
//! that only returns is subtracted.
//!
//! The frame is written one run ahead, into the other of two places. A program that loads bytes whose stores are still under
//! way, from parts of two of them, has to wait until they are done, which alone takes several times what the program does;
//! a frame that a network card wrote has none.

use aya_ebpf::{
    Global,
    bindings::xdp_action,
    helpers::generated::{bpf_ktime_get_ns, bpf_xdp_adjust_head},
    macros::{map, xdp},
    maps::{PerCpuArray, ProgramArray},
    programs::XdpContext,
};

/// Words of the longest frame.
const WORDS: usize = 10;
/// Words of an IPv4 frame: the shortest that Ethernet has.
const WORDS4: usize = 8;
/// Words of an IPv6 frame.
const WORDS6: usize = 10;
/// Bytes from one place of a frame to the other: two cache lines, so that neither touches the other's.
const STRIDE: usize = 128;

/// The frame, in the order of memory.
#[unsafe(no_mangle)]
static FRAME: [Global<u64>; WORDS] = [const { Global::new(0) }; WORDS];
/// Which of 31 random bits make the flow: the lower 16 go into the source address, the others into the source port.
#[unsafe(no_mangle)]
static FLOW_MASK: Global<u64> = Global::new(0);
/// Which of 16 random bits are added to the last 16 of the (IPv4) destination.
#[unsafe(no_mangle)]
static VIP_MASK: Global<u64> = Global::new(0);
/// Which of 4 random bits are added to the destination port.
#[unsafe(no_mangle)]
static PORT_MASK: Global<u64> = Global::new(0);

/// The program under test.
#[map]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// Where a burst has come to.
#[map]
static STATE: PerCpuArray<State> = PerCpuArray::with_max_entries(1, 0);

/// Packets of a lap: so many that reading the clock costs nothing, so few that most laps are not interrupted. A power of two.
const LAP: u64 = 1 << 11;
/// Most laps of a burst, plus one.
const LAPS: u32 = 256;

/// By the number of laps that were still to come: the time then, in nanoseconds of the monotonic clock.
#[map]
static TIMES: PerCpuArray<u64> = PerCpuArray::with_max_entries(LAPS, 0);

/// Where a burst has come to, on one processor: as `lb-userspace/src/dataplane/rig.rs` has it.
#[derive(Clone, Copy)]
#[repr(C)]
struct State {
    /// What the generator goes on from.
    random: u64,
    /// Packets of the burst that are still to come.
    left: u64,
}

/// Knuth's multiplier of 64 bits (MMIX): the upper bits are good.
const MULTIPLIER: u64 = 6_364_136_223_846_793_005;
const INCREMENT: u64 = 1_442_695_040_888_963_407;

/// 64 bits, of which the upper 51 are used.
#[inline(always)]
fn random(state: &mut State) -> u64 {
    state.random = state
        .random
        .wrapping_mul(MULTIPLIER)
        .wrapping_add(INCREMENT);
    state.random
}

/// This processor's state, after one more packet is counted.
///
/// The kernel tells how long a run took in whole nanoseconds, and outside it the system call waits for the other processors
/// (`bpf_dispatcher_change_prog`): so the clock is read here, once in a lap.
#[inline(always)]
fn next() -> Option<&'static mut State> {
    // SAFETY: this processor's own entry of the map; XDP runs with preemption disabled.
    let state = unsafe { &mut *STATE.get_ptr_mut(0)? };
    let left = state.left;
    state.left = left.wrapping_sub(1);
    if left % LAP == 0
        && let Some(time) = TIMES.get_ptr_mut((left / LAP) as u32)
    {
        // SAFETY: this processor's own entry; a helper without arguments.
        unsafe { *time = bpf_ktime_get_ns() };
    }
    Some(state)
}

/// Writes the next frame into the place that is not in use, and moves the packet's head to the other one, where the frame
/// before it is. Without room for both, nothing.
#[inline(always)]
fn turn<const N: usize>(context: &XdpContext, change: impl Fn(usize) -> u64) -> Option<()> {
    let (start, end) = (context.data(), context.data_end());
    if end - start > STRIDE {
        write(place::<N>(start, end)?, change);
        move_head(context, STRIDE as i32)
    } else {
        move_head(context, -(STRIDE as i32))?;
        let (start, end) = (context.data(), context.data_end());
        write(place::<N>(start + STRIDE, end)?, change);
        Some(())
    }
}

/// The words at this place, if the packet has that many.
#[inline(always)]
fn place<const N: usize>(start: usize, end: usize) -> Option<*mut [u64; N]> {
    (start + size_of::<[u64; N]>() <= end).then_some(start as *mut [u64; N])
}

#[inline(always)]
fn move_head(context: &XdpContext, by: i32) -> Option<()> {
    // SAFETY: the context is the kernel's own; all addresses are read anew afterwards.
    (unsafe { bpf_xdp_adjust_head(context.ctx, by) } == 0).then_some(())
}

#[inline(always)]
fn write<const N: usize>(frame: *mut [u64; N], change: impl Fn(usize) -> u64) {
    let mut place = 0;
    while place < N {
        // SAFETY: the packet has N words here, which the verifier checks once more.
        unsafe { (*frame)[place] = FRAME[place].load() ^ change(place) };
        place += 1;
    }
}

/// Ends in the program under test.
#[inline(always)]
fn call(context: &XdpContext, prepared: Option<()>) -> u32 {
    if prepared.is_some() {
        // SAFETY: the context is the kernel's own.
        unsafe { TARGET.tail_call(context, 0) };
    }
    // There is no room or no target: no answer that a program under test gives.
    xdp_action::XDP_ABORTED
}

/// What is added to the third and the fourth word of an IPv4 frame (counted from 0).
#[inline(always)]
fn words4(state: &mut State) -> (u64, u64) {
    if FLOW_MASK.load() | VIP_MASK.load() | PORT_MASK.load() == 0 {
        return (0, 0);
    }
    let random = random(state);
    let flow = random >> 33 & FLOW_MASK.load();
    let vip = (random >> 17 & VIP_MASK.load()) as u16;
    let port = random >> 13 & PORT_MASK.load();
    (
        (flow & 0xffff) << 32,
        flow >> 16 << 16 | u64::from(vip.to_be()) | port << 40,
    )
}

/// An IPv4 frame of 64 bytes: addresses at 26 and 30, ports at 34 and 36.
#[xdp]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands the context over by value"
)]
fn prepare4(context: XdpContext) -> u32 {
    let Some(state) = next() else {
        return xdp_action::XDP_ABORTED;
    };
    let (third, fourth) = words4(state);
    let prepared = turn::<WORDS4>(&context, |place| match place {
        3 => third,
        4 => fourth,
        _ => 0,
    });
    call(&context, prepared)
}

/// An IPv6 frame of 80 bytes: addresses at 22 and 38, ports at 54 and 56.
#[xdp]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands the context over by value"
)]
fn prepare6(context: XdpContext) -> u32 {
    let Some(state) = next() else {
        return xdp_action::XDP_ABORTED;
    };
    let (mut fourth, mut sixth) = (0, 0);
    if FLOW_MASK.load() != 0 {
        let flow = random(state) >> 33 & FLOW_MASK.load();
        fourth = (flow & 0xffff) << 16;
        sixth = flow >> 16 << 48;
    }
    let prepared = turn::<WORDS6>(&context, |place| match place {
        4 => fourth,
        6 => sixth,
        _ => 0,
    });
    call(&context, prepared)
}

/// An IPv4 frame that is sent: out of the interface that it is said to have come in on. Each frame has memory of its own, so
/// that there is one place. Whoever takes it up the network stack looks at the header's checksum: the identification, the
/// opposite of the source's lower half, changes by the same bits, so that the sum stays.
#[xdp]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands the context over by value"
)]
fn generate4(context: XdpContext) -> u32 {
    let Some(state) = next() else {
        return xdp_action::XDP_ABORTED;
    };
    let (third, fourth) = words4(state);
    let Some(frame) = place::<WORDS4>(context.data(), context.data_end()) else {
        return xdp_action::XDP_ABORTED;
    };
    write(frame, |place| match place {
        2 => third >> 16,
        3 => third,
        4 => fourth,
        _ => 0,
    });
    xdp_action::XDP_TX
}
