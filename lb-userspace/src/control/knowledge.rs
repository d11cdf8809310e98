//! What the controller knows of the world: configuration, decisions, probe results, neighbours, interfaces; and the
//! desired state that follows from it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::SystemTime,
};

use lb_common::{
    abi::{BackendState, probe_mark},
    pick::{Affinity, Backend},
    wire::{PROTO_TCP, PROTO_UDP, mac_bytes},
};

use super::{
    actual::Actual,
    cluster::{Cluster, Judged},
    decisions::{Decisions, Held},
    desired::{
        DesiredBackend, DesiredService, Knowledge as BackendKnowledge, Pick, state, time_was_up,
    },
    directory::Entries,
    failback::{self, Standing},
    reconcile::OTHERS,
    retarget::Track,
};
use crate::{
    config::{self, Config, Ports, Protocol, Service},
    health::{Health, HealthState, ProbeId, ProbeKind, ProbeSpec, Thresholds, Via},
    neighbour::{HostFacts, Mac, Target},
};

/// One of the director's interfaces that the program is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortState {
    /// Its port number.
    pub number: u16,
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: Mac,
}

/// What is known of a neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its MAC address, if it is known.
    pub mac: Option<Mac>,
    /// Why it is not.
    pub reason: String,
}

/// A backend that left the configuration while its flows stay, by its service's name, its own, and its address.
pub type LeavingKey = (String, String, IpAddr);

/// What is known of one that leaves.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaving {
    /// How it is probed: as the last configuration says that had it, or as its service is now where that is not known.
    pub probe: Option<config::Probe>,
    /// Whether `probe` is its own. If not, it may fail though nothing is wrong with the backend: it then counts only once
    /// the backend has answered it.
    pub own_probe: bool,
}

/// Everything the desired state depends on.
#[derive(Debug)]
pub struct Knowledge {
    /// The configuration in force.
    pub config: Config,
    /// The backends that left it while their flows stay.
    pub leaving: BTreeMap<LeavingKey, Leaving>,
    /// The operator's decisions.
    pub decisions: Decisions,
    /// By backend number; only of probed backends.
    pub health: HashMap<u16, Health>,
    /// By address and interface.
    pub neighbours: HashMap<Target, Neighbour>,
    /// The interfaces.
    pub ports: Vec<PortState>,
    /// The host's addresses.
    pub facts: HostFacts,
    /// Whether this is a fresh start, and the first answers are still awaited: see [`Self::all_judged`].
    pub opening: bool,
    /// The other nodes, in a cluster whose nodes all see every packet.
    pub cluster: Cluster,
}

/// The IPv4 address of a configuration's address: this version's configurations hold no other.
fn ipv4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => address.to_ipv4_mapped().unwrap_or(Ipv4Addr::UNSPECIFIED),
    }
}

fn no_subnet(address: IpAddr) -> String {
    format!("{address} is in no subnet of the director's interfaces")
}

const fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => PROTO_TCP,
        Protocol::Udp => PROTO_UDP,
    }
}

impl Knowledge {
    /// The interface towards a backend: the one with a subnet that holds its address, the narrowest first.
    #[must_use]
    pub fn port_towards(&self, address: IpAddr) -> Option<&PortState> {
        self.ports
            .iter()
            .filter_map(|port| {
                let interface = self.facts.interface(&port.name)?;
                let prefix = interface
                    .addresses
                    .iter()
                    .filter(|net| net.contains(&address))
                    .map(ipnet::IpNet::prefix_len)
                    .max()?;
                Some((prefix, port))
            })
            .max_by_key(|(prefix, _)| *prefix)
            .map(|(_, port)| port)
    }

    /// The neighbours to follow.
    #[must_use]
    pub fn targets(&self) -> HashSet<Target> {
        let own = self.config.own_address();
        let listed = self.config.services.iter().flat_map(|s| &s.backends);
        listed
            .map(|backend| backend.address)
            .chain(self.leaving.keys().map(|(_, _, address)| *address))
            .filter(|address| Some(*address) != own)
            .filter_map(|address| {
                let port = self.port_towards(address)?;
                Some(Target {
                    address,
                    ifindex: port.ifindex,
                })
            })
            .collect()
    }

    /// The services that have a backend with one of these addresses, be it that it is leaving.
    #[must_use]
    pub fn services_with(&self, addresses: &BTreeSet<IpAddr>) -> BTreeSet<String> {
        let listed = self
            .config
            .services
            .iter()
            .filter(|s| s.backends.iter().any(|b| addresses.contains(&b.address)))
            .map(|s| s.name.clone());
        let leaving = self
            .leaving
            .keys()
            .filter(|(_, _, address)| addresses.contains(address))
            .map(|(service, _, _)| service.clone());
        listed.chain(leaving).collect()
    }

    /// Puts another configuration in force; gives the one before with the backends that were leaving then, for
    /// [`Self::take_back`]. What it has no more is leaving from now on.
    pub fn take(&mut self, config: Config) -> (Config, BTreeMap<LeavingKey, Leaving>) {
        let before = (
            std::mem::replace(&mut self.config, config),
            self.leaving.clone(),
        );
        for service in &before.0.services {
            for backend in &service.backends {
                self.leaving.insert(
                    (service.name.clone(), backend.name.clone(), backend.address),
                    Leaving {
                        probe: service.probe.clone(),
                        own_probe: true,
                    },
                );
            }
        }
        self.forget_listed();
        before
    }

    /// Puts the configuration before in force again.
    pub fn take_back(&mut self, before: (Config, BTreeMap<LeavingKey, Leaving>)) {
        (self.config, self.leaving) = before;
    }

    fn forget_listed(&mut self) {
        let services: HashMap<&str, &Service> = self
            .config
            .services
            .iter()
            .map(|s| (s.name.as_str(), s))
            .collect();
        self.leaving.retain(|(service, name, address), _| {
            services.get(service.as_str()).is_some_and(|service| {
                !service
                    .backends
                    .iter()
                    .any(|b| b.name == *name && b.address == *address)
            })
        });
    }

    /// Takes the backends that an earlier daemon left leaving, or that the file has lost meanwhile, as leaving.
    pub fn adopt_leaving(&mut self, actual: &Actual) {
        for service in &self.config.services {
            let Some(id) = actual.service_id(&service.name) else {
                continue;
            };
            for (_, backend) in actual.backends_of(id) {
                if backend.name == OTHERS {
                    continue;
                }
                self.leaving.insert(
                    (
                        service.name.clone(),
                        backend.name.clone(),
                        IpAddr::V4(backend.address),
                    ),
                    Leaving {
                        probe: service.probe.clone(),
                        own_probe: false,
                    },
                );
            }
        }
        self.forget_listed();
    }

    /// Forgets those that are gone.
    pub fn forget_gone(&mut self, actual: &Actual) {
        self.leaving.retain(|(service, name, address), _| {
            actual
                .service_id(service)
                .and_then(|id| actual.backend_number(id, name, ipv4(*address)))
                .is_some()
        });
    }

    /// What is kept of held priorities once `desired` is in force. With `all`, these are all services there are.
    #[must_use]
    pub fn keep_held(&self, desired: &[DesiredService], all: bool) -> BTreeMap<String, Held> {
        let before = &self.decisions.held;
        let mut held = if all { BTreeMap::new() } else { before.clone() };
        for desired in desired {
            let service = self.config.services.iter().find(|s| s.name == desired.name);
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

    /// The state that the services for which `wanted` is true should be in.
    #[must_use]
    pub fn desired(
        &self,
        wanted: impl Fn(&Service) -> bool,
        actual: &Actual,
    ) -> Vec<DesiredService> {
        self.config
            .services
            .iter()
            .filter(|service| wanted(service))
            .map(|service| self.desired_service(service, actual))
            .collect()
    }

    fn desired_service(&self, service: &Service, actual: &Actual) -> DesiredService {
        let nodes = (self.config.node.mode == config::Mode::Pick)
            .then(|| self.judge_nodes(service, actual));
        DesiredService {
            name: service.name.clone(),
            entries: Entries {
                vip: ipv4(service.vip).to_bits(),
                protocol: protocol_number(service.protocol),
                ports: match &service.ports {
                    Ports::Any => Vec::new(),
                    Ports::Ranges(ranges) => ranges.clone(),
                },
            },
            affinity: match service.affinity {
                config::Affinity::None => Affinity::NONE_IPV4,
                config::Affinity::Client => Affinity::CLIENT_IPV4,
                config::Affinity::Network => Affinity::NETWORK_IPV4,
            },
            track: match service.protocol {
                Protocol::Tcp => Track::Flows,
                Protocol::Udp => Track::Nothing,
            },
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
            leaving: self
                .leaving
                .iter()
                .filter(|((name, _, _), _)| *name == service.name)
                .map(|((_, name, address), leaving)| {
                    let id = actual.service_id(&service.name);
                    let number = id.and_then(|id| actual.backend_number(id, name, ipv4(*address)));
                    self.desired_leaving(service, name, *address, leaving, number)
                })
                .collect(),
            pick: nodes.is_some().then(|| Pick {
                own: self.config.node.name.clone(),
                tables: self.tables_of_peers(service),
                joining: self.cluster.joining.contains(&service.name),
            }),
        }
    }

    /// The number of a configured backend, where it has one.
    pub(super) fn number(
        &self,
        service: &Service,
        backend: &config::Backend,
        actual: &Actual,
    ) -> Option<u16> {
        let id = actual.service_id(&service.name)?;
        actual.backend_number(id, &backend.name, ipv4(backend.address))
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
            address: ipv4(backend.address),
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

    /// One that is leaving keeps its flows until it fails, or the operator's word says otherwise.
    fn desired_leaving(
        &self,
        service: &Service,
        name: &str,
        address: IpAddr,
        leaving: &Leaving,
        number: Option<u16>,
    ) -> DesiredBackend {
        let decision = self.decisions.of(&service.name, name);
        let port = self.port_towards(address);
        let neighbour = port.and_then(|port| {
            self.neighbours.get(&Target {
                address,
                ifindex: port.ifindex,
            })
        });
        let no_mac = match (port, neighbour) {
            (None, _) => Some(no_subnet(address)),
            (Some(_), Some(Neighbour { mac: None, reason })) => Some(reason.clone()),
            (Some(_), _) => None,
        };
        let health = number.and_then(|number| self.health.get(&number));
        let fails = leaving.probe.as_ref().and(health).filter(|health| {
            let proven = leaving.own_probe || health.round_trip().is_some();
            proven && health.state() == HealthState::Down
        });
        let (lost, reason) = if decision.failed {
            (true, "failed by the operator".to_owned())
        } else if let (true, Some(flows)) = (decision.drained, decision.flows_ended) {
            (true, time_was_up(flows))
        } else if let Some(reason) = no_mac {
            (true, reason)
        } else if let Some(health) = fails {
            (true, health.reason().to_owned())
        } else {
            (false, String::new())
        };
        DesiredBackend {
            name: name.to_owned(),
            address: ipv4(address),
            weight: 0,
            priority: config::Backend::PRIORITY,
            state: BackendState::Leaving,
            reason,
            healthy: fails.is_none(),
            mac: neighbour.and_then(|neighbour| neighbour.mac),
            port: port.map_or(0, |port| port.number),
            lost,
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
        let neighbour = port.and_then(|port| {
            self.neighbours.get(&Target {
                address: backend.address,
                ifindex: port.ifindex,
            })
        });
        let mac = neighbour.and_then(|neighbour| neighbour.mac);
        let no_mac = match (port, neighbour) {
            (None, _) => no_subnet(backend.address),
            (Some(_), Some(neighbour)) => neighbour.reason.clone(),
            (Some(port), None) => format!(
                "waiting for the ARP answer of {} on {}",
                backend.address, port.name
            ),
        };
        let health = number.and_then(|number| self.health.get(&number));
        let (healthy, words) = match (&service.probe, health) {
            (None, _) => (true, "not probed, as configured".to_owned()),
            (Some(_), Some(health)) => (
                health.state() == HealthState::Up,
                health.reason().to_owned(),
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
            address: ipv4(backend.address),
            weight: decision.weight.unwrap_or(backend.weight),
            priority: backend.priority,
            state,
            reason,
            healthy,
            mac,
            port: port.map_or(0, |port| port.number),
            lost: false,
        }
    }

    /// Whether each backend has been judged once: a probe has ended, or its MAC address could not be found.
    ///
    /// Until then a fresh start serves nobody. If it served as soon as the first backend answers, every slot would name
    /// that one first, and be in transition for `flow_idle` as the others come; a client waits a moment instead.
    #[must_use]
    pub fn all_judged(&self, actual: &Actual) -> bool {
        if self.config.node.mode == config::Mode::Pick {
            return self.all_nodes_judged(actual);
        }
        let served = |service: &&Service| service.rule != config::Rule::Disabled;
        self.config.services.iter().filter(served).all(|service| {
            service.backends.iter().all(|backend| {
                let Some(port) = self.port_towards(backend.address) else {
                    return true;
                };
                let target = Target {
                    address: backend.address,
                    ifindex: port.ifindex,
                };
                let Some(neighbour) = self.neighbours.get(&target) else {
                    return false;
                };
                if neighbour.mac.is_none() || service.probe.is_none() {
                    return true;
                }
                actual
                    .service_id(&service.name)
                    .and_then(|id| actual.backend_number(id, &backend.name, ipv4(backend.address)))
                    .and_then(|number| self.health.get(&number))
                    .is_some_and(Health::is_probed)
            })
        })
    }

    /// The probes that follow: one for each backend that has a number and a MAC address to be aimed at, those that are
    /// leaving among them.
    #[must_use]
    pub fn probes(&self, actual: &Actual) -> BTreeMap<ProbeId, (ProbeSpec, Thresholds)> {
        let mut probes = BTreeMap::new();
        for service in &self.config.services {
            let Some(id) = actual.service_id(&service.name) else {
                continue;
            };
            let disabled = service.rule == config::Rule::Disabled;
            let listed = service
                .backends
                .iter()
                .filter(|_| !disabled)
                .map(|b| (b.name.as_str(), b.address, service.probe.as_ref()));
            let leaving = self
                .leaving
                .iter()
                .filter(|((name, _, _), _)| *name == service.name)
                .map(|((_, name, address), one)| (name.as_str(), *address, one.probe.as_ref()));
            for (name, address, probe) in listed.chain(leaving) {
                let number = actual.backend_number(id, name, ipv4(address));
                if let (Some(probe), Some(number)) = (probe, number)
                    && let Some((mut spec, thresholds)) =
                        aim(probe, service.vip, address, number, actual)
                {
                    if Some(address) == self.config.own_address() {
                        // This node answers at the VIP, which is its own, as it answers the clients.
                        spec.target.set_ip(service.vip);
                    }
                    probes.insert(ProbeId(number), (spec, thresholds));
                }
            }
        }
        probes
    }

    /// Gives every probed backend a state of health, and forgets those of backends that are not probed any more: whoever
    /// has lost its MAC address or has left the configuration is probed before it serves again.
    ///
    /// What an earlier daemon knew is taken over: its word counts until the probes say otherwise.
    pub fn keep_health(
        &mut self,
        actual: &Actual,
        probes: &BTreeMap<ProbeId, (ProbeSpec, Thresholds)>,
    ) {
        self.health
            .retain(|number, _| probes.contains_key(&ProbeId(*number)));
        let now = SystemTime::now();
        for (id, (_, thresholds)) in probes {
            let health =
                self.health
                    .entry(id.0)
                    .or_insert_with(|| match actual.backends().get(&id.0) {
                        Some(backend) if backend.healthy => Health::adopted(
                            *id,
                            *thresholds,
                            HealthState::Up,
                            // The backend's own reason may speak of a drain.
                            "answered when this daemon took over".to_owned(),
                            now,
                        ),
                        _ => Health::new(*id, *thresholds, now),
                    });
            health.set_thresholds(*thresholds);
        }
    }

    /// Takes the MAC addresses that an earlier daemon resolved as known until the kernel says otherwise.
    pub fn adopt_neighbours(&mut self, actual: &Actual) {
        for backend in actual.backends().values().filter(|b| b.entry.mac() != 0) {
            let Some(port) = self
                .ports
                .iter()
                .find(|port| port.number == backend.entry.port())
            else {
                continue;
            };
            let target = Target {
                address: IpAddr::V4(backend.address),
                ifindex: port.ifindex,
            };
            let neighbour = Neighbour {
                mac: Some(mac_bytes(backend.entry.mac())),
                reason: String::new(),
            };
            self.neighbours.insert(target, neighbour);
        }
    }
}

/// The probe of one backend, if there is a MAC address where it needs one.
fn aim(
    probe: &config::Probe,
    vip: IpAddr,
    address: IpAddr,
    number: u16,
    actual: &Actual,
) -> Option<(ProbeSpec, Thresholds)> {
    let through_vip = probe.via == config::Via::Vip;
    let aimed = actual
        .backends()
        .get(&number)
        .is_some_and(|b| b.entry.mac() != 0);
    if through_vip && !aimed {
        return None;
    }
    let spec = ProbeSpec {
        kind: match &probe.kind {
            config::ProbeKind::Tcp => ProbeKind::Tcp,
            config::ProbeKind::Http { path, host, status } => ProbeKind::Http {
                path: path.clone(),
                host: host.clone(),
                status: status.clone(),
            },
        },
        via: if through_vip { Via::Vip } else { Via::Address },
        target: SocketAddr::new(if through_vip { vip } else { address }, probe.port),
        address,
        mark: through_vip.then(|| probe_mark(number)),
        interval: probe.interval,
        timeout: probe.timeout,
    };
    let thresholds = Thresholds {
        rise: u32::from(probe.rise),
        fall: u32::from(probe.fall),
    };
    Some((spec, thresholds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::ConfigFile,
        control::{actual::Op, decisions::Decision, samples::Bench},
        health::ProbeFailure,
        neighbour::{Interface, Link},
    };

    const BACKENDS: [Ipv4Addr; 2] = [
        Ipv4Addr::new(198, 51, 100, 1),
        Ipv4Addr::new(198, 51, 100, 2),
    ];

    /// Two services on the same two backends, of which the first is probed.
    fn knowledge() -> Knowledge {
        let text = r#"
            [node]
            interfaces = ["eth0"]
            [[service]]
            name = "web"
            vip = "192.0.2.10"
            protocol = "tcp"
            ports = [80]
            backend = [{ name = "one", address = "198.51.100.1" }, { name = "two", address = "198.51.100.2" }]
            [service.probe]
            type = "tcp"
            port = 80
            [[service]]
            name = "mail"
            vip = "192.0.2.11"
            protocol = "tcp"
            ports = [25]
            backend = [{ name = "one", address = "198.51.100.1" }, { name = "two", address = "198.51.100.2" }]
        "#;
        let config = ConfigFile::parse("test.toml", text)
            .unwrap_or_else(|errors| panic!("{}", errors.render(false)))
            .config;
        let port = PortState {
            number: 0,
            name: "eth0".into(),
            ifindex: 7,
            mac: [2, 0, 0, 0, 0, 1],
        };
        Knowledge {
            config,
            leaving: BTreeMap::new(),
            decisions: Decisions::default(),
            health: HashMap::new(),
            neighbours: HashMap::new(),
            ports: vec![port],
            facts: facts(),
            opening: false,
            cluster: Cluster::default(),
        }
    }

    fn facts() -> HostFacts {
        HostFacts {
            interfaces: vec![Interface {
                link: Link {
                    ifindex: 7,
                    name: "eth0".into(),
                    mac: Some([2, 0, 0, 0, 0, 1]),
                    mtu: 1500,
                    up: true,
                    running: true,
                    loopback: false,
                    xdp: None,
                },
                addresses: vec!["198.51.100.250/24".parse().unwrap()],
                driver: None,
            }],
        }
    }

    fn set_mac(knowledge: &mut Knowledge, backend: usize, mac: Option<Mac>) {
        let target = Target {
            address: IpAddr::V4(BACKENDS[backend]),
            ifindex: 7,
        };
        let reason = "no ARP answer".to_owned();
        knowledge
            .neighbours
            .insert(target, Neighbour { mac, reason });
    }

    /// What the daemon does after every event: reconciles, then probes what can be probed.
    fn follow(knowledge: &mut Knowledge, bench: &mut Bench) {
        let desired = knowledge.desired(|_| true, bench.actual());
        bench.bring(&desired);
        let probes = knowledge.probes(bench.actual());
        knowledge.keep_health(bench.actual(), &probes);
    }

    fn probe_succeeds(knowledge: &mut Knowledge, number: u16) {
        let health = knowledge.health.get_mut(&number).unwrap();
        health.observe(&Ok(std::time::Duration::from_millis(1)), SystemTime::now());
    }

    #[test]
    fn whoever_was_gone_is_probed_before_it_serves_again() {
        let mut bench = Bench::new();
        let mut knowledge = knowledge();
        follow(&mut knowledge, &mut bench);
        assert_eq!(bench.state("web", "one"), BackendState::Down);
        assert!(
            knowledge.probes(bench.actual()).is_empty(),
            "nowhere to aim"
        );

        set_mac(&mut knowledge, 0, Some([2, 0, 0, 0, 1, 1]));
        follow(&mut knowledge, &mut bench);
        assert_eq!(bench.state("web", "one"), BackendState::Down, "not yet");
        let number = bench.number("web", "one");
        probe_succeeds(&mut knowledge, number);
        follow(&mut knowledge, &mut bench);
        assert_eq!(bench.state("web", "one"), BackendState::Up);

        set_mac(&mut knowledge, 0, None);
        follow(&mut knowledge, &mut bench);
        let lost = &bench.actual().backends()[&number];
        assert_eq!(
            (lost.state, lost.reason.as_str()),
            (BackendState::Down, "no ARP answer")
        );
        set_mac(&mut knowledge, 0, Some([2, 0, 0, 0, 1, 1]));
        follow(&mut knowledge, &mut bench);
        let back = &bench.actual().backends()[&number];
        assert_eq!(
            (back.state, back.reason.as_str()),
            (BackendState::Down, "not probed yet"),
            "what it said before it was gone says nothing"
        );
        probe_succeeds(&mut knowledge, number);
        follow(&mut knowledge, &mut bench);
        assert_eq!(bench.state("web", "one"), BackendState::Up);

        // Removed, and put back while it leaves: it was probed all the while.
        let before = knowledge.take(without_one(&knowledge));
        follow(&mut knowledge, &mut bench);
        assert_eq!(bench.state("web", "one"), BackendState::Leaving);
        knowledge.take(before.0);
        follow(&mut knowledge, &mut bench);
        assert_eq!(bench.state("web", "one"), BackendState::Up);
        assert_eq!(bench.number("web", "one"), number);
        assert!(knowledge.leaving.is_empty());
    }

    /// The configuration without `one` in `web`, and with another probe for those that stay.
    fn without_one(knowledge: &Knowledge) -> Config {
        let mut config = knowledge.config.clone();
        config.services[0].backends.remove(0);
        config.services[0].probe.as_mut().unwrap().port = 8080;
        config
    }

    /// Both backends of `web` are up, then `one` leaves: gives its number.
    fn one_leaves(knowledge: &mut Knowledge, bench: &mut Bench) -> u16 {
        for backend in 0..2 {
            set_mac(knowledge, backend, Some([2, 0, 0, 0, 1, backend as u8]));
        }
        follow(knowledge, bench);
        for backend in ["one", "two"] {
            probe_succeeds(knowledge, bench.number("web", backend));
        }
        follow(knowledge, bench);
        assert_eq!(bench.state("web", "one"), BackendState::Up);
        let config = without_one(knowledge);
        knowledge.take(config);
        follow(knowledge, bench);
        assert_eq!(bench.state("web", "one"), BackendState::Leaving);
        bench.number("web", "one")
    }

    fn probe_fails(knowledge: &mut Knowledge, number: u16) {
        let health = knowledge.health.get_mut(&number).unwrap();
        let refused = ProbeFailure::Refused {
            target: "192.0.2.10:80".parse().unwrap(),
        };
        for _ in 0..3 {
            health.observe(&Err(refused.clone()), SystemTime::now());
        }
        assert_eq!(health.state(), HealthState::Down);
    }

    fn slots_naming(bench: &Bench, number: u16) -> usize {
        bench
            .slots("web")
            .iter()
            .filter(|slot| [slot.current(), slot.previous()].contains(&number))
            .count()
    }

    /// Its flows would wait for a dead server until they had been silent for `flow_idle`.
    #[test]
    fn whoever_leaves_is_probed_as_before_and_fails() {
        let (mut knowledge, mut bench) = (knowledge(), Bench::new());
        let number = one_leaves(&mut knowledge, &mut bench);
        assert!(slots_naming(&bench, number) > 0, "its flows stay");
        let probes = knowledge.probes(bench.actual());
        let ports = |name| probes[&ProbeId(bench.number("web", name))].0.target.port();
        assert_eq!((ports("one"), ports("two")), (80, 8080), "each by its file");
        let target = Target {
            address: IpAddr::V4(BACKENDS[0]),
            ifindex: 7,
        };
        assert!(knowledge.targets().contains(&target), "followed by ARP");
        assert_eq!(
            knowledge.services_with(&BTreeSet::from([target.address])),
            BTreeSet::from(["web".to_owned(), "mail".to_owned()])
        );

        probe_fails(&mut knowledge, number);
        follow(&mut knowledge, &mut bench);
        let one = &bench.actual().backends()[&number];
        assert_eq!(one.state, BackendState::Leaving);
        assert!(one.entry.failed());
        assert!(
            one.reason.contains("flows have moved") && one.reason.contains("refused"),
            "{}",
            one.reason
        );
        assert_eq!(slots_naming(&bench, number), 0);
        // What has moved does not come back, and nothing keeps it any more.
        probe_succeeds(&mut knowledge, number);
        probe_succeeds(&mut knowledge, number);
        follow(&mut knowledge, &mut bench);
        assert!(bench.actual().backends()[&number].entry.failed());
        bench.sweep();
        assert!(!bench.actual().backends().contains_key(&number));
        knowledge.forget_gone(bench.actual());
        assert!(knowledge.leaving.is_empty());
    }

    #[test]
    fn whoever_leaves_fails_without_a_mac_address_and_on_the_operators_word() {
        for how in ["mac", "fail", "time is up"] {
            let (mut knowledge, mut bench) = (knowledge(), Bench::new());
            let number = one_leaves(&mut knowledge, &mut bench);
            let mut decision = Decision::default();
            match how {
                "mac" => set_mac(&mut knowledge, 0, None),
                "fail" => decision.failed = true,
                _ => (decision.drained, decision.flows_ended) = (true, Some(1)),
            }
            knowledge.decisions.set("web", "one", decision);
            follow(&mut knowledge, &mut bench);
            assert!(bench.actual().backends()[&number].entry.failed(), "{how}");
            assert_eq!(slots_naming(&bench, number), 0, "{how}");
        }
        // Another MAC address of it is followed.
        let (mut knowledge, mut bench) = (knowledge(), Bench::new());
        let number = one_leaves(&mut knowledge, &mut bench);
        set_mac(&mut knowledge, 0, Some([2, 0, 0, 0, 9, 9]));
        follow(&mut knowledge, &mut bench);
        let entry = bench.actual().backends()[&number].entry;
        assert_eq!(mac_bytes(entry.mac()), [2, 0, 0, 0, 9, 9]);
        assert!(!entry.failed());
    }

    /// How it was probed is not kept: the service's probe of today may be none of its own.
    #[test]
    fn whoever_leaves_fails_after_a_restart_only_by_a_probe_it_has_answered() {
        let (mut before, mut bench) = (knowledge(), Bench::new());
        let number = one_leaves(&mut before, &mut bench);
        let mut after = Knowledge {
            config: before.config.clone(),
            ..knowledge()
        };
        after.adopt_neighbours(bench.actual());
        after.adopt_leaving(bench.actual());
        assert_eq!(after.leaving.len(), 1);
        follow(&mut after, &mut bench);
        let failed = |bench: &Bench| bench.actual().backends()[&number].entry.failed();
        probe_fails(&mut after, number);
        follow(&mut after, &mut bench);
        assert!(!failed(&bench), "it was never asked so before");
        probe_succeeds(&mut after, number);
        probe_succeeds(&mut after, number);
        follow(&mut after, &mut bench);
        probe_fails(&mut after, number);
        follow(&mut after, &mut bench);
        assert!(failed(&bench));
    }

    #[test]
    fn what_an_earlier_daemon_knew_counts_until_the_probes_say_otherwise() {
        let mut bench = Bench::new();
        let mut before = knowledge();
        set_mac(&mut before, 0, Some([2, 0, 0, 0, 1, 1]));
        follow(&mut before, &mut bench);
        let number = bench.number("web", "one");
        probe_succeeds(&mut before, number);
        follow(&mut before, &mut bench);

        let mut after = knowledge();
        after.adopt_neighbours(bench.actual());
        let probes = after.probes(bench.actual());
        after.keep_health(bench.actual(), &probes);
        let desired = after.desired(|_| true, bench.actual());
        let state_of = |number: &u16| bench.actual().backends()[number].state;
        for op in bench.plan(&desired).unwrap() {
            let Op::Backend { number, backend } = op else {
                panic!("{op:?}");
            };
            assert_eq!(backend.state, state_of(&number), "only reasons change");
        }
        assert_eq!(state_of(&number), BackendState::Up);
    }

    #[test]
    fn only_what_is_wanted_is_looked_at() {
        let bench = Bench::new();
        let desired = knowledge().desired(|s| s.name == "mail", bench.actual());
        assert_eq!(desired.len(), 1);
        assert_eq!(desired[0].name, "mail");
    }
}
