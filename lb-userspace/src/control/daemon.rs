//! The daemon: one loop that takes events in, reconciles, and has the result done.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, anyhow};
use lb_common::abi::BackendState;
use tokio::{
    select,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval},
};
use tracing::{error, info, warn};

use super::{
    actual::{Millis, Op},
    announce::announce,
    cluster::Cluster,
    decisions::Decisions,
    execute::Done,
    fixed::fixed_while_running,
    knowledge::{Knowledge, Neighbour, PortState},
    orders::{self, Order, Refusal, Until},
    peers::{PERIOD, Word},
    probe_routes,
    reconcile::{Scope, TooSmall, reconcile},
    report,
    startup::{self, Running},
    sweep::{Sweep, sweep},
    voice::Voice,
};
use crate::{
    api::{
        DrainTimeout, InterfaceStatus, LastApply, NodeStatus, Request, Response, Target, http,
        server,
    },
    config::{Config, ConfigFile, Mode, check_host},
    dataplane::{DataplaneError, attach, clock::coarse_ticks},
    health::{ProbeReport, Prober},
    neighbour::{
        self, Membership, Netlink, NetworkEvent, Resolver, Target as NeighbourTarget, vip_route,
    },
};

/// How `run` was called.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// Whether the data path is taken away at the end.
    pub detach_on_exit: bool,
}

/// How often the flow table is looked through while a slot is in transition.
const SWEEP: Duration = Duration::from_millis(500);
/// How long a fresh start waits for the first answer of every backend: the kernel gives a neighbour three seconds.
const OPENING: Duration = Duration::from_secs(5);
/// Events that may wait.
const QUEUE: usize = 4096;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from starting, with what to do about it; nothing is left behind then.
pub async fn run(options: Options) -> Result<()> {
    let file =
        ConfigFile::load(&options.config).map_err(|errors| anyhow!("{}", errors.render(false)))?;
    require_root()?;
    let facts = neighbour::host_facts()
        .await
        .context("reading the interfaces")?;
    check_host(&file, &facts.for_config()).map_err(|errors| anyhow!("{}", errors.render(false)))?;
    // The socket first: a second daemon is told so before it touches anything.
    let socket = server::bind(&file.config.control.socket)?;
    let decisions_before = Decisions::load(&file.config.control.state)?;
    let mut decisions = decisions_before.clone();
    let started = Instant::now();
    let running = startup::start(&file.config, &mut decisions, &facts, 0)?;
    let mut undo = RemoveNewPins {
        pin_path: (!running.adopted).then(|| file.config.node.pin_path.clone()),
    };
    if decisions != decisions_before {
        decisions.save(&file.config.control.state)?;
    }

    let (reports, reported) = mpsc::channel(QUEUE);
    let (network, happened) = mpsc::channel(QUEUE);
    let (questions, asked) = mpsc::channel(64);
    let resolver = Resolver::start(network).context("following the neighbours")?;
    let ports = running.attachments.iter().map(|a| a.port.clone()).collect();
    if !running.adopted {
        // Nothing is left of the flows that a later priority was held for.
        decisions.held.clear();
    }
    let knowledge = Knowledge {
        config: file.config,
        leaving: BTreeMap::new(),
        decisions,
        health: std::collections::HashMap::new(),
        neighbours: std::collections::HashMap::new(),
        ports,
        facts,
        opening: !running.adopted,
        cluster: Cluster::default(),
    };
    let (words, said) = mpsc::channel(QUEUE);
    let seed = running.executor.maps.control().seed();
    let voice = Voice::start(&knowledge.config, seed, words).await?;
    let mut daemon = Daemon {
        options,
        running,
        knowledge,
        resolver,
        prober: Prober::new(reports),
        netlink: Netlink::open().context("opening netlink")?,
        swept: Sweep::default(),
        started,
        started_at: SystemTime::now(),
        last_apply: None,
        voice,
    };
    daemon.take_in().await?;
    let actual = &daemon.running.executor.actual;
    daemon.knowledge.adopt_neighbours(actual);
    daemon.knowledge.adopt_leaving(actual);
    let probes = daemon.knowledge.probes(actual);
    daemon.knowledge.keep_health(actual, &probes);
    // What a killed controller left without an owner is free again before new owners are looked for: the first look clears
    // its records, the second finds it named nowhere.
    daemon.sweep()?;
    daemon.sweep()?;
    daemon.change("start", Instant::now(), Touched::All)?;
    daemon.follow();
    undo.pin_path = None;
    probe_routes::prepare(&daemon.netlink, &daemon.knowledge).await;
    if let Some(address) = daemon.knowledge.config.control.http {
        match http::bind(address).await {
            Ok(listener) => {
                tokio::spawn(http::serve(listener, questions.clone()));
            }
            // Monitoring that can't be reached is no reason to balance nothing.
            Err(error) => {
                error!(%address, %error, "no metrics: set `http` in [control] to a free address, or to \"off\"");
            }
        }
    }
    tokio::spawn(server::serve(socket, questions));
    info!(
        version = env!("CARGO_PKG_VERSION"),
        config = %daemon.options.config.display(),
        services = daemon.knowledge.config.services.len(),
        "running"
    );
    let result = daemon.work(reported, happened, asked, said).await;
    daemon.end().await;
    result
}

/// Takes the data path away again where the start fails after it was made; one that was taken over stays.
struct RemoveNewPins {
    pin_path: Option<PathBuf>,
}

impl Drop for RemoveNewPins {
    fn drop(&mut self) {
        if let Some(pin_path) = &self.pin_path
            && let Err(error) = attach::remove_pins(pin_path)
        {
            error!(%error, "the data path could not be removed");
        }
    }
}

fn require_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(DataplaneError::Privileges {
        what: "loading XDP programs".into(),
    }
    .into())
}

/// The services that an event is about.
#[derive(Clone, Copy)]
enum Touched<'a> {
    /// All of them; those that are not configured any more go.
    All,
    /// These alone.
    Only(&'a BTreeSet<String>),
}

struct Daemon {
    options: Options,
    running: Running,
    knowledge: Knowledge,
    resolver: Resolver,
    prober: Prober,
    netlink: Netlink,
    swept: Sweep,
    started: Instant,
    started_at: SystemTime,
    last_apply: Option<LastApply>,
    /// In a cluster: what the nodes say to each other.
    voice: Option<Voice>,
}

impl Daemon {
    async fn work(
        &mut self,
        mut reported: mpsc::Receiver<ProbeReport>,
        mut happened: mpsc::Receiver<NetworkEvent>,
        mut asked: mpsc::Receiver<(Request, oneshot::Sender<Response>)>,
        mut said: mpsc::Receiver<(Vec<u8>, SocketAddr)>,
    ) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut sweeping = interval(SWEEP);
        sweeping.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut speaking = interval(PERIOD);
        speaking.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            select! {
                biased;
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                Some(report) = reported.recv() => {
                    let mut reports = vec![report];
                    while reports.len() < QUEUE && let Ok(report) = reported.try_recv() {
                        reports.push(report);
                    }
                    self.on_probes(&reports)?;
                }
                Some(event) = happened.recv() => {
                    let mut events = vec![event];
                    while events.len() < QUEUE && let Ok(event) = happened.try_recv() {
                        events.push(event);
                    }
                    self.on_network(events).await?;
                }
                Some((datagram, from)) = said.recv() => self.on_word(&datagram, from)?,
                Some((request, answer)) = asked.recv() => {
                    let response = self.on_request(request).await?;
                    // Whoever asked may have gone.
                    let _ = answer.send(response);
                }
                _ = hangup.recv() => match self.reload().await? {
                    Response::Refused { message } => error!(%message, "reload refused; everything stays as it is"),
                    _ => info!("reloaded"),
                },
                _ = sweeping.tick() => self.sweep()?,
                _ = speaking.tick(), if self.voice.is_some() => self.on_silence()?,
            }
            self.end_opening()?;
            self.end_drains()?;
            self.speak();
        }
    }

    /// In a cluster: lets the interfaces take in the frames to its MAC address.
    async fn take_in(&self) -> Result<()> {
        if let Some(membership) = membership(&self.knowledge.config) {
            for port in &self.knowledge.ports {
                membership
                    .ensure(&self.netlink, port.ifindex)
                    .await
                    .with_context(|| format!("preparing {} for the cluster", port.name))?;
            }
        }
        Ok(())
    }

    fn now(&self) -> Millis {
        millis_since(self.started)
    }

    /// After a fresh start: builds the first tables when every backend has been judged once, or time is up.
    fn end_opening(&mut self) -> Result<()> {
        if self.knowledge.opening
            && (self.started.elapsed() > OPENING
                || self.knowledge.all_judged(&self.running.executor.actual))
        {
            self.knowledge.opening = false;
            let since = Instant::now();
            if self.knowledge.config.node.mode == Mode::Pick {
                // The table of the others first: whose flows were theirs stay theirs.
                let services = self.knowledge.config.services.iter();
                self.knowledge.cluster.joining = services.map(|s| s.name.clone()).collect();
                self.change("the other nodes", since, Touched::All)?;
                self.knowledge.cluster.joining.clear();
            }
            self.change("the first answers", since, Touched::All)?;
        }
        Ok(())
    }

    /// A peer has said something.
    fn on_word(&mut self, datagram: &[u8], from: SocketAddr) -> Result<()> {
        let since = Instant::now();
        let now = self.now();
        let Some(voice) = &mut self.voice else {
            return Ok(());
        };
        let config = &self.knowledge.config;
        let Some(word) = voice.understand(datagram, from, &config.peers()) else {
            return Ok(());
        };
        let cause = format!("word of {}", word.node);
        let news = self
            .knowledge
            .cluster
            .peers
            .hear(word, &config.node.name, now);
        if !news.excluded.is_empty() && !self.knowledge.opening {
            warn!(
                cause,
                services = ?news.excluded,
                "this node was counted as gone, and joins again: flows that others have taken over stay there"
            );
            self.knowledge.cluster.joining = news.excluded;
            self.change(&cause, since, Touched::Only(&news.touched))?;
            let joining = std::mem::take(&mut self.knowledge.cluster.joining);
            // What it recorded of its own flows is void: others have taken them over.
            let executor = &self.running.executor;
            for id in joining
                .iter()
                .filter_map(|name| executor.actual.service_id(name))
            {
                executor.forget_flows(id);
            }
        }
        if !news.touched.is_empty() {
            self.change(&cause, since, Touched::Only(&news.touched))?;
        }
        Ok(())
    }

    /// Time has passed: whoever has been silent for too long is not heard any more.
    fn on_silence(&mut self) -> Result<()> {
        let touched = self.knowledge.cluster.peers.expire(self.now());
        if !touched.is_empty() {
            self.change("silence of a node", Instant::now(), Touched::Only(&touched))?;
        }
        Ok(())
    }

    /// Tells the peers what there is to tell.
    fn speak(&mut self) {
        if let Some(voice) = &mut self.voice {
            let word = self
                .knowledge
                .own_word(&self.running.executor.actual, unix_ms());
            voice.speak(word, &self.knowledge.config.peers());
        }
    }

    /// Ends what is left of the flows on backends whose drain's time is up.
    fn end_drains(&mut self) -> Result<()> {
        let due = self.knowledge.decisions.due(unix_ms());
        if due.is_empty() {
            return Ok(());
        }
        let since = Instant::now();
        // Counted here, and ended by the next thing that is done.
        self.swept.quiet = false;
        self.sweep()?;
        let actual = &self.running.executor.actual;
        let decisions = orders::end_drains(&self.knowledge.decisions, &due, actual, &self.swept);
        self.knowledge.decisions = decisions;
        let services = due.iter().map(|(service, _)| service.clone()).collect();
        let names: BTreeSet<&str> = due.iter().map(|(_, backend)| backend.as_str()).collect();
        let names: Vec<&str> = names.into_iter().collect();
        let cause = format!("time up for the drain of {}", names.join(", "));
        self.change(&cause, since, Touched::Only(&services))?;
        self.save_decisions();
        // What was counted is no more.
        self.sweep()
    }

    /// Keeps what was not ordered but follows from orders. It is in force already: a file that can't be written is no
    /// reason to undo it.
    fn save_decisions(&self) {
        if let Err(error) = self
            .knowledge
            .decisions
            .save(&self.knowledge.config.control.state)
        {
            error!(%error, "what is in force now would not survive a restart of xdp-lb");
        }
    }

    /// Reconciles the services that are touched; tells the probes and neighbours what follows. Gives one line for each
    /// backend whose state changed.
    fn change(&mut self, cause: &str, since: Instant, touched: Touched<'_>) -> Result<Vec<String>> {
        let now = self.now();
        let actual = &self.running.executor.actual;
        let (desired, scope) = match touched {
            Touched::All => (self.knowledge.desired(|_| true, actual), Scope::All),
            Touched::Only(names) => (
                self.knowledge
                    .desired(|service| names.contains(&service.name), actual),
                Scope::Only,
            ),
        };
        let ops = reconcile(&desired, scope, actual, unix_ms(), now)?;
        let held = self.knowledge.keep_held(&desired, scope == Scope::All);
        let lines = self.carry_out(&ops, now, cause, since)?;
        // After the stores: a failover does not wait for the disk. Killed in between, the next controller finds who is
        // up in the maps, and comes to the same.
        if held != self.knowledge.decisions.held {
            self.knowledge.decisions.held = held;
            self.save_decisions();
        }
        Ok(lines)
    }

    fn carry_out(
        &mut self,
        ops: &[Op],
        now: Millis,
        cause: &str,
        since: Instant,
    ) -> Result<Vec<String>> {
        if ops.is_empty() {
            return Ok(Vec::new());
        }
        let actual = &self.running.executor.actual;
        let lines = announce(actual, ops);
        self.knowledge.count_admissions(actual, ops);
        let Done { slots } = self.execute(ops, now)?;
        let duration = since.elapsed();
        if slots > 0 || !lines.is_empty() {
            self.last_apply = Some(LastApply {
                at: report::rfc3339(SystemTime::now()),
                cause: cause.to_owned(),
                duration_us: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
                slots,
            });
        }
        Ok(lines)
    }

    /// Has operations done that were planned at `began`.
    fn execute(&mut self, ops: &[Op], began: Millis) -> Result<Done> {
        let follow = ops.iter().any(|op| self.changes_probes(op));
        let started = self.started;
        let done = self
            .running
            .executor
            .execute(ops, began, || millis_since(started))?;
        self.swept.quiet = false;
        if follow {
            self.follow();
        }
        Ok(done)
    }

    /// Whether other backends are probed after this operation, or with other marks.
    fn changes_probes(&self, op: &Op) -> bool {
        match op {
            Op::Backend { number, backend } => self
                .running
                .executor
                .actual
                .backends()
                .get(number)
                .is_none_or(|old| {
                    (old.entry.mac() == 0) != (backend.entry.mac() == 0)
                        || old.state == BackendState::Leaving
                        || backend.state == BackendState::Leaving
                }),
            Op::Service { .. } | Op::RemoveService { .. } | Op::RemoveBackend { .. } => true,
            Op::Slots { .. } | Op::SwapDirectory { .. } | Op::Release(_) => false,
        }
    }

    /// Probes and neighbours as the maps are now.
    fn follow(&mut self) {
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

    /// Takes all results in that wait, then changes the services they touch at once.
    fn on_probes(&mut self, reports: &[ProbeReport]) -> Result<()> {
        let since = Instant::now();
        let mut touched = BTreeSet::new();
        let mut cause = None;
        for report in reports {
            if let Some((service, backend)) = self.observe(report) {
                cause.get_or_insert_with(|| format!("probe of {service}/{backend}"));
                touched.insert(service);
            }
        }
        if let Some(cause) = cause {
            self.change(&cause, since, Touched::Only(&touched))?;
        }
        Ok(())
    }

    /// Takes one result in; gives service and backend if something of it changed.
    fn observe(&mut self, report: &ProbeReport) -> Option<(String, String)> {
        if !self.prober.is_current(report) {
            return None;
        }
        let number = report.backend.0;
        let actual = &self.running.executor.actual;
        let backend = actual.backends().get(&number)?;
        let service = actual.services().get(&backend.service)?;
        let health = self.knowledge.health.get_mut(&number)?;
        let before = (health.state(), health.reason().to_owned());
        health.observe(&report.result, report.at);
        let changed = before.0 != health.state() || before.1 != health.reason();
        if report.result.is_err()
            && let Some(port) = self.knowledge.port_towards(IpAddr::V4(backend.address))
        {
            // The MAC address may be another one by now.
            self.resolver.confirm(NeighbourTarget {
                address: IpAddr::V4(backend.address),
                ifindex: port.ifindex,
            });
        }
        changed.then(|| (service.name.clone(), backend.name.clone()))
    }

    /// Takes all events in that wait; those about neighbours change the services they touch at once.
    async fn on_network(&mut self, events: Vec<NetworkEvent>) -> Result<()> {
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
                other => self.on_host(other).await?,
            }
        }
        let Some(first) = addresses.first() else {
            return Ok(());
        };
        let cause = match addresses.len() {
            1 => format!("neighbour {first}"),
            n => format!("{n} neighbours"),
        };
        let touched = self.knowledge.services_with(&addresses);
        self.change(&cause, since, Touched::Only(&touched))?;
        Ok(())
    }

    /// Something of the director itself changed.
    async fn on_host(&mut self, event: NetworkEvent) -> Result<()> {
        match event {
            NetworkEvent::Neighbour(_) => {}
            NetworkEvent::Link(event) => {
                let Some(port) = self
                    .knowledge
                    .ports
                    .iter()
                    .find(|p| p.ifindex == event.link.ifindex)
                else {
                    return Ok(());
                };
                if !event.exists {
                    error!(
                        interface = port.name,
                        "the interface is gone, and with it the data path on it; restart xdp-lb when it is back"
                    );
                } else if let Some(mac) = event.link.mac
                    && mac != port.mac
                {
                    self.adopt_mac(port.number, mac).await?;
                } else if event.link.up {
                    self.take_in().await?;
                    // The kernel dropped the probes' routes while it was down.
                    probe_routes::prepare(&self.netlink, &self.knowledge).await;
                }
            }
            NetworkEvent::Address(_) => {
                self.knowledge.facts = neighbour::host_facts()
                    .await
                    .context("reading the interfaces")?;
                self.change("addresses of the director", Instant::now(), Touched::All)?;
                // Another way to a backend: other neighbours to follow.
                self.follow();
                probe_routes::prepare(&self.netlink, &self.knowledge).await;
            }
        }
        Ok(())
    }

    /// The interface has another MAC address: the program that answers ARP with it is loaded anew.
    async fn adopt_mac(&mut self, number: u16, mac: neighbour::Mac) -> Result<()> {
        self.knowledge.facts = neighbour::host_facts()
            .await
            .context("reading the interfaces")?;
        if let Some(port) = self.knowledge.ports.iter_mut().find(|p| p.number == number) {
            info!(
                interface = port.name,
                mac = report::mac_text(mac),
                "the interface's MAC address changed"
            );
            port.mac = mac;
            let port: PortState = port.clone();
            startup::reload_program(
                &self.knowledge.config,
                &self.knowledge.facts,
                &port,
                &mut self.running,
            )?;
        }
        Ok(())
    }

    fn sweep(&mut self) -> Result<()> {
        if self.swept.quiet {
            return Ok(());
        }
        let executor = &self.running.executor;
        let actual = &executor.actual;
        let seed = executor.maps.control().seed();
        let now = self.now();
        self.swept = sweep(
            executor.maps.flow_buckets(),
            actual,
            seed,
            coarse_ticks(),
            now,
        );
        let ops = self.swept.operations(actual, unix_ms());
        if !ops.is_empty() {
            announce(actual, &ops);
            self.execute(&ops, now)?;
        }
        // After the slots: a record whose slot settles is needed until it has.
        self.running.executor.clear_flows(&self.swept.clear);
        Ok(())
    }

    async fn on_request(&mut self, request: Request) -> Result<Response> {
        match request {
            Request::Status => Ok(Response::Status(Box::new(self.status()?))),
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
        }
    }

    /// New flows of a service go back to the best priority that is up.
    fn failback(&mut self, name: &str) -> Result<Response> {
        let since = Instant::now();
        let refused = |message: String| Ok(Response::Refused { message });
        let service = match orders::service(&self.knowledge.config, name) {
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
        if let Err(error) = decisions.save(&self.knowledge.config.control.state) {
            return refused(format!("{error}; nothing was changed"));
        }
        let before = std::mem::replace(&mut self.knowledge.decisions, decisions);
        let services = BTreeSet::from([name.to_owned()]);
        match self.change(&format!("Failback {name}"), since, Touched::Only(&services)) {
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
        let since = Instant::now();
        let refused = |message: String| Ok(Response::Refused { message });
        let services =
            match orders::resolve(&self.knowledge.config, &self.knowledge.leaving, target) {
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
            && let Err(error) = decisions.save(&self.knowledge.config.control.state)
        {
            return refused(format!("{error}; nothing was changed"));
        }
        let services: BTreeSet<String> = services.into_iter().map(str::to_owned).collect();
        let before = std::mem::replace(&mut self.knowledge.decisions, decisions);
        let cause = format!("{} {}", order.name(), target.backend);
        match self.change(&cause, since, Touched::Only(&services)) {
            Ok(mut changes) => {
                self.sweep()?;
                changes.extend(self.consequences(&before, &services, &target.backend));
                Ok(Response::Done { changes })
            }
            // A weight that needs a larger table than there is room for.
            Err(error) if error.is::<TooSmall>() => {
                self.knowledge.decisions = before;
                self.knowledge
                    .decisions
                    .save(&self.knowledge.config.control.state)?;
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
        for service in self
            .knowledge
            .config
            .services
            .iter()
            .filter(|service| services.contains(&service.name))
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
    async fn reload(&mut self) -> Result<Response> {
        let since = Instant::now();
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
        if let Some(message) = fixed_while_running(&self.knowledge.config, &file.config) {
            return refused(format!("{message}; nothing was changed"));
        }
        self.knowledge.facts = facts;
        let before = self.knowledge.take(file.config);
        match self.change("reload", since, Touched::All) {
            Ok(changes) => {
                probe_routes::remove_unused(&self.netlink, &before.0, &self.knowledge.config).await;
                probe_routes::prepare(&self.netlink, &self.knowledge).await;
                self.follow();
                self.sweep()?;
                Ok(Response::Done { changes })
            }
            Err(error) if error.is::<TooSmall>() => {
                self.knowledge.take_back(before);
                refused(format!("{error}; nothing was changed"))
            }
            Err(error) => Err(error),
        }
    }

    fn status(&self) -> Result<crate::api::Status> {
        let config = &self.knowledge.config;
        let control = self.running.executor.maps.control();
        let node = NodeStatus {
            name: config.node.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: process::id(),
            started: report::rfc3339(self.started_at),
            pin_path: config.node.pin_path.display().to_string(),
            config: self.options.config.display().to_string(),
            abi: report::ABI,
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
        };
        let executor = &self.running.executor;
        let services = config.services.iter();
        let told = report::Told {
            services: services
                .map(|service| {
                    let standing = self.knowledge.standing(service, &executor.actual);
                    (service.name.clone(), standing)
                })
                .collect(),
            decisions: &self.knowledge.decisions,
        };
        Ok(report::status(
            node,
            &executor.maps,
            &executor.actual,
            &told,
            &self.swept,
            self.now(),
        )?)
    }

    /// The end: the probes' routes go; the data path stays unless the operator wants it otherwise.
    async fn end(&mut self) {
        if self.options.detach_on_exit
            && let Some(voice) = &mut self.voice
        {
            // The peers take over at once instead of waiting for the silence.
            let word = Word {
                leaving: true,
                ..self
                    .knowledge
                    .own_word(&self.running.executor.actual, unix_ms())
            };
            voice.speak(word, &self.knowledge.config.peers());
        }
        for port in &self.knowledge.ports {
            if let Err(error) = vip_route::remove_all_ours(&self.netlink, port.ifindex).await {
                warn!(%error, interface = port.name, "the probes' routes could not be removed");
            }
        }
        let pin_path = &self.knowledge.config.node.pin_path;
        if self.options.detach_on_exit
            && let Some(membership) = membership(&self.knowledge.config)
        {
            for port in &self.knowledge.ports {
                if let Err(error) = membership
                    .remove(&self.netlink, &self.knowledge.facts, port.ifindex)
                    .await
                {
                    warn!(%error, interface = port.name, "the cluster's MAC address is still on the interface");
                }
            }
        }
        if self.options.detach_on_exit {
            match attach::remove_pins(pin_path) {
                Ok(()) => info!("ended; the data path is gone"),
                Err(error) => error!(%error, "the data path could not be removed"),
            }
        } else {
            info!(pin_path = %pin_path.display(), "ended; the data path stays in place and forwards on");
        }
    }
}

/// What an interface has to take in, in a cluster.
fn membership(config: &Config) -> Option<Membership> {
    Some(Membership {
        mac: config.cluster_mac()?,
        group: config.cluster_group(),
    })
}

fn millis_since(start: Instant) -> Millis {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
