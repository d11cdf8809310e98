//! One case: what is in the maps, what comes in, what is expected.

use anyhow::ensure;
use lb_common::{
    abi::Counter,
    tables::Event,
    verdict::{Action, Verdict},
};

use super::{
    both::Seen,
    fixture::{Fixture, Flow, Fragments},
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
    /// The recorded fragments afterwards, in any order: what each record is found by, and its backend.
    pub fragments: Vec<(u64, u16)>,
    /// The backends that are fenced afterwards.
    pub fenced: Vec<u16>,
    /// What the flow table had to do.
    pub events: [u64; Event::COUNT],
    /// Whether the frame can't be made longer.
    pub without_room: bool,
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

    /// A neighbour solicitation, answered with this frame.
    #[must_use]
    pub fn advertised(self, answer: Frame) -> Case {
        self.expect(Verdict::NeighbourReplied, answer, None)
    }

    /// A question of a node, answered with this frame.
    #[must_use]
    pub fn told(self, answer: Frame) -> Case {
        self.expect(Verdict::PresenceReplied, answer, None)
    }

    /// Sent to a backend out of the interface it came in on, with other tags: `after` is the frame under its old addresses.
    #[must_use]
    pub fn forwarded_as(self, backend: u16, after: Frame) -> Case {
        let after = after.sent(backend_mac(backend), DIRECTOR_MAC);
        self.expect(Verdict::Forwarded, after, Some(backend))
    }

    /// Likewise out of the other interface.
    #[must_use]
    pub fn redirected_as(self, backend: u16, after: Frame) -> Case {
        let after = after.sent(backend_mac(backend), EGRESS_MAC);
        self.expect(Verdict::Redirected, after, Some(backend))
    }

    /// Left to this host's own stack, addressed to this interface.
    #[must_use]
    pub fn local(self, backend: u16) -> Case {
        let after = self.frame.clone().with(0, &DIRECTOR_MAC);
        self.expect(Verdict::Local, after, Some(backend))
    }

    /// Dropped where the frame can't be made longer; bytes as they came.
    #[must_use]
    pub fn finds_no_room(self) -> Case {
        Case {
            without_room: true,
            ..self.ends(Verdict::NoRoom)
        }
    }

    fn expect(self, verdict: Verdict, after: Frame, backend: Option<u16>) -> Case {
        Case {
            flows: self.given.flows.clone(),
            fragments: self.given.fragments.iter().map(Fragments::record).collect(),
            fenced: self
                .given
                .fences
                .iter()
                .filter(|(_, token, by)| token == by && *token != 0)
                .map(|(number, ..)| *number)
                .collect(),
            without_room: false,
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

    /// Records where the other fragments of a packet go.
    #[must_use]
    pub fn expects_fragments(mut self, fragments: &Fragments) -> Self {
        let (digest, backend) = fragments.record();
        self.fragments.retain(|(known, _)| *known != digest);
        self.fragments.push((digest, backend));
        self
    }

    /// A backend is fenced afterwards.
    #[must_use]
    pub fn fences(mut self, number: u16) -> Self {
        self.fenced.push(number);
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
        self.frame.0.len() >= kernel::SHORTEST && !self.without_room
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
        // Counted by the backend, and but for what was forwarded by the verdict as well.
        if self.verdict != Verdict::Forwarded {
            verdicts[self.verdict as usize] = 1;
        }
        let mut backends = Vec::new();
        if let Some(number) = self.backend {
            let bytes = self.frame.0.len() as u64;
            backends.push((number, Counter { packets: 1, bytes }));
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
        let mut fragments: Vec<(u64, u16)> = seen.fragments.iter().flatten().copied().collect();
        let mut expected = self.fragments.clone();
        fragments.sort_unstable();
        expected.sort_unstable();
        ensure!(
            fragments == expected,
            "recorded fragments are {fragments:x?}, expected {expected:x?}"
        );
        ensure!(
            seen.fenced == self.fenced,
            "fenced are {:?}, expected {:?}",
            seen.fenced,
            self.fenced
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

/// What holds for every packet there can be: it is counted once, and keeps [`check_change`].
///
/// # Errors
/// What does not hold.
pub fn check_promises(frame: &Frame, seen: &Seen) -> anyhow::Result<()> {
    let verdict = seen.outcome.verdict;
    let by_verdict: u64 = Verdict::ALL
        .iter()
        .filter(|verdict| !verdict.reached_backend())
        .map(|verdict| seen.verdicts[*verdict as usize])
        .sum();
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
    check_change(frame, verdict, &seen.frame)
}

/// What may become of any frame: one that is passed or dropped stays as it is, but for the Ethernet destination of one for
/// this very host; one that is forwarded differs in the Ethernet addresses and the outer VLAN tag alone; an answer is as long
/// as its question, but for a neighbour advertisement.
///
/// # Errors
/// What does not hold.
pub fn check_change(before: &Frame, verdict: Verdict, after: &Frame) -> anyhow::Result<()> {
    match verdict {
        Verdict::Forwarded | Verdict::Redirected => ensure!(
            {
                let rest = behind_outer_tag(before);
                rest == &after.0[12..] || after.0.get(16..) == Some(rest)
            },
            "{verdict:?} changed more than the two Ethernet addresses and the outer tag"
        ),
        Verdict::Local => ensure!(
            after.0[..6] == DIRECTOR_MAC && after.0[6..] == before.0[6..],
            "{verdict:?} changed more than the Ethernet destination"
        ),
        _ if verdict.action() == Action::Transmit => ensure!(
            after.0.len() == before.0.len() || verdict == Verdict::NeighbourReplied,
            "{} bytes came in, {} went out",
            before.0.len(),
            after.0.len()
        ),
        _ => ensure!(after == before, "{verdict:?} changed the frame"),
    }
    Ok(())
}

/// The frame from its EtherType on, without the outer VLAN tag.
fn behind_outer_tag(frame: &Frame) -> &[u8] {
    match frame.0[12..] {
        [0x81, 0x00, ..] | [0x88, 0xa8, ..] => &frame.0[16..],
        _ => &frame.0[12..],
    }
}
