//! The promise of design.md section 3, over the real data path, reconciler, sweep and operations: hundreds of flows live
//! through random drains, failures, reloads, restarts and controllers killed in the middle of a change, and a flow stays
//! where it is as long as its backend does and no drain's time is up.

use std::{
    collections::BTreeSet,
    io::Write as _,
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use lb_common::{
    abi::{BackendState, InfoTrack},
    address::{Address, Ipv6},
    flow::{FlowKey, FlowState, Key as _, Phase, TICK_NS, find},
    forward::{place_of, process},
    packet::Buffer,
    pick::Affinity,
    service::{Directory, lookup},
    tables::{Event, Tables as _},
    verdict::Verdict,
    wire::{PROTO_TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, mac_bytes},
};
use proptest::{
    collection::vec,
    test_runner::{Config, TestRunner},
};

use super::{
    actual::ActualService,
    adopt::adopt,
    decisions::{Decision, Decisions},
    desired::{DesiredBackend, DesiredService, Knowledge, state},
    directory::Entries,
    following::Following,
    hot::{Source, turn},
    orders::end_drains,
    samples::{Bench, PlainMemory, SEED, service},
    sweep::{Budget, CLOSING_SILENCE, Sweep},
    sweeper::Sweeper,
};

mod packets;
mod steps;

use packets::{client, frame, ports, source_of, vip};
use steps::{Change, Step, step};

const SERVICES: usize = 2;
const BACKENDS: usize = 5;
const FLOWS: usize = 300;
/// The service whose sources may be hot, and how many it has.
const HOT_SERVICE: usize = 1;
const SOURCES: usize = 12;
/// Fewer than all services and backends with all their addresses need: numbers are used again soon.
const NUMBERS: u32 = 18;
const WEIGHTS: [u32; 4] = [0, 5, 50, 100];
/// The `affinity_timeout` of the first service, while it has one: longer than its `flow_idle`.
const AFFINITY_TIMEOUT: Duration = Duration::from_secs(14);

static STEPS: AtomicU64 = AtomicU64::new(0);
static PACKETS: AtomicU64 = AtomicU64::new(0);

/// A real server: service, backend, and which of its addresses.
type Server = (usize, usize, u8);

#[derive(Clone, Debug)]
struct ModelBackend {
    listed: bool,
    drained: bool,
    /// The drain's time was up, and so many flows were ended.
    ended: Option<u64>,
    failed: bool,
    healthy: bool,
    has_mac: bool,
    mac_version: u8,
    address_version: u8,
    weight: u32,
    priority: u32,
}

#[derive(Clone, Debug)]
struct ModelService {
    listed: bool,
    spreads: bool,
    following: Following,
    /// `failback = "manual"`.
    manual: bool,
    /// The priority that new flows are held on.
    held: Option<u32>,
    backends: Vec<ModelBackend>,
}

/// A flow as its client knows it.
#[derive(Clone, Copy, Debug)]
struct Life {
    home: Server,
    last: u64,
    /// The client has sent FIN.
    closing: bool,
    /// Somebody has sent RST: what still comes may go anywhere.
    ended: bool,
    /// Its client opened it while clients were recorded, and its backend has taken new flows ever since: the client's next
    /// one goes there as well.
    client_kept: bool,
    /// Its backend failed since its last packet, or its drain's time was up: it may move, once.
    homeless: bool,
    /// It sent while its slot was in transition, so that it can be counted.
    recorded: bool,
    /// Its slot, or its source, has settled since, and no whole pass over the flow table yet: its record may still be there,
    /// true but for its phase, and counts again where the slot is in transition anew.
    outlived: bool,
    /// A backend has got more of it than its opening.
    spoke: bool,
    /// It had been silent for longer than a slot waits, and woke up during a sweep that may have looked for it already: its
    /// slot may settle all the same, and it may move, once.
    excused: bool,
}

struct World {
    bench: Bench,
    model: Vec<ModelService>,
    lives: Vec<Option<Life>>,
    /// Those that failed while they were leaving, or before: their flows never come back.
    lost: BTreeSet<Server>,
    /// A controller was killed, and no other has started yet: drains and failures may be done in part.
    headless: bool,
}

fn idle(service: usize) -> Duration {
    Duration::from_secs([10, 3][service])
}

/// For how long it may be silent before its backend is forgotten.
fn patience(life: &Life) -> Duration {
    let idle = idle(life.home.0);
    if life.closing {
        CLOSING_SILENCE.min(idle)
    } else {
        idle
    }
}

/// The address of a server, in its service's family.
fn address((service, backend, version): Server) -> IpAddr {
    match service {
        0 => IpAddr::from([198, 51, version, backend as u8]),
        _ => IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, version.into(), backend as u16]),
    }
}

fn service_name(service: usize) -> String {
    format!("service{service}")
}

fn mac((service, backend, address): Server, version: u8) -> [u8; 6] {
    [2, 0x10 + service as u8, backend as u8, address, version, 1]
}

fn takes(b: &ModelBackend) -> bool {
    b.listed && !b.drained && !b.failed && b.healthy && b.has_mac && b.weight > 0
}

impl World {
    fn new() -> Self {
        let backend = ModelBackend {
            listed: true,
            drained: false,
            ended: None,
            failed: false,
            healthy: true,
            has_mac: true,
            mac_version: 0,
            address_version: 0,
            weight: 50,
            priority: 1,
        };
        let mut backends = vec![backend; BACKENDS];
        backends[3].priority = 2;
        backends[4].listed = false;
        let mut bench = Bench::sized(1 << 16, 4, NUMBERS);
        // The 16-bit time wraps while the flows live.
        bench.now = (u64::from(u16::MAX) - 20) * TICK_NS / 1_000_000;
        let mut world = Self {
            bench,
            model: vec![
                ModelService {
                    listed: true,
                    spreads: true,
                    following: Following::default(),
                    manual: false,
                    held: None,
                    backends,
                };
                SERVICES
            ],
            lives: vec![None; FLOWS],
            lost: BTreeSet::new(),
            headless: false,
        };
        // A primary, a pool of two and a last resort, which new flows leave only when the operator says so.
        let standby = &mut world.model[1];
        standby.manual = true;
        for (backend, priority) in standby.backends.iter_mut().zip([1, 2, 2, 3, 1]) {
            backend.priority = priority;
        }
        world.bench.bring(&world.desired());
        world
    }

    fn service_of(flow: usize) -> usize {
        flow % SERVICES
    }

    /// Whether the data path looks for hot sources of a service: as long as there are any, whatever the configuration says.
    fn spreads(&self, service: usize) -> bool {
        let id = self.bench.actual().service_id(&service_name(service));
        service == HOT_SERVICE && self.model[service].spreads
            || id.is_some_and(|id| self.bench.actual().has_hot(id))
    }

    fn server(&self, service: usize, backend: usize) -> Server {
        let version = self.model[service].backends[backend].address_version;
        (service, backend, version)
    }

    fn desired_backend(&self, server: Server) -> DesiredBackend {
        let model = &self.model[server.0].backends[server.1];
        let (state, reason) = state(&Knowledge {
            drained: model.drained,
            ended: model.ended,
            failed: model.failed,
            healthy: model.healthy,
            health: if model.healthy { "answers" } else { "refused" },
            has_mac: model.has_mac,
            neighbour: "no ARP answer",
        });
        DesiredBackend {
            name: format!("backend{}", server.1),
            address: address(server),
            weight: model.weight,
            priority: model.priority,
            state,
            reason,
            healthy: model.healthy,
            mac: model.has_mac.then(|| mac(server, model.mac_version)),
            port: 0,
            lost: false,
        }
    }

    /// What fails a listed backend fails one that is leaving as well.
    fn desired_leaving(&self, server: Server) -> DesiredBackend {
        DesiredBackend {
            state: BackendState::Leaving,
            lost: self.fails(server),
            ..self.desired_backend(server)
        }
    }

    /// The backends of a service that have left the configuration.
    fn leaving(&self, service: usize) -> Vec<Server> {
        let actual = self.bench.actual();
        let Some(id) = actual.service_id(&service_name(service)) else {
            return Vec::new();
        };
        let server = |name: &str, address: IpAddr| {
            let backend = name.trim_start_matches("backend").parse().unwrap();
            let version = match address {
                IpAddr::V4(address) => address.octets()[2],
                IpAddr::V6(address) => address.segments()[6] as u8,
            };
            (service, backend, version)
        };
        actual
            .backends_of(id)
            .iter()
            .map(|(_, backend)| server(&backend.name, backend.address))
            .filter(|server| !self.is_listed(*server))
            .collect()
    }

    fn desired(&self) -> Vec<DesiredService> {
        (0..SERVICES)
            .filter(|s| self.model[*s].listed)
            .map(|s| {
                let backends: Vec<DesiredBackend> = (0..BACKENDS)
                    .filter(|b| self.model[s].backends[*b].listed)
                    .map(|b| self.desired_backend(self.server(s, b)))
                    .collect();
                let sample = service(&service_name(s), 0, &backends);
                let affinity = [Affinity::CLIENT_IPV4, Affinity::CLIENT_IPV6][s];
                DesiredService {
                    held: self.model[s].held,
                    flow_idle: idle(s),
                    spreads: self.spreads(s),
                    following: self.model[s].following,
                    entries: Entries {
                        vip: vip(s),
                        ..sample.entries
                    },
                    affinity,
                    leaving: self
                        .leaving(s)
                        .into_iter()
                        .map(|server| self.desired_leaving(server))
                        .collect(),
                    ..sample
                }
            })
            .collect()
    }

    /// Whether what the model says of it now takes its flows away.
    fn fails(&self, server: Server) -> bool {
        let model = &self.model[server.0].backends[server.1];
        model.failed || !model.healthy || !model.has_mac || model.drained && model.ended.is_some()
    }

    /// Whether its flows have to move. One that is leaving gets them back never more.
    fn has_failed(&self, server: Server) -> bool {
        if self.is_listed(server) {
            self.fails(server)
        } else {
            self.lost.contains(&server)
        }
    }

    /// The priority that new flows go to, told anew from the model.
    fn priority(&self, service: usize) -> Option<u32> {
        let ModelService { backends, held, .. } = &self.model[service];
        let open: BTreeSet<u32> = backends
            .iter()
            .filter(|b| takes(b))
            .map(|b| b.priority)
            .collect();
        held.filter(|held| open.contains(held))
            .or_else(|| open.first().copied())
    }

    /// Who may get a new flow of a client that is known, or may be.
    fn takers(&self, service: usize) -> BTreeSet<Server> {
        let backends = &self.model[service].backends;
        (0..BACKENDS)
            .filter(|b| takes(&backends[*b]))
            .map(|b| self.server(service, b))
            .collect()
    }

    /// Who may get a new flow.
    fn may_open(&self, service: usize) -> BTreeSet<Server> {
        let priority = self.priority(service);
        let backends = &self.model[service].backends;
        (0..BACKENDS)
            .filter(|b| takes(&backends[*b]) && Some(backends[*b].priority) == priority)
            .map(|b| self.server(service, b))
            .collect()
    }

    /// What a service with `failback = "manual"` has come to, it stays at.
    fn hold(&mut self) {
        for service in 0..SERVICES {
            let priority = self.priority(service);
            let model = &mut self.model[service];
            let listed = model.backends.iter().filter(|b| b.listed);
            let preferred = listed.map(|b| b.priority).min();
            if priority.is_some() {
                model.held = priority.filter(|p| model.manual && Some(*p) > preferred);
            }
        }
    }

    fn number(&self, server: Server) -> Option<u16> {
        let id = self.bench.actual().service_id(&service_name(server.0))?;
        let backend = self.desired_backend(server);
        self.bench
            .actual()
            .backend_number(id, &backend.name, backend.address)
    }

    /// Whether a packet of the flow is recorded, as the maps are.
    fn is_recorded(&self, flow: usize) -> bool {
        let service = Self::service_of(flow);
        let actual = self.bench.actual();
        let id = actual.service_id(&service_name(service));
        let always = id.is_some_and(|id| actual.services()[&id].records_always());
        always || self.in_transition(flow)
    }

    /// Whether the service has an `affinity_timeout`, as the maps are.
    fn records_clients(&self, service: usize) -> bool {
        let actual = self.bench.actual();
        let id = actual.service_id(&service_name(service));
        id.is_some_and(|id| {
            let following = actual.services()[&id].following;
            following.affinity_timeout.is_some()
        })
    }

    /// Whether the flow's slot is in transition, as packets find it.
    fn in_transition(&self, flow: usize) -> bool {
        match (vip(Self::service_of(flow)), client(flow)) {
            (IpAddr::V4(vip), IpAddr::V4(client)) => {
                self.slot_in_transition(vip.to_bits(), client.to_bits(), flow)
            }
            (IpAddr::V6(vip), IpAddr::V6(client)) => {
                self.slot_in_transition(Ipv6::from(vip), Ipv6::from(client), flow)
            }
            families => unreachable!("{families:?}"),
        }
    }

    fn slot_in_transition<A: Address>(&self, vip: A, client: A, flow: usize) -> bool {
        let tables = &self.bench.executor.maps.tables;
        let directory = Directory(tables.control.directory.get());
        let Some(service) = lookup(tables, directory, vip, PROTO_TCP, 80) else {
            return false;
        };
        let control = tables.control().unwrap();
        place_of(tables, service, client, ports(flow), control)
            .unwrap()
            .in_transition
    }

    /// Sends one packet through the real data path: who got it.
    fn send(&self, flow: usize, flags: u8) -> Result<Server, Verdict> {
        PACKETS.fetch_add(1, Ordering::Relaxed);
        let tables = &self.bench.executor.maps.tables;
        tables.set_now(self.bench.tick());
        let mut frame = frame(flow, flags);
        let outcome = process(&mut Buffer::new(&mut frame), tables);
        if outcome.verdict != Verdict::Forwarded {
            return Err(outcome.verdict);
        }
        assert_eq!(frame[0], 2);
        Ok((
            usize::from(frame[1] - 0x10),
            usize::from(frame[2]),
            frame[3],
        ))
    }

    fn record<A: Address>(&self, vip: A, client: A, flow: usize) -> Option<FlowState> {
        let tables = &self.bench.executor.maps.tables;
        let directory = Directory(tables.control.directory.get());
        let service = lookup(tables, directory, vip, PROTO_TCP, 80)?;
        let key = FlowKey::tcp(client, ports(flow), service.id());
        find(tables, key, key.hash(SEED))
    }

    /// Who has the flow recorded as being opened: a SYN sent again stays there.
    fn opening(&self, flow: usize) -> Option<Server> {
        let tables = &self.bench.executor.maps.tables;
        let state = match (vip(Self::service_of(flow)), client(flow)) {
            (IpAddr::V4(vip), IpAddr::V4(client)) => {
                self.record(vip.to_bits(), client.to_bits(), flow)?
            }
            (IpAddr::V6(vip), IpAddr::V6(client)) => {
                self.record(Ipv6::from(vip), Ipv6::from(client), flow)?
            }
            families => unreachable!("{families:?}"),
        };
        if state.phase() != Phase::Opening || !self.is_recorded(flow) {
            return None;
        }
        let spoke =
            self.lives[flow].is_some_and(|life| life.spoke && !life.homeless && !life.outlived);
        assert!(!spoke, "{flow} has sent more than its opening");
        let backend = tables.backend(state.backend());
        let [_, service, number, address, ..] = mac_bytes(backend.mac());
        (backend.mac() != 0 && !backend.failed())
            .then(|| (usize::from(service - 0x10), usize::from(number), address))
    }

    fn open(&mut self, flow: usize) {
        let service = Self::service_of(flow);
        let recorded = self.is_recorded(flow);
        let opening = self.opening(flow);
        let clients = self.records_clients(service);
        let anybody = clients && self.in_transition(flow);
        let got = self.send(flow, TCP_SYN);
        if !self.headless {
            if !self.model[service].listed {
                assert_eq!(got, Err(Verdict::NotOurs));
                return;
            }
            let may = if anybody {
                self.takers(service)
            } else {
                self.may_open(service)
            };
            if let Some(life) = self.lives[flow].filter(|life| clients && life.client_kept) {
                let silent = Duration::from_millis(self.bench.now - life.last);
                assert!(
                    silent >= AFFINITY_TIMEOUT
                        || got == Ok(life.home)
                        || opening.is_some_and(|opening| got == Ok(opening)),
                    "the client of {flow} went from {:?} to {got:?} after {silent:?}, {life:?}",
                    life.home
                );
            }
            match got {
                Ok(server) => assert!(
                    may.contains(&server) || opening == Some(server),
                    "{flow} opened on {server:?} of {may:?}"
                ),
                Err(verdict) => {
                    assert!(may.is_empty(), "{flow}: {verdict:?} with {may:?}");
                    assert_eq!(verdict, Verdict::NoBackend);
                }
            }
        }
        // A SYN that is refused ends nothing: it may be an old duplicate.
        if let Ok(home) = got {
            self.lives[flow] = Some(Life {
                home,
                last: self.bench.now,
                closing: false,
                ended: false,
                homeless: self.has_failed(home),
                client_kept: clients
                    && self.takers(service).contains(&home)
                    // The same attempt again records nobody.
                    && (opening.is_none()
                        || self.lives[flow].is_some_and(|life| life.client_kept)),
                recorded,
                outlived: self.lives[flow].is_some_and(|life| life.outlived),
                spoke: false,
                excused: false,
            });
        }
    }

    /// A packet in the middle of a flow, or a stray one, which makes a flow wherever it goes: nobody can tell it from one
    /// that was silent all the while.
    fn go_on(&mut self, flow: usize, flags: u8) {
        let now = self.bench.now;
        let recorded = self.is_recorded(flow);
        let got = self.send(flow, flags);
        let before = self.lives[flow];
        let sweeping = self.bench.sweeper.is_active();
        let mut excused = sweeping && recorded;
        if let Some(life) = before {
            let forgotten = Duration::from_millis(now - life.last) >= patience(&life);
            excused &= forgotten || life.excused;
            assert!(
                got == Ok(life.home) || life.homeless || life.ended || life.excused || forgotten,
                "flow {flow} moved from {:?} to {got:?}, silent for {} ms, {life:?}",
                life.home,
                now - life.last
            );
        }
        if let Ok(server) = got
            && !self.headless
        {
            assert!(
                !self.has_failed(server),
                "flow {flow} went to {server:?}, which has failed"
            );
        }
        self.lives[flow] = match got {
            Ok(home) => Some(Life {
                home,
                last: now,
                closing: flags & TCP_FIN != 0
                    || before.is_some_and(|life| life.closing && life.home == home),
                ended: flags & TCP_RST != 0 || before.is_some_and(|life| life.ended),
                excused,
                homeless: self.has_failed(home),
                recorded,
                client_kept: before.is_some_and(|life| life.client_kept && life.home == home),
                outlived: before.is_some_and(|life| life.outlived),
                spoke: true,
            }),
            // It was allowed to lose its home, and has found none yet.
            Err(_) => before.map(|life| Life {
                homeless: true,
                ..life
            }),
        };
    }

    /// As the daemon does before it looks at what a change is to come to: hot sources settle meanwhile.
    fn finish_sweeps(&mut self) {
        if self.bench.sweeper.must_finish() {
            self.bench.sweep_until_clean();
            self.forget_settled();
        }
    }

    /// A change of the model that is not done because the maps are too small is taken back.
    fn reconcile(&mut self, before: Vec<ModelService>, writes: Option<u32>) {
        self.finish_sweeps();
        let desired = self.desired();
        let Ok(ops) = self.bench.plan(&desired) else {
            self.model = before;
            return;
        };
        self.lose();
        self.hold();
        // Whoever fails now, or is gone with its service, loses its flows.
        for flow in 0..FLOWS {
            let Some(life) = self.lives[flow] else {
                continue;
            };
            if !self.model[life.home.0].listed {
                self.lives[flow] = None;
                continue;
            }
            self.lives[flow] = Some(Life {
                homeless: life.homeless || self.has_failed(life.home),
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
    fn turn(&mut self, source: usize, spread: bool, writes: Option<u32>) {
        self.finish_sweeps();
        let Some(id) = self.bench.actual().service_id(&service_name(HOT_SERVICE)) else {
            return;
        };
        if spread && !self.model[HOT_SERVICE].spreads {
            return;
        }
        let source = match source_of(source) {
            IpAddr::V4(source) => Source::of(id, Affinity::CLIENT_IPV4, source.to_bits()),
            IpAddr::V6(source) => Source::of(id, Affinity::CLIENT_IPV6, Ipv6::from(source)),
        };
        let unix_ms = 1_700_000_000_000 + self.bench.now;
        let op = turn(self.bench.actual(), source, spread, 400_000, SEED, unix_ms).unwrap();
        let Some(op) = op else {
            return;
        };
        self.bench.executor.maps.writes_left.set(writes);
        self.bench.execute(&[op]);
        match writes {
            None => self.bench.check(),
            Some(_) => self.headless = true,
        }
    }

    /// Packets of every flow while nobody controls; then another controller takes over.
    fn take_over(&mut self) {
        let listed = |w: &Self, f| w.model[Self::service_of(f)].listed;
        self.each(0, FLOWS, |w, f| {
            if listed(w, f) && w.lives[f].is_some() {
                w.go_on(f, TCP_ACK);
            }
        });
        self.restart();
    }

    /// Who is leaving and fails now is lost, also if it comes back; who is listed again is not.
    fn lose(&mut self) {
        for service in 0..SERVICES {
            let failing = self.leaving(service);
            let failing = failing.into_iter().filter(|server| self.fails(*server));
            let failing: Vec<Server> = failing.collect();
            self.lost.extend(failing);
        }
        let lost = std::mem::take(&mut self.lost);
        self.lost = lost.into_iter().filter(|s| !self.is_listed(*s)).collect();
    }

    fn is_listed(&self, server: Server) -> bool {
        let backend = &self.model[server.0].backends[server.1];
        backend.listed && backend.address_version == server.2
    }

    fn apply(&mut self, service: usize, backend: usize, change: Change, writes: Option<u32>) {
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
    fn time_up(&mut self, service: usize, backend: usize) {
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
    fn restart(&mut self) {
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

    fn sweep(&mut self) -> Sweep {
        while self.bench.sweeper.is_active() {
            self.bench.sweep_piece(Budget::ALL);
        }
        self.forget_settled();
        let settled: Vec<usize> = (0..FLOWS).filter(|f| !self.is_recorded(*f)).collect();
        let found = self.bench.sweep();
        let now = self.bench.now;
        // Flows that have sent since the change are counted exactly, give or take the coarse time's last unit.
        let slack = Duration::from_nanos(3 * TICK_NS);
        for (number, backend) in self.bench.actual().backends() {
            let counted = found.flows.get(number).copied().unwrap_or(0);
            let lives = || {
                self.lives
                    .iter()
                    .flatten()
                    .filter(|life| self.number(life.home) == Some(*number))
            };
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
    fn forget_settled(&mut self) {
        for flow in 0..FLOWS {
            if !self.is_recorded(flow)
                && let Some(life) = &mut self.lives[flow]
            {
                life.outlived |= std::mem::take(&mut life.recorded);
            }
        }
    }

    /// Pieces of a pass, between which anything may happen.
    fn sweep_pieces(&mut self, pieces: usize) {
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

    fn wait(&mut self, ms: u64) {
        let end = self.bench.now + ms;
        while self.bench.now < end {
            self.bench.now += 500;
            self.sweep();
        }
    }

    fn each(&mut self, first: usize, count: usize, mut act: impl FnMut(&mut Self, usize)) {
        for flow in first..first + count {
            act(self, flow % FLOWS);
        }
    }

    fn step(&mut self, step: &Step) {
        STEPS.fetch_add(1, Ordering::Relaxed);
        match *step {
            Step::Open(first, count) => self.each(first, count, Self::open),
            Step::Send(first, count) => self.each(first, count, |w, f| w.go_on(f, TCP_ACK)),
            Step::Close(first, count) => self.each(first, count, |w, f| {
                w.go_on(f, TCP_ACK | TCP_FIN);
            }),
            Step::Reset(first, count) => self.each(first, count, |w, f| w.go_on(f, TCP_RST)),
            Step::Change(service, backend, change) => self.apply(service, backend, change, None),
            Step::Killed(service, backend, change, writes) => {
                self.apply(service, backend, change, Some(writes));
                if self.headless {
                    self.take_over();
                }
            }
            Step::Turn(source, spread) => self.turn(source, spread, None),
            Step::KilledTurn(source, spread, writes) => {
                self.turn(source, spread, Some(writes));
                if self.headless {
                    self.take_over();
                }
            }
            Step::ToggleSpread => {
                let before = self.model.clone();
                let spreads = &mut self.model[HOT_SERVICE].spreads;
                *spreads = !*spreads;
                if !*spreads {
                    (0..SOURCES).for_each(|source| self.turn(source, false, None));
                }
                self.reconcile(before, None);
            }
            Step::ToggleService(service) => {
                let before = self.model.clone();
                let listed = &mut self.model[service % SERVICES].listed;
                *listed = !*listed;
                self.reconcile(before, None);
            }
            Step::Follow(service, always, clients) => {
                let before = self.model.clone();
                let service = service % SERVICES;
                self.model[service].following = Following {
                    track: if always {
                        InfoTrack::Always
                    } else {
                        InfoTrack::Changes
                    },
                    // Not together with hot sources.
                    affinity_timeout: (clients && service != HOT_SERVICE)
                        .then_some(AFFINITY_TIMEOUT),
                };
                self.reconcile(before, None);
            }
            Step::Pass(ms) => self.bench.now += ms,
            Step::Sweep => {
                self.sweep();
            }
            Step::SweepPieces(pieces) => self.sweep_pieces(pieces),
            Step::Wait(ms) => self.wait(ms),
            Step::Restart => self.restart(),
        }
        let forgotten = self.bench.executor.maps.tables.events()[Event::FlowForgotten as usize];
        assert_eq!(forgotten, 0, "the flow table is large enough");
    }

    /// Nobody sends any more: everything comes to rest.
    fn rest(&mut self) {
        self.wait(60_000);
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

fn live(steps: &[Step]) {
    let mut world = World::new();
    for step in steps {
        world.step(step);
    }
    world.rest();
}

#[test]
fn a_flow_stays_where_it_is_as_long_as_its_backend_does() {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(48);
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 4096,
        ..Config::default()
    });
    let result = runner.run(&vec(step(), 1..120), |steps| {
        live(&steps);
        Ok(())
    });
    result.unwrap();
    // Past the test harness, which keeps what a passing test prints to itself; `cargo xtask test` reads it.
    writeln!(
        std::io::stdout().lock(),
        "{} transition steps, {} packets",
        STEPS.load(Ordering::Relaxed),
        PACKETS.load(Ordering::Relaxed)
    )
    .unwrap();
}

/// A controller killed before it had drained the last backend: the next one has nobody for the table, which an adopted table
/// was not built for either.
#[test]
fn the_last_backend_is_drained_after_a_restart() {
    live(&[
        Step::Change(1, 1, Change::ToggleDrain),
        Step::Change(1, 2, Change::ToggleDrain),
        Step::Change(1, 3, Change::ToggleDrain),
        Step::Killed(1, 0, Change::ToggleDrain, 0),
    ]);
}

/// The last hot source of a service that spreads none any more settles in the sweeps that a change waits for: the change
/// must be planned for what is left after them.
#[test]
fn a_hot_source_settles_while_a_change_waits_for_the_sweep() {
    live(&[
        Step::ToggleService(1),
        Step::ToggleService(1),
        Step::Turn(0, true),
        Step::ToggleSpread,
        Step::Pass(3000),
        Step::SweepPieces(1),
        Step::Change(0, 0, Change::ToggleFail),
        Step::Change(0, 0, Change::ToggleDrain),
    ]);
}

/// The primary of a service with `failback = "manual"` is gone and comes back: who gets the new flows is asserted for each.
#[test]
fn new_flows_stay_with_the_stand_by_until_the_operator_says_so() {
    let opens = || Step::Open(0, FLOWS);
    live(&[
        opens(),
        Step::Change(1, 0, Change::ToggleProbe),
        opens(),
        Step::Change(1, 0, Change::ToggleProbe),
        opens(),
        Step::Restart,
        opens(),
        Step::Change(1, 0, Change::Failback),
        opens(),
    ]);
}

/// A client that was sent to the backend from before the change keeps it while it is not silent for `affinity_timeout`.
#[test]
fn a_client_keeps_its_backend_when_its_slot_turns() {
    live(&[
        Step::Change(0, 1, Change::ToggleProbe),
        Step::Follow(0, false, true),
        Step::Change(0, 1, Change::ToggleProbe),
        Step::Open(0, 165),
        Step::Pass(2918),
        Step::Wait(8501),
        Step::Send(0, 165),
        Step::Pass(2579),
        Step::Sweep,
        Step::Open(0, 7),
    ]);
}

/// What was recorded before `track` ceased to be `"always"` counts again when it is once more, if no sweep has come between.
#[test]
fn always_and_not_and_always_again() {
    live(&[
        Step::Follow(0, true, false),
        Step::Open(0, 1),
        Step::Follow(0, false, false),
        Step::Follow(0, true, false),
    ]);
}
