//! Recorded flows: where the packets of old and of new flows go while a slot is in transition (design.md section 3).
//!
//! What the controller owes this module, each proven necessary by the properties below:
//!
//! - When a slot settles, the records of its flows go from the flow table. A record that stays is believed in the slot's
//!   next transition, when its flow may long live elsewhere.
//! - Where the failed backend was `previous`, `current` takes its place, but not while `current` is 0: a slot without a
//!   previous counts as settled, and the flows recorded on backends that still work would be lost with those that don't.
//!   The failed one may stay: nothing is sent to it.

use crate::abi::Control;
use crate::address::Address;
use crate::features::Features;
use crate::flow::{self, FlowKey, Key, Phase};
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

/// The backend of a packet whose flow is recorded: in a slot in transition, or in any slot of a service that tracks always.
///
/// `client` is the client's own key where the service records clients (`affinity_timeout`) and the slot is in transition.
///
/// # Errors
/// [`Verdict::NoBackend`] where the packet opens a flow and no backend takes new ones.
#[inline(always)]
pub fn backend_of_flow<A: Address, T: Tables>(
    tables: &T,
    slot: Slot,
    key: FlowKey<A>,
    client: Option<FlowKey<A>>,
    signal: Signal,
    seed: Seed,
) -> Result<u16, Verdict> {
    let phase = match signal {
        Signal::Opens => Phase::Opening,
        Signal::Continues | Signal::Related | Signal::Unmarked | Signal::UnmarkedRelated => {
            Phase::Open
        }
        Signal::Closes => Phase::Closing,
        Signal::Resets => Phase::Ended,
        Signal::Unknown => {
            tables.note(Step::Untracked);
            return backend_of_new(tables, slot, client, seed);
        }
    };
    let of_the_flow = !matches!(signal, Signal::Related | Signal::UnmarkedRelated);
    let records = tables.records() && of_the_flow;
    let hash = key.hash(seed);
    let found = flow::find(tables, key, hash);
    if let Some(state) = found {
        let backend = state.backend();
        // What opens anew is a new flow, unless nothing but its opening has been seen: then it is the same attempt, sent
        // again, and the backend may have answered the first. Among the nodes of a cluster it is always a new one: the node it
        // was for may have given the slot up by then, and have kept nothing of it.
        let cluster = tables.features().has(Features::PICK);
        let again = state.phase() == Phase::Opening && !cluster;
        if phase != Phase::Opening || again {
            // In a cluster a flow that was another node's is never this one's: a third may have taken it over.
            if cluster || !has_failed(tables, backend) {
                let flow = key.named();
                tables.note(if phase == Phase::Opening {
                    Step::OpensAgain { flow, backend }
                } else {
                    Step::Recorded { flow, backend }
                });
                if records {
                    flow::touch(tables, key, hash, state, phase);
                    keep_client(tables, client, backend, seed);
                }
                return known(backend);
            }
            tables.note(Step::RecordedOnFailed {
                flow: key.named(),
                backend,
            });
        }
    }
    let backend = match signal {
        Signal::Opens => {
            tables.note(Step::Opens);
            backend_of_new(tables, slot, client, seed)?
        }
        Signal::Unmarked | Signal::UnmarkedRelated => {
            if found.is_none() {
                tables.note(Step::NotRecorded { flow: key.named() });
            }
            backend_of_new(tables, slot, client, seed)?
        }
        _ if found.is_some() => known(slot.current())?,
        _ => {
            tables.note(Step::OlderThanChange { flow: key.named() });
            // The controller takes a failed backend out of both sides; this closes the moment until it has. A settled slot
            // has no previous: a service that tracks always has only just begun to, or has forgotten the flow.
            let lost =
                !tables.features().has(Features::PICK) && has_failed(tables, slot.previous());
            if !slot.in_transition() || lost {
                known(slot.current())?
            } else {
                slot.previous()
            }
        }
    };
    if records {
        flow::record(tables, key, hash, backend, phase);
        // Silent for longer than a flow is remembered, and not yet for as long as its client is.
        if !matches!(
            signal,
            Signal::Opens | Signal::Unmarked | Signal::UnmarkedRelated
        ) {
            keep_client(tables, client, backend, seed);
        }
    }
    Ok(backend)
}

/// The backend of a new flow: the current one, unless the client is known, or may be older than the change.
#[inline(always)]
fn backend_of_new<A: Address, T: Tables>(
    tables: &T,
    slot: Slot,
    client: Option<FlowKey<A>>,
    seed: Seed,
) -> Result<u16, Verdict> {
    let Some(client) = client else {
        return known(slot.current());
    };
    let hash = client.hash(seed);
    let found = flow::find(tables, client, hash);
    let backend = match found {
        Some(state) if takes_new(tables, state.backend()) => {
            let backend = state.backend();
            tables.note(Step::KnownClient {
                client: client.named(),
                backend,
            });
            backend
        }
        None if takes_new(tables, slot.previous()) => {
            tables.note(Step::ClientOlderThanChange {
                client: client.named(),
            });
            slot.previous()
        }
        _ => known(slot.current())?,
    };
    if tables.records() {
        flow::record(tables, client, hash, backend, Phase::Open);
    }
    Ok(backend)
}

/// A flow's packet keeps its client's record from ageing, if the client is recorded on the same backend. A client that is not
/// recorded is from now on, if that backend takes new flows: its flow may be older than the change, and the client must be
/// known when nobody is taken for older any more.
#[inline(always)]
fn keep_client<A: Address, T: Tables>(
    tables: &T,
    client: Option<FlowKey<A>>,
    backend: u16,
    seed: Seed,
) {
    if let Some(client) = client {
        let hash = client.hash(seed);
        let renews = match flow::find(tables, client, hash) {
            Some(state) => state.backend() == backend && state.seen() != tables.now(),
            None => takes_new(tables, backend),
        };
        if renews {
            flow::record(tables, client, hash, backend, Phase::Open);
        }
    }
}

/// Whether a backend works and does not drain.
#[inline(always)]
fn takes_new<T: Tables>(tables: &T, backend: u16) -> bool {
    let entry = tables.backend(backend);
    backend != 0 && !entry.failed() && !entry.is_closed_to_new()
}

#[inline(always)]
fn known(backend: u16) -> Result<u16, Verdict> {
    if backend == 0 {
        Err(Verdict::NoBackend)
    } else {
        Ok(backend)
    }
}

/// Whether a recorded backend takes nothing any more.
#[inline(always)]
pub(crate) fn has_failed<T: Tables>(tables: &T, backend: u16) -> bool {
    tables.backend(backend).failed()
}

#[cfg(test)]
mod properties;
