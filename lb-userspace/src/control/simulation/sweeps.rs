//! The simulation's time: flows are counted, and slots settle.

use std::{collections::BTreeMap, time::Duration};

use lb_common::{abi::BackendState, flow::TICK_NS};

use super::{
    super::{
        actual::ActualService,
        sweep::{Budget, Sweep},
    },
    FLOWS, World,
    model::{Life, Server, patience},
    services::idle,
};

impl World {
    pub(super) fn sweep(&mut self) -> Sweep {
        while self.bench.sweeper.is_active() {
            self.bench.sweep_piece(Budget::ALL);
        }
        self.forget_settled();
        let settled: Vec<usize> = (0..FLOWS)
            .filter(|f| self.lives[*f].is_some() && !self.is_recorded(*f))
            .collect();
        let found = self.bench.sweep();
        let now = self.bench.now;
        let mut on: BTreeMap<Server, Vec<Life>> = BTreeMap::new();
        for life in self.lives.iter().flatten() {
            on.entry(life.home).or_default().push(*life);
        }
        let on: BTreeMap<u16, Vec<Life>> = on
            .into_iter()
            .filter_map(|(home, lives)| Some((self.number(home)?, lives)))
            .collect();
        // Flows that have sent since the change are counted exactly, give or take the coarse time's last unit.
        let slack = Duration::from_nanos(3 * TICK_NS);
        for (number, backend) in self.bench.actual().backends() {
            let counted = found.flows.get(number).copied().unwrap_or(0);
            let lives = || on.get(number).into_iter().flatten();
            let silent = |life: &Life| Duration::from_millis(now - life.last);
            if backend.entry.failed() {
                assert_eq!(counted, 0);
                continue;
            }
            let surely = lives()
                .filter(|life| life.recorded && !life.ended && silent(life) < patience(life))
                .count() as u64;
            let perhaps = lives()
                .filter(|life| life.recorded || life.outlived)
                .filter(|life| silent(life) < idle(life.home.0) + slack)
                .count() as u64;
            assert!(
                (surely..=perhaps).contains(&counted),
                "{} has {counted} flows, not {surely} to {perhaps}",
                backend.name
            );
            if backend.state == BackendState::Drained {
                assert_eq!(surely, 0, "{} is drained", backend.name);
            }
        }
        for flow in settled {
            if !self.is_recorded(flow)
                && let Some(life) = &mut self.lives[flow]
            {
                life.outlived = false;
            }
        }
        self.forget_settled();
        found
    }

    /// Flows in slots that have settled are not recorded any more; what was recorded goes with the next pass.
    pub(super) fn forget_settled(&mut self) {
        for flow in 0..FLOWS {
            if self.lives[flow].is_some_and(|life| life.recorded)
                && !self.is_recorded(flow)
                && let Some(life) = &mut self.lives[flow]
            {
                life.recorded = false;
                life.outlived = true;
            }
        }
    }

    /// Pieces of a pass, between which anything may happen.
    pub(super) fn sweep_pieces(&mut self, pieces: usize) {
        let budget = Budget {
            buckets: 100,
            slots: 300,
        };
        for _ in 0..pieces {
            self.bench.sweep_piece(budget);
        }
        self.bench.check();
        self.forget_settled();
    }

    pub(super) fn wait(&mut self, ms: u64) {
        let end = self.bench.now + ms;
        while self.bench.now < end {
            self.bench.now += 500;
            self.sweep();
        }
    }

    /// Nobody sends any more: everything comes to rest.
    pub(super) fn rest(&mut self) {
        for _ in 0..20 {
            self.bench.now += 3000;
            self.sweep();
        }
        let actual = self.bench.actual();
        assert_eq!(actual.unsettled().count(), 0, "settled");
        assert!(actual.retired().is_empty(), "{:?}", actual.retired());
        for backend in actual.backends().values() {
            assert!(
                !matches!(
                    backend.state,
                    BackendState::Draining | BackendState::Leaving
                ),
                "{} is still {:?}",
                backend.name,
                backend.state
            );
        }
        let spread = actual.hot().values().all(|hot| !hot.state.in_transition());
        assert!(spread, "{:?}", actual.hot());
        let always = actual
            .services()
            .values()
            .any(ActualService::records_always);
        assert_eq!(self.bench.sweep().quiet, !always);
    }
}
