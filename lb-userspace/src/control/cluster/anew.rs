//! A node of a cluster that begins, or begins anew: what it can't know of the others, and who has to give way where each has counted
//! the other as gone.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

use super::{
    super::{
        actual::{Actual, Millis},
        desired::Missed,
        knowledge::Knowledge,
        peers::News,
        words::{ServiceWord, Word},
    },
    Probed, table_of,
};

impl Knowledge {
    /// Takes a word in that came at `now`. The services in which this node was counted as gone are those in which it must begin
    /// anew: where it has counted the peer as gone as well, all the while, only one of both must.
    pub fn hear(&mut self, word: Word, actual: &Actual, now: Millis) -> News {
        let own = self.config().node.name.clone();
        let mut contested = BTreeMap::new();
        for (name, said) in &word.services {
            let key = (name.clone(), word.node.clone());
            let gone = self.cluster.gone.get(&key);
            if word.leaving || !gone.is_some_and(|gone| gone.is_certain()) {
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
            gone.times = u64::from(gone.is_certain() && !services.contains(service));
        }
    }

    /// The daemon was away: what it takes over from the maps at `now` is not all that there is to know.
    pub fn note_away(&mut self, actual: &Actual, now: Millis) {
        self.cluster.took_over = Some(now);
        self.cluster.missed = actual
            .services()
            .values()
            .map(|service| (service.name.clone(), Missed::Tables))
            .collect();
        self.note_done(actual, now);
    }

    /// The tables of the services in which this node joins are made, as its peers have them; gives these services. Where each of its
    /// peers says a table, they have what it says. But one that is not heard may have what another waits for: nothing is taken
    /// before all agree.
    pub fn end_joining(&mut self) -> BTreeSet<String> {
        let joined = std::mem::take(&mut self.cluster.joining);
        let missed = joined.iter().map(|name| (name.clone(), Missed::Tables));
        self.cluster.missed.extend(missed);
        joined
    }

    /// Looks how far this node has caught up, if it was away or has just joined.
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
}
