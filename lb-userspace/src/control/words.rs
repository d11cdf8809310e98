//! What a node of a cluster (`mode = "pick"`) says of itself, and its datagrams.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{hash::Seed, pick::Affinity};
use serde::{Deserialize, Serialize};

use super::{actual::Share, siphash::siphash};

/// By which table a node goes: the same on two nodes if and only if they pick alike (but for hash collisions).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// log2 of its size.
    pub bits: u8,
    /// A hash of what it is built for.
    pub built_for: u64,
}

impl Table {
    /// The table of 2^`bits` slots for these backends, in whatever order; their numbers only mean something here.
    #[must_use]
    pub fn of(affinity: Affinity, bits: u8, built_for: &[Share]) -> Self {
        let mut members: Vec<(&str, u32, u32)> = built_for
            .iter()
            .map(|share| (&*share.identity, share.configured, share.weight))
            .collect();
        members.sort_unstable();
        let mut text = format!("{} {} {bits}", affinity.prefix, affinity.ports);
        for (identity, configured, weight) in members {
            text.push('\n');
            text.push_str(&format!("{identity} {configured} {weight}"));
        }
        Self {
            bits,
            built_for: siphash(Seed([0, 0]), text.as_bytes()),
        }
    }
}

/// A hash of what a node's file says of a service's nodes, as far as tables are derived from it: identity, weight and priority
/// of each, in whatever order.
#[must_use]
pub fn file_of(nodes: impl Iterator<Item = (String, u32, u32)>) -> u64 {
    let mut lines: Vec<String> = nodes
        .map(|(identity, weight, priority)| format!("{identity} {weight} {priority}"))
        .collect();
    lines.sort_unstable();
    siphash(Seed([0, 0]), lines.join("\n").as_bytes())
}

/// What a node says about one service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceWord {
    /// Whether it serves: its own server answers it, and its tables are made.
    pub healthy: bool,
    /// Its operator said `drain`.
    pub drained: bool,
    /// The drain's time was up, and so many flows were left.
    pub ended: Option<u64>,
    /// Its operator said `fail`.
    pub failed: bool,
    /// Its operator's weight.
    pub weight: Option<u32>,
    /// The nodes that its probes find down.
    pub down: BTreeSet<String>,
    /// The other nodes that it counts as serving.
    pub serving: BTreeSet<String>,
    /// How often, in this run, it has counted each of the other nodes as gone while it served itself: whatever that node had,
    /// others have taken. Those that it never did are left out.
    pub excluded: BTreeMap<String, u64>,
    /// The table by which it goes: what that takes away from it, it has given up.
    pub table: Table,
    /// What its file says of the nodes ([`file_of`]).
    #[serde(default)]
    pub file: u64,
    /// A number that it changes whenever it changes to another table.
    #[serde(default)]
    pub turn: u64,
    /// The turns of the other nodes that it hears, as it heard them last.
    #[serde(default)]
    pub seen: BTreeMap<String, u64>,
    /// The other nodes of which it knows that they have left, and that it has not heard since.
    #[serde(default)]
    pub left: BTreeSet<String>,
    /// None of its slots is in transition: it has no flow in a slot of another's.
    pub settled: bool,
    /// The number that it has in its own maps; 0 for none. See [`super::fencing`].
    #[serde(default)]
    pub number: u16,
}

/// One datagram of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// Who speaks.
    pub node: String,
    /// When this run of its daemon began, or when it joined again since, in Unix milliseconds of its own clock.
    pub run_ms: u64,
    /// When its maps were made, or when it joined again since, in Unix seconds of its own clock.
    #[serde(default)]
    pub since: u64,
    /// When it was said, in Unix milliseconds of its own clock: an older word never replaces a newer one.
    pub at_ms: u64,
    /// When it made the tokens that fence it, in Unix milliseconds of its own clock.
    #[serde(default)]
    pub tokens_ms: u64,
    /// Whether it takes its data path away and leaves.
    pub leaving: bool,
    /// By service; those that did not fit come in other datagrams.
    pub services: BTreeMap<String, ServiceWord>,
}

/// Format and version of a datagram.
const MAGIC: [u8; 4] = *b"XLB1";
/// Services are put into one datagram up to this size, in bytes: with its headers it fits an Ethernet frame.
const FULL: usize = 1_200;

/// A datagram that is no word of this cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoWord {
    /// It begins otherwise.
    #[error("it is no word of an xdp-lb of this version")]
    Format,
    /// Its tag is another.
    #[error("it is not said under this node's `seed`: all nodes need the same")]
    Tag,
}

/// The datagrams of a word.
#[must_use]
pub fn encode(word: &Word, seed: Seed) -> Vec<Vec<u8>> {
    let mut parts = vec![Word {
        services: BTreeMap::new(),
        ..word.clone()
    }];
    let mut size = 0;
    for (name, service) in &word.services {
        let length = serde_json::to_vec(service).map_or(0, |text| text.len()) + name.len() + 4;
        if size > 0 && size + length > FULL {
            parts.push(Word {
                services: BTreeMap::new(),
                ..word.clone()
            });
            size = 0;
        }
        size += length;
        if let Some(part) = parts.last_mut() {
            part.services.insert(name.clone(), service.clone());
        }
    }
    parts
        .iter()
        .filter_map(|part| {
            let text = serde_json::to_vec(part).ok()?;
            let tag = siphash(seed, &text);
            Some([&MAGIC[..], &tag.to_be_bytes(), &text].concat())
        })
        .collect()
}

/// The word in a datagram.
///
/// # Errors
/// [`NoWord`].
pub fn decode(datagram: &[u8], seed: Seed) -> Result<Word, NoWord> {
    let (magic, rest) = datagram.split_first_chunk::<4>().ok_or(NoWord::Format)?;
    let (tag, text) = rest.split_first_chunk::<8>().ok_or(NoWord::Format)?;
    if *magic != MAGIC {
        return Err(NoWord::Format);
    }
    if u64::from_be_bytes(*tag) != siphash(seed, text) {
        return Err(NoWord::Tag);
    }
    serde_json::from_slice(text).map_err(|_| NoWord::Format)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: Seed = Seed([1, 2]);

    fn said(down: &[&str]) -> ServiceWord {
        ServiceWord {
            healthy: true,
            down: down.iter().map(|name| (*name).to_owned()).collect(),
            ..ServiceWord::default()
        }
    }

    fn word(services: BTreeMap<String, ServiceWord>) -> Word {
        Word {
            node: "n1".into(),
            run_ms: 1,
            since: 1,
            tokens_ms: 1,
            at_ms: 7,
            leaving: false,
            services,
        }
    }

    #[test]
    fn words_come_back_whole_and_only_under_the_same_seed() {
        let mut word = word(BTreeMap::from([("web".to_owned(), said(&["n2"]))]));
        for index in 0..40 {
            word.services
                .insert(format!("service{index}"), said(&["n2", "n3"]));
        }
        let datagrams = encode(&word, SEED);
        assert!(datagrams.len() > 1);
        let mut services = BTreeMap::new();
        for datagram in &datagrams {
            assert!(datagram.len() < 1_472, "{}", datagram.len());
            let part = decode(datagram, SEED).unwrap();
            assert_eq!((part.node.as_str(), part.at_ms), ("n1", 7));
            services.extend(part.services);
            assert_eq!(decode(datagram, Seed([1, 3])), Err(NoWord::Tag));
            let mut other = datagram.clone();
            *other.last_mut().unwrap() ^= 1;
            assert_eq!(decode(&other, SEED), Err(NoWord::Tag));
        }
        assert_eq!(services, word.services);
        assert_eq!(decode(b"", SEED), Err(NoWord::Format));
        assert_eq!(decode(b"XLB0............", SEED), Err(NoWord::Format));
    }

    #[test]
    fn a_node_without_services_still_speaks() {
        assert_eq!(encode(&word(BTreeMap::new()), SEED).len(), 1);
    }

    #[test]
    fn files_are_the_same_in_whatever_order() {
        let of = |nodes: &[(&str, u32, u32)]| {
            file_of(
                nodes
                    .iter()
                    .map(|(id, weight, priority)| ((*id).to_owned(), *weight, *priority)),
            )
        };
        let file = of(&[("a", 50, 1), ("b", 25, 2)]);
        assert_eq!(file, of(&[("b", 25, 2), ("a", 50, 1)]));
        for other in [
            &[("a", 50, 1)][..],
            &[("a", 50, 1), ("b", 50, 2)],
            &[("a", 50, 1), ("b", 25, 1)],
        ] {
            assert_ne!(file, of(other));
        }
    }

    #[test]
    fn tables_are_the_same_however_they_are_numbered() {
        let share = |identity: &str, weight, number| Share {
            identity: identity.into(),
            configured: 50,
            weight,
            number,
        };
        let (a, b) = (share("a", 50, 1), share("b", 50, 2));
        let of = |members: &[&Share], bits| {
            let members: Vec<Share> = members.iter().map(|share| (*share).clone()).collect();
            Table::of(Affinity::CLIENT_IPV4, bits, &members)
        };
        let table = of(&[&a, &b], 11);
        assert_eq!(table, of(&[&share("b", 50, 7), &share("a", 50, 9)], 11));
        assert_ne!(table, of(&[&a, &share("b", 51, 2)], 11));
        let heavier = Share {
            configured: 51,
            ..b.clone()
        };
        assert_ne!(table, of(&[&a, &heavier], 11));
        assert_ne!(table, of(&[&a], 11));
        assert_ne!(table, of(&[&a, &b], 12));
        let other = Table::of(Affinity::NETWORK_IPV4, 11, &[a, b]);
        assert_ne!(table, other);
    }
}
