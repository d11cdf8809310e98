//! Where in `SLOTS` each table lies: regions of a power of two, aligned to their size.

use std::collections::BTreeMap;

/// The used regions of the slots.
#[derive(Clone, Debug)]
pub struct Regions {
    capacity: u32,
    /// Offset -> size.
    used: BTreeMap<u32, u32>,
}

impl Regions {
    /// None used of `capacity` slots.
    #[must_use]
    pub const fn new(capacity: u32) -> Self {
        Self {
            capacity,
            used: BTreeMap::new(),
        }
    }

    /// Marks the region of a table that is there already.
    pub fn occupy(&mut self, offset: u32, bits: u8) {
        self.used.insert(offset, 1 << bits);
    }

    /// Finds room for 2^`bits` slots and marks it; `None` where there is none.
    pub fn take(&mut self, bits: u8) -> Option<u32> {
        let size = 1u32 << bits;
        let mut candidate = 0u32;
        for (&offset, &length) in &self.used {
            if candidate.checked_add(size)? <= offset {
                break;
            }
            candidate = candidate
                .max(offset.checked_add(length)?)
                .checked_next_multiple_of(size)?;
        }
        if candidate.checked_add(size)? > self.capacity {
            return None;
        }
        self.used.insert(candidate, size);
        Some(candidate)
    }

    /// Gives a region back.
    pub fn release(&mut self, offset: u32) {
        self.used.remove(&offset);
    }

    /// Slots in use.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.used.values().sum()
    }

    /// Slots there are.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_never_overlap_and_are_reused() {
        let mut regions = Regions::new(1 << 10);
        let a = regions.take(8).unwrap();
        let b = regions.take(9).unwrap();
        let c = regions.take(8).unwrap();
        assert_eq!((a, b, c), (0, 512, 256));
        assert_eq!(regions.take(0), None);
        assert_eq!(regions.used(), 1 << 10);
        regions.release(a);
        assert_eq!(regions.take(9), None);
        assert_eq!(regions.take(7), Some(0));
        assert_eq!(regions.take(7), Some(128));
    }

    #[test]
    fn a_table_larger_than_everything_is_refused() {
        assert_eq!(Regions::new(1 << 10).take(11), None);
        assert_eq!(Regions::new(u32::MAX).take(31), Some(0));
    }
}
