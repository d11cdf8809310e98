//! Which recorded flows have ended, and which slots may settle: design.md section 3. Pure.

use std::{collections::BTreeMap, time::Duration};

use lb_common::{
    abi::BackendState,
    flow::{FlowBucket, FlowKey, FlowState, LONGEST_SILENCE, Phase, TICK_NS},
    hash::{Seed, mix},
    pick::{Slot, slot_index},
};

use super::actual::{Actual, ActualService, Millis, Op};

/// After this long without a packet, a flow whose client has sent FIN counts as ended: the last acknowledgements of a
/// closing connection come within a few round trips, and a half-closed one that still receives acknowledges what it gets.
pub const CLOSING_SILENCE: Duration = Duration::from_secs(5);

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
    /// Records to clear: bucket, way, and the state they were seen in.
    pub clear: Vec<(usize, usize, u64)>,
    /// Slots that settle, by service.
    pub settle: BTreeMap<u16, Vec<(u32, Slot)>>,
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
        Phase::Open => silent < ticks(flow_idle),
        Phase::Closing => silent < ticks(CLOSING_SILENCE.min(flow_idle)),
        Phase::Ended => false,
    }
}

/// The slot of a recorded flow in its service's table.
fn slot_of(service: &ActualService, endpoints: u64, seed: Seed) -> u32 {
    let key = FlowKey {
        endpoints,
        service: 0,
    };
    let source = service.affinity.source_ipv4(key.client(), key.ports());
    slot_index(mix(source, seed), u32::from(service.bits))
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
    let mut found = Sweep::default();
    // Slots that a live flow elsewhere keeps from settling.
    let mut busy: BTreeMap<u16, Vec<bool>> = actual
        .services
        .iter()
        .filter(|(_, service)| service.slots.iter().any(|slot| slot.in_transition()))
        .map(|(id, service)| (*id, vec![false; service.slots.len()]))
        .collect();
    for (index, bucket) in buckets.iter().enumerate() {
        for (way, record) in bucket.ways.iter().enumerate() {
            let word = record.state.get();
            let state = FlowState(word);
            if !state.used() {
                continue;
            }
            found.used += 1;
            let service = actual.services.get(&state.service());
            let (Some(service), Some(busy)) = (service, busy.get_mut(&state.service())) else {
                found.clear.push((index, way, word));
                continue;
            };
            let slot_index = slot_of(service, record.key.get(), seed) as usize;
            let slot = service.slots[slot_index];
            let lost = actual
                .backends
                .get(&state.backend())
                .is_none_or(|b| b.entry.failed());
            if !slot.in_transition() || lost {
                found.clear.push((index, way, word));
                continue;
            }
            if is_live(state, ticks_now, service.flow_idle) {
                *found.flows.entry(state.backend()).or_default() += 1;
                if state.backend() != slot.current() {
                    busy[slot_index] = true;
                }
            } else {
                let kept = match state.phase() {
                    Phase::Open => service.flow_idle,
                    Phase::Closing | Phase::Ended => ENDED_KEPT.min(service.flow_idle),
                };
                if state.silent(ticks_now) >= ticks(kept) {
                    found.clear.push((index, way, word));
                }
            }
        }
    }
    for (id, busy) in busy {
        let Some(service) = actual.services.get(&id) else {
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
    found
}

impl Sweep {
    /// The operations that follow: slots that settle, drains that are done, numbers that are free.
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
        let mut named = std::collections::BTreeSet::new();
        for (id, service) in &actual.services {
            let settles: BTreeMap<u32, Slot> =
                self.settle.get(id).into_iter().flatten().copied().collect();
            for (index, slot) in (0..).zip(&service.slots) {
                let slot = settles.get(&index).unwrap_or(slot);
                named.insert(slot.current());
                named.insert(slot.previous());
            }
        }
        for (number, backend) in &actual.backends {
            if named.contains(number) || self.flows.contains_key(number) {
                continue;
            }
            match backend.state {
                BackendState::Draining => ops.push(Op::Backend {
                    number: *number,
                    backend: super::actual::ActualBackend {
                        state: BackendState::Drained,
                        since_ms: unix_ms,
                        ..backend.clone()
                    },
                }),
                BackendState::Leaving => ops.push(Op::RemoveBackend { number: *number }),
                _ => {}
            }
        }
        ops
    }
}
