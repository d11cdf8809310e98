//! Sources that send more than their share.

use std::collections::BTreeSet;

use anyhow::Result;
use tracing::warn;

use super::{
    super::{
        announce::announce_hot,
        hot::{turn, watch::Judgement},
    },
    Cause, Daemon, Touched, unix_ms,
};
use crate::api::ApplyKind;

impl Daemon {
    /// Looks at the sampled sources: who is hot is spread from now on, who is calm no more.
    pub(super) fn watch_sources(&mut self) -> Result<()> {
        let now = self.now();
        let executor = &mut self.running.executor;
        self.watch.read(executor.maps.sample_rings(), now);
        let (knowledge, actual) = (&self.knowledge, &executor.actual);
        let threshold = |id: u16| {
            let service = knowledge.service(&actual.services().get(&id)?.name)?;
            service.spread_hot_sources.map(|share| share.0)
        };
        for judgement in self.watch.judge(actual.hot(), threshold, now) {
            self.act_on(&judgement)?;
        }
        self.forget_spreading()
    }

    fn act_on(&mut self, judgement: &Judgement) -> Result<()> {
        let Judgement {
            source,
            share_ppm,
            spread,
        } = *judgement;
        // Sweeps may settle the source, or give its place away: what is to be done is told after them.
        while self.sweeper.must_finish() {
            self.sweep_all()?;
        }
        let executor = &mut self.running.executor;
        executor.set_share(source, share_ppm)?;
        let seed = executor.maps.control().seed();
        match turn(&executor.actual, source, spread, share_ppm, seed, unix_ms()) {
            Ok(None) => {}
            Ok(Some(op)) => {
                announce_hot(&self.running.executor.actual, &op);
                let now = self.now();
                self.execute(&[op], now)?;
            }
            Err(problem) => warn!(
                source = %source.address.addr().to_canonical(),
                %problem,
                "a hot source can't be spread"
            ),
        }
        Ok(())
    }

    /// Services whose last hot source has returned after the configuration had ceased to spread any: the data path needs
    /// not look for them any more.
    fn forget_spreading(&mut self) -> Result<()> {
        let actual = &self.running.executor.actual;
        let configured = |name: &str| {
            let service = self.knowledge.service(name);
            service.is_some_and(|service| service.spread_hot_sources.is_some())
        };
        let done: BTreeSet<String> = actual
            .services()
            .iter()
            .filter(|(id, s)| s.spreads && !actual.has_hot(**id) && !configured(&s.name))
            .map(|(_, s)| s.name.clone())
            .collect();
        if !done.is_empty() {
            let cause = Cause::new(ApplyKind::Reload, "hot sources have returned");
            self.change(&cause, Touched::Only(&done))?;
            self.narrow_features();
        }
        Ok(())
    }
}
