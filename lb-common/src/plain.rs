//! The maps in plain memory: what tests, the fuzzer and simulations run the data path over.
//!
//! The layouts are those of [`crate::abi`], so whatever fills the kernel's maps can fill these.

extern crate alloc;

use alloc::{vec, vec::Vec};
use core::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use crate::abi::{
    AREA, AREAS_IN_LINE, AreaLine, Bucket, Control, Counter, Fence, HOT_LINES, HotLine, MAX_PORTS,
    Port, Presence, SLOTS_IN_LINE, SampleRing, SlotLine, Vip6,
};
use crate::features::Features;
use crate::flow::{FlowBucket, FlowBucket6};
use crate::forward::{self, Outcome};
use crate::memory::Word64;
use crate::packet::Buffer;
use crate::pick::{Backend, Slot};
use crate::tables::{Event, Tables};
use crate::verdict::Verdict;

/// How large the tables are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Buckets of the service lookup, both halves; a power of two.
    pub service_buckets: u32,
    /// Slots of all tables together; a multiple of 16.
    pub slots: u32,
    /// Backend numbers, 0 among them.
    pub backends: u32,
    /// Buckets of the flow table; a power of two.
    pub flow_buckets: u32,
    /// Buckets of the IPv6 clients' flow table; a power of two.
    pub flow6_buckets: u32,
    /// Buckets of the fragment table; a power of two.
    pub fragment_buckets: u32,
    /// Service ids.
    pub services: u32,
}

impl Default for Capacity {
    /// Enough for a handful of services.
    fn default() -> Self {
        Self {
            service_buckets: 64,
            slots: 1 << 12,
            backends: 64,
            flow_buckets: 64,
            flow6_buckets: 64,
            fragment_buckets: 16,
            services: 64,
        }
    }
}

/// What is fixed in one loaded program: the same as the kernel program's read-only globals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The interface's MAC address, as [`crate::wire::mac_word`].
    pub mac: u64,
    /// Its port number.
    pub port: u16,
    /// Whether packets for unserved ports of a VIP go to the host.
    pub unserved_pass: bool,
    /// What the configuration uses.
    pub features: Features,
    /// The MAC address of the NLB cluster, as [`crate::wire::mac_word`]; 0 for none.
    pub cluster_mac: u64,
}

impl Default for Instance {
    /// A director that forwards, with every feature in use.
    fn default() -> Self {
        Self {
            mac: 0,
            port: 0,
            unserved_pass: false,
            features: Features::ALL_FORWARDING,
            cluster_mac: 0,
        }
    }
}

/// All tables, counters included. Counters only ever grow, as the kernel's do.
#[derive(Debug)]
pub struct PlainTables {
    /// What the whole data path shares.
    pub control: Control,
    /// The service lookup, both halves.
    pub services: Vec<Bucket>,
    /// The lookup tables.
    pub slots: Vec<SlotLine>,
    /// `AREAS`.
    pub areas: Vec<AreaLine>,
    /// By number, each a [`Backend`].
    pub backends: Vec<Word64>,
    /// The director's interfaces.
    pub ports: Vec<Port>,
    /// The flow table.
    pub flows: Vec<FlowBucket>,
    /// The IPv6 clients' flow table.
    pub flows6: Vec<FlowBucket6>,
    /// The fragment table.
    pub fragments: Vec<FlowBucket>,
    /// The IPv6 VIPs, by service id.
    pub vips: Vec<Vip6>,
    /// The hot sources.
    pub hot: Vec<HotLine>,
    /// Sampled sources: one ring, as if of one processor.
    pub samples: Vec<SampleRing>,
    /// What fences a backend of a cluster, by number.
    pub fences: Vec<Fence>,
    /// What is told a peer in a cluster that asks, by the service's place among this node's.
    pub presences: Vec<Presence>,
    instance: Instance,
    now: AtomicU16,
    counters: Vec<[AtomicU64; 2]>,
    verdicts: [AtomicU64; Verdict::COUNT],
    events: [AtomicU64; Event::COUNT],
}

impl PlainTables {
    /// Empty tables at time 0.
    #[must_use]
    pub fn new(capacity: Capacity, instance: Instance) -> Self {
        let times = |count: u32| count as usize;
        Self {
            control: Control::default(),
            services: vec![Bucket::default(); times(capacity.service_buckets)],
            slots: vec![SlotLine::default(); times(capacity.slots.div_ceil(SLOTS_IN_LINE))],
            areas: vec![
                AreaLine::default();
                times(capacity.slots.div_ceil(AREA).div_ceil(AREAS_IN_LINE))
            ],
            backends: vec![Word64::default(); times(capacity.backends)],
            ports: vec![Port::default(); times(MAX_PORTS)],
            flows: vec![FlowBucket::default(); times(capacity.flow_buckets)],
            flows6: vec![FlowBucket6::default(); times(capacity.flow6_buckets)],
            fragments: vec![FlowBucket::default(); times(capacity.fragment_buckets)],
            vips: vec![Vip6::default(); times(capacity.services)],
            hot: vec![HotLine::default(); times(HOT_LINES)],
            samples: vec![SampleRing::default()],
            fences: vec![Fence::default(); times(capacity.backends)],
            presences: vec![Presence::default(); times(capacity.services)],
            instance,
            now: AtomicU16::new(0),
            counters: (0..capacity.backends).map(|_| Default::default()).collect(),
            verdicts: Default::default(),
            events: Default::default(),
        }
    }

    /// [`forward::process`] over these tables, compiled once with this crate: it is optimised even where its callers are not.
    #[inline(never)]
    pub fn process(&self, packet: &mut Buffer<'_>) -> Outcome {
        forward::process(packet, self)
    }

    /// [`forward::process_any`] likewise: without the hot path of its own, whose answers must be the same.
    #[inline(never)]
    pub fn process_any(&self, packet: &mut Buffer<'_>) -> Outcome {
        forward::process_any(packet, self)
    }

    /// Sets the time, in units of [`crate::flow::TICK_NS`].
    pub fn set_now(&self, now: u16) {
        self.now.store(now, Ordering::Relaxed);
    }

    /// Writes a slot.
    ///
    /// # Panics
    /// Where there is no slot of this index.
    pub fn set_slot(&self, index: u32, slot: Slot) {
        self.slots[(index / SLOTS_IN_LINE) as usize].slots[(index % SLOTS_IN_LINE) as usize]
            .set(slot.0);
    }

    /// Writes which backend has all slots of an area.
    ///
    /// # Panics
    /// Where there is no area of this index.
    pub fn set_area(&self, index: u32, backend: u16) {
        self.areas[(index / AREAS_IN_LINE) as usize].backends[(index % AREAS_IN_LINE) as usize]
            .set(backend);
    }

    /// Writes a backend's entry.
    ///
    /// # Panics
    /// Where there is no backend of this number.
    pub fn set_backend(&self, number: u16, backend: Backend) {
        self.backends[usize::from(number)].set(backend.0);
    }

    /// What was counted for a backend; nothing where there is none of this number.
    #[must_use]
    pub fn counter(&self, number: u16) -> Counter {
        self.counters
            .get(usize::from(number))
            .map_or_else(Counter::default, |[packets, bytes]| Counter {
                packets: packets.load(Ordering::Relaxed),
                bytes: bytes.load(Ordering::Relaxed),
            })
    }

    /// Packets of each verdict, indexed by [`Verdict`].
    #[must_use]
    pub fn verdicts(&self) -> [u64; Verdict::COUNT] {
        self.verdicts
            .each_ref()
            .map(|count| count.load(Ordering::Relaxed))
    }

    /// What the flow table had to do, indexed by [`Event`].
    #[must_use]
    pub fn events(&self) -> [u64; Event::COUNT] {
        self.events
            .each_ref()
            .map(|count| count.load(Ordering::Relaxed))
    }
}

impl Tables for PlainTables {
    fn control(&self) -> Option<&Control> {
        Some(&self.control)
    }

    fn service_bucket(&self, index: u32) -> Option<&Bucket> {
        self.services.get(index as usize)
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        let line = self.slots.get((index / SLOTS_IN_LINE) as usize)?;
        Some(Slot(line.slots[(index % SLOTS_IN_LINE) as usize].get()))
    }

    fn area(&self, index: u32) -> Option<u16> {
        let line = self.areas.get((index / AREAS_IN_LINE) as usize)?;
        Some(line.backends[(index % AREAS_IN_LINE) as usize].get())
    }

    fn backend(&self, number: u16) -> Backend {
        let word = self.backends.get(usize::from(number));
        Backend(word.map_or(0, Word64::get))
    }

    fn port(&self, port: u16) -> Option<Port> {
        self.ports.get(usize::from(port)).copied()
    }

    fn flow_bucket(&self, index: u32) -> Option<&FlowBucket> {
        self.flows.get(index as usize)
    }

    fn flow_bits(&self) -> u32 {
        self.flows.len().max(1).ilog2()
    }

    fn flow6_bucket(&self, index: u32) -> Option<&FlowBucket6> {
        self.flows6.get(index as usize)
    }

    fn flow6_bits(&self) -> u32 {
        self.flows6.len().max(1).ilog2()
    }

    fn fragment_bucket(&self, index: u32) -> Option<&FlowBucket> {
        self.fragments.get(index as usize)
    }

    fn fragment_bits(&self) -> u32 {
        self.fragments.len().max(1).ilog2()
    }

    fn vip(&self, service: u16) -> Option<&Vip6> {
        self.vips.get(usize::from(service))
    }

    fn hot_line(&self, index: u32) -> Option<&HotLine> {
        self.hot.get(index as usize)
    }

    fn sample_ring(&self) -> Option<&SampleRing> {
        self.samples.first()
    }

    fn fence(&self, number: u16) -> Option<&Fence> {
        self.fences.get(usize::from(number))
    }
    fn presence(&self, place: u16) -> Option<&Presence> {
        self.presences.get(usize::from(place))
    }

    fn now(&self) -> u16 {
        self.now.load(Ordering::Relaxed)
    }

    fn own_mac(&self) -> u64 {
        self.instance.mac
    }

    fn own_port(&self) -> u16 {
        self.instance.port
    }

    fn unserved_pass(&self) -> bool {
        self.instance.unserved_pass
    }

    fn features(&self) -> Features {
        self.instance.features
    }

    fn cluster_mac(&self) -> u64 {
        self.instance.cluster_mac
    }

    fn count_backend(&self, backend: u16, bytes: u64) {
        if let Some([packets, total]) = self.counters.get(usize::from(backend)) {
            packets.fetch_add(1, Ordering::Relaxed);
            total.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn count_verdict(&self, verdict: Verdict) {
        self.verdicts[verdict as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn count_event(&self, event: Event) {
        self.events[event as usize].fetch_add(1, Ordering::Relaxed);
    }
}
