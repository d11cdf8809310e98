//! The kernel side of xdp-lb: entry points only. What happens to a packet is in `lb-common`; how bytes and maps are
//! reached is in [`packet`] and [`maps`].
#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch, core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        internal_features,
        reason = "whether an offset is a constant decides what the verifier must be told"
    )
)]

mod functions;
mod maps;
mod packet;
mod probe;

use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT, xdp_action},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use lb_common::{
    forward::Outcome,
    settled::{self, Way},
    verdict::Action,
};

use crate::{maps::KernelTables, packet::Frame};

/// One packet from the driver: balanced, answered, or left to the host.
#[xdp]
#[inline(always)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands the context over by value"
)]
fn xdp_lb(context: XdpContext) -> u32 {
    let done = match settled::process(&mut Frame(&context), &KernelTables) {
        Way::Done(outcome) => return action(outcome),
        Way::Tracked(service, slot) => match functions::process_recorded(context.ctx, service.0) {
            functions::NOT_DONE => functions::process_tracked(context.ctx, service.0, slot.0),
            done => done,
        },
        Way::Any => functions::NOT_DONE,
    };
    if done == functions::NOT_DONE {
        functions::process_any(context.ctx)
    } else {
        done
    }
}

/// What the kernel does with a packet.
#[inline(always)]
fn action(outcome: Outcome) -> u32 {
    match outcome.verdict.action() {
        Action::Transmit => xdp_action::XDP_TX,
        Action::Redirect => maps::redirect(outcome.port),
        Action::Pass => xdp_action::XDP_PASS,
        Action::Drop => xdp_action::XDP_DROP,
    }
}

/// One packet of the director itself on its way out: a probe gets the MAC of the backend its mark names.
#[classifier]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands the context over by value"
)]
fn probe_egress(context: TcContext) -> i32 {
    match probe::aim(&context) {
        Ok(()) => TC_ACT_OK,
        Err(probe::Unaimed) => TC_ACT_SHOT,
    }
}

/// The licence under which the kernel loads the program.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier accepts no program in which this can be reached.
    loop {}
}
