//! What the controller's tests start from: services and backends, and the maps in plain memory.

use std::{
    cell::{Cell, RefCell},
    net::Ipv4Addr,
    time::Duration,
};

use lb_common::{
    abi::{BackendInfo, BackendState, Bucket, Control, Counter, NAME_LEN, ServiceInfo},
    features::Features,
    flow::{FlowBucket, FlowKey, FlowState, Key, Phase, bucket_indices},
    hash::Seed,
    pick::{Affinity, Backend, Slot},
    plain::{Capacity, Instance, PlainTables},
    service::Directory,
    tables::{Event, Tables},
    verdict::Verdict,
};

use super::{
    actual::{Actual, Millis, Op},
    desired::{DesiredBackend, DesiredService},
    directory::Entries,
    execute::Executor,
    memory::Memory,
    reconcile::{Scope, TooSmall, reconcile},
    retarget::Track,
    sweep::{Sweep, sweep},
};
use crate::dataplane::DataplaneError;

pub(super) const SEED: Seed = Seed([0x0123_4567_89ab_cdef, 0x1357_9bdf_0246_8ace]);
/// 02:bf:192.0.2.10, as words have it.
pub(super) const CLUSTER_MAC: u64 = 0x0a02_00c0_bf02;
pub(super) const OWN_MAC: u64 = 0x0605_0403_0202;
pub(super) const IDLE: Duration = Duration::from_secs(10);

/// The maps in plain memory.
#[derive(Debug)]
pub(super) struct PlainMemory {
    pub(super) tables: PlainTables,
    service_info: Vec<ServiceInfo>,
    backend_info: Vec<BackendInfo>,
    /// Writes that are still done before the controller dies; `None` where it lives for ever.
    pub(super) writes_left: Cell<Option<u32>>,
    /// How often it was waited for the packets on their way.
    pub(super) waits: RefCell<u32>,
}

impl PlainMemory {
    pub(super) fn new(slots: u32, services: u16, backends: u32) -> Self {
        Self::with(slots, services, backends, Features::ALL_FORWARDING)
    }

    /// The same of an instance with other features.
    pub(super) fn with(slots: u32, services: u16, backends: u32, features: Features) -> Self {
        let tables = PlainTables::new(
            Capacity {
                service_buckets: 64,
                slots,
                backends,
                flow_buckets: 1 << 10,
                services: u32::from(services),
                ..Capacity::default()
            },
            Instance {
                mac: OWN_MAC,
                port: 0,
                features,
                cluster_mac: CLUSTER_MAC,
                ..Instance::default()
            },
        );
        tables.control.seed0.set(SEED.0[0]);
        tables.control.seed1.set(SEED.0[1]);
        Self {
            tables,
            service_info: vec![ServiceInfo::default(); usize::from(services)],
            backend_info: vec![BackendInfo::default(); backends as usize],
            writes_left: Cell::new(None),
            waits: RefCell::new(0),
        }
    }

    /// Whether the next write is still done.
    fn lives(&self) -> bool {
        match self.writes_left.get() {
            None => true,
            Some(0) => false,
            Some(left) => {
                self.writes_left.set(Some(left - 1));
                true
            }
        }
    }

    /// Records a flow as the data path would.
    pub(super) fn put_record(&self, key: FlowKey, backend: u16, seen: u16, phase: Phase) {
        let hash = key.hash(SEED);
        let (first, second) = bucket_indices(hash, self.tables.flow_bits());
        let way = [first, second]
            .iter()
            .flat_map(|bucket| &self.tables.flows[*bucket as usize].ways)
            .find(|way| way.state.get() == 0 || key.is_in(way))
            .expect("room for a record");
        key.write(way);
        way.state
            .set(FlowState::new(backend, key.owner(), seen, hash, phase).0);
    }
}

impl Memory for PlainMemory {
    fn control(&self) -> &Control {
        &self.tables.control
    }

    fn service_buckets(&self) -> &[Bucket] {
        &self.tables.services
    }

    fn set_directory(&self, directory: Directory) {
        if self.lives() {
            self.tables.control.directory.set(directory.0);
        }
    }

    fn flow_buckets(&self) -> &[FlowBucket] {
        &self.tables.flows
    }

    fn slot_capacity(&self) -> u32 {
        u32::try_from(self.tables.slots.len()).unwrap() * lb_common::abi::SLOTS_IN_LINE
    }

    fn backend_capacity(&self) -> u32 {
        u32::try_from(self.tables.backends.len()).unwrap()
    }

    fn service_capacity(&self) -> u32 {
        u32::try_from(self.service_info.len()).unwrap()
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        self.tables.slot(index)
    }

    fn set_slot(&self, index: u32, slot: Slot) {
        if self.lives() {
            self.tables.set_slot(index, slot);
        }
    }

    fn backend(&self, number: u16) -> Option<Backend> {
        self.tables.backend(number)
    }

    fn set_backend(&self, number: u16, backend: Backend) {
        if self.lives() {
            self.tables.set_backend(number, backend);
        }
    }

    fn counter(&self, number: u16) -> Result<Counter, DataplaneError> {
        Ok(self.tables.counter(number))
    }

    fn verdicts(&self) -> Result<[u64; Verdict::COUNT], DataplaneError> {
        Ok(self.tables.verdicts())
    }

    fn events(&self) -> Result<[u64; Event::COUNT], DataplaneError> {
        Ok(self.tables.events())
    }

    fn service_info(&self, id: u16) -> Result<Option<ServiceInfo>, DataplaneError> {
        let info = self.service_info[usize::from(id)];
        Ok((info.name != [0; NAME_LEN]).then_some(info))
    }

    fn set_service_info(&mut self, id: u16, info: ServiceInfo) -> Result<(), DataplaneError> {
        if self.lives() {
            self.service_info[usize::from(id)] = info;
        }
        Ok(())
    }

    fn backend_info(&self, number: u16) -> Result<Option<BackendInfo>, DataplaneError> {
        let info = self.backend_info[usize::from(number)];
        Ok((info.name != [0; NAME_LEN]).then_some(info))
    }

    fn set_backend_info(&mut self, number: u16, info: BackendInfo) -> Result<(), DataplaneError> {
        if self.lives() {
            self.backend_info[usize::from(number)] = info;
        }
        Ok(())
    }

    /// Nothing is on its way in plain memory.
    fn wait_for_packets(&self) {
        *self.waits.borrow_mut() += 1;
    }
}

/// Plain memory, a controller and a clock.
#[derive(Debug)]
pub(super) struct Bench {
    pub(super) executor: Executor<PlainMemory>,
    pub(super) now: Millis,
}

impl Bench {
    /// Room for a few services, and a lookup of 32 buckets a half.
    pub(super) fn new() -> Self {
        Self::sized(1 << 16, 8, 64)
    }

    pub(super) fn sized(slots: u32, services: u16, backends: u32) -> Self {
        Self::of(PlainMemory::new(slots, services, backends))
    }

    /// A controller of these maps.
    pub(super) fn of(maps: PlainMemory) -> Self {
        let (slots, backends) = (maps.slot_capacity(), maps.backend_capacity());
        let services = maps.service_capacity();
        let actual = Actual::empty(slots, services, backends, 5);
        Self {
            executor: Executor { maps, actual },
            now: 1_000_000,
        }
    }

    pub(super) fn actual(&self) -> &Actual {
        &self.executor.actual
    }

    pub(super) fn plan(&self, desired: &[DesiredService]) -> Result<Vec<Op>, TooSmall> {
        let unix_ms = 1_700_000_000_000 + self.now;
        reconcile(desired, Scope::All, self.actual(), unix_ms, self.now)
    }

    /// Reconciles, does it, and checks that nothing is left to do.
    #[track_caller]
    pub(super) fn bring(&mut self, desired: &[DesiredService]) -> Vec<Op> {
        let ops = self.plan(desired).unwrap();
        self.execute(&ops);
        assert_eq!(self.plan(desired).unwrap(), [], "a second time");
        self.check();
        ops
    }

    pub(super) fn execute(&mut self, ops: &[Op]) {
        let now = self.now;
        self.executor.execute(ops, now, || now).unwrap();
    }

    pub(super) fn tick(&self) -> u16 {
        tick(self.now)
    }

    /// One sweep as the daemon does it.
    pub(super) fn sweep(&mut self) -> Sweep {
        let found = sweep(
            self.executor.maps.flow_buckets(),
            self.actual(),
            SEED,
            self.tick(),
            self.now,
        );
        let ops = found.operations(self.actual(), 1_700_000_000_000 + self.now);
        if !ops.is_empty() {
            self.execute(&ops);
        }
        self.executor.clear_flows(&found.clear);
        self.check();
        found
    }

    pub(super) fn number(&self, service: &str, backend: &str) -> u16 {
        let id = self.actual().service_id(service).unwrap();
        let found: Vec<u16> = self
            .actual()
            .backends_of(id)
            .iter()
            .filter(|(_, b)| b.name == backend)
            .map(|(number, _)| *number)
            .collect();
        assert_eq!(found.len(), 1, "{service}/{backend}: {found:?}");
        found[0]
    }

    pub(super) fn state(&self, service: &str, backend: &str) -> BackendState {
        self.actual().backends()[&self.number(service, backend)].state
    }

    /// The tables of a service: how many slots hold each (current, previous).
    pub(super) fn slots(&self, service: &str) -> Vec<Slot> {
        let id = self.actual().service_id(service).unwrap();
        self.actual().services()[&id].slots.clone()
    }

    /// What holds at any time: the picture is what the maps hold, tables lie apart, and every slot names backends of its own
    /// service.
    #[track_caller]
    pub(super) fn check(&self) {
        let actual = self.actual();
        let maps = &self.executor.maps;
        let mut used = 0;
        let mut unsettled = Vec::new();
        for (id, service) in actual.services() {
            assert_eq!(actual.service_id(&service.name), Some(*id));
            assert_eq!(service.slots.len(), 1 << service.bits);
            assert_eq!(service.changed.len(), service.slots.len());
            assert_eq!(service.offset % (1 << service.bits), 0);
            used += 1u32 << service.bits;
            for (index, slot) in (service.offset..).zip(&service.slots) {
                assert_eq!(maps.slot(index), Some(*slot), "slot {index}");
                for number in [slot.current(), slot.previous()] {
                    let owner = actual.backends().get(&number).map(|b| b.service);
                    assert!(
                        number == 0 || owner == Some(*id),
                        "slot {index} of service {id} names {number}, which is {owner:?}'s"
                    );
                }
            }
            if service.slots.iter().any(|slot| slot.in_transition()) {
                unsettled.push(*id);
            }
            assert!(!actual.retired().services.contains(id));
        }
        let found: Vec<u16> = actual.unsettled().map(|(id, _)| id).collect();
        assert_eq!(found, unsettled);
        assert_eq!(actual.regions.used(), used);
        for (number, backend) in actual.backends() {
            assert_eq!(maps.backend(*number), Some(backend.entry));
            assert!(actual.services().contains_key(&backend.service));
            assert!(!actual.retired().backends.contains(number));
            assert_eq!(
                actual.backend_number(backend.service, &backend.name, backend.address),
                Some(*number)
            );
        }
        assert_eq!(maps.tables.control.directory.get(), actual.directory().0);
    }
}

pub(super) fn tick(now: Millis) -> u16 {
    ((now * 1_000_000) >> lb_common::flow::TICK_SHIFT) as u16
}

/// A TCP service on 192.0.2.`vip` port 80, `client` affinity.
pub(super) fn service(name: &str, vip: u8, backends: &[DesiredBackend]) -> DesiredService {
    DesiredService {
        name: name.into(),
        entries: Entries {
            vip: Ipv4Addr::new(192, 0, 2, vip).to_bits(),
            protocol: lb_common::wire::PROTO_TCP,
            ports: vec![80..=80],
        },
        affinity: Affinity::CLIENT_IPV4,
        track: Track::Flows,
        flow_idle: IDLE,
        held: None,
        backends: backends.to_vec(),
        pick: None,
        leaving: Vec::new(),
    }
}

/// A backend that is up with weight 50 and priority 1; its address and MAC address follow from its name.
pub(super) fn backend(name: &str) -> DesiredBackend {
    let last = name
        .bytes()
        .fold(0u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    DesiredBackend {
        name: name.into(),
        address: Ipv4Addr::new(198, 51, 100, last),
        weight: 50,
        priority: 1,
        state: BackendState::Up,
        reason: "answers".into(),
        healthy: true,
        mac: Some([2, 0, 0, 0, 0, last]),
        port: 0,
        lost: false,
    }
}

/// The same backend in another state.
pub(super) fn in_state(name: &str, state: BackendState) -> DesiredBackend {
    DesiredBackend {
        state,
        ..backend(name)
    }
}
