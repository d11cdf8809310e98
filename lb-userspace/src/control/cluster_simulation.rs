//! What `mode = "pick"` promises, over the real data path, reconciler, judgement and words of three nodes: words get lost
//! and come late, probes come at different times, nodes die, come back, are drained, and lose their daemons. Every packet
//! goes to every node, and:
//!
//! - a flow stays on its node as long as that serves, and nobody else ever keeps a packet of it;
//! - no packet is kept by two nodes, but for less than one probe interval after a server has failed on a node that lives;
//! - when nothing happens any more, every new flow is kept by exactly one.

use std::{
    net::Ipv4Addr,
    time::{Duration, SystemTime},
};

use lb_common::{
    features::Features,
    forward::process,
    packet::Buffer,
    verdict::Verdict,
    wire::{TCP_ACK, TCP_SYN},
};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config as RunnerConfig, TestRunner},
};

use super::{
    actual::Millis,
    adopt::adopt,
    comeback::come_back,
    decisions::{Decision, Decisions},
    fencing::{self, Fencing},
    knowledge::Knowledge,
    memory::Memory as _,
    peers::{PERIOD, Word},
    ports::PortState,
    presence::{self, Asking},
    reconcile::{Scope, reconcile},
    samples::{Bench, OWN_MAC, PlainMemory},
    sweep::Budget,
};
use crate::{
    config::ConfigFile,
    health::{Health, HealthState, ProbeFailure},
    neighbour::{HostFacts, Interface, Link, cluster_frames},
};

const NODES: usize = 3;
const FLOWS: usize = 60;
/// Clients that try to connect all the time, and never get any further: so it shows when two nodes answer.
const TRYING: usize = 20;
/// From one look at everything to the next, in milliseconds.
const STEP: Millis = 10;
/// A pass over the flow table takes some steps: three to look at its buckets, and one or two to settle slots.
const PIECE: Budget = Budget {
    buckets: 400,
    slots: 1024,
};
/// The probes' interval.
const INTERVAL: Millis = 1_000;
/// How long a fresh start waits for the first answers, as the daemon does.
const OPENING: Millis = 5_000;
const UNIX: u64 = 1_700_000_000_000;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Time passes, in milliseconds.
    Wait(Millis),
    /// The node loses its power.
    Kill(usize),
    /// It comes back, with nothing.
    Boot(usize),
    /// Its server ends, and it lives on.
    StopServer(usize),
    StartServer(usize),
    /// Its daemon ends; the data path stays.
    StopDaemon(usize),
    StartDaemon(usize),
    ToggleDrain(usize),
    Weight(usize, u32),
    /// So many new flows, from this one on, where there is none.
    Open(usize, usize),
}

struct Node {
    bench: Bench,
    knowledge: Knowledge,
    /// Whether the host lives.
    alive: bool,
    server: bool,
    daemon: bool,
    started: Millis,
    /// When each node is probed next, itself among them.
    due: [Millis; NODES],
    said: Option<Word>,
    said_at: Millis,
    last_ms: u64,
    fencing: Fencing,
    asking: Asking,
    /// What its data path left to the host of others' frames.
    answers: Vec<Vec<u8>>,
    /// Its file of decisions outlives it.
    decisions: Decisions,
}

struct World {
    now: Millis,
    nodes: Vec<Node>,
    /// Words on their way: when they come, to whom.
    wire: Vec<(Millis, usize, Word)>,
    /// Fencing frames, likewise, and how many were sent.
    frames: Vec<(Millis, usize, Vec<u8>)>,
    fenced: usize,
    /// The home of each flow.
    flows: [Option<usize>; FLOWS],
    /// Since when two nodes have kept the packets of a flow.
    double: [Option<Millis>; FLOWS + TRYING],
    doubles: u64,
    random: u64,
}

/// The MAC address from which a node sends; all data paths believe that theirs is the cluster's.
fn node_mac(node: usize) -> [u8; 6] {
    [2, 0, 0, 0, 1, node as u8]
}

fn name(node: usize) -> String {
    format!("n{}", node + 1)
}

fn knowledge(node: usize, decisions: Decisions, opening: bool) -> Knowledge {
    let text = format!(
        r#"
        [node]
        name = "{}"
        interfaces = ["eth0"]
        mode = "pick"
        seed = "00112233445566778899aabbccddeeff"
        [[service]]
        name = "web"
        vip = "192.0.2.10"
        protocol = "tcp"
        ports = [80]
        affinity = "client"
        flow_idle = "10s"
        backend = [{}]
        [service.probe]
        type = "tcp"
        port = 80
        "#,
        name(node),
        // In another order on every node: each numbers them in its own way.
        (0..NODES)
            .map(|place| {
                let number = (node + place) % NODES + 1;
                format!("{{ name = \"n{number}\", address = \"198.51.100.{number}\" }}")
            })
            .collect::<Vec<_>>()
            .join(", ")
    );
    let config = ConfigFile::parse("node.toml", &text)
        .unwrap_or_else(|errors| panic!("{}", errors.render(false)))
        .config;
    let mac = [2, 0, 0, 0, 0, 1];
    let ports = vec![PortState {
        number: 0,
        name: "eth0".into(),
        ifindex: 7,
        mac,
        vlan: None,
    }];
    let facts = HostFacts {
        interfaces: vec![Interface {
            link: Link {
                ifindex: 7,
                name: "eth0".into(),
                mac: Some(mac),
                mtu: 1500,
                up: true,
                running: true,
                loopback: false,
                xdp: None,
                vlan: None,
            },
            addresses: vec![format!("198.51.100.{}/24", node + 1).parse().unwrap()],
            driver: None,
            takes_own_source: false,
        }],
    };
    Knowledge::new(config, decisions, ports, facts, opening)
}

impl Node {
    /// A node whose kernel holds nothing.
    fn fresh(node: usize, decisions: Decisions, now: Millis) -> Self {
        let features = Features::ALL_FORWARDING.with(Features::PICK);
        let mut bench = Bench::of(PlainMemory::with(1 << 14, 2, 8, 64, features));
        bench.now = now;
        let mut fresh = Self {
            bench,
            knowledge: knowledge(node, decisions.clone(), true),
            alive: true,
            server: true,
            daemon: true,
            started: now,
            due: [now; NODES],
            said: None,
            said_at: 0,
            last_ms: 0,
            fencing: Fencing::default(),
            asking: Asking::default(),
            answers: Vec::new(),
            decisions,
        };
        fresh.knowledge.cluster.run_ms = UNIX + now;
        fresh.knowledge.cluster.tokens_ms = UNIX + now;
        fresh.change();
        fresh.keep_fences();
        fresh
    }

    /// What the daemon does after every event.
    fn change(&mut self) {
        self.bench.sweep_until_clean();
        let actual = self.bench.actual();
        let desired = self.knowledge.desired(actual);
        let unix_ms = UNIX + self.bench.now;
        let ops = reconcile(&desired, Scope::All, actual, unix_ms, self.bench.now).unwrap();
        self.bench.execute(&ops);
        self.bench.check();
        self.knowledge.note_done(self.bench.actual());
        let probes = self.knowledge.probes(self.bench.actual());
        self.knowledge.keep_health(self.bench.actual(), &probes);
    }

    /// The order of the daemon's `end_opening`.
    fn open(&mut self) {
        let waited = self.bench.now - self.started > OPENING;
        if self.knowledge.opening && (waited || self.knowledge.all_judged(self.bench.actual())) {
            self.knowledge.opening = false;
            self.join();
        }
    }

    fn join(&mut self) {
        self.knowledge.cluster.missed.clear();
        self.knowledge.cluster.joining.insert("web".to_owned());
        self.change();
        self.knowledge.cluster.joining.clear();
        if let Some(id) = self.bench.actual().service_id("web") {
            self.bench.executor.forget_flows(id);
        }
        self.change();
    }

    /// The order of the daemon's `on_word`.
    fn hear(&mut self, word: Word) {
        let own = self.knowledge.config().node.name.clone();
        let news = self
            .knowledge
            .cluster
            .peers
            .hear(word, &own, self.bench.now);
        if !news.excluded.is_empty() && !self.knowledge.opening {
            self.join();
        } else if !news.touched.is_empty() {
            self.change();
        }
    }

    fn keep_fences(&self) {
        fencing::keep(
            &self.bench.executor.maps,
            &self.knowledge,
            self.bench.actual(),
        );
        presence::keep(
            &self.bench.executor.maps,
            &self.knowledge,
            self.bench.actual(),
        );
    }

    /// The order of the daemon's `hear_answers`.
    fn hear_answers(&mut self) {
        let seed = self.bench.executor.maps.control().seed();
        for payload in std::mem::take(&mut self.answers) {
            if let Some(told) = self.asking.understand(seed, &payload)
                && self.knowledge.hear_presence(&told, self.bench.now)
            {
                self.keep_fences();
                self.change();
            }
        }
    }

    /// The order of the daemon's `join_where_fenced`.
    fn join_where_fenced(&mut self) {
        if self.is_fenced() && !self.knowledge.opening {
            self.join();
            let cluster = &mut self.knowledge.cluster;
            cluster.tokens_ms = (UNIX + self.bench.now).max(cluster.tokens_ms + 1);
            self.keep_fences();
        }
    }

    fn is_fenced(&self) -> bool {
        let maps = &self.bench.executor.maps;
        !fencing::fenced(maps, &self.knowledge, self.bench.actual()).is_empty()
    }

    /// Takes over what its kernel holds.
    fn adopt(&mut self, node: usize) {
        let now = self.bench.now;
        self.bench.executor.actual = adopt(&self.bench.executor.maps, now).unwrap();
        self.knowledge = knowledge(node, self.decisions.clone(), false);
        let probes = self.knowledge.probes(self.bench.actual());
        self.knowledge.keep_health(self.bench.actual(), &probes);
        (self.daemon, self.started, self.said) = (true, now, None);
        self.due = [now; NODES];
        (self.fencing, self.asking) = (Fencing::default(), Asking::default());
        self.answers.clear();
        self.knowledge.cluster.run_ms = UNIX + now;
        self.knowledge.cluster.tokens_ms = UNIX + now;
        come_back(
            &mut self.bench.executor,
            &name(node),
            UNIX + now,
            now,
            || now,
        )
        .unwrap();
        self.knowledge.note_away(self.bench.actual());
        self.join_where_fenced();
        self.change();
        self.keep_fences();
    }

    /// What its data path does with a packet.
    fn process(&self, frame: &mut [u8]) -> Verdict {
        let tables = &self.bench.executor.maps.tables;
        tables.set_now(self.bench.tick());
        process(&mut Buffer::new(frame), tables).verdict
    }

    /// Whether its data path keeps a packet.
    fn keeps(&self, frame: &[u8]) -> bool {
        self.process(&mut frame.to_vec()) == Verdict::Local
    }
}

impl World {
    fn new(random: u64) -> Self {
        let now = 1_000_000;
        let mut world = Self {
            now,
            nodes: (0..NODES)
                .map(|node| Node::fresh(node, Decisions::default(), now))
                .collect(),
            wire: Vec::new(),
            frames: Vec::new(),
            fenced: 0,
            flows: [None; FLOWS],
            double: [None; FLOWS + TRYING],
            doubles: 0,
            random,
        };
        world.wait(OPENING);
        world
    }

    /// A number below `below` (SplitMix64).
    fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    fn works(&self, node: usize) -> bool {
        self.nodes[node].alive && self.nodes[node].daemon
    }

    fn wait(&mut self, ms: Millis) {
        let end = self.now + ms;
        while self.now < end {
            self.now += STEP;
            for node in &mut self.nodes {
                node.bench.now = self.now;
            }
            let due: Vec<(usize, Word)> = {
                let now = self.now;
                let (come, still): (Vec<_>, Vec<_>) =
                    self.wire.drain(..).partition(|(at, ..)| *at <= now);
                self.wire = still;
                come.into_iter().map(|(_, to, word)| (to, word)).collect()
            };
            for (to, word) in due {
                if self.works(to) {
                    self.nodes[to].hear(word);
                }
            }
            let now = self.now;
            let frames: Vec<_> = self.frames.extract_if(.., |(at, ..)| *at <= now).collect();
            for (_, to, frame) in frames {
                if self.nodes[to].alive {
                    self.take_frame(to, frame);
                }
            }
            for node in 0..NODES {
                if self.nodes[node].alive && self.nodes[node].is_fenced() {
                    self.lose_flows(node);
                }
                if self.works(node) {
                    self.tick(node);
                }
            }
            if self.now.is_multiple_of(100) {
                self.send_all();
            }
        }
    }

    /// What a node's daemon does by the clock.
    fn tick(&mut self, index: usize) {
        for other in 0..NODES {
            if self.nodes[index].due[other] > self.now {
                continue;
            }
            // The first is spread over the interval, the later ones have a jitter of a tenth.
            let first = self.nodes[index].due[other] == self.nodes[index].started;
            let gap = if first {
                50 + self.random(INTERVAL)
            } else {
                INTERVAL * 9 / 10 + self.random(INTERVAL / 5)
            };
            self.nodes[index].due[other] = self.now + gap;
            if !first || other == index {
                self.probe(index, other);
            }
        }
        let node = &mut self.nodes[index];
        let period = u64::try_from(PERIOD.as_millis()).unwrap();
        if (self.now + 90 * index as Millis) % period < STEP {
            node.join_where_fenced();
            node.hear_answers();
            self.ask(index);
            self.nodes[index].keep_fences();
        }
        let node = &mut self.nodes[index];
        if !node.knowledge.cluster.peers.expire(self.now).is_empty() {
            node.change();
        }
        node.open();
        // The passes of the nodes begin at different times, and packets, words and changes come between their pieces.
        let begins = (self.now + 170 * index as Millis).is_multiple_of(500);
        if begins || node.bench.sweeper.is_active() {
            node.bench.sweep_piece(PIECE);
        }
        node.knowledge.catch_up(node.bench.actual());
        self.speak(index);
        self.fence(index);
    }

    /// The daemon's `fence_peers`; the frame comes to every other node.
    fn fence(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let due = node.fencing.due(
            &node.bench.executor.maps,
            &node.knowledge,
            &node.bench.executor.actual,
            self.now,
        );
        self.fenced += due.len();
        for payload in due {
            self.send_to_cluster(index, &payload);
        }
    }

    /// The daemon's `ask_peers`.
    fn ask(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let due = node.asking.due(
            node.bench.executor.maps.control().seed(),
            &node.knowledge,
            &node.bench.executor.actual,
            self.now,
        );
        for payload in due {
            self.send_to_cluster(index, &payload);
        }
    }

    fn send_to_cluster(&mut self, from: usize, payload: &[u8]) {
        let cluster = lb_common::wire::mac_bytes(OWN_MAC);
        let frame = cluster_frames::frame(cluster, node_mac(from), payload);
        for other in (0..NODES).filter(|other| *other != from) {
            self.send_frame(other, frame.clone());
        }
    }

    fn send_frame(&mut self, to: usize, frame: Vec<u8>) {
        let (lost, delay) = (self.random(10) == 0, 1 + self.random(5));
        if !lost {
            self.frames.push((self.now + delay, to, frame));
        }
    }

    /// A frame of another node's comes to a data path, and to the host behind it. Every node sees every frame.
    fn take_frame(&mut self, to: usize, mut frame: Vec<u8>) {
        match self.nodes[to].process(&mut frame) {
            Verdict::OtherEthertype => self.nodes[to].answers.push(frame[14..].to_vec()),
            Verdict::PresenceReplied => {
                for other in (0..NODES).filter(|other| *other != to) {
                    self.send_frame(other, frame.clone());
                }
            }
            verdict => assert_eq!(verdict, Verdict::ClusterFrame),
        }
    }

    fn probe(&mut self, index: usize, other: usize) {
        let answers = self.nodes[other].alive && self.nodes[other].server;
        let node = &mut self.nodes[index];
        let service = node.knowledge.config().services[0].clone();
        let number = node
            .knowledge
            .number(
                &service,
                service
                    .backends
                    .iter()
                    .find(|b| b.name == name(other))
                    .unwrap(),
                node.bench.actual(),
            )
            .unwrap();
        let Some(health) = node.knowledge.health.get_mut(&number) else {
            return;
        };
        let result = if answers {
            Ok(Duration::from_millis(1))
        } else {
            Err(ProbeFailure::Refused {
                target: "198.51.100.1:80".parse().unwrap(),
            })
        };
        let before = (health.state(), health.is_probed());
        health.observe(&result, SystemTime::UNIX_EPOCH);
        if before != (health.state(), health.is_probed()) {
            node.change();
        }
    }

    fn speak(&mut self, index: usize) {
        let node = &self.nodes[index];
        let word = node
            .knowledge
            .own_word(node.bench.actual(), UNIX + self.now);
        let timeless = Word {
            at_ms: 0,
            ..word.clone()
        };
        let period = u64::try_from(PERIOD.as_millis()).unwrap();
        if node.said.as_ref() == Some(&timeless) && self.now - node.said_at < period {
            return;
        }
        let node = &mut self.nodes[index];
        (node.said, node.said_at) = (Some(timeless), self.now);
        let word = Word {
            at_ms: word.at_ms.max(node.last_ms + 1),
            ..word
        };
        node.last_ms = word.at_ms;
        for other in (0..NODES).filter(|other| *other != index) {
            let (lost, delay) = (self.random(10) == 0, 1 + self.random(30));
            if !lost {
                self.wire.push((self.now + delay, other, word.clone()));
            }
        }
    }

    /// The nodes that keep a packet of a flow.
    fn keepers(&mut self, flow: usize, flags: u8) -> Vec<usize> {
        let frame = frame(flow, flags);
        let keepers: Vec<usize> = (0..NODES)
            .filter(|node| self.nodes[*node].alive && self.nodes[*node].keeps(&frame))
            .collect();
        if keepers.len() > 1 {
            self.doubles += 1;
            let since = *self.double[flow].get_or_insert(self.now);
            assert!(
                self.now - since < INTERVAL,
                "flow {flow} kept by {keepers:?} for {} ms",
                self.now - since
            );
        } else {
            self.double[flow] = None;
        }
        keepers
    }

    fn serves(&self, node: usize) -> bool {
        self.nodes[node].alive && self.nodes[node].server
    }

    fn send_all(&mut self) {
        for flow in 0..FLOWS {
            let Some(home) = self.flows[flow] else {
                continue;
            };
            let keepers = self.keepers(flow, TCP_ACK);
            if self.serves(home) {
                assert_eq!(keepers, [home], "flow {flow} at {}", self.now);
            } else if keepers
                .iter()
                .any(|node| *node != home && self.serves(*node))
            {
                // Whoever takes over resets it.
                self.flows[flow] = None;
            }
        }
        for flow in FLOWS..FLOWS + TRYING {
            self.keepers(flow, TCP_SYN);
        }
    }

    fn open(&mut self, first: usize, count: usize) {
        for flow in first..first + count {
            let flow = flow % FLOWS;
            if self.flows[flow].is_some() {
                continue;
            }
            if let [home] = self.keepers(flow, TCP_SYN)[..]
                && self.serves(home)
                && !self.is_found_down(home)
            {
                self.flows[flow] = Some(home);
            }
        }
    }

    /// Its flows are lost: their node answers them no more, or has forgotten them.
    fn lose_flows(&mut self, node: usize) {
        for flow in &mut self.flows {
            if *flow == Some(node) {
                *flow = None;
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Wait(ms) => self.wait(ms),
            Step::Kill(node) => {
                self.nodes[node].alive = false;
            }
            Step::Boot(node) => {
                if !self.nodes[node].alive {
                    self.lose_flows(node);
                    let decisions = self.nodes[node].decisions.clone();
                    self.nodes[node] = Node::fresh(node, decisions, self.now);
                }
            }
            Step::StopServer(node) if self.nodes[node].alive => {
                self.nodes[node].server = false;
                self.lose_flows(node);
            }
            Step::StartServer(node) => self.nodes[node].server = true,
            Step::StopDaemon(node) if self.serves(node) && self.has_settled(node) => {
                self.nodes[node].daemon = false;
            }
            Step::StartDaemon(node) => {
                if self.nodes[node].alive && !self.nodes[node].daemon {
                    self.nodes[node].adopt(node);
                }
            }
            Step::ToggleDrain(node) => self.decide(node, |decision| {
                decision.drained = !decision.drained;
            }),
            Step::Weight(node, weight) => self.decide(node, |decision| {
                decision.weight = Some(weight);
            }),
            Step::Open(first, count) => self.open(first, count),
            Step::StopServer(_) | Step::StopDaemon(_) => {}
        }
    }

    /// Whether somebody has yet to find out that a server is back that had failed: what it has, anybody may take.
    fn is_found_down(&self, node: usize) -> bool {
        (0..NODES)
            .filter(|other| *other != node && self.works(*other))
            .any(|other| {
                let knowledge = &self.nodes[other].knowledge;
                let service = &knowledge.config().services[0];
                let backend = service.backends.iter().find(|b| b.name == name(node));
                let number = backend.and_then(|backend| {
                    knowledge.number(service, backend, self.nodes[other].bench.actual())
                });
                number
                    .and_then(|number| knowledge.health.get(&number))
                    .is_some_and(|health| health.is_probed() && health.state() != HealthState::Up)
            })
    }

    /// Whether the node has been in for long enough that its own probe knows its server.
    fn has_settled(&self, node: usize) -> bool {
        let node = &self.nodes[node];
        !node.knowledge.opening && node.knowledge.health.values().any(Health::is_probed)
    }

    fn decide(&mut self, index: usize, change: impl FnOnce(&mut Decision)) {
        if !self.works(index) {
            return;
        }
        let node = &mut self.nodes[index];
        let mut decision = node.decisions.of("web", &name(index));
        change(&mut decision);
        node.decisions.set("web", &name(index), decision);
        node.knowledge.decisions = node.decisions.clone();
        node.change();
        self.speak(index);
    }

    /// Nothing happens any more, but that daemons come back: all agree.
    fn rest(&mut self) {
        for node in 0..NODES {
            self.step(Step::StartDaemon(node));
        }
        self.wait(20_000);
        let serving: Vec<usize> = (0..NODES)
            .filter(|node| self.serves(*node))
            .filter(|node| {
                let decision = self.nodes[*node].decisions.of("web", &name(*node));
                !decision.drained
            })
            .collect();
        self.flows = [None; FLOWS];
        for flow in 0..FLOWS {
            let keepers = self.keepers(flow, TCP_SYN);
            if serving.is_empty() {
                assert!(keepers.is_empty(), "{keepers:?}");
            } else {
                assert_eq!(keepers.len(), 1, "flow {flow}: {keepers:?} of {serving:?}");
                assert!(serving.contains(&keepers[0]), "{keepers:?} of {serving:?}");
            }
        }
    }
}

/// A TCP segment without payload, as every node sees it.
fn frame(flow: usize, flags: u8) -> Vec<u8> {
    let client = Ipv4Addr::new(203, 0, 113, flow as u8);
    let mut frame = lb_common::wire::mac_bytes(OWN_MAC).to_vec();
    frame.extend([2, 9, 9, 9, 9, 9, 0x08, 0x00]);
    frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
    frame.extend(client.octets());
    frame.extend([192, 0, 2, 10]);
    frame.extend((20_000 + flow as u16).to_be_bytes());
    frame.extend([0, 80]);
    frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

fn live(random: u64, steps: &[Step]) -> u64 {
    let mut world = World::new(random);
    for step in steps {
        world.step(*step);
    }
    world.rest();
    world.doubles
}

fn run(failures: bool, cases: u32) {
    let node = || 0..NODES;
    let planned = prop_oneof![
        6 => (0u64..4_000).prop_map(Step::Wait),
        6 => (0..FLOWS, 1..FLOWS).prop_map(|(first, count)| Step::Open(first, count)),
        3 => node().prop_map(Step::ToggleDrain),
        2 => (node(), prop::sample::select(&[5u32, 50, 200][..])).prop_map(|(n, w)| Step::Weight(n, w)),
        1 => node().prop_map(Step::StopDaemon),
        2 => node().prop_map(Step::StartDaemon),
        2 => node().prop_map(Step::Kill),
        3 => node().prop_map(Step::Boot),
    ];
    let with_failures = prop_oneof![
        9 => planned.clone(),
        2 => node().prop_map(Step::StopServer),
        3 => node().prop_map(Step::StartServer),
        // Long enough that the peers of a node without a daemon find out.
        1 => node().prop_map(Step::StopDaemon),
        2 => (4_000u64..9_000).prop_map(Step::Wait),
    ];
    let steps = if failures {
        vec(with_failures, 1..40).boxed()
    } else {
        vec(planned, 1..40).boxed()
    };
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(cases);
    let mut runner = TestRunner::new(RunnerConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 512,
        ..RunnerConfig::default()
    });
    runner
        .run(&(any::<u64>(), steps), |(random, steps)| {
            let doubles = live(random, &steps);
            if !failures {
                assert_eq!(doubles, 0, "packets kept by two nodes");
            }
            Ok(())
        })
        .unwrap();
}

/// Drains, weights, nodes that die and come back, daemons that end: nobody is ever answered twice.
#[test]
fn no_packet_is_kept_by_two_nodes() {
    run(false, 16);
}

/// A server that fails under its living node: by the node's own probe and by those of its peers, whoever is first.
#[test]
fn while_views_differ_nobody_is_answered_twice_for_long() {
    run(true, 16);
}

/// What was found with chance's help is kept: no packet twice, where no server failed under a living node.
#[track_caller]
fn never_twice(random: u64, steps: &[Step]) {
    assert_eq!(live(random, steps), 0, "packets kept by two nodes");
}

/// It knows its peers before it serves, and counts them as gone and in again as its first answers come. That was believed: they
/// gave all their flows up.
#[test]
fn a_node_that_has_just_begun_puts_nobody_out() {
    use Step::*;
    never_twice(
        7_667_096_497_400_147_872,
        &[
            Kill(1),
            Open(0, 3),
            StopDaemon(0),
            Boot(1),
            ToggleDrain(2),
            ToggleDrain(1),
            Wait(1_961),
            ToggleDrain(2),
            StartDaemon(0),
        ],
    );
    never_twice(
        164_938_438_759_966_961,
        &[ToggleDrain(1), Kill(1), Open(0, 1), Boot(1)],
    );
}

/// A word on its way when its node lost its power comes after the first one of the node that began again.
#[test]
fn a_late_word_of_a_run_that_is_over_is_not_believed() {
    use Step::*;
    never_twice(
        8_909_426_990_776_414_234,
        &[Kill(1), Boot(1), Open(0, 1), ToggleDrain(1)],
    );
    never_twice(
        6_232_041_947_238_442_817,
        &[ToggleDrain(2), Kill(2), Boot(2), Open(0, 1), ToggleDrain(2)],
    );
}

/// While its daemon was away a peer failed, and another took that one's slots. It came back, found the peer failed, and took the
/// slots in its turn, with the flows that had begun there.
#[test]
fn a_node_whose_daemon_was_away_leaves_alone_what_a_third_took() {
    use Step::*;
    live(
        0,
        &[
            StopDaemon(2),
            StopServer(0),
            Weight(1, 200),
            Wait(2_681),
            Open(4, 8),
            Weight(1, 5),
        ],
    );
    never_twice(
        0,
        &[
            StopDaemon(0),
            Kill(1),
            Wait(2_051),
            StartDaemon(0),
            Open(0, 4),
            ToggleDrain(2),
        ],
    );
}

/// A peer dies while a drain is taken back: one node takes over by a table that the other only comes to know together with the
/// next one.
#[test]
fn a_flow_on_a_dead_node_may_be_one_that_a_third_has_taken() {
    use Step::*;
    never_twice(
        7_571_077_861_734_599_337,
        &[
            ToggleDrain(0),
            ToggleDrain(2),
            Wait(1_351),
            Kill(1),
            Wait(2_051),
            ToggleDrain(2),
            Open(0, 1),
        ],
    );
}

/// The last one serves nobody any more, and does not know yet that another has just begun to.
#[test]
fn a_flow_that_opens_while_nobody_is_known_to_serve_is_no_old_one() {
    use Step::*;
    never_twice(
        3_905_955_564_143_533_826,
        &[
            Wait(141),
            Wait(1_911),
            Wait(1_041),
            Kill(2),
            Kill(1),
            Wait(2_751),
            Wait(3_381),
            ToggleDrain(0),
            Wait(651),
            Boot(2),
            Wait(1_261),
            Open(0, 1),
        ],
    );
}

/// It is drained and taken back at once, and one of the others hears of the first alone, for a while.
#[test]
fn what_was_given_up_comes_back_when_all_have_heard_that_it_is_wanted_again() {
    use Step::*;
    never_twice(
        14_621_959_116_875_019_437,
        &[
            Kill(0),
            ToggleDrain(1),
            Wait(1_121),
            Weight(1, 5),
            Boot(0),
            Wait(1_861),
            ToggleDrain(0),
            ToggleDrain(0),
        ],
    );
    for random in 0..24 {
        never_twice(
            random,
            &[ToggleDrain(0), ToggleDrain(0), Wait(400), Weight(1, 5)],
        );
    }
}

/// Its daemon is gone and its server fails: nobody is there to give its share up, which its peers take. Then the server is back
/// before the daemon.
#[test]
fn a_node_without_a_daemon_is_fenced_when_its_server_fails() {
    use Step::*;
    for random in 0..4 {
        live(
            random,
            &[
                StopDaemon(0),
                Open(0, 20),
                StopServer(0),
                Wait(12_000),
                StartServer(0),
                Open(0, 60),
                Wait(4_000),
                StartDaemon(0),
                Wait(4_000),
            ],
        );
    }
}

/// It begins with nothing, and the only other node that lives has no daemon: nobody says that this one is there, but its data path.
#[test]
fn a_node_that_begins_asks_the_data_path_of_one_that_nobody_hears() {
    use Step::*;
    let alone = [
        Kill(1),
        Kill(2),
        Wait(6_000),
        StopDaemon(0),
        Open(0, 20),
        Boot(1),
        Wait(8_000),
        Open(20, 20),
    ];
    let back = [StartDaemon(0), Wait(8_000), Open(40, 20)];
    // By what the first has heard of it, this one can fence it as well.
    let failed = [StopServer(0), Wait(8_000), Open(40, 20), StartServer(0)];
    for random in 0..4 {
        never_twice(random, &[&alone[..], &back].concat());
        live(random, &[&alone[..], &failed, &back].concat());
    }
}

/// The same where the server had failed before, so that its data path is all that is left of it.
#[test]
fn a_node_that_begins_fences_one_whose_data_path_is_all_that_is_left() {
    use Step::*;
    for random in 0..4 {
        live(
            random,
            &[
                Kill(1),
                Kill(2),
                Wait(6_000),
                StopDaemon(0),
                Open(0, 20),
                StopServer(0),
                Boot(1),
                Wait(8_000),
                Open(0, 60),
                StartServer(0),
                Wait(4_000),
            ],
        );
    }
}

/// All drain, and its daemon ends. Then a peer serves again, and a client takes the ports of a flow that this node had once.
#[test]
fn a_flow_that_opens_again_elsewhere_is_not_the_one_recorded_here() {
    use Step::*;
    live(
        0,
        &[
            ToggleDrain(2),
            ToggleDrain(2),
            Open(12, 16),
            ToggleDrain(0),
            ToggleDrain(2),
            StopServer(0),
            StartServer(0),
            ToggleDrain(1),
            Wait(41),
            StopDaemon(0),
            Wait(401),
            ToggleDrain(1),
            Wait(581),
            Open(0, 13),
        ],
    );
}

/// A dead node is told so by each of the others: four times within a second, then once in each interval of the probes; and no more
/// when it is back.
#[test]
fn nobody_is_fenced_more_often_than_it_takes() {
    let mut world = World::new(0);
    world.wait(10_000);
    assert_eq!(world.fenced, 0);
    world.step(Step::Kill(2));
    world.wait(6 * INTERVAL);
    assert!(world.fenced >= 8, "{}", world.fenced);
    let before = world.fenced;
    world.wait(10 * INTERVAL);
    assert_eq!(world.fenced - before, 20);
    world.step(Step::Boot(2));
    world.wait(6 * INTERVAL);
    let before = world.fenced;
    world.wait(6 * INTERVAL);
    assert_eq!(world.fenced, before);
}
