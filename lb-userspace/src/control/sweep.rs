//! Which recorded flows have ended, and which slots may settle: design.md section 3. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lb_common::{
    abi::BackendState,
    address::Address,
    flow::{
        FlowBucket, FlowBucket6, FlowKey, FlowLine, FlowState, LONGEST_SILENCE, Phase, TICK_NS, Way,
    },
    hash::Seed,
    pick::{Slot, hash_of, slot_index},
};

use super::actual::{Actual, ActualBackend, ActualService, Millis, Op, Retired};

/// After this long without a packet, a flow whose client has sent FIN counts as ended: a closing connection's last
/// acknowledgements come within a few round trips, but a server may think for a while about a half-closed one (RFC 9293
/// section 3.6) before it answers, and a planned change must not break that.
pub const CLOSING_SILENCE: Duration = Duration::from_secs(60);

/// After this long without a packet, a flow of which nothing but its opening has been seen counts as ended: a client that
/// gets no answer has given up by then, or waits longer between two tries than a user would (RFC 6298 section 2, from 1 s,
/// doubling: 1, 3, 7, 15, 31, 63 s).
pub const OPENING_SILENCE: Duration = Duration::from_secs(75);

/// For this long the record of an ended flow stays, so that a late packet of it is not taken for a flow older than the
/// change (TIME_WAIT is as long on Linux: `TCP_TIMEWAIT_LEN`).
pub const ENDED_KEPT: Duration = Duration::from_secs(60);

/// A look at the whole flow table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sweep {
    /// Flows on each backend that have not ended.
    pub flows: BTreeMap<u16, u64>,
    /// Ways in use.
    pub used: u64,
    /// Records to clear, once the slots have settled.
    pub clear: Vec<Record>,
    /// Slots that settle, by service; where clients are recorded, also those whose previous backend goes though they don't.
    pub settle: BTreeMap<u16, Vec<(u32, Slot)>>,
    /// What is retired and named by no record any more.
    pub unnamed: Retired,
    /// Nothing was found that could change by itself: until the next operation, no other look is needed.
    pub quiet: bool,
}

/// Which flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// `FLOWS`.
    Ipv4,
    /// `FLOWS6`.
    Ipv6,
}

/// A record as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it is.
    pub table: Table,
    /// Its bucket.
    pub bucket: usize,
    /// Its way in the bucket.
    pub way: usize,
    /// Its state: one that has changed since is another record.
    pub seen: u64,
}

/// Whole ticks that fit no more than `duration` of silence, as far as the 16-bit time can tell.
pub(super) fn ticks(duration: Duration) -> u16 {
    let ticks = duration.as_nanos().div_ceil(u128::from(TICK_NS));
    // One more, because the moment of the last packet is rounded down.
    u16::try_from(ticks + 1)
        .unwrap_or(u16::MAX)
        .min(LONGEST_SILENCE)
}

/// Whether a recorded flow has not ended.
#[must_use]
pub fn is_live(state: FlowState, now: u16, flow_idle: Duration) -> bool {
    let silent = state.silent(now);
    match state.phase() {
        Phase::Opening => silent < ticks(OPENING_SILENCE.min(flow_idle)),
        Phase::Open => silent < ticks(flow_idle),
        Phase::Closing => silent < ticks(CLOSING_SILENCE.min(flow_idle)),
        Phase::Ended => false,
    }
}

/// The slot of a recorded flow in its service's table.
fn slot_of<A: Address>(service: &ActualService, key: FlowKey<A>, seed: Seed) -> u32 {
    let hash = hash_of(service.affinity, key.client, key.ports, seed);
    slot_index(hash, u32::from(service.bits))
}

/// Looks at every record of both tables and every slot in transition.
///
/// `ticks_now` is the data path's coarse time, `now` the clock of [`ActualService::changed`].
#[must_use]
pub fn sweep(
    buckets: &[FlowBucket],
    buckets6: &[FlowBucket6],
    actual: &Actual,
    seed: Seed,
    ticks_now: u16,
    now: Millis,
) -> Sweep {
    let mut found = Sweep {
        unnamed: actual.retired().clone(),
        ..Sweep::default()
    };
    // Slots that a live flow elsewhere keeps from settling.
    let mut busy: BTreeMap<u16, Vec<bool>> = actual
        .unsettled()
        .map(|(id, service)| (id, vec![false; service.slots.len()]))
        .collect();
    // Records that stay as long as their slot is in transition.
    let mut kept: Vec<(u16, usize, Record)> = Vec::new();
    let mut look = Look {
        actual,
        seed,
        ticks_now,
        found: &mut found,
        busy: &mut busy,
        kept: &mut kept,
    };
    look.at(buckets, Table::Ipv4);
    look.at(buckets6, Table::Ipv6);
    for (id, busy) in busy {
        let Some(service) = actual.services().get(&id) else {
            continue;
        };
        let settle: Vec<(u32, Slot)> = (0..)
            .zip(service.slots.iter().zip(&service.changed))
            .zip(busy)
            .filter(|((_, (slot, _)), _)| slot.in_transition())
            .filter(|((_, (slot, changed)), _)| {
                let previous = actual.backends().get(&slot.previous()).map(|b| b.entry);
                let rests = service.rests(**slot, previous).as_millis();
                u128::from(now.saturating_sub(**changed)) >= rests
            })
            .filter_map(|((index, (slot, _)), busy)| {
                let rested = if busy {
                    service.turned(*slot)?
                } else {
                    Slot::settled(slot.current())
                };
                Some((index, rested))
            })
            .collect();
        if !settle.is_empty() {
            found.settle.insert(id, settle);
        }
    }
    // A record that outlived its slot's transition would be believed in the next one, when its flow may long live elsewhere.
    for (service, slot, record) in kept {
        let settles = found.settle.get(&service).is_some_and(|settle| {
            settle
                .binary_search_by_key(&slot, |(index, _)| *index as usize)
                .is_ok_and(|found| !settle[found].1.in_transition())
        });
        if settles {
            found.clear.push(record);
        }
    }
    found.quiet = found.used == 0
        && actual.unsettled().next().is_none()
        && actual.retired().is_empty()
        // What such a service will record is not known beforehand.
        && !actual.services().values().any(ActualService::records_always)
        && !actual
            .backends()
            .values()
            .any(|b| matches!(b.state, BackendState::Draining | BackendState::Leaving));
    found
}

/// A look at the records in progress.
struct Look<'a> {
    actual: &'a Actual,
    seed: Seed,
    ticks_now: u16,
    found: &'a mut Sweep,
    busy: &'a mut BTreeMap<u16, Vec<bool>>,
    kept: &'a mut Vec<(u16, usize, Record)>,
}

impl Look<'_> {
    /// Looks at every record of a table.
    fn at<W: Way>(&mut self, buckets: &[FlowLine<W>], table: Table) {
        for (index, bucket) in buckets.iter().enumerate() {
            for (way, record) in bucket.ways.iter().enumerate() {
                let seen = record.state().get();
                if FlowState(seen).used() {
                    let place = Record {
                        table,
                        bucket: index,
                        way,
                        seen,
                    };
                    self.record(record, place);
                }
            }
        }
    }

    fn record<W: Way>(&mut self, record: &W, place: Record) {
        let state = FlowState(place.seen);
        let found = &mut *self.found;
        found.used += 1;
        found.unnamed.services.remove(&state.service());
        found.unnamed.backends.remove(&state.backend());
        let Some(service) = self.actual.services().get(&state.service()) else {
            found.clear.push(place);
            return;
        };
        let key = record.flow();
        let client = key.is_client();
        let slot_index = slot_of(service, key, self.seed) as usize;
        let slot = service.slots[slot_index];
        let needed = slot.in_transition() || service.records_always() && !client;
        let backend = self
            .actual
            .backends()
            .get(&state.backend())
            .filter(|backend| backend.service == state.service());
        let Some(backend) = backend.filter(|_| needed) else {
            found.clear.push(place);
            return;
        };
        let worth = service.worth(state, client, self.ticks_now);
        if worth.live {
            // On a failed backend there are no flows to wait for. The record stays all the same: by it the data path
            // knows that the flow is none of the previous backend's and belongs to the current one.
            if !client && !backend.entry.failed() {
                *found.flows.entry(state.backend()).or_default() += 1;
            }
            if service.waits_for(backend.entry, client)
                && state.backend() != slot.current()
                && let Some(busy) = self.busy.get_mut(&state.service())
            {
                busy[slot_index] = true;
            }
        }
        if !worth.kept {
            found.clear.push(place);
        } else if client || !service.records_always() {
            self.kept.push((state.service(), slot_index, place));
        }
    }
}

impl Sweep {
    /// Other tables name these backends still.
    pub fn still_named(&mut self, backends: &BTreeSet<u16>) {
        self.unnamed
            .backends
            .retain(|number| !backends.contains(number));
    }

    /// The operations that follow: slots that settle, drains that are done, backends that have left, numbers that are free.
    ///
    /// What settles now is counted as named until the next look: a packet may just be on its way through such a slot.
    #[must_use]
    pub fn operations(&self, actual: &Actual, unix_ms: u64) -> Vec<Op> {
        let mut ops: Vec<Op> = self
            .settle
            .iter()
            .map(|(service, changes)| Op::Slots {
                service: *service,
                changes: changes.clone(),
                built_for: None,
            })
            .collect();
        let ending: Vec<(u16, &ActualBackend)> = actual
            .backends()
            .iter()
            .map(|(number, backend)| (*number, backend))
            .filter(|(number, backend)| {
                matches!(
                    backend.state,
                    BackendState::Draining | BackendState::Leaving
                ) && !self.flows.contains_key(number)
            })
            .collect();
        let named = if ending.is_empty() && self.unnamed.backends.is_empty() {
            Vec::new()
        } else {
            named_by_slots(actual)
        };
        for (number, backend) in ending {
            if named[usize::from(number)] {
                continue;
            }
            ops.push(if backend.state == BackendState::Draining {
                Op::Backend {
                    number,
                    backend: ActualBackend {
                        state: BackendState::Drained,
                        since_ms: unix_ms,
                        ..backend.clone()
                    },
                }
            } else {
                Op::RemoveBackend { number }
            });
        }
        let mut free = self.unnamed.clone();
        free.backends.retain(|number| !named[usize::from(*number)]);
        if !free.is_empty() {
            ops.push(Op::Release(free));
        }
        ops
    }
}

/// Which backend numbers any slot names.
fn named_by_slots(actual: &Actual) -> Vec<bool> {
    let mut named = vec![false; 1 << 16];
    for slot in actual.services().values().flat_map(|s| &s.slots) {
        named[usize::from(slot.current())] = true;
        named[usize::from(slot.previous())] = true;
    }
    named
}

#[cfg(test)]
mod tests;
