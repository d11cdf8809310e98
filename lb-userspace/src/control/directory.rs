//! The service lookup: which (VIP, protocol, port) belongs to which service, laid out in cache-line buckets.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
};

use lb_common::{
    abi::{PROTO_TCP_UDP, WAYS},
    address::{Address, Ipv6},
    service::{Directory, NoVip, ServiceKey, ServiceValue},
    wire::{PROTO_TCP, PROTO_UDP},
};

/// A layout of the lookup: the directory word, and each bucket's entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Multiplier, size and half.
    pub directory: Directory,
    /// The entries of its buckets, counted from the first of [`Directory::range`].
    pub buckets: Vec<[(u64, u64); WAYS]>,
    /// The whole address of each IPv6 service's VIP, by service id: the keys hold only a part of it.
    pub vips: BTreeMap<u16, Ipv6>,
}

impl Layout {
    /// Which IPv4 addresses are certainly not in it.
    #[must_use]
    pub fn no_vip(&self) -> NoVip {
        let keys = self.buckets.iter().flatten();
        NoVip::but(
            keys.map(|(key, _)| ServiceKey(*key))
                .filter(|key| key.0 != 0 && !key.is_ipv6())
                .map(ServiceKey::vip),
        )
    }
}

/// What an entry of the lookup is for. Its [`ServiceKey`] depends on the directory where the VIP is an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryKey {
    /// The VIP.
    pub vip: IpAddr,
    /// IP protocol number; 0 in the VIP's own entry.
    pub protocol: u8,
    /// The port; 0 for all of them.
    pub port: u16,
}

impl EntryKey {
    /// The word it is found by under `directory`.
    #[must_use]
    pub fn under(self, directory: Directory) -> ServiceKey {
        match self.vip {
            IpAddr::V4(vip) => vip
                .to_bits()
                .service_key(directory, self.protocol, self.port),
            IpAddr::V6(vip) => Ipv6::from(vip).service_key(directory, self.protocol, self.port),
        }
    }
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

/// An odd multiplier with well spread bits (the golden ratio's), which makes a seed of a try's number.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a service contributes to the lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entries {
    /// The VIP.
    pub vip: IpAddr,
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

/// All entries of the lookup and their values: one for each port, one for each VIP, and one for the fragments of a VIP's
/// protocol of which a single service has all the ports that are served, and picks without them.
#[must_use]
pub fn entries<'a>(
    services: impl Iterator<Item = (&'a Entries, ServiceValue)>,
) -> BTreeMap<EntryKey, ServiceValue> {
    let mut keys = BTreeMap::new();
    // Of each VIP, any service of it.
    let mut vips = BTreeMap::new();
    let mut any = BTreeSet::new();
    // Of each protocol of a VIP: the service, as long as it is the only one.
    let mut alone: BTreeMap<(IpAddr, u8), Option<ServiceValue>> = BTreeMap::new();
    for (service, value) in services {
        vips.entry(service.vip).or_insert(value.id());
        if service.ports.is_empty() {
            any.insert(service.vip);
        }
        for protocol in service.protocols() {
            let key = |port| EntryKey {
                vip: service.vip,
                protocol: *protocol,
                port,
            };
            if service.ports.is_empty() {
                keys.insert(key(0), value);
            }
            for port in service.ports.iter().cloned().flatten() {
                keys.insert(key(port), value);
            }
            alone
                .entry((service.vip, *protocol))
                .and_modify(|known| *known = None)
                .or_insert(Some(value));
        }
    }
    for ((vip, protocol), value) in alone {
        if let Some(value) = value.filter(|value| !value.affinity().ports) {
            let key = EntryKey {
                vip,
                protocol,
                port: 0,
            };
            keys.entry(key)
                .and_modify(|any| *any = any.with_fragments())
                .or_insert(value.for_fragments());
        }
    }
    for (vip, id) in vips {
        let any = any.contains(&vip);
        let key = EntryKey {
            vip,
            protocol: 0,
            port: 0,
        };
        let value = match vip {
            IpAddr::V4(_) => ServiceValue::vip(any),
            IpAddr::V6(_) => ServiceValue::vip6(any, id),
        };
        keys.insert(key, value);
    }
    keys
}

/// Finds a seed under which no bucket overflows, and no two IPv6 VIPs have the same part in their keys, in as few buckets as there
/// is one for: they share the processor's caches with all else. At most 2^`most_bits` buckets, none of which is `in_use`.
///
/// # Errors
/// [`DirectoryFull`] where there are too many entries for that.
pub fn lay_out(
    entries: &BTreeMap<EntryKey, ServiceValue>,
    most_bits: u8,
    in_use: Option<Directory>,
    random: u64,
) -> Result<Layout, DirectoryFull> {
    let mut vips = BTreeMap::new();
    for (key, value) in entries {
        if let IpAddr::V6(vip) = key.vip {
            vips.insert(value.id(), Ipv6::from(vip));
        }
    }
    let distinct: BTreeSet<Ipv6> = vips.values().copied().collect();
    let entries: Vec<(EntryKey, ServiceValue)> = entries.iter().map(|(k, v)| (*k, *v)).collect();
    for bits in fewest_bits(entries.len(), most_bits)..=most_bits {
        let tries = if bits == most_bits {
            TRIES
        } else {
            tries(entries.len(), bits)
        };
        let is_free = |second_half: &bool| {
            let wanted = Directory::new(0, bits, *second_half).range();
            in_use.is_none_or(|in_use| {
                let used = in_use.range();
                used.end <= wanted.start || wanted.end <= used.start
            })
        };
        let Some(second_half) = [false, true].into_iter().find(is_free) else {
            continue;
        };
        let mut filled = vec![0u8; 1 << bits];
        for attempt in 0..tries {
            let seed = random.wrapping_add(attempt).wrapping_mul(SPREAD);
            let directory = Directory::new(seed, bits, second_half);
            if fits(&entries, directory, &mut filled) && has_no_twins(&distinct, directory) {
                return Ok(Layout {
                    directory,
                    buckets: fill(&entries, directory),
                    vips,
                });
            }
        }
    }
    Err(DirectoryFull {
        entries: entries.len(),
        buckets: 1 << most_bits,
    })
}

/// log2 of the fewest buckets that are tried: two for each entry, and 4,096 (256 KiB) where there may be as many. The first way
/// of a bucket is found sooner than the others.
fn fewest_bits(entries: usize, most_bits: u8) -> u8 {
    let two_each = (2 * entries.max(1)).next_power_of_two();
    (two_each.max(1 << 12).ilog2() as u8).min(most_bits)
}

/// How many seeds are tried for 2^`bits` buckets where there may be more of them: none where it takes too many.
fn tries(entries: usize, bits: u8) -> u64 {
    /// So many entries are looked at in all, at most.
    const ENTRIES: u64 = 1 << 22;
    /// So many times as many as it takes on average.
    const PATIENCE: f64 = 3.0;
    // Each bucket has a Poisson distributed number of entries, and how many overflow is Poisson distributed in turn.
    let buckets = f64::from(1_u32 << bits);
    let each = entries as f64 / buckets;
    let mut term = (-each).exp();
    let mut at_most_ways = 0.0;
    for way in 0..=WAYS {
        at_most_ways += term;
        term *= each / (way + 1) as f64;
    }
    let overflowing = buckets * (1.0 - at_most_ways).max(0.0);
    let wanted = (PATIENCE * overflowing.exp()).ceil();
    let affordable = (ENTRIES / entries.max(1) as u64).min(TRIES);
    if wanted <= affordable as f64 {
        wanted as u64
    } else {
        0
    }
}

/// Whether no bucket has more entries than ways. `filled` has a place for each bucket.
fn fits(entries: &[(EntryKey, ServiceValue)], directory: Directory, filled: &mut [u8]) -> bool {
    let first = directory.range().start;
    filled.fill(0);
    entries.iter().all(|(key, _)| {
        let ways = &mut filled[directory.bucket(key.under(directory)) as usize - first];
        *ways += 1;
        usize::from(*ways) <= WAYS
    })
}

/// Whether no two VIPs have the same part in their keys.
fn has_no_twins(vips: &BTreeSet<Ipv6>, directory: Directory) -> bool {
    let mut folds = HashSet::new();
    vips.iter().all(|vip| folds.insert(directory.fold(*vip)))
}

fn fill(entries: &[(EntryKey, ServiceValue)], directory: Directory) -> Vec<[(u64, u64); WAYS]> {
    let range = directory.range();
    let mut buckets = vec![[(0, 0); WAYS]; range.len()];
    for (key, value) in entries {
        let key = key.under(directory);
        let bucket = &mut buckets[directory.bucket(key) as usize - range.start];
        // A key is never 0.
        if let Some(way) = bucket.iter_mut().find(|(key, _)| *key == 0) {
            *way = (key.0, value.0);
        }
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::pick::Affinity;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const TWO: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn key(vip: IpAddr, protocol: u8, port: u16) -> EntryKey {
        EntryKey {
            vip,
            protocol,
            port,
        }
    }

    fn value(id: u16) -> ServiceValue {
        ServiceValue::new(id, 0, 8, Affinity::CLIENT_IPV4)
    }

    #[test]
    fn ports_ranges_any_and_vips() {
        let web = Entries {
            vip: ONE,
            protocol: 6,
            ports: vec![80..=80, 8000..=8002],
        };
        let all = Entries {
            vip: TWO,
            protocol: 17,
            ports: vec![],
        };
        let keys = entries([(&web, value(1)), (&all, value(2))].into_iter());
        assert_eq!(keys.len(), 4 + 1 + 2 + 1);
        assert_eq!(keys[&key(ONE, 6, 8001)], value(1));
        assert_eq!(keys[&key(TWO, 17, 0)], value(2).with_fragments());
        assert!(!keys[&key(ONE, 0, 0)].has_any_port());
        assert!(keys[&key(TWO, 0, 0)].has_any_port());
    }

    #[test]
    fn one_value_for_both_protocols() {
        let sip = Entries {
            vip: ONE,
            protocol: PROTO_TCP_UDP,
            ports: vec![5060..=5061],
        };
        let keys = entries([(&sip, value(1))].into_iter());
        assert_eq!(keys.len(), 4 + 1 + 2);
        for protocol in [6, 17] {
            for port in [5060, 5061] {
                assert_eq!(keys[&key(ONE, protocol, port)], value(1));
            }
        }
    }

    /// A fragment without ports is some service's only where no other could be meant and the pick needs no ports.
    #[test]
    fn fragments_without_ports_have_an_entry_where_one_service_has_them_all() {
        let of = |protocol, port| Entries {
            vip: ONE,
            protocol,
            ports: vec![port..=port],
        };
        let (web, dns, more) = (of(6, 80), of(17, 53), of(6, 443));
        let keys = entries([(&web, value(1)), (&dns, value(2)), (&more, value(3))].into_iter());
        let fragments = key(ONE, 17, 0);
        assert_eq!(keys[&fragments], value(2).for_fragments());
        assert!(!keys.contains_key(&key(ONE, 6, 0)));
        assert!(
            !keys[&key(ONE, 0, 0)].has_any_port(),
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
        assert_eq!(keys[&fragments], value(2).with_fragments());
        let beside = Entries {
            ports: vec![123..=123],
            ..any.clone()
        };
        let keys = entries([(&any, value(2)), (&beside, value(4))].into_iter());
        assert_eq!(
            keys[&fragments],
            value(2),
            "a fragment may be of either service"
        );
    }

    /// Ports and VIPs come in runs, and a key holds them as a packet does: no such pattern may need many seeds, or more room
    /// than `Sizes::of` gives.
    #[test]
    fn runs_of_ports_and_vips_find_their_places() {
        let runs: [(u32, std::ops::RangeInclusive<u16>, u8); 6] = [
            (1, 1..=65_535, PROTO_TCP_UDP),
            (64, 10_000..=10_999, PROTO_TCP_UDP),
            (1024, 8000..=8003, PROTO_TCP_UDP),
            (4096, 80..=80, 6),
            (256, 256..=511, 17),
            (16, 1..=4096, 6),
        ];
        for (vips, ports, protocol) in runs {
            let services: Vec<Entries> = (0..vips)
                .map(|number| Entries {
                    vip: std::net::Ipv4Addr::from_bits(0xc613_0000 + number).into(),
                    protocol,
                    ports: vec![ports.clone()],
                })
                .collect();
            let keys = entries(services.iter().map(|service| (service, value(1))));
            let sizes = crate::dataplane::Sizes::of(1, 1, 1, keys.len() as u32);
            let bits = (sizes.service_buckets / 2).ilog2() as u8;
            for random in [1, 0x0123_4567_89ab_cdef, u64::MAX / 3] {
                let full = lay_out(&keys, bits, None, random).err();
                assert_eq!(full, None, "{vips} VIPs, {ports:?}");
            }
        }
    }

    fn holds(layout: &Layout, keys: &BTreeMap<EntryKey, ServiceValue>) {
        let range = layout.directory.range();
        assert_eq!(layout.buckets.len(), range.len());
        for (key, value) in keys {
            let key = key.under(layout.directory);
            let bucket = &layout.buckets[layout.directory.bucket(key) as usize - range.start];
            assert!(bucket.contains(&(key.0, value.0)));
        }
    }

    /// However many entries come and go: none is written where packets look.
    #[test]
    fn what_is_in_use_is_never_written() {
        const BITS: u8 = 14;
        let mut in_use: Option<Directory> = None;
        let mut sizes = BTreeSet::new();
        let mut number = 1u64;
        for round in 0..200 {
            number = lb_common::hash::mix(number, lb_common::hash::Seed([3, 4]));
            let few = if round % 3 == 0 { 4000 } else { 40 };
            let service = Entries {
                vip: ONE,
                protocol: 6,
                ports: vec![1..=1 + (number % few) as u16],
            };
            let keys = entries([(&service, value(1))].into_iter());
            let layout = lay_out(&keys, BITS, in_use, number).unwrap();
            holds(&layout, &keys);
            let range = layout.directory.range();
            assert!(range.end <= 2 << BITS);
            if let Some(in_use) = in_use {
                let used = in_use.range();
                assert!(range.end <= used.start || used.end <= range.start);
            }
            sizes.insert(layout.directory.bits());
            in_use = Some(layout.directory);
        }
        assert!(sizes.len() > 1, "{sizes:?}");
    }

    /// 4,096 services with a port each in TCP and UDP on 1,024 VIPs have memory for 65,536 ports, and take a quarter of one half of
    /// it; a few take no less than lets nearly all of them be first in their buckets.
    #[test]
    fn few_entries_lie_close_together() {
        let services: Vec<Entries> = (0..1024)
            .map(|number| Entries {
                vip: std::net::Ipv4Addr::from_bits(0xc613_0000 + number).into(),
                protocol: PROTO_TCP_UDP,
                ports: vec![8000..=8003],
            })
            .collect();
        let keys = entries(services.iter().map(|service| (service, value(1))));
        let layout = lay_out(&keys, 17, None, 7).unwrap();
        assert!(layout.directory.bits() <= 15, "{}", layout.directory.bits());
        let few = entries(services.iter().take(4).map(|service| (service, value(1))));
        let layout = lay_out(&few, 17, None, 7).unwrap();
        assert_eq!(layout.directory.bits(), 12);
    }

    #[test]
    fn every_key_is_in_its_bucket() {
        let service = Entries {
            vip: ONE,
            protocol: 6,
            ports: vec![1..=3000],
        };
        let keys = entries([(&service, value(3))].into_iter());
        let first = lay_out(&keys, 13, None, 42).unwrap();
        let second = lay_out(&keys, 13, Some(first.directory), 42).unwrap();
        assert!(!first.directory.second_half() && second.directory.second_half());
        holds(&first, &keys);
        holds(&second, &keys);
    }

    #[test]
    fn an_ipv6_vips_own_entry_names_a_service_of_it() {
        let vip: IpAddr = "2001:db8::10".parse().unwrap();
        let of = |protocol, ports| Entries {
            vip,
            protocol,
            ports,
        };
        let (web, dns) = (of(6, vec![80..=80]), of(17, vec![]));
        let keys = entries([(&web, value(3)), (&dns, value(4))].into_iter());
        let own = keys[&key(vip, 0, 0)];
        assert!(own.has_any_port() && [3, 4].contains(&own.id()));
        let layout = lay_out(&keys, 5, None, 42).unwrap();
        let IpAddr::V6(whole) = vip else {
            unreachable!()
        };
        assert_eq!(
            layout.vips,
            BTreeMap::from([(3, whole.into()), (4, whole.into())])
        );
    }

    /// Two VIPs that share the 32 bits of their keys under one multiplier must not be laid out under it: the first would
    /// hide the second.
    #[test]
    fn vips_with_the_same_key_get_another_multiplier() {
        const BITS: u8 = 3;
        let first_try = |random: u64| Directory::new(random.wrapping_mul(SPREAD), BITS, false);
        let directory = first_try(7);
        let mut seen: std::collections::HashMap<u32, u64> = std::collections::HashMap::new();
        // By the birthday paradox two of some 80,000 addresses share 32 bits.
        let (one, other) = (0..1_000_000u64)
            .find_map(|number| {
                let low = lb_common::hash::mix(number, lb_common::hash::Seed([1, 2]));
                let vip = Ipv6 {
                    high: 0x2001_0db8_0000_0000,
                    low,
                };
                seen.insert(directory.fold(vip), low).map(|old| (old, low))
            })
            .expect("two that collide");
        let service = |low: u64| Entries {
            vip: IpAddr::V6(
                Ipv6 {
                    high: 0x2001_0db8_0000_0000,
                    low,
                }
                .addr(),
            ),
            protocol: 6,
            ports: vec![80..=80],
        };
        let (a, b) = (service(one), service(other));
        let keys = entries([(&a, value(1)), (&b, value(2))].into_iter());
        assert_eq!(fewest_bits(keys.len(), BITS), BITS);
        let layout = lay_out(&keys, BITS, None, 7).unwrap();
        assert_ne!(layout.directory, directory);
        let words: HashSet<u64> = layout
            .buckets
            .iter()
            .flatten()
            .map(|(key, _)| *key)
            .filter(|key| *key != 0)
            .collect();
        assert_eq!(
            words.len(),
            6,
            "a port, an own entry and one for fragments of each"
        );
    }

    /// What the data path does not look up is in no entry, port or VIP.
    #[test]
    fn no_vip_of_the_layout_is_denied() {
        let service = |vip: [u8; 4]| Entries {
            vip: vip.into(),
            protocol: 6,
            ports: vec![80..=80],
        };
        let (a, b) = (service([192, 0, 2, 1]), service([198, 51, 100, 7]));
        let six = Entries {
            vip: "2001:db8::1".parse().unwrap(),
            ..service([0; 4])
        };
        let keys = entries([(&a, value(1)), (&b, value(2)), (&six, value(3))].into_iter());
        let none = lay_out(&keys, 6, None, 7).unwrap().no_vip();
        assert_eq!(none, NoVip::but([0xc000_0201, 0xc633_6407]));
        let nothing = lay_out(&entries(std::iter::empty()), 6, None, 7).unwrap();
        assert_eq!(nothing.no_vip(), NoVip(u64::MAX));
    }

    #[test]
    fn too_many_entries_are_refused_with_the_numbers() {
        let service = Entries {
            vip: ONE,
            protocol: 6,
            ports: vec![1..=100],
        };
        let keys = entries([(&service, value(1))].into_iter());
        let error = lay_out(&keys, 4, None, 1).unwrap_err();
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
                vip: ONE,
                protocol: 6,
                ports: vec![1..=entries_wanted],
            };
            let keys = entries([(&service, value(1))].into_iter());
            let sizes = crate::dataplane::Sizes::of(1, 1, 1, u32::from(entries_wanted) + 1);
            let bits = (sizes.service_buckets / 2).ilog2() as u8;
            lay_out(&keys, bits, None, 7).unwrap();
        }
    }
}
