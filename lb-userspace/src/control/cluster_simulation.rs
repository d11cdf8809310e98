//! What `mode = "pick"` promises, over the real data path, reconciler, judgement and words of three nodes: words get lost
//! and come late, probes come at different times, nodes die, come back, are drained, and lose their daemons. Every packet
//! goes to every node, and:
//!
//! - a flow stays on its node as long as that serves, and nobody else ever keeps a packet of it;
//! - no packet is kept by two nodes, but for less than one probe interval after a server has failed on a node that lives;
//! - when nothing happens any more, every new flow is kept by exactly one.

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config as RunnerConfig, TestRunner},
};

use self::world::World;
use super::{actual::Millis, sweep::Budget};

mod found;
mod node;
mod world;

const NODES: usize = 3;
const FLOWS: usize = 60;
/// Clients that try to connect all the time, and never get any further: so it shows when two nodes answer.
const TRYING: usize = 20;
/// From one look at everything to the next, in milliseconds.
const STEP: Millis = 10;
/// A pass over the flow table takes some steps: three to look at its buckets, and one or two to settle slots.
const PIECE: Budget = Budget {
    buckets: 400,
    slots: 1024,
};
/// The probes' interval.
const INTERVAL: Millis = 1_000;
/// How long a fresh start waits for the first answers, as the daemon does.
const OPENING: Millis = 5_000;
const UNIX: u64 = 1_700_000_000_000;

/// Whether the service is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probing {
    Tcp,
    Never,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Time passes, in milliseconds.
    Wait(Millis),
    /// The node loses its power.
    Kill(usize),
    /// It comes back, with nothing.
    Boot(usize),
    /// It comes back without a data path; its server answers.
    Bare(usize),
    /// It takes its data path away and says so; its server answers on.
    Leave(usize),
    /// Its cable is pulled, and put back.
    Cut(usize),
    Heal(usize),
    /// Its server ends, and it lives on.
    StopServer(usize),
    StartServer(usize),
    /// Its daemon ends; the data path stays.
    StopDaemon(usize),
    StartDaemon(usize),
    ToggleDrain(usize),
    Weight(usize, u32),
    /// So many new flows, from this one on, where there is none.
    Open(usize, usize),
}

fn live(random: u64, steps: &[Step]) -> u64 {
    live_with(random, steps, Probing::Tcp)
}

fn live_with(random: u64, steps: &[Step], probing: Probing) -> u64 {
    let mut world = World::new(random, probing);
    for step in steps {
        world.step(*step);
    }
    world.rest();
    world.doubles
}

fn run(failures: bool, probing: Probing, cases: u32) {
    let node = || 0..NODES;
    let planned = prop_oneof![
        6 => (0u64..4_000).prop_map(Step::Wait),
        6 => (0..FLOWS, 1..FLOWS).prop_map(|(first, count)| Step::Open(first, count)),
        3 => node().prop_map(Step::ToggleDrain),
        2 => (node(), prop::sample::select(&[5u32, 50, 200][..])).prop_map(|(n, w)| Step::Weight(n, w)),
        1 => node().prop_map(Step::StopDaemon),
        2 => node().prop_map(Step::StartDaemon),
        2 => node().prop_map(Step::Kill),
        3 => node().prop_map(Step::Boot),
        1 => node().prop_map(Step::Bare),
        1 => node().prop_map(Step::Leave),
    ];
    let with_failures = prop_oneof![
        9 => planned.clone(),
        2 => node().prop_map(Step::StopServer),
        3 => node().prop_map(Step::StartServer),
        // Long enough that the peers of a node without a daemon find out.
        1 => node().prop_map(Step::StopDaemon),
        2 => (4_000u64..9_000).prop_map(Step::Wait),
    ];
    let steps = if failures {
        vec(with_failures, 1..40).boxed()
    } else {
        vec(planned, 1..40).boxed()
    };
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(cases);
    let mut runner = TestRunner::new(RunnerConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 512,
        ..RunnerConfig::default()
    });
    runner
        .run(&(any::<u64>(), steps), |(random, steps)| {
            let doubles = live_with(random, &steps, probing);
            if !failures {
                assert_eq!(doubles, 0, "packets kept by two nodes");
            }
            Ok(())
        })
        .unwrap();
}

/// Drains, weights, nodes that die and come back, daemons that end: nobody is ever answered twice.
#[test]
fn no_packet_is_kept_by_two_nodes() {
    run(false, Probing::Tcp, 16);
}

/// The same where nobody probes: nodes judge each other by words and by their data paths' answers.
#[test]
fn no_packet_of_a_service_without_probes_is_kept_by_two_nodes() {
    run(false, Probing::Never, 16);
}

/// A server that fails under its living node: by the node's own probe and by those of its peers, whoever is first.
#[test]
fn while_views_differ_nobody_is_answered_twice_for_long() {
    run(true, Probing::Tcp, 16);
}

/// What was found with chance's help is kept: no packet twice, where no server failed under a living node.
#[track_caller]
fn never_twice(random: u64, steps: &[Step]) {
    assert_eq!(live(random, steps), 0, "packets kept by two nodes");
}
