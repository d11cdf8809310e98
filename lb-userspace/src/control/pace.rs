//! How often a frame of a cluster is sent: at once, some times more soon after, since one may be lost, then once in an interval.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    time::Duration,
};

use super::{actual::Millis, peers::PERIOD};

/// So often a frame is sent at short distances.
const AT_ONCE: u32 = 4;

/// When each of several frames was sent last, and how often.
#[derive(Debug)]
pub struct Pace<K> {
    sent: HashMap<K, (Millis, u32)>,
}

impl<K> Default for Pace<K> {
    fn default() -> Self {
        Self {
            sent: HashMap::new(),
        }
    }
}

impl<K: Eq + Hash> Pace<K> {
    /// Whether a frame is to be sent at `now`, where it is sent once in `interval` after the first ones; it is taken for sent.
    pub fn is_due(&mut self, frame: K, interval: Duration, now: Millis) -> bool {
        let mut first = false;
        let (at, times) = self.sent.entry(frame).or_insert_with(|| {
            first = true;
            (now, 1)
        });
        if first {
            return true;
        }
        let gap = if *times < AT_ONCE {
            PERIOD.min(interval)
        } else {
            interval
        };
        if u128::from(now.saturating_sub(*at)) < gap.as_millis() {
            return false;
        }
        (*at, *times) = (now, *times + 1);
        true
    }

    /// Forgets all frames but these.
    pub fn keep_only(&mut self, wanted: &HashSet<K>) {
        self.sent.retain(|frame, _| wanted.contains(frame));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_times_soon_then_once_in_an_interval() {
        let mut pace = Pace::default();
        let mut sent = Vec::new();
        for now in (0..4_000).step_by(50) {
            if pace.is_due("a", Duration::from_secs(1), now) {
                sent.push(now);
            }
        }
        assert_eq!(sent, [0, 250, 500, 750, 1_750, 2_750, 3_750]);
        assert!(pace.is_due("b", Duration::from_secs(1), 4_000));
        pace.keep_only(&HashSet::from(["b"]));
        assert!(pace.is_due("a", Duration::from_secs(1), 4_000));
        assert!(!pace.is_due("b", Duration::from_secs(1), 4_000));
    }
}
