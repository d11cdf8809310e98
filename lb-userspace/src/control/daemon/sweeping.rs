//! The flow table, looked at piece by piece.

use std::time::Instant;

use anyhow::Result;

use super::{
    super::{
        announce::announce,
        fragments,
        sweep::{Budget, View},
    },
    Daemon, unix_ms,
};
use crate::{config::Mode, dataplane::clock::coarse_ticks};

impl Daemon {
    /// Begins a pass if it is time, and clears what no packet is on its way through any more.
    pub(super) fn begin_sweep(&mut self) {
        self.running.executor.end_grace_if_over();
        // Where nothing else calls for a pass, which looks at them as well.
        if self.fragments_swept.elapsed() >= fragments::EVERY {
            self.fragments_swept = Instant::now();
            let buckets = self.running.executor.maps.fragment_buckets();
            fragments::clear(buckets, &fragments::look(buckets, coarse_ticks()).clear);
        }
        let now = self.now();
        self.sweeper.begin(&self.running.executor.actual, now);
    }

    /// Begins a pass now, or right after the one that is under way.
    pub(super) fn sweep_soon(&mut self) {
        self.sweeper.ask();
        self.begin_sweep();
    }

    /// One piece of the pass over the flow table that is under way; true when it is over.
    pub(super) fn sweep_piece(&mut self, budget: Budget) -> Result<bool> {
        let since = Instant::now();
        let now = self.now();
        let executor = &self.running.executor;
        let view = View {
            buckets: executor.maps.flow_buckets(),
            buckets6: executor.maps.flow6_buckets(),
            fragments: executor.maps.fragment_buckets(),
            actual: &executor.actual,
            cluster: self.knowledge.config().node.mode == Mode::Pick,
            seed: executor.maps.control().seed(),
            ticks: coarse_ticks(),
            now,
            unix_ms: unix_ms(),
        };
        let piece = self.sweeper.step(&view, budget);
        if !piece.ops.is_empty() {
            announce(&self.running.executor.actual, &piece.ops);
            self.execute(&piece.ops, now)?;
            self.follow();
        }
        // After the slots: a record whose slot settles is needed until it has.
        self.running.executor.clear_flows(&piece.clear);
        let buckets = self.running.executor.maps.fragment_buckets();
        fragments::clear(buckets, &piece.fragments);
        let now = self.now();
        let actual = &self.running.executor.actual;
        Ok(self.sweeper.done(actual, now, since.elapsed()))
    }

    /// A whole pass at once, after the rest of one that is under way: before there is anybody to wait for it.
    pub(super) fn sweep_all(&mut self) -> Result<()> {
        while self.sweeper.is_active() {
            self.sweep_piece(Budget::ALL)?;
        }
        self.sweep_soon();
        while !self.sweep_piece(Budget::ALL)? {}
        Ok(())
    }
}
