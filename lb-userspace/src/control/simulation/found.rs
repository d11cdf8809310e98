//! What the simulation has found: each fails without the fix that was made for it.

use lb_common::abi::InfoTrack;

use super::{
    FLOWS, live,
    steps::{Change, Step},
};

/// A controller killed before it had drained the last backend: the next one has nobody for the table, which an adopted table
/// was not built for either.
#[test]
fn the_last_backend_is_drained_after_a_restart() {
    live(&[
        Step::Change(1, 1, Change::ToggleDrain),
        Step::Change(1, 2, Change::ToggleDrain),
        Step::Change(1, 3, Change::ToggleDrain),
        Step::Killed(1, 0, Change::ToggleDrain, 0),
    ]);
}

/// The last hot source of a service that spreads none any more settles in the sweeps that a change waits for: the change
/// must be planned for what is left after them.
#[test]
fn a_hot_source_settles_while_a_change_waits_for_the_sweep() {
    live(&[
        Step::ToggleService(1),
        Step::ToggleService(1),
        Step::Turn(0, true),
        Step::ToggleSpread,
        Step::Pass(3000),
        Step::SweepPieces(1),
        Step::Change(0, 0, Change::ToggleFail),
        Step::Change(0, 0, Change::ToggleDrain),
    ]);
}

/// The primary of a service with `failback = "manual"` is gone and comes back: who gets the new flows is asserted for each.
#[test]
fn new_flows_stay_with_the_stand_by_until_the_operator_says_so() {
    let opens = || Step::Open(0, FLOWS);
    live(&[
        opens(),
        Step::Change(1, 0, Change::ToggleProbe),
        opens(),
        Step::Change(1, 0, Change::ToggleProbe),
        opens(),
        Step::Restart,
        opens(),
        Step::Change(1, 0, Change::Failback),
        opens(),
    ]);
}

/// A client that was sent to the backend from before the change keeps it while it is not silent for `affinity_timeout`.
#[test]
fn a_client_keeps_its_backend_when_its_slot_turns() {
    live(&[
        Step::Change(0, 1, Change::ToggleProbe),
        Step::Follow(0, InfoTrack::Changes, true),
        Step::Change(0, 1, Change::ToggleProbe),
        Step::Open(0, 165),
        Step::Pass(2918),
        Step::Wait(8501),
        Step::Send(0, 165),
        Step::Pass(2579),
        Step::Sweep,
        Step::Open(0, 7),
    ]);
}

/// What was recorded before `track` ceased to be `"always"` counts again when it is once more, if no sweep has come between.
#[test]
fn always_and_not_and_always_again() {
    live(&[
        Step::Follow(0, InfoTrack::Always, false),
        Step::Open(0, 1),
        Step::Follow(0, InfoTrack::Changes, false),
        Step::Follow(0, InfoTrack::Always, false),
    ]);
}

/// The records that a service with `track = "always"` leaves behind when it is not so any more are cleared before the change
/// after a failure, or the flows that the failure moved would go back to where the records say.
#[test]
fn flows_do_not_go_back_to_where_they_were_recorded_always() {
    live(&[
        Step::Follow(0, InfoTrack::Always, false),
        Step::Open(0, FLOWS),
        Step::Follow(0, InfoTrack::Changes, false),
        Step::Change(0, 0, Change::ToggleProbe),
        Step::Send(0, FLOWS),
        Step::Change(0, 0, Change::ToggleProbe),
        Step::Send(0, FLOWS),
    ]);
}

/// Of a service of both protocols that ceases to be QUIC's, the QUIC flows that are recorded in slots in transition count no
/// more: they go with every change.
#[test]
fn datagrams_that_are_not_recorded_any_more_are_no_flows() {
    live(&[
        Step::Change(2, 0, Change::ToggleListed),
        Step::Open(0, FLOWS),
        Step::Follow(2, InfoTrack::Changes, false),
        Step::Sweep,
    ]);
}

/// A client whose connection is older than the change and never silent is known when the slot turns: its next one goes there
/// as well.
#[test]
fn a_client_with_an_old_flow_keeps_its_backend_when_its_slot_turns() {
    live(&[
        Step::Follow(0, InfoTrack::Changes, true),
        Step::Open(0, FLOWS),
        Step::Change(0, 4, Change::ToggleListed),
        Step::Wait(9000),
        Step::Send(0, FLOWS),
        Step::Wait(8000),
        Step::Open(0, FLOWS),
    ]);
}

/// The records of datagrams that a service has ceased to record are cleared before it begins to again, or flows that have
/// moved meanwhile would go back to a backend that drains.
#[test]
fn datagrams_do_not_go_back_to_where_they_were_recorded() {
    live(&[
        Step::Open(0, FLOWS),
        Step::Follow(3, InfoTrack::Changes, false),
        Step::Change(3, 0, Change::ToggleDrain),
        Step::Send(0, FLOWS),
        Step::Follow(3, InfoTrack::Always, false),
        Step::Send(0, FLOWS),
    ]);
}
