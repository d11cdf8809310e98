//! Hot sources (`spread_hot_sources`): a source that sends more than its share of a service's packets is spread by its
//! ports, so that an address in front of many clients does not overload one backend.
//!
//! A hot source has two picks: that of the service's affinity, and that of the whole 5-tuple. While it changes from one to
//! the other it is *in transition*, whatever its slots are, and its flows are followed as in a slot in transition: what
//! opens goes to the pick of now, what is recorded stays, and what is not recorded is older than the change and goes where
//! the pick of before leads. Overlapping changes only move the pick of now.

use crate::abi::{HOT_LINES, HOT_WAYS, HotLine, SAMPLES_IN_RING};
use crate::address::{Address, Ipv6};
use crate::hash::{Seed, fold, mix_flow};
use crate::pick::Slot;
use crate::tables::Tables;

/// How the flows of a source are picked: bit 0 whether new ones are spread, 1 whether those were that are older than the
/// change, 2 whether the source is in transition. 0: not hot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HotState(pub u8);

impl HotState {
    const NOW: u8 = 1;
    const BEFORE: u8 = 1 << 1;
    const TRANSITION: u8 = 1 << 2;

    /// Picked by the service's affinity, as every source that sends no more than its share.
    pub const COLD: Self = Self(0);
    /// Spread by its ports; every flow is where this pick leads.
    pub const SPREAD: Self = Self(Self::NOW);

    /// What the source becomes where its new flows are spread from now on, or no more. The pick of before stays until the
    /// transition is over.
    #[must_use]
    pub const fn turned(self, spread: bool) -> Self {
        let before = if self.in_transition() {
            self.0 & Self::BEFORE
        } else {
            (self.0 & Self::NOW) << 1
        };
        Self(spread as u8 | before | Self::TRANSITION)
    }

    /// What the source becomes when every flow is where the pick of now leads.
    #[must_use]
    pub const fn settled(self) -> Self {
        Self(self.0 & Self::NOW)
    }

    /// Whether new flows are spread.
    #[inline(always)]
    #[must_use]
    pub const fn spreads(self) -> bool {
        self.0 & Self::NOW != 0
    }

    /// Whether the flows that are older than the change were spread; only means something in transition.
    #[inline(always)]
    #[must_use]
    pub const fn spread_before(self) -> bool {
        self.0 & Self::BEFORE != 0
    }

    /// Whether flows live that may be elsewhere than the pick of now leads.
    #[inline(always)]
    #[must_use]
    pub const fn in_transition(self) -> bool {
        self.0 & Self::TRANSITION != 0
    }

    /// The name used in `status`, `maps` and `--json`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match (self.spreads(), self.in_transition()) {
            (true, true) => "spreading",
            (true, false) => "spread",
            (false, true) => "returning",
            (false, false) => "cold",
        }
    }
}

/// One hot source as the data path finds it, in one word: the upper 61 bits of its digest, and below its [`HotState`].
/// 0: nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HotWord(pub u64);

impl HotWord {
    const STATE: u64 = 7;

    /// The word of a source with this [`digest`].
    #[must_use]
    pub const fn new(digest: u64, state: HotState) -> Self {
        Self(digest & !Self::STATE | state.0 as u64)
    }

    /// How its flows are picked.
    #[inline(always)]
    #[must_use]
    pub const fn state(self) -> HotState {
        HotState((self.0 & Self::STATE) as u8)
    }

    /// Whether it is the source with this [`digest`].
    #[inline(always)]
    #[must_use]
    pub const fn is_of(self, digest: u64) -> bool {
        (self.0 ^ digest) & !Self::STATE == 0
    }
}

/// Sets the digests of sources apart from the hashes of flows.
const MARK: u32 = 1 << 31;

/// What a source of a service is found by. `source` is the network that picks, as [`Address::mapped`].
#[inline(always)]
#[must_use]
pub const fn digest(service: u16, source: Ipv6, seed: Seed) -> u64 {
    mix_flow(
        fold(source.high, source.low, seed),
        MARK | service as u32,
        seed,
    )
}

/// The line of `HOT` that a source is in, if it is in any.
#[inline(always)]
#[must_use]
pub const fn line_of(digest: u64) -> u32 {
    (digest >> (64 - HOT_LINES.ilog2())) as u32
}

/// The state of the source with this digest in its line.
#[inline(always)]
fn state_in(line: &HotLine, digest: u64) -> HotState {
    // Without branches, because the verifier would walk both sides of each: at most one word matches.
    const { assert!(HOT_WAYS == 8) };
    let found = |way: usize| {
        let word = HotWord(line.ways[way].get());
        let other = (word.0 ^ digest) >> HotWord::STATE.count_ones();
        // All ones where nothing differs.
        let same = ((other | other.wrapping_neg()) >> 63).wrapping_sub(1);
        (word.0 & same) as u8
    };
    let state =
        found(0) | found(1) | found(2) | found(3) | found(4) | found(5) | found(6) | found(7);
    HotState(state & HotWord::STATE as u8)
}

/// How the flows of a source are picked: an address, or the network that picks.
#[inline(always)]
pub fn find<A: Address, T: Tables>(tables: &T, service: u16, network: A, seed: Seed) -> HotState {
    let digest = digest(service, network.mapped(), seed);
    match tables.hot_line(line_of(digest)) {
        Some(line) => state_in(line, digest),
        None => HotState::COLD,
    }
}

/// The slot that a source in transition has: the pick of now, and where the flows go that are older than its change. Its
/// flows must be looked up even where there is no previous backend.
#[inline(always)]
#[must_use]
pub const fn joined(now: Slot, before: Slot) -> Slot {
    let previous = if before.in_transition() {
        before.previous()
    } else {
        before.current()
    };
    Slot::new(now.current(), previous)
}

/// One in so many packets is sampled, on each processor: 2^4.
pub const SAMPLE_SHIFT: u32 = 4;

/// Counts a packet of a service that spreads hot sources, and writes its source down if it is the turn of this one.
#[inline(always)]
pub fn sample<A: Address, T: Tables>(tables: &T, service: u16, network: A) {
    /// The golden ratio's bits: the packets whose product is small are as many in any stretch of them, but not evenly
    /// apart, so that no regular traffic falls in step with them.
    const TURN: u64 = 0x9e37_79b9_7f4a_7c15;
    if !tables.records() {
        return;
    }
    let Some(ring) = tables.sample_ring() else {
        return;
    };
    let packets = ring.packets.get().wrapping_add(1);
    ring.packets.set(packets);
    if packets.wrapping_mul(TURN) >> (64 - SAMPLE_SHIFT) != 0 {
        return;
    }
    let taken = ring.taken.get().wrapping_add(1);
    let source = network.mapped();
    let sample = &ring.samples[(taken % SAMPLES_IN_RING) as usize];
    // Nobody takes a sample for whole whose words are of two.
    sample.stamp.set(0);
    sample.high.set(source.high);
    sample.low.set(source.low);
    sample.stamp.set(taken << 16 | u64::from(service));
    ring.taken.set(taken);
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::BTreeMap;

    use super::*;
    use crate::abi::SampleRing;
    use crate::forward::{Place, place_of};
    use crate::pick::{Affinity, hash_of, slot_index};
    use crate::plain::{Capacity, Instance, PlainTables};
    use crate::service::ServiceValue;
    use crate::verdict::Verdict;

    const SEED: Seed = Seed([0x0123_4567_89ab_cdef, 0x1357_9bdf_0246_8ace]);

    #[test]
    fn states_turn_and_settle() {
        let spreading = HotState::COLD.turned(true);
        assert_eq!(
            (spreading.spreads(), spreading.spread_before()),
            (true, false)
        );
        assert_eq!(spreading.settled(), HotState::SPREAD);
        let returning = HotState::SPREAD.turned(false);
        assert_eq!(
            (returning.spreads(), returning.spread_before()),
            (false, true)
        );
        assert_eq!(returning.settled(), HotState::COLD);
        // Taken back before it was over: the pick of before is still that of the oldest flows.
        let back = spreading.turned(false);
        assert_eq!((back.spreads(), back.spread_before()), (false, false));
        assert_eq!(back.turned(true), spreading);
        assert_eq!(returning.turned(true).turned(false), returning);
        for state in [spreading, returning, back] {
            assert!(state.in_transition() && !state.settled().in_transition());
        }
        assert_eq!(
            [spreading, HotState::SPREAD, returning, back, HotState::COLD].map(HotState::name),
            ["spreading", "spread", "returning", "returning", "cold"]
        );
    }

    #[test]
    fn found_in_any_way_and_nowhere_else() {
        let tables = PlainTables::new(Capacity::default(), Instance::default());
        let network = 0xc000_0200u32;
        let of = digest(3, network.mapped(), SEED);
        let line = &tables.hot[line_of(of) as usize];
        for way in 0..HOT_WAYS {
            for state in [HotState::SPREAD, HotState::COLD.turned(true), HotState(7)] {
                line.ways[way].set(HotWord::new(of, state).0);
                line.ways[(way + 1) % HOT_WAYS].set(HotWord::new(!of, HotState(7)).0);
                assert_eq!(find(&tables, 3, network, SEED), state);
                assert_eq!(find(&tables, 4, network, SEED), HotState::COLD);
                assert_eq!(
                    find(&tables, 3, 0xc000_0300u32, SEED),
                    HotState::COLD,
                    "another network"
                );
            }
            line.ways[way].set(0);
            line.ways[(way + 1) % HOT_WAYS].set(0);
            assert_eq!(find(&tables, 3, network, SEED), HotState::COLD);
        }
    }

    #[test]
    fn joined_slots_lead_old_flows_where_they_were() {
        let joined = |now: (u16, u16), before: (u16, u16)| {
            joined(Slot::new(now.0, now.1), Slot::new(before.0, before.1))
        };
        assert_eq!(joined((2, 0), (1, 0)), Slot::new(2, 1));
        assert_eq!(joined((2, 3), (1, 0)), Slot::new(2, 1));
        assert_eq!(joined((2, 3), (4, 1)), Slot::new(2, 1));
        assert_eq!(joined((0, 0), (0, 0)), Slot::new(0, 0));
    }

    /// Both families, in each state: which slot, and whether the flow table decides.
    #[test]
    fn places_of_both_families() {
        let four = |prefix| Affinity {
            prefix,
            ports: false,
        };
        let client = Ipv6 {
            high: 0x2001_0db8_0001_0203,
            low: 0x1234,
        };
        places(0xc000_0207u32, four(32));
        places(0xc000_0207u32, four(24));
        places(client, Affinity::CLIENT_IPV6);
        places(client, Affinity::NETWORK_IPV6);
    }

    fn places<A: Address>(client: A, affinity: Affinity) {
        const BITS: u8 = 8;
        let tables = PlainTables::new(Capacity::default(), Instance::default());
        tables.control.seed0.set(SEED.0[0]);
        tables.control.seed1.set(SEED.0[1]);
        let service = ServiceValue::new(3, 16, BITS, affinity).spreading(true);
        // Ports that lead elsewhere than the affinity, alone and with the network.
        let index =
            |affinity, ports| slot_index(hash_of(affinity, client, ports, SEED), u32::from(BITS));
        let of_client = index(affinity, 0);
        let ports = (1..)
            .find(|ports| index(A::NONE, *ports) != of_client)
            .unwrap();
        let (before, after) = (Slot::settled(1), Slot::new(2, 3));
        tables.set_slot(16 + of_client, before);
        tables.set_slot(16 + index(A::NONE, ports), after);
        let network = client.network(affinity.prefix);
        let of = digest(3, network.mapped(), SEED);
        let place = |state| {
            tables.hot[line_of(of) as usize].ways[5].set(HotWord::new(of, state).0);
            place_of(&tables, service, client, ports, &tables.control)
        };
        let at = |slot: Slot, in_transition, hot| {
            Ok(Place {
                slot,
                in_transition,
                hot,
            })
        };
        let going = HotState::COLD.turned(true);
        assert_eq!(place(HotState::COLD), at(before, false, false));
        assert_eq!(place(HotState::SPREAD), at(after, true, true));
        assert_eq!(place(going), at(Slot::new(2, 1), true, true));
        assert_eq!(place(going.turned(false)), at(Slot::new(1, 1), true, true));
        assert_eq!(
            place(HotState::SPREAD.turned(false)),
            at(Slot::new(1, 3), true, true)
        );
        let nowhere = ServiceValue::new(3, 1 << 25, BITS, affinity).spreading(true);
        let place = place_of(&tables, nowhere, client, ports, &tables.control);
        assert_eq!(place, Err(Verdict::Inconsistent));
        assert_eq!(tables.samples[0].packets.get(), 6);
    }

    /// One packet in sixteen in any stretch of them, whatever the traffic's rhythm.
    #[test]
    fn samples_are_fair_to_regular_traffic() {
        let tables = PlainTables::new(Capacity::default(), Instance::default());
        let ring = &tables.samples[0];
        for rhythm in [2u32, 3, 8, 16, 17, 32, 64, 100] {
            let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
            let packets = rhythm * 4000;
            let mut read = ring.taken.get();
            for packet in 0..packets {
                sample(&tables, 9, 0x0a00_0000 + packet % rhythm);
                if ring.taken.get() != read {
                    read += 1;
                    let sample = &ring.samples[(read % SAMPLES_IN_RING) as usize];
                    assert_eq!(sample.stamp.get(), read << 16 | 9);
                    assert_eq!((sample.high.get(), sample.low.get() >> 32), (0, 0xffff));
                    *counts.entry(sample.low.get() as u32).or_default() += 1;
                }
            }
            let expected = f64::from(packets >> SAMPLE_SHIFT) / f64::from(rhythm);
            assert_eq!(counts.len(), rhythm as usize, "rhythm {rhythm}");
            for (source, count) in counts {
                let ratio = f64::from(count) / expected;
                assert!(
                    (0.9..1.1).contains(&ratio),
                    "{source:x} of {rhythm}: {ratio}"
                );
            }
        }
        assert_eq!(
            size_of::<SampleRing>(),
            64 + 32 * SAMPLES_IN_RING as usize,
            "one line for the counts"
        );
    }
}
