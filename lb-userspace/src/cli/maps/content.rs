//! Every map decoded from the types of `lb_common::abi`: how much of it is used, and what is in it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use jiff::Timestamp;
use lb_common::{
    abi::{
        AREA, BackendState, Bucket, Fence, HOT_WAYS, InfoTrack, Presence, SAMPLES_IN_RING, WAYS,
        map, text,
    },
    address::Ipv6,
    flow::{FlowLine, FlowState, Phase, Way},
    fragment::FRAGMENT_TICKS,
    hot::HotWord,
    pick::{Backend, Slot},
    presence::Said,
    service::{Directory, ServiceKey, ServiceValue},
    tables::Event,
    verdict::Verdict,
    wire::mac_bytes,
};
use serde_json::{Value, json};

use super::super::{
    pinned::{self, Names, Pinned, affinity, interface, mac, protocol},
    rows::{Row, row},
};
use crate::{
    control::hot::source_text,
    dataplane::{DataplaneError, Maps, clock::coarse_ticks},
};

/// How much of a map is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) used: u64,
    pub(super) maximum: u64,
    /// Of what: a map's entry may hold several.
    pub(super) unit: &'static str,
}

/// How much of the map is used.
///
/// # Errors
/// The kernel refuses to read it.
pub(super) fn usage(name: &'static str, pinned: &Pinned) -> Result<Usage, DataplaneError> {
    let Pinned { maps, names } = pinned;
    let usage = |used: usize, maximum: usize, unit| Usage {
        used: used as u64,
        maximum: maximum as u64,
        unit,
    };
    let backends = maps.backend_capacity() as usize;
    Ok(match name {
        map::CONTROL => usage(1, 1, "entry"),
        map::SERVICES => {
            let half = half_in_use(maps);
            let used = half
                .iter()
                .flat_map(|bucket| &bucket.ways)
                .filter(|way| way.key.get() != 0)
                .count();
            usage(used, maps.service_buckets().len() / 2 * WAYS, "keys")
        }
        map::SLOTS => {
            let used = names
                .services
                .values()
                .map(|info| 1_usize << pinned::value(info).bits())
                .sum();
            usage(used, maps.slot_capacity() as usize, "slots")
        }
        map::AREAS => {
            let used = names
                .services
                .values()
                .map(|info| (1_usize << pinned::value(info).bits()) / AREA as usize)
                .sum();
            usage(used, maps.slot_capacity() as usize / AREA as usize, "areas")
        }
        map::BACKENDS => {
            let used = numbers(maps).filter(|number| maps.backend(*number).0 != 0);
            usage(used.count(), backends - 1, "backends")
        }
        map::PORTS => {
            let ports = maps.ports()?;
            usage(
                ports.iter().filter(|port| port.ifindex != 0).count(),
                ports.len(),
                "interfaces",
            )
        }
        map::REDIRECT => usage(redirects(maps)?.len(), maps.ports()?.len(), "interfaces"),
        map::FLOWS => {
            let buckets = maps.flow_buckets();
            usage(records(buckets).count(), buckets.len() * WAYS, "flows")
        }
        map::FLOWS6 => {
            let buckets = maps.flow6_buckets();
            usage(records(buckets).count(), buckets.len() * WAYS, "flows")
        }
        map::FRAGMENTS => {
            let buckets = maps.fragment_buckets();
            let used = records(buckets).count();
            usage(used, buckets.len() * WAYS, "fragmented packets")
        }
        map::VIPS => usage(vips(pinned).len(), maps.vips().len(), "services"),
        map::COUNTERS => usage(counters(pinned)?.len(), backends - 1, "backends"),
        map::VERDICTS => usage(
            maps.verdicts()?
                .iter()
                .filter(|packets| **packets != 0)
                .count(),
            Verdict::COUNT,
            "verdicts",
        ),
        map::EVENTS => usage(
            maps.events()?.iter().filter(|times| **times != 0).count(),
            Event::COUNT,
            "events",
        ),
        map::SERVICE_INFO => usage(
            names.services.len(),
            maps.service_capacity() as usize,
            "services",
        ),
        map::BACKEND_INFO => usage(names.backends.len(), backends - 1, "backends"),
        map::HOT | map::HOT_INFO => usage(
            hot_words(maps).count(),
            maps.hot_lines().len() * HOT_WAYS,
            "sources",
        ),
        map::SAMPLES => {
            let rings = maps.sample_rings();
            let kept = |taken: u64| taken.min(SAMPLES_IN_RING) as usize;
            usage(
                rings.iter().map(|ring| kept(ring.taken.get())).sum(),
                rings.len() * SAMPLES_IN_RING as usize,
                "samples",
            )
        }
        map::FENCES => usage(fences(maps).count(), backends - 1, "nodes"),
        map::PRESENCES => usage(presences(maps).count(), maps.presences().len(), "services"),
        other => unreachable!("{other} is no map of ours"),
    })
}

/// The map's content, without what is empty.
///
/// # Errors
/// The kernel refuses to read it.
pub(super) fn rows(name: &'static str, pinned: &Pinned) -> Result<Vec<Row>, DataplaneError> {
    let Pinned { maps, names } = pinned;
    Ok(match name {
        map::CONTROL => vec![control(maps)],
        map::SERVICES => services(half_in_use(maps), names),
        map::SLOTS => names
            .services
            .iter()
            .flat_map(|(id, info)| {
                let value = pinned::value(info);
                let table =
                    (0..1_u32 << value.bits()).filter_map(move |at| maps.slot(value.offset() + at));
                slots(names, *id, table)
            })
            .collect(),
        map::AREAS => names
            .services
            .iter()
            .flat_map(|(id, info)| {
                let value = pinned::value(info);
                let table = (0..(1_u32 << value.bits()) / AREA)
                    .filter_map(move |at| maps.area(value.offset() / AREA + at));
                areas(names, *id, table)
            })
            .collect(),
        map::BACKENDS => backends(maps, names),
        map::PORTS => {
            let ports = maps.ports()?;
            let taken = (0_u16..).zip(ports).filter(|(_, port)| port.ifindex != 0);
            taken
                .map(|(number, port)| {
                    row! {
                        "port" => number,
                        "interface" => interface(port.ifindex),
                        "index" => port.ifindex,
                        "mac" => mac(mac_bytes(port.mac)),
                        "vlan" => (port.vlan != 0).then_some(port.vlan),
                        "device" => port.device,
                    }
                })
                .collect()
        }
        map::REDIRECT => redirects(maps)?
            .into_iter()
            .map(|(number, index)| {
                row! { "port" => number, "interface" => interface(index), "index" => index }
            })
            .collect(),
        map::FLOWS => flows(maps.flow_buckets(), names),
        map::FLOWS6 => flows(maps.flow6_buckets(), names),
        map::FRAGMENTS => fragments(maps, names),
        map::VIPS => vips(pinned),
        map::COUNTERS => counters(pinned)?,
        map::VERDICTS => {
            let packets = maps.verdicts()?;
            let all = Verdict::ALL
                .iter()
                .zip(packets)
                .filter(|(verdict, _)| !verdict.reached_backend());
            all.map(|(verdict, packets)| {
                row! { "verdict" => verdict.name(), "packets" => packets, "why" => verdict.why() }
            })
            .collect()
        }
        map::EVENTS => {
            let all = Event::ALL.iter().zip(maps.events()?);
            all.map(|(event, times)| row! { "event" => event.name(), "times" => times })
                .collect()
        }
        map::SERVICE_INFO => service_info(names),
        map::BACKEND_INFO => backend_info(names),
        map::HOT => hot(maps, names)?,
        map::HOT_INFO => hot_info(maps, names)?,
        map::SAMPLES => samples(maps),
        map::FENCES => fences(maps)
            .map(|(number, fence)| {
                row! {
                    "number" => number,
                    "backend" => names.backend(number),
                    "service" => names.service_of(number),
                    "fences" => if fence.token.get() != 0 { "this node" } else { "a peer" },
                    "fenced" => lb_common::fence::is_in_force(fence),
                }
            })
            .collect(),
        map::PRESENCES => presences(maps)
            .map(|(place, presence)| {
                let said = Said::of(presence.said.get());
                row! {
                    "place" => place,
                    "service" => names.service_of(said.number),
                    "number" => said.number,
                    "drained" => said.drained,
                    "weight" => said.weight,
                    "tokens_ms" => presence.made_ms.get(),
                }
            })
            .collect(),
        other => unreachable!("{other} is no map of ours"),
    })
}

/// Every backend number.
fn numbers(maps: &Maps) -> impl Iterator<Item = u16> {
    (1..=u16::MAX).take((maps.backend_capacity() as usize).saturating_sub(1))
}

fn half_in_use(maps: &Maps) -> &[Bucket] {
    let directory = Directory(maps.control().directory.get());
    let buckets = maps.service_buckets();
    buckets.get(directory.range()).unwrap_or(buckets)
}

fn control(maps: &Maps) -> Row {
    let control = maps.control();
    let directory = Directory(control.directory.get());
    let half = if directory.second_half() {
        "second"
    } else {
        "first"
    };
    row! {
        "abi" => control.abi.get(),
        "generation" => control.generation.get(),
        "created" => unix_time(control.created.get().saturating_mul(1000)),
        "service_buckets" => 1_u64 << directory.bits(),
        "half_in_use" => half,
        // Whoever knows it can aim flows at one backend.
        "seed" => "secret, not shown",
    }
}

fn unix_time(milliseconds: u64) -> Value {
    let time = i64::try_from(milliseconds)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok());
    time.map_or(Value::Null, |time| json!(time.to_string()))
}

fn services(buckets: &[Bucket], names: &Names) -> Vec<Row> {
    let ways = buckets.iter().flat_map(|bucket| &bucket.ways);
    let mut found: Vec<(ServiceKey, ServiceValue)> = ways
        .map(|way| (ServiceKey(way.key.get()), ServiceValue(way.value.get())))
        .filter(|(key, _)| key.0 != 0)
        .collect();
    // Of an IPv6 VIP the key has a part only; its value names a service that has it whole, its own entry's as well.
    let vip_of = |key: ServiceKey, value: ServiceValue| match key.is_ipv6() {
        false => Some(IpAddr::V4(Ipv4Addr::from_bits(key.vip()))),
        true => names.vip(value.id()),
    };
    found.sort_by_key(|(key, value)| (vip_of(*key, *value), key.protocol(), key.port()));
    let rows = found.into_iter().map(|(key, value)| {
        let vip = vip_of(key, value).map(|vip| vip.to_string());
        // A VIP's own entry names no service: it says that the address is ours.
        let (what, port) = match (key.protocol(), key.port()) {
            (0, _) => return vip_row(vip.as_deref(), value),
            (number, 0) if value.is_for_fragments() => (protocol(number), json!("fragments")),
            (number, 0) => (protocol(number), json!("any")),
            (number, port) => (protocol(number), json!(port)),
        };
        row! {
            "vip" => vip,
            "protocol" => what,
            "port" => port,
            "service" => names.service(value.id()),
            "affinity" => affinity(value.affinity(), key.is_ipv6()),
            "slots" => 1_u64 << value.bits(),
            "first_slot" => value.offset(),
        }
    });
    rows.collect()
}

fn vip_row(vip: Option<&str>, value: ServiceValue) -> Row {
    let what = if value.has_any_port() {
        "VIP, has a service for any port"
    } else {
        "VIP"
    };
    row! {
        "vip" => vip,
        "protocol" => Value::Null,
        "port" => Value::Null,
        "service" => what,
        "affinity" => Value::Null,
        "slots" => Value::Null,
        "first_slot" => Value::Null,
    }
}

/// The places of a table, neighbours with the same content taken together.
fn runs<T: PartialEq>(table: impl Iterator<Item = T>) -> impl Iterator<Item = (String, T)> {
    let mut runs: Vec<(usize, usize, T)> = Vec::new();
    for (at, content) in table.enumerate() {
        match runs.last_mut() {
            Some((_, last, same)) if *same == content => *last = at,
            _ => runs.push((at, at, content)),
        }
    }
    runs.into_iter().map(|(first, last, content)| {
        let places = if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        };
        (places, content)
    })
}

/// A service's slots.
fn slots(
    names: &Names,
    service: u16,
    table: impl Iterator<Item = Slot>,
) -> impl Iterator<Item = Row> {
    runs(table).map(move |(slots, slot)| {
        let previous = if slot.in_transition() {
            json!(names.backend(slot.previous()))
        } else {
            Value::Null
        };
        row! {
            "service" => names.service(service),
            "slots" => slots,
            "current" => names.backend(slot.current()),
            "previous" => previous,
        }
    })
}

/// Those that a backend has alone; of the others, the slots themselves say it.
fn areas(
    names: &Names,
    service: u16,
    table: impl Iterator<Item = u16>,
) -> impl Iterator<Item = Row> {
    let alone = runs(table).filter(|(_, backend)| *backend != 0);
    alone.map(move |(areas, backend)| {
        row! {
            "service" => names.service(service),
            "areas" => areas,
            "backend" => names.backend(backend),
        }
    })
}

fn backends(maps: &Maps, names: &Names) -> Vec<Row> {
    let used = numbers(maps).filter_map(|number| {
        let backend = maps.backend(number);
        (backend.0 != 0).then_some((number, backend))
    });
    let rows = used.map(|(number, backend)| {
        let local = backend.port() == Backend::LOCAL_PORT;
        let address = match backend.mac() {
            0 => Value::Null,
            word => json!(mac(mac_bytes(word))),
        };
        row! {
            "number" => number,
            "backend" => names.backend(number),
            "service" => names.service_of(number),
            "mac" => address,
            "port" => (!local).then(|| backend.port()),
            "local" => local,
            "failed" => backend.failed(),
        }
    });
    rows.collect()
}

fn redirects(maps: &Maps) -> Result<Vec<(u16, u32)>, DataplaneError> {
    let mut found = Vec::new();
    // A device map forgets nothing: where a number is a VLAN's now, an interface that had it before is still there.
    let devices = (0..).zip(maps.ports()?).filter(|(_, port)| port.vlan == 0);
    for (number, _) in devices {
        match maps.redirect(number)? {
            0 => {}
            index => found.push((number, index)),
        }
    }
    Ok(found)
}

/// The records of a table that are in use, each with its bucket and its way.
fn records<W: Way>(buckets: &[FlowLine<W>]) -> impl Iterator<Item = (usize, usize, &W, FlowState)> {
    buckets.iter().enumerate().flat_map(|(bucket, content)| {
        let ways = content.ways.iter().enumerate();
        ways.map(move |(way, record)| (bucket, way, record, FlowState(record.state().get())))
            .filter(|(.., state)| state.used())
    })
}

/// A flow table as it is, what has ended and what is torn among it; `flows` shows what lives.
fn flows<W: Way>(buckets: &[FlowLine<W>], names: &Names) -> Vec<Row> {
    let now = coarse_ticks();
    let rows = records(buckets).map(|(bucket, way, record, state)| {
        let key = record.flow();
        let phase = match state.phase() {
            Phase::Opening => "opening",
            Phase::Open => "open",
            Phase::Closing => "closing",
            Phase::Ended => "ended",
        };
        row! {
            "bucket" => bucket,
            "way" => way,
            "client" => SocketAddr::new(key.named().client, key.client_port()),
            "service" => names.service(key.service),
            "service_port" => key.service_port(),
            "backend" => names.backend(state.backend()),
            "phase" => phase,
            "silent_ticks" => state.silence(now),
        }
    });
    rows.collect()
}

/// Where the fragments of each packet go whose first one has been seen. What names the packet is a digest only.
fn fragments(maps: &Maps, names: &Names) -> Vec<Row> {
    let now = coarse_ticks();
    let rows = records(maps.fragment_buckets()).map(|(bucket, way, record, state)| {
        row! {
            "bucket" => bucket,
            "way" => way,
            "digest" => format!("{:016x}", record.key.get()),
            "backend" => names.backend(state.backend()),
            "silent_ticks" => state.silence(now),
            "believed" => state.silence(now) <= FRAGMENT_TICKS,
        }
    });
    rows.collect()
}

/// The IPv6 VIPs of the services that there are. What a service left that is gone is compared with nothing.
fn vips(pinned: &Pinned) -> Vec<Row> {
    let Pinned { maps, names } = pinned;
    let six = names
        .services
        .iter()
        .filter(|(_, info)| pinned::address(info.vip).is_ipv6());
    let rows = six.filter_map(|(id, info)| {
        let vip = maps.vips().get(usize::from(*id))?;
        let address = Ipv6 {
            high: vip.high.get(),
            low: vip.low.get(),
        };
        Some(row! {
            "id" => id,
            "service" => text(&info.name),
            "vip" => address.addr(),
        })
    });
    rows.collect()
}

fn counters(pinned: &Pinned) -> Result<Vec<Row>, DataplaneError> {
    let mut rows = Vec::new();
    for number in numbers(&pinned.maps) {
        let counter = pinned.maps.counter(number)?;
        if counter.packets != 0 {
            rows.push(row! {
                "number" => number,
                "backend" => pinned.names.backend(number),
                "service" => pinned.names.service_of(number),
                "packets" => counter.packets,
                "bytes" => counter.bytes,
            });
        }
    }
    Ok(rows)
}

fn service_info(names: &Names) -> Vec<Row> {
    let rows = names.services.iter().map(|(id, info)| {
        let value = pinned::value(info);
        row! {
            "id" => id,
            "name" => text(&info.name),
            "vip" => pinned::address(info.vip),
            "protocol" => protocol(info.protocol),
            "affinity" => affinity(value.affinity(), pinned::address(info.vip).is_ipv6()),
            "slots" => 1_u64 << value.bits(),
            "first_slot" => value.offset(),
            "flow_idle_ms" => info.flow_idle_ms,
            "track" => InfoTrack::from_number(info.track).map(InfoTrack::name),
            "affinity_timeout_ms" => info.affinity_timeout_ms,
        }
    });
    rows.collect()
}

fn backend_info(names: &Names) -> Vec<Row> {
    let rows = names.backends.iter().map(|(number, info)| {
        let state = BackendState::from_number(info.state).map(BackendState::name);
        row! {
            "number" => number,
            "name" => text(&info.name),
            "service" => names.service(info.service),
            "address" => pinned::address(info.address),
            "state" => state,
            "healthy" => info.healthy != 0,
            "weight" => info.weight,
            "priority" => info.priority,
            "since" => unix_time(info.since_ms),
            "reason" => text(&info.reason),
        }
    });
    rows.collect()
}

/// The backends of a cluster that can be fenced.
fn fences(maps: &Maps) -> impl Iterator<Item = (u16, &Fence)> {
    (0..=u16::MAX)
        .zip(maps.fences())
        .filter(|(_, fence)| fence.token.get() != 0 || fence.peer_token.get() != 0)
}

/// The services of which this node's data path tells its peers that it has its share.
fn presences(maps: &Maps) -> impl Iterator<Item = (u16, &Presence)> {
    (0..=u16::MAX)
        .zip(maps.presences())
        .filter(|(_, presence)| presence.asked.get() != 0)
}

/// The places in `HOT` that are taken, and what is in them.
fn hot_words(maps: &Maps) -> impl Iterator<Item = (u32, HotWord)> {
    let words = maps.hot_lines().iter().flat_map(|line| &line.ways);
    (0..)
        .zip(words.map(|word| HotWord(word.get())))
        .filter(|(_, word)| word.0 != 0)
}

/// What the data path goes by, with the names that only `HOT_INFO` knows.
fn hot(maps: &Maps, names: &Names) -> Result<Vec<Row>, DataplaneError> {
    let mut rows = Vec::new();
    for (place, word) in hot_words(maps) {
        let info = maps.hot_info(place)?;
        rows.push(row! {
            "line" => place / HOT_WAYS as u32,
            "way" => place % HOT_WAYS as u32,
            "digest" => format!("{:#018x}", word.0 & !7),
            "state" => word.state().name(),
            "new_flows" => picked_by(word.state().spreads()),
            "older_flows" => if word.state().in_transition() {
                json!(picked_by(word.state().spread_before()))
            } else {
                Value::Null
            },
            "service" => info.map(|info| names.service(info.service)),
            "source" => info.map(|info| source_text(&info)),
        });
    }
    Ok(rows)
}

fn picked_by(spread: bool) -> &'static str {
    if spread {
        "address and ports"
    } else {
        "affinity"
    }
}

fn hot_info(maps: &Maps, names: &Names) -> Result<Vec<Row>, DataplaneError> {
    let mut rows = Vec::new();
    for (place, _) in hot_words(maps) {
        if let Some(info) = maps.hot_info(place)? {
            rows.push(row! {
                "place" => place,
                "service" => names.service(info.service),
                "source" => source_text(&info),
                "share_ppm" => info.share_ppm,
                "since" => unix_time(info.since_ms),
            });
        }
    }
    Ok(rows)
}

fn samples(maps: &Maps) -> Vec<Row> {
    let rings = (0..).zip(maps.sample_rings());
    rings
        .filter(|(_, ring)| ring.packets.get() != 0)
        .map(|(processor, ring): (u32, _)| {
            row! {
                "processor" => processor,
                "packets" => ring.packets.get(),
                "sampled" => ring.taken.get(),
            }
        })
        .collect()
}

#[cfg(test)]
#[path = "content_tests.rs"]
mod tests;
