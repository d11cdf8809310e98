//! Presence in a cluster (`mode = "pick"`): whether a peer that answers probes, and that nobody hears, has a data path that keeps
//! its share. That data path is asked. See `lb_common::presence` for the frames, `docs/decisions/nlb-mode.md` for the reasons.

use std::collections::{BTreeMap, HashMap, HashSet};

use lb_common::{
    hash::Seed,
    presence::{self, Answer, Said},
};

use super::{
    actual::{Actual, Millis},
    knowledge::Knowledge,
    memory::Memory,
    pace::Pace,
    siphash::siphash,
};
use crate::config::{Config, Mode};

/// At most so many questions are sent at a time: what a clients' segment and one core bear four times a second.
const AT_A_TIME: usize = 8_192;

/// What a question about a node and a service says; never 0.
#[must_use]
pub fn asked(seed: Seed, node: &str, service: &str) -> u64 {
    siphash(seed, format!("presence\0{node}\0{service}").as_bytes()).max(1)
}

/// What only the nodes that share the seed can say of a node.
#[must_use]
pub fn tag(seed: Seed, node: &str, service: &str, made_ms: u64, said: u64) -> u64 {
    let text = format!("present\0{node}\0{service}\0{made_ms}\0{said}");
    siphash(seed, text.as_bytes())
}

/// The services of a node, each with its place: in the order of their names, which is the same on all nodes.
fn places<'a>(config: &'a Config, node: &str) -> BTreeMap<&'a str, u16> {
    let mut names: Vec<&str> = config
        .services
        .iter()
        .filter(|service| service.backends.iter().any(|backend| backend.name == node))
        .map(|service| service.name.as_str())
        .collect();
    names.sort_unstable();
    names.into_iter().zip(0..=u16::MAX).collect()
}

/// What a peer's data path has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Who is there.
    pub node: String,
    /// In which service.
    pub service: String,
    /// When it made the tokens that fence it, in Unix milliseconds of its own clock.
    pub made_ms: u64,
    /// What its word would say.
    pub said: Said,
}

/// A question that has to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// About whom.
    pub node: String,
    /// In which service.
    pub service: String,
    /// What stands behind the EtherType.
    pub payload: [u8; presence::LEN],
}

/// The questions of this node.
#[derive(Debug, Default)]
pub struct Asking {
    /// By service and peer.
    pace: Pace<(String, String)>,
    /// Whom the questions were about, by the number that the answers say again: service and peer.
    open: HashMap<u64, (String, String)>,
    /// How many peers' services were passed over to come to the first question of the last time: with many, each has its turn.
    turn: usize,
}

impl Asking {
    /// What has to be asked at `now`, [`AT_A_TIME`] at most: a question for each service of each peer that this node does not
    /// hear and can't judge without. Whoever has asked says so to [`super::peers::Peers::asked`].
    pub fn due(
        &mut self,
        seed: Seed,
        knowledge: &Knowledge,
        actual: &Actual,
        now: Millis,
    ) -> Vec<Question> {
        let mut questions = Vec::new();
        let mut open = HashMap::new();
        let mut wanted = HashSet::new();
        let mut places_of: HashMap<&str, BTreeMap<&str, u16>> = HashMap::new();
        let own = knowledge.config().node.name.as_str();
        let run_ms = knowledge.cluster.run_ms;
        let mut to_ask: Vec<_> = knowledge.peers_to_ask(actual).collect();
        let turn = self.turn.checked_rem(to_ask.len()).unwrap_or_default();
        to_ask.rotate_left(turn);
        let mut passed = None;
        for (index, (service, peer, interval)) in to_ask.into_iter().enumerate() {
            let of_peer = places_of
                .entry(peer)
                .or_insert_with(|| places(knowledge.config(), peer));
            let Some(place) = of_peer.get(service.name.as_str()) else {
                continue;
            };
            let key = (service.name.clone(), peer.to_owned());
            let text = format!("question\0{own}\0{peer}\0{}\0{run_ms}", service.name);
            let nonce = siphash(seed, text.as_bytes());
            open.insert(nonce, key.clone());
            wanted.insert(key.clone());
            if questions.len() == AT_A_TIME {
                passed.get_or_insert(index);
            } else if self.pace.is_due(key, interval, now) {
                let asked = asked(seed, peer, &service.name);
                questions.push(Question {
                    node: peer.to_owned(),
                    service: service.name.clone(),
                    payload: presence::question(asked, *place, nonce),
                });
            }
        }
        self.turn = turn + passed.unwrap_or_default();
        self.pace.keep_only(&wanted);
        self.open = open;
        questions
    }

    /// Whether there is a question that may still be answered.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// What an answer says, from behind its EtherType; `None` if it is none, to no question of this node's, or not a node's of
    /// this cluster.
    #[must_use]
    pub fn understand(&self, seed: Seed, payload: &[u8]) -> Option<Told> {
        let answer = Answer::parse(payload)?;
        let (service, node) = self.open.get(&answer.nonce)?;
        (answer.tag == tag(seed, node, service, answer.made_ms, answer.said)).then(|| Told {
            node: node.clone(),
            service: service.clone(),
            made_ms: answer.made_ms,
            said: Said::of(answer.said),
        })
    }
}

/// Brings the map up to date: what this node's data path says while its controller is gone. It has no share, and says nothing, in
/// a service in which it has yet to join or has given everything up.
pub fn keep<M: Memory>(maps: &M, knowledge: &Knowledge, actual: &Actual) {
    let config = knowledge.config();
    if config.node.mode == Mode::Forward {
        return;
    }
    let seed = maps.control().seed();
    let node = config.node.name.as_str();
    let made_ms = knowledge.cluster.tokens_ms;
    let mut said = Vec::new();
    for service in places(config, node).into_keys() {
        let present = knowledge.own_presence(service, actual);
        said.push(present.map(|present| (service, present.word())));
    }
    let none = std::iter::repeat(None);
    for (entry, said) in maps.presences().iter().zip(said.into_iter().chain(none)) {
        let service = said.map(|(service, _)| service);
        let (asked, made_ms, said) = match said {
            Some((service, said)) => (asked(seed, node, service), made_ms, said),
            None => (0, 0, 0),
        };
        let words = [
            (&entry.asked, asked),
            (&entry.made_ms, made_ms),
            (&entry.said, said),
        ];
        if words.iter().all(|(word, value)| word.get() == *value) {
            continue;
        }
        // An answer put together of an old and a new one is nobody's: its tag is wrong.
        let tag = service.map_or(0, |service| tag(seed, node, service, made_ms, said));
        for (word, value) in words {
            word.set(value);
        }
        entry.tag.set(tag);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: Seed = Seed([1, 2]);

    fn asking() -> Asking {
        Asking {
            open: HashMap::from([(9, ("web".to_owned(), "n2".to_owned()))]),
            ..Asking::default()
        }
    }

    fn payload(nonce: u64, made_ms: u64, said: u64, tag: u64) -> Vec<u8> {
        let mut payload = presence::question(asked(SEED, "n2", "web"), 0, nonce).to_vec();
        payload[..4].copy_from_slice(&presence::ANSWER);
        payload[22..30].copy_from_slice(&made_ms.to_be_bytes());
        payload[30..38].copy_from_slice(&said.to_be_bytes());
        payload[38..].copy_from_slice(&tag.to_be_bytes());
        payload
    }

    #[test]
    fn an_answer_counts_to_an_open_question_under_the_seed_alone() {
        let said = Said {
            number: 7,
            drained: false,
            weight: 50,
        };
        let right = tag(SEED, "n2", "web", 1_000, said.word());
        let told = asking().understand(SEED, &payload(9, 1_000, said.word(), right));
        let expected = Told {
            node: "n2".to_owned(),
            service: "web".to_owned(),
            made_ms: 1_000,
            said,
        };
        assert_eq!(told, Some(expected));
        for (what, wrong) in [
            ("another question's", payload(8, 1_000, said.word(), right)),
            ("another time", payload(9, 1_001, said.word(), right)),
            ("another word", payload(9, 1_000, said.word() ^ 1, right)),
            (
                "of another node",
                payload(
                    9,
                    1_000,
                    said.word(),
                    tag(SEED, "n3", "web", 1_000, said.word()),
                ),
            ),
            (
                "under another seed",
                payload(
                    9,
                    1_000,
                    said.word(),
                    tag(Seed([1, 3]), "n2", "web", 1_000, said.word()),
                ),
            ),
        ] {
            assert_eq!(asking().understand(SEED, &wrong), None, "{what}");
        }
    }

    #[test]
    fn who_is_asked_is_one_node_and_one_service() {
        let this = asked(SEED, "n1", "web");
        for other in [
            asked(Seed([1, 3]), "n1", "web"),
            asked(SEED, "n2", "web"),
            asked(SEED, "n1", "dns"),
        ] {
            assert_ne!(this, other);
        }
    }
}
