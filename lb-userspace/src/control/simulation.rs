//! The promise of design.md section 3, over the real data path, reconciler, sweep and operations: hundreds of flows live
//! through random drains, failures, reloads, restarts and controllers killed in the middle of a change, and a flow stays
//! where it is as long as its backend does and no drain's time is up.
//!
//! There are four services, two of each family, and among them TCP, QUIC, both together, and UDP; `services` says what is
//! promised to whose flows.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use lb_common::{flow::TICK_NS, tables::Event, verdict::Verdict};
use proptest::{
    collection::vec,
    test_runner::{Config, TestRunner},
};

use super::{following::Following, samples::Bench};

mod changes;
mod flows;
mod found;
mod model;
mod packets;
mod services;
mod steps;
mod sweeps;

use model::{Life, ModelBackend, ModelService, Server};
use packets::Says;
use services::{Traffics, USUAL};
use steps::{Step, step, traffics};

const SERVICES: usize = 4;
const BACKENDS: usize = 5;
const FLOWS: usize = 400;
/// The service whose sources may be hot, and how many it has.
const HOT_SERVICE: usize = 1;
const SOURCES: usize = 12;
/// Fewer than all services and backends with all their addresses need: numbers are used again soon.
const NUMBERS: u32 = 36;
const WEIGHTS: [u32; 4] = [0, 5, 50, 100];
/// The `affinity_timeout` of a service, while it has one: longer than any `flow_idle`.
const AFFINITY_TIMEOUT: Duration = Duration::from_secs(14);

static STEPS: AtomicU64 = AtomicU64::new(0);
static PACKETS: AtomicU64 = AtomicU64::new(0);

struct World {
    bench: Bench,
    traffics: Traffics,
    model: Vec<ModelService>,
    lives: Vec<Option<Life>>,
    /// Those that failed while they were leaving, or before: their flows never come back.
    lost: BTreeSet<Server>,
    /// By service: where the new flows of each client have gone since its last change, and from which port, if that counts.
    picks: Vec<BTreeMap<(IpAddr, u32), Result<Server, Verdict>>>,
    /// So many packets.
    sent: usize,
    /// A controller was killed, and no other has started yet: drains and failures may be done in part.
    headless: bool,
}

impl World {
    fn new(traffics: Traffics) -> Self {
        let backend = ModelBackend {
            listed: true,
            drained: false,
            ended: None,
            failed: false,
            healthy: true,
            has_mac: true,
            mac_version: 0,
            address_version: 0,
            weight: 50,
            priority: 1,
        };
        let mut backends = vec![backend; BACKENDS];
        backends[3].priority = 2;
        backends[4].listed = false;
        let mut bench = Bench::sized(1 << 16, 8, NUMBERS);
        // The 16-bit time wraps while the flows live.
        bench.now = (u64::from(u16::MAX) - 20) * TICK_NS / 1_000_000;
        let mut world = Self {
            bench,
            traffics,
            model: vec![
                ModelService {
                    listed: true,
                    spreads: true,
                    following: Following::default(),
                    manual: false,
                    held: None,
                    backends,
                };
                SERVICES
            ],
            lives: vec![None; FLOWS],
            lost: BTreeSet::new(),
            picks: vec![BTreeMap::new(); SERVICES],
            sent: 0,
            headless: false,
        };
        for (model, traffic) in world.model.iter_mut().zip(traffics) {
            model.following.track = traffic.first_track();
        }
        // A primary, a pool of two and a last resort, which new flows leave only when the operator says so.
        let standby = &mut world.model[1];
        standby.manual = true;
        for (backend, priority) in standby.backends.iter_mut().zip([1, 2, 2, 3, 1]) {
            backend.priority = priority;
        }
        world.bench.bring(&world.desired());
        world
    }

    fn each(&mut self, first: usize, count: usize, says: Says) {
        for flow in first..first + count {
            self.packet(flow % FLOWS, says);
        }
    }

    fn step(&mut self, step: &Step) {
        STEPS.fetch_add(1, Ordering::Relaxed);
        match *step {
            Step::Open(first, count) => self.each(first, count, Says::Opens),
            Step::Send(first, count) => self.each(first, count, Says::Continues),
            Step::Close(first, count) => self.each(first, count, Says::Closes),
            Step::Reset(first, count) => self.each(first, count, Says::Resets),
            Step::Complain(first, count) => {
                (first..first + count).for_each(|flow| self.complain(flow % FLOWS));
            }
            Step::Change(service, backend, change) => self.apply(service, backend, change, None),
            Step::Killed(service, backend, change, writes) => {
                self.apply(service, backend, change, Some(writes));
                if self.headless {
                    self.take_over();
                }
            }
            Step::Turn(source, spread) => self.turn(source, spread, None),
            Step::KilledTurn(source, spread, writes) => {
                self.turn(source, spread, Some(writes));
                if self.headless {
                    self.take_over();
                }
            }
            Step::ToggleSpread => {
                let before = self.model.clone();
                let spreads = &mut self.model[HOT_SERVICE].spreads;
                *spreads = !*spreads;
                if !*spreads {
                    (0..SOURCES).for_each(|source| self.turn(source, false, None));
                }
                self.reconcile(before, None);
            }
            Step::ToggleService(service) => {
                let before = self.model.clone();
                let listed = &mut self.model[service % SERVICES].listed;
                *listed = !*listed;
                self.reconcile(before, None);
            }
            Step::Follow(service, track, clients) => self.follow(service, track, clients, None),
            Step::KilledFollow(service, track, clients, writes) => {
                self.follow(service, track, clients, Some(writes));
                if self.headless {
                    self.take_over();
                }
            }
            Step::Pass(ms) => self.bench.now += ms,
            Step::Sweep => {
                self.sweep();
            }
            Step::SweepPieces(pieces) => self.sweep_pieces(pieces),
            Step::Wait(ms) => self.wait(ms),
            Step::Restart => self.restart(),
        }
        let forgotten = self.bench.executor.maps.tables.events()[Event::FlowForgotten as usize];
        assert_eq!(forgotten, 0, "the flow table is large enough");
    }
}

fn live_as(traffics: Traffics, steps: &[Step]) {
    let mut world = World::new(traffics);
    for step in steps {
        world.step(step);
    }
    world.rest();
}

fn live(steps: &[Step]) {
    live_as(USUAL, steps);
}

#[test]
fn a_flow_stays_where_it_is_as_long_as_its_backend_does() {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(80);
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 4096,
        ..Config::default()
    });
    let result = runner.run(&(traffics(), vec(step(), 1..120)), |(traffics, steps)| {
        live_as(traffics, &steps);
        Ok(())
    });
    result.unwrap();
    // Past the test harness, which keeps what a passing test prints to itself; `cargo xtask test` reads it.
    writeln!(
        std::io::stdout().lock(),
        "{} transition steps, {} packets",
        STEPS.load(Ordering::Relaxed),
        PACKETS.load(Ordering::Relaxed)
    )
    .unwrap();
}
