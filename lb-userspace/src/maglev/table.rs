//! A table while its slots are given away.

use std::ops::Range;

use super::{AREA_BITS, MIN_BITS, NO_BACKEND, Run, race::Course};

/// Stands in a claim for nobody.
const NOBODY: u32 = u32::MAX;

/// The next slots of a block for a member, by its place among all.
#[derive(Clone, Copy)]
struct Claim {
    block: u32,
    member: u32,
    slots: u32,
    /// As many after these are free again.
    released: u32,
}

/// The slots as 2^[`MIN_BITS`] blocks of one size; a table with fewer slots has a block for each. A block is filled from its
/// beginning.
pub(super) struct Table {
    block_bits: u8,
    /// Slots of a block.
    size: u32,
    /// Slots of a block that are free.
    free: Vec<u32>,
    /// Slots of an area that are free; none where there are no areas.
    free_in_areas: Vec<u32>,
    /// In the order of time.
    claims: Vec<Claim>,
    /// The claims before the release.
    kept: Option<Vec<Claim>>,
    /// So many slots from the first on were taken in their order.
    taken: u32,
}

impl Table {
    pub(super) fn new(bits: u8) -> Self {
        let block_bits = bits.min(MIN_BITS);
        let size = 1 << (bits - block_bits);
        let areas = if bits < MIN_BITS { 0 } else { 1 << AREA_BITS };
        Self {
            block_bits,
            size,
            free: vec![size; 1 << block_bits],
            free_in_areas: vec![size << (MIN_BITS - AREA_BITS); areas],
            // Most blocks have one owner or two.
            claims: Vec::with_capacity(2 << block_bits),
            kept: None,
            taken: 0,
        }
    }

    /// Slots of an area, while all of them are free; `None` where the table has no areas.
    pub(super) fn area_size(&self) -> Option<u32> {
        (!self.free_in_areas.is_empty()).then_some(self.size << (MIN_BITS - AREA_BITS))
    }

    /// The parts that the race for whole areas is about.
    pub(super) const fn areas(&mut self) -> Areas<'_> {
        Areas(self)
    }

    /// The parts that the race for everything else is about.
    pub(super) const fn blocks(&mut self) -> Blocks<'_> {
        Blocks(self)
    }

    fn claim(&mut self, block: u32, wanted: u32, member: u32) -> u32 {
        let free = &mut self.free[block as usize];
        let slots = wanted.min(*free);
        if slots > 0 {
            *free -= slots;
            if let Some(free) = self.free_in_areas.get_mut(area_of(block)) {
                *free -= slots;
            }
            self.claims.push(Claim {
                block,
                member,
                slots,
                released: 0,
            });
        }
        slots
    }

    /// Gives the first free slots to a member: they are in the order of the blocks.
    pub(super) fn take(&mut self, mut slots: u32, member: u32) {
        while slots > 0 {
            // All before it are taken.
            let block = self.taken / self.size;
            if block as usize >= self.free.len() {
                break;
            }
            let got = self.claim(block, slots, member);
            self.taken += got;
            slots -= got;
        }
    }

    /// What is free goes to nobody.
    pub(super) fn leave_rest(&mut self) {
        for block in 0..self.free.len() as u32 {
            self.claim(block, self.size, NOBODY);
        }
    }

    /// Takes so many of its slots from each member, those first that it has claimed last; what nobody has is free as well. Not
    /// more than once.
    pub(super) fn release(&mut self, mut excess: Vec<u32>) {
        let mut kept = std::mem::take(&mut self.claims);
        for claim in kept.iter_mut().rev() {
            claim.released = match excess.get_mut(claim.member as usize) {
                Some(excess) => {
                    let released = claim.slots.min(*excess);
                    *excess -= released;
                    released
                }
                None => claim.slots,
            };
            claim.slots -= claim.released;
            self.free[claim.block as usize] += claim.released;
            if let Some(free) = self.free_in_areas.get_mut(area_of(claim.block)) {
                *free += claim.released;
            }
        }
        self.kept = Some(kept);
    }

    /// The slots from the first to the last, all of which have been claimed.
    pub(super) fn into_runs(mut self, number: impl Fn(u32) -> u16) -> Vec<Run> {
        let mut runs = Runs {
            runs: Vec::with_capacity(self.claims.len() + self.kept.as_ref().map_or(0, Vec::len)),
            number,
        };
        by_block(&mut self.claims);
        let mut claims = self.claims.into_iter();
        if let Some(mut kept) = self.kept {
            by_block(&mut kept);
            let mut next = claims.next();
            for claim in kept {
                runs.push(claim.member, claim.slots);
                let mut hole = claim.released;
                while hole > 0 {
                    let new = next.as_mut().expect("as many as were released");
                    let slots = hole.min(new.slots);
                    runs.push(new.member, slots);
                    hole -= slots;
                    new.slots -= slots;
                    if new.slots == 0 {
                        next = claims.next();
                    }
                }
            }
        } else {
            for claim in claims {
                runs.push(claim.member, claim.slots);
            }
        }
        runs.runs
    }
}

const fn area_of(block: u32) -> usize {
    (block >> (MIN_BITS - AREA_BITS)) as usize
}

const fn blocks_of(area: u32) -> Range<u32> {
    let bits = MIN_BITS - AREA_BITS;
    area << bits..(area + 1) << bits
}

/// Within a block in the order of time.
fn by_block(claims: &mut [Claim]) {
    claims.sort_by_key(|claim| claim.block);
}

/// Neighbours with the same number as one run.
struct Runs<F> {
    runs: Vec<Run>,
    number: F,
}

impl<F: Fn(u32) -> u16> Runs<F> {
    fn push(&mut self, member: u32, slots: u32) {
        if slots == 0 {
            return;
        }
        let number = if member == NOBODY {
            NO_BACKEND
        } else {
            (self.number)(member)
        };
        match self.runs.last_mut() {
            Some(last) if last.number == number => last.slots += slots,
            _ => self.runs.push(Run { slots, number }),
        }
    }
}

/// Areas, each to be had as a whole or not at all.
pub(super) struct Areas<'a>(&'a mut Table);

impl Course for Areas<'_> {
    fn bits(&self) -> u8 {
        AREA_BITS
    }

    fn is_open(&self, area: u32) -> bool {
        Some(self.0.free_in_areas[area as usize]) == self.0.area_size()
    }

    fn claim(&mut self, area: u32, wanted: u32, member: u32) -> u32 {
        let whole = self.0.area_size().filter(|size| wanted >= *size);
        let Some(size) = whole.filter(|_| self.is_open(area)) else {
            return 0;
        };
        for block in blocks_of(area) {
            self.0.claim(block, self.0.size, member);
        }
        size
    }
}

/// Blocks.
pub(super) struct Blocks<'a>(&'a mut Table);

impl Course for Blocks<'_> {
    fn bits(&self) -> u8 {
        self.0.block_bits
    }

    fn is_open(&self, block: u32) -> bool {
        self.0.free[block as usize] > 0
    }

    fn claim(&mut self, block: u32, wanted: u32, member: u32) -> u32 {
        self.0.claim(block, wanted, member)
    }
}
