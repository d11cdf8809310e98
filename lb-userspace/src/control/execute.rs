//! Operations done: first the stores that packets see, then what people and the next controller read.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    abi::{self, BackendInfo, ServiceInfo},
    flow::FlowState,
    pick::Backend,
};

use super::{
    actual::{Actual, ActualBackend, ActualService, Millis, Op},
    directory::Layout,
    memory::Memory,
};
use crate::dataplane::{DataplaneError, Maps};

/// The maps and the picture of what they hold.
#[derive(Debug)]
pub struct Executor<M = Maps> {
    /// The maps.
    pub maps: M,
    /// What they hold.
    pub actual: Actual,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Slots written.
    pub slots: u64,
}

impl<M: Memory> Executor<M> {
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
        let mut done = Done::default();
        let mut backends = BTreeSet::new();
        let mut services = BTreeSet::new();
        let mut retabled = BTreeSet::new();
        let mut taken_away = false;
        for op in ops {
            match op {
                Op::Backend { number, backend } => {
                    self.maps.set_backend(*number, backend.entry);
                    let mut backend = backend.clone();
                    if !self.actual.backends().contains_key(number) {
                        // Counters are never set back: a new owner starts from what it shows.
                        let base = self.maps.counter(*number)?;
                        (backend.base_packets, backend.base_bytes) = (base.packets, base.bytes);
                        // A controller killed in the middle of this leaves no slot that names a backend nobody knows.
                        self.maps
                            .set_backend_info(*number, backend_info(&backend))?;
                    }
                    backends.insert(*number);
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
                        for (index, slot) in changes {
                            self.maps.set_slot(table.offset + index, *slot);
                        }
                        done.slots += changes.len() as u64;
                    }
                    retabled.insert(*service);
                }
                Op::Service { id, service } => {
                    for (index, slot) in (service.offset..).zip(&service.slots) {
                        if self.maps.slot(index) != Some(*slot) {
                            self.maps.set_slot(index, *slot);
                            done.slots += 1;
                        }
                    }
                    if !self.actual.services().contains_key(id) {
                        self.maps
                            .set_service_info(*id, service_info(*id, service))?;
                    }
                    services.insert(*id);
                    retabled.insert(*id);
                }
                Op::RemoveService { id } => {
                    services.insert(*id);
                }
                Op::SwapDirectory { layout } => {
                    self.swap_directory(layout);
                    taken_away = true;
                }
                Op::RemoveBackend { number } => {
                    // Its slots are gone with its service, or name it no more.
                    backends.insert(*number);
                    taken_away = true;
                }
                Op::Release(_) => {}
            }
            self.actual.apply(op, began);
        }
        if taken_away {
            // Regions that were given up, entries of backends that are gone, and the half of the lookup that was in use may
            // be written again only when no packet is on its way through them.
            self.maps.wait_for_packets();
        }
        let ended = clock();
        for id in retabled {
            self.actual.redate(id, began, ended);
        }
        for number in backends {
            let info = match self.actual.backends().get(&number) {
                Some(backend) => backend_info(backend),
                None => {
                    self.maps.set_backend(number, Backend::default());
                    BackendInfo::default()
                }
            };
            self.maps.set_backend_info(number, info)?;
        }
        for id in services {
            let info = self
                .actual
                .services()
                .get(&id)
                .map_or_else(ServiceInfo::default, |s| service_info(id, s));
            self.maps.set_service_info(id, info)?;
        }
        let generation = &self.maps.control().generation;
        generation.set(generation.get() + 1);
        Ok(done)
    }

    /// Clears the records of flows that have ended, unless a packet renewed them meanwhile.
    pub fn clear_flows(&self, records: &[(usize, usize, u64)]) {
        let buckets = self.maps.flow_buckets();
        for (bucket, way, seen) in records {
            if let Some(record) = buckets.get(*bucket).and_then(|b| b.ways.get(*way)) {
                record.state.replace_if(*seen, 0);
            }
        }
    }

    /// Clears every record of a service's flows.
    pub fn forget_flows(&self, service: u16) {
        let records: Vec<(usize, usize, u64)> = self
            .maps
            .flow_buckets()
            .iter()
            .enumerate()
            .flat_map(|(index, bucket)| {
                let ways = bucket.ways.iter().enumerate();
                ways.map(move |(way, record)| (index, way, record.state.get()))
            })
            .filter(|(.., word)| {
                let state = FlowState(*word);
                state.used() && state.service() == service
            })
            .collect();
        self.clear_flows(&records);
    }

    /// Fills the half of the lookup that is not in use, and swaps the halves with one store.
    fn swap_directory(&self, layout: &Layout) {
        let first = if layout.directory.second_half() {
            layout.buckets.len()
        } else {
            0
        };
        for (bucket, ways) in self.maps.service_buckets()[first..]
            .iter()
            .zip(&layout.buckets)
        {
            for (way, (key, value)) in bucket.ways.iter().zip(ways) {
                way.value.set(*value);
                way.key.set(*key);
            }
        }
        self.maps.set_directory(layout.directory);
    }
}

fn backend_info(backend: &ActualBackend) -> BackendInfo {
    BackendInfo {
        name: abi::text_field(&backend.name),
        address: backend.address.to_ipv6_mapped().octets(),
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

fn service_info(id: u16, service: &ActualService) -> ServiceInfo {
    ServiceInfo {
        name: abi::text_field(&service.name),
        vip: std::net::Ipv4Addr::from_bits(service.entries.vip)
            .to_ipv6_mapped()
            .octets(),
        value: service.value(id).0,
        flow_idle_ms: u64::try_from(service.flow_idle.as_millis()).unwrap_or(u64::MAX),
        protocol: service.entries.protocol,
        reserved: [0; 7],
    }
}

/// Slots that have each backend as current and as previous, by number: what `status` shows.
#[must_use]
pub fn slot_shares(actual: &Actual) -> BTreeMap<u16, (u64, u64)> {
    let mut shares = vec![(0u64, 0u64); 1 << 16];
    for slot in actual.services().values().flat_map(|s| &s.slots) {
        shares[usize::from(slot.current())].0 += 1;
        if slot.in_transition() {
            shares[usize::from(slot.previous())].1 += 1;
        }
    }
    (0..=u16::MAX)
        .zip(shares)
        .filter(|(_, share)| *share != (0, 0))
        .collect()
}
