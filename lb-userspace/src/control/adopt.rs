//! What is pinned, read back: a new controller starts from what the maps hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use lb_common::{
    abi::{self, BackendState, PROTO_TCP_UDP},
    address::Ipv6,
    flow::{FlowLine, FlowState, Way},
    hot::{HotWord, digest},
    pick::Slot,
    service::{Directory, ServiceKey, ServiceValue},
};

use super::{
    actual::{Actual, ActualBackend, ActualService, Millis, Retired},
    areas,
    directory::Entries,
    following::Following,
    fragments,
    hot::{HotSource, Source},
    memory::Memory,
};
use crate::dataplane::DataplaneError;

/// The picture of what the maps hold, also where the controller before was killed in the middle of a change: the lookup
/// that packets go by is the truth, and what has no owner there but is still named is retired. Slots in transition count as changed `now`, the safe side: when they really did is
/// not kept.
///
/// # Errors
/// [`DataplaneError::Map`].
pub fn adopt(maps: &impl Memory, now: Millis) -> Result<Actual, DataplaneError> {
    let buckets = maps.service_buckets();
    let bucket_bits = (buckets.len() / 2).max(2).ilog2() as u8;
    let mut actual = Actual::empty(
        maps.slot_capacity(),
        maps.service_capacity(),
        maps.backend_capacity(),
        bucket_bits,
    );
    let directory = Directory(maps.control().directory.get());
    if directory.0 == 0 {
        adopt_hot(maps, &mut actual, now)?;
        actual.take_over(directory, orphans(maps, &actual));
        return Ok(actual);
    }
    let in_use = buckets.get(directory.range()).unwrap_or_default();
    let mut ports: BTreeMap<u16, (ServiceValue, Vec<ServiceKey>)> = BTreeMap::new();
    for way in in_use.iter().flat_map(|bucket| &bucket.ways) {
        let key = ServiceKey(way.key.get());
        let value = ServiceValue(way.value.get());
        if key.0 != 0 && key.protocol() != 0 && !value.is_for_fragments() {
            ports
                .entry(value.id())
                .or_insert((value, Vec::new()))
                .1
                .push(key);
        }
    }
    for (id, (value, keys)) in ports {
        let Some(info) = maps.service_info(id)? else {
            continue;
        };
        let following = Following::pinned(value, &info);
        let protocol = protocol(&keys);
        let size = 1u32 << value.bits();
        let slots: Vec<Slot> = (0..size)
            .map(|i| maps.slot(value.offset() + i).unwrap_or_default())
            .collect();
        let service = ActualService {
            name: abi::text(&info.name).to_owned(),
            entries: Entries {
                vip: vip(maps, directory, id, keys[0], info.vip),
                protocol,
                ports: ranges(&keys),
            },
            affinity: value.affinity(),
            spreads: value.spreads(),
            track: following.changes(protocol),
            following,
            flow_idle: Duration::from_millis(info.flow_idle_ms),
            offset: value.offset(),
            bits: value.bits() as u8,
            changed: vec![now; slots.len()],
            slots,
            // Not kept; the first reconciliation builds it and finds the same table, unless something changed.
            built_for: None,
        };
        // A controller that was killed between its stores may not have come to them.
        areas::write_all(maps, &service);
        actual.insert_service(id, service);
    }
    for number in 1..maps.backend_capacity().min(1 << 16) {
        let number = number as u16;
        let Some(info) = maps.backend_info(number)? else {
            continue;
        };
        if !actual.services().contains_key(&info.service) {
            continue;
        }
        actual.insert_backend(
            number,
            ActualBackend {
                service: info.service,
                name: abi::text(&info.name).to_owned(),
                address: address(info.address),
                entry: maps.backend(number),
                state: BackendState::from_number(info.state).unwrap_or(BackendState::Down),
                reason: abi::text(&info.reason).to_owned(),
                since_ms: info.since_ms,
                weight: info.weight,
                priority: info.priority,
                healthy: info.healthy != 0,
                base_packets: info.base_packets,
                base_bytes: info.base_bytes,
            },
        );
    }
    adopt_hot(maps, &mut actual, now)?;
    let retired = orphans(maps, &actual);
    actual.take_over(directory, retired);
    Ok(actual)
}

/// The hot sources, those of services that are gone among them: the sweep takes them away.
fn adopt_hot(maps: &impl Memory, actual: &mut Actual, now: Millis) -> Result<(), DataplaneError> {
    let seed = maps.control().seed();
    let words = maps.hot_lines().iter().flat_map(|line| &line.ways);
    for (place, word) in (0..).zip(words.map(|word| HotWord(word.get()))) {
        if word.0 == 0 {
            continue;
        }
        let Some(info) = maps.hot_info(place)? else {
            continue;
        };
        let source = Source {
            service: info.service,
            address: Ipv6Addr::from(info.source).into(),
        };
        if word.is_of(digest(source.service, source.address, seed)) {
            actual.insert_hot(
                source,
                HotSource {
                    place,
                    state: word.state(),
                    changed: now,
                    since_ms: info.since_ms,
                    share_ppm: info.share_ppm,
                    prefix: info.prefix,
                },
            );
        }
    }
    Ok(())
}

/// What a slot or the record of a flow names though it has no owner.
fn orphans(maps: &impl Memory, actual: &Actual) -> Retired {
    let mut retired = Retired::default();
    let records = states(maps.flow_buckets()).chain(states(maps.flow6_buckets()));
    retired
        .backends
        .extend(fragments::look(maps.fragment_buckets(), 0).named);
    for state in records {
        retired.services.insert(state.service());
        retired.backends.insert(state.backend());
    }
    let named: BTreeSet<u16> = actual
        .services()
        .values()
        .flat_map(|service| &service.slots)
        .flat_map(|slot| [slot.current(), slot.previous()])
        .collect();
    retired.backends.extend(named);
    retired
        .services
        .retain(|id| !actual.services().contains_key(id));
    retired
        .backends
        .retain(|number| *number != 0 && !actual.backends().contains_key(number));
    retired
}

/// The records of a flow table.
fn states<W: Way>(buckets: &[FlowLine<W>]) -> impl Iterator<Item = FlowState> {
    buckets
        .iter()
        .flat_map(|bucket| &bucket.ways)
        .map(|way| FlowState(way.state().get()))
        .filter(|state| state.used())
}

/// The address that the maps for people hold, IPv4 as a mapped one.
fn address(octets: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(octets).to_canonical()
}

/// The VIP of a service that is found by `key`. Of an IPv6 VIP the key has a part only: the whole address is in `VIPS`, or,
/// where the controller before was killed between writing that and swapping the lookup, in what it wrote for people (`info`);
/// then `VIPS` is put right, or no packet would find the service.
fn vip(
    maps: &impl Memory,
    directory: Directory,
    id: u16,
    key: ServiceKey,
    info: [u8; 16],
) -> IpAddr {
    if !key.is_ipv6() {
        return Ipv4Addr::from_bits(key.vip()).into();
    }
    let compared = maps.vip(id);
    let shown = Ipv6::from(Ipv6Addr::from(info));
    if directory.fold(compared) != key.vip() && directory.fold(shown) == key.vip() {
        maps.set_vip(id, shown);
        return shown.addr().into();
    }
    compared.addr().into()
}

/// The protocol of a service's keys.
fn protocol(keys: &[ServiceKey]) -> u8 {
    let first = keys[0].protocol();
    if keys.iter().all(|key| key.protocol() == first) {
        first
    } else {
        PROTO_TCP_UDP
    }
}

/// Ports as merged ranges; empty for all of them.
fn ranges(keys: &[ServiceKey]) -> Vec<std::ops::RangeInclusive<u16>> {
    let mut ports: Vec<u16> = keys.iter().map(|key| key.port()).collect();
    ports.sort_unstable();
    // One key for each protocol.
    ports.dedup();
    if ports.first() == Some(&0) {
        return Vec::new();
    }
    let mut merged: Vec<std::ops::RangeInclusive<u16>> = Vec::new();
    for port in ports {
        match merged.last_mut() {
            Some(last) if u32::from(*last.end()) + 1 == u32::from(port) => {
                *last = *last.start()..=port;
            }
            _ => merged.push(port..=port),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{
        desired::DesiredService,
        samples::{Bench, backend, service},
    };

    fn at(vip: &str) -> DesiredService {
        let mut service = service("web", 10, &[backend("a"), backend("b")]);
        service.entries.vip = vip.parse().unwrap();
        service
    }

    #[test]
    fn ipv6_vips_come_back_whole() {
        let mut bench = Bench::new();
        bench.bring(&[at("2001:db8::10")]);
        let adopted = adopt(&bench.executor.maps, bench.now).unwrap();
        let vip = adopted.services().values().next().unwrap().entries.vip;
        assert_eq!(vip.to_string(), "2001:db8::10");
    }

    /// The controller before was killed when it had written the new address for the data path to compare, and not yet swapped
    /// the lookup: packets of the old VIP find nothing then, and must again when a controller has taken over.
    #[test]
    fn a_vip_that_was_written_too_early_is_put_right() {
        let old = "2001:db8::10";
        let mut writes = 0;
        let mut met = false;
        // Whatever the write is after which it dies.
        loop {
            let mut bench = Bench::new();
            bench.bring(&[at(old)]);
            let ops = bench.plan(&[at("2001:db8::11")]).unwrap();
            bench.executor.maps.writes_left.set(Some(writes));
            bench.execute(&ops);
            let done = bench.executor.maps.writes_left.get() != Some(0);
            bench.executor.maps.writes_left.set(None);
            let maps = &bench.executor.maps;
            let id = bench.actual().service_id("web").unwrap();
            let early = maps.vip(id);
            let adopted = adopt(maps, bench.now).unwrap();
            let vip = adopted.services()[&id].entries.vip;
            let whole = maps.vip(id);
            assert_eq!(IpAddr::V6(whole.addr()), vip, "after {writes} writes");
            let directory = Directory(maps.control().directory.get());
            assert!(
                lb_common::service::lookup(&maps.tables, directory, whole, 6, 80).is_some(),
                "after {writes} writes"
            );
            met |= early != whole;
            if done {
                assert_eq!(vip.to_string(), "2001:db8::11");
                break;
            }
            writes += 1;
        }
        assert!(met, "it never died in between");
    }

    #[test]
    fn ports_come_back_as_merged_ranges() {
        let key = |port| ServiceKey::ipv4(1, 6, port);
        assert_eq!(
            ranges(&[key(443), key(80), key(81), key(82)]),
            [80..=82, 443..=443]
        );
        assert_eq!(ranges(&[key(65535), key(65534)]), [65534..=65535]);
        assert!(ranges(&[ServiceKey::ipv4_any_port(1, 6)]).is_empty());
        let udp = |port| ServiceKey::ipv4(1, 17, port);
        let both = [key(80), udp(80), udp(81), key(81)];
        assert_eq!(ranges(&both), [80..=81]);
        assert_eq!(protocol(&both), PROTO_TCP_UDP);
        assert_eq!(protocol(&both[1..3]), 17);
    }
}
