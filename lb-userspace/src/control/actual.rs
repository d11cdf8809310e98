//! What is: the controller's picture of what the maps hold, kept in step with every operation.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use lb_common::{
    abi::BackendState,
    pick::{Affinity, Backend, Slot},
    service::ServiceValue,
};

use super::{directory::Entries, regions::Regions, retarget::Track};

/// Milliseconds of a clock that only goes forward.
pub type Millis = u64;

/// Everything the maps hold.
#[derive(Clone, Debug)]
pub struct Actual {
    /// By id.
    pub services: BTreeMap<u16, ActualService>,
    /// By number.
    pub backends: BTreeMap<u16, ActualBackend>,
    /// Where the tables lie.
    pub regions: Regions,
    /// How many service ids there are.
    pub service_capacity: u32,
    /// How many backend numbers there are, 0 among them.
    pub backend_capacity: u32,
    /// log2 of the buckets in one half of the service lookup.
    pub bucket_bits: u8,
}

/// A service in the maps.
#[derive(Clone, Debug, PartialEq)]
pub struct ActualService {
    /// Its name.
    pub name: String,
    /// What it contributes to the lookup.
    pub entries: Entries,
    /// Which part of the packet picks.
    pub affinity: Affinity,
    /// Whether its flows are tracked through a change.
    pub track: Track,
    /// After which silence a flow counts as ended.
    pub flow_idle: Duration,
    /// First slot of its table.
    pub offset: u32,
    /// log2 of the table's size.
    pub bits: u8,
    /// The table.
    pub slots: Vec<Slot>,
    /// When each slot last changed; only means something for a slot in transition.
    pub changed: Vec<Millis>,
    /// For whom the table was built: identity, weight and number of the active backends, in their order.
    pub built_for: Vec<(String, u32, u16)>,
}

impl ActualService {
    /// Its value in the lookup.
    #[must_use]
    pub fn value(&self, id: u16) -> ServiceValue {
        ServiceValue::new(id, self.offset, self.bits, self.affinity)
    }

    /// How many slots are in transition.
    #[must_use]
    pub fn in_transition(&self) -> usize {
        self.slots
            .iter()
            .filter(|slot| slot.in_transition())
            .count()
    }
}

/// A backend in the maps.
#[derive(Clone, Debug, PartialEq)]
pub struct ActualBackend {
    /// Its service's id.
    pub service: u16,
    /// Its name.
    pub name: String,
    /// Its own address.
    pub address: Ipv4Addr,
    /// Its entry.
    pub entry: Backend,
    /// Its state.
    pub state: BackendState,
    /// Why.
    pub reason: String,
    /// Unix time in milliseconds.
    pub since_ms: u64,
    /// The weight in force.
    pub weight: u32,
    /// The priority.
    pub priority: u32,
    /// Whether probes succeed.
    pub healthy: bool,
    /// Packets that the counter showed when it got its number.
    pub base_packets: u64,
    /// Likewise, bytes.
    pub base_bytes: u64,
}

/// One change of the maps.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// A backend gets a number, or anything of it changes. The entry the data path reads is one store; the rest is for
    /// people and for the next controller.
    Backend {
        /// Its number.
        number: u16,
        /// What it is from now on.
        backend: ActualBackend,
    },
    /// Slots of an existing table.
    Slots {
        /// The service's id.
        service: u16,
        /// Index in the table, and what it holds from now on.
        changes: Vec<(u32, Slot)>,
        /// For whom the table is built then; `None` where the slots only settle.
        built_for: Option<Vec<(String, u32, u16)>>,
    },
    /// A service is new, or has another table, or anything of it changes.
    Service {
        /// Its id.
        id: u16,
        /// What it is from now on, table included.
        service: ActualService,
    },
    /// A service is gone. Its region is free once the lookup has been swapped.
    RemoveService {
        /// Its id.
        id: u16,
    },
    /// The lookup is laid out anew from the services as they are then, and swapped whole.
    SwapDirectory,
    /// No slot and no flow names the backend any more: its number is free.
    RemoveBackend {
        /// Its number.
        number: u16,
    },
}

impl Actual {
    /// Nothing yet.
    #[must_use]
    pub fn empty(slots: u32, services: u32, backends: u32, bucket_bits: u8) -> Self {
        Self {
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            regions: Regions::new(slots),
            service_capacity: services,
            backend_capacity: backends,
            bucket_bits,
        }
    }

    /// The id of the service with this name.
    #[must_use]
    pub fn service_id(&self, name: &str) -> Option<u16> {
        self.services
            .iter()
            .find(|(_, service)| service.name == name)
            .map(|(id, _)| *id)
    }

    /// The number of a service's backend.
    #[must_use]
    pub fn backend_number(&self, service: u16, name: &str, address: Ipv4Addr) -> Option<u16> {
        self.backends
            .iter()
            .find(|(_, b)| b.service == service && b.name == name && b.address == address)
            .map(|(number, _)| *number)
    }

    /// The lowest free service id.
    #[must_use]
    pub fn free_service_id(&self, taken: &BTreeSet<u16>) -> Option<u16> {
        (0..self.service_capacity.min(1 << 16) as u16)
            .find(|id| !self.services.contains_key(id) && !taken.contains(id))
    }

    /// The lowest free backend number.
    #[must_use]
    pub fn free_backend_number(&self, taken: &BTreeSet<u16>) -> Option<u16> {
        (1..self.backend_capacity)
            .map(|number| number as u16)
            .find(|number| !self.backends.contains_key(number) && !taken.contains(number))
    }

    /// Takes an operation into the picture; `now` dates the slots' changes.
    pub fn apply(&mut self, op: &Op, now: Millis) {
        match op {
            Op::Backend { number, backend } => {
                self.backends.insert(*number, backend.clone());
            }
            Op::Slots {
                service,
                changes,
                built_for,
            } => {
                let Some(service) = self.services.get_mut(service) else {
                    return;
                };
                for (index, slot) in changes {
                    service.slots[*index as usize] = *slot;
                    service.changed[*index as usize] = now;
                }
                if let Some(built_for) = built_for {
                    service.built_for.clone_from(built_for);
                }
            }
            Op::Service { id, service } => {
                if let Some(old) = self.services.get(id)
                    && (old.offset, old.bits) != (service.offset, service.bits)
                {
                    self.regions.release(old.offset);
                }
                self.regions.occupy(service.offset, service.bits);
                self.services.insert(*id, service.clone());
            }
            Op::RemoveService { id } => {
                if let Some(old) = self.services.remove(id) {
                    self.regions.release(old.offset);
                }
            }
            Op::SwapDirectory => {}
            Op::RemoveBackend { number } => {
                self.backends.remove(number);
            }
        }
    }
}
