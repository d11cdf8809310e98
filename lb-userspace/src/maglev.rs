//! Which backend owns each slot of a service: Maglev tables of a power-of-two size.
//!
//! The idea is that of Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer",
//! NSDI 2016, section 3.4: every backend walks its own permutation of the table, and takes turns in
//! proportion to its weight. Six things differ, each measured in
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
//! - A backend first takes whole *areas* of a 64th of the table, as many as its quota has, and blocks for the rest. Nearly
//!   all areas then have one owner, and a packet for one of those need not look at its slot
//!   (`lb_common::abi::map::AREAS`).
//! - The table is first that of all *configured* backends. Where one is missing, or has another weight for now, it gives
//!   up just those slots that it must, and nobody else gives up any: they are raced for by those that are entitled to
//!   more.

mod race;
mod table;

use std::cmp::Reverse;

use self::{
    race::{Racer, race},
    table::Table,
};

/// Log2 of the smallest table that [`table_bits`] chooses, and of the number of blocks that backends
/// compete for in any larger one. 2^11 slots of 4 bytes are 8 KB, a quarter of a small L1 data cache.
pub const MIN_BITS: u8 = 11;

/// Log2 of the number of areas of a table that has 2^[`MIN_BITS`] slots or more.
const AREA_BITS: u8 = 6;

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
    /// The weight by which the slots are given away before anybody is missing.
    pub configured: u32,
    /// The weight in force: the share of the slots relative to the other members' weights; 0 takes none.
    pub weight: u32,
    /// What a slot of this backend holds; starts at 1, because 0 is [`NO_BACKEND`]. It has no
    /// influence on which slots those are.
    pub number: u16,
}

impl<'a> Member<'a> {
    /// One whose weight in force is the configured one.
    #[must_use]
    pub const fn new(identity: &'a str, weight: u32, number: u16) -> Self {
        Self {
            identity,
            configured: weight,
            weight,
            number,
        }
    }
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
/// Each member gets its share of the slots by the weights in force, rounded to one of the two whole numbers beside it
/// (largest remainder, ties by identity), and every slot is filled. Compared with the table in which all weights are the configured
/// ones (if not all of these are 0), nobody loses a slot but those who have more than their share, by just so many. The result depends on
/// identities and weights alone: not on the order of `members`, their numbers, the machine or earlier tables. Without
/// members, or if all weights in force are 0, all slots are [`NO_BACKEND`].
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
    let mut members: Vec<_> = members
        .iter()
        .filter(|member| member.configured > 0 || member.weight > 0)
        .collect();
    // All but the identity only matters here if two members wrongly share one: even then all directors agree.
    members.sort_unstable_by_key(|member| {
        (
            member.identity,
            member.configured,
            member.weight,
            member.number,
        )
    });
    let weights: Vec<u32> = members.iter().map(|member| member.weight).collect();
    let mut configured: Vec<u32> = members.iter().map(|member| member.configured).collect();
    if configured.iter().all(|weight| *weight == 0) {
        // Then there is no other table to begin with.
        configured.clone_from(&weights);
    }

    let mut table = Table::new(bits);
    let own = quotas(&configured, 1 << bits);
    let mut left = own.clone();
    if let Some(area) = table.area_size() {
        let whole = left.iter().map(|quota| quota - quota % area);
        let racers = racers(&members, &configured, whole);
        race(racers, &mut table.areas());
        left.iter_mut().for_each(|quota| *quota %= area);
    }
    fill(&members, &configured, left, &mut table);

    if configured != weights {
        let quotas = quotas(&weights, 1 << bits);
        let more = |of: &[u32], than: &[u32]| -> Vec<u32> {
            let both = of.iter().zip(than);
            both.map(|(of, than)| of.saturating_sub(*than)).collect()
        };
        table.release(more(&own, &quotas));
        fill(&members, &weights, more(&quotas, &own), &mut table);
    }
    table.into_runs(|member| members[member as usize].number)
}

/// The table of 2^`bits` slots where some of the backends are missing, from `base`, that of the same members with the configured
/// weights, as [`build_runs`] gives it or cut otherwise: what [`build_runs`] gives, in half the time. `None` where somebody has to give up a part of what it
/// has: which one, only the race says; or where `base` has other shares. Weights in force are the configured ones or 0.
#[must_use]
pub fn build_runs_without(
    base: impl Iterator<Item = Run>,
    members: &[Member<'_>],
    bits: u8,
) -> Option<Vec<Run>> {
    let mut members: Vec<_> = members
        .iter()
        .filter(|member| member.configured > 0)
        .collect();
    members.sort_unstable_by_key(|member| member.identity);
    let configured: Vec<u32> = members.iter().map(|member| member.configured).collect();
    let weights: Vec<u32> = members.iter().map(|member| member.weight).collect();
    let own = quotas(&configured, 1 << bits);
    let quotas = quotas(&weights, 1 << bits);
    let gone = |place: usize| weights[place] == 0;
    if (0..own.len()).any(|place| !gone(place) && quotas[place] < own[place]) {
        return None;
    }
    let mut places: Vec<(u16, u32)> = members
        .iter()
        .zip(0..)
        .map(|(member, place)| (member.number, place))
        .collect();
    places.sort_unstable();
    let place_of = |number: u16| {
        let at = places.binary_search_by_key(&number, |(number, _)| *number);
        at.ok().map(|at| places[at].1)
    };
    let mut table = Table::new(bits);
    let mut has = vec![0; own.len()];
    for run in base {
        let place = place_of(run.number)?;
        has[place as usize] += run.slots;
        table.take(run.slots, place);
    }
    if has != own {
        // It is another table.
        return None;
    }
    let more = own.iter().zip(&quotas);
    let wanted = more.map(|(own, now)| now.saturating_sub(*own)).collect();
    let excess = (0..own.len()).map(|place| if gone(place) { own[place] } else { 0 });
    table.release(excess.collect());
    fill(&members, &weights, wanted, &mut table);
    Some(table.into_runs(|member| members[member as usize].number))
}

/// Gives all free slots to the members, each of which wants so many; to nobody, where nobody wants any.
fn fill(members: &[&Member<'_>], weights: &[u32], wanted: Vec<u32>, table: &mut Table) {
    let racers = racers(members, weights, wanted.into_iter());
    race(racers, &mut table.blocks());
    table.leave_rest();
}

/// Those who want any.
fn racers(
    members: &[&Member<'_>],
    weights: &[u32],
    wanted: impl Iterator<Item = u32>,
) -> Vec<Racer> {
    members
        .iter()
        .zip(weights)
        .zip(wanted)
        .zip(0..)
        .filter(|((_, wanted), _)| *wanted > 0)
        .map(|(((member, weight), wanted), place)| {
            Racer::new(member.identity, place, *weight, wanted)
        })
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use race::Keys;

    /// A guard without a clock: nearly all the time that a table takes goes into tries.
    #[test]
    fn a_table_takes_a_bounded_number_of_tries() {
        for (count, bits, all_there, one_missing) in [
            (2, 11, 4_000, 7_000),
            (16, 11, 12_000, 22_000),
            (100, 15, 25_000, 65_000),
            (1000, 16, 35_000, 35_000),
            (1000, 17, 35_000, 35_000),
            (4000, 18, 60_000, 60_000),
            (65_535, 18, 200_000, 200_000),
        ] {
            let names: Vec<String> = (0..count).map(|index| format!("b{index}")).collect();
            let mut keys = Keys(7);
            let mut members: Vec<Member<'_>> = names
                .iter()
                .zip(1..=u16::MAX)
                .map(|(identity, number)| {
                    Member::new(identity, 50 + keys.next() as u32 % 101, number)
                })
                .collect();
            for at_most in [all_there, one_missing] {
                let before = race::TRIES.get();
                assert!(!build(&members, bits).contains(&NO_BACKEND));
                let tries = race::TRIES.get() - before;
                assert!(
                    tries <= at_most,
                    "{count} backends, 2^{bits}: {tries} tries"
                );
                assert!(tries >= 1 << MIN_BITS, "they are counted");
                members[count / 2].weight = 0;
            }
        }
    }

    /// The rule in its plainest form, slot by slot.
    struct Plain {
        slots: Vec<Option<usize>>,
        /// In the order in which they were taken.
        taken: Vec<usize>,
    }

    impl Plain {
        /// All tries of all backends in order of time, first come first served.
        fn race(
            &mut self,
            names: &[String],
            weights: &[u32],
            quotas: &mut [u32],
            bits: u8,
            whole: bool,
        ) {
            let mut tries = Vec::new();
            for (index, name) in names.iter().enumerate().filter(|(i, _)| weights[*i] > 0) {
                let mut racer = Racer::new(name, index as u32, weights[index], u32::MAX);
                while let Some((time, part)) = racer.next_try(u64::MAX, bits) {
                    tries.push((time, index, part as usize));
                }
            }
            tries.sort_unstable();
            let size = self.slots.len() >> bits;
            for (_, index, part) in tries {
                let free: Vec<usize> = (part * size..(part + 1) * size)
                    .filter(|slot| self.slots[*slot].is_none())
                    .collect();
                if whole && (free.len() < size || (quotas[index] as usize) < size) {
                    continue;
                }
                for slot in free.into_iter().take(quotas[index] as usize) {
                    self.slots[slot] = Some(index);
                    self.taken.push(slot);
                    quotas[index] -= 1;
                }
            }
        }
    }

    #[test]
    fn rounds_and_short_cuts_do_not_change_the_result() {
        let names: Vec<String> = (0..12).map(|index| format!("backend {index:02}")).collect();
        for (seed, bits) in (0..48_u32).zip((0..=14).cycle()) {
            let mut keys = Keys(u64::from(seed));
            let count = 1 + seed as usize % 24 / 2;
            let mut weight = || {
                let weight = keys.next() as u32 >> (seed % 31);
                // Nobody of all at times.
                if seed % 7 == 3 {
                    weight % 2
                } else {
                    weight.max(1)
                }
            };
            let configured: Vec<u32> = (0..count).map(|_| weight()).collect();
            let weights: Vec<u32> = match seed % 3 {
                0 => configured.clone(),
                1 => (0..count).map(|_| weight()).collect(),
                _ => (0..)
                    .zip(&configured)
                    .map(|(index, weight)| {
                        if index == seed as usize % count {
                            0
                        } else {
                            *weight
                        }
                    })
                    .collect(),
            };
            let base = if configured.iter().all(|weight| *weight == 0) {
                &weights
            } else {
                &configured
            };
            let mut plain = Plain {
                slots: vec![None; 1 << bits],
                taken: Vec::new(),
            };
            let mut quotas_left = quotas(base, 1 << bits);
            let names = &names[..count];
            if bits >= MIN_BITS {
                plain.race(names, base, &mut quotas_left, AREA_BITS, true);
            }
            let block_bits = bits.min(MIN_BITS);
            plain.race(names, base, &mut quotas_left, block_bits, false);
            let mut have = quotas(base, 1 << bits);
            let now = quotas(&weights, 1 << bits);
            for slot in std::mem::take(&mut plain.taken).into_iter().rev() {
                let owner = plain.slots[slot].expect("it was taken");
                if have[owner] > now[owner] {
                    have[owner] -= 1;
                    plain.slots[slot] = None;
                }
            }
            let mut wanted: Vec<u32> = now
                .iter()
                .zip(&have)
                .map(|(now, have)| now - have)
                .collect();
            plain.race(names, &weights, &mut wanted, block_bits, false);

            let members: Vec<Member<'_>> = (1..)
                .zip(names)
                .zip(configured.iter().zip(&weights))
                .map(|((number, identity), (configured, weight))| Member {
                    identity,
                    configured: *configured,
                    weight: *weight,
                    number,
                })
                .collect();
            let number = |owner: &Option<usize>| owner.map_or(NO_BACKEND, |owner| owner as u16 + 1);
            let slots: Vec<u16> = plain.slots.iter().map(number).collect();
            assert!(slots == build(&members, bits), "2^{bits}: {members:?}");
        }
    }
}
