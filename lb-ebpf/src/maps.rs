//! Map declarations beside their accessors. Layouts and meanings: `lb_common::abi`.
//!
//! The capacities here are defaults; the loader sets them from the configuration.

use core::ptr;

use aya_ebpf::{
    Global,
    bindings::xdp_action,
    helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_coarse_ns},
    macros::map,
    maps::{Array, DevMap, PerCpuArray},
};
use lb_common::{
    abi::{
        AREA, BackendInfo, Bucket, Control, Counter, DEFAULT_BACKENDS, DEFAULT_FLOW_BUCKETS,
        DEFAULT_FLOW6_BUCKETS, DEFAULT_FRAGMENT_BUCKETS, DEFAULT_SERVICES, Fence, HOT_LINES,
        HOT_WAYS, HotInfo, HotLine, MAX_PORTS, MMAPABLE, Port, Presence, SampleRing, ServiceInfo,
        Vip6,
    },
    address::Ipv6,
    features::Features,
    flow::{FlowBucket, FlowBucket6, FlowKey, FlowState, Key as _, Put, TICK_SHIFT},
    fragment::FragmentKey,
    memory::{Word16, Word32, Word64},
    pick::{Backend, Own, Slot},
    service::ServiceValue,
    tables::{Event, Tables},
    verdict::Verdict,
};

use crate::functions;

/// The words of [`Own`]: of the interface this instance is attached to.
#[unsafe(no_mangle)]
static OWN: [u64; Own::COUNT] = [0; Own::COUNT];
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
/// How many buckets `SERVICES` has, a power of two, less one.
#[unsafe(no_mangle)]
static SERVICE_MASK: Global<u32> = Global::new(0);
/// How many slots `SLOTS` has, a power of two, less one.
#[unsafe(no_mangle)]
static SLOT_MASK: Global<u32> = Global::new(0);
/// How many VIPs `VIPS` has, a power of two, less one.
#[unsafe(no_mangle)]
static VIP_MASK: Global<u32> = Global::new(0);
/// What the configuration uses.
#[unsafe(no_mangle)]
static FEATURES: Global<u32> = Global::new(Features::ALL_FORWARDING.0);
/// The MAC address of the NLB cluster.
#[unsafe(no_mangle)]
static CLUSTER_MAC: Global<u64> = Global::new(0);

// The maps of one value: what stands here is the value's first element and gives the place a name (`map::DIRECT`). The
// loader makes the map as large as it has to be, and puts it in the place of the one that aya makes of the section.
#[unsafe(link_section = ".bss.CONTROL")]
#[unsafe(no_mangle)]
static CONTROL: Control = Control::zeroed();
#[unsafe(link_section = ".bss.SERVICES")]
#[unsafe(no_mangle)]
static SERVICES: Bucket = Bucket::zeroed();
#[unsafe(link_section = ".bss.SLOTS")]
#[unsafe(no_mangle)]
static SLOTS: Word32 = Word32::new(0);
#[unsafe(link_section = ".bss.AREAS")]
#[unsafe(no_mangle)]
static AREAS: Word16 = Word16::new(0);
#[unsafe(link_section = ".bss.BACKENDS")]
#[unsafe(no_mangle)]
static BACKENDS: Word64 = Word64::new(0);
#[unsafe(link_section = ".bss.VIPS")]
#[unsafe(no_mangle)]
static VIPS: Vip6 = Vip6::zeroed();

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
static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(DEFAULT_BACKENDS, 0);
#[map]
static VERDICTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Verdict::COUNT as u32, 0);
#[map]
static EVENTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Event::COUNT as u32, 0);
#[map]
static SERVICE_INFO: Array<ServiceInfo> = Array::with_max_entries(DEFAULT_SERVICES, 0);
#[map]
static BACKEND_INFO: Array<BackendInfo> = Array::with_max_entries(DEFAULT_BACKENDS, 0);
#[map]
static HOT: Array<HotLine> = Array::with_max_entries(HOT_LINES, MMAPABLE);
#[map]
static HOT_INFO: Array<HotInfo> = Array::with_max_entries(HOT_LINES * HOT_WAYS as u32, 0);
/// As many as there are processors; the loader knows.
#[map]
static SAMPLES: Array<SampleRing> = Array::with_max_entries(1, MMAPABLE);
#[map]
static FENCES: Array<Fence> = Array::with_max_entries(DEFAULT_BACKENDS, MMAPABLE);
#[map]
static PRESENCES: Array<Presence> = Array::with_max_entries(DEFAULT_SERVICES, MMAPABLE);

/// Sends the packet out of another interface; the host gets it where that interface is gone.
#[inline(always)]
pub(crate) fn redirect(port: u16) -> u32 {
    match REDIRECT.redirect(u32::from(port), u64::from(xdp_action::XDP_PASS)) {
        Ok(action) | Err(action) => action,
    }
}

/// The element at `index` behind `first` in a map of one value.
///
/// # Safety
/// The map has more than `index` elements of this type. (The verifier refuses the program where that is not certain.)
#[inline(always)]
unsafe fn element<T: Sync>(first: &'static T, index: u32) -> &'static T {
    // As a number: the compiler may think that the static is all there is.
    let address = (&raw const *first).expose_provenance() + index as usize * size_of::<T>();
    // SAFETY: the map's value is this long, aligned for what it begins with, and lives as long as the program.
    unsafe { &*ptr::with_exposed_provenance(address) }
}

/// The entry of a backend, for the data path and for probes alike.
#[inline(always)]
pub(crate) fn backend(number: u16) -> Backend {
    // SAFETY: there is an entry for each number (`abi::BACKEND_NUMBERS`).
    Backend(unsafe { element(&BACKENDS, u32::from(number)) }.get())
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
        Some(&CONTROL)
    }

    #[inline(always)]
    fn service_bucket(&self, index: u32) -> Option<&Bucket> {
        // SAFETY: the loader knows how many there are.
        Some(unsafe { element(&SERVICES, index & SERVICE_MASK.load()) })
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<Slot> {
        let mask = SLOT_MASK.load();
        if index > mask {
            return None;
        }
        // SAFETY: compared with what the loader made. The mask is for the verifier: the compiler compares one copy of the
        // index and uses another.
        Some(Slot(unsafe { element(&SLOTS, index & mask) }.get()))
    }

    #[inline(always)]
    fn area(&self, index: u32) -> Option<u16> {
        let mask = SLOT_MASK.load() / AREA;
        if index > mask {
            return None;
        }
        // SAFETY: there is one for each so many of the slots; see there.
        Some(unsafe { element(&AREAS, index & mask) }.get())
    }

    #[inline(always)]
    fn backend(&self, number: u16) -> Backend {
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
        // SAFETY: the loader knows how many there are.
        Some(unsafe { element(&VIPS, u32::from(service) & VIP_MASK.load()) })
    }

    #[inline(always)]
    fn hot_line(&self, index: u32) -> Option<&HotLine> {
        HOT.get(index)
    }

    #[inline(always)]
    fn sample_ring(&self) -> Option<&SampleRing> {
        // SAFETY: a helper without arguments. The ring is this processor's own: XDP runs with preemption disabled, so no
        // other program writes it in between.
        SAMPLES.get(unsafe { bpf_get_smp_processor_id() })
    }

    #[inline(always)]
    fn fence(&self, number: u16) -> Option<&Fence> {
        FENCES.get(u32::from(number))
    }

    #[inline(always)]
    fn presence(&self, place: u16) -> Option<&Presence> {
        PRESENCES.get(u32::from(place))
    }

    #[inline(always)]
    fn now(&self) -> u16 {
        // SAFETY: a helper without arguments; the coarse clock costs a tenth of the exact one.
        let now = unsafe { bpf_ktime_get_coarse_ns() };
        (now >> TICK_SHIFT) as u16
    }

    #[inline(always)]
    fn own_mac(&self) -> u64 {
        self.own(Own::Mac)
    }

    #[inline(always)]
    fn own_port(&self) -> u16 {
        OWN_PORT.load()
    }

    #[inline(always)]
    fn own(&self, what: Own) -> u64 {
        // SAFETY: a place in the static. Volatile, because the loader changes what the compiler sees.
        unsafe { (&raw const OWN[what as usize]).read_volatile() }
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
    fn held(&self, word: u64) -> u64 {
        #[cfg(target_arch = "bpf")]
        {
            let mut word = word;
            // SAFETY: the register keeps its value. Not an empty text, as in `packet`.
            unsafe {
                core::arch::asm!("{0} = {0}", inout(reg) word, options(nomem, nostack, preserves_flags));
            }
            word
        }
        #[cfg(not(target_arch = "bpf"))]
        word
    }

    #[inline(always)]
    fn place4(&self, service: ServiceValue, client: u32, ports: u32) -> u64 {
        functions::place4(service.0, client, ports)
    }

    #[inline(always)]
    fn place6(&self, service: ServiceValue, client: Ipv6, ports: u32) -> u64 {
        functions::place6(service.0, client.high, client.low, ports)
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
