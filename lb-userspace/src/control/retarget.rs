//! What becomes of one slot when its target changes: the rules of design.md section 3.

use lb_common::pick::Slot;

/// Whether a change may break nothing, or is wanted at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Track {
    /// Flows stay where they are: the slot goes into transition.
    Flows,
    /// The protocol has no opening packet: every flow goes to the new pick at once.
    Nothing,
}

/// The slot that has `target` (0: nobody takes new flows) as its current backend from now on.
///
/// - A settled slot whose backend lives keeps it as previous; one whose backend failed moves at once.
/// - A slot in transition keeps its previous backend, however many changes overlap.
/// - A backend that failed drops out of both sides: where it was previous, previous = current, and the slot stays in
///   transition, because flows that opened meanwhile are found only in the flow table. While nobody takes new flows the
///   failed one stays as previous for the same reason: a slot without a previous counts as settled, and the flows recorded
///   on backends that still work would be lost with it.
#[must_use]
pub fn retarget(slot: Slot, target: u16, track: Track, failed: impl Fn(u16) -> bool) -> Slot {
    let (current, previous) = (slot.current(), slot.previous());
    if track == Track::Nothing {
        return Slot::settled(target);
    }
    if previous == 0 {
        return if current == target || current == 0 || failed(current) {
            Slot::settled(target)
        } else {
            Slot::new(target, current)
        };
    }
    if !failed(previous) {
        return Slot::new(target, previous);
    }
    // Flows older than the first change are lost with their backend; those recorded since are not, so the slot stays in
    // transition. Where nobody takes new flows, nobody takes the lost ones either: the failed backend stays named, which the
    // data path sends nothing to.
    Slot::new(target, if target == 0 { previous } else { target })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(before: (u16, u16), target: u16, failed: &[u16], after: (u16, u16)) {
        let got = retarget(Slot::new(before.0, before.1), target, Track::Flows, |b| {
            failed.contains(&b)
        });
        assert_eq!(
            (got.current(), got.previous()),
            after,
            "{before:?} -> {target}, failed {failed:?}"
        );
    }

    #[test]
    fn planned_changes() {
        check((1, 0), 1, &[], (1, 0));
        check((1, 0), 2, &[], (2, 1));
        check((2, 1), 3, &[], (3, 1));
        // A drain taken back: still in transition, both sides the same.
        check((2, 1), 1, &[], (1, 1));
        check((1, 1), 2, &[], (2, 1));
        // The first backend ever.
        check((0, 0), 1, &[], (1, 0));
        // The last one drained by force: old flows stay, new ones go nowhere.
        check((1, 0), 0, &[], (0, 1));
        check((0, 1), 2, &[], (2, 1));
    }

    #[test]
    fn failures() {
        check((1, 0), 2, &[1], (2, 0));
        check((1, 0), 0, &[1], (0, 0));
        // The current one fails: the previous one's flows stay.
        check((2, 1), 3, &[2], (3, 1));
        // The previous one fails: what opened since is still looked up.
        check((2, 1), 2, &[1], (2, 2));
        check((2, 1), 3, &[1, 2], (3, 3));
        check((1, 1), 2, &[1], (2, 2));
        // Nobody is left: flows recorded on a third one (drained by force) are still found.
        check((2, 1), 0, &[1], (0, 1));
        check((2, 1), 0, &[1, 2], (0, 1));
        check((0, 1), 2, &[1], (2, 2));
    }

    #[test]
    fn without_tracking_every_change_is_at_once() {
        assert_eq!(
            retarget(Slot::new(1, 0), 2, Track::Nothing, |_| false),
            Slot::settled(2)
        );
    }

    /// Whatever happens: the target is current, a backend that has failed is previous only while nobody takes new flows,
    /// and a slot in transition never settles by a change.
    #[test]
    fn what_holds_for_every_change() {
        for current in 0..4 {
            for previous in 0..4 {
                for target in 0..4u16 {
                    for mask in 0u16..16 {
                        let failed = |b: u16| b != target && mask >> b & 1 == 1;
                        let before = Slot::new(current, previous);
                        let slot = retarget(before, target, Track::Flows, failed);
                        assert_eq!(slot.current(), target);
                        if slot.in_transition() && target != 0 {
                            assert!(!failed(slot.previous()), "{before:?} {target} {mask:b}");
                        }
                        assert!(slot.in_transition() || !before.in_transition());
                    }
                }
            }
        }
    }
}
