//! What happens to the simulation's services and backends, and the controller that acts on it.

use lb_common::{abi::InfoTrack, address::Ipv6, pick::Affinity};

use super::{
    super::{
        adopt::adopt,
        decisions::{Decision, Decisions},
        following::Following,
        hot::{Source, turn},
        orders::end_drains,
        samples::{PlainMemory, SEED},
        sweeper::Sweeper,
    },
    AFFINITY_TIMEOUT, BACKENDS, FLOWS, HOT_SERVICE, SERVICES, WEIGHTS, World,
    model::{Life, ModelService, Server, service_name},
    packets::Says,
    services::{Promise, service_of, source_of},
    steps::Change,
};

impl World {
    /// As the daemon does before it looks at what a change is to come to: hot sources settle meanwhile.
    pub(super) fn finish_sweeps(&mut self) {
        if self.bench.sweeper.must_finish() {
            self.bench.sweep_until_clean();
            self.forget_settled();
        }
    }

    /// A change of the model that is not done because the maps are too small is taken back.
    pub(super) fn reconcile(&mut self, before: Vec<ModelService>, writes: Option<u32>) {
        self.finish_sweeps();
        let desired = self.desired();
        let Ok(ops) = self.bench.plan(&desired) else {
            self.model = before;
            return;
        };
        self.lose();
        self.hold();
        let changed = self.model.iter().zip(&before);
        for (picks, (after, before)) in self.picks.iter_mut().zip(changed) {
            if after != before {
                picks.clear();
            }
        }
        // Whoever fails now, or is gone with its service, loses its flows.
        for flow in 0..FLOWS {
            let Some(life) = self.lives[flow] else {
                continue;
            };
            if !self.model[life.home.0].listed {
                self.lives[flow] = None;
                continue;
            }
            let promise = self.promise(flow);
            self.lives[flow] = Some(Life {
                homeless: life.homeless
                    || self.has_failed(life.home)
                    || promise == Promise::Nothing
                    // Not known from its first packet on: since the service records every flow, it has sent none.
                    || promise == Promise::Recorded && !life.recorded,
                recorded: life.recorded && promise != Promise::Nothing,
                outlived: life.outlived && promise != Promise::Nothing,
                client_kept: life.client_kept
                    && self.model[life.home.0].following.affinity_timeout.is_some()
                    && self.takers(life.home.0).contains(&life.home),
                ..life
            });
        }
        match writes {
            None => {
                self.bench.execute(&ops);
                self.forget_settled();
                assert_eq!(self.bench.plan(&desired).unwrap(), [], "a second time");
                let held = self.desired();
                assert_eq!(self.bench.plan(&held).unwrap(), [], "what is held");
                self.bench.check();
            }
            Some(_) => {
                self.bench.executor.maps.writes_left.set(writes);
                self.bench.execute(&ops);
                self.forget_settled();
                self.headless = true;
            }
        }
    }

    /// A source is spread from now on, or no more.
    pub(super) fn turn(&mut self, source: usize, spread: bool, writes: Option<u32>) {
        self.finish_sweeps();
        let Some(id) = self.bench.actual().service_id(&service_name(HOT_SERVICE)) else {
            return;
        };
        if spread && !self.model[HOT_SERVICE].spreads {
            return;
        }
        let source = Source::of(id, Affinity::CLIENT_IPV6, Ipv6::from(source_of(source)));
        let unix_ms = 1_700_000_000_000 + self.bench.now;
        let op = turn(self.bench.actual(), source, spread, 400_000, SEED, unix_ms).unwrap();
        let Some(op) = op else {
            return;
        };
        self.picks[HOT_SERVICE].clear();
        self.bench.executor.maps.writes_left.set(writes);
        self.bench.execute(&[op]);
        match writes {
            None => self.bench.check(),
            Some(_) => self.headless = true,
        }
    }

    /// Packets of every flow while nobody controls; then another controller takes over.
    pub(super) fn take_over(&mut self) {
        for flow in 0..FLOWS {
            if self.model[service_of(flow)].listed && self.lives[flow].is_some() {
                self.packet(flow, Says::Continues);
            }
        }
        self.restart();
    }

    /// Who is leaving and fails now is lost, also if it comes back; who is listed again is not.
    pub(super) fn lose(&mut self) {
        for service in 0..SERVICES {
            let failing = self.leaving(service);
            let failing = failing.into_iter().filter(|server| self.fails(*server));
            let failing: Vec<Server> = failing.collect();
            self.lost.extend(failing);
        }
        let lost = std::mem::take(&mut self.lost);
        self.lost = lost.into_iter().filter(|s| !self.is_listed(*s)).collect();
    }

    pub(super) fn is_listed(&self, server: Server) -> bool {
        let backend = &self.model[server.0].backends[server.1];
        backend.listed && backend.address_version == server.2
    }

    pub(super) fn apply(
        &mut self,
        service: usize,
        backend: usize,
        change: Change,
        writes: Option<u32>,
    ) {
        let (service, number) = (service % SERVICES, backend % BACKENDS);
        let before = self.model.clone();
        if matches!(change, Change::TimeUp) {
            self.time_up(service, number);
        }
        let held = &mut self.model[service].held;
        if matches!(change, Change::Failback) {
            *held = None;
        }
        if matches!(change, Change::ToggleFailback) {
            *held = None;
            self.model[service].manual ^= true;
        }
        let backend = &mut self.model[service].backends[number];
        let flip = |flag: &mut bool| *flag = !*flag;
        match change {
            Change::ToggleDrain => {
                flip(&mut backend.drained);
                backend.ended = None;
            }
            Change::TimeUp | Change::ToggleFailback | Change::Failback => {}
            Change::ToggleFail => flip(&mut backend.failed),
            Change::ToggleProbe => flip(&mut backend.healthy),
            Change::ToggleMac => flip(&mut backend.has_mac),
            Change::OtherMac => backend.mac_version ^= 1,
            Change::ToggleListed => flip(&mut backend.listed),
            Change::OtherAddress => backend.address_version = (backend.address_version + 1) % 3,
            Change::Weight(weight) => backend.weight = WEIGHTS[weight % WEIGHTS.len()],
            Change::Priority(priority) => {
                let priority = 1 + priority % 3;
                if std::mem::replace(&mut backend.priority, priority) != priority && backend.listed
                {
                    self.model[service].held = None;
                }
            }
        }
        self.reconcile(before, writes);
    }

    /// The daemon counts what is left of the flows on a backend whose drain's time is up, and decides that they end.
    pub(super) fn time_up(&mut self, service: usize, backend: usize) {
        let key = (service_name(service), format!("backend{backend}"));
        let mut decisions = Decisions::default();
        let model = &self.model[service].backends[backend];
        let drain = Decision {
            drained: true,
            drain_until_ms: Some(0),
            flows_ended: model.ended,
            ..Decision::default()
        };
        if !model.drained || model.ended.is_some() {
            return;
        }
        decisions.set(&key.0, &key.1, drain);
        // Its assertions hold for the count as well.
        let found = self.sweep();
        let due = decisions.due(0);
        assert_eq!(due, std::slice::from_ref(&key));
        let after = end_drains(&decisions, &due, self.bench.actual(), &found);
        let ended = after.of(&key.0, &key.1).flows_ended;
        self.model[service].backends[backend].ended = ended;
        assert_eq!(after.due(u64::MAX), [], "once");
    }

    /// Another controller takes over; the picture it makes is the one that was kept, but for what can't be read back.
    pub(super) fn restart(&mut self) {
        let killed = self.headless;
        self.headless = false;
        let maps: &PlainMemory = &self.bench.executor.maps;
        maps.writes_left.set(None);
        let adopted = adopt(maps, self.bench.now).unwrap();
        if !killed {
            let kept = self.bench.actual();
            assert_eq!(adopted.backends(), kept.backends());
            assert_eq!(adopted.directory(), kept.directory());
            assert!(
                adopted
                    .retired()
                    .services
                    .is_subset(&kept.retired().services)
            );
            assert!(
                adopted
                    .retired()
                    .backends
                    .is_subset(&kept.retired().backends)
            );
            let mut hot = kept.hot().clone();
            for source in hot.values_mut() {
                source.changed = self.bench.now;
            }
            assert_eq!(*adopted.hot(), hot);
            assert_eq!(adopted.services().len(), kept.services().len());
            for (id, service) in kept.services() {
                let mut expected = service.clone();
                expected.built_for = None;
                expected.changed.fill(self.bench.now);
                assert_eq!(adopted.services()[id], expected);
            }
        }
        self.bench.executor.actual = adopted;
        // As the daemon does before its first change.
        self.bench.sweeper = Sweeper::default();
        self.bench.sweep();
        self.bench.sweep();
        self.forget_settled();
        let desired = self.desired();
        let ops = self.bench.plan(&desired).unwrap();
        self.bench.execute(&ops);
        assert_eq!(self.bench.plan(&desired).unwrap(), [], "after a restart");
        self.bench.check();
    }

    /// The service's `track` and `affinity_timeout` are these from now on, as far as they fit.
    pub(super) fn follow(
        &mut self,
        service: usize,
        track: InfoTrack,
        clients: bool,
        writes: Option<u32>,
    ) {
        let before = self.model.clone();
        let service = service % SERVICES;
        let mut track = self.traffics[service].fitting(track);
        if service == HOT_SERVICE && track == InfoTrack::Never {
            track = InfoTrack::Changes;
        }
        // Not together with hot sources, and not where nothing is recorded.
        let clients = clients && service != HOT_SERVICE && track != InfoTrack::Never;
        self.model[service].following = Following {
            track,
            affinity_timeout: clients.then_some(AFFINITY_TIMEOUT),
        };
        self.reconcile(before, writes);
    }
}
