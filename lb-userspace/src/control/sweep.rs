//! Which recorded flows have ended, and which slots may settle: design.md section 3. Pure.

use std::{collections::BTreeMap, time::Duration};

use lb_common::{
    abi::BackendState,
    address::Address,
    flow::{FlowBucket, FlowKey, FlowState, LONGEST_SILENCE, Phase, TICK_NS},
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
    /// Records to clear, once the slots have settled: bucket, way, and the state they were seen in.
    pub clear: Vec<(usize, usize, u64)>,
    /// Slots that settle, by service.
    pub settle: BTreeMap<u16, Vec<(u32, Slot)>>,
    /// What is retired and named by no record any more.
    pub unnamed: Retired,
    /// Nothing was found that could change by itself: until the next operation, no other look is needed.
    pub quiet: bool,
}

/// Whole ticks that fit no more than `duration` of silence, as far as the 16-bit time can tell.
fn ticks(duration: Duration) -> u16 {
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

/// Looks at every record and every slot in transition.
///
/// `ticks_now` is the data path's coarse time, `now` the clock of [`ActualService::changed`].
#[must_use]
pub fn sweep(
    buckets: &[FlowBucket],
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
    let mut kept: Vec<(u16, usize, (usize, usize, u64))> = Vec::new();
    for (index, bucket) in buckets.iter().enumerate() {
        for (way, record) in bucket.ways.iter().enumerate() {
            let word = record.state.get();
            let state = FlowState(word);
            if !state.used() {
                continue;
            }
            found.used += 1;
            found.unnamed.services.remove(&state.service());
            found.unnamed.backends.remove(&state.backend());
            let service = actual.services().get(&state.service());
            let (Some(service), Some(busy)) = (service, busy.get_mut(&state.service())) else {
                found.clear.push((index, way, word));
                continue;
            };
            let slot_index = slot_of(service, record.key(), seed) as usize;
            let slot = service.slots[slot_index];
            let backend = actual
                .backends()
                .get(&state.backend())
                .filter(|backend| backend.service == state.service());
            let Some(backend) = backend.filter(|_| slot.in_transition()) else {
                found.clear.push((index, way, word));
                continue;
            };
            let keep = if is_live(state, ticks_now, service.flow_idle) {
                // On a failed backend there are no flows to wait for. The record stays all the same: by it the data path
                // knows that the flow is none of the previous backend's and belongs to the current one.
                if !backend.entry.failed() {
                    *found.flows.entry(state.backend()).or_default() += 1;
                    busy[slot_index] |= state.backend() != slot.current();
                }
                true
            } else {
                let stays = match state.phase() {
                    Phase::Open => service.flow_idle,
                    Phase::Opening => OPENING_SILENCE.min(service.flow_idle),
                    Phase::Closing | Phase::Ended => ENDED_KEPT.min(service.flow_idle),
                };
                state.silent(ticks_now) < ticks(stays)
            };
            if keep {
                kept.push((state.service(), slot_index, (index, way, word)));
            } else {
                found.clear.push((index, way, word));
            }
        }
    }
    for (id, busy) in busy {
        let Some(service) = actual.services().get(&id) else {
            continue;
        };
        let idle = u64::try_from(service.flow_idle.as_millis()).unwrap_or(u64::MAX);
        let settle: Vec<(u32, Slot)> = (0..)
            .zip(service.slots.iter().zip(&service.changed))
            .zip(busy)
            .filter(|((_, (slot, changed)), busy)| {
                slot.in_transition() && !busy && now.saturating_sub(**changed) >= idle
            })
            .map(|((index, (slot, _)), _)| (index, Slot::settled(slot.current())))
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
                .is_ok()
        });
        if settles {
            found.clear.push(record);
        }
    }
    found.quiet = found.used == 0
        && actual.unsettled().next().is_none()
        && actual.retired().is_empty()
        && !actual
            .backends()
            .values()
            .any(|b| matches!(b.state, BackendState::Draining | BackendState::Leaving));
    found
}

impl Sweep {
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
