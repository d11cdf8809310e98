//! Probes and neighbours follow what the maps hold.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::BackendState;

use super::{
    super::actual::{Actual, Op},
    Daemon,
};
use crate::health::ProbeId;

/// Whose probes may be other ones after the operations that were done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Follow {
    /// Everybody's: services came, went or changed.
    all: bool,
    /// Those of these backend numbers.
    numbers: BTreeSet<u16>,
}

impl Follow {
    /// Takes note of operations that are about to be done.
    pub(super) fn note(&mut self, actual: &Actual, ops: &[Op]) {
        for op in ops {
            match op {
                Op::Backend { number, backend } => {
                    let same = actual.backends().get(number).is_some_and(|old| {
                        (old.entry.mac() == 0) == (backend.entry.mac() == 0)
                            && old.state != BackendState::Leaving
                            && backend.state != BackendState::Leaving
                    });
                    if !same {
                        self.numbers.insert(*number);
                    }
                }
                Op::RemoveBackend { number } => {
                    self.numbers.insert(*number);
                }
                Op::Service { .. } | Op::RemoveService { .. } => self.all = true,
                Op::Slots { .. } | Op::SwapDirectory { .. } | Op::Release(_) => {}
            }
        }
    }
}

impl Daemon {
    /// The probes of those that the operations done since the last time are about.
    pub(super) fn follow(&mut self) {
        let Follow { all, numbers } = std::mem::take(&mut self.followed);
        if all {
            self.follow_all();
            return;
        }
        if numbers.is_empty() {
            return;
        }
        let actual = &self.running.executor.actual;
        self.knowledge.forget_gone(actual);
        let probes = self.knowledge.probes_of_backends(&numbers, actual);
        self.knowledge.keep_health_of(&numbers, actual, &probes);
        for number in numbers {
            let id = ProbeId(number);
            self.prober
                .follow(id, probes.get(&id).map(|(spec, _)| spec));
        }
    }

    /// All probes and neighbours.
    pub(super) fn follow_all(&mut self) {
        self.followed = Follow::default();
        let actual = &self.running.executor.actual;
        self.knowledge.forget_gone(actual);
        let probes = self.knowledge.probes(actual);
        self.knowledge.keep_health(actual, &probes);
        let specs: BTreeMap<_, _> = probes
            .into_iter()
            .map(|(id, (spec, _))| (id, spec))
            .collect();
        self.prober.apply(&specs);
        self.resolver.follow(self.knowledge.targets());
    }
}
