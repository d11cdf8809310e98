//! What each map is made like, what it takes of the kernel's memory, and whether a pin is one of ours.

use std::{
    io,
    path::{Path, PathBuf},
};

use aya::maps::{MapData, MapInfo, MapType};
use lb_common::{
    abi::{
        AREA, AREAS_IN_LINE, AreaLine, BACKEND_NUMBERS, BackendInfo, Bucket, Control, Counter,
        Fence, HOT_LINES, HOT_WAYS, HotInfo, HotLine, MAX_PORTS, Port, Presence, SLOTS_IN_LINE,
        SampleRing, ServiceInfo, SlotLine, Vip6, map,
    },
    flow::{FlowBucket, FlowBucket6},
    memory::Word64,
    tables::Event,
    verdict::Verdict,
};

use super::{DataplaneError, Sizes};

/// A map as it is, or as it will be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapFacts {
    /// Its name.
    pub name: &'static str,
    /// Its type, as the kernel names it.
    pub kind: &'static str,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// How many values there are.
    pub max_entries: u32,
    /// Bytes of memory that the kernel takes for the values: see [`memory`].
    pub memory: u64,
}

/// A map's type and sizes, as `lb_common::abi` has them.
pub(super) struct Layout {
    pub(super) name: &'static str,
    pub(super) kind: MapType,
    pub(super) value_size: u32,
    /// Made with `BPF_F_MMAPABLE`.
    mapped: bool,
    /// All elements are one value to the kernel, see `lb_common::abi`; then `value_size` is that of an element.
    direct: bool,
}

const fn layout<T>(name: &'static str, kind: MapType) -> Layout {
    Layout {
        name,
        kind,
        value_size: size_of::<T>() as u32,
        mapped: false,
        direct: false,
    }
}

const fn mapped<T>(name: &'static str) -> Layout {
    Layout {
        mapped: true,
        ..layout::<T>(name, MapType::Array)
    }
}

const fn direct<T>(name: &'static str) -> Layout {
    Layout {
        direct: true,
        ..mapped::<T>(name)
    }
}

/// Every map there is, in the order of [`map::ALL`].
pub(super) const LAYOUTS: [Layout; map::ALL.len()] = [
    direct::<Control>(map::CONTROL),
    direct::<Bucket>(map::SERVICES),
    direct::<SlotLine>(map::SLOTS),
    direct::<AreaLine>(map::AREAS),
    direct::<Word64>(map::BACKENDS),
    layout::<Port>(map::PORTS, MapType::Array),
    // `struct bpf_devmap_val`: interface index and program.
    layout::<[u32; 2]>(map::REDIRECT, MapType::DevMap),
    mapped::<FlowBucket>(map::FLOWS),
    mapped::<FlowBucket6>(map::FLOWS6),
    mapped::<FlowBucket>(map::FRAGMENTS),
    direct::<Vip6>(map::VIPS),
    layout::<Counter>(map::COUNTERS, MapType::PerCpuArray),
    layout::<u64>(map::VERDICTS, MapType::PerCpuArray),
    layout::<u64>(map::EVENTS, MapType::PerCpuArray),
    layout::<ServiceInfo>(map::SERVICE_INFO, MapType::Array),
    layout::<BackendInfo>(map::BACKEND_INFO, MapType::Array),
    layout::<HotLine>(map::HOT, MapType::Array),
    layout::<HotInfo>(map::HOT_INFO, MapType::Array),
    layout::<SampleRing>(map::SAMPLES, MapType::Array),
    mapped::<Fence>(map::FENCES),
    mapped::<Presence>(map::PRESENCES),
];

/// How many entries a map gets when the maps are made for `sizes`; `None` where the kernel object says it.
pub(super) fn entries_of(name: &str, sizes: &Sizes) -> Option<u32> {
    match name {
        map::SERVICES => Some(sizes.service_buckets),
        map::SLOTS => Some(sizes.slots / SLOTS_IN_LINE),
        map::AREAS => Some((sizes.slots / AREA).div_ceil(AREAS_IN_LINE)),
        map::BACKENDS => Some(BACKEND_NUMBERS),
        map::COUNTERS | map::BACKEND_INFO | map::FENCES => Some(sizes.backends),
        map::FLOWS => Some(sizes.flow_buckets),
        map::FLOWS6 => Some(sizes.flow6_buckets),
        map::FRAGMENTS => Some(sizes.fragment_buckets),
        map::SERVICE_INFO | map::VIPS | map::PRESENCES => Some(sizes.services),
        _ => None,
    }
}

/// The maps as they will be made for `sizes` on a machine of so many processors.
#[must_use]
pub fn planned(sizes: &Sizes, cpus: u64) -> Vec<MapFacts> {
    LAYOUTS
        .iter()
        .map(|layout| {
            let entries = entries_of(layout.name, sizes).unwrap_or(match layout.name {
                map::PORTS | map::REDIRECT => MAX_PORTS,
                map::HOT => HOT_LINES,
                map::HOT_INFO => HOT_LINES * HOT_WAYS as u32,
                map::SAMPLES => u32::try_from(cpus).unwrap_or(u32::MAX),
                map::VERDICTS => Verdict::COUNT as u32,
                map::EVENTS => Event::COUNT as u32,
                _ => 1,
            });
            layout.facts(4, layout.value_size, entries, cpus)
        })
        .collect()
}

/// How many processors a per-CPU map has values for: all that this machine could have.
///
/// # Errors
/// [`DataplaneError::Io`] where the kernel does not tell.
pub fn processors() -> Result<u64, DataplaneError> {
    let cpus = aya::util::nr_cpus().map_err(|(what, source)| {
        DataplaneError::io(format!("counting the processors ({what})"), source)
    })?;
    Ok(cpus as u64)
}

impl Layout {
    /// How many elements there are in what the kernel describes so; `None` where that is not a map of this layout.
    pub(super) fn elements(&self, value_size: u32, max_entries: u32) -> Option<u32> {
        if !self.direct {
            return (value_size == self.value_size).then_some(max_entries);
        }
        let whole = max_entries == 1 && value_size.is_multiple_of(self.value_size);
        whole.then(|| value_size / self.value_size)
    }

    fn facts(&self, key_size: u32, value_size: u32, max_entries: u32, cpus: u64) -> MapFacts {
        let kind = match self.kind {
            MapType::PerCpuArray => "percpu_array",
            MapType::DevMap => "devmap",
            _ => "array",
        };
        MapFacts {
            name: self.name,
            kind,
            key_size,
            value_size,
            max_entries,
            memory: self.memory(value_size, max_entries, cpus),
        }
    }

    /// What the kernel takes for the values: `array_map_mem_usage` in `kernel/bpf/arraymap.c` and `dev_map_mem_usage` in
    /// `kernel/bpf/devmap.c`, less the few hundred bytes of the map itself.
    fn memory(&self, value_size: u32, max_entries: u32, cpus: u64) -> u64 {
        const PAGE: u64 = 4096;
        const POINTER: u64 = 8;
        let entries = u64::from(max_entries);
        let values = u64::from(value_size).next_multiple_of(8) * entries;
        match self.kind {
            MapType::PerCpuArray => entries * POINTER + values * cpus,
            MapType::DevMap => entries * POINTER,
            _ if self.mapped => values.next_multiple_of(PAGE),
            _ => values,
        }
    }
}

/// The directory of the maps below the pin path.
#[must_use]
pub fn maps_dir(pin_path: &Path) -> PathBuf {
    pin_path.join("maps")
}

/// Opens the pin of one map, which must be of our type and sizes.
pub(super) fn open(dir: &Path, layout: &Layout) -> Result<MapData, DataplaneError> {
    let path = dir.join(layout.name);
    let data = MapData::from_pin(&path).map_err(|error| {
        let denied = matches!(
            &error,
            aya::maps::MapError::SyscallError(call) if call.io_error.kind() == io::ErrorKind::PermissionDenied
        );
        if denied {
            DataplaneError::Privileges { what: format!("opening {}", path.display()) }
        } else {
            DataplaneError::map(layout.name, error)
        }
    })?;
    let info = info(layout.name, &data)?;
    let kind = info.map_type().ok();
    let elements = layout.elements(info.value_size(), info.max_entries());
    // aya takes whatever is pinned; a wrong type or size would be read as nonsense.
    if kind != Some(layout.kind) || info.key_size() != 4 || elements.is_none() {
        let wanted = if layout.direct {
            format!("one value of elements of {}", layout.value_size)
        } else {
            format!("values of {}", layout.value_size)
        };
        return Err(DataplaneError::Foreign {
            path: path.display().to_string(),
            what: format!(
                "it is {kind:?} with {}-byte keys and {} values of {} bytes instead of {:?} with 4-byte keys and {wanted}",
                info.key_size(),
                info.max_entries(),
                info.value_size(),
                layout.kind,
            ),
        });
    }
    Ok(data)
}

pub(super) fn info(name: &'static str, data: &MapData) -> Result<MapInfo, DataplaneError> {
    data.info().map_err(|e| DataplaneError::map(name, e))
}

/// A map that is there, as the kernel describes it; of a direct one its elements.
pub(super) fn facts_of(layout: &Layout, info: &MapInfo) -> Result<MapFacts, DataplaneError> {
    let elements = layout.elements(info.value_size(), info.max_entries());
    Ok(layout.facts(
        info.key_size(),
        layout.value_size,
        elements.unwrap_or(0),
        processors()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(sizes: &Sizes, cpus: u64) -> u64 {
        planned(sizes, cpus).iter().map(|facts| facts.memory).sum()
    }

    #[test]
    fn default_maps_take_a_few_mebibytes() {
        let bytes = total(&Sizes::default(), 8);
        assert!((8 << 20..64 << 20).contains(&bytes), "{bytes}");
        let double = Sizes {
            slots: 2 * Sizes::default().slots,
            ..Sizes::default()
        };
        let slots = u64::from(Sizes::default().slots);
        let areas = slots / u64::from(AREA);
        assert_eq!(total(&double, 8) - bytes, slots * 4 + areas * 2);
    }

    #[test]
    fn a_direct_map_is_one_value_of_whole_elements() {
        let of = |name: &str, value_size, max_entries| {
            let layout = LAYOUTS.iter().find(|layout| layout.name == name);
            layout
                .expect("it is one of them")
                .elements(value_size, max_entries)
        };
        assert_eq!(of(map::SLOTS, 64 * 5, 1), Some(5));
        assert_eq!(of(map::SLOTS, 64 * 5 + 4, 1), None, "a part is left over");
        assert_eq!(of(map::SLOTS, 64, 5), None, "as version 3 had it");
        assert_eq!(of(map::FLOWS, 64, 5), Some(5));
        assert_eq!(of(map::FLOWS, 64 * 5, 1), None, "it is not direct");
        for (name, _) in map::DIRECT {
            assert!(
                LAYOUTS
                    .iter()
                    .any(|layout| layout.name == name && layout.direct)
            );
        }
    }

    #[test]
    fn values_of_each_processor_are_counted() {
        let sizes = Sizes::default();
        let of = |cpus| {
            let counters = planned(&sizes, cpus)
                .into_iter()
                .find(|facts| facts.name == map::COUNTERS);
            counters.expect("it is one of them").memory
        };
        assert_eq!(of(4) - of(3), u64::from(sizes.backends) * 16);
    }

    /// The largest flow table of any appliance that is sold: 25.6 million flows.
    #[test]
    fn twenty_five_million_flows_take_two_gibibytes() {
        let sizes = Sizes::of(25_600_000, 1 << 20, 4096, 65_536);
        let flows = planned(&sizes, 2)
            .into_iter()
            .find(|facts| facts.name == map::FLOWS);
        assert_eq!(flows.expect("it is one of them").memory, 2 << 30);
    }
}
