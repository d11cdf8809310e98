//! A slot in transition: where the packets of old and of new flows go (design.md section 3).
//!
//! What the controller owes this module, each proven necessary by the properties below:
//!
//! - When a slot settles, the records of its flows go from the flow table. A record that stays is believed in the slot's
//!   next transition, when its flow may long live elsewhere.
//! - Where the failed backend was `previous`, `current` takes its place, but not while `current` is 0: a slot without a
//!   previous counts as settled, and the flows recorded on backends that still work would be lost with those that don't.
//!   The failed one may stay: nothing is sent to it.

use crate::abi::Control;
use crate::flow::{self, FlowKey, Phase};
use crate::hash::Seed;
use crate::parse::Signal;
use crate::pick::Slot;
use crate::tables::{Step, Tables};
use crate::verdict::Verdict;

impl Control {
    /// The secret seed.
    #[inline(always)]
    #[must_use]
    pub fn seed(&self) -> Seed {
        Seed([self.seed0.get(), self.seed1.get()])
    }
}

/// The backend of a packet in a slot in transition.
///
/// # Errors
/// [`Verdict::NoBackend`] where the packet opens a flow and no backend takes new ones.
#[inline(always)]
pub fn backend_in_transition<T: Tables>(
    tables: &T,
    slot: Slot,
    key: FlowKey,
    signal: Signal,
    seed: Seed,
) -> Result<u16, Verdict> {
    let (opens, phase) = match signal {
        Signal::Opens => (true, Phase::Open),
        Signal::Continues | Signal::Related => (false, Phase::Open),
        Signal::Closes => (false, Phase::Closing),
        Signal::Resets => (false, Phase::Ended),
        Signal::Unknown => {
            tables.note(Step::Untracked);
            return known(slot.current());
        }
    };
    let records = tables.records() && !matches!(signal, Signal::Related);
    let hash = flow::flow_hash(key, seed);
    let backend = if opens {
        tables.note(Step::Opens);
        known(slot.current())?
    } else if let Some((way, state)) = flow::find(tables, key, hash) {
        let backend = state.backend();
        if !has_failed(tables, backend) {
            tables.note(Step::Recorded { flow: key, backend });
            if records {
                flow::touch(way, state, hash, tables.now(), phase);
            }
            return known(backend);
        }
        tables.note(Step::RecordedOnFailed { flow: key, backend });
        known(slot.current())?
    } else {
        tables.note(Step::OlderThanChange { flow: key });
        // The controller takes a failed backend out of both sides; this closes the moment until it has.
        if has_failed(tables, slot.previous()) {
            known(slot.current())?
        } else {
            slot.previous()
        }
    };
    if records {
        flow::record(tables, key, hash, backend, phase);
    }
    Ok(backend)
}

#[inline(always)]
fn known(backend: u16) -> Result<u16, Verdict> {
    if backend == 0 {
        Err(Verdict::NoBackend)
    } else {
        Ok(backend)
    }
}

#[inline(always)]
fn has_failed<T: Tables>(tables: &T, backend: u16) -> bool {
    match tables.backend(backend) {
        Some(entry) => entry.failed(),
        None => true,
    }
}

#[cfg(test)]
mod properties;
