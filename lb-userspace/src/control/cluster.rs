//! The nodes of a cluster as this one knows them: which of them serve, and what it tells them of itself.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    time::SystemTime,
};

use lb_common::{abi::BackendState, presence::Said};

use super::{
    actual::{Actual, Millis},
    desired::{Missed, Pending},
    knowledge::Knowledge,
    peers::{News, Peers, Row, ServiceWord, Table, Word, serving},
    presence::Told,
    reconcile::Others,
    report::mac_text,
};
use crate::{
    api::{ClusterStatus, PeerStatus},
    config::{Backend, Mode, Rule, Service},
    health::HealthState,
};

/// What a node remembers of its peers.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// What they have said.
    pub peers: Peers,
    /// Services whose tables this node makes without itself first, as its peers have them; then it adds itself as a planned
    /// change.
    pub joining: BTreeSet<String>,
    /// Services of which this node may have missed something while its daemon was away.
    pub missed: BTreeMap<String, Missed>,
    /// Services with slots of peers that have failed, which nobody has yet.
    pub pending: BTreeMap<String, Pending>,
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
    now: bool,
    times: u64,
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
                let answers = match probed {
                    Probed::Never => peers.recent(&backend.name, &service.name),
                    Probed::NotYet => fresh.is_some() || peers.is_present(node, name),
                    Probed::Up(_) if fresh.is_none() && self.has_left(service, backend) => {
                        peers.is_present(node, name)
                    }
                    // It is let in by its word, by that of one who knows it, or by its data path's: it may be that its daemon
                    // alone is gone.
                    Probed::Up(_) => {
                        fresh.is_some()
                            || self.is_in(service, backend, actual)
                            || peers.is_present(node, name)
                            || service.backends.iter().any(|other| {
                                peers.fresh(&other.name, &service.name).is_some_and(|word| {
                                    word.healthy && word.serving.contains(&backend.name)
                                })
                            })
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
                    return format!(
                        "its xdp-lb is not heard (UDP port {})",
                        self.config().node.peer_port.unwrap_or_default()
                    );
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

    /// Takes a word in that came at `now`. The services in which this node was counted as gone are those in which it must begin
    /// anew: where it has counted the peer as gone as well, all the while, only one of both must.
    pub fn hear(&mut self, word: Word, actual: &Actual, now: Millis) -> News {
        let own = self.config().node.name.clone();
        let mut contested = BTreeMap::new();
        for (name, said) in &word.services {
            let key = (name.clone(), word.node.clone());
            if word.leaving || !self.cluster.gone.get(&key).is_some_and(|gone| gone.now) {
                continue;
            }
            let out = said.excluded.get(&own).is_some_and(|times| *times > 0);
            let mutual = out && said.healthy && !said.serving.contains(&own);
            let stays = mutual && self.stays(name, &word, said, actual);
            contested.insert(name.clone(), (out, stays));
        }
        let mut news = self.cluster.peers.hear(word, &own, now);
        for (name, (out, stays)) in contested {
            if stays {
                news.excluded.remove(&name);
            } else if out && news.found.contains(&name) {
                news.excluded.insert(name);
            }
        }
        news
    }

    /// Whether this node stays, and a peer begins anew, where each has counted the other as gone: the side of more nodes stays,
    /// then the node that has been there for longer, then the first by name. Both come to the same.
    fn stays(&self, service: &str, word: &Word, said: &ServiceWord, actual: &Actual) -> bool {
        let Some(service) = self.service(service) else {
            return false;
        };
        let here = service
            .backends
            .iter()
            .filter(|b| !self.config().is_own(b) && self.is_in(service, b, actual))
            .count();
        let own = &self.config().node.name;
        let rank = |others: usize, since, node| (Reverse(others), since, node);
        rank(here, self.cluster.since, own) < rank(said.serving.len(), word.since, &word.node)
    }

    /// This node begins anew in these services, at a time in Unix milliseconds: whom it has counted as gone there is no matter
    /// any more, as all that it had of them is void. To its peers it is another run, which counts from nothing. Nor does it hold
    /// against a peer that it was cut off from it, or those who are there would have to yield to it.
    pub fn begin_anew(&mut self, services: &BTreeSet<String>, actual: &Actual, unix_ms: u64) {
        let mut down = Vec::new();
        for name in services {
            self.cluster.missed.remove(name);
            let Some(service) = self.service(name) else {
                continue;
            };
            for peer in &service.backends {
                if !self.config().is_own(peer)
                    && matches!(self.probed(service, peer, actual), Probed::Down(_))
                {
                    down.extend(self.number(service, peer, actual));
                }
            }
        }
        let now = SystemTime::now();
        for number in down {
            if let Some(health) = self.health.get_mut(&number) {
                health.forget(now);
            }
        }
        self.cluster.run_ms = unix_ms.max(self.cluster.run_ms + 1);
        self.cluster.since = self.cluster.since.max(unix_ms / 1_000);
        for ((service, _), gone) in &mut self.cluster.gone {
            gone.times = u64::from(gone.now && !services.contains(service));
        }
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
                    Some((key.1.clone(), self.cluster.gone.get(&key)?.times))
                })
                .collect(),
            table: table_of(service, actual).unwrap_or_default(),
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
            })
            .collect();
        Some(ClusterStatus {
            mac: mac_text(mac),
            group: self.config().cluster_group().map(|group| group.to_string()),
            peers,
        })
    }

    /// The daemon was away: what it takes over from the maps is not all that there is to know.
    pub fn note_away(&mut self, actual: &Actual) {
        self.cluster.missed = actual
            .services()
            .values()
            .map(|service| (service.name.clone(), Missed::Tables))
            .collect();
        // Who was gone before has taken note of it, or has come to know otherwise.
        self.note_done(actual);
        for gone in self.cluster.gone.values_mut() {
            gone.times = 0;
        }
    }

    /// Looks how far this node has caught up, if it was away.
    pub fn catch_up(&mut self, actual: &Actual) {
        let mut missed = std::mem::take(&mut self.cluster.missed);
        missed.retain(|name, missed| {
            let Some(service) = self.service(name) else {
                return false;
            };
            let Some(table) = table_of(service, actual) else {
                return true;
            };
            let mut words = Vec::new();
            for peer in &service.backends {
                let number = self.number(service, peer, actual);
                let entry = number.and_then(|number| actual.backends().get(&number));
                if self.config().is_own(peer) || entry.is_none_or(|peer| peer.entry.failed()) {
                    continue;
                }
                match self.cluster.peers.fresh(&peer.name, name) {
                    Some(word) if word.table == table => words.push(word),
                    _ => return true,
                }
            }
            *missed = (*missed).min(Missed::Flows);
            !words.iter().all(|word| word.settled)
        });
        self.cluster.missed = missed;
    }

    /// Takes note of what was just done: which peers are counted as gone.
    pub fn note_done(&mut self, actual: &Actual) {
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
                seen.push((key, serves && !self.is_in(service, peer, actual)));
            }
        }
        self.cluster.pending = pending;
        self.cluster.turns = turns;
        for (key, gone) in seen {
            if gone {
                self.cluster.peers.end_presence(&key.1, &key.0);
            }
            match self.cluster.gone.entry(key) {
                Entry::Occupied(mut known) => {
                    let known = known.get_mut();
                    known.times += u64::from(gone && !known.now);
                    known.now = gone;
                }
                Entry::Vacant(unknown) if gone => {
                    unknown.insert(Gone {
                        now: true,
                        times: 1,
                    });
                }
                Entry::Vacant(_) => {}
            }
        }
    }

    /// The peers that this node counts as gone while it serves, and does not hear: their data path may still be there.
    pub fn gone_unheard(&self) -> impl Iterator<Item = (&Service, &str)> {
        self.cluster
            .gone
            .iter()
            .filter(|((service, peer), gone)| {
                gone.now && self.cluster.peers.fresh(peer, service).is_none()
            })
            .filter_map(|((service, peer), _)| Some((self.service(service)?, peer.as_str())))
    }

    /// The peers that this node does not hear, and of which it does not know enough: all of them while it begins; then those that it
    /// does not count in, and of which nothing has come to be known that could fence them.
    pub fn unknown_peers(&self, actual: &Actual) -> impl Iterator<Item = (&Service, &str)> {
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
            .filter(|(service, backend)| {
                let peers = &self.cluster.peers;
                let (node, name) = (backend.name.as_str(), service.name.as_str());
                !self.config().is_own(backend)
                    && peers.fresh(node, name).is_none()
                    && !peers.is_present(node, name)
                    && (self.opening
                        || !self.is_in(service, backend, actual)
                            && peers.said(node, name).is_none())
            })
            .map(|(service, backend)| (service, backend.name.as_str()))
    }

    /// Takes note of what a peer's data path said; gives what follows.
    ///
    /// Where the peer is counted as gone, and was there before this node's maps were made, it is this node that came too late with
    /// its question: it begins anew, or the peer's connections would end.
    pub fn hear_presence(&mut self, told: &Told, now: Millis) -> Heard {
        let key = (told.service.clone(), told.node.clone());
        let gone = self.cluster.gone.get(&key).is_some_and(|gone| gone.now);
        let late = gone && told.made_ms / 1_000 < self.cluster.since;
        if !self.cluster.peers.answered(told, !gone || late, now) {
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
