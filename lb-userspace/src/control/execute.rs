//! Operations done: first the stores that packets see, then what people and the next controller read.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    abi::{self, BackendInfo, ServiceInfo},
    pick::Backend,
};

use super::{
    actual::{Actual, ActualBackend, ActualService, Millis, Op},
    directory,
};
use crate::dataplane::{DataplaneError, Maps};

/// The maps and the picture of what they hold.
#[derive(Debug)]
pub struct Executor {
    /// The maps.
    pub maps: Maps,
    /// What they hold.
    pub actual: Actual,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Slots written.
    pub slots: u64,
}

impl Executor {
    /// Does the operations in their order.
    ///
    /// # Errors
    /// [`DataplaneError`] of a map that can't be written: the picture then shows what was done so far.
    pub fn execute(&mut self, ops: &[Op], now: Millis) -> Result<Done, DataplaneError> {
        let mut done = Done::default();
        let mut backends = BTreeSet::new();
        let mut services = BTreeSet::new();
        let mut swapped = false;
        for op in ops {
            match op {
                Op::Backend { number, backend } => {
                    self.maps.set_backend(*number, backend.entry);
                    let mut backend = backend.clone();
                    if !self.actual.backends.contains_key(number) {
                        // Counters are never set back: a new owner starts from what it shows.
                        let base = self.maps.counter(*number)?;
                        (backend.base_packets, backend.base_bytes) = (base.packets, base.bytes);
                    }
                    backends.insert(*number);
                    self.actual.apply(
                        &Op::Backend {
                            number: *number,
                            backend,
                        },
                        now,
                    );
                    continue;
                }
                Op::Slots {
                    service, changes, ..
                } => {
                    if let Some(table) = self.actual.services.get(service) {
                        for (index, slot) in changes {
                            self.maps.set_slot(table.offset + index, *slot);
                        }
                        done.slots += changes.len() as u64;
                    }
                }
                Op::Service { id, service } => {
                    for (index, slot) in (service.offset..).zip(&service.slots) {
                        if self.maps.slot(index) != Some(*slot) {
                            self.maps.set_slot(index, *slot);
                            done.slots += 1;
                        }
                    }
                    services.insert(*id);
                }
                Op::RemoveService { id } => {
                    services.insert(*id);
                }
                Op::SwapDirectory => {
                    self.swap_directory()?;
                    swapped = true;
                }
                Op::RemoveBackend { number } => {
                    // Its slots are gone with its service, or name it no more.
                    backends.insert(*number);
                }
            }
            self.actual.apply(op, now);
        }
        if swapped {
            // Regions that were given up, and the half of the lookup that was in use, may be written again only when no
            // packet is on its way through them.
            grace_period();
        }
        for number in backends {
            let info = match self.actual.backends.get(&number) {
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
                .services
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

    /// Lays the lookup out in the half that is not in use, and swaps the halves with one store.
    fn swap_directory(&self) -> Result<(), DataplaneError> {
        let control = self.maps.control();
        let old = lb_common::service::Directory(control.directory.get());
        let second = old.0 != 0 && !old.second_half();
        let entries = directory::entries(
            self.actual
                .services
                .iter()
                .map(|(id, s)| (&s.entries, s.value(*id))),
        );
        let random = control.generation.get() ^ control.seed1.get();
        let layout = directory::lay_out(&entries, self.actual.bucket_bits, second, random)
            .map_err(|error| DataplaneError::Foreign {
                path: abi::map::SERVICES.into(),
                what: error.to_string(),
            })?;
        let first = if second { layout.buckets.len() } else { 0 };
        for (bucket, ways) in self.maps.service_buckets()[first..]
            .iter()
            .zip(&layout.buckets)
        {
            for (way, (key, value)) in bucket.ways.iter().zip(ways) {
                way.value.set(*value);
                way.key.set(*key);
            }
        }
        control.directory.set(layout.directory.0);
        Ok(())
    }
}

/// Waits until every packet that was being processed has left the program.
///
/// `membarrier(MEMBARRIER_CMD_GLOBAL)` is `synchronize_rcu()` (`kernel/sched/membarrier.c`), and an XDP program runs
/// within one RCU read-side section; where the kernel refuses it (`nohz_full`), a pause far longer than any program runs.
fn grace_period() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes three integers and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        std::thread::sleep(std::time::Duration::from_millis(50));
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

/// Slots in use by service and by backend: what `status` shows.
#[must_use]
pub fn slot_shares(actual: &Actual) -> BTreeMap<u16, (u64, u64)> {
    let mut shares: BTreeMap<u16, (u64, u64)> = BTreeMap::new();
    for slot in actual.services.values().flat_map(|s| &s.slots) {
        shares.entry(slot.current()).or_default().0 += 1;
        if slot.in_transition() {
            shares.entry(slot.previous()).or_default().1 += 1;
        }
    }
    shares
}
