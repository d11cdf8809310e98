//! One packet over plain memory, and the same packet through the kernel: everything that can be seen must be the same.

use std::fmt::Debug;

use anyhow::{Context, ensure};
use lb_common::{
    abi::Counter,
    forward::Outcome,
    packet::{Buffer, HEADROOM},
    plain::PlainTables,
    tables::Event,
    verdict::{Action, Verdict},
};

use super::{
    fixture::{self, CAPACITY, Fixture, Flow, Setup, fenced, recorded, recorded_fragments},
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
    /// The flow tables afterwards.
    pub flows: Vec<Option<Flow>>,
    /// The fragment table afterwards.
    pub fragments: Vec<Option<(u64, u16)>>,
    /// The backends that are fenced afterwards.
    pub fenced: Vec<u16>,
}

/// All counters at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    backends: Vec<Counter>,
    verdicts: [u64; Verdict::COUNT],
    events: [u64; Event::COUNT],
}

impl Counted {
    /// What was counted since `before`.
    #[must_use]
    fn since(&self, before: &Self) -> Self {
        Self {
            backends: self
                .backends
                .iter()
                .zip(&before.backends)
                .map(|(after, before)| Counter {
                    packets: after.packets - before.packets,
                    bytes: after.bytes - before.bytes,
                })
                .collect(),
            verdicts: std::array::from_fn(|at| self.verdicts[at] - before.verdicts[at]),
            events: std::array::from_fn(|at| self.events[at] - before.events[at]),
        }
    }

    /// How many packets that makes: those that reached a backend are counted there, and some of them by their verdict, too.
    #[must_use]
    fn packets(&self) -> u64 {
        let by_verdict: u64 = Verdict::ALL
            .iter()
            .filter(|verdict| !verdict.reached_backend())
            .map(|verdict| self.verdicts[*verdict as usize])
            .sum();
        let by_backend: u64 = self.backends.iter().map(|counter| counter.packets).sum();
        by_verdict + by_backend
    }
}

/// Plain tables and the packets sent through them.
#[derive(Debug)]
pub struct Plain {
    tables: PlainTables,
    sent: u64,
    memory: Vec<u8>,
    process: fn(&PlainTables, &mut Buffer<'_>) -> Outcome,
}

impl Plain {
    /// The same, going the hot path where that is a way of its own.
    #[must_use]
    pub fn with_hot_path(self) -> Self {
        Self {
            process: PlainTables::process,
            ..self
        }
    }

    /// Empty tables. Packets go the long way, so that the kernel's hot path has something to be compared with.
    #[must_use]
    pub fn new(setup: &Setup) -> Self {
        Self {
            tables: fixture::plain(setup),
            sent: 0,
            memory: Vec::new(),
            process: PlainTables::process_any,
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
        self.send_in(frame, true)
    }

    /// Sends a packet whose frame can't be made longer.
    #[must_use]
    pub fn send_without_room(&mut self, frame: &Frame) -> Seen {
        self.send_in(frame, false)
    }

    fn send_in(&mut self, frame: &Frame, room: bool) -> Seen {
        let before = self.counted();
        let (outcome, bytes) = if room {
            self.run(&frame.0)
        } else {
            self.sent += 1;
            self.memory.clear();
            self.memory.extend_from_slice(&frame.0);
            let mut packet = Buffer::new(&mut self.memory);
            let outcome = (self.process)(&self.tables, &mut packet);
            (outcome, packet.frame().to_vec())
        };
        let added = self.counted().since(&before);
        Seen {
            outcome,
            frame: Frame(bytes),
            backends: (0..)
                .zip(added.backends)
                .filter(|(_, counter)| *counter != Counter::default())
                .collect(),
            verdicts: added.verdicts,
            events: added.events,
            flows: recorded(&self.tables),
            fragments: recorded_fragments(&self.tables),
            fenced: fenced(&self.tables),
        }
    }

    /// Sends a packet: what became of it, and its bytes afterwards.
    #[must_use]
    pub fn run(&mut self, frame: &[u8]) -> (Outcome, Vec<u8>) {
        self.sent += 1;
        self.memory.clear();
        self.memory.resize(HEADROOM, 0);
        self.memory.extend_from_slice(frame);
        self.memory.resize(HEADROOM + frame.len() + TAILROOM, 0);
        let mut packet = Buffer::with_room(&mut self.memory, HEADROOM, frame.len());
        let outcome = (self.process)(&self.tables, &mut packet);
        (outcome, packet.frame().to_vec())
    }

    fn counted(&self) -> Counted {
        Counted {
            backends: (0..CAPACITY.backends as u16)
                .map(|number| self.tables.counter(number))
                .collect(),
            verdicts: self.tables.verdicts(),
            events: self.tables.events(),
        }
    }

    /// Checks that every packet sent was counted once, by a verdict or by a backend.
    ///
    /// # Errors
    /// The sums.
    pub fn check_sum(&self) -> anyhow::Result<()> {
        let counted = self.counted().packets();
        ensure!(
            counted == self.sent,
            "{} packets were sent, {counted} were counted",
            self.sent
        );
        Ok(())
    }
}

/// Both ways side by side, with the same content. What each counts is compared from fixture to fixture.
#[derive(Debug)]
pub struct Both {
    plain: Plain,
    kernel: Kernel,
    /// What was counted when the fixture was put in place: over buffers, in the kernel.
    before: [Counted; 2],
    out: Vec<u8>,
    /// Whether the clock ticked while the kernel ran the last packet.
    ticked: bool,
}

impl Both {
    /// Loads the kernel's side.
    ///
    /// # Errors
    /// See [`Kernel::load`].
    pub fn load(setup: &Setup) -> anyhow::Result<Self> {
        Self::unequal(setup, setup)
    }

    /// Loads another program into the kernel than the one over buffers: two that do not agree.
    ///
    /// # Errors
    /// See [`Kernel::load`].
    pub fn unequal(over_buffers: &Setup, in_kernel: &Setup) -> anyhow::Result<Self> {
        let (plain, kernel) = (Plain::new(over_buffers), Kernel::load(in_kernel)?);
        let before = [plain.counted(), counted_by(&kernel)?];
        Ok(Self {
            plain,
            kernel,
            before,
            out: Vec::new(),
            ticked: false,
        })
    }

    /// Puts a fixture in place on both sides.
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
        self.before = [self.plain.counted(), counted_by(&self.kernel)?];
        Ok(())
    }

    /// Sends a packet both ways and compares everything.
    ///
    /// # Errors
    /// The first thing they do not agree on.
    pub fn send(&mut self, frame: &Frame) -> anyhow::Result<Seen> {
        let bytes = self.run_kernel(&frame.0)?;
        let seen = self.plain.send(frame);
        self.agree_on(seen.outcome, &seen.frame.0, &bytes)?;
        self.compare_maps()?;
        Ok(seen)
    }

    /// Sends a packet both ways and compares where it went and its bytes; [`Self::compare`] compares what is left
    /// behind.
    ///
    /// # Errors
    /// The first thing they do not agree on.
    pub fn run(&mut self, frame: &Frame) -> anyhow::Result<(Outcome, Frame)> {
        let seen = self.run_kernel(&frame.0)?;
        let (outcome, bytes) = self.plain.run(&frame.0);
        self.agree_on(outcome, &bytes, &seen)?;
        Ok((outcome, Frame(bytes)))
    }

    /// The kernel's half. The clock may tick while it runs: then both tables get the kernel's times once it has, and which
    /// of two records is older is the same for both moments.
    fn run_kernel(&mut self, frame: &[u8]) -> anyhow::Result<(Action, usize)> {
        let now = kernel::now();
        if self.out.len() < frame.len() + kernel::ROOM {
            self.out.resize(frame.len() + kernel::ROOM, 0);
        }
        let seen = self.kernel.run_into(frame, &mut self.out)?;
        self.ticked = kernel::now() != now;
        self.plain.tables.set_now(now);
        Ok(seen)
    }

    fn agree_on(
        &mut self,
        outcome: Outcome,
        bytes: &[u8],
        (action, len): &(Action, usize),
    ) -> anyhow::Result<()> {
        if self.ticked && fixture::same_records(&self.plain.tables, &self.kernel.maps) {
            fixture::copy_states(&self.kernel.maps, &self.plain.tables);
        }
        agree("action", &outcome.verdict.action(), action)?;
        let in_kernel = &self.out[..*len];
        if bytes != in_kernel {
            agree("bytes", &Frame(bytes.to_vec()), &Frame(in_kernel.to_vec()))?;
        }
        Ok(())
    }

    /// Compares all counters since the fixture was put in place, and all tables; and the counters with the verdicts that
    /// were seen since then, each with its number.
    ///
    /// # Errors
    /// What differs.
    pub fn compare(&self, seen: &[u64; Verdict::COUNT]) -> anyhow::Result<()> {
        let counted = self.plain.counted().since(&self.before[0]);
        for verdict in Verdict::ALL {
            let number = *verdict as usize;
            let expected = if *verdict == Verdict::Forwarded {
                0
            } else {
                seen[number]
            };
            ensure!(
                counted.verdicts[number] == expected,
                "{verdict:?} came {expected} times and was counted {} times",
                counted.verdicts[number]
            );
        }
        let sent = seen.iter().sum::<u64>();
        ensure!(
            counted.packets() == sent,
            "{sent} packets were sent, {} were counted",
            counted.packets()
        );
        self.compare_maps()
    }

    fn compare_maps(&self) -> anyhow::Result<()> {
        let (maps, tables) = (&self.kernel.maps, &self.plain.tables);
        let [plain, kernel] = &self.before;
        let plain = self.plain.counted().since(plain);
        let kernel = counted_by(&self.kernel)?.since(kernel);
        agree("verdict counters", &plain.verdicts, &kernel.verdicts)?;
        agree("events", &plain.events, &kernel.events)?;
        agree("backends' counters", &plain.backends, &kernel.backends)?;
        if !fixture::same_records(tables, maps) {
            agree("flow tables", &recorded(tables), &recorded(maps))?;
            let (plain, kernel) = (recorded_fragments(tables), recorded_fragments(maps));
            agree("fragment tables", &plain, &kernel)?;
            agree("what is fenced", &fenced(tables), &fenced(maps))?;
            anyhow::bail!("buffers and kernel do not agree on the remains of records");
        }
        Ok(())
    }

    /// Checks that what was counted over buffers adds up to the packets sent.
    ///
    /// # Errors
    /// The sums.
    pub fn check_sum(&self) -> anyhow::Result<()> {
        self.plain.check_sum()
    }
}

fn counted_by(kernel: &Kernel) -> anyhow::Result<Counted> {
    let maps = &kernel.maps;
    Ok(Counted {
        backends: (0..CAPACITY.backends as u16)
            .map(|number| maps.counter(number))
            .collect::<Result<_, _>>()?,
        verdicts: maps.verdicts()?,
        events: maps.events()?,
    })
}

/// Both ways for every setup that was asked for, each loaded once.
#[derive(Debug, Default)]
pub struct Programs(Vec<(Setup, Both)>);

impl Programs {
    /// The one for this setup.
    ///
    /// # Errors
    /// See [`Both::load`].
    pub fn of(&mut self, setup: &Setup) -> anyhow::Result<&mut Both> {
        let at = match self.0.iter().position(|(known, _)| known == setup) {
            Some(at) => at,
            None => {
                self.0.push((*setup, Both::load(setup)?));
                self.0.len() - 1
            }
        };
        Ok(&mut self.0[at].1)
    }

    /// [`Both::check_sum`] for each.
    ///
    /// # Errors
    /// The sums.
    pub fn check_sums(&self) -> anyhow::Result<()> {
        self.0.iter().try_for_each(|(_, both)| both.check_sum())
    }
}

fn agree<T: PartialEq + Debug>(what: &str, buffer: &T, kernel: &T) -> anyhow::Result<()> {
    ensure!(
        buffer == kernel,
        "buffers and kernel do not agree on the {what}\n over buffers: {buffer:?}\n in the kernel: {kernel:?}"
    );
    Ok(())
}
