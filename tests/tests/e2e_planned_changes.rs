//! Twenty planned changes in a row, drawn by lot, under long transfers: not one breaks. The same under a SYN flood.
//!
//! The seed of the lot is printed; `XDP_LB_TEST_SEED` draws the same again.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lb_tests::testbed::scene::{SEED, Scene, tcp_service};
use lb_tests::testbed::{LoadGenerator, LoadSpec, StatusExt, SynFlood, Testbed, Transfers};

const CHANGES: usize = 20;
const BACKENDS: usize = 4;
/// What is downloaded all the while, and how long a download takes: longer than all the changes together.
const LONG: (usize, usize) = (16, 24);
/// Sees a server that has ended at once, and takes a busy machine for no failure: a failure is no planned change.
const PATIENT_PROBE: &str = "[service.probe]\ntype = \"http\"\nport = 80\ninterval = \"500ms\"\ntimeout = \"500ms\"\n\
                             rise = 1\nfall = 20\n";

/// Numbers drawn by lot (SplitMix64: Steele, Lea, Flood, OOPSLA 2014).
struct Lot(u64);

impl Lot {
    fn draw(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % below as u64) as usize
    }
}

/// What was decided about a backend.
#[derive(Clone, Copy, Debug)]
struct Plan {
    listed: bool,
    drained: bool,
    weight: u32,
}

impl Plan {
    fn takes_new_flows(self) -> bool {
        self.listed && !self.drained && self.weight > 0
    }
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Drain,
    Resume,
    Weight(u32),
    Add,
    Remove,
}

fn name(backend: usize) -> String {
    format!("b{}", backend + 1)
}

fn config(testbed: &Testbed, plans: &[Plan; BACKENDS]) -> String {
    let listed = (0..BACKENDS).filter(|backend| plans[*backend].listed);
    let backends: String = listed
        .map(|backend| testbed.one_backend_config(&name(backend), ""))
        .collect();
    [
        testbed.node_config_with(SEED),
        tcp_service(testbed, "web", 80, "client", PATIENT_PROBE),
        backends,
    ]
    .concat()
}

/// A change that changes something and leaves somebody for the new flows; the plans after it.
fn draw(lot: &mut Lot, plans: &[Plan; BACKENDS]) -> (usize, Change, [Plan; BACKENDS]) {
    loop {
        let backend = lot.draw(BACKENDS);
        let mut after = *plans;
        let plan = &mut after[backend];
        let change = match (lot.draw(4), *plan) {
            (
                0,
                Plan {
                    listed: true,
                    drained,
                    ..
                },
            ) => {
                plan.drained = !drained;
                if drained {
                    Change::Resume
                } else {
                    Change::Drain
                }
            }
            (
                1,
                Plan {
                    listed: true,
                    weight,
                    ..
                },
            ) => {
                plan.weight = [0, 10, 50, 100][lot.draw(4)];
                if plan.weight == weight {
                    continue;
                }
                Change::Weight(plan.weight)
            }
            (2 | 3, Plan { listed, .. }) => {
                plan.listed = !listed;
                if listed { Change::Remove } else { Change::Add }
            }
            _ => continue,
        };
        if after.iter().any(|plan| plan.takes_new_flows()) {
            return (backend, change, after);
        }
    }
}

fn make(scene: &Scene, backend: usize, change: Change, plans: &[Plan; BACKENDS]) {
    let name = name(backend);
    let said = match change {
        Change::Drain => scene.daemon.cli_ok(&["drain", &name]),
        Change::Resume => scene.daemon.cli_ok(&["resume", &name]),
        Change::Weight(weight) => scene.daemon.cli_ok(&["weight", &name, &weight.to_string()]),
        Change::Add | Change::Remove => {
            let file = config(&scene.testbed, plans);
            scene.daemon.write_config(&file).unwrap();
            scene.daemon.cli_ok(&["reload"])
        }
    };
    let said = said.unwrap();
    assert!(said.contains(&name), "{name} {change:?}: {said}");
}

/// Waits until those take new flows that the plans name, and nobody else.
fn wait_until_in_force(scene: &mut Scene, plans: &[Plan; BACKENDS]) -> BTreeSet<String> {
    let wanted: BTreeSet<String> = (0..BACKENDS)
        .filter(|backend| plans[*backend].takes_new_flows())
        .map(name)
        .collect();
    let what = format!("that {wanted:?} share the new flows");
    scene
        .daemon
        .wait_for(&what, |status| {
            let sharing = status.backends().filter(|backend| backend.slots > 0);
            sharing.map(|backend| &backend.name).eq(wanted.iter())
        })
        .unwrap();
    wanted
}

fn twenty_changes(label: &str, flooded: bool) {
    let seed = std::env::var("XDP_LB_TEST_SEED").map_or_else(
        |_| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            now.expect("a clock of this century").as_millis() as u64
        },
        |seed| seed.parse().expect("XDP_LB_TEST_SEED is a number"),
    );
    println!("XDP_LB_TEST_SEED={seed}");
    let mut lot = Lot(seed);
    let testbed = Testbed::builder()
        .clients(2, 60)
        .backends(BACKENDS)
        .label(label)
        .build()
        .unwrap();
    let mut plans = [Plan {
        listed: true,
        drained: false,
        weight: 50,
    }; BACKENDS];
    let file = config(&testbed, &plans);
    let mut scene = Scene::start(testbed, &[80], &file).unwrap();
    let flood = flooded.then(|| SynFlood::start(&scene.testbed, "c2", 80).unwrap());

    let sources: Vec<IpAddr> = scene.testbed.host("c1").sources().to_vec();
    let (long, rest) = sources.split_at(LONG.0);
    let (kept, fresh) = rest.split_at(rest.len() / 2);
    let all_along = Transfers::start(&scene, long, LONG.1).unwrap();
    // Connections that pause and go on, beside those that always send.
    let spec = LoadSpec {
        sources: kept.to_vec(),
        keep_alive: true,
        rate: 40,
        ..scene.load()
    };
    let load = LoadGenerator::start(scene.testbed.host("c1"), spec).unwrap();
    let mut later = Transfers::default();
    let mut history = Vec::new();
    for number in 0..CHANGES {
        let (backend, change, after) = draw(&mut lot, &plans);
        history.push(format!("{} {change:?}", name(backend)));
        make(&scene, backend, change, &after);
        plans = after;
        let sharing = wait_until_in_force(&mut scene, &plans);
        // A new transfer in the middle of it, which has to live through all that is to come.
        let source = fresh[number % fresh.len()];
        let begun = Transfers::start(&scene, &[source], 8).unwrap();
        let home = begun.reports().next().and_then(|report| report.backend);
        assert!(
            home.as_ref().is_some_and(|home| sharing.contains(home)),
            "{source} began on {home:?} of {sharing:?} after {history:?}"
        );
        later.extend(begun);
        std::thread::sleep(Duration::from_millis(lot.draw(300) as u64));
    }
    println!("{}", history.join(", "));
    all_along.check_running().unwrap();

    for transfers in [all_along, later] {
        if let Err(broken) = transfers.finish_whole() {
            let log = std::fs::read_to_string(scene.daemon.log_path()).unwrap();
            panic!("{broken}, after {history:?}:\n{log}");
        }
    }
    let records = load.stop().unwrap();
    let failed: Vec<_> = records.iter().filter(|r| r.error.is_some()).collect();
    assert!(
        records.len() > kept.len() && failed.is_empty(),
        "{failed:?}"
    );
    // Nothing is hidden by a failure that was taken for one.
    let log = std::fs::read_to_string(scene.daemon.log_path()).unwrap();
    let fails = |line: &&str| {
        line.contains("to=\"down\"") && !line.contains("from=\"new\"")
            || line.contains("its flows have moved")
    };
    let failed = log.lines().find(fails);
    assert_eq!(failed, None, "a failure is no planned change");
    if let Some(flood) = flood {
        let sent = flood.stop().unwrap();
        let forwarded = scene.daemon.status().unwrap().verdicts["forwarded"];
        println!("{sent} SYNs of the flood, {forwarded} packets forwarded");
        assert!(sent > 10_000 && forwarded > sent / 2, "{sent}, {forwarded}");
    }
}

#[test]
fn twenty_planned_changes_break_no_transfer() {
    twenty_changes("changes", false);
}

#[test]
fn twenty_planned_changes_under_a_syn_flood_break_no_transfer() {
    twenty_changes("flooded", true);
}
