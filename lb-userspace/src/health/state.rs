//! Up or down: what a sequence of probe results says about one backend.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::{ProbeId, ProbeResult};

/// Whether a backend's probes succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HealthState {
    /// It may get clients.
    Up,
    /// It must not.
    Down,
}

impl fmt::Display for HealthState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
        })
    }
}

/// How many results in a row it takes to change the state. Zero counts as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Successes until up.
    pub rise: u32,
    /// Failures until down.
    pub fall: u32,
}

/// A backend went up or down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// Which backend.
    pub backend: ProbeId,
    /// What it is now.
    pub to: HealthState,
    /// Why, for the operator.
    pub reason: String,
    /// When the deciding result came.
    pub at: SystemTime,
}

/// The health of one backend.
///
/// A new backend is `down`, "not probed yet", and its **first** result decides alone: a success
/// brings it up, whatever `rise` says, so that a director that was just started serves after one
/// probe and not after `rise` intervals. From then on `rise` and `fall` count, as they do from the
/// beginning for a state taken over from the daemon before ([`Health::adopted`]).
///
/// Trouble of the director itself ([`ProbeFailure::Local`](super::ProbeFailure::Local)) changes
/// nothing and counts in neither direction: a director that has run out of file descriptors must
/// not declare every backend dead. It is shown by [`Health::trouble`].
#[derive(Debug, Clone)]
pub struct Health {
    backend: ProbeId,
    thresholds: Thresholds,
    state: HealthState,
    reason: String,
    since: SystemTime,
    /// Results in a row that speak against `state`.
    streak: u32,
    probed: bool,
    /// Failures since nothing was known of it; all there can be where it was up.
    failures: u32,
    trouble: Option<String>,
    round_trip: Option<Duration>,
}

impl Health {
    /// A backend nothing is known about.
    #[must_use]
    pub fn new(backend: ProbeId, thresholds: Thresholds, now: SystemTime) -> Self {
        Self {
            backend,
            thresholds,
            state: HealthState::Down,
            reason: "not probed yet".to_owned(),
            since: now,
            streak: 0,
            probed: false,
            failures: 0,
            trouble: None,
            round_trip: None,
        }
    }

    /// A backend whose state an earlier daemon knew; its first result is one among others.
    #[must_use]
    pub fn adopted(
        backend: ProbeId,
        thresholds: Thresholds,
        state: HealthState,
        reason: String,
        since: SystemTime,
    ) -> Self {
        Self {
            state,
            reason,
            since,
            probed: true,
            ..Self::new(backend, thresholds, since)
        }
    }

    /// Nothing is known any more; the next result decides alone.
    pub fn forget(&mut self, now: SystemTime) {
        *self = Self::new(self.backend, self.thresholds, now);
    }

    /// Takes in the result of a probe; gives the change, if this result decided one.
    pub fn observe(&mut self, result: &ProbeResult, now: SystemTime) -> Option<Transition> {
        let failure = match result {
            Ok(round_trip) => {
                self.round_trip = Some(*round_trip);
                return self.succeeded(now);
            }
            Err(failure) => failure,
        };
        let text = failure.to_string();
        if failure.is_local() {
            self.trouble = Some(text);
            return None;
        }
        self.probed = true;
        match self.state {
            HealthState::Down => {
                self.streak = 0;
                self.failures = self.failures.saturating_add(1);
                self.trouble = None;
                self.reason = text;
                None
            }
            HealthState::Up => {
                self.streak += 1;
                if failure.is_certain() || self.streak >= self.thresholds.fall {
                    Some(self.change(HealthState::Down, text, now))
                } else {
                    self.trouble = Some(text);
                    None
                }
            }
        }
    }

    fn succeeded(&mut self, now: SystemTime) -> Option<Transition> {
        self.trouble = None;
        let first = !std::mem::replace(&mut self.probed, true);
        match self.state {
            HealthState::Up => {
                self.streak = 0;
                None
            }
            HealthState::Down => {
                self.streak += 1;
                if first {
                    Some(self.change(HealthState::Up, "the first probe succeeded".to_owned(), now))
                } else if self.streak >= self.thresholds.rise {
                    let reason = match self.streak {
                        1 => "a probe succeeded".to_owned(),
                        n => format!("{n} probes in a row succeeded"),
                    };
                    Some(self.change(HealthState::Up, reason, now))
                } else {
                    None
                }
            }
        }
    }

    fn change(&mut self, to: HealthState, reason: String, now: SystemTime) -> Transition {
        self.state = to;
        self.streak = 0;
        self.failures = u32::MAX;
        self.trouble = None;
        self.since = now;
        self.reason.clone_from(&reason);
        Transition {
            backend: self.backend,
            to,
            reason,
            at: now,
        }
    }

    /// Whether a probe has ended since the backend is known, or an earlier daemon knew its state.
    #[must_use]
    pub fn is_probed(&self) -> bool {
        self.probed || self.state == HealthState::Up
    }

    /// Whether it is down for more than its first failures, of which there were fewer than `fall`: the director's own link may
    /// not have been up.
    #[must_use]
    pub fn is_found_down(&self) -> bool {
        self.state == HealthState::Down && self.failures >= self.thresholds.fall
    }

    /// New thresholds from a reloaded configuration; they count from the next result on.
    pub fn set_thresholds(&mut self, thresholds: Thresholds) {
        self.thresholds = thresholds;
    }

    /// Up or down.
    #[must_use]
    pub fn state(&self) -> HealthState {
        self.state
    }

    /// Why it is in this state: while down, what the latest failure says.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Since when it is in this state.
    #[must_use]
    pub fn since(&self) -> SystemTime {
        self.since
    }

    /// How many results in a row speak against the state by now.
    #[must_use]
    pub fn streak(&self) -> u32 {
        self.streak
    }

    /// What went wrong lately without having changed the state: failures of a backend that is
    /// still up, or the director's own trouble.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// How long the latest successful probe took.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::ProbeFailure;

    const ID: ProbeId = ProbeId(7);
    const THRESHOLDS: Thresholds = Thresholds { rise: 2, fall: 3 };

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// `+` success, `-` refused, `m` no MAC, `l` trouble of the director.
    fn result(sign: char) -> ProbeResult {
        match sign {
            '+' => Ok(Duration::from_micros(300)),
            '-' => Err(ProbeFailure::Refused {
                target: "10.1.0.100:80".parse().unwrap(),
            }),
            'm' => Err(ProbeFailure::NoMac("no ARP answer".into())),
            'l' => Err(ProbeFailure::local("socket", &"too many open files")),
            other => panic!("no such result: {other}"),
        }
    }

    /// The state after each result: `U` and `D` where it changed, `u` and `d` where it stayed.
    fn play(health: &mut Health, results: &str) -> String {
        results
            .chars()
            .enumerate()
            .map(|(second, sign)| {
                let now = at(second as u64 + 1);
                let change = health.observe(&result(sign), now);
                if let Some(change) = &change {
                    assert_eq!(change.to, health.state());
                    assert_eq!(change.reason, health.reason());
                    assert_eq!(change.backend, ID);
                    assert_eq!((change.at, health.since()), (now, now));
                    assert_eq!(health.streak(), 0);
                }
                match (health.state(), change.is_some()) {
                    (HealthState::Up, true) => 'U',
                    (HealthState::Up, false) => 'u',
                    (HealthState::Down, true) => 'D',
                    (HealthState::Down, false) => 'd',
                }
            })
            .collect()
    }

    #[test]
    fn sequences_of_a_new_backend() {
        let cases = [
            ("the first success brings it up at once", "+", "U"),
            (
                "the first failure keeps it down, then rise counts",
                "-++",
                "ddU",
            ),
            ("a failure between starts the rise anew", "-+-++", "ddddU"),
            ("fall failures in a row", "+---", "UuuD"),
            (
                "a success between starts the fall anew",
                "+--+---",
                "UuuuuuD",
            ),
            ("down and back", "+---++", "UuuDdU"),
            ("no MAC is certain at once", "+m++", "UDdU"),
            ("the director's trouble is no first result", "l+", "dU"),
            ("the director's trouble takes nobody down", "+llll", "Uuuuu"),
            ("nor does it interrupt a fall", "+-l--", "UuuuD"),
            ("nor a rise", "-+l+", "dddU"),
        ];
        for (what, results, states) in cases {
            let mut health = Health::new(ID, THRESHOLDS, at(0));
            assert_eq!(play(&mut health, results), states, "{what}");
        }
    }

    #[test]
    fn sequences_of_an_adopted_backend() {
        let cases = [
            (
                HealthState::Up,
                "a first failure is one of fall",
                "---",
                "uuD",
            ),
            (
                HealthState::Down,
                "a first success is one of rise",
                "++",
                "dU",
            ),
        ];
        for (state, what, results, states) in cases {
            let mut health = Health::adopted(ID, THRESHOLDS, state, "earlier".into(), at(0));
            assert_eq!((health.reason(), health.since()), ("earlier", at(0)));
            assert_eq!(play(&mut health, results), states, "{what}");
        }
    }

    #[test]
    fn thresholds_of_one_and_zero_change_at_once() {
        for n in [0, 1] {
            let mut health = Health::new(ID, Thresholds { rise: n, fall: n }, at(0));
            assert_eq!(play(&mut health, "-+-+"), "dUDU", "rise and fall {n}");
        }
    }

    #[test]
    fn reasons_follow_the_results() {
        let mut health = Health::new(ID, THRESHOLDS, at(0));
        assert_eq!(health.reason(), "not probed yet");
        play(&mut health, "l");
        assert_eq!(health.reason(), "not probed yet");
        assert_eq!(
            health.trouble(),
            Some("not probed, trouble on this director: socket: too many open files")
        );
        play(&mut health, "+");
        assert_eq!(
            (health.reason(), health.trouble()),
            ("the first probe succeeded", None)
        );
        assert_eq!(health.round_trip(), Some(Duration::from_micros(300)));
        play(&mut health, "-");
        assert_eq!(
            health.trouble(),
            Some("connection refused on 10.1.0.100:80")
        );
        assert_eq!(health.streak(), 1);
        play(&mut health, "--");
        assert_eq!(health.reason(), "connection refused on 10.1.0.100:80");
        let since = health.since();
        play(&mut health, "m");
        assert_eq!(
            health.reason(),
            "no MAC address: no ARP answer",
            "the latest reason shows"
        );
        assert_eq!(health.since(), since, "but it is not down anew");
        play(&mut health, "++");
        assert_eq!(health.reason(), "2 probes in a row succeeded");
    }

    #[test]
    fn it_is_found_down_by_as_many_failures_as_it_takes_to_fall() {
        let mut health = Health::new(ID, THRESHOLDS, at(0));
        play(&mut health, "-+-l");
        assert!(health.is_probed() && !health.is_found_down());
        play(&mut health, "-");
        assert!(health.is_found_down());
        play(&mut health, "++");
        assert!(!health.is_found_down());
        play(&mut health, "---");
        assert!(health.is_found_down(), "it was up");
        health.forget(at(9));
        assert!(!health.is_probed() && !health.is_found_down());
        assert_eq!(play(&mut health, "+"), "U");
    }

    #[test]
    fn new_thresholds_count_from_the_next_result() {
        let mut health = Health::new(ID, THRESHOLDS, at(0));
        play(&mut health, "+-");
        health.set_thresholds(Thresholds { rise: 1, fall: 2 });
        assert_eq!(play(&mut health, "-+"), "DU");
    }
}
