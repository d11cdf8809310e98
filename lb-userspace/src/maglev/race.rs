//! The race for the parts of a table: who tries which one when.

use std::{cmp::Reverse, collections::BinaryHeap};

/// The time that a backend of weight 1 takes per try. Large enough that the heaviest weight's step
/// still has 16 bits, small enough that 2^11 steps stay far below 2^64.
const SLOWEST_STEP: u64 = 1 << 48;

/// A backend on its way through the parts of a table. When it tries which one depends on nothing but its
/// identity and weight, so other backends coming and going do not change it.
pub(super) struct Racer {
    permutation: Permutation,
    /// Its place among the members.
    pub(super) member: u32,
    /// Slots it may still take.
    pub(super) quota: u32,
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
    /// The weight is at least 1.
    pub(super) fn new(identity: &str, member: u32, weight: u32, quota: u32) -> Self {
        let mut keys = Keys::of(identity);
        let step = SLOWEST_STEP / u64::from(weight);
        // Backends of equal weight would otherwise all try at the same instant.
        let phase = (u128::from(step) * u128::from(keys.next())) >> 64;
        Self {
            permutation: Permutation::new(&mut keys),
            member,
            quota,
            step,
            speed: SLOWEST_STEP / step,
            time: phase as u64,
            tried: 0,
        }
    }

    /// The next try before `end`, as (time, part), of 2^`bits` parts.
    #[inline]
    pub(super) fn next_try(&mut self, end: u64, bits: u8) -> Option<(u64, u32)> {
        if self.time >= end || self.is_through(bits) {
            return None;
        }
        #[cfg(test)]
        TRIES.set(TRIES.get() + 1);
        let tried = (self.time, self.permutation.at(self.tried, bits));
        self.time += self.step;
        self.tried += 1;
        Some(tried)
    }

    /// Whether it has tried all 2^`bits` parts.
    const fn is_through(&self, bits: u8) -> bool {
        self.tried >> bits != 0
    }
}

/// What the racers race for.
pub(super) trait Course {
    /// How many parts there are, as a power of two.
    fn bits(&self) -> u8;
    /// Whether there is anything to be had in a part.
    fn is_open(&self, part: u32) -> bool;
    /// Gives a member up to so many slots of a part; returns how many it got.
    fn claim(&mut self, part: u32, wanted: u32, member: u32) -> u32;
}

/// The end of the round after `now`: a quarter try per part, on average.
fn round_end(now: u64, racers: &[Racer], bits: u8) -> u64 {
    let speed: u64 = racers.iter().map(|racer| racer.speed).sum();
    let length = (u128::from(SLOWEST_STEP) << bits) / (4 * u128::from(speed));
    now.saturating_add(u64::try_from(length).unwrap_or(u64::MAX).max(1))
}

/// Lets the racers race until each has what it needs, or has tried everything.
pub(super) fn race(mut racers: Vec<Racer>, course: &mut impl Course) {
    let bits = course.bits();
    racers.retain(|racer| racer.quota > 0);
    let open: Vec<u32> = (0..1 << bits)
        .filter(|part| course.is_open(*part))
        .collect();
    let wanted: usize = racers.iter().map(|racer| racer.quota as usize).sum();
    // As many searches as sixteen racers have tries.
    let searches = racers.len() * open.len();
    if open.len() << 3 < 1 << bits && wanted <= 2 * racers.len() && searches <= 16 << bits {
        race_for_few(racers, course, &open);
        return;
    }
    let mut now = 0;
    let mut tries = Vec::new();
    while !racers.is_empty() {
        // Rounds only bound the work of sorting; their length has no influence on the result.
        now = round_end(now, &racers, bits);
        tries.clear();
        for (order, racer) in (0_u32..).zip(&mut racers) {
            while let Some((time, part)) = racer.next_try(now, bits) {
                if course.is_open(part) {
                    tries.push((time, order, part));
                }
            }
        }
        tries.sort_unstable();
        for &(_, order, part) in &tries {
            let racer = &mut racers[order as usize];
            if racer.quota > 0 {
                racer.quota -= course.claim(part, racer.quota, racer.member);
            }
        }
        racers.retain(|racer| racer.quota > 0 && !racer.is_through(bits));
    }
}

/// The same where few parts are open and nobody needs much: most tries would find nothing, so each racer's next one that does not is
/// looked for.
fn race_for_few(mut racers: Vec<Racer>, course: &mut impl Course, open: &[u32]) {
    let bits = course.bits();
    // When each racer tries each of them, as the number of the try.
    let of = |racer: &Racer, part: &u32| racer.permutation.place_of(*part, bits);
    let tries: Vec<u32> = racers
        .iter()
        .flat_map(|racer| open.iter().map(move |part| of(racer, part)))
        .collect();
    #[cfg(test)]
    TRIES.set(TRIES.get() + tries.len() as u64);
    let next = |racer: &Racer, order: usize, least: u32| {
        let tries = tries[order * open.len()..].iter().zip(open);
        let (number, part) = tries.filter(|(number, _)| **number >= least).min()?;
        #[cfg(test)]
        TRIES.set(TRIES.get() + 1);
        Some(Reverse((
            racer.time + u64::from(*number) * racer.step,
            order,
            *number,
            *part,
        )))
    };
    let mut queue: BinaryHeap<_> = (0..)
        .zip(&racers)
        .filter_map(|(order, racer)| next(racer, order, 0))
        .collect();
    while let Some(Reverse((_, order, number, part))) = queue.pop() {
        let racer = &mut racers[order];
        racer.quota -= course.claim(part, racer.quota, racer.member);
        if racer.quota > 0 {
            queue.extend(next(racer, order, number + 1));
        }
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

    /// The number that goes to `part`.
    fn place_of(&self, part: u32, bits: u8) -> u32 {
        let mask = (1 << bits) - 1;
        let shift = u32::from(bits).div_ceil(2).max(1);
        self.rounds
            .iter()
            .rev()
            .fold(part, |x, &(summand, factor)| {
                // Shifted by half of the bits or more, it undoes itself.
                let x = x ^ (x >> shift);
                x.wrapping_mul(inverse(factor)).wrapping_sub(summand) & mask
            })
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

/// The inverse of an odd number modulo 2^32, by Newton's method: each step doubles the bits that are right, of which there are
/// three to begin with.
const fn inverse(odd: u32) -> u32 {
    let mut inverse = odd;
    let mut bits = 3;
    while bits < u32::BITS {
        inverse = inverse.wrapping_mul(2_u32.wrapping_sub(odd.wrapping_mul(inverse)));
        bits *= 2;
    }
    inverse
}

/// Pseudo-random numbers from an identity. Fixed for ever: directors of different versions must
/// build the same table.
pub(super) struct Keys(pub(super) u64);

impl Keys {
    /// FNV-1a with 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>).
    fn of(identity: &str) -> Self {
        Self(identity.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        }))
    }

    /// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

#[cfg(test)]
thread_local! {
    /// Tries of this thread so far.
    pub(super) static TRIES: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
mod tests {
    use super::{super::MIN_BITS, *};

    #[test]
    fn a_permutation_names_every_part_once() {
        for bits in 0..=MIN_BITS {
            for backend in 0..20 {
                let mut keys = Keys::of(&format!("backend {backend}"));
                let permutation = Permutation::new(&mut keys);
                let mut seen = vec![false; 1 << bits];
                for index in 0..1 << bits {
                    let part = permutation.at(index, bits) as usize;
                    assert!(!seen[part], "{bits} bits: part {part} came twice");
                    assert_eq!(permutation.place_of(part as u32, bits), index);
                    seen[part] = true;
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
}
