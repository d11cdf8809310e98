//! Global functions: the verifier proves each once by itself (`do_check_subprogs` in `kernel/bpf/verifier.c`), instead of
//! once for every way through the program that leads to it. Numbers in, a number out; what they do is in
//! `lb_common::flow` and `lb_common::forward`.
//!
//! None is on the hot path of a settled slot.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{
    address::Ipv6,
    flow::{FlowKey, FlowState, Owner, find_in_table, put_into_table},
    forward::{self, place_of_any},
    fragment::FragmentKey,
    pick::Slot,
    service::ServiceValue,
    settled,
};

use crate::{action, maps::KernelTables, packet::Frame};

#[inline(always)]
fn key4(endpoints: u64, owner: Owner) -> FlowKey<u32> {
    FlowKey {
        client: (endpoints >> 32) as u32,
        ports: endpoints as u32,
        service: owner.service,
        udp: owner.udp,
    }
}

#[inline(always)]
fn key6(high: u64, low: u64, ports: u32, owner: Owner) -> FlowKey<Ipv6> {
    FlowKey {
        client: Ipv6 { high, low },
        ports,
        service: owner.service,
        udp: owner.udp,
    }
}

/// What [`process_recorded`] and [`process_tracked`] answer where they know no action.
pub(crate) const NOT_DONE: u32 = u32::MAX;

/// A packet that has come to a slot in transition, or to a service that records every flow, if its flow is recorded where it
/// is looked for first: the action for it.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn process_recorded(context: *mut xdp_md, service: u64) -> u32 {
    let context = XdpContext::new(context);
    match settled::process_recorded(&mut Frame(&context), &KernelTables, ServiceValue(service)) {
        Some(outcome) => action(outcome),
        None => NOT_DONE,
    }
}

/// Any other such packet: the action for it.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn process_tracked(context: *mut xdp_md, service: u64, slot: u32) -> u32 {
    let context = XdpContext::new(context);
    let (service, slot) = (ServiceValue(service), Slot(slot));
    match settled::process_tracked(&mut Frame(&context), &KernelTables, service, slot) {
        Some(outcome) => action(outcome),
        None => NOT_DONE,
    }
}

/// A packet of any kind: the action for it.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn process_any(context: *mut xdp_md) -> u32 {
    let context = XdpContext::new(context);
    action(forward::process_any(&mut Frame(&context), &KernelTables))
}

/// The state of an IPv4 client's flow, 0 where it is not recorded.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn find_flow4(endpoints: u64, hash: u64, owner: u32) -> u64 {
    find_in_table(
        &KernelTables,
        key4(endpoints, Owner::from_number(owner)),
        hash,
    )
    .0
}

/// Records an IPv4 client's flow: a number of `lb_common::flow::Put`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn put_flow4(endpoints: u64, hash: u64, state: u64) -> u32 {
    let state = FlowState(state);
    put_into_table(&KernelTables, key4(endpoints, state.owner()), hash, state) as u32
}

/// The state of an IPv6 client's flow, 0 where it is not recorded.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn find_flow6(high: u64, low: u64, ports: u32, hash: u64, owner: u32) -> u64 {
    let key = key6(high, low, ports, Owner::from_number(owner));
    find_in_table(&KernelTables, key, hash).0
}

/// Records an IPv6 client's flow.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn put_flow6(high: u64, low: u64, ports: u32, hash: u64, state: u64) -> u32 {
    let state = FlowState(state);
    let key = key6(high, low, ports, state.owner());
    put_into_table(&KernelTables, key, hash, state) as u32
}

/// The state of a packet's fragments, 0 where there is none.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn find_fragment(digest: u64, hash: u64) -> u64 {
    find_in_table(&KernelTables, FragmentKey { digest }, hash).0
}

/// Records where a packet's fragments go.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn put_fragment(digest: u64, hash: u64, state: u64) -> u32 {
    put_into_table(
        &KernelTables,
        FragmentKey { digest },
        hash,
        FlowState(state),
    ) as u32
}

/// The place of an IPv4 client's flow whose source may be hot: `lb_common::forward::Place::number`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn place4(service: u64, client: u32, ports: u32) -> u64 {
    place_of_any(&KernelTables, ServiceValue(service), client, ports)
}

/// The place of an IPv6 client's flow whose source may be hot.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn place6(service: u64, high: u64, low: u64, ports: u32) -> u64 {
    let client = Ipv6 { high, low };
    place_of_any(&KernelTables, ServiceValue(service), client, ports)
}
