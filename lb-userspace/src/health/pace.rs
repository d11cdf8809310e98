//! When a probe is due: spread over the interval, with jitter, without drift.

use std::time::Duration;

/// The first probe is never later than this: a fresh start should serve soon.
const FIRST_WITHIN: Duration = Duration::from_secs(1);

/// Jitter of each probe, as a part of the interval in both directions. It keeps many backends, and
/// many directors, from probing in step.
const JITTER: f64 = 0.1;

/// The times of one backend's probes, all relative to the moment its probing began.
///
/// Probe `k` is due at `offset + k * interval`, plus its own jitter: what one probe is late by is
/// never carried over to the next. Offset and jitter follow from the seed and `k`.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    seed: u64,
    interval: Duration,
    next: u32,
}

impl Pace {
    pub(super) fn new(seed: u64, interval: Duration) -> Self {
        Self {
            seed,
            // An interval of zero would never be over.
            interval: interval.max(Duration::from_millis(1)),
            next: 0,
        }
    }

    /// When the first probe is due.
    pub(super) fn first(&mut self) -> Duration {
        let first = self.interval.min(FIRST_WITHIN).mul_f64(self.spread());
        // With a long interval the first probe is early; the next one keeps to its own place in the
        // interval, but not right behind the first.
        while self.due(self.next) < first + self.interval / 2 {
            self.next += 1;
        }
        first
    }

    /// When the next probe is due, `now` being later than the one before: what was missed while a
    /// probe took longer than the interval is left out, not made up for.
    pub(super) fn after(&mut self, now: Duration) -> Duration {
        while self.due(self.next) <= now {
            self.next += 1;
        }
        let due = self.due(self.next);
        self.next += 1;
        due
    }

    fn spread(&self) -> f64 {
        fraction(self.seed)
    }

    fn due(&self, k: u32) -> Duration {
        let place = self.interval.mul_f64(self.spread()) + self.interval * k;
        let random = fraction(self.seed ^ (u64::from(k) + 1).rotate_left(32));
        let jitter = self.interval.mul_f64(JITTER * (2.0 * random - 1.0).abs());
        if random < 0.5 {
            place.saturating_sub(jitter)
        } else {
            place + jitter
        }
    }
}

/// A number from 0 to 1, evenly spread over the seeds (`SplitMix64`; Steele et al., OOPSLA 2014).
fn fraction(seed: u64) -> f64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    f64::from((z >> 32) as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(seed: u64, interval: Duration, count: usize, takes: Duration) -> Vec<Duration> {
        let mut pace = Pace::new(seed, interval);
        let mut times = vec![pace.first()];
        while times.len() < count {
            let now = times[times.len() - 1] + takes;
            times.push(pace.after(now));
        }
        times
    }

    #[test]
    fn a_thousand_first_probes_are_spread_evenly() {
        for interval in [
            Duration::from_millis(100),
            Duration::from_secs(1),
            Duration::from_secs(30),
        ] {
            let window = interval.min(FIRST_WITHIN);
            let mut tenths = [0; 10];
            for seed in 0..1000 {
                let first = Pace::new(seed, interval).first();
                assert!(first <= window, "{first:?}");
                let tenth = (first.as_secs_f64() / window.as_secs_f64() * 10.0) as usize;
                tenths[tenth.min(9)] += 1;
            }
            for count in tenths {
                assert!((60..=140).contains(&count), "{tenths:?}");
            }
        }
    }

    #[test]
    fn probes_keep_their_distance_and_do_not_drift() {
        for interval in [Duration::from_millis(100), Duration::from_secs(10)] {
            for seed in 0..200 {
                let times = times(seed, interval, 300, interval / 20);
                for pair in times.windows(2).skip(1) {
                    let gap = (pair[1] - pair[0]).as_secs_f64() / interval.as_secs_f64();
                    assert!((0.799..=1.201).contains(&gap), "seed {seed}: {gap}");
                }
                let gap = (times[1] - times[0]).as_secs_f64() / interval.as_secs_f64();
                assert!(
                    (0.499..=2.201).contains(&gap),
                    "seed {seed}: first gap {gap}"
                );
                let mean = (times[299] - times[1]).as_secs_f64() / 298.0 / interval.as_secs_f64();
                assert!((0.999..=1.001).contains(&mean), "seed {seed}: {mean}");
            }
        }
    }

    #[test]
    fn jitter_differs_from_probe_to_probe() {
        let interval = Duration::from_secs(1);
        let times = times(3, interval, 100, Duration::ZERO);
        let mut gaps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        gaps.sort_unstable();
        gaps.dedup();
        assert!(gaps.len() > 90, "{}", gaps.len());
    }

    #[test]
    fn a_probe_that_takes_longer_than_the_interval_leaves_out_what_it_missed() {
        let interval = Duration::from_millis(100);
        for pair in times(5, interval, 50, interval * 5 / 2).windows(2) {
            let gap = pair[1] - pair[0];
            assert!(gap >= interval * 5 / 2 && gap <= interval * 4, "{gap:?}");
        }
    }
}
