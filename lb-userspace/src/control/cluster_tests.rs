//! What a node of a cluster does with the frames it sees, and with the slots of its peers: one thing after the other.

use std::collections::BTreeMap;

use lb_common::{
    features::Features,
    forward::process,
    packet::Buffer,
    pick::{Backend, Slot},
    verdict::Verdict,
    wire::{TCP_ACK, TCP_SYN, mac_bytes},
};

use super::{
    desired::{DesiredBackend, DesiredService, Pick},
    peers::Table,
    reconcile::OTHERS,
    samples::{Bench, CLUSTER_MAC, OWN_MAC, PlainMemory, backend, in_state, service},
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
            tables: agreeing
                .iter()
                .map(|name| ((*name).to_owned(), table))
                .collect::<BTreeMap<_, _>>(),
            joining: false,
        }),
        ..service("web", 10, nodes)
    }
}

/// The table that these nodes make.
fn table_of(nodes: &[DesiredBackend]) -> Table {
    let service = cluster(nodes, &[], Table::default());
    let built_for: Vec<_> = service
        .active()
        .map(|b| (b.identity(), b.weight, 0))
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

/// All slots as if there were one.
fn set_all(bench: &Bench, slot: Slot) {
    for index in 0..1 << crate::maglev::MIN_BITS {
        bench.executor.maps.tables.set_slot(index, slot);
    }
}

#[test]
fn what_becomes_of_a_frame() {
    let mut bench = bench();
    let nodes = [own(), backend("peer")];
    bench.bring(&[cluster(&nodes, &["peer"], table_of(&nodes))]);
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
    bench.bring(&[cluster(&[own()], &[], Table::default())]);
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
    bench.bring(&[cluster(&nodes, &["peer", "third"], table_of(&nodes))]);
    let [here, there, third] = ["own", "peer", "third"].map(|name| bench.number("web", name));
    set_all(&bench, Slot::new(there, third));
    let syn = frame(CLUSTER_MAC, 1000, TCP_SYN);
    assert_eq!(send(&bench, &mut syn.clone()), Verdict::OtherNode);
    set_all(&bench, Slot::new(here, third));
    assert_eq!(send(&bench, &mut syn.clone()), Verdict::Local);
    let mut next = frame(CLUSTER_MAC, 1000, TCP_ACK);
    assert_eq!(send(&bench, &mut next), Verdict::Local);
}

#[test]
fn a_slot_of_a_living_peer_is_taken_when_all_go_by_the_new_table() {
    let mut bench = bench();
    let without = [in_state("own", Down), backend("peer")];
    bench.bring(&[cluster(&without, &["peer"], table_of(&without))]);
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
    bench.bring(&[cluster(&without, &["a", "b"], table_of(&without))]);
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
