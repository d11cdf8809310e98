//! The nodes of a cluster as this one knows them: which of them serve, and what it tells them of itself.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use lb_common::{abi::BackendState, presence::Said};

use super::{
    actual::{Actual, Millis},
    desired::{Missed, Pending, identity},
    knowledge::Knowledge,
    peers::{HEARD_FOR, PERIOD, Peers, Row, serving},
    presence::Told,
    reconcile::Others,
    report::mac_text,
    words::{ServiceWord, Table, Word, file_of},
};
mod anew;

use crate::{
    api::{ClusterStatus, PeerStatus},
    config::{Backend, Mode, Rule, Service},
    health::HealthState,
};

/// From one question to a data path that answers to the next.
const ANSWERED: Duration = Duration::from_secs(1);

/// What a node remembers of its peers.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// What they have said.
    pub peers: Peers,
    /// Services whose tables this node makes without itself first, as its peers have them; then it adds itself as a planned
    /// change.
    pub joining: BTreeSet<String>,
    /// Services of which this node may have missed something, while its daemon was away or before it joined.
    pub missed: BTreeMap<String, Missed>,
    /// Services with slots of peers that have failed, which nobody has yet.
    pub pending: BTreeMap<String, Pending>,
    /// When this run took over what the maps hold; `None` where it made them.
    took_over: Option<Millis>,
    /// When this run began, or this node joined again since, in Unix milliseconds.
    pub run_ms: u64,
    /// When its maps were made, or when it joined again since, in Unix seconds.
    pub since: u64,
    /// When it made the tokens that fence it, likewise.
    pub tokens_ms: u64,
    /// By service: the table by which this node goes, and its turn.
    turns: HashMap<String, (Table, u64)>,
    /// By service and name: the peers that are counted as gone while this node serves, and how often each was.
    gone: HashMap<(String, String), Gone>,
}

/// A peer that was counted as gone.
#[derive(Clone, Copy, Debug, Default)]
struct Gone {
    /// It was counted in at the last look.
    was_in: bool,
    now: bool,
    /// By what this run came to know. 0 where the maps that it took over had it so: the peer may have been let in again since.
    times: u64,
}

impl Gone {
    /// Whether it is, by what this run knows.
    fn is_certain(self) -> bool {
        self.now && self.times > 0
    }
}

/// What a node of a service is, as far as this one knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Its operator said `drain`.
    pub drained: bool,
    /// Its drain's time was up, and so many flows were left.
    pub ended: Option<u64>,
    /// Its operator said `fail`.
    pub failed: bool,
    /// The weight in force.
    pub weight: u32,
    /// Whether it serves.
    pub healthy: bool,
    /// Why, or why not.
    pub reason: String,
}

/// What follows from what the data path of a peer has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing.
    Nothing,
    /// The service has to be looked at.
    News,
    /// This node has to begin anew in the service.
    BeforeThisNode,
}

/// What this node's probes say of a node.
enum Probed<'a> {
    /// The service is not probed.
    Never,
    NotYet,
    Up(&'a str),
    Down(&'a str),
}

/// What this node's file says of a service's nodes.
fn file(service: &Service) -> u64 {
    let nodes = service.backends.iter();
    file_of(nodes.map(|node| {
        (
            identity(&node.name, node.address),
            node.weight,
            node.priority,
        )
    }))
}

/// The table by which this node goes, where it has one.
fn table_of(service: &Service, actual: &Actual) -> Option<Table> {
    let id = actual.service_id(&service.name)?;
    let table = actual.services().get(&id)?;
    let built_for = table.built_for.as_ref()?;
    Some(Table::of(table.affinity, table.bits, built_for))
}

impl Knowledge {
    fn probed(&self, service: &Service, backend: &Backend, actual: &Actual) -> Probed<'_> {
        if service.probe.is_none() {
            return Probed::Never;
        }
        let health = self
            .number(service, backend, actual)
            .and_then(|number| self.health.get(&number));
        match health {
            Some(health) if health.state() == HealthState::Up => Probed::Up(health.reason()),
            // Where its word or its data path says that it is there, a first failure may be this node's own.
            Some(health) if health.is_found_down() => Probed::Down(health.reason()),
            Some(health) if health.is_probed() && !self.is_vouched_for(service, backend) => {
                Probed::Down(health.reason())
            }
            _ => Probed::NotYet,
        }
    }

    /// Whether a backend is in use as the maps are.
    fn is_in(&self, service: &Service, backend: &Backend, actual: &Actual) -> bool {
        self.number(service, backend, actual)
            .and_then(|number| actual.backends().get(&number))
            .is_some_and(|backend| {
                matches!(
                    backend.state,
                    BackendState::Up | BackendState::Draining | BackendState::Drained
                )
            })
    }

    /// Whether a peer is heard, or its data path found there.
    fn is_vouched_for(&self, service: &Service, backend: &Backend) -> bool {
        let (peers, node, name) = (&self.cluster.peers, &backend.name, &service.name);
        peers.fresh(node, name).is_some() || peers.is_present(node, name)
    }

    /// Whether a node has said that it leaves, to this one or to a peer that is heard.
    fn has_left(&self, service: &Service, backend: &Backend) -> bool {
        let (peers, node, name) = (&self.cluster.peers, &backend.name, &service.name);
        let knows = |other: &Backend| {
            let word = peers.fresh(&other.name, name);
            word.is_some_and(|word| word.left.contains(node))
        };
        peers.has_left(node, name) || service.backends.iter().any(knows)
    }

    /// Whether a peer that is heard, and serves, counts this one in.
    fn is_counted_in_by_another(&self, service: &Service, node: &str) -> bool {
        service.backends.iter().any(|other| {
            let word = self.cluster.peers.fresh(&other.name, &service.name);
            word.is_some_and(|word| word.healthy && word.serving.contains(node))
        })
    }

    /// The peers that this node's probes find down.
    fn found_down(&self, service: &Service, actual: &Actual) -> BTreeSet<String> {
        service
            .backends
            .iter()
            .filter(|backend| !self.config().is_own(backend))
            .filter(|backend| matches!(self.probed(service, backend, actual), Probed::Down(_)))
            .map(|backend| backend.name.clone())
            .collect()
    }

    /// What each node of a service is, by name.
    #[must_use]
    pub fn judge_nodes(&self, service: &Service, actual: &Actual) -> BTreeMap<String, Judged> {
        let own_down = self.found_down(service, actual);
        let nobody = BTreeSet::new();
        let peers = &self.cluster.peers;
        let mut rows: Vec<Row<'_>> = service
            .backends
            .iter()
            .map(|backend| {
                let probed = self.probed(service, backend, actual);
                if self.config().is_own(backend) {
                    let decision = self.decisions.of(&service.name, &backend.name);
                    return Row {
                        node: &backend.name,
                        healthy: !decision.failed
                            && matches!(probed, Probed::Never | Probed::Up(_)),
                        heard: true,
                        since: self.cluster.since,
                        down: &own_down,
                    };
                }
                let fresh = peers.fresh(&backend.name, &service.name);
                let (node, name) = (backend.name.as_str(), service.name.as_str());
                let vouched = fresh.is_some() || peers.is_present(node, name);
                let answers = match probed {
                    Probed::NotYet => vouched,
                    // It is let in by its word, by that of one who knows it, or by its data path's: it may be that its daemon
                    // alone is gone. If its data path is gone as well, that its server answers says nothing.
                    Probed::Never | Probed::Up(_) => {
                        vouched
                            || !self.has_left(service, backend)
                                && !peers.is_absent(node, name)
                                && (self.is_in(service, backend, actual)
                                    || self.is_counted_in_by_another(service, node))
                    }
                    // Heard all the same: whether it is it that is out, or this node, is for all to agree upon.
                    Probed::Down(_) => fresh.is_some(),
                };
                let last = peers.last(&backend.name, &service.name);
                Row {
                    node: &backend.name,
                    healthy: answers && last.is_none_or(|word| word.healthy && !word.failed),
                    heard: fresh.is_some(),
                    since: peers.since(node, name).unwrap_or_default(),
                    down: fresh.map_or(&nobody, |word| &word.down),
                }
            })
            .collect();
        // The same on every node, in whatever order its file has them.
        rows.sort_unstable_by_key(|row| row.node);
        let serving = serving(&rows);
        service
            .backends
            .iter()
            .map(|backend| {
                let own = self.config().is_own(backend);
                let decision = self.decisions.of(&service.name, &backend.name);
                let last = peers.last(&backend.name, &service.name);
                let weight = if own {
                    decision.weight
                } else {
                    last.and_then(|word| word.weight)
                };
                let judged = Judged {
                    drained: if own {
                        decision.drained
                    } else {
                        last.is_some_and(|word| word.drained)
                    },
                    ended: if own {
                        decision.flows_ended
                    } else {
                        last.and_then(|word| word.ended)
                    },
                    failed: if own {
                        decision.failed
                    } else {
                        last.is_some_and(|word| word.failed)
                    },
                    weight: weight.unwrap_or(backend.weight),
                    healthy: serving.contains(backend.name.as_str()),
                    reason: self.reason(service, backend, &rows, &serving, actual),
                };
                (backend.name.clone(), judged)
            })
            .collect()
    }

    /// Why a node serves, or does not.
    fn reason(
        &self,
        service: &Service,
        backend: &Backend,
        rows: &[Row<'_>],
        serving: &BTreeSet<&str>,
        actual: &Actual,
    ) -> String {
        let own = self.config().is_own(backend);
        let name = backend.name.as_str();
        let probed = self.probed(service, backend, actual);
        let fresh = self.cluster.peers.fresh(name, &service.name);
        if serving.contains(name) {
            return match probed {
                Probed::Never => "not probed, as configured".to_owned(),
                Probed::NotYet => "not probed yet".to_owned(),
                Probed::Up(reason) => reason.to_owned(),
                Probed::Down(reason) => format!("the others find it up; here: {reason}"),
            };
        }
        match probed {
            Probed::NotYet => return "not probed yet".to_owned(),
            Probed::Down(reason) => return reason.to_owned(),
            Probed::Never | Probed::Up(_) => {}
        }
        if !own {
            match fresh {
                None => {
                    let port = self.config().node.peer_port.unwrap_or_default();
                    let absent = self.cluster.peers.is_absent(name, &service.name);
                    let data_path = if absent {
                        ", and its data path does not answer"
                    } else {
                        ""
                    };
                    return format!("its xdp-lb is not heard (UDP port {port}){data_path}");
                }
                Some(word) if !word.healthy => {
                    return "it says itself that it does not serve".to_owned();
                }
                Some(_) => {}
            }
        }
        let accusers: Vec<&str> = rows
            .iter()
            .filter(|row| row.heard && serving.contains(row.node) && row.down.contains(name))
            .map(|row| row.node)
            .collect();
        if accusers.is_empty() {
            "it finds nodes down that the others find up".to_owned()
        } else {
            format!("{} finds it down", accusers.join(", "))
        }
    }

    /// The table by which this node has said that it goes, for [`super::desired::Pick`].
    #[must_use]
    pub fn said_table(&self, service: &Service) -> Table {
        self.turn(service).0
    }

    /// That table, and its turn.
    fn turn(&self, service: &Service) -> (Table, u64) {
        let known = self.cluster.turns.get(&service.name).copied();
        known.unwrap_or((Table::default(), self.cluster.run_ms))
    }

    /// The tables of the peers that are heard, for [`super::desired::Pick`].
    #[must_use]
    pub fn tables_of_peers(&self, service: &Service) -> BTreeMap<String, Table> {
        service
            .backends
            .iter()
            .filter(|backend| !self.config().is_own(backend))
            .filter_map(|backend| {
                let word = self.cluster.peers.fresh(&backend.name, &service.name)?;
                Some((backend.name.clone(), word.table))
            })
            .collect()
    }

    /// Whether the files of all peers that are heard say the same of a service's nodes as this one's, likewise.
    #[must_use]
    pub fn has_their_file(&self, service: &Service) -> bool {
        let own = file(service);
        service
            .backends
            .iter()
            .filter(|backend| !self.config().is_own(backend))
            .filter_map(|backend| self.cluster.peers.fresh(&backend.name, &service.name))
            .all(|word| word.file == own)
    }

    /// The peers that have heard by which table this node goes, likewise.
    #[must_use]
    pub fn aware_peers(&self, service: &Service) -> BTreeSet<String> {
        let own = &self.config().node.name;
        let (_, turn) = self.turn(service);
        service
            .backends
            .iter()
            .filter(|backend| {
                let word = self.cluster.peers.fresh(&backend.name, &service.name);
                word.is_some_and(|word| word.seen.get(own) == Some(&turn))
            })
            .map(|backend| backend.name.clone())
            .collect()
    }

    /// Whether all peers that are heard about a service count this node in.
    #[must_use]
    pub fn is_counted_in(&self, service: &Service) -> bool {
        let own = &self.config().node.name;
        service
            .backends
            .iter()
            .filter_map(|backend| self.cluster.peers.fresh(&backend.name, &service.name))
            .all(|word| word.serving.contains(own))
    }

    /// What this node says of itself, at a time in Unix milliseconds.
    #[must_use]
    pub fn own_word(&self, actual: &Actual, at_ms: u64) -> Word {
        let services = self
            .config()
            .services
            .iter()
            .filter_map(|service| {
                let own = service
                    .backends
                    .iter()
                    .find(|backend| self.config().is_own(backend))?;
                Some((
                    service.name.clone(),
                    self.service_word(service, own, actual),
                ))
            })
            .collect();
        Word {
            node: self.config().node.name.clone(),
            run_ms: self.cluster.run_ms,
            since: self.cluster.since,
            tokens_ms: self.cluster.tokens_ms,
            at_ms,
            leaving: false,
            services,
        }
    }

    fn service_word(&self, service: &Service, own: &Backend, actual: &Actual) -> ServiceWord {
        let decision = self.decisions.of(&service.name, &own.name);
        let answers = matches!(
            self.probed(service, own, actual),
            Probed::Never | Probed::Up(_)
        );
        ServiceWord {
            healthy: answers && !self.opening,
            drained: decision.drained,
            ended: decision.flows_ended,
            failed: decision.failed,
            weight: decision.weight,
            down: self.found_down(service, actual),
            serving: service
                .backends
                .iter()
                .filter(|backend| !self.config().is_own(backend))
                .filter(|backend| self.is_in(service, backend, actual))
                .map(|backend| backend.name.clone())
                .collect(),
            excluded: service
                .backends
                .iter()
                .filter_map(|backend| {
                    let key = (service.name.clone(), backend.name.clone());
                    let times = self.cluster.gone.get(&key)?.times;
                    (times > 0).then_some((key.1, times))
                })
                .collect(),
            table: table_of(service, actual).unwrap_or_default(),
            file: file(service),
            turn: self.turn(service).1,
            seen: service
                .backends
                .iter()
                .filter_map(|backend| {
                    let word = self.cluster.peers.fresh(&backend.name, &service.name)?;
                    Some((backend.name.clone(), word.turn))
                })
                .collect(),
            left: service
                .backends
                .iter()
                .filter(|backend| self.cluster.peers.has_left(&backend.name, &service.name))
                .map(|backend| backend.name.clone())
                .collect(),
            settled: actual
                .service_id(&service.name)
                .is_some_and(|id| actual.in_transition(id) == 0),
            number: self.number(service, own, actual).unwrap_or_default(),
        }
    }

    /// The cluster as `status` shows it; `None` where packets are forwarded.
    #[must_use]
    pub fn cluster_status(&self, actual: &Actual) -> Option<ClusterStatus> {
        let mac = self.config().cluster_mac()?;
        let own = self.own_word(actual, 0).services;
        let shared = |name: &str| {
            self.config()
                .services
                .iter()
                .filter(|service| service.backends.iter().any(|b| b.name == name))
                .filter_map(|service| Some((service.name.clone(), own.get(&service.name)?)))
                .collect::<Vec<_>>()
        };
        let peers = self
            .config()
            .peers()
            .into_iter()
            .map(|(name, address)| PeerStatus {
                name: name.to_owned(),
                address: address.to_string(),
                heard: self.cluster.peers.is_heard(name),
                agrees: shared(name).iter().all(|(service, word)| {
                    self.cluster
                        .peers
                        .fresh(name, service)
                        .is_some_and(|peer| peer.table == word.table)
                }),
                has_another_file: shared(name).iter().any(|(service, word)| {
                    self.cluster
                        .peers
                        .fresh(name, service)
                        .is_some_and(|peer| peer.file != word.file)
                }),
            })
            .collect();
        Some(ClusterStatus {
            mac: mac_text(mac),
            group: self.config().cluster_group().map(|group| group.to_string()),
            peers,
        })
    }

    /// Takes note of what was done at `now`: which peers are counted as gone.
    pub fn note_done(&mut self, actual: &Actual, now: Millis) {
        if self.config().node.mode == Mode::Forward {
            return;
        }
        let mut seen = Vec::new();
        let mut pending = BTreeMap::new();
        let mut turns = HashMap::new();
        for service in &self.config().services {
            let (said, turn) = self.turn(service);
            let now = table_of(service, actual).unwrap_or_default();
            let turn = if now == said { turn } else { turn + 1 };
            turns.insert(service.name.clone(), (now, turn));
            let others = actual
                .service_id(&service.name)
                .and_then(|id| Others::number(actual, id));
            if let Some(table) = table_of(service, actual)
                && others.is_some_and(|others| actual.named(others).current > 0)
            {
                let now = match self.cluster.pending.get(&service.name) {
                    None | Some(Pending::Nothing) => Pending::By(table),
                    Some(Pending::By(by)) if *by == table => Pending::By(table),
                    Some(_) => Pending::BySeveral,
                };
                pending.insert(service.name.clone(), now);
            }
            let (own, peers): (Vec<&Backend>, Vec<&Backend>) = service
                .backends
                .iter()
                .partition(|backend| self.config().is_own(backend));
            // Who does not serve takes nothing over, and who has just begun has yet to hear who is there.
            let serves = !self.opening && own.iter().any(|own| self.is_in(service, own, actual));
            for peer in peers {
                let key = (service.name.clone(), peer.name.clone());
                seen.push((key, serves, self.is_in(service, peer, actual)));
            }
        }
        self.cluster.pending = pending;
        self.cluster.turns = turns;
        let has_listened = self
            .cluster
            .took_over
            .is_none_or(|at| u128::from(now.saturating_sub(at)) >= HEARD_FOR.as_millis());
        for (key, serves, is_in) in seen {
            let gone = serves && !is_in;
            if gone {
                self.cluster.peers.end_presence(&key.1, &key.0);
            }
            let known = self.cluster.gone.entry(key).or_default();
            let came_to_know = known.was_in || has_listened;
            known.times += u64::from(gone && !known.now && came_to_know);
            (known.was_in, known.now) = (is_in, gone);
        }
    }

    /// The peers that this node counts as gone while it serves, and does not hear: their data path may still be there.
    pub fn gone_unheard(&self, actual: &Actual) -> impl Iterator<Item = (&Service, &str)> {
        self.cluster
            .gone
            .iter()
            .filter(|((service, peer), gone)| {
                gone.now && self.cluster.peers.fresh(peer, service).is_none()
            })
            .filter_map(|((service, peer), gone)| {
                let service = self.service(service)?;
                let backend = service.backends.iter().find(|b| b.name == *peer)?;
                let probed = || self.probed(service, backend, actual);
                (gone.is_certain() || matches!(probed(), Probed::Down(_)))
                    .then_some((service, peer.as_str()))
            })
    }

    /// The peers that this node does not hear, and whose data paths it asks, with the interval of its questions.
    ///
    /// All of them while it begins. Then those that it counts in, as long as they answer; and those that it does not, until
    /// something has come to be known that could fence them.
    pub fn peers_to_ask(
        &self,
        actual: &Actual,
    ) -> impl Iterator<Item = (&Service, &str, Duration)> {
        let served = |service: &&Service| service.rule != Rule::Disabled;
        self.config()
            .services
            .iter()
            .filter(served)
            .flat_map(|service| {
                service
                    .backends
                    .iter()
                    .map(move |backend| (service, backend))
            })
            .filter_map(|(service, backend)| {
                let peers = &self.cluster.peers;
                let (node, name) = (backend.name.as_str(), service.name.as_str());
                if self.config().is_own(backend) || peers.fresh(node, name).is_some() {
                    return None;
                }
                let is_in = peers.is_present(node, name) || self.is_in(service, backend, actual);
                let unknown = self.opening || peers.said(node, name).is_none();
                let interval = if is_in && !peers.is_asked(node, name) {
                    ANSWERED
                } else {
                    PERIOD
                };
                (is_in || unknown).then_some((service, node, interval))
            })
    }

    /// Takes note of what a peer's data path said; gives what follows.
    ///
    /// Where the peer is counted as gone, and was there before this node's maps were made, it is this node that came too late with
    /// its question: it begins anew, or the peer's connections would end.
    pub fn hear_presence(&mut self, told: &Told) -> Heard {
        let key = (told.service.clone(), told.node.clone());
        let gone = self.cluster.gone.get(&key);
        let gone = gone.is_some_and(|gone| gone.is_certain());
        let late = gone && told.made_ms / 1_000 < self.cluster.since;
        if !self.cluster.peers.answered(told, !gone || late) {
            Heard::Nothing
        } else if late {
            Heard::BeforeThisNode
        } else {
            Heard::News
        }
    }

    /// What this node's data path says of it in a service while its controller is gone; `None` where it has no share of it.
    #[must_use]
    pub fn own_presence(&self, service: &str, actual: &Actual) -> Option<Said> {
        let service = self.service(service)?;
        let own = service.backends.iter().find(|b| self.config().is_own(b))?;
        let number = self.number(service, own, actual)?;
        if self.opening || service.rule == Rule::Disabled || !self.is_in(service, own, actual) {
            return None;
        }
        let decision = self.decisions.of(&service.name, &own.name);
        Some(Said {
            number,
            drained: decision.drained,
            weight: decision.weight.unwrap_or(own.weight),
        })
    }

    /// Whether every node has been judged once: this one by its own probe, each peer by its word and by a probe that it
    /// answered. One that fails may be this node's own fault, whose port on the switch forwards nothing yet.
    #[must_use]
    pub fn all_nodes_judged(&self, actual: &Actual) -> bool {
        let served = |service: &&Service| service.rule != Rule::Disabled;
        self.config().services.iter().filter(served).all(|service| {
            service.backends.iter().all(|backend| {
                let own = self.config().is_own(backend);
                let word = self.cluster.peers.fresh(&backend.name, &service.name);
                match self.probed(service, backend, actual) {
                    Probed::NotYet => false,
                    Probed::Down(_) => own,
                    Probed::Never | Probed::Up(_) => own || word.is_some(),
                }
            })
        })
    }
}
