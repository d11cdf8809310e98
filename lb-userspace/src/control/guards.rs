//! Bounds of the controller's work that need no clock: what is read and written of the maps, and what is allocated. An
//! accidental walk through everything there is shows in one of them.

use std::time::Duration;

use lb_common::{abi::BackendState, pick::Slot};

use super::{
    actual::Op,
    desired::{DesiredBackend, DesiredService},
    failure::{Failed, fail},
    memory::Memory as _,
    prepared::Prepared,
    reconcile::{Scope, reconcile},
    samples::{Bench, Touched, backend, service},
    sweep::Budget,
    sweeper::Sweeper,
};
use crate::counting::{Allocated, allocated};

/// So many services of sixteen backends.
fn services(count: u32) -> Vec<DesiredService> {
    (0..count)
        .map(|number| {
            let backends: Vec<DesiredBackend> =
                (0..16).map(|b| backend(&format!("b{b}"))).collect();
            let mut service = service(&format!("s{number}"), 10, &backends);
            service.entries.vip = std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).into();
            service
        })
        .collect()
}

fn bench_of(count: u32) -> (Bench, Vec<DesiredService>) {
    let services = services(count);
    let mut bench = Bench::roomy(1 << 21, 512, 1 << 13, 1 << 12);
    bench.bring(&services);
    (bench, services)
}

fn down(number: u16) -> Failed {
    Failed {
        number,
        reason: "connection refused".into(),
        healthy: false,
        without_mac: false,
    }
}

/// Plans and does a failure of this backend; gives what that took.
fn failure(
    bench: &mut Bench,
    service: &str,
    backend: &str,
    prepared: &mut Prepared,
) -> (Touched, Allocated) {
    let number = bench.number(service, backend);
    let id = bench.actual().service_id(service).unwrap();
    bench.executor.maps.touched.take();
    let ((), allocated) = allocated(|| {
        let ops = fail(bench.actual(), id, &[down(number)], 1, prepared).unwrap();
        let now = bench.now;
        bench.executor.execute(&ops, now, || now).unwrap();
    });
    let touched = bench.executor.maps.touched.take();
    bench.check();
    assert_eq!(bench.state(service, backend), BackendState::Down);
    (touched, allocated)
}

#[test]
fn a_failure_takes_the_same_among_few_services_and_among_many() {
    let of = |count| {
        let (mut bench, _) = bench_of(count);
        failure(&mut bench, "s7", "b3", &mut Prepared::default())
    };
    let ((few, few_allocated), (many, many_allocated)) = (of(10), of(300));
    assert_eq!(few, many);
    // A tree of more entries may have a node to split or to join.
    assert!(
        many_allocated.times <= few_allocated.times + 8,
        "{few_allocated:?} {many_allocated:?}"
    );
    assert!(
        many_allocated.bytes <= few_allocated.bytes + (16 << 10),
        "{few_allocated:?} {many_allocated:?}"
    );
}

#[test]
fn one_of_a_thousand_fails_without_a_copy_of_the_other_ones() {
    let mut bench = Bench::of_one_large(1000);
    let slots = 1 << 17;
    let number = bench.number("web", "b500");
    let named = u64::from(bench.actual().named(number).current);
    let (touched, allocated) = failure(&mut bench, "web", "b500", &mut Prepared::default());
    assert_eq!(
        (touched.slots_read, touched.backends, touched.infos),
        (0, 1, 1)
    );
    assert_eq!(touched.slots, named, "nobody else's");
    // A thousand names would be a thousand of them.
    assert!(allocated.times < 150, "{allocated:?}");
    // What there is for each backend and each block. A table that is made slot by slot takes two bytes more for each of them,
    // and a copy of what the maps have four.
    assert!(allocated.bytes < slots + (256 << 10), "{allocated:?}");
}

#[test]
fn a_failure_that_was_foreseen_allocates_no_table() {
    let mut bench = Bench::of_one_large(1000);
    let mut prepared = Prepared::default();
    prepared.suspect(bench.actual(), bench.number("web", "b500"));
    prepared.prepare(bench.actual());
    let (_, allocated) = failure(&mut bench, "web", "b500", &mut prepared);
    assert!(allocated.bytes < 200 << 10, "{allocated:?}");
}

#[test]
fn a_drain_takes_the_same_among_few_services_and_among_many() {
    let of = |count| {
        let (mut bench, services) = bench_of(count);
        let mut drained = services[7].clone();
        drained.backends[3].state = BackendState::Draining;
        bench.executor.maps.touched.take();
        let (ops, allocated) = allocated(|| {
            let actual = bench.actual();
            let ops = reconcile(&[drained], Scope::Only, actual, 1, bench.now).unwrap();
            let now = bench.now;
            bench.executor.execute(&ops, now, || now).unwrap();
            ops
        });
        assert!(matches!(
            &ops[..],
            [Op::Backend { .. }, Op::Slots { changes, .. }]
                if changes.iter().all(|(_, slot): &(u32, Slot)| slot.in_transition())
        ));
        (bench.executor.maps.touched.take(), allocated)
    };
    let ((few, few_allocated), (many, many_allocated)) = (of(10), of(300));
    assert_eq!(few, many);
    assert_eq!((few.slots_read, few.backends), (0, 1));
    assert!(
        many_allocated.times <= few_allocated.times + 8,
        "{few_allocated:?} {many_allocated:?}"
    );
}

#[test]
fn what_changes_nothing_writes_nothing() {
    let (bench, services) = bench_of(50);
    bench.executor.maps.touched.take();
    assert_eq!(bench.plan(&services).unwrap(), []);
    assert_eq!(bench.executor.maps.touched.take(), Touched::default());
    assert_eq!(bench.executor.maps.slot_capacity(), 1 << 21);
}

#[test]
fn where_nothing_is_in_transition_the_flow_table_is_not_looked_at() {
    let (mut bench, services) = bench_of(5);
    assert!((1..10).any(|_| bench.sweep().quiet));
    let mut sweeper = Sweeper::default();
    sweeper.begin(bench.actual(), bench.now);
    loop {
        assert_eq!(sweeper.step(&bench.view(), Budget::ALL).ops, []);
        if sweeper.done(bench.actual(), bench.now, Duration::ZERO) {
            break;
        }
    }
    for _ in 0..100 {
        bench.now += 60_000;
        sweeper.begin(bench.actual(), bench.now);
        assert!(!sweeper.is_active());
    }
    let mut drained = services;
    drained[0].backends[0].state = BackendState::Draining;
    let ops = bench.plan(&drained).unwrap();
    sweeper.note(bench.actual(), &ops);
    bench.execute(&ops);
    sweeper.begin(bench.actual(), bench.now);
    assert!(sweeper.is_active());
}
