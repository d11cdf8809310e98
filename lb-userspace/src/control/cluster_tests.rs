//! What a node of a cluster does with the frames it sees, and with the slots of its peers: one thing after the other.

use std::collections::BTreeMap;

use lb_common::{
    abi::AREA,
    features::Features,
    flow::FlowState,
    forward::process,
    packet::Buffer,
    pick::{Backend, Slot},
    verdict::Verdict,
    wire::{TCP_ACK, TCP_SYN, mac_bytes},
};

use super::{
    actual::{Op, Share},
    areas,
    comeback::come_back,
    desired::{DesiredBackend, DesiredService, Missed, Pending, Pick},
    memory::Memory as _,
    reconcile::OTHERS,
    samples::{Bench, CLUSTER_MAC, OWN_MAC, PlainMemory, backend, in_state, service},
    words::Table,
};
use lb_common::abi::BackendState::{Down, Draining, Up};

fn bench() -> Bench {
    let features = Features::ALL_FORWARDING.with(Features::PICK);
    Bench::of(PlainMemory::with(1 << 14, 2, 16, 64, features))
}

fn own() -> DesiredBackend {
    DesiredBackend {
        port: Backend::LOCAL_PORT,
        ..backend("own")
    }
}

/// The service of a cluster of these nodes, of which `agreeing` go by the table `table`.
fn cluster(nodes: &[DesiredBackend], agreeing: &[&str], table: Table) -> DesiredService {
    DesiredService {
        pick: Some(Pick {
            own: "own".into(),
            said: table,
            aware: agreeing.iter().map(|name| (*name).to_owned()).collect(),
            tables: agreeing
                .iter()
                .map(|name| ((*name).to_owned(), table))
                .collect::<BTreeMap<_, _>>(),
            same_file: true,
            counted_in: true,
            joining: false,
            missed: Missed::Nothing,
            pending: Pending::Nothing,
        }),
        ..service("web", 10, nodes)
    }
}

/// The table that these nodes make.
fn table_of(nodes: &[DesiredBackend]) -> Table {
    let service = cluster(nodes, &[], Table::default());
    let built_for: Vec<_> = service
        .sharing()
        .map(|(b, weight)| Share {
            identity: b.identity().into(),
            configured: b.configured,
            weight,
            number: 0,
        })
        .collect();
    Table::of(service.affinity, crate::maglev::MIN_BITS, &built_for)
}

fn names(bench: &Bench) -> Vec<(String, String)> {
    let name = |number: u16| {
        bench
            .actual()
            .backends()
            .get(&number)
            .map_or("-".to_owned(), |b| b.name.clone())
    };
    let mut found: Vec<_> = bench
        .slots("web")
        .iter()
        .map(|slot| (name(slot.current()), name(slot.previous())))
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[track_caller]
fn expect(bench: &Bench, expected: &[(&str, &str)]) {
    let expected: Vec<_> = expected
        .iter()
        .map(|(current, previous)| ((*current).to_owned(), (*previous).to_owned()))
        .collect();
    assert_eq!(names(bench), expected);
}

fn frame(destination: u64, port: u16, flags: u8) -> Vec<u8> {
    let mut frame = mac_bytes(destination).to_vec();
    frame.extend([2, 9, 9, 9, 9, 9, 0x08, 0x00]);
    frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
    frame.extend([203, 0, 113, 5, 192, 0, 2, 10]);
    frame.extend(port.to_be_bytes());
    frame.extend([0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags]);
    frame.extend([0xff, 0xff, 0, 0, 0, 0]);
    frame
}

fn send(bench: &Bench, frame: &mut [u8]) -> Verdict {
    process(&mut Buffer::new(frame), &bench.executor.maps.tables).verdict
}

/// The beginning: this node has had these services for long.
#[track_caller]
fn begin(bench: &mut Bench, service: DesiredService) {
    bench.bring(&[service]);
    bench.now += 60_000;
    while bench.actual().in_transition(0) > 0 {
        bench.sweep();
    }
    bench.sweep();
}

/// All slots as if there were one.
fn set_all(bench: &Bench, slot: Slot) {
    put_back(bench, &vec![slot; 1 << crate::maglev::MIN_BITS]);
}

/// The slots as they were before [`set_all`].
fn put_back(bench: &Bench, slots: &[Slot]) {
    let tables = &bench.executor.maps.tables;
    for (index, slot) in (0..).zip(slots) {
        tables.set_slot(index, *slot);
    }
    for (index, slots) in (0..).zip(slots.chunks(AREA as usize)) {
        tables.set_area(index, areas::owner(slots));
    }
}

#[test]
fn what_becomes_of_a_frame() {
    let mut bench = bench();
    let nodes = [own(), backend("peer")];
    begin(&mut bench, cluster(&nodes, &["peer"], table_of(&nodes)));
    let (here, there) = (bench.number("web", "own"), bench.number("web", "peer"));
    let counted = |bench: &Bench, number| bench.executor.maps.tables.counter(number).packets;

    set_all(&bench, Slot::settled(here));
    for destination in [CLUSTER_MAC, OWN_MAC] {
        let before = frame(destination, 1000, TCP_SYN);
        let mut after = before.clone();
        assert_eq!(send(&bench, &mut after), Verdict::Local);
        assert_eq!(after[..6], mac_bytes(OWN_MAC), "or the stack ignores it");
        assert_eq!(after[6..], before[6..]);
    }
    assert_eq!(counted(&bench, here), 2);
    let mut elsewhere = frame(OWN_MAC + 1, 1000, TCP_SYN);
    assert_eq!(send(&bench, &mut elsewhere), Verdict::OtherHost);

    set_all(&bench, Slot::settled(there));
    let before = frame(CLUSTER_MAC, 1000, TCP_SYN);
    let mut after = before.clone();
    assert_eq!(send(&bench, &mut after), Verdict::OtherNode);
    assert_eq!(after, before);
    assert_eq!(counted(&bench, there), 0);
}

/// ARP names the cluster's MAC address, and never comes from it.
#[test]
fn what_is_answered_to_arp() {
    let mut bench = bench();
    begin(&mut bench, cluster(&[own()], &[], Table::default()));
    let mut request = vec![0xff; 6];
    request.extend([2, 9, 9, 9, 9, 9, 0x08, 0x06]);
    request.extend([0, 1, 0x08, 0, 6, 4, 0, 1]);
    request.extend([2, 9, 9, 9, 9, 9, 203, 0, 113, 5]);
    request.extend([0, 0, 0, 0, 0, 0, 192, 0, 2, 10]);
    assert_eq!(send(&bench, &mut request), Verdict::ArpReplied);
    assert_eq!(request[6..12], mac_bytes(OWN_MAC));
    assert_eq!(request[22..28], mac_bytes(CLUSTER_MAC));
}

/// The first SYN met a node that had given the slot up, so nobody answered it: the second one must be.
#[test]
fn a_syn_that_nobody_answered_is_answered_when_it_is_sent_again() {
    let mut bench = bench();
    let nodes = [own(), backend("peer"), backend("third")];
    begin(
        &mut bench,
        cluster(&nodes, &["peer", "third"], table_of(&nodes)),
    );
    let [here, there, third] = ["own", "peer", "third"].map(|name| bench.number("web", name));
    set_all(&bench, Slot::new(there, third));
    let syn = frame(CLUSTER_MAC, 1000, TCP_SYN);
    assert_eq!(send(&bench, &mut syn.clone()), Verdict::OtherNode);
    set_all(&bench, Slot::new(here, third));
    assert_eq!(send(&bench, &mut syn.clone()), Verdict::Local);
    let mut next = frame(CLUSTER_MAC, 1000, TCP_ACK);
    assert_eq!(send(&bench, &mut next), Verdict::Local);
}

/// Two nodes that begin at the same moment know nothing of each other's tables: both would take everything.
#[test]
fn what_nobody_has_is_taken_when_all_that_are_heard_count_this_node_in() {
    let mut bench = bench();
    begin(
        &mut bench,
        cluster(&[in_state("own", Down)], &[], Table::default()),
    );
    expect(&bench, &[("-", "-")]);
    let nodes = [own(), in_state("peer", Down)];
    let counted_in = |counted_in| {
        let service = cluster(&nodes, &[], Table::default());
        let pick = service.pick.clone().map(|pick| Pick { counted_in, ..pick });
        DesiredService { pick, ..service }
    };
    bench.bring(&[counted_in(false)]);
    expect(&bench, &[("-", "-")]);
    bench.bring(&[counted_in(true)]);
    expect(&bench, &[("own", "-")]);
}

#[test]
fn what_a_peer_said_before_it_heard_of_this_table_counts_nothing() {
    let mut bench = bench();
    let without = [in_state("own", Down), backend("peer")];
    begin(&mut bench, cluster(&without, &["peer"], table_of(&without)));
    let with = [own(), backend("peer")];
    let cluster = cluster(&with, &["peer"], table_of(&with));
    let because = |change: &dyn Fn(&mut Pick)| {
        let mut pick = cluster.pick.clone().unwrap();
        change(&mut pick);
        DesiredService {
            pick: Some(pick),
            ..cluster.clone()
        }
    };
    bench.bring(&[because(&|pick| pick.said = table_of(&without))]);
    expect(&bench, &[("peer", "-")]);
    bench.bring(&[because(&|pick| pick.aware.clear())]);
    expect(&bench, &[("peer", "-")]);
    bench.bring(&[because(&|_| {})]);
    expect(&bench, &[("own", "peer"), ("peer", "-")]);
}

#[test]
fn a_slot_of_a_living_peer_is_taken_when_all_go_by_the_new_table() {
    let mut bench = bench();
    let without = [in_state("own", Down), backend("peer")];
    begin(&mut bench, cluster(&without, &["peer"], table_of(&without)));
    expect(&bench, &[("peer", "-")]);
    // This node comes in; its peer still goes by the table without it.
    let with = [own(), backend("peer")];
    bench.bring(&[cluster(&with, &["peer"], table_of(&without))]);
    expect(&bench, &[("peer", "-")]);
    // Nor if it is not heard.
    bench.bring(&[cluster(&with, &[], Table::default())]);
    expect(&bench, &[("peer", "-")]);
    bench.bring(&[cluster(&with, &["peer"], table_of(&with))]);
    expect(&bench, &[("own", "peer"), ("peer", "-")]);
    // What this node loses it gives up at once.
    let draining = [
        DesiredBackend {
            state: Draining,
            ..own()
        },
        backend("peer"),
    ];
    bench.bring(&[cluster(&draining, &[], Table::default())]);
    expect(&bench, &[("peer", "-"), ("peer", "peer")]);
    assert_eq!(bench.state("web", "peer"), Up);
}

#[test]
fn one_peer_that_does_not_agree_keeps_what_all_have() {
    let mut bench = bench();
    let without = [in_state("own", Down), backend("a"), backend("b")];
    begin(
        &mut bench,
        cluster(&without, &["a", "b"], table_of(&without)),
    );
    let with = [own(), backend("a"), backend("b")];
    let before = names(&bench);
    bench.bring(&[cluster(&with, &["a"], table_of(&with))]);
    assert_eq!(names(&bench), before);
    // One that has failed is not waited for, and what it had is taken at once.
    let failed = [own(), backend("a"), in_state("b", Down)];
    bench.bring(&[cluster(&failed, &[], Table::default())]);
    let now = names(&bench);
    assert!(now.iter().all(|(current, _)| current != "b"), "{now:?}");
    assert!(now.contains(&("own".into(), "-".into())), "{now:?}");
    assert!(now.contains(&("a".into(), "-".into())), "{now:?}");
}

#[test]
fn a_node_that_joins_takes_no_flow_that_it_has_not_seen_open() {
    let mut bench = bench();
    // A drained peer has flows, and is in no table.
    let peers = [
        in_state("own", Down),
        backend("peer"),
        in_state("old", Draining),
    ];
    let mut joining = cluster(&peers, &[], Table::default());
    if let Some(pick) = &mut joining.pick {
        pick.joining = true;
    }
    bench.bring(&[joining]);
    expect(&bench, &[("peer", OTHERS)]);
    let with = [own(), backend("peer"), in_state("old", Draining)];
    bench.bring(&[cluster(&with, &["peer", "old"], table_of(&with))]);
    expect(&bench, &[("own", OTHERS), ("peer", OTHERS)]);
    let here = bench.number("web", "own");
    let others = bench.number("web", OTHERS);
    set_all(&bench, Slot::new(here, others));
    let mut old = frame(CLUSTER_MAC, 1000, TCP_ACK);
    assert_eq!(send(&bench, &mut old), Verdict::OtherNode);
    let mut new = frame(CLUSTER_MAC, 1001, TCP_SYN);
    assert_eq!(send(&bench, &mut new), Verdict::Local);
}

/// A reload brings it to one node after the other.
#[test]
fn a_service_that_the_others_have_had_before_may_have_flows() {
    let mut bench = bench();
    let nodes = [own(), backend("peer")];
    bench.bring(&[cluster(&nodes, &["peer"], table_of(&nodes))]);
    expect(&bench, &[("own", OTHERS), ("peer", OTHERS)]);
}

/// Alone it has nobody to leave the old flows to: it answers them, and be it with a reset.
#[test]
fn a_node_that_joins_nobody_takes_everything() {
    let mut bench = bench();
    let mut alone = cluster(
        &[in_state("own", Down), in_state("peer", Down)],
        &[],
        Table::default(),
    );
    if let Some(pick) = &mut alone.pick {
        pick.joining = true;
    }
    bench.bring(&[alone]);
    bench.bring(&[cluster(
        &[own(), in_state("peer", Down)],
        &[],
        Table::default(),
    )]);
    expect(&bench, &[("own", "-")]);
}

/// Two that take over by different tables would both have a slot: until all that are heard go by the same one, nobody has it.
#[test]
fn a_slot_of_a_dead_peer_is_taken_when_all_that_are_heard_go_by_the_new_table() {
    let mut bench = bench();
    let all = [own(), backend("a"), backend("b")];
    begin(&mut bench, cluster(&all, &["a", "b"], table_of(&all)));
    let left = [own(), backend("a"), in_state("b", Down)];
    bench.bring(&[cluster(&left, &["a"], table_of(&all))]);
    expect(&bench, &[(OTHERS, "-"), ("a", "-"), ("own", "-")]);
    let others = bench.number("web", OTHERS);
    let before = bench.slots("web");
    set_all(&bench, Slot::settled(others));
    let mut syn = frame(CLUSTER_MAC, 1000, TCP_SYN);
    assert_eq!(send(&bench, &mut syn), Verdict::OtherNode);
    put_back(&bench, &before);
    let pending = |pending: Pending| {
        let mut service = cluster(&left, &["a"], table_of(&left));
        if let Some(pick) = &mut service.pick {
            pick.pending = pending;
        }
        service
    };
    // By the same table all the while: whoever takes it answers the dead one's flows.
    let same = bench.plan(&[pending(Pending::By(table_of(&left)))]);
    assert!(!named_as_previous(&same.unwrap(), others));
    // The other may have had it by another table, and have flows in it.
    bench.bring(&[pending(Pending::BySeveral)]);
    expect(
        &bench,
        &[("a", OTHERS), ("a", "-"), ("own", OTHERS), ("own", "-")],
    );
}

fn named_as_previous(ops: &[Op], number: u16) -> bool {
    ops.iter().any(|op| match op {
        Op::Slots { changes, .. } => changes.iter().any(|(_, slot)| slot.previous() == number),
        _ => false,
    })
}

/// What the maps say of others may be over since the daemon was away; what is this node's own is not.
#[test]
fn what_is_not_its_own_is_anybodys_when_the_daemon_comes_back() {
    let mut bench = bench();
    let all = [own(), backend("a"), backend("b")];
    begin(&mut bench, cluster(&all, &["a", "b"], table_of(&all)));
    let drained = |name: &str| in_state(name, Draining);
    let without_b = [own(), backend("a"), drained("b")];
    bench.bring(&[cluster(&without_b, &["a", "b"], table_of(&without_b))]);
    let without_own = [drained("own"), backend("a"), drained("b")];
    bench.bring(&[cluster(&without_own, &["a", "b"], table_of(&without_own))]);
    expect(&bench, &[("a", "-"), ("a", "b"), ("a", "own")]);

    let [here, there] = ["own", "a"].map(|name| bench.number("web", name));
    let before = bench.slots("web");
    for (port, backend) in [(1000, here), (1001, there)] {
        set_all(&bench, Slot::new(backend, bench.number("web", "b")));
        send(&bench, &mut frame(CLUSTER_MAC, port, TCP_SYN));
    }
    put_back(&bench, &before);
    let (unix_ms, now) = (1_700_000_000_000, bench.now);
    come_back(&mut bench.executor, "own", unix_ms, now, || now).unwrap();
    bench.check();
    expect(&bench, &[("a", OTHERS), ("a", "-"), ("a", "own")]);
    let others = bench.number("web", OTHERS);
    let recorded: Vec<u16> = bench
        .executor
        .maps
        .flow_buckets()
        .iter()
        .flat_map(|bucket| &bucket.ways)
        .map(|way| FlowState(way.state.get()))
        .filter(|state| state.used())
        .map(FlowState::backend)
        .collect();
    assert_eq!(recorded.len(), 2);
    assert!(recorded.contains(&here) && recorded.contains(&others));

    // Nothing is taken before all go by the same table, and then without the flows that may be there.
    let missed = |missed: Missed, agreeing: &[&str]| {
        let mut service = cluster(&all, agreeing, table_of(&all));
        if let Some(pick) = &mut service.pick {
            pick.missed = missed;
        }
        service
    };
    bench.bring(&[missed(Missed::Tables, &["a"])]);
    expect(&bench, &[("a", OTHERS), ("a", "-"), ("a", "own")]);
    bench.bring(&[missed(Missed::Tables, &["a", "b"])]);
    expect(&bench, &[("a", "-"), ("b", OTHERS), ("own", "own")]);
    let left = [own(), in_state("a", Down), backend("b")];
    let mut service = cluster(&left, &["b"], table_of(&left));
    if let Some(pick) = &mut service.pick {
        pick.missed = Missed::Flows;
    }
    bench.bring(&[service]);
    expect(&bench, &[("b", OTHERS), ("own", OTHERS), ("own", "own")]);
}

/// While a new file goes round, nobody gives up what those with the old one would not take.
#[test]
fn nothing_is_given_up_before_all_have_the_same_file() {
    let mut bench = bench();
    let before = [own(), backend("a")];
    begin(&mut bench, cluster(&before, &["a"], table_of(&before)));
    let old = bench.slots("web");
    let with = |nodes: &[DesiredBackend], same_file| {
        let mut service = cluster(nodes, &["a"], table_of(&before));
        if let Some(pick) = &mut service.pick {
            pick.same_file = same_file;
        }
        service
    };
    // One more, which is there; one more, which is not; another weight.
    let added = [own(), backend("a"), backend("b")];
    let absent = [own(), backend("a"), in_state("b", Down)];
    let heavier = DesiredBackend {
        configured: 200,
        weight: 200,
        ..backend("a")
    };
    let weights = [own(), heavier];
    for nodes in [&added[..], &absent, &weights] {
        bench.bring(&[with(nodes, false)]);
        assert_eq!(bench.slots("web"), old);
        bench.check();
    }
    // A failure is not waited with.
    let mut failed = added.clone();
    failed[1] = in_state("a", Down);
    bench.bring(&[with(&failed, false)]);
    expect(&bench, &[("own", "-")]);
    // Nor does it matter any more when nobody of those before is there.
    let mut others = added.clone();
    others[0] = DesiredBackend {
        state: Down,
        ..own()
    };
    others[1] = in_state("a", Down);
    bench.bring(&[with(&others, false)]);
    let number = bench.number("web", "own");
    assert_eq!(bench.actual().named(number).current, 0);
    // Now they have.
    bench.bring(&[with(&added, true)]);
    let by = table_of(&added);
    bench.bring(&[cluster(&added, &["a", "b"], by)]);
    let shares = ["own", "a", "b"].map(|name| {
        let number = bench.number("web", name);
        bench.actual().named(number).current
    });
    assert!(shares.iter().all(|share| *share > 600), "{shares:?}");
}
