//! Random lives of one slot: packets of several flows between changes, failures and recoveries. Whatever happens, a flow
//! stays where it is as long as its backend does.

extern crate std;

use std::{collections::BTreeMap, sync::atomic::AtomicBool, sync::atomic::Ordering, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::flow::FlowState;
use crate::pick::Backend;
use crate::plain::{Capacity, Instance, PlainTables};

const BACKENDS: u16 = 4;
const FLOWS: u32 = 8;
const SEED: Seed = Seed([3, 5]);

/// What may happen next.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A packet of a flow.
    Packet { flow: u32, signal: Signal },
    /// The controller picks another backend for the slot, or none.
    Change { to: u16 },
    /// A backend fails: packets may come before the controller has taken it out of the slot.
    Fail { backend: u16, replacement: u16 },
    /// The controller takes the failed ones out.
    TakeOut,
    /// A failed backend works again.
    Recover { backend: u16 },
    /// The slot settles, if it may.
    Settle,
}

/// A flow as its client knows it.
#[derive(Clone, Copy, Debug)]
struct Life {
    home: u16,
    /// Its backend has failed since its last packet: it may move, once.
    homeless: bool,
    /// A backend has got more of it than its opening.
    spoke: bool,
}

/// The slot, the controller's rules of design.md section 3, and the flows' own view.
struct World {
    tables: PlainTables,
    slot: Slot,
    /// A failed backend that is still to be taken out, and who comes in its place.
    pending: Option<(u16, u16)>,
    lives: BTreeMap<u32, Life>,
}

fn key(flow: u32) -> FlowKey {
    FlowKey::tcp(0xc633_6400 + flow, 40_000 << 16 | 80, 1)
}

impl World {
    fn new() -> Self {
        let tables = PlainTables::new(
            Capacity {
                service_buckets: 2,
                slots: 16,
                backends: u32::from(BACKENDS) + 1,
                flow_buckets: 64,
                ..Capacity::default()
            },
            Instance::default(),
        );
        for number in 1..=BACKENDS {
            tables.set_backend(number, Backend::new(u64::from(number), 0, false));
        }
        Self {
            tables,
            slot: Slot::settled(1),
            pending: None,
            lives: BTreeMap::new(),
        }
    }

    fn failed(&self, backend: u16) -> bool {
        has_failed(&self.tables, backend)
    }

    fn set_failed(&self, backend: u16, failed: bool) {
        let entry = Backend::new(u64::from(backend), 0, failed);
        self.tables.set_backend(backend, entry);
    }

    /// What the data path does with a packet, as `forward` asks for it.
    fn send(&self, flow: u32, signal: Signal) -> Result<u16, Verdict> {
        if self.slot.in_transition() {
            backend_of_flow(&self.tables, self.slot, key(flow), None, signal, SEED)
        } else {
            known(self.slot.current())
        }
    }

    /// The backend on which the flow is recorded as being opened, if that works.
    fn opening(&self, flow: u32) -> Option<u16> {
        let state = flow::find(&self.tables, key(flow), key(flow).hash(SEED))
            .filter(|state| state.phase() == Phase::Opening)?;
        let spoke = self.lives.get(&flow).is_some_and(|life| life.spoke);
        assert!(!spoke, "flow {flow} has sent more than its opening");
        Some(state.backend()).filter(|backend| self.slot.in_transition() && !self.failed(*backend))
    }

    fn packet(&mut self, flow: u32, signal: Signal) {
        let opening = self.opening(flow);
        let result = self.send(flow, signal);
        if let Ok(backend) = result {
            assert!(
                backend == self.slot.current() || !self.failed(backend),
                "flow {flow} went to a failed backend, slot {:?}",
                self.slot
            );
        }
        if signal == Signal::Opens {
            let expected = match opening {
                Some(home) => Ok(home),
                None => known(self.slot.current()),
            };
            assert_eq!(
                result, expected,
                "a SYN goes to current, sent again it stays"
            );
            match result {
                Ok(home) => {
                    let homeless = self.failed(home);
                    let life = Life {
                        home,
                        homeless,
                        spoke: false,
                    };
                    self.lives.insert(flow, life);
                }
                // Nobody takes it, and nothing is recorded anew.
                Err(_) => {
                    if let Some(life) = self.lives.get_mut(&flow) {
                        life.homeless = true;
                    }
                }
            }
            return;
        }
        // Nobody opened it: a stray packet, which may go anywhere, but makes no flow.
        let Some(life) = self.lives.get_mut(&flow) else {
            return;
        };
        if !life.homeless {
            assert_eq!(
                result,
                Ok(life.home),
                "flow {flow} moved, slot {:?}",
                self.slot
            );
        }
        if let Ok(home) = result {
            let homeless = has_failed(&self.tables, home);
            *life = Life {
                home,
                homeless,
                spoke: true,
            };
        }
        if signal == Signal::Resets {
            self.lives.remove(&flow);
        }
    }

    fn change(&mut self, to: u16) {
        if self.failed(to) || to == self.slot.current() {
            return;
        }
        let previous = match (self.slot.previous(), self.slot.current()) {
            (0, current) => current,
            (previous, _) if self.failed(previous) => to,
            (previous, _) => previous,
        };
        self.slot = Slot::new(to, previous);
    }

    fn take_out(&mut self) {
        let Some((gone, replacement)) = self.pending.take() else {
            return;
        };
        let in_transition = self.slot.in_transition();
        let mut current = self.slot.current();
        if current == gone {
            current = if self.failed(replacement) {
                0
            } else {
                replacement
            };
        }
        let mut previous = self.slot.previous();
        // With nobody to go to, a slot in transition keeps its failed previous: without one it would be settled, and
        // forget the flows recorded elsewhere. The data path never sends to it.
        if in_transition && self.failed(previous) && current != 0 {
            previous = current;
        }
        self.slot = Slot::new(current, previous);
    }

    /// The slot settles when no flow lives anywhere but on `current`; then its records go, or a later transition would
    /// believe them.
    fn settle(&mut self) {
        let current = self.slot.current();
        if self
            .lives
            .values()
            .all(|life| life.homeless || life.home == current)
        {
            self.slot = Slot::settled(current);
            for way in self.tables.flows.iter().flat_map(|bucket| &bucket.ways) {
                way.state.set(0);
            }
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Packet { flow, signal } => self.packet(flow, signal),
            Event::Fail {
                backend,
                replacement,
            } => {
                self.take_out();
                self.set_failed(backend, true);
                self.pending = Some((backend, replacement));
                for life in self.lives.values_mut().filter(|life| life.home == backend) {
                    life.homeless = true;
                }
            }
            Event::TakeOut => self.take_out(),
            Event::Change { to } => {
                self.take_out();
                self.change(to);
            }
            Event::Recover { backend } => {
                self.take_out();
                self.set_failed(backend, false);
            }
            Event::Settle => {
                self.take_out();
                self.settle();
            }
        }
    }
}

fn signal() -> impl Strategy<Value = Signal> {
    prop_oneof![
        4 => Just(Signal::Opens),
        8 => Just(Signal::Continues),
        1 => Just(Signal::Closes),
        1 => Just(Signal::Resets),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let backend = 1..=BACKENDS;
    prop_oneof![
        20 => (0..FLOWS, signal()).prop_map(|(flow, signal)| Event::Packet { flow, signal }),
        3 => backend.clone().prop_map(|to| Event::Change { to }),
        1 => (backend.clone(), backend.clone()).prop_map(|(backend, replacement)| Event::Fail { backend, replacement }),
        1 => Just(Event::TakeOut),
        1 => backend.prop_map(|backend| Event::Recover { backend }),
        2 => Just(Event::Settle),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_flow_moves_only_when_its_backend_fails(events in prop::collection::vec(event(), 1..200)) {
        let mut world = World::new();
        for event in events {
            world.happen(event);
        }
        prop_assert_eq!(world.tables.events()[1], 0, "the flow table was never full");
    }
}

/// The controller sweeps while packets come: a way that is emptied between being found and being read must not send the
/// packet to backend 0.
#[test]
fn a_sweep_never_shows_half_a_flow() {
    let world = World::new();
    let slot = Slot::new(1, 2);
    let key = key(0);
    let hash = key.hash(SEED);
    let recorded = FlowState::new(3, key.owner(), 0, hash, Phase::Open);
    let done = AtomicBool::new(false);
    flow::record(&world.tables, key, hash, 3, Phase::Open);
    let way = world
        .tables
        .flows
        .iter()
        .flat_map(|bucket| &bucket.ways)
        .find(|way| key.is_in(way))
        .expect("just recorded");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                way.state.set(0);
                way.state.set(recorded.0);
            }
        });
        let picks: Vec<_> = (0..300_000)
            .map(|_| backend_of_flow(&world.tables, slot, key, None, Signal::Continues, SEED))
            .filter(|pick| !matches!(pick, Ok(2 | 3)))
            .collect();
        done.store(true, Ordering::Relaxed);
        assert!(
            picks.is_empty(),
            "{} of 300000, first {:?}",
            picks.len(),
            picks.first()
        );
    });
}
