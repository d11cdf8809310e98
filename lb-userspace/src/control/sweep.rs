//! Which recorded flows have ended, and which slots may settle: design.md section 3. Pure.
//!
//! The flow table may hold tens of millions of flows, and a look at all of it takes a large part of a second. So it is looked
//! at in pieces, between which the controller acts on whatever happens: a [`Pass`] holds what was found so far. What it
//! decides at its end counts from its *beginning*: a slot settles only if it was due when the pass began and has not changed
//! since, a drain is over only if it had begun by then. So a flow that is never silent for `flow_idle` is never moved; one
//! that was, and wakes up during a pass, may find its slot settled after a few packets.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use lb_common::{
    abi::{BackendState, WAYS},
    flow::{FlowBucket, FlowBucket6, FlowState, Way},
    hash::Seed,
    hot::HotState,
    pick::Slot,
};

use super::{
    actual::{Actual, ActualBackend, ActualService, Millis, Op, Retired},
    fragments,
    hot::{Belongs, HotSource, Keeper, Source, belongs, is_stale},
};

/// What a pass looks at, as it is during one piece.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The flow table.
    pub buckets: &'a [FlowBucket],
    /// The IPv6 clients' flow table, looked at after the other one.
    pub buckets6: &'a [FlowBucket6],
    /// The fragment table, looked at whole at the end of the pass.
    pub fragments: &'a [FlowBucket],
    /// The picture of the other maps.
    pub actual: &'a Actual,
    /// Whether nodes of a cluster share the packets (`mode = "pick"`): then a flow on a failed node may be one that a third has
    /// taken over, and no slot settles before it has ended.
    pub cluster: bool,
    /// The hash's secret.
    pub seed: Seed,
    /// The data path's coarse time.
    pub ticks: u16,
    /// The clock of [`ActualService::changed`].
    pub now: Millis,
    /// Unix time in milliseconds.
    pub unix_ms: u64,
}

/// A bucket of either flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bucket {
    /// Of `FLOWS`.
    Ipv4(usize),
    /// Of `FLOWS6`.
    Ipv6(usize),
}

/// A record to clear: bucket, way, and the state it was seen in.
pub type Record = (Bucket, usize, u64);

impl View<'_> {
    /// How many buckets both tables have.
    const fn len(&self) -> usize {
        self.buckets.len() + self.buckets6.len()
    }

    /// The bucket of this number, counted over both.
    const fn bucket(&self, number: usize) -> Bucket {
        match number.checked_sub(self.buckets.len()) {
            None => Bucket::Ipv4(number),
            Some(index) => Bucket::Ipv6(index),
        }
    }

    /// The state of the record in this place, and whose transition it is kept for.
    fn state_and_keeper(
        &self,
        service: &ActualService,
        bucket: Bucket,
        way: usize,
    ) -> (u64, Keeper) {
        match bucket {
            Bucket::Ipv4(index) => {
                let record = &self.buckets[index].ways[way];
                let belongs = belongs(self.actual, service, record.flow(), self.seed);
                (record.state.get(), belongs.keeper)
            }
            Bucket::Ipv6(index) => {
                let record = &self.buckets6[index].ways[way];
                let belongs = belongs(self.actual, service, record.flow(), self.seed);
                (record.state.get(), belongs.keeper)
            }
        }
    }
}

/// What follows from a piece. The operations come first: a record whose slot settles is needed until it has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// Slots that settle; at the end of the pass drains that are done, backends that have left, numbers that are free.
    pub ops: Vec<Op>,
    /// Records to clear.
    pub clear: Vec<Record>,
    /// Records of fragments to clear: see [`fragments::Fragments::clear`].
    pub fragments: Vec<(usize, usize, u64)>,
}

/// What a whole pass found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Flows on each backend that have not ended.
    pub flows: BTreeMap<u16, u64>,
    /// Ways in use.
    pub used: u64,
    /// Slots and hot sources that settled.
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
    /// With this bucket, counted over both tables.
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
    /// By group: the ways of the records that stay as long as their slot is in transition, counted over both tables.
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
    /// Hot sources that a live flow elsewhere keeps from settling.
    busy_sources: BTreeSet<Source>,
    found: Sweep,
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
            busy_sources: BTreeSet::new(),
            found: Sweep::default(),
        }
    }

    /// Goes on by one piece. What follows must be done before the next one.
    pub fn step(&mut self, view: &View<'_>, budget: Budget) -> Piece {
        let mut piece = Piece::default();
        match self.next {
            Next::Look(from) => {
                let to = view.len().min(from.saturating_add(budget.buckets));
                for number in from..to {
                    let bucket = view.bucket(number);
                    match bucket {
                        Bucket::Ipv4(index) => {
                            self.look(view, &view.buckets[index].ways, number, &mut piece);
                        }
                        Bucket::Ipv6(index) => {
                            self.look(view, &view.buckets6[index].ways, number, &mut piece);
                        }
                    }
                }
                self.next = if to == view.len() {
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
                // What such a service will record is not known beforehand.
                && !actual.services().values().any(ActualService::records_always)
                && actual.ending().next().is_none()
                && !actual
                    .hot()
                    .iter()
                    .any(|(of, hot)| hot.state.in_transition() || is_stale(actual, *of, hot)),
            ..self.found.clone()
        })
    }

    /// Whether a slot was due when the pass began.
    fn due(&self, actual: &Actual, service: &ActualService, slot: usize) -> bool {
        let (changed, slot) = (service.changed[slot], service.slots[slot]);
        if !slot.in_transition() {
            return false;
        }
        let previous = actual.backends().get(&slot.previous()).map(|b| b.entry);
        let rests = service.rests(slot, previous).as_millis();
        changed.saturating_add(Millis::try_from(rests).unwrap_or(Millis::MAX)) <= self.started
    }

    /// Looks at the ways of the bucket of this number.
    fn look<W: Way>(
        &mut self,
        view: &View<'_>,
        ways: &[W; WAYS],
        number: usize,
        piece: &mut Piece,
    ) {
        let actual = view.actual;
        let bucket = view.bucket(number);
        for (way, record) in ways.iter().enumerate() {
            let word = record.state().get();
            let state = FlowState(word);
            if !state.used() {
                continue;
            }
            self.found.used += 1;
            self.unnamed.services.remove(&state.service());
            self.unnamed.backends.remove(&state.backend());
            let Some(service) = actual.services().get(&state.service()) else {
                piece.clear.push((bucket, way, word));
                continue;
            };
            let key = record.flow();
            let client = key.is_client();
            let Belongs {
                slot,
                in_transition,
                keeper,
            } = belongs(actual, service, key, view.seed);
            let following = service.following;
            let needed = if client {
                in_transition && following.affinity_timeout.is_some()
            } else {
                service.records_always() || in_transition && following.records(key.udp)
            };
            let backend = actual
                .backends()
                .get(&state.backend())
                .filter(|backend| backend.service == state.service());
            let Some(backend) = backend.filter(|_| needed) else {
                piece.clear.push((bucket, way, word));
                continue;
            };
            let slot_index = match keeper {
                Keeper::Slot(index) => Some(index as usize),
                Keeper::Source(_) => None,
            };
            let due = slot_index.is_some_and(|index| self.due(actual, service, index));
            // A table that has grown since the pass began has other slots: none of them settles in this one.
            let watch = self
                .watched
                .get_mut(&state.service())
                .filter(|watch| watch.bits == service.bits);
            let worth = service.worth(state, client, view.ticks);
            if worth.live {
                // On a failed backend there are no flows to wait for. The record stays all the same: by it the data path
                // knows that the flow is none of the previous backend's and belongs to the current one.
                if !client && !backend.entry.failed() {
                    *self.found.flows.entry(state.backend()).or_default() += 1;
                }
                let waits = view.cluster || service.waits_for(backend.entry, client);
                if waits && state.backend() != slot.current() {
                    match (keeper, watch) {
                        (Keeper::Source(source), _) => {
                            self.busy_sources.insert(source);
                            continue;
                        }
                        (Keeper::Slot(index), Some(watch)) => {
                            watch.busy.resize(service.slots.len(), false);
                            watch.busy[index as usize] = true;
                            continue;
                        }
                        (Keeper::Slot(_), None) => {}
                    }
                }
            }
            if !worth.kept {
                piece.clear.push((bucket, way, word));
            } else if due
                && let Some(slot_index) = slot_index
                && (client || !service.records_always())
                && let Some(watch) = self.watched.get_mut(&state.service())
                && watch.bits == service.bits
                && let Ok(place) = u32::try_from(number * WAYS + way)
            {
                let group = slot_index as u32 >> watch.group_shift();
                watch.kept.entry(group).or_default().push(place);
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
                .filter(|slot| self.due(view.actual, service, *slot))
                .filter_map(|slot| {
                    let now = service.slots[slot];
                    let rested = if watch.is_busy(slot) {
                        service.turned(now)?
                    } else {
                        Slot::settled(now.current())
                    };
                    Some((slot as u32, rested))
                })
                .collect();
            spent += slots.len();
            if !changes.is_empty() {
                // A record that outlived its slot's transition would be believed in the next one, when its flow may long
                // live elsewhere.
                for number in watch.kept.get(&group).into_iter().flatten() {
                    spent += 1;
                    let (bucket, way) = (
                        view.bucket(*number as usize / WAYS),
                        *number as usize % WAYS,
                    );
                    let (word, keeper) = view.state_and_keeper(service, bucket, way);
                    if !FlowState(word).used() || FlowState(word).service() != id {
                        continue;
                    }
                    // Not that of a source that has become hot meanwhile: it is in transition now.
                    if let Keeper::Slot(slot) = keeper
                        && changes
                            .binary_search_by_key(&slot, |(index, _)| *index)
                            .is_ok_and(|found| !changes[found].1.in_transition())
                    {
                        piece.clear.push((bucket, way, word));
                    }
                }
                let settled = changes.iter().filter(|(_, slot)| !slot.in_transition());
                self.found.settled += settled.count() as u64;
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

    /// Hot sources whose transition is over, and those that nobody picks by any more. Their records go with the next pass,
    /// which follows at once: until then they tell the truth.
    fn settle_sources(&mut self, actual: &Actual, piece: &mut Piece) {
        for (source, hot) in actual.hot() {
            let stale = is_stale(actual, *source, hot);
            let due = hot.state.in_transition()
                && !self.busy_sources.contains(source)
                && actual
                    .services()
                    .get(&source.service)
                    .is_some_and(|service| {
                        let idle = Millis::try_from(service.flow_idle.as_millis());
                        hot.changed.saturating_add(idle.unwrap_or(Millis::MAX)) <= self.started
                    });
            if stale || due {
                let settled = HotSource {
                    state: hot.state.settled(),
                    ..*hot
                };
                let remains = !stale && settled.state != HotState::COLD;
                self.found.settled += 1;
                piece.ops.push(Op::Hot {
                    source: *source,
                    entry: remains.then_some(settled),
                });
            }
        }
    }

    /// Drains that are done, backends that have left, numbers that are free.
    ///
    /// What settled just now no slot names any more; a packet may still be on its way through such a slot, so what was named
    /// by it then rests until the next pass.
    fn end(&mut self, view: &View<'_>, piece: &mut Piece) {
        let actual = view.actual;
        self.settle_sources(actual, piece);
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
        let in_fragments = fragments::look(view.fragments, view.ticks);
        let mut free = self.unnamed.clone();
        free.backends.retain(|number| {
            !self.rested.contains(number)
                && !actual.is_named(*number)
                && !in_fragments.named.contains(number)
        });
        piece.fragments = in_fragments.clear;
        if !free.is_empty() {
            piece.ops.push(Op::Release(free));
        }
    }
}

#[cfg(test)]
mod tests;
