//! How a service's flows and clients are followed through its changes: `track` and `affinity_timeout`, and what they mean for
//! slots and records. Pure.

use std::time::Duration;

use lb_common::{
    abi::{InfoTrack, PROTO_TCP_UDP, ServiceInfo},
    flow::{FlowState, Phase},
    pick::{Backend, Slot},
    service::{ServiceValue, Track as Recorded},
    wire::PROTO_UDP,
};

use super::{
    actual::ActualService,
    retarget::Track,
    silence::{ENDED_KEPT, OPENING_SILENCE, is_live, ticks},
};

/// A slot in transition rests at least so long, that a packet which read it before its last change has left the program.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// `track` and `affinity_timeout` of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Following {
    /// Which flows are recorded.
    pub track: InfoTrack,
    /// For how long a silent client keeps its backend; `None`: clients are not recorded.
    pub affinity_timeout: Option<Duration>,
}

impl Following {
    /// What a pinned service says. The value in the lookup is what packets go by; the rest stands beside it for people.
    #[must_use]
    pub fn pinned(value: ServiceValue, info: &ServiceInfo) -> Self {
        let never = InfoTrack::from_number(info.track) == Some(InfoTrack::Never);
        Self {
            track: match value.track() {
                Recorded::Changes if never => InfoTrack::Never,
                Recorded::Changes => InfoTrack::Changes,
                Recorded::Always => InfoTrack::Always,
                Recorded::Quic => InfoTrack::Quic,
            },
            affinity_timeout: value
                .clients()
                .then(|| Duration::from_millis(u64::from(info.affinity_timeout_ms))),
        }
    }

    /// The same service's value in the lookup.
    #[must_use]
    pub fn marked(self, value: ServiceValue) -> ServiceValue {
        value
            .tracking(match self.track {
                InfoTrack::Changes | InfoTrack::Never => Recorded::Changes,
                InfoTrack::Always => Recorded::Always,
                InfoTrack::Quic => Recorded::Quic,
            })
            .recording_clients(self.affinity_timeout.is_some())
    }

    /// Whether a change of a service of this protocol, or of both, takes its slots into transition.
    #[must_use]
    pub fn changes(self, protocol: u8) -> Track {
        match self.track {
            InfoTrack::Never => Track::Nothing,
            InfoTrack::Always | InfoTrack::Quic => Track::Flows,
            InfoTrack::Changes if protocol != PROTO_UDP || self.affinity_timeout.is_some() => {
                Track::Flows
            }
            InfoTrack::Changes => Track::Nothing,
        }
    }

    /// Whether flows of UDP, or else those of TCP, are recorded in slots in transition, and go by their records.
    #[must_use]
    pub const fn records(self, udp: bool) -> bool {
        match self.track {
            InfoTrack::Always | InfoTrack::Quic => true,
            InfoTrack::Changes | InfoTrack::Never => !udp,
        }
    }

    /// Whether flows without a record may be older than a change, and belong to the backend before it.
    fn has_older_flows(self, protocol: u8) -> bool {
        match self.track {
            InfoTrack::Never => false,
            InfoTrack::Quic => true,
            InfoTrack::Always | InfoTrack::Changes => protocol != PROTO_UDP,
        }
    }
}

/// What the sweep makes of a record in a slot that its service's records are needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worth {
    /// A flow that has not ended, or a client that has not been silent for too long.
    pub live: bool,
    /// It must not be cleared yet.
    pub kept: bool,
}

impl ActualService {
    /// Whether records of flows are needed in settled slots as well.
    #[must_use]
    pub fn records_always(&self) -> bool {
        self.following.track == InfoTrack::Always
    }

    /// Whether records of this service tell nothing any more once it is as `next`: what they name goes elsewhere from then on,
    /// and they would be believed if it were as before again.
    #[must_use]
    pub fn disowns(&self, next: &Self) -> bool {
        let (before, after) = (self.following, next.following);
        let carries = |udp| match self.entries.protocol {
            PROTO_TCP_UDP => true,
            protocol => udp == (protocol == PROTO_UDP),
        };
        let ceases = |udp| carries(udp) && before.records(udp) && !after.records(udp);
        self.track == Track::Flows && next.track == Track::Nothing
            || ceases(false)
            || ceases(true)
            || before.affinity_timeout.is_some() && after.affinity_timeout.is_none()
    }

    /// What a record is worth at the coarse time `now`; `client` if it is of a client, not of a flow.
    #[must_use]
    pub fn worth(&self, state: FlowState, client: bool, now: u16) -> Worth {
        let silent = state.silence(now);
        if client {
            let timeout = self.following.affinity_timeout.unwrap_or_default();
            let live = silent < ticks(timeout);
            return Worth { live, kept: live };
        }
        let live = is_live(state, now, self.flow_idle);
        let stays = match state.phase() {
            Phase::Open => self.flow_idle,
            Phase::Opening => OPENING_SILENCE.min(self.flow_idle),
            Phase::Closing | Phase::Ended => ENDED_KEPT.min(self.flow_idle),
        };
        Worth {
            live,
            kept: live || silent < ticks(stays),
        }
    }

    /// For how long after its last change a slot stays in transition at least. `previous` is the entry of its previous backend.
    ///
    /// A flow that has been silent all the while belongs to the previous backend, and so does a client, unless that backend
    /// is closed to new flows. Where both sides are the same, nothing depends on what is not recorded.
    #[must_use]
    pub fn rests(&self, slot: Slot, previous: Option<Backend>) -> Duration {
        let clients = self.following.affinity_timeout;
        if clients.is_some() && slot.current() == slot.previous() {
            return ON_ITS_WAY;
        }
        let flows = if self.following.has_older_flows(self.entries.protocol) {
            self.flow_idle
        } else {
            ON_ITS_WAY
        };
        let closed =
            previous.is_none_or(|previous| previous.is_closed_to_new() || previous.failed());
        match clients {
            Some(timeout) if !closed => flows.max(timeout),
            _ => flows,
        }
    }

    /// Whether what is recorded on `backend` keeps a slot from settling. A client on a backend that is closed to new flows
    /// opens its next one elsewhere, whatever its record says.
    #[must_use]
    pub fn waits_for(&self, backend: Backend, client: bool) -> bool {
        !(backend.failed() || client && backend.is_closed_to_new())
    }

    /// The slot of which nothing unrecorded can belong to the previous backend any more, though something recorded may. Where
    /// clients are recorded the previous one must go then: a client without a record would be taken for an old one for as
    /// long as others keep the slot in transition, and be sent there.
    #[must_use]
    pub fn turned(&self, slot: Slot) -> Option<Slot> {
        let turns = self.following.affinity_timeout.is_some()
            && slot.current() != 0
            && slot.current() != slot.previous();
        turns.then(|| Slot::new(slot.current(), slot.current()))
    }
}

#[cfg(test)]
mod tests {
    use lb_common::{
        abi::text_field,
        flow::{Owner, TICK_NS},
        pick::Affinity,
        wire::PROTO_TCP,
    };

    use super::*;
    use crate::control::samples::{Bench, backend, service};

    const TIMEOUT: Duration = Duration::from_secs(600);

    fn following(track: InfoTrack, affinity_timeout: Option<Duration>) -> Following {
        Following {
            track,
            affinity_timeout,
        }
    }

    #[test]
    fn what_is_pinned_comes_back() {
        let plain = ServiceValue::new(3, 0, 8, Affinity::CLIENT_IPV4);
        for track in InfoTrack::ALL {
            for timeout in [None, Some(TIMEOUT)] {
                let before = following(track, timeout);
                let info = ServiceInfo {
                    name: text_field("web"),
                    track: track as u8,
                    affinity_timeout_ms: timeout.map_or(0, |t| t.as_millis() as u32),
                    ..ServiceInfo::default()
                };
                assert_eq!(Following::pinned(before.marked(plain), &info), before);
            }
        }
    }

    #[test]
    fn which_changes_are_at_once() {
        let is = |track, protocol, timeout, expected| {
            assert_eq!(following(track, timeout).changes(protocol), expected);
        };
        is(InfoTrack::Changes, PROTO_TCP, None, Track::Flows);
        is(InfoTrack::Changes, PROTO_UDP, None, Track::Nothing);
        is(InfoTrack::Changes, PROTO_TCP_UDP, None, Track::Flows);
        is(InfoTrack::Changes, PROTO_UDP, Some(TIMEOUT), Track::Flows);
        is(InfoTrack::Never, PROTO_TCP, None, Track::Nothing);
        is(InfoTrack::Always, PROTO_UDP, None, Track::Flows);
        is(InfoTrack::Quic, PROTO_UDP, None, Track::Flows);
    }

    fn bench(following: Following) -> ActualService {
        let mut bench = Bench::new();
        let mut web = service("web", 10, &[backend("a")]);
        web.following = following;
        bench.bring(&[web]);
        bench.actual().services()[&0].clone()
    }

    #[test]
    fn how_long_a_slot_rests() {
        let web = bench(following(InfoTrack::Changes, Some(TIMEOUT)));
        let open = Backend::new(1, 0, false);
        let idle = web.flow_idle;
        assert_eq!(web.rests(Slot::new(2, 1), Some(open)), TIMEOUT);
        let drains = open.closed_to_new(true);
        assert_eq!(web.rests(Slot::new(2, 1), Some(drains)), idle);
        assert_eq!(web.rests(Slot::new(2, 2), Some(open)), ON_ITS_WAY);
        let without = bench(Following::default());
        assert_eq!(without.rests(Slot::new(2, 1), Some(open)), idle);
        assert_eq!(without.rests(Slot::new(2, 2), Some(open)), idle);
        assert_eq!(web.turned(Slot::new(2, 1)), Some(Slot::new(2, 2)));
        assert_eq!(web.turned(Slot::new(2, 2)), None);
        assert_eq!(web.turned(Slot::new(0, 1)), None);
        assert_eq!(without.turned(Slot::new(2, 1)), None);
    }

    #[test]
    fn what_records_are_worth() {
        let web = bench(following(InfoTrack::Changes, Some(TIMEOUT)));
        let owner = Owner {
            service: 0,
            udp: false,
        };
        let worth = |client, phase, silence: Duration| {
            let now = 40_000;
            let silent = u16::try_from(silence.as_nanos() / u128::from(TICK_NS)).unwrap();
            let worth = web.worth(
                FlowState::new(1, owner, now - silent, 0, phase),
                client,
                now,
            );
            (worth.live, worth.kept)
        };
        let s = Duration::from_secs;
        // `flow_idle` is 10 s.
        assert_eq!(worth(false, Phase::Open, s(9)), (true, true));
        assert_eq!(worth(false, Phase::Open, s(12)), (false, false));
        assert_eq!(worth(false, Phase::Ended, s(0)), (false, true));
        assert_eq!(worth(true, Phase::Open, s(599)), (true, true));
        assert_eq!(worth(true, Phase::Open, s(602)), (false, false));
        assert!(web.waits_for(Backend::new(1, 0, false), true));
        let drains = Backend::new(1, 0, false).closed_to_new(true);
        assert!(!web.waits_for(drains, true) && web.waits_for(drains, false));
        assert!(!web.waits_for(Backend::new(1, 0, true), false));
    }
}
