//! When the flow table is looked at, and what must not happen before it has been: around the passes of [`super::sweep`].

use std::time::Duration;

use lb_common::pick::Slot;

use super::{
    actual::{Actual, Millis, Op},
    retarget::Track,
    sweep::{Budget, Pass, Piece, Sweep, View},
};

/// A pass rests so many times as long as it worked: a large table takes no more than a tenth of a processor.
const REST: u32 = 9;

/// Passes over the flow table, one after the other.
#[derive(Debug, Default)]
pub struct Sweeper {
    pass: Option<Pass>,
    /// What the last pass found.
    last: Sweep,
    /// Another pass begins as soon as this one is over.
    again: bool,
    /// Work spent in this pass.
    spent: Duration,
    /// No pass begins before, unless one is asked for.
    rests_until: Millis,
    /// A slot has settled, or a service has ceased to record every flow, and no pass that began later is over: flows are
    /// still recorded, though their slots have settled.
    unclean: bool,
    /// The latter has happened since this pass began, which may have looked at such records before.
    outdated: bool,
    /// Meanwhile settled slots have moved at once, because their backend failed, or flows have, because the service does not
    /// record them any more: such records name a backend that their flows are not on any more.
    misleading: bool,
}

impl Sweeper {
    /// What the last pass found.
    #[must_use]
    pub const fn last(&self) -> &Sweep {
        &self.last
    }

    /// Whether a pass has begun and is not over.
    #[must_use]
    pub const fn is_active(&self) -> bool {
        self.pass.is_some()
    }

    /// Has a pass begin now, or right after the one that is under way.
    pub const fn ask(&mut self) {
        self.again = true;
    }

    /// Begins a pass if there is a reason to and it is time.
    pub fn begin(&mut self, actual: &Actual, now: Millis) {
        let due = self.again || (!self.last.quiet && now >= self.rests_until);
        if self.pass.is_none() && due {
            self.again = false;
            self.spent = Duration::ZERO;
            self.pass = Some(Pass::begin(actual, now));
        }
    }

    /// One piece of the pass that is under way. To be followed by [`Self::done`] when what follows from it has been done.
    pub fn step(&mut self, view: &View<'_>, budget: Budget) -> Piece {
        self.pass
            .as_mut()
            .map_or_else(Piece::default, |pass| pass.step(view, budget))
    }

    /// A piece and what follows from it has been done, and took so long. True when the pass is over.
    pub fn done(&mut self, actual: &Actual, now: Millis, took: Duration) -> bool {
        self.spent += took;
        let Some(found) = self.pass.as_ref().and_then(|pass| pass.result(actual)) else {
            return false;
        };
        self.pass = None;
        self.unclean = std::mem::take(&mut self.outdated) || found.settled > 0;
        self.misleading &= self.unclean;
        // The records that outlived their slots' transition go soon.
        self.again |= self.unclean;
        let rest = self.spent.saturating_mul(REST).as_millis();
        self.rests_until = now.saturating_add(Millis::try_from(rest).unwrap_or(Millis::MAX));
        self.last = found;
        true
    }

    /// Takes note of operations that are about to be done.
    pub fn note(&mut self, actual: &Actual, ops: &[Op]) {
        if ops.is_empty() {
            return;
        }
        self.last.quiet = false;
        for op in ops {
            let Op::Service { id, service } = op else {
                continue;
            };
            let Some(old) = actual.services().get(id) else {
                continue;
            };
            let disowned = old.disowns(service);
            if disowned || old.records_always() && !service.records_always() {
                self.outdated |= self.pass.is_some();
                self.unclean = true;
                self.again = true;
                self.misleading |= disowned;
            }
        }
        let settled_since = self.unclean || self.pass.is_some();
        if settled_since && !self.misleading {
            self.misleading = ops.iter().any(|op| moves_settled_slots(actual, op));
        }
    }

    /// Whether a whole pass must be made before the next change is planned. Otherwise a slot that had settled, moved because
    /// its backend failed, and is put into transition by that change, could find the record of a flow from before it
    /// settled, and send the flow to a backend that it left with the failure.
    ///
    /// It takes two changes within the time of a pass after a slot settled, of which the first is a failure; or a reload that
    /// changes `track` and another one that changes it back.
    #[must_use]
    pub const fn must_finish(&self) -> bool {
        self.misleading
    }
}

/// Whether a settled slot of a service whose flows are recorded gets another backend without a transition.
fn moves_settled_slots(actual: &Actual, op: &Op) -> bool {
    let moves = |old: Slot, new: Slot| {
        !old.in_transition() && old.current() != 0 && !new.in_transition() && old != new
    };
    match op {
        Op::Slots {
            service, changes, ..
        } => actual.services().get(service).is_some_and(|service| {
            service.track == Track::Flows
                && changes
                    .iter()
                    .any(|(index, new)| moves(service.slots[*index as usize], *new))
        }),
        // A table that grows is compared in its new size: too rare to be told apart.
        Op::Service { id, service } => {
            service.track == Track::Flows && actual.services().contains_key(id)
        }
        _ => false,
    }
}
