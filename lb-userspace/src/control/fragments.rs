//! The fragment table: what in it is old, and which backend numbers it names. Pure.

use std::{collections::BTreeSet, time::Duration};

use lb_common::flow::{FlowBucket, FlowState, TICK_NS};

/// Records older than this are cleared. The data path believes a record for half as long; the 16-bit time must not come round
/// to it again.
pub const KEPT: Duration = Duration::from_secs(60);

/// How often the table is looked at where nothing else calls for it.
pub const EVERY: Duration = KEPT;

/// A look at the whole table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragments {
    /// The backends that any record names, those to clear among them: their numbers can't have new owners yet.
    pub named: BTreeSet<u16>,
    /// Records to clear: bucket, way, and the state they were seen in.
    pub clear: Vec<(usize, usize, u64)>,
}

/// Looks at every record. `now` is the data path's coarse time.
#[must_use]
pub fn look(buckets: &[FlowBucket], now: u16) -> Fragments {
    let mut found = Fragments::default();
    for (index, bucket) in buckets.iter().enumerate() {
        for (way, record) in bucket.ways.iter().enumerate() {
            let word = record.state.get();
            let state = FlowState(word);
            if !state.used() {
                continue;
            }
            found.named.insert(state.backend());
            if u64::from(state.silence(now)) * TICK_NS > KEPT.as_nanos() as u64 {
                found.clear.push((index, way, word));
            }
        }
    }
    found
}

/// Clears records, unless a packet renewed them meanwhile.
pub fn clear(buckets: &[FlowBucket], records: &[(usize, usize, u64)]) {
    for (bucket, way, seen) in records {
        if let Some(record) = buckets.get(*bucket).and_then(|b| b.ways.get(*way)) {
            record.state.replace_if(*seen, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_common::flow::{Owner, Phase};

    use super::*;

    #[test]
    fn old_records_go_and_all_name_their_backends() {
        let buckets = vec![FlowBucket::default(), FlowBucket::default()];
        let owner = Owner {
            service: 0,
            udp: false,
        };
        let put = |bucket: usize, way: usize, backend, seen| {
            let state = FlowState::new(backend, owner, seen, 0, Phase::Opening);
            buckets[bucket].ways[way].state.set(state.0);
            state.0
        };
        // The clock has just wrapped.
        let now = 20_u16;
        let old = put(0, 1, 7, now.wrapping_sub(120));
        put(1, 0, 8, now.wrapping_sub(100));
        let renewed = put(1, 3, 9, now.wrapping_sub(40_000));
        let found = look(&buckets, now);
        assert_eq!(found.named, BTreeSet::from([7, 8, 9]));
        assert_eq!(found.clear, [(0, 1, old), (1, 3, renewed)]);
        put(1, 3, 9, now);
        clear(&buckets, &found.clear);
        let found = look(&buckets, now);
        assert_eq!(found.named, BTreeSet::from([8, 9]), "one was renewed");
        assert!(found.clear.is_empty());
    }
}
