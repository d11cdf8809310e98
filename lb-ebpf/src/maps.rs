//! Map declarations beside their accessors. Layouts and meanings: `lb_common::abi`.
//!
//! The capacities here are defaults; the loader sets them from the configuration.

use aya_ebpf::{
    Global,
    bindings::xdp_action,
    helpers::generated::bpf_ktime_get_coarse_ns,
    macros::map,
    maps::{Array, DevMap, PerCpuArray},
};
use lb_common::{
    abi::{
        BackendInfo, Bucket, Control, Counter, DEFAULT_BACKENDS, DEFAULT_FLOW_BUCKETS,
        DEFAULT_FLOW6_BUCKETS, DEFAULT_FRAGMENT_BUCKETS, DEFAULT_SERVICE_BUCKETS, DEFAULT_SERVICES,
        DEFAULT_SLOTS, MAX_PORTS, MMAPABLE, Port, SLOTS_IN_LINE, ServiceInfo, SlotLine, Vip6,
    },
    address::Ipv6,
    features::Features,
    flow::{FlowBucket, FlowBucket6, FlowKey, FlowState, Key as _, Put, TICK_SHIFT},
    fragment::FragmentKey,
    memory::Word64,
    pick::{Backend, Slot},
    tables::{Event, Tables},
    verdict::Verdict,
};

use crate::functions;

/// The MAC address of the interface this instance is attached to.
#[unsafe(no_mangle)]
static OWN_MAC: Global<u64> = Global::new(0);
/// The port number of that interface.
#[unsafe(no_mangle)]
static OWN_PORT: Global<u16> = Global::new(0);
/// Whether packets for unserved ports of a VIP go to the host.
#[unsafe(no_mangle)]
static UNSERVED_PASS: Global<u8> = Global::new(0);
/// log2 of the number of flow buckets.
#[unsafe(no_mangle)]
static FLOW_BITS: Global<u8> = Global::new(DEFAULT_FLOW_BUCKETS.ilog2() as u8);
/// log2 of the number of the IPv6 clients' flow buckets.
#[unsafe(no_mangle)]
static FLOW6_BITS: Global<u8> = Global::new(DEFAULT_FLOW6_BUCKETS.ilog2() as u8);
/// log2 of the number of fragment buckets.
#[unsafe(no_mangle)]
static FRAGMENT_BITS: Global<u8> = Global::new(DEFAULT_FRAGMENT_BUCKETS.ilog2() as u8);
/// What the configuration uses.
#[unsafe(no_mangle)]
static FEATURES: Global<u32> = Global::new(Features::ALL_FORWARDING.0);
/// The MAC address of the NLB cluster.
#[unsafe(no_mangle)]
static CLUSTER_MAC: Global<u64> = Global::new(0);

#[map]
static CONTROL: Array<Control> = Array::with_max_entries(1, MMAPABLE);
#[map]
static SERVICES: Array<Bucket> = Array::with_max_entries(DEFAULT_SERVICE_BUCKETS, MMAPABLE);
#[map]
static SLOTS: Array<SlotLine> = Array::with_max_entries(DEFAULT_SLOTS / SLOTS_IN_LINE, MMAPABLE);
#[map]
static BACKENDS: Array<Word64> = Array::with_max_entries(DEFAULT_BACKENDS, MMAPABLE);
#[map]
static PORTS: Array<Port> = Array::with_max_entries(MAX_PORTS, 0);
#[map]
static REDIRECT: DevMap = DevMap::with_max_entries(MAX_PORTS, 0);
#[map]
static FLOWS: Array<FlowBucket> = Array::with_max_entries(DEFAULT_FLOW_BUCKETS, MMAPABLE);
#[map]
static FLOWS6: Array<FlowBucket6> = Array::with_max_entries(DEFAULT_FLOW6_BUCKETS, MMAPABLE);
#[map]
static FRAGMENTS: Array<FlowBucket> = Array::with_max_entries(DEFAULT_FRAGMENT_BUCKETS, MMAPABLE);
#[map]
static VIPS: Array<Vip6> = Array::with_max_entries(DEFAULT_SERVICES, MMAPABLE);
#[map]
static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(DEFAULT_BACKENDS, 0);
#[map]
static VERDICTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Verdict::COUNT as u32, 0);
#[map]
static EVENTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Event::COUNT as u32, 0);
#[map]
static SERVICE_INFO: Array<ServiceInfo> = Array::with_max_entries(DEFAULT_SERVICES, 0);
#[map]
static BACKEND_INFO: Array<BackendInfo> = Array::with_max_entries(DEFAULT_BACKENDS, 0);

/// Sends the packet out of another interface; the host gets it where that interface is gone.
#[inline(always)]
pub(crate) fn redirect(port: u16) -> u32 {
    match REDIRECT.redirect(u32::from(port), u64::from(xdp_action::XDP_PASS)) {
        Ok(action) | Err(action) => action,
    }
}

/// The entry of a backend, for the data path and for probes alike.
#[inline(always)]
pub(crate) fn backend(number: u16) -> Option<Backend> {
    BACKENDS
        .get(u32::from(number))
        .map(|word| Backend(word.get()))
}

/// Adds to a counter of this CPU.
#[inline(always)]
fn add(map: &PerCpuArray<u64>, index: u32) {
    if let Some(counter) = map.get_ptr_mut(index) {
        // SAFETY: the pointer is this CPU's own slot of the map; XDP runs with preemption disabled, so nobody else
        // writes it.
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
}

/// The BPF maps, as the data path sees them.
pub(crate) struct KernelTables;

impl Tables for KernelTables {
    #[inline(always)]
    fn control(&self) -> Option<&Control> {
        CONTROL.get(0)
    }

    #[inline(always)]
    fn service_bucket(&self, index: u32) -> Option<&Bucket> {
        SERVICES.get(index)
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<Slot> {
        let line = SLOTS.get(index / SLOTS_IN_LINE)?;
        Some(Slot(line.slots[(index % SLOTS_IN_LINE) as usize].get()))
    }

    #[inline(always)]
    fn backend(&self, number: u16) -> Option<Backend> {
        backend(number)
    }

    #[inline(always)]
    fn port(&self, port: u16) -> Option<Port> {
        PORTS.get(u32::from(port)).copied()
    }

    #[inline(always)]
    fn flow_bucket(&self, index: u32) -> Option<&FlowBucket> {
        FLOWS.get(index)
    }

    #[inline(always)]
    fn flow_bits(&self) -> u32 {
        u32::from(FLOW_BITS.load())
    }

    #[inline(always)]
    fn flow6_bucket(&self, index: u32) -> Option<&FlowBucket6> {
        FLOWS6.get(index)
    }

    #[inline(always)]
    fn flow6_bits(&self) -> u32 {
        u32::from(FLOW6_BITS.load())
    }

    #[inline(always)]
    fn fragment_bucket(&self, index: u32) -> Option<&FlowBucket> {
        FRAGMENTS.get(index)
    }

    #[inline(always)]
    fn fragment_bits(&self) -> u32 {
        u32::from(FRAGMENT_BITS.load())
    }

    #[inline(always)]
    fn vip(&self, service: u16) -> Option<&Vip6> {
        VIPS.get(u32::from(service))
    }

    #[inline(always)]
    fn now(&self) -> u16 {
        // SAFETY: a helper without arguments; the coarse clock costs a tenth of the exact one.
        let now = unsafe { bpf_ktime_get_coarse_ns() };
        (now >> TICK_SHIFT) as u16
    }

    #[inline(always)]
    fn own_mac(&self) -> u64 {
        OWN_MAC.load()
    }

    #[inline(always)]
    fn own_port(&self) -> u16 {
        OWN_PORT.load()
    }

    #[inline(always)]
    fn unserved_pass(&self) -> bool {
        UNSERVED_PASS.load() != 0
    }

    #[inline(always)]
    fn features(&self) -> Features {
        Features(FEATURES.load())
    }

    #[inline(always)]
    fn cluster_mac(&self) -> u64 {
        CLUSTER_MAC.load()
    }

    #[inline(always)]
    fn find_flow4(&self, key: FlowKey<u32>, hash: u64) -> FlowState {
        let endpoints = u64::from(key.client) << 32 | u64::from(key.ports);
        FlowState(functions::find_flow4(endpoints, hash, key.owner().number()))
    }

    #[inline(always)]
    fn put_flow4(&self, key: FlowKey<u32>, hash: u64, state: FlowState) -> Put {
        let endpoints = u64::from(key.client) << 32 | u64::from(key.ports);
        Put::from_number(functions::put_flow4(endpoints, hash, state.0))
    }

    #[inline(always)]
    fn find_flow6(&self, key: FlowKey<Ipv6>, hash: u64) -> FlowState {
        let Ipv6 { high, low } = key.client;
        let owner = key.owner().number();
        FlowState(functions::find_flow6(high, low, key.ports, hash, owner))
    }

    #[inline(always)]
    fn put_flow6(&self, key: FlowKey<Ipv6>, hash: u64, state: FlowState) -> Put {
        let Ipv6 { high, low } = key.client;
        Put::from_number(functions::put_flow6(high, low, key.ports, hash, state.0))
    }

    #[inline(always)]
    fn find_fragment(&self, key: FragmentKey, hash: u64) -> FlowState {
        FlowState(functions::find_fragment(key.digest, hash))
    }

    #[inline(always)]
    fn put_fragment(&self, key: FragmentKey, hash: u64, state: FlowState) -> Put {
        Put::from_number(functions::put_fragment(key.digest, hash, state.0))
    }

    #[inline(always)]
    fn count_backend(&self, backend: u16, bytes: u64) {
        if let Some(counter) = COUNTERS.get_ptr_mut(u32::from(backend)) {
            // SAFETY: this CPU's own slot, as in `add`.
            unsafe {
                (*counter).packets = (*counter).packets.wrapping_add(1);
                (*counter).bytes = (*counter).bytes.wrapping_add(bytes);
            }
        }
    }

    #[inline(always)]
    fn count_verdict(&self, verdict: Verdict) {
        add(&VERDICTS, verdict as u32);
    }

    #[inline(always)]
    fn count_event(&self, event: Event) {
        add(&EVENTS, event as u32);
    }
}
