//! One case: what is in the maps, what comes in, what is expected.

use anyhow::ensure;
use lb_common::{
    abi::Counter,
    tables::Event,
    verdict::{Action, Verdict},
};

use super::{
    both::Seen,
    fixture::{Fixture, Flow},
    frame::Frame,
    kernel,
    network::{DIRECTOR_MAC, EGRESS_MAC, backend_mac},
};

/// A case.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it says about the data path: a sentence of the specification.
    pub what: String,
    /// What is in the maps.
    pub given: Fixture,
    /// What comes in.
    pub frame: Frame,
    /// The verdict.
    pub verdict: Verdict,
    /// The bytes afterwards.
    pub after: Frame,
    /// The backend it is sent to.
    pub backend: Option<u16>,
    /// The recorded flows afterwards, in any order.
    pub flows: Vec<Flow>,
    /// What the flow table had to do.
    pub events: [u64; Event::COUNT],
}

/// The beginning of a case, whose end says what is expected.
#[derive(Clone, Debug)]
pub struct Given {
    what: String,
    given: Fixture,
    frame: Frame,
}

/// Begins a case.
#[must_use]
pub fn case(what: impl Into<String>, given: &Fixture, frame: Frame) -> Given {
    Given {
        what: what.into(),
        given: given.clone(),
        frame,
    }
}

impl Given {
    /// The packet ends here: passed or dropped, its bytes as they came.
    #[must_use]
    pub fn ends(self, verdict: Verdict) -> Case {
        let after = self.frame.clone();
        self.expect(verdict, after, None)
    }

    /// Sent to a backend out of the interface it came in on.
    #[must_use]
    pub fn forwarded(self, backend: u16) -> Case {
        let after = self.frame.clone().sent(backend_mac(backend), DIRECTOR_MAC);
        self.expect(Verdict::Forwarded, after, Some(backend))
    }

    /// Sent to a backend out of the other interface.
    #[must_use]
    pub fn redirected(self, backend: u16) -> Case {
        let after = self.frame.clone().sent(backend_mac(backend), EGRESS_MAC);
        self.expect(Verdict::Redirected, after, Some(backend))
    }

    /// Answered with this frame.
    #[must_use]
    pub fn answered(self, answer: Frame) -> Case {
        self.expect(Verdict::ArpReplied, answer, None)
    }

    /// A ping, answered with this frame.
    #[must_use]
    pub fn echoed(self, answer: Frame) -> Case {
        self.expect(Verdict::EchoReplied, answer, None)
    }

    fn expect(self, verdict: Verdict, after: Frame, backend: Option<u16>) -> Case {
        Case {
            flows: self.given.flows.clone(),
            what: self.what,
            given: self.given,
            frame: self.frame,
            verdict,
            after,
            backend,
            events: [0; Event::COUNT],
        }
    }
}

impl Case {
    /// Records this flow: anew, or in place of what was known of it.
    #[must_use]
    pub fn records(mut self, flow: Flow) -> Self {
        match self.flows.iter_mut().find(|known| known.key == flow.key) {
            Some(known) => *known = flow,
            None => {
                self.flows.push(flow);
                self.events[Event::FlowRecorded as usize] += 1;
            }
        }
        self
    }

    /// Forgets this flow, which had not ended.
    #[must_use]
    pub fn forgets(mut self, flow: &Flow) -> Self {
        self.flows.retain(|known| known != flow);
        self.events[Event::FlowForgotten as usize] += 1;
        self
    }

    /// Loses this flow, which had ended: nothing is counted.
    #[must_use]
    pub fn replaces(mut self, flow: &Flow) -> Self {
        self.flows.retain(|known| known != flow);
        self
    }

    /// Whether the kernel runs a program over so short a frame at all. No driver hands one in either.
    #[must_use]
    pub fn fits_kernel(&self) -> bool {
        self.frame.0.len() >= kernel::SHORTEST
    }

    /// Compares what was seen with what is expected.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&self, seen: &Seen) -> anyhow::Result<()> {
        ensure!(
            seen.outcome.verdict == self.verdict,
            "the verdict is {:?}, expected {:?}",
            seen.outcome.verdict,
            self.verdict
        );
        ensure!(
            seen.frame == self.after,
            "the bytes afterwards are {:?}\nexpected {:?}",
            seen.frame,
            self.after
        );
        let mut verdicts = [0; Verdict::COUNT];
        // Counted by the backend and by the verdict: what is left of the backends' counters was forwarded.
        verdicts[Verdict::Redirected as usize] = u64::from(self.verdict == Verdict::Redirected);
        let mut backends = Vec::new();
        match self.backend {
            Some(number) => {
                let bytes = self.frame.0.len() as u64;
                backends.push((number, Counter { packets: 1, bytes }));
            }
            None => verdicts[self.verdict as usize] = 1,
        }
        ensure!(
            (&seen.verdicts, &seen.backends) == (&verdicts, &backends),
            "counted {:?} and {:?}, expected {verdicts:?} and {backends:?}",
            seen.verdicts,
            seen.backends
        );
        let mut flows: Vec<Flow> = seen.flows.iter().flatten().copied().collect();
        let mut expected = self.flows.clone();
        flows.sort_unstable();
        expected.sort_unstable();
        ensure!(
            flows == expected,
            "recorded flows are {flows:?}, expected {expected:?}"
        );
        ensure!(
            seen.events == self.events,
            "events are {:?}, expected {:?}",
            seen.events,
            self.events
        );
        check_promises(&self.frame, seen)
    }
}

/// What holds for every packet there can be: it is counted once; one that is passed or dropped stays as it is; one that is
/// forwarded differs in the two Ethernet addresses alone; an answer is as long as its question.
///
/// # Errors
/// What does not hold.
pub fn check_promises(frame: &Frame, seen: &Seen) -> anyhow::Result<()> {
    let verdict = seen.outcome.verdict;
    let by_verdict =
        seen.verdicts.iter().sum::<u64>() - seen.verdicts[Verdict::Redirected as usize];
    let by_backend: u64 = seen
        .backends
        .iter()
        .map(|(_, counter)| counter.packets)
        .sum();
    let reached = u64::from(verdict.reached_backend());
    ensure!(
        (by_verdict, by_backend) == (1 - reached, reached),
        "{verdict:?} is counted {by_verdict} times by verdict and {by_backend} times by backend"
    );
    ensure!(
        seen.frame.0.len() == frame.0.len(),
        "{} bytes came in, {} went out",
        frame.0.len(),
        seen.frame.0.len()
    );
    match verdict.action() {
        Action::Pass | Action::Drop => {
            ensure!(seen.frame == *frame, "{verdict:?} changed the frame");
        }
        Action::Transmit | Action::Redirect if verdict.reached_backend() => ensure!(
            seen.frame.0[12..] == frame.0[12..],
            "{verdict:?} changed more than the two Ethernet addresses"
        ),
        Action::Transmit | Action::Redirect => {}
    }
    Ok(())
}
