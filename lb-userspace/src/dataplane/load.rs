//! Loading the kernel object: sizes of the maps, read-only globals, pins.

use std::path::Path;

use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use lb_common::{
    abi::{self, SLOTS_IN_LINE, global, map},
    features::Features,
};

use super::{
    DataplaneError, KERNEL_OBJECT,
    layout::{entries_of, maps_dir},
};

/// How large the maps are made. What is pinned already keeps its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Buckets of the service lookup, both halves; a power of two.
    pub service_buckets: u32,
    /// Services.
    pub services: u32,
    /// Slots of all tables together; a multiple of 16.
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

impl Sizes {
    /// Sizes for a number of flows, slots, backends and (VIP, protocol, port) entries.
    ///
    /// The flow table gets a bucket of four ways for each flow, and at least 1024: a flow has two buckets to choose from,
    /// which in a table a quarter full leaves fewer than one flow in ten million without a place, however flows come and
    /// go (measured for `lb-common/src/flow/properties.rs`; half full, one in five hundred). The service lookup gets so many
    /// buckets that a seed under which none overflows is found within a few tries.
    #[must_use]
    pub fn of(flows: u32, slots: u32, backends: u32, entries: u32) -> Self {
        Self {
            service_buckets: 2 * entries
                .max(64)
                .next_power_of_two()
                .saturating_mul(2)
                .min(1 << 26),
            services: abi::DEFAULT_SERVICES,
            slots: slots.max(1 << 10).next_multiple_of(SLOTS_IN_LINE),
            backends: (backends + 1).min(1 << 16),
            flow_buckets: flows.clamp(1 << 10, 1 << 26).next_power_of_two(),
            flow6_buckets: abi::DEFAULT_FLOW6_BUCKETS,
            fragment_buckets: abi::DEFAULT_FRAGMENT_BUCKETS,
        }
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
    let unserved_pass = u8::from(instance.unserved_pass);
    let flow_bits = instance.flow_buckets.ilog2() as u8;
    let flow6_bits = instance.flow6_buckets.ilog2() as u8;
    let fragment_bits = instance.fragment_buckets.ilog2() as u8;
    let cluster_mac = lb_common::wire::mac_word(instance.cluster_mac);
    let dir = pin_path.map(maps_dir);
    let mut loader = EbpfLoader::new();
    loader
        .verifier_log_level(VerifierLogLevel::STATS)
        .override_global(global::OWN_MAC, &mac, true)
        .override_global(global::OWN_PORT, &instance.port, true)
        .override_global(global::UNSERVED_PASS, &unserved_pass, true)
        .override_global(global::FLOW_BITS, &flow_bits, true)
        .override_global(global::FLOW6_BITS, &flow6_bits, true)
        .override_global(global::FRAGMENT_BITS, &fragment_bits, true)
        .override_global(global::FEATURES, &instance.features.0, true)
        .override_global(global::CLUSTER_MAC, &cluster_mac, true);
    for name in map::ALL {
        if let Some(entries) = entries_of(name, sizes) {
            loader.map_max_entries(name, entries);
        }
    }
    if let Some(dir) = &dir {
        for name in map::ALL {
            loader.map_pin_path(name, dir.join(name));
        }
    }
    loader.load(KERNEL_OBJECT).map_err(|error| {
        if !nix::unistd::geteuid().is_root() {
            return DataplaneError::Privileges {
                what: "loading a BPF program".into(),
            };
        }
        DataplaneError::Load(Box::new(error))
    })
}
