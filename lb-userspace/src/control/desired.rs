//! What should be: configuration + operator's decisions + probe results + neighbours.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use lb_common::{abi::BackendState, pick::Affinity};

use super::{directory::Entries, peers::Table, retarget::Track};

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
    /// After which silence a flow counts as ended.
    pub flow_idle: Duration,
    /// In the order of the configuration.
    pub backends: Vec<DesiredBackend>,
    /// Where every node sees every packet: how far the peers are.
    pub pick: Option<Pick>,
}

/// What the nodes of a cluster have told each other about a service (`mode = "pick"`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pick {
    /// This node's name; it is the backend of that name.
    pub own: String,
    /// The table that each peer goes by, as far as it is heard.
    pub tables: BTreeMap<String, Table>,
    /// Whether this node joins the others: whatever it has in its table of its own is void.
    pub joining: bool,
}

/// A backend as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct DesiredBackend {
    /// Its name.
    pub name: String,
    /// Its own address. Name and address make it the same backend after a reload.
    pub address: Ipv4Addr,
    /// The weight in force.
    pub weight: u32,
    /// 1 is preferred.
    pub priority: u32,
    /// `Up`, `Down`, `Draining` or `Failed`; what follows from the maps (`Drained`, `Leaving`) is not decided here.
    pub state: BackendState,
    /// Why.
    pub reason: String,
    /// Whether probes succeed.
    pub healthy: bool,
    /// MAC address, if it is known.
    pub mac: Option<[u8; 6]>,
    /// The port it is reached through.
    pub port: u16,
}

impl DesiredBackend {
    /// What decides its place in the table: the same on every director.
    #[must_use]
    pub fn identity(&self) -> String {
        format!("{} {}", self.name, self.address)
    }

    /// Whether it may take new flows.
    #[must_use]
    pub fn takes_new_flows(&self) -> bool {
        self.state == BackendState::Up && self.weight > 0
    }

    /// Whether its flows have to move.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        matches!(self.state, BackendState::Down | BackendState::Failed)
    }
}

/// The backends that share the new flows: those of the best priority of which at least one may take any.
pub fn active(backends: &[DesiredBackend]) -> impl Iterator<Item = &DesiredBackend> {
    let best = backends
        .iter()
        .filter(|b| b.takes_new_flows())
        .map(|b| b.priority)
        .min();
    backends
        .iter()
        .filter(move |b| b.takes_new_flows() && Some(b.priority) == best)
}

/// What is known of a backend, from which its state follows.
#[derive(Clone, Debug)]
pub struct Knowledge<'a> {
    /// The operator said `drain`.
    pub drained: bool,
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
    } else if known.drained {
        (BackendState::Draining, "drained by the operator".into())
    } else {
        (BackendState::Up, known.health.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(name: &str, priority: u32, weight: u32, state: BackendState) -> DesiredBackend {
        DesiredBackend {
            name: name.into(),
            address: Ipv4Addr::new(192, 0, 2, 1),
            weight,
            priority,
            state,
            reason: String::new(),
            healthy: true,
            mac: Some([2; 6]),
            port: 0,
        }
    }

    #[test]
    fn only_the_best_priority_with_anyone_up_is_active() {
        let mut backends = vec![
            backend("a", 1, 50, BackendState::Up),
            backend("b", 1, 0, BackendState::Up),
            backend("c", 2, 50, BackendState::Up),
            backend("d", 1, 50, BackendState::Up),
        ];
        let names = |b: &[DesiredBackend]| active(b).map(|b| b.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&backends), ["a", "d"]);
        backends[0].state = BackendState::Draining;
        assert_eq!(names(&backends), ["d"]);
        backends[3].state = BackendState::Down;
        assert_eq!(names(&backends), ["c"]);
        backends[2].state = BackendState::Failed;
        assert!(names(&backends).is_empty());
    }

    #[test]
    fn which_state_follows() {
        let known = Knowledge {
            drained: false,
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
