//! The short way of a failure: from the verdict on a backend to the stores that move its flows, by what that backend's
//! service alone holds. Pure.
//!
//! [`reconcile`](super::reconcile) would find the same operations, by way of what every backend of the service should be; it
//! is asked where more than the failure has to be considered.

use std::collections::BTreeSet;

use lb_common::{abi::BackendState, pick::Backend};

use super::{
    actual::{Actual, ActualBackend, BuiltFor, Op},
    prepared::Prepared,
    reconcile::changes,
};

/// A backend that was found down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Its number.
    pub number: u16,
    /// Why it is down.
    pub reason: String,
    /// Whether its probes succeed all the same.
    pub healthy: bool,
    /// Whether its MAC address is lost.
    pub without_mac: bool,
}

/// The operations that follow when these backends of one service have failed; entries before slots. `None` where more has to
/// be considered: a backend that the operator failed or that is down already, one that leaves, a service of which nobody of
/// this priority is left or that this controller has not reconciled yet. Tables come from what is `prepared`.
#[must_use]
pub fn fail(
    actual: &Actual,
    service_id: u16,
    failed: &[Failed],
    unix_ms: u64,
    prepared: &mut Prepared,
) -> Option<Vec<Op>> {
    let service = actual.services().get(&service_id)?;
    let built_for = service.built_for.as_ref()?;
    let mut ops = Vec::with_capacity(failed.len() + 1);
    let mut numbers = BTreeSet::new();
    for one in failed {
        let old = actual.backends().get(&one.number)?;
        let serves = matches!(
            old.state,
            BackendState::Up | BackendState::Draining | BackendState::Drained
        );
        if old.service != service_id || !serves || !numbers.insert(one.number) {
            return None;
        }
        let mac = if one.without_mac { 0 } else { old.entry.mac() };
        ops.push(Op::Backend {
            number: one.number,
            backend: ActualBackend {
                entry: Backend::new(mac, old.entry.port(), true),
                state: BackendState::Down,
                reason: one.reason.clone(),
                since_ms: unix_ms,
                healthy: one.healthy,
                ..old.clone()
            },
        });
    }
    let left = without(built_for, |number| numbers.contains(&number));
    if left.iter().all(|share| share.weight == 0) {
        // The next priority serves, or nobody does.
        return None;
    }
    let has_failed = |number: u16| numbers.contains(&number) || actual.has_failed(number);
    let takes_part = left != *built_for;
    if !takes_part && !numbers.iter().any(|number| actual.is_named(*number)) {
        return Some(ops);
    }
    let runs = prepared.runs(service, &left);
    let changes = changes(&service.slots, &runs, service.track, has_failed);
    if !changes.is_empty() || takes_part {
        ops.push(Op::Slots {
            service: service_id,
            changes,
            built_for: Some(left),
        });
    }
    Some(ops)
}

/// What a table is built for when these backends take no new flows.
pub(super) fn without(built_for: &BuiltFor, failed: impl Fn(u16) -> bool) -> BuiltFor {
    let mut left = built_for.clone();
    for share in left.iter_mut().filter(|share| failed(share.number)) {
        share.weight = 0;
    }
    left
}

#[cfg(test)]
mod tests {
    use lb_common::{abi::AREA, flow::Phase};
    use proptest::prelude::*;

    use super::*;
    use crate::control::{
        desired::{DesiredBackend, DesiredService},
        retarget::Track,
        samples::{Bench, backend, in_state, service},
    };

    fn down(number: u16) -> Failed {
        Failed {
            number,
            reason: "connection refused".into(),
            healthy: false,
            without_mac: false,
        }
    }

    fn fail_unprepared(
        actual: &Actual,
        service: u16,
        failed: &[Failed],
        unix_ms: u64,
    ) -> Option<Vec<Op>> {
        fail(actual, service, failed, unix_ms, &mut Prepared::default())
    }

    /// As [`down`] makes it.
    fn refused(backend: &DesiredBackend) -> DesiredBackend {
        DesiredBackend {
            state: BackendState::Down,
            reason: "connection refused".into(),
            healthy: false,
            ..backend.clone()
        }
    }

    fn unix_ms(bench: &Bench) -> u64 {
        1_700_000_000_000 + bench.now
    }

    /// 500 services of 16 backends: what a failure reads and writes does not depend on them.
    #[test]
    fn a_failure_costs_its_own_slots_and_nothing_else() {
        let count = 500;
        let services: Vec<DesiredService> = (0..count)
            .map(|n| {
                let backends: Vec<DesiredBackend> =
                    (0..16).map(|b| backend(&format!("b{b}"))).collect();
                let mut service = service(&format!("s{n}"), 10, &backends);
                service.entries.vip = std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into();
                service
            })
            .collect();
        let mut bench = Bench::roomy(1 << 21, 512, 1 << 13, 1 << 12);
        bench.bring(&services);
        let number = bench.number("s7", "b3");
        let id = bench.actual().service_id("s7").unwrap();
        let named = u64::from(bench.actual().named(number).current);

        bench.executor.maps.touched.take();
        let ops = fail_unprepared(bench.actual(), id, &[down(number)], unix_ms(&bench)).unwrap();
        assert_eq!(ops.len(), 2, "one backend, one service");
        assert_eq!(
            bench.executor.maps.touched.take(),
            Default::default(),
            "planned without a look at the maps"
        );
        bench.execute(&ops);
        let touched = bench.executor.maps.touched.take();
        assert_eq!((touched.slots_read, touched.backends), (0, 1));
        assert_eq!(touched.slots, named, "its own slots, and nobody else's");
        assert!(touched.areas <= named / u64::from(AREA), "{touched:?}");
        assert_eq!((touched.infos, touched.waits), (1, 0));
        assert_eq!(bench.actual().named(number).current, 0);
        bench.check();
    }

    #[test]
    fn what_takes_more_than_the_failure_is_left_to_the_reconciler() {
        let mut bench = Bench::new();
        let spare = DesiredBackend {
            priority: 2,
            ..backend("spare")
        };
        bench.bring(&[
            service("web", 10, &[backend("a"), spare]),
            service(
                "mail",
                11,
                &[backend("a"), in_state("b", BackendState::Failed)],
            ),
        ]);
        let fails = |service: &str, failed: &[Failed]| {
            let id = bench.actual().service_id(service).unwrap();
            fail_unprepared(bench.actual(), id, failed, 1).is_some()
        };
        let of = |service, backend| down(bench.number(service, backend));
        assert!(!fails("web", &[of("web", "a")]), "the next priority serves");
        assert!(fails("web", &[of("web", "spare")]), "in reserve");
        assert!(!fails("mail", &[of("mail", "a")]), "nobody is left");
        assert!(!fails("mail", &[of("mail", "b")]), "failed already");
        assert!(!fails("mail", &[of("web", "a")]), "another service's");
        assert!(!fails("mail", &[down(63)]), "nobody has this number");
    }

    /// A backend that drains still has flows; its slots have it as previous.
    #[test]
    fn a_draining_backend_drops_out_of_both_sides() {
        let mut bench = Bench::new();
        let with = |b| [service("web", 10, &[backend("a"), b])];
        bench.bring(&with(backend("b")));
        bench.bring(&with(in_state("b", BackendState::Draining)));
        let number = bench.number("web", "b");
        assert!(bench.actual().named(number).previous > 0);
        let ops = fail_unprepared(bench.actual(), 0, &[down(number)], unix_ms(&bench)).unwrap();
        bench.execute(&ops);
        assert_eq!(bench.actual().named(number).previous, 0);
        assert_eq!(bench.state("web", "b"), BackendState::Down);
        bench.check();
    }

    proptest! {
        /// Whatever came before, the short way ends where the long one does.
        #[test]
        fn the_reconciler_has_nothing_to_add(
            weights in prop::collection::vec(0_u32..5, 2..8),
            priorities in prop::collection::vec(1_u32..3, 8),
            drained in prop::collection::vec(any::<bool>(), 8),
            failing in prop::collection::vec(any::<bool>(), 8),
            again in prop::collection::vec(any::<bool>(), 8),
            udp in any::<bool>(),
            record in 0_usize..8,
        ) {
            let all: Vec<DesiredBackend> = weights
                .iter()
                .enumerate()
                .map(|(n, weight)| DesiredBackend {
                    configured: *weight,
                    weight: *weight,
                    priority: priorities[n],
                    ..backend(&format!("b{n}"))
                })
                .collect();
            let of = |backends: Vec<DesiredBackend>| {
                let mut web = service("web", 10, &backends);
                if udp {
                    web.track = Track::Nothing;
                }
                [web, service("mail", 11, &[backend("x")])]
            };
            let mut bench = Bench::new();
            bench.bring(&of(all.clone()));
            // Some drain, so that slots are in transition.
            let mut wanted: Vec<DesiredBackend> = all
                .iter()
                .zip(&drained)
                .map(|(backend, drained)| DesiredBackend {
                    state: if *drained { BackendState::Draining } else { BackendState::Up },
                    ..backend.clone()
                })
                .collect();
            bench.now += 100;
            bench.bring(&of(wanted.clone()));
            let number = bench.number("web", &format!("b{}", record % all.len()));
            let key = lb_common::flow::FlowKey::tcp(1, 2, 0);
            bench.executor.maps.put_record(key, number, bench.tick(), Phase::Open);
            for round in [&failing, &again] {
                bench.now += 100;
                let failed: Vec<Failed> = wanted
                    .iter()
                    .zip(round)
                    .filter(|(backend, fails)| **fails && backend.state != BackendState::Down)
                    .map(|(backend, _)| down(bench.number("web", &backend.name)))
                    .collect();
                let id = bench.actual().service_id("web").unwrap();
                let short = fail_unprepared(bench.actual(), id, &failed, unix_ms(&bench));
                for (backend, fails) in wanted.iter_mut().zip(round) {
                    if *fails && backend.state != BackendState::Down {
                        *backend = refused(backend);
                    }
                }
                if let Some(ops) = short {
                    bench.execute(&ops);
                    bench.check();
                    prop_assert_eq!(bench.plan(&of(wanted.clone())).unwrap(), []);
                } else {
                    bench.bring(&of(wanted.clone()));
                }
            }
        }
    }
}
