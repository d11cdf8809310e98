//! What the command line asks for: orders, a reload, the status.

use std::{collections::BTreeSet, process};

use anyhow::{Context as _, Result};
use tokio::sync::oneshot;

use super::{
    super::{
        decisions::Decisions,
        features,
        fixed::{Held, fixed_while_running, refuse_too_large},
        orders::{self, Order, Refusal, Until},
        probe_routes,
        reconcile::TooSmall,
        report::{self, Report, Told},
        startup,
    },
    Cause, Daemon, Touched, unix_ms,
};
use crate::{
    api::{ApplyKind, DrainTimeout, InterfaceStatus, NodeStatus, Request, Response, Target},
    config::{ConfigFile, check_host},
    neighbour,
};

impl Daemon {
    /// Answers, or begins to.
    pub(super) async fn on_request(
        &mut self,
        request: Request,
        answer: oneshot::Sender<Response>,
    ) -> Result<()> {
        let response = match request {
            Request::Status => return self.begin_status(answer),
            Request::Ping => Ok(Response::Done {
                changes: Vec::new(),
            }),
            Request::Drain {
                backend,
                force,
                timeout,
            } => {
                let until = match timeout {
                    DrainTimeout::AsBefore => Until::AsBefore,
                    DrainTimeout::Never => Until::Never,
                    DrainTimeout::After { ms } => Until::At(unix_ms().saturating_add(ms)),
                };
                self.order(&backend, Order::Drain(until), force)
            }
            Request::Resume { backend } => self.order(&backend, Order::Resume, true),
            Request::Fail { backend, force } => self.order(&backend, Order::Fail, force),
            Request::Weight {
                backend,
                weight,
                force,
            } => {
                // Only without any weight does it take no new flow.
                let harmless = force || weight != Some(0);
                self.order(&backend, Order::Weight(weight), harmless)
            }
            Request::Failback { service } => self.failback(&service),
            Request::Reload => self.reload().await,
        }?;
        // Whoever asked may have gone.
        let _ = answer.send(response);
        Ok(())
    }

    /// New flows of a service go back to the best priority that is up.
    fn failback(&mut self, name: &str) -> Result<Response> {
        let cause = Cause::new(ApplyKind::Order, format!("failback {name}"));
        let refused = |message: String| Ok(Response::Refused { message });
        let service = match orders::service(self.knowledge.config(), name) {
            Ok(service) => service,
            Err(refusal) => return refused(refusal.to_string()),
        };
        let standing = self
            .knowledge
            .standing(service, &self.running.executor.actual);
        let (true, Some(priority)) = (standing.held, standing.priority) else {
            return Ok(Response::Done {
                changes: Vec::new(),
            });
        };
        if standing.better.is_none() {
            let service = name.to_owned();
            return refused(Refusal::NothingBetter { service, priority }.to_string());
        }
        let mut decisions = self.knowledge.decisions.clone();
        decisions.held.remove(name);
        if let Err(error) = decisions.save(&self.knowledge.config().control.state) {
            return refused(format!("{error}; nothing was changed"));
        }
        let before = std::mem::replace(&mut self.knowledge.decisions, decisions);
        let services = BTreeSet::from([name.to_owned()]);
        match self.change(&cause, Touched::Only(&services)) {
            Ok(changes) => Ok(Response::Done { changes }),
            Err(error) if error.is::<TooSmall>() => {
                self.knowledge.decisions = before;
                self.save_decisions();
                refused(format!("{error}; nothing was changed"))
            }
            Err(error) => Err(error),
        }
    }

    fn order(&mut self, target: &Target, order: Order, force: bool) -> Result<Response> {
        let cause = Cause::new(
            ApplyKind::Order,
            format!("{} {}", order.name(), target.backend),
        );
        let refused = |message: String| Ok(Response::Refused { message });
        let services =
            match orders::resolve(self.knowledge.config(), &self.knowledge.leaving, target) {
                Ok(services) => services,
                Err(refusal) => return refused(refusal.to_string()),
            };
        if !force
            && let Err(refusal) =
                orders::refuse_last(&self.running.executor.actual, &services, &target.backend)
        {
            return refused(refusal.to_string());
        }
        let decisions =
            match orders::decide(&self.knowledge.decisions, &services, &target.backend, order) {
                Ok(decisions) => decisions,
                Err(refusal) => return refused(refusal.to_string()),
            };
        // Kept before it is done: what was ordered is not forgotten by a crash in between.
        if decisions != self.knowledge.decisions
            && let Err(error) = decisions.save(&self.knowledge.config().control.state)
        {
            return refused(format!("{error}; nothing was changed"));
        }
        let services: BTreeSet<String> = services.into_iter().map(str::to_owned).collect();
        let before = std::mem::replace(&mut self.knowledge.decisions, decisions);
        match self.change(&cause, Touched::Only(&services)) {
            Ok(mut changes) => {
                self.sweep_soon();
                changes.extend(self.consequences(&before, &services, &target.backend));
                Ok(Response::Done { changes })
            }
            // A weight that needs a larger table than there is room for.
            Err(error) if error.is::<TooSmall>() => {
                self.knowledge.decisions = before;
                self.knowledge
                    .decisions
                    .save(&self.knowledge.config().control.state)?;
                refused(format!("{error}; nothing was changed"))
            }
            Err(error) => Err(error),
        }
    }

    /// What an order brings that no state shows: the end of a drain that has one, and flows that do not come back by
    /// themselves.
    fn consequences(
        &self,
        before: &Decisions,
        services: &BTreeSet<String>,
        backend: &str,
    ) -> Vec<String> {
        let actual = &self.running.executor.actual;
        let mut lines = Vec::new();
        for service in services
            .iter()
            .filter_map(|name| self.knowledge.service(name))
        {
            let name = &service.name;
            let until = self.knowledge.decisions.of(name, backend).drain_until_ms;
            if until != before.of(name, backend).drain_until_ms {
                lines.extend(until.map(|until| {
                    let at = report::rfc3339_ms(until);
                    format!("{name}/{backend}: flows that are left at {at} are ended then")
                }));
                if until.is_none() && self.knowledge.decisions.of(name, backend).drained {
                    lines.push(format!("{name}/{backend}: its flows end by themselves"));
                }
            }
            let standing = self.knowledge.standing(service, actual);
            if let (Some(priority), Some(better)) = (standing.priority, standing.better) {
                lines.push(format!(
                    "{name}: new flows stay on priority {priority} though {better} is up, as `failback` is \"manual\": \
                     `xdp-lb failback {name}`"
                ));
            }
        }
        lines
    }

    /// Reads the configuration file again; a bad one changes nothing.
    pub(super) async fn reload(&mut self) -> Result<Response> {
        let cause = Cause::new(ApplyKind::Reload, "reload");
        let refused = |message: String| Ok(Response::Refused { message });
        let file = match ConfigFile::load(&self.options.config) {
            Ok(file) => file,
            Err(errors) => return refused(errors.render(false)),
        };
        let facts = neighbour::host_facts()
            .await
            .context("reading the interfaces")?;
        if let Err(errors) = check_host(&file, &facts.for_config()) {
            return refused(errors.render(false));
        }
        let held = Held::of(&self.running.executor.maps);
        if let Some(message) = fixed_while_running(self.knowledge.config(), &file.config, &held) {
            return refused(format!("{message}; nothing was changed"));
        }
        if let Err(error) = refuse_too_large(&file.config.needs(), &held) {
            return refused(format!("{error}; nothing was changed"));
        }
        // A program that knows what is new is there before the maps use it.
        let known = self.running.executor.maps.features();
        let wanted = features::features(&file.config, &facts);
        if let Err(error) =
            startup::load_features(&file.config, known.with(wanted), &mut self.running)
        {
            return refused(format!("{error:#}; nothing was changed"));
        }
        self.knowledge.facts = facts;
        let before = self.knowledge.take(file.config);
        self.number_vlans()?;
        match self.change(&cause, Touched::All) {
            Ok(changes) => {
                self.narrow_features();
                probe_routes::remove_unused(&self.netlink, &before.0, self.knowledge.config())
                    .await;
                self.prepare_network().await;
                self.follow_all();
                self.sweep_soon();
                Ok(Response::Done { changes })
            }
            Err(error) if error.is::<TooSmall>() => {
                self.knowledge.take_back(before);
                self.number_vlans()?;
                self.narrow_features();
                refused(format!("{error}; nothing was changed"))
            }
            Err(error) => Err(error),
        }
    }

    /// Begins to put the status together; it goes on in [`Self::tell_piece`].
    fn begin_status(&mut self, answer: oneshot::Sender<Response>) -> Result<()> {
        let executor = &self.running.executor;
        let services = &self.knowledge.config().services;
        let report = Report::begin(
            &executor.maps,
            &executor.actual,
            services.iter().map(|service| service.name.as_str()),
            self.sweeper.last(),
        )?;
        self.reports.push_back((report, answer));
        Ok(())
    }

    fn node_status(&self) -> NodeStatus {
        let config = self.knowledge.config();
        let control = self.running.executor.maps.control();
        NodeStatus {
            name: config.node.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: process::id(),
            started: report::rfc3339(self.started_at),
            pin_path: config.node.pin_path.display().to_string(),
            config: self.options.config.display().to_string(),
            abi: report::ABI,
            features: features::names(self.running.executor.maps.features()),
            generation: control.generation.get(),
            interfaces: self
                .running
                .attachments
                .iter()
                .map(|attachment| InterfaceStatus {
                    name: attachment.port.name.clone(),
                    index: attachment.port.ifindex,
                    mac: report::mac_text(attachment.port.mac),
                    mode: attachment.mode.name().into(),
                    program_id: attachment.program_id,
                })
                .collect(),
            last_apply: self.last_apply.clone(),
            cluster: self.knowledge.cluster_status(&self.running.executor.actual),
        }
    }

    /// One piece of the oldest status that is being put together.
    pub(super) fn tell_piece(&mut self) -> Result<()> {
        let now = self.now();
        let Some((report, answer)) = self.reports.front_mut() else {
            return Ok(());
        };
        let (executor, knowledge) = (&self.running.executor, &self.knowledge);
        let told = Told {
            standing: &|name| {
                let service = knowledge.service(name)?;
                Some(knowledge.standing(service, &executor.actual))
            },
            threshold: &|name| knowledge.service(name)?.spread_hot_sources,
            decisions: &knowledge.decisions,
        };
        let swept = self.sweeper.last();
        // Whoever asked may have gone.
        let done = answer.is_closed()
            || report.step(&executor.maps, &executor.actual, swept, &told, now)?;
        if done && let Some((report, answer)) = self.reports.pop_front() {
            let status = report.finish(self.node_status());
            let _ = answer.send(Response::Status(Box::new(status)));
        }
        Ok(())
    }
}
