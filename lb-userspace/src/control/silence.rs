//! How long a flow may be silent until it counts as ended, and how long its record stays. Pure.

use std::time::Duration;

use lb_common::flow::{FlowState, LONGEST_SILENCE, Phase, TICK_NS};

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
pub(super) fn ticks(duration: Duration) -> u16 {
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

#[cfg(test)]
mod tests {
    use lb_common::flow::Owner;

    use super::*;
    use crate::control::samples::IDLE;

    fn state(seen: u16, phase: Phase) -> FlowState {
        let owner = Owner {
            service: 1,
            udp: false,
        };
        FlowState::new(1, owner, seen, 0, phase)
    }

    #[test]
    fn ticks_are_rounded_up_and_bounded() {
        assert_eq!(ticks(Duration::ZERO), 1);
        assert_eq!(ticks(Duration::from_nanos(1)), 2);
        assert_eq!(ticks(Duration::from_nanos(TICK_NS)), 2);
        assert_eq!(ticks(Duration::from_nanos(TICK_NS + 1)), 3);
        assert_eq!(ticks(Duration::from_secs(1 << 30)), LONGEST_SILENCE);
    }

    #[test]
    fn live_closing_ended_and_the_wrap_of_the_time() {
        const LONG: Duration = Duration::from_secs(600);
        // Phase, flow_idle, silence in ticks, live? Ten seconds are 19 ticks, rounded up, and one more; a minute is 113.
        let cases = [
            (Phase::Open, IDLE, 0, true),
            (Phase::Open, IDLE, 19, true),
            (Phase::Open, IDLE, 20, false),
            (Phase::Open, IDLE, LONGEST_SILENCE, false),
            // Its last packet came after the sweep had looked at the clock.
            (Phase::Open, IDLE, u16::MAX, true),
            (Phase::Opening, IDLE, u16::MAX, true),
            (Phase::Closing, IDLE, u16::MAX - 1, true),
            (Phase::Open, LONG, 113, true),
            (Phase::Closing, LONG, 112, true),
            (Phase::Closing, LONG, 113, false),
            (Phase::Opening, LONG, 140, true),
            (Phase::Opening, LONG, 141, false),
            (Phase::Opening, IDLE, 20, false),
            (Phase::Closing, IDLE, 19, true),
            (Phase::Closing, IDLE, 20, false),
            (Phase::Ended, LONG, 0, false),
        ];
        for (phase, idle, silence, live) in cases {
            for now in [0u16, 5, 100, 30_000, u16::MAX] {
                let state = state(now.wrapping_sub(silence), phase);
                assert_eq!(
                    is_live(state, now, idle),
                    live,
                    "{phase:?}, silent for {silence} at {now}"
                );
            }
        }
        let short = Duration::from_secs(1);
        assert!(
            !is_live(state(0, Phase::Closing), 3, short),
            "never longer than flow_idle"
        );
    }
}
