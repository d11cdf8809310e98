//! The state of everything as `status` tells it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::SystemTime,
};

use jiff::Timestamp;
use lb_common::{
    abi::{ABI_VERSION, BackendState, Counter, PROTO_TCP_UDP},
    tables::Event,
    verdict::Verdict,
    wire::{PROTO_TCP, PROTO_UDP, mac_bytes},
};

use super::{
    actual::{Actual, ActualBackend, ActualService, Millis, Named},
    decisions::{Decision, Decisions},
    failback::Standing,
    hot::source_text,
    memory::Memory,
    retarget::Track,
    sweep::Sweep,
};
use crate::{
    api::{BackendStatus, FlowTableStatus, HotSourceStatus, NodeStatus, ServiceStatus, Status},
    config::{Failback, Share},
    dataplane::DataplaneError,
};

/// RFC 3339, in UTC, to the millisecond.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| String::new(), |time| format!("{time:.3}"))
}

/// Unix milliseconds as RFC 3339.
#[must_use]
pub fn rfc3339_ms(unix_ms: u64) -> String {
    Timestamp::from_millisecond(i64::try_from(unix_ms).unwrap_or(i64::MAX))
        .map_or_else(|_| String::new(), |time| format!("{time:.3}"))
}

/// A MAC address as people write it.
#[must_use]
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// What `status` tells besides what the maps hold.
pub struct Told<'a> {
    /// How a configured service of this name stands with its priorities.
    pub standing: &'a dyn Fn(&str) -> Option<Standing>,
    /// Above which share of its packets a configured service of this name spreads a source.
    pub threshold: &'a dyn Fn(&str) -> Option<Share>,
    /// What the operator decided.
    pub decisions: &'a Decisions,
}

impl std::fmt::Debug for Told<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Told")
            .field("decisions", self.decisions)
            .finish_non_exhaustive()
    }
}

/// What one piece of a report may cost at most: backends that are put into words, or counters that are read.
pub const PIECE: u16 = 256;

/// The state of everything, put together in pieces: 65,536 backends take a tenth of a second, in which a failure must not
/// wait. A service is told as it is when its turn comes.
#[derive(Debug)]
pub struct Report {
    services: Vec<ServiceStatus>,
    verdicts: BTreeMap<String, u64>,
    events: BTreeMap<String, u64>,
    flow_table: FlowTableStatus,
    /// Where the counters are read on.
    next: u32,
    counters: Vec<Counter>,
    /// The services that have not been told yet, the next one last.
    left: Vec<u16>,
}

impl Report {
    /// Begins. Services come in the order of these names.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn begin<'n>(
        maps: &impl Memory,
        actual: &Actual,
        order: impl Iterator<Item = &'n str>,
        sweep: &Sweep,
    ) -> Result<Self, DataplaneError> {
        // The verdicts are counted before the backends' counters are read, so what was forwarded is never below zero.
        let counted = maps.verdicts()?;
        let events = maps.events()?;
        let positions: HashMap<&str, usize> = order.zip(0..).collect();
        let position = |name: &str| positions.get(name).copied().unwrap_or(usize::MAX);
        let mut left: Vec<u16> = actual.services().keys().copied().collect();
        left.sort_by_cached_key(|id| Reverse(position(&actual.services()[id].name)));
        Ok(Self {
            services: Vec::with_capacity(left.len()),
            verdicts: Verdict::ALL
                .iter()
                .map(|v| (v.name().to_owned(), counted[*v as usize]))
                .collect(),
            events: Event::ALL
                .iter()
                .map(|e| (e.name().to_owned(), events[*e as usize]))
                .collect(),
            flow_table: FlowTableStatus {
                used: sweep.used,
                capacity: ((maps.flow_buckets().len() + maps.flow6_buckets().len())
                    * lb_common::abi::WAYS) as u64,
            },
            next: 0,
            counters: Vec::new(),
            left,
        })
    }

    /// Goes on by one piece; true when everything is told.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn step(
        &mut self,
        maps: &impl Memory,
        actual: &Actual,
        sweep: &Sweep,
        told: &Told<'_>,
        now: Millis,
    ) -> Result<bool, DataplaneError> {
        if self.next < maps.backend_capacity().min(1 << 16) {
            // Reading a counter costs a tenth of putting a backend into words.
            let read = maps.counters(self.next as u16, PIECE * 8)?;
            self.next += u32::from(PIECE) * 8;
            self.counters.extend(read);
            return Ok(false);
        }
        let mut spent = 0;
        while spent < usize::from(PIECE)
            && let Some(id) = self.left.pop()
        {
            let Some(service) = actual.services().get(&id) else {
                continue;
            };
            let silent = silent_until(service, now);
            let backends: Vec<BackendStatus> = actual
                .backends_of(id)
                .into_iter()
                .map(|(number, backend)| {
                    backend_status(
                        number,
                        backend,
                        actual.named(number),
                        self.counters
                            .get(usize::from(number))
                            .copied()
                            .unwrap_or_default(),
                        sweep,
                        silent.get(&number),
                        told.decisions.of(&service.name, &backend.name),
                    )
                })
                .collect();
            // A large table in transition is looked at slot by slot.
            spent += 1 + backends.len() + service.slots.len() / 512;
            let standing = (told.standing)(&service.name);
            let in_transition = actual.in_transition(id);
            self.services.push(ServiceStatus {
                spread_hot_sources: (told.threshold)(&service.name).map(Share::fraction),
                hot_sources: hot_sources(actual, id),
                ..service_status(service, standing, in_transition, backends)
            });
        }
        Ok(self.left.is_empty())
    }

    /// The whole. `node` is as of now, so that it tells of every change that the services show.
    #[must_use]
    pub fn finish(mut self, node: NodeStatus) -> Status {
        // What reached a backend is counted there. Numbers that have no owner any more still count.
        let reached = self
            .counters
            .iter()
            .fold(0_u64, |sum, counter| sum.wrapping_add(counter.packets));
        let otherwise: u64 = Verdict::ALL
            .iter()
            .filter(|verdict| verdict.reached_backend() && **verdict != Verdict::Forwarded)
            .filter_map(|verdict| self.verdicts.get(verdict.name()))
            .sum();
        self.verdicts.insert(
            Verdict::Forwarded.name().into(),
            reached.saturating_sub(otherwise),
        );
        Status {
            node,
            services: self.services,
            verdicts: self.verdicts,
            events: self.events,
            flow_table: self.flow_table,
        }
    }
}

/// The layouts' version, for [`NodeStatus::abi`].
pub const ABI: u32 = ABI_VERSION;

/// The hot sources of a service, the largest share first.
fn hot_sources(actual: &Actual, service: u16) -> Vec<HotSourceStatus> {
    let mut sources: Vec<_> = actual.hot_of(service).collect();
    sources.sort_by_key(|(source, hot)| (Reverse(hot.share_ppm), **source));
    sources
        .into_iter()
        .map(|(source, hot)| HotSourceStatus {
            source: source_text(&hot.info(*source)),
            share: Share(hot.share_ppm).fraction(),
            since: rfc3339_ms(hot.since_ms),
            state: hot.state.name().into(),
        })
        .collect()
}

/// How many bits an address of this family has.
const fn address_bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn service_status(
    service: &ActualService,
    standing: Option<Standing>,
    in_transition: u32,
    backends: Vec<BackendStatus>,
) -> ServiceStatus {
    let affinity = service.affinity;
    ServiceStatus {
        name: service.name.clone(),
        vip: service.entries.vip.to_string(),
        protocol: match service.entries.protocol {
            PROTO_TCP => "tcp".into(),
            PROTO_UDP => "udp".into(),
            PROTO_TCP_UDP => "tcp+udp".into(),
            other => other.to_string(),
        },
        ports: if service.entries.ports.is_empty() {
            vec!["any".into()]
        } else {
            service
                .entries
                .ports
                .iter()
                .map(|range| match (range.start(), range.end()) {
                    (first, last) if first == last => first.to_string(),
                    (first, last) => format!("{first}-{last}"),
                })
                .collect()
        },
        affinity: match (affinity.ports, affinity.prefix) {
            (true, _) => "none".into(),
            (false, prefix) if prefix == address_bits(service.entries.vip) => "client".into(),
            (false, _) => "network".into(),
        },
        spread_hot_sources: None,
        hot_sources: Vec::new(),
        flow_idle_s: service.flow_idle.as_secs_f64(),
        track: service.following.track.name().into(),
        affinity_timeout_s: service
            .following
            .affinity_timeout
            .map(|timeout| timeout.as_secs_f64()),
        slots: service.slots.len() as u64,
        slots_in_transition: in_transition.into(),
        failback: match standing.map(|standing| standing.failback) {
            Some(Failback::Manual) => "manual".into(),
            Some(Failback::Auto) | None => "auto".into(),
        },
        priority: standing.and_then(|standing| standing.priority),
        held: standing.is_some_and(|standing| standing.held),
        better_priority: standing.and_then(|standing| standing.better),
        backends,
    }
}

fn backend_status(
    number: u16,
    backend: &ActualBackend,
    named: Named,
    counter: Counter,
    sweep: &Sweep,
    silent_until: Option<&SystemTime>,
    decision: Decision,
) -> BackendStatus {
    BackendStatus {
        name: backend.name.clone(),
        address: backend.address.to_string(),
        mac: (backend.entry.mac() != 0).then(|| mac_text(mac_bytes(backend.entry.mac()))),
        number,
        state: backend.state.name().into(),
        reason: backend.reason.clone(),
        since: rfc3339_ms(backend.since_ms),
        weight: backend.weight,
        priority: backend.priority,
        slots: named.current.into(),
        previous_slots: named.previous.into(),
        packets: counter.packets.wrapping_sub(backend.base_packets),
        bytes: counter.bytes.wrapping_sub(backend.base_bytes),
        // Those that the last look at the table counted have moved or were ended meanwhile.
        flows: if backend.entry.failed() {
            0
        } else {
            sweep.flows.get(&number).copied().unwrap_or(0)
        },
        silent_until: silent_until.map(|time| rfc3339(*time)),
        drain_until: decision
            .drain_until_ms
            .filter(|_| decision.flows_ended.is_none() && !is_drained(backend))
            .map(rfc3339_ms),
        flows_ended: decision.flows_ended,
    }
}

fn is_drained(backend: &ActualBackend) -> bool {
    backend.state == BackendState::Drained
}

/// Until when each backend of a service may still have flows that were silent all the while: as long as a slot has it as
/// previous.
fn silent_until(service: &ActualService, now: Millis) -> BTreeMap<u16, SystemTime> {
    let mut until: BTreeMap<u16, Millis> = BTreeMap::new();
    if service.track == Track::Flows {
        let idle = u64::try_from(service.flow_idle.as_millis()).unwrap_or(u64::MAX);
        for (slot, changed) in service.slots.iter().zip(&service.changed) {
            if slot.in_transition() && slot.previous() != slot.current() {
                let end = changed.saturating_add(idle);
                let latest = until.entry(slot.previous()).or_default();
                *latest = (*latest).max(end);
            }
        }
    }
    let wall = SystemTime::now();
    until
        .into_iter()
        .map(|(number, end)| {
            (
                number,
                wall + std::time::Duration::from_millis(end.saturating_sub(now)),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::samples::{Bench, backend, in_state, service};

    fn node() -> NodeStatus {
        NodeStatus {
            name: "lb1".into(),
            version: "0".into(),
            pid: 1,
            started: String::new(),
            pin_path: String::new(),
            config: String::new(),
            abi: ABI,
            features: Vec::new(),
            generation: 0,
            interfaces: Vec::new(),
            last_apply: None,
            cluster: None,
        }
    }

    fn status_of(bench: &Bench, sweep: &Sweep) -> Status {
        status_with(bench, sweep, &Decisions::default())
    }

    fn status_with(bench: &Bench, sweep: &Sweep, decisions: &Decisions) -> Status {
        let standing = Standing {
            failback: Failback::Manual,
            priority: Some(2),
            held: true,
            better: Some(1),
        };
        let told = Told {
            standing: &|_| Some(standing),
            threshold: &|_| Some(Share(50_000)),
            decisions,
        };
        let maps = &bench.executor.maps;
        let order = ["web", "mail"].into_iter();
        let mut report = Report::begin(maps, bench.actual(), order, sweep).unwrap();
        while !report
            .step(maps, bench.actual(), sweep, &told, bench.now)
            .unwrap()
        {}
        report.finish(node())
    }

    #[test]
    fn what_was_decided_is_told() {
        let mut bench = Bench::new();
        let with = |state| [service("web", 10, &[backend("a"), in_state("b", state)])];
        bench.bring(&with(BackendState::Up));
        let mut decisions = Decisions::default();
        let drain = Decision {
            drained: true,
            drain_until_ms: Some(1_700_000_000_000),
            ..Decision::default()
        };
        decisions.set("web", "b", drain);
        bench.bring(&with(BackendState::Draining));
        let of_b = |bench: &Bench, decisions: &Decisions| {
            let status = status_with(bench, &Sweep::default(), decisions);
            let web = &status.services[0];
            assert_eq!((web.failback.as_str(), web.priority), ("manual", Some(2)));
            assert_eq!((web.held, web.better_priority), (true, Some(1)));
            let b = &web.backends[1];
            (b.state.clone(), b.drain_until.clone(), b.flows_ended)
        };
        assert_eq!(
            of_b(&bench, &decisions),
            (
                "draining".to_owned(),
                Some("2023-11-14T22:13:20.000Z".to_owned()),
                None
            )
        );
        let over = Decision {
            flows_ended: Some(3),
            ..drain
        };
        decisions.set("web", "b", over);
        bench.bring(&with(BackendState::Drained));
        assert_eq!(
            of_b(&bench, &decisions),
            ("drained".to_owned(), None, Some(3))
        );
    }

    #[test]
    fn services_are_in_the_order_of_the_file_and_slots_add_up() {
        let mut bench = Bench::new();
        bench.bring(&[service("mail", 11, &[backend("a")])]);
        bench.bring(&[
            service("web", 10, &[backend("a"), backend("b")]),
            service("mail", 11, &[backend("a")]),
        ]);
        let status = status_of(&bench, &Sweep::default());
        let names: Vec<&str> = status.services.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["web", "mail"]);
        for service in &status.services {
            let slots: u64 = service.backends.iter().map(|b| b.slots).sum();
            assert_eq!(slots, service.slots);
            assert_eq!(service.slots_in_transition, 0);
        }
        let web = &status.services[0];
        assert_eq!(
            (web.vip.as_str(), web.protocol.as_str()),
            ("192.0.2.10", "tcp")
        );
        assert_eq!(web.ports, ["80"]);
        assert_eq!(web.affinity, "client");
        let b = &web.backends[1];
        assert_eq!((b.name.as_str(), b.state.as_str()), ("b", "up"));
        assert_eq!(b.silent_until, None);
    }

    #[test]
    fn a_drain_says_until_when_silent_flows_may_exist() {
        let mut bench = Bench::new();
        let with = |state| [service("web", 10, &[backend("a"), in_state("b", state)])];
        bench.bring(&with(BackendState::Up));
        bench.bring(&with(BackendState::Draining));
        bench.now += 4000;
        let number = bench.number("web", "b");
        let sweep = Sweep {
            flows: BTreeMap::from([(number, 7)]),
            ..Sweep::default()
        };
        let before = SystemTime::now();
        let status = status_of(&bench, &sweep);
        let b = &status.services[0].backends[1];
        assert_eq!((b.state.as_str(), b.flows, b.slots), ("draining", 7, 0));
        assert_eq!(b.previous_slots, status.services[0].slots_in_transition);
        assert!(b.previous_slots > 0);
        // Ten seconds of `flow_idle`, four of which have passed.
        let until: Timestamp = b.silent_until.as_ref().unwrap().parse().unwrap();
        let left = until.as_millisecond() - Timestamp::try_from(before).unwrap().as_millisecond();
        assert!((5999..60_000).contains(&left), "{left} ms");
        assert!(status.services[0].backends[0].silent_until.is_none());
    }

    /// What one piece costs does not depend on how many services there are.
    #[test]
    fn a_report_of_many_services_is_made_in_pieces() {
        let mut bench = Bench::roomy(1 << 21, 512, 1 << 13, 1 << 12);
        let services: Vec<_> = (0..300)
            .map(|n| {
                let mut service = service(&format!("s{n}"), 10, &[backend("a"), backend("b")]);
                service.entries.vip = std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into();
                service
            })
            .collect();
        bench.bring(&services);
        let maps = &bench.executor.maps;
        let sweep = Sweep::default();
        let decisions = Decisions::default();
        let told_of_nobody = Told {
            standing: &|_| None,
            threshold: &|_| None,
            decisions: &decisions,
        };
        let order = services.iter().map(|s| s.name.as_str());
        let mut report = Report::begin(maps, bench.actual(), order, &sweep).unwrap();
        let mut told = 0;
        while !report
            .step(maps, bench.actual(), &sweep, &told_of_nobody, bench.now)
            .unwrap()
        {
            let services = report.services.len();
            assert!(
                services - told <= usize::from(PIECE) / 3 + 1,
                "{told} then {services}"
            );
            told = services;
        }
        let status = report.finish(node());
        let names: Vec<&str> = status.services.iter().map(|s| s.name.as_str()).collect();
        let expected: Vec<&str> = services.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, expected);
    }

    /// One counter on the hot path: what reached a backend in another way is counted there and by its verdict.
    #[test]
    fn what_was_redirected_or_local_was_not_forwarded() {
        use lb_common::tables::Tables as _;
        let mut bench = Bench::new();
        bench.bring(&[service("web", 10, &[backend("a")])]);
        let number = bench.number("web", "a");
        let tables = &bench.executor.maps.tables;
        for _ in 0..6 {
            tables.count_backend(number, 100);
        }
        tables.count_verdict(Verdict::Redirected);
        tables.count_verdict(Verdict::Local);
        tables.count_verdict(Verdict::Local);
        let verdicts = status_of(&bench, &Sweep::default()).verdicts;
        assert_eq!(
            (
                verdicts["forwarded"],
                verdicts["redirected"],
                verdicts["local"]
            ),
            (3, 1, 2)
        );
    }

    /// Counters are never set back: the next owner of a number starts from what it shows.
    #[test]
    fn a_new_owner_of_a_number_starts_from_zero() {
        use lb_common::tables::Tables as _;
        let mut bench = Bench::new();
        bench.bring(&[service("web", 10, &[backend("a")])]);
        let number = bench.number("web", "a");
        bench.executor.maps.tables.count_backend(number, 100);
        let packets = |bench: &Bench| {
            let status = status_of(bench, &Sweep::default());
            assert_eq!(status.verdicts["forwarded"], 1);
            status.services[0].backends[0].packets
        };
        assert_eq!(packets(&bench), 1);
        bench.bring(&[]);
        bench.sweep();
        bench.bring(&[service("mail", 10, &[backend("b")])]);
        assert_eq!(bench.number("mail", "b"), number);
        assert_eq!(packets(&bench), 0);
    }
}
