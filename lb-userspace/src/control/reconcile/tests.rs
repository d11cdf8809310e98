//! Each change on its own: which operations it makes, and that the same is not done twice.

use std::net::IpAddr;

use super::*;
use crate::control::{
    directory::Entries,
    samples::{Bench, backend, in_state, service},
};
use lb_common::pick::Affinity;

use BackendState::{Down, Drained, Draining, Failed, Leaving, Up};

fn weighted(name: &str, weight: u32) -> DesiredBackend {
    DesiredBackend {
        weight,
        ..backend(name)
    }
}

fn of_priority(name: &str, priority: u32, state: BackendState) -> DesiredBackend {
    DesiredBackend {
        priority,
        ..in_state(name, state)
    }
}

/// A bench with one service, `web`.
fn web(backends: &[DesiredBackend]) -> Bench {
    let mut bench = Bench::new();
    bench.bring(&[service("web", 10, backends)]);
    bench
}

/// The distinct slots of `web` as (current, previous), by name; "-" is nobody.
fn shares(bench: &Bench) -> BTreeSet<(String, String)> {
    let name = |number: u16| {
        bench
            .actual()
            .backends()
            .get(&number)
            .map_or("-".to_owned(), |b| b.name.clone())
    };
    bench
        .slots("web")
        .iter()
        .map(|slot| (name(slot.current()), name(slot.previous())))
        .collect()
}

#[track_caller]
fn expect_shares(bench: &Bench, expected: &[(&str, &str)]) {
    let expected: BTreeSet<(String, String)> = expected
        .iter()
        .map(|(current, previous)| ((*current).to_owned(), (*previous).to_owned()))
        .collect();
    assert_eq!(shares(bench), expected);
}

/// What each operation is, without its content.
fn kinds(ops: &[Op]) -> Vec<&'static str> {
    ops.iter()
        .map(|op| match op {
            Op::Backend { .. } => "backend",
            Op::Slots { .. } => "slots",
            Op::Service { .. } => "service",
            Op::RemoveService { .. } => "remove service",
            Op::SwapDirectory { .. } => "swap",
            Op::RemoveBackend { .. } => "remove backend",
            Op::Hot { .. } => "hot",
            Op::Release(_) => "release",
        })
        .collect()
}

#[test]
fn a_fresh_start_is_settled_at_once() {
    let mut bench = Bench::new();
    let ops = bench.bring(&[
        service("web", 10, &[backend("a"), backend("b")]),
        service("mail", 11, &[backend("a")]),
    ]);
    assert_eq!(
        kinds(&ops),
        [
            "backend", "backend", "service", "backend", "service", "swap"
        ]
    );
    expect_shares(&bench, &[("a", "-"), ("b", "-")]);
    assert_ne!(bench.number("web", "a"), bench.number("mail", "a"));
}

/// From one pair of backends to another: states, and what the slots hold.
#[test]
fn changes_of_backends() {
    type Case<'a> = (&'a str, Vec<DesiredBackend>, Vec<(&'a str, &'a str)>);
    let cases: Vec<Case<'_>> = vec![
        (
            "a third one, which hardly moves anything between the others",
            vec![backend("a"), backend("b"), backend("c")],
            vec![("a", "-"), ("b", "-"), ("b", "a"), ("c", "a"), ("c", "b")],
        ),
        (
            "one drained",
            vec![backend("a"), in_state("b", Draining)],
            vec![("a", "-"), ("a", "b")],
        ),
        (
            "one failed by the operator",
            vec![backend("a"), in_state("b", Failed)],
            vec![("a", "-")],
        ),
        (
            "one down",
            vec![backend("a"), in_state("b", Down)],
            vec![("a", "-")],
        ),
        (
            "all down",
            vec![in_state("a", Down), in_state("b", Down)],
            vec![("-", "-")],
        ),
        (
            "all drained: old flows stay, new ones go nowhere",
            vec![in_state("a", Draining), in_state("b", Draining)],
            vec![("-", "a"), ("-", "b")],
        ),
        (
            "weight 0 takes no new flows and keeps the old ones",
            vec![backend("a"), weighted("b", 0)],
            vec![("a", "-"), ("a", "b")],
        ),
        (
            "one removed",
            vec![backend("a")],
            vec![("a", "-"), ("a", "b")],
        ),
        (
            "the other order in the file changes nothing",
            vec![backend("b"), backend("a")],
            vec![("a", "-"), ("b", "-")],
        ),
    ];
    for (what, backends, expected) in cases {
        println!("{what}");
        let mut bench = web(&[backend("a"), backend("b")]);
        bench.now += 5000;
        bench.bring(&[service("web", 10, &backends)]);
        expect_shares(&bench, &expected);
        for wanted in &backends {
            assert_eq!(bench.state("web", &wanted.name), wanted.state, "{what}");
        }
    }
}

#[test]
fn entries_come_before_the_slots_that_follow_from_them() {
    let mut bench = web(&[backend("a"), backend("b")]);
    let ops = bench.bring(&[service("web", 10, &[backend("a"), in_state("b", Down)])]);
    assert_eq!(kinds(&ops), ["backend", "slots"]);
    let Op::Backend { backend, .. } = &ops[0] else {
        panic!("{ops:?}");
    };
    assert!(backend.entry.failed());
}

#[test]
fn a_weight_moves_only_its_share() {
    let mut bench = web(&[backend("a"), backend("b")]);
    bench.bring(&[service("web", 10, &[backend("a"), weighted("b", 25)])]);
    let slots = bench.slots("web");
    let moved = slots.iter().filter(|slot| slot.in_transition()).count();
    let a = bench.number("web", "a");
    let share = slots.iter().filter(|slot| slot.current() == a).count();
    assert!(share.abs_diff(slots.len() * 2 / 3) <= 1, "{share}");
    let least = slots.len() / 6;
    assert!(
        (least..least * 5 / 4).contains(&moved),
        "{moved} of {} moved",
        slots.len()
    );
}

#[test]
fn the_next_priority_serves_when_nobody_of_the_first_is_up_and_gives_back() {
    let set = |first, second| {
        [service(
            "web",
            10,
            &[of_priority("a", 1, first), of_priority("b", 2, second)],
        )]
    };
    let mut bench = Bench::new();
    bench.bring(&set(Up, Up));
    expect_shares(&bench, &[("a", "-")]);
    bench.bring(&set(Down, Up));
    expect_shares(&bench, &[("b", "-")]);
    bench.bring(&set(Up, Up));
    expect_shares(&bench, &[("a", "b")]);
    bench.bring(&set(Draining, Up));
    expect_shares(&bench, &[("b", "b")]);
    bench.bring(&set(Draining, Down));
    expect_shares(&bench, &[("-", "b")]);
}

#[test]
fn a_drain_ended_by_a_failure_is_a_drain_again_after_the_recovery() {
    let with = |state| [service("web", 10, &[backend("a"), in_state("b", state)])];
    let mut bench = web(&[backend("a"), backend("b")]);
    bench.bring(&with(Draining));
    bench.bring(&with(Down));
    expect_shares(&bench, &[("a", "-"), ("a", "a")]);
    bench.sweep();
    assert_eq!(bench.state("web", "b"), Down);
    bench.bring(&with(Draining));
    assert_eq!(bench.state("web", "b"), Draining);
    bench.sweep();
    assert_eq!(bench.state("web", "b"), Drained, "no slot names it");
    assert_eq!(
        bench.plan(&with(Draining)).unwrap(),
        [],
        "drained is draining"
    );
}

#[test]
fn a_readdressed_backend_is_another_one_and_the_old_one_leaves() {
    let mut bench = web(&[backend("a"), backend("b")]);
    let old = bench.number("web", "b");
    let moved = DesiredBackend {
        address: IpAddr::from([198, 51, 100, 250]),
        ..backend("b")
    };
    bench.bring(&[service("web", 10, &[backend("a"), moved])]);
    assert_eq!(bench.actual().backends()[&old].state, Leaving);
    let slots = bench.slots("web");
    assert!(slots.iter().all(|slot| slot.current() != old));
    assert!(slots.iter().any(|slot| slot.previous() == old));
}

#[test]
fn who_comes_back_while_leaving_keeps_number_and_flows() {
    let both = [service("web", 10, &[backend("a"), backend("b")])];
    let mut bench = web(&[backend("a"), backend("b")]);
    let number = bench.number("web", "b");
    bench.bring(&[service("web", 10, &[backend("a")])]);
    assert_eq!(bench.state("web", "b"), Leaving);
    bench.bring(&both);
    assert_eq!(bench.number("web", "b"), number);
    assert_eq!(bench.state("web", "b"), Up);
    expect_shares(&bench, &[("a", "-"), ("b", "b")]);
}

/// Was never removed: its number was lost, and its service rebuilt at every event.
#[test]
fn a_failed_backend_that_is_removed_leaves_at_once() {
    let mut bench = web(&[backend("a"), backend("b")]);
    bench.bring(&[service("web", 10, &[backend("a"), in_state("b", Down)])]);
    bench.bring(&[service("web", 10, &[backend("a")])]);
    assert_eq!(bench.state("web", "b"), Leaving);
    bench.sweep();
    assert_eq!(bench.actual().backends().len(), 1);
}

#[test]
fn another_mac_address_is_one_store() {
    let mut bench = web(&[backend("a"), backend("b")]);
    let other = DesiredBackend {
        mac: Some([2, 9, 9, 9, 9, 9]),
        ..backend("b")
    };
    let ops = bench.bring(&[service("web", 10, &[backend("a"), other])]);
    assert_eq!(kinds(&ops), ["backend"]);
}

#[test]
fn a_table_grows_in_place_of_itself() {
    let mut bench = web(&[backend("a"), backend("b")]);
    let before = bench.slots("web");
    bench.bring(&[service("web", 10, &[backend("a"), in_state("b", Draining)])]);
    let drained_at = bench.now;
    bench.now += 3000;
    let ops = bench.bring(&[service(
        "web",
        10,
        &[backend("a"), in_state("b", Draining), weighted("c", 2)],
    )]);
    assert_eq!(kinds(&ops), ["backend", "service", "swap"]);
    let after = bench.slots("web");
    assert!(after.len() > before.len());
    let factor = after.len() / before.len();
    let web = &bench.actual().services()[&0];
    for (index, slot) in after.iter().enumerate() {
        let old = before[index / factor].current();
        assert!(
            slot.current() == old || slot.previous() == old,
            "slot {index}: an old flow of {old} finds {slot:?}"
        );
        if slot.in_transition() {
            let at = web.changed[index];
            assert!(at == drained_at || at == bench.now, "dated {at}");
        }
    }
    // And stays large, because a table in use never shrinks.
    bench.bring(&[service("web", 10, &[backend("a")])]);
    assert_eq!(bench.slots("web").len(), after.len());
}

#[test]
fn what_does_not_fit_changes_nothing_and_says_which_number() {
    let many: Vec<DesiredBackend> = (0..8).map(|i| weighted(&format!("b{i}"), 50)).collect();
    let mut bench = Bench::sized(1 << 12, 2, 6);
    bench.bring(&[service("web", 10, &[backend("a"), backend("b")])]);
    let refused = |desired: &[DesiredService]| bench.plan(desired).unwrap_err();
    assert_eq!(
        refused(&[service("web", 10, &many)]),
        TooSmall::Backends {
            needed: 10,
            capacity: 5
        }
    );
    let three = [
        service("web", 10, &[backend("a")]),
        service("mail", 11, &[backend("a")]),
        service("dns", 12, &[backend("a")]),
    ];
    assert_eq!(
        refused(&three),
        TooSmall::Services {
            needed: 3,
            capacity: 2
        }
    );
    assert_eq!(
        refused(&[service("web", 10, &[backend("a"), weighted("b", 1)])]),
        TooSmall::Slots {
            service: "web".into(),
            needed: 1 << 12,
            used: 1 << 11,
            capacity: 1 << 12
        }
    );
    let ports = Entries {
        ports: vec![1..=1000],
        ..service("web", 10, &[]).entries
    };
    let wide = DesiredService {
        entries: ports,
        ..service("web", 10, &[backend("a"), backend("b")])
    };
    assert_eq!(
        refused(&[wide]),
        TooSmall::Directory(DirectoryFull {
            entries: 1002,
            buckets: 32
        })
    );
}

#[test]
fn settings_of_a_service() {
    let backends = [backend("a"), backend("b")];
    let base = service("web", 10, &backends);
    let cases: Vec<(&str, DesiredService, &[&str])> = vec![
        (
            "flow_idle is nothing the data path reads",
            DesiredService {
                flow_idle: std::time::Duration::from_secs(99),
                ..base.clone()
            },
            &["service"],
        ),
        (
            "affinity",
            DesiredService {
                affinity: Affinity::NONE_IPV4,
                ..base.clone()
            },
            &["service", "swap"],
        ),
        (
            "ports",
            DesiredService {
                entries: Entries {
                    ports: vec![],
                    ..base.entries.clone()
                },
                ..base.clone()
            },
            &["service", "swap"],
        ),
        (
            "affinity and a drain at once",
            DesiredService {
                affinity: Affinity::NONE_IPV4,
                ..service("web", 10, &[backend("a"), in_state("b", Draining)])
            },
            &["backend", "slots", "service", "swap"],
        ),
        (
            "no tracking: every change at once",
            DesiredService {
                track: Track::Nothing,
                ..service("web", 10, &[backend("a"), in_state("b", Draining)])
            },
            &["backend", "slots", "service"],
        ),
    ];
    for (what, desired, expected) in cases {
        println!("{what}");
        let mut bench = web(&backends);
        let ops = bench.bring(&[desired]);
        assert_eq!(kinds(&ops), expected, "{what}");
    }
}

/// An id or a number with a new owner would inherit the records of the old one's flows.
#[test]
fn ids_and_numbers_rest_until_no_record_names_them() {
    use lb_common::flow::{FlowKey, Phase};
    let mut bench = Bench::new();
    bench.bring(&[
        service("web", 10, &[backend("a")]),
        service("mail", 11, &[backend("b")]),
    ]);
    let id = bench.actual().service_id("mail").unwrap();
    let number = bench.number("mail", "b");
    let key = FlowKey::tcp(0xcb00_7101, 0x4e20_0050, id);
    bench
        .executor
        .maps
        .put_record(key, number, bench.tick(), Phase::Open);
    let ops = bench.bring(&[service("web", 10, &[backend("a")])]);
    assert_eq!(kinds(&ops), ["remove service", "remove backend", "swap"]);
    assert_eq!(
        bench.executor.maps.touched.get().waits,
        2,
        "for the packets on their way"
    );
    let three = [
        service("web", 10, &[backend("a")]),
        service("dns", 12, &[backend("c")]),
    ];
    bench.bring(&three);
    assert_ne!(bench.actual().service_id("dns"), Some(id));
    assert_ne!(bench.number("dns", "c"), number);

    assert!(!bench.sweep().quiet, "clears the record");
    assert!(!bench.actual().retired().is_empty());
    bench.sweep();
    assert!(bench.actual().retired().is_empty());
    assert!(bench.actual().is_free_id(id) && bench.actual().is_free_number(number));
    assert!(bench.sweep().quiet);
}

#[test]
fn an_event_about_one_service_leaves_the_others_alone() {
    let mut bench = Bench::new();
    bench.bring(&[
        service("web", 10, &[backend("a"), backend("b")]),
        service("mail", 11, &[backend("a"), backend("b")]),
    ]);
    let ops = reconcile(
        &[service("web", 10, &[backend("a"), in_state("b", Down)])],
        Scope::Only,
        bench.actual(),
        0,
        bench.now,
    )
    .unwrap();
    assert_eq!(kinds(&ops), ["backend", "slots"]);
}
