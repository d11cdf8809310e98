//! Which backend owns each slot of a service: Maglev tables of a power-of-two size.
//!
//! The idea is that of Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer",
//! NSDI 2016, section 3.4: every backend walks its own permutation of the table, and takes turns in
//! proportion to its weight. Four things differ, each measured in
//! `docs/decisions/maglev-power-of-two.md`:
//!
//! - The size is a power of two, so the data path needs no modulo, and a keyed bijection replaces the
//!   `offset + j * skip` that needs a prime.
//! - A turn tries *one* position and is lost if that is taken. The owner of a position is then simply
//!   whoever would reach it first, which hardly depends on who else takes part; the paper's turn, which
//!   walks on to the next free position, pushes others aside and so moves up to twice as many slots.
//! - A backend stops when it has its quota, the whole number of slots next to its share. The balance
//!   is therefore exact to less than one slot instead of a matter of luck.
//! - Every table is built from 2^[`MIN_BITS`] blocks, whatever its size: a larger table only divides the
//!   blocks further, so a table that must grow keeps nearly all of its slots where [`grow`] puts them.

use std::cmp::Reverse;

/// Log2 of the smallest table that [`table_bits`] chooses, and of the number of blocks that backends
/// compete for in any larger one. 2^11 slots of 4 bytes are 8 KB, a quarter of a small L1 data cache.
pub const MIN_BITS: u8 = 11;

/// Log2 of the largest table: 2^18 slots of 4 bytes are 1 MB, which still fits an L2 cache.
pub const MAX_BITS: u8 = 18;

/// The number of a slot without a backend.
pub const NO_BACKEND: u16 = 0;

/// One backend that takes part in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// Name and address of the backend: it alone decides the permutation, so it must be unique in a
    /// service and the same on every director.
    pub identity: &'a str,
    /// Share of the slots relative to the other members' weights; 0 takes none.
    pub weight: u32,
    /// What a slot of this backend holds; starts at 1, because 0 is [`NO_BACKEND`]. It has no
    /// influence on which slots those are.
    pub number: u16,
}

/// Log2 of the table size at which every backend's share of the slots is within 1 % of its share of
/// the weights.
///
/// [`build`] is off by at most 1 - 1/n slots with n members, so the smallest share has to be at least
/// 100 times that. What suffices for these weights suffices for every subset of them too (a subset has
/// no smaller share and no more members), so a table sized from *all* of a service's backends need not
/// grow or shrink when some are down, draining or of another priority.
///
/// The result is never less than [`MIN_BITS`] and never more than [`MAX_BITS`]. At that cap the error
/// stays under one slot, 0.0004 % of the service's traffic, but it may be more than 1 % of a small
/// backend's own share: from 2,623 backends of equal weight on, or when one has less than
/// 1/2,600 of the weights. A backend entitled to less than one slot may get none.
/// No weights, or only zeros, give [`MIN_BITS`].
#[must_use]
pub fn table_bits(weights: &[u32]) -> u8 {
    let used = || weights.iter().copied().filter(|&weight| weight > 0);
    let Some(smallest) = used().min() else {
        return MIN_BITS;
    };
    let count = used().count() as u128;
    let total: u128 = used().map(u128::from).sum();
    // slots * smallest / total >= 100 * (count - 1) / count, without the fractions
    let needed = 100 * (count - 1) * total;
    let per_slot = count * u128::from(smallest);
    (MIN_BITS..MAX_BITS)
        .find(|&bits| (per_slot << bits) >= needed)
        .unwrap_or(MAX_BITS)
}

/// Builds the table of 2^`bits` slots: slot -> number of its backend.
///
/// Each member gets its share of the slots rounded to one of the two whole numbers beside it (largest
/// remainder, ties by identity), and every slot is filled. The result depends on identities and weights
/// alone: not on the order of `members`, their numbers, the machine or earlier tables. Without members,
/// or if all weights are 0, all slots are [`NO_BACKEND`].
///
/// # Panics
///
/// If `bits` is more than [`MAX_BITS`].
#[must_use]
pub fn build(members: &[Member<'_>], bits: u8) -> Vec<u16> {
    let mut slots = Vec::with_capacity(1 << bits);
    for run in build_runs(members, bits) {
        slots.resize(slots.len() + run.slots as usize, run.number);
    }
    slots
}

/// Slots one after the other that hold the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// How many.
    pub slots: u32,
    /// The number of their backend.
    pub number: u16,
}

/// The table that [`build`] gives, from its first slot to its last, as runs: in a large table they are a fraction of the
/// slots.
///
/// # Panics
///
/// As [`build`].
#[must_use]
pub fn build_runs(members: &[Member<'_>], bits: u8) -> Vec<Run> {
    assert!(
        bits <= MAX_BITS,
        "a table has at most 2^{MAX_BITS} slots, not 2^{bits}"
    );
    let mut members: Vec<_> = members.iter().filter(|member| member.weight > 0).collect();
    // Number and weight only matter here if two members wrongly share an identity: even then all
    // directors agree.
    members.sort_unstable_by_key(|member| (member.identity, member.weight, member.number));

    let block_bits = bits.min(MIN_BITS);
    let mut table = Blocks::new(block_bits, bits);
    let weights: Vec<u32> = members.iter().map(|member| member.weight).collect();
    let racers = members
        .iter()
        .zip(quotas(&weights, 1 << bits))
        .map(|(member, quota)| Racer::new(member, quota))
        .collect();
    race(racers, &mut table, block_bits);
    table.into_runs()
}

/// Doubles a table: slot i becomes slots 2i and 2i+1. The index of a slot is the hash's top bits, so
/// every hash finds in the new table what it found in the old one.
#[must_use]
pub fn grow<T: Copy>(table: &[T]) -> Vec<T> {
    table.iter().flat_map(|&slot| [slot, slot]).collect()
}

/// How many of `slots` each member gets: its share rounded down, and one more for those with the
/// largest remainders until all are given away. Nobody gets any where all weights are 0.
fn quotas(weights: &[u32], slots: u64) -> Vec<u32> {
    let total: u64 = weights.iter().copied().map(u64::from).sum();
    if total == 0 {
        return vec![0; weights.len()];
    }
    // 2^18 slots times a weight below 2^32 stays far below 2^64.
    let shares = weights.iter().map(|weight| slots * u64::from(*weight));
    let mut quotas = Vec::with_capacity(weights.len());
    let mut remainders: Vec<(Reverse<u64>, usize)> = Vec::with_capacity(weights.len());
    for (index, share) in shares.enumerate() {
        quotas.push(u32::try_from(share / total).expect("no more than all slots"));
        remainders.push((Reverse(share % total), index));
    }
    let given: u64 = quotas.iter().copied().map(u64::from).sum();
    // Fewer are left than there are remainders; who is among the largest counts, not their order.
    let left = (slots - given) as usize;
    if left > 0 {
        remainders.select_nth_unstable(left - 1);
        for &(_, index) in &remainders[..left] {
            quotas[index] += 1;
        }
    }
    quotas
}

/// The time that a backend of weight 1 takes per try. Large enough that the heaviest weight's step
/// still has 16 bits, small enough that 2^11 steps stay far below 2^64.
const SLOWEST_STEP: u64 = 1 << 48;

/// The end of the round after `now`: a quarter try per block, on average.
fn round_end(now: u64, racers: &[Racer], block_bits: u8) -> u64 {
    let speed: u64 = racers.iter().map(|racer| racer.speed).sum();
    let length = (u128::from(SLOWEST_STEP) << block_bits) / (4 * u128::from(speed));
    now.saturating_add(u64::try_from(length).unwrap_or(u64::MAX).max(1))
}

/// Lets the racers race until all slots have an owner. Those without a quota take no part.
fn race(mut racers: Vec<Racer>, table: &mut Blocks, block_bits: u8) {
    racers.retain(|racer| racer.quota > 0);
    let mut now = 0;
    let mut tries = Vec::new();
    while racers.len() > 1 {
        // Rounds only bound the work of sorting; their length has no influence on the result.
        now = round_end(now, &racers, block_bits);
        tries.clear();
        for (order, racer) in (0_u32..).zip(&mut racers) {
            while let Some((time, block)) = racer.next_try(now, block_bits) {
                if !table.is_full(block) {
                    tries.push((time, order, block));
                }
            }
        }
        tries.sort_unstable();
        for &(_, order, block) in &tries {
            let racer = &mut racers[order as usize];
            racer.quota -= table.claim(block, racer.quota, racer.number);
        }
        racers.retain(|racer| racer.quota > 0);
    }
    if let [last] = &racers[..] {
        table.claim_rest(last.number);
    }
}

/// A backend on its way through the blocks. When it tries which block depends on nothing but its
/// identity and weight, so other backends coming and going do not change it.
struct Racer {
    permutation: Permutation,
    number: u16,
    /// Slots it may still take.
    quota: u32,
    /// Time between two tries, inversely proportional to the weight.
    step: u64,
    /// Tries within [`SLOWEST_STEP`].
    speed: u64,
    /// Time of the next try.
    time: u64,
    /// Tries made.
    tried: u32,
}

impl Racer {
    fn new(member: &Member<'_>, quota: u32) -> Self {
        let mut keys = Keys::of(member.identity);
        let step = SLOWEST_STEP / u64::from(member.weight);
        // Backends of equal weight would otherwise all try at the same instant.
        let phase = (u128::from(step) * u128::from(keys.next())) >> 64;
        Self {
            permutation: Permutation::new(&mut keys),
            number: member.number,
            quota,
            step,
            speed: SLOWEST_STEP / step,
            time: phase as u64,
            tried: 0,
        }
    }

    /// The next try before `end`, as (time, block), of 2^`block_bits` blocks.
    #[inline]
    fn next_try(&mut self, end: u64, block_bits: u8) -> Option<(u64, u32)> {
        if self.time >= end || self.tried >> block_bits != 0 {
            return None;
        }
        #[cfg(test)]
        tests::TRIES.set(tests::TRIES.get() + 1);
        let tried = (self.time, self.permutation.at(self.tried, block_bits));
        self.time += self.step;
        self.tried += 1;
        Some(tried)
    }
}

/// The table while it is being filled. Each block is a run of slots, filled from its beginning.
struct Blocks {
    /// What was claimed, in the order of time.
    claims: Vec<Claim>,
    /// Slots taken, of each block.
    taken: Vec<u32>,
    /// Slots of a block.
    size: u32,
}

/// The next slots of a block.
struct Claim {
    block: u32,
    run: Run,
}

impl Blocks {
    fn new(block_bits: u8, bits: u8) -> Self {
        let blocks = 1 << block_bits;
        Self {
            // Most blocks have one owner or two.
            claims: Vec::with_capacity(2 * blocks),
            taken: vec![0; blocks],
            size: 1 << (bits - block_bits),
        }
    }

    fn is_full(&self, block: u32) -> bool {
        self.taken[block as usize] == self.size
    }

    /// Gives up to `wanted` free slots of a block to `number`; returns how many those were.
    fn claim(&mut self, block: u32, wanted: u32, number: u16) -> u32 {
        let taken = &mut self.taken[block as usize];
        let slots = wanted.min(self.size - *taken);
        if slots > 0 {
            let run = Run { slots, number };
            self.claims.push(Claim { block, run });
            *taken += slots;
        }
        slots
    }

    fn claim_rest(&mut self, number: u16) {
        for block in 0..self.taken.len() as u32 {
            self.claim(block, self.size, number);
        }
    }

    /// The claims by block, and within one in the order of time.
    fn into_runs(mut self) -> Vec<Run> {
        // Nobody takes part.
        self.claim_rest(NO_BACKEND);
        let Self {
            claims,
            taken: mut places,
            ..
        } = self;
        places.fill(0);
        for claim in &claims {
            places[claim.block as usize] += 1;
        }
        let mut before = 0;
        for place in &mut places {
            before += std::mem::replace(place, before);
        }
        let nothing = Run {
            slots: 0,
            number: NO_BACKEND,
        };
        let mut runs = vec![nothing; claims.len()];
        for Claim { block, run } in claims {
            let place = &mut places[block as usize];
            runs[*place as usize] = run;
            *place += 1;
        }
        runs
    }
}

/// A keyed bijection on the numbers below 2^bits. `offset + j * skip` with an odd skip would be one
/// too, but its low bits repeat with a short period, and backends with similar skips then follow each
/// other through the table: removing one of ten moved up to 7 % of the other nine's slots.
struct Permutation {
    rounds: [(u32, u32); 3],
}

impl Permutation {
    fn new(keys: &mut Keys) -> Self {
        Self {
            rounds: std::array::from_fn(|_| {
                let key = keys.next();
                // An odd factor has an inverse modulo a power of two.
                (key as u32, (key >> 32) as u32 | 1)
            }),
        }
    }

    /// Where the number `index` below 2^`bits` goes. Each step (adding, multiplying by an odd number, xor with a right shift)
    /// can be undone, so the whole can.
    #[inline]
    fn at(&self, index: u32, bits: u8) -> u32 {
        let mask = (1 << bits) - 1;
        let shift = u32::from(bits).div_ceil(2).max(1);
        self.rounds.iter().fold(index, |x, &(summand, factor)| {
            let x = x.wrapping_add(summand).wrapping_mul(factor) & mask;
            x ^ (x >> shift)
        })
    }
}

/// Pseudo-random numbers from an identity. Fixed for ever: directors of different versions must
/// build the same table.
struct Keys(u64);

impl Keys {
    /// FNV-1a with 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>).
    fn of(identity: &str) -> Self {
        Self(identity.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        }))
    }

    /// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// Tries of this thread so far.
        pub(super) static TRIES: Cell<u64> = const { Cell::new(0) };
    }

    /// A guard without a clock: nearly all the time that a table takes goes into tries.
    #[test]
    fn a_table_takes_a_bounded_number_of_tries() {
        for (count, bits, at_most) in [
            (2, 11, 5_000),
            (16, 11, 15_000),
            (100, 15, 25_000),
            (1000, 16, 35_000),
            (1000, 17, 35_000),
            (4000, 18, 65_000),
            (65_535, 18, 700_000),
        ] {
            let names: Vec<String> = (0..count).map(|index| format!("b{index}")).collect();
            let mut keys = Keys(7);
            let members: Vec<Member<'_>> = names
                .iter()
                .zip(1..=u16::MAX)
                .map(|(identity, number)| Member {
                    identity,
                    weight: 50 + keys.next() as u32 % 101,
                    number,
                })
                .collect();
            let before = TRIES.get();
            assert!(!build(&members, bits).contains(&NO_BACKEND));
            let tries = TRIES.get() - before;
            assert!(
                tries <= at_most,
                "{count} backends, 2^{bits}: {tries} tries"
            );
            assert!(tries >= 1 << MIN_BITS, "they are counted");
        }
    }

    #[test]
    fn a_permutation_names_every_block_once() {
        for bits in 0..=MIN_BITS {
            for backend in 0..20 {
                let mut keys = Keys::of(&format!("backend {backend}"));
                let permutation = Permutation::new(&mut keys);
                let mut seen = vec![false; 1 << bits];
                for index in 0..1 << bits {
                    let block = permutation.at(index, bits) as usize;
                    assert!(!seen[block], "{bits} bits: block {block} came twice");
                    seen[block] = true;
                }
            }
        }
    }

    #[test]
    fn keys_are_the_published_ones() {
        // FNV-1a of "foobar" from the authors' test vectors; SplitMix64 from seed 0.
        assert_eq!(Keys::of("foobar").0, 0x8594_4171_f739_67e8);
        assert_eq!(Keys(0).next(), 0xe220_a839_7b1d_cdaf);
    }

    /// The rule in its plainest form: all tries of all backends in order of time, first come first served.
    #[test]
    fn rounds_and_short_cuts_do_not_change_the_result() {
        let names: Vec<String> = (0..12).map(|index| format!("backend {index:02}")).collect();
        for (seed, bits) in (0..24_u32).zip((0..=14).cycle()) {
            let mut keys = Keys(u64::from(seed));
            let members: Vec<Member<'_>> = names
                .iter()
                .zip(1..=1 + seed as u16 / 2)
                .map(|(identity, number)| {
                    let weight = keys.next() as u32 >> (seed % 31);
                    Member {
                        identity,
                        weight: weight.max(1),
                        number,
                    }
                })
                .collect();
            let block_bits = bits.min(MIN_BITS);
            let weights: Vec<u32> = members.iter().map(|member| member.weight).collect();
            let quotas = quotas(&weights, 1 << bits);
            let mut racers: Vec<Racer> = members
                .iter()
                .zip(quotas)
                .map(|(member, quota)| Racer::new(member, quota))
                .collect();
            let mut tries = Vec::new();
            for (order, racer) in racers.iter_mut().enumerate() {
                while let Some((time, block)) = racer.next_try(u64::MAX, block_bits) {
                    tries.push((time, order, block));
                }
            }
            tries.sort_unstable();
            let mut table = Blocks::new(block_bits, bits);
            for (_, order, block) in tries {
                let racer = &mut racers[order];
                racer.quota -= table.claim(block, racer.quota, racer.number);
            }
            assert_eq!(table.into_runs(), build_runs(&members, bits), "{members:?}");
        }
    }
}
