//! The nodes of a cluster (`mode = "pick"`): what is known of each, and which of them serve. Pure; see
//! `docs/decisions/nlb-mode.md` for the reasons.
//!
//! A node learns of its peers in three ways. Its own **probes** say who answers. Each peer's **word**, a datagram four times
//! a second and at every change, says what no probe can: the operator's decisions about that node, whom *its* probes find
//! down, and by which table it goes. Where no word comes, that peer's **data path** is asked whether it is there.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    time::Duration,
};

use super::{
    actual::Millis,
    presence::Told,
    words::{ServiceWord, Word},
};

/// From one word to the next, if nothing changes.
pub const PERIOD: Duration = Duration::from_millis(250);
/// A node whose last word is older is not heard: its word was lost four times, or its daemon is gone.
pub const HEARD_FOR: Duration = Duration::from_secs(1);
/// A node that is not heard, and whose data path has left so many questions without an answer, one after the other, is not there:
/// five seconds of [`PERIOD`] each.
pub const UNANSWERED: u32 = 20;

/// What is known of one node's word about one service.
#[derive(Clone, Debug)]
struct Heard {
    word: ServiceWord,
    run_ms: u64,
    since: u64,
    tokens_ms: u64,
    /// Its own clock, Unix milliseconds.
    at_ms: u64,
    /// When it came.
    at: Millis,
    /// Less than [`HEARD_FOR`] ago.
    fresh: bool,
}

/// What the data path of a node that is not heard has said about one service. See [`super::presence`].
#[derive(Clone, Debug)]
struct Present {
    /// As much of its word as its data path knows.
    word: ServiceWord,
    tokens_ms: u64,
    /// It was not counted as gone since, nor has it fallen silent.
    counts: bool,
}

/// The last word of a node that has left.
#[derive(Clone, Copy, Debug)]
struct Left {
    /// Its `run_ms` and `at_ms`.
    said: (u64, u64),
    /// When it came.
    at: Millis,
}

/// What the peers have said.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    /// By node and service.
    heard: HashMap<(String, String), Heard>,
    /// Likewise; nobody whose word has come since.
    present: HashMap<(String, String), Present>,
    /// Likewise; nobody who has spoken since.
    left: HashMap<(String, String), Left>,
    /// Likewise: how many questions its data path has left without an answer, since it last gave one that counts.
    unanswered: HashMap<(String, String), u32>,
}

/// What a word changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Services about which it says something new.
    pub touched: BTreeSet<String>,
    /// Services for which that peer has counted this node as gone, and perhaps in again, since its last word.
    pub excluded: BTreeSet<String>,
    /// Services about which that peer was not heard, in this run of its, before this word.
    pub found: BTreeSet<String>,
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Peers {
    /// Takes a word in that came at `now`; `own` is this node's name.
    pub fn hear(&mut self, word: Word, own: &str, now: Millis) -> News {
        let mut news = News::default();
        for (service, said) in word.services {
            let key = (word.node.clone(), service.clone());
            let stamp = (word.run_ms, word.at_ms);
            self.present.remove(&key);
            if word.leaving {
                self.heard.remove(&key);
                let left = Left {
                    said: stamp,
                    at: now,
                };
                if self.left.insert(key, left).is_none() {
                    news.touched.insert(service);
                }
                continue;
            }
            // What it said before its last word may come after it.
            let late =
                |left: &Left| stamp < left.said && now.saturating_sub(left.at) < millis(HEARD_FOR);
            if self.left.get(&key).is_some_and(late) {
                continue;
            }
            self.left.remove(&key);
            self.unanswered.remove(&key);
            if let Some(old) = self.heard.get(&key) {
                // A clock that was set back is believed once the old word has lapsed.
                if stamp < (old.run_ms, old.at_ms) && old.fresh {
                    continue;
                }
                let found = old.run_ms != word.run_ms || !old.fresh;
                if found {
                    news.found.insert(service.clone());
                }
                let times = |word: &ServiceWord| word.excluded.get(own).copied().unwrap_or(0);
                // A run that began since counts from nothing.
                let before = if old.run_ms == word.run_ms {
                    times(&old.word)
                } else {
                    0
                };
                if times(&said) > before {
                    news.excluded.insert(service.clone());
                }
                if old.word != said || old.tokens_ms != word.tokens_ms || found {
                    news.touched.insert(service);
                }
            } else {
                news.found.insert(service.clone());
                news.touched.insert(service);
            }
            let heard = Heard {
                word: said,
                run_ms: word.run_ms,
                since: word.since,
                tokens_ms: word.tokens_ms,
                at_ms: word.at_ms,
                at: now,
                fresh: true,
            };
            self.heard.insert(key, heard);
        }
        news
    }

    /// Takes note of what the data path of a node that is not heard said; it `counts` unless the node is counted as gone. Gives
    /// whether that is news.
    pub fn answered(&mut self, told: &Told, counts: bool) -> bool {
        if self.fresh(&told.node, &told.service).is_some() {
            return false;
        }
        let key = (told.node.clone(), told.service.clone());
        if counts {
            self.unanswered.remove(&key);
        }
        let word = ServiceWord {
            healthy: true,
            drained: told.said.drained,
            weight: Some(told.said.weight),
            number: told.said.number,
            ..ServiceWord::default()
        };
        match self.present.entry(key) {
            Entry::Vacant(place) => {
                place.insert(Present {
                    word,
                    tokens_ms: told.made_ms,
                    counts,
                });
                true
            }
            Entry::Occupied(mut place) => {
                let known = place.get_mut();
                let news = known.word != word
                    || known.tokens_ms != told.made_ms
                    || counts && !known.counts;
                (known.word, known.tokens_ms) = (word, told.made_ms);
                known.counts |= counts;
                news
            }
        }
    }

    /// The data path of a node that is not heard was asked; gives whether it is known by that to be absent, and was not before.
    pub fn asked(&mut self, node: &str, service: &str) -> bool {
        let key = (node.to_owned(), service.to_owned());
        let unanswered = self.unanswered.entry(key).or_default();
        *unanswered = unanswered.saturating_add(1);
        // The last of them may be answered yet.
        if *unanswered != UNANSWERED + 1 {
            return false;
        }
        self.end_presence(node, service);
        true
    }

    /// Whether the last question to the data path of a node has yet to be answered.
    #[must_use]
    pub fn is_asked(&self, node: &str, service: &str) -> bool {
        self.unanswered(node, service) > 0
    }

    /// Whether a node is not heard, and its data path does not answer either: a server that answers there says nothing.
    #[must_use]
    pub fn is_absent(&self, node: &str, service: &str) -> bool {
        self.unanswered(node, service) > UNANSWERED
    }

    fn unanswered(&self, node: &str, service: &str) -> u32 {
        let key = (node.to_owned(), service.to_owned());
        self.unanswered.get(&key).copied().unwrap_or_default()
    }

    /// The node is counted as gone: that its data path was there once counts no more.
    pub fn end_presence(&mut self, node: &str, service: &str) {
        let key = (node.to_owned(), service.to_owned());
        if let Some(present) = self.present.get_mut(&key) {
            present.counts = false;
        }
    }

    /// Whether its data path has said that it is there, and nothing has been heard of the node or done about it since.
    #[must_use]
    pub fn is_present(&self, node: &str, service: &str) -> bool {
        self.presence(node, service)
            .is_some_and(|present| present.counts)
    }

    /// Forgets who has been silent for too long; gives the services that this is about.
    pub fn expire(&mut self, now: Millis) -> BTreeSet<String> {
        let mut touched = BTreeSet::new();
        for ((_, service), heard) in &mut self.heard {
            let fresh = now.saturating_sub(heard.at) < millis(HEARD_FOR);
            if fresh != heard.fresh {
                heard.fresh = fresh;
                touched.insert(service.clone());
            }
        }
        touched
    }

    /// What a node said last about a service, however long ago; or what its data path did, where that was later.
    #[must_use]
    pub fn last(&self, node: &str, service: &str) -> Option<&ServiceWord> {
        match self.presence(node, service) {
            Some(present) => Some(&present.word),
            None => self.entry(node, service).map(|heard| &heard.word),
        }
    }

    /// When it made its tokens, and its own number in this service, as it or its data path said last.
    #[must_use]
    pub fn said(&self, node: &str, service: &str) -> Option<(u64, u16)> {
        let said = match self.presence(node, service) {
            Some(present) => Some((present.tokens_ms, present.word.number)),
            None => self
                .entry(node, service)
                .map(|heard| (heard.tokens_ms, heard.word.number)),
        };
        said.filter(|(_, number)| *number != 0)
    }

    /// What it said last about a service, if it is heard.
    #[must_use]
    pub fn fresh(&self, node: &str, service: &str) -> Option<&ServiceWord> {
        self.entry(node, service)
            .filter(|heard| heard.fresh)
            .map(|heard| &heard.word)
    }

    /// Whether its last word was that it leaves: a server that answers there says nothing.
    #[must_use]
    pub fn has_left(&self, node: &str, service: &str) -> bool {
        self.left
            .contains_key(&(node.to_owned(), service.to_owned()))
    }

    /// [`Word::since`], if it is heard.
    #[must_use]
    pub fn since(&self, node: &str, service: &str) -> Option<u64> {
        self.entry(node, service)
            .filter(|heard| heard.fresh)
            .map(|heard| heard.since)
    }

    /// Whether the node is heard about any service.
    #[must_use]
    pub fn is_heard(&self, node: &str) -> bool {
        self.heard
            .iter()
            .any(|((name, _), heard)| name == node && heard.fresh)
    }

    fn entry(&self, node: &str, service: &str) -> Option<&Heard> {
        self.heard.get(&(node.to_owned(), service.to_owned()))
    }

    fn presence(&self, node: &str, service: &str) -> Option<&Present> {
        self.present.get(&(node.to_owned(), service.to_owned()))
    }
}

/// What is known of a node of one service, for [`serving`].
#[derive(Clone, Debug)]
pub struct Row<'a> {
    /// Its name.
    pub node: &'a str,
    /// Whether it serves by its own word, or, where it is not heard, by this node's judgement.
    pub healthy: bool,
    /// Whether its word is heard; always for this node itself.
    pub heard: bool,
    /// [`Word::since`]; 0 where it is not heard.
    pub since: u64,
    /// Whom it finds down; nobody where it is not heard.
    pub down: &'a BTreeSet<String>,
}

/// The nodes that serve: all that are healthy and find each other so.
///
/// Where one finds another down, the one that fewer find down stays, then the one that has been there for longer, then the first
/// of the rows, which are in the same order on every node. So all who have heard the same come to the same result, and no two nodes serve of which one counts the other as gone.
#[must_use]
pub fn serving<'a>(rows: &[Row<'a>]) -> BTreeSet<&'a str> {
    let candidates: Vec<&Row<'a>> = rows.iter().filter(|row| row.healthy).collect();
    let accusers = |row: &Row<'_>| {
        candidates
            .iter()
            .filter(|other| other.heard && other.down.contains(row.node))
            .count()
    };
    let mut order: Vec<&Row<'a>> = candidates.clone();
    // Stable: rows that are alike keep their order.
    order.sort_by_key(|row| (!row.heard, accusers(row), row.since));
    let mut members: Vec<&Row<'a>> = Vec::new();
    for row in order {
        let apart = |member: &&Row<'_>| {
            member.down.contains(row.node) || row.heard && row.down.contains(member.node)
        };
        if !members.iter().any(apart) {
            members.push(row);
        }
    }
    members.iter().map(|row| row.node).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lb_common::presence::Said;

    use super::*;

    fn said(down: &[&str]) -> ServiceWord {
        ServiceWord {
            healthy: true,
            down: down.iter().map(|name| (*name).to_owned()).collect(),
            ..ServiceWord::default()
        }
    }

    fn word(node: &str, at_ms: u64, service: ServiceWord) -> Word {
        Word {
            node: node.into(),
            run_ms: 1,
            since: 1,
            tokens_ms: 1,
            at_ms,
            leaving: false,
            services: BTreeMap::from([("web".to_owned(), service)]),
        }
    }

    #[test]
    fn what_is_new_in_a_word() {
        let mut peers = Peers::default();
        let touched = BTreeSet::from(["web".to_owned()]);
        let hear = |peers: &mut Peers, at_ms, service, now| {
            peers.hear(word("n2", at_ms, service), "n1", now)
        };
        let first = hear(&mut peers, 100, said(&[]), 0);
        assert_eq!((&first.touched, &first.found), (&touched, &touched));
        assert_eq!(hear(&mut peers, 350, said(&[]), 250), News::default());
        // Late, and of another content: not believed.
        assert_eq!(hear(&mut peers, 200, said(&["n3"]), 260), News::default());
        assert!(peers.fresh("n2", "web").unwrap().down.is_empty());
        assert_eq!(hear(&mut peers, 600, said(&["n3"]), 500).touched, touched);
        assert_eq!(peers.expire(1_499), BTreeSet::new());
        assert_eq!(peers.expire(1_500), touched);
        assert!(peers.fresh("n2", "web").is_none());
        assert!(peers.last("n2", "web").is_some());
        // A clock that was set back meanwhile.
        assert_eq!(hear(&mut peers, 5, said(&["n3"]), 2_000).touched, touched);
        assert_eq!(peers.expire(12_000), touched);
        let leaving = Word {
            leaving: true,
            ..word("n2", 9, said(&[]))
        };
        assert_eq!(peers.hear(leaving.clone(), "n1", 12_100).touched, touched);
        assert_eq!(peers.hear(leaving, "n1", 12_101), News::default());
        assert!(peers.last("n2", "web").is_none() && peers.has_left("n2", "web"));
        // It was on its way.
        assert_eq!(hear(&mut peers, 8, said(&[]), 12_110), News::default());
        assert!(peers.has_left("n2", "web"));
        // Its clock was set back while it was away.
        assert_eq!(hear(&mut peers, 8, said(&[]), 13_101).touched, touched);
        assert!(!peers.has_left("n2", "web"));
    }

    #[test]
    fn whose_data_path_leaves_twenty_questions_unanswered_is_absent() {
        let told = Told {
            node: "n2".into(),
            service: "web".into(),
            made_ms: 1,
            said: Said {
                number: 3,
                drained: false,
                weight: 50,
            },
        };
        let mut peers = Peers::default();
        let ask = |peers: &mut Peers, times| {
            (0..times)
                .filter(|_| peers.asked("n2", "web"))
                .collect::<Vec<u32>>()
        };
        assert!(peers.answered(&told, true));
        assert!(!peers.answered(&told, true), "it is known");
        assert!(ask(&mut peers, 20).is_empty(), "the last may be answered");
        assert!(peers.is_present("n2", "web") && !peers.is_absent("n2", "web"));
        assert!(!peers.answered(&told, true));
        assert!(!peers.is_asked("n2", "web"));
        assert_eq!(ask(&mut peers, 40), [20], "once is enough");
        assert!(peers.is_absent("n2", "web") && !peers.is_present("n2", "web"));
        assert!(!peers.is_absent("n2", "dns") && !peers.is_absent("n3", "web"));
        // It is counted as gone by now.
        assert!(!peers.answered(&told, false));
        assert!(peers.is_absent("n2", "web"));
        assert!(peers.answered(&told, true));
        assert!(peers.is_present("n2", "web") && !peers.is_absent("n2", "web"));
        ask(&mut peers, 21);
        peers.hear(word("n2", 1, said(&[])), "n1", 0);
        assert!(!peers.is_absent("n2", "web") && !peers.is_asked("n2", "web"));
    }

    #[test]
    fn a_node_learns_that_it_was_out() {
        let mut peers = Peers::default();
        let mut at = 0;
        let mut excluded = |run_ms: u64, times: u64| {
            at += 1;
            let said = ServiceWord {
                excluded: BTreeMap::from([("n1".to_owned(), times), ("n3".to_owned(), 99)]),
                ..said(&[])
            };
            let word = Word {
                run_ms,
                ..word("n2", at, said)
            };
            !peers.hear(word, "n1", at).excluded.is_empty()
        };
        assert!(!excluded(1, 3), "before this node was there");
        assert!(!excluded(1, 3));
        assert!(excluded(1, 4), "and perhaps in again, unheard");
        assert!(!excluded(1, 4));
        assert!(!excluded(2, 0), "its daemon took over");
        assert!(!excluded(2, 0));
        assert!(excluded(2, 1));
        assert!(excluded(3, 1), "another run, in which it was out once");
        assert!(!excluded(2, 9), "late, of a run that is over");
        assert!(!excluded(3, 1));
    }

    /// Name, healthy, heard, whom it finds down.
    type Node = (&'static str, bool, bool, &'static [&'static str]);
    /// What is the case, the nodes, and who serves.
    type Case = (&'static str, &'static [Node], &'static [&'static str]);

    fn who(rows: &[Node]) -> Vec<String> {
        let down: Vec<BTreeSet<String>> = rows
            .iter()
            .map(|(.., down)| down.iter().map(|name| (*name).to_owned()).collect())
            .collect();
        let rows: Vec<Row<'_>> = rows
            .iter()
            .zip(&down)
            .map(|((node, healthy, heard, _), down)| Row {
                node,
                healthy: *healthy,
                heard: *heard,
                since: u64::from(*heard),
                down,
            })
            .collect();
        serving(&rows).into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn who_serves() {
        const NONE: &[&str] = &[];
        let cases: [Case; 9] = [
            (
                "all well",
                &[("a", true, true, NONE), ("b", true, true, NONE)],
                &["a", "b"],
            ),
            (
                "its own server is down",
                &[("a", false, true, NONE), ("b", true, true, NONE)],
                &["b"],
            ),
            (
                "one finds a silent one down, before the others do",
                &[
                    ("a", true, false, NONE),
                    ("b", true, true, &["a"]),
                    ("c", true, true, NONE),
                ],
                &["b", "c"],
            ),
            (
                "its last word is still fresh",
                &[
                    ("a", true, true, NONE),
                    ("b", true, true, &["a"]),
                    ("c", true, true, NONE),
                ],
                &["b", "c"],
            ),
            (
                "a silent one that nobody finds down",
                &[("a", true, false, NONE), ("b", true, true, NONE)],
                &["a", "b"],
            ),
            (
                "two find each other down: the first stays",
                &[
                    ("a", true, true, &["b"]),
                    ("b", true, true, &["a"]),
                    ("c", true, true, NONE),
                ],
                &["a", "c"],
            ),
            (
                "cut off from the others, whoever stands first",
                &[
                    ("a", true, true, &["b", "c"]),
                    ("b", true, true, &["a"]),
                    ("c", true, true, &["a"]),
                ],
                &["b", "c"],
            ),
            (
                "whoever is out accuses nobody",
                &[
                    ("a", true, true, &["b"]),
                    ("b", true, true, &["c"]),
                    ("c", true, true, NONE),
                ],
                &["a", "c"],
            ),
            (
                "the word of one that is not healthy counts nothing",
                &[("a", false, true, &["b"]), ("b", true, true, NONE)],
                &["b"],
            ),
        ];
        for (what, rows, expected) in cases {
            assert_eq!(who(rows), expected, "{what}");
        }
    }
}
