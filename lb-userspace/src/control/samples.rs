//! What the controller's tests start from: services and backends, and the maps in plain memory.

use std::{cell::Cell, net::IpAddr, time::Duration};

use lb_common::{
    abi::{
        AREA, BackendInfo, BackendState, Bucket, Control, Counter, Fence, HOT_LINES, HOT_WAYS,
        HotInfo, HotLine, NAME_LEN, Presence, ServiceInfo,
    },
    address::Ipv6,
    features::Features,
    flow::{FlowBucket, FlowBucket6, FlowKey, FlowState, Key, Phase, bucket_indices},
    hash::Seed,
    hot::{HotWord, digest},
    memory::Word64,
    pick::{Affinity, Backend, Slot},
    plain::{Capacity, Instance, PlainTables},
    service::{Directory, NoVip},
    tables::{Event, Tables},
    verdict::Verdict,
};

use super::{
    actual::{Actual, Millis, Named, Op},
    areas,
    desired::{DesiredBackend, DesiredService},
    directory::Entries,
    execute::Executor,
    following::Following,
    memory::{Grace, Memory, swap},
    reconcile::{Scope, TooSmall, reconcile},
    retarget::Track,
    sweep::{Budget, Pass, Record, Sweep, View},
    sweeper::Sweeper,
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
    hot_info: Vec<HotInfo>,
    /// Writes that are still done before the controller dies; `None` where it lives for ever.
    pub(super) writes_left: Cell<Option<u32>>,
    /// What was read and written since it was last asked for.
    pub(super) touched: Cell<Touched>,
}

/// What was read and written of the maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Touched {
    pub(super) slots_read: u64,
    /// Slots written.
    pub(super) slots: u64,
    /// Areas written.
    pub(super) areas: u64,
    /// Backends' entries written.
    pub(super) backends: u64,
    /// What people read, of services and backends, written.
    pub(super) infos: u64,
    /// How often it was waited for the packets on their way.
    pub(super) waits: u64,
}

impl PlainMemory {
    pub(super) fn new(slots: u32, services: u16, backends: u32, service_buckets: u32) -> Self {
        let features = Features::ALL_FORWARDING;
        Self::with(slots, services, backends, service_buckets, features)
    }

    /// The same of an instance with other features.
    pub(super) fn with(
        slots: u32,
        services: u16,
        backends: u32,
        service_buckets: u32,
        features: Features,
    ) -> Self {
        let tables = PlainTables::new(
            Capacity {
                service_buckets,
                slots,
                backends,
                flow_buckets: 1 << 10,
                flow6_buckets: 1 << 10,
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
            hot_info: vec![HotInfo::default(); HOT_LINES as usize * HOT_WAYS],
            writes_left: Cell::new(None),
            touched: Cell::default(),
        }
    }

    fn touch(&self, count: impl FnOnce(&mut Touched)) {
        let mut touched = self.touched.get();
        count(&mut touched);
        self.touched.set(touched);
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
        let way = bucket_indices(hash, self.tables.flow_bits())
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

    fn set_directory(&self, directory: Directory, no_vip: NoVip) {
        if self.lives() {
            swap(&self.tables.control, directory, no_vip);
        }
    }

    fn flow_buckets(&self) -> &[FlowBucket] {
        &self.tables.flows
    }

    fn fragment_buckets(&self) -> &[FlowBucket] {
        &self.tables.fragments
    }

    fn flow6_buckets(&self) -> &[FlowBucket6] {
        &self.tables.flows6
    }

    fn vip(&self, service: u16) -> Ipv6 {
        let vip = &self.tables.vips[usize::from(service)];
        Ipv6 {
            high: vip.high.get(),
            low: vip.low.get(),
        }
    }

    fn set_vip(&self, service: u16, vip: Ipv6) {
        if self.lives() {
            let entry = &self.tables.vips[usize::from(service)];
            entry.high.set(vip.high);
            entry.low.set(vip.low);
        }
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
        self.touch(|touched| touched.slots_read += 1);
        self.tables.slot(index)
    }

    fn set_slot(&self, index: u32, slot: Slot) {
        self.touch(|touched| touched.slots += 1);
        if self.lives() {
            self.tables.set_slot(index, slot);
        }
    }

    fn area(&self, index: u32) -> Option<u16> {
        self.tables.area(index)
    }

    fn set_area(&self, index: u32, backend: u16) {
        if self.lives() {
            self.touch(|touched| touched.areas += 1);
            self.tables.set_area(index, backend);
        }
    }

    fn backend(&self, number: u16) -> Backend {
        self.tables.backend(number)
    }

    fn set_backend(&self, number: u16, backend: Backend) {
        self.touch(|touched| touched.backends += 1);
        if self.lives() {
            self.tables.set_backend(number, backend);
        }
    }

    fn counter(&self, number: u16) -> Result<Counter, DataplaneError> {
        Ok(self.tables.counter(number))
    }

    fn counters(&self, first: u16, count: u16) -> Result<Vec<Counter>, DataplaneError> {
        let end = (u32::from(first) + u32::from(count)).min(self.backend_capacity());
        Ok((u32::from(first)..end)
            .map(|number| self.tables.counter(number as u16))
            .collect())
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
        self.touch(|touched| touched.infos += 1);
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
        self.touch(|touched| touched.infos += 1);
        if self.lives() {
            self.backend_info[usize::from(number)] = info;
        }
        Ok(())
    }

    fn fences(&self) -> &[Fence] {
        &self.tables.fences
    }

    fn presences(&self) -> &[Presence] {
        &self.tables.presences
    }

    fn hot_lines(&self) -> &[HotLine] {
        &self.tables.hot
    }

    fn set_hot(&self, place: u32, word: HotWord) {
        if self.lives() {
            let place = place as usize;
            self.tables.hot[place / HOT_WAYS].ways[place % HOT_WAYS].set(word.0);
        }
    }

    fn hot_info(&self, place: u32) -> Result<Option<HotInfo>, DataplaneError> {
        let info = self.hot_info[place as usize];
        Ok((info.used != 0).then_some(info))
    }

    fn set_hot_info(&mut self, place: u32, info: HotInfo) -> Result<(), DataplaneError> {
        if self.lives() {
            self.hot_info[place as usize] = info;
        }
        Ok(())
    }

    /// Nothing is on its way in plain memory.
    fn grace(&self) -> Grace {
        self.touch(|touched| touched.waits += 1);
        Grace::over()
    }
}

/// Plain memory, a controller and a clock.
#[derive(Debug)]
pub(super) struct Bench {
    pub(super) executor: Executor<PlainMemory>,
    pub(super) sweeper: Sweeper,
    pub(super) now: Millis,
}

impl Bench {
    /// Room for a few services, and a lookup of 32 buckets a half.
    pub(super) fn new() -> Self {
        Self::sized(1 << 16, 8, 64)
    }

    pub(super) fn sized(slots: u32, services: u16, backends: u32) -> Self {
        Self::roomy(slots, services, backends, 64)
    }

    /// With one service, `web`, of so many backends: `b0`, `b1` and so on.
    pub(super) fn of_one_large(backends: usize) -> Self {
        let backends: Vec<DesiredBackend> =
            (0..backends).map(|n| backend(&format!("b{n}"))).collect();
        let mut bench = Self::sized(1 << 18, 8, 2048);
        bench.bring(&[service("web", 10, &backends)]);
        bench
    }

    pub(super) fn roomy(slots: u32, services: u16, backends: u32, service_buckets: u32) -> Self {
        Self::of(PlainMemory::new(slots, services, backends, service_buckets))
    }

    /// A controller of these maps.
    pub(super) fn of(maps: PlainMemory) -> Self {
        let bits = (maps.service_buckets().len() / 2).ilog2() as u8;
        let actual = Actual::empty(
            maps.slot_capacity(),
            maps.service_capacity(),
            maps.backend_capacity(),
            bits,
        );
        Self {
            executor: Executor::new(maps, actual),
            sweeper: Sweeper::default(),
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
        if self.sweeper.must_finish() {
            self.sweep_until_clean();
        }
        let ops = self.plan(desired).unwrap();
        self.execute(&ops);
        assert_eq!(self.plan(desired).unwrap(), [], "a second time");
        self.check();
        ops
    }

    pub(super) fn execute(&mut self, ops: &[Op]) {
        let now = self.now;
        self.sweeper.note(&self.executor.actual, ops);
        self.executor.execute(ops, now, || now).unwrap();
        self.executor.end_grace();
    }

    pub(super) fn tick(&self) -> u16 {
        tick(self.now)
    }

    pub(super) fn view(&self) -> View<'_> {
        View {
            buckets: self.executor.maps.flow_buckets(),
            buckets6: self.executor.maps.flow6_buckets(),
            fragments: self.executor.maps.fragment_buckets(),
            actual: self.actual(),
            cluster: self.executor.maps.tables.features().has(Features::PICK),
            seed: SEED,
            ticks: self.tick(),
            now: self.now,
            unix_ms: 1_700_000_000_000 + self.now,
        }
    }

    /// One piece as the daemon does it; begins a pass where none is under way. True when the pass is over.
    pub(super) fn sweep_piece(&mut self, budget: Budget) -> bool {
        let mut sweeper = std::mem::take(&mut self.sweeper);
        sweeper.ask();
        sweeper.begin(self.actual(), self.now);
        let piece = sweeper.step(&self.view(), budget);
        self.sweeper = sweeper;
        if !piece.ops.is_empty() {
            self.execute(&piece.ops);
        }
        self.executor.clear_flows(&piece.clear);
        self.sweeper
            .done(&self.executor.actual, self.now, Duration::ZERO)
    }

    /// One whole pass, from its beginning.
    pub(super) fn sweep(&mut self) -> Sweep {
        while self.sweeper.is_active() {
            self.sweep_piece(Budget::ALL);
        }
        while !self.sweep_piece(Budget::ALL) {}
        self.check();
        self.sweeper.last().clone()
    }

    /// As the daemon does before it plans a change.
    pub(super) fn sweep_until_clean(&mut self) {
        while self.sweeper.must_finish() {
            self.sweep();
        }
    }

    /// What one look at every record says of each, and nothing is done about it.
    pub(super) fn look(&self) -> Vec<Record> {
        Pass::begin(self.actual(), self.now)
            .step(&self.view(), Budget::ALL)
            .clear
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
        let mut named = vec![Named::default(); 1 << 16];
        for (id, service) in actual.services() {
            assert_eq!(actual.service_id(&service.name), Some(*id));
            assert_eq!(service.slots.len(), 1 << service.bits);
            assert_eq!(service.changed.len(), service.slots.len());
            assert_eq!(service.offset % (1 << service.bits), 0);
            used += 1u32 << service.bits;
            let areas = service.slots.chunks(AREA as usize);
            for (area, slots) in (service.offset / AREA..).zip(areas) {
                assert_eq!(maps.area(area), Some(areas::owner(slots)), "area {area}");
            }
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
            let moving = service.slots.iter().filter(|slot| slot.in_transition());
            assert_eq!(actual.in_transition(*id) as usize, moving.clone().count());
            if moving.count() > 0 {
                unsettled.push(*id);
            }
            for slot in &service.slots {
                named[usize::from(slot.current())].current += 1;
                if slot.in_transition() {
                    named[usize::from(slot.previous())].previous += 1;
                }
            }
            assert!(!actual.retired().services.contains(id));
        }
        let found: Vec<u16> = actual.unsettled().map(|(id, _)| id).collect();
        assert_eq!(found, unsettled);
        for (number, named) in (0..=u16::MAX)
            .zip(named)
            .take(actual.backend_capacity as usize)
        {
            assert_eq!(actual.named(number), named, "backend {number}");
        }
        let ending: Vec<u16> = actual.ending().map(|(number, _)| number).collect();
        let drain_or_leave: Vec<u16> = actual
            .backends()
            .iter()
            .filter(|(_, backend)| {
                matches!(
                    backend.state,
                    BackendState::Draining | BackendState::Leaving
                )
            })
            .map(|(number, _)| *number)
            .collect();
        assert_eq!(ending, drain_or_leave);
        assert_eq!(actual.regions.used(), used);
        for (number, backend) in actual.backends() {
            assert_eq!(maps.backend(*number), backend.entry);
            assert!(actual.services().contains_key(&backend.service));
            assert!(!actual.retired().backends.contains(number));
            assert_eq!(
                actual.backend_number(backend.service, &backend.name, backend.address),
                Some(*number)
            );
        }
        assert_eq!(maps.tables.control.directory.get(), actual.directory().0);
        let words = maps.tables.hot.iter().flat_map(|line| &line.ways);
        let mut in_maps: Vec<(u32, u64)> = (0..)
            .zip(words.map(Word64::get))
            .filter(|(_, word)| *word != 0)
            .collect();
        in_maps.sort_unstable();
        let mut known: Vec<(u32, u64)> = actual
            .hot()
            .iter()
            .map(|(source, hot)| {
                let digest = digest(source.service, source.address, SEED);
                (hot.place, HotWord::new(digest, hot.state).0)
            })
            .collect();
        known.sort_unstable();
        assert_eq!(in_maps, known, "the hot sources");
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
            vip: IpAddr::from([192, 0, 2, vip]),
            protocol: lb_common::wire::PROTO_TCP,
            ports: vec![80..=80],
        },
        affinity: Affinity::CLIENT_IPV4,
        track: Track::Flows,
        spreads: false,
        following: Following::default(),
        flow_idle: IDLE,
        held: None,
        backends: backends.to_vec(),
        leaving: Vec::new(),
        pick: None,
    }
}

/// A backend that is up with weight 50 and priority 1; its address and MAC address follow from its name.
pub(super) fn backend(name: &str) -> DesiredBackend {
    let last = name
        .bytes()
        .fold(0u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    DesiredBackend {
        name: name.into(),
        address: IpAddr::from([198, 51, 100, last]),
        configured: 50,
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
