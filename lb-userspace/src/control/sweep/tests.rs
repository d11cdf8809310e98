//! When a flow counts, when its record goes, and when a slot settles.

use lb_common::{
    flow::{FlowKey, Key as _, Phase},
    pick::{hash_of, slot_index},
};

use super::*;
use crate::control::{
    desired::DesiredBackend,
    samples::{Bench, IDLE, SEED, backend, in_state, service},
};

/// `web` with `a` and `b`, of which `b` is in another state since `bench.now`.
fn changed(to: BackendState) -> Bench {
    let with = |b: DesiredBackend| [service("web", 10, &[backend("a"), b])];
    let mut bench = Bench::new();
    bench.bring(&with(backend("b")));
    bench.bring(&with(in_state("b", to)));
    bench
}

/// A client whose slot satisfies `wanted`.
fn client(bench: &Bench, wanted: impl Fn(Slot) -> bool) -> FlowKey {
    let id = bench.actual().service_id("web").unwrap();
    let web = &bench.actual().services()[&id];
    (0..)
        .map(|n| FlowKey::tcp(0xcb00_7100 + n, 0x4e20_0050, id))
        .find(|key| {
            let hash = hash_of(web.affinity, key.client, key.ports, SEED);
            wanted(web.slots[slot_index(hash, u32::from(web.bits)) as usize])
        })
        .unwrap()
}

fn put(bench: &Bench, key: FlowKey, backend: &str, phase: Phase) {
    let number = bench.number("web", backend);
    bench
        .executor
        .maps
        .put_record(key, number, bench.tick(), phase);
}

fn flows(sweep: &Sweep, bench: &Bench, backend: &str) -> u64 {
    sweep
        .flows
        .get(&bench.number("web", backend))
        .copied()
        .unwrap_or(0)
}

#[test]
fn a_drain_without_flows_ends_after_flow_idle() {
    let mut bench = changed(BackendState::Draining);
    let began = bench.now;
    let idle = IDLE.as_millis() as u64;
    bench.now = began + idle - 1;
    assert_eq!(bench.sweep().settled, 0, "an old flow may have been silent");
    assert_eq!(bench.state("web", "b"), BackendState::Draining);
    bench.now = began + idle;
    assert!(bench.sweep().settled > 0);
    assert_eq!(bench.actual().unsettled().count(), 0);
    bench.sweep();
    assert_eq!(bench.state("web", "b"), BackendState::Drained);
    assert!(bench.sweep().quiet);
}

#[test]
fn a_live_flow_keeps_its_slot_and_only_its_slot() {
    let mut bench = changed(BackendState::Draining);
    let began = bench.now;
    let key = client(&bench, Slot::in_transition);
    bench.now = began + 8000;
    put(&bench, key, "b", Phase::Open);
    let found = bench.sweep();
    assert_eq!((flows(&found, &bench, "b"), found.used), (1, 1));
    bench.now = began + 12_000;
    bench.sweep();
    let id = bench.actual().service_id("web").unwrap();
    assert_eq!(bench.actual().in_transition(id), 1);
    bench.sweep();
    assert_eq!(bench.state("web", "b"), BackendState::Draining);
    // Ten seconds and two units of the coarse time after its last packet it counts as ended.
    bench.now = began + 8000 + 11_100;
    let found = bench.sweep();
    assert_eq!(flows(&found, &bench, "b"), 0);
    assert_eq!(bench.actual().unsettled().count(), 0);
    bench.sweep();
    assert_eq!(bench.state("web", "b"), BackendState::Drained);
    assert_eq!(bench.sweep().used, 0);
}

/// Packets come while the table is looked through: one in the next unit of the coarse time is not one of ten hours ago.
#[test]
fn a_packet_that_came_after_the_look_at_the_clock_keeps_its_flow() {
    let mut bench = changed(BackendState::Draining);
    bench.now += 20_000;
    let key = client(&bench, Slot::in_transition);
    for phase in [Phase::Opening, Phase::Open, Phase::Closing] {
        let number = bench.number("web", "b");
        let after = bench.tick().wrapping_add(1);
        bench.executor.maps.put_record(key, number, after, phase);
        let found = bench.sweep();
        assert_eq!(
            (flows(&found, &bench, "b"), found.used),
            (1, 1),
            "{phase:?}"
        );
        let id = bench.actual().service_id("web").unwrap();
        assert_eq!(bench.actual().in_transition(id), 1, "{phase:?}");
        assert_eq!(bench.state("web", "b"), BackendState::Draining);
    }
}

#[test]
fn a_live_flow_on_the_current_backend_keeps_nothing() {
    let mut bench = changed(BackendState::Draining);
    bench.now += 10_000;
    let key = client(&bench, Slot::in_transition);
    put(&bench, key, "a", Phase::Open);
    let found = bench.sweep();
    assert_eq!(flows(&found, &bench, "a"), 1);
    assert_eq!(bench.actual().unsettled().count(), 0);
    // Its record went with the transition: in the next one it would be believed.
    assert_eq!(bench.sweep().used, 0);
}

#[test]
fn ended_records_stay_for_late_packets() {
    let mut bench = changed(BackendState::Draining);
    for (phase, silence, used, live) in [
        (Phase::Ended, 0, 1, 0),
        (Phase::Ended, 9_000, 1, 0),
        (Phase::Ended, 11_100, 0, 0),
        (Phase::Closing, 9_000, 1, 1),
        (Phase::Closing, 11_100, 0, 0),
    ] {
        let key = client(&bench, Slot::in_transition);
        put(&bench, key, "b", phase);
        let busy = FlowKey {
            ports: key.ports ^ 1 << 16,
            ..key
        };
        // Another flow of the same client, `client` affinity: it keeps the slot in transition.
        bench.now += silence;
        put(&bench, busy, "b", Phase::Open);
        bench.sweep();
        let found = bench.sweep();
        assert_eq!(found.used, used + 1, "{phase:?} after {silence} ms");
        assert_eq!(flows(&found, &bench, "b"), live + 1, "{phase:?}");
        for bucket in bench.executor.maps.tables.flows.iter() {
            for way in &bucket.ways {
                way.state.set(0);
            }
        }
    }
}

#[test]
fn flows_of_a_failed_backend_are_not_waited_for_but_known() {
    let with = |b, c| [service("web", 10, &[backend("a"), b, c])];
    let mut bench = Bench::new();
    bench.bring(&with(backend("b"), backend("c")));
    bench.bring(&with(in_state("b", BackendState::Draining), backend("c")));
    let c = bench.number("web", "c");
    let key = client(&bench, |slot| slot.in_transition() && slot.current() == c);
    put(&bench, key, "c", Phase::Open);
    bench.bring(&with(
        in_state("b", BackendState::Draining),
        in_state("c", BackendState::Down),
    ));
    // Cleared, it would be taken for a flow older than the drain, and sent to b.
    assert_eq!(bench.look(), []);
    let found = bench.sweep();
    assert_eq!((flows(&found, &bench, "c"), found.used), (0, 1));
}

#[test]
fn records_of_nobody_go() {
    let mut bench = changed(BackendState::Draining);
    let key = client(&bench, Slot::in_transition);
    let settled = client(&bench, |slot| !slot.in_transition());
    let number = bench.number("web", "a");
    let now = bench.tick();
    for (what, key, number) in [
        (
            "a service that is gone",
            FlowKey { service: 7, ..key },
            number,
        ),
        ("a backend that is gone", key, 60),
        ("a settled slot", settled, number),
    ] {
        bench
            .executor
            .maps
            .put_record(key, number, now, Phase::Open);
        assert_eq!(bench.look().len(), 1, "{what}");
        let found = bench.sweep();
        assert_eq!(found.used, 1, "{what}");
        assert!(found.flows.is_empty(), "{what}");
    }
    assert_eq!(bench.sweep().used, 0);
}

/// A packet renews a record between the sweep's look and its clearing: the record stays.
#[test]
fn what_a_packet_renewed_is_not_cleared() {
    let bench = changed(BackendState::Draining);
    let key = client(&bench, |slot| !slot.in_transition());
    put(&bench, key, "a", Phase::Open);
    let found = bench.look();
    assert_eq!(found.len(), 1);
    for (bucket, way, word) in &found {
        let Bucket::Ipv4(bucket) = *bucket else {
            panic!("an IPv4 flow");
        };
        let record = &bench.executor.maps.tables.flows[bucket].ways[*way];
        record.state.set(word + (1 << 32));
    }
    bench.executor.clear_flows(&found);
    let used = |bench: &Bench| {
        let ways = bench
            .executor
            .maps
            .tables
            .flows
            .iter()
            .flat_map(|b| &b.ways);
        ways.filter(|way| way.state.get() != 0).count()
    };
    assert_eq!(used(&bench), 1);
    bench.executor.clear_flows(&bench.look());
    assert_eq!(used(&bench), 0);
}

#[test]
fn a_removed_backend_goes_when_its_flows_have() {
    let mut bench = Bench::new();
    bench.bring(&[service("web", 10, &[backend("a"), backend("b")])]);
    let number = bench.number("web", "b");
    bench.bring(&[service("web", 10, &[backend("a")])]);
    let key = client(&bench, Slot::in_transition);
    bench.now += 9000;
    put(&bench, key, "b", Phase::Open);
    bench.now += 9000;
    bench.sweep();
    bench.sweep();
    assert_eq!(bench.state("web", "b"), BackendState::Leaving);
    bench.now += 3000;
    for _ in 0..4 {
        bench.sweep();
    }
    assert!(bench.actual().is_free_number(number));
}

/// Small enough that the table of 1,024 buckets takes many pieces, and so does a service's table.
const SMALL: Budget = Budget {
    buckets: 100,
    slots: 100,
};

/// The rest of a pass, in pieces: how many, and what it found.
fn finish(bench: &mut Bench) -> (u32, Sweep) {
    let mut pieces = 1;
    while !bench.sweep_piece(SMALL) {
        pieces += 1;
    }
    bench.check();
    (pieces, bench.sweeper.last().clone())
}

#[test]
fn a_pass_in_pieces_finds_what_a_whole_one_finds() {
    let mut whole = changed(BackendState::Draining);
    let mut divided = changed(BackendState::Draining);
    for bench in [&mut whole, &mut divided] {
        for (after, phase) in [
            (8000, Phase::Open),
            (1000, Phase::Closing),
            (1000, Phase::Ended),
        ] {
            bench.now += after;
            let key = client(bench, Slot::in_transition);
            let other = FlowKey {
                ports: key.ports + (u32::try_from(after).unwrap() << 16),
                ..key
            };
            put(bench, other, "b", phase);
        }
    }
    for _ in 0..30 {
        let all = whole.sweep();
        let (pieces, found) = finish(&mut divided);
        assert_eq!(found, all);
        assert!(pieces > 1024 / 100, "{pieces} pieces");
        assert_eq!(divided.slots("web"), whole.slots("web"));
        assert_eq!(divided.state("web", "b"), whole.state("web", "b"));
        whole.now += 700;
        divided.now += 700;
    }
    assert_eq!(whole.state("web", "b"), BackendState::Drained);
}

/// A flow older than the change may wake up in a bucket that was looked at already: whether a slot was due counts from the
/// beginning of the pass.
#[test]
fn a_slot_that_becomes_due_during_a_pass_waits_for_the_next() {
    let mut bench = changed(BackendState::Draining);
    let began = bench.now;
    bench.now = began + 9_999;
    bench.sweep_piece(SMALL);
    bench.now = began + 20_000;
    let key = client(&bench, Slot::in_transition);
    put(&bench, key, "b", Phase::Open);
    assert_eq!(finish(&mut bench).1.settled, 0);
    bench.sweep();
    let id = bench.actual().service_id("web").unwrap();
    assert_eq!(bench.actual().in_transition(id), 1, "all but the flow's");
}

#[test]
fn what_changes_during_a_pass_does_not_settle_in_it() {
    let mut bench = changed(BackendState::Draining);
    bench.now += 10_000;
    bench.sweep_piece(SMALL);
    // Taken back: the slots of b change again, {b, b} is still in transition.
    bench.now += 10_000;
    bench.bring(&[service("web", 10, &[backend("a"), backend("b")])]);
    assert_eq!(finish(&mut bench).1.settled, 0);
    assert_eq!(bench.state("web", "b"), BackendState::Up);
}

/// A flow may have been recorded on it after the look at its bucket.
#[test]
fn a_drain_that_begins_during_a_pass_is_not_over_at_its_end() {
    let with = |b: DesiredBackend| [service("web", 10, &[backend("a"), b])];
    let mut bench = Bench::new();
    bench.bring(&with(DesiredBackend {
        weight: 0,
        ..backend("b")
    }));
    bench.sweep_piece(SMALL);
    // No slot names b, and no flow has been seen on it.
    bench.bring(&with(in_state("b", BackendState::Draining)));
    finish(&mut bench);
    assert_eq!(bench.state("web", "b"), BackendState::Draining);
    finish(&mut bench);
    assert_eq!(bench.state("web", "b"), BackendState::Drained);
}

/// The record of a flow on the current backend, made after the look at its bucket, outlives its slot's transition. It says
/// the truth until that backend fails and the slot moves at once; then it must be gone before the next transition.
#[test]
fn a_record_that_would_mislead_goes_before_the_next_change() {
    let with = |a, c| {
        [service(
            "web",
            10,
            &[a, in_state("b", BackendState::Draining), c],
        )]
    };
    let mut bench = Bench::new();
    bench.bring(&[service(
        "web",
        10,
        &[backend("a"), backend("b"), backend("c")],
    )]);
    bench.bring(&with(backend("a"), backend("c")));
    bench.now += 10_000;
    let c = bench.number("web", "c");
    let key = client(&bench, |slot| slot.in_transition() && slot.current() == c);
    // All buckets have been looked at when the flow opens.
    bench.sweep_piece(Budget::ALL);
    put(&bench, key, "c", Phase::Open);
    finish(&mut bench);
    assert_eq!(bench.actual().unsettled().count(), 0);
    let recorded = |bench: &Bench| {
        let tables = &bench.executor.maps.tables;
        lb_common::flow::find(tables, key, key.hash(SEED)).is_some()
    };
    assert!(recorded(&bench), "not seen by the pass");
    assert!(!bench.sweeper.must_finish(), "it says the truth");
    // c fails: its flow moves to a, which nobody notes.
    bench.bring(&with(backend("a"), in_state("c", BackendState::Down)));
    assert!(recorded(&bench) && bench.sweeper.must_finish());
    // The next change of that slot would find the record, and believe it.
    bench.bring(&with(backend("a"), backend("c")));
    assert!(!recorded(&bench) && !bench.sweeper.must_finish());
}
