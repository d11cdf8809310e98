//! The service lookup: which (VIP, protocol, port) belongs to which service, laid out in cache-line buckets.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    abi::{PROTO_TCP_UDP, WAYS},
    service::{Directory, ServiceKey, ServiceValue},
    wire::{PROTO_TCP, PROTO_UDP},
};

/// A layout of the lookup: the directory word, and each bucket's entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Multiplier, size and half.
    pub directory: Directory,
    /// The entries of the half's buckets, counted from the half's first.
    pub buckets: Vec<[(u64, u64); WAYS]>,
}

/// There is no seed under which the entries fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{entries} entries of VIP, protocol and port do not fit {buckets} buckets: raise `ports` in [limits], or use ranges that \
     are narrower, or `ports = \"any\"`"
)]
pub struct DirectoryFull {
    /// How many entries there are.
    pub entries: usize,
    /// How many buckets one half has.
    pub buckets: usize,
}

/// How many seeds are tried before the table counts as full. At the sizes of `dataplane::Sizes` a few are enough.
const TRIES: u64 = 2000;

/// What a service contributes to the lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entries {
    /// VIP in host order.
    pub vip: u32,
    /// IP protocol number, or [`PROTO_TCP_UDP`].
    pub protocol: u8,
    /// The ports; empty for all of them.
    pub ports: Vec<std::ops::RangeInclusive<u16>>,
}

impl Entries {
    /// The numbers of its protocols.
    #[must_use]
    pub fn protocols(&self) -> &[u8] {
        match self.protocol {
            PROTO_TCP_UDP => &[PROTO_TCP, PROTO_UDP],
            _ => std::slice::from_ref(&self.protocol),
        }
    }
}

/// All keys of the lookup and their values: one for each port, one for each VIP, and one for the fragments of a VIP's protocol
/// of which a single service has all the ports that are served, and picks without them.
#[must_use]
pub fn entries<'a>(
    services: impl Iterator<Item = (&'a Entries, ServiceValue)>,
) -> BTreeMap<ServiceKey, ServiceValue> {
    let mut keys = BTreeMap::new();
    let mut vips = BTreeSet::new();
    let mut any = BTreeSet::new();
    // Of each protocol of a VIP: the service, as long as it is the only one.
    let mut alone: BTreeMap<(u32, u8), Option<ServiceValue>> = BTreeMap::new();
    for (service, value) in services {
        vips.insert(service.vip);
        if service.ports.is_empty() {
            any.insert(service.vip);
        }
        for protocol in service.protocols() {
            if service.ports.is_empty() {
                keys.insert(ServiceKey::ipv4_any_port(service.vip, *protocol), value);
            }
            for port in service.ports.iter().cloned().flatten() {
                keys.insert(ServiceKey::ipv4(service.vip, *protocol, port), value);
            }
            alone
                .entry((service.vip, *protocol))
                .and_modify(|known| *known = None)
                .or_insert(Some(value));
        }
    }
    for ((vip, protocol), value) in alone {
        if let Some(value) = value.filter(|value| !value.affinity().ports) {
            keys.entry(ServiceKey::ipv4_any_port(vip, protocol))
                .or_insert(value.for_fragments());
        }
    }
    for vip in vips {
        keys.insert(
            ServiceKey::ipv4_vip(vip),
            ServiceValue::vip(any.contains(&vip)),
        );
    }
    keys
}

/// Finds a seed under which no bucket of a half with 2^`bits` buckets overflows.
///
/// # Errors
/// [`DirectoryFull`] where there are too many entries for that.
pub fn lay_out(
    entries: &BTreeMap<ServiceKey, ServiceValue>,
    bits: u8,
    second_half: bool,
    random: u64,
) -> Result<Layout, DirectoryFull> {
    let count = 1usize << bits;
    let first = if second_half { count } else { 0 };
    let mut filled = vec![0u8; count];
    'seeds: for attempt in 0..TRIES {
        let seed = random
            .wrapping_add(attempt)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let directory = Directory::new(seed, bits, second_half);
        filled.fill(0);
        for key in entries.keys() {
            let ways = &mut filled[directory.bucket(*key) as usize - first];
            if usize::from(*ways) == WAYS {
                continue 'seeds;
            }
            *ways += 1;
        }
        let mut buckets = vec![[(0, 0); WAYS]; count];
        filled.fill(0);
        for (key, value) in entries {
            let bucket = directory.bucket(*key) as usize - first;
            buckets[bucket][usize::from(filled[bucket])] = (key.0, value.0);
            filled[bucket] += 1;
        }
        return Ok(Layout { directory, buckets });
    }
    Err(DirectoryFull {
        entries: entries.len(),
        buckets: count,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::pick::Affinity;

    fn value(id: u16) -> ServiceValue {
        ServiceValue::new(id, 0, 8, Affinity::CLIENT_IPV4)
    }

    #[test]
    fn ports_ranges_any_and_vips() {
        let web = Entries {
            vip: 1,
            protocol: 6,
            ports: vec![80..=80, 8000..=8002],
        };
        let all = Entries {
            vip: 2,
            protocol: 17,
            ports: vec![],
        };
        let keys = entries([(&web, value(1)), (&all, value(2))].into_iter());
        assert_eq!(keys.len(), 4 + 1 + 2 + 1);
        assert_eq!(keys[&ServiceKey::ipv4(1, 6, 8001)], value(1));
        assert_eq!(keys[&ServiceKey::ipv4_any_port(2, 17)], value(2));
        assert!(!keys[&ServiceKey::ipv4_vip(1)].has_any_port());
        assert!(keys[&ServiceKey::ipv4_vip(2)].has_any_port());
    }

    #[test]
    fn one_value_for_both_protocols() {
        let sip = Entries {
            vip: 1,
            protocol: PROTO_TCP_UDP,
            ports: vec![5060..=5061],
        };
        let keys = entries([(&sip, value(1))].into_iter());
        assert_eq!(keys.len(), 4 + 1 + 2);
        for protocol in [6, 17] {
            for port in [5060, 5061] {
                assert_eq!(keys[&ServiceKey::ipv4(1, protocol, port)], value(1));
            }
        }
    }

    /// A fragment without ports is some service's only where no other could be meant and the pick needs no ports.
    #[test]
    fn fragments_without_ports_have_an_entry_where_one_service_has_them_all() {
        let of = |vip, protocol, port| Entries {
            vip,
            protocol,
            ports: vec![port..=port],
        };
        let (web, dns, more) = (of(1, 6, 80), of(1, 17, 53), of(1, 6, 443));
        let keys = entries([(&web, value(1)), (&dns, value(2)), (&more, value(3))].into_iter());
        let fragments = ServiceKey::ipv4_any_port(1, 17);
        assert_eq!(keys[&fragments], value(2).for_fragments());
        assert!(!keys.contains_key(&ServiceKey::ipv4_any_port(1, 6)));
        assert!(
            !keys[&ServiceKey::ipv4_vip(1)].has_any_port(),
            "packets with ports don't find it"
        );
        let by_ports = ServiceValue::new(2, 0, 8, Affinity::NONE_IPV4);
        let keys = entries([(&dns, by_ports)].into_iter());
        assert!(!keys.contains_key(&fragments));
        let any = Entries {
            ports: vec![],
            ..dns
        };
        let keys = entries([(&any, value(2))].into_iter());
        assert_eq!(keys[&fragments], value(2), "serves all packets anyway");
    }

    #[test]
    fn every_key_is_in_its_bucket() {
        let service = Entries {
            vip: 0x0a00_0001,
            protocol: 6,
            ports: vec![1..=3000],
        };
        let keys = entries([(&service, value(3))].into_iter());
        for second in [false, true] {
            let layout = lay_out(&keys, 13, second, 42).unwrap();
            let first = if second { 1 << 13 } else { 0 };
            for (key, value) in &keys {
                let bucket = &layout.buckets[layout.directory.bucket(*key) as usize - first];
                assert!(bucket.contains(&(key.0, value.0)));
            }
        }
    }

    #[test]
    fn too_many_entries_are_refused_with_the_numbers() {
        let service = Entries {
            vip: 1,
            protocol: 6,
            ports: vec![1..=100],
        };
        let keys = entries([(&service, value(1))].into_iter());
        let error = lay_out(&keys, 4, false, 1).unwrap_err();
        assert_eq!(
            error,
            DirectoryFull {
                entries: 102,
                buckets: 16
            }
        );
    }

    /// The sizes that `dataplane::Sizes::of` chooses always find a seed.
    #[test]
    fn the_chosen_sizes_suffice() {
        for entries_wanted in [10u16, 1000, 20_000, 65_000] {
            let service = Entries {
                vip: 0xc000_0201,
                protocol: 6,
                ports: vec![1..=entries_wanted],
            };
            let keys = entries([(&service, value(1))].into_iter());
            let sizes = crate::dataplane::Sizes::of(1, 1, 1, u32::from(entries_wanted) + 1);
            let bits = (sizes.service_buckets / 2).ilog2() as u8;
            lay_out(&keys, bits, false, 7).unwrap();
        }
    }
}
