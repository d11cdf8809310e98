//! What is made of the laps: minimum, median, NET, and how far they are apart.

/// Nanoseconds per packet of each lap of one program.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series(Vec<f64>);

impl Series {
    /// More laps.
    pub fn extend(&mut self, laps: impl IntoIterator<Item = f64>) {
        self.0.extend(laps);
    }

    /// The laps of another series of the same program.
    pub fn append(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }

    /// How many laps there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The smallest; `None` without laps.
    #[must_use]
    pub fn min(&self) -> Option<f64> {
        self.0.iter().copied().min_by(f64::total_cmp)
    }

    /// The one in the middle, or between the two in the middle; `None` without laps.
    #[must_use]
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        if sorted.len().is_multiple_of(2) {
            Some(f64::midpoint(*sorted.get(middle - 1)?, upper))
        } else {
            Some(upper)
        }
    }

    /// How much longer the median lap took than the shortest: 0 on a machine that does nothing else.
    #[must_use]
    pub fn spread(&self) -> Option<f64> {
        Some(self.median()? / self.min()? - 1.0)
    }
}

impl FromIterator<f64> for Series {
    fn from_iter<I: IntoIterator<Item = f64>>(laps: I) -> Self {
        Self(laps.into_iter().collect())
    }
}

/// A program's own time per packet, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Net {
    /// The shortest lap less the shortest of the base.
    pub min: f64,
    /// The median lap less the median of the base.
    pub median: f64,
}

impl Net {
    /// Of a program's laps and the base's; `None` without laps.
    #[must_use]
    pub fn of(program: &Series, base: &Series) -> Option<Self> {
        Some(Self {
            min: program.min()? - base.min()?,
            median: program.median()? - base.median()?,
        })
    }

    /// How many times the floor's minimum this one's is; `None` where the floor could not be told from the base.
    #[must_use]
    pub fn ratio(&self, floor: &Self) -> Option<f64> {
        (floor.min > 0.0).then(|| self.min / floor.min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series<const N: usize>(bursts: [f64; N]) -> Series {
        bursts.into_iter().collect()
    }

    #[test]
    fn minimum_and_median() {
        assert_eq!(series([5.0, 3.0, 4.0]).min(), Some(3.0));
        assert_eq!(series([5.0, 3.0, 4.0]).median(), Some(4.0));
        assert_eq!(series([5.0, 3.0, 4.0, 100.0]).median(), Some(4.5));
        assert_eq!(series([]).min(), None);
        assert_eq!(series([]).median(), None);
        assert_eq!(series([2.0, 3.0, 3.0]).spread(), Some(0.5));
    }

    #[test]
    fn net_is_what_is_left_of_the_base() {
        let base = series([20.0, 22.0, 40.0]);
        let floor = Net::of(&series([24.0, 27.0, 90.0]), &base).expect("laps");
        assert_eq!((floor.min, floor.median), (4.0, 5.0));
        let own = Net::of(&series([30.0, 36.0, 37.0]), &base).expect("laps");
        assert_eq!(own.ratio(&floor), Some(2.5));
        assert_eq!(Net::of(&series([]), &base), None);
        let nothing = Net {
            min: 0.0,
            median: 1.0,
        };
        assert_eq!(own.ratio(&nothing), None, "no floor, no ratio");
    }
}
