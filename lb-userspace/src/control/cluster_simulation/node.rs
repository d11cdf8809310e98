//! One node: its real data path, reconciler, judgement and words, without its sockets.

use std::collections::BTreeSet;

use lb_common::{features::Features, forward::process, packet::Buffer, verdict::Verdict};

use super::{
    super::{
        actual::Millis,
        adopt::adopt,
        cluster::Heard,
        comeback::come_back,
        decisions::Decisions,
        fencing::{self, Fencing},
        knowledge::Knowledge,
        memory::Memory as _,
        ports::PortState,
        presence::{self, Asking},
        reconcile::{Scope, reconcile},
        samples::{Bench, PlainMemory},
        sweeper::Sweeper,
        words::Word,
    },
    NODES, OPENING, Probing, UNIX,
};
use crate::{
    config::ConfigFile,
    neighbour::{HostFacts, Interface, Link},
};

pub(super) struct Node {
    pub(super) bench: Bench,
    pub(super) knowledge: Knowledge,
    pub(super) probing: Probing,
    /// Whether the host lives, with a data path on it.
    pub(super) alive: bool,
    /// Whether it lives without one: its server answers probes.
    pub(super) bare: bool,
    /// Whether its cable is pulled.
    pub(super) cut: bool,
    pub(super) server: bool,
    pub(super) daemon: bool,
    pub(super) started: Millis,
    /// When its maps were made, in Unix seconds.
    pub(super) since: u64,
    /// When each node is probed next, itself among them.
    pub(super) due: [Millis; NODES],
    pub(super) said: Option<Word>,
    pub(super) said_at: Millis,
    pub(super) last_ms: u64,
    pub(super) fencing: Fencing,
    pub(super) asking: Asking,
    /// What its data path left to the host of others' frames.
    pub(super) answers: Vec<Vec<u8>>,
    /// Its file of decisions outlives it.
    pub(super) decisions: Decisions,
}

/// The MAC address from which a node sends; all data paths believe that theirs is the cluster's.
pub(super) fn node_mac(node: usize) -> [u8; 6] {
    [2, 0, 0, 0, 1, node as u8]
}

pub(super) fn name(node: usize) -> String {
    format!("n{}", node + 1)
}

pub(super) fn knowledge(
    node: usize,
    probing: Probing,
    decisions: Decisions,
    opening: bool,
) -> Knowledge {
    let probe = match probing {
        Probing::Tcp => "[service.probe]\ntype = \"tcp\"\nport = 80",
        Probing::Never => "",
    };
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
        {probe}
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
    pub(super) fn fresh(node: usize, probing: Probing, decisions: Decisions, now: Millis) -> Self {
        let features = Features::ALL_FORWARDING.with(Features::PICK);
        let mut bench = Bench::of(PlainMemory::with(1 << 14, 2, 8, 64, features));
        bench.now = now;
        let mut fresh = Self {
            bench,
            knowledge: knowledge(node, probing, decisions.clone(), true),
            probing,
            alive: true,
            bare: false,
            cut: false,
            server: true,
            daemon: true,
            started: now,
            since: (UNIX + now) / 1_000,
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
        fresh.knowledge.cluster.since = fresh.since;
        fresh.change();
        fresh.keep_fences();
        fresh
    }

    /// What the daemon does after every event.
    pub(super) fn change(&mut self) {
        self.bench.sweep_until_clean();
        let actual = self.bench.actual();
        let desired = self.knowledge.desired(actual);
        let unix_ms = UNIX + self.bench.now;
        let ops = reconcile(&desired, Scope::All, actual, unix_ms, self.bench.now).unwrap();
        self.bench.execute(&ops);
        self.bench.check();
        self.knowledge
            .note_done(&self.bench.executor.actual, self.bench.now);
        let probes = self.knowledge.probes(self.bench.actual());
        self.knowledge.keep_health(self.bench.actual(), &probes);
        self.keep_presence();
    }

    /// The order of the daemon's `end_opening`.
    pub(super) fn open(&mut self) {
        let waited = self.bench.now - self.started > OPENING;
        if self.knowledge.opening && (waited || self.knowledge.all_judged(self.bench.actual())) {
            self.knowledge.opening = false;
            self.join();
        }
    }

    pub(super) fn join(&mut self) {
        self.knowledge.cluster.joining.insert("web".to_owned());
        self.change();
        self.knowledge.end_joining();
        if let Some(id) = self.bench.actual().service_id("web") {
            self.bench.executor.forget_flows(id);
        }
        self.change();
    }

    /// The order of the daemon's `on_word`.
    pub(super) fn hear(&mut self, word: Word) {
        let now = self.bench.now;
        let news = self.knowledge.hear(word, &self.bench.executor.actual, now);
        if !news.excluded.is_empty() && !self.knowledge.opening {
            let actual = &self.bench.executor.actual;
            self.knowledge
                .begin_anew(&news.excluded, actual, UNIX + now);
            self.join();
        } else if !news.touched.is_empty() {
            self.change();
        }
    }

    pub(super) fn keep_fences(&self) {
        fencing::keep(
            &self.bench.executor.maps,
            &self.knowledge,
            self.bench.actual(),
        );
        self.keep_presence();
    }

    pub(super) fn keep_presence(&self) {
        presence::keep(
            &self.bench.executor.maps,
            &self.knowledge,
            self.bench.actual(),
        );
    }

    /// The order of the daemon's `hear_answers`.
    pub(super) fn hear_answers(&mut self) {
        let seed = self.bench.executor.maps.control().seed();
        for payload in std::mem::take(&mut self.answers) {
            let Some(told) = self.asking.understand(seed, &payload) else {
                continue;
            };
            let now = self.bench.now;
            let heard = self.knowledge.hear_presence(&told);
            if heard == Heard::Nothing {
                continue;
            }
            self.keep_fences();
            if heard == Heard::BeforeThisNode {
                let service = BTreeSet::from([told.service]);
                let actual = &self.bench.executor.actual;
                self.knowledge.begin_anew(&service, actual, UNIX + now);
                self.join();
            }
            self.change();
        }
    }

    /// The order of the daemon's `join_where_fenced`.
    pub(super) fn join_where_fenced(&mut self) {
        if self.is_fenced() && !self.knowledge.opening {
            let web = BTreeSet::from(["web".to_owned()]);
            let now = UNIX + self.bench.now;
            let actual = &self.bench.executor.actual;
            self.knowledge.begin_anew(&web, actual, now);
            self.join();
            let cluster = &mut self.knowledge.cluster;
            cluster.tokens_ms = (UNIX + self.bench.now).max(cluster.tokens_ms + 1);
            self.keep_fences();
        }
    }

    pub(super) fn is_fenced(&self) -> bool {
        let maps = &self.bench.executor.maps;
        !fencing::fenced(maps, &self.knowledge, self.bench.actual()).is_empty()
    }

    /// Takes over what its kernel holds.
    pub(super) fn adopt(&mut self, node: usize) {
        let now = self.bench.now;
        self.bench.executor.actual = adopt(&self.bench.executor.maps, now).unwrap();
        self.knowledge = knowledge(node, self.probing, self.decisions.clone(), false);
        let probes = self.knowledge.probes(self.bench.actual());
        self.knowledge.keep_health(self.bench.actual(), &probes);
        (self.daemon, self.started, self.said) = (true, now, None);
        self.due = [now; NODES];
        self.bench.sweeper = Sweeper::default();
        (self.fencing, self.asking) = (Fencing::default(), Asking::default());
        self.answers.clear();
        self.knowledge.cluster.run_ms = UNIX + now;
        self.knowledge.cluster.tokens_ms = UNIX + now;
        self.knowledge.cluster.since = self.since;
        come_back(
            &mut self.bench.executor,
            &name(node),
            UNIX + now,
            now,
            || now,
        )
        .unwrap();
        self.knowledge.note_away(&self.bench.executor.actual, now);
        self.join_where_fenced();
        self.change();
        self.keep_fences();
    }

    /// What its data path does with a packet.
    pub(super) fn process(&self, frame: &mut [u8]) -> Verdict {
        let tables = &self.bench.executor.maps.tables;
        tables.set_now(self.bench.tick());
        process(&mut Buffer::new(frame), tables).verdict
    }

    /// Whether its data path keeps a packet.
    pub(super) fn keeps(&self, frame: &[u8]) -> bool {
        self.process(&mut frame.to_vec()) == Verdict::Local
    }
}
