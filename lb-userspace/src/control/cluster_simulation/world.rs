//! The nodes, what is on its way between them, and the flows whose packets come to all of them.

use std::{
    net::Ipv4Addr,
    time::{Duration, SystemTime},
};

use lb_common::{
    verdict::Verdict,
    wire::{TCP_ACK, TCP_SYN},
};

use super::{
    super::{
        actual::Millis,
        decisions::{Decision, Decisions},
        memory::Memory as _,
        peers::PERIOD,
        samples::OWN_MAC,
        words::Word,
    },
    FLOWS, INTERVAL, NODES, OPENING, PIECE, Probing, STEP, Step, TRYING, UNIX,
    node::{Node, name, node_mac},
};
use crate::{
    health::{Health, HealthState, ProbeFailure},
    neighbour::cluster_frames,
};

/// A word takes no longer than this, if three are not lost one after the other.
const UNHEARD: Millis = 900;

pub(super) struct World {
    pub(super) now: Millis,
    pub(super) nodes: Vec<Node>,
    /// Words on their way: when they come, to whom.
    pub(super) wire: Vec<(Millis, usize, Word)>,
    /// Fencing frames, likewise, and how many were sent.
    pub(super) frames: Vec<(Millis, usize, Vec<u8>)>,
    pub(super) fenced: usize,
    /// The home of each flow.
    pub(super) flows: [Option<usize>; FLOWS],
    /// Since when two nodes have kept the packets of a flow.
    pub(super) double: [Option<Millis>; FLOWS + TRYING],
    pub(super) doubles: u64,
    /// When a cable was put back last.
    pub(super) healed: Millis,
    pub(super) random: u64,
}

impl World {
    pub(super) fn new(random: u64, probing: Probing) -> Self {
        let now = 1_000_000;
        let mut world = Self {
            now,
            nodes: (0..NODES)
                .map(|node| Node::fresh(node, probing, Decisions::default(), now))
                .collect(),
            wire: Vec::new(),
            frames: Vec::new(),
            fenced: 0,
            healed: 0,
            flows: [None; FLOWS],
            double: [None; FLOWS + TRYING],
            doubles: 0,
            random,
        };
        world.wait(OPENING);
        world
    }

    /// A number below `below` (SplitMix64).
    pub(super) fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    pub(super) fn works(&self, node: usize) -> bool {
        self.nodes[node].alive && self.nodes[node].daemon
    }

    pub(super) fn wait(&mut self, ms: Millis) {
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
                if self.works(to) && !self.nodes[to].cut {
                    self.nodes[to].hear(word);
                }
            }
            let now = self.now;
            let frames: Vec<_> = self.frames.extract_if(.., |(at, ..)| *at <= now).collect();
            for (_, to, frame) in frames {
                if self.nodes[to].alive && !self.nodes[to].cut {
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
    pub(super) fn tick(&mut self, index: usize) {
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
            self.ask(index);
            self.nodes[index].keep_fences();
        }
        let node = &mut self.nodes[index];
        if (self.now + 30 * index as Millis) % 50 < STEP {
            node.hear_answers();
        }
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
    pub(super) fn fence(&mut self, index: usize) {
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
    pub(super) fn ask(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let due = node.asking.due(
            node.bench.executor.maps.control().seed(),
            &node.knowledge,
            &node.bench.executor.actual,
            self.now,
        );
        let mut absent = false;
        for question in due {
            let peers = &mut self.nodes[index].knowledge.cluster.peers;
            absent |= peers.asked(&question.node, &question.service);
            self.send_to_cluster(index, &question.payload);
        }
        if absent {
            self.nodes[index].change();
        }
    }

    pub(super) fn send_to_cluster(&mut self, from: usize, payload: &[u8]) {
        let cluster = lb_common::wire::mac_bytes(OWN_MAC);
        let frame = cluster_frames::frame(cluster, node_mac(from), payload);
        if self.nodes[from].cut {
            return;
        }
        for other in (0..NODES).filter(|other| *other != from) {
            self.send_frame(other, frame.clone());
        }
    }

    pub(super) fn send_frame(&mut self, to: usize, frame: Vec<u8>) {
        let lost = self.random(10) == 0;
        let delay = 1 + self.random(5);
        if !lost {
            self.frames.push((self.now + delay, to, frame));
        }
    }

    /// A frame of another node's comes to a data path, and to the host behind it. Every node sees every frame.
    pub(super) fn take_frame(&mut self, to: usize, mut frame: Vec<u8>) {
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

    pub(super) fn probe(&mut self, index: usize, other: usize) {
        let reached = index == other || !self.nodes[index].cut && !self.nodes[other].cut;
        let host = self.nodes[other].alive || self.nodes[other].bare;
        let answers = reached && host && self.nodes[other].server;
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
        let before = (health.state(), health.is_probed(), health.is_found_down());
        health.observe(&result, SystemTime::UNIX_EPOCH);
        if before != (health.state(), health.is_probed(), health.is_found_down()) {
            node.change();
        }
    }

    pub(super) fn speak(&mut self, index: usize) {
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
            if !lost && !self.nodes[index].cut {
                self.wire.push((self.now + delay, other, word.clone()));
            }
        }
    }

    /// The nodes that keep a packet of a flow.
    pub(super) fn keepers(&mut self, flow: usize, flags: u8) -> Vec<usize> {
        let frame = frame(flow, flags);
        let keepers: Vec<usize> = (0..NODES)
            .filter(|node| self.nodes[*node].alive && !self.nodes[*node].cut)
            .filter(|node| self.nodes[*node].keeps(&frame))
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

    pub(super) fn serves(&self, node: usize) -> bool {
        self.nodes[node].alive && !self.nodes[node].cut && self.nodes[node].server
    }

    pub(super) fn send_all(&mut self) {
        for flow in 0..FLOWS {
            let Some(home) = self.flows[flow] else {
                continue;
            };
            let keepers = self.keepers(flow, TCP_ACK);
            // Until its first word, or its peers', it answers for all.
            if self.now - self.healed < UNHEARD {
                continue;
            }
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

    pub(super) fn open(&mut self, first: usize, count: usize) {
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
    pub(super) fn lose_flows(&mut self, node: usize) {
        for flow in &mut self.flows {
            if *flow == Some(node) {
                *flow = None;
            }
        }
    }

    pub(super) fn step(&mut self, step: Step) {
        match step {
            Step::Wait(ms) => self.wait(ms),
            Step::Kill(node) => {
                (self.nodes[node].alive, self.nodes[node].bare) = (false, false);
            }
            Step::Boot(node) => {
                if !self.nodes[node].alive {
                    self.lose_flows(node);
                    let decisions = self.nodes[node].decisions.clone();
                    let probing = self.nodes[node].probing;
                    self.nodes[node] = Node::fresh(node, probing, decisions, self.now);
                }
            }
            Step::Leave(node) if self.works(node) => {
                let at_ms = (UNIX + self.now).max(self.nodes[node].last_ms + 1);
                let leaver = &self.nodes[node];
                let word = Word {
                    leaving: true,
                    ..leaver.knowledge.own_word(leaver.bench.actual(), at_ms)
                };
                for other in (0..NODES).filter(|other| *other != node) {
                    let delay = 1 + self.random(30);
                    self.wire.push((self.now + delay, other, word.clone()));
                }
                self.lose_flows(node);
                self.nodes[node].alive = false;
                self.nodes[node].bare = true;
            }
            Step::Bare(node) if !self.nodes[node].alive => {
                self.nodes[node].bare = true;
            }
            Step::Cut(node) => {
                self.lose_flows(node);
                self.nodes[node].cut = true;
            }
            Step::Heal(node) => {
                self.nodes[node].cut = false;
                self.healed = self.now;
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
            Step::StopServer(_) | Step::StopDaemon(_) | Step::Leave(_) | Step::Bare(_) => {}
        }
    }

    /// Whether somebody has yet to find out that a server is back that had failed: what it has, anybody may take.
    pub(super) fn is_found_down(&self, node: usize) -> bool {
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
    pub(super) fn has_settled(&self, node: usize) -> bool {
        let node = &self.nodes[node];
        !node.knowledge.opening
            && (node.probing == Probing::Never
                || node.knowledge.health.values().any(Health::is_probed))
    }

    pub(super) fn decide(&mut self, index: usize, change: impl FnOnce(&mut Decision)) {
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
    pub(super) fn rest(&mut self) {
        for node in 0..NODES {
            self.step(Step::Heal(node));
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
pub(super) fn frame(flow: usize, flags: u8) -> Vec<u8> {
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
