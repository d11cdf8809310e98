//! Loading the kernel object: sizes of the maps, read-only globals, pins.

use std::path::Path;

use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use lb_common::{
    abi::{self, SLOTS_IN_LINE, global, map},
    features::Features,
    pick::Own,
};

use super::{
    DataplaneError, KERNEL_OBJECT, direct,
    layout::{entries_of, maps_dir, processors},
};

/// How large the maps are made. What is pinned already keeps its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Buckets of the service lookup, both halves; a power of two.
    pub service_buckets: u32,
    /// Services.
    pub services: u32,
    /// Slots of all tables together; a power of two, at least 16.
    pub slots: u32,
    /// Backend numbers, 0 among them; at most 65,536.
    pub backends: u32,
    /// Buckets of the flow table, four ways each; a power of two.
    pub flow_buckets: u32,
    /// Buckets of the IPv6 clients' flow table, four ways each; a power of two.
    pub flow6_buckets: u32,
    /// Buckets of the fragment table, four ways each; a power of two.
    pub fragment_buckets: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            service_buckets: abi::DEFAULT_SERVICE_BUCKETS,
            services: abi::DEFAULT_SERVICES,
            slots: abi::DEFAULT_SLOTS,
            backends: abi::DEFAULT_BACKENDS,
            flow_buckets: abi::DEFAULT_FLOW_BUCKETS,
            flow6_buckets: abi::DEFAULT_FLOW6_BUCKETS,
            fragment_buckets: abi::DEFAULT_FRAGMENT_BUCKETS,
        }
    }
}

/// The most buckets of one half of the service lookup.
const MOST_BUCKETS: u32 = (abi::MOST_DIRECT_BYTES / size_of::<abi::Bucket>() as u64 / 2) as u32;

impl Sizes {
    /// The same sizes with an IPv6 flow table for so many flows: as roomy as the other one, see [`Self::of`].
    #[must_use]
    pub fn with_flows6(self, flows6: u32) -> Self {
        Self {
            flow6_buckets: flows6.clamp(1 << 10, 1 << 25).next_power_of_two(),
            ..self
        }
    }

    /// Sizes for a number of flows, slots, backends and (VIP, protocol, port) entries.
    ///
    /// The flow table gets a bucket of four ways for each flow, and at least 1024: a flow has three buckets to choose from,
    /// which in a table a quarter full leaves fewer than one flow in ten million without a place, however flows come and
    /// go (measured for `lb-common/src/flow/table/properties.rs`; half full, one in 30,000). The service lookup gets so many
    /// buckets that a seed under which none overflows is found within a few tries.
    #[must_use]
    pub fn of(flows: u32, slots: u32, backends: u32, entries: u32) -> Self {
        Self {
            service_buckets: 4 * entries.clamp(64, MOST_BUCKETS / 2).next_power_of_two(),
            services: abi::DEFAULT_SERVICES,
            slots: slots.max(1 << 10).next_power_of_two(),
            backends: (backends + 1).min(1 << 16),
            flow_buckets: flows.clamp(1 << 10, 1 << 26).next_power_of_two(),
            flow6_buckets: abi::DEFAULT_FLOW6_BUCKETS,
            fragment_buckets: abi::DEFAULT_FRAGMENT_BUCKETS,
        }
    }
}

impl Sizes {
    /// Buckets of the fragment table for so many fragmented packets on their way: four ways each, and a few even where the
    /// feature is not used, because a map can't be empty.
    #[must_use]
    pub fn fragment_buckets(packets: u32) -> u32 {
        packets
            .div_ceil(abi::WAYS as u32)
            .clamp(16, 1 << 20)
            .next_power_of_two()
    }
}

/// What is fixed in one loaded program: it belongs to one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The interface's MAC address.
    pub mac: [u8; 6],
    /// Its port number.
    pub port: u16,
    /// Whether packets for unserved ports of a VIP go to the host.
    pub unserved_pass: bool,
    /// Buckets of the flow table as it is.
    pub flow_buckets: u32,
    /// Buckets of the IPv6 clients' flow table as it is.
    pub flow6_buckets: u32,
    /// Buckets of the fragment table as it is.
    pub fragment_buckets: u32,
    /// What the configuration uses.
    pub features: Features,
    /// The MAC address of an NLB cluster; all zeros for none.
    pub cluster_mac: [u8; 6],
}

/// Loads the object for one interface; the maps come from the pins under `pin_path`, and are made and pinned there where
/// they are missing. Without a pin path the maps are the object's own.
///
/// # Errors
/// [`DataplaneError::Load`] with the verifier's words, [`DataplaneError::Privileges`] without root.
pub fn load(
    pin_path: Option<&Path>,
    sizes: &Sizes,
    instance: &Instance,
) -> Result<Ebpf, DataplaneError> {
    let mac = lb_common::wire::mac_word(instance.mac);
    let own = Own::words(instance.port, mac, instance.features);
    let unserved_pass = u8::from(instance.unserved_pass);
    let flow_bits = instance.flow_buckets.ilog2() as u8;
    let flow6_bits = instance.flow6_buckets.ilog2() as u8;
    let fragment_bits = instance.fragment_buckets.ilog2() as u8;
    let cluster_mac = lb_common::wire::mac_word(instance.cluster_mac);
    let dir = pin_path.map(maps_dir);
    let direct = direct::open_or_make(dir.as_deref(), sizes)?;
    let service_mask = direct::mask(&direct, map::SERVICES, 1)?;
    let slot_mask = direct::mask(&direct, map::SLOTS, SLOTS_IN_LINE)?;
    let vip_mask = direct::mask(&direct, map::VIPS, 1)?;
    let mut loader = EbpfLoader::new();
    loader
        .verifier_log_level(VerifierLogLevel::STATS)
        .override_global(global::OWN, &own, true)
        .override_global(global::OWN_PORT, &instance.port, true)
        .override_global(global::UNSERVED_PASS, &unserved_pass, true)
        .override_global(global::FLOW_BITS, &flow_bits, true)
        .override_global(global::FLOW6_BITS, &flow6_bits, true)
        .override_global(global::FRAGMENT_BITS, &fragment_bits, true)
        .override_global(global::SERVICE_MASK, &service_mask, true)
        .override_global(global::SLOT_MASK, &slot_mask, true)
        .override_global(global::VIP_MASK, &vip_mask, true)
        .override_global(global::FEATURES, &instance.features.0, true)
        .override_global(global::CLUSTER_MAC, &cluster_mac, true);
    let looked_up = || {
        map::ALL
            .into_iter()
            .filter(|name| direct::section_of(name).is_none())
    };
    for name in looked_up() {
        if let Some(entries) = entries_of(name, sizes) {
            loader.map_max_entries(name, entries);
        }
    }
    let processors = u32::try_from(processors()?).unwrap_or(u32::MAX);
    loader.map_max_entries(map::SAMPLES, processors);
    if let Some(dir) = &dir {
        for name in looked_up() {
            loader.map_pin_path(name, dir.join(name));
        }
    }
    let object = loader.load(KERNEL_OBJECT).map_err(|error| {
        if !nix::unistd::geteuid().is_root() {
            return DataplaneError::Privileges {
                what: "loading a BPF program".into(),
            };
        }
        DataplaneError::Load(Box::new(error))
    })?;
    direct::put_in_place(&object, &direct)?;
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PORTS_MAX, SLOTS_MAX};

    /// A larger one is "unbounded memory access" to the verifier, which no operator could make sense of.
    #[test]
    fn no_direct_map_is_larger_than_the_verifier_follows() {
        let bytes = |sizes: &Sizes| {
            [
                u64::from(sizes.service_buckets) * size_of::<abi::Bucket>() as u64,
                u64::from(sizes.slots) * 4,
            ]
        };
        for ports in [PORTS_MAX, u32::MAX] {
            let sizes = Sizes::of(1, SLOTS_MAX, 1, ports);
            assert!(
                bytes(&sizes)
                    .iter()
                    .all(|bytes| *bytes <= abi::MOST_DIRECT_BYTES),
                "{sizes:?}"
            );
        }
        // What may be asked for gets its room: two buckets for each port.
        let room = Sizes::of(1, 1, 1, PORTS_MAX).service_buckets / 2;
        assert_eq!(room, 2 * PORTS_MAX);
    }
}
