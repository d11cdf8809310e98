//! What the flow table promises, tried on many seeds, sizes and contents.

extern crate std;

use std::{collections::BTreeSet, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::plain::{Capacity, Instance, PlainTables};

fn table(bits: u32) -> PlainTables {
    PlainTables::new(
        Capacity {
            service_buckets: 2,
            slots: 16,
            backends: 16,
            flow_buckets: 1 << bits,
            ..Capacity::default()
        },
        Instance::default(),
    )
}

/// Clients as they come: neighbouring addresses, some flows each, rising ports.
fn key(number: u32) -> FlowKey {
    FlowKey::tcp(
        0x0a00_0000 + number / 7,
        (1024 + number % 60_000) << 16 | 80,
        3,
    )
}

fn backend_of(number: u32) -> u16 {
    (number % 15 + 1) as u16
}

/// Fills a table of 2^`bits` buckets with one flow per bucket, then lets each flow end and another one take its place
/// `turnover` times over; `choose` says which flow ends.
fn fill_and_turn_over(bits: u32, seed: Seed, turnover: u32, mut choose: impl FnMut(u32) -> u32) {
    let tables = table(bits);
    let open = |number| {
        let key = key(number);
        let hash = key.hash(seed);
        record(&tables, key, hash, backend_of(number), Phase::Open);
    };
    let flows = 1 << bits;
    let mut live: Vec<u32> = (0..flows).collect();
    live.iter().copied().for_each(open);
    for number in flows..flows * (1 + turnover) {
        let ending = &mut live[choose(flows) as usize];
        let key = key(*ending);
        assert!(
            find(&tables, key, key.hash(seed)).is_some(),
            "a live flow is recorded"
        );
        key.put(&tables, key.hash(seed), FlowState(0));
        *ending = number;
        open(number);
    }
    for number in &live {
        let key = key(*number);
        let state = find(&tables, key, key.hash(seed)).expect("a live flow is recorded");
        assert_eq!(state.backend(), backend_of(*number));
    }
    assert_eq!(
        tables.events(),
        [u64::from(flows) * u64::from(1 + turnover), 0],
        "recorded and forgotten, 2^{bits} buckets, {seed:?}"
    );
}

/// A full-period generator is enough to choose who ends.
fn chooser(mut state: u64) -> impl FnMut(u32) -> u32 {
    move |below| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (((state >> 32) * u64::from(below)) >> 32) as u32
    }
}

/// From the smallest table that `Sizes::of` makes. The seeds are fixed, since chance is never quite out of it: of 65 million
/// flows that came and went this load forgot none, in 2^10 buckets or 2^16; three eighths full, one in 3 million; half full,
/// one in 30,000.
#[test]
fn a_quarter_full_table_forgets_nobody() {
    for (bits, seeds, turnover) in [(10, 40, 3), (12, 10, 3), (14, 2, 4)] {
        for number in 0..seeds {
            let mut word = chooser(u64::from(bits) << 32 | number);
            let mut half = || u64::from(word(u32::MAX)) << 32 | u64::from(word(u32::MAX));
            let seed = Seed([half(), half()]);
            fill_and_turn_over(bits, seed, turnover, chooser(number));
        }
    }
}

/// Nearly every flow is where it is looked for first, and all its buckets are in one page.
#[test]
fn flows_are_at_home() {
    const BITS: u32 = 14;
    let seed = Seed([0x0123_4567_89ab_cdef, 0x0f1e_2d3c_4b5a_6978]);
    let tables = table(BITS);
    let mut at_home = 0;
    for number in 0..1 << BITS {
        let key = key(number);
        let hash = key.hash(seed);
        record(&tables, key, hash, backend_of(number), Phase::Open);
        let buckets = bucket_indices(hash, BITS);
        assert!(buckets.iter().all(|bucket| bucket / 32 == buckets[0] / 32));
        assert!(buckets[1] != buckets[0] && buckets[2] != buckets[0] && buckets[1] != buckets[2]);
        if let Some((state, way)) = find_at_home(&tables, key, hash) {
            assert_eq!(state.backend(), backend_of(number));
            assert!(key.is_in(way));
            at_home += 1;
        }
    }
    assert!(at_home > (1 << BITS) * 9 / 10, "{at_home}");
}

/// Two processors that record one flow at once may leave it in two ways: what is found is one of them, whole.
#[test]
fn of_two_records_of_a_flow_one_is_found() {
    let tables = table(5);
    let key = key(9);
    let hash = key.hash(Seed([1, 2]));
    let [home, ..] = bucket_indices(hash, 5);
    let ways = &tables.flows[home as usize].ways;
    let state = |backend, seen| FlowState::new(backend, key.owner(), seen, hash, Phase::Open);
    for (first, second) in [(0, 1), (0, 3), (1, 2), (2, 3)] {
        for way in ways {
            way.state.set(0);
        }
        for (way, state) in [(first, state(5, 7)), (second, state(10, 8))] {
            key.write(&ways[way]);
            ways[way].state.set(state.0);
        }
        assert_eq!(find(&tables, key, hash), Some(state(5, 7)));
        let found = find_at_home(&tables, key, hash).map(|(state, way)| (state, way.state.get()));
        assert_eq!(found, Some((state(5, 7), state(5, 7).0)));
    }
}

/// How a way of a bucket is filled before the test.
#[derive(Clone, Copy, Debug)]
struct Filled {
    seen: u16,
    phase: Phase,
    empty: bool,
}

fn phase() -> impl Strategy<Value = Phase> {
    prop_oneof![
        4 => Just(Phase::Open),
        1 => Just(Phase::Opening),
        1 => Just(Phase::Closing),
        1 => Just(Phase::Ended),
    ]
}

fn filled() -> impl Strategy<Value = Filled> {
    (any::<u16>(), phase(), prop::bool::weighted(0.2)).prop_map(|(seen, phase, empty)| Filled {
        seen,
        phase,
        empty,
    })
}

/// Another service.
const OTHER: Owner = Owner {
    service: 8,
    udp: false,
};

proptest! {
    /// An empty way is taken first: of the home where it has two, of the emptiest bucket otherwise; then an ended flow; then one
    /// that only opened; then the one silent for longest. What had opened and not ended is counted as forgotten.
    #[test]
    fn the_longest_silent_is_replaced(
        ways in prop::collection::vec(filled(), 4 * WAYS),
        seed: [u64; 2],
        number in 1000u32..60_000,
        now: u16,
    ) {
        let tables = table(2);
        tables.set_now(now);
        for (at, filled) in ways.iter().enumerate() {
            if !filled.empty {
                // Another service's flows, which never match.
                let way = &tables.flows[at / WAYS].ways[at % WAYS];
                way.key.set(at as u64);
                way.state.set(FlowState::new(9, OTHER, filled.seen, 0, filled.phase).0);
            }
        }
        let before: Vec<u64> = states(&tables);
        let key = key(number);
        let hash = key.hash(Seed(seed));
        record(&tables, key, hash, 5, Phase::Open);

        let after = states(&tables);
        let changed: Vec<usize> = (0..before.len()).filter(|at| before[*at] != after[*at]).collect();
        prop_assert_eq!(changed.len(), 1, "one way takes the flow");
        let taken = changed[0];
        let buckets = bucket_indices(hash, 2).map(|bucket| bucket as usize);
        let candidates: BTreeSet<usize> = buckets.into();
        prop_assert_eq!(candidates.len(), HOMES);
        prop_assert!(candidates.contains(&(taken / WAYS)));

        let empty_in = |bucket: usize| (0..WAYS).filter(|way| ways[bucket * WAYS + way].empty).count();
        let most_empty = candidates.iter().map(|bucket| empty_in(*bucket)).max().unwrap_or(0);
        if empty_in(buckets[0]) >= 2 {
            prop_assert!(ways[taken].empty);
            prop_assert_eq!(taken / WAYS, buckets[0], "home");
            prop_assert_eq!(tables.events(), [1, 0]);
        } else if most_empty > 0 {
            prop_assert!(ways[taken].empty);
            prop_assert_eq!(empty_in(taken / WAYS), most_empty);
            prop_assert_eq!(tables.events(), [1, 0]);
        } else {
            let rank = |at: usize| {
                let class = match ways[at].phase {
                    Phase::Ended => 2,
                    Phase::Opening => 1,
                    Phase::Open | Phase::Closing => 0,
                };
                (class, now.wrapping_sub(ways[at].seen))
            };
            let best = candidates
                .iter()
                .flat_map(|bucket| (0..WAYS).map(move |way| bucket * WAYS + way))
                .map(rank)
                .max();
            prop_assert_eq!(Some(rank(taken)), best);
            let forgotten = u64::from(matches!(ways[taken].phase, Phase::Open | Phase::Closing));
            prop_assert_eq!(tables.events(), [1, forgotten]);
        }
        let state = find(&tables, key, hash).expect("just recorded");
        prop_assert_eq!((state.backend(), state.seen()), (5, now));
    }

    /// Two processors that write one way at once may leave one's key with the other's state: neither flow is found, and
    /// both can be recorded anew.
    #[test]
    fn a_torn_way_is_empty_to_every_reader(seed: [u64; 2], a in 0u32..60_000, b in 0u32..60_000) {
        let seed = Seed(seed);
        let tables = table(1);
        let (key_a, key_b) = (key(a), key(b));
        let (hash_a, hash_b) = (key_a.hash(seed), key_b.hash(seed));
        let state_b = FlowState::new(2, key_b.owner(), 0, hash_b, Phase::Open);
        // Twelve check bits: one pair in 4096 can't be told apart.
        prop_assume!(a != b && !state_b.belongs(hash_a, key_a.owner()));
        let [bucket, ..] = bucket_indices(hash_a, 1);
        let way = &tables.flows[bucket as usize].ways[0];
        key_a.write(way);
        way.state.set(state_b.0);

        prop_assert!(find(&tables, key_a, hash_a).is_none());
        prop_assert!(find(&tables, key_b, hash_b).is_none());
        record(&tables, key_a, hash_a, 1, Phase::Open);
        record(&tables, key_b, hash_b, 2, Phase::Open);
        prop_assert_eq!(find(&tables, key_a, hash_a).map(FlowState::backend), Some(1));
        prop_assert_eq!(find(&tables, key_b, hash_b).map(FlowState::backend), Some(2));
    }

    /// Recording a known flow again moves it, in its place, and counts nothing.
    #[test]
    fn a_known_flow_keeps_its_way(seed: [u64; 2], numbers in prop::collection::btree_set(0u32..60_000, 1..8)) {
        let seed = Seed(seed);
        let tables = table(5);
        for backend in 1..=3 {
            for number in &numbers {
                let key = key(*number);
                record(&tables, key, key.hash(seed), backend, Phase::Open);
            }
            prop_assert_eq!(tables.events(), [numbers.len() as u64, 0]);
            let used = states(&tables).iter().filter(|state| FlowState(**state).used()).count();
            prop_assert_eq!(used, numbers.len());
        }
        for number in &numbers {
            let key = key(*number);
            let found = find(&tables, key, key.hash(seed)).map(FlowState::backend);
            prop_assert_eq!(found, Some(3));
        }
    }

    /// A flow's phase only goes forward, whatever order its last packets come in.
    #[test]
    fn a_phase_never_goes_back(seed: [u64; 2], number in 0u32..60_000, phases in prop::collection::vec(phase(), 1..6)) {
        let tables = table(5);
        let key = key(number);
        let hash = key.hash(Seed(seed));
        record(&tables, key, hash, 4, Phase::Open);
        for phase in &phases {
            let state = find(&tables, key, hash).expect("recorded");
            tables.set_now(7);
            touch(&tables, key, hash, state, *phase);
        }
        let state = find(&tables, key, hash).expect("recorded");
        let most = phases.iter().copied().max().unwrap_or(Phase::Open).max(Phase::Open);
        prop_assert_eq!(state.phase(), most);
        prop_assert_eq!((state.backend(), state.seen()), (4, 7));
    }
}

fn states(tables: &PlainTables) -> Vec<u64> {
    tables
        .flows
        .iter()
        .flat_map(|bucket| bucket.ways.iter().map(|way| way.state.get()))
        .collect()
}
