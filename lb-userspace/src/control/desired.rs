//! What should be: configuration + operator's decisions + probe results + neighbours.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use lb_common::{abi::BackendState, pick::Affinity};

use super::{directory::Entries, following::Following, retarget::Track, words::Table};

/// A service as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct DesiredService {
    /// Its name: what makes it the same service after a reload.
    pub name: String,
    /// What it contributes to the lookup.
    pub entries: Entries,
    /// Which part of the packet picks.
    pub affinity: Affinity,
    /// Whether its flows are tracked through a change.
    pub track: Track,
    /// Whether a source may be hot (`spread_hot_sources`), or one still is.
    pub spreads: bool,
    /// `track` and `affinity_timeout`.
    pub following: Following,
    /// After which silence a flow counts as ended.
    pub flow_idle: Duration,
    /// The priority that new flows stay on as long as anybody there takes them; `None`: the best.
    pub held: Option<u32>,
    /// In the order of the configuration.
    pub backends: Vec<DesiredBackend>,
    /// What is known of those that left the configuration while their flows stay.
    pub leaving: Vec<DesiredBackend>,
    /// Where every node sees every packet: how far the peers are.
    pub pick: Option<Pick>,
}

/// What the nodes of a cluster have told each other about a service (`mode = "pick"`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pick {
    /// This node's name; it is the backend of that name.
    pub own: String,
    /// The table that this node has said it goes by.
    pub said: Table,
    /// The peers that have heard it.
    pub aware: BTreeSet<String>,
    /// The table that each peer goes by, as far as it is heard.
    pub tables: BTreeMap<String, Table>,
    /// Whether their files say the same of the nodes. Until then tables stay derived from the file that was there before: nobody
    /// gives up a slot that those with the old file do not take.
    pub same_file: bool,
    /// Whether all peers that are heard count this node in: what nobody has, a peer that begins at the same moment might take
    /// as well, as long as it does not.
    pub counted_in: bool,
    /// Whether this node joins the others: whatever it has in its table of its own is void.
    pub joining: bool,
    /// What this node may have missed while its daemon was away.
    pub missed: Missed,
    /// Whether slots of peers that have failed are still nobody's.
    pub pending: Pending,
}

/// The slots that a node of a cluster does not take yet, though whoever had them has failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pending {
    /// There are none.
    #[default]
    Nothing,
    /// There are, and all the while this node went by one table.
    By(Table),
    /// Its table has changed meanwhile: a peer may have had them by another one.
    BySeveral,
}

/// How far a node of a cluster is whose daemon was away, or that has just joined: its peers may have gone, and others may have taken
/// what was theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Missed {
    /// It was there all the time, or all it may have missed is over: every peer's slots have settled since.
    #[default]
    Nothing,
    /// It goes by the same table as all its peers. What settled slots of others hold from before it does not know: one that
    /// it takes has "another node, whichever" as its previous one.
    Flows,
    /// It does not know yet who has what: it takes nothing that is not its own.
    Tables,
}

/// A backend as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct DesiredBackend {
    /// Its name.
    pub name: String,
    /// Its own address. Name and address make it the same backend after a reload.
    pub address: IpAddr,
    /// The configuration's weight.
    pub configured: u32,
    /// The weight in force.
    pub weight: u32,
    /// 1 is preferred.
    pub priority: u32,
    /// `Up`, `Down`, `Draining` or `Failed`; `Drained` only where the drain's time was up, since that a drain has come to
    /// its end by itself follows from the maps. `Leaving` for those in [`DesiredService::leaving`].
    pub state: BackendState,
    /// Why.
    pub reason: String,
    /// Whether probes succeed.
    pub healthy: bool,
    /// MAC address, if it is known.
    pub mac: Option<[u8; 6]>,
    /// The port it is reached through.
    pub port: u16,
    /// Of one that is leaving: its flows have to move, since it fails or because the operator said so.
    pub lost: bool,
}

/// What decides a backend's place in a table.
#[must_use]
pub fn identity(name: &str, address: IpAddr) -> String {
    format!("{name} {address}")
}

impl DesiredBackend {
    /// What decides its place in the table: the same on every director.
    #[must_use]
    pub fn identity(&self) -> String {
        identity(&self.name, self.address)
    }

    /// Whether it may take new flows.
    #[must_use]
    pub fn takes_new_flows(&self) -> bool {
        self.state == BackendState::Up && self.weight > 0
    }

    /// Whether known clients open their new flows elsewhere: a drain, or a weight of 0, overrides `affinity_timeout`.
    #[must_use]
    pub fn is_closed_to_new(&self) -> bool {
        !self.has_failed() && (self.state != BackendState::Up || self.weight == 0)
    }

    /// Whether its flows have to move. The time of a drain that is up ends flows in the same way as a failure does: the
    /// backend leaves both sides of every slot at once.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        match self.state {
            BackendState::Down | BackendState::Failed | BackendState::Drained => true,
            BackendState::Up | BackendState::Draining => false,
            BackendState::Leaving => self.lost,
        }
    }
}

impl DesiredService {
    /// The best priority of which any backend may take new flows.
    #[must_use]
    pub fn best_priority(&self) -> Option<u32> {
        self.backends
            .iter()
            .filter(|b| b.takes_new_flows())
            .map(|b| b.priority)
            .min()
    }

    /// The priority that new flows go to; `None` where nobody takes any.
    #[must_use]
    pub fn priority(&self) -> Option<u32> {
        let takes = |priority: &u32| {
            self.backends
                .iter()
                .any(|b| b.takes_new_flows() && b.priority == *priority)
        };
        self.held.filter(takes).or_else(|| self.best_priority())
    }

    /// The backends whose table it is: all of that priority, each with the weight that it has in the table.
    pub fn sharing(&self) -> impl Iterator<Item = (&DesiredBackend, u32)> {
        let priority = self.priority();
        let weight = |b: &DesiredBackend| if b.takes_new_flows() { b.weight } else { 0 };
        self.backends
            .iter()
            .filter(move |b| Some(b.priority) == priority)
            .map(move |b| (b, weight(b)))
    }
}

/// What is known of a backend, from which its state follows.
#[derive(Clone, Debug)]
pub struct Knowledge<'a> {
    /// The operator said `drain`.
    pub drained: bool,
    /// The drain's time was up, and so many flows were left.
    pub ended: Option<u64>,
    /// The operator said `fail`.
    pub failed: bool,
    /// Whether its probes succeed, and why.
    pub healthy: bool,
    /// What the probes say.
    pub health: &'a str,
    /// Whether its MAC address is known.
    pub has_mac: bool,
    /// Why it is not, where it is not.
    pub neighbour: &'a str,
}

/// The state that follows from what is known, and its reason.
///
/// A failure comes before a drain: a backend that fails in the middle of its drain loses its flows at once.
#[must_use]
pub fn state(known: &Knowledge<'_>) -> (BackendState, String) {
    let while_draining = |reason: &str| {
        if known.drained {
            format!("{reason} (while draining)")
        } else {
            reason.to_owned()
        }
    };
    if known.failed {
        (BackendState::Failed, "failed by the operator".into())
    } else if !known.has_mac {
        (BackendState::Down, while_draining(known.neighbour))
    } else if !known.healthy {
        (BackendState::Down, while_draining(known.health))
    } else if let (true, Some(flows)) = (known.drained, known.ended) {
        (BackendState::Drained, time_was_up(flows))
    } else if known.drained {
        (BackendState::Draining, "drained by the operator".into())
    } else {
        (BackendState::Up, known.health.to_owned())
    }
}

/// The reason of a drain whose time was up.
#[must_use]
pub fn time_was_up(flows: u64) -> String {
    match flows {
        0 => "drained by the operator; when its time was up, no flow was left".to_owned(),
        1 => "drained by the operator; its time was up, and 1 flow was ended".to_owned(),
        n => format!("drained by the operator; its time was up, and {n} flows were ended"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(name: &str, priority: u32, weight: u32, state: BackendState) -> DesiredBackend {
        DesiredBackend {
            name: name.into(),
            address: IpAddr::from([192, 0, 2, 1]),
            configured: weight,
            weight,
            priority,
            state,
            reason: String::new(),
            healthy: true,
            mac: Some([2; 6]),
            port: 0,
            lost: false,
        }
    }

    fn service(backends: Vec<DesiredBackend>) -> DesiredService {
        DesiredService {
            backends,
            ..crate::control::samples::service("web", 10, &[])
        }
    }

    fn names(service: &DesiredService) -> Vec<&str> {
        let active = service.sharing().filter(|(_, weight)| *weight > 0);
        active.map(|(b, _)| b.name.as_str()).collect()
    }

    #[test]
    fn only_the_best_priority_with_anyone_up_is_active() {
        let mut service = service(vec![
            backend("a", 1, 50, BackendState::Up),
            backend("b", 1, 0, BackendState::Up),
            backend("c", 2, 50, BackendState::Up),
            backend("d", 1, 50, BackendState::Up),
        ]);
        assert_eq!(names(&service), ["a", "d"]);
        service.backends[0].state = BackendState::Draining;
        assert_eq!(names(&service), ["d"]);
        service.backends[3].state = BackendState::Down;
        assert_eq!(names(&service), ["c"]);
        service.backends[2].state = BackendState::Failed;
        assert!(names(&service).is_empty());
    }

    #[test]
    fn a_held_priority_stays_active_as_long_as_anybody_there_is_up() {
        let mut service = service(vec![
            backend("a", 1, 50, BackendState::Up),
            backend("b", 2, 50, BackendState::Up),
            backend("c", 2, 50, BackendState::Down),
            backend("d", 3, 50, BackendState::Up),
        ]);
        service.held = Some(2);
        assert_eq!(
            (names(&service), service.best_priority()),
            (vec!["b"], Some(1))
        );
        service.backends[1].weight = 0;
        assert_eq!((names(&service), service.priority()), (vec!["a"], Some(1)));
        service.backends[0].state = BackendState::Down;
        assert_eq!((names(&service), service.priority()), (vec!["d"], Some(3)));
        service.held = Some(9);
        assert_eq!(
            names(&service),
            ["d"],
            "a priority that nobody has holds nothing"
        );
    }

    #[test]
    fn which_state_follows() {
        let known = Knowledge {
            drained: false,
            ended: None,
            failed: false,
            healthy: true,
            health: "answers",
            has_mac: true,
            neighbour: "no ARP answer",
        };
        let of = |k: Knowledge<'_>| state(&k);
        assert_eq!(of(known.clone()), (BackendState::Up, "answers".into()));
        assert_eq!(
            of(Knowledge {
                drained: true,
                ..known.clone()
            })
            .0,
            BackendState::Draining
        );
        assert_eq!(
            of(Knowledge {
                drained: true,
                has_mac: false,
                ..known.clone()
            }),
            (BackendState::Down, "no ARP answer (while draining)".into())
        );
        assert_eq!(
            of(Knowledge {
                healthy: false,
                ..known.clone()
            })
            .0,
            BackendState::Down
        );
        let timed_out = Knowledge {
            drained: true,
            ended: Some(3),
            ..known.clone()
        };
        assert_eq!(
            of(timed_out.clone()),
            (
                BackendState::Drained,
                "drained by the operator; its time was up, and 3 flows were ended".into()
            )
        );
        assert_eq!(
            of(Knowledge {
                healthy: false,
                ..timed_out
            })
            .0,
            BackendState::Down
        );
        assert_eq!(
            of(Knowledge {
                failed: true,
                drained: true,
                ..known
            })
            .0,
            BackendState::Failed
        );
    }
}
