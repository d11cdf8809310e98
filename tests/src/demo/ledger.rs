//! What became of every request, and which failures a planted one explains.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::testbed::Record;

/// Over how long a rate is measured.
const RATE_WINDOW: Duration = Duration::from_secs(1);

/// From the planting of a failure until the status shows it.
#[derive(Clone, Debug)]
struct Detection {
    from: Instant,
    until: Option<Instant>,
}

impl Detection {
    /// Whether the request was under way at any moment in which the failure was there and not yet seen.
    fn explains(&self, record: &Record) -> bool {
        record.end >= self.from && self.until.is_none_or(|until| record.start <= until)
    }
}

/// How many clients stayed on their backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stayed {
    pub(super) stayed: usize,
    pub(super) of: usize,
}

/// Every request's record, and what can be said about them.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    answered: Vec<Record>,
    failed: Vec<Record>,
    detections: Vec<Detection>,
    per_backend: BTreeMap<String, u64>,
    homes: HashMap<IpAddr, String>,
}

impl Ledger {
    /// A ledger in which these backends have no requests yet.
    pub(super) fn new(backends: impl Iterator<Item = String>) -> Self {
        Self {
            per_backend: backends.map(|name| (name, 0)).collect(),
            ..Self::default()
        }
    }

    pub(super) fn add(&mut self, records: Vec<Record>) {
        for record in records {
            match (&record.backend, &record.error) {
                (Some(backend), None) => {
                    *self.per_backend.entry(backend.clone()).or_default() += 1;
                    self.homes.insert(record.source, backend.clone());
                    self.answered.push(record);
                }
                _ => self.failed.push(record),
            }
        }
    }

    /// A failure is planted now.
    pub(super) fn planted(&mut self, at: Instant) {
        self.detections.push(Detection {
            from: at,
            until: None,
        });
    }

    /// The failure planted last was seen.
    pub(super) fn detected(&mut self, at: Instant) {
        if let Some(detection) = self.detections.last_mut() {
            detection.until = Some(at);
        }
    }

    /// All requests, whatever became of them.
    pub(super) fn requests(&self) -> usize {
        self.answered.len() + self.failed.len()
    }

    /// Answered requests per backend.
    pub(super) fn per_backend(&self) -> &BTreeMap<String, u64> {
        &self.per_backend
    }

    /// The failed requests that no planted failure explains.
    pub(super) fn failed(&self) -> impl Iterator<Item = &Record> {
        self.failed
            .iter()
            .filter(|record| !self.detections.iter().any(|window| window.explains(record)))
    }

    /// How many requests failed while a planted failure was not yet seen.
    pub(super) fn failed_in_detection(&self) -> usize {
        self.failed.len() - self.failed().count()
    }

    /// When the last request that a failure planted at `from` broke was begun, after that moment.
    pub(super) fn last_lost(&self, from: Instant) -> Option<Duration> {
        let window = self.detections.iter().find(|window| window.from == from)?;
        self.failed
            .iter()
            .filter(|record| window.explains(record))
            .map(|record| record.start.saturating_duration_since(from))
            .max()
    }

    /// Where each client was served last.
    pub(super) fn homes(&self) -> &HashMap<IpAddr, String> {
        &self.homes
    }

    /// Of the clients that `homes` has on other backends than `left`: how many were served there only, since then.
    pub(super) fn stayed(
        &self,
        homes: &HashMap<IpAddr, String>,
        left: &[&str],
        since: Instant,
    ) -> Stayed {
        let mut seen: HashMap<IpAddr, bool> = HashMap::new();
        for record in self.answered.iter().filter(|record| record.start >= since) {
            if let Some(home) = homes
                .get(&record.source)
                .filter(|home| !left.contains(&home.as_str()))
            {
                *seen.entry(record.source).or_insert(true) &= record.backend.as_ref() == Some(home);
            }
        }
        Stayed {
            stayed: seen.values().filter(|stayed| **stayed).count(),
            of: seen.len(),
        }
    }

    /// How many requests begun after `since` a backend has answered.
    pub(super) fn answered_since(&self, backend: &str, since: Instant) -> usize {
        self.answered
            .iter()
            .filter(|record| record.start > since && record.backend.as_deref() == Some(backend))
            .count()
    }

    /// Answered requests per second and backend, over the last second before `now`.
    pub(super) fn rates(&self, now: Instant) -> BTreeMap<&str, usize> {
        let mut rates: BTreeMap<&str, usize> = BTreeMap::new();
        // The records of different clients are only roughly in order of their ends: look a little further back.
        let recent = self
            .answered
            .iter()
            .rev()
            .take_while(|record| record.end + RATE_WINDOW * 2 > now);
        for record in recent.filter(|record| record.end + RATE_WINDOW > now) {
            if let Some(backend) = &record.backend {
                *rates.entry(backend).or_default() += 1;
            }
        }
        rates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(origin: Instant, from: u64, to: u64, source: u8, backend: Option<&str>) -> Record {
        Record {
            start: origin + Duration::from_millis(from),
            end: origin + Duration::from_millis(to),
            source: IpAddr::from([10, 78, 0, source]),
            backend: backend.map(str::to_owned),
            error: backend.is_none().then(|| "refused".to_owned()),
        }
    }

    #[test]
    fn only_requests_under_way_during_detection_are_explained() {
        let origin = Instant::now();
        let at = |ms| origin + Duration::from_millis(ms);
        let mut ledger = Ledger::new(["b1".to_owned()].into_iter());
        ledger.planted(at(1000));
        ledger.detected(at(1600));
        ledger.add(vec![
            record(origin, 0, 999, 1, None),
            record(origin, 900, 1000, 1, None),
            record(origin, 1599, 2599, 1, None),
            record(origin, 1601, 1602, 1, None),
            record(origin, 1601, 1602, 1, Some("b1")),
        ]);
        assert_eq!(ledger.requests(), 5);
        assert_eq!(ledger.failed_in_detection(), 2);
        assert_eq!(ledger.failed().count(), 2);
        assert_eq!(ledger.last_lost(at(1000)), Some(Duration::from_millis(599)));
    }

    #[test]
    fn while_a_failure_is_not_seen_it_explains_all_that_follows() {
        let origin = Instant::now();
        let mut ledger = Ledger::default();
        ledger.planted(origin);
        ledger.add(vec![record(origin, 9000, 9001, 1, None)]);
        assert_eq!(
            (ledger.failed().count(), ledger.failed_in_detection()),
            (0, 1)
        );
    }

    #[test]
    fn a_client_that_was_elsewhere_once_has_not_stayed() {
        let origin = Instant::now();
        let mut ledger = Ledger::default();
        ledger.add(vec![
            record(origin, 0, 1, 1, Some("b1")),
            record(origin, 0, 1, 2, Some("b1")),
            record(origin, 0, 1, 3, Some("b2")),
        ]);
        let homes = ledger.homes().clone();
        let since = origin + Duration::from_millis(10);
        ledger.add(vec![
            record(origin, 20, 21, 1, Some("b1")),
            record(origin, 20, 21, 2, Some("b3")),
            record(origin, 30, 31, 2, Some("b1")),
            record(origin, 20, 21, 3, Some("b1")),
        ]);
        assert_eq!(
            ledger.stayed(&homes, &["b2"], since),
            Stayed { stayed: 1, of: 2 }
        );
        assert_eq!(ledger.answered_since("b1", since), 3);
        assert_eq!(ledger.answered_since("b2", since), 0);
    }
}
