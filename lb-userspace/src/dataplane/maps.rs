//! The maps, behind one typed facade: no map name and no aya type is seen outside `dataplane`.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use aya::{
    Ebpf, Pod,
    maps::{Array, Map, MapData, PerCpuArray, xdp::DevMap},
};
use lb_common::{
    abi::{
        ABI_VERSION, AREAS_IN_LINE, AreaLine, BackendInfo, Bucket, Control, Counter, Fence,
        HOT_WAYS, HotInfo, HotLine, MAGIC, MAX_PORTS, Port, Presence, SLOTS_IN_LINE, SampleRing,
        ServiceInfo, SlotLine, Vip6, map,
    },
    address::Ipv6,
    features::Features,
    flow::{FlowBucket, FlowBucket6},
    hot::HotWord,
    memory::Word64,
    pick::{Backend, Slot},
    tables::Event,
    verdict::Verdict,
};

use super::{
    DataplaneError, batch, direct,
    layout::{LAYOUTS, Layout, MapFacts, facts_of, info, maps_dir, open, processors},
    mapped::Mapped,
};

/// What the maps are opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For looking: `maps`, `flows`, `where`.
    Read,
    /// For the controller.
    Write,
}

/// Lets aya copy a type of `lb_common::abi` into and out of a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Plain<T>(T);

// SAFETY: repr(C), no padding (size asserts in abi.rs), only integers and byte arrays.
unsafe impl Pod for Plain<Port> {}
// SAFETY: as above.
unsafe impl Pod for Plain<Counter> {}
// SAFETY: as above.
unsafe impl Pod for Plain<ServiceInfo> {}
// SAFETY: as above.
unsafe impl Pod for Plain<BackendInfo> {}
// SAFETY: as above.
unsafe impl Pod for Plain<HotInfo> {}

/// Every map of the data path.
pub struct Maps {
    control: Mapped<Control>,
    services: Mapped<Bucket>,
    slots: Mapped<SlotLine>,
    areas: Mapped<AreaLine>,
    backends: Mapped<Word64>,
    flows: Mapped<FlowBucket>,
    flows6: Mapped<FlowBucket6>,
    fragments: Mapped<FlowBucket>,
    vips: Mapped<Vip6>,
    ports: Array<MapData, Plain<Port>>,
    redirect: DevMap<MapData>,
    counters: PerCpuArray<MapData, Plain<Counter>>,
    /// The same map, for reading many at once.
    counters_fd: Option<OwnedFd>,
    /// How many values each of its entries has.
    processors: usize,
    verdicts: PerCpuArray<MapData, u64>,
    events: PerCpuArray<MapData, u64>,
    service_info: Array<MapData, Plain<ServiceInfo>>,
    backend_info: Array<MapData, Plain<BackendInfo>>,
    hot: Mapped<HotLine>,
    hot_info: Array<MapData, Plain<HotInfo>>,
    samples: Mapped<SampleRing>,
    fences: Mapped<Fence>,
    presences: Mapped<Presence>,
    facts: Vec<MapFacts>,
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maps")
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

impl Maps {
    /// Opens the maps pinned under `pin_path`.
    ///
    /// # Errors
    /// [`DataplaneError::NotPinned`] where there are none, [`DataplaneError::HalfMade`] where they carry no version yet,
    /// [`DataplaneError::OtherVersion`] and
    /// [`DataplaneError::Foreign`] where they are not ours, [`DataplaneError::Privileges`] without root.
    pub fn open_pinned(pin_path: &Path, access: Access) -> Result<Self, DataplaneError> {
        let dir = maps_dir(pin_path);
        match std::fs::symlink_metadata(dir.join(map::CONTROL)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DataplaneError::NotPinned {
                    path: pin_path.display().to_string(),
                });
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(DataplaneError::Privileges {
                    what: format!("reading the maps under {}", pin_path.display()),
                });
            }
            Err(error) => {
                return Err(DataplaneError::io(
                    format!("looking at {}", dir.display()),
                    error,
                ));
            }
        }
        // The version first: another version may well have other maps.
        let control = open(&dir, &LAYOUTS[0])?;
        let mapped = map_memory::<Control>(&control, &LAYOUTS[0], access)?;
        let word = mapped.get().first();
        if word.is_some_and(|word| word.magic.get() == 0 && word.abi.get() == 0) {
            return Err(DataplaneError::HalfMade {
                path: pin_path.display().to_string(),
            });
        }
        if word.is_none_or(|word| word.magic.get() != MAGIC) {
            return Err(DataplaneError::Foreign {
                path: dir.join(map::CONTROL).display().to_string(),
                what: "its first word is not xdp-lb's".into(),
            });
        }
        let found = word.map_or(0, |word| word.abi.get());
        if found != ABI_VERSION {
            return Err(DataplaneError::OtherVersion {
                path: pin_path.display().to_string(),
                found,
                expected: ABI_VERSION,
            });
        }
        drop(mapped);
        Self::assemble(|layout| open(&dir, layout), access)
    }

    /// Opens maps that were pinned just now and carry no version yet.
    ///
    /// # Errors
    /// As [`Self::open_pinned`].
    pub fn open_unmarked(pin_path: &Path) -> Result<Self, DataplaneError> {
        let dir = maps_dir(pin_path);
        Self::assemble(|layout| open(&dir, layout), Access::Write)
    }

    /// Takes the maps out of a loaded object.
    ///
    /// # Errors
    /// [`DataplaneError::Map`] where a map is missing or has another layout.
    pub fn of_object(object: &mut Ebpf) -> Result<Self, DataplaneError> {
        Self::assemble(
            |layout| {
                let map = object
                    .take_map(direct::section_of(layout.name).unwrap_or(layout.name))
                    .ok_or_else(|| DataplaneError::Foreign {
                        path: layout.name.into(),
                        what: "the kernel object does not have it".into(),
                    })?;
                match map {
                    Map::Array(data) | Map::PerCpuArray(data) | Map::DevMap(data) => Ok(data),
                    other => Err(DataplaneError::Foreign {
                        path: layout.name.into(),
                        what: format!("it is another type of map: {other:?}"),
                    }),
                }
            },
            Access::Write,
        )
    }

    fn assemble(
        mut get: impl FnMut(&Layout) -> Result<MapData, DataplaneError>,
        access: Access,
    ) -> Result<Self, DataplaneError> {
        let [
            control,
            services,
            slots,
            areas,
            backends,
            ports,
            redirect,
            flows,
            flows6,
            fragments,
            vips,
            counters,
            verdicts,
            events,
            service_info,
            backend_info,
            hot,
            hot_info,
            samples,
            fences,
            presences,
        ] = &LAYOUTS;
        let mut facts = Vec::new();
        let mut counters_fd = None;
        let mut take = |layout: &Layout| -> Result<MapData, DataplaneError> {
            let data = get(layout)?;
            facts.push(facts_of(layout, &info(layout.name, &data)?)?);
            if layout.name == map::COUNTERS {
                let twice = data.fd().as_fd().try_clone_to_owned();
                counters_fd = twice.ok();
            }
            Ok(data)
        };
        Ok(Self {
            control: map_memory(&take(control)?, control, access)?,
            services: map_memory(&take(services)?, services, access)?,
            slots: map_memory(&take(slots)?, slots, access)?,
            areas: map_memory(&take(areas)?, areas, access)?,
            backends: map_memory(&take(backends)?, backends, access)?,
            ports: Array::try_from(Map::Array(take(ports)?))
                .map_err(|e| DataplaneError::map(ports.name, e))?,
            redirect: DevMap::try_from(Map::DevMap(take(redirect)?))
                .map_err(|e| DataplaneError::map(redirect.name, e))?,
            flows: map_memory(&take(flows)?, flows, access)?,
            flows6: map_memory(&take(flows6)?, flows6, access)?,
            fragments: map_memory(&take(fragments)?, fragments, access)?,
            vips: map_memory(&take(vips)?, vips, access)?,
            counters: per_cpu(take(counters)?, counters.name)?,
            processors: usize::try_from(processors()?).unwrap_or(usize::MAX),
            verdicts: per_cpu(take(verdicts)?, verdicts.name)?,
            events: per_cpu(take(events)?, events.name)?,
            service_info: Array::try_from(Map::Array(take(service_info)?))
                .map_err(|e| DataplaneError::map(service_info.name, e))?,
            backend_info: Array::try_from(Map::Array(take(backend_info)?))
                .map_err(|e| DataplaneError::map(backend_info.name, e))?,
            hot: map_memory(&take(hot)?, hot, access)?,
            hot_info: Array::try_from(Map::Array(take(hot_info)?))
                .map_err(|e| DataplaneError::map(hot_info.name, e))?,
            samples: map_memory(&take(samples)?, samples, access)?,
            fences: map_memory(&take(fences)?, fences, access)?,
            presences: map_memory(&take(presences)?, presences, access)?,
            counters_fd,
            facts,
        })
    }

    /// What the whole data path shares.
    ///
    /// # Panics
    /// Never: the map has one element.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control.get()[0]
    }

    /// What the attached programs know.
    #[must_use]
    pub fn features(&self) -> Features {
        Features(self.control().features.get() as u32)
    }

    /// Says what they know, so that `where` and the next controller think likewise.
    pub fn set_features(&self, features: Features) {
        assert!(self.control.writable(), "maps opened for reading");
        self.control().features.set(u64::from(features.0));
    }

    /// The service lookup, both halves.
    #[must_use]
    pub fn service_buckets(&self) -> &[Bucket] {
        self.services.get()
    }

    /// How many slots there are, all tables together.
    #[must_use]
    pub fn slot_capacity(&self) -> u32 {
        u32::try_from(self.slots.get().len())
            .unwrap_or(u32::MAX)
            .saturating_mul(SLOTS_IN_LINE)
    }

    /// The slot at an index counted over all tables.
    #[must_use]
    pub fn slot(&self, index: u32) -> Option<Slot> {
        let line = self.slots.get().get((index / SLOTS_IN_LINE) as usize)?;
        Some(Slot(line.slots[(index % SLOTS_IN_LINE) as usize].get()))
    }

    /// Writes a slot: one aligned store.
    pub fn set_slot(&self, index: u32, slot: Slot) {
        assert!(self.slots.writable(), "maps opened for reading");
        self.slots.get()[(index / SLOTS_IN_LINE) as usize].slots[(index % SLOTS_IN_LINE) as usize]
            .set(slot.0);
    }

    /// The backend that has all slots of an area, at an index counted over all tables.
    #[must_use]
    pub fn area(&self, index: u32) -> Option<u16> {
        let line = self.areas.get().get((index / AREAS_IN_LINE) as usize)?;
        Some(line.backends[(index % AREAS_IN_LINE) as usize].get())
    }

    /// Writes it: one aligned store.
    pub fn set_area(&self, index: u32, backend: u16) {
        assert!(self.areas.writable(), "maps opened for reading");
        self.areas.get()[(index / AREAS_IN_LINE) as usize].backends
            [(index % AREAS_IN_LINE) as usize]
            .set(backend);
    }

    /// How many backend numbers may be given away, 0 among them.
    #[must_use]
    pub fn backend_capacity(&self) -> u32 {
        self.backend_info.len()
    }

    /// A backend's entry; all zeros where nobody has this number.
    #[must_use]
    pub fn backend(&self, number: u16) -> Backend {
        let word = self.backends.get().get(usize::from(number));
        Backend(word.map_or(0, Word64::get))
    }

    /// Writes a backend's entry: one aligned store.
    pub fn set_backend(&self, number: u16, backend: Backend) {
        assert!(self.backends.writable(), "maps opened for reading");
        self.backends.get()[usize::from(number)].set(backend.0);
    }

    /// The flow table.
    #[must_use]
    pub fn flow_buckets(&self) -> &[FlowBucket] {
        self.flows.get()
    }

    /// log2 of the number of flow buckets.
    #[must_use]
    pub fn flow_bits(&self) -> u32 {
        self.flows.get().len().max(1).ilog2()
    }

    /// The IPv6 clients' flow table.
    #[must_use]
    pub fn flow6_buckets(&self) -> &[FlowBucket6] {
        self.flows6.get()
    }

    /// log2 of the number of its buckets.
    #[must_use]
    pub fn flow6_bits(&self) -> u32 {
        self.flows6.get().len().max(1).ilog2()
    }

    /// The fragment table.
    #[must_use]
    pub fn fragment_buckets(&self) -> &[FlowBucket] {
        self.fragments.get()
    }

    /// log2 of the number of its buckets.
    #[must_use]
    pub fn fragment_bits(&self) -> u32 {
        self.fragments.get().len().max(1).ilog2()
    }

    /// The IPv6 VIPs, by service id.
    #[must_use]
    pub fn vips(&self) -> &[Vip6] {
        self.vips.get()
    }

    /// Writes the IPv6 VIP of a service. Two words: before any lookup can name the id.
    pub fn set_vip(&self, service: u16, vip: Ipv6) {
        assert!(self.vips.writable(), "maps opened for reading");
        let entry = &self.vips.get()[usize::from(service)];
        entry.high.set(vip.high);
        entry.low.set(vip.low);
    }

    /// The director's interfaces, by port number.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn ports(&self) -> Result<Vec<Port>, DataplaneError> {
        self.ports
            .iter()
            .map(|port| port.map(|port| port.0))
            .collect::<Result<_, _>>()
            .map_err(|e| DataplaneError::map(map::PORTS, e))
    }

    /// Writes one of the director's interfaces, for rewriting and for redirection.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn set_port(&mut self, number: u16, port: Port) -> Result<(), DataplaneError> {
        let index = u32::from(number);
        debug_assert!(index < MAX_PORTS);
        self.ports
            .set(index, Plain(port), 0)
            .map_err(|e| DataplaneError::map(map::PORTS, e))?;
        // A VLAN's frames leave through the port of the interface it is on.
        if port.ifindex != 0 && port.vlan == 0 {
            self.redirect
                .set(index, port.ifindex, None, 0)
                .map_err(|error| {
                    DataplaneError::io("writing map REDIRECT", io::Error::other(error))
                })?;
        }
        Ok(())
    }

    /// The index of the interface that a port number redirects to; 0 where there is none.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn redirect(&self, number: u16) -> Result<u32, DataplaneError> {
        match self.redirect.get(u32::from(number), 0) {
            Ok(value) => Ok(value.if_index),
            // An empty place of a device map is not found.
            Err(aya::maps::MapError::KeyNotFound) => Ok(0),
            Err(error) => Err(DataplaneError::map(map::REDIRECT, error)),
        }
    }

    /// A backend's packets and bytes, all processors together, since the maps were made.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn counter(&self, number: u16) -> Result<Counter, DataplaneError> {
        let values = self
            .counters
            .get(&u32::from(number), 0)
            .map_err(|e| DataplaneError::map(map::COUNTERS, e))?;
        Ok(values
            .iter()
            .fold(Counter::default(), |sum, value| Counter {
                packets: sum.packets.wrapping_add(value.0.packets),
                bytes: sum.bytes.wrapping_add(value.0.bytes),
            }))
    }

    /// The counters of up to `count` backend numbers from `first` on: with one system call, or one for each number where the
    /// kernel is older than 5.13.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn counters(&self, first: u16, count: u16) -> Result<Vec<Counter>, DataplaneError> {
        const WORDS: usize = size_of::<Counter>() / 8;
        let first = u32::from(first);
        let end = (first + u32::from(count)).min(self.backend_capacity());
        let wanted = end.saturating_sub(first) as usize;
        let words = WORDS * self.processors;
        let mut values = vec![0; wanted * words];
        if let Some(fd) = &self.counters_fd {
            // SAFETY: `open` and `of_object` let only a map with values of a `Counter` pass; `words` is that for every
            // processor that there could be.
            let found = unsafe { batch::lookup(fd.as_fd(), first, words, &mut values) };
            if found.is_ok_and(|found| found == wanted) {
                let of_one = |words: &[u64]| {
                    words
                        .chunks_exact(WORDS)
                        .fold(Counter::default(), |sum, one| Counter {
                            packets: sum.packets.wrapping_add(one[0]),
                            bytes: sum.bytes.wrapping_add(one[1]),
                        })
                };
                return Ok(values.chunks_exact(words).map(of_one).collect());
            }
        }
        (first..end)
            .map(|number| self.counter(number as u16))
            .collect()
    }

    /// Packets of each verdict since the maps were made, indexed by [`Verdict`]. Those that reached a backend are
    /// counted by the backends' counters alone, and are 0 here.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn verdicts(&self) -> Result<[u64; Verdict::COUNT], DataplaneError> {
        sums(&self.verdicts).map_err(|e| DataplaneError::map(map::VERDICTS, e))
    }

    /// What the flow table had to do since the maps were made, indexed by [`Event`].
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn events(&self) -> Result<[u64; Event::COUNT], DataplaneError> {
        sums(&self.events).map_err(|e| DataplaneError::map(map::EVENTS, e))
    }

    /// How many services there may be.
    #[must_use]
    pub fn service_capacity(&self) -> u32 {
        self.service_info.len()
    }

    /// A service as people know it; `None` where there is none of this id.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn service_info(&self, id: u16) -> Result<Option<ServiceInfo>, DataplaneError> {
        let info = self
            .service_info
            .get(&u32::from(id), 0)
            .map_err(|e| DataplaneError::map(map::SERVICE_INFO, e))?
            .0;
        Ok((info.name[0] != 0).then_some(info))
    }

    /// Writes it.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn set_service_info(&mut self, id: u16, info: ServiceInfo) -> Result<(), DataplaneError> {
        self.service_info
            .set(u32::from(id), Plain(info), 0)
            .map_err(|e| DataplaneError::map(map::SERVICE_INFO, e))
    }

    /// A backend as people know it; `None` where no backend has this number.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn backend_info(&self, number: u16) -> Result<Option<BackendInfo>, DataplaneError> {
        let info = self
            .backend_info
            .get(&u32::from(number), 0)
            .map_err(|e| DataplaneError::map(map::BACKEND_INFO, e))?
            .0;
        Ok((info.name[0] != 0).then_some(info))
    }

    /// Writes it.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn set_backend_info(
        &mut self,
        number: u16,
        info: BackendInfo,
    ) -> Result<(), DataplaneError> {
        self.backend_info
            .set(u32::from(number), Plain(info), 0)
            .map_err(|e| DataplaneError::map(map::BACKEND_INFO, e))
    }

    /// The hot sources.
    #[must_use]
    pub fn hot_lines(&self) -> &[HotLine] {
        self.hot.get()
    }

    /// Writes the place of a hot source, counted over all lines: one aligned store.
    pub fn set_hot(&self, place: u32, word: HotWord) {
        assert!(self.hot.writable(), "maps opened for reading");
        let place = place as usize;
        self.hot.get()[place / HOT_WAYS].ways[place % HOT_WAYS].set(word.0);
    }

    /// A hot source as people know it; `None` where there is none.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn hot_info(&self, place: u32) -> Result<Option<HotInfo>, DataplaneError> {
        let info = self
            .hot_info
            .get(&place, 0)
            .map_err(|e| DataplaneError::map(map::HOT_INFO, e))?
            .0;
        Ok((info.used != 0).then_some(info))
    }

    /// Writes it.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn set_hot_info(&mut self, place: u32, info: HotInfo) -> Result<(), DataplaneError> {
        self.hot_info
            .set(place, Plain(info), 0)
            .map_err(|e| DataplaneError::map(map::HOT_INFO, e))
    }

    /// The rings of sampled sources, one for each processor.
    #[must_use]
    pub fn sample_rings(&self) -> &[SampleRing] {
        self.samples.get()
    }

    /// What fences the backends of a cluster, by number.
    #[must_use]
    pub fn fences(&self) -> &[Fence] {
        self.fences.get()
    }

    /// What this node's data path tells the peers in a cluster, by a service's place among this node's.
    #[must_use]
    pub fn presences(&self) -> &[Presence] {
        self.presences.get()
    }

    /// What the kernel says about each map, in the order of [`map::ALL`].
    #[must_use]
    pub fn facts(&self) -> &[MapFacts] {
        &self.facts
    }
}

fn per_cpu<T: Pod>(
    data: MapData,
    name: &'static str,
) -> Result<PerCpuArray<MapData, T>, DataplaneError> {
    PerCpuArray::try_from(Map::PerCpuArray(data)).map_err(|e| DataplaneError::map(name, e))
}

fn sums<const N: usize>(
    array: &PerCpuArray<MapData, u64>,
) -> Result<[u64; N], aya::maps::MapError> {
    let mut sums = [0; N];
    for (index, sum) in (0..).zip(sums.iter_mut()) {
        *sum = array
            .get(&index, 0)?
            .iter()
            .fold(0, |sum: u64, value| sum.wrapping_add(*value));
    }
    Ok(sums)
}

fn map_memory<T: super::mapped::Shared>(
    data: &MapData,
    layout: &Layout,
    access: Access,
) -> Result<Mapped<T>, DataplaneError> {
    let info = info(layout.name, data)?;
    let count = layout
        .elements(info.value_size(), info.max_entries())
        .ok_or_else(|| DataplaneError::Foreign {
            path: layout.name.into(),
            what: format!("its values have {} bytes", info.value_size()),
        })?;
    Mapped::new(data.fd().as_fd(), count, access == Access::Write)
        .map_err(|e| DataplaneError::io(format!("mapping the memory of map {}", layout.name), e))
}
