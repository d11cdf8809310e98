//! Operations done: first the stores that packets see, then what people and the next controller read.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use lb_common::{
    abi::{self, BackendInfo, Counter, HotInfo, ServiceInfo},
    flow::{FlowLine, FlowState, Way},
    hot::{HotWord, digest},
    pick::Backend,
};

use super::{
    actual::{Actual, ActualBackend, ActualService, Millis, Op},
    areas,
    directory::Layout,
    hot::Source,
    memory::{Grace, Memory},
    sweep::{Bucket, Record},
};
use crate::dataplane::{DataplaneError, Maps};

/// The maps and the picture of what they hold.
#[derive(Debug)]
pub struct Executor<M = Maps> {
    /// The maps.
    pub maps: M,
    /// What they hold.
    pub actual: Actual,
    /// Packets may still be on their way through what was given up.
    given_up: Option<GivenUp>,
}

/// What must not be written again before the packets on their way through it are gone: regions of slots, the half of the
/// lookup that was in use, and these backends' entries.
#[derive(Debug)]
struct GivenUp {
    grace: Grace,
    backends: Vec<u16>,
}

/// So many counters are read with one system call.
const COUNTERS_AT_ONCE: u16 = 2048;

/// Whether an operation may write what was given up before it.
fn reuses(op: &Op, actual: &Actual) -> bool {
    match op {
        Op::Service { .. }
        | Op::RemoveService { .. }
        | Op::SwapDirectory { .. }
        | Op::RemoveBackend { .. } => true,
        Op::Backend { number, .. } => !actual.backends().contains_key(number),
        Op::Slots { .. } | Op::Hot { .. } | Op::Release(_) => false,
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Slots written.
    pub slots: u64,
    /// Stores into what the data path reads: slots, backends' entries, and one for a swap of the lookup.
    pub stores: u64,
    /// When the last of them was done.
    pub stored: Option<Instant>,
}

impl<M: Memory> Executor<M> {
    /// Of maps and the picture of them.
    pub const fn new(maps: M, actual: Actual) -> Self {
        Self {
            maps,
            actual,
            given_up: None,
        }
    }

    /// Waits until no packet is on its way through what was given up, and clears it.
    pub fn end_grace(&mut self) {
        if let Some(GivenUp { grace, backends }) = self.given_up.take() {
            grace.wait();
            for number in backends {
                if !self.actual.backends().contains_key(&number) {
                    // The records that still name it are taken for those of a failed one: their flows move.
                    self.maps.set_backend(number, Backend::new(0, 0, true));
                }
            }
        }
    }

    /// The same, if that needs no waiting.
    pub fn end_grace_if_over(&mut self) {
        if self.given_up.as_ref().is_some_and(|g| g.grace.is_over()) {
            self.end_grace();
        }
    }

    /// Does the operations in their order. They were planned at `began`; `clock` says when the last store was done.
    ///
    /// # Errors
    /// [`DataplaneError`] of a map that can't be written: the picture then shows what was done so far.
    pub fn execute(
        &mut self,
        ops: &[Op],
        began: Millis,
        clock: impl FnOnce() -> Millis,
    ) -> Result<Done, DataplaneError> {
        if ops.iter().any(|op| reuses(op, &self.actual)) {
            self.end_grace();
        }
        let bases = self.bases(ops)?;
        let mut done = Done::default();
        let mut backends = BTreeSet::new();
        let mut services = BTreeSet::new();
        let mut places = BTreeSet::new();
        let mut taken_away = false;
        for op in ops {
            match op {
                Op::Backend { number, backend } => {
                    self.maps.set_backend(*number, backend.entry);
                    done.stores += 1;
                    done.stored = Some(Instant::now());
                    let mut backend = backend.clone();
                    if self.actual.backends().contains_key(number) {
                        backends.insert(*number);
                    } else {
                        // Counters are never set back: a new owner starts from what it shows.
                        let base = bases.get(number).copied().unwrap_or_default();
                        (backend.base_packets, backend.base_bytes) = (base.packets, base.bytes);
                        // A controller killed in the middle of this leaves no slot that names a backend nobody knows.
                        self.maps
                            .set_backend_info(*number, backend_info(&backend))?;
                    }
                    self.actual.apply(
                        &Op::Backend {
                            number: *number,
                            backend,
                        },
                        began,
                    );
                    continue;
                }
                Op::Slots {
                    service, changes, ..
                } => {
                    if let Some(table) = self.actual.services().get(service) {
                        done.stores += areas::change(&self.maps, table, changes);
                        done.stored = Some(Instant::now());
                        done.slots += changes.len() as u64;
                    }
                }
                Op::Service { id, service } => {
                    for (index, slot) in (service.offset..).zip(&service.slots) {
                        if self.maps.slot(index) != Some(*slot) {
                            self.maps.set_slot(index, *slot);
                            done.slots += 1;
                            done.stores += 1;
                        }
                    }
                    done.stores += areas::write_all(&self.maps, service);
                    done.stored = Some(Instant::now());
                    if self.actual.services().contains_key(id) {
                        services.insert(*id);
                    } else {
                        self.maps
                            .set_service_info(*id, service_info(*id, service))?;
                    }
                }
                Op::RemoveService { id } => {
                    services.insert(*id);
                }
                Op::SwapDirectory { layout } => {
                    self.swap_directory(layout);
                    done.stores += 1;
                    done.stored = Some(Instant::now());
                    taken_away = true;
                }
                Op::RemoveBackend { number } => {
                    // Its slots are gone with its service, or name it no more.
                    backends.insert(*number);
                    taken_away = true;
                }
                Op::Hot { source, entry } => {
                    let old = self.actual.hot().get(source);
                    let place = entry.as_ref().or(old).map(|hot| hot.place);
                    if let (Some(place), Some(entry)) = (place, entry) {
                        if old.is_none() {
                            // A controller killed in the middle of this leaves no source that nobody can name.
                            self.maps.set_hot_info(place, entry.info(*source))?;
                        }
                        let seed = self.maps.control().seed();
                        let digest = digest(source.service, source.address, seed);
                        self.maps.set_hot(place, HotWord::new(digest, entry.state));
                    } else if let Some(place) = place {
                        self.maps.set_hot(place, HotWord::default());
                    }
                    done.stores += 1;
                    done.stored = Some(Instant::now());
                    places.extend(place);
                }
                Op::Release(released) => {
                    for number in &released.backends {
                        self.maps.set_backend(*number, Backend::default());
                    }
                }
            }
            self.actual.apply(op, began);
        }
        let ended = clock();
        for op in ops {
            self.actual.redate(op, began, ended);
        }
        let mut gone = Vec::new();
        for number in backends {
            let info = match self.actual.backends().get(&number) {
                Some(backend) => backend_info(backend),
                None => {
                    gone.push(number);
                    BackendInfo::default()
                }
            };
            self.maps.set_backend_info(number, info)?;
        }
        if taken_away {
            self.given_up = Some(GivenUp {
                grace: self.maps.grace(),
                backends: gone,
            });
        }
        for id in services {
            let info = self
                .actual
                .services()
                .get(&id)
                .map_or_else(ServiceInfo::default, |s| service_info(id, s));
            self.maps.set_service_info(id, info)?;
        }
        for place in places {
            let owner = self.actual.hot().iter().find(|(_, hot)| hot.place == place);
            let info = owner.map_or_else(HotInfo::default, |(source, hot)| hot.info(*source));
            self.maps.set_hot_info(place, info)?;
        }
        let generation = &self.maps.control().generation;
        generation.set(generation.get() + 1);
        Ok(done)
    }

    /// What the counters of those show that are new: many at once, where their numbers follow each other.
    fn bases(&self, ops: &[Op]) -> Result<BTreeMap<u16, Counter>, DataplaneError> {
        let new: BTreeSet<u16> = ops
            .iter()
            .filter_map(|op| match op {
                Op::Backend { number, .. } => Some(*number),
                _ => None,
            })
            .filter(|number| !self.actual.backends().contains_key(number))
            .collect();
        let mut bases = BTreeMap::new();
        let mut new = new.into_iter().peekable();
        while let Some(first) = new.next() {
            let mut count = 1;
            while count < COUNTERS_AT_ONCE
                && let Some(next) = first.checked_add(count)
                && new.next_if_eq(&next).is_some()
            {
                count += 1;
            }
            bases.extend((first..=u16::MAX).zip(self.maps.counters(first, count)?));
        }
        Ok(bases)
    }

    /// Clears the records of flows that have ended, unless a packet renewed them meanwhile.
    pub fn clear_flows(&self, records: &[Record]) {
        let (flows, flows6) = (self.maps.flow_buckets(), self.maps.flow6_buckets());
        for (bucket, way, seen) in records {
            match *bucket {
                Bucket::Ipv4(index) => clear(flows, index, *way, *seen),
                Bucket::Ipv6(index) => clear(flows6, index, *way, *seen),
            }
        }
    }

    /// Notes a hot source's share as measured last.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn set_share(&mut self, source: Source, share_ppm: u32) -> Result<(), DataplaneError> {
        self.actual.set_share(source, share_ppm);
        match self.actual.hot().get(&source) {
            Some(hot) => self.maps.set_hot_info(hot.place, hot.info(source)),
            None => Ok(()),
        }
    }

    /// Clears every record of a service's flows.
    pub fn forget_flows(&self, service: u16) {
        forget(self.maps.flow_buckets(), service);
        forget(self.maps.flow6_buckets(), service);
    }

    /// Has the records of a service's flows that name anybody but `own` name `others`.
    pub fn hand_over_flows(&self, service: u16, own: Option<u16>, others: u16) {
        hand_over(self.maps.flow_buckets(), service, own, others);
        hand_over(self.maps.flow6_buckets(), service, own, others);
    }

    /// Fills buckets of the lookup that are not in use, and swaps them for those that are with one store.
    fn swap_directory(&self, layout: &Layout) {
        let buckets = &self.maps.service_buckets()[layout.directory.range()];
        for (bucket, ways) in buckets.iter().zip(&layout.buckets) {
            for (way, (key, value)) in bucket.ways.iter().zip(ways) {
                way.value.set(*value);
                way.key.set(*key);
            }
        }
        // The data path believes what it finds only if the whole address is here as well.
        for (id, vip) in &layout.vips {
            self.maps.set_vip(*id, *vip);
        }
        self.maps.set_directory(layout.directory, layout.no_vip());
    }
}

/// Clears a service's records, unless a packet renewed them meanwhile.
fn forget<W: Way>(buckets: &[FlowLine<W>], service: u16) {
    for record in buckets.iter().flat_map(|bucket| &bucket.ways) {
        let seen = record.state().get();
        let state = FlowState(seen);
        if state.used() && state.service() == service {
            record.state().replace_if(seen, 0);
        }
    }
}

/// Rewrites a service's records, each as often as a packet renews it meanwhile.
fn hand_over<W: Way>(buckets: &[FlowLine<W>], service: u16, own: Option<u16>, others: u16) {
    for record in buckets.iter().flat_map(|bucket| &bucket.ways) {
        loop {
            let seen = record.state().get();
            let state = FlowState(seen);
            let elsewhere = state.used()
                && state.service() == service
                && state.backend() != others
                && Some(state.backend()) != own;
            if !elsewhere || record.state().replace_if(seen, state.on(others).0) {
                break;
            }
        }
    }
}

fn clear<W: Way>(buckets: &[FlowLine<W>], index: usize, way: usize, seen: u64) {
    if let Some(record) = buckets.get(index).and_then(|bucket| bucket.ways.get(way)) {
        record.state().replace_if(seen, 0);
    }
}

fn backend_info(backend: &ActualBackend) -> BackendInfo {
    BackendInfo {
        name: abi::text_field(&backend.name),
        address: mapped(backend.address),
        reason: abi::text_field(&backend.reason),
        since_ms: backend.since_ms,
        base_packets: backend.base_packets,
        base_bytes: backend.base_bytes,
        weight: backend.weight,
        priority: backend.priority,
        service: backend.service,
        state: backend.state as u8,
        healthy: u8::from(backend.healthy),
        reserved: 0,
    }
}

/// An address of either family as the maps for people hold it (RFC 4291 section 2.5.5.2).
fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn service_info(id: u16, service: &ActualService) -> ServiceInfo {
    ServiceInfo {
        name: abi::text_field(&service.name),
        vip: mapped(service.entries.vip),
        value: service.value(id).0,
        flow_idle_ms: u64::try_from(service.flow_idle.as_millis()).unwrap_or(u64::MAX),
        protocol: service.entries.protocol,
        track: service.following.track as u8,
        reserved: [0; 2],
        affinity_timeout_ms: service.following.affinity_timeout.map_or(0, |timeout| {
            u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX)
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use lb_common::{abi::BackendState, pick::Backend};

    use crate::control::{
        actual::{Op, Retired},
        failure::{Failed, fail},
        memory::Memory as _,
        prepared::Prepared,
        samples::{Bench, backend, in_state, service},
    };

    /// A record that still names it would else send its flow to a backend without a MAC address, until the next sweep.
    #[test]
    fn a_removed_backend_counts_as_failed_until_no_record_names_it() {
        let mut bench = Bench::new();
        bench.bring(&[service(
            "web",
            10,
            &[backend("a"), in_state("b", BackendState::Failed)],
        )]);
        let (number, now) = (bench.number("web", "b"), bench.now);
        bench.bring(&[service("web", 10, &[backend("a")])]);
        let entry = |bench: &Bench| bench.executor.maps.backend(number);
        let removal = [Op::RemoveBackend { number }];
        bench.executor.execute(&removal, now, || now).unwrap();
        bench.executor.end_grace();
        assert!(entry(&bench).failed());
        assert_eq!(entry(&bench).mac(), 0);
        let released = Retired {
            services: BTreeSet::new(),
            backends: [number].into(),
        };
        bench
            .executor
            .execute(&[Op::Release(released)], now, || now)
            .unwrap();
        assert_eq!(entry(&bench), Backend::default());
    }

    #[test]
    fn only_what_may_write_what_was_given_up_waits_for_the_packets_on_their_way() {
        let web = service("web", 10, &[backend("a"), backend("b")]);
        let mut bench = Bench::new();
        bench.bring(&[web.clone(), service("mail", 11, &[backend("x")])]);
        let given_up = bench.number("mail", "x");
        let entry = bench.executor.maps.backend(given_up);
        let now = bench.now;
        let waits = |bench: &Bench| bench.executor.given_up.is_some();

        let removal = bench.plan(std::slice::from_ref(&web)).unwrap();
        bench.executor.execute(&removal, now, || now).unwrap();
        assert!(waits(&bench));
        assert_eq!(bench.executor.maps.backend(given_up), entry, "still in use");

        let failed = Failed {
            number: bench.number("web", "a"),
            reason: "connection refused".into(),
            healthy: false,
            without_mac: false,
        };
        let id = bench.actual().service_id("web").unwrap();
        let failure = fail(bench.actual(), id, &[failed], 0, &mut Prepared::default()).unwrap();
        bench.executor.execute(&failure, now, || now).unwrap();
        assert_eq!(bench.state("web", "a"), BackendState::Down);
        assert!(waits(&bench), "a failure does not wait for it");

        let wider = service("dns", 12, &[backend("y")]);
        let addition = bench.plan(&[web, wider]).unwrap();
        bench.executor.execute(&addition, now, || now).unwrap();
        let left = bench.executor.maps.backend(given_up);
        assert_eq!(left, Backend::new(0, 0, true), "over by now");
        bench.executor.end_grace();
        assert!(!waits(&bench));
    }
}
