//! In a cluster (`mode = "pick"`): what a node makes of its maps when its daemon was away.
//!
//! The data path went on, and the peers left this node its share. But what happened between *them* it has not seen: a peer
//! that failed, whose slots a third one took; flows that opened there. By its maps it would count such flows to the peer that
//! is named, and take them for its own once that one fails. So whatever is not this node's own belongs to "another node,
//! whichever" from now on, in the slots in transition and in the records; settled slots follow when they change, see
//! [`super::desired::Missed`].

use super::{
    actual::{Actual, Millis, Op},
    execute::Executor,
    memory::Memory,
    reconcile::{Others, TooSmall},
};
use crate::dataplane::DataplaneError;
use lb_common::pick::Slot;

/// Why a node could not come back.
#[derive(Debug, thiserror::Error)]
pub enum ComebackError {
    /// No number is free.
    #[error(transparent)]
    TooSmall(#[from] TooSmall),
    /// The maps can't be written.
    #[error(transparent)]
    Maps(#[from] DataplaneError),
}

/// Gives what was taken over from the maps, and is not of the node `own`, to the other nodes. To be done once, before anything
/// is changed.
///
/// # Errors
/// [`ComebackError`].
pub fn come_back<M: Memory>(
    executor: &mut Executor<M>,
    own: &str,
    unix_ms: u64,
    now: Millis,
    clock: impl Fn() -> Millis,
) -> Result<(), ComebackError> {
    let ids: Vec<u16> = executor.actual.services().keys().copied().collect();
    for id in ids {
        if let Some(plan) = plan(&executor.actual, id, own, unix_ms)? {
            executor.execute(&plan.ops, now, &clock)?;
            executor.hand_over_flows(id, plan.own, plan.others);
        }
    }
    Ok(())
}

struct Plan {
    ops: Vec<Op>,
    /// This node's number, where it has one.
    own: Option<u16>,
    others: u16,
}

/// `None` where nothing is in transition and nothing is recorded.
fn plan(actual: &Actual, id: u16, own: &str, unix_ms: u64) -> Result<Option<Plan>, TooSmall> {
    let Some(service) = actual.services().get(&id) else {
        return Ok(None);
    };
    if actual.in_transition(id) == 0 && !service.records_always() {
        return Ok(None);
    }
    let own = actual
        .backends_of(id)
        .into_iter()
        .find(|(_, backend)| backend.name == own)
        .map(|(number, _)| number);
    let others = Others::of(actual, id, unix_ms)?;
    let changes: Vec<(u32, Slot)> = (0..)
        .zip(&service.slots)
        .filter(|(_, slot)| slot.in_transition())
        .filter(|(_, slot)| Some(slot.previous()) != own && slot.previous() != others.number)
        .map(|(index, slot)| (index, Slot::new(slot.current(), others.number)))
        .collect();
    let mut ops: Vec<Op> = others.op.into_iter().collect();
    if !changes.is_empty() {
        ops.push(Op::Slots {
            service: id,
            changes,
            built_for: None,
        });
    }
    Ok(Some(Plan {
        ops,
        own,
        others: others.number,
    }))
}
