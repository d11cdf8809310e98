//! The desired state that follows from what is known.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{
    abi::{BackendState, InfoTrack, PROTO_TCP_UDP},
    pick::{Affinity, Backend},
    wire::{PROTO_TCP, PROTO_UDP, mac_word},
};

use super::{
    super::{
        actual::Actual,
        cluster::Judged,
        decisions::Held,
        desired::{DesiredBackend, DesiredService, Knowledge as BackendKnowledge, Pick, state},
        directory::Entries,
        failback::{self, Standing},
        failure::Failed,
        following::Following,
    },
    Knowledge,
};
use crate::{
    config::{self, Ports, Protocol, Service},
    health::HealthState,
    neighbour::Target,
};

/// What picks, for the family of the service's VIP.
fn affinity(service: &Service) -> Affinity {
    let (none, client, network) = match service.vip {
        IpAddr::V4(_) => (
            Affinity::NONE_IPV4,
            Affinity::CLIENT_IPV4,
            Affinity::NETWORK_IPV4,
        ),
        IpAddr::V6(_) => (
            Affinity::NONE_IPV6,
            Affinity::CLIENT_IPV6,
            Affinity::NETWORK_IPV6,
        ),
    };
    match service.affinity {
        config::Affinity::None => none,
        config::Affinity::Client => client,
        config::Affinity::Network => Affinity {
            prefix: service.network_prefix.unwrap_or(network.prefix),
            ..network
        },
    }
}

const fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => PROTO_TCP,
        Protocol::Udp => PROTO_UDP,
        Protocol::TcpUdp => PROTO_TCP_UDP,
    }
}

pub(super) fn no_subnet(address: IpAddr) -> String {
    format!("{address} is in no subnet of the director's interfaces")
}

impl Knowledge {
    /// The state that all services should be in.
    #[must_use]
    pub fn desired(&self, actual: &Actual) -> Vec<DesiredService> {
        self.config
            .services
            .iter()
            .map(|service| self.desired_service(service, actual))
            .collect()
    }

    /// The state that the services of these names should be in, without a look at the others.
    #[must_use]
    pub fn desired_of(&self, names: &BTreeSet<String>, actual: &Actual) -> Vec<DesiredService> {
        names
            .iter()
            .filter_map(|name| self.service(name))
            .map(|service| self.desired_service(service, actual))
            .collect()
    }

    /// What has become of a backend, if that is a failure and nothing besides: what [`fail`](super::super::failure::fail)
    /// takes.
    #[must_use]
    pub fn failure(&self, number: u16, actual: &Actual) -> Option<Failed> {
        if self.config.node.mode == config::Mode::Pick {
            // There is more to a failure among nodes that tell each other.
            return None;
        }
        let old = actual.backends().get(&number)?;
        let service = self.service(&actual.services().get(&old.service)?.name)?;
        let backend = service
            .backends
            .iter()
            .find(|b| b.name == old.name && b.address == old.address)?;
        let wanted = self.desired_backend(service, backend, Some(number));
        let only_failed = wanted.state == BackendState::Down
            && wanted.weight == old.weight
            && wanted.priority == old.priority
            && wanted.port == old.entry.port()
            && wanted
                .mac
                .is_none_or(|mac| mac_word(mac) == old.entry.mac());
        only_failed.then_some(Failed {
            number,
            reason: wanted.reason,
            healthy: wanted.healthy,
            without_mac: wanted.mac.is_none(),
        })
    }

    /// What is kept of held priorities once `desired` is in force. With `all`, these are all services there are.
    #[must_use]
    pub fn keep_held(&self, desired: &[DesiredService], all: bool) -> BTreeMap<String, Held> {
        let before = &self.decisions.held;
        let mut held = if all { BTreeMap::new() } else { before.clone() };
        for desired in desired {
            let service = self.service(&desired.name);
            let kept = service.and_then(|s| failback::keep(s, desired, before.get(&s.name)));
            match kept {
                Some(kept) => held.insert(desired.name.clone(), kept),
                None => held.remove(&desired.name),
            };
        }
        held
    }

    /// How a service stands with its priorities.
    #[must_use]
    pub fn standing(&self, service: &Service, actual: &Actual) -> Standing {
        failback::standing(service, &self.desired_service(service, actual))
    }

    fn desired_service(&self, service: &Service, actual: &Actual) -> DesiredService {
        let id = actual.service_id(&service.name);
        let following = Following {
            track: match service.track {
                config::Track::Changes => InfoTrack::Changes,
                config::Track::Always => InfoTrack::Always,
                config::Track::Never => InfoTrack::Never,
                config::Track::Quic => InfoTrack::Quic,
            },
            affinity_timeout: service.affinity_timeout,
        };
        let nodes = (self.config.node.mode == config::Mode::Pick)
            .then(|| self.judge_nodes(service, actual));
        DesiredService {
            name: service.name.clone(),
            entries: Entries {
                vip: service.vip,
                protocol: protocol_number(service.protocol),
                ports: match &service.ports {
                    Ports::Any => Vec::new(),
                    Ports::Ranges(ranges) => ranges.clone(),
                },
            },
            affinity: affinity(service),
            track: following.changes(protocol_number(service.protocol)),
            following,
            spreads: service.spread_hot_sources.is_some()
                || id.is_some_and(|id| actual.has_hot(id)),
            flow_idle: service.flow_idle,
            held: failback::held(service, self.decisions.held.get(&service.name)),
            backends: service
                .backends
                .iter()
                .map(|backend| match &nodes {
                    None => {
                        let number = self.number(service, backend, actual);
                        self.desired_backend(service, backend, number)
                    }
                    Some(nodes) => self.desired_node(service, backend, &nodes[&backend.name]),
                })
                .collect(),
            pick: nodes.is_some().then(|| Pick {
                own: self.config.node.name.clone(),
                said: self.said_table(service),
                aware: self.aware_peers(service),
                tables: self.tables_of_peers(service),
                same_file: self.has_their_file(service),
                counted_in: self.is_counted_in(service),
                joining: self.cluster.joining.contains(&service.name),
                missed: self
                    .cluster
                    .missed
                    .get(&service.name)
                    .copied()
                    .unwrap_or_default(),
                pending: self
                    .cluster
                    .pending
                    .get(&service.name)
                    .copied()
                    .unwrap_or_default(),
            }),
            leaving: self
                .leaving_of(&service.name)
                .map(|(name, address, leaving)| {
                    let number = id.and_then(|id| actual.backend_number(id, name, address));
                    self.desired_leaving(service, name, address, leaving, number)
                })
                .collect(),
        }
    }

    /// A node of a cluster. Nothing is sent to a peer, so that its MAC address is for people alone.
    fn desired_node(
        &self,
        service: &Service,
        backend: &config::Backend,
        judged: &Judged,
    ) -> DesiredBackend {
        let own = self.config.is_own(backend);
        let port = self.port_towards(backend.address);
        let mac = if own {
            self.ports.first().map(|port| port.mac)
        } else {
            port.and_then(|port| {
                let target = Target {
                    address: backend.address,
                    ifindex: port.ifindex,
                };
                self.neighbours.get(&target)?.mac
            })
        };
        let (state, reason) = state(&BackendKnowledge {
            drained: judged.drained,
            ended: judged.ended,
            failed: judged.failed,
            healthy: judged.healthy,
            health: &judged.reason,
            has_mac: true,
            neighbour: "",
        });
        let (state, reason) = if service.rule == config::Rule::Disabled {
            (
                BackendState::Down,
                "disabled by the service's `rule`".to_owned(),
            )
        } else if self.opening && state == BackendState::Up {
            (
                BackendState::Down,
                "answers; the first answers of all nodes are awaited".to_owned(),
            )
        } else if own && self.cluster.joining.contains(&service.name) && state == BackendState::Up {
            (
                BackendState::Down,
                "joins, now that its tables are those of the others".to_owned(),
            )
        } else {
            (state, reason)
        };
        DesiredBackend {
            name: backend.name.clone(),
            address: backend.address,
            configured: backend.weight,
            weight: judged.weight,
            priority: backend.priority,
            state,
            reason,
            healthy: judged.healthy,
            mac,
            port: if own {
                Backend::LOCAL_PORT
            } else {
                port.map_or(0, |port| port.number)
            },
            lost: false,
        }
    }

    fn desired_backend(
        &self,
        service: &Service,
        backend: &config::Backend,
        number: Option<u16>,
    ) -> DesiredBackend {
        let decision = self.decisions.of(&service.name, &backend.name);
        let port = self.port_towards(backend.address);
        let local = self.own_mac(backend.address);
        let neighbour = port.and_then(|port| {
            self.neighbours.get(&Target {
                address: backend.address,
                ifindex: port.ifindex,
            })
        });
        let mac = local.or_else(|| neighbour.and_then(|neighbour| neighbour.mac));
        let no_mac = match (port, neighbour) {
            (None, _) => no_subnet(backend.address),
            (Some(_), Some(neighbour)) => neighbour.reason.clone(),
            (Some(port), None) => format!(
                "waiting for the {} of {} on {}",
                match backend.address {
                    IpAddr::V4(_) => "ARP answer",
                    IpAddr::V6(_) => "neighbour advertisement",
                },
                backend.address,
                port.name
            ),
        };
        let health = number.and_then(|number| self.health.get(&number));
        let (healthy, words) = match (&service.probe, health) {
            (None, _) => (true, "not probed, as configured".to_owned()),
            (Some(_), Some(health)) => (
                health.state() == HealthState::Up,
                health.reason().to_owned() + self.how_probed(service, backend.address),
            ),
            (Some(_), None) => (false, "not probed yet".to_owned()),
        };
        let (state, reason) = state(&BackendKnowledge {
            drained: decision.drained,
            ended: decision.flows_ended,
            failed: decision.failed,
            healthy,
            health: &words,
            has_mac: mac.is_some(),
            neighbour: &no_mac,
        });
        let (state, reason) = if service.rule == config::Rule::Disabled {
            (
                BackendState::Down,
                "disabled by the service's `rule`".to_owned(),
            )
        } else if self.opening && state == BackendState::Up {
            (
                BackendState::Down,
                "answers; the first answers of all backends are awaited".to_owned(),
            )
        } else {
            (state, reason)
        };
        DesiredBackend {
            name: backend.name.clone(),
            address: backend.address,
            configured: backend.weight,
            weight: decision.weight.unwrap_or(backend.weight),
            priority: backend.priority,
            state,
            reason,
            healthy,
            mac,
            port: match local {
                Some(_) => Backend::LOCAL_PORT,
                None => port.map_or(0, |port| port.number),
            },
            lost: false,
        }
    }
}
