//! In a cluster (`mode = "pick"`): what the other nodes say, what this one says, and its interfaces' part in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Instant,
};

use anyhow::{Context as _, Result};
use tracing::warn;

use super::{
    super::{cluster::Heard, comeback::come_back, fencing, presence, words::Word},
    Cause, Daemon, Touched, millis_since, unix_ms,
};
use crate::{
    api::ApplyKind,
    config::{Config, Mode},
    neighbour::{Membership, cluster_frames::frame},
};

impl Daemon {
    /// Lets the interfaces take in the frames to the cluster's MAC address.
    pub(super) async fn take_in(&self) -> Result<()> {
        if let Some(membership) = membership(self.knowledge.config()) {
            for port in &self.knowledge.ports {
                membership
                    .ensure(&self.netlink, port.ifindex)
                    .await
                    .with_context(|| format!("preparing {} for the cluster", port.name))?;
            }
        }
        Ok(())
    }

    /// The opposite, when the data path is taken away; the peers are told, so that they take over at once.
    pub(super) async fn leave(&mut self) {
        if let Some(voice) = &mut self.voice {
            let word = Word {
                leaving: true,
                ..self
                    .knowledge
                    .own_word(&self.running.executor.actual, unix_ms())
            };
            voice.take_leave(&word, &self.knowledge.config().peers());
        }
        let Some(membership) = membership(self.knowledge.config()) else {
            return;
        };
        for port in &self.knowledge.ports {
            if let Err(error) = membership.remove(&self.netlink, port.ifindex).await {
                warn!(%error, interface = port.name, "the cluster's MAC address is still on the interface");
            }
        }
    }

    /// Where the maps were taken over: what happened to the other nodes meanwhile this one has not seen. Nothing where packets
    /// are forwarded.
    pub(super) fn come_back(&mut self) -> Result<()> {
        let config = self.knowledge.config();
        if self.running.adopted && config.node.mode == Mode::Pick {
            let started = self.started;
            come_back(
                &mut self.running.executor,
                &config.node.name,
                unix_ms(),
                millis_since(started),
                || millis_since(started),
            )?;
            let now = self.now();
            self.knowledge.note_away(&self.running.executor.actual, now);
        }
        Ok(())
    }

    /// Makes the tables of the others first: whose flows were theirs stay theirs. Nothing where packets are forwarded.
    pub(super) fn join_all(&mut self) -> Result<()> {
        if self.knowledge.config().node.mode == Mode::Pick {
            let services = self.knowledge.config().services.iter();
            self.knowledge.cluster.joining = services.map(|s| s.name.clone()).collect();
            let cause = Cause::new(ApplyKind::Start, "the other nodes");
            self.change(&cause, Touched::All)?;
            self.knowledge.end_joining();
        }
        Ok(())
    }

    /// A datagram has come; gives whether it says anything new.
    pub(super) fn on_word(&mut self, datagram: &[u8], from: SocketAddr) -> Result<bool> {
        let since = Instant::now();
        let now = self.now();
        let Some(voice) = &mut self.voice else {
            return Ok(false);
        };
        let config = self.knowledge.config();
        let Some(word) = voice.understand(datagram, from, &config.peers()) else {
            return Ok(false);
        };
        let cause = Cause {
            kind: ApplyKind::Neighbour,
            text: format!("word of {}", word.node),
            since,
        };
        let news = self
            .knowledge
            .hear(word, &self.running.executor.actual, now);
        if !news.excluded.is_empty() && !self.knowledge.opening {
            self.join_again(&cause, news.excluded, &news.touched)?;
        }
        if !news.touched.is_empty() {
            self.change(&cause, Touched::Only(&news.touched))?;
        }
        Ok(!news.touched.is_empty())
    }

    /// This node was counted as gone in services, of those that are touched: it begins anew there.
    fn join_again(
        &mut self,
        cause: &Cause,
        services: BTreeSet<String>,
        touched: &BTreeSet<String>,
    ) -> Result<()> {
        warn!(
            cause = cause.text,
            ?services,
            "this node was counted as gone, and joins again: flows that others have taken over stay there"
        );
        self.knowledge
            .begin_anew(&services, &self.running.executor.actual, unix_ms());
        self.knowledge.cluster.joining = services;
        self.change(cause, Touched::Only(touched))?;
        let joining = self.knowledge.end_joining();
        // What it recorded of its own flows is void: others have taken them over.
        let executor = &self.running.executor;
        for id in joining
            .iter()
            .filter_map(|name| executor.actual.service_id(name))
        {
            executor.forget_flows(id);
        }
        Ok(())
    }

    /// Where this node's data path was fenced, others have taken its place: it begins anew there, under new tokens.
    pub(super) fn join_where_fenced(&mut self) -> Result<()> {
        let executor = &self.running.executor;
        let fenced = fencing::fenced(&executor.maps, &self.knowledge, &executor.actual);
        if fenced.is_empty() || self.knowledge.opening {
            return Ok(());
        }
        let cause = Cause::new(ApplyKind::Neighbour, "fenced by the other nodes");
        self.join_again(&cause, fenced.clone(), &fenced)?;
        self.change(&cause, Touched::Only(&fenced))?;
        let cluster = &mut self.knowledge.cluster;
        cluster.tokens_ms = unix_ms().max(cluster.tokens_ms + 1);
        self.keep_fences();
        Ok(())
    }

    /// Brings the tokens in the maps up to date, and what the data path says of this node while its controller is gone.
    pub(super) fn keep_fences(&self) {
        let executor = &self.running.executor;
        fencing::keep(&executor.maps, &self.knowledge, &executor.actual);
        self.keep_presence();
    }

    /// The latter alone; at once after every change, as the controller may end before its next word.
    pub(super) fn keep_presence(&self) {
        let executor = &self.running.executor;
        presence::keep(&executor.maps, &self.knowledge, &executor.actual);
    }

    /// Tells the data path of each peer that is counted as gone and is not heard that it has been replaced.
    pub(super) fn fence_peers(&mut self) {
        let now = self.now();
        let executor = &self.running.executor;
        let due = self
            .fencing
            .due(&executor.maps, &self.knowledge, &executor.actual, now);
        for payload in due {
            self.send_to_cluster(&payload);
        }
    }

    /// Asks the data paths of the peers that are not heard whether they are there. Gives the services of those that have left too
    /// many questions without an answer; where nothing can be asked, that is nobody.
    fn ask_peers(&mut self) -> BTreeSet<String> {
        let now = self.now();
        let executor = &self.running.executor;
        let questions = self.asking.due(
            executor.maps.control().seed(),
            &self.knowledge,
            &executor.actual,
            now,
        );
        let can_be_heard = if self.asking.is_open() {
            // Opens the socket before the first answer can come.
            self.frames.listen()
        } else {
            self.frames.stop_listening();
            false
        };
        let mut absent = Found::default();
        for question in questions {
            let was_sent = self.send_to_cluster(&question.payload);
            let (node, service) = (&question.node, &question.service);
            if can_be_heard && was_sent && self.knowledge.cluster.peers.asked(node, service) {
                absent.note(question.node, question.service);
            }
        }
        absent.tell(
            "its xdp-lb is not heard, and its data path does not answer: it has no share any more",
        );
        absent.services
    }

    /// What the data paths of peers have answered.
    pub(super) fn hear_answers(&mut self) -> Result<()> {
        let seed = self.running.executor.maps.control().seed();
        let (mut found, mut late) = (Found::default(), BTreeSet::new());
        for payload in self.frames.received() {
            let Some(told) = self.asking.understand(seed, &payload) else {
                continue;
            };
            let heard = self.knowledge.hear_presence(&told);
            if heard == Heard::BeforeThisNode {
                late.insert(told.service.clone());
            }
            if heard != Heard::Nothing {
                found.note(told.node, told.service);
            }
        }
        found.tell("its xdp-lb is not heard, but its data path is there, and has its share");
        let touched = found.services;
        if touched.is_empty() {
            return Ok(());
        }
        self.keep_fences();
        let cause = Cause::new(ApplyKind::Neighbour, "the data path of a node");
        if !late.is_empty() {
            self.join_again(&cause, late, &touched)?;
        }
        self.change(&cause, Touched::Only(&touched))?;
        Ok(())
    }

    /// Gives whether it was sent at all.
    fn send_to_cluster(&mut self, payload: &[u8]) -> bool {
        let Some(to) = self.knowledge.config().cluster_mac() else {
            return false;
        };
        let mut was_sent = false;
        for port in &self.knowledge.ports {
            let frame = frame(to, port.mac, payload);
            was_sent |= self.frames.send(port.ifindex, &frame);
        }
        was_sent
    }

    /// Time has passed: whoever has been silent for too long is not heard any more.
    pub(super) fn on_silence(&mut self) -> Result<()> {
        self.join_where_fenced()?;
        self.hear_answers()?;
        let mut touched = self.ask_peers();
        self.keep_fences();
        touched.append(&mut self.knowledge.cluster.peers.expire(self.now()));
        if !touched.is_empty() {
            let cause = Cause::new(ApplyKind::Neighbour, "silence of a node");
            self.change(&cause, Touched::Only(&touched))?;
        }
        Ok(())
    }

    /// Tells the peers what there is to tell.
    pub(super) fn speak(&mut self) {
        if let Some(voice) = &mut self.voice {
            let word = self
                .knowledge
                .own_word(&self.running.executor.actual, unix_ms());
            voice.speak(word, &self.knowledge.config().peers());
        }
    }
}

/// What this node has found out about peers that it does not hear.
#[derive(Default)]
struct Found {
    services: BTreeSet<String>,
    /// In how many services, by node.
    nodes: BTreeMap<String, usize>,
}

impl Found {
    fn note(&mut self, node: String, service: String) {
        *self.nodes.entry(node).or_default() += 1;
        self.services.insert(service);
    }

    /// A line for each node, not for each of what may be thousands of services.
    fn tell(&self, what: &str) {
        for (node, services) in &self.nodes {
            warn!(node, services, "{what}");
        }
    }
}

/// What an interface has to take in.
fn membership(config: &Config) -> Option<Membership> {
    Some(Membership {
        mac: config.cluster_mac()?,
        group: config.cluster_group(),
    })
}
