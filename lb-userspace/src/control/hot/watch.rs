//! Which sources send more than their share: sampled packets counted, and judged at the end of each stretch of time.

use std::collections::{BTreeMap, HashMap};

use lb_common::{
    abi::{SAMPLES_IN_RING, SampleRing},
    address::Ipv6,
    hot::SAMPLE_SHIFT,
};

use super::{super::actual::Millis, HotSource, Source};

/// Shortest time that is judged as one.
pub const STRETCH: Millis = 2_000;
/// Longest time that is judged as one: a service with fewer packets than can be judged in it has nobody who is hot.
pub const LONGEST_STRETCH: Millis = 30_000;
/// So many samples a source just at the threshold has in a stretch, on average: one with half of it reaches the threshold
/// by chance in fewer than one stretch in a hundred.
const SAMPLES_AT_THRESHOLD: u64 = 16;
/// So many stretches in a row must a source be above the threshold to be spread.
const STRETCHES_ABOVE: u32 = 2;
/// For so long must a source be below half of the threshold to be spread no more: each change makes its flows be recorded
/// for a while, so it shall not be made at every breath.
pub const CALM: Millis = 20_000;
/// What is not read of a ring, because its processor may be writing there by now.
const MARGIN: u64 = 8;

/// Counts the packets of a service's sources in bounded memory: the algorithm of Misra and Gries ("Finding repeated
/// elements", 1982) with many counters taken off at once (Anderson et al., "A high-performance algorithm for identifying
/// frequent items in data streams", IMC 2017). No count is too high, and none is too low by more than one in
/// `CAPACITY / 2` of all packets.
#[derive(Clone, Debug, Default)]
struct Sketch {
    counts: HashMap<Ipv6, u64>,
}

impl Sketch {
    const CAPACITY: usize = 2_048;

    fn add(&mut self, address: Ipv6, packets: u64) {
        *self.counts.entry(address).or_default() += packets;
        if self.counts.len() > Self::CAPACITY {
            let mut counts: Vec<u64> = self.counts.values().copied().collect();
            let middle = counts.len() / 2;
            let (_, median, _) = counts.select_nth_unstable(middle);
            let median = *median;
            self.counts.retain(|_, count| {
                *count = count.saturating_sub(median);
                *count > 0
            });
        }
    }

    fn of(&self, address: Ipv6) -> u64 {
        self.counts.get(&address).copied().unwrap_or(0)
    }
}

/// One service's packets in the stretch of time that is not over yet.
#[derive(Clone, Debug)]
struct Tally {
    began: Millis,
    samples: u64,
    packets: u64,
    sketch: Sketch,
    /// For how many stretches in a row a source has been above the threshold.
    above: HashMap<Ipv6, u32>,
    /// When a source that is spread was last not below half of it.
    loud: HashMap<Ipv6, Millis>,
}

impl Tally {
    fn new(now: Millis) -> Self {
        Self {
            began: now,
            samples: 0,
            packets: 0,
            sketch: Sketch::default(),
            above: HashMap::new(),
            loud: HashMap::new(),
        }
    }

    /// The next stretch begins; what is known of the sources stays.
    fn restart(&mut self, now: Millis) {
        self.began = now;
        self.samples = 0;
        self.packets = 0;
        self.sketch = Sketch::default();
    }

    fn share_ppm(&self, packets: u64) -> u32 {
        let millionths = packets.saturating_mul(1_000_000) / self.packets.max(1);
        u32::try_from(millionths).unwrap_or(u32::MAX)
    }
}

/// What a stretch of time says of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Of whom.
    pub source: Source,
    /// Its share of the service's packets, in millionths.
    pub share_ppm: u32,
    /// Whether its new flows are to be spread.
    pub spread: bool,
}

/// Everything that is measured.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// How many samples of each processor have been read.
    read: Vec<u64>,
    tallies: BTreeMap<u16, Tally>,
}

impl Watch {
    /// Starts from what the rings hold now: who wrote that, and how long ago, nobody knows.
    #[must_use]
    pub fn from_now_on(rings: &[SampleRing]) -> Self {
        Self {
            read: rings.iter().map(|ring| ring.taken.get()).collect(),
            tallies: BTreeMap::new(),
        }
    }

    /// Reads what was sampled since the last time. A ring that went round meanwhile has kept its newest samples: each of
    /// them then stands for more packets.
    pub fn read(&mut self, rings: &[SampleRing], now: Millis) {
        self.read.resize(rings.len(), 0);
        for (ring, read) in rings.iter().zip(&mut self.read) {
            let taken = ring.taken.get();
            let new = taken.wrapping_sub(*read);
            *read = taken;
            let kept = new.min(SAMPLES_IN_RING - MARGIN);
            if kept == 0 {
                continue;
            }
            let packets = (u128::from(new) << SAMPLE_SHIFT) / u128::from(kept);
            let packets = u64::try_from(packets).unwrap_or(u64::MAX);
            for number in taken - kept + 1..=taken {
                let sample = &ring.samples[(number % SAMPLES_IN_RING) as usize];
                let stamp = sample.stamp.get();
                let address = Ipv6 {
                    high: sample.high.get(),
                    low: sample.low.get(),
                };
                // Overwritten meanwhile, or just now.
                if stamp >> 16 != number || sample.stamp.get() != stamp {
                    continue;
                }
                let tally = self
                    .tallies
                    .entry(stamp as u16)
                    .or_insert_with(|| Tally::new(now));
                tally.samples += 1;
                tally.packets = tally.packets.saturating_add(packets);
                tally.sketch.add(address, packets);
            }
        }
    }

    /// Judges the sources of the services whose stretch of time is over: those above the threshold, and all that are hot.
    ///
    /// `threshold` gives the share in millionths above which a service's sources are spread, `None` where it spreads none:
    /// its hot sources return at once.
    pub fn judge(
        &mut self,
        hot: &BTreeMap<Source, HotSource>,
        threshold: impl Fn(u16) -> Option<u32>,
        now: Millis,
    ) -> Vec<Judgement> {
        for source in hot.keys() {
            self.tallies
                .entry(source.service)
                .or_insert_with(|| Tally::new(now));
        }
        let mut judgements = Vec::new();
        self.tallies.retain(|service, tally| {
            let of_service = || hot.iter().filter(|(source, _)| source.service == *service);
            let Some(threshold) = threshold(*service) else {
                judgements.extend(of_service().map(|(source, hot)| Judgement {
                    source: *source,
                    share_ppm: hot.share_ppm,
                    spread: false,
                }));
                return false;
            };
            let needed = (SAMPLES_AT_THRESHOLD * 1_000_000).div_ceil(u64::from(threshold.max(1)));
            let enough = tally.samples >= needed;
            let age = now.saturating_sub(tally.began);
            if age >= LONGEST_STRETCH || age >= STRETCH && enough {
                judgements.extend(tally.judge(*service, of_service(), threshold, enough, now));
                tally.restart(now);
            }
            true
        });
        judgements
    }
}

impl Tally {
    fn judge<'h>(
        &mut self,
        service: u16,
        hot: impl Iterator<Item = (&'h Source, &'h HotSource)>,
        threshold: u32,
        enough: bool,
        now: Millis,
    ) -> Vec<Judgement> {
        let mut above: HashMap<Ipv6, u32> = HashMap::new();
        if enough {
            for (address, packets) in &self.sketch.counts {
                if self.share_ppm(*packets) > threshold {
                    let times = self.above.get(address).copied().unwrap_or(0);
                    above.insert(*address, times.saturating_add(1));
                }
            }
        }
        let mut judgements: BTreeMap<Source, Judgement> = above
            .iter()
            .filter(|(_, times)| **times >= STRETCHES_ABOVE)
            .map(|(address, _)| {
                let source = Source {
                    service,
                    address: *address,
                };
                let share_ppm = self.share_ppm(self.sketch.of(*address));
                (
                    source,
                    Judgement {
                        source,
                        share_ppm,
                        spread: true,
                    },
                )
            })
            .collect();
        let mut loud = HashMap::new();
        for (source, known) in hot {
            let share_ppm = self.share_ppm(self.sketch.of(source.address));
            let since = if enough && share_ppm >= threshold / 2 {
                now
            } else {
                // Who has just been found, or taken over, was loud until now.
                self.loud
                    .get(&source.address)
                    .copied()
                    .unwrap_or(self.began)
            };
            loud.insert(source.address, since);
            let spread = known.state.spreads() && now.saturating_sub(since) < CALM;
            judgements.entry(*source).or_insert(Judgement {
                source: *source,
                share_ppm,
                spread,
            });
        }
        self.above = above;
        self.loud = loud;
        judgements.into_values().collect()
    }
}

#[cfg(test)]
mod tests;
