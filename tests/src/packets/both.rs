//! One packet over plain memory, and the same packet through the kernel: everything that can be seen must be the same.

use std::fmt::Debug;

use anyhow::{Context, ensure};
use lb_common::{
    abi::Counter,
    forward::{self, Outcome},
    packet::{Buffer, HEADROOM},
    plain::PlainTables,
    tables::Event,
    verdict::Verdict,
};

use super::{
    fixture::{self, CAPACITY, Fixture, Flow, recorded},
    frame::Frame,
    kernel::{self, Kernel},
};

/// Bytes behind a frame that the kernel leaves free in its test runs: more than any answer needs.
const TAILROOM: usize = 64;

/// What a packet did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Where it went.
    pub outcome: Outcome,
    /// Its bytes afterwards.
    pub frame: Frame,
    /// What it added to the backends' counters, without those it left alone.
    pub backends: Vec<(u16, Counter)>,
    /// What it added to the verdict counters.
    pub verdicts: [u64; Verdict::COUNT],
    /// What it made the flow table do.
    pub events: [u64; Event::COUNT],
    /// The flow table afterwards.
    pub flows: Vec<Option<Flow>>,
}

/// Plain tables and the packets sent through them.
#[derive(Debug)]
pub struct Plain {
    tables: PlainTables,
    sent: u64,
}

impl Plain {
    /// Empty tables.
    #[must_use]
    pub fn new(unserved_pass: bool) -> Self {
        Self {
            tables: fixture::plain(unserved_pass),
            sent: 0,
        }
    }

    /// Puts a fixture in place. Counters go on.
    ///
    /// # Panics
    /// Where the fixture does not fit.
    pub fn given(&mut self, fixture: &Fixture, now: u16) {
        self.tables.set_now(now);
        fixture
            .install(&mut self.tables, now)
            .expect("plain memory takes everything");
    }

    /// Sends a packet.
    #[must_use]
    pub fn send(&mut self, frame: &Frame) -> Seen {
        let (backends, verdicts, events) = self.counted();
        let mut memory = vec![0; HEADROOM];
        memory.extend_from_slice(&frame.0);
        memory.resize(memory.len() + TAILROOM, 0);
        let mut packet = Buffer::with_room(&mut memory, HEADROOM, frame.0.len());
        let outcome = forward::process(&mut packet, &self.tables);
        let bytes = packet.frame().to_vec();
        self.sent += 1;
        let (backends_after, verdicts_after, events_after) = self.counted();
        Seen {
            outcome,
            frame: Frame(bytes),
            backends: (0..)
                .zip(backends.iter().zip(&backends_after))
                .filter(|(_, (before, after))| before != after)
                .map(|(number, (before, after))| {
                    let added = Counter {
                        packets: after.packets - before.packets,
                        bytes: after.bytes - before.bytes,
                    };
                    (number, added)
                })
                .collect(),
            verdicts: std::array::from_fn(|at| verdicts_after[at] - verdicts[at]),
            events: std::array::from_fn(|at| events_after[at] - events[at]),
            flows: recorded(&self.tables.flows),
        }
    }

    fn counted(&self) -> (Vec<Counter>, [u64; Verdict::COUNT], [u64; Event::COUNT]) {
        let backends = (0..CAPACITY.backends as u16)
            .map(|number| self.tables.counter(number))
            .collect();
        (backends, self.tables.verdicts(), self.tables.events())
    }

    /// Checks that every packet sent was counted once, by a verdict or by a backend.
    ///
    /// # Errors
    /// The sums.
    pub fn check_sum(&self) -> anyhow::Result<()> {
        let (backends, verdicts, _) = self.counted();
        // A redirected packet has both.
        let counted = verdicts.iter().sum::<u64>() - verdicts[Verdict::Redirected as usize]
            + backends.iter().map(|counter| counter.packets).sum::<u64>();
        ensure!(
            counted == self.sent,
            "{} packets were sent, {counted} were counted",
            self.sent
        );
        Ok(())
    }
}

/// Both ways side by side, with the same content and the same counters from the beginning.
#[derive(Debug)]
pub struct Both {
    plain: Plain,
    kernel: Kernel,
    /// The backends that packets can reach, whose counters are compared after each one.
    reachable: Vec<u16>,
}

impl Both {
    /// Loads the kernel's side.
    ///
    /// # Errors
    /// See [`Kernel::load`].
    pub fn load(unserved_pass: bool) -> anyhow::Result<Self> {
        Ok(Self {
            plain: Plain::new(unserved_pass),
            kernel: Kernel::load(unserved_pass)?,
            reachable: Vec::new(),
        })
    }

    /// Puts a fixture in place on both sides. Counters go on.
    ///
    /// # Errors
    /// What the kernel says.
    ///
    /// # Panics
    /// Where the fixture does not fit.
    pub fn given(&mut self, fixture: &Fixture) -> anyhow::Result<()> {
        let now = kernel::now();
        self.plain.given(fixture, now);
        fixture
            .install(&mut self.kernel.maps, now)
            .context("writing the kernel's maps")?;
        self.reachable = fixture.backends.iter().map(|(number, _)| *number).collect();
        Ok(())
    }

    /// Sends a packet both ways.
    ///
    /// # Errors
    /// The first thing they do not agree on.
    pub fn send(&mut self, frame: &Frame) -> anyhow::Result<Seen> {
        self.plain.tables.set_now(kernel::now());
        let seen = self.plain.send(frame);
        let (action, bytes) = self.kernel.run(&frame.0)?;
        agree("action", &seen.outcome.verdict.action(), &action)?;
        agree("bytes", &seen.frame, &Frame(bytes))?;
        let maps = &self.kernel.maps;
        let tables = &self.plain.tables;
        agree("verdict counters", &tables.verdicts(), &maps.verdicts()?)?;
        agree("events", &tables.events(), &maps.events()?)?;
        for number in &self.reachable {
            let plain = tables.counter(*number);
            agree("a backend's counter", &plain, &maps.counter(*number)?)?;
        }
        agree("flow table", &seen.flows, &recorded(maps.flow_buckets()))?;
        // The two clocks may tick between the two runs; from here on both tables have the kernel's times.
        for (plain, kernel) in tables.flows.iter().zip(maps.flow_buckets()) {
            for (plain, kernel) in plain.ways.iter().zip(&kernel.ways) {
                plain.state.set(kernel.state.get());
            }
        }
        Ok(seen)
    }

    /// Checks that all counters of both sides are the same, and that they add up to the packets sent.
    ///
    /// # Errors
    /// What differs.
    pub fn check_sum(&self) -> anyhow::Result<()> {
        let maps = &self.kernel.maps;
        let (backends, verdicts, events) = self.plain.counted();
        for (number, counter) in (0..).zip(&backends) {
            agree("a backend's counter", counter, &maps.counter(number)?)?;
        }
        agree("verdict counters", &verdicts, &maps.verdicts()?)?;
        agree("events", &events, &maps.events()?)?;
        self.plain.check_sum()
    }
}

fn agree<T: PartialEq + Debug>(what: &str, buffer: &T, kernel: &T) -> anyhow::Result<()> {
    ensure!(
        buffer == kernel,
        "buffers and kernel do not agree on the {what}\n over buffers: {buffer:?}\n in the kernel: {kernel:?}"
    );
    Ok(())
}
