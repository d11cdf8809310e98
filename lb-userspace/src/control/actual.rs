//! What is: the controller's picture of what the maps hold, kept in step with every operation.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use lb_common::{
    abi::BackendState,
    pick::{Affinity, Backend, Slot},
    service::{Directory, ServiceValue},
};

use super::{
    directory::{Entries, Layout},
    following::Following,
    hot::{HotSource, Source},
    regions::Regions,
    retarget::Track,
};

/// Milliseconds of a clock that only goes forward.
pub type Millis = u64;

/// For whom a table is built: all backends of the priority that new flows go to, in their order; none, where nobody takes any.
pub type BuiltFor = Vec<Share>;

/// A backend's part in a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share {
    /// Name and address. It stays where it is as long as the backend does, so that a failure of one among a thousand copies no
    /// names.
    pub identity: Arc<str>,
    /// The configuration's weight.
    pub configured: u32,
    /// The weight in force; 0 if it takes no new flows.
    pub weight: u32,
    /// Its number.
    pub number: u16,
}

/// Everything the maps hold.
///
/// Changed by [`Actual::apply`] alone, which keeps the indexes in step: a failure is applied in a time that does not depend
/// on how many other services and backends there are.
#[derive(Clone, Debug)]
pub struct Actual {
    services: BTreeMap<u16, ActualService>,
    backends: BTreeMap<u16, ActualBackend>,
    /// Service name -> id.
    ids: HashMap<String, u16>,
    /// Service id -> backend name -> addresses and numbers: several where an address changed and the old one is leaving.
    members: HashMap<u16, HashMap<String, Vec<(IpAddr, u16)>>>,
    /// Service id -> how many of its slots are in transition, where there are any.
    unsettled: BTreeMap<u16, u32>,
    /// Backend number -> how many slots name it.
    named: Vec<Named>,
    /// Backend number -> whether its entry says that it has failed.
    failed: Vec<bool>,
    /// Backends that drain or leave.
    ending: BTreeSet<u16>,
    retired: Retired,
    hot: BTreeMap<Source, HotSource>,
    directory: Directory,
    /// Where the tables lie.
    pub(super) regions: Regions,
    /// How many service ids there are.
    pub service_capacity: u32,
    /// How many backend numbers there are, 0 among them.
    pub backend_capacity: u32,
    /// log2 of the buckets in one half of the service lookup.
    pub bucket_bits: u8,
}

/// How many slots of all tables name a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// As the current one.
    pub current: u32,
    /// As the previous one.
    pub previous: u32,
}

/// What has no owner any more, but may still be named by the record of a flow: a new owner would inherit flows that are not
/// its own. The sweep frees what it finds named nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retired {
    /// Service ids.
    pub services: BTreeSet<u16>,
    /// Backend numbers.
    pub backends: BTreeSet<u16>,
}

impl Retired {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.backends.is_empty()
    }
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
    /// Whether a source may be hot (`spread_hot_sources`), or one still is.
    pub spreads: bool,
    /// `track` and `affinity_timeout`.
    pub following: Following,
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
    /// For whom the table was built. `None` where that is not known, as after adoption.
    pub built_for: Option<BuiltFor>,
}

impl ActualService {
    /// Its value in the lookup.
    #[must_use]
    pub fn value(&self, id: u16) -> ServiceValue {
        self.following
            .marked(ServiceValue::new(id, self.offset, self.bits, self.affinity))
            .spreading(self.spreads)
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
    pub address: IpAddr,
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
        built_for: Option<BuiltFor>,
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
    /// The lookup is laid out anew in the half that is not in use, and swapped whole.
    SwapDirectory {
        /// What that half holds from now on.
        layout: Layout,
    },
    /// A backend has nothing to do with any service any more. Its number is retired.
    RemoveBackend {
        /// Its number.
        number: u16,
    },
    /// A source is spread from now on, or no more; or that change is over.
    Hot {
        /// Whose.
        source: Source,
        /// What it is from now on; `None` where it is as any other.
        entry: Option<HotSource>,
    },
    /// No slot and no record names these any more: they can have new owners.
    Release(Retired),
}

impl Actual {
    /// Nothing yet.
    #[must_use]
    pub fn empty(slots: u32, services: u32, backends: u32, bucket_bits: u8) -> Self {
        Self {
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            ids: HashMap::new(),
            members: HashMap::new(),
            unsettled: BTreeMap::new(),
            named: vec![Named::default(); 1 << 16],
            failed: vec![false; 1 << 16],
            ending: BTreeSet::new(),
            retired: Retired::default(),
            hot: BTreeMap::new(),
            directory: Directory(0),
            regions: Regions::new(slots),
            service_capacity: services,
            backend_capacity: backends,
            bucket_bits,
        }
    }

    /// By id.
    #[must_use]
    pub const fn services(&self) -> &BTreeMap<u16, ActualService> {
        &self.services
    }

    /// By number.
    #[must_use]
    pub const fn backends(&self) -> &BTreeMap<u16, ActualBackend> {
        &self.backends
    }

    /// The services with a slot in transition.
    pub fn unsettled(&self) -> impl Iterator<Item = (u16, &ActualService)> {
        self.unsettled
            .keys()
            .filter_map(|id| Some((*id, self.services.get(id)?)))
    }

    /// How many slots of a service are in transition.
    #[must_use]
    pub fn in_transition(&self, service: u16) -> u32 {
        self.unsettled.get(&service).copied().unwrap_or(0)
    }

    /// How many slots name a backend.
    #[must_use]
    pub fn named(&self, number: u16) -> Named {
        self.named[usize::from(number)]
    }

    /// Whether any slot names a backend.
    #[must_use]
    pub fn is_named(&self, number: u16) -> bool {
        self.named(number) != Named::default()
    }

    /// Whether a backend's entry says that it has failed; not so where nobody has the number.
    #[must_use]
    pub fn has_failed(&self, number: u16) -> bool {
        self.failed[usize::from(number)]
    }

    /// The backends that drain or leave, by number.
    pub fn ending(&self) -> impl Iterator<Item = (u16, &ActualBackend)> {
        self.ending
            .iter()
            .filter_map(|number| Some((*number, self.backends.get(number)?)))
    }

    /// The sources that are spread by their ports, or were until lately.
    #[must_use]
    pub const fn hot(&self) -> &BTreeMap<Source, HotSource> {
        &self.hot
    }

    /// The hot sources of a service.
    pub fn hot_of(&self, service: u16) -> impl Iterator<Item = (&Source, &HotSource)> {
        self.hot.range(Source::range(service))
    }

    /// Whether a source of this service is hot, or was until lately.
    #[must_use]
    pub fn has_hot(&self, service: u16) -> bool {
        self.hot_of(service).next().is_some()
    }

    /// What may not have a new owner yet.
    #[must_use]
    pub const fn retired(&self) -> &Retired {
        &self.retired
    }

    /// How the lookup is laid out; 0 where there is none yet.
    #[must_use]
    pub const fn directory(&self) -> Directory {
        self.directory
    }

    /// The id of the service with this name.
    #[must_use]
    pub fn service_id(&self, name: &str) -> Option<u16> {
        self.ids.get(name).copied()
    }

    /// The number of a service's backend.
    #[must_use]
    pub fn backend_number(&self, service: u16, name: &str, address: IpAddr) -> Option<u16> {
        self.members
            .get(&service)?
            .get(name)?
            .iter()
            .find(|(known, _)| *known == address)
            .map(|(_, number)| *number)
    }

    /// The backends of a service, those that are leaving among them, by number.
    #[must_use]
    pub fn backends_of(&self, service: u16) -> Vec<(u16, &ActualBackend)> {
        let mut found: Vec<_> = self
            .members
            .get(&service)
            .into_iter()
            .flat_map(HashMap::values)
            .flatten()
            .map(|(_, number)| (*number, &self.backends[number]))
            .collect();
        found.sort_unstable_by_key(|(number, _)| *number);
        found
    }

    /// Whether a new service may get this id.
    #[must_use]
    pub fn is_free_id(&self, id: u16) -> bool {
        !self.services.contains_key(&id)
            && !self.retired.services.contains(&id)
            && !self.has_hot(id)
    }

    /// Whether a new backend may get this number.
    #[must_use]
    pub fn is_free_number(&self, number: u16) -> bool {
        !self.backends.contains_key(&number) && !self.retired.backends.contains(&number)
    }

    /// Takes an operation into the picture; `now` dates the slots' changes.
    pub fn apply(&mut self, op: &Op, now: Millis) {
        match op {
            Op::Backend { number, backend } => self.insert_backend(*number, backend.clone()),
            Op::Slots {
                service: id,
                changes,
                built_for,
            } => {
                let Some(service) = self.services.get_mut(id) else {
                    return;
                };
                let mut unsettled = self.unsettled.get(id).copied().unwrap_or(0);
                for (index, slot) in changes {
                    let old = std::mem::replace(&mut service.slots[*index as usize], *slot);
                    service.changed[*index as usize] = now;
                    uncount(&mut self.named, old);
                    count(&mut self.named, *slot);
                    unsettled = unsettled + u32::from(slot.in_transition())
                        - u32::from(old.in_transition());
                }
                if built_for.is_some() {
                    service.built_for.clone_from(built_for);
                }
                self.set_unsettled(*id, unsettled);
            }
            Op::Service { id, service } => self.insert_service(*id, service.clone()),
            Op::RemoveService { id } => {
                if let Some(old) = self.services.remove(id) {
                    self.regions.release(old.offset);
                    self.ids.remove(&old.name);
                    self.unsettled.remove(id);
                    old.slots
                        .iter()
                        .for_each(|slot| uncount(&mut self.named, *slot));
                }
                self.retired.services.insert(*id);
            }
            Op::SwapDirectory { layout } => self.directory = layout.directory,
            Op::Hot {
                source,
                entry: Some(entry),
            } => {
                let changed = now;
                self.hot.insert(*source, HotSource { changed, ..*entry });
            }
            Op::Hot {
                source,
                entry: None,
            } => {
                self.hot.remove(source);
            }
            Op::RemoveBackend { number } => {
                self.forget_backend(*number);
                self.retired.backends.insert(*number);
            }
            Op::Release(released) => {
                for id in &released.services {
                    self.retired.services.remove(id);
                }
                for number in &released.backends {
                    self.retired.backends.remove(number);
                }
            }
        }
    }

    /// Dates what an operation changed at `began` or later to `ended`: until its last store was done, packets saw the state
    /// before.
    pub fn redate(&mut self, op: &Op, began: Millis, ended: Millis) {
        match op {
            Op::Slots {
                service, changes, ..
            } => {
                if let Some(service) = self.services.get_mut(service) {
                    for (index, _) in changes {
                        service.changed[*index as usize] = ended;
                    }
                }
            }
            Op::Service { id, .. } => {
                if let Some(service) = self.services.get_mut(id) {
                    for changed in service.changed.iter_mut().filter(|c| **c >= began) {
                        *changed = ended;
                    }
                }
            }
            Op::Hot { source, .. } => {
                if let Some(hot) = self.hot.get_mut(source) {
                    hot.changed = ended;
                }
            }
            _ => {}
        }
    }

    /// Notes a hot source's share as measured last.
    pub fn set_share(&mut self, source: Source, share_ppm: u32) {
        if let Some(hot) = self.hot.get_mut(&source) {
            hot.share_ppm = share_ppm;
        }
    }

    pub(super) fn insert_hot(&mut self, source: Source, hot: HotSource) {
        self.hot.insert(source, hot);
    }

    /// Takes in what is pinned: the words of the lookup, and what must not have a new owner yet.
    pub(super) fn take_over(&mut self, directory: Directory, retired: Retired) {
        self.directory = directory;
        self.retired = retired;
    }

    pub(super) fn insert_service(&mut self, id: u16, service: ActualService) {
        if let Some(old) = self.services.get(&id) {
            if (old.offset, old.bits) != (service.offset, service.bits) {
                self.regions.release(old.offset);
            }
            self.ids.remove(&old.name);
            old.slots
                .iter()
                .for_each(|slot| uncount(&mut self.named, *slot));
        }
        self.regions.occupy(service.offset, service.bits);
        self.ids.insert(service.name.clone(), id);
        let mut unsettled = 0;
        for slot in &service.slots {
            count(&mut self.named, *slot);
            unsettled += u32::from(slot.in_transition());
        }
        self.services.insert(id, service);
        self.set_unsettled(id, unsettled);
    }

    pub(super) fn insert_backend(&mut self, number: u16, backend: ActualBackend) {
        let same = self.backends.get(&number).is_some_and(|old| {
            (old.service, &old.name, old.address)
                == (backend.service, &backend.name, backend.address)
        });
        if !same {
            self.forget_backend(number);
            self.members
                .entry(backend.service)
                .or_default()
                .entry(backend.name.clone())
                .or_default()
                .push((backend.address, number));
        }
        if matches!(
            backend.state,
            BackendState::Draining | BackendState::Leaving
        ) {
            self.ending.insert(number);
        } else {
            self.ending.remove(&number);
        }
        self.failed[usize::from(number)] = backend.entry.failed();
        self.backends.insert(number, backend);
    }

    fn forget_backend(&mut self, number: u16) {
        let Some(old) = self.backends.remove(&number) else {
            return;
        };
        self.ending.remove(&number);
        self.failed[usize::from(number)] = false;
        let Some(names) = self.members.get_mut(&old.service) else {
            return;
        };
        if let Some(numbers) = names.get_mut(&old.name) {
            numbers.retain(|(_, other)| *other != number);
            if numbers.is_empty() {
                names.remove(&old.name);
            }
        }
        if names.is_empty() {
            self.members.remove(&old.service);
        }
    }

    fn set_unsettled(&mut self, id: u16, slots: u32) {
        if slots == 0 {
            self.unsettled.remove(&id);
        } else {
            self.unsettled.insert(id, slots);
        }
    }
}

fn count(named: &mut [Named], slot: Slot) {
    named[usize::from(slot.current())].current += 1;
    if slot.in_transition() {
        named[usize::from(slot.previous())].previous += 1;
    }
}

fn uncount(named: &mut [Named], slot: Slot) {
    named[usize::from(slot.current())].current -= 1;
    if slot.in_transition() {
        named[usize::from(slot.previous())].previous -= 1;
    }
}
