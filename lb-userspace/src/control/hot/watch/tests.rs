//! Found, kept and let go: over the data path's own sampling.

use lb_common::{
    address::Address as _,
    hot::{HotState, sample},
    pick::Affinity,
    plain::{Capacity, Instance, PlainTables},
};

use super::*;

const SERVICE: u16 = 5;
/// 5 %.
const THRESHOLD: u32 = 50_000;
const NAT: u32 = 0xcb00_7107;

struct Scene {
    tables: PlainTables,
    watch: Watch,
    hot: BTreeMap<Source, HotSource>,
    now: Millis,
    sent: u32,
}

fn source(client: u32) -> Source {
    Source::of(SERVICE, Affinity::CLIENT_IPV4, client)
}

impl Scene {
    fn new() -> Self {
        let tables = PlainTables::new(Capacity::default(), Instance::default());
        Self {
            watch: Watch::from_now_on(&tables.samples),
            tables,
            hot: BTreeMap::new(),
            now: 1_000_000,
            sent: 0,
        }
    }

    /// Half a second of packets, `percent` of them from one address and the others from a thousand.
    fn half_second(&mut self, packets: u32, percent: u32) -> Vec<Judgement> {
        for _ in 0..packets {
            self.sent += 1;
            let client = if self.sent * 37 % 100 < percent {
                NAT
            } else {
                0x0a00_0000 + self.sent % 1000
            };
            sample(&self.tables, SERVICE, client);
        }
        self.now += 500;
        self.watch.read(&self.tables.samples, self.now);
        let judgements = self.watch.judge(
            &self.hot,
            |id| (id == SERVICE).then_some(THRESHOLD),
            self.now,
        );
        for judgement in &judgements {
            let state = self
                .hot
                .get(&judgement.source)
                .map_or(HotState::COLD, |hot| hot.state);
            let state = if state.spreads() == judgement.spread {
                state.settled()
            } else {
                state.turned(judgement.spread)
            };
            if state == HotState::COLD {
                self.hot.remove(&judgement.source);
                continue;
            }
            self.hot.insert(
                judgement.source,
                HotSource {
                    place: 0,
                    state,
                    changed: self.now,
                    since_ms: 0,
                    share_ppm: judgement.share_ppm,
                    prefix: 32,
                },
            );
        }
        judgements
    }

    fn spread(&self) -> Vec<Source> {
        let spread = self.hot.iter().filter(|(_, hot)| hot.state.spreads());
        spread.map(|(source, _)| *source).collect()
    }
}

#[test]
fn one_above_its_share_is_found_and_nobody_else() {
    let mut scene = Scene::new();
    for _ in 0..8 {
        scene.half_second(3000, 40);
    }
    assert_eq!(scene.spread(), [], "not at the first sight");
    scene.half_second(3000, 40);
    assert_eq!(scene.spread(), [source(NAT)]);
    let share = scene.hot[&source(NAT)].share_ppm;
    assert!((380_000..420_000).contains(&share), "{share}");
    assert_eq!(source(NAT).address, NAT.mapped());
    // It stays as long as it is above half of the threshold.
    for _ in 0..200 {
        scene.half_second(3000, 4);
    }
    assert_eq!(scene.spread(), [source(NAT)]);
    let share = scene.hot[&source(NAT)].share_ppm;
    assert!((30_000..50_000).contains(&share), "{share}");
}

#[test]
fn one_below_its_share_is_let_be() {
    let mut scene = Scene::new();
    for _ in 0..60 {
        scene.half_second(3000, 3);
    }
    assert_eq!(scene.spread(), []);
}

#[test]
fn calm_again_it_returns_after_a_while() {
    let mut scene = Scene::new();
    for _ in 0..9 {
        scene.half_second(3000, 40);
    }
    let found = scene.now;
    while scene.spread() == [source(NAT)] {
        scene.half_second(3000, 1);
    }
    assert!((CALM..CALM + 2 * STRETCH).contains(&(scene.now - found)));
    // Loud again before it has settled: spread again after as long as at first.
    for _ in 0..9 {
        scene.half_second(3000, 40);
    }
    assert_eq!(scene.spread(), [source(NAT)]);
}

/// Without any packet nobody is judged, and who was hot is calm.
#[test]
fn silence_is_calm() {
    let mut scene = Scene::new();
    for _ in 0..9 {
        scene.half_second(3000, 40);
    }
    let found = scene.now;
    while !scene.spread().is_empty() {
        scene.half_second(0, 0);
    }
    assert_eq!(scene.now - found, LONGEST_STRETCH);
}

/// A hundred packets a second take as long as they need, and no share is believed before.
#[test]
fn a_slow_service_is_judged_more_slowly() {
    let mut scene = Scene::new();
    let began = scene.now;
    while scene.spread().is_empty() {
        scene.half_second(200, 40);
    }
    // 320 samples of one packet in sixteen, twice.
    let took = scene.now - began;
    assert!((25_000..28_000).contains(&took), "{took}");
    let mut slower = Scene::new();
    for _ in 0..400 {
        slower.half_second(50, 100);
    }
    assert_eq!(slower.spread(), [], "too few packets to judge anybody");
}

#[test]
fn a_service_that_spreads_no_more_lets_all_return_at_once() {
    let mut scene = Scene::new();
    for _ in 0..9 {
        scene.half_second(3000, 40);
    }
    let judged = scene.watch.judge(&scene.hot, |_| None, scene.now + 1);
    assert_eq!(judged.len(), 1);
    assert!(!judged[0].spread);
}

/// A ring that went round many times between two looks: the share is right all the same.
#[test]
fn what_a_ring_could_not_keep_counts_by_its_newest() {
    let mut scene = Scene::new();
    for _ in 0..9 {
        scene.half_second(100_000, 40);
    }
    let share = scene.hot[&source(NAT)].share_ppm;
    assert!((360_000..440_000).contains(&share), "{share}");
}

#[test]
fn what_was_there_before_is_not_read() {
    let scene = Scene::new();
    for _ in 0..10_000 {
        sample(&scene.tables, SERVICE, NAT);
    }
    let mut watch = Watch::from_now_on(&scene.tables.samples);
    watch.read(&scene.tables.samples, 1);
    assert!(watch.tallies.is_empty());
}

/// Many times more sources than there is room for: the frequent ones are there, and none is counted too high.
#[test]
fn the_sketch_keeps_the_frequent_ones() {
    let mut sketch = Sketch::default();
    let address = |n: u64| Ipv6 { high: 1, low: n };
    let mut total = 0;
    for round in 0..200_000u64 {
        total += 16;
        if round % 50 == 0 {
            sketch.add(address(0), 16);
        } else {
            sketch.add(address(1 + round), 16);
        }
    }
    assert!(sketch.counts.len() <= Sketch::CAPACITY);
    let truth = 200_000 / 50 * 16;
    let counted = sketch.of(address(0));
    let slack = total / (Sketch::CAPACITY as u64 / 2);
    assert!(
        (truth - slack..=truth).contains(&counted),
        "{counted} of {truth}"
    );
}
