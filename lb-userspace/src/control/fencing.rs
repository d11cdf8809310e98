//! Fencing in a cluster (`mode = "pick"`): how the peers of a node whose server has failed keep that node's data path from
//! answering, where its controller is gone and can't do it. See `lb_common::fence` for the frame, `docs/decisions/nlb-mode.md`
//! for the reasons.
//!
//! A node's token for a service follows from the cluster's seed and the time at which it made its tokens, which its word tells.
//! Both it and its peers keep it in the map `FENCES`, where it outlives their controllers.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use lb_common::{abi::Fence, fence, hash::Seed};

use super::{
    actual::{Actual, Millis},
    knowledge::Knowledge,
    memory::Memory,
    pace::Pace,
    peers::HEARD_FOR,
    siphash::siphash,
};
use crate::config::{Mode, Service};

/// From one frame to the next after the first ones, where the service is not probed.
const UNPROBED: Duration = Duration::from_secs(1);

/// The token that fences a node in a service; never 0.
#[must_use]
pub fn token(seed: Seed, node: &str, service: &str, made_ms: u64) -> u64 {
    let text = format!("fence\0{node}\0{service}\0{made_ms}");
    siphash(seed, text.as_bytes()).max(1)
}

/// What a node remembers of the fencing that it does.
#[derive(Debug, Default)]
pub struct Fencing {
    /// By backend number.
    pace: Pace<u16>,
    /// When this run could be told first that a peer is there. What it took over from the maps may be long past.
    began: Option<Millis>,
}

impl Fencing {
    /// What has to be sent at `now`: a payload for each service of each peer that this node counts as gone and does not hear,
    /// if it knows that peer's token. Nothing before it has listened for as long as a living peer may be silent.
    pub fn due<M: Memory>(
        &mut self,
        maps: &M,
        knowledge: &Knowledge,
        actual: &Actual,
        now: Millis,
    ) -> Vec<[u8; fence::LEN]> {
        let began = *self.began.get_or_insert(now);
        if u128::from(now.saturating_sub(began)) < HEARD_FOR.as_millis() {
            return Vec::new();
        }
        let mut payloads = Vec::new();
        let mut wanted = HashSet::new();
        for (service, peer) in knowledge.gone_unheard(actual) {
            let number = service
                .backends
                .iter()
                .find(|backend| backend.name == peer)
                .and_then(|backend| knowledge.number(service, backend, actual));
            let Some(number) = number else { continue };
            let Some(fence) = maps.fences().get(usize::from(number)) else {
                continue;
            };
            let Some((token, theirs)) = of_peer(fence) else {
                continue;
            };
            wanted.insert(number);
            let interval = service.probe.as_ref().map_or(UNPROBED, |p| p.interval);
            if self.pace.is_due(number, interval, now) {
                payloads.push(fence::payload(token, theirs));
            }
        }
        self.pace.keep_only(&wanted);
        payloads
    }
}

fn of_peer(fence: &Fence) -> Option<(u64, u16)> {
    let token = fence.peer_token.get();
    let number = u16::try_from(fence.peer_number.get()).ok()?;
    (token != 0).then_some((token, number))
}

/// Brings the map up to date: this node's own tokens as it says them now, and those of its peers as they last said them.
/// Whatever an older token has fenced is free.
pub fn keep<M: Memory>(maps: &M, knowledge: &Knowledge, actual: &Actual) {
    if knowledge.config().node.mode == Mode::Forward {
        return;
    }
    let seed = maps.control().seed();
    let set = |word: &lb_common::memory::Word64, value: u64| {
        if word.get() != value {
            word.set(value);
        }
    };
    for service in &knowledge.config().services {
        for backend in &service.backends {
            let fence = knowledge
                .number(service, backend, actual)
                .and_then(|number| maps.fences().get(usize::from(number)));
            let Some(fence) = fence else { continue };
            if knowledge.config().is_own(backend) {
                let made_ms = knowledge.cluster.tokens_ms;
                set(
                    &fence.token,
                    token(seed, &backend.name, &service.name, made_ms),
                );
                set(&fence.peer_token, 0);
                continue;
            }
            set(&fence.token, 0);
            let said = knowledge.cluster.peers.said(&backend.name, &service.name);
            if let Some((made_ms, number)) = said {
                // The number first: a token with another one's number fences nobody.
                set(&fence.peer_number, u64::from(number));
                set(
                    &fence.peer_token,
                    token(seed, &backend.name, &service.name, made_ms),
                );
            }
        }
    }
}

/// The services in which this node's data path is fenced.
#[must_use]
pub fn fenced<M: Memory>(maps: &M, knowledge: &Knowledge, actual: &Actual) -> BTreeSet<String> {
    let own = |service: &Service| {
        let own = service
            .backends
            .iter()
            .find(|backend| knowledge.config().is_own(backend))?;
        knowledge.number(service, own, actual)
    };
    knowledge
        .config()
        .services
        .iter()
        .filter(|service| {
            own(service)
                .and_then(|number| maps.fences().get(usize::from(number)))
                .is_some_and(fence::is_in_force)
        })
        .map(|service| service.name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_of_one_node_one_service_and_one_time() {
        let seed = Seed([1, 2]);
        let this = token(seed, "n1", "web", 7);
        for other in [
            token(Seed([1, 3]), "n1", "web", 7),
            token(seed, "n2", "web", 7),
            token(seed, "n1", "dns", 7),
            token(seed, "n1", "web", 8),
            token(seed, "n1\0web", "", 7),
        ] {
            assert_ne!(this, other);
        }
        assert_eq!(this, token(seed, "n1", "web", 7));
    }
}
