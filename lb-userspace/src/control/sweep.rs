//! Which recorded flows have ended, and which slots may settle: design.md section 3. Pure.
//!
//! The flow table may hold tens of millions of flows, and a look at all of it takes a large part of a second. So it is looked
//! at in pieces, between which the controller acts on whatever happens: a [`Pass`] holds what was found so far. What it
//! decides at its end counts from its *beginning*: a slot settles only if it was due when the pass began and has not changed
//! since, a drain is over only if it had begun by then. So a flow that is never silent for `flow_idle` is never moved; one
//! that was, and wakes up during a pass, may find its slot settled after a few packets.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use lb_common::{
    abi::{BackendState, WAYS},
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
    let silent = state.silence(now);
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

/// What a pass looks at, as it is during one piece.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The flow table.
    pub buckets: &'a [FlowBucket],
    /// The picture of the other maps.
    pub actual: &'a Actual,
    /// The hash's secret.
    pub seed: Seed,
    /// The data path's coarse time.
    pub ticks: u16,
    /// The clock of [`ActualService::changed`].
    pub now: Millis,
    /// Unix time in milliseconds.
    pub unix_ms: u64,
}

/// A record to clear: bucket, way, and the state it was seen in.
pub type Record = (usize, usize, u64);

/// What follows from a piece. The operations come first: a record whose slot settles is needed until it has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// Slots that settle; at the end of the pass drains that are done, backends that have left, numbers that are free.
    pub ops: Vec<Op>,
    /// Records to clear.
    pub clear: Vec<Record>,
}

/// What a whole pass found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Flows on each backend that have not ended.
    pub flows: BTreeMap<u16, u64>,
    /// Ways in use.
    pub used: u64,
    /// Slots that settled.
    pub settled: u64,
    /// Nothing was found that could change by itself: until the next operation, no other pass is needed.
    pub quiet: bool,
}

/// What one piece may cost at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Buckets that are looked at.
    pub buckets: usize,
    /// Slots that are asked whether they settle, and records of those that do; a group of slots is never divided.
    pub slots: usize,
}

impl Budget {
    /// A fraction of a millisecond: 256 KiB of the flow table.
    pub const PIECE: Self = Self {
        buckets: 4096,
        slots: 4096,
    };
    /// Everything at once.
    pub const ALL: Self = Self {
        buckets: usize::MAX,
        slots: usize::MAX,
    };
}

/// A service's table is divided into so many groups of slots that settle together (log2), each with its records.
const GROUP_BITS: u8 = 6;

/// Where a pass goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// With this bucket.
    Look(usize),
    /// With this group of slots of this service or the first one after it.
    Settle(u16, u32),
    /// With the drains.
    End,
    Done,
}

/// A service that had slots in transition when the pass began.
#[derive(Debug)]
struct Watch {
    bits: u8,
    /// Slots that a live flow elsewhere keeps from settling; empty while there is none.
    busy: Vec<bool>,
    /// By group: the ways of the records that stay as long as their slot is in transition.
    kept: HashMap<u32, Vec<u32>>,
}

impl Watch {
    fn group_shift(&self) -> u8 {
        self.bits.saturating_sub(GROUP_BITS)
    }

    fn is_busy(&self, slot: usize) -> bool {
        self.busy.get(slot).copied().unwrap_or(false)
    }
}

/// A look at the whole flow table that has begun.
#[derive(Debug)]
pub struct Pass {
    started: Millis,
    next: Next,
    watched: BTreeMap<u16, Watch>,
    /// What was retired when the pass began, and has not been found named.
    unnamed: Retired,
    /// The backends that drained or left when the pass began, and since when.
    ending: BTreeMap<u16, u64>,
    /// The backends that slots named as previous until they settled in this pass.
    rested: BTreeSet<u16>,
    found: Sweep,
}

fn idle_ms(service: &ActualService) -> Millis {
    Millis::try_from(service.flow_idle.as_millis()).unwrap_or(Millis::MAX)
}

impl Pass {
    /// Begins.
    #[must_use]
    pub fn begin(actual: &Actual, now: Millis) -> Self {
        Self {
            started: now,
            next: Next::Look(0),
            watched: actual
                .unsettled()
                .map(|(id, service)| {
                    let watch = Watch {
                        bits: service.bits,
                        busy: Vec::new(),
                        kept: HashMap::new(),
                    };
                    (id, watch)
                })
                .collect(),
            unnamed: actual.retired().clone(),
            ending: actual
                .ending()
                .map(|(number, backend)| (number, backend.since_ms))
                .collect(),
            rested: BTreeSet::new(),
            found: Sweep::default(),
        }
    }

    /// Goes on by one piece. What follows must be done before the next one.
    pub fn step(&mut self, view: &View<'_>, budget: Budget) -> Piece {
        let mut piece = Piece::default();
        match self.next {
            Next::Look(from) => {
                let to = view.buckets.len().min(from.saturating_add(budget.buckets));
                for index in from..to {
                    self.look(view, index, &mut piece);
                }
                self.next = if to == view.buckets.len() {
                    Next::Settle(0, 0)
                } else {
                    Next::Look(to)
                };
            }
            Next::Settle(service, group) => {
                self.next = self.settle(view, service, group, budget.slots, &mut piece);
            }
            Next::End => {
                self.end(view, &mut piece);
                self.next = Next::Done;
            }
            Next::Done => {}
        }
        piece
    }

    /// What was found, once the pass is over; `quiet` is as of now.
    #[must_use]
    pub fn result(&self, actual: &Actual) -> Option<Sweep> {
        (self.next == Next::Done).then(|| Sweep {
            quiet: self.found.used == 0
                && actual.unsettled().next().is_none()
                && actual.retired().is_empty()
                && actual.ending().next().is_none(),
            ..self.found.clone()
        })
    }

    /// Whether a slot was due when the pass began.
    fn due(&self, service: &ActualService, slot: usize) -> bool {
        service.slots[slot].in_transition()
            && service.changed[slot].saturating_add(idle_ms(service)) <= self.started
    }

    fn look(&mut self, view: &View<'_>, index: usize, piece: &mut Piece) {
        let actual = view.actual;
        for (way, record) in view.buckets[index].ways.iter().enumerate() {
            let word = record.state.get();
            let state = FlowState(word);
            if !state.used() {
                continue;
            }
            self.found.used += 1;
            self.unnamed.services.remove(&state.service());
            self.unnamed.backends.remove(&state.backend());
            let Some(service) = actual.services().get(&state.service()) else {
                piece.clear.push((index, way, word));
                continue;
            };
            let slot_index = slot_of(service, record.key(), view.seed) as usize;
            let slot = service.slots[slot_index];
            let backend = actual
                .backends()
                .get(&state.backend())
                .filter(|backend| backend.service == state.service());
            let Some(backend) = backend.filter(|_| slot.in_transition()) else {
                piece.clear.push((index, way, word));
                continue;
            };
            let due = self.due(service, slot_index);
            // A table that has grown since the pass began has other slots: none of them settles in this one.
            let watch = self
                .watched
                .get_mut(&state.service())
                .filter(|watch| watch.bits == service.bits);
            let keep = if is_live(state, view.ticks, service.flow_idle) {
                // On a failed backend there are no flows to wait for. The record stays all the same: by it the data path
                // knows that the flow is none of the previous backend's and belongs to the current one.
                if !backend.entry.failed() {
                    *self.found.flows.entry(state.backend()).or_default() += 1;
                    if state.backend() != slot.current()
                        && let Some(watch) = watch
                    {
                        watch.busy.resize(service.slots.len(), false);
                        watch.busy[slot_index] = true;
                        continue;
                    }
                }
                true
            } else {
                let stays = match state.phase() {
                    Phase::Open => service.flow_idle,
                    Phase::Opening => OPENING_SILENCE.min(service.flow_idle),
                    Phase::Closing | Phase::Ended => ENDED_KEPT.min(service.flow_idle),
                };
                state.silence(view.ticks) < ticks(stays)
            };
            if !keep {
                piece.clear.push((index, way, word));
            } else if due
                && let Some(watch) = self.watched.get_mut(&state.service())
                && watch.bits == service.bits
                && let Ok(number) = u32::try_from(index * WAYS + way)
            {
                let group = slot_index as u32 >> watch.group_shift();
                watch.kept.entry(group).or_default().push(number);
            }
        }
    }

    /// Settles group after group, until the budget is spent.
    fn settle(
        &mut self,
        view: &View<'_>,
        mut id: u16,
        mut group: u32,
        budget: usize,
        piece: &mut Piece,
    ) -> Next {
        let mut spent = 0;
        while let Some((found, watch)) = self.watched.range(id..).next() {
            if *found != id {
                (id, group) = (*found, 0);
            }
            let shift = watch.group_shift();
            let groups = 1u32 << (watch.bits - shift);
            let service =
                view.actual.services().get(&id).filter(|service| {
                    service.bits == watch.bits && view.actual.in_transition(id) > 0
                });
            let Some(service) = service.filter(|_| group < groups) else {
                match id.checked_add(1) {
                    Some(next) => (id, group) = (next, 0),
                    None => return Next::End,
                }
                continue;
            };
            if spent >= budget {
                return Next::Settle(id, group);
            }
            let slots = (group as usize) << shift..(group as usize + 1) << shift;
            let changes: Vec<(u32, Slot)> = slots
                .clone()
                .filter(|slot| self.due(service, *slot) && !watch.is_busy(*slot))
                .map(|slot| (slot as u32, Slot::settled(service.slots[slot].current())))
                .collect();
            spent += slots.len();
            if !changes.is_empty() {
                // A record that outlived its slot's transition would be believed in the next one, when its flow may long
                // live elsewhere.
                for number in watch.kept.get(&group).into_iter().flatten() {
                    spent += 1;
                    let (index, way) = (*number as usize / WAYS, *number as usize % WAYS);
                    let record = &view.buckets[index].ways[way];
                    let word = record.state.get();
                    if !FlowState(word).used() || FlowState(word).service() != id {
                        continue;
                    }
                    let slot = slot_of(service, record.key(), view.seed);
                    if changes
                        .binary_search_by_key(&slot, |(index, _)| *index)
                        .is_ok()
                    {
                        piece.clear.push((index, way, word));
                    }
                }
                self.found.settled += changes.len() as u64;
                self.rested.extend(
                    changes
                        .iter()
                        .map(|(slot, _)| service.slots[*slot as usize].previous()),
                );
                piece.ops.push(Op::Slots {
                    service: id,
                    changes,
                    built_for: None,
                });
            }
            group += 1;
        }
        Next::End
    }

    /// Drains that are done, backends that have left, numbers that are free.
    ///
    /// What settled just now no slot names any more; a packet may still be on its way through such a slot, so what was named
    /// by it then rests until the next pass.
    fn end(&self, view: &View<'_>, piece: &mut Piece) {
        let actual = view.actual;
        for (number, backend) in actual.ending() {
            if self.ending.get(&number) != Some(&backend.since_ms)
                || self.found.flows.contains_key(&number)
                || self.rested.contains(&number)
                || actual.is_named(number)
            {
                continue;
            }
            piece.ops.push(if backend.state == BackendState::Draining {
                Op::Backend {
                    number,
                    backend: ActualBackend {
                        state: BackendState::Drained,
                        since_ms: view.unix_ms,
                        ..backend.clone()
                    },
                }
            } else {
                Op::RemoveBackend { number }
            });
        }
        let mut free = self.unnamed.clone();
        free.backends
            .retain(|number| !self.rested.contains(number) && !actual.is_named(*number));
        if !free.is_empty() {
            piece.ops.push(Op::Release(free));
        }
    }
}

#[cfg(test)]
mod tests;
