//! What happens without anybody's asking: probe results, neighbours, interfaces.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use anyhow::Result;
use tracing::info;

use super::{
    super::{
        actual::Op,
        execute::Done,
        failure::{Failed, fail},
        knowledge::Neighbour,
    },
    Cause, Daemon, Touched, unix_ms,
};
use crate::{
    api::ApplyKind,
    health::{HealthState, ProbeReport},
    neighbour::{NetworkEvent, Target as NeighbourTarget},
};

/// Backends of which something changed: service id -> backend numbers.
type Concerned = BTreeMap<u16, BTreeSet<u16>>;

impl Daemon {
    /// Takes all results in that wait, then changes the services they touch at once.
    pub(super) fn on_probes(&mut self, reports: &[ProbeReport]) -> Result<()> {
        let mut concerned = Concerned::new();
        let mut cause: Option<Cause> = None;
        for report in reports {
            let Some((service, number)) = self.observe(report) else {
                continue;
            };
            concerned.entry(service).or_default().insert(number);
            if cause.is_none() {
                cause = Some(Cause {
                    kind: ApplyKind::Probe,
                    text: format!("probe of {}", self.full_name(number)),
                    since: report.found,
                });
            }
        }
        match cause {
            Some(cause) => self.act(&cause, concerned),
            None => Ok(()),
        }
    }

    /// Takes one result in; gives the service's id and the backend's number if something of it changed.
    fn observe(&mut self, report: &ProbeReport) -> Option<(u16, u16)> {
        if !self.prober.is_current(report) {
            return None;
        }
        let number = report.backend.0;
        let health = self.knowledge.health.get_mut(&number)?;
        if report.result.is_ok() && health.state() == HealthState::Up {
            // Nearly every report: it goes on answering.
            health.observe(&report.result, report.at);
            return None;
        }
        let actual = &self.running.executor.actual;
        let backend = actual.backends().get(&number)?;
        let before = (
            health.state(),
            health.is_found_down(),
            health.reason().to_owned(),
        );
        health.observe(&report.result, report.at);
        let changed = before.0 != health.state()
            || before.1 != health.is_found_down()
            || before.2 != health.reason();
        if report.result.is_err() && health.state() == HealthState::Up {
            self.prepared.suspect(actual, number);
        }
        if report.result.is_err()
            && let Some(port) = self.knowledge.port_towards(backend.address)
        {
            // The MAC address may be another one by now.
            self.resolver.confirm(NeighbourTarget {
                address: backend.address,
                ifindex: port.ifindex,
            });
        }
        changed.then_some((backend.service, number))
    }

    /// `SERVICE/BACKEND`.
    fn full_name(&self, number: u16) -> String {
        let actual = &self.running.executor.actual;
        let Some(backend) = actual.backends().get(&number) else {
            return number.to_string();
        };
        let service = actual.services().get(&backend.service);
        format!(
            "{}/{}",
            service.map_or("", |service| &service.name),
            backend.name
        )
    }

    /// Acts on what changed: failures first and by the short way, the rest by what should be.
    fn act(&mut self, cause: &Cause, concerned: Concerned) -> Result<()> {
        if self.knowledge.opening {
            self.remember(cause, &concerned);
            return Ok(());
        }
        let mut others = BTreeSet::new();
        let mut failures = Done::default();
        for (id, numbers) in concerned {
            let actual = &self.running.executor.actual;
            let failed: Option<Vec<Failed>> = numbers
                .iter()
                .map(|number| self.knowledge.failure(*number, actual))
                .collect();
            let ops = failed
                .filter(|_| !self.sweeper.must_finish())
                .and_then(|failed| fail(actual, id, &failed, unix_ms(), &mut self.prepared));
            let Some(ops) = ops else {
                if let Some(service) = actual.services().get(&id) {
                    others.insert(service.name.clone());
                }
                continue;
            };
            let before: Vec<&'static str> = numbers
                .iter()
                .filter_map(|number| Some(actual.backends().get(number)?.state.name()))
                .collect();
            let now = self.now();
            let done = self.execute(&ops, now)?;
            failures.slots += done.slots;
            failures.stores += done.stores;
            failures.stored = done.stored;
            // Told when it is done: a log that blocks must not hold up what the flows wait for.
            self.tell_failures(&ops, &before);
        }
        if failures.stores > 0 {
            let cause = Cause {
                kind: ApplyKind::Failure,
                ..cause.clone()
            };
            self.applied(&cause, &failures);
        }
        self.follow();
        if !others.is_empty() {
            self.change(cause, Touched::Only(&others))?;
        }
        Ok(())
    }

    /// While the first answers are awaited: what a probe found counts when all are there; a MAC address is what probes need.
    fn remember(&mut self, cause: &Cause, concerned: &Concerned) {
        if cause.kind == ApplyKind::Probe {
            return;
        }
        let actual = &self.running.executor.actual;
        let names = concerned
            .keys()
            .filter_map(|id| Some(&actual.services().get(id)?.name))
            .filter(|name| {
                let service = self.knowledge.service(name);
                service.is_some_and(|service| service.probe.is_some())
            });
        self.opening.services.extend(names.cloned());
    }

    fn tell_failures(&self, ops: &[Op], before: &[&str]) {
        let actual = &self.running.executor.actual;
        let backends = ops.iter().filter_map(|op| match op {
            Op::Backend { backend, .. } => Some(backend),
            _ => None,
        });
        for (backend, from) in backends.zip(before) {
            let service = actual.services().get(&backend.service);
            info!(
                service = service.map_or("", |service| &service.name),
                backend = backend.name,
                from,
                to = backend.state.name(),
                reason = backend.reason,
                "backend changed"
            );
        }
    }

    /// Takes all events in that wait; those about neighbours change the services they touch at once.
    pub(super) async fn on_network(&mut self, events: Vec<NetworkEvent>) -> Result<()> {
        let since = Instant::now();
        let mut addresses = BTreeSet::new();
        for event in events {
            match event {
                NetworkEvent::Neighbour(event) => {
                    addresses.insert(event.address);
                    self.knowledge.neighbours.insert(
                        NeighbourTarget {
                            address: event.address,
                            ifindex: event.ifindex,
                        },
                        Neighbour {
                            mac: event.mac,
                            reason: event.reason,
                        },
                    );
                }
                other => self.follow_host(other).await?,
            }
        }
        let Some(first) = addresses.first() else {
            return Ok(());
        };
        let cause = Cause {
            kind: ApplyKind::Neighbour,
            text: match addresses.len() {
                1 => format!("neighbour {first}"),
                n => format!("{n} neighbours"),
            },
            since,
        };
        let actual = &self.running.executor.actual;
        let mut concerned = Concerned::new();
        for address in &addresses {
            for service in self.knowledge.services_with(*address) {
                let Some(id) = actual.service_id(&service.name) else {
                    continue;
                };
                let numbers = service
                    .backends
                    .iter()
                    .filter(|backend| backend.address == *address)
                    .filter_map(|backend| actual.backend_number(id, &backend.name, *address));
                concerned.entry(id).or_default().extend(numbers);
            }
            for service in self.knowledge.left_with(*address) {
                let Some(id) = actual.service_id(service) else {
                    continue;
                };
                let numbers = actual
                    .backends_of(id)
                    .into_iter()
                    .filter(|(_, backend)| backend.address == *address)
                    .map(|(number, _)| number);
                concerned.entry(id).or_default().extend(numbers);
            }
        }
        self.act(&cause, concerned)
    }
}
