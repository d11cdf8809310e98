//! The daemon: one loop that takes events in, reconciles, and has the result done.

mod events;
mod follow;
mod host;
mod nodes;
mod requests;
mod sources;
mod sweeping;
mod vlans;

use std::{
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, anyhow};
use lb_common::features::Features;
use tokio::{
    select,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    task::yield_now,
    time::{MissedTickBehavior, interval, sleep_until},
};
use tracing::{error, info, warn};

use self::follow::Follow;
use super::{
    actual::{Millis, Op},
    announce::announce_all,
    decisions::Decisions,
    execute::Done,
    features,
    fencing::Fencing,
    hot::watch::Watch,
    knowledge::Knowledge,
    occupied::wait_until_free,
    orders,
    peers::PERIOD,
    prepared::Prepared,
    presence::Asking,
    probe_routes,
    reconcile::{Scope, reconcile},
    report::{self, Report},
    startup::{self, Running},
    sweep::Budget,
    sweeper::Sweeper,
    vip_groups,
    voice::Voice,
};
use crate::{
    api::{ApplyKind, LastApply, Request, Response, http, server},
    config::{ConfigFile, check_host},
    dataplane::{DataplaneError, attach},
    health::{ProbeReport, Prober},
    neighbour::{self, ClusterFrames, Netlink, NetworkEvent, Resolver, vip_route},
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
/// How long a fresh start waits for the first answer of every backend, from when it can hear them: the kernel gives a
/// neighbour three seconds.
const OPENING: Duration = Duration::from_secs(5);
/// So many buckets of the flow table are looked at within a few milliseconds: 64 MiB.
const COUNTED_AT_ONCE: usize = 1 << 20;
/// How often answers of data paths are looked for while there are questions.
const ANSWERS: Duration = Duration::from_millis(50);
/// So many words are taken in before this node says what follows from them.
const WORDS: usize = 64;
/// Events that may wait.
const QUEUE: usize = 4096;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from starting, with what to do about it; nothing is left behind then.
pub async fn run(options: Options) -> Result<()> {
    crate::heap::join_at_once();
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
    let facts = wait_until_free(&file.config, facts).await?;
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
    let mut knowledge = Knowledge::new(file.config, decisions, ports, facts, !running.adopted);
    knowledge.cluster.run_ms = unix_ms();
    let watch = Watch::from_now_on(running.executor.maps.sample_rings());
    let (words, said) = mpsc::channel(QUEUE);
    let seed = running.executor.maps.control().seed();
    knowledge.cluster.tokens_ms = knowledge.cluster.run_ms;
    knowledge.cluster.since = running.executor.maps.control().created.get();
    let voice = Voice::start(knowledge.config(), seed, words).await?;
    let mut daemon = Daemon {
        options,
        watch,
        running,
        knowledge,
        resolver,
        prober: Prober::new(reports),
        netlink: Netlink::open().context("opening netlink")?,
        unfollowed: Vec::new(),
        sweeper: Sweeper::default(),
        fragments_swept: Instant::now(),
        followed: Follow::default(),
        opening: Opening::default(),
        prepared: Prepared::default(),
        reports: VecDeque::new(),
        started,
        started_at: SystemTime::now(),
        last_apply: None,
        voice,
        fencing: Fencing::default(),
        asking: Asking::default(),
        frames: ClusterFrames::default(),
    };
    daemon.take_in().await?;
    daemon
        .knowledge
        .adopt_leaving(&daemon.running.executor.actual);
    daemon.number_vlans()?;
    let actual = &daemon.running.executor.actual;
    daemon.knowledge.adopt_neighbours(actual);
    let probes = daemon.knowledge.probes(actual);
    daemon.knowledge.keep_health(actual, &probes);
    if daemon.running.adopted {
        // What a killed controller left without an owner is free again before new owners are looked for: the first look
        // clears its records, the second finds it named nowhere.
        daemon.sweep_all()?;
        daemon.sweep_all()?;
    }
    daemon.come_back()?;
    daemon.join_where_fenced()?;
    daemon.change(&Cause::new(ApplyKind::Start, "start"), Touched::All)?;
    daemon.keep_fences();
    daemon.narrow_features();
    daemon.follow_all();
    crate::heap::give_back();
    undo.pin_path = None;
    daemon.prepare_network().await;
    if let Some(address) = daemon.knowledge.config().control.http {
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
        services = daemon.knowledge.config().services.len(),
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

/// Why something is changed, and when that became known.
#[derive(Clone, Debug)]
struct Cause {
    kind: ApplyKind,
    text: String,
    since: Instant,
}

impl Cause {
    fn new(kind: ApplyKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
            since: Instant::now(),
        }
    }
}

/// What a fresh start has learned and not acted upon. Nobody is served yet, so only what probes need is done: a probe through
/// the VIP is aimed at the MAC address in the maps. Neighbours of thousands of services answer one by one, and each answer
/// may be about all of them; between two looks at them it rests as long as a look takes.
#[derive(Default)]
struct Opening {
    /// When it is over, whoever has not answered. `None` until the daemon listens: what loading the program takes, on a slow
    /// or busy machine more than [`OPENING`], is no time in which anybody could have answered.
    ends: Option<Instant>,
    services: BTreeSet<String>,
    not_before: Option<Instant>,
}

impl Opening {
    fn is_over(&self) -> bool {
        self.ends.is_some_and(|ends| ends < Instant::now())
    }

    fn is_due(&self) -> bool {
        let now = Instant::now();
        !self.services.is_empty() && self.not_before.is_none_or(|begin| begin <= now)
    }
}

struct Daemon {
    options: Options,
    running: Running,
    knowledge: Knowledge,
    resolver: Resolver,
    prober: Prober,
    netlink: Netlink,
    /// Changes of this host's network that could not be followed yet.
    unfollowed: Vec<NetworkEvent>,
    sweeper: Sweeper,
    fragments_swept: Instant,
    followed: Follow,
    opening: Opening,
    prepared: Prepared,
    watch: Watch,
    /// Each status that is being put together, and for whom.
    reports: VecDeque<(Report, oneshot::Sender<Response>)>,
    started: Instant,
    started_at: SystemTime,
    last_apply: Option<LastApply>,
    /// In a cluster: what the nodes say to each other.
    voice: Option<Voice>,
    /// And how they keep each other's data path from answering.
    fencing: Fencing,
    asking: Asking,
    frames: ClusterFrames,
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
        let mut listening = interval(ANSWERS);
        listening.set_missed_tick_behavior(MissedTickBehavior::Skip);
        self.opening.ends = Some(Instant::now() + OPENING);
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
                Some(first) = said.recv() => {
                    let mut words = vec![first];
                    while words.len() < WORDS && let Ok(word) = said.try_recv() {
                        words.push(word);
                    }
                    let mut news = false;
                    for (datagram, from) in words {
                        news |= self.on_word(&datagram, from)?;
                    }
                    // Nearly all words say the same again: nothing follows from them, and there may be thousands a second.
                    if !news {
                        continue;
                    }
                }
                Some((request, answer)) = asked.recv() => {
                    self.on_request(request, answer).await?;
                }
                _ = hangup.recv() => match self.reload().await? {
                    Response::Refused { message } => error!(%message, "reload refused; everything stays as it is"),
                    _ => info!("reloaded"),
                },
                _ = sweeping.tick() => {
                    self.watch_sources()?;
                    self.begin_sweep();
                    self.follow_host_again().await?;
                }
                _ = speaking.tick(), if self.voice.is_some() => self.on_silence()?,
                _ = listening.tick(), if self.asking.is_open() => self.hear_answers()?,
                () = sleep_until(self.opening.not_before.unwrap_or(self.started).into()),
                    if !self.opening.services.is_empty() => {}
                // Last: whatever else has happened comes first. Yielding lets the tasks of probes and clients go on as well.
                () = yield_now(), if self.has_work() => {
                    self.prepared.prepare(&self.running.executor.actual);
                    self.tell_piece()?;
                    if self.sweeper.is_active() {
                        self.sweep_piece(Budget::PIECE)?;
                    }
                }
            }
            self.end_opening()?;
            self.end_drains()?;
            self.knowledge.catch_up(&self.running.executor.actual);
            self.speak();
            self.fence_peers();
        }
    }

    /// Whether there is work that waits until nothing else has happened.
    fn has_work(&self) -> bool {
        self.sweeper.is_active() || !self.reports.is_empty() || self.prepared.is_wanted()
    }

    /// What the kernel's network must have for the VIPs: the probes' ways, and the groups that IPv6 ones are looked for in.
    async fn prepare_network(&self) {
        probe_routes::prepare(&self.netlink, &self.knowledge).await;
        vip_groups::prepare(&self.netlink, &self.knowledge).await;
    }

    /// What the host has come to use, the program learns before the maps use it.
    fn widen_features(&mut self) {
        let config = self.knowledge.config();
        let wanted = features::features(config, &self.knowledge.facts);
        let known = self.running.executor.maps.features();
        if let Err(error) = startup::load_features(config, known.with(wanted), &mut self.running) {
            error!(
                error = format!("{error:#}"),
                "the program does not know what is used of it now"
            );
        }
    }

    /// What the maps do not use any more, the program need not know. That it knows it does no harm, so this is no reason to
    /// end.
    fn narrow_features(&mut self) {
        let config = self.knowledge.config();
        let mut wanted = features::features(config, &self.knowledge.facts);
        // Hot sources are on their way back, though the configuration spreads none any more.
        let mut services = self.running.executor.actual.services().values();
        if services.any(|service| service.spreads) {
            wanted = wanted.with(Features::SPREAD);
        }
        if let Err(error) = startup::load_features(config, wanted, &mut self.running) {
            error!(
                error = format!("{error:#}"),
                "the program still knows features that are not used any more"
            );
        }
    }

    fn now(&self) -> Millis {
        millis_since(self.started)
    }

    /// After a fresh start: builds the first tables when every backend has been judged once, or time is up.
    fn end_opening(&mut self) -> Result<()> {
        if !self.knowledge.opening {
            return Ok(());
        }
        if self.opening.is_over() || self.knowledge.all_judged(&self.running.executor.actual) {
            self.knowledge.opening = false;
            self.join_all()?;
            self.opening = Opening::default();
            let cause = Cause::new(ApplyKind::Start, "the first answers");
            self.change(&cause, Touched::All)?;
            crate::heap::give_back();
        } else if self.opening.is_due() {
            let services = std::mem::take(&mut self.opening.services);
            let begun = Instant::now();
            let cause = Cause::new(ApplyKind::Start, "neighbours");
            self.change(&cause, Touched::Only(&services))?;
            self.opening.not_before = Some(Instant::now() + begun.elapsed());
        }
        Ok(())
    }

    /// Ends what is left of the flows on backends whose drain's time is up.
    fn end_drains(&mut self) -> Result<()> {
        let due = self.knowledge.decisions.due(unix_ms());
        if due.is_empty() {
            return Ok(());
        }
        let names: BTreeSet<&str> = due.iter().map(|(_, backend)| backend.as_str()).collect();
        let names: Vec<&str> = names.into_iter().collect();
        let cause = Cause::new(
            ApplyKind::Order,
            format!("time up for the drain of {}", names.join(", ")),
        );
        // Counted here, and ended by the next thing that is done. A table that takes long to look at has been looked at a
        // moment ago, and a failure must not wait for it.
        if self.running.executor.maps.flow_buckets().len() <= COUNTED_AT_ONCE {
            self.sweep_all()?;
        }
        let actual = &self.running.executor.actual;
        let swept = self.sweeper.last();
        let decisions = orders::end_drains(&self.knowledge.decisions, &due, actual, swept);
        self.knowledge.decisions = decisions;
        let services = due.iter().map(|(service, _)| service.clone()).collect();
        self.change(&cause, Touched::Only(&services))?;
        self.save_decisions();
        // What was counted is no more.
        self.sweep_soon();
        Ok(())
    }

    /// Keeps what was not ordered but follows from orders. It is in force already: a file that can't be written is no
    /// reason to undo it.
    fn save_decisions(&self) {
        if let Err(error) = self
            .knowledge
            .decisions
            .save(&self.knowledge.config().control.state)
        {
            error!(%error, "what is in force now would not survive a restart of xdp-lb");
        }
    }

    /// Reconciles the services that are touched; tells the probes and neighbours what follows. Gives one line for each
    /// backend whose state changed.
    fn change(&mut self, cause: &Cause, touched: Touched<'_>) -> Result<Vec<String>> {
        while self.sweeper.must_finish() {
            self.sweep_all()?;
        }
        let now = self.now();
        let actual = &self.running.executor.actual;
        let (desired, scope) = match touched {
            Touched::All => (self.knowledge.desired(actual), Scope::All),
            Touched::Only(names) => (self.knowledge.desired_of(names, actual), Scope::Only),
        };
        let ops = reconcile(&desired, scope, actual, unix_ms(), now)?;
        let held = self.knowledge.keep_held(&desired, scope == Scope::All);
        let lines = self.carry_out(&ops, now, cause)?;
        // After the stores: a failover does not wait for the disk. Killed in between, the next controller finds who is
        // up in the maps, and comes to the same.
        if held != self.knowledge.decisions.held {
            self.knowledge.decisions.held = held;
            self.save_decisions();
        }
        Ok(lines)
    }

    fn carry_out(&mut self, ops: &[Op], now: Millis, cause: &Cause) -> Result<Vec<String>> {
        if ops.is_empty() {
            return Ok(Vec::new());
        }
        let lines = announce_all(&self.running.executor.actual, ops);
        let done = self.execute(ops, now)?;
        self.knowledge.note_done(&self.running.executor.actual, now);
        if done.slots > 0 || !lines.is_empty() {
            self.applied(cause, &done);
        }
        self.keep_presence();
        self.follow();
        Ok(lines)
    }

    /// Has operations done that were planned at `began`.
    fn execute(&mut self, ops: &[Op], began: Millis) -> Result<Done> {
        self.sweeper.note(&self.running.executor.actual, ops);
        self.followed.note(&self.running.executor.actual, ops);
        let started = self.started;
        Ok(self
            .running
            .executor
            .execute(ops, began, || millis_since(started))?)
    }

    /// Keeps what was done for `status`.
    fn applied(&mut self, cause: &Cause, done: &Done) {
        let took = done.stored.map_or_else(
            || cause.since.elapsed(),
            |at| at.saturating_duration_since(cause.since),
        );
        self.last_apply = Some(LastApply {
            at: report::rfc3339(SystemTime::now()),
            cause: cause.text.clone(),
            kind: cause.kind,
            duration_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            operations: done.stores,
            slots: done.slots,
        });
    }

    /// The end: the probes' routes go; the data path stays unless the operator wants it otherwise.
    async fn end(&mut self) {
        for port in &self.knowledge.ports {
            if let Err(error) = vip_route::remove_all_ours(&self.netlink, port.ifindex).await {
                warn!(%error, interface = port.name, "the probes' routes could not be removed");
            }
            if self.options.detach_on_exit {
                vip_groups::leave(&self.netlink, port.ifindex).await;
            }
        }
        let pin_path = &self.knowledge.config().node.pin_path;
        if self.options.detach_on_exit {
            match attach::remove_pins(pin_path) {
                Ok(()) => {
                    // Now that it keeps nothing, others may take its place.
                    self.leave().await;
                    info!("ended; the data path is gone");
                }
                Err(error) => error!(%error, "the data path could not be removed"),
            }
        } else {
            info!(pin_path = %pin_path.display(), "ended; the data path stays in place and forwards on");
        }
    }
}

fn millis_since(start: Instant) -> Millis {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
